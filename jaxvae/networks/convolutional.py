"""Convolutional encoders and decoders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from flax import linen

from jaxvae.networks.adapters import from_linen
from jaxvae.networks.contract import Network, renamed
from jaxvae.networks.layers import (
    Activation,
    Array,
    ConvTranspose,
    conv,
    decoder_names,
    dense,
    encoder_names,
    smallest_image,
)


def convolutional_encoder(
    channels: Sequence[int], output: int, activation: Activation = jax.nn.relu
) -> Network:
    """4x4 convolutions of stride 2, one for each of ``channels``, then an affine map.

    The input is ``[H, W, C]`` and the output ``[output]``. Each convolution halves H and W, rounded
    up. The layers are called conv_0, conv_1, ... and output.
    """

    class Encoder(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            for width in channels:
                x = activation(conv(width, (4, 4), strides=2)(x))
            return dense(output)(x.reshape(-1))

    return renamed(from_linen(Encoder()), encoder_names(len(channels)))


def convolutional_decoder(
    channels: Sequence[int], output: Sequence[int], activation: Activation = jax.nn.relu
) -> Network:
    """The encoder's mirror: an affine map, then 4x4 transposed convolutions of stride 2.

    ``channels`` are the widths from the smallest image on, and ``output`` is ``[H, W, C]``. If H or
    W is no multiple of 2^len(channels), the output is cropped from the next larger one. The layers
    are called input, deconv_0, deconv_1, ...
    """
    height, width, depth = output
    small = smallest_image(output, channels)

    class Decoder(linen.Module):
        @linen.compact
        def __call__(self, z: Array) -> Array:
            x = activation(dense(math.prod(small))(z)).reshape(small)
            for i, features in enumerate(channels[1:]):
                x = activation(ConvTranspose(features, name=f"ConvTranspose_{i}")(x))
            x = ConvTranspose(depth, name=f"ConvTranspose_{len(channels) - 1}")(x)
            return x[:height, :width]

    return renamed(from_linen(Decoder()), decoder_names(len(channels)))
