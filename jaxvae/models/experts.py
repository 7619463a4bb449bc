"""A Dirichlet-process mixture of VAEs (Abbasnejad, Dick & van den Hengel 2017, arXiv:1611.07800).

Each component, an expert, is a VAE. An example has a component c and latents z of its expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxvae import bounds
from jaxvae.contracts import Array, Params, Terms, pytree
from jaxvae.distributions import mean_of
from jaxvae.distributions.contract import many
from jaxvae.models.answers import Model
from jaxvae.models.vae import VAE, elbo_terms, log_joint


@pytree
class Gated:
    """p(c, z) = softmax(``logits``)_c p_c(z), where z is ``{"expert": one-hot [K], "z": z}``.

    ``components`` has an axis K in front of every leaf.
    """

    logits: Array
    components: Any

    def _at(self, c: Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[c], self.components)

    def _event(self, c: Array, z: Any) -> dict[str, Any]:
        return {"expert": jax.nn.one_hot(c, len(self.logits)), "z": z}

    @property
    def mean(self) -> dict[str, Any]:
        """The likeliest component, and the mean of z there."""
        c = jnp.argmax(self.logits)
        return self._event(c, mean_of(self._at(c)))

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> dict[str, Any]:
        def one(key: Array) -> dict[str, Any]:
            key_c, key_z = jax.random.split(key)
            c = jax.random.categorical(key_c, self.logits)
            return self._event(c, self._at(c).sample(key_z))

        return many(one, key, shape)

    def log_prob(self, x: dict[str, Any]) -> Array:
        """log p(c, z) of one event."""
        c = jnp.argmax(x["expert"])
        return jax.nn.log_softmax(self.logits)[c] + self._at(c).log_prob(x["z"])


class ExpertMixture(NamedTuple):
    """Experts of one form; parameters are ``{"experts", "counts"}``.

    ``experts`` are parameters of K + 1 VAEs, stacked. The last one is the base: it learns from all
    examples, and a component that is opened starts as its copy. ``counts`` [K] are the members of
    the components.
    """

    vae: VAE
    concentration: float

    def log_weights(self, params: Params) -> Array:
        """log p(c) of a new example, [K + 1]: n_k and, for the base, alpha, over their sum."""
        counts = params["counts"]
        mass = jnp.append(counts, self.concentration)
        first = jnp.zeros_like(mass).at[0].set(1.0)
        mass = jnp.where(counts.sum() > 0, mass, first)  # nothing has been counted yet
        return jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1.0)), -jnp.inf) - jnp.log(
            mass.sum()
        )

    def each(self, params: Params, function: Callable[[Params], Any]) -> Any:
        """``function`` of the parameters of each expert, stacked: [K + 1, ...]."""
        return jax.vmap(function)(params["experts"])

    def evidence(self, params: Params, key: Array, x: Any, num_samples: int) -> Array:
        """An importance-weighted bound on log p_k(x) for each expert, [K + 1].

        All experts see the same noise and the same number of samples. With an ELBO in its place
        experts with tight posteriors would be favoured.
        """
        return logsumexp(self.weights(params, key, x, num_samples), 1) - jnp.log(num_samples)

    def weights(self, params: Params, key: Array, x: Any, num_samples: int) -> Array:
        """log p_k(x, z) - log q_k(z|x) of draws of each expert, [K + 1, samples]."""

        def one(expert: Params) -> Array:
            joint = log_joint(self.vae, expert, x, self.vae.prior(expert))
            return bounds.log_weights(key, self.vae.encode(expert, x), joint, num_samples)

        return self.each(params, one)

    def responsibilities(self, params: Params, key: Array, x: Any, num_samples: int) -> Array:
        """log q(c|x) [K + 1], in proportion to p(c) and the bound on p_c(x)."""
        evidence = self.evidence(params, key, x, num_samples)
        return jax.nn.log_softmax(self.log_weights(params) + evidence)


def mixture_terms(
    model: ExpertMixture, params: Params, key: Array, x: Any, num_samples: int, draws: int
) -> Terms:
    """The terms of the mixture's ELBO, sum_c q(c) [ELBO_c + log p(c) - log q(c)].

    q(c|x) comes from draws of its own, so the estimate of the bound has no bias.

    Args:
      model: the mixture.
      params: its parameters.
      key: the key of the draws.
      x: an example.
      num_samples: draws of z for the terms of each expert.
      draws: draws of z for q(c|x).
    """
    key_c, key_z = jax.random.split(key)
    log_q = model.responsibilities(params, key_c, x, draws)
    terms = model.each(params, lambda expert: elbo_terms(model.vae, expert, key_z, x, num_samples))
    used = log_q > -jnp.inf
    q = jnp.exp(log_q)
    average = lambda values: jnp.where(used, q * values, 0.0).sum()
    gate = average(jnp.where(used, log_q, 0.0) - jnp.where(used, model.log_weights(params), 0.0))
    return {
        "reconstruction": average(terms["reconstruction"]),
        "kl": average(terms["kl"]) + gate,
        "gate": gate,
    }


def expert_answers(model: ExpertMixture, init: Callable[[Array, Any], Params], draws: int) -> Model:
    """What can be asked of the model; ``draws`` is how many each expert takes for q(c|x)."""

    def at(params: Params, z: dict[str, Any]) -> Params:
        c = jnp.argmax(z["expert"])
        return jax.tree.map(lambda leaf: leaf[c], params["experts"])

    def encode(params: Params, x: Any) -> Gated:
        log_q = model.responsibilities(params, jax.random.key(0), x, draws)
        return Gated(log_q, model.each(params, lambda expert: model.vae.encode(expert, x)))

    def prior(params: Params, condition: Any = None) -> Gated:
        return Gated(model.log_weights(params), model.each(params, model.vae.prior))

    def weights(params: Params, key: Array, x: Any, num_samples: int) -> Array:
        each = model.weights(params, key, x, num_samples)  # [K + 1, samples]
        return logsumexp(each + model.log_weights(params)[:, None], 0)

    def joint(params: Params, x: Any, z: dict[str, Any]) -> Array:
        likelihood = model.vae.decode(at(params, z), z["z"]).log_prob(x)
        return likelihood + prior(params).log_prob(z)

    return Model(
        init,
        encode,
        lambda params, z, condition=None: model.vae.decode(at(params, z), z["z"]),
        lambda params, key, condition=None: prior(params).sample(key),
        prior,
        lambda params, key, x, num_samples: mixture_terms(
            model, params, key, x, num_samples, draws
        ),
        weights,
        joint,
    )
