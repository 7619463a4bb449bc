"""Measures large models on one accelerator: images/s, share of the peak, memory.

``python experiments/accelerator.py [--seconds 480] [--models vdvae wide] [--json FILE]``;
``--help`` lists all. A part is one program: a model in one precision, with or without ``remat``.
Parts come in the order of what one wants to know first. A part that would begin after the time is
out is left out, and the JSON file is written after every part. A model whose preset is not there is
left out.

The share of the peak counts the products and convolutions of a step without ``remat``. What
``remat`` computes again does not count. Memory is XLA's analysis of the step: state and batch, and
what it needs beside them. ``fit`` is measured beside the bare loop of its step on the same images.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro

from experiments import ours
from experiments.random_runs import run_on
from experiments.tables import as_json
from jaxvae import costs, datasets, families, runs, training
from jaxvae.command_line import run_function, use_compilation_cache
from jaxvae.runs.folders import write_json


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, for how long, and where it is written."""

    models: tuple[str, ...] = ()
    """Beginnings of the names of models; none takes all."""
    seconds: float = 480.0
    """Seconds after which no part begins."""
    rounds: int = 5
    """Timed rounds of each part."""
    round_seconds: float = 2.0
    """About the seconds of a round."""
    small: bool = False
    """Measure small models, to try the script."""
    json: Path = Path("accelerator.json")
    """File for all numbers."""


class Model(NamedTuple):
    """A preset with other settings, the shape of its images, and the batch."""

    preset: str
    settings: dict[str, Any]
    shape: tuple[int, int, int]
    batch: int


class Part(NamedTuple):
    """One program."""

    model: str
    precision: str
    remat: bool


# Stable Diffusion's autoencoder, f8: images of 256x256 become maps of 32x32 with 4 channels.
AUTOENCODER = {
    **{"hidden": (128, 256, 512, 512), "blocks": 2, "norm_groups": 32, "latent": 4},
    **{"critic": "none", "perceptual": "none"},
}
RESIDUAL = {"network": "residual", "likelihood": "normal_learned", "learning_rate": 1e-4}
MODELS = {
    "vdvae, CIFAR-10": Model("vdvae-cifar10", {}, (32, 32, 3), 128),
    "autoencoder-kl, 256x256": Model("autoencoder-kl", AUTOENCODER, (256, 256, 3), 16),
    "wide residual, 64x64": Model(
        "conv", RESIDUAL | {"hidden": (128, 256, 512), "latent": 256}, (64, 64, 3), 256
    ),
}
SMALL = {
    "vdvae, CIFAR-10": Model("vdvae-small", {"hidden": (8,), "latent": 2}, (8, 8, 3), 2),
    "autoencoder-kl, 256x256": Model(
        "autoencoder-kl", AUTOENCODER | {"hidden": (4, 8), "norm_groups": 2}, (8, 8, 3), 2
    ),
    "wide residual, 64x64": Model("conv", RESIDUAL | {"hidden": (4, 8), "latent": 4}, (8, 8, 3), 2),
}
PROGRAMS = [("bfloat16", True), ("bfloat16", False), ("float32", True), ("float32", False)]


def parts(models: dict[str, Model]) -> list[Part]:
    """All parts: each model in bfloat16 with ``remat`` first, then the other programs."""
    return [Part(name, *program) for program in PROGRAMS for name in models]


# One part


def run_of(model: Model, precision: str, remat: bool) -> runs.Run:
    """The run of a model on random images."""
    named = {**model.settings, "precision": precision, "remat": remat, "batch_size": model.batch}
    config = families.preset(model.preset, **named)
    return run_on(config, model.shape, examples=4 * model.batch)


def batch_of(run: runs.Run) -> training.Batch:
    """The first batch of a run, on the device."""
    size = run.config.batch_size
    x = datasets.rows_of(run.train.examples, slice(size))
    place = jnp.arange(size)
    return jax.device_put(training.Batch(x, place, jnp.full(size, 1 / size), place))


def measured(model: Model, part: Part, settings: Settings) -> dict[str, Any]:
    """What one program needs, and how fast it is; or that the memory does not suffice."""
    run = run_of(model, part.precision, part.remat)
    algorithm, batch = run.built.algorithm, batch_of(run)
    began = time.perf_counter()
    step = jax.jit(lambda state, batch: algorithm.step(state, batch, None), donate_argnums=0)
    shapes = jax.eval_shape(run.init_state)
    program = step.lower(shapes, batch).compile()
    row: dict[str, Any] = {"compile_seconds": time.perf_counter() - began, "batch": model.batch}
    row |= _sizes(shapes, program.memory_analysis())
    plain = run_of(model, part.precision, False)
    flops = costs.step_flops(plain.built.algorithm, shapes, batch)
    row["flops_per_image"] = None if flops is None else flops / model.batch
    try:
        row |= _speed(program, run, batch, settings)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row | {"missing": "out of memory"}
    peak = costs.peak_flops(jax.devices()[0], part.precision)
    if peak and flops:
        row["share_of_peak"] = flops / model.batch * row["images_per_second"] / peak
    return row


def _sizes(state: Any, analysis: Any) -> dict[str, Any]:
    leaves = jax.tree.leaves(state.params)
    return {
        "parameters": sum(leaf.size for leaf in leaves),
        "argument_bytes": analysis.argument_size_in_bytes,
        "temporary_bytes": analysis.temp_size_in_bytes,
    }


def _speed(program: Any, run: runs.Run, batch: Any, settings: Settings) -> dict[str, Any]:
    """Images/s of each round of steps that are started one after the other."""
    state, metrics = program(run.init_state(), batch)
    first_loss = float(metrics["loss"])

    def take(count: int) -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(count):
            state, metrics = program(state, batch)
        float(metrics["loss"])
        return (time.perf_counter() - began) / count

    count = max(math.ceil(settings.round_seconds / take(2)), 1)
    speeds = [run.config.batch_size / take(count) for _ in range(settings.rounds)]
    state, metrics = program(state, batch)
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "images_per_second": float(sorted(speeds)[len(speeds) // 2]),
        "rounds": speeds,
        "first_loss": first_loss,
        "skipped": int(metrics["skipped"]),
        "device_peak_bytes": stats.get("peak_bytes_in_use"),  # of all parts so far
    }


# ``fit`` beside the bare loop


def beside_the_loop(run: runs.Run, settings: Settings) -> dict[str, Any]:
    """Images/s of ``fit`` with reports, and of one program that takes as many steps."""
    size, batch, algorithm = run.config.batch_size, batch_of(run), run.built.algorithm
    one = lambda _, state: algorithm.step(state, batch, None)[0]
    loop = jax.jit(lambda state, count: jax.lax.fori_loop(0, count, one, state), donate_argnums=0)
    state = jax.block_until_ready(loop(run.init_state(), 1))

    def bare(count: int) -> None:
        nonlocal state
        state = jax.block_until_ready(loop(state, count))

    trained = run.init_state()

    def fit(count: int) -> None:
        nonlocal trained
        last = int(trained.step) + count
        trained = run.fit(
            num_steps=last,
            state=trained,
            donate=True,
            report=lambda step, means: None,
            seconds_per_call=math.inf,
        )
        jax.block_until_ready(trained)

    seconds = functools.partial(_seconds, bare)
    count = max(math.ceil(settings.round_seconds / seconds(2) * 2), 2)
    fit(count)
    pairs = [(seconds(count), _seconds(fit, count)) for _ in range(settings.rounds)]
    speeds = [[size * count / each for each in column] for column in zip(*pairs, strict=True)]
    ratios = sorted(one / other for one, other in pairs)
    return {
        "loop_images_per_second": sorted(speeds[0])[len(pairs) // 2],
        "fit_images_per_second": sorted(speeds[1])[len(pairs) // 2],
        "fit_to_loop": ratios[len(ratios) // 2],
    }


def _seconds(function: Callable[[int], Any], count: int) -> float:
    began = time.perf_counter()
    function(count)
    return time.perf_counter() - began


# The script


def chosen(settings: Settings) -> dict[str, Model]:
    """The models that were asked for and whose presets are there. Raises ValueError for none."""
    table = SMALL if settings.small else MODELS
    named = {n: model for n, model in table.items() if n.startswith(settings.models or ("",))}
    if not named:
        raise ValueError(f"no model begins with {' or '.join(settings.models)}: {'; '.join(table)}")
    there = {n: model for n, model in named.items() if model.preset in families.presets()}
    for name in named.keys() - there.keys():
        print(f"{name}: there is no preset {named[name].preset}")
    return there


def rows_of(settings: Settings, began: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """A row for each part that time is left for."""
    models = chosen(settings)
    left = lambda: settings.seconds - (time.perf_counter() - began)
    for part in parts(models):
        name = f"{part.model}, {part.precision}{', remat' if part.remat else ''}"
        if left() > 0:
            yield name, measured(models[part.model], part, settings)
    for name, model in models.items():
        if left() > 0:
            run = run_of(model, "bfloat16", True)
            yield f"{name}, fit beside the loop", beside_the_loop(run, settings)


def line(name: str, row: dict[str, Any]) -> str:
    """A row as a line of text."""
    if "fit_to_loop" in row:
        said = f"fit has {row['fit_to_loop']:.2f} of the bare loop's speed"
        return f"{name:48} {row['fit_images_per_second']:>10,.1f} images/s; {said}"
    memory = f"{(row['argument_bytes'] + row['temporary_bytes']) / 1e9:.2f} GB"
    compiled = f"compiled in {row['compile_seconds']:.0f} s"
    if "missing" in row:
        return f"{name:48} {row['missing']}: {memory}; {compiled}"
    share = f", {row['share_of_peak']:.1%} of the peak" if "share_of_peak" in row else ""
    return f"{name:48} {row['images_per_second']:>10,.1f} images/s{share}, {memory}; {compiled}"


def main(settings: Annotated[Settings, tyro.conf.arg(name="")]) -> None:
    """Measures, prints and writes it all."""
    began, device = time.perf_counter(), jax.devices()[0]
    if min(settings.rounds, 1) < 1 or min(settings.seconds, settings.round_seconds) <= 0:
        raise ValueError("--rounds, --seconds and --round-seconds must be above 0")
    use_compilation_cache()
    rates = {} if settings.small else {p: ours.rates(p) for p in ("float32", "bfloat16")}
    record: dict[str, Any] = {
        "device": device.device_kind,
        "jax": jax.__version__,
        "settings": as_json(dataclasses.asdict(settings)),
        "rates": rates,
        "rows": {},
    }
    for name, row in rows_of(settings, began):
        record["rows"][name] = row
        print(line(name, row), flush=True)
        write_json(settings.json, record)
    print(f"\nwritten: {settings.json}, after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    run_function(main)
