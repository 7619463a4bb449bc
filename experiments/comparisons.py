"""Rows of a comparison of gradient estimators: moments, costs and their meaning."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import problems, variance_reports
from experiments.variance_reports import Row, Table
from jaxvae import expectations, measurements
from jaxvae.contracts import Array

LEARNING = 2**20  # what is added to the seed for the keys that control variates are trained with
OFTEN = 30  # times that a value must have been drawn for a mean to say anything of it
GRADIENTS = 64  # gradients that are computed at once where their cost is measured


@dataclasses.dataclass(frozen=True)
class Options(problems.Settings):
    """The options of the measurement, and of the files for its results."""

    estimators: tuple[str, ...] = ()
    """Names of estimators and bounds; none takes all that serve the problem's latents."""
    num_samples: tuple[int, ...] = ()
    """Samples K in an estimate, several for a curve; none takes the fewest that each needs."""
    num_draws: int = 4096
    """Draws of each estimator, for every batch of examples (sampled moments)."""
    chunk: int = 256
    """Most draws at a time; memory holds as many gradients."""
    mode: Literal["auto", "exact", "sampled"] = "auto"
    """How moments are computed; auto is exact if the law of an estimator's noise is small
    enough."""
    reference: str | None = None
    """Unbiased estimator whose mean replaces an unknown true gradient; none takes the least noisy
    one."""
    checkpoints: tuple[int, ...] = (0,)
    """Training steps after which all estimators are measured, the same parameters for all (vae)."""
    invariances: bool = False
    """Measure invariances too: a constant added to f, renamed values, saturated logits,
    float32."""
    control_steps: int = 500
    """Steps that train a control variate before it is frozen."""
    control_learning_rate: float = 1e-2
    """Learning rate of its Adam (moving averages have their own)."""
    timings: int = 5
    """Rounds of timing, in which all estimators take turns; 0 measures no time."""
    json: Path | None = None
    """File for all results."""
    plot: Path | None = None
    """Picture of the variances."""


class Point(NamedTuple):
    """Where estimators are compared."""

    problem: problems.Problem
    params: Any
    options: Options

    @property
    def key(self) -> Array:
        """The key of all draws."""
        return jax.random.key(self.options.seed)

    @property
    def table(self) -> Table:
        """All estimators that serve the problem."""
        return problems.estimators_of(self.problem)

    @property
    def first(self) -> Any:
        """The first example, or None."""
        return _row(self.problem.examples, (0, 0))

    @property
    def units(self) -> int:
        """Batches of examples; 1 where there are none."""
        examples = self.problem.examples
        return 1 if examples is None else jax.tree.leaves(examples)[0].shape[0]


class Estimated(NamedTuple):
    """An estimator at a point: with K samples, and with its control variate if it has one."""

    name: str
    k: int
    control: Any


def _row(examples: Any, place: Any) -> Any:
    return None if examples is None else jax.tree.map(lambda a: a[place], examples)


def _wide(tree: Any) -> Any:
    """An array in float64, if that is enabled."""
    return jax.tree.map(lambda a: jnp.asarray(a, float), tree)


# Control variates


def learned(point: Point, name: str, k: int) -> Any:
    """A control variate after ``control_steps`` of descent at frozen parameters, or None."""
    (problem, params, options), estimator = point, point.table[name]
    if estimator.init is None:
        return None
    q = problem.make(params, point.first)[0]
    control = estimator.init(point.key, q, problems.context(point.first))
    optimizer = estimator.optimizer(options.control_learning_rate)

    def loss(control: Any, key: Array, unit: Any) -> Array:
        of_example = problems.descent(problem, name, k, control)
        if unit is None:
            keys = jax.random.split(key, 32)
            return jax.vmap(lambda key: of_example(key, params, None))(keys).mean()
        keys = jax.random.split(key, jax.tree.leaves(unit)[0].shape[0])
        return jax.vmap(of_example, (0, None, 0))(keys, params, unit).mean()

    def step(state: tuple, key: Array) -> tuple[tuple, None]:
        control, moments = state
        unit = None
        if problem.examples is not None:
            unit = _row(problem.examples, jax.random.randint(key, (), 0, point.units))
        updates, moments = optimizer.update(jax.grad(loss)(control, key, unit), moments, control)
        return (optax.apply_updates(control, updates), moments), None

    keys = jax.random.split(jax.random.key(options.seed + LEARNING), options.control_steps)
    run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0])
    return run((control, optimizer.init(control)), keys)[0]


# Moments


def exactly(point: Point, estimated: Estimated) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance [P] by the law of the noise, averaged over units of one example each."""
    (problem, params, _), (name, k, control) = point, estimated
    examples = problem.examples
    if examples is not None and jax.tree.leaves(examples)[0].shape[1] > 1:
        raise ValueError("exact moments are of one example at a time: --batch-size 1")
    with jax.enable_x64(True):
        make = problems.wired(problem, name, _wide(control))
        each = []
        for unit in range(point.units):
            x = _wide(_row(examples, (unit, 0)))
            of_params = lambda params, x=x: make(params, x)
            moments = measurements.exact(point.table[name], of_params, _wide(params), k)
            each.append([np.asarray(measurements.ravel(tree)) for tree in moments])
    mean, variance = (np.mean(part, 0) for part in zip(*each, strict=True))
    return mean, variance


def true_gradient(point: Point) -> np.ndarray | None:
    """The gradient [P] in closed form or by enumeration, or None."""
    problem = point.problem
    if problem.gradient is not None:
        with jax.enable_x64(True):
            return np.asarray(measurements.ravel(problem.gradient(_wide(point.params))))
    if problem.latents == "continuous" or problem.joint:
        return None
    try:
        return exactly(point, Estimated("enumeration", 1, None))[0]
    except ValueError:
        return None


def moments_of(point: Point, estimated: Estimated, truth: Any) -> tuple[Row, Any]:
    """Mean and variance of an estimator, exact or sampled, and all that was sampled.

    Raises ValueError for what it cannot do, such as more draws than there are values.
    """
    options = point.options
    if options.mode != "sampled":
        try:
            mean, variance = exactly(point, estimated)
            return {"mode": "exact", "mean": mean, "variance": variance}, None
        except ValueError:
            if options.mode == "exact":
                raise
    sampled = measurements.measure(
        problems.objective(point.problem, *estimated),
        point.params,
        point.key,
        options.num_draws,
        examples=point.problem.examples,
        direction=truth,
        chunk=options.chunk,
    )
    return {"mode": "sampled", "mean": sampled.mean, "variance": sampled.variance}, sampled


# Costs


def timed(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of a call of each compiled function: medians over rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(5):
                function()
            seconds[name].append((time.perf_counter() - start) / 5)
    return {name: statistics.median(each) for name, each in seconds.items()}


def costs(point: Point, members: dict[str, Estimated]) -> dict[str, Row]:
    """XLA's operations and bytes for one gradient, and seconds without compilation.

    64 gradients are measured at once, and the costs are divided by 64.
    """
    keys = jax.random.split(jax.random.key(0), GRADIENTS)
    rows: dict[str, Row] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, estimated in members.items():
        gradient = jax.grad(problems.objective(point.problem, *estimated), 1)
        batch = jax.jit(jax.vmap(gradient, (0, None, None)))
        compiled = batch.lower(keys, point.params, point.first).compile()
        rows[name] = _program(compiled)
        calls[name] = functools.partial(_finished, compiled, keys, point.params, point.first)
    rounds = point.options.timings
    seconds = timed(calls, rounds) if rounds else {}
    for name, row in rows.items():
        row["seconds"] = seconds[name] / GRADIENTS if name in seconds else None
    return rows


def _finished(compiled: Any, *arguments: Any) -> Any:
    return jax.block_until_ready(compiled(*arguments))


def _program(compiled: Any) -> Row:
    analysis, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    held = memory.temp_size_in_bytes + memory.output_size_in_bytes if memory else math.nan
    return {"flops": analysis.get("flops", math.nan) / GRADIENTS, "peak_bytes": held / GRADIENTS}


def _sizes(point: Point) -> tuple[int, int]:
    """Latents and their classes."""
    problem = point.problem
    shape = problem.make(point.params, point.first)[0].event_shape
    size = math.prod(shape)
    if problem.latents == "categorical":
        return size // shape[-1], shape[-1]
    return size, 2 if problem.latents == "binary" else 0


# Rows


def compare(problem: problems.Problem, params: Any, k: int | None, options: Options) -> list[Row]:
    """A row for every estimator at these parameters.

    Args:
      problem: what is estimated.
      params: where the gradient is taken.
      k: samples of each estimate; None is the fewest that each needs.
      options: what is measured.
    """
    point = Point(problem, params, options)
    truth, table = true_gradient(point), point.table
    rows: dict[str, Row] = {}
    sampled: dict[str, Any] = {}
    members: dict[str, Estimated] = {}
    for name, count in _counts(point, k).items():
        row = {"estimator": name, "num_samples": count}
        row |= {"unbiased": table[name].unbiased, "of": table[name].estimates}
        try:
            estimated = Estimated(name, count, learned(point, name, count))
            moments, draws = moments_of(point, estimated, truth)
        except ValueError as error:
            if options.estimators:
                raise
            print(f"left out: {name}: {error}")
            continue
        rows[name], members[name] = row | moments, estimated
        if draws is not None:
            sampled[name] = draws
    _add_costs(point, rows, members)
    variance_reports.judge(rows, sampled, truth, table, options.reference)
    _name_rare_values(point, rows, sampled)
    if options.invariances:
        for name, row in rows.items():
            row["invariances"] = _invariances(point, members[name])
    return list(rows.values())


def _counts(point: Point, k: int | None) -> dict[str, int]:
    """The estimators that are compared, each with its number of samples.

    Bounds of several samples are compared at the same K, because it is part of what they estimate.
    """
    options, table = point.options, point.table
    names = options.estimators or tuple(table)
    if options.reference is not None:
        names = (*names, options.reference)
    several = max((table[n].min_samples for n in names if _depends_on_k(table[n])), default=1)
    counts = {}
    for name in names:
        fewest = table[name].min_samples
        counts[name] = max(k or fewest, fewest, several if _depends_on_k(table[name]) else 1)
    return counts


def _add_costs(point: Point, rows: dict[str, Row], members: dict[str, Estimated]) -> None:
    spent, sizes = costs(point, members), _sizes(point)
    for name, row in rows.items():
        estimator, k = point.table[name], members[name].k
        row |= spent[name]
        row["evaluations"] = estimator.evaluations(k, *sizes)
        row["gradient_evaluations"] = estimator.gradient_evaluations(k, *sizes)


def _invariances(point: Point, estimated: Estimated) -> Row:
    name, k, control = estimated
    q, f, more = problems.wired(point.problem, name, control)(point.params, point.first)
    return measurements.invariances(point.table[name], q, f, point.key, k, **more)


def rarest(problem: problems.Problem, params: Any) -> float:
    """The least probability of a value of a discrete latent, in any example; 1 for others."""
    if problem.latents == "continuous":
        return 1.0

    def least(x: Any) -> Array:
        logits = problem.make(params, x)[0].logits
        if problem.latents == "binary":
            return (-jax.nn.softplus(jnp.abs(logits))).min()
        return jax.nn.log_softmax(logits).min()

    if problem.examples is None:
        return math.exp(least(None))
    return math.exp(jax.jit(jax.vmap(jax.vmap(least)))(problem.examples).min())


def _name_rare_values(point: Point, rows: dict[str, Row], sampled: dict[str, Any]) -> None:
    rare, drawn = rarest(point.problem, point.params), point.options.num_draws * point.units
    for name in sampled:
        if point.table[name].unbiased and rare * drawn < OFTEN:
            rows[name]["warnings"] = [_or_rare(warning, rare) for warning in rows[name]["warnings"]]


def _or_rare(warning: str, rare: float) -> str:
    """A bias that is seen in draws may be values that were too rare to be drawn: both are named."""
    if not warning.startswith("biased"):
        return warning
    return f"{warning}; or values of latents with probability {rare:.0e}, which were hardly drawn"


def _depends_on_k(estimator: expectations.Estimator) -> bool:
    """Whether what a bound estimates depends on its number of samples."""
    return estimator.estimates not in ("", "elbo")
