"""Training of mixtures whose components are opened and dropped by Gibbs moves.

Every example keeps its component from one visit to the next. A step moves the examples of a batch,
one after the other, and then each component descends its loss on its members. All devices draw the
same moves, from the evidence of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae import partitions
from jaxvae.contracts import Array, Params, Terms
from jaxvae.datasets import preprocessed
from jaxvae.training.algorithms import Algorithm, Batch
from jaxvae.training.memories import keyed, rows_in_set
from jaxvae.training.optimizers import descend

USED = 0.01  # share of the examples from which on a component counts as used


class Growing(NamedTuple):
    """The state of ``growing_mixture``, from which a run can go on."""

    step: Array
    key: Array
    params: dict[str, Params]
    average: None
    opt_state: dict[str, Any]
    skipped: Array
    memory: Array  # the component of each example, [N] int32; -1 before its first visit


class Components(NamedTuple):
    """The functions of a mixture's components, of one example."""

    init: Callable[[Array, Any], Params]  # (key, x) -> the parameters of one component
    # (stacked params, key, x) -> log p_k(x) of each, the base last: [K + 1]
    evidence: Callable[[Params, Array, Any], Array]
    # (stacked params, key, x) -> loss of each [K + 1], and their terms
    losses: Callable[[Params, Array, Any], tuple[Array, Terms]]
    nearest: Callable[[Any], Array]  # x -> the component that it starts in


class Moves(NamedTuple):
    """How examples move between components."""

    size: int  # K, components at most
    concentration: float
    settling: int  # steps before the first Gibbs move, in which examples stay where they start


def growing_mixture(
    components: Components,
    optimizer: optax.GradientTransformation,
    moves: Moves,
    examples: int,
) -> Algorithm:
    """A Dirichlet-process mixture: Gibbs moves of a batch, and a step of every component.

    The base, which is the last of the stacked parameters, learns from all examples. A component
    that is opened starts as a copy of the base with a fresh optimizer. The reported loss is the
    loss of the components on their members.

    Args:
      components: the functions of the components.
      optimizer: the optimizer of each component.
      moves: how examples move.
      examples: how many there are in the data set.
    """

    def init(key: Array, x: Any) -> Growing:
        key_init, key_steps = jax.random.split(key)
        x = preprocessed(key_init, x)
        keys = jax.random.split(key_init, moves.size + 1)
        experts = jax.vmap(lambda key: components.init(key, x))(keys)
        return Growing(
            jnp.int32(0),
            key_steps,
            {"model": {"experts": experts, "counts": jnp.zeros(moves.size)}},
            None,
            {"model": jax.vmap(optimizer.init)(experts)},
            jnp.int32(0),
            jnp.full(examples, partitions.NONE, jnp.int32),
        )

    def step(state: Growing, batch: Batch, axis_name: str | None = None) -> tuple[Growing, Terms]:
        keys, x = keyed(state, batch)
        pairs = jax.vmap(jax.random.split)(keys)
        slots = _moved(components, moves, state, batch, pairs[:, 0], x, axis_name)
        counts = partitions.counts_of(slots, moves.size)
        experts, opt_state = _renewed(optimizer, state, _opened(moves, state, counts))
        members = jax.nn.one_hot(slots[rows_in_set(batch)], moves.size)  # [B, K]
        loss = _batch_loss(components, members, pairs[:, 1], x, batch.weight, axis_name)
        (_, terms), grads = jax.value_and_grad(loss, has_aux=True)(experts)
        grads = grads if axis_name is None else lax.pmean(grads, axis_name)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(terms["loss"]) & jnp.isfinite(norm)
        experts, opt_state = jax.vmap(lambda g, s, p: descend(optimizer, g, s, p, finite))(
            grads, opt_state, experts
        )
        skipped = jnp.where(finite, 0, state.skipped + 1)
        new = state._replace(
            step=state.step + 1,
            params={"model": {"experts": experts, "counts": counts.astype(jnp.float32)}},
            opt_state={"model": opt_state},
            skipped=skipped,
            memory=slots,
        )
        used = (counts > USED * counts.sum()).sum().astype(jnp.float32)
        return new, terms | {"experts": used, "gradient_norm": norm, "skipped": skipped}

    return Algorithm(init, step)


def _opened(moves: Moves, state: Growing, counts: Array) -> Array:
    """The components that had no members before the last moves, [K] bool."""
    before = partitions.counts_of(state.memory, moves.size)
    return (counts > 0) & (before == 0) & (state.step >= moves.settling)


def _moved(
    components: Components,
    moves: Moves,
    state: Growing,
    batch: Batch,
    keys: Array,
    x: Any,
    axis_name: str | None,
) -> Array:
    """The components of all examples after the examples of the batch have moved, [N]."""
    experts = state.params["model"]["experts"]
    evidence = jax.vmap(components.evidence, (None, 0, 0))(experts, keys, x)  # [B, K + 1]
    start = jax.vmap(components.nearest)(x).astype(jnp.int32)
    parts = evidence, start, rows_in_set(batch), batch.weight > 0
    if axis_name is not None:
        parts = jax.tree.map(lambda a: lax.all_gather(a, axis_name, tiled=True), parts)
    evidence, start, rows, mask = parts
    old = state.memory[rows]
    first = jnp.where(old == partitions.NONE, start, old)
    there = jnp.where(mask, rows, len(state.memory))
    settled = state.memory.at[there].set(first, mode="drop")
    empty = partitions.counts_of(settled, moves.size) == 0
    table = jnp.where(empty, evidence[:, -1:], evidence[:, :-1])  # a copy of the base would say
    swept = lambda: partitions.sweep(
        jax.random.fold_in(state.key, state.step),
        settled,
        rows,
        mask,
        lambda place, _: table[place],
        moves.size,
        moves.concentration,
    )
    return lax.cond(state.step < moves.settling, lambda: settled, swept)


def _renewed(
    optimizer: optax.GradientTransformation, state: Growing, opened: Array
) -> tuple[Params, Any]:
    """The components with those that were opened as copies of the base, with a fresh optimizer."""
    experts, opt_state = state.params["model"]["experts"], state.opt_state["model"]
    opened = jnp.append(opened, False)
    chosen = lambda old, new: jnp.where(opened.reshape(-1, *[1] * (old.ndim - 1)), new, old)
    copies = jax.tree.map(lambda old: chosen(old, old[-1:]), experts)
    return copies, jax.tree.map(chosen, opt_state, jax.vmap(optimizer.init)(copies))


def _batch_loss(
    components: Components,
    members: Array,
    keys: Array,
    x: Any,
    weight: Array,
    axis_name: str | None,
) -> Callable:
    """The loss of all components, each on its members and the base on all examples."""

    def summed(values: Array) -> Array:
        total = jnp.sum(jnp.where(weight > 0, values, 0.0) * weight)
        return total if axis_name is None else lax.psum(total, axis_name)

    def loss(experts: Params) -> tuple[Array, Terms]:
        losses, terms = jax.vmap(components.losses, (None, 0, 0))(experts, keys, x)  # [B, K + 1]
        of_members = lambda values: summed((values[:, :-1] * members).sum(1))
        terms = jax.tree.map(of_members, terms | {"loss": losses})
        return terms["loss"] + summed(losses[:, -1]), terms

    return loss
