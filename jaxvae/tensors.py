"""Files of named arrays: safetensors, which is read and written byte for byte, and npz.

A safetensors file is the length of a header in eight bytes, the header, and the bytes of the
arrays. The header is JSON, ``{name: {"dtype", "shape", "data_offsets"}}``, filled up with spaces to
a multiple of eight bytes. It is kept as it is, so that a file can be written again byte for byte.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

DTYPES: dict[str, np.dtype] = {  # by their names in a header
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (8, 4, 2)},
    "BF16": np.dtype(jnp.bfloat16),
    **{f"I{8 * size}": np.dtype(f"i{size}") for size in (8, 4, 2, 1)},
    **{f"U{8 * size}": np.dtype(f"u{size}") for size in (8, 4, 2, 1)},
    "BOOL": np.dtype(bool),
}
LENGTH = 8  # bytes that hold the length of the header
LARGEST = 100_000_000  # bytes of a header, as in the library safetensors


class Held(NamedTuple):
    """What a safetensors file holds."""

    arrays: dict[str, np.ndarray]
    header: str  # its JSON


def read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors or .npz file. Raises ValueError if it is neither."""
    if not file.exists():
        raise ValueError(f"there is no {file}")
    if file.suffix == ".safetensors":
        return read_safetensors(file).arrays
    try:
        with np.load(file) as held:
            return {name: held[name] for name in held.files}
    except (ValueError, OSError, AttributeError) as error:
        raise ValueError(f"{file} is no .safetensors and no .npz file of arrays") from error


def read_safetensors(file: Path) -> Held:
    """The arrays and the header of a safetensors file. Raises ValueError if it is damaged."""
    content = file.read_bytes()
    start = LENGTH + int.from_bytes(content[:LENGTH], "little")
    damaged = f"{file} is damaged or no safetensors file"
    if not LENGTH < start <= min(len(content), LARGEST):
        raise ValueError(f"{damaged}: its header does not end within the file")
    try:
        header = content[LENGTH:start].decode()
        entries = json.loads(header)
        arrays = {name: _array(content[start:], entry) for name, entry in _sorted(entries).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{damaged}: {_reason(error)}") from error
    return Held(arrays, header)


def _reason(error: Exception) -> str:
    return f"its header has no {error}" if isinstance(error, KeyError) else str(error)


def _sorted(entries: Any) -> dict[str, Any]:
    """The arrays' entries of a header, in the order of their bytes."""
    arrays = {name: entry for name, entry in entries.items() if name != "__metadata__"}
    return dict(sorted(arrays.items(), key=lambda item: item[1]["data_offsets"]))


def _array(content: bytes, entry: dict[str, Any]) -> np.ndarray:
    (first, end), shape = entry["data_offsets"], entry["shape"]
    dtype = DTYPES[entry["dtype"]]
    if end > len(content) or end - first != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array does not end where the header says")
    return np.frombuffer(content[first:end], dtype).reshape(shape)


def header_of(arrays: Mapping[str, np.ndarray], framework: str = "pt") -> str:
    """The header that the library safetensors writes for arrays of a framework, PyTorch or Flax.

    The widest types come first, and names are in order.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": framework}}
    end = 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name)):
        array, first = arrays[name], end
        end += array.nbytes
        entries[name] = {"dtype": names[array.dtype], "shape": list(array.shape)}
        entries[name]["data_offsets"] = [first, end]
    text = json.dumps(entries, separators=(",", ":"))
    return text + " " * (-len(text.encode()) % 8)


def write_safetensors(
    file: Path, arrays: Mapping[str, np.ndarray], header: str | None = None
) -> None:
    """Writes arrays whole or not at all, in the types and the order of a header.

    Without one the header is ``header_of`` the arrays. Raises ValueError if the header has other
    names or shapes.
    """
    header = header_of(arrays) if header is None else header
    entries = _sorted(json.loads(header))
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    if shapes != {name: entry["shape"] for name, entry in entries.items()}:
        raise ValueError(f"{file}: the header has other names or shapes than the arrays")
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as out:
        text = header.encode()
        out.write(len(text).to_bytes(LENGTH, "little") + text)
        for name, entry in entries.items():
            out.write(np.ascontiguousarray(arrays[name], DTYPES[entry["dtype"]]).tobytes())
    os.replace(partial, file)
