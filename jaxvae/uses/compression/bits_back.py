"""Bits-back coding: images without loss at the cost of the negative ELBO.

Townsend et al. 2019, arXiv:1901.04866. For one image, encoding pops z with the frequencies of
q(z|x), pushes x with the frequencies of p(x|z), and pushes z with the frequencies of p(z). Decoding
does the reverse. The net cost is -log2 p(x, z) + log2 q(z|x), in the mean -ELBO / ln 2. The latents
lie on a grid, and the networks are made of integers (``integers``).

If z is a Markov chain z_1, ..., z_L, then Bit-Swap (F. H. Kingma et al. 2019, arXiv:1905.06845)
pushes z_l with p(z_l|z_{l+1}) as soon as z_{l+1} is popped. The net cost is the same, and the first
image does not need the bits of all vectors at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.contracts import Array
from jaxvae.datasets import DataError
from jaxvae.uses.compression import frequencies, integers
from jaxvae.uses.compression.containers import checksum_of
from jaxvae.uses.compression.frequencies import EIGHTHS, QUARTERS, SMALLEST
from jaxvae.uses.compression.stacks import Stack

REACH = 8  # latents lie in [-8, 8]
WIDTH = 6.5  # standard deviations of a posterior on each side of its mean that z is drawn from
AT_ONCE = 256  # images that are encoded together
PIXELS: dict[str, Callable[..., np.ndarray]] = {
    "bernoulli": frequencies.bernoulli,
    "categorical": frequencies.categorical,
    "discretized_logistic": frequencies.discretized_logistic,
    "discretized_logistic_mixture": frequencies.discretized_logistic_mixture,
}
NEEDED = {  # tables that a likelihood needs beside the Gaussian one
    "bernoulli": ("exponential",),
    "categorical": ("exponential",),
    "discretized_logistic": ("logistic",),
    "discretized_logistic_mixture": ("exponential", "logistic"),
}


def checked(images: np.ndarray, shape: tuple[int, ...], levels: int) -> np.ndarray:
    """Images as [N, *shape]; a last axis of one channel may be left out.

    Raises DataError unless they are integers from 0 to levels - 1.
    """
    shapes = [shape, shape[:-1]] if shape[-1:] == (1,) else [shape]
    if images.dtype.kind not in "iub":
        raise DataError(
            f"images hold {images.dtype}; without loss only integers are coded: give them as "
            f"integers from 0 to {levels - 1}"
        )
    if not images.ndim or images.shape[1:] not in shapes:
        wanted = ", ".join(map(str, ("N", *shape)))
        raise DataError(f"images have shape {images.shape}; the model takes [{wanted}]")
    if not len(images):
        raise DataError("there is no image to compress: the array is empty")
    low, high = int(images.min()), int(images.max())
    if low < 0 or high >= levels:
        more = ": draw them as 0 or 1 first, with the probability of their value"
        raise DataError(
            f"images hold values from {low} to {high}; the model codes integers from 0 to "
            f"{levels - 1}" + (more if levels == 2 else "")
        )
    return images.reshape(len(images), *shape)


class Group(NamedTuple):
    """Latents whose posteriors are of about one width: symbol s is the place ``first`` + s."""

    rows: np.ndarray  # [n] which latents
    first: np.ndarray  # [n]
    frequencies: np.ndarray  # [n, S]


class BitsBack:
    """The scheme of a codec of a VAE with Gaussian latents."""

    def __init__(self, layout: dict[str, Any], arrays: dict[str, np.ndarray]):
        """The scheme of what ``gaussian.gaussian_codec`` has made."""
        self.tables, self.latents, self.swap = arrays, layout["latents"], layout["swap"]
        self.shape, self.levels = tuple(layout["shape"]), layout["levels"]
        self.numbers, self.reach = layout["numbers"], REACH * layout["grid"]
        self.pixels = PIXELS[layout["likelihood"]]
        numbers = range(len(self.latents))
        self._encoder = jax.jit(jax.vmap(network(layout, arrays, "up_0")))
        self._up = [jax.jit(network(layout, arrays, f"up_{i}")) for i in numbers]
        self._down = [jax.jit(network(layout, arrays, f"down_{i}")) for i in numbers]
        self.edges = frequencies.edges(-self.reach, self.reach)
        unit = np.array([round(EIGHTHS * math.log2(layout["grid"]))])
        self.prior = self._gaussian(np.zeros(1, np.int64), unit)[0]

    @property
    def seeds(self) -> int:
        """Words that the first image may pop: a latent takes 24 bits at most."""
        return (self.latents[0] if self.swap else sum(self.latents)) + 4

    def checked(self, images: np.ndarray) -> np.ndarray:
        """Images as [N, *shape]. Raises DataError if they are not what the model codes."""
        return checked(images, self.shape, self.levels)

    def push(self, stack: Stack, images: np.ndarray) -> tuple[int, list[int]]:
        """Pushes images, the last first.

        Returns a checksum of them, and the bits that each step of the first image pushed added.
        """
        last_first = self.checked(images)[::-1]
        steps: list[int] = []
        for image, raw in zip(last_first, self._encoded(last_first), strict=True):
            before = [stack.bits]
            for _ in self._push_image(stack, image.reshape(-1), raw):
                before.append(stack.bits)
            steps = steps or np.diff(before).tolist()
        return checksum_of(images), steps

    def _push_image(self, stack: Stack, x: np.ndarray, raw: np.ndarray) -> Iterator[None]:
        """Pops latents and pushes an image and the latents, a step at a time."""
        waiting = [x]  # x and vectors of latents that are not pushed yet
        for level, latent in enumerate(self.latents):
            z = self._pop_latents(stack, raw, latent)
            yield
            waiting.append(z)
            if level + 1 < len(self.latents):
                raw = self._apply(self._up[level + 1], z)
            if self.swap:
                self._push_given(stack, waiting.pop(0), z, level)
                yield
        for level in range(len(waiting) - 1):
            self._push_given(stack, waiting[level], waiting[level + 1], level)
            yield
        stack.push(z + self.reach, self.prior)
        yield

    def _push_given(self, stack: Stack, symbols: np.ndarray, z: np.ndarray, level: int) -> None:
        """Pushes x or a vector of latents, given the vector z above it."""
        stack.push(symbols + (self.reach if level else 0), self._given(z, level))

    def pop(self, stack: Stack, shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, int]:
        """Pops images of a shape, and returns them and a checksum of them."""
        images = np.empty((shape[0], math.prod(self.shape)), dtype)
        for image in images:
            self._pop_image(stack, image)
        whole = images.reshape(shape)
        return whole, checksum_of(whole)

    def _pop_image(self, stack: Stack, image: np.ndarray) -> None:
        """Does the reverse of ``_push_image``."""
        z = stack.pop(self.prior, self.latents[-1]) - self.reach
        waiting = []  # vectors of latents whose bits are not given back yet, and their levels
        for level in reversed(range(len(self.latents))):
            below = stack.pop(self._given(z, level)) - (self.reach if level else 0)
            waiting.append((z, below, level))
            if self.swap:
                self._push_latents(stack, *waiting.pop())
            z = below
        image[:] = z
        for each in waiting:
            self._push_latents(stack, *each)

    def _given(self, z: np.ndarray, level: int) -> np.ndarray:
        """Frequencies of the values of x, or of the vector below z."""
        raw = self._apply(self._down[level], z)
        if not level:
            return self._pixels(raw)
        mean, scale = self._clipped(raw)
        return self._gaussian(mean, scale)

    def _apply(self, network: Callable[[Array], Array], symbols: np.ndarray) -> np.ndarray:
        return np.asarray(network(jnp.asarray(symbols, jnp.float32))).astype(np.int64)

    def _encoded(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """What the encoder of integers gives for each image."""
        for start in range(0, len(images), AT_ONCE):
            part = images[start : start + AT_ONCE]
            padding = np.zeros((AT_ONCE - len(part), *self.shape), part.dtype)
            whole = np.concatenate([part, padding])  # one shape, so one program
            yield from self._apply(self._encoder, whole)[: len(part)]

    def _pixels(self, raw: np.ndarray) -> np.ndarray:
        """Frequencies of the values of all pixels [P, L], from what the decoder gives."""
        if raw.ndim == 3:  # a convolutional decoder may give more rows and columns
            raw = raw[: self.shape[0], : self.shape[1]]
        return self.pixels(self.tables, raw.reshape(-1, self.numbers), self.levels)

    def _gaussian(self, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Frequencies of all places, of each latent."""
        return frequencies.between(
            frequencies.cumulative(self.tables, "gaussian", mean, scale, self.edges)
        )

    def _clipped(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and scales of latents from what a network gives: [m, log s] of each."""
        mean, scale = np.split(raw, 2)
        widest = math.floor(EIGHTHS * math.log2(self.reach / WIDTH))
        most = QUARTERS * self.reach
        return np.clip(mean, -most, most), np.clip(scale, SMALLEST, widest)

    def posteriors(self, raw: np.ndarray) -> list[Group]:
        """Frequencies of all latents from what the encoder gives: [m, log s] of each."""
        mean, scale = self._clipped(raw)
        octaves = 2 * -(-scale // (2 * EIGHTHS))  # rounded up to even ones
        groups = []
        for octave in np.unique(octaves):
            rows = np.flatnonzero(octaves == octave)
            half = min(max(math.ceil(WIDTH * 2.0**octave), 4), self.reach)
            middle = (mean[rows] + QUARTERS // 2) // QUARTERS
            first = np.clip(middle, half - self.reach, self.reach - half) - half
            every = frequencies.edges(0, 2 * half)
            inner = frequencies.cumulative(
                self.tables, "gaussian", mean[rows] - QUARTERS * first, scale[rows], every
            )
            groups.append(Group(rows, first, frequencies.between(inner)))
        return groups

    def _pop_latents(self, stack: Stack, raw: np.ndarray, latent: int) -> np.ndarray:
        z = np.empty(latent, np.int64)
        for group in self.posteriors(raw):
            z[group.rows] = group.first + stack.pop(group.frequencies)
        return z

    def _push_latents(self, stack: Stack, z: np.ndarray, below: np.ndarray, level: int) -> None:
        """Gives back the bits that z was drawn with, given x or the vector below it."""
        x = below.reshape(self.shape) if level == 0 else below
        for group in reversed(self.posteriors(self._apply(self._up[level], x))):
            stack.push(z[group.rows] - group.first, group.frequencies)


def network(
    layout: dict[str, Any], arrays: dict[str, np.ndarray], name: str
) -> Callable[[Array], Array]:
    """A network of integers of a codec, a function of one example."""
    layers = []
    for i, layer in enumerate(layout[name]):
        parts = (arrays.get(f"{name}_{i}_{part}") for part in ("kernel", "bias", "table"))
        kernel, bias, table = (None if a is None else a.astype(np.float32) for a in parts)
        shape = tuple(layer["shape"])
        layers.append(
            integers.IntegerLayer(layer["kind"], shape, kernel, bias, layer["shift"], table)
        )
    return functools.partial(integers.apply, layers)
