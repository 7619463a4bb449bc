"""Iterative projection: the demixing matrices for given variances of the sources.

Ono 2011, "Stable and fast update rules for independent vector analysis based on auxiliary function
technique".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxvae.separation.priors import SourceModel


class Separation(NamedTuple):
    """What ``separate`` finds."""

    matrices: np.ndarray  # W [F, J, M]
    state: Any  # of the source model
    objectives: list[float]  # before the first sweep and after each


def demixed(matrices: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """The sources y_ft = W_f x_ft: [F, J, T]."""
    return matrices @ mixture


def iterative_projection(
    matrices: np.ndarray, mixture: np.ndarray, variances: np.ndarray
) -> np.ndarray:
    """One sweep over the sources, for variances [J, F, T] or [J, 1, T].

    V_j = mean_t x x^H / sigma_j^2, w_j <- (W V_j)^-1 e_j, w_j <- w_j / sqrt(w_j^H V_j w_j), where
    row j of W is w_j^H. Each w_j is the minimum of the objective for fixed others, so the objective
    never rises. In a frequency without any power the matrices only change their scale.
    """
    matrices = matrices.copy()
    sources, frames = matrices.shape[1], mixture.shape[-1]
    for j in range(sources):
        weighted = mixture / variances[j][:, None, :]
        covariance = weighted @ np.conj(np.swapaxes(mixture, 1, 2)) / frames  # [F, M, M]
        silent = np.einsum("fmm->f", covariance).real == 0
        covariance[silent] = np.eye(sources)
        unit = np.broadcast_to(np.eye(sources)[:, [j]], (len(mixture), sources, 1))
        w = np.linalg.solve(matrices @ covariance, unit)  # [F, M, 1]
        power = (np.conj(np.swapaxes(w, 1, 2)) @ covariance @ w).real
        matrices[:, j] = np.conj(w / np.sqrt(power))[..., 0]
    return matrices


def objective(matrices: np.ndarray, cost: float, frames: int) -> float:
    """The cost of the sources less 2 T sum_f log |det W_f|: the negative log-likelihood."""
    return cost - 2 * frames * float(np.linalg.slogdet(matrices)[1].sum())


def separate(
    mixture: np.ndarray,
    model: SourceModel,
    sweeps: int,
    matrices: np.ndarray | None = None,
) -> Separation:
    """Fits a source model and the demixing matrices in turn, ``sweeps`` times.

    Args:
      mixture: spectra [F, M, T].
      model: says which variances the sources have.
      sweeps: how often both are fitted.
      matrices: W [F, M, M] to begin with; None is the identity.
    """
    frequencies, sources, frames = mixture.shape
    if matrices is None:
        matrices = np.tile(np.eye(sources, dtype=complex), (frequencies, 1, 1))
    state = model.init(_powers(matrices, mixture))

    def value(matrices: np.ndarray, state: Any) -> float:
        return objective(matrices, model.cost(state, _powers(matrices, mixture)), frames)

    objectives = [value(matrices, state)]
    for _ in range(sweeps):
        state = model.update(state, _powers(matrices, mixture))
        matrices = iterative_projection(matrices, mixture, model.variances(state))
        objectives.append(value(matrices, state))
    return Separation(matrices, state, objectives)


def _powers(matrices: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """|y|^2 of the sources, [J, F, T]."""
    return np.abs(np.swapaxes(demixed(matrices, mixture), 0, 1)) ** 2


def projected_back(matrices: np.ndarray, mixture: np.ndarray, microphone: int = 0) -> np.ndarray:
    """The sources as a microphone hears them, [J, F, T]: y_j times (W^-1)_mj.

    They sum to the mixture at the microphone.
    """
    mixing = np.linalg.inv(matrices)[:, microphone]  # [F, J]
    return np.swapaxes(mixing[..., None] * demixed(matrices, mixture), 0, 1)
