"""Separation of two speakers: multichannel VAE beside AuxIVA and ILRMA of a library, SDR in dB.

``python experiments/papers/separation.py --dataset free_spoken_digit --data-dir DIR [--seeds 3]``
``python experiments/papers/separation.py --dataset cmu_arctic --file-names {speaker}_{take}
--sample-rate 16000``

Each mixture has words of two speakers, from recordings that the model was not trained on. Two
microphones 5 cm apart hear them in a room of 6 x 5 x 3 m, which pyroomacoustics simulates. Without
reverberation the mixture is instantaneous. The row ``oracle`` knows the powers of the sources, so
it bounds every source model. ``mvae`` begins with the identity, and ``mvae after ilrma`` with 30
sweeps of low-rank variances, as its authors have it.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from experiments import tables
from jaxvae import evaluation, families, runs, separation, sounds
from jaxvae.command_line import run_function
from jaxvae.runs.separating import mixture_spectra, signals_of, source_model
from jaxvae.separation import SourceModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.SoundOptions):
    """What is trained and separated."""

    hidden: tuple[int, ...] = (128, 64)
    latent: int = 16
    steps: int = 2000
    batch_size: int = 16
    window_length: int = 512
    hop_length: int = 256
    pairs: int = 6
    """Pairs of speakers."""
    words: int = 12
    """Recordings in each speaker's part of a mixture."""
    reverberation: float = 0.15
    """Seconds in which the sound of the room falls by 60 dB; 0 is an instantaneous mixture."""
    sweeps: int = 20


class Mixture(NamedTuple):
    """A mixture, and its sources as the first microphone hears each alone."""

    channels: np.ndarray  # [M, N]
    images: np.ndarray  # [J, N]


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Separation of two speakers: multichannel VAE beside AuxIVA and ILRMA of a library."""
    rows = options.chosen(ROWS)
    results: tables.Results = {}
    for seed in range(options.seeds):
        trained = train(options, seed)
        for number, mixture in enumerate(mixtures(options, seed)):
            for name, row in rows.items():
                start = time.perf_counter()
                sources = row(trained, mixture, options)
                quality = evaluation.separation_quality(mixture.images, sources)
                cell = {"SDR": float(quality.sdr.mean()), "worst SDR": float(quality.sdr.min())}
                cell["SIR"] = float(quality.sir.mean())
                results.setdefault(name, []).append(cell | {"seconds": time.perf_counter() - start})
                print(f"{name}, seed {seed}, mixture {number}: {cell}", flush=True)
    tables.show(results, "SDR")
    tables.save(options.json, dataclasses.asdict(options), results)


def train(options: Options, seed: int) -> runs.Trained:
    """The model, without a run folder."""
    names = ("file_names", "sample_rate", "window_length", "hop_length")
    own = {name: getattr(options, name) for name in names}
    config = options.applied(families.preset("mvae"), seed=seed, **own)
    run, params, _ = tables.trained(config, options.job)
    return runs.Trained(run.built, run.record.data, params, config.steps)


def mixtures(options: Options, seed: int) -> list[Mixture]:
    """Mixtures of words of the test split, for pairs of speakers in turn."""
    found = options.recordings()
    test, rng = found.of(found.parts()["test"]), np.random.default_rng(seed)
    pairs = list(itertools.combinations(sorted(set(test.speakers)), 2))
    order = [pairs[i] for i in rng.permutation(len(pairs))]
    made = []
    for pair in itertools.islice(itertools.cycle(order), options.pairs):
        parts = [_words(test, speaker, options.words, rng) for speaker in pair]
        length = min(map(len, parts))
        signals = np.stack([part[:length] / part[:length].std() for part in parts])
        made.append(_mixed(signals, options))
    return made


def _words(test: sounds.Recordings, speaker: str, count: int, rng: Any) -> np.ndarray:
    rows = [row for row, who in enumerate(test.speakers) if who == speaker]
    chosen = rng.permutation(rows)[:count]
    return np.concatenate([test.signals[row] for row in chosen])


def _mixed(signals: np.ndarray, options: Options) -> Mixture:
    if not options.reverberation:
        mixing = np.array([[1.0, 0.6], [0.5, 1.0]])
        return Mixture(mixing @ signals, mixing[0][:, None] * signals)
    pra = _library()
    size = [6.0, 5.0, 3.0]
    absorption, order = pra.inverse_sabine(options.reverberation, size)
    room = pra.ShoeBox(
        size, options.sample_rate, materials=pra.Material(absorption), max_order=order
    )
    for signal, angle in zip(signals, (60, 120), strict=True):
        place = 2 * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
        room.add_source([3 + place[0], 1.5 + place[1], 1.5], signal=signal)
    room.add_microphone_array(np.array([[2.975, 3.025], [1.5, 1.5], [1.5, 1.5]]))
    images = room.simulate(return_premix=True)  # [J, M, N]
    return Mixture(images.sum(0), images[:, 0])


def _library() -> Any:
    try:
        import pyroomacoustics
    except ImportError as error:
        raise ValueError(
            "rooms, AuxIVA and ILRMA need pyroomacoustics: pip install 'jaxvae[audio]'"
        ) from error
    return pyroomacoustics


# Rows: (trained model, mixture, options) -> sources [J, N]


def mixed(trained: runs.Trained, mixture: Mixture, options: Options) -> np.ndarray:
    """The mixture itself, as both sources."""
    return np.repeat(mixture.channels[:1], len(mixture.images), 0)


def of_library(name: str, **settings: Any) -> Callable[..., np.ndarray]:
    """A member of ``pyroomacoustics.bss``."""

    def separated(trained: runs.Trained, mixture: Mixture, options: Options) -> np.ndarray:
        audible: Any = trained.built.audible
        np.random.seed(0)  # noqa: NPY002, of ILRMA's first factors
        spectra = mixture_spectra(trained, mixture.channels).transpose(2, 0, 1)
        y = getattr(_library().bss, name)(spectra, proj_back=True, **settings)
        return audible.spectra.signal(y.transpose(2, 0, 1), mixture.channels.shape[1])

    return separated


def of_model(begin: str | None = None) -> Callable[..., np.ndarray]:
    """The multichannel VAE, after some sweeps of a model without a network."""

    def separated(trained: runs.Trained, mixture: Mixture, options: Options) -> np.ndarray:
        spectra, first = mixture_spectra(trained, mixture.channels), None
        if begin is not None:
            first = separation.separate(spectra, separation.PRIORS[begin](), 30).matrices
        result = separation.separate(spectra, source_model(trained), options.sweeps, first)
        return signals_of(trained, result, spectra, mixture.channels.shape[1])

    return separated


def oracle(trained: runs.Trained, mixture: Mixture, options: Options) -> np.ndarray:
    """Demixing with the powers of the sources as variances."""
    spectra = mixture_spectra(trained, mixture.channels)
    powers = np.abs(np.swapaxes(mixture_spectra(trained, mixture.images), 0, 1)) ** 2
    known = np.maximum(powers, 1e-8 * powers.mean())
    model = SourceModel(
        lambda powers: known, lambda state, powers: known, lambda state: state, lambda *_: 0.0
    )
    result = separation.separate(spectra, model, options.sweeps)
    return signals_of(trained, result, spectra, mixture.channels.shape[1])


ROWS: dict[str, Callable[..., np.ndarray]] = {
    "mixture": mixed,
    "auxiva": of_library("auxiva", n_iter=30, model="gauss"),
    "ilrma": of_library("ilrma", n_iter=30, n_components=2),
    "mvae": of_model(),
    "mvae after ilrma": of_model("low_rank"),
    "oracle": oracle,
}


if __name__ == "__main__":
    run_function(main)
