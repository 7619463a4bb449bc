"""Scores of how little an example is like the training data, and how well they tell others apart.

A higher score is more anomalous. Likelihoods of a VAE may be higher for data that it has never seen
(Nalisnick et al. 2019, arXiv:1810.09136). Likelihood regret and the correction by complexity were
made for that failure. Scores are in nats.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxvae.contracts import Array, Params
from jaxvae.datasets import Examples, examples_of, num_examples, preprocessed, rows_of
from jaxvae.evaluation import log_likelihoods
from jaxvae.evaluation.columns import Batched, batched, over_split, require
from jaxvae.models import Model, answers
from jaxvae.uses import inference

SCORES = ("elbo", "reconstruction", "log_likelihood", "typicality", "complexity", "regret")
OF_LIKELIHOOD = {"log_likelihood", "typicality", "complexity"}  # scores made of log p(x)
DETECTED = 0.95  # share of the outliers that are found, where false positives are counted


class Settings(NamedTuple):
    """How scores are computed."""

    num_samples: int = 64  # draws of z for a bound or a log-likelihood
    regret_steps: int = 100  # gradient steps on the posterior of an example
    regret_rate: float = 0.05  # learning rate of the first of them
    batch_size: int = 50  # examples at a time


DEFAULT = Settings()


def scores(
    model: Any,
    params: Params,
    key: Array,
    examples: Any,
    names: Sequence[str] = SCORES,
    *,
    entropy: float | None = None,
    settings: Settings = DEFAULT,
) -> dict[str, np.ndarray]:
    """Scores of every example of a split by name, each [N] in nats; higher is more anomalous.

    * ``elbo``: -ELBO.
    * ``reconstruction``: -E_q log p(x|z), the reconstruction probability (An & Cho 2015).
    * ``log_likelihood``: -log p(x), importance-weighted.
    * ``typicality``: abs(-log p(x) - H), H the mean of -log p over training examples (Nalisnick et
      al. 2019, arXiv:1906.02994).
    * ``complexity``: -log p(x) - L(x), L the length of x as a PNG file (Serra et al. 2020,
      arXiv:1909.11480). The density of scaled pixels shifts all scores by the same number.
    * ``regret``: L[q*] - L[q_enc], what the ELBO gains if the posterior of this example alone
      follows its gradient (Xiao et al. 2020, arXiv:2003.02977). Both have the same noise.

    >>> import jaxvae
    >>> vae = jaxvae.models.vae(
    ...     jaxvae.networks.mlp((), 4), jaxvae.networks.mlp((), 3), jaxvae.posteriors.normal(2),
    ...     jaxvae.likelihoods.bernoulli(), jaxvae.priors.standard_normal(2))
    >>> x, key = jax.numpy.ones((5, 3)), jax.random.key(0)
    >>> scores(vae, vae.init(key, x[0]), key, x, ["elbo"])["elbo"].shape
    (5,)

    Args:
      model: a ``models.Model``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of all draws.
      examples: a ``Split``, ``Examples`` or a pytree of arrays [N, ...].
      names: some of ``SCORES``.
      entropy: H of ``typicality``, see ``entropy_of``.
      settings: draws, steps and the size of batches.

    Raises ValueError for an unknown score, and if the model or the data lack what one needs.
    """
    model = answers(model)
    for name in names:
        if name not in SCORES:
            raise ValueError(f"there is no score {name!r}; there are {', '.join(SCORES)}")
    if "typicality" in names and entropy is None:
        raise ValueError("typicality needs the entropy of training examples: give entropy_of(...)")
    columns: dict[str, np.ndarray] = {}
    if {"elbo", "reconstruction"} & set(names):
        bounds = _columns(_bound(model, settings.num_samples), params, key, examples, settings)
        columns |= {name: -bounds[name] for name in ("elbo", "reconstruction")}
    if OF_LIKELIHOOD & set(names):
        columns["log_likelihood"] = -_log_likelihoods(model, params, key, examples, settings)
    if "typicality" in names:
        columns["typicality"] = np.abs(columns["log_likelihood"] - entropy)
    if "complexity" in names:
        columns["complexity"] = columns["log_likelihood"] - png_lengths(key, examples)
    if "regret" in names:
        columns["regret"] = _columns(_regret(model, settings), params, key, examples, settings)
    return {name: columns[name] for name in names}


def entropy_of(
    model: Any, params: Params, key: Array, examples: Any, settings: Settings = DEFAULT
) -> float:
    """The mean of -log p(x) over training examples, which typicality compares with, in nats.

    Args:
      model: a ``models.Model``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of all draws.
      examples: training examples.
      settings: draws of z and the size of batches.
    """
    return float(-_log_likelihoods(model, params, key, examples, settings).mean())


def _log_likelihoods(
    model: Any, params: Params, key: Array, examples: Any, settings: Settings
) -> np.ndarray:
    return log_likelihoods(
        model,
        params,
        key,
        examples,
        num_samples=settings.num_samples,
        batch_size=settings.batch_size,
    )


def _columns(batch: Batched, params: Params, key: Array, examples: Any, settings: Settings) -> Any:
    columns = over_split(batch, params, key, examples_of(examples), settings.batch_size)
    return jax.tree.map(lambda column: np.asarray(column, np.float64), columns)


@functools.lru_cache(maxsize=16)
def _bound(model: Model, num_samples: int) -> Batched:
    require(model, "a score", "terms")

    def one(params: Params, key: Array, raw: Any) -> dict[str, Array]:
        key_x, key_z = jax.random.split(key)
        terms: Any = model.terms(params, key_z, preprocessed(key_x, raw), num_samples)  # type: ignore[misc]
        reconstruction = terms["reconstruction"]
        return {"elbo": reconstruction - terms["kl"], "reconstruction": reconstruction}

    return batched(one)


@functools.lru_cache(maxsize=16)
def _regret(model: Model, settings: Settings) -> Batched:
    require(model, "likelihood regret", "encode", "log_joint")
    steps, rate, count = settings.regret_steps, settings.regret_rate, settings.num_samples

    def one(params: Params, key: Array, raw: Any) -> Array:
        key_x, key_refine, key_z = jax.random.split(key, 3)
        x = preprocessed(key_x, raw)
        before = model.encode(params, x)  # type: ignore[misc]
        after = inference.refined(model, params, key_refine, x, steps, rate)
        bound = lambda q: inference.elbo_of(model, params, key_z, x, q, count)
        return bound(after) - bound(before)

    return batched(one)


# The length of an image


def png_lengths(key: Array, examples: Any) -> np.ndarray:
    """The length of every image as a PNG file, [N] in nats.

    Integer pixels are written as they are. An image that preprocessing made binary is written so.
    Files have a header of some 60 bytes, which shifts all lengths by about the same number. Raises
    ValueError for what is no image of integers.
    """
    from PIL import Image

    lengths = []
    for image in as_integers(key, examples_of(examples)):
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
        lengths.append(8 * math.log(2) * len(file.getvalue()))
    return np.asarray(lengths)


def as_integers(key: Array, examples: Any) -> np.ndarray:
    """Images as uint8 [N, H, W, C], where those that the model sees as binary are 0 and 255."""
    raw = examples.raw if isinstance(examples, Examples) else examples
    shape: tuple[int, ...] = getattr(raw, "shape", ())
    if len(shape) != 4 or shape[-1] not in (1, 3):
        raise ValueError(
            "complexity is of images of one or three channels, and these examples are none: leave "
            "this score out"
        )
    raw = np.asarray(raw)
    places = np.arange(num_examples(examples))
    seen = np.asarray(_as_seen(key, places, rows_of(examples, places)))
    if np.isin(seen, (0, 1)).all():
        return (255 * seen).astype(np.uint8)
    if not np.issubdtype(raw.dtype, np.integer):
        raise ValueError(
            "complexity is of integer pixels, and these are real numbers: leave it out"
        )
    return raw.astype(np.uint8)


@jax.jit
def _as_seen(key: Array, places: Array, examples: Any) -> Array:
    """The examples as the model takes them, with the keys that scores have."""

    def one(place: Array, example: Any) -> Array:
        return preprocessed(jax.random.split(jax.random.fold_in(key, place))[0], example)

    return jax.vmap(one)(places, examples)


# How well a score tells two sets apart


class Interval(NamedTuple):
    """A number with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Detection(NamedTuple):
    """How well a score tells anomalous examples from others."""

    auroc: Interval  # probability that an anomalous example has the higher score
    average_precision: Interval  # area under precision and recall; it depends on the class ratio
    false_positives: Interval  # share of the others above a threshold that finds 95 %


def detection(
    inside: np.ndarray, outside: np.ndarray, resamples: int = 500, seed: int = 0
) -> Detection:
    """AUROC, average precision and false positives at 95 % detection, with intervals.

    The intervals are bootstrap percentiles, where both sets are drawn again. Anomalous examples are
    the positive class.

    Args:
      inside: scores of examples like the training data, [N].
      outside: scores of anomalous examples, [M].
      resamples: how often both are drawn again.
      seed: the seed of the draws.
    """
    return Detection(
        *(
            bootstrapped(measure, (inside,), (outside,), resamples, seed)
            for measure in (auroc, average_precision, false_positives)
        )
    )


def paired_difference(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    resamples: int = 500,
    seed: int = 0,
) -> Interval:
    """AUROC of one score less AUROC of another on the same examples, each (inside, outside)."""
    difference = lambda in_1, in_2, out_1, out_2: auroc(in_1, out_1) - auroc(in_2, out_2)
    inside, outside = (first[0], second[0]), (first[1], second[1])
    return bootstrapped(difference, inside, outside, resamples, seed)


def bootstrapped(
    measure: Callable[..., float],
    inside: tuple[np.ndarray, ...],
    outside: tuple[np.ndarray, ...],
    resamples: int,
    seed: int,
) -> Interval:
    """A number of two sets with the percentiles of its bootstrap distribution.

    Args:
      measure: takes all columns of ``inside`` and ``outside``.
      inside: columns [N] of one set, drawn again together.
      outside: columns [M] of the other.
      resamples: how often both are drawn again.
      seed: the seed of the draws.
    """
    generator, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = [generator.integers(len(c[0]), size=len(c[0])) for c in (inside, outside)]
        again = [column[rows[0]] for column in inside] + [column[rows[1]] for column in outside]
        drawn.append(measure(*again))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(float(measure(*inside, *outside)), float(low), float(high))


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """The probability that an anomalous example has the higher score; half of ties count."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_labelled(inside, outside)))


def average_precision(inside: np.ndarray, outside: np.ndarray) -> float:
    """The area under the curve of precision over recall."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_labelled(inside, outside)))


def false_positives(inside: np.ndarray, outside: np.ndarray) -> float:
    """The share of ``inside`` at or above the threshold that finds 95 % of ``outside``."""
    found = math.ceil(DETECTED * len(outside))
    return float((inside >= np.sort(outside)[len(outside) - found]).mean())


def _labelled(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([0, 1], (len(inside), len(outside)))
    return labels, np.concatenate([inside, outside])


def threshold(validation_scores: np.ndarray, false_positives: float = 0.01) -> float:
    """The score that a given share of examples like the training data exceeds."""
    if not 0 < false_positives < 1:
        raise ValueError(f"false_positives must be between 0 and 1; it was {false_positives}")
    return float(np.quantile(validation_scores, 1 - false_positives))


def of_groups(log_likelihood_scores: np.ndarray, entropy: float, size: int) -> np.ndarray:
    """Typicality of groups of examples, abs(mean of -log p - H): [N // size].

    Nalisnick et al. 2019, arXiv:1906.02994. Groups are neighbours in the order that is given.
    """
    groups = len(log_likelihood_scores) // size
    if not groups:
        raise ValueError(f"a group has {size} examples, and there are {len(log_likelihood_scores)}")
    means = log_likelihood_scores[: groups * size].reshape(groups, size).mean(1)
    return np.abs(means - entropy)
