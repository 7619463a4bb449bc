"""A diffusion prior over real latents, with a bound on its density."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.code_priors.contract import CodePrior
from jaxvae.code_priors.times import timed_network
from jaxvae.contracts import Array, Params, Terms, pytree
from jaxvae.distributions import Normal
from jaxvae.ranges import Count


@pytree
class Diffusion:
    """A chain z_T ~ N(0, I), z_(t-1) ~ N(m(z_t, t), b_t I), whose last state is z.

    Noise is drawn with standard deviations times ``scale``.
    """

    params: Any
    context: Any
    betas: Array  # [T]
    scale: Any
    latent: int = dataclasses.field(metadata={"static": True})
    # (params, z_t, t / T, context) -> the noise in z_t
    noise_in: Callable[..., Array] = dataclasses.field(metadata={"static": True})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.latent,)

    @property
    def kept(self) -> Array:
        """a_t = prod_s (1 - b_s): the share of z's variance in z_t, [T]."""
        return jnp.exp(jnp.cumsum(jnp.log1p(-self.betas)))

    def mean(self, z: Array, t: Array) -> Array:
        """m(z_t, t) = (z_t - b_t e(z_t, t) / sqrt(1 - a_t)) / sqrt(1 - b_t), t in 0 .. T - 1."""
        beta, kept = self.betas[t], self.kept[t]
        noise = self.noise_in(self.params, z, (t + 1) / len(self.betas), self.context)
        return (z - beta / jnp.sqrt(1 - kept) * noise) / jnp.sqrt(1 - beta)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        draw = jax.vmap(self._drawn)(jax.random.split(key, math.prod(shape)))
        return draw.reshape(*shape, self.latent)

    def _drawn(self, key: Array) -> Array:
        def back(z: Array, t: Array) -> tuple[Array, None]:
            noise = jax.random.normal(jax.random.fold_in(key, t), z.shape)
            return self.mean(z, t) + self.scale * jnp.sqrt(self.betas[t]) * noise, None

        last = len(self.betas)
        start = self.scale * jax.random.normal(jax.random.fold_in(key, last), (self.latent,))
        return jax.lax.scan(back, start, jnp.arange(last)[::-1])[0]

    def log_weight(self, key: Array, z: Array) -> Array:
        """log p(z_T) + sum_t [log p(z_(t-1)|z_t) - log q(z_t|z_(t-1))], z_1, ..., z_T ~ q.

        Ho et al. 2020, arXiv:2006.11239, eq. 3. Its exponential has the mean p(z), so its own mean
        is a lower bound on log p(z).
        """
        steps = jnp.arange(len(self.betas))
        noise = jax.random.normal(key, (len(steps), self.latent))

        def forward(z: Array, t: Array) -> tuple[Array, Array]:
            z = jnp.sqrt(1 - self.betas[t]) * z + jnp.sqrt(self.betas[t]) * noise[t]
            return z, z

        last, path = jax.lax.scan(forward, z, steps)  # [T, D]
        before = jnp.concatenate([z[None], path[:-1]])
        errors = before - jax.vmap(self.mean)(path, steps)
        squares = jnp.sum(noise**2 - errors**2 / self.betas[:, None])
        return Normal(jnp.zeros(self.latent), jnp.ones(self.latent)).log_prob(last) + squares / 2


def ddpm(
    latent: int,
    context_size: int,
    precision: str,
    prior_hidden: Count = 256,
    diffusion_steps: Count = 100,
) -> CodePrior:
    """Denoising diffusion of z, learned by its simple loss.

    Ho et al. 2020, arXiv:2006.11239. The loss is |e - e(z_t, t)|^2 / D (eq. 14). The bound on
    log p(z) is the one of eq. 3.

    Args:
      latent: D, the number of latents.
      context_size: the size of the context, which the network sees; 0 is none.
      precision: the precision of the network.
      prior_hidden: units of each hidden layer of the prior's networks.
      diffusion_steps: T, the number of steps.
    """
    network = timed_network(latent, context_size, prior_hidden, precision)
    betas = noise_schedule(diffusion_steps)

    def make(params: Params, context: Any) -> Diffusion:
        return Diffusion(params, context, betas, 1.0, latent, network.apply)

    def loss(params: Params, key: Array, z: Array, context: Any) -> tuple[Array, Terms]:
        key_time, key_noise = jax.random.split(key)
        t = jax.random.randint(key_time, (), 0, diffusion_steps)
        e = jax.random.normal(key_noise, z.shape)
        kept = make(params, context).kept[t]
        z_t = jnp.sqrt(kept) * z + jnp.sqrt(1 - kept) * e
        guess = network.apply(params, z_t, (t + 1) / diffusion_steps, context)
        return jnp.mean((e - guess) ** 2), {}

    return CodePrior(network.init, make, loss, density=False)


def noise_schedule(steps: int) -> Array:
    """b_t whose log a_t / (1 - a_t) falls in a straight line from 8 to -6: [T].

    Kingma et al. 2021, arXiv:2107.00630, app. G. No b_t is near one, where an error of the network
    would be multiplied.
    """
    kept = jax.nn.sigmoid(jnp.linspace(8.0, -6.0, steps))
    return 1 - kept / jnp.concatenate([jnp.ones(1), kept[:-1]])
