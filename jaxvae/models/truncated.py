"""VAEs without an encoder: truncated posteriors of binary latents, found by evolution.

Drefs, Guiraud, Panagiotou & Luecke 2022, arXiv:2011.13704 (TVAE).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp

from jaxvae import bounds
from jaxvae.contracts import Array, Params, Terms
from jaxvae.distributions import Bernoulli, Mixture, Truncated
from jaxvae.likelihoods import Likelihood
from jaxvae.models.answers import Model
from jaxvae.networks import Network
from jaxvae.training import Steps

CLIP = 1e-5  # how near to 0 and 1 a prior probability comes
ENUMERATED = 16  # latents up to which all states are listed


class Search(NamedTuple):
    """How children of states are made (arXiv:2011.13704, sec. 2.2)."""

    parents: int  # states of a generation that have children
    children: int  # of a parent, each with another flipped bit
    generations: int


class TruncatedVAE(NamedTuple):
    """p(s) = prod_h Bernoulli(s_h; pi_h) and p(x|s) of a decoder, with s in {0, 1}^H.

    The posterior of an example is its joint probability on a set K of S states, and zero elsewhere.
    Its bound is F = log sum_{s in K} p(x, s), which rises with every better state in K (eq. 6).
    """

    decoder: Network
    likelihood: Likelihood
    first: np.ndarray  # the states that every search starts from, [S, H]
    search: Search

    @property
    def latent(self) -> int:
        """H, the number of bits."""
        return self.first.shape[1]

    def init(self, key: Array, x: Any) -> Params:
        """Fresh parameters; a prior probability starts at 1/H."""
        key_decoder, key_likelihood = jax.random.split(key)
        probability = min(1 / self.latent, 0.5)
        return {
            "decoder": self.decoder.init(key_decoder, jnp.zeros(self.latent)),
            "likelihood": self.likelihood.init(key_likelihood),
            "prior": {"probabilities": jnp.full(self.latent, probability)},
        }

    def decode(self, params: Params, s: Array) -> Any:
        """p(x|s)."""
        outputs = self.decoder.apply(params["decoder"], s)
        return self.likelihood.of_outputs(params["likelihood"], outputs)

    def prior(self, params: Params) -> Bernoulli:
        """p(s)."""
        p = params["prior"]["probabilities"]
        return Bernoulli(jnp.log(p) - jnp.log1p(-p))

    def log_joint(self, params: Params, x: Any, s: Array) -> Array:
        """log p(x, s), in nats."""
        return self.decode(params, s).log_prob(x) + self.prior(params).log_prob(s)


def first_states(latent: int, count: int, seed: int) -> np.ndarray:
    """Different states whose bits are 1 with probability 1/H, [S, H] uint8.

    Raises ValueError if there are not so many states.
    """
    if latent < 31 and count > 2**latent:
        raise ValueError(f"states={count}: {latent} bits have {2**latent} states, take fewer")
    rng = np.random.default_rng(seed)
    if latent <= ENUMERATED:
        every = (np.arange(2**latent)[:, None] >> np.arange(latent)) & 1
        ones = every.sum(1) * -math.log(max(latent - 1, 1))  # log-probabilities, but for a constant
        order = np.argsort(-(ones + rng.gumbel(size=len(every))), kind="stable")
        return every[order[:count]].astype(np.uint8)
    drawn: dict[bytes, np.ndarray] = {}
    while len(drawn) < count:
        for state in (rng.random((count, latent)) < 1 / latent).astype(np.uint8):
            drawn.setdefault(state.tobytes(), state)
    return np.stack(list(drawn.values())[:count])


def packed(states: Array) -> Array:
    """States [S, H] in bytes, [S * ceil(H / 8)]."""
    return jnp.packbits(states.astype(jnp.uint8), axis=-1).reshape(-1)


def unpacked(entry: Array, latent: int) -> Array:
    """The states [S, H] of a packed entry, as floats."""
    rows = entry.reshape(-1, -(-latent // 8))
    return jnp.unpackbits(rows, axis=-1, count=latent).astype(jnp.float32)


# The search, of one example


def evolved(key: Array, states: Array, score: Callable[[Array], Array], search: Search) -> Array:
    """The S best of some different states [S, H] and of the generations that they have.

    Parents are drawn in proportion to their fitness, and the parents of the next generation are
    drawn from the children. States that were there before are not taken twice (sec. 2.2).

    Args:
      key: the key of the draws.
      states: bits as floats, no two alike.
      score: log p(x, s) of a state.
      search: how many children are made.
    """
    scores = jax.vmap(score)(states)
    every, every_score = [states], [scores]
    for key_generation in jax.random.split(key, search.generations):
        children = _children(key_generation, every[-1], every_score[-1], search)
        every.append(children)
        every_score.append(jax.vmap(score)(children))
    pool, values = jnp.concatenate(every), jnp.concatenate(every_score)
    values = jnp.where(repeated(pool), -jnp.inf, values)
    return pool[lax.top_k(values, len(states))[1]]


def _children(key: Array, states: Array, scores: Array, search: Search) -> Array:
    """Children of parents that are drawn by fitness, [parents * children, H]."""
    key_parents, key_bits = jax.random.split(key)
    scores = jnp.nan_to_num(scores, nan=-1e20, neginf=-1e20)
    fitness = scores - 2 * jnp.minimum(scores.min(), 0.0)
    chosen = jax.random.categorical(key_parents, jnp.log(fitness + 1e-6), shape=(search.parents,))
    flip = lambda key, parent: flipped(key, parent, search.children)
    families = jax.vmap(flip)(jax.random.split(key_bits, search.parents), states[chosen])
    return families.reshape(-1, states.shape[1])


def flipped(key: Array, state: Array, count: int) -> Array:
    """Copies of a state [H], each with another bit flipped, [count, H]."""
    bits = lax.top_k(jax.random.uniform(key, state.shape), count)[1]
    return jnp.abs(state - jax.nn.one_hot(bits, len(state)))


def repeated(states: Array) -> Array:
    """Whether a state [M, H] stands before, [M] bool. A repeated one would count twice in F."""
    words = jnp.packbits(states.astype(jnp.uint8), axis=-1)
    same = (words[:, None] == words[None]).all(-1)
    return jnp.tril(same, -1).any(-1)


# Bound and closed forms, of one example


def bound_of(
    model: TruncatedVAE, params: Params, x: Any, states: Array
) -> tuple[Array, tuple[Terms, dict[str, Array]]]:
    """-F at states [S, H], its terms, and what the closed form of the M step needs.

    F = E_q log p(x|s) - KL(q(s) || p(s)) for q proportional to p(x, s) on the states.
    """
    likelihoods = jax.vmap(lambda s: model.decode(params, s))(states)
    reconstructions = jax.vmap(lambda p: p.log_prob(x))(likelihoods)
    log_joints = reconstructions + jax.vmap(model.prior(params).log_prob)(states)
    q = lax.stop_gradient(jax.nn.softmax(log_joints))
    squares = jax.vmap(lambda p: ((x - p.mean) ** 2).sum())(likelihoods)
    value, reconstruction = logsumexp(log_joints), (q * reconstructions).sum()
    terms = {"reconstruction": reconstruction, "kl": reconstruction - value}
    mean = jnp.matmul(q, states, precision="float32")
    statistics = {"bits": mean, "mean_square": (q * squares).sum() / x.size}
    return -value, (terms, lax.stop_gradient(statistics))


def solved(params: Params, sums: dict[str, Array], count: Array) -> Params:
    """The prior and the scale at the optimum of F, with all q as they are (sec. 2.3).

    pi_h = mean E_q s_h and sigma^2 = mean E_q |x - f(s)|^2 / D.
    """
    probabilities = jnp.clip(sums["bits"] / count, CLIP, 1 - CLIP)
    likelihood = dict(params["likelihood"])
    if "log_scale" in likelihood:
        likelihood["log_scale"] = 0.5 * jnp.log(jnp.maximum(sums["mean_square"] / count, 1e-12))
    return params | {"prior": {"probabilities": probabilities}, "likelihood": likelihood}


# Answers


def posterior(model: TruncatedVAE, params: Params, x: Any, rounds: int) -> Truncated:
    """q(s) of an example that training may not have seen, after some rounds of the search."""
    score = lambda s: model.log_joint(params, x, s)

    def one_round(states: Array, key: Array) -> tuple[Array, None]:
        return evolved(key, states, score, model.search), None

    keys = jax.random.split(jax.random.key(0), rounds)
    states = lax.scan(one_round, jnp.asarray(model.first, jnp.float32), keys)[0]
    return Truncated(states, jax.vmap(score)(states))


def truncated_answers(model: TruncatedVAE, rounds: int) -> Model:
    """What can be asked of the model. Posteriors come from so many rounds of the search.

    Importance samples of log p(x) come from the truncated posterior and, for one draw in ten, from
    independent bits, so that every state is drawn. So the estimate is not a bound of K states only.
    """
    encode = lambda params, x: posterior(model, params, x, rounds)

    def terms(params: Params, key: Array, x: Any, num_samples: int) -> Terms:
        return bound_of(model, params, x, encode(params, x).states)[1][0]

    def log_weights(params: Params, key: Array, x: Any, num_samples: int) -> Array:
        q = encode(params, x)
        p = 0.9 * q.mean + 0.1 * params["prior"]["probabilities"]
        p = jnp.clip(p, CLIP, 1 - CLIP)
        spread = Bernoulli(jnp.log(p) - jnp.log1p(-p))
        proposal = Mixture(jnp.log(jnp.array([0.9, 0.1])), (q, spread))
        return bounds.log_weights(
            key, proposal, lambda s: model.log_joint(params, x, s), num_samples
        )

    def atoms(params: Params) -> Array:
        most_used = jnp.argsort(-params["prior"]["probabilities"], stable=True)
        return jnp.eye(model.latent)[most_used]

    return Model(
        model.init,
        encode,
        lambda params, s, condition=None: model.decode(params, s),
        lambda params, key, condition=None: model.prior(params).sample(key),
        lambda params, condition=None: model.prior(params),
        terms,
        log_weights,
        lambda params, x, s: model.log_joint(params, x, s),
        atoms=atoms,
    )


def reconstructed(model: TruncatedVAE, params: Params, x: Any, states: Array) -> Array:
    """E_q f(s), the mean of p(x|s) over the truncated posterior at states [S, H]."""
    q = Truncated(states, jax.vmap(lambda s: model.log_joint(params, x, s))(states))
    means = jax.vmap(lambda s: model.decode(params, s).mean)(states)
    return jnp.tensordot(jax.nn.softmax(q.logits), means, 1, precision="float32")


def steps_of(model: TruncatedVAE) -> Steps:
    """The steps of expectation maximization for ``training.expectation_maximization``."""

    def expect(params: Params, key: Array, x: Any, entry: Array) -> Array:
        score = lambda s: model.log_joint(params, x, s)
        return packed(evolved(key, unpacked(entry, model.latent), score, model.search))

    def loss(params: Params, x: Any, entry: Array) -> tuple[Array, tuple[Terms, Any]]:
        return bound_of(model, params, x, unpacked(entry, model.latent))

    return Steps(model.init, lambda key: packed(jnp.asarray(model.first)), expect, loss, solved)
