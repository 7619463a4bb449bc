"""Networks behind a pair of pure functions, ``Network(init, apply)``: the only room that knows
Flax.

``init(key, x) -> params`` and ``apply(params, x) -> output``, for one example; batches are made by
``jax.vmap``. Any pair of functions is a network, and ``from_nnx`` makes one of a Flax NNX module.
Parameters are float32; ``with_precision`` states the precision in which a network computes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import lax

from jaxvae import convolutions, lowering
from jaxvae.ranges import Count, Widths

Array = jax.Array
Activation = Callable[[Array], Array]
ActivationName = Literal["relu", "gelu", "silu", "softplus", "tanh"]
ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
}


class Network(NamedTuple):
    """A function with parameters."""

    init: Callable  # (key, x) -> params
    apply: Callable  # (params, x) -> output


def from_linen(module: linen.Module) -> Network:
    """A Flax linen module whose only collection is ``params``."""
    init = jax.jit(lambda key, x: module.init(key, x)["params"])
    return Network(init, lambda params, x: module.apply({"params": params}, x))


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """A Flax NNX module, given the function that builds it: ``from_nnx(lambda rngs: nnx.Linear(64,
    8, rngs=rngs))``.

    Its ``nnx.Param`` variables become the parameters, a plain dictionary; other variables stay as
    they were built.
    """
    graph, abstract, *rest = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)
    if jax.tree.leaves(rest):
        kinds = sorted(
            {
                type(leaf).__name__
                for leaf in jax.tree.leaves(rest, is_leaf=lambda v: isinstance(v, nnx.Variable))
            }
        )
        raise ValueError(
            f"from_nnx takes modules whose state is nnx.Param only; this one also holds {', '.join(kinds)}"
        )

    def init(key: Array, x: Array) -> Any:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))

    def apply(params: Any, x: Array) -> Array:
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state, *rest)(x)

    return Network(init, apply)


_dense = functools.partial(linen.Dense, dot_general=lowering.dot_general)
_conv = functools.partial(linen.Conv, conv_general_dilated=convolutions.conv_general_dilated)


def mlp(
    hidden: Sequence[int], output: int | Sequence[int], activation: Activation = jax.nn.relu
) -> Network:
    """Fully connected network: the input is flattened, ``hidden`` gives the widths, ``output`` the
    output's shape.

    With ``hidden=()`` it is one affine map.
    """
    shape = (output,) if isinstance(output, int) else tuple(output)

    class MLP(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            x = x.reshape(-1)
            for width in hidden:
                x = activation(_dense(width)(x))
            return _dense(math.prod(shape))(x).reshape(shape)

    return from_linen(MLP())


class _ConvTranspose(linen.Module):
    """``linen.ConvTranspose`` with 4x4 kernels and stride 2, which does not let one choose its
    convolution.
    """

    features: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param(
            "kernel", linen.initializers.lecun_normal(), (4, 4, x.shape[-1], self.features)
        )
        bias = self.param("bias", linen.initializers.zeros_init(), (self.features,))
        return convolutions.conv_transpose(x[None], kernel, (2, 2), "SAME")[0] + bias


def convolutional_encoder(
    channels: Sequence[int], output: int, activation: Activation = jax.nn.relu
) -> Network:
    """4x4 convolutions of stride 2, one for each of ``channels``, then an affine map to ``output
    [output]``.

    The input is ``[H, W, C]``; each layer halves H and W, rounded up.
    """

    class Encoder(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            for width in channels:
                x = activation(_conv(width, (4, 4), strides=2)(x))
            return _dense(output)(x.reshape(-1))

    return from_linen(Encoder())


def convolutional_decoder(
    channels: Sequence[int], output: Sequence[int], activation: Activation = jax.nn.relu
) -> Network:
    """The encoder's mirror: an affine map to the smallest image, then 4x4 transposed convolutions
    of stride 2.

    ``channels`` are the widths from the smallest image on; ``output`` is ``[H, W, C]``. Sizes that
    are no multiple of 2^len(channels) are cropped from the next larger one.
    """
    height, width, depth = output
    factor = 2 ** len(channels)

    class Decoder(linen.Module):
        @linen.compact
        def __call__(self, z: Array) -> Array:
            small = (-(-height // factor), -(-width // factor), channels[0])
            x = activation(_dense(math.prod(small))(z)).reshape(small)
            for i, features in enumerate((*channels[1:], None)):
                x = _ConvTranspose(features or depth, name=f"ConvTranspose_{i}")(x)
                x = activation(x) if features else x
            return x[:height, :width]

    return from_linen(Decoder())


class _GroupNorm(linen.Module):
    """Group normalization of one image ``[H, W, C]`` (Wu & He 2018, arXiv:1803.08494): a scale and
    a shift per channel.

    The moments of a group are means of its channels' moments, so that all sums are over whole
    images and the backward pass has no array of groups. (Of one image ``linen.GroupNorm`` would
    take the rows for examples.)
    """

    groups: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        scale = self.param("scale", linen.initializers.ones_init(), (width,))
        bias = self.param("bias", linen.initializers.zeros_init(), (width,))
        h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        of_group = lambda h: jnp.repeat(
            h.mean((0, 1)).reshape(self.groups, -1).mean(-1), width // self.groups
        )
        mean = of_group(h)
        a = scale * lax.rsqrt(jnp.maximum(of_group(h**2) - mean**2, 0) + 1e-6)
        return (a * h + (bias - a * mean)).astype(x.dtype)


def _sigmoid(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive is lax.logistic_p


class _ResidualBlock(linen.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), pre-activation (He et al. 2016, arXiv:1603.05027,
    fig. 1b).

    As ``linen.scan`` takes it: ``(x, None) -> (output, None)``.
    """

    activation: Activation

    @linen.compact
    def __call__(self, x: Array, no_input: None) -> tuple[Array, None]:
        width, h = x.shape[-1], x
        # Computed again in the backward pass, which is faster than to keep it; all but sigmoids on
        # a CPU.
        policy = _sigmoid if jax.default_backend() == "cpu" else None
        active = linen.remat(
            lambda norm, h: self.activation(norm(h)), prevent_cse=False, policy=policy
        )
        for i in range(2):
            h = _conv(width, (3, 3))(
                active(_GroupNorm(math.gcd(8, width), name=f"GroupNorm_{i}"), h)
            )
        return x + h, None


def _residual_stage(x: Array, name: str, blocks: int, activation: Activation, remat: bool) -> Array:
    """``blocks`` residual blocks as one loop over parameters stacked ``[blocks, ...]``, each
    drawn independently.
    """
    if not blocks:
        return x
    block = linen.remat(_ResidualBlock, prevent_cse=False) if remat else _ResidualBlock
    # Two blocks in each turn of the loop, which copies what the backward pass needs; that is little
    # with remat.
    stage = linen.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=blocks,
        unroll=1 if remat else 2,
    )
    return stage(activation, name=name)(x, None)[0]


def residual_encoder(
    channels: Sequence[int],
    output: int,
    blocks: int = 2,
    activation: Activation = jax.nn.silu,
    remat: bool = False,
) -> Network:
    """For each of ``channels`` a 4x4 convolution of stride 2 and a stage of ``blocks`` residual
    blocks; an affine map.

    The compiled program does not grow with ``blocks`` beyond three. With ``remat`` the backward
    pass keeps the blocks' inputs alone and computes the rest again: a fraction of the memory, a
    sixth more products (Chen et al. 2016, arXiv:1604.06174).
    """

    class Encoder(linen.Module):
        @linen.compact
        def __call__(self, x: Array) -> Array:
            for i, width in enumerate(channels):
                x = _conv(width, (4, 4), strides=2)(x)
                x = _residual_stage(x, f"stage_{i}", blocks, activation, remat)
            return _dense(output)(activation(x).reshape(-1))

    return from_linen(Encoder())


def residual_decoder(
    channels: Sequence[int],
    output: Sequence[int],
    blocks: int = 2,
    activation: Activation = jax.nn.silu,
    remat: bool = False,
) -> Network:
    """The residual encoder's mirror; ``channels`` from the smallest image on, ``output`` is
    ``[H, W, C]``.
    """
    height, width, depth = output
    factor = 2 ** len(channels)

    class Decoder(linen.Module):
        @linen.compact
        def __call__(self, z: Array) -> Array:
            small = (-(-height // factor), -(-width // factor), channels[0])
            x = _dense(math.prod(small))(z).reshape(small)
            for i, features in enumerate((*channels[1:], depth)):
                x = _residual_stage(x, f"stage_{i}", blocks, activation, remat)
                x = _ConvTranspose(features, name=f"ConvTranspose_{i}")(activation(x))
            return x[:height, :width]

    return from_linen(Decoder())


Pair = tuple[Network, Network]  # encoder and decoder


def mlp_pair(
    size: int,
    output: Sequence[int],
    hidden: Widths = (200, 200),
    activation: ActivationName = "relu",
) -> Pair:
    """Fully connected encoder and decoder with layers of ``hidden`` widths.

    The encoder gives ``size`` numbers, and the decoder an array of shape ``output``. The decoder
    mirrors the widths, here as in every pair.
    """
    function = ACTIVATIONS[activation]
    return mlp(hidden, size, function), mlp(hidden[::-1], output, function)


def convolutional_pair(
    size: int,
    output: Sequence[int],
    hidden: Widths = (32, 64),
    activation: ActivationName = "relu",
) -> Pair:
    """Convolutional encoder and decoder of images, with ``hidden`` channels."""
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
    """Residual encoder and decoder of images, one stage for each of ``hidden``.

    ``hidden`` are the channels. Each stage has ``blocks`` residual blocks. With ``remat`` the backward pass computes their
    insides again, which saves memory.
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


def on_slice(network: Network, part: slice) -> Network:
    """``network`` of a part of its input [D]: the decoder of a latent vector whose rest belongs
    to the prior.
    """
    return Network(
        lambda key, x: network.init(key, x[part]), lambda params, x: network.apply(params, x[part])
    )


def scaled_input(network: Network, factor: float) -> Network:
    """The same network, fed with ``factor * x``."""
    return network._replace(
        init=lambda key, x: network.init(key, factor * x),
        apply=lambda params, x: network.apply(params, factor * x),
    )


class Precision(NamedTuple):
    """How a network computes."""

    dtype: Any  # of parameters, input and all between them; None leaves them as they are
    matmul: str  # jax_default_matmul_precision: how float32 matrix products and convolutions are multiplied


# How products of float32 arrays are computed (documentation of ``jax.lax.Precision``); on CPU in
# float32 always:
#   float32        float32 on GPU; six bfloat16 passes on TPU, about as exact
#   tensorfloat32  TF32 on GPUs that have it, else float32; three bfloat16 passes on TPU
#   bfloat16       JAX's own default: on GPU as tensorfloat32; one bfloat16 pass on TPU
PRECISIONS: dict[str, Precision] = {
    "float32": Precision(None, "float32"),
    "tensorfloat32": Precision(jnp.float32, "tensorfloat32"),
    "bfloat16": Precision(jnp.bfloat16, "bfloat16"),
}


def with_precision(network: Network, precision: str = "float32") -> Network:
    """The same network, computed in a member of ``PRECISIONS`` whatever JAX's ambient default is.

    Parameters and input are cast inside ``apply`` and the output back to float32, so that
    parameters stay float32, gradients come out float32, and densities see float32. Integers are not
    cast, and nothing is for ``float32``. A layer that states a type or a precision of its own keeps
    it. Raises ValueError for an unknown name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    dtype, matmul = PRECISIONS[precision]

    def apply(params: Any, x: Any) -> Any:
        with jax.default_matmul_precision(matmul):
            if dtype is None:
                return network.apply(params, x)
            return _cast(network.apply(_cast(params, dtype), _cast(x, dtype)), jnp.float32)

    return network._replace(apply=apply)


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
    )
