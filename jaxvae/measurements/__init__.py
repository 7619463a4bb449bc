"""The bias and the variance of gradient estimators: exactly where their noise has a law, else by
Monte Carlo.

``exact`` sums over the law of an estimator's noise; ``measure`` takes the gradient of any objective
of an example over keys; ``reports`` say what the moments mean, each number with an interval.
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
