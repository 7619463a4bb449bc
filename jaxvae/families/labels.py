"""Models of examples whose labels may be missing: M2 and M1+M2 (Kingma et al. 2014)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import datasets, likelihoods, models, networks, posteriors, training
from jaxvae.contracts import Array, Loss, Preprocess
from jaxvae.evaluation import ACTIVE_VARIANCE
from jaxvae.families import assembly, contract, flat
from jaxvae.families.contract import Built, Data, FirstStage
from jaxvae.families.flat import likelihood_of, support
from jaxvae.families.objectives import bound_choice
from jaxvae.models.stages import codes_of
from jaxvae.ranges import Amount, Count, Share, Widths
from jaxvae.settings import Choice, Chosen, changed

Posterior = Choice(posteriors.CONTINUOUS)
Likelihood = Choice(likelihoods.LIKELIHOODS)
RealLikelihood = Choice(
    {n: f for n, f in likelihoods.LIKELIHOODS.items() if n.startswith(("normal", "laplace"))}
)
Bound = bound_choice("categorical", "enumeration")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled(contract.Config):
    """The settings of models with labels."""

    labelled: Count | None = None
    """Training examples whose labels are used, equally many of each class and chosen by the seed;
    None takes all labels."""
    labelled_share: Share = 0.5
    """Share of labelled examples in every batch, if some are and some are not; the loss makes up
    for it."""
    label_weight: Amount = 0.1
    """Weight alpha of the mean cross-entropy of the labelled examples, in nats for each example."""
    latent: Count = 10
    """Dimensions of z."""
    posterior: Chosen = Posterior("normal")
    """Family of q(z|x, y)."""
    hidden: Widths = (200,)
    """Widths of the hidden layers of encoder, classifier and decoder."""
    activation: networks.ActivationName = "softplus"
    """Activation of the hidden layers."""
    bound: Chosen = Bound("elbo")
    """Objective of the examples without a label, whose latent is the label."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Labelled):
    """M2: a VAE of examples whose labels may be missing."""

    likelihood: Chosen = Likelihood("bernoulli")
    """Family of p(x|y, z)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stacked(Labelled):
    """M1+M2: a model with labels of the codes of a VAE, which is trained first."""

    of: str = ""
    """Folder of the run whose codes are explained; if there is none, M1 is trained first in
    WORKDIR/m1."""
    of_checkpoint: str = "latest"
    """Checkpoint of that run: latest, best, or a step."""
    codes: Count | None = None
    """How many of its codes are explained, those whose means vary most; None is those with a
    variance above 0.01 over training examples."""
    first_latent: Count = 20
    """Dimensions of the codes of M1, if it is trained first."""
    first_hidden: Widths = (300, 300)
    """Widths of the hidden layers of M1."""
    first_steps: Count = 5000
    """Training steps of M1."""
    likelihood: Chosen = RealLikelihood("normal_decoded")
    """Family of the codes given y and z."""
    dataset: str = ""
    """Data set; none is the set of the run, or digits."""
    train_split: str = ""
    """Split to train on, if it is another one."""
    test_split: str = ""
    """Split that the result is reported on, if it is another one."""


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
    """The examples with a label and those without, and how many of them a batch has."""

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
        hidden = datasets.hidden(labels, config.labelled, classes, config.seed)
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


# M1+M2


def first_of(config: Stacked) -> flat.Config:
    """The configuration of M1, for a run that names none."""
    shared = ("pixels", "levels", "image_size", "unreadable", "precision", "batch_size", "seed")
    named = {name: getattr(config, name) for name in (*shared, "report_every", "checkpoint_every")}
    own = {name: getattr(config, name) for name in ("dataset", "train_split", "test_split")}
    network = {"hidden": config.first_hidden, "activation": config.activation}
    return changed(
        flat.Config(),
        **named,
        **{name: value for name, value in own.items() if value},
        **network,
        latent=config.first_latent,
        steps=config.first_steps,
        validation_split=config.validation_split,
        test_samples=config.test_samples,
        test_examples=config.test_examples,
    )


def settled(config: Stacked, first: FirstStage) -> Stacked:
    """The configuration with the number of codes that M1 uses."""
    if config.codes is not None:
        return config
    varying = int((np.var(_means(first), 0) > ACTIVE_VARIANCE).sum())
    if not varying:
        raise ValueError(
            f"no code of the run that of={config.of} names varies: train it for longer, or say how "
            "many codes to take"
        )
    return dataclasses.replace(config, codes=varying)


def _means(first: FirstStage) -> np.ndarray:
    """Means of q(c|x) of training examples, [N, D]."""
    assert first.means is not None, "a run opens its first stage with them"
    means = first.means()
    if not isinstance(means, np.ndarray) or means.ndim != 2:
        raise ValueError("M2 is of codes that are one vector [D] of real numbers: name another run")
    return means


def build_stacked(config: Stacked, data: Data) -> Built:
    """M2 of the codes of a run, with this run's model, and the training of M2."""
    if data.first_stage is None:
        raise ValueError("M2 is of the codes of a run: say with of=RUN_FOLDER which")
    first, shapes = data.first_stage.built, data.first_stage.params
    likelihood, shares = config.likelihood(), shares_of(config, data)
    example = jax.eval_shape(first.preprocess, jax.random.key(0), first.raw(data.shapes()))
    codes = codes_of(first.model, shapes, example)
    if first.pairs or len(codes.shape) != 1:
        raise ValueError(
            "M2 is of codes that are one vector [D] of real numbers, of a model without a "
            "condition: name another run"
        )
    (latent,), count = codes.shape, config.codes or 1
    if count > latent:
        raise ValueError(f"codes={count} are more than the {latent} that the run has")
    m2 = m2_of(config, classes_of(data), likelihood, (count,), 1.0)
    model = models.CodedLabels(first.model, m2, latent)
    init, loss = loss_of(config, m2, shares)
    frozen = {"model": shapes, "kept": _kept(data.first_stage, count)}

    def start(key: Array, example: Any) -> Any:
        first_stage = jax.tree.map(_as_array, frozen)
        return {"m2": init(key, jnp.zeros(count)), "first_stage": first_stage}

    player = training.Player(
        training.batch_mean(model.loss(loss)),
        assembly.model_optimizer(config, config.bound),
        config.accumulate,
        config.virtual_shards,
    )
    algorithm = training.players(
        start,
        {"m2": player},
        config.ema_decay,
        skip_norm=config.skip_norm,
        frozen=("first_stage",),
    )
    return Built(
        models.coded_answers(model, start),
        algorithm,
        pairs_of(first.preprocess),
        model,
        lambda state: state.params | {"m2": training.trained(state, "m2")},
        pictures=first.pictures,
        discrete=first.discrete,
        **data_fields(config, data, shares),
    )


def _kept(first: FirstStage, count: int) -> Array:
    """The codes whose means vary most, in their order, [count] as floats."""
    if first.means is None:  # the model is opened from its checkpoints
        return jnp.zeros(count)
    varying = np.argsort(-np.var(_means(first), 0), kind="stable")[:count]
    return jnp.asarray(np.sort(varying), jnp.float32)


def _as_array(leaf: Any) -> Array:
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


PRESETS = {
    "m2": (
        "a VAE of examples whose labels may be missing: --labelled 100 (Kingma et al. 2014)",
        Config(labelled=100),
    ),
}
STACKED_PRESETS = {
    "m1-m2": (
        "such a model of the codes of a VAE, which is trained first (Kingma et al. 2014)",
        Stacked(labelled=100),
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
STACKED = contract.Family(
    Stacked,
    build_stacked,
    STACKED_PRESETS,
    lambda config: (),
    second_stage=True,
    settled=settled,
    first=first_of,
)
