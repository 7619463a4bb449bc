"""Gaussians with banded precision: dense algebra and least squares as the oracles."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxvae.distributions import BandedNormal
from jaxvae.likelihoods import normal_banded, normal_decoded

KEY = jax.random.key(0)
Z_BOUND = 5.0
A = jnp.array
quick = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
EVENTS = {"vector": (6,), "image": (2, 3, 2), "wide": (3,)}
WIDTHS = {"vector": 2, "image": 4, "wide": 5}
events = pytest.mark.parametrize("name", EVENTS)


def parameters(name: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(*EVENTS[name], WIDTHS[name] + 1))
    factor[..., 0] = np.exp(0.4 * factor[..., 0])
    return rng.normal(size=EVENTS[name]), factor


def dense(factor: np.ndarray) -> np.ndarray:
    """L, with factor[i, k] = L[i+k, i] in row-major order."""
    columns = factor.reshape(-1, factor.shape[-1])
    lower = np.zeros((len(columns), len(columns)))
    for (i, k), value in np.ndenumerate(columns):
        if i + k < len(columns):
            lower[i + k, i] = value
    return lower


@quick
def log_prob(d: BandedNormal, x: jax.Array) -> jax.Array:
    return d.log_prob(x)


@events
def test_density_is_the_dense_one(name):
    loc, factor = parameters(name)
    covariance = np.linalg.inv(dense(factor) @ dense(factor).T)
    x = np.random.default_rng(1).normal(size=(4, *loc.shape))
    expected = stats.multivariate_normal(loc.ravel(), covariance).logpdf(x.reshape(4, -1))
    np.testing.assert_allclose(log_prob(BandedNormal(A(loc), A(factor)), A(x)), expected, rtol=1e-4)


@events
def test_samples_solve_for_their_noise(name):
    loc, factor = parameters(name)
    d = BandedNormal(A(loc), A(factor))
    noise = d.noise(KEY, (2, 5))
    x = quick(lambda d, noise: d.from_noise(noise))(d, noise)
    assert x.shape == (2, 5, *loc.shape)
    white = (np.asarray(x) - loc).reshape(10, -1) @ dense(factor)
    np.testing.assert_allclose(white, np.reshape(noise, (10, -1)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(quick(lambda d: d.sample(KEY, (2, 5)))(d), x, rtol=1e-5, atol=1e-5)


def test_samples_have_the_covariance():
    loc, factor = parameters("image")
    x = quick(lambda d: d.sample(KEY, (20_000,)))(BandedNormal(A(loc), A(factor)))
    residual = (np.asarray(x, np.float64) - loc).reshape(20_000, -1)
    squares = residual[:, :, None] * residual[:, None, :]
    error = np.abs(squares.mean(0) - np.linalg.inv(dense(factor) @ dense(factor).T))
    assert np.max(error / (squares.std(0) / np.sqrt(len(squares)))) < Z_BOUND


def test_factor_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        BandedNormal(jnp.zeros(6), jnp.ones((4, 2))).log_prob(jnp.zeros(6))


# The likelihood


def test_likelihood_without_off_diagonals_is_a_diagonal_gaussian():
    rng = np.random.default_rng(0)
    raw, x = rng.normal(size=(3, 2, 2, 2)), rng.normal(size=(3, 2, 2))
    banded = normal_banded(2).make({}, A(np.concatenate([raw, np.zeros((3, 2, 2, 2))], -1)))
    np.testing.assert_allclose(
        log_prob(banded, A(x)), normal_decoded().make({}, A(raw)).log_prob(A(x)), rtol=1e-5
    )


def test_likelihood_keeps_its_correlations_when_scales_change():
    """Off-diagonals are in tenths of the diagonal."""
    raw = np.random.default_rng(0).normal(size=(6, 4))
    raw[:, 1] = 0.0
    covariance = lambda raw: np.linalg.inv(
        (l := dense(np.asarray(normal_banded(2).make({}, A(raw)).factor))) @ l.T
    )
    wider = raw + np.array([0.0, 1.5, 0.0, 0.0])
    np.testing.assert_allclose(covariance(wider), np.exp(3.0) * covariance(raw), rtol=1e-3)


def test_likelihood_needs_a_width():
    with pytest.raises(ValueError, match="-1"):
        normal_banded(-1)


def regressions(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each coordinate on the next one: coefficients and residual scales, which maximize the
    likelihood.
    """
    x = x - x.mean(0)
    coefficients = np.append((x[:, :-1] * x[:, 1:]).mean(0) / (x[:, 1:] ** 2).mean(0), 0.0)
    residuals = x - coefficients * np.append(x[:, 1:], np.zeros((len(x), 1)), 1)
    return coefficients, residuals.std(0)


def test_maximum_likelihood_recovers_an_autoregressive_precision():
    """x_t = 0.8 x_(t-1) + 0.6 e_t, whose precision is tridiagonal."""
    rng, size, correlation = np.random.default_rng(0), 6, 0.8
    noise = rng.normal(size=(4000, size))
    x = noise.copy()
    for t in range(1, size):
        x[:, t] = correlation * x[:, t - 1] + np.sqrt(1 - correlation**2) * noise[:, t]
    x = 2.0 + x

    def fitted(likelihood) -> tuple[jax.Array, float]:
        loss = lambda raw: -jax.vmap(likelihood.make({}, raw).log_prob)(A(x, jnp.float32)).mean()
        optimizer = optax.adam(optax.cosine_decay_schedule(0.2, 400))

        @quick
        def descend(raw: jax.Array) -> tuple[jax.Array, jax.Array]:
            def step(carry, _):
                raw, state = carry
                updates, state = optimizer.update(jax.grad(loss)(raw), state)
                return (optax.apply_updates(raw, updates), state), None

            (raw, _), _ = jax.lax.scan(step, (raw, optimizer.init(raw)), None, 400)
            return raw, loss(raw)

        return descend(jnp.zeros((size, likelihood.size)))

    raw, nll = fitted(normal_banded(1))
    coefficients, scales = regressions(x)
    np.testing.assert_allclose(raw[:, 0], x.mean(0), atol=0.01)
    np.testing.assert_allclose(np.exp(raw[:, 1]), scales, rtol=0.01)
    np.testing.assert_allclose(-0.1 * raw[:-1, 2], coefficients[:-1], atol=0.01)
    lower = dense(np.asarray(normal_banded(1).make({}, raw).factor))
    lags = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    np.testing.assert_allclose(lower @ lower.T, np.linalg.inv(correlation**lags), atol=0.25)
    best = stats.multivariate_normal(x.mean(0), np.cov(x.T)).logpdf(x).mean()
    assert -float(nll) > best - 0.01
    diagonal = float(fitted(normal_decoded())[1])
    np.testing.assert_allclose(
        diagonal, (0.5 * np.log(2 * np.pi * np.e * x.var(0))).sum(), rtol=1e-3
    )
    assert float(nll) < diagonal - 2.0
