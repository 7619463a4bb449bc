"""Sets of tensorflow-datasets, which are read without TensorFlow."""

from __future__ import annotations

import contextlib
import difflib
import http.client
import importlib.util
import io
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.datasets.splits import DataError, S, Split, reason

PROBE = "https://storage.googleapis.com/tfds-data/"  # what tensorflow-datasets itself asks first
INSTALL = "pip install tensorflow-datasets importlib_resources array_record pillow"


def _tfds() -> Any:
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"reading this set needs tensorflow-datasets, and {error.name or error} is missing: "
            f"{INSTALL}"
        ) from error
    return tfds


def from_tfds(
    name: str, data_dir: str | os.PathLike | None, make: Callable[[Any, str, str | None, str], S]
) -> tuple[dict[str, S], tuple[str, ...]]:
    """All splits of a set and the names of its classes. It is prepared first if need be.

    A split is ``make(records, image, label, name)``. A record holds the features of an example;
    ``image`` and ``label`` are the names of two of them.
    """
    tfds, folder = _tfds(), _folder(data_dir)
    builder = _builder(tfds, name, folder)
    image = _image_feature(builder)
    features = builder.info.features
    kinds = tfds.features.ClassLabel
    label = next((key for key, feature in features.items() if isinstance(feature, kinds)), None)
    try:
        splits = {
            str(split): make(builder.as_data_source(split), image, label, f"{name}[{split}]")
            for split in builder.info.splits
        }
    except NotImplementedError as error:
        raise DataError(
            f"{name} lies in {folder} in a format that needs TensorFlow; convert it: "
            f"tfds convert_format --dataset_dir={builder.data_dir} --out_file_format=array_record"
        ) from error
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"reading {name} failed: {error}; {INSTALL}") from error
    except Exception as error:
        raise _damaged(name, folder, error) from error
    return splits, tuple(features[label].names) if label else ()


def reader(name: str, data_dir: str | os.PathLike | None) -> Any:
    """The reader of a set of any features. The set is prepared first if need be."""
    return _builder(_tfds(), name, _folder(data_dir))


def _folder(data_dir: str | os.PathLike | None) -> Path:
    return Path(_tfds().core.constants.DATA_DIR if data_dir is None else data_dir).expanduser()


def _builder(tfds: Any, name: str, folder: Path) -> Any:
    """The reader of a set in a folder. The set is prepared first if need be."""
    if not re.fullmatch(r"\w+(/[\w.-]+)?(:[\w.*]+)?", name):
        raise DataError(
            f"{name!r} is no name of a data set (name, name/config or name:1.0.0) and no path."
            f"{_near(tfds, name)}"
        )
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=str(folder))
    except tfds.core.DatasetNotFoundError:
        return _prepare(tfds, name, folder)
    except Exception as error:
        raise _damaged(name, folder, error) from error


def _damaged(name: str, data_dir: Path, error: Exception) -> DataError:
    return DataError(
        f"{name} in {data_dir} cannot be read ({reason(error)}); "
        "delete its folder, prepare it again"
    )


def _image_feature(builder: Any) -> str:
    features = builder.info.features
    images = [
        key
        for key, feature in features.items()
        if isinstance(feature.shape, tuple)
        and len(feature.shape) == 3
        and np.dtype(feature.np_dtype) == np.uint8
    ]
    if not images:
        raise DataError(
            f"{builder.info.name} holds no uint8 images [H, W, C]; "
            f"its features are {sorted(features)}"
        )
    return "image" if "image" in images else images[0]


def read_records(
    records: Any, image: str, label: str | None, name: str, chunk: int = 4096
) -> Split:
    """All records of a split in memory, with ``attributes`` if these are numbers by name.

    Args:
      records: the records of a split, with random access.
      image: the feature that is the image.
      label: the feature that is the label, or None.
      name: what errors call the split.
      chunk: records that are decoded at once.
    """
    n = len(records)
    images, labels = None, None if label is None else np.zeros(n, np.int32)
    attributes: list[list[float]] = []
    for start in range(0, n, chunk):
        examples = records.__getitems__(range(start, min(start + chunk, n)))
        shapes = {example[image].shape for example in examples}
        if images is None:
            images = np.zeros((n, *min(shapes)), np.uint8)
        if shapes != {images.shape[1:]}:
            raise DataError(
                f"the images of {name} differ in shape "
                f"({sorted(shapes | {images.shape[1:]})[:3]}, ...)"
            )
        images[start : start + len(examples)] = [example[image] for example in examples]
        if labels is not None:
            labels[start : start + len(examples)] = [example[label] for example in examples]
        if _numbers(examples[0].get("attributes")):
            attributes += [list(example["attributes"].values()) for example in examples]
    if images is None:
        raise DataError(f"{name} is empty")
    return Split(images, labels, np.array(attributes, np.float32) if attributes else None)


def _numbers(feature: Any) -> bool:
    """Whether a feature is several numbers by name, as the attributes of faces are."""
    if not isinstance(feature, dict):
        return False
    values = [np.asarray(value) for value in feature.values()]
    return len(values) > 1 and all(
        value.ndim == 0 and value.dtype.kind in "biuf" for value in values
    )


def _near(tfds: Any, name: str) -> str:
    known = [*tfds.list_builders(with_community_datasets=False), "digits", "shapes"]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, 3)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _prepare(tfds: Any, name: str, data_dir: Path) -> Any:
    """Downloads and prepares a set as array_record. Raises DataError if that cannot work."""
    if name == "digits":
        return _prepare_digits(tfds, data_dir)
    base = name.split("/")[0].split(":")[0]
    known = tfds.list_builders(with_community_datasets=False)
    if base not in known:
        raise DataError(
            f"no data set {base!r} in {data_dir} nor in tensorflow-datasets.{_near(tfds, base)}"
        )
    build = f"tfds build {name} --file_format=array_record --data_dir={data_dir}"
    without = "" if importlib.util.find_spec("tensorflow") else "pip install tensorflow && "
    if not _online():
        raise DataError(
            f"{name} is not prepared in {data_dir} and there is no network to download it; "
            f"where there is one, run `{without}{build}` and copy the folder here, "
            "or pass --data-dir with the folder that holds it."
        )
    try:
        builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        builder.download_and_prepare()
    except ImportError as error:
        raise DataError(
            f"{name} is not prepared in {data_dir}, and preparing it (not reading it) needs "
            f"{error.name or error}: run `{without}{build}`, "
            "or pass --data-dir with the folder that holds it."
        ) from error
    except Exception as error:
        raise DataError(
            f"{name} could not be prepared ({reason(error)}); to see all run `{build}`"
        ) from error
    return builder


def _online(seconds: float = 4.0) -> bool:
    """Whether the host of tensorflow-datasets answers. A name look-up that hangs counts as no."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(
                urllib.request.Request(PROBE, method="HEAD"), timeout=seconds
            ).close()
            answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)
        except (OSError, http.client.HTTPException):
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return bool(answers and answers[0])


def _prepare_digits(tfds: Any, data_dir: Path) -> Any:
    """Prepares scikit-learn's 1,797 handwritten digits, 8x8 with 17 levels, as a set."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits come with scikit-learn: pip install scikit-learn") from error

    class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Optical recognition of handwritten digits (Alpaydin & Kaynak 1998).

        These are the 1,797 images that come with scikit-learn.
        """

        name = "digits"
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(1797)
            return {
                "train": self._generate_examples(order[:1437]),
                "test": self._generate_examples(order[1437:]),
            }

        def _generate_examples(self, rows: np.ndarray) -> Any:
            digits = load_digits()
            for row in rows.tolist():
                yield (
                    row,
                    {
                        "image": digits.images[row][..., None].astype(np.uint8),
                        "label": int(digits.target[row]),
                    },
                )

    try:
        builder = Digits(data_dir=str(data_dir), file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare()
    except OSError as error:
        raise DataError(
            f"digits cannot be prepared in {data_dir} ({error}); "
            "pass --data-dir with a folder you may write to"
        ) from error
    return builder
