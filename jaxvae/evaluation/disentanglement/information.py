"""Scores from the mutual information of codes and factors."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxvae.evaluation.disentanglement.checks import at_least_two, matrix, points

BINS = 20


def discretized(values: Any, bins: int = BINS) -> np.ndarray:
    """The numbers 0, 1, ... of the bins of each column's values, [N, D]; bins are equally wide."""
    values = matrix(values, "values")
    return np.stack([np.digitize(v, np.histogram_bin_edges(v, bins)[1:-1]) for v in values.T], 1)


def entropy(values: Any) -> np.ndarray:
    """-sum_v p(v) log p(v) of the values in each column, [N, F] -> [F], in nats."""
    return np.array(
        [entropy_of_counts(np.unique(v, return_counts=True)[1]) for v in matrix(values, "values").T]
    )


def entropy_of_counts(counts: np.ndarray) -> float:
    """The entropy of a distribution that is given by counts, in nats."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def information_of_values(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """I(a_i; b_j) = H(a_i) + H(b_j) - H(a_i, b_j) of columns of values.

    The shapes are [N, D], [N, F] -> [D, F].
    """
    number = lambda values: np.stack([np.unique(v, return_inverse=True)[1] for v in values.T])
    a, b = number(a), number(b)
    joint = [[entropy_of_counts(np.bincount(u * (v.max() + 1) + v)) for v in b] for u in a]
    each = lambda values: np.array([entropy_of_counts(np.bincount(v)) for v in values])
    return np.maximum(each(a)[:, None] + each(b) - np.array(joint), 0.0)


def mutual_information(codes: Any, factors: Any, bins: int = BINS) -> np.ndarray:
    """I(z_i; v_j) of every code, in ``bins`` bins, and every factor, [D, F] in nats.

    It is biased upwards for small N.
    """
    codes, factors = points(codes, factors)
    return information_of_values(discretized(codes, bins), factors)


def mig(codes: Any, factors: Any, bins: int = BINS) -> float:
    """The mutual information gap, mean_j (I(z_(1); v_j) - I(z_(2); v_j)) / H(v_j).

    Chen et al. 2018, arXiv:1802.04942. z_(1) and z_(2) are the two codes that know most of the
    factor. The score is between 0 and 1. It takes posterior means in bins, as arXiv:1811.12359
    does; the paper takes samples of q(z|x).
    """
    return float(np.mean(gap(mutual_information(codes, factors, bins)) / entropy(factors)))


def modularity(information: Any) -> float:
    """How far each code knows of one factor only, from 0 to 1.

    mean_i 1 - sum_(j != j*) I_ij^2 / (I_ij*^2 (F - 1)) with j* = argmax_j I_ij (Ridgeway & Mozer
    2018, arXiv:1802.05312). ``information [D, F]`` is what ``mutual_information`` gives. A code
    that knows nothing counts as 0.
    """
    squares = at_least_two(information, "factors (columns)") ** 2
    best = squares.max(1)
    rest = (squares.sum(1) - best) / np.where(best > 0, best, 1.0) / (squares.shape[1] - 1)
    return float(np.mean(np.where(best > 0, 1 - rest, 0.0)))


def mean_mutual_information(codes: Any, bins: int = BINS) -> float:
    """The mean of I(z_i; z_j) over pairs of codes, in nats (arXiv:1811.12359).

    Each code is in ``bins`` bins.
    """
    codes = discretized(codes, bins)
    d = codes.shape[1]
    if d < 2:
        raise ValueError("pairs of codes need at least two codes; there is 1")
    information = information_of_values(codes, codes)
    return float((information.sum() - np.trace(information)) / (d * (d - 1)))


def gap(scores: np.ndarray) -> np.ndarray:
    """How far the best code of each factor is ahead of the second best, [D, F] -> [F]."""
    if len(scores) < 2:
        raise ValueError("the gap between the two best codes needs at least two codes; there is 1")
    second, best = np.sort(scores, 0)[-2:]
    return best - second
