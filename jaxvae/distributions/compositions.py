"""Distributions made of distributions."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxvae.distributions.contract import Array, check_event, many, pytree, static


@pytree
class Independent:
    """A product of independent distributions stacked along the first ``ndim`` axes of every leaf.

    log p(x) = sum_i log p_i(x_i): a mixture for every pixel is ``Independent(Mixture(...), ndim=3)``.
    """

    distribution: Any
    ndim: int = static(1)

    def _map(self, function: Any) -> Any:
        return functools.reduce(lambda f, _: jax.vmap(f), range(self.ndim), function)

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        return jnp.shape(jax.tree.leaves(self.distribution)[0])[: self.ndim]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jax.eval_shape(self.sample, jax.random.key(0)).shape

    @property
    def mean(self) -> Array:
        return self._map(lambda d: d.mean)(self.distribution)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        def one(key: Array) -> Array:
            keys = jax.random.split(key, self.stacked_shape)
            return self._map(lambda d, k: d.sample(k))(self.distribution, keys)

        return many(one, key, shape)

    def log_prob(self, x: Array) -> Array:
        lead = check_event(self, x)
        one = lambda x: self._map(lambda d, x: d.log_prob(x))(self.distribution, x).sum()
        return functools.reduce(lambda f, _: jax.vmap(f), lead, one)(x)


@pytree
class Mixture:
    """A finite mixture, p(x) = sum_m softmax(``logits``)_m p_m(x), with ``logits [M]``.

    ``components`` is one distribution with an axis M in front of every leaf, or a tuple of M distributions of any
    families over the same event.
    """

    logits: Array
    components: Any

    def _each(self, function: Any) -> Array:
        """``function`` of every component, stacked: [M, ...]."""
        if isinstance(self.components, tuple):
            return jnp.stack([function(component) for component in self.components])
        return jax.vmap(function)(self.components)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jax.eval_shape(self.sample, jax.random.key(0)).shape

    @property
    def mean(self) -> Array:
        return jnp.tensordot(jax.nn.softmax(self.logits), self._each(lambda d: d.mean), 1, precision="float32")

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        def one(key: Array) -> Array:
            key_component, key_x = jax.random.split(key)
            chosen = jax.random.categorical(key_component, self.logits)
            if isinstance(self.components, tuple):
                return self._each(lambda d: d.sample(key_x))[chosen]
            return jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], self.components).sample(key_x)

        return many(one, key, shape)

    def log_prob(self, x: Array) -> Array:
        lead, log_weights = check_event(self, x), jax.nn.log_softmax(self.logits)
        log_probs = self._each(lambda d: d.log_prob(x))  # [M, *samples]
        if log_probs.shape != log_weights.shape + lead:
            raise ValueError(
                f"a mixture of {len(log_weights)} components needs one log-density of each, shape "
                f"{log_weights.shape + lead}; they gave {log_probs.shape}. For NumPyro, move batch axes into the event "
                "with to_event()."
            )
        return logsumexp(jnp.moveaxis(log_probs, 0, -1) + log_weights, -1)
