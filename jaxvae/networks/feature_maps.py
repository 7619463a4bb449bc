"""Networks between images and feature maps, without a vector in the middle."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import linen

from jaxvae.networks.adapters import from_linen
from jaxvae.networks.contract import Network
from jaxvae.networks.layers import Array, ConvTranspose, conv


class _Stack(linen.Module):
    """Residual blocks x + conv1x1(relu(conv3x3(relu(x)))), and a relu after the last one."""

    blocks: int
    inner: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.blocks):
            h = conv(self.inner, (3, 3), name=f"conv_{i}")(jax.nn.relu(x))
            x = x + conv(x.shape[-1], (1, 1), name=f"output_{i}")(jax.nn.relu(h))
        return jax.nn.relu(x)


def feature_encoder(channels: Sequence[int], blocks: int = 2, inner: int = 32) -> Network:
    """Images ``[H, W, C]`` to features ``[h, w, channels[-1]]``, with one halving per channel.

    van den Oord et al. 2017, arXiv:1711.00937, sec. 4.1: 4x4 convolutions of stride 2, a 3x3
    convolution, and residual blocks with ``inner`` channels inside. Heights and widths are rounded
    up.
    """

    class Encoder(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            for i, width in enumerate(channels):
                x = jax.nn.relu(conv(width, (4, 4), strides=2, name=f"conv_{i}")(x))
            x = conv(channels[-1], (3, 3), name="features")(x)
            return _Stack(blocks, inner, name="stack")(x)

    return from_linen(Encoder())


def feature_decoder(
    channels: Sequence[int], output: Sequence[int], blocks: int = 2, inner: int = 32
) -> Network:
    """The mirror of ``feature_encoder``: ``[h, w, D]`` to ``output``, ``[H, W, C]``.

    ``channels`` are the widths from the smallest image on. The output is cropped from the next
    larger one if H or W is no multiple of 2^len(channels).
    """
    height, width, depth = output

    class Decoder(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            x = conv(channels[0], (3, 3), name="features")(x)
            x = _Stack(blocks, inner, name="stack")(x)
            for i, features in enumerate(channels[1:]):
                x = jax.nn.relu(ConvTranspose(features, name=f"deconv_{i}")(x))
            x = ConvTranspose(depth, name=f"deconv_{len(channels) - 1}")(x)
            return x[:height, :width]

    return from_linen(Decoder())


def pointwise(output: int) -> Network:
    """An affine map of the channels at each position, ``[h, w, C]`` to ``[h, w, output]``."""

    class Pointwise(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            return conv(output, (1, 1), name="output")(x)

    return from_linen(Pointwise())
