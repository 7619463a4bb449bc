"""Where the examples of a dispatch come from: a set that lies on the devices, or one that is
read as it is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxvae.datasets import Stream, batch_rows
from jaxvae.training.devices import Placement

BLOCK_BYTES = 2**26  # of streamed examples in one dispatch and one process


class InMemory:
    """Examples that stay on every device; a batch is addressed by its rows."""

    streamed = False

    def __init__(self, examples: Any, layout: Placement):
        self.examples, self.layout = layout.replicated(examples), layout

    def take(self, rows: np.ndarray, count: int) -> tuple[Any, np.ndarray]:
        """The examples, and this process's parts [P, S, B] of the batches ``rows [S, B]`` in
        them.
        """
        return self.examples, self.layout.split(rows)

    def close(self) -> None:
        """Nothing is open."""


class Streamed:
    """Examples that are read ahead of their use; a process reads its own part of every batch and
    nothing else.
    """

    streamed = True

    def __init__(
        self,
        stream: Stream,
        layout: Placement,
        seed: int,
        batch_size: int,
        padded: int,
        steps: range,
    ):
        self.stream, self.layout = stream, layout
        rows = lambda step: batch_rows(seed, step, len(stream), batch_size, padded)[0]
        self.batches = stream.batches(
            lambda step: layout.split(rows(step)).reshape(-1), steps.start, steps.stop
        )

    def take(self, rows: np.ndarray, count: int) -> tuple[Any, np.ndarray]:
        """The next ``count`` batches as one block [P, S * B, ...], and their rows [P, S, B] in
        it.
        """
        steps, shape = len(rows), self.stream.shape
        each = rows.shape[1] // self.layout.count
        block = np.zeros((steps, len(self.layout.places) * each, *shape), self.stream.dtype)
        for s in range(count):
            block[s] = next(self.batches)
        within = np.arange(steps * each, dtype=np.int32).reshape(steps, each)
        if self.layout.count == 1:
            return block.reshape(-1, *shape), within
        parts = np.moveaxis(block.reshape(steps, -1, each, *shape), 1, 0)
        return parts.reshape(len(parts), -1, *shape), np.broadcast_to(
            within, (len(parts), *within.shape)
        )

    def close(self) -> None:
        """Ends the reading ahead."""
        self.batches.close()


def batches_of(
    examples: Any,
    layout: Placement,
    *,
    seed: int,
    batch_size: int,
    padded: int,
    steps: range,
    most: int,
) -> tuple[InMemory | Streamed, int]:
    """The feed of a data set, and how many steps, at most ``most``, one dispatch of it holds."""
    if not isinstance(examples, Stream):
        return InMemory(examples, layout), most
    own_bytes = (
        padded
        // layout.count
        * len(layout.places)
        * int(np.prod(examples.shape))
        * examples.dtype.itemsize
    )
    streamed = Streamed(examples, layout, seed, batch_size, padded, steps)
    return streamed, max(min(most, BLOCK_BYTES // max(own_bytes, 1)), 1)
