"""Distributions of values that will be rounded, with uniform noise of width one in its place.

The density of y + U(-1/2, 1/2) at a whole number is the probability that y is rounded to it (Ballé
et al. 2017, arXiv:1611.01704, sec. 3).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid, softplus
from jax.scipy.special import ndtr

from jaxvae.contracts import Array, pytree, static
from jaxvae.distributions.contract import Factorized, check_event, many

SMALLEST = 1e-9  # the least density, so a logarithm stays finite
FARTHEST = 2.0**12  # where a draw may lie
ROUNDING = 1e-3  # how far outside its box rounding errors may bring a draw


@pytree
class Box(Factorized):
    """Uniform on loc - 1/2 to loc + 1/2, which stands for the rounding of ``loc``."""

    loc: Array

    @property
    def mean(self) -> Array:
        return self.loc

    def noise(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Uniform noise."""
        return jax.random.uniform(key, shape + self.event_shape, minval=-0.5, maxval=0.5)

    def from_noise(self, noise: Array) -> Array:
        return self.loc + noise

    def from_noise_and_log_prob(self, noise: Array) -> tuple[Array, Array]:
        """y and its log-density, which is zero."""
        return self.from_noise(noise), jnp.zeros(())

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return self.from_noise(self.noise(key, shape))

    def log_density(self, x: Array) -> Array:
        return jnp.where(jnp.abs(x - self.loc) <= 0.5 + ROUNDING, 0.0, -jnp.inf)


@pytree
class NoisyNormal(Factorized):
    """N(0, scale^2) with uniform noise of width one (Ballé et al. 2018, arXiv:1802.01436)."""

    scale: Array

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        key_y, key_noise = jax.random.split(key)
        y = self.scale * jax.random.normal(key_y, shape + self.event_shape)
        return y + jax.random.uniform(key_noise, y.shape, minval=-0.5, maxval=0.5)

    def log_density(self, x: Array) -> Array:
        below = -jnp.abs(x)  # in the lower tail, where differences are exact
        density = ndtr((below + 0.5) / self.scale) - ndtr((below - 0.5) / self.scale)
        return jnp.log(jnp.maximum(density, SMALLEST))


@pytree
class NoisyCumulative:
    """Densities of C channels by learned distribution functions, with noise of width one.

    F(y) = sigmoid(f_K(... f_1(y))), f_k(v) = g_k(softplus(H_k) v + b_k) and g_k(v) = v + tanh(a_k)
    tanh(v), without g_K (arXiv:1802.01436, app. 6.1). Value d of an event is of channel d mod C.
    """

    layers: Any  # of f_1, ..., f_K: H [C, out, in], b [C, out] and a [C, out]
    size: int = static()  # D

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def channels(self) -> int:
        return self.layers[0]["H"].shape[0]

    def logits(self, y: Array) -> Array:
        """log F / (1 - F) at y [..., C]."""

        def one(layers: Any, y: Array) -> Array:
            v = y[None]
            for layer in layers[:-1]:
                v = (softplus(layer["H"]) * v).sum(-1) + layer["b"]
                v = v + jnp.tanh(layer["a"]) * jnp.tanh(v)
            return ((softplus(layers[-1]["H"]) * v).sum(-1) + layers[-1]["b"])[0]

        rows = jax.vmap(jax.vmap(one), (None, 0))(self.layers, y.reshape(-1, self.channels))
        return rows.reshape(y.shape)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return many(self._sample_one, key, shape)

    def _sample_one(self, key: Array) -> Array:
        key_y, key_noise = jax.random.split(key)
        wanted = jax.random.logistic(key_y, (self.size // self.channels, self.channels))

        def halved(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) / 2
            below = self.logits(middle) < wanted
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        ends = jnp.full_like(wanted, -FARTHEST), jnp.full_like(wanted, FARTHEST)
        y = lax.fori_loop(0, 40, halved, ends)[0].reshape(-1)
        return y + jax.random.uniform(key_noise, y.shape, minval=-0.5, maxval=0.5)

    def log_prob(self, x: Array) -> Array:
        check_event(self, x)
        y = x.reshape(*x.shape[:-1], -1, self.channels)
        upper, lower = self.logits(y + 0.5), self.logits(y - 0.5)
        sign = -jnp.sign(lax.stop_gradient(upper + lower))  # the tail where differences are exact
        density = jnp.abs(sigmoid(sign * upper) - sigmoid(sign * lower))
        logarithms = jnp.log(jnp.maximum(density, SMALLEST))
        return logarithms.sum((-1, -2))


def init_cumulative(key: Array, channels: int, widths: tuple[int, ...] = (3, 3, 3)) -> Any:
    """The layers of a ``NoisyCumulative``, which starts about ten wide (as in CompressAI)."""
    sizes = (1, *widths, 1)
    gain = 10.0 ** (1 / (len(sizes) - 1))
    layers = []
    for size, following, each in zip(
        sizes, sizes[1:], jax.random.split(key, len(sizes) - 1), strict=False
    ):
        start = jnp.log(jnp.expm1(1 / gain / following))
        layers.append(
            {
                "H": jnp.full((channels, following, size), start),
                "b": jax.random.uniform(each, (channels, following), minval=-0.5, maxval=0.5),
                "a": jnp.zeros((channels, following)),
            }
        )
    return tuple(layers)
