"""Estimators that differentiate through discrete latents as if they were continuous.

All of them are biased.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxvae.distributions import Bernoulli, Joint, OneHotCategorical, reparameterize, sample_noise
from jaxvae.expectations.contract import DISCRETE, MIXED, Function, Noise, estimator, with_gradient
from jaxvae.expectations.control import conditional
from jaxvae.expectations.noises import (
    hard_sample,
    one_sample,
    perturb,
    relaxed_sample,
    smooth_perturbation,
)
from jaxvae.ranges import Positive

Array = jax.Array
Discrete = Bernoulli | OneHotCategorical
_one, _each = (lambda k, d, c: 1), (lambda k, d, c: k)


def straight_through_value(value: Array, slope_of: Array) -> Array:
    """``value``, with the gradient of ``slope_of``."""
    return stop_gradient(value) + slope_of - stop_gradient(slope_of)


def _perturbations(key: Array, q: Any, k: int) -> Any:
    """The noise that ``_relaxed`` takes. A Joint has one noise for each part."""
    if isinstance(q, Joint):
        parts = zip(jax.random.split(key, len(q.parts)), q.parts, strict=True)
        return tuple(_perturbations(key, part, k) for key, part in parts)
    return smooth_perturbation.draw(key, q, k) if isinstance(q, Discrete) else sample_noise(q, key)


def _relaxed(q: Any, noise: Any, temperature: float) -> Array:
    if isinstance(q, Joint):
        parts = zip(q.parts, noise, strict=True)
        return jnp.concatenate([jnp.ravel(_relaxed(part, n, temperature)) for part, n in parts])
    return (
        relaxed_sample(q, q.logits + noise, temperature)
        if isinstance(q, Discrete)
        else reparameterize(q, noise)
    )


@estimator(
    Noise(_perturbations, smooth_perturbation.exact), DISCRETE | MIXED, _each, _each, unbiased=False
)
def concrete(noise: Any, q: Any, f: Function, temperature: Positive = 0.5) -> Array:
    """The concrete (Gumbel-softmax) relaxation, f(s((phi + noise) / temperature)).

    s is the logistic function or softmax (Maddison et al. 2016, arXiv:1611.00712; Jang et al. 2016,
    arXiv:1611.01144). The value is f at the relaxed z. The continuous parts of a Joint are
    reparameterized.

    Args:
      temperature: the temperature of the relaxation; a lower one is closer to discrete z.
    """
    return f(_relaxed(q, noise, temperature))


@estimator(one_sample, DISCRETE, _each, _each, unbiased=False)
def straight_through(noise: Array, q: Discrete, f: Function) -> Array:
    """The straight-through gradient f'(z) grad s(phi) at a drawn z.

    Bengio et al. 2013, arXiv:1308.3432.
    """
    return f(straight_through_value(noise, q.mean))


@estimator(smooth_perturbation, DISCRETE, _each, _each, unbiased=False)
def straight_through_gumbel(
    noise: Array, q: Discrete, f: Function, temperature: Positive = 0.5
) -> Array:
    """f'(z) times the gradient of the concrete relaxation of z.

    Jang et al. 2016, arXiv:1611.01144.

    Args:
      temperature: the temperature of the relaxation; a lower one is closer to discrete z.
    """
    perturbed = q.logits + noise
    return f(
        straight_through_value(hard_sample(q, perturbed), relaxed_sample(q, perturbed, temperature))
    )


def _conditionals(key: Array, q: Discrete, k: int) -> tuple[Array, Array]:
    keys = jax.random.split(key, k + 1)
    return hard_sample(q, q.logits + perturb(keys[0], q)), jax.vmap(lambda key: perturb(key, q))(
        keys[1:]
    )


@estimator(Noise(_conditionals), DISCRETE, _one, _one, unbiased=False, uses_samples_jointly=True)
def gumbel_rao(
    noise: tuple[Array, Array], q: Discrete, f: Function, temperature: Positive = 0.5
) -> Array:
    """``straight_through_gumbel``, averaged over K noises given z.

    Paulus et al. 2020, arXiv:2010.04838. f is evaluated once. The noises given z are constants, to
    which the logits are added.

    Args:
      temperature: the temperature of the relaxation; a lower one is closer to discrete z.
    """
    z, noises = noise
    logits = stop_gradient(q.logits)
    given = lambda noise: stop_gradient(conditional(type(q)(logits), z, noise)) - logits
    slopes = jax.vmap(lambda noise: relaxed_sample(q, q.logits + given(noise), temperature))(noises)
    return f(straight_through_value(z, slopes.mean(0)))


@estimator(one_sample, DISCRETE, _each, _each, unbiased=False)
def reinmax(noise: Array, q: Discrete, f: Function) -> Array:
    """The trapezoidal rule between z and its mean.

    2 J((z + s(phi)) / 2) f'(z) - J(s(phi)) f'(z) / 2 (Liu et al. 2023, arXiv:2304.08612). J(p) is
    the Jacobian of s at a probability, p (1 - p) or diag(p) - p p^T. The gradient has no bias if f
    is quadratic in each latent.
    """
    mean = q.mean
    value, slope = jax.value_and_grad(f)(stop_gradient(noise))

    def jacobian(p: Array) -> Array:
        if isinstance(q, Bernoulli):
            return p * (1 - p) * slope
        return p * (slope - jnp.sum(p * slope, -1, keepdims=True))

    return with_gradient(value, 2 * jacobian((noise + mean) / 2) - jacobian(mean) / 2, q.logits)
