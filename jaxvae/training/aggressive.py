"""Optimizers that let one part of a model wait for another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxvae.contracts import Array


class Turns(NamedTuple):
    """The state of ``aggressive``."""

    taken: Array  # steps
    inner: Array  # steps of the encoder since the decoder's last one
    total: Array  # sum of the losses of the present window
    before: Array  # mean loss of the window before
    waits: Array  # whether the next step is the encoder's alone
    encoder: Any  # the optimizers' states
    decoder: Any


def aggressive(
    optimizer: optax.GradientTransformation,
    encoder: Sequence[str],
    aggressive_steps: int,
    inner_window: int,
    inner_steps: int,
) -> optax.GradientTransformationExtraArgs:
    """Aggressive inference: the encoder takes steps alone, and then the decoder takes one.

    He et al. 2019, arXiv:1901.05534, alg. 1. The encoder's turn ends if the mean loss of a window
    of batches is above the mean of the window before it. Each part has its optimizer,
    whose schedule counts the steps of the part. With the decoder fixed, the encoder's steps are
    plain variational inference.

    The authors end it when the mutual information of a validation set falls; here its number of
    steps is given.

    Args:
      optimizer: the optimizer of each part.
      encoder: names of the encoder's parameters; all others are the decoder's.
      aggressive_steps: steps after which both parts learn in every step.
      inner_window: batches of a window.
      inner_steps: the most steps of the encoder in a row.
    """
    parts_of = lambda tree: (
        {name: tree[name] for name in tree if name in encoder},
        {name: tree[name] for name in tree if name not in encoder},
    )
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Turns:
        inference, generation = parts_of(params)
        zero, infinite = jnp.zeros(()), jnp.full((), jnp.inf)
        return Turns(
            *(jnp.int32(0), jnp.int32(0), zero, infinite, jnp.bool_(True)),
            *(optimizer.init(inference), optimizer.init(generation)),
        )

    def update(
        grads: Any, state: Turns, params: Any, *, value: Array, **more: Any
    ) -> tuple[Any, Turns]:
        alone = state.taken < aggressive_steps
        of_grads, of_params = parts_of(grads), parts_of(params)
        updates, inference = _if(
            ~alone | state.waits, optimizer, of_grads[0], state.encoder, of_params[0]
        )
        more_updates, generation = _if(
            ~alone | ~state.waits, optimizer, of_grads[1], state.decoder, of_params[1]
        )
        turned = _turned(state, value, inner_window, inner_steps)
        return updates | more_updates, turned._replace(encoder=inference, decoder=generation)

    return optax.GradientTransformationExtraArgs(init, update)


def _turned(state: Turns, value: Array, window: int, most: int) -> Turns:
    """Whose turn comes next, after a step with a loss."""
    inner = jnp.where(state.waits, state.inner + 1, 0)
    total = jnp.where(state.waits, state.total + value, 0.0)
    ended = state.waits & (inner % window == 0)
    mean = total / window
    gone = (ended & (mean > state.before)) | (inner >= most)
    before = jnp.where(ended, mean, state.before)
    return state._replace(
        taken=state.taken + 1,
        inner=jnp.where(gone, 0, inner),
        total=jnp.where(ended | gone, 0.0, total),
        before=jnp.where(gone, jnp.inf, before),
        waits=~(state.waits & gone),
    )


def _if(learns: Array, optimizer: Any, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """Updates and state of a part that learns now; otherwise no update, and the state as it was."""
    updates, after = optimizer.update(grads, state, params)
    kept = jax.tree.map(lambda new, old: jnp.where(learns, new, old), after, state)
    return jax.tree.map(lambda u: jnp.where(learns, u, 0), updates), kept
