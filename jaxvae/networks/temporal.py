"""Gated convolutions along time, with frequencies as channels, given a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from jaxvae.networks.adapters import from_linen
from jaxvae.networks.contract import Network
from jaxvae.networks.layers import Array, ConvTranspose, conv

FIRST, OTHERS = 5, 4  # kernel sizes, of the layer at full rate and of those that halve it
# Variances are decoded as logarithms: outputs of unit size would be e^10 times off at first.
SMALL = linen.initializers.normal(1e-3)


def _with_label(x: Array, y: Array) -> Array:
    """x [T, C] with y [L] as further channels of each frame."""
    return jnp.concatenate([x, jnp.broadcast_to(y, (len(x), len(y)))], -1)


def _gated(x: Array) -> Array:
    """A gated linear unit (Dauphin et al. 2017): half of the channels gate the others."""
    values, gates = jnp.split(x, 2, -1)
    return values * jax.nn.sigmoid(gates)


def temporal_encoder(hidden: Sequence[int], latent: int) -> Network:
    """An encoder of (spectra [T, F], label [L]) to [T / 2^H, 2 latent] (arXiv:1808.00892).

    The first of the H hidden layers has all frames, and each layer after it has half of them. Every
    layer sees the label. T may be any multiple of 2^H.
    """

    class Encoder(linen.Module):
        @linen.compact
        def __call__(self, both: Any) -> Array:
            x, y = both
            for i, width in enumerate(hidden):
                stride, taps = (2, OTHERS) if i else (1, FIRST)
                x = _gated(conv(2 * width, (taps,), (stride,))(_with_label(x, y)))
            last = conv(2 * latent, (OTHERS,), (2,), kernel_init=SMALL)
            return last(_with_label(x, y))

    return from_linen(Encoder())


def temporal_decoder(hidden: Sequence[int], output: int) -> Network:
    """A decoder of (z [T / 2^H, D], label [L]) to [T, output], the reverse of the encoder.

    ``hidden`` are the widths of the H hidden layers, the first of which is the nearest to z.
    """

    class Decoder(linen.Module):
        @linen.compact
        def __call__(self, both: Any) -> Array:
            x, y = both
            for width in hidden:
                x = _gated(ConvTranspose(2 * width, (OTHERS,))(_with_label(x, y)))
            return conv(output, (FIRST,), kernel_init=SMALL)(_with_label(x, y))

    return from_linen(Decoder())
