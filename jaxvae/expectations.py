"""Gradient estimators of E_q f(z), ``(key, q, f) -> scalar``: the value estimates E_q f, and its gradient the gradient.

``f`` takes one z of q's event shape to a number, may depend on parameters itself, and is differentiated in them where
z was drawn. What an estimator serves, whether it is unbiased and what it costs stands in ``ESTIMATORS``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxvae.distributions import Bernoulli, Categorical

Array = jax.Array
Function = Callable[[Array], Array]


def _steered(value: Array, direction: Any, at: Any) -> Array:
    """``value``, whose gradient is its own and ``direction`` times that of ``at``, trees of the same structure."""
    inner = lambda d, a: jnp.sum(lax.stop_gradient(d) * (a - lax.stop_gradient(a)))
    return value + sum(jax.tree.leaves(jax.tree.map(inner, direction, at)))


def _drawn(key: Array, q: Any, f: Function, num_samples: int) -> tuple[Array, Array, Array]:
    """z ~ q [K, *event] without a gradient, f(z) [K] and log q(z) [K]."""
    z = lax.stop_gradient(q.sample(key, (num_samples,)))
    return z, jax.vmap(f)(z), jax.vmap(q.log_prob)(z)


# Any density


def score_function(key: Array, q: Any, f: Function, num_samples: int = 1, baseline: Array | float = 0.0) -> Array:
    """REINFORCE, 1/K sum_k (f(z_k) - b) grad log q(z_k) (Williams 1992; Mohamed et al. 2020, arXiv:1906.10652, eq. 14).

    ``baseline`` b must not depend on the samples.
    """
    _, values, scores = _drawn(key, q, f, num_samples)
    return _steered(values.mean(), (values - baseline) / num_samples, scores)


def rloo(key: Array, q: Any, f: Function, num_samples: int = 2) -> Array:
    """Leave-one-out baselines, 1/(K-1) sum_k (f(z_k) - mean f) grad log q(z_k) (Kool et al. 2019).

    Of the ELBO it is the gradient of VarGrad (Richter et al. 2020, arXiv:2010.10436). Needs K of at least 2.
    """
    if num_samples < 2:
        raise ValueError(f"rloo needs at least 2 samples; num_samples was {num_samples}")
    _, values, scores = _drawn(key, q, f, num_samples)
    return _steered(values.mean(), (values - values.mean()) / (num_samples - 1), scores)


def muprop(key: Array, q: Any, f: Function, num_samples: int = 1) -> Array:
    """The first-order expansion of f at the mean as control variate (Gu et al. 2015, arXiv:1511.05176).

    1/K sum_k (f(z_k) - f(m) - f'(m)(z_k - m)) grad log q(z_k) + f'(m) grad m, with m the mean of q.
    """
    z, values, scores = _drawn(key, q, f, num_samples)
    mean = q.mean
    at_mean, slope = jax.value_and_grad(f)(lax.stop_gradient(mean))
    expansion = at_mean + jnp.sum(slope * (z - mean), axis=tuple(range(1, z.ndim)))
    return _steered(values.mean(), ((values - expansion) / num_samples, slope), (scores, mean))


# Densities that are reparameterized


def pathwise(key: Array, q: Any, f: Function, num_samples: int = 1) -> Array:
    """1/K sum_k f(z_k), z_k a differentiable function of the parameters (Kingma & Welling 2013, arXiv:1312.6114)."""
    return jax.vmap(f)(q.sample(key, (num_samples,))).mean()


# Discrete latents

STATES = 2**16  # the most that are enumerated


def enumeration(key: Array, q: Bernoulli | Categorical, f: Function) -> Array:
    """The exact sum over all states, sum_z q(z) f(z); ``key`` is not used. Raises ValueError above 2^16 states."""
    classes = 2 if isinstance(q, Bernoulli) else q.logits.shape[-1]
    size = int(np.prod(q.event_shape))
    if size * np.log2(classes) > np.log2(STATES):
        raise ValueError(f"enumeration takes at most {STATES} states; q has {classes}^{size}")
    states = np.array(list(itertools.product(range(classes), repeat=size))).reshape(-1, *q.event_shape)
    z = jnp.asarray(states, q.sample(jax.random.key(0)).dtype)
    return jnp.sum(jnp.exp(jax.vmap(q.log_prob)(z)) * jax.vmap(f)(z))


# Binary latents, Bernoulli(logits phi), s the logistic function


def ar(key: Array, q: Bernoulli, f: Function) -> Array:
    """Augment-REINFORCE, f(1[u < s(phi)]) (1 - 2u) (Yin & Zhou 2018, arXiv:1807.11143)."""
    u = jax.random.uniform(key, q.event_shape, q.logits.dtype)
    value = f(_below(u, q.logits))
    return _steered(value, value * (1 - 2 * u), q.logits)


def arm(key: Array, q: Bernoulli, f: Function) -> Array:
    """Augment-REINFORCE-merge, (f(1[u > s(-phi)]) - f(1[u < s(phi)])) (u - 1/2) (arXiv:1807.11143)."""
    u = jax.random.uniform(key, q.event_shape, q.logits.dtype)
    other, one = f(_below(1 - u, q.logits)), f(_below(u, q.logits))
    return _steered((one + other) / 2, (other - one) * (u - 0.5), q.logits)


def disarm(key: Array, q: Bernoulli, f: Function) -> Array:
    """ARM without its noise, (f(b) - f(b')) (b - b') s(|phi|) / 2 for an antithetic pair.

    Dong et al. 2020, arXiv:2006.10680; the same as U2G, Yin et al. 2020.
    """
    u = jax.random.uniform(key, q.event_shape, q.logits.dtype)
    b, other = _below(1 - u, q.logits), _below(u, q.logits)
    values = f(b), f(other)
    direction = 0.5 * (values[0] - values[1]) * (b - other) * jax.nn.sigmoid(jnp.abs(q.logits))
    return _steered((values[0] + values[1]) / 2, direction, q.logits)


def local_expectation(key: Array, q: Bernoulli, f: Function) -> Array:
    """Each coordinate summed out, the others drawn: s'(phi_i) (f(z, z_i = 1) - f(z, z_i = 0)).

    Titsias & Lazaro-Gredilla 2015, arXiv:1503.01494.
    """
    z = lax.stop_gradient(q.sample(key))
    flat = z.reshape(-1)
    with_one = lambda i, value: f(flat.at[i].set(value).reshape(z.shape))
    each = jax.vmap(lambda i: with_one(i, 1.0) - with_one(i, 0.0))(jnp.arange(flat.size))
    return _steered(f(z), each.reshape(z.shape), q.mean)


def concrete(key: Array, q: Bernoulli, f: Function, temperature: float = 0.5) -> Array:
    """f(s((phi + L) / temperature)), L logistic: biased (Maddison et al. 2016, arXiv:1611.00712; arXiv:1611.01144)."""
    return f(jax.nn.sigmoid((q.logits + _logistic(key, q)) / temperature))


def straight_through(key: Array, q: Bernoulli, f: Function) -> Array:
    """f'(z) grad s(phi) at a drawn z: biased (Bengio et al. 2013, arXiv:1308.3432)."""
    return f(_straight(q.sample(key), q.mean))


def straight_through_gumbel(key: Array, q: Bernoulli, f: Function, temperature: float = 0.5) -> Array:
    """f'(z) grad of the concrete relaxation of z: biased (Jang et al. 2016, arXiv:1611.01144)."""
    relaxed = (q.logits + _logistic(key, q)) / temperature
    return f(_straight((relaxed > 0).astype(relaxed.dtype), jax.nn.sigmoid(relaxed)))


def reinmax(key: Array, q: Bernoulli, f: Function) -> Array:
    """The trapezoidal rule, 2 f'(z) s'((z + s(phi)) / 2) - f'(z) s'(phi) / 2: biased, but not where f is quadratic.

    Liu et al. 2023, arXiv:2304.08612; s' of a probability p is p (1 - p).
    """
    z, mean = lax.stop_gradient(q.sample(key)), q.mean
    value, slope = jax.value_and_grad(f)(z)
    variance = lambda p: p * (1 - p)
    direction = slope * (2 * variance((z + mean) / 2) - variance(mean) / 2)
    return _steered(value, direction, q.logits)


def _below(u: Array, logits: Array) -> Array:
    """1[u < s(logits)]."""
    return (u < jax.nn.sigmoid(logits)).astype(logits.dtype)


def _logistic(key: Array, q: Bernoulli) -> Array:
    return jax.random.logistic(key, q.event_shape, q.logits.dtype)


def _straight(value: Array, slope_of: Array) -> Array:
    """``value``, whose gradient is that of ``slope_of``."""
    return lax.stop_gradient(value) + slope_of - lax.stop_gradient(slope_of)


class Estimator(NamedTuple):
    """An estimator and what one needs to know to choose it."""

    function: Callable  # (key, q, f, **settings) -> scalar
    latents: frozenset[str]  # continuous, binary, categorical
    unbiased: bool
    evaluations: Callable[[int, int, int], int]  # of f, for K samples and D latents of C classes
    slopes: Callable[[int, int, int], int] = lambda k, d, c: 0  # gradients of f in z


ANY = frozenset({"continuous", "binary", "categorical"})
BINARY = frozenset({"binary"})
_one, _two, _each = lambda k, d, c: 1, lambda k, d, c: 2, lambda k, d, c: k

ESTIMATORS: dict[str, Estimator] = {
    "score_function": Estimator(score_function, ANY, True, _each),
    "rloo": Estimator(rloo, ANY, True, _each),
    "muprop": Estimator(muprop, frozenset({"continuous", "binary"}), True, lambda k, d, c: k + 1, _one),
    "pathwise": Estimator(pathwise, frozenset({"continuous"}), True, _each, _each),
    "enumeration": Estimator(enumeration, BINARY | {"categorical"}, True, lambda k, d, c: c**d),
    "ar": Estimator(ar, BINARY, True, _one),
    "arm": Estimator(arm, BINARY, True, _two),
    "disarm": Estimator(disarm, BINARY, True, _two),
    "local_expectation": Estimator(local_expectation, BINARY, True, lambda k, d, c: 2 * d + 1),
    "concrete": Estimator(concrete, BINARY, False, _one, _one),
    "straight_through": Estimator(straight_through, BINARY, False, _one, _one),
    "straight_through_gumbel": Estimator(straight_through_gumbel, BINARY, False, _one, _one),
    "reinmax": Estimator(reinmax, BINARY, False, _one, _one),
}
