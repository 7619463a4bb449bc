"""The answers of a trained model: a record of pure functions of one example.

Evaluation, figures and all later uses ask for the answer that they need. They never ask for the
family of the model. If it has no such answer, they raise an error that says so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxvae import bounds
from jaxvae.contracts import Array, Params, Terms
from jaxvae.models.conditional import CVAE, Denoising, condition_on
from jaxvae.models.vae import VAE, elbo_terms, log_joint


def _whole(example: Any) -> tuple[Any, None]:
    return example, None


class Model(NamedTuple):
    """The answers of a model, each for one example. An answer may be None.

    An example is what the model takes, after preprocessing. ``condition`` is what a conditional
    model is conditioned on, and None for any other. z may be any pytree. All values are in nats.
    """

    init: Callable[[Array, Any], Params]  # (key, example) -> params
    encode: Callable[[Params, Any], Any] | None = None  # (params, example) -> q(z|example)
    decode: Callable[..., Any] | None = None  # (params, z, condition=None) -> p(x|z)
    draw: Callable[..., Any] | None = None  # (params, key, condition=None) -> z of the prior
    prior: Callable[..., Any] | None = None  # (params, condition=None) -> p(z), a density
    # (params, key, example, num_samples) -> {"reconstruction", "kl", and what the family adds}
    terms: Callable[[Params, Array, Any, int], Terms] | None = None
    # (params, key, example, num_samples) -> log p(x, z_k) - log q(z_k|x), z_k ~ q: [K]
    log_weights: Callable[[Params, Array, Any, int], Array] | None = None
    # (params, example, z) -> log p(x, z)
    log_joint: Callable[[Params, Any, Any], Array] | None = None
    parts: Callable[[Any], tuple[Any, Any]] = _whole  # example -> (x, condition)
    # Models with discrete codes have three more answers. The codes are a pytree of int32 arrays,
    # whose leaves are in the order in which a prior explains them, such as coarse before fine.
    codes: Callable[[Params, Any], Any] | None = None  # (params, example) -> codes
    decode_codes: Callable[..., Any] | None = None  # (params, codes, condition=None) -> p(x|codes)
    num_codes: Any = None  # the same pytree of ints: a code of an array is 0 .. num_codes - 1
    # (params, example, l) -> p(x|z), z at means: the first l layers of q's, the others of p's
    partly: Callable[[Params, Any, Any], Any] | None = None
    layers: int = 1  # of z
    # (params, example) -> log q(y|x) of the classes, [C]. Such a model draws at a class, an
    # integer, if it is given as the condition.
    classify: Callable[[Params, Any], Array] | None = None
    unseen: tuple[int, ...] = ()  # classes that have no training examples
    # Models of several views: (example, [M] bool) -> the example of which only these are known, and
    # names and sizes of the views, which x holds one after the other.
    seen: Callable[[Any, Any], Any] | None = None
    views: tuple[tuple[str, int], ...] = ()
    # (params, z, condition) -> the shares of the genes in all counts of a cell, [G]
    expression: Callable[[Params, Any, Any], Array] | None = None
    atoms: Callable[[Params], Any] | None = None  # params -> z [A, D] that a dictionary shows


@functools.lru_cache(maxsize=64)
def answers(model: Any) -> Model:
    """The answers of a VAE, or of a model that gives one ``at`` an example.

    A ``Model`` is returned as it is. A denoising model answers for clean examples as its VAE does.
    The result is cached, so that functions compiled for a model are compiled once. Raises
    ValueError for anything else.

    >>> import jax, jax.numpy as jnp
    >>> from jaxvae import likelihoods, models, networks, posteriors, priors
    >>> vae = models.vae(
    ...     networks.mlp((), 4), networks.mlp((), 3), posteriors.normal(2),
    ...     likelihoods.bernoulli(), priors.standard_normal(2))
    >>> params = vae.init(jax.random.key(0), jnp.zeros(3))
    >>> asked = models.answers(vae)
    >>> asked.draw(params, jax.random.key(2)).shape
    (2,)
    """
    if isinstance(model, Model):
        return model
    if not hasattr(model, "at"):
        raise ValueError(
            f"answers takes a VAE, a CVAE, a Denoising or a Model; it was given a "
            f"{type(model).__name__}"
        )

    def conditioned(condition: Any) -> VAE:
        if isinstance(model, CVAE):
            return condition_on(model, condition)
        return model.vae if isinstance(model, Denoising) else model

    def encode(params: Params, example: Any) -> Any:
        vae, x = model.at(example)
        return vae.encode(params, x)

    def decode(params: Params, z: Any, condition: Any = None) -> Any:
        return conditioned(condition).decode(params, z)

    def prior(params: Params, condition: Any = None) -> Any:
        return conditioned(condition).prior(params)

    def draw(params: Params, key: Array, condition: Any = None) -> Any:
        return prior(params, condition).sample(key)

    def terms(params: Params, key: Array, example: Any, num_samples: int) -> Terms:
        return elbo_terms(model, params, key, example, num_samples)

    def joint(params: Params, example: Any, z: Any) -> Array:
        vae, x = model.at(example)
        return log_joint(vae, params, x, vae.prior(params))(z)

    def log_weights(params: Params, key: Array, example: Any, num_samples: int) -> Array:
        q = encode(params, example)
        return bounds.log_weights(key, q, lambda z: joint(params, example, z), num_samples)

    def parts(example: Any) -> tuple[Any, Any]:
        condition = example.y if isinstance(model, CVAE) else None
        return model.at(example)[1], condition

    return Model(model.init, encode, decode, draw, prior, terms, log_weights, joint, parts)
