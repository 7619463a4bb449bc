"""Priors over grids of codes: autoregressive networks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae import networks
from jaxvae.code_priors.contract import CodePrior
from jaxvae.contracts import Array, Params, Terms, pytree
from jaxvae.networks import Autoregressive, Codes, Grid
from jaxvae.ranges import Count, Fraction


@pytree
class CertainCodes:
    """All probability at the codes that an encoder gives."""

    loc: Codes

    @property
    def mean(self) -> Codes:
        return self.loc

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Codes:
        return jax.tree.map(lambda c: jnp.broadcast_to(c, shape + c.shape), self.loc)

    def log_prob(self, codes: Codes) -> Array:
        same = jax.tree.map(lambda c, loc: jnp.all(c == loc), codes, self.loc)
        return jnp.where(jnp.stack(jax.tree.leaves(same)).all(), 0.0, -jnp.inf)


@pytree
class Grids:
    """The law of an autoregressive network, with its logits divided by ``scale``."""

    params: Any
    context: Any
    scale: Any
    network: Autoregressive = dataclasses.field(metadata={"static": True})

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Codes:
        draw = lambda key: self.network.sample(self.params, key, self.context, self.scale)
        codes = jax.vmap(draw)(jax.random.split(key, math.prod(shape)))
        return jax.tree.map(lambda c: c.reshape(*shape, *c.shape[1:]), codes)

    def log_prob(self, codes: Codes) -> Array:
        return self.log_probs(codes).sum()

    def log_probs(self, codes: Codes) -> Array:
        """log p of each grid given the grids above it, [levels]."""
        logits = self.network.logits(self.params, codes, self.context)
        return networks.log_probs_of_grids([each / self.scale for each in logits], codes)


def of_network(network: Autoregressive) -> CodePrior:
    """The prior of an autoregressive network, trained by maximum likelihood."""

    def make(params: Params, context: Any) -> Grids:
        return Grids(params, context, 1.0, network)

    def loss(params: Params, key: Array, codes: Codes, context: Any) -> tuple[Array, Terms]:
        logits = network.logits(params, codes, context, key)
        value = -networks.log_probs_of_grids(logits, codes).sum()
        return value, {"kl": value}

    return CodePrior(network.init, make, loss)


def pixelcnn(
    grids: Sequence[Grid],
    context_size: int,
    precision: str,
    prior_width: Count = 64,
    prior_layers: Count = 8,
    reach: Count = 2,
    prior_dropout: Fraction = 0.0,
) -> CodePrior:
    """A gated PixelCNN for each grid of codes, conditioned on the grids above it.

    van den Oord et al. 2016, arXiv:1606.05328.

    Args:
      grids: the grids of codes, from the top one on.
      context_size: the size of the context; 0 is none.
      precision: the precision of the networks.
      prior_width: channels of the network.
      prior_layers: layers of the network.
      reach: rows above a position, and columns at each side, that a layer sees.
      prior_dropout: share of units that training drops.
    """
    shape = prior_width, prior_layers, reach, prior_dropout
    return of_network(networks.gated_pixelcnn(grids, *shape, context_size, precision))


def transformer(
    grids: Sequence[Grid],
    context_size: int,
    precision: str,
    prior_width: Count = 64,
    prior_layers: Count = 8,
    heads: Count = 4,
    prior_dropout: Fraction = 0.0,
) -> CodePrior:
    """A causal transformer over all grids of codes as one sequence.

    Vaswani et al. 2017, arXiv:1706.03762.

    Args:
      grids: the grids of codes, from the top one on.
      context_size: the size of the context; 0 is none.
      precision: the precision of the networks.
      prior_width: channels of the network.
      prior_layers: layers of the network.
      heads: heads of the attention, which divide the width.
      prior_dropout: share of units that training drops.
    """
    shape = prior_width, prior_layers, heads, prior_dropout
    return of_network(networks.causal_transformer(grids, *shape, context_size, precision))
