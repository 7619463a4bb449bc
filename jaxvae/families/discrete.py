"""VAEs with discrete latents: bits, classes, and Gaussian latents beside a class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxvae import likelihoods, models, networks, posteriors
from jaxvae.families import assembly, contract
from jaxvae.families.contract import Built, Data
from jaxvae.families.flat import likelihood_of, support
from jaxvae.families.objectives import (
    Corruption,
    Distance,
    JointKLCost,
    bound_choice,
)
from jaxvae.ranges import Count
from jaxvae.settings import Choice, Chosen, changed

Likelihood = Choice(likelihoods.LIKELIHOODS)
Pair = Choice(networks.PAIRS)
BitsBound = bound_choice("binary", "disarm")
ClassesBound = bound_choice("categorical", "disarm_sb")
JointBound = bound_choice("mixed", "concrete", JointKLCost)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Discrete(contract.Config):
    """The settings that all models with discrete latents have."""

    latent: Count = 10
    """Latents: how many bits, classes, or Gaussian latents beside a class."""
    likelihood: Chosen = Likelihood("bernoulli")
    """Family of p(x|z)."""
    network: Chosen = Pair("mlp")
    """Networks of the encoder and the decoder."""
    divergence: Chosen = Distance("none")
    """Penalty between q(z) and p(z) of a batch."""
    corruption: Chosen = Corruption("none")
    """Corruption of the examples that the encoder sees in training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bits(Discrete):
    """A VAE whose latents are independent bits (Mnih & Gregor 2014, arXiv:1402.0030)."""

    bound: Chosen = BitsBound("elbo")
    """Objective of the training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes(Discrete):
    """A VAE whose latents are classes (Jang et al. 2016, arXiv:1611.01144)."""

    classes: Count = 10
    """Classes of each latent."""
    bound: Chosen = ClassesBound("elbo")
    """Objective of the training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joint(Discrete):
    """A VAE with Gaussian latents and one class beside them (Dupont 2018, arXiv:1804.00104)."""

    classes: Count = 10
    """How many classes there are."""
    bound: Chosen = JointBound("elbo")
    """Objective of the training."""


def builder(posterior_of: Callable[[Any], posteriors.Posterior]) -> Callable[[Any, Data], Built]:
    """The function that builds a family from its posterior."""

    def build(config: Any, data: Data) -> Built:
        """The model of a configuration, and its training."""
        posterior, likelihood = posterior_of(config), likelihood_of(config, data)
        pair = assembly.networks_of(config, data, posterior, likelihood, data.shape)
        vae = models.vae(*pair, posterior, likelihood, posterior.prior(config.latent))
        vae = assembly.with_control(vae, config.bound)
        objective = lambda model: config.bound(vae=model, latent=config.latent)
        penalty = config.divergence()
        return assembly.trained_model(
            config, data, vae, objective, penalty, discrete=likelihood.discrete
        )

    return build


BITS = contract.Family(
    Bits,
    builder(lambda config: posteriors.bernoulli(config.latent)),
    {
        "bits": ("independent bits: --estimator NAME", Bits()),
        "binary": (
            "200 bits and linear networks, as in the literature on gradient estimators",
            changed(
                Bits(),
                dataset="binarized_mnist",
                hidden=(),
                latent=200,
                batch_size=50,
                schedule="constant",
                steps=20_000,
                checkpoint_every=5000,
                report_every=500,
                test_samples=100,
            ),
        ),
    },
    support,
    ("bernoulli",),
)
CLASSES = contract.Family(
    Classes,
    builder(lambda config: posteriors.categorical(config.latent, config.classes)),
    {"classes": ("latents of some classes each: --estimator NAME", Classes())},
    support,
    ("categorical",),
)
JOINT = contract.Family(
    Joint,
    builder(lambda config: posteriors.joint(config.latent, config.classes)),
    {
        "joint-vae": (
            "Gaussian latents and a class, each with its capacity (Dupont 2018)",
            changed(
                Joint(),
                kl_cost=JointKLCost("capacities"),
                temperature=0.67,
            ),
        ),
    },
    support,
    ("joint",),
)
