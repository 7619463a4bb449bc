"""Divergences between samples: every member against sums over pairs in NumPy, SciPy in one
dimension, closed forms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, special, stats
from scipy.spatial import distance

from jaxvae import divergences
from jaxvae.divergences import (
    DIVERGENCES,
    biased_mmd,
    imq,
    imq_sum,
    mmd,
    negative_distance,
    rbf,
    sliced_wasserstein,
)

KEY = jax.random.key(0)
Z_BOUND = 5.0
A = jnp.array
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

N, D = 7, 3
Z, OTHER = np.random.default_rng(0).normal(size=(2, N, D))
Z = Z * [0.5, 1.0, 1.5] + [0.3, -0.5, 0.0]
WEIGHT = np.full(N, 1 / N)
PADDED = np.array([0, 3, 4, 9])  # rows of padding among eleven
ROWS = np.setdiff1d(np.arange(N + len(PADDED)), PADDED)


def discrepancy(kernel: Callable, z: np.ndarray, other: np.ndarray, biased: bool = False) -> float:
    """Squared maximum mean discrepancy, one pair after the other."""
    pairs = lambda a, b, skip: np.mean(
        [kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if i != j or not skip]
    )
    return pairs(z, z, not biased) + pairs(other, other, not biased) - 2 * pairs(z, other, False)


def imq_oracle(z: np.ndarray, other: np.ndarray, c: float = 6.0) -> float:
    return c / (c + distance.sqeuclidean(z, other))


def imq_sum_oracle(z: np.ndarray, other: np.ndarray) -> float:
    return sum(imq_oracle(z, other, 6.0 * m) for m in [0.1, 0.2, 0.5, 1, 2, 5, 10])


def rbf_oracle(z: np.ndarray, other: np.ndarray, variance: float = 3.0) -> float:
    return np.exp(-distance.sqeuclidean(z, other) / (2 * variance))


def laplacian(z: jax.Array, other: jax.Array) -> jax.Array:
    """A kernel as a user would write it."""
    return jnp.exp(-jnp.abs(z - other).sum() / 2)


def energy_oracle(z: np.ndarray, other: np.ndarray) -> float:
    return (
        2 * distance.cdist(z, other).mean()
        - distance.pdist(z).mean()
        - distance.pdist(other).mean()
    )


def gamma_ratio(d: int) -> float:
    return float(np.exp(special.gammaln((d + 1) / 2) - special.gammaln(d / 2)))


def radon_sobolev_oracle(z: np.ndarray, other: np.ndarray) -> float:
    d = z.shape[1]
    to_normal = np.sqrt(2) * gamma_ratio(d) * special.hyp1f1(-0.5, d / 2, -np.square(z).sum(1) / 2)
    return to_normal.mean() - distance.pdist(z).mean() / 2 - gamma_ratio(d)


def asymptotic(s: np.ndarray, d: int) -> np.ndarray:
    """What the Cramér-Wold autoencoder takes for 1F1(1/2; d/2; -s)."""
    return (1 + 4 * s / (2 * d - 3)) ** -0.5


def confluent(s: np.ndarray, d: int) -> np.ndarray:
    return special.hyp1f1(0.5, d / 2, -s)


def cramer_wold_oracle(z: np.ndarray, other: Any, phi: Callable = asymptotic) -> float:
    """<f, f> + <g, g> - 2 <f, g>, f a mixture of N(z_i, g I) and g = N(0, (1 + g) I), smoothed
    projections.

    <N(x, a I), N(y, b I)> = (2 pi (a + b))^-1/2 phi(|x - y|^2 / (2 (a + b))); ``other`` may be a
    sample, or None.
    """
    n, d = z.shape
    smoothing = (4 / (3 * n)) ** (2 / 5)
    product = lambda square, variance: (
        phi(square / (2 * variance), d) / np.sqrt(2 * np.pi * variance)
    )
    within = product(distance.cdist(z, z, "sqeuclidean"), 2 * smoothing).mean()
    if other is None:
        normal = product(np.zeros(()), 2 * smoothing + 2)
        return within + normal - 2 * product(np.square(z).sum(1), 2 * smoothing + 1).mean()
    among = product(distance.cdist(other, other, "sqeuclidean"), 2 * smoothing).mean()
    return (
        within + among - 2 * product(distance.cdist(z, other, "sqeuclidean"), 2 * smoothing).mean()
    )


class Member(NamedTuple):
    """A divergence under test."""

    member: Callable
    oracle: Callable[[np.ndarray, np.ndarray], float] | None  # None: random projections
    zero: bool = False  # of equal sets
    symmetric: bool = True


MEMBERS = {
    "mmd_imq": Member(DIVERGENCES["mmd_imq"], partial(discrepancy, imq_oracle)),
    "mmd_imq_sum": Member(DIVERGENCES["mmd_imq_sum"], partial(discrepancy, imq_sum_oracle)),
    "mmd_rbf": Member(DIVERGENCES["mmd_rbf"], partial(discrepancy, rbf_oracle)),
    "energy_distance": Member(DIVERGENCES["energy_distance"], energy_oracle),
    "radon_sobolev": Member(DIVERGENCES["radon_sobolev"], radon_sobolev_oracle, symmetric=False),
    "sliced_wasserstein": Member(DIVERGENCES["sliced_wasserstein"], None, zero=True),
    "cramer_wold": Member(
        DIVERGENCES["cramer_wold"], lambda z, other: cramer_wold_oracle(z, None), symmetric=False
    ),
    "cramer_wold_two_sample": Member(
        DIVERGENCES["cramer_wold_two_sample"], cramer_wold_oracle, zero=True
    ),
    "mmd_imq_scaled": Member(mmd(imq(0.7)), partial(discrepancy, partial(imq_oracle, c=6 * 0.49))),
    "mmd_rbf_short": Member(
        mmd(rbf(0.5)), partial(discrepancy, partial(rbf_oracle, variance=0.25))
    ),
    "mmd_user": Member(
        mmd(laplacian),
        partial(discrepancy, lambda z, other: np.exp(-distance.cityblock(z, other) / 2)),
    ),
    "biased_mmd_rbf": Member(
        biased_mmd(rbf()), partial(discrepancy, rbf_oracle, biased=True), zero=True
    ),
    "biased_mmd_imq_sum": Member(
        biased_mmd(imq_sum()), partial(discrepancy, imq_sum_oracle, biased=True), zero=True
    ),
    "biased_energy_distance": Member(
        biased_mmd(negative_distance),
        partial(discrepancy, lambda z, other: -distance.euclidean(z, other), biased=True),
        zero=True,
    ),
}
members = pytest.mark.parametrize("name", MEMBERS)
with_oracle = pytest.mark.parametrize(
    "name", [name for name, member in MEMBERS.items() if member.oracle]
)


@cache
def compiled(name: str) -> Callable:
    """(key, z, other, weight) -> (value, gradients in z and other)."""
    return quick(jax.value_and_grad(MEMBERS[name].member, (1, 2)))


def padded(z: np.ndarray, filling: Any) -> np.ndarray:
    """Eleven rows, of which four hold ``filling``."""
    rows = np.empty((N + len(PADDED), *z.shape[1:]), np.float32)
    rows[PADDED], rows[ROWS] = filling, z
    return rows


def value(name: str, z: Any, other: Any, filling: Any = 0.0, key: jax.Array = KEY) -> Any:
    return compiled(name)(key, padded(z, filling), padded(other, filling), padded(WEIGHT, 0.0))


def once(member: Callable, *args: Any) -> Any:
    """The member compiled for these arguments, with the same key."""
    return quick(member)(KEY, *(jnp.asarray(a, jnp.float32) for a in args))


def z_score(values: Any, expected: float) -> float:
    values = np.asarray(values, np.float64)
    return float(abs(values.mean() - expected) / (values.std() / np.sqrt(len(values))))


# Every member


@with_oracle
def test_agrees_with_its_oracle(name):
    got, _ = value(name, Z, OTHER)
    assert got.shape == () and got.dtype == jnp.float32
    np.testing.assert_allclose(got, MEMBERS[name].oracle(Z, OTHER), rtol=1e-5, atol=2e-6)


@members
def test_padding_does_not_matter_whatever_it_holds(name):
    expected, (slope_z, slope_other) = value(name, Z, OTHER)
    assert not slope_z[PADDED].any() and not slope_other[PADDED].any()
    for filling in (1e30, np.nan):
        got, slopes = value(name, Z, OTHER, filling)
        assert got == expected
        np.testing.assert_array_equal(slopes, [slope_z, slope_other])
    alone, slopes = compiled(name)(KEY, *(np.float32(a) for a in (Z, OTHER, WEIGHT)))
    np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=5e-6)
    np.testing.assert_allclose(slopes, [slope_z[ROWS], slope_other[ROWS]], rtol=1e-4, atol=1e-6)


@members
def test_order_does_not_matter(name):
    shuffled = value(name, Z[[3, 0, 6, 1, 5, 2, 4]], OTHER[[1, 5, 4, 0, 2, 6, 3]])[0]
    np.testing.assert_allclose(shuffled, value(name, Z, OTHER)[0], rtol=1e-5, atol=5e-6)


@members
def test_exchanging_the_sets(name):
    exchanged, straight = value(name, OTHER, Z)[0], value(name, Z, OTHER)[0]
    assert np.isclose(exchanged, straight, rtol=1e-5, atol=5e-6) == MEMBERS[name].symmetric


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if member.zero])
def test_equal_sets_have_none(name):
    np.testing.assert_allclose(value(name, Z, Z[::-1])[0], 0.0, atol=2e-6)


@members
def test_gradients_at_coincident_points_are_finite(name):
    same = np.repeat(Z[:1], N, 0)
    for z, other in [(same, same), (np.zeros_like(Z), OTHER), (Z, Z), (1e4 * Z, OTHER)]:
        got, slopes = value(name, z, other)
        assert np.isfinite(got) and np.isfinite(slopes).all()


@with_oracle
def test_gradients_agree_with_finite_differences(name):
    step = 1e-6 * np.random.default_rng(1).normal(size=Z.shape)
    oracle = lambda z: MEMBERS[name].oracle(z, OTHER)
    expected = (oracle(Z + step) - oracle(Z - step)) / 2e-6
    got = np.sum(np.asarray(value(name, Z, OTHER)[1][0], np.float64)[ROWS] * step) / 1e-6
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_batch_of_batches_is_a_vmap(name):
    batches = np.float32([[Z, Z + 1], [OTHER, 2 * OTHER]])
    keys = jax.random.split(KEY)
    together = quick(jax.vmap(DIVERGENCES[name], (0, 0, 0, None)))(keys, *batches, A(WEIGHT))
    each = [
        compiled(name)(key, z, o, np.float32(WEIGHT))[0]
        for key, z, o in zip(keys, *batches, strict=True)
    ]
    np.testing.assert_allclose(together, each, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_events_of_any_shape_are_taken(name):
    z, other = (sample.reshape(N, 1, D) for sample in (Z, OTHER))
    got = once(DIVERGENCES[name], z, other, WEIGHT)
    expected = compiled(name)(KEY, np.float32(Z), np.float32(OTHER), np.float32(WEIGHT))[0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_sums_of_halves_are_in_single_precision(name):
    halves = jax.ShapeDtypeStruct((N, D), jnp.bfloat16)
    assert jax.eval_shape(DIVERGENCES[name], KEY, halves, halves, A(WEIGHT)).dtype == jnp.float32


@members
def test_one_row_alone_is_finite(name):
    weight = np.float32(np.arange(N) == 2)
    got, slopes = compiled(name)(KEY, np.float32(Z), np.float32(OTHER), weight)
    assert np.isfinite(got) and np.isfinite(slopes).all()


# Closed forms


def gaussian_mmd(kernel_mean: Callable[[float, float], float], shift: float, scale: float) -> float:
    """Of N(m, s^2 I) and N(0, I), from the kernel's mean where z - z' ~ N(m, v I), as a function
    of |m| and v.
    """
    return (
        kernel_mean(0.0, 2 * scale**2)
        + kernel_mean(0.0, 2.0)
        - 2 * kernel_mean(shift, 1 + scale**2)
    )


def rbf_mean(shift: float, variance: float, d: int = 8) -> float:
    return (d / (d + variance)) ** (d / 2) * np.exp(-(shift**2) / (2 * (d + variance)))


def imq_mean(shift: float, variance: float, d: int = 8) -> float:
    """Over v times a chi-squared variable that is noncentral by |m|^2 / v."""
    square = stats.ncx2(d, max(shift**2 / variance, 1e-12))
    density = lambda x: 2 * d / (2 * d + variance * x) * square.pdf(x)
    return (
        integrate.quad(density, 0, 20, epsrel=1e-10)[0]
        + integrate.quad(density, 20, 300, epsrel=1e-10)[0]
    )


def half_energy(scale: float, d: int = 8) -> float:
    """E|Z - X| - E|Z - Z~| / 2 - E|X - X~| / 2 of Z ~ N(0, s^2 I) and X ~ N(0, I)."""
    return gamma_ratio(d) * (np.sqrt(2 * (1 + scale**2)) - scale - 1)


GAUSSIANS = {
    "rbf_shifted": (DIVERGENCES["mmd_rbf"], 2.0, 1.0, 0.148496),
    "rbf_narrow": (DIVERGENCES["mmd_rbf"], 0.0, 0.5, gaussian_mmd(rbf_mean, 0.0, 0.5)),
    "rbf_equal": (DIVERGENCES["mmd_rbf"], 0.0, 1.0, 0.0),
    "imq_shifted": (DIVERGENCES["mmd_imq"], 2.0, 1.0, gaussian_mmd(imq_mean, 2.0, 1.0)),
    "imq_narrow": (DIVERGENCES["mmd_imq"], 1.0, 0.3, gaussian_mmd(imq_mean, 1.0, 0.3)),
    "energy_equal": (DIVERGENCES["energy_distance"], 0.0, 1.0, 0.0),
    "energy_narrow": (DIVERGENCES["energy_distance"], 0.0, 0.4, 2 * half_energy(0.4)),
    "radon_sobolev_equal": (DIVERGENCES["radon_sobolev"], 0.0, 1.0, 0.0),
    "radon_sobolev_narrow": (DIVERGENCES["radon_sobolev"], 0.0, 0.4, half_energy(0.4)),
    "radon_sobolev_wide": (DIVERGENCES["radon_sobolev"], 0.0, 3.0, half_energy(3.0)),
}


def test_published_value_of_shifted_gaussians():
    np.testing.assert_allclose(gaussian_mmd(rbf_mean, 2.0, 1.0), 0.148496, atol=5e-7)


@cache
def small_batches(member: Callable) -> Callable:
    """(keys, shift, scale) -> the member for each, between four rows of N(m, s^2 I) and N(0, I)
    and one of padding.
    """
    weight = A([0.25, 0.0, 0.25, 0.25, 0.25])

    def batch(key: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
        z, other = jax.random.normal(key, (2, 5, 8))
        return member(key, scale * z + shift / np.sqrt(8), other, weight)

    return quick(jax.vmap(batch, (0, None, None)))


@pytest.mark.parametrize("name", GAUSSIANS)
def test_small_batches_are_unbiased(name):
    member, shift, scale, expected = GAUSSIANS[name]
    values = small_batches(member)(jax.random.split(KEY, 10_000), shift, scale)
    assert z_score(values, expected) < Z_BOUND
    assert float(values.min()) < 0


@pytest.mark.parametrize("d, expected", [(1, None), (2, None), (8, 0.803003), (512, None)])
def test_codes_at_zero_have_the_author_s_constant(d, expected):
    got = once(DIVERGENCES["radon_sobolev"], np.zeros((4, d)), np.zeros((4, d)), np.full(4, 0.25))
    expected = (np.sqrt(2) - 1) * gamma_ratio(d) if expected is None else expected
    np.testing.assert_allclose(got, expected, rtol=2e-6)


@pytest.mark.parametrize("d", [1, 2, 9, 100])
def test_mean_distance_to_a_normal_is_the_confluent_function(d):
    radii = np.array([0.0, 1e-3, 0.7, 3.0, 12.0, 30.0])
    z = np.zeros((6, d), np.float32)
    z[:, -1] = radii
    alone = quick(
        jax.vmap(lambda z: DIVERGENCES["radon_sobolev"](KEY, z[None], z[None], jnp.ones(1)))
    )
    expected = np.sqrt(2) * special.hyp1f1(-0.5, d / 2, -np.square(radii) / 2) - 1
    np.testing.assert_allclose(alone(z), gamma_ratio(d) * expected, rtol=2e-6, atol=2e-6)


def test_a_code_far_away_is_still_drawn_home():
    z = np.float32([[800.0, 0.0]])
    slope = once(jax.grad(DIVERGENCES["radon_sobolev"], 1), z, z, np.ones(1))
    np.testing.assert_allclose(slope, [[1.0, 0.0]], atol=1e-3)


def test_kernels_at_known_distances():
    z, other = jnp.zeros(4), A([2.0, 0.0, 2.0, 0.0])  # r^2 = 8 = 2 d
    np.testing.assert_allclose(imq()(z, other), 0.5)
    np.testing.assert_allclose(imq(0.5)(z, other), 0.2)
    np.testing.assert_allclose(rbf()(z, other), np.exp(-1), rtol=1e-6)
    np.testing.assert_allclose(rbf(2.0)(z, other), np.exp(-1), rtol=1e-6)
    np.testing.assert_allclose(imq_sum()(z, z), 7.0)
    np.testing.assert_allclose(imq_sum((0.5, 3.0))(z, other), 1 / 3 + 3 / 4, rtol=1e-6)


def test_a_kernel_of_one_hot_latents():
    agreements = lambda z, other: jnp.sum(z * other)
    z, other = np.eye(3)[[[0, 1], [2, 2], [0, 2]]], np.eye(3)[[[0, 0], [1, 1], [2, 0]]]  # [N, D, C]
    got = once(mmd(agreements), z, other, np.full(3, 1 / 3))
    np.testing.assert_allclose(got, discrepancy(lambda a, b: (a * b).sum(), z, other), atol=1e-6)


# One dimension, where SciPy has them, and projections


def test_energy_distance_on_a_line_is_scipy_s():
    got = once(biased_mmd(negative_distance), Z[:, :1], OTHER[:, :1], WEIGHT)
    np.testing.assert_allclose(got, stats.energy_distance(Z[:, 0], OTHER[:, 0]) ** 2, rtol=1e-5)


def test_energy_distance_is_that_of_projections():
    """E_V = sqrt(pi) G E_t E_V(t)."""
    directions = np.random.default_rng(1).normal(size=(1000, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lines = [stats.energy_distance(Z @ t, OTHER @ t) ** 2 for t in directions]
    got = value("biased_energy_distance", Z, OTHER)[0]
    assert z_score(np.sqrt(np.pi) * gamma_ratio(D) * np.array(lines), float(got)) < Z_BOUND


def test_radon_sobolev_on_a_line_is_cramer_s_distance():
    line = np.sort(Z[:, 0])
    squares = lambda t: (np.mean(line <= t) - stats.norm.cdf(t)) ** 2
    expected = sum(integrate.quad(squares, a, b)[0] for a, b in pairwise([-12, *line, 12]))
    got = once(DIVERGENCES["radon_sobolev"], line[:, None], line[:, None], WEIGHT)
    missing = distance.pdist(line[:, None]).mean() / (
        2 * N
    )  # what leaving the diagonal out takes away
    np.testing.assert_allclose(got + missing, expected, rtol=1e-4)


def test_sliced_wasserstein_on_a_line_is_the_best_assignment():
    squares = (Z[:, :1] - OTHER[:, 0]) ** 2
    expected = squares[optimize.linear_sum_assignment(squares)].mean()
    got = once(
        sliced_wasserstein(3),
        padded(Z, 9.0)[:, :1],
        padded(OTHER, -9.0)[:, :1],
        padded(WEIGHT, 0.0),
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert float(got) >= stats.wasserstein_distance(Z[:, 0], OTHER[:, 0]) ** 2


def test_sliced_wasserstein_of_a_shift_on_a_line_is_scipy_s():
    got = once(sliced_wasserstein(1), Z[:, :1], Z[::-1, :1] + 0.8, WEIGHT)
    np.testing.assert_allclose(
        got, stats.wasserstein_distance(Z[:, 0], Z[:, 0] + 0.8) ** 2, rtol=1e-5
    )


def test_sliced_wasserstein_of_gaussian_quantiles():
    quantiles = stats.norm.ppf((np.arange(4000) + 0.5) / 4000)[:, None]
    got = once(sliced_wasserstein(1), 0.5 + 1.7 * quantiles, quantiles, np.full(4000, 1 / 4000))
    np.testing.assert_allclose(got, 0.5**2 + 0.7**2, rtol=2e-3)


@cache
def over_keys(pair: str) -> np.ndarray:
    """One direction for each of 4,000 keys."""
    z, other = {"shift": (Z + [1.0, -2.0, 0.5], Z), "plane": (Z[:, :2], OTHER[:, :2])}[pair]
    each = quick(jax.vmap(sliced_wasserstein(1), (0, None, None, None)))
    return np.asarray(each(jax.random.split(KEY, 4000), A(z), A(other), A(WEIGHT)))


def test_sliced_wasserstein_of_a_shift():
    assert z_score(over_keys("shift"), (1 + 4 + 0.25) / 3) < Z_BOUND


def test_sliced_wasserstein_in_the_plane_is_an_integral_over_angles():
    angles = (np.arange(2000) + 0.5) * np.pi / 2000
    directions = np.stack([np.cos(angles), np.sin(angles)])
    lines = np.sort(Z[:, :2] @ directions, 0) - np.sort(OTHER[:, :2] @ directions, 0)
    assert z_score(over_keys("plane"), np.square(lines).mean()) < Z_BOUND


def test_sliced_wasserstein_is_a_mean_over_directions():
    each = quick(jax.vmap(sliced_wasserstein(25), (0, None, None, None)))
    many = each(jax.random.split(KEY, 1000), A(Z[:, :2]), A(OTHER[:, :2]), A(WEIGHT))
    assert z_score(many, over_keys("plane").mean()) < Z_BOUND
    np.testing.assert_allclose(over_keys("plane").std() / np.std(many), 5.0, rtol=0.1)


def test_gradient_of_sliced_wasserstein_moves_to_the_partner():
    """On a line 2 w_i (z_i - z'_s(i)), s the best assignment."""
    squares = (Z[:, :1] - OTHER[:, 0]) ** 2
    partner = optimize.linear_sum_assignment(squares)[1]
    slope = once(jax.grad(sliced_wasserstein(2), 1), Z[:, :1], OTHER[:, :1], WEIGHT)
    np.testing.assert_allclose(
        slope[:, 0], 2 / N * (Z[:, 0] - OTHER[partner, 0]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("d, tolerance", [(20, 0.06), (100, 0.012)])
def test_cramer_wold_is_close_to_the_confluent_form_in_high_dimensions(d, tolerance):
    z = 0.7 * np.random.default_rng(2).normal(size=(12, d)) + 0.3
    got = once(DIVERGENCES["cramer_wold"], z, z, np.full(12, 1 / 12))
    np.testing.assert_allclose(got, cramer_wold_oracle(z, None, confluent), rtol=tolerance)


def test_cramer_wold_of_two_samples_tends_to_that_of_the_normal():
    z, other = np.random.default_rng(3).normal(size=(2, 800, 20))
    args = 0.5 * z, other, np.full(800, 1 / 800)
    to_normal = once(DIVERGENCES["cramer_wold"], *args)
    np.testing.assert_allclose(
        once(DIVERGENCES["cramer_wold_two_sample"], *args), to_normal, rtol=0.03
    )


# The table and refusals


def test_table_holds_members_under_test():
    assert set(DIVERGENCES) <= set(MEMBERS)
    assert divergences.DIVERGENCES is DIVERGENCES


SHAPES = {
    "dimensions": ((4, 3), (4, 2), (4,)),
    "rows": ((4, 3), (5, 3), (4,)),
    "weight": ((4, 3), (4, 3), (3,)),
    "weights": ((4, 3), (4, 3), (4, 1)),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_shapes_that_disagree_are_refused(shapes):
    for member in (mmd(rbf()), DIVERGENCES["energy_distance"], sliced_wasserstein(2)):
        with pytest.raises(ValueError, match=r"\[N, \*event\]"):
            member(KEY, *(np.zeros(shape) for shape in shapes))


REFUSED = {
    "no_direction": (lambda: sliced_wasserstein(0), "num_projections"),
    "rbf": (lambda: rbf(0.0), "length"),
    "imq": (lambda: imq(-1.0), "scale"),
    "imq_sum": (lambda: imq_sum(()), "multiples"),
    "imq_sum_negative": (lambda: imq_sum((1.0, -2.0)), "multiples"),
    "line": (
        lambda: DIVERGENCES["cramer_wold"](KEY, *jnp.ones((2, 4, 1)), jnp.full(4, 0.25)),
        "two dimensions",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_without_meaning_are_refused(name):
    call, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        call()
