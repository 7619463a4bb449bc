"""Preprocessing of pixels, which turns a raw example into what a likelihood takes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.contracts import Array, Preprocess
from jaxvae.datasets.shapes import Images
from jaxvae.datasets.splits import DataError, Dataset, S, is_array
from jaxvae.datasets.streams import Stream


def _unit(pixels: Array, levels: int | None) -> Array:
    if not jnp.issubdtype(pixels.dtype, jnp.integer):
        return pixels
    if levels is None:
        raise DataError("integer pixels need the number of values that one can take: give levels")
    return pixels.astype(jnp.float32) / max(levels - 1, 1)


def _dynamic(key: Array, pixels: Array, levels: int | None) -> Array:
    return jax.random.bernoulli(key, _unit(pixels, levels)).astype(jnp.float32)


def _dequantize(key: Array, pixels: Array, levels: int | None) -> Array:
    assert levels is not None, "preprocessing refuses it"
    # Coarse enough that 255 + u is exact in float32, and below 256.
    u = jax.random.bits(key, pixels.shape, jnp.uint16) / 2**16
    return (pixels.astype(jnp.float32) + u.astype(jnp.float32)) / levels


# name -> (key, pixels [H, W, C], levels) -> x. A ``static`` set is binarized when it is prepared.
PREPROCESSING: dict[str, Callable[[Array, Array, int | None], Array]] = {
    "dynamic": _dynamic,
    "static": lambda key, pixels, levels: pixels.astype(jnp.float32),
    "dequantize": _dequantize,
    "scale": lambda key, pixels, levels: _unit(pixels, levels),
    "counts": lambda key, pixels, levels: pixels.astype(jnp.float32),
    "none": lambda key, pixels, levels: pixels.astype(jnp.float32),
    "gaps": lambda key, pixels, levels: pixels.astype(jnp.float32),
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


@functools.lru_cache(maxsize=256)
def preprocessing(name: str, levels: int | None) -> Preprocess:
    """The preprocessing ``(key, pixels) -> x`` of one example, by name.

    One name and number of levels give the same function object, so programs that use it are
    compiled once.

    * ``dynamic``: Bernoulli(pixel / (levels - 1)), fresh each time the example is seen, from the
      example's key.
    * ``static``: binary values drawn once for all, by ``prepared``.
    * ``dequantize``: (pixel + u) / levels with u ~ U[0, 1), fresh each time (Theis et al. 2016,
      arXiv:1511.01844).
    * ``scale``: pixel / (levels - 1), in [0, 1].
    * ``counts``: the integer values.
    * ``none``: real values as they are.
    * ``gaps``: the same, where nan stands for a missing value.

    Values that are no integers lie in [0, 1] and are not divided. With ``levels=None`` all values
    do. Raises DataError for an unknown name, and for ``dequantize`` without levels.
    """
    _check_name(name)
    if name == "dequantize" and levels is None:
        raise DataError("pixels='dequantize' needs the number of values of a pixel: give levels")
    return lambda key, pixels: PREPROCESSING[name](key, pixels, levels)


def describe(name: str, levels: int | None) -> str:
    """One sentence on what a preprocessing does to the data."""
    _check_name(name)
    if levels == 2 and name in ("dynamic", "static", "scale"):
        return f"{name}: pixels are 0 or 1, and stay as they are"
    unit = "its value" if levels is None else f"pixel / {levels - 1}"
    integers = "integers that they are" if levels is None else f"integers 0 to {levels - 1}"
    drawn = f"drawn{{}} as 0 or 1 with probability {unit}"
    sentences = {
        "dynamic": f"every pixel is {drawn.format(' anew')} each time it is seen",
        "static": f"every pixel is {drawn.format('')}, once for all",
        "dequantize": f"every pixel becomes (pixel + u) / {levels} with u uniform in [0, 1), "
        "drawn anew each time it is seen",
        "scale": f"every pixel becomes {unit}, in [0, 1]",
        "counts": f"pixels are the {integers}",
        "none": "values stay as they are",
        "gaps": "values stay as they are, and nan is a missing one",
    }
    return f"{name}: {sentences[name]}"


def _check_name(name: str) -> None:
    if name not in PREPROCESSING:
        raise DataError(f"no preprocessing {name!r}; there are {', '.join(PREPROCESSING)}")


@overload
def prepared(
    source: Dataset[S], name: str, levels: int | None = None, seed: int = 0
) -> Dataset[S]: ...
@overload
def prepared(source: S, name: str, levels: int | None = None, seed: int = 0) -> S: ...
def prepared(source: Any, name: str, levels: int | None = None, seed: int = 0) -> Any:
    """A data set, split or stream that carries its preprocessing, after a check of its values.

    ``static`` binarization is drawn now: Bernoulli(pixel / (levels - 1)), with a generator keyed by
    ``seed`` and the number of examples. The data set then has two levels. A stream cannot be
    binarized so, and a thousand of its examples are checked. Rendered images are binary and stay.

    Args:
      source: what is preprocessed.
      name: a name of ``PREPROCESSING``.
      levels: values that a pixel can take. None takes the data set's levels, or real numbers for a
        split.
      seed: the seed of ``static`` binarization.

    Raises DataError for values that the preprocessing cannot take.
    """
    if isinstance(source, Dataset):
        levels = source.levels if levels is None else levels
        splits = {n: prepared(split, name, levels, seed) for n, split in source.splits.items()}
        return source._replace(splits=splits, levels=2 if name == "static" else levels)
    preprocess = preprocessing(name, levels)
    if isinstance(source, Stream):
        _check_stream(source, name, levels)
        return dataclasses.replace(source, preprocess=preprocess)
    if not is_array(source.x):
        raise DataError(
            f"pixels={name!r} is for one array, and these examples are a "
            f"{type(source.x).__name__} of arrays: give Split(x, preprocess=...) a function "
            "(key, example) -> x"
        )
    if isinstance(source.x, Images):
        _check_values(np.asarray(source.x[:1]), name, levels)
        return source.replace(preprocess=preprocess)
    _check_values(source.x, name, levels)
    x = _binarized(source.x, levels, seed) if name == "static" else source.x
    return source.replace(x=x, preprocess=preprocess)


def _binarized(x: np.ndarray, levels: int | None, seed: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=[seed, len(x)]))
    scale = 1 if levels is None or np.issubdtype(x.dtype, np.floating) else max(levels - 1, 1)
    return (generator.random(x.shape) < x / scale).astype(np.uint8)


def _check_stream(stream: Stream, name: str, levels: int | None) -> None:
    if name == "static":
        raise DataError(
            "a stream cannot be binarized once: use pixels='dynamic', or hold the set in memory"
        )
    if stream.dtype == np.uint8 and levels is not None and levels > 255:
        return  # any value will do
    for part in stream.glimpse():
        _check_values(part.x, name, levels)


def _check_values(x: Any, name: str, levels: int | None) -> None:
    """Raises DataError for values that a preprocessing cannot take."""
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    if name == "gaps":
        return
    if not np.isfinite(x).all():
        raise DataError(f"the images hold {np.sum(~np.isfinite(x))} values that are not finite")
    if name == "none":
        return
    if floating and name in ("dequantize", "counts"):
        raise DataError(
            f"pixels={name!r} needs integer values; these are {x.dtype}. Use 'scale' or 'none'."
        )
    if floating and (x.min() < 0 or x.max() > 1):
        raise DataError(
            f"pixels={name!r} needs uint8 pixels or values in [0, 1]; these lie in "
            f"[{x.min():g}, {x.max():g}]. Rescale them, or use 'none' with a likelihood for real "
            "values."
        )
    if floating:
        return
    if x.min() < 0:
        raise DataError(
            f"pixels={name!r} needs integers from 0; the least is {x.min()}. Use 'none'."
        )
    if levels is None and name != "counts":
        raise DataError(
            f"pixels={name!r} needs the number of values that an integer pixel can take: "
            "give levels"
        )
    if levels is not None and x.max() >= levels:
        raise DataError(
            f"the largest pixel is {x.max()}, but the set is said to have {levels} levels "
            f"(0..{levels - 1})"
        )
