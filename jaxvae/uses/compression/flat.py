"""The codec of a trained flat VAE."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import networks
from jaxvae.contracts import Params
from jaxvae.families.contract import Data
from jaxvae.uses.compression import frequencies, integers, readouts
from jaxvae.uses.compression.bits_back import NEEDED, PIXELS, REACH, checked
from jaxvae.uses.compression.codecs import Codec
from jaxvae.uses.compression.integers import IntegerLayer

TYPICAL = 1000  # images, at most, that say how large activations become


def flat_codec(
    config: Any, data: Data, params: Params, images: np.ndarray, grid: int = 32
) -> Codec:
    """The bits-back codec of a flat VAE.

    Args:
      config: the configuration of the model.
      data: what is known of its data.
      params: its parameters.
      images: typical images [N, *shape], integers; they say how large activations become.
      grid: places of a latent between 0 and 1.

    Raises ValueError for a model that has no such codec.
    """
    check(config, grid)
    settings, shape = config.likelihood.settings, tuple(data.shape)
    levels = levels_of(config, data)
    x = checked(np.asarray(images)[:TYPICAL], shape, levels)
    layout = {
        "kind": "bits-back",
        "shape": shape,
        "levels": levels,
        "latent": config.latent,
        "grid": grid,
        "likelihood": config.likelihood.name,
        "model": fingerprint(params),
    }
    of_pixel = readouts.pixels(config.likelihood.name, levels, settings.get("pixel_components", 0))
    layout["numbers"] = len(of_pixel.multiply)
    activation = networks.ACTIVATIONS[config.network.activation]
    encoder = integers.rounded(
        readouts.encoder_layers(
            params["encoder"],
            config.network,
            shape,
            1 / (levels - 1),
            readouts.posterior(config.latent, grid),
        ),
        activation,
        x,
        0,
        levels - 1,
    )
    z = typical_latents(encoder, x, config.latent, REACH * grid)
    output = (*shape[:-1], shape[-1] * layout["numbers"])
    decoder = integers.rounded(
        readouts.decoder_layers(params["decoder"], config.network, output, of_pixel),
        activation,
        z,
        grid.bit_length() - 1,
        REACH * grid,
    )
    arrays = frequencies.tables("gaussian", *NEEDED[config.likelihood.name])
    for name, layers in (("encoder", encoder), ("decoder", decoder)):
        layout[name] = layout_of(layers)
        arrays |= arrays_of(name, layers)
    return Codec(layout, arrays)


def typical_latents(
    encoder: Sequence[IntegerLayer], images: np.ndarray, latent: int, reach: int
) -> np.ndarray:
    """A draw of q(z|x) for each image, as whole places of the grid, [N, D]."""
    one = lambda x: integers.apply(encoder, x)
    raw = np.asarray(jax.lax.map(one, jnp.asarray(images, jnp.float32), batch_size=256))
    scale = 2.0 ** (np.minimum(raw[:, latent:], frequencies.LARGEST) / frequencies.EIGHTHS)
    noise = np.random.default_rng(0).normal(size=scale.shape)
    z = raw[:, :latent] / frequencies.QUARTERS + scale * noise
    return np.clip(np.round(z), -reach, reach)


def check(config: Any, grid: int) -> None:
    """Raises ValueError for a model that bits-back does not code here."""
    if grid < 1 or grid & (grid - 1):
        raise ValueError(f"grid={grid} must be a power of two, such as 32")
    if not hasattr(config, "posterior"):
        raise ValueError(
            "compression is of flat VAEs and of the presets factorized-prior and hyperprior; this "
            "model is neither. The networks of hierarchies divide, so Bit-Swap would need others"
        )
    members = {
        "posterior": ("normal",),
        "prior": ("natural", "standard_normal"),
        "network": readouts.NETWORKS,
        "likelihood": tuple(PIXELS),
    }
    for name, known in members.items():
        chosen = getattr(config, name, None)
        if chosen is None or chosen.name not in known:
            there = "none" if chosen is None else chosen.name
            raise ValueError(
                f"{name}={there} cannot be compressed with: bits-back here takes "
                f"{name}={' or '.join(known)}"
            )


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
