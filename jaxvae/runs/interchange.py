"""The commands ``import`` and ``export``: folders of diffusers become runs, and runs such folders.

The run of an imported folder keeps ``config.json`` and the header of the weights, so that both
files are written back byte for byte.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxvae import checkpoints, datasets, families, interchange, tensors, training
from jaxvae.families import Data
from jaxvae.runs import folders, reports
from jaxvae.runs.commands import opened
from jaxvae.runs.loading import load
from jaxvae.settings import changed, settings_of

KEPT = "diffusers"  # folder in a run with what must be written back as it was
HEADER = "header.json"
FOR_SCALE = 1000  # training examples whose latents the scaling factor is measured on, at most


def import_folder(
    folder: Annotated[Path, tyro.conf.Positional],
    to: Path | None = None,
    image_size: tuple[int, ...] = (),
) -> None:
    """Makes a run of an autoencoder that diffusers has saved (AutoencoderKL or VQModel).

    Args:
      folder: a folder with config.json and diffusion_pytorch_model.safetensors.
      to: the run folder to make; None is runs/FOLDER.
      image_size: height and width of the images that the run takes, or one number for both; none is
        the sample_size of config.json.
    """
    config, held = _read(folder)
    record, params = _named(folder, lambda: _record(folder, config, held, image_size))
    workdir = Path("runs") / folder.resolve().name if to is None else to
    if folders.has_checkpoints(workdir) or workdir.resolve() == folder.resolve():
        raise ValueError(f"{workdir} is taken; name another folder with --to")
    state = _state(record, params)
    with folders.lock(workdir), checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        (workdir / KEPT).mkdir(exist_ok=True)
        (workdir / KEPT / interchange.CONFIG).write_bytes((folder / "config.json").read_bytes())
        (workdir / KEPT / HEADER).write_text(held.header)
        folders.save(workdir, record)
        saved.save(0, state, {})
    kind, count = config["_class_name"], sum(array.size for array in held.arrays.values())
    flags = _flags(interchange.PRESETS[kind], interchange.to_settings(config))
    rows = [
        ("imported", f"{kind}, {len(held.arrays)} arrays, {count:,} numbers"),
        ("images", "x".join(map(str, record.data.shape))),
        ("train it further", f"jaxvae train {flags} --start-from {workdir}"),
        ("run", str(workdir)),
    ]
    reports.table(rows)


def _state(record: folders.Record, params: Any) -> training.State:
    """The state of a run before its first step, whose optimizer has no moments."""
    built = record.build()
    example = datasets.Examples(np.zeros(record.data.shape, np.uint8), built.preprocess)
    shapes = jax.eval_shape(built.algorithm.init, jax.random.key(0), example)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes._replace(key=None, params=None)
    )
    return zeros._replace(key=jax.random.key(0), params={"model": params})


def _named(folder: Path, read: Any) -> Any:
    """What ``read`` returns. Its errors begin with the folder."""
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _read(folder: Path) -> tuple[dict[str, Any], tensors.Held]:
    """config.json and the weights. Raises ValueError if one of them is missing or damaged."""
    for name in (interchange.CONFIG, interchange.WEIGHTS):
        if not (folder / name).exists():
            raise ValueError(
                f"{folder} has no {name}: diffusers writes it by save_pretrained(FOLDER)"
            )
    return folders.read_json(folder / interchange.CONFIG), tensors.read_safetensors(
        folder / interchange.WEIGHTS
    )


def _record(
    folder: Path, config: dict[str, Any], held: tensors.Held, image_size: tuple[int, ...]
) -> tuple[folders.Record, Any]:
    """The record of the run, and its parameters."""
    settings = interchange.to_settings(config)
    height, width, channels = interchange.image_shape(config)
    if len(image_size) > 2 or min(image_size, default=1) < 1:
        raise ValueError(f"--image-size must be one number or two from 1 on; it was {image_size}")
    if image_size:
        height, width = image_size[0], image_size[-1]
    rest = {"perceptual": "none", "critic": "none", "optimizer": "sgd", "ema_decay": 0.0}
    preset = families.preset(interchange.PRESETS[config["_class_name"]])
    ours = changed(preset, **settings, **rest, steps=0)
    data = Data(folder.resolve().name, (height, width, channels), "uint8", 256, "scale", 0)
    place = {"dataset": None, "data_dir": None, "stream": False}
    record = folders.Record("latent", ours, data, place)
    built = record.build()
    like = jax.eval_shape(built.model.init, jax.random.key(0), jnp.zeros(data.shape))
    like["likelihood"] = built.source.ends.likelihood.init(jax.random.key(0))
    return record, interchange.from_arrays(held.arrays, like)


def _flags(preset: str, settings: dict[str, Any]) -> str:
    """The preset, and the flags of the settings in which another run differs from it."""
    usual = {name: setting.value for name, setting in settings_of(families.preset(preset))}
    words = [preset]
    for name, value in settings.items():
        if value != usual[name]:
            numbers = value if isinstance(value, tuple) else () if value is False else (value,)
            no = "no-" if value is False else ""
            words += [f"--{no}{name}".replace("_", "-"), *map(str, numbers)]
    return " ".join(words)


def export(
    workdir: Annotated[Path, tyro.conf.Positional],
    folder: Annotated[Path, tyro.conf.Positional],
    checkpoint: str = "latest",
    scaling_factor: float | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
) -> None:
    """Writes an autoencoder as diffusers saves it: config.json and safetensors.

    Args:
      workdir: the run folder of an autoencoder-kl or a vq-gan.
      folder: the folder to write to.
      checkpoint: latest, best, or a step.
      scaling_factor: what latents are multiplied by in a diffusion model; None keeps an imported
        one, and otherwise measures 1 / std of the latents of training examples.
      dataset: data set to measure it on, if it has moved since the training.
      data_dir: folder of prepared sets, if it has moved since the training.
    """
    record = folders.read(workdir)
    if record.family != "latent":
        raise ValueError(
            f"{workdir} is of the family {record.family}; autoencoder-kl and vq-gan can be exported"
        )
    if (folder / interchange.WEIGHTS).exists():
        raise ValueError(f"{folder} holds an autoencoder; name another folder")
    interchange.to_config(record.config, record.data.shape, 1.0)  # refuses what diffusers lacks
    trained = load(workdir, checkpoint)
    arrays = interchange.to_arrays(trained.params)
    if (workdir / KEPT).exists():
        text, header, arrays = _as_it_was(workdir / KEPT, arrays, scaling_factor)
    else:
        if scaling_factor is None:
            scaling_factor = _measured_scale(workdir, checkpoint, dataset, data_dir)
        text = _text(interchange.to_config(record.config, record.data.shape, scaling_factor))
        header = None
    folder.mkdir(parents=True, exist_ok=True)
    tensors.write_safetensors(folder / interchange.WEIGHTS, arrays, header)
    (folder / interchange.CONFIG).write_text(text)
    written = json.loads(text)
    rows = [
        ("exported", f"{written['_class_name']} of step {trained.step}, {len(arrays)} arrays"),
        ("scaling factor", str(written.get("scaling_factor"))),
        ("folder", str(folder)),
    ]
    reports.table(rows)


def _as_it_was(
    kept: Path, arrays: dict[str, np.ndarray], scaling_factor: float | None
) -> tuple[str, str, dict[str, np.ndarray]]:
    """config.json, the header and the arrays by their names in the folder that was imported."""
    text, header = (kept / interchange.CONFIG).read_text(), (kept / HEADER).read_text()
    names = json.loads(header).keys() - {"__metadata__"}
    if scaling_factor is not None:
        text = _text(json.loads(text) | {"scaling_factor": scaling_factor})
    return text, header, {name: arrays[interchange.current_name(name)] for name in names}


def _text(config: dict[str, Any]) -> str:
    """The text of config.json as diffusers writes it."""
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _measured_scale(
    workdir: Path, checkpoint: str, dataset: str | None, data_dir: str | None
) -> float:
    """1 / std of draws of the latents of training examples (arXiv:2112.10752, app. G)."""
    run = opened(workdir, checkpoint, dataset, data_dir)
    train: Any = run.split(run.record.config.train_split, FOR_SCALE)
    encode: Any = run.built.model.encode

    def draw(key: Any, raw: Any) -> Any:
        key_x, key_z = jax.random.split(key)
        return encode(run.params, run.built.preprocess(key_x, raw)).sample(key_z)

    drawn = jax.jit(lambda keys, raw: jax.lax.map(lambda each: draw(*each), (keys, raw)))
    z = drawn(jax.random.split(run.key, len(train.x)), jnp.asarray(train.x))
    return round(1 / float(jnp.std(z)), 5)
