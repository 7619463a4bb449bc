"""Convolutions and matrix products that are compiled as faster programs than XLA's own.

They take, return and differentiate what those of ``jax.lax`` do. ``networks`` uses them, and no
other room needs to know them.
"""

from jaxvae.kernels.convolutions import conv_general_dilated, conv_transpose
from jaxvae.kernels.lowering import dot_general

__all__ = ["conv_general_dilated", "conv_transpose", "dot_general"]
