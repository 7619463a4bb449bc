"""VAEs beside critics of their images: VAE/GAN (Larsen et al. 2016), CVAE-GAN (Bao et al. 2017)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import optax

from jaxvae import likelihoods, models, networks, posteriors, priors, training
from jaxvae.contracts import Array, BatchLoss, Terms
from jaxvae.families import assembly, conditional, contract
from jaxvae.families.contract import Built, Data, Optimizer, optimizer_of
from jaxvae.families.flat import likelihood_of, support
from jaxvae.ranges import Amount, Count, Fraction
from jaxvae.settings import Choice, Chosen, changed

Likelihood = Choice(likelihoods.LIKELIHOODS)
Pair = Choice(networks.PAIRS)
Critic = Choice(networks.CRITICS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hybrid(contract.Config):
    """A VAE whose images are judged by networks that are learned beside it."""

    latent: Count = 10
    """Dimensions of z."""
    likelihood: Chosen = Likelihood("normal")
    """Family of p(x|z), whose mean is the image that is judged."""
    network: Chosen = Pair("mlp")
    """Networks of the encoder and the decoder."""
    critic: Chosen = Critic("mlp")
    """Network of the critic, and of a classifier beside it."""
    kl_weight: Amount = 1.0
    """Weight of KL in the encoder's loss."""
    pixel_weight: Amount = 0.0
    """Weight of -log p(x|z)."""
    similarity_weight: Amount = 1.0
    """Weight of the squared distance of x and its reconstruction in hidden layers of the judges."""
    critic_weight: Amount = 1.0
    """Weight of what the critic says of decoded images, in the decoder's loss."""
    critic_learning_rate: Amount = 1e-4
    """Learning rate of the Adam of the judges (betas 0.5 and 0.9)."""

    @property
    def weights(self) -> models.Weights:
        """The weights of the terms."""
        return models.Weights(
            self.kl_weight, self.pixel_weight, self.similarity_weight, self.critic_weight
        )

    def judge(self, data: Data, size: int, layer: int = -1) -> models.Judge:
        """A network that judges images, in the configuration's precision."""
        network = networks.with_precision(self.critic(size=size), self.precision)
        return models.Judge(networks.scaled_input(network, data.input_scale), layer)

    def player(self, loss: BatchLoss, of_judge: bool) -> training.Player:
        """A player with the optimizer of the model, or with the one of the judges."""
        judges = training.adam(self.critic_learning_rate, 0.5, 0.9)
        optimizer = judges if of_judge else optimizer_of(self)
        return training.Player(loss, optimizer, self.accumulate, self.virtual_shards)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Hybrid):
    """VAE/GAN: a VAE whose reconstructions are compared in a hidden layer of its critic."""

    prior: Chosen = Choice(priors.PRIORS, lambda prior: prior is not priors.hierarchical_mixture)(
        "standard_normal"
    )
    """Family of p(z)."""
    similarity_layer: Count = 1
    """Hidden layer of the critic in which images are compared, from the first on."""


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    posterior, likelihood = posteriors.normal(config.latent), likelihood_of(config, data)
    pair = assembly.networks_of(config, data, posterior, likelihood, data.shape)
    vae = models.vae(*pair, posterior, likelihood, config.prior(latent=config.latent))
    depth = len(config.critic.critic_hidden) + (config.critic.name == "conv")
    if config.similarity_layer > depth:
        raise ValueError(
            f"similarity_layer={config.similarity_layer} is a hidden layer of the critic, which "
            f"has {depth}: name one of them, or give more widths in critic_hidden"
        )
    judges = {"critic": config.judge(data, 1, config.similarity_layer - 1)}
    losses = models.hybrid_losses(vae, judges, config.weights)
    members = {
        name: config.player(training.batch_mean(loss), name == "critic")
        for name, loss in losses.items()
    }
    algorithm = training.players(models.hybrid_init(vae, judges), members, config.ema_decay)
    return _built(vae, algorithm, data.preprocess, likelihood)


def _built(
    model: Any, algorithm: training.Algorithm, preprocess: Any, likelihood: Any, **more: Any
) -> Built:
    parameters = lambda state: models.joined(training.trained_players(state))
    discrete = likelihood.discrete
    answers = models.answers(model)
    return Built(answers, algorithm, preprocess, model, parameters, discrete=discrete, **more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditional(Hybrid):
    """CVAE-GAN: a conditional VAE with a critic and a classifier of its images."""

    critic_means_weight: Amount = 1.0
    """Weight of the squared distance of the means of the critic's last hidden layer."""
    classifier_means_weight: Amount = 1.0
    """Weight of the same in the classifier, summed over the classes."""
    means_decay: Fraction = 0.9
    """Decay of the moving averages of these means; 0 takes the means of the batch."""


def build_conditional(config: Conditional, data: Data) -> Built:
    """The model of a configuration, and its training."""
    if config.accumulate > 1 or config.virtual_shards:
        raise ValueError(
            "means of hidden layers need the whole batch: accumulate must be 1 and virtual_shards 0"
        )
    condition = conditional.labels(data)
    posterior, likelihood = posteriors.normal(config.latent), likelihood_of(config, data)
    encoder, decoder = assembly.networks_of(config, data, posterior, likelihood, data.shape)
    cvae = models.cvae(
        networks.of_input(encoder, _with_channels(data.shape)),
        decoder,
        posterior,
        likelihood,
        priors.standard_normal(config.latent),
    )
    groups = {"critic": 1, "classifier": data.num_classes}
    judges = {name: config.judge(data, size) for name, size in groups.items()}
    weights = {
        "critic": config.critic_means_weight,
        "classifier": config.classifier_means_weight,
    }
    matching = models.MeanMatching(cvae, judges, weights, groups, config.means_decay)
    losses = {
        **models.hybrid_losses(cvae, judges, config.weights),
        "classifier": models.classification(cvae, judges["classifier"]),
    }
    batch = {name: training.batch_mean(loss) for name, loss in losses.items()}
    batch["decoder"] = _sum(batch["decoder"], matching.loss)
    members = {name: config.player(loss, name in judges) for name, loss in batch.items()}
    centres = training.Player(matching.centring, optax.sgd(1 - config.means_decay))
    init = models.hybrid_init(cvae, judges)

    def with_centres(key: Array, example: Any) -> Any:
        params = init(key, example)
        return params | {"centres": matching.init(params, cvae.at(example)[1])}

    algorithm = training.players(with_centres, members | {"centres": centres}, config.ema_decay)
    return _built(
        cvae,
        algorithm,
        condition.preprocess,
        likelihood,
        raw=condition.raw,
        pairs=condition.pairs,
        condition=condition.encoded,
        pictures=condition.pictures,
    )


def _sum(first: BatchLoss, second: BatchLoss) -> BatchLoss:
    def loss(*args: Any) -> tuple[Array, Terms]:
        (one, terms), (other, more) = first(*args), second(*args)
        return one + other, terms | more

    return loss


def _with_channels(shape: tuple[int, ...]) -> Any:
    """[x, y] of a CVAE's encoder -> x with y as further channels, all constant."""
    size = math.prod(shape)

    def channels(both: Array) -> Array:
        x, y = both[:size].reshape(shape), both[size:]
        return jnp.concatenate([x, jnp.broadcast_to(y, (*shape[:-1], y.size))], -1)

    return channels


_GAN: dict[str, Any] = {
    "optimizer": Optimizer("adam", b1=0.5),
    "learning_rate": 3e-4,
    "pixels": "scale",
}
PRESETS = {
    "vae-gan": (
        "reconstructions compared in a critic's hidden layer (Larsen et al. 2016)",
        changed(Config(), **_GAN, similarity_weight=30.0, critic_weight=30.0),
    ),
}
CONDITIONAL_PRESETS = {
    "cvae-gan": (
        "a CVAE whose means match in a critic and a classifier (Bao et al. 2017)",
        changed(Conditional(), **_GAN, pixel_weight=1.0, critic_weight=0.0),
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
CONDITIONAL = contract.Family(Conditional, build_conditional, CONDITIONAL_PRESETS, support)
