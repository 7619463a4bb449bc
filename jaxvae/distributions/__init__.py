"""Distributions over one example: small frozen pytrees with ``sample(key, shape=())`` and ``log_prob(x)``.

Every axis of the parameters belongs to the event: a ``Normal`` with ``loc [H, W, C]`` is one density over one image,
and ``log_prob`` is a single number in nats. Batches are made by ``jax.vmap``. ``sample(key, shape)`` puts ``shape`` in
front of the event, and ``log_prob`` accepts what ``sample`` returns: ``x [*shape, *event] -> [*shape]``.

NumPyro's distributions satisfy the same contract (with ``to_event`` so that ``batch_shape`` is empty).
"""

from jaxvae.distributions.compositions import Independent, Mixture
from jaxvae.distributions.continuous import (
    Beta,
    ContinuousBernoulli,
    Dirichlet,
    Gamma,
    Laplace,
    MultivariateNormal,
    Normal,
    StudentT,
)
from jaxvae.distributions.contract import LOG_2PI, Distribution, pytree
from jaxvae.distributions.discrete import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    NegativeBinomial,
    OneHotCategorical,
    ZeroInflatedNegativeBinomial,
    bernoulli_log_prob,
    logistic,
    uniform,
)

__all__ = [
    "LOG_2PI",
    "Bernoulli",
    "Beta",
    "Categorical",
    "ContinuousBernoulli",
    "Dirichlet",
    "DiscretizedLogistic",
    "Distribution",
    "Gamma",
    "Independent",
    "Laplace",
    "Mixture",
    "MultivariateNormal",
    "NegativeBinomial",
    "Normal",
    "OneHotCategorical",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
    "bernoulli_log_prob",
    "logistic",
    "pytree",
    "uniform",
]
