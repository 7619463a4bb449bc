"""The fully connected network of ladder VAEs (Sonderby et al. 2016, arXiv:1602.02282)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
      hidden: widths of the layers below them, one for each.
      depth: hidden layers of each network.
      activation: function of one array.
      shared: whether N(m_i, w_i) is the prior p(z_i | z_(i+1)) itself. The authors' published
        commands have a second network instead.
      precision: a member of ``PRECISIONS``.
    """
    if len(latents) != len(hidden):
        raise ValueError(f"{len(latents)} latents and {len(hidden)} hidden widths: give one each")
    dense = lambda width, size: with_precision(mlp((width,) * depth, size, activation), precision)
    top = len(latents)
    members: dict[str, Network] = {"output": dense(hidden[0], output)}
    for i in range(top):
        members[f"up_{i + 1}"] = dense(hidden[i], 2 * latents[i])
    for i in range(top - 1):
        members[f"prior_{i + 1}"] = dense(hidden[i + 1], 2 * latents[i])
        if not shared:
            members[f"message_{i + 1}"] = dense(hidden[i + 1], 2 * latents[i])

    def init(key: Array, x: Array) -> Any:
        below = lambda name: x.reshape(-1) if name == "up_1" else jnp.zeros(_inputs(name, latents))
        keys = jax.random.split(key, len(members))
        each = zip(keys, members.items(), strict=True)
        return {name: network.init(k, below(name)) for k, (name, network) in each}

    def apply(name: str, params: Any, inputs: Array) -> Array:
        return members[name].apply(params[name], inputs)

    def bottom_up(params: Any, x: Array) -> tuple[Normal, ...]:
        found: list[Normal] = []
        state = x.reshape(-1)
        for i in range(top):
            found.append(of_variance(apply(f"up_{i + 1}", params, state)))
            state = found[-1].loc
        return tuple(found)

    def top_down(params: Any, activations: Any, layer: Layer, items: tuple) -> tuple[Array, tuple]:
        p = Normal(jnp.zeros(latents[-1]), jnp.ones(latents[-1]))
        q = None if activations is None else activations[-1]
        reports = []
        z: Any = None
        for number, item in enumerate(items):
            i = top - number
            if number:
                p = of_variance(apply(f"prior_{i}", params, z))
                message = p if shared else of_variance(apply(f"message_{i}", params, z))
                q = None if activations is None else merged(message, activations[i - 1])
            z, report = layer(number, p, q, item)
            reports.append(report)
        return apply("output", params, z), tuple(reports)

    names = tuple(f"z{top - i}" for i in range(top))
    return TopDown(init, bottom_up, top_down, names, (1,) * top)


def _inputs(name: str, latents: Sequence[int]) -> int:
    """The dimensions of what a member of the ladder takes."""
    kind, _, number = name.partition("_")
    if kind == "output":
        return latents[0]
    return latents[int(number) - 2] if kind == "up" else latents[int(number)]


def halved(latent: int, layers: int) -> tuple[int, ...]:
    """``latent`` dimensions in z_1, and half as many, rounded up, in each layer above."""
    return tuple(math.ceil(latent / 2**i) for i in range(layers))
