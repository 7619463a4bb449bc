"""Checks of codes and factors that the scores share, and the import of scikit-learn."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

Points = tuple[Any, Any]  # codes [N, D], factors [N, F]


def scikit_learn(module: str) -> Any:
    """A module of scikit-learn. Raises ImportError, which says how to install it."""
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError(
            f"this score needs scikit-learn ({error}): pip install 'jaxvae[train]'"
        ) from error


def logistic_regression() -> Any:
    """scikit-learn's classifier, with enough steps to converge."""
    return scikit_learn("linear_model").LogisticRegression(max_iter=10_000)


def matrix(values: Any, what: str) -> np.ndarray:
    """Finite numbers [N, ...] in float64."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"{what} must be a matrix [N, ...]; the shape was {values.shape}. Flatten latents to "
            "[N, D]."
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{what} must be finite; {np.sum(~np.isfinite(values))} values are not")
    return values


def varying_factors(factors: Any) -> np.ndarray:
    """Factors [N, F], none of which is constant."""
    factors = matrix(factors, "factors")
    constant = np.flatnonzero((factors == factors[0]).all(0))
    if len(constant):
        raise ValueError(
            f"factors must vary; columns {constant.tolist()} have one value each: leave them out"
        )
    return factors


def points(codes: Any, factors: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, D] and factors [N, F] of the same examples."""
    codes, factors = matrix(codes, "codes"), varying_factors(factors)
    if len(codes) != len(factors):
        raise ValueError(
            f"codes and factors must be of the same examples; there are {len(codes)} and "
            f"{len(factors)}"
        )
    return codes, factors


def varying_codes(codes: Any) -> np.ndarray:
    """The codes that are not constant."""
    codes = matrix(codes, "codes")
    return codes[:, np.ptp(codes, 0) > 0]


def at_least_two(values: Any, what: str) -> np.ndarray:
    """A matrix without negative entries, and with two columns or more."""
    values = matrix(values, "the matrix of codes and factors")
    if values.shape[1] < 2 or (values < 0).any():
        raise ValueError(
            f"need at least two {what} and no negative entry; the shape was {values.shape}"
        )
    return values
