"""Distributions over unit vectors x [D], D >= 2, in nats.

Densities are over the surface of the unit sphere. Two families have a direction ``loc``. They tilt
the uniform distribution u along t = loc^T x: p(x) = u(x) e^(k T(t) - A(k)) with A(0) = 0. So
KL(p || u) = k A'(k) - A(k), and a sample consists of t and of a direction around ``loc``.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import betaln, logsumexp

from jaxvae.contracts import Array, pytree
from jaxvae.distributions.contract import check_event, many

NODES, STEP = np.linspace(-4.0, 4.0, 64, retstep=True)  # of the trapezoidal rule
LEGENDRE = np.polynomial.legendre.leggauss(24)  # nodes and weights on [-1, 1]


def log_area(dimensions: int) -> float:
    """log 2 pi^(D/2) / Gamma(D/2), the area of the unit sphere in D ``dimensions``."""
    return math.log(2) + dimensions / 2 * math.log(math.pi) - math.lgamma(dimensions / 2)


def _sphere(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(
            f"{name} is a distribution over one unit sphere of vectors [D] with D >= 2; their "
            f"shape was {shape}. A batch goes through jax.vmap, and the two points of one "
            "dimension are a Bernoulli."
        )
    return shape


def _direction(key: Array, shape: tuple[int, ...]) -> Array:
    """A uniform draw of unit vectors: normal vectors, divided by their lengths."""
    x = jax.random.normal(key, shape)
    x = jnp.where((x == 0).all(-1, keepdims=True), 1.0, x)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@pytree
class SphericalUniform:
    """The uniform distribution over the unit sphere, Gamma(D/2) / (2 pi^(D/2))."""

    dimensions: int = dataclasses.field(metadata={"static": True})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return _sphere((self.dimensions,), type(self).__name__)

    @property
    def mean(self) -> Array:
        return jnp.zeros(self.event_shape)

    @property
    def entropy(self) -> Array:
        return jnp.asarray(log_area(*self.event_shape))

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return _direction(key, shape + self.event_shape)

    def log_prob(self, x: Array) -> Array:
        return jnp.full(check_event(self, x), -self.entropy)


class _Tilted:
    """A distribution p(x) = u(x) e^(k T(t) - A(k)). Members define the properties below."""

    loc: Array
    concentration: Array

    def statistic(self, x: Array) -> Array:
        """T at points ``x [..., D]``."""
        raise NotImplementedError

    def log_partition(self, concentration: Array) -> Array:
        """A(k)."""
        raise NotImplementedError

    @property
    def shortfall(self) -> Array:
        """1 - E t, without cancellation."""
        raise NotImplementedError

    def log_odds(self, key: Array) -> Array:
        """A sample of log((1 - t) / (1 + t)), with its gradient in k."""
        raise NotImplementedError

    @property
    def event_shape(self) -> tuple[int, ...]:
        return _sphere(jnp.shape(self.loc), type(self).__name__)

    @property
    def dimensions(self) -> int:
        return self.event_shape[0]

    @property
    def mean(self) -> Array:
        return (1 - self.shortfall) * self.loc

    @property
    def kl_to_uniform(self) -> Array:
        """KL(p || u) = k A'(k) - A(k)."""
        k = jnp.asarray(self.concentration, float)
        value, slope = jax.value_and_grad(self.log_partition)(k)
        return k * slope - value

    @property
    def entropy(self) -> Array:
        return log_area(self.dimensions) - self.kl_to_uniform

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        def one(key: Array) -> Array:
            key_along, key_around = jax.random.split(key)
            return _around(key_around, self.loc, self.log_odds(key_along))

        _sphere(jnp.shape(self.loc), type(self).__name__)
        return many(one, key, shape)

    def log_prob(self, x: Array) -> Array:
        check_event(self, x)
        tilt = self.concentration * self.statistic(x) - self.log_partition(self.concentration)
        return tilt - log_area(self.dimensions)


def _half_square(x: Array, loc: Array) -> Array:
    """1 - loc^T x = |x - loc|^2 / 2 of unit vectors, without cancellation."""
    return 0.5 * ((x - loc) ** 2).sum(-1)


def _around(key: Array, loc: Array, log_odds: Array) -> Array:
    """t loc + sqrt(1 - t^2) H v with t = -tanh(log_odds / 2).

    v is uniform over the unit vectors orthogonal to e_1. The Householder reflection H takes e_1 to
    the farther one of loc and -loc, so that its derivative in loc is bounded.
    """
    sign = jnp.where(loc[0] > 0, -1.0, 1.0)
    v = jnp.append(0.0, _direction(key, (loc.shape[0] - 1,)))
    u = jnp.eye(1, loc.shape[0])[0] - sign * loc
    reflected = v - u * jnp.matmul(u, v, precision="float32") / (1 + jnp.abs(loc[0]))
    half = 0.5 * jnp.clip(log_odds, -80.0, 80.0)
    return -jnp.tanh(half) * loc + reflected / jnp.cosh(half)


@pytree
class PowerSpherical(_Tilted):
    """p(x) ~ (1 + loc^T x)^k over unit vectors x [D], k >= 0 the ``concentration``.

    The normalizer is 2^-(a+b) pi^-b Gamma(a+b) / Gamma(a) with b = (D-1)/2 and a = b + k (De Cao &
    Aziz 2020, arXiv:2006.04437). (1 + t) / 2 follows Beta(a, b), so it is a function of two gammas,
    which have implicit gradients. ``loc`` is a unit vector.
    """

    loc: Array
    concentration: Array

    @property
    def b(self) -> float:
        return (self.dimensions - 1) / 2

    def statistic(self, x: Array) -> Array:
        """log((1 + t) / 2), from the nearer pole."""
        miss, rest = 0.5 * _half_square(x, self.loc), 0.5 * _half_square(x, -self.loc)
        near = miss < 0.5
        return jnp.where(
            near, jnp.log1p(-jnp.where(near, miss, 0.0)), jnp.log(jnp.where(near, 1.0, rest))
        )

    def log_partition(self, concentration: Array) -> Array:
        """log B(b + k, b) / B(b, b)."""
        return betaln(self.b + concentration, self.b) - (
            2 * math.lgamma(self.b) - math.lgamma(2 * self.b)
        )

    @property
    def shortfall(self) -> Array:
        return 2 * self.b / (2 * self.b + self.concentration)

    def log_odds(self, key: Array) -> Array:
        k = jnp.asarray(self.concentration, float)
        far, near = jax.random.loggamma(key, jnp.stack([jnp.full_like(k, self.b), self.b + k]))
        return far - near


@pytree
class VonMisesFisher(_Tilted):
    """p(x) = k^v e^(k loc^T x) / ((2 pi)^(D/2) I_v(k)) over unit vectors x [D].

    v = D/2 - 1, and k >= 0 is the ``concentration``; ``loc`` is a unit vector (Davidson et al.
    2018, arXiv:1804.00891). t = loc^T x is drawn by rejection (Ulrich 1984; Wood 1994) and carries
    its implicit gradient, -(dF/dk) / p(t) with F its distribution function.
    """

    loc: Array
    concentration: Array

    def statistic(self, x: Array) -> Array:
        """t - 1."""
        return -_half_square(x, self.loc)

    def log_partition(self, concentration: Array) -> Array:
        return log_bessel_partition(concentration, self.dimensions)

    @property
    def shortfall(self) -> Array:
        """1 - I_(v+1)(k) / I_v(k)."""
        return -jax.grad(self.log_partition)(jnp.asarray(self.concentration, float))

    def log_odds(self, key: Array) -> Array:
        k = jnp.asarray(self.concentration, float)
        return _implicit(_rejection(key, lax.stop_gradient(k), self.dimensions), k, self.dimensions)


def log_bessel_partition(concentration: Array, dimensions: int) -> Array:
    """log E_u e^(k (t - 1)) = log Gamma(v+1) (2/k)^v I_v(k) e^-k, v = D/2 - 1, for any k >= 0.

    With y = log((1 - t) / (1 + t)) and s = sigmoid(y) it is the integral of
    e^(-2 k s) (s (1 - s))^((D-1)/2). This function is analytic and decays at both ends, so the
    trapezoidal rule around its mode is right to eight digits. Derivatives in k are moments under
    the same weights.
    """
    still = lax.stop_gradient(concentration)
    peak, shortfall, log_weights = _nodes(still, (dimensions - 1) / 2)
    return peak + logsumexp(log_weights - (concentration - still) * shortfall)


def _nodes(k: Array, m: float) -> tuple[Array, Array, Array]:
    """The logarithm of the integrand at its mode; nodes 1 - t [T]; their log-weights.

    m = (D-1)/2.
    """
    root = jnp.hypot(k, m)
    short, t = (
        2 * m / (k + m + root),
        (k + k**2 / (root + m)) / (k + m + root),
    )  # 1 - t and t at the mode
    peak = m * jnp.where(short < 0.5, jnp.log(short * (2 - short)), jnp.log1p(-(t**2))) - k * short
    width = lax.rsqrt(short * (1 - short / 2) * (k * t + m))
    y = width * jnp.asarray(np.sinh(NODES), k.dtype)  # from the mode
    rest = short / 2 * jnp.expm1(y)
    log_density = m * (y - 2 * jnp.log1p(rest)) - 2 * k * (1 - short / 2) * rest / (1 + rest)
    log_uniform = 2 * m * math.log(2) + 2 * math.lgamma(m) - math.lgamma(2 * m)
    log_step = jnp.log(width) + jnp.asarray(np.log(STEP * np.cosh(NODES)), k.dtype)
    return peak, short * jnp.exp(y) / (1 + rest), log_density + log_step - log_uniform


def _rejection(key: Array, k: Array, dimensions: int) -> Array:
    """log((1 - t) / (1 + t)) for t drawn from e^(k t) (1 - t^2)^((D-3)/2).

    Wood 1994, Commun. Stat. Simul. 23. Proposals are t = (1 - (1+b) z) / (1 - (1-b) z) with
    z ~ Beta((D-1)/2, (D-1)/2).
    """
    last = dimensions - 1
    b = last / (2 * k + jnp.hypot(2 * k, last))
    miss, at = 2 * b / (1 + b), (1 - b) / (1 + b)  # 1 - x_0 and x_0

    def propose(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        key, key_gammas, key_accept = jax.random.split(state[0], 3)
        far, near = jax.random.loggamma(key_gammas, jnp.full(2, last / 2, k.dtype))
        y = jnp.log(b) + far - near
        short = 2 * jax.nn.sigmoid(y)
        log_ratio = k * (miss - short) + last * jnp.log((miss + at * short) / (miss * (1 + at)))
        return key, y, log_ratio >= -jax.random.exponential(key_accept, k.shape, k.dtype)

    start = key, jnp.zeros_like(k), jnp.zeros(k.shape, bool)
    return lax.while_loop(lambda state: ~state[2], propose, start)[1]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _implicit(y: Array, k: Array, dimensions: int) -> Array:
    """y, a sample of log((1 - t) / (1 + t)), that moves with k."""
    return y


@_implicit.defjvp
def _implicit_jvp(dimensions: int, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    y, k = primals
    return y, _slope(y, k, dimensions) * tangents[1]


def _slope(y: Array, k: Array, dimensions: int) -> Array:
    """dy/dk = -(dF/dk) / p(y).

    In the angle a, t = cos a, it is -2 / sin a times the integral of |cos - E t| p / p(a) from a to
    the end that lies away from E t: all its terms have one sign.
    """
    a, sine = 2 * jnp.arctan(jnp.exp(y / 2)), 1 / jnp.cosh(y / 2)
    shortfall = -jax.grad(log_bessel_partition)(k, dimensions)
    reach = 8 * lax.rsqrt(k + dimensions - 1)  # beyond, there is no mass
    left = 2 * jax.nn.sigmoid(y) < shortfall
    low = jnp.where(left, jnp.maximum(a - reach, 0.0), a)
    high = jnp.where(left, a, jnp.minimum(a + reach, jnp.pi))
    nodes, weights = (jnp.asarray(values, k.dtype) for values in LEGENDRE)
    angles = low + (high - low) * (nodes + 1) / 2
    log_ratio = -2 * k * jnp.sin((angles + a) / 2) * jnp.sin((angles - a) / 2)
    log_ratio += (dimensions - 2) * jnp.log(jnp.maximum(jnp.sin(angles), 1e-30) / sine)
    moment = jnp.abs(shortfall - 2 * jnp.sin(angles / 2) ** 2) * jnp.exp(log_ratio)
    return -(high - low) / sine * (weights * moment).sum()
