"""Anomaly scores beside closed forms, and how well they tell sets apart."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import begun
from PIL import Image
from scipy import stats

from jaxvae import command_line, datasets, likelihoods, models, networks, posteriors, priors
from jaxvae.datasets import alterations
from jaxvae.families import preset
from jaxvae.uses import anomalies

KEY = jax.random.key(0)
W = np.array([[1.5, 0.0], [0.0, 0.8], [1.0, 0.0], [0.0, -0.6]])  # orthogonal columns
NOISE = 0.5
PRECISION = 1 + (W**2).sum(0) / NOISE**2  # of p(z|x), which has independent coordinates
VAE = models.vae(
    networks.mlp((), 4),
    networks.mlp((), 4),
    posteriors.normal(2),
    likelihoods.normal(NOISE),
    priors.standard_normal(2),
)


def affine(matrix: np.ndarray, bias: Any) -> dict[str, Any]:
    kernel = jnp.asarray(matrix, jnp.float32)
    return {"output": {"kernel": kernel, "bias": jnp.asarray(bias, jnp.float32)}}


def params(shift: float = 0.0, wider: float = 1.0) -> Any:
    """p(x|z) = N(Wz, 1/4), with an encoder that is exact, or shifted and wider by factors of sd."""
    deviation = PRECISION**-0.5
    mean = W / NOISE**2 / PRECISION  # [4, 2]
    encoder = affine(
        np.concatenate([mean, np.zeros((4, 2))], 1),
        np.concatenate([shift * deviation, np.log(wider * deviation)]),
    )
    of_model = VAE.init(KEY, jnp.zeros(4))
    return of_model | {"encoder": encoder, "decoder": affine(W.T, np.zeros(4))}


X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
EXACT = stats.multivariate_normal(np.zeros(4), W @ W.T + NOISE**2 * np.eye(4)).logpdf(X)


def scored(given: Any, *names: str, **more: Any) -> dict[str, np.ndarray]:
    return anomalies.scores(VAE, given, KEY, X, names, **more)


def test_scores_of_an_exact_posterior_are_exact() -> None:
    found = scored(params(), "elbo", "log_likelihood", "typicality", "regret", entropy=3.0)
    np.testing.assert_allclose(found["elbo"], -EXACT, atol=0.2)  # from 64 draws of z
    np.testing.assert_allclose(found["log_likelihood"], -EXACT, atol=2e-5)
    np.testing.assert_allclose(found["typicality"], np.abs(-EXACT - 3), atol=2e-5)
    np.testing.assert_allclose(found["regret"], 0, atol=2e-3)
    assert anomalies.entropy_of(VAE, params(), KEY, X) == pytest.approx(-EXACT.mean(), abs=2e-5)


def test_regret_is_the_divergence_of_the_encoder() -> None:
    """KL(q_enc || p(z|x)), which refinement of a diagonal Gaussian removes here."""
    shift, wider = 0.7, 1.3
    divergence = 2 * (0.5 * (wider**2 + shift**2 - 1) - math.log(wider))
    settings = anomalies.Settings(num_samples=4000, regret_steps=200)
    found = scored(params(shift, wider), "regret", settings=settings)["regret"]
    np.testing.assert_allclose(found, divergence, atol=0.06)


def test_reconstruction_is_the_expected_log_likelihood() -> None:
    settings = anomalies.Settings(num_samples=4000)
    found = scored(params(), "reconstruction", settings=settings)["reconstruction"]
    mean = X @ (W / NOISE**2 / PRECISION)
    squared = ((X - mean @ W.T) ** 2).sum(1) + ((W**2).sum(0) / PRECISION).sum()
    exact = 0.5 * squared / NOISE**2 + 2 * math.log(2 * math.pi * NOISE**2)
    np.testing.assert_allclose(found, exact, rtol=0.02)


def test_scores_do_not_depend_on_the_batch_size() -> None:
    whole, parts = (
        scored(params(0.5), "elbo", "regret", settings=anomalies.Settings(8, 5, batch_size=size))
        for size in (6, 4)
    )
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["novelty"], "there is no score 'novelty'; there are elbo, reconstruction"),
        (["typicality"], "give entropy_of"),
        (["complexity"], "complexity is of images of one or three channels"),
    ],
)
def test_scores_that_cannot_be_had(names: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        scored(params(), *names)


# Complexity


def length(image: np.ndarray) -> float:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return 8 * math.log(2) * len(file.getvalue())


def test_complexity_is_the_length_of_a_png_file() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (3, 6, 5, 1), dtype=np.uint8)
    colour = rng.integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    expected = [length(image[..., 0]) for image in grey]
    np.testing.assert_allclose(anomalies.png_lengths(KEY, grey), expected)
    expected = [length(image) for image in colour]
    np.testing.assert_allclose(anomalies.png_lengths(KEY, colour), expected)


def test_binary_images_are_compressed_as_the_model_sees_them() -> None:
    grey = np.full((2, 8, 8, 1), 128, np.uint8)
    split = datasets.prepared(datasets.Split(grey), "dynamic", 256)
    seen = anomalies.as_integers(KEY, split.examples)
    assert set(np.unique(seen)) == {0, 255}
    scaled = datasets.prepared(datasets.Split(grey), "scale", 256)
    np.testing.assert_array_equal(anomalies.as_integers(KEY, scaled.examples), grey)


def test_complexity_of_real_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="complexity is of integer pixels"):
        anomalies.png_lengths(KEY, np.random.default_rng(0).random((2, 4, 4, 1)))


# Detection


def test_detection_of_gaussian_scores() -> None:
    """Scores N(0, 1) and N(d, 1) have an AUROC of Phi(d / sqrt 2), see ROC analysis."""
    rng, d = np.random.default_rng(0), 1.2
    inside, outside = rng.normal(size=2000), d + rng.normal(size=2000)
    told = anomalies.detection(inside, outside, resamples=100)
    exact = stats.norm.cdf(d / math.sqrt(2))
    assert told.auroc.low < exact < told.auroc.high
    u = stats.mannwhitneyu(outside, inside).statistic
    assert told.auroc.value == pytest.approx(u / 2000**2, abs=1e-12)
    above = stats.norm.sf(d + stats.norm.ppf(0.05))  # the threshold finds 95 % of N(d, 1)
    assert told.false_positives.low < above < told.false_positives.high
    assert told.auroc.high - told.auroc.low == pytest.approx(4 * _hanley(exact, 2000), rel=0.25)


def _hanley(area: float, n: int) -> float:
    """The standard error of an AUROC of n and n examples (Hanley & McNeil 1982)."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    return math.sqrt((area * (1 - area) + (n - 1) * (q1 + q2 - 2 * area**2)) / n**2)


def test_anomalies_are_the_positive_class() -> None:
    low, high = np.arange(50.0), np.arange(50.0) + 100
    told = anomalies.detection(low, high, resamples=10)
    assert told.auroc.value == told.average_precision.value == 1
    assert told.false_positives.value == 0
    assert anomalies.detection(high, low, resamples=10).auroc.value == 0


def test_scores_are_compared_on_the_same_examples() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=300), 1 + rng.normal(size=300)
    noise = 0.1 * rng.normal(size=(2, 300))
    other = inside + noise[0], outside + noise[1]
    paired = anomalies.paired_difference((inside, outside), other, 200)
    alone = anomalies.detection(inside, outside, 200).auroc
    assert paired.low <= paired.value <= paired.high
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_typicality_has_its_power_in_groups() -> None:
    """-log p shifted by half a deviation: one example hardly tells, the mean of fifty does."""
    rng, entropy = np.random.default_rng(0), 100.0
    inside, outside = entropy + rng.normal(size=5000), entropy + 0.5 + rng.normal(size=5000)
    single = anomalies.auroc(abs(inside - entropy), abs(outside - entropy))
    grouped = anomalies.auroc(
        *(anomalies.of_groups(scores, entropy, 50) for scores in (inside, outside))
    )
    assert single < 0.65
    assert grouped > 0.97
    with pytest.raises(ValueError, match="a group has 60 examples, and there are 50"):
        anomalies.of_groups(inside[:50], entropy, 60)


def test_threshold_has_the_asked_share_above() -> None:
    values = np.random.default_rng(0).permutation(1000) * 1.0
    limit = anomalies.threshold(values, 0.05)
    assert (values > limit).mean() == pytest.approx(0.05, abs=1e-3)
    with pytest.raises(ValueError, match="false_positives must be between 0 and 1; it was 1"):
        anomalies.threshold(values, 1)


# Alterations


def test_alterations() -> None:
    x = np.arange(2 * 9, dtype=np.uint8).reshape(2, 3, 3, 1)
    altered = lambda name: alterations.altered(datasets.Split(x), name, 18).x
    np.testing.assert_array_equal(altered("inverted"), 17 - x)
    np.testing.assert_array_equal(altered("dimmed"), x // 4)
    np.testing.assert_array_equal(altered("rotated")[1, ..., 0], np.rot90(x[1, ..., 0]))
    with pytest.raises(datasets.DataError, match="no alteration 'blurred'; there are dimmed"):
        altered("blurred")
    with pytest.raises(datasets.DataError, match="only square images can be rotated"):
        alterations.altered(datasets.Split(x[:, :2]), "rotated", 18)


def test_images_of_another_size_are_box_means() -> None:
    x = np.random.default_rng(0).integers(0, 2, (2, 4, 4, 1), dtype=np.uint8)
    small = alterations.images_like(datasets.Split(x), 2, (2, 2, 3), 17).x
    means = x.reshape(2, 2, 2, 2, 2).mean((2, 4))
    assert small.shape == (2, 2, 2, 3)
    np.testing.assert_allclose(small, np.repeat(16 * means[..., None], 3, -1), atol=0.51)
    with pytest.raises(datasets.DataError, match="only images of integers can be scaled"):
        alterations.images_like(datasets.Split(np.zeros((2, 5))), None, (4, 4, 1), 2)


# The command


@pytest.fixture(scope="module")
def run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "digits"
    return begun(workdir, preset("digits", hidden=(8,), latent=2), data_dir=data_dir)


def test_the_command_scores_and_draws(run: Path, capsys: pytest.CaptureFixture) -> None:
    few = "--num-examples 12 --num-samples 2 --regret-steps 2 --resamples 5"
    command_line.main(["score", str(run), "--alter", "inverted", *few.split()])
    folder = run / "anomalies" / "inverted"
    names = {"scores.npz", "scores.json", "histograms.png", "most_anomalous.png"}
    assert {file.name for file in folder.iterdir()} == names
    numbers = json.loads((folder / "scores.json").read_text())
    assert numbers["examples"] == {"inside": 12, "outside": 12}
    assert tuple(numbers["scores"]) == anomalies.SCORES
    with np.load(folder / "scores.npz") as saved:
        told = anomalies.detection(saved["inside_elbo"], saved["outside_elbo"], 5)
    assert numbers["scores"]["elbo"]["auroc"][0] == told.auroc.value
    assert "false positives" in capsys.readouterr().out


def test_a_class_can_be_the_anomalous_one(run: Path, tmp_path: Path) -> None:
    arguments = "--anomalous-class 3 --scores elbo --num-samples 1 --resamples 5 --num-examples 9"
    command_line.main(["score", str(run), *arguments.split(), "--out", str(tmp_path)])
    assert json.loads((tmp_path / "scores.json").read_text())["examples"]["outside"] == 9


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--against {arrays}", "only images of integers can be scaled"),
        ("--anomalous-class ten", "--anomalous-class ten: the classes are 0, 1"),
        ("--anomalous-class 3 --alter dimmed", "takes both sets from data"),
        ("--scores novelty", "invalid choice 'novelty'"),
        ("--split half", "no split 'half'"),
        ("--num-examples 0", "--num-examples must be at least 1; it was 0"),
    ],
)
def test_mistakes(
    run: Path, tmp_path: Path, arguments: str, sentence: str, capsys: pytest.CaptureFixture
) -> None:
    np.save(tmp_path / "arrays.npy", np.zeros((3, 5), np.float32))
    given = arguments.format(arrays=tmp_path / "arrays.npy").split()
    with pytest.raises(SystemExit) as ended:
        command_line.main(["score", str(run), *given])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
