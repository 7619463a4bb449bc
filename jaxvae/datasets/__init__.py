"""Data sets in memory, addressed by index: from tensorflow-datasets, from files, from arrays.

A split is ``images [N, H, W, C]`` (uint8, or float32 for values that are no pixels) and, where there are any,
``labels [N]``. A batch is a pure function of (seed, step), so the iterator's state is the step. Pixels become what a
likelihood needs inside the training step, one example at a time, by a named treatment.

tensorflow-datasets is imported only when one of its sets is asked for, and TensorFlow never.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.datasets.batches import batch_rows, num_examples
from jaxvae.datasets.catalog import from_tfds
from jaxvae.datasets.files import from_arrays, from_path
from jaxvae.datasets.pixels import TREATMENTS, prepared, treatment
from jaxvae.datasets.splits import DataError, Dataset, Split

__all__ = [
    "TREATMENTS",
    "DataError",
    "Dataset",
    "Split",
    "batch_rows",
    "load",
    "looks_like_path",
    "num_examples",
    "prepared",
    "select",
    "treatment",
]
HELD_OUT = 10  # one example in this many is held out where a set has no split to test on
KNOWN_LEVELS = {"digits": 17}


def load(
    source: str | os.PathLike | Mapping[str, Any], data_dir: str | os.PathLike | None = None, levels: int | None = None
) -> Dataset:
    """Loads a data set.

    Args:
      source: the name of a tensorflow-datasets set (``"mnist"``, ``"cmaterdb/bangla"``, and ``"digits"``, which needs
        no network); or a ``.npy`` or ``.npz`` file; or a folder of images; or arrays, ``{split: images}`` or
        ``{split: (images, labels)}``, or one array of images.
      data_dir: where prepared sets are and new ones go; None is tensorflow-datasets' own default.
      levels: values that a pixel can take; None infers 2 where no pixel exceeds 1, else 256.

    A set with one split only gets a ``test`` split of a tenth of its examples, chosen by a fixed permutation.
    Raises DataError with what is missing and the command that mends it.
    """
    if isinstance(source, Mapping) or not isinstance(source, (str, os.PathLike)):
        name, splits, known = "arrays", from_arrays(source), None
    elif looks_like_path(source):
        name, splits, known = Path(source).stem, from_path(Path(source)), None
    else:
        name, splits, known = str(source), from_tfds(str(source), data_dir), KNOWN_LEVELS.get(str(source))
    shapes = {split.images.shape[1:] for split in splits.values()}
    if not splits:
        raise DataError("a set needs at least one split; this mapping has none")
    if len(shapes) != 1:
        raise DataError(f"a set needs splits of images of one shape [H, W, C]; these have {sorted(shapes)}")
    if levels is None:
        levels = known or (2 if all(split.images.max() <= 1 for split in splits.values()) else 256)
    return Dataset(name, _with_test(_numbered(splits)), levels)


def select(dataset: Dataset, split: str) -> Split:
    """A split, or part of one as tensorflow-datasets writes it: ``train``, ``train[:1000]``, ``train[80%:]``."""
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if match is None or match[1] not in dataset.splits:
        there = ", ".join(f"{name} ({len(part.images)})" for name, part in dataset.splits.items())
        raise DataError(f"{dataset.name} has no split {split!r}; it has {there}, and parts such as train[:80%]")
    name, *ends = match.groups()
    whole = dataset.splits[name]
    n = len(whole.images)
    place = lambda end: None if end is None else round(n * int(end[:-1]) / 100) if end.endswith("%") else int(end)
    part = slice(*map(place, ends))
    chosen = Split(whole.images[part], None if whole.labels is None else whole.labels[part])
    if not len(chosen.images):
        raise DataError(f"{split!r} of {dataset.name} holds no example; {name} has {n}")
    return chosen


def looks_like_path(source: str | os.PathLike) -> bool:
    """Whether a source names a file or folder, and not a tensorflow-datasets set."""
    text = os.fspath(source)
    if not isinstance(source, str) or text.endswith((".npy", ".npz")) or text.startswith((".", "/", "~")):
        return True
    prepared_set = lambda: any(
        next(Path(text).glob(depth), None) for depth in ("*/dataset_info.json", "*/*/dataset_info.json")
    )
    return bool(text) and Path(text).is_dir() and not prepared_set()


def _numbered(splits: dict[str, Split]) -> dict[str, Split]:
    """Labels that are words as integers, in order over all splits; one single word is no label."""
    words = [split.labels for split in splits.values() if split.labels is not None]
    if all(np.issubdtype(labels.dtype, np.integer) for labels in words):
        return splits
    classes = np.unique(np.concatenate(words))

    def number(split: Split) -> Split:
        if split.labels is None or len(classes) == 1:
            return Split(split.images)
        return Split(split.images, np.asarray(np.searchsorted(classes, split.labels), np.int32))

    return {name: number(split) for name, split in splits.items()}


def _with_test(splits: dict[str, Split]) -> dict[str, Split]:
    if len(splits) > 1:
        return splits
    (split,) = splits.values()
    n = len(split.images)
    if n < 2:
        return {"train": split, "test": split}
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(n)
    test = max(n // HELD_OUT, 1)
    take = lambda rows: Split(split.images[rows], None if split.labels is None else split.labels[rows])
    return {"train": take(np.sort(order[test:])), "test": take(np.sort(order[:test]))}
