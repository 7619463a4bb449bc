"""How commands end when a signal asks them to: in one sentence, never in a traceback.

SIGINT is Ctrl-C, SIGTERM is what schedulers send, and SIGHUP says that the terminal is gone. A
command that has nothing to save calls ``install()`` in its first lines. A command that trains also
works inside of ``Stop``: its first signal saves, and its second one ends the process at once.

This module imports nothing but the standard library, so that it can listen while JAX is imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
NOTHING_LOST = "nothing that was saved before is lost"
SECONDS_TO_FLUSH = 0.5


def install(consequence: str = NOTHING_LOST) -> None:
    """Ends the process in one sentence at the first signal from now on.

    The exit code is 128 and the number of the signal: 130 for SIGINT, 143 for SIGTERM, 129 for
    SIGHUP. The sentence reads "interrupted (SIGINT): " and then ``consequence``. A command calls
    this before it imports JAX. In a thread other than the main one it does nothing, because Python
    has no handlers there.
    """
    _Listener(lambda number: _end(f"interrupted ({number.name}): {consequence}", number)).start()


class Stop:
    """Asks a training to save and end at the first signal; a second one ends it at once.

    While ``awaited`` the first signal sets ``asked`` to its name, and whoever awaits it saves and
    ends. At other times there is nothing to save, and the first signal ends the process with exit
    code 128 and its number. Without ``with``, or outside of the main thread, nothing is heard.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._awaited = False
        self._listener = _Listener(self._answer)

    def __enter__(self) -> Stop:
        self._listener.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._listener.stop()

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """The time in which a signal is answered by saving."""
        self._awaited = True
        try:
            yield
        finally:
            self._awaited = False

    def _answer(self, number: signal.Signals) -> None:
        if self.asked and number.name == "SIGHUP":
            return  # a terminal that closes sends it twice, and nobody wished for a sudden end
        if self.asked:
            _end(f"second signal ({number.name}): ending at once", number)
        if not self._awaited:
            _end(f"{number.name}: there is nothing to save; the same command goes on", number)
        self.asked = number.name
        _say(f"{number.name}: the run saves and ends; a second signal ends it at once")


class _Listener:
    """Hears signals in a thread of its own, also while the program compiles, waits or imports.

    Python runs handlers between two instructions of the main thread, which may be far apart. The
    number of a signal is written into a socket at once, and the thread reads it there.
    """

    def __init__(self, answer: Callable[[signal.Signals], None]):
        self._answer = answer
        self._before: dict[signal.Signals, Any] = {}

    def start(self) -> None:
        """Listens from now on, unless this is another thread than the main one."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._heard, self._told = socket.socketpair()
        self._told.setblocking(False)
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._other = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup wants it to be ignored
            self._before[number] = signal.signal(number, self._interrupt)

    def stop(self) -> None:
        """Gives the signals back to whoever had them before."""
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._other)
        self._told.close()
        self._thread.join()
        self._heard.close()
        self._before = {}

    def _listen(self) -> None:
        while told := self._heard.recv(1):
            if told[0] in SIGNALS:
                self._silence_lost_terminals()
                self._answer(signal.Signals(told[0]))

    def _interrupt(self, *_: Any) -> None:
        """Python's handler in the main thread, whose next line may write to a lost terminal."""
        self._silence_lost_terminals()

    def _silence_lost_terminals(self) -> None:
        """Sends what would go to a closed terminal nowhere, where writing would raise OSError."""
        for terminal in self._terminals:
            if not os.isatty(terminal):
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)


def _say(sentence: str) -> None:
    """Writes past Python's buffers, which the main thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{sentence}\n".encode())


def _end(sentence: str, number: signal.Signals) -> NoReturn:
    """Ends the process without unwinding, which would print a traceback or crash in XLA."""
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(SECONDS_TO_FLUSH)  # the main thread may be stuck in a pipe that nobody reads
    _say(sentence)
    os._exit(128 + number)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
