"""Trackers get the numbers of metrics.jsonl, and their failures do no harm."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import jaxvae
from jaxvae.runs import reports, trackers

Heard = list[tuple[int, dict[str, float]]]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    """What the tracker ``ours`` hears. It remembers runs, and fails at step 30."""
    found: Heard = []

    def ours(workdir: Path, settings: Any, known: str | None) -> trackers.Tracker:
        def report(step: int, values: Any) -> None:
            if step == 30:
                raise ConnectionError("the line is dead")
            found.append((step, dict(values)))

        return trackers.Tracker(report, name=f"{known or ''}{workdir.name}{settings['latent']}")

    monkeypatch.setitem(trackers.TRACKERS, "ours", ours)
    return found


def test_trackers_hear_what_is_written(
    heard: Heard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = trackers.opened(["ours"], tmp_path, {"latent": 10})
    metrics = reports.Metrics(tmp_path, 0, 40, False, lambda speed: {}, opened)
    for step in (10, 20, 30, 40):
        metrics.report(step, {"loss": 1.5, "kl": None, "images_per_second": 9.0})
    metrics.close()
    assert heard == [(s, {"loss": 1.5, "images_per_second": 9.0}) for s in (10, 20)]
    assert len(reports.read_lines(tmp_path / "metrics.jsonl")) == 4
    assert capsys.readouterr().err.count("ours fails (the line is dead)") == 1


def test_a_run_that_goes_on_keeps_its_name(heard: Heard, tmp_path: Path) -> None:
    (first,) = trackers.opened(["ours"], tmp_path, {"latent": 1})
    (again,) = trackers.opened(["ours"], tmp_path, {"latent": 1})
    assert again.name == first.name + first.name


def test_a_service_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any) -> trackers.Tracker:
        raise ConnectionError("no route")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", closed)
    with pytest.raises(ValueError, match="--trackers wandb: no route"):
        trackers.opened(["wandb"], tmp_path, {})


def test_what_is_not_installed_is_said() -> None:
    with pytest.raises(ValueError, match="no tracker 'none'; there are wandb, mlflow, aim"):
        trackers.check(["none"])
    missing = [name for name in trackers.TRACKERS if importlib.util.find_spec(name) is None]
    for name in missing:
        with pytest.raises(ValueError, match=f"pip install {name}"):
            trackers.check([name])


@pytest.mark.slow
def test_train_reports_to_a_function(tmp_path: Path) -> None:
    """The numbers of metrics.jsonl and validation.jsonl, in order."""
    heard: Heard = []
    report = lambda step, values: heard.append((step, dict(values)))
    sizes: dict[str, Any] = {"hidden": (4,), "steps": 4, "report_every": 2, "test_samples": 2}
    jaxvae.train("digits", tmp_path, report=report, progress=False, checkpoint_every=4, **sizes)
    lines = reports.read_lines(tmp_path / "metrics.jsonl")
    assert [(s, v["loss"]) for s, v in heard if "loss" in v] == [
        (line["step"], line["loss"]) for line in lines
    ]
    assert "validation_elbo" in heard[-1][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(trackers.TRACKERS))
def test_services_take_a_run_and_go_on_with_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The libraries themselves, without a network."""
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    for variable, value in {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"file:{tmp_path}/mlruns",
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }.items():
        monkeypatch.setenv(variable, value)
    names = []
    for step in (1, 2):
        (tracker,) = trackers.opened([name], tmp_path, {"latent": 3, "hidden": [4]})
        tracker.report(step, {"loss": 0.5})
        tracker.close()
        names.append(json.loads((tmp_path / trackers.FILE).read_text())[name])
    assert names[0] == names[1]
