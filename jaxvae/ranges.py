"""Ranges of settings: annotations that say which numbers a setting may be.

A command line derives its flags from signatures, and from these annotations what it refuses:
``def planar(latent: int, flow_steps: Count = 4)``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any


@dataclasses.dataclass(frozen=True)
class Range:
    """The finite numbers from ``low`` to ``high``; ``low`` itself is outside if ``above``."""

    low: float
    high: float = math.inf
    above: bool = False

    def __str__(self) -> str:
        low = f"above {self.low}" if self.above else f"at least {self.low}"
        return low if self.high == math.inf else f"{low} and at most {self.high}"

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError unless a number, or every number of a tuple, is in the range."""
        for number in value if isinstance(value, tuple) else (value,):
            if math.isinf(number) and number > 0:
                raise ValueError(f"{name} must be finite and {self}; it was {value}")
            enough = number > self.low if self.above else number >= self.low
            if not (enough and number <= self.high):
                raise ValueError(f"{name} must be {self}; it was {value}")


Count = Annotated[int, Range(1)]
Widths = Annotated[tuple[int, ...], Range(1)]  # of layers
Amount = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Share = Annotated[float, Range(0, 1)]
