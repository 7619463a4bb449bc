"""The loop of a training, with dispatches, reports, hooks and stopping."""

from __future__ import annotations

import contextlib
import functools
import operator
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxvae import processes
from jaxvae.datasets import Stratum
from jaxvae.training.algorithms import Algorithm
from jaxvae.training.devices import run_steps
from jaxvae.training.feeds import InMemory, Streamed, examples_for, feed_of, first_example
from jaxvae.training.placements import Placement


class Totals:
    """Sums of the metrics since the last report, which JSON can hold.

    A run that goes on with saved sums reports as if it had not stopped.
    """

    def __init__(self, totals: dict[str, Any] | None = None):
        totals = totals or {}
        # term -> [sum, finite values]
        self.sums: dict[str, list[float]] = dict(totals.get("sums", {}))
        self.skipped: int = totals.get("skipped", 0)

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """Adds the metrics of some steps, one by one.

        Therefore the sums do not depend on how steps were dispatched.
        """
        self.skipped += int((metrics["skipped"] > 0).sum())
        for term, values in metrics.items():
            if term != "skipped":
                total, count = self.sums.get(term, [0.0, 0])
                finite = values[np.isfinite(values)].astype(np.float64).tolist()
                summed = functools.reduce(operator.add, finite, total)
                self.sums[term] = [summed, count + len(finite)]

    def report(self) -> dict[str, float | None]:
        """The means of the metrics."""
        means = {
            term: total / count if count else None for term, (total, count) in self.sums.items()
        }
        return means | {"skipped": self.skipped}

    def json(self) -> dict[str, Any]:
        """The sums as the constructor takes them."""
        sums = {term: list(pair) for term, pair in self.sums.items()}
        return {"sums": sums, "skipped": self.skipped}


class HookState(NamedTuple):
    """The state of the training when a hook is called.

    The buffers are donated to the next step, so a hook must copy what it keeps.
    """

    step: int
    state: Any  # global arrays, the same on all devices or cut over them by ``fsdp``
    totals: dict[str, Any]  # what ``Totals.json`` returns
    # Why the loop ends before its last step: "asked" by ``stop``, to go on another time, or
    # "finished" because a hook has returned True. It is empty if the loop does not end.
    stopping: Literal["", "asked", "finished"] = ""


class Hook(NamedTuple):
    """Calls ``call(hook_state)`` after every ``every`` steps, after the last one, and at a stop.

    A call that returns True ends the training after this step, as early stopping does. The hooks
    that have not been called at this step are then called, and ``fit`` returns the state. In a job
    of several processes all of them call the hooks at the same steps, and one True is enough.
    """

    every: int
    call: Callable[[HookState], bool | None]


class NotFiniteError(FloatingPointError):
    """Losses or gradients were not finite for too many steps in a row.

    These steps have not changed the parameters.
    """


def fit(
    algorithm: Algorithm,
    examples: Any,
    *,
    num_steps: int,
    batch_size: int,
    seed: int = 0,
    state: Any = None,
    donate: bool = False,
    totals: dict[str, Any] | None = None,
    report: Callable[[int, dict[str, Any]], None] | None = None,
    report_every: int = 100,
    hooks: Sequence[Hook] = (),
    stop: Callable[[], bool] = lambda: False,
    devices: Sequence[jax.Device] | None = None,
    mapping: str = "pmap",
    mesh: tuple[int, int] | None = None,
    steps_per_call: int = 100,
    seconds_per_call: float = 5.0,
    max_skipped: int = 10,
    strata: Sequence[Stratum] = (),
) -> Any:
    """Trains to ``num_steps`` and returns the state.

    >>> import jax.numpy as jnp, numpy as np, optax
    >>> from jaxvae import training
    >>> loss = training.batch_mean(lambda mean, key, x, step: (0.5 * (mean - x) ** 2, {}))
    >>> algorithm = training.gradient_descent(lambda key, x: jnp.zeros(()), loss, optax.sgd(0.5))
    >>> state = training.fit(algorithm, np.float32([1, 2, 6]), num_steps=50, batch_size=3)
    >>> float(training.trained(state))
    3.0

    Batches are a function of (seed, step). Each epoch has every example once, in another order, and
    the mean of its ragged last batch is exact. A run that starts from a saved state goes on bit for
    bit as if it had not stopped. In a job of several processes (``processes.initialize``) all call
    ``fit`` with the same arguments.

    Args:
      algorithm: what ``gradient_descent`` or ``players`` makes, or any pair of init and step.
      examples: a ``datasets.Split``, ``datasets.Examples`` or a pytree of arrays ``[N, ...]``,
        which stay on the devices as they are, uint8 pixels as uint8. Or a ``datasets.Stream``, of
        which each process reads its part of every batch. The step preprocesses ``Examples``.
      num_steps: the step to train to; the steps that ``state`` has taken count.
      batch_size: examples in a global batch; each of several devices takes an equal part.
      seed: the seed of parameters, batches and noise.
      state: the state to start from, which is copied; None asks ``algorithm.init``.
      donate: whether the state is overwritten rather than copied, which saves its memory. It must
        lie on the devices as ``Placement.started`` or a checkpoint of the same devices gives it.
      totals: sums of an unfinished report, as ``HookState.totals`` gave them with the state.
      report: is called with the step and the means of all metrics since the last report, among
        them ``images_per_second``.
      report_every: steps between reports.
      hooks: are called between dispatches with the state. At their steps the loop waits for the
        device. A hook that returns True ends the training.
      stop: is asked at every dispatch. When it is true in any process, all stop after the same
        step, call every hook and return the state.
      devices: devices of the job to use. None is the first one, or all in a job of several
        processes.
      mapping: how several devices are used, ``pmap``, ``shard_map`` or ``fsdp``; the numbers are
        the same. ``fsdp`` cuts large arrays of the state over the devices.
      mesh: the copies of the state and the parts of each under ``fsdp``; None is one copy.
      steps_per_call: the most steps in one dispatch.
      seconds_per_call: about the longest time of a dispatch. A request to stop may wait so long.
      max_skipped: the most updates in a row that may be skipped because they are not finite.
      strata: groups of examples of which every batch has a fixed number, such as examples with
        a label and without one. An epoch is then one of each group, and no batch is ragged.

    Raises NotFiniteError, which names the step and the term. Raises ValueError for an empty set,
    for something that is no set, or for settings that cannot work.
    """
    examples = examples_for(examples)
    periods = [report_every, *(hook.every for hook in hooks)]
    _check_settings(batch_size, steps_per_call, min(periods))
    if devices is None:
        devices = jax.local_devices()[:1] if jax.process_count() == 1 else jax.devices()
    layout = Placement(devices, mapping, mesh)
    if state is None:
        fresh = jax.random.key(seed), first_example(examples)
        state, donate = layout.started(algorithm.init, *fresh), True
    state = layout.as_mapped(state) if donate else layout.copied(state)
    step = int(processes.local(state.step))
    steps, settings = range(step, num_steps), {"seed": seed, "batch_size": batch_size}
    reports = _Reports(report, report_every, num_steps, max_skipped, Totals(totals))
    with contextlib.closing(
        feed_of(examples, layout, steps=steps, most=steps_per_call, strata=strata, **settings)
    ) as feed:
        run = run_steps(algorithm, layout, feed.streamed)
        dispatcher = _Dispatcher(run, feed, stop, _Pace(feed.most, seconds_per_call), reports)
        ended = False
        while step < num_steps and not ended:
            most = min(num_steps - step, *(every - step % every for every in periods))
            state, step = dispatcher.start(state, step, most)
            if dispatcher.asked or step == num_steps or any(step % h.every == 0 for h in hooks):
                dispatcher.read()
                seen = HookState(step, layout.as_global(state), reports.totals.json())
                ended = _call_hooks(hooks, seen, num_steps, dispatcher.asked)
        dispatcher.read()
    return layout.as_global(state)


def _check_settings(batch_size: int, steps_per_call: int, shortest: int) -> None:
    counts = {
        "batch_size": batch_size,
        "steps_per_call": steps_per_call,
        "a period of reports or hooks": shortest,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; it was {value}")


def _call_hooks(hooks: Sequence[Hook], seen: HookState, last: int, asked: bool) -> bool:
    """Calls the hooks that are due, or all at a stop, and returns whether the loop ends."""
    early = seen.step < last
    due = [hook for hook in hooks if asked or not early or seen.step % hook.every == 0]
    reason: Any = "asked" if asked and early else ""
    answers = [hook.call(seen._replace(stopping=reason)) for hook in due]
    finished = bool(due) and processes.any_of(any(_says_true(answer) for answer in answers))
    if finished and early:
        for hook in hooks:
            if hook not in due:
                hook.call(seen._replace(stopping="finished"))
    return asked or finished


def _says_true(answer: Any) -> bool:
    """Whether an answer is True. Numbers that a call returns do not count."""
    return isinstance(answer, bool | np.bool_) and bool(answer)


class _Dispatch(NamedTuple):
    """Some steps that the devices are taking."""

    end: int  # the step after which it ends
    num_steps: int
    num_examples: int
    metrics: dict[str, Any]  # arrays on the device, {term: [S]}
    votes: Any  # an array on the device


class _Dispatcher:
    """Starts dispatches, waits for them and reads their metrics.

    At most two are in flight. XLA's simulated devices hang if some tens of collectives are queued,
    and a request to stop would wait for the whole queue.
    """

    def __init__(
        self,
        run: Callable,
        feed: InMemory | Streamed,
        stop: Callable[[], bool],
        pace: _Pace,
        reports: _Reports,
    ):
        self.run, self.feed, self.stop, self.pace, self.reports = run, feed, stop, pace, reports
        self.asked = False  # whether any process was asked to stop
        self.newest: _Dispatch | None = None  # it may not have ended
        self.unread: _Dispatch | None = None  # it has ended, and its metrics have not been read

    def start(self, state: Any, step: int, most: int) -> tuple[Any, int]:
        """Starts at most ``most`` steps, and returns the state and the step after them."""
        count = min(self.pace.agreed, most)
        block = self.feed.take(step, count)
        if self.feed.layout.on_cpu:
            # If one dispatch is queued behind another, IWAE and convolutional networks train about
            # 5 % slower. The metrics are read while the next dispatch runs.
            self.wait()
        # Each process votes on whether to stop, and on the length of the next dispatch. The largest
        # votes come back.
        votes = [int(self.stop()), -self.pace.wish]
        state, metrics, votes = self.run(
            state, block.examples, count, block.rows, block.weight, votes
        )
        self.pace.started()
        self.read()
        self.newest = _Dispatch(step + count, count, block.num_examples, metrics, votes)
        return state, step + count

    def wait(self) -> None:
        """Waits for the dispatch that was started last."""
        if self.newest is None:
            return
        stopped, slowest = np.asarray(self.newest.votes).tolist()
        self.asked |= bool(stopped)
        self.pace.done(self.newest.num_steps, -slowest)
        self.newest, self.unread = None, self.newest

    def read(self) -> None:
        """Waits for the last dispatch and reads its metrics."""
        self.wait()
        if self.unread is not None:
            done, self.unread = self.unread, None
            steps = {term: np.asarray(a)[: done.num_steps] for term, a in done.metrics.items()}
            self.reports.add(steps, done.end, done.num_examples)


class _Reports:
    """Sums metrics up, reports their means, and stops a training that is not finite."""

    def __init__(
        self,
        report: Callable[[int, dict[str, Any]], None] | None,
        every: int,
        last: int,
        max_skipped: int,
        totals: Totals,
    ):
        self.report, self.every, self.last, self.max_skipped = report, every, last, max_skipped
        self.totals, self.images, self.clock = totals, 0, time.perf_counter()
        self.first_bad: Any = None  # step and terms of the first skipped update in a row

    def add(self, metrics: dict[str, np.ndarray], end: int, examples: int) -> None:
        """Adds the metrics of the steps up to ``end``."""
        self.images += examples
        self.first_bad = _check_finite(metrics, end, self.first_bad, self.max_skipped)
        self.totals.add(metrics)
        if end % self.every == 0 or end == self.last:
            now = time.perf_counter()
            if self.report is not None:
                speed = {"images_per_second": self.images / (now - self.clock)}
                self.report(end, speed | self.totals.report())
            self.totals, self.clock, self.images = Totals(), now, 0


class _Pace:
    """The number of steps of a dispatch: as many as fit into some seconds.

    It begins with one step, and a dispatch has at most 16 times as many as the one before it.
    ``wish`` is the number that this process would take. ``agreed`` is the smallest wish of all
    processes, which comes back with a dispatch.
    """

    def __init__(self, most: int, seconds: float):
        self.most, self.seconds = most, seconds
        self.wish = self.agreed = most if seconds == float("inf") else 1
        self.since: list[float] = []  # when the unread dispatches were started
        self.free = 0.0  # when the device ended the dispatch that was read last

    def started(self) -> None:
        self.since.append(time.perf_counter())

    def done(self, count: int, agreed: int) -> None:
        self.agreed, now = agreed, time.perf_counter()
        a_step = max(now - max(self.since.pop(0), self.free), 1e-9) / count
        self.free = now
        if self.seconds != float("inf"):
            self.wish = int(max(min(self.most, 16 * agreed, self.seconds / a_step), 1))


def _above(metrics: dict[str, np.ndarray], i: int) -> str:
    """What is said of a step that was skipped though all of its metrics are finite."""
    norms = [values[i] for term, values in metrics.items() if term.endswith("gradient_norm")]
    return f"a gradient of norm {max(norms, default=np.nan):.4g}, above skip_norm, which may be low"


def _check_finite(metrics: dict[str, np.ndarray], end: int, first_bad: Any, limit: int) -> Any:
    """Returns the first step of the present row of skipped updates, with the term at fault.

    Raises NotFiniteError if the row is too long.
    """
    skipped = metrics["skipped"]
    for i in np.flatnonzero(skipped):
        step = end - len(skipped) + int(i) + 1
        if skipped[i] == 1 or first_bad is None:
            terms = [
                term for term in metrics if term != "skipped" and not np.isfinite(metrics[term][i])
            ]
            first_bad = (
                step,
                " and ".join(terms) + " not finite" if terms else _above(metrics, int(i)),
            )
        if skipped[i] >= limit:
            raise NotFiniteError(
                f"step {first_bad[0]}: {first_bad[1]}. {limit} updates in a row were "
                "skipped, and the parameters are as they were before. Lower the learning rate, "
                "clip the gradient's norm, or look for values that are not finite in the data."
            )
    return first_bad
