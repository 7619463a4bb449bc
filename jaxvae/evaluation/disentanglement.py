"""How disentangled codes are: scores of a representation against the factors that its examples were
made of.

Codes ``[N, D]`` are posterior means, such as ``evaluation.encode_split`` gives, and factors ``[N,
F]`` what the same examples were made of, such as ``datasets.shapes.images().factors``. Any
annotated set will do: the scores that hold a factor fixed look among its examples for others that
share the factor's value, which is an intervention where the set is a full grid. Higher is better,
save for the correlations and information of codes alone.

Defaults are those of the study of Locatello et al. 2018 (arXiv:1811.12359), which fits to 10,000
points and tests on 5,000, with 20 bins and batches of 64. Classifiers are scikit-learn's: pip
install 'jaxvae[experiments]'.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Points = tuple[Any, Any]  # codes [N, D], factors [N, F]
Represent = Callable[[np.ndarray], Any]  # rows [B] -> codes [B, D]
BINS = 20
LEAST_SCALE = 0.05  # standard deviation below which a code has collapsed
LEAST_KL = 0.01  # nats below which a latent has
VOTES = 256  # batches that are represented at once


def _sklearn(module: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError(
            f"this score needs scikit-learn ({error}): pip install 'jaxvae[experiments]'"
        ) from error


def _matrix(values: Any, what: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"{what} must be a matrix [N, ...]; the shape was {values.shape}. Flatten latents to [N, D]."
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{what} must be finite; {np.sum(~np.isfinite(values))} values are not")
    return values


def _factors(factors: Any) -> np.ndarray:
    factors = _matrix(factors, "factors")
    constant = np.flatnonzero((factors == factors[0]).all(0))
    if len(constant):
        raise ValueError(
            f"factors must vary; columns {constant.tolist()} have one value each: leave them out"
        )
    return factors


def _points(codes: Any, factors: Any) -> tuple[np.ndarray, np.ndarray]:
    codes, factors = _matrix(codes, "codes"), _factors(factors)
    if len(codes) != len(factors):
        raise ValueError(
            f"codes and factors must be of the same examples; there are {len(codes)} and {len(factors)}"
        )
    return codes, factors


def _varying(codes: Any) -> np.ndarray:
    """The codes that are not constant."""
    codes = _matrix(codes, "codes")
    return codes[:, np.ptp(codes, 0) > 0]


def _gap(scores: np.ndarray) -> np.ndarray:
    """How far the best code of each factor is ahead of the second best, [D, F] -> [F]."""
    if len(scores) < 2:
        raise ValueError("the gap between the two best codes needs at least two codes; there is 1")
    second, best = np.sort(scores, 0)[-2:]
    return best - second


def discretized(values: Any, bins: int = BINS) -> np.ndarray:
    """Each column's values [N, D] as the numbers, from 0, of equally wide bins between its
    extremes.
    """
    values = _matrix(values, "values")
    return np.stack([np.digitize(v, np.histogram_bin_edges(v, bins)[1:-1]) for v in values.T], 1)


def entropy(values: Any) -> np.ndarray:
    """-sum_v p(v) log p(v) of the values in each column, [N, F] -> [F], in nats."""
    return np.array(
        [_entropy(np.unique(v, return_counts=True)[1]) for v in _matrix(values, "values").T]
    )


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def _information(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """I(a_i; b_j) = H(a_i) + H(b_j) - H(a_i, b_j) of columns of values, [N, D] and [N, F] -> [D,
    F].
    """
    number = lambda values: np.stack([np.unique(v, return_inverse=True)[1] for v in values.T])
    a, b = number(a), number(b)
    joint = [[_entropy(np.bincount(u * (v.max() + 1) + v)) for v in b] for u in a]
    each = lambda values: np.array([_entropy(np.bincount(v)) for v in values])
    return np.maximum(each(a)[:, None] + each(b) - np.array(joint), 0.0)


def mutual_information(codes: Any, factors: Any, bins: int = BINS) -> np.ndarray:
    """I(z_i; v_j) of every code, in ``bins`` bins, and every factor, [D, F] in nats; biased
    upwards for small N.
    """
    codes, factors = _points(codes, factors)
    return _information(discretized(codes, bins), factors)


def mig(codes: Any, factors: Any, bins: int = BINS) -> float:
    """Mutual information gap: mean_j (I(z_(1); v_j) - I(z_(2); v_j)) / H(v_j) (Chen et al. 2018,
    arXiv:1802.04942).

    z_(1) and z_(2) are the two codes that know most of the factor. Between 0 and 1. The information
    is that of posterior means in bins, as in arXiv:1811.12359; the paper has samples of q(z|x).
    """
    return float(np.mean(_gap(mutual_information(codes, factors, bins)) / entropy(factors)))


def modularity(information: Any) -> float:
    """Whether a code knows of one factor only: mean_i 1 - sum_(j != j*) I_ij^2 / (I_ij*^2 (F - 1)),
    j* = argmax_j I_ij.

    Ridgeway & Mozer 2018, arXiv:1802.05312. ``information [D, F]`` is what ``mutual_information``
    gives. Between 0 and 1; a code that knows nothing counts as 0.
    """
    squares = _at_least_two(information, "factors (columns)") ** 2
    best = squares.max(1)
    rest = (squares.sum(1) - best) / np.where(best > 0, best, 1.0) / (squares.shape[1] - 1)
    return float(np.mean(np.where(best > 0, 1 - rest, 0.0)))


def _at_least_two(matrix: Any, what: str) -> np.ndarray:
    matrix = _matrix(matrix, "the matrix of codes and factors")
    if matrix.shape[1] < 2 or (matrix < 0).any():
        raise ValueError(
            f"need at least two {what} and no negative entry; the shape was {matrix.shape}"
        )
    return matrix


def explicitness(train: Points, test: Points) -> float:
    """How well logistic regression tells each value of a factor from all codes: its mean area under
    the ROC curve.

    Ridgeway & Mozer 2018, arXiv:1802.05312: one value against the rest, averaged over values and
    then over factors. 1/2 is chance, 1 the best. Codes are standardized; values that the test
    points lack are left out.
    """
    (codes, factors), (test_codes, test_factors) = _points(*train), _points(*test)
    mean, scale = codes.mean(0), np.where(np.ptp(codes, 0) > 0, codes.std(0), 1.0)
    area = _sklearn("metrics").roc_auc_score

    def of_factor(v: np.ndarray, test_v: np.ndarray) -> float:
        model = _logistic().fit((codes - mean) / scale, v)
        p = model.predict_proba((test_codes - mean) / scale).T  # [V, N]
        both = [
            (test_v == value, q)
            for value, q in zip(model.classes_, p, strict=True)
            if value in test_v
        ]
        return float(np.mean([area(is_value, q) for is_value, q in both]))

    return float(np.mean([of_factor(v, w) for v, w in zip(factors.T, test_factors.T, strict=True)]))


def _logistic() -> Any:
    return _sklearn("linear_model").LogisticRegression(max_iter=10_000)


def sap(codes: Any, factors: Any) -> float:
    """Separated attribute predictability: mean_j of the gap in R^2_ij between the two best codes of
    factor j.

    R^2_ij = Cov(z_i, v_j)^2 / (Var z_i Var v_j) is a linear regression's, for factors whose values
    are in order (Kumar et al. 2017, arXiv:1711.00848, sec. 3). Between 0 and 1. For classes see
    ``sap_of_classes``.
    """
    codes, factors = _points(codes, factors)
    return float(_gap(_correlation(codes, factors) ** 2).mean())


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of columns, [N, D] and [N, F] -> [D, F]; 0 with a column that is constant."""
    unit = lambda x: (x - x.mean(0)) / np.where(np.ptp(x, 0) > 0, x.std(0), np.inf)
    return unit(a).T @ unit(b) / len(a)


def sap_of_classes(train: Points, test: Points) -> float:
    """``sap`` for factors that are classes, with the accuracy on the test points in place of R^2
    (arXiv:1711.00848).

    The classifier of one code is a linear support vector machine with balanced classes and C =
    0.01, as in arXiv:1811.12359, solved in its primal form.
    """
    (codes, factors), (test_codes, test_factors) = _points(*train), _points(*test)
    machine = _sklearn("svm").LinearSVC

    def accuracy(z: np.ndarray, v: np.ndarray, test_z: np.ndarray, test_v: np.ndarray) -> float:
        model = machine(C=0.01, class_weight="balanced", dual=False)
        return model.fit(z[:, None], v).score(test_z[:, None], test_v)

    of_code = lambda z, w: [
        accuracy(z, v, w, u) for v, u in zip(factors.T, test_factors.T, strict=True)
    ]
    scores = [of_code(z, w) for z, w in zip(codes.T, test_codes.T, strict=True)]
    return float(_gap(np.array(scores)).mean())


class DCI(NamedTuple):
    """Disentanglement, completeness and informativeness."""

    disentanglement: float
    completeness: float
    informativeness: float  # accuracy on the test points
    informativeness_train: float
    importance: np.ndarray  # [D, F]


def forest() -> Any:
    """Fifty trees that may split at any code, down to leaves of twenty points: seconds where
    boosting takes minutes.
    """
    return _sklearn("ensemble").RandomForestClassifier(
        50, max_features=None, min_samples_leaf=20, random_state=0
    )


def boosted_trees() -> Any:
    """Gradient boosting as in arXiv:1811.12359: 100 trees of depth 3 for each value of a factor."""
    return _sklearn("ensemble").GradientBoostingClassifier(random_state=0)


def dci(train: Points, test: Points, learner: Callable[[], Any] = forest) -> DCI:
    """How much each code matters for each factor (Eastwood & Williams 2018,
    openreview.net/forum?id=By-7dz-AZ).

    ``learner()`` makes a classifier with scikit-learn's ``fit``, ``score`` and
    ``feature_importances_``, which are the importances R_ij of ``disentanglement`` and
    ``completeness``. Factors are classes, and informativeness the mean accuracy, as in
    arXiv:1811.12359, which has ``boosted_trees``; the paper regresses with a lasso or a forest and
    reports errors. Scores of different learners cannot be compared.
    """
    (codes, factors), (test_codes, test_factors) = _points(*train), _points(*test)
    models = [learner().fit(codes, v) for v in factors.T]
    accuracy = lambda z, v: float(
        np.mean([model.score(z, w) for model, w in zip(models, v.T, strict=True)])
    )
    importance = np.stack([np.abs(model.feature_importances_) for model in models], 1)
    scores = disentanglement(importance), completeness(importance)
    return DCI(*scores, accuracy(test_codes, test_factors), accuracy(codes, factors), importance)


def disentanglement(importance: Any) -> float:
    """Whether a code matters for one factor alone: sum_i rho_i (1 - H_F(P_i)) (Eastwood & Williams
    2018).

    P_ij = R_ij / sum_j R_ij and rho_i = sum_j R_ij / sum_ij R_ij for ``importance [D, F]`` R_ij;
    H_F is the entropy to base F. Between 0 and 1; 0 where nothing matters.
    """
    return _concentration(_at_least_two(importance, "factors (columns)"))


def completeness(importance: Any) -> float:
    """Whether a factor is in one code alone: ``disentanglement`` of the transpose (Eastwood &
    Williams 2018).
    """
    return _concentration(_at_least_two(np.transpose(importance), "codes (rows)"))


def _concentration(importance: np.ndarray) -> float:
    total = importance.sum()
    spread = np.array([_entropy(row) if row.any() else 0.0 for row in importance]) / np.log(
        importance.shape[1]
    )
    return float((importance.sum(1) * (1 - spread)).sum() / total) if total > 0 else 0.0


def irs(codes: Any, factors: Any, quantile: float = 0.99) -> float:
    """Interventional robustness: how little a code moves while the factor that it stands for stays
    and others change.

    For code i and factor j, 1 - mean_v Q(|z_i - E[z_i | v_j = v]| given v_j = v) / max |z_i - E
    z_i|, the largest over j, averaged over codes with their largest deviations as weights (Suter et
    al. 2018, arXiv:1811.00007). Q is a quantile, 0.99 in arXiv:1811.12359; 1 is the paper's
    maximum. That study has factors in 20 bins (``discretized``). Codes that are constant do not
    count; 0 if all are.
    """
    codes, factors = _points(codes, factors)
    codes = _varying(codes)
    if not codes.size:
        return 0.0
    furthest = np.abs(codes - codes.mean(0)).max(0)

    def deviation(v: np.ndarray) -> np.ndarray:
        groups = [codes[v == value] for value in np.unique(v)]
        return np.mean([np.quantile(np.abs(z - z.mean(0)), quantile, 0) for z in groups], 0)

    robust = 1 - np.stack([deviation(v) for v in factors.T], 1) / furthest[:, None]  # [D, F]
    return float(np.average(robust.max(1), weights=furthest))


def beta_vae(
    represent: Represent,
    factors: Any,
    key: jax.Array,
    *,
    batch_size: int = 64,
    num_train: int = 10_000,
    num_test: int = 5_000,
) -> float:
    """Accuracy of a linear classifier that tells which factor pairs of examples share from how
    their codes differ.

    A point is mean_b |z_b - z'_b| over ``batch_size`` pairs that share factor k, drawn uniformly,
    and its class is k (Higgins et al. 2017, openreview.net/forum?id=Sy2fzU9gl). Logistic
    regression, as in arXiv:1811.12359.

    Args:
      represent: ``rows [B] -> codes [B, D]`` of the annotated examples; ``codes.__getitem__`` where
        all are encoded.
      factors: annotations [N, F].
      key: of all that is drawn.
    """
    factors, generator = _factors(factors), _generator(key)
    peers, (n, f) = _peers(factors), factors.shape
    k = generator.integers(f, size=(num_train + num_test, 1))
    first = generator.integers(n, size=(len(k), batch_size))
    pairs = np.concatenate([first, peers(generator, k, first)], 1)
    difference = lambda z: np.abs(z[:, :batch_size] - z[:, batch_size:]).mean(1)
    points, classes = _of_batches(represent, pairs, difference), k[:, 0]
    model = _logistic().fit(points[:num_train], classes[:num_train])
    return float(model.score(points[num_train:], classes[num_train:]))


def factor_vae(
    represent: Represent,
    factors: Any,
    key: jax.Array,
    *,
    batch_size: int = 64,
    num_train: int = 10_000,
    num_test: int = 5_000,
    num_variance: int = 10_000,
    least_scale: float = LEAST_SCALE,
) -> float:
    """Accuracy of a majority vote that tells which factor a batch shares from the code that varies
    least in it.

    The vote of a batch is argmin_i Var(z_i in the batch) / Var(z_i), over codes whose standard
    deviation is at least ``least_scale``; a code votes for the factor that it was most often argmin
    for (Kim & Mnih 2018, arXiv:1802.05983, sec. 4). ``represent``, ``factors`` and ``key`` are
    those of ``beta_vae``. 0 if all codes have collapsed.
    """
    factors, generator = _factors(factors), _generator(key)
    peers, (n, f) = _peers(factors), factors.shape
    some = generator.integers(n, size=(-(-num_variance // batch_size), batch_size))
    variance = (
        _of_batches(represent, some, lambda z: z)
        .reshape(some.size, -1)[:num_variance]
        .var(0, ddof=1)
    )
    active = np.sqrt(variance) >= least_scale
    if not active.any():
        return 0.0
    k = generator.integers(f, size=(num_train + num_test, 1))
    first = np.broadcast_to(generator.integers(n, size=k.shape), (len(k), batch_size))
    least = lambda z: np.argmin(z.var(1, ddof=1)[:, active] / variance[active], 1)
    votes, classes = _of_batches(represent, peers(generator, k, first), least), k[:, 0]
    counts = np.zeros((active.sum(), f), int)
    np.add.at(counts, (votes[:num_train], classes[:num_train]), 1)
    return float(np.mean(counts.argmax(1)[votes[num_train:]] == classes[num_train:]))


def _generator(key: jax.Array) -> np.random.Generator:
    return np.random.Generator(
        np.random.Philox(key=np.asarray(jax.random.key_data(key), np.uint64))
    )


def _peers(
    factors: np.ndarray,
) -> Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]:
    """``(generator, k, rows) -> rows`` drawn uniformly among the examples that share factor k
    with each of the rows.
    """
    columns = [np.unique(v, return_inverse=True, return_counts=True)[1:] for v in factors.T]
    order = np.argsort(factors, 0, kind="stable").T  # [F, N]
    size = np.stack([counts[value] for value, counts in columns])
    first = np.stack([(np.cumsum(counts) - counts)[value] for value, counts in columns])

    def draw(generator: np.random.Generator, k: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return order[k, first[k, rows] + generator.integers(size[k, rows])]

    return draw


def _of_batches(
    represent: Represent, rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """``statistic(codes [V, B, D]) -> [V, ...]`` of all batches ``rows [V, B]``, some of them at
    a time.
    """
    parts = [rows[start : start + VOTES] for start in range(0, len(rows), VOTES)]
    codes = lambda part: _matrix(represent(part.reshape(-1)), "codes").reshape(*part.shape, -1)
    return np.concatenate([statistic(codes(part)) for part in parts])


def lasso(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|w_ij| of the regression b_j = sum_i w_ij a_i with the penalty 0.1 |w|_1
    (arXiv:1905.12614).
    """
    return np.abs(np.atleast_2d(_sklearn("linear_model").Lasso(alpha=0.1).fit(a, b).coef_)).T


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|rank correlation| of a_i and b_j (arXiv:1905.12614)."""
    return np.abs(_correlation(_ranks(a), _ranks(b)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Of each column; equal values have the mean of their ranks."""

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
    """Unsupervised disentanglement ranking: how much each of some models agrees with the others on
    single latents.

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
            f"udr needs two models or more and the KL of each; there were {len(codes)} and {len(kl)}"
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
    codes, kl = _matrix(codes, "codes"), np.asarray(kl, np.float64)
    if kl.shape != codes.shape[1:]:
        raise ValueError(
            f"the KL of each of {codes.shape[1]} latents is needed; its shape was {kl.shape}"
        )
    codes = codes[:, (kl > least_kl) & (np.ptp(codes, 0) > 0)]
    return (codes - codes.mean(0)) / codes.std(0)


def relative_strength(relation: Any) -> float:
    """1/2 mean_i max_j R_ij^2 / sum_j R_ij + 1/2 mean_j max_i R_ij^2 / sum_i R_ij
    (arXiv:1905.12614).
    """
    relation = np.asarray(relation, np.float64)
    of_rows = lambda r: np.mean(r.max(1) ** 2 / np.where(r.any(1), r.sum(1), 1.0))
    return float(of_rows(relation) + of_rows(relation.T)) / 2


def gaussian_total_correlation(codes: Any) -> float:
    """KL(N(0, C) || N(0, diag C)) = 1/2 (sum_i log C_ii - log det C), in nats, of the codes'
    covariance C.

    Locatello et al. 2018, arXiv:1811.12359. 0 where codes are uncorrelated; constant codes do not
    count.
    """
    covariance = _covariance(codes)
    return float(np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1]) / 2


def gaussian_wasserstein_correlation(codes: Any) -> float:
    """W_2^2(N(0, C), N(0, diag C)) = 2 tr C - 2 tr (S C S)^(1/2), S = (diag C)^(1/2), of the codes'
    covariance C.

    Locatello et al. 2018, arXiv:1811.12359. 0 where codes are uncorrelated; in the squared unit of
    the codes.
    """
    covariance = _covariance(codes)
    scale = np.sqrt(np.diag(covariance))
    squares = np.linalg.eigvalsh(scale[:, None] * covariance * scale)
    return float(2 * np.trace(covariance) - 2 * np.sqrt(np.maximum(squares, 0.0)).sum())


def normalized_wasserstein_correlation(codes: Any) -> float:
    """``gaussian_wasserstein_correlation`` divided by tr C: it does not depend on the scale of
    all codes together.
    """
    return gaussian_wasserstein_correlation(codes) / float(np.trace(_covariance(codes)))


def _covariance(codes: Any) -> np.ndarray:
    codes = _varying(codes)
    if not codes.size:
        raise ValueError("all codes are constant: they have no correlation")
    return np.atleast_2d(np.cov(codes.T))


def mean_mutual_information(codes: Any, bins: int = BINS) -> float:
    """The mean over pairs of codes of I(z_i; z_j), in ``bins`` bins each, in nats
    (arXiv:1811.12359).
    """
    codes = discretized(codes, bins)
    d = codes.shape[1]
    if d < 2:
        raise ValueError("pairs of codes need at least two codes; there is 1")
    information = _information(codes, codes)
    return float((information.sum() - np.trace(information)) / (d * (d - 1)))
