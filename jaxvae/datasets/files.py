"""Sets of the user's own: arrays, NumPy files, folders of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.datasets.splits import DataError, Split, as_split

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def from_arrays(source: Any) -> dict[str, Split]:
    if not isinstance(source, Mapping):
        return {"train": as_split(source)}
    pairs = {name: value if isinstance(value, tuple) else (value, None) for name, value in source.items()}
    return {name: as_split(images, labels, f"split {name!r}") for name, (images, labels) in pairs.items()}


def from_path(path: Path) -> dict[str, Split]:
    path = path.expanduser()
    if not path.exists():
        raise DataError(f"there is no {path}: give a .npy or .npz file, a folder of images or the name of a set")
    if path.is_dir():
        parts = {child.name: child for child in sorted(path.iterdir()) if child.name in ("train", "validation", "test")}
        return {name: _from_folder(folder) for name, folder in (parts or {"train": path}).items()}
    try:
        if path.suffix == ".npy":
            return {"train": as_split(np.load(path, mmap_mode="r"), where=str(path))}
        if path.suffix == ".npz":
            with path.open("rb") as opened, np.load(opened) as file:  # NumPy leaves a damaged file open
                return _from_npz({key: file[key] for key in file.files}, path)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be read as a NumPy file of numbers ({error})") from error
    raise DataError(f"{path} is no .npy or .npz file and no folder")


def _from_npz(arrays: dict[str, np.ndarray], path: Path) -> dict[str, Split]:
    """A split per array of images: ``x_train`` with ``y_train``, ``train`` with ``train_labels``; or ``images``."""
    splits = {}
    for part in ("train", "validation", "test"):
        images = next((arrays[key] for key in (f"x_{part}", f"{part}_images", part) if key in arrays), None)
        labels = next((arrays[key] for key in (f"y_{part}", f"{part}_labels") if key in arrays), None)
        if images is not None:
            splits[part] = as_split(images, labels, f"{path}[{part}]")
    if not splits:
        images = next((arrays[key] for key in ("images", "x", "arr_0") if key in arrays), None)
        labels = next((arrays[key] for key in ("labels", "y") if key in arrays), None)
        if images is None:
            raise DataError(
                f"{path} holds {sorted(arrays)}; expected x_train [and y_train, x_test, y_test], or images [and labels]"
            )
        splits["train"] = as_split(images, labels, str(path))
    return splits


def _from_folder(folder: Path) -> Split:
    """All images below a folder; where they lie in sub-folders, these are the labels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading image files needs Pillow: pip install pillow") from error
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    images = []
    for file in files:
        try:
            with Image.open(file) as opened:
                if opened.mode == "F" or opened.mode.startswith("I"):
                    raise DataError(f"{file} has more than 8 bits per pixel (mode {opened.mode}); convert it to 8 bits")
                images.append(np.asarray(opened.convert("L" if opened.mode in ("1", "L", "LA") else "RGB")))
        except OSError as error:
            raise DataError(f"{file} cannot be read as an image ({error})") from error
    first = images[0].shape
    for file, image in zip(files, images, strict=True):
        if image.shape != first:
            raise DataError(
                f"images differ in shape: {files[0]} is {first}, {file} is {image.shape}; resize or convert them"
            )
    names = [file.parent.relative_to(folder).as_posix() for file in files]
    return as_split(np.stack(images), np.array(names), str(folder))
