"""Markov chains on the posterior of one example, by BlackJAX: HMC and NUTS.

They start around the encoder's posterior, but wider than it, because chains that start at one point
agree also if the posterior has other modes. R-hat compares the chains, and the effective sample
size says how many independent draws they are worth (Vehtari et al. 2021, arXiv:1903.08008).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxvae.contracts import Array, Params
from jaxvae.datasets import examples_of, preprocessed
from jaxvae.evaluation.columns import Batched, batched, over_split
from jaxvae.models import Model, answers
from jaxvae.uses import targets

FROM_PRIOR = 4  # one chain in so many starts at a draw of the prior
SHORTEST = 0.5  # of a step of HMC, as a share of the tuned one
AGREE = 1.01  # the largest R-hat of chains that agree (Vehtari et al. 2021)
ENCODER_DRAWS = 1000  # of which the moments of the encoder's posterior are taken


class Draws(NamedTuple):
    """Draws of p(z|x) after the warm-up, and how far to trust them."""

    positions: Any  # z, a pytree of [chains, samples, ...]
    rhat: Any  # a pytree of the shape of z; at most 1.01 says that the chains agree
    effective_samples: Any  # the same, of the bulk; at most chains times samples
    acceptance: Array  # mean
    divergences: Array  # transitions whose energy error was above 1000


class Sampler(NamedTuple):
    """An algorithm of BlackJAX that is tuned by windows."""

    algorithm: Any
    settings: Mapping[str, Any] = MappingProxyType({})
    shortest: float = 1.0  # step of a transition, as a share of the tuned one: uniform up to 1


def nuts(
    model: Any,
    params: Params,
    key: Array,
    x: Any,
    chains: int = 4,
    num_samples: int = 500,
    warmup: int = 300,
    spread: float = 2.0,
) -> Draws:
    """Draws of p(z|x) of one example by the No-U-Turn sampler.

    Hoffman & Gelman 2014, arXiv:1111.4246. Under ``vmap`` every chain takes as long as the one with
    the deepest tree; ``hmc`` has transitions of one length.

    >>> draws = nuts(vae, params, key, x)  # doctest: +SKIP
    >>> draws.positions.mean((0, 1)), draws.rhat.max()  # doctest: +SKIP

    Args:
      model: a ``models.Model`` that answers ``encode``, ``draw`` and ``log_joint``, or what
        ``models.answers`` takes.
      params: its parameters.
      key: the key of all draws.
      x: one example, as the model takes it.
      chains: how many chains; some start at draws of the prior.
      num_samples: draws that are kept of each chain.
      warmup: transitions before, in which step size and masses are tuned.
      spread: how many times wider than the encoder's posterior the chains start.

    Raises ValueError without BlackJAX, or if the latents are not any real numbers.
    """
    sampler = Sampler(_blackjax().nuts)
    return _run(sampler, model, params, key, x, chains, num_samples, warmup, spread)


def hmc(
    model: Any,
    params: Params,
    key: Array,
    x: Any,
    chains: int = 4,
    num_samples: int = 500,
    warmup: int = 300,
    spread: float = 2.0,
    leapfrogs: int = 10,
) -> Draws:
    """Draws of p(z|x) of one example by Hamiltonian Monte Carlo.

    Neal 2011, arXiv:1206.1901. Each transition takes a share of the tuned step that is uniform from
    1/2 to 1 (sec. 3.2), because paths of one length can return to where they started.

    Args:
      model: a ``models.Model`` that answers ``encode``, ``draw`` and ``log_joint``, or what
        ``models.answers`` takes.
      params: its parameters.
      key: the key of all draws.
      x: one example, as the model takes it.
      chains: how many chains; some start at draws of the prior.
      num_samples: draws that are kept of each chain.
      warmup: transitions before, in which step size and masses are tuned.
      spread: how many times wider than the encoder's posterior the chains start.
      leapfrogs: steps of each transition.
    """
    sampler = Sampler(_blackjax().hmc, {"num_integration_steps": leapfrogs}, SHORTEST)
    return _run(sampler, model, params, key, x, chains, num_samples, warmup, spread)


def _blackjax() -> Any:
    try:
        import blackjax
    except ImportError as error:
        raise ValueError(
            "Markov chains need blackjax, and it is not installed: pip install 'jaxvae[inference]'"
        ) from error
    return blackjax


def _run(
    sampler: Sampler,
    model: Any,
    params: Params,
    key: Array,
    x: Any,
    chains: int,
    num_samples: int,
    warmup: int,
    spread: float,
) -> Draws:
    model = answers(model)
    goal = targets.target(model, params, x, "a Markov chain")
    key_start, key_chains = jax.random.split(key)
    starts = _starts(model, params, key_start, x, chains, spread)
    one = lambda key, z: _chain(sampler, goal.log_joint, key, z, num_samples, warmup)
    positions, acceptance, divergent = jax.vmap(one)(jax.random.split(key_chains, chains), starts)
    blackjax = _blackjax()
    rhat, effective = blackjax.rhat(positions), blackjax.ess_bulk(positions)
    return Draws(
        jax.vmap(jax.vmap(goal.unravel))(positions),
        goal.unravel(rhat),
        goal.unravel(effective),
        acceptance.mean(),
        divergent.sum(),
    )


def _starts(model: Model, params: Params, key: Array, x: Any, chains: int, spread: float) -> Array:
    """Where the chains start, [chains, D]: around the encoder's posterior, some at the prior."""
    key_q, key_mean, key_p = jax.random.split(key, 3)
    q: Any = model.encode(params, x)  # type: ignore[misc]
    centre = targets.raveled(q.sample(key_mean, (64,))).mean(0)
    around = centre + spread * (targets.raveled(q.sample(key_q, (chains,))) - centre)
    condition = model.parts(x)[1]
    draw: Callable = lambda key: model.draw(params, key, condition)  # type: ignore[misc]
    of_prior = targets.raveled(jax.vmap(draw)(jax.random.split(key_p, chains)))
    is_prior = jnp.arange(chains) % FROM_PRIOR == FROM_PRIOR - 1
    return jnp.where(is_prior[:, None], of_prior, around)


def _chain(
    sampler: Sampler,
    log_joint: Callable[[Array], Array],
    key: Array,
    start: Array,
    num_samples: int,
    warmup: int,
) -> tuple[Array, Array, Array]:
    """Positions [samples, D], acceptance and divergences of one chain."""
    key_tuning, key_draws = jax.random.split(key)
    tuning = _blackjax().window_adaptation(sampler.algorithm, log_joint, **sampler.settings)
    (state, tuned), _ = tuning.run(key_tuning, start, num_steps=warmup)
    kernel = sampler.algorithm.build_kernel()

    def step(state: Any, key: Array) -> tuple[Any, tuple]:
        key_share, key = jax.random.split(key)
        share = jax.random.uniform(key_share, (), minval=sampler.shortest, maxval=1.0)
        taken = tuned | {"step_size": share * tuned["step_size"]}
        state, info = kernel(key, state, log_joint, **taken)
        return state, (state.position, info.acceptance_rate, info.is_divergent)

    keys = jax.random.split(key_draws, num_samples)
    _, (positions, acceptance, divergent) = jax.lax.scan(step, state, keys)
    return positions, acceptance.mean(), divergent.sum()


class Agreement(NamedTuple):
    """How far the encoder's posteriors of a split are from draws of Markov chains."""

    shift: float  # mean distance of the means, in standard deviations of the chains
    spread: float  # geometric mean of: encoder's standard deviation / chains' standard deviation
    largest_rhat: float  # over all examples and latents
    agreeing: float  # share of examples whose chains agree, R-hat <= 1.01
    effective_samples: float  # mean over examples, of the latent with the fewest
    divergences: int
    num_samples: int  # of each example, over all chains
    num_examples: int


def agreement(
    model: Any,
    params: Params,
    key: Array,
    examples: Any,
    *,
    chains: int = 4,
    num_samples: int = 500,
    batch_size: int = 10,
    progress: Callable[[int], None] = lambda done: None,
) -> Agreement:
    """Compares mean and spread of the encoder's posterior with chains of NUTS on p(z|x).

    Args:
      model: as ``nuts`` takes it.
      params: its parameters.
      key: the key of all draws, and of the preprocessing.
      examples: a ``Split``, ``Examples``, a stream or a pytree of arrays [N, ...].
      chains: chains of each example.
      num_samples: draws of each chain after its warm-up.
      batch_size: examples at a time.
      progress: is called with the number of examples done.
    """
    batch = _agreement_columns(answers(model), chains, num_samples)
    shift, spread, rhat, effective, divergences = over_split(
        batch, params, key, examples_of(examples), batch_size, progress
    )
    return Agreement(
        float(shift.mean()),
        float(np.exp(spread.mean())),
        float(rhat.max()),
        float((rhat <= AGREE).mean()),
        float(effective.mean()),
        int(divergences.sum()),
        chains * num_samples,
        len(shift),
    )


@functools.lru_cache(maxsize=8)
def _agreement_columns(model: Model, chains: int, num_samples: int) -> Batched:
    """Shift, log-spread, R-hat, effective samples and divergences of each example."""

    def one(params: Params, key: Array, raw: Any) -> tuple[Array, ...]:
        key_x, key_q, key_z = jax.random.split(key, 3)
        x = preprocessed(key_x, raw)
        draws = nuts(model, params, key_z, x, chains, num_samples)
        z = jax.vmap(targets.raveled)(draws.positions).reshape(chains * num_samples, -1)
        q: Any = model.encode(params, x)  # type: ignore[misc]
        of_q = targets.raveled(q.sample(key_q, (ENCODER_DRAWS,)))
        scale = z.std(0)
        return (
            (jnp.abs(of_q.mean(0) - z.mean(0)) / scale).mean(),
            jnp.log(of_q.std(0) / scale).mean(),
            ravel_pytree(draws.rhat)[0].max(),
            ravel_pytree(draws.effective_samples)[0].min(),
            draws.divergences,
        )

    return batched(one)
