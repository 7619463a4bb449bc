"""Annealed importance sampling, and bidirectional Monte Carlo on simulated data.

Neal 2001, arXiv:physics/9803008; Grosse et al. 2015, arXiv:1511.02543; Wu et al. 2017,
arXiv:1611.04273. Chains walk from a base density to p(x, z) along one of ``paths``. Their weights
have E w = p(x), so the logarithm of the mean weight is a lower bound on log p(x) in expectation. In
the other direction a chain starts at an exact draw of p(z|x), which is known if x was simulated
from z. Its weights have E 1/w' = 1/p(x), and give an upper bound. It holds for simulated data
alone. All values are in nats.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from jaxvae import evaluation
from jaxvae.contracts import Array, Params
from jaxvae.datasets import examples_of, preprocessed
from jaxvae.evaluation.columns import Batched, batched, over_split, require
from jaxvae.models import Model, answers
from jaxvae.uses import targets
from jaxvae.uses.estimates import Estimate, mean_of_column
from jaxvae.uses.paths import PILOT_CHAINS, Path, both_ways, sigmoid_schedule, tuned, walked

CHUNK = 100  # importance samples of an example that are drawn at a time

Start = Literal["encoder", "prior"]
USE = "annealed importance sampling"


# One example


class Annealed(NamedTuple):
    """An estimate of log p(x) from K chains, and how far to trust it."""

    log_likelihood: Array  # log 1/K sum_k w_k, nats
    chain_error: Array  # its standard error over the chains, by the jackknife
    effective_samples: Array  # (sum w)^2 / sum w^2, between 1 and K
    acceptance: Array  # mean over chains and temperatures
    log_weights: Array  # [K]


def log_mean_exp(log_w: Array) -> Array:
    """log 1/K sum_k exp(log w_k)."""
    return logsumexp(log_w) - math.log(log_w.shape[0])


def jackknife(log_w: Array) -> Array:
    """The standard error of the log of a mean of K weights, from estimates that leave one out.

    sqrt((K - 1) / K sum_k (L_-k - mean L_-k)^2); infinite for a single weight.
    """
    count = log_w.shape[0]
    if count < 2:
        return jnp.float32(jnp.inf)
    share = jnp.exp(log_w - logsumexp(log_w))
    without = jnp.log1p(-jnp.minimum(share, 1 - 1e-7))  # and the same constant for all
    return jnp.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())


def _summary(log_w: Array, acceptance: Array) -> Annealed:
    share = jax.nn.softmax(log_w)
    return Annealed(log_mean_exp(log_w), jackknife(log_w), 1 / (share**2).sum(), acceptance, log_w)


def path_of(
    model: Any,
    params: Params,
    key: Array,
    x: Any,
    num_steps: int = 1000,
    start: Start | Any = "encoder",
    leapfrogs: int = 10,
) -> tuple[Path, Callable[[Array, int], Array]]:
    """The path of an example with step sizes from a pilot run, and draws of its base.

    Args:
      model: a ``models.Model`` that answers ``encode`` and ``log_joint``, or what
        ``models.answers`` takes.
      params: its parameters.
      key: the key of the pilot run.
      x: one example, as the model takes it.
      num_steps: T, the number of temperatures.
      start: the base: "encoder" is q(z|x) and "prior" is p(z). It may also be a density of z.
      leapfrogs: steps of each transition.

    Raises ValueError if the latents are not any real numbers, or the base has no density.
    """
    model = answers(model)
    goal = targets.target(model, params, x, USE)
    base = base_of(model, params, x, start)
    density = targets.density_of(goal, base, USE)
    draws = lambda key, count: targets.raveled(base.sample(key, (count,)))
    betas = sigmoid_schedule(num_steps)
    path = Path(density, goal.log_joint, betas, jnp.ones_like(betas), leapfrogs)
    key_z, key_pilot = jax.random.split(key)
    return tuned(path, key_pilot, draws(key_z, PILOT_CHAINS)), draws


def base_of(model: Model, params: Params, x: Any, start: Start | Any) -> Any:
    """The density that chains start from: q(z|x), p(z), or the one that is given."""
    if not isinstance(start, str):
        return start
    if start == "encoder":
        return model.encode(params, x)  # type: ignore[misc]
    require(model, "annealing from the prior", "prior")
    return model.prior(params, model.parts(x)[1])  # type: ignore[misc]


def annealed(
    model: Any,
    params: Params,
    key: Array,
    x: Any,
    num_steps: int = 1000,
    chains: int = 16,
    start: Start | Any = "encoder",
    leapfrogs: int = 10,
) -> Annealed:
    """log p(x) of one example by annealed importance sampling, in expectation a lower bound.

    Neal 2001, arXiv:physics/9803008, eq. 11, with Hamiltonian transitions. Few chains from few
    temperatures can look tight and be nats too low, so the bound is judged by how it rises with T.

    >>> import jaxvae
    >>> vae = jaxvae.models.vae(
    ...     jaxvae.networks.mlp((), 4), jaxvae.networks.mlp((), 3), jaxvae.posteriors.normal(2),
    ...     jaxvae.likelihoods.bernoulli(), jaxvae.priors.standard_normal(2))
    >>> params, key, x = vae.init(jax.random.key(0), jnp.ones(3)), jax.random.key(1), jnp.ones(3)
    >>> jax.jit(lambda x: annealed(vae, params, key, x, 5, chains=3))(x).log_weights.shape
    (3,)

    Args:
      model: a ``models.Model`` that answers ``encode`` and ``log_joint``, or what
        ``models.answers`` takes.
      params: its parameters.
      key: the key of all draws.
      x: one example, as the model takes it.
      num_steps: T, the number of temperatures.
      chains: K.
      start: the base: "encoder" is q(z|x) and "prior" is p(z). It may also be a density of z.
      leapfrogs: steps of each transition.
    """
    key_pilot, key_z, key_walk = jax.random.split(key, 3)
    path, draws = path_of(model, params, key_pilot, x, num_steps, start, leapfrogs)
    return _summary(*walked(path, key_walk, draws(key_z, chains)))


class Sides(NamedTuple):
    """Both bounds on log p(x) of one simulated example."""

    lower: Annealed
    upper: Annealed  # its ``log_likelihood`` is -log 1/K sum_k 1/w'_k


def both_sides(
    model: Any,
    params: Params,
    key: Array,
    num_steps: int = 1000,
    chains: int = 16,
    start: Start = "encoder",
    leapfrogs: int = 10,
) -> tuple[Sides, Any]:
    """Both bounds on log p(x) of an x that the model draws, and x.

    Grosse et al. 2015, arXiv:1511.02543. z ~ p(z) and x ~ p(x|z) make z an exact draw of p(z|x),
    from which the reverse chains start at beta = 1. The upper bound holds for such x alone.

    Args:
      model: a ``models.Model`` that answers ``encode``, ``decode``, ``draw`` and ``log_joint``, or
        what ``models.answers`` takes.
      params: its parameters.
      key: the key of all draws.
      num_steps: T, the number of temperatures.
      chains: K, in each direction.
      start: the base: "encoder" or "prior".
      leapfrogs: steps of each transition.
    """
    model = answers(model)
    require(model, "the gap on simulated data", "encode", "decode", "draw", "log_joint")
    keys = jax.random.split(key, 5)
    z = model.draw(params, keys[0])
    x = model.decode(params, z).sample(keys[1])
    path, draws = path_of(model, params, keys[2], x, num_steps, start, leapfrogs)
    exact = jnp.tile(targets.raveled(jax.tree.map(lambda a: a[None], z)), (chains, 1))
    starts = jnp.stack([draws(keys[3], chains), exact])
    log_w, acceptance = both_ways(path, jax.random.split(keys[4]), starts)
    forward, reverse = (_summary(*each) for each in zip(log_w, acceptance, strict=True))
    upper = reverse._replace(log_likelihood=-reverse.log_likelihood, log_weights=-log_w[1])
    return Sides(forward, upper), x


# Many examples


class Comparison(NamedTuple):
    """log p(x) of a split by annealing, beside the importance-weighted bound."""

    annealed: Estimate  # mean over the examples
    importance: Estimate  # the importance-weighted bound of the same examples
    difference: Estimate  # annealed - importance, paired by example
    chain_error: float  # the part of the error of ``annealed`` that more chains would lower
    effective_samples: float  # mean over the examples, of the chains
    acceptance: float
    num_steps: int
    chains: int
    num_samples: int  # of the importance-weighted bound
    num_examples: int


def compared(
    model: Any,
    params: Params,
    key: Array,
    examples: Any,
    *,
    num_steps: int = 1000,
    chains: int = 16,
    start: Start = "encoder",
    num_samples: int = 5000,
    batch_size: int = 25,
    progress: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """``annealed`` and the importance-weighted bound of every example of a split.

    Both see the same examples, after the same preprocessing, so their difference is paired.

    Args:
      model: a ``models.Model`` that answers ``encode``, ``log_joint`` and ``log_weights``, or what
        ``models.answers`` takes.
      params: its parameters.
      key: the key of all draws, and of the preprocessing.
      examples: a ``Split``, ``Examples``, a stream or a pytree of arrays [N, ...].
      num_steps: T, the number of temperatures.
      chains: K of annealing, for each example.
      start: the base: "encoder" or "prior".
      num_samples: K of the importance-weighted bound.
      batch_size: examples at a time.
      progress: is called with the number of examples done.
    """
    model, split = answers(model), examples_of(examples)
    batch = _columns(model, num_steps, chains, start)
    found = over_split(batch, params, key, split, batch_size, progress)
    values = np.asarray(found.log_likelihood, np.float64)
    bound = evaluation.log_likelihoods(
        model, params, key, split, num_samples=num_samples, batch_size=batch_size
    )
    return Comparison(
        annealed=mean_of_column(values),
        importance=mean_of_column(bound),
        difference=mean_of_column(values - bound),
        chain_error=_of_mean(found.chain_error),
        effective_samples=float(found.effective_samples.mean()),
        acceptance=float(found.acceptance.mean()),
        num_steps=num_steps,
        chains=chains,
        num_samples=num_samples,
        num_examples=len(values),
    )


class Sandwich(NamedTuple):
    """log p(x) between two bounds, on data that the model has simulated."""

    lower: Estimate  # forward: mean over the examples
    upper: Estimate  # reverse
    gap: Estimate  # upper - lower, paired by example
    importance: Estimate  # the importance-weighted bound of the same examples
    chain_error: float  # the part of the error of the gap that more chains would lower
    effective_samples: float  # mean over the examples, of the forward chains
    acceptance: float
    num_steps: int
    chains: int
    num_samples: int  # of the importance-weighted bound
    num_examples: int


def sandwich(
    model: Any,
    params: Params,
    key: Array,
    *,
    num_examples: int = 100,
    num_steps: int = 1000,
    chains: int = 16,
    start: Start = "encoder",
    num_samples: int = 5000,
    batch_size: int = 25,
    progress: Callable[[int], None] = lambda done: None,
) -> Sandwich:
    """Bidirectional Monte Carlo: both bounds on log p(x) of data that the model simulates.

    Args:
      model: a ``models.Model`` that answers ``encode``, ``decode``, ``draw``, ``log_joint`` and
        ``log_weights``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of all draws.
      num_examples: how many x are simulated.
      num_steps: T, the number of temperatures.
      chains: K, in each direction.
      start: the base: "encoder" or "prior".
      num_samples: K of the importance-weighted bound.
      batch_size: examples at a time.
      progress: is called with the number of examples done.

    Raises ValueError for a model that x alone does not tell, such as a conditional one.
    """
    model = answers(model)
    batch = _both_columns(model, num_steps, chains, start, num_samples)
    rows = np.arange(num_examples)
    sides, bound = over_split(batch, params, key, rows, batch_size, progress)
    lower, upper = (np.asarray(side.log_likelihood, np.float64) for side in sides)
    errors = np.hypot(sides.lower.chain_error, sides.upper.chain_error)
    return Sandwich(
        lower=mean_of_column(lower),
        upper=mean_of_column(upper),
        gap=mean_of_column(upper - lower),
        importance=mean_of_column(bound),
        chain_error=_of_mean(errors),
        effective_samples=float(sides.lower.effective_samples.mean()),
        acceptance=float(sides.lower.acceptance.mean()),
        num_steps=num_steps,
        chains=chains,
        num_samples=num_samples,
        num_examples=num_examples,
    )


def _of_mean(errors: Any) -> float:
    """The standard error of a mean of independent estimates."""
    errors = np.asarray(errors, np.float64)
    return float(np.sqrt((errors**2).sum()) / len(errors))


@functools.lru_cache(maxsize=32)
def _columns(model: Model, num_steps: int, chains: int, start: Start) -> Batched:
    def one(params: Params, key: Array, raw: Any) -> Annealed:
        key_x, key_z = jax.random.split(key)
        example = preprocessed(key_x, raw)
        return annealed(model, params, key_z, example, num_steps, chains, start)

    return batched(one)


@functools.lru_cache(maxsize=32)
def _both_columns(
    model: Model, num_steps: int, chains: int, start: Start, num_samples: int
) -> Batched:
    def one(params: Params, key: Array, row: Any) -> tuple[Sides, Array]:
        key_sides, key_bound = jax.random.split(key)
        sides, x = both_sides(model, params, key_sides, num_steps, chains, start)
        bound = evaluation.log_likelihood(model, params, key_bound, x, num_samples, CHUNK)
        return sides, bound.log_likelihood

    return batched(one)
