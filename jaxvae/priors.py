"""Priors p(z): parameters, which may be none, and the distribution made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import flows, networks
from jaxvae.distributions import (
    Bernoulli,
    Hierarchy,
    Joint,
    Mixture,
    Normal,
    OneHotCategorical,
    SphericalUniform,
    SpikeAndSlab,
    Transformed,
)
from jaxvae.posteriors import FLOWS

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


def spherical_uniform(latent: int) -> Prior:
    """The uniform distribution over unit vectors z [D], D >= 2, without parameters. ValueError
    for one dimension.
    """
    if latent < 2:
        raise ValueError(
            f"a uniform prior over a sphere needs 2 dimensions or more; latent was {latent}"
        )
    return Prior(lambda key: {}, lambda params: SphericalUniform(latent))


def spike_and_slab(latent: int, alpha: float = 0.2) -> Prior:
    """Latents that are N(0, 1) with probability ``alpha``, else zero, without parameters
    (arXiv:1905.10185).
    """
    if not 0 < alpha < 1:
        raise ValueError(
            f"alpha is the probability that a latent is not zero, between 0 and 1; it was {alpha}"
        )
    logits = jnp.full(latent, jnp.log(alpha) - jnp.log1p(-alpha))
    return Prior(
        lambda key: {}, lambda params: SpikeAndSlab(logits, jnp.zeros(latent), jnp.ones(latent))
    )


def mixture(latent: int, components: int = 500) -> Prior:
    """A mixture of diagonal Gaussians, sum_k w_k N(z; m_k, diag(s_k^2)), all of it learned."""

    def init(key: Array) -> dict[str, Array]:
        zeros = jnp.zeros((components, latent))
        return {
            "logits": jnp.zeros(components),
            "loc": jax.random.normal(key, zeros.shape),
            "log_scale": zeros,
        }

    make = lambda params: Mixture(
        params["logits"], Normal(params["loc"], jnp.exp(params["log_scale"]))
    )
    return Prior(init, make)


def joint(latent: int, classes: int = 10) -> Prior:
    """N(0, I) and a uniform class beside it, z [D + C], without parameters."""
    parts = standard_normal(latent), categorical(1, classes)
    return Prior(lambda key: {}, lambda params: Joint(tuple(part.make({}) for part in parts)))


def hierarchical_mixture(
    latent: int, components: int = 10, upper: int = 5, hidden: int = 100
) -> Prior:
    """p(w) 1/K sum_k N(z; m_k(w), diag(s_k(w)^2)) over [w, z], w ~ N(0, I) of ``upper`` dimensions,
    z of ``latent``.

    GMVAE: Dilokthanakul et al. 2016, arXiv:1611.02648, of which log p(w, z) has summed over the
    component. ``then(params, w).responsibilities(z)`` are its posterior. m and s are a network of
    one hidden layer.
    """
    network = networks.with_precision(networks.mlp((hidden,), (components, 2, latent), jnp.tanh))

    def then(params: Any, w: Array) -> Mixture:
        loc, log_scale = jnp.moveaxis(network.apply(params, w), 1, 0)
        return Mixture(jnp.zeros(components), Normal(loc, jnp.exp(log_scale)))

    first = Normal(jnp.zeros(upper), jnp.ones(upper))
    return Prior(
        lambda key: network.init(key, jnp.zeros(upper)),
        lambda params: Hierarchy(first, params, then),
    )


def flowed(latent: int, flow: flows.Flow) -> Prior:
    """What a flow makes of N(0, I). Its density takes the inverse, its samples the flow itself."""
    base = Normal(jnp.zeros(latent), jnp.ones(latent))
    return Prior(flow.init, lambda params: Transformed(base, params, jnp.zeros(flow.size), flow))


def coupling(latent: int, steps: int = 4, hidden: int = 128) -> Prior:
    """``steps`` affine couplings that change one half of z and the other (Dinh et al. 2016,
    arXiv:1605.08803).
    """
    return flowed(
        latent, flows.alternating(flows.affine_coupling(latent, (hidden, hidden)), latent, steps)
    )


def autoregressive(latent: int, steps: int = 1, hidden: int = 128) -> Prior:
    """prod_i N(z_i; m_i(z_<i), s_i(z_<i)^2), or ``steps`` of it, each in the other order
    (arXiv:1705.07057).

    A density takes one pass, a sample one for each latent.
    """
    return flowed(
        latent,
        flows.alternating(
            flows.masked_autoregressive(latent, (max(hidden, latent),)), latent, steps
        ),
    )


# the prior that goes with a posterior
DEFAULT_PRIOR: dict[str, Callable[..., Prior]] = {
    "normal": standard_normal,
    "multivariate_normal": standard_normal,
    "bernoulli": bernoulli,
    "categorical": categorical,
    "power_spherical": spherical_uniform,
    "von_mises_fisher": spherical_uniform,
    "spike_and_slab": spike_and_slab,
    "joint": joint,
    **dict.fromkeys(("point", *FLOWS), standard_normal),
}

# those that can be chosen for continuous latents in place of the natural one
PRIORS: dict[str, Callable[..., Prior]] = {
    "standard_normal": standard_normal,
    "mixture": mixture,
    "hierarchical_mixture": hierarchical_mixture,
    "coupling": coupling,
    "autoregressive": autoregressive,
}
