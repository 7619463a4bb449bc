"""Sets of the user's own: arrays, NumPy files, folders of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.datasets.splits import DataError, S, Split, as_split

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def from_arrays(source: Any) -> dict[str, Split]:
    if not isinstance(source, Mapping):
        return {"train": as_split(source)}
    parts = {
        name: value if isinstance(value, tuple) else (value, None) for name, value in source.items()
    }
    return {
        name: as_split(images, labels, f"split {name!r}", *attributes)
        for name, (images, labels, *attributes) in parts.items()
    }


def load_path(path: Path) -> dict[str, Split]:
    """The splits of a file or folder, held in memory."""
    return from_path(
        path, lambda images, name: as_split(images, where=name), _from_npz, _from_folder
    )


def from_path(
    path: Path,
    of_array: Callable[[np.ndarray, str], S],
    of_archive: Callable[[Path], dict[str, S]],
    of_folder: Callable[[Path], S],
) -> dict[str, S]:
    """The splits that a path holds, made of a memory-mapped array and its name, an ``.npz``
    file, or a folder each.
    """
    path = path.expanduser()
    if not path.exists():
        raise DataError(
            f"there is no {path}: give a .npy or .npz file, a folder of images or the name of a set"
        )
    if path.is_dir():
        parts = {
            child.name: child
            for child in sorted(path.iterdir())
            if child.name in ("train", "validation", "test")
        }
        return {name: of_folder(folder) for name, folder in (parts or {"train": path}).items()}
    try:
        if path.suffix == ".npy":
            return {"train": of_array(np.load(path, mmap_mode="r"), str(path))}
        if path.suffix == ".npz":
            return of_archive(path)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be read as a NumPy file of numbers ({error})") from error
    raise DataError(f"{path} is no .npy or .npz file and no folder")


def _from_npz(path: Path) -> dict[str, Split]:
    """A split per array of images: ``x_train`` with ``y_train``, ``train`` with
    ``train_labels``; or ``images``.
    """
    with path.open("rb") as opened, np.load(opened) as file:  # NumPy leaves a damaged file open
        arrays = {key: file[key] for key in file.files}
    splits = {}
    for part in ("train", "validation", "test"):
        images = next(
            (arrays[key] for key in (f"x_{part}", f"{part}_images", part) if key in arrays), None
        )
        labels = next(
            (arrays[key] for key in (f"y_{part}", f"{part}_labels") if key in arrays), None
        )
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


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, in order."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def read_image(file: Path) -> np.ndarray:
    """The pixels of an image file, [H, W] grey or [H, W, 3]."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading image files needs Pillow: pip install pillow") from error
    try:
        with Image.open(file) as opened:
            if opened.mode == "F" or opened.mode.startswith("I"):
                raise DataError(
                    f"{file} has more than 8 bits per pixel (mode {opened.mode}); convert it to 8 bits"
                )
            return np.asarray(opened.convert("L" if opened.mode in ("1", "L", "LA") else "RGB"))
    except OSError as error:
        raise DataError(f"{file} cannot be read as an image ({error})") from error


def _from_folder(folder: Path) -> Split:
    """All images below a folder; where they lie in sub-folders, these are the labels."""
    files = image_files(folder)
    images = [read_image(file) for file in files]
    first = images[0].shape
    for file, image in zip(files, images, strict=True):
        if image.shape != first:
            raise DataError(
                f"images differ in shape: {files[0]} is {first}, {file} is {image.shape}; resize or convert them"
            )
    names = [file.parent.relative_to(folder).as_posix() for file in files]
    return as_split(np.stack(images), np.array(names), str(folder))
