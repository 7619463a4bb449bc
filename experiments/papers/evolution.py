"""TVAE: bars that are found, with all seeds at once; and a picture cleaned by its own patches.

``python experiments/papers/evolution.py --table bars [--seeds 8]`` or ``--table denoising
--picture house.png [--noise 25] [--crop 80 176 100 196] [--json OUT]``

``bars``: images of eight bars in noise (Drefs et al. 2022, arXiv:2011.13704, sec. 3.1). log p is by
enumeration of all states, 9.65 nats for the generator. Seeds are trained by one ``vmap``.
``denoising``: PSNR beside scikit-image's total variation and non-local means, each with the best of
some strengths, and beside the linear VAE of patches in closed form.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import itertools
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from scipy.special import logsumexp

from experiments import tables
from jaxvae import families, pictures, schedules, training
from jaxvae.command_line import run_function
from jaxvae.families.truncated import model_of
from jaxvae.likelihoods import normal_learned
from jaxvae.models import truncated
from jaxvae.runs.denoising import cut, denoised
from jaxvae.settings import changed

BARS = np.concatenate([np.kron(np.eye(4), np.ones((1, 4))), np.kron(np.ones((1, 4)), np.eye(4))])
NOISE = 0.1  # of the images of bars
EVERY = np.array(list(itertools.product([0, 1], repeat=8)), np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is trained and measured."""

    table: Literal["bars", "denoising"] = "bars"
    """The table that is made."""
    seeds: int = 8
    """Seeds, from 0 on."""
    steps: int = 6400
    """Training steps, in batches of 32."""
    picture: Path | None = None
    """The clean picture."""
    noise: float = 25.0
    """Standard deviation of the added noise, of 255."""
    crop: tuple[int, int, int, int] | None = None
    """Top, bottom, left and right of the part that is taken."""
    patch: int = 8
    """Height and width of a patch."""
    latent: int = 64
    """Bits of the model of patches."""
    states: int = 64
    """States of each patch."""
    json: Path | None = None
    """File for all results."""


# Bars


def bars(count: int, seed: int = 0) -> np.ndarray:
    """Images [N, 16] of bars that are there with probability 1/4, and add up where they cross."""
    rng = np.random.default_rng(seed)
    there = rng.random((count, 8)) < 0.25
    return (there @ BARS + NOISE * rng.normal(size=(count, 16))).astype(np.float32)


MODEL = model_of(
    changed(families.preset("tvae"), latent=8, hidden=(8,), states=64, parents=3, children=2),
    normal_learned(NOISE),
    (16,),
)


def of_bars(seeds: int, count: int, batch_size: int = 32) -> training.Algorithm:
    """The training of all seeds at once, with the authors' settings."""
    epoch = -(-count // batch_size)
    optimizer = optax.adam(schedules.triangular(20 * epoch, 1e-4, 5e-2))
    steps = truncated.steps_of(MODEL)
    one = training.expectation_maximization(steps, optimizer, count, batch_size)
    return training.vmapped(lambda seed: one, jnp.arange(seeds))


@jax.jit
def bounds(params: Any, x: Any, states: Any) -> Any:
    """F of each image [N] at its states [N, S, H]."""
    return jax.vmap(lambda x, s: -truncated.bound_of(MODEL, params, x, s)[0])(x, states)


def log_likelihood(params: Any, x: np.ndarray) -> float:
    """The mean log p(x) of a model, with all 256 states of each image."""
    return float(bounds(params, jnp.asarray(x), jnp.broadcast_to(EVERY, (len(x), 256, 8))).mean())


def of_generator(x: np.ndarray) -> float:
    """The mean log p(x) of the law that the images are from."""
    prior = EVERY @ np.log(np.full(8, 0.25)) + (1 - EVERY) @ np.log(np.full(8, 0.75))
    squares = ((x[:, None] - EVERY @ BARS) ** 2).sum(2)
    log_joint = prior - 0.5 * squares / NOISE**2 - 16 * np.log(NOISE * np.sqrt(2 * np.pi))
    return float(logsumexp(log_joint, axis=1).mean())


def bars_found(params: Any) -> int:
    """How many bars some latent draws, by a correlation above 0.9 of its picture with the bar.

    A latent may also stand for the absence of a bar, with a correlation below -0.9.
    """
    decode = jax.vmap(lambda s: MODEL.decode(params, s).mean)
    pictures_of_latents = np.asarray(decode(jnp.eye(8)) - decode(jnp.zeros((1, 8))))
    correlation = np.corrcoef(np.concatenate([pictures_of_latents, BARS]))[:8, 8:]
    return int((np.abs(np.nan_to_num(correlation)) > 0.9).any(0).sum())


def table_of_bars(options: Options) -> tables.Results:
    """F, log p, bars and variance of every seed."""
    x, test, start = bars(500), bars(1000, seed=1), time.perf_counter()
    algorithm = of_bars(options.seeds, len(x))
    state = jax.block_until_ready(
        training.fit(algorithm, x, num_steps=options.steps, batch_size=32)
    )
    seconds = (time.perf_counter() - start) / options.seeds
    results: tables.Results = {}
    for seed in range(options.seeds):
        member = training.member(state, seed)
        params = training.trained(member)
        states = jax.vmap(lambda entry: truncated.unpacked(entry, 8))(member.memory)
        cell = {
            "F": float(bounds(params, jnp.asarray(x), states).mean()),
            "log p": log_likelihood(params, x),
            "test": log_likelihood(params, test),
            "bars": float(bars_found(params)),
            "variance": float(jnp.exp(2 * params["likelihood"]["log_scale"])),
            "seconds": seconds,
        }
        results[f"seed {seed}"] = [cell]
    print(f"the generator: log p {of_generator(x):.3f}, test {of_generator(test):.3f}")
    best = max(results.values(), key=lambda cells: cells[0]["F"])[0]
    whole = sum(cells[0]["bars"] == 8 for cells in results.values())
    print(f"best by F: {best['bars']:.0f} bars, log p {best['log p']:.3f}; {whole} have all bars")
    return results


# Denoising


def linear_denoised(noisy: np.ndarray, patch: int, scale: float) -> np.ndarray:
    """The linear VAE of patches with known noise, in closed form.

    It is probabilistic PCA: an axis with the eigenvalue l is kept by max(l - s^2, 0) / l.
    """
    patches = pictures.patches_of(noisy, patch)
    flat = patches.reshape(len(patches), -1).astype(np.float64)
    mean = flat.mean(0)
    values, vectors = np.linalg.eigh(np.cov((flat - mean).T))
    gain = np.maximum(values - scale**2, 0) / values
    cleaned = (flat - mean) @ (vectors * gain) @ vectors.T + mean
    return pictures.averaged(cleaned.reshape(patches.shape), noisy.shape)


def of_library(noisy: np.ndarray, clean: np.ndarray, scale: float) -> dict[str, float]:
    """PSNR of scikit-image's denoisers, each with the strength that is best for this picture."""
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    image = noisy[..., 0]
    score = lambda cleaned: pictures.psnr(cleaned[..., None], clean)
    variation = [denoise_tv_chambolle(image, weight=w) for w in (0.05, 0.08, 0.1, 0.13, 0.16, 0.2)]
    means = [
        denoise_nl_means(image, patch_size=5, patch_distance=9, h=h * scale, sigma=scale)
        for h in (0.4, 0.6, 0.8, 1.0)
    ]
    return {
        "total variation": max(map(score, variation)),
        "non-local means": max(map(score, means)),
    }


def table_of_denoising(options: Options) -> tables.Results:
    """PSNR of every method and seed."""
    if options.picture is None:
        raise ValueError("--table denoising needs --picture, a clean PNG to which noise is added")
    clean, scale = cut(pictures.read(options.picture), options.crop), options.noise / 255
    config = changed(
        families.preset("tvae-patches"),
        steps=options.steps,
        latent=options.latent,
        states=options.states,
    )
    results: tables.Results = {}
    for seed in range(options.seeds):
        noise = np.random.default_rng(seed).normal(size=clean.shape)
        noisy = (clean + scale * noise).astype(np.float32)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = denoised(noisy, changed(config, seed=seed), folder, options.patch)
        assert found is not None
        scores = {
            "noisy": pictures.psnr(noisy, clean),
            "linear VAE": pictures.psnr(linear_denoised(noisy, options.patch, scale), clean),
            **of_library(noisy, clean, scale),
            "TVAE": pictures.psnr(found, clean),
        }
        cell = scores | {"seconds": time.perf_counter() - start}
        print(f"seed {seed}: " + ", ".join(f"{n} {v:.2f}" for n, v in cell.items()), flush=True)
        results.setdefault("PSNR", []).append(cell)
    return results


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """TVAE: bars that are found, and a picture cleaned by its own patches."""
    tables.check_place(options.json)
    table = {"bars": table_of_bars, "denoising": table_of_denoising}[options.table]
    results = table(options)
    tables.show(results)
    tables.save(options.json, dataclasses.asdict(options), results)


if __name__ == "__main__":
    run_function(main)
