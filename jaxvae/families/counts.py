"""VAEs of the counts of single cells, as scVI models them (Lopez et al. 2018).

The library size is given, and the batch is seen by the decoder alone. So codes say nothing of the
batch that the counts do not say.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvae import datasets, likelihoods, models, networks
from jaxvae.contracts import Array, Preprocess
from jaxvae.datasets import single_cells, subsets
from jaxvae.families import assembly, contract
from jaxvae.families.contract import Built, Data
from jaxvae.families.flat import Posterior, check_density, natural_prior
from jaxvae.families.objectives import bound_choice
from jaxvae.families.text import Prior
from jaxvae.models import counts
from jaxvae.ranges import Count, Fraction, Widths
from jaxvae.settings import Choice, Chosen

OF_COUNTS = ("negative_binomial", "zero_inflated_negative_binomial", "poisson")
Likelihood = Choice({name: likelihoods.LIKELIHOODS[name] for name in OF_COUNTS})
Dispersion = Choice(counts.DISPERSIONS)
Bound = bound_choice("continuous", "pathwise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """A VAE of the counts of single cells, given library size and batch."""

    dataset: str = single_cells.GENERATED
    """An .h5ad file of AnnData, an .npz file with counts [N, G] and genes [G], or the word cells,
    which means a small set that is drawn from a known model."""
    layer: str | None = None
    """Layer of AnnData, or array of an .npz file, that holds the counts; None is X, or counts."""
    batch_key: str | None = None
    """Column of the cells that names the batch, which the decoder sees; None is one batch."""
    size_factor_key: str | None = None
    """Column with the counts of each cell over all genes, of which the file may hold some; None is
    the sum over the genes of the file."""
    latent: Count = 10
    """Dimensions of z."""
    posterior: Chosen = Posterior("normal")
    """Family of q(z|x)."""
    prior: Chosen = Prior("natural")
    """Family of p(z)."""
    likelihood: Chosen = Likelihood("negative_binomial")
    """Family of p(x|z) of each gene."""
    dispersion: Chosen = Dispersion("gene")
    """What has an inverse dispersion of its own."""
    hidden: Widths = (128,)
    """Widths of the hidden layers of the encoder; the decoder has them in reverse order."""
    dropout: Fraction = 0.1
    """Share of the encoder's hidden units that training drops."""
    bound: Chosen = Bound("elbo")
    """Objective of the training."""


def load(
    config: Config, source: Any, data: Data | None = None, *, data_dir: str | Path | None = None
) -> datasets.Dataset:
    """The cells of a configuration, with library sizes and batches as attributes [N, 2].

    Args:
      config: the configuration.
      source: as ``single_cells.read`` takes it.
      data: what the model was trained on, whose genes and batches it knows; None takes the
        source's.
      data_dir: not used.
    """
    return dataset_of(config, single_cells.read(source, config.layer), data)


def dataset_of(
    config: Config, cells: single_cells.Cells, data: Data | None = None
) -> datasets.Dataset:
    """The splits of cells. A tenth of them is ``test``."""
    cells, attributes, batches = read_as(config, cells, data)
    split = datasets.Split(cells.counts, attributes=attributes)
    return datasets.Dataset(
        cells.name, subsets.with_test({"train": split}), genes=cells.genes, batches=batches
    )


def read_as(
    config: Config, cells: single_cells.Cells, data: Data | None = None
) -> tuple[single_cells.Cells, np.ndarray, tuple[str, ...]]:
    """Cells as a model takes them: library size and number of the batch [N, 2], and all batches.

    Raises DataError that names a gene or a batch which the model does not know.
    """
    cells = cells if data is None else cells.of_genes(data.genes)
    batches: tuple[str, ...] = ()
    if config.batch_key is not None:
        names = cells.column(config.batch_key).astype(str)
        batches = tuple(np.unique(names).tolist()) if data is None else data.batches
    numbers = cells.batch_numbers(config.batch_key, batches)
    library = cells.library(config.size_factor_key)
    return cells, np.stack([library, numbers.astype(np.float32)], 1), batches


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    _check(data)
    posterior = config.posterior(latent=config.latent)
    check_density(config, posterior)
    prior = config.prior(latent=config.latent) or natural_prior(posterior, config.latent)
    encoder = networks.mlp_with_dropout(config.hidden, posterior.size, config.dropout)
    encoder = networks.with_precision(encoder, config.precision)
    decoder, inner = decoder_of(config, data)
    cvae = models.cvae(
        counts.count_encoder(encoder), decoder, posterior, config.likelihood(), prior, _both
    )
    cvae = assembly.with_control(cvae, config.bound)
    built = assembly.trained_model(
        config,
        data,
        cvae,
        lambda model: config.bound(vae=model, latent=config.latent),
        preprocess=_pairs(data),
        raw=_raw,
        pairs=True,
        condition=_condition(data),
        pictures=_shown,
        notes=_notes(config, data),
    )
    (genes,) = data.shape
    answers = built.model._replace(expression=counts.expression(inner, genes))
    return built._replace(model=answers, cells=lambda source: _cells(config, data, source))


def _check(data: Data) -> None:
    if not data.genes:
        raise ValueError(
            f"{data.name} holds no counts of cells: give an .h5ad file, an .npz file with counts "
            "and genes, or choose another preset"
        )


def decoder_of(config: Config, data: Data) -> tuple[networks.Network, networks.Network]:
    """The decoder of a configuration, and the network of (z, batch) in it."""
    (genes,), batches = data.shape, len(data.batches)
    gate = config.likelihood.name == "zero_inflated_negative_binomial"
    dispersion = None
    if config.likelihood.name != "poisson":
        dispersion = config.dispersion(genes=genes, batches=batches)
    decoded = 0 if dispersion is None else dispersion.decoded
    shape = (genes + (config.size_factor_key is not None), 1 + decoded + gate)
    inner = networks.mlp_beside(config.hidden[::-1], shape)
    inner = networks.with_precision(inner, config.precision)
    return counts.count_decoder(inner, genes, dispersion, gate), inner


def _raw(split: datasets.Split) -> models.Conditioned:
    return models.Conditioned(split.x, datasets.attributes(split))


def _cells(config: Config, data: Data, source: Any) -> tuple[single_cells.Cells, datasets.Split]:
    """The cells of a source as they are, and as the model takes them."""
    read = single_cells.read(source, config.layer)
    cells, attributes, _ = read_as(config, read, data)
    raw = models.Conditioned(cells.counts, attributes)
    return read, datasets.Split(raw, preprocess=_pairs(data))


def _both(a: Any, b: Any) -> tuple[Any, Any]:
    return a, b


def _condition(data: Data) -> Any:
    """Library size and number of the batch [2], as the model takes them."""

    def condition(y: Array) -> counts.Sequencing:
        if y.shape != (2,):
            raise ValueError(
                f"a condition is the library size and the number of the batch; its shape was "
                f"{y.shape}"
            )
        return counts.Sequencing(y[0], jax.nn.one_hot(y[1].astype(int), len(data.batches)))

    return condition


def _pairs(data: Data) -> Preprocess:
    preprocess, condition = data.preprocess, _condition(data)

    def pair(key: Array, raw: models.Conditioned) -> models.Conditioned:
        return models.Conditioned(preprocess(key, raw.x), condition(raw.y))

    return pair


def _shown(x: Any, condition: Any) -> np.ndarray:
    """log(1 + x) beside the largest of them, as grey levels of a strip."""
    logs = np.log1p(np.asarray(x, np.float32))
    return (logs / max(logs.max(), 1e-6))[..., None, :, None]


def _notes(config: Config, data: Data) -> tuple[str, ...]:
    batches = f"batches {', '.join(data.batches)}" if data.batches else "one batch"
    library = "the sum of the counts" if config.size_factor_key is None else config.size_factor_key
    return (f"{data.size} cells, {len(data.genes)} genes, {batches}; library size: {library}",)


PRESETS = {
    "single-cell": (
        "counts of single cells, given library size and batch (scVI, Lopez et al. 2018)",
        Config(steps=3000, learning_rate=3e-3, checkpoint_every=500, test_samples=500),
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, lambda config: ("counts",), load=load)
