"""Tables of runs: every cell is a command line of train.py, trained for several seeds and measured."""

from __future__ import annotations

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

from jaxvae import training

Found = dict[str, list[dict[str, float]]]  # cell -> what was measured for each seed
Measure = Callable[[wiring.Run, Any], dict[str, float]]  # (run, trained parameters) -> numbers by name


def trained(arguments: Sequence[Any]) -> tuple[wiring.Run, Any, float]:
    """A run, its parameters after training and the seconds that it took, without a workdir."""
    run = wiring.build(setup.parse([str(part) for part in arguments])[1])
    config, start = run.config, time.perf_counter()
    counts = {"num_steps": config.steps, "batch_size": config.batch_size, "seed": config.seed}
    state = training.fit(run.algorithm, run.train, state=run.init_state(), **counts)
    params = jax.block_until_ready(training.trained(state))
    return run, params, time.perf_counter() - start


def measured(cells: Mapping[str, Sequence[Any]], seeds: int, measure: Measure) -> Found:
    """Trains every cell with seeds 0, 1, ... and prints what is found as it comes."""
    if seeds < 1 or not cells:
        raise ValueError("--seeds must be at least 1, and at least one cell must be chosen")
    found: Found = {}
    for name, arguments in cells.items():
        for seed in range(seeds):
            run, params, seconds = trained([*arguments, "--seed", seed])
            cell = measure(run, params) | {"seconds": seconds}
            found.setdefault(name, []).append(cell)
            print(f"{name}, seed {seed}: " + ", ".join(f"{key} {value:.4g}" for key, value in cell.items()), flush=True)
    return found


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean over seeds."""
    if len(values) < 2:
        return math.nan
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1)) / math.sqrt(len(values))


def written(value: float, half: float = math.nan) -> str:
    """A mean, and half its interval where that is known."""
    digits = 3 if abs(value) < 10 else 2
    return f"{value:.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")


def show(found: Found, order: str) -> None:
    """Prints means over seeds with 95 % intervals, the cells by the falling mean of a column."""
    columns = list(next(iter(found.values()))[0])
    mean = lambda name, column: float(np.mean([cell[column] for cell in found[name]]))
    rows = [["", *columns]]
    for name in sorted(found, key=lambda name: -mean(name, order)):
        own = lambda column, name=name: [cell[column] for cell in found[name]]
        rows.append([name, *(written(mean(name, column), interval(own(column))) for column in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print("\n" + "\n".join("  ".join(f"{text:<{w}}" for text, w in zip(row, widths, strict=True)) for row in rows))


def check_place(path: Path | None) -> None:
    """Raises ValueError where results could not be written."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: the folder does not exist")


def save(path: Path | None, options: dict[str, Any], found: Any, **more: Any) -> None:
    """Writes what was found, and how, as JSON."""
    if path is not None:
        given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        path.write_text(json.dumps({"options": given, "cells": found, **more}, indent=1) + "\n")
