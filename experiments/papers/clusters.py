"""Clusters of digits that mixtures in the latent space find without labels: GMVAE and VaDE beside
k-means.

``python experiments/papers/clusters.py [--dataset mnist] [--data-dir DIR] [--seeds 3] [--json
OUT]``

Accuracy on the test split, with clusters matched to classes one to one. Published on MNIST with ten
clusters: GMVAE 74.47 % ± 10.20 on average and 87.71 at best (Dilokthanakul et al. 2016, table 1, M
= 1), VaDE 94.46 (Jiang et al. 2016), whose networks start as an autoencoder's and whose mixture is
fitted to its codes, as here.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import cells
import commands
import judgements
import wiring

from jaxvae import evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cells.Options):
    """What is trained and measured."""

    hidden: tuple[int, ...] = (500, 500)
    components: int = 10
    """Clusters."""
    steps: int = 20_000
    pretraining: int = 5000
    """Steps of the autoencoder that VaDE starts from."""
    seeds: int = 3


def from_autoencoder(arguments: list[Any], pretraining: int) -> tuple[wiring.Run, Any, float]:
    """VaDE: an autoencoder's networks and the diagonal of a mixture fitted to its codes, then
    trained as one.

    The mixture is fitted with full covariances, which find the digits where diagonal ones do not.
    """
    from sklearn.mixture import GaussianMixture

    run, params, first = cells.trained([*arguments, "--kl-weight", 0, "--steps", pretraining])
    means = evaluation.encode_split(
        run.vae, params, run.train[:20_000], run.key, preprocess=run.preprocess
    )
    fit = GaussianMixture(
        run.config.components, covariance_type="full", n_init=5, random_state=run.config.seed
    )
    fit.fit(means)
    variances = np.diagonal(fit.covariances_, axis1=1, axis2=2)
    prior = {
        "logits": np.log(fit.weights_),
        "loc": fit.means_,
        "log_scale": 0.5 * np.log(variances),
    }
    params |= {"prior": jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), prior)}
    run, params, second = cells.trained(arguments, params)
    return run, params, first + second


def of_pixels(arguments: list[Any]) -> tuple[wiring.Run, np.ndarray, float]:
    """k-means of the pixels."""
    from sklearn.cluster import KMeans

    run, start = cells.built(arguments), time.perf_counter()
    flat = lambda images: np.asarray(images, np.float32).reshape(len(images), -1)
    fit = KMeans(run.config.components, n_init=1, random_state=run.config.seed).fit(flat(run.train))
    return run, fit.predict(flat(run.test.images)), time.perf_counter() - start


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Clusters of digits that mixtures in the latent space find without labels."""
    clustered = lambda run, params, seconds: (
        run,
        judgements.clusters(run, params, run.test),
        seconds,
    )
    rows: dict[str, tuple[str, Callable]] = {  # preset, and how its clusters are found
        "gmvae": ("gmvae", lambda own: clustered(*cells.trained(own))),
        "vade": ("vade", lambda own: clustered(*from_autoencoder(own, options.pretraining))),
        "k-means": ("vade", of_pixels),
    }

    def measure(run: wiring.Run, found: np.ndarray) -> dict[str, float]:
        used = np.bincount(found, minlength=options.components) > 0.01 * len(found)
        return {
            "accuracy": evaluation.clusters.accuracy(found, run.test.labels),
            "clusters in use": float(used.sum()),
        }

    found: cells.Found = {}
    for name, (preset, train) in options.chosen(rows).items():
        arguments = [preset, *options.arguments(), "--components", options.components]
        found |= cells.measured({name: arguments}, options.seeds, measure, train)
    cells.show(found, "accuracy")
    cells.save(options.json, dataclasses.asdict(options), found)


if __name__ == "__main__":
    commands.command(main)
