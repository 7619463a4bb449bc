"""Semi-supervised VAEs of sentences (Xu et al. 2017, arXiv:1603.02514).

They are M2 of Kingma et al. 2014 with a decoder that sees the class at every word, and the bounds
of ``models.labels``.

A sentence without a label teaches by how much likelier its words are in one class than in another.
Recurrent units learn that slowly, since they explain a word by the words before it. Until then the
bound leads q(y|x) away from the labels. A decoder of words by themselves learns it first, as naive
Bayes does with EM (Nigam et al. 2000, doi:10.1023/A:1007692713085). With ``skip`` the class also
reaches the words of a recurrent decoder past its units.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxvae import models, networks, training
from jaxvae.contracts import Array
from jaxvae.families import assembly, contract, labels, text
from jaxvae.families.contract import Built, Data
from jaxvae.ranges import Amount, Count, Share
from jaxvae.settings import Choice, Chosen, changed


def words(vocabulary: int, classes: int, classifier_embedding: Count = 128) -> networks.Network:
    """A linear function of the words' vectors (Joulin et al. 2017, arXiv:1607.01759).

    Args:
      vocabulary: how many tokens there are.
      classes: the number of classes.
      classifier_embedding: size of the vector of a word in the classifier.
    """
    return networks.bag_of_words(vocabulary, classifier_embedding, classes)


def gru(
    vocabulary: int,
    classes: int,
    classifier_embedding: Count = 64,
    classifier_units: Count = 128,
) -> networks.Network:
    """Gated recurrent units over the words (Xu et al. 2017).

    Args:
      vocabulary: how many tokens there are.
      classes: the number of classes.
      classifier_embedding: size of the vector of a word in the classifier.
      classifier_units: units of the classifier.
    """
    return networks.recurrent_encoder(vocabulary, classifier_embedding, classifier_units, classes)


CLASSIFIERS = {"words": words, "gru": gru}
Classifier = Choice(CLASSIFIERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(text.Text, labels.FewLabels):
    """A VAE of sentences whose labels may be missing."""

    decoder: Chosen = text.Decoder("words")
    """Network of the words given y and z: each word by itself, which tells classes apart with few
    labels, or one word after the other."""
    labelled_share: Share = 0.25
    """Share of labelled sentences in every batch, if some are and some are not; the loss makes up
    for it."""
    label_weight: Amount = 100.0
    """Weight alpha of the mean cross-entropy of the labelled sentences, in nats for each."""
    classifier: Chosen = Classifier("words")
    """Network of q(y|x)."""


def m2_of(config: Config, data: Data) -> models.M2:
    """M2 of sentences."""
    classes = labels.classes_of(data)
    encoder, decoder, posterior, prior = text.parts_of(config, data, config.latent + classes)
    classifier = config.classifier(vocabulary=len(data.vocabulary), classes=classes)
    classifier = networks.with_precision(classifier, config.precision)
    on_tuple = networks.of_input(classifier, tuple)
    cvae = models.sentence_cvae(encoder, decoder, posterior, prior, config.word_dropout)
    return models.M2(cvae, on_tuple, classes)


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    if not data.num_classes:
        raise ValueError(
            f"a model with labels needs sentences with labels, and {data.name} has none: give a "
            ".tsv file, whose lines have a label, a tab and a sentence"
        )
    model, shares = m2_of(config, data), labels.shares_of(config, data)
    init, loss = labels.loss_of(config, model, shares)

    def start(key: Array, example: Any) -> Any:
        return init(key, example.x)

    algorithm = training.gradient_descent(
        start,
        training.batch_mean(loss),
        assembly.model_optimizer(config, config.bound),
        accumulate=config.accumulate,
        virtual_shards=config.virtual_shards,
        ema_decay=config.ema_decay,
        skip_norm=config.skip_norm,
    )
    return Built(
        models.m2_answers(model),
        algorithm,
        labels.pairs_of(text.as_sentence),
        model,
        **text.answers_in_words(config, data),
        **labels.data_fields(config, data, shares),
    )


PRESETS = {
    "text-ssvae": (
        "sentences whose labels may be missing: --labelled 100 (Xu et al. 2017)",
        changed(
            Config(),
            labelled=30,
            steps=600,
            batch_size=64,
            learning_rate=1e-2,
            clip_norm=5.0,
            checkpoint_every=300,
            test_samples=20,
        ),
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, text.support, load=text.load)
