"""Decompositions of the KL term: quadrature over q(z), closed forms and limits are the oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxvae import divergences
from jaxvae.distributions import Bernoulli, Laplace, Mixture, MultivariateNormal, Normal
from jaxvae.evaluation import decompositions
from jaxvae.evaluation.decompositions import aggregated_posterior, decomposition, surgery

KEY = jax.random.key(0)
Z_BOUND = 5.0
DRAWS = 6000
LOC = np.array([[0.5, -0.4], [-1.2, 0.3], [0.1, 1.0], [2.0, 1.8], [-0.7, -1.5]])
SCALE = np.array([[0.3, 0.5], [0.6, 0.4], [0.25, 0.9], [0.5, 0.3], [0.8, 0.35]])


def stacked(loc: Any, scale: Any, family: Any = Normal) -> Any:
    loc = np.asarray(loc, np.float32)
    return family(loc, np.broadcast_to(np.asarray(scale, np.float32), loc.shape))


def standard(latent: int) -> Normal:
    return Normal(np.zeros(latent, np.float32), np.ones(latent, np.float32))


def by_quadrature(oracle: Any, prior: Any, dimensions: int) -> dict[str, float]:
    """All terms for the first dimensions of LOC and SCALE, as sums over a fine grid; SciPy's
    families.
    """
    axis = np.linspace(-9, 9, 1501)
    step = axis[1] - axis[0]
    entropy = lambda density, cell: -float(special.xlogy(density, density).sum() * cell)
    each = [
        oracle.pdf(axis, LOC[:, j, None], SCALE[:, j, None]) for j in range(dimensions)
    ]  # [N, grid] for each j
    joint = np.mean(each[0], 0) if dimensions == 1 else each[0].T @ each[1] / len(LOC)
    cross = [-float((density.mean(0) * prior.logpdf(axis)).sum() * step) for density in each]
    coordinates = [entropy(density.mean(0), step) for density in each]
    conditional = sum(entropy(density, step) for density in each) / len(LOC)
    whole = entropy(joint, step**dimensions)
    return {
        "kl": sum(cross) - conditional,
        "mutual_information": whole - conditional,
        "total_correlation": sum(coordinates) - whole,
        "dimension_wise_kl": sum(cross) - sum(coordinates),
        "marginal_kl": sum(cross) - whole,
    }


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize(
    "family, oracle, p, prior",
    [(Normal, stats.norm, standard, stats.norm), (Laplace, stats.laplace, standard, stats.norm)],
    ids=["normal", "laplace"],
)
def test_every_term_is_that_of_quadrature(
    family: Any, oracle: Any, p: Any, prior: Any, dimensions: int
) -> None:
    q = stacked(LOC[:, :dimensions], SCALE[:, :dimensions], family)
    found = decomposition(q, p(dimensions), KEY, DRAWS)
    exact = by_quadrature(oracle, prior, dimensions)
    for term, value in exact.items():
        estimate = getattr(found, term)
        assert abs(estimate.value - value) < Z_BOUND * estimate.standard_error + 2e-5, term
        assert estimate.standard_error < 0.03
    assert found.kl_per_dimension.shape == (dimensions,)
    assert found.kl_per_dimension.sum() == pytest.approx(found.dimension_wise_kl.value, abs=1e-6)


def test_surgery_is_the_decomposition_without_coordinates() -> None:
    q, p = stacked(LOC, SCALE), standard(2)
    whole = decomposition(q, p, KEY, DRAWS)
    expected = [whole.kl, whole.mutual_information, whole.marginal_kl]
    np.testing.assert_allclose(np.array(surgery(q, p, KEY, DRAWS)), np.array(expected), atol=1e-5)


def test_kl_of_each_dimension_is_that_of_quadrature() -> None:
    found = decomposition(stacked(LOC, SCALE), standard(2), KEY, DRAWS)
    axis = np.linspace(-9, 9, 1501)
    for j, value in enumerate(found.kl_per_dimension):
        density = stats.norm.pdf(axis, LOC[:, j, None], SCALE[:, j, None]).mean(0)
        exact = (density * (np.log(density) - stats.norm.logpdf(axis))).sum() * (axis[1] - axis[0])
        assert value == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("rho", [0.6, -0.9])
def test_total_correlation_of_correlated_gaussians(rho: float) -> None:
    """-1/2 log(1 - r^2) for q(z) that is nearly N(0, [[1, r], [r, 1]]): a grid of quantiles,
    widened by noise.
    """
    quantiles = stats.norm.ppf((np.arange(40) + 0.5) / 40)
    grid = np.stack(np.meshgrid(quantiles, quantiles), -1).reshape(-1, 2) / quantiles.std()
    noise = 0.3
    lower = np.linalg.cholesky(np.array([[1, rho], [rho, 1]]) - noise**2 * np.eye(2))
    q = stacked(grid @ lower.T, noise)
    found = decomposition(q, standard(2), KEY, 3000)
    exact = -0.5 * np.log(1 - rho**2)
    assert (
        abs(found.total_correlation.value - exact)
        < 4 * found.total_correlation.standard_error + 0.004
    )
    assert found.dimension_wise_kl.value == pytest.approx(
        0.0, abs=4 * found.dimension_wise_kl.standard_error + 0.004
    )
    information = 0.5 * np.log(1 - rho**2) - 2 * np.log(noise)
    assert (
        abs(found.mutual_information.value - information)
        < 4 * found.mutual_information.standard_error + 0.01
    )


@pytest.mark.parametrize("n, dimensions, num_draws", [(1, 3, 10), (333, 20, 500), (100, 1, 64)])
def test_the_parts_sum_to_the_whole(n: int, dimensions: int, num_draws: int) -> None:
    q = stacked(2 * np.random.default_rng(n).normal(size=(n, dimensions)), 0.3)
    found = decomposition(q, standard(dimensions), KEY, num_draws)
    values = {term: getattr(found, term).value for term in found._fields[:-1]}
    parts = values["mutual_information"] + values["total_correlation"] + values["dimension_wise_kl"]
    assert values["kl"] == pytest.approx(parts, rel=1e-9, abs=1e-9)
    marginal = values["total_correlation"] + values["dimension_wise_kl"]
    assert values["marginal_kl"] == pytest.approx(marginal, rel=1e-9, abs=1e-9)
    assert values["mutual_information"] <= np.log(n) + 1e-5
    closed = float(jax.vmap(divergences.kl, (0, None))(q, standard(dimensions)).mean())
    assert abs(values["kl"] - closed) < Z_BOUND * found.kl.standard_error + 1e-4


def test_far_posteriors_tell_every_example() -> None:
    """I = log N, whatever the marginals are."""
    q = stacked(100.0 * np.arange(40)[:, None] * np.ones(3), 0.5)
    found = decomposition(q, standard(3), KEY, 200)
    assert found.mutual_information.value == pytest.approx(np.log(40), abs=1e-4)
    assert found.total_correlation.value == pytest.approx(2 * np.log(40), abs=1e-3)


def test_collapsed_posteriors_have_no_terms() -> None:
    """q(z|x) = p(z): all are zero, exactly, and known to be."""
    found = decomposition(stacked(np.zeros((50, 4)), 1.0), standard(4), KEY, 300)
    assert found.kl_per_dimension == pytest.approx(0.0, abs=1e-5)
    for term in found._fields[:-1]:
        assert getattr(found, term) == pytest.approx((0.0, 0.0), abs=1e-5), term


def test_one_collapsed_dimension_leaves_the_terms_as_they_were() -> None:
    wide = [np.concatenate([LOC, np.zeros((5, 1))], 1), np.concatenate([SCALE, np.ones((5, 1))], 1)]
    found, exact = (
        decomposition(stacked(*wide), standard(3), KEY, DRAWS),
        by_quadrature(stats.norm, stats.norm, 2),
    )
    for term, value in exact.items():
        assert (
            abs(getattr(found, term).value - value) < Z_BOUND * getattr(found, term).standard_error
        ), term
    assert found.kl_per_dimension[2] == pytest.approx(0.0, abs=1e-5)


def test_surgery_takes_priors_and_posteriors_whose_coordinates_depend_on_each_other() -> None:
    lower = np.array([[0.6, 0.0], [0.3, 0.4]])
    q = MultivariateNormal(
        jnp.asarray(LOC, jnp.float32), jnp.asarray(np.tile(lower, (5, 1, 1)), jnp.float32)
    )
    centres = np.array([[-1.0, 0.0], [1.0, 0.5]])
    p = Mixture(jnp.zeros(2), stacked(centres, 1.2))
    found = surgery(q, p, KEY, DRAWS)
    axis = np.linspace(-8, 8, 401)
    cell = (axis[1] - axis[0]) ** 2
    grid = np.stack(np.meshgrid(axis, axis), -1)
    each = np.stack([stats.multivariate_normal(m, lower @ lower.T).logpdf(grid) for m in LOC])
    prior = np.logaddexp(
        *(stats.multivariate_normal(m, 1.44 * np.eye(2)).logpdf(grid) for m in centres)
    ) - np.log(2)
    whole = special.logsumexp(each, 0) - np.log(5)
    exact = {
        "kl": (np.exp(each) * (each - prior)).mean(0).sum() * cell,
        "mutual_information": (np.exp(each) * (each - whole)).mean(0).sum() * cell,
        "marginal_kl": (np.exp(whole) * (whole - prior)).sum() * cell,
    }
    for term, value in exact.items():
        estimate = getattr(found, term)
        assert abs(estimate.value - value) < Z_BOUND * estimate.standard_error, term


def test_standard_errors_are_the_spread_over_keys() -> None:
    """With fewer draws than examples; all terms at once."""
    rng = np.random.default_rng(0)
    q, p = stacked(rng.normal(size=(400, 2)), 0.4), standard(2)
    runs = [decomposition(q, p, jax.random.key(seed), 128)[:5] for seed in range(40)]
    values, errors = np.array(runs)[..., 0], np.array(runs)[..., 1]
    ratio = values.std(0, ddof=1) / errors.mean(0)
    assert ((ratio > 0.6) & (ratio < 1.5)).all()


def test_every_example_is_drawn_as_often() -> None:
    """With as many draws as examples the mean over n of a quantity that z does not move is
    exact.
    """
    rng = np.random.default_rng(0)
    loc = rng.normal(size=(192, 1)) * 3
    closed = (0.5 * (1e-6 + loc**2 - 1) - np.log(1e-3)).mean()
    for key in jax.random.split(KEY, 5):
        found = surgery(stacked(loc, 1e-3), standard(1), key, 192)
        assert abs(found.kl.value - closed) < 0.25 < found.kl.standard_error


@pytest.mark.parametrize("draws, block", [(64, 1), (16, 200), (64, 10**9)])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, draws: int, block: int) -> None:
    q, p = stacked(np.random.default_rng(1).normal(size=(37, 3)), 0.5), standard(3)
    expected = decomposition(q, p, KEY, 192)
    monkeypatch.setattr(decompositions, "DRAWS", draws)
    monkeypatch.setattr(decompositions, "BLOCK", block)
    found = decomposition(q, p, KEY, 192)
    np.testing.assert_allclose(np.array(found[:5]), np.array(expected[:5]), atol=2e-5)


def test_memory_does_not_grow_with_the_number_of_examples() -> None:
    def peak(n: int) -> int:
        q, p = stacked(np.zeros((n, 8)), 1.0), standard(8)
        density = decompositions._joint_and_coordinates
        blocks = decompositions._blocks(q, 9)
        chosen, places = next(decompositions._chosen(q, KEY, 64))
        lowered = decompositions._of_draws.lower(chosen, blocks, p, KEY, places, density)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert peak(60_000) < 1.5 * peak(4000)


def test_aggregated_posterior_is_the_mixture_of_all() -> None:
    mixture = aggregated_posterior(stacked(LOC, SCALE))
    z = np.array([[0.0, 0.0], [1.5, 2.0], [-3.0, 0.4]])
    found, draws = jax.jit(
        lambda mixture, z: (mixture.log_prob(z), mixture.sample(KEY, (10_000,)))
    )(mixture, z)
    each = stats.norm.logpdf(z[:, None], LOC, SCALE).sum(-1)
    np.testing.assert_allclose(found, special.logsumexp(each, 1) - np.log(5), rtol=1e-5)
    deviation = np.sqrt((SCALE**2).mean(0) + LOC.var(0))
    z_scores = (np.asarray(draws).mean(0) - LOC.mean(0)) / (deviation / np.sqrt(len(draws)))
    assert np.abs(z_scores).max() < Z_BOUND
    np.testing.assert_allclose(np.asarray(draws).std(0), deviation, rtol=0.03)


Q = stacked(LOC, SCALE)
LOWER = MultivariateNormal(jnp.zeros((5, 2)), jnp.tile(jnp.eye(2), (5, 1, 1)))
FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "other_event": (
        lambda: surgery(Q, standard(3), KEY),
        r"one posterior is over \(2,\) and the prior over \(3,\)",
    ),
    "other_event_of_three": (
        lambda: decomposition(Q, standard(3), KEY),
        r"\(2,\) and the prior over \(3,\)",
    ),
    "one_draw": (lambda: surgery(Q, standard(2), KEY, 1), "num_draws was 1"),
    "full_covariance": (
        lambda: decomposition(LOWER, standard(2), KEY),
        "the posterior is a MultivariateNormal",
    ),
    "mixture_prior": (
        lambda: decomposition(Q, Mixture(jnp.zeros(5), Q), KEY),
        "the prior is a Mixture",
    ),
    "bits": (
        lambda: decomposition(Bernoulli(jnp.zeros((5, 2))), standard(2), KEY),
        "the posterior is a Bernoulli",
    ),
    "ragged": (
        lambda: surgery(Normal(jnp.zeros((5, 2)), jnp.ones((4, 2))), standard(2), KEY),
        r"\[4, 5\]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_refused(fault: str) -> None:
    call, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        call()
