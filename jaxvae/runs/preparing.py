"""From a configuration to all that it takes to train: the data, the model, the job."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import datasets, processes, training
from jaxvae.contracts import Array
from jaxvae.families import FAMILIES, Built, Config, Data, family_of
from jaxvae.ranges import Count, Whole
from jaxvae.runs import folders, stages
from jaxvae.settings import changed

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
    """How several devices share a step: pmap and shard_map have all parameters on each of them,
    fsdp cuts parameters and the optimizer's state."""
    mesh: str | None = None
    """Copies of the state and parts of each, such as 4,2 for 8 devices, with --mapping fsdp; None
    is one copy."""
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
    trackers: tuple[str, ...] = ()
    """Services that get the metrics too: wandb, mlflow, aim."""

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

    def mesh_shape(self) -> tuple[int, int] | None:
        """Copies of the state and parts of each. Raises ValueError for text that is no mesh."""
        if self.mesh is None:
            return None
        if not re.fullmatch(r"[1-9]\d*,[1-9]\d*", self.mesh):
            raise ValueError(f"mesh={self.mesh}: it must be two numbers, such as 4,2")
        copies, parts = map(int, self.mesh.split(","))
        return copies, parts

    def placement(self) -> training.Placement:
        """Where batch and state lie. Raises ValueError if the mesh is not of the devices."""
        return training.Placement(self.device_list(), self.mapping, self.mesh_shape())

    def device_list(self) -> list[jax.Device]:
        """The devices to train on, equally many in each process.

        If there is a mesh, there are as many as it has.
        """
        least = jax.device_count() if self.distributed else math.prod(self.mesh_shape() or (1,))
        count = self.devices or least
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
        return jax.jit(self.built.algorithm.init)(*self.init_arguments())

    def init_arguments(self) -> tuple[Array, Any]:
        """What ``algorithm.init`` takes: a key, and the first example."""
        first = jax.tree.map(lambda a: a[0], _first_rows(self.train))
        return jax.random.key(self.config.seed), first

    def fit(self, devices: list[jax.Device] | None = None, **settings: Any) -> Any:
        """Calls ``training.fit`` for this run."""
        config, strata = self.config, self.built.strata
        return training.fit(
            self.built.algorithm,
            self.train,
            batch_size=config.batch_size,
            seed=config.seed,
            devices=devices or self.job.device_list(),
            mapping=self.job.mapping,
            mesh=self.job.mesh_shape(),
            strata=() if strata is None else strata(self.train, config.batch_size),
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
    config, job, stage, dataset = load_data(config, job, data)
    raw_levels = dataset.levels
    pixels = _pixels(config, dataset) if stage is None else config.pixels
    dataset = datasets.prepared(dataset, pixels, seed=(stage or config).seed)
    train = datasets.select(dataset, config.train_split)
    if stage is not None:
        stage.check(dataset.name, tuple(train.shape))
    test = in_memory(datasets.select(dataset, config.test_split))
    validation = _validation(config, dataset)
    first, first_stage = (None, None) if stage is None else stage.opened(in_memory(train))
    settled = FAMILIES[family_of(config)].settled
    if settled is not None and first_stage is not None:
        config = settled(config, first_stage)
    record = folders.Record(
        family_of(config),
        config,
        describe(dataset, train, test, pixels)._replace(raw_levels=raw_levels),
        folders.place_of(config.dataset if data is None else data, job.data_dir, job.stream),
        first,
    )
    built = record.build(first_stage)
    judged = built.split(test if validation is None else validation)
    run = Run(record, built, dataset, built.training_split(train), built.split(test), judged, job)
    if config.virtual_shards and job.mapping == "fsdp":
        raise ValueError(
            "virtual_shards give the same bits under mapping=pmap and mapping=shard_map; under "
            "mapping=fsdp results agree to rounding, so leave virtual_shards out"
        )
    if config.early_stopping and validation is None:
        raise ValueError(
            f"early_stopping={config.early_stopping} needs a validation split, and {dataset.name} "
            "has none: name one, such as --train-split train[:90%] --validation-split train[90%:]"
        )
    _trace(run)
    return run


def load_data(
    config: Any, job: Job, data: Any = None
) -> tuple[Any, Job, stages.Stage | None, datasets.Dataset]:
    """The data set of a configuration. A prior over codes has the data of the run of the codes.

    Returns the configuration and the job with what the run says, the run, and the data set.
    """
    stage = None
    if FAMILIES[family_of(config)].second_stage:
        stage = stages.stage_of(config)
        config, job = stage.completed(config), _of_stage(job, stage)
    return config, job, stage, _dataset(config, job, data)


def _of_stage(job: Job, stage: stages.Stage) -> Job:
    """The job with the place of the data set of the first stage."""
    return dataclasses.replace(job, data_dir=job.data_dir or stage.record.place["data_dir"])


def _pixels(config: Any, dataset: datasets.Dataset) -> str:
    """The preprocessing that a configuration takes of a data set."""
    support = FAMILIES[family_of(config)].support
    if FAMILIES[family_of(config)].load is not None:
        name = family_of(config)
        return datasets.chosen_pixels(config.pixels, name, support(config), dataset)
    members = config.likelihood.choice.members()
    supports = {name: support(changed(config, likelihood=name)) for name in members}
    likelihood = config.likelihood.name
    return datasets.chosen_pixels(config.pixels, likelihood, support(config), dataset, supports)


def _dataset(config: Config, job: Job, data: Any) -> datasets.Dataset:
    if isinstance(data, datasets.Dataset):
        return data
    if data is None and not config.dataset:
        raise ValueError("the first stage was trained on arrays: give dataset, or data from Python")
    source, of_family = config.dataset if data is None else data, FAMILIES[family_of(config)].load
    if of_family is not None:
        if job.stream:
            raise ValueError("stream=True is for images; these examples are held in memory")
        return of_family(config, source, data_dir=job.data_dir)
    load = datasets.stream if job.stream else datasets.load
    return load(
        source,
        job.data_dir,
        config.levels,
        image_size=config.image_size,
        unreadable=config.unreadable,
    )


def in_memory(split: Any) -> datasets.Split:
    """A split in memory. A stream gives a fixed random subset."""
    if isinstance(split, datasets.Stream):
        return datasets.held(split, HELD_FOR_EVALUATION)
    return split


def _validation(config: Config, dataset: datasets.Dataset) -> Any:
    if config.validation_split is not None:
        return in_memory(datasets.select(dataset, config.validation_split))
    return in_memory(dataset.splits["validation"]) if "validation" in dataset.splits else None


def describe(dataset: datasets.Dataset, train: Any, test: datasets.Split, pixels: str) -> Data:
    """What a model must know of its data.

    The data are a prepared set, its training examples and its test examples.
    """
    streamed = isinstance(train, datasets.Stream)
    labels: Any = None if streamed else train.y
    known = getattr(labels, "ndim", 0) == 1
    num_classes = len(dataset.classes)
    if known:
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
            datasets.random_subset(train if not streamed else in_memory(train), count).x
        ),
        labelled=_labelled(train) if known else None,
        missing_labels=int((labels < 0).sum()) if known else 0,
        vocabulary=dataset.vocabulary,
        columns=dataset.columns,
        genes=dataset.genes,
        batches=dataset.batches,
        **_described(dataset.class_attributes, labels),
    )


def _described(attributes: np.ndarray | None, labels: np.ndarray) -> dict[str, Any]:
    """The fields of ``Data`` about a set whose classes are described."""
    if attributes is None:
        return {}
    unseen = sorted({*range(len(attributes))} - {*labels.tolist()})
    return {
        "class_attributes": attributes,
        "num_class_attributes": attributes.shape[1],
        "unseen": tuple(unseen),
    }


def _labelled(train: datasets.Split) -> Any:
    def some(count: int) -> tuple[Any, Any]:
        subset = datasets.random_subset(train, count)
        return subset.x, subset.y

    return some


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
