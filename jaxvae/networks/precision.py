"""The precision in which a network computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.networks.contract import Network, wrapped


class Precision(NamedTuple):
    """How a network computes."""

    dtype: Any  # of parameters, input and all between them; None leaves them as they are
    matmul: str  # jax_default_matmul_precision: how products of float32 arrays are computed


# How products of float32 arrays are computed (documentation of ``jax.lax.Precision``); on CPU in
# float32 always:
#   float32        float32 on GPU; six bfloat16 passes on TPU, about as exact
#   tensorfloat32  TF32 on GPUs that have it, otherwise float32; three bfloat16 passes on TPU
#   bfloat16       JAX's own default: on GPU as tensorfloat32; one bfloat16 pass on TPU
PRECISIONS: dict[str, Precision] = {
    "float32": Precision(None, "float32"),
    "tensorfloat32": Precision(jnp.float32, "tensorfloat32"),
    "bfloat16": Precision(jnp.bfloat16, "bfloat16"),
}


def with_precision(network: Network, precision: str = "float32") -> Network:
    """The network, computed in a member of ``PRECISIONS`` whatever JAX's default is.

    Parameters and input are cast inside ``apply`` and the output back to float32, so that
    parameters stay float32, gradients come out float32, and densities see float32. Integers are not
    cast, and nothing is for ``float32``. A layer that states a type or a precision of its own keeps
    it. Raises ValueError for an unknown name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    dtype, matmul = PRECISIONS[precision]

    def wrap(apply: Callable) -> Callable:
        def computed(params: Any, x: Any) -> Any:
            with jax.default_matmul_precision(matmul):
                if dtype is None:
                    return apply(params, x)
                return _cast(apply(_cast(params, dtype), _cast(x, dtype)), jnp.float32)

        return computed

    return wrapped(network, wrap)


def _cast(tree: Any, dtype: Any) -> Any:
    is_real = lambda a: jnp.issubdtype(jnp.result_type(a), jnp.floating)
    return jax.tree.map(lambda a: jnp.asarray(a, dtype) if is_real(a) else a, tree)
