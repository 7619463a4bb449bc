"""New examples of a class near labelled ones, and what a classifier of few labels gains by them.

A VAE learns from examples without labels. What it decodes around a labelled example is taken for
another example of its class. ``accuracy`` says with and without such examples how well a classifier
of scikit-learn does; the difference is paired, because the labels and the test examples are the
same.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxvae.contracts import Array, Params
from jaxvae.datasets import examples_of, num_examples, preprocessed, rows_of
from jaxvae.evaluation.columns import Batched, batched, over_split, require
from jaxvae.models import Model, answers
from jaxvae.uses import latents

WAYS = ("posterior", "mix")


class Labelled(NamedTuple):
    """Examples with their classes."""

    x: np.ndarray  # [N, ...]
    y: np.ndarray  # [N], integers


def parents(key: Array, labels: Any, per_class: int) -> Labelled:
    """Places of two random examples of its class for every new example.

    ``x`` holds the places [C * per_class, 2] and ``y`` the classes. The draws of a class do not
    depend on the other classes. Examples with the label -1 are left out. Raises ValueError if no
    example has a label.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers [N]; they were {labels.dtype} of shape {labels.shape}"
        )
    classes = np.unique(labels[labels >= 0])
    if per_class < 1 or not len(classes):
        raise ValueError(
            f"new examples need per_class of at least 1 and labelled examples; per_class was "
            f"{per_class}, and {len(classes)} classes have labels"
        )

    def of_class(label: int) -> np.ndarray:
        there = np.flatnonzero(labels == label)
        key_class = jax.random.fold_in(key, label)
        return there[np.asarray(jax.random.randint(key_class, (per_class, 2), 0, len(there)))]

    places = np.concatenate([of_class(int(label)) for label in classes])
    return Labelled(places, np.repeat(classes, per_class))


def between(model: Any, params: Params, key: Array, example: Any, other: Any, share: Array) -> Any:
    """The mean of p(x|z) at a point of the line between draws of two posteriors.

        z = (1 - t) z_1 + t z_2,   z_i = f(e; x_i) ~ q(z|x_i)

    Both draws have the same noise e, so that z is a draw of q(z|x) if the two examples are one. At
    t = 0 it is a draw of q(z|x_1).

    Args:
      model: a ``models.Model``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of e.
      example: x_1, as the model takes it; a conditional model decodes at its condition.
      other: x_2.
      share: t.
    """
    model = answers(model)
    require(model, "augmentation", "encode", "decode")
    z, other_z = (model.encode(params, each).sample(key) for each in (example, other))
    latents.check_real(z)
    z = jax.tree.map(lambda a, b: (1 - share) * a + share * b, z, other_z)
    return model.decode(params, z, model.parts(example)[1]).mean


def draws(
    model: Any,
    params: Params,
    key: Array,
    examples: Any,
    labels: Any,
    per_class: int = 50,
    how: str = "mix",
    *,
    batch_size: int = 200,
) -> Labelled:
    """New examples of every class: means of p(x|z) with z near labelled examples.

    They are [C * per_class, ...], in the order of the classes, as the model sees x.

    >>> import jaxvae
    >>> trained = jaxvae.load("runs/digits-digits-0")  # doctest: +SKIP
    >>> split = trained.built.split(labelled)  # doctest: +SKIP
    >>> new = draws(trained.model, trained.params, key, split, labelled.y)  # doctest: +SKIP

    Args:
      model: a ``models.Model``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of all draws.
      examples: a ``Split``, ``Examples`` or a pytree of arrays [N, ...].
      labels: their classes [N], integers, where -1 is a missing one.
      per_class: new examples of each class.
      how: posterior, a draw of q(z|x) of an example; or mix, a random point ``between`` two
        examples of the class.
      batch_size: examples computed at a time.

    Raises ValueError for labels of another number, and for latents that are whole numbers.
    """
    if how not in WAYS:
        raise ValueError(f"no way {how!r} to make new examples; there are {', '.join(WAYS)}")
    examples = examples_of(examples)
    if num_examples(examples) != len(labels):
        raise ValueError(f"{len(labels)} labels were given for {num_examples(examples)} examples")
    key_parents, key_draws = jax.random.split(key)
    places, classes = parents(key_parents, labels, per_class)
    pairs = tuple(rows_of(examples, rows) for rows in places.T)
    one = _drawn(answers(model), how)
    return Labelled(over_split(one, params, key_draws, pairs, batch_size), classes)


@functools.lru_cache(maxsize=16)
def _drawn(model: Model, how: str) -> Batched:
    """The compiled function of a batch of pairs."""

    def one(params: Params, key: Array, pair: tuple[Any, Any]) -> Any:
        key_z, key_share, *keys = jax.random.split(key, 4)
        example, other = (preprocessed(k, raw) for k, raw in zip(keys, pair, strict=True))
        share = jax.random.uniform(key_share) if how == "mix" else jnp.zeros(())
        return between(model, params, key_z, example, other, share)

    return batched(one)


def shifted(key: Array, image: Array, most: int = 2) -> Array:
    """An image [H, W, C] moved by up to ``most`` pixels each way, with zeros at the border.

    All (2 most + 1)^2 shifts are equally likely. It is the augmentation by hand that a model has to
    be compared with.
    """
    image = jnp.asarray(image)
    padded = jnp.pad(image, ((most, most), (most, most), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * most + 1)
    return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def accuracy(
    classifier: Any,
    labelled: Labelled,
    test: Labelled,
    new: Labelled | None = None,
    share: float | None = 1.0,
) -> float:
    """The accuracy of a classifier that learns from labelled examples, and from new ones.

    Args:
      classifier: an unfitted classifier of scikit-learn that takes ``sample_weight``; it is cloned.
      labelled: the examples that have labels.
      test: the examples that it is judged by.
      new: what ``draws`` gives, of the same classes.
      share: the weight of all new examples of a class together, where the labelled ones together
        weigh 1; None gives every example, new or labelled, the same weight.

    >>> from sklearn.svm import SVC
    >>> few, test = Labelled(np.eye(2), np.arange(2)), Labelled(np.eye(2) / 2, np.arange(2))
    >>> accuracy(SVC(), few, test, new=few) - accuracy(SVC(), few, test)
    0.0
    """
    from sklearn.base import clone

    parts = [labelled] if new is None else [labelled, new]
    x = np.concatenate([_rows(part.x) for part in parts])
    y = np.concatenate([part.y for part in parts])
    weights = np.ones(len(x))
    if new is not None and share is not None:
        weights[len(labelled.y) :] = share * _counts(labelled.y, new.y) / _counts(new.y, new.y)
    fitted = clone(classifier).fit(x, y, sample_weight=weights)
    return float(fitted.score(_rows(test.x), test.y))


def _rows(x: Any) -> np.ndarray:
    return np.reshape(x, (len(x), -1))


def _counts(y: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many of y have each label of ``labels``."""
    return (y == labels[:, None]).sum(1)
