"""Models: one short file per family, each a record of pure functions."""

from jaxvae.models.vae import (
    VAE,
    Loss,
    Terms,
    elbo_terms,
    free_bits,
    negative,
    negative_elbo,
    negative_sampled_elbo,
    vae,
    with_control,
)

__all__ = [
    "VAE",
    "Loss",
    "Terms",
    "elbo_terms",
    "free_bits",
    "negative",
    "negative_elbo",
    "negative_sampled_elbo",
    "vae",
    "with_control",
]
