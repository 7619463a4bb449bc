"""Networks that judge images: a critic of patches, and the feature maps of VGG."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import linen

from jaxvae.networks.adapters import from_linen
from jaxvae.networks.contract import Network
from jaxvae.networks.layers import Array, GroupNorm, conv

SLOPE = 0.2  # of the critic's leaky rectifiers
NORM_CHANNELS = 16  # of a group in the critic's normalizations


def patch_critic(channels: Sequence[int]) -> Network:
    """PatchGAN's critic: one number for each patch of an image, [H, W, C] -> [h, w, 1].

    Isola et al. 2017, arXiv:1611.07004, app. 6.1.2. 4x4 convolutions of stride 2, one for each of
    ``channels`` but the last one, which has stride 1 as the output has. Batch normalization is no
    function of one example, so all layers but the first and the output have group normalization.
    """
    init = linen.initializers.normal(0.02)

    class Critic(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            for i, width in enumerate(channels):
                strides = 1 if i == len(channels) - 1 else 2
                name = f"conv_{i}"
                x = conv(width, (4, 4), strides, padding=1, kernel_init=init, name=name)(x)
                if i:
                    x = GroupNorm(_groups(width), name=f"norm_{i}")(x)
                x = jax.nn.leaky_relu(x, SLOPE)
            return conv(1, (4, 4), padding=1, kernel_init=init, name="output")(x)

    return from_linen(Critic())


def _groups(width: int) -> int:
    return width // NORM_CHANNELS if width % NORM_CHANNELS == 0 else 1


def patches(size: int, layers: int) -> int:
    """How many patches ``patch_critic`` of so many layers sees along a side of an image."""
    for i in range(layers + 1):
        size = (size - 2) // (1 if i >= layers - 1 else 2) + 1
    return size


def vgg_maps(channels: Sequence[int], depths: Sequence[int]) -> Network:
    """The maps after each stage of a VGG network: [H, W, C] -> a tuple of [h, w, channels_k].

    Simonyan & Zisserman 2015, arXiv:1409.1556. A stage has ``depths_k`` rectified 3x3 convolutions,
    and max-pooling halves height and width between stages. VGG16 has the channels (64, 128, 256,
    512, 512) and the depths (2, 2, 3, 3, 3); its maps are relu1_2, relu2_2, relu3_3, relu4_3 and
    relu5_3.
    """

    class VGG(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> tuple[Array, ...]:
            maps: list[Array] = []
            for i, (width, depth) in enumerate(zip(channels, depths, strict=True)):
                if maps:
                    x = linen.max_pool(x, (2, 2), (2, 2))
                for j in range(depth):
                    x = jax.nn.relu(conv(width, (3, 3), padding=1, name=f"conv_{i}_{j}")(x))
                maps.append(x)
            return tuple(maps)

    return from_linen(VGG())
