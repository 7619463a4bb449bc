"""Several views of one example: p(z) prod_m p(x_m|z), where any views may be missing.

The expert of a view is a Gaussian with mean m and precision t. The views S of an example have

    q_S(z) = N(sum_S t_m m_m / T, 1 / T),  T = 1 + sum_S t_m,

the product of their experts and of the prior N(0, I), which counts once (Wu & Goodman 2018,
arXiv:1802.05335). The posterior is q_S of all views, or a mixture of q_S over sets S: of one view
each (Shi et al. 2019, arXiv:1911.03393), or of every set (Sutter et al. 2021, arXiv:2105.02470). A
view that is missing is left out of the experts and of the likelihood.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxvae import divergences
from jaxvae.bounds import log_weights as weights_of
from jaxvae.contracts import Array, Loss, Params, Terms
from jaxvae.distributions import Joint, Mixture, Normal, log_prob_of
from jaxvae.likelihoods import Likelihood
from jaxvae.models.answers import Model
from jaxvae.networks import Network

Sets = tuple[tuple[bool, ...], ...]  # sets of views


class Seen(NamedTuple):
    """An example of several views."""

    x: Array  # the views one after the other, [D]; missing views are zeros
    present: Array  # [M] bool


class View(NamedTuple):
    """A view of an example, with its networks."""

    name: str
    size: int  # of its part of x
    encoder: Network  # x_m -> mean and log-precision of its expert, [2 * latent]
    decoder: Network  # z -> what the likelihood takes
    likelihood: Likelihood


def all_views(count: int) -> Sets:
    """One set, of all views: the product of experts."""
    return ((True,) * count,)


def single_views(count: int) -> Sets:
    """A set of each view: the mixture of experts."""
    return tuple(tuple(i == j for j in range(count)) for i in range(count))


def every_set(count: int) -> Sets:
    """All sets but the empty one: the mixture of products of experts."""
    return tuple(each for each in itertools.product((False, True), repeat=count) if any(each))


class Modalities(NamedTuple):
    """A VAE of several views. Parameters are {"encoders", "decoders", "likelihoods"} by view."""

    views: tuple[View, ...]
    latent: int
    sets: Sets  # whose q_S the posterior is made of

    def init(self, key: Array, example: Seen) -> Params:
        """The parameters of all views."""
        parts = zip(self.views, self.cut(example.x), strict=True)
        params: dict[str, Any] = {"encoders": {}, "decoders": {}, "likelihoods": {}}
        for number, (view, x) in enumerate(parts):
            keys = jax.random.split(jax.random.fold_in(key, number), 3)
            params["encoders"][view.name] = view.encoder.init(keys[0], x)
            params["decoders"][view.name] = view.decoder.init(keys[1], jnp.zeros(self.latent))
            params["likelihoods"][view.name] = view.likelihood.init(keys[2])
        return params

    def cut(self, x: Array) -> list[Array]:
        """The views of x [D]."""
        ends = list(itertools.accumulate(view.size for view in self.views))
        return jnp.split(x, ends[:-1])

    def experts(self, params: Params, x: Array) -> list[tuple[Array, Array]]:
        """Mean and precision of each view's expert."""

        def of_view(view: View, x: Array) -> tuple[Array, Array]:
            raw = view.encoder.apply(params["encoders"][view.name], x)
            mean, log_precision = jnp.split(raw, 2)
            return mean, jnp.exp(log_precision)

        return [of_view(view, part) for view, part in zip(self.views, self.cut(x), strict=True)]

    def posterior(self, params: Params, example: Seen) -> Any:
        """q(z|x), uniform over the sets whose views are all present.

        If no view is present, it is the prior.
        """
        experts = self.experts(params, example.x)
        if len(self.sets) == 1:
            return product(experts, example.present)
        among = jnp.array(self.sets)
        components = jax.vmap(lambda views: product(experts, views & example.present))(among)
        return Mixture(self.log_shares(example.present), components)

    def log_shares(self, present: Array) -> Array:
        """Log-weights of the sets, -inf for a set with a view that is missing."""
        whole = (~jnp.array(self.sets) | present).all(1)
        return jnp.where(whole | ~present.any(), 0.0, -jnp.inf)

    def decoded(self, params: Params, z: Array) -> tuple[Any, ...]:
        """p(x_m|z) of each view."""

        def of_view(view: View) -> Any:
            outputs = view.decoder.apply(params["decoders"][view.name], z)
            return view.likelihood.of_outputs(params["likelihoods"][view.name], outputs)

        return tuple(map(of_view, self.views))

    def log_likelihood(
        self, params: Params, z: Array, example: Seen, weights: tuple[float, ...] = ()
    ) -> Array:
        """sum_m w_m log p(x_m|z) over the views that are present."""
        total = jnp.zeros(())
        each = zip(self.decoded(params, z), self.cut(example.x), strict=True)
        for number, (p, x) in enumerate(each):
            log_p = (weights[number] if weights else 1.0) * log_prob_of(p, x)
            total += jnp.where(example.present[number], log_p, 0.0)
        return total

    def prior(self) -> Normal:
        """N(0, I)."""
        return Normal(jnp.zeros(self.latent), jnp.ones(self.latent))


def product(experts: list[tuple[Array, Array]], present: Array) -> Normal:
    """N(0, I) times the experts of the views that are present, in precisions."""
    zero = jnp.zeros_like(experts[0][0])
    precision, weighted = zero + 1.0, zero
    for number, (mean, t) in enumerate(experts):
        precision += jnp.where(present[number], t, 0.0)
        weighted += jnp.where(present[number], t * mean, 0.0)
    return Normal(weighted / precision, 1 / jnp.sqrt(precision))


# Losses. Each takes an example to its bound's terms, reconstruction and KL.

Objective = Callable[[Params, Array, Seen], Terms]


def elbo_of_views(
    model: Modalities, params: Params, key: Array, example: Seen, weights: tuple[float, ...] = ()
) -> Terms:
    """E_q_S log p(x_S|z) and KL(q_S || p) of the views S that an example has.

    Args:
      model: the model.
      params: its parameters.
      key: the key of the draw of z.
      example: the example.
      weights: weights of the views' likelihoods; empty is 1 for all.
    """
    q = product(model.experts(params, example.x), example.present)
    reconstruction = model.log_likelihood(params, q.sample(key), example, weights)
    return {"reconstruction": reconstruction, "kl": divergences.kl(q, model.prior())}


def product_terms(
    model: Modalities, weights: tuple[float, ...], single: float, random_sets: int
) -> Objective:
    """ELBO(all) + w sum_m ELBO(m) + the ELBOs of some random sets (Wu & Goodman 2018, sec. 3.1).

    Args:
      model: the model.
      weights: weights of the views' likelihoods.
      single: w, the weight of the ELBO of each view alone.
      random_sets: how many random sets there are.

    The terms are sums over all of these bounds.
    """
    singles = jnp.array(single_views(len(model.views)))

    def terms(params: Params, key: Array, example: Seen) -> Terms:
        key_all, key_single, key_random, key_sets = jax.random.split(key, 4)

        def of_views(key: Array, views: Array) -> Terms:
            seen = example._replace(present=example.present & views)
            return elbo_of_views(model, params, key, seen, weights)

        total = of_views(key_all, jnp.ones(len(model.views), bool))
        parts = [(single, key_single, singles)] if single else []
        if random_sets:
            drawn = jax.random.bernoulli(key_sets, 0.5, (random_sets, len(model.views)))
            parts.append((1.0, key_random, drawn))
        for weight, key_part, sets in parts:
            each = jax.vmap(of_views)(jax.random.split(key_part, len(sets)), sets)
            total = {name: total[name] + weight * each[name].sum() for name in total}
        return total

    return terms


def mixture_terms(model: Modalities, weights: tuple[float, ...] = ()) -> Objective:
    """mean_S E_q_S [log p(x, z) - log q(z)] with the density of the mixture q, from a draw of each.

    Shi et al. 2019, eq. 3.
    """

    def terms(params: Params, key: Array, example: Seen) -> Terms:
        q = model.posterior(params, example)
        if not isinstance(q, Mixture):
            return elbo_of_views(model, params, key, example, weights)

        def of_set(key: Array, component: Normal) -> Terms:
            z = component.sample(key)
            log_ratio = log_prob_of(q, z) - log_prob_of(model.prior(), z)
            reconstruction = model.log_likelihood(params, z, example, weights)
            return {"reconstruction": reconstruction, "kl": log_ratio}

        keys = jax.random.split(key, len(model.sets))
        return _mean(jax.vmap(of_set)(keys, q.components), q.logits)

    return terms


def mean_terms(model: Modalities, weights: tuple[float, ...] = ()) -> Objective:
    """mean_S E_q_S log p(x|z) - KL(q_S || p) (Sutter et al. 2021, eq. 6).

    It is at most the bound of ``mixture_terms``, and less by at most the log of the number of sets.
    """

    def terms(params: Params, key: Array, example: Seen) -> Terms:
        experts = model.experts(params, example.x)

        def of_set(key: Array, views: Array) -> Terms:
            q = product(experts, views & example.present)
            reconstruction = model.log_likelihood(params, q.sample(key), example, weights)
            return {"reconstruction": reconstruction, "kl": divergences.kl(q, model.prior())}

        keys, sets = jax.random.split(key, len(model.sets)), jnp.array(model.sets)
        return _mean(jax.vmap(of_set)(keys, sets), model.log_shares(example.present))

    return terms


def _mean(each: Terms, logits: Array) -> Terms:
    """The means of terms over the sets that are whole."""
    share = jax.nn.softmax(logits)
    return {n: jnp.sum(jnp.where(share > 0, v, 0.0) * share) for n, v in each.items()}


def negative_views(objective: Objective, kl_weight: optax.Schedule = lambda step: 1.0) -> Loss:
    """-reconstruction + w(step) KL."""

    def loss(params: Params, key: Array, example: Seen, step: Array) -> tuple[Array, Terms]:
        terms = objective(params, key, example)
        return kl_weight(step) * terms["kl"] - terms["reconstruction"], terms

    return loss


# Answers


def modalities_answers(model: Modalities) -> Model:
    """What can be asked of a model of views. x is the vector of all views."""
    of_mixture = mixture_terms(model)

    def decode(params: Params, z: Array, condition: Any = None) -> Joint:
        return Joint(model.decoded(params, z))

    def prior(params: Params, condition: Any = None) -> Normal:
        return model.prior()

    def draw(params: Params, key: Array, condition: Any = None) -> Array:
        return model.prior().sample(key)

    def terms(params: Params, key: Array, example: Seen, num_samples: int) -> Terms:
        of_draw = lambda key: of_mixture(params, key, example)
        each = jax.vmap(of_draw)(jax.random.split(key, num_samples))
        return jax.tree.map(lambda a: a.mean(0), each)

    def joint(params: Params, example: Seen, z: Array) -> Array:
        return model.log_likelihood(params, z, example) + log_prob_of(model.prior(), z)

    def log_weights(params: Params, key: Array, example: Seen, num_samples: int) -> Array:
        log_joint = lambda z: joint(params, example, z)
        return weights_of(key, model.posterior(params, example), log_joint, num_samples)

    return Model(
        model.init,
        *(model.posterior, decode, draw, prior, terms, log_weights, joint),
        parts=lambda example: (example.x, None),
        seen=lambda example, views: example._replace(present=example.present & views),
        views=tuple((view.name, view.size) for view in model.views),
    )
