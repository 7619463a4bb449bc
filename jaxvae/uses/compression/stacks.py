"""A stack of symbols: asymmetric numeral systems (Duda 2013, arXiv:1311.2540) by constriction.

What is pushed with a frequency costs its information content. What is popped with frequencies that
were never pushed is a random draw from them, and it takes its information content off the stack.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


class ShortageError(Exception):
    """More was popped than the stack held."""


class Stack:
    """A stack of symbols in words of 32 bits, [W] with the bottom first."""

    def __init__(self, words: np.ndarray):
        """Raises ValueError if constriction is not there."""
        library = _library()
        self._coder = library.stack.AnsCoder(np.ascontiguousarray(words, np.uint32))
        self._family = library.model.Categorical(perfect=False)

    def push(self, symbols: np.ndarray, frequencies: np.ndarray) -> None:
        """Pushes symbols [n], each with its frequencies [n, C], or all with the same [C]."""
        self._coder.encode_reverse(np.ascontiguousarray(symbols, np.int32), *self._of(frequencies))

    def pop(self, frequencies: np.ndarray, count: int | None = None) -> np.ndarray:
        """Pops a symbol for each row of frequencies [n, C], or ``count`` of the same [C].

        Raises ShortageError if the stack is too low. The library itself gives symbols then, and
        they cost thousands of bits.
        """
        model, *rows = self._of(frequencies)
        symbols = self._coder.decode(model, *(rows or [count]))
        if self._coder.num_words() < 2:
            raise ShortageError
        return symbols

    def _of(self, frequencies: np.ndarray) -> tuple[Any, ...]:
        numbers = np.ascontiguousarray(frequencies, np.float64)
        if numbers.ndim == 2:
            return self._family, numbers
        return (_library().model.Categorical(numbers, perfect=False),)

    @property
    def bits(self) -> int:
        """How much the stack holds."""
        return self._coder.num_valid_bits()

    @property
    def words(self) -> np.ndarray:
        """The words of the stack [W]."""
        return self._coder.get_compressed()


def _library() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise ValueError(
            "compression needs constriction: pip install 'jaxvae[compression]'"
        ) from error
    return constriction.stream


def coder_version() -> str:
    """The part of constriction's version whose change changes what it writes."""
    from importlib.metadata import version

    _library()
    first, second = version("constriction").split(".")[:2]
    return f"{first}.{second}" if first == "0" else first


def seed_words(seed: int, count: int) -> np.ndarray:
    """Words that look random [W], the same everywhere, by SHAKE-256. The last is not zero."""
    drawn = hashlib.shake_256(f"jaxvae {seed}".encode()).digest(4 * count)
    words = np.frombuffer(drawn, "<u4").astype(np.uint32)
    words[-1] |= 1
    return words
