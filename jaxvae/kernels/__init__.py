"""Convolutions and matrix products that are compiled as faster programs than XLA's.

They take, return and differentiate the same arrays as the functions of ``jax.lax``. Only
``networks`` uses them.
"""

from jaxvae.kernels.convolutions import conv_general_dilated, conv_transpose
from jaxvae.kernels.lowering import dot_general

__all__ = ["conv_general_dilated", "conv_transpose", "dot_general"]
