"""Scores that hold a factor fixed and look at how codes move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxvae.evaluation.disentanglement.checks import (
    logistic_regression,
    matrix,
    points,
    varying_codes,
    varying_factors,
)

LEAST_SCALE = 0.05  # standard deviation below which a code has collapsed
VOTES = 256  # batches that are represented at once
Represent = Callable[[np.ndarray], Any]  # rows [B] -> codes [B, D]


def irs(codes: Any, factors: Any, quantile: float = 0.99) -> float:
    """Interventional robustness: how little a code moves while its factor stays the same.

    Code i and factor j have 1 - mean_v Q(|z_i - E[z_i | v_j = v]| given v_j = v) /
    max |z_i - E z_i|. The largest one over j is averaged over codes, with their largest deviations
    as weights (Suter et al. 2018, arXiv:1811.00007). Q is a quantile. It is 0.99 in
    arXiv:1811.12359, which has factors in 20 bins (``discretized``), and 1, the maximum, in the
    paper. Constant codes do not count, and the score is 0 if all are constant.
    """
    codes, factors = points(codes, factors)
    codes = varying_codes(codes)
    if not codes.size:
        return 0.0
    furthest = np.abs(codes - codes.mean(0)).max(0)

    def deviation(v: np.ndarray) -> np.ndarray:
        groups = [codes[v == value] for value in np.unique(v)]
        return np.mean([np.quantile(np.abs(z - z.mean(0)), quantile, 0) for z in groups], 0)

    robust = 1 - np.stack([deviation(v) for v in factors.T], 1) / furthest[:, None]  # [D, F]
    return float(np.average(robust.max(1), weights=furthest))


def beta_vae(
    represent: Represent,
    factors: Any,
    key: jax.Array,
    *,
    batch_size: int = 64,
    num_train: int = 10_000,
    num_test: int = 5_000,
) -> float:
    """Accuracy of a linear classifier of which factor pairs of examples share.

    A point is mean_b |z_b - z'_b| over ``batch_size`` pairs that share factor k, drawn uniformly,
    and its class is k (Higgins et al. 2017, openreview.net/forum?id=Sy2fzU9gl). Logistic
    regression, as in arXiv:1811.12359.

    Args:
      represent: ``rows [B] -> codes [B, D]`` of the annotated examples; ``codes.__getitem__`` where
        all are encoded.
      factors: annotations [N, F].
      key: the key of all that is drawn.
      batch_size: pairs in a point.
      num_train: points that the classifier is fitted to.
      num_test: points that it is tested on.
    """
    factors, generator = varying_factors(factors), _generator(key)
    peers, (n, f) = peers_of(factors), factors.shape
    k = generator.integers(f, size=(num_train + num_test, 1))
    first = generator.integers(n, size=(len(k), batch_size))
    pairs = np.concatenate([first, peers(generator, k, first)], 1)
    difference = lambda z: np.abs(z[:, :batch_size] - z[:, batch_size:]).mean(1)
    points, classes = _of_batches(represent, pairs, difference), k[:, 0]
    model = logistic_regression().fit(points[:num_train], classes[:num_train])
    return float(model.score(points[num_train:], classes[num_train:]))


def factor_vae(
    represent: Represent,
    factors: Any,
    key: jax.Array,
    *,
    batch_size: int = 64,
    num_train: int = 10_000,
    num_test: int = 5_000,
    num_variance: int = 10_000,
    least_scale: float = LEAST_SCALE,
) -> float:
    """Accuracy of a majority vote on which factor the examples of a batch share.

    The vote of a batch is argmin_i Var(z_i in the batch) / Var(z_i), over codes whose standard
    deviation is at least ``least_scale``; a code votes for the factor that it was most often argmin
    for (Kim & Mnih 2018, arXiv:1802.05983, sec. 4). 0 if all codes have collapsed.

    Args:
      represent: as in ``beta_vae``.
      factors: annotations [N, F].
      key: the key of all that is drawn.
      batch_size: examples in a batch.
      num_train: batches whose votes are counted.
      num_test: batches that are tested on.
      num_variance: examples that the variance of a code is measured on.
      least_scale: the standard deviation below which a code has collapsed.
    """
    factors, generator = varying_factors(factors), _generator(key)
    peers, (n, f) = peers_of(factors), factors.shape
    some = generator.integers(n, size=(-(-num_variance // batch_size), batch_size))
    variance = (
        _of_batches(represent, some, lambda z: z)
        .reshape(some.size, -1)[:num_variance]
        .var(0, ddof=1)
    )
    active = np.sqrt(variance) >= least_scale
    if not active.any():
        return 0.0
    k = generator.integers(f, size=(num_train + num_test, 1))
    first = np.broadcast_to(generator.integers(n, size=k.shape), (len(k), batch_size))
    least = lambda z: np.argmin(z.var(1, ddof=1)[:, active] / variance[active], 1)
    votes, classes = _of_batches(represent, peers(generator, k, first), least), k[:, 0]
    counts = np.zeros((active.sum(), f), int)
    np.add.at(counts, (votes[:num_train], classes[:num_train]), 1)
    return float(np.mean(counts.argmax(1)[votes[num_train:]] == classes[num_train:]))


def _generator(key: jax.Array) -> np.random.Generator:
    return np.random.Generator(
        np.random.Philox(key=np.asarray(jax.random.key_data(key), np.uint64))
    )


def peers_of(
    factors: np.ndarray,
) -> Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]:
    """A function ``(generator, k, rows) -> rows`` that draws examples which share a factor.

    It draws uniformly among the examples that share factor k with each of the rows.
    """
    columns = [np.unique(v, return_inverse=True, return_counts=True)[1:] for v in factors.T]
    order = np.argsort(factors, 0, kind="stable").T  # [F, N]
    size = np.stack([counts[value] for value, counts in columns])
    first = np.stack([(np.cumsum(counts) - counts)[value] for value, counts in columns])

    def draw(generator: np.random.Generator, k: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return order[k, first[k, rows] + generator.integers(size[k, rows])]

    return draw


def _of_batches(
    represent: Represent, rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """``statistic(codes [V, B, D]) -> [V, ...]`` of all batches ``rows [V, B]``.

    Some batches are represented at a time.
    """
    parts = [rows[start : start + VOTES] for start in range(0, len(rows), VOTES)]
    codes = lambda part: matrix(represent(part.reshape(-1)), "codes").reshape(*part.shape, -1)
    return np.concatenate([statistic(codes(part)) for part in parts])
