"""Expectation maximization with a state for every example, keyed by its row in the data set.

The E step improves the entries of the examples in a batch. The M step descends the loss in some of
the parameters, and sets the others in closed form at the end of each epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae.contracts import Array, Params, Terms
from jaxvae.datasets import Examples, preprocessed
from jaxvae.training.algorithms import Algorithm, Batch
from jaxvae.training.optimizers import descend

# What all examples remember: a pytree of arrays [N, ...]. ``fsdp`` cuts an array [N, M] by its
# rows. Without ``fsdp`` every device has all rows, as it has all parameters.
Memory = Any


def recalled(memory: Memory, batch: Batch) -> Any:
    """The entries of the examples in a batch, a pytree of [B, ...]."""
    rows = rows_in_set(batch)
    return jax.tree.map(lambda a: a[rows], memory)


def remembered(memory: Memory, batch: Batch, entries: Any, axis_name: str | None) -> Memory:
    """The memory with new entries for the examples in a batch, on all devices.

    Padding has no row of its own, so its entries are dropped.
    """
    places = rows_in_set(batch)

    def put(a: Array, new: Array) -> Array:
        rows = jnp.where(batch.weight > 0, places, len(a))
        if axis_name is not None:
            rows, new = (lax.all_gather(each, axis_name, tiled=True) for each in (rows, new))
        return a.at[rows].set(new, mode="drop")

    return jax.tree.map(put, memory, entries)


def rows_in_set(batch: Batch) -> Array:
    """The rows of a batch in the data set, [B]. Raises ValueError if it does not say them."""
    if batch.row is None:
        raise ValueError(
            "an algorithm that remembers examples needs their rows in the data set: give "
            "Batch(row=...), as training.fit does"
        )
    return batch.row


class Remembering(NamedTuple):
    """The state of ``expectation_maximization``, from which a run can go on."""

    step: Array
    key: Array
    params: dict[str, Params]
    average: None
    opt_state: dict[str, Any]
    skipped: Array
    memory: Memory
    sums: Any  # statistics of the examples since the epoch began, and their number "count"


class Steps(NamedTuple):
    """The steps of expectation maximization, as pure functions of one example.

    ``params`` are ``{name: params}``, of which the ones in ``moved`` descend the loss.
    """

    init: Callable[[Array, Any], Params]  # (key, x) -> params
    entry: Callable[[Array], Any]  # key -> what every example remembers at first
    expect: Callable[[Params, Array, Any, Any], Any]  # (params, key, x, entry) -> better entry
    # (params, x, entry) -> (loss, (terms, statistics)); statistics are a pytree of arrays
    loss: Callable[[Params, Any, Any], tuple[Array, tuple[Terms, Any]]]
    solve: Callable[[Params, Any, Array], Params]  # (params, sums of statistics, count) -> params
    moved: str = "decoder"


def expectation_maximization(
    steps: Steps,
    optimizer: optax.GradientTransformation,
    examples: int,
    batch_size: int,
    skip_norm: float = 0.0,
) -> Algorithm:
    """EM by batches, with an entry for each example that is kept from one visit to the next.

    Args:
      steps: the E step and the M step of one example.
      optimizer: descends the loss.
      examples: how many there are in the data set.
      batch_size: examples in a global batch; an epoch ends after all examples.
      skip_norm: the norm of the gradient above which a step is skipped; 0 is off.

    Noise, skipped steps and devices are as for ``training.players``.
    """
    per_epoch = -(-examples // batch_size)

    def init(key: Array, x: Any) -> Remembering:
        key_init, key_steps = jax.random.split(key)
        x = preprocessed(key_init, x)
        params, entry = steps.init(key_init, x), steps.entry(key_init)
        memory = jax.tree.map(lambda a: jnp.tile(a, (examples, *[1] * a.ndim)), entry)
        of_one = jax.eval_shape(lambda: steps.loss(params, x, entry)[1][1])
        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), of_one)
        return Remembering(
            jnp.int32(0),
            key_steps,
            {"model": params},
            None,
            {"model": optimizer.init(params[steps.moved])},
            jnp.int32(0),
            memory,
            sums | {"count": jnp.zeros(())},
        )

    def step(
        state: Remembering, batch: Batch, axis_name: str | None = None
    ) -> tuple[Remembering, Terms]:
        params = state.params["model"]
        keys, x = keyed(state, batch)
        entries = recalled(state.memory, batch)
        entries = jax.vmap(steps.expect, (None, 0, 0, 0))(params, keys, x, entries)
        loss = _batch_loss(steps, params, x, entries, batch.weight, axis_name)
        (value, (terms, sums)), grads = jax.value_and_grad(loss, has_aux=True)(params[steps.moved])
        grads = grads if axis_name is None else lax.pmean(grads, axis_name)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm) & (norm <= (skip_norm or jnp.inf))
        moved, opt_state = descend(
            optimizer, grads, state.opt_state["model"], params[steps.moved], finite
        )
        sums = jax.tree.map(lambda old, new: old + jnp.where(finite, new, 0.0), state.sums, sums)
        params, sums = _at_end(steps, params, sums, (state.step + 1) % per_epoch == 0)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        new = state._replace(
            step=state.step + 1,
            params={"model": params | {steps.moved: moved}},
            opt_state={"model": opt_state},
            skipped=skipped,
            memory=remembered(state.memory, batch, entries, axis_name),
            sums=sums,
        )
        return new, terms | {"loss": value, "gradient_norm": norm, "skipped": skipped}

    return Algorithm(init, step)


def _at_end(steps: Steps, params: Params, sums: Any, ended: Array) -> tuple[Params, Any]:
    """At the end of an epoch the parameters in closed form and empty sums, else as they are."""
    solved = steps.solve(params, sums, jnp.maximum(sums["count"], 1.0))
    chosen = jax.tree.map(lambda new, old: jnp.where(ended, new, old), solved, params)
    return chosen, jax.tree.map(lambda total: jnp.where(ended, 0.0, total), sums)


def keyed(state: Any, batch: Batch) -> tuple[Array, Any]:
    """The key of each example, and the examples preprocessed."""
    key = jax.random.fold_in(state.key, state.step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.place)
    if not isinstance(batch.x, Examples):
        return keys, batch.x
    pairs = jax.vmap(jax.random.split)(keys)  # [B, 2]
    return pairs[:, 1], jax.vmap(preprocessed)(pairs[:, 0], batch.x)


def _batch_loss(
    steps: Steps, params: Params, x: Any, entries: Any, weight: Array, axis_name: str | None
) -> Callable:
    """The mean loss of the global batch, its terms, and the sums of its statistics."""
    mask = (weight > 0).astype(weight.dtype)

    def summed(scale: Array, values: Array) -> Array:
        scale = scale.reshape(-1, *[1] * (values.ndim - 1))
        total = jnp.sum(jnp.where(scale > 0, values, 0.0) * scale, 0)
        return total if axis_name is None else lax.psum(total, axis_name)

    def loss(moved: Params) -> tuple[Array, tuple[Terms, Any]]:
        each = jax.vmap(steps.loss, (None, 0, 0))(params | {steps.moved: moved}, x, entries)
        values, (terms, statistics) = each
        means = jax.tree.map(lambda v: summed(weight, v), (values, terms))
        sums = jax.tree.map(lambda v: summed(mask, v), statistics | {"count": jnp.ones_like(mask)})
        return means[0], (means[1], sums)

    return loss
