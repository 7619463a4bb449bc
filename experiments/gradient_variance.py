"""Measures bias, variance and cost of gradient estimators side by side.

``python experiments/gradient_variance.py PROBLEM [--estimators rloo disarm] [--num-samples 2 4]
[--json OUT]``; ``--help`` lists all. Problems: toy, titsias_shi, liu_kool, square, exponential,
cosine, linear_gaussian, binary_vae, logistic_regression, and vae, any preset of jaxvae train.

Where the noise can be enumerated or integrated the moments are exact; else they are sampled, with
intervals of 95 %. All estimators are measured at the same parameters with the same keys. One that
learns is trained at them first (``--control-steps``) and then frozen. Budgets are in evaluations of
f per example, and a gradient counts as one more.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import importlib.metadata
import json
import math
import platform
from typing import Annotated, Any

import jax
import tyro

from experiments import comparisons, problems, tables, variance_reports, variance_tables
from jaxvae.command_line import run_function

KEYS = "draw r of unit u: fold_in(fold_in(key(seed), u), r); control variates: key(seed + 2^20)"
Options = comparisons.Options


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
    check(problem, options)
    given = problems.PROBLEMS[problem](options)
    check_estimators(problem, given, options)
    rows: dict[int, list[comparisons.Row]] = {}
    for step in sorted(options.checkpoints):
        params = given.params if given.train is None else given.train(step)
        if len(options.checkpoints) > 1:
            print(f"\nafter {step} steps")
        rows[step] = []
        for k in options.num_samples or (None,):
            at_k = comparisons.compare(given, params, k, options)
            variance_tables.say(at_k)
            rows[step] += at_k
    exponents = exponents_of(rows[max(rows)])
    for name, (value, low, high) in exponents.items():
        print(f"{name}: variance ~ K^{value:.2f} ({low:.2f}, {high:.2f})")
    if options.json is not None:
        write(problem, options, rows, exponents)
        print(f"written: {options.json}")
    if options.plot is not None:
        variance_tables.draw(options.plot, problem, rows)
        print(f"drawn: {options.plot}")


def check(problem: str, options: Options) -> None:
    """Raises ValueError for a problem that is not there and for numbers that mean nothing."""
    if problem not in problems.PROBLEMS:
        raise ValueError(f"no problem {problem!r}; there are {', '.join(problems.PROBLEMS)}")
    for path in (options.json, options.plot):
        tables.check_place(path)
    counts = options.units, options.batch_size, options.latent, options.chunk
    if min(counts) < 1 or not options.checkpoints:
        raise ValueError(
            "--units, --batch-size, --latent and --chunk must be at least 1, --checkpoints not "
            "empty"
        )
    if min(options.num_samples, default=1) < 1 or options.num_draws < 2:
        raise ValueError("--num-samples must be at least 1 and --num-draws at least 2")


def check_estimators(problem: str, given: problems.Problem, options: Options) -> None:
    """Raises ValueError for estimators and checkpoints that are none of the problem's."""
    table, reference = problems.estimators_of(given), options.reference
    for name in (*options.estimators, *([reference] if reference else [])):
        if name not in table:
            raise ValueError(
                f"{name!r} does not serve the problem {problem}; {', '.join(table)} do"
            )
    if reference is not None and not table[reference].unbiased:
        raise ValueError(
            f"--reference {reference} is biased, and cannot stand for the true gradient"
        )
    if given.train is None and options.checkpoints != (0,):
        raise ValueError(f"--checkpoints belong to the problem vae; {problem} is not trained")


def exponents_of(rows: list[comparisons.Row]) -> dict[str, list[float]]:
    """The exponent of the variance in K, by estimator."""
    curves: dict[str, list[comparisons.Row]] = {}
    for row in rows:
        curves.setdefault(row["estimator"], []).append(row)
    return variance_reports.slopes(curves)


def write(problem: str, options: Options, rows: dict[int, Any], exponents: dict[str, Any]) -> None:
    """Writes all results, and what they were made with, as JSON."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "optax")}
    machine = {
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "backend": jax.default_backend(),
    }
    record = {
        "problem": problem,
        "options": tables.as_json(dataclasses.asdict(options)),
        "versions": packages | machine,
        "keys": KEYS,
        "checkpoints": {str(step): each for step, each in rows.items()},
        "exponents": exponents,
    }
    assert options.json is not None
    options.json.write_text(json.dumps(_finite(record), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """A value as JSON can hold it; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    run_function(main)
