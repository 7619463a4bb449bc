"""Sets whose classes are described by attributes, some of them without training examples.

A file of such a set is an ``.npz`` with these arrays:

* ``features`` [N, D], numbers; with ``scale`` [D], if it is there, x = features * scale.
* ``label`` [N], the classes 0, 1, ..., C - 1.
* ``split`` [N]: 0 training, 1 test of the same classes, 2 test of classes without training
  examples.
* ``attributes`` [C, A], real numbers for every class. nan is a missing one, and so is -1 where no
  other number is negative. It is filled with the mean over classes that have training examples.
* ``classes`` [C], names, which may be left out.

Classes without training examples are called unseen, and the others seen.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.datasets.catalog import from_tfds, read_records
from jaxvae.datasets.splits import MISSING, DataError, Dataset, Split

KEYS = ("features", "label", "split", "attributes")
TRAINING, TEST_OF_SEEN, TEST_OF_UNSEEN = 0, 1, 2
VALIDATION = 20  # one training example in this many is held out for validation
LIT = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")
UNSEEN_DIGITS = (3, 6)


def described_file(source: Any) -> Dataset[Split] | None:
    """The set of an ``.npz`` file of described classes; None for any other source.

    Its splits are ``train``, ``validation``, ``test`` of all classes, and ``transductive``, which
    is ``train`` and the test examples of unseen classes without their labels. A twentieth of the
    training examples is ``validation``. Raises DataError for a label that is no class, or a class
    without attributes.
    """
    if not isinstance(source, str | os.PathLike) or Path(source).suffix != ".npz":
        return None
    path = Path(source).expanduser()
    if not path.exists():
        return None  # the readers of files say so
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            arrays = {key: file[key] for key in file.files} if set(KEYS) <= {*file.files} else None
    except Exception:  # no archive of arrays, which the readers of files say
        return None
    return None if arrays is None else _of_arrays(path, arrays)


def _of_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Dataset[Split]:
    features, labels, kinds = arrays["features"], arrays["label"], arrays["split"]
    if features.ndim != 2 or not len(features) == labels.size == kinds.size:
        raise DataError(
            f"{path}: features {features.shape}, label {labels.shape} and split {kinds.shape} must "
            "be [N, D], [N] and [N]"
        )
    if not np.isin((TRAINING, TEST_OF_UNSEEN), kinds).all():
        raise DataError(
            f"{path}: split must hold 0, training examples, and 2, test examples of classes that "
            f"have none; it holds {np.unique(kinds).tolist()}"
        )
    x = (features * arrays.get("scale", 1.0)).astype(np.float32)
    classes = tuple(map(str, arrays.get("classes", range(len(arrays["attributes"])))))
    labels = labels.astype(np.int32)
    seen = np.unique(labels[kinds == TRAINING])
    attributes = class_attributes(arrays["attributes"], labels, seen, classes, str(path))
    test = kinds != TRAINING
    splits = {
        **_with_transductive(
            Split(x[~test], labels[~test]), Split(x[kinds == TEST_OF_UNSEEN], None)
        ),
        "test": Split(x[test], labels[test]),
    }
    return Dataset(path.stem, splits, None, classes, class_attributes=attributes)


def _with_transductive(seen: Split, unseen: Split) -> dict[str, Split]:
    """The training examples of seen classes, and these with unlabelled ones of unseen classes."""
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(seen))
    held = max(len(seen) // VALIDATION, 1)
    train = seen.take(np.sort(order[held:]))
    y = np.concatenate([train.y, np.full(len(unseen), MISSING, np.int32)])
    both = Split(np.concatenate([train.x, unseen.x]), y)
    return {"train": train, "validation": seen.take(np.sort(order[:held])), "transductive": both}


def class_attributes(
    attributes: Any, labels: np.ndarray, seen: np.ndarray, classes: tuple[str, ...], where: str
) -> np.ndarray:
    """The attributes of every class [C, A], float32, whose missing numbers are filled.

    Args:
      attributes: [C, A]; nan is a missing one, and -1 where no other number is negative.
      labels: [N], of all examples.
      seen: the classes that have training examples.
      classes: their names.
      where: the file, for errors.

    Raises DataError for a label outside the classes, or a class without attributes.
    """
    table = np.asarray(attributes, np.float32).copy()
    if table.ndim != 2 or len(classes) != len(table):
        raise DataError(
            f"{where}: attributes {table.shape} must be [C, A], with a row for each of "
            f"{len(classes)} classes"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(table):
        raise DataError(
            f"{where}: there are attributes of {len(table)} classes, and labels go from "
            f"{labels.min()} to {labels.max()}: labels must be 0 to {len(table) - 1}"
        )
    if not (table[table != MISSING] < 0).any():
        table[table == MISSING] = np.nan
    without = np.flatnonzero(np.isnan(table).all(1))
    if len(without):
        raise DataError(
            f"{where}: the class {classes[without[0]]} has no attributes: give its row of "
            "attributes, or leave its examples out"
        )
    with warnings.catch_warnings():  # an attribute that no seen class has says nothing: 0
        warnings.simplefilter("ignore", RuntimeWarning)
        means = np.nan_to_num(np.nanmean(table[seen], 0))
    return np.where(np.isnan(table), means, table)


def segments(data_dir: str | os.PathLike | None) -> Dataset[Split]:
    """scikit-learn's digits, described by what a seven-segment display lights.

    Two digits have no training examples. It is a set to begin with, which needs no file.
    """
    splits, _ = from_tfds("digits", data_dir, read_records)
    train, test = splits["train"], splits["test"]
    unseen = np.isin(train.y, UNSEEN_DIGITS)
    parts = _with_transductive(train.take(~unseen), train.take(unseen))
    attributes = np.array([[s in lit for s in "abcdefg"] for lit in LIT], np.float32)
    names = tuple(map(str, range(10)))
    return Dataset("segments", {**parts, "test": test}, 17, names, class_attributes=attributes)


DESCRIBED = {"segments": segments}
