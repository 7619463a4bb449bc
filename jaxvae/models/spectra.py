"""The conditional VAE of power spectra (multichannel VAE, Kameoka et al. 2019)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxvae.contracts import Array, Params
from jaxvae.distributions import Exponential, Normal
from jaxvae.models.conditional import CVAE, Conditioned
from jaxvae.networks import Network

LEAST = -18.0  # log of a variance, where powers have mean one: about 1e-8
QUIET = 1e-4  # added to a power before the encoder sees its logarithm
LEVEL, SPREAD = -5.0, 3.0  # about the mean and the deviation of that logarithm for speech


def spectral_cvae(encoder: Network, decoder: Network, shape: tuple[int, int]) -> CVAE:
    """A conditional VAE of powers |s|^2 [T, F] of mean one, whose z [T' D] is a map in time.

    p(s | z, y) = prod N_C(s_tf; 0, sigma_tf^2(z, y)) (arXiv:1808.00892, eq. 20), so that powers are
    exponential with mean sigma^2. Their density is the density of s, times pi for each power.

    Args:
      encoder: takes (log powers [T, F], y) to [T', 2 D], means and log-variances.
      decoder: takes (z, y) to log sigma^2 [T, F].
      shape: (T', D) of the training examples; networks may take longer ones.
    """

    def encode(params: Params, x: Array, y: Array) -> Normal:
        seen = (jnp.log(x + QUIET) - LEVEL) / SPREAD
        raw = encoder.apply(params["encoder"], (seen, y))
        mean, log_variance = (part.reshape(-1) for part in jnp.split(raw, 2, -1))
        return Normal(mean, jnp.exp(0.5 * log_variance))

    def decode(params: Params, z: Array, y: Array) -> Exponential:
        raw = decoder.apply(params["decoder"], (z.reshape(-1, shape[1]), y))
        return Exponential(jnp.maximum(raw, LEAST))

    def prior(params: Params, y: Array) -> Normal:
        return Normal(jnp.zeros(math.prod(shape)), jnp.ones(math.prod(shape)))

    def init(key: Array, example: Conditioned) -> Params:
        key_encoder, key_decoder = jax.random.split(key)
        x, y = example
        of_encoder = encoder.init(key_encoder, (x, y))
        z = jnp.zeros(shape)
        of_decoder = decoder.init(key_decoder, (z, y))
        return {"encoder": of_encoder, "decoder": of_decoder}

    return CVAE(init, encode, decode, prior)
