"""Zero-VAE-GAN: features of classes that have no examples.

Gao et al. 2020, doi:10.1109/TIP.2020.2964429. Its transductive form is self-training.
A CVAE explains features x given the attributes a of their class. A critic judges x beside a. A
classifier of all classes learns seen classes from data and unseen ones from the decoder. Encoder,
decoder, critic and classifier are players; ``constants`` is frozen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxvae.contracts import Array, Loss, Params, Terms
from jaxvae.models import hybrids
from jaxvae.models.answers import Model, answers
from jaxvae.models.conditional import CVAE, Conditioned, condition_on
from jaxvae.networks import Network


class Constants(NamedTuple):
    """What stays as it is: attributes of the classes, and means and scales of the data."""

    attributes: Array  # [C, A], as the data set holds them
    centre: Array  # [A], the mean of attributes of length 1 over seen classes
    mean: Array  # of the training features
    scale: Array


def constants(x: np.ndarray, attributes: np.ndarray, unseen: tuple[int, ...]) -> Constants:
    """The constants of training features x [N, ...] and attributes [C, A]."""
    seen = np.delete(np.arange(len(attributes)), list(unseen))
    scale = x.std(0, dtype=np.float64)
    floor = 1e-3 * scale.max() if scale.max() > 0 else 1.0  # of features that hardly vary
    values = attributes, _unit(attributes[seen]).mean(0), x.mean(0), np.maximum(scale, floor)
    return Constants(*(jnp.asarray(value, jnp.float32) for value in values))


def _unit(attributes: Any) -> Any:
    length = jnp.linalg.norm(attributes, axis=-1, keepdims=True)
    return attributes / jnp.maximum(length, 1e-12)


def described(known: Constants, y: Any) -> Array:
    """Attributes as networks take them, a / |a| less their mean, of a class or of given ones."""
    return _unit(known.attributes[y] if jnp.ndim(y) == 0 else y) - known.centre


def standardized(known: Constants, x: Array) -> Array:
    """x with mean 0 and scale 1 over the training features."""
    return (x - known.mean) / known.scale


class Balance(NamedTuple):
    """The weights of the terms that a hybrid of images has not."""

    unseen: float = 0.25  # of classes without examples in the classifier's loss
    named: float = 0.0  # of -log p(y|x_p) of decoded features in the decoder's loss
    confidence: float = 0.5  # least probability of a guess that stands for a missing label
    start: int = 0  # step from which on guesses do


class ZeroShot(NamedTuple):
    """A CVAE of standardized features given attributes, with a critic and a classifier."""

    cvae: CVAE
    critic: hybrids.Judge  # sees standardized x beside attributes
    classifier: Network  # standardized x -> logits of all classes, [C]
    unseen: tuple[int, ...]  # classes without examples

    def init(self, known: Constants) -> Callable[[Array, Any], hybrids.Players]:
        """``(key, example) -> {player: params}``, and the constants beside them."""
        of_players = hybrids.hybrid_init(self.cvae, {"critic": self.critic})

        def start(key: Array, example: Conditioned) -> hybrids.Players:
            key, key_classifier = jax.random.split(key)
            x = standardized(known, example.x)
            inner = Conditioned(x, described(known, example.y))
            return of_players(key, inner) | {
                "classifier": self.classifier.init(key_classifier, x),
                "constants": known,
            }

        return start


def parameters(params: hybrids.Players) -> Params:
    """The parameters of the model that is evaluated."""
    kept = {name: params[name] for name in ("classifier", "constants")}
    return hybrids.joined(params) | kept


def guess(
    model: ZeroShot, balance: Balance, params: hybrids.Players, example: Conditioned, step: Array
) -> tuple[Array, Conditioned]:
    """The weight of an example, and the example with a class.

    A missing label -1 is of an unseen class. In self-training the classifier's guess among these
    stands for it, from a step on and where the guess is sure. The weight is 1 or 0.

    Args:
      model: the model.
      balance: says when a guess is sure.
      params: the parameters of all players.
      example: standardized x and a label.
      step: the step of the training.
    """
    classes = jnp.array(model.unseen)
    shares = jax.nn.softmax(model.classifier.apply(params["classifier"], example.x)[classes])
    sure = (shares.max() >= balance.confidence) & (step >= balance.start)
    known = example.y >= 0
    label = jnp.where(known, example.y, classes[shares.argmax()])
    return jnp.where(known | sure, 1.0, 0.0), Conditioned(example.x, label)


def losses(
    model: ZeroShot,
    weights: hybrids.Weights,
    balance: Balance,
    penalty: Callable[[Params], Array],
) -> dict[str, Loss]:
    """The losses of encoder, decoder, critic and classifier for one example.

    Encoder, decoder and critic have the losses of ``hybrid_losses``, where draws of p(x|z, a)
    are judged beside a. The others descend

        decoder:    named * -log p(y|x_p) + penalty
        classifier: -log p(y|x) + unseen * -log p(u|x_u),   u uniform over the unseen classes,

    where x_p is drawn given the attributes of y, and x_u given the attributes of u. An example
    without a label has the class of ``guess``, or no loss.

    Args:
      model: the model.
      weights: the weights of the hybrid's terms.
      balance: the weights of the other terms.
      penalty: of the decoder's parameters.
    """
    shared = hybrids.hybrid_losses(model.cvae, {"critic": model.critic}, weights, _drawn)
    cost = lambda params, x, y: optax.softmax_cross_entropy_with_integer_labels(
        model.classifier.apply(params["classifier"], x), y
    )

    def drawn_given(params: hybrids.Players, key: Array, attributes: Array) -> Array:
        vae, of_vae = condition_on(model.cvae, attributes), hybrids.joined(params)
        key_z, key_x = jax.random.split(jax.random.fold_in(key, 4))
        z = vae.prior(of_vae).sample(key_z)
        return vae.decode(of_vae, z).sample(key_x)

    def of_cvae(name: str) -> _Labelled:
        def loss(params: Any, known: Constants, key: Array, example: Any, step: Array) -> Any:
            return shared[name](
                params, key, Conditioned(example.x, described(known, example.y)), step
            )

        return loss

    def decoder(params: Any, known: Constants, key: Array, example: Any, step: Array) -> Any:
        value, terms = of_cvae("decoder")(params, known, key, example, step)
        params = hybrids.only(params, "decoder")
        value += penalty(params["decoder"])
        if not balance.named:
            return value, terms
        x = drawn_given(params, key, described(known, example.y))
        named = cost(params, x, example.y)
        return value + balance.named * named, terms | {"named": named}

    def classifier(params: Any, known: Constants, key: Array, example: Any, step: Array) -> Any:
        params = hybrids.only(params, "classifier")
        of_class, label = cost(params, example.x, example.y), _any(model.unseen, key)
        generated = cost(params, drawn_given(params, key, described(known, label)), label)
        terms = {"cross_entropy": of_class, "of_unseen": generated}
        return of_class + balance.unseen * generated, terms

    players: dict[str, _Labelled] = {
        "encoder": of_cvae("encoder"),
        "decoder": decoder,
        "critic": of_cvae("critic"),
        "classifier": classifier,
    }
    return {name: _of_raw(model, balance, loss) for name, loss in players.items()}


# (params, constants, key, example with a class, step) -> (loss, terms)
_Labelled = Callable[[Any, Constants, Array, Any, Array], tuple[Array, Terms]]


def _of_raw(model: ZeroShot, balance: Balance, loss: _Labelled) -> Loss:
    """The loss of an example as the data set holds it, whose label may be missing."""

    def of_raw(params: Any, key: Array, example: Any, step: Array) -> tuple[Array, Terms]:
        known: Constants = lax.stop_gradient(params["constants"])
        inner = Conditioned(standardized(known, example.x), example.y)
        weight, labelled = guess(model, balance, params, inner, step)
        value, terms = loss(params, known, key, labelled, step)
        return weight * value, {name: weight * term for name, term in terms.items()}

    return of_raw


def _drawn(p: Any, key: Array) -> Array:
    return p.sample(key)


def _any(classes: tuple[int, ...], key: Array) -> Array:
    return jax.random.choice(jax.random.fold_in(key, 5), jnp.array(classes))


def zero_shot_answers(model: ZeroShot, known: Constants) -> Model:
    """The answers of the model, for features as the data set holds them.

    The condition is a class, or the attributes [A] of any class. ``known`` are the constants that
    parameters begin with.
    """
    inner = model.cvae
    at = lambda params, y: described(params["constants"], y)

    def encode(params: Params, x: Any, y: Any) -> Any:
        return inner.encode(params, standardized(params["constants"], x), at(params, y))

    def decode(params: Params, z: Any, y: Any) -> Any:
        """p(x|z), a family of location and scale, in the units of the features."""
        p, units = inner.decode(params, z, at(params, y)), params["constants"]
        loc, scale = units.mean + units.scale * p.loc, units.scale * p.scale
        return dataclasses.replace(p, loc=loc, scale=scale)

    def classify(params: Params, example: Any) -> Array:
        x = standardized(params["constants"], example.x)
        return jax.nn.log_softmax(model.classifier.apply(params["classifier"], x))

    init = model.init(known)
    start = lambda key, example: parameters(init(key, example))
    cvae = CVAE(start, encode, decode, lambda params, y: inner.prior(params, at(params, y)))
    return answers(cvae)._replace(classify=classify, unseen=model.unseen)
