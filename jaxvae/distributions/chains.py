"""Markov chains of Gaussian vectors."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.contracts import Array, pytree, static
from jaxvae.distributions.contract import check_event, many

Step = Callable[[Any, Array], Any]  # (params, a vector) -> the Gaussian of the next vector


@pytree
class MarkovChain:
    """p(v_1) prod_l p(v_{l+1} | v_l), all Gaussian, over the vector [v_1, ..., v_L].

    ``first`` is p(v_1), and ``steps[l](params[l], v)`` is the distribution of the vector after v.
    ``sizes`` are the dimensions of v_1, ..., v_L. A ``reverse`` chain is over [v_L, ..., v_1].
    """

    first: Any
    params: tuple[Any, ...]
    steps: tuple[Step, ...] = static()
    sizes: tuple[int, ...] = static()
    reverse: bool = static(False)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (sum(self.sizes),)

    def vectors(self, x: Array) -> list[Array]:
        """v_1, ..., v_L of one event."""
        return vectors(x, self.sizes[::-1])[::-1] if self.reverse else vectors(x, self.sizes)

    def _event(self, vectors: Sequence[Array]) -> Array:
        return jnp.concatenate(vectors[::-1] if self.reverse else vectors)

    def walked(self, choose: Callable[[int, Any], Array]) -> Array:
        """The event whose v_{l+1} is ``choose(l, p(v_{l+1} | v_l))``, from l = 0 on."""
        return self._event(self._walk(choose)[0])

    def _walk(self, choose: Callable[[int, Any], Array]) -> tuple[list[Array], Array]:
        """The vectors that ``choose`` makes, and their log-density."""
        density = self.first
        made = [choose(0, density)]
        log_prob = density.log_prob(made[0])
        for number, (step, params) in enumerate(zip(self.steps, self.params, strict=True), 1):
            density = step(params, made[-1])
            made.append(choose(number, density))
            log_prob += density.log_prob(made[-1])
        return made, log_prob

    @property
    def mean(self) -> Array:
        """The mean of each vector, given that the one before it is at its mean."""
        return self.walked(lambda number, density: density.mean)

    def noise(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Standard normal noise."""
        return jax.random.normal(key, shape + self.event_shape)

    def from_noise(self, noise: Array) -> Array:
        return self.from_noise_and_log_prob(noise)[0]

    def from_noise_and_log_prob(self, noise: Array) -> tuple[Array, Array]:
        items = self.vectors(noise)
        made, log_prob = self._walk(lambda number, density: density.from_noise(items[number]))
        return self._event(made), log_prob

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return many(lambda key: self.from_noise(self.noise(key)), key, shape)

    def log_prob(self, x: Array) -> Array:
        def one(x: Array) -> Array:
            items = self.vectors(x)
            return self._walk(lambda number, density: items[number])[1]

        return functools.reduce(lambda f, _: jax.vmap(f), check_event(self, x), one)(x)


def vectors(x: Array, sizes: Sequence[int]) -> list[Array]:
    """The vectors of these sizes that lie one after the other in x."""
    return jnp.split(x, np.array([*itertools.accumulate(sizes)])[:-1])
