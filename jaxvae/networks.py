"""Networks behind a pair of pure functions, ``Network(init, apply)``: the only room that knows Flax.

``init(key, x) -> params`` and ``apply(params, x) -> output``, for one example; batches are made by ``jax.vmap``.
Any pair of functions is a network, and ``from_nnx`` makes one of a Flax NNX module. Parameters are float32;
``dtype=jnp.bfloat16`` computes in bfloat16, and outputs are float32 always.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx

Array = jax.Array
Activation = Callable[[Array], Array]
ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
}


class Network(NamedTuple):
    """A function with parameters."""

    init: Callable  # (key, x) -> params
    apply: Callable  # (params, x) -> output


def from_linen(module: linen.Module) -> Network:
    """A Flax linen module whose only collection is ``params``."""
    init = jax.jit(lambda key, x: module.init(key, x)["params"])
    return Network(init, lambda params, x: module.apply({"params": params}, x))


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """A Flax NNX module, given the function that builds it: ``from_nnx(lambda rngs: nnx.Linear(64, 8, rngs=rngs))``.

    Its ``nnx.Param`` variables become the parameters, a plain dictionary; other variables stay as they were built.
    """
    graph, abstract, *rest = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)
    if jax.tree.leaves(rest):
        kinds = sorted(
            {type(leaf).__name__ for leaf in jax.tree.leaves(rest, is_leaf=lambda v: isinstance(v, nnx.Variable))}
        )
        raise ValueError(
            f"from_nnx takes modules whose state is nnx.Param only; this one also holds {', '.join(kinds)}"
        )

    def init(key: Array, x: Array) -> Any:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))

    def apply(params: Any, x: Array) -> Array:
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state, *rest)(x)

    return Network(init, apply)


def mlp(
    hidden: Sequence[int], output: int | Sequence[int], activation: Activation = jax.nn.relu, dtype: Any = None
) -> Network:
    """Fully connected network: the input is flattened, ``hidden`` gives the widths, ``output`` the output's shape.

    With ``hidden=()`` it is one affine map.
    """
    shape = (output,) if isinstance(output, int) else tuple(output)

    class MLP(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            x = x.reshape(-1)
            for width in hidden:
                x = activation(linen.Dense(width, dtype=dtype)(x))
            return linen.Dense(math.prod(shape), dtype=dtype)(x).astype(jnp.float32).reshape(shape)

    return from_linen(MLP())


def convolutional_encoder(
    channels: Sequence[int], output: int, activation: Activation = jax.nn.relu, dtype: Any = None
) -> Network:
    """4x4 convolutions of stride 2, one for each of ``channels``, then an affine map to ``output [output]``.

    The input is ``[H, W, C]``; each layer halves H and W, rounded up.
    """

    class Encoder(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            for width in channels:
                x = activation(linen.Conv(width, (4, 4), strides=2, dtype=dtype)(x))
            return linen.Dense(output, dtype=dtype)(x.reshape(-1)).astype(jnp.float32)

    return from_linen(Encoder())


def convolutional_decoder(
    channels: Sequence[int], output: Sequence[int], activation: Activation = jax.nn.relu, dtype: Any = None
) -> Network:
    """The encoder's mirror: an affine map to the smallest image, then 4x4 transposed convolutions of stride 2.

    ``channels`` are the widths from the smallest image on; ``output`` is ``[H, W, C]``. Sizes that are no multiple of
    2^len(channels) are cropped from the next larger one.
    """
    height, width, depth = output
    factor = 2 ** len(channels)

    class Decoder(linen.Module):
        @linen.compact
        def __call__(self, z: Array) -> Array:
            small = (-(-height // factor), -(-width // factor), channels[0])
            x = activation(linen.Dense(math.prod(small), dtype=dtype)(z)).reshape(small)
            for features in (*channels[1:], None):
                x = linen.ConvTranspose(features or depth, (4, 4), strides=(2, 2), dtype=dtype)(x)
                x = activation(x) if features else x
            return x[:height, :width].astype(jnp.float32)

    return from_linen(Decoder())


def _residual_block(x: Array, activation: Activation, dtype: Any) -> Array:
    """x + conv(act(norm(conv(act(norm(x)))))), pre-activation (He et al. 2016, arXiv:1603.05027, fig. 1b)."""
    width, h = x.shape[-1], x
    for _ in range(2):
        h = activation(linen.GroupNorm(num_groups=math.gcd(8, width), dtype=dtype)(h))
        h = linen.Conv(width, (3, 3), dtype=dtype)(h)
    return x + h


def residual_encoder(
    channels: Sequence[int], output: int, blocks: int = 2, activation: Activation = jax.nn.silu, dtype: Any = None
) -> Network:
    """For each of ``channels`` a 4x4 convolution of stride 2 and ``blocks`` residual blocks, then an affine map."""

    class Encoder(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            for width in channels:
                x = linen.Conv(width, (4, 4), strides=2, dtype=dtype)(x)
                for _ in range(blocks):
                    x = _residual_block(x, activation, dtype)
            return linen.Dense(output, dtype=dtype)(activation(x).reshape(-1)).astype(jnp.float32)

    return from_linen(Encoder())


def residual_decoder(
    channels: Sequence[int],
    output: Sequence[int],
    blocks: int = 2,
    activation: Activation = jax.nn.silu,
    dtype: Any = None,
) -> Network:
    """The residual encoder's mirror; ``channels`` from the smallest image on, ``output`` is ``[H, W, C]``."""
    height, width, depth = output
    factor = 2 ** len(channels)

    class Decoder(linen.Module):
        @linen.compact
        def __call__(self, z: Array) -> Array:
            small = (-(-height // factor), -(-width // factor), channels[0])
            x = linen.Dense(math.prod(small), dtype=dtype)(z).reshape(small)
            for features in (*channels[1:], None):
                for _ in range(blocks):
                    x = _residual_block(x, activation, dtype)
                x = linen.ConvTranspose(features or depth, (4, 4), strides=(2, 2), dtype=dtype)(activation(x))
            return x[:height, :width].astype(jnp.float32)

    return from_linen(Decoder())


def scaled_input(network: Network, factor: float) -> Network:
    """The same network, fed with ``factor * x``."""
    return network._replace(
        init=lambda key, x: network.init(key, factor * x),
        apply=lambda params, x: network.apply(params, factor * x),
    )
