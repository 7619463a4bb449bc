"""The scripts of experiments/papers: exact values are obtained, and every table is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.papers import (
    anomalies,
    augmentation,
    cells,
    clusters,
    codes,
    compressing,
    disentanglement,
    exact,
    generative,
    growing,
    hybrids,
    inference,
    labels,
    likelihoods,
    modalities,
    quadrants,
    rate_distortion,
    samples,
    speech,
    stacked,
    sticks,
    texts,
    zero_shot,
)
from jaxvae import evaluation, networks

QUICK = ("full-covariance, correlated posterior", "wae-gan")


@pytest.mark.optimized
@pytest.mark.parametrize(
    "member", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in exact.ROWS]
)
def test_exact_values_are_learned(member: str) -> None:
    row = exact.ROWS[member]
    found = row.compare()
    assert found.obtained == pytest.approx(found.exact, abs=row.tolerance)


def test_a_row_that_is_out_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, obtained in (("right", 1.05), ("wrong", 2.0), ("nothing", float("nan"))):
        row = exact.Row("what", 0.1, lambda obtained=obtained: exact.Found(1.0, obtained))
        monkeypatch.setitem(exact.ROWS, name, row)
    with pytest.raises(SystemExit):
        exact.main(exact.Options(rows=("right", "wrong", "nothing")))
    assert "out of their tolerance: wrong, nothing" in capsys.readouterr().err


SMALL = {"hidden": (8,), "latent": 4, "steps": 4}
DIGITS = SMALL | {"dataset": "digits"}
TABLES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{
        f"likelihoods {table}": (
            likelihoods,
            SMALL
            | {
                "table": table,
                "dataset": "digits",
                "warmup": 2,
                "components": 4,
                "examples": 6,
                "num_samples": 5,
            },
        )
        for table in ("priors", "posteriors", "bounds", "noise")
    },
    "anomalies": (
        anomalies,
        DIGITS | {"against": None, "examples": 12, "num_samples": 2, "regret_steps": 2},
    ),
    "augmentation": (
        augmentation,
        DIGITS | {"labelled": (2,), "per_class": 3, "examples": 40},
    ),
    "generative": (
        generative,
        DIGITS
        | {
            **{"gan_steps": 4, "samples": 50, "examples": 40, "num_samples": 5},
            **{"completions": 2, "inversion_steps": 2, "restarts": 2},
        },
    ),
    "quadrants": (quadrants, DIGITS | {"moments": 1, "examples": 6, "num_samples": 5}),
    "clusters": (clusters, DIGITS | {"pretraining": 3}),
    "codes penalties": (codes, DIGITS | {"table": "penalties", "examples": 50}),
    "codes distances": (codes, DIGITS | {"table": "distances", "examples": 50}),
    "samples": (samples, DIGITS | {"encodings": 60, "examples": 80}),
    "hybrids": (hybrids, DIGITS | {"critic_hidden": (8,), "examples": 80}),
    "labels": (
        labels,
        DIGITS
        | {
            **{"labelled": (20,), "train_split": "train", "batch_size": 20},
            **{"first_hidden": (8,), "first_steps": 5, "classifier_steps": 5},
        },
    ),
    "compressing": (compressing, DIGITS | {"rows": ("binary",), "images": 20}),
    "zero shot": (zero_shot, SMALL | {"dataset": "segments", "held_out": 2}),
    "modalities": (modalities, DIGITS | {"examples": 40}),
    "speech": (
        speech,
        SMALL | {"dataset": "voices", "rows": ("mlp", "linear noise")},
    ),
    **{
        f"cells {table}": (
            cells,
            SMALL
            | {
                **{"table": table, "group_key": "type", "group": "A", "markers": ("gene_0",)},
                **{"batch_key": "batch", "held_out": 20, "num_samples": 3},
            },
        )
        for table in cells.ROWS
    },
    "disentanglement": (disentanglement, SMALL | {"rows": ("vae", "factor-vae"), "examples": 600}),
    "stacked": (
        stacked,
        {
            "dataset": "digits",
            "hidden": (8, 8),
            "corruption": (0.1, 0.2),
            "pretraining": 1,
            "epochs": 1,
            "train_examples": 1000,
            "validation_examples": 200,
            "learning_rates": (1e-3,),
        },
    ),
    **{
        f"texts {table}": (
            texts,
            {
                **{"table": table, "latent": 2, "units": 4, "embedding": 4, "samples": 3},
                **{"batch_size": 2000, "epochs": 1, "examples": 20, "labelled": 9},
            },
        )
        for table in texts.TABLES
    },
    "sticks": (sticks, DIGITS | {"examples": 60, "num_samples": 5}),
    "growing blobs": (growing, {"table": "blobs", "steps": 8, "num_samples": 5, "examples": 60}),
    "growing digits": (growing, SMALL | {"table": "digits", "num_samples": 5, "examples": 60}),
    **{
        f"inference {table}": (
            inference,
            SMALL
            | {
                **{"table": table, "dataset": "digits", "examples": 3, "num_samples": 5},
                **{"refinement_steps": 3, "temperatures": (3,), "chains": 2},
            },
        )
        for table in inference.TABLES
    },
    "rate-distortion": (rate_distortion, SMALL | {"betas": (0.5, 4.0), "examples": 50}),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*examples do not determine the covariance")
@pytest.mark.parametrize("table", TABLES)
def test_tables(
    table: str, tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every table that the README takes numbers from, at a size that proves nothing."""
    script, given = TABLES[table]
    seeds = {"seeds": 2} if table in ("rate-distortion", "disentanglement") else {"seeds": 1}
    place = {} if table == "disentanglement" else {"data_dir": str(data_dir)}
    script.main(script.Options(**given, **seeds, **place, json=tmp_path / "out.json"))
    found = json.loads((tmp_path / "out.json").read_text())["cells"]
    out = capsys.readouterr().out
    for name, measured in found.items():
        assert (
            name in out
            and len(measured) == seeds["seeds"]
            and np.isfinite(list(measured[0].values())).any()
        )


def test_published_weights_are_read_as_they_were_meant() -> None:
    """Mean and log-variance of the encoder, and the decoder's logits, by their formulas."""
    rng, shapes = np.random.default_rng(0), {}
    for part, inputs in (("encoder", 7), ("decoder", 2)):
        shapes |= {f"{part}_w0": (4, inputs), f"{part}_b0": (4, 1)}
        shapes |= {f"{part}_w1": (5, 4), f"{part}_b1": (5, 1)}
    for name, outputs in (("encoder_mean", 2), ("encoder_logvar", 2), ("decoder_out", 7)):
        shapes |= {f"{name}_w": (outputs, 5), f"{name}_b": (outputs, 1)}
    arrays = {name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    params = labels.parameters_of(arrays)

    def hidden(part: str, h: np.ndarray) -> np.ndarray:
        for i in (0, 1):
            h = np.logaddexp(0, arrays[f"{part}_w{i}"] @ h + arrays[f"{part}_b{i}"][:, 0])
        return h

    def affine(name: str, h: np.ndarray) -> np.ndarray:
        return arrays[f"{name}_w"] @ h + arrays[f"{name}_b"][:, 0]

    x, z = rng.normal(size=7), rng.normal(size=2)
    softplus = networks.ACTIVATIONS["softplus"]
    raw = networks.mlp((4, 5), 4, softplus).apply(params["encoder"], np.float32(x))
    h = hidden("encoder", x)
    expected = np.append(affine("encoder_mean", h), affine("encoder_logvar", h) / 2)
    np.testing.assert_allclose(raw, expected, rtol=1e-4, atol=1e-4)
    logits = networks.mlp((4, 5), 7, softplus).apply(params["decoder"], np.float32(z))
    of_numpy = affine("decoder_out", hidden("decoder", z))
    np.testing.assert_allclose(logits, of_numpy, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_views_of_a_file_beside_factor_analysis(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(160, dtype=np.uint8) % 2
    z = rng.normal(size=(160, 2)) + 3 * labels[:, None]
    views = {name: z @ rng.normal(size=(2, size)) for name, size in (("fou", 3), ("pix", 4))}
    np.savez(tmp_path / "views.npz", label=labels, **views)
    given = {**SMALL, "latent": 2, "steps": 30, "rows": ("product", "linear")}
    options = modalities.Options(mfeat=tmp_path / "views.npz", json=tmp_path / "out.json", **given)
    modalities.main(options)
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert cells["linear"][0]["coherence view 1 to view 2"] > 0.9
    assert cells["product"][0].keys() >= cells["linear"][0].keys()


def test_clusters_are_matched_to_classes() -> None:
    """Best of all matchings, however clusters are numbered; one too many is lost."""
    labels = np.repeat([0, 1, 2], 10)
    assert evaluation.clusters.accuracy(np.array([2, 0, 1])[labels], labels) == 1
    assert evaluation.clusters.accuracy(
        np.where(np.arange(30) < 5, 3, labels), labels
    ) == pytest.approx(25 / 30)
    assert evaluation.clusters.accuracy(np.zeros(30, int), labels) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"must be \[N\] each; they were \(3,\) and \(30,\)"):
        evaluation.clusters.accuracy(np.arange(3), labels)
