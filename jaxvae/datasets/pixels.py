"""Pixel treatments: what a stored example becomes before a likelihood sees it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.datasets.shapes import Images
from jaxvae.datasets.splits import DataError, S, Split
from jaxvae.datasets.streams import Stream

Array = jax.Array


def _unit(pixels: Array, levels: int) -> Array:
    return (
        pixels.astype(jnp.float32) / max(levels - 1, 1)
        if jnp.issubdtype(pixels.dtype, jnp.integer)
        else pixels
    )


def _dynamic(key: Array, pixels: Array, levels: int) -> Array:
    return jax.random.bernoulli(key, _unit(pixels, levels)).astype(jnp.float32)


def _dequantize(key: Array, pixels: Array, levels: int) -> Array:
    u = (
        jax.random.bits(key, pixels.shape, jnp.uint16) / 2**16
    )  # coarse enough that 255 + u is exact in float32, < 256
    return (pixels.astype(jnp.float32) + u.astype(jnp.float32)) / levels


# name -> (key, pixels [H, W, C], levels) -> x; `static` sets are binarized once, when they are
# prepared.
PREPROCESSING: dict[str, Callable[[Array, Array, int], Array]] = {
    "dynamic": _dynamic,
    "static": lambda key, pixels, levels: pixels.astype(jnp.float32),
    "dequantize": _dequantize,
    "scale": lambda key, pixels, levels: _unit(pixels, levels),
    "counts": lambda key, pixels, levels: pixels.astype(jnp.float32),
    "none": lambda key, pixels, levels: pixels.astype(jnp.float32),
}


def _salt_and_pepper(key: Array, x: Array, level: float) -> Array:
    key_where, key_what = jax.random.split(key)
    what = jax.random.bernoulli(key_what, 0.5, x.shape).astype(x.dtype)
    return jnp.where(jax.random.bernoulli(key_where, level, x.shape), what, x)


# name -> (key, x, level) -> what a denoising model's encoder sees (Vincent et al. 2010, JMLR 11)
CORRUPTIONS: dict[str, Callable[[Array, Array, float], Array]] = {
    "gaussian": lambda key, x, level: x + level * jax.random.normal(key, x.shape),
    "masking": lambda key, x, level: jnp.where(jax.random.bernoulli(key, level, x.shape), 0.0, x),
    "salt_and_pepper": _salt_and_pepper,
}


def preprocessing(name: str, levels: int) -> Callable[[Array, Array], Array]:
    """The pixel treatment ``(key, pixels) -> x`` of one example.

    * ``dynamic``: Bernoulli(pixel / (levels - 1)), fresh each time the example is seen, from the
      example's own key.
    * ``static``: binary values drawn once for all, by ``prepared``.
    * ``dequantize``: (pixel + u) / levels with u ~ U[0, 1), fresh each time (Theis et al. 2016,
      arXiv:1511.01844).
    * ``scale``: pixel / (levels - 1), in [0, 1].
    * ``counts``: the integer values.
    * ``none``: real values as they are.
    """
    if name not in PREPROCESSING:
        raise DataError(f"no preprocessing {name!r}; there are {', '.join(PREPROCESSING)}")
    return lambda key, pixels: PREPROCESSING[name](key, pixels, levels)


def prepared(split: S, name: str, levels: int, seed: int = 0) -> S:
    """The split with what a treatment does once, before training, and a check that it can be used
    on these values.

    ``static`` binarization draws Bernoulli(pixel / (levels - 1)) with a generator keyed by ``seed``
    and the number of examples. Values that are no pixels are refused by the treatments that need
    pixels.

    A stream stays as it is: ``static`` is refused, and a thousand of its examples are checked. So
    do images that are rendered, which are binary, and ``static`` as they are.
    """
    if isinstance(split, Stream):
        if name == "static":
            raise DataError(
                "a stream cannot be binarized once: use pixels='dynamic', or hold the set in memory"
            )
        any_fits = split.dtype == np.uint8 and levels > 255
        for part in () if any_fits else split.glimpse():
            _once(part, name, levels, seed)
        return split
    if isinstance(split.images, Images):
        _once(Split(np.asarray(split.images[:1])), name, levels, seed)
        return split
    return _once(split, name, levels, seed)


def _once(split: Split, name: str, levels: int, seed: int) -> Split:
    images = split.images
    floating = np.issubdtype(images.dtype, np.floating)
    if not np.isfinite(images).all():
        raise DataError(
            f"the images hold {np.sum(~np.isfinite(images))} values that are not finite"
        )
    if floating and name in ("dequantize", "counts"):
        raise DataError(
            f"pixels={name!r} needs integer values; these are {images.dtype}. Use 'scale' or 'none'."
        )
    if floating and name != "none" and (images.min() < 0 or images.max() > 1):
        raise DataError(
            f"pixels={name!r} needs uint8 pixels or values in [0, 1]; these lie in [{images.min():g}, "
            f"{images.max():g}]. Rescale them, or use 'none' with a likelihood for real values."
        )
    if not floating and name != "none" and images.max() >= levels:
        raise DataError(
            f"the largest pixel is {images.max()}, but the set is said to have {levels} levels (0..{levels - 1})"
        )
    if name == "static":
        generator = np.random.Generator(np.random.Philox(key=[seed, len(images)]))
        probability = images if floating else images / max(levels - 1, 1)
        images = (generator.random(images.shape) < probability).astype(np.uint8)
    return split._replace(x=images)
