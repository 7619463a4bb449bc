"""Critics and classifiers: networks that also return what their hidden layers hold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import linen

from jaxvae.networks.adapters import from_linen
from jaxvae.networks.contract import Network, renamed
from jaxvae.networks.layers import Array, conv, dense, encoder_names
from jaxvae.ranges import Count, Widths

leaky_relu = functools.partial(jax.nn.leaky_relu, negative_slope=0.2)


class Judgement(NamedTuple):
    """What a critic says of an example."""

    layers: tuple[Array, ...]  # the hidden layers, from the first on, each flattened: [F]
    output: Array  # [size], such as one log-odds or the logits of classes


def mlp_critic(size: int, critic_hidden: Widths = (256, 256)) -> Network:
    """A fully connected critic.

    Args:
      size: how many numbers the critic gives.
      critic_hidden: widths of the critic's hidden layers.
    """

    class Critic(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Judgement:
            layers: tuple[Array, ...] = ()
            x = x.reshape(-1)
            for width in critic_hidden:
                x = leaky_relu(dense(width)(x))
                layers += (x,)
            return Judgement(layers, dense(size)(x))

    names = {f"Dense_{i}": f"hidden_{i}" for i in range(len(critic_hidden))}
    return renamed(from_linen(Critic()), names | {f"Dense_{len(critic_hidden)}": "output"})


def convolutional_critic(
    size: int, critic_hidden: Widths = (32, 64), critic_features: Count = 128
) -> Network:
    """A critic of images: 4x4 convolutions of stride 2, then a fully connected layer.

    Args:
      size: how many numbers the critic gives.
      critic_hidden: channels of the critic's convolutions, each of which halves height and width.
      critic_features: width of the critic's last hidden layer.
    """

    class Critic(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Judgement:
            layers: tuple[Array, ...] = ()
            for width in critic_hidden:
                x = leaky_relu(conv(width, (4, 4), strides=2)(x))
                layers += (x.reshape(-1),)
            last = leaky_relu(dense(critic_features)(x.reshape(-1)))
            return Judgement((*layers, last), dense(size)(last))

    names = encoder_names(len(critic_hidden)) | {"Dense_0": "features", "Dense_1": "output"}
    return renamed(from_linen(Critic()), names)


CRITICS: dict[str, Callable[..., Network]] = {"mlp": mlp_critic, "conv": convolutional_critic}
