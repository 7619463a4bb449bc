"""Adversarial variational Bayes: q(z|x) that can be drawn from, and whose density is unknown.

Mescheder, Nowozin & Geiger 2017, arXiv:1701.04722. A critic T(x, z) learns the log-ratio of q(z|x)
and another density, and with it the KL divergence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import bounds, divergences
from jaxvae.contracts import Array, Loss, Params, Terms, pytree
from jaxvae.distributions import Normal, log_prob_of
from jaxvae.models.answers import Model, answers
from jaxvae.models.hybrids import only, weighted
from jaxvae.models.vae import VAE, log_joint
from jaxvae.networks import Network, with_precision
from jaxvae.posteriors import Posterior

DRAWS = 256  # of the noise, from which moments are estimated
MOMENTS = 0xAC  # the key of these draws, which does not depend on the example
START = 2.0  # widths start at e^-2


@pytree
class NoiseBasis:
    """z = z_0 + sum_i a_i v_i(e_i), e_i ~ N(0, I): without a density, but with moments.

    This is the authors' encoder for adaptive contrast. The functions v_i are the same for all
    examples, so means and variances of z follow from theirs.
    """

    loc: Array  # z_0 [D]
    widths: Array  # a [M, D], positive
    params: Any  # of the networks v_i, stacked [M, ...]
    network: Network = dataclasses.field(metadata={"static": True})
    noise_size: int = dataclasses.field(metadata={"static": True})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.loc)

    def noise(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """The noise e, [*shape, M, E]."""
        return jax.random.normal(key, (*shape, len(self.widths), self.noise_size))

    def basis(self, noise: Array) -> Array:
        """v_i(e_i), [M, D], of one noise."""
        return jax.vmap(self.network.apply)(self.params, noise)

    def from_noise(self, noise: Array) -> Array:
        return self.loc + jnp.sum(self.widths * self.basis(noise), 0)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        noise = self.noise(key, shape)
        flat = noise.reshape(-1, *noise.shape[len(shape) :])
        return jax.vmap(self.from_noise)(flat).reshape(*shape, *self.event_shape)

    def gaussian(self, key: Array, draws: int = DRAWS) -> Normal:
        """The Gaussian with the mean and the variances of z, from so many draws of the noise.

        If ``key`` is the same for all examples of a batch, the basis is drawn from only once.
        """
        v = jax.vmap(self.basis)(self.noise(key, (draws,)))  # [draws, M, D]
        mean, variance = v.mean(0), v.var(0)
        return Normal(
            self.loc + jnp.sum(self.widths * mean, 0),
            jnp.sqrt(jnp.sum(self.widths**2 * variance, 0) + 1e-8),
        )

    @property
    def mean(self) -> Array:
        """The mean, from a fixed set of draws."""
        return self.gaussian(jax.random.key(MOMENTS)).loc


def noise_basis(latent: int, network: Network, functions: int, noise_size: int) -> Posterior:
    """The family of ``NoiseBasis``, raw = [z_0, M D numbers of a], a = elu(. - 2) + 1.

    The authors' widths start at e^-5.

    Args:
      latent: D, the number of latents.
      network: v, which takes e [E] to [D].
      functions: M, the number of functions v_i.
      noise_size: E, the numbers in each e_i.
    """
    network = with_precision(network)

    def init(key: Array) -> Params:
        draw = lambda key: network.init(key, jnp.zeros(noise_size))
        return jax.vmap(draw)(jax.random.split(key, functions))

    def make(params: Params, raw: Array) -> NoiseBasis:
        loc, widths = raw[:latent], raw[latent:].reshape(functions, latent)
        return NoiseBasis(loc, jax.nn.elu(widths - START) + 1, params, network, noise_size)

    return Posterior(latent * (1 + functions), make, init)


class Contrast(NamedTuple):
    """The law that the critic tells q(z|x) from, in its coordinates u."""

    coordinates: Callable[[Array], Array]  # z -> u
    sample: Callable[[Array], Array]  # key -> a draw u of the contrast
    log_ratio: Callable[[Array], Array]  # z -> log r(z|x) - log p(z), r the density of the contrast


def prior_contrast(q: Any, p: Any, key: Array) -> Contrast:
    """The prior itself, r = p."""
    return Contrast(lambda z: z, p.sample, lambda z: jnp.zeros(()))


def adaptive_contrast(q: NoiseBasis, p: Any, key: Array) -> Contrast:
    """The Gaussian with the moments of q(z|x), standardized: adaptive contrast.

    The critic then has to learn only how q differs from a Gaussian. It sees (z - m) / s beside
    draws of N(0, I).
    """
    r = q.gaussian(key)
    return Contrast(
        lambda z: (z - r.loc) / r.scale,
        lambda key: jax.random.normal(key, q.event_shape),
        lambda z: log_prob_of(r, z) - log_prob_of(p, z),
    )


CONTRASTS: dict[str, Callable[[Any, Any, Array], Contrast]] = {
    "adaptive": adaptive_contrast,
    "prior": prior_contrast,
}


def of_pair(network: Network) -> Network:
    """The critic T of (x, u), a network of the vector [x, u, u^2].

    With the squares it has no trouble to be the log-ratio of two Gaussians.
    """

    def vector(pair: tuple[Array, Array]) -> Array:
        x, u = (jnp.ravel(each) for each in pair)
        return jnp.concatenate([x, u, u**2])

    apply = lambda params, pair: network.apply(params, vector(pair))[0]
    return Network(lambda key, pair: network.init(key, vector(pair)), apply)


class Pass(NamedTuple):
    """An example with a draw z of q(z|x)."""

    log_likelihood: Array  # log p(x|z)
    log_ratio: Array  # log r(z|x) - log p(z)
    judged: Array  # T(x, u)


class AdversarialBayes(NamedTuple):
    """Adversarial variational Bayes: its parameters, losses and answers."""

    vae: VAE  # q(z|x) need not have a density
    critic: Network  # T of (x, u), ``of_pair``
    contrast: Callable[[Any, Any, Array], Contrast]  # one of ``CONTRASTS``

    def init(self, key: Array, x: Array) -> dict[str, Params]:
        """The parameters of the players ``model`` and ``critic``."""
        key_model, key_critic, key_z = jax.random.split(key, 3)
        params = self.vae.init(key_model, x)
        z = self.vae.encode(params, x).sample(key_z)
        return {"model": params, "critic": self.critic.init(key_critic, (x, z))}

    def at(self, params: Params, x: Array, step: Array | int) -> tuple[Any, Any, Contrast]:
        """q(z|x), p(z) and the contrast. The draws for moments are new at every step."""
        q, p = self.vae.encode(params, x), self.vae.prior(params)
        return q, p, self.contrast(q, p, jax.random.fold_in(jax.random.key(MOMENTS), step))

    def one_pass(self, params: dict[str, Params], key: Array, x: Array, step: Array | int) -> Pass:
        """The passes of one example and one draw."""
        q, _, contrast = self.at(params["model"], x, step)
        z = q.sample(key)
        return Pass(
            log_prob_of(self.vae.decode(params["model"], z), x),
            contrast.log_ratio(z),
            self.critic.apply(params["critic"], (x, contrast.coordinates(z))),
        )

    def losses(
        self, kl_weight: Callable[[Array], Any] = lambda step: 1.0, critic_weight: float = 1.0
    ) -> dict[str, Loss]:
        """The losses of model and critic for one example.

            model:  -log p(x|z) + kl (critic T(x, u) + log r(z|x) - log p(z)),  z ~ q(z|x)
            critic: -log s(T(x, u)) - log s(-T(x, v)),  v ~ r

        At the critic's optimum T = log q - log r, and with kl = critic = 1 the model's loss is the
        negative ELBO. The optimum also depends on q, and the gradient of T in q's parameters has
        mean zero there. So a gradient through z and u is enough. With ``critic_weight`` 0, the
        adaptive contrast and a Gaussian q it is a VAE.
        """

        def model(params: Any, key: Array, x: Array, step: Array) -> tuple[Array, Terms]:
            made = self.one_pass(only(params, "model"), key, x, step)
            paid = made.log_ratio + weighted(critic_weight, made.judged)
            terms = {
                "reconstruction": made.log_likelihood,
                "critic_estimate_of_kl": made.log_ratio + made.judged,
            }
            return kl_weight(step) * paid - made.log_likelihood, terms

        def critic(params: Any, key: Array, x: Array, step: Array) -> tuple[Array, Terms]:
            params = only(params, "critic")
            _, _, contrast = self.at(params["model"], x, step)
            u = contrast.sample(jax.random.fold_in(key, 1))
            of_q = self.one_pass(params, key, x, step).judged
            of_r = self.critic.apply(params["critic"], (x, u))
            return jax.nn.softplus(-of_q) + jax.nn.softplus(of_r), {"of_q": of_q, "of_r": of_r}

        return {"model": model, "critic": critic}

    def answers(self) -> Model:
        """The answers of the model. Its bounds are not of q(z|x), whose density is unknown.

        They are of the Gaussian with the mean and the variances of q(z|x), and so they hold
        whatever the critic has learned. What the critic says is reported beside them: the estimate
        of KL and the ELBO with it are no bounds, because a critic that has not learned enough
        understates KL.
        """
        of_vae = answers(self.vae)

        def gaussian(params: Params, x: Array) -> Normal:
            return self.vae.encode(params, x).gaussian(jax.random.key(MOMENTS))

        def terms(params: Params, key: Array, x: Array, num_samples: int) -> Terms:
            r, p = gaussian(params, x), self.vae.prior(params)
            key_z, key_kl, key_q = jax.random.split(key, 3)
            log_p = lambda z: log_prob_of(self.vae.decode(params, z), x)
            players = {"model": params, "critic": params["critic"]}
            draw = lambda key: self.one_pass(players, key, x, 0)
            drawn = jax.vmap(draw)(jax.random.split(key_q, num_samples))
            kl = jnp.mean(drawn.judged + drawn.log_ratio)
            return {
                "reconstruction": jax.vmap(log_p)(r.sample(key_z, (num_samples,))).mean(),
                "kl": divergences.kl(r, p, key_kl),
                "critic_estimate_of_kl": kl,
                "critic_estimate_of_elbo": drawn.log_likelihood.mean() - kl,
            }

        def log_weights(params: Params, key: Array, x: Array, num_samples: int) -> Array:
            joint = log_joint(self.vae, params, x, self.vae.prior(params))
            return bounds.log_weights(key, gaussian(params, x), joint, num_samples)

        def init(key: Array, x: Array) -> Params:
            params = self.init(key, x)
            return params["model"] | {"critic": params["critic"]}

        return of_vae._replace(init=init, terms=terms, log_weights=log_weights)
