"""The command ``annotate``, which writes what a model of counts says of single cells."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from jaxvae import evaluation
from jaxvae.datasets import DataError, single_cells
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
    split = expression.cells_of(trained, source)
    numbers = batch_numbers(trained, batches)
    groups = _groups(source, group_key, first, second)
    key = jax.random.key(seed)
    rows = [("cells", f"{len(split)}, step {trained.step}")]
    if out is not None:
        shares = expression.normalized(
            trained.model,
            trained.params,
            key,
            split,
            library=library,
            batches=numbers,
            num_samples=num_samples,
        )
        codes = evaluation.encode_split(trained.model, trained.params, key, split)
        _write(out, source, codes, shares, trained.data.genes)
        rows += [("codes", f"X_vae {codes.shape}"), ("written", str(out))]
    if groups is not None:
        differences = expression.differential(
            trained.model,
            trained.params,
            key,
            split,
            trained.data.genes,
            *groups,
            delta=delta,
            num_samples=pairs,
        ).sorted()
        file = table or workdir / "differences.csv"
        write_table(file, differences)
        rows += [("different genes", f"{differences.different.sum()}"), ("table", str(file))]
        _show(differences)
    reports.table(rows)


def _source(data: str) -> Any:
    """The AnnData object of an .h5ad file, or the data as they are named."""
    path = Path(data).expanduser()
    return single_cells.open_anndata(path) if path.suffix == ".h5ad" and path.exists() else data


def _check_out(data: str, out: Path | None) -> None:
    suffix = ".h5ad" if Path(data).suffix == ".h5ad" else ".npz"
    if out is not None and out.suffix != suffix:
        raise DataError(f"out={out} must end in {suffix}, as cells of {data} are written")
    if out is not None and not out.absolute().parent.is_dir():
        raise DataError(f"out={out}: its folder does not exist")


def batch_numbers(trained: Trained, names: tuple[str, ...]) -> list[int] | None:
    """The numbers of named batches. Raises DataError for a name that the model does not know."""
    known = list(trained.data.batches)
    if unknown := sorted(set(names) - set(known)):
        there = ", ".join(known) or "none: it was trained without batch_key"
        raise DataError(f"no batch {unknown[0]!r}; the model knows {there}")
    return [known.index(name) for name in names] or None


def _groups(
    source: Any, key: str | None, first: str | None, second: str | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """The cells of both groups, [N] bool each; None if none is asked for."""
    if key is None and first is None and second is None:
        return None
    if key is None or first is None:
        raise DataError("a table of differences needs group_key, a column, and first, a group")
    names = _column(source, key).astype(str)
    for name in (first, second):
        if name is not None and name not in names:
            there = ", ".join(np.unique(names).tolist())
            raise DataError(f"no cell has {key} {name!r}; there are {there}")
    if first == second:
        raise DataError(f"first={first} and second={second} must be two groups")
    return names == first, names != first if second is None else names == second


def _column(source: Any, key: str) -> np.ndarray:
    if not hasattr(source, "obs"):
        return single_cells.read(source).column(key)
    if key not in source.obs:
        raise DataError(f"no column {key!r} of cells; there are {', '.join(source.obs)}")
    return np.asarray(source.obs[key])


def _write(
    out: Path, source: Any, codes: np.ndarray, shares: np.ndarray, genes: tuple[str, ...]
) -> None:
    """Writes codes and expression beside all that the source holds."""
    if hasattr(source, "obsm"):
        source.obsm["X_vae"] = codes
        source.layers["normalized_expression"] = expression.in_order(
            shares, genes, source.var_names
        )
        source.write_h5ad(out)
        return
    cells = single_cells.read(source)
    named = {"X_vae": codes, "genes": np.array(cells.genes), "counts": cells.counts}
    ordered = expression.in_order(shares, genes, cells.genes)
    np.savez(out, **named, **cells.columns, normalized_expression=ordered)


def write_table(file: Path, differences: expression.Differences) -> None:
    """Writes a .csv file with a row for each gene."""
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(differences._fields)
        writer.writerows(zip(*differences, strict=True))


def _show(differences: expression.Differences) -> None:
    """Prints the likeliest differences."""
    print(f"{'gene':<16} {'P(different)':>12} {'log2 fold change':>17}")
    for gene, probability, change in zip(
        differences.gene[:SHOWN], differences.probability, differences.lfc_mean, strict=False
    ):
        print(f"{gene:<16} {probability:>12.3f} {change:>17.2f}")
