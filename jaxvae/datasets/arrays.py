"""Arrays of the user: checks of images, labels as integers, words as classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxvae.datasets.splits import MISSING, DataError, Split, common_length

CHANNELS = (1, 3, 4)  # grey, colour, and colour with transparency


def from_arrays(source: Any) -> dict[str, Split]:
    """Splits of an array of images, or of ``{split: x | (x, y) | (x, y, attributes) | Split}``."""
    if isinstance(source, Split):
        return {"train": _of_value(source, "the split")}
    if not isinstance(source, Mapping):
        return {"train": as_split(source)}
    return {name: _of_value(value, f"split {name!r}") for name, value in source.items()}


def _of_value(value: Any, where: str) -> Split:
    if isinstance(value, Split):
        return _tree_split(value, where)
    x, *rest = value if type(value) is tuple else (value,)
    if not _is_tree(x):
        return as_split(x, where, *rest)
    return _tree_split(Split(jax.tree.map(np.asarray, x), *rest), where)


def _is_tree(x: Any) -> bool:
    """Whether x is several arrays, such as a dict, and not images in one array or list."""
    nested = type(x) in (list, tuple) or hasattr(x, "__array__")
    return not nested and not jax.tree_util.all_leaves([x])


def _tree_split(split: Split, where: str) -> Split:
    """A split that takes x as it is, after a check that all arrays have one length."""
    split = split.replace(y=_plain_labels(split.y, where))
    try:
        common_length(split)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return split


def _plain_labels(y: Any, where: str) -> Any:
    """Labels [N] as ``as_labels`` makes them; any other pytree as it is."""
    plain = isinstance(y, (list, np.ndarray, jax.Array)) and np.ndim(y) == 1
    return as_labels(y, where) if plain else y


def as_split(
    images: Any, where: str = "the array", labels: Any = None, attributes: Any = None
) -> Split:
    """A split of checked images, with labels [N] or several numbers for each image [N, A]."""
    images = as_images(images, where)
    if labels is not None and np.ndim(labels) == 2 and np.shape(labels)[1] > 1:
        labels, attributes = None, labels
    if labels is not None:
        labels = np.asarray(labels)
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if labels.shape[:1] != images.shape[:1]:
            raise DataError(f"{where} has {len(images)} images but {labels.size} labels")
        labels = as_labels(labels, where) if labels.ndim == 1 else labels
    if attributes is not None:
        attributes = _as_attributes(attributes, len(images), where)
    return Split(images, labels, attributes)


def as_images(images: Any, where: str = "the array") -> np.ndarray:
    """Images [N, H, W, C], or [N, H, W], which get C = 1, or vectors [N, D]: uint8 or float32.

    Raises DataError if the array holds no numbers, no example, integers that are no pixels, or
    images whose channels come first.
    """
    try:
        images = np.asarray(images)
    except ValueError as error:
        raise DataError(f"{where} has images that differ in shape ({error})") from error
    if images.dtype == bool:
        images = images.astype(np.uint8)
    integers = np.issubdtype(images.dtype, np.integer)
    if not integers and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{where} holds {images.dtype}; images are uint8, or floats")
    _check_shape(images.shape, where)
    if integers and images.dtype != np.uint8 and (images.min() < 0 or images.max() > 255):
        raise DataError(
            f"{where} holds integers from {images.min()} to {images.max()}; pixels are 0..255. "
            "Give what are no pixels as datasets.Split(x)"
        )
    images = images.astype(np.uint8 if integers else np.float32)
    return images[..., None] if images.ndim == 3 else images


def _check_shape(shape: tuple[int, ...], where: str) -> None:
    if len(shape) not in (2, 3, 4) or 0 in shape:
        raise DataError(
            f"{where} has shape {shape}; images are [N, H, W, C], [N, H, W] or [N, D], "
            "none of them 0"
        )
    if len(shape) == 4 and shape[1] in CHANNELS and min(shape[2:]) > max(CHANNELS):
        raise DataError(
            f"{where} has shape {shape}, with channels first: images are [N, H, W, C], so give "
            "np.moveaxis(x, 1, -1)"
        )


def as_labels(labels: Any, where: str = "the array") -> np.ndarray:
    """Labels [N] as int32, or as words, which ``numbered`` turns into integers.

    None and NaN are missing labels, -1. Real numbers that are no integers raise DataError.
    """
    labels = np.asarray(labels)
    labels = np.char.decode(labels) if labels.dtype.kind == "S" else labels
    missing = np.zeros(len(labels), bool)
    if labels.dtype.kind not in "biuU":
        missing[:] = [label is None or label != label for label in labels.tolist()]
    kept = labels[~missing]
    kept = np.array(kept.tolist()) if labels.dtype.kind == "O" else kept
    if len(kept) and kept.dtype.kind == "U":
        words = labels.astype(object)
        words[missing] = None
        return words
    if kept.dtype.kind not in "biuf" or not np.array_equal(kept, np.floor(kept)):
        raise DataError(
            f"{where} has labels such as {kept[:3].tolist()}; labels are integers or words. "
            "Give real numbers as attributes [N, A], or as datasets.Split(x, y)"
        )
    if len(kept) and (kept.min() < MISSING or kept.max() > np.iinfo(np.int32).max):
        raise DataError(
            f"{where} has labels from {kept.min():g} to {kept.max():g}; labels are 0, 1, ..., and "
            "-1 where one is missing"
        )
    result = np.full(len(labels), MISSING, np.int32)
    result[~missing] = kept
    return result


def _as_attributes(attributes: Any, n: int, where: str) -> np.ndarray:
    if len(attributes) != n:
        raise DataError(f"{where} has {n} images but {len(attributes)} rows of attributes")
    try:
        attributes = np.asarray(attributes).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} has attributes that are no numbers ({error})") from error
    if not np.isfinite(attributes).all():
        raise DataError(f"{where} has attributes that are not finite")
    return attributes


def numbered(splits: dict[str, Split]) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Turns labels that are words into integers, in the words' order over all splits.

    Returns the words too. One single word is no label. A missing label, None, is -1.
    """
    words = {
        name: split.y
        for name, split in splits.items()
        if isinstance(split.y, np.ndarray) and split.y.dtype == object
    }
    if not words:
        return splits, ()
    every = {word for labels in words.values() for word in labels if word is not None}
    classes = sorted(every, key=str)
    if len(classes) == 1:
        return {n: s.replace(y=None) if n in words else s for n, s in splits.items()}, ()
    number = {word: i for i, word in enumerate(classes)} | {None: MISSING}
    others = [name for name, split in splits.items() if name not in words and _known(split.y)]
    if others:
        raise DataError(
            f"labels are words in {', '.join(words)} but no words in {', '.join(others)}: "
            "give words, or integers, in all splits"
        )
    integers = {
        name: np.array([number[word] for word in labels], np.int32)
        for name, labels in words.items()
    }
    splits = {n: s.replace(y=integers[n]) if n in words else s for n, s in splits.items()}
    return splits, tuple(map(str, classes))


def _known(y: Any) -> bool:
    """Whether a split has any label that is not missing."""
    return y is not None and not (isinstance(y, np.ndarray) and (y == MISSING).all())
