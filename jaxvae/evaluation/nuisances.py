"""Nuisances in latent space, such as who speaks: replacement and perturbation of training data.

Hsu, Zhang & Glass 2017, arXiv:1707.06265. The code of a nuisance is the mean of the codes of all
examples that share it.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.contracts import Array, Params
from jaxvae.datasets import DataError, Split
from jaxvae.evaluation.encodings import as_matrix, encode_split, preprocessed_split
from jaxvae.models import Model

PERTURBATION = 1.0  # gamma
ITERATIONS = 300  # of the classifiers, at most


def group_means(z: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The mean code of each group, [G, D], of codes [N, D] and groups [N]."""
    return np.stack([z[groups == group].mean(0) for group in range(groups.max() + 1)])


def replaced(z: np.ndarray, groups: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Codes whose nuisance is another one: z - mu_group + target (arXiv:1707.06265, eq. 6).

    ``target`` [D] is the mean code of the other nuisance. The codes of a group then have that mean,
    and covariances in it are as they were.
    """
    means = group_means(z, groups)
    return z - means[groups] + target


def perturbed(
    rng: np.random.Generator, z: np.ndarray, means: np.ndarray, gamma: float = PERTURBATION
) -> np.ndarray:
    """Codes moved at random along the principal axes of nuisances' mean codes [G, D].

    z + gamma sum_d eps_d sqrt(lambda_d) e_d (arXiv:1707.06265, eq. 8), which adds gamma^2 times the
    covariance of the means.
    """
    centered = means - means.mean(0)
    _, scales, axes = np.linalg.svd(centered, full_matrices=False)
    noise = rng.standard_normal((len(z), len(scales)))
    return z + gamma * (noise * scales / np.sqrt(len(means))) @ axes


class Encoded(NamedTuple):
    """Examples with their codes, their labels and their nuisances."""

    x: np.ndarray  # [N, ...]
    z: np.ndarray  # [N, D]
    labels: np.ndarray  # [N]
    groups: np.ndarray  # [N]


def encoded(model: Model, params: Params, key: Array, split: Split) -> Encoded:
    """The examples of a split whose attributes are one-hot vectors of its nuisances.

    Raises DataError if it has none, or no labels.
    """
    if split.y is None or split.attributes is None or np.ndim(split.y) != 1:
        raise DataError(
            "--augmentation needs labels, and attributes that say whose an example is, as sets of "
            "recordings have them"
        )
    x = np.asarray(preprocessed_split(key, split))
    z = as_matrix(encode_split(model, params, key, split))
    known = np.asarray(split.y) >= 0
    groups = np.asarray(split.attributes).argmax(1)
    return Encoded(x[known], z[known], np.asarray(split.y)[known], groups[known])


def transfers(
    model: Model, params: Params, key: Array, train: Split, test: Split
) -> dict[str, float]:
    """Accuracies on a nuisance that a classifier has not seen, as means over pairs of nuisances.

    A logistic regression learns the labels from the training examples of one nuisance, and is
    judged on the test examples of another. It sees the examples (``clean``); decoder means at codes
    whose nuisance is replaced by the other one (``replaced``), which takes the mean code of the
    other's examples without their labels; both together; or the clean examples with decoder means
    at codes that are perturbed along all other nuisances (``perturbed``), which takes nothing of
    the other. ``names_target`` is how often a classifier of nuisances takes a replaced example for
    one of the other.

    Args:
      model: answers ``encode`` and ``decode``.
      params: its parameters.
      key: the key of the preprocessing.
      train: examples with labels, and with one-hot nuisances as attributes.
      test: likewise.
    """
    have, judged = encoded(model, params, key, train), encoded(model, params, key, test)
    rng, names = np.random.default_rng(0), _classifier(have.x, have.groups)
    decode = _decoder(model, params)
    means = group_means(have.z, have.groups)
    rows = []
    for source, target in itertools.permutations(range(len(means)), 2):
        of, at = have.groups == source, judged.groups == target
        other = decode(replaced(have.z[of], np.zeros(of.sum(), int), means[target]))
        moved = decode(perturbed(rng, have.z[of], np.delete(means, target, 0)))
        seen = {
            "clean": have.x[of],
            "replaced": other,
            "replaced_and_clean": np.concatenate([have.x[of], other]),
            "perturbed_and_clean": np.concatenate([have.x[of], moved]),
        }
        labels = have.labels[of]
        row = {
            f"accuracy_{name}": _score(x, np.resize(labels, len(x)), judged, at)
            for name, x in seen.items()
        }
        row["names_target"] = float((names.predict(_flat(other)) == target).mean())
        row["better_than_clean"] = float(row["accuracy_replaced"] > row["accuracy_clean"])
        rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _score(x: np.ndarray, labels: np.ndarray, judged: Encoded, at: np.ndarray) -> float:
    return float(_classifier(x, labels).score(_flat(judged.x[at]), judged.labels[at]))


def _classifier(x: np.ndarray, labels: np.ndarray) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    # Products of this size are much faster in one thread.
    with warnings.catch_warnings(), threadpool_limits(1, "blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # of decoder means that are alike
        return LogisticRegression(max_iter=ITERATIONS).fit(_flat(x), labels)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def _decoder(model: Model, params: Params) -> Any:
    """A function from codes [N, D] to decoder means [N, ...]."""
    decode: Any = model.decode
    means = jax.jit(jax.vmap(lambda z: decode(params, z).mean))
    return lambda z: np.asarray(means(jnp.asarray(z, jnp.float32)))
