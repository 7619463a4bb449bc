"""Short-time spectra, mel features, and signals whose spectra have given magnitudes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.signal import ShortTimeFFT, lfilter
from scipy.signal.windows import hann

PRE_EMPHASIS = 0.97
FLOOR = -8.0  # of log-mel, relative to its mean over the recording


class Spectra(NamedTuple):
    """How signals [..., N] become spectra [..., T, F], and spectra signals again."""

    sample_rate: int
    window_length: int
    hop_length: int

    @property
    def size(self) -> int:
        """The number of frequencies F."""
        return self.window_length // 2 + 1

    def of(self, signal: np.ndarray) -> np.ndarray:
        """The complex spectra of a signal, which is filled up to half a window with zeros."""
        short = self.window_length - signal.shape[-1]
        if short > 0:
            signal = np.pad(signal, [(0, 0)] * (signal.ndim - 1) + [(0, short)])
        return np.swapaxes(_transform(self).stft(signal), -1, -2)

    def signal(self, spectra: np.ndarray, length: int | None = None) -> np.ndarray:
        """The signal of complex spectra, the inverse of ``of``; its first ``length`` samples."""
        transform = _transform(self)
        whole = transform.istft(np.swapaxes(spectra, -1, -2))
        return np.real(whole if length is None else whole[..., :length])


class Audible(NamedTuple):
    """What of a model of sound can be heard."""

    sample_rate: int
    signal: Callable[[np.ndarray], np.ndarray]  # x of one example -> a signal [N]
    spectra: Spectra | None = None  # of which x are the powers, if they are
    frames: int = 1  # spectra are filled up to a multiple of them, so few programs are compiled


@functools.lru_cache(maxsize=16)
def _transform(spectra: Spectra) -> ShortTimeFFT:
    window = hann(spectra.window_length, sym=False)
    return ShortTimeFFT(window, spectra.hop_length, spectra.sample_rate)


def griffin_lim(
    magnitudes: np.ndarray, spectra: Spectra, iterations: int = 60, seed: int = 0
) -> np.ndarray:
    """A signal whose spectra have about the magnitudes [T, F] (Griffin & Lim 1984, eq. 6).

    The spectra of a signal replace the phases, and the magnitudes stay. The distance of the
    magnitudes never rises.
    """
    rng = np.random.default_rng(seed)
    phases = np.exp(2j * np.pi * rng.random(magnitudes.shape))
    for _ in range(iterations):
        again = spectra.of(spectra.signal(magnitudes * phases))[: len(magnitudes)]
        phases = again / np.maximum(np.abs(again), 1e-12)
    return spectra.signal(magnitudes * phases)


def mel_filters(sample_rate: int, size: int, mels: int) -> np.ndarray:
    """Triangles of height one that are evenly spread in mel, [mels, F].

    mel(f) = 2595 log10(1 + f / 700), as HTK has it.
    """
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    frequencies = np.linspace(0, sample_rate / 2, size)
    widths = np.diff(edges)[:, None]
    rising = (frequencies - edges[:-2, None]) / widths[:-1]
    falling = (edges[2:, None] - frequencies) / widths[1:]
    return np.maximum(0, np.minimum(rising, falling))


def log_mel(signal: np.ndarray, spectra: Spectra, mels: int) -> np.ndarray:
    """The log-mel powers [T, mels] of a signal with pre-emphasis, less their mean.

    The level of a recording is no feature. What lies more than ``FLOOR`` below the mean is silence.
    """
    sharper = lfilter([1.0, -PRE_EMPHASIS], [1.0], signal)
    powers = np.abs(spectra.of(sharper)) ** 2
    filtered = powers @ mel_filters(spectra.sample_rate, spectra.size, mels).T
    logs = np.log(np.maximum(filtered, 1e-10 * max(filtered.max(), 1e-300)))
    return np.maximum(logs - logs.mean(), FLOOR)


def stretched(features: np.ndarray, frames: int) -> np.ndarray:
    """Features [T, D] of any length T as [frames, D], by linear interpolation in time."""
    at = np.linspace(0, len(features) - 1, frames)
    low = np.minimum(at.astype(int), max(len(features) - 2, 0))
    high = np.minimum(low + 1, len(features) - 1)
    share = (at - low)[:, None]
    return (1 - share) * features[low] + share * features[high]
