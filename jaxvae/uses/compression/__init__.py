"""Compression of images with a trained model, bit for bit the same in every process.

A ``Codec`` is made once for a model, from networks of integers and tables of frequencies, and is
stored. ``compress`` gives the bytes of a file, and ``decompress`` the images.
"""

from jaxvae.uses.compression.codecs import (
    SHOWN,
    Codec,
    Compressed,
    read,
    reader_of,
    stored,
    writer_in,
)
from jaxvae.uses.compression.making import check, codec, is_lossy

__all__ = [
    "SHOWN",
    "Codec",
    "Compressed",
    "check",
    "codec",
    "is_lossy",
    "read",
    "reader_of",
    "stored",
    "writer_in",
]
