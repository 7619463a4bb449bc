"""The fully connected network of ladder VAEs (Sonderby et al. 2016, arXiv:1602.02282)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.distributions import Normal
from jaxvae.networks.contract import Network
from jaxvae.networks.dense import mlp
from jaxvae.networks.layers import Activation
from jaxvae.networks.precision import with_precision
from jaxvae.networks.topdown import Layer, TopDown, merged

Array = jax.Array
LEAST_VARIANCE = 1e-5


def of_variance(raw: Array) -> Normal:
    """N(m, v), raw = [m, u], v = log(1 + e^(u + 1)) + 1e-5."""
    loc, variance = jnp.split(raw, 2, -1)
    return Normal(loc, jnp.sqrt(jax.nn.softplus(variance + 1.0) + LEAST_VARIANCE))


class _Ladder(NamedTuple):
    """The networks of ``ladder`` by name, and its functions."""

    latents: tuple[int, ...]  # dimensions of z_1, ..., z_L
    members: dict[str, tuple[int, Network]]  # the dimensions that each takes; 0 is x
    shared: bool

    def init(self, key: Array, x: Array) -> Any:
        keys = jax.random.split(key, len(self.members))
        return {
            name: network.init(k, jnp.zeros(size or jnp.size(x)))
            for k, (name, (size, network)) in zip(keys, self.members.items(), strict=True)
        }

    def _apply(self, name: str, params: Any, inputs: Array) -> Array:
        return self.members[name][1].apply(params[name], inputs)

    def _density(self, name: str, params: Any, inputs: Array) -> Normal:
        return of_variance(self._apply(name, params, inputs))

    def bottom_up(self, params: Any, x: Array) -> tuple[Normal, ...]:
        """N(mu_1, v_1), ..., N(mu_L, v_L)."""
        densities: list[Normal] = []
        for i in range(1, len(self.latents) + 1):
            below = densities[-1].loc if densities else x.reshape(-1)
            densities.append(self._density(f"up_{i}", params, below))
        return tuple(densities)

    def top_down(
        self, params: Any, activations: Any, layer: Layer, items: tuple
    ) -> tuple[Array, tuple]:
        """The numbers of p(x|z_1), and the reports of all layers."""
        reports: list[Any] = []
        z: Any = None
        for number, item in enumerate(items):
            p, message = self._from_above(params, len(items) - number, z)
            q = activations and activations[-1 - number]
            if q and message:
                q = merged(message, q)
            z, report = layer(number, p, q, item)
            reports.append(report)
        return self._apply("output", params, z), tuple(reports)

    def _from_above(self, params: Any, i: int, z: Any) -> tuple[Normal, Normal | None]:
        """p(z_i | z_(i+1)) and what the posterior merges with; on top N(0, 1) and nothing."""
        if z is None:
            return Normal(jnp.zeros(self.latents[-1]), jnp.ones(self.latents[-1])), None
        p = self._density(f"prior_{i}", params, z)
        return p, p if self.shared else self._density(f"message_{i}", params, z)


def ladder(
    output: Sequence[int],
    latents: Sequence[int],
    hidden: Sequence[int],
    depth: int = 2,
    activation: Activation = jax.nn.leaky_relu,
    shared: bool = False,
    precision: str = "float32",
) -> TopDown:
    """A ladder of latent vectors z_1, ..., z_L, without normalization.

    From x up, each N(mu_i, v_i) is a network of mu_(i-1). From the top down, q(z_i | z_>i, x) is
    the product of that density and of N(m_i, w_i), a network of z_(i+1); see ``merged``. On top
    q(z_L | x) = N(mu_L, v_L) and p(z_L) = N(0, 1). The layers of ``TopDown`` begin with z_L.

    Args:
      output: the shape that the network gives.
      latents: dimensions of z_1, ..., z_L.
      hidden: widths of the networks below z_1, ..., z_L, one for each.
      depth: hidden layers of each network.
      activation: function of one array.
      shared: whether N(m_i, w_i) is the prior p(z_i | z_(i+1)) itself. The authors' published
        commands have a second network instead.
      precision: a member of ``PRECISIONS``.
    """
    if not latents or len(latents) != len(hidden):
        raise ValueError(
            f"{len(latents)} latents and {len(hidden)} hidden widths: give one of each for each of "
            "the layers"
        )
    dense = lambda width, size: with_precision(mlp((width,) * depth, size, activation), precision)
    members = {"output": (latents[0], dense(hidden[0], output))}
    for i, (size, width) in enumerate(zip(latents, hidden, strict=True)):
        members[f"up_{i + 1}"] = latents[i - 1] if i else 0, dense(width, 2 * size)
    from_above = ("prior",) if shared else ("prior", "message")
    for i, kind in itertools.product(range(len(latents) - 1), from_above):
        members[f"{kind}_{i + 1}"] = latents[i + 1], dense(hidden[i + 1], 2 * latents[i])
    network = _Ladder(tuple(latents), members, shared)
    names = tuple(f"z{i}" for i in range(len(latents), 0, -1))
    return TopDown(network.init, network.bottom_up, network.top_down, names, (1,) * len(latents))


def halved(latent: int, layers: int) -> tuple[int, ...]:
    """``latent`` dimensions in z_1, and half as many, rounded up, in each layer above."""
    return tuple(math.ceil(latent / 2**i) for i in range(layers))
