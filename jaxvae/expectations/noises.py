"""The noises of estimators, and their exact laws.

A law consists of all states, of Gauss-Hermite nodes, or of cells of uniform numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxvae.distributions import (
    Bernoulli,
    Categorical,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    logistic,
    sample_noise,
)
from jaxvae.expectations.contract import Noise

Array = jax.Array
STATES = 2**16  # the most states that enumeration takes
NODES = 2**22  # the most nodes that a law has


def states(q: Any) -> Array:
    """All values of a Bernoulli, a Categorical or a OneHotCategorical: [C^D, *event].

    Raises ValueError for more than 2^16 states, and for other families.
    """
    if not isinstance(q, Bernoulli | Categorical | OneHotCategorical):
        raise ValueError(f"the states of a {type(q).__name__} cannot be enumerated")
    classes, shape = 2, q.event_shape
    if not isinstance(q, Bernoulli):
        classes = q.logits.shape[-1]
        shape = q.logits.shape[:-1]
    size = int(np.prod(shape))
    if size * np.log2(classes) > np.log2(STATES):
        raise ValueError(f"enumeration takes at most {STATES} states; q has {classes}^{size}")
    z = np.array(list(itertools.product(range(classes), repeat=size))).reshape(-1, *shape)
    if isinstance(q, OneHotCategorical):
        z = np.eye(classes)[z]
    return jnp.asarray(z, int if isinstance(q, Categorical) else jnp.result_type(q.logits))


def product(*factors: tuple[Any, Any]) -> tuple[Any, Any]:
    """The law of a tuple of independent noises, from the laws of each."""
    sizes = [len(weights) for _, weights in factors]
    if np.prod(sizes, dtype=float) > NODES:
        raise ValueError(
            f"an exact law would have {' x '.join(map(str, sizes))} nodes; the most is {NODES}"
        )
    grid = np.indices(sizes).reshape(len(sizes), -1)
    noises = tuple(
        jax.tree.map(lambda a, i=i: jnp.asarray(a)[i], noise)
        for (noise, _), i in zip(factors, grid, strict=True)
    )
    return noises, np.prod([np.asarray(w)[i] for (_, w), i in zip(factors, grid, strict=True)], 0)


def power(one: tuple[Any, Any], times: int) -> tuple[Any, Any]:
    """The law of ``times`` independent copies, stacked in front: [M, times, ...]."""
    noises, weights = product(*[one] * times)
    return jnp.stack(noises, 1), weights


# Samples


def _samples_law(q: Any, num_samples: int, share: float = 1.0) -> tuple[Any, Any]:
    if isinstance(q, Normal | MultivariateNormal):
        dimensions = num_samples * int(np.prod(q.event_shape))
        count = max(int(share * min(100, NODES ** (1 / (2 * dimensions)) + 16)), 2)
        x, weights = np.polynomial.hermite_e.hermegauss(count)
        noise, weights = power((x, weights / weights.sum()), dimensions)
        return noise.reshape(-1, num_samples, *q.event_shape), weights
    z = states(q)
    return power((z, np.exp(np.asarray(jax.vmap(q.log_prob)(z), np.float64))), num_samples)


def _coarser_samples(q: Any, num_samples: int) -> tuple[Any, Any] | None:
    return _samples_law(q, num_samples, 0.7) if isinstance(q, Normal | MultivariateNormal) else None


def sample_law(q: Any, num_samples: int) -> tuple[Any, Any]:
    noise, weights = _samples_law(q, 1)
    return noise[:, 0], weights


def _coarse_sample(q: Any, num_samples: int) -> tuple[Any, Any] | None:
    exact = _coarser_samples(q, 1)
    return exact and (exact[0][:, 0], exact[1])


many_samples = Noise(lambda key, q, k: sample_noise(q, key, (k,)), _samples_law, _coarser_samples)
one_sample = Noise(lambda key, q, k: sample_noise(q, key, (1,))[0], sample_law, _coarse_sample)


# Noise that is added to logits. The sign of the sum, or its largest entry, gives a sample.


def perturb(key: Array, q: Bernoulli | OneHotCategorical) -> Array:
    """Logistic noise for a Bernoulli, Gumbel noise for a OneHotCategorical."""
    if isinstance(q, Bernoulli):
        return logistic(key, q.event_shape, q.logits.dtype)
    return jax.random.gumbel(key, q.event_shape, q.logits.dtype, mode="high")


def _legendre(edges: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights over the cells between the edges."""
    x, weights = np.polynomial.legendre.leggauss(count)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (x + 1)).ravel(), (half * weights).ravel()


def _uniform_cells(logit: float) -> tuple[np.ndarray, np.ndarray]:
    """Two nodes of u = s(l) in each cell between s(-|phi|) and s(|phi|).

    They are exact for functions that are cubic in u within the cells.
    """
    u, weights = _legendre(np.unique([0.0, 1 / (1 + np.exp(abs(logit))), 0.5]), 2)
    l = np.log(u) - np.log1p(-u)
    return np.concatenate([l, -l]), np.concatenate([weights, weights])


def _logistic_cells(logit: float) -> tuple[np.ndarray, np.ndarray]:
    """Many nodes of l in each cell between -|phi| and |phi|, for smooth functions."""
    edge = abs(logit)
    l, weights = _legendre(np.unique([-edge - 40, -edge, edge, edge + 40]), 120)
    return l, weights / (2 + np.exp(l) + np.exp(-l))


def _perturbation_law(cells: Callable) -> Callable[[Any, int], tuple[Any, Any]]:
    def exact(q: Any, num_samples: int) -> tuple[Any, Any]:
        if not isinstance(q, Bernoulli):
            raise ValueError(
                f"the exact law of the noise of a {type(q).__name__} is not known: use Monte Carlo"
            )
        noises, weights = product(
            *[cells(float(logit)) for logit in np.ravel(np.asarray(q.logits))]
        )
        return jnp.stack(noises, 1).reshape(-1, *q.event_shape), weights

    return exact


_one, _smooth = _perturbation_law(_uniform_cells), _perturbation_law(_logistic_cells)
perturbation = Noise(lambda key, q, k: perturb(key, q), _one)
smooth_perturbation = perturbation._replace(exact=_smooth)
smooth_perturbations = Noise(
    lambda key, q, k: tuple(perturb(key, q) for key in jax.random.split(key)),
    lambda q, k: product(_smooth(q, k), _smooth(q, k)),
)


def hard_sample(q: Bernoulli | OneHotCategorical, perturbed: Array) -> Array:
    """The sample that perturbed logits give."""
    if isinstance(q, Bernoulli):
        return lax.stop_gradient((perturbed > 0).astype(q.logits.dtype))
    return jax.nn.one_hot(perturbed.argmax(-1), q.logits.shape[-1], dtype=q.logits.dtype)


def relaxed_sample(q: Bernoulli | OneHotCategorical, perturbed: Array, temperature: Any) -> Array:
    """The relaxation of the sample."""
    activation = jax.nn.sigmoid if isinstance(q, Bernoulli) else jax.nn.softmax
    return activation(perturbed / temperature)
