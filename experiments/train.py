"""Trains a variational autoencoder: ``python experiments/train.py [PRESET] [--field value ...]``; ``--help`` lists all.

The same command on the same workdir resumes where it stopped, bit for bit.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Any

import config as setup
import jax
import outcomes

from jaxvae import checkpoints, evaluation, training


def train(run: setup.Run, workdir: Path) -> Any:
    """Trains to the last step, from the newest checkpoint where there is one, and returns the parameters to judge."""
    config = run.config
    devices = jax.local_devices()
    if not 1 <= config.devices <= len(devices):
        raise ValueError(f"--devices {config.devices}: this machine has {len(devices)}")
    state, totals = run.init_state(), None
    with checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        if saved.latest is not None:
            state, totals = saved.restore(saved.latest, state)
            print(f"resuming at step {saved.latest} of {config.steps}")
        metrics = outcomes.Metrics(workdir, int(state.step), config.steps)

        def save(moment: training.Moment) -> None:
            params = training.trained(moment.state)
            summary = evaluation.evaluate(run.vae, params, run.monitored.images, run.key, treat=run.treat)
            metrics.validate(moment.step, summary.elbo)
            saved.save(moment.step, moment.state, moment.totals, metric=summary.elbo)

        try:
            state = training.fit(
                run.algorithm,
                run.train.images,
                num_steps=config.steps,
                batch_size=config.batch_size,
                seed=config.seed,
                state=state,
                totals=totals,
                report=metrics.report,
                report_every=config.report_every,
                hooks=[training.Hook(config.checkpoint_every, save)],
                devices=devices[: config.devices],
            )
        finally:
            metrics.close()
    return training.trained(state)


def finish(run: setup.Run, params: Any, workdir: Path) -> None:
    """Judges the parameters on the test split, draws the figures, and prints the closing table."""
    config = run.config
    test = run.test._replace(images=run.test.images[: config.test_examples])
    judged = outcomes.judge(run, params, test, config.test_samples)
    reports = outcomes.read_lines(workdir / "metrics.jsonl")
    speeds = [line["images_per_second"] for line in reports]
    validation = outcomes.read_lines(workdir / "validation.jsonl")
    drawn = outcomes.draw(run, params, workdir / "figures", [*reports, *validation])
    rest = {name: value for name, value in judged.items() if name not in ("elbo", "log_likelihood")}
    result = {"test_elbo": judged["elbo"], "test_log_likelihood": judged["log_likelihood"]} | rest
    result |= {"steps": config.steps, "images_per_second": statistics.median(speeds) if speeds else None}
    setup.write_json(workdir / "result.json", result)
    print(f"\n{run.dataset.name}, {config.test_split} split, after {config.steps} steps")
    newest = workdir / "checkpoints" / str(config.steps)
    places = [("figures", f"{workdir / 'figures'} ({len(drawn)})"), ("checkpoint", str(newest)), ("run", str(workdir))]
    outcomes.table([*outcomes.judgement_rows(judged), *places])


def main() -> None:
    """Parses the command line and does it all; what cannot work ends in one sentence and exit code 2."""
    preset, config = setup.parse(sys.argv[1:])
    workdir = Path(config.workdir or f"runs/{preset}-{Path(config.dataset).stem}-{config.seed}")
    try:
        run = setup.build(dataclasses.replace(config, workdir=str(workdir)))
        workdir.mkdir(parents=True, exist_ok=True)
        setup.save_config(workdir, run.config)
        finish(run, train(run, workdir), workdir)
    except (ValueError, OSError, training.NotFiniteError) as error:
        setup.fail(str(error))


if __name__ == "__main__":
    main()
