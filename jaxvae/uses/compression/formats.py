"""What general formats of files make of the same images, in bits."""

from __future__ import annotations

import io
import lzma
from typing import Any

import numpy as np

MOST = 1000  # images that become a PNG and a WebP each
LOSSY = 200  # images that become a JPEG and a WebP of several qualities each


def lossless(images: np.ndarray, levels: int) -> dict[str, float]:
    """Bits for each value of images [N, ...] as PNG, WebP and xz.

    PNG and WebP are one file for each image, and are left out if the images are no pictures of 8
    bits. xz is one file for all. Bits are packed first.
    """
    values = images[0].size
    whole = np.packbits(images.astype(bool)) if levels == 2 else np.ascontiguousarray(images)
    found = {"xz": 8 * len(lzma.compress(whole.tobytes())) / images.size}
    some = images[:MOST]
    pictures = [picture(image, levels) for image in some]
    if pictures[0] is None:
        return found
    options: dict[str, dict[str, Any]] = {"PNG": {"optimize": True}, "WebP": {"lossless": True}}
    for name, option in options.items():
        sizes = [len(encoded(each, name, **option)) for each in pictures]
        found[name] = 8 * sum(sizes) / len(sizes) / values
    return found


def lossy(images: np.ndarray, bits: float) -> dict[str, tuple[float, float]]:
    """Bits for each value and PSNR of JPEG and WebP, at their best quality below some bits.

    ``bits`` is for each value. A format that needs more at its least quality is left out, and so
    are images that are no pictures of 8 bits.
    """
    some = images[:LOSSY]
    pictures = [picture(image) for image in some]
    if pictures[0] is None or some.dtype != np.uint8:
        return {}
    found = {}
    for name in ("JPEG", "WebP"):
        low, high = 0, 100
        while low < high:
            quality = (low + high + 1) // 2
            cheap = _at(pictures, some, name, quality)[0] <= bits
            low, high = (quality, high) if cheap else (low, quality - 1)
        if (measured := _at(pictures, some, name, low))[0] <= bits:
            found[name] = measured
    return found


def _at(pictures: list[Any], images: np.ndarray, name: str, quality: int) -> tuple[float, float]:
    """Bits for each value, and PSNR, at a quality of a format."""
    from PIL import Image

    files = [encoded(each, name, quality=quality) for each in pictures]
    mode = pictures[0].mode
    read = [np.asarray(Image.open(io.BytesIO(file)).convert(mode)) for file in files]
    return 8 * sum(map(len, files)) / images.size, psnr(
        np.stack(read).reshape(images.shape), images
    )


def psnr(images: np.ndarray, others: np.ndarray, levels: int = 256) -> float:
    """Mean over images of 10 log10((levels - 1)^2 / mean squared difference), in dB."""
    squared = np.square(images.astype(np.float64) - others).reshape(len(images), -1).mean(1)
    return float(np.mean(10 * np.log10((levels - 1) ** 2 / np.maximum(squared, 1e-4))))


def picture(image: np.ndarray, levels: int = 256) -> Any:
    """An image [H, W], [H, W, 1] or [H, W, 3] of integers for Pillow, or None for any other."""
    from PIL import Image

    flat = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    if levels > 256 or not (flat.ndim == 2 or (flat.ndim == 3 and flat.shape[-1] == 3)):
        return None
    if levels == 2 and flat.ndim == 2:
        return Image.fromarray(255 * flat.astype(np.uint8)).convert("1")
    return Image.fromarray(flat.astype(np.uint8))


def encoded(image: Any, name: str, **options: Any) -> bytes:
    """The bytes of a picture in a format of Pillow."""
    held = io.BytesIO()
    (image.convert("RGB") if name == "WebP" else image).save(held, name, **options)
    return held.getvalue()
