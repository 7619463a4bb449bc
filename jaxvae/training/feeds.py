"""Gives a dispatch its examples: from a set on the devices, or from a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxvae.datasets import (
    DataError,
    Examples,
    Stratum,
    Stream,
    batch_rows,
    examples_of,
    num_examples,
    stratified_rows,
)
from jaxvae.training.placements import Placement

BLOCK_BYTES = 2**26  # the most bytes of streamed examples in one dispatch of a process


def examples_for(source: Any) -> Any:
    """The examples of what ``fit`` was given.

    Raises DataError if it is no source of examples, or holds none.
    """
    examples = examples_of(source)
    leaves = jax.tree.leaves(examples)
    if isinstance(examples, Stream) or (leaves and all(map(_is_array, leaves))):
        num_examples(examples)
        return examples
    kind = f"the text {source!r}" if isinstance(source, str) else f"a {type(source).__name__}"
    raise DataError(
        f"training takes a split, such as dataset.splits['train'], a stream, Examples or a pytree "
        f"of arrays [N, ...]; it was given {kind}"
    )


def _is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of numbers, not of text or objects."""
    kind = getattr(getattr(leaf, "dtype", None), "kind", "O")
    return hasattr(leaf, "shape") and kind not in "OSU"


def first_example(examples: Any) -> Any:
    """One example as an algorithm's ``init`` takes it."""
    if isinstance(examples, Stream):
        return _with_preprocess(examples, examples[0])
    return jax.tree.map(lambda a: a[0], examples)


def _with_preprocess(stream: Stream, raw: Any) -> Any:
    preprocess = getattr(stream, "preprocess", None)
    return raw if preprocess is None else Examples(raw, preprocess)


class Batches(NamedTuple):
    """Which examples a training takes, as a function of the step."""

    seed: int
    examples: int  # in the data set
    size: int  # examples in a global batch
    padded: int  # the same, filled up to a multiple of the devices
    strata: Sequence[Stratum] = ()  # groups of which every batch has so many; none is one group

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows [B] of batch ``step`` in the data set, and their mask [B]."""
        if self.strata:
            return stratified_rows(self.seed, step, self.strata, self.padded)
        return batch_rows(self.seed, step, self.examples, self.size, self.padded)


class Block(NamedTuple):
    """The batches of one dispatch.

    P is the number of this process's devices, S the number of steps, and B the number of examples
    that a device has in a batch.
    """

    examples: Any  # the data set, or the examples of this dispatch, [P, S, B, ...]
    rows: np.ndarray  # rows in the data set, [P, S, B]
    weight: np.ndarray  # [P, S, B]
    num_examples: int  # all examples of the dispatch, without padding


class InMemory:
    """Examples that stay on every device; a batch is addressed by its rows."""

    streamed = False

    def __init__(self, examples: Any, layout: Placement, batches: Batches, most: int):
        self.examples, self.layout = layout.replicated(examples), layout
        self.batches, self.most = batches, most

    def take(self, step: int, count: int) -> Block:
        """The next ``count`` batches, from ``step`` on."""
        return _block(self, step, count, self.examples)

    def close(self) -> None:
        """Nothing is open."""


class Streamed:
    """Examples that are read ahead of their use.

    A process reads its own part of every batch and nothing else. A dispatch takes fewer steps if
    its examples would need more than ``BLOCK_BYTES``.
    """

    streamed = True

    def __init__(
        self, stream: Stream, layout: Placement, batches: Batches, most: int, steps: range
    ):
        self.stream, self.layout, self.batches = stream, layout, batches
        self.each = batches.padded // layout.count  # examples of a device in a batch
        of_step = self.each * len(layout.places) * int(np.prod(stream.shape))
        fitting = BLOCK_BYTES // max(of_step * stream.dtype.itemsize, 1)
        self.most = max(min(most, fitting), 1)
        rows = lambda step: layout.split(batches.rows(step)[0]).reshape(-1)
        self.read = stream.batches(rows, steps.start, steps.stop)

    def take(self, step: int, count: int) -> Block:
        """The next ``count`` batches. Batches must be taken in order."""
        shape = self.stream.shape
        block = np.zeros(
            (self.most, len(self.layout.places) * self.each, *shape), self.stream.dtype
        )
        for s in range(count):
            block[s] = next(self.read)
        if self.layout.count > 1:
            block = np.moveaxis(block.reshape(self.most, -1, self.each, *shape), 1, 0)
        return _block(self, step, count, _with_preprocess(self.stream, block))

    def close(self) -> None:
        """Ends the reading ahead."""
        self.read.close()


def _block(feed: InMemory | Streamed, step: int, count: int, examples: Any) -> Block:
    # New arrays each time, since a CPU device may use the host's memory as it is.
    rows, mask = np.zeros((2, feed.most, feed.batches.padded), np.int32)
    for s in range(count):
        rows[s], mask[s] = feed.batches.rows(step + s)
    weight = (mask / np.maximum(mask.sum(1, keepdims=True), 1)).astype(np.float32)
    split = feed.layout.split
    return Block(examples, split(rows), split(weight), int(mask.sum()))


def feed_of(
    examples: Any,
    layout: Placement,
    *,
    seed: int,
    batch_size: int,
    steps: range,
    most: int,
    strata: Sequence[Stratum] = (),
) -> InMemory | Streamed:
    """The feed of a data set.

    Args:
      examples: the examples in memory, or a stream.
      layout: how the batch lies on the devices.
      seed: the seed of the order of the examples.
      batch_size: examples in a global batch.
      steps: the steps that will be taken.
      most: the most steps that one dispatch takes.
      strata: groups of which every batch has a fixed number.

    Raises ValueError if the strata do not fill a batch.
    """
    if strata and sum(stratum.size for stratum in strata) != batch_size:
        counts = " + ".join(str(stratum.size) for stratum in strata)
        raise ValueError(f"strata of {counts} examples do not fill a batch of {batch_size}")
    padded = -(-batch_size // layout.count) * layout.count
    batches = Batches(seed, num_examples(examples), batch_size, padded, tuple(strata))
    if isinstance(examples, Stream):
        return Streamed(examples, layout, batches, most, steps)
    return InMemory(examples, layout, batches, most)
