"""VAEs of table rows with missing cells.

The density of a row leaves its missing cells out, p(x_o|z) = prod p(x_j|z) over observed j. Every
bound is then a bound on log p(x_o), and ``bounds.iwae`` is MIWAE (Mattei & Frellsen 2019,
arXiv:1812.02633).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.contracts import Array, Params
from jaxvae.datasets.tables import Column
from jaxvae.models.cells import Cells, Layout, RealFamily, cells, decoded_size, init_likelihood
from jaxvae.models.missingness import Masked, Missingness, WithNoise
from jaxvae.models.vae import VAE
from jaxvae.networks import Network
from jaxvae.posteriors import Posterior
from jaxvae.priors import Prior


def table_vae(
    columns: Sequence[Column],
    encoder: Network,
    decoder: Network,
    posterior: Posterior,
    prior: Prior,
    real: RealFamily,
    missingness: Missingness | None = None,
    learned_fill: bool = True,
    see_mask: bool = False,
) -> VAE:
    """A VAE of table rows x [D] in which nan is a missing cell.

    Args:
      columns: the columns, with statistics.
      encoder: takes ``encoder_inputs`` to ``[posterior.size]``.
      decoder: takes z to ``[decoded_size]``.
      posterior: the family of q(z|x_o).
      prior: the family of p(z).
      real: the family of real columns.
      missingness: a model of why cells are missing, or None. z is then (z, noise).
      learned_fill: whether the encoder sees a learned number for a missing cell, not the mean.
      see_mask: whether the encoder also sees which cells are missing.
    """
    layout = Layout(columns)
    blank = jnp.zeros(decoded_size(layout, real))

    def init(key: Array, x: Array) -> Params:
        keys = jax.random.split(key, 4)
        inputs = encoder_inputs(layout, None, jnp.zeros(layout.size), see_mask)
        params = {
            "encoder": encoder.init(keys[0], inputs),
            "posterior": posterior.init(keys[1]),
            "decoder": decoder.init(keys[2], jnp.zeros(latent_shape(posterior))),
            "likelihood": init_likelihood(layout, real),
            "prior": prior.init(keys[3]),
        }
        params |= {"fill": jnp.zeros(len(inputs) - see_mask * layout.size)} if learned_fill else {}
        return params | ({} if missingness is None else {"missingness": missingness.init(layout)})

    def of_noise(params: Params) -> Cells:
        return cells(layout, real, params["likelihood"], blank)

    def beside(params: Params, density: Any) -> Any:
        return density if missingness is None else WithNoise(density, of_noise(params))

    def encode(params: Params, x: Array) -> Any:
        inputs = encoder_inputs(layout, params.get("fill"), x, see_mask)
        raw = encoder.apply(params["encoder"], inputs)
        return beside(params, posterior.make(params["posterior"], raw))

    def decode(params: Params, latents: Any) -> Any:
        z, noise = (latents, ((), ())) if missingness is None else latents
        raw = decoder.apply(params["decoder"], posterior.to_decoder(z))
        p = cells(layout, real, params["likelihood"], raw)
        return p if missingness is None else Masked(p, noise, params["missingness"], missingness)

    return VAE(init, encode, decode, lambda params: beside(params, prior.make(params["prior"])))


def latent_shape(posterior: Posterior) -> tuple[int, ...]:
    """The shape of what the decoder takes."""

    def drawn() -> Array:
        q = posterior.make(posterior.init(jax.random.key(0)), jnp.zeros(posterior.size))
        return posterior.to_decoder(q.sample(jax.random.key(0)))

    return jax.eval_shape(drawn).shape


def encoder_inputs(layout: Layout, fill: Array | None, x: Array, see_mask: bool = False) -> Array:
    """What the encoder sees of a row: standardized numbers, and levels one-hot.

    The logarithm of counts is taken, and a level of an ordinal column is a number from -1 to 1. A
    missing cell is ``fill``, or 0, which is the mean of most columns.
    """
    seen = ~jnp.isnan(x)
    safe = jnp.where(seen, x, 1.0)
    parts, seen_parts = [], []
    for rows, values in (
        (layout.continuous, layout.standardized(safe, layout.continuous)),
        (layout.count, _standardized_counts(layout, safe[layout.count])),
        (layout.ordinal, _spread_levels(layout, safe[layout.ordinal])),
    ):
        parts.append(values)
        seen_parts.append(seen[rows])
    for column in layout.categorical:
        count = len(layout.columns[column].levels)
        parts.append(jax.nn.one_hot(safe[column].astype(int), count))
        seen_parts.append(jnp.full(count, seen[column]))
    values, known = jnp.concatenate(parts), jnp.concatenate(seen_parts)
    filled = jnp.where(known, values, 0.0 if fill is None else fill)
    return jnp.concatenate([filled, seen.astype(jnp.float32)]) if see_mask else filled


def _standardized_counts(layout: Layout, counts: Array) -> Array:
    """log(1 + n), less the same of the mean, in deviations of about this size."""
    loc, scale = layout.loc[layout.count], layout.scale[layout.count]
    return (jnp.log1p(counts) - np.log1p(loc)) * (1 + loc) / np.maximum(scale, 1e-6)


def _spread_levels(layout: Layout, places: Array) -> Array:
    last = np.array([len(layout.columns[i].levels) - 1 for i in layout.ordinal], np.float32)
    return 2 * places / np.maximum(last, 1) - 1
