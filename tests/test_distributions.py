"""Distributions: each family goes through every contract, with SciPy, NumPyro or quadrature as
the oracle.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.special import digamma
from scipy import integrate, linalg, special, stats

from jaxvae import datasets
from jaxvae.distributions import (
    BandedNormal,
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    Dirichlet,
    DiscretizedLogistic,
    Distribution,
    Exponential,
    Gamma,
    Independent,
    Kumaraswamy,
    Laplace,
    Mixture,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
    logistic,
    uniform,
)
from jaxvae.distributions.triangular import solve_lower
from jaxvae.likelihoods import LIKELIHOODS, normal
from jaxvae.posteriors import POSTERIORS, multivariate_normal

KEY = jax.random.key(0)
Z_BOUND = 5.0
DRAWS = 20_000
# compiled in a third of the time, for what runs once
quick = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
A = jnp.array

LOC = [[0.3, -1.2, 0.0], [2.0, 0.1, -0.4]]
BANDS = [
    [[0.8, -0.5, 0.2], [1.3, 0.4, 0.6], [0.6, 0.3, -0.2]],
    [[1.1, -0.7, 0.0], [0.9, 0.5, 0.0], [1.4, 0.0, 0.0]],
]
TRIL = [[0.9, 0.0, 0.0], [-0.4, 1.3, 0.0], [0.2, 0.7, 0.5]]
CLASSES = [[0.1, -0.5, 1.0, 0.3], [2.0, 0.0, -1.0, 0.5]]
CB_LOGITS = [0.0, -0.3, 2.5, -6.0]
SHAPES = [[0.7, 3.0, 12.0], [1.0, 1.5, 0.9]]
RATES = [[0.5], [2.0]]
DEGREES = [3.5, 8.0, 40.0]
WEIGHTS = [0.2, -0.5, 0.7]
CENTRES = [[-1.0, 0.5], [0.3, 2.0], [1.5, -0.7]]
WIDTHS = [[0.5, 1.0], [0.8, 0.6], [1.2, 0.9]]
PIXEL_WEIGHTS = [[[0.3, -0.4], [0.0, 1.0]], [[-0.2, 0.6], [0.5, 0.5]]]
PIXEL_LOC = [[[0.35, 0.6], [0.5, 0.42]], [[0.65, 0.38], [0.45, 0.5]]]
PIXEL_SCALE = [[[0.03, 0.02], [0.03, 0.03]], [[0.02, 0.03], [0.025, 0.03]]]


class Member(NamedTuple):
    """A family under test."""

    make: Callable[[], Any]
    oracle: Callable[[np.ndarray], Any]  # x [*event] -> log p(x)
    one: Callable[[], Any]  # an instance over a single number
    cells: (
        np.ndarray
    )  # all its values if it is discrete, else edges of cells that hold all its mass
    discrete: bool = False
    independent: bool = True  # whether the coordinates of ``make`` are
    # Over probabilities along the last axis, whose first is looked at; ``one`` is over (x, 1-x).
    simplex: bool = False

    def event(self, x: np.ndarray) -> np.ndarray:
        """The events of ``one()`` that hold the numbers x."""
        return np.stack([x, 1 - x], -1) if self.simplex else x

    def numbers(self, events: Any) -> np.ndarray:
        """The numbers in ``events [N, *event]``, [N, D]."""
        events = np.asarray(events, np.float64)
        return (events[..., 0] if self.simplex else events).reshape(len(events), -1)


def around(loc: float, scale: float, count: int = 40) -> np.ndarray:
    return loc + scale * np.linspace(-1, 1, count + 1)


def kumaraswamy_logpdf(x: Any, a: Any, b: Any) -> Any:
    """The logarithm of a b x^(a-1) (1 - x^a)^(b-1)."""
    return np.log(a * b) + (a - 1) * np.log(x) + (b - 1) * np.log1p(-(x**a))


def continuous_bernoulli_logpdf(x: Any, logits: Any) -> Any:
    shift = np.maximum(logits, 0.0)
    mass = np.vectorize(
        lambda l, s: integrate.quad(lambda t: np.exp(l * t - s), 0, 1, epsabs=0, epsrel=1e-12)[0]
    )
    return x * logits - shift - np.log(mass(logits, shift))


def discretized_logistic_logpmf(x: Any, loc: Any, scale: Any, levels: int) -> Any:
    """Differences of the distribution or the survival function, whichever is smaller."""
    x, loc, scale = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (x, loc, scale)))
    half = 0.5 / (levels - 1)
    low = np.where(x < half, -np.inf, (x - half - loc) / scale)
    high = np.where(x > 1 - half, np.inf, (x + half - loc) / scale)
    left = stats.logistic.cdf(high) - stats.logistic.cdf(low)
    right = stats.logistic.sf(low) - stats.logistic.sf(high)
    return np.log(np.where(low > 0, right, left))


def negative_binomial_logpmf(x: Any, count: Any, logits: Any) -> Any:
    return stats.nbinom.logpmf(x, count, special.expit(-np.asarray(logits)))


def zero_inflated_logpmf(x: Any, count: Any, logits: Any, gate: Any) -> Any:
    zeros = special.expit(np.asarray(gate))
    counted = stats.nbinom.pmf(x, count, special.expit(-np.asarray(logits)))
    return np.log(zeros * (np.asarray(x) == 0) + (1 - zeros) * counted)


def mixture_logpdf(weights: Any, components: Any) -> Any:
    return special.logsumexp(components, b=special.softmax(weights))


def banded_covariance(bands: Any) -> np.ndarray:
    """(L L^T)^-1 with the columns of L in ``bands [*event, 3]``."""
    columns = np.reshape(bands, (-1, 3))
    lower = sum(np.diag(columns[: len(columns) - k, k], -k) for k in range(3))
    return np.linalg.inv(lower @ lower.T)


def pixel_oracle(x: np.ndarray) -> float:
    def pixel(i: int, j: int) -> Any:
        parts = discretized_logistic_logpmf(x[i, j], PIXEL_LOC[i][j], PIXEL_SCALE[i][j], 64)
        return mixture_logpdf(PIXEL_WEIGHTS[i][j], parts)

    return sum(pixel(i, j) for i in range(2) for j in range(2))


MEMBERS = {
    "normal": Member(
        lambda: Normal(A(LOC), A([[0.5], [1.5]])),
        lambda x: stats.norm.logpdf(x, LOC, [[0.5], [1.5]]).sum(),
        lambda: Normal(A(0.3), A(0.8)),
        around(0.3, 8.0),
    ),
    "multivariate_normal": Member(
        lambda: MultivariateNormal(A(LOC[0]), A(TRIL)),
        lambda x: stats.multivariate_normal(LOC[0], np.array(TRIL) @ np.array(TRIL).T).logpdf(x),
        lambda: MultivariateNormal(A([0.3]), A([[0.8]])),
        around(0.3, 8.0),
        independent=False,
    ),
    "banded_normal": Member(
        lambda: BandedNormal(A(LOC), A(BANDS)),
        lambda x: stats.multivariate_normal(np.ravel(LOC), banded_covariance(BANDS)).logpdf(
            x.ravel()
        ),
        lambda: BandedNormal(A([0.3]), A([[1.25]])),
        around(0.3, 8.0),
        independent=False,
    ),
    "laplace": Member(
        lambda: Laplace(A(LOC), A([0.5, 1.5, 0.1])),
        lambda x: stats.laplace.logpdf(x, LOC, [0.5, 1.5, 0.1]).sum(),
        lambda: Laplace(A(-0.2), A(0.6)),
        around(-0.2, 24.0, 120),
    ),
    "exponential": Member(
        lambda: Exponential(A(LOC)),
        lambda x: stats.expon.logpdf(x, scale=np.exp(LOC)).sum(),
        lambda: Exponential(A(0.4)),
        np.linspace(0, 50, 101),
    ),
    "gamma": Member(
        lambda: Gamma(A(SHAPES), A(RATES)),
        lambda x: stats.gamma.logpdf(x, SHAPES, scale=1 / np.array(RATES)).sum(),
        lambda: Gamma(A(2.5), A(0.8)),
        np.linspace(0, 50, 101),
    ),
    "beta": Member(
        lambda: Beta(A(SHAPES), A([[1.5], [2.0]])),
        lambda x: stats.beta.logpdf(x, SHAPES, [[1.5], [2.0]]).sum(),
        lambda: Beta(A(2.5), A(4.0)),
        np.linspace(0, 1, 21),
    ),
    "kumaraswamy": Member(
        lambda: Kumaraswamy(A(SHAPES), A([[1.5], [2.0]])),
        lambda x: kumaraswamy_logpdf(x, np.array(SHAPES), np.array([[1.5], [2.0]])).sum(),
        lambda: Kumaraswamy(A(2.5), A(4.0)),
        np.linspace(0, 1, 21),
    ),
    "dirichlet": Member(
        lambda: Dirichlet(A(SHAPES)),
        lambda x: sum(
            stats.dirichlet.logpdf(row / row.sum(), a) for row, a in zip(x, SHAPES, strict=True)
        ),
        lambda: Dirichlet(A([2.5, 4.0])),
        np.linspace(0, 1, 21),
        simplex=True,
    ),
    "student_t": Member(
        lambda: StudentT(A(DEGREES), A(LOC), A([[0.5], [1.5]])),
        lambda x: stats.t.logpdf(x, DEGREES, LOC, [[0.5], [1.5]]).sum(),
        lambda: StudentT(A(12.0), A(0.3), A(0.5)),
        around(0.3, 24.0, 160),
    ),
    "bernoulli": Member(
        lambda: Bernoulli(A([[0.0, -2.0], [0.3, 5.0]])),
        lambda x: stats.bernoulli.logpmf(x, special.expit([[0.0, -2.0], [0.3, 5.0]])).sum(),
        lambda: Bernoulli(A(0.7)),
        np.arange(2),
        discrete=True,
    ),
    "categorical": Member(
        lambda: Categorical(A(CLASSES)),
        lambda x: sum(
            stats.multinomial.logpmf(np.eye(4)[int(c)], 1, special.softmax(l))
            for c, l in zip(x, CLASSES, strict=True)
        ),
        lambda: Categorical(A(CLASSES[0])),
        np.arange(4),
        discrete=True,
    ),
    "one_hot_categorical": Member(
        lambda: OneHotCategorical(A(CLASSES)),
        lambda x: sum(
            stats.multinomial.logpmf(c, 1, special.softmax(l))
            for c, l in zip(x, CLASSES, strict=True)
        ),
        lambda: OneHotCategorical(A(CLASSES[0][:2])),
        np.arange(2),
        discrete=True,
        simplex=True,
    ),
    "continuous_bernoulli": Member(
        lambda: ContinuousBernoulli(A(CB_LOGITS)),
        lambda x: continuous_bernoulli_logpdf(x, CB_LOGITS).sum(),
        lambda: ContinuousBernoulli(A(-3.0)),
        np.linspace(0, 1, 21),
    ),
    "discretized_logistic": Member(
        lambda: DiscretizedLogistic(A([0.4, 0.5, 0.6]), A([[0.03], [0.02]]), 64),
        lambda x: discretized_logistic_logpmf(x, [0.4, 0.5, 0.6], [[0.03], [0.02]], 64).sum(),
        lambda: DiscretizedLogistic(A(0.5), A(0.05), 16),
        np.arange(16) / 15,
        discrete=True,
    ),
    "poisson": Member(
        lambda: Poisson(A([[0.7], [-1.0]]) + A([0.5, -1.0, 1.2])),
        lambda x: stats.poisson.logpmf(x, np.exp(np.add([[0.7], [-1.0]], [0.5, -1.0, 1.2]))).sum(),
        lambda: Poisson(A(1.3)),
        np.arange(60),
        discrete=True,
    ),
    "negative_binomial": Member(
        lambda: NegativeBinomial(A([[0.7], [3.0]]), A([0.5, -1.0, 1.2])),
        lambda x: negative_binomial_logpmf(x, [[0.7], [3.0]], [0.5, -1.0, 1.2]).sum(),
        lambda: NegativeBinomial(A(2.5), A(0.4)),
        np.arange(150),
        discrete=True,
    ),
    "zero_inflated_negative_binomial": Member(
        lambda: ZeroInflatedNegativeBinomial(A([[0.7], [3.0]]), A([0.5]), A([-0.5, 0.4, -3.0])),
        lambda x: zero_inflated_logpmf(x, [[0.7], [3.0]], [0.5], [-0.5, 0.4, -3.0]).sum(),
        lambda: ZeroInflatedNegativeBinomial(A(2.5), A(0.4), A(-0.8)),
        np.arange(150),
        discrete=True,
    ),
    "mixture_stacked": Member(
        lambda: Mixture(A(WEIGHTS), Normal(A(CENTRES), A(WIDTHS))),
        lambda x: mixture_logpdf(
            WEIGHTS,
            [stats.norm.logpdf(x, c, w).sum() for c, w in zip(CENTRES, WIDTHS, strict=True)],
        ),
        lambda: Mixture(A(WEIGHTS), Normal(A([-1.0, 0.2, 1.4]), A([0.3, 0.5, 0.7]))),
        around(0.0, 8.0),
        independent=False,
    ),
    "mixture_of_families": Member(
        lambda: Mixture(
            A(WEIGHTS[:2]), (Normal(A(CENTRES[0]), A(0.5)), Laplace(A(CENTRES[1]), A(WIDTHS[1])))
        ),
        lambda x: mixture_logpdf(
            WEIGHTS[:2],
            [
                stats.norm.logpdf(x, CENTRES[0], 0.5).sum(),
                stats.laplace.logpdf(x, CENTRES[1], WIDTHS[1]).sum(),
            ],
        ),
        lambda: Mixture(A(WEIGHTS[:2]), (Normal(A(-0.5), A(0.5)), Laplace(A(0.6), A(0.4)))),
        around(0.6, 16.0, 160),
        independent=False,
    ),
    "mixture_of_numpyro": Member(
        lambda: Mixture(
            A(WEIGHTS[:2]),
            (
                nd.Normal(A(CENTRES[0]), A(WIDTHS[0])).to_event(1),
                nd.Logistic(A(CENTRES[1]), A(WIDTHS[1])).to_event(1),
            ),
        ),
        lambda x: mixture_logpdf(
            WEIGHTS[:2],
            [
                stats.norm.logpdf(x, CENTRES[0], WIDTHS[0]).sum(),
                stats.logistic.logpdf(x, CENTRES[1], WIDTHS[1]).sum(),
            ],
        ),
        lambda: Mixture(A(WEIGHTS[:2]), (nd.Normal(A(-0.5), A(0.5)), nd.Logistic(A(0.6), A(0.4)))),
        around(0.0, 16.0, 80),
        independent=False,
    ),
    "mixture_of_stacked_numpyro": Member(
        lambda: Mixture(
            A(WEIGHTS), jax.vmap(lambda m, s: nd.Normal(m, s).to_event(1))(A(CENTRES), A(WIDTHS))
        ),
        lambda x: mixture_logpdf(
            WEIGHTS,
            [stats.norm.logpdf(x, c, w).sum() for c, w in zip(CENTRES, WIDTHS, strict=True)],
        ),
        lambda: Mixture(A(WEIGHTS), jax.vmap(nd.Normal)(A([-1.0, 0.2, 1.4]), A([0.3, 0.5, 0.7]))),
        around(0.0, 8.0),
        independent=False,
    ),
    "independent": Member(
        lambda: Independent(MultivariateNormal(A([LOC[0], LOC[1]]), A([TRIL, TRIL]))),
        lambda x: (
            stats.multivariate_normal(cov=np.array(TRIL) @ np.array(TRIL).T)
            .logpdf(x - np.array(LOC))
            .sum()
        ),
        lambda: Independent(Normal(A([0.3]), A([0.8]))),
        around(0.3, 8.0),
        independent=False,
    ),
    "independent_mixture": Member(
        lambda: Independent(
            Mixture(A(PIXEL_WEIGHTS), DiscretizedLogistic(A(PIXEL_LOC), A(PIXEL_SCALE), 64)), 2
        ),
        pixel_oracle,
        lambda: Independent(
            Mixture(A([[0.3, -0.4]]), DiscretizedLogistic(A([[0.3, 0.7]]), A([[0.02, 0.02]]), 16))
        ),
        np.arange(16) / 15,
        discrete=True,
    ),
}
members = pytest.mark.parametrize("name", MEMBERS)


def largest_z(draws: Any, mean: Any) -> float:
    """The largest z-score over coordinates of the mean of ``draws [N, ...]``."""
    draws = np.asarray(draws, np.float64)
    return float(np.max(np.abs(draws.mean(0) - mean) / (draws.std(0) / np.sqrt(len(draws)))))


@jax.jit
def log_prob(d: Any, x: Any) -> jax.Array:
    return d.log_prob(x)


@quick
def each_log_prob(d: Any, x: Any) -> tuple[jax.Array, Any]:
    """The log-density of every x [K, *event] taken alone, and its gradient in the parameters."""
    return jax.vmap(jax.value_and_grad(lambda d, x: d.log_prob(x)), (None, 0))(d, x)


@quick
def many(d: Any, key: jax.Array) -> jax.Array:
    return d.sample(key, (DRAWS,))


@cache
def draws(name: str) -> np.ndarray:
    """Samples of ``make()``, [DRAWS, *event]."""
    return np.asarray(many(MEMBERS[name].make(), KEY))


def oracles(name: str, x: np.ndarray) -> list:
    return [MEMBERS[name].oracle(np.asarray(one, np.float64)) for one in x]


def quadrature(edges: np.ndarray, points: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights of every cell, each [cells, points]."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    half = np.diff(edges)[:, None] / 2
    return edges[:-1, None] + half * (nodes + 1), half * weights


@cache
def cell_masses(name: str) -> tuple[np.ndarray, float, float]:
    """The mass that the log_prob of ``one()`` gives each cell, the mean that follows, and the
    mean it states.
    """
    member = MEMBERS[name]
    x, weights = (
        (member.cells, np.ones(len(member.cells))) if member.discrete else quadrature(member.cells)
    )
    with jax.enable_x64(True):
        d = member.one()
        density = np.exp(
            log_prob(d, jnp.asarray(member.event(x).reshape(-1, *d.event_shape), float))
        )
        stated = np.ravel(d.mean)
    masses = density.reshape(x.shape) * weights
    return masses.reshape(len(x), -1).sum(-1), float((masses * x).sum()), float(stated[0])


def cell_counts(member: Member, x: np.ndarray) -> np.ndarray:
    if member.discrete:
        return np.bincount(np.abs(x[:, None] - member.cells).argmin(1), minlength=len(member.cells))
    return np.histogram(x, member.cells)[0]


@members
def test_member_is_a_distribution(name):
    assert isinstance(MEMBERS[name].make(), Distribution)


@members
def test_log_prob_agrees_with_its_oracle(name):
    x = np.asarray(draws(name)[:8], np.float64)
    with jax.enable_x64(True):
        got = log_prob(MEMBERS[name].make(), jnp.asarray(x))
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, oracles(name, x), rtol=1e-5, atol=1e-5)


@members
def test_log_prob_in_float32_is_close_one_by_one_together_and_without_jit(name):
    d, x = MEMBERS[name].make(), draws(name)[:8]
    expected = oracles(name, x)
    values, gradients = each_log_prob(d, x)
    assert values.dtype == jnp.float32
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    np.testing.assert_allclose(values, expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(d.log_prob(x[0]), expected[0], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(log_prob(d, x), values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)], ids=str)
@members
def test_shapes(name, shape):
    d = MEMBERS[name].make()
    x = jax.eval_shape(lambda d: d.sample(KEY, shape), d)
    assert x.shape == shape + d.event_shape
    assert jax.eval_shape(log_prob, d, x).shape == shape


@members
def test_density_normalizes_and_has_its_mean(name):
    masses, mean, stated = cell_masses(name)
    np.testing.assert_allclose(masses.sum(), 1.0, atol=1e-6)
    np.testing.assert_allclose(stated, mean, atol=1e-4 if MEMBERS[name].discrete else 1e-6)


@members
def test_frequencies_of_samples_agree_with_log_prob(name):
    masses, _, _ = cell_masses(name)
    counts = cell_counts(
        MEMBERS[name], MEMBERS[name].numbers(many(MEMBERS[name].one(), KEY)).ravel()
    )
    assert counts.sum() == DRAWS
    masses, counts = masses[DRAWS * masses > 10], counts[DRAWS * masses > 10]
    z = (counts - DRAWS * masses) / np.sqrt(DRAWS * masses * (1 - masses))
    assert np.abs(z).max() < Z_BOUND


@members
def test_mean_of_samples_agrees_with_mean(name):
    d = MEMBERS[name].make()
    assert d.mean.shape == d.event_shape
    assert largest_z(draws(name), d.mean) < Z_BOUND


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if member.independent])
def test_coordinates_are_drawn_independently(name):
    x = MEMBERS[name].numbers(draws(name))
    correlation = np.corrcoef(x.T) - np.eye(x.shape[1])
    assert np.sqrt(DRAWS) * np.abs(correlation).max() < Z_BOUND


def test_multivariate_normal_samples_have_its_covariance():
    x = draws("multivariate_normal") - np.array(LOC[0])
    assert largest_z(x[:, :, None] * x[:, None, :], np.array(TRIL) @ np.array(TRIL).T) < Z_BOUND


@members
def test_gradients_agree_with_finite_differences(name):
    """In both modes, for every parameter, and for x where it is continuous."""
    with jax.enable_x64(True):
        d, x = MEMBERS[name].make(), jnp.asarray(draws(name)[0], float)
        flat, unravel = ravel_pytree(d if MEMBERS[name].discrete else (d, x))

        def function(flat: jax.Array) -> jax.Array:
            d, at = (unravel(flat), x) if MEMBERS[name].discrete else unravel(flat)
            return d.log_prob(at)

        @quick
        def derivatives(flat: jax.Array) -> tuple[jax.Array, ...]:
            steps = jnp.stack([1e-6 * jnp.eye(len(flat)), -1e-6 * jnp.eye(len(flat))])
            above, below = jax.vmap(jax.vmap(function))(flat + steps)
            return (above - below) / 2e-6, jax.grad(function)(flat), jax.jacfwd(function)(flat)

        differences, reverse, forward = derivatives(flat)
    np.testing.assert_allclose(reverse, differences, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(forward, differences, rtol=1e-6, atol=1e-6)


@members
def test_pytree_round_trip(name):
    d, x = MEMBERS[name].make(), draws(name)[:8]
    leaves, tree = jax.tree.flatten(d)
    for copy in (
        tree.unflatten(leaves),
        jax.jit(lambda d: d)(d),
        jax.tree.map(lambda leaf: leaf, d),
    ):
        assert type(copy) is type(d)
        assert copy.event_shape == d.event_shape
        np.testing.assert_array_equal(log_prob(copy, x), log_prob(d, x))


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: {"q": (d, 0.0)}], ids=["bare", "nested"])
def test_families_have_different_tree_structures(wrap):
    """Otherwise ``jax.jit`` may run what it compiled for another family."""
    distributions = [member.make() for member in MEMBERS.values()]
    same = [
        (type(a).__name__, type(b).__name__)
        for a, b in combinations(distributions, 2)
        if type(a) is not type(b) and jax.tree.structure(wrap(a)) == jax.tree.structure(wrap(b))
    ]
    assert not same


def test_static_fields_are_in_the_tree_structure():
    structures = {
        jax.tree.structure(DiscretizedLogistic(0.5, 0.1, levels)) for levels in (2, 16, 256)
    }
    assert len(structures) == 3
    structures = {jax.tree.structure(Independent(Normal(0.5, 0.1), ndim)) for ndim in (1, 2)}
    assert len(structures) == 2


@members
def test_batch_is_a_vmap(name):
    d, x = MEMBERS[name].make(), draws(name)[:8]
    other = jax.tree.map(lambda leaf: 0.9 * leaf, d)
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), d, other)
    expected = [log_prob(d, x), log_prob(other, x)]
    np.testing.assert_allclose(
        quick(jax.vmap(log_prob, (0, None)))(batch, x), expected, rtol=1e-5, atol=1e-5
    )
    drawn = jax.eval_shape(
        jax.vmap(lambda d, key: d.sample(key, (3,))), batch, jax.random.split(KEY, 2)
    )
    assert drawn.shape == (2, 3, *d.event_shape)


@pytest.mark.parametrize(
    "change",
    [lambda e: (*e[:-1], e[-1] + 1), lambda e: e[1:], lambda e: (*e[:-1], 1)],
    ids=["longer", "axis_missing", "single"],
)
@members
def test_wrong_shape_is_refused_with_both_shapes(name, change):
    d = MEMBERS[name].make()
    wrong = change(d.event_shape)
    with pytest.raises(ValueError, match="shape") as refusal:
        d.log_prob(np.zeros(wrong, np.float32))
    assert str(wrong) in str(refusal.value)
    assert str(d.event_shape) in str(refusal.value)


@pytest.mark.parametrize(
    "components",
    [
        lambda: nd.Normal(np.zeros(2), np.ones(2)),
        lambda: (nd.Normal(np.zeros(3), 1.0), nd.Laplace(np.zeros(3), 1.0)),
    ],
    ids=["stacked", "tuple"],
)
def test_numpyro_batch_axes_are_refused_in_a_mixture(components):
    with pytest.raises(ValueError, match=r"to_event|vmap"):
        Mixture(np.zeros(2, np.float32), components()).log_prob(np.zeros((), np.float32))


@pytest.mark.parametrize("name", ["normal", "multivariate_normal", "banded_normal"])
def test_samples_are_made_of_noise_that_has_no_parameters(name):
    d = MEMBERS[name].make()
    other = jax.tree.map(lambda leaf: 0.9 * leaf, d)
    for shape in ((), (2, 3)):
        np.testing.assert_array_equal(d.from_noise(other.noise(KEY, shape)), d.sample(KEY, shape))


def test_densities_of_a_batch_call_no_solver_that_waits_for_its_own_threads():
    """Two of LAPACK's at once wait for ever in a pool of two threads (jaxlib 0.10.2)."""
    d, x = MEMBERS["multivariate_normal"].make(), jnp.zeros((4, 3))
    many_of = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), d)
    slopes = jax.jit(jax.vmap(jax.grad(lambda d, x: d.log_prob(x))))
    assert "lapack" not in slopes.lower(many_of, x).as_text()
    plain = lambda l, b: jax.scipy.linalg.solve_triangular(l, b, lower=True)
    of_lapack = jax.jit(jax.vmap(jax.grad(lambda d, x: plain(d.scale_tril, x).sum())))
    assert "lapack" in of_lapack.lower(many_of, x).as_text()  # the check can fail


def test_triangular_systems_are_solved_with_their_gradients():
    rng = np.random.default_rng(0)
    lower, right = np.tril(rng.normal(size=(5, 5))) + 2 * np.eye(5), rng.normal(size=(5, 3))
    weight = rng.normal(size=(5, 3))
    value = lambda solve: lambda l, b: (weight * jnp.tanh(solve(l, b))).sum()
    peer = lambda l, b: jax.scipy.linalg.solve_triangular(l, b, lower=True)
    np.testing.assert_allclose(
        solve_lower(lower, right), linalg.solve_triangular(lower, right, lower=True), rtol=1e-4
    )
    ours, theirs = (jax.jit(jax.grad(value(f), (0, 1)))(lower, right) for f in (solve_lower, peer))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, np.asarray(other), atol=1e-4)


# Noise

TAILS = {  # and the probability of such noise, given its value
    "uniform": (uniform, lambda u: u),
    "logistic_left": (logistic, special.expit),
    "logistic_right": (logistic, lambda l: special.expit(-l)),
}
tails = pytest.mark.parametrize("tail", TAILS)


@cache
def noise(function: Callable, count: int, dtype: Any = jnp.float32) -> np.ndarray:
    return np.asarray(jax.jit(lambda key: function(key, (count,), dtype))(KEY), np.float64)


@tails
def test_rare_noise_lies_between_the_multiples_of_epsilon(tail):
    """``jax.random.uniform`` draws the multiples alone: 2^-23 and nothing below it, for float32."""
    function, probability = TAILS[tail]
    count, bound = 2**21, 2.0**-11
    rare = probability(noise(function, count))
    rare = rare[rare < bound]
    assert abs(len(rare) - count * bound) < Z_BOUND * np.sqrt(count * bound)
    assert stats.kstest(rare / bound, "uniform").pvalue > 1e-3
    assert stats.kstest(rare * 2**23 % 1, "uniform").pvalue > 1e-3


@tails
def test_noise_far_below_epsilon_is_as_rare_as_it_should_be(tail):
    """In bfloat16, where few draws show it: epsilon is 2^-7, the bound 2^-10."""
    function, probability = TAILS[tail]
    count, bound = 2**20, 2.0**-10
    rare = (probability(noise(function, count, jnp.bfloat16)) < bound).sum()
    assert (
        abs(rare - count * bound) < Z_BOUND * np.sqrt(count * bound) + 0.02 * count * bound
    )  # and rounding


@pytest.mark.parametrize(
    "x64, dtype", [(False, float), (False, jnp.float32), (False, jnp.bfloat16), (True, float)]
)
def test_noise_at_the_ends_of_the_generator(x64, dtype, monkeypatch):
    """It stays within epsilon of what the generator draws, and inside the interval: none is
    infinite.
    """
    with jax.enable_x64(x64):
        epsilon = float(jnp.finfo(jnp.zeros(0, dtype).dtype).eps)
        drawn = np.array([0.0, 0.375, 1 - epsilon])
        monkeypatch.setattr(
            jax.random, "uniform", lambda key, shape, dtype: jnp.asarray(drawn, dtype)
        )
        u, l = (
            np.asarray(function(KEY, (3,), dtype), np.float64) for function in (uniform, logistic)
        )
    assert np.all((u > 0) & (u < 1)), u
    assert np.all(np.abs(u - drawn) <= epsilon), u - drawn
    assert np.isfinite(l).all(), l


def test_logistic_noise_is_logistic():
    assert stats.kstest(noise(logistic, DRAWS), "logistic").pvalue > 1e-3


@pytest.mark.slow
def test_bernoulli_does_not_draw_what_is_too_rare():
    """p = 1e-9, 2^25 times: a float32 uniform < p in one of 2^23, which are zero."""
    count = lambda key: Bernoulli(jnp.full(2**20, jnp.log(1e-9))).sample(key).sum()
    assert jax.jit(lambda key: jax.lax.map(count, jax.random.split(key, 32)).sum())(KEY) == 0


# Gradients of samples


def beta_moments(a: jax.Array, total: jax.Array) -> tuple[jax.Array, ...]:
    """E x, E x^2 and E log x of a coordinate."""
    return a / total, a * (a + 1) / (total * (total + 1)), digamma(a) - digamma(total)


# A distribution, functions of its samples, and their expectations.
MOMENTS = {
    "gamma": (
        lambda: Gamma(A([0.3, 1.0, 8.0]), A([0.5, 2.0, 4.0])),
        lambda z: (z, z**2, jnp.log(z)),
        lambda d: (
            d.concentration / d.rate,
            d.concentration * (d.concentration + 1) / d.rate**2,
            digamma(d.concentration) - jnp.log(d.rate),
        ),
    ),
    "beta": (
        lambda: Beta(A([0.6, 2.0, 9.0]), A([1.5, 0.7, 4.0])),
        lambda z: (z, z**2, jnp.log(z)),
        lambda d: beta_moments(d.concentration1, d.concentration1 + d.concentration0),
    ),
    "dirichlet": (
        lambda: Dirichlet(A([[0.7, 2.0, 5.0], [1.0, 1.0, 0.9]])),
        lambda z: (z, z**2, jnp.log(z)),
        lambda d: beta_moments(d.concentration, d.concentration.sum(-1, keepdims=True)),
    ),
    "student_t": (
        lambda: StudentT(A([9.0, 15.0]), A([0.7, -1.0]), A([0.5, 2.0])),
        lambda z: (z**2,),
        lambda d: (d.loc**2 + d.scale**2 * d.df / (d.df - 2),),
    ),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_gradients_of_samples_are_unbiased(name):
    make, functions, moments = MOMENTS[name]
    weights = A([1.0, -0.6, 0.3])[: make().event_shape[-1]]  # probabilities have a constant sum
    total = lambda values: jnp.stack([(weights * value).sum() for value in values])

    @quick
    def jacobians(d: Any, key: jax.Array) -> Any:
        each = jax.vmap(jax.jacrev(lambda d, key: total(functions(d.sample(key)))), (None, 0))
        return each(d, jax.random.split(key, DRAWS // 4)), jax.jacrev(lambda d: total(moments(d)))(
            d
        )

    drawn, exact = jacobians(make(), KEY)
    for estimates, expected in zip(jax.tree.leaves(drawn), jax.tree.leaves(exact), strict=True):
        assert largest_z(estimates, expected) < 4


def test_gamma_samples_have_implicit_gradients():
    """dz/da = -(dF/da) / p(z) for each."""
    a = np.array([0.1, 0.7, 3.0, 50.0, 1e4])
    sample = lambda a: Gamma(a, A(1.0)).sample(KEY, (64,))
    z, derivative = quick(lambda a: jax.jvp(sample, (a,), (jnp.ones_like(a),)))(A(a))
    z, step = np.asarray(z, np.float64), 1e-5 * a
    slope = (special.gammainc(a + step, z) - special.gammainc(a - step, z)) / (2 * step)
    np.testing.assert_allclose(derivative, -slope / stats.gamma.pdf(z, a), rtol=1e-3)


# Bernoulli and continuous Bernoulli at the ends of the log-odds, [N] values of each at once

EXTREMES = np.array([(1e4, 0.0), (1e4, 1.0), (-1e4, 0.0), (-1e4, 1.0)]).T
INTERIOR = np.array([(1e4, 0.25), (1e4, 0.9), (-1e4, 0.25), (-1e4, 0.9), (1e4, 1.0), (-1e4, 0.0)]).T
CB_POINTS = np.array(
    [0.0, 1e-6, -1e-6, 1e-3, 0.3, -0.3, 0.499999, 0.5, -0.5, 0.500001, 3.0, 30.0, -30.0]
)
precisions = pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])


@precisions
def test_bernoulli_is_exact_at_extreme_logits(x64):
    logits, x = EXTREMES
    with jax.enable_x64(x64):
        l, at = A(logits), A(x)
        total = lambda l: Bernoulli(l).log_prob(at)
        np.testing.assert_array_equal(
            jax.vmap(lambda l, x: Bernoulli(l).log_prob(x))(l, at), x * logits - logits.clip(0)
        )
        for derivative in (jax.grad, jax.jacfwd):
            np.testing.assert_array_equal(jax.jit(derivative(total))(l), x - (logits > 0))


@pytest.mark.parametrize("x", [0.0, 1.0])
def test_bernoulli_derivatives_around_zero_logits(x):
    logits = np.array([-30.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 30.0])
    p = special.expit(logits)
    total = lambda l: Bernoulli(l).log_prob(jnp.full(len(p), x))
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(jax.grad(total))(A(logits)), x - p, atol=1e-12)
        for hessian in (jax.jacfwd(jax.grad(total)), jax.jacrev(jax.jacfwd(total))):
            np.testing.assert_allclose(
                jax.jit(hessian)(A(logits)), np.diag(-p * (1 - p)), atol=1e-12
            )


@precisions
@pytest.mark.parametrize("size", [0, 1, 7, 64, 127, 784, 3072])
def test_bernoulli_sums_over_events_of_any_size(size, x64):
    """Logarithms are taken of products, which must neither overflow nor lose digits."""
    rng = np.random.default_rng(size)
    for logits in (
        rng.normal(size=size),
        rng.normal(size=size) * 30,
        np.full(size, 1e-4),
        np.full(size, 1e4),
    ):
        x = (rng.random(size) < 0.5).astype(float)
        expected = (x * logits - np.logaddexp(0, logits)).sum()
        with jax.enable_x64(x64):
            np.testing.assert_allclose(
                Bernoulli(A(logits)).log_prob(A(x)), expected, rtol=1e-12 if x64 else 2e-6
            )


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float16, 2e-3), (jnp.bfloat16, 2e-2)])
def test_bernoulli_in_half_precision(dtype, tolerance):
    """The products of 1 + e^0 = 2 stay below float16's largest number."""
    np.testing.assert_allclose(
        log_prob(Bernoulli(jnp.zeros(784, dtype)), jnp.ones(784)), -784 * np.log(2), tolerance
    )


def test_bernoulli_derivative_in_x_is_the_logits():
    logits = A([-40.0, -8.0, 0.0, 8.0, 40.0])
    np.testing.assert_array_equal(jax.grad(Bernoulli(logits).log_prob)(jnp.full(5, 0.3)), logits)


@pytest.mark.parametrize("value", [0, 1, True, np.uint8(1)], ids=repr)
def test_bernoulli_takes_pixels_of_any_type(value):
    expected = stats.bernoulli.logpmf(int(value), special.expit(0.3))
    np.testing.assert_allclose(
        log_prob(Bernoulli(A([0.3])), np.asarray([value])), expected, rtol=1e-5
    )


@jax.jit
def elementwise(d: Any, x: Any) -> tuple[jax.Array, jax.Array]:
    """Value and derivative in the logits, each [N]."""
    derivative = jax.grad(lambda logits: ContinuousBernoulli(logits).log_prob(x))(d.logits)
    return jax.vmap(lambda d, x: d.log_prob(x))(d, x), derivative


@precisions
def test_continuous_bernoulli_at_extreme_logits(x64):
    logits, x = INTERIOR
    with jax.enable_x64(x64):
        value, derivative = elementwise(ContinuousBernoulli(A(logits)), A(x))
    np.testing.assert_allclose(
        value, x * logits - logits.clip(0) + np.log(np.abs(logits)), rtol=1e-6
    )
    np.testing.assert_allclose(derivative, x - (logits > 0) + 1 / logits, atol=1e-6)


@precisions
def test_continuous_bernoulli_normalizer_mean_and_gradient(x64):
    mass, first = np.empty_like(CB_POINTS), np.empty_like(CB_POINTS)
    for i, logits in enumerate(CB_POINTS):
        unnormalized = lambda t, l=logits: np.exp(l * t - max(l, 0.0))
        mass[i] = integrate.quad(unnormalized, 0, 1, epsabs=0, epsrel=1e-12)[0]
        first[i] = (
            integrate.quad(lambda t, f=unnormalized: t * f(t), 0, 1, epsabs=0, epsrel=1e-12)[0]
            / mass[i]
        )
    with jax.enable_x64(x64):
        d = ContinuousBernoulli(A(CB_POINTS))
        value, derivative = elementwise(d, jnp.full(len(CB_POINTS), 0.3))
        mean = d.mean
    np.testing.assert_allclose(value, 0.3 * CB_POINTS - CB_POINTS.clip(0) - np.log(mass), atol=1e-5)
    np.testing.assert_allclose(mean, first, atol=1e-5)
    np.testing.assert_allclose(derivative, 0.3 - first, atol=1e-5)


def test_continuous_bernoulli_samples_follow_its_distribution_function():
    logits = np.array([0.0, 5e-4, 2e-3, -0.4, 30.0, -30.0, 1e4])
    drawn = np.asarray(many(ContinuousBernoulli(A(logits)), KEY), np.float64)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    upper = lambda l: lambda x: np.exp(l * (x - 1)) * np.expm1(-l * x) / np.expm1(-l) if l else x
    lower = lambda l: lambda x: np.expm1(l * x) / np.expm1(l)
    for x, l in zip(drawn.T, logits, strict=True):
        assert stats.kstest(x, upper(l) if l >= 0 else lower(l)).pvalue > 1e-4, l


# Discretized logistic


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_discretized_logistic_sums_to_one(levels):
    grid = np.meshgrid([-1.0, 0.5, 2.0], [1e-3, 0.1, 10.0])
    with jax.enable_x64(True):
        values = jnp.arange(levels) / (levels - 1)
        log_density = quick(jax.vmap(lambda d, x: d.log_density(x), (None, 0)))
        total = jnp.exp(log_density(DiscretizedLogistic(*map(A, grid), levels), values)).sum(0)
    np.testing.assert_allclose(total, 1.0, atol=1e-9)


@precisions
def test_discretized_logistic_tails_are_exact(x64):
    """Where the difference of the distribution function is zero in float32, for most of these."""
    loc = np.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.5, 0.5])
    x = np.array([255, 250, 0, 5, 128, 128, 0]) / 255
    expected = discretized_logistic_logpmf(x, loc, 1 / 128, 256)
    with jax.enable_x64(x64):
        d = DiscretizedLogistic(A(loc), jnp.full(7, 1 / 128), 256)
        got, gradient = d.log_density(A(x)), jax.jit(jax.grad(log_prob))(d, A(x))
    assert (expected < -60).sum() == 6
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert bool(jnp.isfinite(gradient.loc).all())
    assert bool(jnp.isfinite(gradient.scale).all())


def test_discretized_logistic_values_are_its_levels():
    x = np.asarray(many(DiscretizedLogistic(A([-0.5, 0.5, 1.5]), A([0.5]), 16), KEY))
    np.testing.assert_allclose(x * 15, np.round(x * 15), atol=1e-4)
    assert x.min() == 0
    assert x.max() == 1


# Negative binomial


@pytest.mark.parametrize("count", [0.01, 1.0, 30.0, 1e3, 1e5])
def test_negative_binomial_in_float32(count):
    """The mean is 10; a large total count is the Poisson limit."""
    count, logits = np.float32(count), np.log(np.float32(10 / count))
    x = np.array([0.0, 1.0, 8.0, 20.0, 100.0, 1000.0])
    got = NegativeBinomial(jnp.asarray(count), jnp.asarray(logits)).log_density(
        jnp.asarray(x, jnp.float32)
    )
    expected = negative_binomial_logpmf(x, np.float64(count), np.float64(logits))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("x", [0, 3])
def test_zero_inflated_negative_binomial_agrees_with_numpyro(x):
    with jax.enable_x64(True):
        count, logits, gate = A([0.5, 4.0]), A([0.3, -1.0]), A([-0.7, 9.0])
        oracle = nd.ZeroInflatedDistribution(
            nd.NegativeBinomialLogits(count, logits), gate_logits=gate
        )
        got = ZeroInflatedNegativeBinomial(count, logits, gate).log_density(jnp.full(2, x))
        np.testing.assert_allclose(got, oracle.log_prob(jnp.full(2, x)), atol=1e-5)


# Student's t


def test_student_t_in_float32():
    """Many degrees of freedom are the normal limit."""
    df, x = np.array([[0.5], [1.0], [30.0], [1e3], [1e5], [1e7]]), np.array([0.0, 0.5, -3.0, 20.0])
    got = StudentT(A(df), A(0.3), A(0.5)).log_density(A(x))
    np.testing.assert_allclose(got, stats.t.logpdf(x, df, 0.3, 0.5), rtol=1e-5, atol=1e-5)


def test_student_t_has_a_mean_above_one_degree_of_freedom():
    np.testing.assert_allclose(
        StudentT(A([0.5, 1.0, 1.1]), A(0.3), A(2.0)).mean, [np.nan, np.nan, 0.3], rtol=1e-6
    )


# Mixture


@pytest.mark.parametrize("name", ["mixture_stacked", "mixture_of_families", "mixture_of_numpyro"])
def test_mixture_far_from_every_component_is_finite(name):
    far = np.full((8, 2), 100.0, np.float32)
    values, gradients = each_log_prob(MEMBERS[name].make(), far)
    np.testing.assert_allclose(values, oracles(name, far), rtol=1e-5)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


# Likelihoods

IMAGE = (3, 4, 2)
LEVELS = 16
FAMILIES = {
    name: make(LEVELS) if "levels" in inspect.signature(make).parameters else make()
    for name, make in LIKELIHOODS.items()
}
families = pytest.mark.parametrize("name", FAMILIES)
VALUES = {
    ("dynamic", "static"): lambda x: np.isin(x, (0, 1)),
    ("scale",): lambda x: (
        np.isclose(x * (LEVELS - 1), np.round(x * (LEVELS - 1)), atol=1e-4) & (x >= 0) & (x <= 1)
    ),
    ("dequantize", "scale"): lambda x: (x >= 0) & (x <= 1),
    ("dequantize", "scale", "none"): np.isfinite,
    ("counts",): lambda x: (x >= 0) & (x == np.round(x)),
}


def likelihood_of(name: str, raw: jax.Array) -> Any:
    return FAMILIES[name].of_outputs(FAMILIES[name].init(KEY), raw)


def raw_of(name: str) -> jax.Array:
    shape = FAMILIES[name].outputs(IMAGE)
    return jnp.asarray(np.random.default_rng(0).normal(0, 0.5, shape), jnp.float32)


@cache
def image_draws(name: str) -> np.ndarray:
    return np.asarray(
        quick(lambda raw, key: likelihood_of(name, raw).sample(key, (64,)))(raw_of(name), KEY)
    )


@cache
def image_log_probs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The log-density of each draw, [64], and the gradient of their sum in the raw numbers."""

    def total(raw: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = likelihood_of(name, raw).log_prob(x)
        return values.sum(), values

    (_, values), gradient = quick(jax.value_and_grad(total, has_aux=True))(
        raw_of(name), image_draws(name)
    )
    return np.asarray(values), np.asarray(gradient)


@families
def test_likelihood_of_an_image(name):
    d = likelihood_of(name, raw_of(name))
    values, gradient = image_log_probs(name)
    assert d.event_shape == d.mean.shape == IMAGE
    assert image_draws(name).shape == (64, *IMAGE)
    assert values.shape == (64,)
    assert np.isfinite(values).all()
    assert np.isfinite(gradient).all()
    assert np.any(gradient != 0, axis=(0, 1)).all()


@families
def test_likelihood_is_discrete_when_its_log_prob_is_a_log_probability(name):
    if FAMILIES[name].discrete:
        assert image_log_probs(name)[0].max() <= 0.0
    else:
        narrow = likelihood_of(name, jnp.full(FAMILIES[name].outputs(IMAGE), -5.0))
        assert float(log_prob(narrow, narrow.mean)) > 0.0


@families
def test_likelihood_pixels_are_drawn_apart(name):
    columns = image_draws(name).reshape(64, -1)
    assert len(np.unique(columns, axis=1).T) == columns.shape[1]


@families
def test_likelihood_samples_are_values_of_its_support(name):
    support = FAMILIES[name].support
    assert set(support) <= set(datasets.PREPROCESSING)
    assert VALUES[support](image_draws(name)).all()


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_normal_likelihood_needs_a_scale(scale):
    with pytest.raises(ValueError, match=str(scale)):
        normal(scale)


# Posteriors

latents = pytest.mark.parametrize("latent", [1, 2, 5])
DIRECT = {
    name: make
    for name, make in POSTERIORS.items()
    if name not in ("power_spherical", "von_mises_fisher")
}
posteriors = pytest.mark.parametrize(
    "posterior", DIRECT.values(), ids=DIRECT
)  # those that normalize no direction
gaussians = pytest.mark.parametrize("name", ["normal", "multivariate_normal"])


@latents
@gaussians
def test_posterior_of_zeros_is_standard_normal(name, latent):
    family = POSTERIORS[name](latent)
    d = family.make({}, jnp.zeros(family.size))
    assert d.event_shape == (latent,)
    assert jax.eval_shape(lambda d: d.sample(KEY, (7,)), d).shape == (7, latent)
    z = np.random.default_rng(0).normal(size=(7, latent))
    np.testing.assert_allclose(log_prob(d, z), stats.norm.logpdf(z).sum(-1), rtol=1e-5)


@latents
@pytest.mark.parametrize("name, classes", [("bernoulli", 2), ("categorical", 10)])
def test_discrete_posterior_of_zeros_is_uniform(name, classes, latent):
    family = POSTERIORS[name](latent)
    d = family.make({}, jnp.zeros(family.size))
    z = np.eye(classes)[:latent] if name == "categorical" else np.eye(latent)[0]
    np.testing.assert_allclose(log_prob(d, z), -latent * np.log(classes), rtol=1e-5)


@latents
@posteriors
def test_posterior_uses_every_number_once(posterior, latent):
    """But for the scales of a full covariance, of which each is in all entries of its row."""
    family = posterior(latent)
    leaves = lambda raw: ravel_pytree(family.make({}, raw))[0]
    jacobian = jax.jit(jax.jacfwd(leaves))(np.random.default_rng(0).normal(0, 0.3, family.size))
    assert np.linalg.matrix_rank(jacobian) == family.size
    again = latent * (latent - 1) // 2 if posterior is multivariate_normal else 0
    assert int((jacobian != 0).sum()) == family.size + again


def test_a_full_covariance_does_not_explode_where_an_encoder_extrapolates():
    """At 12 deviations a linear encoder gives such numbers; e^12 drowned the other examples."""
    family = multivariate_normal(3)
    make = lambda r: jnp.diagonal(family.make({}, jnp.full(family.size, r)).scale_tril)
    np.testing.assert_allclose(make(12.0), 13, rtol=1e-6)
    np.testing.assert_allclose(make(-5.0), np.exp(-5), rtol=1e-6)
    slope = jax.vmap(jax.grad(lambda r: make(r)[0]))
    np.testing.assert_allclose(slope(jnp.array([-1e-3, 0.0, 1e-3, 90.0])), 1, atol=2e-3)


@latents
def test_multivariate_normal_posterior_has_a_cholesky_factor(latent):
    family = multivariate_normal(latent)
    raw = np.random.default_rng(0).normal(size=family.size)
    loc, raw_scale, rest = np.split(raw, [latent, 2 * latent])
    factor = np.eye(latent)
    factor[np.tril_indices(latent, -1)] = rest
    factor = np.diag(np.where(raw_scale < 0, np.exp(raw_scale), 1 + raw_scale)) @ factor
    d = family.make({}, jnp.asarray(raw, jnp.float32))
    np.testing.assert_allclose(d.scale_tril, factor, rtol=1e-5)
    assert np.all(np.diag(d.scale_tril) > 0)
    residual = np.asarray(many(d, KEY)) - loc
    assert largest_z(residual[:, :, None] * residual[:, None, :], factor @ factor.T) < Z_BOUND
    expected = stats.multivariate_normal(loc, factor @ factor.T).logpdf(loc + 0.3)
    np.testing.assert_allclose(d.log_prob(d.loc + 0.3), expected, rtol=1e-4)
