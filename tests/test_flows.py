"""Normalizing flows: every one against automatic differentiation, and those with Gaussian cases
against SciPy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions.flows import InverseAutoregressiveTransform
from scipy import stats

from jaxvae import flows, posteriors
from jaxvae.distributions import (
    Distribution,
    Normal,
    Transformed,
    sample_and_log_prob_of,
    sample_noise,
)

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


def mixed(latent: int) -> flows.Flow:
    """Of both kinds, with an inverse."""
    return flows.chain(
        flows.affine_coupling(latent, (8,)), flows.reverse(latent), flows.radial(latent)
    )


class Member(NamedTuple):
    """A flow under test."""

    make: Callable[[int], flows.Flow]  # of D
    inverse: bool = True
    size: Callable[[int], int] = lambda d: 0
    start: str = (
        "identity"  # what it is at raw = 0 and at init; or an isometry, or near the identity
    )


MEMBERS = {
    "planar": Member(flows.planar, False, lambda d: 2 * d + 1),
    "radial": Member(flows.radial, True, lambda d: d + 2),
    "householder": Member(flows.householder, True, lambda d: d),
    "sylvester": Member(
        lambda d: flows.sylvester(d, d - 1), False, lambda d: (d - 1) * (2 * d + 1)
    ),
    "triangular_sylvester": Member(flows.triangular_sylvester, False, lambda d: d * (d + 2)),
    "householder_sylvester": Member(
        lambda d: flows.householder_sylvester(d, 2), False, lambda d: d * (d + 4)
    ),
    "inverse_autoregressive": Member(
        lambda d: flows.inverse_autoregressive(d, (8,), 2), True, lambda d: 2, start="near"
    ),
    "masked_autoregressive": Member(lambda d: flows.masked_autoregressive(d, (8,))),
    "affine_coupling": Member(lambda d: flows.affine_coupling(d, (8,))),
    "reverse": Member(flows.reverse, start="isometry"),
    "shift": Member(flows.shift, True, lambda d: d),
    "chain": Member(mixed, True, lambda d: d + 2, start="isometry"),
}
INVERTIBLE = [name for name, member in MEMBERS.items() if member.inverse]
AMORTIZED = [
    name
    for name in MEMBERS
    if jax.eval_shape(MEMBERS[name].make(3).init, KEY) == {} and name != "reverse"
]
members = pytest.mark.parametrize("name", MEMBERS)
invertible = pytest.mark.parametrize("name", INVERTIBLE)
D = 3


@cache
def flow(name: str, latent: int = D) -> flows.Flow:
    return MEMBERS[name].make(latent)


def parameters(name: str, scale: float = 0.5, latent: int = D) -> Any:
    """Random ones: at init the last layers are zero."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(flow(name, latent).init, KEY)
    return jax.tree.map(
        lambda a: np.asarray(scale * rng.normal(size=a.shape), jnp.zeros(0).dtype), shapes
    )


def noise(shapes: Any) -> Any:
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda a: np.float32(rng.normal(size=a.shape)), shapes)


def examples(name: str) -> tuple[np.ndarray, np.ndarray]:
    """raw [N, size] from small to extreme, and z [N, D]."""
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(40, flow(name).size)) * np.repeat([0.1, 1.0, 5.0, 30.0], 10)[:, None]
    return np.concatenate([raw, np.sign(raw[:8]) * 30]), rng.normal(size=(48, D)) * 2


class Evaluation(NamedTuple):
    """In float64, one row for each example."""

    y: np.ndarray
    log_det: np.ndarray
    jacobian: np.ndarray
    differences: (
        np.ndarray
    )  # between derivatives along a direction and central differences, relative
    back: np.ndarray  # where the flow has an inverse
    back_log_det: np.ndarray
    start: tuple[np.ndarray, np.ndarray]  # y and log |det| at raw = 0 with initial parameters


@cache
def evaluated(name: str) -> Evaluation:
    f = flow(name)

    def both(params: Any, raw: jax.Array, z: jax.Array) -> tuple:
        y, log_det = f.forward(params, raw, z)
        return y, log_det, *(f.inverse(params, raw, y) if f.inverse else (y, log_det))

    def row(params: Any, start: Any, raw: jax.Array, z: jax.Array) -> Evaluation:
        at = params, raw, z
        along = jax.tree.map(lambda a: jnp.cos(1.0 + jnp.arange(a.size)).reshape(a.shape), at)
        step = lambda size: jax.tree.map(lambda a, b: a + size * b, at, along)
        in_z = (*jax.tree.map(lambda a: jnp.zeros((D, *a.shape)), at[:2]), jnp.eye(D))
        tangents = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), in_z, along)
        # as one batch, which compiles once
        points = jax.tree.map(
            lambda *a: jnp.stack(a), at, step(1e-6), step(-1e-6), (start, 0 * raw, z)
        )
        all_tangents = jax.vmap(
            lambda at, tangent: jax.jvp(both, at, tangent), (None, 0), (None, 0)
        )
        values, slopes = jax.vmap(all_tangents, (0, None))(
            points, tangents
        )  # of each output [4, ...], [4, D + 1, ...]
        error = lambda v, slope: (
            jnp.abs(slope[0, D] - (v[1] - v[2]) / 2e-6).max() / (1 + jnp.abs(v[0]).max())
        )
        differences = jnp.stack([error(v, slope) for v, slope in zip(values, slopes, strict=True)])
        (y, log_det, *back), last = ([v[i] for v in values] for i in (0, 3))
        return Evaluation(y, log_det, slopes[0][0, :D].T, differences, *back, (last[0], last[1]))

    start = jax.tree.map(np.asarray, f.init(KEY))
    with jax.enable_x64(True):
        rows = quick(jax.vmap(row, (None, None, 0, 0)))(parameters(name), start, *examples(name))
        return jax.tree.map(np.asarray, rows)


# Each against automatic differentiation


@members
def test_a_flow_has_its_size_and_an_inverse_where_all_its_parts_have_one(name):
    assert flow(name).size == MEMBERS[name].size(D)
    assert (flow(name).inverse is not None) == MEMBERS[name].inverse


@members
def test_log_det_agrees_with_the_jacobian(name):
    """At raw values as large as 100 too, where the determinant must stay positive, or of one
    sign.
    """
    sign, log_det = np.linalg.slogdet(evaluated(name).jacobian)
    np.testing.assert_allclose(evaluated(name).log_det, log_det, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(sign, sign[0])


@members
def test_derivatives_agree_with_differences(name):
    """Of y and the log-determinant, and through the inverse, in parameters, raw and z at once."""
    mild = evaluated(name).differences[:20]
    assert mild.max() < 1e-6, mild.max(0)


@invertible
def test_inverse_undoes_the_flow(name):
    """Where float64 has the digits: an autoregressive gate may be shut."""
    got, z = evaluated(name), examples(name)[1]
    open_ = got.log_det > -20
    assert open_.mean() > 0.6
    np.testing.assert_allclose(got.back[open_], z[open_], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.back_log_det[open_], -got.log_det[open_], rtol=1e-6, atol=1e-6)


@members
def test_flow_starts_close_to_the_identity(name):
    (y, log_det), z = evaluated(name).start, examples(name)[1]
    if MEMBERS[name].start == "near":  # it keeps s(2) = 0.88 of z
        gate = 1 / (1 + np.exp(-2.0))
        y, log_det = y / gate, log_det - D * np.log(gate)
    if MEMBERS[name].start == "identity":
        np.testing.assert_allclose(y, z, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(z, axis=1), rtol=1e-5)
    np.testing.assert_allclose(log_det, 0.0, atol=1e-5)


@pytest.mark.parametrize("name", AMORTIZED)
def test_float32_is_close_with_finite_gradients(name):
    """At extreme raw values, and at raw = 0 and z = 0, where norms have no derivative."""
    f = flow(name)

    def total(raw: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, log_det = f.forward({}, raw, z)
        back, more = f.inverse({}, raw, z) if f.inverse else (y, log_det)
        return (y + back).sum() + log_det + more, log_det

    given = (np.float32(np.concatenate([a, 0 * a[:1]])) for a in examples(name))
    gradients, log_det = quick(jax.vmap(jax.grad(total, (0, 1), has_aux=True)))(*given)
    assert log_det.dtype == np.float32
    assert np.isfinite(log_det).all() and all(np.isfinite(a).all() for a in gradients)
    np.testing.assert_allclose(log_det[:20], evaluated(name).log_det[:20], rtol=1e-4, atol=1e-4)


# What is special about each


def test_planar_leaves_u_alone_where_it_is_invertible_and_moves_it_along_w():
    """w^T u stays above -1 even where raw asks for -1000."""
    raw, z = examples("planar")
    u, w, b = raw[:, :D], raw[:, D : 2 * D], raw[:, -1]
    moved = (evaluated("planar").y - z) / np.tanh((w * z).sum(1) + b)[:, None] - u
    valid = (u * w).sum(1) > 0
    assert (u * w).sum(1).min() < -1000
    assert ((u + moved) * w).sum(1).min() > -1
    assert 5 < valid.sum() < len(valid) - 5
    np.testing.assert_allclose(moved[valid], 0.0, atol=1e-9)
    np.testing.assert_allclose(
        np.cross(moved, w)[~valid] / (w**2).sum(1)[~valid, None], 0.0, atol=1e-8
    )


def test_radial_moves_along_the_radius_and_keeps_the_order_of_radii():
    f, c = flow("radial", 2), np.array([0.3, -0.2], np.float32)
    rays = np.linspace(0, 5, 101, dtype=np.float32)[:, None] * np.array([0.6, 0.8], np.float32)
    raw = np.array([*c, -1.0, -30.0], np.float32)  # contracts as far as it may
    y = np.asarray(quick(jax.vmap(lambda z: f.forward({}, raw, z)[0]))(c + rays)) - c
    np.testing.assert_allclose(y @ np.array([0.8, -0.6]), 0.0, atol=1e-6)
    assert np.diff(y @ np.array([0.6, 0.8])).min() > 0


def test_householder_reflects():
    """Orthogonal, symmetric, and v goes to -v."""
    got, (v, _) = evaluated("householder"), examples("householder")
    np.testing.assert_allclose(
        got.jacobian @ got.jacobian.swapaxes(1, 2), np.eye(D) + 0 * got.jacobian, atol=1e-12
    )
    np.testing.assert_allclose(got.jacobian, got.jacobian.swapaxes(1, 2), atol=1e-12)
    np.testing.assert_allclose(np.einsum("nij,nj->ni", got.jacobian, v), -v, rtol=1e-9)
    np.testing.assert_array_equal(got.log_det, 0.0)


@pytest.mark.parametrize("shape", [(5, 1), (8, 8), (64, 8)], ids=str)
@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
def test_orthonormal_columns_are_the_nearest(shape, x64):
    """The polar factor U V^T, where singular values spread over three orders of magnitude."""
    u, _, v = np.linalg.svd(np.random.default_rng(0).normal(size=shape), full_matrices=False)
    matrix = (u * np.geomspace(30.0, 0.03, shape[1])) @ v
    with jax.enable_x64(x64):
        q = np.asarray(jax.jit(flows.orthonormal)(jnp.asarray(matrix, float)))
    np.testing.assert_allclose(q.T @ q, np.eye(shape[1]), atol=1e-12 if x64 else 2e-6)
    np.testing.assert_allclose(q, u @ v, atol=1e-10 if x64 else 2e-4)


def test_sylvester_moves_z_inside_its_columns_only():
    """The Jacobian differs from I by a matrix of rank M, and so does what it adds to z from what
    it adds at 0.
    """
    ranks = np.linalg.matrix_rank(evaluated("sylvester").jacobian[:20] - np.eye(D), tol=1e-9)
    np.testing.assert_array_equal(ranks, D - 1)


def test_triangular_sylvester_and_what_reversals_make_of_it():
    """y = z + P R tanh(R' P z + b), without an inverse."""
    jacobian = evaluated("triangular_sylvester").jacobian
    np.testing.assert_array_equal(np.tril(jacobian, -1), 0.0)
    assert np.abs(np.triu(jacobian, 1)).max() > 0.1
    inner, (raw, z) = flow("triangular_sylvester"), noise((np.zeros(D * (D + 2)), np.zeros(D)))
    outer = flows.chain(flows.reverse(D), inner, flows.reverse(D))
    assert outer.inverse is None
    (y, log_det), expected = quick(
        lambda: (outer.forward([{}] * 3, raw, z), inner.forward({}, raw, z[::-1]))
    )()
    np.testing.assert_allclose(y, expected[0][::-1], rtol=1e-6)
    np.testing.assert_allclose(log_det, expected[1], rtol=1e-6)


@pytest.mark.parametrize("hidden", [(), (4,), (9, 5, 16)], ids=str)
def test_masked_mlp_sees_all_that_comes_before_and_nothing_else(hidden):
    init, apply = flows.masked_mlp(4, hidden, 2, context=3)
    params = noise(jax.eval_shape(init, KEY))
    of_z, of_context = quick(jax.jacrev(partial(apply, params), (0, 1)))(np.ones(4), np.ones(3))
    assert of_z.shape == (2, 4, 4)
    for jacobian in np.asarray(of_z):
        np.testing.assert_array_equal(jacobian != 0, np.tri(4, k=-1, dtype=bool))
    assert (np.asarray(of_context) != 0).all()


def test_masked_mlp_starts_at_zero_with_units_of_unit_variance():
    """Whatever the number of inputs that the mask lets through."""
    init, apply = flows.masked_mlp(8, (512,), 2)
    params = jax.jit(init)(KEY)
    np.testing.assert_array_equal(
        quick(apply)(params, np.ones(8, np.float32), np.zeros(0, np.float32)), 0.0
    )
    degrees = np.arange(512) % 8
    variances = (np.asarray(params[0]["kernel"]) ** 2 * (np.arange(8)[:, None] < degrees)).sum(0)
    for degree in range(1, 8):
        assert abs(variances[degrees == degree].mean() - 1) < Z_BOUND * np.sqrt(2 / (64 * degree))


def test_inverse_autoregressive_agrees_with_numpyro():
    """NumPyro's takes mean and log-scale of any autoregressive network; here (1 - s) m and log
    s.
    """
    f, params = flow("inverse_autoregressive"), parameters("inverse_autoregressive")
    _, network = flows.masked_mlp(D, (8,), 2, context=2)

    @quick
    def both(context: jax.Array, z: jax.Array) -> tuple:
        def mean_and_log_scale(z: jax.Array) -> tuple[jax.Array, jax.Array]:
            m, s = network(params, z, context)
            return (1 - jax.nn.sigmoid(s + 2)) * m, jax.nn.log_sigmoid(s + 2)

        oracle = InverseAutoregressiveTransform(mean_and_log_scale)
        y, log_det = f.forward(params, context, z)
        back = f.inverse(params, context, y)
        return (y, log_det, back[0]), (oracle(z), oracle.log_abs_det_jacobian(z, y), oracle.inv(y))

    got = both(np.array([0.4, -1.3], np.float32), np.array([0.3, 2.0, -1.0], np.float32))
    for value, expected in zip(*got, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_coupling_keeps_the_first_half_and_bounds_scales():
    got, z = evaluated("affine_coupling"), examples("affine_coupling")[1]
    np.testing.assert_array_equal(got.y[:, : D // 2], z[:, : D // 2])
    f, params = flow("affine_coupling", 2), parameters("affine_coupling", 100.0, 2)
    log_det = quick(jax.vmap(lambda z: f.forward(params, jnp.zeros(0), z)[1]))(np.float32(z[:, :2]))
    assert 2.9 < np.abs(log_det).max() <= flows.LOG_SCALE


# Distributions


def transformed(name: str, scale: float = 0.3) -> Transformed:
    """Over two dimensions, from a standard normal."""
    f = flow(name, 2)
    raw = np.float32(scale * np.random.default_rng(2).normal(size=f.size))
    return Transformed(
        Normal(np.zeros(2, np.float32), np.ones(2, np.float32)), parameters(name, scale, 2), raw, f
    )


class Densities(NamedTuple):
    y: np.ndarray  # [DRAWS, 2]
    log_q: np.ndarray  # that came with them
    direct: np.ndarray  # by log_prob, where there is an inverse


@cache
def densities(name: str) -> Densities:
    @quick
    def all_of(q: Transformed) -> tuple[jax.Array, ...]:
        y, log_q = q.sample_and_log_prob(KEY, (DRAWS,))
        return y, log_q, q.log_prob(y) if q.flow.inverse else log_q

    return Densities(*(np.asarray(a, np.float64) for a in all_of(transformed(name))))


@members
def test_transformed_is_a_distribution(name):
    q = transformed(name)
    assert isinstance(q, Distribution)
    assert q.event_shape == (2,)
    for shape in [(), (5,), (2, 3)]:
        y, log_q = jax.eval_shape(partial(q.sample_and_log_prob, KEY, shape))
        assert (y.shape, log_q.shape) == ((*shape, 2), shape)
        assert jax.eval_shape(lambda shape=shape: q.sample(KEY, shape)).shape == (*shape, 2)
        if q.flow.inverse:
            assert jax.eval_shape(q.log_prob, y).shape == shape


@members
def test_density_of_samples_is_theirs(name):
    """E_q[p / q] = 1 for a p that q covers; without an inverse too."""
    y, log_q = densities(name).y, densities(name).log_q
    ratio = np.exp(stats.norm.logpdf(y, 0.1, 0.5).sum(1) - log_q)
    assert abs(ratio.mean() - 1) < Z_BOUND * ratio.std() / np.sqrt(DRAWS)
    assert ratio.std() < 10


@invertible
def test_log_prob_of_samples_agrees_with_what_comes_with_them(name):
    np.testing.assert_allclose(densities(name).direct, densities(name).log_q, rtol=1e-4, atol=2e-4)


def shifts(latent: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W strictly lower triangular, b and log-scales of autoregressive flows that are affine."""
    rng = np.random.default_rng(3)
    return (
        np.tril(rng.normal(size=(latent, latent)), -1),
        rng.normal(size=latent),
        0.3 * rng.normal(size=latent),
    )


class Affine(NamedTuple):
    """A flow with the parameters that make it y = A z + c."""

    flow: flows.Flow
    params: Any
    raw: np.ndarray
    matrix: np.ndarray
    offset: np.ndarray


def layer(w: np.ndarray, b: np.ndarray, s: np.ndarray) -> list:
    """One that gives W z + b and s."""
    return [
        {"kernel": np.concatenate([w.T, np.zeros_like(w.T)], 1), "bias": np.concatenate([b, s])}
    ]


def affine_masked() -> Affine:
    """y = W y + b + exp(s) z."""
    w, b, s = shifts(D)
    inverse = np.linalg.inv(np.eye(D) - w)
    f = flows.masked_autoregressive(D, ())
    return Affine(f, layer(w, b, s), np.zeros(0), inverse * np.exp(s), inverse @ b)


def affine_inverse() -> Affine:
    """y = g z + (1 - g) (W z + b)."""
    w, b, s = shifts(D)
    gate = np.diag(1 / (1 + np.exp(-s - 2)))
    rest = np.eye(D) - gate
    f = flows.inverse_autoregressive(D, (), 0)
    return Affine(f, layer(w, b, s), np.zeros(0), gate + rest @ w, rest @ b)


def affine_coupled() -> Affine:
    """y_2 = exp(3 tanh(s / 3)) z_2 + W z_1 + b."""
    w, b, s = np.array([[0.5], [-1.3]]), np.array([0.2, -0.7]), np.array([0.4, -7.0])
    matrix = np.diag([1.0, *np.exp(3 * np.tanh(s / 3))])
    matrix[1:, :1] = w
    return Affine(
        flows.affine_coupling(3, ()), layer(w, b, s), np.zeros(0), matrix, np.append(0.0, b)
    )


def reflected() -> Affine:
    """y = (I - 2 v v^T / |v|^2) z."""
    v = np.array([0.5, -1.0, 2.0])
    return Affine(
        flows.householder(3), {}, v, np.eye(3) - 2 * np.outer(v, v) / (v @ v), np.zeros(3)
    )


@pytest.mark.parametrize("case", [affine_masked, affine_inverse, affine_coupled, reflected])
def test_affine_flows_of_a_gaussian_are_gaussian(case):
    """Of N(m, S) and y = A z + b: N(A m + b, A S A^T)."""
    loc, scale = np.array([0.3, -1.0, 0.5]), np.array([0.7, 1.2, 2.0])
    f, params, raw, matrix, offset = case()

    @quick
    def both(q: Transformed) -> tuple[jax.Array, ...]:
        y, log_q = q.sample_and_log_prob(KEY, (50,))
        return y, log_q, q.log_prob(y)

    with jax.enable_x64(True):
        y, log_q, direct = map(np.asarray, both(Transformed(Normal(loc, scale), params, raw, f)))
    oracle = stats.multivariate_normal(matrix @ loc + offset, matrix @ np.diag(scale**2) @ matrix.T)
    np.testing.assert_allclose(log_q, oracle.logpdf(y), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(direct, oracle.logpdf(y), rtol=1e-6, atol=1e-6)


def test_the_householder_posterior_is_a_gaussian_about_its_mean():
    """N(m, H S H^T) with H the product of both reflections."""
    m, log_s, *vs = np.random.default_rng(0).normal(size=(4, 3))
    family = posteriors.POSTERIORS["householder"](3, 2)
    q = family.make(family.init(KEY), jnp.asarray([*m, *log_s, *vs[0], *vs[1]]))
    first, second = (np.eye(3) - 2 * np.outer(v, v) / (v @ v) for v in vs)
    root = second @ first @ np.diag(np.exp(log_s))
    z = np.random.default_rng(1).normal(size=(5, 3))
    expected = stats.multivariate_normal(m, root @ root.T).logpdf(z)
    np.testing.assert_allclose(jax.vmap(q.log_prob)(z), expected, rtol=1e-4)


def test_chain_applies_its_flows_in_order():
    first, second, third = (
        flows.planar(D),
        flows.masked_autoregressive(D, (4,)),
        flows.householder(D),
    )
    f = flows.chain(first, second, third)
    assert f.size == 2 * D + 1 + D
    params = noise(jax.eval_shape(f.init, KEY))
    raw, z = noise((np.zeros(f.size), np.zeros(D)))

    @quick
    def both(raw: jax.Array, z: jax.Array) -> tuple:
        together = f.forward(params, raw, z)
        z, one = first.forward(params[0], raw[:7], z)
        z, two = second.forward(params[1], jnp.zeros(0), z)
        z, three = third.forward(params[2], raw[7:], z)
        return together, (z, one + two + three)

    for got, expected in zip(*both(raw, z), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_batch_of_posteriors_is_a_vmap():
    """As an encoder makes them: parameters shared, base and raw of each example."""
    f, params = flow("chain"), parameters("chain")
    raw, loc = (np.float32(a[:5]) for a in examples("chain"))
    make = lambda raw, loc: Transformed(Normal(loc, jnp.full(D, 0.5)), params, raw, f)

    def evaluate(q: Transformed, key: jax.Array) -> tuple[jax.Array, ...]:
        y, log_q = q.sample_and_log_prob(key, (2,))
        return y, log_q, q.log_prob(y)

    keys, alone = jax.random.split(KEY, 5), quick(evaluate)
    y, log_q, direct = quick(jax.vmap(evaluate))(jax.vmap(make)(raw, loc), keys)
    assert (y.shape, log_q.shape) == ((5, 2, D), (5, 2))
    np.testing.assert_allclose(direct, log_q, rtol=1e-3, atol=1e-3)
    for i in range(5):
        one = alone(make(raw[i], loc[i]), keys[i])
        np.testing.assert_allclose(y[i], one[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(log_q[i], one[1], rtol=1e-4, atol=1e-5)


def test_samples_are_functions_of_noise():
    f, params = flow("chain"), parameters("chain")
    raw, loc = (np.float32(a[0]) for a in examples("chain"))
    q = Transformed(Normal(loc, jnp.full(D, 0.5)), params, raw, f)
    noise = sample_noise(q, KEY, (3,))
    y, log_q = quick(lambda noise: sample_and_log_prob_of(q, noise))(noise)
    expected, log_expected = q.sample_and_log_prob(KEY, (3,))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_q, log_expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(q.from_noise(noise[1]), expected[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(q.sample(KEY, (3,)), expected, rtol=1e-4, atol=1e-5)


def test_flow_is_in_the_tree_structure():
    q = transformed("reverse")
    other = Transformed(q.base, {}, q.raw, flows.chain(flows.reverse(2)))
    assert jax.tree.structure(q) != jax.tree.structure(other)
    assert jax.tree.structure(q) == jax.tree.structure(transformed("reverse"))


# Refusals


def test_log_prob_without_an_inverse_is_refused():
    with pytest.raises(TypeError, match="sample_and_log_prob"):
        transformed("planar").log_prob(np.zeros(2))


@members
def test_wrong_shapes_are_refused_with_both(name):
    f, params = flow(name), parameters(name)
    for shape in [(f.size + 1,), (4, f.size)]:
        with pytest.raises(ValueError, match=rf"\({f.size},\).*{re.escape(str(shape))}.*vmap"):
            f.forward(params, np.zeros(shape), np.zeros(D))
    for direction in filter(None, (f.forward, f.inverse)):
        for shape in [(D + 1,), (4, D)]:
            with pytest.raises(ValueError, match=rf"\(3,\).*{re.escape(str(shape))}"):
                direction(params, np.zeros(f.size), np.zeros(shape))


@pytest.mark.parametrize(
    "make, message",
    [
        (flows.chain, "at least one"),
        (lambda: flows.sylvester(3, 4), "between 1 and 3"),
        (lambda: flows.sylvester(3, 0), "between 1 and 3"),
        (lambda: flows.affine_coupling(1, (8,)), "latent=1"),
        (lambda: flows.masked_autoregressive(5, (8, 4)), "needs 5"),
    ],
)
def test_what_cannot_be_built_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
