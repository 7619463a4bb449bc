"""The figures that a run leaves behind, each from the answers of a model that it needs.

A new figure is a function and a row of ``FIGURES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import divergences
from jaxvae.contracts import Array, Params
from jaxvae.datasets import Split, examples_of, random_subset, rows_of
from jaxvae.distributions import (
    Bernoulli,
    Beta,
    Kumaraswamy,
    OneHotCategorical,
    PowerSpherical,
    Truncated,
    VonMisesFisher,
    mean_of,
)
from jaxvae.evaluation import as_matrix, classification, encode_split, preprocessed_split
from jaxvae.evaluation.columns import length
from jaxvae.evaluation.zero_shot import curve, log_classes_of_both, zero_shot, zero_shot_of
from jaxvae.figures import decoding, drawing
from jaxvae.models import Model, answers

COLUMNS = 10  # pictures in a row
SIDE = 8  # rows and columns of samples
CODES = 2000  # examples whose codes are drawn, at most
CODE_NUMBERS = 2**26  # of all their codes together, at most
ROWS = 7  # numbers of layers that a picture shows
CURVES = {
    "loss": "loss",
    "reconstruction": "reconstruction",
    "kl": "KL",
    "validation_elbo": "validation ELBO",
}

Pictures = Callable[[Any, Any], np.ndarray]  # (x, examples) -> images [..., H, W, C] or [..., D]


class Shown(NamedTuple):
    """What figures are drawn of."""

    model: Model
    params: Params
    key: Array
    examples: Any  # at least COLUMNS * 2 and SIDE * SIDE of them, as the model takes them
    split: Any  # where the examples are from, a ``Split`` or a stream
    reports: Sequence[Mapping[str, Any]]  # lines of metrics.jsonl and validation.jsonl
    pictures: Pictures
    pixel_max: float
    classes: tuple[str, ...]

    def one(self) -> Any:
        """The first example."""
        return rows_of(self.examples, 0)

    def condition(self) -> Any:
        """What a conditional model is conditioned on in the first example."""
        return self.model.parts(self.one())[1]

    def posterior(self) -> Any:
        """q(z|x) of the first example."""
        return self.model.encode(self.params, self.one())  # type: ignore[misc]


class Figure(NamedTuple):
    """A figure and the answers of a model that it needs."""

    needs: tuple[str, ...]
    draw: Callable[[Path, Shown], bool]  # (file, what is shown) -> whether it was drawn


def draw_all(
    folder: Path,
    model: Any,
    params: Params,
    key: Array,
    split: Any,
    *,
    reports: Sequence[Mapping[str, Any]] = (),
    pictures: Pictures = lambda x, examples: x,
    pixel_max: float = 1.0,
    classes: tuple[str, ...] = (),
    figures: Sequence[str] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Draws all figures of a model into a folder, and returns their names.

    They show a fixed random subset of the split. A figure is left out if the model does not have
    the answers that it needs.

    Args:
      folder: where the PNG files go. It is made if it is not there.
      model: a ``models.Model``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of all draws, and of the preprocessing.
      split: examples that the model was not trained on, perhaps with labels.
      reports: lines of ``metrics.jsonl`` and ``validation.jsonl``.
      pictures: makes images of x, which is [..., *example], and of the examples it is from.
      pixel_max: the value that is drawn white.
      classes: names of the labels.
      figures: names in ``FIGURES`` to draw; None is all.
      progress: is called with how many of ``FIGURES`` are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = answers(model)
    examples = _examples(key, split)
    shown = Shown(model, params, key, examples, split, reports, pictures, pixel_max, tuple(classes))
    names = []
    for done, (name, figure) in enumerate(FIGURES.items(), 1):
        answered = all(getattr(model, answer) is not None for answer in figure.needs)
        asked, file = figures is None or name in figures, folder / f"{name}.png"
        if asked and answered and figure.draw(file, shown):
            names.append(file.name if file.exists() else file.with_suffix(".txt").name)
        progress(done)
    return names


def _examples(key: Array, split: Any) -> Any:
    """A fixed random subset in a random order; a small split is repeated."""
    count = max(2 * COLUMNS, SIDE * SIDE)
    x = preprocessed_split(key, random_subset(split, count))
    order = np.random.default_rng(0).permutation(length(x))
    return jax.tree.map(jnp.asarray, rows_of(x, np.resize(order, count)))


def _grid(
    path: Path, shown: Shown, images: Any, title: str, rows: Any = None, columns: Any = None
) -> bool:
    """Draws images [R, C, ...], if they are arrays of pictures or of vectors.

    Sentences [R, C] are written to a text file.
    """
    if isinstance(images, np.ndarray) and images.dtype == object:
        path.with_suffix(".txt").write_text(_lines(images, title, rows, columns))
        return True
    if not isinstance(images, np.ndarray) or images.ndim not in (3, 4, 5):
        return False
    images = images[..., None] if images.ndim == 4 else images
    drawing.grid(path, images / shown.pixel_max, title, rows, columns)
    return True


def _lines(sentences: np.ndarray, title: str, rows: Any, columns: Any) -> str:
    """Sentences [R, C] in lines: row after row, or column after column if only rows have names."""
    by_column = rows is not None and columns is None
    groups = sentences.T if by_column else sentences
    names = rows if by_column else columns or [""] * groups.shape[1]
    heads = [""] * len(groups) if by_column or rows is None else [f"{row}\n" for row in rows]
    width = max(map(len, names))
    line = lambda name, text: f"{name:<{width}} {text}".strip()
    blocks = [
        head + "\n".join(map(line, names, group)) for head, group in zip(heads, groups, strict=True)
    ]
    return "\n\n".join([title, *blocks]) + "\n"


def draw_reconstructions(path: Path, shown: Shown) -> bool:
    """Draws examples above the decoder's means at their posterior means."""
    some = rows_of(shown.examples, slice(COLUMNS))
    both = decoding.reconstructions(shown.model, shown.params, some)
    pictures = [shown.pictures(x, some) for x in both]
    images = np.stack(pictures) if isinstance(pictures[0], np.ndarray) else None
    title = "Test examples and their reconstructions"
    return _grid(path, shown, images, title, rows=["input", "decoded"])


def draw_layers(path: Path, shown: Shown) -> bool:
    """Draws what the first layers of latents say of examples, from none of them to all."""
    some = rows_of(shown.examples, slice(COLUMNS))
    layers = np.unique(np.linspace(0, shown.model.layers, ROWS).round().astype(int))
    x = decoding.partial_reconstructions(shown.model, shown.params, some, layers.tolist())
    inputs = jax.vmap(lambda example: shown.model.parts(example)[0])(some)
    images = shown.pictures(np.concatenate([np.asarray(inputs)[None], x]), some)
    title = "Test examples from the first layers of z, the others at the prior's means"
    return _grid(path, shown, images, title, rows=["input", *map(str, layers)])


def draw_samples(path: Path, shown: Shown) -> bool:
    """Draws the decoder's means at draws of the prior."""
    some = rows_of(shown.examples, slice(SIDE * SIDE))
    x = decoding.prior_samples(shown.model, shown.params, shown.key, some)
    images = shown.pictures(x, some)
    if isinstance(images, np.ndarray):
        images = images.reshape(SIDE, SIDE, *images.shape[1:])
    return _grid(path, shown, images, "Decoder means at samples of the prior")


def draw_dictionary(path: Path, shown: Shown) -> bool:
    """Draws what each latent adds to the decoder's mean, on a scale of its own.

    Grey is no change. At most ``SIDE`` rows are drawn, of the latents that are used most.
    """
    z = shown.model.atoms(shown.params)[: SIDE * COLUMNS]  # type: ignore[misc]
    z = jnp.concatenate([jnp.zeros_like(z[:1]), z])
    x = decoding.decoded(shown.model, shown.params, z, 1, shown.condition())
    change = x[1:] - x[:1]
    largest = np.abs(change).reshape(len(change), -1).max(1)
    change /= np.maximum(largest, 1e-9).reshape(-1, *[1] * (change.ndim - 1))
    blank = np.ones((-len(change) % COLUMNS, *change.shape[1:]), change.dtype)
    tiles = np.concatenate([shown.pixel_max * (1 + change) / 2, shown.pixel_max * blank])
    images = shown.pictures(tiles.reshape(-1, COLUMNS, *change.shape[1:]), shown.one())
    return _grid(path, shown, images, "What each latent adds, from the most used one on")


def draw_interpolations(path: Path, shown: Shown) -> bool:
    """Draws straight lines between posterior means, where they do not leave the latents."""
    if not _is_flat(shown.posterior()):
        return False
    half = COLUMNS // 2
    starts, ends = (rows_of(shown.examples, slice(i, i + half)) for i in (0, half))
    x = decoding.interpolations(shown.model, shown.params, starts, ends, COLUMNS, shown.condition())
    title = "Straight lines between the posterior means of two test examples"
    return _grid(path, shown, shown.pictures(x, shown.one()), title)


def _is_flat(q: Any) -> bool:
    """Whether latents are numbers that can be moved: neither on a sphere nor whole."""
    return not _is_whole(q) and not isinstance(q, PowerSpherical | VonMisesFisher)


def _is_whole(q: Any) -> bool:
    """Whether latents are codes, whole numbers."""
    return any(jnp.issubdtype(a.dtype, jnp.integer) for a in jax.tree.leaves(mean_of(q)))


def draw_traversals(path: Path, shown: Shown) -> bool:
    """Draws the strongest latents, one at a time, from the posterior mean of an example.

    Latents that are maps [h, w, D] are too many to be drawn so. Latents that p(x|z) is no function
    of, such as the upper ones of a chain, are left out.
    """
    q = shown.posterior()
    center = mean_of(q)
    if not _is_flat(q) or not all(leaf.ndim in (1, 2) for leaf in jax.tree.leaves(center)):
        return False
    strengths = np.where(_are_decoded(shown, center), _strengths(shown), -np.inf)
    strongest = np.argsort(-strengths, kind="stable")[: min(COLUMNS, np.isfinite(strengths).sum())]
    values, columns = _values(q)
    x = decoding.traversals(
        shown.model, shown.params, center, strongest.tolist(), values, shown.condition()
    )
    names = _latent_names(center)
    title = "One latent at a time, from the posterior mean of a test example"
    images = shown.pictures(x, shown.one())
    return _grid(path, shown, images, title, [names[i] for i in strongest], columns)


def _are_decoded(shown: Shown, center: Any) -> np.ndarray:
    """Whether the mean of p(x|z) depends on each latent, by its gradient at z = center."""

    def value(z: Any) -> Array:
        x = shown.model.decode(shown.params, z, shown.condition()).mean  # type: ignore[misc]
        leaves = jax.tree.leaves(x)
        keys = jax.random.split(jax.random.key(0), len(leaves))
        pairs = zip(leaves, keys, strict=True)
        return sum((jax.random.normal(k, x.shape) * x).sum() for x, k in pairs)

    slopes = jax.tree.leaves(jax.jit(jax.grad(value))(center))
    each = [np.abs(leaf).reshape(len(leaf), -1).sum(1) > 0 for leaf in slopes]
    decoded = np.concatenate(each)
    return decoded if decoded.any() else np.ones_like(decoded)


def _strengths(shown: Shown) -> np.ndarray:
    """How much each latent says of an example: its mean KL, else its mean square.

    The latents are numbered through the leaves of z.
    """

    def one(example: Any) -> Array:
        model, params = shown.model, shown.params
        q = model.encode(params, example)  # type: ignore[misc]
        mean = mean_of(q)
        kl = None
        if model.prior is not None:
            kl = divergences.kl_per_latent(q, model.prior(params, model.parts(example)[1]))
        if isinstance(mean, jax.Array) and kl is not None and kl.shape == mean.shape[: kl.ndim]:
            return kl.reshape(len(mean), -1).sum(1)
        squares = [(leaf**2).reshape(len(leaf), -1).sum(1) for leaf in jax.tree.leaves(mean)]
        return jnp.concatenate(squares)

    some = rows_of(shown.examples, slice(2 * COLUMNS))
    return np.asarray(jax.jit(jax.vmap(one))(some)).mean(0)


def _values(q: Any) -> tuple[Array, list[str]]:
    """What a latent is set to, and the names of these values."""
    if isinstance(q, OneHotCategorical):
        classes = q.logits.shape[-1]
        return jnp.eye(classes), [str(c) for c in range(classes)]
    in_unit = isinstance(q, Bernoulli | Beta | Kumaraswamy | Truncated)
    values = jnp.linspace(0.0, 1.0, 5) if in_unit else jnp.linspace(-3.0, 3.0, 9)
    return values, [f"{value:g}" for value in np.round(values, 2)]


def _latent_names(center: Any) -> list[str]:
    """z_i, or z_{l,i} if z has several leaves l."""
    leaves = jax.tree.leaves(center)
    several = len(leaves) > 1
    return [
        f"$z_{{{f'{level + 1},' if several else ''}{i + 1}}}$"
        for level, leaf in enumerate(leaves)
        for i in range(len(leaf))
    ]


def draw_codes(path: Path, shown: Shown) -> bool:
    """Draws posterior means in two dimensions, coloured by label, if they are real numbers."""
    if _is_whole(shown.posterior()):
        return False
    means = jax.eval_shape(lambda: mean_of(shown.posterior()))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(means))
    some = random_subset(shown.split, min(CODES, max(CODE_NUMBERS // numbers, 2)))
    means = as_matrix(encode_split(shown.model, shown.params, shown.key, examples_of(some)))
    labels = some.y if isinstance(some, Split) else None
    if not isinstance(labels, np.ndarray) or labels.ndim != 1:
        labels = None
    title = "Posterior means of test examples"
    drawing.latent_scatter(path, means, labels, title, shown.classes)
    return True


def draw_curves(path: Path, shown: Shown) -> bool:
    """Draws the terms of the loss and the validation ELBO against the step."""
    if not shown.reports:
        return False
    drawing.curves(path, shown.reports, CURVES)
    return True


def draw_classes(path: Path, shown: Shown) -> bool:
    """Draws each class in a row. The draws in a column differ in their class alone."""
    classes = _classes(shown)
    x = decoding.class_samples(shown.model, shown.params, shown.key, len(classes), COLUMNS)
    title = "Samples of each class; a column has one draw of all else"
    return _grid(path, shown, shown.pictures(x, shown.one()), title, rows=classes)


def _classes(shown: Shown) -> tuple[str, ...]:
    """The names of the classes of a model that classifies, or their numbers."""
    classify: Any = shown.model.classify
    count = len(jax.eval_shape(classify, shown.params, shown.one()))
    return shown.classes if len(shown.classes) == count else tuple(map(str, range(count)))


def draw_confusion(path: Path, shown: Shown) -> bool:
    """Draws how many examples of a class have which guess, if labels are known."""
    judged = classification(shown.model, shown.params, shown.key, shown.split)
    if judged is None:
        return False
    title = f"Guesses of test examples, {judged.accuracy:.1%} right"
    drawing.matrix(path, np.array(judged.confusion), title, "class", "guess", _classes(shown))
    return True


def draw_unseen(path: Path, shown: Shown) -> bool:
    """Draws the guesses of unseen classes, among themselves, if labels are known."""
    judged = zero_shot(shown.model, shown.params, shown.key, shown.split)
    if judged is None:
        return False
    every = _classes(shown)
    names = [every[label] for label in shown.model.unseen]
    title = f"Unseen classes among themselves, {judged.zero_shot:.1%} right per class"
    drawing.matrix(path, np.array(judged.confusion), title, "class", "guess", names)
    return True


def draw_calibration(path: Path, shown: Shown) -> bool:
    """Draws accuracies of seen and unseen classes as unseen ones are preferred more and more."""
    known = log_classes_of_both(shown.model, shown.params, shown.key, shown.split)
    if known is None:
        return False
    judged = zero_shot_of(*known, shown.model.unseen)
    points = curve(*known, np.array(shown.model.unseen))
    drawing.trade(
        path,
        points,
        (judged.unseen, judged.seen),
        f"Accuracies among all classes, area {judged.curve_area:.3f}",
        ("unseen classes, U", "seen classes, S"),
    )
    return True


def draw_completions(path: Path, shown: Shown) -> bool:
    """Draws what a model of several views decodes from each view alone."""
    some = rows_of(shown.examples, slice(COLUMNS))
    x = decoding.completions(shown.model, shown.params, some)
    names = ["input", "all", *(name for name, _ in shown.model.views)]
    title = "Test examples, and all views decoded from all of them and from one"
    return _grid(path, shown, shown.pictures(x, some), title, rows=names)


FIGURES: dict[str, Figure] = {
    "reconstructions": Figure(("encode", "decode"), draw_reconstructions),
    "layers": Figure(("partly",), draw_layers),
    "samples": Figure(("draw", "decode"), draw_samples),
    "dictionary": Figure(("atoms", "decode"), draw_dictionary),
    "interpolations": Figure(("encode", "decode"), draw_interpolations),
    "traversals": Figure(("encode", "decode"), draw_traversals),
    "latents": Figure(("encode",), draw_codes),
    "classes": Figure(("classify", "draw", "decode"), draw_classes),
    "confusion": Figure(("classify",), draw_confusion),
    "unseen": Figure(("classify",), draw_unseen),
    "calibration": Figure(("classify",), draw_calibration),
    "completions": Figure(("seen", "encode", "decode"), draw_completions),
    "curves": Figure((), draw_curves),
}
