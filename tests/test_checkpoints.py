"""Checkpoints: what is saved comes back bit for bit, the newest and the best are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_training import CENTERS, assert_same, quadratic

from jaxvae import checkpoints, training


def trained_state(steps: int, **settings: Any) -> training.State:
    algorithm = quadratic(optax.adam(0.1), ema_decay=0.9)
    return training.fit(algorithm, CENTERS, num_steps=steps, batch_size=8, **settings)


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state, totals = trained_state(5), {"sums": {"loss": [1 / 3, 7]}, "skipped": 2}
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(5, state, totals, metric=-1.5)
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert saved.latest == saved.best == 5
        restored, restored_totals = saved.restore(5, trained_state(0))
    assert_same(state, restored)
    assert restored_totals == totals
    assert jax.tree.structure(state) == jax.tree.structure(restored)


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    metrics = {1: -5.0, 2: -1.0, 3: -4.0, 4: -3.0, 5: -2.0}
    with checkpoints.Checkpoints(tmp_path) as saved:
        for step, metric in metrics.items():
            saved.save(step, trained_state(step), {}, metric)
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert (saved.steps, saved.latest, saved.best) == ([2, 4, 5], 5, 2)


def test_a_step_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(3, trained_state(3), {"first": 1}, -1.0)
        saved.save(3, trained_state(3), {"second": 2}, -1.0)
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert saved.restore(3, trained_state(0))[1] == {"first": 1}


def test_a_state_that_is_overwritten_right_after_a_save_is_saved_whole(tmp_path: Path) -> None:
    """The loop donates the state to the next step while the checkpoint is being written."""
    kept: dict[int, Any] = {}
    with checkpoints.Checkpoints(tmp_path) as saved:

        def save(moment: training.Moment) -> None:
            kept[moment.step] = jax.tree.map(jnp.copy, moment.state)
            saved.save(moment.step, moment.state, moment.totals, metric=float(moment.step))

        trained_state(20, hooks=[training.Hook(5, save)])
    with checkpoints.Checkpoints(tmp_path) as saved:
        for step in saved.steps:
            assert_same(saved.restore(step, trained_state(0))[0], kept[step])


def test_a_checkpoint_of_eight_devices_goes_on_on_one(tmp_path: Path) -> None:
    state = trained_state(4, devices=jax.local_devices())
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(4, state, {}, 0.0)
    with checkpoints.Checkpoints(tmp_path) as saved:
        one, _ = saved.restore(4, trained_state(0))
        everywhere = NamedSharding(Mesh(jax.local_devices(), ("devices",)), PartitionSpec())
        eight, _ = saved.restore(4, jax.device_put(trained_state(0), everywhere))
    assert_same(state, one)
    assert_same(state, eight)
    assert one.params["model"]["w"].devices() == {jax.local_devices()[0]}


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(4, trained_state(4), {}, 0.0)
    other = training.gradient_descent(
        lambda key, x: {"w": jnp.zeros(4), "b": jnp.zeros(())},
        training.batch_mean(lambda *_: (0.0, {})),
        optax.sgd(0.1),
    )
    with checkpoints.Checkpoints(tmp_path) as saved, pytest.raises(ValueError, match="another model"):
        saved.restore(4, other.init(jax.random.key(0), CENTERS[0]))
