"""Reports of a run: lines of metrics, the result of the final parameters, tables."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvae import evaluation, processes, sounds
from jaxvae.contracts import Array, Params
from jaxvae.families import Built, Data
from jaxvae.runs.trackers import Tracker

SPEEDS: dict[str, Callable[[float], str]] = {  # name in metrics.jsonl -> how it is printed
    "images_per_second": lambda value: f"{value:,.0f} images/s",
    "flops_per_second": lambda value: f"{value / 1e9:,.1f} GFLOP/s",
    "share_of_peak": lambda value: f"{value:.1%} of the devices' peak",
}

# what is shown of tqdm's bar, so that the terms of the loss fit beside it into 100 columns
BAR = "{desc}: {percentage:.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def say(sentence: str) -> None:
    """Prints a sentence, once in a job of several processes."""
    if processes.is_first():
        print(sentence, flush=True)


class Metrics:
    """The lines of ``metrics.jsonl`` and ``validation.jsonl``, TensorBoard, trackers, and a bar.

    Lines of steps after ``start`` are dropped. A run that was killed has left them, and their steps
    are run again. In a job of several processes only the first one writes.
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        steps: int,
        progress: bool,
        cost: Callable,
        trackers: Sequence[Tracker] = (),
    ):
        """Opens the files.

        Args:
          workdir: the run folder.
          start: the step at which training begins.
          steps: the step at which training ends.
          progress: whether to show a bar.
          cost: images per second -> further figures.
          trackers: where the same numbers go.
        """
        self.workdir, self.cost, self.writes = workdir, cost, processes.is_first()
        self.bar = _bar(steps, start, progress and self.writes)
        self.board = self._open(start) if self.writes else None
        self.trackers = trackers

    def _open(self, start: int) -> Any:
        for name in ("metrics.jsonl", "validation.jsonl"):
            kept = [line for line in read_lines(self.workdir / name) if line["step"] <= start]
            partial = self.workdir / f"{name}.partial"
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
            partial.replace(self.workdir / name)
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(self.workdir / "tensorboard"), purge_step=start + 1)

    def report(self, step: int, report: dict[str, Any]) -> None:
        """Writes the means of all terms since the last report."""
        report |= self.cost(report["images_per_second"])
        if self.bar is not None:
            names = {"loss": "loss", "reconstruction": "reconstruction", "kl": "KL"}
            shown = {n: f"{report[term]:.2f}" for term, n in names.items() if _known(report, term)}
            speed = f"{report['images_per_second']:,.0f}"
            self.bar.set_description_str("training", refresh=False)
            self.bar.set_postfix(shown | {"images/s": speed})
            self.bar.update(step - self.bar.n)
        self._write("metrics.jsonl", step, report)

    def validate(self, step: int, score: float) -> None:
        """Writes the score of a checkpoint."""
        self._write("validation.jsonl", step, {"validation_elbo": score})

    def _write(self, name: str, step: int, values: dict[str, Any]) -> None:
        if not self.writes:
            return
        with (self.workdir / name).open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        for term, value in values.items():
            if self.board is not None and value is not None:
                self.board.add_scalar(term, value, step)
        for tracker in self.trackers:
            tracker.report(step, {n: v for n, v in values.items() if v is not None})

    def close(self) -> None:
        """Ends the bar, and flushes TensorBoard and the trackers."""
        for part in (self.bar, self.board, *self.trackers):
            if part is not None:
                part.close()


def _known(report: dict[str, Any], term: str) -> bool:
    return report.get(term) is not None


def _bar(steps: int, start: int, shown: bool) -> Any:
    if not shown:
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    what = "training" if start == steps else "training: compiling"  # until the first report
    return tqdm(total=steps, initial=start, desc=what, dynamic_ncols=True, bar_format=BAR)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file, without a last line that a kill has cut off."""
    lines = file.read_text().splitlines() if file.exists() else []
    whole = []
    for number, line in enumerate(lines):
        try:
            whole.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise ValueError(
                    f"{file}, line {number + 1} is not JSON; move the file away to go on"
                ) from None
    return whole


def speeds(reports: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The median speeds in the lines of ``metrics.jsonl``."""
    values = {name: [line[name] for line in reports if name in line] for name in SPEEDS}
    return {name: statistics.median(each) for name, each in values.items() if each}


def results(
    built: Built,
    data: Data,
    params: Params,
    key: Array,
    split: Any,
    num_samples: int,
    batch_size: int = 50,
) -> dict[str, Any]:
    """ELBO, log-likelihood and bits/dim of a split, with their terms and errors.

    A number is None if the model has no answer for it, as the ELBO of a deterministic encoder.

    Args:
      built: the model.
      data: what is known of its data.
      params: its parameters.
      key: the key of all that is drawn.
      split: as ``built.split`` makes it.
      num_samples: importance samples for each example, K.
      batch_size: examples at once.
    """
    model = built.model
    found: dict[str, Any] = {"elbo": None, "log_likelihood": None}
    if model.terms is not None:
        summary = evaluation.evaluate_elbo(model, params, key, split)
        found |= {
            "elbo": summary.elbo,
            "elbo_standard_error": summary.standard_error,
            "reconstruction": summary.reconstruction,
            "kl": summary.kl,
            "kl_per_latent": summary.kl_per_latent,
            "active_units": summary.active_units,
            "num_examples": summary.num_examples,
        }
        found |= {"terms": summary.terms} if summary.terms else {}
        if summary.elbo is None:
            return found
    if model.classify is not None:
        classes = evaluation.classification(model, params, key, split)
        found |= {} if classes is None else {"classification": classes._asdict()}
        described = evaluation.zero_shot(model, params, key, split)
        found |= {} if described is None else {"zero_shot": described._asdict()}
    if model.codes is not None:
        usage = evaluation.code_usage(model, params, key, split)
        found["codes"] = [each._asdict() for each in usage]
    if model.log_weights is not None:
        found |= _likelihood(built, data, params, key, split, num_samples, batch_size)
    if built.measures is not None:
        found["measures"] = built.measures(model, params, key, split, found)
    return found


def _likelihood(
    built: Built,
    data: Data,
    params: Params,
    key: Array,
    split: Any,
    num_samples: int,
    batch_size: int,
) -> dict[str, Any]:
    with counter(len(jax.tree.leaves(split.x)[0]), f"log p(x), K = {num_samples}") as done:
        estimate = evaluation.estimate_log_likelihood(
            built.model,
            params,
            key,
            split,
            num_samples=num_samples,
            batch_size=batch_size,
            progress=done,
        )
    scaled = data.pixels in ("scale", "dequantize")
    if built.dimensions is not None:
        size = built.dimensions(split)
    else:
        size = math.prod(_example_shape(built, data, key, split))
    value, unit = evaluation.per_dimension(
        estimate.log_likelihood, size, data.levels, built.discrete, scaled
    )
    return {
        "log_likelihood": estimate.log_likelihood,
        "standard_error": estimate.standard_error,
        "effective_samples": estimate.effective_samples,
        "pareto_k": estimate.pareto_k,
        "pareto_k_above_0.7": estimate.pareto_k_above,
        "num_samples": estimate.num_samples,
        "num_examples": estimate.num_examples,
        "bits_per_dim" if unit == "bits/dim" else "nats_per_dim": value,
        "warning": estimate.warning,
    }


def _example_shape(built: Built, data: Data, key: Array, split: Any) -> tuple[int, ...]:
    """The shape of the x that the likelihood explains."""
    first = jax.tree.map(lambda a: a[0], split.x)
    shape = jax.eval_shape(lambda: built.model.parts(built.preprocess(key, first))[0])
    return tuple(jax.tree.leaves(shape)[0].shape)


class counter:
    """A bar of examples, which ends with the block."""

    def __init__(self, total: int, title: str, unit: str = "image"):
        try:
            from tqdm import tqdm
        except ImportError:
            self.bar: Any = None
            return
        quiet = not processes.is_first()
        self.bar = tqdm(total=total, unit=unit, desc=title, leave=False, disable=quiet)

    def __enter__(self) -> Callable[[int], None]:
        return lambda done: None if self.bar is None else self.bar.update(done - self.bar.n)

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def write_sounds(folder: Path, audible: sounds.Audible, name: str, x: Any) -> None:
    """Writes each x [N, ...] as a wav file, ``name-1.wav`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(np.asarray(x), 1):
        file = folder / f"{name}-{number}.wav"
        sounds.write_wave(file, audible.signal(one), audible.sample_rate)


def table(rows: Sequence[tuple[str, str]]) -> None:
    """Prints names beside values."""
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def result_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of a result that ``train`` and ``evaluate`` print."""
    rows = []
    if found["elbo"] is not None:
        rows = [
            ("ELBO", f"{found['elbo']:.3f} ± {found['elbo_standard_error']:.3f} nats"),
            ("  reconstruction", f"{found['reconstruction']:.3f} nats"),
            ("  KL", f"{found['kl']:.3f} nats{_units(found)}"),
        ]
    elif "reconstruction" in found:
        rows = [("reconstruction", f"{found['reconstruction']:.3f} nats{_units(found)}")]
    for name, value in found.get("terms", {}).items():
        rows.append((f"  {name}", f"{value:.3f} nats"))
    rows += _class_rows(found.get("classification")) + _zero_shot_rows(found.get("zero_shot"))
    for codes in found.get("codes", []):
        share, diversity = codes["usage"], codes["perplexity"]
        text = f"{share:.1%} of {codes['num_codes']} in use, perplexity {diversity:.1f}"
        rows.append(("codes", text))
    if found["log_likelihood"] is not None:
        rows += _likelihood_rows(found)
    measures = found.get("measures", {})
    return rows + [(name.replace("_", " "), f"{value:.4g}") for name, value in measures.items()]


def _class_rows(classes: dict[str, Any] | None) -> list[tuple[str, str]]:
    if classes is None:
        return []
    return [
        ("accuracy", f"{classes['accuracy']:.2%} ± {classes['standard_error']:.2%}"),
        ("  cross-entropy", f"{classes['cross_entropy']:.4f} nats"),
        ("  calibration error", f"{classes['calibration_error']:.2%}"),
        ("  entropy of the mean guess", f"{classes['guess_entropy']:.3f} nats"),
    ]


def _zero_shot_rows(numbers: dict[str, Any] | None) -> list[tuple[str, str]]:
    if numbers is None:
        return []
    rows = {
        "unseen classes, among themselves": numbers["zero_shot"],
        "  among all classes, U": numbers["unseen"],
        "seen classes, among all, S": numbers["seen"],
        "  harmonic mean of U and S": numbers["harmonic"],
        "  area under the curve of U and S": numbers["curve_area"],
    }
    return [(name, f"{value:.2%}") for name, value in rows.items()]


def _units(found: dict[str, Any]) -> str:
    units = found["active_units"]
    return "" if units is None else f", {units} active units"


def _likelihood_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    k, share = found["pareto_k"], found["pareto_k_above_0.7"]
    tail = "unknown, too few samples"
    if k is not None:
        tail = f"{k:.2f}, above 0.7 for {share:.1%} of the images"
    estimate = f"{found['log_likelihood']:.3f} ± {found['standard_error']:.3f} nats"
    samples = f"K = {found['num_samples']} importance samples, {found['num_examples']} images"
    unit = "bits_per_dim" if "bits_per_dim" in found else "nats_per_dim"
    rows = [
        ("log-likelihood", f"{estimate} ({samples})"),
        ("  effective samples", f"{found['effective_samples']:.0f} of {found['num_samples']}"),
        ("  Pareto k", tail),
        (unit.replace("_per_", "/"), f"{found[unit]:.4f}"),
    ]
    return rows + ([("  warning", found["warning"])] if found["warning"] else [])
