"""Priors p(z): parameters, which may be none, and the distribution made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.distributions import Normal

Array = jax.Array


class Prior(NamedTuple):
    """A prior family."""

    init: Callable[[Array], Any]  # key -> params
    make: Callable[[Any], Any]  # params -> p(z)


def standard_normal(latent: int) -> Prior:
    """N(z; 0, I) over ``latent`` dimensions, without parameters."""
    return Prior(lambda key: {}, lambda params: Normal(jnp.zeros(latent), jnp.ones(latent)))
