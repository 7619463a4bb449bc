"""The weights of an exported model: ``model.safetensors``, whose SHA-256 is in ``config.json``.

A flipped bit of a safetensors file is read without an error, so the sum is checked first.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import records, tensors
from jaxvae.contracts import Params

FILE = "model.safetensors"


def are_in(folder: Path) -> bool:
    """Whether a folder has such a file, as no run has."""
    return (folder / FILE).exists()


def digest(content: bytes) -> str:
    """The SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def arrays_of(params: Params) -> dict[str, np.ndarray]:
    """Parameters as the arrays of a file, by names such as ``decoder/output/kernel``."""
    return {name: np.asarray(leaf) for name, leaf in records.named(params).items()}


def write(folder: Path, params: Params) -> dict[str, str]:
    """Writes the parameters, and returns what config.json says of the file."""
    arrays = arrays_of(params)
    tensors.write_safetensors(folder / FILE, arrays, tensors.header_of(arrays, "flax"))
    return {"file": FILE, "sha256": digest((folder / FILE).read_bytes())}


def read(folder: Path, config: dict[str, Any], like: Params) -> Params:
    """The parameters of a folder, structured like ``like``.

    ``config`` is the content of its config.json, and ``like`` may be shapes. Raises ValueError if
    the file is damaged or of another model.
    """
    file = folder / FILE
    if digest(file.read_bytes()) != config.get("weights", {}).get("sha256"):
        raise ValueError(
            f"{file} is damaged: its SHA-256 is not the one that config.json states; fetch the "
            "folder again"
        )
    arrays = tensors.read_safetensors(file).arrays
    asked = records.described(like)
    records.check_model(config["step"], records.described(arrays), asked)
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[n]) for n in asked])
