"""Chooses the preprocessing of a likelihood: its default, or the one that was asked for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxvae.datasets.splits import DataError, Dataset, Split, is_array

FOR_REAL_VALUES = ("dynamic", "scale", "none", "gaps")
BINARIZING = ("dynamic", "static")
COLOUR = (3, 4)  # channels of a colour image


def automatic(support: tuple[str, ...], dataset: Dataset) -> str:
    """The default preprocessing of a likelihood's ``support`` for a data set.

    It is the first member of the support that the set's values allow. Raises DataError if there is
    none. It also does if the preprocessing would binarize colour images, which nobody expects; then
    ``dynamic`` must be asked for by name.
    """
    splits = dataset.splits.values()
    if any(isinstance(split, Split) and not is_array(split.x) for split in splits):
        raise DataError(
            f"{dataset.name} holds several arrays for each example, and no preprocessing is "
            "natural for them: give Split(x, preprocess=...) a function (key, example) -> x"
        )
    floating = any(np.issubdtype(split.dtype, np.floating) for split in splits)
    natural = [name for name in support if not floating or name in FOR_REAL_VALUES]
    if not natural:
        raise DataError(
            f"this likelihood takes pixels={' or '.join(support)}, which need integer pixels, and "
            f"{dataset.name} holds real values: give the pixels as uint8, or choose a likelihood "
            "of real values such as normal"
        )
    if natural[0] in BINARIZING and _colour(dataset):
        raise DataError(
            f"{dataset.name} holds colour images, and this likelihood is of binary pixels: choose "
            "a likelihood of colour, such as --likelihood discretized_logistic_mixture, or say "
            f"--pixels {natural[0]} to binarize them"
        )
    return natural[0]


def _colour(dataset: Dataset) -> bool:
    shapes = [split.shape for split in dataset.splits.values()]
    colour = any(len(shape) == 3 and shape[-1] in COLOUR for shape in shapes)
    return colour and dataset.levels != 2


def chosen_pixels(
    asked: str,
    likelihood: str,
    support: tuple[str, ...],
    dataset: Dataset,
    supports: Mapping[str, tuple[str, ...]] | None = None,
) -> str:
    """The preprocessing that was asked for, after a check that the likelihood takes it.

    Args:
      asked: a name of ``PREPROCESSING``, or ``"auto"`` for the default.
      likelihood: the likelihood's name, for errors.
      support: the preprocessings that the likelihood takes, the default first.
      dataset: the set whose values are preprocessed.
      supports: the support of all likelihoods by name, from which errors name a way out.

    Raises DataError if the log-likelihood would mean nothing.
    """
    if asked == "auto":
        return automatic(support, dataset)
    if asked in support:
        return asked
    takers = [name for name, names in (supports or {}).items() if asked in names]
    others = f", or a likelihood that takes them ({', '.join(takers)})" if takers else ""
    raise DataError(
        f"the likelihood {likelihood} is no density of pixels={asked!r}: "
        f"use --pixels {' or '.join(support)}{others}"
    )
