"""Tables of trained models, with a row for each configuration."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from scipy import stats

from jaxvae import evaluation, runs, settings, sounds, training

R = TypeVar("R")
SETTINGS = ("dataset", "hidden", "latent", "steps", "batch_size", "learning_rate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of every table of experiments/papers."""

    rows: tuple[str, ...] = ()
    """Rows of the table; none takes all."""
    dataset: str = "mnist"
    """Set to train on."""
    data_dir: str | None = None
    """Folder of prepared tensorflow-datasets."""
    hidden: tuple[int, ...] = (200, 200)
    """Widths of the hidden layers."""
    latent: int = 10
    """Dimensions of z."""
    steps: int = 10_000
    """Training steps."""
    batch_size: int = 100
    """Examples in a batch."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam."""
    seeds: int = 1
    """Seeds, from 0 on."""
    examples: int | None = 5000
    """Test examples, a fixed random subset; None takes all."""
    json: Path | None = None
    """File for all results."""

    @property
    def job(self) -> runs.Job:
        """Where the rows are computed."""
        return runs.Job(data_dir=self.data_dir)

    def applied(self, config: Any, **more: Any) -> Any:
        """The configuration with what all rows share, as far as it has these settings.

        ``more`` are settings that only some of the rows have, such as ``components``.
        """
        known = {name for name, _ in settings.settings_of(config)}
        values = {name: getattr(self, name) for name in SETTINGS} | more
        return settings.changed(config, **{n: v for n, v in values.items() if n in known})

    def chosen(self, table: Mapping[str, R]) -> dict[str, R]:
        """The rows of a table that were asked for. Raises ValueError for one that is not there."""
        check_place(self.json)
        if self.seeds < 1:
            raise ValueError(f"--seeds must be at least 1; it was {self.seeds}")
        for name in self.rows:
            if name not in table:
                raise ValueError(f"no row {name!r}; there are {', '.join(table)}")
        return {name: table[name] for name in self.rows or table}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundOptions(Options):
    """The options of a table of sounds."""

    dataset: str = "free_spoken_digit"
    """Folder of wav files, free_spoken_digit, or voices."""
    file_names: str = "{label}_{speaker}_{take}"
    """What the names of wav files say."""
    sample_rate: int = 8000

    def recordings(self) -> sounds.Recordings:
        """The set's recordings."""
        return sounds.recordings(self.dataset, self.data_dir, self.file_names, self.sample_rate)


class Trained(NamedTuple):
    """A run, what it has learned, and how long that took."""

    run: runs.Run
    params: Any
    seconds: float


Results = dict[str, list[dict[str, float]]]  # row -> what was measured for each seed
Train = Callable[[Any, runs.Job], Trained]  # (configuration, job) -> trained model
Measure = Callable[[runs.Run, Any], dict[str, float]]  # (run, parameters) -> numbers by name


def trained(config: Any, job: runs.Job, params: Any = None, data: Any = None) -> Trained:
    """Trains a configuration without a run folder, from ``params`` if there are any.

    ``data`` replaces the data set of the configuration, as in ``runs.prepare``.
    """
    run, start = runs.prepare(config, job, data), time.perf_counter()
    state = run.init_state()
    if params is not None:
        state = training.start_from(state, {"model": params})
    state = run.fit(num_steps=config.steps, state=state)
    params = jax.block_until_ready(run.built.parameters(state))
    return Trained(run, params, time.perf_counter() - start)


def _model(run: runs.Run) -> Any:
    return run.built.model


def stopped_early(
    config: Any, job: runs.Job, moments: int, model: Callable[[runs.Run], Any] = _model
) -> Trained:
    """As ``trained``, with the parameters of the moment that has the best validation bound.

    Args:
      config: the configuration.
      job: where it is computed.
      moments: moments of the training at which it is judged, evenly spaced; the last step is one.
      model: what is judged.
    """
    if moments < 1:
        raise ValueError(f"--moments must be at least 1; it was {moments}")
    run, start = runs.prepare(config, job), time.perf_counter()
    if moments > 1 and "validation" not in run.dataset.splits:
        raise ValueError(
            f"--moments {moments} needs a validation split, and {run.dataset.name} has none: use 1"
        )
    state, best, best_bound = run.init_state(), None, -math.inf
    for steps in np.linspace(0, config.steps, moments + 1)[1:].astype(int):
        state = run.fit(num_steps=int(steps), state=state)
        params = run.built.parameters(state)
        summary = evaluation.evaluate_elbo(model(run), params, run.key, run.validation)
        bound = summary.reconstruction if summary.elbo is None else summary.elbo
        if best is None or bound >= best_bound:
            best, best_bound = jax.tree.map(np.asarray, params), bound
    return Trained(run, best, time.perf_counter() - start)


def measured(
    rows: Mapping[str, Any], options: Options, measure: Measure, train: Train = trained
) -> Results:
    """Trains every row with seeds 0, 1, ... and prints the numbers as they come."""
    results: Results = {}
    for name, config in rows.items():
        for seed in range(options.seeds):
            run, params, seconds = train(settings.changed(config, seed=seed), options.job)
            cell = measure(run, params) | {"seconds": seconds}
            results.setdefault(name, []).append(cell)
            numbers = ", ".join(f"{column} {value:.4g}" for column, value in cell.items())
            print(f"{name}, seed {seed}: {numbers}", flush=True)
    return results


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean over seeds."""
    count = len(values)
    if count < 2:
        return math.nan
    return float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1)) / math.sqrt(count)


def written(value: float, half: float = math.nan) -> str:
    """A mean, and half its interval where that is known."""
    digits = 3 if abs(value) < 10 else 2
    return f"{value:.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")


def number(value: float | None) -> float:
    """A number, or nan where a model has none."""
    return math.nan if value is None else float(value)


def column_of(results: Results, row: str, column: str) -> list[float]:
    """The numbers of a row's seeds in one column."""
    return [cell[column] for cell in results[row]]


def show(results: Results, order: str | None = None) -> None:
    """Prints means over seeds with 95 % intervals.

    Rows come by the falling mean of the column ``order``, or as they are.
    """
    columns, names = list(next(iter(results.values()))[0]), list(results)
    if order is not None:
        names.sort(key=lambda name: -float(np.mean(column_of(results, name, order))))
    lines = [["", *columns]]
    for name in names:
        each = [column_of(results, name, column) for column in columns]
        lines.append([name, *(written(float(np.mean(v)), interval(v)) for v in each)])
    print("\n" + aligned(lines))


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table as text, with columns of one width each."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def check_place(path: Path | None) -> None:
    """Raises ValueError if results could not be written."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: the folder does not exist")


def as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a script as JSON holds them: paths as text."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in options.items()}


def save(path: Path | None, options: Mapping[str, Any], results: Any, **more: Any) -> None:
    """Writes the results, and the options that they were made with, as JSON."""
    if path is not None:
        record = {"options": as_json(options), "cells": results, **more}
        path.write_text(json.dumps(record, indent=1) + "\n")
