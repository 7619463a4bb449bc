"""Fully connected networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen

from jaxvae.networks.adapters import from_linen
from jaxvae.networks.contract import Network, renamed
from jaxvae.networks.layers import Activation, Array, dense


def mlp(
    hidden: Sequence[int], output: int | Sequence[int], activation: Activation = jax.nn.relu
) -> Network:
    """A fully connected network of the flattened input, with ``hidden`` widths.

    ``output`` is the shape of the output. With ``hidden=()`` the network is one affine map. The
    layers are called hidden_0, hidden_1, ... and output.
    """
    shape = (output,) if isinstance(output, int) else tuple(output)

    class MLP(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            x = x.reshape(-1)
            for width in hidden:
                x = activation(dense(width)(x))
            return dense(math.prod(shape))(x).reshape(shape)

    names = {f"Dense_{i}": f"hidden_{i}" for i in range(len(hidden))}
    return renamed(from_linen(MLP()), names | {f"Dense_{len(hidden)}": "output"})


def mlp_of_parts(
    hidden: Sequence[int], output: int | Sequence[int], activation: Activation = jax.nn.relu
) -> Network:
    """The fully connected network ``mlp`` of several inputs side by side, given as a tuple.

    The first layer is a sum of affine maps, one for each input. Where ``jax.vmap`` is over one
    input alone, such as the class, the maps of the others are computed once.
    """
    shape = (output,) if isinstance(output, int) else tuple(output)
    widths = (*hidden, math.prod(shape))

    class MLPOfParts(linen.Module):
        @linen.compact
        def __call__(self, parts: Sequence[Array]) -> Array:
            flat = [part.reshape(-1) for part in parts]
            maps = [
                dense(widths[0], use_bias=i == 0, name=f"input_{i}")(part)
                for i, part in enumerate(flat)
            ]
            x = sum(maps[1:], maps[0])
            for i, width in enumerate(widths[1:]):
                x = dense(width, name=f"layer_{i + 1}")(activation(x))
            return x.reshape(shape)

    return from_linen(MLPOfParts())


def mlp_with_dropout(
    hidden: Sequence[int], output: int, rate: float, activation: Activation = jax.nn.relu
) -> Network:
    """The network ``mlp`` whose training drops a share ``rate`` of the units of hidden layers."""

    class MLPWithDropout(linen.Module):
        @linen.compact
        def __call__(self, x: Array, deterministic: bool = True) -> Array:
            for i, width in enumerate(hidden):
                x = activation(dense(width, name=f"hidden_{i}")(x))
                x = linen.Dropout(rate)(x, deterministic=deterministic)
            return dense(output, name="output")(x)

    return from_linen(MLPWithDropout())


def mlp_beside(
    hidden: Sequence[int], output: Sequence[int], activation: Activation = jax.nn.relu
) -> Network:
    """A fully connected network of (x [D], y [B]), in which every layer takes y beside its input.

    ``output`` is the shape of the output. y may have no numbers.
    """

    class MLPBeside(linen.Module):
        @linen.compact
        def __call__(self, both: tuple[Array, Array]) -> Array:
            x, y = both
            for i, width in enumerate(hidden):
                x = activation(dense(width, name=f"hidden_{i}")(jnp.concatenate([x, y])))
            last = dense(math.prod(output), name="output")
            return last(jnp.concatenate([x, y])).reshape(output)

    return from_linen(MLPBeside())
