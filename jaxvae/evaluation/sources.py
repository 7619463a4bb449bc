"""Sources of z for samples: the prior, the encodings, or a density fitted to them.

A source has ``sample(key, shape)``, like a distribution. A new one is a function and a row of
``SOURCES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxvae import fitted, priors
from jaxvae.contracts import Array, Params
from jaxvae.datasets import Split, examples_of, preprocessed, random_subset
from jaxvae.evaluation.columns import require, rows_in_memory
from jaxvae.evaluation.decompositions import aggregated_posterior
from jaxvae.evaluation.encodings import encode_split, posteriors_of
from jaxvae.models import Model, answers

ENCODINGS = 10_000  # training examples whose encodings are used, at most


def source(
    name: str,
    model: Any,
    params: Params,
    key: Array,
    train: Split | None = None,
    encodings: int = ENCODINGS,
    **settings: Any,
) -> Any:
    """The source of z, an object with ``sample(key, shape)``.

    Args:
      name: one of ``SOURCES``.
      model: a ``models.Model``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of what is fitted.
      train: the training examples in memory, which every source but "model" encodes.
      encodings: how many of them are encoded, a fixed random subset.
      settings: settings of the source, such as ``components`` of a Gaussian mixture.

    Raises ValueError if there is no such source, or if the model or the data do not allow it.
    """
    if name not in SOURCES:
        raise ValueError(f"there is no source {name!r} of z; there are {', '.join(SOURCES)}")
    model = answers(model)
    if name == "model":
        return SOURCES[name](model, params, key, train)
    if not isinstance(train, Split):
        raise ValueError(
            f"--prior {name} needs the training examples in memory, without --stream, and there "
            "are none"
        )
    if is_conditional(model, train):
        raise ValueError(
            f"--prior {name} is of all conditions at once; a conditional model draws from its own "
            "prior, --prior model"
        )
    return SOURCES[name](model, params, key, random_subset(train, encodings), **settings)


def is_conditional(model: Model, examples: Any) -> bool:
    """Whether the model's examples come with a condition."""
    first = rows_in_memory(examples_of(examples), np.arange(1))

    def condition(key: Array) -> Any:
        return model.parts(preprocessed(key, jax.tree.map(lambda a: a[0], first)))[1]

    return bool(jax.tree.leaves(jax.eval_shape(condition, jax.random.key(0))))


class Drawn(NamedTuple):
    """The prior of a model that can be drawn from but has no density."""

    draw: Callable[..., Any]  # (params, key) -> z
    params: Params

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Any:
        """z, a pytree of [*shape, ...]."""
        keys = jax.random.split(key, math.prod(shape))
        z = jax.vmap(self.draw, (None, 0))(self.params, keys)
        return jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), z)


def of_model(model: Model, params: Params, key: Array, train: Split | None) -> Any:
    """The model's prior."""
    if model.prior is not None:
        return model.prior(params)
    require(model, "drawing samples", "draw")
    draw: Any = model.draw
    return Drawn(draw, params)


def of_aggregate(model: Model, params: Params, key: Array, train: Split) -> Any:
    """q(z) = 1/N sum_n q(z|x_n), the mixture of the posteriors of training examples.

    Makhzani et al. 2015, arXiv:1511.05644.
    """
    return aggregated_posterior(posteriors_of(model, params, key, train))


def of_gaussian_mixture(
    model: Model, params: Params, key: Array, train: Split, components: int = 10
) -> Any:
    """A mixture of Gaussians, fitted to posterior means (Ghosh et al. 2020, arXiv:1903.12436).

    Args:
      model: the answers of the model.
      params: its parameters.
      key: the key of the fit.
      train: the training examples.
      components: the number of Gaussians.
    """
    return fitted.gaussian_mixture(_mean_vectors(model, params, key, train), components, key)


def of_coupling(model: Model, params: Params, key: Array, train: Split) -> Any:
    """A coupling flow, fitted to posterior means (Dinh et al. 2016, arXiv:1605.08803)."""
    means = _mean_vectors(model, params, key, train)
    return fitted.density_by_gradient(priors.coupling(means.shape[1]), means, key).distribution


def of_second_stage(model: Model, params: Params, key: Array, train: Split) -> Any:
    """A second VAE, of draws of q(z|x) (Dai & Wipf 2019, arXiv:1903.05789)."""
    q = posteriors_of(model, params, key, train)
    keys = jax.random.split(key, len(jax.tree.leaves(q)[0]))
    draws = jax.vmap(lambda q, key: q.sample(key))(q, keys)
    return fitted.second_stage(_vectors(draws), key)


def _mean_vectors(model: Model, params: Params, key: Array, train: Split) -> Any:
    return _vectors(encode_split(model, params, key, train))


def _vectors(z: Any) -> Any:
    shapes = [np.shape(leaf)[1:] for leaf in jax.tree.leaves(z)]
    if len(shapes) != 1 or len(shapes[0]) != 1:
        raise ValueError(
            f"a density is fitted to latents that are one vector [D]; these have shapes {shapes}. "
            "Draw from --prior model or --prior aggregate."
        )
    return jax.tree.leaves(z)[0]


Source = Callable[..., Any]  # (model, params, key, train, **settings) -> source of z
SOURCES: dict[str, Source] = {
    "model": of_model,
    "aggregate": of_aggregate,
    "gaussian_mixture": of_gaussian_mixture,
    "coupling": of_coupling,
    "second_stage": of_second_stage,
}
