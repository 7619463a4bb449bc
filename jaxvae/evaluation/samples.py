"""The quality of samples: precision, recall, density, coverage, Fréchet distance, copies.

All are functions of features ``[N, F]``, one row for each example. Images ``[N, H, W, C]`` are
flattened. They are computed in float64 on the host, in blocks of distances, so tens of thousands of
examples fit. ``classifier_features`` learns features from labelled images.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvae import networks, training
from jaxvae.networks import Network

Array = jax.Array
BLOCK = 2**22  # numbers in one block
ROUNDING = 1e-11  # of a squared distance that a matrix product gave, relative to the largest square


class Neighbours(NamedTuple):
    """The nearest of a set, from the nearest on."""

    distances: np.ndarray  # [M, k] Euclidean
    places: np.ndarray  # [M, k] rows in the set


def nearest_neighbours(points: Any, train: Any, k: int = 1) -> Neighbours:
    """The ``k`` rows of ``train [N, F]`` nearest to each of ``points [M, F]``, exhaustively.

    Raises ValueError if the features disagree or there are fewer than k rows.
    """
    points, train = _features("points", points), _features("train", train)
    _check_same_features(points, train)
    _check_k(k, len(train))
    distances, places = np.zeros((len(points), k)), np.zeros((len(points), k), np.int64)
    for start, squares in _squares(points, train):
        rows = slice(start, start + len(squares))
        chosen = np.sort(np.argpartition(squares, k - 1, 1)[:, :k], 1)
        exact = _distances(
            points[rows], train, np.repeat(np.arange(len(squares)), k), chosen.ravel()
        ).reshape(-1, k)
        order = np.argsort(exact, 1, kind="stable")
        distances[rows] = np.take_along_axis(exact, order, 1)
        places[rows] = np.take_along_axis(chosen, order, 1)
    return Neighbours(distances, places)


class PrecisionRecall(NamedTuple):
    """Shares, between 0 and 1."""

    precision: float  # of generated examples that could be real ones
    recall: float  # of real examples that could be generated


def precision_recall(real: Any, generated: Any, k: int = 3) -> PrecisionRecall:
    """Shares of examples inside the other set's manifold, closed balls to k-th neighbours.

    precision = 1/M sum_j 1[some i: |y_j - x_i| <= r_k(x_i)] for real x [N, F] and generated y [M,
    F], recall the same with x and y exchanged; r_k is the distance to the k-th nearest other row of
    the own set (Kynkäänniemi et al. 2019, arXiv:1904.06991). Both grow with k and with the sizes of
    the sets: compare at equal ones.
    """
    real, generated = _pair(real, generated)
    precision = _balls_around(generated, real, _radii(real, k), np.less_equal) > 0
    recall = _balls_around(real, generated, _radii(generated, k), np.less_equal) > 0
    return PrecisionRecall(float(precision.mean()), float(recall.mean()))


class DensityCoverage(NamedTuple):
    """Both are about 1 where the distributions are equal."""

    density: float  # may exceed 1, where examples are generated in the thick of the real ones
    coverage: float  # between 0 and 1


def density_coverage(real: Any, generated: Any, k: int = 5) -> DensityCoverage:
    """How densely generated examples lie around real ones, and how many of these they reach.

    density = 1/(k M) sum_j sum_i 1[|y_j - x_i| < r_k(x_i)], coverage = 1/N sum_i 1[some j: |y_j -
    x_i| < r_k(x_i)] for real x [N, F] and generated y [M, F]; r_k is the distance to the k-th
    nearest other real row (Naeem et al. 2020, arXiv:2002.09797, sec. 3). For two sets from one
    density E[density] = 1 and E[coverage] = 1 - prod_{i=1}^k (N - i) / (N + M - i). The balls are
    open: examples that are generated as copies of the real ones have density 1. Rows that occur
    more than k times have empty balls.
    """
    real, generated = _pair(real, generated)
    radii = _radii(real, k)
    density = _balls_around(generated, real, radii, np.less).mean() / k
    coverage = nearest_neighbours(real, generated).distances[:, 0] < radii
    return DensityCoverage(float(density), float(coverage.mean()))


def frechet(real: Any, generated: Any) -> float:
    """The Fréchet distance |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)).

    m and S are the means and the covariances of features [N, F] and [M, F]. It is the squared
    Wasserstein-2 distance of two Gaussians (Dowson & Landau 1982, doi:10.1016/0047-259X(82)90077-X;
    Heusel et al. 2017, arXiv:1706.08500). S = R^T R, where R is the triangle of the QR
    decomposition of the centred features. tr (S_1 S_2)^(1/2) is the sum of the singular values of
    R_1 R_2^T. So no square root of a matrix is taken, and singular covariances do no harm.

    Warns if a set has no more rows than features. Then its covariance is singular, and the distance
    is far too large. The bias falls with the sizes of the sets, so only sets of equal sizes can be
    compared. Raises ValueError for fewer than two rows.
    """
    real, generated = _pair(real, generated)
    fewest, width = min(len(real), len(generated)), real.shape[1]
    if fewest < 2:
        raise ValueError(
            f"a covariance needs two examples; there are {len(real)} real and {len(generated)} "
            "generated"
        )
    if fewest <= width:
        warnings.warn(
            f"{fewest} examples do not determine the covariance of {width} features: the Fréchet "
            f"distance is biased upwards. Pass {width + 1} or more of each, many more for a small "
            "bias, or fewer features.",
            stacklevel=2,
        )
    (m_1, r_1), (m_2, r_2) = _moments(real), _moments(generated)
    overlap = np.linalg.svd(r_1 @ r_2.T, compute_uv=False).sum()
    return max(float(((m_1 - m_2) ** 2).sum() + (r_1**2).sum() + (r_2**2).sum() - 2 * overlap), 0.0)


class Copying(NamedTuple):
    """How near to the training set generated examples lie, beside held-out ones."""

    generated: np.ndarray  # [M] distances to the nearest training example
    held_out: np.ndarray  # [N] the same of real examples that were not trained on
    # The probability that a generated example lies nearer than a held-out one; 1/2 where the model
    # is exact.
    nearer: float
    # Far below 0 there are copies; far above 0 samples are far from the data. It is about standard
    # normal where the model is exact.
    z_score: float


def data_copying(generated: Any, held_out: Any, train: Any) -> Copying:
    """A Mann-Whitney test of whether generated examples are copies of training examples.

    z = (U - M N / 2) / s. U counts the pairs in which the generated example lies further from its
    nearest training example than the held-out example does; ties count one half.
    s^2 = M N (M + N + 1) / 12, less a correction for ties. It is Z_U of Meehan et al. 2020,
    arXiv:2004.05675, with the whole space as one cell. Copies of a few training examples and
    examples that fit badly may cancel out, which ``generated`` shows.

    Distances must mean something. They do between features, or between pixels of *samples* of x. A
    decoder's means are smoother than any real image, and lie nearer in pixels.
    """
    near, held = (nearest_neighbours(x, train).distances[:, 0] for x in (generated, held_out))
    z_score, nearer = _mann_whitney(near, held)
    return Copying(near, held, nearer, z_score)


class Classifier(NamedTuple):
    """A trained classifier, as a source of features."""

    features: Callable[
        [Any], np.ndarray
    ]  # images [N, ...], in the units it was trained in -> [N, F]
    accuracy: float  # on labelled images that it was not trained on
    params: Any = None  # of its body
    location: float = 0.0  # the body sees (x - location) / scale
    scale: float = 1.0


def classifier_features(
    images: Any,
    labels: Any,
    key: Array,
    *,
    width: int = 64,
    num_steps: int = 1000,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    held_out: float = 0.1,
    body: Network | None = None,
) -> Classifier:
    """Trains a small classifier of images, whose last hidden layer gives the features.

    It has two 4x4 convolutions for images [H, W, C] of 8x8 and more, and otherwise a layer of 256
    units. A rectified layer of ``width`` units and the classes follow. It is trained by Adam with a
    learning rate that falls to 0. Features of a classifier with a low accuracy mean little.

    ``frechet`` of these features is not the FID, which is defined by the weights of one Inception
    network (arXiv:1706.08500). Its values can be compared only within one classifier.

    Args:
      images: [N, ...].
      labels: [N] integers 0, ..., C - 1.
      key: the key of the split into training and held-out images, and of the training.
      width: the number of features.
      num_steps: steps of training.
      batch_size: images in a step.
      learning_rate: the learning rate at the start.
      held_out: the share of images that the accuracy is measured on.
      body: another network of an image, which gives ``width`` numbers.
    """
    images, labels = np.asarray(images, np.float32), np.asarray(labels)
    _check_labels(images, labels)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    order, seed = rng.permutation(len(images)), int(rng.integers(2**31))
    rest, fitted = np.split(order, [max(int(held_out * len(images)), 1)])
    loc, scale = images[fitted].mean(), images[fitted].std() or 1.0
    body = _body(images.shape[1:], width) if body is None else body
    head = networks.mlp((), int(labels.max()) + 1)
    activated = lambda params, x: jax.nn.relu(body.apply(params["body"], (x - loc) / scale))
    logits = lambda params, x: head.apply(params["head"], activated(params, x))

    def init(key: Array, example: Any) -> Any:
        keys = jax.random.split(key)
        return {
            "body": body.init(keys[0], example["x"]),
            "head": head.init(keys[1], jnp.zeros(width)),
        }

    def loss(params: Any, key: Array, example: Any, step: Array) -> tuple[Array, dict[str, Array]]:
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, example["x"]), example["y"]
        ), {}

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    algorithm = training.gradient_descent(init, training.batch_mean(loss), optimizer)
    examples = {"x": images[fitted], "y": labels[fitted].astype(np.int32)}
    settings: dict[str, Any] = {"batch_size": min(batch_size, len(fitted)), "seed": seed}
    # Every process of a job trains a classifier of its own.
    device = jax.local_devices()[:1]
    state = training.fit(algorithm, examples, num_steps=num_steps, devices=device, **settings)
    params = training.trained(state)
    classes = _in_batches(logits, params)(images[rest]).argmax(1)
    accuracy = float((classes == labels[rest]).mean())
    features = _in_batches(activated, params)
    return Classifier(features, accuracy, params["body"], float(loc), float(scale))


def _features(name: str, x: Any) -> np.ndarray:
    """[N, F] in float64."""
    x = np.asarray(x, np.float64)
    if x.ndim < 2 or not x.size:
        raise ValueError(
            f"{name} must be [N, F] with a row for each example; the shape was {x.shape}"
        )
    if not np.isfinite(x).all():
        raise ValueError(
            f"{name} holds {(~np.isfinite(x)).sum()} values that are not finite; distances need "
            "numbers"
        )
    return x.reshape(len(x), -1)


def _check_same_features(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"both sets need the same features; they have {a.shape[1]} and {b.shape[1]}"
        )


def _pair(real: Any, generated: Any) -> tuple[np.ndarray, np.ndarray]:
    real, generated = _features("real", real), _features("generated", generated)
    _check_same_features(real, generated)
    return real, generated


def _check_k(k: int, rows: int) -> None:
    if not 1 <= k <= rows:
        raise ValueError(
            f"k = {k} nearest neighbours need 1 <= k <= {rows}, the number of examples to choose "
            "from"
        )


def _squares(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Squared distances of some rows of a [M, F] to all of b [N, F], with the first row's place.

    They are exact up to rounding.
    """
    centre, size = b.mean(0), max(BLOCK // len(b), 1)
    b = b - centre
    lengths = (b**2).sum(1)
    for start in range(0, len(a), size):
        part = a[start : start + size] - centre
        yield start, (part**2).sum(1)[:, None] + lengths - 2 * part @ b.T


def _distances(a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """|a_i - b_j| of each pair, by subtraction.

    So the distance of equal rows is 0, and |a - b| = |b - a|.
    """
    size = max(BLOCK // a.shape[1], 1)
    parts = (slice(start, start + size) for start in range(0, len(i), size))
    return np.concatenate(
        [np.zeros(0), *(np.sqrt(((a[i[s]] - b[j[s]]) ** 2).sum(1)) for s in parts)]
    )


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Distance of each row to the k-th nearest other row, [N]."""
    _check_k(k, len(x) - 1)
    return nearest_neighbours(x, x, k + 1).distances[:, k]


def _balls_around(
    points: np.ndarray, centres: np.ndarray, radii: np.ndarray, within: np.ufunc
) -> np.ndarray:
    """How many of the balls each point is in, [M].

    Pairs that are too near to the border for a matrix product are compared by subtraction.
    """
    counts = np.zeros(len(points))
    largest = max(((x - centres.mean(0)) ** 2).sum(1).max() for x in (points, centres))
    for start, squares in _squares(points, centres):
        part = points[start : start + len(squares)]
        inside = within(squares, radii**2)
        i, j = np.nonzero(np.abs(squares - radii**2) <= ROUNDING * largest)
        inside[i, j] = within(_distances(part, centres, i, j), radii[j])
        counts[start : start + len(squares)] = inside.sum(1)
    return counts


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean [F], and R [min(N, F), F] with covariance R^T R."""
    mean = x.mean(0)
    triangle: Any = np.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r")
    return mean, triangle


def _mann_whitney(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The z-score of the number of pairs with a > b, and the share of pairs with a < b.

    Ties count one half.
    """
    m, n, b = len(a), len(b), np.sort(b)
    above = (np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")).sum() / 2
    ties = np.unique(np.concatenate([a, b]), return_counts=True)[1].astype(np.float64)
    variance = m * n / 12 * (m + n + 1 - (ties**3 - ties).sum() / ((m + n) * (m + n - 1)))
    z_score = (above - m * n / 2) / math.sqrt(variance) if variance > 0 else 0.0
    return float(z_score), float(1 - above / (m * n))


def _check_labels(images: np.ndarray, labels: np.ndarray) -> None:
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"images {images.shape} need integer labels of shape {images.shape[:1]}; they were "
            f"{labels.dtype} of shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() < 1:
        raise ValueError(
            f"labels must be 0, ..., C - 1 of C >= 2 classes; they reach from {labels.min()} to "
            f"{labels.max()}"
        )


def _body(shape: tuple[int, ...], width: int) -> Network:
    if len(shape) == 3 and min(shape[:2]) >= 8:
        return networks.convolutional_encoder((32, 64), width)
    return networks.mlp((256,), width)


def _in_batches(
    apply: Callable[[Any, Array], Array], params: Any, size: int = 500
) -> Callable[[Any], np.ndarray]:
    """``apply`` over images [N, ...], in float64.

    The last batch is filled up and cut, so one size is compiled.
    """
    batched = jax.jit(jax.vmap(apply, (None, 0)))

    def over(images: Any) -> np.ndarray:
        images = np.asarray(images, np.float32)
        rows = np.minimum(np.arange(-(-len(images) // size) * size), len(images) - 1).reshape(
            -1, size
        )
        return np.concatenate(
            [np.asarray(batched(params, images[part]), np.float64) for part in rows]
        )[: len(images)]

    return over
