"""Measures images/s of this library and of its peers on the same work, side by side.

``python experiments/throughput.py [--works mlp conv] [--peers jaxvae torch] [--rounds 5] [--json
FILE] [--plot FILE]``; ``--help`` lists all. Peers are installed by ``pip install -e
'.[experiments,peers]'``; what is missing is left blank. Every peer has a process of its own, and
all take turns within a round, so that a busy machine slows all of them: what counts is the ratio
within a round. Training speeds include reading the data, and ours reports and checkpoints too.
``products`` does nothing but the matrix products of our step, as plain ones: what XLA could do at
best on that machine; ``torch.products`` has PyTorch do the same. The start of a peer is from its
process's first line to the end of its first step, without any cache of programs; memory is the most
that its process held. On an accelerator every row also has its roofline: the time that our step's
products would take at the device's peak, or its kernels' reads and writes at the speed of a large
copy, whichever is more. Results, and what was tried, are in SPEED.md.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.metadata
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import folders
import peers
import tyro

PACKAGES = ("jax", "flax", "numpyro", "torch", "pythae")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and where it is written."""

    works: tuple[str, ...] = ()
    """Beginnings of the names of works, such as mlp or conv; none is all but wide, which is for
    accelerators.
    """
    peers: tuple[str, ...] = tuple(peers.PEERS)
    """Who does them; scan is the bare loop over this library's step, steps calls it for every
    batch, products and torch.products are its products alone."""
    precisions: tuple[Literal["float32", "tensorfloat32", "bfloat16"], ...] = ("float32",)
    """How networks compute; bfloat16 is autocast in torch, and left out where a peer has no such
    thing.
    """
    together: int = 1
    """Rows whose processes all start at once, which is sooner done with many cores; their starts
    then say little.
    """
    rounds: int = 3
    """Rounds, in each of which every peer takes its turn."""
    seconds: float = 4.0
    """About the length of a turn."""
    json: Path = Path("throughput.json")
    """File for all numbers."""
    plot: Path = Path("throughput.png")
    """File for the figure."""


def serve(pipe: Any, peer: str, work: peers.Work) -> None:
    """A peer's process: sends the seconds that its start took, or what went wrong; then for each
    number of images the seconds, and for zero of them the most memory that it held, in MB.
    """
    began = time.perf_counter()
    silence = os.open(os.devnull, os.O_WRONLY)  # of progress bars and logs, whoever writes them
    for stream in (sys.stdout, sys.stderr):
        os.dup2(silence, stream.fileno())
    try:
        run = peers.PEERS[peer](work)
        if run is None:
            pipe.send("has no way to do this")
            return
        run(work.batch)
        pipe.send(time.perf_counter() - began)
        while count := pipe.recv():
            began = time.perf_counter()
            run(count)
            pipe.send(time.perf_counter() - began)
        unit = 2**20 if sys.platform == "darwin" else 2**10
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
    except ImportError as error:
        pipe.send(f"{error.name} is not installed")
    except Exception:
        pipe.send(traceback.format_exc(limit=-3))


class Turns:
    """A peer that waits for its turns."""

    def __init__(self, peer: str, work: peers.Work):
        context = multiprocessing.get_context("spawn")
        self.work, (self.pipe, theirs) = work, context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, peer, work), daemon=True)
        self.process.start()
        theirs.close()
        self.missing: str | None = None
        self.images, self.samples, self.memory = work.batch, list[float](), float("nan")
        self.start = float("nan")

    def ready(self) -> None:
        """Waits for the end of its first step."""
        self.start = self.answer()

    def answer(self) -> float:
        """A number; nan, with the reason in ``missing``, where there is none."""
        try:
            answer = self.pipe.recv()
        except EOFError:
            answer = "its process ended"
        if isinstance(answer, str):
            self.missing = answer
            return float("nan")
        return answer

    def take(self, images: int) -> float:
        """Seconds for some images."""
        self.pipe.send(images)
        return self.answer()

    def first(self) -> int:
        """Images of the first turns: whole batches of a likelihood and whole epochs, as some
        take no others.
        """
        return self.work.batch if self.work.task == "likelihood" else self.work.examples

    def calibrate(self, seconds: float) -> None:
        """Finds how many images fill a turn."""
        whole = self.first()
        most = self.work.examples if self.work.task == "likelihood" else sys.maxsize
        speed = whole / self.take(whole)
        if self.missing is None:
            self.images = min(max(round(speed * seconds / whole), 1) * whole, most)

    def cell(self) -> dict[str, Any]:
        """What was measured."""
        if self.missing:
            return {"missing": self.missing}
        return {
            "images_per_second": self.samples,
            "start_seconds": self.start,
            "peak_megabytes": self.memory,
        }

    def close(self) -> None:
        """Ends the process."""
        if self.process.is_alive() and self.missing is None:
            self.memory = self.take(0)
        self.process.join(5)
        self.process.terminate()


def measure(
    works: dict[str, peers.Work], settings: Settings, rates: dict[str, Any]
) -> dict[str, Any]:
    """For each work images/s of every peer in every round, its start and its memory, and what an
    image costs.

    All of the works' processes are there at once, and take turns.
    """
    turns: dict[tuple[str, str], Turns] = {}
    try:
        for name, work in works.items():
            for peer in settings.peers:
                turns[name, peer] = Turns(peer, work)
                if settings.together == 1:
                    turns[name, peer].ready()
        walls = dict(zip(works, limits(list(works.values()), rates), strict=True))
        for turn in turns.values():
            if settings.together > 1:
                turn.ready()
        there = [turn for turn in turns.values() if turn.missing is None]
        warm_up(there, [turn.first() for turn in there])
        for turn in there:
            turn.calibrate(settings.seconds)
        warm_up(there, [turn.images for turn in there])
        for _ in range(settings.rounds):
            for turn in there:
                if turn.missing is None:
                    turn.samples.append(turn.images / turn.take(turn.images))
    finally:
        for turn in turns.values():
            turn.close()
    return {
        name: walls[name] | {peer: turns[name, peer].cell() for peer in settings.peers}
        for name in works
    }


def warm_up(turns: list[Turns], images: list[int]) -> None:
    """A turn of each, all at once, in which is compiled what depends on the number of images."""
    for turn, count in zip(turns, images, strict=True):
        if turn.missing is None:
            turn.pipe.send(count)
    for turn in turns:
        if turn.missing is None:
            turn.answer()


def apart(function: Callable, *each: Any, processes: int = 1) -> list[Any]:
    """The function's values for each argument, from processes of their own."""
    with concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn")
    ) as pool:
        return list(pool.map(function, each))


def limits(works: list[peers.Work], rates: dict[str, Any]) -> list[dict[str, Any]]:
    """What an image costs, and the least seconds for it: of its products at the peak, of its
    bytes as in a copy.
    """
    if any(rates[work.precision] is None for work in works):
        return [{} for _ in works]
    costs = apart(peers.cost, *works, processes=len(works))
    own = [rates[work.precision] for work in works]
    walls = [
        {"products": c["flops"] / r["peak"], "memory": c["bytes"] / r["copy"]}
        for c, r in zip(costs, own, strict=True)
    ]
    return [{"limit": cost | wall} for cost, wall in zip(costs, walls, strict=True)]


def share(limit: dict[str, float], images_per_second: float) -> str:
    """How near a speed is to what the device could do."""
    wall = max(("products", "memory"), key=limit.__getitem__)
    return (
        f"  an image: {limit['flops'] / 1e9:.4g} GFLOP, {limit['bytes'] / 1e6:.4g} MB; ours is at "
        f"{limit['products'] * images_per_second:.1%} of the peak, "
        f"{limit[wall] * images_per_second:.1%} of the roofline ({wall})"
    )


def ratios(
    row: dict[str, Any], ours: str = "jaxvae", theirs: tuple[str, ...] = ()
) -> dict[str, float]:
    """Medians over the rounds of our speed over each other's."""
    speed = {
        peer: cell["images_per_second"]
        for peer, cell in row.items()
        if cell.get("images_per_second")
    }
    if ours not in speed:
        return {}
    each = {peer: zip(speed[ours], own, strict=True) for peer, own in speed.items() if peer != ours}
    return {peer: statistics.median(a / b for a, b in pairs) for peer, pairs in each.items()}


def table(rows: dict[str, Any], settings: Settings) -> str:
    """Medians [lowest, highest], and our ratio to the best other library."""
    lines = []
    for name, row in rows.items():
        lines.append(name)
        against = ratios(row)
        for peer in settings.peers:
            cell = row[peer]
            if "missing" in cell:
                lines.append(f"  {peer:<14} {cell['missing'].strip().splitlines()[-1]}")
                continue
            speeds = cell["images_per_second"]
            spread = (
                f"{statistics.median(speeds):>10,.0f}  [{min(speeds):,.0f}, {max(speeds):,.0f}]"
            )
            ratio = f"  ours is {against[peer]:.2f} of it" if peer in against else ""
            start = f"start {cell['start_seconds']:.1f} s, {cell['peak_megabytes']:,.0f} MB"
            lines.append(f"  {peer:<14} {spread} images/s, {start}{ratio}")
        if "limit" in row and "images_per_second" in row.get("jaxvae", {}):
            lines.append(share(row["limit"], statistics.median(row["jaxvae"]["images_per_second"])))
        libraries = [against[peer] for peer in against if peer not in peers.NO_LIBRARIES]
        if libraries:
            lines.append(f"  ours to the best library: {min(libraries):.2f}")
    return "\n".join(lines)


def draw(path: Path, rows: dict[str, Any], settings: Settings) -> None:
    """A bar for every peer in every row, as a share of the fastest."""
    import numpy as np
    from matplotlib.figure import Figure

    names = list(rows)
    figure = Figure(figsize=(8, 1.2 + 0.75 * len(names)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(settings.peers)
    best = [
        max(
            (
                statistics.median(c["images_per_second"])
                for c in row.values()
                if "images_per_second" in c
            ),
            default=np.nan,
        )
        for row in rows.values()
    ]
    for k, peer in enumerate(settings.peers):
        cells = [rows[name][peer].get("images_per_second", [np.nan]) for name in names]
        middle = np.array([statistics.median(cell) for cell in cells])
        low, high = (np.array([bound(cell) for cell in cells]) for bound in (min, max))
        y = np.arange(len(names)) + (k - (len(settings.peers) - 1) / 2) * height
        axes.barh(
            y,
            middle / best,
            height,
            label=peer,
            xerr=[(middle - low) / best, (high - middle) / best],
            error_kw={"lw": 0.8},
        )
        for at, share, value in zip(y, middle / best, middle, strict=True):
            if np.isfinite(share):
                axes.text(0.01, at, f"{value:,.0f}", va="center", fontsize=5.5, color="white")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(
        "images/s, as a share of the fastest; bars show the lowest and highest round", fontsize=8
    )
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)


def versions() -> dict[str, str | None]:
    """Of the libraries that are compared."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def main(settings: Annotated[Settings, tyro.conf.arg(name="")]) -> None:
    """Measures, prints and writes it all."""
    unknown = set(settings.peers) - set(peers.PEERS)
    known = peers.WORKS | peers.LARGE
    chosen = {
        name: known[name]
        for start in settings.works or peers.WORKS
        for name in known
        if name.startswith(start)
    }
    if unknown or not chosen:
        what = (
            f"peer {sorted(unknown)[0]!r}"
            if unknown
            else f"work that begins with {' or '.join(settings.works)}"
        )
        raise ValueError(
            f"no {what}; peers are {', '.join(peers.PEERS)}; works are {'; '.join(known)}"
        )
    if settings.rounds < 1 or settings.together < 1 or settings.seconds <= 0:
        raise ValueError(
            "--rounds, --together and --seconds must be above 0; "
            f"they were {settings.rounds}, {settings.together}, {settings.seconds}"
        )
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    os.environ.setdefault(
        "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
    )  # processes that share a GPU share its memory
    in_words = lambda precision: "" if precision == "float32" else f", {precision}"
    each = [
        (name + in_words(precision), work._replace(precision=precision))
        for name, work in chosen.items()
        for precision in settings.precisions
    ]
    rates = {precision: apart(peers.rates, precision)[0] for precision in settings.precisions}
    for precision, rate in rates.items():
        if rate:
            rate_in = lambda name, rate=rate: f"{rate[name] / 1e12:.3g}"
            print(
                f"{precision}: peak {rate_in('peak')} TFLOP/s, a large product {rate_in('product')} TFLOP/s, "
                f"a large copy {rate_in('copy')} TB/s"
            )
    rows: dict[str, Any] = {}
    for first in range(0, len(each), settings.together):
        rows |= (found := measure(dict(each[first : first + settings.together]), settings, rates))
        print(table(found, settings), flush=True)
        text = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(settings).items()
        }
        folders.write_json(
            settings.json,
            {
                "machine": machine,
                "versions": versions(),
                "rates": rates,
                "settings": text,
                "rows": rows,
            },
        )
    draw(settings.plot, rows, settings)
    print(f"\nwritten: {settings.json}, {settings.plot}")


if __name__ == "__main__":
    import commands

    commands.command(main)
