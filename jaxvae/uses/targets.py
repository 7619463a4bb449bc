"""The posterior of one example as a density of real numbers, for methods that follow its gradient.

The target is log p(x, z) as a function of z, which is log p(z|x) plus a constant. Latents of any
shape are laid out in one vector, so that methods need not know of pytrees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxvae import distributions, models
from jaxvae.contracts import Array, Params
from jaxvae.distributions import log_prob_of
from jaxvae.evaluation.columns import require
from jaxvae.models import Model

# Families whose draws are not every point of a space of real numbers: what to call the latents.
DISCRETE: dict[type, str] = {
    distributions.Bernoulli: "bits",
    distributions.Truncated: "bits",
    distributions.Categorical: "classes",
    distributions.OneHotCategorical: "classes",
    distributions.SpikeAndSlab: "numbers that are exactly zero at times",
    models.Gated: "a choice of an expert",
}
BOUNDED: dict[type, str] = {
    distributions.PowerSpherical: "points of a sphere",
    distributions.VonMisesFisher: "points of a sphere",
    distributions.SphericalUniform: "points of a sphere",
    distributions.Beta: "shares between 0 and 1",
    distributions.Kumaraswamy: "shares between 0 and 1",
    distributions.Dirichlet: "shares that sum to one",
    distributions.Gamma: "positive numbers",
    distributions.Exponential: "positive numbers",
}
NO_DENSITY: dict[type, str] = {distributions.Point: "a point without a density"}


class Target(NamedTuple):
    """log p(x, z) of one example, as a function of a vector that holds all numbers of z."""

    log_joint: Callable[[Array], Array]  # [D] -> nats
    unravel: Callable[[Array], Any]  # [D] -> z
    size: int  # D


def target(model: Model, params: Params, example: Any, use: str) -> Target:
    """The target of an example. ``use`` is what asks, for the sentence of an error.

    Raises ValueError if the model has no ``encode`` or ``log_joint``, or if its latents are not any
    real numbers.
    """
    require(model, use, "encode", "log_joint")
    q: Any = jax.eval_shape(model.encode, params, example)  # type: ignore[arg-type]
    refuse(q, use, DISCRETE | BOUNDED | NO_DENSITY)
    if model.prior is not None:
        condition = model.parts(example)[1]
        refuse(
            jax.eval_shape(lambda: model.prior(params, condition)),  # type: ignore[misc]
            use,
            DISCRETE | BOUNDED,
        )
    like = draw_of(q, use)
    zeros, unravel = ravel_pytree(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like))
    log_joint: Any = model.log_joint
    return Target(lambda z: log_joint(params, example, unravel(z)), unravel, zeros.size)


def draw_of(density: Any, use: str) -> Any:
    """The shapes of a draw. Raises ValueError if a part of it is an integer, such as a label."""
    draw = jax.eval_shape(lambda density: density.sample(jax.random.key(0)), density)
    if not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(draw)):
        raise ValueError(_sentence(use, "in part classes", density))
    return draw


def _sentence(use: str, what: str, density: Any) -> str:
    return (
        f"{use} follows the gradient of log p(x, z) in z, and the latents of this model are {what} "
        f"({type(density).__name__}): it takes latents that are any real numbers"
    )


def refuse(density: Any, use: str, families: dict[type, str]) -> None:
    """Raises ValueError if one of the families is a part of a density."""
    kinds = tuple(families)
    nodes = jax.tree.leaves(density, is_leaf=lambda node: isinstance(node, kinds))
    for node in nodes:
        if isinstance(node, kinds):
            what = next(text for kind, text in families.items() if isinstance(node, kind))
            raise ValueError(_sentence(use, what, node))


def density_of(target: Target, density: Any, use: str) -> Callable[[Array], Array]:
    """The log-density of a distribution as a function of the vector.

    Raises ValueError for a flow without an inverse, whose density is known at its own draws only.
    """
    log_prob = lambda z: log_prob_of(density, target.unravel(z))
    try:
        jax.eval_shape(log_prob, jnp.zeros(target.size))
    except TypeError as error:
        raise ValueError(
            f"{use} needs the density of q(z|x) at given latents, and a {type(density).__name__} "
            "without an inverse knows it at its own draws only: start from the prior"
        ) from error
    return log_prob


def raveled(draws: Any) -> Array:
    """Draws of z, a pytree of [K, ...], as vectors [K, D]."""
    return jax.vmap(lambda z: ravel_pytree(z)[0])(draws)
