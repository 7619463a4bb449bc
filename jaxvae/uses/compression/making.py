"""The codec of any trained model that has one."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxvae.families import compressive
from jaxvae.runs import folders
from jaxvae.uses.compression import gaussian
from jaxvae.uses.compression.codecs import Codec
from jaxvae.uses.compression.transform import transform_codec


def is_lossy(config: Any) -> bool:
    """Whether the codec of a model loses something."""
    return isinstance(config, compressive.Config)


def check(config: Any, grid: int = 32) -> None:
    """Raises ValueError for a model that has no codec."""
    if not is_lossy(config):
        gaussian.check(config, grid)


def codec(trained: Any, images: np.ndarray, grid: int = 32) -> Codec:
    """The codec of a trained model, of ``jaxvae.load`` or ``jaxvae.train``.

    ``images`` are typical ones as its data set holds them; they say how large activations become.
    ``grid`` is how many places a latent has between 0 and 1. Raises ValueError for a model that has
    no codec.

    >>> trained = jaxvae.load("runs/digits-digits-0")  # doctest: +SKIP
    >>> codec = compression.codec(trained, images[:1000])  # doctest: +SKIP
    >>> (codec.decompress(codec.compress(images).packed) == images).all()  # doctest: +SKIP
    """
    config = folders.read(trained.workdir).config
    if is_lossy(config):
        return transform_codec(config, trained.data, trained.params, images)
    return gaussian.gaussian_codec(config, trained.data, trained.params, images, grid)
