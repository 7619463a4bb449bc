"""The folder of a run: its lock, its config, its checkpoints."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import socket
import sys
from pathlib import Path
from typing import IO, Any

from config import IDENTITY_FREE, Config
from wiring import Run

from jaxvae import checkpoints, training


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


def claim(workdir: Path) -> IO[str]:
    """Makes the folder and takes its lock, which lasts as long as the process; keep what it
    returns.

    Raises ValueError where another run that is alive has it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise ValueError(
            f"{workdir} is in use by {file.read().strip() or 'another run'}; wait for it to end or stop it, or pass "
            "another --workdir"
        ) from None
    except OSError as error:
        print(
            f"warning: {workdir} cannot be locked ({error}); see to it that no other run uses it",
            file=sys.stderr,
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def save_config(workdir: Path, config: Config) -> None:
    """Writes config.json, or checks that the one of a run with checkpoints is of the same run."""
    file = workdir / "config.json"
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    if file.exists() and any((workdir / "checkpoints").glob("*")):
        then = json.loads(json.dumps(dataclasses.asdict(Config()))) | _read(file)
        differing = [
            f"{name} was {then.get(name)!r}, is {now.get(name)!r}"
            for name in sorted({*then, *now} - set(IDENTITY_FREE))
            if then.get(name) != now.get(name)
        ]
        if differing:
            raise ValueError(
                f"{workdir} holds a run with another config: {'; '.join(differing)}. "
                "Pass the old values to resume it, or another --workdir for a new run."
            )
    write_json(file, now)


def load_config(workdir: Path) -> Config:
    """The Config of a run folder."""
    file = workdir / "config.json"
    if not file.exists():
        raise ValueError(f"{workdir} is no run folder: it has no config.json")
    values = _read(file)
    known = {field.name for field in dataclasses.fields(Config)}
    if values.keys() - known:
        raise ValueError(
            f"{file} has fields that this version does not know: {sorted(values.keys() - known)}"
        )
    return Config(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}); put it back or move the run folder away"
        ) from error


def restore(run: Run, workdir: Path, which: str = "latest") -> tuple[int, Any]:
    """The step and the parameters of a run's ``latest`` or ``best`` checkpoint, or of the one with
    a given number.

    ``latest`` is the newest one that is whole; a newer one that is not is named on stderr.
    """
    with checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        if which == "latest":
            newest = saved.restore_newest(run.init_state(), warn, keep_damaged=True)
            step, state = newest[:2] if newest else (None, None)
        else:
            step = saved.best if which == "best" else int(which) if which.isdigit() else None
            state = saved.restore(step, run.init_state())[0] if step in saved.steps else None
        if state is None:
            raise ValueError(
                f"{workdir} has no checkpoint {which!r}; it has {saved.steps or 'none'}"
            )
    return step, training.trained(state)


def warn(message: str) -> None:
    """Says on stderr what is wrong and does not end the run."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
