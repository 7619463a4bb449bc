"""How well q(y|x) of a model with labels agrees with the labels of a split."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxvae.contracts import Array, Params
from jaxvae.datasets import examples_of, preprocessed
from jaxvae.evaluation.columns import Batched, batched, over_split, require
from jaxvae.models import Model, answers

BINS = 15  # of the calibration error


class Classification(NamedTuple):
    """What q(y|x) says of the examples whose label is known."""

    accuracy: float
    standard_error: float  # of the accuracy
    cross_entropy: float  # the mean of -log q(y|x), in nats
    calibration_error: float
    guess_entropy: float  # of the mean of q(y|x), in nats; 0 if all guesses are one class
    confusion: list[list[int]]  # how many examples of a class (row) have a guess (column), [C, C]
    num_examples: int


def classification(
    model: Any, params: Params, key: Array, split: Any, *, batch_size: int = 500
) -> Classification | None:
    """What q(y|x) says of a split, or None if no label of it is known.

    Args:
      model: a ``models.Model`` that answers ``classify``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of the preprocessing.
      split: a ``Split`` with labels y [N], where -1 is a missing one.
      batch_size: examples computed at a time.
    """
    labels = getattr(split, "y", None)
    if labels is None or not (np.asarray(labels) >= 0).any():
        return None
    log_q = over_split(_guesses(answers(model)), params, key, examples_of(split), batch_size)
    known = np.asarray(labels) >= 0
    return classified(log_q[known].astype(np.float64), np.asarray(labels)[known])


def classified(log_q: np.ndarray, labels: np.ndarray) -> Classification:
    """The same of log-probabilities [N, C] and labels [N]."""
    count, classes = log_q.shape
    guesses, rows = log_q.argmax(1), np.arange(count)
    right, mean = guesses == labels, np.exp(log_q).mean(0)
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, guesses), 1)
    return Classification(
        accuracy=float(right.mean()),
        standard_error=float(right.std(ddof=1) / math.sqrt(count)) if count > 1 else 0.0,
        cross_entropy=float(-log_q[rows, labels].mean()),
        calibration_error=calibration_error(np.exp(log_q[rows, guesses]), right),
        guess_entropy=float(-np.sum(mean * np.log(np.maximum(mean, 1e-300)))),
        confusion=confusion.tolist(),
        num_examples=count,
    )


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error sum_b n_b / N |accuracy_b - confidence_b|.

    Guo et al. 2017, arXiv:1706.04599, eq. 5, over 15 bins of equal width.

    Args:
      confidence: the probability of the guess, [N].
      right: whether the guess is right, [N].
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, right - confidence, BINS)
    return float(np.abs(gaps).sum() / len(confidence))


@functools.lru_cache(maxsize=32)
def _guesses(model: Model) -> Batched:
    require(model, "a classification", "classify")
    classify: Any = model.classify

    def one(params: Params, key: Array, raw: Any) -> Array:
        return classify(params, preprocessed(jax.random.split(key)[0], raw))

    return batched(one)
