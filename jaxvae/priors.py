"""Priors p(z): parameters, which may be none, and the distribution made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.distributions import Bernoulli, Normal, OneHotCategorical

Array = jax.Array


class Prior(NamedTuple):
    """A prior family."""

    init: Callable[[Array], Any]  # key -> params
    make: Callable[[Any], Any]  # params -> p(z)


def standard_normal(latent: int) -> Prior:
    """N(z; 0, I) over ``latent`` dimensions, without parameters."""
    return Prior(lambda key: {}, lambda params: Normal(jnp.zeros(latent), jnp.ones(latent)))


def bernoulli(latent: int) -> Prior:
    """Fair bits, without parameters."""
    return Prior(lambda key: {}, lambda params: Bernoulli(jnp.zeros(latent)))


def categorical(latent: int, classes: int = 10) -> Prior:
    """The uniform distribution over one-hot z [D, C], without parameters."""
    return Prior(lambda key: {}, lambda params: OneHotCategorical(jnp.zeros((latent, classes))))


# the prior that goes with a posterior
NATURAL: dict[str, Callable[..., Prior]] = {
    "normal": standard_normal,
    "multivariate_normal": standard_normal,
    "bernoulli": bernoulli,
    "categorical": categorical,
}
