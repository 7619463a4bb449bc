"""The bias and the variance of gradient estimators, exactly or by Monte Carlo.

``exact`` sums over all values of an estimator's noise, if its distribution is known. ``measure``
takes the gradient of any objective of an example over many keys. ``reports`` say what the moments
mean, and give each number an interval.
"""

from jaxvae.measurements import reports
from jaxvae.measurements.exactly import Moments, exact
from jaxvae.measurements.invariances import invariances
from jaxvae.measurements.reports import Bias, Interval, Signal
from jaxvae.measurements.sampling import Sampled, blocks_of, measure, ravel

__all__ = [
    "Bias",
    "Interval",
    "Moments",
    "Sampled",
    "Signal",
    "blocks_of",
    "exact",
    "invariances",
    "measure",
    "ravel",
    "reports",
]
