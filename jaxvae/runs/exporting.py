"""The command ``export``: a run becomes a folder that others open, with jaxvae or without it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import jax
import tyro

from jaxvae.ranges import Count
from jaxvae.runs import folders, interchange, reports
from jaxvae.runs.loading import load
from jaxvae.uses import artefacts, graphs, pretrained


def export(
    workdir: Annotated[Path, tyro.conf.Positional],
    folder: Annotated[Path, tyro.conf.Positional],
    format: Literal["jaxvae", "diffusers"] = "jaxvae",
    checkpoint: str = "latest",
    programs: bool = True,
    platforms: tuple[artefacts.Platform, ...] = artefacts.PLATFORMS,
    batch_size: Count | None = None,
    weights_inside: bool | None = None,
    onnx: bool = False,
    license: str | None = None,
    push_to: str | None = None,
    scaling_factor: float | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
) -> None:
    """Writes a trained model to a folder that others open, with jaxvae or without it.

    The folder has config.json, model.safetensors, a model card, and programs of encoder, decoder
    and sampler that JAX runs without jaxvae. Every command takes it in the place of a run folder.
    An autoencoder of latent diffusion can be written as diffusers saves it instead.

    Args:
      workdir: the run folder.
      folder: the folder to write to.
      format: jaxvae, which is of any model, or diffusers, for an autoencoder-kl or a vq-gan alone.
      checkpoint: latest, best, or a step.
      programs: write encode.stablehlo, decode.stablehlo and sample.stablehlo by jax.export.
      platforms: what the programs run on.
      batch_size: examples in a batch of the programs; None is any number.
      weights_inside: write the weights into the programs, which otherwise take the arrays of
        model.safetensors as their first argument; None does so up to 16 MiB.
      onnx: write encode.onnx and decode.onnx too, for networks that ONNX has the operations of.
      license: the licence that the model card states, such as apache-2.0.
      push_to: name on the Hugging Face Hub to upload the folder to, such as user/vae-digits.
      scaling_factor: for diffusers, what latents are multiplied by in a diffusion model; None keeps
        an imported one, and otherwise measures 1 / std of the latents of training examples.
      dataset: data set to measure it on, if it has moved since the training.
      data_dir: folder of prepared sets, if it has moved since the training.
    """
    if format == "diffusers":
        interchange.export(workdir, folder, checkpoint, scaling_factor, dataset, data_dir)
        return
    for_diffusers = {"scaling-factor": scaling_factor, "dataset": dataset, "data-dir": data_dir}
    for name, value in for_diffusers.items():
        if value is not None:
            raise ValueError(f"--{name} is of --format diffusers; the format is {format}")
    if not platforms:
        raise ValueError(f"--platforms needs one of {', '.join(get_args(artefacts.Platform))}")
    folders.read(workdir)
    pretrained.check_free(folder)
    if programs:
        artefacts.check_library()
    if onnx:
        graphs.check_library()
    if push_to is not None:
        pretrained.check_name(push_to)
    model = load(workdir, checkpoint)
    made: list[artefacts.Artefact] = []
    if programs:
        made += artefacts.of_model(model, platforms, batch_size, weights_inside)
    if onnx:
        made += graphs.of_model(model)
    pretrained.save_pretrained(model, folder, made, license)
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    rows = [
        ("exported", f"step {model.step}, {count:,} numbers"),
        *((each.file, f"{len(each.content) / 1000:,.0f} kB") for each in made),
        ("folder", str(folder)),
    ]
    if push_to is not None:
        rows.append(("uploaded", pretrained.push_to_hub(folder, push_to)))
    reports.table(rows)
