"""Conditional models (Sohn et al. 2015) and denoising ones.

``model.at(example)`` returns an ordinary VAE and the x that it explains, so every loss and every
evaluation of a VAE applies unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.contracts import Array, Params
from jaxvae.likelihoods import Likelihood
from jaxvae.models.vae import VAE, Modules, changed, check_raw
from jaxvae.networks import Network
from jaxvae.posteriors import Posterior
from jaxvae.priors import Prior


class Conditioned(NamedTuple):
    """An example x and what it is conditioned on."""

    x: Any
    y: Any


class CVAE(NamedTuple):
    """A conditional VAE of p(x|y) = E_p(z|y) p(x|z, y): pure functions of one example and its y."""

    init: Callable[[Array, Conditioned], Params]  # (key, example)  -> params
    encode: Callable[[Params, Any, Any], Any]  # (params, x, y) -> q(z|x, y)
    decode: Callable[[Params, Any, Any], Any]  # (params, z, y) -> p(x|z, y)
    prior: Callable[[Params, Any], Any]  # (params, y)    -> p(z|y)
    training: Callable[[Array], CVAE] | None = None  # as a VAE's

    def at(self, example: Conditioned) -> tuple[VAE, Any]:
        """The VAE at the example's condition, and its x."""
        return condition_on(self, example.y), example.x


def condition_on(cvae: CVAE, y: Any) -> VAE:
    """The VAE at condition y, of p(x|y)."""
    live = cvae.training
    return VAE(
        init=lambda key, x: cvae.init(key, Conditioned(x, y)),
        encode=lambda params, x: cvae.encode(params, x, y),
        decode=lambda params, z: cvae.decode(params, z, y),
        prior=lambda params: cvae.prior(params, y),
        training=None if live is None else lambda key: condition_on(live(key), y),
    )


def side_by_side(a: Array, b: Array) -> Array:
    """Two arrays, flattened into one."""
    return jnp.concatenate([jnp.ravel(a), jnp.ravel(b)])


def cvae(
    encoder: Network,
    decoder: Network,
    posterior: Posterior,
    likelihood: Likelihood,
    prior: Network | Prior,
    together: Callable[[Array, Array], Any] = side_by_side,
) -> CVAE:
    """A conditional VAE, whose networks take two arrays that are flattened into one.

    Args:
      encoder: takes (x, y) to ``[posterior.size]``.
      decoder: takes (z, y) to an array as for ``vae``.
      posterior: the family of q(z|x, y).
      likelihood: the family of p(x|z, y).
      prior: a network that takes y to ``[posterior.size]``, so that p(z|y) is of the posterior's
        family (Sohn et al. 2015, eq. 4); or a ``Prior``, which does not depend on y.
      together: makes what encoder and decoder take of (x, y) and of (z, y).

    ``init`` raises ValueError if shapes disagree.
    """
    modules = Modules(encoder, decoder, posterior, likelihood)

    def make_prior(params: Params, y: Any) -> Any:
        if isinstance(prior, Prior):
            return prior.make(params["prior"])
        return posterior.make(params["posterior"], prior.apply(params["prior"], y))

    def init_prior(key: Array, y: Any) -> Any:
        if isinstance(prior, Prior):
            return prior.init(key)
        params = prior.init(key, y)
        check_raw("prior network", jax.eval_shape(prior.apply, params, y).shape, posterior)
        return params

    def init(key: Array, example: Conditioned) -> Params:
        x, y = example
        of_prior = lambda key: init_prior(key, y)
        return modules.init(key, x, together(x, y), lambda z: together(z, y), of_prior)

    def with_modules(modules: Modules) -> CVAE:
        return CVAE(
            init,
            lambda params, x, y: modules.encode(params, together(x, y)),
            lambda params, z, y: modules.decode(params, together(z, y)),
            make_prior,
        )

    return with_modules(modules)._replace(training=modules.training(with_modules))


def gaussian_stochastic(model: CVAE) -> CVAE:
    """The Gaussian stochastic network of a CVAE: z is drawn from p(z|y) in training too.

    Sohn et al. 2015, sec. 4.2. Its ELBO is E_p(z|y) log p(x|z, y), with a KL of zero.
    """

    def without_encoder(model: CVAE) -> CVAE:
        return model._replace(encode=lambda params, x, y: model.prior(params, y))

    return changed(model, without_encoder)


class Corrupted(NamedTuple):
    """An example x and its corrupted version."""

    x: Any
    noisy: Any


class Denoising(NamedTuple):
    """A VAE whose encoder sees corrupted examples, while its likelihood explains the clean ones.

    A clean example stands for itself: evaluation asks what the VAE says of clean examples. Vincent
    et al. 2008 (denoising autoencoders); Im et al. 2015, arXiv:1511.06406 (denoising VAEs).
    """

    vae: VAE

    def init(self, key: Array, example: Any) -> Params:
        """The parameters of the VAE."""
        return self.vae.init(key, example.x if isinstance(example, Corrupted) else example)

    def at(self, example: Any) -> tuple[VAE, Any]:
        """The VAE that encodes the corrupted example, and the clean one."""
        if not isinstance(example, Corrupted):
            return self.vae, example

        def encoding_noisy(vae: VAE) -> VAE:
            return vae._replace(encode=lambda params, x: vae.encode(params, example.noisy))

        return changed(self.vae, encoding_noisy), example.x
