"""What a training step costs, and what a device can do.

Costs are floating-point operations and bytes. Devices have peak rates and memory.

``step_flops / (seconds per step * number of devices * peak_flops)`` is the share of the hardware
that a run uses. If nothing is rematerialized, it is the model FLOPs utilization of Chowdhery et al.
2022 (arXiv:2204.02311, app. B).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from jaxvae.training import Algorithm, Batch


def step_flops(algorithm: Algorithm, state: Any, batch: Batch) -> float | None:
    """``flops`` of one training step on a batch.

    The devices that share a global batch share its operations.
    """
    return flops(lambda state, batch: algorithm.step(state, batch, None), state, batch)


def flops(function: Callable, *args: Any) -> float | None:
    """Floating-point operations of the products and convolutions in ``function(*args)``.

    The function is not run. A multiply-add counts as two operations. A training step of fully
    connected layers takes about 6 for each parameter and example. The jaxpr is counted, in which a
    loop counts as often as it runs. (XLA's cost analysis counts its body once.) Rematerialized
    products count each time. A ``cond`` counts as its most expensive branch. Zeros of padding and
    dilation do not count. ``args`` are arrays or ``jax.ShapeDtypeStruct``. The result is None if
    products are in a ``while`` loop, because its length is unknown.
    """
    count = _jaxpr_flops(jax.make_jaxpr(function)(*args))
    return None if math.isnan(count) else count


def bytes_accessed(function: Callable, *args: Any) -> float | None:
    """Bytes that the kernels of the compiled ``function(*args)`` read and write.

    The function is compiled and not run; XLA's analysis tells the bytes. Values that stay within a
    kernel are not counted. Values that one kernel writes and the next one reads count twice, even
    if a cache holds them. A loop counts once, however often it runs. ``args`` are arrays or
    ``jax.ShapeDtypeStruct``. The result is None if the backend does not tell.
    """
    return (jax.jit(function).lower(*args).compile().cost_analysis() or {}).get("bytes accessed")


def _jaxpr_flops(jaxpr: Any) -> float:
    return float(sum(_equation_flops(equation) for equation in jaxpr.eqns))


def _equation_flops(equation: Any) -> float:
    """Operations of one equation of a jaxpr; nan if they cannot be known."""
    inner = [
        _jaxpr_flops(value) for value in jax.tree.leaves(equation.params) if hasattr(value, "eqns")
    ]
    match equation.primitive.name:
        case "dot_general":
            return _dot_flops(equation)
        case "conv_general_dilated":
            return _convolution_flops(equation)
        case "scan":
            return equation.params["length"] * sum(inner)
        case "while":
            return math.nan if sum(inner) else 0.0
        case "cond":
            return float(np.max(inner))
        case _:
            return sum(inner)


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2.0 * math.prod(out) * math.prod(lhs[d] for d in contracted)


def _convolution_flops(equation: Any) -> float:
    """Two operations for each output position and kernel element that meet an input's element."""
    params, dimensions = equation.params, equation.params["dimension_numbers"]
    shapes = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
    specs = dimensions.lhs_spec, dimensions.rhs_spec, dimensions.out_spec
    # The order is now [batch, features, *spatial] for input and output, [out, in, *spatial] for the
    # kernel.
    lhs, rhs, out = ([shape[d] for d in spec] for shape, spec in zip(shapes, specs, strict=True))
    pairs = 1
    for size, kernel, positions, stride, (low, _), hole, dilation in zip(
        lhs[2:],
        rhs[2:],
        out[2:],
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        strict=True,
    ):
        place = np.add.outer(stride * np.arange(positions), dilation * np.arange(kernel)) - low
        pairs *= int(((place % hole == 0) & (place >= 0) & (place < size * hole)).sum())
    return 2.0 * out[0] * out[1] * rhs[1] * pairs


def _tpu(bfloat16: float) -> dict[str, float]:
    """The peaks of a TPU, on which float32 products take three or six bfloat16 passes.

    The documentation of ``jax.lax.Precision`` says so.
    """
    return {"bfloat16": bfloat16, "tensorfloat32": bfloat16 / 3, "float32": bfloat16 / 6}


def _gpu(bfloat16: float | None, tensorfloat32: float, float32: float) -> dict[str, float]:
    table = {"bfloat16": bfloat16, "tensorfloat32": tensorfloat32, "float32": float32}
    return {name: peak for name, peak in table.items() if peak is not None}


# device_kind -> precision -> operations per second of one device. They are the vendors' numbers for
# dense products, or half of the numbers "with sparsity". A device is a core (half a chip) on TPU v2
# and v3, and a chip from v4 on. Kinds are matched whole, because an H200 NVL or a slice of an A100
# is slower than its namesake.
_V100_SXM2 = _gpu(None, 15.7e12, 15.7e12)  # NVIDIA V100 datasheet; neither bfloat16 nor TF32
_V100_PCIE = _gpu(None, 14e12, 14e12)  # the same
_A100 = _gpu(312e12, 156e12, 19.5e12)  # NVIDIA A100 datasheet, all form factors
_H100_SXM = _gpu(1979e12 / 2, 989e12 / 2, 67e12)  # NVIDIA H100 datasheet, sparse halved
PEAK_FLOPS: dict[str, dict[str, float]] = {
    "TPU v2": _tpu(46e12 / 2),  # cloud.google.com/tpu/docs/v2
    "TPU v3": _tpu(123e12 / 2),  # cloud.google.com/tpu/docs/v3
    "TPU v4": _tpu(275e12),  # cloud.google.com/tpu/docs/v4
    "TPU v5 lite": _tpu(197e12),  # cloud.google.com/tpu/docs/v5e
    "TPU v5e": _tpu(197e12),
    "TPU v5": _tpu(459e12),  # cloud.google.com/tpu/docs/v5p
    "TPU v5p": _tpu(459e12),
    "TPU v6 lite": _tpu(918e12),  # cloud.google.com/tpu/docs/v6e
    "TPU v6e": _tpu(918e12),
    "Tesla V100-SXM2-16GB": _V100_SXM2,
    "Tesla V100-SXM2-32GB": _V100_SXM2,
    "Tesla V100-PCIE-16GB": _V100_PCIE,
    "Tesla V100-PCIE-32GB": _V100_PCIE,
    "Tesla T4": _gpu(None, 8.1e12, 8.1e12),  # NVIDIA T4 datasheet; neither bfloat16 nor TF32
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA L4": _gpu(242e12 / 2, 120e12 / 2, 30.3e12),  # NVIDIA L4 datasheet, sparse halved
    "NVIDIA H100 80GB HBM3": _H100_SXM,
    # NVIDIA H100 datasheet, sparse halved
    "NVIDIA H100 PCIe": _gpu(1513e12 / 2, 756e12 / 2, 51e12),
    "NVIDIA H200": _H100_SXM,  # NVIDIA H200 datasheet, the column SXM: the numbers of the H100
    # NVIDIA Blackwell datasheet, HGX B200, sparse halved
    "NVIDIA B200": _gpu(4.5e15 / 2, 2.2e15 / 2, 75e12),
}


def peak_flops(device: jax.Device, precision: str) -> float | None:
    """The peak operations per second of dense products, or None if it is not known.

    ``precision`` is a member of ``networks.PRECISIONS``.
    """
    return PEAK_FLOPS.get(device.device_kind, {}).get(precision)


def memory_in_use(device: jax.Device) -> int | None:
    """Bytes of arrays on the device now; None if the backend does not tell, as on CPU."""
    stats = device.memory_stats()
    return None if stats is None else stats.get("bytes_in_use")
