"""Trains the model of a configuration in a run folder, with checkpoints and a result."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import checkpoints, costs, datasets, evaluation, families, figures, processes, training
from jaxvae.contracts import Array
from jaxvae.families import FAMILIES, Built, Config, Data, family_of
from jaxvae.ranges import Count, Whole
from jaxvae.runs import folders, reports
from jaxvae.runs.loading import Trained, of_run
from jaxvae.settings import changed
from jaxvae.stopping import Stop

HELD_FOR_EVALUATION = 10_000  # the most examples of a stream that are kept in memory to evaluate on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Where and how a run is computed. Its numbers do not depend on this."""

    data_dir: str | None = None
    """Folder of prepared tensorflow-datasets; None is ~/tensorflow_datasets or $TFDS_DATA_DIR."""
    stream: bool = False
    """Read training examples when they are needed, for sets larger than memory (needs Grain)."""
    devices: Count | None = None
    """Devices to train on, in all processes together; None is one device, or all devices with
    --distributed."""
    mapping: Literal[training.MAPPINGS] = "pmap"  # type: ignore[valid-type]
    """The JAX transformation that maps a step over several devices."""
    distributed: bool = False
    """Join a job of several processes. SLURM, Kubernetes or Cloud TPU tell what the next three
    flags do not say."""
    coordinator: str | None = None
    """Address HOST:PORT of process 0."""
    num_processes: Count | None = None
    """Processes in the job."""
    process_id: Whole | None = None
    """Number of this process, from 0."""
    heartbeat: Count = 100
    """Seconds after which a process that is not heard of ends the whole job."""
    profile: bool = False
    """Write a trace of ten steps to WORKDIR/profile, for Perfetto or TensorBoard."""

    def join(self) -> None:
        """Joins the job of several processes, if there is one."""
        if self.distributed:
            processes.initialize(
                self.coordinator, self.num_processes, self.process_id, self.heartbeat
            )
        elif (self.coordinator, self.num_processes, self.process_id) != (None, None, None):
            raise ValueError(
                "--coordinator, --num-processes and --process-id belong to --distributed"
            )

    def device_list(self) -> list[jax.Device]:
        """The devices to train on, equally many in each process."""
        count = self.devices or (jax.device_count() if self.distributed else 1)
        every = [
            [d for d in jax.devices() if d.process_index == process]
            for process in range(jax.process_count())
        ]
        each, rest = divmod(count, len(every))
        if rest or not 1 <= each <= min(map(len, every)):
            have = f"this machine has {len(every[0])}"
            if len(every) > 1:
                have = f"the processes have {[*map(len, every)]}"
            raise ValueError(f"devices={count}: {have}")
        return [device for devices in every for device in devices[:each]]


class Run(NamedTuple):
    """A configuration with its data and its model, ready to train."""

    record: folders.Record
    built: Built
    dataset: datasets.Dataset
    train: Any  # a split or a stream, as the model takes it
    test: Any
    validation: Any  # what checkpoints are judged on
    job: Job

    @property
    def config(self) -> Any:
        """The configuration."""
        return self.record.config

    @property
    def key(self) -> Array:
        """The key of all that is drawn after training."""
        return jax.random.fold_in(jax.random.key(self.config.seed), 1)

    def init_state(self) -> Any:
        """A fresh state of the algorithm."""
        first = jax.tree.map(lambda a: a[0], _first_rows(self.train))
        return jax.jit(self.built.algorithm.init)(jax.random.key(self.config.seed), first)

    def fit(self, devices: list[jax.Device] | None = None, **settings: Any) -> Any:
        """Calls ``training.fit`` for this run."""
        config = self.config
        return training.fit(
            self.built.algorithm,
            self.train,
            batch_size=config.batch_size,
            seed=config.seed,
            devices=devices or self.job.device_list(),
            mapping=self.job.mapping,
            **settings,
        )


def _first_rows(split: Any) -> Any:
    """The first example, [1, ...], with its preprocessing."""
    if isinstance(split, datasets.Stream):
        return datasets.Split(split[:1], preprocess=split.preprocess).examples
    return datasets.rows_of(split.examples, slice(1))


def prepare(config: Any, job: Job = Job(), data: Any = None) -> Run:
    """Loads the data of a configuration and builds its model.

    Nothing is written. ``data`` replaces ``config.dataset``: it is a ``datasets.Dataset``, or a
    source for ``datasets.load``. Raises ValueError if settings do not go together.
    """
    name = family_of(config)
    family = FAMILIES[name]
    dataset = _dataset(config, job, data)
    raw_levels = dataset.levels
    pixels = datasets.chosen_pixels(
        config.pixels,
        config.likelihood.name,
        family.support(config),
        dataset,
        {name: family.support(changed(config, likelihood=name)) for name in _likelihoods(config)},
    )
    dataset = datasets.prepared(dataset, pixels, seed=config.seed)
    train = datasets.select(dataset, config.train_split)
    test = _held(datasets.select(dataset, config.test_split))
    validation = _validation(config, dataset)
    record = folders.Record(
        name,
        config,
        describe(dataset, train, test, pixels)._replace(raw_levels=raw_levels),
        folders.place_of(config, job.data_dir),
    )
    built = record.build()
    judged = built.split(test if validation is None else validation)
    run = Run(record, built, dataset, built.training_split(train), built.split(test), judged, job)
    if config.early_stopping and validation is None:
        raise ValueError(
            f"early_stopping={config.early_stopping} needs a validation split, and {dataset.name} "
            "has none: name one, such as --train-split train[:90%] --validation-split train[90%:]"
        )
    _trace(run)
    return run


def _likelihoods(config: Any) -> list[str]:
    return list(config.likelihood.choice.members())


def _dataset(config: Config, job: Job, data: Any) -> datasets.Dataset:
    if isinstance(data, datasets.Dataset):
        return data
    load = datasets.stream if job.stream else datasets.load
    return load(
        config.dataset if data is None else data,
        job.data_dir,
        config.levels,
        image_size=config.image_size,
        unreadable=config.unreadable,
    )


def _held(split: Any) -> datasets.Split:
    """A split in memory. A stream gives a fixed random subset."""
    if isinstance(split, datasets.Stream):
        return datasets.held(split, HELD_FOR_EVALUATION)
    return split


def _validation(config: Config, dataset: datasets.Dataset) -> Any:
    if config.validation_split is not None:
        return _held(datasets.select(dataset, config.validation_split))
    return _held(dataset.splits["validation"]) if "validation" in dataset.splits else None


def describe(dataset: datasets.Dataset, train: Any, test: datasets.Split, pixels: str) -> Data:
    """What a model must know of its data.

    The data are a prepared set, its training examples and its test examples.
    """
    streamed = isinstance(train, datasets.Stream)
    labels = None if streamed else train.y
    num_classes = len(dataset.classes)
    if labels is not None and getattr(labels, "ndim", 0) == 1:
        num_classes = max(int(labels.max()) + 1, num_classes)
    attributes = None if streamed else datasets.attributes(train.take(slice(1)))
    levels = dataset.levels
    pixel_max = {"counts": (levels or 2) - 1.0, "none": _largest(test)}.get(pixels, 1.0)
    return Data(
        dataset.name,
        tuple(train.shape),
        str(train.dtype),
        levels,
        pixels,
        datasets.num_examples(train if streamed else train.x),
        dataset.classes,
        num_classes=num_classes,
        num_attributes=0 if attributes is None else attributes.shape[1],
        pixel_max=pixel_max,
        examples=lambda count: (
            datasets.random_subset(train if not streamed else _held(train), count).x
        ),
    )


def _largest(split: datasets.Split) -> float:
    return float(jnp.max(jnp.asarray(split.x[:1000])))


def _trace(run: Run) -> None:
    """Traces one step, so that a mistake is found before a folder is made."""
    batch = batch_shapes(run)
    jax.eval_shape(run.built.algorithm.step, jax.eval_shape(run.init_state), batch)


def batch_shapes(run: Run) -> training.Batch:
    """The shapes of a batch."""
    size = run.config.batch_size
    of: Any = lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype)
    x = jax.tree.map(of, _first_rows(run.train))
    number: Any = lambda dtype: jax.ShapeDtypeStruct((size,), dtype)
    return training.Batch(x, number(jnp.int32), number(jnp.float32), number(jnp.int32))


def train(
    config: Config | str = "digits",
    workdir: str | Path | None = None,
    *,
    data: Any = None,
    start_from: str | Path | None = None,
    progress: bool = True,
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
    return train_in(name, chosen, job, workdir, data, start_from, progress)


def train_in(
    name: str,
    config: Config,
    job: Job,
    workdir: str | Path | None = None,
    data: Any = None,
    start_from: str | Path | None = None,
    progress: bool = True,
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
    """
    with Stop() as stop, contextlib.ExitStack() as locked:
        job.join()
        job.device_list()
        if jax.process_count() > 1:
            processes.on_first(lambda: prepare(config, job, data))  # prepares the data once
        run = prepare(config, job, data)
        folder = _folder(name, run) if workdir is None else Path(workdir)
        processes.on_first(lambda: locked.enter_context(folders.lock(folder)))
        processes.on_first(lambda: folders.save(folder, run.record))
        reports.say(datasets.describe(run.record.data.pixels, run.record.data.levels))
        state, early = fit_in(run, folder, stop, start_from, progress)
        state = processes.local(state)
        params = run.built.parameters(state)
        step = int(state.step)
        result = None
        if not early and (processes.any_of(bool(stop.asked)) or step < config.steps):
            by = stop.asked or "a signal to another process"
            reports.say(
                f"stopped by {by}: step {step} of {config.steps} is saved, the same command goes on"
            )
        else:
            result = _finish(run, params, folder, step)
    return of_run(run.built, run.record.data, params, step, folder, result)


def _folder(name: str, run: Run) -> Path:
    stem = Path(run.dataset.name).stem
    return folders.free_folder(f"{name}-{stem}-{run.config.seed}", run.record)


def fit_in(
    run: Run, workdir: Path, stop: Stop, start_from: str | Path | None, progress: bool
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
    """
    config, devices = run.config, run.job.device_list()
    state, totals = training.replicate(run.init_state(), devices), None
    with stop.awaited(), checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        warn = folders.warn if processes.is_first() else lambda message: None
        newest = saved.restore_newest(state, warn)
        if newest is not None:
            step, state, totals = newest
            reports.say(f"resuming at step {step} of {config.steps}")
        elif start_from is not None:
            state = training.replicate(_warm(run, state, Path(start_from)), devices)
            reports.say(f"starting from the parameters of {start_from}")
        if run.job.profile:
            _profile(run, devices, workdir)
        start = int(processes.local(state.step))
        metrics = reports.Metrics(workdir, start, config.steps, progress, _cost(run, devices))
        judge = _Judge(run, workdir, saved, metrics)
        try:
            state = run.fit(
                devices,
                num_steps=config.steps,
                state=state,
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
        self.early = False

    def __call__(self, now: training.HookState) -> bool:
        config = self.run.config
        if now.stopping and now.step % config.checkpoint_every and not self.early:
            self.saved.save(now.step, now.state, now.totals)
            return False
        score = self._score(now)
        self.metrics.validate(now.step, score)
        self.saved.save(now.step, now.state, now.totals, metric=score)
        self.scores.append(score)
        best = self.scores.index(max(self.scores))
        self.early = bool(config.early_stopping) and (
            len(self.scores) - 1 - best >= config.early_stopping
        )
        if self.early:
            reports.say(
                f"stopped early at step {now.step}: {config.early_stopping} checkpoints without a "
                "better validation score; checkpoint 'best' holds the best one"
            )
        return self.early

    def _score(self, now: training.HookState) -> float:
        """The ELBO, or the reconstruction if the model has no ELBO."""
        built = self.run.built
        params = processes.local(built.parameters(now.state))
        model, key = built.model, self.run.key
        summary = evaluation.evaluate_elbo(model, params, key, self.run.validation)
        return summary.reconstruction if summary.elbo is None else summary.elbo


def _warm(run: Run, state: Any, start_from: Path) -> Any:
    """A fresh state with the parameters of another run, or their moving average if it has one."""
    folders.read(start_from)
    state = processes.local(state)
    with checkpoints.Checkpoints(start_from / "checkpoints") as saved:
        if saved.latest is None:
            raise ValueError(f"{start_from} has no checkpoint to start from")
        names = saved.arrays(saved.latest)
        part = "average" if any(name.startswith("average/") for name in names) else "params"
        there = {name.split("/")[1] for name in names if name.startswith("params/")}
        like = {player: tree for player, tree in state.params.items() if player in there}
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
    speed = reports.speeds(lines)
    rest = {
        name: value for name, value in numbers.items() if name not in ("elbo", "log_likelihood")
    }
    result = {"test_elbo": numbers["elbo"], "test_log_likelihood": numbers["log_likelihood"]} | rest
    result |= {"steps": step} | speed
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
    return result


def draw(run: Run, params: Any, workdir: Path, lines: list[dict[str, Any]]) -> list[str]:
    """Draws all figures of a run, if matplotlib is installed, and returns their names."""
    validation = reports.read_lines(workdir / "validation.jsonl")
    data = run.record.data
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
    )
