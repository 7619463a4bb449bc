"""Records of checkpoints: what was saved, with checksums.

A record is JSON with a checksum. It describes every array by its name, such as ``params/model/w``.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import jax


class DamagedError(ValueError):
    """A checkpoint that is not what was written. The message says which, and what is wrong."""


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by the names of their paths."""
    key = lambda k: str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))
    return {"/".join(map(key, path)): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def described(tree: Any) -> dict[str, dict[str, Any]]:
    """Shape and type of every array."""
    return {
        name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in named(tree).items()
    }


def check_model(
    step: int, saved: dict[str, dict[str, Any]], asked: dict[str, dict[str, Any]]
) -> None:
    """Raises ValueError if the saved arrays differ from the arrays that are asked for."""
    kind = lambda array: f"{array['dtype']}{array['shape']}"
    then, now = ({name: kind(array) for name, array in arrays.items()} for arrays in (saved, asked))
    differing = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if differing:
        first = differing[0]
        raise ValueError(
            f"the checkpoint of step {step} is of another model: {len(differing)} arrays differ, "
            f"the first is {first}, {then.get(first, 'absent')} in the checkpoint and "
            f"{now.get(first, 'absent')} here"
        )


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record with its checksum, whole or not at all."""
    text = json.dumps(record)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        file.write(json.dumps({"crc32": zlib.crc32(text.encode()), "record": record}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_record(path: Path) -> dict[str, Any]:
    """Reads a record. Raises DamagedError if it is missing or damaged."""
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
