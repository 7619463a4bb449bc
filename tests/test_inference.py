"""Posterior inference beyond the encoder, on models whose posterior and likelihood are known."""

from __future__ import annotations

import re
import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Linear

from jaxvae import distributions, likelihoods, models, networks, posteriors
from jaxvae.uses import chains, inference

KEY = jax.random.key(0)
POOR = 0.5  # what the encoder's mean and log-scales are off by


class Problem(NamedTuple):
    """A linear VAE of three latents in general position, with an encoder that is off."""

    vae: models.VAE
    params: Any
    x: np.ndarray  # [6, 5]
    evidence: np.ndarray  # [6] log p(x)
    means: np.ndarray  # [6, 3] of p(z|x)
    covariance: np.ndarray  # of p(z|x)
    gap: float  # of the best diagonal posterior


@pytest.fixture(scope="module")
def problem() -> Problem:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(400, 3)) @ rng.normal(size=(3, 5))).astype(np.float32)
    linear = Linear(x + 0.5 * rng.normal(size=x.shape).astype(np.float32), 3)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    w, rows = linear.w @ turn, x[:6]
    vae, params = linear.vae("normal", w)
    params["encoder"]["output"]["bias"] += POOR
    m = w.T @ w + linear.s2 * np.eye(3)
    return Problem(
        vae,
        params,
        rows,
        linear.log_likelihood(rows, w, linear.mean, linear.s2),
        np.linalg.solve(m, w.T @ (rows - linear.mean).T).T,
        linear.s2 * np.linalg.inv(m),
        0.5 * (np.log(np.diag(m)).sum() - np.linalg.slogdet(m)[1]),
    )


def refine(problem: Problem, **settings: Any) -> Any:
    """The refined posterior of every row, stacked."""
    one = partial(inference.refined, problem.vae, problem.params, **settings)
    keys = jax.random.split(KEY, len(problem.x))
    return jax.jit(jax.vmap(lambda key, x: one(key, x)))(keys, problem.x)


def bound(problem: Problem, q: Any, draws: int = 5000) -> np.ndarray:
    """The bound of every row at its posterior, on fresh draws."""
    model = models.answers(problem.vae)
    one = lambda key, x, q: inference.elbo_of(model, problem.params, key, x, q, draws)
    keys = jax.random.split(jax.random.key(7), len(problem.x))
    return np.asarray(jax.jit(jax.vmap(one))(keys, problem.x, q))


def test_the_best_diagonal_posterior_has_the_gap_of_its_closed_form(problem: Problem) -> None:
    """1/2 [sum log diag M - log det M], with variances s^2 / diag M and the exact means."""
    q = refine(problem, num_steps=500)
    np.testing.assert_allclose(q.loc, problem.means, atol=0.06)
    exact = 1 / np.diag(np.linalg.inv(problem.covariance))
    np.testing.assert_allclose(q.scale**2, np.tile(exact, (6, 1)), rtol=0.12)
    gaps = problem.evidence - bound(problem, q, 100_000)
    assert gaps.mean() == pytest.approx(problem.gap, abs=0.01)


@pytest.mark.slow
def test_the_best_gaussian_is_the_posterior(problem: Problem) -> None:
    """From the encoder's diagonal one: the bound is log p(x), whatever the draws are."""

    def one(key: jax.Array, x: jax.Array) -> Any:
        q = inference.full_covariance(problem.vae.encode(problem.params, x))
        return inference.refined(problem.vae, problem.params, key, x, 250, start=q)

    q = jax.jit(jax.vmap(one))(jax.random.split(KEY, 6), problem.x)
    covariance = np.einsum("nij,nkj->nik", q.scale_tril, q.scale_tril)
    np.testing.assert_allclose(covariance, np.tile(problem.covariance, (6, 1, 1)), atol=0.01)
    np.testing.assert_allclose(bound(problem, q, 50), problem.evidence, atol=0.01)


@pytest.mark.slow
def test_every_row_gains_on_common_noise(problem: Problem) -> None:
    """Few steps are enough to rise above a poor encoder, and no row falls below it."""
    encoder = jax.vmap(partial(problem.vae.encode, problem.params))(problem.x)
    few, many = refine(problem, num_steps=40), refine(problem, num_steps=250)
    before, between, after = (bound(problem, q, 500) for q in (encoder, few, many))
    assert (between > before).all() and (after > between - 0.01).all()


@pytest.fixture(scope="module")
def gaps(problem: Problem) -> inference.Gaps:
    return inference.gaps(
        problem.vae,
        problem.params,
        KEY,
        problem.x,
        num_steps=250,
        learning_rate=0.05,
        num_samples=1000,
        temperatures=3,
        chains=3,
    )


def test_the_gap_is_taken_apart(problem: Problem, gaps: inference.Gaps) -> None:
    """Approximation is the closed form; the sum is log p(x) less the encoder's bound."""
    assert gaps.improved == 1
    assert gaps.approximation.value == pytest.approx(problem.gap, abs=0.02)
    assert gaps.log_likelihood.value == pytest.approx(problem.evidence.mean(), abs=0.02)
    assert gaps.full_covariance is not None and gaps.correlation is not None
    assert gaps.full_covariance.value == pytest.approx(problem.evidence.mean(), abs=0.02)
    assert gaps.correlation.value == pytest.approx(problem.gap, abs=0.02)
    total = gaps.amortization.value + gaps.approximation.value
    assert total == pytest.approx(gaps.log_likelihood.value - gaps.encoder.value, abs=1e-5)


def test_log_p_is_the_better_bound_so_no_gap_is_negative(gaps: inference.Gaps) -> None:
    best = max(gaps.importance.value, gaps.annealed.value)
    assert gaps.log_likelihood.value == best
    assert gaps.approximation.value > 0 and gaps.amortization.value > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", posteriors.CONTINUOUS)
def test_every_family_with_a_gradient_is_refined(name: str) -> None:
    """The bound on fresh draws is no lower than the encoder's, and parameters stay in range."""
    if name == "spike_and_slab":
        pytest.skip("its density jumps, so it is refused: see the table below")
    posterior = posteriors.POSTERIORS[name](4)
    vae = models.vae(
        networks.mlp((8,), posterior.size),
        networks.mlp((8,), 9),
        posterior,
        likelihoods.bernoulli(),
        posterior.prior(4),
    )
    x = (np.arange(9) % 2).astype(np.float32)
    params = vae.init(KEY, x)
    model, q = models.answers(vae), vae.encode(params, x)
    better = jax.jit(lambda: inference.refined(vae, params, KEY, x, 100))()
    elbo = lambda q: inference.elbo_of(model, params, jax.random.key(1), x, q, 2000)
    assert jax.tree.structure(better) == jax.tree.structure(q)
    assert float(elbo(better)) >= float(elbo(q)) - 1e-3
    if isinstance(q, inference.SPHERICAL):
        assert float(jnp.linalg.norm(better.loc)) == pytest.approx(1, abs=1e-5)


# Refusals


def vae_of(name: str) -> tuple[models.VAE, Any]:
    posterior = posteriors.POSTERIORS[name](3)
    encoder, decoder = networks.mlp((), posterior.size), networks.mlp((), 4)
    of_vector = networks.Network(
        lambda key, z: decoder.init(key, z.ravel()),
        lambda params, z: decoder.apply(params, z.ravel()),
    )
    prior = posterior.prior(3)
    vae = models.vae(encoder, of_vector, posterior, likelihoods.bernoulli(), prior)
    return vae, vae.init(KEY, jnp.zeros(4))


@pytest.mark.parametrize(
    "name, words",
    [
        ("bernoulli", "are bits"),
        ("categorical", "are classes"),
        ("joint", "are classes"),
        ("spike_and_slab", "are numbers that are exactly zero at times"),
        ("point", "are a point without a density"),
    ],
)
def test_latents_without_a_gradient_are_refused(name: str, words: str) -> None:
    vae, params = vae_of(name)
    with pytest.raises(ValueError, match=words):
        inference.refined(vae, params, KEY, jnp.zeros(4))


def test_latents_with_a_label_are_refused() -> None:
    """M2's y is an integer beside z."""
    each = distributions.Normal(jnp.zeros((2, 3)), jnp.ones((2, 3)))
    q = models.LabelledMixture(jnp.zeros(2), each)
    model = models.Model(lambda key, x: {}, encode=lambda params, x: q, log_joint=lambda *_: 0.0)
    for use in (inference.refined, chains.hmc):
        with pytest.raises(ValueError, match="are in part classes"):
            use(model, {}, KEY, jnp.zeros(4))


@pytest.mark.parametrize("name, words", [("bernoulli", "are bits"), ("power_spherical", "sphere")])
def test_chains_refuse_latents_that_are_discrete_or_have_an_edge(name: str, words: str) -> None:
    vae, params = vae_of(name)
    with pytest.raises(ValueError, match=words):
        chains.hmc(vae, params, KEY, jnp.zeros(4))


def test_without_blackjax_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blackjax", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'jaxvae[inference]'")):
        chains.nuts(None, {}, KEY, jnp.zeros(4))


# Markov chains


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [chains.hmc, chains.nuts])
def test_chains_have_the_moments_of_the_posterior(sampler: Any, problem: Problem) -> None:
    one = lambda key, x: sampler(problem.vae, problem.params, key, x, num_samples=500, warmup=200)
    found = jax.jit(jax.vmap(one))(jax.random.split(KEY, 3), problem.x[:3])
    assert float(found.rhat.max()) <= 1.01 and not found.divergences.any()
    assert float(found.effective_samples.min()) > 300
    deviations = np.sqrt(np.diag(problem.covariance) / found.effective_samples)
    z = (found.positions.mean((1, 2)) - problem.means[:3]) / deviations
    assert np.abs(z).max() < 4
    each = np.asarray(found.positions).reshape(3, -1, 3)
    for draws in each:
        np.testing.assert_allclose(np.cov(draws.T), problem.covariance, atol=0.02)


@pytest.mark.slow
def test_the_encoder_is_compared_with_chains(problem: Problem) -> None:
    """Its shift and its spread are those of the exact posterior."""
    found = chains.agreement(problem.vae, problem.params, KEY, problem.x[:4], num_samples=800)
    q = jax.vmap(problem.vae.encode, (None, 0))(problem.params, problem.x[:4])
    deviations = np.sqrt(np.diag(problem.covariance))
    assert found.shift == pytest.approx(
        (np.abs(q.mean - problem.means[:4]) / deviations).mean(), abs=0.05
    )
    spread = np.exp(np.log(np.asarray(q.scale) / deviations).mean())
    assert found.spread == pytest.approx(spread, rel=0.05)
    assert found.largest_rhat < 1.02 and not found.divergences
    assert (found.num_samples, found.num_examples) == (3200, 4)


@pytest.mark.slow
def test_chains_start_wider_than_the_encoder_and_some_at_the_prior(problem: Problem) -> None:
    """So that R-hat sees modes which the encoder does not know of."""
    model, x = models.answers(problem.vae), problem.x[0]
    many = chains._starts(model, problem.params, KEY, x, 4000, 3.0)
    q = problem.vae.encode(problem.params, x)
    around = np.asarray(many)[np.arange(4000) % 4 != 3]
    np.testing.assert_allclose(around.std(0), 3 * q.scale, rtol=0.15)
    of_prior = np.asarray(many)[3::4]
    np.testing.assert_allclose(of_prior.std(0), 1, atol=0.1)
    np.testing.assert_allclose(of_prior.mean(0), 0, atol=0.15)


@pytest.mark.slow
@pytest.mark.optimized
def test_digits_as_the_reference_says(images: np.ndarray) -> None:
    """q = 10, rotated: the gap of the diagonal posterior from the prior's start is within 0.01."""
    linear = Linear(images, 10)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 10)))[0]
    w = linear.w @ turn
    vae, params = linear.vae("normal", w)
    m = w.T @ w + linear.s2 * np.eye(10)
    exact = 0.5 * (np.log(np.diag(m)).sum() - np.linalg.slogdet(m)[1])
    prior = distributions.Normal(jnp.zeros(10), jnp.ones(10))
    one = lambda key, x: inference.refined(vae, params, key, x, 1000, 0.05, start=prior)
    x = images[:32]
    q = jax.jit(jax.vmap(one))(jax.random.split(KEY, 32), x)
    model = models.answers(vae)
    bounds = jax.jit(jax.vmap(lambda key, x, q: inference.elbo_of(model, params, key, x, q)))(
        jax.random.split(jax.random.key(1), 32), x, q
    )
    gaps = linear.log_likelihood(x, w, linear.mean, linear.s2) - np.asarray(bounds)
    assert gaps.mean() == pytest.approx(exact, abs=0.01)
