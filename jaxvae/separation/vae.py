"""A conditional VAE of spectra as source model (multichannel VAE, Kameoka et al. 2019)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvae.contracts import Array, Params
from jaxvae.models import Conditioned
from jaxvae.separation.priors import SourceModel


class Codes(NamedTuple):
    """What the model says of the sources: their codes, labels and gains."""

    z: np.ndarray  # [J, ...]
    logits: np.ndarray  # [J, C] of the labels, whose softmax the networks see
    gains: np.ndarray  # [J]
    shapes: np.ndarray  # the decoded variances [J, F, T], before the gain


def vae_sources(
    model: Any,
    params: Params,
    classes: int,
    frames: int,
    labels: Any = None,
    steps: int = 100,
    learning_rate: float = 0.01,
) -> SourceModel:
    """Variances g_j sigma^2(z_j, l_j) of a conditional VAE whose decoder gives p(|s|^2 | z, l).

    ``update`` takes steps of Adam on z and on the logits of the label, for the cost less log p(z).
    It keeps the best, and nothing if none is better. The gain is then g = mean P / sigma^2, which
    is its optimum (arXiv:1808.00892, eq. 27).

    Args:
      model: its answers, ``models.Model``, for examples of any number of frames.
      params: its parameters.
      classes: how many labels there are.
      frames: a multiple of them is what the networks take; more frames are filled with copies of
        the last one, which no cost counts.
      labels: the labels [J] of the sources; None finds them, from equal weights on.
      steps: of Adam in an update.
      learning_rate: of Adam.
    """
    fit = functools.partial(
        _fitted, model, params, None if labels is None else len(labels), steps, learning_rate
    )

    def init(powers: np.ndarray) -> Codes:
        sources = len(powers)
        logits = np.zeros((sources, classes), np.float32)
        if labels is not None:
            logits = np.where(np.eye(classes)[np.asarray(labels)] > 0, 0.0, -1e9).astype(np.float32)
        scaled = powers / powers.mean((1, 2), keepdims=True)
        z = _encoded(model, params, _spectra(scaled, frames), logits)
        return _codes(z, logits, _decoded(model, params, z, logits), powers)

    def update(state: Codes, powers: np.ndarray) -> Codes:
        seen = _spectra(powers / state.gains[:, None, None], frames)
        weight = np.arange(seen.shape[1]) < powers.shape[-1]
        z, logits = fit(seen, weight.astype(np.float32), state.z, state.logits)
        tried = _codes(z, logits, _decoded(model, params, z, logits), powers)
        before = _with_gains(state, powers)
        better = _costs(tried, powers) < _costs(before, powers)
        return Codes(*(_chosen(better, a, b) for a, b in zip(tried, before, strict=True)))

    return SourceModel(init, update, _variances, lambda s, powers: float(_costs(s, powers).sum()))


def _chosen(which: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Of each source the new array where ``which`` [J] says so, else the old one."""
    return np.where(which.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _variances(state: Codes) -> np.ndarray:
    return state.gains[:, None, None] * state.shapes


def _costs(state: Codes, powers: np.ndarray) -> np.ndarray:
    """The cost of each source, [J]: the cost of its powers less log p(z)."""
    variances = _variances(state)
    of_powers = (powers / variances + np.log(variances)).sum((1, 2))
    return of_powers + 0.5 * (state.z.astype(np.float64) ** 2).reshape(len(powers), -1).sum(1)


def _codes(z: Any, logits: Any, decoded: Array, powers: np.ndarray) -> Codes:
    shapes = np.swapaxes(np.asarray(decoded, np.float64), 1, 2)[:, :, : powers.shape[-1]]
    found = Codes(np.asarray(z), np.asarray(logits), np.ones(len(powers)), shapes)
    return _with_gains(found, powers)


def _with_gains(state: Codes, powers: np.ndarray) -> Codes:
    return state._replace(gains=(powers / state.shapes).mean((1, 2)))


def _spectra(powers: np.ndarray, multiple: int) -> np.ndarray:
    """Powers [J, F, T] as the networks take them: [J, T, F], T a multiple of a number."""
    more = -powers.shape[-1] % multiple
    padded = np.pad(powers, ((0, 0), (0, 0), (0, more)), mode="edge")
    return np.swapaxes(padded, 1, 2).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _encoded(model: Any, params: Params, powers: Array, logits: Array) -> Array:
    """The means of q(z|s, l), [J, ...]."""
    encode = lambda x, y: model.encode(params, Conditioned(x, jax.nn.softmax(y))).mean
    return jax.vmap(encode)(powers, logits)


@functools.partial(jax.jit, static_argnums=0)
def _decoded(model: Any, params: Params, z: Array, logits: Array) -> Array:
    """The variances sigma^2(z, l), [J, T, F]."""
    return jax.vmap(lambda z, y: model.decode(params, z, jax.nn.softmax(y)).mean)(z, logits)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _fitted(
    model: Any,
    params: Params,
    given: int | None,
    steps: int,
    learning_rate: float,
    powers: Array,
    weight: Array,
    z: Array,
    logits: Array,
) -> tuple[Array, Array]:
    """z and logits of each source, the best that Adam passes.

    Args:
      model: the answers of the VAE.
      params: its parameters.
      given: None if the labels are sought.
      steps: of Adam.
      learning_rate: of Adam.
      powers: [J, T, F], already divided by the gains.
      weight: [T], zero at frames that count for nothing.
      z: where Adam begins, [J, ...].
      logits: likewise, [J, C].
    """
    optimizer = optax.adam(learning_rate)

    def cost(free: Any, x: Array, start: Array) -> Array:
        code, free_logits = free
        label = jax.nn.softmax(free_logits if given is None else start)
        variances = model.decode(params, code, label).mean
        shared = weight[:, None]
        gain = (shared * x / variances).sum() / (shared.sum() * x.shape[1])
        # At the optimum of the gain sum P / (g sigma^2) is the number of terms, a constant.
        logs = (shared * jnp.log(variances)).sum() + shared.sum() * x.shape[1] * jnp.log(gain)
        return logs + 0.5 * (code**2).sum()

    def one(x: Array, z: Array, start: Array) -> tuple[Array, Array]:
        def step(carry: Any, _: Any) -> tuple[Any, None]:
            free, moments, best, least = carry
            value, gradient = jax.value_and_grad(cost)(free, x, start)
            best = jax.tree.map(lambda a, b: jnp.where(value < least, a, b), free, best)
            change, moments = optimizer.update(gradient, moments)
            after = optax.apply_updates(free, change)
            return (after, moments, best, jnp.minimum(value, least)), None

        free = z, start
        begin = free, optimizer.init(free), free, jnp.inf
        (_, _, best, _), _ = jax.lax.scan(step, begin, None, steps + 1)
        return best

    return jax.vmap(one)(powers, z, logits)
