"""Models of examples whose labels may be missing: M2 and M1+M2 of Kingma et al. 2014.

arXiv:1406.5298. M2 is p(y) p(z) p(x|y, z) with q(y|x) q(z|x, y). At a label it is a CVAE, and

    -L(x, y) = E_q(z|x,y) log p(x|y, z) - KL(q(z|x, y) || p(z)) + log p(y) <= log p(x, y).

Without a label it is a VAE whose latent is y, and in which -L(x, y) - log p(y) takes the place of
log p(x|y): U(x) = E_q(y|x) [-L(x, y)] + H(q(y|x)) <= log p(x). So any objective of categorical
latents trains it. Examples are ``Conditioned(x, y)`` with an integer y, where -1 is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import divergences
from jaxvae.bounds import log_weights as weights_of
from jaxvae.contracts import Array, Loss, Params, Terms, pytree
from jaxvae.distributions import OneHotCategorical, log_prob_of
from jaxvae.distributions.contract import many
from jaxvae.models.answers import Model
from jaxvae.models.conditional import CVAE, Conditioned, condition_on
from jaxvae.models.vae import VAE, elbo_terms
from jaxvae.networks import Network


class Latents(NamedTuple):
    """The latents of a model with labels."""

    y: Array  # the class, an integer
    z: Any
    codes: Any = None  # of M1, in M1+M2


class Bounded(NamedTuple):
    """A lower bound on a log-density of x, in the place of the density."""

    log_prob: Callable[[Any], Array]


@pytree
class LabelledMixture:
    """p(y) p(z|y) over ``Latents``: a mixture whose component is drawn with z."""

    logits: Array  # of p(y), [C]
    components: Any  # p(z|y), one distribution with an axis C in front of every leaf

    @property
    def mean(self) -> Latents:
        """The most probable class, and the mean of z given it."""
        y = self.logits.argmax().astype(jnp.int32)
        return Latents(y, self.at(y).mean)

    def at(self, y: Array) -> Any:
        """p(z|y)."""
        return jax.tree.map(lambda leaf: leaf[y], self.components)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Latents:
        def one(key: Array) -> Latents:
            key_y, key_z = jax.random.split(key)
            y = jax.random.categorical(key_y, self.logits).astype(jnp.int32)
            return Latents(y, self.at(y).sample(key_z))

        return many(one, key, shape)

    def log_prob(self, latents: Latents) -> Array:
        log_y = jax.nn.log_softmax(self.logits)[latents.y]
        return log_y + log_prob_of(self.at(latents.y), latents.z)


class M2(NamedTuple):
    """p(y) p(z) p(x|y, z) with q(y|x) q(z|x, y) and a uniform p(y)."""

    cvae: CVAE  # of x at a one-hot class [C]
    classifier: Network  # x -> logits of q(y|x), [C]
    classes: int  # C

    def init(self, key: Array, x: Any) -> Params:
        """The parameters of the CVAE, and ``classifier``."""
        key_cvae, key_classifier = jax.random.split(key)
        params = self.cvae.init(key_cvae, Conditioned(x, jnp.zeros(self.classes)))
        return params | {"classifier": self.classifier.init(key_classifier, x)}

    def guess(self, params: Params, x: Any) -> OneHotCategorical:
        """q(y|x) over one-hot y [1, C]."""
        return OneHotCategorical(self.classifier.apply(params["classifier"], x)[None])

    def guessed_before(self, params: Params) -> OneHotCategorical:
        """p(y) over one-hot y [1, C]."""
        return OneHotCategorical(jnp.zeros((1, self.classes)))

    def terms(self, params: Params, key: Array, x: Any, y: Array, num_samples: int = 1) -> Terms:
        """Reconstruction and KL of the bound on log p(x|y), at a one-hot y [C]."""
        return elbo_terms(condition_on(self.cvae, y), params, key, x, num_samples)

    def bound(self, params: Params, key: Array, x: Any, y: Array) -> Array:
        """The bound on log p(x|y) from one draw of z, at a one-hot y [C]."""
        terms = self.terms(params, key, x, y)
        return terms["reconstruction"] - terms["kl"]

    def posterior(self, params: Params, x: Any) -> LabelledMixture:
        """q(y, z|x)."""
        of_class = lambda y: self.cvae.encode(params, x, y)
        return LabelledMixture(
            self.guess(params, x).logits[0], jax.vmap(of_class)(jnp.eye(self.classes))
        )

    def prior(self, params: Params, label: Any = None) -> LabelledMixture:
        """p(y, z), or p(z) at a label."""
        logits = jnp.zeros(self.classes)
        if label is not None:
            logits = jnp.where(jnp.arange(self.classes) == label, 0.0, -jnp.inf)
        of_class = lambda y: self.cvae.prior(params, y)
        components = jax.vmap(of_class, axis_size=self.classes)(jnp.eye(self.classes))
        return LabelledMixture(logits, components)

    def decode(self, params: Params, latents: Latents) -> Any:
        """p(x|y, z)."""
        return self.cvae.decode(params, latents.z, jax.nn.one_hot(latents.y, self.classes))


def over_labels(model: M2) -> VAE:
    """The VAE of x whose latent is the one-hot label [1, C].

    In the place of log p(x|y) it has the bound -L(x, y) - log p(y), with one draw of z for each y.
    A training loss draws z by its own key.
    """

    def with_key(key: Array) -> VAE:
        def decode(params: Params, y: Array) -> Bounded:
            return Bounded(lambda x: model.bound(params, key, x, y[0]))

        return VAE(model.init, model.guess, decode, model.guessed_before)

    return with_key(jax.random.key(0))._replace(training=with_key)


# Losses


class Shares(NamedTuple):
    """How many examples have a label and how many have none, in the data and in each batch."""

    labelled: int
    unlabelled: int
    batch_labelled: int
    batch_unlabelled: int

    @property
    def batch(self) -> int:
        """Examples in a batch."""
        return self.batch_labelled + self.batch_unlabelled

    def weights(self) -> tuple[float, float]:
        """Weights of both kinds, with which the mean of a batch is the mean of the data."""
        kinds = (
            (self.labelled, self.batch_labelled),
            (self.unlabelled, self.batch_unlabelled),
        )
        size = self.labelled + self.unlabelled
        first, second = ((n / size) / (count / self.batch) if count else 0.0 for n, count in kinds)
        return first, second


def semi_supervised(model: M2, unlabelled: Loss, shares: Shares, label_weight: float) -> Loss:
    """The loss of an example with or without a label (Kingma et al. 2014, eq. 9).

    The mean over the data is sum_l L / N + sum_u -U / N + alpha mean_l -log q(y|x). So alpha is the
    weight of the mean cross-entropy, in nats for each example. Batches hold fixed numbers of both
    kinds, and ``Shares.weights`` make up for that.

    Args:
      model: the model.
      unlabelled: an objective of ``over_labels(model)``, such as its negative ELBO -U(x).
      shares: how many examples of each kind there are.
      label_weight: alpha.
    """
    of_labelled, of_unlabelled = shares.weights()
    log_prior = -math.log(model.classes)

    def with_label(params: Params, key: Array, x: Any, y: Array) -> tuple[Array, Terms]:
        one_hot = jax.nn.one_hot(y, model.classes)
        bound = model.bound(params, key, x, one_hot) + log_prior
        q = model.guess(params, x)
        cross_entropy = -q.log_prob(one_hot[None])
        right = (q.logits[0].argmax() == y).astype(jnp.float32)
        share = shares.batch_labelled / shares.batch
        terms = {"labelled_elbo": bound, "cross_entropy": cross_entropy, "accuracy": right}
        terms = {name: value / share for name, value in terms.items()}
        return label_weight / share * cross_entropy - of_labelled * bound, terms

    def without(params: Params, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        value, terms = unlabelled(params, key, x, step)
        share = shares.batch_unlabelled / shares.batch
        elbo = terms["reconstruction"] - terms["kl"]
        return of_unlabelled * value, {"unlabelled_elbo": elbo / share}

    def loss(params: Params, key: Array, example: Conditioned, step: Array) -> tuple[Array, Terms]:
        x, y = example
        total: Array = jnp.zeros(())
        every: Terms = {}
        key_labelled, key_unlabelled = jax.random.split(key)
        if shares.batch_labelled:
            kind = with_label(params, key_labelled, x, jnp.maximum(y, 0))
            value, terms = jax.tree.map(lambda v: jnp.where(y >= 0, v, 0.0), kind)
            total, every = total + value, every | terms
        if shares.batch_unlabelled:
            kind = without(params, key_unlabelled, x, step)
            value, terms = jax.tree.map(lambda v: jnp.where(y < 0, v, 0.0), kind)
            total, every = total + value, every | terms
        return total, every

    return loss


# Answers


class Bounds(NamedTuple):
    """Terms of U(x), and -L(x, y) of every class, from one draw of z for each class."""

    terms: Terms  # reconstruction and KL, which is of q(y, z|x) from p(y) p(z)
    labelled: Array  # [C]


def both_bounds(model: M2, params: Params, key: Array, x: Any) -> Bounds:
    """The bounds of an example, with the exact sum over its label."""
    q = model.guess(params, x)
    each = jax.vmap(lambda y: model.terms(params, key, x, y))(jnp.eye(model.classes))
    weights = jax.nn.softmax(q.logits[0])
    mean = {name: jnp.sum(weights * value) for name, value in each.items()}
    of_label = divergences.kl(q, model.guessed_before(params))
    terms = {"reconstruction": mean["reconstruction"], "kl": mean["kl"] + of_label}
    return Bounds(terms, each["reconstruction"] - each["kl"] - math.log(model.classes))


def with_labelled(both: Bounds, y: Array) -> Terms:
    """The terms of U(x), and ``labelled_elbo``, which is nan if the label is missing."""
    at_label = jnp.where(y >= 0, both.labelled[jnp.maximum(y, 0)], jnp.nan)
    return both.terms | {"labelled_elbo": at_label}


def m2_answers(model: M2) -> Model:
    """What can be asked of M2. Its ELBO is U(x); -L(x, y) is the term ``labelled_elbo``."""

    def encode(params: Params, example: Conditioned) -> LabelledMixture:
        return model.posterior(params, example.x)

    def decode(params: Params, latents: Latents, condition: Any = None) -> Any:
        return model.decode(params, latents)

    def draw(params: Params, key: Array, condition: Any = None) -> Latents:
        return model.prior(params, condition).sample(key)

    def terms(params: Params, key: Array, example: Conditioned, num_samples: int) -> Terms:
        of_draw = lambda key: both_bounds(model, params, key, example.x)
        each = jax.vmap(of_draw)(jax.random.split(key, num_samples))
        return with_labelled(jax.tree.map(lambda a: a.mean(0), each), example.y)

    def joint(params: Params, example: Conditioned, latents: Latents) -> Array:
        log_p = log_prob_of(model.decode(params, latents), example.x)
        return log_p + model.prior(params).log_prob(latents)

    def log_weights(params: Params, key: Array, example: Conditioned, num_samples: int) -> Array:
        log_joint = lambda latents: joint(params, example, latents)
        return weights_of(key, encode(params, example), log_joint, num_samples)

    def classify(params: Params, example: Conditioned) -> Array:
        return jax.nn.log_softmax(model.guess(params, example.x).logits[0])

    return Model(
        lambda key, example: model.init(key, example.x),
        *(encode, decode, draw, model.prior, terms, log_weights, joint),
        parts=lambda example: (example.x, None),
        classify=classify,
    )
