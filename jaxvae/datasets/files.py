"""Sets in files of the user: NumPy arrays and folders of images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.datasets.arrays import as_split
from jaxvae.datasets.splits import DataError, S, Split, reason

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
PARTS = ("train", "validation", "test")
UNREADABLE = ("stop", "skip")
READERS = 8  # threads that read image files

Size = int | tuple[int, int] | None  # (H, W), or the side of a square; None keeps the image's own


def load_path(path: Path, image_size: Size, unreadable: str) -> dict[str, Split]:
    """The splits of a file or folder, held in memory."""
    return from_path(
        path, as_split, _from_npz, lambda folder: _from_folder(folder, image_size, unreadable)
    )


def from_path(
    path: Path,
    of_array: Callable[[np.ndarray, str], S],
    of_archive: Callable[[Path], dict[str, S]],
    of_folder: Callable[[Path], S],
) -> dict[str, S]:
    """The splits that a path holds.

    The path is a ``.npy`` file, which is mapped to memory, an ``.npz`` file, or a folder.
    """
    path = path.expanduser()
    if not path.exists():
        raise DataError(
            f"there is no {path}: give a .npy or .npz file, a folder of images or the name of a set"
        )
    if path.is_dir():
        parts = {child.name: child for child in sorted(path.iterdir()) if child.name in PARTS}
        return {name: of_folder(folder) for name, folder in (parts or {"train": path}).items()}
    try:
        if path.suffix == ".npy":
            return {"train": of_array(_array(path), str(path))}
        if path.suffix == ".npz":
            return of_archive(path)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be read as a NumPy file of numbers ({error})") from error
    raise DataError(f"{path} is no .npy or .npz file and no folder")


def _array(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r")
    if isinstance(array, np.ndarray):
        return array
    array.close()  # NumPy goes by the content and not by the name
    raise DataError(f"{path} is an archive of arrays: rename it to .npz")


def _from_npz(path: Path) -> dict[str, Split]:
    """A split for each array of images, such as ``x_train`` with ``y_train``, or ``images``."""
    with path.open("rb") as opened, np.load(opened) as file:  # NumPy leaves a damaged file open
        arrays = {key: file[key] for key in file.files}
    first = lambda *keys: next((arrays[key] for key in keys if key in arrays), None)
    splits = {}
    for part in PARTS:
        images = first(f"x_{part}", f"{part}_images", part)
        if images is not None:
            labels = first(f"y_{part}", f"{part}_labels")
            splits[part] = as_split(images, f"{path}[{part}]", labels)
    if splits:
        return splits
    images = first("images", "x", "arr_0")
    if images is None:
        raise DataError(
            f"{path} holds {sorted(arrays)}; expected x_train [and y_train, x_test, y_test], "
            "or images [and labels]"
        )
    return {"train": as_split(images, str(path), first("labels", "y"))}


def _from_folder(folder: Path, image_size: Size, unreadable: str) -> Split:
    """All images below a folder. Sub-folders become labels."""
    files: list[Path] = []
    images: list[np.ndarray] = []
    for file, image in _read(image_files(folder), image_size, unreadable):
        if images and image.shape != images[0].shape:
            raise DataError(
                f"images differ in shape: {files[0]} is {images[0].shape}, {file} is "
                f"{image.shape}; {how_to_mend(images[0].shape, image.shape)}"
            )
        files.append(file)
        images.append(image)
    names = [_class_of(file, folder) for file in files]
    labels = None if not any(names) else np.array(names, object)
    return as_split(np.stack(images), str(folder), labels)


def _class_of(file: Path, folder: Path) -> str | None:
    """The sub-folder of an image. An image directly in the folder has no class."""
    name = file.parent.relative_to(folder).as_posix()
    return None if name == "." else name


def how_to_mend(first: tuple[int, ...], other: tuple[int, ...]) -> str:
    """A sentence that says how to bring images of two shapes to one."""
    if first[:2] != other[:2]:
        return "image_size=64, for example, scales and crops all of them"
    return "some are grey and some have colours, so convert the files to one kind"


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, in order, without hidden files and folders."""
    hidden = lambda file: any(part.startswith(".") for part in file.relative_to(folder).parts)
    images = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    files = sorted(file for file in images if not hidden(file))
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def readable_files(folder: Path, unreadable: str) -> list[Path]:
    """The image files of a folder. With ``unreadable="skip"`` each is read once, as a check."""
    files = image_files(folder)
    if unreadable == "stop":
        return files
    return [file for file, _ in _read(files, 1, unreadable)]


def _read(
    files: Sequence[Path], image_size: Size, unreadable: str
) -> list[tuple[Path, np.ndarray]]:
    """Files with their pixels. Files that cannot be read are skipped or raise DataError."""

    def attempt(file: Path) -> np.ndarray | DataError:
        try:
            return read_image(file, image_size)
        except DataError as error:
            if unreadable == "stop" or isinstance(error.__cause__, ImportError):
                raise
            return error

    with ThreadPoolExecutor(READERS) as pool:
        results = list(zip(files, pool.map(attempt, files), strict=True))
    images = [(file, image) for file, image in results if isinstance(image, np.ndarray)]
    errors = [error for _, error in results if isinstance(error, DataError)]
    if errors:
        words = f"{len(errors)} of {len(files)} image files are skipped; the first: {errors[0]}"
        if not images:
            raise DataError(words)
        warnings.warn(words, stacklevel=2)
    return images


def read_image(file: Path, image_size: Size = None) -> np.ndarray:
    """The pixels of an image file, [H, W] grey or [H, W, 3], uint8.

    The image is turned as its camera noted. Transparency is dropped, and the colours under it stay.
    With ``image_size`` the image is scaled until its shorter side fits. A new pixel is the mean
    over its area, or a repetition if the image grows. The longer side is cropped evenly.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError("reading image files needs Pillow: pip install pillow") from error
    Image.init()  # all formats are known before several threads ask for one
    try:
        with Image.open(file) as opened:
            if opened.mode == "F" or opened.mode.startswith("I"):
                raise DataError(
                    f"{file} has more than 8 bits per pixel (mode {opened.mode}); "
                    "convert it to 8 bits"
                )
            image = _grey_or_colour(ImageOps.exif_transpose(opened))
            if image_size is not None:
                height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
                image = ImageOps.fit(image, (width, height), Image.Resampling.BOX)
            return np.asarray(image)
    except DataError:
        raise
    except Exception as error:  # damaged files: OSError, SyntaxError, ValueError, struct.error
        raise DataError(f"{file} cannot be read as an image ({reason(error)})") from error


def _grey_or_colour(image: Any) -> Any:
    if image.mode in ("1", "L", "LA"):
        return image.convert("L")
    through = "RGBA" if image.mode == "P" and "transparency" in image.info else "RGB"
    return image.convert(through).convert("RGB")
