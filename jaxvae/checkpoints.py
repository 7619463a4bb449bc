"""Checkpoints: Orbax with checksums, and an older one if the newest one is damaged.

A checkpoint is a folder ``300`` that Orbax writes, and a record ``300.json`` beside it. The record
has shape, type and checksum of every array, the sums of an unfinished report, and the metric by
which the best checkpoint is chosen. The record is written first. So a checkpoint that was cut short
or lost afterwards is missed by name.

If all devices hold the whole state, only the first process writes. It writes NumPy arrays in a
thread, so training waits only until the state is copied to the host. If arrays are cut over the
devices, every process writes the parts of its devices, and Orbax makes one checkpoint of them.
Either kind is restored on any devices. Typed keys are saved as their data.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import io
import logging
import math
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxvae import processes
from jaxvae.checksums import checksums
from jaxvae.handlers import alone, by_all, is_cut, key_data, placed, restore_args
from jaxvae.records import (
    DamagedError,
    check_model,
    described,
    named,
    read_record,
    write_record,
)

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs what it also raises
NEWEST = 2  # checkpoints that are kept beside the best one
DAMAGED = "damaged"  # folder that damaged checkpoints are moved to


class Checkpoints:
    """The checkpoints of a run in a folder, which keeps the newest two and the best one.

    >>> import tempfile, jax.numpy as jnp
    >>> state = {"params": {"w": jnp.arange(3.0)}, "optimizer": jnp.zeros(3)}
    >>> with Checkpoints(tempfile.mkdtemp()) as saved:
    ...     saved.save(300, state, totals={}, metric=-1.5)
    ...     saved.wait()
    ...     saved.restore_part(saved.best, {"params": {"w": jnp.zeros(3)}})
    {'params': {'w': Array([0., 1., 2.], dtype=float32)}}

    They are written in the background. In a job of several processes all of them call ``save``, and
    all restore, from a folder that all see. Use it as a context manager, or call ``close``, which
    waits for the last write.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).absolute()
        # A process that reads alone does not wait for others that found damage.
        self._checkpointer = ocp.Checkpointer(**alone())
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the last write, and closes Orbax."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._checkpointer.close()
            if "_together" in vars(self):
                self._together.close()

    @functools.cached_property
    def _together(self) -> ocp.AsyncCheckpointer:
        """Writes what several processes hold in parts."""
        return ocp.AsyncCheckpointer(**by_all())

    def wait(self) -> None:
        """Waits for the last write. Raises OSError if it has failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    @property
    def steps(self) -> list[int]:
        """All steps that have a checkpoint and its record, in order."""
        return sorted(_numbered(self.folder.glob("*")) & set(self._records()))

    @property
    def latest(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step with the highest metric, or None."""
        metrics = {
            step: metric for step in self.steps if (metric := self._metric(step)) is not None
        }
        return max(metrics, key=metrics.__getitem__, default=None)

    def save(
        self, step: int, state: Any, totals: dict[str, Any], metric: float | None = None
    ) -> None:
        """Saves a state in the background, with the sums of an unfinished report.

        The checkpoint with the highest ``metric`` is the best one; None and nan do not count. A
        step that has a checkpoint already keeps it. Raises OSError if the checkpoint before it
        could not be written.
        """
        self.wait()
        judged = metric if metric is not None and math.isfinite(metric) else None
        record = {
            "arrays": described(state),
            "totals": copy.deepcopy(totals),
            "metric": judged,
            "finished": False,
        }
        if any(map(is_cut, jax.tree.leaves(state))):
            if not processes.any_of(processes.is_first() and step in self.steps):
                self._save_together(step, key_data(state), record)
        elif processes.is_first() and step not in self.steps:
            # Copies are needed, because the next step overwrites the state.
            held = jax.tree.map(np.array, jax.device_get(key_data(processes.local(state))))
            self._writing = self._writer.submit(self._write, step, held, record)

    def _save_together(self, step: int, data: Any, record: dict[str, Any]) -> None:
        """Saves arrays that are cut over the devices, of which all processes write their parts."""
        _add_checksums(record, data)
        with self._told(step):
            processes.on_first(lambda: self._begin(step, record))
            # It returns once the arrays are in the host's memory.
            self._together.save(self.folder / str(step), ocp.args.PyTreeSave(data), force=True)
        self._writing = self._writer.submit(self._end_together, step, record)

    def _end_together(self, step: int, record: dict[str, Any]) -> None:
        with self._told(step):
            self._together.wait_until_finished()
            if processes.is_first():
                self._end(step, record)

    def _write(self, step: int, held: Any, record: dict[str, Any]) -> None:
        """Writes a checkpoint of arrays of the host."""
        with self._told(step):
            _add_checksums(record, held)
            self._begin(step, record)
            self._checkpointer.save(self.folder / str(step), ocp.args.PyTreeSave(held), force=True)
            self._end(step, record)

    def _begin(self, step: int, record: dict[str, Any]) -> None:
        """Writes the record of a checkpoint that will be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_record(self._record(step), record)

    def _end(self, step: int, record: dict[str, Any]) -> None:
        """Records that a checkpoint was written, and removes the ones that it replaces."""
        write_record(self._record(step), record | {"finished": True})
        self._prune()

    @contextlib.contextmanager
    def _told(self, step: int) -> Iterator[None]:
        """Names step and folder in an error of the file system.

        A lost process is no such error, because the job must then be started again.
        """
        lost = (jax.errors.JaxRuntimeError, TimeoutError) if jax.process_count() > 1 else ()
        try:
            yield
        except lost as error:
            raise RuntimeError(f"a process was lost while step {step} was saved") from error
        except Exception as error:
            raise OSError(
                f"the checkpoint of step {step} could not be written to {self.folder}: "
                f"{_short(error)}"
            ) from error

    def arrays(self, step: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of every array of a checkpoint, by names such as ``params/model/w``.

        They come from the record; no array is read. Raises DamagedError if the record cannot be
        read.
        """
        processes.on_first(self.wait)
        saved = read_record(self._record(step))["arrays"]
        return {name: (tuple(a["shape"]), a["dtype"]) for name, a in saved.items()}

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state of a step and the sums saved with it, structured and placed like ``like``.

        ``like`` is a state or its shapes. Shapes without a sharding mean the default device. Raises
        ValueError if the checkpoint is of another model, and DamagedError if it is damaged.
        """
        processes.on_first(self.wait)
        record = read_record(self._record(step))
        check_model(step, record["arrays"], described(like))
        return self._checked(step, like, record["arrays"]), record["totals"]

    def restore_part(self, step: int, like: Any) -> Any:
        """The arrays of a step that ``like`` has, which is a part of a state or its shapes.

        ``{"params": {"model": shapes}}`` restores the parameters of a model, whatever optimizer
        trained it. ``arrays`` tells which names there are, such as ``average``. Nothing else is
        read. It raises the errors of ``restore``, for these arrays only.
        """
        processes.on_first(self.wait)
        saved, asked = read_record(self._record(step))["arrays"], described(like)
        named = {name: saved[name] for name in asked if name in saved}
        check_model(step, named, asked)
        return self._checked(step, like, named, partial_restore=True)

    def _checked(
        self, step: int, like: Any, saved: dict[str, dict[str, Any]], **options: bool
    ) -> Any:
        """Reads the arrays of ``like``, compares them with their record and places them."""
        folder = self.folder / str(step)
        if not folder.is_dir():
            raise DamagedError(
                f"the checkpoint of step {step} is missing: {folder} is gone or was never finished"
            )
        data = key_data(like)
        held, reason = self._read(folder, data, **options)
        if processes.any_of(bool(reason)):
            reason = reason or "another process could not read it"
            raise DamagedError(f"the checkpoint of step {step} cannot be read: {reason} ({folder})")
        sums, now, meant = _checksums(held), described(held), described(data)
        same = lambda name: sums[name] == saved[name]["checksum"] and now[name] == meant[name]
        changed = sorted(name for name in meant if not same(name))
        if processes.any_of(bool(changed)):
            raise DamagedError(
                f"the checkpoint of step {step} is damaged: the checksums of {len(changed)} arrays "
                f"differ, the first is {changed[0] if changed else 'in another process'} ({folder})"
            )
        return jax.tree.map(placed, like, held)

    def restore_newest(
        self, like: Any, warn: Callable[[str], None], keep_damaged: bool = False
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Step, state and sums of the newest checkpoint that is not damaged.

        It is None if no checkpoint was ever finished. Each newer one that is damaged, cut short or
        missing is named to ``warn``. It is moved to the folder ``damaged``, unless
        ``keep_damaged``. Raises DamagedError if there were checkpoints and none can be read.
        """
        good: tuple[int, Any, dict[str, Any]] | None = None
        bad: list[int] = []
        lost = False
        processes.on_first(self.wait)
        for step in sorted(_numbered(self.folder.glob("*")) | set(self._records()), reverse=True):
            try:
                state, totals = self.restore(step, like)
                good = step, state, totals
                break
            except DamagedError as error:
                warn(str(error))
                bad.append(step)
                lost |= self._was_finished(step)
        if good is None and lost:
            raise DamagedError(
                f"{self.folder} holds no checkpoint that can be read, and training will not start "
                "over by itself. Put a good checkpoint back, or move the folder to begin again."
            )
        if not keep_damaged:
            processes.on_first(lambda: self._settle(bad, good and good[0]))
        return good

    def _read(self, folder: Path, like: Any, **options: bool) -> tuple[Any, str]:
        """The arrays of a state, or the reason why they cannot be read.

        They are in the host's memory, or on the devices that ``like`` cuts them over.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        where = jax.tree.map(restore_args, like)
        with _unheard():
            try:
                args = ocp.args.PyTreeRestore(shapes, restore_args=where, **options)
                return self._checkpointer.restore(folder, args), ""
            except Exception as error:
                reason = _short(error)
            for _ in range(4):  # the reads that Orbax has left under way fail when they end
                time.sleep(0.05)
                gc.collect()
        return None, reason

    def _record(self, step: int) -> Path:
        return self.folder / f"{step}.json"

    def _records(self) -> list[int]:
        return [int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdigit()]

    def _metric(self, step: int) -> float | None:
        try:
            return read_record(self._record(step))["metric"]
        except DamagedError:
            return None

    def _was_finished(self, step: int) -> bool:
        """Whether a checkpoint was finished once.

        It was if its folder is there, if its record says so, or if the record cannot be read.
        """
        try:
            return (self.folder / str(step)).exists() or read_record(self._record(step))["finished"]
        except DamagedError:
            return True

    def _prune(self) -> None:
        """Removes all checkpoints but the newest and the best, and unfinished ones."""
        steps = self.steps
        keep = {*steps[-NEWEST:], self.best}
        for step in set(self._records()) - keep:
            self._record(step).unlink(missing_ok=True)
        for path in self.folder.glob("*"):
            number, _, rest = path.name.partition(".")
            if path.is_dir() and number.isdigit() and (rest or int(number) not in keep):
                shutil.rmtree(path, ignore_errors=True)

    def _settle(self, bad: list[int], good: int | None) -> None:
        """Moves damaged checkpoints away, and records that the newest good one was finished."""
        for step in bad:
            for path in (self.folder / str(step), self._record(step)):
                if path.exists():
                    target = self.folder / DAMAGED / path.name
                    target.parent.mkdir(exist_ok=True)
                    shutil.rmtree(target, ignore_errors=True)
                    path.replace(target)
        if good is not None:
            write_record(self._record(good), read_record(self._record(good)) | {"finished": True})


def _numbered(paths: Iterable[Path]) -> set[int]:
    return {int(path.name) for path in paths if path.name.isdigit() and path.is_dir()}


def _checksums(tree: Any) -> dict[str, int]:
    by_name = named(tree)
    return dict(zip(by_name, checksums(list(by_name.values())), strict=True))


def _add_checksums(record: dict[str, Any], tree: Any) -> None:
    for name, checksum in _checksums(tree).items():
        record["arrays"][name]["checksum"] = checksum


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Hides what other threads and coroutines of a failed restore print beside the error."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook


def _short(error: Exception) -> str:
    """The system's words for an error of the system, else the beginning of the message."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    return " ".join(str(error).split())[:200] or type(error).__name__
