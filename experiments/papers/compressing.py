"""Compression with trained models: net bits, -ELBO, first images, speed, beside PNG, WebP and xz.

``python experiments/papers/compressing.py [--dataset mnist] [--data-dir DIR] [--weights NPZ]
[--images 1000] [--json OUT]``

Every row is decompressed again, and the script ends with an error unless the images are the same.
The row ``published`` has the weights of Townsend et al. 2019 (arXiv:1901.04866), whose VAE
784-100-40-100-784 costs 0.19 bits for a binarized pixel. The file holds fc1, fc21, fc22, fc3 and
fc4 of the authors' PyTorch module. A row ``chain of L`` has L vectors of latents and is coded
twice: by Bit-Swap (F. H. Kingma et al. 2019, arXiv:1905.06845), and with all latents popped first.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

import jaxvae
from experiments import tables
from jaxvae import datasets, families, runs
from jaxvae.command_line import run_function
from jaxvae.contracts import Params
from jaxvae.families import Data
from jaxvae.uses.compression import formats, gaussian

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "published": ("digits", {"hidden": (100,), "latent": 40}),
    "binary": ("digits", {}),
    "grey": ("digits", {"likelihood": "discretized_logistic"}),
    "grey, mixture": ("digits", {"likelihood": "discretized_logistic_mixture"}),
    **{f"chain of {n}": ("bit-swap", {"latent": (40,) * n}) for n in (2, 4, 8)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and compressed."""

    latent: int = 40
    images: int = 1000
    """Test images, the first ones."""
    grid: int = 32
    """Places of a latent between 0 and 1."""
    weights: Path | None = None
    """The published weights, for the row ``published``."""


def published(file: Path) -> Params:
    """The parameters of our VAE from the arrays of the authors' module."""
    with np.load(file) as held:
        arrays = {name: held[name] for name in held.files}
    layer = lambda name: {"kernel": arrays[f"{name}_weight"].T, "bias": arrays[f"{name}_bias"]}
    mean, log_scale = layer("fc21"), layer("fc22")
    output = {part: np.concatenate([mean[part], log_scale[part]], -1) for part in mean}
    return {
        "encoder": {"hidden_0": layer("fc1"), "output": output},
        "decoder": {"hidden_0": layer("fc3"), "output": layer("fc4")},
        "posterior": {},
        "likelihood": {},
        "prior": {},
    }


def model_of(row: str, options: Options) -> tuple[Any, jaxvae.Trained]:
    """The configuration of a row and its model, trained unless it is published."""
    preset, named = ROWS[row]
    config = options.applied(families.preset(preset), **named)
    if row == "published":
        assert options.weights is not None
        data = Data("mnist", (28, 28, 1), "uint8", 256, "dynamic", 60_000)
        built = families.FAMILIES["flat"].build(config, data)
        return config, jaxvae.Trained(built, data, published(options.weights), 0)
    run, params, _ = tables.trained(config, options.job)
    return config, jaxvae.Trained(run.built, run.record.data, params, config.steps)


def images_of(config: Any, options: Options) -> np.ndarray:
    """The first test images, as bits drawn once if the model is of bits."""
    loaded = runs.prepare(config, options.job).dataset
    x = np.asarray(datasets.select(loaded, "test").x)
    if config.likelihood.name != "bernoulli":
        return x[: options.images]
    levels = loaded.levels or 2
    return (np.random.default_rng(0).random(x.shape) < x / (levels - 1))[: options.images].astype(
        np.uint8
    )


def measure(
    config: Any, trained: Any, images: np.ndarray, grid: int, swap: bool = True
) -> dict[str, float]:
    """What images cost, in bits for each value, and how fast they are coded."""
    codec = gaussian.gaussian_codec(config, trained.data, trained.params, images, grid, swap)
    codec.decompress(codec.compress(images[:2]).packed)  # compiles
    times = [time.perf_counter()]
    found = codec.compress(images)
    times.append(time.perf_counter())
    back = codec.decompress(found.packed)
    times.append(time.perf_counter())
    if not np.array_equal(back, images):
        raise ValueError("the images are not the same after decompression")
    net, bound = found.net_bits / images.size, gaussian.negative_elbo(trained, config, images)
    per_value = float(bound.mean()) / images[0].size
    return {
        "net": net,
        "-ELBO": per_value,
        "excess, %": 100 * (net / per_value - 1),
        "file": 8 * len(found.packed) / images.size,
        "first image, bits": found.first_image,
        "images/s, compress": len(images) / (times[1] - times[0]),
        "images/s, decompress": len(images) / (times[2] - times[1]),
        **formats.lossless(images, gaussian.levels_of(config, trained.data)),
    }


def _orders(row: str) -> dict[str, bool]:
    """Names of the orders in which a row is coded, and whether the steps of vectors take turns."""
    if not row.startswith("chain"):
        return {row: True}
    return {f"{row}, Bit-Swap": True, f"{row}, all popped first": False}


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Compression with trained models: net bits, -ELBO, speed, beside PNG, WebP and xz."""
    rows = options.chosen(ROWS)
    if options.weights is None:
        if "published" in options.rows:
            raise ValueError("the row published needs --weights, an .npz of the authors' arrays")
        rows = {row: value for row, value in rows.items() if row != "published"}
    results: tables.Results = {}
    for row in rows:
        config, trained = model_of(row, options)
        images = images_of(config, options)
        for label, swap in _orders(row).items():
            cell = measure(config, trained, images, options.grid, swap)
            results[label] = [cell]
            print(f"{label}: " + ", ".join(f"{name} {value:.4f}" for name, value in cell.items()))
    tables.show(results)
    tables.save(options.json, dataclasses.asdict(options), results)


if __name__ == "__main__":
    run_function(main)
