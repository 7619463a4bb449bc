"""VAEs of tables with columns of several kinds, whose missing cells are left out of the density.

Mattei & Frellsen 2019, arXiv:1812.02633 (MIWAE); Nazabal et al. 2018, arXiv:1807.03653 (HI-VAE);
Ipsen et al. 2021, arXiv:2006.12871 (not-MIWAE).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae import datasets, networks, posteriors
from jaxvae.contracts import Array, Params
from jaxvae.datasets import frames, tables
from jaxvae.datasets.tables import Column
from jaxvae.families import assembly, contract
from jaxvae.families.contract import Built, Data
from jaxvae.families.flat import check_density, natural, natural_prior
from jaxvae.families.modalities import GAPS
from jaxvae.families.objectives import bound_choice
from jaxvae.models import Model, missingness
from jaxvae.models import tables as models_of_tables
from jaxvae.models.cells import REAL_FAMILIES, Layout, decoded_size
from jaxvae.ranges import Count, Fraction, Widths
from jaxvae.settings import Choice, Chosen, changed
from jaxvae.uses import missing

JUDGING_SAMPLES = 100  # importance samples of the score of held-out cells


class _Priors(dict):
    def items(self) -> Any:
        from jaxvae import priors

        fitting = {n: p for n, p in priors.PRIORS.items() if p is not priors.hierarchical_mixture}
        return ({"natural": natural} | fitting).items()


Posterior = Choice(posteriors.CONTINUOUS)
Prior = Choice(_Priors())
RealFamily = Choice(REAL_FAMILIES)
Missingness = Choice(missingness.MISSINGNESS)
Bound = bound_choice("continuous", "pathwise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """A VAE of table rows with missing cells."""

    dataset: str = frames.BUILT_IN
    """A .csv, .tsv or .parquet file, or breast_cancer, the table that comes with scikit-learn."""
    real: tuple[str, ...] = ()
    """Columns that are real numbers; the kinds of columns that are not named are inferred."""
    positive: tuple[str, ...] = ()
    """Columns that are positive real numbers."""
    count: tuple[str, ...] = ()
    """Columns that are counts."""
    ordinal: tuple[str, ...] = ()
    """Columns of values that have an order."""
    categorical: tuple[str, ...] = ()
    """Columns of values without an order."""
    drop: tuple[str, ...] = ()
    """Columns that are left out."""
    standardize: bool = True
    """Let the model see real columns in deviations of their observed cells; without it as they are,
    which suits a table that was scaled before cells went missing."""
    test_rows: Fraction = 0.1
    """Share of the rows that the result is reported on, which training does not see; 0 reports on
    the training rows."""
    held_out_cells: Fraction = 0.0
    """Share of the observed training cells that are hidden from training, by which checkpoints are
    judged; 0 judges them on the test rows."""
    real_family: Chosen = RealFamily("normal")
    """Density of real columns."""
    missingness: Chosen = Missingness("ignorable")
    """Why cells are missing."""
    latent: Count = 10
    """Dimensions of z."""
    posterior: Chosen = Posterior("normal")
    """Family of q(z|x)."""
    prior: Chosen = Prior("natural")
    """Family of p(z)."""
    hidden: Widths = (128, 128)
    """Widths of the encoder's hidden layers."""
    decoder_hidden: Widths = (128, 128)
    """Widths of the decoder's hidden layers; none is a linear decoder."""
    activation: networks.ActivationName = "relu"
    """Activation of the hidden layers."""
    learned_fill: bool = True
    """Let the encoder see a learned number in the place of a missing cell, not the mean."""
    see_mask: bool = False
    """Let the encoder see which cells are missing."""
    bound: Chosen = Bound("iwae", num_samples=20)
    """Objective of the training."""


def load(
    config: Config, source: Any, data: Data | None = None, *, data_dir: str | Path | None = None
) -> datasets.Dataset:
    """The table of a configuration, with the columns of a model if ``data`` is given.

    ``source`` is what ``datasets.tables.load`` takes, so ``data_dir`` is not used.
    """
    kinds = {kind: getattr(config, kind) for kind in tables.KINDS}
    return tables.load(
        source,
        kinds,
        config.drop,
        None if data is None else columns_of(data),
        test_rows=config.test_rows,
        held_out_cells=config.held_out_cells,
        standardize=config.standardize,
        seed=config.seed,
    )


def columns_of(data: Data) -> tuple[Column, ...]:
    """The columns of a table. Raises ValueError for data that are no table."""
    if not data.columns:
        raise ValueError(
            f"{data.name} is no table: give a .csv or .parquet file or a data frame, or choose "
            "another preset"
        )
    return tuple(Column.of_json(column) for column in data.columns)


def support(config: Config) -> tuple[str, ...]:
    """The preprocessing of rows, in which nan is a missing cell."""
    return (GAPS,)


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    columns = columns_of(data)
    posterior = config.posterior(latent=config.latent)
    check_density(config, posterior)
    why = config.missingness()
    _check_missingness(config, columns, why)
    real, activation = config.real_family(), networks.ACTIVATIONS[config.activation]
    encoder = networks.mlp(config.hidden, posterior.size, activation)
    decoder = networks.mlp(config.decoder_hidden, decoded_size(Layout(columns), real), activation)
    encoder, decoder = (networks.with_precision(n, config.precision) for n in (encoder, decoder))
    vae = models_of_tables.table_vae(
        columns,
        encoder,
        decoder,
        posterior,
        config.prior(latent=config.latent) or natural_prior(posterior, config.latent),
        real,
        why,
        config.learned_fill,
        config.see_mask,
    )
    vae = assembly.with_control(vae, config.bound)
    return assembly.trained_model(
        config,
        data,
        vae,
        lambda model: config.bound(vae=model, latent=config.latent),
        discrete=False,
        dimensions=observed_cells,
        pictures=lambda x, condition: shown(np.asarray(x), columns),
        score=_score(config) if config.held_out_cells else None,
    )


def _check_missingness(config: Config, columns: tuple[Column, ...], why: Any) -> None:
    """Raises ValueError for what a model of missingness does not go with."""
    if why is None:
        return
    counts = [column.name for column in columns if column.kind == tables.COUNT]
    if counts:
        raise ValueError(
            f"missingness={config.missingness.name} takes no counts, and column {counts[0]!r} is "
            f"count: call it --real {counts[0]} or --ordinal {counts[0]}"
        )
    if config.held_out_cells:
        raise ValueError(
            f"held_out_cells={config.held_out_cells} hides cells at random, and "
            f"missingness={config.missingness.name} says why cells are missing: leave one out"
        )


def observed_cells(split: Any) -> float:
    """Observed cells of a row, in the mean over a split."""
    return float((~np.isnan(np.asarray(split.x))).sum(1).mean())


def shown(x: np.ndarray, columns: tuple[Column, ...]) -> np.ndarray:
    """Cells from the least to the largest value as black to white; missing ones are grey."""
    ends = [(0, len(c.levels) - 1) if c.levels else (c.low, c.high) for c in columns]
    low, high = np.array(ends, np.float32).T
    return np.nan_to_num(np.clip((x - low) / (high - low), 0, 1), nan=0.5)


def _score(config: Config) -> Any:
    """The score of a checkpoint: log p of a held-out cell given the observed ones, in the mean."""

    def score(model: Model, params: Params, key: Array, split: Any) -> float:
        whole = np.asarray(split.x)
        hidden = tables.hidden_cells(whole, config.held_out_cells, config.seed)
        return missing.held_out_log_prob(model, params, key, whole, hidden, JUDGING_SAMPLES)

    return score


def _preset(text: str, **named: Any) -> tuple[str, Config]:
    return text, changed(Config(), **named)


PRESETS = {
    "tabular": _preset(
        "rows of a table with columns of several kinds and missing cells (MIWAE, HI-VAE)",
        held_out_cells=0.1,
        early_stopping=8,
        steps=10_000,
        batch_size=64,
        checkpoint_every=250,
        test_samples=500,
    ),
    "not-miwae": _preset(
        "cells that are missing because of their values (Ipsen et al. 2021)",
        missingness="self_masking",
        real_family="normal_shared",
        activation="tanh",
        decoder_hidden=(),
        learned_fill=False,
        schedule="constant",
        steps=10_000,
        batch_size=16,
        checkpoint_every=2500,
        test_samples=500,
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support, load=load)
