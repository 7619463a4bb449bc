"""Distributions on the sphere: SciPy's Bessel functions and von Mises-Fisher, and quadrature, as
the oracles.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from jaxvae import posteriors, priors
from jaxvae.distributions import (
    Distribution,
    Independent,
    PowerSpherical,
    SphericalUniform,
    VonMisesFisher,
)
from jaxvae.distributions.spherical import log_area, log_bessel_partition
from jaxvae.divergences import has_closed_form, kl, kl_per_latent

KEY = jax.random.key(0)
Z_BOUND = 5.0
DRAWS = 4000
A = jnp.array
quick = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)

CONCENTRATIONS = np.float32(np.logspace(-3, 4, 15))
SIZES = (2, 3, 5, 10, 50, 100)
TILTED = {"power_spherical": PowerSpherical, "von_mises_fisher": VonMisesFisher}
tilted = pytest.mark.parametrize("family", TILTED.values(), ids=TILTED)
precisions = pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
# what is sampled, from uniform to narrow
SAMPLED, GRID = (2, 40), (0.5, 8.0, 300.0, 0.0, 1e-3, 1e4)
sampled = lambda test: tilted(pytest.mark.parametrize("size", SAMPLED)(test))
cells = pytest.mark.parametrize("cell", [0, 1, 2])
CASES = [(2, 0.5), (3, 300.0), (5, 8.0), (40, 12.0)]
cases = pytest.mark.parametrize("size, concentration", CASES)


def unit(size: int, seed: int = 0) -> np.ndarray:
    v = np.random.default_rng(seed).normal(size=size)
    return v / np.linalg.norm(v)


def log_density(family: type, size: int, t: Any, concentration: float) -> Any:
    """The density over the sphere at loc^T x = t, from the papers' normalizers."""
    if family is VonMisesFisher:
        order = size / 2 - 1
        bessel = np.log(special.ive(order, concentration)) + concentration
        return (
            order * np.log(concentration)
            - size / 2 * np.log(2 * np.pi)
            - bessel
            + concentration * t
        )
    a, b = (size - 1) / 2 + concentration, (size - 1) / 2
    constant = (a + b) * np.log(2) + b * np.log(np.pi) + special.gammaln(a) - special.gammaln(a + b)
    return concentration * np.log1p(t) - constant


def along(
    family: type, size: int, concentration: float, of: Any, ends: tuple[float, float] = (0.0, np.pi)
) -> float:
    """The integral over the sphere of p(x) of(t), between two angles from loc."""
    width = 1 / np.sqrt(concentration + size)
    peak = np.arctan2(np.sqrt(size - 1), np.sqrt(concentration))
    cuts = np.clip([ends[0], *(peak + width * np.array([-8, -4, 0, 4, 8])), ends[1]], *ends)

    def integrand(angle: float) -> float:
        t = np.cos(angle)
        ring = log_area(size - 1) if size > 2 else np.log(2)
        return (
            np.exp(ring + log_density(family, size, t, concentration))
            * np.sin(angle) ** (size - 2)
            * of(t)
        )

    return sum(
        integrate.quad(integrand, a, b, epsabs=1e-12, epsrel=1e-9)[0]
        for a, b in pairwise(cuts)
        if b > a
    )


class Draws(NamedTuple):
    """Samples at every one of GRID, and how they move."""

    raw: np.ndarray  # [D], the direction before it is normalized
    turn: np.ndarray  # [D], in which it moves
    x: np.ndarray  # [G, N, D]
    by_concentration: np.ndarray
    by_turn: np.ndarray


@cache
def draws(family: type, size: int) -> Draws:
    raw, turn = 1.7 * unit(size), np.random.default_rng(4).normal(size=size)

    @quick
    def sampled(raw: jax.Array, turn: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        def one(k: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
            x = lambda raw, k: family(raw / jnp.linalg.norm(raw), k).sample(key)
            value, along_k = jax.jvp(partial(x, raw), (k,), (jnp.ones(()),))
            return value, along_k, jax.jvp(lambda raw: x(raw, k), (raw,), (turn,))[1]

        keys = jax.random.split(key, (len(GRID), DRAWS))
        return jax.vmap(jax.vmap(one, (None, 0)))(A(GRID), keys)

    out = sampled(A(raw, jnp.float32), A(turn, jnp.float32), KEY)
    return Draws(raw, turn, *(np.asarray(leaf, np.float64) for leaf in out))


def largest_z(values: np.ndarray, expected: Any) -> float:
    """Over coordinates, of the mean of ``values [N, ...]``, give or take a rounding error."""
    spread = values.std(0) / np.sqrt(len(values))
    return float(np.max(np.abs(values.mean(0) - expected) / (spread + 1e-6)))


# Normalizers


@quick
def partitions(k: jax.Array) -> list:
    """A(k), A'(k) and A''(k) of concentrations k [N] in every dimension of SIZES."""

    def each(size: int) -> Any:
        function = partial(log_bessel_partition, dimensions=size)
        return jax.vmap(
            lambda k: (function(k), jax.grad(function)(k), jax.grad(jax.grad(function))(k))
        )(k)

    return [each(size) for size in SIZES]


@precisions
def test_partition_agrees_with_bessel_functions(x64):
    """By I_v, the ratio I_(v+1) / I_v, and the variance of t."""
    k, rtol = CONCENTRATIONS.astype(float), 1e-6 if x64 else 1e-5
    with jax.enable_x64(x64):
        found = partitions(A(k))
    for size, (value, slope, curvature) in zip(SIZES, found, strict=True):
        order = size / 2 - 1
        bessel, ratio = special.ive(order, k), special.ive(order + 1, k) / special.ive(order, k)
        expected = special.gammaln(size / 2) - order * np.log(k / 2) + np.log(bessel)
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e-8 if x64 else 1e-6)
        np.testing.assert_allclose(-slope, 1 - ratio, rtol=rtol)
        np.testing.assert_allclose(curvature, 1 - ratio**2 - (size - 1) / k * ratio, rtol=5 * rtol)


def test_partition_at_its_ends():
    """A(0) = 0, A'(0) = -1 and A''(0) = 1/D; at k = 1e8 it is -(D-1)/2 log k and a constant."""
    for size, (value, slope, curvature) in zip(
        SIZES, partitions(A(np.repeat([0.0, 1e8], [14, 1]))), strict=True
    ):
        np.testing.assert_allclose(value[0], 0.0, atol=2e-6)
        np.testing.assert_allclose(slope[0], -1.0, rtol=1e-6)
        np.testing.assert_allclose(curvature[0], 1 / size, rtol=1e-5)
        flat = special.gammaln(size / 2) + (size / 2 - 1) * np.log(2) - 0.5 * np.log(2 * np.pi)
        np.testing.assert_allclose(value[-1], flat - (size - 1) / 2 * np.log(1e8), rtol=1e-6)


@quick
def facts(d: Any, x: jax.Array) -> tuple:
    return d.log_prob(x), d.mean, d.entropy, kl(d, SphericalUniform(d.dimensions))


@pytest.mark.parametrize("size", [2, 50])
def test_von_mises_fisher_agrees_with_scipy(size):
    for concentration in (0.3, 20.0, 1e3):
        oracle = stats.vonmises_fisher(unit(size), concentration)
        x = oracle.rvs(4, random_state=1).reshape(4, size)
        for x64 in (True, False):
            with jax.enable_x64(x64):
                log_prob, _, entropy, _ = facts(
                    VonMisesFisher(A(unit(size)), A(concentration)), A(x)
                )
            np.testing.assert_allclose(
                log_prob, oracle.logpdf(x), rtol=1e-5, atol=1e-6 if x64 else 1e-4
            )
            np.testing.assert_allclose(
                entropy, oracle.entropy(), rtol=1e-5, atol=1e-6 if x64 else 1e-4
            )


@tilted
@cases
def test_density_mean_and_entropy(family, size, concentration):
    with jax.enable_x64(True):
        loc, across = unit(size), unit(size, 1)
        across = across - loc * (loc @ across)
        angles = np.array([0.0, 0.01, 0.5, 2.0, 3.1])
        x = np.cos(angles)[:, None] * loc + np.sin(angles)[:, None] * across / np.linalg.norm(
            across
        )
        got, mean, entropy, divergence = facts(family(A(loc), A(concentration)), A(x))
    np.testing.assert_allclose(
        got, log_density(family, size, np.cos(angles), concentration), rtol=1e-6, atol=1e-6
    )
    log_p = lambda t: log_density(family, size, t, concentration)
    np.testing.assert_allclose(along(family, size, concentration, lambda t: 1.0), 1.0, rtol=1e-7)
    np.testing.assert_allclose(
        mean, along(family, size, concentration, lambda t: t) * loc, rtol=1e-6, atol=1e-9
    )
    expected = -along(family, size, concentration, lambda t: log_p(t))
    np.testing.assert_allclose(entropy, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(divergence, log_area(size) - expected, rtol=1e-5, atol=1e-6)


def test_uniform_density_is_one_over_the_area():
    """2 pi, 4 pi and 2 pi^2."""
    for size, area in ((2, 2 * np.pi), (3, 4 * np.pi), (4, 2 * np.pi**2)):
        d = SphericalUniform(size)
        np.testing.assert_allclose(d.log_prob(A(unit(size))), -np.log(area), rtol=1e-6)
        np.testing.assert_allclose(d.entropy, np.log(area), rtol=1e-6)
        x = np.asarray(quick(lambda d=d: d.sample(KEY, (20_000,)))())
        assert largest_z(x, 0.0) < Z_BOUND
        assert largest_z(x[:, :, None] * x[:, None, :], np.eye(size) / size) < Z_BOUND


@tilted
def test_zero_concentration_is_uniform(family):
    log_prob, mean, _, divergence = facts(family(A(unit(3)), A(0.0)), A(np.eye(3), jnp.float32))
    np.testing.assert_allclose(log_prob, -np.log(4 * np.pi), rtol=1e-5)
    np.testing.assert_allclose(mean, np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(divergence, 0.0, atol=1e-6)


def test_power_spherical_at_the_poles_in_float32():
    """Near loc 1 + t is 2, near -loc it is |x + loc|^2 / 2: neither cancels."""
    loc, angles = np.array([1.0, 0.0]), np.array([1e-4, 1e-2, 1.5, np.pi - 1e-2, np.pi - 1e-4])
    x = np.stack([-np.cos(np.pi - angles), np.sin(np.pi - angles)], -1)
    expected = 200 * np.log(np.cos(angles / 2))  # relative to the mode
    got = facts(PowerSpherical(A(loc), A(100.0)), A(np.stack([loc, *x]), jnp.float32))[0]
    np.testing.assert_allclose(got[1:] - got[0], expected, rtol=1e-5, atol=1e-5)


# Samples


@sampled
def test_samples_and_their_gradients_are_finite(family, size):
    got = draws(family, size)
    np.testing.assert_allclose(np.linalg.norm(got.x, axis=-1), 1.0, atol=2e-6)
    assert np.isfinite(got.by_concentration).all()
    assert np.isfinite(got.by_turn).all()


@sampled
@cells
def test_samples_follow_their_density(family, size, cell):
    x, loc = draws(family, size).x[cell], unit(size)
    angles = np.sort(np.arccos(np.clip(x @ loc, -1, 1)))
    at = angles[DRAWS // 20 :: DRAWS // 10]
    below = np.cumsum(
        [along(family, size, GRID[cell], lambda t: 1.0, pair) for pair in pairwise([0.0, *at])]
    )
    observed = np.searchsorted(angles, at, side="right") / DRAWS
    assert np.max(np.abs(observed - below) / np.sqrt(below * (1 - below) / DRAWS)) < Z_BOUND


@sampled
@cells
def test_samples_and_their_gradients_have_their_moments(family, size, cell):
    """E x, E x x^T, and the derivatives of E a^T x and E (a^T x)^2 in direction and
    concentration.
    """
    got, loc, step = draws(family, size), unit(size), 1e-4
    x, a = got.x[cell], np.random.default_rng(2).normal(size=size)

    def moments(k: float, loc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, second = (along(family, size, k, lambda t, n=n: t**n) for n in (1, 2))
        around = np.eye(size) - np.outer(loc, loc)
        return first * loc, second * np.outer(loc, loc) + (1 - second) / (size - 1) * around

    mean, square = moments(GRID[cell], loc)
    assert largest_z(x, mean) < Z_BOUND
    assert largest_z(x[:, :, None] * x[:, None, :], square) < Z_BOUND
    along_turn = [got.raw + sign * step * got.turn for sign in (1, -1)]
    directions = [moments(GRID[cell], v / np.linalg.norm(v)) for v in along_turn]
    concentrations = [moments(GRID[cell] * (1 + sign * step), loc) for sign in (1, -1)]
    for motion, (above, under), by in (
        (got.by_turn[cell], directions, step),
        (got.by_concentration[cell], concentrations, step * GRID[cell]),
    ):
        linear, quadratic = (
            a @ (above[0] - under[0]) / (2 * by),
            a @ (above[1] - under[1]) @ a / (2 * by),
        )
        assert largest_z(motion @ a, linear) < Z_BOUND
        assert largest_z(2 * (x @ a) * (motion @ a), quadratic) < Z_BOUND


@pytest.mark.parametrize("size", SAMPLED)
@cells
def test_von_mises_fisher_samples_move_with_their_distribution_function(size, cell):
    """dt/dk = -(dF/dk) / p(t) for each, F by quadrature and its derivative by differences."""
    got, k, loc = draws(VonMisesFisher, size), GRID[cell], unit(size)
    ring, step = np.exp(log_area(size - 1)) if size > 2 else 2.0, 1e-3 * k
    x, slopes = got.x[cell, :6], got.by_concentration[cell, :6] @ loc
    for angle, slope in zip(
        2 * np.arcsin(np.linalg.norm(x - loc, axis=-1) / 2), slopes, strict=True
    ):
        t = np.cos(angle)
        below = lambda k, angle=angle: along(VonMisesFisher, size, k, lambda t: 1.0, (angle, np.pi))
        density = (
            ring * np.sin(angle) ** (size - 3) * np.exp(log_density(VonMisesFisher, size, t, k))
        )
        expected = -(below(k + step) - below(k - step)) / (2 * step) / density
        np.testing.assert_allclose(slope, expected, rtol=5e-3)


# The contract


@tilted
def test_spherical_families_are_distributions(family):
    d = family(A(unit(4)), A(2.0))
    assert isinstance(d, Distribution)
    for shape in ((), (5,), (2, 3)):
        x = jax.eval_shape(lambda d, shape=shape: d.sample(KEY, shape), d)
        assert x.shape == (*shape, 4)
        assert jax.eval_shape(d.log_prob, x).shape == shape
    with pytest.raises(ValueError, match=r"\(5,\).*\(4,\)"):
        d.log_prob(jnp.zeros(5))


def test_a_product_of_spheres_is_an_independent_of_one():
    locs = A(np.stack([unit(3), unit(3, 1)]))
    d = Independent(VonMisesFisher(locs, A([2.0, 9.0])))
    total = lambda d: d.sample(KEY).sum()
    x, gradient = quick(lambda d: (d.sample(KEY), jax.grad(total)(d)))(d)
    assert x.shape == (2, 3)
    assert all(np.isfinite(leaf).all() and np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
    expected = [stats.vonmises_fisher(unit(3, i), k).logpdf(x[i]) for i, k in enumerate((2.0, 9.0))]
    np.testing.assert_allclose(quick(lambda d, x: d.log_prob(x))(d, x), sum(expected), rtol=1e-5)


ONE = {
    "power_spherical": lambda: PowerSpherical(jnp.ones(1), A(2.0)).sample(KEY),
    "von_mises_fisher": lambda: VonMisesFisher(jnp.ones(1), A(2.0)).log_prob(jnp.ones(1)),
    "uniform": lambda: SphericalUniform(1).sample(KEY),
    "batch": lambda: VonMisesFisher(jnp.ones((4, 3)), jnp.ones(4)).sample(KEY),
    "posterior": lambda: posteriors.von_mises_fisher(1),
    "prior": lambda: priors.spherical_uniform(1),
}


@pytest.mark.parametrize("name", ONE)
def test_what_is_no_sphere_is_refused(name):
    with pytest.raises(ValueError, match=r"was \(?1|was \(4, 3\)"):
        ONE[name]()


@pytest.mark.parametrize("name", TILTED)
def test_posterior_and_its_prior(name):
    family = posteriors.POSTERIORS[name](4)
    prior = family.prior(4)
    assert family.size == 5
    raw = np.random.default_rng(0).normal(size=5)
    q, p = family.make({}, A(raw)), prior.make(prior.init(KEY))
    np.testing.assert_allclose(q.loc, raw[:4] / np.linalg.norm(raw[:4]), rtol=1e-5)
    np.testing.assert_allclose(q.concentration, 1 + np.logaddexp(0, raw[4]), rtol=1e-5)
    assert q.event_shape == p.event_shape == (4,)
    assert has_closed_form(q, p)
    assert kl_per_latent(q, p) is None


@pytest.mark.parametrize("name", TILTED)
def test_posterior_of_any_length_has_a_direction(name):
    family = posteriors.POSTERIORS[name](3)
    raw = np.append(np.array([[0.0], [1e-12], [1e-8], [1e8]]) * unit(3), np.zeros((4, 1)), -1)
    direction = lambda raw: family.make({}, raw).loc
    locs, jacobians = quick(jax.vmap(lambda raw: (direction(raw), jax.jacrev(direction)(raw))))(
        A(raw, jnp.float32)
    )
    np.testing.assert_allclose(np.linalg.norm(locs, axis=-1), 1.0, rtol=1e-6)
    assert np.isfinite(jacobians).all()
    assert np.abs(jacobians).max((1, 2)).min() > 0
