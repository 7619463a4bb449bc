"""The command ``edit``, which moves examples along an attribute vector, or to another class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxvae import evaluation, figures
from jaxvae.datasets import random_subset, shapes
from jaxvae.datasets.splits import MISSING
from jaxvae.families import Data
from jaxvae.ranges import Count
from jaxvae.runs import folders, reports
from jaxvae.runs.commands import Opened, opened
from jaxvae.uses import latents

AT_ONCE = 16  # counterfactuals that are computed at once
REACHED = 0.01  # log-odds that a counterfactual may be off its target
EDITED = 200  # test examples that the shares are counted on, at most


class Edits(NamedTuple):
    """Test examples without an attribute, as the model takes them, with latents and conditions."""

    x: Any  # [N, ...]
    z: Any
    conditions: Any


def edit(
    workdir: Annotated[Path, tyro.conf.Positional],
    attribute: str,
    balance: str | None = None,
    amounts: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5),
    num: Count = 8,
    odds: float = 0.0,
    encodings: Count = 5000,
    checkpoint: str = "latest",
    dataset: str | None = None,
    data_dir: str | None = None,
) -> None:
    """Gives test examples an attribute: along a vector of latents, and by the least change.

    Writes edits.npz, counterfactuals.npz, edits.json and pictures of both. The vector is the mean
    latent of training examples with the attribute, less the mean latent of the others. A
    counterfactual is the nearest latent whose decoding a linear classifier takes for the attribute.

    Args:
      workdir: the run folder, or an exported folder.
      attribute: a class, by its name or number, or a factor of the set shapes, whose upper half
        counts as having it.
      balance: label, or a factor of the set shapes, that the vector holds fixed.
      amounts: how many vectors are added.
      num: test examples that the pictures show.
      odds: the log-odds of the attribute that a counterfactual has.
      encodings: training examples that the vector and the classifier are made of, a fixed random
        subset.
      checkpoint: latest, best, or a step.
      dataset: data set, if it has moved since the training.
      data_dir: folder of prepared sets, if it has moved since the training.
    """
    if not amounts:
        raise ValueError("--amounts needs one number at least")
    run = opened(workdir, checkpoint, dataset, data_dir)
    evaluation.columns.require(run.built.model, "jaxvae edit", "encode", "decode")
    if run.built.decodings:
        raise ValueError("jaxvae edit is for images and vectors, and this is a model of sentences")
    train = labelled(run.split(run.record.config.train_split, encodings))
    has = has_attribute(train, run.data, attribute)
    groups = None if balance is None else values_of(train, balance)
    z = evaluation.encode_split(run.built.model, run.params, run.key, train)
    latents.check_real(z)
    vector = latents.attribute_vector(z, has, groups)
    weights, accuracy = classifier(run, train, has)
    edits = _without(run, attribute)
    moved = _moved(run, edits, vector, jnp.asarray(amounts))
    odds_moved = moved.reshape(*moved.shape[:2], -1) @ weights.of_x.reshape(-1) + weights.bias
    found = _counterfactuals(run, edits, weights, odds)
    _write(workdir, amounts, edits, vector, moved, found, weights)
    _draw(run, workdir / "figures", num, amounts, edits, moved, found)
    reached = np.abs(found.score - odds) < REACHED
    distance = float(np.median(found.distance[reached])) if reached.any() else None
    numbers = {
        "attribute": attribute,
        "examples": len(edits.x),
        "classifier_accuracy": accuracy,
        "share_with_attribute": dict(
            zip(map(str, amounts), (odds_moved > 0).mean(1).tolist(), strict=True)
        ),
        "length_of_vector": float(np.linalg.norm(_flat(vector))),
        "counterfactual_distance": distance,
        "counterfactuals_at_target": float(reached.mean()),
    }
    folders.write_json(workdir / "edits.json", numbers)
    reports.table(_rows(numbers, workdir))


def _rows(numbers: dict[str, Any], workdir: Path) -> list[tuple[str, str]]:
    shares, distance = numbers["share_with_attribute"].items(), numbers["counterfactual_distance"]
    far = "none reaches the target" if distance is None else f"{distance:.3f} (median)"
    return [
        ("examples without it", str(numbers["examples"])),
        ("classifier's accuracy", f"{numbers['classifier_accuracy']:.2%}"),
        *((f"taken for it at {t} vectors", f"{share:.1%}") for t, share in shares),
        ("length of the vector", f"{numbers['length_of_vector']:.3f}"),
        ("distance of a counterfactual", far),
        ("counterfactuals at the target", f"{numbers['counterfactuals_at_target']:.1%}"),
        ("written", f"{workdir / 'edits.npz'}, {workdir / 'counterfactuals.npz'}"),
    ]


# Attributes


def labelled(split: Any) -> Any:
    """The examples whose label is not missing; all of them if there are no labels."""
    y = np.asarray(split.y)
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        return split
    return split.take(np.flatnonzero(y != MISSING))


def values_of(split: Any, name: str) -> np.ndarray:
    """A factor of the set shapes, or the labels, of every example. Raises ValueError for others."""
    if name == "label" and split.y is not None:
        return np.asarray(split.y)
    if isinstance(split.x, shapes.Images) and name in shapes.NAMES:
        return np.asarray(split.x.factors)[:, shapes.NAMES.index(name)]
    there = ["label"] if split.y is not None else []
    there += shapes.NAMES if isinstance(split.x, shapes.Images) else []
    raise ValueError(f"no {name!r} to balance; there is {', '.join(there) or 'nothing'}")


def has_attribute(split: Any, data: Data, name: str) -> np.ndarray:
    """Whether each example is of a class, or in the upper half of a factor.

    Raises ValueError if the set has no such class or factor.
    """
    if isinstance(split.x, shapes.Images) and name in shapes.NAMES:
        values = values_of(split, name)
        return values > np.median(values)
    numbers = [str(i) for i in range(data.num_classes)]
    for names in (list(data.classes), numbers):
        if name in names:
            return np.asarray(split.y) == names.index(name)
    factors = ", ".join(shapes.NAMES) if isinstance(split.x, shapes.Images) else ""
    classes = f"0 to {data.num_classes - 1}" if data.num_classes else ""
    there = ", ".join(filter(None, [classes, ", ".join(data.classes), factors]))
    raise ValueError(
        f"no attribute {name!r}; there is {there or 'none, for the set has no labels'}"
    )


class Linear(NamedTuple):
    """The log-odds w.x + b of an attribute."""

    of_x: np.ndarray
    bias: float


def classifier(run: Opened, train: Any, has: np.ndarray) -> tuple[Linear, float]:
    """Logistic regression of an attribute on x, and its accuracy on the examples."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise ValueError("jaxvae edit needs scikit-learn: pip install 'jaxvae[train]'") from None
    x = _parts(run, evaluation.preprocessed_split(run.key, train))[0]
    rows = np.asarray(x).reshape(len(x), -1)
    fitted = LogisticRegression(C=0.1, max_iter=500).fit(rows, has)
    weights = Linear(
        fitted.coef_[0].reshape(x.shape[1:]).astype(np.float32), float(fitted.intercept_[0])
    )
    return weights, float(fitted.score(rows, has))


def _parts(run: Opened, examples: Any) -> tuple[Any, Any]:
    return jax.vmap(run.built.model.parts)(examples)


# Edits


def _without(run: Opened, attribute: str) -> Edits:
    """Test examples without the attribute."""
    test = labelled(run.split(run.record.config.test_split))
    rows = np.flatnonzero(~has_attribute(test, run.data, attribute))
    test = random_subset(test.take(rows), EDITED)
    z = evaluation.encode_split(run.built.model, run.params, run.key, test)
    x, conditions = _parts(run, evaluation.preprocessed_split(run.key, test))
    return Edits(x, z, conditions)


def _moved(run: Opened, edits: Edits, vector: Any, amounts: Any) -> np.ndarray:
    """The means of p(x|z + t v) for each t and each example, [T, N, ...]."""
    model: Any = run.built.model
    one = lambda each: latents.edited(model, run.params, each[0], vector, amounts, each[1])
    images = jax.jit(lambda each: jax.lax.map(one, each, batch_size=AT_ONCE))
    return np.swapaxes(np.asarray(images((edits.z, edits.conditions))), 0, 1)


def _counterfactuals(
    run: Opened, edits: Edits, weights: Linear, odds: float
) -> latents.Counterfactual:
    w = jnp.asarray(weights.of_x)

    def one(each: tuple) -> latents.Counterfactual:
        z, condition = each
        score = lambda x: (w * x).sum() + weights.bias
        return latents.counterfactual(run.built.model, run.params, z, score, odds, condition)

    every = jax.jit(lambda each: jax.lax.map(one, each, batch_size=AT_ONCE))
    return jax.tree.map(np.asarray, every((edits.z, edits.conditions)))


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _numbered(name: str, tree: Any) -> dict[str, np.ndarray]:
    """The leaves of latents, as z, z1, ..."""
    return {f"{name}{i or ''}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def _write(
    workdir: Path,
    amounts: tuple[float, ...],
    edits: Edits,
    vector: Any,
    moved: np.ndarray,
    found: latents.Counterfactual,
    weights: Linear,
) -> None:
    """Writes the arrays.

    Args:
      workdir: the folder of the run.
      amounts: how many vectors were added.
      edits: the examples.
      vector: the attribute vector.
      moved: the images [T, N, ...].
      found: the counterfactuals.
      weights: of the classifier.
    """
    arrays: dict[str, Any] = {"x": moved, "amounts": np.asarray(amounts)}
    arrays |= _numbered("z", edits.z) | _numbered("vector", vector)
    np.savez(workdir / "edits.npz", **arrays)
    arrays = {"x": found.x, "score": found.score, "distance": found.distance}
    arrays |= {"weights": weights.of_x, "bias": weights.bias}
    np.savez(workdir / "counterfactuals.npz", **arrays | _numbered("z", found.z))


def _draw(
    run: Opened,
    folder: Path,
    num: int,
    amounts: tuple[float, ...],
    edits: Edits,
    moved: np.ndarray,
    found: latents.Counterfactual,
) -> None:
    """Draws edits.png and counterfactuals.png.

    Args:
      run: the run.
      folder: where they go.
      num: examples that they show.
      amounts: how many vectors were added.
      edits: the examples.
      moved: the images [T, N, ...].
      found: the counterfactuals.
    """
    conditions = jax.tree.map(lambda leaf: leaf[:num], edits.conditions)
    folder.mkdir(exist_ok=True)

    def draw(file: str, title: str, rows: dict[str, Any]) -> None:
        shown = [np.asarray(run.built.pictures(x[:num], conditions)) for x in rows.values()]
        figures.grid(folder / file, np.stack(shown) / run.data.pixel_max, title, list(rows))

    vectors = {f"{t:g} v": x for t, x in zip(amounts, moved, strict=True)}
    draw("edits.png", "Attribute vectors added", {"x": edits.x} | vectors)
    draw("counterfactuals.png", "The least changes", {"x": edits.x, "changed": found.x})
