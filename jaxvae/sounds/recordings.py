"""Recordings of speakers: from a folder of wav files, from a prepared set, or synthesized."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvae.datasets.catalog import reader
from jaxvae.datasets.loading import looks_like_path
from jaxvae.datasets.splits import DataError
from jaxvae.sounds.voices import RATE, voices
from jaxvae.sounds.waves import read_wave

TEST_SHARE = 10  # one in so many takes of each speaker and label is of the test split
PREPARED_RATES = {"free_spoken_digit": 8000}  # of sets that do not say it


class Recordings(NamedTuple):
    """Signals of one channel, and who says what in them."""

    name: str
    signals: list[np.ndarray]  # [N] each, in [-1, 1]
    speakers: list[str]
    labels: list[str]  # what is said; all are "" if the names do not tell
    sample_rate: int

    def of(self, rows: Any) -> Recordings:
        """The recordings of some rows."""
        pick = lambda values: [values[row] for row in rows]
        return self._replace(
            signals=pick(self.signals), speakers=pick(self.speakers), labels=pick(self.labels)
        )

    def parts(self) -> dict[str, np.ndarray]:
        """Rows of the splits: of each speaker and label, the first tenth of the takes is the test.

        Raises DataError if nothing is left for one of the splits.
        """
        groups: dict[tuple[str, str], list[int]] = {}
        for row, who in enumerate(zip(self.speakers, self.labels, strict=True)):
            groups.setdefault(who, []).append(row)
        test = [row for rows in groups.values() for row in rows[: _held_out(len(rows))]]
        if not test:
            raise DataError(
                f"{self.name} has one recording of each speaker and word, and none for a test "
                "split: give several"
            )
        return {"train": np.setdiff1d(np.arange(len(self.signals)), test), "test": np.sort(test)}


def _held_out(takes: int) -> int:
    return max(round(takes / TEST_SHARE), 1) if takes > 1 else 0


def recordings(
    source: str | Path, data_dir: str | Path | None, file_names: str, sample_rate: int
) -> Recordings:
    """The recordings of a folder of wav files, of a prepared set, or the synthesized ``voices``.

    Takes of one speaker and label are in the order of their numbers.

    Args:
      source: a folder, the name of a tensorflow-datasets set, or ``"voices"``.
      data_dir: where prepared sets are.
      file_names: what the names of files say, as ``name_pattern`` reads it.
      sample_rate: samples a second, which all recordings must have.

    Raises DataError for a source without recordings, a name that does not fit, or another sample
    rate.
    """
    if not isinstance(source, str | Path):
        raise DataError("recordings are a folder of wav files or a set by name, and no arrays")
    if str(source) == "voices":
        return _of_rate(Recordings("voices", *voices(), RATE), sample_rate)
    if looks_like_path(source):
        return _of_folder(Path(source), file_names, sample_rate)
    return _of_rate(_prepared(str(source), data_dir), sample_rate)


def name_pattern(file_names: str) -> re.Pattern[str]:
    """The pattern of names such as ``{label}_{speaker}_{take}``, without ``.wav``.

    >>> name_pattern("{label}_{speaker}_{take}").fullmatch("7_theo_12")["speaker"]
    'theo'

    Raises DataError for text without ``{speaker}``, or with a field that is unknown.
    """
    parts = re.split(r"\{(\w*)\}", file_names)
    fields = parts[1::2]
    if "speaker" not in fields or len(set(fields)) < len(fields):
        raise DataError(f"file_names={file_names!r} must name {{speaker}} once")
    if unknown := set(fields) - {"speaker", "label", "take"}:
        raise DataError(
            f"file_names={file_names!r} may name {{speaker}}, {{label}} and {{take}}, "
            f"and no {{{min(unknown)}}}"
        )
    written = [re.escape(part) for part in parts[::2]]
    groups = [f"(?P<{field}>[^/]+?)" for field in fields] + [""]
    return re.compile("".join(a + b for a, b in zip(written, groups, strict=True)))


def _of_folder(folder: Path, file_names: str, sample_rate: int) -> Recordings:
    pattern = name_pattern(file_names)
    files = [file for file in folder.rglob("*") if file.suffix.lower() == ".wav"]
    if not files:
        raise DataError(f"{folder} holds no wav files")
    signals, speakers, labels = [], [], []
    for file in sorted(files, key=_in_order):
        name = file.relative_to(folder).with_suffix("").as_posix()
        match = pattern.fullmatch(name)
        if match is None:
            raise DataError(
                f"{file} is not named as file_names={file_names!r} says: give names, such as "
                "{speaker}_{take} or {speaker}/{label}_{take}"
            )
        channels = read_wave(file, sample_rate)
        if len(channels) > 1:
            raise DataError(f"{file} has {len(channels)} channels; a recording has one")
        signals.append(channels[0])
        speakers.append(match["speaker"])
        labels.append(match.groupdict().get("label", ""))
    return Recordings(folder.name, signals, speakers, labels, sample_rate)


def _in_order(file: Path) -> list[Any]:
    """The parts of a path, in which numbers are ordered by their values."""
    return [
        (int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", str(file))
    ]


def _prepared(name: str, data_dir: str | Path | None) -> Recordings:
    """A prepared set with the features ``audio``, ``label``, ``speaker`` and ``filename``."""
    base = name.split("/")[0].split(":")[0]
    if base not in PREPARED_RATES:
        raise DataError(
            f"{name} is no known set of recordings ({', '.join(PREPARED_RATES)}): give a folder of "
            "wav files"
        )
    source = reader(name, data_dir).as_data_source("train")
    examples = source.__getitems__(range(len(source)))
    examples.sort(key=lambda example: _in_order(Path(example["filename"].decode())))
    return Recordings(
        name,
        [example["audio"] / 2.0**15 for example in examples],
        [example["speaker"].decode() for example in examples],
        [str(example["label"]) for example in examples],
        PREPARED_RATES[base],
    )


def _of_rate(found: Recordings, sample_rate: int) -> Recordings:
    if found.sample_rate != sample_rate:
        raise DataError(
            f"{found.name} has {found.sample_rate} samples a second, and "
            f"sample_rate={sample_rate} was expected"
        )
    return found
