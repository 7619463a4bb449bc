"""Samples of VAEs with critics and of a plain VAE (Larsen et al. 2016; Bao et al. 2017).

``python experiments/papers/hybrids.py [--dataset mnist] [--data-dir DIR] [--json OUT]``

Images are means of p(x|z) with z from the prior. The Fréchet distance, precision and recall are in
64 features of a small classifier that is trained here, so only their order can be compared with
other tables. *feature error* is the squared distance of test images and their reconstructions in
these features, and *squared error* the one of a pixel. Both are through the mean of q(z|x). The
rows of a conditional model are drawn at the labels of the test images. Of these *accuracy* is the
share that the classifier puts into the class that was asked for, and *spread* is the variance
within classes in its features, relative to that of test images.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from experiments import tables
from jaxvae import datasets, evaluation, figures, networks, runs, settings
from jaxvae.command_line import run_function
from jaxvae.evaluation import metrics
from jaxvae.families import preset

ROWS: dict[str, Any] = {
    "vae": preset("digits", likelihood="normal"),
    "vae-gan": preset("vae-gan"),
    "cvae": preset("cvae", likelihood="normal", prior="standard_normal"),
    "cvae-gan": preset("cvae-gan"),
    "avb": preset("avb", likelihood="normal"),
}
SIDE = 10  # rows and columns of the picture of samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    hidden: tuple[int, ...] = (256, 256)
    latent: int = 16
    network: Literal[tuple(networks.PAIRS)] = "mlp"  # type: ignore[valid-type]
    """Networks of encoder and decoder."""
    critic: Literal[tuple(networks.CRITICS)] = "mlp"  # type: ignore[valid-type]
    """Network of the critic of images."""
    critic_hidden: tuple[int, ...] = (256, 256)
    """Widths of the critic's hidden layers."""
    classifier_steps: int = 1000
    """Training steps of the classifier whose features samples are seen in."""
    pictures: Path | None = None
    """Folder for pictures of samples and reconstructions."""


def configuration(options: Options, row: Any) -> Any:
    """A row with what it shares with the others. A critic of codes keeps its own widths."""
    known = {name for name, _ in settings.settings_of(row)}
    shared = {"pixels": "scale", "network": options.network, "critic": options.critic}
    config = settings.changed(row, **{n: v for n, v in shared.items() if n in known})
    if "critic" not in known:
        return options.applied(config)
    more = {"critic_hidden": options.critic_hidden, "learning_rate": row.learning_rate}
    return options.applied(config, **more)


def classifier_of(options: Options) -> tuple[evaluation.samples.Classifier, Any]:
    """A classifier of the training examples, whose features samples are seen in.

    It comes with a function that gives the class whose mean feature is nearest.
    """
    run = runs.prepare(configuration(options, ROWS["vae"]), options.job)
    if run.train.y is None:
        raise ValueError(
            f"--dataset needs labels to learn features from; {run.dataset.name} has none"
        )
    train = datasets.random_subset(run.train, metrics.FOR_CLASSIFIER)
    x = evaluation.preprocessed_split(run.key, train)
    classifier = evaluation.samples.classifier_features(
        x, train.y, run.key, num_steps=options.classifier_steps
    )
    seen, classes = classifier.features(x), int(train.y.max()) + 1
    centres = np.stack([seen[train.y == c].mean(0) for c in range(classes)])
    nearest = lambda seen: evaluation.samples.nearest_neighbours(seen, centres).places[:, 0]
    return classifier, nearest


def drawn(run: runs.Run, params: Any, conditions: Any, count: int) -> np.ndarray:
    """Means of p(x|z) at draws of the prior, [count, ...]."""
    model: Any = run.built.model

    @jax.jit
    @jax.vmap
    def draw(key: Any, condition: Any) -> Any:
        return model.decode(params, model.draw(params, key, condition), condition).mean

    keys = jax.random.split(run.key, count)
    parts = np.array_split(np.arange(count), max(count // 500, 1))
    of = lambda rows: None if conditions is None else conditions[rows]
    return np.concatenate([np.asarray(draw(keys[rows], of(rows))) for rows in parts])


def measure(
    classifier: evaluation.samples.Classifier,
    nearest: Any,
    options: Options,
    run: runs.Run,
    params: Any,
) -> dict[str, float]:
    """The numbers of a row.

    Args:
      classifier: gives the features.
      nearest: gives the class of features.
      options: how many examples are used, and where pictures go.
      run: the run.
      params: the parameters of its model.
    """
    test = datasets.random_subset(run.test, options.examples)
    examples = evaluation.preprocessed_split(run.key, test)
    model = run.built.model
    x, conditions = jax.vmap(model.parts)(examples)
    images = drawn(run, params, conditions, len(x))
    real, generated = classifier.features(x), classifier.features(images)
    again = figures.reconstructions(model, params, examples)[1]
    pair = evaluation.samples.precision_recall(real, generated)
    summary = evaluation.evaluate_elbo(model, params, run.key, test)
    save(options, run, images, np.stack([np.asarray(x), again]))
    return {
        "frechet": evaluation.samples.frechet(real, generated),
        "precision": pair.precision,
        "recall": pair.recall,
        "squared error": float(np.mean(np.subtract(x, again) ** 2)),
        "feature error": float(np.sum((real - classifier.features(again)) ** 2, 1).mean()),
        "active units": tables.number(summary.active_units),
        **of_classes(real, generated, test.y, nearest, conditions),
    }


def of_classes(
    real: np.ndarray, generated: np.ndarray, labels: Any, nearest: Any, conditions: Any
) -> dict[str, float]:
    """How well images of a conditional model fit their classes; nan for others.

    Args:
      real: features of test images.
      generated: features of images drawn at their labels.
      labels: the labels of both.
      nearest: gives the class of features.
      conditions: None for a model without a condition.
    """
    if conditions is None:
        return {"accuracy": float("nan"), "spread": float("nan")}

    def within(features: np.ndarray) -> float:
        each = [features[labels == c] for c in np.unique(labels)]
        return float(sum(((f - f.mean(0)) ** 2).sum() for f in each))

    right = float((nearest(generated) == labels).mean())
    return {"accuracy": right, "spread": within(generated) / within(real)}


def save(options: Options, run: runs.Run, images: np.ndarray, pairs: np.ndarray) -> None:
    """Draws samples and reconstructions, if a folder for pictures was named."""
    if options.pictures is None:
        return
    options.pictures.mkdir(parents=True, exist_ok=True)
    name = f"{type(run.config).__module__.split('.')[-1]}-{type(run.config).__name__}"
    stem = options.pictures / f"{name}-{run.config.seed}"
    sheet = images[: SIDE**2].reshape(SIDE, -1, *images.shape[1:])
    figures.grid(Path(f"{stem}-samples.png"), sheet, "Means of p(x|z), z from the prior")
    title = "Test images and their reconstructions"
    figures.grid(Path(f"{stem}-pairs.png"), pairs[:, :SIDE], title)


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """How far samples of VAEs with critics are from the data."""
    chosen = options.chosen(ROWS)
    classifier, nearest = classifier_of(options)
    rows = {name: configuration(options, row) for name, row in chosen.items()}
    of_row = functools.partial(measure, classifier, nearest, options)
    results = tables.measured(rows, options, of_row)
    print(f"\naccuracy of the classifier on held-out images: {classifier.accuracy:.3f}")
    tables.show(results)
    used = dataclasses.asdict(options)
    tables.save(options.json, used, results, classifier_accuracy=classifier.accuracy)


if __name__ == "__main__":
    run_function(main)
