"""Makes one picture of a finished run: reconstructions, samples and the latent space.

``python experiments/picture.py runs/digits-digits-0 experiments/digits.png``
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from jaxvae import datasets, distributions, figures
from jaxvae.command_line import run_function
from jaxvae.contracts import Array
from jaxvae.runs.commands import Opened, opened

ROWS, COLUMNS = 4, 8  # pairs of rows of reconstructions, and pictures in a row
SAMPLES = 64
CODES = 1000  # test examples whose codes are drawn, at most
MISSING = -1  # stands for a label that is not there


def images_of(run: Opened, x: Any, examples: Any) -> np.ndarray:
    """What the run says of examples, as images of values in [0, 1] without an axis of channels."""
    images = np.asarray(run.built.pictures_of(x, examples)) / run.data.pixel_max
    return np.clip(images, 0, 1).squeeze(-1) if images.shape[-1] == 1 else np.clip(images, 0, 1)


def examples_of(run: Opened, key: Array, count: int) -> Any:
    """A fixed random subset of the test split, as the model takes it."""
    split = run.split(run.record.config.test_split, count)
    keys = jax.random.split(key, datasets.num_examples(split.x))
    return jax.vmap(run.built.preprocess)(keys, split.x)


def sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """Images [N, H, W, ...] beside each other, with white lines between them."""
    gap = max(1, images.shape[1] // 16)
    border = [(0, 0), (0, gap), (0, gap), *[(0, 0)] * (images.ndim - 3)]
    framed = np.pad(images, border, constant_values=1.0)
    rows = [np.concatenate(list(row), 1) for row in framed.reshape(-1, columns, *framed.shape[1:])]
    return np.concatenate(rows)[:-gap, :-gap]


def draw_images(axes: Axes, images: np.ndarray, title: str) -> None:
    """Draws a sheet of images under a title."""
    axes.imshow(images, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def draw_reconstructions(axes: Axes, run: Opened) -> None:
    """Test images, and under each row of them their reconstructions."""
    examples = examples_of(run, run.key, ROWS * COLUMNS)
    pair = figures.reconstructions(run.built.model, run.params, examples)
    images = np.stack([images_of(run, x, examples) for x in pair])
    images = images.reshape(2, ROWS, COLUMNS, *images.shape[2:]).swapaxes(0, 1)
    whole = sheet(images.reshape(-1, *images.shape[3:]), COLUMNS)
    draw_images(axes, whole, "test images, reconstructions below")


def draw_samples(axes: Axes, run: Opened) -> None:
    """The decoder's means at draws of the prior."""
    examples = examples_of(run, run.key, SAMPLES)
    x = figures.prior_samples(run.built.model, run.params, run.key, examples)
    draw_images(axes, sheet(images_of(run, x, examples), COLUMNS), "samples from the prior")


def draw_codes(axes: Axes, run: Opened) -> None:
    """Posterior means of test images in their two principal components, coloured by label."""
    split = run.split(run.record.config.test_split, CODES)
    keys = jax.random.split(run.key, datasets.num_examples(split.x))
    examples = jax.vmap(run.built.preprocess)(keys, split.x)
    one = lambda example: distributions.mean_of(run.built.model.encode(run.params, example))  # type: ignore[misc]
    codes = np.asarray(jax.jit(jax.vmap(one))(examples)).reshape(len(keys), -1)
    directions = np.linalg.svd(codes - codes.mean(0), full_matrices=False)[2][:2]
    points = (codes - codes.mean(0)) @ directions.T
    labels = np.full(len(codes), MISSING) if split.y is None else np.asarray(split.y)
    for label in np.unique(labels):
        kind = points[labels == label]
        name = None if label == MISSING else str(label)
        axes.scatter(kind[:, 0], kind[:, 1], s=14, linewidths=0, color=f"C{label % 10}", label=name)
    axes.set_title("posterior means, principal components", fontsize=10)
    axes.set(xticks=[], yticks=[])
    axes.set_box_aspect(1)
    beside: Any = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
    axes.legend(fontsize=8, markerscale=1.5, handletextpad=0, **beside)


def picture(
    workdir: Annotated[Path, tyro.conf.Positional],
    file: Annotated[Path, tyro.conf.Positional],
    dataset: str | None = None,
    data_dir: str | None = None,
) -> None:
    """Makes one picture of a finished run.

    Args:
      workdir: the run folder of a model of labelled images.
      file: the PNG file.
      dataset: data set, where it has moved since the training.
      data_dir: folder of prepared sets, where it has moved since the training.
    """
    run = opened(workdir, "latest", dataset, data_dir)
    figure = Figure(figsize=(10, 3.7), layout=ConstrainedLayoutEngine(wspace=0.06))
    panels = figure.subplots(1, 3, width_ratios=[1, 1, 1.12])
    for axes, draw in zip(panels, (draw_reconstructions, draw_samples, draw_codes), strict=True):
        draw(axes, run)
    figure.savefig(file, dpi=100, metadata={"Software": None})
    print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    run_function(picture)
