"""How well a model of several views knows some of them from the others."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxvae.contracts import Array, Params
from jaxvae.datasets import Split, examples_of, preprocessed, random_subset
from jaxvae.distributions import mean_of
from jaxvae.evaluation.columns import Batched, batched, over_split, require
from jaxvae.evaluation.likelihoods import log_likelihood
from jaxvae.models import Model

IMPORTANCE_SAMPLES = 200  # of each example and set of views
FOR_CLASSIFIERS = 10_000  # training examples that classifiers of views and codes learn from

Views = tuple[bool, ...]


def sets_of(model: Model) -> dict[str, Views]:
    """All views, and each alone, by name."""
    names = [name for name, _ in model.views]
    alone = {name: tuple(name == other for other in names) for name in names}
    return {"all": (True,) * len(names)} | alone


def likelihoods(
    model: Model, params: Params, key: Array, split: Any, samples: int = IMPORTANCE_SAMPLES
) -> dict[str, float]:
    """log p(x_S) of all views and of each alone, and log p(the others | one view), in nats.

    Each is estimated with importance weights of its own q(z|x_S). A conditional log-likelihood is
    the difference of two estimates.

    Args:
      model: a model that answers ``seen`` and ``log_weights``.
      params: its parameters.
      key: the key of the samples.
      split: the examples.
      samples: importance samples.
    """
    values = {
        name: over_split(_likelihood(model, views, samples), params, key, examples_of(split), 100)
        for name, views in sets_of(model).items()
    }
    mean = {name: float(column.astype(np.float64).mean()) for name, column in values.items()}
    joint = mean.pop("all")
    found = {"joint_log_likelihood": joint}
    for name, value in mean.items():
        found[f"log_likelihood_of_{name}"] = value
        found[f"log_likelihood_given_{name}"] = joint - value
    return found


def coherence(
    model: Model, params: Params, key: Array, test: Split, train: Split
) -> dict[str, float]:
    """Whether what is decoded from one view has the class of the example.

    A logistic regression of the classes learns each view of training examples. It then judges the
    view that is decoded from another view of test examples. Another one learns the mean codes of
    all views, and judges the mean codes of test examples from all views and from each alone.

    Args:
      model: a model that answers ``seen``, ``encode`` and ``decode``.
      params: its parameters.
      key: the key of the preprocessing.
      test: the examples that are judged, with labels.
      train: the examples that classifiers learn from, with labels.
    """
    some = random_subset(_labelled(train), FOR_CLASSIFIERS)
    judged, sets = _labelled(test), sets_of(model)
    encoded = lambda split, views: over_split(
        _views(model, views), params, key, examples_of(split), 500
    )
    real, of_train = encoded(some, sets["all"]), np.asarray(some.y)
    truth, found = np.asarray(judged.y), {}
    regressions = {
        name: _regression(part, of_train) for name, part in _cut(model, real["x"]).items()
    }
    of_codes = _regression(real["codes"], of_train)
    for source, views in sets.items():
        there = encoded(judged, views)
        found[f"accuracy_of_codes_of_{source}"] = of_codes.score(there["codes"], truth)
        parts = _cut(model, there["decoded"])
        for name in [] if source == "all" else sets.keys() - {"all", source}:
            found[f"coherence_{source}_to_{name}"] = regressions[name].score(parts[name], truth)
    for name, part in _cut(model, encoded(judged, sets["all"])["x"]).items():
        found[f"accuracy_of_view_{name}"] = regressions[name].score(part, truth)
    return {name: float(found[name]) for name in sorted(found)}


def _labelled(split: Any) -> Any:
    labels = getattr(split, "y", None)
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or not (labels >= 0).any():
        raise ValueError("the coherence of views needs a set with labels, and this one has none")
    return split.take(np.flatnonzero(labels >= 0))


def _regression(x: np.ndarray, labels: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x, labels)


def _cut(model: Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """The views of x [N, D] by name."""
    names, sizes = zip(*model.views, strict=True)
    return dict(zip(names, np.split(x, np.cumsum(sizes)[:-1], 1), strict=True))


@functools.lru_cache(maxsize=64)
def _likelihood(model: Model, views: Views, samples: int) -> Batched:
    require(model, "likelihoods of views", "seen", "log_weights")

    def one(params: Params, key: Array, raw: Any) -> Array:
        key_x, key_z = jax.random.split(key)
        example = _seen(model, key_x, raw, views)
        return log_likelihood(model, params, key_z, example, samples, samples).log_likelihood

    return batched(one, 5)


@functools.lru_cache(maxsize=64)
def _views(model: Model, views: Views) -> Batched:
    require(model, "coherence of views", "seen", "encode", "decode")
    encode: Any = model.encode
    decode: Any = model.decode

    def one(params: Params, key: Array, raw: Any) -> dict[str, Array]:
        example = _seen(model, jax.random.split(key)[0], raw, views)
        codes = mean_of(encode(params, example))
        return {"x": example.x, "codes": codes, "decoded": decode(params, codes).mean}

    return batched(one)


def _seen(model: Model, key: Array, raw: Any, views: Sequence[bool]) -> Any:
    """The example of which only some views are known."""
    seen: Any = model.seen
    return seen(preprocessed(key, raw), np.array(views))
