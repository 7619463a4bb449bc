"""Counts of single cells, from AnnData, its ``.h5ad`` files, or ``.npz`` files.

An ``.npz`` file of cells holds ``counts`` [N, G], integers, and ``genes`` [G], their names. Other
arrays [N] are columns, such as the batch of each cell, and other arrays [N, G] are layers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvae.datasets.splits import DataError, reason

GENERATED = "cells"  # the name of the small set that is drawn from a known model


class Cells(NamedTuple):
    """Counts of single cells, and what is known of each cell."""

    name: str
    counts: np.ndarray  # [N, G] of the smallest unsigned type that holds them
    genes: tuple[str, ...]
    columns: Mapping[str, np.ndarray]  # name -> [N]

    def column(self, key: str) -> np.ndarray:
        """A column of the cells, [N]. Raises DataError for a name that is none."""
        if key not in self.columns:
            there = ", ".join(self.columns) or "none"
            raise DataError(f"{self.name} has no column {key!r} of cells; it has {there}")
        return np.asarray(self.columns[key])

    def of_genes(self, genes: Sequence[str]) -> Cells:
        """The cells with their genes in another order.

        Raises DataError that names a gene if the genes are not the same.
        """
        place = {gene: i for i, gene in enumerate(self.genes)}
        missing = [gene for gene in genes if gene not in place]
        more = sorted(set(self.genes) - set(genes))
        if missing or more:
            lacks = [f"lacks {len(missing)} genes, such as {missing[0]}"] if missing else []
            has = [f"has {len(more)} others, such as {more[0]}"] if more else []
            raise DataError(
                f"{self.name} {' and '.join(lacks + has)}: give it the {len(genes)} genes that the "
                "model was trained on"
            )
        order = np.array([place[gene] for gene in genes])
        return self._replace(counts=self.counts[:, order], genes=tuple(genes))

    def library(self, key: str | None) -> np.ndarray:
        """The counts of each cell over all genes, [N] float32.

        They are a column, or the sums of the counts if ``key`` is None. Raises DataError for a cell
        without counts, and for a column below the sum, which would be no total.
        """
        sums = self.counts.sum(1, dtype=np.int64)
        total = sums if key is None else _numbers(self.column(key), key, self.name)
        wrong = np.flatnonzero(~(np.isfinite(total) & (total > 0)))
        if len(wrong):
            raise DataError(
                f"{self.name}: cell {wrong[0]} has a library size of {total[wrong[0]]:g}, and it "
                "must be above 0: leave out cells without counts"
            )
        low = np.flatnonzero(total < sums)
        if len(low):
            raise DataError(
                f"{self.name}: size_factor_key={key} is {total[low[0]]:g} for cell {low[0]}, whose "
                f"genes have {sums[low[0]]} counts: it must be the total over all genes"
            )
        return np.asarray(total, np.float32)

    def batch_numbers(self, key: str | None, known: Sequence[str]) -> np.ndarray:
        """The number of each cell's batch among the known ones, [N]; zeros if ``key`` is None.

        Raises DataError that names a batch which is not known.
        """
        if key is None:
            return np.zeros(len(self.counts), np.int32)
        names, place = self.column(key).astype(str), {name: i for i, name in enumerate(known)}
        if strange := sorted(set(names.tolist()) - set(known)):
            raise DataError(
                f"{self.name} has cells of the batch {strange[0]!r}, and the model knows "
                f"{', '.join(known)}"
            )
        return np.array([place[name] for name in names.tolist()], np.int32)


def read(source: Any, layer: str | None = None) -> Cells:
    """Counts of single cells from a file or an AnnData object.

    ``source`` is an ``AnnData``, an ``.h5ad`` or ``.npz`` file, or ``cells``, which are generated.
    Raises DataError for counts that are not integers, and names a gene and a cell.

    >>> from jaxvae.datasets import single_cells
    >>> single_cells.read("cells").counts.shape
    (400, 30)

    Args:
      source: where the counts are.
      layer: name of the layer that holds them; None is ``X`` of AnnData, or ``counts``.
    """
    if hasattr(source, "obs_names") and hasattr(source, "var_names"):
        return of_anndata(source, layer)
    if isinstance(source, str) and source == GENERATED:
        return generated()
    if not isinstance(source, str | os.PathLike):
        raise DataError(
            f"counts of cells come from AnnData or a file; this is a {type(source).__name__}"
        )
    path = Path(source).expanduser()
    if path.suffix not in READERS:
        raise DataError(
            f"{source} holds no counts of cells: give an .h5ad or .npz file, or cells, which are "
            "generated"
        )
    if not path.exists():
        raise DataError(f"there is no {path}: give an .h5ad or .npz file of counts")
    return READERS[path.suffix](path, layer)


def of_anndata(adata: Any, layer: str | None = None, name: str = "adata") -> Cells:
    """The counts of an AnnData object, in X or a layer."""
    if layer is not None and layer not in adata.layers:
        there = ", ".join(adata.layers) or "none"
        raise DataError(f"{name} has no layer {layer!r}; it has {there}")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise DataError(f"{name} has no X: name the layer that holds the counts")
    genes = tuple(map(str, adata.var_names))
    shown = "X" if layer is None else f"layer {layer}"
    instead = f" ({', '.join(adata.layers)})" if len(adata.layers) else ""
    counts = _integers(matrix, genes, f"{shown} of {name}", instead)
    columns = {str(key): np.asarray(adata.obs[key]) for key in adata.obs.columns}
    return _checked(Cells(name, counts, genes, columns))


def open_anndata(path: Path) -> Any:
    """The AnnData object of an ``.h5ad`` file."""
    try:
        import anndata
    except ImportError as error:
        raise DataError(f"{path} is a file of AnnData: pip install 'jaxvae[cells]'") from error
    try:
        return anndata.read_h5ad(path)
    except Exception as error:
        raise DataError(f"{path} cannot be read as AnnData ({reason(error)})") from error


def write_anndata(adata: Any, path: Path) -> None:
    """Writes an ``.h5ad`` file. Strings of pandas 3 are written as anndata 0.11 and later read."""
    import anndata

    with anndata.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(path)


def _of_h5ad(path: Path, layer: str | None) -> Cells:
    return of_anndata(open_anndata(path), layer, path.name)


def _of_npz(path: Path, layer: str | None) -> Cells:
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:
        raise DataError(f"{path} cannot be read as an archive ({reason(error)})") from error
    key = layer or "counts"
    if key not in arrays or "genes" not in arrays:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; expected {key} [N, G] and genes [G]"
        )
    genes = tuple(map(str, arrays["genes"].tolist()))
    if arrays[key].ndim != 2:
        raise DataError(f"{path}: {key} has shape {arrays[key].shape}; it must be [N, G]")
    if len(genes) != arrays[key].shape[1]:
        raise DataError(f"{path} names {len(genes)} genes, and has {key} of {arrays[key].shape[1]}")
    layers = [k for k, a in arrays.items() if a.shape == arrays[key].shape and k != key]
    instead = f" ({', '.join(layers)})" if layers else ""
    counts = _integers(arrays[key], genes, f"{key} of {path.name}", instead)
    columns = {k: a for k, a in arrays.items() if a.shape == counts.shape[:1] and k != "genes"}
    return _checked(Cells(path.stem, counts, genes, columns))


READERS = {".h5ad": _of_h5ad, ".npz": _of_npz}


def _checked(cells: Cells) -> Cells:
    """Raises DataError for no cells, and for genes that are not unique."""
    (rows, columns), genes = cells.counts.shape, cells.genes
    if not rows or not columns:
        raise DataError(f"{cells.name} holds {rows} cells and {columns} genes: it is empty")
    if len(set(genes)) != len(genes):
        twice = next(gene for gene in genes if genes.count(gene) > 1)
        raise DataError(f"{cells.name} has the gene {twice} more than once: make names unique")
    return cells


def _integers(matrix: Any, genes: tuple[str, ...], what: str, instead: str) -> np.ndarray:
    """Counts [N, G] in the smallest unsigned type. Sparse matrices are checked before.

    Args:
      matrix: [N, G], dense or sparse as SciPy's.
      genes: their names.
      what: the name of the matrix, for errors.
      instead: other layers, for errors.
    """
    sparse = hasattr(matrix, "tocsr")
    values = np.asarray(matrix.tocsr().data if sparse else matrix)
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise DataError(f"{what} holds {values.dtype}, and counts are integers")
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= 0) & (values == np.floor(values)) & (values < 2**32))
    if wrong.any():
        place = int(np.flatnonzero(wrong.ravel())[0])
        raise DataError(
            f"{what} holds {values.ravel()[place]:.4g} for the gene "
            f"{genes[_gene(matrix, place)]}, and counts are integers from 0: name a layer of raw "
            f"counts{instead}"
        )
    largest = int(values.max(initial=0))
    kind = next(t for t in (np.uint8, np.uint16, np.uint32) if largest <= np.iinfo(t).max)
    return (matrix.astype(kind).toarray() if sparse else values.astype(kind)).reshape(matrix.shape)


def _gene(matrix: Any, place: int) -> int:
    """The column of the value at a place of a matrix, dense or sparse."""
    if hasattr(matrix, "tocsr"):
        return int(matrix.tocsr().indices[place])
    return place % matrix.shape[1]


def _numbers(column: np.ndarray, key: str, name: str) -> np.ndarray:
    try:
        return column.astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{name}: size_factor_key={key} holds words; it must be numbers") from None


def generated(cells: int = 400, genes: int = 30, seed: int = 0) -> Cells:
    """Cells of three types in two batches, drawn from gamma-Poisson counts.

    Each type has marker genes, and the second batch reads some genes less often. ``n_counts`` are
    totals over all genes, of which the named ones hold a half.
    """
    rng = np.random.default_rng(seed)
    types, batches = rng.integers(3, size=cells), rng.integers(2, size=cells)
    log_rate = np.broadcast_to(rng.normal(size=genes), (3, genes)).copy()
    for kind in range(3):
        log_rate[kind, kind::6] += 2.0
    share = np.exp(log_rate)
    share = 0.5 * share / share.sum(1, keepdims=True)
    seen = np.exp(np.stack([np.zeros(genes), -1.0 * (rng.random(genes) < 0.3)]))
    total = rng.lognormal(6.0, 0.4, size=cells)
    mean = total[:, None] * share[types] * seen[batches]
    counts = rng.poisson(mean * rng.gamma(4.0, 0.25, size=mean.shape)).astype(np.uint16)
    columns = {
        "n_counts": np.maximum(np.round(total), counts.sum(1)),
        "batch": np.array(["first", "second"])[batches],
        "type": np.array(["A", "B", "C"])[types],
    }
    return Cells(GENERATED, counts, tuple(f"gene_{i}" for i in range(genes)), columns)
