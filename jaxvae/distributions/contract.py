"""What every distribution is made of: the contract, pytrees of frozen fields, checks at the
door.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxvae.contracts import Array

LOG_2PI = math.log(2 * math.pi)


@runtime_checkable
class Distribution(Protocol):
    """What the library asks of a distribution: a pytree that can be sampled and has a
    log-density in nats.
    """

    def sample(self, key: Array, shape: tuple[int, ...] = (), /) -> Array: ...

    def log_prob(self, x: Any, /) -> Array: ...


def check_event(distribution: Any, x: Array) -> tuple[int, ...]:
    """Returns the sample shape in front of the event in ``x``, or says how the shapes disagree."""
    event, shape = distribution.event_shape, jnp.shape(x)
    lead = len(shape) - len(event)
    if lead < 0 or shape[lead:] != event:
        raise ValueError(
            f"{type(distribution).__name__}.log_prob got x of shape {shape}, but one event has shape {event}: "
            f"expected {event}, or [*samples, *{event}]. A batch of examples goes through jax.vmap."
        )
    return shape[:lead]


def many(sample_one: Any, key: Array, shape: tuple[int, ...]) -> Array:
    """Draws ``shape`` independent samples of ``sample_one(key)``."""
    if not shape:
        return sample_one(key)
    draws = jax.vmap(sample_one)(jax.random.split(key, math.prod(shape)))
    return draws.reshape(shape + draws.shape[1:])


class Factorized:
    """Independent coordinates, log p(x) = sum_i log p(x_i).

    Members define ``log_density``, elementwise, or ``log_prob_flat``.
    """

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(*(jnp.shape(leaf) for leaf in jax.tree.leaves(self)))

    def log_density(self, x: Array) -> Array:
        raise TypeError(f"{type(self).__name__} does not define log_density")

    def log_prob(self, x: Array) -> Array:
        """Flattened first: on CPU, XLA runs [D] up to 20 times faster than [H, W, 1]."""
        lead = check_event(self, x)
        flat = jax.tree.map(lambda leaf: jnp.reshape(self._full(leaf), -1), self)
        return flat.log_prob_flat(jnp.reshape(x, (*lead, -1)))

    def log_prob_flat(self, x: Array) -> Array:
        """Of parameters [D] and x [..., D]."""
        return self.log_density(x).sum(-1)

    def _full(self, value: Array) -> Array:
        return jnp.broadcast_to(value, self.event_shape)


def mean_of(distribution: Any, draws: int = 64) -> Array:
    """The mean; of a family that has none in closed form, that of some draws with a fixed key."""
    known = getattr(distribution, "mean", None)
    return distribution.sample(jax.random.key(0), (draws,)).mean(0) if known is None else known


# What is drawn and what becomes of it: z is a function of noise where the family has ``noise`` and
# ``at``, and comes with its log-density by one pass where it has ``from_noise_and_log_prob``.


def sample_noise(distribution: Any, key: Array, shape: tuple[int, ...] = ()) -> Array:
    """What ``reparameterize`` makes samples of: the samples themselves where the family has no
    noise.
    """
    return getattr(distribution, "noise", distribution.sample)(key, shape)


def reparameterize(distribution: Any, noise: Array) -> Array:
    """Samples as differentiable functions of the parameters, where the family has them so;
    [*event] or [K, *event].
    """
    at = getattr(distribution, "from_noise", None)
    return (
        noise
        if at is None
        else (jax.vmap(at) if noise.ndim > len(distribution.event_shape) else at)(noise)
    )


def sample_and_log_prob_of(distribution: Any, noise: Array) -> tuple[Array, Array]:
    """Samples [K, *event] of noises [K, *event], and their log-densities [K]."""
    both = getattr(distribution, "from_noise_and_log_prob", None)
    if both is not None:
        return jax.vmap(both)(noise)
    z = reparameterize(distribution, noise)
    return z, jax.vmap(distribution.log_prob)(z)
