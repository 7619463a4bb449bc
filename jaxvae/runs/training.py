"""Trains the model of a configuration in a run folder, with checkpoints and a result."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxvae import checkpoints, costs, datasets, evaluation, families, figures, processes, training
from jaxvae.families import Config, family_of
from jaxvae.runs import folders, reports, trackers
from jaxvae.runs.loading import Trained, of_run
from jaxvae.runs.preparing import Job, Run, batch_shapes, load_data, prepare
from jaxvae.stopping import Stop

SOUNDS = 4  # test examples that a model of sound leaves to hear


def train(
    config: Config | str = "digits",
    workdir: str | Path | None = None,
    *,
    data: Any = None,
    start_from: str | Path | None = None,
    progress: bool = True,
    report: trackers.Report | None = None,
    **settings: Any,
) -> Trained:
    """Trains a model in a run folder, or goes on where the folder's run stopped.

    The folder gets checkpoints, metrics, figures and ``result.json``. The same call resumes a run
    that was stopped, bit for bit. ``steps`` and the reports may differ. Other settings make a new
    run, which may start from the parameters of another run.

    Args:
      config: a configuration, or the name of a preset.
      workdir: the run folder; None is ``runs/PRESET-DATASET-SEED``, or the next free name.
      data: a data set in place of ``config.dataset``, as ``datasets.load`` takes it.
      start_from: run folder whose parameters a new run starts from.
      progress: whether to show a progress bar.
      report: is called with (step, values by name) whenever a line of metrics is written.
      settings: other values for settings of the configuration, and fields of ``Job``.

    Returns the trained model. Raises ValueError if settings do not go together.

    >>> import tempfile, numpy as np, jaxvae
    >>> folder = tempfile.mkdtemp()
    >>> arrays = np.eye(16, dtype="uint8").reshape(16, 4, 4, 1)
    >>> model = jaxvae.train("digits", folder, data=arrays, steps=2, progress=False)
    ... # doctest: +SKIP
    """
    name = config if isinstance(config, str) else family_of(config)
    chosen: Any = families.preset(config) if isinstance(config, str) else config
    for_job = {field.name for field in dataclasses.fields(Job)}
    job = Job(**{n: value for n, value in settings.items() if n in for_job})
    rest = {n: value for n, value in settings.items() if n not in for_job}
    chosen = families.changed(chosen, **rest)
    return train_in(name, chosen, job, workdir, data, start_from, progress, report=report)


def train_in(
    name: str,
    config: Config,
    job: Job,
    workdir: str | Path | None = None,
    data: Any = None,
    start_from: str | Path | None = None,
    progress: bool = True,
    stop: Stop | None = None,
    report: trackers.Report | None = None,
) -> Trained:
    """What ``train`` does, once preset, configuration and job are told apart.

    Args:
      name: the name of the preset, for the default folder.
      config: the configuration.
      job: where and how the run is computed.
      workdir: the run folder, or None.
      data: a data set in place of ``config.dataset``, or None.
      start_from: run folder whose parameters a new run starts from, or None.
      progress: whether to show a progress bar.
      stop: hears the signals that ask to stop; without one they end the call as Python does.
      report: as in ``train``.
    """
    stop = Stop() if stop is None else stop
    with contextlib.ExitStack() as locked:
        trackers.check(job.trackers)
        job.join()
        job.placement()
        if families.FAMILIES[family_of(config)].first is not None and not getattr(config, "of", ""):
            first = _trained_first(name, config, job, workdir, data, progress, stop)
            if first.result is None:
                return first  # it was stopped
            config = families.changed(config, of=str(first.workdir))
        if jax.process_count() > 1:
            processes.on_first(lambda: load_data(config, job, data))  # prepares the data once
        run = prepare(config, job, data)
        folder = _folder(name, run) if workdir is None else Path(workdir)
        processes.on_first(lambda: locked.enter_context(folders.lock(folder)))
        processes.on_first(lambda: folders.save(folder, run.record))
        pixels = datasets.describe(run.record.data.pixels, run.record.data.levels)
        what = f"training {name} on {run.dataset.name}, in {folder}"
        for note in (what, f"--pixels {pixels}", *run.dataset.notes, *run.built.notes):
            reports.say(note)
        state, early = fit_in(run, folder, stop, start_from, progress, report)
        params = processes.local(run.built.parameters(state))
        step = int(processes.local(state.step))
        result = None
        if not early and (processes.any_of(bool(stop.asked)) or step < config.steps):
            by = stop.asked or "a signal to another process"
            reports.say(
                f"stopped by {by}: step {step} of {config.steps} is saved, the same command goes on"
            )
        else:
            result = _finish(run, params, folder, step)
    return of_run(run.built, run.record.data, params, step, folder, result)


def _trained_first(
    name: str,
    config: Any,
    job: Job,
    workdir: str | Path | None,
    data: Any,
    progress: bool,
    stop: Stop,
) -> Trained:
    """The first stage of a configuration that names no run. It is trained unless it has been.

    It is in ``WORKDIR/m1``, or in ``runs/PRESET-first-DATASET-SEED``. Mistakes of the second stage
    are found before a folder is made.

    Args:
      name: the name of the preset.
      config: the configuration of the second stage.
      job: where and how both are computed.
      workdir: the run folder of the second stage, or None.
      data: a data set in place of ``config.dataset``, or None.
      progress: whether to show a progress bar.
      stop: hears the signals that ask to stop.
    """
    family = families.FAMILIES[family_of(config)]
    assert family.first is not None
    first = family.first(config)
    run = prepare(first, job, data)
    record = run.record
    second = family.build(config, record.data._replace(first_stage=record.opened()))
    second.training_split(datasets.select(run.dataset, first.train_split))
    folder = _folder(f"{name}-first", run) if workdir is None else Path(workdir) / "m1"
    ended = folder / "result.json"
    if ended.exists() and not folders.differences(folders.read(folder), record):
        result = folders.read_json(ended)
        if result["steps"] == first.steps:
            reports.say(f"the first stage is the run {folder}")
            return of_run(run.built, record.data, None, first.steps, folder, result)
    reports.say(f"training the first stage in {folder}")
    return train_in(name, first, job, folder, data, progress=progress, stop=stop)


def _folder(name: str, run: Run) -> Path:
    stem = Path(run.dataset.name).stem
    return folders.free_folder(f"{name}-{stem}-{run.config.seed}", run.record)


def fit_in(
    run: Run,
    workdir: Path,
    stop: Stop,
    start_from: str | Path | None,
    progress: bool,
    report: trackers.Report | None = None,
) -> tuple[Any, bool]:
    """Trains a run to its last step, or until it is stopped.

    Training begins at the newest good checkpoint, if there is one. Returns the state, and whether
    early stopping ended the training.

    Args:
      run: the run.
      workdir: the run folder.
      stop: hears the signals that ask to stop.
      start_from: run folder whose parameters a new run starts from, or None.
      progress: whether to show a progress bar.
      report: is called with the metrics too.
    """
    config, layout, totals = run.config, run.job.placement(), None
    fresh = run.built.algorithm.init, *run.init_arguments()
    with stop.awaited(), checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        warn = folders.warn if processes.is_first() else lambda message: None
        newest = saved.restore_newest(layout.shapes(*fresh), warn)
        if newest is not None:
            step, state, totals = newest
            reports.say(f"resuming at step {step} of {config.steps}")
        else:
            step, state = 0, layout.started(*fresh)
        if newest is None and start_from is not None:
            state = layout.as_global(layout.copied(_warm(state, Path(start_from))))
            reports.say(f"starting from the parameters of {start_from}")
        if run.job.profile:
            _profile(run, layout.devices, workdir)
        listeners = [] if report is None else [trackers.Tracker(report)]
        if processes.is_first():
            settings = folders.flattened(run.record.json()["config"])
            listeners += trackers.opened(run.job.trackers, workdir, settings)
        cost = _cost(run, layout.devices)
        metrics = reports.Metrics(workdir, step, config.steps, progress, cost, listeners)
        judge = _Judge(run, workdir, saved, metrics)
        try:
            if judge.early:  # before this call
                return state, True
            state = run.fit(
                layout.devices,
                num_steps=config.steps,
                state=state,
                donate=True,
                totals=totals,
                report=metrics.report,
                report_every=config.report_every,
                hooks=[training.Hook(config.checkpoint_every, judge)],
                stop=lambda: bool(stop.asked),
            )
        finally:
            metrics.close()
        return state, judge.early


class _Judge:
    """Saves checkpoints with a validation score, and asks to stop when it no longer rises."""

    def __init__(self, run: Run, workdir: Path, saved: checkpoints.Checkpoints, metrics: Any):
        self.run, self.saved, self.metrics = run, saved, metrics
        before = reports.read_lines(workdir / "validation.jsonl")
        self.scores = [line["validation_elbo"] for line in before]
        self.early = self._no_longer_rises()

    def __call__(self, now: training.HookState) -> bool:
        config = self.run.config
        if now.stopping and now.step % config.checkpoint_every and not self.early:
            self.saved.save(now.step, now.state, now.totals)
            return False
        score = self._score(now)
        self.metrics.validate(now.step, score)
        self.saved.save(now.step, now.state, now.totals, metric=score)
        self.scores.append(score)
        self.early = self._no_longer_rises()
        if self.early:
            reports.say(
                f"stopped early at step {now.step}: {config.early_stopping} checkpoints without a "
                "better validation score; checkpoint 'best' holds the best one"
            )
        return self.early

    def _no_longer_rises(self) -> bool:
        """Whether the best score is too many checkpoints ago; one that is not a number is none."""
        patience = self.run.config.early_stopping
        scores = [score if math.isfinite(score) else -math.inf for score in self.scores]
        return bool(patience and scores) and len(scores) - 1 - scores.index(max(scores)) >= patience

    def _score(self, now: training.HookState) -> float:
        """The family's own score, or the ELBO, or the reconstruction if there is no ELBO."""
        built = self.run.built
        params = processes.local(built.parameters(now.state))
        model, key = built.model, self.run.key
        if built.score is not None:
            return built.score(model, params, key, self.run.validation)
        summary = evaluation.evaluate_elbo(model, params, key, self.run.validation)
        return summary.reconstruction if summary.elbo is None else summary.elbo


def _warm(state: Any, start_from: Path) -> Any:
    """A fresh state with the parameters of another run, or their moving average if it has one."""
    folders.read(start_from)
    with checkpoints.Checkpoints(start_from / "checkpoints") as saved:
        if saved.latest is None:
            raise ValueError(f"{start_from} has no checkpoint to start from")
        names = saved.arrays(saved.latest)
        part = "average" if any(name.startswith("average/") for name in names) else "params"
        there = {name.split("/")[1] for name in names if name.startswith("params/")}
        trained = [player for player in state.opt_state if player in there]
        like = {player: state.params[player] for player in trained}
        other = saved.restore_part(saved.latest, {part: like})[part]
    return training.start_from(state, other)


def _profile(run: Run, devices: list[jax.Device], workdir: Path) -> None:
    """Traces the second ten of twenty steps of a training that is thrown away."""

    def turn(now: training.HookState) -> None:
        if now.step == 10:
            jax.profiler.start_trace(str(workdir / "profile"), create_perfetto_trace=True)
        else:
            jax.block_until_ready(now.state)
            jax.profiler.stop_trace()

    run.fit(devices, num_steps=20, hooks=[training.Hook(10, turn)], seconds_per_call=float("inf"))
    reports.say(f"profile of ten steps: {workdir / 'profile'}")


def _cost(run: Run, devices: list[jax.Device]) -> Callable[[float], dict[str, float]]:
    """A function from images per second to operations per second and their share of the peak."""
    config = run.config
    state = jax.eval_shape(run.init_state)
    flops = costs.step_flops(run.built.algorithm, state, batch_shapes(run))
    peak = costs.peak_flops(devices[0], config.precision)

    def of_speed(images_per_second: float) -> dict[str, float]:
        if flops is None:
            return {}
        per_second = flops * images_per_second / config.batch_size
        share = {"share_of_peak": per_second / peak / len(devices)} if peak else {}
        return {"flops_per_second": per_second} | share

    return of_speed


def _finish(run: Run, params: Any, workdir: Path, step: int) -> dict[str, Any]:
    """Evaluates the parameters on the test split, draws the figures and prints a table."""
    config, data = run.config, run.record.data
    test = datasets.random_subset(run.test, config.test_examples)
    numbers = reports.results(run.built, data, params, run.key, test, config.test_samples)
    if not processes.is_first():
        return numbers
    lines = reports.read_lines(workdir / "metrics.jsonl")
    drawn = draw(run, params, workdir, lines)
    if run.built.audible is not None:
        _write_sounds(run, params, workdir / "sounds")
    speed = reports.speeds(lines)
    rest = {
        name: value for name, value in numbers.items() if name not in ("elbo", "log_likelihood")
    }
    result = {"test_elbo": numbers["elbo"], "test_log_likelihood": numbers["log_likelihood"]} | rest
    result |= {"steps": step} | speed
    if run.built.notes:
        result["notes"] = list(run.built.notes)
    if data.classes:
        result["classes"] = list(data.classes)
    folders.write_json(workdir / "result.json", result)
    print(f"\n{run.dataset.name}, {config.test_split} split, after {step} steps")
    places = [
        ("speed", ", ".join(reports.SPEEDS[name](value) for name, value in speed.items())),
        ("figures", f"{workdir / 'figures'} ({len(drawn)})"),
        ("checkpoint", str(workdir / "checkpoints" / str(step))),
        ("run", str(workdir)),
    ]
    reports.table([*reports.result_rows(numbers), *places])
    if "interpolations.txt" in drawn:
        print("\n" + (workdir / "figures" / "interpolations.txt").read_text())
    return result


def _write_sounds(run: Run, params: Any, folder: Path) -> None:
    """Writes some test examples, and their reconstructions, as wav files."""
    some = evaluation.preprocessed_split(run.key, datasets.random_subset(run.test, SOUNDS))
    both = figures.reconstructions(run.built.model, params, some)
    for name, x in zip(("input", "reconstruction"), both, strict=True):
        reports.write_sounds(folder, run.built.audible, name, x)  # type: ignore[arg-type]


def draw(run: Run, params: Any, workdir: Path, lines: list[dict[str, Any]]) -> list[str]:
    """Draws all figures of a run, if matplotlib is installed, and returns their names."""
    validation = reports.read_lines(workdir / "validation.jsonl")
    data = run.record.data
    with reports.counter(len(figures.FIGURES), "figures", "figure") as done:
        return figures.draw_all(
            workdir / "figures",
            run.built.model,
            params,
            run.key,
            run.test,
            reports=[*lines, *validation],
            pictures=run.built.pictures_of,
            pixel_max=data.pixel_max,
            classes=data.classes,
            progress=done,
        )
