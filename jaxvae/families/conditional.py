"""Conditional VAEs of p(x|y) (Sohn et al. 2015).

The condition y is a label, attributes, or a part of the image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from jaxvae import datasets, likelihoods, models, networks, posteriors, priors
from jaxvae.contracts import Array, Preprocess
from jaxvae.families import assembly, contract
from jaxvae.families.contract import Built, Data
from jaxvae.families.flat import likelihood_of, support
from jaxvae.families.objectives import Objective, Penalty, bound_choice
from jaxvae.ranges import Amount, Count, Range, Share, Widths
from jaxvae.settings import Choice, Chosen, changed


class Condition(NamedTuple):
    """What a model is conditioned on."""

    shape: tuple[int, ...]  # the shape of x, which the model explains
    raw: Callable[[Any], Any]  # split -> raw examples
    preprocess: Preprocess  # (key, raw example) -> Conditioned(x, y)
    encoded: Callable[[Any], Array]  # raw condition -> y
    pairs: bool = True  # whether raw examples are pairs of x and a condition
    pictures: Callable[[Any, Any], Any] = lambda x, y: x  # (x, y) -> images


def labels(data: Data) -> Condition:
    """The label of the example."""
    if not data.num_classes:
        raise ValueError(
            f"condition=labels needs a set with labels in memory; {data.name} has none here"
        )
    return _beside(data, lambda split: split.y, _one_hot(data.num_classes))


def _one_hot(classes: int) -> Callable[[Array], Array]:
    return lambda y: jax.nn.one_hot(y, classes)


def attributes(data: Data) -> Condition:
    """The attributes of the example, which are several numbers."""
    if not data.num_attributes:
        raise ValueError(
            "condition=attributes needs a set in memory with several numbers for each image, such "
            f"as shapes or an .npz file with y_train [N, A]; {data.name} has none here"
        )
    return _beside(data, datasets.attributes, lambda y: y)


def _beside(
    data: Data, field: Callable[[Any], Any], encoded: Callable[[Array], Array]
) -> Condition:
    preprocess = data.preprocess

    def pair(key: Array, raw: models.Conditioned) -> models.Conditioned:
        return models.Conditioned(preprocess(key, raw.x), encoded(raw.y))

    raw = lambda split: models.Conditioned(split.x, field(split))
    return Condition(data.shape, raw, pair, encoded)


def quadrants(data: Data, quadrants: Annotated[int, Range(1, 3)] = 1) -> Condition:
    """Quadrants of the image; the model explains the others (Sohn et al. 2015, sec. 5.1).

    Args:
      quadrants: how many are given: 1 is the lower left one, 2 the left half, 3 all but the upper
        right one.
    """
    if len(data.shape) != 3:
        raise ValueError(
            f"condition=quadrants needs images [H, W, C]; the examples have shape {data.shape}"
        )
    seen, preprocess = given_quadrants(data.shape, quadrants), data.preprocess

    def cut(key: Array, raw: Array) -> models.Conditioned:
        x = preprocess(key, raw)
        return models.Conditioned(x[~seen], x[seen])

    def whole(x: Any, y: Any) -> Any:
        image = np.zeros((*np.shape(x)[:-1], *seen.shape), np.float32)
        image[..., seen], image[..., ~seen] = np.asarray(y), np.asarray(x)
        return image

    of_image = lambda image: cut(jax.random.key(0), image).y
    hidden = (int((~seen).sum()),)
    return Condition(hidden, lambda split: split.x, cut, of_image, False, whole)


def given_quadrants(shape: tuple[int, ...], number: int) -> np.ndarray:
    """Which pixels are given: [H, W, C] bool."""
    seen = np.zeros(shape, bool)
    down, right = shape[0] // 2, shape[1] // 2
    seen[down:, :right] = True
    if number > 1:
        seen[:down, :right] = True
    if number > 2:
        seen[down:, right:] = True
    return seen


def learned() -> None:
    """A network of the condition gives p(z|y) (Sohn et al. 2015, eq. 4)."""


class _Priors(dict):
    def items(self) -> Any:
        fitting = {n: p for n, p in priors.PRIORS.items() if p is not priors.hierarchical_mixture}
        return ({"learned": learned} | fitting).items()


CONDITIONS = {"labels": labels, "attributes": attributes, "quadrants": quadrants}
ConditionedOn = Choice(CONDITIONS)
Posterior = Choice(posteriors.CONTINUOUS)
Prior = Choice(_Priors())
Likelihood = Choice(likelihoods.LIKELIHOODS)
Bound = bound_choice("continuous", "pathwise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """A conditional VAE; encoder, decoder and prior see the condition."""

    condition: Chosen = ConditionedOn("labels")
    """What the model is conditioned on."""
    latent: Count = 10
    """Dimensions of z."""
    posterior: Chosen = Posterior("normal")
    """Family of q(z|x, y)."""
    prior: Chosen = Prior("learned")
    """Family of p(z|y); a prior other than the learned one does not depend on y."""
    likelihood: Chosen = Likelihood("bernoulli")
    """Family of p(x|z, y)."""
    hidden: Widths = (200, 200)
    """Widths of the hidden layers of encoder, decoder and prior."""
    activation: Literal[tuple(networks.ACTIVATIONS)] = "relu"  # type: ignore[valid-type]
    """Activation of the hidden layers."""
    bound: Chosen = Bound("elbo")
    """Objective of the training."""
    cvae_weight: Share = 1.0
    """Weight of the conditional VAE's objective; the rest of the weight goes to its Gaussian
    stochastic network, which draws z from p(z|y) in training too (Sohn et al. 2015, eq. 8)."""
    divergence: Chosen = Penalty("none")
    """Penalty on the codes of a batch."""


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    condition = config.condition(data=data)
    posterior, likelihood = config.posterior(latent=config.latent), likelihood_of(config, data)
    cvae = conditional_model(config, data, condition, posterior, likelihood)
    cvae = assembly.with_control(cvae, config.bound)
    objective = lambda model: hybrid(config, model)
    penalty = config.divergence(size=data.size)
    return assembly.trained_model(
        config,
        data,
        cvae,
        objective,
        penalty,
        preprocess=condition.preprocess,
        raw=condition.raw,
        pairs=condition.pairs,
        condition=condition.encoded,
        pictures=condition.pictures,
        discrete=likelihood.discrete,
    )


def conditional_model(
    config: Config,
    data: Data,
    condition: Condition,
    posterior: posteriors.Posterior,
    likelihood: likelihoods.Likelihood,
) -> models.CVAE:
    """The conditional VAE, whose networks take two arrays as one.

    Args:
      config: the configuration.
      data: what is known of the data.
      condition: what the model is conditioned on.
      posterior: family of q(z|x, y).
      likelihood: family of p(x|z, y).
    """
    activation = networks.ACTIVATIONS[config.activation]
    output = likelihood.outputs(condition.shape)
    parts = [
        networks.mlp(config.hidden, posterior.size, activation),
        networks.mlp(config.hidden[::-1], output, activation),
        networks.mlp(config.hidden, posterior.size, activation),
    ]
    encoder, decoder, prior = (networks.with_precision(n, config.precision) for n in parts)
    encoder = networks.scaled_input(encoder, data.input_scale)
    chosen = config.prior(latent=config.latent)
    return models.cvae(encoder, decoder, posterior, likelihood, prior if chosen is None else chosen)


def hybrid(config: Any, model: models.CVAE) -> Objective:
    """A weighted sum of the objectives of the CVAE and its Gaussian stochastic network (eq. 8)."""
    share = config.cvae_weight
    if share == 1:
        return config.bound(vae=model, latent=config.latent)
    both = [
        (weight, config.bound(vae=part, latent=config.latent).example)
        for weight, part in ((share, model), (1 - share, models.gaussian_stochastic(model)))
        if weight
    ]
    if any(loss is None for _, loss in both):
        raise ValueError(
            f"kl_cost={config.bound.kl_cost.name} is of the whole batch: cvae_weight must be 1"
        )
    return Objective.of_example(models.weighted_sum(both))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictor(contract.Config):
    """A network that predicts x from y alone, without latents."""

    condition: Chosen = ConditionedOn("labels")
    """What the model is conditioned on."""
    latent: Count = 10
    """Width of the layer between the two networks."""
    likelihood: Chosen = Likelihood("bernoulli")
    """Family of p(x|y)."""
    hidden: Widths = (200, 200)
    """Widths of the hidden layers."""
    activation: Literal[tuple(networks.ACTIVATIONS)] = "relu"  # type: ignore[valid-type]
    """Activation of the hidden layers."""
    decoder_decay: Amount = 0.0
    """Weight of the squared norm of the decoder's parameters."""


def build_predictor(config: Predictor, data: Data) -> Built:
    """The model of a configuration, and its training."""
    condition = config.condition(data=data)
    posterior, likelihood = posteriors.point(config.latent), likelihood_of(config, data)
    as_cvae: Any = changed(Config(), hidden=config.hidden, activation=config.activation)
    as_cvae = dataclasses.replace(as_cvae, latent=config.latent, precision=config.precision)
    cvae = conditional_model(as_cvae, data, condition, posterior, likelihood)
    predictor = models.gaussian_stochastic(cvae)

    def objective(model: Any) -> Objective:
        parts = [
            (1.0, models.negative_reconstruction(model)),
            (config.decoder_decay, models.decoder_decay()),
        ]
        return Objective.of_example(models.weighted_sum([part for part in parts if part[0]]))

    return assembly.trained_model(
        config,
        data,
        predictor,
        objective,
        preprocess=condition.preprocess,
        raw=condition.raw,
        pairs=condition.pairs,
        condition=condition.encoded,
        pictures=condition.pictures,
        discrete=likelihood.discrete,
    )


PRESETS = {
    "cvae": ("conditioned on the label (Sohn et al. 2015)", Config()),
    "gsnn": ("its Gaussian stochastic network (Sohn et al. 2015)", Config(cvae_weight=0.0)),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
PREDICTOR = contract.Family(
    Predictor,
    build_predictor,
    {"predictor": ("x from the condition alone, without latents", Predictor())},
    support,
)
