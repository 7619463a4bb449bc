"""Normalizing flows: invertible maps of z [D] with log-determinants.

Some flows take their parameters from ``raw``, the numbers that an encoder gives for one example.
The others learn parameters that all examples share. ``chain`` composes both kinds.
``distributions.Transformed`` is the distribution of f(z) for a flow f. At ``raw = 0`` and at
``init`` a flow is the identity or close to it.
"""

from jaxvae.flows.amortized import (
    MARGIN,
    householder,
    householder_sylvester,
    orthonormal,
    planar,
    radial,
    sylvester,
    triangular_sylvester,
)
from jaxvae.flows.autoregressive import (
    GATE,
    LOG_SCALE,
    affine_coupling,
    inverse_autoregressive,
    masked_autoregressive,
)
from jaxvae.flows.continuous import continuous
from jaxvae.flows.contract import (
    Flow,
    alternating,
    chain,
    reverse,
    shift,
)
from jaxvae.flows.masked import (
    masked_mlp,
)

__all__ = [
    "GATE",
    "LOG_SCALE",
    "MARGIN",
    "Flow",
    "affine_coupling",
    "alternating",
    "chain",
    "continuous",
    "householder",
    "householder_sylvester",
    "inverse_autoregressive",
    "masked_autoregressive",
    "masked_mlp",
    "orthonormal",
    "planar",
    "radial",
    "reverse",
    "shift",
    "sylvester",
    "triangular_sylvester",
]
