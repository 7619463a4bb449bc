"""Data sets in memory, addressed by index: from tensorflow-datasets, from files, from arrays.

A split is ``images [N, H, W, C]`` (uint8, or float32 for values that are no pixels) and, where there are any,
``labels [N]``. A batch is a pure function of (seed, step), so the iterator's state is the step. Pixels become what a
likelihood needs inside the training step, one example at a time, by a named treatment.

tensorflow-datasets is imported only when one of its sets is asked for, and TensorFlow never.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import http.client
import importlib.util
import io
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
HELD_OUT = 10  # one example in this many is held out where a set has no split to test on
PROBE = "https://storage.googleapis.com/tfds-data/"  # what tensorflow-datasets itself asks first


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


# ---------------------------------------------------------------------------------------------------------- batches


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n).astype(np.int32)


def batch_rows(
    seed: int, step: int, n: int, batch_size: int, padded: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The examples of batch ``step``: rows [B] and mask [B], a pure function of (seed, step).

    Every epoch is a permutation of all n examples of its own (Philox keyed by seed and epoch). The last batch of an
    epoch is ragged: it is filled up to ``batch_size``, or to ``padded``, with row 0 at mask 0.
    """
    per_epoch = -(-n // batch_size)
    epoch, place = divmod(step, per_epoch)
    chosen = _order(seed, epoch, n)[place * batch_size : (place + 1) * batch_size]
    rows, mask = np.zeros((2, padded or batch_size), np.int32)
    rows[: len(chosen)], mask[: len(chosen)] = chosen, 1
    return rows, mask


def num_examples(examples: Any) -> int:
    """The length of the leading axis that all arrays share; raises where they differ or there is nothing."""
    lengths = {(np.shape(leaf) or (0,))[0] for leaf in jax.tree.leaves(examples)}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(f"examples need one common leading axis [N, ...] with N >= 1; lengths were {sorted(lengths)}")
    return lengths.pop()


# ------------------------------------------------------------------------------------------------- pixel treatments


def _unit(pixels: Array, levels: int) -> Array:
    return pixels.astype(jnp.float32) / max(levels - 1, 1) if jnp.issubdtype(pixels.dtype, jnp.integer) else pixels


def _dynamic(key: Array, pixels: Array, levels: int) -> Array:
    return jax.random.bernoulli(key, _unit(pixels, levels)).astype(jnp.float32)


def _dequantize(key: Array, pixels: Array, levels: int) -> Array:
    u = jax.random.bits(key, pixels.shape, jnp.uint16) / 2**16  # coarse enough that 255 + u is exact in float32, < 256
    return (pixels.astype(jnp.float32) + u.astype(jnp.float32)) / levels


# name -> (key, pixels [H, W, C], levels) -> x; `static` sets are binarized once, when they are prepared.
TREATMENTS: dict[str, Callable[[Array, Array, int], Array]] = {
    "dynamic": _dynamic,
    "static": lambda key, pixels, levels: pixels.astype(jnp.float32),
    "dequantize": _dequantize,
    "scale": lambda key, pixels, levels: _unit(pixels, levels),
    "counts": lambda key, pixels, levels: pixels.astype(jnp.float32),
    "none": lambda key, pixels, levels: pixels.astype(jnp.float32),
}


def treatment(name: str, levels: int) -> Callable[[Array, Array], Array]:
    """The pixel treatment ``(key, pixels) -> x`` of one example.

    * ``dynamic``: Bernoulli(pixel / (levels - 1)), fresh each time the example is seen, from the example's own key.
    * ``static``: binary values drawn once for all, by ``prepared``.
    * ``dequantize``: (pixel + u) / levels with u ~ U[0, 1), fresh each time (Theis et al. 2016, arXiv:1511.01844).
    * ``scale``: pixel / (levels - 1), in [0, 1].
    * ``counts``: the integer values.
    * ``none``: real values as they are.
    """
    if name not in TREATMENTS:
        raise DataError(f"no pixel treatment {name!r}; there are {', '.join(TREATMENTS)}")
    return lambda key, pixels: TREATMENTS[name](key, pixels, levels)


def prepared(split: Split, name: str, levels: int, seed: int = 0) -> Split:
    """The split with what a treatment does once, before training, and a check that it can be used on these values.

    ``static`` binarization draws Bernoulli(pixel / (levels - 1)) with a generator keyed by ``seed`` and the number of
    examples. Values that are no pixels are refused by the treatments that need pixels.
    """
    images = split.images
    floating = np.issubdtype(images.dtype, np.floating)
    if not np.isfinite(images).all():
        raise DataError(f"the images hold {np.sum(~np.isfinite(images))} values that are not finite")
    if floating and name in ("dequantize", "counts"):
        raise DataError(f"pixels={name!r} needs integer values; these are {images.dtype}. Use 'scale' or 'none'.")
    if floating and name != "none" and (images.min() < 0 or images.max() > 1):
        raise DataError(
            f"pixels={name!r} needs uint8 pixels or values in [0, 1]; these lie in [{images.min():g}, "
            f"{images.max():g}]. Rescale them, or use 'none' with a likelihood for real values."
        )
    if not floating and name != "none" and images.max() >= levels:
        raise DataError(
            f"the largest pixel is {images.max()}, but the set is said to have {levels} levels (0..{levels - 1})"
        )
    if name == "static":
        generator = np.random.Generator(np.random.Philox(key=[seed, len(images)]))
        probability = images if floating else images / max(levels - 1, 1)
        images = (generator.random(images.shape) < probability).astype(np.uint8)
    return split._replace(images=images)


# ------------------------------------------------------------------------------------------------------ loading sets


def load(
    source: str | os.PathLike | Mapping[str, Any], data_dir: str | os.PathLike | None = None, levels: int | None = None
) -> Dataset:
    """Loads a data set.

    Args:
      source: the name of a tensorflow-datasets set (``"mnist"``, ``"cmaterdb/bangla"``, and ``"digits"``, which needs
        no network); or a ``.npy`` or ``.npz`` file; or a folder of images; or arrays, ``{split: images}`` or
        ``{split: (images, labels)}``, or one array of images.
      data_dir: where prepared sets are and new ones go; None is tensorflow-datasets' own default.
      levels: values that a pixel can take; None infers 2 where no pixel exceeds 1, else 256.

    A set with one split only gets a ``test`` split of a tenth of its examples, chosen by a fixed permutation.
    Raises DataError with what is missing and the command that mends it.
    """
    if isinstance(source, Mapping) or not isinstance(source, (str, os.PathLike)):
        name, splits, known = "arrays", _from_arrays(source), None
    elif looks_like_path(source):
        name, splits, known = Path(source).stem, _from_path(Path(source)), None
    else:
        name, splits, known = str(source), _from_tfds(str(source), data_dir), KNOWN_LEVELS.get(str(source))
    shapes = {split.images.shape[1:] for split in splits.values()}
    if not splits:
        raise DataError("a set needs at least one split; this mapping has none")
    if len(shapes) != 1:
        raise DataError(f"a set needs splits of images of one shape [H, W, C]; these have {sorted(shapes)}")
    if levels is None:
        levels = known or (2 if all(split.images.max() <= 1 for split in splits.values()) else 256)
    return Dataset(name, _with_test(_numbered(splits)), levels)


def select(dataset: Dataset, split: str) -> Split:
    """A split, or part of one as tensorflow-datasets writes it: ``train``, ``train[:1000]``, ``train[80%:]``."""
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if match is None or match[1] not in dataset.splits:
        there = ", ".join(f"{name} ({len(part.images)})" for name, part in dataset.splits.items())
        raise DataError(f"{dataset.name} has no split {split!r}; it has {there}, and parts such as train[:80%]")
    name, *ends = match.groups()
    whole = dataset.splits[name]
    n = len(whole.images)
    place = lambda end: None if end is None else round(n * int(end[:-1]) / 100) if end.endswith("%") else int(end)
    part = slice(*map(place, ends))
    chosen = Split(whole.images[part], None if whole.labels is None else whole.labels[part])
    if not len(chosen.images):
        raise DataError(f"{split!r} of {dataset.name} holds no example; {name} has {n}")
    return chosen


def looks_like_path(source: str | os.PathLike) -> bool:
    """Whether a source names a file or folder, and not a tensorflow-datasets set."""
    text = os.fspath(source)
    if not isinstance(source, str) or text.endswith((".npy", ".npz")) or text.startswith((".", "/", "~")):
        return True
    prepared_set = lambda: any(
        next(Path(text).glob(depth), None) for depth in ("*/dataset_info.json", "*/*/dataset_info.json")
    )
    return bool(text) and Path(text).is_dir() and not prepared_set()


def _numbered(splits: dict[str, Split]) -> dict[str, Split]:
    """Labels that are words as integers, in order over all splits; one single word is no label."""
    words = [split.labels for split in splits.values() if split.labels is not None]
    if all(np.issubdtype(labels.dtype, np.integer) for labels in words):
        return splits
    classes = np.unique(np.concatenate(words))

    def number(split: Split) -> Split:
        if split.labels is None or len(classes) == 1:
            return Split(split.images)
        return Split(split.images, np.asarray(np.searchsorted(classes, split.labels), np.int32))

    return {name: number(split) for name, split in splits.items()}


def _with_test(splits: dict[str, Split]) -> dict[str, Split]:
    if len(splits) > 1:
        return splits
    (split,) = splits.values()
    n = len(split.images)
    if n < 2:
        return {"train": split, "test": split}
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(n)
    test = max(n // HELD_OUT, 1)
    take = lambda rows: Split(split.images[rows], None if split.labels is None else split.labels[rows])
    return {"train": take(np.sort(order[test:])), "test": take(np.sort(order[:test]))}


def _as_split(images: Any, labels: Any = None, where: str = "the array") -> Split:
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


def _from_arrays(source: Any) -> dict[str, Split]:
    if not isinstance(source, Mapping):
        return {"train": _as_split(source)}
    pairs = {name: value if isinstance(value, tuple) else (value, None) for name, value in source.items()}
    return {name: _as_split(images, labels, f"split {name!r}") for name, (images, labels) in pairs.items()}


def _from_path(path: Path) -> dict[str, Split]:
    path = path.expanduser()
    if not path.exists():
        raise DataError(f"there is no {path}: give a .npy or .npz file, a folder of images or the name of a set")
    if path.is_dir():
        parts = {child.name: child for child in sorted(path.iterdir()) if child.name in ("train", "validation", "test")}
        return {name: _from_folder(folder) for name, folder in (parts or {"train": path}).items()}
    try:
        if path.suffix == ".npy":
            return {"train": _as_split(np.load(path, mmap_mode="r"), where=str(path))}
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
            splits[part] = _as_split(images, labels, f"{path}[{part}]")
    if not splits:
        images = next((arrays[key] for key in ("images", "x", "arr_0") if key in arrays), None)
        labels = next((arrays[key] for key in ("labels", "y") if key in arrays), None)
        if images is None:
            raise DataError(
                f"{path} holds {sorted(arrays)}; expected x_train [and y_train, x_test, y_test], or images [and labels]"
            )
        splits["train"] = _as_split(images, labels, str(path))
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
    return _as_split(np.stack(images), np.array(names), str(folder))


# ------------------------------------------------------------------------------------------------ tensorflow-datasets


INSTALL = "pip install tensorflow-datasets importlib_resources array_record pillow"


def _tfds() -> Any:
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"reading this set needs tensorflow-datasets, and {error.name or error} is missing: {INSTALL}"
        ) from error
    return tfds


def _from_tfds(name: str, data_dir: str | os.PathLike | None) -> dict[str, Split]:
    """All splits of a set, read from disk where it is prepared and prepared first where it is not."""
    tfds = _tfds()
    if not re.fullmatch(r"\w+(/[\w.-]+)?(:[\w.*]+)?", name):
        raise DataError(
            f"{name!r} is no name of a data set (name, name/config or name:1.0.0) and no path.{_near(tfds, name)}"
        )
    data_dir = Path(data_dir).expanduser() if data_dir is not None else Path(tfds.core.constants.DATA_DIR)
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=str(data_dir))
    except tfds.core.DatasetNotFoundError:
        builder = _prepare(tfds, name, data_dir)
    except Exception as error:
        raise _damaged(name, data_dir, error) from error
    image = _image_feature(builder)
    label = next((key for key, f in builder.info.features.items() if isinstance(f, tfds.features.ClassLabel)), None)
    try:
        return {str(split): _read(builder.as_data_source(split), image, label, name) for split in builder.info.splits}
    except NotImplementedError as error:
        raise DataError(
            f"{name} lies in {data_dir} in a format that needs TensorFlow; convert it: tfds convert_format "
            f"--dataset_dir={builder.data_dir} --out_file_format=array_record"
        ) from error
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"reading {name} failed: {error}; {INSTALL}") from error
    except Exception as error:
        raise _damaged(name, data_dir, error) from error


def _damaged(name: str, data_dir: Path, error: Exception) -> DataError:
    reason = (str(error).strip().splitlines() or [""])[0]
    return DataError(
        f"{name} in {data_dir} cannot be read ({type(error).__name__}: {reason}); delete its folder, prepare it again"
    )


def _image_feature(builder: Any) -> str:
    features = builder.info.features
    images = [
        key
        for key, feature in features.items()
        if isinstance(feature.shape, tuple) and len(feature.shape) == 3 and np.dtype(feature.np_dtype) == np.uint8
    ]
    if not images:
        raise DataError(f"{builder.info.name} holds no uint8 images [H, W, C]; its features are {sorted(features)}")
    return "image" if "image" in images else images[0]


def _read(source: Any, image: str, label: str | None, name: str, chunk: int = 4096) -> Split:
    n = len(source)
    images, labels = None, None if label is None else np.zeros(n, np.int32)
    for start in range(0, n, chunk):
        examples = source.__getitems__(range(start, min(start + chunk, n)))
        shapes = {example[image].shape for example in examples}
        if images is None:
            images = np.zeros((n, *min(shapes)), np.uint8)
        if shapes != {images.shape[1:]}:
            raise DataError(f"the images of {name} differ in shape ({sorted(shapes | {images.shape[1:]})[:3]}, ...)")
        images[start : start + len(examples)] = [example[image] for example in examples]
        if labels is not None:
            labels[start : start + len(examples)] = [example[label] for example in examples]
    if images is None:
        raise DataError(f"a split of {name} is empty")
    return Split(images, labels)


def _near(tfds: Any, name: str) -> str:
    known = [*tfds.list_builders(with_community_datasets=False), "digits"]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, 3)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _prepare(tfds: Any, name: str, data_dir: Path) -> Any:
    """Downloads and prepares a set as array_record, or says at once why that cannot work here."""
    if name == "digits":
        return _prepare_digits(tfds, data_dir)
    base = name.split("/")[0].split(":")[0]
    known = tfds.list_builders(with_community_datasets=False)
    if base not in known:
        raise DataError(f"no data set {base!r} in {data_dir} nor in tensorflow-datasets.{_near(tfds, base)}")
    build = f"tfds build {name} --file_format=array_record --data_dir={data_dir}"
    without = "" if importlib.util.find_spec("tensorflow") else "pip install tensorflow && "
    if not _online():
        raise DataError(
            f"{name} is not prepared in {data_dir} and there is no network to download it; where there is one, run "
            f"`{without}{build}` and copy the folder here, or pass --data-dir with the folder that holds it."
        )
    try:
        builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        builder.download_and_prepare()
    except ImportError as error:
        raise DataError(
            f"{name} is not prepared in {data_dir}, and preparing it (not reading it) needs {error.name or error}: run "
            f"`{without}{build}`, or pass --data-dir with the folder that holds it."
        ) from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise DataError(
            f"{name} could not be prepared ({type(error).__name__}: {reason}); to see all run `{build}`"
        ) from error
    return builder


def _online(seconds: float = 4.0) -> bool:
    """Whether the host of tensorflow-datasets answers; a name look-up that hangs counts as no."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(PROBE, method="HEAD"), timeout=seconds).close()
            answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)
        except (OSError, http.client.HTTPException):
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return bool(answers and answers[0])


KNOWN_LEVELS = {"digits": 17}


def _prepare_digits(tfds: Any, data_dir: Path) -> Any:
    """scikit-learn's 1,797 handwritten digits, 8x8 with 17 levels, as a tensorflow-datasets set of our own."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits come with scikit-learn: pip install scikit-learn") from error

    class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Optical recognition of handwritten digits (Alpaydin & Kaynak 1998), the 1,797 images of scikit-learn."""

        name = "digits"
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(1797)
            return {"train": self._generate_examples(order[:1437]), "test": self._generate_examples(order[1437:])}

        def _generate_examples(self, rows: np.ndarray) -> Any:
            digits = load_digits()
            for row in rows.tolist():
                yield row, {"image": digits.images[row][..., None].astype(np.uint8), "label": int(digits.target[row])}

    try:
        builder = Digits(data_dir=str(data_dir), file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare()
    except OSError as error:
        raise DataError(
            f"digits cannot be prepared in {data_dir} ({error}); pass --data-dir with a folder you may write to"
        ) from error
    return builder
