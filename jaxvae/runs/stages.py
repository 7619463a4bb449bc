"""First stages: the trained runs whose codes a prior is of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxvae import datasets, evaluation
from jaxvae.contracts import Params
from jaxvae.families import Built, FirstStage
from jaxvae.runs import folders
from jaxvae.runs.loading import restore

DRAWS = 2000  # training examples whose latents are standardized by, at most


class Stage(NamedTuple):
    """A trained run, whose codes another run is of."""

    folder: Path
    checkpoint: str  # latest, best, or a step
    record: folders.Record

    @property
    def seed(self) -> int:
        """The seed of ``static`` binarization."""
        return self.record.data_seed

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ValueError if a data set has examples of another shape."""
        if shape != self.record.data.shape:
            raise ValueError(
                f"{name} holds examples of shape {shape}; the run that a prior is of takes "
                f"{self.record.data.shape}"
            )

    def completed(self, config: Any) -> Any:
        """The configuration with the data of the run, where it names no other.

        Raises ValueError for another preprocessing than the one of the run.
        """
        fresh, theirs, data = type(config)(), self.record.config, self.record.data
        now = {"pixels": data.pixels, "levels": data.raw_levels}
        now |= {name: getattr(theirs, name) for name in ("image_size", "unreadable")}
        for name, value in now.items():
            given = getattr(config, name)
            if given not in (getattr(fresh, name), value):
                raise ValueError(f"{name} is {value} in the run that of={config.of} names")
        for name in ("train_split", "test_split"):
            now[name] = getattr(config, name) or getattr(theirs, name)
        now["validation_split"] = config.validation_split or theirs.validation_split
        now["dataset"] = config.dataset or self.record.place["dataset"] or ""
        return dataclasses.replace(config, **now)

    def opened(self, train: datasets.Split) -> tuple[folders.Record, FirstStage]:
        """The record with the step of the checkpoint, and the model with its parameters.

        The model draws latents of training examples, if it has an encoder.
        """
        built = self.record.build()
        step, params = restore(self.folder, built, self.record.data, self.checkpoint)
        record = self.record._replace(place=self.record.place | {"step": step})
        draws = lambda: draws_of(built, params, train)
        return record, FirstStage(built, params, draws, lambda: means_of(built, params, train))


def draws_of(built: Built, params: Params, train: datasets.Split) -> Any:
    """A draw of q(z|x) for each of a fixed random subset of training examples."""
    part = datasets.random_subset(built.split(train), DRAWS)
    key = jax.random.key(0)
    q = evaluation.encodings.posteriors_of(built.model, params, key, part)
    keys = jax.random.split(key, len(jax.tree.leaves(q)[0]))
    return jax.vmap(lambda q, key: q.sample(key))(q, keys)


def means_of(built: Built, params: Params, train: datasets.Split) -> Any:
    """The mean of q(z|x) for each of a fixed random subset of training examples."""
    part = datasets.random_subset(built.split(train), DRAWS)
    return evaluation.encode_split(built.model, params, jax.random.key(0), part)


def stage_of(config: Any) -> Stage:
    """The run that ``config.of`` names. Raises ValueError if there is none."""
    if not config.of:
        raise ValueError(
            "the model is of the codes of a trained run: say with of=RUN_FOLDER of which one"
        )
    folder = Path(config.of)
    record = folders.read(folder)
    if record.first is not None:
        raise ValueError(f"of={folder} is of the codes of a run itself: name that run")
    return Stage(folder, config.of_checkpoint, record)
