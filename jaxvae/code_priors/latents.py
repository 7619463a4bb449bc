"""Priors over real latents with a density: flows, and a velocity that is learned by regression."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxvae import flows, networks
from jaxvae.code_priors.contract import CodePrior, log_weight_of
from jaxvae.code_priors.times import timed_network
from jaxvae.contracts import Array, Params, Terms, pytree
from jaxvae.distributions import Normal, Transformed, log_prob_of
from jaxvae.ranges import Count


@pytree
class Standardized:
    """z = center + spread * y for y [D] of ``base``, z in the shape of ``center``."""

    base: Any
    center: Array
    spread: Array

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.center)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        y = self.base.sample(key, shape).reshape(*shape, *self.event_shape)
        return self.center + self.spread * y

    def standard(self, z: Array) -> Array:
        """y [D] of one z."""
        return ((z - self.center) / self.spread).reshape(-1)

    def log_prob(self, z: Array) -> Array:
        return log_prob_of(self.base, self.standard(z)) - jnp.log(self.spread).sum()

    def log_weight(self, key: Array, z: Array) -> Array:
        """The logarithm of an unbiased estimate of p(z)."""
        return log_weight_of(self.base, key, self.standard(z)) - jnp.log(self.spread).sum()


def of_flow(latent: int, context_size: int, flow: flows.Flow) -> CodePrior:
    """A flow of N(m(c), diag(s(c)^2)) for a context c, or of N(0, I), by maximum likelihood."""
    network = networks.with_precision(networks.mlp((), (2, latent)))

    def init(key: Array) -> Params:
        key_flow, key_base = jax.random.split(key)
        params = {"flow": flow.init(key_flow)}
        if context_size:
            params["base"] = network.init(key_base, jnp.zeros(context_size))
        return params

    def make(params: Params, context: Any) -> Transformed:
        loc, log_scale = jnp.zeros((2, latent))
        if context_size:
            loc, log_scale = network.apply(params["base"], context)
        base = Normal(loc, jnp.exp(log_scale))
        return Transformed(base, params["flow"], jnp.zeros(flow.size), flow)

    def loss(params: Params, key: Array, z: Array, context: Any) -> tuple[Array, Terms]:
        return -make(params, context).log_prob(z), {}

    return CodePrior(init, make, loss)


def coupling(
    latent: int, context_size: int, prior_steps: Count = 4, prior_hidden: Count = 128
) -> CodePrior:
    """Affine couplings of a Gaussian, which change one half of z and then the other.

    Dinh et al. 2016, arXiv:1605.08803. The density is exact.

    Args:
      latent: D, the number of latents.
      context_size: the size of the context, which moves the Gaussian; 0 is none.
      prior_steps: how many flows are chained.
      prior_hidden: units of each hidden layer of the prior's networks.
    """
    flow = flows.affine_coupling(latent, (prior_hidden, prior_hidden))
    return of_flow(latent, context_size, flows.alternating(flow, latent, prior_steps))


def autoregressive(
    latent: int, context_size: int, prior_steps: Count = 4, prior_hidden: Count = 128
) -> CodePrior:
    """Masked autoregressive flows of a Gaussian.

    Papamakarios et al. 2017, arXiv:1705.07057. The density is exact.

    Args:
      latent: D, the number of latents.
      context_size: the size of the context, which moves the Gaussian; 0 is none.
      prior_steps: how many flows are chained.
      prior_hidden: units of each flow's hidden layer; there are never fewer than D.
    """
    flow = flows.masked_autoregressive(latent, (max(prior_hidden, latent),))
    return of_flow(latent, context_size, flows.alternating(flow, latent, prior_steps))


def flow_matching(
    latent: int,
    context_size: int,
    precision: str,
    prior_hidden: Count = 256,
    ode_steps: Count = 20,
) -> CodePrior:
    """A velocity that leads from noise to z, learned by regression.

    Lipman et al. 2022, arXiv:2210.02747. The loss is |v(z_t, t) - (z - e)|^2 / D for
    z_t = (1 - t) e + t z and e ~ N(0, I). The density is the one of ``flows.continuous``, with an
    exact trace. It is exact but for the error of the solver.

    Args:
      latent: D, the number of latents.
      context_size: the size of the context, which the velocity sees; 0 is none.
      precision: the precision of the network.
      prior_hidden: units of each hidden layer of the prior's networks.
      ode_steps: steps of the Runge-Kutta method.
    """
    network = timed_network(latent, context_size, prior_hidden, precision)

    def velocity(params: Params, raw: Array, z: Array, t: Array) -> Array:
        return network.apply(params, z, t, raw)

    flow = flows.continuous(latent, network.init, velocity, ode_steps, context_size)

    def make(params: Params, context: Any) -> Transformed:
        base = Normal(jnp.zeros(latent), jnp.ones(latent))
        return Transformed(base, params, _or_empty(context), flow)

    def loss(params: Params, key: Array, z: Array, context: Any) -> tuple[Array, Terms]:
        key_time, key_noise = jax.random.split(key)
        t, e = jax.random.uniform(key_time), jax.random.normal(key_noise, z.shape)
        v = velocity(params, _or_empty(context), (1 - t) * e + t * z, t)
        return jnp.mean((v - (z - e)) ** 2), {}

    return CodePrior(network.init, make, loss)


def _or_empty(context: Any) -> Array:
    return jnp.zeros(0) if context is None else context
