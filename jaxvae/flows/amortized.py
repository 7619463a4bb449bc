"""Flows whose parameters are the numbers that an encoder gives for one example."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import celu, softplus

from jaxvae.flows.contract import Array, Flow, Pair, checked_flow

MARGIN = 0.01  # distance from the edge of invertibility, where log |det| is -inf
STEPS = 40  # of the orthogonalization: enough for singular values of 1e-6 of the norm

_matmul = functools.partial(jnp.matmul, precision="float32")


def planar(latent: int) -> Flow:
    """y = z + u tanh(w^T z + b), det = 1 + u^T psi(z), psi = tanh'(w^T z + b) w.

    Rezende & Mohamed 2015, arXiv:1505.05770. raw = [u, w, b]. The flow is invertible if w^T u > -1
    (appendix): u is moved along w until w^T u = m(w^T u). This m changes nothing if w^T u is
    positive, and does not fall below -1 + ``MARGIN``.
    """

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        u, w, b = jnp.split(raw, [latent, 2 * latent])
        wu = jnp.vdot(w, u, precision="float32")
        m = celu(wu, 1 - MARGIN)
        h = jnp.tanh(jnp.vdot(w, z, precision="float32") + b[0])
        u = u + (m - wu) * _inverse_square(w) * w
        return z + u * h, jnp.log1p(m * (1 - h**2))

    return checked_flow("a planar flow", latent, forward, None, 2 * latent + 1)


def radial(latent: int) -> Flow:
    """y = z + b (z - c) / (a + r), r = |z - c|, a > 0, b > -a.

    Rezende & Mohamed 2015, arXiv:1505.05770. det = (1 + b h)^(D-1) (1 + b h + b h' r) with
    h = 1 / (a + r). raw = [c, a, a + b], the last two through a softplus. The inverse solves
    |y - c| = r (r + a + b) / (r + a), a quadratic equation in r.
    """

    def constrained(raw: Array) -> tuple[Array, Array, Array]:
        a, total = softplus(raw[latent:]) + 1e-3  # away from 0
        return raw[:latent], a, total

    def log_det(a: Array, total: Array, r: Array) -> Array:
        tangential = jnp.log(r + total) - jnp.log(r + a)
        return (
            (latent - 1) * tangential + jnp.log(r**2 + 2 * a * r + a * total) - 2 * jnp.log(r + a)
        )

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        c, a, total = constrained(raw)
        r = _norm(z - c)
        return z + (total - a) / (a + r) * (z - c), log_det(a, total, r)

    def inverse(params: Any, raw: Array, y: Array) -> Pair:
        c, a, total = constrained(raw)
        distance = _norm(y - c)
        half = (distance - total) / 2
        root = jnp.sqrt(half**2 + a * distance) + jnp.abs(half)
        r = jnp.where(half > 0, root, a * distance / root)
        return c + (r + a) / (r + total) * (y - c), -log_det(a, total, r)

    return checked_flow("a radial flow", latent, forward, inverse, latent + 2)


def _norm(v: Array) -> Array:
    """|v|, with gradient 0 at 0."""
    square = jnp.sum(v**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _inverse_square(v: Array) -> Array:
    """1 / |v|^2, and 0 where |v|^2 is too small to divide by."""
    square = jnp.sum(v**2)
    nonzero = square > 1e-30
    return jnp.where(nonzero, 1 / jnp.where(nonzero, square, 1.0), 0.0)


def householder(latent: int) -> Flow:
    """y = (I - 2 v v^T / |v|^2) z, |det| = 1, which is its own inverse.

    Tomczak & Welling 2016, arXiv:1611.09630. raw = v; at v = 0 it is the identity.
    """

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        return _reflected(z, raw), jnp.zeros((), jnp.result_type(z))

    return checked_flow("a Householder flow", latent, forward, forward, latent)


def _reflected(z: Array, v: Array) -> Array:
    return z - 2 * _inverse_square(v) * jnp.vdot(v, z, precision="float32") * v


def sylvester(latent: int, columns: int) -> Flow:
    """y = z + Q R tanh(R' Q^T z + b), Q [D, M] orthonormal, R and R' upper triangular.

    Van den Berg et al. 2018, arXiv:1803.05649. By Sylvester's identity
    det = prod_i (1 + tanh'(..)_i r_i r'_i). The flow is invertible because the diagonals r and r'
    are inside (-1, 1). raw = [Q, r, r', b, the rest of R, the rest of R'] with
    Q = ``orthonormal`` of I + raw. M is ``columns``, the paper's bottleneck. Raises ValueError
    unless 1 <= M <= D.
    """
    if not 1 <= columns <= latent:
        raise ValueError(
            f"{columns} orthonormal columns in {latent} dimensions; "
            f"there are between 1 and {latent}"
        )

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        start, rest = jnp.split(raw, [latent * columns])
        q = orthonormal(jnp.eye(latent, columns, dtype=raw.dtype) + start.reshape(latent, columns))
        return _sylvester(rest, z, lambda z: _matmul(q.T, z), lambda h: _matmul(q, h))

    return checked_flow(
        "a Sylvester flow", latent, forward, None, latent * columns + columns * (columns + 2)
    )


def triangular_sylvester(latent: int) -> Flow:
    """``sylvester`` with Q the identity, y = z + R tanh(R' z + b).

    Van den Berg et al. 2018, arXiv:1803.05649. raw = [r, r', b, R, R']. With Q the reversing
    permutation the flow is ``chain(reverse(D), triangular_sylvester(D), reverse(D))``.
    """
    identity = lambda z: z
    forward = lambda params, raw, z: _sylvester(raw, z, identity, identity)
    return checked_flow("a triangular Sylvester flow", latent, forward, None, latent * (latent + 2))


def householder_sylvester(latent: int, reflections: int) -> Flow:
    """``sylvester`` with Q a product of Householder reflections, M = D.

    Van den Berg et al. 2018, arXiv:1803.05649. raw = [v of each reflection, r, r', b, R, R'].
    """

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        vectors, rest = jnp.split(raw, [latent * reflections])
        vs = list(vectors.reshape(reflections, latent))
        reflected = lambda vs: lambda z: functools.reduce(_reflected, vs, z)
        return _sylvester(rest, z, reflected(vs), reflected(vs[::-1]))

    size = latent * reflections + latent * (latent + 2)
    return checked_flow("a Householder Sylvester flow", latent, forward, None, size)


def _sylvester(raw: Array, z: Array, down: Callable, up: Callable) -> Pair:
    """z + Q R tanh(R' Q^T z + b), given Q^T ``down`` and Q ``up``."""
    projected = down(z)
    m = len(projected)
    r, r_prime, b, above, above_prime = jnp.split(raw, np.cumsum([m, m, m, m * (m - 1) // 2]))
    r, r_prime = ((1 - MARGIN) ** 0.5 * jnp.tanh(diagonal) for diagonal in (r, r_prime))
    upper = lambda diagonal, rest: jnp.diag(diagonal).at[jnp.triu_indices(m, 1)].set(rest)
    h = jnp.tanh(_matmul(upper(r_prime, above_prime), projected) + b)
    return z + up(_matmul(upper(r, above), h)), jnp.log1p((1 - h**2) * r * r_prime).sum()


def orthonormal(matrix: Array) -> Array:
    """The polar factor of ``matrix [D, M]``: the orthonormal columns nearest to its own.

    The matrix has D >= M and full rank. It is scaled to norm 1, and then
    Q <- Q (I + (I - Q^T Q) / 2) (Bjorck & Bowie 1971; van den Berg et al. 2018, arXiv:1803.05649).
    """
    eye = jnp.eye(matrix.shape[1], dtype=matrix.dtype)
    step = lambda _, q: q + 0.5 * _matmul(q, eye - _matmul(q.T, q))
    return lax.fori_loop(0, STEPS, step, matrix / _norm(matrix))
