"""VAEs of binary latents without an encoder (Drefs et al. 2022, arXiv:2011.13704)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import optax

from jaxvae import likelihoods, models, networks, schedules, training
from jaxvae.families import contract
from jaxvae.families.contract import Built, Data, optimizer_of
from jaxvae.families.flat import likelihood_of, support
from jaxvae.models import truncated
from jaxvae.ranges import Amount, Count, Whole, Widths
from jaxvae.settings import Choice, Chosen, changed

LIKELIHOODS = ("normal_learned", "normal", "bernoulli")  # the decoder gives one number for each
Likelihood = Choice({name: likelihoods.LIKELIHOODS[name] for name in LIKELIHOODS})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """A VAE of bits without encoder; every example keeps the states of its posterior."""

    latent: Count = 32
    """Bits."""
    likelihood: Chosen = Likelihood("normal_learned")
    """Family of p(x|s); the scale of normal_learned is set in closed form once an epoch."""
    hidden: Widths = (64,)
    """Widths of the decoder's hidden layers."""
    activation: Literal[tuple(networks.ACTIVATIONS)] = "relu"  # type: ignore[valid-type]
    """Activation of the hidden layers."""
    states: Count = 64
    """States that the posterior of an example has."""
    parents: Count = 5
    """States of a generation that have children."""
    children: Count = 4
    """Children of a parent, each with another bit flipped."""
    generations: Count = 1
    """Generations of children at each visit of an example."""
    rounds: Count = 40
    """Visits, one after the other, that an example has which training has not seen."""
    cycle_epochs: Whole = 20
    """Epochs in which the learning rate rises and falls again; 0 follows schedule instead."""
    least_learning_rate: Amount = 1e-4
    """Learning rate at the ends of a cycle; learning_rate is the one in its middle."""


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    check(config)
    likelihood = likelihood_of(config, data)
    model = model_of(config, likelihood, data.shape)
    algorithm = training.expectation_maximization(
        truncated.steps_of(model),
        optimizer_of(config, course_of(config, data)),
        data.size,
        config.batch_size,
        config.skip_norm,
    )
    answers = models.truncated_answers(model, config.rounds)
    return Built(answers, algorithm, data.preprocess, model, discrete=likelihood.discrete)


def check(config: Config) -> None:
    """Raises ValueError for settings that this family does not serve."""
    if config.accumulate > 1 or config.virtual_shards or config.ema_decay:
        raise ValueError(
            "states of examples and closed forms are of whole batches and of the newest "
            "parameters: accumulate must be 1, virtual_shards 0 and ema_decay 0"
        )
    if config.children > config.latent:
        raise ValueError(
            f"children={config.children} flip different bits of their parent, and there are only "
            f"{config.latent}: take fewer children or more latent"
        )


def model_of(
    config: Config, likelihood: likelihoods.Likelihood, shape: tuple[int, ...]
) -> models.TruncatedVAE:
    """The model of x of a shape, in the configuration's precision."""
    activation = networks.ACTIVATIONS[config.activation]
    decoder = networks.mlp(config.hidden, likelihood.outputs(shape), activation)
    return models.TruncatedVAE(
        networks.with_precision(decoder, config.precision),
        likelihood,
        models.first_states(config.latent, config.states, config.seed),
        models.Search(config.parents, config.children, config.generations),
    )


def course_of(config: Config, data: Data) -> optax.Schedule | None:
    """The cyclical learning rate, or None if there are no cycles."""
    if not config.cycle_epochs:
        return None
    per_epoch = -(-data.size // config.batch_size)
    low, high = sorted((config.least_learning_rate, config.learning_rate))
    return schedules.triangular(config.cycle_epochs * per_epoch, low, high)


def _preset(text: str, **named: Any) -> tuple[str, Config]:
    usual = {"batch_size": 32, "learning_rate": 1e-2, "pixels": "scale", "steps": 9000}
    return text, changed(Config(), **usual | {"test_samples": 200} | named)


PRESETS = {
    "tvae": _preset("binary latents whose posteriors are evolved, no encoder (Drefs et al. 2022)"),
    "tvae-patches": _preset(
        "the same for patches of a picture, which jaxvae denoise trains (Drefs et al. 2022)",
        latent=64,
        scale=0.2,
        steps=6000,
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
