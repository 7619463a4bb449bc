"""Models of examples whose labels may be missing: M2 (Kingma et al. 2014, arXiv:1406.5298)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxvae import datasets, likelihoods, models, networks, posteriors, training
from jaxvae.contracts import Array, Loss, Preprocess
from jaxvae.families import assembly, contract
from jaxvae.families.contract import Built, Data
from jaxvae.families.flat import likelihood_of, support
from jaxvae.families.objectives import bound_choice
from jaxvae.ranges import Amount, Count, Share, Widths
from jaxvae.settings import Choice, Chosen

Posterior = Choice(posteriors.CONTINUOUS)
Likelihood = Choice(likelihoods.LIKELIHOODS)
Bound = bound_choice("categorical", "enumeration")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewLabels(contract.Config):
    """The settings of models that learn from examples with a label and without."""

    labelled: Count | None = None
    """Training examples whose labels are used, equally many of each class and chosen by the seed;
    None takes all labels."""
    labelled_share: Share = 0.1
    """Share of labelled examples in every batch, if some are and some are not; the loss makes up
    for it."""
    label_weight: Amount = 0.1
    """Weight alpha of the mean cross-entropy of the labelled examples, in nats for each example.
    With the 0.1 of Kingma et al. 2014, M2 of pixels may find other clusters than the classes."""
    bound: Chosen = Bound("elbo")
    """Objective of the examples without a label, whose latent is the label."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled(FewLabels):
    """The settings of M2, of whatever it explains."""

    latent: Count = 10
    """Dimensions of z."""
    posterior: Chosen = Posterior("normal")
    """Family of q(z|x, y)."""
    hidden: Widths = (200,)
    """Widths of the hidden layers of encoder, classifier and decoder."""
    activation: networks.ActivationName = "softplus"
    """Activation of the hidden layers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Labelled):
    """M2: a VAE of examples whose labels may be missing."""

    likelihood: Chosen = Likelihood("bernoulli")
    """Family of p(x|y, z)."""


# The data


def classes_of(data: Data) -> int:
    """The number of classes. Raises ValueError if the set has no labels."""
    if not data.num_classes:
        raise ValueError(
            f"a model with labels needs a set with labels in memory; {data.name} has none here"
        )
    return data.num_classes


def shares_of(config: Any, data: Data) -> models.Shares:
    """How many examples have a label, in the data and in each batch."""
    known = data.size - data.missing_labels
    labelled = known if config.labelled is None else min(config.labelled, known)
    if labelled == data.size:
        return models.Shares(labelled, 0, config.batch_size, 0)
    if config.batch_size < 2:
        raise ValueError("batch_size must be at least 2: some examples have a label and some none")
    count = round(config.labelled_share * config.batch_size)
    count = min(max(count, 1), config.batch_size - 1)
    return models.Shares(labelled, data.size - labelled, count, config.batch_size - count)


def strata(shares: models.Shares) -> Callable[[Any, int], tuple[datasets.Stratum, ...]]:
    """The examples with a label and without one, and how many of them a batch has."""

    def groups(split: Any, batch_size: int) -> tuple[datasets.Stratum, ...]:
        known = np.asarray(split.x.y) >= 0
        kinds = (known, shares.batch_labelled), (~known, shares.batch_unlabelled)
        return tuple(datasets.Stratum(np.flatnonzero(kind), n) for kind, n in kinds if n)

    return groups


def pairs_of(preprocess: Preprocess) -> Preprocess:
    """Preprocessing of x beside a label, which is missing if x is given alone."""

    def pair(key: Array, raw: Any) -> models.Conditioned:
        if isinstance(raw, models.Conditioned):
            return models.Conditioned(preprocess(key, raw.x), jnp.asarray(raw.y, jnp.int32))
        return models.Conditioned(preprocess(key, raw), jnp.int32(-1))

    return pair


def data_fields(config: Any, data: Data, shares: models.Shares) -> dict[str, Any]:
    """The fields of ``Built`` that say which examples there are."""
    classes = classes_of(data)

    def raw(split: Any) -> models.Conditioned:
        return models.Conditioned(split.x, datasets.checked_labels(split.y, classes))

    def training_raw(split: Any) -> models.Conditioned:
        labels = datasets.checked_labels(split.y, classes)
        hidden = datasets.hide_labels(labels, config.labelled, classes, config.seed)
        return models.Conditioned(split.x, hidden)

    ratio = config.label_weight * shares.labelled / data.size
    note = (
        f"{shares.labelled} of {data.size} examples have a label, {shares.batch_labelled} of "
        f"{shares.batch} in every batch. The mean cross-entropy weighs {config.label_weight:g} "
        f"beside nats for each example: alpha = {config.label_weight:g} N in Kingma et al. 2014, "
        f"{ratio:.3g} N / N_labelled in Maaløe et al. 2016"
    )
    return {
        "raw": raw,
        "training_raw": training_raw,
        "strata": strata(shares),
        "notes": (note,),
    }


# The model


def m2_of(
    config: Any, classes: int, likelihood: likelihoods.Likelihood, shape: Any, scale: float
) -> models.M2:
    """M2 of x of a shape.

    Args:
      config: the configuration.
      classes: the number of classes.
      likelihood: family of p(x|y, z).
      shape: the shape of x.
      scale: brings x into [0, 1] for the networks.
    """
    posterior = config.posterior(latent=config.latent)
    activation = networks.ACTIVATIONS[config.activation]
    parts = [
        networks.mlp_of_parts(config.hidden, posterior.size, activation),
        networks.mlp_of_parts(config.hidden[::-1], likelihood.outputs(shape), activation),
        networks.mlp(config.hidden, classes, activation),
    ]
    encoder, decoder, classifier = (networks.with_precision(n, config.precision) for n in parts)
    encoder = networks.of_input(encoder, lambda pair: (scale * pair[0], pair[1]))
    prior = posterior.prior(config.latent)
    cvae = models.cvae(encoder, decoder, posterior, likelihood, prior, lambda a, b: (a, b))
    return models.M2(cvae, networks.scaled_input(classifier, scale), classes)


def loss_of(config: Any, model: models.M2, shares: models.Shares) -> tuple[Any, Loss]:
    """The model's ``init``, with what the objective learns, and its loss."""
    of_labels = assembly.with_control(models.over_labels(model), config.bound)
    objective = config.bound(vae=of_labels, latent=1)
    if objective.example is None:
        raise ValueError(
            f"kl_cost={config.bound.kl_cost.name} is of the whole batch, and batches have examples "
            "with and without labels: kl_cost must be weighted"
        )
    loss = models.semi_supervised(model, objective.example, shares, config.label_weight)
    return of_labels.init, loss


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    classes, likelihood = classes_of(data), likelihood_of(config, data)
    shares = shares_of(config, data)
    model = m2_of(config, classes, likelihood, data.shape, data.input_scale)
    init, loss = loss_of(config, model, shares)
    algorithm = training.gradient_descent(
        lambda key, example: init(key, example.x),
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
        pairs_of(data.preprocess),
        model,
        discrete=likelihood.discrete,
        **data_fields(config, data, shares),
    )


PRESETS = {
    "m2": (
        "a VAE of examples whose labels may be missing: --labelled 100 (Kingma et al. 2014)",
        # MNIST with 1,000 labels, after 8 epochs: 11 % error with the rate 1e-3, 6 % with 1e-2.
        Config(labelled=100, label_weight=2.0, learning_rate=1e-2, clip_norm=10.0),
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
