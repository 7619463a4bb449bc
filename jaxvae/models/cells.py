"""Densities of table rows whose columns are of several kinds, and of whose cells some are missing.

A row x holds D numbers, and nan is a missing cell (``datasets.tables``). The likelihoods of the
kinds follow HI-VAE (Nazabal et al. 2018, arXiv:1807.03653), but all of them are densities on what
their kind can be, and of the cells in their own units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, softplus

from jaxvae.contracts import Array, Params, pytree, static
from jaxvae.datasets.tables import CATEGORICAL, COUNT, ORDINAL, POSITIVE, REAL, Column
from jaxvae.distributions import NegativeBinomial, Normal, StudentT, reparameterize, sample_noise

SMALLEST_SCALE = 1e-3  # of a density, in deviations of its column
IMPOSSIBLE = -1e30  # log-probability of a level that a column does not have


class Layout:
    """Where the columns of each kind are. It is equal to another of the same columns."""

    def __init__(self, columns: Sequence[Column]):
        self.columns = tuple(columns)
        self.size = len(self.columns)
        at = lambda *kinds: np.array(
            [i for i, column in enumerate(self.columns) if column.kind in kinds], int
        )
        self.real, self.positive, self.count = at(REAL), at(POSITIVE), at(COUNT)
        self.ordinal, self.categorical = at(ORDINAL), at(CATEGORICAL)
        self.continuous = np.concatenate([self.real, self.positive])
        self.levelled = np.concatenate([self.ordinal, self.categorical])
        self.numeric = np.concatenate([self.continuous, self.count])
        # x = concatenation over kinds, in this order, [order]
        self.order = np.argsort(np.concatenate([self.numeric, self.levelled]))
        self.levels = np.array([len(self.columns[i].levels) for i in self.levelled], int)
        self.most_levels = int(self.levels.max(initial=1))
        self.loc = np.array([column.loc for column in self.columns], np.float32)
        self.scale = np.array([column.scale for column in self.columns], np.float32)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.columns == other.columns

    def __hash__(self) -> int:
        return hash(self.columns)

    @property
    def possible(self) -> np.ndarray:
        """Which levels a column has, [levelled, most_levels]."""
        return np.arange(self.most_levels) < self.levels[:, None]

    def standardized(self, x: Array, rows: np.ndarray) -> Array:
        """The cells of some columns without their mean and deviation, of the log if positive."""
        cells = x[rows]
        logs = np.isin(rows, self.positive)
        if logs.any():
            cells = jnp.where(logs, jnp.log(jnp.where(logs, cells, 1.0)), cells)
        return (cells - self.loc[rows]) / self.scale[rows]


# Densities of the kinds. Raw numbers of zero give the mean and the deviation of the column.


class RealFamily(NamedTuple):
    """A family of standardized real columns."""

    size: int  # decoded numbers of each column
    make: Callable[[Any, Array], Any]  # (params, raw [R, size]) -> density of [R]
    init: Callable[[int], Any] = lambda columns: {}  # number of columns -> shared parameters


def _scale(raw: Array) -> Array:
    return softplus(raw + np.log(np.e - 1)) + SMALLEST_SCALE


def normal() -> RealFamily:
    """Gaussian with decoded mean and scale of each cell."""
    return RealFamily(2, lambda params, raw: Normal(raw[:, 0], _scale(raw[:, 1])))


def normal_shared() -> RealFamily:
    """Gaussian with decoded mean, and one learned scale for all real columns.

    Ipsen et al. 2021, arXiv:2006.12871, sec. 4.1; with a linear decoder it is probabilistic PCA.
    """

    def make(params: Any, raw: Array) -> Normal:
        return Normal(raw[:, 0], jnp.full(len(raw), _scale(params["scale"])))

    return RealFamily(1, make, lambda columns: {"scale": jnp.zeros(())})


def student_t() -> RealFamily:
    """Student's t with decoded location, scale and degrees of freedom, which are above 3.

    Mattei & Frellsen 2019, arXiv:1812.02633, sec. 4.2.
    """

    def make(params: Any, raw: Array) -> StudentT:
        return StudentT(3 + softplus(raw[:, 2]), raw[:, 0], _scale(raw[:, 1]))

    return RealFamily(3, make)


REAL_FAMILIES: dict[str, Callable[[], RealFamily]] = {
    "normal": normal,
    "normal_shared": normal_shared,
    "student_t": student_t,
}


def ordinal_log_probs(location: Array, thresholds: Array) -> Array:
    """log p of the levels of a cumulative logit model, [C] from C - 1 rising thresholds.

    p(x <= c) = sigmoid(t_c - l) (McCullagh 1980). The log of a difference of two sigmoids is taken
    as log sigmoid(a) + log sigmoid(-b) + log(1 - e^(b - a)) for a > b, which neither rounds to zero
    nor loses that the levels sum to one.
    """
    edges = thresholds - location
    upper, lower = edges[1:], edges[:-1]
    middle = log_sigmoid(upper) + log_sigmoid(-lower) + jnp.log(-jnp.expm1(lower - upper))
    return jnp.concatenate([log_sigmoid(edges[:1]), middle, log_sigmoid(-edges[-1:])])


@pytree
class Cells:
    """p(x|z) of a row: independent cells, each with a density of its column's kind.

    ``log_prob`` leaves out the cells that are nan. ``real`` and ``positive`` are of standardized
    cells, and the density is of the cells as they are.
    """

    real: Any  # density of [R]
    positive: Any  # of the standardized logarithm, [P]
    count: Any  # density of [C]
    log_probs: Array  # of ordinal and categorical columns, [levelled, most_levels]
    layout: Layout = static()

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.layout.size,)

    def log_prob(self, x: Array) -> Array:
        """log p(x_o) of the observed cells x_o, a scalar in nats."""
        at = self.layout
        seen = ~jnp.isnan(x)
        safe = jnp.where(seen, x, self._harmless())  # so that gradients of nan are not taken
        total = jnp.zeros(())
        for rows, density in ((at.real, self.real), (at.positive, self.positive)):
            if len(rows):
                log_p = density.log_density(at.standardized(safe, rows)) - np.log(at.scale[rows])
                log_p -= jnp.log(safe[rows]) if rows is at.positive else 0.0
                total += jnp.where(seen[rows], log_p, 0.0).sum()
        if len(at.count):
            log_p = self.count.log_density(safe[at.count])
            total += jnp.where(seen[at.count], log_p, 0.0).sum()
        if len(at.levelled):
            places = safe[at.levelled].astype(int)
            log_p = jnp.take_along_axis(self.log_probs, places[:, None], 1)[:, 0]
            total += jnp.where(seen[at.levelled], log_p, 0.0).sum()
        return total

    def _harmless(self) -> np.ndarray:
        """A value inside the support of each column."""
        return np.array(
            [np.exp(c.loc) if c.kind == POSITIVE else 0.0 for c in self.layout.columns], np.float32
        )

    def noise(self, key: Array, shape: tuple[int, ...] = ()) -> tuple[Any, Any]:
        """The noise of draws of the continuous cells."""
        keys = jax.random.split(key)
        return sample_noise(self.real, keys[0], shape), sample_noise(self.positive, keys[1], shape)

    def continuous(self, noise: tuple[Any, Any]) -> Array:
        """Draws of the continuous cells, real ones before positive ones."""
        at = self.layout
        real, positive = (reparameterize(d, e) for d, e in zip(self._densities, noise, strict=True))
        logs = at.loc[at.positive] + at.scale[at.positive] * positive
        return jnp.concatenate([at.loc[at.real] + at.scale[at.real] * real, jnp.exp(logs)])

    @property
    def _densities(self) -> tuple[Any, Any]:
        return self.real, self.positive

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Rows without missing cells, [*shape, D]."""
        if shape:
            keys = jax.random.split(key, int(np.prod(shape)))
            return jax.vmap(self.sample)(keys).reshape(*shape, -1)
        key_noise, key_rest = jax.random.split(key)
        return self._whole(self.continuous(self.noise(key_noise)), key_rest, self.log_probs)

    def _whole(self, continuous: Array, key: Array, log_probs: Array) -> Array:
        """A row of continuous cells, with draws of the others."""
        key_count, key_levels = jax.random.split(key)
        parts = [continuous]
        if len(self.layout.count):  # draws of gammas take seconds to compile, also of none
            parts.append(self.count.sample(key_count))
        if len(self.layout.levelled):
            parts.append(jax.random.categorical(key_levels, log_probs).astype(jnp.float32))
        return jnp.concatenate(parts)[self.layout.order]

    # What imputation asks for: expectations of cells, which can be averaged, and then a value.

    def expectations(self, x: Array) -> tuple[Array, Array]:
        """Means of numeric cells, and probabilities of the levels of the others."""
        at = self.layout
        real = at.loc[at.real] + at.scale[at.real] * self.real.mean
        scale = at.scale[at.positive]
        logs = at.loc[at.positive] + scale * self.positive.mean
        positive = jnp.exp(logs + 0.5 * (scale * self.positive.scale) ** 2)
        numbers = jnp.concatenate([real, positive, self.count.mean])
        return numbers, jnp.exp(self.log_probs)

    def drawn(self, key: Array, x: Array) -> Array:
        """The row with draws in the place of its missing cells."""
        return jnp.where(jnp.isnan(x), self.sample(key), x)

    def point(self, expectations: tuple[Array, Array]) -> Array:
        """The mean of numeric cells, the median level of ordinal and the likeliest of others."""
        numbers, probabilities = expectations
        ordinals = len(self.layout.ordinal)
        below = jnp.cumsum(probabilities[:ordinals], 1) < 0.5
        levels = jnp.concatenate([below.sum(1), probabilities[ordinals:].argmax(1)])
        return jnp.concatenate([numbers, levels.astype(jnp.float32)])[self.layout.order]

    @property
    def mean(self) -> Array:
        """The value that each cell is imputed with, [D]."""
        return self.point(self.expectations(jnp.full(self.layout.size, jnp.nan)))


def decoded_size(layout: Layout, real: RealFamily) -> int:
    """Numbers that the decoder gives for a row."""
    categories = sum(len(layout.columns[i].levels) for i in layout.categorical)
    numbers = real.size * len(layout.real) + 2 * (len(layout.positive) + len(layout.count))
    return numbers + len(layout.ordinal) + categories


def init_likelihood(layout: Layout, real: RealFamily) -> Params:
    """Parameters that all rows share: of the real family, and thresholds of ordinal columns.

    The first threshold, and the steps before their softplus, give evenly spread levels.
    """
    params = {"real": real.init(len(layout.real))}
    if len(layout.ordinal):
        levels = layout.levels[: len(layout.ordinal)]
        params["first"] = -0.35 * jnp.asarray(levels - 2, jnp.float32)  # softplus(0) is 0.69
        params["steps"] = jnp.zeros((len(levels), int(levels.max()) - 1))
    return params


def cells(layout: Layout, real: RealFamily, params: Params, raw: Array) -> Cells:
    """p(x|z) from what the decoder gives, [decoded_size]."""
    sizes = [real.size * len(layout.real), 2 * len(layout.positive), 2 * len(layout.count)]
    sizes += [len(layout.ordinal)]
    of_real, of_positive, of_count, of_ordinal, of_categorical = jnp.split(raw, np.cumsum(sizes))
    positive = of_positive.reshape(-1, 2)
    return Cells(
        real.make(params["real"], of_real.reshape(-1, real.size)),
        Normal(positive[:, 0], _scale(positive[:, 1])),
        _counts(layout, of_count.reshape(-1, 2)),
        _level_log_probs(layout, params, of_ordinal, of_categorical),
        layout,
    )


def _counts(layout: Layout, raw: Array) -> NegativeBinomial:
    """Zeros give the mean of the column, and a variance as large as Poisson's twice."""
    log_mean = np.log(np.maximum(layout.loc[layout.count], 1e-3)) + raw[:, 0]
    total = jnp.exp(raw[:, 1]) * np.maximum(layout.loc[layout.count], 1e-3)
    return NegativeBinomial(total, log_mean - jnp.log(total))


def _level_log_probs(layout: Layout, params: Params, locations: Array, logits: Array) -> Array:
    """Log-probabilities of ordinal columns, then of categorical ones: [levelled, most_levels]."""
    rows = []
    for i, column in enumerate(layout.ordinal):
        count = len(layout.columns[column].levels)
        steps = softplus(params["steps"][i, : count - 2]) + SMALLEST_SCALE
        thresholds = params["first"][i] + jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps)])
        rows.append(ordinal_log_probs(locations[i], thresholds))
    start = 0
    for column in layout.categorical:
        count = len(layout.columns[column].levels)
        rows.append(jax.nn.log_softmax(logits[start : start + count]))
        start += count
    pad = lambda row: jnp.pad(row, (0, layout.most_levels - len(row)), constant_values=IMPOSSIBLE)
    return jnp.stack([pad(row) for row in rows]) if rows else jnp.zeros((0, layout.most_levels))
