"""Priors that are learned over the codes of a trained model, while that model stays as it is.

Codes are grids of whole numbers, or real latents [D]. ``context`` is a vector that a prior is
conditioned on, such as a one-hot label, or None. Log-probabilities are in nats. A prior of one's
own is a function and a row in ``CODE_PRIORS``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import flows, networks
from jaxvae.contracts import Array, Params, Terms, pytree
from jaxvae.distributions import Normal, Transformed, log_prob_of
from jaxvae.networks import Autoregressive, Codes, Grid, Network
from jaxvae.ranges import Count, Fraction


class CodePrior(NamedTuple):
    """A prior over codes."""

    init: Callable[[Array], Params]  # key -> params
    # (params, context) -> a law with ``sample(key, shape)``, and with ``log_prob(codes)`` or
    # ``log_weight(key, codes)``, the logarithm of an unbiased estimate of p(codes)
    make: Callable[[Params, Any], Any]
    # (params, key, codes, context) -> (loss, terms), of one example
    loss: Callable[[Params, Array, Any, Any], tuple[Array, Terms]]
    density: bool = True  # whether the law has ``log_prob``


def log_weight_of(law: Any, key: Array, codes: Any) -> Array:
    """log p(codes), or the logarithm of an unbiased estimate of p(codes), a scalar."""
    estimate = getattr(law, "log_weight", None)
    return log_prob_of(law, codes) if estimate is None else estimate(key, codes)


# Grids of codes


@pytree
class CertainCodes:
    """All probability at the codes that an encoder gives."""

    loc: Codes

    @property
    def mean(self) -> Codes:
        return self.loc

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Codes:
        return jax.tree.map(lambda c: jnp.broadcast_to(c, shape + c.shape), self.loc)

    def log_prob(self, codes: Codes) -> Array:
        same = jax.tree.map(lambda c, loc: jnp.all(c == loc), codes, self.loc)
        return jnp.where(jnp.stack(jax.tree.leaves(same)).all(), 0.0, -jnp.inf)


@pytree
class Grids:
    """The law of an autoregressive network, with its logits divided by ``scale``."""

    params: Any
    context: Any
    scale: Any
    network: Autoregressive = dataclasses.field(metadata={"static": True})

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Codes:
        draw = lambda key: self.network.sample(self.params, key, self.context, self.scale)
        codes = jax.vmap(draw)(jax.random.split(key, math.prod(shape)))
        return jax.tree.map(lambda c: c.reshape(*shape, *c.shape[1:]), codes)

    def log_prob(self, codes: Codes) -> Array:
        return self.log_probs(codes).sum()

    def log_probs(self, codes: Codes) -> Array:
        """log p of each grid given those above it, [levels]."""
        logits = self.network.logits(self.params, codes, self.context)
        return networks.log_probs_of_grids([each / self.scale for each in logits], codes)


def of_network(network: Autoregressive) -> CodePrior:
    """The prior of an autoregressive network, trained by maximum likelihood."""

    def make(params: Params, context: Any) -> Grids:
        return Grids(params, context, 1.0, network)

    def loss(params: Params, key: Array, codes: Codes, context: Any) -> tuple[Array, Terms]:
        logits = network.logits(params, codes, context, key)
        value = -networks.log_probs_of_grids(logits, codes).sum()
        return value, {"kl": value}

    return CodePrior(network.init, make, loss)


def pixelcnn(
    grids: Sequence[Grid],
    context_size: int,
    precision: str,
    prior_width: Count = 64,
    prior_layers: Count = 8,
    reach: Count = 2,
    prior_dropout: Fraction = 0.0,
) -> CodePrior:
    """A gated PixelCNN for each grid of codes, conditioned on the grids above it.

    van den Oord et al. 2016, arXiv:1606.05328.

    Args:
      grids: the grids of codes, from the top one on.
      context_size: the size of the context; 0 is none.
      precision: the precision of the networks.
      prior_width: channels of the network.
      prior_layers: layers of the network.
      reach: rows above a position, and columns at each side, that a layer sees.
      prior_dropout: share of units that training drops.
    """
    shape = prior_width, prior_layers, reach, prior_dropout
    return of_network(networks.gated_pixelcnn(grids, *shape, context_size, precision))


def transformer(
    grids: Sequence[Grid],
    context_size: int,
    precision: str,
    prior_width: Count = 64,
    prior_layers: Count = 8,
    heads: Count = 4,
    prior_dropout: Fraction = 0.0,
) -> CodePrior:
    """A causal transformer over all grids of codes as one sequence.

    Vaswani et al. 2017, arXiv:1706.03762.

    Args:
      grids: the grids of codes, from the top one on.
      context_size: the size of the context; 0 is none.
      precision: the precision of the networks.
      prior_width: channels of the network.
      prior_layers: layers of the network.
      heads: heads of the attention, which divide the width.
      prior_dropout: share of units that training drops.
    """
    shape = prior_width, prior_layers, heads, prior_dropout
    return of_network(networks.causal_transformer(grids, *shape, context_size, precision))


# Real latents


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


FREQUENCIES = 2.0 ** np.arange(6) * np.pi


def _at_time(z: Array, t: Array, context: Any) -> Array:
    """z beside t in [0, 1], its waves and the context: one vector."""
    waves = FREQUENCIES * t
    parts = [z, jnp.reshape(t, 1), jnp.cos(waves), jnp.sin(waves)]
    return jnp.concatenate(parts if context is None else [*parts, context])


def _network(latent: int, units: int, precision: str) -> Network:
    """Three hidden layers."""
    return networks.with_precision(networks.mlp((units,) * 3, latent, jax.nn.silu), precision)


def _first_params(network: Network, latent: int, context_size: int) -> Callable[[Array], Params]:
    context = jnp.zeros(context_size) if context_size else None
    inputs = lambda: _at_time(jnp.zeros(latent), jnp.zeros(()), context)
    return lambda key: network.init(key, inputs())


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
    network = _network(latent, prior_hidden, precision)
    init = _first_params(network, latent, context_size)

    def velocity(params: Params, raw: Array, z: Array, t: Array) -> Array:
        return network.apply(params, _at_time(z, t, raw))

    flow = flows.continuous(latent, init, velocity, ode_steps, context_size)

    def make(params: Params, context: Any) -> Transformed:
        base = Normal(jnp.zeros(latent), jnp.ones(latent))
        return Transformed(base, params, _or_empty(context), flow)

    def loss(params: Params, key: Array, z: Array, context: Any) -> tuple[Array, Terms]:
        key_time, key_noise = jax.random.split(key)
        t, e = jax.random.uniform(key_time), jax.random.normal(key_noise, z.shape)
        v = velocity(params, _or_empty(context), (1 - t) * e + t * z, t)
        return jnp.mean((v - (z - e)) ** 2), {}

    return CodePrior(init, make, loss)


def _or_empty(context: Any) -> Array:
    return jnp.zeros(0) if context is None else context


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
    network = _network(latent, prior_hidden, precision)
    betas = noise_schedule(diffusion_steps)

    def noise_in(params: Params, z: Array, t: Array, context: Any) -> Array:
        return network.apply(params, _at_time(z, t, context))

    def make(params: Params, context: Any) -> Diffusion:
        return Diffusion(params, context, betas, 1.0, latent, noise_in)

    def loss(params: Params, key: Array, z: Array, context: Any) -> tuple[Array, Terms]:
        key_time, key_noise = jax.random.split(key)
        t = jax.random.randint(key_time, (), 0, diffusion_steps)
        e = jax.random.normal(key_noise, z.shape)
        kept = make(params, context).kept[t]
        z_t = jnp.sqrt(kept) * z + jnp.sqrt(1 - kept) * e
        return jnp.mean((e - noise_in(params, z_t, (t + 1) / diffusion_steps, context)) ** 2), {}

    init = _first_params(network, latent, context_size)
    return CodePrior(init, make, loss, density=False)


def noise_schedule(steps: int) -> Array:
    """b_t whose log a_t / (1 - a_t) falls in a straight line from 8 to -6: [T].

    Kingma et al. 2021, arXiv:2107.00630, app. G. No b_t is near one, where an error of the network
    would be multiplied.
    """
    kept = jax.nn.sigmoid(jnp.linspace(8.0, -6.0, steps))
    return 1 - kept / jnp.concatenate([jnp.ones(1), kept[:-1]])


CODE_PRIORS: dict[str, Callable[..., CodePrior]] = {
    "pixelcnn": pixelcnn,
    "transformer": transformer,
    "coupling": coupling,
    "autoregressive": autoregressive,
    "flow_matching": flow_matching,
    "ddpm": ddpm,
}
