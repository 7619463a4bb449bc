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
    schedules,
    training,
)

__version__ = "0.1.0"
__all__ = [
    "bounds",
    "checkpoints",
    "costs",
    "datasets",
    "distributions",
    "divergences",
    "evaluation",
    "expectations",
    "fitted",
    "flows",
    "kl_costs",
    "likelihoods",
    "measurements",
    "models",
    "networks",
    "posteriors",
    "priors",
    "processes",
    "schedules",
    "training",
]
