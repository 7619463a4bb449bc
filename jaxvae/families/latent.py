"""The autoencoders of latent diffusion (Rombach et al. 2022, arXiv:2112.10752).

They have the networks of diffusers' ``AutoencoderKL`` and ``VQModel``, a perceptual distance and a
critic of patches.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvae import likelihoods, networks, perceptual, quantizers, training
from jaxvae.contracts import Params, Terms
from jaxvae.families import contract
from jaxvae.families.contract import Built, Data, optimizer_of
from jaxvae.families.flat import likelihood_of
from jaxvae.families.objectives import Warmup
from jaxvae.models import latent as models
from jaxvae.networks import diffusers
from jaxvae.ranges import Amount, Count, Whole, Widths
from jaxvae.settings import Choice, Chosen, changed

SUPPORT = "scale", "dequantize", "none"
MOST_LABELLED = 10_000  # examples that a network learns labels from, at most


# What lies between encoder and decoder


def gaussian(kl_weight: Amount = 1e-6, kl_warmup: Chosen = Warmup("none")) -> optax.Schedule:
    """Gaussian maps with KL at a small weight: diffusers' ``AutoencoderKL``.

    Args:
      kl_weight: the weight of KL, or the last weight of its warm-up.
      kl_warmup: the schedule of the weight.
    """
    return kl_warmup(end=kl_weight)


QUANTIZERS = "nearest", "residual", "finite_scalar"  # they descend the loss of the model
Bottleneck = Choice(
    {"gaussian": gaussian} | {name: quantizers.QUANTIZERS[name] for name in QUANTIZERS}
)


# Perceptual distances


class Distance(NamedTuple):
    """A perceptual distance with its weight."""

    made: perceptual.Perceptual
    weight: float


def no_distance() -> None:
    """No perceptual distance."""


def of_labels(
    data: Data,
    precision: str,
    perceptual_weight: Amount = 1.0,
    classifier_hidden: Widths = (32, 64),
    classifier_steps: Count = 300,
) -> Distance:
    """The maps of a network that first learns the labels of the training examples.

    Args:
      data: what is known of the data.
      precision: the precision of the network.
      perceptual_weight: the weight of the distance, w_p.
      classifier_hidden: widths of its stages, each of which halves the image.
      classifier_steps: steps in which it learns the labels.
    """
    labelled = None
    if data.examples is not None:  # it is None if a trained model is opened
        labelled = _labelled(data)
    made = perceptual.of_labels(
        data.shape, classifier_hidden, precision, labelled, classifier_steps
    )
    return Distance(made, perceptual_weight)


def _labelled(data: Data) -> tuple[Any, Any]:
    """Examples as the networks see them, and their labels."""
    if data.labelled is None:
        raise ValueError(
            f"perceptual=labels needs a set in memory with labels, and {data.name} has none here: "
            "give a file of weights with perceptual=file, or take perceptual=none"
        )
    raw, labels = data.labelled(MOST_LABELLED)
    known = np.flatnonzero(np.asarray(labels) >= 0)  # a missing label is -1
    keys = jax.random.split(jax.random.key(0), len(known))
    x = jax.jit(jax.vmap(data.preprocess))(keys, jnp.asarray(raw)[known])
    return (2 * x - 1 if centred(data) else x), np.asarray(labels)[known]


def automatic(
    data: Data,
    precision: str,
    perceptual_weight: Amount = 1.0,
    classifier_hidden: Widths = (32, 64),
    classifier_steps: Count = 300,
) -> Distance | None:
    """As ``labels`` if the set has two classes or more, and otherwise no distance.

    Args:
      data: what is known of the data.
      precision: the precision of the network.
      perceptual_weight: the weight of the distance, w_p.
      classifier_hidden: widths of its stages, each of which halves the image.
      classifier_steps: steps in which it learns the labels.
    """
    if data.num_classes < 2:
        return None
    return of_labels(data, precision, perceptual_weight, classifier_hidden, classifier_steps)


def of_file(
    data: Data,
    precision: str,
    perceptual_file: str = "vgg16_lpips.safetensors",
    perceptual_weight: Amount = 1.0,
    vgg_hidden: Widths = (64, 128, 256, 512, 512),
) -> Distance:
    """LPIPS: the maps of VGG16 with weights from a file (Zhang et al. 2018, arXiv:1801.03924).

    Args:
      data: what is known of the data.
      precision: the precision of the network.
      perceptual_file: a .safetensors or .npz file, as jaxvae.perceptual.of_file takes it: VGG16
        with the names of torchvision, and the weights of lpips with its names.
      perceptual_weight: the weight of the distance, w_p.
      vgg_hidden: widths of the five stages of the network in the file.
    """
    read = data.examples is not None  # it is None if a trained model is opened
    made = perceptual.of_file(perceptual_file, data.shape, vgg_hidden, precision, read)
    return Distance(made, perceptual_weight)


DISTANCES = {"auto": automatic, "labels": of_labels, "file": of_file, "none": no_distance}
Perceptual = Choice(DISTANCES)


# Critics


class Critic(NamedTuple):
    """A critic and its optimizer."""

    made: models.PatchCritic
    optimizer: optax.GradientTransformation


def no_critic() -> None:
    """No critic of reconstructions."""


def patches(
    data: Data,
    precision: str,
    critic_weight: Amount = 0.5,
    critic_start: Whole = 1000,
    critic_hidden: Widths = (32, 64),
    critic_learning_rate: Amount = 3e-4,
) -> Critic:
    """PatchGAN's critic of patches of images (Isola et al. 2017, arXiv:1611.07004).

    Args:
      data: what is known of the data.
      precision: the precision of the network.
      critic_weight: the weight of the critic's term, beside the adaptive one, w_d.
      critic_start: the step from which on the autoencoder pays for the critic's term; the critic
        learns from the first step on.
      critic_hidden: channels of its convolutions, all of stride 2 but the last.
      critic_learning_rate: the learning rate of the critic's Adam (betas 0.5 and 0.9).
    """
    least = min(data.shape[:2])
    if not critic_hidden or networks.patches(least, len(critic_hidden)) < 1:
        raise ValueError(
            f"critic_hidden={critic_hidden} must be widths of a critic that sees a patch of images "
            f"of the shape {data.shape}: give fewer of them, or take critic=none"
        )
    network = networks.with_precision(networks.patch_critic(critic_hidden), precision)
    made = models.PatchCritic(network, critic_weight, critic_start)
    return Critic(made, training.adam(critic_learning_rate, 0.5, 0.9))


CRITICS = {"patches": patches, "none": no_critic}
PatchCritic = Choice(CRITICS)


# The family

LIKELIHOODS = ("laplace_learned", "normal_learned", "normal")  # whose decoder gives the mean alone
Likelihood = Choice({name: likelihoods.LIKELIHOODS[name] for name in LIKELIHOODS})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """An autoencoder of latent diffusion: its latents are maps."""

    latent: Count = 4
    """Channels of the maps z [h, w, D] between encoder and decoder."""
    code_size: Count | None = None
    """Channels of the vectors that a codebook quantizes; None is latent."""
    hidden: Widths = (32, 64)
    """Channels by resolution, the image's first; each resolution halves the one before."""
    blocks: Count = 1
    """Residual blocks at each resolution of the encoder; the decoder has one more."""
    norm_groups: Count = 8
    """Groups of the group normalizations."""
    attention_levels: tuple[Whole, ...] = ()
    """Resolutions, from 0 on, with attention after each of their blocks."""
    middle_attention: bool = True
    """Attention at the lowest resolution."""
    quant_convs: bool = True
    """1x1 convolutions before and after the latents."""
    remat: bool = False
    """Compute the inside of the blocks again in the backward pass, which saves memory."""
    bottleneck: Chosen = Bottleneck("gaussian")
    """What the latents are: Gaussian, or codes of a quantizer."""
    likelihood: Chosen = Likelihood("laplace_learned")
    """Family of p(x|z), whose mean the decoder gives."""
    perceptual: Chosen = Perceptual("auto")
    """Perceptual distance between an example and its reconstruction."""
    critic: Chosen = PatchCritic("patches")
    """Critic that tells reconstructions from examples."""
    decoder_only: bool = False
    """Train the decoder alone, for latents that must stay what they are."""


def support(config: Any) -> tuple[str, ...]:
    """The preprocessing that the likelihood takes; pixels are scaled by default."""
    return SUPPORT


def centred(data: Data) -> bool:
    """Whether x is in [0, 1], which the networks see as [-1, 1]."""
    return data.pixels in ("scale", "dequantize")


def architecture(config: Config, channels: int) -> diffusers.Architecture:
    """The networks of a configuration, for images of so many channels."""
    return diffusers.Architecture(
        channels,
        config.latent,
        tuple(config.hidden),
        config.blocks,
        config.norm_groups,
        tuple(config.attention_levels),
        config.middle_attention,
        config.quant_convs,
        config.remat,
    )


def autoencoder(config: Config, data: Data) -> models.Autoencoder:
    """The model of a configuration. Raises ValueError if settings do not go together."""
    if len(data.shape) != 3:
        raise ValueError(f"these autoencoders are of images [H, W, C]; examples have {data.shape}")
    gaussian = config.bottleneck.name == "gaussian"
    if gaussian and config.code_size is not None:
        raise ValueError("code_size must be None, unless bottleneck is a quantizer")
    size = config.code_size or config.latent
    if not config.quant_convs and size != config.latent:
        raise ValueError("code_size must be None or the same as latent without quant_convs")
    made_of = architecture(config, data.shape[-1])
    wide = 2 if gaussian else 1
    precise = lambda network: networks.with_precision(network, config.precision)
    halves = diffusers.decoder(made_of)
    ends = models.Ends(
        precise(diffusers.encoder(made_of, wide * config.latent, wide * size)),
        precise(halves.trunk),
        precise(halves.head),
        likelihood_of(config, data),
        data.shape,
        made_of.factor,
        centred(data),
    )
    chosen = config.bottleneck(latent=size)
    if gaussian:
        return models.gaussian_maps(ends, config.latent, chosen)
    return models.quantized_maps(ends, size, chosen)


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    made = autoencoder(config, data)
    critic = config.critic(data=data, precision=config.precision)
    if critic is not None and (config.accumulate > 1 or config.virtual_shards):
        raise ValueError(
            "the critic's weight needs the gradient of the whole batch: accumulate must be 1 and "
            "virtual_shards 0, or take critic=none"
        )
    distance = config.perceptual(data=data, precision=config.precision)
    return Built(
        made.model,
        algorithm_of(config, made, critic, distance),
        data.preprocess,
        made,
        discrete=made.ends.likelihood.discrete,
        notes=("perceptual distance: none" if distance is None else distance.made.about,),
    )


def algorithm_of(
    config: Config, made: models.Autoencoder, critic: Critic | None, distance: Distance | None
) -> training.Algorithm:
    """The training of an autoencoder: it is one player, the critic and the distance are others."""
    likeness = distance and models.Likeness(distance.made.distance, distance.weight)
    losses = models.losses(made, models.Pictures(made.ends, likeness, critic and critic.made))
    optimizers = {"model": model_optimizer(config)}
    if critic is not None:
        optimizers["critic"] = critic.optimizer
    if distance is not None:
        losses["perceptual"], optimizers["perceptual"] = _nothing, optax.set_to_zero()

    def init(key: Any, x: Any) -> dict[str, Params]:
        keys = jax.random.split(key)
        params = {"model": made.model.init(keys[0], x)}
        if critic is not None:
            params["critic"] = critic.made.network.init(keys[1], x)
        if distance is not None:
            params["perceptual"] = jax.tree.map(jnp.asarray, distance.made.params)
        return params

    parts = config.accumulate, config.virtual_shards
    members = {
        name: training.Player(loss, optimizers[name], *parts) for name, loss in losses.items()
    }
    return training.players(init, members, config.ema_decay)


def _nothing(params: Params, *args: Any) -> tuple[Any, Terms]:
    """The loss of a player that learns nothing."""
    return jnp.zeros(()), {}


def model_optimizer(config: Config) -> optax.GradientTransformation:
    """The optimizer of the autoencoder; with ``decoder_only`` what gives latents stays."""
    whole = optimizer_of(config)
    if not config.decoder_only:
        return whole
    still = ("encoder", "quantizer")
    label = lambda params: {name: "still" if name in still else "moved" for name in params}
    return optax.partition({"moved": whole, "still": optax.set_to_zero()}, label)


def _preset(text: str, **named: Any) -> tuple[str, Config]:
    usual = {"b1": 0.5, "b2": 0.9, "learning_rate": 1e-3, "steps": 2000, "batch_size": 32}
    fewer = {"test_samples": 16, "test_examples": 200, "ema_decay": 0.99}
    return text, changed(Config(), **usual | fewer | named)


PRESETS = {
    "autoencoder-kl": _preset(
        "the Gaussian autoencoder of latent diffusion, diffusers' AutoencoderKL"
    ),
    "vq-gan": _preset(
        "its autoencoder with a codebook, diffusers' VQModel (Esser et al. 2021)",
        bottleneck="nearest",
        critic_weight=0.8,
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
