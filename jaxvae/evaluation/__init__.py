"""How good a model is: the ELBO and its terms, log-likelihoods with their error bars, active
units. All in nats.
"""

from jaxvae.evaluation import clusters, decompositions, disentanglement, samples
from jaxvae.evaluation.likelihoods import (
    ACTIVE_VARIANCE,
    Likelihoods,
    LogLikelihood,
    Summary,
    bits_per_dim,
    encode_split,
    estimate_log_likelihood,
    evaluate,
    log_likelihood,
    pareto_shape,
    same,
    tail_length,
)

__all__ = [
    "ACTIVE_VARIANCE",
    "Likelihoods",
    "LogLikelihood",
    "Summary",
    "bits_per_dim",
    "clusters",
    "decompositions",
    "disentanglement",
    "encode_split",
    "estimate_log_likelihood",
    "evaluate",
    "log_likelihood",
    "pareto_shape",
    "same",
    "samples",
    "tail_length",
]
