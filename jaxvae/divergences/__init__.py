"""Divergences. Relative entropies are in nats.

``densities`` holds divergences between distributions, with ``kl(q, p)`` in closed form for every
pair that has one. ``samples`` holds divergences between the codes of a batch and draws of the
prior. ``codes`` holds statistics of q(z) over a batch of posteriors.
"""

from jaxvae.divergences.codes import (
    MinibatchDecomposition,
    dip_i,
    dip_ii,
    exact_decomposition,
    minibatch_decomposition,
    pairwise_log_densities,
    permuted,
    stratified_decomposition,
    stratified_importance,
    symmetric_decomposition,
    symmetric_importance,
    weighted_importance,
)
from jaxvae.divergences.densities import (
    FACTORIZED_KL,
    JOINT_KL,
    has_closed_form,
    kl,
    kl_per_latent,
    register_kl,
    sampled_kl,
)
from jaxvae.divergences.samples import (
    DIVERGENCES,
    Divergence,
    Kernel,
    biased_mmd,
    cramer_wold,
    cramer_wold_two_sample,
    energy_distance,
    imq,
    imq_sum,
    mmd,
    negative_distance,
    radon_sobolev,
    rbf,
    sliced_wasserstein,
)

__all__ = [
    "DIVERGENCES",
    "FACTORIZED_KL",
    "JOINT_KL",
    "Divergence",
    "Kernel",
    "MinibatchDecomposition",
    "biased_mmd",
    "cramer_wold",
    "cramer_wold_two_sample",
    "dip_i",
    "dip_ii",
    "energy_distance",
    "exact_decomposition",
    "has_closed_form",
    "imq",
    "imq_sum",
    "kl",
    "kl_per_latent",
    "minibatch_decomposition",
    "mmd",
    "negative_distance",
    "pairwise_log_densities",
    "permuted",
    "radon_sobolev",
    "rbf",
    "register_kl",
    "sampled_kl",
    "sliced_wasserstein",
    "stratified_decomposition",
    "stratified_importance",
    "symmetric_decomposition",
    "symmetric_importance",
    "weighted_importance",
]
