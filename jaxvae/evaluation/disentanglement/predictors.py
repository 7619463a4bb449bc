"""Scores of how well factors are predicted from codes, and which codes matter for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxvae.evaluation.disentanglement.checks import (
    Points,
    at_least_two,
    logistic_regression,
    points,
    scikit_learn,
)
from jaxvae.evaluation.disentanglement.information import entropy_of_counts, gap


def explicitness(train: Points, test: Points) -> float:
    """The mean area under the ROC curve of logistic regressions of factors from all codes.

    Ridgeway & Mozer 2018, arXiv:1802.05312: one value against the rest, averaged over values and
    then over factors. 1/2 is chance, 1 the best. Codes are standardized; values that the test
    points lack are left out.
    """
    (codes, factors), (test_codes, test_factors) = points(*train), points(*test)
    mean, scale = codes.mean(0), np.where(np.ptp(codes, 0) > 0, codes.std(0), 1.0)
    area = scikit_learn("metrics").roc_auc_score

    def of_factor(v: np.ndarray, test_v: np.ndarray) -> float:
        model = logistic_regression().fit((codes - mean) / scale, v)
        p = model.predict_proba((test_codes - mean) / scale).T  # [V, N]
        both = [
            (test_v == value, q)
            for value, q in zip(model.classes_, p, strict=True)
            if value in test_v
        ]
        return float(np.mean([area(is_value, q) for is_value, q in both]))

    return float(np.mean([of_factor(v, w) for v, w in zip(factors.T, test_factors.T, strict=True)]))


def sap(codes: Any, factors: Any) -> float:
    """Separated attribute predictability: the mean gap in R^2 between a factor's two best codes.

    R^2_ij = Cov(z_i, v_j)^2 / (Var z_i Var v_j) is a linear regression's, for factors whose values
    are in order (Kumar et al. 2017, arXiv:1711.00848, sec. 3). Between 0 and 1. For classes see
    ``sap_of_classes``.
    """
    codes, factors = points(codes, factors)
    return float(gap(correlation(codes, factors) ** 2).mean())


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The correlations of columns, [N, D], [N, F] -> [D, F]; 0 if a column is constant."""
    unit = lambda x: (x - x.mean(0)) / np.where(np.ptp(x, 0) > 0, x.std(0), np.inf)
    return unit(a).T @ unit(b) / len(a)


def sap_of_classes(train: Points, test: Points) -> float:
    """``sap`` for factors that are classes, with test accuracy in place of R^2.

    Kumar et al. 2017, arXiv:1711.00848. The classifier of one code is a linear support vector
    machine with balanced classes and C = 0.01, as in arXiv:1811.12359. It is solved in its primal
    form.
    """
    (codes, factors), (test_codes, test_factors) = points(*train), points(*test)
    machine = scikit_learn("svm").LinearSVC

    def accuracy(z: np.ndarray, v: np.ndarray, test_z: np.ndarray, test_v: np.ndarray) -> float:
        model = machine(C=0.01, class_weight="balanced", dual=False)
        return model.fit(z[:, None], v).score(test_z[:, None], test_v)

    of_code = lambda z, w: [
        accuracy(z, v, w, u) for v, u in zip(factors.T, test_factors.T, strict=True)
    ]
    scores = [of_code(z, w) for z, w in zip(codes.T, test_codes.T, strict=True)]
    return float(gap(np.array(scores)).mean())


class DCI(NamedTuple):
    """Disentanglement, completeness and informativeness."""

    disentanglement: float
    completeness: float
    informativeness: float  # accuracy on the test points
    informativeness_train: float
    importance: np.ndarray  # [D, F]


def forest() -> Any:
    """Fifty trees that may split at any code, down to leaves of twenty points.

    They take seconds; boosting takes minutes.
    """
    return scikit_learn("ensemble").RandomForestClassifier(
        50, max_features=None, min_samples_leaf=20, random_state=0
    )


def boosted_trees() -> Any:
    """Gradient boosting as in arXiv:1811.12359: 100 trees of depth 3 for each value of a factor."""
    return scikit_learn("ensemble").GradientBoostingClassifier(random_state=0)


def dci(train: Points, test: Points, learner: Callable[[], Any] = forest) -> DCI:
    """Scores from how much each code matters for each factor.

    Eastwood & Williams 2018, openreview.net/forum?id=By-7dz-AZ. ``learner()`` makes a classifier
    with scikit-learn's ``fit``, ``score`` and ``feature_importances_``. The importances are R_ij in
    ``disentanglement`` and ``completeness``. Factors are classes, and informativeness is the mean
    accuracy, as in arXiv:1811.12359, which has ``boosted_trees``. The paper regresses with a lasso
    or a forest and reports errors. Scores of different learners cannot be compared.
    """
    (codes, factors), (test_codes, test_factors) = points(*train), points(*test)
    models = [learner().fit(codes, v) for v in factors.T]
    accuracy = lambda z, v: float(
        np.mean([model.score(z, w) for model, w in zip(models, v.T, strict=True)])
    )
    importance = np.stack([np.abs(model.feature_importances_) for model in models], 1)
    scores = disentanglement(importance), completeness(importance)
    return DCI(*scores, accuracy(test_codes, test_factors), accuracy(codes, factors), importance)


def disentanglement(importance: Any) -> float:
    """How far each code matters for one factor alone, sum_i rho_i (1 - H_F(P_i)).

    Eastwood & Williams 2018. P_ij = R_ij / sum_j R_ij and rho_i = sum_j R_ij / sum_ij R_ij for
    ``importance [D, F]`` R_ij. H_F is the entropy to base F. The score is between 0 and 1, and 0 if
    nothing matters.
    """
    return _concentration(at_least_two(importance, "factors (columns)"))


def completeness(importance: Any) -> float:
    """How far each factor is in one code alone (Eastwood & Williams 2018).

    It is ``disentanglement`` of the transpose.
    """
    return _concentration(at_least_two(np.transpose(importance), "codes (rows)"))


def _concentration(importance: np.ndarray) -> float:
    total = importance.sum()
    spread = np.array(
        [entropy_of_counts(row) if row.any() else 0.0 for row in importance]
    ) / np.log(importance.shape[1])
    return float((importance.sum(1) * (1 - spread)).sum() / total) if total > 0 else 0.0
