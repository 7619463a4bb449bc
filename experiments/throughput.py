"""Measures images/s of this library and of its peers on the same work, side by side.

``python experiments/throughput.py [--works mlp conv] [--peers jaxvae torch] [--rounds 5]
[--json FILE] [--plot FILE]``; ``--help`` lists all. Peers are installed by ``pip install -e
'.[train,peers]'``; what is missing is left blank. Results, and what was tried, are in
SPEED.md.

Every peer has a process of its own, and all take turns within a round, so that a busy machine slows
all of them: what counts is the ratio within a round. Training speeds include reading the data, and
ours reports and checkpoints too. ``products`` does nothing but the matrix products of our step, as
plain ones: what XLA could do at best on that machine. ``torch.products`` has PyTorch do the same.
The start of a peer is from its process's first line to the end of its first step, its imports
included, without any cache of programs; memory is the most that its process held.

On an accelerator every row also has its roofline: the time that our step's products would take at
the device's peak, or its kernels' reads and writes at the speed of a large copy, whichever is more.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import concurrent.futures
import dataclasses
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments import peers
from experiments.turns import Turns, take_turns

PACKAGES = ("jax", "flax", "numpyro", "torch", "pythae")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and where it is written."""

    works: tuple[str, ...] = ()
    """Beginnings of the names of works, such as mlp or conv; none takes all but wide, which is for
    accelerators."""
    peers: tuple[str, ...] = tuple(peers.PEERS)
    """Peers that do the works; scan is the bare loop over this library's step, steps calls the step
    for every batch, and products and torch.products compute its matrix products only."""
    precisions: tuple[Literal["float32", "tensorfloat32", "bfloat16"], ...] = ("float32",)
    """Precision of the networks; bfloat16 is autocast in torch, and is left out if a peer does not
    have it."""
    together: int = 1
    """Rows whose processes all start at once, which is faster with many cores but makes the start
    times meaningless."""
    rounds: int = 3
    """Rounds, in each of which every peer takes its turn."""
    seconds: float = 4.0
    """About the seconds of a turn."""
    json: Path = Path("throughput.json")
    """File for all numbers."""
    plot: Path = Path("throughput.png")
    """File for the figure."""


# Measurement


def measure(
    works: dict[str, peers.Work], settings: Settings, rates: dict[str, Any]
) -> dict[str, Any]:
    """Images/s of every peer in every round, its start, memory and costs, for each work.

    The processes of a work take turns.
    """
    turns: dict[tuple[str, str], Turns] = {}
    try:
        for name, work in works.items():
            for peer in settings.peers:
                turns[name, peer] = Turns(peer, work)
                if settings.together == 1:
                    turns[name, peer].ready()
        walls = dict(zip(works, limits(list(works.values()), rates), strict=True))
        if settings.together > 1:
            for turn in turns.values():
                turn.ready()
        take_turns(list(turns.values()), settings.rounds, settings.seconds)
    finally:
        for turn in turns.values():
            turn.close()
    return {
        name: walls[name] | {peer: turns[name, peer].cell() for peer in settings.peers}
        for name in works
    }


def apart(function: Callable, *each: Any, processes: int = 1) -> list[Any]:
    """The function's values for each argument, from processes of their own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
        return list(pool.map(function, each))


def limits(works: Sequence[peers.Work], rates: dict[str, Any]) -> list[dict[str, Any]]:
    """What an image costs, and the least seconds for it: of its products, and of its bytes."""
    if any(rates[work.precision] is None for work in works):
        return [{} for _ in works]
    walls = []
    for work, cost in zip(works, apart(peers.cost, *works, processes=len(works)), strict=True):
        rate = rates[work.precision]
        wall = {"products": cost["flops"] / rate["peak"], "memory": cost["bytes"] / rate["copy"]}
        walls.append({"limit": cost | wall})
    return walls


# What is said


def share(limit: dict[str, float], images_per_second: float) -> str:
    """How near a speed is to what the device could do."""
    wall = max(("products", "memory"), key=limit.__getitem__)
    return (
        f"  an image: {limit['flops'] / 1e9:.4g} GFLOP, {limit['bytes'] / 1e6:.4g} MB; ours is at "
        f"{limit['products'] * images_per_second:.1%} of the peak, "
        f"{limit[wall] * images_per_second:.1%} of the roofline ({wall})"
    )


def ratios(row: dict[str, Any], ours: str = "jaxvae") -> dict[str, float]:
    """Medians over the rounds of our speed over each other's."""
    speeds = {peer: cell.get("images_per_second") for peer, cell in row.items()}
    if not speeds.get(ours):
        return {}
    rest = {peer: speed for peer, speed in speeds.items() if speed and peer != ours}
    return {
        peer: statistics.median(a / b for a, b in zip(speeds[ours], speed, strict=True))
        for peer, speed in rest.items()
    }


def table(rows: dict[str, Any], settings: Settings) -> str:
    """Medians [lowest, highest], and our ratio to the best other library."""
    lines = []
    for name, row in rows.items():
        beside = ratios(row)
        lines += [name, *(_line(peer, row[peer], beside.get(peer)) for peer in settings.peers)]
        speeds = row.get("jaxvae", {}).get("images_per_second")
        if "limit" in row and speeds:
            lines.append(share(row["limit"], statistics.median(speeds)))
        libraries = [beside[peer] for peer in beside if peer not in peers.NO_LIBRARIES]
        if libraries:
            lines.append(f"  ours to the best library: {min(libraries):.2f}")
    return "\n".join(lines)


def _line(peer: str, cell: dict[str, Any], ratio: float | None) -> str:
    if "missing" in cell:
        return f"  {peer:<14} {cell['missing'].strip().splitlines()[-1]}"
    speeds = cell["images_per_second"]
    spread = f"{statistics.median(speeds):>10,.0f}  [{min(speeds):,.0f}, {max(speeds):,.0f}]"
    start = f"start {cell['start_seconds']:.1f} s, {cell['peak_megabytes']:,.0f} MB"
    beside = "" if ratio is None else f"  ours is {ratio:.2f} of it"
    return f"  {peer:<14} {spread} images/s, {start}{beside}"


def draw(path: Path, rows: dict[str, Any], settings: Settings) -> None:
    """A bar for every peer in every row, as a share of the fastest."""
    import numpy as np
    from matplotlib.figure import Figure

    names, height = list(rows), 0.8 / len(settings.peers)
    figure = Figure(figsize=(8, 1.2 + 0.75 * len(names)), layout="constrained")
    axes: Any = figure.subplots()
    speeds = [
        [rows[name][peer].get("images_per_second", [np.nan]) for name in names]
        for peer in settings.peers
    ]
    low, middle, high = (
        np.array([[summary(cell) for cell in row] for row in speeds])
        for summary in (min, statistics.median, max)
    )
    best = np.nanmax(middle, 0) if np.isfinite(middle).any() else np.ones(len(names))
    for place, peer in enumerate(settings.peers):
        y = np.arange(len(names)) + (place - (len(settings.peers) - 1) / 2) * height
        shares = middle[place] / best
        ends = [(middle - low)[place] / best, (high - middle)[place] / best]
        axes.barh(y, shares, height, label=peer, xerr=ends, error_kw={"lw": 0.8})
        for at, portion, value in zip(y, shares, middle[place], strict=True):
            if np.isfinite(portion):
                axes.text(0.01, at, f"{value:,.0f}", va="center", fontsize=5.5, color="white")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    label = "images/s, as a share of the fastest; bars show the lowest and highest round"
    axes.set_xlabel(label, fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)


def versions() -> dict[str, str | None]:
    """The versions of the libraries that are compared."""
    installed: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


# The script


def there(work: peers.Work) -> bool:
    """Whether the library has the preset of a work, if it is one of a preset."""
    from jaxvae import families

    return work.network not in peers.PRESETS or work.network in families.presets()


def chosen(settings: Settings) -> dict[str, peers.Work]:
    """The works that were asked for, in each precision. Raises ValueError for unknown ones."""
    known = {name: work for name, work in (peers.WORKS | peers.LARGE).items() if there(work)}
    starts = settings.works or tuple(peers.WORKS)
    works = {name: work for name, work in known.items() if name.startswith(starts)}
    unknown = sorted(set(settings.peers) - set(peers.PEERS))
    if unknown or not works:
        start = " or ".join(settings.works)
        what = f"peer {unknown[0]!r}" if unknown else f"work that begins with {start}"
        raise ValueError(
            f"no {what}; peers are {', '.join(peers.PEERS)}; works are {'; '.join(known)}"
        )
    if settings.rounds < 1 or settings.together < 1 or settings.seconds <= 0:
        raise ValueError(
            "--rounds, --together and --seconds must be above 0; "
            f"they were {settings.rounds}, {settings.together}, {settings.seconds}"
        )
    return {
        name + ("" if precision == "float32" else f", {precision}"): work._replace(
            precision=precision
        )
        for name, work in works.items()
        for precision in settings.precisions
    }


def rates_of(settings: Settings) -> dict[str, Any]:
    """What the device could do in each precision; it is also printed."""
    rates: dict[str, Any] = {
        precision: apart(peers.rates, precision)[0] for precision in settings.precisions
    }
    for precision, rate in rates.items():
        if rate:
            tera = {name: f"{value / 1e12:.3g}" for name, value in rate.items()}
            print(
                f"{precision}: peak {tera['peak']} TFLOP/s, a large product {tera['product']} "
                f"TFLOP/s, a large copy {tera['copy']} TB/s"
            )
    return rates


def main(settings: Annotated[Settings, tyro.conf.arg(name="")]) -> None:
    """Measures, prints and writes it all."""
    from experiments.tables import as_json
    from jaxvae.runs.folders import write_json

    works = list(chosen(settings).items())
    # Processes that share a GPU share its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    record: dict[str, Any] = {
        "machine": {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "versions": versions(),
        "rates": rates_of(settings),
        "settings": as_json(dataclasses.asdict(settings)),
        "rows": {},
    }
    for first in range(0, len(works), settings.together):
        rows = measure(dict(works[first : first + settings.together]), settings, record["rates"])
        record["rows"] |= rows
        print(table(rows, settings), flush=True)
        write_json(settings.json, record)
    draw(settings.plot, record["rows"], settings)
    print(f"\nwritten: {settings.json}, {settings.plot}")


if __name__ == "__main__":  # the processes of peers import this file, and not all of them JAX
    from jaxvae.command_line import run_function

    run_function(main)
