"""Source models without a network: spherical ones, and low-rank variances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LEAST = 1e-8  # of their first mean: variances are at least this


class SourceModel(NamedTuple):
    """A model of powers P = |y|^2 [J, F, T] of the sources.

    ``update`` never raises the cost at fixed powers.
    """

    init: Callable[[np.ndarray], Any]  # powers -> state
    update: Callable[[Any, np.ndarray], Any]  # (state, powers) -> state
    variances: Callable[[Any], np.ndarray]  # state -> [J, F, T], or [J, 1, T]
    cost: Callable[[Any, np.ndarray], float]  # (state, powers) -> negative log-density


def gaussian_cost(variances: np.ndarray, powers: np.ndarray) -> float:
    """sum P / sigma^2 + log sigma^2: -log N_C(y; 0, sigma^2), without log pi for each y."""
    full = np.broadcast_to(variances, powers.shape)
    return float((powers / full + np.log(full)).sum())


class Spherical(NamedTuple):
    """One variance for each frame."""

    variances: np.ndarray  # [J, 1, T]
    floor: float


def _spherical(of_powers: Callable[[np.ndarray], np.ndarray], cost: Any) -> SourceModel:
    def at(floor: float, powers: np.ndarray) -> Spherical:
        return Spherical(np.maximum(of_powers(powers), floor), floor)

    return SourceModel(
        lambda powers: at(LEAST * float(of_powers(powers).mean()), powers),
        lambda state, powers: at(state.floor, powers),
        lambda state: state.variances,
        cost,
    )


def laplace() -> SourceModel:
    """A spherical Laplace vector for each frame, sigma^2 = 2 ||y_t|| (AuxIVA; Ono 2011)."""
    return _spherical(
        lambda powers: 2 * np.sqrt(powers.sum(1, keepdims=True)),
        lambda state, powers: float(np.sqrt(powers.sum(1)).sum()),
    )


def gauss() -> SourceModel:
    """One variance for each frame, sigma^2 = ||y_t||^2 / F (AuxIVA; Ono 2012)."""
    return _spherical(
        lambda powers: powers.mean(1, keepdims=True),
        lambda state, powers: gaussian_cost(state.variances, powers),
    )


class LowRank(NamedTuple):
    """Factors of the variances of each source."""

    left: np.ndarray  # T [J, F, K]
    right: np.ndarray  # V [J, K, T]
    floor: float

    @property
    def variances(self) -> np.ndarray:
        """T V, [J, F, T]."""
        return np.maximum(self.left @ self.right, self.floor)


def low_rank(bases: int = 2, seed: int = 0) -> SourceModel:
    """Variances T V with non-negative factors (ILRMA; Kitamura et al. 2016).

    T <- T sqrt[(P / R^2) V^T / (R^-1 V^T)] with R = T V, and V likewise.

    Args:
      bases: columns of T for each source.
      seed: the seed of the factors that it begins with.
    """

    def init(powers: np.ndarray) -> LowRank:
        rng, (sources, frequencies, frames) = np.random.default_rng(seed), powers.shape
        mean = float(powers.mean())
        left = (0.1 + 0.9 * rng.random((sources, frequencies, bases))) * mean / bases
        return LowRank(left, 0.1 + 0.9 * rng.random((sources, bases, frames)), LEAST * mean)

    def update(state: LowRank, powers: np.ndarray) -> LowRank:
        r, across = state.variances, np.swapaxes(state.right, 1, 2)
        state = state._replace(
            left=state.left * np.sqrt((powers / r**2) @ across / ((1 / r) @ across))
        )
        r, across = state.variances, np.swapaxes(state.left, 1, 2)
        return state._replace(
            right=state.right * np.sqrt(across @ (powers / r**2) / (across @ (1 / r)))
        )

    return SourceModel(
        init,
        update,
        lambda state: state.variances,
        lambda state, powers: gaussian_cost(state.variances, powers),
    )


PRIORS: dict[str, Callable[..., SourceModel]] = {
    "laplace": laplace,
    "gauss": gauss,
    "low_rank": low_rank,
}
