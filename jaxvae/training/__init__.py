"""Algorithms, ``init`` and ``step``, and the loop that runs them on one device or many.

A step is written once. ``fit`` runs many of them in one dispatch, a loop on the device, under ``jax.jit``, or under
``jax.pmap`` when there are several devices; losses are reduced over the devices inside the loss *and* gradients are
averaged after it, so the numbers do not depend on how many there are. The noise of example i at step t has the key
``fold_in(fold_in(key, t), i)``, with i its place in the global batch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvae.datasets import batch_rows, num_examples
from jaxvae.models.vae import Loss, Terms

Array = jax.Array
AXIS = "devices"

# (params, keys [B], x [B, ...], weight [B], step, axis_name) -> (loss, terms), one number each over the global batch.
# Weights sum to one over the global batch; padding has weight zero.
BatchLoss = Callable[[Any, Array, Any, Array, Array, str | None], tuple[Array, Terms]]


class Batch(NamedTuple):
    """A batch, or one device's part of it."""

    x: Any  # pytree of [B, ...]
    place: Array  # [B] place in the global batch
    weight: Array  # [B] sums to one over the global batch; zero for padding


class Algorithm(NamedTuple):
    """A training algorithm.

    ``init(key, x) -> state`` takes one example. ``step(state, batch, axis_name) -> (state, metrics)`` is pure;
    ``axis_name`` is the pmapped axis or None. The state has a field ``step``, and the metrics are scalars that include
    ``loss`` and ``skipped``, the number of steps in a row whose update was not finite and so was not made.
    """

    init: Callable[[Array, Any], Any]
    step: Callable[[Any, Batch, str | None], tuple[Any, Terms]]


class Player(NamedTuple):
    """One set of parameters, the loss that it descends and the optimizer that descends it."""

    loss: BatchLoss  # of the parameters of all players, {name: params}
    optimizer: optax.GradientTransformation
    accumulate: int = 1  # parts that the batch is cut into; for losses that are weighted sums over examples


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
        total = jax.tree.map(lambda v: jnp.vdot(jnp.where(weight > 0, v, 0.0), weight), (values, terms))
        return total if axis_name is None else lax.psum(total, axis_name)

    return mean


def treated(treat: Callable[[Array, Any], Any], loss: BatchLoss) -> BatchLoss:
    """The loss of stored examples that ``treat(key, stored) -> x`` turns into what the model takes.

    Each example's key is split in two, so that its treatment and its latent noise are independent.
    """

    def of_stored(params: Any, keys: Array, stored: Any, weight: Array, step: Array, axis_name: str | None) -> Any:
        pairs = jax.vmap(jax.random.split)(keys)  # [B, 2]
        x = jax.vmap(treat)(pairs[:, 0], stored)
        return loss(params, pairs[:, 1], x, weight, step, axis_name)

    return of_stored


def players(
    init: Callable[[Array, Any], dict[str, Any]], members: dict[str, Player], ema_decay: float = 0.0
) -> Algorithm:
    """Gradient descent of several players at once, each in its own parameters (one player is plain training).

    Args:
      init: ``(key, x) -> {name: params}`` with one entry for each player.
      members: the players; each loss sees the parameters of all and is differentiated by its own player's.
      ema_decay: decay of the moving average of the parameters, average <- d average + (1 - d) params with
        d = min(ema_decay, (1 + t) / (10 + t)); 0 keeps none.

    A step whose loss or gradient is not finite leaves parameters, optimizer and average as they were.
    """

    def initial(key: Array, x: Any) -> State:
        key_init, key_steps = jax.random.split(key)
        params = init(key_init, x)
        if params.keys() != members.keys():
            raise ValueError(f"init gave parameters for {sorted(params)}; the players are {sorted(members)}")
        opt_state = {name: player.optimizer.init(params[name]) for name, player in members.items()}
        average = jax.tree.map(jnp.copy, params) if ema_decay else None
        return State(jnp.int32(0), key_steps, params, average, opt_state, jnp.int32(0))

    def step(state: State, batch: Batch, axis_name: str | None = None) -> tuple[State, Terms]:
        chex.assert_rank([batch.place, batch.weight], 1)
        chex.assert_equal_shape_prefix([batch.place, *jax.tree.leaves(batch.x)], 1)
        key = jax.random.fold_in(state.key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.place)
        params, opt_state, finite = {}, {}, jnp.bool_(True)
        metrics: Terms = {}
        for name, player in members.items():
            own_loss = lambda own, *args, name=name, loss=player.loss: loss(state.params | {name: own}, *args)
            args = keys, batch.x, batch.weight
            value_and_grad = jax.value_and_grad(own_loss, has_aux=True)
            (loss, terms), grads = _accumulated(value_and_grad, player.accumulate)(
                state.params[name], args, state.step, axis_name
            )
            grads = grads if axis_name is None else lax.pmean(grads, axis_name)
            norm = optax.tree.norm(grads)
            updates, opt_state[name] = player.optimizer.update(grads, state.opt_state[name], state.params[name])
            params[name] = optax.apply_updates(state.params[name], updates)
            finite &= jnp.isfinite(loss) & jnp.isfinite(norm)
            prefix = f"{name}/" if len(members) > 1 else ""
            report = terms | {"loss": loss, "gradient_norm": norm}
            metrics |= {prefix + term: value for term, value in report.items()}
        if len(members) > 1:
            metrics["loss"] = jnp.stack([metrics[f"{name}/loss"] for name in members]).sum()
        average = _moving_average(state.average, params, state.step, ema_decay)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        new = State(
            step=state.step + 1,
            key=state.key,
            params=keep(params, state.params),
            average=keep(average, state.average),
            opt_state=keep(opt_state, state.opt_state),
            skipped=jnp.where(finite, 0, state.skipped + 1),
        )
        return new, metrics | {"skipped": new.skipped}

    return Algorithm(initial, step)


def gradient_descent(
    init: Callable[[Array, Any], Any],
    loss: BatchLoss,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> Algorithm:
    """Descends one loss in all parameters: ``players`` with one player, named ``model``.

    ``loss`` is a loss of the batch: ``batch_mean`` makes one of a loss of an example.
    """
    of_model = lambda params, *args: loss(params["model"], *args)
    player = Player(of_model, optimizer, accumulate)
    return players(lambda key, x: {"model": init(key, x)}, {"model": player}, ema_decay)


def trained(state: State, player: str = "model") -> Any:
    """The parameters to evaluate: the moving average where one is kept, else the last ones."""
    return (state.params if state.average is None else state.average)[player]


def _accumulated(value_and_grad: Callable, parts: int) -> Callable:
    """The same value and gradient, with the batch cut into ``parts`` that are taken one after the other and added."""

    def whole(params: Any, args: tuple, step: Array, axis_name: str | None) -> Any:
        return value_and_grad(params, *args, step, axis_name)

    def in_parts(params: Any, args: tuple, step: Array, axis_name: str | None) -> Any:
        size = args[-1].shape[0]
        if size % parts:
            raise ValueError(f"a batch of {size} examples on a device does not divide into accumulate={parts} parts")
        cut = jax.tree.map(lambda a: a.reshape(parts, size // parts, *a.shape[1:]), args)
        part = lambda args: whole(params, args, step, axis_name)
        zero = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(part, jax.tree.map(lambda a: a[0], cut))
        )
        add = lambda total, args: (jax.tree.map(jnp.add, total, part(args)), None)
        return lax.scan(add, zero, cut)[0]

    return whole if parts == 1 else in_parts


def _moving_average(average: Any, params: Any, step: Array, decay: float) -> Any:
    if average is None:
        return None
    now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(params, average, 1.0 - now)


def run_steps(algorithm: Algorithm, devices: Sequence[jax.Device]) -> Callable:
    """Many steps in one dispatch: ``run(state, examples, count, rows [S, B], weight [S, B]) -> (state, metrics [S])``.

    Under ``jax.jit`` for one device and under ``jax.pmap`` for several, where B must be a multiple of their number.
    ``examples`` is the data set, on every device; ``rows`` are the examples of each batch. The first ``count`` of the
    S steps are taken; it is no constant of the compiled program, so that one serves dispatches of every length. The
    state is donated.
    """

    def run(state: Any, examples: Any, count: Array, rows: Array, weight: Array, place: Array, axis: str | None) -> Any:
        def take(state: Any, rows: Array, weight: Array) -> tuple[Any, Terms]:
            x = jax.tree.map(lambda a: a[rows], examples)
            return algorithm.step(state, Batch(x, place, weight), axis)

        def body(i: Array, carry: tuple[Any, Terms]) -> tuple[Any, Terms]:
            state, metrics = take(carry[0], rows[i], weight[i])
            return state, jax.tree.map(lambda column, value: column.at[i].set(value), carry[1], metrics)

        _, shapes = jax.eval_shape(take, state, rows[0], weight[0])
        columns = jax.tree.map(lambda s: jnp.zeros((len(rows), *s.shape), s.dtype), shapes)
        return lax.fori_loop(0, count, body, (state, columns))

    n = len(devices)
    if n == 1:
        compiled = jax.jit(functools.partial(run, axis=None), donate_argnums=0)
    else:
        compiled = jax.pmap(
            functools.partial(run, axis=AXIS),
            axis_name=AXIS,
            in_axes=(None, None, None, 0, 0, 0),
            out_axes=(None, None),
            devices=devices,
            donate_argnums=0,
        )

    def split(a: np.ndarray) -> np.ndarray:
        """[..., B] -> [devices, ..., B / devices], or as it is for one device."""
        return a if n == 1 else np.moveaxis(a.reshape(*a.shape[:-1], n, -1), -2, 0)

    def dispatch(state: Any, examples: Any, count: int, rows: np.ndarray, weight: np.ndarray) -> Any:
        return compiled(state, examples, np.int32(count), split(rows), split(weight), split(np.arange(rows.shape[-1])))

    return dispatch


class Totals:
    """Sums of the metrics since the last report, as JSON can hold them: a resumed run goes on with the same sums."""

    def __init__(self, totals: dict[str, Any] | None = None):
        self.sums: dict[str, list[float]] = dict((totals or {}).get("sums", {}))  # term -> [sum, finite values]
        self.skipped: int = (totals or {}).get("skipped", 0)

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        self.skipped += int((metrics["skipped"] > 0).sum())
        for term, values in metrics.items():
            if term != "skipped":
                total, count = self.sums.get(term, [0.0, 0])
                finite = values[np.isfinite(values)].astype(np.float64)
                self.sums[term] = [total + float(finite.sum()), count + finite.size]

    def report(self) -> dict[str, float | None]:
        means = {term: total / count if count else None for term, (total, count) in self.sums.items()}
        return means | {"skipped": self.skipped}

    def json(self) -> dict[str, Any]:
        return {"sums": {term: list(pair) for term, pair in self.sums.items()}, "skipped": self.skipped}


class Moment(NamedTuple):
    """What a hook sees. The state's buffers are donated to the next step: copy what must outlive the call."""

    step: int
    state: Any
    totals: dict[str, Any]  # of Totals.json


class Hook(NamedTuple):
    """Calls ``call(moment)`` after every ``every`` steps and after the last one."""

    every: int
    call: Callable[[Moment], None]


class NotFiniteError(FloatingPointError):
    """Losses or gradients were not finite for too many steps in a row; the parameters are from before them."""


def fit(
    algorithm: Algorithm,
    examples: Any,
    *,
    num_steps: int,
    batch_size: int,
    seed: int = 0,
    state: Any = None,
    totals: dict[str, Any] | None = None,
    report: Callable[[int, dict[str, Any]], None] | None = None,
    report_every: int = 100,
    hooks: Sequence[Hook] = (),
    devices: Sequence[jax.Device] | None = None,
    steps_per_call: int = 100,
    max_skipped: int = 10,
) -> Any:
    """Trains to ``num_steps`` and returns the state.

    Batches are a function of (seed, step): every example once per epoch in an order of its own, the last batch of an
    epoch ragged and its mean exact. A run that starts from a saved state goes on bit for bit as if it had not stopped.

    Args:
      algorithm: what ``gradient_descent`` or ``players`` makes, or any pair of init and step.
      examples: pytree of arrays ``[N, ...]``; they stay on the devices as they are, uint8 pixels as uint8.
      num_steps: steps in all, those that ``state`` has behind it included.
      batch_size: examples in a global batch; with several devices each takes an equal part.
      seed: of parameters, batches and noise.
      state: where to start; None asks ``algorithm.init``. It is copied, not consumed.
      totals: sums of an unfinished report, as ``Moment.totals`` gave them with that state.
      report: called with the step and the means of all metrics since the last report, with ``images_per_second``.
      report_every: steps between reports.
      hooks: called between dispatches with the state; at their steps the loop waits for the device.
      devices: devices to use; None is the first one alone.
      steps_per_call: most steps in one dispatch.
      max_skipped: updates in a row that may be skipped for not being finite.

    Raises NotFiniteError naming the step and the term; ValueError for an empty set or settings that cannot work.
    """
    n = num_examples(examples)
    devices = list(devices) if devices is not None else jax.local_devices()[:1]
    periods = [report_every, *(hook.every for hook in hooks)]
    counts = {"batch_size": batch_size, "steps_per_call": steps_per_call, "a period of reports or hooks": min(periods)}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; it was {value}")
    if state is None:
        state = jax.jit(algorithm.init)(jax.random.key(seed), jax.tree.map(lambda a: a[0], examples))
    everywhere = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    placement = everywhere if len(devices) > 1 else devices[0]
    state = jax.device_put(jax.jit(lambda t: jax.tree.map(jnp.copy, t))(state), placement)
    examples = jax.device_put(examples, placement)
    run = run_steps(algorithm, devices)
    step, sums = int(state.step), Totals(totals)
    padded = -(-batch_size // len(devices)) * len(devices)
    waiting: tuple[int, int, Any, int] | None = None  # the dispatch whose metrics have not been read
    clock, images, first_bad = time.perf_counter(), 0, None

    def read() -> None:
        """Reads the metrics of the dispatch before the newest one, which bounds the steps in flight."""
        nonlocal waiting, sums, clock, images, first_bad
        if waiting is None:
            return
        end, count, metrics, seen = waiting
        metrics = {term: np.asarray(values)[:count] for term, values in metrics.items()}
        waiting, images = None, images + seen
        first_bad = _check_finite(metrics, end, first_bad, max_skipped)
        sums.add(metrics)
        if end % report_every == 0 or end == num_steps:
            now = time.perf_counter()
            if report is not None:
                report(end, {"images_per_second": images / (now - clock)} | sums.report())
            sums, clock, images = Totals(), now, 0

    while step < num_steps:
        count = min([steps_per_call, num_steps - step, *(every - step % every for every in periods)])
        rows, mask = np.zeros((2, steps_per_call, padded), np.int32)
        for s in range(count):
            rows[s], mask[s] = batch_rows(seed, step + s, n, batch_size, padded)
        weight = (mask / np.maximum(mask.sum(1, keepdims=True), 1)).astype(np.float32)
        state, metrics = run(state, examples, count, rows, weight)
        step += count
        read()
        waiting = step, count, metrics, int(mask.sum())
        due = [hook for hook in hooks if step % hook.every == 0 or step == num_steps]
        if due:
            read()
            for hook in due:
                hook.call(Moment(step, state, sums.json()))
    read()
    return state


def _check_finite(metrics: dict[str, np.ndarray], end: int, first_bad: Any, limit: int) -> Any:
    """Returns the first step of the present row of skipped updates, with the term at fault, or raises."""
    skipped = metrics["skipped"]
    for i in np.flatnonzero(skipped):
        step = end - len(skipped) + int(i) + 1
        if skipped[i] == 1 or first_bad is None:
            terms = [term for term in metrics if term != "skipped" and not np.isfinite(metrics[term][i])]
            first_bad = step, " and ".join(terms) or "an update"
        if skipped[i] >= limit:
            raise NotFiniteError(
                f"step {first_bad[0]}: {first_bad[1]} not finite. {limit} updates in a row were skipped, and the "
                "parameters are those from before. Lower the learning rate, clip the gradient's norm, or look for "
                "values that are not finite in the data."
            )
    return first_bad
