"""Classes without examples, named from their attributes (Gao et al. 2020; Xian et al. 2017).

``python experiments/papers/zero_shot.py [--dataset awa1.npz] [--held-out 10] [--json OUT]``

*zero-shot* is the accuracy of unseen classes among themselves. *unseen* and *seen* are accuracies
among all classes, *harmonic* is their harmonic mean, and *area* is the one under their curve over
all calibrations. All are means over classes. ``ridge`` is the Gaussian of linear regression of the
classes' means on attributes, with the covariance within classes. ``--held-out 10`` takes ten of the
seen classes for unseen ones and leaves out the others' examples. So settings are chosen.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import functools
from typing import Annotated, Any

import numpy as np
import tyro

from experiments import tables
from jaxvae import datasets, evaluation, runs, settings
from jaxvae.command_line import run_function
from jaxvae.families import preset
from jaxvae.models import zero_shot
from jaxvae.ranges import Positive, Whole

BASE = preset("zero-vae-gan")
ROWS: dict[str, Any] = {
    "ridge": None,
    "zero-vae-gan": BASE,
    "without critic": settings.changed(BASE, critic_weight=0.0),
    "decoder of z and attributes": settings.changed(BASE, generator="joint"),
    "seen classes alone": settings.changed(BASE, unseen_weight=0.0),
    "transductive": settings.changed(BASE, train_split="transductive"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    dataset: str = BASE.dataset
    """A set whose classes are described by attributes."""
    hidden: tuple[int, ...] = BASE.network.hidden
    latent: int = BASE.latent
    steps: int = BASE.steps
    batch_size: int = BASE.batch_size
    learning_rate: float = BASE.learning_rate
    examples: int | None = None
    held_out: Whole = 0
    """Seen classes that are taken for unseen ones, to choose settings on; 0 is the test."""
    held_out_seed: int = 0
    """Seed that chooses them."""
    ridge: Positive = 0.3
    """Weight of the squared norm in the regression of class means on attributes."""
    unseen_weight: float = BASE.unseen_weight
    """Weight of decoded features of unseen classes in the classifier's loss."""
    attribute_decay: float = BASE.generator.attribute_decay
    """Weight of the squared norm of the decoder's linear map of attributes."""
    critic_weight: float = BASE.critic_weight
    """Weight of the critic in the decoder's loss."""
    named_weight: float = BASE.named_weight
    """Weight of the classifier in the decoder's loss."""
    confidence: float = BASE.confidence
    """Least probability of a guess that stands for a missing label."""


def held_out(dataset: datasets.Dataset, count: int, seed: int) -> datasets.Dataset:
    """A set whose unseen classes are some of the seen ones; the unseen ones are left out."""
    train, rest = dataset.splits["train"], dataset.splits["validation"]
    seen = np.unique(train.y)
    if not 0 < count < len(seen):
        raise ValueError(f"--held-out {count}: there are {len(seen)} seen classes; leave some")
    taken = np.random.default_rng(seed).choice(seen, count, replace=False)
    among = np.isin(train.y, taken)
    unlabelled = train.take(among).replace(y=np.full(int(among.sum()), -1, np.int32))
    known, judged = train.take(~among), train.take(among)
    others = rest.take(~np.isin(rest.y, taken))
    table: Any = dataset.class_attributes
    number = np.full(len(table), -1)
    number[seen] = np.arange(len(seen))
    join = lambda a, b: datasets.Split(
        np.concatenate([a.x, b.x]), np.concatenate([a.y, b.y]).astype(np.int32)
    )
    renumbered = lambda split: split.replace(
        y=np.where(split.y < 0, -1, number[split.y]).astype(np.int32)
    )
    splits = {
        "train": known,
        "validation": others,
        "test": join(judged, others),
        "transductive": join(known, unlabelled),
    }
    names = tuple(dataset.classes[label] for label in seen)
    return dataset._replace(
        splits={name: renumbered(split) for name, split in splits.items()},
        classes=names,
        class_attributes=table[seen],
    )


def ridge_gaussian(dataset: datasets.Dataset, penalty: float) -> dict[str, float]:
    """p(x|a) = N(B a + b, S) in closed form, S pooled within seen classes, as a classifier."""
    train, test = dataset.splits["train"], dataset.splits["test"]
    table: Any = dataset.class_attributes
    seen = np.unique(train.y)
    unseen = tuple(np.setdiff1d(np.arange(len(table)), seen).tolist())
    x, judged = (part.x.reshape(len(part.x), -1).astype(float) for part in (train, test))
    known = zero_shot.constants(x, table, unseen)
    x, judged = ((each - known.mean) / known.scale for each in (x, judged))
    a = np.stack([zero_shot.described(known, row) for row in table]).astype(float)
    means = np.stack([x[train.y == c].mean(0) for c in seen])
    centre = means.mean(0)
    gram = a[seen].T @ a[seen] + penalty * np.eye(a.shape[1])
    fitted = a @ np.linalg.solve(gram, a[seen].T @ (means - centre)) + centre
    within = x - means[np.searchsorted(seen, train.y)]
    covariance = within.T @ within / len(x)
    covariance += 1e-6 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    white = np.linalg.inv(np.linalg.cholesky(covariance)).T
    each, at = judged @ white, fitted @ white
    log_p = each @ at.T - 0.5 * (at**2).sum(1)  # without what all classes share
    return columns(evaluation.zero_shot_of(log_p, np.asarray(test.y), unseen))


def columns(numbers: evaluation.ZeroShot) -> dict[str, float]:
    """The accuracies of a row by their names in the table."""
    return {
        "zero-shot": numbers.zero_shot,
        "unseen": numbers.unseen,
        "seen": numbers.seen,
        "harmonic": numbers.harmonic,
        "area": numbers.curve_area,
    }


def measure(run: runs.Run, params: Any) -> dict[str, float]:
    """The numbers of a trained row."""
    found = evaluation.zero_shot(run.built.model, params, run.key, run.test)
    if found is None:
        raise ValueError(f"{run.dataset.name} has no test examples of seen and of unseen classes")
    return columns(found)


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """How well classes without examples are named."""
    rows = options.chosen(ROWS)
    dataset = datasets.load(options.dataset, options.data_dir)
    if dataset.class_attributes is None:
        raise ValueError(f"--dataset {options.dataset} has no attributes of its classes")
    if options.held_out:
        dataset = held_out(dataset, options.held_out, options.held_out_seed)
    results: tables.Results = {}
    if "ridge" in rows:
        cell = ridge_gaussian(dataset, options.ridge) | {"seconds": float("nan")}
        results["ridge"] = [cell] * options.seeds
        print("ridge:", ", ".join(f"{name} {value:.4g}" for name, value in cell.items()))
    trained = {name: configuration(options, row) for name, row in rows.items() if row is not None}
    train = functools.partial(tables.trained, data=dataset)
    results |= tables.measured(trained, options, measure, train)
    tables.show(results)
    tables.save(options.json, dataclasses.asdict(options), results)


def configuration(options: Options, row: Any) -> Any:
    """A row with what is set for all rows, but for what makes it this row."""
    names = ("unseen_weight", "attribute_decay", "critic_weight", "named_weight", "confidence")
    known = dict(settings.settings_of(row))
    base = dict(settings.settings_of(BASE))
    more = {
        name: getattr(options, name)
        for name in names
        if name in known and known[name].value == base[name].value
    }
    return options.applied(row, **more)


if __name__ == "__main__":
    run_function(main)
