"""VAEs of sentences (Bowman et al. 2016, arXiv:1511.06349), and what keeps them from collapse.

The decoder sees the words before each word, so it may ignore z: the posterior *collapses* to the
prior. Warm-up of KL, free bits, word dropout and aggressive inference work against it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optax

from jaxvae import datasets, evaluation, models, networks, posteriors, priors, training
from jaxvae.contracts import Array, Params
from jaxvae.families import assembly, contract
from jaxvae.families.contract import Built, Data
from jaxvae.families.flat import check_density, natural, natural_prior
from jaxvae.families.objectives import bound_choice
from jaxvae.ranges import Count, Fraction, Share
from jaxvae.settings import Choice, Chosen, changed

# Decoders


def gru(
    vocabulary: int,
    length: int,
    precision: str,
    decoder_embedding: Count = 64,
    decoder_units: Count = 128,
    dropout: Fraction = 0.0,
    skip: bool = False,
) -> networks.SequenceDecoder:
    """Gated recurrent units that see z beside every word (Bowman et al. 2016).

    Args:
      vocabulary: how many tokens there are.
      length: the most places of a sentence.
      precision: the precision of the network.
      decoder_embedding: size of the vector of a word in the decoder.
      decoder_units: units of the decoder.
      dropout: share of the decoder's inputs and states that training drops.
      skip: whether z, and the class if there is one, also reach the probabilities of words past the
        units (Dieng et al. 2019, arXiv:1807.04863).
    """
    sizes = decoder_embedding, decoder_units, dropout
    return networks.recurrent_decoder(vocabulary, length, *sizes, precision, skip)


def transformer(
    vocabulary: int,
    length: int,
    context_size: int,
    precision: str,
    decoder_width: Count = 128,
    decoder_layers: Count = 2,
    heads: Count = 4,
    dropout: Fraction = 0.0,
) -> networks.SequenceDecoder:
    """A causal transformer that sees z at every place (Li et al. 2020, arXiv:2004.04092).

    Args:
      vocabulary: how many tokens there are.
      length: the most places of a sentence.
      context_size: size of what the decoder is conditioned on.
      precision: the precision of the network.
      decoder_width: channels of each place.
      decoder_layers: blocks of attention.
      heads: heads of the attention, which divide the width.
      dropout: share of the decoder's units that training drops.
    """
    sizes = decoder_width, decoder_layers, heads, dropout
    return networks.transformer_decoder(
        vocabulary, length, *sizes, precision, context_size=context_size
    )


def words(
    vocabulary: int, length: int, precision: str, decoder_units: Count = 128
) -> networks.SequenceDecoder:
    """Every word by itself, given z, as in models of topics (Miao et al. 2016, arXiv:1511.06038).

    Args:
      vocabulary: how many tokens there are.
      length: the most places of a sentence.
      precision: the precision of the network.
      decoder_units: units of the decoder.
    """
    return networks.independent_decoder(vocabulary, length, decoder_units, precision)


DECODERS = {"gru": gru, "transformer": transformer, "words": words}


# When encoder and decoder learn


def together(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Encoder and decoder learn in every step."""
    return optimizer


def aggressive(
    optimizer: optax.GradientTransformation,
    aggressive_steps: Count = 2000,
    inner_window: Count = 10,
    inner_steps: Count = 30,
) -> optax.GradientTransformation:
    """The decoder waits until the encoder no longer gains (He et al. 2019, arXiv:1901.05534).

    Args:
      optimizer: the optimizer of the model.
      aggressive_steps: steps in which it does; then both learn in every step.
      inner_window: steps of the encoder whose mean loss is compared with the mean of as many before
        them; if it rose, the next step is the decoder's.
      inner_steps: the most steps of the encoder before one of the decoder.
    """
    return training.aggressive(
        optimizer, ("encoder", "posterior"), aggressive_steps, inner_window, inner_steps
    )


class _Priors(dict):
    def items(self) -> Any:
        fitting = {n: p for n, p in priors.PRIORS.items() if p is not priors.hierarchical_mixture}
        return ({"natural": natural} | fitting).items()


Decoder = Choice(DECODERS)
Learning = Choice({"together": together, "aggressive": aggressive})
Posterior = Choice(posteriors.CONTINUOUS)
Prior = Choice(_Priors())
Bound = bound_choice("continuous", "pathwise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(contract.Config):
    """The settings of models of sentences."""

    dataset: str = "sentences"
    """A .txt file with a sentence in each line, a .tsv file with a label, a tab and a sentence in
    each, a folder of files train, validation (or dev) and test, or the word sentences, which
    means a small grammar."""
    tokens: Literal[tuple(datasets.texts.TOKENIZERS)] = "words"  # type: ignore[valid-type]
    """What a sentence is cut into: words in lower case, numbers and signs, or bytes of UTF-8."""
    max_length: Count = 60
    """The most tokens of a sentence; what is longer is cut."""
    min_count: Count = 2
    """How often a token must occur in training to be no unknown word."""
    latent: Count = 16
    """Dimensions of z."""
    posterior: Chosen = Posterior("normal")
    """Family of q(z|x)."""
    prior: Chosen = Prior("natural")
    """Family of p(z)."""
    embedding: Count = 64
    """Size of the vector of a word in the encoder."""
    units: Count = 128
    """Gated recurrent units of the encoder."""
    decoder: Chosen = Decoder("gru")
    """Network that says one word after the other."""
    word_dropout: Share = 0.0
    """Probability that training hides a word from the decoder."""
    beam_width: Count = 5
    """Sentences that the search for a likely one keeps at each word."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Text):
    """A VAE of sentences."""

    bound: Chosen = Bound("elbo")
    """Objective of the training."""
    learning: Chosen = Learning("together")
    """When encoder and decoder learn."""


def support(config: Any) -> tuple[str, ...]:
    """The preprocessing of rows of tokens, which stay as they are."""
    return ("none",)


def load(
    config: Any, source: Any, data: Data | None = None, *, data_dir: str | Path | None = None
) -> datasets.Dataset:
    """The set of sentences of a configuration, in the words of a model if ``data`` is given.

    ``source`` is a file or a folder, so ``data_dir`` is not used.
    """
    if data is not None:
        (length,) = data.shape
        return datasets.texts.load(source, config.tokens, length, vocabulary=data.vocabulary)
    return datasets.texts.load(source, config.tokens, config.max_length, config.min_count)


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    parts = parts_of(config, data, config.latent)
    check_density(config, parts[2])
    vae = models.sentence_vae(*parts, config.word_dropout)
    vae = assembly.with_control(vae, config.bound)
    objective = config.bound(vae=vae, latent=config.latent)
    if objective.example is None:
        assembly.refuse_parts(config)
    algorithm = training.gradient_descent(
        vae.init,
        objective.batch,
        config.learning(optimizer=assembly.model_optimizer(config, config.bound)),
        accumulate=config.accumulate,
        virtual_shards=config.virtual_shards,
        ema_decay=config.ema_decay,
        skip_norm=config.skip_norm,
    )
    return Built(models.answers(vae), algorithm, as_sentence, vae, **answers_in_words(config, data))


def parts_of(config: Any, data: Data, context_size: int) -> tuple[Any, Any, Any, Any]:
    """Encoder, decoder, family of q(z|x) and family of p(z).

    Raises ValueError for data that are no sentences, and for words that are hidden from a decoder
    that sees none.
    """
    if not data.vocabulary:
        raise ValueError(
            f"{data.name} holds no sentences: give a .txt or .tsv file, or choose another preset"
        )
    posterior = config.posterior(latent=config.latent)
    prior = config.prior(latent=config.latent) or natural_prior(posterior, config.latent)
    if config.word_dropout and config.decoder.name == "words":
        raise ValueError(
            f"word_dropout={config.word_dropout:g} hides words before a word, and decoder=words "
            "sees none: set word_dropout to 0, or choose another decoder"
        )
    words, (length,) = len(data.vocabulary), data.shape
    encoder = networks.recurrent_encoder(words, config.embedding, config.units, posterior.size)
    encoder = networks.with_precision(encoder, config.precision)
    decoder = config.decoder(
        vocabulary=words, length=length, context_size=context_size, precision=config.precision
    )
    return encoder, decoder, posterior, prior


def as_sentence(key: Array, tokens: Array) -> models.Sentence:
    """Preprocessing: a row of tokens with the mask of the places that count."""
    return models.sentence_of(tokens)


def answers_in_words(config: Any, data: Data) -> dict[str, Any]:
    """The fields of ``Built`` by which sentences are read, written and measured."""
    vocabulary, length = data.vocabulary, data.shape[0]
    rows = lambda texts: datasets.texts.tokens_of(texts, vocabulary, length, config.tokens)

    def written(x: Any, condition: Any) -> np.ndarray:
        rows = x.tokens if isinstance(x, models.Sentence) else x
        return datasets.texts.sentences_of(rows, vocabulary, config.tokens)

    return {
        "pictures": written,
        "rows": rows,
        "decodings": {
            "greedy": lambda p, key: p.mean,
            "sampling": lambda p, key: p.sample(key),
            "beam": lambda p, key: p.beam(config.beam_width)[0][0],
        },
        "measures": measures,
        "dimensions": evaluation.words.words_per_sentence,
    }


def measures(
    model: models.Model, params: Params, key: Array, split: Any, found: dict[str, Any]
) -> dict[str, float]:
    """What is said of a model of sentences, over a split.

    Args:
      model: the answers of the model.
      params: its parameters.
      key: the key of the draws of z.
      split: the examples.
      found: what was found of the split by other measures, such as ``elbo``.
    """
    by_word = evaluation.words.word_measures(split, found)
    return by_word | evaluation.words.latent_measures(model, params, key, split)


def _preset(text: str, **named: Any) -> tuple[str, Config]:
    return text, changed(Config(), **named)


PRESETS = {
    "text-vae": _preset(
        "sentences, with a recurrent decoder or a transformer (Bowman et al. 2016)",
        kl_cost="free_bits",
        free_bits=3.0,
        steps=1500,
        batch_size=64,
        learning_rate=2e-3,
        clip_norm=5.0,
        checkpoint_every=500,
        test_samples=100,
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support, load=load)
