"""Judging samples: brute force, scikit-learn, SciPy and expectations that hold for any density
are the oracles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from scipy import linalg, spatial, stats
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from jaxvae.evaluation import samples

SETS = {
    "gaussian": lambda rng: (rng.normal(size=(60, 3)), rng.normal(0.4, 1.3, size=(45, 3))),
    "far_from_zero": lambda rng: (
        rng.normal(1e8, 1, size=(40, 5)),
        rng.normal(1e8, 1, size=(50, 5)),
    ),
    "many_ties": lambda rng: (rng.integers(0, 3, (50, 4)) / 10, rng.integers(0, 3, (70, 4)) / 10),
    "binary_images": lambda rng: (
        rng.integers(0, 2, (40, 4, 4, 1)),
        rng.integers(0, 2, (30, 4, 4, 1)),
    ),
    "all_equal": lambda rng: (np.full((9, 2), 0.3), np.full((8, 2), 0.3)),
}


def a_pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    return SETS[name](np.random.default_rng(3))


def modes(rng: np.random.Generator, count: int, which: int) -> np.ndarray:
    """Gaussians of variance 1 around the first ``which`` of four corners of a square with sides
    of 20.
    """
    centres = np.array([[0, 0], [0, 20], [20, 0], [20, 20]])[rng.integers(0, which, count)]
    return centres + rng.normal(size=(count, 2))


def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float64)


@pytest.fixture(params=[samples.BLOCK, 100])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything at once, and a few rows at a time."""
    monkeypatch.setattr(samples, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [1, 4])
def test_nearest_neighbours_are_those_of_scikit_learn(name: str, k: int) -> None:
    train, points = a_pair(name)
    expected, _ = (
        NearestNeighbors(n_neighbors=k, algorithm="brute").fit(flat(train)).kneighbors(flat(points))
    )
    found = samples.nearest_neighbours(points, train, k)
    exact = spatial.distance.cdist(flat(points), flat(train))
    np.testing.assert_allclose(found.distances, np.sort(exact, 1)[:, :k], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        found.distances, np.take_along_axis(exact, found.places, 1), rtol=1e-9, atol=1e-12
    )
    if name != "far_from_zero":  # where scikit-learn's products of matrices cancel
        np.testing.assert_allclose(found.distances, expected, atol=1e-7)


def by_loops(real: np.ndarray, generated: np.ndarray, k: int) -> dict[str, float]:
    """Every definition as it stands, over pairs of rows."""
    distance = lambda a, b: float(np.sqrt(((a - b) ** 2).sum()))
    radius = lambda x, i: sorted(distance(x[i], other) for j, other in enumerate(x) if j != i)[
        k - 1
    ]
    r = [radius(real, i) for i in range(len(real))]
    s = [radius(generated, j) for j in range(len(generated))]
    d = [[distance(x, y) for y in generated] for x in real]
    rows, columns = range(len(real)), range(len(generated))
    return {
        "precision": np.mean([any(d[i][j] <= r[i] for i in rows) for j in columns]),
        "recall": np.mean([any(d[i][j] <= s[j] for j in columns) for i in rows]),
        "density": sum(d[i][j] < r[i] for i in rows for j in columns) / (k * len(generated)),
        "coverage": np.mean([any(d[i][j] < r[i] for j in columns) for i in rows]),
    }


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [1, 3])
def test_shares_are_those_of_their_definitions(name: str, k: int) -> None:
    """To the last pair, ties included."""
    real, generated = a_pair(name)
    found = samples.precision_recall(real, generated, k)._asdict()
    found |= samples.density_coverage(real, generated, k)._asdict()
    assert found == pytest.approx(by_loops(flat(real), flat(generated), k), abs=1e-12)


def test_copies_of_the_real_set_are_perfect() -> None:
    real = np.random.default_rng(0).normal(size=(200, 6))
    assert samples.precision_recall(real, real) == (1.0, 1.0)
    assert samples.density_coverage(real, real) == (pytest.approx(1.0), 1.0)
    assert samples.frechet(real, real) == pytest.approx(0.0, abs=1e-10)


def test_sets_far_apart_have_nothing_in_common() -> None:
    real = np.random.default_rng(0).normal(size=(100, 6))
    assert samples.precision_recall(real, real + 50) == (0.0, 0.0)
    assert samples.density_coverage(real, real + 50) == (0.0, 0.0)


def test_dropped_modes_lower_recall_and_coverage_alone() -> None:
    rng = np.random.default_rng(1)
    real, all_modes, half = modes(rng, 800, 4), modes(rng, 800, 4), modes(rng, 800, 2)
    whole, dropped = samples.precision_recall(real, all_modes), samples.precision_recall(real, half)
    assert whole.precision > 0.95 and whole.recall > 0.95
    assert dropped.precision > 0.95
    assert dropped.recall == pytest.approx(0.5, abs=0.06)
    whole_dc, dropped_dc = (
        samples.density_coverage(real, all_modes),
        samples.density_coverage(real, half),
    )
    assert whole_dc == (pytest.approx(1.0, abs=0.1), pytest.approx(0.97, abs=0.03))
    assert dropped_dc.density == pytest.approx(1.0, abs=0.1)
    assert dropped_dc.coverage == pytest.approx(0.5, abs=0.06)


def test_invented_modes_lower_precision_and_density_alone() -> None:
    rng = np.random.default_rng(2)
    real, generated = modes(rng, 600, 2), modes(rng, 1200, 4)
    found, found_dc = (
        samples.precision_recall(real, generated),
        samples.density_coverage(real, generated),
    )
    assert found == (pytest.approx(0.5, abs=0.06), pytest.approx(1.0, abs=0.05))
    assert found_dc == (pytest.approx(0.5, abs=0.06), pytest.approx(0.97, abs=0.03))


@pytest.mark.parametrize(
    ("n", "m", "k"), [(30, 50, 2), (40, 20, 5)], ids=["more_generated", "more_real"]
)
@pytest.mark.parametrize("density", ["normal", "exponential"])
def test_density_and_coverage_of_equal_densities_do_not_depend_on_the_density(
    density: str, n: int, m: int, k: int
) -> None:
    """E[density] = 1 and E[coverage] = 1 - prod_i (N - i) / (N + M - i): counting which of the
    points come first.
    """
    rng = np.random.default_rng(5)
    draw = getattr(rng, density)
    repeats = [
        samples.density_coverage(draw(size=(n, 2)), draw(size=(m, 2)), k) for _ in range(300)
    ]
    i = np.arange(1, k + 1)
    expected = np.array([1.0, 1 - np.prod((n - i) / (n + m - i))])
    error = np.std(repeats, axis=0, ddof=1) / np.sqrt(len(repeats))
    assert np.abs((np.mean(repeats, 0) - expected) / error).max() < 4.5
    assert error.max() < 0.02


def with_moments(rng: np.random.Generator, mean: Any, covariance: Any, count: int) -> np.ndarray:
    """Rows whose sample mean and covariance are exactly these."""
    x = rng.normal(size=(count, len(mean)))
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x.T).reshape(len(mean), -1)), (x - x.mean(0)).T).T
    return mean + x @ np.real(linalg.sqrtm(np.asarray(covariance, np.float64)))


def test_frechet_of_gaussians_with_a_common_basis() -> None:
    """|m_1 - m_2|^2 + sum_f (s_f - t_f)^2 for variances s^2 and t^2 in one rotated basis, zeros
    among them.
    """
    rng = np.random.default_rng(7)
    basis = stats.ortho_group(4, seed=1).rvs()
    s, t = np.array([2.0, 1.0, 0.0, 0.5]), np.array([0.3, 1.0, 0.7, 0.0])
    sets = [
        with_moments(rng, mean, basis @ np.diag(scale**2) @ basis.T, 50)
        for mean, scale in ((np.zeros(4), s), (np.arange(4.0), t))
    ]
    assert samples.frechet(*sets) == pytest.approx(14 + ((s - t) ** 2).sum(), abs=1e-6)
    assert samples.frechet(sets[0] * 1e-4, sets[1] * 1e-4) == pytest.approx(
        (14 + ((s - t) ** 2).sum()) * 1e-8, rel=1e-6
    )


def test_frechet_is_the_formula_with_a_matrix_root() -> None:
    rng = np.random.default_rng(8)
    a, b = (
        rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)),
        rng.normal(0.5, 1, (100, 5)) @ rng.normal(size=(5, 5)),
    )
    first, second = np.cov(a.T), np.cov(b.T)
    root = np.real(linalg.sqrtm(first @ second))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert samples.frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert samples.frechet(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_drawn_gaussians() -> None:
    rng = np.random.default_rng(9)
    a, b = rng.normal(0.0, 1.0, (20_000, 2)), rng.normal(1.0, 2.0, (20_000, 2))
    assert samples.frechet(a, b) == pytest.approx(2 * (1 + 1), rel=0.03)


def test_frechet_warns_of_covariances_that_the_examples_do_not_determine() -> None:
    x = np.random.default_rng(0).normal(size=(6, 6))
    with pytest.warns(
        UserWarning, match="6 examples do not determine the covariance of 6 features"
    ):
        assert samples.frechet(x, x) == pytest.approx(0.0, abs=1e-12)
    samples.frechet(
        np.vstack([x, x[:1]]), np.vstack([x, x[:1]])
    )  # as many as are needed: no warning


@pytest.mark.parametrize("ties", [False, True])
def test_the_z_score_of_copying_is_that_of_mann_and_whitney(ties: bool) -> None:
    rng = np.random.default_rng(4)
    draw = (
        (lambda n: rng.integers(0, 4, (n, 2)) * 1.0)
        if ties
        else (lambda n: rng.normal(size=(n, 2)))
    )
    train, held_out, generated = draw(30), draw(25), draw(40) + 0.3 * (not ties)
    found = samples.data_copying(generated, held_out, train)
    distances = [spatial.distance.cdist(x, train).min(1) for x in (generated, held_out)]
    test = stats.mannwhitneyu(*distances, method="asymptotic", use_continuity=False)
    np.testing.assert_allclose(found.generated, distances[0], atol=1e-12)
    np.testing.assert_allclose(found.held_out, distances[1], atol=1e-12)
    assert 2 * stats.norm.sf(abs(found.z_score)) == pytest.approx(test.pvalue, rel=1e-9)
    assert found.nearer == pytest.approx(1 - test.statistic / (40 * 25))


def test_copies_are_flagged_and_fresh_samples_are_not() -> None:
    rng = np.random.default_rng(6)
    train, held_out = rng.normal(size=(500, 4)), rng.normal(size=(300, 4))
    copies = samples.data_copying(train[rng.integers(0, 500, 200)], held_out, train)
    near = samples.data_copying(
        train[rng.integers(0, 500, 200)] + rng.normal(0, 0.05, (200, 4)), held_out, train
    )
    far = samples.data_copying(3 * rng.normal(size=(200, 4)), held_out, train)
    assert copies.nearer == 1.0 and copies.z_score < -15
    assert near.nearer > 0.95 and near.z_score < -15
    assert far.nearer < 0.2 and far.z_score > 10
    fresh = [
        samples.data_copying(rng.normal(size=(200, 4)), rng.normal(size=(300, 4)), train)
        for _ in range(30)
    ]
    z_scores = np.array([one.z_score for one in fresh])
    assert (
        abs(z_scores.mean()) < 1 and 0.5 < z_scores.std(ddof=1) < 1.6 and np.abs(z_scores).max() < 4
    )
    assert samples.data_copying(train[:5], train[:7], train)[2:] == (0.5, 0.0)


@functools.cache
def digits(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    found = load_digits()
    return found.images.reshape(-1, *shape).astype(np.uint8), found.target


def trained(*shape: int) -> samples.Classifier:
    images, labels = digits(*shape)
    return samples.classifier_features(
        images[:1500],
        labels[:1500],
        jax.random.key(0),
        num_steps=200,
        width=32,
        batch_size=64,
        learning_rate=3e-3,
    )


classifier_of = functools.cache(trained)


@pytest.mark.parametrize(
    "shape", [pytest.param((8, 8, 1), marks=pytest.mark.slow), (64,)], ids=["images", "vectors"]
)
def test_features_of_a_classifier_of_digits(shape: tuple[int, ...]) -> None:
    """Fresh digits lie among their own class, and far nearer to the known ones than pixels in
    disorder do.
    """
    (images, labels), classifier = digits(*shape), classifier_of(*shape)
    known, fresh = classifier.features(images[:1500]), classifier.features(images[1500:])
    assert classifier.accuracy > 0.95
    assert fresh.shape == (297, 32) and fresh.dtype == np.float64
    np.testing.assert_allclose(
        classifier.features(images[1500:1507]), fresh[:7], rtol=1e-4, atol=1e-4
    )
    neighbours = samples.nearest_neighbours(fresh, known).places[:, 0]
    assert (labels[neighbours] == labels[1500:]).mean() > 0.9
    noise = classifier.features(np.random.default_rng(0).permuted(images[1500:]))
    assert samples.frechet(known, noise) > 3 * samples.frechet(known, fresh)


def test_the_same_key_trains_the_same_classifier() -> None:
    images, _ = digits(64)
    np.testing.assert_array_equal(
        trained(64).features(images[:5]), classifier_of(64).features(images[:5])
    )


X, Y = np.zeros((10, 2)), np.zeros((8, 2))
FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "other_features": (
        lambda: samples.precision_recall(X, np.zeros((8, 3))),
        "same features; they have 2 and 3",
    ),
    "k_too_large": (lambda: samples.precision_recall(X, Y, 8), "1 <= k <= 7"),
    "k_zero": (lambda: samples.density_coverage(X, Y, 0), "1 <= k <= 9"),
    "k_of_neighbours": (lambda: samples.nearest_neighbours(X, Y, 9), "1 <= k <= 8"),
    "one_axis": (lambda: samples.frechet(X[:, 0], Y), r"real must be \[N, F\]"),
    "empty": (lambda: samples.frechet(X, Y[:0]), r"generated must be \[N, F\]"),
    "not_finite": (lambda: samples.frechet(X, Y + np.nan), "16 values that are not finite"),
    "one_example": (
        lambda: samples.frechet(X, Y[:1]),
        "needs two examples; there are 10 real and 1 generated",
    ),
    "float_labels": (
        lambda: samples.classifier_features(X, X[:, 0], jax.random.key(0)),
        "integer labels",
    ),
    "too_few_labels": (
        lambda: samples.classifier_features(X, np.arange(8), jax.random.key(0)),
        "of shape .10,.",
    ),
    "one_class": (
        lambda: samples.classifier_features(X, np.zeros(10, int), jax.random.key(0)),
        "from 0 to 0",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_refused(fault: str) -> None:
    call, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        call()
