"""Invariances of an estimator, measured draw by draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.distributions import Bernoulli, OneHotCategorical
from jaxvae.expectations.contract import Estimator
from jaxvae.measurements.exactly import exact

Array = jax.Array
SATURATED = 30.0


def invariances(
    estimator: Estimator,
    q: Any,
    f: Callable[[Array], Array],
    key: Array,
    num_samples: int | None = None,
    num_draws: int = 256,
    **settings: Any,
) -> dict[str, float | None]:
    """Numbers that are zero, up to rounding, if an estimator has the invariance.

    A number is None if the invariance cannot be measured.

    * ``constant``: the largest change of a gradient when 8 is added to f, over the root mean square
      of the gradients. No mean may change. With leave-one-out baselines and antithetic pairs no
      draw changes either.
    * ``relabeled``: the change of the variance when values are renamed in q and f alike, over the
      variance. Bits become 1 - z, and classes move on by one. It needs an exact law.
    * ``saturated``: the largest gradient at logits of +-30. The true gradient is below 1e-12 times
      the range of f.
    * ``float32``: the largest difference of float32 from float64 gradients of the same noise, over
      their root mean square.

    Args:
      key: the key of the draws.
      estimator: the estimator.
      q: the distribution.
      f: the function of z.
      num_samples: K; None is the fewest that the estimator needs.
      num_draws: how many gradients are drawn.
      settings: the estimator's settings.
    """
    keys = jax.random.split(key, num_draws)
    k = estimator.min_samples if num_samples is None else num_samples

    def of(key: Array, q: Any, add: Array) -> Any:
        return jax.grad(lambda q: estimator(key, q, lambda z: f(z) + add, k, **settings))(q)

    over = jax.jit(jax.vmap(of, (0, None, None)))
    plain, moved = (_flat(over(keys, q, add)) for add in (0.0, 8.0))
    size = np.sqrt(np.mean(plain**2)) or 1.0
    numbers: dict[str, float | None] = {"constant": float(np.abs(moved - plain).max() / size)}
    numbers |= dict.fromkeys(("relabeled", "saturated", "float32"))
    if isinstance(q, Bernoulli | OneHotCategorical):
        numbers["saturated"] = float(np.abs(_flat(over(keys, _saturated(q), 0.0))).max())
        numbers["relabeled"] = _relabeled(estimator, q, f, k, settings)
    noise = estimator.noise.draw(key, q, k if estimator.uses_samples_jointly else 1)
    with jax.enable_x64(True):
        estimate = jax.jit(jax.grad(lambda q, noise: estimator.estimate(noise, q, f, **settings)))
        single, double = (
            _flat(estimate(*_cast((q, noise), kind))) for kind in (jnp.float32, jnp.float64)
        )
    numbers["float32"] = float(np.abs(single - double).max() / (np.sqrt(np.mean(double**2)) or 1.0))
    return numbers


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate(
        [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]
    )


def _cast(tree: Any, kind: Any) -> Any:
    floats = lambda a: (
        jnp.asarray(a, kind) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a
    )
    return jax.tree.map(floats, tree)


def _saturated(q: Bernoulli | OneHotCategorical) -> Any:
    if isinstance(q, Bernoulli):
        return Bernoulli(
            jnp.where(jnp.arange(q.logits.size).reshape(q.logits.shape) % 2, SATURATED, -SATURATED)
        )
    return OneHotCategorical(SATURATED * jax.nn.one_hot(q.logits.argmax(-1), q.logits.shape[-1]))


def _relabeled(
    estimator: Estimator, q: Any, f: Callable, k: int, settings: dict[str, Any]
) -> float | None:
    if estimator.init is not None:
        return None  # the control variate would have to be renamed as well
    bits = isinstance(q, Bernoulli)
    rename: Callable[[Array], Array] = (
        (lambda z: 1 - z) if bits else (lambda z: jnp.roll(z, -1, -1))
    )
    logits = np.asarray(q.logits, np.float64)
    with jax.enable_x64(True):
        try:
            of = lambda l, f: exact(
                estimator, lambda l: (type(q)(l), f), jnp.asarray(l), k, **settings
            )
            one, other = (
                of(logits, f),
                of(-logits if bits else np.roll(logits, 1, -1), lambda z: f(rename(z))),
            )
        except ValueError:
            return None
    total = one.variance.sum()
    return float(abs(total - other.variance.sum()) / total) if total > 1e-20 else 0.0
