"""Algorithms, ``init`` and ``step``: gradient descent of one or several players.

A step is written once for any number of devices: losses are reduced over them inside the loss *and*
gradients are averaged after it, which is right under ``jit``, ``pmap`` and ``shard_map`` alike. The
noise of example i at step t has the key ``fold_in(fold_in(key, t), i)``, with i its place in the
global batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae.contracts import BatchLoss, Loss, Terms
from jaxvae.training.optimizers import descend

Array = jax.Array


class Batch(NamedTuple):
    """A batch, or one device's part of it."""

    x: Any  # pytree of [B, ...]
    place: Array  # [B] place in the global batch
    weight: Array  # [B] sums to one over the global batch; zero for padding


class Algorithm(NamedTuple):
    """A training algorithm.

    ``init(key, x) -> state`` takes one example. ``step(state, batch, axis_name) -> (state,
    metrics)`` is pure; ``axis_name`` is the mapped axis of devices or None. The state has a field
    ``step``, and the metrics are scalars that include ``loss`` and ``skipped``, the number of steps
    in a row whose update was not finite and so not made.
    """

    init: Callable[[Array, Any], Any]
    step: Callable[[Any, Batch, str | None], tuple[Any, Terms]]


class Player(NamedTuple):
    """One set of parameters, the loss that it descends and the optimizer that descends it."""

    loss: BatchLoss  # of the parameters of all players, {name: params}
    optimizer: optax.GradientTransformation
    # The two that follow are for losses that are weighted sums over examples.
    accumulate: int = 1  # parts that a device's batch is cut into, one after the other
    virtual_shards: int = (
        0  # parts that the global batch is cut into, whose sum does not depend on the devices
    )


class State(NamedTuple):
    """State of ``players``: everything that a run needs to go on."""

    step: Array  # steps taken
    key: Array  # never advanced; step and example index are folded in
    params: dict[str, Any]
    average: dict[str, Any] | None  # exponential moving average of params
    opt_state: dict[str, Any]
    skipped: Array  # updates in a row that were not finite


def batch_mean(loss: Loss) -> BatchLoss:
    """The weighted mean over the global batch of a loss of one example."""

    def mean(
        params: Any, keys: Array, x: Any, weight: Array, step: Array, axis_name: str | None
    ) -> tuple[Array, Terms]:
        values, terms = jax.vmap(loss, (None, 0, 0, None))(params, keys, x, step)
        total = jax.tree.map(
            lambda v: jnp.sum(jnp.where(weight > 0, v, 0.0) * weight), (values, terms)
        )
        return total if axis_name is None else lax.psum(total, axis_name)

    return mean


def preprocessed(preprocess: Callable[[Array, Any], Any], loss: BatchLoss) -> BatchLoss:
    """The loss of stored examples that ``preprocess(key, stored) -> x`` turns into what the model
    takes.

    Each example's key is split in two, so that its treatment and its latent noise are independent.
    """

    def of_raw(
        params: Any, keys: Array, raw: Any, weight: Array, step: Array, axis_name: str | None
    ) -> Any:
        pairs = jax.vmap(jax.random.split)(keys)  # [B, 2]
        x = jax.vmap(preprocess)(pairs[:, 0], raw)
        return loss(params, pairs[:, 1], x, weight, step, axis_name)

    return of_raw


def players(
    init: Callable[[Array, Any], dict[str, Any]],
    members: dict[str, Player],
    ema_decay: float = 0.0,
    gradient_norm: bool = True,
) -> Algorithm:
    """Gradient descent of several players at once, each in its own parameters (one player is plain
    training).

    Args:
      init: ``(key, x) -> {name: params}`` with one entry for each player.
      members: the players; each loss sees the parameters of all and is differentiated by its own
        player's.
      ema_decay: decay of the moving average of the parameters, average <- d average + (1 - d)
        params with d = min(ema_decay, (1 + t) / (10 + t)); 0 keeps none.
      gradient_norm: report the gradient's norm and look whether it is finite. Without it the loss
        alone is looked at, and a step reads the gradients once less, which is a tenth of a step
        with small batches on a CPU.

    A step whose loss or gradient is not finite leaves parameters, optimizer and average as they
    were.
    """

    def initial(key: Array, x: Any) -> State:
        key_init, key_steps = jax.random.split(key)
        params = init(key_init, x)
        if params.keys() != members.keys():
            raise ValueError(
                f"init gave parameters for {sorted(params)}; the players are {sorted(members)}"
            )
        opt_state = {name: player.optimizer.init(params[name]) for name, player in members.items()}
        average = jax.tree.map(jnp.copy, params) if ema_decay else None
        return State(jnp.int32(0), key_steps, params, average, opt_state, jnp.int32(0))

    def step(state: State, batch: Batch, axis_name: str | None = None) -> tuple[State, Terms]:
        chex.assert_rank([batch.place, batch.weight], 1)
        chex.assert_equal_shape_prefix([batch.place, *jax.tree.leaves(batch.x)], 1)
        key = jax.random.fold_in(state.key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.place)
        grads, finite = {}, jnp.bool_(True)
        metrics: Terms = {}
        for name, player in members.items():
            own_loss = lambda own, *args, name=name, loss=player.loss: loss(
                state.params | {name: own}, *args
            )
            args = keys, batch.x, batch.weight
            value_and_grad = jax.value_and_grad(own_loss, has_aux=True)
            (loss, terms), grads[name] = _cut(value_and_grad, player)(
                state.params[name], args, state.step, axis_name
            )
            report = terms | {"loss": loss}
            finite &= jnp.isfinite(loss)
            if gradient_norm:
                report["gradient_norm"] = norm = optax.tree.norm(grads[name])
                finite &= jnp.isfinite(norm)
            prefix = f"{name}/" if len(members) > 1 else ""
            metrics |= {prefix + term: value for term, value in report.items()}
        if len(members) > 1:
            metrics["loss"] = jnp.stack([metrics[f"{name}/loss"] for name in members]).sum()

        params, opt_state = {}, {}
        for name, player in members.items():
            before = state.opt_state[name], state.params[name]
            params[name], opt_state[name] = descend(player.optimizer, grads[name], *before, finite)
        average = _moving_average(state.average, params, state.step, ema_decay, finite)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        new = State(state.step + 1, state.key, params, average, opt_state, skipped)
        return new, metrics | {"skipped": new.skipped}

    return Algorithm(initial, step)


def gradient_descent(
    init: Callable[[Array, Any], Any],
    loss: BatchLoss,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    virtual_shards: int = 0,
    ema_decay: float = 0.0,
    gradient_norm: bool = True,
) -> Algorithm:
    """Descends one loss in all parameters: ``players`` with one player, named ``model``.

    ``loss`` is a loss of the batch: ``batch_mean`` makes one of a loss of an example.
    """
    of_model = lambda params, *args: loss(params["model"], *args)
    player = Player(of_model, optimizer, accumulate, virtual_shards)
    return players(
        lambda key, x: {"model": init(key, x)}, {"model": player}, ema_decay, gradient_norm
    )


def trained(state: State, player: str = "model") -> Any:
    """The parameters to evaluate: the moving average where one is kept, else the last ones."""
    return (state.params if state.average is None else state.average)[player]


def _cut(value_and_grad: Callable, player: Player) -> Callable:
    """``(params, args, step, axis_name) -> ((loss, terms), grads)`` of the global batch, in the
    player's parts.
    """

    def whole(params: Any, args: tuple, step: Array, axis_name: str | None) -> Any:
        if player.virtual_shards:
            return in_fixed_order(params, args, step, axis_name)
        if player.accumulate > 1:
            return in_parts(params, args, step, axis_name)
        value, grads = value_and_grad(params, *args, step, axis_name)
        return value, grads if axis_name is None else lax.pmean(grads, axis_name)

    def own(params: Any, args: tuple, step: Array) -> Any:
        """The device's share of the sums; added up after the loops, in which collectives would
        have no order.
        """
        return value_and_grad(params, *args, step, None)

    def in_parts(params: Any, args: tuple, step: Array, axis_name: str | None) -> Any:
        """One part after the other, added up: memory is that of a part."""
        cut = _parts(args, player.accumulate, "accumulate")
        part = lambda args: own(params, args, step)
        first = jax.eval_shape(part, jax.tree.map(lambda a: a[0], cut))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), first)
        total, _ = lax.scan(
            lambda total, args: (jax.tree.map(jnp.add, total, part(args)), None), zero, cut
        )
        return total if axis_name is None else lax.psum(total, axis_name)

    def in_fixed_order(params: Any, args: tuple, step: Array, axis_name: str | None) -> Any:
        """As many parts as there are virtual shards, gathered from all devices and added up by
        their number.

        Slow, and it holds a gradient for each shard, but the sum is the same bit for bit on any
        number of devices.
        """
        devices = 1 if axis_name is None else lax.axis_size(axis_name)
        if player.virtual_shards % devices:
            raise ValueError(
                f"virtual_shards={player.virtual_shards} do not divide over {devices} devices"
            )
        cut = _parts(args, player.virtual_shards // devices, "virtual_shards")
        shards = lax.map(lambda args: own(params, args, step), cut)
        if axis_name is not None:
            shards = jax.tree.map(lambda a: lax.all_gather(a, axis_name, tiled=True), shards)
        zero = jax.tree.map(lambda a: jnp.zeros_like(a[0]), shards)
        return lax.scan(
            lambda total, shard: (jax.tree.map(jnp.add, total, shard), None), zero, shards
        )[0]

    return whole


def _parts(args: tuple, parts: int, setting: str) -> tuple:
    """[B, ...] -> [parts, B / parts, ...]."""
    size = args[-1].shape[0]
    if size % parts:
        raise ValueError(
            f"a batch of {size} examples on a device does not divide into {parts} parts ({setting})"
        )
    return jax.tree.map(lambda a: a.reshape(parts, size // parts, *a.shape[1:]), args)


def _moving_average(average: Any, params: Any, step: Array, decay: float, finite: Array) -> Any:
    if average is None:
        return None
    now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(params, average, jnp.where(finite, 1.0 - now, 0.0))
