"""Checksums: those of the formula, on a host and on any mesh, and no small change goes unseen."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvae import checksums

RNG = np.random.default_rng(0)
ARRAYS: dict[str, np.ndarray] = {
    "float32": RNG.normal(size=(16, 40)).astype(np.float32),
    "bfloat16": RNG.normal(size=(8, 5, 16)).astype(jnp.bfloat16),
    "a scalar": np.ones((), np.int32),
    "bool": RNG.integers(0, 2, (8, 7)).astype(bool),
    "more than a chunk": RNG.integers(0, 255, 2 * checksums.CHUNK + 8).astype(np.uint8),
    "nothing": np.zeros((0, 3), np.float32),
}


def by_integers(a: np.ndarray) -> int:
    """The formula of the module, in Python's integers."""
    total, most = 0, 2**32
    for i, word in enumerate(np.ravel(a).view(f"u{min(a.dtype.itemsize, 4)}").tolist()):
        mixed = (i ^ (i >> 15)) % most
        left, right = int(checksums.A) * mixed % most, int(checksums.B) * mixed % most
        total += (word ^ left) * (right + 1)
    return total % most


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_has_one_checksum_on_the_host_and_on_any_mesh(name: str) -> None:
    a = ARRAYS[name]
    expected = by_integers(a)
    assert checksums.of_host(a) == expected
    on_devices: list[Any] = [jnp.asarray(a)]
    if a.ndim and len(a):
        for shape in ((8, 1), (2, 4)):
            mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "model"))
            specs = PartitionSpec("model"), PartitionSpec(("data", "model")), PartitionSpec()
            on_devices += [jax.device_put(a, NamedSharding(mesh, spec)) for spec in specs]
    for array in on_devices:
        assert checksums.checksums([a, array]) == [expected, expected]


def test_no_flipped_bit_goes_unseen() -> None:
    """300 of them, in an array of which half is zero."""
    a = RNG.normal(size=1000).astype(np.float32)
    a[::2] = 0
    whole = checksums.of_host(a)
    for place, bit in zip(RNG.integers(0, a.size, 300), RNG.integers(0, 32, 300), strict=True):
        changed = a.copy()
        changed.view(np.uint32)[place] ^= np.uint32(1) << np.uint32(bit)
        assert checksums.of_host(changed) != whole


def test_entries_that_change_places_and_rows_that_are_lost_are_seen() -> None:
    a = RNG.normal(size=(64, 16)).astype(np.float32)
    whole = checksums.of_host(a)
    for i, j in RNG.integers(0, 64, (100, 2)):
        swapped, lost = a.copy(), a.copy()
        swapped[[i, j]] = swapped[[j, i]]
        lost[i] = 0
        assert i == j or checksums.of_host(swapped) != whole
        assert checksums.of_host(lost) != whole
