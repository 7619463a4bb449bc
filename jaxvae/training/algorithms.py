"""Algorithms, ``init`` and ``step``: gradient descent of one or several players.

A step is written once for any number of devices. Losses are summed over the devices inside the
loss, and gradients are averaged after it. This is right under ``jit``, ``pmap`` and ``shard_map``.
The noise of example i at step t has the key ``fold_in(fold_in(key, t), i)``, where i is the place
in the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae.contracts import Array, BatchLoss, Loss, Params, Terms
from jaxvae.datasets import Examples, preprocessed
from jaxvae.training.optimizers import descend
from jaxvae.training.parts import gradient_of, loss_of_params


class Batch(NamedTuple):
    """A batch, or one device's part of it."""

    x: Any  # a pytree of [B, ...], or Examples
    place: Array  # [B], the place in the global batch, which the noise depends on
    weight: Array  # [B], whose sum over the global batch is one; zero for padding
    row: Array | None = None  # [B], the row in the data set; None in a batch made by hand


class Algorithm(NamedTuple):
    """A training algorithm.

    ``init(key, x) -> state`` takes one example. ``step(state, batch, axis_name) -> (state,
    metrics)`` is pure, and ``axis_name`` is the mapped axis of devices or None. The state has a
    field ``step``. The metrics are scalars. They include ``loss``, and ``skipped``, the number of
    updates in a row that were skipped because they were not finite.
    """

    init: Callable[[Array, Any], Any]
    step: Callable[[Any, Batch, str | None], tuple[Any, Terms]]


class Player(NamedTuple):
    """One set of parameters, the loss that it descends and the optimizer that descends it.

    ``accumulate`` and ``virtual_shards`` are for losses that are weighted sums over examples.
    """

    loss: BatchLoss  # of the parameters of all players, {name: params}
    optimizer: optax.GradientTransformation
    accumulate: int = 1  # parts of a device's batch, computed one after the other
    virtual_shards: int = 0  # parts of the global batch, summed in one order on any devices


class State(NamedTuple):
    """The state of ``players``, from which a run can go on."""

    step: Array  # steps taken
    key: Array  # it stays the same; step and place are folded in
    params: dict[str, Params]
    average: dict[str, Params] | None  # exponential moving average of params
    opt_state: dict[str, Any]
    skipped: Array  # updates in a row that were not finite


def batch_mean(loss: Loss) -> BatchLoss:
    """The loss of a batch that is the weighted mean of a loss of one example."""

    def mean(
        params: Params, keys: Array, x: Any, weight: Array, step: Array, axis_name: str | None
    ) -> tuple[Array, Terms]:
        values, terms = jax.vmap(loss, (None, 0, 0, None))(params, keys, x, step)
        total = jax.tree.map(
            lambda v: jnp.sum(jnp.where(weight > 0, v, 0.0) * weight), (values, terms)
        )
        return total if axis_name is None else lax.psum(total, axis_name)

    return mean


def players(
    init: Callable[[Array, Any], dict[str, Params]],
    members: dict[str, Player],
    ema_decay: float = 0.0,
    gradient_norm: bool = True,
    skip_norm: float = 0.0,
    frozen: Sequence[str] = (),
) -> Algorithm:
    """Gradient descent of several players at once, each in its own parameters.

    Plain training has one player, and a VAE with a critic has two. State without a gradient can be
    a player too, because a moving average is gradient descent: SGD with step 1 - gamma on
    (N - n)^2 / 2 gives N <- gamma N + (1 - gamma) n. So the codebook of a VQ-VAE that follows its
    codes (van den Oord et al. 2017, arXiv:1711.00937, app. A.1) is a player with this loss, in
    which n is behind a ``stop_gradient``. ``expectations.moving_average`` learns its baseline in
    the same way.

    If the examples are ``datasets.Examples``, init and losses get them preprocessed. The key of
    each example is split in two, so preprocessing and latent noise are independent.

    Args:
      init: ``(key, x) -> {name: params}`` with one entry for each player.
      members: the players. Each loss sees the parameters of all players and is differentiated by
        the parameters of its own player.
      ema_decay: decay of the moving average of the parameters, average <- d average + (1 - d)
        params with d = min(ema_decay, (1 + t) / (10 + t)); 0 keeps none.
      gradient_norm: whether to report the gradient's norm and to check that it is finite. Without
        it a step checks the loss only and reads the gradients once less, which saves a tenth of a
        step with small batches on a CPU.
      skip_norm: the norm of a player's gradient above which a step is skipped; 0 is off.
      frozen: names of parameters that the losses see and no player changes.

    A step whose loss or gradient is not finite, or whose gradient is above ``skip_norm``, leaves
    parameters, optimizer and average as they were. An optimizer that takes more than gradients
    (``optax.lbfgs``, ``optax.contrib.reduce_on_plateau``) gets ``value``, ``grad`` and
    ``value_fn``. The last one is its player's loss as a function of the parameters, at the same
    batch and the same noise.
    """

    if skip_norm and not gradient_norm:
        raise ValueError(f"skip_norm={skip_norm} needs gradient_norm=True")

    def initial(key: Array, x: Any) -> State:
        key_init, key_steps = jax.random.split(key)
        params = init(key_init, preprocessed(key_init, x))
        if params.keys() != {*members, *frozen}:
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
        at = (keys, batch.x, batch.weight), state.step, axis_name
        gradients, grads, reports = {}, {}, {}
        for name, player in members.items():
            loss = _loss_of_player(player.loss, name, state.params)
            gradients[name] = gradient_of(loss, player.accumulate, player.virtual_shards)
            (value, terms), grads[name] = gradients[name](state.params[name], *at)
            norm = {"gradient_norm": optax.tree.norm(grads[name])} if gradient_norm else {}
            reports[name] = terms | {"loss": value} | norm

        finite = _finite(reports, skip_norm or jnp.inf)
        params: dict[str, Params] = {name: state.params[name] for name in frozen}
        opt_state: dict[str, Any] = {}
        for name, player in members.items():
            earlier = reports, grads, dict(params)
            params[name], opt_state[name] = descend(
                player.optimizer,
                grads[name],
                state.opt_state[name],
                state.params[name],
                finite,
                value=reports[name]["loss"],
                value_fn=loss_of_params(gradients[name], *at, earlier),
            )
        average = _moving_average(state.average, params, state.step, ema_decay, finite)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        new = State(state.step + 1, state.key, params, average, opt_state, skipped)
        return new, _metrics(reports) | {"skipped": new.skipped}

    return Algorithm(initial, step)


def gradient_descent(
    init: Callable[[Array, Any], Params],
    loss: BatchLoss,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    virtual_shards: int = 0,
    ema_decay: float = 0.0,
    gradient_norm: bool = True,
    skip_norm: float = 0.0,
) -> Algorithm:
    """Descends one loss in all parameters, as ``players`` with one player named ``model``.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxvae import training
    >>> loss = training.batch_mean(lambda mean, key, x, step: ((mean - x) ** 2, {}))
    >>> algorithm = training.gradient_descent(lambda key, x: 0.0 * x, loss, optax.sgd(0.5))
    >>> state = algorithm.init(jax.random.key(0), jnp.zeros(()))
    >>> batch = training.Batch(jnp.array([1.0, 3.0]), jnp.arange(2), jnp.full(2, 0.5))
    >>> state, metrics = algorithm.step(state, batch, None)
    >>> float(metrics["loss"]), float(training.trained(state))
    (5.0, 2.0)

    Args:
      init: ``(key, x) -> params`` of one example.
      loss: a loss of the batch; ``batch_mean`` makes one of a loss of an example.
      optimizer: an optimizer of Optax, or ``training.adam``, which is faster.
      accumulate: parts that a device's batch is cut into, one after the other, to save memory.
      virtual_shards: parts that the global batch is cut into. Their sum is the same bit for bit on
        any number of devices that divides them; 0 is off.
      ema_decay: decay of the moving average of the parameters, as in ``players``; 0 keeps none.
      gradient_norm: whether to report the gradient's norm and to check that it is finite.
      skip_norm: the norm of the gradient above which a step is skipped; 0 is off.

    ``accumulate`` and ``virtual_shards`` need a loss that is a weighted sum over examples, such as
    a ``batch_mean``.
    """
    of_model = lambda params, *args: loss(params["model"], *args)
    player = Player(of_model, optimizer, accumulate, virtual_shards)
    return players(
        lambda key, x: {"model": init(key, x)},
        {"model": player},
        ema_decay,
        gradient_norm,
        skip_norm,
    )


def _loss_of_player(loss: BatchLoss, name: str, params: dict[str, Params]) -> BatchLoss:
    """The loss as a function of one player's parameters and of raw examples."""

    def of_raw(
        of_player: Params, keys: Array, x: Any, weight: Array, step: Array, axis_name: str | None
    ) -> tuple[Array, Terms]:
        if isinstance(x, Examples):
            pairs = jax.vmap(jax.random.split)(keys)  # [B, 2]
            keys, x = pairs[:, 1], jax.vmap(preprocessed)(pairs[:, 0], x)
        return loss(params | {name: of_player}, keys, x, weight, step, axis_name)

    return of_raw


def _finite(reports: dict[str, Terms], largest_norm: float) -> Array:
    """Whether the losses, and the gradients' norms if they are reported, are finite.

    The norms must also be at most the largest one.
    """
    finite = jnp.bool_(True)
    for report in reports.values():
        norm = report.get("gradient_norm", 0.0)
        finite &= jnp.isfinite(report["loss"]) & jnp.isfinite(norm) & (norm <= largest_norm)
    return finite


def _metrics(reports: dict[str, Terms]) -> Terms:
    """The metrics: the terms of one player, or ``player/term`` if there are several players."""
    if len(reports) == 1:
        return next(iter(reports.values()))
    metrics = {
        f"{name}/{term}": value
        for name, report in reports.items()
        for term, value in report.items()
    }
    return metrics | {"loss": jnp.stack([report["loss"] for report in reports.values()]).sum()}


def _moving_average(average: Any, params: Any, step: Array, decay: float, finite: Array) -> Any:
    if average is None:
        return None
    now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(params, average, jnp.where(finite, 1.0 - now, 0.0))
