"""Trackers of experiments: Weights & Biases, MLflow and Aim get what ``metrics.jsonl`` gets.

A tracker is two functions, so any other service is a few lines: ``report(step, values)`` and
``close()``. ``jaxvae train --trackers wandb mlflow`` names rows of ``TRACKERS``, and
``jaxvae.train(..., report=f)`` takes a function. Each service reads its address and its project
from its own environment variables, such as ``WANDB_PROJECT`` and ``MLFLOW_TRACKING_URI``.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxvae.runs.folders import warn

PROJECT = "jaxvae"  # where the environment names none
FILE = "trackers.json"  # in a run folder: the name that each service gave to the run

Report = Callable[[int, Mapping[str, float]], None]


class Tracker(NamedTuple):
    """Where the numbers of a run go."""

    report: Report  # (step, values by name)
    close: Callable[[], None] = lambda: None
    name: str = ""  # by which the service knows the run


def wandb(workdir: Path, settings: Mapping[str, Any], known: str | None) -> Tracker:
    """A run of Weights & Biases.

    ``known`` is the name that the service gave to a run which goes on.
    """
    run = _imported("wandb").init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=workdir.name,
        id=known,
        resume="allow",
        config=dict(settings),
        dir=str(workdir),
    )
    run.define_metric("*", step_metric="step")  # a run that goes on may repeat steps
    return Tracker(lambda step, values: run.log({"step": step, **values}), run.finish, run.id)


def mlflow(workdir: Path, settings: Mapping[str, Any], known: str | None) -> Tracker:
    """A run of MLflow. ``known`` is as in ``wandb``."""
    client = _imported("mlflow").MlflowClient()
    name = known
    if name is None:
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(project)
        place = client.create_experiment(project) if experiment is None else None
        run = client.create_run(place or experiment.experiment_id, run_name=workdir.name)
        name = run.info.run_id
        for setting, value in settings.items():
            client.log_param(name, setting, value)

    def report(step: int, values: Mapping[str, float]) -> None:
        for term, value in values.items():
            client.log_metric(name, term, value, step=step)

    return Tracker(report, lambda: client.set_terminated(name), name)


def aim(workdir: Path, settings: Mapping[str, Any], known: str | None) -> Tracker:
    """A run of Aim. ``known`` is as in ``wandb``."""
    run = _imported("aim").Run(run_hash=known, experiment=PROJECT)
    run.name, run["settings"] = workdir.name, dict(settings)

    def report(step: int, values: Mapping[str, float]) -> None:
        for term, value in values.items():
            run.track(value, name=term, step=step)

    return Tracker(report, run.close, run.hash)


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], str | None], Tracker]] = {
    "wandb": wandb,
    "mlflow": mlflow,
    "aim": aim,
}


def check(names: Sequence[str]) -> None:
    """Raises ValueError for a tracker that there is not, or that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"no tracker {name!r}; there are {', '.join(TRACKERS)}")
        _imported(name)


def opened(names: Sequence[str], workdir: Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of a run folder. A run that goes on is the same run for each service.

    Raises ValueError if a service does not answer. Once training has begun, a service that fails is
    left out with a warning, because ``metrics.jsonl`` has its numbers.
    """
    file = workdir / FILE
    known = json.loads(file.read_text()) if file.exists() else {}
    trackers = []
    for name in names:
        try:
            tracker = TRACKERS[name](workdir, settings, known.get(name))
        except Exception as error:
            raise ValueError(f"--trackers {name}: {str(error) or repr(error)}") from error
        known[name] = tracker.name
        trackers.append(_careful(name, tracker))
    if names:
        file.write_text(json.dumps(known) + "\n")
    return trackers


def _careful(name: str, tracker: Tracker) -> Tracker:
    """The tracker, which warns and falls silent when its service fails."""
    failed = False

    def careful(call: Callable) -> Callable:
        def called(*args: Any) -> None:
            nonlocal failed
            if failed:
                return
            try:
                call(*args)
            except Exception as error:
                failed = True
                warn(f"{name} fails ({error}); metrics.jsonl has what it misses")

        return called

    return Tracker(careful(tracker.report), careful(tracker.close), tracker.name)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"--trackers {name} needs {name}: pip install {name}") from error
