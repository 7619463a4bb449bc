"""Residual encoders and decoders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen
from jax import lax

from jaxvae.networks.adapters import from_linen
from jaxvae.networks.contract import Network, renamed
from jaxvae.networks.layers import (
    Activation,
    Array,
    ConvTranspose,
    GroupNorm,
    conv,
    decoder_names,
    dense,
    encoder_names,
    smallest_image,
)

BLOCK_NAMES = {f"Conv_{i}": f"conv_{i}" for i in range(2)} | {
    f"GroupNorm_{i}": f"norm_{i}" for i in range(2)
}


def _is_sigmoid(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive is lax.logistic_p


class _ResidualBlock(linen.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), with pre-activation.

    He et al. 2016, arXiv:1603.05027, fig. 1b. ``linen.scan`` needs the form
    ``(x, None) -> (output, None)``.
    """

    activation: Activation

    @linen.compact
    def __call__(self, x: Array, no_input: None) -> tuple[Array, None]:
        width, h = x.shape[-1], x
        # The backward pass computes activations again, which is faster than to keep them. On a CPU
        # it keeps the sigmoids.
        policy = _is_sigmoid if jax.default_backend() == "cpu" else None
        active = linen.remat(
            lambda norm, h: self.activation(norm(h)), prevent_cse=False, policy=policy
        )
        for i in range(2):
            norm = GroupNorm(math.gcd(8, width), name=f"GroupNorm_{i}")
            h = conv(width, (3, 3))(active(norm, h))
        return x + h, None


def _residual_stage(x: Array, name: str, blocks: int, activation: Activation, remat: bool) -> Array:
    """``blocks`` residual blocks as one loop over parameters stacked ``[blocks, ...]``.

    The parameters of each block are drawn independently.
    """
    if not blocks:
        return x
    block = linen.remat(_ResidualBlock, prevent_cse=False) if remat else _ResidualBlock
    # Every turn of the loop copies what the backward pass needs, so a turn has two blocks. With
    # remat there is little to copy.
    stage = linen.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=blocks,
        unroll=1 if remat else 2,
    )
    return stage(activation, name=name)(x, None)[0]


def residual_encoder(
    channels: Sequence[int],
    output: int,
    blocks: int = 2,
    activation: Activation = jax.nn.silu,
    remat: bool = False,
) -> Network:
    """4x4 convolutions of stride 2, each with a stage of residual blocks, then an affine map.

    The layers are called conv_0, stage_0, conv_1, ... and output. The compiled program does not
    grow with ``blocks`` beyond three.

    Args:
      channels: channels of each stage.
      output: numbers that the network gives, from images ``[H, W, C]``.
      blocks: residual blocks in each stage.
      activation: function of one array.
      remat: whether the backward pass keeps the blocks' inputs alone and computes the rest again.
        That takes a fraction of the memory and a sixth more products (Chen et al. 2016,
        arXiv:1604.06174).
    """

    class Encoder(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            for i, width in enumerate(channels):
                x = conv(width, (4, 4), strides=2)(x)
                x = _residual_stage(x, f"stage_{i}", blocks, activation, remat)
            return dense(output)(activation(x).reshape(-1))

    return renamed(from_linen(Encoder()), BLOCK_NAMES | encoder_names(len(channels)))


def residual_decoder(
    channels: Sequence[int],
    output: Sequence[int],
    blocks: int = 2,
    activation: Activation = jax.nn.silu,
    remat: bool = False,
) -> Network:
    """The mirror of ``residual_encoder``: an affine map, stages and transposed convolutions.

    The layers are called input, stage_0, deconv_0, ...

    Args:
      channels: channels of each stage, from the smallest image on.
      output: shape of the images that the network gives, ``[H, W, C]``.
      blocks: residual blocks in each stage.
      activation: function of one array.
      remat: whether the backward pass keeps the blocks' inputs alone, as in the encoder.
    """
    height, width, depth = output
    small = smallest_image(output, channels)

    class Decoder(linen.Module):
        @linen.compact
        def __call__(self, z: Array) -> Array:
            x = dense(math.prod(small))(z).reshape(small)
            for i, features in enumerate((*channels[1:], depth)):
                x = _residual_stage(x, f"stage_{i}", blocks, activation, remat)
                x = ConvTranspose(features, name=f"ConvTranspose_{i}")(activation(x))
            return x[:height, :width]

    return renamed(from_linen(Decoder()), BLOCK_NAMES | decoder_names(len(channels)))
