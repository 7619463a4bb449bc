"""Moments of gradients over draws: streaming, in float64, given the examples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Objective = Callable[[Array, Any, Any], Array]  # (key, params, x) -> scalar, of one example
GROUPS = 8  # parts of the draws, from whose means the error of a squared bias is known


class Sampled(NamedTuple):
    """Moments of a gradient, raveled to [P], and numbers of every draw, [N].

    The draws of all units follow one after the other. Variance, kurtosis and the numbers of the
    draws come from the noise, given the examples.
    """

    mean: np.ndarray  # [P]
    variance: np.ndarray  # [P], of one draw
    kurtosis: np.ndarray  # [P]
    groups: np.ndarray  # [G, P], the means of parts of the draws
    between: np.ndarray | None  # [P], variance over units of true gradients; None for one unit
    squares: np.ndarray  # [blocks, N], |g - mean|^2 by block, up to terms of mean zero
    norms: np.ndarray  # [blocks, N], |g|^2
    along: np.ndarray | None  # [blocks, N], g times the direction of unit length
    blocks: tuple[str, ...]
    spans: tuple[slice, ...]  # the places of the blocks in [P]
    units: int

    @property
    def num_draws(self) -> int:
        return self.squares.shape[1]

    @property
    def error(self) -> np.ndarray:
        """Standard error of the mean, [P]."""
        return np.sqrt(self.variance / self.num_draws)


def blocks_of(params: Any) -> dict[str, slice]:
    """The places of ``all``, and of parts of the raveled parameters.

    A part has the parameters whose paths share their first two names.
    """
    places: dict[str, slice] = {}
    start = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(str(getattr(part, "key", getattr(part, "name", part))) for part in path[:2])
        end = start + int(np.size(leaf))
        places[name] = slice(places[name].start if name in places else start, end)
        start = end
    return {"all": slice(0, start)} | (places if len(places) > 1 else {})


def ravel(tree: Any) -> Array:
    """The leaves of a tree, one after the other, [P]."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def measure(
    objective: Objective,
    params: Any,
    key: Array,
    num_draws: int,
    examples: Any = None,
    direction: np.ndarray | None = None,
    chunk: int = 1024,
) -> Sampled:
    """The moments over keys of the gradient of an objective in its parameters.

    Args:
      objective: ``(key, params, x) -> scalar`` for one example.
      params: where it is differentiated.
      key: draw r of unit u has the key fold_in(fold_in(key, u), r) whatever the objective, so that
        objectives which are measured with one key can be compared draw by draw.
      num_draws: for every unit.
      examples: units of examples, a tree of [U, B, ...]. A draw is the mean gradient over a unit's
        B examples; without them there is one unit, whose x is None.
      direction: [P], such as the true gradient, for ``along``.
      chunk: the most draws at a time; memory holds as many gradients.

    Raises ValueError for fewer than 2 draws.
    """
    if num_draws < 2:
        raise ValueError(f"a variance needs at least 2 draws; num_draws was {num_draws}")
    blocks = blocks_of(params)
    spans = tuple(blocks.values())
    ends = tuple((span.start, span.stop) for span in spans)
    chunk = max(1, min(chunk, num_draws // GROUPS))
    units = (
        [None]
        if examples is None
        else [jax.tree.map(lambda a, u=u: a[u], examples) for u in range(_size(examples))]
    )
    gradients = _gradients(objective)
    aims = None if direction is None else _unit_vectors(np.asarray(direction, np.float64), spans)
    per_unit = []
    for u, unit in enumerate(units):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(key, u), np.arange(num_draws)
        )
        parts: list[_Part] = []
        for start in range(0, num_draws, chunk):
            g = gradients(params, keys[start : start + chunk], unit)
            with jax.enable_x64(True):
                about = parts[0].mean if parts else jnp.mean(g, 0, dtype=jnp.float64)
                parts.append(_Part(len(g), *map(np.asarray, _moments(g, about, aims, ends))))
        per_unit.append(_joined(parts, spans))
    draws = lambda field: np.concatenate([getattr(unit, field) for unit in per_unit], -1)
    means, total = np.stack([unit.mean for unit in per_unit]), len(per_unit) * num_draws
    second, fourth = (
        np.sum([getattr(unit, name) for unit in per_unit], 0) for name in ("second", "fourth")
    )
    variance = second / (total - len(per_unit))
    with np.errstate(invalid="ignore"):
        kurtosis = np.where(
            second > 0, total * fourth / np.where(second > 0, second, 1.0) ** 2, np.nan
        )
    between = means.var(0, ddof=1) - variance / num_draws if len(per_unit) > 1 else None
    groups = np.mean([unit.groups for unit in per_unit], 0)
    along = None if aims is None else draws("along")
    columns = draws("squares"), draws("norms"), along
    return Sampled(
        means.mean(0),
        variance,
        kurtosis,
        groups,
        between,
        *columns,
        tuple(blocks),
        spans,
        len(per_unit),
    )


def _size(examples: Any) -> int:
    return jax.tree.leaves(examples)[0].shape[0]


@functools.lru_cache(maxsize=64)
def _gradients(objective: Objective) -> Callable:
    """The gradients, compiled once for an objective that is measured several times."""
    return jax.jit(
        jax.vmap(lambda params, key, unit: _gradient(objective, params, key, unit), (None, 0, None))
    )


def _gradient(objective: Objective, params: Any, key: Array, unit: Any) -> Array:
    if unit is None:
        return ravel(jax.grad(lambda params: objective(key, params, None))(params))
    keys = jax.random.split(key, _size(unit))
    return ravel(
        jax.grad(lambda params: jax.vmap(objective, (0, None, 0))(keys, params, unit).mean())(
            params
        )
    )


def _unit_vectors(direction: np.ndarray, spans: Sequence[slice]) -> tuple[np.ndarray, ...]:
    return tuple(direction[span] / (np.linalg.norm(direction[span]) or 1.0) for span in spans)


class _Part(NamedTuple):
    """Some draws of a unit: their number, mean, sums of powers and numbers of each draw.

    The sums [P] are over powers of the deviations from the mean.
    """

    size: int
    mean: np.ndarray
    second: np.ndarray
    third: np.ndarray
    fourth: np.ndarray
    squares: np.ndarray
    norms: np.ndarray
    along: np.ndarray


@functools.partial(jax.jit, static_argnums=3)
def _moments(
    g: Array, about: Array, aims: Any, ends: tuple[tuple[int, int], ...]
) -> tuple[Array, ...]:
    """The moments of gradients [n, P] in float64; squares are distances from ``about``."""
    g = g.astype(jnp.float64)
    mean = g.mean(0)
    powers = [((g - mean) ** n).sum(0) for n in (2, 3, 4)]
    by_block = lambda v: jnp.stack([v[:, start:end].sum(-1) for start, end in ends])
    along = jnp.zeros((len(ends), 0))
    if aims is not None:
        along = jnp.stack(
            [g[:, start:end] @ aim for (start, end), aim in zip(ends, aims, strict=True)]
        )
    return mean, *powers, by_block((g - about) ** 2), by_block(g**2), along


def _merged(a: _Part, b: _Part) -> _Part:
    """The moments of two parts together (Pébay 2008, SAND2008-6212)."""
    n, na, nb, d = a.size + b.size, a.size, b.size, b.mean - a.mean
    second = a.second + b.second + d**2 * na * nb / n
    third = (
        a.third
        + b.third
        + d**3 * na * nb * (na - nb) / n**2
        + 3 * d * (na * b.second - nb * a.second) / n
    )
    fourth = a.fourth + b.fourth + d**4 * na * nb * (na**2 - na * nb + nb**2) / n**3
    fourth = fourth + 6 * d**2 * (na**2 * b.second + nb**2 * a.second) / n**2
    fourth = fourth + 4 * d * (na * b.third - nb * a.third) / n
    columns = [np.concatenate(pair, -1) for pair in zip(a[5:], b[5:], strict=True)]
    return _Part(n, a.mean + d * nb / n, second, third, fourth, *columns)


class _Unit(NamedTuple):
    mean: np.ndarray
    second: np.ndarray
    fourth: np.ndarray
    groups: np.ndarray
    squares: np.ndarray  # from the mean, so that they add up to the second moment
    norms: np.ndarray
    along: np.ndarray


def _joined(parts: list[_Part], spans: tuple[slice, ...]) -> _Unit:
    about = parts[0].mean
    shares = np.array_split(np.arange(len(parts)), min(GROUPS, len(parts)))
    merged = [functools.reduce(_merged, [parts[i] for i in share]) for share in shares]
    total = functools.reduce(_merged, merged)
    off = np.array([[np.sum((total.mean[span] - about[span]) ** 2)] for span in spans])
    groups = np.stack([part.mean for part in merged])
    return _Unit(
        total.mean,
        total.second,
        total.fourth,
        groups,
        total.squares - off,
        total.norms,
        total.along,
    )
