"""Likelihood families p(x|z).

A family says how many numbers the decoder must give for each pixel and channel, and which
distribution they make. It is a function of its settings, which have defaults and become flags of
the command line. If it depends on the number of pixel levels, ``levels`` is its first argument and
has no default. ``support`` names the members of ``datasets.PREPROCESSING`` whose values the density
is defined on. Other values are refused before training, because their log-likelihood would mean
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

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
    PixelLogisticMixture,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from jaxvae.ranges import Count, Positive, Range

Array = jax.Array
BINARY = ("dynamic", "static")
UNIT = ("dequantize", "scale")
REAL = (*UNIT, "none")


class Likelihood(NamedTuple):
    """A likelihood family."""

    size: int  # numbers that the decoder gives for each pixel and channel
    # (params, raw [*event, size]) -> p(x|z); raw is [*event[:-1], per_pixel(C)] if that is given
    make: Callable[[Any, Array], Any]
    support: tuple[str, ...]  # kinds of preprocessing that it takes; the first is the default
    discrete: bool  # whether log p(x|z) is a log-probability, not a log-density
    init: Callable[[Array], Any] = lambda key: {}  # key -> parameters that all pixels share
    # channels C of a pixel -> numbers for all of them together, in the place of ``size``
    per_pixel: Callable[[int], int] | None = None

    def outputs(self, event: Sequence[int]) -> tuple[int, ...]:
        """The shape of what the decoder gives for an event, with all numbers on its last axis.

        Raises ValueError if the family is of pixels and the events are no images.
        """
        if self.per_pixel is not None and len(event) != 3:
            raise ValueError(
                f"a likelihood of whole pixels needs images [H, W, C]; x has shape {tuple(event)}"
            )
        *pixels, channels = event
        last = channels * self.size if self.per_pixel is None else self.per_pixel(channels)
        return (*pixels, last)

    def of_outputs(self, params: Any, outputs: Array) -> Any:
        """p(x|z) from what the decoder gives."""
        if self.per_pixel is None:
            channels = outputs.shape[-1] // self.size
            outputs = outputs.reshape(*outputs.shape[:-1], channels, self.size)
        return self.make(params, outputs)


def _elementwise(
    size: int, make: Callable[..., Any], support: tuple[str, ...], discrete: bool
) -> Likelihood:
    """A family whose ``make`` takes the raw numbers one by one, each ``[*event]``."""
    return Likelihood(size, lambda params, raw: make(*jnp.moveaxis(raw, -1, 0)), support, discrete)


def bernoulli() -> Likelihood:
    """Bernoulli for binary pixels; raw is the log-odds."""
    return _elementwise(1, Bernoulli, BINARY, True)


def continuous_bernoulli() -> Likelihood:
    """Continuous Bernoulli for values in [0, 1]; raw is the log-odds.

    Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845.
    """
    return _elementwise(1, ContinuousBernoulli, UNIT, False)


def normal(scale: Positive = 0.1) -> Likelihood:
    """Gaussian with decoded mean and a fixed scale.

    Args:
      scale: the standard deviation, in the units of x.
    """
    if scale <= 0:
        raise ValueError(f"a Gaussian likelihood needs scale > 0; scale was {scale}")
    return _elementwise(1, lambda loc: Normal(loc, jnp.full_like(loc, scale)), REAL, False)


def normal_learned(scale: Positive = 0.3) -> Likelihood:
    """Gaussian with decoded mean and one learned scale for all pixels.

    At the optimum scale^2 is the mean squared residual (Dai & Wipf 2019, arXiv:1903.05789, sec. 3).

    Args:
      scale: the standard deviation that learning starts from, in the units of x.
    """

    def make(params: Any, raw: Array) -> Normal:
        return Normal(raw[..., 0], jnp.exp(params["log_scale"]))

    return Likelihood(1, make, REAL, False, lambda key: {"log_scale": jnp.log(jnp.float32(scale))})


def normal_decoded() -> Likelihood:
    """Gaussian whose mean and log-scale are decoded for each pixel."""
    return _elementwise(2, lambda loc, log_scale: Normal(loc, jnp.exp(log_scale)), REAL, False)


def normal_banded(band_width: Annotated[int, Range(0)] = 3) -> Likelihood:
    """Gaussian with precision L L^T, where L is a band matrix.

    Dorta et al. 2018, arXiv:1804.01050. Pixels and channels are in row-major order, so a width of 3
    reaches the same channel of the next RGB pixel. For each pixel and channel the decoder gives the
    mean and the log-scale given the later ones. It also gives the entries of its column of L below
    the diagonal, in tenths of the diagonal. If they are zero the pixels are independent, and a
    decoder starts close to that.

    Args:
      band_width: sub-diagonals of L.
    """
    if band_width < 0:
        raise ValueError(f"a banded Gaussian needs band_width >= 0; band_width was {band_width}")

    def make(params: Any, raw: Array) -> BandedNormal:
        column = jnp.concatenate([jnp.ones_like(raw[..., :1]), 0.1 * raw[..., 2:]], -1)
        return BandedNormal(raw[..., 0], jnp.exp(-raw[..., 1:2]) * column)

    return Likelihood(2 + band_width, make, REAL, False)


def laplace() -> Likelihood:
    """Laplace with decoded location and log-scale."""
    return _elementwise(2, lambda loc, log_scale: Laplace(loc, jnp.exp(log_scale)), REAL, False)


def laplace_learned(scale: Positive = 0.5) -> Likelihood:
    """Laplace with decoded location and one learned scale for all pixels.

    At the optimum the scale is the mean absolute residual.

    Args:
      scale: the scale that learning starts from, in the units of x.
    """

    def make(params: Any, raw: Array) -> Laplace:
        return Laplace(raw[..., 0], jnp.exp(params["log_scale"]))

    return Likelihood(1, make, REAL, False, lambda key: {"log_scale": jnp.log(jnp.float32(scale))})


def discretized_logistic(levels: int) -> Likelihood:
    """Discretized logistic over ``levels`` values in [0, 1].

    Kingma et al. 2016, arXiv:1606.04934. Location and log-scale are decoded. Raw zeros mean the
    location 1/2 and the scale e^-2. A decoder that starts there covers [0, 1], and its first
    gradients stay small.

    Args:
      levels: how many values a pixel can take.
    """

    def make(loc: Array, log_scale: Array) -> DiscretizedLogistic:
        return DiscretizedLogistic(loc + 0.5, jnp.exp(log_scale - 2.0), levels)

    return _elementwise(2, make, ("scale",), True)


def discretized_logistic_mixture(levels: int, pixel_components: Count = 5) -> Likelihood:
    """A mixture of discretized logistics for each pixel and channel.

    Salimans et al. 2017, arXiv:1701.05517, eq. 2. The locations start spread evenly over [0, 1], so
    the components differ from the first step.

    Args:
      levels: how many values a pixel can take.
      pixel_components: how many logistics the mixture of each pixel and channel has.
    """
    offsets = (jnp.arange(pixel_components) + 0.5) / pixel_components

    def make(params: Any, raw: Array) -> Independent:
        logits, loc, log_scale = jnp.split(raw, 3, -1)
        parts = DiscretizedLogistic(loc + offsets, jnp.exp(log_scale - 1.0), levels)
        return Independent(Mixture(logits, parts), raw.ndim - 1)

    return Likelihood(3 * pixel_components, make, ("scale",), True)


def pixel_logistic_mixture(levels: int, pixel_components: Count = 10) -> Likelihood:
    """A mixture of discretized logistics for each pixel, as in PixelCNN++.

    Salimans et al. 2017, arXiv:1701.05517; also the likelihood of VDVAE. All channels of a pixel
    share the mixture's component, and the mean of a channel is linear in the channels before it.
    An RGB pixel takes ten numbers for each component, which are ordered as logits, means,
    log-scales, slopes. Slopes pass through tanh, and log-scales are at least -7.

    Args:
      levels: how many values a pixel can take.
      pixel_components: how many components the mixture of each pixel has.
    """
    parts = lambda channels: (1, channels, channels, channels * (channels - 1) // 2)

    def make(params: Any, raw: Array) -> PixelLogisticMixture:
        raw = raw.reshape(*raw.shape[:-1], -1, pixel_components)
        channels = next(c for c in range(1, raw.shape[-2]) if sum(parts(c)) == raw.shape[-2])
        ends = [sum(parts(channels)[: i + 1]) for i in range(3)]
        logits, loc, log_scale, slopes = jnp.split(raw, ends, -2)
        return PixelLogisticMixture(
            logits[..., 0, :], loc, jnp.maximum(log_scale, -7.0), jnp.tanh(slopes), levels
        )

    numbers = lambda channels: pixel_components * sum(parts(channels))
    return Likelihood(0, make, ("scale",), True, per_pixel=numbers)


def categorical(levels: int) -> Likelihood:
    """Categorical over the ``levels`` integer values of each pixel."""
    return Likelihood(levels, lambda params, raw: Categorical(raw), ("counts",), True)


def poisson() -> Likelihood:
    """Poisson for counts, with decoded log of the mean."""
    return _elementwise(1, Poisson, ("counts",), True)


def negative_binomial() -> Likelihood:
    """Negative binomial for counts, with decoded log total count and log-odds."""

    def make(log_count: Array, logits: Array) -> NegativeBinomial:
        return NegativeBinomial(jnp.exp(log_count), logits)

    return _elementwise(2, make, ("counts",), True)


def zero_inflated_negative_binomial() -> Likelihood:
    """Zero-inflated negative binomial for counts, with a decoded gate.

    Lopez et al. 2018 (scVI), doi:10.1038/s41592-018-0229-2.
    """

    def make(log_count: Array, logits: Array, gate: Array) -> ZeroInflatedNegativeBinomial:
        return ZeroInflatedNegativeBinomial(jnp.exp(log_count), logits, gate)

    return _elementwise(3, make, ("counts",), True)


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "bernoulli": bernoulli,
    "continuous_bernoulli": continuous_bernoulli,
    "normal": normal,
    "normal_learned": normal_learned,
    "normal_decoded": normal_decoded,
    "normal_banded": normal_banded,
    "laplace": laplace,
    "laplace_learned": laplace_learned,
    "discretized_logistic": discretized_logistic,
    "discretized_logistic_mixture": discretized_logistic_mixture,
    "pixel_logistic_mixture": pixel_logistic_mixture,
    "categorical": categorical,
    "poisson": poisson,
    "negative_binomial": negative_binomial,
    "zero_inflated_negative_binomial": zero_inflated_negative_binomial,
}
