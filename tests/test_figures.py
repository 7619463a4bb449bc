"""Figures: shapes of what is decoded, and files that are pictures."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxvae import datasets, figures, models


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_decoded_images(small_vae: models.VAE, digits: datasets.Dataset) -> None:
    params = small_vae.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    x = jnp.asarray(digits.splits["test"].images[:6], jnp.float32) / 16
    inputs, outputs = figures.reconstructions(small_vae, params, x)
    np.testing.assert_array_equal(inputs, x)
    assert outputs.shape == x.shape
    assert figures.prior_samples(small_vae, params, jax.random.key(1), x).shape == x.shape
    vmapped = figures.traversals(
        small_vae, params, jnp.zeros(2), [1, 0], jnp.array([-1.0, 0.0, 1.0])
    )
    assert vmapped.shape == (2, 3, 8, 8, 1)
    np.testing.assert_allclose(
        vmapped[:, 1], np.tile(small_vae.decode(params, jnp.zeros(2)).mean, (2, 1, 1, 1)), rtol=1e-5
    )
    lines = figures.interpolations(small_vae, params, x[:3], x[3:], 4)
    assert lines.shape == (3, 4, 8, 8, 1)
    np.testing.assert_allclose(lines[:, 0], outputs[:3], rtol=1e-4)
    np.testing.assert_allclose(lines[:, -1], outputs[3:], rtol=1e-4)


@pytest.mark.parametrize(
    "shape", [(2, 3, 8, 8, 1), (3, 2, 5, 7, 3), (2, 2, 4, 4, 2), (1, 1, 8, 8, 1), (2, 4, 20)]
)
def test_a_grid_shows_its_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Black images make a dark sheet, white ones a white one; values outside [0, 1] are clipped."""
    mean = {}
    for value in (-1.0, 2.0):
        figures.grid(tmp_path / "grid.png", np.full(shape, value), "title", rows=["row"] * shape[0])
        mean[value] = pixels(tmp_path / "grid.png").mean()
    assert mean[-1.0] < mean[2.0] - 10


@pytest.mark.parametrize("dimensions", [1, 2, 5])
@pytest.mark.parametrize("labels", [None, np.arange(30) % 3, np.arange(30) % 15, np.arange(30)])
def test_the_latent_space_is_drawn(
    tmp_path: Path, dimensions: int, labels: np.ndarray | None
) -> None:
    means = np.random.default_rng(0).normal(size=(30, dimensions))
    figures.latent_scatter(tmp_path / "latents.png", means, labels, "title")
    assert pixels(tmp_path / "latents.png").std() > 5


@pytest.mark.parametrize("count", [0, 1, 20])
def test_curves_take_reports_with_missing_terms(tmp_path: Path, count: int) -> None:
    reports = [{"step": i, "loss": 1.0 / (i + 1), "kl": None} for i in range(count)]
    figures.curves(tmp_path / "curves.png", reports, {"loss": "loss", "kl": "KL"})
    assert pixels(tmp_path / "curves.png").size > 0
