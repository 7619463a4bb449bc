"""Scores that need no factors: agreement between models, and correlation of codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxvae.evaluation.disentanglement.checks import matrix, scikit_learn, varying_codes
from jaxvae.evaluation.disentanglement.predictors import correlation

LEAST_KL = 0.01  # nats; a latent with less carries no information


def lasso(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|w_ij| of the regression b_j = sum_i w_ij a_i with the penalty 0.1 |w|_1.

    Duan et al. 2019, arXiv:1905.12614.
    """
    return np.abs(np.atleast_2d(scikit_learn("linear_model").Lasso(alpha=0.1).fit(a, b).coef_)).T


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|rank correlation| of a_i and b_j (arXiv:1905.12614)."""
    return np.abs(correlation(_ranks(a), _ranks(b)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """The ranks in each column. Equal values have the mean of their ranks."""

    def of_column(v: np.ndarray) -> np.ndarray:
        _, inverse, counts = np.unique(v, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    return np.stack([of_column(v) for v in values.T], 1)


def udr(
    codes: Sequence[Any],
    kl: Sequence[Any],
    relation: Callable[[np.ndarray, np.ndarray], np.ndarray] = lasso,
    least_kl: float = LEAST_KL,
) -> np.ndarray:
    """Unsupervised disentanglement ranking: how far models agree on single latents.

    The score of model j is the median over i != j of ``relative_strength(relation(z_i, z_j))``,
    with codes standardized and only latents of more than ``least_kl`` nats (Duan et al. 2019,
    arXiv:1905.12614). Models that have found the same latents up to order and sign score highest.
    The two halves of a pair's score weigh the same, as in the authors' code, also where the models
    have different numbers of informative latents.

    Args:
      codes: of each model, [N, D_i], for the same examples.
      kl: of each model, the mean KL of every latent, [D_i], as ``evaluate`` gives.
      relation: ``(a [N, D], b [N, E]) -> [D, E]``: ``lasso`` or ``spearman``.

    Returns the scores [M], between 0 and 1; 0 for a model without an informative latent.
    """
    if len(codes) < 2 or len(codes) != len(kl):
        raise ValueError(
            f"udr needs two models or more and the KL of each; there were {len(codes)} and "
            f"{len(kl)}"
        )
    informative = [_informative(z, d, least_kl) for z, d in zip(codes, kl, strict=True)]
    if len({len(z) for z in informative}) != 1:
        raise ValueError(
            f"udr needs codes of the same examples; there were {[len(z) for z in informative]}"
        )
    strength = lambda a, b: relative_strength(relation(a, b)) if a.shape[1] and b.shape[1] else 0.0
    others = lambda j: [strength(z, informative[j]) for i, z in enumerate(informative) if i != j]
    return np.array([np.median(others(j)) for j in range(len(informative))])


def _informative(codes: Any, kl: Any, least_kl: float) -> np.ndarray:
    codes, kl = matrix(codes, "codes"), np.asarray(kl, np.float64)
    if kl.shape != codes.shape[1:]:
        raise ValueError(
            f"the KL of each of {codes.shape[1]} latents is needed; its shape was {kl.shape}"
        )
    codes = codes[:, (kl > least_kl) & (np.ptp(codes, 0) > 0)]
    return (codes - codes.mean(0)) / codes.std(0)


def relative_strength(relation: Any) -> float:
    """1/2 mean_i max_j R_ij^2 / sum_j R_ij + 1/2 mean_j max_i R_ij^2 / sum_i R_ij.

    Duan et al. 2019, arXiv:1905.12614.
    """
    relation = np.asarray(relation, np.float64)
    of_rows = lambda r: np.mean(r.max(1) ** 2 / np.where(r.any(1), r.sum(1), 1.0))
    return float(of_rows(relation) + of_rows(relation.T)) / 2


def gaussian_total_correlation(codes: Any) -> float:
    """KL(N(0, C) || N(0, diag C)) = 1/2 (sum_i log C_ii - log det C), in nats.

    Locatello et al. 2018, arXiv:1811.12359. C is the codes' covariance. The value is 0 if codes are
    uncorrelated. Constant codes do not count.
    """
    covariance = _covariance(codes)
    return float(np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1]) / 2


def gaussian_wasserstein_correlation(codes: Any) -> float:
    """W_2^2(N(0, C), N(0, diag C)) = 2 tr C - 2 tr (S C S)^(1/2), S = (diag C)^(1/2).

    Locatello et al. 2018, arXiv:1811.12359. C is the codes' covariance. The value is 0 if codes are
    uncorrelated. Its unit is the squared unit of the codes.
    """
    covariance = _covariance(codes)
    scale = np.sqrt(np.diag(covariance))
    squares = np.linalg.eigvalsh(scale[:, None] * covariance * scale)
    return float(2 * np.trace(covariance) - 2 * np.sqrt(np.maximum(squares, 0.0)).sum())


def normalized_wasserstein_correlation(codes: Any) -> float:
    """``gaussian_wasserstein_correlation`` divided by tr C, which is free of the codes' scale."""
    return gaussian_wasserstein_correlation(codes) / float(np.trace(_covariance(codes)))


def _covariance(codes: Any) -> np.ndarray:
    codes = varying_codes(codes)
    if not codes.size:
        raise ValueError("all codes are constant: they have no correlation")
    return np.atleast_2d(np.cov(codes.T))
