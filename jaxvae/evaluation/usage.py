"""How the codes of a model are used over a split."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import quantizers
from jaxvae.contracts import Array, Params
from jaxvae.datasets import examples_of, preprocessed
from jaxvae.evaluation.columns import Batched, batched, over_split, require
from jaxvae.models import Model, answers


class Usage(NamedTuple):
    """The use of one array of codes."""

    num_codes: int  # K
    usage: float  # the share of the K codes that the split uses
    perplexity: float  # exp(-sum_k p_k log p_k) of their frequencies
    positions: int  # codes of one example


def code_usage(
    model: Any, params: Params, key: Array, examples: Any, *, batch_size: int = 500
) -> list[Usage]:
    """The use of each array of codes over a split, in the order of the model's codes.

    N examples with P codes each cannot use more than N P codes.

    Args:
      model: a ``models.Model`` that answers ``codes``.
      params: its parameters.
      key: the key of the preprocessing.
      examples: a ``Split``, ``Examples``, a stream or a pytree of arrays [N, ...].
      batch_size: examples computed at a time.
    """
    model = answers(model)
    columns = over_split(_codes(model), params, key, examples_of(examples), batch_size)
    pairs = zip(jax.tree.leaves(model.num_codes), jax.tree.leaves(columns), strict=True)
    return [_usage(size, codes) for size, codes in pairs]


def _usage(num_codes: int, codes: np.ndarray) -> Usage:
    frequencies = np.bincount(codes.ravel(), minlength=num_codes) / codes.size
    share, diversity = (frequencies > 0).mean(), quantizers.perplexity(jnp.asarray(frequencies))
    return Usage(num_codes, float(share), float(diversity), codes[0].size)


@functools.lru_cache(maxsize=32)
def _codes(model: Model) -> Batched:
    require(model, "the usage of codes", "codes")
    codes: Any = model.codes

    def one(params: Params, key: Array, raw: Any) -> Any:
        return codes(params, preprocessed(jax.random.split(key)[0], raw))

    return batched(one)
