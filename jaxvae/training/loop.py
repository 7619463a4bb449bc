"""The loop: dispatches, reports, hooks, stopping."""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import processes
from jaxvae.datasets import batch_rows, num_examples
from jaxvae.training.algorithms import Algorithm
from jaxvae.training.devices import Placement, run_steps
from jaxvae.training.feeds import batches_of


class Totals:
    """Sums of the metrics since the last report, as JSON can hold them: a resumed run goes on
    with the same sums.
    """

    def __init__(self, totals: dict[str, Any] | None = None):
        self.sums: dict[str, list[float]] = dict(
            (totals or {}).get("sums", {})
        )  # term -> [sum, finite values]
        self.skipped: int = (totals or {}).get("skipped", 0)

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """Adds the metrics of some steps, one by one, so that the sums do not depend on how
        steps were dispatched.
        """
        self.skipped += int((metrics["skipped"] > 0).sum())
        for term, values in metrics.items():
            if term != "skipped":
                total, count = self.sums.get(term, [0.0, 0])
                finite = values[np.isfinite(values)].astype(np.float64).tolist()
                self.sums[term] = [
                    functools.reduce(operator.add, finite, total),
                    count + len(finite),
                ]

    def report(self) -> dict[str, float | None]:
        """The means."""
        means = {
            term: total / count if count else None for term, (total, count) in self.sums.items()
        }
        return means | {"skipped": self.skipped}

    def json(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {
            "sums": {term: list(pair) for term, pair in self.sums.items()},
            "skipped": self.skipped,
        }


class HookState(NamedTuple):
    """What a hook sees. The state's buffers are donated to the next step: copy what must outlive
    the call.
    """

    step: int
    state: Any  # global arrays, the same on all devices
    totals: dict[str, Any]  # of Totals.json
    stopping: bool = False  # the loop was asked to stop, and ends here


class Hook(NamedTuple):
    """Calls ``call(moment)`` after every ``every`` steps, after the last one, and when the loop is
    asked to stop.

    In a job of several processes all of them call it, at the same step.
    """

    every: int
    call: Callable[[HookState], None]


class NotFiniteError(FloatingPointError):
    """Losses or gradients were not finite for too many steps in a row; the parameters are from
    before them.
    """


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
    stop: Callable[[], bool] = lambda: False,
    devices: Sequence[jax.Device] | None = None,
    mapping: str = "pmap",
    steps_per_call: int = 100,
    seconds_per_call: float = 5.0,
    max_skipped: int = 10,
) -> Any:
    """Trains to ``num_steps`` and returns the state.

    Batches are a function of (seed, step): every example once per epoch in an order of its own, the
    last batch of an epoch ragged and its mean exact. A run that starts from a saved state goes on
    bit for bit as if it had not stopped.

    In a job of several processes (``processes.initialize``) all call ``fit`` with the same
    arguments.

    Args:
      algorithm: what ``gradient_descent`` or ``players`` makes, or any pair of init and step.
      examples: pytree of arrays ``[N, ...]``; they stay on the devices as they are, uint8 pixels as
        uint8. Or a ``datasets.Stream``, of which each process reads its own part of every batch.
      num_steps: steps in all, those that ``state`` has behind it included.
      batch_size: examples in a global batch; with several devices each takes an equal part.
      seed: of parameters, batches and noise.
      state: where to start; None asks ``algorithm.init``. It is copied, not consumed.
      totals: sums of an unfinished report, as ``HookState.totals`` gave them with that state.
      report: called with the step and the means of all metrics since the last report, with
        ``images_per_second``.
      report_every: steps between reports.
      hooks: called between dispatches with the state; at their steps the loop waits for the device.
      stop: asked at every dispatch; when it is true in any process, all stop after the same step,
        call every hook and return the state as it is.
      devices: devices of the job to use; None is the first one alone, or all in a job of several
        processes.
      mapping: how several devices are used, ``pmap`` or ``shard_map``; the numbers are the same.
      steps_per_call: most steps in one dispatch.
      seconds_per_call: about the longest that a dispatch should take, and so how long a request to
        stop can wait.
      max_skipped: updates in a row that may be skipped for not being finite.

    Raises NotFiniteError naming the step and the term; ValueError for an empty set or settings that
    cannot work.
    """
    n = num_examples(examples)
    periods = [report_every, *(hook.every for hook in hooks)]
    counts = {
        "batch_size": batch_size,
        "steps_per_call": steps_per_call,
        "a period of reports or hooks": min(periods),
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; it was {value}")
    if devices is None:
        devices = jax.local_devices()[:1] if jax.process_count() == 1 else jax.devices()
    layout = Placement(devices, mapping)
    if state is None:
        state = jax.jit(algorithm.init)(
            jax.random.key(seed), jax.tree.map(lambda a: a[0], examples)
        )
    state = layout.replicated(_copied(processes.local(state)))
    step, sums = int(processes.local(state.step)), Totals(totals)
    padded = -(-batch_size // layout.count) * layout.count
    steps = range(step, num_steps)
    source, most = batches_of(
        examples,
        layout,
        seed=seed,
        batch_size=batch_size,
        padded=padded,
        steps=steps,
        most=steps_per_call,
    )
    run = run_steps(algorithm, layout, source.streamed)
    pace = _Pace(most, seconds_per_call)
    waiting: tuple[int, int, Any, int, Any] | None = (
        None  # the dispatch that has not been waited for
    )
    unread: tuple[int, int, Any, int] | None = None  # the one whose metrics have not been read
    clock, images, first_bad, stopping = time.perf_counter(), 0, None, False

    def wait() -> None:
        """Waits for the dispatch before the newest one, which bounds the steps in flight."""
        nonlocal waiting, unread, stopping
        if waiting is None:
            return
        end, count, metrics, seen, votes = waiting
        stopped, slowest = np.asarray(votes).tolist()
        stopping |= bool(stopped)
        pace.done(count, -slowest)
        waiting, unread = None, (end, count, metrics, seen)

    def read() -> None:
        """Reads its metrics."""
        nonlocal unread, sums, clock, images, first_bad
        wait()
        if unread is None:
            return
        end, count, metrics, seen = unread
        metrics = {term: np.asarray(values)[:count] for term, values in metrics.items()}
        unread, images = None, images + seen
        first_bad = _check_finite(metrics, end, first_bad, max_skipped)
        sums.add(metrics)
        if end % report_every == 0 or end == num_steps:
            now = time.perf_counter()
            if report is not None:
                report(end, {"images_per_second": images / (now - clock)} | sums.report())
            sums, clock, images = Totals(), now, 0

    try:
        while step < num_steps and not stopping:
            count = min(
                [pace.agreed, num_steps - step, *(every - step % every for every in periods)]
            )
            rows, mask = np.zeros((2, most, padded), np.int32)
            for s in range(count):
                rows[s], mask[s] = batch_rows(seed, step + s, n, batch_size, padded)
            weight = (mask / np.maximum(mask.sum(1, keepdims=True), 1)).astype(np.float32)
            held, own_rows = source.take(rows, count)
            if layout.on_cpu:
                wait()  # with one dispatch queued behind another, IWAE and conv nets trained about 5 % slower; the
                # metrics are read while the next one runs
            # Votes of all processes, the largest of which comes back: to stop, and the longest next
            # dispatch.
            votes = [int(stop()), -pace.wish]
            state, metrics, votes = run(state, held, count, own_rows, layout.split(weight), votes)
            pace.started()
            step += count
            read()
            waiting = step, count, metrics, int(mask.sum()), votes
            due = [hook for hook in hooks if step % hook.every == 0 or step == num_steps]
            if due or stopping:
                read()
            if stopping:
                due = list(hooks)
            for hook in due:
                hook.call(
                    HookState(
                        step, layout.as_global(state), sums.json(), stopping and step < num_steps
                    )
                )
        read()
    finally:
        source.close()
    return layout.as_global(state)


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


class _Pace:
    """How many steps a dispatch takes: as many as fit into some seconds, from one on and at most 16
    times as many.

    ``wish`` is this process's own view, ``agreed`` the smallest of all processes', which comes back
    with a dispatch.
    """

    def __init__(self, most: int, seconds: float):
        self.most, self.seconds = most, seconds
        self.wish = self.agreed = most if seconds == float("inf") else 1
        self.since: list[float] = []  # when the dispatches that have not been read were started
        self.free = 0.0  # when the device was done with the one that was read last

    def started(self) -> None:
        self.since.append(time.perf_counter())

    def done(self, count: int, agreed: int) -> None:
        self.agreed, now = agreed, time.perf_counter()
        a_step = max(now - max(self.since.pop(0), self.free), 1e-9) / count
        self.free = now
        if self.seconds != float("inf"):
            self.wish = int(max(min(self.most, 16 * agreed, self.seconds / a_step), 1))


def _check_finite(metrics: dict[str, np.ndarray], end: int, first_bad: Any, limit: int) -> Any:
    """Returns the first step of the present row of skipped updates, with the term at fault, or
    raises.
    """
    skipped = metrics["skipped"]
    for i in np.flatnonzero(skipped):
        step = end - len(skipped) + int(i) + 1
        if skipped[i] == 1 or first_bad is None:
            terms = [
                term for term in metrics if term != "skipped" and not np.isfinite(metrics[term][i])
            ]
            first_bad = step, " and ".join(terms) or "an update"
        if skipped[i] >= limit:
            raise NotFiniteError(
                f"step {first_bad[0]}: {first_bad[1]} not finite. {limit} updates in a row were skipped, and the "
                "parameters are those from before. Lower the learning rate, clip the gradient's norm, or look for "
                "values that are not finite in the data."
            )
    return first_bad
