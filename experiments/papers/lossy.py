"""Lossy compression: real bytes and PSNR of learned codes, beside JPEG, WebP and a linear code.

``python experiments/papers/lossy.py [--dataset emoji.npz] [--scales 0.1 0.05 0.025] [--json OUT]``

Ballé et al. 2017 and 2018 (arXiv:1611.01704, arXiv:1802.01436) descend rate + distortion. A smaller
``scale`` of p(x|y) buys a better picture with more bits. JPEG and WebP have the largest quality
whose files are not larger. ``--linear`` takes transforms without hidden layers on small images. Its
columns ``KLT`` have principal components with one rounding step and a Gaussian coder, which is the
best linear code of Gaussian data, at the same number of bits.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import time
from typing import Annotated, Any

import numpy as np
import tyro
from scipy import stats

from experiments import tables
from jaxvae import datasets, families
from jaxvae.command_line import run_function
from jaxvae.uses.compression import formats
from jaxvae.uses.compression.transform import transform_codec

STEPS = np.geomspace(1e-3, 4, 60)  # rounding steps of the linear code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and coded."""

    rows: tuple[str, ...] = ("factorized-prior", "hyperprior")
    """Presets."""
    dataset: str = "digits"
    hidden: tuple[int, ...] = (64, 64)
    """Channels of the layers before the codes."""
    latent: int = 32
    steps: int = 4000
    scales: tuple[float, ...] = (0.1, 0.05, 0.025)
    """Standard deviations of a pixel in p(x|y), a row each."""
    linear: bool = False
    """Whether the transforms are linear, and compared with principal components."""


def configurations(options: Options) -> dict[str, Any]:
    """A configuration for each preset and scale."""
    network: dict[str, Any] = {"network": "mlp", "hidden": ()} if options.linear else {}
    made = {}
    for name in options.rows:
        for scale in options.scales:
            more = {"scale": scale, **network}
            made[f"{name}, {scale:g}"] = options.applied(families.preset(name), **more)
    return made


def klt(train: np.ndarray, test: np.ndarray, bits: float) -> float:
    """The squared error of an image by principal components, at some bits for each image.

    Every component is rounded with the same step, and coded by a Gaussian of its variance.
    """
    mean = train.mean(0)
    values, directions = np.linalg.eigh(np.cov(train.T, bias=True))
    scale = np.sqrt(np.maximum(values, 1e-12))
    codes, found = (test - mean) @ directions, []
    for step in STEPS:
        places = np.round(codes / step)
        upper, lower = (
            stats.norm.logcdf(-(np.abs(places) + s) * step / scale) for s in (-0.5, 0.5)
        )
        # P(lower < Z < upper) in the tail, without cancellation
        log_p = upper + np.log(-np.expm1(np.minimum(lower - upper, -1e-12)))
        found.append(
            (-log_p.sum(-1).mean() / np.log(2), ((codes - step * places) ** 2).sum(-1).mean())
        )
    rates, errors = np.array(found).T
    return float(np.exp(np.interp(bits, rates[::-1], np.log(errors[::-1]))))


def measure(run: Any, params: Any, options: Options) -> dict[str, float]:
    """Real bits and the quality of test images."""
    loaded = run.dataset
    images = np.asarray(datasets.select(loaded, "test").x)[: options.examples]
    codec = transform_codec(run.record.config, run.record.data, params, images)
    codec.compress(images[:2])  # compiles
    start = time.perf_counter()
    coded = codec.compress(images)
    speed = len(images) / (time.perf_counter() - start)
    back = codec.decompress(coded.packed).reshape(images.shape)
    in_file = 8 * len(coded.packed) / images.size
    cell = {
        "bits in the file, a value": in_file,
        "PSNR, dB": formats.psnr(back, images, codec.scheme.levels),
        "images/s": speed,
    }
    for name, (bits, quality) in formats.lossy(images, in_file).items():
        cell |= {f"{name}, bits": bits, f"{name}, dB": quality}
    if options.linear:
        top = codec.scheme.levels - 1
        flat = lambda x: np.asarray(x).reshape(len(x), -1) / top
        net = coded.net_bits / len(images)
        squared = float(((flat(back) - flat(images)) ** 2).sum(-1).mean())
        train = flat(datasets.select(loaded, "train").x)
        cell |= {"bits an image": net, "squared error": squared}
        cell["KLT's squared error"] = klt(train, flat(images), net)
    return cell


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Lossy compression: real bytes and PSNR beside JPEG, WebP and a linear code."""
    tables.check_place(options.json)
    results = tables.measured(
        configurations(options), options, lambda run, params: measure(run, params, options)
    )
    tables.show(results)
    tables.save(options.json, dataclasses.asdict(options), results)


if __name__ == "__main__":
    run_function(main)
