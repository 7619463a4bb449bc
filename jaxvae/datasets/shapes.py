"""Squares, ellipses and hearts like dSprites, rendered when they are used.

There are 737,280 binary images of 64x64 pixels, one for every combination of five factors (Matthey
et al. 2017, github.com/deepmind/dsprites-dataset):

* ``shape``: square, ellipse, heart;
* ``scale``: 0.5, 0.6, ..., 1;
* ``rotation``: 2 pi i / 40, counter-clockwise. In dSprites the last value, 2 pi, repeats the first;
* ``x``, ``y``: the centre is (16 + x, 16 + y) pixels from the left and from the top, x and y from 0
  to 31.

At rotation 0 the square stands on a side, the ellipse's long axis is horizontal and the heart's tip
points down. As in dSprites, the square is the same after a quarter of a turn and the ellipse after
a half. Only a heart tells its rotation. Shapes of one scale have one area, (17.6 scale)^2 square
pixels, and the centre is their centroid. The sizes differ from dSprites, so no image is the same.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.datasets.splits import Split

Array = jax.Array
NAMES = ("shape", "scale", "rotation", "x", "y")
SIZES = (3, 6, 40, 32, 32)  # values of each factor
SHAPES = ("square", "ellipse", "heart")
CANVAS = 64
SIDE = 17.6  # of the square at scale 1, in pixels
FIRST = 16  # centre at x = 0, and at y = 0
HELD_OUT = 10_000  # images of the test split
CHUNK = 1024  # images that are rendered at once where pixels are held


def render(factors: Array) -> Array:
    """The image [64, 64, 1] uint8 of five factors: 1 inside the shape and 0 outside.

    A pixel is inside if its centre is. Factors are integers from 0, in the order of NAMES; there is
    no check that they are in range.
    """
    if factors.shape != (len(SIZES),):
        raise ValueError(
            f"render takes the {len(SIZES)} factors of one image, {', '.join(NAMES)}; "
            f"they had shape {factors.shape}. Use jax.vmap for several."
        )
    shape, scale, rotation, x, y = factors.astype(jnp.int32)
    angle = rotation * (2 * math.pi / SIZES[2])
    centre = jnp.arange(CANVAS) + 0.5
    right = (centre - FIRST - x)[None, :] / (0.5 + 0.1 * scale)  # [1, W], of the shape at scale 1
    up = (FIRST + y - centre)[:, None] / (0.5 + 0.1 * scale)  # [H, 1]
    u = jnp.cos(angle) * right + jnp.sin(angle) * up  # [H, W], along the shape's own axes
    v = jnp.cos(angle) * up - jnp.sin(angle) * right
    inside = jnp.stack([_square(u, v), _ellipse(u, v), _heart(u, v)])
    return inside[shape].astype(jnp.uint8)[..., None]


def attributes(factors: Array) -> Array:
    """Five factors as eight numbers [8].

    The shape is one of three, scale, x and y lie in [0, 1], and the rotation's angle a is
    (cos a, sin a).
    """
    shape, scale, rotation, x, y = factors.astype(jnp.int32)
    angle = rotation * (2 * math.pi / SIZES[2])
    rest = [
        scale / (SIZES[1] - 1),
        jnp.cos(angle),
        jnp.sin(angle),
        x / (SIZES[3] - 1),
        y / (SIZES[4] - 1),
    ]
    return jnp.concatenate([jax.nn.one_hot(shape, SIZES[0]), jnp.stack(rest)])


def _square(u: Array, v: Array) -> Array:
    return jnp.maximum(jnp.abs(u), jnp.abs(v)) <= SIDE / 2


def _ellipse(u: Array, v: Array) -> Array:
    """Twice as long as wide: the half-axes a and a / 2 have pi a^2 / 2 = SIDE^2."""
    return u**2 + (2 * v) ** 2 <= 2 * SIDE**2 / math.pi


def _heart(u: Array, v: Array) -> Array:
    """A square of side s on its tip with half-discs on its two upper sides.

    Its area is s^2 (1 + pi / 4) = SIDE^2. Seen from the tip along the sides, the square is
    [0, s]^2 and the discs of radius s / 2 are at (s / 2, s) and (s, s / 2). The half-discs'
    centroids are 2 s / (3 pi) beyond the sides that they stand on.
    """
    s = SIDE / math.sqrt(1 + math.pi / 4)
    centroid = (
        s * (1 / 2 + math.pi / 8 * (1 / 2 + 1 + 2 / (3 * math.pi))) / (1 + math.pi / 4)
    )  # along either side
    p, q = (v + u) / math.sqrt(2) + centroid, (v - u) / math.sqrt(2) + centroid
    square = (jnp.minimum(p, q) >= 0) & (jnp.maximum(p, q) <= s)
    disc = lambda p, q: (p - s / 2) ** 2 + (q - s) ** 2 <= (s / 2) ** 2
    return square | disc(p, q) | disc(q, p)


def factors_of(index: Any) -> Array:
    """The factors [..., 5] of the images of some indices, as integers from 0.

    The last factor changes fastest.
    """
    _check(index, math.prod(SIZES), "an index")
    return jnp.stack(jnp.unravel_index(jnp.asarray(index), SIZES), -1).astype(jnp.int32)


def index_of(factors: Any) -> Array:
    """The indices [...] of the images of some factors [..., 5]."""
    factors = jnp.asarray(factors)
    if factors.shape[-1:] != (len(SIZES),):
        raise ValueError(
            f"factors have {len(SIZES)} values, {', '.join(NAMES)}; "
            f"these have shape {factors.shape}"
        )
    _check(factors, np.array(SIZES), f"the factors {', '.join(NAMES)}")
    strides = np.cumprod((1, *SIZES[:0:-1]))[::-1]
    return (factors.astype(jnp.int32) * strides.astype(np.int32)).sum(-1)


def _check(values: Any, ends: Any, what: str) -> None:
    """Raises ValueError for values out of range, where they are known."""
    if not isinstance(values, jax.core.Tracer) and not np.all(
        (np.asarray(values) >= 0) & (np.asarray(values) < ends)
    ):
        raise ValueError(f"{what} must be at least 0 and below {ends}; it was {np.asarray(values)}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Images that are kept as their factors, and rendered when their pixels are used.

    A factor is one byte. They look like an array ``[N, 64, 64, 1]`` of uint8. ``images[rows]`` are
    the images of some rows, still as factors. ``astype`` and NumPy's ``asarray`` render. As a
    pytree they are their factors. A training holds these on its devices, and
    ``datasets.preprocessing`` renders each example inside the step.
    """

    factors: Any  # [..., 5] integers

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.factors.shape[:-1], CANVAS, CANVAS, 1)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.factors)

    def __getitem__(self, rows: Any) -> Images:
        return Images(self.factors[rows])

    def astype(self, dtype: Any) -> Array:
        """The pixels, rendered."""
        of_all = render
        for _ in self.factors.shape[:-1]:
            of_all = jax.vmap(of_all)
        return of_all(self.factors).astype(dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("images are rendered anew: they cannot be had without a copy")
        flat = np.reshape(self.factors, (-1, len(SIZES)))
        pixels = np.empty((len(flat), CANVAS, CANVAS, 1), np.uint8)
        with (
            jax.ensure_compile_time_eval()
        ):  # also where a stream is read while a function is traced
            for start in range(0, len(flat), CHUNK):
                pixels[start : start + CHUNK] = _rendered(flat[start : start + CHUNK])
        return pixels.reshape(self.shape).astype(dtype or np.uint8, copy=False)

    def max(self) -> int:
        """The largest pixel: no shape is empty."""
        return 1


_rendered = jax.jit(jax.vmap(render))


def images() -> Images:
    """All images in order: image i has the factors ``factors_of(i)``."""
    grid = np.indices(SIZES, np.uint8)  # [5, *SIZES]
    return Images(np.ascontiguousarray(grid.reshape(len(SIZES), -1).T))


def splits() -> dict[str, Split]:
    """Training and test splits, both in the order of a fixed permutation.

    So any part of one is a random choice. The test split has 10,000 images. The label is the shape;
    all factors are ``split.x.factors [N, 5]``.
    """
    everything: Any = images()
    order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(everything))
    whole = Split(everything, everything.factors[:, 0].astype(np.int32))
    return {"train": whole.take(order[HELD_OUT:]), "test": whole.take(order[:HELD_OUT])}
