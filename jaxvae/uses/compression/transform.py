"""Lossy compression: rounded codes of a transform, by a density of them (Ballé et al. 2017, 2018).

The codes are coded without loss, by tables of frequencies. With a hyperprior the scales of the
codes come from a network of integers, so every machine has the same ones. The transforms stay
networks of real numbers, so the last bit of a decoded pixel may differ from machine to machine.
"""

from __future__ import annotations

import types
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.contracts import Params
from jaxvae.distributions import NoisyCumulative
from jaxvae.families import compressive
from jaxvae.families.contract import Data
from jaxvae.settings import from_json, to_json
from jaxvae.uses.compression import frequencies, integers, readouts
from jaxvae.uses.compression.bits_back import AT_ONCE, checked, network
from jaxvae.uses.compression.codecs import SCHEMES, Codec
from jaxvae.uses.compression.frequencies import EIGHTHS, QUARTERS, TOTAL
from jaxvae.uses.compression.gaussian import TYPICAL, arrays_of, fingerprint, layout_of, levels_of
from jaxvae.uses.compression.stacks import Stack

ROOM = 1.5  # how much larger than seen a code may become, before it is clipped


class Transform:
    """The scheme of a codec of the family ``compressive``."""

    seeds = 2  # the least that a stack needs

    def __init__(self, layout: dict[str, Any], arrays: dict[str, np.ndarray]):
        """The scheme of what ``transform_codec`` has made."""
        self.shape, self.levels = tuple(layout["shape"]), layout["levels"]
        config: Any = from_json(compressive.Config(), layout["config"])
        parts = compressive.Parts(config, self.shape)
        self.hyper, self.size, self.sides = parts.hyper, parts.size, parts.codes
        self.tables = arrays
        shapes = jax.eval_shape(lambda: _init(parts, self.shape))
        leaves = [arrays[f"params_{i}"] for i in range(len(jax.tree.leaves(shapes)))]
        params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        scale = 1 / (self.levels - 1)
        encode = lambda x: parts.whole_encoder().apply(params["encoder"], scale * x)
        decode = lambda y: parts.decoder.apply(params["decoder"], y).reshape(self.shape) / scale
        self._encoder, self._decoder = jax.jit(jax.vmap(encode)), jax.jit(jax.vmap(decode))
        self.reach, self.hyper_reach = layout["reach"], layout["hyper_reach"]
        if self.hyper:
            self._scales = jax.jit(network(layout, arrays, "scales"))
        rows = self.hyper or self.size
        self.first = np.tile(arrays["density"], (rows // len(arrays["density"]), 1))

    def checked(self, images: np.ndarray) -> np.ndarray:
        """Images as [N, *shape]. Raises DataError if they are not what the model codes."""
        return checked(images, self.shape, self.levels)

    def codes(self, images: np.ndarray) -> np.ndarray:
        """The rounded hyper-codes and codes of images, [N, D], clipped to where they may lie."""
        every, rows = self.checked(images), []
        for start in range(0, len(every), AT_ONCE):
            part = every[start : start + AT_ONCE]
            padding = np.zeros((AT_ONCE - len(part), *self.shape), part.dtype)
            x = np.concatenate([part, padding]).astype(np.float32)
            rows.append(np.asarray(self._encoder(x))[: len(part)])
        codes = np.round(np.concatenate(rows)).astype(np.int32)
        reach = np.repeat([self.hyper_reach, self.reach], [self.hyper, self.size])
        return np.clip(codes, -reach, reach)

    def images(self, codes: np.ndarray, dtype: str = "u1") -> np.ndarray:
        """The decoded images of codes [N, D], as integers."""
        rows = []
        for start in range(0, len(codes), AT_ONCE):
            part = codes[start : start + AT_ONCE, self.hyper :]
            padding = np.zeros((AT_ONCE - len(part), self.size), part.dtype)
            y = np.concatenate([part, padding]).astype(np.float32)
            rows.append(np.asarray(self._decoder(y))[: len(part)])
        return np.clip(np.round(np.concatenate(rows)), 0, self.levels - 1).astype(dtype)

    def push(self, stack: Stack, images: np.ndarray) -> tuple[int, list[int]]:
        """Pushes the codes of images, the last first. Returns a checksum of the codes.

        It also returns bits of the first image pushed: none popped, for the codes, and for the
        hyper-codes.
        """
        codes = self.codes(images)
        steps: list[int] = []
        for row in codes[::-1]:
            before = stack.bits
            if self.hyper:
                w, y = np.split(row, [self.hyper])
                stack.push(y + self.reach, self.conditional(w))
                between = stack.bits
                stack.push(w + self.hyper_reach, self.first)
            else:
                stack.push(row + self.reach, self.first)
                between = stack.bits
            steps = steps or [between - before, stack.bits - between]
        return _checksum(codes), steps

    def pop(self, stack: Stack, shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, int]:
        """Pops codes, and returns images of a shape and the checksum of the codes."""
        codes = np.empty((shape[0], self.hyper + self.size), np.int32)
        for row in codes:
            if self.hyper:
                row[: self.hyper] = stack.pop(self.first) - self.hyper_reach
                row[self.hyper :] = stack.pop(self.conditional(row[: self.hyper])) - self.reach
            else:
                row[:] = stack.pop(self.first) - self.reach
        return self.images(codes, dtype).reshape(shape), _checksum(codes)

    def conditional(self, w: np.ndarray) -> np.ndarray:
        """Frequencies of all codes given the hyper-codes."""
        raw = np.asarray(self._scales(w.astype(np.float32))).astype(np.int64)
        if raw.ndim == 3:
            raw = raw[: self.sides[0], : self.sides[1]]
        scale = np.maximum(raw.reshape(-1), frequencies.SMALLEST)
        middle = np.full(scale.shape, QUARTERS * self.reach)
        every = frequencies.edges(0, 2 * self.reach)
        inner = frequencies.cumulative(self.tables, "gaussian", middle, scale, every)
        return frequencies.between(inner)


SCHEMES["transform"] = Transform


def _checksum(codes: np.ndarray) -> int:
    return zlib.crc32(codes.astype("<i4").tobytes())


def _init(parts: compressive.Parts, shape: tuple[int, ...]) -> Params:
    key = jax.random.key(0)
    return {
        "encoder": parts.whole_encoder().init(key, jnp.zeros(shape)),
        "decoder": parts.decoder.init(key, jnp.zeros(parts.size)),
    }


def transform_codec(config: Any, data: Data, params: Params, images: np.ndarray) -> Codec:
    """The codec of a model of the family ``compressive``.

    Args:
      config: the configuration of the model.
      data: what is known of its data.
      params: its parameters.
      images: typical images [N, *shape], integers; they say how large codes become.
    """
    shape, levels = tuple(data.shape), levels_of(config, data)
    parts = compressive.Parts(config, shape)
    x = checked(np.asarray(images)[:TYPICAL], shape, levels)
    encode = lambda x: parts.whole_encoder().apply(params["encoder"], x / (levels - 1))
    codes = np.asarray(jax.lax.map(encode, jnp.asarray(x, jnp.float32), batch_size=256))
    w, y = np.split(codes, [parts.hyper], -1)
    reach_of = lambda a: int(ROOM * np.abs(a).max(initial=0.0)) + 8
    layout: dict[str, Any] = {
        "kind": "transform",
        "config": to_json(config),
        "shape": shape,
        "levels": levels,
        "model": fingerprint(params),
        "reach": reach_of(y),
        "hyper_reach": reach_of(w) if parts.hyper else 0,
    }
    first = layout["hyper_reach"] or layout["reach"]
    arrays = {"density": density_table(params["prior"]["layers"], first)}
    transforms = {name: params[name] for name in ("encoder", "decoder")}
    leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(transforms)]
    arrays |= {f"params_{i}": leaf for i, leaf in enumerate(leaves)}
    if parts.hyper:
        readout = readouts.Readout(np.array([EIGHTHS / np.log(2)]), np.zeros(1))
        pair = types.SimpleNamespace(name=parts.pair, hidden=config.hyper_hidden)
        layers = readouts.decoder_layers(params["prior"]["hyper"], pair, parts.codes)
        layers = readouts.read(layers, readout)
        scales = integers.rounded(layers, jax.nn.relu, np.round(w), 0, layout["hyper_reach"])
        layout["scales"] = layout_of(scales)
        arrays |= arrays_of("scales", scales) | frequencies.tables("gaussian")
    return Codec(layout, arrays)


def density_table(layers: Any, reach: int) -> np.ndarray:
    """Frequencies of the codes -reach, ..., reach of each channel, [C, 2 reach + 1]."""
    channels = layers[0]["H"].shape[0]
    density = NoisyCumulative(layers, channels)
    edges = np.arange(-reach, reach) + 0.5
    rows = jnp.broadcast_to(jnp.asarray(edges, jnp.float32)[:, None], (len(edges), channels))
    logits = np.asarray(jax.jit(density.logits)(rows), np.float64).T
    inner = np.round(TOTAL / (1 + np.exp(-np.clip(logits, -40, 40)))).astype(np.int64)
    return frequencies.between(np.maximum.accumulate(inner, -1)).astype(np.int32)
