"""Separation of determined mixtures: as many microphones as sources.

In each frequency f a matrix W_f takes the mixture x_ft [M] to sources y_ft = W_f x_ft. A source
model says which variances the sources have in time and frequency: two spherical ones, low-rank
matrices, or a conditional VAE. Arrays are complex128, spectra [F, M, T] and powers [J, F, T].
"""

from jaxvae.separation.priors import PRIORS, SourceModel, gauss, laplace, low_rank
from jaxvae.separation.projection import (
    Separation,
    demixed,
    iterative_projection,
    objective,
    projected_back,
    separate,
)
from jaxvae.separation.vae import Codes, vae_sources

__all__ = [
    "PRIORS",
    "Codes",
    "Separation",
    "SourceModel",
    "demixed",
    "gauss",
    "iterative_projection",
    "laplace",
    "low_rank",
    "objective",
    "projected_back",
    "separate",
    "vae_sources",
]
