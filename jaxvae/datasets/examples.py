"""Raw examples, and the function that turns one into what a model takes."""

from __future__ import annotations

from typing import Any

import jax

from jaxvae.contracts import Array, Preprocess, pytree, static


@pytree
class Examples:
    """Raw examples together with their preprocessing.

    It is a pytree, so the function stays with the arrays when rows are taken, when arrays are moved
    to devices, and in ``jax.vmap``. Training, evaluation and figures call ``preprocessed`` and
    never pass the function.
    """

    raw: Any  # pytree of [N, ...], such as uint8 images
    preprocess: Preprocess = static()  # (key, raw example) -> x


def with_preprocess(raw: Any, preprocess: Preprocess | None) -> Any:
    """The raw arrays as ``Examples``, or as they are if there is no preprocessing."""
    return raw if preprocess is None else Examples(raw, preprocess)


def preprocessed(key: Array, example: Any) -> Any:
    """An example as a model takes it: ``preprocess(key, raw)``, or the plain example."""
    return example.preprocess(key, example.raw) if isinstance(example, Examples) else example


def examples_of(source: Any) -> Any:
    """The examples of a ``Split``, or the pytree of arrays, ``Examples`` or stream as it is."""
    return getattr(source, "examples", source)


def rows_of(examples: Any, rows: Any) -> Any:
    """Some rows, an index array or a slice, of a pytree of arrays [N, ...]."""
    return jax.tree.map(lambda a: a[rows], examples)
