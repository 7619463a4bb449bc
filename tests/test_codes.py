"""Statistics of codes: estimators enumerated over all batches of a small data set, quadrature,
NumPy's covariances.
"""

from __future__ import annotations

from functools import partial
from itertools import permutations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxvae.distributions import Bernoulli, Laplace, MultivariateNormal, Normal
from jaxvae.divergences import (
    MinibatchDecomposition,
    dip_i,
    dip_ii,
    exact_decomposition,
    minibatch_decomposition,
    pairwise_log_densities,
    permuted,
    stratified_decomposition,
    stratified_importance,
    symmetric_decomposition,
    symmetric_importance,
    weighted_importance,
)

KEY = jax.random.key(0)
A = jnp.array
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# a data set of N examples, a draw from each one's posterior, batches of M
N, M, D = 6, 3, 2
LOC, NOISE = np.random.default_rng(0).normal(size=(2, N, D))
SCALE = np.random.default_rng(1).uniform(0.3, 1.2, size=(N, D))
Z = LOC + SCALE * NOISE
LOG_Q = stats.norm.logpdf(Z[:, None], LOC, SCALE)  # [N, N, D]
LOG_P = stats.norm.logpdf(Z)  # [N, D]
BATCHES = np.array(list(permutations(range(N), M)))  # [120, M], every order of every batch

# eight rows, of which five have weight
VALID = np.array([0, 1, 1, 0, 0, 1, 1, 1], bool)
WEIGHT = np.float32(VALID / VALID.sum())


def weighted_oracle(own: int, batch: np.ndarray, density: np.ndarray) -> float:
    """Minibatch-weighted sampling of q(z_own), ``density [N]`` being that of each posterior at
    z_own.
    """
    return sum(density[j] for j in batch) / (N * len(batch))


def stratified_oracle(own: int, batch: np.ndarray, density: np.ndarray) -> float:
    """Minibatch-stratified sampling, the others in the order in which they follow ``own`` in the
    batch.
    """
    others = np.roll(batch, -list(batch).index(own))[1:]
    k = len(others)
    between = sum(density[j] for j in others[1:]) / k
    return density[own] / N + between + (N - k) / (N * k) * density[others[0]]


def symmetric_oracle(own: int, batch: np.ndarray, density: np.ndarray) -> float:
    """The mean of minibatch-stratified sampling over all orders of the others."""
    others = [j for j in batch if j != own]
    return np.mean(
        [stratified_oracle(own, np.array([own, *order]), density) for order in permutations(others)]
    )


def exact_oracle(own: int, batch: np.ndarray, density: np.ndarray) -> float:
    return np.mean([density[j] for j in batch])


ESTIMATES = {
    "weighted": (lambda *args: minibatch_decomposition(*args, N), weighted_oracle),
    "stratified": (lambda *args: stratified_decomposition(*args, N), stratified_oracle),
    "symmetric": (lambda *args: symmetric_decomposition(*args, N), symmetric_oracle),
    "exact": (exact_decomposition, exact_oracle),
}
estimates = pytest.mark.parametrize("name", ESTIMATES)
IMPORTANCES = {
    "weighted": weighted_importance,
    "stratified": stratified_importance,
    "symmetric": symmetric_importance,
}


def by_hand(oracle, batch: np.ndarray) -> np.ndarray:
    """The three terms of a batch, one code after the other."""
    terms = []
    for i in batch:
        log_joint = np.log(oracle(i, batch, np.exp(LOG_Q[i].sum(-1))))
        log_product = sum(np.log(oracle(i, batch, np.exp(LOG_Q[i, :, d]))) for d in range(D))
        terms.append(
            [LOG_Q[i, i].sum() - log_joint, log_joint - log_product, log_product - LOG_P[i].sum()]
        )
    return np.mean(terms, 0)


def over_batches(name: str) -> np.ndarray:
    """The three terms of every ordered batch, [120, 3]."""
    one = lambda rows: jnp.stack(
        ESTIMATES[name][0](A(LOG_Q)[rows][:, rows], A(LOG_P)[rows], jnp.full(M, 1 / M))
    )
    return np.asarray(quick(jax.vmap(one))(BATCHES), np.float64)


TRUTH = by_hand(exact_oracle, np.arange(N))


# Densities


@pytest.mark.parametrize(
    "family, oracle", [(Normal, stats.norm), (Laplace, stats.laplace)], ids=["normal", "laplace"]
)
def test_pairwise_densities(family, oracle):
    got = quick(pairwise_log_densities)(family(A(LOC), A(SCALE)), A(Z))
    np.testing.assert_allclose(got, oracle.logpdf(Z[:, None], LOC, SCALE), rtol=1e-4, atol=1e-5)


REFUSED = {
    "joint": lambda: pairwise_log_densities(
        MultivariateNormal(jnp.zeros((N, D)), jnp.ones((N, D, D))), Z
    ),
    "bits": lambda: pairwise_log_densities(Bernoulli(jnp.zeros((N, D))), Z),
    "shared": lambda: pairwise_log_densities(Normal(jnp.zeros((N, D)), jnp.ones(D)), Z),
    "rows": lambda: pairwise_log_densities(Normal(jnp.zeros((N, D)), jnp.ones((N, D))), Z[1:]),
    "one": lambda: pairwise_log_densities(Normal(jnp.zeros(D), jnp.ones(D)), Z[0]),
    "not_square": lambda: minibatch_decomposition(
        np.zeros((3, 4, 2)), np.zeros((4, 2)), np.ones(4) / 4, 9
    ),
    "prior": lambda: exact_decomposition(np.zeros((4, 4, 2)), np.zeros(4), np.ones(4) / 4),
    "weight": lambda: symmetric_decomposition(
        np.zeros((4, 4, 2)), np.zeros((4, 2)), np.ones(5) / 5, 9
    ),
    "means": lambda: dip_i(np.zeros((4, 2)), np.ones(5) / 5, 1.0, 1.0),
    "variances": lambda: dip_ii(np.zeros((4, 2)), np.zeros(2), np.ones(4) / 4, 1.0, 1.0),
    "codes": lambda: permuted(KEY, np.zeros((4, 2, 2)), np.ones(4) / 4),
}


@pytest.mark.parametrize("name", REFUSED)
def test_shapes_and_families_that_do_not_fit_are_refused(name):
    with pytest.raises(ValueError, match="got"):
        REFUSED[name]()


# The decomposition


@estimates
def test_every_batch_agrees_with_the_formula(name):
    expected = [by_hand(ESTIMATES[name][1], batch) for batch in BATCHES]
    np.testing.assert_allclose(over_batches(name), expected, rtol=1e-4, atol=2e-6)


@estimates
def test_terms_sum_to_the_divergence_of_the_draws(name):
    own = LOG_Q[np.arange(N), np.arange(N)].sum(-1) - LOG_P.sum(-1)
    np.testing.assert_allclose(
        over_batches(name).sum(-1), own[BATCHES].mean(-1), rtol=1e-4, atol=1e-5
    )


def expected_density(name: str, density: np.ndarray) -> np.ndarray:
    """The mean over all batches that hold i of the estimate of q(z_i), from ``density [N, N]``
    of the posteriors.
    """
    importance = np.asarray(IMPORTANCES[name](np.full(M, 1 / M, np.float32), N), np.float64)
    drawn = [importance[b == i] @ density[i, b] for i in range(N) for b in BATCHES if i in b]
    return np.reshape(drawn, (N, -1)).mean(1)


@pytest.mark.parametrize("name", ["stratified", "symmetric"])
@pytest.mark.parametrize("log_q", [LOG_Q.sum(-1), LOG_Q[..., 0]], ids=["joint", "marginal"])
def test_stratified_densities_are_unbiased(name, log_q):
    density = np.exp(log_q)
    np.testing.assert_allclose(expected_density(name, density), density.mean(1), rtol=1e-6)


def test_weighted_densities_are_too_small():
    density = np.exp(LOG_Q.sum(-1))
    own = np.diag(density)
    others = (density.sum(1) - own) / (N - 1)
    got = expected_density("weighted", density)
    np.testing.assert_allclose(got, (own + (M - 1) * others) / (N * M), rtol=1e-6)
    assert np.all(got < density.mean(1) / M * (1 + 1e-6))


def test_direction_of_the_biases():
    means = {name: over_batches(name).mean(0) for name in IMPORTANCES}
    information, _, dimension_wise = np.transpose(
        [means[n] for n in ("weighted", "stratified", "symmetric")]
    )
    assert information[0] > information[1] > information[2] > TRUTH[0] + 0.01
    assert information[0] >= TRUTH[0] + np.log(M)
    assert dimension_wise[0] < dimension_wise[1] < dimension_wise[2] < TRUTH[2] - 0.01
    assert dimension_wise[0] <= TRUTH[2] - D * np.log(M)
    assert means["weighted"][1] > TRUTH[1] + 0.5


def test_smaller_batches_are_bounded_by_their_size():
    own = np.full((M, M, D), -1e3)
    own[np.arange(M), np.arange(M)] = 0.0  # posteriors that do not overlap
    got = quick(exact_decomposition)(A(own), np.zeros((M, D)), np.full(M, 1 / M))
    np.testing.assert_allclose(got.mutual_information, np.log(M), rtol=1e-6)


def test_whole_data_set_as_a_batch():
    weighted, _, symmetric, exact = all_estimates(LOG_Q, LOG_P, np.full(N, 1 / N))
    np.testing.assert_allclose(exact, TRUTH, rtol=1e-5)
    np.testing.assert_allclose(symmetric, TRUTH, rtol=1e-5)
    np.testing.assert_allclose(weighted, TRUTH + np.log(N) * np.array([1, D - 1, -D]), rtol=1e-5)


@pytest.mark.parametrize("dataset_size", [5, 50, 10_000_000])
def test_importance_is_distributed_over_the_rows_that_have_weight(dataset_size):
    m, n = int(VALID.sum()), dataset_size
    weighted, stratified, symmetric = (
        np.asarray(quick(f)(WEIGHT, n)) for f in IMPORTANCES.values()
    )
    for importance in (weighted, stratified, symmetric):
        assert not importance[:, ~VALID].any()
    rows = np.ix_(VALID, VALID)
    np.testing.assert_allclose(weighted[rows], 1 / (n * m), rtol=1e-6)
    for importance in (stratified[rows], symmetric[rows]):
        np.testing.assert_allclose(importance.sum(1), 1.0, rtol=1e-6)
        np.testing.assert_allclose(importance.sum(0), 1.0, rtol=1e-6)
        np.testing.assert_allclose(np.diag(importance), 1 / n, rtol=1e-6)
    k = m - 1
    off = symmetric[rows][~np.eye(m, dtype=bool)]
    np.testing.assert_allclose(off, (n - 1) / (n * k), rtol=1e-6)
    expected = sorted([1 / n, (n - k) / (n * k)] + [1 / k] * (k - 1))
    np.testing.assert_allclose(np.sort(stratified[rows], 1), [expected] * m, rtol=1e-6)
    last = np.roll(np.eye(m), 1, 1).astype(bool)
    np.testing.assert_allclose(stratified[rows][last], (n - k) / (n * k), rtol=1e-6)


def stacked(log_q: jax.Array, log_p: jax.Array, weight: jax.Array) -> jax.Array:
    """The three terms of every estimate, [4, 3]."""
    return jnp.stack([jnp.stack(ESTIMATES[name][0](log_q, log_p, weight)) for name in ESTIMATES])


all_estimates = quick(stacked)


def with_padding(values: np.ndarray, axes: int, filling: float) -> np.ndarray:
    """Five rows of ``values`` put where VALID says, among ``filling``."""
    shape = (len(VALID),) * axes
    rows = np.full(shape + values.shape[axes:], filling, np.float32)
    rows[np.ix_(*[VALID] * axes)] = values[(slice(5),) * axes]
    return rows


def test_padding_does_not_matter_whatever_it_holds():
    slopes = quick(
        jax.grad(lambda q, p: stacked(q, p, WEIGHT) @ A([1.0, 2.0, 3.0]) @ jnp.ones(4), (0, 1))
    )
    alone = all_estimates(LOG_Q[:5, :5], LOG_P[:5], np.full(5, 0.2))
    first = all_estimates(with_padding(LOG_Q, 2, 0.0), with_padding(LOG_P, 1, 0.0), WEIGHT)
    np.testing.assert_allclose(first, alone, rtol=1e-5, atol=1e-6)
    for filling in (-1e30, 1e30, np.nan):
        args = with_padding(LOG_Q, 2, filling), with_padding(LOG_P, 1, filling)
        np.testing.assert_array_equal(all_estimates(*args, WEIGHT), first)
        slope_q, slope_p = slopes(*args)
        assert np.isfinite(slope_q).all() and np.isfinite(slope_p).all()
        assert (
            not slope_q[~VALID].any() and not slope_q[:, ~VALID].any() and not slope_p[~VALID].any()
        )


def test_one_row_alone_is_finite():
    weight = np.float32(np.arange(N) == 2)
    assert np.isfinite(all_estimates(LOG_Q, LOG_P, weight)).all()


def test_far_apart_posteriors_are_finite():
    apart = np.float32(LOG_Q - 1e5 * (1 - np.eye(N))[..., None])
    got = all_estimates(apart, LOG_P, np.full(N, 1 / N))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(
        MinibatchDecomposition(*got[-1]).mutual_information, np.log(N), rtol=1e-5
    )


def total_correlation(loc: np.ndarray, scale: float) -> float:
    """That of the mixture of N(loc_j, scale^2 I), [N, 2], on a grid."""
    x = np.linspace(-7, 7, 561)
    density = stats.norm.pdf(x[:, None, None], loc, scale)  # [grid, N, 2]
    joint = density[..., 0] @ density[..., 1].T / len(loc)
    first, second = density.mean(1).T
    return special.rel_entr(joint, np.outer(first, second)).sum() * (x[1] - x[0]) ** 2


@pytest.mark.parametrize("rho, expected", [(0.3, 0.047155), (0.6, 0.223144), (0.9, 0.830366)])
def test_total_correlation_of_a_correlated_gaussian(rho, expected):
    """z = sqrt(rho) (t, t) + sqrt(1 - rho) noise, t the quantiles of a normal, the noise
    integrated over.
    """
    t = stats.norm.ppf((np.arange(160) + 0.5) / 160)
    loc, scale = np.sqrt(rho) * np.repeat((t / t.std())[:, None], 2, 1), np.sqrt(1 - rho)
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2

    @quick
    def each(noise: jax.Array) -> jax.Array:
        z = A(loc) + scale * noise
        log_q = pairwise_log_densities(Normal(A(loc), jnp.full(loc.shape, scale)), z)
        return exact_decomposition(
            log_q, jnp.zeros_like(z), jnp.full(len(loc), 1 / len(loc))
        ).total_correlation

    got = weights @ [float(each(A(pair))) for pair in product(nodes, nodes)]
    np.testing.assert_allclose(got, total_correlation(loc, scale), atol=2e-4)
    np.testing.assert_allclose(got, -0.5 * np.log(1 - rho**2), rtol=0.01)
    np.testing.assert_allclose(-0.5 * np.log(1 - rho**2), expected, atol=5e-7)


# DIP-VAE


def dip_oracle(covariance: np.ndarray, off_diagonal: float, diagonal: float) -> float:
    d = len(covariance)
    off = sum(covariance[i, j] ** 2 for i in range(d) for j in range(d) if i != j)
    return off_diagonal * off + diagonal * sum((covariance[i, i] - 1) ** 2 for i in range(d))


MEANS = (
    np.random.default_rng(2).normal(size=(5, 4)) @ np.random.default_rng(3).normal(size=(4, 4))
    + 3.0
)
VARIANCES = np.random.default_rng(4).uniform(0.1, 2.0, size=(5, 4))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (2.0, 20.0)], ids=str)
def test_dip_agrees_with_numpy(weights):
    covariance = np.cov(MEANS.T, bias=True)
    args = A(MEANS), jnp.full(5, 0.2)
    np.testing.assert_allclose(
        quick(dip_i)(*args, *weights), dip_oracle(covariance, *weights), rtol=1e-4
    )
    total = covariance + np.diag(VARIANCES.mean(0))
    got = quick(dip_ii)(args[0], A(VARIANCES), args[1], *weights)
    np.testing.assert_allclose(got, dip_oracle(total, *weights), rtol=1e-4)


def test_dip_of_white_codes_is_zero():
    white = np.array(list(product([-1.0, 1.0], repeat=3)))
    np.testing.assert_allclose(quick(dip_i)(white, np.full(8, 1 / 8), 3.0, 5.0), 0.0, atol=1e-6)
    half = quick(dip_ii)(white / 2, np.full((8, 3), 0.75), np.full(8, 1 / 8), 3.0, 5.0)
    np.testing.assert_allclose(half, 0.0, atol=1e-6)


def test_dip_is_invariant_to_padding():
    both = quick(
        jax.value_and_grad(
            lambda m, v: dip_i(m, WEIGHT, 2.0, 3.0) + dip_ii(m, v, WEIGHT, 5.0, 7.0), (0, 1)
        )
    )
    total = np.cov(MEANS.T, bias=True)
    expected = dip_oracle(total, 2.0, 3.0) + dip_oracle(
        total + np.diag(VARIANCES.mean(0)), 5.0, 7.0
    )
    for filling in (1e30, np.nan):
        got, slopes = both(with_padding(MEANS, 1, filling), with_padding(VARIANCES, 1, filling))
        np.testing.assert_allclose(got, expected, rtol=1e-4)
        assert all(np.isfinite(slope).all() and not slope[~VALID].any() for slope in slopes)


# FactorVAE's permutations


shuffled = quick(permuted)


def test_permutation_keeps_marginals_and_leaves_padding():
    z = np.arange(24, dtype=np.float32).reshape(8, 3)
    for key in jax.random.split(KEY, 20):
        got = np.asarray(shuffled(key, z, WEIGHT))
        np.testing.assert_array_equal(got[~VALID], z[~VALID])
        np.testing.assert_array_equal(np.sort(got[VALID], 0), z[VALID])


def test_number_of_rows_is_not_compiled_in():
    z = np.arange(24, dtype=np.float32).reshape(8, 3)
    for rows in (1, 2, 8):
        weight = np.float32(np.arange(8) < rows) / rows
        got = np.asarray(shuffled(KEY, z, weight))
        np.testing.assert_array_equal(np.sort(got[:rows], 0), z[:rows])
        np.testing.assert_array_equal(got[rows:], z[rows:])
    assert shuffled._cache_size() == 1


def test_permutations_are_uniform_and_independent():
    weight = np.float32([0, 1, 0, 1, 1]) / 3
    z = np.float32(np.repeat([[9], [0], [9], [1], [2]], 2, 1))
    draws = quick(jax.vmap(permuted, (0, None, None)))(jax.random.split(KEY, 7200), z, weight)
    digits = np.asarray(draws)[:, weight > 0].astype(int)  # [draws, 3, 2]
    index = {order: i for i, order in enumerate(permutations(range(3)))}
    orders = np.array([index[tuple(order)] for order in digits.swapaxes(1, 2).reshape(-1, 3)])
    pairs = orders.reshape(-1, 2) @ [6, 1]
    assert stats.chisquare(np.bincount(pairs, minlength=36)).pvalue > 1e-4


def test_permutation_breaks_dependence():
    z = np.random.default_rng(5).normal(size=(4000, 1)) * np.ones((1, 2)) + 0.1
    got = quick(permuted)(KEY, z, np.full(4000, 1 / 4000))
    assert abs(np.corrcoef(np.asarray(got).T)[0, 1]) < 5 / np.sqrt(4000)
