"""Pairs of an encoder and a decoder, as the command line offers them.

A pair is a function of ``size``, the number of the encoder's outputs, and of ``output``, the shape
that the decoder gives. Its other arguments are settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxvae.networks.contract import Network
from jaxvae.networks.convolutional import convolutional_decoder, convolutional_encoder
from jaxvae.networks.dense import mlp
from jaxvae.networks.layers import ACTIVATIONS, ActivationName
from jaxvae.networks.residual import residual_decoder, residual_encoder
from jaxvae.ranges import Count, Widths

Pair = tuple[Network, Network]  # encoder and decoder


def mlp_pair(
    size: int,
    output: Sequence[int],
    hidden: Widths = (200, 200),
    activation: ActivationName = "relu",
) -> Pair:
    """Fully connected encoder and decoder.

    Args:
      size: how many numbers the encoder gives.
      output: the shape that the decoder gives.
      hidden: widths of the encoder's hidden layers; the decoder has them in reverse order.
      activation: the activation of the hidden layers.
    """
    function = ACTIVATIONS[activation]
    return mlp(hidden, size, function), mlp(hidden[::-1], output, function)


def convolutional_pair(
    size: int,
    output: Sequence[int],
    hidden: Widths = (32, 64),
    activation: ActivationName = "relu",
) -> Pair:
    """Convolutional encoder and decoder of images.

    Args:
      size: how many numbers the encoder gives.
      output: the shape [H, W, C] that the decoder gives.
      hidden: channels of the encoder's layers, each of which halves height and width; the decoder
        has them in reverse order.
      activation: the activation of the hidden layers.
    """
    _check_images("conv", output, hidden)
    function = ACTIVATIONS[activation]
    return (
        convolutional_encoder(hidden, size, function),
        convolutional_decoder(hidden[::-1], output, function),
    )


def residual_pair(
    size: int,
    output: Sequence[int],
    hidden: Widths = (32, 64),
    activation: ActivationName = "silu",
    blocks: Count = 2,
    remat: bool = False,
) -> Pair:
    """Residual encoder and decoder of images, in stages.

    Args:
      size: how many numbers the encoder gives.
      output: the shape [H, W, C] that the decoder gives.
      hidden: channels of the encoder's stages; the decoder has them in reverse order.
      activation: the activation inside the blocks.
      blocks: residual blocks in each stage.
      remat: compute the inside of the blocks again in the backward pass, which saves memory.
    """
    _check_images("residual", output, hidden)
    function = ACTIVATIONS[activation]
    return (
        residual_encoder(hidden, size, blocks, function, remat),
        residual_decoder(hidden[::-1], output, blocks, function, remat),
    )


def _check_images(name: str, output: Sequence[int], hidden: Sequence[int]) -> None:
    if len(output) != 3:
        raise ValueError(
            f"the network {name} needs images [H, W, C]; the decoder's output has shape "
            f"{tuple(output)}: use mlp"
        )
    if not hidden:
        raise ValueError(f"the network {name} needs at least one width in hidden")


PAIRS: dict[str, Callable[..., Pair]] = {
    "mlp": mlp_pair,
    "conv": convolutional_pair,
    "residual": residual_pair,
}
