"""Networks of integers: real networks rounded, and the same in every mode of execution."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import networks
from jaxvae.settings import Choice
from jaxvae.uses.compression import integers, readouts

SHAPE, LATENT = (6, 5, 2), 3
PAIRS = Choice(networks.PAIRS)
PIXELS = readouts.Readout(np.array([16.0]), np.array([0.0]))


def pair_of(name: str, **settings: Any) -> tuple[Any, Any, Any]:
    """A chosen pair, and parameters of its encoder and decoder, which are larger than at first."""
    chosen = PAIRS(name, hidden=(6, 4), **settings)
    encoder, decoder = chosen(size=2 * LATENT, output=SHAPE)
    key = jax.random.key(0)
    grown = lambda tree: jax.tree.map(lambda a: 1.5 * a + 0.1, tree)
    params = encoder.init(key, jnp.zeros(SHAPE)), decoder.init(key, jnp.zeros(LATENT))
    return chosen, (encoder, grown(params[0])), (decoder, grown(params[1]))


@functools.cache
def rounded_pair(name: str, activation: str) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """An encoder and a decoder of integers, and inputs of them."""
    chosen, (_, encoder), (_, decoder) = pair_of(name, activation=activation)
    rng = np.random.default_rng(0)
    x, z = rng.integers(0, 256, (20, *SHAPE)), rng.integers(-64, 65, (20, LATENT))
    unit = readouts.gaussian(np.zeros(LATENT), np.full(LATENT, 1 / 32))
    function = networks.ACTIVATIONS[activation]
    down = readouts.read(readouts.encoder_layers(encoder, chosen, SHAPE, 1 / 255), unit)
    up = readouts.read(readouts.decoder_layers(decoder, chosen, SHAPE), PIXELS)
    return (
        integers.rounded(down, function, x, 0, 255),
        integers.rounded(up, function, z, 5, 256),
        x.astype(np.float32),
        z.astype(np.float32),
    )


QUICK = ("tanh",)  # the others are marked slow
ROUNDED = [
    pytest.param("mlp", name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in networks.ACTIVATIONS
] + [pytest.param("conv", "relu", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name, activation", ROUNDED)
def test_integers_are_the_real_outputs_rounded(name: str, activation: str) -> None:
    """To one or two units of the last place: quarters of 1/32, eighths of octaves, sixteenths."""
    _, (encode, encoder), (decode, decoder) = pair_of(name, activation=activation)
    down, up, x, z = rounded_pair(name, activation)
    mapped = lambda function, rows: np.asarray(jax.jit(jax.vmap(function))(rows))
    raw = mapped(lambda x: encode.apply(encoder, x / 255), x)
    loc, log_scale = np.split(raw, 2, -1)
    real = np.concatenate([128 * loc, 8 * (np.log2(np.exp(log_scale)) + 5)], -1)
    found = mapped(lambda x: integers.apply(down, x), x)
    np.testing.assert_allclose(found, real, rtol=4e-3, atol=2)
    logits = mapped(lambda z: decode.apply(decoder, z / 32), z)
    found = mapped(lambda z: integers.apply(up, z), z)
    found = found[:, : SHAPE[0], : SHAPE[1]] if name == "conv" else found
    np.testing.assert_allclose(found.reshape(logits.shape), 16 * logits, rtol=4e-3, atol=2)


def in_numpy(layers: list[integers.IntegerLayer], x: np.ndarray) -> np.ndarray:
    """A fully connected network of integers, in float64."""
    for layer in layers:
        total = x.reshape(-1) @ np.float64(layer.kernel) + np.float64(layer.bias)
        x = np.round(total * 2.0**layer.shift)
        if layer.table is not None:
            x = np.float64(layer.table)[np.clip(x, -(2**14), 2**14).astype(int) + 2**14]
    return x


MODES: dict[str, Callable] = {
    "one by one": lambda f, x: np.stack([*map(jax.jit(f), x)]),
    "a batch of 5": lambda f, x: np.concatenate([*map(jax.jit(jax.vmap(f)), np.split(x, 4))]),
    "four devices": lambda f, x: jax.pmap(jax.vmap(f))(x.reshape(4, 5, *x.shape[1:])),
    "bfloat16 by default": lambda f, x: in_bfloat16(f, x),
}


def in_bfloat16(f: Callable, x: np.ndarray) -> Any:
    with jax.default_matmul_precision("bfloat16"):
        return jax.jit(jax.vmap(f))(x)


@pytest.mark.parametrize("name", ["mlp", pytest.param("conv", marks=pytest.mark.slow)])
def test_integers_are_the_same_in_every_mode_of_execution(name: str) -> None:
    down, up, images, latents = rounded_pair(name, "tanh" if name == "mlp" else "relu")
    for layers, x in ((down, images), (up, latents)):
        f = functools.partial(integers.apply, layers)
        first = np.asarray(jax.jit(jax.vmap(f))(x)).reshape(20, -1)
        for mode, run in MODES.items():
            np.testing.assert_array_equal(np.asarray(run(f, x)).reshape(20, -1), first, mode)
        if name == "mlp":
            np.testing.assert_array_equal(np.stack([f(row) for row in x[:5]]), first[:5])
            np.testing.assert_array_equal(np.stack([in_numpy(layers, row) for row in x]), first)


@pytest.mark.parametrize(
    "name, activation", [("mlp", "tanh"), pytest.param("conv", "relu", marks=pytest.mark.slow)]
)
def test_no_sum_of_integers_can_leave_what_float32_holds(name: str, activation: str) -> None:
    """Even of the worst inputs: all as large as they may be, with the signs of the weights."""
    for layers, largest in zip(rounded_pair(name, activation)[:2], (255, 256), strict=True):
        for layer in layers:
            kernel = np.abs(np.float64(layer.kernel)).reshape(-1, layer.kernel.shape[-1])
            assert (largest * kernel.sum(0) + np.abs(layer.bias)).max() < 2**24
            assert (kernel == np.round(kernel)).all()
            largest = 0 if layer.table is None else np.abs(layer.table).max()
