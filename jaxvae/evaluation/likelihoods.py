"""The ELBO and its terms, and log-likelihoods with diagnostics.

All values are in nats. ``log_likelihood`` takes one example. The other functions take a split of
any size and need bounded memory.
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

from jaxvae import divergences
from jaxvae.contracts import Array, Params
from jaxvae.datasets import examples_of, preprocessed
from jaxvae.distributions import mean_of
from jaxvae.evaluation.columns import Batched, batched, over_split, require
from jaxvae.models import Model, answers

LATENTS_ON_CPU = 1000  # latents decoded at once: what is computed of them stays in the cache
ACTIVE_VARIANCE = 0.01  # Burda et al. 2015, sec. 5.2
MOST_LATENTS = 10_000  # of an example, whose means are kept of a whole split to count active ones

# Above this shape of the tail an importance-sampling estimate is not reliable at any practical
# number of samples (Vehtari et al. 2024, arXiv:1507.02646, sec. 3.2.4).
UNRELIABLE_PARETO_K = 0.7
# The logarithm of a mean of weights with n effective samples has a standard error of about
# 1 / sqrt(n): with fewer than ten it is above 0.3 nats for each example, and biased downwards.
FEWEST_EFFECTIVE_SAMPLES = 10


class LogLikelihood(NamedTuple):
    """An importance-sampling estimate of log p(x) and how far to trust it."""

    log_likelihood: Array  # nats
    effective_samples: Array  # (sum w)^2 / sum w^2, between 1 and K
    pareto_k: Array  # shape of the weights' tail


def log_likelihood(
    model: Any, params: Params, key: Array, x: Any, num_samples: int = 5000, chunk: int = 1000
) -> LogLikelihood:
    """log 1/K sum_k p(x, z_k) / q(z_k|x) for one example, z_k ~ q(z|x).

    Burda et al. 2015, arXiv:1509.00519, eq. 8. In expectation it is a lower bound on log p(x),
    which is tighter the larger K is. The effective sample size and the Pareto shape of the largest
    weights (see ``pareto_shape``) say how far to trust it.

    Args:
      model: a ``models.Model`` that answers ``log_weights``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of the samples.
      x: one example, as the model takes it.
      num_samples: K.
      chunk: samples drawn at a time. Memory holds one chunk, and the 3 sqrt(K) largest weights of
        the chunks before it.
    """
    model = answers(model)
    require(model, "a log-likelihood", "log_weights")
    log_weights: Any = model.log_weights
    chunk = min(chunk, num_samples)
    tail = tail_length(num_samples)

    def add(carry: tuple, c: Array) -> tuple[tuple, None]:
        first, second, largest = carry
        log_w = log_weights(params, jax.random.fold_in(key, c), x, chunk)
        log_w = jnp.where(c * chunk + jnp.arange(chunk) < num_samples, log_w, -jnp.inf)
        first = jnp.logaddexp(first, logsumexp(log_w))
        second = jnp.logaddexp(second, logsumexp(2 * log_w))
        largest = lax.top_k(jnp.concatenate([largest, log_w]), tail + 1)[0]
        return (first, second, largest), None

    empty = jnp.float32(-jnp.inf), jnp.float32(-jnp.inf), jnp.full(tail + 1, -jnp.inf)
    (first, second, largest), _ = lax.scan(add, empty, jnp.arange(-(-num_samples // chunk)))
    return LogLikelihood(
        first - math.log(num_samples), jnp.exp(2 * first - second), pareto_shape(largest)
    )


def tail_length(num_samples: int) -> int:
    """The number of the largest of K weights that are their tail, min(K / 5, 3 sqrt(K)).

    Vehtari et al. 2024, arXiv:1507.02646, sec. 3.2.
    """
    return max(min(num_samples // 5, math.ceil(3 * math.sqrt(num_samples))), 1)


def pareto_shape(largest: Array) -> Array:
    """The shape k of the tail of importance weights, from the logarithms of the largest ones.

    A generalized Pareto distribution is fitted to what the weights exceed the smallest one by. The
    fit is the quasi-Bayesian one of Zhang & Stephens 2009 (doi:10.1198/tech.2009.08017), with the
    weak prior towards 1/2 of Vehtari et al. (arXiv:1507.02646, app. C). ``largest [M + 1]`` are in
    falling order. Tails of fewer than five weights, or without spread, give nan.
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
    """The ELBO of a split, and what it is made of."""

    elbo: float | None  # None if KL is infinite, such as for a deterministic encoder
    standard_error: float | None  # of the ELBO, over the examples
    reconstruction: float
    kl: float | None
    kl_per_latent: list[float] | None  # None if no closed form is known
    active_units: int | None  # None without an encoder, or with too many latents to count
    num_samples: int
    num_examples: int
    terms: dict[str, float]  # what else the model's family says of its bound, such as KL by level


def evaluate_elbo(
    model: Any,
    params: Params,
    key: Array,
    examples: Any,
    *,
    num_samples: int = 1,
    batch_size: int = 500,
) -> Summary:
    """The mean ELBO of a split with its terms, KL per latent and active units.

    A latent is active if the variance over the examples of its posterior mean, or of one of its
    classes, exceeds 0.01 (Burda et al. 2015, arXiv:1509.00519, sec. 5.2). They are counted if an
    example has at most 10,000 latents.

    Args:
      model: a ``models.Model`` that answers ``terms``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of the samples of z, and of the preprocessing.
      examples: a ``Split``, ``Examples``, a stream or a pytree of arrays [N, ...].
      num_samples: draws of z for each example.
      batch_size: examples computed at a time.

    >>> import jax, jaxvae
    >>> vae = jaxvae.models.vae(
    ...     jaxvae.networks.mlp((), 4), jaxvae.networks.mlp((), 3), jaxvae.posteriors.normal(2),
    ...     jaxvae.likelihoods.bernoulli(), jaxvae.priors.standard_normal(2))
    >>> x, key = jax.numpy.ones((5, 3)), jax.random.key(0)
    >>> summary = jaxvae.evaluation.evaluate_elbo(vae, vae.init(key, x[0]), key, x)
    >>> abs(summary.reconstruction - summary.kl - summary.elbo) < 1e-4
    True
    """
    columns = over_split(
        _elbo_columns(answers(model), num_samples), params, key, examples_of(examples), batch_size
    )
    terms = {name: column.astype(np.float64) for name, column in columns["terms"].items()}
    reconstruction, kl = terms.pop("reconstruction"), terms.pop("kl")
    elbo = reconstruction - kl
    bounded = bool(np.isfinite(elbo).all())
    per_latent = columns.get("kl_per_latent")
    return Summary(
        elbo=float(elbo.mean()) if bounded else None,
        standard_error=_standard_error(elbo) if bounded else None,
        reconstruction=float(reconstruction.mean()),
        kl=float(kl.mean()) if bounded else None,
        kl_per_latent=None if per_latent is None else _means(per_latent).tolist(),
        active_units=_active_units(columns["mean"]) if "mean" in columns else None,
        num_samples=num_samples,
        num_examples=len(elbo),
        terms={name: _known_mean(column) for name, column in terms.items()},
    )


def _known_mean(column: np.ndarray) -> float:
    """The mean over the examples that have the term; nan says that an example has not."""
    known = column[~np.isnan(column)]
    return float(known.mean()) if len(known) else math.nan


def _means(column: np.ndarray) -> np.ndarray:
    return column.astype(np.float64).mean(0)


def _active_units(means: Any) -> int:
    """The number of active units of posterior means, a pytree of [N, latents, ...].

    Every number of a map [h, w, D] is a latent, and the classes [D, C] of a latent are one.
    """

    def active(mean: np.ndarray) -> int:
        variance = mean.astype(np.float64).var(0)
        rows = variance.reshape(len(variance) if variance.ndim == 2 else variance.size, -1)
        return int((rows > ACTIVE_VARIANCE).any(-1).sum())

    return sum(map(active, jax.tree.leaves(means)))


class Likelihoods(NamedTuple):
    """The log-likelihood of a split by importance sampling, and how far to trust it."""

    log_likelihood: float  # mean over the examples, nats
    standard_error: float  # of that mean, over the examples
    effective_samples: float  # mean over the examples
    pareto_k: float | None  # mean over the examples; None if the tail was too short
    pareto_k_above: float | None  # share of examples with k > 0.7, whose estimate is not reliable
    num_samples: int
    num_examples: int
    warning: str | None  # a sentence, where the estimate is not to be trusted


def estimate_log_likelihood(
    model: Any,
    params: Params,
    key: Array,
    examples: Any,
    *,
    num_samples: int = 5000,
    chunk: int = 500,
    batch_size: int = 50,
    progress: Callable[[int], None] = lambda done: None,
) -> Likelihoods:
    """The mean of ``log_likelihood`` over a split, with its diagnostics.

    ``warning`` is a sentence if there are fewer than ten effective samples, or if the Pareto shape
    exceeds 0.7 for most of the examples.

    Args:
      model: a ``models.Model`` that answers ``log_weights``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of the samples of z, and of the preprocessing.
      examples: a ``Split``, ``Examples``, a stream or a pytree of arrays [N, ...].
      num_samples: K, for each example.
      chunk: samples drawn at a time, for each example.
      batch_size: examples at a time. Whatever K is, memory holds ``batch_size * chunk`` decoded
        latents; on a CPU it holds a thousand, or one chunk.
      progress: is called with the number of examples done.

    >>> import jax, jaxvae
    >>> vae = jaxvae.models.vae(
    ...     jaxvae.networks.mlp((), 4), jaxvae.networks.mlp((), 3), jaxvae.posteriors.normal(2),
    ...     jaxvae.likelihoods.bernoulli(), jaxvae.priors.standard_normal(2))
    >>> x, key = jax.numpy.ones((5, 3)), jax.random.key(0)
    >>> estimate = jaxvae.evaluation.estimate_log_likelihood(
    ...     vae, vae.init(key, x[0]), key, x, num_samples=20)
    >>> estimate.log_likelihood < 0 < estimate.effective_samples <= 20
    True
    """
    columns = _log_likelihoods(
        model, params, key, examples, num_samples, chunk, batch_size, progress
    )
    values, effective, k = (np.asarray(column, np.float64) for column in columns)
    known = k[np.isfinite(k)]
    above = float((known > UNRELIABLE_PARETO_K).mean()) if len(known) else None
    mean_k = float(known.mean()) if len(known) else None
    return Likelihoods(
        log_likelihood=float(values.mean()),
        standard_error=_standard_error(values),
        effective_samples=float(effective.mean()),
        pareto_k=mean_k,
        pareto_k_above=above,
        num_samples=num_samples,
        num_examples=len(values),
        warning=_warning(float(effective.mean()), mean_k, above, num_samples),
    )


def _warning(effective: float, k: float | None, above: float | None, samples: int) -> str | None:
    few = effective < min(FEWEST_EFFECTIVE_SAMPLES, samples) * (1 - 1e-5)
    if not few and (above is None or above <= 0.5):
        return None
    tail = "" if k is None else f", Pareto k {k:.2g} (above 0.7 for {above:.0%} of the examples)"
    return (
        f"not to be trusted: {effective:.2g} effective samples of {samples}{tail}; the estimate is "
        "a lower bound that may be far too low; more samples or a better posterior are needed"
    )


def log_likelihoods(
    model: Any,
    params: Params,
    key: Array,
    examples: Any,
    *,
    num_samples: int = 5000,
    chunk: int = 500,
    batch_size: int = 50,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """An estimate of log p(x) for every example of a split, [N] in nats.

    ``estimate_log_likelihood`` returns the mean of these numbers.

    Args:
      model: a ``models.Model`` that answers ``log_weights``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of the samples of z, and of the preprocessing.
      examples: a ``Split``, ``Examples``, a stream or a pytree of arrays [N, ...].
      num_samples: K, for each example.
      chunk: samples drawn at a time, for each example.
      batch_size: examples at a time.
      progress: is called with the number of examples done.
    """
    columns = _log_likelihoods(
        model, params, key, examples, num_samples, chunk, batch_size, progress
    )
    return np.asarray(columns.log_likelihood, np.float64)


def _log_likelihoods(
    model: Any,
    params: Params,
    key: Array,
    examples: Any,
    num_samples: int,
    chunk: int,
    batch_size: int,
    progress: Callable[[int], None],
) -> LogLikelihood:
    """Columns [N]."""
    batch = _likelihood_columns(answers(model), num_samples, chunk)
    return over_split(batch, params, key, examples_of(examples), batch_size, progress)


def bits_per_dim(nats: float, dimensions: int, offset: float = 0.0) -> float:
    """-nats / (D log 2) + offset: the code length of one of D dimensions.

    For a density over pixels scaled to [0, 1], ``offset`` is log2 of the number of levels. With
    uniform dequantization the result then bounds the code length of the discrete image (Theis et
    al. 2016, arXiv:1511.01844, sec. 3.1).
    """
    return -nats / (dimensions * math.log(2)) + offset


def per_dimension(
    nats: float, dimensions: int, levels: int | None, discrete: bool, scaled: bool
) -> tuple[float, str]:
    """A log-likelihood as the code length of one dimension, and its unit.

    The unit is "bits/dim" if x takes a known number of levels. A discrete likelihood has no offset,
    and a density over values scaled to [0, 1] has the offset log2(levels). Any other density is of
    real numbers, whose code has no length. Then -nats / D is returned, in "nats/dim".

    Args:
      nats: the log-likelihood of an example.
      dimensions: D, the number of values in an example.
      levels: how many values each can take; None if they are real numbers.
      discrete: whether the likelihood is one of discrete values.
      scaled: whether a density is of values that are scaled to [0, 1].
    """
    if levels is None or not (discrete or scaled):
        return -nats / dimensions, "nats/dim"
    return bits_per_dim(nats, dimensions, 0.0 if discrete else math.log2(levels)), "bits/dim"


# The compiled functions are kept by model, so that a loop that evaluates often compiles once.


@functools.lru_cache(maxsize=32)
def _elbo_columns(model: Model, num_samples: int) -> Batched:
    require(model, "an ELBO", "terms")
    bound: Any = model.terms

    def one(params: Params, key: Array, raw: Any) -> dict[str, Any]:
        key_x, key_z = jax.random.split(key)
        example = preprocessed(key_x, raw)
        terms = bound(params, key_z, example, num_samples)
        return {"terms": terms} | _posterior_columns(model, params, example)

    return batched(one)


def _posterior_columns(model: Model, params: Params, example: Any) -> dict[str, Any]:
    """The posterior's mean and KL per latent, as far as the model has them."""
    if model.encode is None:
        return {}
    q = model.encode(params, example)
    columns = {"mean": mean_of(q)}
    if sum(leaf.size for leaf in jax.tree.leaves(columns)) > MOST_LATENTS:
        return {}
    if model.prior is not None:
        per_latent = divergences.kl_per_latent(q, model.prior(params, model.parts(example)[1]))
        columns |= {} if per_latent is None else {"kl_per_latent": per_latent}
    return columns


@functools.lru_cache(maxsize=32)
def _likelihood_columns(model: Model, num_samples: int, chunk: int) -> Batched:
    require(model, "a log-likelihood", "log_weights")

    def one(params: Params, key: Array, raw: Any) -> LogLikelihood:
        key_x, key_z = jax.random.split(key)
        return log_likelihood(model, params, key_z, preprocessed(key_x, raw), num_samples, chunk)

    return batched(one, max(LATENTS_ON_CPU // min(chunk, num_samples), 1))


def _standard_error(values: np.ndarray) -> float:
    """The standard error of a mean over independent examples; 0 for a single example."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
