"""The distance of samples from the data, by model and by source of z (Dai & Wipf 2019).

``python experiments/papers/samples.py [--dataset mnist] [--data-dir DIR] [--json OUT]``

The table shows Fréchet distances between decoder means and test images, in 64 features of a small
classifier that is trained here. These are *not* FIDs, whose features are an Inception network's:
only their order can be compared. Published FIDs on MNIST (table 1): fixed noise 52.0, learned noise
54.5, the same with a flow as prior 54.8, WAE-MMD 115.0, a second stage 12.6; on CelebA a VAE 63,
WAE-MMD 55, WAE-GAN 42 (Tolstikhin et al. 2018). *squared error* is the error of a pixel that is
reconstructed through the posterior's mean. Learned noise should have less of it than fixed noise
(Dai & Wipf 2019).
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import functools
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from experiments import tables
from jaxvae import datasets, evaluation, figures, runs, settings
from jaxvae.command_line import run_function
from jaxvae.evaluation import metrics
from jaxvae.families import preset

SOURCES = tuple(evaluation.SOURCES)
FITTED = ("gaussian_mixture", "coupling")
LEARNED = {"likelihood": "normal_learned"}
ROWS: dict[str, tuple[Any, tuple[str, ...]]] = {  # a configuration, and what z is drawn from
    "fixed noise": (preset("digits", likelihood="normal"), SOURCES),
    "learned noise": (preset("learned-variance"), SOURCES),
    "coupling prior": (preset("coupling-prior", **LEARNED), ("model",)),
    "vampprior": (preset("vampprior", **LEARNED), ("model",)),
    "wae-mmd": (preset("wae-mmd", **LEARNED), ("model", *FITTED)),
    "wae-gan": (preset("wae-gan", **LEARNED), ("model", *FITTED)),
    "rae-l2": (preset("rae-l2", **LEARNED), FITTED),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    hidden: tuple[int, ...] = (400, 400)
    latent: int = 16
    steps: int = 20_000
    encodings: int = 10_000
    """Training examples that priors are fitted to."""


def configuration(options: Options, row: Any) -> Any:
    """A row with what it shares with the others."""
    return settings.changed(options.applied(row), pixels="scale")


def classifier_of(options: Options) -> evaluation.samples.Classifier:
    """A classifier of the training examples, whose features samples are seen in."""
    run = runs.prepare(configuration(options, ROWS["fixed noise"][0]), options.job)
    if run.train.y is None:
        raise ValueError(
            f"--dataset needs labels to learn features from; {run.dataset.name} has none"
        )
    train = datasets.random_subset(run.train, metrics.FOR_CLASSIFIER)
    x = evaluation.preprocessed_split(run.key, train)
    return evaluation.samples.classifier_features(x, train.y, run.key)


def distances(
    run: runs.Run,
    params: Any,
    sources: tuple[str, ...],
    classifier: evaluation.samples.Classifier,
    options: Options,
) -> dict[str, float]:
    """The Fréchet distance of samples with z from each source; nan for those that are left out.

    Args:
      run: the run.
      params: the parameters of its model.
      sources: where z is drawn from.
      classifier: gives the features.
      options: how many examples are used.
    """
    test = datasets.random_subset(run.test, options.examples)
    real = classifier.features(evaluation.preprocessed_split(run.key, test))
    decode = jax.jit(jax.vmap(lambda z: run.built.source.decode(params, z).mean))
    values = dict.fromkeys(SOURCES, float("nan"))
    for name in sources:
        source = evaluation.source(
            name, run.built.model, params, run.key, run.train, options.encodings
        )
        z = source.sample(run.key, (len(real),))
        parts = np.array_split(z, max(len(z) // 500, 1))
        images = np.concatenate([np.asarray(decode(part)) for part in parts])
        values[name] = evaluation.samples.frechet(real, classifier.features(images))
    return values


def reconstruction(run: runs.Run, params: Any, options: Options) -> dict[str, float]:
    """The noise of the likelihood, the error of reconstructions, and the active units."""
    test, model = datasets.random_subset(run.test, options.examples), run.built.model
    summary = evaluation.evaluate_elbo(model, params, run.key, test)
    x = evaluation.preprocessed_split(run.key, test)
    pair = figures.reconstructions(model, params, x)
    scale = params["likelihood"].get("log_scale")
    noise = float(np.exp(scale)) if scale is not None else run.config.likelihood.scale
    return {
        "noise": noise,
        "squared error": float(np.mean(np.subtract(*pair) ** 2)),
        "active units": tables.number(summary.active_units),
    }


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """How far samples are from the data, by model and by what z is drawn from."""
    chosen = options.chosen(ROWS)
    classifier = classifier_of(options)

    def measure(sources: tuple[str, ...], run: runs.Run, params: Any) -> dict[str, float]:
        far = distances(run, params, sources, classifier, options)
        return far | reconstruction(run, params, options)

    results: tables.Results = {}
    for name, (row, sources) in chosen.items():
        config = configuration(options, row)
        of_row = functools.partial(measure, sources)
        results |= tables.measured({name: config}, options, of_row)
    accuracy = classifier.accuracy
    print(f"\naccuracy of the classifier on images that it had not seen: {accuracy:.3f}")
    tables.show(results)
    options_used = dataclasses.asdict(options)
    tables.save(options.json, options_used, results, classifier_accuracy=accuracy)


if __name__ == "__main__":
    run_function(main)
