"""The folder of a run: its lock and ``config.json``."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax

import jaxvae
from jaxvae import datasets, families
from jaxvae.families import FAMILIES, RESUMABLE, Data, FirstStage
from jaxvae.runs import weights
from jaxvae.settings import from_json, to_json

MOST_SHOWN = 200  # characters of a value in a sentence
FORMAT = 3  # the version of config.json and of checkpoints; folders of other versions are refused


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object. Raises ValueError if it is damaged."""
    try:
        values = json.loads(file.read_text())
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}); put it back or move the run folder away"
        ) from error
    return values


def lock(workdir: Path) -> IO[str]:
    """Makes the folder and takes its lock, which lasts as long as the process.

    Keep what it returns. Raises ValueError if another run holds the lock.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another run"
        file.close()
        raise ValueError(
            f"{workdir} is in use by {holder}; wait for it to end or stop it, or pass another "
            "--workdir"
        ) from None
    except OSError as error:
        warn(f"{workdir} cannot be locked ({error}); see to it that no other run uses it")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


class Record(NamedTuple):
    """The content of ``config.json``, from which the model of a run can be built again."""

    family: str
    config: Any
    data: Data
    place: dict[str, Any]  # where the data set was: dataset, data_dir, stream
    first: Record | None = None  # of the run whose codes the model is of; its step is in ``place``

    def json(self) -> dict[str, Any]:
        """The record as the file holds it."""
        data = self.data._asdict()
        for name in ("examples", "labelled", "first_stage", "class_attributes"):
            del data[name]
        first = {} if self.first is None else {"first_stage": self.first.json()}
        return first | {
            "format": FORMAT,
            "version": jaxvae.__version__,
            "family": self.family,
            "config": to_json(self.config),
            "data": data,
            "place": self.place,
        }

    @property
    def data_seed(self) -> int:
        """The seed of ``static`` binarization, which both stages share."""
        return (self.first or self).config.seed

    def of_raw(self) -> Record:
        """The record for x as the data set holds it, where training saw it binarized once."""
        if self.data.pixels != "static":
            return self
        data = self.data._replace(pixels="dynamic", levels=self.data.raw_levels)
        return self._replace(data=data, first=None if self.first is None else self.first.of_raw())

    def build(self, first: FirstStage | None = None) -> families.Built:
        """The model and its training.

        ``first`` is the trained model whose codes it is of. Without it the model can be opened, and
        its checkpoints hold the parameters.
        """
        data = self.data
        if self.first is not None:
            data = data._replace(first_stage=first or self.first.opened())
        return FAMILIES[self.family].build(self.config, data)

    def opened(self) -> FirstStage:
        """The model as a first stage, with the shapes of its parameters."""
        built = self.build()
        parameters = lambda state: built.parameters(state)
        return FirstStage(built, jax.eval_shape(parameters, built.fresh_state(self.data)))


def read(workdir: Path) -> Record:
    """Reads the record of a run folder. Raises ValueError if it is no run of this version."""
    file = workdir / "config.json"
    if not file.exists():
        raise ValueError(f"{workdir} is no run folder: it has no config.json")
    return _record(file, read_json(file))


def _record(file: Path, values: dict[str, Any]) -> Record:
    """The record that a file holds."""
    workdir, version = file.parent, values.get("format")
    if version != FORMAT:
        raise ValueError(
            f"{workdir} is a run of another version of jaxvae, whose folders cannot be opened by "
            f"{jaxvae.__version__}: train it again, or open it with the version that made it"
        )
    if values["family"] not in FAMILIES:
        raise ValueError(
            f"{workdir} is of the family {values['family']!r}, and jaxvae.families.FAMILIES has "
            f"{', '.join(FAMILIES)}: import the module that adds it first"
        )
    try:
        config = from_json(FAMILIES[values["family"]].Config(), values["config"])
    except ValueError as error:
        raise ValueError(
            f"{file}: {error}. If it is a member of your own, add it to its table first: run or "
            "import the module that does."
        ) from error
    data: Any = {n: tuple(v) if isinstance(v, list) else v for n, v in values["data"].items()}
    first = _record(file, values["first_stage"]) if "first_stage" in values else None
    return Record(values["family"], config, Data(**data), values["place"], first)


def save(workdir: Path, record: Record) -> None:
    """Writes config.json, after a check that the folder holds no other run."""
    if weights.are_in(workdir):
        raise ValueError(f"{workdir} holds an exported model; pass another --workdir")
    if has_checkpoints(workdir):
        different = differences(read(workdir), record)
        if different:
            raise ValueError(
                f"{workdir} holds a run with another configuration: {'; '.join(different)}. Pass "
                "the old values to resume it, --start-from to begin a new run with its parameters, "
                "or another --workdir."
            )
    write_json(workdir / "config.json", record.json())


def has_checkpoints(workdir: Path) -> bool:
    """Whether a run has left checkpoints in the folder."""
    return (workdir / "config.json").exists() and any((workdir / "checkpoints").glob("*"))


def differences(before: Record, now: Record) -> list[str]:
    """The settings in which two runs differ, as ``name was 1, is 2``."""
    if before.family != now.family:
        return [f"family was {before.family}, is {now.family}"]
    then, here = flattened(to_json(before.config)), flattened(to_json(now.config))
    then |= {"data." + name: value for name, value in before.json()["data"].items()}
    here |= {"data." + name: value for name, value in now.json()["data"].items()}
    different = [
        f"{name} was {_shown(then, name)}, is {_shown(here, name)}"
        for name in sorted({*then, *here} - set(RESUMABLE))
        if _plain(then.get(name)) != _plain(here.get(name))
    ]
    return different + _first_differences(before.first, now.first)


def _first_differences(before: Record | None, now: Record | None) -> list[str]:
    """The settings in which the runs differ whose codes two runs are of."""
    if before is None or now is None:
        return []
    steps = before.place["step"], now.place["step"]
    different = [] if steps[0] == steps[1] else [f"step was {steps[0]}, is {steps[1]}"]
    return [f"of the first stage, {line}" for line in different + differences(before, now)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(values: dict[str, Any], name: str) -> str:
    words = repr(_plain(values[name])) if name in values else "not there"
    return words if len(words) <= MOST_SHOWN else f"{words[:MOST_SHOWN]}..."


def flattened(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of members beside the fields. Their names are unique."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat[name] = value["is"]
            flat |= flattened({n: v for n, v in value.items() if n != "is"})
        else:
            flat[name] = value
    return flat


def free_folder(name: str, record: Record, parent: Path = Path("runs")) -> Path:
    """``runs/NAME`` if it is free or holds this run, else ``runs/NAME-2`` and so on."""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        if not has_checkpoints(folder):
            return folder
        try:
            if not differences(read(folder), record):
                return folder
        except ValueError:
            pass  # a folder of another version
        number += 1


def warn(message: str) -> None:
    """Prints a warning on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def place_of(source: Any, data_dir: str | None, stream: bool) -> dict[str, Any]:
    """The absolute place of the data set, for commands that run in another folder.

    The data set is None if it was given as arrays, which have no place.
    """
    named = isinstance(source, str | os.PathLike)
    absolute = lambda path: str(Path(path).expanduser().absolute())
    name = None
    if named:
        name = absolute(source) if datasets.looks_like_path(source) else str(source)
    folder = None if data_dir is None else absolute(data_dir)
    return {"dataset": name, "data_dir": folder, "stream": stream}
