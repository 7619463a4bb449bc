"""Convolutions by minimal filtering, which needs fewer products than there are taps.

F(m, r) gives m neighbouring results of a filter w of r taps. It takes m + r - 1 products in place
of m r:

    y = A [(G w) * (B x)],  y [m], w [r], x [m + r - 1]

(Winograd 1980; Lavin & Gray 2016, arXiv:1509.09308, sec. 4.1). The filters are nested over the
spatial dimensions, and products of matrices over channels replace *. With m = 2 a 3x3 layer then
takes 16 products in place of 36, and a 2x2 layer takes 9 in place of 16. With m = 4 along the first
dimension only, a 3x3 layer takes 18 in place of 36. A layer with strides s is a layer of stride 1
with s times as many channels, and a transposed layer is one with s times as many features. With
m = 2 the entries are 0, 1, -1 and 1/2, and float32 loses less than a digit. With m = 4 it loses
less than two digits. Other types gain nothing.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Matrix = Sequence[Sequence[float]]
# An array for each index into the dimensions that are transformed.
Parts = dict[tuple[int, ...], Array]
FEWEST = 32  # channels of input and output for which it pays
NARROW = 64  # channels up to which 3x3 layers are filtered along their first dimension alone
# Multiplications of a layer. Smaller layers are not worth the time that compilation takes.
LEAST = 2**25


class _Filter(NamedTuple):
    """The transforms of F(m, r)."""

    result: Matrix  # A [m, m + r - 1]
    kernel: Matrix  # G [m + r - 1, r]
    image: Matrix  # B [m + r - 1, m + r - 1]


F22 = _Filter(((1, 1, 0), (0, 1, 1)), ((1, 0), (1, 1), (0, 1)), ((1, -1, 0), (0, 1, 0), (0, -1, 1)))
F23 = _Filter(
    ((1, 1, 1, 0), (0, 1, -1, -1)),
    ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
)
# It interpolates at 0, 1, -1, 2, -1/2 and infinity. With -2 in place of -1/2 it would lose more.
F43 = _Filter(
    (
        (1, 1, 1, 1, 1, 0),
        (0, 1, -1, 2, -1 / 2, 0),
        (0, 1, 1, 4, 1 / 4, 0),
        (0, 1, -1, 8, -1 / 8, 1),
    ),
    (
        (1, 0, 0),
        (-1 / 3, -1 / 3, -1 / 3),
        (1 / 3, -1 / 3, 1 / 3),
        (1 / 15, 2 / 15, 4 / 15),
        (-16 / 15, 8 / 15, -4 / 15),
        (0, 0, 1),
    ),
    (
        (1, 3 / 2, -2, -3 / 2, 1, 0),
        (0, -1, -5 / 2, -1 / 2, 1, 0),
        (0, 1, 1 / 2, -5 / 2, 1, 0),
        (0, -1 / 2, -1, 1 / 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 1, 3 / 2, -2, -3 / 2, 1),
    ),
)
SMALL = {2: F22, 3: F23}  # by the number of taps
PLAIN = _Filter(((1,),), ((1,),), ((1,),))  # of a dimension that is not filtered


def fits(
    x: Array, features: int, taps: Sequence[int], strides: Sequence[int], places: Sequence[int]
) -> bool:
    """Whether minimal filtering makes a layer faster.

    Args:
      x: the layer's input, [N, H, C].
      features: channels of the output.
      taps: size of the kernel along each spatial dimension.
      strides: stride along each spatial dimension.
      places: size of the output along each spatial dimension.
    """
    return (
        all(-(-t // s) in SMALL for t, s in zip(taps, strides, strict=True))
        and min(x.shape[-1] * math.prod(strides), features) >= FEWEST
        and min(places) > 1
        and len(x) * math.prod(places) * math.prod(taps) * x.shape[-1] * features >= LEAST
        and x.dtype in (jnp.float32, jnp.float64)
    )


def layer(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    low: Sequence[int],
    places: Sequence[int],
    how: dict[str, Any],
    shared: bool = False,
) -> Array:
    """y[p] = sum over taps t of x[s p + t - low] kernel[t].

    The shapes are [N, H, C], [T, C, O] -> [N, P, O]. If only the first dimension is filtered, one
    convolution of XLA applies the taps of the last dimension, over all rows laid end to end.

    Args:
      x: the input, [N, H, C].
      kernel: [T, C, O].
      strides: s, the stride along each spatial dimension.
      low: the padding before each spatial dimension.
      places: P, the size of the output along each spatial dimension.
      how: keyword arguments of XLA's products, such as their precision.
      shared: whether a product over sliding windows applies the last dimension's taps, because the
        kernel's gradient uses the same windows.
    """
    n, blocks = len(places), _blocks(kernel.shape[:-2], strides)
    kernel = window(
        kernel[None],
        [0] * n,
        [1] * n,
        [b * s for b, s in zip(blocks, strides, strict=True)],
        trailing=2,
    )
    kernel = apart(kernel, strides, trailing=2)[0].reshape(*blocks, -1, kernel.shape[-1])
    filters = _filters(blocks, places, *kernel.shape[-2:])
    image = _points(x, strides, low, places, blocks, filters)
    kernel = kernel.reshape(*_taps(filters), -1, *kernel.shape[-2:])
    of_taps = {tap: kernel[tap] for tap in itertools.product(*map(range, _taps(filters)))}
    kernels = _transformed([f.kernel for f in filters], of_taps)
    product = _product if shared or _left(blocks, filters) == 1 else _convolution
    products = {
        i: window(product(image[i], kernels[i], how), [0] * n, [1] * n, _tiles(places, filters))
        for i in image
    }
    results = _transformed([f.result for f in filters], products)
    return window(_together(results, _steps(filters)), [0] * n, [1] * n, places)


def _product(x: Array, kernel: Array, how: dict[str, Any]) -> Array:
    """The product over windows of the last dimension, [N, H, C], [T, C, O] -> [N, H, O]."""
    windows = _side_by_side(x, len(kernel))
    return lax.dot_general(
        windows, kernel.reshape(-1, kernel.shape[-1]), (((x.ndim - 1,), (0,)), ((), ())), **how
    )


def _convolution(x: Array, kernel: Array, how: dict[str, Any]) -> Array:
    """``_product`` as a convolution of one long row, which XLA shares among cores.

    The last T - 1 places of each row mix two rows.
    """
    numbers = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    row, pads = x.reshape(1, 1, -1, x.shape[-1]), ((0, 0), (0, len(kernel) - 1))
    y = lax.conv_general_dilated(row, kernel[None], (1, 1), pads, dimension_numbers=numbers, **how)
    return y.reshape(*x.shape[:-1], -1)


def gradient_of_kernel(
    image: Array,
    result: Array,
    strides: Sequence[int],
    low: Sequence[int],
    taps: Sequence[int],
    how: dict[str, Any],
) -> Array:
    """The sum over examples and places of image[s p + t - low] result[p] for every tap.

    It is [T, C, O].

    Args:
      image: the layer's input, [N, H, C].
      result: the gradient of the layer's output, [N, P, O].
      strides: s, the stride along each spatial dimension.
      low: the padding before each spatial dimension.
      taps: T, the size of the kernel along each spatial dimension.
      how: keyword arguments of XLA's products, such as their precision.
    """
    n, blocks, places = len(taps), _blocks(taps, strides), result.shape[1:-1]
    channels, features = image.shape[-1], result.shape[-1]
    filters = _filters(blocks, places, channels * math.prod(strides), features)
    points = _points(image, strides, low, places, blocks, filters)
    left = {i: _side_by_side(a, _left(blocks, filters)) for i, a in points.items()}
    # A frame around the result, so that XLA computes it once and not for each of its windows.
    steps, tiles = _steps(filters), _tiles(places, filters)
    frame = [int(m > 1) for m in steps]
    framed = window(
        result,
        [-f for f in frame],
        [1] * n,
        [m * t + 2 * f for m, t, f in zip(steps, tiles, frame, strict=True)],
    )
    starts = itertools.product(*map(range, steps))
    ends = {
        i: window(framed, [f + j for f, j in zip(frame, i, strict=True)], steps, tiles)
        for i in starts
    }
    right = _transformed([_turned(f.result) for f in filters], ends)
    # XLA is slow to pack the first operand, which is therefore the narrower one; the sums are
    # transposed after the stacking, because XLA would fold the transposition of a product into it.
    origin = (0,) * n
    exchanged = math.prod(left[origin].shape[:-1]) > features < left[origin].shape[-1]
    first, second = (right, left) if exchanged else (left, right)
    products = {i: sum_over_rows(first[i], second[i], how) for i in left}
    of_taps = _transformed([_turned(f.kernel) for f in filters], products)
    y = jnp.stack([of_taps[tap] for tap in itertools.product(*map(range, _taps(filters)))])
    y = (jnp.swapaxes(y, 1, 2) if exchanged else y).reshape(*blocks, *strides, channels, features)
    return lax.slice(beside(y, n), [0] * (n + 2), [*taps, channels, features])


def sum_over_rows(left: Array, right: Array, how: dict[str, Any]) -> Array:
    """The product summed over all rows, [N, H, C], [N, H, O] -> [C, O].

    XLA makes no copy when there is one dimension to sum over.
    """
    left, right = (a.reshape(-1, a.shape[-1]) for a in (left, right))
    return lax.dot_general(left, right, (((0,), (0,)), ((), ())), **how)


def window(
    x: Array, start: Sequence[int], strides: Sequence[int], counts: Sequence[int], trailing: int = 1
) -> Array:
    """x[:, start + stride * i, :] for i below count, with zeros outside of x.

    Args:
      x: [N, H, C].
      start: the first place along each spatial dimension; it may be negative.
      strides: the steps between places.
      counts: how many places are taken; the result is [N, counts, C].
      trailing: how many dimensions come after the spatial ones.
    """
    last = [a + s * (c - 1) for a, s, c in zip(start, strides, counts, strict=True)]
    size, rest = x.shape[1:-trailing], x.shape[-trailing:]
    pads = [(max(-a, 0), max(b + 1 - m, 0), 0) for a, b, m in zip(start, last, size, strict=True)]
    if pads != [(0, 0, 0)] * len(pads):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, *[(0, 0, 0)] * trailing])
    first = [a + low for a, (low, _, _) in zip(start, pads, strict=True)]
    end = [a + low + 1 for a, (low, _, _) in zip(last, pads, strict=True)]
    return lax.slice(
        x, [0, *first, *[0] * trailing], [len(x), *end, *rest], [1, *strides, *[1] * trailing]
    )


def _side_by_side(x: Array, taps: int) -> Array:
    """Windows of the last dimension as channels, [N, H, C] -> [N, H - T + 1, T C].

    They lie one after the other in memory. This gather takes half the time of a concatenation. Its
    indices are a constant, because XLA would compute other indices again for each window.
    """
    if taps == 1:
        return x
    *rows, size, channels = x.shape
    places = size - taps + 1
    starts = np.indices((math.prod(rows), places), np.int32).reshape(2, -1).T * np.array(
        [1, channels], np.int32
    )
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0, 1)
    )
    flat = x.reshape(-1, size * channels)
    y = lax.gather(
        flat, starts, numbers, (1, taps * channels), mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS
    )
    return y.reshape(*rows, places, -1)


def _blocks(taps: Sequence[int], strides: Sequence[int]) -> list[int]:
    return [-(-t // s) for t, s in zip(taps, strides, strict=True)]


def _filters(blocks: Sequence[int], places: Sequence[int], *widths: int) -> list[_Filter]:
    """One for each dimension of a layer from and to so many channels.

    A narrow 3x3 layer waits for what the transforms write and XLA packs, which is less with F(4, 3)
    along one dimension than with F(2, 3) along both.
    """
    if list(blocks) == [3, 3] and min(widths) <= NARROW and places[0] >= 8:
        return [F43, PLAIN]
    return [SMALL[b] for b in blocks]


def _steps(filters: Sequence[_Filter]) -> list[int]:
    """How many results a tile has."""
    return [len(f.result) for f in filters]


def _taps(filters: Sequence[_Filter]) -> list[int]:
    return [len(f.kernel[0]) for f in filters]


def _left(blocks: Sequence[int], filters: Sequence[_Filter]) -> int:
    """How many taps of the last dimension are left."""
    return blocks[-1] - len(filters[-1].kernel[0]) + 1


def _tiles(places: Sequence[int], filters: Sequence[_Filter]) -> list[int]:
    return [-(-p // m) for p, m in zip(places, _steps(filters), strict=True)]


def _turned(matrix: Matrix) -> Matrix:
    return list(zip(*matrix, strict=True))


def _transformed(matrices: Sequence[Matrix], parts: Parts) -> Parts:
    """Each dimension of the index times its matrix."""
    times = lambda c, a: a if c == 1 else -a if c == -1 else c * a
    for axis, matrix in enumerate(matrices):
        transformed: Parts = {}
        for before, after in dict.fromkeys((i[:axis], i[axis + 1 :]) for i in parts):
            for k, row in enumerate(matrix):
                terms = [times(c, parts[*before, j, *after]) for j, c in enumerate(row) if c]
                transformed[*before, k, *after] = functools.reduce(operator.add, terms)
        parts = transformed
    return parts


def _points(
    x: Array,
    strides: Sequence[int],
    low: Sequence[int],
    places: Sequence[int],
    blocks: Sequence[int],
    filters: Sequence[_Filter],
) -> Parts:
    """The transformed tiles of x at each point, [N, tiles, C].

    The places within a stride become channels. If T taps of the last dimension are left, it has
    T - 1 more places.
    """
    steps, tiles = _steps(filters), _tiles(places, filters)
    x = deep(x, strides, low, [m * t + b - 1 for m, t, b in zip(steps, tiles, blocks, strict=True)])
    counts = [*tiles[:-1], tiles[-1] + _left(blocks, filters) - 1]
    indices = itertools.product(*(range(len(f.image)) for f in filters))
    return _transformed(
        [f.image for f in filters], {i: window(x, i, steps, counts) for i in indices}
    )


def deep(x: Array, strides: Sequence[int], low: Sequence[int], size: Sequence[int]) -> Array:
    """x from -low on, with the places within a stride as channels.

    The shapes are [N, H, C] -> [N, size, s C].
    """
    framed = window(
        x, [-a for a in low], [1] * len(low), [s * m for s, m in zip(strides, size, strict=True)]
    )
    return apart(framed, strides).reshape(len(x), *size, -1)


def apart(x: Array, strides: Sequence[int], trailing: int = 1) -> Array:
    """[N, s H, C] -> [N, H, s, C]."""
    n = len(strides)
    pairs = (part for size, s in zip(x.shape[1:], strides, strict=False) for part in (size // s, s))
    x = x.reshape(len(x), *pairs, *x.shape[-trailing:])
    return x.transpose(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), *range(2 * n + 1, x.ndim))


def beside(y: Array, n: int) -> Array:
    """Taps in their order, [T, C, O], from [blocks, s, C, O].

    The input has them by block and then by place within a stride.
    """
    sizes = [b * s for b, s in zip(y.shape[:n], y.shape[n : 2 * n], strict=True)]
    y = y.transpose(*(axis for i in range(n) for axis in (i, n + i)), 2 * n, 2 * n + 1)
    return y.reshape(*sizes, *y.shape[-2:])


def _together(parts: Parts, strides: Sequence[int]) -> Array:
    """One array [N, s H, C] from the arrays [N, H, C] of the places within a stride.

    XLA is faster at one dimension after the other.
    """
    for axis in reversed(range(len(strides))):
        rows: dict[tuple[int, ...], list[Array]] = {}
        for i, part in parts.items():
            rows.setdefault(i[:axis], []).append(part)
        merged = lambda a, axis=axis: a.reshape(*a.shape[: axis + 1], -1, *a.shape[axis + 3 :])
        parts = {i: merged(jnp.stack(row, axis + 2)) for i, row in rows.items()}
    return parts[()]
