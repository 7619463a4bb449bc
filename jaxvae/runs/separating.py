"""The command ``separate``, which takes a mixture apart with a model of power spectra."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jaxvae import evaluation, figures, separation, sounds
from jaxvae.datasets import DataError
from jaxvae.ranges import Count
from jaxvae.runs import folders, reports
from jaxvae.runs.loading import Trained, load

QUIETEST = 80.0  # decibels below the loudest that pictures show as black


def separate(
    workdir: Annotated[Path, tyro.conf.Positional],
    mixture: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    sweeps: Count = 20,
    code_steps: Count = 100,
    begin: Literal["identity", "gauss", "laplace", "low_rank"] = "low_rank",
    begin_sweeps: Count = 30,
    speakers: tuple[str, ...] = (),
    references: tuple[Path, ...] = (),
    checkpoint: str = "latest",
) -> None:
    """Separates the sources of a wav file with as many channels as sources.

    Writes source-1.wav and so on, as the first microphone hears them, separation.json and a picture
    of the spectra.

    Args:
      workdir: the run folder of a model of power spectra, such as mvae.
      mixture: the wav file, one channel for each source.
      out: folder of what is written; None is WORKDIR/separated/NAME.
      sweeps: how often the codes of the sources and the demixing matrices are fitted in turn.
      code_steps: steps of Adam on the codes in each sweep.
      begin: what gives the first demixing matrices: the identity, or a model without a network.
      begin_sweeps: sweeps of that model.
      speakers: the speakers of the sources, in any order; none are found out.
      references: wav files of the sources alone at the first microphone, for SDR.
      checkpoint: latest, best, or a step.
    """
    trained = load(workdir, checkpoint)
    audible = _audible(trained, workdir)
    channels = sounds.read_wave(mixture, audible.sample_rate)
    if len(channels) < 2:
        raise DataError(
            f"{mixture} has one channel, and separation needs one for each source: record it with "
            "two microphones at least"
        )
    labels = labels_of(trained, speakers, len(channels))
    truth = [sounds.read_wave(file, audible.sample_rate)[0] for file in references]
    if truth and len(truth) != len(channels):
        raise DataError(
            f"references={len(truth)} files are too few or too many for {len(channels)} sources: "
            "give one of each"
        )
    spectra = mixture_spectra(trained, channels)
    first = None
    if begin != "identity":
        first = separation.separate(spectra, separation.PRIORS[begin](), begin_sweeps).matrices
    model = source_model(trained, labels, code_steps)
    result = separation.separate(spectra, model, sweeps, first)
    signals = signals_of(trained, result, spectra, channels.shape[1])
    rows = _numbers(trained, result, signals, truth)
    folder = out or workdir / "separated" / mixture.stem
    folder.mkdir(parents=True, exist_ok=True)
    for number, signal in enumerate(signals, 1):
        sounds.write_wave(folder / f"source-{number}.wav", signal, audible.sample_rate)
    _draw(folder / "spectra.png", audible, [channels[0], *signals])
    folders.write_json(folder / "separation.json", {"objectives": result.objectives} | rows)
    shown = [(name.replace("_", " "), ", ".join(map(str, value))) for name, value in rows.items()]
    reports.table([*shown, ("written", str(folder))])


def _audible(trained: Trained, workdir: Path) -> Any:
    audible = trained.built.audible
    if audible is None or audible.spectra is None:
        raise ValueError(f"{workdir} is no model of power spectra, such as mvae: train one")
    return audible


def labels_of(trained: Trained, speakers: tuple[str, ...], sources: int) -> list[int] | None:
    """The numbers of named speakers, or None if there are none."""
    if not speakers:
        return None
    known = trained.data.classes
    if len(speakers) != sources:
        raise DataError(f"speakers={len(speakers)} names are of {sources} sources: name each")
    if unknown := set(speakers) - set(known):
        raise DataError(f"no speaker {min(unknown)!r}; the model knows {', '.join(known)}")
    return [known.index(speaker) for speaker in speakers]


def mixture_spectra(trained: Trained, channels: np.ndarray) -> np.ndarray:
    """The spectra [F, M, T] of the channels [M, N] of a mixture."""
    audible: Any = trained.built.audible
    return audible.spectra.of(channels).transpose(2, 0, 1)


def source_model(
    trained: Trained, labels: list[int] | None = None, code_steps: int = 100
) -> separation.SourceModel:
    """The trained model as one of sources, whose labels are known or found out."""
    audible: Any = trained.built.audible
    classes, frames = trained.data.num_classes, audible.frames
    return separation.vae_sources(
        trained.model, trained.params, classes, frames, labels, code_steps
    )


def signals_of(
    trained: Trained, result: separation.Separation, spectra: np.ndarray, length: int
) -> np.ndarray:
    """The sources as the first microphone hears them, [J, N]."""
    images = separation.projected_back(result.matrices, spectra)
    audible: Any = trained.built.audible
    return audible.spectra.signal(np.swapaxes(images, 1, 2), length)


def _numbers(
    trained: Trained, result: separation.Separation, signals: np.ndarray, truth: list[np.ndarray]
) -> dict[str, list[Any]]:
    """The likeliest speaker of each source, its weight, and ratios in dB beside references."""
    weights = np.exp(result.state.logits - result.state.logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    rows: dict[str, list[Any]] = {
        "speakers": [trained.data.classes[number] for number in weights.argmax(1)],
        "weights_of_speakers": np.round(weights.max(1).astype(float), 3).tolist(),
    }
    if truth:
        length = min(map(len, truth))
        references = np.stack([reference[:length] for reference in truth])
        quality = evaluation.separation_quality(references, signals)
        rows |= {
            "sdr": np.round(quality.sdr, 2).tolist(),
            "sir": np.round(quality.sir, 2).tolist(),
            "source_of_reference": (quality.order + 1).tolist(),
        }
    return rows


def _draw(path: Path, audible: Any, signals: list[np.ndarray]) -> None:
    """Draws the spectra of the mixture and of the sources above each other, in decibels."""
    powers = np.abs(np.stack([audible.spectra.of(signal) for signal in signals])) ** 2
    decibels = 10 * np.log10(np.maximum(powers / powers.max(), 10 ** (-QUIETEST / 10)))
    images = (1 + decibels / QUIETEST).transpose(0, 2, 1)[:, None, ::-1, :, None]
    names = ["mixture", *(f"source {number}" for number in range(1, len(signals)))]
    figures.grid(path, images, "Spectra, time to the right and frequency upwards", names)
