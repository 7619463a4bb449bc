"""The commands ``compress`` and ``decompress``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from jaxvae.datasets import DataError
from jaxvae.ranges import Count
from jaxvae.runs import folders, reports
from jaxvae.runs.loading import Trained, load
from jaxvae.uses import compression
from jaxvae.uses.compression import formats, gaussian

CODECS = "codecs"  # folder in a run


def compress(
    workdir: Annotated[Path, tyro.conf.Positional],
    images: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    grid: Count = 32,
    verify: bool = False,
    checkpoint: str = "latest",
    seed: int = 0,
) -> None:
    """Compresses a .npy file of images: without loss by bits-back coding, or by rounded codes.

    Flat VAEs and chains of latents, such as bit-swap, lose nothing. The presets factorized-prior
    and hyperprior do. The codec of the model is made once, from the first images, and kept in
    WORKDIR/codecs. Decompression needs it.

    Args:
      workdir: the run folder of one of these models.
      images: a .npy file of integers [N, ...], as the model takes them.
      out: the file to write.
      grid: places of a latent between 0 and 1, a power of two; the lower vectors of a chain have
        them on the length of their standard deviation.
      verify: whether to decompress it and compare before it is written.
      checkpoint: latest, best, or a step.
      seed: seed of the words that the first image draws its latents from.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed} must be from 0 to 2^64 - 1")
    record, array = folders.read(workdir), _images(images)
    config = record.config
    compression.check(config, grid)
    gaussian.check_images(config, record.data, array)
    if not out.resolve().parent.is_dir():
        raise DataError(f"{out}: the folder does not exist")
    trained = load(workdir, checkpoint)
    codec, about = _codec(trained, config, workdir / CODECS, array, grid)
    codec.compress(array[:1])  # compiles
    start = time.perf_counter()
    found = codec.compress(array, seed)
    speed = len(array) / (time.perf_counter() - start)
    rows = [("codec", about), *_numbers(trained, config, codec, array, found)]
    rows.append(("compressed", f"{speed:,.0f} images/s"))
    if verify:
        start = time.perf_counter()
        back, lossy = codec.decompress(found.packed), compression.is_lossy(config)
        if not lossy and not np.array_equal(back, array):
            raise DataError("decompression did not give the same images: nothing is written")
        speed = len(array) / (time.perf_counter() - start)
        same = "the same codes" if lossy else "the same images"
        rows.append(("verified", f"{same}, {speed:,.0f} images/s"))
    write_bytes(out, found.packed)
    reports.table([*rows, ("written", f"{out}, {len(found.packed):,} bytes")])


def decompress(
    workdir: Annotated[Path, tyro.conf.Positional],
    file: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path | None, tyro.conf.Positional] = None,
) -> None:
    """Decompresses a file of jaxvae compress into a .npy file.

    Args:
      workdir: the run folder whose codec wrote the file.
      file: the compressed file.
      out: the .npy file to write, which must not exist; None is FILE with the ending .npy.
    """
    folders.read(workdir)
    target = out or file.with_suffix(".npy")
    if target.exists():
        raise DataError(f"{target} is there already: name another file for the images")
    if not target.resolve().parent.is_dir():
        raise DataError(f"{target}: the folder does not exist")
    packed = file.read_bytes()
    array = compression.reader_of(workdir / CODECS, packed).decompress(packed)
    with target.open("xb") as opened:
        np.save(opened, array)
    shape = ", ".join(map(str, array.shape))
    reports.table([("images", f"[{shape}] {array.dtype}"), ("written", str(target))])


def _images(file: Path) -> np.ndarray:
    """The array of a .npy file. Raises DataError if it is none."""
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{file} is no .npy file of numbers: np.save writes one") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{file} holds several arrays: give a .npy file of one")
    return array


def _codec(
    trained: Trained, config: Any, folder: Path, array: np.ndarray, grid: int
) -> tuple[compression.Codec, str]:
    """The codec of a model in a folder, made if it is not there, and a line about it."""
    wanted = {} if compression.is_lossy(config) else {"grid": grid}
    codec = compression.writer_in(folder, gaussian.fingerprint(trained.params), **wanted)
    said = "found"
    if codec is None:
        codec, said = compression.codec(trained, array, grid), "made"
        codec.save(folder)
    file = folder / f"{codec.checksum[: compression.SHOWN]}.npz"
    return codec, f"{said}, {file}"


def _numbers(
    trained: Trained, config: Any, codec: Any, array: np.ndarray, found: compression.Compressed
) -> list[tuple[str, str]]:
    """What the images cost, beside what the model says and general formats."""
    count, values = len(array), array[0].size
    net, in_file = found.net_bits / count, 8 * len(found.packed) / array.size
    per_image = lambda bits: f"{bits:.2f} bits an image, {bits / values:.4f} a value"
    rows = [("images", f"{count:,} of {values:,} values")]
    if compression.is_lossy(config):
        back = codec.scheme.images(codec.scheme.codes(array), array.dtype.str)
        quality = formats.psnr(back.reshape(array.shape), array, codec.scheme.levels)
        rows += [("net", per_image(net)), ("PSNR", f"{quality:.2f} dB")]
        others = formats.lossy(array, in_file)
        shown = {
            name: f"{bits:.4f} bits a value, {db:.2f} dB" for name, (bits, db) in others.items()
        }
        return [*rows, ("file", f"{in_file:.4f} bits a value"), *shown.items()]
    bound = float(gaussian.negative_elbo(trained, config, array).mean())
    rows += [
        ("net", per_image(net)),
        ("-ELBO", per_image(bound)),
        ("excess", f"{net / bound - 1:+.2%}"),
        ("first image", f"{found.first_image} bits, of which {found.borrowed} draw latents"),
        ("file", f"{in_file:.4f} bits a value"),
    ]
    general = formats.lossless(array, codec.scheme.levels)
    return [*rows, *((name, f"{bits:.4f} bits a value") for name, bits in general.items())]


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
