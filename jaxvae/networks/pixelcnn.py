"""The gated PixelCNN over grids of codes (van den Oord et al. 2016, arXiv:1606.05328).

A vertical stack sees the rows above a position, and a horizontal stack the codes at its left. Their
inputs are shifted by one row and by one column, so no kernel needs a mask. Each grid is conditioned
on the grids above it, whose codes are embedded and scaled up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen
from jax import lax

from jaxvae.networks.adapters import from_linen
from jaxvae.networks.autoregressive import Autoregressive, Codes, Grid, drawn
from jaxvae.networks.contract import Network, in_training
from jaxvae.networks.layers import Array, conv, dense
from jaxvae.networks.precision import with_precision


def _gate(x: Array) -> Array:
    """tanh(a) sigmoid(b) for x = [a, b] (eq. 2)."""
    a, b = jnp.split(x, 2, -1)
    return jnp.tanh(a) * jax.nn.sigmoid(b)


def shifted(x: Array, axis: int) -> Array:
    """x moved by one along an axis, with zeros in the first place."""
    first = lax.slice_in_dim(jnp.zeros_like(x), 0, 1, axis=axis)
    return jnp.concatenate([first, lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis)], axis)


class _Layers(NamedTuple):
    """The settings of a PixelCNN."""

    width: int
    layers: int
    reach: int
    dropout: float


class _VerticalLayer(linen.Module):
    """A layer of the vertical stack, and what it gives to the horizontal one."""

    shape: _Layers
    deterministic: bool

    @linen.compact
    def __call__(self, v: Array, given: Any, context: Any) -> tuple[Array, Array]:
        width, reach = 2 * self.shape.width, self.shape.reach
        padding = ((reach, 0), (reach, reach))
        u = conv(width, (reach + 1, 2 * reach + 1), padding=padding, name="rows")(v)
        across = dense(width, name="across")(u)
        for name, inputs in (("given", given), ("context", context)):
            if inputs is not None:
                u += dense(width, use_bias=False, name=f"{name}_vertical")(inputs)
                across += dense(width, use_bias=False, name=f"{name}_horizontal")(inputs)
        return _dropped(self, _gate(u)), across


class _HorizontalLayer(linen.Module):
    """A layer of the horizontal stack, h + dense(gate(conv(h) + across))."""

    shape: _Layers
    deterministic: bool

    @linen.compact
    def __call__(self, h: Array, across: Array) -> tuple[Array, None]:
        width, reach = self.shape.width, self.shape.reach
        padding = ((0, 0), (reach, 0))
        u = conv(2 * width, (1, reach + 1), padding=padding, name="columns")(h) + across
        return h + dense(width, name="output")(_dropped(self, _gate(u))), None


def _dropped(layer: Any, x: Array) -> Array:
    return linen.Dropout(layer.shape.dropout)(x, deterministic=layer.deterministic)


def _stacked(layer: type, shape: _Layers, in_axes: Any) -> Callable[..., Any]:
    """``layers`` layers as one loop over parameters stacked [layers, ...]."""
    return linen.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=shape.layers,
    )


class _Vertical(linen.Module):
    """Codes [H, W] -> what each layer gives to the horizontal stack, [layers, H, W, 2 width]."""

    grid: Grid
    shape: _Layers

    @linen.compact
    def __call__(self, inputs: tuple, deterministic: bool) -> Array:
        codes, given, context = inputs
        v = shifted(linen.Embed(self.grid.codes, self.shape.width, name="codes")(codes), 0)
        stack = _stacked(_VerticalLayer, self.shape, linen.broadcast)
        return stack(self.shape, deterministic, name="layers")(v, given, context)[1]


class _Horizontal(linen.Module):
    """Codes of some rows [h, W] and the vertical stack's [layers, h, W, 2 width] -> logits."""

    grid: Grid
    shape: _Layers

    @linen.compact
    def __call__(self, inputs: tuple, deterministic: bool) -> Array:
        codes, across = inputs
        h = shifted(linen.Embed(self.grid.codes, self.shape.width, name="codes")(codes), 1)
        stack = _stacked(_HorizontalLayer, self.shape, 0)
        h = stack(self.shape, deterministic, name="layers")(h, across)[0]
        h = jax.nn.relu(dense(self.shape.width, name="hidden")(jax.nn.relu(h)))
        return dense(self.grid.codes, name="logits")(h)


class _Given(linen.Module):
    """Codes of the upper grids -> features [H, W, width] of a grid below them."""

    upper: tuple[Grid, ...]
    grid: Grid
    width: int

    @linen.compact
    def __call__(self, codes: Codes) -> Array:
        features: Any = 0.0
        for i, (grid, c) in enumerate(zip(self.upper, codes, strict=True)):
            x = linen.Embed(grid.codes, self.width, name=f"codes_{i}")(c)
            x = x + conv(self.width, (3, 3), name=f"conv_{i}")(jax.nn.relu(x))
            features += _scaled_up(x, self.grid)
        return features


def _scaled_up(x: Array, grid: Grid) -> Array:
    """The nearest of x [h, w, C] for each position of a grid."""
    rows = jnp.arange(grid.height) * x.shape[0] // grid.height
    columns = jnp.arange(grid.width) * x.shape[1] // grid.width
    return x[rows][:, columns]


class _Level(NamedTuple):
    """The networks of one grid."""

    grid: Grid
    given: Network | None
    vertical: Network
    horizontal: Network

    def init(self, key: Array, upper: Codes, context: Any) -> Any:
        """The parameters of the networks, by name."""
        keys = jax.random.split(key, 3)
        params: dict[str, Any] = {}
        if self.given is not None:
            params["given"] = self.given.init(keys[0], upper)
        codes = jnp.zeros((self.grid.height, self.grid.width), jnp.int32)
        inputs = codes, self.features(params, upper), context
        params["vertical"] = self.vertical.init(keys[1], inputs)
        shape = jax.eval_shape(self.vertical.apply, params["vertical"], inputs)
        across = jnp.zeros(shape.shape, shape.dtype)
        params["horizontal"] = self.horizontal.init(keys[2], (codes, across))
        return params

    def features(self, params: Any, upper: Codes) -> Array | None:
        """What the upper grids say, [H, W, width]; None for the top grid."""
        return None if self.given is None else self.given.apply(params["given"], upper)

    def logits(self, params: Any, codes: Array, upper: Codes, context: Any) -> Array:
        """Logits [H, W, K] of all positions at once."""
        inputs = codes, self.features(params, upper), context
        across = self.vertical.apply(params["vertical"], inputs)
        return self.horizontal.apply(params["horizontal"], (codes, across))

    def dropping(self, key: Array) -> _Level:
        """The same networks with dropped units."""
        keys = jax.random.split(key)
        return self._replace(
            vertical=in_training(self.vertical, keys[0]),
            horizontal=in_training(self.horizontal, keys[1]),
        )

    def sample(self, params: Any, key: Array, upper: Codes, context: Any, temperature: Any) -> Any:
        """Codes [H, W]: the vertical stack runs once a row, the horizontal one once a position."""
        height, width, _ = self.grid
        given = self.features(params, upper)

        def draw_row(codes: Array, r: Array) -> tuple[Array, None]:
            across = self.vertical.apply(params["vertical"], (codes, given, context))
            across = lax.dynamic_slice_in_dim(across, r, 1, 1)

            def draw(row: Array, c: Array) -> tuple[Array, None]:
                logits = self.horizontal.apply(params["horizontal"], (row, across))[0, c]
                code = drawn(jax.random.fold_in(key, r * width + c), logits, temperature)
                return row.at[0, c].set(code), None

            row, _ = lax.scan(draw, jnp.zeros((1, width), jnp.int32), jnp.arange(width))
            return lax.dynamic_update_slice_in_dim(codes, row, r, 0), None

        empty = jnp.zeros((height, width), jnp.int32)
        return lax.scan(draw_row, empty, jnp.arange(height))[0]


def gated_pixelcnn(
    grids: Sequence[Grid],
    width: int = 64,
    layers: int = 8,
    reach: int = 2,
    dropout: float = 0.0,
    context_size: int = 0,
    precision: str = "float32",
) -> Autoregressive:
    """p(c_t | c_<t) by a gated PixelCNN for each grid, conditioned on the grids above it.

    Args:
      grids: the grids of codes, from the top one on.
      width: channels of each stack.
      layers: gated layers of each stack.
      reach: rows above a position, and columns at each side, that a layer sees.
      dropout: share of units that training drops.
      context_size: size of the vector that the law is conditioned on; 0 is none.
      precision: a member of ``PRECISIONS``.
    """
    grids, shape = tuple(grids), _Layers(width, layers, reach, dropout)
    made = lambda module: with_precision(from_linen(module), precision)
    levels = [
        _Level(
            grid,
            made(_Given(grids[:i], grid, width)) if i else None,
            made(_Vertical(grid, shape)),
            made(_Horizontal(grid, shape)),
        )
        for i, grid in enumerate(grids)
    ]

    def init(key: Array) -> Any:
        codes = tuple(jnp.zeros((g.height, g.width), jnp.int32) for g in grids)
        given = jnp.zeros(context_size) if context_size else None
        keys = jax.random.split(key, len(levels))
        return [level.init(keys[i], codes[:i], given) for i, level in enumerate(levels)]

    def logits(params: Any, codes: Codes, context: Any, key: Any = None) -> tuple[Array, ...]:
        live = levels
        if key is not None:
            live = [level.dropping(jax.random.fold_in(key, i)) for i, level in enumerate(levels)]
        return tuple(
            level.logits(params[i], codes[i], codes[:i], context) for i, level in enumerate(live)
        )

    def sample(params: Any, key: Array, context: Any, temperature: Any) -> Codes:
        codes: Codes = ()
        for i, level in enumerate(levels):
            each = jax.random.fold_in(key, i)
            codes += (level.sample(params[i], each, codes, context, temperature),)
        return codes

    return Autoregressive(grids, init, logits, sample)
