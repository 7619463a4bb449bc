"""Data frames from files, arrays, and scikit-learn. pandas is imported when a table is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.datasets.splits import DataError, reason

FILES = (".csv", ".tsv", ".parquet", ".csv.gz", ".csv.xz", ".csv.bz2", ".csv.zip")
BUILT_IN = "breast_cancer"  # scikit-learn's, which needs no file
MISSING_WORDS = ["?", "NA", "nan", "NaN", "NULL", "null", "None", "N/A", "n/a", ""]


def pandas() -> Any:
    """The module. Raises DataError if it is not installed."""
    try:
        import pandas
    except ImportError:
        raise DataError("tables need pandas: pip install 'jaxvae[tabular]'") from None
    return pandas


def is_table_file(source: Any) -> bool:
    """Whether a source names a file of a table."""
    return isinstance(source, str | os.PathLike) and os.fspath(source).lower().endswith(FILES)


def read(source: Any) -> Any:
    """A data frame from a file, a data frame, an array [N, D], or the set ``breast_cancer``.

    The columns of an array, and of a file whose first line holds numbers only, are named column_1,
    column_2 and so on. Raises DataError for what is no table, and for an empty one.
    """
    frame = _read(source)
    where = source if isinstance(source, str | os.PathLike) else "the table"
    if 0 in frame.shape:
        raise DataError(
            f"{where} has {len(frame)} rows and {frame.shape[1]} columns: none may be 0"
        )
    frame.columns = [str(name) for name in frame.columns]
    twice = sorted({name for name in frame.columns if list(frame.columns).count(name) > 1})
    if twice:
        raise DataError(f"{where} has two columns {twice[0]!r}: rename one of them")
    return frame


def _read(source: Any) -> Any:
    pd = pandas()
    if isinstance(source, str) and source == BUILT_IN:
        return _breast_cancer()
    if isinstance(source, str | os.PathLike):
        return _read_file(Path(source).expanduser())
    if isinstance(source, pd.DataFrame):
        return source.reset_index(drop=True)
    array = np.asarray(source)
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise DataError(
            f"a table is a file, a data frame or numbers [N, D]; this is {array.dtype} of shape "
            f"{array.shape}"
        )
    return pd.DataFrame(array, columns=_numbered(array.shape[1]))


def _numbered(count: int) -> list[str]:
    return [f"column_{number}" for number in range(1, count + 1)]


def _read_file(path: Path) -> Any:
    pd = pandas()
    if not is_table_file(path):
        raise DataError(f"{path} is no table: give a file that ends in {', '.join(FILES)}")
    if not path.exists():
        raise DataError(f"there is no {path}: give a .csv or .parquet file, or {BUILT_IN}")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        kind = {"na_values": MISSING_WORDS, "keep_default_na": False}
        kind |= {"sep": "\t"} if path.suffix == ".tsv" else {"skipinitialspace": True}
        first = pd.read_csv(path, header=None, nrows=1, dtype=str, **kind)
        if first.map(is_number).all(axis=None):
            names = _numbered(first.shape[1])
            return pd.read_csv(path, header=None, names=names, **kind)
        return pd.read_csv(path, **kind)
    except Exception as error:
        raise DataError(f"{path} cannot be read as a table ({reason(error)})") from error


def is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True


def _breast_cancer() -> Any:
    """scikit-learn's 569 x 30 measurements, and the diagnosis."""
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        raise DataError(f"{BUILT_IN} comes with scikit-learn: pip install scikit-learn") from None
    found = load_breast_cancer()
    names = [name.replace(" ", "_") for name in found.feature_names]
    frame = pandas().DataFrame(found.data, columns=names)
    return frame.assign(diagnosis=found.target_names[found.target])
