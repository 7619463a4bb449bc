"""Schedules of the KL weight, ``step -> weight`` as in optax, whose own schedules serve here as
well.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def linear_warmup(num_steps: int, end: float = 1.0) -> optax.Schedule:
    """Weight rising in a straight line from 0 to ``end`` over ``num_steps`` (Bowman et al. 2015,
    arXiv:1511.06349).
    """
    return optax.linear_schedule(0.0, end, _positive(num_steps))


def sigmoid_warmup(num_steps: int, end: float = 1.0, steepness: float = 10.0) -> optax.Schedule:
    """Weight end * sigmoid(steepness (step / num_steps - 1/2)): the logistic annealing of Bowman
    et al. 2015.
    """
    _positive(num_steps)
    return lambda step: (
        end * jax.nn.sigmoid(steepness * (jnp.asarray(step, jnp.float32) / num_steps - 0.5))
    )


def cyclical(
    num_steps: int, num_cycles: int = 4, ratio: float = 0.5, end: float = 1.0
) -> optax.Schedule:
    """Weight rising linearly over the first ``ratio`` of each cycle, then held (Fu et al. 2019,
    arXiv:1903.10145).

    ``num_steps`` is divided into ``num_cycles`` equal cycles; after them the weight stays at
    ``end``.
    """
    _positive(num_steps)
    if not 0 < ratio <= 1:
        raise ValueError(f"the rising part of a cycle must be in (0, 1]; ratio was {ratio}")

    def weight(step: Array) -> Array:
        place = jnp.asarray(step) * num_cycles % num_steps  # integers, exact where a cycle begins
        rise = jnp.minimum(place / num_steps / ratio, 1.0)
        return end * jnp.where(step < num_steps, rise, 1.0)

    return weight


def _positive(num_steps: int) -> int:
    if num_steps < 1:
        raise ValueError(f"a warm-up needs at least one step; num_steps was {num_steps}")
    return num_steps
