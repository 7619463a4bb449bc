"""Continuous flows: the solution of a differential equation with a learned velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxvae.flows.contract import Array, Flow, Pair, checked_flow


def continuous(
    latent: int,
    init: Callable[[Array], Any],
    velocity: Callable[[Any, Array, Array, Array], Array],
    steps: int,
    size: int = 0,
) -> Flow:
    """y = z(1) for dz/dt = v(z, t), z(0) = z; log det = int_0^1 tr(dv/dz) dt.

    Chen et al. 2018, arXiv:1806.07366, theorem 1. The equation is solved by ``steps`` steps of the
    classical Runge-Kutta method, whose error falls with the fourth power of their number. The trace
    is exact, and costs D products with the Jacobian. So this is for some hundred dimensions at
    most.

    Args:
      latent: D, the dimensions of z.
      init: key -> the parameters of the velocity.
      velocity: ``(params, raw, z, t) -> dz/dt``.
      steps: steps of the solver.
      size: how many numbers ``raw`` holds, such as a condition.
    """

    def solved(params: Any, raw: Array, z: Array, start: float, end: float) -> Pair:
        h = (end - start) / steps

        def slope(z: Array, t: Array) -> Pair:
            field = lambda z: velocity(params, raw, z, t)
            return field(z), jnp.trace(jax.jacfwd(field)(z))

        def step(carry: Pair, i: Array) -> tuple[Pair, None]:
            z, log_det = carry
            t = start + h * i
            k1, d1 = slope(z, t)
            k2, d2 = slope(z + h / 2 * k1, t + h / 2)
            k3, d3 = slope(z + h / 2 * k2, t + h / 2)
            k4, d4 = slope(z + h * k3, t + h)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            return (z, log_det + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)), None

        return lax.scan(step, (z, jnp.zeros((), z.dtype)), jnp.arange(steps))[0]

    forward = lambda params, raw, z: solved(params, raw, z, 0.0, 1.0)
    inverse = lambda params, raw, y: solved(params, raw, y, 1.0, 0.0)
    return checked_flow("a continuous flow", latent, forward, inverse, size, init)
