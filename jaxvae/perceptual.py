"""Perceptual distances of images: how far apart the feature maps of a network are.

Zhang et al. 2018, arXiv:1801.03924. The network is VGG16 from a file, or a smaller one that learns
the labels of the training examples. A network with random weights is never taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import evaluation, networks, tensors
from jaxvae.contracts import Array, Params
from jaxvae.networks import Network

DEPTHS = 2, 2, 3, 3, 3  # convolutions in the stages of VGG16
# The numbers of these convolutions in torchvision's ``features``, beside rectifiers and pooling.
NUMBERS = (0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)
LOCATION = -0.030, -0.088, -0.188  # of the colours of photographs in [-1, 1]
SCALE = 0.458, 0.448, 0.450


class Perceptual(NamedTuple):
    """A distance between images, in the units that an autoencoder's networks see."""

    params: Params  # of the network; they are not trained further
    distance: Callable[[Params, Array, Array], Array]  # (params, x, y) -> a number from 0 on
    about: str  # a sentence for the report


def distance_by(network: Network) -> Callable[[Params, Array, Array], Array]:
    """LPIPS: sum over k of the mean over places of |sqrt(w_k) (u_k(x) - u_k(y))|^2.

    Zhang et al. 2018, arXiv:1801.03924, eq. 1. u_k is the k-th map of the network, each of whose
    places is scaled to norm 1. Parameters are ``{"maps", "weights", "location", "scale"}``.
    """

    def units(params: Params, x: Array) -> list[Array]:
        centred = (x - params["location"]) / params["scale"]
        return [_unit(a) for a in network.apply(params["maps"], centred)]

    def distance(params: Params, x: Array, y: Array) -> Array:
        pairs = zip(params["weights"], units(params, x), units(params, y), strict=True)
        return sum(((a - b) ** 2 * w).sum(-1).mean() for w, a, b in pairs)

    return distance


def _unit(a: Array) -> Array:
    """Vectors [..., C] of norm 1. Where all entries are zero they stay zero, without a gradient."""
    square = jnp.sum(a**2, -1, keepdims=True)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    return jnp.where(square > 0, a / (norm + 1e-10), 0.0)


# From a file


def of_file(
    file: str, shape: Sequence[int], channels: Sequence[int], precision: str, read: bool = True
) -> Perceptual:
    """VGG16 with the weights of LPIPS, from a .safetensors or .npz file.

    The file has torchvision's names ``features.0.weight`` [O, I, 3, 3] and ``features.0.bias`` to
    ``features.28.bias``, and ``lin0.model.1.weight`` [1, C, 1, 1] to ``lin4.model.1.weight``, as
    the package lpips has them. Grey images are seen as three equal colours.

    Args:
      file: the file.
      shape: the shape [H, W, C] of an image.
      channels: the widths of the five stages.
      precision: the precision of the network.
      read: whether to read the file; otherwise the parameters are zeros of the right shapes.

    Raises ValueError for images that it cannot see, and for a file that does not fit.
    """
    if shape[-1] not in (1, 3) or min(shape[:2]) < 16:
        raise ValueError(
            f"perceptual=file sees grey or colour images of 16x16 pixels or more, and these have "
            f"the shape {tuple(shape)}: leave perceptual none"
        )
    if len(channels) != len(DEPTHS):
        raise ValueError(f"vgg_hidden must be the {len(DEPTHS)} widths of VGG; it was {channels}")
    network = networks.with_precision(networks.vgg_maps(channels, DEPTHS), precision)
    maps = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((*shape[:2], 3)))
    like = {"maps": maps, "weights": [jax.ShapeDtypeStruct((c,), jnp.float32) for c in channels]}
    params = _from_file(Path(file), like) if read else jax.tree.map(_zeros, like)
    colours = {"location": np.array(LOCATION, np.float32), "scale": np.array(SCALE, np.float32)}
    return Perceptual(
        params | colours, distance_by(network), f"perceptual distance: the network of {file}"
    )


def _zeros(leaf: Any) -> Array:
    return jnp.zeros(leaf.shape, leaf.dtype)


def _from_file(file: Path, like: Any) -> Params:
    held = tensors.read(file)
    maps: dict[str, Any] = {}
    for i, numbers in enumerate(NUMBERS):
        for j, number in enumerate(numbers):
            name = f"conv_{i}_{j}"
            kernel = _taken(file, held, f"features.{number}.weight", like["maps"][name]["kernel"])
            bias = _taken(file, held, f"features.{number}.bias", like["maps"][name]["bias"])
            maps[name] = {"kernel": kernel, "bias": bias}
    weights = [
        _taken(file, held, f"lin{k}.model.1.weight", leaf) for k, leaf in enumerate(like["weights"])
    ]
    return {"maps": maps, "weights": weights}


def _taken(file: Path, held: dict[str, np.ndarray], name: str, like: Any) -> np.ndarray:
    """An array of the file as the network has it."""
    if name not in held:
        raise ValueError(
            f"{file} has no {name}: it must have torchvision's features.0.weight to "
            "features.28.bias of VGG16 and lin0.model.1.weight to lin4.model.1.weight of lpips"
        )
    array = held[name]
    moved = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    moved = moved.reshape(-1) if name.startswith("lin") else moved
    if moved.shape != like.shape:
        raise ValueError(
            f"{file}: {name} has the shape {array.shape}, which does not fit the widths of "
            "vgg_hidden"
        )
    return np.ascontiguousarray(moved, np.float32)


# From labels


def of_labels(
    shape: Sequence[int],
    channels: Sequence[int],
    precision: str,
    labelled: tuple[Any, Any] | None,
    steps: int = 500,
) -> Perceptual:
    """A network with one convolution in each stage, which learns to classify the examples.

    All channels of a map have the weight 1.

    Args:
      shape: the shape [H, W, C] of an image.
      channels: the widths of the stages.
      precision: the precision of the network.
      labelled: images [N, H, W, C] as the networks see them, and labels [N]; None gives parameters
        that are zeros of the right shapes.
      steps: steps of its training.

    Raises ValueError for images that are too small.
    """
    if min(shape[:2]) < 2 ** (len(channels) - 1) or not channels:
        raise ValueError(
            f"classifier_hidden={tuple(channels)} halves images {len(channels) - 1} times, and "
            f"these have the shape {tuple(shape)}: give fewer widths, or leave perceptual none"
        )
    network = networks.with_precision(networks.vgg_maps(channels, [1] * len(channels)), precision)
    weights = [np.ones(c, np.float32) for c in channels]
    if labelled is None:
        maps = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape))
        rest = {"location": np.float32(0), "scale": np.float32(1)}
        params = {"maps": jax.tree.map(_zeros, maps), "weights": weights} | rest
        return Perceptual(params, distance_by(network), "")
    pooled = network._replace(apply=lambda params, x: network.apply(params, x)[-1].mean((0, 1)))
    learned = evaluation.samples.classifier_features(
        *labelled, jax.random.key(0), body=pooled, width=channels[-1], num_steps=steps
    )
    params = {"maps": learned.params, "weights": weights}
    params |= {"location": np.float32(learned.location), "scale": np.float32(learned.scale)}
    about = (
        f"perceptual distance: a network that learned the labels in {steps} steps, "
        f"accuracy {learned.accuracy:.3f} on held-out examples"
    )
    return Perceptual(params, distance_by(network), about)
