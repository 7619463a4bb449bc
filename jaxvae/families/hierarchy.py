"""Hierarchies: latents in layers, from the top down.

Ladder VAEs (Sonderby et al. 2016, arXiv:1602.02282) and very deep VAEs of images (Child 2021,
arXiv:2011.10650), with residual posteriors and balanced KL (Vahdat & Kautz 2020, arXiv:2007.03898).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxvae import kl_costs, likelihoods, models, networks
from jaxvae.contracts import Array
from jaxvae.distributions import Normal
from jaxvae.families import assembly, contract
from jaxvae.families.contract import Built, Data, Optimizer
from jaxvae.families.flat import likelihood_of, support
from jaxvae.families.objectives import KL_COSTS, Objective, Warmup, Weight
from jaxvae.networks import ActivationName
from jaxvae.ranges import Amount, Count, Positive, Widths
from jaxvae.settings import Choice, Chosen, changed
from jaxvae.training import batch_mean

Likelihood = Choice(likelihoods.LIKELIHOODS)
Layout = Choice(networks.LAYOUTS)


# Posteriors of a layer


def absolute() -> Callable[[Normal, Array], Normal]:
    """A Gaussian of its own, as in VDVAE (Child 2021, arXiv:2011.10650)."""
    return networks.absolute


def residual() -> Callable[[Normal, Array], Normal]:
    """A Gaussian relative to the prior's, as in NVAE (arXiv:2007.03898, sec. 3.2)."""
    return networks.residual


LayerPosterior = Choice({"absolute": absolute, "residual": residual})


# Networks: of the data's shape, the latents and the output's shape


def ladder(
    shape: Sequence[int],
    output: Sequence[int],
    latent: int,
    precision: str,
    hidden: Widths = (512, 256, 128),
    depth: Count = 2,
    activation: ActivationName = "leaky_relu",
    shared_messages: bool = False,
) -> networks.TopDown:
    """Vectors z_1, z_2, ..., and posteriors that merge both directions (arXiv:1602.02282).

    Args:
      shape: the shape of x.
      output: the shape that the network gives.
      latent: dimensions of z_1; each layer above has half as many, rounded up.
      precision: the precision of the networks.
      hidden: widths of the networks below z_1, z_2, ...; there are as many layers as widths.
      depth: hidden layers of each network.
      activation: the activation of the hidden layers.
      shared_messages: whether a posterior merges with the prior of its layer, and not with a second
        network of the layer above.
    """
    return networks.ladder(
        output,
        networks.halved(latent, len(hidden)),
        hidden,
        depth,
        networks.ACTIVATIONS[activation],
        shared_messages,
        precision,
    )


def very_deep(
    shape: Sequence[int],
    output: Sequence[int],
    latent: int,
    precision: str,
    hidden: Widths = (384,),
    layout: Chosen = Layout("pyramid"),
    layer_posterior: Chosen = LayerPosterior("absolute"),
    activation: ActivationName = "exact_gelu",
    remat: bool = True,
    center: float = 0.5,
    spread: Positive = 0.25,
) -> networks.TopDown:
    """Images of latents at several resolutions, in residual blocks (arXiv:2011.10650).

    Args:
      shape: the shape of x.
      output: the shape that the network gives.
      latent: channels of each layer's latents.
      precision: the precision of the network.
      hidden: channels at each resolution, from the top on; one number is for all.
      layout: resolutions, and blocks at each.
      layer_posterior: family of q(z_l|z_<l, x).
      activation: the activation in the blocks.
      remat: compute the inside of the blocks again in the backward pass, which saves memory.
      center: what is subtracted from x before the encoder.
      spread: what x is then divided by.
    """
    if len(shape) != 3:
        raise ValueError(
            f"network=very_deep needs images [H, W, C]; the examples have shape {tuple(shape)}: "
            "use network=ladder"
        )
    return networks.very_deep(
        layout(size=tuple(shape[:2])),
        output,
        latent,
        hidden,
        layer_posterior(),
        networks.ACTIVATIONS[activation],
        remat,
        precision,
        center,
        spread,
    )


Network = Choice({"very_deep": very_deep, "ladder": ladder})


# What KL costs


def balanced(
    scales: Sequence[int], kl_weight: Amount = 1.0, kl_warmup: Chosen = Warmup("linear")
) -> kl_costs.KLCost:
    """KL weighted by layer during the warm-up, as in NVAE (arXiv:2007.03898, app. A).

    Args:
      scales: how many layers there are at each resolution.
      kl_weight: the last weight of KL.
      kl_warmup: the schedule of the weight; without one the layers are not balanced.
    """
    return kl_costs.balanced(scales, kl_warmup(end=kl_weight), kl_weight)


KLCost = Choice(KL_COSTS | {"balanced": balanced})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """A VAE with latents in layers; terms of KL are of layers."""

    latent: Count = 16
    """Latents of a layer: channels of an image, or dimensions of the lowest vector."""
    network: Chosen = Network("very_deep")
    """Network of all layers, up and down."""
    likelihood: Chosen = Likelihood("pixel_logistic_mixture")
    """Family of p(x|z)."""
    num_samples: Count = 1
    """Draws of z for each example."""
    kl_cost: Chosen = KLCost("weighted")
    """What KL costs."""


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    likelihood = likelihood_of(config, data)
    network = config.network(
        shape=data.shape,
        output=likelihood.outputs(data.shape),
        latent=config.latent,
        precision=config.precision,
    )
    if data.input_scale != 1:
        seen = network.bottom_up
        network = network._replace(bottom_up=lambda params, x: seen(params, data.input_scale * x))
    model = models.hierarchy(network, likelihood)
    objective = lambda model: _objective(config, model, network)
    return assembly.trained_model(config, data, model, objective, discrete=likelihood.discrete)


def _objective(config: Config, model: models.Model, network: networks.TopDown) -> Objective:
    cost = config.kl_cost(scales=network.groups)
    if isinstance(cost, Weight):
        loss = models.negative_terms(model, cost.schedule, config.num_samples)
        return Objective(batch_mean(loss), loss)
    return Objective(models.with_layer_costs(model, network.names, cost, config.num_samples))


def _preset(text: str, **named: Any) -> tuple[str, Config]:
    return text, changed(Config(), **named)


def _nats(per_dimension: float, dimensions: int) -> float:
    """The norm of a gradient of nats per example, from one of nats per dimension."""
    return per_dimension * dimensions


# A network in small, that learns emoji of 32x32 in ten minutes on two cores. Blocks at the size of
# the image cost most: one is there, so the others can be wider.
SMALL: dict[str, Any] = {
    "latent": 8,
    "optimizer": "adamax",
    "learning_rate": 3e-3,
    "ema_decay": 0.99,
    "batch_size": 32,
    "steps": 1300,
    "test_samples": 10,
}
PYRAMID: dict[str, Any] = {
    "hidden": (64,),
    "layout": Layout("pyramid", blocks=(1, 2, 3, 1)),
    "remat": False,
}

# The authors' training, whose thresholds of gradients are of nats per dimension.
VDVAE: dict[str, Any] = {
    "optimizer": Optimizer("adamw", b2=0.9, weight_decay=0.01),
    "schedule": "constant",
    "warmup_steps": 100,
    "latent": 16,
    "checkpoint_every": 10_000,
    "report_every": 500,
    "test_samples": 10,
    "precision": "bfloat16",
}

PRESETS: dict[str, tuple[str, Config]] = {
    "ladder": _preset(
        "a ladder of vectors, posteriors that merge both directions (Sonderby et al. 2016)",
        network=Network("ladder"),
        latent=32,
        likelihood="bernoulli",
        kl_cost=KLCost("weighted", kl_warmup=Warmup("linear")),
    ),
    "vdvae-small": _preset(
        "VDVAE in small, on any image set in grey or colour (Child 2021)",
        **SMALL,
        network=Network("very_deep", **PYRAMID),
        clip_norm=0.0,
    ),
    "vdvae-cifar10": _preset(
        "VDVAE's network of CIFAR-10, 39 million parameters (Child 2021): published 2.87 bits/dim",
        **VDVAE,
        dataset="cifar10",
        network=Network("very_deep", layout=Layout("strings"), center=0.4731, spread=0.2516),
        learning_rate=2e-4,
        clip_norm=_nats(200, 32 * 32 * 3),
        skip_norm=_nats(400, 32 * 32 * 3),
        ema_decay=0.9999,
        batch_size=32,
        steps=1_100_000,
    ),
    "vdvae-imagenet64": _preset(
        "VDVAE's network of 64x64 images, 125 million parameters (Child 2021)",
        **VDVAE,
        dataset="imagenet_resized/64x64",
        network=Network(
            "very_deep",
            hidden=(512,),
            layout=Layout(
                "strings",
                encoder_blocks="64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5",
                decoder_blocks=("1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12"),
            ),
        ),
        learning_rate=1.5e-4,
        clip_norm=_nats(220, 64 * 64 * 3),
        skip_norm=_nats(380, 64 * 64 * 3),
        ema_decay=0.999,
        batch_size=128,
        steps=1_600_000,
    ),
    "nvae-small": _preset(
        "residual posteriors and balanced KL of NVAE (Vahdat & Kautz 2020), in VDVAE's blocks",
        **SMALL,
        network=Network(
            "very_deep", **PYRAMID, activation="silu", layer_posterior=LayerPosterior("residual")
        ),
        kl_cost=KLCost("balanced"),
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
