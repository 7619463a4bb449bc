"""The command ``annotate``, which writes what a model of counts says of single cells."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from jaxvae import evaluation
from jaxvae.contracts import Array
from jaxvae.datasets import DataError, Split, single_cells
from jaxvae.datasets.single_cells import Cells
from jaxvae.ranges import Amount, Count, Positive
from jaxvae.runs import reports
from jaxvae.runs.loading import Trained, load
from jaxvae.uses import expression

SHOWN = 10  # genes that are printed


def annotate(
    workdir: Annotated[Path, tyro.conf.Positional],
    data: Annotated[str, tyro.conf.Positional],
    out: Path | None = None,
    group_key: str | None = None,
    first: str | None = None,
    second: str | None = None,
    table: Path | None = None,
    delta: Amount = 0.25,
    library: Positive = 1e4,
    batches: tuple[str, ...] = (),
    num_samples: Count = 16,
    pairs: Count = 5000,
    seed: int = 0,
    checkpoint: str = "latest",
) -> None:
    """Writes codes and normalized expression of single cells, and differences of two groups.

    Codes go to obsm["X_vae"] of AnnData, or to the array X_vae of an .npz file; expression goes to
    layers["normalized_expression"], or to the array of this name.

    Args:
      workdir: the run folder of a model of counts, such as single-cell.
      data: the cells: an .h5ad or .npz file with the genes of the training, in any order.
      out: the file to write, with the suffix of the data; None writes none.
      group_key: column of the cells that tells the groups of the table of differences.
      first: the first group.
      second: the second group; None is all other cells.
      table: .csv file of the differences, a row for each gene; None is WORKDIR/differences.csv.
      delta: the least log2 fold change that counts as a difference.
      library: counts that the expression of a cell adds up to.
      batches: names of batches to read all cells in; none is the batch of each cell.
      num_samples: draws of z for each cell.
      pairs: pairs of draws of two cells for the table.
      seed: seed of the draws.
      checkpoint: latest, best, or a step.
    """
    trained, source = load(workdir, checkpoint), _source(data)
    _check_out(data, out)
    cells, split = expression.cells_of(trained, source)
    numbers = batch_numbers(trained, batches)
    groups = groups_of(cells, group_key, first, second)
    key, rows = jax.random.key(seed), [("cells", f"{len(split)}, step {trained.step}")]
    if out is not None:
        settings: Any = {"library": library, "batches": numbers, "num_samples": num_samples}
        _write(out, trained, source, key, settings)
        rows.append(("written", str(out)))
    if groups is not None:
        found = _differences(trained, split, key, groups, delta, pairs)
        file = table or workdir / "differences.csv"
        write_table(file, found)
        _show(found)
        rows += [("different genes", f"{found.different.sum()}"), ("table", str(file))]
    reports.table(rows)


def _source(data: str) -> Any:
    """The AnnData object of an .h5ad file, or the data as they are named."""
    path = Path(data).expanduser()
    return single_cells.open_anndata(path) if path.suffix == ".h5ad" and path.exists() else data


def _check_out(data: str, out: Path | None) -> None:
    """Raises DataError for a file that cannot be written, before anything is computed."""
    suffix = ".h5ad" if Path(data).suffix == ".h5ad" else ".npz"
    if out is not None and out.suffix != suffix:
        raise DataError(f"out={out} must end in {suffix}, as cells of {data} are written")
    if out is not None and not out.absolute().parent.is_dir():
        raise DataError(f"out={out}: its folder does not exist")


def batch_numbers(trained: Trained, names: tuple[str, ...]) -> list[int] | None:
    """The numbers of named batches, or None if none is named.

    Raises DataError for a name that the model does not know.
    """
    known = list(trained.data.batches)
    if unknown := sorted(set(names) - set(known)):
        there = ", ".join(known) or "none: it was trained without batch_key"
        raise DataError(f"no batch {unknown[0]!r}; the model knows {there}")
    return [known.index(name) for name in names] or None


def groups_of(
    cells: Cells, key: str | None, first: str | None, second: str | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """The cells of both groups, [N] bool each; None if none is asked for.

    Raises DataError for a group that has no cells.
    """
    if key is None and first is None and second is None:
        return None
    if key is None or first is None:
        raise DataError("a table of differences needs group_key, a column, and first, a group")
    names = cells.column(key).astype(str)
    for name in (first, second):
        if name is not None and name not in names:
            there = ", ".join(np.unique(names).tolist())
            raise DataError(f"no cell has {key} {name!r}; there are {there}")
    if first == second or (second is None and (names == first).all()):
        raise DataError(f"first={first} and second={second or 'all others'} must be two groups")
    return names == first, names != first if second is None else names == second


def _write(out: Path, trained: Trained, source: Any, key: Array, settings: Any) -> None:
    """Writes codes and expression beside all that the source holds."""
    if hasattr(source, "obsm"):
        expression.annotate(trained, source, key, **settings)
        single_cells.write_anndata(source, out)
        return
    cells, split = expression.cells_of(trained, source)
    table = expression.normalized(trained.model, trained.params, key, split, **settings)
    arrays: dict[str, Any] = {
        **cells.columns,
        "genes": np.array(cells.genes),
        "counts": cells.counts,
        "X_vae": evaluation.encode_split(trained.model, trained.params, key, split),
        "normalized_expression": expression.in_order(table, trained.data.genes, cells.genes),
    }
    np.savez(out, **arrays)


def _differences(
    trained: Trained,
    split: Split,
    key: Array,
    groups: tuple[np.ndarray, np.ndarray],
    delta: float,
    pairs: int,
) -> expression.Differences:
    """The table of differences, the likeliest first."""
    return expression.differential(
        trained.model,
        trained.params,
        key,
        split,
        trained.data.genes,
        *groups,
        delta=delta,
        num_samples=pairs,
    ).sorted()


def write_table(file: Path, differences: expression.Differences) -> None:
    """Writes a .csv file with a row for each gene."""
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(differences._fields)
        writer.writerows(zip(*differences, strict=True))


def _show(differences: expression.Differences) -> None:
    """Prints the likeliest differences."""
    print(f"{'gene':<16} {'P(different)':>12} {'log2 fold change':>17}")
    columns = differences.gene[:SHOWN], differences.probability, differences.lfc_mean
    for gene, probability, change in zip(*columns, strict=False):
        print(f"{gene:<16} {probability:>12.3f} {change:>17.2f}")
