"""How Orbax writes and reads the arrays of a state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


def is_cut(leaf: Any) -> bool:
    """Whether an array, or the array of a shape, is cut over several devices."""
    place = getattr(leaf, "sharding", None)
    return place is not None and not place.is_fully_replicated


def _orbax(kinds: dict[Any, Any], writers: ocp.options.MultiprocessingOptions) -> dict[str, Any]:
    """The arguments of a checkpointer of Orbax."""
    registry = ocp.type_handlers.create_type_handler_registry(*kinds.items())
    # Compression would save a tenth of the size, which is not worth the time.
    handler = ocp.PyTreeCheckpointHandler(
        use_compression=False, type_handler_registry=registry, multiprocessing_options=writers
    )
    return {"handler": handler, "multiprocessing_options": writers}


def alone() -> dict[str, Any]:
    """For one process, which waits for no other one."""
    me = jax.process_index()
    kinds = {
        np.ndarray: ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False),
        jax.Array: ocp.type_handlers.ArrayHandler(primary_host=me),  # to read
    }
    return _orbax(kinds, ocp.options.MultiprocessingOptions(me, {me}))


def by_all() -> dict[str, Any]:
    """For all processes. They wait for each other at the coordinator, not with collectives.

    Those would be beside the training's collectives.
    """
    arrays = ocp.type_handlers.ArrayHandler(
        enable_write_sharding_file=False, use_replica_parallel=False
    )
    everybody = set(range(jax.process_count()))
    return _orbax({jax.Array: arrays}, ocp.options.MultiprocessingOptions(0, everybody))


def restore_args(like: Any) -> ocp.RestoreArgs:
    """How an array is read: to the host, or to the devices that ``like`` is cut over."""
    if not is_cut(like):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array, sharding=like.sharding, global_shape=like.shape
    )


def _typed_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_data(tree: Any) -> Any:
    """A tree of arrays or shapes, in which typed keys are replaced by their data."""

    def data_of(leaf: Any) -> Any:
        if not _typed_key(leaf):
            return leaf
        if isinstance(leaf, jax.Array):
            return jax.random.key_data(leaf)
        return jax.eval_shape(jax.random.key_data, leaf).update(sharding=leaf.sharding)

    return jax.tree.map(data_of, tree)


def placed(like: Any, data: Any) -> Any:
    """An array of the host, placed like ``like`` or on the default device.

    It becomes a typed key if ``like`` is one. An array that is on its devices stays there.
    """
    if isinstance(data, jax.Array):
        return data
    place = getattr(key_data(like), "sharding", None)
    array = (
        jnp.asarray(data)
        if place is None
        else jax.make_array_from_callback(data.shape, place, data.__getitem__)
    )
    if not _typed_key(like):
        return array
    impl: list[Any] = []  # JAX tells it for arrays, even traced ones, but not for shapes
    jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(array, impl=impl[0])
