"""What general formats of files make of the same images, in bits."""

from __future__ import annotations

import io
import lzma
from typing import Any

import numpy as np

MOST = 1000  # images that become a PNG and a WebP each


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
