"""jaxvae: variational autoencoders in JAX, written for one example.

One example, one formula: ``jax.vmap`` makes the batch, ``jax.lax.scan`` the epoch, ``jax.pmap`` the
pod.
"""

from jaxvae import (
    bounds,
    checkpoints,
    costs,
    datasets,
    distributions,
    divergences,
    evaluation,
    expectations,
    families,
    figures,
    fitted,
    flows,
    kl_costs,
    likelihoods,
    measurements,
    models,
    networks,
    posteriors,
    priors,
    processes,
    runs,
    schedules,
    settings,
    training,
)
from jaxvae.runs import Trained, load, train

__version__ = "0.1.0"
__all__ = [
    "Trained",
    "bounds",
    "checkpoints",
    "costs",
    "datasets",
    "distributions",
    "divergences",
    "evaluation",
    "expectations",
    "families",
    "figures",
    "fitted",
    "flows",
    "kl_costs",
    "likelihoods",
    "load",
    "measurements",
    "models",
    "networks",
    "posteriors",
    "priors",
    "processes",
    "runs",
    "schedules",
    "settings",
    "train",
    "training",
]
