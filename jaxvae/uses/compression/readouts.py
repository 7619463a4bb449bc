"""The networks of a flat VAE as affine maps, whose outputs are in the units that a codec counts in.

An output y is read as the whole number nearest to a y + b. The numbers a and b go into the weights
and biases of the last layer.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from jaxvae.contracts import Params
from jaxvae.networks.layers import smallest_image
from jaxvae.uses.compression.frequencies import EIGHTHS, QUARTERS, SIXTEENTHS
from jaxvae.uses.compression.integers import Affine

NETWORKS = ("mlp", "conv")


class Readout(NamedTuple):
    """Units of the numbers that belong to one latent or one pixel and channel."""

    multiply: np.ndarray  # a [numbers]
    add: np.ndarray  # b [numbers]


def _per_octave(low: float, unit: Any) -> tuple[float, Any]:
    """Units of log s + low, read as eighths of log2 of s / unit."""
    return EIGHTHS / math.log(2), EIGHTHS * (low - np.log(unit)) / math.log(2)


def gaussian(center: np.ndarray, unit: np.ndarray) -> Readout:
    """Units of the [m, log s] of latents: quarters of a place, and eighths of octaves of it.

    Places are ``unit`` [D] apart, and a latent at ``center`` [D] is at place 0.
    """
    per_place = QUARTERS / unit
    eighths, low = _per_octave(0.0, unit)
    multiply = np.concatenate([per_place, np.full(len(unit), eighths)])
    return Readout(multiply, np.concatenate([-center * per_place, low]))


def pixels(likelihood: str, levels: int, components: int) -> Readout:
    """Units of the numbers of a pixel: sixteenths of logits, quarters of values, eighths."""
    if likelihood in ("bernoulli", "categorical"):
        size = 1 if likelihood == "bernoulli" else levels
        return Readout(np.full(size, float(SIXTEENTHS)), np.zeros(size))
    value = QUARTERS * (levels - 1)
    if likelihood == "discretized_logistic":
        eighths, low = _per_octave(-2.0, 1 / (levels - 1))
        return Readout(np.array([value, eighths]), np.array([0.5 * value, low]))
    eighths, low = _per_octave(-1.0, 1 / (levels - 1))
    offsets = (np.arange(components) + 0.5) / components
    units = np.repeat([float(SIXTEENTHS), value, eighths], components)
    return Readout(units, np.concatenate([0 * offsets, value * offsets, 0 * offsets + low]))


def encoder_layers(
    params: Params, network: Any, shape: tuple[int, ...], scale: float
) -> list[Affine]:
    """The affine maps of an encoder, mlp or conv, of whole numbers x; it takes scale * x."""
    if network.name == "mlp":
        layers = dense_layers(params)
    else:
        layers = []
        for i, channels in enumerate(network.hidden):
            layers.append(_affine("conv", shape, params[f"conv_{i}"]))
            height, width = (math.ceil(side / 2) for side in shape[:2])
            shape = height, width, channels
        layers.append(_affine("dense", (-1,), params["output"]))
    return [layers[0]._replace(kernel=layers[0].kernel * scale), *layers[1:]]


def decoder_layers(params: Params, network: Any, output: tuple[int, ...]) -> list[Affine]:
    """The affine maps of a decoder, mlp or conv, whose output has a shape.

    A convolutional one gives an image that may be too large.
    """
    if network.name == "mlp":
        return dense_layers(params)
    widths = network.hidden[::-1]
    height, width, _ = smallest_image(output, widths)
    layers = [_affine("dense", (-1,), params["input"])]
    for i in range(len(widths)):
        shape = height * 2**i, width * 2**i, widths[i]
        layers.append(_affine("deconv", shape, params[f"deconv_{i}"]))
    return layers


def dense_layers(params: Params) -> list[Affine]:
    """The affine maps of an mlp."""
    names = [*(f"hidden_{i}" for i in range(len(params) - 1)), "output"]
    return [_affine("dense", (-1,), params[name]) for name in names]


def of_places(layers: list[Affine], center: np.ndarray, unit: np.ndarray) -> list[Affine]:
    """The affine maps of (z - center) / unit in the place of z [D]."""
    first = layers[0]
    kernel, bias = unit[:, None] * first.kernel, first.bias + center @ first.kernel
    return [first._replace(kernel=kernel, bias=bias), *layers[1:]]


def read(layers: list[Affine], readout: Readout) -> list[Affine]:
    """The affine maps whose outputs are in the units of a readout."""
    last = layers[-1]
    times = last.kernel.shape[-1] // len(readout.multiply)
    multiply, add = np.tile(readout.multiply, times), np.tile(readout.add, times)
    kernel, bias = last.kernel * multiply, last.bias * multiply + add
    return [*layers[:-1], last._replace(kernel=kernel, bias=bias)]


def _affine(kind: str, shape: tuple[int, ...], params: Params) -> Affine:
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    return Affine(kind, tuple(shape), kernel, bias)
