"""The exact mean and variance of an estimator, over all values of its noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.expectations.contract import Estimator

Array = jax.Array


CONVERGED = 1e-8  # what fewer nodes may change, of the largest moment or of one


class Moments(NamedTuple):
    """The moments of an estimator's gradient, trees like the parameters."""

    mean: Any
    variance: Any  # of one estimate, coordinate by coordinate; its sum is the covariance's trace


def exact(
    estimator: Estimator,
    make: Callable[[Any], tuple],
    params: Any,
    num_samples: int | None = None,
    batch: int = 2**14,
    **settings: Any,
) -> Moments:
    """Mean and variance of a gradient over its noise: sum_m p_m g_m, sum_m p_m (g_m - mean)^2.

    Args:
      estimator: of ``expectations`` or ``bounds``, one whose noise has a known distribution.
      make: params -> (q, f), or (q, f, more settings of the estimator).
      num_samples: K, for joint estimators; the others have the variance of one draw divided by K.
      batch: nodes that are evaluated at a time.
      settings: the estimator's.

    Continuous noise is integrated by quadrature, which is compared with a rule of fewer nodes. It
    needs 64-bit numbers (``jax.enable_x64``). Raises ValueError if the distribution is not known,
    has too many nodes, or has too few to converge.
    """
    if not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "exact moments are sums of 64-bit numbers: run within jax.enable_x64(True)"
        )
    k = estimator.min_samples if num_samples is None else num_samples
    of_noise = make(params)[0], k if estimator.uses_samples_jointly else 1

    def estimate(params: Any, noise: Any) -> Array:
        q, f, *more = make(params)
        return estimator.estimate(noise, q, f, **settings, **(more[0] if more else {}))

    one = lambda noise: jax.grad(estimate)(params, noise)
    many = jax.jit(lambda noise: jax.lax.map(one, noise, batch_size=batch))

    def over(noise: Any, weights: Any) -> Moments:
        gradients = many(jax.tree.map(jnp.asarray, noise))
        mean = jax.tree.map(lambda g: np.tensordot(weights, g, 1), gradients)
        square = lambda g, m: np.tensordot(weights, (np.asarray(g) - m) ** 2, 1)
        return Moments(mean, jax.tree.map(square, gradients, mean))

    found, exact_coarser = (
        over(*estimator.noise.exact(*of_noise)),
        estimator.noise.exact_coarser(*of_noise),
    )
    if exact_coarser is not None:
        _check_converged(estimator.__name__, found, over(*exact_coarser))
    return Moments(
        found.mean,
        jax.tree.map(lambda v: v / (1 if estimator.uses_samples_jointly else k), found.variance),
    )


def _check_converged(name: str, found: Moments, exact_coarser: Moments) -> None:
    sizes = jax.tree.leaves(jax.tree.map(np.abs, found))
    largest = max(1.0, *(float(size.max(initial=0.0)) for size in sizes))
    off = max(
        float(np.abs(a - b).max(initial=0.0))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact_coarser), strict=True)
    )
    if off > CONVERGED * largest:
        raise ValueError(
            f"quadrature has not converged for {name} (it moves by {off:.0e}): use Monte Carlo"
        )
