"""Several trainings at once: an algorithm that is vmapped over seeds or settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.contracts import Terms
from jaxvae.training.algorithms import Algorithm, Batch

Array = jax.Array


class Ensemble(NamedTuple):
    """The states of all members, stacked [S, ...]."""

    step: Array
    members: Any


def vmapped(make: Callable[[Array], Algorithm], values: Any) -> Algorithm:
    """S trainings in one: ``make(value)`` for each of ``values``, a pytree of arrays [S, ...].

    Members have different parameters and noise, and all see the same batches. ``make`` is traced
    once, so a value may replace any number, such as a KL weight, a temperature or a learning rate.
    For seeds alone: ``vmapped(lambda seed: algorithm, jnp.arange(S))``.

    The metrics of member s are called ``name[s]``, and their mean is called ``name``. ``member``
    takes one state out.
    """
    count = jax.tree.leaves(values)[0].shape[0]

    def init(key: Array, x: Any) -> Ensemble:
        states = jax.vmap(lambda value, key: make(value).init(key, x))(
            values, jax.random.split(key, count)
        )
        return Ensemble(jnp.int32(0), states)

    def step(state: Ensemble, batch: Batch, axis_name: str | None = None) -> tuple[Ensemble, Terms]:
        one_step = lambda value, state: make(value).step(state, batch, axis_name)
        members, metrics = jax.vmap(one_step)(values, state.members)
        skipped = metrics.pop("skipped").max()
        each = {f"{name}[{s}]": value[s] for name, value in metrics.items() for s in range(count)}
        means = {name: value.mean() for name, value in metrics.items()}
        return Ensemble(state.step + 1, members), means | each | {"skipped": skipped}

    return Algorithm(init, step)


def member(state: Ensemble, s: int) -> Any:
    """The state of member s, as the algorithm without ``vmapped`` has it."""
    return jax.tree.map(lambda a: a[s], state.members)
