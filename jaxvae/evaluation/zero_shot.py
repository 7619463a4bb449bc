"""How well classes without training examples are named, among each other and among all classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvae.contracts import Array, Params
from jaxvae.evaluation.classification import log_classes
from jaxvae.models import answers


class ZeroShot(NamedTuple):
    """Accuracies of zero-shot learning, each the mean over classes of the accuracy of a class."""

    zero_shot: float  # of unseen classes, where guesses are unseen classes
    unseen: float  # U of the generalized task: of unseen classes, where guesses are any classes
    seen: float  # S: of seen classes, where guesses are any classes
    harmonic: float  # 2 U S / (U + S)
    curve_area: float  # under the curve of U and S over the calibration; see ``curve``
    confusion: list[list[int]]  # of unseen classes (rows), where guesses are unseen classes


def zero_shot(
    model: Any, params: Params, key: Array, split: Any, *, batch_size: int = 500
) -> ZeroShot | None:
    """The accuracies on a split, or None if it has no labels of seen and of unseen classes.

    Args:
      model: a ``models.Model`` that answers ``classify`` and names unseen classes.
      params: its parameters.
      key: the key of the preprocessing.
      split: a ``Split`` with labels y [N], where -1 is a missing one.
      batch_size: examples computed at a time.
    """
    known = log_classes_of_both(model, params, key, split, batch_size)
    return None if known is None else zero_shot_of(*known, answers(model).unseen)


def log_classes_of_both(
    model: Any, params: Params, key: Array, split: Any, batch_size: int = 500
) -> tuple[np.ndarray, np.ndarray] | None:
    """log q(y|x) [N, C] and labels [N], or None without labels of seen and of unseen classes.

    Args:
      model: a ``models.Model`` that answers ``classify`` and names unseen classes.
      params: its parameters.
      key: the key of the preprocessing.
      split: a ``Split`` with labels y [N], where -1 is a missing one.
      batch_size: examples computed at a time.
    """
    classes = answers(model).unseen
    known = log_classes(model, params, key, split, batch_size) if classes else None
    if known is None or not 0 < np.isin(known[1], classes).sum() < len(known[1]):
        return None
    return known


def zero_shot_of(log_q: np.ndarray, labels: np.ndarray, unseen: Sequence[int]) -> ZeroShot:
    """The same of log-probabilities [N, C], labels [N] and unseen classes.

    The mean over classes and the harmonic mean are defined by Xian et al. 2017, arXiv:1703.04394,
    sec. 3.3.
    """
    classes = np.asarray(unseen)
    seen = np.setdiff1d(np.arange(log_q.shape[1]), classes)
    guesses = log_q.argmax(1)
    u, s = (per_class(guesses, labels, each) for each in (classes, seen))
    rows = np.isin(labels, classes)
    among = classes[log_q[rows][:, classes].argmax(1)]
    confusion = np.zeros((len(classes), len(classes)), int)
    place = {label: i for i, label in enumerate(classes.tolist())}
    for label, guess in zip(labels[rows].tolist(), among.tolist(), strict=True):
        confusion[place[label], place[guess]] += 1
    both = curve(log_q, labels, classes)
    return ZeroShot(
        zero_shot=per_class(among, labels[rows], classes),
        unseen=u,
        seen=s,
        harmonic=2 * u * s / (u + s) if u + s else 0.0,
        curve_area=float(np.trapezoid(both[:, 1], both[:, 0])),
        confusion=confusion.tolist(),
    )


def per_class(guesses: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> float:
    """The mean over the classes that have examples of the share of right guesses."""
    shares = [(guesses[labels == c] == c).mean() for c in classes if (labels == c).any()]
    return float(np.mean(shares)) if shares else float("nan")


def curve(log_q: np.ndarray, labels: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """U and S for every calibration, [points, 2], from all guesses seen to all unseen.

    Chao et al. 2016, arXiv:1605.04253: a number is added to the scores of unseen classes. Where it
    exceeds the best seen score less the best unseen one, the guess is unseen.
    """
    seen = np.setdiff1d(np.arange(log_q.shape[1]), unseen)
    best = [group[log_q[:, group].argmax(1)] for group in (unseen, seen)]
    rows = np.arange(len(labels))
    order = np.argsort(log_q[rows, best[1]] - log_q[rows, best[0]])
    share = 1 / np.bincount(labels, minlength=log_q.shape[1])[labels]  # of an example in its class
    counts = [max(len(np.intersect1d(labels, group)), 1) for group in (unseen, seen)]
    gained = (best[0] == labels)[order] * share[order] / counts[0]
    lost = (best[1] == labels)[order] * share[order] / counts[1]
    zero = np.zeros(1)
    u = np.concatenate([zero, np.cumsum(gained)])
    return np.stack([u, lost.sum() - np.concatenate([zero, np.cumsum(lost)])], 1)
