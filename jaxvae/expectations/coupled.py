"""Estimators for one-hot latents from coupled draws.

The draws are pseudo-actions, or antithetic bits in a sequence of binary decisions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

from jaxvae.distributions import Bernoulli, OneHotCategorical
from jaxvae.expectations.contract import CATEGORICAL, Function, Noise, estimator, with_gradient
from jaxvae.expectations.discrete import antithetic_bits, antithetic_weight, rare

Array = jax.Array
_two, _each = (lambda k, d, c: 2 * k), (lambda k, d, c: k)

# Augment-REINFORCE-swap: z = argmin_c w_c e^-phi_c, w ~ Dirichlet(1, ..., 1)


def _dirichlet(key: Array, q: OneHotCategorical, k: int) -> tuple[Array, Array]:
    key_weights, key_reference = jax.random.split(key)
    e = jax.random.exponential(key_weights, q.event_shape, q.logits.dtype)
    return e / e.sum(-1, keepdims=True), jax.random.randint(
        key_reference, (), 0, q.logits.shape[-1]
    )


def _swapped(weights: Array, q: OneHotCategorical, i: Array, j: Array) -> Array:
    """The draw when the weights of categories i and j are exchanged, in all latents."""
    at_i, at_j = weights[..., i], weights[..., j]
    weights = weights.at[..., i].set(at_j).at[..., j].set(at_i)
    smallest = (jnp.log(weights) - q.logits).argmin(-1)
    return stop_gradient(jax.nn.one_hot(smallest, weights.shape[-1], dtype=weights.dtype))


@estimator(Noise(_dirichlet), CATEGORICAL, lambda k, d, c: k * c)
def ars(noise: tuple[Array, Array], q: OneHotCategorical, f: Function) -> Array:
    """Augment-REINFORCE-swap with a reference category j.

    (f_cj - mean_m f_mj) (1 - C w_j) for the logit of c (Yin et al. 2019, arXiv:1905.01413). f_mj is
    f with the weights of m and j exchanged.
    """
    weights, j = noise
    classes = weights.shape[-1]
    values = jax.vmap(lambda m: f(_swapped(weights, q, m, j)))(jnp.arange(classes))
    direction = (values - values.mean()) * (1 - classes * weights[..., j])[..., None]
    return with_gradient(values.mean(), direction, q.logits)


@estimator(Noise(_dirichlet), CATEGORICAL, lambda k, d, c: k * (c * (c - 1) // 2 + 1))
def arsm(noise: tuple[Array, Array], q: OneHotCategorical, f: Function) -> Array:
    """``ars`` averaged over its reference categories.

    sum_j (f_cj - mean_m f_mj) (1/C - w_j) (Yin et al. 2019, arXiv:1905.01413).
    """
    weights, _ = noise
    classes = weights.shape[-1]
    i, j = np.tril_indices(classes, -1)
    i, j = np.append(i, 0), np.append(j, 0)  # all pairs, and none
    values = jax.vmap(lambda i, j: f(_swapped(weights, q, i, j)))(i, j)
    table = (
        jnp.broadcast_to(values[-1], (classes, classes)).at[i, j].set(values).at[j, i].set(values)
    )
    centred = table - table.mean(-1, keepdims=True)
    direction = jnp.matmul(1 / classes - weights, centred, precision="float32")
    return with_gradient(values[-1], direction, q.logits)


# A category as the outcome of C - 1 binary decisions with log-odds psi


def _ascending(q: OneHotCategorical) -> Array:
    """Log-odds <= 0 of stopping at each category but the last, the least likely first."""
    order = stop_gradient(q.logits).argsort(-1)
    logits = jnp.take_along_axis(q.logits, order, -1)
    rest = lax.cumlogsumexp(logits, axis=logits.ndim - 1, reverse=True)
    return logits[..., :-1] - rest[..., 1:]


def _stopped(bits: Array, q: OneHotCategorical) -> tuple[Array, Array]:
    """The category at which bits stop, and which decisions were made.

    The bits are [*event, C-1], and the category is one-hot in q's order.
    """
    reached = jnp.cumprod(jnp.concatenate([jnp.ones_like(bits[..., :1]), 1 - bits], -1), -1)
    stops = reached * jnp.concatenate([bits, jnp.ones_like(bits[..., :1])], -1)
    places = stop_gradient(q.logits).argsort(-1).argsort(-1)
    return jnp.take_along_axis(stops, places, -1), reached[..., :-1]


def _pair_of(log_odds: Any, k: int | None = 2) -> Noise:
    """``k`` antithetic bits for every decision; with None there is one for each sample."""
    decisions = lambda q: Bernoulli(stop_gradient(log_odds(q)))
    return Noise(
        lambda key, q, num: antithetic_bits.draw(key, decisions(q), k or num),
        lambda q, num: antithetic_bits.exact(decisions(q), k or num),
    )


@estimator(_pair_of(_ascending, None), CATEGORICAL, _each, uses_samples_jointly=True, min_samples=2)
def carms(noise: Array, q: OneHotCategorical, f: Function) -> Array:
    """K antithetic categories, coupled by sticks in ascending order.

    1/(K(K-1)) sum_{j<k} r(z_j, z_k) (f_j - f_k) (z_j - z_k) (Dimitriev & Zhou 2021,
    arXiv:2110.14002). r = q(z_j) q(z_k) / P(z_j, z_k) makes up for their correlation. With K = 2 it
    is ``disarm_iw``.
    """
    k = len(noise)
    z = jax.vmap(lambda bits: _stopped(bits, q)[0])(noise)
    values = jax.vmap(f)(z)
    decisions = Bernoulli(stop_gradient(_ascending(q)))
    s, none = jax.nn.sigmoid(decisions.logits), jax.nn.sigmoid(-decisions.logits)
    root = jnp.exp(rare(decisions) / (k - 1))
    neither = 1 - 2 * s + jnp.maximum(2 * root - 1, 0.0) ** (k - 1)  # P(both go on)
    passed = jnp.cumprod(
        jnp.concatenate([jnp.ones_like(s[..., :1]), (none**2 / neither)[..., :-1]], -1), -1
    )
    # The weights are by the first place at which one of the two stops.
    weights = passed * antithetic_weight(decisions, k)
    weights = jnp.concatenate([weights, jnp.zeros_like(s[..., :1])], -1)
    rank = stop_gradient(q.logits).argsort(-1).argsort(-1)
    place = jnp.sum(z * rank, -1).astype(int)  # [K, *event]

    def pair(i: Array, j: Array) -> Array:
        weight = jnp.take_along_axis(weights, jnp.minimum(place[i], place[j])[..., None], -1)
        return weight * (values[i] - values[j]) * (z[i] - z[j])

    first, second = np.triu_indices(k, 1)
    direction = jax.vmap(pair)(jnp.asarray(first), jnp.asarray(second)).sum(0) / (k * (k - 1))
    return with_gradient(values.mean(), direction, q.logits)


@estimator(_pair_of(_ascending), CATEGORICAL, _two)
def disarm_iw(noise: Array, q: OneHotCategorical, f: Function) -> Array:
    """An antithetic pair of categories, weighted for its correlation.

    Dong et al. 2021, arXiv:2106.08056.
    """
    return carms.estimate(noise, q, f)


def _of_decisions(psi: Array, bits: Array, z: Array, made: Array, f: Function) -> Array:
    """DisARM for the decisions that both members of a pair make, else the score function.

    (f - f')/2 (a a' (b - b') s(|psi|) + a (1 - a') (b - s(psi)) - (1 - a) a' (b' - s(psi))). a says
    whether a member makes the decision.
    """
    values = f(z[0]), f(z[1])
    (b, other), (a, too), p = bits, made, jax.nn.sigmoid(psi)
    both = a * too * (b - other) * jax.nn.sigmoid(jnp.abs(psi))
    direction = (
        0.5
        * (values[0] - values[1])
        * (both + a * (1 - too) * (b - p) - (1 - a) * too * (other - p))
    )
    return with_gradient((values[0] + values[1]) / 2, direction, psi)


@estimator(_pair_of(_ascending), CATEGORICAL, _two)
def disarm_sb(noise: Array, q: OneHotCategorical, f: Function) -> Array:
    """DisARM on the decisions of breaking a stick, the least likely category first.

    Dong et al. 2021, arXiv:2106.08056.
    """
    z, made = jax.vmap(lambda bits: _stopped(bits, q))(noise)
    return _of_decisions(_ascending(q), noise, z, made, f)


def _branches(classes: int) -> np.ndarray:
    """A balanced tree over the categories, [C-1, C].

    An entry is -1 if the category is to the left of the decision, 1 if it is to the right, else 0.
    """
    rows = []

    def split(low: int, high: int) -> None:
        if high - low > 1:
            middle = (low + high) // 2
            rows.append(
                [
                    -1 if low <= c < middle else 1 if middle <= c < high else 0
                    for c in range(classes)
                ]
            )
            split(low, middle)
            split(middle, high)

    split(0, classes)
    return np.array(rows)


def _tree(q: OneHotCategorical) -> Array:
    """Log-odds of going right at each decision, [*event, C-1]."""
    branches = _branches(q.logits.shape[-1])
    logits = q.logits[..., None, :]
    mass_on = lambda side: logsumexp(jnp.where(branches == side, logits, -jnp.inf), -1)
    return mass_on(1) - mass_on(-1)


@estimator(_pair_of(_tree), CATEGORICAL, _two)
def disarm_tree(noise: Array, q: OneHotCategorical, f: Function) -> Array:
    """DisARM on the decisions of a balanced tree over the categories.

    Dong et al. 2021, arXiv:2106.08056.
    """
    branches = _branches(q.logits.shape[-1])
    agrees = (branches == 0) | (branches == 2 * noise[..., None] - 1)  # [2, *event, C-1, C]
    z = jnp.all(agrees, -2).astype(q.logits.dtype)
    made = jnp.sum((branches != 0) * z[..., None, :], -1)
    return _of_decisions(_tree(q), noise, z, made, f)
