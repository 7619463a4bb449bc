"""Partitions of a data set by the Chinese restaurant process, and Gibbs moves between them.

Blackwell & MacQueen 1973 (doi:10.1214/aos/1176342372); Neal 2000 (doi:10.1080/10618600.2000.
10474879). A partition of N examples is an array [N] of slots 0 .. K - 1; -1 is an example that has
no slot yet. A slot without members is empty.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxvae.contracts import Array

NONE = -1  # the slot of an example that has none yet


def counts_of(slots: Array, size: int) -> Array:
    """How many members each of ``size`` slots has, [K]."""
    return jnp.zeros(size, jnp.int32).at[jnp.where(slots < 0, size, slots)].add(1, mode="drop")


def move(key: Array, log_likelihood: Array, counts: Array, slot: Array, alpha: Array) -> Array:
    """A slot drawn for one example given all others (Neal 2000, algorithm 8, m = 1).

    p(k) is proportional to n_k p_k(x) for slots with other members, and to alpha p_k(x) for one
    empty slot: the example's own if it is alone there, else the first. If no slot is empty, no
    component is opened.

    Args:
      key: the key of the draw.
      log_likelihood: log p_k(x) of each slot, [K]. For an empty slot it is log p(x) of the base.
      counts: members of each slot, the example among them, [K].
      slot: the example's slot, or -1.
      alpha: the concentration.
    """
    others = counts - jax.nn.one_hot(slot, len(counts), dtype=counts.dtype)
    empty = others == 0
    alone = (slot >= 0) & empty[jnp.maximum(slot, 0)]
    opened = jnp.where(alone, slot, jnp.argmax(empty))
    mass = jnp.where(empty, 0.0, others).at[opened].add(jnp.where(empty.any(), alpha, 0.0))
    log_mass = jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1.0)), -jnp.inf)
    return jax.random.categorical(key, log_mass + log_likelihood)


def sweep(
    key: Array,
    slots: Array,
    rows: Array,
    mask: Array,
    log_likelihood: Callable[[Array, Array], Array],
    size: int,
    concentration: float,
) -> Array:
    """A Gibbs move of some examples, one after the other; returns all slots [N].

    Args:
      key: the key of the draws.
      slots: the slot of each example, [N].
      rows: the examples that are moved, [B].
      mask: which of them are there; the others are padding, [B].
      log_likelihood: ``(place in rows, slots without the example) -> log p_k(x) [K]``.
      size: K, the number of slots.
      concentration: alpha.
    """
    alpha = jnp.float32(concentration)

    def one(carry: tuple[Array, Array], place: Array) -> tuple[tuple[Array, Array], None]:
        slots, counts = carry
        row, there = rows[place], mask[place]
        old = slots[row]
        values = log_likelihood(place, slots.at[row].set(NONE))
        drawn = move(jax.random.fold_in(key, place), values, counts, old, alpha)
        new = jnp.where(there, drawn.astype(slots.dtype), old)
        member = lambda slot: jax.nn.one_hot(slot, size, dtype=counts.dtype)
        return (slots.at[row].set(new), counts - member(old) + member(new)), None

    start = slots, counts_of(slots, size)
    return lax.scan(one, start, jnp.arange(len(rows)))[0][0]
