"""Arithmetic of latents beside the closed forms of a linear model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Linear
from scipy.spatial import geometric_slerp
from test_exporting import model_of

import jaxvae
from jaxvae import datasets, likelihoods, models, networks, posteriors, priors
from jaxvae.families import Data
from jaxvae.runs import editing
from jaxvae.runs.editing import edit
from jaxvae.uses import latents, pretrained

RNG = np.random.default_rng(0)
SHARES = np.linspace(0, 1, 7)


@pytest.fixture(scope="module")
def linear(images: np.ndarray) -> tuple[Linear, models.VAE, dict]:
    """Probabilistic PCA of the digits, with 5 latents."""
    exact = Linear(images, 5)
    return exact, *exact.vae("normal", exact.w)


def test_points_of_a_line() -> None:
    one, other = {"a": np.zeros(2), "b": np.ones(3)}, {"a": np.ones(2), "b": np.ones(3)}
    line = latents.straight(one, other, np.array([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(line["a"], [[0, 0], [0.25, 0.25], [1, 1]])
    np.testing.assert_array_equal(line["b"], np.ones((3, 3)))


@pytest.mark.parametrize("dimensions", [2, 3, 10])
def test_points_of_a_great_circle_are_scipys(dimensions: int) -> None:
    ends = RNG.normal(size=(2, dimensions))
    one, other = ends / np.linalg.norm(ends, axis=1, keepdims=True)
    given = latents.spherical(np.float32(one), np.float32(other), SHARES)
    np.testing.assert_allclose(given, geometric_slerp(one, other, SHARES), atol=2e-6)


def test_a_great_circle_of_one_direction_is_a_line() -> None:
    z = np.array([1.0, -2.0], np.float32)
    given = latents.spherical(z, 3 * z, SHARES)
    np.testing.assert_allclose(given, (1 + 2 * SHARES)[:, None] * z, rtol=1e-5)


def test_an_attribute_vector_holds_a_nuisance_fixed() -> None:
    """The plain difference moves along the nuisance that goes with the attribute."""
    has = np.repeat([True, True, False, False], [30, 10, 5, 45])
    size = np.repeat([2, 1, 2, 1], [30, 10, 5, 45])
    of_attribute, of_size = RNG.normal(size=(2, 4))
    z = has[:, None] * of_attribute + size[:, None] * of_size
    balanced = latents.attribute_vector({"z": z}, has, size)["z"]
    np.testing.assert_allclose(balanced, of_attribute, rtol=1e-5)
    plain = latents.attribute_vector(z, has)
    np.testing.assert_allclose(plain, of_attribute + 0.65 * of_size, rtol=1e-5)


def test_an_edit_of_a_linear_model_adds_a_vector(linear: Any) -> None:
    """E[x|z + t v] - E[x|z] = t W v."""
    exact, vae, params = linear
    z, v = RNG.normal(size=(2, 5)).astype(np.float32)
    amounts = np.array([-2.0, 0.0, 0.5, 3.0])
    images = latents.edited(vae, params, z, v, amounts)
    expected = exact.mean + exact.w @ z + amounts[:, None] * (exact.w @ v)
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_a_counterfactual_of_a_linear_model_has_a_closed_form(linear: Any) -> None:
    """z' = z + t W'w / |W'w|^2 with t = target - score."""
    exact, vae, params = linear
    w, bias = RNG.normal(size=64), 0.3
    weights = jnp.asarray(w, jnp.float32)
    score = lambda x: weights @ x + bias
    z = RNG.normal(size=(6, 5)).astype(np.float32)
    found = jax.jit(jax.vmap(lambda z: latents.counterfactual(vae, params, z, score, 1.5)))(z)
    before = (exact.mean + z @ exact.w.T) @ w + bias
    g = exact.w.T @ w
    shift = (1.5 - before)[:, None] * g / (g @ g)
    np.testing.assert_allclose(found.z, z + shift, atol=1e-5)
    np.testing.assert_allclose(found.distance, np.linalg.norm(shift, axis=1), atol=1e-5)
    np.testing.assert_allclose(found.score, 1.5, atol=1e-5)
    np.testing.assert_allclose(found.x, exact.mean + (z + shift) @ exact.w.T, atol=1e-5)


def test_a_counterfactual_of_a_network_is_the_nearest() -> None:
    """On the surface of the target, with the change along its normal (Lagrange)."""
    posterior = posteriors.normal(3)
    vae = models.vae(
        networks.mlp((), posterior.size),
        networks.mlp((8,), 6, jnp.tanh),
        posterior,
        likelihoods.bernoulli(),
        priors.standard_normal(3),
    )
    params = vae.init(jax.random.key(1), jnp.zeros(6))
    weights = jnp.asarray(RNG.normal(size=6), jnp.float32)
    score = lambda x: weights @ x
    start = jnp.asarray(RNG.normal(size=3), jnp.float32)
    at = lambda z: score(vae.decode(params, z).mean)
    target = at(start) + 0.1
    found = jax.jit(lambda z: latents.counterfactual(vae, params, z, score, target))(start)
    np.testing.assert_allclose(found.score, target, atol=1e-5)
    change, normal = found.z - start, jax.grad(at)(found.z)
    cosine = change @ normal / (jnp.linalg.norm(change) * jnp.linalg.norm(normal))
    assert cosine > 1 - 1e-4
    directions = jnp.asarray(RNG.normal(size=(2000, 3)), jnp.float32)
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    nearer = start + 0.98 * found.distance * directions
    assert jax.vmap(at)(nearer).max() < target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model of the digits, whose decoder is linear."""
    place = tmp_path_factory.mktemp("linear")
    named = {"likelihood": "normal", "pixels": "scale", "hidden": (), "latent": 4}
    model = model_of("digits", place / "run", **named)
    return pretrained.save_pretrained(model, place / "out")


def test_the_command_edits_test_examples(
    folder: Path, digits: datasets.Dataset, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The vector is a difference of means, and the counterfactuals have the closed form."""
    edit(folder, "3", num=3, odds=0.5, data_dir=str(data_dir))
    assert "length of the vector" in capsys.readouterr().out
    model, train = jaxvae.load(folder), digits.splits["train"]
    codes, threes = np.asarray(model.encode(train.x)), np.asarray(train.y) == 3
    vector = codes[threes].mean(0) - codes[~threes].mean(0)
    with np.load(folder / "edits.npz") as edits, np.load(folder / "counterfactuals.npz") as least:
        np.testing.assert_allclose(edits["vector"], vector, atol=1e-5)
        amounts = [0.0, 0.5, 1.0, 1.5]
        assert len(edits["z"]) == 200 and edits["amounts"].tolist() == amounts
        for t, images in zip(amounts, edits["x"], strict=True):
            expected = model.decode(edits["z"] + np.float32(t) * edits["vector"])
            np.testing.assert_allclose(images, expected, atol=1e-5)
        decoder = np.asarray(model.params["decoder"]["output"]["kernel"], np.float64)
        g = decoder @ least["weights"].reshape(-1)
        before = edits["x"][0].reshape(200, -1) @ least["weights"].reshape(-1) + least["bias"]
        closed = edits["z"] + (0.5 - before)[:, None] * g / (g @ g)
        np.testing.assert_allclose(least["z"], closed, atol=1e-4)
        np.testing.assert_allclose(least["score"], 0.5, atol=1e-4)
    assert {"edits.png", "counterfactuals.png"} <= {f.name for f in (folder / "figures").iterdir()}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"attribute": "12"}, "no attribute '12'; there is 0 to 9, 0, 1, 2"),
    ({"attribute": "3", "balance": "size"}, "no 'size' to balance; there is label"),
    ({"attribute": "3", "balance": "label"}, "without it in one group at least"),
    ({"attribute": "3", "amounts": ()}, "--amounts needs one number at least"),
]


@pytest.mark.parametrize("row", range(len(REFUSED)))
def test_what_cannot_be_edited_is_refused(row: int, folder: Path, data_dir: Path) -> None:
    named, words = REFUSED[row]
    with pytest.raises(ValueError, match=words):
        edit(folder, **named, data_dir=str(data_dir))


def test_examples_without_a_label_are_left_out() -> None:
    split = datasets.Split(np.arange(4), np.array([3, -1, 0, -1]))
    np.testing.assert_array_equal(editing.labelled(split).x, [0, 2])
    assert editing.labelled(datasets.Split(np.arange(4))).x.shape == (4,)


def test_factors_are_attributes_of_the_set_that_is_rendered_from_them() -> None:
    """The upper half of a factor, whatever the others are."""
    factors = np.array([[0, s, 0, x, 0] for s in range(6) for x in range(4)])
    split = datasets.Split(datasets.shapes.Images(factors), factors[:, 0])
    data = Data("shapes", (64, 64, 1), "uint8", 2, "scale", 24)
    has = editing.has_attribute(split, data, "scale")
    np.testing.assert_array_equal(has, factors[:, 1] >= 3)
    np.testing.assert_array_equal(editing.values_of(split, "x"), factors[:, 3])
    z = factors.astype(float)
    np.testing.assert_allclose(
        latents.attribute_vector(z, has, editing.values_of(split, "x")), [0, 3, 0, 0, 0]
    )


MISTAKES: dict[str, tuple[Any, str]] = {
    "all": (lambda: latents.attribute_vector(np.ones((3, 2)), np.ones(3)), "examples without it"),
    "in no group": (
        lambda: latents.attribute_vector(np.ones((2, 2)), [True, False], [0, 1]),
        "without it in one group at least",
    ),
    "codes": (lambda: latents.check_real({"z": jnp.arange(3)}), "whole numbers that cannot be"),
    "no decoder": (
        lambda: latents.edited(models.Model(lambda key, x: {}), {}, 0.0, 0.0, [0]),
        "editing needs a model that answers decode",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    function, words = MISTAKES[name]
    with pytest.raises(ValueError, match=words):
        function()
