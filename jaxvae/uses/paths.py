"""Paths of densities from a base to a target, and chains that walk along them.

Neal 2001, arXiv:physics/9803008. Between a base density b(z) and p(x, z) lie
f_t(z) = b(z)^(1 - beta_t) p(x, z)^beta_t. A chain starts at z_0 ~ b, takes the weight

    log w = sum_t log f_t(z_(t-1)) - log f_(t-1)(z_(t-1)),

and moves from z_(t-1) to z_t by Hamiltonian Monte Carlo that leaves f_t invariant. Then
E w = p(x). All values are in nats.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxvae.contracts import Array

RADIUS = 4.0  # of the sigmoid schedule (Wu et al. 2017)
ACCEPTANCE = 0.65  # that step sizes are tuned to (Wu et al. 2017)
PILOT_CHAINS = 8  # that step sizes are tuned on
PILOT_WARMUP = 25  # transitions of the pilot at the base, before its temperatures
PILOT_RATE = 0.5  # how fast the logarithm of a step size follows the acceptance
STEP_SIZES = 1e-4, 2.0  # the smallest and the largest
FIRST_STEP_SIZE = 0.5
JITTER = 0.2  # a transition's step is the tuned one times 1 +- this, against resonance


def sigmoid_schedule(num_steps: int, radius: float = RADIUS) -> Array:
    """Inverse temperatures beta_0 = 0, ..., beta_T = 1, [T + 1], dense at both ends.

    beta_t = (s(r_t) - s(-r)) / (s(r) - s(-r)) with the logistic s and r_t from -r to r (Grosse et
    al. 2015, sec. 6.1). Raises ValueError unless there is a step.
    """
    if num_steps < 1:
        raise ValueError(f"annealing needs at least 1 temperature; num_steps was {num_steps}")
    raw = 1 / (1 + np.exp(-np.linspace(-radius, radius, num_steps + 1)))
    return jnp.asarray((raw - raw[0]) / (raw[-1] - raw[0]), jnp.float32)


class Path(NamedTuple):
    """Densities between a base and the target, and how chains move at each of them."""

    base: Callable[[Array], Array]  # [D] -> log b(z)
    target: Callable[[Array], Array]  # [D] -> log p(x, z)
    betas: Array  # [T + 1]
    step_sizes: Array  # [T + 1] of the transition at each temperature
    leapfrogs: int  # steps of each transition


class Place(NamedTuple):
    """A chain's z with both log-densities and their gradients."""

    z: Array  # [D]
    values: Array  # [2], of the base and of the target
    slopes: Array  # [2, D]


def placed(path: Path, z: Array) -> Place:
    """A chain at z."""
    pair = (jax.value_and_grad(density)(z) for density in (path.base, path.target))
    values, slopes = zip(*pair, strict=True)
    return Place(z, jnp.stack(values), jnp.stack(slopes))


def _transition(
    path: Path, place: Place, key: Array, beta: Array, step_size: Array
) -> tuple[Place, Array]:
    """Hamiltonian Monte Carlo at one temperature: where the chain is then, and the acceptance.

    Neal 2011, arXiv:1206.1901, sec. 5.3.2. A proposal whose energy is not finite is refused.
    """
    key_momentum, key_step, key_accept = jax.random.split(key, 3)
    mixed = lambda pair: (1 - beta) * pair[0] + beta * pair[1]
    jittered = step_size * jax.random.uniform(key_step, (), minval=1 - JITTER, maxval=1 + JITTER)
    start = jax.random.normal(key_momentum, place.z.shape)

    def leapfrog(carry: tuple[Place, Array], _: None) -> tuple[tuple[Place, Array], None]:
        place, momentum = carry
        momentum = momentum + 0.5 * jittered * mixed(place.slopes)
        place = placed(path, place.z + jittered * momentum)
        return (place, momentum + 0.5 * jittered * mixed(place.slopes)), None

    (end, momentum), _ = lax.scan(leapfrog, (place, start), None, path.leapfrogs)
    gain = mixed(end.values - place.values) + 0.5 * (start**2 - momentum**2).sum()
    gain = jnp.where(jnp.isfinite(gain), gain, -jnp.inf)
    accepted = jnp.log(jax.random.uniform(key_accept)) < gain
    kept = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), end, place)
    return kept, jnp.exp(jnp.minimum(gain, 0.0))


def moved(path: Path, places: Place, key: Array, beta: Any, step_size: Any) -> Any:
    """A transition of every chain: where they are then, and the acceptance of each.

    Args:
      path: the densities.
      places: the chains, stacked.
      key: the key of all transitions.
      beta: the inverse temperature.
      step_size: the tuned step.
    """
    keys = jax.random.split(key, len(places.z))
    one = lambda place, key: _transition(path, place, key, beta, step_size)
    return jax.vmap(one)(places, keys)


def walked(path: Path, key: Array, z: Array) -> tuple[Array, Array]:
    """log w of chains from z [K, D] along a path, [K], and the mean acceptance.

    The weight comes first and then the move, so the last transition is left out. On a path from 1
    down to 0 the result is -log w' of the reverse chain. The sum of the increments is compensated
    (Kahan 1965), because float32 would lose the small ones of many temperatures.
    """

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, Array]:
        places, log_w, lost = carry
        key, before, beta, step_size = inputs
        rise = (beta - before) * (places.values[:, 1] - places.values[:, 0]) - lost
        total = log_w + rise
        places, acceptance = moved(path, places, key, beta, step_size)
        return (places, total, (total - log_w) - rise), acceptance.mean()

    places, betas = jax.vmap(functools.partial(placed, path))(z), path.betas
    keys = jax.random.split(key, len(betas))
    moves = keys[:-2], betas[:-2], betas[1:-1], path.step_sizes[1:-1]
    zeros = jnp.zeros(len(z))
    (places, log_w, lost), acceptance = lax.scan(step, (places, zeros, zeros), moves)
    last = (betas[-1] - betas[-2]) * (places.values[:, 1] - places.values[:, 0])
    return log_w + (last - lost), acceptance.mean() if len(betas) > 2 else jnp.float32(jnp.nan)


def tuned(path: Path, key: Array, z: Array) -> Path:
    """The path with step sizes of a pilot run from z [K, D], which are then frozen.

    The logarithm of the step follows how far the mean acceptance is from 0.65. Step sizes that
    change within the chains that are weighted would make a transition depend on the past, and
    E w = p(x) would no longer be certain. The draws of the pilot are used for nothing else.
    """
    betas = jnp.concatenate([jnp.zeros(PILOT_WARMUP), path.betas])
    low, high = (math.log(size) for size in STEP_SIZES)

    def step(carry: tuple[Place, Array], inputs: tuple) -> tuple[tuple[Place, Array], Array]:
        places, log_size = carry
        key, beta = inputs
        places, acceptance = moved(path, places, key, beta, jnp.exp(log_size))
        changed = log_size + PILOT_RATE * (acceptance.mean() - ACCEPTANCE)
        changed = jnp.clip(changed, low, high)
        return (places, changed), changed

    places = jax.vmap(functools.partial(placed, path))(z)
    start = jnp.float32(math.log(FIRST_STEP_SIZE))
    keys = jax.random.split(key, len(betas))
    _, log_sizes = lax.scan(step, (places, start), (keys, betas))
    return path._replace(step_sizes=jnp.exp(log_sizes[PILOT_WARMUP:]))


def both_ways(path: Path, keys: Array, starts: Array) -> tuple[Array, Array]:
    """``walked`` from the base to the target and back, [2, K], from starts [2, K, D].

    The transition at a temperature lies between the weights of its two neighbours. So a chain that
    goes back makes the same transitions in the other order.
    """
    pairs = jax.tree.map(lambda a: jnp.stack([a, a[::-1]]), (path.betas, path.step_sizes))

    def one(betas: Array, step_sizes: Array, key: Array, z: Array) -> tuple[Array, Array]:
        return walked(path._replace(betas=betas, step_sizes=step_sizes), key, z)

    betas, step_sizes = pairs
    return jax.vmap(one)(betas, step_sizes, keys, starts)
