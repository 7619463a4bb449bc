"""Quantizers: vectors of an encoder become codes, and codes become vectors of a decoder.

A quantizer is a record of pure functions of one example. Its vectors z are ``[*P, D]``, where P are
the positions, such as the rows and columns of a feature map. Distances are float32. A quantizer of
one's own is a function and a row in ``QUANTIZERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxvae.contracts import Array, Params
from jaxvae.ranges import Amount, Count


class Quantized(NamedTuple):
    """The vectors of one example after quantization."""

    codes: Array  # int32 [*P]
    vectors: Array  # [*P, D], what the decoder sees; their gradient passes on to z
    loss: Array  # a scalar that training adds to the loss, a mean over P and D


class Quantizer(NamedTuple):
    """A quantizer of vectors ``[*P, D]``."""

    num_codes: int  # the values that a code can take, 0 .. num_codes - 1
    init: Callable[[Array], Params]  # key -> parameters, such as a codebook
    quantize: Callable[[Params, Array], Quantized]  # (params, z) -> codes, vectors, loss
    look_up: Callable[[Params, Array], Array]  # (params, codes) -> vectors


def straight_through(z: Array, vectors: Array) -> Array:
    """The value of ``vectors`` with the gradient of z (Bengio et al. 2013, arXiv:1308.3432)."""
    return z + lax.stop_gradient(vectors - z)


def nearest_codes(z: Array, book: Array) -> Array:
    """argmin_k |z - e_k|^2 for each vector of z [*P, D] and a codebook [K, D]: int32 [*P].

    The first of several nearest codes is taken, so all devices take the same one.
    """
    products = jnp.matmul(z.astype(jnp.float32), book.T, precision="float32")
    distances = jnp.sum(book**2, -1) - 2 * products  # [*P, K], less |z|^2
    return jnp.argmin(distances, -1).astype(jnp.int32)


def commitment_loss(z: Array, vectors: Array) -> Array:
    """|z - stop(q)|^2, a mean over all elements, whose gradient is the encoder's alone."""
    return jnp.mean((z - lax.stop_gradient(vectors)) ** 2)


def nearest(latent: int, codebook_size: Count = 512, commitment: Amount = 0.25) -> Quantizer:
    """The nearest vector of a codebook that descends the loss (arXiv:1711.00937, eq. 3).

    The loss is |stop(z) - q|^2 + beta |z - stop(q)|^2, with means over all elements.

    Args:
      latent: D.
      codebook_size: vectors in the codebook, K.
      commitment: beta, the weight of the encoder's distance to its codes.
    """

    def init(key: Array) -> Params:
        return {"book": jax.random.normal(key, (codebook_size, latent)) / jnp.sqrt(latent)}

    def look_up(params: Params, codes: Array) -> Array:
        return params["book"][codes]

    def quantize(params: Params, z: Array) -> Quantized:
        codes = nearest_codes(z, lax.stop_gradient(params["book"]))
        vectors = look_up(params, codes)
        loss = commitment_loss(vectors, z) + commitment * commitment_loss(z, vectors)
        return Quantized(codes, straight_through(z, vectors), loss)

    return Quantizer(codebook_size, init, quantize, look_up)


QUANTIZERS: dict[str, Callable[..., Quantizer]] = {"nearest": nearest}
