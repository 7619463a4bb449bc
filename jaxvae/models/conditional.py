"""Models of examples that come with something else: conditions (Sohn et al. 2015) and corrupted
inputs.

Each is a model in that it has ``init`` and gives the VAE ``at`` an example, so that every objective
and every judgement of a VAE is one of these as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.contracts import Array, Params
from jaxvae.likelihoods import Likelihood
from jaxvae.models.vae import VAE
from jaxvae.networks import Network
from jaxvae.posteriors import Posterior
from jaxvae.priors import Prior


class Conditioned(NamedTuple):
    """An example x and what it is conditioned on."""

    x: Any
    y: Any


class CVAE(NamedTuple):
    """A conditional VAE of p(x|y) = E_p(z|y) p(x|z, y): pure functions of one example and its
    condition.
    """

    init: Callable[[Array, Conditioned], Params]  # (key, example)  -> params
    encode: Callable[[Params, Any, Any], Any]  # (params, x, y) -> q(z|x, y)
    decode: Callable[[Params, Array, Any], Any]  # (params, z, y) -> p(x|z, y)
    prior: Callable[[Params, Any], Any]  # (params, y)    -> p(z|y)

    def at(self, example: Conditioned) -> tuple[VAE, Any]:
        """The VAE at the example's condition, and its x."""
        return condition_on(self, example.y), example.x


def condition_on(cvae: CVAE, y: Any) -> VAE:
    """The VAE at condition y, of p(x|y)."""
    return VAE(
        init=lambda key, x: cvae.init(key, Conditioned(x, y)),
        encode=lambda params, x: cvae.encode(params, x, y),
        decode=lambda params, z: cvae.decode(params, z, y),
        prior=lambda params: cvae.prior(params, y),
    )


def cvae(
    encoder: Network,
    decoder: Network,
    posterior: Posterior,
    likelihood: Likelihood,
    prior: Network | Prior,
) -> CVAE:
    """A conditional VAE of networks that take two arrays: encoder (x, y), decoder (z, y), and prior
    network y.

    A prior network gives what ``posterior`` needs, and p(z|y) is of that family (Sohn et al. 2015,
    eq. 4); a ``Prior`` does not depend on y. Networks get their two inputs flattened, one behind
    the other.
    """
    both = lambda a, b: jnp.concatenate([jnp.ravel(a), jnp.ravel(b)])

    def make_prior(params: Params, y: Any) -> Any:
        if isinstance(prior, Prior):
            return prior.make(params["prior"])
        return posterior.make(params["posterior"], prior.apply(params["prior"], y))

    def decode(params: Params, z: Array, y: Any) -> Any:
        raw = decoder.apply(params["decoder"], both(z, y))
        raw = raw.reshape(*raw.shape[:-1], raw.shape[-1] // likelihood.size, likelihood.size)
        return likelihood.make(params["likelihood"], raw)

    def encode(params: Params, x: Any, y: Any) -> Any:
        return posterior.make(params["posterior"], encoder.apply(params["encoder"], both(x, y)))

    def init(key: Array, example: Conditioned) -> Params:
        keys = jax.random.split(key, 5)
        x, y = example
        params = {
            "encoder": encoder.init(keys[0], both(x, y)),
            "posterior": posterior.init(keys[4]),
        }
        z = encode(params, x, y).sample(key)
        return params | {
            "decoder": decoder.init(keys[1], both(z, y)),
            "likelihood": likelihood.init(keys[2]),
            "prior": prior.init(keys[3]) if isinstance(prior, Prior) else prior.init(keys[3], y),
        }

    return CVAE(init, encode, decode, make_prior)


def gaussian_stochastic(model: CVAE) -> CVAE:
    """The Gaussian stochastic network of a CVAE: z is drawn from p(z|y) in training too (Sohn et
    al. 2015, sec. 4.2).

    Its ELBO is E_p(z|y) log p(x|z, y), with a KL of zero.
    """
    return model._replace(encode=lambda params, x, y: model.prior(params, y))


class Corrupted(NamedTuple):
    """An example x and what has become of it."""

    x: Any
    noisy: Any


class Denoising(NamedTuple):
    """A VAE whose encoder sees corrupted examples, while its likelihood is of the clean ones.

    Vincent et al. 2008 (denoising autoencoders); Im et al. 2015, arXiv:1511.06406 (denoising VAEs).
    """

    vae: VAE

    def init(self, key: Array, example: Corrupted) -> Params:
        """Of the VAE."""
        return self.vae.init(key, example.x)

    def at(self, example: Corrupted) -> tuple[VAE, Any]:
        """The VAE that encodes the corrupted example, and the clean one."""
        return self.vae._replace(
            encode=lambda params, _: self.vae.encode(params, example.noisy)
        ), example.x
