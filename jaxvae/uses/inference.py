"""Posterior inference of one example beyond the encoder: by gradient, and what it gains.

Hoffman et al. 2013, arXiv:1206.7051; Kim et al. 2018, arXiv:1802.02550; Cremer et al. 2018,
arXiv:1801.03558. With L[q] = E_q [log p(x, z) - log q(z)], q_enc the encoder's posterior, and q*
the best member of its family for one x, the inference gap log p(x) - L[q_enc] is the approximation
gap log p(x) - L[q*] plus the amortization gap L[q*] - L[q_enc]. All values are in nats.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxvae import bounds, evaluation, models
from jaxvae.contracts import Array, Params
from jaxvae.datasets import examples_of, preprocessed
from jaxvae.distributions import MultivariateNormal, Normal, PowerSpherical, VonMisesFisher, mean_of
from jaxvae.evaluation.columns import Batched, batched, over_split, require
from jaxvae.models import Model, answers
from jaxvae.uses import annealing, targets
from jaxvae.uses.estimates import Estimate, mean_of_column

USE = "refinement"
FRESH_DRAWS = 100  # of z on which bounds are compared, at a time
# Fields of distributions that must be positive, fields that all examples share, and families whose
# ``loc`` has unit length.
POSITIVE = frozenset({"scale", "concentration", "rate", "a", "b", "df"})
SHARED = frozenset({"params"})
SPHERICAL = PowerSpherical, VonMisesFisher


# Parameters of a distribution without constraints


def _name(path: tuple) -> str:
    return next((k.name for k in reversed(path) if isinstance(k, jax.tree_util.GetAttrKey)), "")


def _held(path: tuple, leaf: Any) -> bool:
    """Whether a leaf stays as it is: numbers that all examples share, and integers."""
    names = {k.name for k in path if isinstance(k, jax.tree_util.GetAttrKey)}
    return bool(names & SHARED) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def unconstrained(q: Any) -> tuple[list[Array], Callable[[list[Array]], Any]]:
    """The parameters of a distribution as numbers without constraints, and the way back.

    Positive fields become their logarithm. The diagonal of a triangular scale does too, and what is
    below it is relative to it. Parameters that all examples share, such as a flow's, stay.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(q)
    free = [not _held(path, leaf) for path, leaf in leaves]
    start = [_freed(_name(path), jnp.asarray(leaf)) for path, leaf in leaves]

    def back(numbers: list[Array]) -> Any:
        given = iter(numbers)
        made = [
            _bound(_name(path), next(given)) if is_free else leaf
            for (path, leaf), is_free in zip(leaves, free, strict=True)
        ]
        return _on_spheres(jax.tree_util.tree_unflatten(structure, made))

    return [number for number, is_free in zip(start, free, strict=True) if is_free], back


def _freed(name: str, value: Array) -> Array:
    if name in POSITIVE:
        return jnp.log(value)
    if name == "scale_tril":
        diagonal = jnp.diagonal(value)
        return jnp.tril(value / diagonal[:, None], -1) + jnp.diag(jnp.log(jnp.abs(diagonal)))
    return value


def _bound(name: str, number: Array) -> Array:
    if name in POSITIVE:
        return jnp.exp(number)
    if name == "scale_tril":
        scale = jnp.exp(jnp.diagonal(number))[:, None]
        return scale * (jnp.tril(number, -1) + jnp.eye(len(number), dtype=number.dtype))
    return number


def _on_spheres(q: Any) -> Any:
    """The distribution with directions of unit length."""

    def one(node: Any) -> Any:
        if not isinstance(node, SPHERICAL):
            return node
        return dataclasses.replace(node, loc=node.loc / jnp.linalg.norm(node.loc))

    return jax.tree.map(one, q, is_leaf=lambda node: isinstance(node, SPHERICAL))


# Refinement


def refined(
    model: Any,
    params: Params,
    key: Array,
    x: Any,
    num_steps: int = 500,
    learning_rate: float = 0.05,
    num_samples: int = 8,
    start: Any = None,
) -> Any:
    """The posterior of one example after steps of gradient from the encoder's, a distribution.

    argmax_q E_q [log p(x, z) - log q(z)] over the parameters of q(z|x), in its own family (Hoffman
    et al. 2013, arXiv:1206.7051). Steps are of Adam, with a learning rate that falls to 0. The
    gradient leaves out the score where the density is known at given z (Roeder et al. 2017,
    arXiv:1703.09194), so it has no noise at an exact posterior. The bound of the result is to be
    estimated on other draws, which another key gives.

    >>> import jaxvae
    >>> vae = jaxvae.models.vae(
    ...     jaxvae.networks.mlp((), 4), jaxvae.networks.mlp((), 3), jaxvae.posteriors.normal(2),
    ...     jaxvae.likelihoods.bernoulli(), jaxvae.priors.standard_normal(2))
    >>> params, key, x = vae.init(jax.random.key(0), jnp.ones(3)), jax.random.key(1), jnp.ones(3)
    >>> refined(vae, params, key, x, num_steps=2).scale.shape
    (2,)

    Args:
      model: a ``models.Model`` that answers ``encode`` and ``log_joint``, or what
        ``models.answers`` takes.
      params: its parameters.
      key: the key of all draws.
      x: one example, as the model takes it.
      num_steps: steps of Adam.
      learning_rate: the learning rate of the first step.
      num_samples: draws of z in a step.
      start: a distribution to start from, of any family; None is the encoder's posterior.

    Raises ValueError if draws of the posterior have no gradient in its parameters.
    """
    model = answers(model)
    require(model, USE, "encode", "log_joint")
    q = model.encode(params, x) if start is None else start
    targets.refuse(q, USE, targets.DISCRETE | targets.NO_DENSITY)
    targets.draw_of(q, USE)
    log_joint: Any = lambda z: model.log_joint(params, x, z)
    bound = bounds.stl if _has_density(q) else bounds.elbo
    numbers, back = unconstrained(q)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def loss(numbers: list[Array], key: Array) -> Array:
        return -bound(key, back(numbers), log_joint, num_samples)

    def step(state: tuple, key: Array) -> tuple[tuple, None]:
        numbers, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(numbers, key), moments)
        return (optax.apply_updates(numbers, updates), moments), None

    keys = jax.random.split(key, num_steps)
    (numbers, _), _ = lax.scan(step, (numbers, optimizer.init(numbers)), keys)
    return back(numbers)


def _has_density(q: Any) -> bool:
    """Whether log q(z) is known at given z, and z is a function of noise."""
    if not hasattr(q, "from_noise"):
        return False
    try:
        jax.eval_shape(lambda: q.log_prob(q.sample(jax.random.key(0))))
    except TypeError:  # a flow without an inverse
        return False
    return True


def is_vector(q: Any) -> bool:
    """Whether draws of a density are vectors [D]."""
    draw = jax.eval_shape(q.sample, jax.random.key(0))
    return getattr(draw, "ndim", None) == 1


def full_covariance(q: Any, draws: int = 64) -> MultivariateNormal:
    """A full-covariance Gaussian with the mean and the deviations of a density of z [D].

    The deviations are of ``draws`` draws with a fixed key, unless the density is Gaussian.
    """
    if isinstance(q, MultivariateNormal):
        return q
    if isinstance(q, Normal):
        return MultivariateNormal(q.loc, jnp.diag(q.scale))
    z = q.sample(jax.random.key(0), (draws,))
    return MultivariateNormal(mean_of(q), jnp.diag(z.std(0)))


def elbo_of(
    model: Model, params: Params, key: Array, x: Any, q: Any, num_samples: int = 5000
) -> Array:
    """E_q [log p(x, z) - log q(z)] of an example for any density q of z, from draws of z.

    The same key gives the same noise to two members of a family.

    Args:
      model: a ``models.Model`` that answers ``log_joint``.
      params: its parameters.
      key: the key of the draws.
      x: one example, as the model takes it.
      q: a density of z.
      num_samples: draws of z, of which memory holds ``FRESH_DRAWS``.
    """
    log_joint: Any = lambda z: model.log_joint(params, x, z)  # type: ignore[misc]
    chunk = min(FRESH_DRAWS, num_samples)
    one = lambda key: bounds.log_weights(key, q, log_joint, chunk).mean()
    return lax.map(one, jax.random.split(key, -(-num_samples // chunk))).mean()


# The gap


class Gaps(NamedTuple):
    """The inference gap of a split, taken apart. Means over the examples, in nats."""

    encoder: Estimate  # L[q_enc]
    refined: Estimate  # L[q*], of the encoder's family
    full_covariance: Estimate | None  # L[q*] of all Gaussians; None if z is no vector
    log_likelihood: Estimate  # the better one of the two below
    importance: Estimate  # importance-weighted, with draws of the refined q
    annealed: Estimate  # annealed importance sampling from the refined q
    amortization: Estimate  # L[q*] - L[q_enc]
    approximation: Estimate  # log p(x) - L[q*]
    correlation: Estimate | None  # L[q*] of all Gaussians - L[q*]
    improved: float  # share of the examples whose bound rose
    effective_samples: float  # mean over the examples, of the importance weights
    num_steps: int
    num_examples: int


class _Column(NamedTuple):
    encoder: Array
    refined: Array
    full_covariance: Array
    importance: Array
    annealed: Array
    effective_samples: Array


def gaps(
    model: Any,
    params: Params,
    key: Array,
    examples: Any,
    *,
    num_steps: int = 1000,
    learning_rate: float = 0.02,
    num_samples: int = 5000,
    temperatures: int = 100,
    chains: int = 16,
    batch_size: int = 25,
    progress: Callable[[int], None] = lambda done: None,
) -> Gaps:
    """The amortization gap and the approximation gap of a split, with their intervals.

    Cremer et al. 2018, arXiv:1801.03558. All bounds are estimated on fresh draws, the same for both
    members of a family. log p(x) is the larger mean of two lower bounds, both with the refined
    posterior: importance sampling, and annealing. The refined one has full covariance if z is a
    vector.

    Args:
      model: a ``models.Model`` that answers ``encode`` and ``log_joint``, or what
        ``models.answers`` takes.
      params: its parameters.
      key: the key of all draws, and of the preprocessing.
      examples: a ``Split``, ``Examples``, a stream or a pytree of arrays [N, ...].
      num_steps: steps of Adam in each refinement.
      learning_rate: the learning rate of the first step.
      num_samples: fresh draws of z for each bound.
      temperatures: T of annealing.
      chains: K of annealing.
      batch_size: examples at a time.
      progress: is called with the number of examples done.
    """
    settings = num_steps, learning_rate, num_samples, temperatures, chains
    batch = _gap_columns(answers(model), *settings)
    found = over_split(batch, params, key, examples_of(examples), batch_size, progress)
    column = jax.tree.map(lambda each: np.asarray(each, np.float64), found)
    importance, annealed = column.importance, column.annealed
    log_p = max(importance, annealed, key=lambda values: values.mean())
    full = None if np.isnan(column.full_covariance).any() else column.full_covariance
    return Gaps(
        encoder=mean_of_column(column.encoder),
        refined=mean_of_column(column.refined),
        full_covariance=None if full is None else mean_of_column(full),
        log_likelihood=mean_of_column(log_p),
        importance=mean_of_column(importance),
        annealed=mean_of_column(annealed),
        amortization=mean_of_column(column.refined - column.encoder),
        approximation=mean_of_column(log_p - column.refined),
        correlation=None if full is None else mean_of_column(full - column.refined),
        improved=float((column.refined >= column.encoder).mean()),
        effective_samples=float(column.effective_samples.mean()),
        num_steps=num_steps,
        num_examples=len(column.encoder),
    )


@functools.lru_cache(maxsize=32)
def _gap_columns(
    model: Model,
    num_steps: int,
    learning_rate: float,
    num_samples: int,
    temperatures: int,
    chains: int,
) -> Batched:
    def one(params: Params, key: Array, raw: Any) -> _Column:
        key_x, key_z = jax.random.split(key)
        x = preprocessed(key_x, raw)
        keys = jax.random.split(key_z, 5)
        refine = lambda key, start: refined(
            model, params, key, x, num_steps, learning_rate, start=start
        )
        bound = lambda q: elbo_of(model, params, keys[2], x, q, num_samples)
        first = model.encode(params, x)  # type: ignore[misc]
        best = member = refine(keys[0], first)
        of_full = jnp.float32(jnp.nan)
        if is_vector(first) and not isinstance(first, MultivariateNormal):
            best = refine(keys[1], full_covariance(member))
            of_full = bound(best)
        weighted = _with_posterior(model, x, best)
        estimate = evaluation.log_likelihood(weighted, params, keys[3], x, num_samples, FRESH_DRAWS)
        walk = annealing.annealed(model, params, keys[4], x, temperatures, chains, best)
        pair = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, member)
        of_pair = jax.vmap(bound)(pair)
        return _Column(
            of_pair[0],
            of_pair[1],
            of_full,
            estimate.log_likelihood,
            walk.log_likelihood,
            estimate.effective_samples,
        )

    return batched(one)


def _with_posterior(model: Model, x: Any, q: Any) -> models.Model:
    """The model, whose importance weights at x are of draws of q."""

    def log_weights(params: Params, key: Array, example: Any, num_samples: int) -> Array:
        joint = lambda z: model.log_joint(params, x, z)  # type: ignore[misc]
        return bounds.log_weights(key, q, joint, num_samples)

    return model._replace(log_weights=log_weights)
