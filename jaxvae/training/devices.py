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

from jaxvae.contracts import Terms
from jaxvae.training.algorithms import Algorithm, Batch
from jaxvae.training.placements import AXIS, Placement, shardings

Array = jax.Array


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

    One device uses ``jax.jit``, and several use ``jax.pmap``, ``jit(shard_map)``, or ``jit`` of
    global arrays for ``fsdp``. ``check_vma`` is False because models may start loops from
    constants, and because gradients are averaged by hand.
    """

    compiled = functools.partial(_compiled, algorithm, layout.mesh, layout.mapping, streamed)

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
    algorithm: Algorithm, mesh: Mesh, mapping: str, streamed: bool, *, whole: bool
) -> Callable:
    """The mapped function, for ``whole`` dispatches or for dispatches of any length.

    It is cached, so the next training of the same algorithm does not compile it again.
    """
    run = functools.partial(_run, algorithm, streamed, whole)
    if mesh.size == 1:
        return jax.jit(functools.partial(run, None), donate_argnums=0)
    if mapping == "pmap":
        return jax.pmap(
            functools.partial(run, AXIS),
            axis_name=AXIS,
            in_axes=(None, 0 if streamed else None, None, 0, 0, 0, 0),
            out_axes=None,
            devices=list(mesh.devices.flat),
            donate_argnums=0,
        )
    if mapping == "fsdp":
        whole_batches = functools.partial(_run_on_mesh, algorithm, mesh, streamed, whole)
        return jax.jit(whole_batches, donate_argnums=0)
    shared, split = PartitionSpec(), PartitionSpec(AXIS)

    def squeezed(state: Any, examples: Any, count: Array, *parts: Array) -> Any:
        examples = jax.tree.map(lambda a: a[0], examples) if streamed else examples
        return run(AXIS, state, examples, count, *(part[0] for part in parts))

    mapped = jax.shard_map(
        squeezed,
        mesh=mesh,
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


def on_mesh(algorithm: Algorithm, mesh: Mesh) -> Algorithm:
    """The algorithm for global arrays under ``jit``: states and batches lie on a mesh.

    A step without an axis is a step of the whole batch. XLA divides its work by the shardings of
    state and batch, and sends between devices what is missing on one.
    """
    over_batch = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def step(state: Any, batch: Batch, axis_name: str | None = None) -> tuple[Any, Terms]:
        # Without the first constraint XLA may cut what a loop carries in other ways on a mesh of
        # several copies, and gather it whole again.
        state = _constrained(state, shardings(state, mesh))
        state, metrics = algorithm.step(state, _constrained(batch, over_batch), axis_name)
        return _constrained(state, shardings(state, mesh)), metrics

    return algorithm._replace(step=step)


def _run_on_mesh(
    algorithm: Algorithm,
    mesh: Mesh,
    streamed: bool,
    whole: bool,
    state: Any,
    examples: Any,
    count: Array,
    rows: Array,
    weight: Array,
    place: Array,
    votes: Array,
) -> Any:
    """The steps of all devices on global arrays.

    The arrays of a batch have the axis of all devices in front, as ``Placement.sharded`` gives
    them.
    """
    examples = jax.tree.map(_joined, examples) if streamed else examples
    state, columns, votes = _run(
        on_mesh(algorithm, mesh),
        streamed,
        whole,
        None,
        state,
        examples,
        count,
        _joined(rows),
        _joined(weight),
        place.reshape(-1),
        votes,
    )
    return state, *_constrained((columns, votes.max(0)), NamedSharding(mesh, PartitionSpec()))


_constrained = lax.with_sharding_constraint


def _joined(a: Array) -> Array:
    """The parts of all devices side by side, [P, S, B, ...] -> [S, P * B, ...]."""
    return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1, *a.shape[3:])


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
