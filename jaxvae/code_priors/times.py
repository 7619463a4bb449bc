"""Networks of a latent and a time, which flow matching and diffusion learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import networks
from jaxvae.contracts import Array, Params

FREQUENCIES = 2.0 ** np.arange(6) * np.pi


class TimedNetwork(NamedTuple):
    """A function of z [D], of t in [0, 1] and of a context or None."""

    init: Callable[[Array], Params]  # key -> params
    apply: Callable[[Params, Array, Array, Any], Array]  # (params, z, t, context) -> [D]


def timed_network(latent: int, context_size: int, units: int, precision: str) -> TimedNetwork:
    """Three hidden layers that see z, t with its waves, and the context as one vector."""
    network = networks.mlp((units,) * 3, latent, jax.nn.silu)
    network = networks.with_precision(network, precision)

    def beside(z: Array, t: Array, context: Any) -> Array:
        parts = [z, jnp.reshape(t, 1), jnp.cos(FREQUENCIES * t), jnp.sin(FREQUENCIES * t)]
        return jnp.concatenate(parts if context is None else [*parts, context])

    def init(key: Array) -> Params:
        return network.init(key, beside(jnp.zeros(latent), jnp.zeros(()), jnp.zeros(context_size)))

    def apply(params: Params, z: Array, t: Array, context: Any) -> Array:
        return network.apply(params, beside(z, t, context))

    return TimedNetwork(init, apply)
