"""Measures the cost of data parallelism, and estimates on paper where it stops paying.

``python experiments/scaling.py [--devices 1 2 4 8] [--hidden 512 512] [--json FILE] [--plot
FILE]`` measures; ``--help`` lists all. On accelerators it uses the real devices, on a CPU it
simulates them, and its last lines say what that can and cannot tell about a pod. ``--model 'PRESET
[--setting value ...]' --shape 32 32 3`` estimates memory and communication of a model of any
family.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import functools
import importlib.metadata
import itertools
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro

from experiments import model_estimates, scaling_tables
from experiments.interconnects import (
    LINKS,
    all_reduce_seconds,
    break_even_batch,
    break_even_devices,
    estimates,
)
from experiments.scaling_models import (
    AXIS,
    Model,
    Placement,
    Settings,
    all_reduces,
    build,
    communication,
    devices_of,
    step_program,
)
from experiments.tables import as_json
from jaxvae import costs, datasets, processes, runs, training
from jaxvae.command_line import run_function
from jaxvae.runs.folders import write_json

__all__ = [
    "AXIS",
    "LINKS",
    "Model",
    "Settings",
    "all_reduce_seconds",
    "all_reduces",
    "break_even_batch",
    "break_even_devices",
    "build",
    "estimates",
    "scale",
    "step_program",
]
SIMULATED = 8  # devices, where there are no real ones


# The cells that are measured


class Cell(NamedTuple):
    """One setting that is measured. One device needs no mapping."""

    model: str
    mapping: str
    devices: int
    batch: int  # global


def cells(
    settings: Settings, counts: Sequence[int], names: Sequence[str]
) -> list[tuple[str, Cell]]:
    """Every setting under the kind of scaling that it belongs to; some belong to both."""
    listed = []
    for name, kind, mapping, n in itertools.product(
        names, ("strong", "weak"), settings.mappings, counts
    ):
        batch = settings.global_batch if kind == "strong" else settings.per_device_batch * n
        listed.append((kind, Cell(name, mapping if n > 1 else "jit", n, batch)))
    return list(dict.fromkeys(listed))


# The measurement


def dispatches(
    settings: Settings, model: Model, cell: Cell
) -> Callable[[], tuple[Any, np.ndarray]]:
    """A function that takes the next steps of a training in one dispatch and waits for them.

    It returns the state and the losses. It calls the compiled loop that ``training.fit`` calls. All
    cells of a model start from one state, and cells with the same batch take the same steps.
    Because it waits for each dispatch, none is queued behind another.
    """
    layout = Placement(devices_of(cell.devices), "pmap" if cell.mapping == "jit" else cell.mapping)
    run = training.run_steps(model.algorithm, layout)
    held = layout.replicated(model.examples)
    state = layout.copied(model.initial(settings.seed))
    shape, total = (settings.steps, cell.batch), datasets.num_examples(model.examples)
    rows = np.arange(math.prod(shape), dtype=np.int32).reshape(shape) % total
    parts = layout.split(rows), layout.split(np.full(shape, 1 / cell.batch, np.float32))

    def dispatch() -> tuple[Any, np.ndarray]:
        nonlocal state
        state, metrics, _ = jax.block_until_ready(run(state, held, settings.steps, *parts, [0]))
        return state, np.asarray(metrics["loss"])

    return dispatch


class Measured(NamedTuple):
    """What one cell gave."""

    seconds: np.ndarray  # [rounds] for one step
    losses: np.ndarray  # of all steps
    params: Any  # after them


def measure(
    settings: Settings, built: dict[str, Model], chosen: Sequence[Cell]
) -> dict[Cell, Measured]:
    """Times every cell once in each round.

    The order of the cells is reversed in every other round, so other work of the machine slows all
    cells alike.
    """
    from tqdm import tqdm

    quiet = not processes.is_first()
    run, losses, params = {}, {}, {}
    seconds: dict[Cell, list[float]] = {cell: [] for cell in chosen}
    for cell in tqdm(chosen, desc="compiling", unit="program", disable=quiet):
        run[cell] = dispatches(settings, built[cell.model], cell)
        losses[cell] = [run[cell]()[1]]
    for i in tqdm(range(settings.rounds), desc="measuring", unit="round", disable=quiet):
        for cell in chosen if i % 2 else reversed(chosen):
            start = time.perf_counter()
            state, loss = run[cell]()
            seconds[cell].append((time.perf_counter() - start) / settings.steps)
            losses[cell].append(loss)
            params[cell] = state.params
    whole = lambda cell: jax.tree.map(np.asarray, processes.local(params[cell]))
    return {c: Measured(np.array(seconds[c]), np.concatenate(losses[c]), whole(c)) for c in chosen}


def spread(values: np.ndarray) -> dict[str, float]:
    """Median, quartiles and extremes."""
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return {
        "median": median,
        "q25": low,
        "q75": high,
        "min": float(values.min()),
        "max": float(values.max()),
    }


def compared(
    listed: Sequence[tuple[str, Cell]], measured: dict[Cell, Measured]
) -> list[dict[str, Any]]:
    """A row for each cell, compared with the fewest devices of its model and kind of scaling.

    Ratios are within a round. ``added_ms`` is the added time of a step, and ``throughput`` is the
    ratio of examples per second.
    """
    rows = []
    for kind, cell in listed:
        first = next(c for k, c in listed if (k, c.model) == (kind, cell.model))
        seconds, base = measured[cell].seconds, measured[first].seconds
        row = {"scaling": kind, **cell._asdict(), "step_ms": spread(1e3 * seconds)}
        added, speedup = 1e3 * (seconds - base), base / first.batch / (seconds / cell.batch)
        row |= {
            "added_ms": spread(added),
            "throughput": spread(speedup),
            "rounds_ms": (1e3 * seconds).tolist(),
        }
        rows.append(row)
    return rows


def invariance(
    listed: Sequence[tuple[str, Cell]], measured: dict[Cell, Measured]
) -> dict[str, dict[str, float]]:
    """The largest difference of a training between device counts and mappings, by model.

    It is over strong scaling. ``loss`` is relative and over all steps. ``parameters`` is absolute
    and after the last step.
    """
    far = lambda a, b: max(
        float(np.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )
    differences = {}
    for name in dict.fromkeys(cell.model for _, cell in listed):
        first, *others = (
            measured[cell] for kind, cell in listed if (kind, cell.model) == ("strong", name)
        )
        if others:
            loss = max(float(np.abs(other.losses / first.losses - 1).max()) for other in others)
            parameters = max(far(other.params, first.params) for other in others)
            differences[name] = {"loss": loss, "parameters": parameters, "steps": len(first.losses)}
    return differences


# The script


def machine() -> dict[str, Any]:
    """The machine, its devices and the versions of what ran."""
    device = jax.devices()[0]
    kinds = {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "simulated": device.platform == "cpu",
    }
    counts = {
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpus": os.cpu_count(),
    }
    names = "jax", "jaxlib", "optax", "flax", "numpy"
    versions = {name: importlib.metadata.version(name) for name in names} | {
        "python": platform.python_version()
    }
    return {**kinds, **counts, "cpu": platform.machine(), "versions": versions}


LEAST = {
    **dict.fromkeys(("global_batch", "per_device_batch", "pixels", "latent"), 1),
    **{"steps": 1, "heartbeat": 1, "rounds": 0},
}


def check(settings: Settings) -> None:
    """Raises ValueError for a number that makes no sense."""
    for name, least in LEAST.items():
        value = getattr(settings, name)
        if value < least:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} must be at least {least}; it was {value}")
    if not 0 < settings.utilization <= 1:
        raise ValueError(
            f"--utilization must be a share, above 0 and at most 1; it was {settings.utilization}"
        )
    if not 0 <= settings.latency < math.inf:
        raise ValueError(f"--latency must be finite and not negative; it was {settings.latency}")
    if min(settings.hidden, default=1) < 1:
        raise ValueError(f"--hidden must be widths of at least 1; they were {settings.hidden}")
    if not settings.mappings:
        raise ValueError(f"--mappings needs one of {', '.join(training.MAPPINGS)}")
    if min(settings.devices or (1,)) < 1:
        raise ValueError(f"--devices must be counts of at least 1; they were {settings.devices}")
    placed = settings.coordinator, settings.num_processes, settings.process_id
    if not settings.distributed and placed != (None, None, None):
        raise ValueError("--coordinator, --num-processes and --process-id belong to --distributed")


def started(settings: Settings) -> Settings:
    """Starts the devices, and fills in how many are measured.

    They are simulated ones where there are no others. One process holds every count, so that rounds
    can take turns, and one device has the thread pools of eight.
    """
    simulated = max(settings.devices or (SIMULATED,))
    if jax.config.jax_num_cpu_devices < simulated:  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", simulated)
    runs.Job(
        distributed=settings.distributed,
        coordinator=settings.coordinator,
        num_processes=settings.num_processes,
        process_id=settings.process_id,
        heartbeat=settings.heartbeat,
    ).join()
    doubled = (jax.process_count() * 2**i for i in itertools.count())
    there = itertools.takewhile(lambda n: n <= jax.device_count(), doubled)
    counts = tuple(sorted(set(settings.devices or there)))
    for count in counts:
        devices_of(count)
        if settings.global_batch % count:
            raise ValueError(
                f"--global-batch {settings.global_batch} does not divide over {count} devices"
            )
    return dataclasses.replace(settings, devices=counts)


def measured_of(settings: Settings, built: dict[str, Model]) -> dict[str, Any]:
    """All that is measured; nothing of it with no rounds."""
    counts = settings.devices or ()
    if not settings.rounds:
        return {"measurements": [], "invariance": {}, "communication": {}}
    listed = cells(settings, counts, list(built))
    measured = measure(settings, built, list(dict.fromkeys(cell for _, cell in listed)))
    return {
        "measurements": compared(listed, measured),
        "invariance": invariance(listed, measured),
        "communication": communication(settings, built) if max(counts) > 1 else {},
    }


def scale(settings: Annotated[Settings, tyro.conf.arg(name="")]) -> None:
    """Measures what data parallelism costs, and estimates on paper where it stops paying."""
    check(settings)
    if settings.model is not None:
        _estimate(settings)
        return
    settings = started(settings)
    for path in (settings.json, settings.plot):
        make = functools.partial(path.parent.mkdir, parents=True, exist_ok=True)
        processes.on_first(make)
    built = {"tiny": build(settings, (16,), 64, 2)}
    built["larger"] = build(settings, settings.hidden, settings.pixels, settings.latent)
    flops = {
        name: costs.step_flops(model.algorithm, *model.shapes(settings.global_batch))
        for name, model in built.items()
    }
    described = {
        name: {"parameters": model.parameters, "step_flops": flops[name]}
        for name, model in built.items()
    }
    result: scaling_tables.Result = {
        "settings": as_json(dataclasses.asdict(settings)),
        "machine": machine(),
        "models": described,
        **measured_of(settings, built),
        "estimate": estimates(
            settings, flops["larger"] or math.nan, 4 * built["larger"].parameters
        ),
    }
    result["statement"] = scaling_tables.statement(result)
    if processes.is_first():
        write_json(settings.json, result)
        scaling_tables.draw(settings.plot, result)
        scaling_tables.show(result)
        print(f"\nwritten: {settings.json}, {settings.plot}")


def _estimate(settings: Settings) -> None:
    """Prints and writes the estimate of one model."""
    result = model_estimates.estimate(settings.model or "", settings)
    settings.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings.json, as_json(result))
    model_estimates.show(result, settings)
    print(f"\nwritten: {settings.json}")


if __name__ == "__main__":
    run_function(scale)
