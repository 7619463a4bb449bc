"""Any VAE whose cells are independent given z, of examples some of whose cells are missing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.contracts import Array, Params, pytree
from jaxvae.distributions.contract import Factorized
from jaxvae.models.vae import VAE, changed


@pytree
class Observed:
    """p(x_o|z) of the cells of x that are not nan, of a density with independent cells."""

    whole: Any

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.whole.event_shape

    @property
    def mean(self) -> Array:
        return self.whole.mean

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Examples without missing cells."""
        return self.whole.sample(key, shape)

    def log_prob(self, x: Array) -> Array:
        """log p(x_o|z), a scalar in nats."""
        seen = jnp.ravel(~jnp.isnan(x))
        # A gradient of nan times zero is nan, so a missing cell is replaced before its density.
        safe = jnp.where(seen, jnp.ravel(x), jax.lax.stop_gradient(jnp.ravel(self.whole.mean)))
        one = lambda leaf: jnp.reshape(jnp.broadcast_to(leaf, self.event_shape), (-1, 1))
        each = jax.vmap(lambda p, cell: p.log_prob_flat(cell[None]))
        return jnp.where(seen, each(jax.tree.map(one, self.whole), safe), 0.0).sum()

    def expectations(self, x: Array) -> Array:
        """E[x|z]."""
        return self.whole.mean

    def point(self, expectations: Array) -> Array:
        """The value that a missing cell is imputed with."""
        return expectations

    def drawn(self, key: Array, x: Array) -> Array:
        """The example with draws of p(x_m|z) in its missing cells."""
        return jnp.where(jnp.isnan(x), self.whole.sample(key), x)


def observed(vae: VAE, fill: float = 0.0) -> VAE:
    """The VAE of examples with missing cells, which are nan, with the same parameters.

    Its encoder sees ``fill`` in their place. Raises ValueError, where it decodes, if the cells of
    x are not independent given z.

    >>> import jax, jax.numpy as jnp
    >>> from jaxvae import bounds, likelihoods, models, networks, posteriors, priors
    >>> vae = observed(models.vae(
    ...     networks.mlp((), 4), networks.mlp((), 3), posteriors.normal(2),
    ...     likelihoods.normal(1.0), priors.standard_normal(2)))
    >>> x = jnp.array([0.3, jnp.nan, -1.0])
    >>> loss = models.negative(bounds.iwae, vae, num_samples=20)
    >>> value, _ = loss(vae.init(jax.random.key(0), x), jax.random.key(1), x, step=0)
    >>> bool(jnp.isfinite(value))
    True
    """

    def with_gaps(vae: VAE) -> VAE:
        filled = lambda x: jnp.where(jnp.isnan(x), fill, x)

        def decode(params: Params, z: Any) -> Observed:
            p = vae.decode(params, z)
            if not isinstance(p, Factorized):
                raise ValueError(
                    f"missing cells need a likelihood with independent cells; it is a "
                    f"{type(p).__name__}"
                )
            return Observed(p)

        return vae._replace(
            init=lambda key, x: vae.init(key, filled(x)),
            encode=lambda params, x: vae.encode(params, filled(x)),
            decode=decode,
        )

    return changed(vae, with_gaps)
