"""Schedules of the KL weight: exact values at points computed by hand or in rational arithmetic."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxvae import schedules

MAKERS = {
    "linear": schedules.linear_warmup,
    "sigmoid": schedules.sigmoid_warmup,
    "cyclical": schedules.cyclical,
}

# schedule, step, weight
POINTS = [
    (schedules.linear_warmup(4), 0, 0.0),
    (schedules.linear_warmup(4), 1, 0.25),
    (schedules.linear_warmup(4), 4, 1.0),
    (schedules.linear_warmup(4), 1000, 1.0),
    (schedules.linear_warmup(10, end=0.5), 5, 0.25),
    (schedules.linear_warmup(1), 0, 0.0),
    (schedules.linear_warmup(1), 1, 1.0),
    (schedules.sigmoid_warmup(10), 0, expit(-5.0)),
    (schedules.sigmoid_warmup(10), 5, 0.5),
    (schedules.sigmoid_warmup(10), 10, expit(5.0)),
    (schedules.sigmoid_warmup(10), 1000, 1.0),
    (schedules.sigmoid_warmup(8, end=4.0, steepness=2.0), 2, 4.0 * expit(-0.5)),
    (schedules.sigmoid_warmup(8, end=4.0, steepness=2.0), 4, 2.0),
    (schedules.cyclical(8, num_cycles=2), 0, 0.0),
    (schedules.cyclical(8, num_cycles=2), 1, 0.5),
    (schedules.cyclical(8, num_cycles=2), 2, 1.0),
    (schedules.cyclical(8, num_cycles=2), 3, 1.0),
    (schedules.cyclical(8, num_cycles=2), 4, 0.0),
    (schedules.cyclical(8, num_cycles=2), 5, 0.5),
    (schedules.cyclical(8, num_cycles=2), 7, 1.0),
    (schedules.cyclical(8, num_cycles=2), 8, 1.0),
    (schedules.cyclical(8, num_cycles=2), 13, 1.0),
    (schedules.cyclical(100), 5, 0.4),
    (schedules.cyclical(100, end=0.1), 30, 0.04),
    (schedules.cyclical(20, num_cycles=1, ratio=1.0), 19, 0.95),
    (schedules.cyclical(40, num_cycles=4, ratio=0.25), 11, 0.4),
]

# num_steps, num_cycles, ratio: cycles of a whole number of steps and cycles of a fraction of one
CYCLES = [(100, 4, Fraction(1, 2)), (12, 3, Fraction(1, 4)), (7, 4, Fraction(1, 2)), (8, 6, Fraction(1, 2)),
          (20, 6, Fraction(1)), (8000, 6, Fraction(1, 2)), (1000, 7, Fraction(3, 4))]  # fmt: skip


def fraction_of_cycle(step, num_steps, num_cycles, ratio):
    if step >= num_steps:
        return 1.0
    return float(min(Fraction(step * num_cycles, num_steps) % 1 / ratio, Fraction(1)))


def fu_et_al(t, num_steps, num_cycles, ratio):
    """Eq. 6 of arXiv:1903.10145, whose first step is t = 1."""
    tau = ((t - 1) % -(-num_steps // num_cycles)) / (num_steps / num_cycles)
    return tau / ratio if tau <= ratio else 1.0


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(("schedule", "step", "expected"), POINTS)
def test_weight_at_points_computed_by_hand(schedule, step, expected, wrap):
    np.testing.assert_allclose(wrap(schedule)(jnp.int32(step)), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("schedule", "step", "expected"), POINTS)
def test_weight_of_a_python_step(schedule, step, expected):
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("num_steps", "num_cycles", "ratio"), CYCLES)
def test_cyclical_follows_its_definition_at_every_step(num_steps, num_cycles, ratio):
    steps = range(num_steps + 3)
    weights = jax.jit(schedules.cyclical(num_steps, num_cycles, float(ratio)))(
        jnp.arange(len(steps))
    )
    expected = [fraction_of_cycle(step, num_steps, num_cycles, ratio) for step in steps]
    np.testing.assert_allclose(weights, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("num_steps", "num_cycles", "ratio"), [(100, 4, 0.5), (60, 3, 0.25), (12, 1, 1.0)]
)
def test_cyclical_is_the_paper_with_steps_counted_from_zero(num_steps, num_cycles, ratio):
    weights = jax.vmap(schedules.cyclical(num_steps, num_cycles, ratio))(jnp.arange(num_steps))
    expected = [fu_et_al(step + 1, num_steps, num_cycles, ratio) for step in range(num_steps)]
    np.testing.assert_allclose(weights, expected, atol=1e-5)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_weight_is_a_finite_scalar_between_zero_and_end(make):
    weights = jax.vmap(make(37, end=0.7))(jnp.arange(100))
    assert weights.shape == (100,)
    assert bool(((weights >= 0.0) & (weights <= 0.7 + 1e-6)).all())
    np.testing.assert_allclose(weights[-1], 0.7, rtol=1e-5)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_schedule_runs_inside_scan(make):
    schedule = make(5)
    _, scanned = jax.lax.scan(lambda step, _: (step + 1, schedule(step)), jnp.int32(0), length=8)
    np.testing.assert_allclose(scanned, [schedule(step) for step in range(8)], atol=1e-6)


@pytest.mark.parametrize("num_steps", [0, -1, 0.5])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_fewer_than_one_step_is_refused(make, num_steps):
    with pytest.raises(ValueError, match=str(num_steps)):
        make(num_steps)
