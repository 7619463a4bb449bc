"""The parts of the ELBO's KL term over a whole split, in nats.

q(z) = 1/N sum_n q(z|x_n) is the mixture of the posteriors of *all* N examples, so it has no bias of
a minibatch. The posteriors of a split are one distribution with stacked leaves [N, D], as
``evaluation.posteriors_of`` gives them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp

from jaxvae.datasets import num_examples
from jaxvae.distributions import Mixture
from jaxvae.distributions.contract import Factorized

Array = jax.Array
DRAWS = 64  # in one block
BLOCK = 2**20  # log-densities in one block of draws and posteriors


class Estimate(NamedTuple):
    """A mean over draws."""

    value: float  # nats
    # The standard error of independent draws. Where every example was drawn equally often, the
    # spread between the examples adds no error, and this is too large.
    standard_error: float


class Surgery(NamedTuple):
    """The two parts of KL, which sum to ``kl``."""

    kl: Estimate  # mean over the examples of KL(q(z|x_n) || p(z))
    mutual_information: Estimate  # of z and the index n, between 0 and log N
    marginal_kl: Estimate  # KL(q(z) || p(z))


class Decomposition(NamedTuple):
    """The three parts of KL.

    ``kl`` is the sum of the next three fields, and ``marginal_kl`` is the sum of the last two of
    these.
    """

    kl: Estimate  # mean over the examples of KL(q(z|x_n) || p(z))
    mutual_information: Estimate  # of z and the index n, between 0 and log N
    total_correlation: Estimate  # KL(q(z) || prod_j q(z_j))
    dimension_wise_kl: Estimate  # sum_j KL(q(z_j) || p(z_j))
    marginal_kl: Estimate  # KL(q(z) || p(z))
    kl_per_dimension: np.ndarray  # [D] KL(q(z_j) || p(z_j))


def aggregated_posterior(q: Any) -> Mixture:
    """The distribution q(z) = 1/N sum_n q(z|x_n) of posteriors stacked [N, ...].

    Its log-density computes N terms for each z at once. The functions below compute them in blocks.
    """
    return Mixture(jnp.zeros(num_examples(q)), q)


def surgery(q: Any, p: Any, key: Array, num_draws: int = 10_000) -> Surgery:
    """ELBO surgery, mean_n KL(q(z|x_n) || p) = I(z; n) + KL(q(z) || p).

    Hoffman & Johnson 2016. I = E[log q(z|x_n) - log q(z)], with E over n and z ~ q(z|x_n).

    Args:
      q: the posteriors of a split, any family with every leaf stacked ``[N, ...]``.
      p: the prior, any distribution.
      key: the key of the draws.
      num_draws: draws of (n, z) in all. They are spread over the examples as evenly as possible.
        The work is N * num_draws densities, and the memory is bounded.

    Raises ValueError if posteriors and prior are over different events.
    """
    posterior, mixture, prior = _columns(q, p, key, num_draws, _joint)
    return Surgery(
        _estimate(posterior - prior), _estimate(posterior - mixture), _estimate(mixture - prior)
    )


def decomposition(q: Any, p: Any, key: Array, num_draws: int = 10_000) -> Decomposition:
    """Index-code mutual information, total correlation and dimension-wise KL.

    mean_n KL(q(z|x_n) || p) = I(z; n) + KL(q(z) || prod_j q(z_j)) + sum_j KL(q(z_j) || p(z_j)) with
    q(z_j) = 1/N sum_n q(z_j|x_n) (Chen et al. 2018, arXiv:1802.04942). All are means over the same
    draws, so the sum is exact.

    Args:
      q: the posteriors of a split, of a family with independent coordinates such as ``Normal``,
        leaves ``[N, D]``.
      p: a prior with independent coordinates over [D]; ``surgery`` takes any other.
      key: the key of the draws.
      num_draws: as in ``surgery``; the work is N * num_draws * D densities.

    Raises ValueError if q or p has no density for each coordinate, or if their events are not the
    same [D].
    """
    _check_factorized("the posterior", q)
    _check_factorized("the prior", p)
    posterior, mixture, prior = _columns(q, p, key, num_draws, _joint_and_coordinates)
    joint, coordinates = mixture[:, 0], mixture[:, 1:] - prior[:, 1:]
    return Decomposition(
        kl=_estimate(posterior[:, 0] - prior[:, 0]),
        mutual_information=_estimate(posterior[:, 0] - joint),
        total_correlation=_estimate(joint - mixture[:, 1:].sum(1)),
        dimension_wise_kl=_estimate(mixture[:, 1:].sum(1) - prior[:, 0]),
        marginal_kl=_estimate(joint - prior[:, 0]),
        kl_per_dimension=coordinates.mean(0),
    )


Density = Callable[[Any, Array], Array]  # (distribution, z [*event]) -> log-densities [...]


def _joint(distribution: Any, z: Array) -> Array:
    return distribution.log_prob(z)


def _joint_and_coordinates(distribution: Any, z: Array) -> Array:
    """log p(z) and log p(z_j), [1 + D]."""
    coordinates = jnp.broadcast_to(distribution.log_density(z), z.shape)
    return jnp.concatenate([coordinates.sum(keepdims=True), coordinates])


def _columns(q: Any, p: Any, key: Array, num_draws: int, density: Density) -> list[np.ndarray]:
    """log q(z|x_n), log q(z) and log p(z) of every draw, [S, ...] each in float64."""
    if num_draws < 2:
        raise ValueError(f"a standard error needs num_draws >= 2; num_draws was {num_draws}")
    _check_same_event(q, p)
    width = jax.eval_shape(density, p, jax.eval_shape(p.sample, key)).size
    blocks = _blocks(q, width)
    parts = [
        _of_draws(drawn_from, blocks, p, key, places, density)
        for drawn_from, places in _chosen(q, key, -(-num_draws // DRAWS) * DRAWS)
    ]
    return [
        np.concatenate(column)[:num_draws].astype(np.float64) for column in zip(*parts, strict=True)
    ]


def _chosen(q: Any, key: Array, count: int) -> Iterator[tuple[Any, np.ndarray]]:
    """Posteriors to draw from, and the places of the draws.

    The examples come in a random order, over and over.
    """
    n = num_examples(q)
    order = np.random.default_rng(np.asarray(jax.random.key_data(key))).permutation(n)
    for places in np.arange(count, dtype=np.int32).reshape(-1, DRAWS):
        rows = order[places % n]
        yield jax.tree.map(lambda a, rows=rows: np.asarray(a)[rows], q), places


def _blocks(q: Any, width: int) -> tuple[Any, Array]:
    """The posteriors [blocks, M, ...] and their log-weights [blocks, M].

    The log-weights are log 1/N, and -inf for the filling of the last block. A block of draws has
    ``BLOCK`` log-densities, ``width`` for each draw and posterior.
    """
    n = num_examples(q)
    size = min(max(BLOCK // (DRAWS * width), 1), n)
    rows = np.arange(-(-n // size) * size).reshape(-1, size)
    log_weights = np.where(rows < n, -math.log(n), -np.inf).astype(np.float32)
    return jax.device_put(
        (jax.tree.map(lambda a: np.asarray(a)[np.minimum(rows, n - 1)], q), log_weights)
    )


@functools.partial(jax.jit, static_argnames="density")
def _of_draws(
    chosen: Any, blocks: Any, p: Any, key: Array, places: Array, density: Density
) -> tuple[Array, Array, Array]:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
    z = jax.vmap(lambda q, key: q.sample(key))(chosen, keys)  # [B, *event]
    posterior = jax.vmap(density)(chosen, z)
    each = jax.vmap(jax.vmap(density, (None, 0)), (0, None))  # [M, B, ...]

    def add(total: Array, block: Any) -> tuple[Array, None]:
        posteriors, log_weights = block
        terms = jax.vmap(jnp.add)(log_weights, each(posteriors, z))
        return jnp.logaddexp(total, logsumexp(terms, 0)), None

    mixture, _ = lax.scan(add, jnp.full_like(posterior, -jnp.inf), blocks)
    return posterior, mixture, jax.vmap(density, (None, 0))(p, z)


def _estimate(column: np.ndarray) -> Estimate:
    return Estimate(float(column.mean()), float(column.std(ddof=1) / math.sqrt(len(column))))


def is_factorized(distribution: Any) -> bool:
    """Whether a distribution has a density for each coordinate."""
    return (
        isinstance(distribution, Factorized)
        and type(distribution).log_density is not Factorized.log_density
    )


def _check_factorized(name: str, distribution: Any) -> None:
    if not is_factorized(distribution):
        raise ValueError(
            f"{name} is a {type(distribution).__name__}, which has no density for each "
            "coordinate; decomposition takes families such as Normal. surgery takes any, and "
            "splits KL in two."
        )


def _check_same_event(q: Any, p: Any) -> None:
    one = jax.tree.map(lambda a: np.asarray(a)[0], q)
    key = jax.random.key(0)
    events = [
        jax.tree.map(lambda z: z.shape, jax.eval_shape(lambda d=d: d.sample(key))) for d in (one, p)
    ]
    if events[0] != events[1]:
        raise ValueError(
            f"one posterior is over {events[0]} and the prior over {events[1]}: they must agree. "
            "Posteriors are stacked along the first axis of every leaf, [N, ...]."
        )
