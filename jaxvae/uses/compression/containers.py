"""The container of compressed images: a header, and words of a stack, each with a checksum.

    JVAE | format | checksum of the codec | version of the coder | dtype | shape | seed of the
    first words | how many there were | how many stayed as they were | crc32 of the images |
    number of words | crc32 of the words | crc32 of all before | the words

Numbers are little-endian, and words have 32 bits.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np

from jaxvae.datasets import DataError

MAGIC, FORMAT = b"JVAE", 1
AXES = 6  # that a shape has at most
HEAD = struct.Struct(f"<4sH32s8s8sB{AXES}I2QI3I")
CRC = struct.Struct("<I")
END = "the file is damaged or incomplete, so nothing is read from it"


class Container(NamedTuple):
    """What a compressed file holds."""

    codec: str  # sha256 of what reads it, in hexadecimal
    coder: str  # version of the entropy coder
    dtype: str
    shape: tuple[int, ...]  # [N, ...]
    seed: int  # of the first words of the stack
    first: int  # how many first words there were
    kept: int  # how many of them, from the bottom on, are left out of ``words``
    checksum: int  # crc32 of the images
    words: np.ndarray

    def pack(self) -> bytes:
        """The bytes of a file."""
        payload = np.asarray(self.words, "<u4").tobytes()
        head = HEAD.pack(
            MAGIC,
            FORMAT,
            bytes.fromhex(self.codec),
            self.coder.encode(),
            self.dtype.encode(),
            len(self.shape),
            *self.shape,
            *[0] * (AXES - len(self.shape)),
            self.seed,
            self.first,
            self.kept,
            self.checksum,
            len(self.words),
            zlib.crc32(payload),
        )
        return head + CRC.pack(zlib.crc32(head)) + payload


def unpack(packed: bytes) -> Container:
    """What the bytes of a file hold. Raises DataError if a single bit is not as it was written."""
    start = HEAD.size + CRC.size
    if packed[:4] != MAGIC:
        raise DataError("this is no file of jaxvae compress, or its first bytes are damaged")
    if len(packed) < start or CRC.unpack(packed[HEAD.size : start])[0] != zlib.crc32(
        packed[: HEAD.size]
    ):
        raise DataError(f"the header is not what was written: {END}")
    _, version, codec, coder, dtype, axes, *numbers = HEAD.unpack(packed[: HEAD.size])
    if version != FORMAT:
        raise DataError(f"the file has format {version}, and this jaxvae reads format {FORMAT}")
    shape, (seed, first, kept, checksum, count, crc) = numbers[:axes], numbers[AXES:]
    payload = packed[start:]
    if len(payload) != 4 * count:
        raise DataError(f"{len(payload)} bytes follow the header instead of {4 * count}: {END}")
    if zlib.crc32(payload) != crc:
        raise DataError(f"the words are not what was written: {END}")
    text = lambda field: field.rstrip(b"\0").decode()
    words = np.frombuffer(payload, "<u4").astype(np.uint32)
    return Container(
        codec.hex(), text(coder), text(dtype), tuple(shape), seed, first, kept, checksum, words
    )


def checksum_of(images: np.ndarray) -> int:
    """crc32 of images in the order of memory, little-endian."""
    array = np.ascontiguousarray(images)
    return zlib.crc32(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
