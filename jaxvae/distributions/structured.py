"""Gaussians whose precision has structure, in nats."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxvae.contracts import Array, pytree
from jaxvae.distributions.contract import LOG_2PI, check_event


@pytree
class BandedNormal:
    """Gaussian with precision L L^T, where L is lower triangular with W sub-diagonals.

    Dorta et al. 2018, arXiv:1804.01050. log p(x) = sum_i log L_ii - |L^T (x - loc)|^2 / 2 -
    (D/2) log 2 pi, over the D numbers of the event in row-major order. ``factor [*event, W+1]``
    holds the columns of L from the diagonal down, factor[i, k] = L_(i+k, i) with factor[i, 0] > 0.
    Entries below the last row are not used. Coordinate i depends on the W coordinates after it, and
    given these it has the scale 1 / L_ii.
    """

    loc: Array
    factor: Array

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.loc)

    @property
    def mean(self) -> Array:
        return self.loc

    def _columns(self) -> Array:
        """The columns, [D, W+1]."""
        if jnp.shape(self.factor)[:-1] != self.event_shape:
            raise ValueError(
                "BandedNormal needs W+1 numbers for each coordinate, factor "
                f"[*{self.event_shape}, W+1]; its shape was {jnp.shape(self.factor)}"
            )
        return self.factor.reshape(-1, self.factor.shape[-1])

    def noise(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Standard normal noise."""
        return jax.random.normal(key, shape + self.event_shape, jnp.result_type(self.loc))

    def from_noise(self, noise: Array) -> Array:
        """loc + L^-T noise, from the last coordinate to the first."""
        columns, lead = self._columns(), noise.shape[: noise.ndim - len(self.event_shape)]

        def step(after: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            column, noise = inputs  # [W+1], [*lead]
            residual = (noise - (after * column[1:]).sum(-1)) / column[0]
            return jnp.concatenate([residual[..., None], after], -1)[
                ..., : after.shape[-1]
            ], residual

        rows = jnp.moveaxis(noise.reshape(*lead, -1), -1, 0)  # [D, *lead]
        start = jnp.zeros((*lead, columns.shape[-1] - 1), rows.dtype)
        _, residuals = lax.scan(step, start, (columns, rows), reverse=True)
        return self.loc + jnp.moveaxis(residuals, 0, -1).reshape(noise.shape)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return self.from_noise(self.noise(key, shape))

    def log_prob(self, x: Array) -> Array:
        lead, columns = check_event(self, x), self._columns()
        size, count = columns.shape
        residual = (x - self.loc).reshape(*lead, size)
        padded = jnp.pad(residual, [(0, 0)] * len(lead) + [(0, count - 1)])
        terms = [columns[:, k] * padded[..., k : k + size] for k in range(count)]
        white = functools.reduce(jnp.add, terms)  # L^T (x - loc), [*lead, D]
        return jnp.log(columns[:, 0]).sum() - 0.5 * (white**2 + LOG_2PI).sum(-1)
