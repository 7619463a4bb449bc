"""Samples from a trained model: ``python experiments/sample.py WORKDIR [--num 64]``.

Writes ``figures/samples.png`` and ``samples.npz``: latents z, decoder means and samples x ~ p(x|z).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import config as setup
import folders
import jax
import numpy as np
import tyro

from jaxvae import figures


def sample(
    workdir: Annotated[Path, tyro.conf.Positional],
    num: int = 64,
    seed: int = 0,
    checkpoint: str = "latest",
    data_dir: str | None = None,
) -> None:
    """Draws images from a trained model.

    Args:
        workdir: the run folder.
        num: images to draw.
        seed: of the draws.
        checkpoint: latest, best, or a step.
        data_dir: folder of prepared sets, where it has moved since the training.
    """
    if num < 1:
        raise ValueError(f"--num must be at least 1; it was {num}")
    config = folders.load_config(workdir)
    run = setup.build(dataclasses.replace(config, data_dir=data_dir or config.data_dir))
    step, params = folders.restore(run, workdir, checkpoint)
    key_z, key_x = jax.random.split(jax.random.key(seed))
    z = run.vae.prior(params).sample(key_z, (num,))
    means = figures.decoded(run.vae, params, z)
    draw = lambda z, key: run.vae.decode(params, z).sample(key)
    x = np.asarray(jax.jit(jax.vmap(draw))(z, jax.random.split(key_x, num)))
    columns = min(math.ceil(math.sqrt(num)), 16)
    blank = np.ones((-num % columns, *means.shape[1:]), means.dtype)
    sheet = np.concatenate([means / run.white, blank]).reshape(-1, columns, *means.shape[1:])
    (workdir / "figures").mkdir(exist_ok=True)
    figures.grid(workdir / "figures" / "samples.png", sheet, f"{num} samples of the prior, decoder means (step {step})")
    np.savez(workdir / "samples.npz", z=np.asarray(z), means=means, x=x)
    print(f"{num} samples of step {step}: {workdir / 'figures' / 'samples.png'}, {workdir / 'samples.npz'}")


if __name__ == "__main__":
    setup.command(sample)
