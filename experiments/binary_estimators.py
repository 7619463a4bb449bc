"""Compares gradient estimators by training the binary VAE of the literature.

``python experiments/binary_estimators.py --data-dir DIR [--estimators rloo arm ...] [--steps N]
[--json OUT]``

The model is the preset ``binary``: 200 bits, the sampled ELBO, statically binarized MNIST.
``--hidden 200 200`` makes the networks nonlinear. The table shows, for every estimator, the
training ELBO after the same number of steps, a mean over seeds with a 95 % interval. It also shows
the variance of the gradient at common parameters, which the first estimator reached with the first
seed.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from experiments import comparisons, problems, tables, variance_tables
from jaxvae import datasets, evaluation, expectations, families, runs
from jaxvae.command_line import run_function

ESTIMATORS = ("rloo", "disarm", "arm", "nvil", "muprop", "double_cv", "rodeo", "relax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained."""

    rows: tyro.conf.Suppress[tuple[str, ...]] = ()
    estimators: tuple[str, ...] = ESTIMATORS
    """Estimators to compare; an estimator that needs two samples gets two."""
    dataset: str = "binarized_mnist"
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers; none is the linear model."""
    latent: int = 200
    """Bits of z."""
    steps: int = 20_000
    seeds: int = 3
    batch_size: int = 50
    learning_rate: float = 1e-3
    """Learning rate of Adam, which is constant."""
    examples: int | None = 5000
    """Training examples of the final ELBO, a fixed random subset."""
    draws: int = 256
    """Draws for each of eight batches in the variance; 0 leaves it out."""


def configuration(options: Options, name: str) -> Any:
    """The configuration of an estimator's row."""
    config = families.preset(
        "binary",
        bound="sampled_elbo",
        estimator=name,
        num_samples=expectations.ESTIMATORS[name].min_samples,
    )
    return options.applied(config)


def check(options: Options) -> None:
    """Raises ValueError if the options do not go together."""
    for name in options.estimators:
        estimator = expectations.ESTIMATORS.get(name)
        if estimator is None or "binary" not in estimator.latents:
            raise ValueError(f"{name!r} is no estimator for bits")
    if options.seeds < 1 or options.draws == 1 or not options.estimators:
        raise ValueError(
            "--seeds must be at least 1, --draws 0 or at least 2, --estimators not empty"
        )
    tables.check_place(options.json)


def variances_at(params: Any, options: Options) -> dict[str, comparisons.Row]:
    """The variances of all estimators at the same parameters, by name."""
    run = runs.prepare(configuration(options, "disarm"), options.job)
    wanted = comparisons.Options(
        estimators=options.estimators, num_draws=options.draws, mode="sampled", timings=0
    )
    problem = problems.vae_of(run, wanted)
    at = problems.without_control(params)
    return {row["estimator"]: row for row in comparisons.compare(problem, at, None, wanted)}


def compare(options: Options) -> None:
    """Trains with each estimator, and prints the ELBOs and the variances."""
    check(options)
    first: list[Any] = []

    def measure(run: runs.Run, params: Any) -> dict[str, float]:
        if not first:
            first.append(params)
        train = datasets.random_subset(run.train, options.examples)
        summary = evaluation.evaluate_elbo(run.built.model, params, jax.random.key(0), train)
        return {"elbo": tables.number(summary.elbo)}

    configs = {name: configuration(options, name) for name in options.estimators}
    results = tables.measured(configs, options, measure)
    variances = variances_at(first[0], options) if options.draws else {}
    show(results, variances)
    tables.save(options.json, dataclasses.asdict(options), results, variances=variances)


def show(results: tables.Results, variances: dict[str, comparisons.Row]) -> None:
    """Prints the estimators, the best one first."""
    mean = lambda name, column: float(np.mean(tables.column_of(results, name, column)))
    lines = [["", "train ELBO (± 95 %)", "seconds", "variance of the gradient"]]
    for name in sorted(results, key=lambda name: -mean(name, "elbo")):
        half = tables.interval(tables.column_of(results, name, "elbo"))
        elbo, seconds = tables.written(mean(name, "elbo"), half), mean(name, "seconds")
        trace = variance_tables.with_ends(variances[name]["trace"]) if variances else ""
        lines.append([name, elbo, f"{seconds:.0f}", trace])
    print("\n" + tables.aligned(lines))


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Trains the binary VAE of the literature with several gradient estimators."""
    compare(options)


if __name__ == "__main__":
    run_function(main)
