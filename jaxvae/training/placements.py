"""Where the batch and the state of a training lie on the devices of a job."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxvae import processes

Array = jax.Array
AXIS = "devices"
MESH_AXES = ("data", "model")
MAPPINGS = ("pmap", "shard_map", "fsdp")
LEAST_BYTES = 2**16  # smaller arrays are not cut, because a message has a price of its own


class Placement:
    """The devices of a job, and the part of them that belongs to this process.

    A global batch is cut into equal parts in the order of ``devices``. ``pmap`` sees this process's
    parts only; ``shard_map`` and ``fsdp`` see global arrays. ``pmap`` and ``shard_map`` have the
    whole state on every device. ``fsdp`` cuts the large arrays of the state: a mesh of
    ``(copies, parts)`` devices has so many copies of the state, each in so many parts. Without a
    mesh there is one copy.
    """

    def __init__(
        self,
        devices: Sequence[jax.Device],
        mapping: str = "pmap",
        mesh: tuple[int, int] | None = None,
    ):
        if mapping not in MAPPINGS:
            raise ValueError(f"mapping must be one of {', '.join(MAPPINGS)}; it was {mapping!r}")
        self.devices, self.mapping, self.count = list(devices), mapping, len(devices)
        me = jax.process_index()
        self.places = [
            place for place, device in enumerate(self.devices) if device.process_index == me
        ]
        if not self.places:
            raise ValueError(
                f"process {me} has none of the {self.count} devices; every process needs one"
            )
        self.own = [self.devices[place] for place in self.places]
        self.mesh = _mesh(self.devices, mapping, mesh)

    @property
    def on_cpu(self) -> bool:
        """Whether the devices are CPUs, which gain nothing from work that is queued."""
        return self.devices[0].platform == "cpu"

    def shapes(self, init: Callable, *args: Any) -> Any:
        """The shapes of ``init(*args)``, each with the sharding of a state on the devices."""
        state = jax.eval_shape(init, *args)
        return jax.tree.map(
            lambda leaf, where: leaf.update(sharding=where), state, self._shardings(state)
        )

    def started(self, init: Callable, *args: Any) -> Any:
        """The state ``init(*args)`` on the devices, as global arrays.

        Under ``fsdp`` no device ever holds more of it than its part.
        """
        if self.mapping != "fsdp" or self.count == 1:
            return self.as_global(self.copied(jax.jit(init)(*args)))
        where = self._shardings(jax.eval_shape(init, *args))
        return jax.jit(init, out_shardings=where)(*args)

    def copied(self, state: Any) -> Any:
        """A copy of a state as the mapped function takes it; all processes must call it."""
        if self.mapping != "fsdp" or self.count == 1:
            return self.replicated(_copied(processes.local(state)))
        where = self._shardings(state)
        return jax.jit(_copied, out_shardings=where)(jax.device_put(state, where))

    def _shardings(self, state: Any) -> Any:
        if self.count == 1:
            return jax.tree.map(lambda _: SingleDeviceSharding(self.own[0]), state)
        return shardings(state, self.mesh)

    def replicated(self, tree: Any) -> Any:
        """Copies of a tree on the devices.

        They are local arrays under ``pmap``, and else global arrays.
        """
        if self.count == 1:
            return jax.device_put(processes.local(tree), self.own[0])
        held = jax.device_put(processes.local(tree), self._on_own)
        return held if self.mapping == "pmap" else self.as_global(held)

    @property
    def _on_own(self) -> NamedSharding:
        return NamedSharding(Mesh(np.array(self.own), (AXIS,)), PartitionSpec())

    def as_global(self, tree: Any) -> Any:
        """The same buffers as global arrays, which checkpoints of several processes need."""
        return self._joined(tree, NamedSharding(self.mesh, PartitionSpec()))

    def as_mapped(self, tree: Any) -> Any:
        """The buffers of global arrays as the mapped function takes them: local under ``pmap``."""
        return self._joined(tree, self._on_own) if self.mapping == "pmap" else tree

    def _joined(self, tree: Any, sharding: NamedSharding) -> Any:
        def join(a: Array) -> Array:
            if self.count == 1 or a.sharding.device_set == sharding.device_set:
                return a
            copies = {shard.device: shard.data for shard in a.addressable_shards}
            return jax.make_array_from_single_device_arrays(
                a.shape, sharding, [copies[d] for d in self.own]
            )

        return jax.tree.map(join, tree)

    def split(self, a: np.ndarray) -> np.ndarray:
        """This process's parts [P, ..., B / devices] of [..., B]; one device takes it as it is."""
        if self.count == 1:
            return a
        return np.moveaxis(a.reshape(*a.shape[:-1], self.count, -1), -2, 0)[self.places]

    def sharded(self, tree: Any) -> Any:
        """Parts [P, ...] as the mapped function takes them."""
        if self.count == 1 or self.mapping == "pmap":
            return tree
        sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))

        def join(a: np.ndarray) -> Array:
            parts = [
                jax.device_put(part[None], device) for part, device in zip(a, self.own, strict=True)
            ]
            return jax.make_array_from_single_device_arrays(
                (self.count, *a.shape[1:]), sharding, parts
            )

        return jax.tree.map(join, tree)


def _mesh(devices: list[jax.Device], mapping: str, shape: tuple[int, int] | None) -> Mesh:
    """The mesh of the devices, which has two axes under ``fsdp``."""
    if mapping != "fsdp":
        if shape is not None:
            raise ValueError(f"mesh={shape} belongs to mapping=fsdp; it was {mapping}")
        return Mesh(np.array(devices), (AXIS,))
    shape = (1, len(devices)) if shape is None else shape
    if min(shape) < 1 or math.prod(shape) != len(devices):
        raise ValueError(f"mesh={shape} is of {math.prod(shape)} devices; there are {len(devices)}")
    return Mesh(np.array(devices).reshape(shape), MESH_AXES)


def shardings(state: Any, mesh: Mesh) -> Any:
    """How every array of a state, or of its shapes, lies on a mesh.

    On a mesh with the axis ``model`` large arrays are cut, see ``cut``. Moments of an optimizer
    have the shapes of their parameters, and are cut alike.
    """
    parts = dict(mesh.shape).get("model", 1)
    size = lambda dtype: 0 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize
    of_leaf: Any = lambda leaf: NamedSharding(mesh, cut(leaf.shape, size(leaf.dtype), parts))
    return jax.tree.map(of_leaf, state)


def cut(shape: tuple[int, ...], itemsize: int, parts: int) -> PartitionSpec:
    """The axis of an array that ``parts`` devices share: the largest one that they divide.

    >>> from jaxvae.training.placements import cut
    >>> [tuple(cut(shape, 4, 8)) for shape in ((784, 512), (3, 3, 256, 512), (512,))]
    [('model',), (None, None, None, 'model'), ()]

    The first axis of three or more is never cut. It is the layer of parameters that a scan stacks,
    and a scan over an axis that is cut would gather all layers at once. Arrays of less than
    ``LEAST_BYTES`` stay whole.
    """
    axes = range(1 if len(shape) > 2 else 0, len(shape))
    dividing = [axis for axis in axes if shape[axis] and shape[axis] % parts == 0]
    if parts == 1 or not dividing or math.prod(shape) * itemsize < LEAST_BYTES:
        return PartitionSpec()
    largest = max(dividing, key=shape.__getitem__)
    return PartitionSpec(*[None] * largest, "model")


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copies a tree of arrays to all devices of the job, as global arrays.

    All processes must hold the same arrays.
    """
    layout = Placement(devices)
    return layout.as_global(layout.replicated(tree))
