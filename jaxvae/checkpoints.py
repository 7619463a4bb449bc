"""Checkpoints: Orbax behind one thin door, with checksums and a way back when the newest one is damaged.

A checkpoint is a folder ``300`` that Orbax writes in the background, and a record ``300.json`` beside it: shapes, types
and CRC-32 of every array, the sums of an unfinished report and the metric by which the best is chosen. The record is
written first, so a checkpoint that was cut short or lost afterwards is missed by name.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import math
import os
import re
import shutil
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxvae import processes

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs what it also raises
NEWEST = 2  # checkpoints that are kept beside the best one
DAMAGED = "damaged"  # folder that damaged checkpoints are moved to


class DamagedError(ValueError):
    """A checkpoint that is not what was written; the message names it and says what is wrong."""


class Checkpoints:
    """The checkpoints of a run: the newest two and the best one are kept, written in the background.

    In a job of several processes all of them save and restore, in a folder that all see. Use it as a context manager,
    or call ``close``, which waits for what is being written.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).absolute()
        self._checkpointer = ocp.StandardCheckpointer()
        self._writing: tuple[int, dict[str, Any]] | None = None  # the step that is being written, and its record

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def wait(self) -> None:
        """Waits for what is being written, and removes what it replaces. Raises OSError if it could not be written."""
        if self._writing is None:
            return
        (step, record), self._writing = self._writing, None
        try:
            self._checkpointer.wait_until_finished()
            if processes.is_first():
                _write_record(self._record(step), record | {"finished": True})
                self._prune()
        except jax.errors.JaxRuntimeError:  # a lost process or a failed device, no fault of the file system
            raise
        except Exception as error:
            raise _unwritten(step, self.folder, error) from error

    @property
    def steps(self) -> list[int]:
        """All steps whose checkpoints are there in whole, in order."""
        return sorted(_numbered(self.folder.glob("*")) & set(self._records()))

    @property
    def latest(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step with the highest metric, or None."""
        metrics = {step: metric for step in self.steps if (metric := self._metric(step)) is not None}
        return max(metrics, key=metrics.__getitem__, default=None)

    def save(self, step: int, state: Any, totals: dict[str, Any], metric: float | None = None) -> None:
        """Saves a state in the background, with the metric of which the highest is best; None and nan never are.

        A step that is there already is left as it is. Raises OSError if this one or the one before it could not be
        written.
        """
        self.wait()
        if step in self.steps:
            return
        record: dict[str, Any] = {}
        try:
            if processes.is_first():
                judged = metric if metric is not None and math.isfinite(metric) else None
                record = {"arrays": _described(state), "totals": totals, "metric": judged, "finished": False}
                self.folder.mkdir(parents=True, exist_ok=True)
                _write_record(self._record(step), record)
            self._checkpointer.save(self.folder / str(step), state, force=True)
        except jax.errors.JaxRuntimeError:  # a lost process or a failed device, no fault of the file system
            raise
        except Exception as error:
            raise _unwritten(step, self.folder, error) from error
        self._writing = step, record

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state of ``step`` and the sums saved with it, with the structure and placement of ``like``.

        Raises ValueError where the checkpoint is of another model, and DamagedError where it is not what was saved.
        """
        self.wait()
        record = _read_record(self._record(step))
        _check_model(step, record["arrays"], _named(like))
        folder = self.folder / str(step)
        if not folder.is_dir():
            raise DamagedError(f"the checkpoint of step {step} is missing: {folder} is gone or was never finished")
        state, reason = self._read(folder, like)
        if processes.any_of(bool(reason)):
            reason = reason or "another process could not read it"
            raise DamagedError(f"the checkpoint of step {step} cannot be read: {reason} ({folder})")
        now = _described(state)
        changed = sorted(name for name in now if now[name] != record["arrays"][name])
        if processes.any_of(bool(changed)):
            raise DamagedError(
                f"the checkpoint of step {step} is damaged: the checksums of {len(changed)} arrays differ, the first "
                f"is {changed[0] if changed else 'in another process'} ({folder})"
            )
        return state, record["totals"]

    def restore_newest(
        self, like: Any, warn: Callable[[str], None], keep_damaged: bool = False
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Step, state and sums of the newest checkpoint that is whole, or None where none was ever finished.

        Each newer one that is damaged, cut short or missing is named to ``warn`` and moved to the folder ``damaged``,
        or with ``keep_damaged`` left where it is. Raises DamagedError where there were checkpoints and none is left.
        """
        found: tuple[int, Any, dict[str, Any]] | None = None
        bad: list[int] = []
        lost = False
        for step in sorted(_numbered(self.folder.glob("*")) | set(self._records()), reverse=True):
            try:
                state, totals = self.restore(step, like)
                found = step, state, totals
                break
            except DamagedError as error:
                warn(str(error))
                bad.append(step)
                lost |= self._was_finished(step)
        if found is None and lost:
            raise DamagedError(
                f"{self.folder} holds no checkpoint that can be read, and training will not start over by itself. "
                "Put a good checkpoint back, or move the folder away to begin again."
            )
        if not keep_damaged:
            processes.on_first(lambda: self._settle(bad, found and found[0]))
        return found

    def _read(self, folder: Path, like: Any) -> tuple[Any, str]:
        """The state, or the reason why it cannot be read."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with _unheard():
            try:
                return self._checkpointer.restore(folder, target), ""
            except Exception as error:
                reason = _short(error)
            for _ in range(4):  # the reads that Orbax left under way fail as they end
                time.sleep(0.05)
                gc.collect()
        return None, reason

    def _record(self, step: int) -> Path:
        return self.folder / f"{step}.json"

    def _records(self) -> list[int]:
        return [int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdigit()]

    def _metric(self, step: int) -> float | None:
        try:
            return _read_record(self._record(step))["metric"]
        except DamagedError:
            return None

    def _was_finished(self, step: int) -> bool:
        """Whether a checkpoint was whole once: its folder is there, or its record says so or cannot say it any more."""
        try:
            return (self.folder / str(step)).exists() or _read_record(self._record(step))["finished"]
        except DamagedError:
            return True

    def _prune(self) -> None:
        """Removes all but the newest and the best, and what was left unfinished."""
        steps = self.steps
        keep = {*steps[-NEWEST:], self.best}
        for step in set(self._records()) - keep:
            self._record(step).unlink(missing_ok=True)
        for path in self.folder.glob("*"):
            number, _, rest = path.name.partition(".")
            if path.is_dir() and number.isdigit() and (rest or int(number) not in keep):
                shutil.rmtree(path, ignore_errors=True)

    def _settle(self, bad: list[int], good: int | None) -> None:
        """Moves what is damaged out of the way, and writes down that the newest good one was finished."""
        for step in bad:
            for path in (self.folder / str(step), self._record(step)):
                if path.exists():
                    target = self.folder / DAMAGED / path.name
                    target.parent.mkdir(exist_ok=True)
                    shutil.rmtree(target, ignore_errors=True)
                    path.replace(target)
        if good is not None:
            _write_record(self._record(good), _read_record(self._record(good)) | {"finished": True})


def _numbered(paths: Iterable[Path]) -> set[int]:
    return {int(path.name) for path in paths if path.name.isdigit() and path.is_dir()}


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by the names of their paths."""
    key = lambda k: str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))
    return {"/".join(map(key, path)): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _described(tree: Any) -> dict[str, dict[str, Any]]:
    """Shape, type and CRC-32 of every array."""

    def describe(leaf: Any) -> dict[str, Any]:
        typed_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(leaf) if typed_key else leaf)
        return {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "crc32": zlib.crc32(data.tobytes())}

    return {name: describe(leaf) for name, leaf in _named(processes.local(tree)).items()}


def _check_model(step: int, saved: dict[str, dict[str, Any]], here: dict[str, Any]) -> None:
    then, now = {name: tuple(a["shape"]) for name, a in saved.items()}, {name: a.shape for name, a in here.items()}
    differing = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if differing:
        first = differing[0]
        raise ValueError(
            f"the checkpoint of step {step} is of another model: {len(differing)} arrays differ, the first is "
            f"{first}, {then.get(first, 'absent')} in the checkpoint and {now.get(first, 'absent')} here"
        )


def _write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record with a checksum of its own, whole or not at all."""
    text = json.dumps(record)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        file.write(json.dumps({"crc32": zlib.crc32(text.encode()), "record": record}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read_record(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise DamagedError(f"the checkpoint of step {path.stem} has no record: {path} is missing")
    try:
        stored = json.loads(path.read_bytes())
        whole = stored["crc32"] == zlib.crc32(json.dumps(stored["record"]).encode())
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise DamagedError(f"the record of the checkpoint of step {path.stem} is damaged: {path}")
    return stored["record"]


def _unwritten(step: int, folder: Path, error: Exception) -> OSError:
    return OSError(f"the checkpoint of step {step} could not be written to {folder}: {_short(error)}")


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Without what other threads and abandoned coroutines of a failed restore say; the error itself says enough."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook


def _short(error: Exception) -> str:
    """What the system says, where it is the system; else the beginning of the message."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else " ".join(str(error).split())[:200] or type(error).__name__
