"""Wav files."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from jaxvae.datasets.splits import DataError, reason


def read_wave(file: str | Path, sample_rate: int) -> np.ndarray:
    """The channels of a wav file: [C, N] float64 in [-1, 1].

    Raises DataError if the file cannot be read, is empty, or has another sample rate.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that hold no sound
            rate, samples = wavfile.read(file)
    except FileNotFoundError:
        raise DataError(f"there is no {file}") from None
    except Exception as error:  # damaged files: ValueError, EOFError, struct.error
        raise DataError(f"{file} cannot be read as a wav file ({reason(error)})") from error
    if rate != sample_rate:
        raise DataError(
            f"{file} has {rate} samples a second, and sample_rate={sample_rate} was expected: "
            "convert the file, or train with its sample rate"
        )
    if not samples.size:
        raise DataError(f"{file} holds no samples: leave it out")
    return _unit(samples).reshape(len(samples), -1).T


def _unit(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1]. Integers are divided by their largest; uint8 has its zero at 128."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float64) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float64) / (np.iinfo(samples.dtype).max + 1.0)
    return samples.astype(np.float64)


def write_wave(file: str | Path, signal: np.ndarray, sample_rate: int) -> None:
    """Writes a signal [N], or channels [C, N], with 16 bits.

    A signal that leaves [-1, 1] is divided by its peak.
    """
    signal = np.asarray(signal, np.float64)
    loudest = max(float(np.abs(signal).max()), 1.0)
    samples = np.round(signal / loudest * (2**15 - 1)).astype(np.int16)
    wavfile.write(file, sample_rate, samples.T)
