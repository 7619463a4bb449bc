"""On paper: what a model of any family keeps on a device and sends, under every mapping.

All follows from the shapes of the state, which nothing is computed for. A step's temporary memory
is XLA's analysis of a compiled step.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from experiments.interconnects import LINKS
from experiments.random_runs import run_on
from experiments.scaling_models import step_memory
from jaxvae import costs, runs
from jaxvae.command_line import parse
from jaxvae.runs.preparing import batch_shapes
from jaxvae.training.placements import cut

COUNTS = (1, 8, 64, 256)  # devices


Leaves = list[tuple[tuple[int, ...], int]]  # shape of each array, and bytes of an entry


class State(NamedTuple):
    """The arrays of a model's state, and the operations of a step."""

    params: Leaves  # of all players
    all: Leaves  # with averages and optimizers' states
    flops: float | None  # of a step for one example


def state_of(run: runs.Run) -> State:
    """The state of a run, by its shapes."""
    state = jax.eval_shape(run.init_state)
    flops = costs.step_flops(run.built.algorithm, state, batch_shapes(run))
    leaves = lambda tree: [(leaf.shape, leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree)]
    of_example = None if flops is None else flops / run.config.batch_size
    return State(leaves(state.params), leaves(state), of_example)


def _bytes(leaves: Leaves, parts: int) -> tuple[int, int]:
    """The bytes of arrays that are cut into so many parts, and of those that stay whole."""
    size = lambda leaf: math.prod(leaf[0]) * leaf[1]
    in_parts = [leaf for leaf in leaves if "model" in cut(*leaf, parts)]
    of_cut = sum(map(size, in_parts))
    return of_cut, sum(map(size, leaves)) - of_cut


def on_device(state: State, parts: int) -> int:
    """The bytes of the state on a device, in so many parts."""
    of_cut, whole = _bytes(state.all, parts)
    return of_cut // parts + whole


def sent(state: State, copies: int, parts: int) -> float:
    """The bytes that a device sends in a step, by rings.

    For n = c m devices, c copies in m parts each, with U bytes of parameters that are cut and V
    that are not, it is the sum of 2 (m - 1) / m U to gather the parts in both passes, (m - 1) / m U
    to add up gradients and scatter them, 2 (c - 1) / c U / m to add these up over the copies, and
    2 (n - 1) / n V for the other gradients.
    """
    of_cut, whole = _bytes(state.params, parts)
    around = lambda n: (n - 1) / n
    over_copies = 2 * around(copies) * of_cut / parts
    return 3 * around(parts) * of_cut + over_copies + 2 * around(copies * parts) * whole


def rows(state: State, counts: Sequence[int] = COUNTS) -> list[dict[str, Any]]:
    """Bytes of the state on a device and bytes that it sends, for each number of devices."""
    return [
        {
            "devices": n,
            "whole_bytes": on_device(state, 1),
            "whole_sent": sent(state, n, 1),
            "cut_bytes": on_device(state, n),
            "cut_sent": sent(state, 1, n),
        }
        for n in counts
    ]


def links(state: State, batch: int, settings: Any, temporary: float | None) -> list[dict[str, Any]]:
    """What to do on each kind of devices: the fewest parts that fit, and the batch that pays.

    ``batch`` is the batch of one device. ``temporary`` are bytes for one example; without them a
    state may fill half of a device.
    """
    said = []
    for name, link in LINKS.items():
        room = link.memory / 2 if temporary is None else link.memory - batch * temporary
        parts = next((p for p in _powers(link.most) if on_device(state, p) <= room), None)
        row: dict[str, Any] = {"hardware": name, "parts": parts}
        if parts is not None and state.flops:
            speed = settings.utilization * costs.PEAK_FLOPS[link.kind][settings.precision]
            seconds = sent(state, max(8 // parts, 1), parts) / link.bandwidth
            row |= {"least_batch": seconds * speed / state.flops}
        said.append(row)
    return said


def _powers(most: int | None) -> list[int]:
    """1, 2, 4, ... devices, as far as a link joins them."""
    return [2**i for i in range(int(math.log2(min(most or 1024, 1024))) + 1)]


def estimate(model: str, settings: Any) -> dict[str, Any]:
    """The estimate of a preset with flags, as ``jaxvae train`` takes them.

    Raises ValueError for an unknown preset or flag.
    """
    command = parse(shlex.split(model), "--model")
    run = run_on(command.config, settings.shape, examples=max(64, command.config.batch_size))
    state, batch = state_of(run), settings.per_device_batch
    temporary = None
    if settings.compile:
        example = run.init_arguments()[1]
        few, many = (
            step_memory(run.built.algorithm, 1, example, size).temporary
            for size in (batch, 2 * batch)
        )
        temporary = max(many - few, 0) / batch
    return {
        "model": model,
        "parameters": sum(math.prod(shape) for shape, _ in state.params),
        "parameter_bytes": sum(_bytes(state.params, 1)),
        "state_bytes": on_device(state, 1),
        "flops_per_example": state.flops,
        "temporary_bytes_per_example": temporary,
        "devices": rows(state),
        "hardware": links(state, batch, settings, temporary),
    }


def show(result: dict[str, Any], settings: Any) -> None:
    """Prints an estimate."""
    flops, temporary = result["flops_per_example"], result["temporary_bytes_per_example"]
    print(
        f"\n{result['model']}, images of {'x'.join(map(str, settings.shape))}: "
        f"{result['parameters']:,} parameters, {_size(result['parameter_bytes'])}; the whole state "
        f"has {_size(result['state_bytes'])}."
    )
    if flops:
        print(f"A step takes {flops / 1e9:.4g} GFLOP for one example.")
    if temporary is not None:
        print(f"It needs {_size(temporary)} beside the state for one example, as compiled here.")
    print("\n            whole state on each device       cut by fsdp")
    print("devices     on a device     sent a step     on a device     sent a step")
    for row in result["devices"]:
        sizes = (row[name] for name in ("whole_bytes", "whole_sent", "cut_bytes", "cut_sent"))
        print(f"{row['devices']:7}" + "".join(f"{_size(size):>16}" for size in sizes))
    print(f"\nWith {settings.per_device_batch} examples on each device:")
    print("                          parts that fit    examples that pay on 8")
    for row in result["hardware"]:
        parts = row["parts"] or "none"
        least = f"{row['least_batch']:,.0f}" if "least_batch" in row else "-"
        print(f"{row['hardware']:26}{parts:>14}{least:>26}")


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,.0f} B"
