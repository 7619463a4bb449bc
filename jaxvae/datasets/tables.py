"""Tables: rows with columns of several kinds, some of whose cells are missing.

A row becomes D float32 numbers, in which nan is a missing cell. Cells of the kinds real, positive
and count are the numbers themselves. Cells of the kinds ordinal and categorical are the place of
their value among the column's levels: 0, 1, ... The kinds are inferred, and may be stated instead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvae.datasets.frames import is_number, pandas, read
from jaxvae.datasets.splits import DataError, Dataset, Split

REAL, POSITIVE, COUNT, ORDINAL, CATEGORICAL = KINDS = (
    *("real", "positive", "count"),
    *("ordinal", "categorical"),
)
LEVELLED = (ORDINAL, CATEGORICAL)
ORDINAL_LEVELS = 12  # a column of whole numbers with at most so many values is ordinal
COARSEST = 1e-2  # of a column's deviation; float32 must tell numbers apart that are so close


class Column(NamedTuple):
    """What is known of a column: its kind, and statistics of its observed training cells."""

    name: str
    kind: str
    loc: float = 0.0  # mean, of the logarithm if the kind is positive
    scale: float = 1.0  # standard deviation of the same
    low: float = 0.0  # least value
    high: float = 1.0  # largest value
    levels: tuple[str, ...] = ()  # the values of an ordinal or categorical column, in order

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Column:
        """The column that ``json`` has written."""
        return cls(**{**values, "levels": tuple(values["levels"])})

    def json(self) -> dict[str, Any]:
        """The column as config.json holds it."""
        return self._asdict() | {"levels": list(self.levels)}


# Kinds


def infer_kind(values: Any) -> str:
    """The kind of a column of a data frame.

    Words and truth values are categorical, and an ordered pandas category is ordinal. Two whole
    numbers are categorical, at most 12 are ordinal, and more from 0 on are counts. Other numbers
    are positive if all are above 0, else real.
    """
    types = pandas().api.types
    if isinstance(values.dtype, pandas().CategoricalDtype):
        return ORDINAL if values.dtype.ordered else CATEGORICAL
    if types.is_bool_dtype(values.dtype) or not types.is_numeric_dtype(values.dtype):
        return CATEGORICAL
    numbers = values.dropna().to_numpy(np.float64)
    if not np.array_equal(numbers, np.floor(numbers)):
        return POSITIVE if numbers.min() > 0 else REAL
    different = len(np.unique(numbers))
    if different <= ORDINAL_LEVELS:
        return CATEGORICAL if different == 2 else ORDINAL
    return COUNT if numbers.min() >= 0 else REAL


def columns_of(frame: Any, kinds: Mapping[str, Sequence[str]], drop: Sequence[str]) -> list[Column]:
    """The columns of a data frame, without statistics.

    ``kinds`` names the columns whose kind is stated, by kind. Raises DataError for a name that is
    no column, and for a column without values or with one value only.
    """
    stated = {name: kind for kind, names in kinds.items() for name in names}
    for name in (*stated, *drop):
        if name not in frame.columns:
            raise DataError(f"there is no column {name!r}; there are {', '.join(frame.columns)}")
    left = [name for name in frame.columns if name not in drop]
    if not left:
        raise DataError("every column is dropped: leave one at least")
    return [_column(name, frame[name], stated.get(name)) for name in left]


def _column(name: str, values: Any, kind: str | None) -> Column:
    known = values.dropna()
    if known.nunique() < 2:
        raise DataError(
            f"column {name!r} has {known.nunique()} different values, and a model needs two: "
            f"leave it out with --drop {name}"
        )
    kind = kind or infer_kind(values)
    if kind in LEVELLED:
        return Column(name, kind, levels=tuple(_levels(known)))
    return Column(name, kind)


def _levels(values: Any) -> list[str]:
    """The different values of a column, in order, as text."""
    if isinstance(values.dtype, pandas().CategoricalDtype):
        return [label(value) for value in values.dtype.categories]
    different = values.unique().tolist()
    return [label(value) for value in sorted(different, key=_order)]


def _order(value: Any) -> tuple[int, Any]:
    return (0, float(value)) if is_number(value) else (1, str(value))


def label(value: Any) -> str:
    """The text of a value; whole numbers have no point."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


# Cells as numbers


def numbers_of(frame: Any, columns: Sequence[Column]) -> np.ndarray:
    """The cells of a data frame as float32 numbers [N, D], nan where one is missing.

    Raises DataError for a column that is not there, and for a cell that its column cannot hold.
    """
    return _exact_numbers(frame, columns).astype(np.float32)


def _exact_numbers(frame: Any, columns: Sequence[Column]) -> np.ndarray:
    """The same in float64."""
    names = [column.name for column in columns]
    absent = [name for name in names if name not in frame.columns]
    if absent:
        raise DataError(
            f"the table has no column {absent[0]!r}; the model has the columns {', '.join(names)}: "
            "add it, with empty cells if all are missing"
        )
    return np.stack([_numbers(frame[column.name], column) for column in columns], 1)


def _numbers(values: Any, column: Column) -> np.ndarray:
    if column.kind in LEVELLED:
        place = {name: float(i) for i, name in enumerate(column.levels)}
        texts = [
            None if missing else label(value)
            for value, missing in zip(values.tolist(), values.isna().tolist(), strict=True)
        ]
        strange = sorted({text for text in texts if text is not None and text not in place})
        if strange:
            raise DataError(
                f"column {column.name!r} holds {strange[0]!r}, which training had not; its values "
                f"are {', '.join(column.levels)}: leave such cells empty"
            )
        return np.array([np.nan if text is None else place[text] for text in texts])
    try:
        numbers = values.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        word = next(v for v in values.dropna().tolist() if not is_number(v))
        raise DataError(
            f"column {column.name!r} is {column.kind}, and {word!r} is no number: state another "
            f"kind, such as --categorical {column.name}"
        ) from None
    _check(numbers[~np.isnan(numbers)], column)
    return numbers


def _check(numbers: np.ndarray, column: Column) -> None:
    """Raises DataError for numbers that the kind of a column excludes."""
    if not np.isfinite(numbers).all():
        raise DataError(f"column {column.name!r} holds infinite numbers: leave such cells empty")
    excluded = {
        POSITIVE: (numbers <= 0, "above 0"),
        COUNT: ((numbers < 0) | (numbers != np.floor(numbers)), "whole and from 0 on"),
    }.get(column.kind)
    if excluded is not None and excluded[0].any():
        raise DataError(
            f"column {column.name!r} is {column.kind}, so its cells are {excluded[1]}; one is "
            f"{numbers[excluded[0]][0]:g}: state another kind, such as --real {column.name}"
        )


def frame_of(numbers: np.ndarray, columns: Sequence[Column]) -> Any:
    """The data frame of cells as numbers [N, D]; counts are rounded."""
    cells = {column.name: _cells(numbers[:, i], column) for i, column in enumerate(columns)}
    return pandas().DataFrame(cells)


def _cells(numbers: np.ndarray, column: Column) -> Any:
    missing = np.isnan(numbers)
    if column.kind in LEVELLED:
        values: list[Any] = [float(v) if is_number(v) else v for v in column.levels]
        if all(isinstance(value, float) for value in values):
            return np.where(
                missing, np.nan, np.array(values)[np.where(missing, 0, numbers).astype(int)]
            )
        places = np.where(missing, -1, numbers).astype(int)
        return [None if place < 0 else column.levels[place] for place in places]
    return np.round(numbers) if column.kind == COUNT else numbers.astype(np.float64)


# Statistics


def normalized(
    columns: Sequence[Column], numbers: np.ndarray, standardize: bool = True
) -> list[Column]:
    """The columns with statistics of observed cells [N, D], which no other rows change.

    If ``standardize`` is false, real columns keep mean 0 and deviation 1, as they are scaled
    already.
    Raises DataError for a column without two observed values, and for one whose numbers float32
    does not tell apart.
    """
    every = [_with_statistics(column, numbers[:, i]) for i, column in enumerate(columns)]
    if standardize:
        return every
    return [c._replace(loc=0.0, scale=1.0) if c.kind == REAL else c for c in every]


def _with_statistics(column: Column, cells: np.ndarray) -> Column:
    seen = cells[~np.isnan(cells)]
    if len(np.unique(seen)) < 2:
        raise DataError(
            f"column {column.name!r} has {len(np.unique(seen))} different values among the "
            f"training rows, and a model needs two: leave it out with --drop {column.name}"
        )
    shown = np.log(seen) if column.kind == POSITIVE else seen
    loc, scale = float(shown.mean()), float(shown.std())
    if np.spacing(np.float32(np.abs(seen).max())) > COARSEST * seen.std():
        raise DataError(
            f"the numbers of column {column.name!r} are large beside their deviation, and float32 "
            f"does not tell them apart: subtract {np.round(seen.mean()):g} from them"
        )
    return column._replace(loc=loc, scale=scale, low=float(seen.min()), high=float(seen.max()))


def describe(columns: Sequence[Column], numbers: np.ndarray) -> str:
    """A line for each column: its name, kind, range or levels, and share of missing cells."""
    width = max(len(column.name) for column in columns)
    lines = []
    for column, cells in zip(columns, numbers.T, strict=True):
        if column.kind in LEVELLED:
            between = " < " if column.kind == ORDINAL else ", "
            values = between.join(column.levels)
            values = values if len(values) <= 60 else f"{len(column.levels)} levels"
        else:
            values = f"{column.low:g} to {column.high:g}"
        gaps = np.isnan(cells).mean()
        missing = f", {gaps:.1%} missing" if gaps else ""
        lines.append(f"  {column.name:<{width}}  {column.kind:<11}  {values}{missing}")
    return "\n".join(lines)


# Data sets


def hidden_cells(numbers: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Observed cells that are hidden from training to judge it by, [N, D], chosen by the seed.

    Every row and every column keeps one observed cell at least.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, len(numbers)]))
    draws = np.where(np.isnan(numbers), 2.0, generator.random(numbers.shape))
    hidden = draws < share
    for axis in (0, 1):
        full = (hidden | (draws == 2.0)).all(axis, keepdims=True)
        lowest = draws.argmin(axis)  # an observed cell of each column or row, if there is one
        keep = np.zeros_like(hidden)
        np.put_along_axis(keep, np.expand_dims(lowest, axis), True, axis)
        hidden &= ~(full & keep)
    return hidden


def load(
    source: Any,
    kinds: Mapping[str, Sequence[str]] | None = None,
    drop: Sequence[str] = (),
    known: Sequence[Column] | None = None,
    *,
    test_rows: float = 0.1,
    held_out_cells: float = 0.0,
    standardize: bool = True,
    seed: int = 0,
) -> Dataset[Split]:
    """The data set of a table, with its columns.

    Rows for the test are chosen by a fixed permutation. If cells are held out, ``train`` does not
    have them, and ``validation`` is the training rows with them.

    Args:
      source: what ``read`` takes, or ``{"train": ..., "test": ...}`` of it.
      kinds: the names of columns whose kind is stated, by kind.
      drop: columns that are left out.
      known: the columns of a trained model, with their statistics; None infers them.
      test_rows: the share of the rows that becomes ``test``; with 0 it is the training rows.
      held_out_cells: the share of observed training cells that is held out.
      standardize: as ``normalized`` takes it.
      seed: chooses the held-out cells.
    """
    if isinstance(source, Mapping) and "train" in source:
        frames = {part: read(each) for part, each in source.items()}
    else:
        frames = _with_test(read(source), test_rows)
    whole = pandas().concat(list(frames.values()), ignore_index=True)
    columns = list(known) if known else columns_of(whole, kinds or {}, drop)
    parts = {part: _exact_numbers(frame, columns) for part, frame in frames.items()}
    if held_out_cells:
        parts["validation"] = parts["train"]
        hidden = hidden_cells(parts["train"], held_out_cells, seed)
        parts["train"] = np.where(hidden, np.nan, parts["train"])
    columns = columns if known else normalized(columns, parts["train"], standardize)
    told = parts.get("validation", parts["train"])
    named = isinstance(source, str | os.PathLike)
    name = Path(source).name.split(".")[0] if named else "table"
    notes = (f"columns of {name}:\n{describe(columns, told)}",)
    splits = {part: Split(x.astype(np.float32)) for part, x in parts.items()}
    return Dataset(name, splits, notes=notes, columns=tuple(column.json() for column in columns))


def _with_test(frame: Any, share: float) -> dict[str, Any]:
    n = len(frame)
    if not share or n < 2:
        return {"train": frame, "test": frame}
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(n)
    count = min(max(int(n * share), 1), n - 1)
    rows = {"train": np.sort(order[count:]), "test": np.sort(order[:count])}
    return {part: frame.iloc[chosen].reset_index(drop=True) for part, chosen in rows.items()}
