"""Spike and slab: its measure, its gradients, and the exact posterior of linear models by
enumeration of supports.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from jaxvae import posteriors, priors
from jaxvae.distributions import Distribution, Normal, SpikeAndSlab
from jaxvae.divergences import kl, kl_per_latent

KEY = jax.random.key(0)
Z_BOUND = 5.0
DRAWS = 20_000
A = jnp.array
quick = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)

LOGITS, LOC, SCALE = (
    np.array([-3.0, 0.4, 2.0]),
    np.array([0.5, -1.2, 0.0]),
    np.array([0.3, 1.5, 0.8]),
)
GATES = special.expit(LOGITS)
# a linear Gaussian decoder x = W z + noise, with orthogonal and with any columns [D, H]
NOISE = 0.6
ORTHOGONAL = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 3)))[0] * [2.0, 0.7, 1.3]
ANY = np.random.default_rng(1).normal(size=(5, 3))
X = np.array([1.0, -0.4, 0.3, 2.0, -1.1])
ALPHA = 0.2


def spike_and_slab() -> SpikeAndSlab:
    return SpikeAndSlab(A(LOGITS), A(LOC), A(SCALE))


def largest_z(values: Any, expected: Any) -> float:
    values = np.asarray(values, np.float64)
    return float(np.max(np.abs(values.mean(0) - expected) / (values.std(0) / np.sqrt(len(values)))))


@cache
def draws() -> np.ndarray:
    return np.asarray(quick(lambda d: d.sample(KEY, (DRAWS,)))(spike_and_slab()), np.float64)


def test_density_is_a_mass_at_zero_and_a_slab_elsewhere():
    x = np.array([[0.0, 0.0, 0.0], [0.2, 0.0, -1.0], [0.5, -1.2, 3.0]])
    slab = np.log(GATES) + stats.norm.logpdf(x, LOC, SCALE)
    expected = np.where(x == 0, np.log1p(-GATES), slab).sum(-1)
    each = quick(jax.vmap(jax.value_and_grad(lambda d, x: d.log_prob(x)), (None, 0)))
    got, gradients = each(spike_and_slab(), A(x, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients.logits, np.where(x == 0, -GATES, 1 - GATES), rtol=1e-5)
    np.testing.assert_allclose(
        gradients.loc, np.where(x == 0, 0, (x - LOC) / SCALE**2), rtol=1e-4, atol=1e-6
    )


def test_density_normalizes():
    """Mass at zero and integral elsewhere."""
    d = SpikeAndSlab(A([0.4]), A([-1.2]), A([1.5]))
    x, weights = np.polynomial.legendre.leggauss(60)
    inside = np.exp(quick(d.log_prob)(A(-1.2 + 12 * x[:, None], jnp.float32))) @ (12 * weights)
    np.testing.assert_allclose(inside + np.exp(d.log_prob(jnp.zeros(1))), 1.0, atol=1e-5)


def test_samples_are_exact():
    x, d = draws(), spike_and_slab()
    assert isinstance(d, Distribution)
    assert largest_z(x != 0, GATES) < Z_BOUND
    assert largest_z(x, d.mean) < Z_BOUND
    np.testing.assert_allclose(d.mean, GATES * LOC, rtol=1e-5)
    for column, loc, scale in zip(x.T, LOC, SCALE, strict=True):
        assert stats.kstest(column[column != 0], stats.norm(loc, scale).cdf).pvalue > 1e-3
    joint = (x[:, 0] != 0) & (x[:, 1] != 0)
    assert largest_z(joint, GATES[0] * GATES[1]) < Z_BOUND


def expectation(f: Any, d: SpikeAndSlab) -> jax.Array:
    """E f of every coordinate, by Gauss-Hermite quadrature of the slab, [D]."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    gate = jax.nn.sigmoid(d.logits)
    slab = f(d.loc + d.scale * A(nodes, jnp.float32)[:, None])
    return (1 - gate) * f(jnp.zeros(3)) + gate * jnp.tensordot(
        A(weights / weights.sum(), jnp.float32), slab, 1
    )


QUADRATIC = lambda z: 0.7 * z - 0.4 * z**2 + 2.0
CURVED = lambda z: jnp.tanh(2 * z - 0.5)


@cache
def gradients(f: Any) -> tuple[Any, Any, Any]:
    """Of E f: sampled [N, D], relaxed [N, D], and exact [D], each in logits, loc and scale."""

    @quick
    def all_of(d: SpikeAndSlab) -> Any:
        keys = jax.random.split(KEY, DRAWS)
        each = lambda sample: jax.vmap(jax.grad(lambda d, key: f(sample(d, key)).sum()), (None, 0))(
            d, keys
        )
        relaxed = each(lambda d, key: d.relaxed(key, slope=200.0))
        return (
            each(lambda d, key: d.sample(key)),
            relaxed,
            jax.grad(lambda d: expectation(f, d).sum())(d),
        )

    return all_of(spike_and_slab())


def test_gradients_of_samples_are_unbiased_for_a_quadratic():
    sampled, _, exact = gradients(QUADRATIC)
    for estimates, expected in zip(jax.tree.leaves(sampled), jax.tree.leaves(exact), strict=True):
        assert largest_z(estimates, expected) < Z_BOUND


def test_gradients_of_other_functions_are_those_of_the_trapezoidal_rule():
    """Biased in the logits alone: E slab (f'(0) + f'(slab)) / 2 in the place of E f(slab) -
    f(0), times g (1 - g).
    """
    sampled, _, exact = gradients(CURVED)
    assert largest_z(sampled.loc, exact.loc) < Z_BOUND
    assert largest_z(sampled.scale, exact.scale) < Z_BOUND
    slope = lambda z: 2 / np.cosh(2 * z - 0.5) ** 2
    rule = lambda e, m, s: stats.norm.pdf(e) * (m + s * e) * (slope(0.0) + slope(m + s * e)) / 2
    expected = [integrate.quad(rule, -9, 9, args=pair)[0] for pair in zip(LOC, SCALE, strict=True)]
    assert largest_z(sampled.logits, GATES * (1 - GATES) * expected) < Z_BOUND
    assert largest_z(sampled.logits, exact.logits) > 10


def test_relaxed_samples_have_nearly_unbiased_gradients_of_any_function():
    """A steep sigmoid: its own law differs from the spike and slab's by terms of 1 / slope, more
    where g is small.
    """
    _, relaxed, exact = gradients(CURVED)
    for estimates, expected in zip(jax.tree.leaves(relaxed), jax.tree.leaves(exact), strict=True):
        error = np.asarray(estimates, np.float64).std(0) / np.sqrt(DRAWS)
        assert np.all(np.abs(np.mean(estimates, 0) - expected) < Z_BOUND * error + 0.02)


def test_relaxed_samples_are_never_zero():
    x = quick(lambda d: d.relaxed(KEY, (100,)))(spike_and_slab())
    assert x.shape == (100, 3)
    assert np.all(x != 0)
    assert np.mean(np.abs(x[:, 0]) < 1e-3) > 0.5


# Divergence


def test_divergence_is_that_of_samples_and_sums_over_latents():
    q = spike_and_slab()
    p = SpikeAndSlab(A([-1.0, 0.0, 1.0]), A([0.0, 0.5, -0.5]), A([1.0, 2.0, 0.7]))
    values = quick(jax.vmap(lambda x: q.log_prob(x) - p.log_prob(x)))(A(draws(), jnp.float32))
    assert largest_z(values, float(kl(q, p))) < Z_BOUND
    np.testing.assert_allclose(kl_per_latent(q, p).sum(), kl(q, p), rtol=1e-6)


def test_divergence_from_the_paper_s_prior():
    """Against N(0, 1) with probability alpha, as written in arXiv:1905.10185."""
    q, p = spike_and_slab(), priors.spike_and_slab(3, ALPHA).make({})
    gates = (1 - GATES) * np.log((1 - GATES) / (1 - ALPHA)) + GATES * np.log(GATES / ALPHA)
    expected = gates + GATES * (-np.log(SCALE) - 0.5 + (LOC**2 + SCALE**2) / 2)
    np.testing.assert_allclose(kl_per_latent(q, p), expected, rtol=1e-5)


# The exact posterior of p(z) = spike and slab, p(x|z) = N(x; W z, NOISE^2 I)


def supports() -> list[np.ndarray]:
    return [np.array(s, bool) for s in product([0, 1], repeat=3)]


def log_joint(w: np.ndarray, on: np.ndarray) -> float:
    """log p(support, x): its slabs are integrated out."""
    prior = np.where(on, np.log(ALPHA), np.log1p(-ALPHA)).sum()
    covariance = w[:, on] @ w[:, on].T + NOISE**2 * np.eye(len(w))
    return prior + stats.multivariate_normal(cov=covariance).logpdf(X)


def evidence(w: np.ndarray) -> float:
    return special.logsumexp([log_joint(w, on) for on in supports()])


def exact_posterior(w: np.ndarray, z: np.ndarray) -> float:
    """log p(z|x), with respect to a mass at zero and Lebesgue measure elsewhere."""
    on = z != 0
    posterior = log_joint(w, on) - evidence(w)
    if not on.any():
        return posterior
    precision = w[:, on].T @ w[:, on] / NOISE**2 + np.eye(on.sum())
    mean = np.linalg.solve(precision, w[:, on].T @ X / NOISE**2)
    return posterior + stats.multivariate_normal(mean, np.linalg.inv(precision)).logpdf(z[on])


def factorized_posterior(w: np.ndarray) -> SpikeAndSlab:
    """Exact where the columns of W are orthogonal, in float32 otherwise as any other."""
    precision = (w**2).sum(0) / NOISE**2 + 1
    mean = w.T @ X / NOISE**2 / precision
    logits = np.log(ALPHA / (1 - ALPHA)) - 0.5 * np.log(precision) + 0.5 * mean**2 * precision
    return SpikeAndSlab(*(A(v, jnp.float32) for v in (logits, mean, precision**-0.5)))


@quick
def log_weights(q: SpikeAndSlab, w: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log p(x, z) and log q(z) of every z [N, H]."""
    prior = priors.spike_and_slab(3, ALPHA).make({})
    joint = lambda z: prior.log_prob(z) + Normal(w @ z, jnp.full(5, NOISE)).log_prob(A(X))
    return jax.vmap(joint)(z), jax.vmap(q.log_prob)(z)


def test_density_agrees_with_the_posterior_by_enumeration():
    """log p(x, z) - log p(z|x) is log p(x) at every z, of every support, whatever the decoder."""
    z = np.stack([on * np.random.default_rng(3).normal(size=3) for on in supports()])
    joint, _ = log_weights(spike_and_slab(), A(ANY, jnp.float32), A(z, jnp.float32))
    np.testing.assert_allclose(
        joint - np.array([exact_posterior(ANY, row) for row in z]), evidence(ANY), rtol=1e-5
    )


def expected_log_likelihood(q: SpikeAndSlab, w: np.ndarray) -> float:
    gate, loc, scale = (
        np.asarray(v, np.float64) for v in (special.expit(q.logits), q.loc, q.scale)
    )
    mean, variance = gate * loc, gate * (loc**2 + scale**2) - (gate * loc) ** 2
    square = ((X - w @ mean) ** 2).sum() + (w**2 @ variance).sum()
    return -0.5 * square / NOISE**2 - 2.5 * np.log(2 * np.pi * NOISE**2)


def test_exact_posterior_makes_the_bound_tight():
    q, p = factorized_posterior(ORTHOGONAL), priors.spike_and_slab(3, ALPHA).make({})
    z = quick(lambda q: q.sample(KEY, (50,)))(q)
    joint, density = log_weights(q, A(ORTHOGONAL, jnp.float32), z)
    np.testing.assert_allclose(joint - density, evidence(ORTHOGONAL), rtol=1e-5)
    bound = expected_log_likelihood(q, ORTHOGONAL) - float(kl(q, p))
    np.testing.assert_allclose(bound, evidence(ORTHOGONAL), rtol=1e-5)


def test_bound_of_another_posterior_is_lower():
    q, p = factorized_posterior(ANY), priors.spike_and_slab(3, ALPHA).make({})
    gap = evidence(ANY) - (expected_log_likelihood(q, ANY) - float(kl(q, p)))
    assert gap > 0.01


def test_gradient_descent_finds_the_exact_posterior():
    """By the gradients of samples, which are unbiased here, and the KL in closed form."""
    p, w = priors.spike_and_slab(3, ALPHA).make({}), A(ORTHOGONAL, jnp.float32)
    family = posteriors.spike_and_slab(3)

    def loss(raw: jax.Array, key: jax.Array) -> jax.Array:
        q = family.make({}, raw)
        fit = jax.vmap(lambda z: Normal(w @ z, jnp.full(5, NOISE)).log_prob(A(X)))(
            q.sample(key, (64,))
        ).mean()
        return kl(q, p) - fit

    @quick
    def descend(raw: jax.Array) -> jax.Array:
        step = lambda raw, inputs: (raw - inputs[1] * jax.grad(loss)(raw, inputs[0]), None)
        kl_costs = 0.1 * jnp.linspace(1.0, 0.01, 600)
        return jax.lax.scan(step, raw, (jax.random.split(KEY, 600), kl_costs))[0]

    q, exact = family.make({}, descend(jnp.zeros(family.size))), factorized_posterior(ORTHOGONAL)
    assert float(kl(q, exact)) < 2e-3
    assert float(kl(family.make({}, jnp.zeros(family.size)), exact)) > 1


# Families


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
def test_prior_needs_a_probability(alpha):
    with pytest.raises(ValueError, match=str(alpha)):
        priors.spike_and_slab(3, alpha)


def test_prior_has_its_gates():
    prior = priors.spike_and_slab(4).make({})
    np.testing.assert_allclose(prior.log_prob(jnp.zeros(4)), 4 * np.log(0.8), rtol=1e-5)
