"""Sets that are made to look like another one, and examples that are changed on purpose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxvae.datasets.splits import DataError, Split


def _dimmed(x: np.ndarray, highest: int) -> np.ndarray:
    return (x / 4).astype(x.dtype)


def _rotated(x: np.ndarray, highest: int) -> np.ndarray:
    if x.ndim != 4 or x.shape[1] != x.shape[2]:
        raise DataError(f"only square images can be rotated; these are {x.shape[1:]}")
    return np.rot90(x, axes=(1, 2))


def _inverted(x: np.ndarray, highest: int) -> np.ndarray:
    return (highest - x).astype(x.dtype)


# name -> (x [N, ...], the highest value) -> x
ALTERATIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "dimmed": _dimmed,
    "rotated": _rotated,
    "inverted": _inverted,
}


def altered(split: Split, name: str, levels: int | None) -> Split:
    """A split whose examples are changed by one of ``ALTERATIONS``.

    Dimmed examples have a quarter of their values, rotated ones are turned by 90 degrees, and
    inverted ones have black and white exchanged.
    """
    if name not in ALTERATIONS:
        raise DataError(f"no alteration {name!r}; there are {', '.join(ALTERATIONS)}")
    return split.replace(x=np.ascontiguousarray(ALTERATIONS[name](split.x, (levels or 2) - 1)))


def images_like(
    split: Split, levels: int | None, shape: tuple[int, ...], like: int | None
) -> Split:
    """Images of another size, number of channels or levels, as the set that a model is of.

    They are scaled until the shorter side fits, where a new pixel is the mean over its area, and
    the longer side is cropped. Grey images become colour, and colour becomes their mean.

    Args:
      split: images [N, H, W, C] of integers.
      levels: values that a pixel of them can take.
      shape: [H, W, C] of what is wanted.
      like: values that a pixel can take there.
    """
    from PIL import Image, ImageOps

    known = levels is not None and like is not None and np.issubdtype(split.dtype, np.integer)
    if len(split.shape) != 3 or len(shape) != 3 or not known:
        raise DataError(
            f"examples of shape {split.shape} cannot be made like examples of shape "
            f"{tuple(shape)}: only images of integers can be scaled to another size"
        )
    height, width, channels = shape
    grey = np.asarray(split.x, np.float32) * (255 / max(levels - 1, 1))  # type: ignore[operator]
    if split.shape[-1] != channels:
        grey = np.repeat(grey.mean(-1, keepdims=True), channels, -1)
    size, box = (width, height), Image.Resampling.BOX
    x = np.empty((len(split), height, width, channels), np.uint8)
    for i, image in enumerate(np.round(grey).astype(np.uint8)):
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        x[i] = np.asarray(ImageOps.fit(picture, size, box)).reshape(shape)
    scaled = np.round(x * ((like - 1) / 255))  # type: ignore[operator]
    return split.replace(x=scaled.astype(np.uint8 if like <= 256 else np.uint16))  # type: ignore[operator]
