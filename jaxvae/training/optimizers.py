"""One update of an optimizer, or none where it is not finite."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

Array = jax.Array


class SkipsNonFinite(optax.GradientTransformationExtraArgs):
    """An optimizer whose ``update`` takes ``finite``, and where it is False leaves parameters and
    state as they were.

    Any other one is skipped from outside, by a branch that waits for all gradients or a selection
    of every array.
    """

    __slots__ = ()


def adam(
    learning_rate: float | optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> SkipsNonFinite:
    """``optax.adam`` with one division an entry in place of three, which skips updates that are not
    finite by itself.

    With r_t = sqrt(1 - b2^t), as in the end of section 2 of Kingma & Ba 2015 (arXiv:1412.6980),

        theta <- theta - learning_rate r_t / (1 - b1^t) m_t / (sqrt(v_t) + eps r_t).

    The state is ``optax.adam``'s. A skipped update has factors of 1 and 0 in place of b and 1 - b,
    and a rate of 0. The rate is 0, whatever ``finite`` says, where the first entry of a vector's
    gradient is not finite, too.
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
        # Parameters wait for the gradients of vectors, and with them for the end of the backward
        # pass, which reads the parameters: XLA would have it read copies. The moments, which it
        # does not read, need not wait.
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
    optimizer: optax.GradientTransformation, grads: Any, state: Any, params: Any, finite: Array
) -> tuple[Any, Any]:
    """Parameters and state of the optimizer after an update, or as they were where ``finite`` is
    False.
    """
    if isinstance(optimizer, SkipsNonFinite):
        updates, state = optimizer.update(grads, state, params, finite=finite)
        return optax.apply_updates(params, updates), state

    def updated() -> tuple[Any, Any]:
        updates, new = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), new

    kept = params, state
    # On a CPU a selection would read and write every array again; elsewhere the host would wait for
    # a branch.
    return lax.platform_dependent(
        cpu=lambda: lax.cond(finite, updated, lambda: kept),
        default=lambda: jax.tree.map(functools.partial(jnp.where, finite), updated(), kept),
    )
