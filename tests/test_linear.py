"""Probabilistic PCA and factor analysis by EM, beside closed forms and scikit-learn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.decomposition import FactorAnalysis
from threadpoolctl import threadpool_limits

from jaxvae.datasets import DataError
from jaxvae.uses import linear


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of BLAS wait for each other on busy cores, and these matrices are small."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """300 rows of 8 columns around a plane, with other means and noises."""
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 8)) * 2
    return plane + rng.normal(size=(300, 8)) * np.linspace(0.6, 1.2, 8) + np.arange(8)


@pytest.fixture(scope="module")
def gaps(rows: np.ndarray) -> np.ndarray:
    """The same rows without a third of their cells; one row has none."""
    hidden = np.random.default_rng(1).random(rows.shape) < 1 / 3
    hidden[0] = True
    return np.where(hidden, np.nan, rows)


@pytest.mark.parametrize("fit", [linear.probabilistic_pca, linear.factor_analysis])
@pytest.mark.parametrize("complete", [True, False])
def test_no_iteration_lowers_the_likelihood(
    fit: Any, complete: bool, rows: np.ndarray, gaps: np.ndarray
) -> None:
    model = fit(rows if complete else gaps, 2, 250)
    assert len(model.course) == 251
    assert np.diff(model.course).min() > -1e-9
    assert model.course[-1] > model.course[0]


def test_probabilistic_pca_ends_at_the_closed_form(images: np.ndarray) -> None:
    """The published maximum of the digits (Lucas et al. 2019) and the eigenvectors' span."""
    exact, model = linear.closed_form(images, 10), linear.probabilistic_pca(images, 10, 80)
    assert exact.log_likelihood(images).mean() == pytest.approx(17.451947, abs=1e-4)
    assert model.course[-1] == pytest.approx(17.451947, abs=1e-4)
    covariance = lambda m: m.weights @ m.weights.T + np.diag(m.variances)
    np.testing.assert_allclose(covariance(model), covariance(exact), atol=1e-3)
    np.testing.assert_allclose(model.mean, images.mean(0, dtype=np.float64), atol=1e-6)


def test_factor_analysis_ends_where_scikit_learns_does(rows: np.ndarray) -> None:
    peer = FactorAnalysis(2, tol=1e-7, max_iter=5000, svd_method="lapack").fit(rows)
    model = linear.factor_analysis(rows, 2, 500)
    assert model.course[-1] == pytest.approx(peer.score(rows), abs=5e-5)
    np.testing.assert_allclose(model.variances, peer.noise_variance_, atol=0.02)


def test_missing_cells_are_conditioned_on_the_observed_ones(gaps: np.ndarray) -> None:
    """log p and E[missing | observed] are those of the joint Gaussian, row by row."""
    model = linear.factor_analysis(gaps, 2, 20)
    covariance = model.weights @ model.weights.T + np.diag(model.variances)
    values, filled = model.log_likelihood(gaps), model.imputed(gaps)
    for row, value, whole in zip(gaps[1:9], values[1:9], filled[1:9], strict=True):
        seen = ~np.isnan(row)
        inner, outer = covariance[np.ix_(seen, seen)], covariance[np.ix_(~seen, seen)]
        assert value == pytest.approx(
            multivariate_normal(model.mean[seen], inner).logpdf(row[seen])
        )
        expected = model.mean[~seen] + outer @ np.linalg.solve(inner, (row - model.mean)[seen])
        np.testing.assert_allclose(whole[~seen], expected, atol=1e-9)
        np.testing.assert_array_equal(whole[seen], row[seen])
    assert values[0] == 0
    np.testing.assert_allclose(filled[0], model.mean)


def test_draws_have_the_conditional_moments(gaps: np.ndarray) -> None:
    model, row = linear.probabilistic_pca(gaps, 2, 20), gaps[3:4]
    covariance = model.weights @ model.weights.T + np.diag(model.variances)
    seen = ~np.isnan(row[0])
    outer = covariance[np.ix_(~seen, seen)]
    exact = covariance[np.ix_(~seen, ~seen)]
    exact = exact - outer @ np.linalg.solve(covariance[np.ix_(seen, seen)], outer.T)
    drawn = model.draws(row, 20_000)[:, 0]
    np.testing.assert_array_equal(drawn[:, seen], np.tile(row[0, seen], (20_000, 1)))
    np.testing.assert_allclose(np.cov(drawn[:, ~seen].T), exact, atol=0.05 * exact.max())
    np.testing.assert_allclose(
        drawn.mean(0), model.imputed(row)[0], atol=4 * np.sqrt(exact.max() / 20_000)
    )


@pytest.mark.parametrize(
    "x, rank, words",
    [
        (np.ones(3), 1, "needs rows [N, D]; the shape was (3,)"),
        (np.full((3, 2), np.inf), 1, "some are infinite"),
        (np.ones((3, 2)), 1, "all rows are the same"),
        (np.array([[1.0, np.nan], [2.0, np.nan]]), 1, "column 1 is missing in every row"),
        (np.eye(3), 3, "rank must be between 1 and 2; it was 3"),
    ],
)
def test_what_cannot_be_fitted_is_refused(x: np.ndarray, rank: int, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        linear.probabilistic_pca(x, rank)


def test_the_closed_form_refuses_missing_cells(gaps: np.ndarray) -> None:
    with pytest.raises(DataError, match="use probabilistic_pca"):
        linear.closed_form(gaps, 2)
    with pytest.raises(DataError, match=r"needs rows \[N, 8\]; the shape was \(3, 5\)"):
        linear.probabilistic_pca(gaps, 2, 1).imputed(np.ones((3, 5)))
