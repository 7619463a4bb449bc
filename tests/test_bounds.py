"""Bounds on log p(x) of a linear Gaussian model, whose evidence and posterior are known."""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import pytest
from scipy import stats

from jaxvae.bounds import elbo, iwae, log_weights
from jaxvae.distributions import Mixture, MultivariateNormal, Normal

KEY = jax.random.key(0)
Z_BOUND = 5.0
NUM_KEYS = 4000
COUNTS = (1, 2, 5, 20, 100)
A = jnp.array
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# p(z) = N(0, I), p(x|z) = N(W z + b, s^2 I), one x
W = np.array([[0.8, -0.3], [0.1, 0.9], [-0.5, 0.4]])
B = np.array([0.2, -0.1, 0.5])
S = 0.6
X = np.array([1.0, -0.7, 0.3])
EVIDENCE = stats.multivariate_normal(B, W @ W.T + S**2 * np.eye(3)).logpdf(X)
COVARIANCE = np.linalg.inv(np.eye(2) + W.T @ W / S**2)
MEAN = COVARIANCE @ W.T @ (X - B) / S**2
TRIL = np.linalg.cholesky(COVARIANCE)
POOR_LOC, POOR_TRIL = MEAN + np.array([0.4, -0.3]), TRIL @ np.array([[1.4, 0.0], [0.5, 0.8]])

POSTERIORS = {
    "jaxvae": lambda: MultivariateNormal(A(MEAN), A(TRIL)),
    "numpyro": lambda: nd.MultivariateNormal(A(MEAN), scale_tril=A(TRIL)),
    "mixture": lambda: Mixture(A([0.3, 0.0]), MultivariateNormal(A([MEAN, MEAN]), A([TRIL, TRIL]))),
}
POOR = {
    "jaxvae": (lambda: MultivariateNormal(A(POOR_LOC), A(POOR_TRIL)), POOR_TRIL),
    "numpyro": (lambda: nd.MultivariateNormal(A(POOR_LOC), scale_tril=A(POOR_TRIL)), POOR_TRIL),
    "diagonal": (lambda: Normal(A(POOR_LOC), A([0.5, 0.4])), np.diag([0.5, 0.4])),
    "numpyro_diagonal": (
        lambda: nd.Normal(A(POOR_LOC), A([0.5, 0.4])).to_event(1),
        np.diag([0.5, 0.4]),
    ),
}
bounds = pytest.mark.parametrize("bound", [elbo, iwae], ids=["elbo", "iwae"])


def log_joint(z: jax.Array) -> jax.Array:
    prior = Normal(jnp.zeros(2), jnp.ones(2))
    return Normal(A(W) @ z + A(B), jnp.full(3, S)).log_prob(A(X)) + prior.log_prob(z)


def numpyro_log_joint(z: jax.Array) -> jax.Array:
    likelihood = nd.Normal(A(W) @ z + A(B), S).to_event(1)
    return likelihood.log_prob(A(X)) + nd.Normal(jnp.zeros(2), 1.0).to_event(1).log_prob(z)


def gap(tril: np.ndarray) -> float:
    """KL(q || p(z|x)) of q = N(POOR_LOC, tril tril^T)."""
    precision, shift = np.linalg.inv(COVARIANCE), MEAN - POOR_LOC
    log_dets = np.linalg.slogdet(COVARIANCE)[1] - 2 * np.log(np.diag(tril)).sum()
    return 0.5 * (np.trace(precision @ tril @ tril.T) + shift @ precision @ shift - 2 + log_dets)


def over_keys(bound: Any, q: Any, num_samples: int) -> np.ndarray:
    """``bound`` for each of NUM_KEYS keys, the same ones at every call."""
    keys = jax.random.split(KEY, NUM_KEYS)
    each = quick(jax.vmap(lambda q, key: bound(key, q, log_joint, num_samples), (None, 0)))
    return np.asarray(each(q, keys), np.float64)


@cache
def iwae_over_keys(num_samples: int) -> np.ndarray:
    return over_keys(iwae, POOR["jaxvae"][0](), num_samples)


def z_score(values: np.ndarray, expected: Any) -> Any:
    """Signed, the largest over coordinates of ``values [N, ...]`` where there are several."""
    z = (values.mean(0) - expected) / (values.std(0) / np.sqrt(len(values)))
    return z if z.ndim == 0 else np.abs(z).max()


@pytest.mark.parametrize(
    ("name", "joint"),
    [
        ("jaxvae", log_joint),
        ("jaxvae", numpyro_log_joint),
        ("numpyro", numpyro_log_joint),
        ("mixture", log_joint),
    ],
)
def test_bounds_are_the_evidence_at_the_posterior(name, joint):
    every = [(bound, num_samples) for bound in (elbo, iwae) for num_samples in (1, 2, 7)]
    one_key = lambda q, key: jnp.stack(
        [bound(key, q, joint, num_samples) for bound, num_samples in every]
    )
    evaluate = quick(jax.vmap(one_key, (None, 0)))
    np.testing.assert_allclose(
        evaluate(POSTERIORS[name](), jax.random.split(KEY, 20)), EVIDENCE, atol=1e-4
    )
    with jax.enable_x64(True):
        values = evaluate(POSTERIORS[name](), jax.random.split(KEY, 20))
    assert values.shape == (20, len(every))
    assert values.dtype == jnp.float64
    np.testing.assert_allclose(values, EVIDENCE, atol=1e-9)


@pytest.mark.parametrize("num_samples", [1, 5])
@pytest.mark.parametrize("name", POOR)
def test_expected_elbo_falls_short_by_the_divergence(name, num_samples):
    make, tril = POOR[name]
    assert abs(z_score(over_keys(elbo, make(), num_samples), EVIDENCE - gap(tril))) < Z_BOUND


@pytest.mark.parametrize("name", POOR)
def test_iwae_of_one_sample_has_the_expectation_of_the_elbo(name):
    make, tril = POOR[name]
    assert abs(z_score(over_keys(iwae, make(), 1), EVIDENCE - gap(tril))) < Z_BOUND


@pytest.mark.parametrize(("fewer", "more"), [*pairwise(COUNTS)])
def test_expected_iwae_rises_with_samples(fewer, more):
    assert z_score(iwae_over_keys(more) - iwae_over_keys(fewer), 0.0) > 3.0


@pytest.mark.parametrize("num_samples", COUNTS)
def test_expected_iwae_stays_below_the_evidence(num_samples):
    assert z_score(iwae_over_keys(num_samples), EVIDENCE) < 3.0


def test_iwae_is_never_below_the_elbo_of_the_same_samples():
    assert (iwae_over_keys(20) >= over_keys(elbo, POOR["jaxvae"][0](), 20) - 1e-5).all()


def test_importance_weights_are_unbiased():
    """E[p(x, z) / q(z)] = p(x), with a q whose tails are wider than the posterior's."""
    wide = MultivariateNormal(A(POOR_LOC), A(1.5 * TRIL))
    weights = quick(lambda q, key: log_weights(key, q, log_joint, 20_000))(wide, KEY)
    assert weights.shape == (20_000,)
    assert abs(z_score(np.exp(np.asarray(weights, np.float64)), np.exp(EVIDENCE))) < Z_BOUND


def test_iwae_of_weights_that_underflow_is_finite():
    shifted = lambda z: log_joint(z) - 1e4
    value = quick(lambda q, key: iwae(key, q, shifted, 10))(POSTERIORS["jaxvae"](), KEY)
    np.testing.assert_allclose(value, EVIDENCE - 1e4, rtol=1e-6)


@pytest.mark.parametrize("num_samples", [1, 5])
def test_expected_gradient_of_the_elbo_is_its_closed_form(num_samples):
    """d/dm of -KL(q || posterior) is -C^-1 (m - mu), and d/dL is L^-T - C^-1 L on and below the
    diagonal.
    """
    keys = jax.random.split(KEY, NUM_KEYS)
    gradient = jax.grad(lambda q, key: elbo(key, q, log_joint, num_samples))
    got = quick(jax.vmap(gradient, (None, 0)))(POOR["jaxvae"][0](), keys)
    precision, below = np.linalg.inv(COVARIANCE), np.tril_indices(2)
    in_loc = precision @ (MEAN - POOR_LOC)
    in_tril = np.diag(1 / np.diag(POOR_TRIL)) - precision @ POOR_TRIL
    assert z_score(np.asarray(got.loc, np.float64), in_loc) < Z_BOUND
    assert z_score(np.asarray(got.scale_tril, np.float64)[:, *below], in_tril[below]) < Z_BOUND


def test_gradient_of_the_elbo_in_x_at_the_posterior_mean():
    """d/dx of E[log p(x|z)] is (W m + b - x) / s^2."""
    keys = jax.random.split(KEY, NUM_KEYS)

    def bound(x: jax.Array, key: jax.Array) -> jax.Array:
        joint = lambda z: Normal(A(W) @ z + A(B), jnp.full(3, S)).log_prob(x) - 0.5 * (z**2).sum()
        return elbo(key, POSTERIORS["jaxvae"](), joint, 2)

    got = np.asarray(quick(jax.vmap(jax.grad(bound), (None, 0)))(A(X), keys), np.float64)
    assert z_score(got, (W @ MEAN + B - X) / S**2) < Z_BOUND


@bounds
def test_bound_is_the_same_number_with_and_without_jit(bound):
    q = POOR["jaxvae"][0]()
    compiled = jax.jit(lambda key: bound(key, q, log_joint, 5))(KEY)
    assert compiled.shape == ()
    np.testing.assert_allclose(bound(KEY, q, log_joint, 5), compiled, rtol=1e-5)


@bounds
def test_bound_takes_one_sample_unless_told(bound):
    q = POOR["jaxvae"][0]()
    default, one = quick(lambda q, key: (bound(key, q, log_joint), bound(key, q, log_joint, 1)))(
        q, KEY
    )
    np.testing.assert_allclose(default, one, rtol=1e-6)
