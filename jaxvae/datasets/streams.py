"""Splits that are read when they are needed, for data larger than memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.contracts import Preprocess
from jaxvae.datasets.arrays import as_images
from jaxvae.datasets.examples import with_preprocess
from jaxvae.datasets.files import Size, from_path, how_to_mend, read_image, readable_files
from jaxvae.datasets.splits import DataError, Split, reason

THREADS, AHEAD = 4, 8  # reader threads, and batches that they read ahead of the one in use
MOST = 2**31 - 1  # examples of a stream, whose rows are int32


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """A split whose examples are read when they are asked for, by row.

    A stream has no state. The caller names the rows of a batch, which are a pure function of the
    step. So a set trains on the same batches whether it is streamed or in memory, on any number of
    processes. Each process reads its rows only. A run goes on at any step without reading earlier
    batches.
    """

    shape: tuple[int, ...]  # of one stored example, [H, W, C]
    dtype: np.dtype  # uint8, or float32
    rows: np.ndarray = dataclasses.field(repr=False)  # [N] its examples, among the records
    records: Any = dataclasses.field(repr=False)  # record = records[row]
    read: Callable[[Any], Any] = dataclasses.field(repr=False)  # record -> image
    where: Callable[[int], str] = dataclasses.field(repr=False)  # what errors call a row
    preprocess: Preprocess | None = None  # (key, raw example) -> what a model takes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Reads some examples now, indexed as an array: [B, H, W, C], or [H, W, C] for one integer.

        Raises DataError naming the set and the row, or the file, of an example that cannot be read
        or differs in shape.
        """
        # Padding repeats a row; it is read once.
        each, places = np.unique(self.rows[rows], return_inverse=True)
        images = np.empty((len(each), *self.shape), self.dtype)
        record_of = self._records(each.tolist())
        for place, row in enumerate(each.tolist()):
            image = _image(self.read, record_of, row, self.where(row))
            if image.shape != self.shape or image.dtype != self.dtype:
                raise DataError(
                    f"images differ: {self.where(row)} is {image.dtype} {image.shape}, the first "
                    f"one is {self.dtype} {self.shape}; {self._mended(image)}"
                )
            images[place] = image
        return images[places]

    def wrapped(self, raw: Any) -> Any:
        """Arrays that were read, as examples with the preprocessing."""
        return with_preprocess(raw, self.preprocess)

    def take(self, rows: Any) -> Stream:
        """The stream of some rows, an index array or a slice; reads nothing."""
        return dataclasses.replace(self, rows=self.rows[rows])

    def glimpse(self, most: int = 1000, size: int = 32) -> Iterator[Split]:
        """At most ``most`` examples to judge the stream by, evenly spaced, some at a time."""
        rows = np.linspace(0, len(self) - 1, min(len(self), most)).astype(int)
        for start in range(0, len(rows), size):
            yield Split(self[rows[start : start + size]], preprocess=self.preprocess)

    def batches(
        self, rows_of: Callable[[int], np.ndarray], start: int, stop: int
    ) -> Generator[np.ndarray, None, None]:
        """The batches ``self[rows_of(t)]`` for t = start, ..., stop - 1.

        Grain's threads read them ahead of time. ``rows_of`` must be pure, since the threads call it
        in any order. Closing the iterator, or dropping it, ends the threads as soon as they have
        finished the batches that they are reading.
        """
        grain = require_grain()
        steps = grain.MapDataset.range(start, stop).map(lambda step: self[rows_of(step)])
        ahead = steps.to_iter_dataset(
            grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
        )
        with contextlib.closing(iter(ahead)) as iterator:
            yield from iterator

    def _mended(self, image: np.ndarray) -> str:
        if len(self.shape) != 3 or self.dtype != image.dtype or image.ndim != 3:
            return "convert them to one kind"
        return how_to_mend(self.shape, image.shape)

    def _records(self, rows: list[int]) -> Callable[[int], Any]:
        """The records by row, which are read at once if that is possible."""
        with contextlib.suppress(Exception):  # what fails is read again alone, which tells the row
            return dict(zip(rows, self.records.__getitems__(rows), strict=True)).__getitem__
        return lambda row: self.records[row]


def require_grain() -> Any:
    """Grain, or a DataError that says how to install it."""
    try:
        import grain
    except ImportError as error:
        raise DataError(
            f"streaming needs Grain, and {error.name or error} is missing: "
            "pip install 'jaxvae[stream]'"
        ) from error
    return grain


def opened(
    records: Any,
    name: str,
    read: Callable[[Any], Any] = lambda image: image,
    where: Callable[[int], str] | None = None,
) -> Stream:
    """The stream of all records, with shape and dtype of the first."""
    if not (hasattr(records, "__len__") and hasattr(records, "__getitem__")):
        raise DataError(
            f"{name} is a {type(records).__name__}; a stream needs random access, "
            "by __len__ and __getitem__"
        )
    n = len(records)
    if not 1 <= n <= MOST:
        raise DataError(
            f"{name} has {n} examples; a stream needs 1 to {MOST}, "
            "and a Grain pipeline must not repeat"
        )
    where = where or (lambda row: f"example {row} of {name}")
    first = _image(read, lambda row: records[row], 0, where(0))
    return Stream(first.shape, first.dtype, np.arange(n), records, read, where)


def _image(
    read: Callable[[Any], Any], record_of: Callable[[int], Any], row: int, where: str
) -> np.ndarray:
    """One example as a split holds it."""
    try:
        return as_images(np.asarray(read(record_of(row)))[None], where)[0]
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{where} cannot be read ({reason(error)})") from error


def of_objects(source: Any) -> dict[str, Stream]:
    """Streams of objects whose ``__getitem__`` returns one image: arrays, Grain pipelines."""
    splits = source if isinstance(source, Mapping) else {"train": source}
    for name, records in splits.items():
        if isinstance(records, tuple):
            raise DataError(
                f"split {name!r} is a tuple; a stream has no labels, give its images alone"
            )
    return {name: opened(records, f"split {name!r}") for name, records in splits.items()}


def of_path(path: Path, image_size: Size, unreadable: str) -> dict[str, Stream]:
    """Streams of a ``.npy`` file, mapped to memory, or of the images in a folder."""

    def of_folder(folder: Path) -> Stream:
        files = readable_files(folder, unreadable)
        read = lambda file: read_image(file, image_size)
        return opened(files, str(folder), read, lambda row: str(files[row]))

    return from_path(path, opened, _of_archive, of_folder)


def of_records(records: Any, image: str, label: str | None, name: str) -> Stream:
    """A stream of the images among the records of a tensorflow-datasets set."""
    return opened(records, name, itemgetter(image))


def _of_archive(path: Path) -> dict[str, Stream]:
    raise DataError(
        f"{path} cannot be read in parts: save its images as .npy with np.save, or load it whole"
    )
