"""A causal transformer over grids of codes, which draws with a cache of keys and values.

Vaswani et al. 2017, arXiv:1706.03762, with normalization before the layers. One sequence holds all
grids, the top one first. Positions are learned for each axis of each grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax import lax

from jaxvae.networks.adapters import from_linen
from jaxvae.networks.autoregressive import Autoregressive, Codes, Grid, drawn
from jaxvae.networks.contract import in_training
from jaxvae.networks.layers import Array, dense
from jaxvae.networks.precision import with_precision

Cache = tuple[Array, Array]  # keys and values of a layer, [T, heads, width / heads] each


class _Block(linen.Module):
    """x + attention(norm(x)), then x + dense(gelu(dense(norm(x)))).

    Without a cache the queries are all positions, each of which attends to itself and to earlier
    ones. With a cache they are the positions from ``start`` on, whose keys and values enter it.
    """

    heads: int
    dropout: float
    deterministic: bool

    @linen.compact
    def __call__(self, x: Array, cache: Cache | None, start: Any) -> tuple[Array, Cache | None]:
        width = x.shape[-1]
        normed = _norm("norm_attention")(x)
        q, k, v = (
            dense(width, name=name)(normed).reshape(len(x), self.heads, -1)
            for name in ("query", "key", "value")
        )
        if cache is None:
            h = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = (
                lax.dynamic_update_slice_in_dim(c, new.astype(c.dtype), start, 0)
                for c, new in zip(cache, (k, v), strict=True)
            )
            seen = jnp.arange(len(k)) <= start + jnp.arange(len(x))[:, None]
            h = jax.nn.dot_product_attention(q, k, v, mask=seen[None])
            cache = k, v
        x = x + self._dropped(dense(width, name="attended")(h.reshape(len(x), width)))
        h = dense(4 * width, name="hidden")(_norm("norm_hidden")(x))
        h = dense(width, name="output")(jax.nn.gelu(h, approximate=False))
        return x + self._dropped(h), cache

    def _dropped(self, x: Array) -> Array:
        return linen.Dropout(self.dropout)(x, deterministic=self.deterministic)


def _norm(name: str) -> linen.LayerNorm:
    return linen.LayerNorm(epsilon=1e-6, name=name)


class States(linen.Module):
    """States [T, width] after tokens [T], of which each precedes a position.

    Tokens beyond the last position have its place.
    """

    grids: tuple[Grid, ...]
    width: int
    layers: int
    heads: int
    dropout: float

    @linen.compact
    def __call__(self, inputs: tuple, deterministic: bool) -> tuple[Array, Any]:
        return self._states(inputs, deterministic)

    def _states(self, inputs: tuple, deterministic: bool) -> tuple[Array, Any]:
        tokens, context, cache, start = inputs
        number = _tokens(self.grids)
        rows, columns = _axes(self.grids)
        at = start + jnp.arange(len(tokens))
        x = linen.Embed(number + 1, self.width, name="tokens")(tokens)
        for name, places in (("rows", rows), ("columns", columns)):
            x += linen.Embed(int(places.max()) + 1, self.width, name=name)(
                jnp.take(places, at, mode="clip")
            )
        if context is not None:
            x += dense(self.width, use_bias=False, name="context")(context)
        blocks = linen.scan(
            _Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, linen.broadcast),
            length=self.layers,
        )
        block = blocks(self.heads, self.dropout, deterministic, name="blocks")
        x, cache = block(x, cache, start)
        return _norm("norm_logits")(x), cache


class Transformer(States):
    """Logits [T, sum of K] after tokens [T], of which each precedes a position."""

    @linen.compact
    def __call__(self, inputs: tuple, deterministic: bool) -> tuple[Array, Any]:
        states, cache = self._states(inputs, deterministic)
        return dense(_tokens(self.grids), name="logits")(states), cache


def _tokens(grids: Sequence[Grid]) -> int:
    return sum(grid.codes for grid in grids)


def preceding(begin: int, tokens: Array) -> Array:
    """The token before each of the tokens [T], of which the first one has ``begin`` before it."""
    return jnp.concatenate([jnp.full(1, begin), tokens[:-1]])


def _firsts(numbers: Sequence[int]) -> list[int]:
    """The number at which each part begins, if the parts follow each other."""
    return [0, *itertools.accumulate(numbers)][:-1]


def _axes(grids: Sequence[Grid]) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of each position [T]; each grid has its own numbers."""
    first_rows = _firsts([grid.height for grid in grids])
    first_columns = _firsts([grid.width for grid in grids])
    places = [np.indices((grid.height, grid.width)).reshape(2, -1) for grid in grids]
    rows, columns = zip(*places, strict=True)
    numbered = lambda parts, firsts: np.concatenate(
        [part + first for part, first in zip(parts, firsts, strict=True)]
    )
    return numbered(rows, first_rows), numbered(columns, first_columns)


def causal_transformer(
    grids: Sequence[Grid],
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    context_size: int = 0,
    precision: str = "float32",
) -> Autoregressive:
    """p(c_t | c_<t) by a causal transformer over all positions of all grids.

    A density takes one pass. A draw takes one step for each position, which sees the cached keys
    and values of the positions before it.

    Args:
      grids: the grids of codes, from the top one on.
      width: channels of each position.
      layers: blocks of attention and a hidden layer of four times the width.
      heads: heads of the attention, which divide the width.
      dropout: share of units that training drops.
      context_size: size of the vector that the law is conditioned on; 0 is none.
      precision: a member of ``PRECISIONS``.

    Raises ValueError if the heads do not divide the width.
    """
    grids = tuple(grids)
    if width % heads:
        raise ValueError(f"heads={heads} must divide width={width}: choose another of the two")
    total, firsts = sum(grid.size for grid in grids), _firsts([grid.codes for grid in grids])
    module = Transformer(grids, width, layers, heads, dropout)
    network = with_precision(from_linen(module), precision)
    begin = _tokens(grids)

    def init(key: Array) -> Any:
        given = jnp.zeros(context_size) if context_size else None
        return network.init(key, (jnp.zeros(total, jnp.int32), given, None, 0))

    def logits(params: Any, codes: Codes, context: Any, key: Any = None) -> tuple[Array, ...]:
        live = network if key is None else in_training(network, key)
        flat = [c.reshape(-1) + first for c, first in zip(codes, firsts, strict=True)]
        tokens = preceding(begin, jnp.concatenate(flat))
        every, _ = live.apply(params, (tokens, context, None, 0))
        return tuple(
            every[place : place + g.size, first : first + g.codes].reshape(*g)
            for g, place, first in zip(grids, _firsts([g.size for g in grids]), firsts, strict=True)
        )

    def sample(params: Any, key: Array, context: Any, temperature: Any) -> Codes:
        empty = jnp.zeros((layers, total, heads, width // heads))
        carry, place, codes = (jnp.int32(begin), (empty, empty)), 0, []
        for grid, first in zip(grids, firsts, strict=True):

            def step(carry: Any, t: Array, grid: Grid = grid, first: int = first) -> Any:
                token, cache = carry
                every, cache = network.apply(params, (token[None], context, cache, t))
                among = every[0, first : first + grid.codes]
                code = drawn(jax.random.fold_in(key, t), among, temperature)
                return (code + first, cache), code

            carry, flat = lax.scan(step, carry, place + jnp.arange(grid.size))
            codes.append(flat.reshape(grid.height, grid.width))
            place += grid.size
        return tuple(codes)

    return Autoregressive(grids, init, logits, sample)
