"""Sticks: Kumaraswamy and Beta fractions, the lengths that the decoder sees, and their KL."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

from jaxvae import (
    bounds,
    distributions,
    divergences,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
)
from jaxvae.distributions import Beta, Kumaraswamy, stick_lengths

# (a, b) of q, and the exact KL to Beta(1, 5) by integration in 30 digits.
KL = {
    (2.0, 3.0): 1.39898822,
    (10.0, 10.0): 5.27944451,
    (0.3, 5.0): 3.38107602,
    (5.0, 1.0): 8.33333333,
    (0.5, 0.7): 2.49559919,
}


@jax.jit
def kl(a: Any, b: Any) -> Any:
    """KL of each pair of shapes to Beta(1, 5)."""
    q, p = Kumaraswamy(jnp.asarray(a), jnp.asarray(b)), Beta(jnp.ones(()), 5.0)
    return divergences.kl_per_latent(q, p)


def test_kl_of_the_reference() -> None:
    a, b = np.array(list(KL)).T
    with jax.enable_x64(True):
        np.testing.assert_allclose(kl(a, b), list(KL.values()), atol=3e-5)
    np.testing.assert_allclose(kl(np.float32(a), np.float32(b)), list(KL.values()), rtol=1e-4)


@pytest.mark.parametrize("shapes", KL)
def test_the_cut_series_understates_kl(shapes: tuple[float, float]) -> None:
    """The trap: with ten terms the bound is too good, by half a nat where b is small."""
    a, b = shapes
    m = np.arange(1, 11)
    series = (special.beta(m / a, b) / (m + a * b)).sum()
    first = (a - 1) / a * (-np.euler_gamma - special.digamma(b) - 1 / b)
    cut = first + np.log(a * b) + special.betaln(1, 5) - (b - 1) / b + 4 * b * series
    assert cut < KL[shapes]
    if b <= 1:
        assert cut < KL[shapes] - 0.5


def test_a_kumaraswamy_that_is_a_beta() -> None:
    """Kuma(1, b) = Beta(1, b): KL is log(b/5) + 5/b - 1, and zero at the prior."""
    b = np.float32([0.05, 0.7, 1.0, 5.0, 40.0])
    expected = np.log(b / 5) + 5 / b - 1
    np.testing.assert_allclose(kl(np.ones_like(b), b), expected, rtol=1e-4, atol=1e-5)
    closed = divergences.kl_per_latent(Beta(jnp.ones(5), jnp.asarray(b)), Beta(jnp.ones(5), 5.0))
    np.testing.assert_allclose(closed, expected, rtol=1e-4, atol=1e-5)


def test_extreme_shapes_have_finite_draws_densities_and_gradients() -> None:
    a, b = map(np.ravel, np.meshgrid(*2 * [np.float32([0.01, 0.7, 30.0])]))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def values(a: Any, b: Any) -> Any:
        q = Kumaraswamy(a, b)
        v = q.sample(jax.random.key(0), (200,))
        of_prior = Beta(jnp.ones(9), 5.0).log_prob(v)
        return v.sum() + (q.log_prob(v) + of_prior).mean() + kl(a, b).sum()

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values(a, b)))
    assert (np.asarray(kl(a, b)) > 0).all()


def test_mean_of_a_kumaraswamy() -> None:
    assert float(Kumaraswamy(jnp.float32(2), jnp.float32(3)).mean) == pytest.approx(
        0.457143, rel=1e-5
    )


def test_lengths_of_the_prior() -> None:
    """E pi_k = 1/6 (5/6)^(k-1); after 49 breaks 1.3e-4 of the stick is left."""
    prior = priors.stick_fractions(49).make({})
    expected = 1 / 6 * (5 / 6) ** np.arange(49)
    mean = np.asarray(stick_lengths(prior.mean))  # fractions are independent
    np.testing.assert_allclose(mean[:49], expected, rtol=1e-4)
    np.testing.assert_allclose(mean[:4], [0.1667, 0.1389, 0.1157, 0.0965], atol=5e-5)
    assert mean[49] == pytest.approx(1.3e-4, rel=0.02)
    draws = np.asarray(jax.vmap(stick_lengths)(prior.sample(jax.random.key(0), (4000,))))
    np.testing.assert_allclose(draws.sum(1), 1, atol=1e-5)
    errors = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0)[:30] - mean[:30]) < 5 * errors[:30]).all()


@pytest.mark.parametrize("name", ["kumaraswamy_sticks", "beta_sticks"])
def test_the_decoder_sees_lengths(name: str) -> None:
    """Also beside a condition: the numbers that a decoder is given sum to one."""
    posterior = posteriors.CONTINUOUS[name](3)
    total = networks.Network(lambda key, z: {}, lambda params, z: z[:4].sum().reshape(1))
    encoder = networks.mlp((), posterior.size)
    parts = encoder, total, posterior, likelihoods.normal(), posterior.prior(3)
    fractions = jnp.array([0.2, 0.9, 0.5])
    vae = models.vae(*parts)
    params = vae.init(jax.random.key(0), jnp.zeros(1))
    assert float(vae.decode(params, fractions).loc[0]) == pytest.approx(1)
    cvae = models.cvae(*parts)
    params = cvae.init(jax.random.key(0), models.Conditioned(jnp.zeros(1), jnp.zeros(2)))
    assert float(cvae.decode(params, fractions, jnp.zeros(2)).loc[0]) == pytest.approx(1)


@pytest.mark.parametrize("name", ["kumaraswamy_sticks", "beta_sticks"])
def test_importance_weights_of_a_broken_stick_agree_with_quadrature(name: str) -> None:
    """log p(x) of one fraction: x ~ N(pi_1, 0.1^2), the integral over v by SciPy."""
    posterior = posteriors.CONTINUOUS[name](1, stick_concentration=2.0)
    q = posterior.make({}, jnp.array([1.0, 1.0]))
    prior = posterior.prior(1).make({})
    x, width = 0.3, 0.1
    likelihood = lambda v: distributions.Normal(posterior.to_decoder(v)[0], width).log_prob(x)
    joint = lambda v: likelihood(v) + prior.log_prob(v)
    draw = jax.jit(lambda key: bounds.log_weights(key, q, joint, 20_000))
    log_w = draw(jax.random.key(1))
    density = lambda v: 2 * (1 - v) * np.exp(-((x - v) ** 2) / 2 / width**2)
    exact = integrate.quad(density, 0, 1)[0] / np.sqrt(2 * np.pi) / width
    error = float(jnp.exp(log_w).std()) / np.sqrt(20_000)
    assert abs(float(jnp.exp(log_w).mean()) - exact) < 5 * error
