"""Missing cells: what a trained model says of them, given the cells that were observed.

An example x in which nan is a missing cell has the density p(x_o|z) of its observed cells. The
models of tables have it (``models.tables``), and ``observed`` makes a VAE with it of any VAE with
independent cells. A function here takes one example, and ``impute`` takes a split of any size.

* ``importance``: z_k ~ q(z|x_o) with weights p(x_o, z_k) / q(z_k|x_o), normalized by their sum
  (Mattei & Frellsen 2019, arXiv:1812.02633).
* ``gibbs``: z and the missing cells in turn. Without a Metropolis test it is the pseudo-Gibbs
  sampler of Rezende et al. 2014 (arXiv:1401.4082), whose limit is right only if q(z|x) is. With
  the test it is right for any q (Mattei & Frellsen 2018, arXiv:1802.04826).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from jaxvae.contracts import Array, Params
from jaxvae.distributions import log_prob_of, sample_and_log_prob_of, sample_noise
from jaxvae.evaluation.columns import batched, over_split, require
from jaxvae.models import Model, answers
from jaxvae.models.observed import observed as observed

FOR_INTERVALS = 400  # draws that intervals are taken from, at least
TO_START = 100  # importance samples of which a Markov chain takes one to begin with
ON_CPU = 20_000  # latents that a CPU decodes at once


class Imputation(NamedTuple):
    """The missing cells of an example. Observed cells are as they were in every array."""

    point: Array  # E[x|x_o]; the median of ordinal cells and the likeliest category, [*event]
    low: Array  # ends of the central interval of each cell, [*event]
    high: Array
    draws: Array  # of p(x_m|x_o), for multiple imputation, [M, *event]
    # effective importance samples, or the share of proposals that the Metropolis test accepted
    quality: Array


# One example


def importance(
    model: Any,
    params: Params,
    key: Array,
    x: Array,
    num_samples: int = 1000,
    num_draws: int = 5,
    interval: float = 0.9,
    chunk: int = 500,
) -> Imputation:
    """Imputes the missing cells of an example by self-normalized importance sampling.

    The point is sum_k v_k E[x_m|z_k] with v_k = w_k / sum w. With a model of missingness it is
    sum_k v_k x_m^k, because the weights are of the draws x_m^k and not of their means.

    Args:
      model: a ``models.Model``, or what ``models.answers`` takes, of examples with gaps.
      params: its parameters.
      key: the key of all draws.
      x: an example in which nan is a missing cell.
      num_samples: K, rounded up to whole chunks.
      num_draws: draws for multiple imputation.
      interval: the probability of the interval of each cell.
      chunk: samples that are decoded at once.

    >>> import jax, jax.numpy as jnp
    >>> from jaxvae import likelihoods, models, networks, posteriors, priors
    >>> vae = observed(models.vae(
    ...     networks.mlp((), 4), networks.mlp((), 3), posteriors.normal(2),
    ...     likelihoods.normal(1.0), priors.standard_normal(2)))
    >>> x, key = jnp.array([0.3, jnp.nan, -1.0]), jax.random.key(0)
    >>> params = vae.init(key, x)
    >>> jax.jit(lambda x: importance(vae, params, key, x))(x).draws.shape
    (5, 3)
    """
    model = answers(model)
    require(model, "imputation", "encode", "decode", "log_joint")
    q = model.encode(params, x)
    key_z, key_which, key_x = jax.random.split(key, 3)
    chunk = min(chunk, num_samples)
    keys = jax.random.split(key_z, (-(-num_samples // chunk), chunk))
    decode: Any = lambda z: model.decode(params, z, model.parts(x)[1])

    def weighed(key: Array) -> tuple[Any, Array]:
        noise = jax.tree.map(lambda leaf: leaf[None], sample_noise(q, key))
        z, log_q = jax.tree.map(lambda leaf: leaf[0], sample_and_log_prob_of(q, noise))
        return z, model.log_joint(params, x, z) - log_q

    def add(sums: tuple[Array, Any], keys: Array) -> tuple[tuple[Array, Any], Array]:
        z, log_w = jax.vmap(weighed)(keys)
        values = jax.vmap(lambda z: decode(z).expectations(x))(z)
        return _added(sums, log_w, values), log_w

    z = jax.eval_shape(weighed, keys[0, 0])[0]
    zeros = jax.eval_shape(lambda z: decode(z).expectations(x), z)
    start = jnp.array(-jnp.inf), jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), zeros)
    (_, expectations), log_w = jax.lax.scan(add, start, keys)
    log_w, flat = jnp.ravel(log_w), jnp.ravel(keys)
    count = max(num_draws, FOR_INTERVALS)  # x is drawn at the chosen z alone
    chosen = flat[_chosen(key_which, log_w, count)]

    def drawn(key_z: Array, key_x: Array) -> Array:
        return decode(weighed(key_z)[0]).drawn(key_x, x)

    draws = jax.vmap(drawn)(chosen, jax.random.split(key_x, count))
    first = decode(weighed(flat[0])[0])
    effective = jnp.exp(2 * logsumexp(log_w) - logsumexp(2 * log_w))
    return _imputation(x, first.point(expectations), draws, num_draws, interval, effective)


def _chosen(key: Array, log_w: Array, count: int) -> Array:
    """The places of draws by their weights, [count], with replacement."""
    below = jnp.cumsum(jax.nn.softmax(log_w))
    places = jnp.searchsorted(below, jax.random.uniform(key, (count,)) * below[-1])
    return jnp.minimum(places, len(log_w) - 1)


def _added(sums: tuple[Array, Any], log_w: Array, values: Any) -> tuple[Array, Any]:
    """The log of the sum of weights, and the weighted mean of values, with a chunk more."""
    before, mean = sums
    total = jnp.logaddexp(before, logsumexp(log_w))
    weights = jnp.exp(log_w - total)
    keep = jnp.exp(before - total)
    part = lambda a: jnp.tensordot(weights, a, 1, precision="float32")
    return total, jax.tree.map(lambda m, a: keep * m + part(a), mean, values)


def _imputation(
    x: Array, point: Array, draws: Array, num_draws: int, interval: float, quality: Array
) -> Imputation:
    missing = jnp.isnan(x)
    ends = jnp.array([(1 - interval) / 2, (1 + interval) / 2])
    low, high = jnp.quantile(draws, ends, axis=0, method="nearest")
    some = draws[jnp.linspace(0, len(draws) - 1, num_draws).astype(int)]
    return Imputation(
        jnp.where(missing, point, x),
        jnp.where(missing, low, x),
        jnp.where(missing, high, x),
        some,
        quality,
    )


class _Chain(NamedTuple):
    """A state of the sampler: the completed example and z."""

    x: Array
    z: Any


def gibbs(
    model: Any,
    params: Params,
    key: Array,
    x: Array,
    num_steps: int = 1000,
    burn_in: int = 200,
    num_draws: int = 5,
    interval: float = 0.9,
    metropolis: bool = True,
) -> Imputation:
    """Imputes the missing cells of an example by Gibbs sampling of z and of the cells.

    z' ~ q(z|x_o, x_m) is accepted with probability p(x, z') q(z|x) / (p(x, z) q(z'|x)), and then
    x_m ~ p(x_m|z). The chain begins at one of a hundred importance samples.

    Args:
      model: a ``models.Model``, or what ``models.answers`` takes, of examples with gaps.
      params: its parameters.
      key: the key of all draws.
      x: an example in which nan is a missing cell.
      num_steps: steps after the burn-in.
      burn_in: steps whose states are not used.
      num_draws: draws for multiple imputation.
      interval: the probability of the interval of each cell.
      metropolis: whether proposals are tested; without it the result is biased by q.

    Raises ValueError for a model of missingness, because the missing cells of a completed example
    would count as observed.

    >>> import jax, jax.numpy as jnp
    >>> from jaxvae import likelihoods, models, networks, posteriors, priors
    >>> vae = observed(models.vae(
    ...     networks.mlp((), 4), networks.mlp((), 3), posteriors.normal(2),
    ...     likelihoods.normal(1.0), priors.standard_normal(2)))
    >>> x, key = jnp.array([0.3, jnp.nan, -1.0]), jax.random.key(0)
    >>> params = vae.init(key, x)
    >>> bool(jax.jit(lambda x: gibbs(vae, params, key, x, num_steps=10))(x).quality <= 1)
    True
    """
    model = answers(model)
    require(model, "Gibbs sampling", "encode", "decode", "log_joint")
    encode: Any = model.encode
    joint: Any = model.log_joint
    decode: Any = lambda z: model.decode(params, z, model.parts(x)[1])
    key_start, key_steps = jax.random.split(key)
    start = _start(model, params, key_start, x)
    if hasattr(decode(start.z), "missingness"):
        raise ValueError(
            "Gibbs sampling needs a model without missingness, whose completed examples would "
            "count as observed: impute by importance sampling"
        )

    def step(state: _Chain, key: Array) -> tuple[_Chain, tuple[Array, Any, Array]]:
        key_z, key_test, key_x = jax.random.split(key, 3)
        q = encode(params, state.x)
        z = q.sample(key_z)
        accepted = jnp.ones((), bool)
        if metropolis:
            log_w = lambda z: joint(params, state.x, z) - log_prob_of(q, z)
            accepted = jnp.log(jax.random.uniform(key_test)) < log_w(z) - log_w(state.z)
        z = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), z, state.z)
        p = decode(z)
        completed = p.drawn(key_x, x)
        return _Chain(completed, z), (completed, p.expectations(x), accepted)

    keys = jax.random.split(key_steps, burn_in + num_steps)
    begun = jax.lax.scan(step, start, keys[:burn_in])[0]
    last, (draws, values, accepted) = jax.lax.scan(step, begun, keys[burn_in:])
    mean = jax.tree.map(lambda a: a.mean(0), values)
    point = decode(last.z).point(mean)
    return _imputation(x, point, draws, num_draws, interval, accepted.mean())


def _start(model: Model, params: Params, key: Array, x: Array) -> _Chain:
    """One of some importance samples, drawn by their weights, and a completion at it."""
    key_noise, key_which, key_x = jax.random.split(key, 3)
    q = model.encode(params, x)  # type: ignore[misc]
    z, log_q = sample_and_log_prob_of(q, sample_noise(q, key_noise, (TO_START,)))
    log_w = jax.vmap(lambda z: model.log_joint(params, x, z))(z) - log_q  # type: ignore[misc]
    z = jax.tree.map(lambda leaf: leaf[_chosen(key_which, log_w, 1)[0]], z)
    p = model.decode(params, z, model.parts(x)[1])  # type: ignore[misc]
    return _Chain(p.drawn(key_x, x), z)


METHODS = ("importance", "metropolis", "gibbs")


# Many examples


def impute(
    model: Any,
    params: Params,
    key: Array,
    x: np.ndarray,
    method: str = "importance",
    num_samples: int = 1000,
    num_draws: int = 5,
    interval: float = 0.9,
    batch_size: int = 200,
    progress: Callable[[int], None] = lambda done: None,
) -> Imputation:
    """Imputes the missing cells of examples [N, ...], in bounded memory.

    The arrays of the result are [N, ...], and its draws are [N, M, ...].

    Args:
      model: a ``models.Model``, or what ``models.answers`` takes, of examples with gaps.
      params: its parameters.
      key: the key of all draws.
      x: examples in which nan is a missing cell.
      method: importance; metropolis, Gibbs sampling with a Metropolis test; or gibbs, without it.
      num_samples: importance samples, or steps of the chain after a fifth as many of burn-in.
      num_draws: draws for multiple imputation.
      interval: the probability of the interval of each cell.
      batch_size: examples at a time.
      progress: is called with the number of examples done.

    >>> import jax, jaxvae
    >>> trained = jaxvae.load("runs/tabular-data-0", "best")  # doctest: +SKIP
    >>> x = tables.numbers_of(frame, columns)  # doctest: +SKIP
    >>> impute(trained.model, trained.params, jax.random.key(0), x).point  # doctest: +SKIP
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    one = _imputer(answers(model), method, num_samples, max(num_draws, 1), interval)
    x = np.asarray(x, np.float32)
    found = over_split(one, params, key, x, min(batch_size, len(x)), progress)
    return found._replace(draws=found.draws[:, :num_draws])


@functools.lru_cache(maxsize=32)
def _imputer(
    model: Model, method: str, num_samples: int, num_draws: int, interval: float
) -> Callable:
    """The compiled function of a batch."""

    def one(params: Params, key: Array, x: Array) -> Imputation:
        if method == "importance":
            return importance(model, params, key, x, num_samples, num_draws, interval)
        test, burn_in = method == "metropolis", num_samples // 5
        return gibbs(model, params, key, x, num_samples, burn_in, num_draws, interval, test)

    return batched(one, max(ON_CPU // min(num_samples, 500), 1))


def held_out_log_prob(
    model: Any, params: Params, key: Array, x: np.ndarray, hidden: np.ndarray, num_samples: int
) -> float:
    """log p(x_h|x_o) of hidden cells given the observed ones, nats for each hidden cell.

    It is the difference of two importance-weighted estimates of the same draws.

    Args:
      model: a ``models.Model``, or what ``models.answers`` takes, of examples with gaps.
      params: its parameters.
      key: the key of the draws.
      x: examples [N, ...] with their hidden cells.
      hidden: which cells are hidden, [N, ...].
      num_samples: importance samples of each example.
    """
    examples = np.stack([np.where(hidden, np.nan, x), np.where(hidden, x, np.nan)], 1)
    batch = _judge(answers(model), num_samples)
    values = over_split(batch, params, key, examples.astype(np.float32), 200)
    return float(values.sum(dtype=np.float64) / hidden.sum())


@functools.lru_cache(maxsize=32)
def _judge(model: Model, num_samples: int) -> Callable:
    def one(params: Params, key: Array, pair: Array) -> Array:
        seen, hidden = pair
        q = model.encode(params, seen)  # type: ignore[misc]
        z, log_q = sample_and_log_prob_of(q, sample_noise(q, key, (num_samples,)))
        log_w = jax.vmap(lambda z: model.log_joint(params, seen, z))(z) - log_q  # type: ignore[misc]
        log_h = jax.vmap(lambda z: model.decode(params, z).log_prob(hidden))(z)  # type: ignore[misc]
        return logsumexp(log_w + log_h) - logsumexp(log_w)

    return batched(one, max(ON_CPU // num_samples, 1))
