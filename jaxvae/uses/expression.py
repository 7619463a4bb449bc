"""Normalized expression of genes, and which of them two groups of cells express differently.

rho_g(z, s) is the share of gene g in all counts of a cell with latents z and batch s. Lopez et al.
2018, doi:10.1038/s41592-018-0229-2; Boyeau et al. 2019, doi:10.1101/794289 (``differential``).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.contracts import Array, Params
from jaxvae.datasets import Split, examples_of, preprocessed, rows_of
from jaxvae.datasets.single_cells import Cells
from jaxvae.evaluation import encode_split
from jaxvae.evaluation.columns import Batched, batched, over_split, require
from jaxvae.models import Model, Sequencing, answers

LEAST = 1e-10  # the offset of shares where every gene is expressed
SHOWN = 1e-3  # part of the offset in the fold changes that are reported
FALSE_DISCOVERIES = 0.05  # the expected share of false ones among genes that are called different


def normalized(
    model: Any,
    params: Params,
    key: Array,
    examples: Any,
    *,
    library: float = 1e4,
    batches: Sequence[int] | None = None,
    num_samples: int = 16,
    batch_size: int = 100,
) -> np.ndarray:
    """Normalized expression, library * E_q rho(z, s) of each cell: [N, G] float32.

    With ``batches`` it is the mean over rho as if the cell had been read in each of them, so that
    cells of different batches can be compared.

    >>> table = expression.normalized(
    ...     run.model, run.params, key, split, batches=[0])  # doctest: +SKIP

    Args:
      model: a ``models.Model`` that answers ``expression``.
      params: its parameters.
      key: the key of the draws of z.
      examples: a ``Split`` or ``Examples`` of cells.
      library: counts that the expression of a cell adds up to, over all genes.
      batches: numbers of the batches to read the cells in; None is the batch of each cell.
      num_samples: draws of z for each cell.
      batch_size: cells computed at a time.
    """
    at = None if batches is None else tuple(int(number) for number in batches)
    of_cells = _mean_shares(answers(model), num_samples, at)
    shares = over_split(of_cells, params, key, examples_of(examples), batch_size)
    return library * shares


def annotate(
    trained: Any,
    adata: Any,
    key: Array | None = None,
    *,
    library: float = 1e4,
    batches: Sequence[int] | None = None,
    num_samples: int = 16,
) -> None:
    """Writes ``obsm["X_vae"]`` and ``layers["normalized_expression"]`` of an AnnData object.

    The first is the mean of q(z|x) [N, D], the second what ``normalized`` gives [N, G].

    >>> adata = anndata.read_h5ad("cells.h5ad")  # doctest: +SKIP
    >>> expression.annotate(jaxvae.load("runs/cells"), adata)  # doctest: +SKIP
    >>> adata.obsm["X_vae"]  # doctest: +SKIP

    Args:
      trained: a trained model of counts, as ``jaxvae.load`` returns it.
      adata: the cells, with the genes of the training in any order.
      key: the key of the draws; None is ``jax.random.key(0)``.
      library: counts that the expression of a cell adds up to.
      batches: numbers of the batches to read the cells in; None is the batch of each cell.
      num_samples: draws of z for each cell.
    """
    cells, split = cells_of(trained, adata)
    key = jax.random.key(0) if key is None else key
    model, params = trained.model, trained.params
    settings: Any = {"library": library, "batches": batches, "num_samples": num_samples}
    table = normalized(model, params, key, split, **settings)
    adata.obsm["X_vae"] = encode_split(model, params, key, split)
    adata.layers["normalized_expression"] = in_order(table, trained.data.genes, cells.genes)


def cells_of(trained: Any, source: Any) -> tuple[Cells, Split]:
    """Cells as they are read, and the split that a trained model takes.

    ``source`` is what ``single_cells.read`` takes. Raises ValueError for a model that is not of
    single cells, and DataError for genes that it does not know.
    """
    if trained.built.cells is None:
        raise ValueError(
            "cells need a model of their counts, and this one is of another family: train "
            "single-cell"
        )
    return trained.built.cells(source)


def in_order(table: np.ndarray, genes: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """The columns of a table [N, G] of genes, in another order of the same genes."""
    place = {gene: i for i, gene in enumerate(genes)}
    return table[:, [place[str(gene)] for gene in wanted]]


class Differences(NamedTuple):
    """How differently two groups express each gene. Every field but the first is [G]."""

    gene: tuple[str, ...]
    probability: np.ndarray  # P(|lfc| >= delta)
    different: np.ndarray  # whether it is among genes with 5 % false discoveries, as expected
    lfc_mean: np.ndarray  # log2 fold changes of the first group over the second
    lfc_median: np.ndarray
    lfc_std: np.ndarray
    probability_higher: np.ndarray  # P(rho of the first > rho of the second)
    share_first: np.ndarray  # mean rho of the first group
    share_second: np.ndarray
    counts_first: np.ndarray  # mean counts of the first group
    counts_second: np.ndarray

    def sorted(self) -> Differences:
        """The likeliest differences first; among equals, the largest fold change."""
        order = np.lexsort((-np.abs(self.lfc_mean), -self.probability))
        genes = tuple(self.gene[i] for i in order)
        return Differences(genes, *(np.asarray(column)[order] for column in self[1:]))


def differential(
    model: Any,
    params: Params,
    key: Array,
    examples: Any,
    genes: Sequence[str],
    first: Any,
    second: Any,
    *,
    delta: float = 0.25,
    num_samples: int = 5000,
    batch_size: int = 500,
) -> Differences:
    """Differential expression by posterior samples.

    Draws rho of cells of both groups are paired at random within a batch, and lfc = log2(rho_1 + c)
    - log2(rho_2 + c). A gene is different with the probability P(|lfc| >= delta). The offset c is
    the 0.9-quantile of the shares of genes that a group never counts; the reported fold changes
    take a thousandth of it. A batch weighs as its number of possible pairs. If no batch holds cells
    of both groups, pairs are of all cells.

    >>> table = expression.differential(
    ...     run.model, run.params, key, split, genes, types == "B", types != "B")  # doctest: +SKIP

    Args:
      model: a ``models.Model`` that answers ``expression``.
      params: its parameters.
      key: the key of the draws of z; cells are drawn by it too.
      examples: a ``Split`` or ``Examples`` of cells.
      genes: their names.
      first: the cells of the first group, [N] bool.
      second: the cells of the second group, [N] bool.
      delta: the least |lfc| that counts as a difference.
      num_samples: pairs of draws. Memory holds two arrays [num_samples, G].
      batch_size: cells computed at a time.

    Raises ValueError for a group without cells, and for groups that share a cell.
    """
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    _check(one, other)
    cells = examples_of(examples)
    raw: Any = getattr(cells, "raw", cells)
    key_rows, *keys = jax.random.split(key, 3)
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key_rows)))
    of_cells = _mean_shares(answers(model), 1, None)
    pairs = paired_rows(generator, one, other, _batches(raw), num_samples)
    a, b = (
        over_split(of_cells, params, key, rows_of(cells, rows), batch_size)
        for key, rows in zip(keys, pairs, strict=True)
    )
    counts = [np.asarray(raw.x)[group] for group in (one, other)]
    offset = max(_offset(a, counts[0]), _offset(b, counts[1]))
    probability = (np.abs(fold_changes(a, b, offset)) >= delta).mean(0)
    change = fold_changes(a, b, SHOWN * offset)
    return Differences(
        tuple(genes),
        probability,
        discoveries(probability),
        change.mean(0),
        np.median(change, 0),
        change.std(0),
        (a > b).mean(0),
        a.mean(0),
        b.mean(0),
        counts[0].mean(0, dtype=float),
        counts[1].mean(0, dtype=float),
    )


def fold_changes(first: np.ndarray, second: np.ndarray, offset: float) -> np.ndarray:
    """log2((rho_1 + c) / (rho_2 + c)), of shares [M, G]."""
    return np.log2((first + offset) / (second + offset))


def discoveries(probability: np.ndarray, rate: float = FALSE_DISCOVERIES) -> np.ndarray:
    """Which genes [G] are called different, so that a share ``rate`` of them is expected not to be.

    The likeliest are taken as long as the mean of 1 - P over them is at most ``rate``.
    """
    order = np.argsort(-probability, kind="stable")
    false = np.cumsum(1 - probability[order]) / np.arange(1, len(order) + 1)
    called = np.zeros(len(order), bool)
    called[order] = false <= rate
    return called


def paired_rows(
    generator: np.random.Generator,
    first: np.ndarray,
    second: np.ndarray,
    batches: np.ndarray,
    num: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of cells of two groups, [num] each, such that each pair is of one batch.

    Args:
      generator: draws the rows, with replacement.
      first: the cells of the first group, [N] bool.
      second: the cells of the second group, [N] bool.
      batches: the batch of each cell, [N].
      num: how many pairs.
    """
    pairs = [
        (np.flatnonzero(first & (batches == b)), np.flatnonzero(second & (batches == b)))
        for b in np.unique(batches)
    ]
    pairs = [(a, b) for a, b in pairs if len(a) and len(b)]
    pairs = pairs or [(np.flatnonzero(first), np.flatnonzero(second))]
    sizes = np.array([len(a) * len(b) for a, b in pairs], float)
    counts = generator.multinomial(num, sizes / sizes.sum())
    drawn = [
        (generator.choice(a, n), generator.choice(b, n))
        for (a, b), n in zip(pairs, counts, strict=True)
    ]
    return np.concatenate([a for a, _ in drawn]), np.concatenate([b for _, b in drawn])


def _check(first: np.ndarray, second: np.ndarray) -> None:
    for name, group in (("first", first), ("second", second)):
        if not group.any():
            raise ValueError(f"the {name} group has no cells")
    if (both := first & second).any():
        raise ValueError(f"{both.sum()} cells are in both groups: make them disjoint")


def _batches(raw: Any) -> np.ndarray:
    """The number of each cell's batch, from raw examples with a condition [N, 2]."""
    return np.asarray(raw.y)[:, 1]


def _offset(shares: np.ndarray, counts: np.ndarray) -> float:
    """The 0.9-quantile of the largest shares of genes that a group never counts."""
    never = counts.max(0) == 0
    return float(np.quantile(shares.max(0)[never], 0.9)) if never.any() else LEAST


@functools.lru_cache(maxsize=32)
def _mean_shares(model: Model, num_samples: int, at: tuple[int, ...] | None) -> Batched:
    """The mean of rho over draws of z and over batches, for each cell."""
    require(model, "the expression of genes", "expression", "encode")
    encode: Any = model.encode
    expression: Any = model.expression

    def one(params: Params, key: Array, raw: Any) -> Array:
        key_x, key_z = jax.random.split(key)
        example = preprocessed(key_x, raw)
        z = encode(params, example).sample(key_z, (num_samples,))
        read = model.parts(example)[1]
        reads = [read] if at is None else [_in_batch(read, number) for number in at]
        shares = [jax.vmap(lambda z, read=r: expression(params, z, read))(z) for r in reads]
        return jnp.stack(shares).mean((0, 1))

    return batched(one)


def _in_batch(read: Sequencing, number: int) -> Sequencing:
    return read._replace(batch=jax.nn.one_hot(number, len(read.batch)))
