"""Speech: nuisances replaced and perturbed in latent space, and the family of log-mel features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxvae
from jaxvae import datasets, families, sounds
from jaxvae.evaluation import nuisances
from jaxvae.runs.commands import evaluate

SMALL: dict[str, Any] = {
    **{"hidden": (8,), "latent": 4, "frames": 8, "mels": 6, "steps": 2, "batch_size": 10},
    **{"test_samples": 2, "test_examples": 4},
}


@pytest.fixture
def codes() -> tuple[np.ndarray, np.ndarray]:
    """Codes [60, 3] of three groups with other means and covariances."""
    rng = np.random.default_rng(0)
    groups = np.arange(60) % 3
    z = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 3)) + 2.0 * groups[:, None]
    return z * (1 + groups[:, None]), groups


def test_replacement_moves_the_mean_and_nothing_else(codes: Any) -> None:
    """The mean of each group is the target, and its covariance is what it was."""
    z, groups = codes
    target = nuisances.group_means(z, groups)[2]
    moved = nuisances.replaced(z, groups, target)
    for group in range(3):
        of = groups == group
        np.testing.assert_allclose(moved[of].mean(0), target, atol=1e-12)
        np.testing.assert_allclose(np.cov(moved[of].T), np.cov(z[of].T), atol=1e-12)
    np.testing.assert_allclose(moved[groups == 2], z[groups == 2], atol=1e-12)


def test_a_linear_judge_of_nuisances_is_moved_fully() -> None:
    """Where groups differ by their means alone, replaced codes are those of the target."""
    rng = np.random.default_rng(1)
    words, shift = rng.standard_normal((20, 4)), np.array([3.0, -1.0, 0.0, 2.0])
    z, groups = np.concatenate([words, words + shift]), np.repeat([0, 1], 20)
    moved = nuisances.replaced(z[:20], groups[:20], nuisances.group_means(z, groups)[1])
    np.testing.assert_allclose(moved, words + shift, atol=1e-12)


def test_perturbation_adds_the_covariance_of_the_means(codes: Any) -> None:
    """gamma^2 Cov(mu) in expectation, and nothing outside the span of the means."""
    z, groups = codes
    means = nuisances.group_means(z, groups)
    many = np.zeros((200_000, 3))
    added = nuisances.perturbed(np.random.default_rng(0), many, means, 0.5)
    expected = 0.25 * np.cov(means.T, bias=True)
    np.testing.assert_allclose(np.cov(added.T), expected, atol=0.02 * np.abs(expected).max())
    normal = np.linalg.svd(means - means.mean(0))[2][2]
    np.testing.assert_allclose(added @ normal, 0, atol=1e-9)
    np.testing.assert_array_equal(nuisances.perturbed(np.random.default_rng(0), z, means, 0.0), z)


def test_recordings_become_features_with_words_and_speakers() -> None:
    config = families.preset("speech-vae", **SMALL)
    data = families.FAMILIES["speech"].load(config, "voices")  # type: ignore[misc]
    test, found = data.splits["test"], sounds.recordings("voices", None, "", 8000)
    assert test.x.shape == (40, 8, 6, 1) and test.x.dtype == np.float32
    assert data.classes == tuple(sorted(sounds.voices(1)[2][:10]))
    first = found.of(found.parts()["test"])
    assert data.classes[test.y[3]] == first.labels[3]
    speakers = sorted(set(found.speakers))
    assert speakers[int(test.attributes[3].argmax())] == first.speakers[3]
    np.testing.assert_allclose(test.attributes.sum(1), 1)
    assert np.abs(test.x.mean((1, 2, 3))).max() < 1.5  # the level is removed before stretching


def test_features_can_be_heard_again() -> None:
    """A signal made of features has about these features."""
    config = families.preset("speech-vae")
    data = families.FAMILIES["speech"].load(config, "voices")  # type: ignore[misc]
    x = data.splits["test"].x[5]
    family = families.FAMILIES["speech"]
    about = families.Data("voices", x.shape, "float32", None, "none", 1)
    signal = family.build(config, about).audible.signal(x)  # type: ignore[union-attr]
    again = sounds.log_mel(signal, config.spectra, config.mels)[: len(x)]
    assert np.corrcoef(again.ravel(), x[: len(again)].ravel())[0, 1] > 0.9


def test_sets_without_speakers_are_refused(digits: datasets.Dataset) -> None:
    with pytest.raises(datasets.DataError, match="--augmentation needs labels, and attributes"):
        nuisances.encoded(None, {}, None, digits.splits["test"])  # type: ignore[arg-type]


@pytest.mark.slow
def test_evaluate_reports_unseen_speakers(tmp_path: Path) -> None:
    """A wav folder trains, and replacement names the target; wav files are left to hear."""
    signals, speakers, labels = sounds.voices(4)
    for i, signal in enumerate(signals):
        name = f"{labels[i]}_{speakers[i]}_{i}.wav"
        (tmp_path / "wav").mkdir(exist_ok=True)
        sounds.write_wave(tmp_path / "wav" / name, signal, 8000)
    sizes = SMALL | {"latent": 8, "hidden": (64,), "steps": 3000, "frames": 12, "mels": 16}
    sizes |= {"learning_rate": 3e-3}
    config = families.preset("speech-vae", dataset=str(tmp_path / "wav"), **sizes)
    jaxvae.train(config, tmp_path / "run", progress=False)
    assert len(list((tmp_path / "run" / "sounds").glob("reconstruction-*.wav"))) == 4
    evaluate(tmp_path / "run", num_samples=2, augmentation=True)
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["names_target"] > 0.5  # of four speakers
    assert found["accuracy_replaced"] > found["accuracy_clean"]
