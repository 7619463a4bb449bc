"""Scores of how well codes disentangle the factors of their examples.

Codes ``[N, D]`` are posterior means, as ``evaluation.encode_split`` gives them. Factors ``[N, F]``
are annotations of the same examples, such as ``datasets.shapes.images().factors``. Some scores hold
a factor fixed: they look for examples that share its value, which is an intervention if the set is
a full grid. Higher is better, except for the correlations and the information of codes alone.

The defaults follow the study of Locatello et al. 2018 (arXiv:1811.12359), which fits to 10,000
points and tests on 5,000, with 20 bins and batches of 64. The classifiers come from scikit-learn:
pip install 'jaxvae[train]'.
"""

from jaxvae.evaluation.disentanglement.information import (
    BINS,
    discretized,
    entropy,
    mean_mutual_information,
    mig,
    modularity,
    mutual_information,
)
from jaxvae.evaluation.disentanglement.interventions import (
    LEAST_SCALE,
    VOTES,
    beta_vae,
    factor_vae,
    irs,
)
from jaxvae.evaluation.disentanglement.predictors import (
    DCI,
    boosted_trees,
    completeness,
    dci,
    disentanglement,
    explicitness,
    forest,
    sap,
    sap_of_classes,
)
from jaxvae.evaluation.disentanglement.unsupervised import (
    LEAST_KL,
    gaussian_total_correlation,
    gaussian_wasserstein_correlation,
    lasso,
    normalized_wasserstein_correlation,
    relative_strength,
    spearman,
    udr,
)

__all__ = [
    "BINS",
    "DCI",
    "LEAST_KL",
    "LEAST_SCALE",
    "VOTES",
    "beta_vae",
    "boosted_trees",
    "completeness",
    "dci",
    "discretized",
    "disentanglement",
    "entropy",
    "explicitness",
    "factor_vae",
    "forest",
    "gaussian_total_correlation",
    "gaussian_wasserstein_correlation",
    "irs",
    "lasso",
    "mean_mutual_information",
    "mig",
    "modularity",
    "mutual_information",
    "normalized_wasserstein_correlation",
    "relative_strength",
    "sap",
    "sap_of_classes",
    "spearman",
    "udr",
]
