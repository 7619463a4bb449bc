"""Sound: wav files, recordings of speakers, spectra, mel features, and signals from magnitudes.

The transforms are SciPy's. Signals are NumPy arrays in [-1, 1], and spectra are [..., T, F].
"""

from jaxvae.sounds.recordings import Recordings, name_pattern, recordings
from jaxvae.sounds.spectra import Audible, Spectra, griffin_lim, log_mel, mel_filters, stretched
from jaxvae.sounds.voices import voices
from jaxvae.sounds.waves import read_wave, write_wave

__all__ = [
    "Audible",
    "Recordings",
    "Spectra",
    "griffin_lim",
    "log_mel",
    "mel_filters",
    "name_pattern",
    "read_wave",
    "recordings",
    "stretched",
    "voices",
    "write_wave",
]
