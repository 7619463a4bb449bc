"""The codec of a trained VAE with Gaussian latents: a flat one, or a Markov chain."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import networks
from jaxvae.contracts import Params
from jaxvae.families import flat, markov
from jaxvae.families.contract import Data
from jaxvae.uses.compression import frequencies, integers, readouts
from jaxvae.uses.compression.bits_back import NEEDED, PIXELS, REACH, checked
from jaxvae.uses.compression.codecs import Codec
from jaxvae.uses.compression.integers import Affine, IntegerLayer
from jaxvae.uses.compression.readouts import Readout

TYPICAL = 1000  # images, at most, that say how large activations become


class Variable(NamedTuple):
    """x, or a vector of latents z = center + unit * whole / 2^bits."""

    real: np.ndarray  # typical values [N, ...], as the networks of real numbers take them
    whole: np.ndarray  # the same as whole numbers
    largest: int  # the largest whole number
    bits: int
    readout: Readout  # units of the numbers of its distribution
    center: np.ndarray | None = None  # [D]; None for x
    unit: np.ndarray | None = None


def gaussian_codec(
    config: Any, data: Data, params: Params, images: np.ndarray, grid: int = 32, swap: bool = True
) -> Codec:
    """The bits-back codec of a flat VAE, or of one whose latents are a Markov chain.

    Args:
      config: the configuration of the model.
      data: what is known of its data.
      params: its parameters.
      images: typical images [N, *shape], integers; they say how large activations become.
      grid: places of a latent on the length of one; of lower vectors of a chain, on the length of
        their standard deviation.
      swap: whether the steps of the vectors of a chain take turns, as in Bit-Swap, so that the
        first image needs the bits of one vector alone.

    Raises ValueError for a model that has no such codec.
    """
    check(config, grid)
    settings, shape = config.likelihood.settings, tuple(data.shape)
    levels = levels_of(config, data)
    x = checked(np.asarray(images)[:TYPICAL], shape, levels)
    of_pixel = readouts.pixels(config.likelihood.name, levels, settings.get("pixel_components", 0))
    layout = {
        "kind": "bits-back",
        "shape": shape,
        "levels": levels,
        "latents": latents_of(config),
        "grid": grid,
        "swap": swap,
        "likelihood": config.likelihood.name,
        "numbers": len(of_pixel.multiply),
        "model": fingerprint(params),
    }
    arrays = frequencies.tables("gaussian", *NEEDED[config.likelihood.name])
    made = _networks(config, params, Variable(x, x, levels - 1, 0, of_pixel), grid)
    for name, layers in made.items():
        layout[name] = layout_of(layers)
        arrays |= arrays_of(name, layers)
    return Codec(layout, arrays)


def _networks(config: Any, params: Params, x: Variable, grid: int) -> dict[str, list[IntegerLayer]]:
    """The networks of integers: up_l takes z_l to z_{l+1}, and down_l back, where z_0 is x."""
    below, made, rng = x, {}, np.random.default_rng(0)
    pairs = _pairs(config, params, x)
    for number, (up, down, activation) in enumerate(pairs):
        mean, log_scale = np.split(integers.outputs(up, activation, below.real), 2, -1)
        z = mean + np.exp(log_scale) * rng.normal(size=mean.shape)
        above = _vector(z, grid, is_top=number == len(pairs) - 1)
        made[f"up_{number}"] = _rounded(up, activation, below, above)
        made[f"down_{number}"] = _rounded(down, activation, above, below)
        below = above
    return made


def _pairs(config: Any, params: Params, x: Variable) -> list[tuple[Any, Any, Any]]:
    """The affine maps from z_l to z_{l+1} and back, and their activation, for each l."""
    shape = x.real.shape[1:]
    up = readouts.encoder_layers(params["encoder"], config.network, shape, 1 / x.largest)
    output = (*shape[:-1], shape[-1] * len(x.readout.multiply))
    down = readouts.decoder_layers(params["decoder"], config.network, output)
    lowest = (up, down, networks.ACTIVATIONS[config.network.activation])
    if isinstance(config, flat.Config):
        return [lowest]
    activation = networks.ACTIVATIONS[config.upper_activation]
    both = zip(params["posterior"], params["prior"], strict=True)
    dense = readouts.dense_layers
    return [lowest, *((dense(up), dense(down), activation) for up, down in both)]


def _vector(z: np.ndarray, grid: int, is_top: bool) -> Variable:
    """A vector of latents of typical values [N, D]; the top one has the prior N(0, I)."""
    center = np.zeros(z.shape[1]) if is_top else z.mean(0)
    unit = np.ones(z.shape[1]) if is_top else z.std(0) + 1e-6
    whole = np.clip(np.round(grid * (z - center) / unit), -REACH * grid, REACH * grid)
    readout = readouts.gaussian(center, unit / grid)
    return Variable(z, whole, REACH * grid, grid.bit_length() - 1, readout, center, unit)


def _rounded(
    layers: list[Affine], activation: Any, given: Variable, of: Variable
) -> list[IntegerLayer]:
    """The network of integers from a variable to the distribution of another."""
    if given.center is not None and given.unit is not None:
        layers = readouts.of_places(layers, given.center, given.unit)
    layers = readouts.read(layers, of.readout)
    return integers.rounded(layers, activation, given.whole, given.bits, given.largest)


def check(config: Any, grid: int) -> None:
    """Raises ValueError for a model that bits-back does not code here."""
    if grid < 1 or grid & (grid - 1):
        raise ValueError(f"grid={grid} must be a power of two, such as 32")
    if not isinstance(config, flat.Config | markov.Config):
        raise ValueError(
            "compression is of flat VAEs, of chains of latents such as bit-swap, and of the "
            "presets factorized-prior and hyperprior; this model is none of them"
        )
    members: dict[str, tuple[str, ...]] = {
        "network": readouts.NETWORKS,
        "likelihood": tuple(PIXELS),
    }
    if isinstance(config, flat.Config):
        members |= {"posterior": ("normal",), "prior": ("natural", "standard_normal")}
    for name, known in members.items():
        chosen = getattr(config, name, None)
        if chosen is None or chosen.name not in known:
            there = "none" if chosen is None else chosen.name
            raise ValueError(
                f"{name}={there} cannot be compressed with: bits-back here takes "
                f"{name}={' or '.join(known)}"
            )


def latents_of(config: Any) -> tuple[int, ...]:
    """Dimensions of the vectors of latents, from the lowest to the top."""
    return (config.latent,) if isinstance(config, flat.Config) else tuple(config.latent)


def check_images(config: Any, data: Data, images: np.ndarray) -> None:
    """Raises DataError unless images are what the codec of a model codes."""
    checked(images, tuple(data.shape), levels_of(config, data))


def levels_of(config: Any, data: Data) -> int:
    """Values that a pixel can take in what is compressed."""
    if config.likelihood.name == "bernoulli":
        return 2
    if data.levels is None:
        raise ValueError("images were real numbers in training, and only integers are coded")
    return data.levels


def input_scale(config: Any, data: Data) -> float:
    """The factor from whole numbers of pixels to x as the model takes it."""
    return 1.0 if config.likelihood.name == "categorical" else 1 / (levels_of(config, data) - 1)


def negative_elbo(
    trained: Any, config: Any, images: np.ndarray, num_samples: int = 8, seed: int = 0
) -> np.ndarray:
    """-ELBO of each image in bits, [N], by the networks of real numbers.

    Args:
      trained: the trained model.
      config: its configuration.
      images: integers [N, *shape], as a codec takes them.
      num_samples: draws of z for each image.
      seed: the seed of the draws.
    """
    scale = input_scale(config, trained.data)

    def one(pair: Any) -> Any:
        key, raw = pair
        terms = trained.model.terms(
            trained.params, key, scale * raw.astype(jnp.float32), num_samples
        )
        return (terms["kl"] - terms["reconstruction"]) / math.log(2)

    keys = jax.random.split(jax.random.key(seed), len(images))
    x = jnp.asarray(images.reshape(-1, *trained.data.shape))
    return np.asarray(jax.jit(lambda pairs: jax.lax.map(one, pairs, batch_size=100))((keys, x)))


def fingerprint(params: Params) -> str:
    """The sha256 of the parameters of a model."""
    whole = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        whole.update(jax.tree_util.keystr(path).encode())
        whole.update(np.ascontiguousarray(leaf).tobytes())
    return whole.hexdigest()


def layout_of(layers: Sequence[IntegerLayer]) -> list[dict[str, Any]]:
    """What a codec keeps of a network of integers beside its arrays."""
    return [{"kind": i.kind, "shape": i.shape, "shift": i.shift} for i in layers]


def arrays_of(name: str, layers: Sequence[IntegerLayer]) -> dict[str, np.ndarray]:
    """The arrays of a network of integers, as a codec keeps them."""
    arrays = {}
    for i, layer in enumerate(layers):
        for part in ("kernel", "bias", "table"):
            value = getattr(layer, part)
            if value is not None:
                arrays[f"{name}_{i}_{part}"] = np.asarray(value).astype(np.int32)
    return arrays
