"""The variational autoencoder (Kingma & Welling 2013, arXiv:1312.6114; Rezende et al. 2014, arXiv:1401.4082)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae import divergences
from jaxvae.likelihoods import Likelihood
from jaxvae.networks import Network
from jaxvae.posteriors import Posterior
from jaxvae.priors import Prior

Array = jax.Array
Params = Any
Terms = dict[str, Array]
Loss = Callable[
    [Params, Array, Any, Array], tuple[Array, Terms]
]  # (params, key, x, step) -> (loss, terms), one example


class VAE(NamedTuple):
    """A variational autoencoder: four pure functions of one example."""

    init: Callable[[Array, Any], Params]  # (key, x)    -> params
    encode: Callable[[Params, Any], Any]  # (params, x) -> q(z|x)
    decode: Callable[[Params, Array], Any]  # (params, z) -> p(x|z)
    prior: Callable[[Params], Any]  # (params,)   -> p(z)


def vae(encoder: Network, decoder: Network, posterior: Posterior, likelihood: Likelihood, prior: Prior) -> VAE:
    """A VAE of two networks and three families.

    The encoder maps x to ``[posterior.size]``; the decoder maps z to an array whose last axis holds
    ``likelihood.size`` numbers for each channel of x: ``[H, W, C * size]``, or ``[D * size]`` for a vector.
    Parameters are ``{"encoder", "decoder", "likelihood", "prior"}``. ``init`` raises ValueError when shapes disagree.
    """

    def encode(params: Params, x: Array) -> Any:
        return posterior.make(encoder.apply(params["encoder"], x))

    def decode(params: Params, z: Array) -> Any:
        raw = decoder.apply(params["decoder"], z)
        raw = raw.reshape(*raw.shape[:-1], raw.shape[-1] // likelihood.size, likelihood.size)
        return likelihood.make(params["likelihood"], raw)

    def init(key: Array, x: Array) -> Params:
        keys = jax.random.split(key, 4)
        encoder_params = encoder.init(keys[0], x)
        raw = jax.eval_shape(encoder.apply, encoder_params, x)
        if raw.shape != (posterior.size,):
            raise ValueError(f"the encoder returned shape {raw.shape}; the posterior needs ({posterior.size},)")
        z = posterior.make(jnp.zeros(raw.shape)).mean
        decoder_params = decoder.init(keys[1], z)
        shape = jax.eval_shape(decoder.apply, decoder_params, z).shape
        expected = (*jnp.shape(x)[:-1], jnp.shape(x)[-1] * likelihood.size)
        if shape != expected:
            raise ValueError(
                f"the decoder returned shape {shape}; for examples of shape {jnp.shape(x)} and a likelihood of "
                f"{likelihood.size} numbers per channel it must be {expected}"
            )
        return {
            "encoder": encoder_params,
            "decoder": decoder_params,
            "likelihood": likelihood.init(keys[2]),
            "prior": prior.init(keys[3]),
        }

    return VAE(init, encode, decode, lambda params: prior.make(params["prior"]))


def elbo_terms(vae: VAE, params: Params, key: Array, x: Any, num_samples: int, kl: Callable = divergences.kl) -> Terms:
    """The terms of the ELBO of one example, E_q log p(x|z) over ``num_samples`` draws and KL(q(z|x) || p(z)), nats."""
    key_z, key_kl = jax.random.split(key)
    q = vae.encode(params, x)
    reconstruction = _log_likelihoods(vae, params, q.sample(key_z, (num_samples,)), x)
    divergence = kl(q, vae.prior(params), key_kl)
    chex.assert_shape([reconstruction, divergence], [(num_samples,), ()])
    return {"reconstruction": reconstruction.mean(), "kl": divergence}


def _log_likelihoods(vae: VAE, params: Params, z: Array, x: Any) -> Array:
    """log p(x|z) of every z [K, D], [K]. A single one goes without the axis, which XLA's CPU compiler handles badly."""
    of_one = lambda z: vae.decode(params, z).log_prob(x)
    return of_one(z[0])[None] if len(z) == 1 else jax.vmap(of_one)(z)


def negative_elbo(vae: VAE, num_samples: int = 1, kl_weight: optax.Schedule = lambda step: 1.0) -> Loss:
    """-E_q log p(x|z) + w(step) KL(q(z|x) || p(z)) with KL in closed form where there is one (arXiv:1312.6114, eq. 7).

    ``kl_weight`` is a schedule in the manner of optax: a warm-up from ``schedules``, or a constant for a beta-VAE.
    """

    def loss(params: Params, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        terms = elbo_terms(vae, params, key, x, num_samples)
        return kl_weight(step) * terms["kl"] - terms["reconstruction"], terms

    return loss


def negative(bound: Callable, vae: VAE, num_samples: int = 1) -> Loss:
    """-bound(key, q(z|x), log p(x, z), K) for any member of ``bounds``.

    Reports the two terms of the ELBO as well, from one draw of their own that carries no gradient.
    """

    def loss(params: Params, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        key_bound, key_terms = jax.random.split(key)
        prior = vae.prior(params)
        log_joint = lambda z: vae.decode(params, z).log_prob(x) + prior.log_prob(z)
        terms = elbo_terms(vae, lax.stop_gradient(params), key_terms, x, 1)
        return -bound(key_bound, vae.encode(params, x), log_joint, num_samples), terms

    return loss


def free_bits(
    vae: VAE, nats: float, groups: int, num_samples: int = 1, kl_weight: optax.Schedule = lambda step: 1.0
) -> Callable:
    """-E_q log p(x|z) + w(step) sum_g max(nats, E_x KL_g), g over equal groups of consecutive latents.

    Kingma et al. 2016, arXiv:1606.04934, eq. 15: the maximum is taken after the mean over the batch, so this is a
    loss of the batch (``training.BatchLoss``) and not of an example. It needs q and p that factorize.
    """

    def loss(
        params: Params, keys: Array, x: Any, weight: Array, step: Array, axis_name: str | None
    ) -> tuple[Array, Terms]:
        def example(key: Array, x: Any) -> tuple[Array, Array]:
            q, p = vae.encode(params, x), vae.prior(params)
            kl = divergences.kl_per_latent(q, p)
            if kl is None or not divergences.has_closed_form(q, p):
                raise ValueError(f"free bits need KL per latent; {type(q).__name__} || {type(p).__name__} has none")
            if kl.size % groups:
                raise ValueError(f"{kl.size} latents do not divide into {groups} groups of free bits")
            reconstruction = _log_likelihoods(vae, params, q.sample(key, (num_samples,)), x).mean()
            return reconstruction, kl.reshape(groups, -1).sum(-1)

        reconstruction, kl = jax.tree.map(
            lambda v: jnp.tensordot(weight, v, 1, precision="float32"), jax.vmap(example)(keys, x)
        )
        if axis_name is not None:
            reconstruction, kl = lax.psum((reconstruction, kl), axis_name)
        rate = jnp.maximum(kl, nats).sum()
        return kl_weight(step) * rate - reconstruction, {"reconstruction": reconstruction, "kl": kl.sum()}

    return loss
