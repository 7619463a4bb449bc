"""Convolutional transforms with generalized divisive normalization.

Ballé et al. 2017, arXiv:1611.01704, sec. 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen

from jaxvae.networks.adapters import from_linen
from jaxvae.networks.contract import Network
from jaxvae.networks.layers import Array, ConvTranspose, conv, smallest_image


class Normalization(linen.Module):
    """y_i = x_i / sqrt(b_i^2 + sum_j g_ij^2 x_j^2) over channels, or x_i times it."""

    inverse: bool = False

    @linen.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        start = lambda key, shape: jnp.sqrt(0.1 * jnp.eye(width))
        floor = self.param("floor", linen.initializers.ones_init(), (width,))
        weights = self.param("weights", start, (width, width))
        norm = jnp.sqrt(floor**2 + 1e-6 + jnp.square(x) @ jnp.square(weights))
        return x * norm if self.inverse else x / norm


def analysis(channels: Sequence[int], latent: int) -> Network:
    """5x5 convolutions of stride 2 with normalization between; the output is flat.

    The last of them has ``latent`` channels.
    """

    class Analysis(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            for width in channels:
                x = Normalization()(conv(width, (5, 5), strides=2)(x))
            return conv(latent, (5, 5), strides=2)(x).reshape(-1)

    return from_linen(Analysis())


def synthesis(channels: Sequence[int], latent: int, output: Sequence[int]) -> Network:
    """The mirror of ``analysis``, with 4x4 transposed convolutions."""
    height, width, depth = output
    small = smallest_image(output, (latent, *channels))

    class Synthesis(linen.Module):
        @linen.compact
        def __call__(self, y: Array) -> Array:
            x = y.reshape(small)
            for features in channels:
                x = Normalization(inverse=True)(ConvTranspose(features)(x))
            return ConvTranspose(depth)(x)[:height, :width]

    return from_linen(Synthesis())
