"""Faults, done to the real script: kills, signals, damage, lost processes, full disks. None of them
changes the result.

What is compared is all that a run ends with but its timings: ``harness.outcome``.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from harness import (
    DAMAGES,
    Running,
    can_mount,
    child,
    command,
    contents,
    damage,
    job,
    lines,
    newest,
    outcome,
    resumed,
    saved,
    within,
)
from PIL import Image

from jaxvae import families
from jaxvae.command_line import parse
from jaxvae.runs import prepare
from jaxvae.runs.training import fit_in

STEPS, EVERY = 240, 20
slow = pytest.mark.slow
mounts = pytest.mark.skipif(
    not can_mount(), reason="mounting a file system in a namespace is not permitted here"
)


@pytest.fixture(scope="module")
def flags(data_dir: Path) -> Callable[..., list[Any]]:
    """The arguments of a run; virtual shards make it the same one on any number of devices and
    processes.
    """
    small = [
        "--hidden",
        16,
        "--batch-size",
        96,
        "--virtual-shards",
        8,
        "--test-samples",
        20,
        "--test-examples",
        20,
    ]
    small += ["--report-every", 15, "--checkpoint-every", EVERY]
    return lambda workdir, steps=STEPS, data=data_dir: [
        *(*small, "--steps", steps, "--data-dir", data, "--workdir", workdir)
    ]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, flags: Callable
) -> Callable[..., dict[str, Any]]:
    """What a run of so many steps ends with that nothing disturbs, in one process on one device."""

    @functools.cache
    def run(steps: int = STEPS) -> dict[str, Any]:
        workdir = tmp_path_factory.mktemp("undisturbed")
        to_the_end(workdir, flags(workdir, steps))
        return outcome(workdir)

    return run


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, flags: Callable) -> Path:
    """The workdir of a run that was stopped half-way."""
    workdir = tmp_path_factory.mktemp("half")
    with Running(command("train.py", *flags(workdir)), workdir / "log") as running:
        running.until(lambda: newest(workdir) >= STEPS // 2)
        running.send(signal.SIGTERM)
        running.ended(0)
    return workdir


def to_the_end(workdir: Path, arguments: list[Any]) -> str:
    """Runs in one process until it ends by itself, and returns what it said."""
    with Running(
        command("train.py", *arguments), workdir.with_name(f"{workdir.name}-end")
    ) as running:
        return running.ended(0)


def refused(log: Path, command: list[str]) -> str:
    """The one sentence that a command ends in, with exit code 2."""
    with Running(command, log) as running:
        text = running.ended(2)
        said = running.err.read_text().replace("\r", "\n").splitlines()
    rest = [
        line for line in said if line.strip() and not line.startswith(("training: ", "warning: "))
    ]
    assert len(rest) == 1 and rest[0].startswith("error: "), text
    return rest[0]


# Kills, signals


@slow
@pytest.mark.parametrize("kills, steps", [(3, STEPS), (20, 4000)])
def test_killed_at_random_moments_a_shell_loop_reaches_the_end(
    tmp_path: Path, flags: Callable, undisturbed: Callable, kills: int, steps: int
) -> None:
    """While it starts, trains, saves and judges; nothing that was saved is lost."""
    rng, workdir, killed, there = np.random.default_rng(kills), tmp_path / "run", None, []
    loop = [
        "sh",
        "-c",
        'until "$@"; do :; done',
        "sh",
        *command("train.py", *flags(workdir, steps)),
    ]
    with Running(loop, tmp_path / "log") as supervisor:
        for target in [0, *sorted(rng.uniform(0, 0.8 * steps, kills - 2)), steps]:
            supervisor.until(lambda last=killed: child(supervisor) not in (None, last))
            supervisor.until(lambda target=target: newest(workdir) >= target)
            time.sleep(rng.choice([0.01, 0.1, 0.5]) * rng.uniform())
            there.append((newest(workdir), len(resumed(supervisor.text))))
            killed = child(supervisor)
            os.kill(killed, signal.SIGKILL)
        starts = resumed(supervisor.ended())
    assert supervisor.process.returncode == 0, supervisor.text
    assert all(starts[start] >= step for step, start in there if step)
    assert outcome(workdir) == undisturbed(steps)


@pytest.mark.slow
def test_killed_and_then_stopped_the_same_command_ends_as_if_undisturbed(
    tmp_path: Path, flags: Callable, undisturbed: Callable
) -> None:
    """Each at a random moment; every start goes on at the newest checkpoint that is there."""
    rng, workdir, there = np.random.default_rng(0), tmp_path / "run", 0
    for number in (signal.SIGKILL, signal.SIGTERM):
        with Running(command("train.py", *flags(workdir)), tmp_path / number.name) as running:
            running.until(lambda last=there: newest(workdir) > last)
            time.sleep(0.1 * rng.uniform())
            running.send(number)
            text = running.ended(None if number == signal.SIGKILL else 0)
        assert resumed(text) == ([there] if there else [])
        there = newest(workdir)
    assert f"stopped by SIGTERM: step {there} of {STEPS} is saved" in text
    assert resumed(to_the_end(workdir, flags(workdir))) == [there]
    assert outcome(workdir) == undisturbed()


@slow
def test_stopped_at_the_step_of_a_checkpoint_it_is_judged_as_ever(
    tmp_path: Path, flags: Callable
) -> None:
    every_step = ["--report-every", "1", "--checkpoint-every", "1"]
    typed = parse([*map(str, flags(tmp_path, 4)), *every_step])
    run, step = prepare(typed.config, typed.job), 0
    for asked in ("SIGTERM", "SIGTERM", ""):
        stop: Any = SimpleNamespace(asked=asked, awaited=contextlib.nullcontext)
        state, _ = fit_in(run, tmp_path, stop, None, False)
        assert step < int(state.step)
        step = int(state.step)
    assert [line["step"] for line in lines(tmp_path, "validation.jsonl")] == [1, 2, 3, 4]


@slow
def test_a_second_signal_ends_at_once(tmp_path: Path, flags: Callable) -> None:
    with Running(command("train.py", *flags(tmp_path)), tmp_path / "log") as running:
        running.until(lambda: newest(tmp_path) > 0)
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            running.send(number)  # so that both are there before the first one can be answered
        text = running.ended()
    last = {130: "SIGINT", 143: "SIGTERM"}[running.process.returncode]
    assert f"second signal ({last}): ending at once" in text


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=slow)])
def test_a_signal_before_training_ends_cleanly(
    tmp_path: Path, flags: Callable, number: signal.Signals
) -> None:
    with Running(command("train.py", *flags(tmp_path)), tmp_path / "log") as running:
        running.until(lambda: running.hears(signal.SIGTERM))
        time.sleep(0.05)
        running.send(number)
        assert number.name in running.ended(128 + number)
    assert not saved(tmp_path)


# Damage


@slow
@pytest.mark.parametrize("way", DAMAGES)
def test_damage_of_the_newest_checkpoint_changes_nothing(
    tmp_path: Path, flags: Callable, half: Path, undisturbed: Callable, way: str
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(half, workdir)
    *_, good, bad = saved(workdir)
    damage(workdir, bad, way)
    text = to_the_end(workdir, flags(workdir))
    (warning,) = (line for line in text.splitlines() if line.startswith("warning: "))
    assert f"of step {bad} " in warning and str(workdir / "checkpoints" / str(bad)) in warning
    assert resumed(text) == [good]
    assert list((workdir / "checkpoints" / "damaged").iterdir())
    assert outcome(workdir) == undisturbed()


@slow
def test_where_every_checkpoint_is_damaged_nothing_is_trained_and_nothing_overwritten(
    tmp_path: Path, flags: Callable, half: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(half, workdir)
    ways = itertools.cycle(["a bit of the arrays", "manifest gone", "record gone", "folder gone"])
    for step in saved(workdir):
        damage(workdir, step, next(ways))
    checkpoints, others = workdir / "checkpoints", ("metrics.jsonl", "validation.jsonl")
    before = contents(checkpoints), [(workdir / name).read_bytes() for name in others]
    sentence = refused(tmp_path / "log", command("train.py", *flags(workdir)))
    assert f"{checkpoints} holds no checkpoint that can be read" in sentence
    assert (contents(checkpoints), [(workdir / name).read_bytes() for name in others]) == before


@slow
def test_a_checkpoint_of_another_model_is_refused_and_left_alone(
    tmp_path: Path, flags: Callable, half: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(half, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["config"]["network"]["hidden"] = [8]
    (workdir / "config.json").write_text(json.dumps(config))
    before = contents(workdir / "checkpoints")
    sentence = refused(tmp_path / "log", command("train.py", *flags(workdir), "--hidden", 8))
    assert f"the checkpoint of step {newest(workdir)} is of another model" in sentence
    assert contents(workdir / "checkpoints") == before


# Several processes


def lost(running: Running) -> None:
    """Waits for a process to end by itself because another one of its job is gone."""
    began = time.monotonic()
    running.ended()
    assert running.process.returncode not in (0, 2), (
        running.text
    )  # 2 would say that it is of no use to start it again
    assert time.monotonic() - began < 60  # the heartbeat is ten seconds


def stopped(workdir: Path, processes: list[Running], at: int, told: list[int]) -> int:
    """Sends SIGTERM to some processes of a job once a step is saved; returns the step that all
    have stopped at.
    """
    processes[0].until(lambda: newest(workdir) >= at)
    for which in told:
        processes[which].send(signal.SIGTERM)
    first, *_ = [running.ended(0) for running in processes]
    assert f"step {newest(workdir)} of {STEPS} is saved" in first
    return newest(workdir)


@slow
def test_a_job_that_lost_a_process_ends_on_one_device(
    tmp_path: Path, flags: Callable, undisturbed: Callable
) -> None:
    workdir = tmp_path / "run"
    with job(tmp_path / "log", flags(workdir), processes=2, devices=2) as (survivor, killed):
        survivor.until(lambda: newest(workdir) >= EVERY)
        killed.send(signal.SIGKILL)
        lost(survivor)
    there = newest(workdir)
    assert resumed(to_the_end(workdir, flags(workdir))) == [there]
    assert outcome(workdir) == undisturbed()


@slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_job_that_lost_a_process_is_started_again_and_ends(
    tmp_path: Path, flags: Callable, undisturbed: Callable, victim: int
) -> None:
    """The supervisor's part is to start all processes again; a new one may be killed too."""
    workdir = tmp_path / "run"
    for turn in range(2):
        there = newest(workdir)
        with job(tmp_path / f"{turn}", flags(workdir), processes=2, devices=2) as processes:
            processes[1 - victim].until(lambda there=there: newest(workdir) > there)
            processes[victim].send(signal.SIGKILL)
            lost(processes[1 - victim])
    there = newest(workdir)
    with job(tmp_path / "end", flags(workdir), processes=2, devices=2) as processes:
        first, _ = [running.ended(0) for running in processes]
    assert resumed(first) == [there]
    assert outcome(workdir) == undisturbed()


@slow
@pytest.mark.parametrize("told", [[0], [1], [0, 1]])
def test_a_job_is_stopped_through_any_of_its_processes(
    tmp_path: Path, flags: Callable, undisturbed: Callable, told: list[int]
) -> None:
    workdir = tmp_path / "run"
    with job(tmp_path / "stopped", flags(workdir), processes=2, devices=1) as processes:
        step = stopped(workdir, processes, EVERY, told)
    with job(tmp_path / "end", flags(workdir), processes=2, devices=1) as processes:
        first, _ = [running.ended(0) for running in processes]
    assert resumed(first) == [step]
    assert outcome(workdir) == undisturbed()


@slow
def test_a_job_that_cannot_work_says_so_in_every_process(
    tmp_path: Path, flags: Callable, half: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(half, workdir)
    for step in saved(workdir):
        damage(workdir, step, "a bit of the arrays")
    before = contents(workdir / "checkpoints")
    with job(tmp_path / "log", flags(workdir), processes=2, devices=1) as processes:
        for running in processes:
            assert "holds no checkpoint that can be read" in running.ended(2)
    assert contents(workdir / "checkpoints") == before


@slow
@pytest.mark.parametrize("launch", ["flags", "kubernetes", "slurm"])
def test_two_processes_end_as_one(
    tmp_path: Path, flags: Callable, undisturbed: Callable, launch: str
) -> None:
    devices = 1 if launch == "slurm" else 4  # SLURM's processes have one device each
    with job(tmp_path / "log", flags(tmp_path / "run", 40), 2, devices, launch) as processes:
        for running in processes:
            running.ended(0)
    assert outcome(tmp_path / "run") == undisturbed(40)


@slow
def test_without_virtual_shards_two_processes_differ_by_rounding_alone(
    tmp_path: Path, flags: Callable
) -> None:
    """In losses and norms of the gradient over ragged epochs, and in the ELBO after them."""
    own = [
        "--virtual-shards",
        0,
        "--optimizer",
        "sgd",
        "--report-every",
        1,
        "--train-split",
        "train[:250]",
    ]
    one, two = ([*flags(tmp_path / name, 40), *own] for name in ("one", "two"))
    to_the_end(tmp_path / "one", one)
    with job(tmp_path / "log", two, processes=2, devices=2) as processes:
        for running in processes:
            running.ended(0)
    ends = [outcome(tmp_path / name) for name in ("one", "two")]
    column = lambda end, term: [line[term] for line in end["metrics.jsonl"]]
    for term in ("loss", "gradient_norm"):
        np.testing.assert_allclose(*(column(end, term) for end in ends), rtol=1e-6)
    np.testing.assert_allclose(*(end["result"]["test_elbo"] for end in ends), rtol=1e-6)


@pytest.fixture(scope="module")
def half_of_eight(tmp_path_factory: pytest.TempPathFactory, flags: Callable) -> Path:
    """The workdir of a job of two processes with four devices each, of which process 0 was told
    to stop.
    """
    workdir = tmp_path_factory.mktemp("half-of-eight")
    with job(workdir / "log", flags(workdir), processes=2, devices=4) as processes:
        stopped(workdir, processes, 2 * EVERY, [0])
    return workdir


RESTARTS = {  # processes, devices of each, further flags
    "1 x 1": (1, 1, []),
    "1 x 8": (1, 8, ["--devices", 8]),
    "1 x 8, shard_map": (1, 8, ["--devices", 8, "--mapping", "shard_map"]),
    "2 x 1": (2, 1, []),
    "2 x 2, shard_map": (2, 2, ["--mapping", "shard_map"]),
    "4 x 1": (4, 1, []),
}


@slow
@pytest.mark.parametrize("restart", RESTARTS)
def test_a_job_goes_on_with_other_processes_and_devices(
    tmp_path: Path, flags: Callable, undisturbed: Callable, half_of_eight: Path, restart: str
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(half_of_eight, workdir)
    there, (processes, devices, more) = newest(workdir), RESTARTS[restart]
    with job(tmp_path / "log", [*flags(workdir), *more], processes, devices) as running:
        first, *_ = [process.ended(0) for process in running]
    assert resumed(first) == [there]
    assert outcome(workdir) == undisturbed()


# States that are cut over devices


CUT = ["--virtual-shards", 0, "--hidden", 256, "--optimizer", "sgd", "--learning-rate", 1e-3]
FSDP = [*CUT, "--mapping", "fsdp"]


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory: pytest.TempPathFactory, flags: Callable) -> Path:
    """The workdir of the same training on one device, which nothing disturbs."""
    workdir = tmp_path_factory.mktemp("on-one-device")
    to_the_end(workdir, [*flags(workdir), *CUT])
    return workdir


def assert_trained_alike(workdir: Path, other: Path) -> None:
    """The losses of all reports and the scores of all checkpoints agree to rounding."""
    for name, term in (("metrics.jsonl", "loss"), ("validation.jsonl", "validation_elbo")):
        one, two = (lines(each, name) for each in (workdir, other))
        assert [line["step"] for line in one] == [line["step"] for line in two]
        values = [[line[term] for line in each] for each in (one, two)]
        np.testing.assert_allclose(*values, rtol=1e-6)


def parts(workdir: Path, step: int) -> set[str]:
    """The folders that the processes have written their parts of a checkpoint to."""
    folder = workdir / "checkpoints" / str(step)
    return {path.name for path in folder.glob("ocdbt.process_*")}


@slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_job_with_a_cut_state_is_killed_and_ends_on_four_devices(
    tmp_path: Path, flags: Callable, on_one_device: Path, victim: int
) -> None:
    """Two processes of four devices each have written parts; one process of four goes on."""
    workdir = tmp_path / "run"
    arguments = [*flags(workdir), *FSDP]
    with job(tmp_path / "log", arguments, processes=2, devices=4) as processes:
        processes[1 - victim].until(lambda: newest(workdir) >= 2 * EVERY)
        processes[victim].send(signal.SIGKILL)
        lost(processes[1 - victim])
    there = newest(workdir)
    assert parts(workdir, there) == {"ocdbt.process_0", "ocdbt.process_1"}
    with job(tmp_path / "end", arguments, processes=1, devices=4) as (running,):
        assert resumed(running.ended(0)) == [there]
    assert_trained_alike(workdir, on_one_device)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 colour images of 16x16."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i, colours in enumerate(rng.integers(0, 256, (60, 4, 4, 3)).astype(np.uint8)):
        Image.fromarray(colours).resize((16, 16)).save(folder / f"{i:02}.png")
    return folder


# Flags of presets that are trained on a folder of images. Adam's first steps are the signs of
# gradients, which rounding decides where a gradient is nearly 0: the critic's steps are short.
ON_PICTURES: dict[str, list[Any]] = {
    "conv": ["--hidden", 32, 64, "--latent", 8],
    "autoencoder-kl": ["--hidden", 32, 64, "--blocks", 1, "--critic-start", 8]
    + ["--critic-learning-rate", 1e-7],
}


@slow
@pytest.mark.parametrize("preset", [name for name in ON_PICTURES if name in families.presets()])
def test_a_preset_on_a_folder_is_killed_in_two_processes_and_ends_in_one(
    tmp_path: Path, pictures: Path, preset: str
) -> None:
    """Eight devices in two processes, then four in one, with the losses of one device."""
    flags = [preset, "--dataset", pictures, "--image-size", 16, *ON_PICTURES[preset]]
    flags += ["--steps", 24, "--batch-size", 16, "--report-every", 2, "--checkpoint-every", 6]
    flags += ["--optimizer", "sgd", "--learning-rate", 1e-5]
    flags += ["--test-samples", 4, "--test-examples", 4]
    of = lambda name: [*flags, "--workdir", tmp_path / name]
    to_the_end(tmp_path / "one", of("one"))
    workdir, fsdp = tmp_path / "run", [*of("run"), "--mapping", "fsdp"]
    with job(tmp_path / "log", fsdp, processes=2, devices=4) as processes:
        processes[0].until(lambda: newest(workdir) >= 6)
        processes[1].send(signal.SIGKILL)
        lost(processes[0])
    there = newest(workdir)
    assert parts(workdir, there) == {"ocdbt.process_0", "ocdbt.process_1"}
    with job(tmp_path / "end", fsdp, processes=1, devices=4) as (running,):
        assert resumed(running.ended(0)) == [there]
    assert_trained_alike(workdir, tmp_path / "one")


# processes, devices of each, further flags, of a run that is stopped and of one that goes on
CUT_RESTARTS: dict[str, tuple[tuple[int, int, list[Any]], tuple[int, int, list[Any]]]] = {
    "a hybrid, then one copy": (
        (2, 2, ["--mapping", "fsdp", "--mesh", "2,2"]),
        (2, 1, ["--mapping", "fsdp"]),
    ),
    "whole, then cut": ((1, 2, ["--devices", 2]), (2, 2, ["--mapping", "fsdp"])),
    "cut, then whole": ((2, 2, ["--mapping", "fsdp"]), (2, 1, ["--mapping", "shard_map"])),
}


@slow
@pytest.mark.parametrize("way", CUT_RESTARTS)
def test_a_cut_state_goes_on_under_other_mappings_and_meshes(
    tmp_path: Path, flags: Callable, on_one_device: Path, way: str
) -> None:
    workdir, texts = tmp_path / "run", []
    for turn, (processes, devices, more) in enumerate(CUT_RESTARTS[way]):
        arguments = [*flags(workdir), *CUT, *more]
        with job(tmp_path / f"{turn}", arguments, processes, devices) as running:
            if not turn:
                running[0].until(lambda: newest(workdir) >= EVERY)
                running[-1].send(signal.SIGTERM)
            first, *_ = [each.ended(0) for each in running]
            texts.append(first)
    (there,) = resumed(texts[1])
    assert f"step {there} of {STEPS} is saved" in texts[0]
    assert_trained_alike(workdir, on_one_device)


@slow
@pytest.mark.parametrize("way", ["a bit of the arrays", "a part gone", "record gone"])
def test_damage_of_a_part_is_found_by_every_process(
    tmp_path: Path, flags: Callable, on_one_device: Path, way: str
) -> None:
    """Of the part that one process has written; all go on at the checkpoint before it."""
    workdir = tmp_path / "run"
    arguments = [*flags(workdir), *FSDP]
    with job(tmp_path / "first", arguments, processes=2, devices=2) as processes:
        stopped(workdir, processes, 2 * EVERY, [1])
    *_, good, bad = saved(workdir)
    if way == "a part gone":
        shutil.rmtree(workdir / "checkpoints" / str(bad) / "ocdbt.process_1")
    else:
        damage(workdir, bad, way)
    with job(tmp_path / "end", arguments, processes=2, devices=2) as processes:
        first, _ = [running.ended(0) for running in processes]
    (warning,) = (line for line in first.splitlines() if line.startswith("warning: "))
    assert f"of step {bad} " in warning
    assert resumed(first) == [good]
    assert_trained_alike(workdir, on_one_device)


# The workdir and the file system


@slow
def test_a_second_run_on_a_workdir_is_refused_and_the_first_goes_on(
    tmp_path: Path, flags: Callable, undisturbed: Callable
) -> None:
    workdir = tmp_path / "run"
    with Running(command("train.py", *flags(workdir)), tmp_path / "first") as running:
        running.until(lambda: newest(workdir) > 0)
        running.send(signal.SIGSTOP)  # it holds the workdir all the while
        sentence = refused(tmp_path / "second", command("train.py", *flags(workdir)))
        running.send(signal.SIGCONT)
        running.ended(0)
    assert f"{workdir} is in use by process {running.process.pid} on " in sentence
    assert outcome(workdir) == undisturbed()


# mounts on the folder, workdir, data (None: where the digits are prepared) -> what is said
PLACES = {
    "below a file": ("", "file/run", None, "file/run: Not a directory"),
    "read-only workdir": (
        "mount -t tmpfs -o ro tmpfs {}",
        "run",
        None,
        "run: Read-only file system",
    ),
    "read-only data": (
        "mount -t tmpfs -o ro tmpfs {}",
        "run",
        "data",
        "digits cannot be prepared in {}/data",
    ),
    "full disk": ("mount -t tmpfs -o size=240k tmpfs {}", "run", None, "No space left on device"),
    "full from the start": (
        "mount -t tmpfs -o size=4k tmpfs {}",
        "run",
        None,
        "No space left on device",
    ),
}


@slow
@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_used_is_named_in_a_sentence(
    tmp_path: Path, flags: Callable, data_dir: Path, place: str
) -> None:
    mount, run, data, said = PLACES[place]
    there = tmp_path / "there"
    there.mkdir()
    (there / "file").touch()
    arguments = command("train.py", *flags(there / run, data=there / data if data else data_dir))
    if mount and not can_mount():
        pytest.skip("mounting is not permitted here")
    sentence = refused(
        tmp_path / "log", within(mount.format(there), arguments) if mount else arguments
    )
    assert said.format(there) in sentence


@slow
@mounts
@pytest.mark.parametrize("size", ["100k", "200k", "300k", "400k"])
def test_a_disk_that_was_full_is_of_no_consequence_once_it_is_not(
    tmp_path: Path, flags: Callable, undisturbed: Callable, size: str
) -> None:
    """Wherever it hit; the run is copied out of the mount, which ends with the shell."""
    there, copy = tmp_path / "there", tmp_path / "copy"
    there.mkdir()
    mount, more = (
        f"mount -t tmpfs -o size={size} tmpfs {there}",
        f"mount -o remount,size=64m {there}",
    )
    twice = ["sh", "-c", f'"$@"; echo first $?; {more}; "$@"; cp -r {there}/run {copy}', "sh"]
    with Running(
        within(mount, [*twice, *command("train.py", *flags(there / "run"))]), tmp_path / "log"
    ) as running:
        text = running.ended(0)
    assert "first 2" in text
    assert text.count("error: ") == 1 and "No space left on device" in text
    assert outcome(copy) == undisturbed()


@slow
@mounts
def test_data_is_read_from_a_place_that_cannot_be_written(
    tmp_path: Path, flags: Callable, undisturbed: Callable, data_dir: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    mount = f"mount --bind {data_dir} {data} && mount -o remount,bind,ro {data}"
    mount += f" && ! touch {data}/x 2>/dev/null"
    with Running(
        within(mount, command("train.py", *flags(tmp_path / "run", 40, data))), tmp_path / "log"
    ) as running:
        running.ended(0)
    assert outcome(tmp_path / "run") == undisturbed(40)
