"""Digits of speakers and in noise that a classifier has not heard, with a VAE's augmentation.

``python experiments/papers/speech.py --dataset free_spoken_digit --data-dir DIR [--seeds 3]``

The VAE sees the log-mel features of all training recordings, without their labels. A logistic
regression learns the digits from one speaker, and is judged on another: on the features as they
are, on decoder means whose speaker is replaced by the other one (Hsu et al. 2017), or perturbed.
Numbers are means over all pairs of speakers. Replacement takes the mean code of the other speaker's
recordings, so it is transductive. Row ``linear`` is a VAE whose networks are affine, and row
``mlp`` the preset. Rows with ``noise`` have two nuisances in the place of speakers: recordings as
they are, and the same with white noise at ``--snr`` dB.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import time
from typing import Annotated, Any

import numpy as np
import tyro

from experiments import tables
from jaxvae import datasets, families, runs, sounds
from jaxvae.command_line import run_function
from jaxvae.evaluation import nuisances
from jaxvae.families import sounds as of_sounds
from jaxvae.families.speech import split_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.SoundOptions):
    """What is trained and measured."""

    hidden: tuple[int, ...] = (256, 256)
    latent: int = 64
    steps: int = 3000
    batch_size: int = 128
    snr: float = 10.0
    """Decibels of the recordings above the noise."""


ROWS = {
    "linear": {"hidden": ()},
    "mlp": {},
    "linear noise": {"hidden": ()},
    "mlp noise": {},
}


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Digits of speakers and in noise that a classifier has not heard."""
    rows = options.chosen(ROWS)
    results: tables.Results = {}
    found = options.recordings()
    for name, own in rows.items():
        for seed in range(options.seeds):
            start = time.perf_counter()
            config: Any = options.applied(families.preset("speech-vae"), seed=seed)
            given = {"file_names": options.file_names, "sample_rate": options.sample_rate}
            config = families.changed(config, **given, **own)
            noise = options.snr if name.endswith("noise") else None
            run = runs.prepare(config, options.job, dataset(config, found, noise))
            params = run.built.parameters(run.fit(num_steps=config.steps))
            train, test = (
                run.built.split(datasets.select(run.dataset, part)) for part in ("train", "test")
            )
            cell = nuisances.transfers(run.built.model, params, run.key, train, test)
            cell = {column.replace("_", " "): value for column, value in cell.items()}
            results.setdefault(name, []).append(cell | {"seconds": time.perf_counter() - start})
            print(f"{name}, seed {seed}: {cell}", flush=True)
    tables.show(results)
    tables.save(options.json, dataclasses.asdict(options), results)


def dataset(config: Any, found: sounds.Recordings, snr: float | None) -> datasets.Dataset:
    """The features; with noise all speakers are one, and the recordings with noise are another."""
    speakers = sorted(set(found.speakers)) if snr is None else ["clean", "noise"]
    classes = sorted(set(found.labels))

    def split(part: sounds.Recordings) -> datasets.Split:
        heard = part if snr is None else beside_noise(part, snr)
        return split_of(config, heard, classes, speakers)

    return of_sounds.dataset_of(found, classes, split)


def beside_noise(part: sounds.Recordings, snr: float) -> sounds.Recordings:
    """Recordings as they are, and the same with noise."""
    rng, count = np.random.default_rng(0), len(part.signals)
    return part._replace(
        signals=part.signals + [with_noise(rng, signal, snr) for signal in part.signals],
        labels=part.labels * 2,
        speakers=["clean"] * count + ["noise"] * count,
    )


def with_noise(rng: np.random.Generator, signal: np.ndarray, snr: float) -> np.ndarray:
    """The signal with white noise, whose power is ``snr`` decibels below the signal's."""
    scale = np.sqrt((signal**2).mean() * 10 ** (-snr / 10))
    return signal + scale * rng.standard_normal(len(signal))


if __name__ == "__main__":
    run_function(main)
