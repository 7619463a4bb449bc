"""A gradient estimator is a function of noise, the draw of the noise, and facts about both.

Because the estimate is a function of its noise, training and ``measurements.exact`` run the same
code. Training draws the noise. ``measurements.exact`` computes bias and variance exactly if the law
of the noise can be enumerated or integrated (``noises``).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae.distributions import check_scalar

Array = jax.Array
Function = Callable[[Any], Array]  # z, any pytree -> scalar
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
    """The noise of an estimator."""

    draw: Callable[[Array, Any, int], Any]  # (key, q, num_samples) -> noise
    # (q, num_samples) -> (noise [M, ...], probabilities [M]), the law of the noise in float64, by
    # enumeration or by quadrature. It raises ValueError if the law is not known or too large.
    exact: Callable[[Any, int], tuple[Any, Any]] = _unknown
    # The same law with fewer nodes, or None if the law has no nodes that could be fewer.
    exact_coarser: Callable[[Any, int], tuple[Any, Any] | None] = lambda q, num_samples: None


@dataclasses.dataclass(frozen=True, eq=False)
class Estimator:
    """A gradient estimator ``(key, q, f, num_samples) -> scalar`` and the facts about it.

    The value estimates E_q f(z), and its gradient estimates the gradient of E_q f(z) in the
    parameters of q and of f. ``f`` takes one z, which may be any pytree, to a scalar. An estimator
    that uses its samples jointly is called once with all K draws. Any other estimator is averaged
    over K independent draws.

    An estimator with a learned control variate (``init`` is not None) takes two more arguments.
    ``control`` holds the parameters that ``init(key, q, context)`` returned. ``context [X]`` is the
    further input of the control variate, such as the flattened example.

    Raises ValueError if there are fewer samples than it needs, or if ``f`` returns no scalar.
    """

    estimate: Callable  # (noise, q, f, **settings) -> scalar
    noise: Noise
    latents: frozenset[str]
    unbiased: bool
    evaluations: Cost  # how often f is evaluated
    gradient_evaluations: Cost  # how often the gradient of f in z is evaluated
    uses_samples_jointly: bool = False
    min_samples: int = 1  # the fewest samples, which is also the default
    init: Callable[[Array, Any, Array], Any] | None = None
    # learning rate -> the optimizer of the control
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam
    # The usual learning rate of the control. None if the optimizer has a fixed rate.
    control_learning_rate: float | None = 1e-3
    estimates: str = ""  # the bound that a member of ``bounds`` estimates
    takes_prior: bool = False  # it is called with ``prior``, and log_joint has no gradient in it
    # (noise, q, f, control, context) -> scalar, which the control descends.
    learning: Callable | None = None
    name: str = ""  # its name in the table, if the function has another one

    def __call__(
        self, key: Array, q: Any, f: Function, num_samples: int | None = None, **settings: Any
    ) -> Array:
        return self._over_draws(self.estimate, key, q, f, num_samples, settings)

    def learn(
        self, key: Array, q: Any, f: Function, num_samples: int | None = None, **settings: Any
    ) -> Array:
        """The loss of the control, at the draws of the same key.

        The gradient in the parameters of q and f means nothing.
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
        f = of_scalars(f, "log_joint" if self.estimates else "f")
        if self.uses_samples_jointly or k == 1:
            return function(self.noise.draw(key, q, k), q, f, **settings)
        each = lambda key: function(self.noise.draw(key, q, 1), q, f, **settings)
        return jax.vmap(each)(jax.random.split(key, k)).mean()

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """The keyword settings that ``configured`` takes, with their defaults, by name."""
        parameters = inspect.signature(self.estimate, eval_str=True).parameters
        settings = {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.default is not parameter.empty and name not in GIVEN_BY_THE_MODEL
        }
        if self.init is None or self.control_learning_rate is None:
            return settings
        rate = inspect.Parameter(
            CONTROL_RATE,
            inspect.Parameter.KEYWORD_ONLY,
            default=self.control_learning_rate,
            annotation=float,
        )
        return settings | {CONTROL_RATE: rate}

    def configured(self, **settings: Any) -> Estimator:
        """The same estimator with some of its ``settings`` changed.

        Its facts and its name stay. Raises ValueError for a name that is none of its settings.

        >>> from jaxvae import expectations
        >>> expectations.concrete.configured(temperature=0.3).settings["temperature"].default
        0.3
        """
        if not settings:
            return self
        unknown = [name for name in settings if name not in self.settings]
        if unknown:
            known = ", ".join(self.settings) or "none"
            raise ValueError(
                f"{self.__name__} has no setting {', '.join(unknown)}; its settings: {known}"
            )
        rate = settings.pop(CONTROL_RATE, self.control_learning_rate)
        estimate = functools.partial(self.estimate, **settings) if settings else self.estimate
        changed = {"estimate": estimate, CONTROL_RATE: rate, "name": self.__name__}
        return dataclasses.replace(self, **changed)

    @property
    def __name__(self) -> str:
        return self.name or self.estimate.__name__

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        estimate = self.estimate
        while isinstance(estimate, functools.partial):
            estimate = estimate.func
        return estimate.__doc__


# Arguments of ``estimate`` that the model gives, so that no user sets them.
GIVEN_BY_THE_MODEL = frozenset({"control", "context", "prior"})
CONTROL_RATE = "control_learning_rate"


def of_scalars(f: Function, name: str = "f") -> Function:
    """``f``, which raises ValueError if it does not return a scalar."""
    return lambda z: check_scalar(f(z), name)


def as_estimator(function: Callable[..., Array]) -> Estimator:
    """A plain function ``(key, q, f, num_samples) -> scalar`` as an estimator.

    The function is assumed to differentiate through continuous z. An ``Estimator`` stays as it is.
    """
    if isinstance(function, Estimator):
        return function

    def estimate(noise: tuple[Array, int], q: Any, f: Function) -> Array:
        key, num_samples = noise
        return function(key, q, f, num_samples)

    noise = Noise(lambda key, q, num_samples: (key, num_samples))
    name = getattr(function, "__name__", type(function).__name__)
    return Estimator(
        *(estimate, noise, CONTINUOUS, True),
        evaluations=lambda k, d, c: k,
        gradient_evaluations=lambda k, d, c: k,
        uses_samples_jointly=True,
        name=name,
    )


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
    """Decorator that makes an estimator of a function and enters it in the table.

    Args:
      noise: the noise that is drawn.
      latents: the kinds of latents that it serves.
      evaluations: how often it evaluates f, (K samples, D latents, C classes) -> count.
      gradient_evaluations: how often it evaluates the gradient of f in z.
      unbiased: whether the mean of its gradient is the gradient.
      table: where it is entered, by its name.
      more: further fields of ``Estimator``.

    The function is ``(noise, q, f, **settings) -> scalar``.
    """

    def add(estimate: Callable) -> Estimator:
        facts = latents, unbiased, evaluations, gradient_evaluations
        made = Estimator(estimate, noise, *facts, **more)
        table[made.__name__] = made
        return made

    return add


def controlled(
    noise: Noise,
    latents: frozenset[str],
    evaluations: Cost,
    gradient_evaluations: Cost = _none,
    **more: Any,
) -> Callable:
    """Decorator that makes an estimator of a gradient with a learned control variate.

    Args:
      noise: the noise that is drawn.
      latents: the kinds of latents that it serves.
      evaluations: how often it evaluates f, (K samples, D latents, C classes) -> count.
      gradient_evaluations: how often it evaluates the gradient of f in z.
      more: further arguments of ``estimator``.

    The function is ``(noise, q, f, control, context) -> (f(z), gradient)``, where the gradient is a
    tree like q. The control descends the squared norm of the gradient, which is the variance plus a
    constant.
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
    """``value``, to whose gradient ``direction`` times the gradient of ``at`` is added.

    ``direction`` and ``at`` are trees of the same structure.
    """

    def inner(d: Array, a: Array) -> Array:
        return jnp.sum(lax.stop_gradient(d) * (a - lax.stop_gradient(a)))

    return value + jnp.stack(jax.tree.leaves(jax.tree.map(inner, direction, at))).sum()
