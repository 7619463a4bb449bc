"""Autoencoders of latent diffusion: networks, losses, perceptual distance, files of diffusers."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

import jaxvae
from jaxvae import (
    codebooks,
    families,
    interchange,
    likelihoods,
    networks,
    perceptual,
    quantizers,
    tensors,
)
from jaxvae.families import Data
from jaxvae.models import latent, negative_elbo
from jaxvae.runs.interchange import export, import_folder
from jaxvae.training import batch_mean

KEY = jax.random.key(0)

# The autoencoder that depth_scale.md has golden values of, which come from diffusers in float64.
GOLDEN = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 8,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}


def data(shape: tuple[int, ...]) -> Data:
    return Data("made", shape, "uint8", 256, "scale", 1)


def built(config: dict[str, Any] = GOLDEN, shape: tuple[int, ...] = (8, 8, 3)) -> Any:
    """What the family builds for a config.json."""
    preset = families.preset(interchange.PRESETS[config["_class_name"]])
    settings = interchange.to_settings(config) | {"perceptual": "none", "critic": "none"}
    return families.FAMILIES["latent"].build(families.changed(preset, **settings), data(shape))


def shapes(made: Any) -> Any:
    return jax.eval_shape(made.model.init, KEY, jnp.zeros(made.source.ends.shape))


def golden_arrays(like: Any) -> dict[str, np.ndarray]:
    """Arrays t in the order of their names: sines of t and of the flat index j."""
    zeros = interchange.to_arrays(jax.tree.map(lambda leaf: np.zeros(leaf.shape), like))
    arrays = {}
    for t, name in enumerate(sorted(zeros)):
        shape = zeros[name].shape
        j = np.arange(math.prod(shape)).reshape(shape)
        if len(shape) > 1:
            arrays[name] = 0.5 * np.sin(0.5 * t + 0.3 * j) / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("weight"):
            arrays[name] = 1 + 0.1 * np.sin(t + j)
        else:
            arrays[name] = 0.1 * np.cos(t + j)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def golden() -> tuple[Any, dict[str, np.ndarray], Any]:
    """What is built, the arrays of a file, and parameters from them."""
    made = built()
    arrays = golden_arrays(shapes(made))
    like = shapes(made) | {"likelihood": {"log_scale": jnp.zeros(())}}
    return made, arrays, interchange.from_arrays(arrays, like)


def test_golden_values_of_diffusers(golden: tuple[Any, dict[str, np.ndarray], Any]) -> None:
    made, arrays, params = golden
    assert len(arrays) == 124
    image = np.sin(0.1 * np.arange(3 * 64)).reshape(3, 8, 8).transpose(1, 2, 0)
    x = np.float32((image + 1) / 2)  # the networks see 2 x - 1

    @jax.jit
    def passed(params: Any, x: Any) -> Any:
        q, p = made.model.encode(params, x), made.model.prior(params)
        return q, jaxvae.divergences.kl(q, p), made.model.decode(params, q.mean).mean

    q, kl, decoded = passed(params, x)
    mean, log_variance = q.mean.transpose(2, 0, 1), 2 * jnp.log(q.scale)
    first = [-0.053887, -0.039258, -0.034792, -0.042785]
    np.testing.assert_allclose(mean.ravel()[:4], first, atol=1e-6)
    np.testing.assert_allclose(mean.sum(), -1.991103, atol=1e-5)
    np.testing.assert_allclose(log_variance.sum(), -0.692545, atol=1e-5)
    np.testing.assert_allclose(kl, 0.124172, atol=1e-6)
    y = np.asarray(2 * decoded - 1).transpose(2, 0, 1)
    np.testing.assert_allclose(y.ravel()[:3], [0.164016, 0.326377, 0.412931], atol=2e-6)
    np.testing.assert_allclose([y.sum(), np.abs(y).max()], [39.361346, 1.218052], atol=1e-4)


SIZES: dict[str, tuple[dict[str, Any], int, int]] = {  # changes of a configuration, numbers, arrays
    "Stable Diffusion": ({"latent_channels": 4}, 83_653_863, 248),
    "16 latents without 1x1 convolutions": (
        {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
        83_819_683,
        244,
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name: str) -> None:
    changes, numbers, count = SIZES[name]
    wide = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
    wide |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "norm_num_groups": 32}
    wide |= {"up_block_types": ["UpDecoderBlock2D"] * 4}
    leaves = jax.tree.leaves(interchange.exchanged(shapes(built(GOLDEN | wide | changes))))
    assert (sum(math.prod(leaf.shape) for leaf in leaves), len(leaves)) == (numbers, count)


def test_images_of_any_size_are_padded_and_cut() -> None:
    made = built(shape=(7, 10, 3))
    z = jax.eval_shape(made.model.encode, shapes(made), jnp.zeros((7, 10, 3)))
    assert z.event_shape == (4, 5, 2)
    x = jax.eval_shape(made.model.decode, shapes(made), jnp.zeros((4, 5, 2)))
    assert x.event_shape == (7, 10, 3)


# Networks that judge


@pytest.mark.parametrize("size, layers", [(64, 4), (8, 2), (9, 3), (33, 3)])
def test_a_critic_sees_patches(size: int, layers: int) -> None:
    """Isola's critic of 64 pixels and four layers has 6x6 of them."""
    network = networks.patch_critic((4,) * layers)
    x = jnp.zeros((size, size, 3))
    patches = networks.patches(size, layers)
    output = jax.eval_shape(lambda: network.apply(network.init(KEY, x), x))
    assert output.shape == (patches, patches, 1)
    assert (size, layers) != (64, 4) or patches == 6


WIDTHS = (2, 3, 2, 2, 2)


def vgg_arrays() -> dict[str, np.ndarray]:
    """A VGG16 of few channels and the weights of LPIPS, by their names in a file."""
    rng, arrays, before = np.random.default_rng(0), {}, 3
    for k, (width, numbers) in enumerate(zip(WIDTHS, perceptual.NUMBERS, strict=True)):
        for number in numbers:
            kernel = rng.normal(size=(width, before, 3, 3)) / 3
            arrays[f"features.{number}.weight"] = np.float32(kernel)
            arrays[f"features.{number}.bias"] = np.float32(0.1 * rng.normal(size=width))
            before = width
        arrays[f"lin{k}.model.1.weight"] = np.float32(rng.uniform(size=(1, width, 1, 1)))
    return arrays


def lpips_by_scipy(arrays: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """The distance of two images [H, W, 3], in float64."""
    location, scale = np.array(perceptual.LOCATION), np.array(perceptual.SCALE)
    maps = [((image - location) / scale).transpose(2, 0, 1) for image in (x, y)]

    def layer(a: np.ndarray, number: int) -> np.ndarray:
        weight, bias = arrays[f"features.{number}.weight"], arrays[f"features.{number}.bias"]
        rows = [sum(correlate2d(c, k, "same") for c, k in zip(a, w, strict=True)) for w in weight]
        return np.maximum(np.stack(rows) + bias[:, None, None], 0)

    total = 0.0
    for k, numbers in enumerate(perceptual.NUMBERS):
        if k:
            maps = [a.reshape(len(a), a.shape[1] // 2, 2, -1, 2).max((2, 4)) for a in maps]
        for number in numbers:
            maps = [layer(a, number) for a in maps]
        u, v = (a / (np.sqrt((a**2).sum(0)) + 1e-10) for a in maps)
        total += np.einsum(
            "c,chw->hw", arrays[f"lin{k}.model.1.weight"].ravel(), (u - v) ** 2
        ).mean()
    return total


def test_a_perceptual_distance_is_lpips_of_its_file(tmp_path: Path) -> None:
    arrays, files = vgg_arrays(), [tmp_path / f"vgg{suffix}" for suffix in (".npz", ".safetensors")]
    np.savez(files[0], **arrays)
    tensors.write_safetensors(files[1], arrays)
    x, y = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    made, other = (perceptual.of_file(str(f), (16, 16, 3), WIDTHS, "float32") for f in files)
    jax.tree.map(np.testing.assert_array_equal, made.params, other.params)
    value = jax.jit(made.distance)(made.params, x, y)
    np.testing.assert_allclose(value, lpips_by_scipy(arrays, x, y), rtol=1e-5)
    opened = perceptual.of_file("gone", (16, 16, 3), WIDTHS, "float32", read=False)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), opened.params, made.params)


def test_features_without_activity_have_no_gradient() -> None:
    units = jax.jit(jax.grad(lambda a: (perceptual._unit(a) ** 2).sum()))
    np.testing.assert_array_equal(units(jnp.zeros((2, 3))), np.zeros((2, 3)))


# Losses, with networks of one layer


def _affine(kind: str) -> networks.Network:
    """A 1x1 convolution, or 2x2 places for one or one place for 2x2."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        params = params["decoder"]["conv_out"] if kind == "head" else params["body"]
        if kind == "encoder":
            x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).mean((1, 3))
        if kind == "trunk":
            x = jnp.tanh(x.repeat(2, 0).repeat(2, 1))
        return jnp.matmul(x, params["kernel"], precision="float32")

    sizes = {"encoder": (1, 4), "trunk": (2, 3), "head": (3, 1)}

    def init(key: jax.Array, x: Any) -> Any:
        if kind == "encoder":
            return {"body": {"kernel": jax.random.normal(key, sizes[kind])}}
        keys = jax.random.split(key)
        last = {"conv_out": {"kernel": jax.random.normal(keys[1], sizes["head"])}}
        return {"body": {"kernel": jax.random.normal(keys[0], sizes["trunk"])}, "decoder": last}

    return networks.Network(init, apply)


ENDS = latent.Ends(
    *map(_affine, ("encoder", "trunk", "head")), likelihoods.laplace_learned(0.3), (4, 4, 1), 2
)
MADE = latent.gaussian_maps(ENDS, 2, lambda step: 0.25)
CRITIC = networks.Network(
    lambda key, x: {"kernel": jax.random.normal(key, x.shape)},
    lambda params, x: jnp.tanh(params["kernel"] * x),
)
LIKENESS = latent.Likeness(lambda params, x, y: jnp.sum(params * (x - y) ** 2), 0.7)
BATCH = jax.random.uniform(jax.random.key(1), (6, 4, 4, 1))
KEYS = jax.random.split(jax.random.key(2), 6)
WEIGHT = jnp.array([0.2, 0.2, 0.2, 0.2, 0.2, 0.0])


@functools.cache
def of_players() -> dict[str, Any]:
    return {
        "model": MADE.model.init(KEY, BATCH[0]),
        "critic": CRITIC.init(jax.random.key(3), BATCH[0]),
        "perceptual": jnp.linspace(0.1, 0.5, 16).reshape(4, 4, 1),
    }


START = 5  # the step at which the autoencoder begins to pay for the critic's term


@functools.cache
def of_losses(likeness: float | None = 0.7, critic: bool = True) -> dict[str, Any]:
    """The compiled losses of the players, (players, keys, x, weight, step) -> loss, terms."""
    pictures = latent.Pictures(
        ENDS,
        None if likeness is None else LIKENESS._replace(weight=likeness),
        latent.PatchCritic(CRITIC, 0.8, START) if critic else None,
    )
    bound = lambda loss: lambda *args: loss(*args, None)
    return {name: jax.jit(bound(loss)) for name, loss in latent.losses(MADE, pictures).items()}


def at(step: int) -> tuple[Any, ...]:
    """The arguments of a loss after the players."""
    return KEYS, BATCH, WEIGHT, jnp.int32(step)


def test_without_critic_and_distance_it_is_a_vae() -> None:
    """With a Laplace likelihood; the noise is the same too."""
    loss = of_losses(None, False)["model"]
    vae = jaxvae.models.VAE(MADE.model.init, MADE.model.encode, ENDS.decode, MADE.model.prior)
    other = jax.jit(batch_mean(negative_elbo(vae, kl_weight=lambda step: 0.25)), static_argnums=5)
    players = of_players()
    value, terms = loss(players, *at(0))
    expected, parts = other(players["model"], *at(0), None)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(terms["kl"], parts["kl"], rtol=1e-6)
    scale = math.exp(players["model"]["likelihood"]["log_scale"])
    x = np.asarray(BATCH[0])
    one = ENDS.decode(players["model"], np.ones((2, 2, 2), np.float32))
    laplace = -(np.abs(x - np.asarray(one.mean)) / scale + math.log(2 * scale)).sum()
    np.testing.assert_allclose(one.log_prob(x), laplace, rtol=1e-5)


def test_the_adaptive_weight_balances_gradients_in_the_last_kernel() -> None:
    """Written out for the whole batch, with every gradient taken through the whole model."""
    players = of_players()

    def image(model: Any, key: jax.Array, x: jax.Array) -> Any:
        z = MADE.model.encode(model, x).sample(jax.random.split(key)[0])
        return ENDS.decode(model, z)

    def error(model: Any, key: jax.Array, x: jax.Array) -> jax.Array:
        p = image(model, key, x)
        distance = jnp.sum(players["perceptual"] * (2 * x - 2 * p.mean) ** 2)
        scale = jnp.exp(model["likelihood"]["log_scale"])
        return 0.7 * 16 * distance / (2 * scale) - p.log_prob(x)

    def pretence(model: Any, key: jax.Array, x: jax.Array) -> jax.Array:
        seen = 2 * image(model, key, x).mean - 1
        return -jnp.tanh(players["critic"]["kernel"] * seen).mean()

    def of_batch(part: Any) -> Any:
        whole = lambda model: jnp.sum(WEIGHT * jax.vmap(part, (None, 0, 0))(model, KEYS, BATCH))
        value, gradient = jax.jit(jax.value_and_grad(whole))(players["model"])
        return value, np.linalg.norm(ENDS.last_kernel(gradient))

    (of_error, first), (of_pretence, second) = map(of_batch, (error, pretence))
    expected = 0.8 * first / (second + 1e-4)
    value, terms = of_losses()["model"](players, *at(START))
    np.testing.assert_allclose(terms["critic_weight"], expected, rtol=1e-5)
    whole = of_error + 0.25 * terms["kl"] + expected * of_pretence
    np.testing.assert_allclose(value, whole, rtol=1e-5)
    np.testing.assert_allclose(latent.adaptive_weight(jnp.float32(1e9), jnp.float32(0)), 1e4)


def test_the_critics_term_begins_at_its_step() -> None:
    players, losses = of_players(), of_losses()
    (before, terms), (_, later) = (losses["model"](players, *at(START + i)) for i in (-1, 0))
    assert terms["critic_weight"] == 0 < later["critic_weight"]
    alone = of_losses(critic=False)["model"]
    np.testing.assert_allclose(before, alone(players, *at(START - 1))[0], rtol=1e-6)
    assert losses["critic"](players, *at(0))[0] > 0  # the critic learns before


def test_losses_reach_their_own_player_alone() -> None:
    """The published example leaks both ways, and its perceptual distance has no gradient."""
    players = of_players()
    for player, loss in of_losses().items():
        value = lambda p, f=loss: f(p, *at(START))[0]
        gradients = jax.jit(jax.grad(value))(players)
        for name, tree in gradients.items():
            for leaf in jax.tree.leaves(tree):
                assert (np.abs(leaf).max() > 0) == (name == player), (player, name)

    losses = [of_losses(likeness, False)["model"] for likeness in (None, 0.7)]
    more = jax.jit(jax.grad(lambda p: losses[1](p, *at(0))[0] - losses[0](p, *at(0))[0]))(players)
    assert np.abs(ENDS.last_kernel(more["model"])).max() > 0.1  # the distance has a gradient


def test_losses_are_those_of_the_whole_batch_on_three_devices() -> None:
    """The norms of the adaptive weight too; the mean of ratios would be another number."""
    players = of_players()
    cut = lambda a: a.reshape(3, -1, *a.shape[1:])
    critic = latent.PatchCritic(CRITIC, 0.8, START)
    for player, loss in latent.losses(MADE, latent.Pictures(ENDS, LIKENESS, critic)).items():
        on_devices = lambda k, x, w, f=loss: f(players, k, x, w, START, "d")
        each = jax.jit(jax.vmap(on_devices, axis_name="d"))(cut(KEYS), cut(BATCH), cut(WEIGHT))
        whole = of_losses()[player](players, *at(START))
        same = lambda a, b: np.testing.assert_allclose(a, np.full(3, b), rtol=1e-5)
        jax.tree.map(same, each, whole)


def test_codes_of_a_map_have_an_honest_bound() -> None:
    """log p(x|c) - P log K, codes that decode to what the encoder gave, and draws of all codes."""
    encoder = _affine("encoder")
    encoder = encoder._replace(apply=lambda params, x, f=encoder.apply: f(params, x)[..., :2])
    quantizer = quantizers.nearest(2, codebook_size=5)
    made = latent.quantized_maps(ENDS._replace(encoder=encoder), 2, quantizer)
    model: Any = made.model
    params = model.init(KEY, BATCH[0])

    @jax.jit
    def answers(params: Any, x: Any) -> Any:
        codes, z = model.codes(params, x), model.encode(params, x).mean
        p = model.decode_codes(params, codes)
        drawn = jax.vmap(model.draw, (None, 0))(params, jax.random.split(KEY, 50))
        terms = model.terms(params, KEY, x, 1) | {"log_p": p.log_prob(x)}
        return codes, p.mean, model.decode(params, z).mean, terms, drawn

    codes, from_codes, from_z, terms, drawn = answers(params, BATCH[0])
    assert codes.shape == (2, 2) and codes.dtype == jnp.int32 and model.num_codes == 5
    np.testing.assert_array_equal(from_codes, from_z)
    np.testing.assert_allclose(terms["reconstruction"], terms["log_p"], rtol=1e-6)
    np.testing.assert_allclose(terms["kl"], 4 * math.log(5), rtol=1e-6)
    assert len(np.unique(drawn.reshape(-1, 2), axis=0)) == 5


# Files


def written(folder: Path, arrays: dict[str, np.ndarray], config: dict[str, Any] = GOLDEN) -> Path:
    """A folder as diffusers saves it."""
    folder.mkdir(exist_ok=True)
    (folder / interchange.CONFIG).write_text(json.dumps(config))
    tensors.write_safetensors(folder / interchange.WEIGHTS, arrays)
    return folder


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def test_what_is_imported_is_exported_byte_for_byte(
    golden: tuple[Any, dict[str, np.ndarray], Any], tmp_path: Path
) -> None:
    """In the types of the file, with old names of layers and with keys that we do not know."""
    _, arrays, params = golden
    for new, old in OLD.items():
        arrays = {name.replace(f".{new}.", f".{old}."): a for name, a in arrays.items()}
    half = "decoder.conv_in.weight"
    arrays[half] = arrays[half].astype(np.float16)
    arrays["quant_conv.bias"] = arrays["quant_conv.bias"].astype(jnp.bfloat16)
    folder = written(tmp_path / "vae", arrays, GOLDEN | {"a_new_key": [1, {"b": None}]})
    import_folder(folder, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "back")
    for name in (interchange.CONFIG, interchange.WEIGHTS):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    trained = jaxvae.load(tmp_path / "run")
    assert trained.step == 0 and trained.data.shape == (8, 8, 3)
    np.testing.assert_array_equal(ENDS.last_kernel(trained.params), ENDS.last_kernel(params))
    kernel = trained.params["decoder"]["decoder"]["conv_in"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), np.float32(arrays[half]))


def without(name: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda arrays: {n: a for n, a in arrays.items() if n != name}


same = lambda arrays: arrays
MISFITS: dict[str, tuple[dict[str, Any], Callable[[Any], Any], str]] = {
    "class": ({"_class_name": "UNet2DModel"}, same, "must be AutoencoderKL or VQModel"),
    "activation": ({"act_fn": "gelu"}, same, "act_fn is 'gelu'; jaxvae has networks with 'silu'"),
    "spatial": ({"norm_type": "spatial"}, same, "norm_type is 'spatial'"),
    "channels": ({"out_channels": 4}, same, "out_channels is 4; jaxvae has networks with 3"),
    "one 1x1 convolution": ({"use_quant_conv": False}, same, "use_post_quant_conv is True"),
    "blocks": ({"down_block_types": ["Down"] * 2}, same, "down_block_types has 'Down'; jaxvae has"),
    "length": ({"block_out_channels": [8]}, same, "must be of the same length"),
    "no widths": ({"block_out_channels": "8"}, same, "must be whole numbers from 1 on; it is '8'"),
    "no number": ({"latent_channels": None}, same, "latent_channels must be whole numbers"),
    "attention": (
        {"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]},
        same,
        "the attention of down_block_types and up_block_types must be the same",
    ),
    "groups": ({"norm_num_groups": 3}, same, "norm_groups=3 must divide every width"),
    "size": ({"sample_size": [8, 8, 8]}, same, "sample_size must be one number or two"),
    "more layers": ({"layers_per_block": 2}, same, "arrays that config.json asks for are missing"),
    "missing": ({}, without("decoder.conv_in.bias"), "the first is decoder.conv_in.bias"),
    "left over": ({"use_quant_conv": False, "use_post_quant_conv": False}, same, "are left over"),
    "shape": ({"latent_channels": 3}, same, "has the shape (4,); by config.json it must be (6,)"),
    "one array": ({}, lambda a: a | {"more": a["quant_conv.bias"]}, "the first is more"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_named(
    name: str, golden: tuple[Any, dict[str, np.ndarray], Any], tmp_path: Path
) -> None:
    config, change, words = MISFITS[name]
    folder = written(tmp_path / "vae", change(golden[1]), GOLDEN | config)
    with pytest.raises(ValueError, match=f"{re.escape(str(folder))}.*{re.escape(words)}"):
        import_folder(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda f: (f / interchange.WEIGHTS).unlink(), "has no diffusion_pytorch_model"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is damaged"),
    "cut": (
        lambda f: os.truncate(f / interchange.WEIGHTS, 30_000),
        "an array does not end where the header says",
    ),
    "no header": (lambda f: os.truncate(f / interchange.WEIGHTS, 100), "does not end within"),
    "empty": (lambda f: os.truncate(f / interchange.WEIGHTS, 0), "does not end within the file"),
    "header": (
        lambda f: (f / interchange.WEIGHTS).write_bytes((8).to_bytes(8, "little") + b"no JSON "),
        "is damaged or no safetensors file",
    ),
    "type": (
        lambda f: (f / interchange.WEIGHTS).write_bytes(
            (f / interchange.WEIGHTS).read_bytes().replace(b'"F32"', b'"F99"')
        ),
        "its header has no 'F99'",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(
    name: str, golden: tuple[Any, dict[str, np.ndarray], Any], tmp_path: Path
) -> None:
    damage, words = DAMAGES[name]
    folder = written(tmp_path / "vae", golden[1])
    damage(folder)
    with pytest.raises(ValueError, match=words):
        import_folder(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_of_ours_is_read_back() -> None:
    for preset, more in (("autoencoder-kl", {"quant_convs": False}), ("vq-gan", {"code_size": 3})):
        config = families.preset(preset, attention_levels=(1,), middle_attention=False, **more)
        made = interchange.to_config(config, (20, 28, 1), 0.5)
        assert interchange.image_shape(made) == (20, 28, 1)
        again = families.preset(preset, **interchange.to_settings(json.loads(json.dumps(made))))
        names = ("hidden", "latent", "blocks", "norm_groups", "attention_levels", "code_size")
        for name in (*names, "middle_attention", "quant_convs", "bottleneck"):
            assert getattr(again, name) == getattr(config, name), name
    with pytest.raises(ValueError, match="no autoencoder with the bottleneck finite_scalar"):
        interchange.to_config(families.preset("vq-gan", bottleneck="finite_scalar"), (8, 8, 1), 1.0)


# Refused when it is built: preset, settings, shape of an image, words of the sentence.
REFUSED: list[tuple[str, dict[str, Any], tuple[int, ...], str]] = [
    ("autoencoder-kl", {}, (64,), "are of images"),
    ("autoencoder-kl", {"code_size": 3}, (8, 8, 1), "code_size must be None"),
    ("autoencoder-kl", {"norm_groups": 5}, (8, 8, 1), "must divide every width"),
    ("autoencoder-kl", {"attention_levels": (2,)}, (8, 8, 1), "there is no 2"),
    ("autoencoder-kl", {"hidden": ()}, (8, 8, 1), "at least one width in hidden"),
    ("autoencoder-kl", {"critic_hidden": (8,) * 4}, (8, 8, 1), "give fewer of them"),
    ("autoencoder-kl", {"accumulate": 2}, (8, 8, 1), "needs the gradient of the whole batch"),
    ("autoencoder-kl", {"perceptual": "file"}, (8, 8, 1), "sees grey or colour images of 16x16"),
    (
        "autoencoder-kl",
        {"perceptual": "file", "vgg_hidden": (3, 4)},
        (16, 16, 1),
        "must be the 5 widths",
    ),
    ("autoencoder-kl", {"perceptual": "labels"}, (8, 8, 1), "needs a set in memory with labels"),
    ("autoencoder-kl", {"perceptual": "file"}, (16, 16, 3), "there is no vgg16_lpips.safetensors"),
    (
        "autoencoder-kl",
        {"perceptual": "labels", "classifier_hidden": (8,) * 6},
        (16, 16, 3),
        "give fewer widths",
    ),
    ("vq-gan", {"code_size": 3, "quant_convs": False}, (8, 8, 1), "without quant_convs"),
]


@pytest.mark.parametrize("row", range(len(REFUSED)))
def test_settings_that_do_not_go_together_are_refused(row: int) -> None:
    preset, settings, shape, words = REFUSED[row]
    with_examples = data(shape)._replace(examples=lambda count: np.zeros((count, *shape)))
    if "fewer widths" in words:
        labelled = lambda count: (np.zeros((1, *shape)), np.zeros(1, int))
        with_examples = with_examples._replace(labelled=labelled)
    with pytest.raises(ValueError, match=words):
        families.FAMILIES["latent"].build(families.preset(preset, **settings), with_examples)


# Slow: training, and diffusers itself


@pytest.mark.slow
def test_remat_and_bfloat16_change_little(golden: tuple[Any, dict[str, np.ndarray], Any]) -> None:
    _, _, params = golden
    x = jax.random.uniform(KEY, (8, 8, 3))

    def passed(**settings: Any) -> tuple[Any, Any]:
        config = families.preset("autoencoder-kl", **interchange.to_settings(GOLDEN), **settings)
        config = families.changed(config, perceptual="none", critic="none")
        model = families.FAMILIES["latent"].build(config, data((8, 8, 3))).model

        def loss(params: Any) -> jax.Array:
            q = model.encode(params, x)
            return ((model.decode(params, q.mean).mean - x) ** 2).sum() + (q.scale**2).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    plain, again, half = passed(), passed(remat=True), passed(precision="bfloat16")
    near = lambda tolerance: (
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    )
    jax.tree.map(near(1e-5), plain, again)
    near(2e-2)(plain[0], half[0])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half[1]))


@pytest.mark.slow
def test_an_imported_run_is_trained_further(
    golden: tuple[Any, dict[str, np.ndarray], Any], tmp_path: Path
) -> None:
    """Evaluated on another set, sampled, and the start of a run whose encoder must stay."""
    from jaxvae.runs.commands import evaluate, sample

    run = tmp_path / "run"
    import_folder(written(tmp_path / "vae", golden[1]), run)
    colours = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "set.npz", x_train=colours, x_test=colours[:20])
    evaluate(run, num_samples=4, dataset=str(tmp_path / "set.npz"))
    found = json.loads((run / "evaluation.json").read_text())
    assert np.isfinite(found["elbo"]) and found["num_examples"] == 20
    sample(run, num=3)
    settings = {"hidden": (8, 16), "latent": 2, "norm_groups": 4, "critic_hidden": (4,)}
    settings |= {"steps": 2, "batch_size": 10, "ema_decay": 0.0, "checkpoint_every": 2}
    settings |= {"test_samples": 2, "test_examples": 5}
    trained = jaxvae.train(
        "autoencoder-kl",
        tmp_path / "further",
        data=str(tmp_path / "set.npz"),
        start_from=run,
        decoder_only=True,
        progress=False,
        **settings,
    )
    before = jaxvae.load(run).params
    jax.tree.map(np.testing.assert_array_equal, trained.params["encoder"], before["encoder"])
    assert (ENDS.last_kernel(trained.params) != ENDS.last_kernel(before)).any()
    export(tmp_path / "further", tmp_path / "out")
    config = json.loads((tmp_path / "out" / interchange.CONFIG).read_text())
    q = trained.posterior(colours)
    spread = np.sqrt(np.var(q.loc) + np.mean(np.square(q.scale)))  # of draws of q(z|x)
    np.testing.assert_allclose(config["scaling_factor"] * spread, 1, rtol=0.05)
    assert config["sample_size"] == 8


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what diffusers_peer.py makes.

    It is run by the Python that JAXVAE_DIFFUSERS_PYTHON names, which has diffusers and PyTorch, or
    in an environment that is made now.
    """
    folder, python = tmp_path_factory.mktemp("peer"), os.environ.get("JAXVAE_DIFFUSERS_PYTHON")
    if python is None:
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv" / "bin" / "python")
        packages = ["torch==2.13.0", "diffusers==0.42.1", "safetensors", "numpy"]
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    script = Path(__file__).with_name("diffusers_peer.py")
    subprocess.run([python, str(script), str(folder)], check=True, stdout=sys.stderr)
    return folder


PEERS = ("kl", "kl_attention", "kl_without_quant", "kl_deep", "vq")


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_outputs_and_files_are_those_of_diffusers(name: str, peer: Path, tmp_path: Path) -> None:
    """Encoder and decoder within 1e-4, codes equal, files byte for byte; images of odd sizes."""
    import_folder(peer / name, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "back")
    for file in (interchange.CONFIG, interchange.WEIGHTS):
        assert (tmp_path / "back" / file).read_bytes() == (peer / name / file).read_bytes()
    held = tensors.read_safetensors(peer / name / interchange.WEIGHTS)
    assert tensors.header_of(held.arrays) == held.header
    trained = jaxvae.load(tmp_path / "run")
    ends, params = trained.source.ends, trained.params
    expected = np.load(peer / name / "expected.npz")
    last = lambda array: np.moveaxis(array, 1, -1)
    for i in range(4):
        x, z, y = (last(expected[f"{i}_{part}"]) for part in ("x", "z", "decoded"))
        raw = np.asarray(jax.jit(jax.vmap(ends.encoder.apply, (None, 0)))(params["encoder"], x))
        np.testing.assert_allclose(raw[..., : z.shape[-1]], z, atol=1e-4)
        if name == "vq":
            book = params["quantizer"]["book"]
            codes = codebooks.nearest_codes(jnp.asarray(z), book)
            np.testing.assert_array_equal(codes, expected[f"{i}_codes"])
            z = np.asarray(book)[codes]
        else:
            logvar = np.clip(raw[..., z.shape[-1] :], *latent.LOG_VARIANCE)
            np.testing.assert_allclose(logvar, last(expected[f"{i}_logvar"]), atol=1e-4)
        decode = lambda params, z: ends.head.apply(params, ends.trunk.apply(params, z))
        decoded = jax.jit(jax.vmap(decode, (None, 0)))(params["decoder"], z)
        np.testing.assert_allclose(decoded, y, atol=1e-4)


@pytest.mark.slow
def test_the_distance_of_a_file_is_that_of_pytorch(peer: Path) -> None:
    expected = np.load(peer / "vgg.npz")
    x, y = (np.moveaxis(expected[name], 0, -1) for name in "xy")
    made = perceptual.of_file(str(peer / "vgg.safetensors"), x.shape, (4, 6, 8, 8, 8), "float32")
    distance = jax.jit(made.distance)(made.params, x, y)
    np.testing.assert_allclose(distance, expected["distance"], rtol=1e-5)
