"""First stages: the trained runs whose codes a prior is of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from jaxvae import datasets, evaluation
from jaxvae.contracts import Params
from jaxvae.families import Built, FirstStage
from jaxvae.runs import folders
from jaxvae.runs.loading import restore

DRAWS = 2000  # training examples whose latents are standardized by, at most


@dataclasses.dataclass(frozen=True)
class Stage:
    """A trained run, opened for another run that is of its codes."""

    record: folders.Record
    built: Built
    params: Params

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

    def for_build(self, train: Any) -> FirstStage:
        """The first stage, which draws latents of training examples if it has an encoder."""
        return FirstStage(self.built, self.params, lambda: self._draws(train))

    def _draws(self, train: datasets.Split) -> Any:
        part = datasets.random_subset(self.built.split(train), DRAWS)
        key = jax.random.key(0)
        q = evaluation.encodings.posteriors_of(self.built.model, self.params, key, part)
        keys = jax.random.split(key, len(jax.tree.leaves(q)[0]))
        return jax.vmap(lambda q, key: q.sample(key))(q, keys)


def open_stage(config: Any) -> Stage:
    """The run that ``config.of`` names. Raises ValueError if there is none."""
    if not config.of:
        raise ValueError(
            "a prior is of the codes of a trained run: say with of=RUN_FOLDER of which one"
        )
    folder = Path(config.of)
    record = folders.read(folder)
    if record.first is not None:
        raise ValueError(f"of={folder} is a prior itself: name the run that it is of")
    built = record.build()
    step, params = restore(folder, built, record.data, config.of_checkpoint)
    place = record.place | {"step": step}
    return Stage(record._replace(place=place), built, params)
