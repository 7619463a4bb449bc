"""Schedules of the KL weight, ``step -> weight``.

Any schedule of Optax serves too. ``WARMUPS`` holds what the command line offers: functions of the
last weight, whose other arguments are settings.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxvae.ranges import Count, Positive, Share

Array = jax.Array


def linear_warmup(num_steps: int, end: float = 1.0) -> optax.Schedule:
    """A straight line from 0 to ``end`` over ``num_steps`` (Bowman et al. 2015).

    arXiv:1511.06349.
    """
    return optax.linear_schedule(0.0, end, _positive(num_steps))


def sigmoid_warmup(num_steps: int, end: float = 1.0, steepness: float = 10.0) -> optax.Schedule:
    """Weight end * sigmoid(steepness (step / num_steps - 1/2)).

    The logistic annealing of Bowman et al. 2015, arXiv:1511.06349.
    """
    _positive(num_steps)

    def weight(step: Array) -> Array:
        progress = jnp.asarray(step, jnp.float32) / num_steps
        return end * jax.nn.sigmoid(steepness * (progress - 0.5))

    return weight


def cyclical(
    num_steps: int, num_cycles: int = 4, ratio: float = 0.5, end: float = 1.0
) -> optax.Schedule:
    """Cycles of a linear rise and a constant weight (Fu et al. 2019).

    arXiv:1903.10145, eq. 6. ``num_steps`` is divided into ``num_cycles`` equal cycles. In each the
    weight rises from 0 to ``end`` over a share ``ratio`` of the cycle, and then it stays. After the
    last cycle it stays at ``end``.
    """
    _positive(num_steps)
    if not 0 < ratio <= 1:
        raise ValueError(f"the rising part of a cycle must be in (0, 1]; ratio was {ratio}")

    def weight(step: Array) -> Array:
        place = jnp.asarray(step) * num_cycles % num_steps  # integers, exact where a cycle begins
        rise = jnp.minimum(place / num_steps / ratio, 1.0)
        return end * jnp.where(step < num_steps, rise, 1.0)

    return weight


def triangular(num_steps: int, low: float, high: float) -> optax.Schedule:
    """A learning rate that rises from ``low`` to ``high`` and falls again, again and again.

    Smith 2017, arXiv:1506.01186. A cycle has ``num_steps`` steps.
    """
    _positive(num_steps)

    def rate(step: Array) -> Array:
        place = jnp.asarray(step) % num_steps / num_steps
        return low + (high - low) * (1 - jnp.abs(2 * place - 1))

    return rate


def _positive(num_steps: int) -> int:
    if num_steps < 1:
        raise ValueError(f"a warm-up needs at least one step; num_steps was {num_steps}")
    return num_steps


def no_warmup(end: float) -> optax.Schedule:
    """The same KL weight in every step."""
    return lambda step: end


def linear(end: float, kl_warmup_steps: Count = 1000) -> optax.Schedule:
    """A KL weight that rises in a straight line (Bowman et al. 2015).

    Args:
      end: the last weight.
      kl_warmup_steps: steps in which the weight rises from 0.
    """
    return linear_warmup(kl_warmup_steps, end)


def sigmoid(
    end: float, kl_warmup_steps: Count = 1000, kl_warmup_steepness: Positive = 10.0
) -> optax.Schedule:
    """A KL weight that rises in a logistic curve (Bowman et al. 2015).

    Args:
      end: the last weight.
      kl_warmup_steps: steps of the rise; the weight has reached half of its end in their middle.
      kl_warmup_steepness: slope of the logistic curve; a larger one is closer to a jump.
    """
    return sigmoid_warmup(kl_warmup_steps, end, kl_warmup_steepness)


def cycles(
    end: float, kl_warmup_steps: Count = 1000, kl_cycles: Count = 4, kl_rise: Share = 0.5
) -> optax.Schedule:
    """A KL weight that rises in each of several cycles (Fu et al. 2019).

    Args:
      end: the last weight.
      kl_warmup_steps: steps of all cycles together.
      kl_cycles: how many cycles there are.
      kl_rise: the share of a cycle in which the weight rises.
    """
    return cyclical(kl_warmup_steps, kl_cycles, kl_rise, end)


WARMUPS: dict[str, Callable[..., optax.Schedule]] = {
    "none": no_warmup,
    "linear": linear,
    "sigmoid": sigmoid,
    "cyclical": cycles,
}
