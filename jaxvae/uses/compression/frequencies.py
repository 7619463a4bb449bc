"""Integer probabilities of symbols: whole numbers from tables, and no exp or erf while coding.

The last bits of exp and erf are not the same in all libraries. So each table is computed once, kept
with the codec, and read at whole numbers. The frequency of a symbol is a difference of a cumulative
table, for symbols b, a mean m and a scale s:

    f(b) = F((b + 1/2 - m) / s) - F((b - 1/2 - m) / s),

where F is 2^24 times the distribution function of a standard Gaussian or logistic.
"""

from __future__ import annotations

import math

import numpy as np

TOTAL = 2**24  # frequencies of a Gaussian or logistic sum to it
EIGHTHS = 8  # scales are powers of 2^(1/8)
QUARTERS = 4  # means are multiples of 1/4 of a symbol
SIXTEENTHS = 16  # logits are multiples of 1/16
SMALLEST, LARGEST = -24, 96  # logarithms of scales, in eighths
LOGITS = 16 * SIXTEENTHS  # the largest difference of logits
PLACES = 2**15  # entries of a cumulative table on each side of zero
REACH = {"gaussian": 8, "logistic": 16}  # standard units that a table reaches to
FRACTION = 20  # bits after the binary point of inverse scales


def _gaussian(t: float) -> float:
    return 0.5 * math.erfc(-t / math.sqrt(2))


def _logistic(t: float) -> float:
    return 1 / (1 + math.exp(-t))


FUNCTIONS = {"gaussian": _gaussian, "logistic": _logistic}


def tables(*names: str) -> dict[str, np.ndarray]:
    """The tables of these names: gaussian, logistic, exponential, and scales of the first two."""
    made: dict[str, np.ndarray] = {}
    for name in names:
        if name == "exponential":
            steps = np.arange(LOGITS + 1) / SIXTEENTHS
            made[name] = np.round(TOTAL * np.exp(-steps)).astype(np.int32)
            continue
        unit = PLACES // REACH[name]
        values = [FUNCTIONS[name](i / unit) for i in range(-PLACES, PLACES + 1)]
        made[name] = np.round(TOTAL * np.array(values)).astype(np.int32)
        logarithms = np.arange(SMALLEST, LARGEST + 1) / EIGHTHS
        made[f"{name}_scales"] = np.round(2.0**FRACTION * unit / QUARTERS / 2.0**logarithms).astype(
            np.int64
        )
    return made


def cumulative(
    made: dict[str, np.ndarray], name: str, mean: np.ndarray, scale: np.ndarray, edges: np.ndarray
) -> np.ndarray:
    """F of edges [..., E] between symbols, as whole numbers that never fall.

    Args:
      made: the tables.
      name: gaussian or logistic.
      mean: means [...] in quarters of a symbol.
      scale: logarithms to the base 2 of scales [...], in eighths.
      edges: the edge above symbol b is 4 b + 2.
    """
    inverse = made[f"{name}_scales"][np.clip(scale, SMALLEST, LARGEST) - SMALLEST]
    places = ((edges - mean[..., None]) * inverse[..., None]) >> FRACTION
    return made[name][np.clip(places, -PLACES, PLACES) + PLACES].astype(np.int64)


def between(inner: np.ndarray, total: int | np.ndarray = TOTAL) -> np.ndarray:
    """Frequencies of symbols from F at the edges between them; the outer ones have the tails."""
    first, last = inner[..., :1], np.asarray(total)[..., None] - inner[..., -1:]
    return np.concatenate([first, np.diff(inner), last], -1)


def edges(first: int, last: int) -> np.ndarray:
    """The edges between the symbols first, ..., last, in quarters."""
    return QUARTERS * np.arange(first, last, dtype=np.int64) + QUARTERS // 2


def weights(made: dict[str, np.ndarray], logits: np.ndarray) -> np.ndarray:
    """2^24 e^(l - max l) of logits [..., C] in sixteenths, as whole numbers from 1 on."""
    below = logits.max(-1, keepdims=True) - logits
    return made["exponential"][np.minimum(below, LOGITS)].astype(np.int64)


# Pixels: what the decoder of integers gives [..., numbers] -> frequencies of their values [..., L].


def bernoulli(made: dict[str, np.ndarray], raw: np.ndarray, levels: int) -> np.ndarray:
    """Frequencies of bits from their log-odds."""
    return weights(made, np.concatenate([np.zeros_like(raw), raw], -1))


def categorical(made: dict[str, np.ndarray], raw: np.ndarray, levels: int) -> np.ndarray:
    """Frequencies of values from a logit for each."""
    return weights(made, raw)


def discretized_logistic(made: dict[str, np.ndarray], raw: np.ndarray, levels: int) -> np.ndarray:
    """Frequencies of values from the location and the scale of a logistic."""
    every = edges(0, levels - 1)
    return between(cumulative(made, "logistic", raw[..., 0], raw[..., 1], every))


def discretized_logistic_mixture(
    made: dict[str, np.ndarray], raw: np.ndarray, levels: int
) -> np.ndarray:
    """Frequencies of values from logits, locations and scales of several logistics."""
    logits, loc, scale = np.split(raw, 3, -1)
    share, every = weights(made, logits), edges(0, levels - 1)
    inner = cumulative(made, "logistic", loc, scale, every)  # [..., M, L - 1]
    return between((share[..., None] * inner).sum(-2), share.sum(-1) * TOTAL)
