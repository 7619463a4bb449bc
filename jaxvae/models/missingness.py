"""Models of the reason why cells of a table are missing.

Ipsen et al. 2021, arXiv:2006.12871 (not-MIWAE). The latents are then (z, e), where the noise e
makes draws of the missing cells, so that every bound and every estimate applies unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, softplus

from jaxvae.contracts import Array, Params, pytree, static
from jaxvae.distributions import log_prob_of, mean_of, reparameterize, sample_noise
from jaxvae.models.cells import Cells, Layout


class Missingness(NamedTuple):
    """A model of p(s|x), where s says which cells are missing."""

    init: Callable[[Layout], Params]
    # (layout, params, x) -> the log-odds that continuous cells are missing, at values x [D]
    continuous: Callable[[Layout, Params, Array], Array]
    # (layout, params) -> the log-odds for each level, [levelled, most_levels]
    levelled: Callable[[Layout, Params], Array]


def ignorable() -> None:
    """The reason why cells are missing does not matter, as with MIWAE."""


def self_masking(
    high_values: Literal["either", "missing", "observed"] = "either",
) -> Missingness:
    """A cell is missing with log-odds W (x - b) of its own value (Ipsen et al. 2021).

    arXiv:2006.12871, sec. 4, with W and b for each continuous column in its deviations, and free
    log-odds for each level of an ordinal or categorical column.

    Args:
      high_values: either, or whether it is known that high values or low ones go missing.
    """
    sign = {"missing": 1.0, "observed": -1.0}.get(high_values)

    def init(layout: Layout) -> Params:
        params = {"levels": jnp.zeros(layout.possible.shape)} if len(layout.levelled) else {}
        if len(layout.continuous):
            zeros = jnp.zeros(len(layout.continuous))
            start = zeros if sign is None else zeros + np.log(np.e - 1)
            params |= {"slope": start, "centre": zeros}
        return params

    def continuous(layout: Layout, params: Params, x: Array) -> Array:
        slope = params["slope"] if sign is None else sign * softplus(params["slope"])
        return slope * (layout.standardized(x, layout.continuous) - params["centre"])

    def levelled(layout: Layout, params: Params) -> Array:
        return params["levels"] if len(layout.levelled) else jnp.zeros(layout.possible.shape)

    return Missingness(init, continuous, levelled)


MISSINGNESS: dict[str, Callable[..., Missingness | None]] = {
    "ignorable": ignorable,
    "self_masking": self_masking,
}


@pytree
class Masked:
    """p(x_o, s|z, e): the cells of a row and which of them are missing, at a noise e.

    The continuous missing cells x_m are drawn from p(x_m|z) by the noise, which is a part of the
    latents, and p(s|x_o, x_m) is taken at them (Ipsen et al. 2021, arXiv:2006.12871, eq. 7). The
    sum over levels is exact. With a mean in the place of the draw it would be no bound.
    """

    cells: Cells
    noise: tuple[Any, Any]
    params: Params
    missingness: Missingness = static()

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.cells.event_shape

    @property
    def mean(self) -> Array:
        return self.cells.mean

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Rows without missing cells."""
        return self.cells.sample(key, shape)

    def log_prob(self, x: Array) -> Array:
        """log p(x_o, s) at the noise, a scalar in nats."""
        at = self.cells.layout
        seen, drawn = ~jnp.isnan(x), self.cells.continuous(self.noise)
        log_p = self.cells.log_prob(x)
        if len(at.continuous):
            whole = jnp.where(seen, x, jnp.ones(at.size).at[at.continuous].set(drawn))
            log_odds = self.missingness.continuous(at, self.params, whole)
            signs = jnp.where(seen[at.continuous], -1.0, 1.0)
            log_p += log_sigmoid(signs * log_odds).sum()
        if len(at.levelled):
            log_p += self._levelled(x[at.levelled]).sum()
        return log_p

    def _levelled(self, x: Array) -> Array:
        """log p(s|x) of observed cells, and log sum_c p(c|z) p(missing|c) of missing ones."""
        log_odds = self.missingness.levelled(self.cells.layout, self.params)
        places = jnp.where(jnp.isnan(x), 0, x).astype(int)
        at_value = jnp.take_along_axis(log_odds, places[:, None], 1)[:, 0]
        return jnp.where(
            jnp.isnan(x),
            jax.nn.logsumexp(self._tilted(log_odds), 1),
            log_sigmoid(-at_value),
        )

    def _tilted(self, log_odds: Array) -> Array:
        """log p(c|z) p(missing|c), [levelled, most_levels]."""
        return self.cells.log_probs + log_sigmoid(log_odds)

    def _missing_levels(self) -> Array:
        """log p(c|z, missing)."""
        log_odds = self.missingness.levelled(self.cells.layout, self.params)
        return jax.nn.log_softmax(self._tilted(log_odds), 1)

    def expectations(self, x: Array) -> tuple[Array, Array]:
        """The draws of continuous cells, which the weights are of, and levels if missing."""
        numbers = self.cells.continuous(self.noise)
        return numbers, jnp.exp(self._missing_levels())

    def point(self, expectations: tuple[Array, Array]) -> Array:
        """As ``Cells.point``."""
        return self.cells.point(expectations)

    def drawn(self, key: Array, x: Array) -> Array:
        """The row with the continuous draws and drawn levels in its missing cells."""
        whole = self.cells._whole(self.cells.continuous(self.noise), key, self._missing_levels())
        return jnp.where(jnp.isnan(x), whole, x)


@pytree
class WithNoise:
    """A density of z, and a noise e beside it that has the same law wherever it occurs.

    Densities of (z, e) are relative to the law of e, so they equal densities of z.
    """

    first: Any
    of_noise: Any  # a density whose noise e is

    def noise(self, key: Array, shape: tuple[int, ...] = ()) -> tuple[Any, Any]:
        """The noise of z, and e."""
        keys = jax.random.split(key)
        return sample_noise(self.first, keys[0], shape), self.of_noise.noise(keys[1], shape)

    def from_noise_and_log_prob(self, noise: tuple[Any, Any]) -> tuple[tuple[Any, Any], Array]:
        """(z, e) and log q(z)."""
        both = getattr(self.first, "from_noise_and_log_prob", None)
        if both is not None:
            z, log_q = both(noise[0])
        else:
            z = reparameterize(self.first, noise[0])
            log_q = log_prob_of(self.first, z)
        return (z, noise[1]), log_q

    def from_noise(self, noise: tuple[Any, Any]) -> tuple[Any, Any]:
        return reparameterize(self.first, noise[0]), noise[1]

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> tuple[Any, Any]:
        """Draws of (z, e)."""
        return reparameterize(self, self.noise(key, shape))

    def log_prob(self, pair: tuple[Any, Any]) -> Array:
        return log_prob_of(self.first, pair[0])

    @property
    def mean(self) -> tuple[Any, Any]:
        """The mean of z, and one draw of e that is always the same."""
        return mean_of(self.first), self.of_noise.noise(jax.random.key(0))
