"""Distributions made of distributions."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from jaxvae.contracts import Array, pytree, static
from jaxvae.distributions.chains import MarkovChain
from jaxvae.distributions.contract import check_event, many


@pytree
class Independent:
    """Independent distributions, stacked along the first ``ndim`` axes of every leaf.

    log p(x) = sum_i log p_i(x_i). A mixture for every pixel is ``Independent(Mixture(...),
    ndim=3)``.
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
    """A finite mixture, p(x) = sum_m softmax(``logits``)_m p_m(x).

    ``logits`` are [M]. ``components`` is one distribution with an axis M in front of every leaf, or
    a tuple of M distributions of any families over the same event.
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
        return jnp.tensordot(
            jax.nn.softmax(self.logits), self._each(lambda d: d.mean), 1, precision="float32"
        )

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        def one(key: Array) -> Array:
            key_component, key_x = jax.random.split(key)
            chosen = jax.random.categorical(key_component, self.logits)
            if isinstance(self.components, tuple):
                return self._each(lambda d: d.sample(key_x))[chosen]
            return jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], self.components).sample(
                key_x
            )

        return many(one, key, shape)

    def log_prob(self, x: Array) -> Array:
        lead, log_weights = check_event(self, x), jax.nn.log_softmax(self.logits)
        log_probs = self._each(lambda d: d.log_prob(x))  # [M, *samples]
        if log_probs.shape != log_weights.shape + lead:
            raise ValueError(
                f"a mixture of {len(log_weights)} components needs one log-density of each, shape "
                f"{log_weights.shape + lead}; they gave {log_probs.shape}. For NumPyro, move batch "
                "axes into the event with to_event()."
            )
        return logsumexp(jnp.moveaxis(log_probs, 0, -1) + log_weights, -1)

    def responsibilities(self, x: Array) -> Array:
        """p(component | x) of one event, [M]."""
        return jax.nn.softmax(jax.nn.log_softmax(self.logits) + self._each(lambda d: d.log_prob(x)))


@pytree
class Joint:
    """Independent parts of any families over one vector x.

    x holds the flattened events of the parts one after the other.
    """

    parts: tuple[Any, ...]

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(part.event_shape) for part in self.parts]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (sum(self._sizes),)

    @property
    def mean(self) -> Array:
        return jnp.concatenate([jnp.ravel(part.mean) for part in self.parts])

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        keys = jax.random.split(key, len(self.parts))
        draws = [part.sample(k, shape) for part, k in zip(self.parts, keys, strict=True)]
        return jnp.concatenate([draw.reshape(*shape, -1) for draw in draws], -1)

    def log_prob(self, x: Array) -> Array:
        lead = check_event(self, x)
        pieces = zip(self.parts, jnp.split(x, np.cumsum(self._sizes)[:-1], -1), strict=True)
        return sum(part.log_prob(piece.reshape(*lead, *part.event_shape)) for part, piece in pieces)


@pytree
class Hierarchy:
    """p(w) p(z | w) over the vector [w, z].

    ``first`` is p(w), and ``then(params, w)`` is p(z | w).
    """

    first: Any
    params: Any
    then: Callable[[Any, Array], Any] = dataclasses.field(metadata={"static": True})

    def given(self, x: Array) -> tuple[Any, Array, Array]:
        """p(z | w), w and z of one event."""
        w, z = jnp.split(x, [math.prod(self.first.event_shape)])
        return self.then(self.params, w), w, z

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jax.eval_shape(self.sample, jax.random.key(0)).shape

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        def one(key: Array) -> Array:
            key_w, key_z = jax.random.split(key)
            w = self.first.sample(key_w)
            return jnp.concatenate([w, self.then(self.params, w).sample(key_z)])

        return many(one, key, shape)

    def log_prob(self, x: Array) -> Array:
        def one(x: Array) -> Array:
            conditional, w, z = self.given(x)
            return self.first.log_prob(w) + conditional.log_prob(z)

        return functools.reduce(lambda f, _: jax.vmap(f), check_event(self, x), one)(x)


def tempered(distribution: Any, temperature: float) -> Any:
    """The same distribution with its standard deviations times ``temperature``.

    It scales the deviations of a mixture's components, and of a flow's base. Raises ValueError for
    a temperature that is not positive, and for families that have no scale.
    """
    if not temperature > 0:
        raise ValueError(f"a temperature must be above 0; it was {temperature}")
    if temperature == 1:
        return distribution
    inner = lambda d: tempered(d, temperature)
    if hasattr(distribution, "scale"):
        return dataclasses.replace(distribution, scale=temperature * distribution.scale)
    if hasattr(distribution, "scale_tril"):
        return dataclasses.replace(distribution, scale_tril=temperature * distribution.scale_tril)
    if hasattr(distribution, "base"):
        return dataclasses.replace(distribution, base=inner(distribution.base))
    if isinstance(distribution, Mixture):
        parts = distribution.components
        return Mixture(
            distribution.logits,
            tuple(map(inner, parts)) if isinstance(parts, tuple) else inner(parts),
        )
    if isinstance(distribution, Hierarchy):
        return Hierarchy(
            inner(distribution.first),
            distribution.params,
            lambda params, w: inner(distribution.then(params, w)),
        )
    if isinstance(distribution, MarkovChain):
        each = lambda step: lambda params, v: inner(step(params, v))
        steps = tuple(map(each, distribution.steps))
        return dataclasses.replace(distribution, first=inner(distribution.first), steps=steps)
    raise ValueError(
        f"a {type(distribution).__name__} has no scale that a temperature could change"
    )
