"""Pictures of a model: reconstructions, samples, traversals, interpolations, codes, curves.

Functions that decode return arrays of images, whose values ``pixel_max`` stands for white.
``draw_all`` writes every figure that the model has the answers for, as PNG files. Only this room
needs matplotlib.
"""

from jaxvae.figures.album import FIGURES, Figure, Shown, draw_all
from jaxvae.figures.decoding import (
    decoded,
    interpolations,
    prior_samples,
    reconstructions,
    traversals,
)
from jaxvae.figures.drawing import curves, grid, latent_scatter

__all__ = [
    "FIGURES",
    "Figure",
    "Shown",
    "curves",
    "decoded",
    "draw_all",
    "grid",
    "interpolations",
    "latent_scatter",
    "prior_samples",
    "reconstructions",
    "traversals",
]
