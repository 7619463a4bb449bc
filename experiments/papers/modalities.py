"""Several views of one example: joint and conditional likelihoods, and coherence.

``python experiments/papers/modalities.py --mfeat mfeat.npz [--views fou pix] [--seeds 3]``
``python experiments/papers/modalities.py [--dataset mnist] [--data-dir DIR] [--seeds 3]``

The rows are products (Wu & Goodman 2018), mixtures (Shi et al. 2019) and mixtures of products of
experts (Sutter et al. 2021). With ``--mfeat`` the views are features of the same numerals (UCI
Multiple Features), standardized, 150 of each class to train and 50 to test. The row ``linear`` is
factor analysis of all views together, the optimum of a linear product. Otherwise the views are the
left half, the right half and the label of an image. Log-likelihoods are in nats, and the columns
``a to b`` are how often a classifier of the view b finds the class in what is decoded from a.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from experiments import tables
from jaxvae import datasets, evaluation, runs
from jaxvae.command_line import run_function
from jaxvae.families import preset
from jaxvae.settings import changed

LINEAR = "linear"
TRAIN_OF_CLASS = 150  # numerals of each class in mfeat to train on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    mfeat: Path | None = None
    """The file of UCI Multiple Features, an array for each view and ``label``."""
    views: tuple[str, ...] = ("fou", "pix")
    """Views of that file."""
    hidden_views: float = 0.0
    """Share of the views that training does not see."""
    latent: int = 20
    """Dimensions of z, and factors of the linear row."""
    hidden: tuple[int, ...] = (256,)
    """Widths of the hidden layers."""
    likelihood: str = "normal_decoded"
    """Family of the views of mfeat."""


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Several views of one example: joint and conditional likelihoods, and coherence."""
    every = ("product", "mixture", "both") + ((LINEAR,) if options.mfeat else ())
    results: tables.Results = {}
    for name in options.chosen(dict.fromkeys(every)):
        for seed in range(options.seeds):
            start = time.perf_counter()
            numerals = None if options.mfeat is None else read(options, seed)
            if name == LINEAR:
                assert numerals is not None
                cell = linear(numerals, options)
            else:
                cell = model(name, numerals, options, seed)
            cell = {column.replace("_", " "): value for column, value in cell.items()}
            results.setdefault(name, []).append(cell | {"seconds": time.perf_counter() - start})
            print(f"{name}, seed {seed}: {cell}", flush=True)
    for name, cells in results.items():
        tables.show({name: cells})
    tables.save(options.json, dataclasses.asdict(options), results)


class Numerals(NamedTuple):
    """The views of mfeat side by side, standardized, [N, D], with their sizes and labels."""

    train: np.ndarray
    test: np.ndarray
    of_train: np.ndarray
    of_test: np.ndarray
    sizes: tuple[int, ...]


def read(options: Options, seed: int) -> Numerals:
    """The views of the file. Raises ValueError for one that is not there."""
    assert options.mfeat is not None
    with np.load(options.mfeat) as file:
        missing = [name for name in (*options.views, "label") if name not in file.files]
        if missing:
            raise ValueError(f"{options.mfeat} has no {missing[0]}; it has {', '.join(file.files)}")
        parts = [np.asarray(file[name], np.float64) for name in options.views]
        labels = np.asarray(file["label"], np.int32)
    generator, chosen = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        chosen[rows[: min(TRAIN_OF_CLASS, 3 * len(rows) // 4)]] = True
    x = np.concatenate(parts, 1)
    x = (x - x[chosen].mean(0)) / np.maximum(x[chosen].std(0), 1e-6)
    x = x.astype(np.float32)
    sizes = tuple(part.shape[1] for part in parts)
    return Numerals(x[chosen], x[~chosen], labels[chosen], labels[~chosen], sizes)


def model(name: str, numerals: Numerals | None, options: Options, seed: int) -> dict[str, float]:
    """Trains a row and measures it."""
    config = options.applied(
        preset("multimodal", experts=name), hidden_views=options.hidden_views, seed=seed
    )
    data: Any = None
    if numerals is not None:
        named = {"views": "columns", "view_sizes": numerals.sizes, "pixels": "none"}
        config = changed(config, **named, likelihood=options.likelihood)
        train, test = (numerals.train, numerals.of_train), (numerals.test, numerals.of_test)
        data = {"train": train, "test": test}
    run = runs.prepare(config, options.job, data)
    params = run.built.parameters(run.fit(num_steps=config.steps))
    test = datasets.random_subset(run.test, options.examples)
    train = run.built.split(datasets.select(run.dataset, config.train_split))
    about = evaluation.metrics.Data(test, train)
    return evaluation.measure(["modalities"], run.built.model, params, run.key, about)


def linear(numerals: Numerals, options: Options) -> dict[str, float]:
    """Factor analysis of all views together, with its posteriors in closed form."""
    from sklearn.decomposition import FactorAnalysis
    from sklearn.linear_model import LogisticRegression

    def regression(x: np.ndarray) -> Any:
        return LogisticRegression(max_iter=2000).fit(x, numerals.of_train)

    count = min(options.latent, numerals.train.shape[1])
    factors = FactorAnalysis(count, max_iter=1000).fit(numerals.train)
    weights, noise, mean = factors.components_.T, factors.noise_variance_, factors.mean_

    def codes(x: np.ndarray, seen: np.ndarray) -> np.ndarray:
        scaled = weights[seen] / noise[seen, None]
        precision = np.eye(count) + weights[seen].T @ scaled
        return np.linalg.solve(precision, scaled.T @ (x - mean)[:, seen].T).T

    every, labels = np.arange(len(noise)), numerals.of_test
    parts = np.split(every, np.cumsum(numerals.sizes)[:-1])
    of_codes = regression(codes(numerals.train, every))
    found = {"joint_log_likelihood": float(factors.score(numerals.test))}
    found["accuracy_of_codes_of_all"] = of_codes.score(codes(numerals.test, every), labels)
    judges = [regression(numerals.train[:, part]) for part in parts]
    for i, part in enumerate(parts):
        z = codes(numerals.test, part)
        found[f"accuracy_of_codes_of_view_{i + 1}"] = of_codes.score(z, labels)
        for j, other in enumerate(parts):
            decoded = z @ weights[other].T + mean[other]
            if i != j:
                name = f"coherence_view_{i + 1}_to_view_{j + 1}"
                found[name] = judges[j].score(decoded, labels)
    return {name: float(value) for name, value in found.items()}


if __name__ == "__main__":
    run_function(main)
