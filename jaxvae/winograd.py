"""Convolutions by minimal filtering, which needs fewer products than there are taps.

F(2, r) gives two neighbouring results of a filter w of r taps from r + 1 products in place of 2 r:

    y = A [(G w) * (B x)],  y [2], w [r], x [r + 1]

(Winograd 1980; Lavin & Gray 2016, arXiv:1509.09308, sec. 4.1). Nested over the spatial dimensions, with products of
matrices over channels in place of *, a 3x3 layer takes 16 of 36 and a 2x2 one 9 of 16. A layer with strides s is one
of stride 1 whose channels are s times as many, and a transposed one is one whose features are.
Entries are 0, 1, -1 and 1/2, and float32 loses less than a digit; of other types nothing is gained.
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
from jax import lax

Array = jax.Array
Matrix = Sequence[Sequence[float]]
Parts = dict[tuple[int, ...], Array]  # an array for each index into the dimensions that are transformed
FEWEST = 32  # channels of input and output for which it pays
LEAST = 2**25  # multiplications of a layer; below, it is not worth the time that its many kernels take to compile


class _Transforms(NamedTuple):
    """Of F(2, r)."""

    result: Matrix  # A [2, r + 1]
    kernel: Matrix  # G [r + 1, r]
    image: Matrix  # B [r + 1, r + 1]


TRANSFORMS = {
    2: _Transforms(((1, 1, 0), (0, 1, 1)), ((1, 0), (1, 1), (0, 1)), ((1, -1, 0), (0, 1, 0), (0, -1, 1))),
    3: _Transforms(
        ((1, 1, 1, 0), (0, 1, -1, -1)),
        ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
        ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    ),
}


def fits(x: Array, features: int, taps: Sequence[int], strides: Sequence[int], places: Sequence[int]) -> bool:
    """Whether a layer from ``x [N, H, C]`` with so many taps and strides to places and features is faster this way."""
    return (
        all(-(-t // s) in TRANSFORMS for t, s in zip(taps, strides, strict=True))
        and min(x.shape[-1] * math.prod(strides), features) >= FEWEST
        and min(places) > 1
        and len(x) * math.prod(places) * math.prod(taps) * x.shape[-1] * features >= LEAST
        and x.dtype in (jnp.float32, jnp.float64)
    )


def layer(
    x: Array, kernel: Array, strides: Sequence[int], low: Sequence[int], places: Sequence[int], how: dict[str, Any]
) -> Array:
    """y[p] = sum over taps t of x[s p + t - low] kernel[t]; [N, H, C], [T, C, O] -> [N, P, O]."""
    n, blocks = len(places), _blocks(kernel.shape[:-2], strides)
    kernel = window(kernel[None], [0] * n, [1] * n, [b * s for b, s in zip(blocks, strides, strict=True)], trailing=2)
    kernel = apart(kernel, strides, trailing=2)[0].reshape(*blocks, -1, kernel.shape[-1])
    image = _points(_deep(x, strides, low, _tiles(places), blocks), _tiles(places), blocks)
    of_taps = {tap: kernel[tap] for tap in itertools.product(*map(range, blocks))}
    filters = _transformed([TRANSFORMS[b].kernel for b in blocks], of_taps)
    products = {i: lax.dot_general(image[i], filters[i], (((n + 1,), (0,)), ((), ())), **how) for i in image}
    results = _transformed([TRANSFORMS[b].result for b in blocks], products)
    return window(_together(results, [2] * n), [0] * n, [1] * n, places)


def gradient_of_kernel(
    image: Array, result: Array, strides: Sequence[int], low: Sequence[int], taps: Sequence[int], how: dict[str, Any]
) -> Array:
    """For every tap the sum over examples and places of image[s p + t - low] result[p]; [T, C, O]."""
    n, blocks, tiles = len(taps), _blocks(taps, strides), _tiles(result.shape[1:-1])
    left = _points(_deep(image, strides, low, tiles, blocks), tiles, blocks)
    # A frame around it, so that XLA computes the gradient once and not for each of its windows.
    framed = window(result, [-1] * n, [1] * n, [2 * t + 2 for t in tiles])
    ends = {i: window(framed, [1 + j for j in i], [2] * n, tiles) for i in itertools.product(range(2), repeat=n)}
    right = _transformed([_turned(TRANSFORMS[b].result) for b in blocks], ends)
    rows = lambda a: a.reshape(-1, a.shape[-1])  # of one dimension to sum over XLA makes no copy
    products = {i: lax.dot_general(rows(left[i]), rows(right[i]), (((0,), (0,)), ((), ())), **how) for i in left}
    of_taps = _transformed([_turned(TRANSFORMS[b].kernel) for b in blocks], products)
    y = jnp.stack([of_taps[tap] for tap in itertools.product(*map(range, blocks))])
    y = beside(y.reshape(*blocks, *strides, image.shape[-1], -1), n)
    return lax.slice(y, [0] * (n + 2), [*taps, *y.shape[-2:]])


def window(x: Array, start: Sequence[int], strides: Sequence[int], counts: Sequence[int], trailing: int = 1) -> Array:
    """x[:, start + stride * i, :] for i below count, with zeros outside of x; [N, H, C] -> [N, count, C].

    ``trailing`` dimensions come after those that are cut.
    """
    last = [a + s * (c - 1) for a, s, c in zip(start, strides, counts, strict=True)]
    size, rest = x.shape[1:-trailing], x.shape[-trailing:]
    pads = [(max(-a, 0), max(b + 1 - m, 0), 0) for a, b, m in zip(start, last, size, strict=True)]
    if pads != [(0, 0, 0)] * len(pads):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, *[(0, 0, 0)] * trailing])
    first = [a + low for a, (low, _, _) in zip(start, pads, strict=True)]
    end = [a + low + 1 for a, (low, _, _) in zip(last, pads, strict=True)]
    return lax.slice(x, [0, *first, *[0] * trailing], [len(x), *end, *rest], [1, *strides, *[1] * trailing])


def _blocks(taps: Sequence[int], strides: Sequence[int]) -> list[int]:
    return [-(-t // s) for t, s in zip(taps, strides, strict=True)]


def _tiles(places: Sequence[int]) -> list[int]:
    return [-(-p // 2) for p in places]


def _turned(matrix: Matrix) -> Matrix:
    return list(zip(*matrix, strict=True))


def _transformed(matrices: Sequence[Matrix], parts: Parts) -> Parts:
    """Each dimension of the index times its matrix."""
    times = lambda c, a: a if c == 1 else -a if c == -1 else c * a
    for axis, matrix in enumerate(matrices):
        found: Parts = {}
        for before, after in dict.fromkeys((i[:axis], i[axis + 1 :]) for i in parts):
            for k, row in enumerate(matrix):
                terms = [times(c, parts[*before, j, *after]) for j, c in enumerate(row) if c]
                found[*before, k, *after] = functools.reduce(operator.add, terms)
        parts = found
    return parts


def _points(x: Array, tiles: Sequence[int], blocks: Sequence[int]) -> Parts:
    """The transformed tiles of ``x [N, 2 tiles + blocks - 1, C]``, at each point [N, tiles, C]."""
    n = len(tiles)
    indices = itertools.product(*(range(b + 1) for b in blocks))
    windows = {i: window(x, i, [2] * n, tiles) for i in indices}
    return _transformed([TRANSFORMS[b].image for b in blocks], windows)


def _deep(x: Array, strides: Sequence[int], low: Sequence[int], tiles: Sequence[int], blocks: Sequence[int]) -> Array:
    """What all tiles need of x, with the places within a stride as channels; [N, 2 tiles + blocks - 1, s C]."""
    size = [2 * t + b - 1 for t, b in zip(tiles, blocks, strict=True)]
    framed = window(x, [-a for a in low], [1] * len(low), [s * m for s, m in zip(strides, size, strict=True)])
    return apart(framed, strides).reshape(len(x), *size, -1)


def apart(x: Array, strides: Sequence[int], trailing: int = 1) -> Array:
    """[N, s H, C] -> [N, H, s, C]."""
    n = len(strides)
    pairs = (part for size, s in zip(x.shape[1:], strides, strict=False) for part in (size // s, s))
    x = x.reshape(len(x), *pairs, *x.shape[-trailing:])
    return x.transpose(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), *range(2 * n + 1, x.ndim))


def beside(y: Array, n: int) -> Array:
    """Taps by block and then by place within a stride, [blocks, s, C, O], in their order: [T, C, O]."""
    sizes = [b * s for b, s in zip(y.shape[:n], y.shape[n : 2 * n], strict=True)]
    y = y.transpose(*(axis for i in range(n) for axis in (i, n + i)), 2 * n, 2 * n + 1)
    return y.reshape(*sizes, *y.shape[-2:])


def _together(parts: Parts, strides: Sequence[int]) -> Array:
    """[N, H, C] for each place within a stride -> [N, s H, C]; XLA is faster at one dimension after the other."""
    for axis in reversed(range(len(strides))):
        rows: dict[tuple[int, ...], list[Array]] = {}
        for i, part in parts.items():
            rows.setdefault(i[:axis], []).append(part)
        merged = lambda a, axis=axis: a.reshape(*a.shape[: axis + 1], -1, *a.shape[axis + 3 :])
        parts = {i: merged(jnp.stack(row, axis + 2)) for i, row in rows.items()}
    return parts[()]
