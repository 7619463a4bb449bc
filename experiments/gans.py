"""A generative adversarial network of two players (Goodfellow et al. 2014, arXiv:1406.2661).

The generator is a ``models.Model`` that decodes and draws, and answers nothing else.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxvae import likelihoods, models, networks, training
from jaxvae.contracts import Array, Loss, Params, Terms
from jaxvae.models.hybrids import discernment, only
from jaxvae.models.observed import Observed


def generative(generator: networks.Network, latent: int) -> models.Model:
    """A model that answers nothing but p(x|z) of pixels and draws of z: it has no encoder."""
    likelihood = likelihoods.bernoulli()

    def decode(params: Params, z: Array, condition: Any = None) -> Any:
        return likelihood.of_outputs({}, generator.apply(params, z))

    def draw(params: Params, key: Array, condition: Any = None) -> Array:
        return jax.random.normal(key, (latent,))

    return models.Model(
        lambda key, x: generator.init(key, jnp.zeros(latent)), decode=decode, draw=draw
    )


def adversarial(model: models.Model, critic: networks.Network) -> dict[str, Loss]:
    """The losses of both players for one example, with c the critic's log-odds and z ~ N(0, I).

    generator: -log s(c(E[x|z])),  critic: -log s(c(x)) - log s(-c(E[x|z])).
    """

    def log_odds(params: Any, key: Array, x: Array) -> tuple[Array, Array]:
        of_model = params["generator"]
        decoded = model.decode(of_model, model.draw(of_model, key)).mean  # type: ignore[misc]
        real, fake = (critic.apply(params["critic"], image).output[0] for image in (x, decoded))
        return real, fake

    def of_generator(params: Any, key: Array, x: Array, step: Array) -> tuple[Array, Terms]:
        return jax.nn.softplus(-log_odds(only(params, "generator"), key, x)[1]), {}

    def of_critic(params: Any, key: Array, x: Array, step: Array) -> tuple[Array, Terms]:
        return discernment(*log_odds(only(params, "critic"), key, x))

    return {"generator": of_generator, "critic": of_critic}


def fitted(
    model: models.Model, critic: networks.Network, x: np.ndarray, rate: float, **how: Any
) -> dict[str, Params]:
    """The parameters of both players after training on x [N, ...].

    Args:
      model: the generator.
      critic: gives a ``networks.Judgement`` of one number.
      x: the examples, in [0, 1].
      rate: the learning rate of both players' Adam (betas 0.5 and 0.9).
      how: steps, batch size and seed, as ``training.fit`` takes them.
    """

    def init(key: Array, x: Array) -> dict[str, Params]:
        keys = jax.random.split(key)
        return {"generator": model.init(keys[0], x), "critic": critic.init(keys[1], x)}

    player = lambda loss: training.Player(training.batch_mean(loss), training.adam(rate, 0.5, 0.9))
    members = {name: player(loss) for name, loss in adversarial(model, critic).items()}
    return training.trained_players(training.fit(training.players(init, members), x, **how))


def inverted(
    model: models.Model, params: Params, key: Array, x: Array, steps: int, restarts: int
) -> Array:
    """E[x|z] at the z that fits the pixels of an image that are not missing.

    z = argmin -log p(x_o|z) + |z|^2 / 2, by gradient steps from several draws of the prior.

    Args:
      model: a model that answers ``decode`` and ``draw``.
      params: its parameters.
      key: the key of the draws.
      x: an image in which nan is a missing pixel.
      steps: gradient steps, of Adam from 0.1 on.
      restarts: draws that these start from, of which the best counts.
    """
    decode: Any = lambda z: model.decode(params, z)  # type: ignore[misc]
    cost = lambda z: z @ z / 2 - Observed(decode(z)).log_prob(x)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, steps))

    def step(_: Any, now: tuple) -> tuple:
        z, state = now
        change, state = optimizer.update(jax.grad(cost)(z), state)
        return optax.apply_updates(z, change), state

    def descended(key: Array) -> Array:
        z = model.draw(params, key)  # type: ignore[misc]
        return lax.fori_loop(0, steps, step, (z, optimizer.init(z)))[0]

    z = jax.vmap(descended)(jax.random.split(key, restarts))
    return decode(z[jnp.argmin(jax.vmap(cost)(z))]).mean
