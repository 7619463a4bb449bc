"""Which resolutions a hierarchy of images has, and how many blocks at each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxvae.ranges import Widths

Size = tuple[int, int]  # height and width


class Stage(NamedTuple):
    """The blocks of an encoder at one resolution, from the image on."""

    size: Size
    blocks: int  # the state after them is what the hierarchy sees of x at this resolution
    pool: Size | None  # one more block and pooling by these factors lead to the next stage


class Level(NamedTuple):
    """The blocks of a decoder at one resolution, each with one layer of latents."""

    size: Size
    blocks: int
    below: int | None  # the level whose state is added to the bias, enlarged


class Layout(NamedTuple):
    """The stages of the encoder, and the levels of the decoder from the top on."""

    stages: tuple[Stage, ...]
    levels: tuple[Level, ...]


def pyramid(size: Size, blocks: Widths = (1, 2, 3, 4)) -> Layout:
    """One vector on top, then images whose height and width double.

    Args:
      size: height and width of the image.
      blocks: blocks at each resolution, from the top 1x1 to the whole image, in the decoder and in
        the encoder.
    """
    count = len(blocks) - 1
    factor = 2 ** max(count - 1, 0)
    if count < 1 or size[0] % factor or size[1] % factor:
        raise ValueError(
            f"blocks={tuple(blocks)} halves the image {max(count - 1, 0)} times above its "
            f"{size[0]}x{size[1]} pixels: give at least two numbers, and fewer where it does not "
            "divide"
        )
    sizes = [(size[0] // 2**i, size[1] // 2**i) for i in range(count)][::-1]
    sizes = [(1, 1), *sizes]
    levels = [
        Level(each, n, i - 1 if i else None)
        for i, (each, n) in enumerate(zip(sizes, blocks, strict=True))
    ]
    return Layout(_stages(sizes[::-1], blocks[::-1]), tuple(levels))


def strings(
    size: Size,
    encoder_blocks: str = "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3",
    decoder_blocks: str = "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21",
) -> Layout:
    """Square images in the notation of VDVAE's authors (Child 2021, arXiv:2011.10650).

    Args:
      size: height and width of the image.
      encoder_blocks: 32x11 are eleven blocks at 32x32, and 32d2 is one more with pooling by 2.
      decoder_blocks: 4x2 are two blocks at 4x4, and 4m1 is one more on the state of 1x1, enlarged.
    """
    layout = Layout(_parsed_stages(encoder_blocks), _parsed_levels(decoder_blocks))
    ends = layout.stages[0].size, layout.levels[-1].size
    if ends != (size, size):
        raise ValueError(
            f"the blocks are of images of {ends[0][0]} pixels in the encoder and {ends[1][0]} in "
            f"the decoder, and x has {size[0]}x{size[1]}: choose other blocks, or --layout pyramid"
        )
    missing = {level.size for level in layout.levels} - {stage.size for stage in layout.stages}
    if missing:
        raise ValueError(
            f"the decoder has blocks at {min(missing)[0]}, where the encoder has none: add them, "
            "or pool to that resolution"
        )
    return layout


def _stages(sizes: Sequence[Size], blocks: Sequence[int]) -> tuple[Stage, ...]:
    following = [*itertools.pairwise(sizes), (sizes[-1], None)]
    return tuple(
        Stage(size, n, None if small is None else (size[0] // small[0], size[1] // small[1]))
        for (size, small), n in zip(following, blocks, strict=True)
    )


def _entries(text: str, kinds: str) -> list[tuple[int, str, int]]:
    """(resolution, kind, number) of each entry; 32 alone is 32x1."""
    entries = []
    for entry in text.split(","):
        kind = next((k for k in kinds if k in entry), "x")
        resolution, _, number = entry.strip().partition(kind)
        if not (resolution.isdigit() and (number or "1").isdigit()):
            raise ValueError(f"{entry!r} is no entry such as 32x11 or 32{kinds[-1]}2, in {text!r}")
        entries.append((int(resolution), kind, int(number or 1)))
    return entries


def _parsed_stages(text: str) -> tuple[Stage, ...]:
    sizes: list[Size] = []
    blocks: list[int] = []
    now: int | None = None
    for resolution, kind, number in _entries(text, "xd"):
        if now is not None and resolution != now:
            raise ValueError(f"a block at {resolution} follows images of {now} pixels, in {text!r}")
        if not sizes or sizes[-1] != (resolution, resolution):
            sizes.append((resolution, resolution))
            blocks.append(0)
        now = resolution
        if kind == "x":
            blocks[-1] += number
            continue
        if resolution % number:
            raise ValueError(f"{resolution} pixels are not pooled by {number}, in {text!r}")
        now = resolution // number
    if now is not None and sizes[-1] != (now, now):
        sizes.append((now, now))
        blocks.append(0)
    return _stages(sizes, blocks)


def _parsed_levels(text: str) -> tuple[Level, ...]:
    levels: list[Level] = []
    for resolution, kind, number in _entries(text, "xm"):
        size = (resolution, resolution)
        resumed = kind == "x" and bool(levels) and levels[-1].size == size
        if resumed:
            levels[-1] = levels[-1]._replace(blocks=levels[-1].blocks + number)
            continue
        places = [i for i, level in enumerate(levels) if level.size == (number, number)]
        if kind == "m" and (not places or resolution % number):
            raise ValueError(f"{resolution}m{number} needs blocks at {number} first, in {text!r}")
        if any(level.size == size for level in levels):
            raise ValueError(f"blocks at {resolution} are in two places of {text!r}")
        blocks = number if kind == "x" else 1
        levels.append(Level(size, blocks, places[-1] if kind == "m" else None))
    return tuple(levels)


LAYOUTS: dict[str, Callable[..., Layout]] = {"pyramid": pyramid, "strings": strings}
