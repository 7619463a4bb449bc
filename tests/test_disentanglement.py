"""Disentanglement scores: published unit values, closed forms, scikit-learn and SciPy, loops
over single batches.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import linalg, stats
from sklearn import metrics

from jaxvae.datasets import shapes
from jaxvae.evaluation import disentanglement as scores
from jaxvae.evaluation.disentanglement import interventions

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
FACTORS = RNG.integers(1, 11, (3000, 10))  # those of disentanglement_lib's IdentityObservations
ZEROS, TWICE = np.zeros((3000, 10)), np.concatenate([FACTORS, FACTORS], 1)
SMALL = {"batch_size": 5, "num_train": 3000, "num_test": 2000}

EYE = 5.0 * np.eye(5)
STACKED, BESIDE = np.concatenate([EYE, EYE], 0), np.concatenate([EYE, EYE], 1)
EMPTY_CODE = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
SHARED = 1 - np.log(2) / np.log(10)


@pytest.mark.parametrize(
    "score, matrix, value",
    [
        (scores.disentanglement, EYE, 1.0),
        (scores.disentanglement, EMPTY_CODE, 1.0),
        (scores.disentanglement, np.zeros((10, 10)), 0.0),
        (scores.disentanglement, STACKED, 1.0),
        (scores.disentanglement, BESIDE, SHARED),
        (scores.completeness, EYE, 1.0),
        (scores.completeness, np.zeros((10, 10)), 0.0),
        (scores.completeness, STACKED, SHARED),
        (scores.completeness, BESIDE, 1.0),
        (scores.modularity, EYE, 1.0),
        (scores.modularity, EMPTY_CODE, 2 / 3),
        (scores.modularity, np.zeros((10, 10)), 0.0),
        (scores.modularity, np.array([[2.0, 1.0, 0.0]]), 1 - 1 / 8),
        (scores.modularity, STACKED, 1.0),
        (scores.modularity, BESIDE, 8 / 9),
        (scores.relative_strength, np.eye(3), 1.0),
        (scores.relative_strength, [[1.0, 1, 0], [1, 1, 0], [0, 0, 1]], 2 / 3),
        (scores.relative_strength, np.ones((3, 3)), 1 / 3),
        (scores.relative_strength, np.zeros((3, 3)), 0.0),
        (scores.relative_strength, [[0.5, 0.0, 0.5]], (0.25 / 1.0 + (0.5 + 0 + 0.5) / 3) / 2),
    ],
)
def test_published_values_of_matrices(score, matrix, value):
    np.testing.assert_allclose(score(np.asarray(matrix)), value, rtol=1e-12)


def test_importance_weighs_codes_and_factors():
    """Against the formulas, with SciPy's entropy."""
    r = RNG.random((7, 4)) ** 3
    per_code = 1 - stats.entropy(r.T, base=4)
    per_factor = 1 - stats.entropy(r, base=7)
    np.testing.assert_allclose(scores.disentanglement(r), np.average(per_code, weights=r.sum(1)))
    np.testing.assert_allclose(scores.completeness(r), np.average(per_factor, weights=r.sum(0)))


def beta_vae(codes, factors):
    return scores.beta_vae(np.asarray(codes).__getitem__, factors, KEY, **SMALL)


def factor_vae(codes, factors):
    return scores.factor_vae(np.asarray(codes).__getitem__, factors, KEY, **SMALL)


def modularity(codes, factors):
    return scores.modularity(scores.mutual_information(codes, factors))


@pytest.mark.parametrize(
    "score, codes, low, high",
    [
        (scores.mig, FACTORS, 0.9, 1.0),
        (scores.mig, ZEROS, 0.0, 0.2),
        (scores.mig, TWICE, 0.0, 0.1),
        (scores.sap, FACTORS, 0.9, 1.0),
        (scores.sap, ZEROS, 0.0, 0.2),
        (scores.sap, TWICE, 0.0, 0.2),
        (scores.irs, FACTORS, 0.9, 1.0),
        (scores.irs, ZEROS, 0.0, 0.1),
        (modularity, FACTORS, 0.9, 1.0),
        (modularity, TWICE, 0.9, 1.0),
        (beta_vae, FACTORS, 0.9, 1.0),
        (factor_vae, FACTORS, 0.9, 1.0),
        (factor_vae, ZEROS, 0.0, 0.2),
    ],
)
def test_published_ranges_of_identity_observations(score, codes, low, high):
    assert low <= score(codes, FACTORS) <= high


def test_codes_in_random_order_are_not_modular():
    factors = np.random.default_rng(1).integers(1, 11, (20_000, 10))
    codes = np.random.default_rng(2).permuted(factors, axis=1)
    assert 0.0 <= modularity(codes, factors) <= 0.2


CODES = RNG.normal(size=(500, 4)) @ RNG.normal(size=(4, 4))
CODES[:, 3] = np.round(CODES[:, 3])  # ties
LABELS = np.stack(
    [np.digitize(CODES[:, 0] + 0.5 * CODES[:, 1], [-1.0, 0.0, 1.5]), CODES[:, 3] > 0], 1
).astype(int)


def test_mutual_information_and_entropy_agree_with_scikit_learn():
    bins = scores.discretized(CODES, 7)
    assert bins.min() == 0 and bins.max() == 6
    for i, z in enumerate(CODES.T):  # equally wide: as NumPy's histogram counts
        np.testing.assert_array_equal(np.bincount(bins[:, i], minlength=7), np.histogram(z, 7)[0])
    expected = [[metrics.mutual_info_score(v, z) for v in LABELS.T] for z in bins.T]
    np.testing.assert_allclose(scores.mutual_information(CODES, LABELS, 7), expected, atol=1e-12)
    np.testing.assert_allclose(
        scores.entropy(LABELS), [metrics.mutual_info_score(v, v) for v in LABELS.T]
    )
    first, second = np.sort(expected, 0)[::-1][:2]
    np.testing.assert_allclose(
        scores.mig(CODES, LABELS, 7), np.mean((first - second) / scores.entropy(LABELS))
    )
    pairs = [
        metrics.mutual_info_score(a, b)
        for i, a in enumerate(bins.T)
        for j, b in enumerate(bins.T)
        if i != j
    ]
    np.testing.assert_allclose(scores.mean_mutual_information(CODES, 7), np.mean(pairs), rtol=1e-10)


def test_sap_is_the_gap_between_coefficients_of_determination():
    fits = [[stats.linregress(z, v).rvalue ** 2 for v in LABELS.T] for z in CODES.T]
    second, best = np.sort(fits, 0)[-2:]
    np.testing.assert_allclose(scores.sap(CODES, LABELS), np.mean(best - second))


def test_ranks_and_correlations_agree_with_scipy():
    other = RNG.normal(size=(500, 3)) + CODES[:, 1:]
    expected = [[abs(stats.spearmanr(a, b).statistic) for b in other.T] for a in CODES.T]
    np.testing.assert_allclose(scores.spearman(CODES, other), expected, rtol=1e-10)


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.9])
def test_gaussian_correlations_have_their_closed_forms(rho):
    """Total correlation -1/2 log(1 - rho^2); the eigenvalues of S C S for unit variances are 1 +
    rho and 1 - rho.
    """
    raw = RNG.normal(size=(200, 2))
    white = np.linalg.solve(np.linalg.cholesky(np.cov(raw.T)), (raw - raw.mean(0)).T).T
    z = white @ np.array([[1.0, rho], [0.0, np.sqrt(1 - rho**2)]])
    np.testing.assert_allclose(
        scores.gaussian_total_correlation(z), -0.5 * np.log(1 - rho**2), rtol=1e-9
    )
    wasserstein = 4 - 2 * (np.sqrt(1 + rho) + np.sqrt(1 - rho))
    np.testing.assert_allclose(scores.gaussian_wasserstein_correlation(z), wasserstein, rtol=1e-9)
    np.testing.assert_allclose(
        scores.normalized_wasserstein_correlation(7 * z), wasserstein / 2, rtol=1e-9
    )


def test_gaussian_wasserstein_correlation_is_scipys_square_root():
    c = np.cov(CODES.T)
    root = linalg.sqrtm(c * np.diag(c)[:, None]).real
    expected = 2 * np.trace(c) - 2 * np.trace(root)
    np.testing.assert_allclose(scores.gaussian_wasserstein_correlation(CODES), expected, rtol=1e-8)
    with_constant = np.concatenate([CODES, np.full((500, 1), 0.1)], 1)
    np.testing.assert_allclose(
        scores.gaussian_wasserstein_correlation(with_constant), expected, rtol=1e-8
    )
    assert np.isfinite(scores.gaussian_total_correlation(with_constant))


def test_robustness_is_that_of_its_definition():
    """One code that is the factor with a bounded disturbance, one that has nothing to do with
    it.
    """
    v = np.repeat([0.0, 10.0], 500)
    noise = np.tile(np.linspace(-1, 1, 500), 2)
    half = np.tile([0.0, 1.0], 500)  # the other factor
    z = np.stack([v + noise, np.tile(np.linspace(-3, 3, 500), 2)], 1)
    # code 0 given v: 1 of 6; code 1 given anything: 3 of 3, but for what the other factor leaves
    expected = np.average([1 - 1 / 6, 0.0], weights=[6.0, 3.0])
    np.testing.assert_allclose(
        scores.irs(z, np.stack([v, half], 1), quantile=1.0), expected, atol=0.01
    )
    assert scores.irs(z, np.stack([v, half], 1)) > scores.irs(
        z, np.stack([v, half], 1), quantile=1.0
    )


def test_peers_are_uniform_among_those_that_share_the_factor():
    factors = np.array([[0, 5], [0, 6], [1, 5], [0, 6], [1, 7], [0, 5]])
    rows = np.tile(np.arange(6), (4000, 1))
    generator = np.random.default_rng(0)
    for k in range(2):
        drawn = interventions.peers_of(factors)(generator, np.full((4000, 1), k), rows)
        for row in range(6):
            shares = factors[:, k] == factors[row, k]
            counts = np.bincount(drawn[:, row], minlength=6)
            assert not counts[~shares].any()
            if shares.sum() > 1:
                assert stats.chisquare(counts[shares]).pvalue > 1e-4


def reference_votes(codes, grid, k, generator, batch_size):
    """A batch of FactorVAE's, drawn as an intervention on a full grid."""
    values = np.stack([generator.integers(n, size=batch_size) for n in grid], 1)
    values[:, k] = values[0, k]
    z = codes[np.ravel_multi_index(values.T, grid)]
    return int(np.argmin(z.var(0, ddof=1) / codes.var(0, ddof=1)))


def test_interventional_scores_of_mixed_codes_agree_with_loops_over_a_grid():
    """Both are estimates: their difference has a standard error of about 0.015."""
    grid = (4, 5, 6)
    v = np.stack([f.ravel() for f in np.indices(grid)], 1)
    codes = v @ np.array([[1.0, 0.6, 0.2], [0.0, 1.0, 0.7], [0.4, 0.0, 1.0]]) + 0.3 * RNG.normal(
        size=(120, 3)
    )
    generator = np.random.default_rng(3)
    votes = np.array(
        [[k, reference_votes(codes, grid, k, generator, 8)] for k in np.tile(np.arange(3), 700)]
    )
    classes = [np.bincount(votes[votes[:, 1] == i, 0], minlength=3).argmax() for i in range(3)]
    expected = np.mean(np.array(classes)[votes[:, 1]] == votes[:, 0])
    options = {"batch_size": 8, "num_train": 2000, "num_test": 2000}
    got = scores.factor_vae(codes.__getitem__, v, KEY, num_variance=5000, **options)
    assert 0.4 < expected < 0.95
    assert got == pytest.approx(expected, abs=0.06)
    assert got == scores.factor_vae(codes.__getitem__, v, KEY, num_variance=5000, **options)
    assert scores.beta_vae(codes.__getitem__, v, KEY, **options) > 0.5


def test_collapsed_codes_do_not_vote():
    """The one code that knows the second factor is too narrow; without it half of the votes are
    wrong.
    """
    grid = np.stack([f.ravel() for f in np.indices((4, 5))], 1)
    codes = grid * np.array([1.0, 0.01])
    options = {"batch_size": 16, "num_train": 500, "num_test": 500, "num_variance": 500}
    assert scores.factor_vae(codes.__getitem__, grid, KEY, least_scale=0.0, **options) > 0.99
    assert scores.factor_vae(codes.__getitem__, grid, KEY, **options) == pytest.approx(0.5, abs=0.1)
    assert scores.factor_vae(codes[:, 1:].__getitem__, grid, KEY, **options) == 0.0


SIGNS, ORDER = np.array([1, -1, 1, -1, 1]), np.array([2, 0, 4, 1, 3])


@pytest.mark.parametrize("relation", [scores.lasso, scores.spearman], ids=["lasso", "spearman"])
def test_udr_ignores_order_and_sign_and_latents_without_information(relation):
    z = RNG.random((1000, 5))
    again, noise = (z * SIGNS)[:, ORDER], RNG.random((1000, 5))
    high = scores.udr([z, again], [np.ones(5)] * 2, relation)
    assert np.all((high > 0.8) & (high <= 1.0))
    mixed = (
        np.concatenate([z[:, :1], noise[:, 1:]], 1),
        np.concatenate([z[:, :1], noise[:, :1] + z[:, 1:]], 1),
    )
    only_first = [np.array([1.0, 0, 0, 0, 0])] * 2
    assert np.all(scores.udr(mixed, only_first, relation) > 0.8)
    assert np.all(scores.udr([z, noise], [np.ones(5)] * 2, relation) < 0.3)
    np.testing.assert_array_equal(scores.udr([z, again], [np.ones(5), np.zeros(5)], relation), 0.0)


def test_udr_is_the_median_over_the_other_models():
    z, noise = RNG.random((1000, 5)), RNG.random((1000, 5))
    found = scores.udr([z, z[:, ORDER], -z, noise], [np.ones(5)] * 4)
    np.testing.assert_allclose(
        found[:3], 0.9, atol=1e-6
    )  # the lasso of equal codes is 1 - 0.1, and noise is outvoted
    assert found[3] < 0.1


def test_lasso_of_uncorrelated_codes_is_soft_thresholding():
    normal = RNG.normal(size=(400, 4))
    q = np.sqrt(400) * np.linalg.qr(normal - normal.mean(0))[0]
    weights = np.array([[0.5, 0.0], [-0.3, 0.05], [0.0, 1.0], [0.08, -0.7]])
    np.testing.assert_allclose(
        scores.lasso(q, q @ weights), np.maximum(np.abs(weights) - 0.1, 0), atol=1e-3
    )


@pytest.fixture(scope="module")
def annotated():
    """Points of three factors with codes that are one factor each, and two of noise."""
    generator = np.random.default_rng(5)

    def draw(n):
        v = np.stack([generator.integers(k, size=n) for k in (3, 4, 2)], 1)
        noise = generator.normal(size=(n, 2))
        return np.concatenate([v[:, ::-1] + 0.1 * noise[:, :1], noise], 1), v

    return draw(800), draw(400)


def test_dci_finds_the_codes_of_the_factors(annotated):
    found = scores.dci(*annotated)
    assert found.importance.shape == (5, 3)
    np.testing.assert_allclose(found.importance.sum(0), 1.0)
    np.testing.assert_array_equal(found.importance.argmax(0), [2, 1, 0])
    assert found.disentanglement > 0.9 and found.completeness > 0.9
    assert found.informativeness > 0.98 and found.informativeness_train > 0.98


def test_dci_takes_other_learners(annotated):
    (codes, factors), test = annotated
    found = scores.dci((codes[:200], factors[:200]), test, scores.boosted_trees)
    assert found.disentanglement > 0.9 and found.informativeness > 0.95


def test_predictability_falls_to_chance_with_codes_of_noise(annotated):
    train, test = annotated
    blind = [(codes[:, 3:], factors) for codes, factors in (train, test)]
    assert scores.explicitness(train, test) > 0.95
    assert scores.explicitness(*blind) == pytest.approx(0.5, abs=0.08)
    assert scores.sap_of_classes(train, test) > 0.3
    assert scores.sap_of_classes(*blind) < 0.1
    assert scores.dci(*blind).informativeness < 0.6


def test_explicitness_is_what_a_line_can_tell():
    """Nothing of an ordered code's parity, everything of a class in one-hot codes."""
    v = np.tile([0, 1, 2], 300)[:, None]
    assert scores.explicitness((v, v % 2), (v, v % 2)) == pytest.approx(0.5, abs=1e-6)
    one_hot = np.eye(3)[v[:, 0]]
    assert scores.explicitness((one_hot, v), (one_hot, v)) == 1.0


def test_codes_may_be_rendered_shapes_in_parts():
    """Codes are any function of the rows: here the images' centres and areas, which are position
    and scale.
    """
    everything = shapes.images()
    rows = np.random.default_rng(0).choice(len(everything), 1000, replace=False)
    some, factors = everything[rows], everything.factors[rows]
    seen = []

    def represent(rows):
        seen.append(len(rows))
        pixels = np.asarray(some[rows])[..., 0].astype(float)
        place = np.arange(64) / 64
        total = pixels.sum((1, 2))
        return np.stack(
            [pixels.sum(1) @ place / total, pixels.sum(2) @ place / total, total / 300], 1
        )

    options = {"batch_size": 16, "num_train": 300, "num_test": 100, "num_variance": 300}
    assert scores.factor_vae(represent, factors[:, [1, 3, 4]], KEY, **options) > 0.95
    assert max(seen) <= interventions.VOTES * 16
    codes = represent(np.arange(1000))
    information = scores.mutual_information(codes, factors)
    np.testing.assert_array_equal(information.argmax(0)[[1, 3, 4]], [2, 0, 1])
    assert scores.sap(codes, factors[:, [1, 3, 4]]) > 0.8


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: scores.mig(np.zeros((5, 2)), np.arange(4)[:, None]),
            "same examples; there are 5 and 4",
        ),
        (
            lambda: scores.mig(np.zeros((4, 2)), np.zeros((4, 3))),
            r"columns \[0, 1, 2\] have one value each",
        ),
        (lambda: scores.mig(np.zeros((4, 1)), np.arange(4)[:, None]), "at least two codes"),
        (lambda: scores.mig(np.zeros((4, 2, 2)), np.arange(4)[:, None]), r"shape was \(4, 2, 2\)"),
        (lambda: scores.mig(np.full((4, 2), np.nan), np.arange(4)[:, None]), "8 values are not"),
        (lambda: scores.modularity(np.ones((3, 1))), "at least two factors"),
        (lambda: scores.completeness(np.ones((1, 3))), "at least two codes"),
        (lambda: scores.mean_mutual_information(np.ones((3, 1))), "at least two codes"),
        (lambda: scores.gaussian_total_correlation(np.ones((3, 2))), "all codes are constant"),
        (lambda: scores.udr([CODES], [np.ones(4)]), "two models or more"),
        (
            lambda: scores.udr([CODES, CODES[:9]], [np.ones(4)] * 2),
            r"same examples; there were \[500, 9\]",
        ),
        (
            lambda: scores.udr([CODES, CODES], [np.ones(3)] * 2),
            r"each of 4 latents is needed; its shape was \(3,\)",
        ),
    ],
)
def test_bad_input_is_met_at_the_door(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("module", ["ensemble", "linear_model", "svm"])
def test_without_scikit_learn_it_says_what_to_install(module, annotated, monkeypatch):
    monkeypatch.setitem(sys.modules, f"sklearn.{module}", None)
    score = {
        "ensemble": scores.dci,
        "linear_model": scores.explicitness,
        "svm": scores.sap_of_classes,
    }[module]
    with pytest.raises(ImportError, match=r"pip install 'jaxvae\[train\]'"):
        score(*annotated)


def test_scikit_learn_is_imported_where_it_is_needed_only():
    for file in Path(scores.__file__).parent.glob("*.py"):
        imported = re.search(r"^(import|from) (sklearn|scipy)", file.read_text(), re.MULTILINE)
        assert not imported, file
