"""Measures how well clusters agree with classes."""

from __future__ import annotations

import numpy as np


def accuracy(clusters: np.ndarray, labels: np.ndarray) -> float:
    """The clustering accuracy, max over one-to-one maps m of mean_n 1[y_n = m(c_n)].

    Xie et al. 2016, arXiv:1511.06335; GMVAE and VaDE report it too. A cluster without a class
    counts as wrong.

    Args:
      clusters: [N] integers from zero.
      labels: [N] integers from zero.

    Raises ValueError if the two have different lengths.
    """
    from scipy.optimize import linear_sum_assignment

    if clusters.ndim != 1 or clusters.shape != labels.shape:
        raise ValueError(
            f"clusters and labels must be [N] each; they were {clusters.shape} and {labels.shape}"
        )
    counts = np.zeros((clusters.max() + 1, labels.max() + 1), int)
    np.add.at(counts, (clusters, labels), 1)
    return float(counts[linear_sum_assignment(-counts)].sum() / len(labels))
