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


def _per_octave(low: float, unit: float) -> tuple[float, float]:
    """Units of log s + low, read as eighths of log2 of s / unit."""
    return EIGHTHS / math.log(2), EIGHTHS * (low - math.log(unit)) / math.log(2)


def posterior(latent: int, grid: int) -> Readout:
    """Units of the encoder's [m, log s]: quarters of 1 / grid, and eighths of octaves of it."""
    eighths, low = _per_octave(0.0, 1 / grid)
    ones, zeros = np.ones(latent), np.zeros(latent)
    multiply = np.concatenate([QUARTERS * grid * ones, eighths * ones])
    return Readout(multiply, np.concatenate([zeros, zeros + low]))


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
    params: Params, network: Any, shape: tuple[int, ...], scale: float, readout: Readout
) -> list[Affine]:
    """The affine maps of an encoder.

    Args:
      params: its parameters.
      network: the chosen pair of networks, mlp or conv.
      shape: the shape of x.
      scale: a whole number x is the input scale * x of the network.
      readout: units of its outputs.
    """
    count, layers = len(network.hidden), []
    for i in range(count):
        if network.name == "mlp":
            layers.append(_affine("dense", (-1,), params[f"hidden_{i}"]))
        else:
            layers.append(_affine("conv", shape, params[f"conv_{i}"]))
            height, width = (math.ceil(side / 2) for side in shape[:2])
            shape = height, width, network.hidden[i]
    layers.append(_affine("dense", (-1,), params["output"]))
    layers[0] = layers[0]._replace(kernel=layers[0].kernel * scale)
    return [*layers[:-1], _read(layers[-1], readout)]


def decoder_layers(
    params: Params, network: Any, output: tuple[int, ...], readout: Readout
) -> list[Affine]:
    """The affine maps of a decoder; a convolutional one gives an image that may be too large.

    Args:
      params: its parameters.
      network: the chosen pair of networks, mlp or conv.
      output: the shape of its output.
      readout: units of the numbers of each pixel and channel.
    """
    count = len(network.hidden)
    names = [*(f"hidden_{i}" for i in range(count)), "output"]
    if network.name == "mlp":
        layers = [_affine("dense", (-1,), params[name]) for name in names]
    else:
        widths = network.hidden[::-1]
        height, width, _ = smallest_image(output, widths)
        layers = [_affine("dense", (-1,), params["input"])]
        for i in range(count):
            shape = height * 2**i, width * 2**i, widths[i]
            layers.append(_affine("deconv", shape, params[f"deconv_{i}"]))
    return [*layers[:-1], _read(layers[-1], readout)]


def _affine(kind: str, shape: tuple[int, ...], params: Params) -> Affine:
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    return Affine(kind, tuple(shape), kernel, bias)


def _read(layer: Affine, readout: Readout) -> Affine:
    times = layer.kernel.shape[-1] // len(readout.multiply)
    multiply, add = np.tile(readout.multiply, times), np.tile(readout.add, times)
    return layer._replace(kernel=layer.kernel * multiply, bias=layer.bias * multiply + add)
