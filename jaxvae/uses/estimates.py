"""Means over examples with their intervals."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

NORMAL_95 = 1.959964  # the 97.5 % quantile of the standard normal distribution


class Estimate(NamedTuple):
    """A mean over examples, in nats."""

    value: float
    standard_error: float  # over the examples; nan for a single one

    @property
    def interval(self) -> float:
        """Half the width of the 95 % interval."""
        return NORMAL_95 * self.standard_error

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.interval:.3f}"


def mean_of_column(values: Any) -> Estimate:
    """The mean of one number for each example [N], such as a paired difference."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return Estimate(float(values.mean()), math.nan)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))
