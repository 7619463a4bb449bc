"""Data sets: splits of examples, with labels or attributes if there are any."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import jax
import numpy as np

from jaxvae.contracts import Preprocess, pytree, static
from jaxvae.datasets.examples import rows_of, with_preprocess

MISSING = -1  # the label of an example whose class is unknown


class DataError(ValueError):
    """Data that cannot be had or used. The message says what is missing and how to mend it."""


@pytree
class Split:
    """Part of a data set, in memory: a pytree of arrays [N, ...] and its preprocessing.

    Nothing is checked, so x may be images, sequences, spectra, or a dict of several modalities. The
    readers of images check them.
    """

    x: Any  # pytree of [N, ...]: images [N, H, W, C] uint8 or float32, or shapes.Images
    y: Any = None  # labels [N] int32, where -1 is a missing one; or any pytree of [N, ...]
    attributes: Any = None  # [N, A] float32
    preprocess: Preprocess | None = static(None)  # (key, raw example) -> what a model takes

    @property
    def examples(self) -> Any:
        """The examples to train or evaluate on: ``Examples(x, preprocess)``, or plain x."""
        return with_preprocess(self.x, self.preprocess)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one raw example, such as [H, W, C], if x is a single array."""
        return tuple(self._single().shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """The type of the raw examples, such as uint8, if x is a single array."""
        return self._single().dtype

    def __len__(self) -> int:
        return common_length(self)

    def take(self, rows: Any) -> Split:
        """The examples of some rows, an index array or a slice; the preprocessing stays."""
        return rows_of(self, rows)

    def replace(self, **fields: Any) -> Split:
        """The split with some fields exchanged."""
        return dataclasses.replace(self, **fields)

    def glimpse(self) -> Iterator[Split]:
        """Examples to judge the split by: all of them."""
        yield self

    def _single(self) -> Any:
        if not is_array(self.x):
            raise DataError(
                f"these examples are a {type(self.x).__name__} of arrays and have no single shape "
                "and dtype: ask the arrays in `split.x`"
            )
        return self.x


class Part(Protocol):
    """What a split in memory and a stream have in common."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def preprocess(self) -> Preprocess | None: ...
    def take(self, rows: Any) -> Self: ...
    def glimpse(self) -> Iterator[Split]: ...


S = TypeVar("S", bound=Part)  # a split in memory, or one that is streamed


class Dataset(NamedTuple, Generic[S]):
    """The splits of a data set by name, and what is known of its values and classes.

    ``levels`` is the number of values that a pixel can take. None says that the values are real
    numbers. Their densities are in nats per dimension, because bits/dim need a number of levels. If
    levels are stated, values in [0, 1] are taken as k / (levels - 1).
    """

    name: str
    splits: dict[str, S]
    levels: int | None = None
    classes: tuple[str, ...] = ()  # names of the labels 0, 1, ..., where they have names
    vocabulary: tuple[str, ...] = ()  # the tokens 0, 1, ... of a set of sentences
    notes: tuple[str, ...] = ()  # sentences on the set, which a training prints
    class_attributes: np.ndarray | None = None  # [C, A], where classes are described
    columns: tuple[dict[str, Any], ...] = ()  # of a table, as ``tables.Column.json`` writes them
    genes: tuple[str, ...] = ()  # names of the counts of single cells
    batches: tuple[str, ...] = ()  # names of the laboratory's batches of single cells


def is_array(x: Any) -> bool:
    """Whether the examples are a single array, or images that are rendered, which act as one."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def shape_and_dtype(part: Part) -> Any:
    """Shape and dtype of one raw example, in words that can be compared."""
    if not isinstance(part, Split) or is_array(part.x):
        return f"{part.dtype} {part.shape}"
    one = lambda a: f"{np.asarray(a).dtype} {np.shape(a)[1:]}"
    return str(jax.tree.map(one, part.x, is_leaf=is_array))


def common_length(examples: Any) -> int:
    """The length of the leading axis of all arrays. Raises DataError if they share none."""
    lengths = {(np.shape(leaf) or (0,))[0] for leaf in jax.tree.leaves(examples)}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(
            "examples need one common leading axis [N, ...] with N >= 1; "
            f"lengths were {sorted(lengths)}"
        )
    return lengths.pop()


def reason(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
