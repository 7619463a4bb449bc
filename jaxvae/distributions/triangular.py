"""Triangular systems of equations that any number of threads can solve at once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from jaxvae.contracts import Array

_product = functools.partial(jnp.matmul, precision="float32")


def solve_lower(lower: Array, right: Array) -> Array:
    """L^-1 B for a lower triangular L [D, D] and B [D, N].

    On CPU it is forward substitution by XLA. LAPACK's solver of many systems waits for threads of
    the pool in which it runs itself, so two of them at once wait for ever if the pool has two
    threads (jaxlib 0.10.2).
    """
    lower = jnp.tril(lower)
    forward = _on_cpu(_substituted, lambda lower, b: solve_triangular(lower, b, lower=True))
    backward = _on_cpu(
        lambda lower, b: _substituted(lower.T[::-1, ::-1], b[::-1])[::-1],
        lambda lower, b: solve_triangular(lower, b, lower=True, trans=1),
    )
    return lax.custom_linear_solve(
        lambda x: _product(lower, x),
        right,
        lambda _, b: forward(lower, b),
        lambda _, b: backward(lower, b),
    )


def _on_cpu(cpu: Callable, default: Callable) -> Callable[[Array, Array], Array]:
    return lambda lower, b: lax.platform_dependent(lower, b, cpu=cpu, default=default)


def _substituted(lower: Array, right: Array) -> Array:
    """x_i = (b_i - sum_(j < i) L_ij x_j) / L_ii, row after row."""

    def row(x: Array, i: Array) -> tuple[Array, None]:
        value = (right[i] - _product(lower[i], x)) / lower[i, i]
        return x.at[i].set(value), None

    return lax.scan(row, jnp.zeros_like(right), jnp.arange(len(lower)))[0]
