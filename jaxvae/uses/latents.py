"""Arithmetic of latents: lines between them, attribute vectors, edits and counterfactuals.

z is a pytree of real numbers. Functions of one z are mapped over several by ``jax.vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxvae.contracts import Array, Params
from jaxvae.evaluation.columns import require
from jaxvae.models import answers

DAMPING = 0.5  # of a step towards the solution of the linear problem
LONGEST = 2.0  # the norm of a step, beyond which a decoder is not taken for linear
RETURNS = 5  # steps of Newton's method that end at the target


def straight(one: Any, other: Any, shares: Array) -> Any:
    """Points (1 - t) z + t z' of the straight line between two latents, [T, ...].

    ``shares`` are the t, [T].
    """
    line = lambda a, b: jax.vmap(lambda t: (1 - t) * a + t * b)(jnp.asarray(shares))
    return jax.tree.map(line, one, other)


def spherical(one: Any, other: Any, shares: Array) -> Any:
    """Points of the great circle through two latents, [T, ...].

        z_t = sin((1 - t) a) / sin a  z + sin(t a) / sin a  z',   cos a = z.z' / |z| |z'|

    White 2016, arXiv:1609.04468, sec. 2.1. Between latents of one norm all points have that norm,
    where a straight line leaves the shell on which draws from a normal prior lie. The line of two
    latents of one direction is straight.
    """
    (a, restore), (b, _) = ravel_pytree(one), ravel_pytree(other)
    angle = jnp.arccos(jnp.clip(a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b)), -1, 1))
    curved = jnp.sin(angle) > 1e-4
    safe = jnp.where(curved, angle, 1.0)

    def point(t: Array) -> Any:
        weights = jnp.sin((1 - t) * safe) / jnp.sin(safe), jnp.sin(t * safe) / jnp.sin(safe)
        first, second = (jnp.where(curved, w, s) for w, s in zip(weights, (1 - t, t), strict=True))
        return restore(first * a + second * b)

    return jax.vmap(point)(jnp.asarray(shares))


def attribute_vector(z: Any, has: np.ndarray, groups: np.ndarray | None = None) -> Any:
    """The mean latent with an attribute, less the mean latent without it.

        v = 1/G sum_g (mean of z with the attribute in g - mean of z without it in g)

    Larsen et al. 2016, arXiv:1512.09300, sec. 4.2, there without groups. Groups hold a nuisance
    fixed: if examples with the attribute are also larger, the plain difference moves the size too.

    Args are latents [N, ...], booleans [N], and any labels of groups [N]. Groups that lack examples
    of one kind are left out. Raises ValueError if none is left.
    """
    has = np.asarray(has, bool)
    groups = np.zeros(len(has), int) if groups is None else np.asarray(groups)
    kinds = [each for each in np.unique(groups) if len(np.unique(has[groups == each])) == 2]
    if not kinds:
        raise ValueError(
            "an attribute vector needs examples with the attribute and examples without it"
            + (" in one group at least" if len(np.unique(groups)) > 1 else "")
        )

    def difference(leaf: Any) -> Array:
        rows = np.asarray(leaf)
        parts = [
            rows[(groups == each) & has].mean(0) - rows[(groups == each) & ~has].mean(0)
            for each in kinds
        ]
        return jnp.asarray(np.mean(parts, 0))

    return jax.tree.map(difference, z)


def moved(z: Any, vector: Any, amount: Any) -> Any:
    """z + t v."""
    return jax.tree.map(lambda a, v: a + amount * v, z, vector)


def edited(
    model: Any, params: Params, z: Any, vector: Any, amounts: Array, condition: Any = None
) -> Any:
    """The means of p(x|z + t v) for each t of ``amounts``, [T, ...].

    Args:
      model: a model that answers ``decode``, such as ``models.answers`` takes.
      params: its parameters.
      z: a latent.
      vector: a direction, structured like z.
      amounts: how far to move, [T].
      condition: what a conditional model decodes at.

    >>> import jaxvae
    >>> from jaxvae.uses import latents
    >>> smile = latents.attribute_vector(model.encode(x), smiling)  # doctest: +SKIP
    >>> images = latents.edited(model.model, model.params, z, smile, [0, 1])  # doctest: +SKIP
    """
    model = answers(model)
    require(model, "editing", "decode")
    check_real(z)
    one = lambda t: model.decode(params, moved(z, vector, t), condition).mean
    return jax.vmap(one)(jnp.asarray(amounts, jnp.float32))


def check_real(z: Any) -> None:
    """Raises ValueError for latents that are whole numbers, which cannot be moved."""
    if not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in jax.tree.leaves(z)):
        raise ValueError(
            "latents of this model are codes, whole numbers that cannot be moved: choose a family "
            "with real latents"
        )


class Counterfactual(NamedTuple):
    """The nearest latent whose decoding has another score."""

    z: Any
    x: Any  # the mean of p(x|z)
    score: Array  # of x
    distance: Array  # |z - start|


def counterfactual(
    model: Any,
    params: Params,
    z: Any,
    score: Callable[[Any], Array],
    target: Any,
    condition: Any = None,
    steps: int = 40,
) -> Counterfactual:
    """The nearest latent at whose decoding a score has a wanted value.

        z' = argmin |z' - z|^2  such that  score(E[x|z']) = target

    The constraint is made linear again and again, and the solution of each linear problem,
    z + g (target - s_k + g.(z_k - z)) / |g|^2 with the gradient g at z_k, is gone half way to
    (Hasofer & Lind 1974; Rackwitz & Fiessler 1978). A linear decoder W and score w.x need one
    problem, z' = z + t W'w / |W'w|^2 with t = target - score. A target that no latent reaches is
    seen by the score that is returned.

    Args:
      model: a model that answers ``decode``.
      params: its parameters.
      z: the latent to start from.
      score: x -> a number, such as the log-odds of a classifier.
      target: the wanted score, such as 0 for even odds.
      condition: what a conditional model decodes at.
      steps: linear problems that are solved.
    """
    model = answers(model)
    require(model, "a counterfactual", "decode")
    check_real(z)
    start, restore = ravel_pytree(z)
    decode = lambda flat: model.decode(params, restore(flat), condition).mean
    value_and_gradient = jax.value_and_grad(lambda flat: score(decode(flat)))

    def step(_: Any, now: Array) -> Array:
        value, g = value_and_gradient(now)
        solution = start + g * (target - value + g @ (now - start)) / _square(g)
        return now + _shortened(DAMPING * (solution - now))

    def back(_: Any, now: Array) -> Array:
        value, g = value_and_gradient(now)
        return now + _shortened(g * (target - value) / _square(g))

    end = lax.fori_loop(0, RETURNS, back, lax.fori_loop(0, steps, step, start))
    x = decode(end)
    return Counterfactual(restore(end), x, score(x), jnp.linalg.norm(end - start))


def _shortened(step: Array) -> Array:
    return step * jnp.minimum(1.0, LONGEST / jnp.maximum(jnp.linalg.norm(step), 1e-12))


def _square(g: Array) -> Array:
    """|g|^2, above 0 where a decoder is flat."""
    return jnp.maximum(g @ g, 1e-12)
