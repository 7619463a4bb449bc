"""What a decoder makes of latents: arrays of images, for any model that decodes.

A model is a ``models.Model``, or what ``models.answers`` takes. z may be any pytree. Examples are
as the model takes them, [N, ...].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.contracts import Array, Params
from jaxvae.datasets import num_examples
from jaxvae.distributions import mean_of
from jaxvae.evaluation.columns import require
from jaxvae.models import answers


def reconstructions(model: Any, params: Params, examples: Any) -> tuple[Any, Any]:
    """The examples' x, and the decoder's mean at the posterior's mean, both [N, ...]."""
    model = answers(model)
    require(model, "reconstructing", "encode", "decode")

    def one(example: Any) -> tuple[Any, Any]:
        x, condition = model.parts(example)
        return x, model.decode(params, mean_of(model.encode(params, example)), condition).mean

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(examples))


def partial_reconstructions(
    model: Any, params: Params, examples: Any, layers: Sequence[int]
) -> Any:
    """Images [layers, N, ...] from the first layers of the posterior of each example.

    The layers below them are at the means of their priors.
    """
    model = answers(model)
    require(model, "reconstructing from some layers", "partly")
    one = lambda example, count: model.partly(params, example, count).mean
    each = jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))
    return jax.tree.map(np.asarray, each(examples, jnp.asarray(layers)))


def prior_samples(model: Any, params: Params, key: Array, examples: Any) -> Any:
    """The decoder's mean at a draw of the prior, one for each example and at its condition."""
    model = answers(model)
    require(model, "drawing samples", "draw", "decode")

    def one(key: Array, example: Any) -> Any:
        _, condition = model.parts(example)
        return model.decode(params, model.draw(params, key, condition), condition).mean

    keys = jax.random.split(key, num_examples(examples))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys, examples))


def class_samples(model: Any, params: Params, key: Array, classes: int, count: int) -> Any:
    """The decoder's means at draws of each class, [classes, count, ...].

    The n-th draws of all classes have one key, so they differ in the class alone.

    Args:
      model: a model that draws at a class.
      params: its parameters.
      key: the key of the draws.
      classes: the number of classes.
      count: draws of each class.
    """
    model = answers(model)
    require(model, "drawing samples of classes", "classify", "draw", "decode")

    def one(label: Array, key: Array) -> Any:
        return model.decode(params, model.draw(params, key, label), label).mean

    of_class = jax.vmap(one, (None, 0))
    each = jax.jit(jax.vmap(of_class, (0, None)))
    return jax.tree.map(np.asarray, each(jnp.arange(classes), jax.random.split(key, count)))


def completions(model: Any, params: Params, examples: Any) -> Any:
    """x, and the decoder's means from all views and from each alone, [2 + M, N, ...]."""
    model = answers(model)
    require(model, "completing views", "seen", "encode", "decode")
    count = len(model.views)
    sets = np.concatenate([np.ones((1, count), bool), np.eye(count, dtype=bool)])

    def one(views: Array, example: Any) -> Any:
        z = mean_of(model.encode(params, model.seen(example, views)))
        return model.decode(params, z).mean

    decoded = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(sets, examples)
    inputs = jax.vmap(lambda example: model.parts(example)[0])(examples)
    return np.concatenate([np.asarray(inputs)[None], np.asarray(decoded)])


def posterior_means(model: Any, params: Params, examples: Any) -> Any:
    """The posterior's mean of every example: z [N, ...]."""
    model = answers(model)
    require(model, "encoding", "encode")
    return jax.jit(jax.vmap(lambda example: mean_of(model.encode(params, example))))(examples)


def decoded(model: Any, params: Params, z: Any, lead: int = 1, condition: Any = None) -> Any:
    """The decoder's mean at latents z.

    Args:
      model: a model that answers ``decode``.
      params: its parameters.
      z: a pytree of arrays whose first ``lead`` axes they share.
      lead: how many axes they share; the result has them too.
      condition: what a conditional model decodes at.
    """
    model = answers(model)
    require(model, "decoding", "decode")
    shape = jax.tree.leaves(z)[0].shape[:lead]
    flat = jax.tree.map(lambda a: jnp.reshape(a, (-1, *a.shape[lead:])), z)
    x = jax.jit(jax.vmap(lambda z: model.decode(params, z, condition).mean))(flat)
    return jax.tree.map(lambda a: np.asarray(a).reshape(*shape, *a.shape[1:]), x)


def traversals(
    model: Any,
    params: Params,
    center: Any,
    latents: Sequence[int],
    values: Array,
    condition: Any = None,
) -> Any:
    """Decodes ``center`` with one latent at a time set to each of ``values``.

    Args:
      model: a model that answers ``decode``.
      params: its parameters.
      center: z of one example, a pytree of [D, ...].
      latents: which latents are moved. They are numbered through the leaves of z.
      values: what they are set to, [V, ...].
      condition: what a conditional model decodes at.

    Returns images [latents, values, ...].
    """
    leaves, structure = jax.tree.flatten(center)
    ends = np.cumsum([len(leaf) for leaf in leaves])

    def moved(latent: int) -> Any:
        which = int(np.searchsorted(ends, latent, side="right"))
        place = latent - int(ends[which]) + len(leaves[which])
        rows = [jnp.broadcast_to(leaf, (len(values), *leaf.shape)) for leaf in leaves]
        rows[which] = rows[which].at[:, place].set(values)
        return jax.tree.unflatten(structure, rows)

    z = jax.tree.map(lambda *rows: jnp.stack(rows), *map(moved, latents))
    return decoded(model, params, z, 2, condition)


def interpolations(
    model: Any, params: Params, starts: Any, ends: Any, steps: int, condition: Any = None
) -> Any:
    """Decodes straight lines between posterior means.

    Args:
      model: a model that answers ``encode`` and ``decode``.
      params: its parameters.
      starts: examples [N, ...] whose means the lines begin at.
      ends: examples [N, ...] whose means they end at.
      steps: how many points of a line are decoded, its two ends included.
      condition: what a conditional model decodes at.

    Returns images [N, steps, ...].
    """
    first, last = (posterior_means(model, params, x) for x in (starts, ends))
    share = jnp.linspace(0.0, 1.0, steps)

    def line(a: Array, b: Array) -> Array:
        return jax.vmap(lambda t: (1 - t) * a + t * b, out_axes=1)(share)

    return decoded(model, params, jax.tree.map(line, first, last), 2, condition)
