"""Counts of single cells: likelihoods, markers and codes of blood cells, and two batches.

``python experiments/papers/cells.py --dataset pbmc68k_counts.h5ad --group-key bulk_labels``
``python experiments/papers/cells.py --table batches --dataset pbmc_two_batches.h5ad
--batch-key batch --proteins protein_expression``

Table ``likelihoods``: log p of held-out cells in nats, and its difference from the negative
binomial's, paired by cell, with its standard error. Then the accuracy of the 15 nearest neighbours
for the cells' types, over five folds, from codes and from principal components. *rank* is the place
of a marker gene among the genes that ``--group`` expresses more than all other cells.

Table ``batches``: *mixing* is the share of the 15 nearest neighbours that are of another batch,
over the share that it would be without any order: 1 is perfect. Codes that say nothing would be
mixed best, so *proteins* is how much of the variance of log protein counts the neighbours explain,
over five folds; means of each batch are taken off. Principal components are of log(1 + 10^4 x / l).
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from experiments import tables
from jaxvae import datasets, evaluation, families, runs
from jaxvae.command_line import run_function
from jaxvae.datasets import single_cells
from jaxvae.families import counts
from jaxvae.uses import expression

NEIGHBOURS, FOLDS, COMPONENTS = 15, 5, 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    table: Literal["likelihoods", "batches"] = "likelihoods"
    """Which table."""
    dataset: str = "cells"
    """An .h5ad or .npz file of counts, or cells, which are generated."""
    hidden: tuple[int, ...] = (128,)
    steps: int = 3000
    batch_size: int = 128
    learning_rate: float = 3e-3
    size_factor_key: str | None = "n_counts"
    """Column with the counts of each cell over all genes."""
    batch_key: str | None = None
    """Column with the batch of each cell."""
    group_key: str | None = None
    """Column with the type of each cell; None leaves types out."""
    group: str = "CD19+ B"
    """Type whose markers are looked for."""
    markers: tuple[str, ...] = ("CD79A", "MS4A1")
    """Genes that are known to be of this type."""
    proteins: str | None = None
    """Array in obsm with the proteins of each cell; None leaves them out."""
    genes: int | None = None
    """Genes that are kept, those whose log(1 + 10^4 x / l) varies most; None keeps all."""
    held_out: int = 100
    """Cells that are held out."""
    num_samples: int = 500
    """Importance samples K of log p."""


LIKELIHOODS: dict[str, dict[str, Any]] = {
    "negative binomial": {"likelihood": "negative_binomial"},
    "Poisson": {"likelihood": "poisson"},
    "zero-inflated": {"likelihood": "zero_inflated_negative_binomial"},
}
BATCHES: dict[str, dict[str, Any]] = {
    "batch given": {},
    "batch not given": {"batch_key": None},
    "principal components": {},
}
ROWS = {"likelihoods": LIKELIHOODS, "batches": BATCHES}


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Counts of single cells: likelihoods, markers, types and batches."""
    rows = options.chosen(ROWS[options.table])
    source = kept(options, _source(options))
    cells = single_cells.read(source)
    results: tables.Results = {}
    per_cell: dict[int, np.ndarray] = {}
    for name, settings in rows.items():
        for seed in range(options.seeds):
            start = time.perf_counter()
            if name == "principal components":
                cell = of_codes(options, source, cells, components(options, cells))
            else:
                run, params = trained(options, cells, settings, seed)
                split = expression.cells_of(run, source)[1]
                codes = evaluation.encode_split(run.built.model, params, run.key, split)
                cell = of_codes(options, source, cells, codes)
                if options.table == "likelihoods":
                    cell = held_out(options, run, params, per_cell, seed) | cell
                    cell |= ranks(options, run, params, source, cells)
            cell |= {"seconds": time.perf_counter() - start}
            results.setdefault(name, []).append(cell)
            print(f"{name}, seed {seed}: {cell}", flush=True)
    tables.show(results)
    tables.save(options.json, dataclasses.asdict(options), results)


def _source(options: Options) -> Any:
    path = Path(options.dataset)
    return single_cells.open_anndata(path) if path.suffix == ".h5ad" else options.dataset


def kept(options: Options, source: Any) -> Any:
    """AnnData of the genes that vary most; they need size factors, the totals over all genes."""
    if options.genes is None:
        return source
    if not hasattr(source, "var_names") or options.size_factor_key is None:
        raise ValueError("--genes needs an .h5ad file and --size-factor-key")
    spread = logs_of(options, single_cells.read(source)).std(0)
    return source[:, np.sort(np.argsort(-spread)[: options.genes])].copy()


def logs_of(options: Options, cells: single_cells.Cells) -> np.ndarray:
    """log(1 + 10^4 x / l), [N, G]."""
    return np.log1p(1e4 * cells.counts / cells.library(options.size_factor_key)[:, None])


def trained(
    options: Options, cells: single_cells.Cells, settings: dict[str, Any], seed: int
) -> tuple[runs.Run, Any]:
    """The model of a row, trained on all cells but those that are held out."""
    keys = {"batch_key": options.batch_key, "size_factor_key": options.size_factor_key}
    config: Any = options.applied(families.preset("single-cell"), seed=seed)
    config = families.changed(config, **keys | settings)
    whole = counts.dataset_of(config, cells)
    split = datasets.Split(cells.counts, attributes=counts.read_as(config, cells)[1])
    order = np.random.default_rng(0).permutation(len(split))
    test, train = np.split(order, [options.held_out])
    splits = {"train": split.take(np.sort(train)), "test": split.take(np.sort(test))}
    run = runs.prepare(config, options.job, whole._replace(splits=splits))
    return run, run.built.parameters(run.fit(num_steps=config.steps))


def held_out(
    options: Options, run: runs.Run, params: Any, per_cell: dict[int, np.ndarray], seed: int
) -> dict[str, float]:
    """log p of held-out cells, and its difference from the first row's, which is kept.

    Args:
      options: how many samples are drawn.
      run: the run of a row.
      params: what it has learned.
      per_cell: log p of each cell in the first row, by seed.
      seed: the seed.
    """
    values = evaluation.log_likelihoods(
        run.built.model, params, run.key, run.test, num_samples=options.num_samples
    )
    change = values - per_cell.setdefault(seed, values)
    error = lambda each: float(each.std(ddof=1) / np.sqrt(len(each)))
    return {
        "log p": float(values.mean()),
        "its error": error(values),
        "from first": float(change.mean()),
        "its error, paired": error(change),
    }


def ranks(
    options: Options, run: runs.Run, params: Any, source: Any, cells: single_cells.Cells
) -> dict[str, float]:
    """The places of the markers among the genes that the group expresses more, from 1 on.

    Args:
      options: the group and its markers.
      run: the run of a row.
      params: what it has learned.
      source: the cells as the model reads them.
      cells: the cells.
    """
    if options.group_key is None:
        return {}
    of_group = cells.column(options.group_key).astype(str) == options.group
    split = expression.cells_of(run, source)[1]
    found = expression.differential(
        run.built.model, params, run.key, split, run.record.data.genes, of_group, ~of_group
    ).sorted()
    higher = [g for g, change in zip(found.gene, found.lfc_mean, strict=True) if change > 0]
    print(f"higher in {options.group}: {', '.join(higher[:10])}")
    place = {gene: float(i) for i, gene in enumerate(higher, 1)}
    return {f"rank of {gene}": place.get(gene, float("nan")) for gene in options.markers}


def components(options: Options, cells: single_cells.Cells) -> np.ndarray:
    """Principal components of log(1 + 10^4 x / l), [N, 10]."""
    from sklearn.decomposition import PCA

    logs = logs_of(options, cells)
    return PCA(min(COMPONENTS, logs.shape[1]), random_state=0).fit_transform(logs)


def of_codes(
    options: Options, source: Any, cells: single_cells.Cells, codes: np.ndarray
) -> dict[str, float]:
    """What the nearest neighbours among codes [N, D] say of types, batches and proteins."""
    numbers = {}
    if options.group_key is not None:
        types = cells.column(options.group_key).astype(str)
        numbers["accuracy"] = accuracy(codes, types)
        numbers["accuracy of PCA"] = accuracy(components(options, cells), types)
    if options.batch_key is not None:
        batches = cells.column(options.batch_key).astype(str)
        numbers["mixing"] = mixing(codes, batches)
        if options.proteins is not None:
            proteins = np.log1p(np.asarray(source.obsm[options.proteins], np.float64))
            numbers["proteins"] = explained(codes, centred(proteins, batches))
    return numbers


def centred(values: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """Values [N, P] less their means in each batch."""
    return values - np.stack([values[batches == batch].mean(0) for batch in batches])


def accuracy(codes: np.ndarray, types: np.ndarray) -> float:
    """Accuracy of the nearest neighbours, over five folds with shares of types as in all cells."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return float(cross_val_score(KNeighborsClassifier(NEIGHBOURS), codes, types, cv=folds).mean())


def explained(codes: np.ndarray, values: np.ndarray) -> float:
    """The share of the variance of values [N, P] that the nearest neighbours explain, R^2."""
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.neighbors import KNeighborsRegressor

    folds = KFold(FOLDS, shuffle=True, random_state=0)
    said = cross_val_predict(KNeighborsRegressor(NEIGHBOURS), codes, values, cv=folds)
    rest = ((values - said) ** 2).sum(0) / ((values - values.mean(0)) ** 2).sum(0)
    return float(1 - rest.mean())


def mixing(codes: np.ndarray, batches: np.ndarray) -> float:
    """The share of neighbours of another batch, over that of cells in no order."""
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(codes).kneighbors(return_distance=False)
    others = np.mean(batches[near] != batches[:, None])
    _, sizes = np.unique(batches, return_counts=True)
    n = len(batches)
    return float(others / (1 - (sizes * (sizes - 1)).sum() / (n * (n - 1))))


if __name__ == "__main__":
    run_function(main)
