"""Trains a variational autoencoder: ``python experiments/train.py [PRESET] [--field value ...]``;
``--help`` lists all.

The same command on the same workdir resumes where it stopped, bit for bit. SIGTERM or SIGINT saves
and ends with exit code 0; what cannot work ends in one sentence and exit code 2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import config as setup
import folders
import jax
import jax.numpy as jnp
import outcomes
import stopping
import wiring

from jaxvae import checkpoints, costs, evaluation, processes, training


def devices_of(config: setup.Config) -> list[jax.Device]:
    """The devices to train on, equally many of each process."""
    count = config.devices or (jax.device_count() if config.distributed else 1)
    every = [
        [d for d in jax.devices() if d.process_index == process]
        for process in range(jax.process_count())
    ]
    each, rest = divmod(count, len(every))
    if rest or not 1 <= each <= min(map(len, every)):
        have = (
            f"this machine has {len(every[0])}"
            if len(every) == 1
            else f"the processes have {[*map(len, every)]}"
        )
        raise ValueError(f"--devices {count}: {have}")
    return [device for own in every for device in own[:each]]


def train(run: wiring.Run, workdir: Path, stop: stopping.Stop) -> Any:
    """Trains to the last step, from the newest good checkpoint where there is one, and returns
    the state.
    """
    config, devices = run.config, devices_of(run.config)
    state, totals = training.replicate(run.init_state(), devices), None
    with stop.awaited(), checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        found = saved.restore_newest(
            state, folders.warn if processes.is_first() else lambda message: None
        )
        if found is not None:
            step, state, totals = found
            outcomes.say(f"resuming at step {step} of {config.steps}")
        if config.profile:
            profile(run, devices, workdir)
        metrics = outcomes.Metrics(
            workdir, int(processes.local(state.step)), config.steps, step_cost(run, devices)
        )

        def save(moment: training.HookState) -> None:
            if moment.stopping and moment.step % config.checkpoint_every:
                saved.save(moment.step, moment.state, moment.totals)
                return
            params = processes.local(training.trained(moment.state))
            examples = run.raw(run.monitored)
            summary = evaluation.evaluate(
                run.vae, params, examples, run.key, preprocess=run.preprocess
            )
            score = summary.reconstruction if summary.elbo is None else summary.elbo
            metrics.validate(moment.step, score)
            saved.save(moment.step, moment.state, moment.totals, metric=score)

        hooks = [training.Hook(config.checkpoint_every, save)]
        try:
            return fit(
                run,
                devices,
                num_steps=config.steps,
                state=state,
                totals=totals,
                report=metrics.report,
                report_every=config.report_every,
                hooks=hooks,
                stop=lambda: bool(stop.asked),
            )
        finally:
            metrics.close()


def fit(run: wiring.Run, devices: list[jax.Device], **settings: Any) -> Any:
    """``training.fit`` of a run."""
    config = run.config
    return training.fit(
        run.algorithm,
        run.train,
        batch_size=config.batch_size,
        seed=config.seed,
        devices=devices,
        mapping=config.mapping,
        **settings,
    )


def profile(run: wiring.Run, devices: list[jax.Device], workdir: Path) -> None:
    """Traces the second ten of twenty steps of a training that is thrown away."""

    def turn(moment: training.HookState) -> None:
        if moment.step == 10:
            jax.profiler.start_trace(str(workdir / "profile"), create_perfetto_trace=True)
        else:
            jax.block_until_ready(moment.state)
            jax.profiler.stop_trace()

    fit(run, devices, num_steps=20, hooks=[training.Hook(10, turn)], seconds_per_call=float("inf"))
    outcomes.say(f"profile of ten steps: {workdir / 'profile'}")


def step_cost(run: wiring.Run, devices: list[jax.Device]) -> Callable[[float], dict[str, float]]:
    """From images/s to the model's operations per second, and their share of the devices' peak
    where it is known.
    """
    config = run.config
    shaped = lambda shape, dtype: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)
    x = jax.tree.map(lambda a: shaped(a[0].shape, a[0].dtype), run.train)
    batch = training.Batch(x, shaped((), jnp.int32), shaped((), jnp.float32))
    flops = costs.step_flops(run.algorithm, jax.eval_shape(run.init_state), batch)
    peak = costs.peak_flops(devices[0], config.precision)

    def of_speed(images_per_second: float) -> dict[str, float]:
        if flops is None:
            return {}
        per_second = flops * images_per_second / config.batch_size
        return {"flops_per_second": per_second} | (
            {"share_of_peak": per_second / peak / len(devices)} if peak else {}
        )

    return of_speed


def finish(run: wiring.Run, params: Any, workdir: Path) -> None:
    """Judges the parameters on the test split, draws the figures, and prints the closing table."""
    config = run.config
    test = run.test.take(slice(config.test_examples))
    judged = outcomes.judge(run, params, test, config.test_samples)
    if not processes.is_first():
        return
    reports = outcomes.read_lines(workdir / "metrics.jsonl")
    speed = {name: [line[name] for line in reports if name in line] for name in outcomes.SPEEDS}
    speed = {name: statistics.median(values) for name, values in speed.items() if values}
    validation = outcomes.read_lines(workdir / "validation.jsonl")
    drawn = outcomes.draw(run, params, workdir / "figures", [*reports, *validation])
    rest = {name: value for name, value in judged.items() if name not in ("elbo", "log_likelihood")}
    result = {"test_elbo": judged["elbo"], "test_log_likelihood": judged["log_likelihood"]} | rest
    result |= {"steps": config.steps} | speed
    folders.write_json(workdir / "result.json", result)
    print(f"\n{run.dataset.name}, {config.test_split} split, after {config.steps} steps")
    newest = workdir / "checkpoints" / str(config.steps)
    shown = ", ".join(outcomes.SPEEDS[name](value) for name, value in speed.items())
    places = [
        ("speed", shown),
        ("figures", f"{workdir / 'figures'} ({len(drawn)})"),
        ("checkpoint", str(newest)),
        ("run", str(workdir)),
    ]
    outcomes.table([*outcomes.judgement_rows(judged), *places])


def main() -> None:
    """Parses the command line and does it all."""
    preset, config = setup.parse(sys.argv[1:])
    workdir = Path(config.workdir or f"runs/{preset}-{Path(config.dataset).stem}-{config.seed}")
    config = dataclasses.replace(config, workdir=str(workdir))
    try:
        with stopping.Stop() as stop, contextlib.ExitStack() as locked:
            wiring.join(config)
            if jax.process_count() > 1:
                processes.on_first(lambda: wiring.build(config))  # prepares the data once
            run = wiring.build(config)
            processes.on_first(lambda: locked.enter_context(folders.claim(workdir)))
            processes.on_first(lambda: folders.save_config(workdir, config))
            state = processes.local(train(run, workdir, stop))
            if processes.any_of(bool(stop.asked)) or state.step < config.steps:
                by = stop.asked or "a signal to another process"
                outcomes.say(
                    f"stopped by {by}: step {state.step} of {config.steps} is saved, the same command goes on"
                )
            else:
                finish(run, training.trained(state), workdir)
    except (ValueError, OSError, training.NotFiniteError) as error:
        commands.fail(error, workdir)


if __name__ == "__main__":
    commands.one_voice()
    commands.keep_programs()
    main()
