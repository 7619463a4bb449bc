"""Stick-breaking VAE beside a Gaussian one: bounds, and neighbours in the latents.

``python experiments/papers/sticks.py [--dataset mnist] [--data-dir DIR] [--seeds 3] [--json OUT]``

Both have as many latents. The features of the stick-breaking VAE are the mean lengths E pi, and of
the Gaussian one the posterior means. Published on MNIST (Nalisnick & Smyth 2017, tables 1 and 2): a
bound of 98.0 nats beside 96.8, and the error of k-nearest neighbours about 9 % beside 20 to 28 %.
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

from experiments import tables
from jaxvae import datasets, distributions, evaluation, families, runs
from jaxvae.command_line import run_function

NEIGHBOURS = 5
KEPT = 10_000  # training examples that neighbours are looked for in
ROWS = {"normal": "digits", "kumaraswamy": "stick-breaking", "beta": "stick-breaking"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    hidden: tuple[int, ...] = (500,)
    latent: int = 50
    """Latents, or lengths of the stick."""
    steps: int = 10_000
    num_samples: int = 100
    """Importance samples of the test log-likelihood."""


def config_of(row: str, options: Options) -> Any:
    """The configuration of a row; a stick of K lengths has K - 1 breaks."""
    config = families.preset(ROWS[row])
    if row == "normal":
        return options.applied(config)
    breaks = dataclasses.replace(options, latent=options.latent - 1)
    return breaks.applied(config, posterior=f"{row}_sticks")


def features(run: runs.Run, params: Any, split: Any) -> np.ndarray:
    """Posterior means [N, D], or mean lengths of sticks [N, D + 1]."""
    means = evaluation.encode_split(run.built.model, params, run.key, split)
    if run.config.posterior.name == "normal":
        return means
    return np.asarray(jax.vmap(distributions.stick_lengths)(means))


def neighbours(run: runs.Run, params: Any, test: Any) -> float:
    """The error of k-nearest neighbours in the latents, in per cent."""
    from sklearn.neighbors import KNeighborsClassifier

    train = datasets.random_subset(run.train, KEPT)
    classifier = KNeighborsClassifier(NEIGHBOURS)
    classifier.fit(features(run, params, train), train.y)
    return 100 - 100 * classifier.score(features(run, params, test), test.y)


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Stick-breaking VAE beside a Gaussian one: bounds, and neighbours in the latents."""

    def measure(run: runs.Run, params: Any) -> dict[str, float]:
        test = datasets.random_subset(run.test, options.examples)
        model = run.built.model
        summary = evaluation.evaluate_elbo(model, params, run.key, test)
        estimate = evaluation.estimate_log_likelihood(
            model, params, run.key, test, num_samples=options.num_samples
        )
        return {
            "ELBO": tables.number(summary.elbo),
            "log p": estimate.log_likelihood,
            "KL": tables.number(summary.kl),
            "neighbours' error": neighbours(run, params, test),
        }

    rows = {row: config_of(row, options) for row in options.chosen(ROWS)}
    results = tables.measured(rows, options, measure)
    tables.show(results)
    tables.save(options.json, dataclasses.asdict(options), results)


if __name__ == "__main__":
    run_function(main)
