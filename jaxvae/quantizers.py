"""Quantizers: vectors of an encoder become codes, and codes become vectors of a decoder.

A quantizer is a record of pure functions of one example. Its vectors z are ``[*P, D]``, where P are
the positions, such as the rows and columns of a feature map. Distances are float32. A quantizer of
one's own is a function and a row in ``QUANTIZERS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae import codebooks
from jaxvae.codebooks import nearest_codes
from jaxvae.contracts import Array, Params
from jaxvae.ranges import Amount, Count, Fraction, Positive, Range
from jaxvae.settings import Choice, Chosen

BEGIN_ANEW = Choice(codebooks.REVIVALS)("begin_anew")


class Quantized(NamedTuple):
    """The vectors of one example after quantization."""

    codes: Any  # int32 [*P], or a tuple of such arrays if a position has several codes
    vectors: Array  # [*P, D], what the decoder sees; their gradient passes on to z
    loss: Array  # a scalar that training adds to its loss, a mean over P (and D)
    statistic: Array | None = None  # its mean over the batch goes into ``batch_loss``


class Player(NamedTuple):
    """How a codebook that descends no loss of the model is trained: see ``codebooks``."""

    # (params, keys [B], z [B, *P, D], weight [B], axis_name) -> scalar
    loss: Callable[[Params, Array, Array, Array, str | None], Array]
    optimizer: optax.GradientTransformation


class Quantizer(NamedTuple):
    """A quantizer of vectors ``[*P, D]``."""

    num_codes: Any  # like the codes, ints: a code is 0 .. num_codes - 1
    init: Callable[[Array], Params]  # key -> parameters, such as a codebook
    quantize: Callable[[Params, Array], Quantized]  # (params, z) -> codes, vectors, loss
    look_up: Callable[[Params, Any], Array]  # (params, codes) -> vectors
    batch_loss: Callable[[Array], Array] | None = None  # mean statistic -> scalar
    player: Player | None = None  # if the parameters are a player of their own


def no_params(key: Array) -> Params:
    """No parameters."""
    return {}


def straight_through(z: Array, vectors: Array) -> Array:
    """The value of ``vectors`` with the gradient of z (Bengio et al. 2013, arXiv:1308.3432)."""
    return z + lax.stop_gradient(vectors - z)


def distance(z: Array, vectors: Array) -> Array:
    """|z - stop(q)|^2, a mean over all elements, whose gradient is for z alone."""
    return jnp.mean((z - lax.stop_gradient(vectors)) ** 2)


def _start(key: Array, size: int, latent: int) -> Array:
    """A codebook [K, D] of vectors whose expected square length is one."""
    return jax.random.normal(key, (size, latent)) / math.sqrt(latent)


def nearest(latent: int, codebook_size: Count = 512, commitment: Amount = 0.25) -> Quantizer:
    """The nearest vector of a codebook that descends the loss (arXiv:1711.00937, eq. 3).

    The loss is |stop(z) - e|^2 + beta |z - stop(e)|^2, with means over all elements.

    Args:
      latent: D.
      codebook_size: vectors in a codebook, K.
      commitment: beta, the weight of the encoder's squared distance to its codes.
    """

    def quantize(params: Params, z: Array) -> Quantized:
        codes = nearest_codes(z, lax.stop_gradient(params["book"]))
        vectors = look_up(params, codes)
        loss = distance(vectors, z) + commitment * distance(z, vectors)
        return Quantized(codes, straight_through(z, vectors), loss)

    def look_up(params: Params, codes: Array) -> Array:
        return params["book"][codes]

    init = lambda key: {"book": _start(key, codebook_size, latent)}
    return Quantizer(codebook_size, init, quantize, look_up)


def moving_average(
    latent: int,
    codebook_size: Count = 512,
    commitment: Amount = 0.25,
    codebook_decay: Fraction = 0.99,
    revival: Chosen = BEGIN_ANEW,
) -> Quantizer:
    """The nearest vector of a codebook of moving averages (arXiv:1711.00937, app. A.1).

    The loss is beta |z - stop(e)|^2, a mean over all elements. The averages are in ``codebooks``.

    Args:
      latent: D.
      codebook_size: vectors in a codebook, K.
      commitment: beta, the weight of the encoder's squared distance to its codes.
      codebook_decay: decay of the averages.
      revival: what becomes of codes that are hardly used.
    """
    revived = revival()

    def quantize(params: Params, z: Array) -> Quantized:
        book = lax.stop_gradient(codebooks.vectors_of(params))
        codes = nearest_codes(z, book)
        loss = commitment * distance(z, book[codes])
        return Quantized(codes, straight_through(z, book[codes]), loss)

    def look_up(params: Params, codes: Array) -> Array:
        return codebooks.vectors_of(params)[codes]

    init = lambda key: codebooks.started(_start(key, codebook_size, latent), revived)
    player = Player(codebooks.statistics, codebooks.averaging(codebook_decay, revived))
    return Quantizer(codebook_size, init, quantize, look_up, player=player)


def residual(
    latent: int,
    codebook_size: Count = 512,
    commitment: Amount = 0.25,
    quantizers: Count = 4,
) -> Quantizer:
    """Codebooks one after the other, each of what the ones before it left.

    Zeghidour et al. 2021, arXiv:2107.03312, alg. 1: r <- r - e(r). A position has one code of each
    codebook, the decoder sees the sum of their vectors, and the losses of ``nearest`` are summed.

    Args:
      latent: D.
      codebook_size: vectors in a codebook, K.
      commitment: beta, the weight of the encoder's squared distance to its codes.
      quantizers: how many codebooks there are.
    """

    def quantize(params: Params, z: Array) -> Quantized:
        def one(rest: Array, book: Array) -> tuple[Array, tuple[Array, Array]]:
            codes = nearest_codes(rest, lax.stop_gradient(book))
            vectors = book[codes]
            loss = distance(vectors, rest) + commitment * distance(rest, vectors)
            return rest - lax.stop_gradient(vectors), (codes, loss)

        rest, (codes, losses) = lax.scan(one, z, params["book"])
        vectors = straight_through(z, z - rest)
        return Quantized(tuple(codes), vectors, losses.sum())

    def look_up(params: Params, codes: tuple[Array, ...]) -> Array:
        pairs = zip(params["book"], codes, strict=True)
        return jnp.stack([book[each] for book, each in pairs]).sum(0)

    def init(key: Array) -> Params:
        keys = jax.random.split(key, quantizers)
        return {"book": jnp.stack([_start(key, codebook_size, latent) for key in keys])}

    return Quantizer((codebook_size,) * quantizers, init, quantize, look_up)


def finite_scalar(
    latent: int,
    code_levels: Annotated[tuple[int, ...], Range(3, 1000)] = (8, 5, 5, 5),
) -> Quantizer:
    """Coordinates rounded to a few levels each, without a codebook (arXiv:2309.15505).

    With h = (L - 1)(1 + eps)/2, and o = 1/2 for an even number of levels L and 0 for an odd one,
    q = round(h tanh(z + atanh(o/h)) - o) / floor(L/2). The gradient passes straight through the
    rounding. The authors' code has tan in place of atanh and 1 - eps in place of 1 + eps: then zero
    is not exactly a level.

    Args:
      latent: D.
      code_levels: levels L of each coordinate; their product is the number of codes.
    """
    if len(code_levels) != latent:
        raise ValueError(
            f"code_levels states {len(code_levels)} numbers of levels, {code_levels}, and there "
            f"are latent={latent} coordinates: state one for each"
        )
    if not all(3 <= levels <= 1000 for levels in code_levels):
        raise ValueError(f"code_levels must be from 3 to 1000; they were {code_levels}")
    levels = jnp.array(code_levels)
    half, offset = (levels - 1) * 1.001 / 2, jnp.where(levels % 2 == 0, 0.5, 0.0)
    shift, middle = jnp.arctanh(offset / half), levels // 2
    radix = jnp.array([math.prod(code_levels[:i]) for i in range(latent)])

    def quantize(params: Params, z: Array) -> Quantized:
        bounded = jnp.tanh(z + shift) * half - offset
        rounded = jnp.round(bounded)
        codes = jnp.sum((rounded.astype(jnp.int32) + middle) * radix, -1).astype(jnp.int32)
        return Quantized(codes, straight_through(bounded, rounded) / middle, jnp.zeros(()))

    def look_up(params: Params, codes: Array) -> Array:
        digits = codes[..., None] // radix % levels
        return (digits - middle) / middle

    return Quantizer(math.prod(code_levels), no_params, quantize, look_up)


def lookup_free(
    latent: int,
    commitment: Amount = 0.25,
    entropy_weight: Amount = 0.1,
    diversity: Amount = 1.0,
    inverse_temperature: Positive = 100.0,
) -> Quantizer:
    """The signs of the coordinates, 2^D codes without a codebook (arXiv:2310.05737, sec. 3.1).

    With p(c|z) = softmax_c(2 b z.c) over all sign vectors c, the loss is
    a (E H[p(c|z)] - gamma H[E p(c|z)]) + beta |z - stop(q)|^2. E is over the global batch.

    Args:
      latent: D, the number of bits, at most 18.
      commitment: beta, the weight of the encoder's squared distance to its codes.
      entropy_weight: a, the weight of both entropies.
      diversity: gamma, the weight of the entropy of the mean.
      inverse_temperature: b.
    """
    if latent > 18:
        raise ValueError(f"latent={latent} bits make more codes than a table can hold: 18 at most")
    radix = 2 ** jnp.arange(latent)

    def quantize(params: Params, z: Array) -> Quantized:
        signs = jnp.where(z > 0, 1.0, -1.0)
        codes = jnp.sum((z > 0) * radix, -1).astype(jnp.int32)
        logits = 4 * inverse_temperature * z  # of each bit
        certainty = entropy_weight * bit_entropies(logits).sum(-1).mean()
        loss = certainty + commitment * distance(z, signs)
        statistic = code_probabilities(logits).reshape(-1, 2**latent).mean(0)
        return Quantized(codes, straight_through(z, signs), loss, statistic)

    def look_up(params: Params, codes: Array) -> Array:
        return (codes[..., None] // radix % 2) * 2.0 - 1.0

    def batch_loss(mean: Array) -> Array:
        return -entropy_weight * diversity * entropy(mean)

    return Quantizer(2**latent, no_params, quantize, look_up, batch_loss=batch_loss)


def bit_entropies(logits: Array) -> Array:
    """The entropy of each bit with log-odds ``logits``, in nats."""
    return jax.nn.softplus(logits) - logits * jax.nn.sigmoid(logits)


def code_probabilities(logits: Array) -> Array:
    """The probability of every code of independent bits [*P, D]: [*P, 2^D]."""
    table = jnp.ones((*logits.shape[:-1], 1))
    for logit in jnp.split(logits, logits.shape[-1], -1):
        one, zero = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
        table = jnp.concatenate([table * zero, table * one], -1)
    return table


def entropy(probabilities: Array) -> Array:
    """-sum_k p_k log p_k over the last axis, in nats; its gradient is finite at p_k = 0."""
    return -jnp.sum(probabilities * jnp.log(jnp.maximum(probabilities, 1e-30)), -1)


def uniform_nats(num_codes: Any, codes: Any) -> float:
    """-log p(codes) under the uniform law of codes, in nats."""
    nats = jax.tree.map(lambda size, each: math.log(size) * math.prod(each.shape), num_codes, codes)
    return sum(jax.tree.leaves(nats))


def frequencies(codes: Array, weight: Array, num_codes: int) -> Array:
    """How often each code is used in a batch, weighted: [K].

    ``codes`` are [B, ...] and ``weight`` [B]. If the weights sum to one, the frequencies do.
    """
    each = math.prod(codes.shape[1:])
    return jnp.zeros(num_codes).at[codes.ravel()].add(jnp.repeat(weight / each, each))


def perplexity(frequencies: Array) -> Array:
    """exp(-sum_k p_k log p_k): how many codes equally often used would be as diverse."""
    return jnp.exp(entropy(frequencies))


QUANTIZERS: dict[str, Callable[..., Quantizer]] = {
    "nearest": nearest,
    "moving_average": moving_average,
    "residual": residual,
    "finite_scalar": finite_scalar,
    "lookup_free": lookup_free,
}
