"""Networks made of Flax modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import linen, nnx

from jaxvae.networks.contract import Network

Array = jax.Array


def from_linen(module: linen.Module) -> Network:
    """A Flax linen module whose only collection is ``params``.

    If ``module(x, deterministic=...)`` takes ``deterministic``, as modules with ``linen.Dropout``
    do, it is True in ``apply`` and False in ``train``. ``init`` raises ValueError for a module with
    other collections, such as the running moments of ``linen.BatchNorm``.
    """
    if "deterministic" not in inspect.signature(module.__call__).parameters:
        return Network(
            jax.jit(lambda key, x: _params_of(module.init(key, x))),
            lambda params, x: module.apply({"params": params}, x),
        )

    def apply(params: Any, x: Any) -> Any:
        return module.apply({"params": params}, x, deterministic=True)

    def train(params: Any, key: Array, x: Any) -> Any:
        rngs = {"dropout": key}
        return module.apply({"params": params}, x, deterministic=False, rngs=rngs)

    init = jax.jit(lambda key, x: _params_of(module.init(key, x, deterministic=True)))
    return Network(init, apply, train)


def _params_of(variables: Any) -> Any:
    others = sorted(set(variables) - {"params"})
    if others:
        raise ValueError(
            "from_linen takes modules whose only collection is params; this one also has "
            f"{', '.join(others)}, which would not be updated in training"
        )
    return variables.get("params", {})


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """A Flax NNX module, given the function that builds it.

    For example ``from_nnx(lambda rngs: nnx.Linear(64, 8, rngs=rngs))``. Its ``nnx.Param`` variables
    become the parameters, a plain dictionary. Raises ValueError for a module with variables of
    another kind.
    """
    graph, abstract, *rest = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)
    if jax.tree.leaves(rest):
        variables = jax.tree.leaves(rest, is_leaf=lambda v: isinstance(v, nnx.Variable))
        kinds = sorted({type(variable).__name__ for variable in variables})
        raise ValueError(
            "from_nnx takes modules whose state is nnx.Param only; "
            f"this one also holds {', '.join(kinds)}"
        )

    def init(key: Array, x: Array) -> Any:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))

    def apply(params: Any, x: Array) -> Array:
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state, *rest)(x)

    return Network(init, apply)
