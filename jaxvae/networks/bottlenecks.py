"""The network of very deep hierarchies of images (VDVAE, Child 2021, arXiv:2011.10650)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxvae import kernels
from jaxvae.distributions import Normal
from jaxvae.networks.layers import Activation
from jaxvae.networks.layouts import Layout, Level, Size, Stage
from jaxvae.networks.precision import PRECISIONS
from jaxvae.networks.topdown import Layer, TopDown, absolute, normal

Array = jax.Array
LARGEST_BIAS = 64  # the resolution up to which a level of the decoder has a learned bias


# Parameters


class _Weights(NamedTuple):
    """Parameters before they are drawn: uniform within ``limit`` of ``center``."""

    shape: tuple[int, ...]
    limit: float = 0.0
    center: float = 0.0


def _drawn(key: Array, tree: Any) -> Any:
    """A tree of ``_Weights``, drawn at once: a draw for each would take seconds to compile."""
    weights, structure = jax.tree.flatten(tree, is_leaf=lambda node: isinstance(node, _Weights))
    ends = np.cumsum([math.prod(each.shape) if each.limit else 0 for each in weights])
    draws = jnp.split(jax.random.uniform(key, (ends[-1],), minval=-1.0), ends[:-1])
    values = [
        each.center + each.limit * draw.reshape(each.shape)
        if each.limit
        else jnp.full(each.shape, each.center, jnp.float32)
        for each, draw in zip(weights, draws, strict=True)
    ]
    return jax.tree.unflatten(structure, values)


def _conv_weights(
    blocks: tuple[int, ...], taps: int, inputs: int, outputs: int, factor: float = 1.0
) -> dict[str, _Weights]:
    """Kernels within 1 / sqrt(inputs of a place), as PyTorch draws them, and biases of 0."""
    limit = factor / math.sqrt(taps * taps * inputs)
    kernel = _Weights((*blocks, taps, taps, inputs, outputs), limit)
    return {"kernel": kernel, "bias": _Weights((*blocks, outputs))}


def _bottleneck_weights(
    blocks: tuple[int, ...], size: Size, widths: tuple[int, int, int], last: float = 1.0
) -> dict[str, Any]:
    """Weights for inputs, middle and outputs; ``last`` scales the weights of c4."""
    taps = 3 if min(size) > 2 else 1
    inputs, middle, outputs = widths
    return {
        "c1": _conv_weights(blocks, 1, inputs, middle),
        "c2": _conv_weights(blocks, taps, middle, middle),
        "c3": _conv_weights(blocks, taps, middle, middle),
        "c4": _conv_weights(blocks, 1, middle, outputs, last),
    }


# Parts of one image [H, W, C]


def _conv(params: dict[str, Array], x: Array) -> Array:
    """A convolution with stride 1, whose result has the same size."""
    kernel, bias = params["kernel"], params["bias"]
    if kernel.shape[:2] == (1, 1):
        return kernels.dot_general(x, kernel[0, 0], (((2,), (0,)), ((), ()))) + bias
    numbers = ("NHWC", "HWIO", "NHWC")
    y = kernels.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=numbers)
    return y[0] + bias


def _pooled(x: Array, factors: Size) -> Array:
    """Means of blocks of places."""
    (height, width, channels), (down, right) = x.shape, factors
    return x.reshape(height // down, down, width // right, right, channels).mean((1, 3))


def _enlarged(x: Array, size: Size) -> Array:
    """Each place repeated, up to a size."""
    return x.repeat(size[0] // x.shape[0], 0).repeat(size[1] // x.shape[1], 1)


def _of_width(x: Array, width: int) -> Array:
    """The first channels, or all of them and zeros."""
    more = max(width - x.shape[-1], 0)
    return jnp.pad(x[..., :width], ((0, 0), (0, 0), (0, more)))


def _named(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


class _Network(NamedTuple):
    """The settings of ``very_deep``, and its functions."""

    layout: Layout
    output: tuple[int, ...]
    latent: int
    widths: dict[Size, int]
    posterior: Callable[[Normal, Array], Normal]
    activation: Activation
    remat: bool
    dtype: Any
    matmul: str
    center: float
    spread: float

    # Parameters

    def init(self, key: Array, x: Array) -> Any:
        """All parameters; ``x`` is an image."""
        stages, levels = self.layout
        last = self.widths[levels[-1].size]
        weights = {
            "input": _conv_weights((), 3, x.shape[-1], self.widths[stages[0].size]),
            "encoder": {_named(stage.size): self._of_stage(stage) for stage in stages},
            "decoder": {_named(level.size): self._of_level(level) for level in levels},
            "gain": _Weights((last,), center=1.0),
            "bias": _Weights((last,)),
            "output": _conv_weights((), 1, last, self.output[-1]),
        }
        return _drawn(key, weights)

    def _of_stage(self, stage: Stage) -> dict[str, Any]:
        width = self.widths[stage.size]
        depth = sum(s.blocks + (s.pool is not None) for s in self.layout.stages)
        of = lambda blocks: _bottleneck_weights(
            blocks, stage.size, (width, width // 4, width), depth**-0.5
        )
        return {"blocks": of((stage.blocks,))} | ({"pool": of(())} if stage.pool else {})

    def _of_level(self, level: Level) -> dict[str, Any]:
        width, latent, blocks = self.widths[level.size], self.latent, (level.blocks,)
        middle, factor = width // 4, len(self.names) ** -0.5
        of = lambda inputs, outputs, last=1.0: _bottleneck_weights(
            blocks, level.size, (inputs, middle, outputs), last
        )
        weights: dict[str, Any] = {
            "posterior": of(2 * width, 2 * latent),
            "prior": of(width, 2 * latent + width, 0.0),
            "latent": _conv_weights(blocks, 1, latent, width, factor),
            "residual": of(width, width, factor),
        }
        if max(level.size) > LARGEST_BIAS:
            return {"blocks": weights}
        return {"blocks": weights, "bias": _Weights((*level.size, width))}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers."""
        levels = self.layout.levels
        return tuple(f"{_named(v.size)}/{i + 1}" for v in levels for i in range(v.blocks))

    # Blocks

    def _bottleneck(self, params: dict[str, Any], x: Array) -> Array:
        """c4(g(c3(g(c2(g(c1(g(x)))))))), where g is the activation."""
        for name in ("c1", "c2", "c3", "c4"):
            x = _conv(params[name], self.activation(x))
        return x

    def _scan(self, block: Callable, state: Array, items: Any) -> tuple[Array, Any]:
        """Blocks one after the other, whose inside the backward pass may compute again."""
        body = jax.checkpoint(block, prevent_cse=False) if self.remat else block
        return lax.scan(body, state, items)

    def _encoder_block(self, state: Array, params: dict[str, Any]) -> tuple[Array, None]:
        return state + self._bottleneck(params, state), None

    def _decoder_block(self, seen: Array | None, layer: Layer) -> Callable:
        """A block of a level, where ``seen`` is the encoder's state."""

        def block(state: Array, given: tuple) -> tuple[Array, Any]:
            params, number, item = given
            raw = self._bottleneck(params["prior"], state)
            p, q = normal(raw[..., : 2 * self.latent]), None
            if seen is not None:
                both = jnp.concatenate([state, seen], -1)
                q = self.posterior(p, self._bottleneck(params["posterior"], both))
            z, report = layer(number, p, q, item)
            state += raw[..., 2 * self.latent :]
            state += _conv(params["latent"], z.astype(self.dtype))
            return state + self._bottleneck(params["residual"], state), report

        return block

    # Both ways

    def _cast(self, params: Any, *names: str) -> Any:
        return jax.tree.map(lambda a: a.astype(self.dtype), {name: params[name] for name in names})

    def bottom_up(self, params: Any, x: Array) -> dict[str, Array]:
        """The encoder's last state at each resolution."""
        with jax.default_matmul_precision(self.matmul):
            params = self._cast(params, "input", "encoder")
            state = _conv(params["input"], ((x - self.center) / self.spread).astype(self.dtype))
            activations = {}
            for stage in self.layout.stages:
                name = _named(stage.size)
                of_stage, state = params["encoder"][name], _of_width(state, self.widths[stage.size])
                state, _ = self._scan(self._encoder_block, state, of_stage["blocks"])
                activations[name] = state
                if stage.pool:
                    state = _pooled(self._encoder_block(state, of_stage["pool"])[0], stage.pool)
            return activations

    def top_down(
        self, params: Any, activations: Any, layer: Layer, items: tuple
    ) -> tuple[Array, tuple]:
        """The numbers of p(x|z), and the reports of all layers."""
        with jax.default_matmul_precision(self.matmul):
            params = self._cast(params, "decoder", "gain", "bias", "output")
            states: list[Array] = []
            reports = []
            first = 0
            for level, item in zip(self.layout.levels, items, strict=True):
                name = _named(level.size)
                of_level, seen = params["decoder"][name], activations and activations[name]
                numbers = first + jnp.arange(level.blocks)
                state, report = self._scan(
                    self._decoder_block(seen, layer),
                    self._start(of_level, level, states),
                    (of_level["blocks"], numbers, item),
                )
                states.append(state)
                reports.append(report)
                first += level.blocks
            last = states[-1] * params["gain"] + params["bias"]
            return _conv(params["output"], last).astype(jnp.float32), tuple(reports)

    def _start(self, params: dict[str, Any], level: Level, states: Sequence[Array]) -> Array:
        """The state before the first block of a level."""
        width = self.widths[level.size]
        state = params.get("bias", jnp.zeros((*level.size, width), self.dtype))
        if level.below is None:
            return state
        return state + _enlarged(_of_width(states[level.below], width), level.size)


def very_deep(
    layout: Layout,
    output: Sequence[int],
    latent: int,
    widths: Sequence[int],
    posterior: Callable[[Normal, Array], Normal] = absolute,
    activation: Activation = jax.nn.gelu,
    remat: bool = True,
    precision: str = "float32",
    center: float = 0.5,
    spread: float = 0.25,
) -> TopDown:
    """A very deep hierarchy of images, without normalization (arXiv:2011.10650, fig. 2 and 3).

    The blocks of a resolution are one loop over parameters stacked [blocks, ...], so the compiled
    program does not grow with their number. Block l of the decoder takes its state s to

        t + f(t),  t = s + h + W z_l,  z_l ~ p(z_l | z_<l) or q(z_l | z_<l, x),

    where a bottleneck of s gives p and h, which begin as N(0, 1) and 0, and a bottleneck of s and
    of the encoder's state at this resolution gives q.

    Args:
      layout: resolutions and blocks.
      output: the shape [H, W, numbers] that the network gives.
      latent: channels of each layer's latents.
      widths: channels at each resolution, from the top on; one number is for all of them.
      posterior: ``(p, raw) -> q``, such as ``absolute`` or ``residual``.
      activation: function of one array.
      remat: whether the backward pass keeps the blocks' inputs alone and computes the rest again
        (Chen et al. 2016, arXiv:1604.06174).
      precision: a member of ``PRECISIONS``; p and q are float32 in each.
      center: what is subtracted from x.
      spread: what x is then divided by.
    """
    sizes = [stage.size for stage in layout.stages][::-1]
    widths = tuple(widths) * (len(sizes) if len(widths) == 1 else 1)
    if len(widths) != len(sizes):
        raise ValueError(
            f"hidden={widths} are {len(widths)} widths for {len(sizes)} resolutions: give one for "
            "each, or one for all"
        )
    if min(widths) < 4:
        raise ValueError(f"hidden={widths}: blocks need at least 4 channels, a quarter inside")
    dtype, matmul = PRECISIONS[precision]
    network = _Network(
        layout,
        tuple(output),
        latent,
        dict(zip(sizes, widths, strict=True)),
        posterior,
        activation,
        remat,
        jnp.float32 if dtype is None else dtype,
        matmul,
        center,
        spread,
    )
    groups = tuple(level.blocks for level in layout.levels)
    return TopDown(network.init, network.bottom_up, network.top_down, network.names, groups)
