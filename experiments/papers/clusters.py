"""Clusters of digits that mixtures in the latent space find without labels, beside k-means.

``python experiments/papers/clusters.py [--dataset mnist] [--data-dir DIR] [--seeds 3]
[--json OUT]``

The rows are GMVAE, VaDE and k-means of the pixels. The accuracy is on the test split, with
clusters matched to classes one to one. Published on MNIST with ten clusters: GMVAE 74.47 % ± 10.20
on average and 87.71 at best (Dilokthanakul et al. 2016, table 1, M = 1), VaDE 94.46 (Jiang et al.
2016). As in that paper, VaDE's networks start as an autoencoder's here, and its mixture is fitted
to the autoencoder's codes.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import time
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import tables
from jaxvae import datasets, evaluation, families, runs, settings
from jaxvae.command_line import run_function

FOR_MIXTURE = 20_000  # training examples whose codes VaDE's mixture is fitted to


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    hidden: tuple[int, ...] = (500, 500)
    components: int = 10
    """Clusters."""
    steps: int = 20_000
    pretraining: int = 5000
    """Steps of the autoencoder that VaDE starts from."""
    seeds: int = 3


class Row(NamedTuple):
    """A configuration, how it is trained, and how its clusters are found."""

    config: Any
    train: tables.Train
    clusters: Any  # (run, what was trained) -> [N] the cluster of each test example


def from_autoencoder(config: Any, job: runs.Job, pretraining: int) -> tables.Trained:
    """VaDE, which starts from an autoencoder and from a mixture that is fitted to its codes.

    The mixture is fitted with full covariances, which find the digits where diagonal ones do not.
    Their diagonals are what the training starts from.
    """
    first = settings.changed(config, kl_weight=0.0, steps=pretraining)
    run, params, seconds = tables.trained(first, job)
    prior = mixture_of_codes(run, params, config.prior.components)
    rest = tables.trained(config, job, params | {"prior": prior})
    return rest._replace(seconds=seconds + rest.seconds)


def mixture_of_codes(run: runs.Run, params: Any, components: int) -> dict[str, jax.Array]:
    """A mixture that is fitted to posterior means, as the parameters of ``priors.mixture``."""
    from sklearn.mixture import GaussianMixture

    examples = datasets.random_subset(run.train, FOR_MIXTURE)
    means = evaluation.encode_split(run.built.model, params, run.key, examples)
    seed = run.config.seed
    fit = GaussianMixture(components, covariance_type="full", n_init=5, random_state=seed)
    fit.fit(means)
    variances = np.diagonal(fit.covariances_, axis1=1, axis2=2)
    prior = {
        "logits": np.log(fit.weights_),
        "loc": fit.means_,
        "log_scale": 0.5 * np.log(variances),
    }
    return {name: jnp.asarray(a, jnp.float32) for name, a in prior.items()}


def k_means(config: Any, job: runs.Job) -> tables.Trained:
    """k-means of the pixels."""
    from sklearn.cluster import KMeans

    run, start = runs.prepare(config, job), time.perf_counter()
    fit = KMeans(config.prior.components, n_init=1, random_state=config.seed)
    fit.fit(_flat(run.train.x))
    return tables.Trained(run, fit, time.perf_counter() - start)


def _flat(images: Any) -> np.ndarray:
    return np.asarray(images, np.float32).reshape(len(images), -1)


def of_pixels(run: runs.Run, fit: Any) -> np.ndarray:
    """The clusters of the test images by k-means."""
    return fit.predict(_flat(run.test.x))


def of_prior(run: runs.Run, params: Any) -> np.ndarray:
    """The prior's component that is most responsible for each posterior mean."""
    return evaluation.metrics.clusters_of(run.built.model, params, run.key, run.test)


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Clusters of digits that mixtures in the latent space find without labels."""

    def vade_trained(config: Any, job: runs.Job) -> tables.Trained:
        return from_autoencoder(config, job, options.pretraining)

    gmvae, vade = (
        options.applied(families.preset(name), components=options.components)
        for name in ("gmvae", "vade")
    )
    rows = {
        "gmvae": Row(gmvae, tables.trained, of_prior),
        "vade": Row(vade, vade_trained, of_prior),
        "k-means": Row(vade, k_means, of_pixels),
    }
    results: tables.Results = {}
    for name, row in options.chosen(rows).items():

        def measure(run: runs.Run, fit: Any, row: Row = row) -> dict[str, float]:
            clusters = row.clusters(run, fit)
            used = np.bincount(clusters, minlength=options.components) > 0.01 * len(clusters)
            accuracy = evaluation.clusters.accuracy(clusters, run.test.y)
            return {"accuracy": accuracy, "clusters in use": float(used.sum())}

        results |= tables.measured({name: row.config}, options, measure, row.train)
    tables.show(results, "accuracy")
    tables.save(options.json, dataclasses.asdict(options), results)


if __name__ == "__main__":
    run_function(main)
