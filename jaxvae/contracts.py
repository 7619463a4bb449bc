"""The types that models and training share, and the decorator that makes a class a pytree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, dataclass_transform

import jax

Array = jax.Array
Params = Any
Terms = dict[str, Array]  # scalars by name, in nats

# (params, key, x, step) -> (loss, terms), of one example.
Loss = Callable[[Params, Array, Any, Array], tuple[Array, Terms]]

# (params, keys [B], x [B, ...], weight [B], step, axis_name) -> (loss, terms), one number each over
# the global batch. Weights sum to one over the global batch; padding has weight zero.
BatchLoss = Callable[[Params, Array, Any, Array, Array, str | None], tuple[Array, Terms]]

# (key, raw example) -> what the model takes, such as binarized pixels.
Preprocess = Callable[[Array, Any], Any]


@dataclass_transform(frozen_default=True)
def pytree(cls: type) -> type:
    """A frozen dataclass that JAX knows; fields made by ``static`` are not traced.

    The class is part of the tree structure. With ``jax.tree_util.register_dataclass`` the
    structures of two classes with equally many fields compare equal, and the cache of ``jax.jit``
    may confuse them.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)
    static_names = [field.name for field in fields if field.metadata.get("static")]
    traced = [field.name for field in fields if field.name not in static_names]

    def flatten(value: Any) -> tuple:
        children = [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in traced]
        return children, (cls, tuple(getattr(value, name) for name in static_names))

    def unflatten(aux: tuple, children: Any) -> Any:
        value: Any = object.__new__(cls)
        for name, child in [
            *zip(traced, children, strict=True),
            *zip(static_names, aux[1], strict=True),
        ]:
            object.__setattr__(value, name, child)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


def static(default: Any = dataclasses.MISSING) -> Any:
    """A field of a ``pytree`` class that is part of the tree's structure."""
    return dataclasses.field(default=default, metadata={"static": True})
