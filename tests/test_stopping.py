"""Commands end at a signal in one sentence, whatever they are doing, with the exit code of a shell.

Every case is a small process of its own that says when it is ready.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Running, command

from jaxvae import stopping

SOURCE = Path(stopping.__file__).parent  # the module alone imports neither jaxvae nor JAX
INSTALL = "import stopping, sys, time; stopping.install('it is as it was')\n"
# ``nohup pytest`` ignores a hangup, and so would its programs.
HEARD = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
READY = "print('ready', flush=True)\n"
FOREVER = (
    "jax.jit(lambda x: jax.lax.fori_loop(0, 2**31 - 1, lambda i, x: jax.numpy.cos(x + i), x))(1.0)"
)
MANY_LOOPS = (
    "jax.jit(lambda x: [jax.lax.fori_loop(0, i, lambda _, x: jnp.sin(x) @ x, x) "
    "for i in range(99)])"
)
ENDED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}

# What a command does when the signal comes, after it has listened and said that it is ready.
DOING = {
    "sleeps": "time.sleep(60)",
    "loops": "while True: pass",
    "waits for a thread": "import threading; threading.Event().wait()",
    "suppresses exceptions": "while True:\n try: time.sleep(60)\n except BaseException: pass",
    "fills a pipe that nobody reads": "while True: print('x' * 9999)",
}
JITTED = {
    "computes": f"import jax\n{READY}{FOREVER}.block_until_ready()",
    "compiles": f"import jax, jax.numpy as jnp\n{READY}{MANY_LOOPS}(jnp.eye(9))",
}


@contextmanager
def running(program: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEARD + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate()


def check_end(process: subprocess.Popen[str], number: signal.Signals, within: float = 2.0) -> None:
    """Sends a signal, and asserts the exit code, the one sentence and a prompt end."""
    process.send_signal(number)
    assert process.wait(within) == ENDED[number]
    said = [line for line in process.stderr.read().splitlines() if line]
    assert said == [f"interrupted ({number.name}): it is as it was"]


@pytest.mark.parametrize("number", ENDED)
@pytest.mark.parametrize("doing", DOING)
def test_the_first_signal_ends_a_command_in_a_sentence(doing: str, number: signal.Signals) -> None:
    with running(INSTALL + READY + DOING[doing]) as process:
        check_end(process, number)


@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.4, 0.6, 0.9])
def test_a_signal_is_heard_while_jax_is_imported(seconds: float) -> None:
    with running(f"{INSTALL}{READY}import jax\ntime.sleep(60)") as process:
        time.sleep(seconds)
        check_end(process, signal.SIGINT)


@pytest.mark.parametrize("doing", JITTED)
def test_a_signal_is_heard_in_the_midst_of_xla(doing: str) -> None:
    with running(INSTALL + JITTED[doing]) as process:
        time.sleep(0.4)
        check_end(process, signal.SIGINT)


def test_what_was_printed_before_is_there() -> None:
    with running(INSTALL + READY + "print('a row'); time.sleep(60)") as process:
        time.sleep(0.2)
        check_end(process, signal.SIGTERM)
        assert process.stdout.read() == "a row\n"


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with running(ignored + INSTALL + READY + "time.sleep(60)") as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
        check_end(process, signal.SIGTERM)


TRAIN = """
import stopping, sys, time
stopping.install()
print("ready", flush=True)
with stopping.Stop() as stop:
    time.sleep(float(sys.argv[1]))
    with stop.awaited():
        print("awaits", flush=True)
        while not stop.asked:
            time.sleep(0.01)
            print(".", file=sys.stderr, flush=True)
    print("saved after", stop.asked, flush=True)
    time.sleep(float(sys.argv[2]))
print("outside", flush=True)
time.sleep(float(sys.argv[3]))
"""


def training(before: float = 0, after: float = 0, outside: float = 0) -> str:
    """A program that trains, with pauses."""
    return f"import sys; sys.argv = {['', before, after, outside]}" + TRAIN


@pytest.mark.parametrize("number", ENDED)
def test_while_training_the_first_signal_is_asked_to_save(number: signal.Signals) -> None:
    with running(training()) as process:
        assert process.stdout.readline() == "awaits\n"
        process.send_signal(number)
        assert process.wait(2) == 0
        assert process.stdout.read() == f"saved after {number.name}\noutside\n"
        assert f"{number.name}: the run saves and ends" in process.stderr.read()


@pytest.mark.parametrize("number", ENDED)
def test_before_training_there_is_nothing_to_save(number: signal.Signals) -> None:
    with running(training(before=60)) as process:
        time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(2) == ENDED[number]
        said = process.stderr.read().split("\n")
        sentence = f"{number.name}: there is nothing to save; the same command goes on"
        assert [line for line in said if line] == [sentence]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    with running(training(after=60)) as process:
        assert process.stdout.readline() == "awaits\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "saved after SIGTERM\n"
        process.send_signal(number)
        assert process.wait(2) == ENDED[number]
        assert f"second signal ({number.name}): ending at once" in process.stderr.read()


def test_after_training_the_command_listens_as_before() -> None:
    with running(training(outside=60)) as process:
        assert process.stdout.readline() == "awaits\n"
        process.send_signal(signal.SIGTERM)
        assert [process.stdout.readline() for _ in range(2)][1] == "outside\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(2) == 130
        assert "interrupted (SIGINT): nothing that was saved" in process.stderr.read()


def test_a_terminal_that_closes_lets_the_training_save(tmp_path: Path) -> None:
    """What it writes to the terminal goes nowhere, and that two signals come changes nothing."""
    ours, theirs = pty.openpty()
    claim = "import fcntl, os, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    end = f"\nopen({str(tmp_path / 'end')!r}, 'w').write(stop.asked)"
    process = subprocess.Popen(
        [sys.executable, "-c", HEARD + claim + training(after=3.0) + end],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    try:
        os.close(theirs)
        said = b""
        while b"awaits" not in said:
            said += os.read(ours, 1000)
        os.close(ours)
        time.sleep(0.1)
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 0
        assert (tmp_path / "end").read_text() == "SIGHUP"
    finally:
        process.kill()
        process.wait()


def test_in_another_thread_nothing_is_heard_and_nothing_fails() -> None:
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    found = []

    def train() -> None:
        with stopping.Stop() as stop, stop.awaited():
            found.append(stop.asked)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [""]
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    with stopping.Stop():
        assert [signal.getsignal(number) for number in stopping.SIGNALS] != before
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    assert signal.set_wakeup_fd(wakeup) == wakeup


SCRIPTS = ("evaluate.py", "sample.py", "train.py", "gradient_variance.py", "papers/codes.py")


@pytest.mark.parametrize(
    "script",
    [s if s == "evaluate.py" else pytest.param(s, marks=pytest.mark.slow) for s in SCRIPTS],
)
def test_control_c_ends_a_script_in_one_sentence(script: str, tmp_path: Path) -> None:
    """At any moment from its first lines on: while it imports, and while it works."""
    arguments = {"gradient_variance.py": ["titsias_shi"], "papers/codes.py": ["penalties"]}
    for seconds in (0.0, 0.5, 1.5):
        log = tmp_path / f"after-{1000 * seconds:.0f}-ms"
        with Running(command(script, *arguments.get(script, [tmp_path])), log) as process:
            process.until(lambda process=process: process.hears(signal.SIGTERM))
            time.sleep(seconds)
            process.send(signal.SIGINT)
            text = process.ended()
        code = process.process.returncode
        assert code in (130, 2), text  # 2 where it had ended before: the folder is no run
        said = [line for line in process.err.read_text().splitlines() if line]
        assert len(said) == 1 and "Traceback" not in text, text
