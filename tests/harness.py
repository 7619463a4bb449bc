"""What tests of the scripts share: runs in processes of their own, how to damage what they left,
how to compare it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxvae.checkpoints import Checkpoints
from jaxvae.runs import Job, folders, prepare

SCRIPTS = Path(__file__).parent.parent / "experiments"
TIMINGS = {"images_per_second", "flops_per_second", "share_of_peak"}
UNOPTIMIZED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # programs compile in half the time
PATIENCE = 300.0  # seconds after which a test gives up; nothing here should take a tenth of it


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, those of loops and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params):
            yield from equations(value) if hasattr(value, "eqns") else ()


def products(function: Callable, *args: Any) -> list[Any]:
    """The matrix products and convolutions of a function."""
    kinds = "dot_general", "conv_general_dilated"
    return [
        found
        for found in equations(jax.make_jaxpr(function)(*args))
        if found.primitive.name in kinds
    ]


def command(name: str, *arguments: Any) -> list[str]:
    """The command line of a script."""
    return [
        sys.executable,
        "-W",
        "error::RuntimeWarning",
        str(SCRIPTS / name),
        *map(str, arguments),
    ]


def script(name: str, *arguments: Any, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end and checks its exit code."""
    done = subprocess.run(
        command(name, *arguments),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | UNOPTIMIZED,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def refused(
    main: Callable[[], Any],
    arguments: Iterable[Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Runs a command in this process and checks that it refuses its arguments in one sentence.

    Args:
        main: the command, which reads ``sys.argv``.
        arguments: what the user typed after its name.
        words: what the sentence on stderr must hold, with single spaces.
        monkeypatch: pytest's fixture.
        capsys: pytest's fixture.
    """
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    of_tyro = "For full helptext" in said  # several lines in a box, about what it cannot parse
    plain = " ".join(said.translate(dict.fromkeys(map(ord, "╭│╰─╮╯"))).split())
    assert words in plain
    assert "Traceback" not in plain
    assert of_tyro or len(said.strip().splitlines()) == 1, said


class Running:
    """A command in a process group of its own; ``with`` it, and it is gone at the end of the
    block.
    """

    def __init__(self, command: Sequence[str], log: Path, **environment: str):
        self.out, self.err = log.with_suffix(".out"), log.with_suffix(".err")
        with self.out.open("a") as out, self.err.open("a") as err:
            more = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | UNOPTIMIZED | environment
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, env=os.environ | more, start_new_session=True
            )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def text(self) -> str:
        """What it has written."""
        return self.out.read_text() + self.err.read_text().replace("\r", "\n")

    def until(self, ready: Callable[[], bool]) -> None:
        """Waits for something to happen while it runs."""
        end = time.monotonic() + PATIENCE
        while not ready():
            assert self.process.poll() is None, (
                f"it ended with {self.process.returncode} too early:\n{self.text}"
            )
            assert time.monotonic() < end, f"it hangs:\n{self.text}"
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to it alone."""
        self.process.send_signal(number)

    def ended(self, code: int | None = None) -> str:
        """Waits for its end, checks the exit code where one is given, and returns what it has
        written.
        """
        try:
            found = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs:\n{self.text}") from None
        assert code is None or (found == code and "Traceback" not in self.text), (
            f"exit code {found}\n{self.text}"
        )
        return self.text

    def hears(self, number: signal.Signals) -> bool:
        """Whether it has a handler of its own for a signal."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught, 16) >> (number - 1) & 1)


def begun(workdir: Path, config: Any, data: Any = None, data_dir: Path | None = None) -> Path:
    """The folder of a run that has just begun; a command opens it as one that was trained."""
    run = prepare(config, Job(data_dir=data_dir and str(data_dir)), data)
    with folders.lock(workdir), Checkpoints(workdir / "checkpoints") as saved:
        folders.save(workdir, run.record)
        saved.save(0, run.init_state(), {})
    return workdir


def child(process: Running) -> int | None:
    """The process that a shell is waiting for."""
    pid = process.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None


def free_port(candidates: Iterable[int] = (0,)) -> int:
    """A port that nothing listens on; 0 stands for any."""
    for port in candidates:
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            return server.getsockname()[1]
    raise AssertionError("no port is free")


@contextlib.contextmanager
def job(
    log: Path, arguments: Sequence[Any], processes: int, devices: int, launch: str = "flags"
) -> Iterator[list[Running]]:
    """``train.py`` in several processes of some simulated devices each, that find each other
    over loopback.
    """
    slurms = random.sample(
        range(2**16 - 2**12, 2**16), 100
    )  # where the port is a function of the job's number
    port = free_port(slurms if launch == "slurm" else (0,))
    address = f"127.0.0.1:{port}"

    def start(i: int) -> Running:
        flags: list[Any] = ["--distributed", "--heartbeat", 10]
        simulated = f"--xla_force_host_platform_device_count={devices}"
        environment = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {simulated}"}
        if launch == "flags":
            flags += ["--coordinator", address, "--num-processes", processes, "--process-id", i]
        elif launch == "kubernetes":
            environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
            environment |= {"JOB_COMPLETION_INDEX": str(i)}
        elif launch == "slurm":
            environment |= {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "127.0.0.1"}
            environment |= {
                "SLURM_NTASKS": str(processes),
                "SLURM_PROCID": str(i),
                "SLURM_LOCALID": str(i),
            }
        return Running(
            command("train.py", *arguments, *flags), log.with_name(f"{log.name}-{i}"), **environment
        )

    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(start(i)) for i in range(processes)]


def result(workdir: Path) -> dict[str, Any]:
    """result.json without its timings."""
    return _timeless(json.loads((workdir / "result.json").read_text()))


def lines(workdir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """A file of JSON lines without its timings."""
    return [_timeless(json.loads(line)) for line in (workdir / name).read_text().splitlines()]


def outcome(workdir: Path) -> dict[str, Any]:
    """Everything that a run must end with, whatever happened to it; the arrays of its state by
    their checksums.
    """
    record = json.loads((workdir / "checkpoints" / f"{newest(workdir)}.json").read_text())["record"]
    reports = {name: lines(workdir, name) for name in ("metrics.jsonl", "validation.jsonl")}
    return {"result": result(workdir), "arrays": record["arrays"], "best": best(workdir)} | reports


def newest(workdir: Path) -> int:
    """The newest step whose checkpoint is there, or 0."""
    return max(saved(workdir), default=0)


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in TIMINGS}


def saved(workdir: Path) -> list[int]:
    """The steps of the checkpoints that are there, with their records."""
    records = (workdir / "checkpoints").glob("*.json")
    return sorted(int(path.stem) for path in records if path.with_suffix("").is_dir())


def best(workdir: Path) -> int:
    """The step with the highest ELBO, by the records of the checkpoints."""
    metric = lambda step: json.loads((workdir / "checkpoints" / f"{step}.json").read_text())[
        "record"
    ]["metric"]
    return max((step for step in saved(workdir) if metric(step) is not None), key=metric)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def resumed(text: str) -> list[int]:
    """The steps at which runs say that they go on."""
    return [
        int(line.split()[3]) for line in text.splitlines() if line.startswith("resuming at step")
    ]


def flip(path: Path, place: float = 0.5, bit: int = 3) -> None:
    """Flips one bit of a file, at a place from 0 to 1."""
    data = bytearray(path.read_bytes())
    data[min(int(place * len(data)), len(data) - 1)] ^= 1 << bit
    path.write_bytes(data)


def cut(path: Path, to: float = 0.5) -> None:
    """Cuts a file short."""
    os.truncate(path, int(to * path.stat().st_size))


def arrays(folder: Path) -> Path:
    """The file with most of the arrays of a checkpoint."""
    return max(folder.glob("ocdbt.process_*/d/*"), key=lambda path: path.stat().st_size)


def _half_written(folder: Path, record: Path) -> None:
    partial = folder.rename(folder.with_name(folder.name + ".orbax-checkpoint-tmp"))
    (partial / "manifest.ocdbt").unlink()


def _edited(record: Path) -> None:
    raw = json.loads(record.read_text())
    raw["record"]["totals"] = {"sums": {}, "skipped": 7}
    record.write_text(json.dumps(raw))


def within(mounts: str, command: Sequence[str]) -> list[str]:
    """A command that sees mounts which nothing else sees and which end with it."""
    return [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        f'{mounts} && exec "$@"',
        "sh",
        *command,
    ]


def can_mount() -> bool:
    """Whether this machine lets us mount in a namespace of our own."""
    try:
        return not subprocess.run(
            within("mount -t tmpfs tmpfs /mnt", ["true"]), capture_output=True
        ).returncode
    except FileNotFoundError:
        return False


# What can happen to a checkpoint: (its folder, its record) -> None.
DAMAGES: dict[str, Callable[[Path, Path], Any]] = {
    "arrays cut short": lambda folder, record: cut(arrays(folder)),
    "arrays cut to nothing": lambda folder, record: cut(arrays(folder), 0),
    "a bit of the arrays": lambda folder, record: flip(arrays(folder)),
    "arrays gone": lambda folder, record: arrays(folder).unlink(),
    "a bit of the index": lambda folder, record: flip(next((folder / "d").iterdir())),
    "index gone": lambda folder, record: next((folder / "d").iterdir()).unlink(),
    "manifest cut short": lambda folder, record: cut(folder / "manifest.ocdbt"),
    "manifest gone": lambda folder, record: (folder / "manifest.ocdbt").unlink(),
    "metadata gone": lambda folder, record: (folder / "_METADATA").unlink(),
    "metadata cut short": lambda folder, record: cut(folder / "_METADATA"),
    "folder empty": lambda folder, record: (shutil.rmtree(folder), folder.mkdir()),
    "folder gone": lambda folder, record: shutil.rmtree(folder),
    "half-written": _half_written,
    "record gone": lambda folder, record: record.unlink(),
    "record cut short": lambda folder, record: cut(record),
    "record cut to nothing": lambda folder, record: cut(record, 0),
    "a bit of the record": lambda folder, record: flip(record),
    "record edited": lambda folder, record: _edited(record),
}


def damage(workdir: Path, step: int, way: str) -> None:
    """Damages a checkpoint of a run in one of the ways."""
    folder = workdir / "checkpoints"
    DAMAGES[way](folder / str(step), folder / f"{step}.json")
