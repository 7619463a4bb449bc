"""Conditional VAEs of the power spectra of speakers, which separate mixtures of them.

Multichannel VAE: Kameoka et al. 2019, arXiv:1808.00892.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvae import datasets, models, networks, sounds
from jaxvae.contracts import Array
from jaxvae.families import assembly, contract
from jaxvae.families import sounds as of_sounds
from jaxvae.families.contract import Built, Data
from jaxvae.families.objectives import bound_choice
from jaxvae.ranges import Count, Widths
from jaxvae.settings import Chosen
from jaxvae.sounds import Audible, Recordings

QUIETEST = 1e-6  # the power that pictures show as black, where the mean is one
Bound = bound_choice("continuous", "pathwise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(of_sounds.Config):
    """A conditional VAE of power spectra, given the speaker."""

    segment_frames: Count = 64
    """Frames T of an example, a multiple of 2 to the number of hidden layers."""
    latent: Count = 16
    """Dimensions of z for each of its frames."""
    hidden: Widths = (128, 64)
    """Channels of the encoder's layers, each after the first at half of the rate before; the
    decoder has them in reverse order."""
    bound: Chosen = Bound("elbo")
    """Objective of the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segment_frames % self.rate:
            raise ValueError(
                f"segment_frames={self.segment_frames} must be a multiple of {self.rate}, which is "
                "2 to the number of widths in hidden"
            )

    @property
    def rate(self) -> int:
        """Frames of x for each frame of z."""
        return 2 ** len(self.hidden)


def load(
    config: Config, source: Any, data: Data | None = None, *, data_dir: str | Path | None = None
) -> datasets.Dataset:
    """Segments of each speaker's recordings, as powers [T, F] of mean one.

    The recordings of a speaker follow each other. Half of a segment is in the next one too.

    Args:
      config: the configuration.
      source: as ``sounds.recordings`` takes it.
      data: what the model was trained on, whose speakers it knows; None takes the source's.
      data_dir: where prepared sets are.
    """
    found = sounds.recordings(source, data_dir, config.file_names, config.sample_rate)
    speakers = sorted(set(found.speakers)) if data is None else list(data.classes)
    if unknown := set(found.speakers) - set(speakers):
        raise datasets.DataError(f"{found.name} has the speaker {min(unknown)}, who is unknown")
    return of_sounds.dataset_of(found, speakers, lambda part: _split(config, part, speakers))


def _split(config: Config, part: Recordings, speakers: list[str]) -> datasets.Split:
    x, y = [], []
    for number, speaker in enumerate(speakers):
        signals = [s for s, who in zip(part.signals, part.speakers, strict=True) if who == speaker]
        if signals:
            segments = _segments(config, np.concatenate(signals))
            x.append(segments)
            y += [number] * len(segments)
    return datasets.Split(np.concatenate(x), np.array(y, np.int32))


def _segments(config: Config, signal: np.ndarray) -> np.ndarray:
    """Powers [N, T, F] of mean one. A signal that is too short for one segment is repeated."""
    powers, frames = np.abs(config.spectra.of(signal)) ** 2, config.segment_frames
    if len(powers) < frames:
        powers = np.resize(powers, (frames, powers.shape[1]))
    starts = range(0, len(powers) - frames + 1, max(frames // 2, 1))
    segments = np.stack([powers[start : start + frames] for start in starts])
    loudness = segments.mean((1, 2), keepdims=True)
    heard = loudness[:, 0, 0] > 0
    return (segments[heard] / loudness[heard]).astype(np.float32)


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    frames, frequencies = data.shape
    speakers = data.num_classes
    encoder = networks.temporal_encoder(config.hidden, config.latent)
    decoder = networks.temporal_decoder(config.hidden[::-1], frequencies)
    encoder, decoder = (networks.with_precision(n, config.precision) for n in (encoder, decoder))
    shape = (frames // config.rate, config.latent)
    cvae = models.spectral_cvae(encoder, decoder, shape)
    cvae = assembly.with_control(cvae, config.bound)
    one_hot = lambda y: jax.nn.one_hot(y, speakers)

    def pair(key: Array, raw: models.Conditioned) -> models.Conditioned:
        return models.Conditioned(raw.x, one_hot(raw.y))

    return assembly.trained_model(
        config,
        data,
        cvae,
        lambda model: config.bound(vae=model, latent=config.latent),
        preprocess=pair,
        raw=lambda split: models.Conditioned(split.x, split.y),
        pairs=True,
        condition=one_hot,
        pictures=of_sounds.pictures(_shown, data.pixel_max),
        discrete=False,
        audible=Audible(
            config.sample_rate, lambda x: _heard(config, x), config.spectra, config.segment_frames
        ),
        notes=(f"{speakers} speakers: {', '.join(data.classes)}",),
    )


def _shown(powers: np.ndarray) -> np.ndarray:
    """Decibels, from black to white."""
    least = np.log(QUIETEST)
    return np.clip(1 - np.log(np.maximum(powers, QUIETEST)) / least, 0, 1.5) / 1.5


def _heard(config: Config, powers: np.ndarray) -> np.ndarray:
    signal = sounds.griffin_lim(np.sqrt(np.asarray(powers, np.float64)), config.spectra)
    return 0.9 * signal / max(np.abs(signal).max(), 1e-12)


PRESETS = {
    "mvae": (
        "power spectra of speakers, to separate mixtures (Kameoka et al. 2019)",
        Config(steps=2000, batch_size=16, test_samples=20, report_every=100),
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, lambda config: ("none",), load=load)
