"""Learned control variates for Bernoulli and one-hot latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

from jaxvae import networks
from jaxvae.distributions import Bernoulli, OneHotCategorical
from jaxvae.expectations.contract import BINARY, DISCRETE, Function, controlled
from jaxvae.expectations.general import CONTROL, learned_function
from jaxvae.expectations.noises import (
    hard_sample,
    many_samples,
    relaxed_sample,
    smooth_perturbation,
    smooth_perturbations,
)

Array = jax.Array
_each = lambda k, d, c: k


# Control variates of the first order, and of Stein's operator


def _at_samples(z: Array, f: Function) -> tuple[Array, Array, Array]:
    """f(z_k) [K], the mean of the other gradients, and the gradients, [K, *event]."""
    values, slopes = jax.vmap(jax.value_and_grad(f))(z)
    return values, (slopes.sum(0) - slopes) / (len(z) - 1), slopes


def _dots(a: Array, b: Array) -> Array:
    """Inner products of the events of [K, *event] and [K, *event]: [K]."""
    return (a * b).reshape(len(a), -1).sum(-1)


def _left_out(values: Array) -> Array:
    """The mean of the other values, [K]."""
    return (values.sum(0) - values) / (len(values) - 1)


@controlled(
    many_samples,
    BINARY,
    _each,
    _each,
    uses_samples_jointly=True,
    min_samples=2,
    init=lambda key, q, context: jnp.zeros(()),
)
def double_cv(
    noise: Array, q: Bernoulli, f: Function, control: Array, context: Array
) -> tuple[Array, Bernoulli]:
    """Leave-one-out baselines and first-order expansions at the other samples.

    1/K sum_k (f_k + b_k - mean_{j != k} (f_j + b_j)) (z_k - s) - a mean_k(g_k) s' with
    b_k = a g_-k (z_k - s(phi)) (Titsias & Shi 2021, arXiv:2111.05300). g_-k is the mean of f' at
    the other samples, and a is learned.

    Args:
      control_learning_rate: the learning rate of a.
    """
    z, mean = stop_gradient(noise), q.mean
    values, others, slopes = _at_samples(z, f)
    centred = z - mean
    whole = values + control * _dots(others, centred)
    weights = (whole - _left_out(whole)) / len(z)
    direction = jnp.tensordot(weights, centred, 1, precision="float32")
    direction -= control * slopes.mean(0) * mean * (1 - mean)
    return values.mean(), Bernoulli(direction)


_STEIN = networks.with_precision(networks.mlp((100,), 2, lambda x: jax.nn.leaky_relu(x, 0.3)))


def _stein_init(key: Array, q: Bernoulli, context: Array) -> Any:
    return {
        "network": _STEIN.init(key, jnp.zeros(2)),
        "baseline": jnp.zeros(()),
        "score": jnp.zeros(()),
    }


@controlled(
    many_samples, BINARY, _each, _each, uses_samples_jointly=True, min_samples=2, init=_stein_init
)
def rodeo(
    noise: Array, q: Bernoulli, f: Function, control: Any, context: Array
) -> tuple[Array, Bernoulli]:
    """Control variates of the Gibbs Stein operator.

    1/K sum_k (f_k - mean_{j != k} (f_j + a A h_j(z_j))) (z_k - s) + b A h~_k(z_k), with
    A h(z) = 1/D sum_i q(flipped z_i) (h(z with z_i flipped) - h(z)) (Shi et al. 2022,
    arXiv:2202.09497). h_k(y) is the mean over j != k of a learned H_1(f'(z_j) (y - z_j), f_j), and
    h~_k is the mean of a learned H_2 times (y - s).

    Args:
      control_learning_rate: the learning rate of a, b, H_1 and H_2.
    """
    z, mean = stop_gradient(noise), q.mean
    k = len(z)
    values, _, slopes = _at_samples(z, f)
    flat, slope = z.reshape(k, -1), slopes.reshape(k, -1)
    flipped = jnp.where(flat > 0, 1 - mean.ravel(), mean.ravel())  # q of the other value, [K, D]
    others = (jnp.arange(k)[:, None] + jnp.arange(1, k)) % k  # j != k, [K, K - 1]
    other_slopes, value = slope[others], values[others]
    linear = jnp.einsum("kd,kjd->kj", flat, other_slopes, precision="float32")
    linear -= jnp.sum(flat * slope, -1)[others]
    # f'(z_j) (z_k flipped - z_j), [K, K - 1, D]
    of_flips = linear[..., None] + other_slopes * (1 - 2 * flat[:, None])
    h = jnp.vectorize(
        lambda x, v: _STEIN.apply(control["network"], jnp.stack([x, v])), signature="(),()->(o)"
    )
    at_flips = h(of_flips, value[..., None]).mean(1)  # [K, D, 2]
    at_samples = h(linear, value).mean(1)  # [K, 2]
    stein = jnp.mean(flipped[..., None] * (at_flips - at_samples[:, None]), 1)  # [K, 2]
    left = values - _left_out(values + control["baseline"] * stein[:, 0])
    centred = flat - mean.ravel()
    score = centred * (stein[:, 1:] - at_flips[..., 1] / flat.shape[1])
    direction = (left[:, None] * centred + control["score"] * score).mean(0)
    return values.mean(), Bernoulli(direction.reshape(mean.shape))


# Relaxations as control variates. z = phi + noise has the sample b, and z~ is drawn given b. The
# logistic function or softmax, s, relaxes both.


def conditional(q: Bernoulli | OneHotCategorical, b: Array, noise: Array) -> Array:
    """Perturbed logits given the sample b that they give, from fresh unconditional noise.

    For a Bernoulli they are +-softplus(l + softplus(+-phi)). For a one-hot the largest one is
    t = g_b + logsumexp(phi), and the others are -log(e^-(phi_c + g_c) + e^-t) (Maddison et al.
    2014, arXiv:1411.0030).
    """
    if isinstance(q, Bernoulli):
        sign = 2 * b - 1
        return sign * jax.nn.softplus(noise + jax.nn.softplus(sign * q.logits))
    largest = jnp.sum(b * noise, -1, keepdims=True) + logsumexp(q.logits, -1, keepdims=True)
    others = -jnp.logaddexp(-(q.logits + noise), -largest)
    return jnp.where(b > 0, largest, others)


def _tied(q: Bernoulli | OneHotCategorical, b: Array, z: Array) -> Array:
    """The noise with which ``conditional`` gives z again.

    z~ then has the value of z and the gradient of z~.
    """
    log_expm1 = lambda x: x + jnp.log(-jnp.expm1(-x))
    if isinstance(q, Bernoulli):
        sign = 2 * b - 1
        return log_expm1(sign * z) - jax.nn.softplus(sign * q.logits)
    largest = z.max(-1, keepdims=True)
    lead = jnp.where(b > 0, 1.0, largest - z)
    others = largest - log_expm1(lead) - q.logits  # z - log(1 - e^-(largest - z)) - phi
    return jnp.where(b > 0, largest - logsumexp(q.logits, -1, keepdims=True), others)


def _relaxed_gradient(
    q: Any, b: Array, z: Array, again: Callable, f: Function, c: Callable
) -> tuple[Array, Any]:
    """(f(b) - c(z~)) grad log q(b) + grad c(z) - grad c(z~), where ``again(logits)`` is z~."""
    value = f(b)
    tilde, pull = jax.vjp(again, q.logits)
    _, slope = jax.value_and_grad(c)(z)
    there, slope_there = jax.value_and_grad(c)(tilde)
    direction = (value - there) * (b - q.mean) + slope - pull(slope_there)[0]
    return value, dataclasses.replace(q, logits=direction)


def _rebar_init(key: Array, q: Any, context: Array) -> dict:
    return {"log_temperature": jnp.log(jnp.float32(0.5)), "scale": jnp.ones(())}


def _relax_init(key: Array, q: Any, context: Array) -> dict:
    inputs = jnp.concatenate([context.ravel(), jnp.ravel(q.logits)])
    return _rebar_init(key, q, context) | {"network": CONTROL.init(key, inputs)}


def _relaxation(q: Any, f: Function, control: dict, context: Array) -> Callable:
    temperature = jnp.exp(control["log_temperature"])

    def c(z: Array) -> Array:
        of_f = control["scale"] * f(relaxed_sample(q, z, temperature))
        return (
            of_f + learned_function(control["network"], context, z)
            if "network" in control
            else of_f
        )

    return c


def _independent(
    noise: Any, q: Any, f: Function, control: dict, context: Array
) -> tuple[Array, Any]:
    z = stop_gradient(q.logits + noise[0])
    b = hard_sample(q, z)
    again = lambda logits: conditional(dataclasses.replace(q, logits=logits), b, noise[1])
    return _relaxed_gradient(q, b, z, again, f, _relaxation(q, f, control, context))


def _with_tied(
    noise: Array, q: Any, f: Function, control: dict, context: Array
) -> tuple[Array, Any]:
    z = stop_gradient(q.logits + noise)
    b = hard_sample(q, z)
    fresh = stop_gradient(_tied(q, b, z))
    again = lambda logits: conditional(dataclasses.replace(q, logits=logits), b, fresh)
    return _relaxed_gradient(q, b, z, again, f, _relaxation(q, f, control, context))


_three, _two = (lambda k, d, c: 3 * k), (lambda k, d, c: 2 * k)


@controlled(smooth_perturbations, DISCRETE, _three, _two, init=_rebar_init)
def rebar(noise: Any, q: Any, f: Function, control: dict, context: Array) -> tuple[Array, Any]:
    """The concrete relaxation as control variate, with learned scale and temperature.

    (f(b) - c(z~)) grad log q(b) + grad c(z) - grad c(z~) with c(z) = scale f(s(z / temperature)),
    where z~ ~ p(z | b) is independent of z given b (Tucker et al. 2017, arXiv:1703.07370).

    Args:
      control_learning_rate: the learning rate of the scale and the temperature.
    """
    return _independent(noise, q, f, control, context)


@controlled(smooth_perturbation, DISCRETE, _three, _two, init=_rebar_init)
def rebar_tied(noise: Any, q: Any, f: Function, control: dict, context: Array) -> tuple[Array, Any]:
    """``rebar`` with z~ = z in value, as in the authors' experiments.

    Args:
      control_learning_rate: the learning rate of the scale and the temperature.
    """
    return _with_tied(noise, q, f, control, context)


@controlled(smooth_perturbations, DISCRETE, _three, _two, init=_relax_init)
def relax(noise: Any, q: Any, f: Function, control: dict, context: Array) -> tuple[Array, Any]:
    """``rebar`` with a learned function r(z) added to the control variate.

    c(z) = scale f(s(z / temperature)) + r(z) (Grathwohl et al. 2017, arXiv:1711.00123).

    Args:
      control_learning_rate: the learning rate of the scale, the temperature and r.
    """
    return _independent(noise, q, f, control, context)


@controlled(smooth_perturbation, DISCRETE, _three, _two, init=_relax_init)
def relax_tied(noise: Any, q: Any, f: Function, control: dict, context: Array) -> tuple[Array, Any]:
    """``relax`` with z~ = z in value.

    Args:
      control_learning_rate: the learning rate of the scale, the temperature and r.
    """
    return _with_tied(noise, q, f, control, context)
