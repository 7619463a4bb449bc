"""Convolutions that are matrix products on a CPU, where XLA's own are many times slower.

``conv_general_dilated`` and ``conv_transpose`` take and return what the functions of ``jax.lax``
do, and are batched, differentiated and transposed by its rules. They end in a primitive that
differs in what is compiled. For a CPU wide layers are compiled by minimal filtering (``winograd``),
and others as products of patches, shifts or taps. Elsewhere XLA's own convolutions are used, with
one gradient stated in another way, because GPUs have no kernel for it as JAX states it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxvae.kernels import lowering, winograd
from jaxvae.kernels.winograd import window

Array = jax.Array
XLA = lax.conv_general_dilated_p
CACHE_BYTES = 2**22  # of a product's operands or result, for those that are cut


def conv_general_dilated(lhs: Array, rhs: Array, *args: Any, **settings: Any) -> Array:
    """``jax.lax.conv_general_dilated``."""
    return through(lambda lhs, rhs: lax.conv_general_dilated(lhs, rhs, *args, **settings))(lhs, rhs)


def conv_transpose(lhs: Array, rhs: Array, *args: Any, **settings: Any) -> Array:
    """``jax.lax.conv_transpose``."""
    return through(lambda lhs, rhs: lax.conv_transpose(lhs, rhs, *args, **settings))(lhs, rhs)


def _result(lhs: Array, rhs: Array, **params: Any) -> Any:
    """Shape and type."""
    return jax.eval_shape(functools.partial(XLA.bind, **params), lhs, rhs)


def _elsewhere(lhs: Array, rhs: Array, **params: Any) -> Array:
    """XLA's own convolution, with the gradient in a transposed layer's kernel rewritten.

    That gradient is the sum over i of lhs[i] rhs[d i + low - t], which XLA takes for a layer on an
    image with holes. With lhs and rhs exchanged it is the gradient in the kernel of the layer that
    is transposed, with the taps t from last to first, and XLA has a kernel for it.
    """
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    holes, low = params["lhs_dilation"], [low for low, _ in params["padding"]]
    plain = max(*params["window_strides"], *params["rhs_dilation"], 1) == 1
    grouped = params["feature_group_count"] * params["batch_group_count"] > 1
    if not (lhs_spec[1] < lhs_spec[0] and plain and max(holes, default=1) > 1) or grouped:
        return XLA.bind(lhs, rhs, **params)
    size = lambda array, spec: [array.shape[i] for i in spec[2:]]
    taps = size(_result(lhs, rhs, **params), out_spec)
    sizes = zip(size(lhs, lhs_spec), size(rhs, rhs_spec), taps, low, holes, strict=True)
    padding = [(t - 1 - a, d * (m - 1) - n + 1 + a) for m, n, t, a, d in sizes]
    numbers = lax.ConvDimensionNumbers(
        rhs_spec, lhs_spec, (out_spec[1], out_spec[0], *out_spec[2:])
    )
    changed = {"padding": tuple(padding), "lhs_dilation": (1,) * len(taps), "rhs_dilation": holes}
    return lax.rev(
        XLA.bind(rhs, lhs, **params | changed | {"dimension_numbers": numbers}), out_spec[2:]
    )


class _Geometry(NamedTuple):
    """Result p is the sum over taps t of lhs[(s p + e t - low) / d] rhs[t].

    The sum is over the t whose index is a whole number in the image. Each field is a sequence over
    the spatial dimensions.
    """

    strides: Sequence[int]  # s
    spread: Sequence[int]  # e
    holes: Sequence[int]  # d
    low: Sequence[int]
    places: Sequence[int]  # of the result


def _for_cpu(lhs: Array, rhs: Array, **params: Any) -> Array:
    """Layers and their gradients as matrix products, or as a convolution that is fast in XLA."""
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    out = _result(lhs, rhs, **params)
    geometry = _Geometry(
        params["window_strides"],
        params["rhs_dilation"],
        params["lhs_dilation"],
        [low for low, _ in params["padding"]],
        [out.shape[i] for i in out_spec[2:]],
    )
    dense = max(*geometry.strides, *geometry.spread, 1) == 1
    grouped = params["feature_group_count"] * params["batch_group_count"] > 1
    transposed = max(geometry.holes, default=1) > 1
    if (
        grouped
        or (transposed and not dense)
        or 0 in (*lhs.shape, *rhs.shape, *out.shape)
        or not lhs_spec[2:]
    ):
        return XLA.bind(lhs, rhs, **params)
    # [N, H, C] with several H, and [T, C, O]; in the gradient of a kernel C are the examples, and
    # come first. Flax has features last in kernels, JAX exchanges them with channels for the
    # gradient in an image.
    x = lax.transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1]))
    kernel = lax.transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0]))
    of_kernel, of_image = lhs_spec[1] < lhs_spec[0], rhs_spec[0] < rhs_spec[1]
    # The gradient in a layer's kernel transforms the result's gradient too, if that is not wider.
    layer = functools.partial(_layer, shared=of_image and x.shape[-1] <= kernel.shape[-1])
    makers = (
        (layer, _gradient_of_layer)
        if not transposed
        else (_transposed_layer, _gradient_of_transposed_layer)
    )
    y = makers[of_kernel](
        x,
        kernel,
        geometry,
        {name: params[name] for name in ("precision", "preferred_element_type")},
    )
    order = (out_spec[0], *out_spec[2:], out_spec[1])  # where the dimensions of y lie in the result
    return lax.transpose(y, sorted(range(y.ndim), key=order.__getitem__)).astype(out.dtype)


def _layer(
    x: Array, kernel: Array, geometry: _Geometry, how: dict[str, Any], *, shared: bool
) -> Array:
    """A layer: XLA's own convolution, or patches [N, P, T C] times [T C, O].

    XLA is fast at layers, except for few channels or places. It does not get negative padding
    either, for which its results were seen to be wrong.
    """
    strides, spread, _, low, places = geometry
    n, taps = len(places), kernel.shape[:-2]
    if max(spread) == 1 and winograd.fits(x, kernel.shape[-1], taps, strides, places):
        return winograd.layer(x, kernel, strides, low, places, how, shared)
    high = [
        s * (p - 1) + e * (t - 1) + 1 - h - a
        for s, p, e, t, h, a in zip(strides, places, spread, taps, x.shape[1:-1], low, strict=True)
    ]
    if x.shape[-1] >= 16 and math.prod(places) >= 16 and min(*low, *high) >= 0:
        last = (0, n + 1, *range(1, n + 1))
        numbers = lax.ConvDimensionNumbers(last, (n + 1, n, *range(n)), last)
        pads = list(zip(low, high, strict=True))
        return lax.conv_general_dilated(
            x, kernel, strides, pads, rhs_dilation=spread, dimension_numbers=numbers, **how
        )
    starts = itertools.product(
        *([e * t - a for t in range(m)] for m, e, a in zip(taps, spread, low, strict=True))
    )
    patches = lax.concatenate([window(x, start, strides, places) for start in starts], n + 1)
    return lax.dot_general(
        patches, kernel.reshape(-1, kernel.shape[-1]), (((n + 1,), (0,)), ((), ())), **how
    )


def _gradient_of_layer(x: Array, kernel: Array, geometry: _Geometry, how: dict[str, Any]) -> Array:
    """The gradient in a layer's kernel, from the input ``x`` and the output's gradient.

    Both hold the examples in the place of C. Without strides the narrower of them counts as the
    image, which is faster. If they are equally wide the second does, and minimal filtering then
    transforms it once for both gradients.
    """
    if max(*geometry.strides, *geometry.spread) == 1 and kernel.shape[-1] <= len(x):
        return _gradient_of_transposed_layer(x, kernel, geometry, how)
    y = _correlation(jnp.swapaxes(x, 0, -1), jnp.moveaxis(kernel, -2, 0), geometry, how)
    return jnp.moveaxis(y, -2, 0)


def _transposed_layer(x: Array, kernel: Array, geometry: _Geometry, how: dict[str, Any]) -> Array:
    """A transposed layer, in one of two ways.

    A wide one is a layer with a feature for each place between the inputs, [N, H, d O], by minimal
    filtering. In others each input is multiplied by each tap, [N, H, T O], and the products are
    added where they overlap. That is done for a few examples at a time, so the products stay in
    cache and XLA does not add them anew for each use of the sum.
    """
    _, _, holes, low, places = geometry
    n, taps, size = len(places), kernel.shape[:-2], x.shape[1:-1]
    blocks = [-(-t // d) for t, d in zip(taps, holes, strict=True)]
    counts = [h + b - 1 for h, b in zip(size, blocks, strict=True)]
    # It has a few places more than there are inputs, which is too many where there are few.
    as_layer = min(size) >= 8 and winograd.fits(x, kernel.shape[-1], blocks, [1] * n, counts)
    products = (
        math.prod(size)
        * math.prod(b * d for b, d in zip(blocks, holes, strict=True))
        * kernel.shape[-1]
    )
    pieces = 1 if as_layer else _pieces(len(x), len(x) * products * x.dtype.itemsize)
    if pieces > 1:
        of_some = lambda own: _transposed_layer(own, kernel, geometry, how)
        return lax.map(of_some, x.reshape(pieces, -1, *x.shape[1:])).reshape(len(x), *places, -1)
    fill = [(0, b * d - t, 0) for b, d, t in zip(blocks, holes, taps, strict=True)]
    kernel = lax.pad(
        lax.rev(kernel, range(n)), jnp.zeros((), kernel.dtype), [*fill, (0, 0, 0), (0, 0, 0)]
    )
    pairs = [count for pair in zip(blocks, holes, strict=True) for count in pair]
    kernel = kernel.reshape(*pairs, *kernel.shape[n:])  # [(block, d), C, O]
    y: Any = 0
    if as_layer:
        flat = kernel.transpose(*range(0, 2 * n, 2), 2 * n, *range(1, 2 * n, 2), 2 * n + 1)
        flat = lax.rev(flat.reshape(*blocks, x.shape[-1], -1), range(n))
        y = winograd.layer(x, flat, [1] * n, [b - 1 for b in blocks], counts, how).reshape(
            len(x), *counts, *holes, -1
        )
    else:
        flat = jnp.moveaxis(kernel, -2, 0).reshape(x.shape[-1], -1)
        z = lax.dot_general(x, flat, (((n + 1,), (0,)), ((), ())), **how).reshape(
            *x.shape[:-1], *pairs, -1
        )
        for block in itertools.product(*map(range, blocks)):
            part = z[
                (..., *(i for b in block for i in (b, slice(None))), slice(None))
            ]  # [N, H, d, O]
            shift = [(b, m - 1 - b, 0) for b, m in zip(block, blocks, strict=True)]
            y += lax.pad(part, jnp.zeros((), z.dtype), [(0, 0, 0), *shift, *[(0, 0, 0)] * (n + 1)])
    y = y.transpose(0, *(axis for i in range(1, n + 1) for axis in (i, i + n)), 2 * n + 1)
    y = y.reshape(len(x), *(d * c for d, c in zip(holes, counts, strict=True)), -1)
    return window(y, [t - 1 - a for t, a in zip(taps, low, strict=True)], [1] * n, places)


def _gradient_of_transposed_layer(
    x: Array, kernel: Array, geometry: _Geometry, how: dict[str, Any]
) -> Array:
    """The gradient of a layer with input and output exchanged and the taps from last to first."""
    low = [m - 1 - a for m, a in zip(geometry.places, geometry.low, strict=True)]
    turned = geometry._replace(spread=geometry.holes, low=low)
    y = _correlation(jnp.moveaxis(kernel, -2, 0), jnp.swapaxes(x, 0, -1), turned, how)
    return jnp.moveaxis(lax.rev(y, range(len(low))), -1, 0)


def _correlation(image: Array, result: Array, geometry: _Geometry, how: dict[str, Any]) -> Array:
    """The sum over examples and places p of image[s t + e p - low] result[p] for every tap t.

    The result is [T, C, O]. Wide images take a product for each tap. Strided images of few channels
    take one for each shift of the places within a stride. Others take one product, for a few
    examples at a time so that all stays in cache.
    """
    spacing, strides, _, low, taps = geometry
    if max(spacing) == 1 and winograd.fits(
        image, result.shape[-1], taps, strides, result.shape[1:-1]
    ):
        return winograd.gradient_of_kernel(image, result, strides, low, taps, how)
    if min(image.shape[-1], result.shape[-1]) >= 64 or spacing[-1] != 1:
        counts = result.shape[1:-1]
        size = [
            e * (m - 1) + s * (p - 1) + 1
            for e, m, s, p in zip(spacing, taps, strides, counts, strict=True)
        ]
        image = window(image, [-a for a in low], [1] * len(taps), size)
        starts = itertools.product(
            *([e * t for t in range(m)] for m, e in zip(taps, spacing, strict=True))
        )
        shared = tuple(range(result.ndim - 1))
        product = lambda part: lax.dot_general(result, part, ((shared, shared), ((), ())), **how)
        y = jnp.stack([product(window(image, start, strides, counts)) for start in starts], 1)
        # After the stacking, because XLA would fold the transposition of a product into it, and
        # turn it around again.
        return jnp.moveaxis(y, 0, -1).reshape(*taps, image.shape[-1], -1)
    if max(spacing) == 1 and min(strides) > 1 and image.shape[-1] < 16:
        return _strided_correlation(image, result, geometry, how)
    part = lambda image, result: _thin_correlation(image, result, geometry, how)
    operands = image.size * math.prod(taps[:-1]) // math.prod(strides[:-1]) + result.size * -(
        -taps[-1] // strides[-1]
    )
    pieces = _pieces(len(image), operands * image.dtype.itemsize)
    if pieces == 1:
        return part(image, result)
    cut = [a.reshape(pieces, -1, *a.shape[1:]) for a in (image, result)]
    shape = jax.eval_shape(part, *(a[0] for a in cut))
    return lax.scan(
        lambda total, own: (total + part(*own), None), jnp.zeros(shape.shape, shape.dtype), cut
    )[0]


def _strided_correlation(
    image: Array, result: Array, geometry: _Geometry, how: dict[str, Any]
) -> Array:
    """``_correlation`` of few channels: a product for each shift of the strides.

    The places within a stride become channels once.
    """
    _, strides, _, low, taps = geometry
    n, counts = len(taps), result.shape[1:-1]
    blocks = [-(-t // s) for t, s in zip(taps, strides, strict=True)]
    size = [p + b - 1 for p, b in zip(counts, blocks, strict=True)]
    deep = lax.optimization_barrier(winograd.deep(image, strides, low, size))
    starts = itertools.product(*map(range, blocks))
    y = jnp.stack(
        [
            winograd.sum_over_rows(window(deep, start, [1] * n, counts), result, how)
            for start in starts
        ]
    )
    y = winograd.beside(y.reshape(*blocks, *strides, image.shape[-1], -1), n)
    return lax.slice(y, [0] * (n + 2), [*taps, *y.shape[-2:]])


def _thin_correlation(
    image: Array, result: Array, geometry: _Geometry, how: dict[str, Any]
) -> Array:
    """``_correlation`` as one product, [places, T' s C] times [places, T'' O], T' T'' s = T.

    The taps of the last dimension are shifts of the result, and the taps of the others are windows
    of the image. Neither operand is much larger than the array that it is made of.
    """
    spacing, strides, _, low, taps = geometry
    n, places = len(taps), result.shape[1:-1]
    stride, shifts = strides[-1], -(-taps[-1] // strides[-1])
    wide = places[-1] + shifts - 1
    # Padded once and then cut: XLA is slow to put windows together that are padded each for itself.
    size = [
        e * (m - 1) + s * (p - 1) + 1
        for e, m, s, p in zip(spacing, taps, strides, places, strict=True)
    ]
    framed = window(image, [-a for a in low], [1] * n, (*size[:-1], stride * wide))
    starts = itertools.product(
        *([e * t for t in range(m)] for m, e in zip(taps[:-1], spacing, strict=False))
    )
    windows = [
        window(framed, (*start, 0), (*strides[:-1], 1), (*places[:-1], stride * wide))
        for start in starts
    ]
    left = lax.concatenate(
        [w.reshape(*w.shape[:n], wide, -1) for w in windows], n + 1
    )  # s columns side by side
    rows = [0] * (n - 1)
    framed = window(result, (*rows, 1 - shifts), [1] * n, (*places[:-1], wide + shifts - 1))
    moved = [
        window(framed, (*rows, shifts - 1 - q), [1] * n, (*places[:-1], wide))
        for q in range(shifts)
    ]
    left, right = lax.optimization_barrier((left, lax.concatenate(moved, n + 1)))
    shared = tuple(range(n + 1))
    y = lax.dot_general(left, right, ((shared, shared), ((), ())), **how)
    y = jnp.moveaxis(y.reshape(*taps[:-1], stride, image.shape[-1], shifts, -1), -2, n - 1)
    y = y.reshape(*taps[:-1], stride * shifts, *y.shape[-2:])
    return lax.slice_in_dim(y, 0, taps[-1], axis=n - 1)


def _pieces(examples: int, size: int) -> int:
    """How many equal pieces of the examples there are, so that each piece fits into cache.

    ``size`` is the number of bytes of all. If the number of examples has no suitable divisor there
    is one piece.
    """
    least = min(-(-size // CACHE_BYTES), examples)
    return next(
        (count for count in range(least, min(4 * least, examples) + 1) if examples % count == 0), 1
    )


convolution_p, through = lowering.like(XLA, _elsewhere, cpu=_for_cpu)
