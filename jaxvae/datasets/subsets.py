"""Parts of data sets: by name, at random, or held out for a test."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np

from jaxvae.datasets import shapes
from jaxvae.datasets.batches import num_examples
from jaxvae.datasets.examples import rows_of
from jaxvae.datasets.splits import DataError, Dataset, S, Split
from jaxvae.datasets.streams import Stream

HELD_OUT = 10  # one example in this many is held out where a set has no split to test on
SUBSET = 2**32  # no epoch has this number, so a subset has the order of no epoch


def select(dataset: Dataset[S], split: str) -> S:
    """A split, or a part of one: ``train``, ``train[:1000]``, ``train[80%:]``.

    Parts are written as tensorflow-datasets writes them. Raises DataError for an unknown split, and
    for a part without examples.
    """
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if match is None or match[1] not in dataset.splits:
        there = ", ".join(f"{name} ({num_examples(part)})" for name, part in dataset.splits.items())
        raise DataError(
            f"{dataset.name} has no split {split!r}; it has {there}, and parts such as train[:80%]"
        )
    name, *ends = match.groups()
    whole = dataset.splits[name]
    n = num_examples(whole)
    part = slice(*(_place(end, n) for end in ends))
    if not range(n)[part]:
        raise DataError(f"{split!r} of {dataset.name} holds no example; {name} has {n}")
    return whole.take(part)


def _place(end: str | None, n: int) -> int | None:
    if end is None:
        return None
    return round(n * int(end[:-1]) / 100) if end.endswith("%") else int(end)


def random_subset(examples: Any, num: int | None, seed: int = 0) -> Any:
    """A fixed random subset of the examples, in their order.

    The first examples of a set seldom represent it, because a folder may be sorted by class. The
    rows are a function of (num, seed) and the number of examples.

    Args:
      examples: a ``Split``, a ``Stream``, ``Examples`` or a pytree of arrays [N, ...].
      num: examples of the subset; None takes all, as does a number that is too large.
      seed: selects the subset.

    >>> import numpy as np
    >>> from jaxvae import datasets
    >>> datasets.random_subset(np.arange(1000), 4)
    array([443, 469, 542, 639])
    """
    n = num_examples(examples)
    if num is not None and num < 1:
        raise DataError(f"a subset needs at least one example; it was asked for {num}")
    if num is None or num >= n:
        return examples
    order = np.random.Generator(np.random.Philox(key=[seed, SUBSET])).permutation(n)
    rows = np.sort(order[:num])
    return examples.take(rows) if isinstance(examples, Stream) else rows_of(examples, rows)


def held(split: Split | Stream, num: int | None = None, seed: int = 0) -> Split:
    """A random subset of a split or stream, in memory and with its preprocessing."""
    part = random_subset(split, num, seed)
    return Split(part[:], preprocess=part.preprocess) if isinstance(part, Stream) else part


def with_test(splits: dict[str, S]) -> dict[str, S]:
    """The splits. If there is only one, a tenth of its examples becomes ``test``.

    The examples of ``test`` are chosen by a fixed permutation.
    """
    if len(splits) > 1:
        return splits
    (split,) = splits.values()
    n = num_examples(split)
    if n < 2:
        return {"train": split, "test": split}
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(n)
    test = max(n // HELD_OUT, 1)
    return {"train": split.take(np.sort(order[test:])), "test": split.take(np.sort(order[:test]))}


def attributes(split: Split) -> np.ndarray | None:
    """The attributes of each example, [N, A], or None.

    They are the split's attributes, or numbers from the factors of the rendered shapes.
    """
    if isinstance(split.x, shapes.Images):
        return np.asarray(jax.vmap(shapes.attributes)(split.x.factors))
    return split.attributes
