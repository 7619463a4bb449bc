"""Bounds on log p(x) for one example: ``(key, q, log_joint, num_samples) -> scalar``.

``q`` is the posterior q(z|x). ``log_joint(z) = log p(x|z) + log p(z)`` is a scalar, and its closure
holds x. z may be any pytree. Values are in nats. A bound is an ``expectations.Estimator``. Its
value estimates the bound that its field ``estimates`` names, and its gradient estimates the
gradient of this bound. The field ``unbiased`` says whether the gradient is unbiased.

Below, z_k ~ q, w_k = p(x, z_k) / q(z_k|x), v_k = w_k / sum_j w_j, and L_K = log 1/K sum_k w_k.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp

from jaxvae import divergences, expectations
from jaxvae.distributions import (
    Bernoulli,
    Normal,
    log_prob_of,
    reparameterize,
    sample_and_log_prob_of,
    sample_noise,
)
from jaxvae.expectations.contract import (
    ANY,
    BINARY,
    CONTINUOUS,
    Estimator,
    Noise,
    estimator,
    of_scalars,
    with_gradient,
)
from jaxvae.expectations.discrete import antithetic_pair
from jaxvae.expectations.noises import many_samples, power

Array = jax.Array
LogJoint = Callable[[Any], Array]  # z, any pytree -> log p(x, z)

BOUNDS: dict[str, Estimator] = {}
_bound = functools.partial(estimator, table=BOUNDS, uses_samples_jointly=True)
_each = lambda k, d, c: k


def log_weights(key: Array, q: Any, log_joint: LogJoint, num_samples: int) -> Array:
    """Log importance weights log p(x, z_k) - log q(z_k|x), z_k ~ q, [K] in nats.

    Raises ValueError if a log-density is not a scalar.
    """
    noise = sample_noise(q, key, (num_samples,))
    return _drawn_weights(noise, q, of_scalars(log_joint, "log_joint"))


def _drawn_weights(noise: Any, q: Any, log_joint: LogJoint) -> Array:
    """log w_k [K] of the draws that the noise gives."""
    z, log_q = sample_and_log_prob_of(q, noise)
    return jax.vmap(log_joint)(z) - log_q


def _log_weights(z: Any, q: Any, log_joint: LogJoint) -> Array:
    """log w_k [K] of draws z [K]."""
    return jax.vmap(lambda z: log_joint(z) - log_prob_of(q, z))(z)


def _log_densities(q: Any, z: Any) -> Array:
    """log q(z_k) of draws z [K], [K]."""
    return jax.vmap(lambda z: log_prob_of(q, z))(z)


def _log_mean(log_w: Array) -> Array:
    return logsumexp(log_w, -1) - jnp.log(log_w.shape[-1])


# Reparameterized


@_bound(many_samples, CONTINUOUS, _each, _each, estimates="elbo")
def elbo(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """Evidence lower bound with sampled KL, 1/K sum_k log w_k.

    Kingma & Welling 2013, arXiv:1312.6114, eq. 6.
    """
    return _drawn_weights(noise, q, log_joint).mean()


@_bound(many_samples, CONTINUOUS, _each, _each, estimates="elbo", takes_prior=True)
def elbo_analytic(noise: Array, q: Any, log_joint: LogJoint, prior: Any) -> Array:
    """The ELBO with KL in closed form, 1/K sum_k log p(x|z_k) - KL(q || p).

    Kingma & Welling 2013, arXiv:1312.6114, eq. 7. ``log_joint`` must carry no gradient in the
    prior's parameters. Raises ValueError if KL has no closed form.
    """
    fixed = stop_gradient(prior)
    z = reparameterize(q, noise)
    likelihood = jax.vmap(lambda z: log_joint(z) - log_prob_of(fixed, z))(z)
    return likelihood.mean() - divergences.kl(q, prior)


@_bound(many_samples, CONTINUOUS, _each, _each, estimates="iwae")
def iwae(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """Importance-weighted bound L_K = log 1/K sum_k w_k.

    Burda et al. 2015, arXiv:1509.00519, eq. 8. Its expectation rises with K towards log p(x).
    """
    return _log_mean(_drawn_weights(noise, q, log_joint))


def _pathwise(
    noise: Array, q: Any, log_joint: LogJoint, weights: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """log w_k, and a zero whose gradient is sum_k c_k d log w_k / dz dz_k/dphi.

    Here c = ``weights(v)``, and the density of q is held fixed. log w_k has a gradient in the
    parameters of the joint only.
    """
    z, still = reparameterize(q, noise), stop_gradient(q)
    log_w, pull = jax.vjp(lambda z: _log_weights(z, still, log_joint), stop_gradient(z))
    (slopes,) = pull(stop_gradient(weights(jax.nn.softmax(log_w))))
    return log_w, with_gradient(jnp.zeros(()), slopes, z)


@_bound(many_samples, CONTINUOUS, _each, _each, estimates="elbo")
def stl(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """Sticking the landing: the ELBO without its score term.

    1/K sum_k d log w_k / dz dz_k/dphi (Roeder et al. 2017, arXiv:1703.09194). The variance is zero
    if q is the posterior.
    """
    log_w, path = _pathwise(noise, q, log_joint, lambda v: jnp.full_like(v, 1 / len(v)))
    return log_w.mean() + path


@_bound(many_samples, CONTINUOUS, _each, _each, estimates="iwae", unbiased=False)
def iwae_stl(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """Sticking the landing inside L_K, which is biased.

    sum_k v_k d log w_k / dz dz_k/dphi. The bias is the direction of reweighted wake-sleep,
    E sum_k v_k grad log q(z_k) (Tucker et al. 2018, arXiv:1810.04152).
    """
    log_w, path = _pathwise(noise, q, log_joint, lambda v: v)
    return _log_mean(log_w) + path


@_bound(many_samples, CONTINUOUS, _each, _each, estimates="iwae")
def dreg(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """Doubly reparameterized gradient of L_K.

    sum_k v_k^2 d log w_k / dz dz_k/dphi (Tucker et al. 2018, arXiv:1810.04152). With K = 1 it is
    ``stl``. Its signal-to-noise ratio rises with K, while the ratio of ``iwae`` falls.
    """
    log_w, path = _pathwise(noise, q, log_joint, lambda v: v**2)
    return _log_mean(log_w) + path


@_bound(many_samples, CONTINUOUS, _each, _each, estimates="iwae", takes_prior=True)
def gdreg(noise: Array, q: Any, log_joint: LogJoint, prior: Normal) -> Array:
    """``dreg``, with a reparameterized gradient in the prior's parameters too.

    sum_k (v_k d log p(x|z_k) / dz - v_k^2 d log w_k / dz) dT/dtheta, where z_k = T(e_k; theta) with
    e_k fixed (Bauer & Mnih 2021, arXiv:2101.11046). The prior is a Normal with parameters theta,
    and ``log_joint`` must carry no gradient in them. Raises ValueError for another prior.
    """
    if not isinstance(prior, Normal):
        raise ValueError(
            f"gdreg moves the parameters of a Normal prior through its own reparameterization; "
            f"the prior is a {type(prior).__name__}, for which dreg serves"
        )
    z, fixed = stop_gradient(reparameterize(q, noise)), stop_gradient(prior)
    log_w, path = _pathwise(noise, q, log_joint, lambda v: v**2)
    v = jax.nn.softmax(stop_gradient(log_w)).reshape(-1, *[1] * (z.ndim - 1))
    total = jax.vmap(jax.grad(lambda z: log_joint(z) - stop_gradient(q).log_prob(z)))(z)
    likelihood = jax.vmap(jax.grad(lambda z: log_joint(z) - fixed.log_prob(z)))(z)
    moved = prior.from_noise(stop_gradient((z - prior.loc) / prior.scale))
    return with_gradient(_log_mean(log_w) + path, v * likelihood - v**2 * total, moved)


@_bound(many_samples, CONTINUOUS, _each, _each, estimates="rws", unbiased=False)
def rws_dreg(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """``rws`` doubly reparameterized.

    sum_k (v_k - v_k^2) d log w_k / dz dz_k/dphi (Tucker et al. 2018, arXiv:1810.04152).
    """
    log_w, path = _pathwise(noise, q, log_joint, lambda v: v - v**2)
    return _log_mean(log_w) + path


# Other objectives, reparameterized


def _groups(log_w: Array, groups: int) -> Array:
    if len(log_w) % groups:
        raise ValueError(f"{len(log_w)} samples do not divide into {groups} groups")
    return log_w.reshape(groups, -1)


@_bound(many_samples, CONTINUOUS, _each, _each, estimates="miwae")
def miwae(noise: Array, q: Any, log_joint: LogJoint, groups: int = 1) -> Array:
    """The mean of M bounds L_K/M of the K samples.

    Rainforth et al. 2018, arXiv:1802.04537. Raises ValueError unless M divides K.

    Args:
      groups: M, the number of bounds.
    """
    return _log_mean(_groups(_drawn_weights(noise, q, log_joint), groups)).mean()


@_bound(many_samples, CONTINUOUS, _each, _each, estimates="iwae", unbiased=False)
def piwae(noise: Array, q: Any, log_joint: LogJoint, groups: int = 1) -> Array:
    """The model ascends L_K, and the posterior ascends the mean of M bounds L_K/M.

    Both use the same draws (Rainforth et al. 2018, arXiv:1802.04537). Raises ValueError unless M
    divides K.

    Args:
      groups: M, the number of the posterior's bounds.
    """
    z = reparameterize(q, noise)
    whole = _log_mean(_log_weights(stop_gradient(z), stop_gradient(q), log_joint))
    log_w, pull = jax.vjp(
        lambda z, q: _log_weights(z, q, log_joint), stop_gradient(z), stop_gradient(q)
    )
    weights = jax.nn.softmax(_groups(log_w, groups)) / groups
    return with_gradient(whole, pull(stop_gradient(weights.reshape(log_w.shape))), (z, q))


@_bound(many_samples, CONTINUOUS, _each, _each, estimates="ciwae")
def ciwae(noise: Array, q: Any, log_joint: LogJoint, elbo_weight: float = 0.5) -> Array:
    """A mixture of two bounds, b ELBO + (1 - b) L_K.

    Rainforth et al. 2018, arXiv:1802.04537.

    Args:
      elbo_weight: b, the weight of the ELBO.
    """
    log_w = _drawn_weights(noise, q, log_joint)
    return elbo_weight * log_w.mean() + (1 - elbo_weight) * _log_mean(log_w)


@_bound(many_samples, CONTINUOUS, _each, _each, estimates="renyi")
def renyi(noise: Array, q: Any, log_joint: LogJoint, renyi_order: float = 0.5) -> Array:
    """Renyi's bound of order a, 1 / (1 - a) log 1/K sum_k w_k^(1 - a).

    Li & Turner 2016, arXiv:1602.02311. Order 0 is L_K. Raises ValueError for order 1, the ELBO.

    Args:
      renyi_order: a, the order of the divergence.
    """
    if renyi_order == 1:
        raise ValueError("the Renyi bound of order 1 is the elbo")
    log_w = _drawn_weights(noise, q, log_joint)
    return _log_mean((1 - renyi_order) * log_w) / (1 - renyi_order)


# For any latents. The gradient of L_K is the gradient of log w at the draws, plus
# sum_k (L_K - c_k) grad log q(z_k).


def _scored(z: Array, q: Any, log_joint: LogJoint, left: Callable[[Array], Array]) -> Array:
    """L_K, plus sum_k ``left(log w)``_k grad log q(z_k) in its gradient."""
    z = stop_gradient(z)
    log_w = _log_weights(z, q, log_joint)
    return with_gradient(_log_mean(log_w), left(stop_gradient(log_w)), _log_densities(q, z))


def _log_others(log_w: Array) -> Array:
    """The log of the mean of the other weights, [K]."""
    k = len(log_w)
    others = jnp.where(jnp.eye(k, dtype=bool), -jnp.inf, log_w)
    return logsumexp(others, -1) - jnp.log(k - 1)


def _replaced(log_w: Array, values: Array) -> Array:
    """L_K with one weight after the other replaced, [K]."""
    return _log_mean(jnp.where(jnp.eye(len(log_w), dtype=bool), values[:, None], log_w))


@_bound(many_samples, ANY, _each, estimates="elbo", min_samples=2)
def elbo_rloo(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """The ELBO by ``expectations.rloo``, for latents of any kind.

    log q carries no gradient, because the mean of its gradient is zero.
    """
    still = stop_gradient(q)
    return expectations.rloo.estimate(noise, q, lambda z: log_joint(z) - log_prob_of(still, z))


@_bound(many_samples, ANY, _each, estimates="iwae")
def iwae_score(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """L_K by the score function without a baseline, c = 0; ``vimco`` has one."""
    return _scored(
        reparameterize(q, noise),
        q,
        log_joint,
        lambda log_w: jnp.broadcast_to(_log_mean(log_w), log_w.shape),
    )


@_bound(many_samples, ANY, _each, estimates="iwae", min_samples=2)
def vimco(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """L_K by the score function, with a baseline from the other weights.

    c_k is L_K with w_k replaced by the geometric mean of the others (Mnih & Rezende 2016,
    arXiv:1602.06725).
    """
    left = lambda log_w: (
        _log_mean(log_w) - _replaced(log_w, (log_w.sum() - log_w) / (len(log_w) - 1))
    )
    return _scored(reparameterize(q, noise), q, log_joint, left)


@_bound(many_samples, ANY, _each, estimates="iwae", min_samples=2)
def vimco_arithmetic(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """L_K by the score function, with the mean of the other weights as baseline.

    c_k is the log of this mean (Mnih & Rezende 2016, arXiv:1602.06725).
    """
    return _scored(
        reparameterize(q, noise), q, log_joint, lambda log_w: _log_mean(log_w) - _log_others(log_w)
    )


def _ovis(noise: Array, q: Any, log_joint: LogJoint, gamma: float) -> Array:
    def left(log_w: Array) -> Array:
        k, v = len(log_w), jax.nn.softmax(log_w)
        lead = _log_mean(log_w) - _log_others(log_w)  # log(1 - 1/K) - log(1 - v)
        return lead - (1 - gamma) * jnp.log1p(-1 / k) + gamma * v

    return _scored(reparameterize(q, noise), q, log_joint, left)


@_bound(many_samples, ANY, _each, estimates="iwae", min_samples=2)
def ovis_gamma0(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """L_K by the score function with the best baseline for few effective samples.

    L_K - c_k = -log(1 - v_k) (Liévin et al. 2020, arXiv:2008.01998, eq. 17 with gamma = 0). It is
    ``vimco_arithmetic`` less the constant log(1 - 1/K), and it is optimal asymptotically.
    """
    return _ovis(noise, q, log_joint, 0.0)


@_bound(many_samples, ANY, _each, estimates="iwae", min_samples=2, unbiased=False)
def ovis_gamma1(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """L_K by the score function with the best baseline for many effective samples.

    Liévin et al. 2020, arXiv:2008.01998, eq. 17 with gamma = 1. Its bias is
    E sum_k v_k grad log q(z_k).
    """
    return _ovis(noise, q, log_joint, 1.0)


_one_more = Noise(
    lambda key, q, k: many_samples.draw(key, q, k + 1), lambda q, k: many_samples.exact(q, k + 1)
)


_ONE_MORE = slice(-1), slice(-1, None)  # the K draws, and the one beside them


@_bound(_one_more, ANY, lambda k, d, c: k + 1, estimates="iwae")
def ovis_mc(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """L_K by the score function, with a baseline from one more draw.

    c_k is L_K - v_k with z_k replaced by this draw (Liévin et al. 2020, arXiv:2008.01998, eq. 12).
    """
    z = stop_gradient(reparameterize(q, noise))
    first, last = (jax.tree.map(lambda leaf, part=part: leaf[part], z) for part in _ONE_MORE)
    log_w = _log_weights(first, q, log_joint)
    values = stop_gradient(log_w)
    more = stop_gradient(_log_weights(last, q, log_joint))
    there = _replaced(values, jnp.broadcast_to(more, values.shape))
    share = jnp.exp(more - there) / len(values)  # v of the draw in the place of z_k
    left = _log_mean(values) - (there - share)
    return with_gradient(_log_mean(log_w), left, _log_densities(q, first))


_pairs = Noise(
    lambda key, q, k: jax.vmap(lambda key: antithetic_pair.draw(key, q, 1))(
        jax.random.split(key, k)
    ),
    lambda q, k: power(antithetic_pair.exact(q, 1), k),
)


@_bound(_pairs, BINARY, lambda k, d, c: 2 * k, estimates="iwae")
def local_disarm(noise: Array, q: Bernoulli, log_joint: LogJoint) -> Array:
    """L_K of bits, by antithetic pairs.

    sum_k (L_K - L_K with b_k') (b_k - b_k') s(|phi|) / 2 (Dong et al. 2020, arXiv:2006.10680). L_K
    takes one member b_k of each of K pairs.
    """
    log_w, other = (_log_weights(noise[:, i], q, log_joint) for i in range(2))
    values = stop_gradient(log_w)
    gain = _log_mean(values) - _replaced(values, stop_gradient(other))
    difference = jnp.tensordot(gain, noise[:, 0] - noise[:, 1], 1, precision="float32")
    return with_gradient(
        _log_mean(log_w), 0.5 * difference * jax.nn.sigmoid(jnp.abs(q.logits)), q.logits
    )


@_bound(many_samples, ANY, _each, estimates="rws", unbiased=False)
def rws(noise: Array, q: Any, log_joint: LogJoint) -> Array:
    """Reweighted wake-sleep: q descends KL(p(z|x) || q), and the model ascends L_K.

    The posterior's gradient is sum_k v_k grad log q(z_k) (Bornschein & Bengio 2014,
    arXiv:1406.2751). Its bias is of order 1/K.
    """
    z = stop_gradient(reparameterize(q, noise))
    log_w = _log_weights(z, stop_gradient(q), log_joint)
    return with_gradient(_log_mean(log_w), jax.nn.softmax(log_w), _log_densities(q, z))


@_bound(many_samples, ANY, _each, estimates="tvo", min_samples=2, unbiased=False)
def tvo(noise: Array, q: Any, log_joint: LogJoint, betas: tuple[float, ...] = (0.0, 0.1)) -> Array:
    """Thermodynamic bound, the left Riemann sum over E_b log w.

    sum_i (b_i+1 - b_i) E_i log w (Masrani et al. 2019, arXiv:1907.00031). E_i is over
    q^(1-b) p(x, z)^b, by self-normalized weights v = w^b / sum w^b. The gradient of a term is
    E_i grad log w + Cov_i(log w, b grad log p + (1 - b) grad log q).

    Args:
      betas: the starts b_0 = 0, b_1, ... of the intervals; the last one ends at 1.
    """
    z = stop_gradient(reparameterize(q, noise))
    log_q = _log_densities(q, z)
    log_w = jax.vmap(log_joint)(z) - log_q
    k = len(log_w)

    def expected_log_weight(b: float) -> Array:
        v = stop_gradient(jax.nn.softmax(b * log_w))
        value = jnp.sum(v * log_w)
        centred = stop_gradient(v * (log_w - value))
        return with_gradient(value, k / (k - 1) * centred, b * log_w + log_q)

    ends = (*betas[1:], 1.0)
    terms = [(end - b) * expected_log_weight(b) for b, end in zip(betas, ends, strict=True)]
    return jnp.stack(terms).sum()
