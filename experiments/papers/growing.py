"""Infinite VAE: how many components it keeps, and what more than one of them gains.

``python experiments/papers/growing.py --table blobs [--seeds 5]`` or ``--table digits
[--dataset digits] [--seeds 3] [--json OUT]``

``blobs`` are five separated clusters of points in the plane, and components are linear VAEs of one
latent. ``digits`` compares the mixture with one VAE of the same networks, and its components with
the clusters of k-means.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import time
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from experiments import tables
from jaxvae import datasets, evaluation, families, runs
from jaxvae.command_line import run_function
from jaxvae.settings import changed
from jaxvae.training.growing import USED

CENTRES = 4.0 * np.array([[1.0, 0.0], [-1.0, 0.4], [0.2, 1.2], [-0.5, -1.3], [1.4, -1.2]])
POINTS = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    table: Literal["blobs", "digits"] = "digits"
    """The table that is made."""
    dataset: str = "digits"
    hidden: tuple[int, ...] = (64, 64)
    latent: int = 4
    steps: int = 4000
    num_samples: int = 100
    """Importance samples of the test log-likelihood."""
    seeds: int = 5


def points(seed: int, count: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Points of five separated clusters [N, 2], and their clusters [N]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(CENTRES), size=count)
    x = CENTRES[labels] + 0.3 * rng.normal(size=(count, 2))
    return x.astype(np.float32), labels


def of_points(options: Options) -> Any:
    """The configuration for blobs."""
    return changed(
        families.preset("infinite-vae"),
        likelihood="normal_learned",
        scale=1.0,
        pixels="none",
        hidden=(),
        latent=1,
        steps=options.steps,
        batch_size=min(options.batch_size, POINTS),
        learning_rate=1e-2,
        schedule="constant",
        settling_steps=min(500, options.steps // 4),
    )


def trained_on_points(config: Any, job: runs.Job) -> tables.Trained:
    """A mixture that is trained on the points of its seed."""
    data = {"train": points(config.seed), "test": points(config.seed + 1000)}
    run, start = runs.prepare(config, job, datasets.load(data)), time.perf_counter()
    state = jax.block_until_ready(run.fit(num_steps=config.steps))
    return tables.Trained(run, run.built.parameters(state), time.perf_counter() - start)


def used(params: Any) -> int:
    """Components that have more than a hundredth of the training examples."""
    counts = np.asarray(params["counts"])
    return int((counts > USED * counts.sum()).sum())


def of_mixture(options: Options, run: runs.Run, params: Any) -> dict[str, float]:
    """What is measured of a mixture."""
    test = datasets.random_subset(run.test, options.examples)
    estimate = evaluation.estimate_log_likelihood(
        run.built.model, params, run.key, test, num_samples=options.num_samples
    )
    clusters = evaluation.metrics.clusters_of(run.built.model, params, run.key, test)
    return {
        "components": float(used(params)),
        "log p": estimate.log_likelihood,
        "accuracy": evaluation.clusters.accuracy(clusters, test.y),
        "k-means": k_means(run, test),
    }


def k_means(run: runs.Run, test: Any) -> float:
    """The accuracy of the clusters of k-means, as many as there are classes."""
    from sklearn.cluster import KMeans

    flat = lambda x: np.asarray(x, np.float32).reshape(len(x), -1)
    classes = len(np.unique(run.train.y))
    fit = KMeans(classes, n_init=3, random_state=run.config.seed).fit(flat(run.train.x))
    return evaluation.clusters.accuracy(fit.predict(flat(test.x)), test.y)


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Infinite VAE: how many components it keeps, and what more than one of them gains."""
    measure = lambda run, params: of_mixture(options, run, params)
    if options.table == "blobs":
        rows = options.chosen({"infinite-vae": of_points(options)})
        results = tables.measured(rows, options, measure, trained_on_points)
    else:
        mixture = options.applied(families.preset("infinite-vae"))
        alone = changed(mixture, experts=1, first_experts=1, concentration=0.0)
        rows = options.chosen({"infinite-vae": mixture, "one VAE": alone})
        results = tables.measured(rows, options, measure)
    tables.show(results)
    tables.save(options.json, dataclasses.asdict(options), results)


if __name__ == "__main__":
    run_function(main)
