"""The contract of flows, their composition, and the two simplest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Pair = tuple[Array, Array]  # f(z), and log |det df/dz|


class Flow(NamedTuple):
    """An invertible map with the logarithm of its Jacobian's determinant, in nats."""

    size: int  # numbers that the encoder gives for one example, 0 where it gives none
    init: Callable[[Array], Any]  # key -> params that all examples share
    # (params, raw [size], z [D]) -> (y [D], log |det dy/dz|)
    forward: Callable[[Any, Array, Array], Pair]
    # (params, raw, y) -> (z, log |det dz/dy|); None if there is no closed form
    inverse: Callable[[Any, Array, Array], Pair] | None


def chain(*flows: Flow) -> Flow:
    """The composition of flows, the first flow first.

    Log-determinants add, and ``raw`` is cut into one part for each flow. The parameters are the
    list of the flows' parameters. The chain has an inverse if all flows have one. Raises ValueError
    without flows.
    """
    if not flows:
        raise ValueError("a chain needs at least one flow")
    sizes = [flow.size for flow in flows]

    def init(key: Array) -> list:
        return [
            flow.init(k) for flow, k in zip(flows, jax.random.split(key, len(flows)), strict=True)
        ]

    def through(maps: Sequence[Any], order: slice) -> Callable[[Any, Array, Array], Pair]:
        def apply(params: Any, raw: Array, z: Array) -> Pair:
            check_raw("this chain", sum(sizes), raw)
            log_det: Any = 0.0
            raws = jnp.split(raw, np.cumsum(sizes)[:-1])
            for function, *given in list(zip(maps, params, raws, strict=True))[order]:
                z, more = function(*given, z)
                log_det += more
            return z, log_det

        return apply

    inverses = [flow.inverse for flow in flows]
    inverse = None if None in inverses else through(inverses, slice(None, None, -1))
    return Flow(sum(sizes), init, through([flow.forward for flow in flows], slice(None)), inverse)


def alternating(flow: Flow, latent: int, steps: int) -> Flow:
    """``steps`` of a flow, with the order of the coordinates reversed between them."""
    return chain(flow, *[part for _ in range(steps - 1) for part in (reverse(latent), flow)])


def check_raw(name: str, size: int, raw: Array) -> None:
    if jnp.shape(raw) != (size,):
        raise ValueError(
            f"{name} takes raw of shape ({size},), its Flow.size, for one example; "
            f"got {jnp.shape(raw)}. A batch of examples goes through jax.vmap."
        )


def checked_flow(
    name: str,
    latent: int,
    forward: Callable,
    inverse: Callable | None,
    size: int = 0,
    init: Callable = lambda key: {},
) -> Flow:
    """A flow whose maps check the shapes of their input.

    Args:
      name: what an error calls the flow.
      latent: D, the dimensions of z.
      forward: the map, as ``Flow.forward``.
      inverse: its inverse, or None.
      size: how many numbers the encoder gives.
      init: ``key -> params`` that all examples share.
    """

    def checked(function: Callable) -> Callable:
        def apply(params: Any, raw: Array, z: Array) -> Pair:
            check_raw(name, size, raw)
            if jnp.shape(z) != (latent,):
                raise ValueError(
                    f"{name} is over z of shape ({latent},), one sample; got {jnp.shape(z)}"
                )
            return function(params, raw, z)

        return apply

    return Flow(size, init, checked(forward), checked(inverse) if inverse else None)


def reverse(latent: int) -> Flow:
    """y_i = z_(D+1-i), |det| = 1.

    It stands between flows that treat the first coordinates unlike the last.
    """
    forward = lambda params, raw, z: (z[::-1], jnp.zeros((), jnp.result_type(z)))
    return checked_flow("a reversal", latent, forward, forward)


def shift(latent: int) -> Flow:
    """y = z + raw."""
    moved = lambda sign: lambda params, raw, z: (z + sign * raw, jnp.zeros((), jnp.result_type(z)))
    return checked_flow("a shift", latent, moved(1), moved(-1), latent)
