"""The command ``score``, which says how anomalous examples are for a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from jaxvae import datasets, figures
from jaxvae.datasets import alterations
from jaxvae.figures import drawing
from jaxvae.ranges import Count
from jaxvae.runs import commands, folders, reports
from jaxvae.uses import anomalies

SHOWN = 10  # most anomalous images in a picture, of each score
FOR_ENTROPY = 1000  # training examples whose mean log-likelihood typicality compares with


def score(
    workdir: Annotated[Path, tyro.conf.Positional],
    data: Annotated[str | None, tyro.conf.Positional] = None,
    against: str | None = None,
    alter: Literal[("none", *alterations.ALTERATIONS)] = "none",  # type: ignore[valid-type]
    anomalous_class: str | None = None,
    scores: tuple[Literal[anomalies.SCORES], ...] = (),  # type: ignore[valid-type]
    split: str | None = None,
    against_split: str | None = None,
    num_examples: Count = 500,
    num_samples: Count = 64,
    regret_steps: Count = 100,
    resamples: Count = 500,
    checkpoint: str = "latest",
    data_dir: str | None = None,
    out: Path | None = None,
) -> None:
    """Scores how anomalous examples are, and how well that tells another set apart.

    Writes scores.npz and scores.json, and draws histograms and the most anomalous images. With
    --against, --alter or --anomalous-class it reports AUROC, average precision and false positives
    at 95 % detection. Both sets have the same number of examples if they hold so many.

    Args:
      workdir: the run folder.
      data: set or file of examples like the training data; None is the run's own.
      against: set or file of anomalous examples. Images of another size are scaled.
      alter: how the anomalous examples are changed: dimmed to a quarter, rotated by 90 degrees or
        inverted. Without --against they are the examples of data.
      anomalous_class: number or name of a class of data whose examples are the anomalous ones.
      scores: the scores; none are all that model and data have.
      split: split of data; None is the run's test split.
      against_split: split of the anomalous set; None is test, or the first.
      num_examples: examples of each set, a fixed random subset.
      num_samples: draws of z for a bound or a log-likelihood.
      regret_steps: gradient steps on the posterior of each example, for the regret.
      resamples: draws of the bootstrap for intervals.
      checkpoint: latest, best, or a step.
      data_dir: folder of prepared sets, if it has moved since the training.
      out: folder of what is written; None is WORKDIR/anomalies/NAME.
    """
    if anomalous_class is not None and (against or alter != "none"):
        raise ValueError("--anomalous-class takes both sets from data: leave out the other flags")
    run = commands.opened(workdir, checkpoint, data, data_dir)
    inside = run.split(split or run.record.config.test_split)
    outside, name = None, "examples"
    if anomalous_class is not None:
        inside, outside = _by_class(inside, run.dataset.classes, anomalous_class)
        name = f"class-{anomalous_class}"
    elif against or alter != "none":
        outside = _anomalous(run, against, alter, against_split or split, data_dir)
        source = "" if against is None else Path(against).stem
        name = "-".join(filter(None, (source, "" if alter == "none" else alter)))
    parts = {"inside": datasets.random_subset(inside, num_examples)}
    if outside is not None:
        parts["outside"] = datasets.random_subset(outside, num_examples)
    settings = anomalies.Settings(num_samples, regret_steps)
    found = _scored(run, parts, tuple(scores), settings)
    folder = out or workdir / "anomalies" / name
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, run, parts, found, resamples)


def _by_class(split: Any, classes: tuple[str, ...], label: str) -> tuple[Any, Any]:
    """The examples of all other classes, and of one."""
    if split.y is None:
        raise ValueError("--anomalous-class needs a set with labels, and this one has none")
    labels = np.asarray(split.y)
    known = list(classes) or [str(i) for i in range(int(labels.max()) + 1)]
    if label not in known and not (label.isdigit() and int(label) < len(known)):
        raise ValueError(f"--anomalous-class {label}: the classes are {', '.join(known)}")
    number = known.index(label) if label in known else int(label)
    of_class = labels == number
    return split.take(np.flatnonzero(~of_class & (labels >= 0))), split.take(
        np.flatnonzero(of_class)
    )


def _anomalous(
    run: commands.Opened, source: str | None, alter: str, split: str | None, data_dir: str | None
) -> Any:
    """The anomalous examples, as the model takes them."""
    data, config = run.data, run.record.config
    if source is None:
        part, levels = datasets.select(run.dataset, split or config.test_split), data.levels
    else:
        dataset = datasets.load(source, data_dir or run.record.place["data_dir"])
        names = list(dataset.splits)
        default = "test" if "test" in names else names[0]
        part, levels = datasets.select(dataset, split or default), dataset.levels
    part = commands.in_memory(part)
    if alter != "none":
        part = alterations.altered(part, alter, levels)
    if source is not None:
        wanted = data.raw_levels or data.levels
        if tuple(part.shape) != data.shape or levels != wanted:
            reports.say(
                f"examples of shape {tuple(part.shape)} are made like {data.shape}; a score may "
                "find the traces of that"
            )
            part = alterations.images_like(part, levels, data.shape, wanted)
        part = datasets.prepared(part, data.pixels, wanted, run.record.data_seed)
    return run.built.split(part)


def _scored(
    run: commands.Opened,
    parts: dict[str, Any],
    names: tuple[str, ...],
    settings: anomalies.Settings,
) -> dict[str, dict[str, np.ndarray]]:
    """The scores of each part by name. Without names they are all that can be had."""
    model, entropy = run.built.model, None
    found: dict[str, dict[str, np.ndarray]] = {}
    if not names or "typicality" in names:
        train = datasets.random_subset(run.split(run.record.config.train_split), FOR_ENTROPY)
        entropy = anomalies.entropy_of(model, run.params, run.key, train, settings)
    for number, (part, examples) in enumerate(parts.items()):
        key, found[part] = jax.random.fold_in(run.key, number), {}
        for name in names or anomalies.SCORES:
            try:
                found[part] |= anomalies.scores(
                    model, run.params, key, examples, [name], entropy=entropy, settings=settings
                )
            except ValueError as error:
                if names:
                    raise
                if number == 0:
                    reports.say(f"without {name}: {error}")
    return found


def _write(
    folder: Path,
    run: commands.Opened,
    parts: dict[str, Any],
    found: dict[str, dict[str, np.ndarray]],
    resamples: int,
) -> None:
    """Writes and prints all that was found."""
    arrays = {f"{part}_{name}": v for part, columns in found.items() for name, v in columns.items()}
    np.savez(folder / "scores.npz", **arrays)  # type: ignore[arg-type]
    numbers, rows = {}, []
    for name, inside in found["inside"].items():
        outside = found["outside"][name] if "outside" in found else None
        numbers[name], row = _summary(inside, outside, resamples)
        rows.append((name, row))
    sizes = {part: datasets.num_examples(examples.x) for part, examples in parts.items()}
    folders.write_json(folder / "scores.json", {"examples": sizes, "scores": numbers})
    title = "Scores of examples; higher is more anomalous"
    drawing.histograms(folder / "histograms.png", found, title)
    written = ["scores.npz", "scores.json", "histograms.png"]
    if len(run.data.shape) == 3:
        _draw_most(folder / "most_anomalous.png", run, parts, found)
        written.append("most_anomalous.png")
    print(" and ".join(f"{count} examples {part}" for part, count in sizes.items()))
    reports.table([*rows, ("written", ", ".join(str(folder / name) for name in written))])


def _summary(
    inside: np.ndarray, outside: np.ndarray | None, resamples: int
) -> tuple[dict[str, Any], str]:
    """The numbers of one score, and the same in words."""
    numbers: dict[str, Any] = {
        "median": float(np.median(inside)),
        "threshold": anomalies.threshold(inside),  # which one in a hundred exceeds
        "highest": float(inside.max()),
    }
    if outside is None:
        return numbers, (
            f"median {numbers['median']:.2f}, 1 % above {numbers['threshold']:.2f}, "
            f"highest {numbers['highest']:.2f}"
        )
    told = anomalies.detection(inside, outside, resamples)
    numbers |= {measure: list(value) for measure, value in told._asdict().items()}
    words = f"AUROC {told.auroc}, average precision {told.average_precision}"
    return numbers, f"{words}, false positives {told.false_positives}"


def _draw_most(path: Path, run: commands.Opened, parts: Any, found: Any) -> None:
    """Draws the images with the highest scores, a row for each score."""
    x = np.concatenate([_images(run, examples) for examples in parts.values()])
    names, rows = list(found["inside"]), []
    for name in names:
        every = np.concatenate([columns[name] for columns in found.values()])
        rows.append(x[np.argsort(-every, kind="stable")[:SHOWN]])
    figures.grid(path, np.stack(rows), "Most anomalous of all examples, by score", names)


def _images(run: commands.Opened, examples: Any) -> np.ndarray:
    """The images of a split in [0, 1], as they are in the set."""
    raw = examples.x.x if run.built.pairs else examples.x
    x = np.asarray(raw, np.float32)
    return x / max((run.data.levels or 2) - 1, 1) if x.max() > 1 else x
