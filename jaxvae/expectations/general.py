"""Estimators for any density, and estimators for densities that can be reparameterized."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.lax import stop_gradient

from jaxvae import networks
from jaxvae.distributions import Bernoulli, Normal, OneHotCategorical, log_prob_of, reparameterize
from jaxvae.expectations.contract import (
    ANY,
    BINARY,
    CONTINUOUS,
    Function,
    Noise,
    controlled,
    estimator,
    with_gradient,
)
from jaxvae.expectations.noises import many_samples, one_sample, product, sample_law

Array = jax.Array
_each = lambda k, d, c: k


@estimator(one_sample, ANY, _each)
def score_function(noise: Array, q: Any, f: Function, baseline: float = 0.0) -> Array:
    """REINFORCE, (f(z) - b) grad log q(z) with a constant baseline b.

    Williams 1992; Mohamed et al. 2020, arXiv:1906.10652, eq. 14.

    Args:
      baseline: b, which f is compared with.
    """
    return _scored(noise, q, f, baseline)


def _scored(noise: Any, q: Any, f: Function, baseline: Array | float) -> Array:
    """(f(z) - b) grad log q(z); the baseline b must not depend on z."""
    z = stop_gradient(reparameterize(q, noise))
    value = f(z)
    return with_gradient(value, value - baseline, log_prob_of(q, z))


@estimator(many_samples, ANY, _each, uses_samples_jointly=True, min_samples=2)
def rloo(noise: Array, q: Any, f: Function) -> Array:
    """REINFORCE with leave-one-out baselines.

    1/(K-1) sum_k (f(z_k) - mean f) grad log q(z_k) (Kool et al. 2019). For the ELBO it is the
    gradient of VarGrad (Richter et al. 2020, arXiv:2010.10436).
    """
    z = stop_gradient(reparameterize(q, noise))
    values, scores = jax.vmap(f)(z), jax.vmap(lambda z: log_prob_of(q, z))(z)
    return with_gradient(values.mean(), (values - values.mean()) / (len(values) - 1), scores)


# Learned baselines

DECAY = 0.1  # weight of a new value in a moving average
_BASELINE = networks.with_precision(networks.mlp((100,), 1, jnp.tanh))


def _of_context(control: Any, context: Array) -> Array:
    return _BASELINE.apply(control["network"], context)[0] + control["constant"]


def _constant_error(noise: Array, q: Any, f: Function, control: Array, context: Array) -> Array:
    return 0.5 * (f(reparameterize(q, noise)) - control) ** 2


@estimator(
    one_sample,
    ANY,
    _each,
    init=lambda key, q, context: jnp.zeros(()),
    learning=_constant_error,
    optimizer=lambda learning_rate: optax.sgd(DECAY),
    control_learning_rate=None,
)
def moving_average(noise: Array, q: Any, f: Function, control: Array, context: Array) -> Array:
    """REINFORCE with the moving average of earlier values as baseline.

    b <- b - r (b - f) with r = 0.1, the step that descends (f - b)^2 / 2 (Mohamed et al. 2020,
    arXiv:1906.10652, sec. 7.4.1).
    """
    return _scored(noise, q, f, control)


def _nvil_init(key: Array, q: Any, context: Array) -> Any:
    return {"network": _BASELINE.init(key, context), "constant": jnp.zeros(())}


def _nvil_error(noise: Array, q: Any, f: Function, control: Any, context: Array) -> Array:
    return 0.5 * (f(reparameterize(q, noise)) - _of_context(control, context)) ** 2


def _nvil_optimizer(learning_rate: float) -> optax.GradientTransformation:
    kinds = {"network": optax.adam(learning_rate), "constant": optax.sgd(DECAY)}
    kind = lambda path, leaf: "constant" if path[-1].key == "constant" else "network"
    return optax.partition(kinds, lambda params: jax.tree_util.tree_map_with_path(kind, params))


@estimator(one_sample, ANY, _each, init=_nvil_init, learning=_nvil_error, optimizer=_nvil_optimizer)
def nvil(noise: Array, q: Any, f: Function, control: Any, context: Array) -> Array:
    """REINFORCE with a learned function of the example as baseline.

    (f(z) - b(x) - c) grad log q(z) (Mnih & Gregor 2014, arXiv:1402.0030). The paper also divides by
    a running standard deviation, which scales the gradient.

    Args:
      control_learning_rate: the learning rate of b.
    """
    return _scored(noise, q, f, _of_context(control, context))


@estimator(one_sample, CONTINUOUS | BINARY, lambda k, d, c: k + 1, lambda k, d, c: 1)
def muprop(noise: Array, q: Any, f: Function) -> Array:
    """REINFORCE with the first-order expansion of f at the mean as control variate.

    (f(z) - f(m) - f'(m)(z - m)) grad log q(z) + f'(m) grad m, where m is the mean of q (Gu et al.
    2015, arXiv:1511.05176).
    """
    z = stop_gradient(reparameterize(q, noise))
    value, mean = f(z), q.mean
    at_mean, slope = jax.value_and_grad(f)(stop_gradient(mean))
    expansion = at_mean + jnp.sum(slope * (z - mean))
    return with_gradient(value, (value - expansion, slope), (log_prob_of(q, z), mean))


# Reparameterized densities


@estimator(many_samples, CONTINUOUS, _each, _each, uses_samples_jointly=True)
def pathwise(noise: Array, q: Any, f: Function) -> Array:
    """The gradient of 1/K sum_k f(z_k), where z_k is a function of the parameters.

    Kingma & Welling 2013, arXiv:1312.6114. Most families have z as a function of noise. For gamma,
    beta, Dirichlet and Student's t the gradient is implicit, dz = -dF / q(z) (Figurnov et al. 2018,
    arXiv:1805.08498).
    """
    z = reparameterize(q, noise)
    if len(jax.tree.leaves(z)[0]) > 1:
        return jax.vmap(f)(z).mean()
    # XLA's CPU compiler handles an axis of one draw badly.
    return f(jax.tree.map(lambda leaf: leaf[0], z))


@estimator(one_sample, CONTINUOUS, _each, lambda k, d, c: 2 * k + 1 + d)
def linearized_pathwise(noise: Array, q: Normal, f: Function) -> Array:
    """The pathwise gradient of a Normal, with f's second-order expansion as control variate.

    The mean of the expansion's gradient is known (Miller et al. 2017, arXiv:1705.07880). For
    z = m + s e and the Hessian H of f at m, the gradient is f'(z) - H (z - m) in m, and
    (f'(z) - f'(m) - H (z - m)) e + diag(H) s in s. A Hessian-vector product counts as a gradient.
    """
    if not isinstance(q, Normal):
        raise ValueError(
            f"linearized_pathwise serves the diagonal Gaussian Normal; q is a {type(q).__name__}"
        )
    mean, scale = (stop_gradient(jnp.broadcast_to(a, q.event_shape)) for a in (q.loc, q.scale))
    z = mean + scale * noise
    value, slope = jax.value_and_grad(f)(z)
    at_mean, hessian = jax.linearize(jax.grad(f), mean)
    bent = hessian(z - mean)
    diagonal = jnp.diagonal(
        jax.vmap(hessian)(jnp.eye(mean.size).reshape(-1, *mean.shape)).reshape(mean.size, -1)
    )
    in_scale = (slope - at_mean - bent) * noise + diagonal.reshape(mean.shape) * scale
    return with_gradient(
        value, (slope - bent, in_scale), (q.mean, jnp.broadcast_to(q.scale, q.event_shape))
    )


def _lax_network(key: Array, q: Any, context: Array) -> Any:
    return CONTROL.init(key, jnp.concatenate([context.ravel(), jnp.ravel(q.mean)]))


CONTROL = networks.with_precision(networks.mlp((137,), 1, jnp.tanh))


def learned_function(control: Any, context: Array, z: Array) -> Array:
    """A small network of an example and a latent, used as control variate."""
    return CONTROL.apply(control, jnp.concatenate([context.ravel(), z.ravel()]))[0]


@controlled(one_sample, CONTINUOUS, _each, init=_lax_network, name="lax")
def lax_estimator(
    noise: Array, q: Any, f: Function, control: Any, context: Array
) -> tuple[Array, Any]:
    """REINFORCE with a learned c(z) as control variate; f may be a black box.

    (f(z) - c(z)) grad log q(z) + grad c(z(phi)), where c is trained for the least variance
    (Grathwohl et al. 2017, arXiv:1711.00123). The gradient of f is not used.

    Args:
      control_learning_rate: the learning rate of c.
    """
    z = stop_gradient(reparameterize(q, noise))
    value = f(z)
    left = value - learned_function(control, context, z)
    score = jax.grad(lambda q: log_prob_of(q, z))(q)
    path = jax.grad(lambda q: learned_function(control, context, reparameterize(q, noise)))(q)
    return value, jax.tree.map(lambda s, p: left * s + p, score, path)


# Measure-valued derivatives


def _measures_draw(coupled: bool) -> Any:
    def draw(key: Array, q: Any, num_samples: int) -> tuple:
        if not isinstance(q, Normal | Bernoulli | OneHotCategorical):
            served = "Normal, Bernoulli and OneHotCategorical"
            raise ValueError(
                f"measure-valued derivatives serve {served}; q is a {type(q).__name__}"
            )
        keys = jax.random.split(key, 6)
        if not isinstance(q, Normal):
            z = q.sample(keys[0])
            return (z, z) if coupled else (z, q.sample(keys[1]))
        shape, dtype = q.event_shape, q.mean.dtype
        rayleigh = lambda key: jnp.sqrt(2 * jax.random.exponential(key, shape, dtype))
        maxwell = jnp.linalg.norm(jax.random.normal(keys[0], (3, *shape), dtype), axis=0)
        maxwell *= jnp.where(jax.random.bernoulli(keys[1], 0.5, shape), 1, -1)
        rise = rayleigh(keys[2])
        fall = rise if coupled else rayleigh(keys[3])
        inner = maxwell * jax.random.uniform(keys[4], shape, dtype) if coupled else q.noise(keys[4])
        return q.noise(keys[5]), rise, fall, maxwell, inner

    return draw


def _measures_exact(coupled: bool, nodes: tuple[int, int] = (14, 28)) -> Any:
    def exact(q: Any, num_samples: int) -> Any:
        if not isinstance(q, Normal):
            z, weights = sample_law(q, 1)
            return ((z, z), weights) if coupled else product((z, weights), (z, weights))
        if q.mean.size != 1:
            raise ValueError(
                "the exact law of measure-valued derivatives of a Gaussian is there for one latent "
                "only"
            )
        x, weights = np.polynomial.hermite_e.hermegauss(nodes[0])
        normal = x, weights / weights.sum()
        maxwell = x, normal[1] * x**2
        x, weights = np.polynomial.legendre.leggauss(nodes[1])
        rayleigh = 5 * (x + 1), 5 * weights * (5 * (x + 1)) * np.exp(-((5 * (x + 1)) ** 2) / 2)
        uniform = (x + 1) / 2, weights / 2
        if coupled:
            (e, w, m, u), weights = product(normal, rayleigh, maxwell, uniform)
            noise = e, w, w, m, m * u
        else:
            noise, weights = product(normal, rayleigh, rayleigh, maxwell, normal)
        return tuple(a.reshape(-1, *q.event_shape) for a in noise), weights

    return exact


def _measures_noise(coupled: bool) -> Noise:
    fewer = _measures_exact(coupled, (10, 22))
    exact_coarser = lambda q, num_samples: fewer(q, num_samples) if isinstance(q, Normal) else None
    return Noise(_measures_draw(coupled), _measures_exact(coupled), exact_coarser)


def _measure_valued(noise: Any, q: Any, f: Function) -> Array:
    many = jax.vmap(f)
    if isinstance(q, Normal):
        loc, scale = (jnp.broadcast_to(a, q.event_shape) for a in (q.loc, q.scale))
        base, rise, fall, outer, inner = noise
        z = stop_gradient(loc + scale * base)
        at = lambda noise: many(replaced(z, stop_gradient(loc + scale * noise))).reshape(loc.shape)
        in_loc = (at(rise) - at(-fall)) / (scale * np.sqrt(2 * np.pi))
        return with_gradient(f(z), (in_loc, (at(outer) - at(inner)) / scale), (loc, scale))
    z, other = noise
    value = f(z)
    if isinstance(q, Bernoulli):
        up, down = many(replaced(z, jnp.ones_like(z))), many(replaced(other, jnp.zeros_like(z)))
        return with_gradient(value, (up - down).reshape(z.shape), q.mean)
    each = many(one_replaced(z)).reshape(z.shape)
    return with_gradient(value, q.mean * (each - (value if other is z else f(other))), q.logits)


def replaced(base: Array, values: Array) -> Array:
    """``base`` [*event] with each coordinate in turn replaced: [D, *event]."""
    each = jnp.broadcast_to(base.reshape(-1), (base.size, base.size))
    return jnp.where(jnp.eye(base.size, dtype=bool), values.reshape(1, -1), each).reshape(
        base.size, *base.shape
    )


def one_replaced(z: Array) -> Array:
    """One-hot z [*event, C] with each latent in turn set to each class: [D C, *event, C]."""
    classes = z.shape[-1]
    flat = z.reshape(-1, classes)
    swap = lambda d, c: flat.at[d].set(jnp.eye(classes, dtype=z.dtype)[c]).reshape(z.shape)
    return jax.vmap(swap)(*(i.ravel() for i in jnp.indices((len(flat), classes))))


@estimator(
    _measures_noise(True),
    ANY,
    lambda k, d, c: k * ((c or 4) * d + 1),
)
def measure_valued(noise: Any, q: Any, f: Function) -> Array:
    """Weak derivatives, c (f(z+) - f(z-)) for each parameter, with a coupled pair.

    Mohamed et al. 2020, arXiv:1906.10652, sec. 6. For the mean of a Gaussian z+- = m +- s w with w
    Rayleigh and c = 1 / (s sqrt(2 pi)). For its scale z+ has a double-sided Maxwell distribution,
    z- a normal one, and c = 1 / s. For a Bernoulli's probability z+ is 1 and z- is 0. For the logit
    of a category z+ is the category, z- is a draw, and c is the category's probability. The pair
    shares w and the other latents, and its normal is the Maxwell times a uniform.
    """
    return _measure_valued(noise if isinstance(q, Normal) else (noise[0], noise[0]), q, f)


@estimator(
    _measures_noise(False),
    ANY,
    lambda k, d, c: k * (4 * d + 1 if c == 0 else 2 * d + 1 if c == 2 else c * d + 2),
)
def measure_valued_independent(noise: Any, q: Any, f: Function) -> Array:
    """``measure_valued`` with an independent pair.

    It is better only if f is steep. For f(x) = (x - k)^2 and the mean m it is better if
    ((m - k) / s)^2 > 2 / (4 - pi).
    """
    return _measure_valued(noise, q, f)
