"""Moments over the law of an estimator's noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.expectations.contract import Estimator

Array = jax.Array


class Moments(NamedTuple):
    """Of an estimator's gradient, trees like the parameters."""

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
    """Mean and variance of a gradient estimate over the law of its noise, sum_m p_m g_m and sum_m p_m (g_m - mean)^2.

    Args:
      estimator: of ``expectations`` or ``bounds``, one whose noise has a law.
      make: params -> (q, f), or (q, f, more settings of the estimator).
      num_samples: K, for joint estimators; the others have the variance of one draw divided by K.
      batch: nodes that are evaluated at a time.
      settings: the estimator's.

    Needs 64-bit numbers (``jax.enable_x64``). Raises ValueError where there is no law or it has too many nodes.
    """
    if not jax.config.read("jax_enable_x64"):
        raise ValueError("exact moments are sums of 64-bit numbers: run within jax.enable_x64(True)")
    k = estimator.least if num_samples is None else num_samples
    noise, weights = estimator.noise.law(make(params)[0], k if estimator.joint else 1)

    def estimate(params: Any, noise: Any) -> Array:
        q, f, *more = make(params)
        return estimator.estimate(noise, q, f, **settings, **(more[0] if more else {}))

    one = lambda noise: jax.grad(estimate)(params, noise)
    gradients = jax.jit(lambda noise: jax.lax.map(one, noise, batch_size=batch))(jax.tree.map(jnp.asarray, noise))
    over = lambda g: np.tensordot(weights, g, 1)
    mean = jax.tree.map(over, gradients)
    variance = jax.tree.map(lambda g, m: over((np.asarray(g) - m) ** 2), gradients, mean)
    return Moments(mean, jax.tree.map(lambda v: v / (1 if estimator.joint else k), variance))
