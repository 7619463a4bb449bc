"""Opens a data set, in memory or as a stream, from its name, a file, a folder or arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.datasets import shapes
from jaxvae.datasets.arrays import from_arrays, numbered
from jaxvae.datasets.catalog import from_tfds, read_records
from jaxvae.datasets.described import DESCRIBED, described_file
from jaxvae.datasets.files import UNREADABLE, Size, load_path
from jaxvae.datasets.frames import is_table_file
from jaxvae.datasets.pixels import prepared
from jaxvae.datasets.splits import DataError, Dataset, S, Split, is_array, shape_and_dtype
from jaxvae.datasets.streams import Stream, of_objects, of_path, of_records, require_grain
from jaxvae.datasets.subsets import with_test

KNOWN_LEVELS = {"digits": 17, "shapes": 2}
RENDERED = {"shapes": shapes.splits}
RENDERED_CLASSES = {"shapes": shapes.SHAPES}

Found = tuple[dict[str, S], tuple[str, ...]]  # splits by name, and names of the classes


def load(
    source: Any,
    data_dir: str | os.PathLike | None = None,
    levels: int | None = None,
    pixels: str | None = None,
    *,
    image_size: Size = None,
    unreadable: str = "stop",
) -> Dataset[Split]:
    """Loads a data set.

    A set with one split only gets a ``test`` split of a tenth of its examples, chosen by a fixed
    permutation. Raises DataError with what is missing and the command that mends it.

    Args:
      source: the name of a tensorflow-datasets set (``"mnist"``, ``"cmaterdb/bangla"``, and
        ``"digits"``, which needs no network); or ``"shapes"``, which are rendered; or
        ``"segments"``, digits whose classes are described; or a ``.npy`` or ``.npz`` file, perhaps
        one of described classes as ``datasets.described`` says; or a folder of images; or arrays.
        These are one array of images, or ``{split: x}`` or ``{split: (x, y)}``, where x is images
        or a dict of arrays; or ``{split: Split}``, whose x is taken as it is. Labels y [N] are
        integers or words, and None, NaN and -1 say that one is missing. Several numbers for each
        image, [N, A], are attributes; so are the ``attributes`` of a tensorflow-datasets set.
      data_dir: where prepared sets are and new ones go; None is the default of tensorflow-datasets.
      levels: values that a pixel can take. None infers 2 if all are 0 or 1, 256 for other uint8,
        and no number of levels for real numbers.
      pixels: a name of ``PREPROCESSING``, which the splits then carry; None leaves them raw.
      image_size: the side, or (height, width), that a folder's images are scaled and cropped to,
        as ``files.read_image`` says.
      unreadable: ``"stop"`` at a file of a folder that cannot be read, or ``"skip"`` it with a
        warning.

    >>> import numpy as np
    >>> from jaxvae import datasets
    >>> dataset = datasets.load({"train": np.eye(8)[None], "test": np.eye(8)[None]})
    >>> dataset.levels, dataset.splits["train"].shape
    (2, (8, 8, 1))
    """
    _check_options(source, image_size, unreadable)
    described = _described(source, data_dir)
    if described is not None:
        return described if pixels is None else prepared(described, pixels)
    name, (splits, classes), known = _found(
        source,
        lambda arrays: numbered(from_arrays(arrays)),
        lambda path: numbered(load_path(path, image_size, unreadable)),
        lambda name: (
            (RENDERED[name](), RENDERED_CLASSES[name])
            if name in RENDERED
            else from_tfds(name, data_dir, read_records)
        ),
    )
    dataset = _dataset(name, splits, known if levels is None else levels, classes)
    return dataset if pixels is None else prepared(dataset, pixels)


def stream(
    source: Any,
    data_dir: str | os.PathLike | None = None,
    levels: int | None = None,
    pixels: str | None = None,
    *,
    image_size: Size = None,
    unreadable: str = "stop",
) -> Dataset[Stream]:
    """Opens a data set that may be larger than memory.

    Examples are read when they are needed. Splits have no labels. Raises DataError with what is
    missing and the command that mends it.

    Args:
      source: the name of a tensorflow-datasets set; or a ``.npy`` file; or a folder of images; or
        an object with ``__len__`` and ``__getitem__``, which returns one image, such as a
        ``grain.MapDataset`` or an array; or ``{split: object}``. Several threads read from it at
        once.
      data_dir: where prepared sets are and new ones go; None is the default of tensorflow-datasets.
      levels: values that a pixel can take; None infers them as ``load`` does, from a thousand
        images.
      pixels: a name of ``PREPROCESSING``, which the splits then carry; None leaves them raw.
      image_size: the size of a folder's images, as in ``load``.
      unreadable: what to do with a folder's damaged files, as in ``load``; ``"skip"`` reads every
        file once to find them.

    >>> import numpy as np
    >>> from jaxvae import datasets
    >>> train = datasets.stream(np.zeros((50, 8, 8), np.uint8)).splits["train"]
    >>> len(train), train[[3, 1]].shape
    (45, (2, 8, 8, 1))
    """
    require_grain()
    _check_options(source, image_size, unreadable)
    name, (splits, _), known = _found(
        source,
        lambda objects: (of_objects(objects), ()),
        lambda path: (of_path(path, image_size, unreadable), ()),
        lambda name: (
            (of_objects({part: split.x for part, split in RENDERED[name]().items()}), ())
            if name in RENDERED
            else from_tfds(name, data_dir, of_records)
        ),
    )
    dataset = _dataset(name, splits, known if levels is None else levels, ())
    return dataset if pixels is None else prepared(dataset, pixels)


def _described(source: Any, data_dir: str | os.PathLike | None) -> Dataset[Split] | None:
    """A set whose classes are described by attributes, by its name or in a file."""
    if isinstance(source, str) and source in DESCRIBED:
        return DESCRIBED[source](data_dir)
    return described_file(source)


def looks_like_path(source: str | os.PathLike) -> bool:
    """Whether a source names a file or folder, and not a tensorflow-datasets set."""
    text = os.fspath(source)
    if (
        not isinstance(source, str)
        or text.endswith((".npy", ".npz", ".txt", ".tsv", ".h5ad"))
        or is_table_file(text)
        or text.startswith((".", "/", "~"))
    ):
        return True
    return bool(text) and Path(text).is_dir() and not _holds_prepared_set(Path(text))


def _holds_prepared_set(folder: Path) -> bool:
    depths = ("*/dataset_info.json", "*/*/dataset_info.json")
    return any(next(folder.glob(depth), None) for depth in depths)


def _check_options(source: Any, image_size: Size, unreadable: str) -> None:
    """Raises DataError for options of folders if the source is no folder, or for wrong values."""
    if unreadable not in UNREADABLE:
        raise DataError(f"unreadable is one of {', '.join(UNREADABLE)}; it was {unreadable!r}")
    sides = (image_size,) if isinstance(image_size, int) else image_size or ()
    if any(side < 1 for side in sides):
        raise DataError(f"image_size must be at least 1; it was {image_size}")
    path = isinstance(source, (str, os.PathLike)) and looks_like_path(source)
    if image_size is not None and not (path and Path(source).suffix not in (".npy", ".npz")):
        what = source if isinstance(source, (str, os.PathLike)) else "these arrays"
        raise DataError(f"image_size is for folders of images, and {what} is none: leave it out")


def _found(
    source: Any,
    of_objects: Callable[[Any], Found[S]],
    of_path: Callable[[Path], Found[S]],
    of_name: Callable[[str], Found[S]],
) -> tuple[str, Found[S], int | None]:
    """A set's name, its splits and classes, and its levels if they are known.

    The splits come from the function for this kind of source.
    """
    if isinstance(source, Mapping) or not isinstance(source, (str, os.PathLike)):
        return "arrays", of_objects(source), None
    if looks_like_path(source):
        return Path(source).stem, of_path(Path(source)), None
    return str(source), of_name(str(source)), KNOWN_LEVELS.get(str(source))


def _dataset(
    name: str, splits: dict[str, S], levels: int | None, classes: tuple[str, ...]
) -> Dataset[S]:
    """The set with a test split and its levels, after a check that its splits go together."""
    if not splits:
        raise DataError("a set needs at least one split; this mapping has none")
    kinds = {shape_and_dtype(split) for split in splits.values()}
    if len(kinds) != 1:
        raise DataError(
            "a set needs splits of one shape and one kind of numbers; "
            f"these have {', '.join(sorted(kinds))}"
        )
    if levels is None:
        levels = _levels(part for split in splits.values() for part in split.glimpse())
    return Dataset(name, with_test(splits), levels, classes)


def _levels(parts: Iterable[Split]) -> int | None:
    """2 if all values are 0 or 1, 256 for other uint8, and None for real numbers."""
    for part in parts:
        if not is_array(part.x):
            return None
        if part.dtype == np.uint8:
            binary = part.x.max() <= 1
        else:
            binary = ((part.x == 0) | (part.x == 1)).all()
        if not binary:
            return 256 if part.dtype == np.uint8 else None
    return 2
