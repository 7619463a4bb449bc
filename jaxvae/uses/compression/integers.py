"""Networks of integers, which give the same numbers bit for bit wherever they are computed.

Sums of floats depend on their order, and their order depends on the batch size, the program and the
machine. Here weights and activations are whole numbers, held in float32, and every partial sum is
below 2^24. All sums are then exact, in any order. An activation is a table of whole numbers, and
scales are powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxvae.contracts import Array

EXACT = 2**24  # whole numbers up to it are exact in float32
MARGIN = 1.5  # how much larger than seen activations may become, before they are clipped
TABLE_BITS = 14  # an activation's table has 2^TABLE_BITS entries on each side of zero


class Affine(NamedTuple):
    """An affine map of real numbers, one layer of a network."""

    kind: str  # dense, conv or deconv: a convolution of stride 2, or a transposed one
    shape: tuple[int, ...]  # of its input
    kernel: np.ndarray
    bias: np.ndarray


class IntegerLayer(NamedTuple):
    """An affine map of whole numbers, a shift of the binary point, and a table."""

    kind: str
    shape: tuple[int, ...]
    kernel: Any  # whole numbers, float32
    bias: Any
    shift: int  # sums are multiplied with 2^shift and rounded
    table: Any = None  # of the activation, from -2^TABLE_BITS on; None in the last layer


def apply(layers: Sequence[IntegerLayer], x: Array) -> Array:
    """The output of the network of integers for one example of whole numbers, exactly.

    >>> layer = IntegerLayer("dense", (2,), jnp.array([[3.0], [-1.0]]), jnp.array([1.0]), -1)
    >>> int(apply([layer], jnp.array([2.0, 1.0]))[0])
    3
    """
    x = jnp.asarray(x, jnp.float32)
    for layer in layers:
        total = affine(layer, x)
        x = jnp.round(total * np.float32(2.0**layer.shift))
        if layer.table is not None:
            place = jnp.clip(x, -(2**TABLE_BITS), 2**TABLE_BITS).astype(jnp.int32)
            x = jnp.asarray(layer.table)[place + 2**TABLE_BITS]
    return x


def affine(layer: Affine | IntegerLayer, x: Array) -> Array:
    """The affine map of a layer for one example."""
    maps = {"dense": _dense, "conv": _conv, "deconv": _deconv}
    return maps[layer.kind](x.reshape(layer.shape), jnp.asarray(layer.kernel)) + layer.bias


def _dense(x: Array, kernel: Array) -> Array:
    return jnp.matmul(x.reshape(-1), kernel, precision="highest")


def _conv(x: Array, kernel: Array) -> Array:
    """A convolution of stride 2, padded to half of the size, rounded up."""
    pads = []
    for size, width in zip(x.shape[:2], kernel.shape[:2], strict=True):
        total = max((math.ceil(size / 2) - 1) * 2 + width - size, 0)
        pads.append((total // 2, total - total // 2, 0))
    return _slid(lax.pad(x, np.float32(0), (*pads, (0, 0, 0))), kernel, 2)


def _deconv(x: Array, kernel: Array) -> Array:
    """A transposed convolution of stride 2, to twice the size."""
    pads = []
    for width in kernel.shape[:2]:
        before = width - 1 if width < 3 else math.ceil(width / 2)
        pads.append((before, width - before, 1))
    return _slid(lax.pad(x, np.float32(0), (*pads, (0, 0, 0))), kernel, 1)


def _slid(x: Array, kernel: Array, stride: int) -> Array:
    """A convolution as one product of matrices, which no library replaces by transforms."""
    height, width, _, features = kernel.shape
    rows, columns = (x.shape[0] - height) // stride + 1, (x.shape[1] - width) // stride + 1
    down, right = stride * (rows - 1) + 1, stride * (columns - 1) + 1
    parts = [
        x[i : i + down : stride, j : j + right : stride]
        for i in range(height)
        for j in range(width)
    ]
    patches = jnp.concatenate(parts, -1)  # [rows, columns, height width C]
    return jnp.matmul(patches, kernel.reshape(-1, features), precision="highest")


# From real numbers to integers


def outputs(
    layers: Sequence[Affine], activation: Callable[[Array], Array], inputs: np.ndarray
) -> np.ndarray:
    """The outputs [N, ...] of a network of real numbers."""
    layers = [layer._replace(kernel=layer.kernel.astype(np.float32)) for layer in layers]

    def one(x: Array) -> Array:
        for layer in layers[:-1]:
            x = activation(affine(layer, x))
        return affine(layers[-1], x)

    x = jnp.asarray(inputs, jnp.float32)
    return np.asarray(jax.jit(lambda x: lax.map(one, x, batch_size=256))(x), np.float64)


def rounded(
    layers: Sequence[Affine],
    activation: Callable[[Array], Array],
    inputs: np.ndarray,
    bits: int,
    largest: int,
) -> list[IntegerLayer]:
    """The network of integers that is nearest to a network of real numbers.

    Its outputs are the real ones, rounded to whole numbers.

    Args:
      layers: the affine maps; all but the last have an activation after them.
      activation: the function of all hidden layers.
      inputs: typical inputs [N, ...], whole numbers; they say how large activations become.
      bits: an input of 2^bits stands for one.
      largest: the largest absolute value of an input.
    """
    made: list[IntegerLayer] = []
    seen = _seen(layers, activation, np.asarray(inputs), 2.0**-bits)
    for number, layer in enumerate(layers):
        scale = _scale(layer, largest / 2**bits)
        while True:
            kernel, bias = _whole(layer, scale, bits)
            if _largest_sum(kernel, bias, largest) < EXACT:
                break
            scale -= 1
        if number == len(layers) - 1:
            return [*made, IntegerLayer(layer.kind, layer.shape, kernel, bias, -scale)]
        before, most, rms = seen[number]
        fine = TABLE_BITS - math.ceil(math.log2(max(MARGIN * before, 1.0)))
        bits = _bits(layers[number + 1], rms, MARGIN * most)
        table, largest = _table(activation, fine, bits, MARGIN * most)
        made.append(IntegerLayer(layer.kind, layer.shape, kernel, bias, fine - scale, table))
    return made


def _seen(
    layers: Sequence[Affine], activation: Callable[[Array], Array], inputs: np.ndarray, unit: float
) -> np.ndarray:
    """Of each hidden layer: the largest sum, the largest activation, their root mean square."""
    hidden = [layer._replace(kernel=layer.kernel.astype(np.float32)) for layer in layers[:-1]]

    def one(x: Array) -> Array:
        x, numbers = unit * x.astype(jnp.float32), []
        for layer in hidden:
            total = affine(layer, x)
            x = activation(total)
            numbers.append(jnp.stack([jnp.abs(total).max(), jnp.abs(x).max(), jnp.mean(x**2)]))
        return jnp.stack(numbers) if numbers else jnp.zeros((0, 3))

    found = jax.jit(lambda inputs: lax.map(one, inputs, batch_size=256))(inputs)
    most = np.asarray(found, np.float64).max(0)
    return np.concatenate([most[:, :2], np.sqrt(np.asarray(found)[..., 2:].mean(0))], -1)


def _whole(layer: Affine, scale: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and biases as whole numbers, for inputs of 2^bits and sums of 2^scale."""
    kernel = np.round(np.asarray(layer.kernel, np.float64) * 2.0 ** (scale - bits))
    bias = np.round(np.asarray(layer.bias, np.float64) * 2.0**scale)
    return kernel.astype(np.float32), bias.astype(np.float32)


def _largest_sum(kernel: np.ndarray, bias: np.ndarray, largest: float) -> float:
    """The largest absolute value of any partial sum, whatever the inputs are."""
    every = np.abs(np.asarray(kernel, np.float64)).sum(tuple(range(kernel.ndim - 1)))
    return float((every * largest + np.abs(bias)).max())


def _scale(layer: Affine, largest: float) -> int:
    """The largest power of two that sums can be scaled with, for inputs up to ``largest``."""
    sums = _largest_sum(layer.kernel, layer.bias, largest)
    return math.floor(math.log2(EXACT / max(sums, 1e-30)))


def _bits(following: Affine, rms: float, most: float) -> int:
    """Bits after the binary point of activations, so they and the weights are rounded alike."""
    of_weights = float(np.sqrt(np.mean(np.square(following.kernel))))
    return round((_scale(following, most) - math.log2((rms + 1e-30) / (of_weights + 1e-30))) / 2)


def _table(
    activation: Callable[[Array], Array], fine: int, bits: int, most: float
) -> tuple[np.ndarray, int]:
    """An activation's values at whole numbers of 2^-fine, in units of 2^-bits, and their bound."""
    places = np.arange(-(2**TABLE_BITS), 2**TABLE_BITS + 1, dtype=np.float32) / 2**fine
    values = np.asarray(activation(jnp.asarray(places)), np.float64)
    largest = max(math.ceil(most * 2.0**bits), 1)
    return np.clip(np.round(values * 2.0**bits), -largest, largest).astype(np.float32), largest
