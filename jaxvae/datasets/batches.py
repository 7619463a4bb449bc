"""Batches as a pure function of (seed, step)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvae.datasets.splits import common_length
from jaxvae.datasets.streams import Stream


class Stratum(NamedTuple):
    """A group of examples, and how many of them every batch has."""

    rows: np.ndarray  # [N] in the data set
    size: int  # of them in a batch


STRATA = 2**40  # epochs of a stratum are numbered from its number times this on


@functools.lru_cache(maxsize=8)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n).astype(np.int32)


def batch_rows(
    seed: int, step: int, n: int, batch_size: int, padded: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [B] and mask [B] of batch ``step``, a pure function of (seed, step).

    Every epoch is another permutation of all n examples (Philox keyed by seed and epoch). The last
    batch of an epoch is ragged. It is filled up to ``batch_size``, or to ``padded``, with row 0 at
    mask 0.

    Args:
      seed: the seed of the order of all epochs.
      step: the number of the batch, counted from 0 over all epochs.
      n: how many examples the set has.
      batch_size: examples in a batch.
      padded: the length of rows and mask, if it is more than ``batch_size``.
    """
    per_epoch = -(-n // batch_size)
    epoch, place = divmod(step, per_epoch)
    chosen = _order(seed, epoch, n)[place * batch_size : (place + 1) * batch_size]
    rows, mask = np.zeros((2, padded or batch_size), np.int32)
    rows[: len(chosen)], mask[: len(chosen)] = chosen, 1
    return rows, mask


def stratified_rows(
    seed: int, step: int, strata: Sequence[Stratum], padded: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [B] and mask [B] of batch ``step``, which has so many examples of each stratum.

    The examples of a stratum follow each other epoch by epoch, each epoch in another order. A batch
    may hold the end of one epoch and the beginning of the next, so all batches are full. They are a
    pure function of (seed, step), as the rows of ``batch_rows``.
    """
    rows, mask = np.zeros((2, padded), np.int32)
    start = 0
    for number, (members, size) in enumerate(strata, 1):
        epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), len(members))
        for epoch in np.unique(epochs):
            order = _order(seed, int(epoch) + number * STRATA, len(members))
            at = start + np.flatnonzero(epochs == epoch)
            rows[at] = members[order[places[epochs == epoch]]]
        mask[start : start + size] = 1
        start += size
    return rows, mask


def num_examples(examples: Any) -> int:
    """The length of a stream, or of the leading axis that all arrays share.

    Raises DataError if they share none.
    """
    return len(examples) if isinstance(examples, Stream) else common_length(examples)
