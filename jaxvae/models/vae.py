"""The variational autoencoder (Kingma & Welling 2013, arXiv:1312.6114; Rezende et al. 2014,
arXiv:1401.4082).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae import divergences, expectations
from jaxvae.contracts import Array, Loss, Params, Terms
from jaxvae.distributions import Mixture, sample_and_log_prob_of, sample_noise
from jaxvae.likelihoods import Likelihood
from jaxvae.networks import Network
from jaxvae.posteriors import Posterior
from jaxvae.priors import Prior

Expectation = Callable[..., Array]  # (key, q, f, num_samples) -> scalar


class VAE(NamedTuple):
    """A variational autoencoder: four pure functions of one example.

    Objectives and evaluations ask a model for its VAE ``at`` an example and for the x that its
    likelihood is of: a conditional model gives the VAE at the example's condition.
    """

    init: Callable[[Array, Any], Params]  # (key, x)    -> params
    encode: Callable[[Params, Any], Any]  # (params, x) -> q(z|x)
    decode: Callable[[Params, Array], Any]  # (params, z) -> p(x|z)
    prior: Callable[[Params], Any]  # (params,)   -> p(z)

    def at(self, example: Any) -> tuple[VAE, Any]:
        """This, and the example."""
        return self, example


def vae(
    encoder: Network, decoder: Network, posterior: Posterior, likelihood: Likelihood, prior: Prior
) -> VAE:
    """A VAE of two networks and three families.

    The encoder maps x to ``[posterior.size]``; the decoder maps z to an array whose last axis holds
    ``likelihood.size`` numbers for each channel of x: ``[H, W, C * size]``, or ``[D * size]`` for a
    vector. Parameters are ``{"encoder", "posterior", "decoder", "likelihood", "prior"}``. ``init``
    raises ValueError when shapes disagree.
    """

    def encode(params: Params, x: Array) -> Any:
        return posterior.make(params["posterior"], encoder.apply(params["encoder"], x))

    def decode(params: Params, z: Array) -> Any:
        raw = decoder.apply(params["decoder"], z)
        raw = raw.reshape(*raw.shape[:-1], raw.shape[-1] // likelihood.size, likelihood.size)
        return likelihood.make(params["likelihood"], raw)

    def init(key: Array, x: Array) -> Params:
        keys = jax.random.split(key, 5)
        encoder_params = encoder.init(keys[0], x)
        raw = jax.eval_shape(encoder.apply, encoder_params, x)
        if raw.shape != (posterior.size,):
            raise ValueError(
                f"the encoder returned shape {raw.shape}; the posterior needs ({posterior.size},)"
            )
        posterior_params = posterior.init(keys[4])
        z = jax.eval_shape(
            lambda: posterior.make(posterior_params, jnp.zeros(raw.shape)).sample(key)
        )
        decoder_params = decoder.init(keys[1], jnp.zeros(z.shape, z.dtype))
        shape = jax.eval_shape(decoder.apply, decoder_params, z).shape
        expected = (*jnp.shape(x)[:-1], jnp.shape(x)[-1] * likelihood.size)
        if shape != expected:
            raise ValueError(
                f"the decoder returned shape {shape}; for examples of shape {jnp.shape(x)} and a likelihood of "
                f"{likelihood.size} numbers per channel it must be {expected}"
            )
        return {
            "encoder": encoder_params,
            "posterior": posterior_params,
            "decoder": decoder_params,
            "likelihood": likelihood.init(keys[2]),
            "prior": prior.init(keys[3]),
        }

    return VAE(init, encode, decode, lambda params: prior.make(params["prior"]))


def with_vampprior(
    vae: VAE,
    pseudo_inputs: Callable[[Array, Any], Array],
    bounded: Callable[[Array], Array] = lambda u: u,
) -> VAE:
    """The same model with the prior 1/K sum_k q(z | u_k), u_k learned (Tomczak & Welling 2017,
    arXiv:1705.07120).

    ``pseudo_inputs(key, x) -> [K, *x.shape]`` are those it starts from: noise, or examples.
    ``bounded`` brings what has been learned back to where inputs lie, such as ``lambda u:
    jnp.clip(u, 0, 1)``.
    """

    def init(key: Array, x: Any) -> Params:
        key_model, key_inputs = jax.random.split(key)
        return vae.init(key_model, x) | {"prior": {"pseudo_inputs": pseudo_inputs(key_inputs, x)}}

    def prior(params: Params) -> Mixture:
        inputs = bounded(params["prior"]["pseudo_inputs"])
        return Mixture(jnp.zeros(len(inputs)), jax.vmap(lambda u: vae.encode(params, u))(inputs))

    return vae._replace(init=init, prior=prior)


def elbo_terms(
    vae: VAE,
    params: Params,
    key: Array,
    x: Any,
    num_samples: int,
    estimator: Expectation = expectations.pathwise,
) -> Terms:
    """The terms of the ELBO of one example, E_q log p(x|z) over ``num_samples`` draws and KL(q(z|x)
    || p(z)), nats.

    ``estimator`` decides on the gradient of the first. A KL without closed form is that of the same
    draws.
    """
    key_z, key_kl = jax.random.split(key)
    vae, x = vae.at(x)
    q, p = vae.encode(params, x), vae.prior(params)
    f = lambda z: vae.decode(params, z).log_prob(x)
    if estimator is expectations.pathwise and not divergences.has_closed_form(q, p):
        z, log_q = sample_and_log_prob_of(q, sample_noise(q, key_z, (num_samples,)))
        reconstruction, log_p = jax.vmap(f)(z).mean(), jax.vmap(p.log_prob)(z)
        divergence = jnp.mean(log_q - log_p)
    else:
        reconstruction = estimator(key_z, q, f, num_samples)
        divergence = divergences.kl(q, p, key_kl)
    chex.assert_shape([reconstruction, divergence], ())
    return {"reconstruction": reconstruction, "kl": divergence}


def negative_elbo(
    vae: VAE,
    num_samples: int = 1,
    kl_weight: optax.Schedule = lambda step: 1.0,
    estimator: Expectation = expectations.pathwise,
) -> Loss:
    """-E_q log p(x|z) + w(step) KL(q(z|x) || p(z)) with KL in closed form where there is one
    (arXiv:1312.6114, eq. 7).

    ``kl_weight`` is a schedule in the manner of optax: a warm-up from ``schedules``, or a constant
    for a beta-VAE. ``estimator`` is one of ``expectations``; one that learns needs the model that
    ``with_control`` makes.
    """

    def loss(params: Params, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        terms = elbo_terms(
            vae, params, key, x, num_samples, _given(estimator, params, vae.at(x)[1])
        )
        total = kl_weight(step) * terms["kl"] - terms["reconstruction"]
        here, x = vae.at(x)
        f = lambda still, z: here.decode(still, z).log_prob(x)
        return total + _learning(
            estimator, here, params, jax.random.split(key)[0], x, f, num_samples
        ), terms

    return loss


def negative_sampled_elbo(
    vae: VAE, num_samples: int = 1, estimator: Expectation = expectations.pathwise
) -> Loss:
    """-E_q [log p(x, z) - log q(z|x)] by an estimator of ``expectations``, with the KL term inside
    the expectation.

    log q carries no gradient of its own, which has mean zero, but where the estimator
    differentiates through z alone.
    """
    through = (
        getattr(estimator, "latents", expectations.contract.CONTINUOUS)
        == expectations.contract.CONTINUOUS
    )

    def loss(params: Params, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        key_bound, key_terms = jax.random.split(key)
        terms = elbo_terms(vae, lax.stop_gradient(params), key_terms, x, 1)
        here, x = vae.at(x)

        def f(params: Params, z: Array) -> Array:
            q = here.encode(params, x)
            density = q if through else lax.stop_gradient(q)
            return (
                here.decode(params, z).log_prob(x)
                + here.prior(params).log_prob(z)
                - density.log_prob(z)
            )

        estimate = _given(estimator, params, x)
        value = estimate(key_bound, here.encode(params, x), lambda z: f(params, z), num_samples)
        return _learning(estimator, here, params, key_bound, x, f, num_samples) - value, terms

    return loss


def negative(bound: Callable, vae: VAE, num_samples: int = 1) -> Loss:
    """-bound(key, q(z|x), log p(x, z), K) for any member of ``bounds``.

    Reports the two terms of the ELBO as well, from one draw of their own that carries no gradient.
    """
    takes_prior = getattr(bound, "takes_prior", False)

    def loss(params: Params, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        key_bound, key_terms = jax.random.split(key)
        terms = elbo_terms(vae, lax.stop_gradient(params), key_terms, x, 1)
        here, x = vae.at(x)
        prior = here.prior(params)
        density = lax.stop_gradient(prior) if takes_prior else prior
        log_joint = lambda z: here.decode(params, z).log_prob(x) + density.log_prob(z)
        more = {"prior": prior} if takes_prior else {}
        return -bound(key_bound, here.encode(params, x), log_joint, num_samples, **more), terms

    return loss


# Estimators that learn: their control variate's parameters are the model's, under "control".


def with_control(vae: VAE, estimator: expectations.Estimator) -> VAE:
    """The same model, whose parameters include those of the estimator's control variate, if it
    has one.
    """
    make = estimator.init
    if make is None:
        return vae

    def init(key: Array, x: Any) -> Params:
        key_model, key_control = jax.random.split(key)
        params = vae.init(key_model, x)
        here, x = vae.at(x)
        return params | {"control": make(key_control, here.encode(params, x), jnp.ravel(x) * 1.0)}

    return vae._replace(init=init)


def _given(estimator: Any, params: Params, x: Any) -> Callable:
    """The estimator with its control, which the model's loss does not move."""
    if getattr(estimator, "init", None) is None:
        return estimator
    if "control" not in params:
        raise ValueError(
            f"{estimator.__name__} learns a control variate: its model is models.with_control(vae, it)"
        )
    control = lax.stop_gradient(params["control"])
    return functools.partial(estimator, control=control, context=jnp.ravel(x) * 1.0)


def _learning(
    estimator: Any, vae: VAE, params: Params, key: Array, x: Any, f: Callable, num_samples: int
) -> Array | float:
    """A zero, whose gradient in the control is that of what it descends, and in everything else
    zero.
    """
    if getattr(estimator, "init", None) is None:
        return 0.0
    still = lax.stop_gradient(params)
    settings = {"control": params["control"], "context": jnp.ravel(x) * 1.0}
    value = estimator.learn(
        key, vae.encode(still, x), lambda z: f(still, z), num_samples, **settings
    )
    return value - lax.stop_gradient(value)
