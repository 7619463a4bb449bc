"""Autoencoders with point codes: plain, regularized, Wasserstein, denoising."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxvae import likelihoods, models, networks, posteriors, priors
from jaxvae.families import assembly, contract
from jaxvae.families.contract import Built, Data
from jaxvae.families.flat import likelihood_of, support
from jaxvae.families.objectives import Corruption, Distance, Objective
from jaxvae.ranges import Amount, Count
from jaxvae.settings import Choice, Chosen, changed

Prior = Choice(priors.PRIORS, lambda prior: prior is not priors.hierarchical_mixture)
Likelihood = Choice(likelihoods.LIKELIHOODS)
Pair = Choice(networks.PAIRS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """An autoencoder: a deterministic encoder, and perhaps a penalty on its codes."""

    latent: Count = 10
    """Dimensions of z."""
    prior: Chosen = Prior("standard_normal")
    """Family of p(z), which codes are brought to and samples are drawn from."""
    likelihood: Chosen = Likelihood("bernoulli")
    """Family of p(x|z)."""
    network: Chosen = Pair("mlp")
    """Networks of the encoder and the decoder."""
    divergence: Chosen = Distance("none")
    """Penalty between the codes of a batch and draws of the prior."""
    corruption: Chosen = Corruption("none")
    """Corruption of the examples that the encoder sees in training."""
    code_penalty: Amount = 0.0
    """Weight of |z|^2 / 2 in a regularized autoencoder (Ghosh et al. 2019)."""
    decoder_decay: Amount = 0.0
    """Weight of the squared norm of the decoder's parameters (Ghosh et al. 2019)."""
    decoder_gradient: Amount = 0.0
    """Weight of the squared norm of the decoder's Jacobian (Ghosh et al. 2019)."""


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    posterior, likelihood = posteriors.point(config.latent), likelihood_of(config, data)
    pair = assembly.networks_of(config, data, posterior, likelihood, data.shape)
    vae = models.vae(*pair, posterior, likelihood, config.prior(latent=config.latent))

    def objective(model: Any) -> Objective:
        parts = [
            (1.0, models.negative_reconstruction(model)),
            (config.decoder_decay, models.decoder_decay()),
            (config.decoder_gradient, models.decoder_gradient(model)),
        ]
        return Objective.of_example(models.weighted_sum([part for part in parts if part[0]]))

    code = {"code_penalty": models.code_penalty(config.code_penalty)} if config.code_penalty else {}
    penalty = config.divergence()
    return assembly.trained_model(
        config, data, vae, objective, penalty, code, discrete=likelihood.discrete
    )


def _preset(text: str, **named: Any) -> tuple[str, Config]:
    return text, changed(Config(), **named)


PRESETS = {
    "autoencoder": _preset("no noise and no prior"),
    "wae-mmd": _preset(
        "MMD between q(z) and p(z) (Tolstikhin et al. 2018)",
        divergence=Distance("mmd_imq_sum", divergence_weight=10.0),
    ),
    "wae-gan": _preset(
        "a critic between q(z) and p(z) (arXiv:1711.01558; Makhzani et al. 2015)",
        divergence=Distance("adversarial", divergence_weight=10.0),
    ),
    "swae": _preset(
        "sliced Wasserstein distance between q(z) and p(z) (Kolouri et al. 2018)",
        divergence=Distance("sliced_wasserstein", divergence_weight=10.0),
    ),
    "radon-sobolev": _preset(
        "energy distance of q(z) to N(0, I) (Turinici 2019)",
        divergence=Distance("radon_sobolev", divergence_weight=100.0),
    ),
    "cramer-wold": _preset(
        "Cramer-Wold distance of q(z) to N(0, I) (Knop et al. 2018)",
        divergence=Distance("cramer_wold", divergence_weight=100.0),
    ),
    "rae-l2": _preset(
        "a regularized autoencoder, decoder decayed (Ghosh et al. 2020)",
        code_penalty=1e-2,
        decoder_decay=1e-4,
    ),
    "rae-gp": _preset(
        "a regularized autoencoder, decoder smoothed (Ghosh et al. 2020)",
        code_penalty=1e-2,
        decoder_gradient=1e-2,
    ),
    "denoising-autoencoder": _preset(
        "an autoencoder of corrupted inputs (Vincent et al. 2008)", corruption="masking"
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support, ("point",))
