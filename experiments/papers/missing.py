"""Missing cells of tables, imputed by VAEs and by their classical relatives.

``python experiments/papers/missing.py --data FOLDER [--tasks breast-cancer white-wine wine]``

* ``breast-cancer``: scikit-learn's 569 x 30 numbers, half of them hidden by the mask of Mattei &
  Frellsen 2019 (arXiv:1812.02633), mean squared error in squared deviations.
* ``white-wine``: cells of five columns are missing above their mean (Ipsen et al. 2021,
  arXiv:2006.12871), root mean squared error in deviations.
* ``wine``: 13 columns of three kinds, a fifth of the cells hidden by the first mask of Nazabal et
  al. 2018 (arXiv:1807.03653), their error in the mean of the columns.

The last two read ``wine_quality/data.csv.xz`` and ``wine_quality/Missing20_1.csv.xz`` in FOLDER, as
HI-VAE has them. Models train on all rows, without the hidden cells.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import tyro
from sklearn.datasets import load_breast_cancer
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer

from experiments import tables as of_results
from jaxvae import datasets, evaluation, families
from jaxvae.command_line import run_function
from jaxvae.datasets import tables
from jaxvae.datasets.tables import Column
from jaxvae.runs import Job, Run, imputing, prepare
from jaxvae.runs.loading import Trained
from jaxvae.uses import linear, missing

RANKS = (5, 10)  # of probabilistic PCA
SEED_OF_MASK = 1234  # of the notebooks of MIWAE
MISSING_COLUMNS = 5  # of white wine, whose high cells are missing
WHITE = 4898  # white wines, which come first


class Task(NamedTuple):
    """A table with hidden cells."""

    gaps: pd.DataFrame
    whole: pd.DataFrame
    kinds: dict[str, tuple[str, ...]]
    number: str  # the error that the paper prints: squared, root or hi_vae


class Method(NamedTuple):
    """A way to fill the cells of a task; it returns what was found, and further numbers."""

    tasks: tuple[str, ...]
    fill: Callable[[Task, Options, int], tuple[missing.Imputation, dict[str, float]]]
    seeded: bool = True


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared, and how much is computed."""

    tasks: tuple[str, ...] = ("breast-cancer", "white-wine", "wine")
    """Tables of results."""
    rows: tuple[str, ...] = ()
    """Methods; none takes all of a task."""
    data: Path = Path("data")
    """Folder with wine_quality."""
    seeds: int = 1
    """Seeds, from 0 on."""
    steps: int | None = None
    """Training steps of every model; None is what its paper takes."""
    samples: int = 1000
    """Importance samples of each row."""
    examples: int | None = None
    """Rows of each table, evenly spread; None is all."""
    json: Path | None = None
    """File for everything that was found."""


# Tasks


def breast_cancer(options: Options) -> Task:
    """Standardized by all rows, as in the notebooks."""
    x = load_breast_cancer().data
    x = (x - x.mean(0)) / x.std(0)
    rng = np.random.RandomState(SEED_OF_MASK)
    gone = np.zeros(x.size, bool)
    gone[rng.choice(x.size, x.size // 2, replace=False)] = True
    names = [f"c{i}" for i in range(x.shape[1])]
    whole = pd.DataFrame(x, columns=names)
    return Task(whole.mask(gone.reshape(x.shape)), whole, {"real": tuple(names)}, "squared")


def _wine(options: Options, name: str) -> pd.DataFrame:
    file = options.data / "wine_quality" / name
    if not file.exists():
        raise ValueError(f"there is no {file}: name the folder of wine_quality with --data")
    return pd.read_csv(file, header=None)


def white_wine(options: Options) -> Task:
    """Five columns are missing above their mean."""
    x = _wine(options, "data.csv.xz").to_numpy(float)[:WHITE, :11]
    x = (x - x.mean(0)) / x.std(0)
    gone = x > 0
    gone[:, MISSING_COLUMNS:] = False
    names = [f"c{i}" for i in range(x.shape[1])]
    whole = pd.DataFrame(x, columns=names)
    return Task(whole.mask(gone), whole, {"real": tuple(names)}, "root")


def mixed_wine(options: Options) -> Task:
    """Eleven positive columns (one of them has zeros, and is real), a count and a category."""
    whole = _wine(options, "data.csv.xz")
    whole.columns = [f"c{i}" for i in whole.columns]
    gone = np.zeros(whole.shape, bool)
    gone[tuple(_wine(options, "Missing20_1.csv.xz").to_numpy().T - 1)] = True
    zeros = tuple(name for name in whole.columns[:11] if whole[name].min() <= 0)
    positive = tuple(name for name in whole.columns[:11] if name not in zeros)
    kinds = {"positive": positive, "real": zeros, "count": ("c11",), "categorical": ("c12",)}
    return Task(whole.mask(gone), whole, kinds, "hi_vae")


TASKS: dict[str, Callable[[Options], Task]] = {
    "breast-cancer": breast_cancer,
    "white-wine": white_wine,
    "wine": mixed_wine,
}


# Methods without a network


def _found(point: np.ndarray, low: Any = None, high: Any = None) -> missing.Imputation:
    nothing = np.full_like(point, np.nan)
    ends = (nothing if low is None else low, nothing if high is None else high)
    filled: Any = (point, *ends, point[:, None], np.full(len(point), np.nan))
    return missing.Imputation(*filled)


def numbers(task: Task) -> tuple[np.ndarray, tuple[Column, ...]]:
    """The cells of a task as numbers, and its columns."""
    columns = tables.columns_of(task.whole, task.kinds, ())
    x = tables.numbers_of(task.gaps, columns)
    return x, tuple(tables.normalized(columns, x))


def means(task: Task, options: Options, seed: int) -> tuple[missing.Imputation, dict[str, float]]:
    """The mean of a column, and the likeliest level."""
    x, columns = numbers(task)
    fill = [
        np.bincount(cells[~np.isnan(cells)].astype(int)).argmax() if c.levels else np.nanmean(cells)
        for c, cells in zip(columns, x.T, strict=True)
    ]
    return _found(np.where(np.isnan(x), np.array(fill, np.float32), x)), {}


def chained(task: Task, options: Options, seed: int) -> tuple[missing.Imputation, dict[str, float]]:
    """Chained Bayesian ridge regressions (MICE), of log(1 + x) if kinds are mixed.

    Then imputations are clipped to the range of their column, because exp makes some of them huge.
    """
    x, columns = numbers(task)
    numeric = [not column.levels for column in columns]
    mixed = task.number == "hi_vae"
    logs = np.array(numeric) & mixed
    shown = np.where(logs, np.log1p(np.where(logs, x, 0)), x)
    filled = IterativeImputer(max_iter=100, random_state=seed, tol=0).fit_transform(shown)
    filled = np.where(logs, np.expm1(np.where(logs, filled, 0)), filled)
    if mixed:
        filled = np.clip(filled, np.nanmin(x, 0), np.nanmax(x, 0))
    whole = [round_to if column.levels else same for column in columns]
    point = np.stack([f(cells) for f, cells in zip(whole, filled.T, strict=True)], 1)
    return _found(np.where(np.isnan(x), point, x)), {}


def round_to(cells: np.ndarray) -> np.ndarray:
    """The nearest levels."""
    return np.round(cells)


def same(cells: np.ndarray) -> np.ndarray:
    """The cells."""
    return cells


def pca(rank: int) -> Callable:
    """Probabilistic PCA by EM, with intervals from draws."""

    def fill(
        task: Task, options: Options, seed: int
    ) -> tuple[missing.Imputation, dict[str, float]]:
        x, _ = numbers(task)
        model = linear.probabilistic_pca(x, rank, 200 if options.steps is None else options.steps)
        low, high = np.quantile(model.draws(x, 400), (0.05, 0.95), axis=0)
        return _found(model.imputed(x), low, high), {"log_likelihood": float(model.course[-1])}

    return fill


# Models


MIWAE: dict[str, Any] = {
    **{"real_family": "student_t", "posterior": "student_t", "latent": 10},
    **{"hidden": (128, 128), "decoder_hidden": (128, 128), "num_samples": 20},
    **{"learning_rate": 2e-4, "batch_size": 32, "schedule": "constant"},
}
ROWS_OF_CANCER = 569
EPOCH = math.ceil(ROWS_OF_CANCER / 32)
LINEAR: dict[str, Any] = {"activation": "tanh", "decoder_hidden": (), "latent": 10}
LINEAR |= {"real_family": "normal_shared", "hidden": (128, 128)}
LINEAR |= {"batch_size": 16, "learned_fill": False, "steps": 10_000, "learning_rate": 3e-3}
LINEAR |= {"schedule": "cosine", "standardize": False}
MIXED: dict[str, Any] = {
    "hidden": (256, 256),
    "decoder_hidden": (256, 256),
    "batch_size": 128,
    "steps": 15_000,
}


def model(preset: str, patience: int = 0, moments: int = 20, **settings: Any) -> Callable:
    """A model of the family ``tabular``, after its last step or stopped by held-out cells."""

    def fill(
        task: Task, options: Options, seed: int
    ) -> tuple[missing.Imputation, dict[str, float]]:
        held_out = {"held_out_cells": 0.1} if patience else {"held_out_cells": 0.0}
        config = families.preset(
            preset, **settings, **task.kinds, **held_out, test_rows=0.0, seed=seed
        )
        config = families.changed(config, early_stopping=0, steps=options.steps or config.steps)
        start = time.perf_counter()
        run = prepare(config, Job(), task.gaps)
        trained, step = fitted(run, moments if patience else 1, patience)
        seconds = time.perf_counter() - start
        x, _ = numbers(task)
        found = imputing.imputed(trained, x, num_samples=options.samples, seed=seed)
        rows = datasets.Split(x, preprocess=run.built.preprocess)
        of_rows = evaluation.estimate_log_likelihood(
            trained.model, trained.params, jax.random.key(seed), rows, num_samples=20
        )
        return found, {
            "bound": of_rows.log_likelihood,
            "effective_samples": float(np.nanmean(found.quality)),
            "fewest_effective_samples": float(np.nanmin(found.quality)),
            "steps": step,
            "seconds": seconds,
        }

    return fill


def fitted(run: Run, moments: int, patience: int) -> tuple[Trained, int]:
    """The model after training, or at the best of some moments by held-out cells.

    Training ends when so many moments in a row were no better.
    """
    state, best = run.init_state(), (-math.inf, None, 0)
    worse = 0
    for step in np.linspace(0, run.config.steps, moments + 1)[1:].astype(int).tolist():
        state = run.fit(num_steps=step, state=state)
        params = jax.tree.map(np.asarray, run.built.parameters(state))
        score = 0.0
        if run.built.score is not None:
            score = run.built.score(run.built.model, params, run.key, run.validation)
        worse = 0 if score > best[0] else worse + 1
        best = max(best, (score, params, step), key=lambda each: each[0])
        if patience and worse >= patience:
            break
    data = run.record.data
    return Trained(run.built, data, best[1], best[2]), best[2]


METHODS: dict[str, Method] = {
    "mean or mode": Method(tuple(TASKS), means, seeded=False),
    "chained ridge": Method(tuple(TASKS), chained, seeded=False),
    **{
        f"PCA by EM, q={rank}": Method(("breast-cancer", "white-wine"), pca(rank), seeded=False)
        for rank in RANKS
    },
    "MIWAE, 501 epochs": Method(("breast-cancer",), model("tabular", **MIWAE, steps=501 * EPOCH)),
    "MIWAE, 1,001 epochs": Method(
        ("breast-cancer",), model("tabular", **MIWAE, steps=1001 * EPOCH)
    ),
    "MIWAE, stopped by held-out cells": Method(
        ("breast-cancer",), model("tabular", 4, 40, **MIWAE, steps=1001 * EPOCH)
    ),
    "MIWAE": Method(("white-wine",), model("tabular", **LINEAR)),
    "not-MIWAE": Method(("white-wine",), model("not-miwae", **LINEAR, high_values="missing")),
    "not-MIWAE, sign unknown": Method(("white-wine",), model("not-miwae", **LINEAR)),
    "MIWAE of mixed columns": Method(("wine",), model("tabular", **MIXED)),
    "MIWAE of mixed columns, stopped by held-out cells": Method(
        ("wine",), model("tabular", 5, 30, **MIXED)
    ),
}


# The table


def measured(task: Task, found: missing.Imputation) -> dict[str, float]:
    """The errors of an imputation and the coverage of its 90 % intervals."""
    x, columns = numbers(task)
    truth = tables.numbers_of(task.whole, columns)
    errors = imputing.errors_of(columns, x, truth, found)
    squared = errors.mean("squared")
    coverage = errors.mean("covered") if np.isfinite(found.low).any() else math.nan
    values = {"squared": squared, "root": math.sqrt(squared), "hi_vae": errors.mean("hi_vae")}
    return {"error": values[task.number], "coverage": coverage}


def row_of(task: Task, method: Method, options: Options) -> list[dict[str, float]]:
    """The numbers of a method, for each seed."""
    each = []
    for seed in range(options.seeds if method.seeded else 1):
        found, more = method.fill(task, options, seed)
        each.append(measured(task, found) | more)
    return each


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """How well missing cells are filled."""
    of_results.check_place(options.json)
    for name in options.tasks:
        if name not in TASKS:
            raise ValueError(f"no task {name!r}; there are {', '.join(TASKS)}")
    for name in options.rows:
        if name not in METHODS:
            raise ValueError(f"no row {name!r}; there are {', '.join(METHODS)}")
    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1; it was {options.seeds}")
    results: dict[str, Any] = {}
    for name in options.tasks:
        task = TASKS[name](options)
        if options.examples is not None:
            rows = np.linspace(0, len(task.gaps) - 1, options.examples).astype(int)
            task = task._replace(gaps=task.gaps.iloc[rows], whole=task.whole.iloc[rows])
        print(f"\n{name}: {task.number} error of {task.gaps.isna().sum().sum():,} cells")
        results[name] = {}
        for row, method in METHODS.items():
            if name not in method.tasks or (options.rows and row not in options.rows):
                continue
            values = row_of(task, method, options)
            results[name][row] = values
            print(f"{row:50s} {shown(values)}", flush=True)
    of_results.save(options.json, dataclasses.asdict(options), results)


def shown(values: list[dict[str, float]]) -> str:
    """The mean over seeds of every number, with the spread of the error."""
    parts = []
    for name in values[0]:
        each = np.array([value[name] for value in values])
        if np.isnan(each).all():
            continue
        spread = f" ± {each.std(ddof=1):.4f}" if len(each) > 1 and name == "error" else ""
        parts.append(f"{name.replace('_', ' ')} {each.mean():.4g}{spread}")
    return ", ".join(parts)


if __name__ == "__main__":
    run_function(main)
