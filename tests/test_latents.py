"""Arithmetic of latents beside the closed forms of a linear model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Linear
from scipy.spatial import geometric_slerp

from jaxvae import likelihoods, models, networks, posteriors, priors
from jaxvae.uses import latents

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
