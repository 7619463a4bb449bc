"""SIGTERM and SIGINT: the first one asks for an orderly end, the second one ends the process at
once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Watches for the signals from a thread of its own, so that they are heard while the program
    compiles or waits.

    While ``awaited`` the first one sets ``asked``, and whoever asks for it is to save and end; at
    other times, when there is nothing to save, it ends the process.
    """

    def __init__(self) -> None:
        self.asked, self._awaited = "", False

    def __enter__(self) -> Stop:
        self._heard, self._told = socket.socketpair()
        self._told.setblocking(False)
        self._before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._told.close()
        self._thread.join()
        self._heard.close()

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """The time in which a signal is answered by saving."""
        self._awaited = True
        try:
            yield
        finally:
            self._awaited = False

    def _watch(self) -> None:
        while told := self._heard.recv(1):
            number = told[0]
            if number not in SIGNALS:
                continue
            name = signal.Signals(number).name
            if self.asked:
                self._end(f"second signal ({name}): ending at once", 128 + number)
            if not self._awaited:
                self._end(f"{name}: there is nothing to save; the same command goes on", 0)
            self.asked = name
            print(
                f"\n{name}: the run saves and ends; a second signal ends it at once",
                file=sys.stderr,
                flush=True,
            )

    @staticmethod
    def _end(sentence: str, code: int) -> None:
        print(f"\n{sentence}", file=sys.stderr, flush=True)
        os._exit(code)
