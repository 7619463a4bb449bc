"""Priors p(z).

A prior says how its parameters start, and which distribution they make. It is a function of the
number of latents. Its other arguments are settings, which have defaults and become flags of the
command line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import flows, networks
from jaxvae.distributions import (
    Bernoulli,
    Beta,
    Hierarchy,
    Joint,
    Mixture,
    Normal,
    OneHotCategorical,
    SphericalUniform,
    SpikeAndSlab,
    Transformed,
)
from jaxvae.ranges import Count, Positive, Share

Array = jax.Array


class Prior(NamedTuple):
    """A prior family."""

    init: Callable[[Array], Any]  # key -> params
    make: Callable[[Any], Any]  # params -> p(z)
    extra: int = 0  # leading dimensions of z that the decoder does not see


def standard_normal(latent: int) -> Prior:
    """N(z; 0, I), without parameters."""
    return Prior(lambda key: {}, lambda params: Normal(jnp.zeros(latent), jnp.ones(latent)))


def bernoulli(latent: int) -> Prior:
    """Fair bits, without parameters."""
    return Prior(lambda key: {}, lambda params: Bernoulli(jnp.zeros(latent)))


def categorical(latent: int, classes: Count = 10) -> Prior:
    """The uniform distribution over one-hot z [D, C], without parameters.

    Args:
      latent: D, the number of latents.
      classes: C, the number of classes of each latent.
    """
    return Prior(lambda key: {}, lambda params: OneHotCategorical(jnp.zeros((latent, classes))))


def joint(latent: int, classes: Count = 10) -> Prior:
    """N(0, I) and a uniform class beside it, z [D + C], without parameters.

    Args:
      latent: D, the number of Gaussian latents.
      classes: C, the number of classes.
    """
    parts = standard_normal(latent), categorical(1, classes)
    return Prior(lambda key: {}, lambda params: Joint(tuple(part.make({}) for part in parts)))


def spherical_uniform(latent: int) -> Prior:
    """The uniform distribution over unit vectors z [D], without parameters.

    Raises ValueError unless D >= 2.
    """
    if latent < 2:
        raise ValueError(
            f"a uniform prior over a sphere needs 2 dimensions or more; latent was {latent}"
        )
    return Prior(lambda key: {}, lambda params: SphericalUniform(latent))


def spike_and_slab(latent: int, alpha: Share = 0.2) -> Prior:
    """Latents that are N(0, 1) with probability ``alpha``, otherwise zero.

    Tonolini et al. 2019, arXiv:1905.10185. It has no parameters. Raises ValueError unless
    0 < alpha < 1.

    Args:
      latent: D, the number of latents.
      alpha: the probability that a latent is not zero.
    """
    if not 0 < alpha < 1:
        raise ValueError(
            f"alpha is the probability that a latent is not zero, between 0 and 1; it was {alpha}"
        )
    logits = jnp.full(latent, jnp.log(alpha) - jnp.log1p(-alpha))
    return Prior(
        lambda key: {}, lambda params: SpikeAndSlab(logits, jnp.zeros(latent), jnp.ones(latent))
    )


def stick_fractions(latent: int, stick_concentration: Positive = 5.0) -> Prior:
    """Independent Beta(1, c) fractions, whose sticks have lengths of a Dirichlet process.

    Sethuraman 1994, Statistica Sinica 4. It has no parameters. The k-th length has the mean
    1/(1 + c) (c/(1 + c))^(k-1).

    Args:
      latent: D, the number of fractions.
      stick_concentration: c; the larger it is, the more sticks are long.
    """
    concentration = jnp.full(latent, stick_concentration)
    return Prior(lambda key: {}, lambda params: Beta(jnp.ones(latent), concentration))


def mixture(latent: int, components: Count = 10) -> Prior:
    """A learned mixture of diagonal Gaussians, sum_k w_k N(z; m_k, diag(s_k^2)).

    Args:
      latent: D, the number of latents.
      components: how many Gaussians the mixture has.
    """

    def init(key: Array) -> dict[str, Array]:
        zeros = jnp.zeros((components, latent))
        return {
            "logits": jnp.zeros(components),
            "loc": jax.random.normal(key, zeros.shape),
            "log_scale": zeros,
        }

    def make(params: Any) -> Mixture:
        return Mixture(params["logits"], Normal(params["loc"], jnp.exp(params["log_scale"])))

    return Prior(init, make)


def hierarchical_mixture(
    latent: int, components: Count = 10, upper_latent: Count = 5, prior_hidden: Count = 100
) -> Prior:
    """GMVAE's prior over [w, z]: p(w) 1/K sum_k N(z; m_k(w), diag(s_k(w)^2)).

    Dilokthanakul et al. 2016, arXiv:1611.02648. w ~ N(0, I), and one network with a hidden layer
    gives m and log s. log p(w, z) is summed over the component. The posterior of the component is
    ``then(params, w).responsibilities(z)``.

    Args:
      latent: dimensions of z.
      components: K, how many Gaussians the mixture has.
      upper_latent: dimensions of w.
      prior_hidden: units of the network's hidden layer.
    """
    network = networks.mlp((prior_hidden,), (components, 2, latent), jnp.tanh)
    network = networks.with_precision(network)

    def then(params: Any, w: Array) -> Mixture:
        loc, log_scale = jnp.moveaxis(network.apply(params, w), 1, 0)
        return Mixture(jnp.zeros(components), Normal(loc, jnp.exp(log_scale)))

    first = Normal(jnp.zeros(upper_latent), jnp.ones(upper_latent))
    return Prior(
        lambda key: network.init(key, jnp.zeros(upper_latent)),
        lambda params: Hierarchy(first, params, then),
        extra=upper_latent,
    )


def flowed(latent: int, flow: flows.Flow) -> Prior:
    """The distribution of f(e) for e ~ N(0, I) and a flow f.

    Samples need the flow's ``forward``, and densities its ``inverse``.
    """
    base = Normal(jnp.zeros(latent), jnp.ones(latent))
    return Prior(flow.init, lambda params: Transformed(base, params, jnp.zeros(flow.size), flow))


def coupling(latent: int, prior_steps: Count = 4, prior_hidden: Count = 128) -> Prior:
    """Affine couplings of N(0, I), which change one half of z and then the other.

    Dinh et al. 2016, arXiv:1605.08803.

    Args:
      latent: D, the number of latents.
      prior_steps: how many couplings are chained.
      prior_hidden: units of each of the two hidden layers of a coupling.
    """
    flow = flows.affine_coupling(latent, (prior_hidden, prior_hidden))
    return flowed(latent, flows.alternating(flow, latent, prior_steps))


def autoregressive(latent: int, prior_steps: Count = 4, prior_hidden: Count = 128) -> Prior:
    """Masked autoregressive flows, prod_i N(z_i; m_i(z_<i), s_i(z_<i)^2) in each step.

    Papamakarios et al. 2017, arXiv:1705.07057. Each step reverses the order of the latents. A
    density takes one pass through the network, and a sample takes one for each latent.

    Args:
      latent: D, the number of latents.
      prior_steps: how many flows are chained.
      prior_hidden: units of each flow's hidden layer; there are never fewer than D.
    """
    flow = flows.masked_autoregressive(latent, (max(prior_hidden, latent),))
    return flowed(latent, flows.alternating(flow, latent, prior_steps))


# The priors of real latents. Other latents have the prior that their posterior names.
PRIORS: dict[str, Callable[..., Prior]] = {
    "standard_normal": standard_normal,
    "mixture": mixture,
    "hierarchical_mixture": hierarchical_mixture,
    "coupling": coupling,
    "autoregressive": autoregressive,
}
