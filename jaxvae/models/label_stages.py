"""M1+M2: a model with labels of the codes of another model (Kingma et al. 2014).

arXiv:1406.5298, sec. 2.3. M1 is a trained VAE that stays as it is, and M2 explains draws of its
codes c. Together they are p(y) p(z) p(c|y, z) p(x|c) with q(c|x) q(y|c) q(z|c, y), so that

    log p(x) >= E_q(c|x) [log p(x|c) - log q(c|x) + log N(c'; 0, I) + U(c)].

M2 is of the codes that M1 uses, and c' are the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxvae.bounds import log_weights as weights_of
from jaxvae.contracts import Array, Loss, Params, Terms, pytree, static
from jaxvae.distributions import Normal, log_prob_of
from jaxvae.distributions.contract import many
from jaxvae.models.answers import Model
from jaxvae.models.conditional import Conditioned
from jaxvae.models.labels import M2, Bounds, LabelledMixture, Latents, both_bounds, with_labelled


@pytree
class StackedPosterior:
    """q(c|x) q(y, z|c) over ``Latents``."""

    codes: Any  # q(c|x)
    params: Params
    then: Callable[[Params, Array], LabelledMixture] = static()

    @property
    def mean(self) -> Latents:
        """The mean code, its most probable class, and the mean of z given both."""
        codes = self.codes.mean
        return self.then(self.params, codes).mean._replace(codes=codes)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Latents:
        def one(key: Array) -> Latents:
            key_codes, key_rest = jax.random.split(key)
            codes = self.codes.sample(key_codes)
            return self.then(self.params, codes).sample(key_rest)._replace(codes=codes)

        return many(one, key, shape)

    def log_prob(self, latents: Latents) -> Array:
        rest = self.then(self.params, latents.codes).log_prob(latents)
        return rest + log_prob_of(self.codes, latents.codes)


class CodedLabels(NamedTuple):
    """M1+M2. Parameters are {"first_stage": {"model", "kept"}, "m2"}."""

    first: Model
    m2: M2  # of the codes that are kept
    latent: int  # codes of the first model

    def kept(self, params: Params) -> Array:
        """The codes that M2 is of, [K] integers.

        They are kept as floats, because averages are taken of all parameters.
        """
        return jnp.round(params["first_stage"]["kept"]).astype(jnp.int32)

    def codes(self, params: Params, x: Any) -> Any:
        """q(c|x)."""
        first: Any = self.first
        return first.encode(params["first_stage"]["model"], x)

    def log_rest(self, params: Params, codes: Array) -> Array:
        """log N(c'; 0, I) of the codes that are not kept."""
        each = Normal(jnp.zeros(()), jnp.ones(())).log_density(codes)
        return each.sum() - each[self.kept(params)].sum()

    def loss(self, of_m2: Loss) -> Loss:
        """The loss of M2 at a draw of the codes, which carries no gradient."""

        def loss(params: Params, key: Array, example: Conditioned, step: Array) -> Any:
            key_codes, key_m2 = jax.random.split(key)
            codes = self.codes(params, example.x).sample(key_codes)
            kept = lax.stop_gradient(codes[self.kept(params)])
            return of_m2(params["m2"], key_m2, Conditioned(kept, example.y), step)

        return loss

    def bounds(self, params: Params, key: Array, x: Any) -> Bounds:
        """The bounds of an example, from one draw of its codes."""
        key_codes, key_m2 = jax.random.split(key)
        q = self.codes(params, x)
        codes = q.sample(key_codes)
        of_m2 = both_bounds(self.m2, params["m2"], key_m2, codes[self.kept(params)])
        log_q = log_prob_of(q, codes) - self.log_rest(params, codes)
        reconstruction = log_prob_of(self.decoded(params, codes), x)
        kl = log_q + of_m2.terms["kl"] - of_m2.terms["reconstruction"]
        terms = {"reconstruction": reconstruction, "kl": kl}
        return Bounds(terms, reconstruction - log_q + of_m2.labelled)

    def decoded(self, params: Params, codes: Array) -> Any:
        """p(x|c)."""
        first: Any = self.first
        return first.decode(params["first_stage"]["model"], codes)

    def draw(self, params: Params, key: Array, label: Any = None) -> Latents:
        """A draw of the prior, or of the prior at a label."""
        key_m2, key_kept, key_rest = jax.random.split(key, 3)
        latents = self.m2.prior(params["m2"], label).sample(key_m2)
        kept = self.m2.decode(params["m2"], latents).sample(key_kept)
        codes = jax.random.normal(key_rest, (self.latent,)).at[self.kept(params)].set(kept)
        return latents._replace(codes=codes)

    def log_prior(self, params: Params, latents: Latents) -> Array:
        """log p(y, z, c)."""
        log_y_z = self.m2.prior(params["m2"]).log_prob(latents)
        p = self.m2.decode(params["m2"], latents)
        kept = log_prob_of(p, latents.codes[self.kept(params)])
        return log_y_z + kept + self.log_rest(params, latents.codes)


def coded_answers(model: CodedLabels, init: Callable[[Array, Any], Params]) -> Model:
    """What can be asked of M1+M2, as ``m2_answers`` says."""

    def then(params: Params, codes: Array) -> LabelledMixture:
        return model.m2.posterior(params["m2"], codes[model.kept(params)])

    def encode(params: Params, example: Conditioned) -> StackedPosterior:
        known = {"m2": params["m2"], "first_stage": {"kept": params["first_stage"]["kept"]}}
        return StackedPosterior(model.codes(params, example.x), known, then)

    def decode(params: Params, latents: Latents, condition: Any = None) -> Any:
        return model.decoded(params, latents.codes)

    def terms(params: Params, key: Array, example: Conditioned, num_samples: int) -> Terms:
        of_draw = lambda key: model.bounds(params, key, example.x)
        each = jax.vmap(of_draw)(jax.random.split(key, num_samples))
        return with_labelled(jax.tree.map(lambda a: a.mean(0), each), example.y)

    def joint(params: Params, example: Conditioned, latents: Latents) -> Array:
        log_p = log_prob_of(model.decoded(params, latents.codes), example.x)
        return log_p + model.log_prior(params, latents)

    def log_weights(params: Params, key: Array, example: Conditioned, num_samples: int) -> Array:
        log_joint = lambda latents: joint(params, example, latents)
        return weights_of(key, encode(params, example), log_joint, num_samples)

    def classify(params: Params, example: Conditioned) -> Array:
        codes = model.codes(params, example.x).mean[model.kept(params)]
        return jax.nn.log_softmax(model.m2.guess(params["m2"], codes).logits[0])

    return Model(
        init,
        *(encode, decode, model.draw),
        terms=terms,
        log_weights=log_weights,
        log_joint=joint,
        parts=lambda example: (example.x, None),
        classify=classify,
    )
