"""Compression: containers, and codecs of every likelihood, beside the ELBO."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import begun, refused

import jaxvae
from jaxvae import command_line, families
from jaxvae.datasets import DataError
from jaxvae.families import Data
from jaxvae.runs.compressing import compress, decompress
from jaxvae.uses import compression
from jaxvae.uses.compression import containers, gaussian
from jaxvae.uses.compression.transform import transform_codec

LATENT = 3


# Codecs


def data_of(shape: tuple[int, ...], levels: int, pixels: str) -> Data:
    return Data("made", shape, "uint8", levels, pixels, 100)


def made(likelihood: str, **named: Any) -> tuple[Any, Data, Any, Any]:
    """A configuration, its data, what is built of them and parameters of which some are large."""
    pixels = {"bernoulli": "dynamic", "categorical": "counts"}.get(likelihood, "scale")
    config = families.preset("digits", likelihood=likelihood, latent=LATENT, **named)
    data = data_of((4, 4, 1), 7, pixels)
    built = families.FAMILIES["flat"].build(config, data)
    params = built.model.init(jax.random.key(1), jnp.zeros((4, 4, 1)))
    params = jax.tree.map(lambda a: 1.5 * a, params)
    scales = params["encoder"]["output"]["bias"][LATENT:]
    params["encoder"]["output"]["bias"] = jnp.concatenate([jnp.zeros(LATENT), scales - 1.5])
    return config, data, built, params


def images_of(likelihood: str, count: int, seed: int = 0) -> np.ndarray:
    levels = 2 if likelihood == "bernoulli" else 7
    return np.random.default_rng(seed).integers(0, levels, (count, 4, 4, 1)).astype(np.uint8)


@functools.cache
def codec_of(likelihood: str, network: str = "mlp") -> compression.Codec:
    config, data, _, params = made(likelihood, network=network, hidden=(6,))
    return gaussian.gaussian_codec(config, data, params, images_of(likelihood, 30))


LOSSLESS = [
    ("bernoulli", "mlp"),
    pytest.param("discretized_logistic", "mlp", marks=pytest.mark.slow),
    pytest.param("bernoulli", "conv", marks=pytest.mark.slow),
    pytest.param("categorical", "mlp", marks=pytest.mark.slow),
    pytest.param("discretized_logistic_mixture", "mlp", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("likelihood, network", LOSSLESS)
def test_images_come_back_bit_for_bit_at_the_cost_of_the_elbo(
    likelihood: str, network: str, tmp_path: Path
) -> None:
    """By a codec that was read from its file, one by one, though they were encoded in a batch."""
    codec, images = codec_of(likelihood, network), images_of(likelihood, 200, 1)
    compressed = codec.compress(images)
    read = compression.read(codec.save(tmp_path))
    assert read.checksum == codec.checksum
    back = read.decompress(compressed.packed)
    assert back.dtype == images.dtype
    np.testing.assert_array_equal(back, images)
    config, data, built, params = made(likelihood, network=network, hidden=(6,))
    trained = jaxvae.Trained(built, data, params, 0)
    bound = gaussian.negative_elbo(trained, config, images, num_samples=1)
    spread = np.sqrt(2 / len(bound)) * bound.std()
    assert abs(compressed.net_bits / 200 - bound.mean()) < 0.01 * bound.mean() + 4 * spread
    assert 8 * len(compressed.packed) < compressed.net_bits + compressed.borrowed + 1200


@functools.cache
def chain_of_three() -> tuple[jaxvae.Trained, Any, dict[bool, compression.Codec]]:
    """A chain of three vectors that has just begun, and its codecs with and without turns."""
    config = families.preset("bit-swap", hidden=(6,), latent=(4, 3, 2), upper_hidden=(5,))
    data = data_of((4, 4, 1), 7, "scale")
    built = families.FAMILIES["markov"].build(config, data)
    params = built.model.init(jax.random.key(2), jnp.zeros((4, 4, 1)))
    params["encoder"]["output"]["bias"] = params["encoder"]["output"]["bias"].at[4:].add(-1.5)
    images = images_of("discretized_logistic", 30)
    codecs = {
        swap: gaussian.gaussian_codec(config, data, params, images, swap=swap)
        for swap in (True, False)
    }
    return jaxvae.Trained(built, data, params, 0), config, codecs


@pytest.mark.parametrize("swap", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_chain_of_latents_gives_images_back_at_the_cost_of_the_elbo(
    swap: bool, tmp_path: Path
) -> None:
    (trained, config, codecs), count = chain_of_three(), 200
    images = images_of("discretized_logistic", count, 1)
    compressed = codecs[swap].compress(images)
    read = compression.read(codecs[swap].save(tmp_path))
    np.testing.assert_array_equal(read.decompress(compressed.packed), images)
    bound = gaussian.negative_elbo(trained, config, images, num_samples=4)
    spread = np.sqrt(2 / count) * bound.std()
    assert abs(compressed.net_bits / count - bound.mean()) < 0.01 * bound.mean() + 4 * spread


def test_bit_swap_needs_the_bits_of_fewer_latents_for_the_first_image() -> None:
    _, _, codecs = chain_of_three()
    images = images_of("discretized_logistic", 1)
    turns, at_once = (codecs[swap].compress(images) for swap in (True, False))
    assert at_once.borrowed == -sum(at_once.steps[:3])  # pops z_1, z_2 and z_3
    assert turns.borrowed == -turns.steps[0]  # x brings back more than z_2 and z_3 take
    assert turns.borrowed < at_once.borrowed
    for swap, compressed in ((True, turns), (False, at_once)):
        np.testing.assert_array_equal(codecs[swap].decompress(compressed.packed), images)


@pytest.mark.parametrize("dtype, shape", [("bool", (4, 4)), ("int64", (4, 4, 1)), (">u2", (4, 4))])
def test_types_and_shapes_come_back(dtype: str, shape: tuple[int, ...]) -> None:
    codec = codec_of("bernoulli")
    images = images_of("bernoulli", 3).astype(dtype).reshape(3, *shape)
    back = codec.decompress(codec.compress(images, seed=5).packed)
    np.testing.assert_array_equal(back, images)
    assert back.shape == images.shape and back.dtype == images.dtype.newbyteorder("=")


def test_first_words_are_doubled_until_they_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, images = codec_of("bernoulli"), images_of("bernoulli", 4)
    monkeypatch.setattr(type(codec.scheme), "seeds", 1)
    packed = codec.compress(images).packed
    assert containers.unpack(packed).first > 1
    np.testing.assert_array_equal(codec.decompress(packed), images)


# Damage


def test_a_hundred_flipped_bits_and_twenty_cuts_are_all_refused() -> None:
    codec = codec_of("bernoulli")
    packed = codec.compress(images_of("bernoulli", 40)).packed
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * len(packed), 100, replace=False):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DataError):
            codec.decompress(bytes(damaged))
    for length in rng.choice(len(packed), 20, replace=False):
        with pytest.raises(DataError):
            codec.decompress(packed[:length])
    with pytest.raises(DataError, match="follow the header"):
        codec.decompress(packed + b"\0")


def test_words_that_have_the_right_checksum_but_are_others_are_refused() -> None:
    """The images have a checksum too, and the stack must end as it began."""
    codec = codec_of("bernoulli")
    held = containers.unpack(codec.compress(images_of("bernoulli", 9)).packed)
    held.words[0] ^= 4
    with pytest.raises(DataError, match="not those that were compressed"):
        codec.decompress(held.pack())


def test_another_models_file_is_refused_by_name() -> None:
    one = codec_of("bernoulli")
    other = compression.Codec(one.layout | {"model": "another"}, one.arrays)
    packed = one.compress(images_of("bernoulli", 2)).packed
    with pytest.raises(DataError, match=f"by the codec {one.checksum[:16]}, and this is"):
        other.decompress(packed)


def test_another_version_of_the_coder_is_refused_by_name() -> None:
    codec = codec_of("bernoulli")
    held = containers.unpack(codec.compress(images_of("bernoulli", 2)).packed)
    with pytest.raises(DataError, match=r"with constriction 0\.4, and 0\.5 is installed"):
        codec.decompress(held._replace(coder="0.4").pack())


def test_a_damaged_codec_is_refused(tmp_path: Path) -> None:
    file = codec_of("bernoulli").save(tmp_path)
    whole = file.read_bytes()
    for cut in (10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="damaged"):
            compression.read(file)
    other = tmp_path / "0123456789abcdef.npz"
    other.write_bytes(whole)
    with pytest.raises(DataError, match="its content has the checksum"):
        compression.read(other)


# What cannot be coded

IMAGES = {
    "shape": (np.zeros((3, 5, 4, 1), np.uint8), r"have shape \(3, 5, 4, 1\); the model takes"),
    "floats": (np.zeros((3, 4, 4, 1)), "without loss only integers are coded"),
    "values": (np.full((3, 4, 4, 1), 2), "values from 2 to 2; the model codes integers from 0 to"),
    "negative": (np.full((3, 4, 4, 1), -1), "values from -1 to -1"),
    "none": (np.zeros((0, 4, 4, 1), np.uint8), "there is no image"),
    "one number": (np.array(3), "have shape"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_other_images_are_refused(case: str) -> None:
    images, words = IMAGES[case]
    with pytest.raises(DataError, match=words):
        codec_of("bernoulli").compress(images)


MODELS: list[tuple[str, dict[str, Any], str]] = [
    ("ladder", {}, "chains of latents such as bit-swap"),
    ("planar", {}, "posterior=planar cannot be compressed with"),
    ("vampprior", {}, "prior=vampprior cannot be compressed with"),
    ("digits", {"likelihood": "normal"}, "likelihood=normal cannot be compressed with"),
    ("digits", {"network": "residual"}, "network=residual cannot be compressed with"),
    ("digits", {"grid": 33}, "grid=33 must be a power of two"),
]


@pytest.mark.parametrize("preset, named, words", MODELS, ids=[f"{r[0]} {r[1]}" for r in MODELS])
def test_other_models_are_refused(preset: str, named: dict[str, Any], words: str) -> None:
    rest = {name: value for name, value in named.items() if name != "grid"}
    with pytest.raises(ValueError, match=words):
        gaussian.check(families.preset(preset, **rest), named.get("grid", 32))


# Commands


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has just begun, and images beside it."""
    folder = tmp_path_factory.mktemp("compression")
    images = images_of("bernoulli", 40)
    named = {"hidden": (6,), "latent": LATENT, "steps": 4, "batch_size": 10, "test_samples": 2}
    config = families.preset("digits", **named)
    data = {"train": images, "test": images[:10]}
    begun(folder / "run", config, data)
    arrays = {"images": images, "empty": images[:0], "wide": np.zeros((3, 9), np.uint8)}
    arrays |= {"grey": images_of("categorical", 9)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "nothing.npy").touch()
    packed = codec_of("bernoulli").compress(images[:2]).packed
    (folder / "other.jvae").write_bytes(packed)
    (folder / "cut.jvae").write_bytes(packed[:60])
    return folder


def test_commands_give_back_the_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second time with the codec that is there
        compress(run / "run", run / "images.npy", tmp_path / "x.jvae", verify=True)
    said = capsys.readouterr().out
    for word in ("net ", "-ELBO", "excess", "first image", "images/s", "PNG", "WebP", "xz", "same"):
        assert word in said, word
    assert len(list((run / "run" / "codecs").iterdir())) == 1
    decompress(run / "run", tmp_path / "x.jvae")
    assert (tmp_path / "x.npy").read_bytes() == (run / "images.npy").read_bytes()
    with pytest.raises(DataError, match="is there already"):
        decompress(run / "run", tmp_path / "x.jvae")


MISTYPED: list[tuple[str, str, str]] = [
    ("compress", "{run} nowhere.npy x.jvae", "nowhere.npy: No such file or directory"),
    ("compress", "{run} {run}/config.json x.jvae", "is no .npy file of numbers"),
    ("compress", "{run} {dir}/empty.npy x.jvae", "there is no image to compress"),
    ("compress", "{run} {dir}/nothing.npy x.jvae", "is no .npy file of numbers"),
    ("compress", "{run} {dir}/wide.npy x.jvae", "have shape (3, 9); the model takes [N, 4, 4, 1]"),
    ("compress", "{run} {dir}/grey.npy x.jvae", "values from 0 to 6; the model codes integers"),
    ("compress", "{run} {dir}/images.npy x.jvae --grid 3", "must be a power of two"),
    ("compress", "{run} {dir}/images.npy x.jvae --checkpoint 9", "has no checkpoint '9'"),
    ("compress", "{run} {dir}/images.npy nowhere/x.jvae", "the folder does not exist"),
    ("decompress", "{run} nowhere.jvae", "nowhere.jvae: No such file or directory"),
    ("decompress", "{run} {dir}/images.npy x.npy", "this is no file of jaxvae compress"),
    ("decompress", "{run} {dir}/other.jvae x.npy", "give the run whose model wrote it"),
    ("decompress", "{run} {dir}/cut.jvae x.npy", "the file is damaged or incomplete"),
]


@pytest.mark.parametrize("name, arguments, words", MISTYPED, ids=[r[2] for r in MISTYPED])
def test_a_mistake_is_answered_in_a_sentence_and_nothing_is_written(
    name: str,
    arguments: str,
    words: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    there = set(run.glob("**/*"))
    typed = arguments.format(run=run / "run", dir=run).split()
    command = lambda: command_line.main([name, *sys.argv[1:]])
    refused(command, typed, words, monkeypatch, capsys)
    assert not list(tmp_path.iterdir()) and set(run.glob("**/*")) == there


@pytest.mark.slow
def test_another_process_and_another_program_read_what_was_written(
    run: Path, tmp_path: Path
) -> None:
    """Without XLA's optimizations, with other vector instructions, and on four devices."""
    compress(run / "run", run / "images.npy", tmp_path / "x.jvae")
    ways = {
        "plain": {},
        "sse": {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"},
        "devices": {"JAX_NUM_CPU_DEVICES": "4", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    }
    for name, variables in ways.items():
        out = tmp_path / f"{name}.npy"
        line = [sys.executable, "-m", "jaxvae", "decompress", run / "run", tmp_path / "x.jvae", out]
        subprocess.run(list(map(str, line)), check=True, env=os.environ | variables, timeout=300)
        assert out.read_bytes() == (run / "images.npy").read_bytes()


# Lossy


def lossy_codec(hyper: int, network: str) -> tuple[compression.Codec, Any]:
    """A codec of a model that has just begun, and its model; codes are made larger."""
    given: Any = {"hidden": (4,), "latent": 3, "hyper_latent": hyper, "hyper_hidden": (4,)}
    given |= {"scale": 12**-0.5}  # one rounding step is one of x
    config = families.preset("hyperprior", network=network, **given)
    data = data_of((6, 5, 1), 17, "scale")
    built = families.FAMILIES["compressive"].build(config, data)
    params = built.model.init(jax.random.key(0), jnp.zeros((6, 5, 1)))
    params["encoder"] = jax.tree.map(lambda a: 2 * a, params["encoder"])
    trained = jaxvae.Trained(built, data, params, 0)
    return transform_codec(config, data, params, grey(30)), trained


def grey(count: int) -> np.ndarray:
    images = np.random.default_rng(2).integers(0, 17, (count, 6, 5, 1))
    return images.astype(np.uint8)


@pytest.mark.parametrize(
    "hyper, network",
    [(2, "mlp"), *(pytest.param(h, "normalized", marks=pytest.mark.slow) for h in (0, 2))],
)
def test_codes_come_back_at_the_rate_of_the_model(hyper: int, network: str, tmp_path: Path) -> None:
    """The real bits are -log2 of the density at the codes, which are the encoder's, rounded.

    Scales are rounded too, to eighths of octaves.
    """
    codec, trained = lossy_codec(hyper, network)
    images = grey(100)
    compressed = codec.compress(images)
    read = compression.read(codec.save(tmp_path))
    back = read.decompress(compressed.packed)
    assert back.dtype == images.dtype and back.shape == images.shape
    codes = codec.scheme.codes(images)
    means = np.asarray(
        jax.jit(jax.vmap(lambda x: trained.model.encode(trained.params, x).loc))(
            images / np.float32(16)
        )
    )
    assert np.abs(codes - means).max() <= 0.5 + 1e-3
    prior = trained.model.prior(trained.params)
    rate = -np.asarray(jax.jit(jax.vmap(prior.log_prob))(codes.astype(np.float32))) / np.log(2)
    assert compressed.net_bits == pytest.approx(rate.sum(), rel=0.05)
    decoded = jax.jit(jax.vmap(lambda z: trained.model.decode(trained.params, z).loc))(
        codes.astype(np.float32)
    )
    expected = np.clip(np.round(16 * np.asarray(decoded)), 0, 16)
    assert np.abs(back.astype(int) - expected).max() <= 1
    with pytest.raises(DataError):
        read.decompress(compressed.packed[:-4])
