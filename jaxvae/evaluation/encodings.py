"""Encodings of a split: posterior means and posteriors."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from jaxvae.contracts import Array, Params
from jaxvae.datasets import examples_of, preprocessed
from jaxvae.distributions import mean_of
from jaxvae.evaluation.columns import (
    Batched,
    batched,
    length,
    over_split,
    require,
    rows_in_memory,
)
from jaxvae.models import Model, answers

MOST_NUMBERS = 2**30  # of all posteriors together that are kept in memory


def encode_split(
    model: Any, params: Params, key: Array, examples: Any, *, batch_size: int = 500
) -> Any:
    """Posterior means of a split: [N, D], or a pytree of [N, ...] if z is a pytree.

    Args:
      model: a ``models.Model`` that answers ``encode``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of the preprocessing.
      examples: a ``Split``, ``Examples``, a stream or a pytree of arrays [N, ...].
      batch_size: examples computed at a time.
    """
    return over_split(_means(answers(model)), params, key, examples_of(examples), batch_size)


def posteriors_of(
    model: Any, params: Params, key: Array, examples: Any, *, batch_size: int = 500
) -> Any:
    """q(z|x) of every example of a split, stacked.

    The result is one distribution whose leaves are [N, ...].

    Args:
      model: a ``models.Model`` that answers ``encode``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of the preprocessing.
      examples: a ``Split``, ``Examples``, a stream or a pytree of arrays [N, ...].
      batch_size: examples computed at a time.

    Raises ValueError if they would not fit into memory: the posterior of a hierarchy holds the
    parameters of its network.
    """
    of_split, posteriors = examples_of(examples), _posteriors(answers(model))
    first = rows_in_memory(of_split, np.arange(1))
    one = jax.eval_shape(posteriors, params, key, np.arange(1), first)
    size = length(of_split) * sum(leaf.size for leaf in jax.tree.leaves(one))
    if size > MOST_NUMBERS:
        raise ValueError(
            f"the posteriors of {length(of_split)} examples hold {size:.2g} numbers, and at most "
            f"{MOST_NUMBERS:.2g} are kept in memory: take fewer examples, or a smaller model"
        )
    return over_split(posteriors, params, key, of_split, batch_size)


def preprocessed_split(key: Array, examples: Any, *, batch_size: int = 500) -> Any:
    """The examples of a split as the model takes them: a pytree of arrays [N, ...].

    Each is preprocessed with the key that ``encode_split`` and ``evaluate_elbo`` use for it.
    """
    return over_split(_examples(), {}, key, examples_of(examples), batch_size)


def as_matrix(z: Any) -> np.ndarray:
    """Latents, a pytree of [N, ...], with all their numbers in one row for each example: [N, D]."""
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(z)], 1)


@functools.lru_cache(maxsize=32)
def _means(model: Model) -> Batched:
    require(model, "encoding a split", "encode")
    encode: Any = model.encode

    def one(params: Params, key: Array, raw: Any) -> Any:
        return mean_of(encode(params, preprocessed(jax.random.split(key)[0], raw)))

    return batched(one)


@functools.lru_cache(maxsize=32)
def _posteriors(model: Model) -> Batched:
    require(model, "the posteriors of a split", "encode")
    encode: Any = model.encode

    def one(params: Params, key: Array, raw: Any) -> Any:
        return encode(params, preprocessed(jax.random.split(key)[0], raw))

    return batched(one)


@functools.lru_cache(maxsize=1)
def _examples() -> Batched:
    return batched(lambda params, key, raw: preprocessed(jax.random.split(key)[0], raw))
