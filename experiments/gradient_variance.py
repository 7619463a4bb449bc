"""Measures bias, variance and cost of gradient estimators side by side.

``python experiments/gradient_variance.py PROBLEM [--estimators rloo disarm] [--num-samples 2 4]
[--json OUT]``; ``--help`` lists all. Problems: toy, titsias_shi, liu_kool, square, exponential,
cosine, linear_gaussian, binary_vae, logistic_regression, and vae, any preset of train.py.

Where the noise can be enumerated or integrated the moments are exact; else they are sampled, with
intervals of 95 %. All estimators are measured at the same parameters with the same keys. One that
learns is trained at them first (``--control-steps``) and then frozen. Budgets are in evaluations of
f per example, and a gradient counts as one more.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import platform
import statistics
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import commands
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import tyro
import variance_tables

from jaxvae import measurements
from jaxvae.measurements import reports

Array = jax.Array
LEARNING = 2**20  # what is added to the seed for the keys that control variates are trained with
OFTEN = 30  # times that a value must have been drawn for a mean to say anything of it


@dataclasses.dataclass(frozen=True)
class Options(problems.Settings):
    """What is measured, and where it is written."""

    estimators: tuple[str, ...] = ()
    """Names of estimators and bounds; none is all that serve the problem's latents."""
    num_samples: tuple[int, ...] = ()
    """Samples K in an estimate, several for a curve; none is the fewest that each needs."""
    num_draws: int = 4096
    """Draws of each estimator, for every batch of examples (sampled moments)."""
    chunk: int = 256
    """Draws at a time, at most; memory is that of as many gradients."""
    mode: Literal["auto", "exact", "sampled"] = "auto"
    """How moments are computed; auto is exact for the estimators whose noise has a law that is
    small enough.
    """
    reference: str | None = None
    """Unbiased estimator whose mean stands for the true gradient where that is not known; none
    is the least noisy.
    """
    checkpoints: tuple[int, ...] = (0,)
    """Training steps after which all estimators are measured, the same parameters for all (vae)."""
    invariances: bool = False
    """Look as well at what must not matter: a constant added to f, renamed values, saturated
    logits, float32.
    """
    control_steps: int = 500
    """Steps that train a control variate before it is frozen."""
    control_learning_rate: float = 1e-2
    """Learning rate of its Adam (moving averages have their own)."""
    timings: int = 5
    """Rounds of timing, in which all estimators take turns; 0 is none."""
    json: Path | None = None
    """File for everything that was found."""
    plot: Path | None = None
    """Picture of the variances."""


def learned(problem: problems.Problem, name: str, k: int, params: Any, options: Options) -> Any:
    """The control variate's parameters after ``control_steps`` of descent at frozen parameters,
    or None.
    """
    own = problems.estimators_of(problem)[name]
    if own.init is None:
        return None
    first = None if problem.examples is None else jax.tree.map(lambda a: a[0, 0], problem.examples)
    q = problem.make(params, first)[0]
    control = own.init(jax.random.key(options.seed), q, problems.context(first))
    optimizer = own.optimizer(options.control_learning_rate)

    def loss(control: Any, key: Array, unit: Any) -> Array:
        of = problems.descent(problem, name, k, control)
        if unit is None:
            return jax.vmap(lambda key: of(key, params, None))(jax.random.split(key, 32)).mean()
        size = jax.tree.leaves(unit)[0].shape[0]
        return jax.vmap(of, (0, None, 0))(jax.random.split(key, size), params, unit).mean()

    def step(state: tuple, key: Array) -> tuple[tuple, None]:
        control, moments = state
        unit = None
        if problem.examples is not None:
            chosen = jax.random.randint(key, (), 0, jax.tree.leaves(problem.examples)[0].shape[0])
            unit = jax.tree.map(lambda a: a[chosen], problem.examples)
        updates, moments = optimizer.update(jax.grad(loss)(control, key, unit), moments, control)
        return (optax.apply_updates(control, updates), moments), None

    keys = jax.random.split(jax.random.key(options.seed + LEARNING), options.control_steps)
    return jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))(
        (control, optimizer.init(control)), keys
    )[0][0]


def exactly(
    problem: problems.Problem, name: str, k: int, params: Any, control: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance [P] by the law of the noise, averaged over units of one example each."""
    own = problems.estimators_of(problem)[name]
    sizes = [1] if problem.examples is None else jax.tree.leaves(problem.examples)[0].shape
    if problem.examples is not None and sizes[1] > 1:
        raise ValueError("exact moments are of one example at a time: --batch-size 1")
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, float), tree)
        make = problems.wired(problem, name, wide(control))
        found = []
        for u in range(sizes[0]):
            x = (
                None
                if problem.examples is None
                else wide(jax.tree.map(lambda a, u=u: a[u, 0], problem.examples))
            )
            moments = measurements.exact(own, lambda params, x=x: make(params, x), wide(params), k)
            found.append([np.asarray(measurements.ravel(tree)) for tree in moments])
    mean, variance = (np.mean(part, 0) for part in zip(*found, strict=True))
    return mean, variance


def true_gradient(problem: problems.Problem, params: Any) -> np.ndarray | None:
    """The gradient [P] in closed form or by enumeration, or None."""
    if problem.gradient is not None:
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda a: jnp.asarray(a, float), params)
            return np.asarray(measurements.ravel(problem.gradient(wide)))
    if problem.latents == "continuous" or problem.joint:
        return None
    try:
        return exactly(problem, "enumeration", 1, params, None)[0]
    except ValueError:
        return None


def timed(functions: dict[str, Any], rounds: int) -> dict[str, float]:
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
    return {name: statistics.median(own) for name, own in seconds.items()}


def costs(
    problem: problems.Problem, objectives: dict[str, Any], params: Any, options: Options
) -> dict[str, dict]:
    """Of 64 gradients at once: XLA's operations and bytes for one, and seconds without
    compilation.
    """
    unit = None if problem.examples is None else jax.tree.map(lambda a: a[0, 0], problem.examples)
    keys = jax.random.split(jax.random.key(0), 64)
    found, runs = {}, {}
    for name, of in objectives.items():
        gradient = jax.jit(
            lambda params, keys, of=of: jax.vmap(lambda k: jax.grad(of, 1)(k, params, unit))(keys)
        )
        compiled = gradient.lower(params, keys).compile()
        analysis, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
        found[name] = {
            "flops": analysis.get("flops", math.nan) / 64,
            "peak_bytes": (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 64
            if memory
            else math.nan,
        }
        runs[name] = lambda compiled=compiled: jax.block_until_ready(compiled(params, keys))
    seconds = timed(runs, options.timings) if options.timings else {}
    return {
        name: own | {"seconds": seconds[name] / 64 if name in seconds else None}
        for name, own in found.items()
    }


def _sizes(problem: problems.Problem, params: Any) -> tuple[int, int]:
    """Latents and their classes."""
    x = None if problem.examples is None else jax.tree.map(lambda a: a[0, 0], problem.examples)
    shape = problem.make(params, x)[0].event_shape
    size = math.prod(shape)
    if problem.latents == "categorical":
        return size // shape[-1], shape[-1]
    return size, 2 if problem.latents == "binary" else 0


def compare(
    problem: problems.Problem, params: Any, k: int | None, options: Options
) -> list[dict[str, Any]]:
    """A row for every estimator at these parameters, with K samples or the fewest that each
    needs.
    """
    table = problems.estimators_of(problem)
    names = options.estimators or tuple(table)
    if options.reference is not None:
        names = tuple(dict.fromkeys((*names, options.reference)))
    # bounds of several samples are compared at the same K, because it is part of what they estimate
    several = max([table[name].min_samples for name in names if _of_k(table[name])], default=1)
    fewest = lambda own: max(k or own.min_samples, own.min_samples, several if _of_k(own) else 1)
    truth, key = true_gradient(problem, params), jax.random.key(options.seed)
    rows, measured, controls, objectives, counts = {}, {}, {}, {}, {}
    for name in names:
        own = table[name]
        counts[name] = fewest(own)
        row = {
            "estimator": name,
            "num_samples": counts[name],
            "unbiased": own.unbiased,
            "of": own.estimates,
        }
        try:
            controls[name] = learned(problem, name, counts[name], params, options)
            objective = problems.objective(problem, name, counts[name], controls[name])
            try:
                if options.mode == "sampled":
                    raise ValueError
                mean, variance = exactly(problem, name, counts[name], params, controls[name])
                rows[name] = row | {"mode": "exact", "mean": mean, "variance": variance}
            except ValueError:
                if options.mode == "exact":
                    raise
                more = {"examples": problem.examples, "direction": truth, "chunk": options.chunk}
                measured[name] = measurements.measure(
                    objective, params, key, options.num_draws, **more
                )
                rows[name] = row | {
                    "mode": "sampled",
                    "mean": measured[name].mean,
                    "variance": measured[name].variance,
                }
            objectives[name] = objective
        except ValueError as error:
            if options.estimators:
                raise
            print(f"left out: {name}: {error}")
    spent = costs(problem, objectives, params, options)
    size = _sizes(problem, params)
    for name, row in rows.items():
        row |= spent[name]
        row["evaluations"] = table[name].evaluations(counts[name], *size)
        row["gradient_evaluations"] = table[name].gradient_evaluations(counts[name], *size)
    _judge(rows, measured, truth, table, options)
    rare, drawn = rarest(problem, params), options.num_draws * _units(problem)
    for name in measured:
        if table[name].unbiased and rare * drawn < OFTEN:
            rows[name]["warnings"] = [_or_rare(warning, rare) for warning in rows[name]["warnings"]]
    if options.invariances:
        x = None if problem.examples is None else jax.tree.map(lambda a: a[0, 0], problem.examples)
        for name, row in rows.items():
            q, f, more = problems.wired(problem, name, controls[name])(params, x)
            row["invariances"] = measurements.invariances(
                table[name], q, f, key, counts[name], **more
            )
    return list(rows.values())


def _units(problem: problems.Problem) -> int:
    return 1 if problem.examples is None else jax.tree.leaves(problem.examples)[0].shape[0]


def rarest(problem: problems.Problem, params: Any) -> float:
    """The probability of the least likely value that a discrete latent has in any example; 1 for
    continuous ones.
    """
    if problem.latents == "continuous":
        return 1.0

    def least(x: Any) -> Array:
        logits = problem.make(params, x)[0].logits
        log_p = (
            -jax.nn.softplus(jnp.abs(logits))
            if problem.latents == "binary"
            else jax.nn.log_softmax(logits)
        )
        return log_p.min()

    if problem.examples is None:
        return math.exp(least(None))
    return math.exp(jax.jit(jax.vmap(jax.vmap(least)))(problem.examples).min())


def _or_rare(warning: str, rare: float) -> str:
    """A bias that is seen in draws may be values that were too rare to be drawn: both are named."""
    if not warning.startswith("biased"):
        return warning
    return f"{warning}; or values of latents with probability {rare:.0e}, which were hardly drawn"


def _of_k(own: Any) -> bool:
    """Whether what a bound estimates depends on its number of samples."""
    return own.estimates not in ("", "elbo")


def _aim(own: Any) -> str:
    return {"": "elbo", "rws": "iwae"}.get(own.estimates, own.estimates)


def _peers(rows: dict, name: str, table: dict, options: Options) -> list[str]:
    """The unbiased estimators of the same objective, or the reference that was asked for."""
    fit = [
        other for other in rows if table[other].unbiased and _aim(table[other]) == _aim(table[name])
    ]
    return [options.reference] if options.reference in fit else fit


def _judge(
    rows: dict[str, dict], measured: dict, truth: np.ndarray | None, table: dict, options: Options
) -> None:
    """Adds biases, intervals, signals and budgets to the rows, and takes the vectors out."""
    noise = lambda name: float(rows[name]["variance"].sum())
    spent = lambda name: rows[name]["evaluations"] + rows[name]["gradient_evaluations"]
    for row in rows.values():
        row["norm"] = float(np.linalg.norm(row["mean"]))
    for name, row in rows.items():
        peers = _peers(rows, name, table, options)
        surest = min(peers, key=lambda other: (other in measured, noise(other)), default=None)
        noisy = [other for other in peers if noise(other) > variance_tables.rounding(rows[other])]
        reference = min(noisy, key=lambda other: noise(other) * spent(other), default=None)
        target: Any = truth
        if target is None and surest is not None:
            target = measured[surest] if surest in measured else rows[surest]["mean"]
        row["truth"] = "closed form or enumeration" if truth is not None else surest
        row["reference"] = reference
        own = measured.get(name)
        row["trace"] = list(reports.trace(own)) if own else [float(row["variance"].sum())] * 3
        paired = own is not None and reference in measured
        row["ratio"] = list(reports.ratio(own, measured[reference])) if paired else None
        if not paired and reference is not None:
            row["ratio"] = [end / noise(reference) for end in row["trace"]]
        row["warnings"], squared = [], None
        if target is not None and (truth is not None or name != surest):
            if own is None and isinstance(target, measurements.Sampled):
                row["warnings"] = [f"its bias is not known: {surest} was sampled"]
            elif own is None:
                off = row["mean"] - target
                row["largest_bias"], squared = float(np.abs(off).max()), float(off @ off)
                row["squared_bias"] = [squared] * 3
            else:
                bias = reports.bias(own, target)
                row |= {
                    "largest_z": bias.largest_z,
                    "z_bound": bias.bound,
                    "visible_bias": bias.visible,
                }
                row["squared_bias"] = list(bias.squared)
                squared = bias.squared.value if bias.squared.low > 0 else 0.0
                row["warnings"] = reports.warnings(own, bias)
        elif own is not None:
            row["warnings"] = reports.warnings(own)
        if own is not None:
            row["signal"] = reports.signal(own)._asdict()
            of_block = lambda block, own=own: {
                "trace": reports.trace(own, block),
                **reports.signal(own, block)._asdict(),
            }
            row["blocks"] = {block: of_block(block) for block in own.blocks[1:]}
            if own.between is not None:
                row["minibatch"] = float(np.maximum(own.between, 0).sum())
        budget = spent(name)
        row["work_normalized"] = row["trace"][0] * budget
        row["work_seconds"] = None if row["seconds"] is None else row["trace"][0] * row["seconds"]
        if not row["unbiased"] and squared and reference is not None and reference != name:
            of_reference = noise(reference), spent(reference)
            row["break_even"] = reports.break_even(row["trace"][0], budget, squared, *of_reference)
    for row in rows.values():
        del row["mean"], row["variance"]


def slopes(curves: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """The exponent of the variance in K for every estimator that was measured with several."""
    found = {}
    for name, rows in curves.items():
        good = [row for row in rows if row["trace"][0] > 0]
        if len({row["num_samples"] for row in good}) > 1:
            errors = [
                max(math.log(row["trace"][2] / row["trace"][1]) / (2 * reports.WIDTH), 1e-6)
                for row in good
            ]
            fitted = reports.slope(
                [r["num_samples"] for r in good], [r["trace"][0] for r in good], errors
            )
            found[name] = list(fitted)
    return found


def _finite(value: Any) -> Any:
    """As JSON can hold it: null for what is not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(
    problem: Annotated[str, tyro.conf.Positional],
    options: Annotated[Options, tyro.conf.arg(name="")],
) -> None:
    """Measures bias, variance and cost of gradient estimators on a problem.

    Args:
        problem: toy, titsias_shi, liu_kool, square, exponential, cosine, linear_gaussian,
            binary_vae, logistic_regression or vae.
        options: what is measured.
    """
    if problem not in problems.PROBLEMS:
        raise ValueError(f"no problem {problem!r}; there are {', '.join(problems.PROBLEMS)}")
    for path in (options.json, options.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: the folder does not exist")
    if (
        min(options.units, options.batch_size, options.latent, options.chunk) < 1
        or not options.checkpoints
    ):
        raise ValueError(
            "--units, --batch-size, --latent and --chunk must be at least 1, --checkpoints not empty"
        )
    given = problems.PROBLEMS[problem](options)
    table = problems.estimators_of(given)
    for name in (*options.estimators, *([options.reference] if options.reference else [])):
        if name not in table:
            raise ValueError(
                f"{name!r} does not serve the problem {problem}; {', '.join(table)} do"
            )
    if min(options.num_samples, default=1) < 1 or options.num_draws < 2:
        raise ValueError("--num-samples must be at least 1 and --num-draws at least 2")
    if options.reference is not None and not table[options.reference].unbiased:
        raise ValueError(
            f"--reference {options.reference} is biased, and cannot stand for the true gradient"
        )
    if given.train is None and options.checkpoints != (0,):
        raise ValueError(f"--checkpoints belong to the problem vae; {problem} is not trained")
    found: dict[int, list[dict[str, Any]]] = {}
    curves: dict[str, list[dict[str, Any]]] = {}
    for step in sorted(options.checkpoints):
        params = given.params if given.train is None else given.train(step)
        if len(options.checkpoints) > 1:
            print(f"\nafter {step} steps")
        found[step] = []
        for k in options.num_samples or (None,):
            rows = compare(given, params, k, options)
            variance_tables.say(rows)
            found[step] += rows
    for row in found[max(found)]:
        curves.setdefault(row["estimator"], []).append(row)
    exponents = slopes(curves)
    for name, (value, low, high) in exponents.items():
        print(f"{name}: variance ~ K^{value:.2f} ({low:.2f}, {high:.2f})")
    if options.json is not None:
        packages = {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "optax")
        }
        machine = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "backend": jax.default_backend(),
        }
        record = {
            "problem": problem,
            "options": {
                k: v if not isinstance(v, Path) else str(v)
                for k, v in dataclasses.asdict(options).items()
            },
            "versions": packages | machine,
            "keys": "draw r of unit u: fold_in(fold_in(key(seed), u), r); control variates: key(seed + 2^20)",
            "checkpoints": {str(step): rows for step, rows in found.items()},
            "exponents": exponents,
        }
        options.json.write_text(json.dumps(_finite(record), indent=1, allow_nan=False) + "\n")
        print(f"written: {options.json}")
    if options.plot is not None:
        variance_tables.draw(options.plot, problem, found)
        print(f"drawn: {options.plot}")


if __name__ == "__main__":
    commands.command(main)
