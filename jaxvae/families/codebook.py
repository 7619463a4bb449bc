"""Autoencoders with discrete codes: VQ-VAE, VQ-VAE-2, and other quantizers in the same place."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxvae import likelihoods, networks, quantizers, training
from jaxvae.families import contract
from jaxvae.families.contract import Built, Data, optimizer_of
from jaxvae.families.flat import likelihood_of, support
from jaxvae.models import codebook
from jaxvae.ranges import Count, Whole, Widths
from jaxvae.settings import Choice, Chosen, changed

Likelihood = Choice(likelihoods.LIKELIHOODS)
Quantizer = Choice(quantizers.QUANTIZERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """An autoencoder of images with discrete codes."""

    latent: Count = 64
    """Coordinates of the vector of a code."""
    quantizer: Chosen = Quantizer("moving_average")
    """How vectors become codes."""
    likelihood: Chosen = Likelihood("discretized_logistic")
    """Family of p(x|codes)."""
    hidden: Widths = (64, 128)
    """Channels of the encoder's layers, each of which halves height and width; the decoder has them
    in reverse order."""
    top_hidden: Widths = ()
    """Channels of further layers, which lead to a second, coarser level of codes; empty is one
    level."""
    blocks: Whole = 2
    """Residual blocks in each encoder and decoder."""
    block_hidden: Count = 32
    """Channels inside a residual block."""


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    _check(config, data)
    likelihood = likelihood_of(config, data)
    model = codebook.Codebook(levels_of(config, data, likelihood), likelihood, data.shape)
    return Built(
        codebook.codebook_answers(model),
        algorithm_of(config, model),
        data.preprocess,
        model,
        discrete=likelihood.discrete,
    )


def _check(config: Config, data: Data) -> None:
    if len(data.shape) != 3:
        raise ValueError(
            f"codebooks are for images [H, W, C]; these examples have shape {data.shape}: choose "
            "another preset"
        )
    if not config.hidden:
        raise ValueError("hidden must have at least one width; it was empty")
    if config.accumulate > 1 or config.virtual_shards:
        raise ValueError(
            "perplexities and averages of codes need the whole batch: accumulate must be 1 and "
            "virtual_shards 0"
        )


def levels_of(
    config: Config, data: Data, likelihood: likelihoods.Likelihood
) -> tuple[codebook.Level, ...]:
    """The levels of a configuration, from the coarsest to the finest."""
    size, output = list(data.shape[:2]), likelihood.outputs(data.shape)
    levels: list[codebook.Level] = []
    for hidden in filter(None, (config.hidden, config.top_hidden)):
        down = networks.feature_encoder(hidden, config.blocks, config.block_hidden)
        down = networks.scaled_input(down, 1.0 if levels else data.input_scale)
        up = networks.feature_decoder(hidden[::-1], output, config.blocks, config.block_hidden)
        parts = (down, networks.pointwise(config.latent), up)
        down, to_vectors, up = (networks.with_precision(part, config.precision) for part in parts)
        quantizer = config.quantizer(latent=config.latent)
        levels.append(codebook.Level(down, to_vectors, up, quantizer))
        size = [math.ceil(side / 2 ** len(hidden)) for side in size]
        output = (*size, config.latent)
    return tuple(levels[::-1])


def algorithm_of(config: Config, model: codebook.Codebook) -> training.Algorithm:
    """The training of a model."""
    return training.gradient_descent(
        lambda key, x: codebook.init(model, key),
        codebook.negative_bound(model),
        codebook.optimizer_of(model, optimizer_of(config)),
        ema_decay=config.ema_decay,
    )


def _preset(text: str, **named: Any) -> tuple[str, Config]:
    return text, changed(Config(), **named)


PRESETS = {
    "vq-vae": _preset(
        "codes of a codebook that follows them (van den Oord et al. 2017)", learning_rate=3e-4
    ),
    "vq-vae-2": _preset(
        "two levels of codes, the fine ones given the coarse ones (Razavi et al. 2019)",
        top_hidden=(128,),
        learning_rate=3e-4,
    ),
    "fsq": _preset(
        "coordinates rounded to a few levels, without a codebook (Mentzer et al. 2023)",
        quantizer="finite_scalar",
        latent=4,
        learning_rate=3e-4,
    ),
    "lfq": _preset(
        "signs as codes, with a penalty on their entropies (Yu et al. 2023)",
        quantizer="lookup_free",
        latent=9,
        learning_rate=3e-4,
    ),
    "rq-vae": _preset(
        "codebooks one after the other, of what is left (Zeghidour et al. 2021)",
        quantizer="residual",
        learning_rate=3e-4,
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
