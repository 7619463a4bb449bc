"""Losses and gradients of the global batch, computed at once or in parts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxvae.contracts import Array, BatchLoss, Terms

# (params, args, step, axis_name) -> ((loss, terms), gradient), the same on every device. ``args``
# are (keys [B], x [B, ...], weight [B]).
Gradient = Callable[[Any, tuple, Array, str | None], tuple[tuple[Array, Terms], Any]]


def gradient_of(loss: BatchLoss, accumulate: int = 1, virtual_shards: int = 0) -> Gradient:
    """The loss and its gradient over the global batch, in the parts that a player asks for."""
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if virtual_shards:
        return functools.partial(_in_fixed_order, value_and_grad, virtual_shards)
    if accumulate > 1:
        return functools.partial(_in_parts, value_and_grad, accumulate)
    return functools.partial(_at_once, value_and_grad)


def loss_of_params(
    gradient: Gradient, args: tuple, step: Array, axis_name: str | None, before: Any
) -> Callable:
    """The loss of one batch and its keys as a function ``params -> loss``, for line searches.

    JAX would multiply the derivative of a loss that is summed over devices by their number.
    Therefore the derivative comes from ``gradient``.

    Args:
      gradient: the loss and its gradient over the global batch.
      args: (keys [B], x [B, ...], weight [B]).
      step: the number of the step.
      axis_name: the axis of the devices, or None.
      before: arrays that the loss waits for if there are several devices.
    """

    def evaluate(params: Any) -> Any:
        keys, x, weight = args
        ordered = args if axis_name is None else (keys, x, _after(weight, before))
        return gradient(params, ordered, step, axis_name)

    @jax.custom_jvp
    def loss(params: Any) -> Array:
        return evaluate(params)[0][0]

    @loss.defjvp
    def along(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        (value, _), grads = evaluate(*primals)
        products = jax.tree.map(lambda g, t: jnp.sum(g * t), grads, tangents[0])
        return value, sum(jax.tree.leaves(products), jnp.zeros(())).astype(value.dtype)

    return loss


def _after(weight: Array, others: Any) -> Array:
    """The numbers of ``weight``, which depend on the arrays ``others``.

    On a CPU only the data order the collectives. Devices that begin with different collectives
    would wait for each other for ever. XLA does not fold a product of a float with zero.
    """
    firsts = [jnp.ravel(leaf)[0] for leaf in jax.tree.leaves(others) if leaf.size]
    zeros = [0.0 * jnp.nan_to_num(first.astype(weight.dtype)) for first in firsts]
    return weight + sum(zeros, jnp.zeros((), weight.dtype))


def _at_once(
    value_and_grad: Callable, params: Any, args: tuple, step: Array, axis_name: str | None
) -> Any:
    value, grads = value_and_grad(params, *args, step, axis_name)
    return value, grads if axis_name is None else lax.pmean(grads, axis_name)


def _in_parts(
    value_and_grad: Callable,
    parts: int,
    params: Any,
    args: tuple,
    step: Array,
    axis_name: str | None,
) -> Any:
    """Adds up one part after the other, so that memory holds one part.

    A part takes examples from all over the batch, so under ``fsdp`` all devices share it.
    """
    cut = _cut(args, parts, "accumulate", spread=True)
    # The devices' sums are added up after the loop. Inside it collectives would have no order.
    one_part = lambda args: value_and_grad(params, *args, step, None)
    first = jax.eval_shape(one_part, jax.tree.map(lambda a: a[0], cut))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), first)
    add = lambda total, args: (jax.tree.map(jnp.add, total, one_part(args)), None)
    total, _ = lax.scan(add, zero, cut)
    return total if axis_name is None else lax.psum(total, axis_name)


def _in_fixed_order(
    value_and_grad: Callable,
    shards: int,
    params: Any,
    args: tuple,
    step: Array,
    axis_name: str | None,
) -> Any:
    """Virtual shards, gathered from all devices and added up by their number.

    It is slow and holds a gradient for each shard, but the sum is the same bit for bit on any
    number of devices.
    """
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    if shards % devices:
        raise ValueError(f"virtual_shards={shards} do not divide over {devices} devices")
    cut = _cut(args, shards // devices, "virtual_shards")
    each = lax.map(lambda args: value_and_grad(params, *args, step, None), cut)
    if axis_name is not None:
        each = jax.tree.map(lambda a: lax.all_gather(a, axis_name, tiled=True), each)
    zero = jax.tree.map(lambda a: jnp.zeros_like(a[0]), each)
    add = lambda total, shard: (jax.tree.map(jnp.add, total, shard), None)
    return lax.scan(add, zero, each)[0]


def _cut(args: tuple, parts: int, setting: str, spread: bool = False) -> tuple:
    """[B, ...] -> [parts, B / parts, ...], of neighbours or of every parts-th example."""
    size = args[-1].shape[0]
    if size % parts:
        raise ValueError(
            f"a batch of {size} examples on a device does not divide into {parts} parts ({setting})"
        )
    if spread:
        each = lambda a: a.reshape(size // parts, parts, *a.shape[1:]).swapaxes(0, 1)
    else:
        each = lambda a: a.reshape(parts, size // parts, *a.shape[1:])
    return jax.tree.map(each, args)
