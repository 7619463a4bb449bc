"""VAEs whose latents are a Markov chain of vectors.

Rezende et al. 2014, arXiv:1401.4082; Burda et al. 2015, arXiv:1509.00519, sec. 5. Bit-Swap
(F. H. Kingma et al. 2019, arXiv:1905.06845) compresses images with such models.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxvae import likelihoods, models, networks, posteriors
from jaxvae.families import assembly, contract
from jaxvae.families.contract import Built, Data
from jaxvae.families.flat import likelihood_of, support
from jaxvae.families.objectives import bound_choice
from jaxvae.ranges import Widths
from jaxvae.settings import Choice, Chosen, changed

Likelihood = Choice(likelihoods.LIKELIHOODS)
Pair = Choice(networks.PAIRS)
Bound = bound_choice("continuous", "pathwise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """A VAE whose latents are a Markov chain z_1, ..., z_L; z_1 alone is decoded."""

    latent: Widths = (20, 10)
    """Dimensions of z_1, ..., z_L."""
    likelihood: Chosen = Likelihood("bernoulli")
    """Family of p(x|z_1)."""
    network: Chosen = Pair("mlp")
    """Networks between x and z_1."""
    upper_hidden: Widths = (100, 100)
    """Widths of the hidden layers of each network between two vectors of latents."""
    upper_activation: networks.ActivationName = "tanh"
    """Activation of these hidden layers."""
    bound: Chosen = Bound("elbo")
    """Objective of the training."""


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    if not config.latent:
        raise ValueError("latent is empty: give the dimensions of z_1, ..., z_L, as 20 10")
    likelihood = likelihood_of(config, data)
    lowest = posteriors.normal(config.latent[0])
    encoder, decoder = assembly.networks_of(config, data, lowest, likelihood, data.shape)
    vae = models.markov_vae(encoder, decoder, upper_networks(config), likelihood, config.latent)
    vae = assembly.with_control(vae, config.bound)
    objective = lambda model: config.bound(vae=model, latent=sum(config.latent))
    built = assembly.trained_model(config, data, vae, objective, discrete=likelihood.discrete)
    return built._replace(model=models.markov_answers(vae, config.latent))


def upper_networks(config: Config) -> list[tuple[networks.Network, networks.Network]]:
    """The networks between z_l and z_{l+1}, upwards and downwards, for each l < L."""
    activation = networks.ACTIVATIONS[config.upper_activation]

    def gaussian(size: int) -> networks.Network:
        network = networks.mlp(config.upper_hidden, 2 * size, activation)
        return networks.with_precision(network, config.precision)

    sizes = zip(config.latent[:-1], config.latent[1:], strict=True)
    return [(gaussian(above), gaussian(below)) for below, above in sizes]


def _preset(text: str, **named: Any) -> tuple[str, Config]:
    return text, changed(Config(), **named)


PRESETS: dict[str, tuple[str, Config]] = {
    "two-layer-vae": _preset(
        "784-200-200-100-100-100-50, two layers of latents on MNIST (Burda et al. 2015)",
        dataset="mnist",
        latent=(100, 50),
        activation="tanh",
        steps=240_000,
        batch_size=100,
        learning_rate=2e-3,
        checkpoint_every=12_000,
        report_every=600,
        test_samples=5000,
    ),
    "bit-swap": _preset(
        "a chain of latents for compression without loss (F. H. Kingma et al. 2019)",
        likelihood="discretized_logistic",
        latent=(16, 12, 8, 4),
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
