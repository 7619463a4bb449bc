"""Divergences between distributions, in nats.

``kl(q, p)`` is in closed form for every pair that has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, log_softmax, sigmoid, softplus
from jax.scipy.special import betaln, digamma
from jax.scipy.stats import norm

from jaxvae.distributions import (
    LOG_2PI,
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    Independent,
    Joint,
    Kumaraswamy,
    Laplace,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    PowerSpherical,
    SphericalUniform,
    SpikeAndSlab,
    VonMisesFisher,
    event_shapes,
    log1mexp,
    log_prob_of,
    sample_and_log_prob_of,
    sample_noise,
)
from jaxvae.distributions.triangular import solve_lower

Array = jax.Array

# (type of q, type of p) -> function(q, p). The first table's members return one term for each
# coordinate, [*event].
FACTORIZED_KL: dict[tuple[type, type], Callable[[Any, Any], Array]] = {}
JOINT_KL: dict[tuple[type, type], Callable[[Any, Any], Array]] = {}


def register_kl(q: type, p: type, factorized: bool = False) -> Callable:
    """Decorator that adds a closed form for a pair of types, such as a user's types.

    A ``factorized`` form returns one term for each coordinate of the event, so KL is known per
    latent. Other forms return a scalar.
    """

    def add(function: Callable[[Any, Any], Array]) -> Callable[[Any, Any], Array]:
        (FACTORIZED_KL if factorized else JOINT_KL)[q, p] = function
        return function

    return add


def kl(q: Any, p: Any, key: Array | None = None, num_samples: int = 1) -> Array:
    """KL(q || p) = E_q[log q(z) - log p(z)], in closed form or by Monte Carlo, in nats.

    Args:
      q, p: distributions over the same event.
      key: for the Monte Carlo estimate; without it, a pair that has no closed form is refused.
      num_samples: samples of the Monte Carlo estimate.

    Returns a scalar. Raises ValueError if the event shapes differ, if a log-density is not a
    scalar, or when a key is needed and none came.
    """
    _check_same_event(q, p)
    pair = type(q), type(p)
    if pair in FACTORIZED_KL:
        return _coordinates(q, p).sum()
    if pair in JOINT_KL:
        return JOINT_KL[pair](q, p)
    if (
        pair == (Independent, Independent)
        and has_closed_form(q.distribution, p.distribution)
        and q.ndim == p.ndim
    ):
        return q._map(kl)(q.distribution, p.distribution).sum()
    if key is None:
        raise ValueError(
            f"KL({pair[0].__name__} || {pair[1].__name__}) has no closed form here: pass key= for "
            "a Monte Carlo estimate, or add the closed form with divergences.register_kl."
        )
    return sampled_kl(key, q, p, num_samples)


def sampled_kl(key: Array, q: Any, p: Any, num_samples: int = 1) -> Array:
    """KL(q || p) estimated by mean_k [log q(z_k) - log p(z_k)], z_k ~ q, in nats.

    It is unbiased for any pair.
    """
    z, log_q = sample_and_log_prob_of(q, sample_noise(q, key, (num_samples,)))
    return jnp.mean(log_q - jax.vmap(lambda z: log_prob_of(p, z))(z))


def kl_per_latent(q: Any, p: Any) -> Array | None:
    """KL of each latent's marginal, [*event] in nats, or None if no closed form is known.

    The axis of classes of one-hot latents is summed. If both factorize, the sum is ``kl(q, p)``. A
    full-covariance q and a factorized p have
    kl(q, p) = sum_j KL(q_j || p_j) + KL(q || prod_j q_j). So the sum falls short by q's total
    correlation.
    """
    q, p = _marginals(q), _marginals(p)
    return _coordinates(q, p) if (type(q), type(p)) in FACTORIZED_KL else None


def has_closed_form(q: Any, p: Any) -> bool:
    """Whether ``kl(q, p)`` needs no samples."""
    pair = type(q), type(p)
    if pair == (Independent, Independent):
        return q.ndim == p.ndim and has_closed_form(q.distribution, p.distribution)
    return pair in FACTORIZED_KL or pair in JOINT_KL


def _check_same_event(q: Any, p: Any) -> None:
    batches = [getattr(distribution, "batch_shape", ()) for distribution in (q, p)]
    events = [event_shapes(distribution) for distribution in (q, p)]
    if events[0] != events[1] or batches != [(), ()]:
        named = zip((q, p), events, strict=True)
        described = [f"{type(d).__name__} has event shape {event}" for d, event in named]
        described += [f"batch shape {batch}" for batch in batches if batch]
        raise ValueError(
            f"KL needs two distributions over the same event: {', '.join(described)}. "
            "For NumPyro, move batch axes into the event with to_event()."
        )


def _coordinates(q: Any, p: Any) -> Array:
    terms = FACTORIZED_KL[type(q), type(p)](q, p)
    if isinstance(q, Joint):
        return terms
    return jnp.broadcast_to(
        terms, q.event_shape[:-1] if isinstance(q, OneHotCategorical) else q.event_shape
    )


def _marginals(distribution: Any) -> Any:
    if isinstance(distribution, MultivariateNormal):
        return Normal(distribution.loc, jnp.linalg.norm(distribution.scale_tril, axis=-1))
    return distribution


@register_kl(Normal, Normal, factorized=True)
def _normal_normal(q: Normal, p: Normal) -> Array:
    """log(s_p/s_q) + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1/2.

    Kingma & Welling 2013, arXiv:1312.6114, app. B.
    """
    ratio = q.scale / p.scale
    return 0.5 * (ratio**2 + ((q.loc - p.loc) / p.scale) ** 2 - 1.0) - jnp.log(ratio)


@register_kl(Laplace, Laplace, factorized=True)
def _laplace_laplace(q: Laplace, p: Laplace) -> Array:
    """log(b_p/b_q) + (d + b_q e^(-d/b_q)) / b_p - 1 with d = |m_q - m_p|.

    Gil et al. 2013, Inf. Sci. 249.
    """
    distance = jnp.abs(q.loc - p.loc)
    return (
        jnp.log(p.scale / q.scale)
        + (distance + q.scale * jnp.exp(-distance / q.scale)) / p.scale
        - 1.0
    )


@register_kl(Normal, Laplace, factorized=True)
def _normal_laplace(q: Normal, p: Laplace) -> Array:
    """-1/2 log(2 pi e s^2) + log(2 b) + E|x - m_p| / b, with the mean of a folded normal."""
    shift = (q.loc - p.loc) / q.scale
    folded = q.scale * (2 * norm.pdf(shift) + shift * (2 * norm.cdf(shift) - 1))
    return jnp.log(2 * p.scale) + folded / p.scale - 0.5 * (1 + LOG_2PI) - jnp.log(q.scale)


@register_kl(Laplace, Normal, factorized=True)
def _laplace_normal(q: Laplace, p: Normal) -> Array:
    """-log(2 b e) + 1/2 log(2 pi s^2) + (2 b^2 + (m_q - m_p)^2) / (2 s^2)."""
    square = 2 * q.scale**2 + (q.loc - p.loc) ** 2
    return 0.5 * square / p.scale**2 + jnp.log(p.scale / (2 * q.scale)) + 0.5 * LOG_2PI - 1.0


@register_kl(Bernoulli, Bernoulli, factorized=True)
def _bernoulli_bernoulli(q: Bernoulli, p: Bernoulli) -> Array:
    """pi_q log(pi_q/pi_p) + (1 - pi_q) log((1 - pi_q)/(1 - pi_p)), in log-odds."""
    ones = sigmoid(q.logits) * (log_sigmoid(q.logits) - log_sigmoid(p.logits))
    return ones + sigmoid(-q.logits) * (log_sigmoid(-q.logits) - log_sigmoid(-p.logits))


@register_kl(OneHotCategorical, OneHotCategorical, factorized=True)
@register_kl(Categorical, Categorical, factorized=True)
def _categorical_categorical(
    q: Categorical | OneHotCategorical, p: Categorical | OneHotCategorical
) -> Array:
    """sum_c q_c log(q_c / p_c), where 0 log 0 = 0."""
    log_q, log_p = log_softmax(q.logits), log_softmax(p.logits)
    mass = log_q > -jnp.inf
    ratio = jnp.where(mass, log_q, 0.0) - jnp.where(mass, log_p, 0.0)
    return (jnp.exp(log_q) * ratio).sum(-1)


@register_kl(ContinuousBernoulli, ContinuousBernoulli, factorized=True)
def _continuous_bernoulli(q: ContinuousBernoulli, p: ContinuousBernoulli) -> Array:
    """A(l_p) - A(l_q) + E_q[x] (l_q - l_p), of an exponential family in l.

    The log-partition is A(l) = log(1 + e^l) - log C(l).
    """
    partition = lambda d: softplus(d.logits) - d.log_normalizer
    return partition(p) - partition(q) + q.mean * (q.logits - p.logits)


@register_kl(Beta, Beta, factorized=True)
def _beta_beta(q: Beta, p: Beta) -> Array:
    """log B(p) - log B(q) + (a_q - a_p) E log x + (b_q - b_p) E log(1 - x)."""
    a, b = q.concentration1, q.concentration0
    more_a, more_b = a - p.concentration1, b - p.concentration0
    partition = betaln(p.concentration1, p.concentration0) - betaln(a, b)
    both = (more_a + more_b) * digamma(a + b)
    return partition + more_a * digamma(a) + more_b * digamma(b) - both


@register_kl(Kumaraswamy, Beta, factorized=True)
def _kumaraswamy_beta(q: Kumaraswamy, p: Beta) -> Array:
    """Nalisnick & Smyth 2017, arXiv:1605.06197, eq. 16, with an integral in its series' place.

    (a - c)/a (-gamma - psi(b) - 1/b) + log(a b) + log B(c, d) - (b - 1)/b - (d - 1) E log(1 - x)
    for p = Beta(c, d). The paper cuts a series of E log(1 - x) after ten terms, and so KL is too
    small, most of all for small b.
    """
    a, b, c, d = q.a, q.b, p.concentration1, p.concentration0
    mean_log = (-np.euler_gamma - digamma(b) - 1 / b) / a
    rest = jnp.log(a * b) + betaln(c, d) - (b - 1) / b
    return (a - c) * mean_log + rest - (d - 1) * _mean_log_rest(a, b)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2  # on [0, 1]


def _mean_log_rest(a: Array, b: Array) -> Array:
    """E log(1 - x) of a Kumaraswamy distribution, by Gauss-Legendre quadrature.

    It is -1/b + int_0^1 [log(1 - x(u)) - log(u)/b] du. What is subtracted is the logarithm's pole
    at u = 0. With y = -log(u)/b the bracket is y + log(1 - (1 - e^-y)^(1/a)), which is -log a for
    large y.
    """
    a, b = jnp.broadcast_arrays(a, b)
    y = -jnp.log(jnp.asarray(_NODES, a.dtype)) / b[..., None]
    far = y > 25
    y = jnp.where(far, 1.0, y)
    a = a[..., None]
    bracket = jnp.where(far, -jnp.log(a), y + log1mexp(-log1mexp(y) / a))
    return -1 / b + (bracket * jnp.asarray(_WEIGHTS, a.dtype)).sum(-1)


@register_kl(SpikeAndSlab, SpikeAndSlab, factorized=True)
def _spike_and_slab(q: SpikeAndSlab, p: SpikeAndSlab) -> Array:
    """KL of the gates, plus KL of the slabs times the probability that q's gate is open.

    arXiv:1905.10185.
    """
    gates = _bernoulli_bernoulli(Bernoulli(q.logits), Bernoulli(p.logits))
    return gates + sigmoid(q.logits) * _normal_normal(
        Normal(q.loc, q.scale), Normal(p.loc, p.scale)
    )


@register_kl(PowerSpherical, SphericalUniform)
@register_kl(VonMisesFisher, SphericalUniform)
def _to_uniform_sphere(q: PowerSpherical | VonMisesFisher, p: SphericalUniform) -> Array:
    """log area - H[q].

    De Cao & Aziz 2020, arXiv:2006.04437; Davidson et al. 2018, arXiv:1804.00891.
    """
    return q.kl_to_uniform


@register_kl(PowerSpherical, VonMisesFisher)
@register_kl(VonMisesFisher, VonMisesFisher)
def _to_von_mises_fisher(q: PowerSpherical | VonMisesFisher, p: VonMisesFisher) -> Array:
    """KL(q || u) + A_p(k_p) + k_p (1 - E_q m_p^T x), with u uniform.

    De Cao & Aziz 2020, arXiv:2006.04437.
    """
    short = q.shortfall + (1 - q.shortfall) * 0.5 * ((q.loc - p.loc) ** 2).sum()
    return q.kl_to_uniform + p.log_partition(p.concentration) + p.concentration * short


@register_kl(Joint, Joint, factorized=True)
def _joint(q: Joint, p: Joint) -> Array:
    """The terms of all parts, one after the other."""
    return jnp.concatenate(
        [jnp.ravel(_coordinates(a, b)) for a, b in zip(q.parts, p.parts, strict=True)]
    )


@register_kl(MultivariateNormal, MultivariateNormal)
def _multivariate(q: MultivariateNormal, p: MultivariateNormal) -> Array:
    """1/2 (|L_p^-1 L_q|_F^2 + |L_p^-1 (m_q - m_p)|^2 - D) + log det L_p - log det L_q."""
    columns = jnp.concatenate([q.scale_tril, (q.loc - p.loc)[:, None]], 1)  # [D, D + 1]
    log_det = lambda d: jnp.log(jnp.abs(jnp.diagonal(d.scale_tril))).sum()
    squares = (solve_lower(p.scale_tril, columns) ** 2).sum()
    return 0.5 * (squares - q.loc.shape[-1]) + log_det(p) - log_det(q)


@register_kl(MultivariateNormal, Normal)
def _multivariate_diagonal(q: MultivariateNormal, p: Normal) -> Array:
    """1/2 (|L_q / s_p|_F^2 + |(m_q - m_p) / s_p|^2 - D) + sum log s_p - log det L_q."""
    scale = jnp.broadcast_to(p.scale, q.loc.shape)
    squares = ((q.scale_tril / scale[:, None]) ** 2).sum() + (((q.loc - p.loc) / scale) ** 2).sum()
    log_det = jnp.log(scale).sum() - jnp.log(jnp.abs(jnp.diagonal(q.scale_tril))).sum()
    return 0.5 * (squares - q.loc.shape[-1]) + log_det


@register_kl(Normal, MultivariateNormal)
def _diagonal_multivariate(q: Normal, p: MultivariateNormal) -> Array:
    """The KL of full covariances, with L_q = diag(s_q)."""
    scale = jnp.broadcast_to(q.scale, p.loc.shape)
    return _multivariate(MultivariateNormal(q.mean, jnp.diag(scale)), p)
