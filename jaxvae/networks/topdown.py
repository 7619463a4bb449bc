"""The contract of networks whose latents are in layers, and posteriors of a layer.

A network walks through its layers from the top down. At each it makes the prior of the layer's
latents and, if it has seen an example, their posterior. The caller says what z is then, and what is
reported of the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.distributions import Normal

Array = jax.Array
# (number of the layer, p(z_l | z_<l), q(z_l | z_<l, x) or None, item) -> (z_l, report)
Layer = Callable[[Any, Normal, Normal | None, Any], tuple[Array, Any]]


class TopDown(NamedTuple):
    """A network with latents in layers, a function of one example.

    Layers that are computed by one loop are a group. Latents, items and reports are tuples over the
    groups, and have an axis of layers in front if the group is a loop.
    """

    init: Callable[[Array, Any], Any]  # (key, x) -> params
    bottom_up: Callable[[Any, Any], Any]  # (params, x) -> activations
    # (params, activations or None, layer, items) -> (outputs, reports)
    top_down: Callable[[Any, Any, Layer, tuple], tuple[Array, tuple]]
    names: tuple[str, ...]  # of the layers, from the top on
    groups: tuple[int, ...]  # how many layers each group has


def normal(raw: Array) -> Normal:
    """N(m, s^2), raw = [m, log s] along the last axis, computed in float32."""
    loc, log_scale = jnp.split(raw.astype(jnp.float32), 2, -1)
    return Normal(loc, jnp.exp(log_scale))


def absolute(p: Normal, raw: Array) -> Normal:
    """N(m, s^2) whatever the prior is, raw = [m, log s] (VDVAE, Child 2021, arXiv:2011.10650)."""
    return normal(raw)


def residual(p: Normal, raw: Array) -> Normal:
    """N(m_p + dm, (s_p ds)^2), raw = [dm, log ds] kept within 5.

    NVAE (Vahdat & Kautz 2020, arXiv:2007.03898, sec. 3.2).
    """
    offset, log_factor = jnp.split(5.0 * jnp.tanh(raw.astype(jnp.float32) / 5.0), 2, -1)
    return Normal(p.loc + offset, p.scale * jnp.exp(log_factor))


def merged(p: Normal, q: Normal) -> Normal:
    """The product of two Gaussian densities, normalized: precisions add up.

    Sonderby et al. 2016, arXiv:1602.02282, eq. 17 to 19.
    """
    of_p, of_q = p.scale**-2, q.scale**-2
    return Normal((of_p * p.loc + of_q * q.loc) / (of_p + of_q), (of_p + of_q) ** -0.5)
