"""What a data set is: splits of images with labels or attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from jaxvae.datasets.streams import Stream


class DataError(ValueError):
    """The data cannot be had or used; the message says what is missing and how to mend it."""


class Split(NamedTuple):
    """Part of a data set."""

    x: Any  # [N, H, W, C] uint8, or float32; shapes.Images where they are rendered
    y: Any = None  # [N] int
    attributes: np.ndarray | None = None  # [N, A] float32
    preprocess: Any = None

    @property
    def images(self) -> Any:
        return self.x

    @property
    def labels(self) -> Any:
        return self.y

    @property
    def examples(self) -> Any:
        """The examples with their preprocessing."""
        from jaxvae.datasets.examples import Examples

        return self.x if self.preprocess is None else Examples(self.x, self.preprocess)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one stored example, [H, W, C]."""
        return self.images.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored examples, uint8 or float32."""
        return self.images.dtype

    def take(self, rows: Any) -> Split:
        """The examples of some rows, an index array or a slice."""
        import jax

        x, y, attributes = jax.tree.map(lambda a: a[rows], (self.x, self.y, self.attributes))
        return Split(x, y, attributes, self.preprocess)

    def glimpse(self) -> Iterator[Split]:
        """Examples to judge the split by: all of them."""
        yield self


S = TypeVar("S", Split, "Stream")  # a split in memory, or one that is streamed


class Dataset(NamedTuple, Generic[S]):
    """The splits of a data set by name, and the number of values that a pixel can take."""

    name: str
    splits: dict[str, S]
    levels: int = 256


def as_split(
    images: Any, labels: Any = None, where: str = "the array", attributes: Any = None
) -> Split:
    """Checks what a user gave: [N, H, W, C], or [N, H, W], which gets C = 1, or vectors [N, D].

    Labels are [N], one for each image, or attributes [N, A]: several numbers for each.
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
    if images.ndim not in (2, 3, 4) or 0 in images.shape:
        raise DataError(
            f"{where} has shape {images.shape}; images are [N, H, W, C], [N, H, W] or [N, D], none of them 0"
        )
    if integers and images.dtype != np.uint8 and (images.min() < 0 or images.max() > 255):
        raise DataError(
            f"{where} holds integers from {images.min()} to {images.max()}; pixels are 0..255"
        )
    images = images.astype(np.uint8 if integers else np.float32)
    if labels is not None and np.ndim(labels) == 2 and np.shape(labels)[1] > 1:
        labels, attributes = None, labels
    if labels is not None:
        labels = np.asarray(labels).reshape(-1)
        if len(labels) != len(images):
            raise DataError(f"{where} has {len(images)} images but {len(labels)} labels")
        if np.issubdtype(labels.dtype, np.integer):
            labels = labels.astype(np.int32)
    if attributes is not None:
        if len(attributes) != len(images):
            raise DataError(
                f"{where} has {len(images)} images but {len(attributes)} rows of attributes"
            )
        try:
            attributes = np.asarray(attributes).astype(np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where} has attributes that are no numbers ({error})") from error
        if not np.isfinite(attributes).all():
            raise DataError(f"{where} has attributes that are not finite")
    return Split(images[..., None] if images.ndim == 3 else images, labels, attributes)


def reason(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
