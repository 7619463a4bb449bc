"""How well six scores of a VAE tell examples of another kind (Xiao et al. 2020; Serra et al. 2020).

``python experiments/papers/anomalies.py [--dataset mnist] [--against omniglot_small]
[--data-dir DIR] [--seeds 1] [--json OUT]``

The rows are a set against the same images dimmed and rotated, against the inverted images of
another set, and against a class that was left out of training. ``table`` is scikit-learn's breast
cancer set, where benign cases are the training data. The columns are AUROC, with 95 % bootstrap
intervals, where 0.5 is chance. Below 0.5 the likelihoods fail: unseen images have higher ones.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import functools
from typing import Annotated, Any

import numpy as np
import tyro

from experiments import tables
from jaxvae import datasets
from jaxvae.command_line import run_function
from jaxvae.datasets import alterations
from jaxvae.families import preset
from jaxvae.settings import changed
from jaxvae.uses import anomalies

OF_TABLE = tuple(name for name in anomalies.SCORES if name != "complexity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and scored."""

    against: str | None = "omniglot_small"
    """Set whose inverted images are anomalous; None leaves the row out."""
    left_out: int = 9
    """Class that is left out of training, in the row of classes."""
    hidden: tuple[int, ...] = (256, 256)
    latent: int = 32
    steps: int = 2000
    examples: int | None = 300
    num_samples: int = 64
    """Draws of z for a bound or a log-likelihood."""
    regret_steps: int = 60
    """Gradient steps on the posterior of each example."""


ROWS = ("dimmed", "rotated", "against", "class left out", "table")
Sides = tuple[Any, Any]  # like the training data, and anomalous


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """How well six scores of a VAE tell examples of another kind."""
    names = list(options.chosen(dict.fromkeys(ROWS)))
    if options.against is None:
        names = [name for name in names if name != "against"]
    lines = [["", "seed", *anomalies.SCORES]]
    results: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for name in names:
            cells = row(name, options, seed)
            results.setdefault(name, []).append(flat(cells))
            shown = [str(cells.get(score, "")) for score in anomalies.SCORES]
            lines.append([name, str(seed), *shown])
            print(f"{name}, seed {seed}: {dict(zip(anomalies.SCORES, shown, strict=True))}")
    print("\n" + tables.aligned(lines))
    tables.save(options.json, dataclasses.asdict(options), results)


def row(name: str, options: Options, seed: int) -> dict[str, anomalies.Interval]:
    """AUROC by score."""
    trained, inside, outside = SETS.get(name, of_images)(name, options, seed)
    run, params = trained.run, trained.params
    settings = anomalies.Settings(options.num_samples, options.regret_steps)
    model, key = run.built.model, run.key
    train = datasets.random_subset(run.built.split(datasets.select(run.dataset, "train")), 1000)
    entropy = anomalies.entropy_of(model, params, key, train, settings)
    names = OF_TABLE if name == "table" else anomalies.SCORES
    inside, outside = (
        anomalies.scores(
            model,
            params,
            key,
            datasets.random_subset(run.built.split(part), options.examples),
            names,
            entropy=entropy,
            settings=settings,
        )
        for part in (inside, outside)
    )
    told = {score: anomalies.detection(inside[score], outside[score]) for score in names}
    return {score: detection.auroc for score, detection in told.items()}


def flat(cells: dict[str, anomalies.Interval]) -> dict[str, float]:
    """The values, and the ends of their intervals, by name."""
    ends = ("low", "high")
    values = {score: told.value for score, told in cells.items()}
    return values | {f"{s}, {end}": getattr(cells[s], end) for s in cells for end in ends}


def config_of(options: Options, seed: int) -> Any:
    """A VAE of integer pixels."""
    config = preset("digits", likelihood="discretized_logistic", seed=seed)
    return options.applied(config, validation_split=None)


@functools.lru_cache(maxsize=1)
def on_all_classes(options: Options, seed: int) -> tables.Trained:
    """The model of a set, which several rows share."""
    return tables.trained(config_of(options, seed), options.job)


def of_images(name: str, options: Options, seed: int) -> tuple[Any, Any, Any]:
    """The test images of a set, and the same changed, or the images of another set."""
    trained = on_all_classes(options, seed)
    run = trained.run
    inside, levels = datasets.select(run.dataset, "test"), run.record.data.levels
    if name != "against":
        return trained, inside, alterations.altered(inside, name, levels)
    other = datasets.load(options.against, options.data_dir)
    part = datasets.select(other, next(iter(other.splits)))
    like = alterations.images_like(part, other.levels, inside.shape, levels)
    inverted = alterations.altered(like, "inverted", levels)
    return trained, inside, inverted.replace(preprocess=inside.preprocess)


def without_class(name: str, options: Options, seed: int) -> tuple[Any, Any, Any]:
    """Test images of the classes that training has seen, and of the class that it has not."""
    loaded = datasets.load(options.dataset, options.data_dir)
    kept = {
        part: loaded.splits[part].take(np.flatnonzero(loaded.splits[part].y != options.left_out))
        for part in ("train", "test")
    }
    test = loaded.splits["test"]
    unseen = test.take(np.flatnonzero(test.y == options.left_out))
    trained = tables.trained(
        config_of(options, seed), options.job, data=loaded._replace(splits=kept)
    )
    inside = datasets.select(trained.run.dataset, "test")
    return trained, inside, unseen.replace(preprocess=inside.preprocess)


def of_table(name: str, options: Options, seed: int) -> tuple[Any, Any, Any]:
    """Benign cases of the breast cancer set that training has not seen, and malignant ones."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    benign = np.random.default_rng(seed).permutation(x[y == 1])
    cut = 2 * len(benign) // 3
    mean, deviation = benign[:cut].mean(0), benign[:cut].std(0)
    scaled = lambda part: ((part - mean) / deviation).astype(np.float32)
    config = preset("digits", likelihood="normal_learned", seed=seed)
    config = changed(options.applied(config), pixels="none", validation_split=None)
    config = changed(config, latent=min(options.latent, 8), batch_size=min(options.batch_size, 50))
    data = {"train": scaled(benign[:cut]), "test": scaled(benign[cut:])}
    trained = tables.trained(config, options.job, data=data)
    inside = datasets.select(trained.run.dataset, "test")
    return trained, inside, inside.replace(x=scaled(x[y == 0]))


SETS = {"class left out": without_class, "table": of_table}

if __name__ == "__main__":
    run_function(main)
