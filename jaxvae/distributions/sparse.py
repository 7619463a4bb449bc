"""Distributions that are exactly zero with positive probability, in nats."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import log_sigmoid, sigmoid

from jaxvae.contracts import Array, pytree
from jaxvae.distributions.contract import LOG_2PI, Factorized
from jaxvae.distributions.discrete import logistic


@pytree
class SpikeAndSlab(Factorized):
    """Coordinates that are N(loc, scale^2) with probability g = sigmoid(``logits``), else zero.

    Tonolini et al. 2019, arXiv:1905.10185. The density is with respect to Lebesgue measure plus a
    unit mass at zero: p(0) = 1 - g, and p(x) = g N(x; loc, scale^2) elsewhere. Ratios of such
    densities are right. The values of one density at zero and elsewhere have different units.

    Samples are exact. Their gradient in ``loc`` and ``scale`` is pathwise. Their gradient in
    ``logits`` is half of |1[x != 0] - g| times the slab's sample. It replaces f(slab) - f(0) by the
    trapezoidal rule, (f'(0) + f'(slab)) / 2 (Liu et al. 2023, arXiv:2304.08612). It has no bias if
    f is quadratic in each coordinate, as with a linear Gaussian decoder, and otherwise it has one.
    It cannot see log-densities jump at zero. So train with KL in closed form, or with an estimator
    that scores ``log_prob``.
    """

    logits: Array
    loc: Array
    scale: Array

    @property
    def mean(self) -> Array:
        return self._full(sigmoid(self.logits) * self.loc)

    def _slab(self, key: Array, shape: tuple[int, ...]) -> Array:
        return self.loc + self.scale * jax.random.normal(
            key, shape + self.event_shape, jnp.result_type(self.loc)
        )

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        key_gate, key_slab = jax.random.split(key)
        noise = logistic(key_gate, shape + self.event_shape, jnp.result_type(self.logits))
        still = lax.stop_gradient(self.logits)
        gate = (still + noise > 0).astype(noise.dtype)
        gate += 0.5 * jnp.abs(gate - sigmoid(still)) * (self.logits - still)
        return gate * self._slab(key_slab, shape)

    def relaxed(self, key: Array, shape: tuple[int, ...] = (), slope: float = 50.0) -> Array:
        """Samples with soft gates, sigmoid(slope (u - 1 + g)) times the slab, u uniform.

        Tonolini et al. 2019, arXiv:1905.10185. They are differentiable in every field and have
        another law, in which none is zero. The estimator ``lambda key, q, f, num_samples:
        f(q.relaxed(key))`` serves ``models.negative_elbo``.
        """
        key_gate, key_slab = jax.random.split(key)
        u = jax.random.uniform(key_gate, shape + self.event_shape, jnp.result_type(self.logits))
        return sigmoid(slope * (u - sigmoid(-self.logits))) * self._slab(key_slab, shape)

    def log_density(self, x: Array) -> Array:
        slab = -0.5 * ((x - self.loc) / self.scale) ** 2 - jnp.log(self.scale) - 0.5 * LOG_2PI
        return jnp.where(x == 0, log_sigmoid(-self.logits), log_sigmoid(self.logits) + slab)
