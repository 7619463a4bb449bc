"""What a data set is: splits of images with labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class DataError(ValueError):
    """The data cannot be had or used; the message says what is missing and how to mend it."""


class Split(NamedTuple):
    """Part of a data set."""

    images: np.ndarray  # [N, H, W, C] uint8, or float32
    labels: np.ndarray | None = None  # [N] int


class Dataset(NamedTuple):
    """The splits of a data set by name, and the number of values that a pixel can take."""

    name: str
    splits: dict[str, Split]
    levels: int = 256


def as_split(images: Any, labels: Any = None, where: str = "the array") -> Split:
    """Checks what a user gave: [N, H, W, C], or [N, H, W], which gets C = 1, or vectors [N, D]."""
    try:
        images = np.asarray(images)
    except ValueError as error:
        raise DataError(f"{where} has images that differ in shape ({error})") from error
    if images.dtype == bool:
        images = images.astype(np.uint8)
    integers = np.issubdtype(images.dtype, np.integer)
    if not integers and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{where} holds {images.dtype}; images are uint8, or floats")
    if images.ndim not in (2, 3, 4) or 0 in images.shape:
        raise DataError(
            f"{where} has shape {images.shape}; images are [N, H, W, C], [N, H, W] or [N, D], none of them 0"
        )
    if integers and (images.min() < 0 or images.max() > 255):
        raise DataError(f"{where} holds integers from {images.min()} to {images.max()}; pixels are 0..255")
    images = images.astype(np.uint8 if integers else np.float32)
    if labels is not None:
        labels = np.asarray(labels).reshape(-1)
        if len(labels) != len(images):
            raise DataError(f"{where} has {len(images)} images but {len(labels)} labels")
        if np.issubdtype(labels.dtype, np.integer):
            labels = labels.astype(np.int32)
    return Split(images[..., None] if images.ndim == 3 else images, labels)
