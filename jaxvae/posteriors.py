"""Posterior families q(z|x).

A family says how many numbers the encoder must give, and which distribution they make. It is a
function of the number of latents. Its other arguments are settings, which have defaults and become
flags of the command line. A new family is a function and a row in ``CONTINUOUS`` or ``DISCRETE``.
"""

from __future__ import annotations

import functools
from collections import ChainMap
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import flows, priors
from jaxvae.distributions import (
    Bernoulli,
    Beta,
    Joint,
    Kumaraswamy,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Point,
    PowerSpherical,
    SpikeAndSlab,
    StudentT,
    Transformed,
    VonMisesFisher,
    stick_lengths,
)
from jaxvae.ranges import Count, Positive, Share

Array = jax.Array


class Posterior(NamedTuple):
    """A posterior family."""

    size: int  # numbers that the encoder gives for one example
    make: Callable[[Any, Array], Any]  # (params, raw [size]) -> q(z|x)
    init: Callable[[Array], Any] = lambda key: {}  # key -> params that all examples share
    # number of latents -> the natural prior, which has no parameters
    prior: Callable[[int], priors.Prior] = priors.standard_normal
    latents: str = "continuous"  # or "binary", "categorical", "mixed"; it selects the estimators
    to_decoder: Callable[[Array], Array] = lambda z: z  # z -> what the decoder sees of it


def normal(latent: int) -> Posterior:
    """Diagonal Gaussian, N(z; m, diag(s^2)), raw = [m, log s].

    Kingma & Welling 2013, arXiv:1312.6114, eq. 9.
    """

    def make(params: Any, raw: Array) -> Normal:
        loc, log_scale = jnp.split(raw, 2)
        return Normal(loc, jnp.exp(log_scale))

    return Posterior(2 * latent, make)


def student_t(latent: int) -> Posterior:
    """Independent Student's t, whose tails cover what a Gaussian misses.

    Mattei & Frellsen 2019, arXiv:1812.02633. raw = [m, log s, r], and the degrees of freedom are
    3 + softplus(r). KL is estimated from draws.
    """

    def make(params: Any, raw: Array) -> StudentT:
        loc, log_scale, rest = jnp.split(raw, 3)
        return StudentT(3 + jax.nn.softplus(rest), loc, jnp.exp(log_scale))

    return Posterior(3 * latent, make)


def point(latent: int) -> Posterior:
    """A deterministic encoder, z = raw, for autoencoders without noise."""
    return Posterior(latent, lambda params, raw: Point(raw))


def multivariate_normal(latent: int) -> Posterior:
    """Full-covariance Gaussian, N(z; m, L L^T), L = diag(s) (I + R).

    Kingma & Welling 2013, arXiv:1312.6114, app. F. R is strictly lower triangular and
    raw = [m, r, the D (D-1) / 2 entries of R by rows], with s = e^r below 0 and 1 + r above. In the
    paper the entries below the diagonal are not relative to the scales s. Their noise then has the
    same size for all latents, and it drowns the latents whose posterior is narrow. Above one the
    scale grows in a straight line, because s multiplies R: at examples far outside, where a network
    gives large numbers, the noise of e^r R would drown the gradient of all others.
    """
    below = jnp.tril_indices(latent, -1)

    def make(params: Any, raw: Array) -> MultivariateNormal:
        loc, raw_scale, rest = jnp.split(raw, [latent, 2 * latent])
        relative = jnp.eye(latent, dtype=raw.dtype).at[below].set(rest)
        return MultivariateNormal(loc, _slow_scale(raw_scale)[:, None] * relative)

    return Posterior(2 * latent + latent * (latent - 1) // 2, make)


def _slow_scale(raw: Array) -> Array:
    """e^r below 0, and 1 + r above, which is as smooth as its first derivative."""
    return jnp.where(raw < 0, jnp.exp(jnp.minimum(raw, 0.0)), 1 + raw)


def bernoulli(latent: int) -> Posterior:
    """Independent bits; raw holds their log-odds."""
    return Posterior(
        latent, lambda params, raw: Bernoulli(raw), prior=priors.bernoulli, latents="binary"
    )


def categorical(latent: int, classes: Count = 10) -> Posterior:
    """One of C classes for every latent, one-hot, z [D, C]; raw holds their logits.

    Args:
      latent: D, the number of latents.
      classes: C, the number of classes of each latent.
    """

    def make(params: Any, raw: Array) -> OneHotCategorical:
        return OneHotCategorical(raw.reshape(latent, classes))

    prior = functools.partial(priors.categorical, classes=classes)
    return Posterior(latent * classes, make, prior=prior, latents="categorical")


def joint(latent: int, classes: Count = 10) -> Posterior:
    """Gaussian latents and one class beside them, one-hot, z [D + C].

    Dupont 2018, arXiv:1804.00104.

    Args:
      latent: D, the number of Gaussian latents.
      classes: C, the number of classes.
    """
    gaussian, discrete = normal(latent), categorical(1, classes)

    def make(params: Any, raw: Array) -> Joint:
        loc_and_scale, logits = jnp.split(raw, [gaussian.size])
        return Joint((gaussian.make({}, loc_and_scale), discrete.make({}, logits)))

    prior = functools.partial(priors.joint, classes=classes)
    return Posterior(gaussian.size + discrete.size, make, prior=prior, latents="mixed")


def _on_sphere(latent: int, family: type) -> Posterior:
    if latent < 2:
        raise ValueError(
            f"a {family.__name__} posterior needs a sphere in 2 dimensions or more; "
            f"latent was {latent}"
        )

    def make(params: Any, raw: Array) -> Any:
        vector, concentration = raw[:-1], jax.nn.softplus(raw[-1]) + 1.0
        is_zero = (vector**2).sum() <= 1e-20
        vector = vector.at[0].add(jnp.where(is_zero, 1.0, 0.0))  # zeros mean the first axis
        return family(vector / jnp.linalg.norm(vector), concentration)

    return Posterior(latent + 1, make, prior=priors.spherical_uniform)


def power_spherical(latent: int) -> Posterior:
    """Power spherical distribution over unit vectors z [D].

    De Cao & Aziz 2020, arXiv:2006.04437. raw = [v, r]: the direction is v / |v| and the
    concentration softplus(r) + 1. Raises ValueError unless ``latent``, which is D, is at least 2.
    """
    return _on_sphere(latent, PowerSpherical)


def von_mises_fisher(latent: int) -> Posterior:
    """Von Mises-Fisher distribution over unit vectors z [D].

    Davidson et al. 2018, arXiv:1804.00891. raw = [v, r]: the direction is v / |v| and the
    concentration softplus(r) + 1. Raises ValueError unless ``latent``, which is D, is at least 2.
    """
    return _on_sphere(latent, VonMisesFisher)


def spike_and_slab(latent: int, alpha: Share = 0.2) -> Posterior:
    """Independent latents that are zero or Gaussian, raw = [log-odds, m, log s].

    Tonolini et al. 2019, arXiv:1905.10185. The log-odds say how likely a latent is Gaussian.
    ``models.negative_elbo`` trains it with KL in closed form. ``distributions.SpikeAndSlab`` says
    what its gradient is.

    Args:
      latent: D, the number of latents.
      alpha: the prior's probability that a latent is not zero.
    """

    def make(params: Any, raw: Array) -> SpikeAndSlab:
        logits, loc, log_scale = jnp.split(raw, 3)
        return SpikeAndSlab(logits, loc, jnp.exp(log_scale))

    return Posterior(3 * latent, make, prior=functools.partial(priors.spike_and_slab, alpha=alpha))


def _sticks(latent: int, family: type, stick_concentration: float) -> Posterior:
    """Fractions of sticks from a family of (0, 1) with two positive numbers for each."""

    def make(params: Any, raw: Array) -> Any:
        return family(*jnp.split(jax.nn.softplus(raw) + SMALLEST_SHAPE, 2))

    prior = functools.partial(priors.stick_fractions, stick_concentration=stick_concentration)
    return Posterior(2 * latent, make, prior=prior, to_decoder=stick_lengths)


SMALLEST_SHAPE = 1e-3  # of a density of (0, 1), added to what the encoder gives


def kumaraswamy_sticks(latent: int, stick_concentration: Positive = 5.0) -> Posterior:
    """Kumaraswamy fractions of a stick, whose D + 1 lengths the decoder sees.

    Nalisnick & Smyth 2017, arXiv:1605.06197. z are the D fractions v, and the decoder takes
    pi_k = v_k prod_{j<k} (1 - v_j). raw holds a and b before a softplus.

    Args:
      latent: D, the number of fractions.
      stick_concentration: c of the prior Beta(1, c); the larger it is, the more sticks are long.
    """
    return _sticks(latent, Kumaraswamy, stick_concentration)


def beta_sticks(latent: int, stick_concentration: Positive = 5.0) -> Posterior:
    """Beta fractions of a stick, with implicit gradients (arXiv:1805.08498).

    All else is as for ``kumaraswamy_sticks``, and KL has a closed form.

    Args:
      latent: D, the number of fractions.
      stick_concentration: c of the prior Beta(1, c); the larger it is, the more sticks are long.
    """
    return _sticks(latent, Beta, stick_concentration)


def flowed(latent: int, flow: flows.Flow, centred: bool = False) -> Posterior:
    """The distribution of f(m + s e) for e ~ N(0, I) and a flow f.

    Rezende & Mohamed 2015, arXiv:1505.05770. raw = [m, log s, the flow's numbers]. With ``centred``
    it is the distribution of m + f(s e). For a linear f both give the same family, but the second
    trains better because f does not also turn the mean. If f has no inverse, the density is known
    only at the posterior's samples, so KL is estimated by Monte Carlo.
    """
    whole = flows.chain(flow, flows.shift(latent)) if centred else flow

    def make(params: Any, raw: Array) -> Transformed:
        loc, log_scale, rest = jnp.split(raw, [latent, 2 * latent])
        if centred:
            loc, rest = jnp.zeros_like(loc), jnp.concatenate([rest, loc])
        return Transformed(Normal(loc, jnp.exp(log_scale)), params, rest, whole)

    return Posterior(2 * latent + flow.size, make, whole.init)


def planar(latent: int, flow_steps: Count = 4) -> Posterior:
    """Planar flows of a diagonal Gaussian (Rezende & Mohamed 2015, arXiv:1505.05770).

    Args:
      latent: D, the number of latents.
      flow_steps: how many flows are chained.
    """
    return flowed(latent, flows.chain(*[flows.planar(latent)] * flow_steps))


def radial(latent: int, flow_steps: Count = 4) -> Posterior:
    """Radial flows of a diagonal Gaussian (Rezende & Mohamed 2015, arXiv:1505.05770).

    Args:
      latent: D, the number of latents.
      flow_steps: how many flows are chained.
    """
    return flowed(latent, flows.chain(*[flows.radial(latent)] * flow_steps))


def householder(latent: int, flow_steps: Count = 4) -> Posterior:
    """Householder flows: a full-covariance Gaussian from reflections.

    Tomczak & Welling 2016, arXiv:1611.09630.

    Args:
      latent: D, the number of latents.
      flow_steps: how many reflections are chained.
    """
    return flowed(latent, flows.chain(*[flows.householder(latent)] * flow_steps), centred=True)


def sylvester(latent: int, flow_steps: Count = 4, flow_vectors: Count = 8) -> Posterior:
    """Orthogonal Sylvester flows of a diagonal Gaussian.

    Van den Berg et al. 2018, arXiv:1803.05649.

    Args:
      latent: D, the number of latents.
      flow_steps: how many flows are chained.
      flow_vectors: the bottleneck M of each flow; it is never more than D.
    """
    flow = flows.sylvester(latent, min(latent, flow_vectors))
    return flowed(latent, flows.chain(*[flow] * flow_steps))


def triangular_sylvester(latent: int, flow_steps: Count = 4) -> Posterior:
    """Triangular Sylvester flows of a diagonal Gaussian.

    Van den Berg et al. 2018, arXiv:1803.05649.

    Args:
      latent: D, the number of latents.
      flow_steps: how many flows are chained.
    """
    flow = flows.triangular_sylvester(latent)
    return flowed(latent, flows.alternating(flow, latent, flow_steps))


def inverse_autoregressive(
    latent: int, flow_steps: Count = 4, flow_hidden: Count = 128
) -> Posterior:
    """Inverse autoregressive flows of a diagonal Gaussian.

    Kingma et al. 2016, arXiv:1606.04934. Each step has a masked network with one hidden layer and a
    context of D numbers.

    Args:
      latent: D, the number of latents.
      flow_steps: how many flows are chained.
      flow_hidden: units of each flow's hidden layer; there are never fewer than D.
    """
    flow = flows.inverse_autoregressive(latent, (max(latent, flow_hidden),), latent)
    return flowed(latent, flows.alternating(flow, latent, flow_steps))


FLOWS: dict[str, Callable[..., Posterior]] = {
    "planar": planar,
    "radial": radial,
    "householder": householder,
    "sylvester": sylvester,
    "triangular_sylvester": triangular_sylvester,
    "inverse_autoregressive": inverse_autoregressive,
}
CONTINUOUS: dict[str, Callable[..., Posterior]] = {
    "normal": normal,
    "multivariate_normal": multivariate_normal,
    "student_t": student_t,
    "power_spherical": power_spherical,
    "von_mises_fisher": von_mises_fisher,
    "spike_and_slab": spike_and_slab,
    "kumaraswamy_sticks": kumaraswamy_sticks,
    "beta_sticks": beta_sticks,
    **FLOWS,
}
DISCRETE: dict[str, Callable[..., Posterior]] = {
    "bernoulli": bernoulli,
    "categorical": categorical,
    "joint": joint,
}
# All posteriors. An entry that is added to a table above later is a member at once.
POSTERIORS: ChainMap[str, Callable[..., Posterior]] = ChainMap(
    CONTINUOUS, DISCRETE, {"point": point}
)
