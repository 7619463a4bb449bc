"""Sound: files, names, spectra beside closed forms and a library, phases from magnitudes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from jaxvae import sounds
from jaxvae.datasets import DataError

SPECTRA = sounds.Spectra(8000, 256, 64)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32, np.uint8])
def test_a_file_is_read_as_it_was_written(kind: type, tmp_path: Path) -> None:
    """Of every type of samples, [-1, 1] with zero at zero."""
    wave = np.array([[0.0, 0.5], [-0.5, 0.25], [-1.0, 0.0]])
    scale, zero = {np.int16: (2**15, 0), np.int32: (2**31, 0), np.uint8: (128, 128)}.get(
        kind, (1, 0)
    )
    wavfile.write(tmp_path / "x.wav", 8000, (wave * scale + zero).astype(kind))
    np.testing.assert_allclose(sounds.read_wave(tmp_path / "x.wav", 8000), wave.T, atol=1e-7)


def test_loud_signals_are_not_clipped(tmp_path: Path) -> None:
    sounds.write_wave(tmp_path / "x.wav", np.array([3.0, -1.5, 0.0]), 8000)
    read = sounds.read_wave(tmp_path / "x.wav", 8000)[0]
    np.testing.assert_allclose(read, [1.0, -0.5, 0.0], atol=1e-4)


def test_spectra_have_an_inverse_and_keep_the_energy() -> None:
    """Of several channels at once; Parseval's sum, with the weights of one-sided spectra."""
    signal = np.random.default_rng(0).standard_normal((2, 1000))
    spectra = SPECTRA.of(signal)
    assert spectra.shape[-1] == SPECTRA.size == 129
    np.testing.assert_allclose(SPECTRA.signal(spectra, 1000), signal, atol=1e-12)
    twice = np.r_[1, np.full(127, 2), 1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    overlap = (window**2).reshape(4, 64).sum(0)  # the same at every sample
    np.testing.assert_allclose(overlap, overlap[0])
    energy = (twice * np.abs(spectra) ** 2).sum((1, 2)) / 256
    np.testing.assert_allclose(energy, overlap[0] * (signal**2).sum(1), rtol=1e-10)


def test_a_tone_is_where_its_frequency_is() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(4000) / 8000)
    spectrum = np.abs(SPECTRA.of(tone))[20]
    assert spectrum.argmax() == 1000 / (8000 / 256)
    assert sounds.mel_filters(8000, 129, 20).max(0)[2:-2].min() > 0  # no frequency is lost


# librosa 0.11: librosa.filters.mel(sr=8000, n_fft=64, n_mels=6, htk=True, norm=None)[:, 4:29:4]
MEL = [
    [0.0212389, 0, 0, 0, 0, 0, 0],
    [0.9787611, 0, 0, 0, 0, 0, 0],
    [0, 0.7639474, 0, 0, 0, 0, 0],
    [0, 0.2360526, 0.8123918, 0.0427869, 0, 0, 0],
    [0, 0, 0.1876082, 0.9572132, 0.4462893, 0, 0],
    [0, 0, 0, 0, 0.5537107, 0.8933306, 0.4466653],
]


def test_filters_are_those_of_a_library() -> None:
    np.testing.assert_allclose(sounds.mel_filters(8000, 33, 6)[:, 4:29:4], MEL, atol=1e-6)


def test_silence_is_the_floor_and_loudness_no_feature() -> None:
    signal = sounds.voices(1)[0][0]
    features = sounds.log_mel(signal, SPECTRA, 20)
    assert features.shape == (len(SPECTRA.of(signal)), 20)
    np.testing.assert_allclose(sounds.log_mel(signal / 7, SPECTRA, 20), features, atol=1e-6)
    np.testing.assert_allclose(sounds.log_mel(np.zeros(1000), SPECTRA, 20), 0, atol=1e-9)
    padded = sounds.log_mel(np.r_[signal, np.zeros(2000)], SPECTRA, 20)
    assert padded.min() == sounds.spectra.FLOOR


def test_features_are_stretched_in_straight_lines() -> None:
    features = np.arange(5.0)[:, None] * [1.0, -2.0]
    np.testing.assert_allclose(
        sounds.stretched(features, 9)[:, 0], np.linspace(0, 4, 9), atol=1e-12
    )
    np.testing.assert_array_equal(sounds.stretched(features[:1], 3), np.zeros((3, 2)))


def test_phases_are_found_that_fit_the_magnitudes() -> None:
    """The distance never rises with the iterations, and a signal of a voice comes near."""
    magnitudes = np.abs(SPECTRA.of(sounds.voices(1)[0][0]))

    def distance(iterations: int) -> float:
        signal = sounds.griffin_lim(magnitudes, SPECTRA, iterations)
        again = np.abs(SPECTRA.of(signal))[: len(magnitudes)]
        return float(np.linalg.norm(again - magnitudes) / np.linalg.norm(magnitudes))

    distances = [distance(count) for count in (0, 1, 5, 20, 60)]
    assert (np.diff(distances) < 0).all()
    assert distances[-1] < 0.2 < distances[0]


def test_voices_are_a_set_with_both_splits() -> None:
    found = sounds.recordings("voices", None, "", 8000)
    parts = found.parts()
    assert (len(parts["train"]), len(parts["test"])) == (360, 40)
    held = found.of(parts["test"])
    assert len(set(zip(held.speakers, held.labels, strict=True))) == 40
    again = sounds.recordings("voices", None, "", 8000)
    np.testing.assert_array_equal(found.signals[7], again.signals[7])


def test_names_say_who_speaks(tmp_path: Path) -> None:
    """In folders too, with takes in the order of their numbers."""
    for take in (0, 2, 10):
        for name in ("a/7", "b/3"):
            (tmp_path / name[0]).mkdir(exist_ok=True)
            sounds.write_wave(tmp_path / f"{name}_{take}.wav", np.full(50, take / 20), 8000)
    found = sounds.recordings(tmp_path, None, "{speaker}/{label}_{take}", 8000)
    assert found.speakers == ["a"] * 3 + ["b"] * 3 and found.labels == ["7"] * 3 + ["3"] * 3
    np.testing.assert_allclose([s[0] for s in found.signals[:3]], [0, 0.1, 0.5], atol=1e-4)
    assert found.parts()["test"].tolist() == [0, 3]


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    def folder(name: str, samples: np.ndarray, rate: int = 8000) -> Path:
        (tmp_path / name).mkdir()
        wavfile.write(tmp_path / name / "x_1.wav", rate, samples)
        return tmp_path / name

    mono = np.zeros(9, np.int16)
    damaged = folder("damaged", mono)
    (damaged / "x_1.wav").write_bytes(b"RIFF nothing")
    (tmp_path / "none").mkdir()
    refused = [
        (folder("stereo", np.zeros((9, 2), np.int16)), "{speaker}_{take}", "has 2 channels"),
        (folder("fast", mono, 16000), "{speaker}_{take}", "has 16000 samples a second"),
        (folder("empty", mono[:0]), "{speaker}_{take}", "holds no samples"),
        (folder("named", mono), "{speaker}", "has one recording|is not named"),
        (damaged, "{speaker}_{take}", "cannot be read as a wav file"),
        (tmp_path / "none", "{speaker}", "holds no wav files"),
        (tmp_path / "none", "{take}", "must name {speaker} once"),
        (tmp_path / "none", "{speaker}{age}", "and no {age}"),
        ("voices", "", "has 8000 samples a second"),
    ]
    for source, names, words in refused:
        rate = 11025 if source == "voices" else 8000
        with pytest.raises(DataError, match=words):
            sounds.recordings(source, None, names, rate).parts()
