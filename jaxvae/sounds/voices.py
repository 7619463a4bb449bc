"""Synthesized voices, a small set of recordings that needs no data."""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

RATE = 8000
# The first two formants of ten vowels in Hz (after Peterson & Barney 1952, table II).
VOWELS = {
    **{"iy": (270, 2290), "ih": (390, 1990), "eh": (530, 1840), "ae": (660, 1720)},
    **{"ah": (520, 1190), "aa": (730, 1090), "ao": (570, 840), "uh": (440, 1020)},
    **{"uw": (300, 870), "er": (490, 1350)},
}
# The pitch in Hz of each speaker, and a factor of all formants, as of shorter vocal tracts.
SPEAKERS = {
    "bass": (85.0, 0.9),
    "tenor": (130.0, 1.0),
    "alto": (185.0, 1.1),
    "treble": (260.0, 1.2),
}
BANDWIDTHS = (80.0, 120.0)


def voices(takes: int = 10, seed: int = 0) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Signals, speakers and labels: ten vowels by four speakers, some takes of each.

    A train of pulses with a gliding pitch passes through two resonators, the formants. Pitch,
    length, formants and loudness differ from take to take.
    """
    rng = np.random.default_rng(seed)
    rows = [(s, v) for s in SPEAKERS for v in VOWELS for _ in range(takes)]
    signals = [_vowel(rng, *SPEAKERS[speaker], VOWELS[vowel]) for speaker, vowel in rows]
    return signals, [speaker for speaker, _ in rows], [vowel for _, vowel in rows]


def _vowel(
    rng: np.random.Generator, pitch: float, tract: float, formants: tuple[int, int]
) -> np.ndarray:
    length = int(RATE * rng.uniform(0.25, 0.4))
    glide = np.linspace(rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1), length)
    phase = np.cumsum(pitch * glide / RATE)
    pulses = np.diff(np.floor(phase), prepend=0.0)
    signal = pulses + 0.02 * rng.standard_normal(length)
    for formant, bandwidth in zip(formants, BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * bandwidth / RATE)
        angle = 2 * np.pi * formant * tract * rng.uniform(0.97, 1.03) / RATE
        signal = lfilter([1.0], [1.0, -2 * radius * np.cos(angle), radius**2], signal)
    signal = signal * np.sin(np.pi * np.linspace(0, 1, length)) ** 0.5
    return 0.5 * rng.uniform(0.5, 1.0) * signal / np.abs(signal).max()
