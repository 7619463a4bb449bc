"""Likelihood families p(x|z): how many numbers the decoder must give for each pixel, and the
distribution made of them.

``support`` names the pixel treatments of ``datasets.TREATMENTS`` whose values the density is
defined on; another one is refused before training, because its log-likelihood would mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.distributions import (
    BandedNormal,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Independent,
    Laplace,
    Mixture,
    NegativeBinomial,
    Normal,
    ZeroInflatedNegativeBinomial,
)

Array = jax.Array
BINARY = ("dynamic", "static")
UNIT = ("dequantize", "scale")
REAL = (*UNIT, "none")


class Likelihood(NamedTuple):
    """A likelihood family."""

    size: int  # numbers that the decoder gives for each pixel and channel
    make: Callable[[Any, Array], Any]  # (params, raw [*event, size]) -> p(x|z)
    support: tuple[str, ...]  # pixel treatments that it takes, the natural one first
    discrete: bool  # whether log p(x|z) is a log-probability, not a log-density
    init: Callable[[Array], Any] = lambda key: {}  # key -> params of its own


def _elementwise(
    size: int, make: Callable[..., Any], support: tuple[str, ...], discrete: bool
) -> Likelihood:
    """A family whose ``make`` takes the raw numbers one by one, each ``[*event]``."""
    return Likelihood(size, lambda params, raw: make(*jnp.moveaxis(raw, -1, 0)), support, discrete)


def bernoulli() -> Likelihood:
    """Bernoulli for binary pixels; raw is the log-odds."""
    return _elementwise(1, Bernoulli, BINARY, True)


def continuous_bernoulli() -> Likelihood:
    """Continuous Bernoulli for values in [0, 1] (Loaiza-Ganem & Cunningham 2019,
    arXiv:1907.06845).
    """
    return _elementwise(1, ContinuousBernoulli, UNIT, False)


def normal(scale: float = 0.1) -> Likelihood:
    """Gaussian with decoded mean and a fixed ``scale``, in the units of x."""
    if scale <= 0:
        raise ValueError(f"a Gaussian likelihood needs scale > 0; scale was {scale}")
    return _elementwise(1, lambda loc: Normal(loc, jnp.full_like(loc, scale)), REAL, False)


def normal_learned(scale: float = 0.3) -> Likelihood:
    """Gaussian with decoded mean and one learned scale for all pixels, which starts at ``scale``.

    At the optimum scale^2 is the mean squared residual (Dai & Wipf 2019, arXiv:1903.05789, sec. 3).
    """
    make = lambda params, raw: Normal(raw[..., 0], jnp.exp(params["log_scale"]))
    return Likelihood(1, make, REAL, False, lambda key: {"log_scale": jnp.log(jnp.float32(scale))})


def normal_decoded() -> Likelihood:
    """Gaussian whose mean and log-scale are decoded for each pixel."""
    return _elementwise(2, lambda loc, log_scale: Normal(loc, jnp.exp(log_scale)), REAL, False)


def normal_banded(width: int = 3) -> Likelihood:
    """Gaussian whose precision is L L^T, L with ``width`` sub-diagonals in row-major order
    (arXiv:1804.01050).

    Decoded are, for each pixel and channel, the mean, the log-scale given the later ones, and its
    column of L below the diagonal in tenths of the diagonal: raw zeros there mean independent
    pixels, and a decoder starts close to them. A width of 3 reaches the same channel of the next
    RGB pixel.
    """
    if width < 0:
        raise ValueError(f"a banded Gaussian likelihood needs width >= 0; width was {width}")

    def make(params: Any, raw: Array) -> BandedNormal:
        column = jnp.concatenate([jnp.ones_like(raw[..., :1]), 0.1 * raw[..., 2:]], -1)
        return BandedNormal(raw[..., 0], jnp.exp(-raw[..., 1:2]) * column)

    return Likelihood(2 + width, make, REAL, False)


def laplace() -> Likelihood:
    """Laplace with decoded location and log-scale."""
    return _elementwise(2, lambda loc, log_scale: Laplace(loc, jnp.exp(log_scale)), REAL, False)


def discretized_logistic(levels: int = 256) -> Likelihood:
    """Discretized logistic over ``levels`` values in [0, 1], decoded location and log-scale
    (arXiv:1606.04934).

    Raw zeros mean 1/2 and e^-2: a decoder that starts there covers [0, 1], and its first gradients
    stay small.
    """
    make = lambda loc, log_scale: DiscretizedLogistic(loc + 0.5, jnp.exp(log_scale - 2.0), levels)
    return _elementwise(2, make, ("scale",), True)


def discretized_logistic_mixture(levels: int = 256, components: int = 5) -> Likelihood:
    """For each pixel and channel a mixture of discretized logistics (Salimans et al. 2017,
    arXiv:1701.05517, eq. 2).

    The locations start spread evenly over [0, 1], so that the components differ from the first
    step.
    """
    offsets = (jnp.arange(components) + 0.5) / components

    def make(params: Any, raw: Array) -> Independent:
        logits, loc, log_scale = jnp.split(raw, 3, -1)
        parts = DiscretizedLogistic(loc + offsets, jnp.exp(log_scale - 1.0), levels)
        return Independent(Mixture(logits, parts), raw.ndim - 1)

    return Likelihood(3 * components, make, ("scale",), True)


def categorical(levels: int = 256) -> Likelihood:
    """Categorical over the ``levels`` integer values of each pixel."""
    return Likelihood(levels, lambda params, raw: Categorical(raw), ("counts",), True)


def negative_binomial() -> Likelihood:
    """Negative binomial for counts, with decoded log total count and log-odds."""
    make = lambda log_count, logits: NegativeBinomial(jnp.exp(log_count), logits)
    return _elementwise(2, make, ("counts",), True)


def zero_inflated_negative_binomial() -> Likelihood:
    """Zero-inflated negative binomial for counts, with a decoded gate as well (scVI,
    doi:10.1038/s41592-018-0229-2).
    """
    make = lambda log_count, logits, gate: ZeroInflatedNegativeBinomial(
        jnp.exp(log_count), logits, gate
    )
    return _elementwise(3, make, ("counts",), True)


# name -> function of the number of pixel levels
LIKELIHOODS: dict[str, Callable[[int], Likelihood]] = {
    "bernoulli": lambda levels: bernoulli(),
    "continuous_bernoulli": lambda levels: continuous_bernoulli(),
    "normal": lambda levels: normal(),
    "normal_learned": lambda levels: normal_learned(),
    "normal_decoded": lambda levels: normal_decoded(),
    "normal_banded": lambda levels: normal_banded(),
    "laplace": lambda levels: laplace(),
    "discretized_logistic": discretized_logistic,
    "discretized_logistic_mixture": discretized_logistic_mixture,
    "categorical": categorical,
    "negative_binomial": lambda levels: negative_binomial(),
    "zero_inflated_negative_binomial": lambda levels: zero_inflated_negative_binomial(),
}
