"""Reports on the moments of an estimator: biases, variances, tails, directions, budgets.

Each number comes with a 95 % interval. Each bias comes with the smallest one that the draws could
have detected.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxvae.evaluation import pareto_shape, tail_length
from jaxvae.measurements.sampling import GROUPS, Sampled

NORMAL = statistics.NormalDist()
WIDTH = NORMAL.inv_cdf(0.975)  # intervals hold with 95 % confidence
STUDENT = 2.3646  # the same quantile of Student's t with GROUPS - 1 degrees of freedom
HEAVY = (
    0.7  # Pareto shape of |g|^2 from which its mean, and with it the variance, cannot be trusted
)
UNLIKELY = 1e-4  # of a bias to be seen where there is none


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def _normal_interval(value: float, error: float) -> Interval:
    width = WIDTH * error
    return Interval(float(value), float(value) - width, float(value) + width)


def _log_interval(value: float, relative_error: float) -> Interval:
    """The interval of a positive number whose logarithm is estimated with this error."""
    factor = math.exp(min(WIDTH * relative_error, 700.0))
    return Interval(float(value), float(value) / factor, float(value) * factor)


def _block(sampled: Sampled, block: str) -> int:
    return sampled.blocks.index(block)


def trace(sampled: Sampled, block: str = "all") -> Interval:
    """The trace of the covariance of one draw.

    The interval comes from the spread of |g - mean|^2, so no shape is assumed.
    """
    i = _block(sampled, block)
    value = float(sampled.variance[sampled.spans[i]].sum())
    squares = sampled.squares[i]
    if value <= 0:
        return Interval(0.0, 0.0, 0.0)
    return _log_interval(value, float(squares.std(ddof=1)) / math.sqrt(len(squares)) / value)


def variance_intervals(sampled: Sampled) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the intervals of every coordinate's variance, [P] each.

    They come from the measured kurtosis k. The relative standard error of a variance of N draws is
    sqrt((k - (N - 3) / (N - 1)) / N).
    """
    n = sampled.num_draws
    error = np.sqrt(np.maximum(np.nan_to_num(sampled.kurtosis, nan=3.0) - (n - 3) / (n - 1), 0) / n)
    factor = np.exp(np.minimum(WIDTH * error, 700.0))
    return sampled.variance / factor, sampled.variance * factor


def ratio(sampled: Sampled, other: Sampled, block: str = "all") -> Interval:
    """The ratio of tr Cov of two measurements.

    Their draws have the same keys, and the interval makes use of the draws' correlation.
    """
    i, j = _block(sampled, block), _block(other, block)
    a, b = (float(s.variance[s.spans[k]].sum()) for s, k in ((sampled, i), (other, j)))
    if min(a, b) <= 0:
        return Interval(*(3 * [math.nan if a <= 0 and b <= 0 else math.inf if b <= 0 else 0.0]))
    differences = sampled.squares[i] / a - other.squares[j] / b
    return _log_interval(a / b, float(differences.std(ddof=1)) / math.sqrt(len(differences)))


class Bias(NamedTuple):
    """The bias of a mean, and the bias that the draws could have shown."""

    largest_z: float  # over coordinates, of the mean
    bound: float  # what it exceeds once in 10,000 runs without a bias (Sidak)
    seen: bool
    # The smallest bias that nine of ten such runs would have seen, in the coordinate with the
    # largest error.
    visible: float
    squared: (
        Interval  # |bias|^2 without the part that sampling noise makes; the jackknife's interval
    )


def bias(sampled: Sampled, truth: np.ndarray | Sampled, block: str = "all") -> Bias:
    """The bias of a mean.

    ``truth`` is the true gradient [P], or an unbiased estimate that was sampled with the same keys.
    Coordinates that never moved are left out. So are coordinates whose variance comes from a few
    draws, which have a kurtosis above a thirtieth of the number of draws. Nothing is known of rare
    events that did not happen.
    """
    span = sampled.spans[_block(sampled, block)]
    sure = truth.mean if isinstance(truth, Sampled) else truth
    error, reference = sampled.error[span], sure[span]
    groups = sampled.groups[:, span] - reference
    if isinstance(truth, Sampled):
        error = error + truth.error[span]  # whatever their correlation
        paired = len(truth.groups) == len(sampled.groups)
        groups = sampled.groups[:, span] - truth.groups[:, span] if paired else groups[:0]
    off = sampled.mean[span] - reference
    rounding = 1e-6 * (1e-6 * np.abs(sure).max() + np.abs(reference))  # of gradients in float32
    constant = (sampled.variance[span] == 0) & (np.abs(off) <= 1e-4 * np.abs(reference) + 1e-12)
    known = (sampled.kurtosis[span] < sampled.num_draws / 30) | constant
    if not known.any():
        return Bias(0.0, math.inf, False, math.inf, _squared(groups))
    off, error, rounding = off[known], error[known], rounding[known]
    z = np.abs(off) / np.maximum(np.maximum(error, rounding), 1e-300)
    bound = -NORMAL.inv_cdf(-math.expm1(math.log1p(-UNLIKELY) / z.size) / 2)
    visible = float((bound + NORMAL.inv_cdf(0.9)) * error.max())
    return Bias(float(z.max()), bound, bool(z.max() > bound), visible, _squared(groups))


def _squared(groups: np.ndarray) -> Interval:
    """|mean|^2 from the products of different groups, which have independent noise, [G, P]."""
    if len(groups) < GROUPS:
        return Interval(math.nan, math.nan, math.nan)
    gram = groups @ groups.T

    def of(rows: np.ndarray) -> float:
        part = gram[np.ix_(rows, rows)]
        return float((part.sum() - np.trace(part)) / (len(rows) * (len(rows) - 1)))

    every = np.arange(len(groups))
    left_out = np.array([of(np.delete(every, i)) for i in every])
    error = math.sqrt((len(every) - 1) * left_out.var())
    width = STUDENT * error
    value = of(every)
    return Interval(value, value - width, value + width)


class Signal(NamedTuple):
    """How good draws are as directions of descent."""

    snr: float  # |mean| / sd, averaged over the coordinates that have noise
    # E |along| / |across| the true gradient (Rainforth et al. 2018, arXiv:1802.04537), for several
    # coordinates.
    dsnr: float | None
    cosine: float | None  # mean cosine to the true gradient
    gain: (
        float | None
    )  # <g, E g^>^2 / (|g|^2 E |g^|^2): what a step gains, of what the true gradient would


def signal(sampled: Sampled, block: str = "all") -> Signal:
    """Signal-to-noise ratios. The directional ones need a direction."""
    i = _block(sampled, block)
    span = sampled.spans[i]
    noisy = sampled.variance[span] > 0
    snr = (
        float(np.mean(np.abs(sampled.mean[span][noisy]) / np.sqrt(sampled.variance[span][noisy])))
        if noisy.any()
        else math.inf
    )
    if sampled.along is None:
        return Signal(snr, None, None, None)
    along, norms = sampled.along[i], sampled.norms[i]
    across = np.sqrt(np.maximum(norms - along**2, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        dsnr = float(np.mean(np.abs(along) / across)) if span.stop - span.start > 1 else None
        cosine = float(np.nanmean(along / np.sqrt(norms)))
    gain = float(along.mean() ** 2 / norms.mean()) if norms.mean() else math.nan
    return Signal(snr, dsnr, cosine, gain)


def tail(sampled: Sampled) -> float:
    """The Pareto shape of the tail of |g|^2.

    From 1 on the variance does not exist, and above 0.7 a measured variance cannot be trusted. The
    shape is fitted to a tail and to its last quarter, and the smaller shape is returned. A heavy
    tail is heavy above any threshold. A bump in the density, such as a cosine makes, looks heavy
    only above a threshold near it.
    """
    norms = sampled.norms[0]
    count = tail_length(len(norms))
    largest = np.sort(norms)[::-1][: count + 1]
    if largest[-1] <= 0 or largest[0] <= largest[-1]:
        return math.nan
    shape = lambda largest: float(pareto_shape(jnp.log(jnp.asarray(largest, jnp.float32))))
    return float(np.fmin(shape(largest), shape(largest[: count // 4 + 1])))


def warnings(sampled: Sampled, found: Bias | None = None) -> list[str]:
    """Sentences that a reader of a measurement must know."""
    said = []
    k = tail(sampled)
    if k > HEAVY:
        said.append(f"heavy tail (Pareto k {k:.2f}): the variance may not exist")
    if np.linalg.norm(sampled.error) > np.linalg.norm(sampled.mean):
        said.append(
            "the standard error exceeds the mean: more draws are needed to see its direction"
        )
    if found is not None and found.seen:
        said.append(f"biased: |z| = {found.largest_z:.1f}, above {found.bound:.1f}")
    return said


def break_even(
    biased_variance: float, biased_cost: float, squared_bias: float, variance: float, cost: float
) -> float | None:
    """The budget above which an unbiased estimator has less mean squared error.

    It is (V_u c_u - V_b c_b) / |bias|^2, in the units of the costs. It is 0 if the unbiased
    estimator is better from the first draw on, and None if there is no bias.

    Args:
      biased_variance: V_b, the variance of one draw of the biased estimator.
      biased_cost: c_b, the cost of such a draw.
      squared_bias: |bias|^2.
      variance: V_u, the variance of one draw of the unbiased estimator.
      cost: c_u, the cost of such a draw.
    """
    if squared_bias <= 0:
        return None
    return max(0.0, (variance * cost - biased_variance * biased_cost) / squared_bias)


def batch_variance(sampled: Sampled, batch: int, replicates: int = 1) -> tuple[float, float]:
    """tr Cov of the mean over a batch: the part of the noise and the part of the minibatch.

    The batch holds ``batch`` units with ``replicates`` draws each.
    """
    if sampled.between is None:
        raise ValueError("minibatch noise needs more than one unit of examples")
    return float(sampled.variance.sum()) / (batch * replicates), float(
        sampled.between.sum()
    ) / batch


def slope(sizes: Sequence[float], values: Sequence[float], errors: Sequence[float]) -> Interval:
    """The exponent b of values ~ sizes^b.

    It is fitted by least squares on logarithms, which are weighted with their standard errors.
    """
    x, y, w = np.log(sizes), np.log(values), 1 / np.asarray(errors, float) ** 2
    centre = np.average(x, weights=w)
    spread = np.sum(w * (x - centre) ** 2)
    return _normal_interval(float(np.sum(w * (x - centre) * y) / spread), 1 / math.sqrt(spread))
