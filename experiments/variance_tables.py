"""What gradient_variance.py found, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def rounding(row: dict[str, Any]) -> float:
    """A variance below it is none but that of rounding: float64 over a law, float32 in draws."""
    return 1e-25 if row["mode"] == "exact" else max((1e-6 * row["norm"]) ** 2, 1e-25)


def number(value: float | None) -> str:
    return (
        "" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.3g}"
    )


def with_ends(interval: Sequence[float] | None) -> str:
    if interval is None:
        return ""
    value, low, high = interval
    return number(value) if low == high else f"{number(value)} ({number(low)}, {number(high)})"


def say(rows: Sequence[dict[str, Any]]) -> None:
    """Prints the rows as a table, the least noisy first."""
    columns = (
        "estimator",
        "K",
        "moments",
        "tr Cov",
        "ratio",
        "bias",
        "f + f'",
        "work",
        "us",
        "SNR",
        "break-even",
    )
    lines = []
    for row in sorted(rows, key=lambda row: row["trace"][0]):
        if "largest_bias" in row:
            bias = "0" if row["largest_bias"] < 1e-10 else f"max {row['largest_bias']:.2e}"
        elif "largest_z" in row:
            bias = (
                f"|z| {row['largest_z']:.1f} < {row['z_bound']:.1f}, sees {row['visible_bias']:.1e}"
            )
            bias = bias.replace("<", ">") if row["largest_z"] > row["z_bound"] else bias
        else:
            bias = "truth" if row["truth"] == row["estimator"] else ""
        micro = None if row["seconds"] is None else 1e6 * row["seconds"]
        lines.append(
            [
                *(
                    row["estimator"] + ("" if row["unbiased"] else " *"),
                    str(row["num_samples"]),
                    row["mode"],
                ),
                *(
                    with_ends(row["trace"]),
                    with_ends(row["ratio"]),
                    bias,
                    f"{row['evaluations']} + {row['gradient_evaluations']}",
                ),
                *(
                    number(row["work_normalized"]),
                    number(micro),
                    number(row.get("signal", {}).get("snr")),
                ),
                number(row.get("break_even")),
            ]
        )
    widths = [max(len(line[i]) for line in [columns, *lines]) for i in range(len(columns))]
    for line in [columns, *lines]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
    if any(not row["unbiased"] for row in rows):
        print("* biased, or of another objective than its value")
    for row in rows:
        if "minibatch" in row:
            print(
                f"{row['estimator']}: variance between batches {number(row['minibatch'])}, beside that of its noise"
            )
        if "invariances" in row:
            found = ", ".join(
                f"{of} {number(value) or '-'}" for of, value in row["invariances"].items()
            )
            print(f"{row['estimator']}: {found}")
        for warning in row["warnings"]:
            print(f"{row['estimator']} (K = {row['num_samples']}): {warning}")


def draw(path: Path, title: str, at: dict[int, list[dict[str, Any]]]) -> None:
    """Variances with their intervals: bars, or lines over checkpoints or K where there are
    several.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    last = at[max(at)]
    of = {
        name: [row for row in last if row["estimator"] == name]
        for name in {row["estimator"] for row in last}
    }
    names = sorted(of, key=lambda name: min(row["trace"][0] for row in of[name]))
    several = len(at) > 1 or max(map(len, of.values())) > 1
    figure, axis = plt.subplots(
        figsize=(7, 4.5 if several else 0.8 + 0.24 * len(names)), layout="constrained"
    )
    if not several:
        least = min(
            (row["trace"][0] for row in last if row["trace"][0] > rounding(row)), default=1.0
        )
        for i, name in enumerate(names):
            row = of[name][0]
            value, low, high = row["trace"]
            if value <= rounding(row):
                axis.text(least / 2, i, "0", va="center", ha="center")
                continue
            face = "#4477aa" if row["unbiased"] else "white"
            ends = np.maximum([[value - low], [high - value]], 0)
            axis.errorbar(value, i, xerr=ends, marker="o", mfc=face, color="#4477aa", ms=5, lw=1)
        axis.set(
            xscale="log",
            xlabel="tr Cov of one estimate (hollow: biased)",
            ylim=(len(names) - 0.5, -0.5),
        )
        axis.set_xlim(left=least / 4)
        axis.set_yticks(range(len(names)), names)
    else:
        over_steps = len(at) > 1
        for i, name in enumerate(names):
            rows = [
                (step, row) for step, rows in at.items() for row in rows if row["estimator"] == name
            ]
            rows = [
                (step if over_steps else row["num_samples"], row["trace"]) for step, row in rows
            ]
            x, traces = zip(*sorted(rows), strict=True)
            value, low, high = np.transpose(traces)
            style = {
                "color": plt.get_cmap("tab20")(i % 20),
                "marker": "osv^Dx"[i % 6],
                "ms": 4,
                "lw": 1,
            }
            axis.errorbar(x, value, [value - low, high - value], label=name, **style)
        axis.set(
            yscale="log",
            xlabel="training steps" if over_steps else "samples K",
            ylabel="tr Cov of one estimate",
        )
        axis.set_xscale(
            "symlog" if over_steps else "log", **({"linthresh": 100} if over_steps else {})
        )
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)
