"""Pictures as sets of overlapping patches: cutting, averaging, reading, writing, PSNR."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxvae.datasets import DataError


def read(path: str | Path) -> np.ndarray:
    """A grey or coloured picture with values in [0, 1], [H, W, C] float32.

    Raises DataError if the file is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            kind = "L" if image.mode in ("1", "L", "I", "F", "LA", "I;16") else "RGB"
            pixels = np.asarray(image.convert(kind), np.float32) / 255
    except (UnidentifiedImageError, IsADirectoryError) as error:
        raise DataError(f"{path} is no picture that Pillow reads: give a PNG or JPEG") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def write(path: str | Path, picture: np.ndarray) -> None:
    """Writes a picture [H, W, C] with values in [0, 1] as a PNG of 8 bits."""
    from PIL import Image

    pixels = np.clip(np.round(255 * picture), 0, 255).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


def patches_of(picture: np.ndarray, size: int) -> np.ndarray:
    """All square patches of a picture [H, W, C], row by row, [N, size, size, C].

    Raises DataError if the picture is smaller than a patch.
    """
    if picture.ndim != 3 or size > min(picture.shape[:2]):
        raise DataError(
            f"a picture of shape {picture.shape} has no patches of {size} x {size} pixels: it must "
            "be [H, W, C] and at least as large"
        )
    windows = np.lib.stride_tricks.sliding_window_view(picture, (size, size), (0, 1))
    return np.moveaxis(windows, 2, -1).reshape(-1, size, size, picture.shape[2])


def averaged(patches: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The picture [H, W, C] whose pixels are means over all patches that hold them.

    The inverse of ``patches_of`` if the patches agree.
    """
    size = patches.shape[1]
    down, right = shape[0] - size + 1, shape[1] - size + 1
    grid = patches.reshape(down, right, *patches.shape[1:])
    total, count = np.zeros(shape), np.zeros((*shape[:2], 1))
    for i in range(size):
        for j in range(size):
            total[i : i + down, j : j + right] += grid[:, :, i, j]
            count[i : i + down, j : j + right] += 1
    return (total / count).astype(np.float32)


def psnr(picture: np.ndarray, clean: np.ndarray) -> float:
    """10 log10(1 / mean squared difference) of pictures with values in [0, 1], in dB."""
    return float(-10 * np.log10(np.mean((picture - clean) ** 2)))
