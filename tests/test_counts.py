"""Counts of single cells: densities, library sizes, batches, genes by name, differences."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse, stats

import jaxvae
from jaxvae import checkpoints, datasets, distributions, families, models
from jaxvae.command_line import main
from jaxvae.datasets import DataError, Examples, single_cells
from jaxvae.datasets.single_cells import Cells
from jaxvae.families import counts as family
from jaxvae.families.contract import Data
from jaxvae.models import Conditioned, Model, Sequencing
from jaxvae.runs import folders, prepare
from jaxvae.uses import expression

GENES = ("CD3D", "CD79A", "MS4A1", "LYZ")
TOTALS = np.array([20.0, 9.0, 31.0])
COUNTS = np.array([[3, 0, 1, 5], [0, 2, 0, 4], [7, 1, 0, 0]])
CELLS = Cells(
    "few", COUNTS.astype(np.uint8), GENES, {"n_counts": TOTALS, "batch": np.array(["b", "a", "b"])}
)


def built_of(cells: Cells = CELLS, **named: Any) -> tuple[Any, Any]:
    """A small model of cells with random parameters, and these."""
    config = families.preset("single-cell", hidden=(3,), latent=2, **named)
    found = family.dataset_of(config, cells)
    data = Data(
        "few",
        cells.counts.shape[1:],
        "uint8",
        None,
        "counts",
        3,
        genes=found.genes,
        batches=found.batches,
    )
    built = family.build(config, data)
    example = Conditioned(jnp.ones(4), read_at(1.0, 0, len(found.batches)))
    params = built.model.init(jax.random.key(0), example)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return built, jax.tree.map(lambda a: a + jax.random.normal(next(keys), a.shape), params)


def read_at(library: float, batch: int, batches: int = 2) -> Sequencing:
    return Sequencing(jnp.float32(library), jax.nn.one_hot(batch, batches))


KEYS = {"batch_key": "batch", "size_factor_key": "n_counts"}
KINDS = [
    ("negative_binomial", "gene"),
    ("negative_binomial", "gene_batch"),
    ("negative_binomial", "gene_cell"),
    ("zero_inflated_negative_binomial", "gene"),
    ("zero_inflated_negative_binomial", "gene_cell"),
    ("poisson", "gene"),
]


@pytest.mark.parametrize("likelihood, dispersion", KINDS)
def test_counts_have_the_density_of_scipy(likelihood: str, dispersion: str) -> None:
    """At the mean mu = l rho and inverse dispersion theta: nbinom(theta, theta / (theta + mu)).

    theta reaches 1e6, at which lgamma(x + theta) - lgamma(theta) in float32 is off by a tenth.
    """
    built, params = built_of(likelihood=likelihood, dispersion=dispersion, **KEYS)
    if "log_dispersion" in params["decoder"]:
        table = params["decoder"]["log_dispersion"]
        params["decoder"]["log_dispersion"] = table.at[..., 0].set(np.log(1e6))
    z, read = jnp.array([0.3, -0.8]), read_at(50.0, 1)
    mean = 50 * np.asarray(built.model.expression(params, z, read), np.float64)
    p = built.model.decode(params, z, read)
    x = np.array([3, 0, 1, 40])
    if likelihood == "poisson":
        expected = stats.poisson.logpmf(x, mean)
    else:
        theta = np.asarray(p.total_count, np.float64)
        expected = stats.nbinom.logpmf(x, theta, theta / (theta + mean))
        table = np.asarray(params["decoder"].get("log_dispersion", np.log(theta)), np.float64)
        np.testing.assert_allclose(theta, np.exp(table if table.ndim == 1 else table[1]), rtol=1e-5)
    if likelihood.startswith("zero"):
        gate = np.asarray(jax.nn.sigmoid(p.gate_logits), np.float64)
        expected = np.log(gate * (x == 0) + (1 - gate) * np.exp(expected))
    np.testing.assert_allclose(p.log_prob(jnp.float32(x)), expected.sum(), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(
        p.mean, mean if not likelihood.startswith("zero") else (1 - gate) * mean, rtol=1e-4
    )


def test_shares_are_of_all_genes_where_the_file_holds_some() -> None:
    """Means are l rho. Without size factors the genes of the file have all counts."""
    z, sums = jnp.array([0.5, 1.0]), {}
    for name, keys in (("all", {}), ("some", {"size_factor_key": "n_counts"})):
        built, params = built_of(**keys)
        shares = built.model.expression(params, z, read_at(1.0, 0, 0))
        sums[name] = float(shares.sum())
        for library in (10.0, 20.0):
            mean = built.model.decode(params, z, read_at(library, 0, 0)).mean
            np.testing.assert_allclose(mean, library * shares, rtol=1e-5)
    assert sums["all"] == pytest.approx(1, abs=1e-6)
    assert 0.01 < sums["some"] < 0.99


def test_the_library_is_the_column_that_is_named_and_not_the_sum_of_a_subset() -> None:
    np.testing.assert_array_equal(CELLS.library("n_counts"), TOTALS)
    np.testing.assert_array_equal(CELLS.library(None), COUNTS.sum(1))


def test_codes_do_not_depend_on_batch_and_library_and_decoded_shares_do() -> None:
    built, params = built_of(**KEYS)
    x = jnp.float32(COUNTS[0])
    first, other = (
        built.model.encode(params, Conditioned(x, read))
        for read in (read_at(20.0, 0), read_at(90.0, 1))
    )
    jax.tree.map(np.testing.assert_array_equal, first, other)
    shares = [built.model.expression(params, first.mean, read_at(1.0, b)) for b in (0, 1)]
    assert np.abs(shares[0] - shares[1]).max() > 0.01


def test_genes_are_known_by_name_in_any_order() -> None:
    turned = CELLS._replace(counts=CELLS.counts[:, ::-1], genes=GENES[::-1])
    np.testing.assert_array_equal(turned.of_genes(GENES).counts, COUNTS)
    table = expression.in_order(COUNTS, GENES, turned.genes)
    np.testing.assert_array_equal(table, turned.counts)


def archive(folder: Path, **arrays: Any) -> str:
    """An .npz file of cells."""
    file = folder / "cells.npz"
    np.savez(file, **{"counts": COUNTS, "genes": np.array(GENES), **arrays})
    return str(file)


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "logarithms": (
        {"counts": np.log1p(COUNTS), "raw": COUNTS},
        {},
        r"holds 1\.386 for the gene CD3D, and counts are integers from 0: .*\(raw\)",
    ),
    "negative": ({"counts": -COUNTS}, {}, "holds -3 for the gene CD3D"),
    "nan": ({"counts": np.where(COUNTS == 7, np.nan, COUNTS)}, {}, "holds nan for the gene CD3D"),
    "words": ({"counts": COUNTS.astype(str)}, {}, "and counts are integers"),
    "no cells": ({"counts": COUNTS[:0]}, {}, "0 cells and 4 genes"),
    "a vector": ({"counts": COUNTS[0]}, {}, r"must be \[N, G\]"),
    "genes too few": ({"genes": np.array(GENES[:3])}, {}, "names 3 genes, and has counts of 4"),
    "a gene twice": ({"genes": np.array(["a", "b", "a", "c"])}, {}, "the gene a more than once"),
    "no layer": ({}, {"layer": "spliced"}, r"expected spliced \[N, G\]"),
    "no column": ({}, {"batch_key": "lane"}, "no column 'lane' of cells; it has none"),
    "an empty cell": ({"counts": COUNTS * [[1], [0], [1]]}, {}, "cell 1 has a library size of 0"),
    "size factors": (
        {"sf": np.array([0.9, 1.1, 1.0])},
        {"size_factor_key": "sf"},
        "size_factor_key=sf is 0.9 for cell 0, whose genes have 9 counts",
    ),
    "size words": ({"sf": np.array(list("abc"))}, {"size_factor_key": "sf"}, "holds words"),
    "dispersion": ({}, {"dispersion": "gene_batch"}, "needs batches"),
}


@pytest.mark.parametrize("name", BAD)
def test_counts_that_mean_nothing_are_refused(name: str, tmp_path: Path) -> None:
    arrays, named, words = BAD[name]
    config = families.preset("single-cell", dataset=archive(tmp_path, **arrays), **named)
    with pytest.raises(ValueError, match=words):
        prepare(config)


def test_a_sparse_matrix_is_read_as_a_dense_one_and_refused_as_one() -> None:
    adata = SimpleNamespace(  # what is asked of AnnData
        X=sparse.csr_matrix(COUNTS.astype(np.float32)),
        layers={},
        obs_names=list("abc"),
        var_names=list(GENES),
        obs=SimpleNamespace(columns=()),
    )
    np.testing.assert_array_equal(single_cells.read(adata).counts, COUNTS)
    assert single_cells.read(adata).counts.dtype == np.uint8
    adata.X = sparse.csr_matrix(np.log1p(COUNTS))
    with pytest.raises(DataError, match=r"X of adata holds 1\.386 for the gene CD3D"):
        single_cells.read(adata)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"genes": ("CD3D", "CD79A", "MS4A1", "CD14")}, "lacks 1 genes, such as LYZ and has 1"),
        ({"columns": {"batch": np.array(["a", "c", "b"])}}, "batch 'c', and the model knows a, b"),
    ],
)
def test_other_genes_and_batches_are_refused_by_name(change: dict[str, Any], words: str) -> None:
    config = families.preset("single-cell", batch_key="batch")
    data = Data("few", (4,), "uint8", None, "counts", 3, genes=GENES, batches=("a", "b"))
    with pytest.raises(DataError, match=words):
        family.read_as(config, CELLS._replace(**change), data)


# Normalized expression and differences, of a model whose shares are log-normal

MEANS, SPREAD = np.log([0.1, 0.2, 0.3]), 0.2


def lognormal_model() -> Model:
    """log rho ~ N(MEANS + x, SPREAD^2), and a batch that doubles the first gene."""
    encode = lambda params, example: distributions.Normal(MEANS + example.x, jnp.full(3, SPREAD))
    doubled = jnp.array([2.0, 1.0, 1.0])
    shares = lambda params, z, read: jnp.exp(z) * jnp.where(read.batch[1] > 0, doubled, 1.0)
    return Model(
        lambda key, example: {},
        encode=encode,
        expression=shares,
        parts=lambda example: (example.x, example.y),
    )


def as_read(key: Any, raw: Conditioned) -> Conditioned:
    return Conditioned(
        raw.x.astype(jnp.float32), Sequencing(raw.y[0], jax.nn.one_hot(raw.y[1].astype(int), 2))
    )


LOGNORMAL = lognormal_model()


def cells_at(x: Any, batches: Any) -> Examples:
    raw = Conditioned(np.asarray(x), np.stack([np.ones(len(x)), batches], 1).astype(np.float32))
    return Examples(raw, as_read)


def test_normalized_expression_is_the_mean_over_codes_and_batches() -> None:
    examples = cells_at([[0, 0, 0], [1, 0, 0]], [0, 1])
    call = functools.partial(
        expression.normalized, LOGNORMAL, {}, jax.random.key(0), examples, num_samples=4000
    )
    expected = 1e4 * np.exp(MEANS + SPREAD**2 / 2) * [[1, 1, 1], [2 * np.e, 1, 1]]
    np.testing.assert_allclose(call(), expected, rtol=0.02)
    both = expected * [[1.5, 1, 1], [0.75, 1, 1]]
    np.testing.assert_allclose(call(batches=[0, 1]), both, rtol=0.02)


def test_differences_have_the_probabilities_of_their_closed_form() -> None:
    """lfc ~ N(log2 e (x_1 - x_2), 2 (SPREAD log2 e)^2), if all genes are counted."""
    x = np.array([[1, 1, 2]] * 5 + [[2, 1, 1]] * 7)
    first = np.arange(12) < 5
    found = expression.differential(
        LOGNORMAL,
        {},
        jax.random.key(0),
        cells_at(x, np.zeros(12)),
        GENES[:3],
        first,
        ~first,
        delta=0.5,
    )
    scale = np.sqrt(2) * SPREAD / np.log(2)
    mean = np.array([-1, 0, 1]) / np.log(2)
    outside = stats.norm.cdf(-0.5, mean, scale) + stats.norm.sf(0.5, mean, scale)
    np.testing.assert_allclose(found.probability, outside, atol=0.02)
    np.testing.assert_allclose(found.lfc_mean, mean, atol=0.03)
    np.testing.assert_allclose(found.lfc_median, mean, atol=0.03)
    np.testing.assert_allclose(found.lfc_std, scale, rtol=0.05)
    np.testing.assert_allclose(found.probability_higher, stats.norm.sf(0, mean, scale), atol=0.02)
    np.testing.assert_array_equal(found.counts_first, x[0])
    assert found.sorted().gene[2] == "CD79A"


def test_the_offset_hides_changes_among_shares_of_genes_that_are_never_counted() -> None:
    """The first gene is never counted, so shares as small as its own are no difference."""
    x = np.array([[0, 1, 1]] * 6 + [[0, 2, 1]] * 6)
    first = np.arange(12) < 6
    plain, hidden = (
        expression.differential(
            LOGNORMAL, {}, jax.random.key(0), cells_at(rows, np.zeros(12)), GENES[:3], first, ~first
        )
        for rows in (x + 1, x)
    )
    assert plain.probability[0] > 0.3 > 0.1 > hidden.probability[0]


def test_pairs_are_of_one_batch() -> None:
    batches = np.array([0, 0, 1, 1, 1, 2])
    first = np.array([True, False, True, False, False, True])
    generator = np.random.default_rng(0)
    a, b = expression.paired_rows(generator, first, ~first & (batches < 2), batches, 3000)
    assert set(zip(a.tolist(), b.tolist(), strict=True)) == {(0, 1), (2, 3), (2, 4)}
    assert np.mean(a == 0) == pytest.approx(1 / 3, abs=0.04)
    alone = expression.paired_rows(generator, batches == 0, batches == 1, batches, 50)
    assert set(alone[0].tolist()) == {0, 1} and set(alone[1].tolist()) == {2, 3, 4}


def test_discoveries_keep_the_expected_share_of_false_ones() -> None:
    probability = np.random.default_rng(0).random(200) ** 0.2
    called = expression.discoveries(probability, 0.1)
    assert 0.05 < (1 - probability[called]).mean() <= 0.1
    one_more = np.sort(probability)[::-1][: called.sum() + 1]
    assert (1 - one_more).mean() > 0.1


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([0, 0, 0], [1, 0, 0], "the first group has no cells"),
        ([1, 1, 0], [0, 1, 1], "1 cells are in both groups"),
    ],
)
def test_groups_that_cannot_be_compared_are_refused(first: Any, second: Any, words: str) -> None:
    examples = cells_at(np.ones((3, 3)), np.zeros(3))
    with pytest.raises(ValueError, match=words):
        expression.differential(LOGNORMAL, {}, jax.random.key(0), examples, GENES, first, second)


def test_a_model_without_expression_is_refused(small_vae: models.VAE) -> None:
    with pytest.raises(ValueError, match="has no expression"):
        expression.normalized(small_vae, {}, jax.random.key(0), np.ones((2, 8, 8, 1)))


def test_another_family_and_another_condition_are_refused() -> None:
    trained = SimpleNamespace(built=families.Built(LOGNORMAL, None, None))
    with pytest.raises(ValueError, match="this one is of another family: train single-cell"):
        expression.cells_of(trained, "cells")
    with pytest.raises(ValueError, match=r"the library size and the number of the batch; .*\(3,\)"):
        built_of(**KEYS)[0].condition(jnp.ones(3))


# The commands


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on generated cells in a file, whose parameters are not trained."""
    folder = tmp_path_factory.mktemp("run")
    cells = single_cells.generated(60, 6)
    np.savez(folder / "cells.npz", counts=cells.counts, genes=cells.genes, **cells.columns)
    small: dict[str, Any] = {
        **{"hidden": (4,), "latent": 2, "batch_size": 10, "dataset": str(folder / "cells.npz")},
    }
    run = prepare(families.preset("single-cell", **small, **KEYS))
    (folder / "run").mkdir()
    folders.save(folder / "run", run.record)
    with checkpoints.Checkpoints(folder / "run" / "checkpoints") as saved:
        saved.save(0, run.init_state(), {})
    return folder


def test_cells_of_a_file_are_annotated(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Codes and expression in the file's own order of genes, and a table of differences."""
    with np.load(run_folder / "cells.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= {"counts": arrays["counts"][:, ::-1], "genes": arrays["genes"][::-1]}
    np.savez(run_folder / "turned.npz", **arrays)
    out = run_folder / "out.npz"
    turned = [str(run_folder / "run"), str(run_folder / "turned.npz"), "--out", str(out)]
    groups = ["--group-key", "type", "--first", "A", "--second", "B", "--pairs", "50"]
    main(["annotate", *turned, *groups, "--batches", "first", "--num-samples", "2"])
    assert "P(different)" in capsys.readouterr().out
    trained = jaxvae.load(run_folder / "run")
    _, cells = expression.cells_of(trained, str(run_folder / "cells.npz"))
    with np.load(out) as written:
        codes = trained.encode(cells.x.x, cells.x.y)
        np.testing.assert_allclose(written["X_vae"], codes, rtol=1e-5, atol=1e-6)
        direct = expression.normalized(
            trained.model, trained.params, jax.random.key(0), cells, batches=[0], num_samples=2
        )
        np.testing.assert_allclose(written["normalized_expression"][:, ::-1], direct, rtol=1e-5)
        np.testing.assert_array_equal(written["type"], arrays["type"])
    with (run_folder / "run" / "differences.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["gene"] for row in rows} == set(arrays["genes"].tolist())
    assert [row["probability"] for row in rows] == sorted(
        (row["probability"] for row in rows), key=float, reverse=True
    )


MISTAKES = {
    "another suffix": ("--out out.h5ad", "must end in .npz"),
    "no folder": ("--out nowhere/out.npz", "its folder does not exist"),
    "no batch": ("--batches third", "no batch 'third'; the model knows first, second"),
    "no column": ("--group-key kind --first A", "no column 'kind' of cells"),
    "no group": ("--group-key type --first D", "no cell has type 'D'; there are A, B, C"),
    "one group": ("--group-key type --first A --second A", "must be two groups"),
    "half a table": ("--first A", "needs group_key"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_annotated_is_refused(
    name: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = MISTAKES[name]
    with pytest.raises(SystemExit) as ended:
        main(
            ["annotate", str(run_folder / "run"), str(run_folder / "cells.npz"), *arguments.split()]
        )
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")  # anndata asks for it
def test_anndata_goes_in_and_out(run_folder: Path, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    pandas = pytest.importorskip("pandas")
    cells = single_cells.generated(60, 6)
    adata = anndata.AnnData(
        sparse.csr_matrix(np.log1p(cells.counts.astype(np.float32))),
        obs=pandas.DataFrame(dict(cells.columns), index=[f"cell_{i}" for i in range(60)]),
        var=pandas.DataFrame(index=list(cells.genes)),
    )
    with pytest.raises(DataError, match="counts are integers from 0: name a layer"):
        single_cells.read(adata)
    adata.layers["counts"] = sparse.csr_matrix(cells.counts)
    adata = adata[:, ::-1].copy()
    small = {"hidden": (4,), "latent": 2, "steps": 2, "batch_size": 10, "test_samples": 2}
    config = families.preset("single-cell", layer="counts", **small, **KEYS)
    trained = jaxvae.train(config, tmp_path / "run", data=adata, progress=False)
    expression.annotate(trained, adata, num_samples=2)
    assert adata.obsm["X_vae"].shape == (60, 2)
    assert np.isfinite(adata.layers["normalized_expression"]).all()
    single_cells.write_anndata(adata, tmp_path / "cells.h5ad")
    out = tmp_path / "out.h5ad"
    main(["annotate", str(tmp_path / "run"), str(tmp_path / "cells.h5ad"), "--out", str(out)])
    written = anndata.read_h5ad(out)
    np.testing.assert_allclose(written.obsm["X_vae"], adata.obsm["X_vae"], rtol=1e-5, atol=1e-6)
    assert list(written.var_names) == list(adata.var_names)
    main(["evaluate", str(tmp_path / "run"), "--dataset", str(out), "--num-samples", "3"])


@pytest.mark.slow
@pytest.mark.optimized
def test_markers_of_generated_cells_are_found(tmp_path: Path) -> None:
    """Genes 0, 6, 12, ... are of type A: all five come first, though batches differ."""
    config = families.preset("single-cell", steps=800, hidden=(32,), latent=3, **KEYS)
    trained = jaxvae.train(config, tmp_path / "run", progress=False, test_samples=20)
    cells, examples = expression.cells_of(trained, "cells")
    kinds = cells.columns["type"]
    found = expression.differential(
        trained.model,
        trained.params,
        jax.random.key(0),
        examples,
        trained.data.genes,
        kinds == "A",
        kinds != "A",
    ).sorted()
    higher = [g for g, change in zip(found.gene, found.lfc_mean, strict=True) if change > 0]
    assert set(higher[:5]) == {f"gene_{i}" for i in range(0, 30, 6)}
    assert isinstance(datasets.select(family.load(config, "cells"), "test"), datasets.Split)
