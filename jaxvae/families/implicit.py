"""VAEs whose posterior has no density: adversarial variational Bayes (Mescheder et al. 2017)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax

from jaxvae import likelihoods, models, networks, priors, training
from jaxvae.families import assembly, contract
from jaxvae.families.contract import Built, Data, optimizer_of
from jaxvae.families.flat import likelihood_of, support
from jaxvae.families.objectives import Warmup
from jaxvae.ranges import Amount, Count, Widths
from jaxvae.settings import Choice, Chosen

Prior = Choice(priors.PRIORS, lambda prior: prior is not priors.hierarchical_mixture)
Likelihood = Choice(likelihoods.LIKELIHOODS)
Pair = Choice(networks.PAIRS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """A VAE whose posterior is a function of noise, with a critic that learns its KL."""

    latent: Count = 10
    """Dimensions of z."""
    noise_functions: Count = 8
    """Functions v of z = z_0(x) + sum_i a_i(x) v_i(noise_i)."""
    noise_size: Count = 16
    """Numbers of noise that each function takes."""
    noise_hidden: Widths = (64, 64)
    """Widths of the hidden layers of each function."""
    prior: Chosen = Prior("standard_normal")
    """Family of p(z)."""
    likelihood: Chosen = Likelihood("bernoulli")
    """Family of p(x|z)."""
    network: Chosen = Pair("mlp")
    """Networks of the encoder and the decoder."""
    contrast: Literal[tuple(models.CONTRASTS)] = "adaptive"  # type: ignore[valid-type]
    """What the critic tells draws of q(z|x) from: the Gaussian of its moments, or the prior."""
    kl_weight: Amount = 1.0
    """Weight of KL, or the last weight of its warm-up."""
    kl_warmup: Chosen = Warmup("none")
    """Schedule of the weight of KL."""
    critic_hidden: Widths = (256, 256)
    """Widths of the critic's hidden layers."""
    critic_weight: Amount = 1.0
    """Weight of the critic's log-ratio in KL; 1 is the ELBO."""
    critic_learning_rate: Amount = 1e-3
    """Learning rate of the critic's Adam (betas 0.5 and 0.9)."""


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    noise = networks.mlp(config.noise_hidden, config.latent, jax.nn.elu)
    posterior = models.noise_basis(config.latent, noise, config.noise_functions, config.noise_size)
    likelihood = likelihood_of(config, data)
    pair = assembly.networks_of(config, data, posterior, likelihood, data.shape)
    vae = models.vae(*pair, posterior, likelihood, config.prior(latent=config.latent))
    network = networks.mlp(config.critic_hidden, 1, networks.leaky_relu)
    critic = models.of_pair(networks.with_precision(network, config.precision))
    scaled = lambda pair: (data.input_scale * pair[0], pair[1])
    contrast = models.CONTRASTS[config.contrast]
    model = models.AdversarialBayes(vae, networks.of_input(critic, scaled), contrast)
    optimizers = {
        "model": optimizer_of(config),
        "critic": training.adam(config.critic_learning_rate, 0.5, 0.9),
    }
    losses = model.losses(config.kl_warmup(end=config.kl_weight), config.critic_weight)
    members = {
        name: training.Player(
            training.batch_mean(loss), optimizers[name], config.accumulate, config.virtual_shards
        )
        for name, loss in losses.items()
    }
    algorithm = training.players(model.init, members, config.ema_decay)
    return Built(
        model.answers(),
        algorithm,
        data.preprocess,
        model,
        _parameters,
        discrete=likelihood.discrete,
    )


def _parameters(state: training.State) -> Any:
    """The model's parameters, with the critic's among them."""
    players = training.trained_players(state)
    return players["model"] | {"critic": players["critic"]}


PRESETS = {
    "avb": ("adversarial variational Bayes with adaptive contrast (Mescheder 2017)", Config()),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
