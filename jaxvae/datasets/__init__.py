"""Data sets addressed by index, in memory or streamed: from tensorflow-datasets, from files, from
arrays.

A split in memory is ``images [N, H, W, C]`` (uint8, or float32 for values that are no pixels) and,
where there are any, ``labels [N]`` or ``attributes [N, A]``; those of ``shapes`` are kept as their
factors and rendered inside the training step. A batch is a pure function of (seed, step), so the
iterator's state is the step. Pixels become what a likelihood needs inside the training step, one
example at a time, by a named treatment.

tensorflow-datasets is imported only when one of its sets is asked for, Grain only to stream, and
TensorFlow never.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvae.datasets import shapes
from jaxvae.datasets.batches import batch_rows, num_examples, random_subset
from jaxvae.datasets.catalog import from_tfds, held
from jaxvae.datasets.examples import Examples, examples_of, preprocessed, rows_of
from jaxvae.datasets.files import from_arrays, load_path
from jaxvae.datasets.pixels import CORRUPTIONS, PREPROCESSING, prepared, preprocessing
from jaxvae.datasets.splits import DataError, Dataset, S, Split
from jaxvae.datasets.streams import Stream, of_objects, of_path, of_records, require_grain

__all__ = [
    "CORRUPTIONS",
    "PREPROCESSING",
    "DataError",
    "Dataset",
    "Examples",
    "Split",
    "Stream",
    "attributes",
    "batch_rows",
    "examples_of",
    "load",
    "looks_like_path",
    "num_examples",
    "prepared",
    "preprocessed",
    "preprocessing",
    "random_subset",
    "rows_of",
    "select",
    "shapes",
    "stream",
]
HELD_OUT = 10  # one example in this many is held out where a set has no split to test on
KNOWN_LEVELS = {"digits": 17, "shapes": 2}
RENDERED = {"shapes": shapes.splits}


def load(
    source: str | os.PathLike | Mapping[str, Any],
    data_dir: str | os.PathLike | None = None,
    levels: int | None = None,
) -> Dataset[Split]:
    """Loads a data set.

    Args:
      source: the name of a tensorflow-datasets set (``"mnist"``, ``"cmaterdb/bangla"``, and
        ``"digits"``, which needs no network); or ``"shapes"``, which are rendered; or a ``.npy`` or
        ``.npz`` file; or a folder of images; or arrays, ``{split: images}`` or ``{split: (images,
        labels)}``, or one array of images. Where labels are several numbers for each image, [N, A],
        they are attributes; so are the ``attributes`` of a tensorflow-datasets set.
      data_dir: where prepared sets are and new ones go; None is tensorflow-datasets' own default.
      levels: values that a pixel can take; None infers 2 where no pixel exceeds 1, else 256.

    A set with one split only gets a ``test`` split of a tenth of its examples, chosen by a fixed
    permutation. Raises DataError with what is missing and the command that mends it.
    """
    of_name = lambda name: RENDERED[name]() if name in RENDERED else from_tfds(name, data_dir, held)
    name, splits, known = _found(source, from_arrays, load_path, of_name)
    return _dataset(name, _numbered(splits), known if levels is None else levels)


def stream(
    source: Any, data_dir: str | os.PathLike | None = None, levels: int | None = None
) -> Dataset[Stream]:
    """Opens a data set that may be larger than memory: as ``load``, but examples are read when they
    are needed.

    Args:
      source: the name of a tensorflow-datasets set; or a ``.npy`` file; or a folder of images; or
        an object with ``__len__`` and ``__getitem__``, which returns one image, such as a
        ``grain.MapDataset`` or an array; or ``{split: object}``. Several threads read from it at
        once.
      data_dir: where prepared sets are and new ones go; None is tensorflow-datasets' own default.
      levels: values that a pixel can take; None infers 2 where no pixel of a thousand images
        exceeds 1, else 256.

    Splits have no labels. Raises DataError with what is missing and the command that mends it.
    """
    require_grain()
    of_name = lambda name: (
        of_objects(_images(name)) if name in RENDERED else from_tfds(name, data_dir, of_records)
    )
    name, splits, known = _found(source, of_objects, of_path, of_name)
    return _dataset(name, splits, known if levels is None else levels)


def select(dataset: Dataset[S], split: str) -> S:
    """A split, or part of one as tensorflow-datasets writes it: ``train``, ``train[:1000]``,
    ``train[80%:]``.
    """
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if match is None or match[1] not in dataset.splits:
        there = ", ".join(f"{name} ({num_examples(part)})" for name, part in dataset.splits.items())
        raise DataError(
            f"{dataset.name} has no split {split!r}; it has {there}, and parts such as train[:80%]"
        )
    name, *ends = match.groups()
    whole = dataset.splits[name]
    n = num_examples(whole)
    place = lambda end: (
        None if end is None else round(n * int(end[:-1]) / 100) if end.endswith("%") else int(end)
    )
    part = slice(*map(place, ends))
    if not range(n)[part]:
        raise DataError(f"{split!r} of {dataset.name} holds no example; {name} has {n}")
    return whole.take(part)


def attributes(split: Split) -> np.ndarray | None:
    """What is known of each example as numbers [N, A]: the split's attributes, or those of the
    rendered shapes.
    """
    if isinstance(split.images, shapes.Images):
        return np.asarray(jax.vmap(shapes.attributes)(split.images.factors))
    return split.attributes


def looks_like_path(source: str | os.PathLike) -> bool:
    """Whether a source names a file or folder, and not a tensorflow-datasets set."""
    text = os.fspath(source)
    if (
        not isinstance(source, str)
        or text.endswith((".npy", ".npz"))
        or text.startswith((".", "/", "~"))
    ):
        return True
    prepared_set = lambda: any(
        next(Path(text).glob(depth), None)
        for depth in ("*/dataset_info.json", "*/*/dataset_info.json")
    )
    return bool(text) and Path(text).is_dir() and not prepared_set()


def _images(name: str) -> dict[str, Any]:
    return {part: split.images for part, split in RENDERED[name]().items()}


def _found(
    source: Any,
    of_objects: Callable[[Any], dict[str, S]],
    of_path: Callable[[Path], dict[str, S]],
    of_name: Callable[[str], dict[str, S]],
) -> tuple[str, dict[str, S], int | None]:
    """A set's name, its splits, made by the function for that kind of source, and its levels
    where they are known.
    """
    if isinstance(source, Mapping) or not isinstance(source, (str, os.PathLike)):
        return "arrays", of_objects(source), None
    if looks_like_path(source):
        return Path(source).stem, of_path(Path(source)), None
    return str(source), of_name(str(source)), KNOWN_LEVELS.get(str(source))


def _dataset(name: str, splits: dict[str, S], levels: int | None) -> Dataset[S]:
    """The set, once its splits are known to go together; with a test split and the number of
    levels.
    """
    shapes = {split.shape for split in splits.values()}
    if not splits:
        raise DataError("a set needs at least one split; this mapping has none")
    if len(shapes) != 1:
        raise DataError(
            f"a set needs splits of images of one shape [H, W, C]; these have {sorted(shapes)}"
        )
    if levels is None:
        parts = (part for split in splits.values() for part in split.glimpse())
        levels = 2 if all(part.images.max() <= 1 for part in parts) else 256
    return Dataset(name, _with_test(splits), levels)


def _numbered(splits: dict[str, Split]) -> dict[str, Split]:
    """Labels that are words as integers, in order over all splits; one single word is no label."""
    words = [split.labels for split in splits.values() if split.labels is not None]
    if all(np.issubdtype(labels.dtype, np.integer) for labels in words):
        return splits
    classes = np.unique(np.concatenate(words))

    def number(split: Split) -> Split:
        if split.labels is None or len(classes) == 1:
            return split._replace(y=None)
        return split._replace(y=np.asarray(np.searchsorted(classes, split.labels), np.int32))

    return {name: number(split) for name, split in splits.items()}


def _with_test(splits: dict[str, S]) -> dict[str, S]:
    if len(splits) > 1:
        return splits
    (split,) = splits.values()
    n = num_examples(split)
    if n < 2:
        return {"train": split, "test": split}
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(n)
    test = max(n // HELD_OUT, 1)
    return {"train": split.take(np.sort(order[test:])), "test": split.take(np.sort(order[:test]))}
