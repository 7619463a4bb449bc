"""Figures: shapes of what is decoded, and files that are pictures."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxvae import datasets, figures, models
from jaxvae.distributions import Normal, OneHotCategorical, VonMisesFisher
from jaxvae.figures import drawing


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_decoded_images(small_vae: models.VAE, digits: datasets.Dataset) -> None:
    params = small_vae.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    x = jnp.asarray(digits.splits["test"].x[:6], jnp.float32) / 16
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


def test_values_under_narrow_images_do_not_touch(tmp_path: Path) -> None:
    """White lies between them, as many times as there are columns less one."""
    values = ["8888"] * 9  # as wide as -2.25
    figures.grid(tmp_path / "grid.png", np.zeros((10, 9, 128, 40, 1)), "", columns=values)
    below = pixels(tmp_path / "grid.png")[..., 0]
    last = np.flatnonzero((below == 0).mean(1) > 0.5).max()  # of the black images
    written = (below[last + 5 :] < 128).any(0)
    blank = np.diff(np.flatnonzero(written)) > 4  # pixels; between characters there are fewer
    assert blank.sum() == len(values) - 1


@pytest.mark.parametrize("dimensions", [1, 2, 5])
@pytest.mark.parametrize("labels", [None, np.arange(30) % 3, np.arange(30) % 15, np.arange(30)])
def test_the_latent_space_is_drawn(
    tmp_path: Path, dimensions: int, labels: np.ndarray | None
) -> None:
    means = np.random.default_rng(0).normal(size=(30, dimensions))
    figures.latent_scatter(tmp_path / "latents.png", means, labels, "title")
    assert pixels(tmp_path / "latents.png").std() > 5


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every figure that is drawn."""
    drawn: list[Any] = []
    make = drawing._figure

    def figure(*args: Any) -> tuple[Any, Any]:
        found = make(*args)
        drawn.extend(np.ravel(found[1]))
        return found

    monkeypatch.setattr(drawing, "_figure", figure)
    return drawn


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([0, 1, 1, 0], ["cat", "dog"]),
        ([1, -1, 1, 1], ["dog", "no label"]),
        ([0, 2, 1, 0], ["cat", "dog", "2"]),
        ([0.5, -1.0, 0.5, 0.5], ["-1.0", "0.5"]),
    ],
)
def test_the_legend_has_the_names_of_the_classes(
    tmp_path: Path, axes: list[Any], labels: list[Any], names: list[str]
) -> None:
    means = np.random.default_rng(0).normal(size=(4, 2))
    figures.latent_scatter(tmp_path / "a.png", means, np.array(labels), "", ("cat", "dog"))
    assert axes[0].get_legend_handles_labels()[1] == names


@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_curves_take_reports_with_missing_terms(
    tmp_path: Path, axes: list[Any], count: int
) -> None:
    """A single value is a point, and is said to be one."""
    reports = [
        {"step": i, "validation_elbo": 1.0 / (i + 1), "kl": None} for i in range(1, count + 1)
    ]
    terms = {"validation_elbo": "validation ELBO", "kl": "KL"}
    figures.curves(tmp_path / "curves.png", reports, terms)
    assert pixels(tmp_path / "curves.png").size > 0
    texts = [text.get_text() for text in axes[0].texts]
    assert texts == (["0.50 (1 checkpoint)"] if count == 1 else [])
    if count:
        (line,) = axes[0].lines
        assert (line.get_marker() == "o") == (count < 3)


# All figures of a model, made of functions that need no compiler


def model(q: Any = lambda z: Normal(z, 0.1 * jnp.ones_like(z))) -> models.Model:
    """x [4, 4, 1] is the mean of z [3] everywhere, and z that of x."""
    return models.Model(
        init=lambda key, x: {},
        encode=lambda params, x: q(jnp.full(3, x.mean())),
        decode=lambda params, z, condition=None: Normal(
            jnp.full((4, 4, 1), z.mean()), jnp.ones((4, 4, 1))
        ),
        draw=lambda params, key, condition=None: jax.random.normal(key, (3,)),
    )


SPHERE = functools.partial(VonMisesFisher, concentration=jnp.float32(5.0))
ALBUMS = {  # model -> the figures that are left out, beside those of other answers
    "every answer": (model(), set()),
    "no encoder": (
        model()._replace(encode=None),
        {"reconstructions", "interpolations", "traversals", "latents"},
    ),
    "no prior": (model()._replace(draw=None), {"samples"}),
    "no decoder": (model()._replace(decode=None), set(figures.FIGURES) - {"latents", "curves"}),
    "a sphere": (
        model(lambda z: SPHERE(z / jnp.linalg.norm(z))),
        {"interpolations", "traversals"},
    ),
    "classes": (model(lambda z: OneHotCategorical(jnp.outer(z, jnp.arange(2.0)))), set()),
}


@pytest.mark.parametrize("album", ALBUMS)
def test_a_figure_whose_answer_is_missing_is_left_out(tmp_path: Path, album: str) -> None:
    family, missing = ALBUMS[album]
    if album == "classes":
        family = family._replace(
            draw=lambda params, key, condition=None: jnp.eye(2)[jnp.zeros(3, int)]
        )
    x = np.random.default_rng(0).random((7, 4, 4, 1), np.float32)
    split, reports = datasets.Split(x, np.arange(7) % 3), [{"step": 1, "loss": 1.0}]
    done: list[int] = []
    key = jax.random.key(0)
    names = figures.draw_all(
        tmp_path, family, {}, key, split, reports=reports, progress=done.append
    )
    assert done == [*range(1, len(figures.FIGURES) + 1)]
    # answers that a VAE does not have
    special = {"partly", "classify", "seen", "atoms"}
    drawn = {name for name, figure in figures.FIGURES.items() if not special & set(figure.needs)}
    shown = drawn - missing
    assert set(names) == {f"{name}.png" for name in shown}
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_examples_that_are_shown_are_of_all_classes(tmp_path: Path) -> None:
    """A folder by class is sorted by class: the first ones are of one class alone."""
    labels = np.repeat(np.arange(10), 100)
    x = np.broadcast_to(labels[:, None, None, None] / 10, (1000, 4, 4, 1)).astype(np.float32)
    seen = []

    def pictures(images: np.ndarray, examples: Any) -> np.ndarray:
        seen.append(np.unique(np.asarray(images).round(3)))
        return images

    figures.draw_all(tmp_path, model(), {}, jax.random.key(0), datasets.Split(x), pictures=pictures)
    inputs = seen[0]
    assert len(inputs) >= 5


def test_latents_are_moved_through_the_leaves_of_z() -> None:
    def decode(params: Any, z: Any, condition: Any = None) -> Normal:
        numbers = jnp.concatenate([z["a"], z["b"]])
        return Normal(numbers, jnp.ones(5))

    pair = models.Model(init=lambda key, x: {}, decode=decode)
    center = {"a": jnp.zeros(2), "b": jnp.ones(3)}
    found = figures.traversals(pair, {}, center, [1, 2, 4], jnp.array([5.0, 7.0]))
    expected = np.tile([0.0, 0, 1, 1, 1], (3, 2, 1))
    for row, latent in enumerate([1, 2, 4]):
        expected[row, :, latent] = [5, 7]
    np.testing.assert_array_equal(found, expected)
