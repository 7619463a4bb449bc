"""Checksums of arrays, which are the same however an array lies on devices.

The words w_i of an array, which are its bits in order of memory, have the checksum

    sum_i (w_i xor a t_i) (b t_i + 1) mod 2^32,    t_i = i xor (i >> 15),

for an odd a and an even b. A sum of integers does not depend on its order, so the parts of an array
may be summed where they lie. The second factor is odd, so a flipped bit always changes the sum.
Because the place i enters both factors, entries that have changed places change it too.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

A, B = np.uint32(0x2C1B3C6D), np.uint32(2 * 0x297A2D39)
CHUNK = 2**15  # words of a host's array that are summed at once, and stay in the cache


def checksums(leaves: list[Any]) -> list[int]:
    """The checksums of arrays of the host, and of arrays on devices.

    All processes must call it if they share an array on devices. Those arrays are not copied.
    """
    shared = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    sums = iter(_of_shared(shared) if shared else ())
    return [next(sums) if isinstance(leaf, jax.Array) else of_host(leaf) for leaf in leaves]


def of_host(a: np.ndarray) -> int:
    """The checksum of an array of the host."""
    flat = np.ravel(a)
    words = flat.view(f"u{min(a.dtype.itemsize, 4)}")
    total, work = 0, np.empty((2, min(CHUNK, max(len(words), 1))), np.uint32)
    within = _mixed(np.arange(work.shape[1], dtype=np.uint32))
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK]
        left, right = work[:, : len(part)]
        # The bits of ``start`` and of the place within a chunk are different ones.
        np.bitwise_xor(within[: len(part)], _mixed(np.uint32(start & 0xFFFFFFFF)), out=right)
        np.multiply(right, A, out=left)
        np.bitwise_xor(left, part, out=left)
        np.multiply(right, B, out=right)
        np.add(right, np.uint32(1), out=right)
        np.multiply(left, right, out=left)
        total += int(left.sum(dtype=np.uint32))
    return total % 2**32


def _mixed(i: Any) -> Any:
    return i ^ (i >> 15)


def _of_shared(leaves: list[jax.Array]) -> list[int]:
    """The checksums of arrays on devices, by one program."""
    meshes = [leaf.sharding.mesh for leaf in leaves if isinstance(leaf.sharding, NamedSharding)]
    everywhere = NamedSharding(meshes[0], PartitionSpec()) if meshes else None
    return np.asarray(jax.jit(_sums, out_shardings=everywhere)(leaves)).tolist()


def _sums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_sum(_words(leaf)) for leaf in leaves])


def _sum(words: jax.Array) -> jax.Array:
    shape = words.shape
    steps = [math.prod(shape[axis + 1 :]) % 2**32 for axis in range(len(shape))]
    place = jnp.zeros(shape, jnp.uint32)
    for axis, step in enumerate(steps):
        place += lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(step)
    mixed = _mixed(place)
    return jnp.sum((words ^ (mixed * A)) * (mixed * B + np.uint32(1)), dtype=jnp.uint32)


def _words(a: jax.Array) -> jax.Array:
    """The bits of an array; numbers of 64 bits give two words each."""
    if a.dtype == jnp.bool_:
        return a.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(a.dtype.itemsize, jnp.uint32)
    return lax.bitcast_convert_type(a, unsigned).astype(jnp.uint32)
