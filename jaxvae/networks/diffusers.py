"""Encoder and decoder of latent diffusion, layer by layer as in the library diffusers.

Rombach et al. 2022, arXiv:2112.10752. The parameters of ``encoder.down_blocks.0.resnets.1.conv1``
there are ``encoder/down_blocks_0/resnets_1/conv1`` here, so files can be exchanged.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from flax import linen

from jaxvae.networks.adapters import from_linen
from jaxvae.networks.contract import Network
from jaxvae.networks.layers import Array, GroupNorm, conv, dense


class Architecture(NamedTuple):
    """What ``AutoencoderKL`` and ``VQModel`` are made of."""

    channels: int  # of an image
    latent: int  # channels of the maps between encoder and decoder
    hidden: tuple[int, ...]  # channels by resolution, from the image's on; each halves it
    blocks: int = 1  # residual blocks at each resolution of the encoder; the decoder has one more
    groups: int = 8  # of the group normalizations
    attention: tuple[int, ...] = ()  # the resolutions, from 0, with attention after each block
    middle_attention: bool = True  # whether there is attention at the lowest resolution
    quant_convs: bool = True  # whether 1x1 convolutions stand before and after the latents
    remat: bool = False  # whether the backward pass computes blocks again, which saves memory

    @property
    def factor(self) -> int:
        """How many times smaller the latents are than the image, in height and in width."""
        return 2 ** (len(self.hidden) - 1)

    def module(self, kind: Any) -> Any:
        """A class of modules, with ``remat`` if it is asked for."""
        return linen.remat(kind, prevent_cse=False) if self.remat else kind


class Halves(NamedTuple):
    """A decoder in two parts, which have the same parameters."""

    trunk: Network  # z [h, w, D] -> the input [H, W, F] of the last convolution
    head: Network  # that input -> the image [H, W, C]


class _Resnet(linen.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); x passes a 1x1 convolution if channels change."""

    width: int
    groups: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        h = x
        for i in (1, 2):
            h = jax.nn.silu(GroupNorm(self.groups, name=f"norm{i}")(h))
            h = conv(self.width, (3, 3), padding=1, name=f"conv{i}")(h)
        if x.shape[-1] != self.width:
            x = conv(self.width, (1, 1), name="conv_shortcut")(x)
        return x + h


class _Attention(linen.Module):
    """x + softmax(q k^T / sqrt(C)) v over all places of a map [H, W, C], with one head."""

    groups: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        h = GroupNorm(self.groups, name="group_norm")(x).reshape(-1, 1, width)  # [T, 1, C]
        q, k, v = (dense(width, name=f"to_{name}")(h) for name in "qkv")
        h = jax.nn.dot_product_attention(q, k, v)
        return x + dense(width, name="to_out_0")(h).reshape(x.shape)


class _Downsampler(linen.Module):
    """A 3x3 convolution of stride 2, with zeros below and to the right of the image."""

    @linen.compact
    def __call__(self, x: Array) -> Array:
        padding = ((0, 1), (0, 1))
        return conv(x.shape[-1], (3, 3), strides=2, padding=padding, name="conv")(x)


class _Upsampler(linen.Module):
    """Every pixel four times, then a 3x3 convolution."""

    @linen.compact
    def __call__(self, x: Array) -> Array:
        x = x.repeat(2, 0).repeat(2, 1)
        return conv(x.shape[-1], (3, 3), padding=1, name="conv")(x)


CHANGES = {"down": _Downsampler, "up": _Upsampler}


class _Blocks(linen.Module):
    """The residual blocks of one resolution, and then a change of resolution."""

    made_of: Architecture
    level: int
    blocks: int
    change: str = ""  # of the resolution, a name of ``CHANGES``

    @linen.compact
    def __call__(self, x: Array) -> Array:
        made_of, width = self.made_of, self.made_of.hidden[self.level]
        for j in range(self.blocks):
            resnet = made_of.module(_Resnet)
            x = resnet(width, made_of.groups, name=f"resnets_{j}")(x)
            if self.level in made_of.attention:
                x = made_of.module(_Attention)(made_of.groups, name=f"attentions_{j}")(x)
        if self.change:
            x = CHANGES[self.change](name=f"{self.change}samplers_0")(x)
        return x


class _Middle(linen.Module):
    """Two residual blocks at the lowest resolution, perhaps with attention between them."""

    made_of: Architecture

    @linen.compact
    def __call__(self, x: Array) -> Array:
        made_of, width = self.made_of, self.made_of.hidden[-1]
        for j in range(2):
            x = made_of.module(_Resnet)(width, made_of.groups, name=f"resnets_{j}")(x)
            if j == 0 and made_of.middle_attention:
                x = made_of.module(_Attention)(made_of.groups, name="attentions_0")(x)
        return x


class _Encoder(linen.Module):
    made_of: Architecture
    output: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        made_of, last = self.made_of, len(self.made_of.hidden) - 1
        x = conv(made_of.hidden[0], (3, 3), padding=1, name="conv_in")(x)
        for i in range(last + 1):
            change = "down" if i < last else ""
            x = _Blocks(made_of, i, made_of.blocks, change, name=f"down_blocks_{i}")(x)
        x = _Middle(made_of, name="mid_block")(x)
        x = jax.nn.silu(GroupNorm(made_of.groups, name="conv_norm_out")(x))
        return conv(self.output, (3, 3), padding=1, name="conv_out")(x)


class _Decoder(linen.Module):
    made_of: Architecture
    with_head: bool

    @linen.compact
    def __call__(self, z: Array) -> Array:
        made_of, last = self.made_of, len(self.made_of.hidden) - 1
        x = conv(made_of.hidden[-1], (3, 3), padding=1, name="conv_in")(z)
        x = _Middle(made_of, name="mid_block")(x)
        for i in range(last + 1):
            change = "up" if i < last else ""
            x = _Blocks(made_of, last - i, made_of.blocks + 1, change, name=f"up_blocks_{i}")(x)
        x = jax.nn.silu(GroupNorm(made_of.groups, name="conv_norm_out")(x))
        return _last_convolution(made_of, "conv_out")(x) if self.with_head else x


def _last_convolution(made_of: Architecture, name: str | None = None) -> linen.Module:
    return conv(made_of.channels, (3, 3), padding=1, name=name)


def encoder(made_of: Architecture, output: int, embedded: int) -> Network:
    """Images [H, W, C] to maps [h, w, embedded], with h = H / factor rounded down at each halving.

    Parameters are ``{"encoder", "quant_conv"}``. Raises ValueError if the groups do not divide the
    channels.

    Args:
      made_of: the architecture.
      output: channels that the encoder gives: twice ``latent`` for means and log-variances.
      embedded: channels after the 1x1 convolution.
    """
    check(made_of)

    class Encoder(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            x = _Encoder(made_of, output, name="encoder")(x)
            return conv(embedded, (1, 1), name="quant_conv")(x) if made_of.quant_convs else x

    return from_linen(Encoder())


def decoder(made_of: Architecture) -> Halves:
    """Maps [h, w, D] to images [factor h, factor w, C].

    Parameters are ``{"post_quant_conv", "decoder"}``. Raises ValueError if the groups do not divide
    the channels.
    """
    check(made_of)

    class Decoder(linen.Module):
        with_head: bool

        @linen.compact
        def __call__(self, z: Array) -> Array:
            if made_of.quant_convs:
                z = conv(made_of.latent, (1, 1), name="post_quant_conv")(z)
            return _Decoder(made_of, self.with_head, name="decoder")(z)

    whole, trunk = from_linen(Decoder(True)), from_linen(Decoder(False))
    last = _last_convolution(made_of)

    def head(params: Any, h: Array) -> Any:
        return last.apply({"params": params["decoder"]["conv_out"]}, h)

    return Halves(trunk._replace(init=whole.init), Network(whole.init, head))


def check(made_of: Architecture) -> None:
    """Raises ValueError if there are no channels, or if the groups do not divide them."""
    if not made_of.hidden:
        raise ValueError("an autoencoder of latent diffusion needs at least one width in hidden")
    odd = [width for width in made_of.hidden if width % made_of.groups]
    if odd:
        raise ValueError(
            f"norm_groups={made_of.groups} must divide every width of hidden="
            f"{made_of.hidden}; it does not divide {odd[0]}"
        )
    absent = [level for level in made_of.attention if level >= len(made_of.hidden)]
    if absent:
        raise ValueError(
            f"attention_levels={made_of.attention} are of the {len(made_of.hidden)} widths of "
            f"hidden, counted from 0; there is no {absent[0]}"
        )
