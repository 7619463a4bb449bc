"""Distributions over one example, with ``sample(key, shape=())`` and ``log_prob(x)``.

They are small frozen pytrees. Every axis of the parameters belongs to the event. So a ``Normal``
with ``loc [H, W, C]`` is one density over one image, and its ``log_prob`` is a single number in
nats. ``jax.vmap`` makes batches. ``sample(key, shape)`` puts ``shape`` in front of the event, and
``log_prob`` accepts what ``sample`` returns: ``x [*shape, *event] -> [*shape]``. The models, bounds
and estimators ask for the density of one event alone, and an event may then be any pytree.

NumPyro's distributions satisfy the same contract (with ``to_event`` so that ``batch_shape`` is
empty).
"""

from jaxvae.contracts import pytree
from jaxvae.distributions.chains import MarkovChain, vectors
from jaxvae.distributions.compositions import Hierarchy, Independent, Joint, Mixture, tempered
from jaxvae.distributions.continuous import (
    Beta,
    ContinuousBernoulli,
    Dirichlet,
    Exponential,
    Gamma,
    Kumaraswamy,
    Laplace,
    MultivariateNormal,
    Normal,
    Point,
    StudentT,
    log1mexp,
    stick_lengths,
)
from jaxvae.distributions.contract import (
    LOG_2PI,
    Distribution,
    check_scalar,
    event_shapes,
    log_prob_of,
    mean_of,
    reparameterize,
    sample_and_log_prob_of,
    sample_noise,
)
from jaxvae.distributions.discrete import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    NegativeBinomial,
    OneHotCategorical,
    PixelLogisticMixture,
    Poisson,
    Truncated,
    ZeroInflatedNegativeBinomial,
    bernoulli_log_prob,
    logistic,
    uniform,
)
from jaxvae.distributions.rounded import Box, NoisyCumulative, NoisyNormal, init_cumulative
from jaxvae.distributions.sparse import SpikeAndSlab
from jaxvae.distributions.spherical import PowerSpherical, SphericalUniform, VonMisesFisher
from jaxvae.distributions.structured import BandedNormal
from jaxvae.distributions.transformed import Transformed

__all__ = [
    "LOG_2PI",
    "BandedNormal",
    "Bernoulli",
    "Beta",
    "Box",
    "Categorical",
    "ContinuousBernoulli",
    "Dirichlet",
    "DiscretizedLogistic",
    "Distribution",
    "Exponential",
    "Gamma",
    "Hierarchy",
    "Independent",
    "Joint",
    "Kumaraswamy",
    "Laplace",
    "MarkovChain",
    "Mixture",
    "MultivariateNormal",
    "NegativeBinomial",
    "NoisyCumulative",
    "NoisyNormal",
    "Normal",
    "OneHotCategorical",
    "PixelLogisticMixture",
    "Point",
    "Poisson",
    "PowerSpherical",
    "SphericalUniform",
    "SpikeAndSlab",
    "StudentT",
    "Transformed",
    "Truncated",
    "VonMisesFisher",
    "ZeroInflatedNegativeBinomial",
    "bernoulli_log_prob",
    "check_scalar",
    "event_shapes",
    "init_cumulative",
    "log1mexp",
    "log_prob_of",
    "logistic",
    "mean_of",
    "pytree",
    "reparameterize",
    "sample_and_log_prob_of",
    "sample_noise",
    "stick_lengths",
    "tempered",
    "uniform",
    "vectors",
]
