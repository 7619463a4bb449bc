"""How good a model is: bounds, log-likelihoods, latents, samples, factors, clusters.

Each function asks a ``models.Model`` for the answers that it needs, and says in a sentence which of
them the model does not have. All values are in nats.
"""

from jaxvae.evaluation import (
    clusters,
    decompositions,
    disentanglement,
    metrics,
    nuisances,
    samples,
    sources,
    words,
)
from jaxvae.evaluation.classification import Classification, classification, classified
from jaxvae.evaluation.encodings import (
    as_matrix,
    encode_split,
    posteriors_of,
    preprocessed_split,
)
from jaxvae.evaluation.likelihoods import (
    ACTIVE_VARIANCE,
    FEWEST_EFFECTIVE_SAMPLES,
    UNRELIABLE_PARETO_K,
    Likelihoods,
    LogLikelihood,
    Summary,
    bits_per_dim,
    estimate_log_likelihood,
    evaluate_elbo,
    log_likelihood,
    log_likelihoods,
    pareto_shape,
    per_dimension,
    tail_length,
)
from jaxvae.evaluation.metrics import METRICS, Data, measure
from jaxvae.evaluation.separations import Quality, separation_quality
from jaxvae.evaluation.sources import SOURCES, source
from jaxvae.evaluation.usage import Usage, code_usage
from jaxvae.evaluation.zero_shot import ZeroShot, zero_shot, zero_shot_of

__all__ = [
    "ACTIVE_VARIANCE",
    "FEWEST_EFFECTIVE_SAMPLES",
    "METRICS",
    "SOURCES",
    "UNRELIABLE_PARETO_K",
    "Classification",
    "Data",
    "Likelihoods",
    "LogLikelihood",
    "Quality",
    "Summary",
    "Usage",
    "ZeroShot",
    "as_matrix",
    "bits_per_dim",
    "classification",
    "classified",
    "clusters",
    "code_usage",
    "decompositions",
    "disentanglement",
    "encode_split",
    "estimate_log_likelihood",
    "evaluate_elbo",
    "log_likelihood",
    "log_likelihoods",
    "measure",
    "metrics",
    "nuisances",
    "pareto_shape",
    "per_dimension",
    "posteriors_of",
    "preprocessed_split",
    "samples",
    "separation_quality",
    "source",
    "sources",
    "tail_length",
    "words",
    "zero_shot",
    "zero_shot_of",
]
