"""The command ``augment``: new examples of every class, near the labelled ones of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro

from jaxvae import figures
from jaxvae.datasets import DataError, Split
from jaxvae.datasets.files import load_path
from jaxvae.families import Data
from jaxvae.ranges import Count
from jaxvae.runs import reports
from jaxvae.runs.loading import load
from jaxvae.uses import augmentation

SHOWN = 10  # new examples of each class in the picture


def augment(
    workdir: Annotated[Path, tyro.conf.Positional],
    data: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    per_class: Count = 50,
    how: Literal[augmentation.WAYS] = "mix",  # type: ignore[valid-type]
    seed: int = 0,
    checkpoint: str = "latest",
) -> None:
    """Makes new examples of every class, near the labelled examples of a file.

    They are written with their labels as data holds them, with a picture beside OUT. Only a
    measurement tells whether a classifier gains by them: experiments/papers/augmentation.py.

    Args:
      workdir: the run folder, or an exported folder.
      data: an .npz file with images and labels (x_train and y_train if it has parts), or a folder
        of images in a sub-folder for each class.
      out: the .npz file to write.
      per_class: new examples of each class.
      how: posterior, decoded from a draw of q(z|x) of a labelled example; or mix, from a point of
        the line between two of them.
      seed: the seed of all draws.
      checkpoint: latest, best, or a step.
    """
    if out.suffix != ".npz" or not out.resolve().parent.is_dir():
        raise DataError(f"{out} must be an .npz file in a folder that exists")
    trained = load(workdir, checkpoint)
    if trained.data.columns or trained.built.rows is not None:
        raise ValueError("jaxvae augment is for images and vectors: jaxvae sample draws others")
    split = labelled(data, trained.data)
    trained.checked(split.x)
    new = augmentation.draws(
        trained.model,
        trained.params,
        jax.random.key(seed),
        trained.built.split(split),
        split.y,
        per_class,
        how,
    )
    x = as_raw(new.x, trained.data)
    np.savez(out, images=x, labels=new.y)
    picture = out.with_suffix(".png")
    draw(picture, new, trained.data)
    rows = [("labelled examples", f"{(split.y >= 0).sum():,}"), ("new examples", f"{len(x):,}")]
    reports.table([*rows, ("written", f"{out}, {picture}")])


def labelled(place: Path, data: Data) -> Split:
    """The examples of a file, with labels. Raises DataError for what a model does not take."""
    split = next(iter(load_path(place, None, "stop").values()))
    if split.y is None:
        raise DataError(f"{place} holds no labels: give y_train beside x_train")
    levels = data.raw_levels or data.levels
    if np.issubdtype(split.dtype, np.integer) and levels and split.x.max() >= levels:
        raise DataError(
            f"a value of {place} is {split.x.max()}, and the model was trained on 0 to {levels - 1}"
        )
    return split


def as_raw(means: np.ndarray, data: Data) -> np.ndarray:
    """Means of p(x|z) as the data set holds examples. Raises ValueError for parts of examples."""
    if means.shape[1:] != data.shape:
        raise ValueError(
            f"this model decodes {means.shape[1:]}, which is no whole example {data.shape}"
        )
    if data.pixels in ("none", "gaps"):
        return means
    unit, dtype = means / data.pixel_max, np.dtype(data.dtype)
    if not np.issubdtype(dtype, np.integer):
        return unit.astype(dtype)
    highest = (data.raw_levels or data.levels or 2) - 1
    return np.clip(np.round(unit * highest), 0, highest).astype(dtype)


def draw(file: Path, new: augmentation.Labelled, data: Data) -> None:
    """Draws some new examples, a row for each class."""
    classes = np.unique(new.y)
    shown = np.stack([new.x[new.y == label][:SHOWN] for label in classes])
    names = [data.classes[label] if data.classes else str(label) for label in classes]
    if shown.ndim in (3, 5):
        figures.grid(file, shown / data.pixel_max, "New examples of each class", names)
