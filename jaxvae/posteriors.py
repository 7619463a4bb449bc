"""Posterior families q(z|x): how many numbers the encoder must give, and the distribution made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.distributions import Bernoulli, MultivariateNormal, Normal, OneHotCategorical

Array = jax.Array


class Posterior(NamedTuple):
    """A posterior family."""

    size: int  # numbers that the encoder gives for one example
    make: Callable[[Any, Array], Any]  # (params, raw [size]) -> q(z|x)
    init: Callable[[Array], Any] = lambda key: {}  # key -> params that all examples share


def normal(latent: int) -> Posterior:
    """Diagonal Gaussian, N(z; m, diag(s^2)) with raw = [m, log s] (Kingma & Welling 2013, arXiv:1312.6114, eq. 9)."""

    def make(params: Any, raw: Array) -> Normal:
        loc, log_scale = jnp.split(raw, 2)
        return Normal(loc, jnp.exp(log_scale))

    return Posterior(2 * latent, make)


def multivariate_normal(latent: int) -> Posterior:
    """Full-covariance Gaussian, N(z; m, L L^T), L lower triangular with exp(raw) on its diagonal.

    raw holds m [D], log diag L [D] and the D (D-1) / 2 entries below the diagonal (arXiv:1312.6114, app. F).
    """
    below = jnp.tril_indices(latent, -1)

    def make(params: Any, raw: Array) -> MultivariateNormal:
        loc, log_diagonal, rest = jnp.split(raw, [latent, 2 * latent])
        return MultivariateNormal(loc, jnp.diag(jnp.exp(log_diagonal)).at[below].set(rest))

    return Posterior(2 * latent + latent * (latent - 1) // 2, make)


def bernoulli(latent: int) -> Posterior:
    """Independent bits; raw is their log-odds."""
    return Posterior(latent, lambda params, raw: Bernoulli(raw))


def categorical(latent: int, classes: int = 10) -> Posterior:
    """One of C classes for every latent, one-hot, z [D, C]; raw holds their logits."""
    return Posterior(latent * classes, lambda params, raw: OneHotCategorical(raw.reshape(latent, classes)))


# name -> function of the number of latents, and of the classes where latents have them
POSTERIORS: dict[str, Callable[..., Posterior]] = {
    "normal": normal,
    "multivariate_normal": multivariate_normal,
    "bernoulli": bernoulli,
    "categorical": categorical,
}
