"""Functions of one example, computed for every example of a split in bounded memory.

All numbers of ``evaluation`` about a split are computed from such columns. The key of an example
depends on its place in the split alone, so batch sizes and processes do not change a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxvae import processes
from jaxvae.contracts import Array, Params
from jaxvae.datasets import Stream, num_examples
from jaxvae.models import Model

One = Callable[[Params, Array, Any], Any]  # (params, key, example) -> pytree of arrays
Batched = Callable[[Params, Array, np.ndarray, Any], Any]


def require(model: Model, use: str, *names: str) -> None:
    """Raises ValueError if ``model`` lacks an answer that ``use`` needs."""
    missing = [name for name in names if getattr(model, name) is None]
    if missing:
        raise ValueError(
            f"{use} needs a model that answers {' and '.join(names)}, and this one has no "
            f"{' and no '.join(missing)}: choose a family that has, or leave it out"
        )


def batched(one: One, on_cpu: int | None = None) -> Batched:
    """``one(params, fold_in(key, i), example i)`` for a batch, compiled.

    The batch is given as ``(params, key, places, examples)``, and i is the place of an example in
    its split. If ``on_cpu`` is given, a CPU computes so many examples at once.
    """

    def batch(params: Params, key: Array, places: Array, raw: Any) -> Any:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        whole = lambda *each: jax.vmap(one, (None, 0, 0))(params, *each)
        size = min(on_cpu or 1, len(places))
        parts = lambda *each: lax.map(lambda each: one(params, *each), each, batch_size=size)
        return lax.platform_dependent(keys, raw, cpu=parts if on_cpu else whole, default=whole)

    return jax.jit(batch)


def over_split(
    batch: Batched,
    params: Params,
    key: Array,
    examples: Any,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Any:
    """The results of ``batch`` for every example, a pytree of NumPy arrays [N, ...].

    In a job of several processes each one computes its share of the batches, and all of them must
    call this.

    Args:
      batch: what ``batched`` returns. The last batch is filled up with the last example, and the
        results of the filling are dropped.
      params: the model's parameters.
      key: the key that the place of each example is folded into.
      examples: a pytree of arrays [N, ...], ``Examples`` or a stream.
      batch_size: the number of examples that are computed at a time.
      progress: is called with the number of examples done.
    """
    n = length(examples)
    batch_size = min(batch_size, n)
    starts = range(0, n, batch_size)
    shared = len(starts) >= jax.process_count() > 1
    leaves: list[np.ndarray] = []
    structure: Any = None
    for start in starts[jax.process_index() :: jax.process_count()] if shared else starts:
        places = np.minimum(np.arange(start, start + batch_size), n - 1)
        result = batch(params, key, places, rows_in_memory(examples, places))
        values, structure = jax.tree.flatten(result)
        leaves = leaves or [np.zeros((n, *value.shape[1:]), value.dtype) for value in values]
        for leaf, value in zip(leaves, values, strict=True):
            leaf[start : start + batch_size] = np.asarray(value)[: n - start]
        progress(min(start + batch_size, n))
    if shared:
        sums = processes.summed({str(i): leaf for i, leaf in enumerate(leaves)})
        leaves = [sums[str(i)] for i in range(len(leaves))]
    return jax.tree.unflatten(structure, leaves)


def length(examples: Any) -> int:
    """The number of examples; some of them may be in a stream."""
    streams = [leaf for leaf in jax.tree.leaves(examples) if isinstance(leaf, Stream)]
    return len(streams[0]) if streams else num_examples(examples)


def rows_in_memory(examples: Any, rows: np.ndarray) -> Any:
    """Some examples as NumPy arrays. A stream is read now."""
    return jax.tree.map(
        lambda a: a[rows] if isinstance(a, Stream) else np.asarray(a)[rows], examples
    )
