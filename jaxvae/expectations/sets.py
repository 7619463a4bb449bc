"""Estimators from draws without replacement, among all states of discrete latents."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

from jaxvae.distributions import Bernoulli, OneHotCategorical
from jaxvae.expectations.contract import DISCRETE, Function, Noise, estimator, with_gradient
from jaxvae.expectations.noises import NODES, states

Array = jax.Array
MOST = 10  # the subsets of a set are enumerated
_each = lambda k, d, c: k


def _log_probs(q: Bernoulli | OneHotCategorical) -> Array:
    """The log-probabilities of each latent's values, [D, C]."""
    logits = stop_gradient(q.logits)
    if isinstance(q, Bernoulli):
        return jnp.stack(
            [jax.nn.log_sigmoid(-logits).ravel(), jax.nn.log_sigmoid(logits).ravel()], -1
        )
    return jax.nn.log_softmax(logits).reshape(-1, logits.shape[-1])


def _likeliest(q: Bernoulli | OneHotCategorical, k: int, key: Array | None = None) -> Array:
    """The k states with the largest log q(z), or log q(z) + Gumbel noise, [k, *event].

    A beam goes from latent to latent. The largest perturbed value of a parent's children is the
    parent's value (Kool et al. 2019, arXiv:1903.06059).
    """
    log_probs = _log_probs(q)
    size, classes = log_probs.shape
    if k > MOST:
        raise ValueError(f"draws without replacement are at most {MOST}; num_samples was {k}")
    if k > float(classes) ** size:
        raise ValueError(f"{k} draws without replacement of {classes}^{size} states")
    alive = jnp.arange(k) == 0
    beam = jnp.zeros((k, size), int)
    log_p, perturbed = jnp.where(alive, 0.0, -jnp.inf), jnp.where(alive, 0.0, -jnp.inf)

    def grow(d: Array, state: tuple) -> tuple:
        beam, log_p, perturbed = state
        children = log_p[:, None] + log_probs[d]
        values = children
        if key is not None:
            noise = jax.random.gumbel(
                jax.random.fold_in(key, d), children.shape, children.dtype, mode="high"
            )
            values = jnp.where(jnp.isfinite(children), children + noise, -1e30)
            below = values - values.max(-1, keepdims=True)
            gap = jnp.where(
                below < 0, jnp.log(-jnp.expm1(jnp.where(below < 0, below, -1.0))), -jnp.inf
            )
            above = jnp.where(jnp.isfinite(perturbed), perturbed, 0.0)[:, None]
            shift = above - values + gap
            values = above - jnp.maximum(shift, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(shift)))
            values = jnp.where(jnp.isfinite(children), values, -jnp.inf)
        best, index = jax.lax.top_k(values.ravel(), k)
        parent, child = index // classes, index % classes
        return beam[parent].at[:, d].set(child), children.ravel()[index], best

    beam, _, _ = jax.lax.fori_loop(0, size, grow, (beam, log_p, perturbed))
    if isinstance(q, Bernoulli):
        return beam.reshape(k, *q.event_shape).astype(q.logits.dtype)
    return jax.nn.one_hot(beam, classes, dtype=q.logits.dtype).reshape(k, *q.event_shape)


def _ordered_law(q: Any, k: int) -> tuple[Any, Any]:
    """The law of k states that are drawn without replacement."""
    z = states(q)
    p = np.exp(np.asarray(jax.vmap(q.log_prob)(z), np.float64))
    if k > len(p):
        raise ValueError(f"{k} draws without replacement of {len(p)} states")
    if np.prod(np.arange(len(p) - k + 1, len(p) + 1, dtype=float)) > NODES:
        raise ValueError(f"there are more than {NODES} ways to draw {k} of {len(p)} states")
    index = np.array(list(itertools.permutations(range(len(p)), k)))
    drawn = p[index]
    before = np.cumsum(drawn, -1) - drawn
    left = np.where(np.arange(k) == len(p) - 1, drawn, 1 - before)  # the last one is certain
    return z[index], np.prod(drawn / left, -1)


without_replacement = Noise(lambda key, q, k: _likeliest(q, k, key), _ordered_law)


def _remaining(log_p: Array) -> Array:
    """log W(T) for every part T of a set S, [2^K] by the bits of T.

    ``log_p`` [K] holds log p of the members. If T has been drawn already, W(T) is the probability
    that the next draws are the rest of S, in any order. W(S) = 1, and
    W(T) = sum_{s not in T} p_s / (1 - p(T)) W(T + s). Then P(S) = W(). Parts with one and two
    members have the leave-one-out and leave-two-out probabilities (Kool et al. 2020,
    arXiv:2002.06043).
    """
    k = len(log_p)
    outside = jnp.maximum(-jnp.expm1(jnp.minimum(logsumexp(log_p), 0.0)), 0.0)
    inside = np.arange(2**k)[:, None] >> np.arange(k) & 1  # [2^K, K]
    table = jnp.zeros(2**k, log_p.dtype)
    for size in range(k - 1, -1, -1):
        parts = np.flatnonzero(inside.sum(1) == size)
        rest = np.nonzero(1 - inside[parts])[1].reshape(len(parts), k - size)
        left = jnp.log(outside + jnp.exp(log_p)[rest].sum(-1))
        table = table.at[parts].set(
            logsumexp(log_p[rest] + table[parts[:, None] | 1 << rest], -1) - left
        )
    return table


def _unordered(noise: Array, q: Any, f: Function, baseline: bool) -> Array:
    z = stop_gradient(noise)
    k = len(z)
    values, scores = jax.vmap(f)(z), jax.vmap(q.log_prob)(z)
    log_p = stop_gradient(scores)
    table = _remaining(log_p)
    bits = 1 << np.arange(k)
    one = table[bits]
    weights = jnp.exp(log_p + one - table[0])  # p(s) R(S, s), which sum to one
    centred = values
    if baseline:
        two = table[bits[:, None] | bits]
        centred = values - jnp.matmul(
            jnp.exp(log_p + two - one[:, None]), values, precision="float32"
        )
    return with_gradient(jnp.sum(stop_gradient(weights) * values), weights * centred, scores)


@estimator(without_replacement, DISCRETE, _each, uses_samples_jointly=True)
def unordered_set(noise: Array, q: Bernoulli | OneHotCategorical, f: Function) -> Array:
    """K distinct states whose order is forgotten.

    sum_s p(s) R(S, s) f(s) grad log p(s) (Kool et al. 2020, arXiv:2002.06043). R(S, s) is the
    probability of the set S given that s came first, over the probability of S. With K = 1 it is
    REINFORCE, and with all states it is the exact sum. K is at most 10.
    """
    return _unordered(noise, q, f, baseline=False)


@estimator(without_replacement, DISCRETE, _each, uses_samples_jointly=True, min_samples=2)
def unordered_set_baseline(noise: Array, q: Bernoulli | OneHotCategorical, f: Function) -> Array:
    """``unordered_set`` with the estimate of E f from the set without s as baseline.

    sum_t p(t) R(S - s, t) f(t) (Kool et al. 2020, arXiv:2002.06043).
    """
    return _unordered(noise, q, f, baseline=True)


def _summed(q: Any, f: Function, z: Array, weights: Array) -> Array:
    values, scores = jax.vmap(f)(z), jax.vmap(q.log_prob)(z)
    return with_gradient(jnp.sum(stop_gradient(weights) * values), weights * values, scores)


@estimator(without_replacement, DISCRETE, _each, uses_samples_jointly=True, min_samples=2)
def sum_and_sample(noise: Array, q: Bernoulli | OneHotCategorical, f: Function) -> Array:
    """The sum over the K - 1 likeliest states, and one draw from the others.

    It is Rao-Blackwellized (Liu et al. 2019, arXiv:1810.04777). Of K draws without replacement, the
    first one that is not in the sum is a draw from the others.
    """
    likely = _likeliest(q, len(noise) - 1)
    axes = tuple(range(2, noise.ndim + 1))
    summed = jnp.any(jnp.all(noise[:, None] == likely, axes), -1)
    z = jnp.concatenate([likely, noise[jnp.argmin(summed)][None]])
    p = jnp.exp(jax.vmap(q.log_prob)(likely))
    return _summed(q, f, z, jnp.append(p, 1 - p.sum()))


@estimator(without_replacement, DISCRETE, _each, uses_samples_jointly=True, min_samples=2)
def stochastic_sum_and_sample(noise: Array, q: Bernoulli | OneHotCategorical, f: Function) -> Array:
    """A sum over K - 1 draws without replacement; one more draw stands for the rest.

    Its mean over the orders of the draws is ``unordered_set`` (Kool et al. 2020, arXiv:2002.06043).
    """
    p = jnp.exp(jax.vmap(q.log_prob)(noise[:-1]))
    return _summed(q, f, noise, jnp.append(p, 1 - p.sum()))
