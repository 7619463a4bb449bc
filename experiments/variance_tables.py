"""The rows of a comparison of gradient estimators, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.tables import aligned

Row = dict[str, Any]
COLUMNS = (
    *("estimator", "K", "moments", "tr Cov", "ratio", "bias"),
    *("f + f'", "work", "us", "SNR", "break-even"),
)
BLUE = "#4477aa"


def rounding(row: Row) -> float:
    """The variance below which there is only rounding: of float64 by a law, of float32 in draws."""
    return 1e-25 if row["mode"] == "exact" else max((1e-6 * row["norm"]) ** 2, 1e-25)


def number(value: float | None) -> str:
    """Three digits; nothing for a number that is not there."""
    return "" if value is None or math.isnan(value) else f"{value:.3g}"


def with_ends(interval: Sequence[float] | None) -> str:
    """A value and the ends of its interval, where it has one."""
    if interval is None:
        return ""
    value, low, high = interval
    return number(value) if low == high else f"{number(value)} ({number(low)}, {number(high)})"


# Table


def say(rows: Sequence[Row]) -> None:
    """Prints the rows as a table, the least noisy first, and what is to be said of each."""
    ordered = sorted(rows, key=lambda row: row["trace"][0])
    print(aligned([COLUMNS, *map(_line, ordered)]))
    if any(not row["unbiased"] for row in rows):
        print("* biased, or of another objective than its value")
    for row in rows:
        for remark in _remarks(row):
            print(remark)


def _line(row: Row) -> list[str]:
    micro = None if row["seconds"] is None else 1e6 * row["seconds"]
    return [
        row["estimator"] + ("" if row["unbiased"] else " *"),
        str(row["num_samples"]),
        row["mode"],
        with_ends(row["trace"]),
        with_ends(row["ratio"]),
        _bias(row),
        f"{row['evaluations']} + {row['gradient_evaluations']}",
        number(row["work_normalized"]),
        number(micro),
        number(row.get("signal", {}).get("snr")),
        number(row.get("break_even")),
    ]


def _bias(row: Row) -> str:
    if "largest_bias" in row:
        return "0" if row["largest_bias"] < 1e-10 else f"max {row['largest_bias']:.2e}"
    if "largest_z" in row:
        z, bound = row["largest_z"], row["z_bound"]
        sign = ">" if z > bound else "<"
        return f"|z| {z:.1f} {sign} {bound:.1f}, sees {row['visible_bias']:.1e}"
    return "truth" if row["truth"] == row["estimator"] else ""


def _remarks(row: Row) -> list[str]:
    name, remarks = row["estimator"], []
    if "minibatch" in row:
        between = number(row["minibatch"])
        remarks.append(f"{name}: variance between batches {between}, beside the noise's variance")
    if "invariances" in row:
        each = [f"{what} {number(value) or '-'}" for what, value in row["invariances"].items()]
        remarks.append(f"{name}: {', '.join(each)}")
    return remarks + [f"{name} (K = {row['num_samples']}): {w}" for w in row["warnings"]]


# Picture


def draw(path: Path, title: str, rows: dict[int, list[Row]]) -> None:
    """Variances with their intervals, as a picture.

    It has lines over checkpoints or over K where there are several, and else one point for each
    estimator.
    """
    from matplotlib.figure import Figure

    last = rows[max(rows)]
    least: dict[str, float] = {}
    for row in last:
        least[row["estimator"]] = min(row["trace"][0], least.get(row["estimator"], math.inf))
    names = sorted(least, key=lambda name: least[name])
    several = len(rows) > 1 or len(last) > len(names)
    height = 4.5 if several else 0.8 + 0.24 * len(names)
    figure = Figure(figsize=(7, height), layout="constrained")
    axis: Any = figure.subplots()
    if several:
        _draw_lines(axis, names, rows)
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    else:
        _draw_points(axis, names, {row["estimator"]: row for row in last})
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _draw_points(axis: Any, names: list[str], rows: dict[str, Row]) -> None:
    noisy = [row["trace"][0] for row in rows.values() if row["trace"][0] > rounding(row)]
    left = min(noisy, default=1.0)
    for place, name in enumerate(names):
        value, low, high = rows[name]["trace"]
        if value <= rounding(rows[name]):
            axis.text(left / 2, place, "0", va="center", ha="center")
            continue
        face = BLUE if rows[name]["unbiased"] else "white"
        ends = np.maximum([[value - low], [high - value]], 0)
        axis.errorbar(value, place, xerr=ends, marker="o", mfc=face, color=BLUE, ms=5, lw=1)
    label = "tr Cov of one estimate (hollow: biased)"
    axis.set(xscale="log", xlabel=label, ylim=(len(names) - 0.5, -0.5))
    axis.set_xlim(left=left / 4)
    axis.set_yticks(range(len(names)), names)


def _draw_lines(axis: Any, names: list[str], rows: dict[int, list[Row]]) -> None:
    over_steps = len(rows) > 1
    for place, name in enumerate(names):
        points = [
            (step if over_steps else row["num_samples"], row["trace"])
            for step, each in rows.items()
            for row in each
            if row["estimator"] == name
        ]
        x, traces = zip(*sorted(points), strict=True)
        value, low, high = np.transpose(traces)
        style = {"color": f"C{place % 10}", "marker": "osv^Dx"[place % 6], "ms": 4, "lw": 1}
        axis.errorbar(x, value, [value - low, high - value], label=name, **style)
    label = "training steps" if over_steps else "samples K"
    axis.set(yscale="log", xlabel=label, ylabel="tr Cov of one estimate")
    if over_steps:
        axis.set_xscale("symlog", linthresh=100)
    else:
        axis.set_xscale("log")
