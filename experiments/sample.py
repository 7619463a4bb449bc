"""Samples from a trained model: ``python experiments/sample.py WORKDIR [--num 64] [--temperature
0.8]``.

Writes ``figures/samples.png`` and ``samples.npz``: latents z, decoder means and samples x ~ p(x|z).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import commands
import folders
import jax
import judgements
import numpy as np
import tyro
import wiring

from jaxvae import distributions, figures


def sample(
    workdir: Annotated[Path, tyro.conf.Positional],
    num: int = 64,
    seed: int = 0,
    checkpoint: str = "latest",
    data_dir: str | None = None,
    prior: Literal[judgements.SOURCES] = "model",  # type: ignore[valid-type]
    temperature: float = 1.0,
    components: int = 10,
    encodings: int = 10_000,
) -> None:
    """Draws images from a trained model.

    Args:
        workdir: the run folder.
        num: images to draw; a conditional model draws at the conditions of the first test examples.
        seed: of the draws.
        checkpoint: latest, best, or a step.
        data_dir: folder of prepared sets, where it has moved since the training.
        prior: what z is drawn from: the model's prior, the aggregated posterior, or what is fitted
            to encodings now, a Gaussian mixture, a coupling flow or a second VAE.
        temperature: factor of the standard deviations of p(z); a second VAE has none.
        components: of the Gaussian mixture.
        encodings: training examples that the last four are made of, from the first.
    """
    if num < 1 or encodings < 1 or components < 1:
        raise ValueError("--num, --encodings and --components must be at least 1")
    config = folders.load_config(workdir)
    run = wiring.build(dataclasses.replace(config, data_dir=data_dir or config.data_dir))
    step, params = folders.restore(run, workdir, checkpoint)
    key_z, key_x, key_preprocess = jax.random.split(jax.random.key(seed), 3)
    rows = np.arange(num) % len(run.test.images)
    raw = jax.tree.map(lambda a: a[rows], run.raw(run.test))
    examples = jax.vmap(run.preprocess)(jax.random.split(key_preprocess, num), raw)
    here = lambda example: run.vae.at(example)[0]
    if config.condition == "none" or prior != "model":
        z = distributions.tempered(
            judgements.source(run, params, prior, components, encodings), temperature
        )
        z = z.sample(key_z, (num,))
    else:
        of = lambda key, example: distributions.tempered(
            here(example).prior(params), temperature
        ).sample(key)
        z = jax.jit(jax.vmap(of))(jax.random.split(key_z, num), examples)
    decoded = lambda z, example: here(example).decode(params, z)
    means = jax.jit(jax.vmap(lambda *args: decoded(*args).mean))(z, examples)
    x = jax.jit(jax.vmap(lambda key, *args: decoded(*args).sample(key)))(
        jax.random.split(key_x, num), z, examples
    )
    images = run.pictures(np.asarray(means), examples) / run.white
    columns = min(math.ceil(math.sqrt(num)), 16)
    blank = np.ones((-num % columns, *images.shape[1:]), images.dtype)
    sheet = np.concatenate([images, blank]).reshape(-1, columns, *images.shape[1:])
    (workdir / "figures").mkdir(exist_ok=True)
    origin = {"model": "the prior", "aggregate": "the aggregated posterior"}.get(
        prior, f"a fitted {prior}"
    )
    figures.grid(
        workdir / "figures" / "samples.png",
        sheet,
        f"{num} samples of {origin}, decoder means (step {step})",
    )
    np.savez(workdir / "samples.npz", z=np.asarray(z), means=np.asarray(means), x=np.asarray(x))
    print(
        f"{num} samples of step {step}: {workdir / 'figures' / 'samples.png'}, {workdir / 'samples.npz'}"
    )


if __name__ == "__main__":
    commands.command(sample)
