"""Masked networks, whose outputs see some of the inputs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
_matmul = functools.partial(jnp.matmul, precision="float32")


def masked_mlp(
    latent: int,
    hidden: Sequence[int],
    outputs: int,
    context: int = 0,
    activation: Callable[[Array], Array] = jax.nn.elu,
) -> tuple[Callable, Callable]:
    """MADE: (init, apply) of a network whose i-th outputs see z_<i.

    Germain et al. 2015, arXiv:1502.03509. Every unit has a degree, the number of coordinates that
    it may see: input z_j goes to units of degree j and above, the i-th outputs come from units of
    degree below i, and the context has degree 0.

    Args:
      latent: number D of coordinates.
      hidden: widths of the hidden layers.
      outputs: numbers for each coordinate.
      context: number C of further inputs, which every output sees.
      activation: function of one array.

    Returns:
      ``init(key) -> params`` and ``apply(params, z [D], context [C]) -> [outputs, D]``. All outputs
      are zero at first.

    Raises:
      ValueError: for a hidden layer of fewer than D units, in which some degree would be missing.
    """
    if any(width < latent for width in hidden):
        raise ValueError(
            f"hidden layers of {tuple(hidden)} units; "
            f"a mask over {latent} dimensions needs {latent} each"
        )
    degrees = [np.append(np.zeros(context, int), np.arange(1, latent + 1))]
    degrees += [np.arange(width) % latent for width in hidden]
    masks = [after >= before[:, None] for before, after in itertools.pairwise(degrees)]
    last = np.arange(1, latent + 1) > degrees[-1][:, None]  # [units, D]
    init, network = masked_network([*masks, np.tile(last, outputs)], activation)

    def apply(params: Any, z: Array, context: Array) -> Array:
        return network(params, jnp.concatenate([context, z])).reshape(outputs, latent)

    return init, apply


def masked_network(
    masks: Sequence[np.ndarray], activation: Callable[[Array], Array]
) -> tuple[Callable, Callable]:
    """(init, apply) of the network whose kernels [inputs, outputs] have ``masks``.

    The last layer starts at zero.
    """

    def init(key: Array) -> list:
        scales = [1 / np.sqrt(mask.sum(0).clip(1)) for mask in masks[:-1]]
        kernels = [
            scale * jax.random.normal(k, mask.shape)
            for k, mask, scale in zip(
                jax.random.split(key, len(masks)), masks, [*scales, 0.0], strict=True
            )
        ]
        return [{"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])} for kernel in kernels]

    def apply(params: Any, x: Array) -> Array:
        for i, (layer, mask) in enumerate(zip(params, masks, strict=True)):
            x = _matmul(activation(x) if i else x, layer["kernel"] * mask) + layer["bias"]
        return x

    return init, apply
