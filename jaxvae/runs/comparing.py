"""The commands ``compare`` and ``list``: what runs differ in, and what they reached."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from jaxvae.datasets import DataError
from jaxvae.runs import folders
from jaxvae.settings import to_json
from jaxvae.uses.estimates import NORMAL_95

WIDE = 160  # columns of a table that is no terminal's
FIGURES = ("reconstructions.png", "samples.png", "latents.png")
SEED = "seed"
# Names in result.json -> their standard errors, and how they are called.
ERRORS = {"test_elbo": "elbo_standard_error", "test_log_likelihood": "standard_error"}
CALLED = {
    "test_elbo": "test ELBO",
    "test_log_likelihood": "test log p(x)",
    "kl": "KL",
    "bits_per_dim": "bits/dim",
    "nats_per_dim": "nats/dim",
    "images_per_second": "images/s",
}
LEFT_OUT = {"elbo_standard_error", "standard_error", "num_samples", "num_examples", "warning"}
LEFT_OUT |= {"pareto_k", "pareto_k_above_0.7", "flops_per_second", "share_of_peak"}


@dataclasses.dataclass(frozen=True)
class Found:
    """A run folder: its settings, and what it reached if it has ended."""

    folder: Path
    family: str
    settings: dict[str, Any]
    result: dict[str, Any] | None


def compare(
    workdirs: Annotated[list[Path], tyro.conf.Positional],
    sheet: Path | None = None,
    json: Path | None = None,
) -> None:
    """Compares runs: the settings in which they differ, and their results with 95 % intervals.

    Runs that differ in nothing but the seed are one column. Its numbers are means over seeds, and
    the intervals are of Student's t. The interval of a single run is over its test examples.

    Args:
      workdirs: two run folders or more.
      sheet: a .png file with reconstructions, samples and latents of all columns; None draws none.
      json: a file for all numbers.
    """
    if len(workdirs) < 2:
        raise ValueError(f"compare needs two runs at least; there was {len(workdirs)}")
    for file in (sheet, json):
        if file is not None and not file.absolute().parent.is_dir():
            raise DataError(f"{file}: the folder does not exist")
    groups = grouped([read(folder) for folder in workdirs])
    names = [group[0].folder.name for group in groups]
    numbers = [results_of(group) for group in groups]
    show("", names, [*different(groups), *lines_of(groups, numbers)])
    if sheet is not None:
        draw(sheet, groups)
        print(f"written  {sheet}")
    if json is not None:
        _write(json, groups, numbers)


def list_runs(folder: Annotated[Path, tyro.conf.Positional] = Path("runs")) -> None:
    """Lists the runs of a folder with what they are of and what they reached.

    Args:
      folder: the folder that holds run folders.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: the folder does not exist")
    runs, sentences = [], []
    for place in sorted(each.parent for each in folder.rglob("config.json")):
        try:
            runs.append(read(place))
        except ValueError as error:  # of another version, or damaged
            sentences.append(str(error))
    if not runs and not sentences:
        raise DataError(f"{folder} holds no run: jaxvae train writes one")
    columns = ["family", "data", "seed", "steps", *map(_called, ERRORS), "written"]
    show("run", columns, [(str(run.folder), _summary(run)) for run in runs])
    for sentence in sentences:
        print(sentence)


def read(folder: Path) -> Found:
    """What a run folder says. Raises ValueError if it is none."""
    record, ended = folders.read(folder), folder / "result.json"
    result = folders.read_json(ended) if ended.exists() else None
    return Found(folder, record.family, _settings(record), result)


def _settings(record: folders.Record) -> dict[str, Any]:
    """The settings of a run, and the name of its data, which may not be the setting's."""
    about = {"family": record.family, "data": record.data.name}
    return about | folders.flattened(to_json(record.config))


def _summary(run: Found) -> list[str]:
    result = run.result or {}
    steps = f"{result['steps']:,}" if run.result else "not ended"
    reached = [written(*_own_interval(result, name)) for name in ERRORS]
    when = datetime.datetime.fromtimestamp((run.folder / "config.json").stat().st_mtime)
    about = [run.family, Path(str(run.settings["dataset"])).name, str(run.settings[SEED])]
    return [*about, steps, *reached, f"{when:%Y-%m-%d %H:%M}"]


# Groups of runs


def grouped(runs: Sequence[Found]) -> list[list[Found]]:
    """The runs in groups that differ in nothing but the seed.

    Raises ValueError for a seed that a group has twice, because it is one result and not two.
    """
    groups: dict[str, dict[int, Found]] = {}
    for run in runs:
        rest = {name: value for name, value in run.settings.items() if name != SEED}
        group = groups.setdefault(json.dumps(rest, sort_keys=True, default=str), {})
        other = group.setdefault(run.settings[SEED], run)
        if other is not run:
            raise ValueError(
                f"{other.folder} and {run.folder} have the same settings and seed, so they are one "
                "result: leave one out"
            )
    return [list(group.values()) for group in groups.values()]


def different(groups: Sequence[Sequence[Found]]) -> list[tuple[str, list[str]]]:
    """A line for each setting in which the groups differ, and for the seeds."""
    firsts = [group[0].settings for group in groups]
    lines = []
    for name in dict.fromkeys(name for settings in firsts for name in settings):
        shown = [str(settings[name]) if name in settings else "" for settings in firsts]
        if name != SEED and len(set(shown)) > 1:
            lines.append((name, shown))
    return [*lines, ("seeds", [" ".join(str(r.settings[SEED]) for r in g) for g in groups])]


Numbers = dict[str, tuple[float, float]]  # name -> mean, and half its 95 % interval


def results_of(group: Sequence[Found]) -> Numbers:
    """The numbers of a group that all of its ended runs have."""
    ended = [run.result for run in group if run.result is not None]
    if not ended:
        return {}
    flat = [flattened(result) for result in ended]
    names = [name for name in flat[0] if all(name in each for each in flat)]
    if len(ended) == 1:
        return {name: _own_interval(flat[0], name) for name in names if name not in LEFT_OUT}
    return {
        name: over_seeds([each[name] for each in flat]) for name in names if name not in LEFT_OUT
    }


def flattened(result: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """The numbers of a result, with the names of the parts that hold them."""
    flat: dict[str, float] = {}
    for name, value in result.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{before}{name}: ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[before + name] = float(value)
    return flat


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """A mean over seeds, and half its 95 % interval of Student's t."""
    from scipy import stats

    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1)) * spread


def _own_interval(result: Mapping[str, Any], name: str) -> tuple[float, float]:
    """A number of one run, and half its 95 % interval over test examples, nan if unknown."""
    value, error = result.get(name), result.get(ERRORS.get(name, ""))
    known = math.nan if value is None else float(value)
    return known, math.nan if error is None else NORMAL_95 * float(error)


# What is shown


def lines_of(
    groups: Sequence[Sequence[Found]], numbers: Sequence[Numbers]
) -> list[tuple[str, list[str]]]:
    """A line for each number that a group has, and for runs that have not ended."""
    lines = []
    for name in dict.fromkeys(name for each in numbers for name in each):
        shown = [written(*each[name]) if name in each else "" for each in numbers]
        lines.append((_called(name), shown))
    missing = [sum(run.result is None for run in group) for group in groups]
    if any(missing):
        lines.append(("not ended", [str(count or "") for count in missing]))
    return lines


def _called(name: str) -> str:
    return CALLED.get(name, name.replace("_", " "))


def written(value: float, half: float) -> str:
    """A number with its interval, in about four digits; whole numbers are written whole."""
    if math.isnan(value):
        return ""
    if (math.isnan(half) or half == 0) and value.is_integer():  # such as the steps of all seeds
        return f"{value:,.0f}"
    digits = max(0, 4 - len(f"{abs(value):.0f}"))
    text = f"{value:,.{digits}f}"
    return text if math.isnan(half) else f"{text} ± {half:,.{digits}f}"


def show(corner: str, columns: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Prints a table."""
    from rich import box, console, table

    shown = table.Table(box=box.SIMPLE_HEAD)
    shown.add_column(corner, overflow="fold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for name, cells in lines:
        shown.add_row(name, *cells)
    console.Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(shown)


def draw(file: Path, groups: Sequence[Sequence[Found]]) -> None:
    """Draws one sheet: a column for each group, of its first run, and a row for each figure."""
    from matplotlib import image
    from matplotlib.figure import Figure

    held = [[group[0].folder / "figures" / name for group in groups] for name in FIGURES]
    rows = [files for files in held if any(file.exists() for file in files)]
    if not rows:
        raise DataError("none of the runs has a figure: they are drawn at the end of jaxvae train")
    pictures = [[image.imread(f) if f.exists() else None for f in files] for files in rows]
    heights = [max(p.shape[0] / p.shape[1] for p in line if p is not None) for line in pictures]
    figure = Figure(figsize=(4 * len(groups), 4 * sum(heights) + 1))
    axes: Any = figure.subplots(len(rows), len(groups), squeeze=False, height_ratios=heights)
    for axis, picture in zip(axes.flat, itertools.chain(*pictures), strict=True):
        axis.axis("off")
        if picture is not None:
            axis.imshow(picture)
    for axis, group in zip(axes[0], groups, strict=True):
        axis.set_title(group[0].folder.name)
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def _write(file: Path, groups: Sequence[Sequence[Found]], numbers: Sequence[Numbers]) -> None:
    columns = [
        {
            "runs": [str(run.folder) for run in group],
            "settings": group[0].settings,
            "results": {name: {"mean": m, "half_interval": h} for name, (m, h) in each.items()},
        }
        for group, each in zip(groups, numbers, strict=True)
    ]
    file.write_text(json.dumps(columns, indent=1, default=str) + "\n")
