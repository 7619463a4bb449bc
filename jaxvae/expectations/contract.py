"""What every gradient estimator is made of: an estimate as a function of what is drawn, the draw,
and its facts.

Because the estimate is a function of its noise, the same code is sampled in training and, where the
noise has a law that can be enumerated or integrated (``noises``), has its bias and variance
computed exactly (``measurements.exact``).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

Array = jax.Array
Function = Callable[[Array], Array]
Cost = Callable[[int, int, int], int]  # K samples, D latents, C classes -> how many

CONTINUOUS, BINARY, CATEGORICAL = (
    frozenset({name}) for name in ("continuous", "binary", "categorical")
)
DISCRETE = BINARY | CATEGORICAL
MIXED = frozenset({"mixed"})  # some parts continuous and some discrete
ANY = CONTINUOUS | DISCRETE


def _unknown(q: Any, num_samples: int) -> tuple[Any, Any]:
    raise ValueError("this noise has no known law: use Monte Carlo")


class Noise(NamedTuple):
    """What is drawn."""

    draw: Callable[[Array, Any, int], Any]  # (key, q, num_samples) -> noise
    # (q, num_samples) -> (noise [M, ...], probabilities [M]): the law of the noise in float64, by
    # enumeration or by quadrature. ValueError where it is not known or too large.
    exact: Callable[[Any, int], tuple[Any, Any]] = _unknown
    # The same with fewer nodes, or None where nothing is left to converge.
    exact_coarser: Callable[[Any, int], tuple[Any, Any] | None] = lambda q, num_samples: None


@dataclasses.dataclass(frozen=True, eq=False)
class Estimator:
    """A gradient estimator, ``(key, q, f, num_samples) -> scalar``, and what one needs to know to
    choose it.

    The value estimates E_q f, and its gradient the gradient of that, in the parameters of q and of
    f. A *joint* one uses its ``num_samples`` draws together; any other is averaged over them. One
    that *learns* takes ``control``, the parameters of its control variate, as ``init(key, q,
    context)`` makes them, and ``context [X]``, what it may look at besides z, an example for
    instance. Raises ValueError for fewer samples than it needs.
    """

    estimate: Callable  # (noise, q, f, **settings) -> scalar
    noise: Noise
    latents: frozenset[str]
    unbiased: bool
    evaluations: Cost  # of f
    gradient_evaluations: Cost  # gradients of f in z
    uses_samples_jointly: bool = False
    min_samples: int = 1  # the fewest samples, which is also the default
    init: Callable[[Array, Any, Array], Any] | None = None
    optimizer: Callable[[float], optax.GradientTransformation] = (
        optax.adam
    )  # learning rate -> that of its control
    estimates: str = ""  # the bound that it estimates, for those of ``bounds``
    takes_prior: bool = (
        False  # whether it is called with ``prior``, and a log_joint without a gradient in it
    )
    learning: Callable | None = (
        None  # (noise, q, f, control, context) -> scalar, which the control descends
    )

    def __call__(
        self, key: Array, q: Any, f: Function, num_samples: int | None = None, **settings: Any
    ) -> Array:
        return self._over_draws(self.estimate, key, q, f, num_samples, settings)

    def learn(
        self, key: Array, q: Any, f: Function, num_samples: int | None = None, **settings: Any
    ) -> Array:
        """What the control descends, at the draws of the same key; its gradient in q and f means
        nothing.
        """
        if self.learning is None:
            raise ValueError(f"{self.__name__} has nothing to learn")
        return self._over_draws(self.learning, key, q, f, num_samples, settings)

    def _over_draws(
        self, function: Callable, key: Array, q: Any, f: Function, k: int | None, settings: dict
    ) -> Array:
        k = self.min_samples if k is None else k
        if k < self.min_samples:
            raise ValueError(
                f"{self.__name__} needs at least {self.min_samples} samples; num_samples was {k}"
            )
        if self.uses_samples_jointly or k == 1:
            return function(self.noise.draw(key, q, k), q, f, **settings)
        each = lambda key: function(self.noise.draw(key, q, 1), q, f, **settings)
        return jax.vmap(each)(jax.random.split(key, k)).mean()

    @property
    def __name__(self) -> str:
        return self.estimate.__name__

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.estimate.__doc__


ESTIMATORS: dict[str, Estimator] = {}
_none: Cost = lambda k, d, c: 0


def estimator(
    noise: Noise,
    latents: frozenset[str],
    evaluations: Cost,
    gradient_evaluations: Cost = _none,
    *,
    unbiased: bool = True,
    table: dict[str, Estimator] = ESTIMATORS,
    **more: Any,
) -> Callable[[Callable], Estimator]:
    """Decorator: makes ``(noise, q, f, **settings) -> scalar`` an estimator and enters it in the
    table.
    """

    def add(estimate: Callable) -> Estimator:
        table[estimate.__name__] = made = Estimator(
            estimate, noise, latents, unbiased, evaluations, gradient_evaluations, **more
        )
        return made

    return add


def controlled(
    noise: Noise,
    latents: frozenset[str],
    evaluations: Cost,
    gradient_evaluations: Cost = _none,
    **more: Any,
) -> Callable:
    """Decorator: makes ``(noise, q, f, control, context) -> f(z), gradient like q`` an estimator.

    Its control descends the square of that gradient, which is its variance and a constant.
    """

    def add(gradient: Callable) -> Estimator:
        @functools.wraps(gradient)
        def estimate(noise: Any, q: Any, f: Function, control: Any, context: Array) -> Array:
            value, direction = gradient(noise, lax.stop_gradient(q), f, control, context)
            return with_gradient(value, direction, q)

        def square(noise: Any, q: Any, f: Function, control: Any, context: Array) -> Array:
            return optax.tree.norm(gradient(noise, q, f, control, context)[1], squared=True)

        return estimator(
            noise, latents, evaluations, gradient_evaluations, learning=square, **more
        )(estimate)

    return add


def with_gradient(value: Array, direction: Any, at: Any) -> Array:
    """``value``, whose gradient is its own and ``direction`` times that of ``at``, trees of the
    same structure.
    """
    inner = lambda d, a: jnp.sum(lax.stop_gradient(d) * (a - lax.stop_gradient(a)))
    return value + jnp.stack(jax.tree.leaves(jax.tree.map(inner, direction, at))).sum()
