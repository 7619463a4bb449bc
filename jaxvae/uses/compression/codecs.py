"""Codecs: networks of integers and tables, made once, stored with a checksum, and used anywhere.

What a codec writes depends on whole numbers alone. So any process that has its file reads it, with
any batch size and on any device.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvae.datasets import DataError
from jaxvae.uses.compression import containers, stacks
from jaxvae.uses.compression.bits_back import BitsBack

SCHEMES: dict[str, Any] = {"bits-back": BitsBack}
SHOWN = 16  # digits of a checksum in a file's name and in sentences


class Compressed(NamedTuple):
    """A compressed file, and what it cost."""

    packed: bytes
    net_bits: float  # what the images added to the stack
    steps: list[int]  # bits that each step of the first image added; a step that popped took some

    @property
    def borrowed(self) -> int:
        """The most bits that steps of the first image took before others brought them back."""
        return -min(0, *itertools.accumulate(self.steps))

    @property
    def first_image(self) -> int:
        """Bits of a file that holds the first image alone."""
        return sum(self.steps) + self.borrowed


class Codec:
    """What compresses images and decompresses them, ``layout`` and whole numbers by name."""

    def __init__(self, layout: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        """A codec of what ``read`` or ``codec`` gives."""
        self.layout, self.arrays = dict(layout), dict(arrays)

    @functools.cached_property
    def checksum(self) -> str:
        """The sha256 of everything that coding depends on."""
        whole = hashlib.sha256(json.dumps(self.layout, sort_keys=True).encode())
        for name in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[name])
            whole.update(f"{name} {array.dtype.str[1:]} {array.shape}".encode())
            whole.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        return whole.hexdigest()

    @functools.cached_property
    def scheme(self) -> Any:
        """The networks, compiled."""
        return SCHEMES[self.layout["kind"]](self.layout, self.arrays)

    def compress(self, images: np.ndarray, seed: int = 0) -> Compressed:
        """The bytes of a file that holds images [N, *shape], and what they cost.

        Raises DataError if the model does not code such images.
        """
        images = np.asarray(images)
        if images.ndim > containers.AXES:
            raise DataError(f"images have {images.ndim} axes; {containers.AXES} are the most")
        self.scheme.checked(images)
        count = self.scheme.seeds
        while True:
            first = stacks.seed_words(seed, count)
            stack = stacks.Stack(first)
            before = stack.bits
            try:
                checksum, steps = self.scheme.push(stack, images)
                break
            except stacks.ShortageError:
                count *= 2
        words = stack.words
        shared = first[: len(words)] == words[: len(first)]
        kept = len(shared) if shared.all() else int(shared.argmin())
        packed = containers.Container(
            self.checksum,
            stacks.coder_version(),
            images.dtype.str[1:],
            images.shape,
            seed,
            count,
            kept,
            checksum,
            words[kept:],
        ).pack()
        return Compressed(packed, stack.bits - before, steps)

    def decompress(self, packed: bytes) -> np.ndarray:
        """The images of a file.

        Raises DataError, and gives nothing, if the file is not as it was written, or if another
        codec wrote it.
        """
        held = containers.unpack(packed)
        check_reader(held, self.checksum)
        first = stacks.seed_words(held.seed, held.first)
        stack = stacks.Stack(np.concatenate([first[: held.kept], held.words]))
        images, checksum = self.scheme.pop(stack, held.shape, held.dtype)
        if checksum != held.checksum or not np.array_equal(stack.words, first):
            raise DataError("the images are not those that were compressed: nothing is returned")
        return images

    def save(self, folder: Path) -> Path:
        """Writes the codec into a folder, under its checksum, and returns the file."""
        file = folder / f"{self.checksum[:SHOWN]}.npz"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            held = io.BytesIO()
            np.savez_compressed(held, layout=json.dumps(self.layout), **self.arrays)  # type: ignore
            partial = file.with_suffix(".partial")
            partial.write_bytes(held.getvalue())
            partial.replace(file)
        return file


def check_reader(held: containers.Container, checksum: str) -> None:
    """Raises DataError if another codec, or another entropy coder, wrote a file."""
    if held.codec != checksum:
        raise DataError(
            f"the file was written by the codec {held.codec[:SHOWN]}, and this is "
            f"{checksum[:SHOWN]}: give the run whose model wrote it"
        )
    here = stacks.coder_version()
    if held.coder != here:
        raise DataError(
            f"the file was written with constriction {held.coder}, and {here} is installed: "
            f"pip install 'constriction~={held.coder}'"
        )


def read(file: Path) -> Codec:
    """The codec of a file. Raises DataError if it is damaged."""
    content = file.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files if name != "layout"}
            codec = Codec(json.loads(str(held["layout"])), arrays)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file} is no codec of jaxvae, or it is damaged") from error
    if codec.checksum[:SHOWN] != file.stem:
        raise DataError(f"{file} is damaged: its content has the checksum {codec.checksum[:SHOWN]}")
    return codec


def stored(folder: Path) -> list[str]:
    """The first digits of the checksums of all codecs in a folder."""
    return sorted(file.stem for file in folder.glob("*.npz"))


def writer_in(folder: Path, model: str, **layout: Any) -> Codec | None:
    """The codec in a folder that was made for a model, by its checksum, and has such a layout."""
    for name in stored(folder):
        codec = read(folder / f"{name}.npz")
        wanted = {"model": model} | layout
        if all(codec.layout.get(key) == value for key, value in wanted.items()):
            return codec
    return None


def reader_of(folder: Path, packed: bytes) -> Codec:
    """The codec in a folder that wrote a file. Raises DataError if it is not there."""
    held = containers.unpack(packed)
    names = stored(folder)
    if held.codec[:SHOWN] not in names:
        raise DataError(
            f"the file was written by the codec {held.codec[:SHOWN]}, and {folder} has "
            f"{', '.join(names) or 'none'}: give the run whose model wrote it"
        )
    codec = read(folder / f"{held.codec[:SHOWN]}.npz")
    check_reader(held, codec.checksum)
    return codec
