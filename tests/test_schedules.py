"""Schedules of the KL weight: exact values at points computed by hand or in rational arithmetic."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxvae import schedules

POINTS = {  # schedule, steps, weights
    "linear": (schedules.linear_warmup(4), [0, 1, 4, 1000], [0, 0.25, 1, 1]),
    "linear to 1/2": (schedules.linear_warmup(10, end=0.5), [5, 20], [0.25, 0.5]),
    "linear in one step": (schedules.linear_warmup(1), [0, 1], [0, 1]),
    "sigmoid": (schedules.sigmoid_warmup(10), [0, 5, 10, 1000], [expit(-5), 0.5, expit(5), 1]),
    "steep sigmoid to 4": (
        schedules.sigmoid_warmup(8, end=4.0, steepness=2.0),
        [2, 4],
        [4 * expit(-0.5), 2],
    ),
    "cyclical": (
        schedules.cyclical(8, num_cycles=2),
        [0, 1, 2, 3, 4, 5, 7, 8, 13],
        [0, 0.5, 1, 1, 0, 0.5, 1, 1, 1],
    ),
    "cyclical to 1/10": (schedules.cyclical(100, end=0.1), [5, 30, 200], [0.04, 0.04, 0.1]),
    "saw": (schedules.cyclical(20, num_cycles=1, ratio=1.0), [19], [0.95]),
    "none": (schedules.WARMUPS["none"](0.7), [0, 5], [0.7, 0.7]),
    "the table's linear": (schedules.WARMUPS["linear"](2.0), [0, 500, 1000], [0, 1, 2]),
    "the table's sigmoid": (schedules.WARMUPS["sigmoid"](2.0, 10), [5], [1]),
    "the table's cyclical": (schedules.WARMUPS["cyclical"](2.0, 80), [5, 20], [1, 0]),
}

# num_steps, num_cycles, ratio: cycles of a whole number of steps and cycles of a fraction of one
CYCLES = [(100, 4, Fraction(1, 2)), (12, 3, Fraction(1, 4)), (7, 4, Fraction(1, 2)),
          (20, 6, Fraction(1)), (8000, 6, Fraction(1, 2)), (1000, 7, Fraction(3, 4))]  # fmt: skip


def fraction_of_cycle(step: int, num_steps: int, num_cycles: int, ratio: Fraction) -> float:
    if step >= num_steps:
        return 1.0
    return float(min(Fraction(step * num_cycles, num_steps) % 1 / ratio, Fraction(1)))


def fu_et_al(t: int, num_steps: int, num_cycles: int, ratio: float) -> float:
    """Eq. 6 of arXiv:1903.10145, whose first step is t = 1."""
    tau = ((t - 1) % -(-num_steps // num_cycles)) / (num_steps / num_cycles)
    return tau / ratio if tau <= ratio else 1.0


@pytest.mark.parametrize("name", POINTS)
def test_weights_at_points_computed_by_hand(name: str) -> None:
    """Of a Python step, of steps under ``vmap`` and ``jit``."""
    schedule, steps, expected = POINTS[name]
    of_python = [schedule(step) for step in steps]
    compiled = jax.jit(jax.vmap(lambda step: jnp.asarray(schedule(step))))(jnp.asarray(steps))
    np.testing.assert_allclose([of_python, compiled], [expected] * 2, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("num_steps, num_cycles, ratio", CYCLES)
def test_cyclical_follows_its_definition_at_every_step(
    num_steps: int, num_cycles: int, ratio: Fraction
) -> None:
    steps = range(num_steps + 3)
    schedule = schedules.cyclical(num_steps, num_cycles, float(ratio))
    expected = [fraction_of_cycle(step, num_steps, num_cycles, ratio) for step in steps]
    np.testing.assert_allclose(schedule(jnp.arange(len(steps))), expected, atol=1e-5)


@pytest.mark.parametrize(
    "num_steps, num_cycles, ratio", [(100, 4, 0.5), (60, 3, 0.25), (12, 1, 1.0)]
)
def test_cyclical_is_the_paper_with_steps_counted_from_zero(
    num_steps: int, num_cycles: int, ratio: float
) -> None:
    weights = schedules.cyclical(num_steps, num_cycles, ratio)(jnp.arange(num_steps))
    expected = [fu_et_al(step + 1, num_steps, num_cycles, ratio) for step in range(num_steps)]
    np.testing.assert_allclose(weights, expected, atol=1e-5)


@pytest.mark.parametrize(
    "make", [schedules.linear_warmup, schedules.sigmoid_warmup, schedules.cyclical]
)
def test_fewer_than_one_step_is_refused(make) -> None:
    with pytest.raises(ValueError, match="at least one step; num_steps was 0"):
        make(0)


def test_a_cycle_must_rise() -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\]; ratio was 0"):
        schedules.cyclical(8, ratio=0.0)
