"""VAEs whose latents are a Markov chain of vectors z_1, ..., z_L.

    p(x, z) = p(x | z_1) p(z_1 | z_2) ... p(z_{L-1} | z_L) N(z_L; 0, I)
    q(z | x) = q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1})

Rezende et al. 2014, arXiv:1401.4082; Burda et al. 2015, arXiv:1509.00519, sec. 5. All conditionals
are diagonal Gaussians. z is one vector, [z_1, ..., z_L].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.contracts import Array, Params
from jaxvae.distributions import MarkovChain, Normal, vectors
from jaxvae.likelihoods import Likelihood
from jaxvae.models.answers import Model, answers
from jaxvae.models.vae import VAE, vae
from jaxvae.networks import Network
from jaxvae.posteriors import Posterior, normal
from jaxvae.priors import Prior, standard_normal

Pair = tuple[Network, Network]  # takes z_l to z_{l+1}, and z_{l+1} to z_l


def markov_vae(
    encoder: Network,
    decoder: Network,
    upper: Sequence[Pair],
    likelihood: Likelihood,
    latents: Sequence[int],
) -> VAE:
    """A VAE whose latents are a Markov chain.

    Args:
      encoder: takes x to the [m, log s] of z_1.
      decoder: takes z_1 to what ``likelihood`` needs.
      upper: for each l < L, a network from z_l to the [m, log s] of z_{l+1} and one from z_{l+1} to
        the [m, log s] of z_l.
      likelihood: the family of p(x|z_1).
      latents: dimensions of z_1, ..., z_L.

    Its parameters are those of ``vae``. Under ``posterior`` and under ``prior`` is a list with the
    parameters of one network for each l < L. Raises ValueError unless there are L - 1 pairs.

    >>> from jaxvae import likelihoods, models, networks
    >>> pair = networks.mlp((8,), 2), networks.mlp((8,), 4)
    >>> vae = models.markov_vae(
    ...     networks.mlp((8,), 4), networks.mlp((8,), 3), [pair], likelihoods.bernoulli(), (2, 1))
    >>> params = vae.init(jax.random.key(0), jnp.zeros(3))
    >>> vae.encode(params, jnp.zeros(3)).mean.shape
    (3,)
    """
    if len(upper) != len(latents) - 1:
        raise ValueError(
            f"{len(latents)} vectors of latents need {len(latents) - 1} pairs of networks between "
            f"them; there are {len(upper)}"
        )
    ups, downs = [pair[0] for pair in upper], [pair[1] for pair in upper]
    posterior = _posterior(ups, latents)
    return vae(encoder, decoder, posterior, likelihood, _prior(downs, latents))


def _gaussian(network: Network) -> Callable[[Any, Array], Normal]:
    """The Gaussian whose [m, log s] a network gives."""

    def step(params: Any, z: Array) -> Normal:
        loc, log_scale = jnp.split(network.apply(params, z), 2)
        return Normal(loc, jnp.exp(log_scale))

    return step


def _init(networks: Sequence[Network], inputs: Sequence[int]) -> Callable[[Array], list[Any]]:
    def init(key: Array) -> list[Any]:
        keys = jax.random.split(key, len(networks))
        rows = zip(networks, keys, inputs, strict=True)
        return [network.init(key, jnp.zeros(size)) for network, key, size in rows]

    return init


def _posterior(networks: Sequence[Network], latents: Sequence[int]) -> Posterior:
    """q(z|x) of the networks upwards, from the [m, log s] of z_1."""
    first, sizes = normal(latents[0]), tuple(latents)
    steps = tuple(map(_gaussian, networks))

    def make(params: Any, raw: Array) -> MarkovChain:
        return MarkovChain(first.make({}, raw), tuple(params), steps, sizes)

    return Posterior(
        first.size,
        make,
        _init(networks, latents[:-1]),
        to_decoder=lambda z: vectors(z, sizes)[0],
    )


def _prior(networks: Sequence[Network], latents: Sequence[int]) -> Prior:
    """p(z) of the networks downwards."""
    top, sizes = standard_normal(latents[-1]), tuple(latents[::-1])
    steps = tuple(map(_gaussian, networks[::-1]))

    def make(params: Any) -> MarkovChain:
        return MarkovChain(top.make({}), tuple(params[::-1]), steps, sizes, reverse=True)

    return Prior(_init(networks, latents[1:]), make)


def markov_answers(model: VAE, latents: Sequence[int]) -> Model:
    """The answers of a ``markov_vae``, which may keep the upper layers of x alone."""

    def partly(params: Params, x: Any, layers: Any) -> Any:
        """p(x|z), where z_L, z_{L-1}, ... are at the means of q, ``layers`` of them."""
        q, p = model.encode(params, x), model.prior(params)
        means = vectors(q.mean, latents)[::-1]
        keep = lambda number, density: jnp.where(number < layers, means[number], density.mean)
        return model.decode(params, p.walked(keep))

    return answers(model)._replace(partly=partly, layers=len(latents))
