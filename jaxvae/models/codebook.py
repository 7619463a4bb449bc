"""Autoencoders with discrete codes, on one level or on several.

van den Oord et al. 2017, arXiv:1711.00937; Razavi et al. 2019, arXiv:1906.00446. From the coarsest
level down, the codes of a level see its features and what is decoded from the levels above. x is
decoded from the codes of all levels.

The posterior is a point, c(x). With the uniform prior over all codes,
log p(x) >= log p(x|c(x)) - sum_l (number of codes of level l) log K_l.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae import quantizers
from jaxvae.contracts import Array, BatchLoss, Params, Terms
from jaxvae.distributions import Point, log_prob_of
from jaxvae.likelihoods import Likelihood
from jaxvae.models.answers import Model
from jaxvae.networks import Network
from jaxvae.quantizers import Quantized, Quantizer


class Level(NamedTuple):
    """One level of codes."""

    down: Network  # x, or features of the finer level -> features [h, w, C]
    to_vectors: Network  # features beside what is decoded from above -> z [h, w, D]
    up: Network  # vectors beside what is decoded from above -> what the finer level sees, or raw x
    quantizer: Quantizer


class Codebook(NamedTuple):
    """An autoencoder with codes. Its parameters are ``{"levels", "quantizers", "likelihood"}``."""

    levels: tuple[Level, ...]  # from the coarsest to the finest
    likelihood: Likelihood
    shape: tuple[int, ...]  # of x, [H, W, C]


class Coded(NamedTuple):
    """What one level makes of an example."""

    z: Array  # [h, w, D], before quantization
    quantized: Quantized


def init(model: Codebook, key: Array) -> Params:
    """The parameters of a model. Raises ValueError if the decoder's output has another shape."""
    rows = jax.random.split(key, (len(model.levels), 4))
    features, downs = [jnp.zeros(model.shape)], []
    for level, row in zip(model.levels[::-1], rows, strict=True):
        downs.append(level.down.init(row[0], features[-1]))
        features.append(_zeros(level.down, downs[-1], features[-1]))
    above: Any = None
    levels = []
    for level, down, row in zip(model.levels, downs[::-1], rows, strict=True):
        seen = _beside(above, features.pop())
        to_vectors = level.to_vectors.init(row[1], seen)
        state = _beside(above, _zeros(level.to_vectors, to_vectors, seen))
        up = level.up.init(row[2], state)
        above = _zeros(level.up, up, state)
        levels.append({"down": down, "to_vectors": to_vectors, "up": up})
    expected = model.likelihood.outputs(model.shape)
    if jnp.shape(above) != expected:
        raise ValueError(f"the decoder returned shape {jnp.shape(above)} instead of {expected}")
    books = [level.quantizer.init(row[3]) for level, row in zip(model.levels, rows, strict=True)]
    likelihood = model.likelihood.init(jax.random.fold_in(key, 0))
    return {"levels": tuple(levels), "quantizers": tuple(books), "likelihood": likelihood}


def _zeros(network: Network, params: Params, x: Array) -> Array:
    """Zeros like the output of a network."""
    output = jax.eval_shape(network.apply, params, x)
    return jnp.zeros(output.shape, output.dtype)


def _beside(above: Array | None, x: Array) -> Array:
    return x if above is None else jnp.concatenate([above, x], -1)


def coded(model: Codebook, params: Params, x: Array) -> tuple[Any, tuple[Coded, ...]]:
    """p(x|codes) at the codes of x, and what each level makes of x."""
    features = [x]
    for level, part in zip(model.levels[::-1], params["levels"][::-1], strict=True):
        features.append(level.down.apply(part["down"], features[-1]))
    above: Any = None
    made: list[Coded] = []
    for level, part, book in zip(model.levels, params["levels"], params["quantizers"], strict=True):
        z = level.to_vectors.apply(part["to_vectors"], _beside(above, features.pop()))
        made.append(Coded(z, level.quantizer.quantize(book, z)))
        above = level.up.apply(part["up"], _beside(above, made[-1].quantized.vectors))
    return model.likelihood.of_outputs(params["likelihood"], above), tuple(made)


def decoded(model: Codebook, params: Params, vectors: Sequence[Array]) -> Any:
    """p(x|codes) from the vectors of all levels, [h, w, D] each."""
    above: Any = None
    for level, part, each in zip(model.levels, params["levels"], vectors, strict=True):
        above = level.up.apply(part["up"], _beside(above, each))
    return model.likelihood.of_outputs(params["likelihood"], above)


def vectors_of(model: Codebook, params: Params, codes: Sequence[Any]) -> tuple[Array, ...]:
    """The vectors of the codes of all levels."""
    books = params["quantizers"]
    return tuple(
        level.quantizer.look_up(book, each)
        for level, book, each in zip(model.levels, books, codes, strict=True)
    )


def num_codes(model: Codebook) -> tuple[Any, ...]:
    """How many values the codes of each level have."""
    return tuple(level.quantizer.num_codes for level in model.levels)


# Loss and optimizer


def negative_bound(model: Codebook) -> BatchLoss:
    """-log p(x|codes) + (HWC / 2) sum_l loss_l, with the losses of the quantizers.

    With a Gaussian p(x|codes) of variance s^2 this is HWC / 2 times |x - x'|^2 / s^2 + sum_l loss_l
    with means over elements, as the authors' code of arXiv:1711.00937 has it. The terms are the
    reconstruction, the nats of the codes under a uniform prior, and for each level the perplexity
    of the batch's codes and the share of codes in use. Perplexities are of the global batch.
    """
    sizes = num_codes(model)

    def loss(
        params: Params, keys: Array, x: Any, weight: Array, step: Array, axis_name: str | None
    ) -> tuple[Array, Terms]:
        def example(x: Array) -> tuple[Terms, tuple[Coded, ...]]:
            p, made = coded(model, params, x)
            code_loss = jnp.stack([level.quantized.loss for level in made]).sum()
            return {"reconstruction": log_prob_of(p, x), "code_loss": code_loss}, made

        terms, made = jax.vmap(example)(x)
        codes = tuple(level.quantized.codes for level in made)
        mean = lambda a: jnp.tensordot(weight, a, 1, precision="float32")
        sums = (
            jax.tree.map(mean, (terms, [level.quantized.statistic for level in made])),
            jax.tree.map(lambda k, c: quantizers.frequencies(c, weight, k), sizes, codes),
        )
        (terms, statistics), used = sums if axis_name is None else lax.psum(sums, axis_name)
        for level, statistic in zip(model.levels, statistics, strict=True):
            if level.quantizer.batch_loss is not None:
                terms["code_loss"] += level.quantizer.batch_loss(statistic)
        total = math.prod(model.shape) / 2 * terms["code_loss"] - terms["reconstruction"]
        total += _following(model, params["quantizers"], keys, made, weight, axis_name)
        nats = quantizers.uniform_nats(sizes, jax.tree.map(lambda a: a[0], codes))
        return total, terms | {"kl": jnp.float32(nats)} | usage_terms(used)

    return loss


def _following(
    model: Codebook,
    books: Params,
    keys: Array,
    made: Sequence[Coded],
    weight: Array,
    axis_name: str | None,
) -> Array:
    """Zero, whose gradient holds the statistics that codebooks follow."""
    total = jnp.zeros(())
    for number, (level, book, each) in enumerate(zip(model.levels, books, made, strict=True)):
        if level.quantizer.following is not None:
            level_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            total += level.quantizer.following.statistics(
                book, level_keys, each.z, weight, axis_name
            )
    return total


def optimizer_of(
    model: Codebook, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The optimizer of a model, with another one for codebooks that follow their codes.

    All levels have the same kind of codebook.
    """
    following = model.levels[0].quantizer.following
    if following is None:
        return optimizer
    label = lambda params: {n: "codebook" if n == "quantizers" else "model" for n in params}
    return optax.partition({"model": optimizer, "codebook": following.optimizer}, label)


def usage_terms(used: Any) -> Terms:
    """Perplexities and the shares of codes in use, from a pytree of frequencies [K].

    If there are several arrays of codes, they have numbers, 1 for the coarsest level.
    """
    leaves = jax.tree.leaves(used)
    names = [f"_{number}" for number in range(1, len(leaves) + 1)] if len(leaves) > 1 else [""]
    perplexities = {
        f"perplexity{n}": quantizers.perplexity(a) for n, a in zip(names, leaves, strict=True)
    }
    shares = {f"usage{n}": jnp.mean(a > 0) for n, a in zip(names, leaves, strict=True)}
    return perplexities | shares


# Answers


def codebook_answers(model: Codebook) -> Model:
    """The answers of a model with codes, whose prior is uniform over all codes.

    z is one vector: what the decoder sees of all levels, from the coarsest to the finest.
    """
    first = jax.eval_shape(lambda key: init(model, key), jax.random.key(0))
    like = jax.eval_shape(lambda params: coded(model, params, jnp.zeros(model.shape))[1], first)
    shapes = [level.quantized.vectors.shape for level in like]
    sizes = num_codes(model)
    ends = [sum(map(math.prod, shapes[: i + 1])) for i in range(len(shapes))]

    def flat(vectors: Sequence[Array]) -> Array:
        return jnp.concatenate([each.ravel() for each in vectors])

    def codes(params: Params, x: Array) -> tuple[Array, ...]:
        return tuple(level.quantized.codes for level in coded(model, params, x)[1])

    def decode_codes(params: Params, codes: Sequence[Any], condition: Any = None) -> Any:
        return decoded(model, params, vectors_of(model, params, codes))

    def encode(params: Params, x: Array) -> Point:
        return Point(flat(vectors_of(model, params, codes(params, x))))

    def decode(params: Params, z: Array, condition: Any = None) -> Any:
        parts = [part.reshape(s) for part, s in zip(jnp.split(z, ends[:-1]), shapes, strict=True)]
        return decoded(model, params, parts)

    def draw(params: Params, key: Array, condition: Any = None) -> Array:
        drawn = quantizers.uniform_codes(key, sizes, tuple(level.quantized.codes for level in like))
        return flat(vectors_of(model, params, drawn))

    def terms(params: Params, key: Array, x: Array, num_samples: int) -> Terms:
        p, made = coded(model, params, x)
        nats = quantizers.uniform_nats(sizes, tuple(level.quantized.codes for level in made))
        return {"reconstruction": log_prob_of(p, x), "kl": jnp.float32(nats)}

    def log_weights(params: Params, key: Array, x: Array, num_samples: int) -> Array:
        bound = terms(params, key, x, 1)
        return jnp.full(num_samples, bound["reconstruction"] - bound["kl"])

    return Model(
        init=jax.jit(lambda key, x: init(model, key)),
        encode=encode,
        decode=decode,
        draw=draw,
        terms=terms,
        log_weights=log_weights,
        codes=codes,
        decode_codes=decode_codes,
        num_codes=sizes,
    )
