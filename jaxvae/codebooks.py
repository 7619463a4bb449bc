"""Codebooks that follow their codes: moving averages over the global batch.

van den Oord et al. 2017, arXiv:1711.00937, app. A.1. The averages are parameters. The gradient of
``statistics`` in them holds the statistics of the batch, and the optimizer ``averaging`` averages
these. So the statistics are summed over all devices, and checkpoints, resumption and skipped
updates are as for any other parameters.

The counts here are frequencies: over all codes they sum to one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae.contracts import Array, Params
from jaxvae.ranges import Range

SMOOTHING = 1e-8  # is added to frequencies, so that a code without any is at the origin
DRAWN = 64  # vectors of a batch that dead codes can begin at
PERTURBATION = 0.01  # of a split code, relative to the root mean square of its vector


class Revival(NamedTuple):
    """What becomes of dead codes."""

    # (key, count [K], sum [K, D], drawn [M, D]) -> (count, sum); None leaves them dead
    revive: Callable[[Array, Array, Array, Array], tuple[Array, Array]] | None = None
    num_drawn: int = 0  # M, vectors of the batch that it needs


def nearest_codes(z: Array, book: Array) -> Array:
    """argmin_k |z - e_k|^2 for each vector of z [*P, D] and a codebook [K, D]: int32 [*P].

    The first of several nearest codes is taken, so all devices take the same one.
    """
    return jnp.argmin(_distances(z, book), -1).astype(jnp.int32)


def _distances(z: Array, book: Array) -> Array:
    """|z - e_k|^2 - |z|^2 in float32: [*P, K]."""
    products = jnp.matmul(z.astype(jnp.float32), book.T, precision="float32")
    return jnp.sum(book**2, -1) - 2 * products


def vectors_of(params: Params) -> Array:
    """e_k = S_k / ((N_k + eps) / (n + K eps) n), n = sum_k N_k: [K, D]."""
    count = params["count"]
    total = count.sum()
    smoothed = (count + SMOOTHING) / (total + len(count) * SMOOTHING) * total
    return params["sum"] / smoothed[:, None]


def started(book: Array, revival: Revival) -> Params:
    """The averages that a codebook [K, D] starts from, N_k = 1/K and S_k = e_k / K.

    If N_k were zero, the first average would move every code that is not used very far away, and it
    would never be used.
    """
    size, latent = book.shape
    drawn = {"drawn": jnp.zeros((revival.num_drawn, latent))} if revival.num_drawn else {}
    return {"count": jnp.full(size, 1 / size), "sum": book / size} | drawn


def statistics(
    params: Params, keys: Array, z: Array, weight: Array, axis_name: str | None
) -> Array:
    """Zero, whose gradient is -(n_k, s_k): frequencies and sums of the batch's vectors by code.

    n_k = sum_i w_i 1[c_i = k] and s_k = sum_i w_i 1[c_i = k] z_i. The sums are over all positions
    of all examples on all devices.

    Args:
      params: the averages of the codebook.
      keys: one for each example, [B].
      z: vectors of this device's examples, [B, *P, D].
      weight: the weights of the examples, [B], which sum to one over all devices.
      axis_name: the axis of the devices, or None.
    """
    positions = math.prod(z.shape[1:-1])
    flat = lax.stop_gradient(z).reshape(-1, z.shape[-1])
    weights = jnp.repeat(weight / positions, positions)
    book = lax.stop_gradient(vectors_of(params))
    codes = nearest_codes(flat, book)
    chosen = jax.nn.one_hot(codes, len(book)) * weights[:, None]  # [N, K]
    sums = jnp.matmul(chosen.T, flat, precision="float32")
    value = -jnp.sum(params["count"] * chosen.sum(0)) - jnp.sum(params["sum"] * sums)
    value = value if axis_name is None else lax.psum(value, axis_name)
    if "drawn" in params:
        errors = jnp.sum((flat - book[codes]) ** 2, -1)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (positions,)))(keys).ravel()
        scores = jnp.where(weights > 0, jnp.log(errors) + noise, -jnp.inf)
        drawn = draw(scores, flat, len(params["drawn"]), axis_name)
        value = value - jnp.sum(params["drawn"] * drawn)
    return value - lax.stop_gradient(value)


def draw(scores: Array, vectors: Array, count: int, axis_name: str | None) -> Array:
    """The ``count`` vectors of the global batch with the highest scores, [count, D].

    With scores log w + Gumbel noise this draws without replacement, in proportion to w. If there
    are fewer vectors than that, they are repeated. ``scores`` are [N] and ``vectors`` [N, D].
    """
    best, rows = lax.top_k(scores, min(count, len(scores)))
    candidates = vectors[rows]
    if axis_name is not None:
        gather = lambda a: lax.all_gather(a, axis_name, tiled=True)
        best, candidates = gather(best), gather(candidates)
    order = jnp.argsort(-best)
    known = jnp.maximum(jnp.sum(best > -jnp.inf), 1)
    return candidates[order[jnp.arange(count) % known]]


def averaging(decay: float, revival: Revival) -> optax.GradientTransformation:
    """N <- g N + (1 - g) n and S <- g S + (1 - g) s, as an optimizer of ``statistics``.

    Its parameters are a pytree of codebooks. Its state counts updates, and the key of a revival
    depends on nothing else. So all devices revive alike.
    """

    def init(params: Params) -> Array:
        return jnp.int32(0)

    def update(grads: Params, state: Array, params: Params | None = None) -> tuple[Params, Array]:
        key = jax.random.fold_in(jax.random.key(0), state)
        one = lambda grads, params: _averaged(decay, revival, key, grads, params)
        return jax.tree.map(one, grads, params, is_leaf=_is_codebook), state + 1

    return optax.GradientTransformation(init, update)


def _is_codebook(tree: Params) -> bool:
    return isinstance(tree, dict) and "count" in tree


def _averaged(decay: float, revival: Revival, key: Array, grads: Params, params: Params) -> Params:
    """What is added to the averages of a codebook."""
    count, total = (decay * params[n] - (1 - decay) * grads[n] for n in ("count", "sum"))
    if revival.revive is not None:
        drawn = -grads["drawn"] if revival.num_drawn else jnp.zeros((0,))
        count, total = revival.revive(key, count, total, drawn)
    updates = {"count": count - params["count"], "sum": total - params["sum"]}
    return updates | ({"drawn": jnp.zeros_like(params["drawn"])} if revival.num_drawn else {})


# Dead codes

Below = Annotated[float, Range(0, 0.5, above=True, below=True)]


def no_revival() -> Revival:
    """Dead codes stay dead."""
    return Revival()


def begin_anew(revive_below: Below = 0.1) -> Revival:
    """Dead codes begin anew at vectors of the batch, as in Dhariwal et al. 2020.

    arXiv:2005.00341, sec. 3.1. The vectors are drawn in proportion to their squared distance to
    their code, as the means of k-means++ are (Arthur & Vassilvitskii 2007), so that many equal
    vectors are not drawn together.

    Args:
      revive_below: the frequency, in units of 1/K, below which a code is dead.
    """

    def revive(key: Array, count: Array, total: Array, drawn: Array) -> tuple[Array, Array]:
        size = len(count)
        dead = count < revive_below / size
        place = jnp.cumsum(dead) - 1
        dead &= place < len(drawn)
        new = drawn[jnp.minimum(place, len(drawn) - 1)] / size
        return jnp.where(dead, 1 / size, count), jnp.where(dead[:, None], new, total)

    return Revival(revive, DRAWN)


def split_most_used(revive_below: Below = 0.1) -> Revival:
    """A dead code and the most used one share the latter's place (Kolesnikov et al. 2022).

    arXiv:2205.10337, in the published code. Each gets half the averages, and their vectors are
    perturbed in opposite directions, so the sum of the averages stays.

    Args:
      revive_below: the frequency, in units of 1/K, below which a code is dead.
    """

    def revive(key: Array, count: Array, total: Array, drawn: Array) -> tuple[Array, Array]:
        noise = PERTURBATION * jax.random.normal(key, total.shape)

        def has_dead(averages: tuple[Array, Array]) -> Array:
            return averages[0].min() < revive_below / len(count)

        def split(averages: tuple[Array, Array]) -> tuple[Array, Array]:
            count, total = averages
            pair = jnp.array([count.argmin(), count.argmax()])
            half = total[pair[1]] / 2
            moved = jnp.sqrt(jnp.mean(half**2)) * noise[pair[0]]
            both = jnp.stack([half + moved, half - moved])
            return count.at[pair].set(count[pair[1]] / 2), total.at[pair].set(both)

        return lax.while_loop(has_dead, split, (count, total))

    return Revival(revive)


REVIVALS: dict[str, Callable[..., Revival]] = {
    "begin_anew": begin_anew,
    "split": split_most_used,
    "none": no_revival,
}
