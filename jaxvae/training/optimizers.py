"""One update of an optimizer, which is skipped if it is not finite."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

Array = jax.Array


class SkipsNonFinite(optax.GradientTransformationExtraArgs):
    """An optimizer that can skip an update: its ``update`` takes ``finite``.

    If ``finite`` is False it must leave parameters and state as they were. Updates of other
    optimizers are skipped by a branch that waits for all gradients, or by a selection of every
    array.
    """

    __slots__ = ()


def adam(
    learning_rate: float | optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> SkipsNonFinite:
    """``optax.adam`` with fewer divisions, which can skip updates that are not finite.

    It divides once for each entry, and Optax divides three times. With r_t = sqrt(1 - b2^t), as at
    the end of section 2 of Kingma & Ba 2015 (arXiv:1412.6980),

        theta <- theta - learning_rate r_t / (1 - b1^t) m_t / (sqrt(v_t) + eps r_t).

    It has the state of ``optax.adam``, so one can go on from the other. To skip an update,
    (b, 1 - b) become (1, 0) and the step size becomes 0. The step size is also 0 if the first entry
    of a vector's gradient is not finite, even if ``finite`` is True.
    """
    plain = optax.adam(learning_rate, b1, b2, eps)

    def update(
        grads: Any, state: Any, params: Any = None, *, finite: Any = True, **_: Any
    ) -> tuple[Any, Any]:
        moments, course = state
        keep = lambda decay: jnp.where(finite, decay, 1.0)
        add = lambda decay, new: jnp.where(finite, 1.0 - decay, 0.0) * jnp.where(finite, new, 0.0)
        mu = jax.tree.map(lambda m, g: keep(b1) * m + add(b1, g), moments.mu, grads)
        nu = jax.tree.map(lambda v, g: keep(b2) * v + add(b2, g * g), moments.nu, grads)
        later = lambda count: jnp.where(finite, optax.safe_increment(count), count)
        count = later(moments.count)
        t = jnp.maximum(count, 1)  # a first update that is skipped has t = 0
        root = jnp.sqrt(1.0 - b2**t)
        rate = learning_rate(course.count) if callable(learning_rate) else learning_rate
        # Parameters wait for the gradients of vectors, and so for the end of the backward pass.
        # Otherwise the backward pass would read copies of the parameters. It does not read the
        # moments, which need not wait.
        vectors = [g.ravel()[0] for g in jax.tree.leaves(grads) if g.ndim < 2 and g.size]
        ready = jnp.isfinite(sum(vectors, jnp.zeros(())))
        scale = jnp.where(finite & ready, rate * root / (1.0 - b1**t), 0.0)
        updates = jax.tree.map(
            lambda m, v: (-scale * m / (jnp.sqrt(v) + eps * root)).astype(m.dtype), mu, nu
        )
        if callable(learning_rate):
            course = course._replace(count=later(course.count))
        return updates, (moments._replace(count=count, mu=mu, nu=nu), course)

    return SkipsNonFinite(plain.init, update)


def descend(
    optimizer: optax.GradientTransformation,
    grads: Any,
    state: Any,
    params: Any,
    finite: Array,
    value: Any = None,
    value_fn: Callable[[Any], Array] | None = None,
) -> tuple[Any, Any]:
    """Parameters and state of the optimizer after an update, or as they were.

    Args:
      optimizer: an optimizer of Optax, or one that can skip updates.
      grads: the gradient.
      state: the state of the optimizer.
      params: the parameters before the update.
      finite: whether to update.
      value: the loss, for optimizers that look at it.
      value_fn: the loss as a function of the parameters, for line searches.
    """
    more = {"value": value, "grad": grads, "value_fn": value_fn}
    if isinstance(optimizer, SkipsNonFinite):
        updates, state = _update(optimizer, grads, state, params, more | {"finite": finite})
        return optax.apply_updates(params, updates), state

    def updated() -> tuple[Any, Any]:
        updates, new = _update(optimizer, grads, state, params, more)
        return optax.apply_updates(params, updates), new

    kept = params, state
    # On a CPU a selection would read and write every array again. On other devices the host would
    # wait for a branch.
    return lax.platform_dependent(
        cpu=lambda: lax.cond(finite, updated, lambda: kept),
        default=lambda: jax.tree.map(functools.partial(jnp.where, finite), updated(), kept),
    )


def _update(
    optimizer: optax.GradientTransformation,
    grads: Any,
    state: Any,
    params: Any,
    more: dict[str, Any],
) -> tuple[Any, Any]:
    """``optimizer.update``, with the further arguments if it takes any."""
    takes_more = isinstance(optimizer, optax.GradientTransformationExtraArgs)
    try:
        return optimizer.update(grads, state, params, **(more if takes_more else {}))
    except TypeError as error:
        if not re.search(r"missing \d+ required|unexpected keyword", str(error)):
            raise
        raise ValueError(
            f"the optimizer takes other arguments than training gives ({error}); training gives "
            "value, grad and value_fn to a GradientTransformationExtraArgs, and nothing to others"
        ) from error
