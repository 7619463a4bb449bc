"""Activations, and linen's layers with the products and convolutions of ``kernels``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen
from jax import lax

from jaxvae import kernels

Array = jax.Array
Activation = Callable[[Array], Array]
ActivationName = Literal["relu", "leaky_relu", "gelu", "exact_gelu", "silu", "softplus", "tanh"]
ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "gelu": jax.nn.gelu,
    "exact_gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
}

dense = functools.partial(linen.Dense, dot_general=kernels.dot_general)
conv = functools.partial(linen.Conv, conv_general_dilated=kernels.conv_general_dilated)


class ConvTranspose(linen.Module):
    """``linen.ConvTranspose`` with stride 2, by the kernels of the library.

    Flax's own does not let one choose its convolution.
    """

    features: int
    kernel_size: tuple[int, ...] = (4, 4)

    @linen.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", linen.initializers.lecun_normal(), shape)
        bias = self.param("bias", linen.initializers.zeros_init(), (self.features,))
        strides = (2,) * len(self.kernel_size)
        numbers = None if len(strides) == 2 else ("NWC", "WIO", "NWC")
        y = kernels.conv_transpose(x[None], kernel, strides, "SAME", dimension_numbers=numbers)
        return y[0] + bias


class GroupNorm(linen.Module):
    """Group normalization of one image ``[H, W, C]``, with a scale and a shift per channel.

    Wu & He 2018, arXiv:1803.08494. The moments of a group are means of its channels' moments, so
    all sums are over whole images and the backward pass has no array of groups. (Given one image,
    ``linen.GroupNorm`` would take its rows for examples.)
    """

    groups: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        scale = self.param("scale", linen.initializers.ones_init(), (width,))
        bias = self.param("bias", linen.initializers.zeros_init(), (width,))
        h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = self._group_mean(h)
        variance = jnp.maximum(self._group_mean(h**2) - mean**2, 0)
        a = scale * lax.rsqrt(variance + 1e-6)
        return (a * h + (bias - a * mean)).astype(x.dtype)

    def _group_mean(self, h: Array) -> Array:
        """The mean of each channel's group; [H, W, C] -> [C]."""
        means = h.mean((0, 1)).reshape(self.groups, -1).mean(-1)
        return jnp.repeat(means, h.shape[-1] // self.groups)


def smallest_image(output: Sequence[int], channels: Sequence[int]) -> tuple[int, int, int]:
    """The shape from which layers that double height and width reach ``output [H, W, C]``."""
    height, width, _ = output
    factor = 2 ** len(channels)
    return math.ceil(height / factor), math.ceil(width / factor), channels[0]


def encoder_names(count: int) -> dict[str, str]:
    """Names of the layers of an encoder with ``count`` convolutions, by the names in linen.

    Linen counts layers by their class: Conv_0, Dense_0.
    """
    return {f"Conv_{i}": f"conv_{i}" for i in range(count)} | {"Dense_0": "output"}


def decoder_names(count: int) -> dict[str, str]:
    """Names of the layers of a decoder with ``count`` transposed convolutions, likewise."""
    return {f"ConvTranspose_{i}": f"deconv_{i}" for i in range(count)} | {"Dense_0": "input"}
