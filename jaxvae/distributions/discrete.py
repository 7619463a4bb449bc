"""Discrete distributions, in nats."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jax.scipy.special import betaln, gammaln, logsumexp

from jaxvae.contracts import Array, pytree, static
from jaxvae.distributions.contract import Factorized, check_event, many


@jax.custom_jvp
def bernoulli_log_prob(logits: Array, x: Array) -> Array:
    """log Bernoulli(x; sigmoid(l)) = sum_d x l - max(l, 0) - log(1 + e^-|l|).

    The sum is over the last axis, for any finite logits. Logarithms are slow on a CPU, so each is
    taken of a product of up to 16 factors between 1 and 2. The derivative computes the exponential
    again, which is faster than to keep it.
    """
    factors = 1.0 + jnp.exp(-jnp.abs(logits))
    most = min(jnp.finfo(factors.dtype).maxexp // 2, 16)  # XLA cuts products of 32 in two
    count = max(n for n in range(1, most + 1) if factors.shape[-1] % n == 0)
    factors = factors.reshape(*factors.shape[:-1], count, factors.shape[-1] // count)
    positive = jnp.maximum(
        logits, -0.0
    )  # +0.0, which sums begin with, XLA would write out as an array
    return (x * logits - positive).sum(-1) - jnp.log(factors.prod(-2)).sum(-1)


@bernoulli_log_prob.defjvp
def _bernoulli_log_prob_jvp(primals: tuple, tangents: tuple) -> tuple:
    """The derivative in two sums, so XLA computes the sigmoid once."""
    (logits, x), (logits_dot, x_dot) = primals, tangents
    derivative = (x * logits_dot + logits * x_dot).sum(-1) - (sigmoid(logits) * logits_dot).sum(-1)
    return bernoulli_log_prob(logits, x), derivative


def uniform(key: Array, shape: tuple[int, ...], dtype: Any = float) -> Array:
    """Uniform noise in (0, 1), u_1 + eps u_2, dense near 0.

    A uniform float32 alone is a multiple of 2^-23: below p = 1e-6 a comparison with it draws rare
    events tens of percent too often, or never.
    """
    limits = jnp.finfo(jax.dtypes.canonicalize_dtype(dtype))
    coarse, fine = (jax.random.uniform(key, shape, limits.dtype) for key in jax.random.split(key))
    return jnp.clip(coarse + limits.eps * fine, 2 * limits.tiny, 1 - limits.epsneg)


def logistic(key: Array, shape: tuple[int, ...], dtype: Any = float) -> Array:
    """Standard logistic noise, log(u / (1 - u)), right far into both tails."""
    key_sign, key_half = jax.random.split(key)
    half = 0.5 * uniform(key_half, shape, dtype)
    magnitude = jnp.log1p(-half) - jnp.log(half)
    return jnp.where(jax.random.bits(key_sign, shape, jnp.uint8) < 128, magnitude, -magnitude)


@pytree
class Bernoulli(Factorized):
    """Bernoulli with log-odds ``logits``; x in {0, 1}."""

    logits: Array

    @property
    def mean(self) -> Array:
        return sigmoid(self.logits)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """1[l + L > 0] with L logistic, which is right for rare events too."""
        noise = logistic(key, shape + self.event_shape, jnp.result_type(self.logits, 0.0))
        return (self.logits + noise > 0).astype(noise.dtype)

    def log_prob_flat(self, x: Array) -> Array:
        return bernoulli_log_prob(
            *jnp.broadcast_arrays(self.logits, jnp.asarray(x, jnp.result_type(self.logits)))
        )


@pytree
class Truncated:
    """Some different vectors of bits, of which vector s has the probability softmax(``logits``)_s.

    ``states`` are [S, H] and ``logits`` [S]. All other vectors have probability zero.
    """

    states: Array
    logits: Array

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.states)[1:]

    @property
    def mean(self) -> Array:
        return jnp.matmul(jax.nn.softmax(self.logits), self.states, precision="float32")

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return self.states[jax.random.categorical(key, self.logits, shape=shape)]

    def log_prob(self, x: Array) -> Array:
        check_event(self, x)
        there = (jnp.asarray(x)[..., None, :] == self.states).all(-1)  # [*samples, S]
        return logsumexp(jnp.where(there, jax.nn.log_softmax(self.logits), -jnp.inf), -1)


@pytree
class Categorical:
    """Categorical over C classes with unnormalized ``logits [*event, C]``.

    x holds class indices ``[*event]``.
    """

    logits: Array

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.logits)[:-1]

    @property
    def mean(self) -> Array:
        """The expected class index, which is the mean of ordered classes such as pixel values."""
        classes = jnp.arange(self.logits.shape[-1], dtype=jnp.result_type(self.logits))
        return jnp.matmul(jax.nn.softmax(self.logits), classes, precision="float32")

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return jax.random.categorical(key, self.logits, shape=shape + self.event_shape, mode="high")

    def log_prob(self, x: Array) -> Array:
        lead = check_event(self, x)
        log_probs = jnp.broadcast_to(jax.nn.log_softmax(self.logits), lead + self.logits.shape)
        chosen = jnp.take_along_axis(log_probs, jnp.asarray(x, jnp.int32)[..., None], -1)[..., 0]
        return chosen.sum(axis=tuple(range(len(lead), chosen.ndim)))


@pytree
class OneHotCategorical:
    """Categorical over C classes with unnormalized ``logits [*event, C]``.

    x is one-hot, ``[*event, C]``.
    """

    logits: Array

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.logits)

    @property
    def mean(self) -> Array:
        return jax.nn.softmax(self.logits)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        classes = Categorical(self.logits).sample(key, shape)
        return jax.nn.one_hot(classes, self.logits.shape[-1], dtype=jnp.result_type(self.logits))

    def log_prob(self, x: Array) -> Array:
        lead = check_event(self, x)
        chosen = jnp.where(x > 0, x * jax.nn.log_softmax(self.logits), 0.0)
        return chosen.sum(axis=tuple(range(len(lead), chosen.ndim)))


@pytree
class DiscretizedLogistic(Factorized):
    """A logistic density that is integrated over bins of values in [0, 1].

    The values are 0, 1/(levels-1), ..., 1. p(x) = sigmoid((x + h - loc)/s) - sigmoid((x - h -
    loc)/s) with h = 1 / (2 (levels-1)), and the outer bins reach to infinity (Kingma et al. 2016,
    arXiv:1606.04934, app. A; Salimans et al. 2017, arXiv:1701.05517, eq. 2). It is exact in the
    tails by sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^(a-b)).
    """

    loc: Array
    scale: Array
    levels: int = static(256)

    @property
    def mean(self) -> Array:
        """The mean of the logistic before it is cut into bins, kept inside [0, 1]."""
        return self._full(jnp.clip(self.loc, 0.0, 1.0))

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        noise = jax.random.logistic(key, shape + self.event_shape, jnp.result_type(self.loc))
        x = jnp.clip(self.loc + self.scale * noise, 0.0, 1.0)
        return jnp.round(x * (self.levels - 1)) / (self.levels - 1)

    def log_density(self, x: Array) -> Array:
        half = 0.5 / (self.levels - 1)
        above = log_sigmoid((x + half - self.loc) / self.scale)
        below = log_sigmoid(-(x - half - self.loc) / self.scale)
        inside = above + below + jnp.log(-jnp.expm1(-2 * half / self.scale))
        return jnp.where(x < half, above, jnp.where(x > 1 - half, below, inside))


@pytree
class PixelLogisticMixture:
    """A mixture of discretized logistics for each pixel, over all of its channels at once.

    Salimans et al. 2017, arXiv:1701.05517, sec. 2.1 and 2.2, for any number C of channels:

        p(x) = sum_m pi_m prod_c L(x_c; mu_mc + sum_{d < c} a_mcd x_d, e^{s_mc}),  x in [-1, 1],

    where L is a ``DiscretizedLogistic``. A mean is linear in the channels before it, whose values
    are the true ones. All sums over bins are exact, so the probabilities of all colours of a pixel
    sum to one. Events [..., C] are in [0, 1].
    """

    logits: Array  # [..., M]
    loc: Array  # mu [..., C, M], for values in [-1, 1]
    log_scale: Array  # s [..., C, M]
    slopes: Array  # a [..., C (C - 1) / 2, M], ordered by c and then by d
    levels: int = static(256)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.loc)[:-1]

    @property
    def _channels(self) -> int:
        return jnp.shape(self.loc)[-2]

    def _shifted(self, c: int, before: Array) -> Array:
        """The means [..., M] of channel c, given the channels before it [..., c, 1 or M]."""
        first = c * (c - 1) // 2
        shifts = self.slopes[..., first : first + c, :] * before
        return self.loc[..., c, :] + shifts.sum(-2)

    @property
    def mean(self) -> Array:
        """The mean of the logistics before they are cut into bins, kept inside [0, 1]."""
        means: Array = self.loc[..., :0, :]
        for c in range(self._channels):
            mean = jnp.clip(self._shifted(c, means), -1.0, 1.0)
            means = jnp.concatenate([means, mean[..., None, :]], -2)
        weights = jax.nn.softmax(self.logits)[..., None, :]
        return (jnp.sum(weights * means, -1) + 1) / 2

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """One component for each pixel, then its channels one after the other."""
        return many(self._sample_one, key, shape)

    def _sample_one(self, key: Array) -> Array:
        key_component, key_x = jax.random.split(key)
        chosen = jax.random.categorical(key_component, self.logits, mode="high")
        one_hot = jax.nn.one_hot(chosen, self.logits.shape[-1], dtype=self.loc.dtype)
        of_chosen = lambda a: jnp.sum(a * one_hot[..., None, :], -1, keepdims=True)
        one = dataclasses.replace(
            self,
            loc=of_chosen(self.loc),
            log_scale=of_chosen(self.log_scale),
            slopes=of_chosen(self.slopes),
        )
        x = one.loc[..., :0, :]
        for c in range(self._channels):
            logistics = one._logistic(c, 2 * x - 1)
            drawn = logistics.sample(jax.random.fold_in(key_x, c))
            x = jnp.concatenate([x, drawn[..., None, :]], -2)
        return x[..., 0]

    def _logistic(self, c: int, before: Array) -> DiscretizedLogistic:
        """The logistics of channel c, over [0, 1]."""
        loc = (self._shifted(c, before) + 1) / 2
        return DiscretizedLogistic(loc, jnp.exp(self.log_scale[..., c, :]) / 2, self.levels)

    def log_prob(self, x: Array) -> Array:
        lead = check_event(self, x)
        known = 2 * x[..., None] - 1  # [..., C, 1]
        each = jax.nn.log_softmax(self.logits)
        for c in range(self._channels):
            logistics = self._logistic(c, known[..., :c, :])
            each = each + logistics.log_density(x[..., c, None])
        return logsumexp(each, -1).sum(tuple(range(len(lead), jnp.ndim(x) - 1)))


@pytree
class Poisson(Factorized):
    """Counts x = 0, 1, ... with mean e^``log_rate``, p(x) = e^(x log_rate - e^log_rate) / x!."""

    log_rate: Array

    @property
    def mean(self) -> Array:
        return jnp.exp(self.log_rate)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        draws = jax.random.poisson(key, self.mean, shape + self.event_shape)
        return draws.astype(jnp.result_type(self.log_rate))

    def log_density(self, x: Array) -> Array:
        x = jnp.asarray(x, jnp.result_type(self.log_rate))
        return x * self.log_rate - self.mean - gammaln(x + 1)


@pytree
class NegativeBinomial(Factorized):
    """Counts x = 0, 1, ... with ``total_count`` r > 0, ``logits`` l and mean r e^l.

    p(x) = Gamma(x+r) / (x! Gamma(r)) sigmoid(-l)^r sigmoid(l)^x.
    """

    total_count: Array
    logits: Array

    @property
    def mean(self) -> Array:
        return self._full(self.total_count * jnp.exp(self.logits))

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        key_rate, key_count = jax.random.split(key)
        shape = shape + self.event_shape
        rate = jax.random.gamma(key_rate, jnp.broadcast_to(self.total_count, shape)) * jnp.exp(
            self.logits
        )
        return jax.random.poisson(key_count, rate).astype(jnp.result_type(self.logits))

    def log_density(self, x: Array) -> Array:
        x = jnp.asarray(x, jnp.result_type(self.logits))
        choose = -jnp.log(x + self.total_count) - betaln(
            x + 1, self.total_count
        )  # differences of gammaln cancel
        return choose + self.total_count * log_sigmoid(-self.logits) + x * log_sigmoid(self.logits)


@pytree
class ZeroInflatedNegativeBinomial(Factorized):
    """Negative binomial that is replaced by zero with probability sigmoid(``gate_logits``).

    As in Lopez et al. 2018 (scVI), doi:10.1038/s41592-018-0229-2.
    """

    total_count: Array
    logits: Array
    gate_logits: Array

    @property
    def counts(self) -> NegativeBinomial:
        return NegativeBinomial(self._full(self.total_count), self._full(self.logits))

    @property
    def mean(self) -> Array:
        return sigmoid(-self.gate_logits) * self.counts.mean

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        key_gate, key_count = jax.random.split(key)
        zero = jax.random.bernoulli(key_gate, sigmoid(self.gate_logits), shape + self.event_shape)
        return jnp.where(zero, 0.0, self.counts.sample(key_count, shape))

    def log_density(self, x: Array) -> Array:
        counted = log_sigmoid(-self.gate_logits) + self.counts.log_density(x)
        return jnp.where(x == 0, jnp.logaddexp(log_sigmoid(self.gate_logits), counted), counted)
