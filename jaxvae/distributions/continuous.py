"""Continuous distributions, in nats."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, gammaln, xlog1py, xlogy

from jaxvae.contracts import Array, pytree
from jaxvae.distributions.contract import LOG_2PI, Factorized, check_event
from jaxvae.distributions.discrete import bernoulli_log_prob
from jaxvae.distributions.triangular import solve_lower

EDGE = 1e-6  # how near to 0 and 1 a draw of a Kumaraswamy distribution comes


@pytree
class Normal(Factorized):
    """Gaussian with diagonal covariance, log N(x; loc, scale^2) summed over the event."""

    loc: Array
    scale: Array

    @property
    def mean(self) -> Array:
        return self._full(self.loc)

    def noise(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Standard normal noise."""
        return jax.random.normal(key, shape + self.event_shape, jnp.result_type(self.loc))

    def from_noise(self, noise: Array) -> Array:
        return self.loc + self.scale * noise

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return self.from_noise(self.noise(key, shape))

    def log_density(self, x: Array) -> Array:
        return -0.5 * ((x - self.loc) / self.scale) ** 2 - jnp.log(self.scale) - 0.5 * LOG_2PI


@pytree
class Point:
    """All mass at ``loc``, the posterior of a deterministic encoder.

    Its density at ``loc`` and its KL divergence are infinite.
    """

    loc: Array

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.loc)

    @property
    def mean(self) -> Array:
        return self.loc

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return jnp.broadcast_to(self.loc, shape + self.event_shape)

    def log_prob(self, x: Array) -> Array:
        lead = check_event(self, x)
        there = jnp.all((x == self.loc).reshape(*lead, -1), -1)
        return jnp.where(there, jnp.inf, -jnp.inf)


@pytree
class MultivariateNormal:
    """Gaussian with full covariance L L^T.

    ``loc`` is [D], and ``scale_tril`` is L [D, D], lower triangular.
    """

    loc: Array
    scale_tril: Array

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.loc)

    @property
    def mean(self) -> Array:
        return self.loc

    def noise(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Standard normal noise."""
        return jax.random.normal(key, shape + self.event_shape, jnp.result_type(self.loc))

    def from_noise(self, noise: Array) -> Array:
        return self.loc + jnp.matmul(noise, self.scale_tril.T, precision="float32")

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return self.from_noise(self.noise(key, shape))

    def log_prob(self, x: Array) -> Array:
        lead = check_event(self, x)
        residual = (x - self.loc).reshape(-1, self.event_shape[0])  # [samples, D]
        white = solve_lower(self.scale_tril, residual.T)  # [D, samples]
        log_det = jnp.log(jnp.abs(jnp.diagonal(self.scale_tril))).sum()
        return (-0.5 * (white**2 + LOG_2PI).sum(0) - log_det).reshape(lead)


@pytree
class Laplace(Factorized):
    """Laplace, p(x) = exp(-|x - loc| / scale) / (2 scale) per coordinate."""

    loc: Array
    scale: Array

    @property
    def mean(self) -> Array:
        return self._full(self.loc)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return self.loc + self.scale * jax.random.laplace(
            key, shape + self.event_shape, jnp.result_type(self.loc)
        )

    def log_density(self, x: Array) -> Array:
        return -jnp.abs(x - self.loc) / self.scale - jnp.log(2 * self.scale)


@pytree
class ContinuousBernoulli(Factorized):
    """Continuous Bernoulli on [0, 1], in the log-odds l = ``logits``.

    p(x) = C(l) e^(x l) / (1 + e^l) with C(l) = l / tanh(l / 2) and C(0) = 2 (Loaiza-Ganem &
    Cunningham 2019, arXiv:1907.06845, eq. 1 and 2, there in probabilities).
    """

    logits: Array

    def _near_zero(self) -> tuple[Array, Array]:
        near = jnp.abs(self.logits) < 0.5
        return near, jnp.where(near, 1.0, self.logits)

    @property
    def log_normalizer(self) -> Array:
        """log C(l); near zero by its series log 2 + l^2/12 - 7 l^4/1440 + 31 l^6/90720 - ..."""
        near, l = self._near_zero()
        magnitude = jnp.abs(l)
        far = jnp.log(magnitude) - jnp.log(jnp.tanh(magnitude / 2))
        square = jnp.where(near, self.logits, 0.0) ** 2
        series = math.log(2) + square / 12 - 7 * square**2 / 1440 + 31 * square**3 / 90720
        series -= 127 * square**4 / 4838400
        return jnp.where(near, series, far)

    @property
    def mean(self) -> Array:
        """1 / (1 - e^-l) - 1 / l; near zero by its series 1/2 + l/12 - l^3/720 + l^5/30240."""
        near, l = self._near_zero()
        small = jnp.where(near, self.logits, 0.0)
        series = 0.5 + small / 12 - small**3 / 720 + small**5 / 30240
        magnitude = jnp.abs(l)
        upper = -1 / jnp.expm1(-magnitude) - 1 / magnitude  # the mean at |l|
        return jnp.where(near, series, jnp.where(l > 0, upper, 1 - upper))

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """The inverse of the distribution function, x = log(1 + u (e^l - 1)) / l.

        It is taken from the side where e^l <= 1.
        """
        u = jax.random.uniform(key, shape + self.event_shape, jnp.result_type(self.logits))
        tiny = jnp.abs(self.logits) < 1e-3
        negative = -jnp.abs(jnp.where(tiny, 1.0, self.logits))
        x = jnp.clip(jnp.log1p(u * jnp.expm1(negative)) / negative, 0.0, 1.0)
        return jnp.where(tiny, u, jnp.where(self.logits > 0, 1 - x, x))

    def log_prob_flat(self, x: Array) -> Array:
        logits, x = jnp.broadcast_arrays(self.logits, jnp.asarray(x, jnp.result_type(self.logits)))
        return bernoulli_log_prob(logits, x) + self.log_normalizer.sum(-1)


@pytree
class Gamma(Factorized):
    """Gamma, p(x) = rate^a x^(a-1) e^(-rate x) / Gamma(a) with ``concentration`` a.

    Samples carry the implicit gradient -(dF/da) / p(x) (Figurnov et al. 2018, arXiv:1805.08498).
    The samples of Beta and Dirichlet are functions of gammas.
    """

    concentration: Array
    rate: Array

    @property
    def mean(self) -> Array:
        return self._full(self.concentration / self.rate)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        concentration = jnp.broadcast_to(self.concentration, shape + self.event_shape)
        return jax.random.gamma(key, concentration) / self.rate

    def log_density(self, x: Array) -> Array:
        a = self.concentration
        return xlogy(a, self.rate) + xlogy(a - 1, x) - self.rate * x - gammaln(a)


@pytree
class Exponential(Factorized):
    """Exponential, p(x) = exp(-x / mean) / mean per coordinate, of x >= 0.

    It is the density of the power |s|^2 of a complex Gaussian s whose variance is the mean.
    """

    log_mean: Array

    @property
    def mean(self) -> Array:
        return jnp.exp(self.log_mean)

    def noise(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Exponential noise of mean one."""
        return jax.random.exponential(key, shape + self.event_shape, jnp.result_type(self.log_mean))

    def from_noise(self, noise: Array) -> Array:
        return self.mean * noise

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return self.from_noise(self.noise(key, shape))

    def log_density(self, x: Array) -> Array:
        return -x * jnp.exp(-self.log_mean) - self.log_mean


@pytree
class Beta(Factorized):
    """Beta on [0, 1], p(x) = x^(a-1) (1-x)^(b-1) / B(a, b)."""

    concentration1: Array
    concentration0: Array

    @property
    def mean(self) -> Array:
        return self._full(self.concentration1 / (self.concentration1 + self.concentration0))

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        full = lambda a: jnp.broadcast_to(a, shape + self.event_shape)
        return jax.random.beta(key, full(self.concentration1), full(self.concentration0))

    def log_density(self, x: Array) -> Array:
        a, b = self.concentration1, self.concentration0
        return xlogy(a - 1, x) + xlog1py(b - 1, -x) - betaln(a, b)


@pytree
class Kumaraswamy(Factorized):
    """Kumaraswamy on (0, 1), p(x) = a b x^(a-1) (1 - x^a)^(b-1).

    Kumaraswamy 1980, J. Hydrology 46. Draws are x = (1 - u^(1/b))^(1/a) with u uniform. They are
    kept ``EDGE`` away from 0 and 1, where densities of Beta priors have no finite logarithm.
    """

    a: Array
    b: Array

    @property
    def mean(self) -> Array:
        """b B(1 + 1/a, b)."""
        return self._full(self.b * jnp.exp(betaln(1 + 1 / self.a, self.b)))

    def noise(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Uniform noise in (0, 1)."""
        kind = jnp.result_type(self.a)
        tiny = jnp.finfo(kind).tiny
        return jax.random.uniform(key, shape + self.event_shape, kind, minval=tiny)

    def from_noise(self, noise: Array) -> Array:
        logarithm = log1mexp(-jnp.log(noise) / self.b) / self.a
        return jnp.clip(jnp.exp(logarithm), EDGE, 1 - EDGE)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return self.from_noise(self.noise(key, shape))

    def log_density(self, x: Array) -> Array:
        log_x = jnp.log(x)
        rest = (self.b - 1) * log1mexp(-self.a * log_x)
        return jnp.log(self.a * self.b) + (self.a - 1) * log_x + rest


def log1mexp(x: Array) -> Array:
    """log(1 - e^-x) for x > 0, from the side that loses no digits (Maechler 2012)."""
    small = x < math.log(2)
    near, far = jnp.where(small, x, 1.0), jnp.where(small, 1.0, x)
    return jnp.where(small, jnp.log(-jnp.expm1(-near)), jnp.log1p(-jnp.exp(-far)))


def stick_lengths(fractions: Array) -> Array:
    """Lengths of a unit stick's pieces, pi_k = v_k prod_{j<k} (1 - v_j), [D] -> [D + 1].

    Sethuraman 1994, Statistica Sinica 4. The last piece is what D breaks leave.
    """
    left = jnp.cumprod(1 - fractions)
    return jnp.concatenate([fractions, jnp.ones(1)]) * jnp.concatenate([jnp.ones(1), left])


@pytree
class Dirichlet:
    """Dirichlet distributions over the last axis, with ``concentration`` a.

    p(x) = Gamma(sum_c a_c) prod_c x_c^(a_c - 1) / Gamma(a_c).
    """

    concentration: Array

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.concentration)

    @property
    def mean(self) -> Array:
        return self.concentration / self.concentration.sum(-1, keepdims=True)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return jax.random.dirichlet(key, self.concentration, shape + self.event_shape[:-1])

    def log_prob(self, x: Array) -> Array:
        lead, a = check_event(self, x), self.concentration
        log_density = xlogy(a - 1, x).sum(-1) + gammaln(a.sum(-1)) - gammaln(a).sum(-1)
        return log_density.sum(axis=tuple(range(len(lead), log_density.ndim)))


@pytree
class StudentT(Factorized):
    """Student's t with ``df`` degrees of freedom v.

    p(x) is proportional to (1 + ((x - loc) / scale)^2 / v)^(-(v+1)/2).
    """

    df: Array
    loc: Array
    scale: Array

    @property
    def mean(self) -> Array:
        """loc for v > 1, else nan."""
        return self._full(jnp.where(self.df > 1, self.loc, jnp.nan))

    def noise(self, key: Array, shape: tuple[int, ...] = ()) -> tuple[Array, Array]:
        """Two uniform numbers in (0, 1) for each coordinate."""
        kind = jnp.result_type(self.loc)
        u = jax.random.uniform(key, (2, *shape, *self.event_shape), kind, jnp.finfo(kind).tiny)
        return u[0], u[1]

    def from_noise(self, noise: tuple[Array, Array]) -> Array:
        """sqrt(v (u^(-2/v) - 1)) cos(2 pi u'), Bailey 1994, Math. Comp. 62."""
        radius = jnp.sqrt(self.df * jnp.expm1(-2 / self.df * jnp.log(noise[0])))
        return self.loc + self.scale * radius * jnp.cos(2 * jnp.pi * noise[1])

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return self.from_noise(self.noise(key, shape))

    def log_density(self, x: Array) -> Array:
        v = self.df
        normalizer = (
            betaln(v / 2, 0.5) + 0.5 * jnp.log(v) + jnp.log(self.scale)
        )  # differences of gammaln cancel
        return -0.5 * (v + 1) * jnp.log1p(((x - self.loc) / self.scale) ** 2 / v) - normalizer
