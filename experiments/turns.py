"""Processes of peers that take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from experiments import peers


def serve(pipe: Any, peer: str, work: peers.Work) -> None:
    """A peer's process.

    It sends the seconds that its start took, or what went wrong. Then it answers each number of
    images with the seconds that they took, and zero with the most memory that it held, in MB.
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
        """A number; nan, with the reason in ``missing``, if there is none."""
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
        """Images of the first turns: a batch of a likelihood, else an epoch.

        Some peers take nothing but whole ones.
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


def warm_up(turns: Sequence[Turns], images: Sequence[int]) -> None:
    """A turn of each, all at once, in which is compiled what depends on the number of images."""
    for turn, count in zip(turns, images, strict=True):
        if turn.missing is None:
            turn.pipe.send(count)
    for turn in turns:
        if turn.missing is None:
            turn.answer()


def take_turns(turns: Sequence[Turns], rounds: int, seconds: float) -> None:
    """Rounds, in each of which every peer that is there takes its turn."""
    there = [turn for turn in turns if turn.missing is None]
    warm_up(there, [turn.first() for turn in there])
    for turn in there:
        turn.calibrate(seconds)
    warm_up(there, [turn.images for turn in there])
    for _ in range(rounds):
        for turn in there:
            if turn.missing is None:
                turn.samples.append(turn.images / turn.take(turn.images))
