"""Bias, variance, signal and budget of gradient estimators, from moments and costs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from experiments import variance_tables
from jaxvae import expectations, measurements
from jaxvae.measurements import reports

Row = dict[str, Any]
Table = dict[str, expectations.Estimator]


def _aim(estimator: expectations.Estimator) -> str:
    return {"": "elbo", "rws": "iwae"}.get(estimator.estimates, estimator.estimates)


def _peers(rows: dict[str, Row], name: str, table: Table, asked: str | None) -> list[str]:
    """The unbiased estimators of the same objective, or the reference that was asked for."""
    aim = _aim(table[name])
    fit = [other for other in rows if table[other].unbiased and _aim(table[other]) == aim]
    return [asked] if asked in fit else fit


def _noise(row: Row) -> float:
    return float(row["variance"].sum())


def _spent(row: Row) -> int:
    return row["evaluations"] + row["gradient_evaluations"]


def judge(
    rows: dict[str, Row],
    sampled: dict[str, Any],
    truth: Any,
    table: Table,
    asked_reference: str | None,
) -> None:
    """Adds biases, intervals, signals and budgets to the rows, and takes the vectors out.

    Args:
      rows: by estimator, with their means and variances [P].
      sampled: all that was sampled of those whose moments are not exact.
      truth: the gradient [P], or None if it is not known.
      table: the estimators.
      asked_reference: the estimator that stands for the truth, or None for the least noisy one.
    """
    for row in rows.values():
        row["norm"] = float(np.linalg.norm(row["mean"]))
    for name, row in rows.items():
        peers = _peers(rows, name, table, asked_reference)
        surest = min(peers, key=lambda o: (o in sampled, _noise(rows[o])), default=None)
        noisy = [o for o in peers if _noise(rows[o]) > variance_tables.rounding(rows[o])]
        reference = min(noisy, key=lambda o: _noise(rows[o]) * _spent(rows[o]), default=None)
        row["truth"] = "closed form or enumeration" if truth is not None else surest
        row["reference"] = reference
        draws = sampled.get(name)
        _add_variance(row, draws, rows, sampled, reference)
        target = truth
        if truth is None and surest not in (None, name):
            target = sampled[surest] if surest in sampled else rows[surest]["mean"]
        _add_bias(row, draws, target, surest)
        if draws is not None:
            _add_signal(row, draws)
        _add_budget(row, rows, reference)
    for row in rows.values():
        del row["mean"], row["variance"]


def _add_variance(
    row: Row, draws: Any, rows: dict[str, Row], sampled: dict[str, Any], reference: str | None
) -> None:
    """The trace of the covariance, and its ratio to the reference's, with their intervals."""
    row["trace"] = [_noise(row)] * 3 if draws is None else list(reports.trace(draws))
    if draws is not None and reference in sampled:
        row["ratio"] = list(reports.ratio(draws, sampled[reference]))
    elif reference is not None:
        row["ratio"] = [end / _noise(rows[reference]) for end in row["trace"]]
    else:
        row["ratio"] = None


def _add_bias(row: Row, draws: Any, target: Any, surest: str | None) -> None:
    """The bias beside a target: a gradient that is known, or another's draws; None is none."""
    row["warnings"] = []
    if target is None:
        row["warnings"] = [] if draws is None else reports.warnings(draws)
    elif draws is not None:
        bias = reports.bias(draws, target)
        row |= {"largest_z": bias.largest_z, "z_bound": bias.bound, "visible_bias": bias.visible}
        row["squared_bias"] = list(bias.squared)
        row["warnings"] = reports.warnings(draws, bias)
    elif isinstance(target, measurements.Sampled):
        row["warnings"] = [f"its bias is not known: {surest} was sampled"]
    else:
        off = row["mean"] - target
        row["largest_bias"] = float(np.abs(off).max())
        row["squared_bias"] = [float(off @ off)] * 3


def _add_signal(row: Row, draws: Any) -> None:
    """The signal beside the noise, for all parameters and by block."""
    row["signal"] = reports.signal(draws)._asdict()
    row["blocks"] = {
        block: {"trace": reports.trace(draws, block), **reports.signal(draws, block)._asdict()}
        for block in draws.blocks[1:]
    }
    if draws.between is not None:
        row["minibatch"] = float(np.maximum(draws.between, 0).sum())


def _add_budget(row: Row, rows: dict[str, Row], reference: str | None) -> None:
    """Variance times work, and the budget at which a biased estimator loses its lead."""
    budget, noise = _spent(row), row["trace"][0]
    row["work_normalized"] = noise * budget
    row["work_seconds"] = None if row["seconds"] is None else noise * row["seconds"]
    value, low, _ = row.get("squared_bias", [0.0] * 3)
    squared = value if low > 0 else 0.0
    if row["unbiased"] or not squared or reference in (None, row["estimator"]):
        return
    other = rows[reference]
    row["break_even"] = reports.break_even(noise, budget, squared, _noise(other), _spent(other))


def slopes(curves: dict[str, list[Row]]) -> dict[str, list[float]]:
    """The exponent of the variance in K for every estimator that was measured with several."""
    exponents = {}
    for name, rows in curves.items():
        good = [row for row in rows if row["trace"][0] > 0]
        counts = [row["num_samples"] for row in good]
        if len(set(counts)) < 2:
            continue
        errors = []
        for row in good:
            _, low, high = row["trace"]
            errors.append(max(math.log(high / low) / (2 * reports.WIDTH), 1e-6))
        fitted = reports.slope(counts, [row["trace"][0] for row in good], errors)
        exponents[name] = list(fitted)
    return exponents
