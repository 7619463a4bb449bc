"""Several processes of one job: how they start, agree and write.

Everything works in a job of one process too, and costs nothing there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

MESSAGE_BYTES = 4096


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_seconds: int = 100,
) -> None:
    """Joins the job through ``jax.distributed``.

    Call it before anything else touches a device. Arguments that are None come from
    $JAX_COORDINATOR_ADDRESS, $JAX_NUM_PROCESSES, $JAX_PROCESS_ID or, in an indexed Kubernetes job,
    $JOB_COMPLETION_INDEX. JAX takes what is still missing from the environment of SLURM, Open MPI,
    Cloud TPU, GKE or, with ``jax[k8s]``, Kubernetes. A process that is not heard of for
    ``heartbeat_seconds`` ends the whole job. The others then abort (exit code 134), and their
    supervisor starts all of them again.

    Raises ValueError, which names what could not be found or reached.
    """
    environment = os.environ.get
    coordinator = coordinator or environment("JAX_COORDINATOR_ADDRESS")
    num_processes = _number(num_processes, "JAX_NUM_PROCESSES")
    process_id = _number(_number(process_id, "JAX_PROCESS_ID"), "JOB_COMPLETION_INDEX")
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise ValueError(
            f"process {process_id} of {num_processes}: ids go from 0 to {num_processes - 1}"
        )
    # The scripts save on SIGTERM. JAX's signal handler would take the signal from them.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_seconds
        )
    except (ValueError, RuntimeError, KeyError) as error:
        settings = {
            "coordinator": coordinator,
            "number of processes": num_processes,
            "process id": process_id,
        }
        missing = [name for name, value in settings.items() if value is None]
        asked = (
            f"; not given and not found in the environment: {', '.join(missing)}" if missing else ""
        )
        raise ValueError(
            f"the job of several processes could not be started: {str(error).strip()}{asked}"
        ) from error


def _number(given: int | None, variable: str) -> int | None:
    value = os.environ.get(variable)
    if given is not None or value is None:
        return given
    if not value.isdigit():
        raise ValueError(f"${variable} must be a number; it was {value!r}")
    return int(value)


def is_first() -> bool:
    """Whether this is process 0, which writes reports."""
    return jax.process_index() == 0


def local(tree: Any) -> Any:
    """This process's copy, on one device, of arrays that lie on several devices.

    Arrays that are cut over the devices are put together first, which all processes must call.
    """

    def copy(a: Any) -> Any:
        if not isinstance(a, jax.Array) or len(a.sharding.device_set) == 1:
            return a
        if not a.is_fully_replicated:
            mesh = a.sharding.mesh  # type: ignore[attr-defined]
            a = jax.device_put(a, NamedSharding(mesh, PartitionSpec()))
        return a.addressable_data(0)

    return jax.tree.map(copy, tree)


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process. All processes must call it."""
    return (
        flag
        if jax.process_count() == 1
        else bool(multihost_utils.process_allgather(np.int32(flag)).any())
    )


def summed(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """float32 arrays, added up over all processes. All of them must call it."""
    if jax.process_count() == 1:
        return columns
    return {
        name: np.asarray(a).sum(0) for name, a in multihost_utils.process_allgather(columns).items()
    }


def on_first(function: Callable[[], Any]) -> None:
    """Calls ``function`` in process 0 while the others wait.

    All processes raise its ValueError or OSError.
    """
    if jax.process_count() == 1:
        function()
        return
    error: Exception | None = None
    if is_first():
        try:
            function()
        except (ValueError, OSError) as caught:
            error = caught
    text = np.zeros(MESSAGE_BYTES, np.uint8)
    message = "" if error is None else (str(error) or type(error).__name__)
    encoded = message.encode()[:MESSAGE_BYTES]
    text[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    told = (
        bytes(np.asarray(multihost_utils.broadcast_one_to_all(text)))
        .rstrip(b"\0")
        .decode(errors="replace")
    )
    if error is not None:
        raise error
    if told:
        raise ValueError(told)
