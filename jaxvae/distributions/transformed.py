"""The distribution of a flow of samples from another distribution."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from jaxvae.contracts import Array, pytree
from jaxvae.distributions.contract import check_event, reparameterize, sample_noise


@pytree
class Transformed:
    """y = f(z), z ~ ``base``: log q(y) = log base(z) - log |det df/dz|.

    Rezende & Mohamed 2015, arXiv:1505.05770. ``flow`` is a member of ``jaxvae.flows`` over z [D],
    with ``params`` that all examples share and the numbers ``raw [size]`` of this example.
    ``sample_and_log_prob`` needs f alone. ``log_prob`` needs its inverse, and raises TypeError if f
    has none in closed form.
    """

    base: Any
    params: Any
    raw: Array
    flow: Any = dataclasses.field(metadata={"static": True})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.base.event_shape

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return self._each(self.flow.forward, shape)(self.base.sample(key, shape))[0]

    def sample_and_log_prob(self, key: Array, shape: tuple[int, ...] = ()) -> tuple[Array, Array]:
        """y [*shape, D] and log q(y) [*shape]."""
        z = self.base.sample(key, shape)
        y, log_det = self._each(self.flow.forward, shape)(z)
        return y, self.base.log_prob(z) - log_det

    def noise(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """The noise of the base."""
        return sample_noise(self.base, key, shape)

    def from_noise(self, noise: Array) -> Array:
        return self.from_noise_and_log_prob(noise)[0]

    def from_noise_and_log_prob(self, noise: Array) -> tuple[Array, Array]:
        """y [D] and log q(y), of one noise."""
        z = reparameterize(self.base, noise)
        y, log_det = self.flow.forward(self.params, self.raw, z)
        return y, self.base.log_prob(z) - log_det

    def log_prob(self, y: Array) -> Array:
        if self.flow.inverse is None:
            raise TypeError(
                "log_prob needs the inverse of the flow, and this one has none in closed form: the "
                "density of its own samples comes from sample_and_log_prob(key, shape)."
            )
        z, log_det = self._each(self.flow.inverse, check_event(self, y))(y)
        return self.base.log_prob(z) + log_det

    def _each(self, function: Any, lead: tuple[int, ...]) -> Any:
        """``function`` of every event of an array [*lead, D]."""
        one = functools.partial(function, self.params, self.raw)
        return functools.reduce(lambda f, _: jax.vmap(f), lead, one)
