"""The command ``impute``: the missing cells of a table, filled by a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from jaxvae.datasets import DataError, tables
from jaxvae.datasets.tables import Column
from jaxvae.families.tabular import columns_of
from jaxvae.runs import folders, reports
from jaxvae.runs.loading import Trained, load
from jaxvae.uses import missing

FEW = 10.0  # effective samples of a row below which its importance samples are not to be trusted


def impute(
    workdir: Annotated[Path, tyro.conf.Positional],
    data: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    method: Literal[missing.METHODS] = "importance",  # type: ignore[valid-type]
    num_samples: int = 1000,
    draws: int = 0,
    interval: float = 0.9,
    truth: Path | None = None,
    seed: int = 0,
    checkpoint: str = "best",
) -> None:
    """Fills the missing cells of a table by a trained model, with intervals.

    Writes OUT with the mean of each missing cell (the median level of an ordinal column, the
    likeliest category), the ends of intervals beside it as OUT-low and OUT-high, multiple
    imputations as OUT-draw-1 and so on, and what was found of rows as OUT.json.

    Args:
      workdir: the run folder of a model of tables, such as tabular.
      data: a .csv or .parquet file with the columns of the model.
      out: file to write; None is WORKDIR/imputed/NAME.csv.
      method: importance sampling; metropolis, Gibbs sampling with a Metropolis test; or gibbs, the
        pseudo-Gibbs sampler, which the encoder biases.
      num_samples: importance samples of each row, or steps of its chain.
      draws: multiple imputations to write, each one draw of all missing cells.
      interval: the probability of the interval of each cell.
      truth: a table with the missing cells, to report errors and coverage.
      seed: the seed of the draws.
      checkpoint: best, latest, or a step.
    """
    if num_samples < 1 or draws < 0 or not 0 < interval < 1:
        raise ValueError(
            "--num-samples must be at least 1, --draws at least 0, and --interval between 0 and 1"
        )
    trained = load(workdir, checkpoint)
    columns = columns_of_run(trained, workdir)
    frame = tables.read(data)
    x = tables.numbers_of(frame, columns)
    if not np.isnan(x).any():
        raise DataError(f"{data} has no missing cell in the columns of the model")
    known = None if truth is None else truth_of(truth, x, columns)
    place = out or workdir / "imputed" / f"{data.name.split('.')[0]}.csv"
    found = imputed(trained, x, method, num_samples, draws, interval, seed)
    place.parent.mkdir(parents=True, exist_ok=True)
    written = _write(place, frame, found, columns, draws)
    rows = [("missing cells", f"{np.isnan(x).sum():,} of {x.size:,}"), _quality(found, x, method)]
    report: dict[str, Any] = {"method": method, "quality": found.quality.tolist()}
    if known is not None:
        errors = errors_of(columns, x, known, found)
        report |= errors.json(columns)
        rows += errors.rows(interval)
    folders.write_json(place.with_suffix(".json"), report)
    reports.table([*rows, ("written", ", ".join(map(str, written)))])


def columns_of_run(trained: Trained, workdir: Path) -> tuple[Column, ...]:
    """The columns of a trained model. Raises ValueError if it is of no table."""
    if not trained.data.columns:
        raise ValueError(
            f"{workdir} is no model of tables: train one, such as jaxvae train tabular"
        )
    return columns_of(trained.data)


def truth_of(truth: Path, x: np.ndarray, columns: tuple[Column, ...]) -> np.ndarray:
    """The numbers of a table with the missing cells of another. Raises DataError for another."""
    whole = tables.numbers_of(tables.read(truth), columns)
    if whole.shape != x.shape or not np.array_equal(whole[~np.isnan(x)], x[~np.isnan(x)]):
        raise DataError(f"{truth} is not the same table: its observed cells are other ones")
    return whole


def imputed(
    trained: Trained,
    x: np.ndarray,
    method: str = "importance",
    num_samples: int = 1000,
    draws: int = 0,
    interval: float = 0.9,
    seed: int = 0,
) -> missing.Imputation:
    """The imputation of the rows that have missing cells; the others stay.

    Args:
      trained: a trained model of tables.
      x: rows of cells as numbers, [N, D].
      method: one of ``missing.METHODS``.
      num_samples: importance samples, or steps of a chain.
      draws: multiple imputations.
      interval: the probability of intervals.
      seed: the seed of all draws.
    """
    rows = np.flatnonzero(np.isnan(x).any(1))
    key = jax.random.key(seed)
    part = missing.impute(
        trained.model, trained.params, key, x[rows], method, num_samples, draws, interval
    )
    draws_of_all = np.repeat(x[:, None], draws, 1)
    whole: Any = (*np.repeat(x[None], 3, 0), draws_of_all, np.full(len(x), np.nan, np.float32))
    for all_rows, some in zip(whole, part, strict=True):
        all_rows[rows] = some
    return missing.Imputation(*whole)


def _quality(found: missing.Imputation, x: np.ndarray, method: str) -> tuple[str, str]:
    values = np.asarray(found.quality)[np.isnan(x).any(1)]
    if method != "importance":
        return "accepted proposals", f"{values.mean():.1%} in the mean, least {values.min():.1%}"
    few = (values < FEW).mean()
    advice = "; more samples help, or --method metropolis" if few else ""
    text = f"{values.mean():.0f} in the mean, least {values.min():.1f}"
    return "effective samples", f"{text}, below {FEW:g} in {few:.1%} of the rows{advice}"


def _write(
    place: Path, frame: Any, found: missing.Imputation, columns: tuple[Column, ...], draws: int
) -> list[Path]:
    """Writes the tables. Columns that the model does not know are written as they were."""
    parts = {"": found.point, "-low": found.low, "-high": found.high}
    parts |= {f"-draw-{i + 1}": found.draws[:, i] for i in range(draws)}
    files = []
    for ending, numbers in parts.items():
        table = frame.copy()
        for name, cells in tables.frame_of(np.asarray(numbers), columns).items():
            table[name] = table[name].astype(object).where(table[name].notna(), cells)
        file = place.with_name(f"{place.stem}{ending}{place.suffix}")
        if file.suffix == ".parquet":
            table.infer_objects().to_parquet(file, index=False)
        else:
            table.to_csv(file, index=False)
        files.append(file)
    return files


class Errors(NamedTuple):
    """How far imputed cells are from the truth, in the mean over missing cells of each column."""

    hi_vae: np.ndarray  # [D]: wrong categories; |shift| / levels; RMSE / range
    squared: np.ndarray  # [D]: squared error in deviations of the column; nan if categorical
    covered: np.ndarray  # [D]: the share of cells inside of their interval; nan if categorical
    cells: np.ndarray  # [D]: missing cells whose truth is known

    def mean(self, name: str) -> float:
        """A number over all missing cells; ``hi_vae`` is a mean over columns."""
        values = getattr(self, name)
        known = ~np.isnan(values)
        weights = np.ones(known.sum()) if name == "hi_vae" else self.cells[known]
        return float(np.average(values[known], weights=weights)) if known.any() else float("nan")

    def rows(self, interval: float) -> list[tuple[str, str]]:
        """The rows of a table."""
        return [
            ("mean squared error", f"{self.mean('squared'):.4f} squared deviations"),
            ("error as HI-VAE counts", f"{self.mean('hi_vae'):.4f} in the mean of the columns"),
            (f"in {interval:.0%} intervals", f"{self.mean('covered'):.1%} of the cells"),
        ]

    def json(self, columns: tuple[Column, ...]) -> dict[str, Any]:
        """All numbers, by column."""
        return {
            name: {"mean": self.mean(name)}
            | {
                column.name: None if np.isnan(value) else float(value)
                for column, value in zip(columns, getattr(self, name), strict=True)
            }
            for name in ("hi_vae", "squared", "covered")
        }


def errors_of(
    columns: tuple[Column, ...], x: np.ndarray, truth: np.ndarray, found: missing.Imputation
) -> Errors:
    """The errors of an imputation of rows x [N, D], beside the truth [N, D].

    Ranges are of all known cells of a column, as in Nazabal et al. 2018, arXiv:1807.03653, sec. 4.
    """
    each: list[tuple[float, float, float, int]] = []
    for i, column in enumerate(columns):
        asked = np.isnan(x[:, i]) & ~np.isnan(truth[:, i])
        if not asked.any():
            each.append((np.nan, np.nan, np.nan, 0))
            continue
        real = truth[asked, i].astype(np.float64)
        shift = np.asarray(found.point)[asked, i] - real
        inside = (np.asarray(found.low)[asked, i] <= real) & (
            real <= np.asarray(found.high)[asked, i]
        )
        squared, covered = (shift**2).mean() / np.nanvar(truth[:, i]), inside.mean()
        if column.kind == tables.CATEGORICAL:
            error, squared, covered = (shift != 0).mean(), np.nan, np.nan
        elif column.kind == tables.ORDINAL:
            error = np.abs(shift).mean() / len(column.levels)
        else:
            error = np.sqrt((shift**2).mean()) / (np.nanmax(truth[:, i]) - np.nanmin(truth[:, i]))
        each.append((error, squared, covered, int(asked.sum())))
    return Errors(*(np.array(values) for values in zip(*each, strict=True)))
