"""Labels of which a part is hidden, so that one set trains with few labels, many or all."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxvae.datasets.splits import MISSING, DataError

HIDING = 2**33  # the epoch of no order, see ``batches``


def checked_labels(labels: Any, classes: int) -> Any:
    """The labels [N]. Raises DataError for one that is no class."""
    if isinstance(labels, np.ndarray) and len(labels) and labels.max() >= classes:
        raise DataError(
            f"there are {classes} classes, 0 to {classes - 1}, and a label is {labels.max()}: "
            "mend it, or give the training split an example of that class"
        )
    return labels


def hide_labels(labels: np.ndarray, count: int | None, classes: int, seed: int) -> np.ndarray:
    """The labels [N] with all but ``count`` of them missing, equally many of each class.

    If the classes do not divide the count, some classes have one more. Which labels stay is a
    function of the labels, ``count`` and ``seed``. With None all stay.

    Args:
      labels: [N] integers, where -1 is a missing one.
      count: how many labels stay.
      classes: the number of classes.
      seed: selects the examples.

    Raises DataError if there are fewer labels than classes, or too few of a class.
    """
    known = int((labels >= 0).sum())
    stay = known if count is None else count
    if stay < classes:
        raise DataError(
            f"labelled={stay} examples are fewer than the {classes} classes: "
            "give one of each class at least"
        )
    if count is None:
        return labels
    generator = np.random.Generator(np.random.Philox(key=[seed, HIDING]))
    share, rest = divmod(count, classes)
    more = generator.permutation(classes) < rest
    kept = np.full_like(labels, MISSING)
    for label in range(classes):
        rows, wanted = np.flatnonzero(labels == label), share + int(more[label])
        if len(rows) < wanted:
            raise DataError(
                f"labelled={count} takes {wanted} examples of class {label}, and {len(rows)} have "
                "that label: take fewer"
            )
        kept[generator.permutation(rows)[:wanted]] = label
    return kept
