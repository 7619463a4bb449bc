"""Zero-VAE-GAN: features of classes that have no examples, from their attributes (Gao 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxvae import datasets, likelihoods, models, networks, posteriors, priors, training
from jaxvae.contracts import Array, Params, Preprocess
from jaxvae.families import assembly, contract, hybrid
from jaxvae.families.contract import Built, Data
from jaxvae.families.flat import likelihood_of, support
from jaxvae.models import zero_shot
from jaxvae.ranges import Amount, Share, Whole, Widths
from jaxvae.settings import Choice, Chosen, changed

LOCATION_SCALE = ("normal", "normal_learned", "normal_decoded", "laplace", "laplace_learned")
Likelihood = Choice(
    {name: f for name, f in likelihoods.LIKELIHOODS.items() if name in LOCATION_SCALE}
)
Pair = Choice({"mlp": networks.mlp_pair})
Critic = Choice({"mlp": networks.mlp_critic})


class Generator(NamedTuple):
    """A decoder of z and attributes, and a penalty on its parameters."""

    network: networks.Network  # of z and attributes, side by side
    penalty: Callable[[Params], Array] = lambda params: jnp.zeros(())


def linear(
    decoder: networks.Network, latent: int, output: Any, attribute_decay: Amount = 0.004
) -> Generator:
    """f(z) + B a, linear in the attributes a.

    Args:
      decoder: f, a network.
      latent: dimensions of z.
      output: the shape of the output.
      attribute_decay: weight of the squared norm of B.
    """
    of_z = networks.on_slice(decoder, slice(latent))
    of_attributes = networks.on_slice(networks.mlp((), output), slice(latent, None))
    network = networks.summed({"z": of_z, "attributes": of_attributes})
    kernel = lambda params: params["decoder"]["attributes"]["output"]["kernel"]
    return Generator(network, lambda params: attribute_decay * jnp.sum(kernel(params) ** 2))


def joint(decoder: networks.Network) -> Generator:
    """f(z, a), which learns the few attribute vectors of the seen classes by heart."""
    return Generator(decoder)


GENERATORS = {"linear": linear, "joint": joint}
GeneratorOf = Choice(GENERATORS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(hybrid.Hybrid):
    """Zero-VAE-GAN: a conditional VAE of features given attributes of their class."""

    dataset: str = "segments"
    """A set whose classes are described by attributes: an .npz file of features, label, split and
    attributes, or segments. Its split train has seen classes; transductive has unlabelled examples
    of the others as well."""
    likelihood: Chosen = Likelihood("normal_learned")
    """Family of p(x|z, a), of standardized features."""
    network: Chosen = Pair("mlp")
    """Networks of the encoder and the decoder."""
    generator: Chosen = GeneratorOf("linear")
    """How the decoder depends on attributes."""
    critic: Chosen = Critic("mlp")
    """Network of the critic of features beside attributes."""
    classifier_hidden: Widths = ()
    """Widths of the hidden layers of the classifier."""
    unseen_weight: Amount = 1.0
    """Weight of decoded features of unseen classes in the classifier's loss."""
    named_weight: Amount = 0.0
    """Weight of the classifier's cross-entropy of decoded features in the decoder's loss."""
    confidence: Share = 0.5
    """Least probability of the class that is guessed for an example without a label."""
    self_training_start: Whole = 1000
    """Step from which on examples without a label have the class that is guessed."""


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    _check(data)
    likelihood = likelihood_of(config, data)
    model, penalty = model_of(config, data, likelihood)
    balance = zero_shot.Balance(
        config.unseen_weight, config.named_weight, config.confidence, config.self_training_start
    )
    losses = zero_shot.losses(model, config.weights, balance, penalty)
    members = {
        name: config.player(training.batch_mean(loss), name == "critic")
        for name, loss in losses.items()
    }
    known = _constants(data)
    algorithm = training.players(
        model.init(known), members, config.ema_decay, frozen=("constants",)
    )
    parameters = lambda state: zero_shot.parameters(training.trained_players(state))
    return Built(
        zero_shot.zero_shot_answers(model, known),
        algorithm,
        pairs_of(data),
        model,
        parameters,
        raw=_raw(data),
        training_raw=_raw(data, missing=True),
        pairs=True,
        condition=condition_of(data),
        discrete=likelihood.discrete,
        notes=_notes(data),
    )


def _check(data: Data) -> None:
    if not data.num_class_attributes:
        raise ValueError(
            f"zero-shot learning needs a set in memory whose classes have attributes, and "
            f"{data.name} has none: give dataset=FILE.npz with features, label, split, attributes"
        )
    if not data.unseen:
        raise ValueError(
            f"zero-shot learning needs classes without training examples, and all "
            f"{data.num_classes} classes of {data.name} have some: choose another train_split"
        )


def model_of(
    config: Config, data: Data, likelihood: likelihoods.Likelihood
) -> tuple[zero_shot.ZeroShot, Callable[[Params], Array]]:
    """The model, and the penalty on its decoder."""
    posterior = posteriors.normal(config.latent)
    encoder, decoder = assembly.networks_of(config, data, posterior, likelihood, data.shape)
    output = likelihood.outputs(data.shape)
    generator = config.generator(decoder=decoder, latent=config.latent, output=output)
    decoder = networks.with_precision(generator.network, config.precision)
    prior = priors.standard_normal(config.latent)
    cvae = models.cvae(encoder, decoder, posterior, likelihood, prior)
    judge = config.judge(data, 1)._replace(sees=beside_attributes)
    classifier = networks.mlp(config.classifier_hidden, data.num_classes)
    classifier = networks.with_precision(classifier, config.precision)
    return zero_shot.ZeroShot(cvae, judge, classifier, data.unseen), generator.penalty


def beside_attributes(x: Array, example: models.Conditioned) -> Array:
    """Features and the attributes of their class, side by side."""
    return jnp.concatenate([jnp.ravel(x), example.y])


def _constants(data: Data) -> zero_shot.Constants:
    """The constants of a set, or their shapes filled with ones if the set is not there."""
    if data.class_attributes is None or data.examples is None:
        attributes = np.ones((data.num_classes, data.num_class_attributes), np.float32)
        return zero_shot.constants(np.ones((1, *data.shape)), attributes, data.unseen)
    x = np.asarray(data.examples(data.size), np.float32)
    return zero_shot.constants(x, data.class_attributes, data.unseen)


def _raw(data: Data, missing: bool = False) -> Callable[[Any], models.Conditioned]:
    """Examples beside their labels, of which some may be missing."""

    def raw(split: Any) -> models.Conditioned:
        labels = datasets.checked_labels(split.y, data.num_classes)
        if isinstance(labels, np.ndarray) and not missing and (labels < 0).any():
            raise datasets.DataError(
                f"{(labels < 0).sum()} examples have no label, and features are explained given "
                "their class: evaluate on a split whose labels are known, such as test"
            )
        return models.Conditioned(split.x, labels)

    return raw


def condition_of(data: Data) -> Callable[[Array], Array]:
    """A class or its attributes, after a check of how many there are."""
    shapes = (), (data.num_class_attributes,)

    def condition(y: Array) -> Array:
        if jnp.shape(y) not in shapes:
            raise ValueError(
                f"a condition is a class or {data.num_class_attributes} attributes; its shape was "
                f"{jnp.shape(y)}"
            )
        return y

    return condition


def pairs_of(data: Data) -> Preprocess:
    """Preprocessing of x beside a class or attributes."""
    preprocess, condition = data.preprocess, condition_of(data)

    def pair(key: Array, raw: models.Conditioned) -> models.Conditioned:
        return models.Conditioned(preprocess(key, raw.x), condition(raw.y))

    return pair


def _notes(data: Data) -> tuple[str, ...]:
    names = [data.classes[label] for label in data.unseen]
    unlabelled = data.missing_labels
    kind = f"transductive, {unlabelled} unlabelled examples" if unlabelled else "inductive"
    return (f"{len(names)} classes are unseen ({kind}): {', '.join(names)}",)


PRESETS = {
    "zero-vae-gan": (
        "features of classes that have no examples, from their attributes (Gao et al. 2020)",
        changed(
            Config(),
            **{"latent": 16, "pixels": "none", "hidden": (256,), "critic_hidden": (256,)},
            **{"pixel_weight": 1.0, "similarity_weight": 0.0, "critic_weight": 0.1},
            **{"scale": 1.0, "learning_rate": 1e-3, "steps": 6000, "test_samples": 100},
        ),
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
