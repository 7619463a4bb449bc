"""Posterior families q(z|x): how many numbers the encoder must give, and the distribution made
of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import flows
from jaxvae.distributions import (
    Bernoulli,
    Joint,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Point,
    PowerSpherical,
    SpikeAndSlab,
    Transformed,
    VonMisesFisher,
)

Array = jax.Array


class Posterior(NamedTuple):
    """A posterior family."""

    size: int  # numbers that the encoder gives for one example
    make: Callable[[Any, Array], Any]  # (params, raw [size]) -> q(z|x)
    init: Callable[[Array], Any] = lambda key: {}  # key -> params that all examples share


def normal(latent: int) -> Posterior:
    """Diagonal Gaussian, N(z; m, diag(s^2)) with raw = [m, log s] (Kingma & Welling 2013,
    arXiv:1312.6114, eq. 9).
    """

    def make(params: Any, raw: Array) -> Normal:
        loc, log_scale = jnp.split(raw, 2)
        return Normal(loc, jnp.exp(log_scale))

    return Posterior(2 * latent, make)


def point(latent: int) -> Posterior:
    """A deterministic encoder, z = raw: that of autoencoders without noise."""
    return Posterior(latent, lambda params, raw: Point(raw))


def multivariate_normal(latent: int) -> Posterior:
    """Full-covariance Gaussian, N(z; m, L L^T), L = diag(s) (I + R) with R strictly lower
    triangular.

    raw = [m, log s, the D (D-1) / 2 entries of R by rows] (arXiv:1312.6114, app. F, where they are
    not relative to the
    scales: noise of the same size for all latents drowns those whose posterior is narrow).
    """
    below = jnp.tril_indices(latent, -1)

    def make(params: Any, raw: Array) -> MultivariateNormal:
        loc, log_scale, rest = jnp.split(raw, [latent, 2 * latent])
        relative = jnp.eye(latent, dtype=raw.dtype).at[below].set(rest)
        return MultivariateNormal(loc, jnp.exp(log_scale)[:, None] * relative)

    return Posterior(2 * latent + latent * (latent - 1) // 2, make)


def bernoulli(latent: int) -> Posterior:
    """Independent bits; raw is their log-odds."""
    return Posterior(latent, lambda params, raw: Bernoulli(raw))


def categorical(latent: int, classes: int = 10) -> Posterior:
    """One of C classes for every latent, one-hot, z [D, C]; raw holds their logits."""
    return Posterior(
        latent * classes, lambda params, raw: OneHotCategorical(raw.reshape(latent, classes))
    )


def _on_sphere(latent: int, family: type) -> Posterior:
    if latent < 2:
        raise ValueError(
            f"a {family.__name__} posterior needs a sphere in 2 dimensions or more; latent was {latent}"
        )

    def make(params: Any, raw: Array) -> Any:
        v = (
            raw[:-1].at[0].add(jnp.where((raw[:-1] ** 2).sum() > 1e-20, 0.0, 1.0))
        )  # zeros mean the first axis
        return family(v / jnp.linalg.norm(v), jax.nn.softplus(raw[-1]) + 1.0)

    return Posterior(latent + 1, make)


def power_spherical(latent: int) -> Posterior:
    """Power spherical over unit vectors z [D], raw = [v, r], direction v / |v|, concentration
    softplus(r) + 1.

    De Cao & Aziz 2020, arXiv:2006.04437. ``latent`` counts the D >= 2 coordinates. ValueError for
    one.
    """
    return _on_sphere(latent, PowerSpherical)


def von_mises_fisher(latent: int) -> Posterior:
    """Von Mises-Fisher over unit vectors z [D], raw = [v, r], direction v / |v|, concentration
    softplus(r) + 1.

    Davidson et al. 2018, arXiv:1804.00891. ``latent`` counts the D >= 2 coordinates. ValueError for
    one.
    """
    return _on_sphere(latent, VonMisesFisher)


def spike_and_slab(latent: int) -> Posterior:
    """Independent latents that are zero or Gaussian, raw = [log-odds of the Gaussian, m, log s]
    (arXiv:1905.10185).

    ``models.negative_elbo`` trains it, with KL in closed form: see ``distributions.SpikeAndSlab``
    for the gradient.
    """

    def make(params: Any, raw: Array) -> SpikeAndSlab:
        logits, loc, log_scale = jnp.split(raw, 3)
        return SpikeAndSlab(logits, loc, jnp.exp(log_scale))

    return Posterior(3 * latent, make)


def joint(latent: int, classes: int = 10) -> Posterior:
    """Gaussian latents and one class beside them, one-hot, z [D + C] (Dupont 2018,
    arXiv:1804.00104).
    """
    gaussian, discrete = normal(latent), categorical(1, classes)

    def make(params: Any, raw: Array) -> Joint:
        return Joint(
            (gaussian.make({}, raw[: gaussian.size]), discrete.make({}, raw[gaussian.size :]))
        )

    return Posterior(gaussian.size + discrete.size, make)


def flowed(latent: int, flow: flows.Flow, centred: bool = False) -> Posterior:
    """What a flow makes of a diagonal Gaussian (Rezende & Mohamed 2015, arXiv:1505.05770): raw =
    [m, log s, flow's].

    z = f(m + s e), or with ``centred`` m + f(s e), which has the same densities where f is a linear
    map and trains
    better: the mean does not turn with the noise. Its density is known for its own draws; KL is
      that of draws.
    """
    whole = flows.chain(flow, flows.shift(latent)) if centred else flow

    def make(params: Any, raw: Array) -> Transformed:
        loc, log_scale, rest = jnp.split(raw, [latent, 2 * latent])
        if centred:
            loc, rest = jnp.zeros_like(loc), jnp.concatenate([rest, loc])
        return Transformed(Normal(loc, jnp.exp(log_scale)), params, rest, whole)

    return Posterior(2 * latent + flow.size, make, whole.init)


# name -> the flow of so many steps over so many latents
FLOWS: dict[str, Callable[[int, int], flows.Flow]] = {
    "planar": lambda latent, steps: flows.chain(*[flows.planar(latent)] * steps),
    "radial": lambda latent, steps: flows.chain(*[flows.radial(latent)] * steps),
    "householder": lambda latent, steps: flows.chain(*[flows.householder(latent)] * steps),
    "sylvester": lambda latent, steps: flows.chain(
        *[flows.sylvester(latent, min(latent, 8))] * steps
    ),
    "triangular_sylvester": lambda latent, steps: flows.alternating(
        flows.triangular_sylvester(latent), latent, steps
    ),
    "inverse_autoregressive": lambda latent, steps: flows.alternating(
        flows.inverse_autoregressive(latent, (max(latent, 128),), latent), latent, steps
    ),
}


def _of_flow(name: str, latent: int, steps: int = 4) -> Posterior:
    return flowed(latent, FLOWS[name](latent, steps), centred=name == "householder")


# name -> function of the number of latents, and of the classes of a latent or the steps of a flow
POSTERIORS: dict[str, Callable[..., Posterior]] = {
    "normal": normal,
    "multivariate_normal": multivariate_normal,
    "point": point,
    "bernoulli": bernoulli,
    "categorical": categorical,
    "joint": joint,
    "power_spherical": power_spherical,
    "von_mises_fisher": von_mises_fisher,
    "spike_and_slab": spike_and_slab,
    **{name: functools.partial(_of_flow, name) for name in FLOWS},
}
