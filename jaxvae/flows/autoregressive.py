"""Flows whose parameters all examples share: autoregressive ones and couplings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import log_sigmoid, sigmoid

from jaxvae.flows.contract import Array, Flow, Pair, checked_flow
from jaxvae.flows.masked import masked_mlp, masked_network

LOG_SCALE = 3.0  # largest log-scale of a coupling
GATE = 2.0  # initial log-odds of the share of z that an inverse autoregressive flow keeps


def inverse_autoregressive(latent: int, hidden: Sequence[int], context: int) -> Flow:
    """y = sigmoid(s) z + (1 - sigmoid(s)) m, where m_i and s_i depend on z_<i.

    Kingma et al. 2016, arXiv:1606.04934. [m, s] is a ``masked_mlp`` that also sees ``raw``, a
    context [C] from the encoder. log det = sum_i log sigmoid(s_i). s starts at ``GATE``, so most of
    z is kept at first. The inverse takes D steps.
    """
    init, network = masked_mlp(latent, hidden, 2, context)

    def gated(params: Any, raw: Array, z: Array) -> Pair:
        m, s = network(params, z, raw)
        return m, s + GATE

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        m, s = gated(params, raw, z)
        return sigmoid(s) * z + sigmoid(-s) * m, log_sigmoid(s).sum()

    def inverse(params: Any, raw: Array, y: Array) -> Pair:
        def step(z: Array) -> Array:
            m, s = gated(params, raw, z)
            return (y - sigmoid(-s) * m) / sigmoid(s)

        z = _sequentially(step, y)
        return z, -log_sigmoid(gated(params, raw, z)[1]).sum()

    return checked_flow("an inverse autoregressive flow", latent, forward, inverse, context, init)


def masked_autoregressive(latent: int, hidden: Sequence[int]) -> Flow:
    """y_i = m_i + exp(s_i) z_i, where m_i and s_i depend on y_<i.

    Papamakarios et al. 2017, arXiv:1705.07057. [m, s] is a ``masked_mlp``; log det = sum_i s_i. The
    inverse, which densities need, is one pass. ``forward``, which samples need, takes D passes.
    """
    init, network = masked_mlp(latent, hidden, 2)

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        def step(y: Array) -> Array:
            m, s = network(params, y, raw)
            return m + jnp.exp(s) * z

        y = _sequentially(step, z)
        return y, network(params, y, raw)[1].sum()

    def inverse(params: Any, raw: Array, y: Array) -> Pair:
        m, s = network(params, y, raw)
        return (y - m) * jnp.exp(-s), -s.sum()

    return checked_flow("a masked autoregressive flow", latent, forward, inverse, init=init)


def _sequentially(step: Callable[[Array], Array], like: Array) -> Array:
    """The fixed point of ``step``, found one coordinate at a time.

    The i-th output of ``step`` depends only on inputs before the i-th.
    """
    return lax.fori_loop(0, len(like), lambda i, x: x.at[i].set(step(x)[i]), jnp.zeros_like(like))


def affine_coupling(latent: int, hidden: Sequence[int]) -> Flow:
    """y_1 = z_1, y_2 = exp(s(z_1)) z_2 + t(z_1), for z cut into halves.

    RealNVP, Dinh et al. 2017, arXiv:1605.08803. log det = sum_i s_i, with |s_i| < ``LOG_SCALE``.
    With a ``reverse`` between two couplings the second changes the other half. Raises ValueError
    below two dimensions.
    """
    if latent < 2:
        raise ValueError(
            f"a coupling needs two dimensions or more to cut into halves; got latent={latent}"
        )
    kept = latent // 2
    sizes = [kept, *hidden, 2 * (latent - kept)]
    init, network = masked_network(
        [np.ones(shape, bool) for shape in itertools.pairwise(sizes)], jax.nn.elu
    )

    def given(params: Any, first: Array) -> Pair:
        t, s = jnp.split(network(params, first), 2)
        return t, LOG_SCALE * jnp.tanh(s / LOG_SCALE)

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        t, s = given(params, z[:kept])
        return jnp.concatenate([z[:kept], jnp.exp(s) * z[kept:] + t]), s.sum()

    def inverse(params: Any, raw: Array, y: Array) -> Pair:
        t, s = given(params, y[:kept])
        return jnp.concatenate([y[:kept], (y[kept:] - t) * jnp.exp(-s)]), -s.sum()

    return checked_flow("an affine coupling", latent, forward, inverse, init=init)
