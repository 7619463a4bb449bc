"""Runs of a configuration on random images, to measure what needs no real ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxvae import datasets, runs
from jaxvae.runs import prepare

CLASSES = 10


def run_on(config: Any, shape: tuple[int, ...], examples: int = 512) -> runs.Run:
    """A run on random uint8 images of a shape [H, W, C], with random labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples, *shape), dtype=np.uint8)
    labels = np.arange(examples, dtype=np.int32) % CLASSES
    splits = {"train": (images, labels), "test": (images[:CLASSES], labels[:CLASSES])}
    return prepare(config, data=datasets.load(splits, levels=256))
