"""VAEs of log-mel recordings, whose codes of speakers augment training data.

Hsu, Zhang & Glass 2017, arXiv:1707.06265.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy.signal import lfilter

from jaxvae import datasets, sounds
from jaxvae.families import contract, flat
from jaxvae.families import sounds as of_sounds
from jaxvae.families.contract import Built, Data
from jaxvae.ranges import Count
from jaxvae.settings import changed
from jaxvae.sounds import Audible, Recordings
from jaxvae.sounds.spectra import FLOOR, PRE_EMPHASIS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flat.Config, of_sounds.Config):
    """A flat VAE of the log-mel features of recordings."""

    input_scale: ClassVar[float] = -1 / FLOOR

    dataset: str = "voices"
    """A folder of wav files, free_spoken_digit, or voices, which are synthesized."""
    frames: Count = 32
    """Frames that the features of a recording are stretched to."""
    mels: Count = 40
    """Filters of the features, evenly spread in mel."""


def load(
    config: Config, source: Any, data: Data | None = None, *, data_dir: str | Path | None = None
) -> datasets.Dataset:
    """Log-mel features [T, M, 1] of recordings, with labels, and one-hot speakers as attributes.

    Args:
      config: the configuration.
      source: as ``sounds.recordings`` takes it.
      data: what the model was trained on, whose classes it knows; None takes the source's.
      data_dir: where prepared sets are.
    """
    found = sounds.recordings(source, data_dir, config.file_names, config.sample_rate)
    classes = sorted(set(found.labels)) if data is None else list(data.classes)
    speakers = sorted(set(found.speakers))
    return of_sounds.dataset_of(
        found, classes, lambda part: split_of(config, part, classes, speakers)
    )


def split_of(
    config: Config, part: Recordings, classes: list[str], speakers: list[str]
) -> datasets.Split:
    """The features of recordings, with their labels and speakers."""
    features = [
        sounds.stretched(sounds.log_mel(signal, config.spectra, config.mels), config.frames)
        for signal in part.signals
    ]
    return datasets.Split(
        np.stack(features).astype(np.float32)[..., None],
        of_sounds.numbers(part.labels, classes),
        np.eye(len(speakers), dtype=np.float32)[of_sounds.numbers(part.speakers, speakers)],
    )


def support(config: Config) -> tuple[str, ...]:
    """The preprocessing of real values, if the likelihood takes it."""
    taken = flat.support(config)
    return ("none",) if "none" in taken else taken


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    return flat.build(config, data)._replace(
        pictures=of_sounds.pictures(_shown, data.pixel_max),
        audible=Audible(config.sample_rate, lambda x: _heard(config, x)),
    )


def _shown(features: np.ndarray) -> np.ndarray:
    """From the floor to as much above the mean, as black to white."""
    return np.clip((features[..., 0] - FLOOR) / (-2 * FLOOR), 0, 1)


def _heard(config: Config, features: np.ndarray) -> np.ndarray:
    """A signal with the features, as long as their frames: filters and emphasis are undone."""
    spectra = config.spectra
    filters = sounds.mel_filters(spectra.sample_rate, spectra.size, config.mels)
    powers = np.exp(features[..., 0].astype(np.float64)) @ np.linalg.pinv(filters).T
    signal = sounds.griffin_lim(np.sqrt(np.maximum(powers, 0)), spectra)
    plain = lfilter([1.0], [1.0, -PRE_EMPHASIS], signal)
    return 0.9 * plain / max(np.abs(plain).max(), 1e-12)


PRESETS = {
    "speech-vae": (
        "log-mel features of speech, to augment training data (Hsu et al. 2017)",
        changed(
            Config(window_length=200, hop_length=80, steps=3000, test_samples=200),
            likelihood="normal_learned",
            network="mlp",
            hidden=(256, 256),
            latent=64,
        ),
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support, load=load)
