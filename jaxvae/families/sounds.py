"""What families of sound share: their settings, and data sets of recordings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxvae import datasets
from jaxvae.families import contract
from jaxvae.ranges import Count
from jaxvae.sounds import Recordings, Spectra


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """The settings of recordings and their spectra."""

    dataset: str = "voices"
    """A folder of wav files, free_spoken_digit, or voices, which are synthesized."""
    file_names: str = "{label}_{speaker}_{take}"
    """What the paths of wav files in the folder say, without .wav, such as {speaker}/{take}."""
    sample_rate: Count = 8000
    """Samples a second, which all recordings must have."""
    window_length: Count = 512
    """Samples in the window of a spectrum."""
    hop_length: Count = 256
    """Samples from one spectrum to the next."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hop_length > self.window_length // 2:
            raise ValueError(
                f"hop_length={self.hop_length} must be at most half of window_length="
                f"{self.window_length}, so that windows overlap"
            )

    @property
    def spectra(self) -> Spectra:
        """How signals become spectra."""
        return Spectra(self.sample_rate, self.window_length, self.hop_length)


def dataset_of(
    found: Recordings, classes: list[str], split: Callable[[Recordings], datasets.Split]
) -> datasets.Dataset:
    """The splits of recordings, each made of its part of them."""
    splits = {name: split(found.of(rows)) for name, rows in found.parts().items()}
    return datasets.Dataset(found.name, splits, classes=tuple(classes))


def numbers(words: list[str], classes: list[str]) -> np.ndarray:
    """Each word's number among the classes, and -1 for the word of nobody."""
    place = {word: number for number, word in enumerate(classes)}
    return np.array([place.get(word, -1) for word in words], np.int32)


def pictures(shown: Callable[[np.ndarray], np.ndarray], white: float) -> Callable[[Any, Any], Any]:
    """Pictures of spectra [..., T, F] with time to the right and low frequencies below.

    Args:
      shown: takes spectra to values from 0 to 1.
      white: what pictures show as white.
    """

    def upright(x: Any, condition: Any) -> np.ndarray:
        return white * np.swapaxes(shown(np.asarray(x)), -1, -2)[..., ::-1, :, None]

    return upright
