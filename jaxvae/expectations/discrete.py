"""Estimators for Bernoulli and one-hot latents: exact sums and antithetic draws."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jaxvae.distributions import Bernoulli, Categorical, OneHotCategorical, uniform
from jaxvae.expectations.contract import BINARY, DISCRETE, Function, Noise, estimator, with_gradient
from jaxvae.expectations.general import one_replaced, replaced
from jaxvae.expectations.noises import NODES, hard_sample, one_sample, perturbation, product, states

Array = jax.Array
_two, _each = (lambda k, d, c: 2 * k), (lambda k, d, c: k)


@estimator(
    Noise(lambda key, q, k: (), lambda q, k: (np.zeros((1, 0)), np.ones(1))),
    DISCRETE,
    lambda k, d, c: c**d,
    uses_samples_jointly=True,
)
def enumeration(noise: Any, q: Bernoulli | Categorical | OneHotCategorical, f: Function) -> Array:
    """The exact sum over all states, sum_z q(z) f(z).

    Raises ValueError for more than 2^16 states.
    """
    z = states(q)
    return jnp.sum(jnp.exp(jax.vmap(q.log_prob)(z)) * jax.vmap(f)(z))


@estimator(one_sample, DISCRETE, lambda k, d, c: k * (c * d + 1))
def local_expectation(noise: Array, q: Bernoulli | OneHotCategorical, f: Function) -> Array:
    """An exact sum over each latent, while the others are drawn.

    sum_c grad q(z_i = c) f(z, z_i = c) (Titsias & Lazaro-Gredilla 2015, arXiv:1503.01494).
    """
    z, many = stop_gradient(noise), jax.vmap(f)
    if isinstance(q, Bernoulli):
        difference = many(replaced(z, jnp.ones_like(z))) - many(replaced(z, jnp.zeros_like(z)))
        return with_gradient(f(z), difference.reshape(z.shape), q.mean)
    return with_gradient(f(z), many(one_replaced(z)).reshape(z.shape), q.mean)


# Binary latents: z = 1[phi + l > 0], where l is logistic noise with exact tails. s is the logistic
# function.


@estimator(perturbation, BINARY, _each)
def ar(noise: Array, q: Bernoulli, f: Function) -> Array:
    """Augment-REINFORCE, f(1[u < s(phi)]) (1 - 2u) with u uniform.

    Yin & Zhou 2018, arXiv:1807.11143.
    """
    value = f(hard_sample(q, q.logits + noise))
    return with_gradient(value, value * jnp.tanh(noise / 2), q.logits)  # u = s(-l)


@estimator(perturbation, BINARY, _two)
def arm(noise: Array, q: Bernoulli, f: Function) -> Array:
    """Augment-REINFORCE-merge, the mean of ``ar`` over an antithetic pair.

    (f(1[u > s(-phi)]) - f(1[u < s(phi)])) (u - 1/2) (Yin & Zhou 2018, arXiv:1807.11143).
    """
    one, other = f(hard_sample(q, q.logits + noise)), f(hard_sample(q, q.logits - noise))
    return with_gradient((one + other) / 2, (one - other) * jnp.tanh(noise / 2) / 2, q.logits)


# Antithetic bits: K exchangeable Bernoulli variables that are as rarely equal as possible.


def rare(q: Bernoulli) -> Array:
    """log s(-|phi|), the log-probability of the rarer value."""
    return jax.nn.log_sigmoid(-jnp.abs(q.logits))


def _bits_draw(key: Array, q: Bernoulli, k: int) -> Array:
    """Antithetic bits, whose rarer value is 1[d_k > t].

    d ~ Dirichlet(1, ..., 1), and P(d_k > t) = (1 - t)^(K-1) = s(-|phi|). With exponentials e the
    event is e_k (1 - t) > t sum_{j != k} e_j, which is accurate for a small 1 - t.
    """
    e = -jnp.log1p(-uniform(key, (k, *q.event_shape), q.logits.dtype))  # exponential
    stays = jnp.exp(rare(q) / (k - 1))  # 1 - t
    is_rare = e * stays > -jnp.expm1(rare(q) / (k - 1)) * (e.sum(0) - e)
    return jnp.where(is_rare == (q.logits < 0), 1.0, 0.0).astype(q.logits.dtype)


def _together(q: Bernoulli, k: int, m: int) -> np.ndarray:
    """The probability that m of the bits all have the rarer value.

    max(m r - m + 1, 0)^(K-1) with r^(K-1) = s(-|phi|).
    """
    root = np.exp(np.asarray(rare(q), np.float64) / (k - 1))
    return np.maximum(1 - m * (1 - root), 0) ** (k - 1) if m else np.ones(q.event_shape)


def _bits_law(q: Bernoulli, k: int) -> tuple[Any, Any]:
    """The law of all K bits of every latent, by inclusion and exclusion."""
    size = int(np.prod(q.event_shape))
    if 2.0 ** (k * size) > NODES:
        raise ValueError(f"an exact law would have 2^{k * size} nodes; the most is {NODES}")
    patterns = np.array(list(itertools.product((0, 1), repeat=k)))  # 1 is the rarer value
    together = np.stack([_together(q, k, m).ravel() for m in range(k + 1)])  # [K + 1, D]
    ones = patterns.sum(1)
    binomial = np.vectorize(
        lambda n, m: float(np.prod(np.arange(n - m + 1, n + 1)) / np.prod(np.arange(1, m + 1)))
    )
    mass = lambda i: sum(
        (-1.0) ** j * binomial(k - i, j) * together[i + j] for j in range(k - i + 1)
    )
    masses = np.stack([mass(i) for i in ones])  # [2^K, D]
    rare_is_one = np.ravel(np.asarray(q.logits) < 0)
    one = lambda d: (patterns if rare_is_one[d] else 1 - patterns, np.maximum(masses[:, d], 0))
    noises, weights = product(*[one(d) for d in range(masses.shape[1])])
    bits = jnp.stack(noises, -1).reshape(-1, k, *q.event_shape)
    return bits.astype(q.logits.dtype), weights


antithetic_bits = Noise(_bits_draw, _bits_law)
antithetic_pair = Noise(lambda key, q, k: _bits_draw(key, q, 2), lambda q, k: _bits_law(q, 2))


@estimator(antithetic_pair, BINARY, _two)
def disarm(noise: Array, q: Bernoulli, f: Function) -> Array:
    """ARM without its noise, for an antithetic pair b and b'.

    (f(b) - f(b')) (b - b') s(|phi|) / 2 (Dong et al. 2020, arXiv:2006.10680). Yin et al. 2020 call
    it U2G.
    """
    b, other = noise
    one, two = f(b), f(other)
    return with_gradient(
        (one + two) / 2,
        0.5 * (one - two) * (b - other) * jax.nn.sigmoid(jnp.abs(q.logits)),
        q.logits,
    )


@estimator(antithetic_bits, BINARY, _each, uses_samples_jointly=True, min_samples=2)
def arms(noise: Array, q: Bernoulli, f: Function) -> Array:
    """Leave-one-out baselines on K antithetic bits.

    w 1/(K-1) sum_k (f(b_k) - mean f) b_k (Dimitriev & Zhou 2021, arXiv:2105.14141, with the
    Dirichlet copula). w = p (1 - p) / (p - P(b_1 = b_2 = 1)) makes up for the correlation of the
    bits, and it is formed without cancellation. With K = 2 the estimator is ``disarm``.
    """
    k = len(noise)
    values = jax.vmap(f)(noise)
    weight = antithetic_weight(q, k)
    centred = (values - values.mean()) / (k - 1)
    return with_gradient(
        values.mean(), weight * jnp.tensordot(centred, noise, 1, precision="float32"), q.logits
    )


def antithetic_weight(q: Bernoulli, k: int) -> Array:
    """The weight that makes up for the correlation of antithetic bits.

    p (1 - p) / (p - P_11) = (1 - p) / (1 - P_11 / p), where p = s(-|phi|) is the probability of the
    rarer value.
    """
    root = jnp.exp(rare(q) / (k - 1))
    both = jnp.maximum(2 - 1 / root, 0.0) ** (k - 1)  # P_11 / p
    return jax.nn.sigmoid(jnp.abs(q.logits)) / (1 - both)
