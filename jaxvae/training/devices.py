"""Many steps in one dispatch, on one device or many, in one process or several."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvae import processes
from jaxvae.contracts import Terms
from jaxvae.training.algorithms import Algorithm, Batch

Array = jax.Array
AXIS = "devices"
MAPPINGS = ("pmap", "shard_map")


class Placement:
    """The devices of a job, and the part of them that belongs to this process.

    A global batch is cut into equal parts in the order of ``devices``. ``pmap`` sees this process's
    parts only, and ``shard_map`` sees global arrays.
    """

    def __init__(self, devices: Sequence[jax.Device], mapping: str = "pmap"):
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
        self.mesh = Mesh(np.array(self.devices), (AXIS,))

    @property
    def on_cpu(self) -> bool:
        """Whether the devices are CPUs, which gain nothing from work that is queued."""
        return self.devices[0].platform == "cpu"

    def replicated(self, tree: Any) -> Any:
        """Copies of a tree on the devices.

        They are local arrays under ``pmap``, and global arrays under ``shard_map``.
        """
        if self.count == 1:
            return jax.device_put(processes.local(tree), self.own[0])
        held = jax.device_put(
            processes.local(tree), NamedSharding(Mesh(np.array(self.own), (AXIS,)), PartitionSpec())
        )
        return self.as_global(held) if self.mapping == "shard_map" else held

    def as_global(self, tree: Any) -> Any:
        """The same buffers as global arrays, which checkpoints of several processes need."""
        sharding = NamedSharding(self.mesh, PartitionSpec())

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
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))

        def join(a: np.ndarray) -> Array:
            parts = [
                jax.device_put(part[None], device) for part, device in zip(a, self.own, strict=True)
            ]
            return jax.make_array_from_single_device_arrays(
                (self.count, *a.shape[1:]), sharding, parts
            )

        return jax.tree.map(join, tree)


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copies a tree of arrays to all devices of the job, as global arrays.

    All processes must hold the same arrays.
    """
    layout = Placement(devices)
    return layout.as_global(layout.replicated(tree))


def run_steps(algorithm: Algorithm, layout: Placement, streamed: bool = False) -> Callable:
    """Many steps in one dispatch.

    ``run(state, examples, count, rows [P, S, B], weight [P, S, B], votes [V]) -> (state, metrics
    [S], votes [V])``. The axis of this process's P devices is there only if the job has several
    devices. ``rows`` are the examples of each batch in the data set. ``examples`` is the data set
    on every device. With ``streamed`` it holds each device's batches [P, S, B, ...].

    The first ``count`` of the S steps are taken. ``count`` is no constant of the compiled program,
    so one program serves dispatches of every length. A second program takes all S steps, except on
    a CPU. Without it other devices would wait for the host to see whether the loop goes on.
    ``votes`` are integers. The largest of each over all devices comes back in every process. The
    state is donated.

    One device uses ``jax.jit``, and several use ``jax.pmap`` or ``jit(shard_map)``. ``check_vma``
    is False because models may start loops from constants, and because gradients are averaged by
    hand.
    """

    compiled = functools.partial(
        _compiled, algorithm, tuple(layout.devices), layout.mapping, streamed
    )

    def dispatch(
        state: Any,
        examples: Any,
        count: int,
        rows: np.ndarray,
        weight: np.ndarray,
        votes: Sequence[int],
    ) -> Any:
        part = rows.shape[-1]
        place = layout.split(np.arange(part * layout.count))
        each = np.array(votes, np.int32)
        ballots = each if layout.count == 1 else np.tile(each, (len(layout.places), 1))
        examples = layout.sharded(examples) if streamed else examples
        run = compiled(whole=count == rows.shape[-2] and not layout.on_cpu)
        return run(
            state, examples, np.int32(count), *layout.sharded((rows, weight, place, ballots))
        )

    return dispatch


@functools.lru_cache(maxsize=16)
def _compiled(
    algorithm: Algorithm,
    devices: tuple[jax.Device, ...],
    mapping: str,
    streamed: bool,
    *,
    whole: bool,
) -> Callable:
    """The mapped function, for ``whole`` dispatches or for dispatches of any length.

    It is cached, so the next training of the same algorithm does not compile it again.
    """
    run = functools.partial(_run, algorithm, streamed, whole)
    if len(devices) == 1:
        return jax.jit(functools.partial(run, None), donate_argnums=0)
    if mapping == "pmap":
        return jax.pmap(
            functools.partial(run, AXIS),
            axis_name=AXIS,
            in_axes=(None, 0 if streamed else None, None, 0, 0, 0, 0),
            out_axes=None,
            devices=devices,
            donate_argnums=0,
        )
    shared, split = PartitionSpec(), PartitionSpec(AXIS)

    def squeezed(state: Any, examples: Any, count: Array, *parts: Array) -> Any:
        examples = jax.tree.map(lambda a: a[0], examples) if streamed else examples
        return run(AXIS, state, examples, count, *(part[0] for part in parts))

    mapped = jax.shard_map(
        squeezed,
        mesh=Mesh(np.array(devices), (AXIS,)),
        in_specs=(shared, split if streamed else shared, shared, split, split, split, split),
        out_specs=shared,
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0)


def _run(
    algorithm: Algorithm,
    streamed: bool,
    whole: bool,
    axis_name: str | None,
    state: Any,
    examples: Any,
    count: Array,
    rows: Array,
    weight: Array,
    place: Array,
    votes: Array,
) -> Any:
    """The steps of one device, as ``run_steps`` says; rows and weight are [S, B]."""
    # They are arrays of the host if JAX runs this function without compiling it.
    rows, weight = jnp.asarray(rows), jnp.asarray(weight)

    def take(state: Any, s: Array) -> tuple[Any, Terms]:
        batch = (lambda a: a[s]) if streamed else (lambda a: _rows(a, rows[s]))
        x = jax.tree.map(batch, examples)
        return algorithm.step(state, Batch(x, place, weight[s], rows[s]), axis_name)

    def body(s: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        state, metrics = take(carry[0], s)
        return state, carry[1].at[s].set(ravel_pytree(metrics)[0])

    _, shapes = jax.eval_shape(take, state, jnp.int32(0))
    none, named = ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    # One array takes one kernel a step. It has some KB, because XLA on a CPU places a step's arrays
    # by their sizes.
    kept = jnp.zeros((max(len(rows), 384), *none.shape), none.dtype)
    state, kept = _loop(len(rows) if whole else count, body, (state, kept))
    columns = jax.vmap(named)(kept[: len(rows)])
    if axis_name is not None:
        # A number from the loop orders this collective after the loop's. Without it devices of a
        # CPU that ran a program from the compilation cache began with either collective, and waited
        # for each other for ever.
        votes = lax.pmax(jnp.append(votes, columns["skipped"][0]), axis_name)[:-1]
    return state, columns, votes


def _loop(count: Any, body: Callable, carry: Any) -> Any:
    """``fori_loop`` from 0 to ``count``, or a loop of Python if nothing is compiled.

    Nothing is compiled under ``jax.disable_jit``. Nor is it under ``jax.debug_nans`` when JAX goes
    through a program again to name the operation that was not finite. In a ``fori_loop`` it would
    name the loop.
    """
    if isinstance(carry[1], jax.core.Tracer):
        return lax.fori_loop(0, count, body, carry)
    for s in range(int(count)):
        carry = body(jnp.int32(s), carry)
    return carry


def _rows(a: Array, rows: Array) -> Array:
    """``a[rows]``, computed with flat rows.

    Otherwise XLA on a CPU would compute indices along all axes for each entry.
    """
    return a.reshape(len(a), math.prod(a.shape[1:]))[rows].reshape(*rows.shape, *a.shape[1:])
