"""Control variates that are learned beside a model, as its parameters "control"."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxvae.contracts import Array, Params
from jaxvae.expectations.contract import Estimator

# params -> (q, f). It gives the expectation as a function of the model's parameters.
Problem = Callable[[Params], tuple[Any, Callable[[Any], Array]]]


class Controlled(NamedTuple):
    """An estimator at one example, with the parameters of its control variate if it has one."""

    estimate: Callable[..., Array]  # (key, q, f, num_samples) -> scalar; the control is a constant
    # (key, problem, num_samples) -> a zero. Its gradient in the control is the gradient of the
    # control's loss, and its gradient in all other parameters is zero.
    learning: Callable[[Array, Problem, int], Array | float]


def controlled_at(estimator: Estimator, params: Params, x: Any) -> Controlled:
    """The estimator at example x, for a loss that trains model and control at once.

    Raises ValueError if the estimator learns and the parameters hold no ``control``.
    """
    if estimator.init is None:
        return Controlled(estimator, lambda key, problem, num_samples: 0.0)
    if "control" not in params:
        raise ValueError(
            f"{estimator.__name__} learns a control variate: its model is "
            "models.with_control(vae, it)"
        )
    context = context_of(x)
    still = lax.stop_gradient(params)

    def learning(key: Array, problem: Problem, num_samples: int) -> Array:
        q, f = problem(still)
        settings = {"control": params["control"], "context": context}
        value = estimator.learn(key, q, f, num_samples, **settings)
        return value - lax.stop_gradient(value)

    estimate = functools.partial(estimator, control=still["control"], context=context)
    return Controlled(estimate, learning)


def context_of(x: Any) -> Array:
    """The input of a control variate from an example, [X]."""
    return jnp.ravel(x) * 1.0
