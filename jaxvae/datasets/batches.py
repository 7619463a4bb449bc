"""Batches as a pure function of (seed, step)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from jaxvae.datasets.splits import DataError
from jaxvae.datasets.streams import Stream


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n).astype(np.int32)


def batch_rows(
    seed: int, step: int, n: int, batch_size: int, padded: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The examples of batch ``step``: rows [B] and mask [B], a pure function of (seed, step).

    Every epoch is a permutation of all n examples of its own (Philox keyed by seed and epoch). The
    last batch of an epoch is ragged: it is filled up to ``batch_size``, or to ``padded``, with row
    0 at mask 0.
    """
    per_epoch = -(-n // batch_size)
    epoch, place = divmod(step, per_epoch)
    chosen = _order(seed, epoch, n)[place * batch_size : (place + 1) * batch_size]
    rows, mask = np.zeros((2, padded or batch_size), np.int32)
    rows[: len(chosen)], mask[: len(chosen)] = chosen, 1
    return rows, mask


def num_examples(examples: Any) -> int:
    """The length of a stream, or of the leading axis that all arrays share, which must not
    differ.
    """
    if isinstance(examples, Stream):
        return len(examples)
    lengths = {(np.shape(leaf) or (0,))[0] for leaf in jax.tree.leaves(examples)}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(
            f"examples need one common leading axis [N, ...] with N >= 1; lengths were {sorted(lengths)}"
        )
    return lengths.pop()


def random_subset(source: Any, num: int, seed: int = 0) -> Any:
    """A fixed random subset of a split or a pytree."""
    examples = getattr(source, "x", source)
    n = num_examples(examples)
    if num >= n:
        return source
    rows = np.sort(np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(n)[:num])
    if hasattr(source, "take"):
        return source.take(rows)
    return jax.tree.map(lambda a: a[rows], source)
