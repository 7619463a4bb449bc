"""VAEs whose latents are in layers, from the top down.

    p(x, z) = p(x | z) prod_l p(z_l | z_<l),  q(z | x) = prod_l q(z_l | z_<l, x)

Sonderby et al. 2016, arXiv:1602.02282; Child 2021, arXiv:2011.10650. z is a tuple over the groups
of a ``networks.TopDown``. All layers are Gaussian, so each has its KL divergence in closed form,
given the layers above it. The noise of layer l has the key ``fold_in(key, l)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxvae import divergences
from jaxvae.contracts import Array, BatchLoss, Loss, Params, Terms, pytree, static
from jaxvae.distributions import Normal, log_prob_of
from jaxvae.distributions.contract import many
from jaxvae.kl_costs import KLCost
from jaxvae.likelihoods import Likelihood
from jaxvae.models.answers import Model
from jaxvae.networks import Layer, TopDown

DRAWS = 50  # of z for an example that are computed at once


class Bound(NamedTuple):
    """What one walk through the layers says of an example, at one draw of z."""

    reconstruction: Array  # log p(x | z)
    kl: Array  # [L], KL(q(z_l | z_<l, x) || p(z_l | z_<l))
    log_ratio: Array  # [L], log p(z_l | z_<l) - log q(z_l | z_<l, x)


@pytree
class Layers:
    """p(z) = prod_l p(z_l | z_<l), or q(z | x) if there are activations of an x.

    ``scale`` is a factor of all standard deviations, a temperature; [L] has one for each layer.
    """

    params: Any
    activations: Any  # None for the prior
    network: TopDown = static()
    scale: Any = 1.0

    def _walk(self, choose: Callable[[Array, Normal, Any], Array], items: Any = None) -> tuple:
        """z and log-densities of all layers, where ``choose`` makes z_l."""
        scales = jnp.broadcast_to(jnp.asarray(self.scale, jnp.float32), len(self.network.names))

        def layer(number: Array, p: Normal, q: Normal | None, item: Any) -> tuple[Array, Any]:
            of_layer = p if q is None else q
            density = Normal(of_layer.loc, scales[number] * of_layer.scale)
            z = choose(number, density, item)
            return z, (z, density.log_prob(z))

        items = (None,) * len(self.network.groups) if items is None else items
        reports = self.network.top_down(self.params, self.activations, layer, items)[1]
        return tuple(z for z, _ in reports), [log_prob.sum() for _, log_prob in reports]

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> tuple:
        """z, with ``shape`` in front of every leaf."""

        def one(key: Array) -> tuple:
            draw = lambda number, density, item: density.sample(jax.random.fold_in(key, number))
            return self._walk(draw)[0]

        return many(one, key, shape)

    def log_prob(self, z: tuple) -> Array:
        return sum(self._walk(lambda number, density, item: item, z)[1], jnp.float32(0))

    @property
    def mean(self) -> tuple:
        """Each layer's mean, given that the layers above it are at theirs."""
        return self._walk(lambda number, density, item: density.loc)[0]


def _joined(reports: tuple) -> Any:
    """The reports of all groups, with one axis of layers."""
    return jax.tree.map(lambda *each: jnp.concatenate([*map(jnp.atleast_1d, each)]), *reports)


class LayeredVAE(NamedTuple):
    """A network with latents in layers and a likelihood; its functions are of one example.

    Parameters are {"network", "likelihood"}.
    """

    network: TopDown
    likelihood: Likelihood

    def init(self, key: Array, x: Any) -> Params:
        key_network, key_likelihood = jax.random.split(key)
        return {
            "network": self.network.init(key_network, x),
            "likelihood": self.likelihood.init(key_likelihood),
        }

    def _bottom_up(self, params: Params, x: Any) -> Any:
        return self.network.bottom_up(params["network"], x)

    def _top_down(
        self, params: Params, activations: Any, layer: Layer, items: Any = None
    ) -> tuple[Any, tuple]:
        """p(x|z), and the reports of all layers."""
        items = (None,) * len(self.network.groups) if items is None else items
        outputs, reports = self.network.top_down(params["network"], activations, layer, items)
        return self.likelihood.of_outputs(params["likelihood"], outputs), reports

    def bound(self, params: Params, activations: Any, key: Array, x: Any) -> Bound:
        """What one draw of z ~ q(z|x) says of x, whose activations are given.

        E [reconstruction - kl.sum()] is the ELBO. exp(reconstruction + log_ratio.sum()) is an
        importance weight, whose mean is p(x).
        """

        def layer(number: Array, p: Normal, q: Any, item: None) -> tuple[Array, Any]:
            z = q.sample(jax.random.fold_in(key, number))
            return z, (divergences.kl(q, p), p.log_prob(z) - q.log_prob(z))

        density, reports = self._top_down(params, activations, layer)
        return Bound(log_prob_of(density, x), *_joined(reports))

    def bounds(self, params: Params, key: Array, x: Any, num_samples: int) -> Bound:
        """``bound`` of several draws, [K, ...], of which memory holds fifty at once."""
        activations = self._bottom_up(params, x)
        one = lambda key: self.bound(params, activations, key, x)
        if num_samples == 1:  # without an axis of draws, which loops over layers would copy
            return jax.tree.map(lambda a: a[None], one(key))
        keys = jax.random.split(key, num_samples)
        return jax.vmap(one)(keys) if num_samples <= DRAWS else lax.map(one, keys, batch_size=DRAWS)

    def terms(self, params: Params, key: Array, x: Any, num_samples: int) -> Terms:
        """The terms of the ELBO, and KL of each layer by its name, as ``kl/32x32/7``."""
        means = jax.tree.map(lambda a: a.mean(0), self.bounds(params, key, x, num_samples))
        layers = {f"kl/{name}": means.kl[i] for i, name in enumerate(self.network.names)}
        return {"reconstruction": means.reconstruction, "kl": means.kl.sum()} | layers

    def log_weights(self, params: Params, key: Array, x: Any, num_samples: int) -> Array:
        """log p(x, z_k) - log q(z_k|x), [K]."""
        each = self.bounds(params, key, x, num_samples)
        return each.reconstruction + each.log_ratio.sum(-1)

    def encode(self, params: Params, x: Any) -> Layers:
        """q(z|x)."""
        return Layers(params["network"], self._bottom_up(params, x), self.network)

    def prior(self, params: Params, condition: Any = None) -> Layers:
        """p(z)."""
        return Layers(params["network"], None, self.network)

    def draw(self, params: Params, key: Array, condition: Any = None) -> tuple:
        """z of the prior."""
        return self.prior(params).sample(key)

    def decode(self, params: Params, z: tuple, condition: Any = None) -> Any:
        """p(x|z)."""
        return self._top_down(params, None, lambda number, p, q, item: (item, None), z)[0]

    def log_joint(self, params: Params, x: Any, z: tuple) -> Array:
        """log p(x, z)."""
        return log_prob_of(self.decode(params, z), x) + self.prior(params).log_prob(z)

    def partly(self, params: Params, x: Any, layers: Any) -> Any:
        """p(x|z), where the first layers of z are at the means of q and the others of p."""

        def layer(number: Array, p: Normal, q: Any, item: None) -> tuple[Array, None]:
            return jnp.where(number < layers, q.loc, p.loc), None

        return self._top_down(params, self._bottom_up(params, x), layer)[0]


def hierarchy(network: TopDown, likelihood: Likelihood) -> Model:
    """What can be asked of a ``LayeredVAE``.

    >>> from jaxvae import likelihoods, models, networks
    >>> network = networks.ladder((3,), latents=(2, 1), hidden=(8, 8))
    >>> model = models.hierarchy(network, likelihoods.bernoulli())
    >>> params = model.init(jax.random.key(0), jnp.zeros(3))
    >>> sorted(model.terms(params, jax.random.key(1), jnp.zeros(3), 1))
    ['kl', 'kl/z1', 'kl/z2', 'reconstruction']
    """
    vae = LayeredVAE(network, likelihood)
    return Model(
        vae.init,
        vae.encode,
        vae.decode,
        vae.draw,
        vae.prior,
        vae.terms,
        vae.log_weights,
        vae.log_joint,
        partly=vae.partly,
        layers=len(network.names),
    )


# Losses


def negative_terms(model: Model, kl_weight: Callable[[Array], Array], num_samples: int = 1) -> Loss:
    """w(step) KL - E_q log p(x|z) of a model that answers ``terms``, for one example."""

    def loss(params: Params, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        terms = model.terms(params, key, x, num_samples)  # type: ignore[misc]
        return kl_weight(step) * terms["kl"] - terms["reconstruction"], terms

    return loss


def with_layer_costs(
    model: Model, names: tuple[str, ...], cost: KLCost, num_samples: int = 1
) -> BatchLoss:
    """cost(E_x KL [L], step) - E_q log p(x|z), with one of ``kl_costs`` of the layers.

    The cost sees the means over the global batch, so it is the same on any number of devices.
    """

    def loss(
        params: Params, keys: Array, x: Any, weight: Array, step: Array, axis_name: str | None
    ) -> tuple[Array, Terms]:
        terms: Any = model.terms
        each = jax.vmap(lambda key, x: terms(params, key, x, num_samples))(keys, x)
        means = {
            name: jnp.sum(jnp.where(weight > 0, value, 0.0) * weight)
            for name, value in each.items()
        }
        if axis_name is not None:
            means = lax.psum(means, axis_name)
        kl = jnp.stack([means[f"kl/{name}"] for name in names])
        return cost(kl, step) - means["reconstruction"], means

    return loss
