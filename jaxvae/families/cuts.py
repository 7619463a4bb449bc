"""How examples are cut into views, and which of these are missing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import datasets, models
from jaxvae.contracts import Array, Preprocess
from jaxvae.families.contract import Data
from jaxvae.models.modalities import Seen
from jaxvae.ranges import Widths

LABEL = "label"


class Cut(NamedTuple):
    """How an example is cut into views."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    order: np.ndarray  # the numbers of x in the order of the views
    pictures: Callable[[Any], Any]  # views side by side [..., D] -> images, or vectors
    label: bool = False  # whether the label is a further view, the last one


def halves(data: Data) -> Cut:
    """The left and the right half of an image."""
    _check_image("halves", data)
    columns = np.arange(np.prod(data.shape)).reshape(data.shape)
    parts = np.array_split(columns, 2, axis=1)
    order = np.concatenate([part.ravel() for part in parts])
    sizes = tuple(part.size for part in parts)
    return Cut(("left", "right"), sizes, order, _as_images(order, data.shape))


def image_and_label(data: Data) -> Cut:
    """An image and its label."""
    if not data.num_classes:
        raise ValueError(
            f"views=image_and_label needs a set with labels in memory; {data.name} has none here"
        )
    order = np.arange(int(np.prod(data.shape)))
    sizes = (order.size, data.num_classes)
    return Cut(("image", LABEL), sizes, order, _as_images(order, data.shape), True)


def halves_and_label(data: Data) -> Cut:
    """The left and the right half of an image, and its label."""
    image, with_label = halves(data), image_and_label(data)
    names, sizes = (*image.names, LABEL), (*image.sizes, with_label.sizes[-1])
    return Cut(names, sizes, image.order, image.pictures, True)


def columns(data: Data, view_sizes: Widths = ()) -> Cut:
    """Parts of a vector, one after the other.

    Args:
      view_sizes: how many numbers each view has.
    """
    if len(data.shape) != 1 or sum(view_sizes) != data.shape[0]:
        raise ValueError(
            f"view_sizes={view_sizes} must be parts of a vector [D]; examples have shape "
            f"{data.shape}: give sizes whose sum is D"
        )
    names = tuple(f"view_{number}" for number in range(1, len(view_sizes) + 1))
    return Cut(names, tuple(view_sizes), np.arange(data.shape[0]), lambda x: x)


def _check_image(name: str, data: Data) -> None:
    if len(data.shape) != 3 or data.shape[1] < 2:
        raise ValueError(
            f"views={name} needs images [H, W, C]; the examples have shape {data.shape}: use "
            "views=columns"
        )


def _as_images(order: np.ndarray, shape: tuple[int, ...]) -> Callable[[Any], Any]:
    """Views side by side -> images, without what is no pixel."""

    def images(x: Any) -> Any:
        x = np.asarray(x)
        whole = np.zeros((*x.shape[:-1], order.size), x.dtype)
        whole[..., order] = x[..., : order.size]
        return whole.reshape(*x.shape[:-1], *shape)

    return images


VIEWS = {
    "halves": halves,
    "image_and_label": image_and_label,
    "halves_and_label": halves_and_label,
    "columns": columns,
}


class Shown(NamedTuple):
    """Raw examples and which of their views training sees, [N, M]."""

    raw: Any
    views: Any


def plain(split: Any) -> Any:
    return split.x


def with_labels(data: Data) -> Callable[[Any], Any]:
    def raw(split: Any) -> models.Conditioned:
        return models.Conditioned(split.x, datasets.checked_labels(split.y, data.num_classes))

    return raw


def shown(raw: Any, count: int, hidden: float, seed: int) -> Shown:
    """Raw examples with the views that training sees, at least one of each.

    Args:
      raw: the examples.
      count: the number of views.
      hidden: the share of views that are hidden before one of each example is shown again.
      seed: selects the views.
    """
    size = datasets.num_examples(raw)
    generator = np.random.Generator(np.random.Philox(key=[seed, datasets.HIDING]))
    seen = generator.random((size, count)) >= hidden
    seen[np.arange(size), generator.integers(0, count, size)] = True
    return Shown(raw, seen)


def seen_by(cut: Cut, data: Data) -> Preprocess:
    """Preprocessing that cuts an example into views.

    A view with a value that is not finite is missing, and so is the label if x is given alone.
    """
    preprocess, classes = data.preprocess, data.num_classes
    ends = [*itertools.accumulate(cut.sizes)]

    def of_raw(key: Array, raw: Any) -> Seen:
        if isinstance(raw, Shown):
            example = of_raw(key, raw.raw)
            return example._replace(present=example.present & raw.views)
        pair = isinstance(raw, models.Conditioned)
        x = jnp.ravel(preprocess(key, raw.x if pair else raw))[cut.order]
        if cut.label:
            label = raw.y if pair else -1
            x = jnp.concatenate([x, jax.nn.one_hot(label, classes)])
        present = [jnp.isfinite(part).all() for part in jnp.split(x, ends[:-1])]
        if cut.label:
            present[-1] = jnp.asarray(label >= 0)
        held = jnp.repeat(jnp.stack(present), np.array(cut.sizes), total_repeat_length=ends[-1])
        return Seen(jnp.where(held, x, 0.0), jnp.stack(present))

    return of_raw
