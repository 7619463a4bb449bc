"""How good a model is: the ELBO and its terms, log-likelihoods with their error bars, active units.
All in nats.

Functions of one example come first; ``evaluate`` and ``estimate_log_likelihood`` run them over a
split in bounded memory, with the ragged last batch padded and left out of every mean.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp

from jaxvae import bounds, divergences, processes
from jaxvae.datasets import num_examples
from jaxvae.distributions import mean_of
from jaxvae.models.vae import VAE, elbo_terms

Array = jax.Array
Preprocess = Callable[[Array, Any], Any]  # (key, stored example) -> x
LATENTS_ON_CPU = 1000  # decoded at once: what is computed of them stays in the cache
ACTIVE_VARIANCE = 0.01  # Burda et al. 2015, sec. 5.2


def same(key: Array, x: Any) -> Any:
    """The treatment of examples that are stored as the likelihood takes them."""
    return x


class LogLikelihood(NamedTuple):
    """An importance-sampling estimate of log p(x) and how far to trust it."""

    log_likelihood: Array  # nats
    effective_samples: Array  # (sum w)^2 / sum w^2, between 1 and K
    pareto_k: Array  # shape of the weights' tail


def log_likelihood(
    vae: VAE, params: Any, key: Array, x: Any, num_samples: int = 5000, chunk: int = 1000
) -> LogLikelihood:
    """log 1/K sum_k p(x, z_k) / q(z_k|x) for one example, z_k ~ q(z|x) (Burda et al. 2015,
    arXiv:1509.00519, eq. 8).

    A lower bound on log p(x) in expectation, tighter with K. Samples are drawn ``chunk`` at a time
    and only the 3 sqrt(K) largest weights are kept, so memory is that of a chunk. The effective
    sample size and the Pareto shape of the largest weights (see ``pareto_shape``) say how far to
    trust it: above 0.7 the estimate is not reliable.
    """
    chunk = min(chunk, num_samples)
    chunks = -(-num_samples // chunk)
    tail = tail_length(num_samples)
    vae, x = vae.at(x)
    q, prior = vae.encode(params, x), vae.prior(params)
    log_joint = lambda z: vae.decode(params, z).log_prob(x) + prior.log_prob(z)

    def add(carry: tuple, c: Array) -> tuple[tuple, None]:
        first, second, largest = carry
        log_w = bounds.log_weights(jax.random.fold_in(key, c), q, log_joint, chunk)
        log_w = jnp.where(c * chunk + jnp.arange(chunk) < num_samples, log_w, -jnp.inf)
        first = jnp.logaddexp(first, logsumexp(log_w))
        second = jnp.logaddexp(second, logsumexp(2 * log_w))
        largest = lax.top_k(jnp.concatenate([largest, log_w]), tail + 1)[0]
        return (first, second, largest), None

    empty = jnp.float32(-jnp.inf), jnp.float32(-jnp.inf), jnp.full(tail + 1, -jnp.inf)
    (first, second, largest), _ = lax.scan(add, empty, jnp.arange(chunks))
    return LogLikelihood(
        first - math.log(num_samples), jnp.exp(2 * first - second), pareto_shape(largest)
    )


def tail_length(num_samples: int) -> int:
    """How many of K weights are the tail, min(K / 5, 3 sqrt(K)) (Vehtari et al. 2024,
    arXiv:1507.02646, sec. 3.2).
    """
    return max(min(num_samples // 5, math.ceil(3 * math.sqrt(num_samples))), 1)


def pareto_shape(largest: Array) -> Array:
    """Shape k of a generalized Pareto distribution fitted to the excess of the largest weights,
    from their logarithms.

    ``largest [M + 1]`` are log-weights in falling order; the smallest is the threshold. The fit is
    the quasi-Bayesian one of Zhang & Stephens 2009 (doi:10.1198/tech.2009.08017), with the weak
    prior towards 1/2 of Vehtari et al. (arXiv:1507.02646, app. C). Tails of fewer than five
    weights, or without spread, give nan.
    """
    m = largest.shape[0] - 1
    excess = jnp.exp(largest[:-1] - largest[0]) - jnp.exp(largest[-1] - largest[0])
    x = excess[::-1]  # [M] rising
    count = 30 + int(math.sqrt(m))
    quartile = x[max(int(m / 4 + 0.5), 1) - 1]
    grid = 1 - jnp.sqrt(count / (jnp.arange(1, count + 1) - 0.5))
    b = grid / (3 * quartile) + 1 / x[-1]  # [grid]
    shape = jnp.mean(jnp.log1p(-b[:, None] * x), 1)  # [grid], the negative of Zhang & Stephens' k
    profile = m * (jnp.log(-b / shape) - shape - 1)
    weight = jax.nn.softmax(profile)
    k = jnp.mean(jnp.log1p(-jnp.sum(weight * b) * x))
    k = (m * k + 5) / (m + 10)
    return jnp.where((m >= 5) & (quartile > 0), k, jnp.nan)


class Summary(NamedTuple):
    """The ELBO of a split."""

    elbo: float | None  # None where KL is infinite, as a deterministic encoder's
    standard_error: float | None  # of the ELBO, over the examples
    reconstruction: float
    kl: float | None
    kl_per_latent: list[float] | None  # None where no closed form is known
    active_units: int
    num_samples: int
    num_examples: int


def evaluate(
    vae: VAE,
    params: Any,
    examples: Any,
    key: Array,
    *,
    preprocess: Preprocess = same,
    num_samples: int = 1,
    batch_size: int = 500,
) -> Summary:
    """The ELBO over a split with its terms, KL per latent and active units, E_q over
    ``num_samples`` draws.

    A latent u is active if the variance over x of E_q[z_u|x], or of one of its classes, exceeds
    0.01 (Burda et al. 2015, arXiv:1509.00519, sec. 5.2). ``preprocess(key, x)`` turns a stored
    example into what the likelihood takes.
    """

    columns = _over_split(
        _elbo_columns(vae, preprocess, num_samples), params, examples, key, batch_size
    )
    elbo = columns["reconstruction"] - columns["kl"]
    bounded = bool(np.isfinite(elbo).all())
    variance = columns["mean"].var(0)
    per_latent = columns.get("kl_per_latent")
    return Summary(
        elbo=float(elbo.mean()) if bounded else None,
        standard_error=_standard_error(elbo) if bounded else None,
        reconstruction=float(columns["reconstruction"].mean()),
        kl=float(columns["kl"].mean()) if bounded else None,
        kl_per_latent=None if per_latent is None else per_latent.mean(0).tolist(),
        active_units=int((variance > ACTIVE_VARIANCE).reshape(len(variance), -1).any(-1).sum()),
        num_samples=num_samples,
        num_examples=len(elbo),
    )


class Likelihoods(NamedTuple):
    """Log-likelihood of a split by importance sampling."""

    log_likelihood: float  # mean over the examples, nats
    standard_error: float  # of that mean, over the examples
    effective_samples: float  # mean over the examples
    pareto_k: float | None  # mean over the examples; None where the tail was too short
    pareto_k_above: float | None  # share of examples with k > 0.7, whose estimate is not reliable
    num_samples: int
    num_examples: int


def estimate_log_likelihood(
    vae: VAE,
    params: Any,
    examples: Any,
    key: Array,
    *,
    preprocess: Preprocess = same,
    num_samples: int = 5000,
    chunk: int = 500,
    batch_size: int = 50,
    progress: Callable[[int], None] = lambda done: None,
) -> Likelihoods:
    """``log_likelihood`` over a split, ``batch_size`` examples and ``chunk`` samples at a time.

    Peak memory is that of decoding ``batch_size * chunk`` latents, whatever K is; of a thousand on
    a CPU, or one chunk, whose numbers stay in its cache. ``progress`` is called with the number of
    examples done.
    """

    columns = _over_split(
        _likelihood_columns(vae, preprocess, num_samples, chunk),
        params,
        examples,
        key,
        batch_size,
        progress,
    )
    values, k = columns["log_likelihood"], columns["pareto_k"]
    known = np.isfinite(k)
    return Likelihoods(
        log_likelihood=float(values.mean()),
        standard_error=_standard_error(values),
        effective_samples=float(columns["effective_samples"].mean()),
        pareto_k=float(k[known].mean()) if known.any() else None,
        pareto_k_above=float((k[known] > 0.7).mean()) if known.any() else None,
        num_samples=num_samples,
        num_examples=len(values),
    )


def bits_per_dim(nats: float, dimensions: int, offset: float = 0.0) -> float:
    """-nats / (D log 2) + offset: the code length of one of D dimensions.

    For a density over pixels scaled to [0, 1], ``offset`` is log2 of the number of levels: with
    uniform dequantization the result bounds the code length of the discrete image (Theis et al.
    2016, arXiv:1511.01844, sec. 3.1).
    """
    return -nats / (dimensions * math.log(2)) + offset


def encode_split(
    vae: VAE,
    params: Any,
    examples: Any,
    key: Array,
    *,
    preprocess: Preprocess = same,
    batch_size: int = 500,
) -> np.ndarray:
    """Posterior means of a split, [N, D]."""
    return _over_split(_mean_columns(vae, preprocess), params, examples, key, batch_size)["mean"]


# The compiled functions are kept by model and treatment, so that a loop that evaluates often
# compiles once.


@functools.lru_cache(maxsize=32)
def _elbo_columns(vae: VAE, preprocess: Preprocess, num_samples: int) -> Callable:
    def one(params: Any, key: Array, raw: Any) -> dict[str, Array]:
        key_x, key_z = jax.random.split(key)
        here, x = vae.at(preprocess(key_x, raw))
        q = here.encode(params, x)
        per_latent = divergences.kl_per_latent(q, here.prior(params))
        rest = {} if per_latent is None else {"kl_per_latent": per_latent}
        return elbo_terms(here, params, key_z, x, num_samples) | {"mean": mean_of(q)} | rest

    return _batched(one)


@functools.lru_cache(maxsize=32)
def _likelihood_columns(vae: VAE, preprocess: Preprocess, num_samples: int, chunk: int) -> Callable:
    def one(params: Any, key: Array, raw: Any) -> dict[str, Array]:
        key_x, key_z = jax.random.split(key)
        return log_likelihood(
            vae, params, key_z, preprocess(key_x, raw), num_samples, chunk
        )._asdict()

    return _batched(one, max(LATENTS_ON_CPU // min(chunk, num_samples), 1))


@functools.lru_cache(maxsize=32)
def _mean_columns(vae: VAE, preprocess: Preprocess) -> Callable:
    def one(params: Any, key: Array, raw: Any) -> dict[str, Array]:
        here, x = vae.at(preprocess(jax.random.split(key)[0], raw))
        return {"mean": mean_of(here.encode(params, x))}

    return _batched(one)


def _batched(one: Callable, on_cpu: int | None = None) -> Callable:
    """``one(params, fold_in(key, i), example i)`` over a batch, with i the examples' places in the
    split.

    A CPU takes ``on_cpu`` examples at once.
    """

    def batch(params: Any, key: Array, places: Array, raw: Any) -> Any:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        whole = lambda *each: jax.vmap(one, (None, 0, 0))(params, *each)
        size = min(on_cpu or 1, len(places))
        parts = lambda *each: lax.map(lambda each: one(params, *each), each, batch_size=size)
        return lax.platform_dependent(keys, raw, cpu=parts if on_cpu else whole, default=whole)

    return jax.jit(batch)


def _standard_error(values: np.ndarray) -> float:
    """Of the mean over independent examples; 0 for a single one, whose spread is unknown."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _over_split(
    batched: Callable,
    params: Any,
    examples: Any,
    key: Array,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
    """The columns of every example in float64; the last batch is filled up with the last example
    and cut.

    In a job of several processes each takes its share of the batches, and all must call this.
    """
    n = num_examples(examples)
    batch_size = min(batch_size, n)
    starts = range(0, n, batch_size)
    shared = len(starts) >= jax.process_count() > 1
    columns: dict[str, np.ndarray] = {}
    for start in starts[jax.process_index() :: jax.process_count()] if shared else starts:
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        raw = jax.tree.map(lambda a, rows=rows: np.asarray(a)[rows], examples)
        for name, values in batched(params, key, rows, raw).items():
            column = columns.setdefault(name, np.zeros((n, *values.shape[1:]), np.float32))
            column[start : start + batch_size] = np.asarray(values)[: n - start]
        progress(min(start + batch_size, n))
    columns = processes.summed(columns) if shared else columns
    return {name: column.astype(np.float64) for name, column in columns.items()}
