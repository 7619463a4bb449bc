"""Measures what data parallelism costs, and estimates on paper where it stops paying.

``python experiments/scaling.py [--devices 1 2 4 8] [--hidden 512 512] [--json FILE] [--plot
FILE]``; ``--help`` lists all. On accelerators it uses the real devices, on a CPU it simulates them,
and its last lines say what that can and cannot tell about a pod.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import math
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import commands
import config as setup
import folders
import jax
import jax.numpy as jnp
import numpy as np
import optax
import train
import tyro
import wiring
from jax.sharding import PartitionSpec

from jaxvae import (
    costs,
    datasets,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    processes,
    training,
)
from jaxvae.training.devices import AXIS, Placement

SIMULATED = 8  # devices, where there are no real ones


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, on how many devices, and where it is written."""

    devices: tuple[int, ...] | None = None
    """Device counts, of all processes together; None is 1, 2, 4, ... as far as there are devices
    (8 on a CPU).
    """
    global_batch: int = 256
    """Examples in a batch of all devices, in strong scaling."""
    per_device_batch: int = 32
    """Examples in a batch of each device, in weak scaling."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the larger model's hidden layers; the tiny one is 64-16-2-16-64."""
    pixels: int = 784
    """Pixels of the larger model's images."""
    latent: int = 32
    """Latent dimensions of the larger model."""
    precision: Literal[tuple(networks.PRECISIONS)] = "float32"  # type: ignore[valid-type]
    """How the networks compute, in the measurement and in the estimate."""
    mappings: tuple[Literal[training.MAPPINGS], ...] = training.MAPPINGS  # type: ignore[valid-type]
    """How several devices are used."""
    steps: int = 10
    """Training steps in one dispatch, which is what is timed."""
    rounds: int = 7
    """Timed dispatches of each setting; 0 prints the estimate alone."""
    seed: int = 0
    """Seed of parameters, images and noise."""
    utilization: float = 0.4
    """Share of its peak that a device is assumed to compute at, in the estimate."""
    latency: float = 1e-6
    """Seconds that a message is assumed to need for one hop, in the estimate."""
    json: Path = Path("scaling.json")
    """File for all numbers."""
    plot: Path = Path("scaling.png")
    """File for the figure."""
    distributed: bool = False
    """Join a job of several processes, with the next four as in train.py."""
    coordinator: str | None = None
    """Address HOST:PORT of process 0."""
    num_processes: int | None = None
    """Processes in the job."""
    process_id: int | None = None
    """Number of this process, from 0."""
    heartbeat: int = 100
    """Seconds after which a process that is not heard of ends the whole job."""


# ---- the estimate on paper


class Link(NamedTuple):
    """How devices of a kind of ``costs.PEAK_FLOPS`` are joined."""

    kind: str
    bandwidth: float  # bytes per second that a ring through the devices carries past any point, in one direction
    most: int | None  # devices that it joins


# Half of what the vendors call bidirectional. 400 Gb/s InfiniBand is 50 GB/s each way; a DGX H100
# has eight such ports for its eight GPUs, and NCCL leaves the node through all of them at once.
LINKS = {
    "TPU v5e slice": Link("TPU v5e", 400e9 / 2, 256),  # docs.cloud.google.com/tpu/docs/v5e
    "TPU v5p slice": Link(
        "TPU v5p", 1200e9 / 2, 6144
    ),  # docs.cloud.google.com/tpu/docs/v5p, the largest job
    "A100 SXM, NVLink": Link(
        "NVIDIA A100-SXM4-80GB", 600e9 / 2, 8
    ),  # NVIDIA A100 datasheet; a DGX A100 has 8
    "H100 SXM, NVLink": Link(
        "NVIDIA H100 80GB HBM3", 900e9 / 2, 8
    ),  # NVIDIA H100 datasheet; a DGX H100 has 8
    "H100 nodes, 8 x 400 Gb/s": Link(
        "NVIDIA H100 80GB HBM3", 8 * 50e9, None
    ),  # NVIDIA DGX H100 user guide, table 6
    "H100 nodes, 1 x 400 Gb/s": Link("NVIDIA H100 80GB HBM3", 50e9, None),
}


def all_reduce_seconds(
    devices: float, size: float, bandwidth: float, latency: float = 0.0
) -> float:
    """Time of a ring all-reduce (Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).

    t = 2 (n - 1) (V / (n W) + a), for V bytes on each of n devices, W bytes/s from each to the
    next, a seconds a hop.
    """
    return 2 * (devices - 1) * (size / (devices * bandwidth) + latency)


def break_even_devices(
    flops: float, size: float, speed: float, bandwidth: float, latency: float = 0.0
) -> float:
    """The number of devices n* on which a global batch is computed in the time of its all-reduce.

    F / (n s) = 2 (n - 1) (V / (n W) + a) has the root n* = 1 + C / (v + a + sqrt((v + a)^2 + 2 a
    C)), with C = F / s and v = V / W: for F operations in a step of the global batch and s
    operations/s on a device. On n* devices that do not compute while they communicate, half of the
    time is lost; on more, most of it.
    """
    compute, passage = flops / speed, size / bandwidth
    return 1 + compute / (
        passage + latency + math.sqrt((passage + latency) ** 2 + 2 * latency * compute)
    )


def break_even_batch(
    devices: float, flops: float, size: float, speed: float, bandwidth: float, latency: float = 0.0
) -> float:
    """The examples per device b* whose computation takes as long as the all-reduce: b* = t s / f.

    ``flops`` are the operations f of a step for one example. Fully connected layers of P parameters
    have f = 6 P and V = 4 P, so that on many devices without latency b* = 4 s / (3 W), whatever the
    model.
    """
    return all_reduce_seconds(devices, size, bandwidth, latency) * speed / flops


def estimates(settings: Settings, flops: float, size: int) -> list[dict[str, Any]]:
    """A row for each of ``LINKS``: n* of the global batch, and b* on 8 and 256 devices where the
    link joins as many.
    """
    rows = []
    for name, link in LINKS.items():
        peak = costs.PEAK_FLOPS[link.kind][settings.precision]
        speed = settings.utilization * peak
        cost = size, speed, link.bandwidth, settings.latency
        row = {
            "hardware": name,
            "peak_flops": peak,
            "bandwidth": link.bandwidth,
            "most_devices": link.most,
        }
        row["break_even_devices"] = break_even_devices(flops, *cost)
        for n in (8, 256):
            joined = n <= (link.most or n)
            row[f"break_even_batch_{n}"] = (
                break_even_batch(n, flops / settings.global_batch, *cost) if joined else None
            )
        rows.append(row)
    return rows


# ---- models and settings that are measured


class Model(NamedTuple):
    """An algorithm, and what it is trained on."""

    algorithm: training.Algorithm
    examples: np.ndarray  # [N, pixels] of 0 and 1
    parameters: int

    def initial(self, seed: int) -> Any:
        """The state before the first step."""
        return jax.jit(self.algorithm.init)(jax.random.key(seed), self.examples[0])

    def shapes(self, batch: int) -> tuple[Any, training.Batch]:
        """The shapes of the state and of a batch."""
        shaped = lambda shape, dtype: jax.ShapeDtypeStruct((batch, *shape), dtype)
        x = shaped(self.examples.shape[1:], self.examples.dtype)
        state = jax.eval_shape(self.algorithm.init, jax.random.key(0), self.examples[0])
        return state, training.Batch(x, shaped((), jnp.int32), shaped((), jnp.float32))


def build(settings: Settings, hidden: Sequence[int], pixels: int, latent: int) -> Model:
    """A Bernoulli VAE of random binary images, trained with Adam."""
    posterior, likelihood = posteriors.normal(latent), likelihoods.bernoulli()
    encoder = networks.with_precision(networks.mlp(hidden, posterior.size), settings.precision)
    decoder = networks.with_precision(networks.mlp(hidden[::-1], (pixels,)), settings.precision)
    vae = models.vae(encoder, decoder, posterior, likelihood, priors.standard_normal(latent))
    preprocess = datasets.preprocessing("static", 2)
    loss = training.preprocessed(preprocess, training.batch_mean(models.negative_elbo(vae)))
    algorithm = training.gradient_descent(
        lambda key, x: vae.init(key, preprocess(key, x)), loss, optax.adam(1e-3)
    )
    images = np.random.default_rng(settings.seed).integers(0, 2, (1024, pixels), dtype=np.uint8)
    state = jax.eval_shape(algorithm.init, jax.random.key(0), images[0])
    return Model(algorithm, images, sum(leaf.size for leaf in jax.tree.leaves(state.params)))


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


# ---- what simulation tells exactly: the program


def step_program(model: Model, devices: Sequence[jax.Device], batch: int) -> str:
    """The HLO of one training step as it was compiled for the devices; ``pmap`` makes the same
    of it.
    """
    specs, mesh = (PartitionSpec(), PartitionSpec(AXIS)), Placement(devices).mesh
    step = lambda state, batch: model.algorithm.step(state, batch, AXIS)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
    return jax.jit(mapped).lower(*model.shapes(batch)).compile().as_text()


def all_reduces(program: str) -> list[int]:
    """The bytes of every all-reduce in a text of HLO: of its result, whose shape is that of its
    operands.
    """
    results = re.findall(r" = (.+?) all-reduce(?:-start)?\(", program)
    return [sum(map(_bytes, re.findall(r"(\w+)\[([\d,]*)\]", result))) for result in results]


def _bytes(shape: tuple[str, str]) -> int:
    dtype, dimensions = shape
    bits = re.search(r"\d+", dtype)
    return math.prod(int(d) for d in dimensions.split(",") if d) * (
        int(bits[0]) // 8 if bits else 1
    )


def communication(settings: Settings, built: dict[str, Model]) -> dict[str, dict[str, int]]:
    """What each model's step sends on the most devices: its all-reduces, and how much of them
    are gradients.
    """
    said, devices = {}, devices_of(max(settings.devices))
    for name, model in built.items():
        sizes = all_reduces(step_program(model, devices, settings.per_device_batch * len(devices)))
        counts = {"devices": len(devices), "all_reduces": len(sizes), "bytes": sum(sizes)}
        said[name] = counts | {"gradient_bytes": 4 * model.parameters}
    return said


# ---- the measurement


def devices_of(count: int) -> list[jax.Device]:
    """So many devices, equally many of each process."""
    return train.devices_of(setup.Config(devices=count))


def dispatches(
    settings: Settings, model: Model, cell: Cell
) -> Callable[[], tuple[Any, np.ndarray]]:
    """A function that takes the next steps of a training in one dispatch, waits, and returns the
    state and the losses.

    It calls the compiled loop that ``training.fit`` calls. All cells of a model start from one
    state, and cells with the same batch take the same steps. Because each dispatch is waited for,
    none is queued behind another.
    """
    layout = Placement(devices_of(cell.devices), "pmap" if cell.mapping == "jit" else cell.mapping)
    run = training.run_steps(model.algorithm, layout)
    held, state = layout.replicated((model.examples, model.initial(settings.seed)))
    shape = settings.steps, cell.batch
    rows = np.arange(math.prod(shape), dtype=np.int32).reshape(shape) % len(model.examples)
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
    """Times every cell once in each round, there and back, so that what else the machine does
    meets all alike.
    """
    from tqdm import tqdm

    quiet = not processes.is_first()
    run, seconds, losses, params = {}, {cell: [] for cell in chosen}, {}, {}
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
    """A row for each cell, next to the fewest devices of its model and kind of scaling; ratios are
    within a round.

    ``added_ms`` is what a step takes longer, ``throughput`` the ratio of examples per second.
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
    """How far the same training differs at most between device counts and mappings: by model, over
    strong scaling.

    ``loss`` is relative, over all steps; ``parameters`` is absolute, after the last one.
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


# ---- what is written and said


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


def statement(result: dict[str, Any]) -> list[str]:
    """What was measured and what it means, in sentences."""
    here, settings, said = result["machine"], result["settings"], []
    if result["measurements"]:
        kind = (
            f"simulated devices on {here['cpus']} CPU cores"
            if here["simulated"]
            else here["device_kind"]
        )
        said.append(
            f"Measured: the time of a training step on {', '.join(map(str, settings['devices']))} {kind}, medians of "
            f"{settings['rounds']} interleaved rounds of {settings['steps']} steps, next to the fewest devices in the "
            "same round."
        )
    for name, far in result["invariance"].items():
        said.append(
            f"Over {far['steps']} steps of Adam, the {name} model's losses differ by at most {far['loss']:.1e} "
            f"(relative) between device counts and mappings, its parameters after them by {far['parameters']:.1e}."
        )
    if here["simulated"] and result["measurements"]:
        said += [
            "What simulation can say, exactly: which program every device runs, how many bytes it sends in a step, and "
            "that the result does not depend on the number of devices.",
            f"What it cannot say: how fast a pod is. Simulated devices share {here['cpus']} cores and one memory, each "
            "makes the whole update of all parameters, and a message is a copy in memory. The best to hope for here is "
            "the throughput of one device, not n times that; the added time is what tests on such a machine pay, and "
            "measures no interconnect.",
        ]
    said.append(
        f"The estimate is arithmetic: {settings['utilization']:.0%} of the vendors' peak in {settings['precision']}, "
        f"one ring, {settings['latency'] * 1e6:g} µs a hop, no computing while communicating. Small models reach less "
        "than that share of the peak, and a step has costs that neither term counts."
    )
    return said


def show(result: dict[str, Any]) -> None:
    """Prints the tables and the statement."""
    if result["measurements"]:
        print(
            "\nmodel   scaling  mapping    devices  batch  ms a step [quartiles]   added  throughput"
        )
    for row in result["measurements"]:
        step, added, throughput = (
            row["step_ms"],
            row["added_ms"]["median"],
            row["throughput"]["median"],
        )
        place = f"{row['model']:8}{row['scaling']:9}{row['mapping']:11}{row['devices']:7}{row['batch']:7}  "
        quartiles = f"[{step['q25']:.2f}, {step['q75']:.2f}]"
        print(f"{place}{step['median']:6.2f} {quartiles:16}{added:7.2f}{throughput:12.2f}")
    for name, sent in result["communication"].items():
        print(
            f"{name} model on {sent['devices']} devices: {sent['all_reduces']} all-reduces in a step, of "
            f"{sent['bytes']:,} bytes; {sent['gradient_bytes']:,} of them are gradients"
        )
    larger, settings = result["models"]["larger"], result["settings"]
    print(
        f"\nOn paper, in {settings['precision']}: {larger['parameters']:,} parameters, {larger['step_flops']:.3g} "
        f"operations in a step of {settings['global_batch']} examples.\n"
        "The all-reduce takes as long as computing on n* devices for this global batch, or with b* examples on each.\n"
        "                          TFLOP/s   GB/s      n*  b* (n = 8)  b* (n = 256)"
    )
    for row in result["estimate"]:
        n, most = row["break_even_devices"], row["most_devices"]
        devices = f"{n:.1f}" if n <= (most or n) else f"> {most}"
        small, large = (
            f"{b:,.0f}" if b else "-"
            for b in (row["break_even_batch_8"], row["break_even_batch_256"])
        )
        rates = f"{row['peak_flops'] / 1e12:7,.0f}{row['bandwidth'] / 1e9:7,.0f}"
        print(f"{row['hardware']:26}{rates}{devices:>8}{small:>12}{large:>14}")
    print("\n" + "\n".join(result["statement"]))


def draw(path: Path, result: dict[str, Any]) -> None:
    """Writes the figure: strong scaling, weak scaling, and the estimate."""
    from matplotlib.figure import Figure

    kinds = ("strong", "weak") if result["measurements"] else ()
    figure = Figure(figsize=(3.5 * (len(kinds) + 1), 3.3), layout="constrained")
    *measured, estimated = np.ravel(figure.subplots(1, len(kinds) + 1))
    for axes, kind in zip(measured, kinds, strict=True):
        _draw_measured(axes, kind, result)
    _draw_estimate(estimated, result)
    figure.savefig(path, dpi=150)


def _draw_measured(axes: Any, kind: str, result: dict[str, Any]) -> None:
    """Medians and quartiles, over grey lines of what no cost at all would be."""
    from matplotlib.ticker import LogLocator

    settings, simulated = result["settings"], result["machine"]["simulated"]
    for (m, name), (k, mapping) in itertools.product(
        enumerate(result["models"]), enumerate(settings["mappings"])
    ):
        mine = lambda row, name=name, mapping=mapping: (
            row["model"] == name and row["mapping"] in (mapping, "jit")
        )
        rows = [row for row in result["measurements"] if row["scaling"] == kind and mine(row)]
        n, batch = (np.array([row[field] for row in rows]) for field in ("devices", "batch"))
        low, middle, high = (
            np.array([row["step_ms"][key] for row in rows]) for key in ("q25", "median", "q75")
        )
        style = {
            "color": f"C{m}",
            "ls": "-:"[k],
            "marker": "os"[k],
            "ms": 4,
            "lw": 1.2,
            "capsize": 2,
        }
        axes.errorbar(n, middle, [middle - low, high - middle], label=f"{name}, {mapping}", **style)
        work = batch if simulated else batch / n  # of the cores that do it
        axes.plot(
            n,
            middle[0] * work / work[0],
            color="0.7",
            lw=0.8,
            zorder=0,
            label=None if m or k else "no overhead",
        )
    batch = (
        f"{settings['global_batch']} in all"
        if kind == "strong"
        else f"{settings['per_device_batch']} per device"
    )
    axes.set_title(f"{kind} scaling: a batch of {batch}", fontsize=9)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="simulated devices" if simulated else "devices",
        ylabel="ms per step",
    )
    axes.set_xticks(settings["devices"], settings["devices"])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    if kind == "strong":
        axes.legend(fontsize=7, frameon=False)


def _draw_estimate(axes: Any, result: dict[str, Any]) -> None:
    """The share of a step that is not communication, t_compute / (t_compute + t_all_reduce)."""
    settings, model = result["settings"], result["models"]["larger"]
    for i, row in enumerate(result["estimate"]):
        n = np.geomspace(1, min(row["most_devices"] or 256, 256), 200)
        compute = model["step_flops"] / (settings["utilization"] * row["peak_flops"] * n)
        reduce = all_reduce_seconds(
            n, 4 * model["parameters"], row["bandwidth"], settings["latency"]
        )
        style = {"color": f"C{i}", "ls": "--" if row["most_devices"] == 8 else "-", "lw": 1.2}
        axes.plot(n, compute / (compute + reduce), label=row["hardware"], **style)
    axes.axhline(0.5, color="0.7", lw=0.8, zorder=0)
    axes.set_title(
        f"on paper: {model['parameters'] / 1e6:.3g} M parameters, batch of {settings['global_batch']}",
        fontsize=9,
    )
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="devices", ylabel="share of a step that computes")
    axes.set_xticks([1, 4, 16, 64, 256], [1, 4, 16, 64, 256])
    axes.minorticks_off()
    axes.legend(fontsize=6.5, frameon=False)


def check(settings: Settings) -> None:
    """Raises ValueError for a number that can mean nothing."""
    least = {
        "global_batch": 1,
        "per_device_batch": 1,
        "pixels": 1,
        "latent": 1,
        "steps": 1,
        "heartbeat": 1,
        "rounds": 0,
    }
    for name, bound in least.items():
        if getattr(settings, name) < bound:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} must be at least {bound}; it was {getattr(settings, name)}")
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


def started(settings: Settings) -> Settings:
    """Starts the devices, simulated ones where there are no others, and fills in how many are
    measured.

    One process holds every count, so that rounds can take turns and one device has the thread pools
    of eight.
    """
    simulated = max(settings.devices or (SIMULATED,))
    if jax.config.jax_num_cpu_devices < simulated:
        jax.config.update("jax_num_cpu_devices", simulated)
    wiring.join(settings)
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


def scale(settings: Annotated[Settings, tyro.conf.arg(name="")]) -> None:
    """Measures what data parallelism costs on 1, 2, 4, ... devices, and estimates on paper where
    it stops paying.
    """
    check(settings)
    settings = started(settings)
    for path in (settings.json, settings.plot):
        processes.on_first(lambda path=path: path.parent.mkdir(parents=True, exist_ok=True))
    built = {"tiny": build(settings, (16,), 64, 2)}
    built["larger"] = build(settings, settings.hidden, settings.pixels, settings.latent)
    listed = cells(settings, settings.devices, list(built)) if settings.rounds else []
    measured = (
        measure(settings, built, list(dict.fromkeys(cell for _, cell in listed))) if listed else {}
    )
    cost = lambda model: costs.step_flops(model.algorithm, *model.shapes(settings.global_batch))
    described = {
        name: {"parameters": m.parameters, "step_flops": cost(m)} for name, m in built.items()
    }
    larger = described["larger"]
    result = {
        "settings": dataclasses.asdict(settings)
        | {"json": str(settings.json), "plot": str(settings.plot)},
        "machine": machine(),
        "models": described,
        "measurements": compared(listed, measured),
        "invariance": invariance(listed, measured),
        "communication": communication(settings, built)
        if max(settings.devices) > 1 and settings.rounds
        else {},
        "estimate": estimates(settings, larger["step_flops"], 4 * larger["parameters"]),
    }
    result["statement"] = statement(result)
    if processes.is_first():
        folders.write_json(settings.json, result)
        draw(settings.plot, result)
        show(result)
        print(f"\nwritten: {settings.json}, {settings.plot}")


if __name__ == "__main__":
    commands.command(scale)
