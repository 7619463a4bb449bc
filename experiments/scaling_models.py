"""The models and settings of ``scaling.py``, and the bytes that their steps send."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxvae import datasets, likelihoods, models, networks, posteriors, priors, runs, training
from jaxvae.training.devices import on_mesh
from jaxvae.training.placements import AXIS, Placement


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, on how many devices, and where it is written."""

    devices: tuple[int, ...] | None = None
    """Device counts, of all processes together; None is 1, 2, 4, ... as far as there are devices
    (8 on a CPU).
    """
    global_batch: int = 256
    """Examples in a batch of all devices, in strong scaling."""
    per_device_batch: int = 32
    """Examples in a batch of each device, in weak scaling."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the larger model's hidden layers; the tiny one is 64-16-2-16-64."""
    pixels: int = 784
    """Pixels of the larger model's images."""
    latent: int = 32
    """Latent dimensions of the larger model."""
    precision: Literal[tuple(networks.PRECISIONS)] = "float32"  # type: ignore[valid-type]
    """Precision of the networks, in the measurement and in the estimate."""
    mappings: tuple[Literal[training.MAPPINGS], ...] = training.MAPPINGS  # type: ignore[valid-type]
    """How several devices are used."""
    steps: int = 10
    """Training steps in one dispatch, which is timed."""
    rounds: int = 7
    """Timed dispatches of each setting; 0 prints the estimate alone."""
    seed: int = 0
    """Seed of parameters, images and noise."""
    utilization: float = 0.4
    """Share of its peak at which a device computes, in the estimate."""
    latency: float = 1e-6
    """Seconds that a message needs for one hop, in the estimate."""
    model: str | None = None
    """Preset, with flags of jaxvae train, whose memory and communication are estimated in place of
    a measurement, such as 'conv --hidden 64 128'."""
    shape: tuple[int, ...] = (32, 32, 3)
    """Height, width and channels of the images of --model."""
    compile: bool = False
    """Compile steps of --model, which tells the memory that a step needs beside the state."""
    json: Path = Path("scaling.json")
    """File for all numbers."""
    plot: Path = Path("scaling.png")
    """File for the figure."""
    distributed: bool = False
    """Join a job of several processes, with the next four as in train.py."""
    coordinator: str | None = None
    """Address HOST:PORT of process 0."""
    num_processes: int | None = None
    """Processes in the job."""
    process_id: int | None = None
    """Number of this process, from 0."""
    heartbeat: int = 100
    """Seconds after which a process that is not heard of ends the whole job."""


class Model(NamedTuple):
    """An algorithm, and what it is trained on."""

    algorithm: training.Algorithm
    examples: datasets.Examples  # [N, pixels] of 0 and 1
    parameters: int

    def initial(self, seed: int) -> Any:
        """The state before the first step."""
        return jax.jit(self.algorithm.init)(jax.random.key(seed), _first(self.examples))

    def shapes(self, batch: int) -> tuple[Any, training.Batch]:
        """The shapes of the state and of a batch."""
        number: Any = lambda dtype: jax.ShapeDtypeStruct((batch,), dtype)
        x = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype), self.examples
        )
        state = jax.eval_shape(self.algorithm.init, jax.random.key(0), _first(self.examples))
        return state, training.Batch(x, number(jnp.int32), number(jnp.float32))


def _first(examples: datasets.Examples) -> Any:
    return jax.tree.map(lambda a: a[0], examples)


def build(settings: Settings, hidden: Sequence[int], pixels: int, latent: int) -> Model:
    """A Bernoulli VAE of random binary images, trained with Adam."""
    posterior, likelihood = posteriors.normal(latent), likelihoods.bernoulli()
    encoder = networks.with_precision(networks.mlp(hidden, posterior.size), settings.precision)
    decoder = networks.with_precision(networks.mlp(hidden[::-1], (pixels,)), settings.precision)
    vae = models.vae(encoder, decoder, posterior, likelihood, priors.standard_normal(latent))
    loss = training.batch_mean(models.negative_elbo(vae))
    algorithm = training.gradient_descent(vae.init, loss, optax.adam(1e-3))
    images = np.random.default_rng(settings.seed).integers(0, 2, (1024, pixels), dtype=np.uint8)
    examples = datasets.Examples(images, datasets.preprocessing("static", 2))
    state = jax.eval_shape(algorithm.init, jax.random.key(0), _first(examples))
    return Model(algorithm, examples, sum(leaf.size for leaf in jax.tree.leaves(state.params)))


def devices_of(count: int) -> list[jax.Device]:
    """So many devices, equally many of each process."""
    return runs.Job(devices=count).device_list()


# What simulation tells exactly: the program


class Memory(NamedTuple):
    """Bytes on one device for a step that is compiled and not run, by XLA's analysis."""

    state: int  # its part of the state
    arguments: int  # the same, with its part of a batch
    temporary: int  # beside arguments and results


def step_memory(
    algorithm: training.Algorithm,
    devices: int,
    example: Any,
    batch: int,
    mesh: tuple[int, int] | None = None,
) -> Memory:
    """The memory of a step under ``fsdp`` on so many devices.

    Args:
      algorithm: the algorithm.
      devices: devices, of all processes.
      example: one raw example, or its shapes, or the shape of one float32 array.
      batch: examples in a global batch.
      mesh: copies of the state and parts of each; None is one copy.
    """
    layout = Placement(devices_of(devices), "fsdp", mesh)
    if isinstance(example, tuple):
        example = jax.ShapeDtypeStruct(example, jnp.float32)
    state = layout.shapes(algorithm.init, jax.random.key(0), example)
    over = NamedSharding(layout.mesh, PartitionSpec(layout.mesh.axis_names))
    of: Any = lambda shape, dtype: jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=over)
    x = jax.tree.map(lambda a: of(a.shape, a.dtype), example)
    shapes = training.Batch(x, of((), jnp.int32), of((), jnp.float32), of((), jnp.int32))
    step = jax.jit(on_mesh(algorithm, layout.mesh).step, donate_argnums=0)
    analysis: Any = step.lower(state, shapes).compile().memory_analysis()
    return Memory(
        sum(map(_part_bytes, jax.tree.leaves(state))),
        analysis.argument_size_in_bytes,
        analysis.temp_size_in_bytes,
    )


def _part_bytes(leaf: Any) -> int:
    """The bytes that each device has of an array, by its shape and sharding."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def step_program(model: Model, devices: Sequence[jax.Device], batch: int) -> str:
    """The HLO of one training step as it was compiled for the devices.

    ``pmap`` makes the same HLO.
    """
    specs, mesh = (PartitionSpec(), PartitionSpec(AXIS)), Placement(devices).mesh
    step = lambda state, batch: model.algorithm.step(state, batch, AXIS)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
    text = jax.jit(mapped).lower(*model.shapes(batch)).compile().as_text()
    assert text is not None
    return text


def all_reduces(program: str) -> list[int]:
    """The bytes of every all-reduce in a text of HLO.

    They are the bytes of the result, which has the shape of the operands.
    """
    results = re.findall(r" = (.+?) all-reduce(?:-start)?\(", program)
    return [sum(map(_bytes, re.findall(r"(\w+)\[([\d,]*)\]", result))) for result in results]


def _bytes(shape: tuple[str, str]) -> int:
    dtype, dimensions = shape
    bits = re.search(r"\d+", dtype)
    return math.prod(int(d) for d in dimensions.split(",") if d) * (
        int(bits[0]) // 8 if bits else 1
    )


def communication(settings: Settings, built: dict[str, Model]) -> dict[str, dict[str, int]]:
    """The all-reduces of each model's step on the most devices, and the share of gradients."""
    said, devices = {}, devices_of(max(settings.devices or (1,)))
    for name, model in built.items():
        sizes = all_reduces(step_program(model, devices, settings.per_device_batch * len(devices)))
        counts = {"devices": len(devices), "all_reduces": len(sizes), "bytes": sum(sizes)}
        said[name] = counts | {"gradient_bytes": 4 * model.parameters}
    return said
