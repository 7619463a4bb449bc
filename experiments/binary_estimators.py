"""Trains the binary VAE of the literature with several gradient estimators and compares what they
reach.

``python experiments/binary_estimators.py --data-dir DIR [--estimators rloo arm ...] [--steps N]
[--json OUT]``

200 bits, sampled ELBO, statically binarized MNIST, the preset ``binary`` of train.py; ``--hidden
200 200`` makes the networks nonlinear. For every estimator the training ELBO after the same number
of steps, mean over seeds with a 95 % interval, and the gradient's variance at common parameters:
those of the first seed's first estimator after all steps.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any

import cells
import commands
import gradient_variance
import jax
import numpy as np
import problems
import tyro
import variance_tables

from jaxvae import evaluation


@dataclasses.dataclass(frozen=True)
class Options:
    """What is trained."""

    estimators: tuple[str, ...] = (
        "rloo",
        "disarm",
        "arm",
        "nvil",
        "muprop",
        "double_cv",
        "rodeo",
        "relax",
    )
    """Estimators; those that need two samples get two."""
    dataset: str = "binarized_mnist"
    """Set to train on."""
    data_dir: str | None = None
    """Folder of prepared tensorflow-datasets."""
    hidden: tuple[int, ...] = ()
    """Widths of hidden layers; none is the linear model."""
    latent: int = 200
    """Bits."""
    steps: int = 20_000
    """Training steps."""
    seeds: int = 3
    """Seeds, from 0 on."""
    batch_size: int = 50
    """Examples in a batch."""
    learning_rate: float = 1e-3
    """Of Adam, constant."""
    examples: int = 5000
    """Training examples that the final ELBO is taken over."""
    draws: int = 256
    """Draws for each of eight batches in the variance; 0 leaves it out."""
    json: Path | None = None
    """File for everything that was found."""


def arguments(options: Options, name: str) -> list[str]:
    """The command line of train.py that a cell stands for."""
    least = problems.expectations.ESTIMATORS[name].min_samples
    given = {
        "--dataset": options.dataset,
        "--estimator": name,
        "--num-samples": least,
        "--bound": "sampled_elbo",
        "--latent": options.latent,
        "--steps": options.steps,
        "--batch-size": options.batch_size,
        "--learning-rate": options.learning_rate,
    }
    own = [str(part) for pair in given.items() for part in pair]
    own += ["--hidden", *map(str, options.hidden)] if options.hidden else []
    return ["binary", *own, *(["--data-dir", options.data_dir] if options.data_dir else [])]


def compare(options: Options) -> None:
    """Trains the binary VAE of the literature with several gradient estimators and compares what
    they reach.
    """
    for name in options.estimators:
        own = problems.expectations.ESTIMATORS.get(name)
        if own is None or "binary" not in own.latents:
            raise ValueError(f"{name!r} is no estimator for bits")
    if options.seeds < 1 or options.examples < 1 or options.draws == 1 or not options.estimators:
        raise ValueError(
            "--seeds and --examples must be at least 1, --draws 0 or at least 2, --estimators not empty"
        )
    cells.check_place(options.json)
    first: list[Any] = []

    def measure(run: Any, params: Any) -> dict[str, float]:
        if not first:
            first.append(params)
        images = run.train[: options.examples]
        return {
            "elbo": evaluation.evaluate(
                run.vae, params, images, jax.random.key(0), preprocess=run.preprocess
            ).elbo
        }

    found = cells.measured(
        {name: arguments(options, name) for name in options.estimators}, options.seeds, measure
    )
    variances: dict[str, dict[str, Any]] = {}
    if options.draws:
        own = {
            "estimators": options.estimators,
            "num_draws": options.draws,
            "mode": "sampled",
            "timings": 0,
        }
        wanted = gradient_variance.Options(
            arguments=shlex.join(arguments(options, "disarm")[1:]), **own
        )
        strip = {part: value for part, value in first[0].items() if part != "control"}
        rows = gradient_variance.compare(problems.vae(wanted), strip, None, wanted)
        variances = {row["estimator"]: row for row in rows}
    print(f"{'estimator':20s}  train ELBO (± 95 %)   seconds  variance of the gradient")
    for name, own in sorted(
        found.items(), key=lambda item: -np.mean([cell["elbo"] for cell in item[1]])
    ):
        elbos = [cell["elbo"] for cell in own]
        trace = variance_tables.with_ends(variances[name]["trace"]) if variances else ""
        seconds = np.mean([cell["seconds"] for cell in own])
        print(
            f"{name:20s}  {cells.written(np.mean(elbos), cells.interval(elbos)):18s}  {seconds:6.0f}  {trace}"
        )
    cells.save(options.json, dataclasses.asdict(options), found, variances=variances)


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Trains the binary VAE of the literature with several gradient estimators and compares what
    they reach.
    """
    compare(options)


if __name__ == "__main__":
    commands.command(main)
