"""The work that ``throughput.py`` gives to this library and to others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

LATENT = {"mlp": 20, "conv": 128, "residual": 64, "wide": 256}
SHAPE = {"mlp": (28, 28, 1), "conv": (32, 32, 3), "residual": (64, 64, 3), "wide": (64, 64, 3)}
# Presets of jaxvae, with the settings that the peers have too.
PRESETS: dict[str, dict[str, Any]] = {
    "vdvae-small": {},
    "vq-vae": {},
    "autoencoder-kl": {
        **{"hidden": (32, 64), "blocks": 1, "norm_groups": 8, "latent": 4},
        **{"critic": "none", "perceptual": "none", "ema_decay": 0.0},
    },
}
SHAPE |= {"vdvae-small": (32, 32, 3), "vq-vae": (32, 32, 3), "autoencoder-kl": (64, 64, 3)}
CHANNELS = {"conv": (32, 64, 128, 256), "residual": (32, 64, 128), "wide": (128, 256, 512)}
HIDDEN = 500
RATE = 1e-4  # of Adam; with 1e-3 the wide net diverges on these images
SAMPLES = 5000  # of the likelihood
IWAE_SAMPLES = 50


class Work(NamedTuple):
    """A network, what is done with it, the batch, and how networks compute."""

    network: str  # of SHAPE: one of ours by hand, or a preset
    task: Literal["train", "iwae", "likelihood"]
    batch: int
    examples: int  # in the data set
    precision: str = "float32"  # of jaxvae.networks.PRECISIONS
    samples: int = SAMPLES  # importance samples for each image, of the likelihood

    def images(self) -> np.ndarray:
        """uint8 images [N, H, W, C], binary for the Bernoulli likelihood of the mlp."""
        rng = np.random.default_rng(0)
        size = (self.examples, *SHAPE[self.network])
        if self.network == "mlp":
            return (rng.random(size) < 0.2).astype(np.uint8)
        return rng.integers(0, 256, size, "uint8")


WORKS = {
    **{
        f"mlp, batch {batch}": Work("mlp", "train", batch, 10_240) for batch in (32, 128, 512, 2048)
    },
    "conv 32x32x3, batch 128": Work("conv", "train", 128, 2_560),
    "residual 64x64x3, batch 32": Work("residual", "train", 32, 320),
    "vdvae-small 32x32x3, batch 32": Work("vdvae-small", "train", 32, 320),
    "vq-vae 32x32x3, batch 32": Work("vq-vae", "train", 32, 640),
    "autoencoder-kl 64x64x3, batch 16": Work("autoencoder-kl", "train", 16, 64),
    f"IWAE K = {IWAE_SAMPLES}, mlp, batch 128": Work("mlp", "iwae", 128, 1_280),
    f"log p(x), K = {SAMPLES:,}, mlp": Work("mlp", "likelihood", 50, 100),
}
LARGE = {"wide residual 64x64x3, batch 256": Work("wide", "train", 256, 1024)}  # for accelerators

Run = Callable[[int], object]  # does a number of images of the work
