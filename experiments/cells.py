"""Tables of runs: every cell is a command line of train.py, trained for several seeds and
measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import config as setup
import jax
import numpy as np
import wiring
from scipy import stats

from jaxvae import evaluation, training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What every table of experiments/papers can be told."""

    rows: tuple[str, ...] = ()
    """Rows of the table; none is all."""
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
    """Of Adam, at its peak."""
    seeds: int = 1
    """Seeds, from 0 on."""
    examples: int | None = 5000
    """Test examples; None is all."""
    json: Path | None = None
    """File for everything that was found."""

    def arguments(self) -> list[Any]:
        """What all rows give train.py."""
        names = ("dataset", "latent", "steps", "batch_size", "learning_rate")
        found = [
            part for name in names for part in ("--" + name.replace("_", "-"), getattr(self, name))
        ]
        return [
            *found,
            "--hidden",
            *self.hidden,
            *(["--data-dir", self.data_dir] if self.data_dir else []),
        ]

    def chosen(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """The rows of a table that were asked for. Raises ValueError for one that is not there."""
        check_place(self.json)
        if self.seeds < 1:
            raise ValueError(f"--seeds must be at least 1; it was {self.seeds}")
        for name in self.rows:
            if name not in table:
                raise ValueError(f"no row {name!r}; there are {', '.join(table)}")
        return {name: table[name] for name in self.rows or table}


Found = dict[str, list[dict[str, float]]]  # cell -> what was measured for each seed
Measure = Callable[
    [wiring.Run, Any], dict[str, float]
]  # (run, trained parameters) -> numbers by name


def built(arguments: Sequence[Any]) -> wiring.Run:
    """The run of a command line."""
    return wiring.build(setup.parse([str(part) for part in arguments])[1])


def trained(arguments: Sequence[Any], params: Any = None) -> tuple[wiring.Run, Any, float]:
    """A run, its parameters after training and the seconds that it took, without a workdir; from
    ``params``, if any.
    """
    run, start = built(arguments), time.perf_counter()
    config, state = run.config, run.init_state()
    state = state if params is None else state._replace(params=state.params | {"model": params})
    counts = {"num_steps": config.steps, "batch_size": config.batch_size, "seed": config.seed}
    state = training.fit(run.algorithm, run.train, state=state, **counts)
    params = jax.block_until_ready(training.trained(state))
    return run, params, time.perf_counter() - start


def stopped_early(
    arguments: Sequence[Any], moments: int, model: Callable[[wiring.Run], Any] = lambda run: run.vae
) -> tuple[wiring.Run, Any, float]:
    """As ``trained``; of so many moments on the way, the parameters with the best bound on the
    validation split.
    """
    if moments < 1:
        raise ValueError(f"--moments must be at least 1; it was {moments}")
    run, start = built(arguments), time.perf_counter()
    if moments > 1 and "validation" not in run.dataset.splits:
        raise ValueError(
            f"--moments {moments} needs a validation split, and {run.dataset.name} has none: use 1"
        )
    config, judged_by = run.config, run.raw(run.monitored)
    state, found = run.init_state(), []
    for steps in np.linspace(0, config.steps, moments + 1)[1:].astype(int):
        counts = {"num_steps": int(steps), "batch_size": config.batch_size, "seed": config.seed}
        state = training.fit(run.algorithm, run.train, state=state, **counts)
        judged = evaluation.evaluate(
            model(run), training.trained(state), judged_by, run.key, preprocess=run.preprocess
        )
        bound = judged.reconstruction if judged.elbo is None else judged.elbo
        found.append((bound, len(found), jax.tree.map(np.asarray, training.trained(state))))
    return run, max(found, key=lambda moment: moment[:2])[2], time.perf_counter() - start


def measured(
    cells: Mapping[str, Sequence[Any]], seeds: int, measure: Measure, train: Callable = trained
) -> Found:
    """Trains every cell with seeds 0, 1, ... and prints what is found as it comes."""
    if seeds < 1 or not cells:
        raise ValueError("--seeds must be at least 1, and at least one cell must be chosen")
    found: Found = {}
    for name, arguments in cells.items():
        for seed in range(seeds):
            run, params, seconds = train([*arguments, "--seed", seed])
            cell = measure(run, params) | {"seconds": seconds}
            found.setdefault(name, []).append(cell)
            print(
                f"{name}, seed {seed}: "
                + ", ".join(f"{key} {value:.4g}" for key, value in cell.items()),
                flush=True,
            )
    return found


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean over seeds."""
    if len(values) < 2:
        return math.nan
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1)) / math.sqrt(
        len(values)
    )


def written(value: float, half: float = math.nan) -> str:
    """A mean, and half its interval where that is known."""
    digits = 3 if abs(value) < 10 else 2
    return f"{value:.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")


def show(found: Found, order: str | None = None) -> None:
    """Prints means over seeds with 95 % intervals, the cells by the falling mean of a column, or
    as they came.
    """
    columns = list(next(iter(found.values()))[0])
    mean = lambda name, column: float(np.mean([cell[column] for cell in found[name]]))
    rows = [["", *columns]]
    for name in sorted(found, key=lambda name: -mean(name, order) if order else 0):
        own = lambda column, name=name: [cell[column] for cell in found[name]]
        rows.append(
            [name, *(written(mean(name, column), interval(own(column))) for column in columns)]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(
        "\n"
        + "\n".join(
            "  ".join(f"{text:<{w}}" for text, w in zip(row, widths, strict=True)) for row in rows
        )
    )


def check_place(path: Path | None) -> None:
    """Raises ValueError where results could not be written."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: the folder does not exist")


def save(path: Path | None, options: dict[str, Any], found: Any, **more: Any) -> None:
    """Writes what was found, and how, as JSON."""
    if path is not None:
        given = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in options.items()
        }
        path.write_text(json.dumps({"options": given, "cells": found, **more}, indent=1) + "\n")
