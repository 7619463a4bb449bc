"""The contract of autoregressive networks over grids of codes.

A code is a whole number. log p(c) = sum_t log p(c_t | c_<t) runs over the rows of a grid, and over
the grids from the top one on. So p(bottom | top) follows p(top).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Codes = tuple[Array, ...]  # one [H, W] of int32 for each grid


class Grid(NamedTuple):
    """A grid of codes: codes [H, W] in 0, ..., ``codes`` - 1."""

    height: int
    width: int
    codes: int

    @property
    def size(self) -> int:
        """How many positions the grid has."""
        return self.height * self.width


class Autoregressive(NamedTuple):
    """An exact law of grids of codes, as pure functions of one example.

    ``context`` is a vector that the law is conditioned on, such as a one-hot label, or None.
    """

    grids: tuple[Grid, ...]
    init: Callable[[Array], Any]  # key -> params
    # (params, codes, context, key=None) -> logits [H, W, K] of each grid; a key drops units
    logits: Callable[..., tuple[Array, ...]]
    # (params, key, context, temperature) -> codes, drawn one after the other
    sample: Callable[[Any, Array, Any, Any], Codes]


def log_probs_of_grids(logits: Sequence[Array], codes: Codes) -> Array:
    """sum_t log p(c_t) of each grid by its logits [H, W, K], [levels] in nats."""

    def one(logits: Array, codes: Array) -> Array:
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        return jnp.take_along_axis(log_p, codes[..., None], -1).sum()

    return jnp.stack([one(*pair) for pair in zip(logits, codes, strict=True)])


def drawn(key: Array, logits: Array, temperature: Any) -> Array:
    """A code with probabilities softmax(logits / temperature)."""
    return jax.random.categorical(key, logits.astype(jnp.float32) / temperature)
