"""Linear Gaussian models by expectation-maximisation, of rows with missing cells.

p(x|z) = N(W z + mu, diag(psi)) with z ~ N(0, I) is probabilistic PCA if all psi are one number, and
factor analysis if each column has its own. They are the classical relatives of the linear VAE, and
a baseline of it. A missing cell is nan; it is missing at random. All is NumPy in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from jaxvae.datasets import DataError

LOG_2PI = math.log(2 * math.pi)
SMALLEST_VARIANCE = 1e-12  # of a column's noise, as a share of the mean variance of all columns


class LinearGaussian(NamedTuple):
    """p(x) = N(mu, W W^T + diag(psi)) of rows with D columns and rank q."""

    weights: np.ndarray  # W [D, q]
    mean: np.ndarray  # mu [D]
    variances: np.ndarray  # psi [D]
    # nats for each row: the mean log-likelihood before each iteration and after the last one
    course: np.ndarray

    def log_likelihood(self, x: Any) -> np.ndarray:
        """log p of the observed cells of each row, [N] in nats."""
        return _expected(self, _cells(x, len(self.mean))).log_likelihood

    def posterior(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """Means [N, q] and covariances [N, q, q] of z given the observed cells of each row."""
        expected = _expected(self, _cells(x, len(self.mean)))
        return expected.means, expected.covariances

    def imputed(self, x: Any) -> np.ndarray:
        """x [N, D] with E[missing | observed] in the place of missing cells."""
        means, _ = self.posterior(x)
        return np.where(np.isnan(x), means @ self.weights.T + self.mean, x)

    def draws(self, x: Any, num: int, seed: int = 0) -> np.ndarray:
        """``num`` tables [num, N, D], whose missing cells are drawn given the observed ones."""
        means, covariances = self.posterior(x)
        rng, roots = np.random.default_rng(seed), np.linalg.cholesky(covariances)
        noise = rng.standard_normal((num, *means.shape))
        z = means + np.einsum("nqr,knr->knq", roots, noise)
        residual = rng.standard_normal((num, *np.shape(x))) * np.sqrt(self.variances)
        return np.where(np.isnan(x), z @ self.weights.T + self.mean + residual, x)


def probabilistic_pca(
    x: Any, rank: int, num_iterations: int = 200, seed: int = 0
) -> LinearGaussian:
    """Probabilistic PCA by EM, of rows that may have missing cells.

    Tipping & Bishop 1999, J. R. Statist. Soc. B 61, app. B. The E-step takes the posterior of z
    given the observed cells of each row. The M-step is a regression of each column on [z, 1] over
    the rows in which it is observed, and the noise is the mean square of all residuals. No step
    lowers the likelihood. Without missing cells it ends at the closed form.

    >>> x = np.random.default_rng(0).normal(size=(50, 3)) * [3, 1, 1]
    >>> x[0, 0] = np.nan
    >>> model = probabilistic_pca(x, rank=1)
    >>> bool(np.isfinite(model.imputed(x)).all() and (np.diff(model.course) > -1e-9).all())
    True

    Args:
      x: the rows [N, D], in which nan is a missing cell.
      rank: q, the number of latents, below D.
      num_iterations: steps of EM.
      seed: the seed of the weights that EM starts from.

    Raises DataError for a table without two axes, with a column that is never observed, or with
    infinity; and ValueError for a rank that is not between 1 and D - 1.
    """
    return _fitted(x, rank, num_iterations, seed, shared=True)


def factor_analysis(x: Any, rank: int, num_iterations: int = 200, seed: int = 0) -> LinearGaussian:
    """Factor analysis by EM, of rows that may have missing cells.

    Rubin & Thayer 1982, Psychometrika 47. It is ``probabilistic_pca`` with a noise for each column.

    Args:
      x: the rows [N, D], in which nan is a missing cell.
      rank: q, the number of latents, below D.
      num_iterations: steps of EM.
      seed: the seed of the weights that EM starts from.
    """
    return _fitted(x, rank, num_iterations, seed, shared=False)


def closed_form(x: Any, rank: int) -> LinearGaussian:
    """Probabilistic PCA of complete rows, without iterations.

    Tipping & Bishop 1999, eq. 7 and 8: s^2 is the mean of the D - q smallest eigenvalues of the
    covariance, and W = U (L - s^2)^(1/2) of the others. Raises DataError if a cell is missing.
    """
    cells = _cells(x)
    x, missing = cells.x, ~cells.seen
    _check_rank(rank, x.shape[1])
    if missing.any():
        raise DataError(
            f"{int(missing.sum())} cells are missing and the closed form needs all of them: use "
            "probabilistic_pca"
        )
    mean = x.mean(0)
    values, vectors = np.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    noise = values[:-rank].mean()
    weights = vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:] - noise, 0))
    model = LinearGaussian(weights, mean, np.full(len(mean), noise), np.empty(0))
    return model._replace(course=model.log_likelihood(x).mean(keepdims=True))


class _Expected(NamedTuple):
    """The posterior of z of each row, and log p of what is observed."""

    means: np.ndarray  # [N, q]
    covariances: np.ndarray  # [N, q, q]
    log_likelihood: np.ndarray  # [N]


class _Cells(NamedTuple):
    """The cells of a table, and which of them are observed."""

    x: np.ndarray  # [N, D], with zeros in missing cells
    seen: np.ndarray  # [N, D] bool
    patterns: np.ndarray  # [P, D] bool: the different rows of ``seen``
    pattern: np.ndarray  # [N]: the pattern of each row


def _cells(x: Any, columns: int | None = None) -> _Cells:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not x.size or (columns is not None and x.shape[1] != columns):
        wanted = "[N, D]" if columns is None else f"[N, {columns}]"
        raise DataError(f"a linear model needs rows {wanted}; the shape was {x.shape}")
    if np.isinf(x).any():
        raise DataError("rows must be finite, or nan where a cell is missing; some are infinite")
    seen = ~np.isnan(x)
    patterns, pattern = np.unique(seen, axis=0, return_inverse=True)
    return _Cells(np.where(seen, x, 0.0), seen, patterns, pattern.reshape(-1))


def _check_rank(rank: int, columns: int) -> None:
    if not 1 <= rank < columns:
        raise ValueError(f"rank must be between 1 and {columns - 1}; it was {rank}")


def _fitted(x: Any, rank: int, num_iterations: int, seed: int, shared: bool) -> LinearGaussian:
    cells = _cells(x)
    model = _start(cells, rank, seed)
    smallest, course = SMALLEST_VARIANCE * model.variances[0], []
    for _ in range(num_iterations):
        expected = _expected(model, cells)
        course.append(expected.log_likelihood.mean())
        model = _maximized(expected, cells, smallest, shared)
    course.append(_expected(model, cells).log_likelihood.mean())
    return model._replace(course=np.asarray(course))


def _start(cells: _Cells, rank: int, seed: int) -> LinearGaussian:
    """Random weights, and the mean and the variance of the observed cells."""
    x, seen = cells.x, cells.seen
    _check_rank(rank, x.shape[1])
    if not seen.any(0).all():
        raise DataError(f"column {int(seen.any(0).argmin())} is missing in every row: leave it out")
    mean = x.sum(0) / seen.sum(0)
    variance = (np.where(seen, x - mean, 0.0) ** 2).sum() / seen.sum()
    if not variance:
        raise DataError("all rows are the same: there is no variance to explain")
    weights = np.random.default_rng(seed).standard_normal((len(mean), rank))
    return LinearGaussian(
        weights * math.sqrt(variance / rank), mean, np.full(len(mean), variance), np.empty(0)
    )


def _expected(model: LinearGaussian, cells: _Cells) -> _Expected:
    """The E-step: M = I + sum_d w_d w_d^T / psi_d over observed d, z = M^-1 W^T (x - mu) / psi."""
    weights, rank, which = model.weights, model.weights.shape[1], cells.pattern
    products = (weights[:, :, None] * weights[:, None, :]).reshape(len(weights), -1)
    m = np.eye(rank) + (cells.patterns / model.variances @ products).reshape(-1, rank, rank)
    covariances = np.linalg.inv(m)[which]
    log_det = cells.patterns @ np.log(model.variances) + np.linalg.slogdet(m)[1]
    residual = np.where(cells.seen, cells.x - model.mean, 0.0)
    projected = residual / model.variances @ weights  # [N, q]
    means = np.einsum("nqr,nr->nq", covariances, projected)
    distance = (residual**2 / model.variances).sum(1) - (projected * means).sum(1)
    constant = log_det[which] + cells.seen.sum(1) * LOG_2PI
    return _Expected(means, covariances, -0.5 * (distance + constant))


def _maximized(expected: _Expected, cells: _Cells, smallest: float, shared: bool) -> LinearGaussian:
    """The M-step: a regression of each column on [z, 1], over the rows where it is observed."""
    rows, rank = expected.means.shape
    regressors = np.concatenate([expected.means, np.ones((rows, 1))], 1)  # [N, q + 1]
    second = regressors[:, :, None] * regressors[:, None, :]
    second[:, :rank, :rank] += expected.covariances
    seen = cells.seen.T.astype(np.float64)  # [D, N]
    grams = (seen @ second.reshape(rows, -1)).reshape(-1, rank + 1, rank + 1)
    cross = cells.x.T @ regressors  # [D, q + 1]
    coefficients = np.linalg.solve(grams, cross[:, :, None])[:, :, 0]
    squares = (cells.x**2).sum(0) - (coefficients * cross).sum(1)  # of the residuals of a column
    count = cells.seen.sum(0)
    variances = np.full(len(count), squares.sum() / count.sum()) if shared else squares / count
    return LinearGaussian(
        coefficients[:, :rank], coefficients[:, rank], np.maximum(variances, smallest), np.empty(0)
    )
