"""Hierarchies: the author's numbers, closed forms, flat VAEs, loops, memory, balancing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import (
    divergences,
    likelihoods,
    networks,
)
from jaxvae.distributions import Normal

KEY = jax.random.key(0)
EXACT_GELU = networks.ACTIVATIONS["exact_gelu"]


# The author's network in float64, with weights and noise in closed form (R in the reference)

GOLDEN_KL = (0.026389, 0.485278, 0.518626, 2.991406, 3.280321)
GOLDEN_RATIO = (0.223282, 1.341568, 0.495309, -3.976026, -9.64112)
GOLDEN_NLL, GOLDEN_BOUND = 1212.85136, 6.35496551
GOLDEN_LAYOUT = networks.LAYOUTS["strings"](
    (8, 8), encoder_blocks="8x1,8d2,4x1,4d4,1x1", decoder_blocks="1x1,4m1,4x1,8m4,8x1"
)
BOTTLENECK = {"enc": "posterior", "prior": "prior", "resnet": "residual"}
COMPONENTS = 2


def golden_shapes() -> dict[str, tuple[int, ...]]:
    """The author's names and shapes of all arrays, in the layout of PyTorch."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inputs: int, outputs: int, taps: int = 1) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, taps, taps)
        shapes[f"{name}.bias"] = (outputs,)

    def bottleneck(name: str, size: int, inputs: int, outputs: int) -> None:
        taps = 3 if size > 2 else 1
        for i, (a, b, t) in enumerate(
            [(inputs, 2, 1), (2, 2, taps), (2, 2, taps), (2, outputs, 1)]
        ):
            conv(f"{name}.c{i + 1}", a, b, t)

    conv("encoder.in_conv", 3, 8, 3)
    for b, size in enumerate((8, 8, 4, 4, 1)):
        bottleneck(f"encoder.enc_blocks.{b}", size, 8, 8)
    for b, size in enumerate((1, 4, 4, 8, 8)):
        name = f"decoder.dec_blocks.{b}"
        bottleneck(f"{name}.enc", size, 16, 4)
        bottleneck(f"{name}.prior", size, 8, 12)
        bottleneck(f"{name}.resnet", size, 8, 8)
        conv(f"{name}.z_proj", 2, 8)
    for i, size in enumerate((1, 4, 8)):
        shapes[f"decoder.bias_xs.{i}"] = (1, 8, size, size)
    shapes["decoder.gain"] = shapes["decoder.bias"] = (1, 8, 1, 1)
    conv("decoder.out_net.out_conv", 8, 10 * COMPONENTS)
    return shapes


def golden_arrays() -> dict[str, np.ndarray]:
    arrays = {}
    for t, (name, shape) in enumerate(sorted(golden_shapes().items())):
        j = np.arange(np.prod(shape)).reshape(shape)
        if name.endswith("weight"):
            arrays[name] = 0.5 * np.sin(0.5 * t + 0.3 * j) / np.sqrt(np.prod(shape[1:]))
        else:
            arrays[name] = 0.1 * np.cos(t + j)
    return arrays


def golden_params() -> Any:
    """The same arrays as the parameters of ``networks.very_deep``."""
    arrays = golden_arrays()

    def conv(name: str) -> dict[str, np.ndarray]:
        kernel = arrays[f"{name}.weight"].transpose(2, 3, 1, 0)
        return {"kernel": kernel, "bias": arrays[f"{name}.bias"]}

    def bottleneck(name: str) -> dict[str, Any]:
        return {f"c{i}": conv(f"{name}.c{i}") for i in range(1, 5)}

    def block(b: int) -> dict[str, Any]:
        name = f"decoder.dec_blocks.{b}"
        parts = {ours: bottleneck(f"{name}.{theirs}") for theirs, ours in BOTTLENECK.items()}
        return parts | {"latent": conv(f"{name}.z_proj")}

    stack = lambda *trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    encoder = lambda b: bottleneck(f"encoder.enc_blocks.{b}")
    bias = lambda i: arrays[f"decoder.bias_xs.{i}"][0].transpose(1, 2, 0)
    # Theirs are [logits, (means, log-scales, slopes) of each channel].
    order = np.arange(10 * COMPONENTS).reshape(10, COMPONENTS)
    order = order[[0, 1, 4, 7, 2, 5, 8, 3, 6, 9]].reshape(-1)
    output = {name: leaf[..., order] for name, leaf in conv("decoder.out_net.out_conv").items()}
    params = {
        "input": conv("encoder.in_conv"),
        "encoder": {
            "8x8": {"blocks": stack(encoder(0)), "pool": encoder(1)},
            "4x4": {"blocks": stack(encoder(2)), "pool": encoder(3)},
            "1x1": {"blocks": stack(encoder(4))},
        },
        "decoder": {
            "1x1": {"bias": bias(0), "blocks": stack(block(0))},
            "4x4": {"bias": bias(1), "blocks": stack(block(1), block(2))},
            "8x8": {"bias": bias(2), "blocks": stack(block(3), block(4))},
        },
        "gain": arrays["decoder.gain"].reshape(-1),
        "bias": arrays["decoder.bias"].reshape(-1),
        "output": output,
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def golden_noise() -> tuple[np.ndarray, ...]:
    """eps of layer l = sin(1 + l + j), j flat in [latent, r, r], by groups."""
    each = [
        np.sin(1 + l + np.arange(2 * r * r)).reshape(2, r, r).transpose(1, 2, 0)
        for l, r in enumerate((1, 4, 4, 8, 8))
    ]
    return tuple(np.float32(np.stack(group)) for group in (each[:1], each[1:3], each[3:]))


def test_the_network_is_the_authors() -> None:
    """KL of each layer, log-ratios, reconstruction and bound of VDVAE's PyTorch in float64."""
    likelihood = likelihoods.pixel_logistic_mixture(256, COMPONENTS)
    network = networks.very_deep(
        GOLDEN_LAYOUT, likelihood.outputs((8, 8, 3)), 2, (8,), activation=EXACT_GELU,
        center=120.63838 / 255, spread=64.16736 / 255,
    )  # fmt: skip
    params = golden_params()
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(network.init, KEY, jnp.zeros((8, 8, 3))))
    assert shapes == jax.tree.map(jnp.shape, params)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 3372
    x = np.float32((7 * np.arange(192) % 256).reshape(8, 8, 3) / 255)

    def given_noise(number: Any, p: Normal, q: Any, noise: jax.Array) -> tuple[jax.Array, Any]:
        z = q.from_noise(noise)
        return z, (divergences.kl(q, p), p.log_prob(z) - q.log_prob(z))

    @jax.jit
    def walk(params: Any, x: jax.Array) -> Any:
        activations = network.bottom_up(params, x)
        outputs, reports = network.top_down(params, activations, given_noise, golden_noise())
        return likelihood.of_outputs({}, outputs).log_prob(x), reports

    log_likelihood, reports = walk(params, x)
    kl, ratio = (np.concatenate(each) for each in zip(*reports, strict=True))
    np.testing.assert_allclose(kl, GOLDEN_KL, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ratio, GOLDEN_RATIO, rtol=2e-5, atol=1e-5)
    assert -log_likelihood == pytest.approx(GOLDEN_NLL, rel=1e-6)
    assert (kl.sum() - log_likelihood) / 192 == pytest.approx(GOLDEN_BOUND, rel=1e-6)
