"""Bilinear operations of JAX that are compiled as other programs, such as matrix products."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import Literal, Primitive
from jax.interpreters import ad, batching, mlir, xla

Array = jax.Array
Program = Callable[..., Array]  # (lhs, rhs, **params) -> out


def like(original: Primitive, default: Program, **platforms: Program) -> tuple[Primitive, Callable]:
    """A primitive with the rules of the bilinear ``original``, compiled as another program.

    The program is ``default``, or the one of the platform. Programs decide on sizes, so the
    original is compiled where a size is symbolic, as in ``jax.export``. Returns the primitive and
    ``through(function)``, the same function of arrays with the new primitive in place of the
    original.
    """
    primitive = Primitive(original.name)

    def through(function: Callable) -> Callable:
        @functools.wraps(function)
        def replaced(*args: Any) -> Any:
            closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
            jaxpr = closed.jaxpr
            known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
            known |= dict(zip(jaxpr.invars, jax.tree.leaves(args), strict=True))
            value = lambda atom: atom.val if isinstance(atom, Literal) else known[atom]
            for equation in jaxpr.eqns:
                used = primitive if equation.primitive is original else equation.primitive
                results = used.bind(*map(value, equation.invars), **equation.params)
                results = results if used.multiple_results else [results]
                known |= dict(zip(equation.outvars, results, strict=True))
            return jax.tree.unflatten(jax.tree.structure(out), map(value, jaxpr.outvars))

        return replaced

    def abstract(lhs: Any, rhs: Any, **params: Any) -> Any:
        (out,) = jax.make_jaxpr(functools.partial(original.bind, **params))(lhs, rhs).out_avals
        return out  # with the mesh axes over which it varies in a shard_map

    def batched(
        args: Sequence[Array], dims: Sequence[int | None], **params: Any
    ) -> tuple[Array, int]:
        return through(jax.vmap(functools.partial(original.bind, **params), dims))(*args), 0

    def lhs_transposed(cotangent: Array, lhs: Any, rhs: Array, **params: Any) -> Array:
        def transposed(cotangent: Array, rhs: Array) -> Array:
            in_lhs = lambda lhs: original.bind(lhs, rhs, **params)
            return jax.linear_transpose(in_lhs, lhs.aval)(cotangent)[0]

        return through(transposed)(cotangent, rhs)

    def rhs_transposed(cotangent: Array, lhs: Array, rhs: Any, **params: Any) -> Array:
        def transposed(cotangent: Array, lhs: Array) -> Array:
            in_rhs = lambda rhs: original.bind(lhs, rhs, **params)
            return jax.linear_transpose(in_rhs, rhs.aval)(cotangent)[0]

        return through(transposed)(cotangent, lhs)

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(functools.partial(xla.apply_primitive, primitive))
    ad.defbilinear(primitive, lhs_transposed, rhs_transposed)
    batching.primitive_batchers[primitive] = batched
    for platform, program in ((None, default), *platforms.items()):
        compile_as(primitive, program, original, platform)
    return primitive, through


def compile_as(
    primitive: Primitive, program: Program, original: Primitive, platform: str | None
) -> None:
    """Makes a program what a primitive of ``like`` is compiled as on a platform, or elsewhere."""
    rule = mlir.lower_fun(_of_numbers(program, original), multiple_results=False)
    mlir.register_lowering(primitive, rule, platform=platform)


def _of_numbers(program: Program, original: Primitive) -> Program:
    """The program, or the original where a size is symbolic."""

    def chosen(lhs: Array, rhs: Array, **params: Any) -> Array:
        known = all(isinstance(size, int) for size in (*lhs.shape, *rhs.shape))
        return (program if known else original.bind)(lhs, rhs, **params)

    return chosen


def _merged(lhs: Array, rhs: Array, **params: Any) -> Array:
    """A sum over several leading dimensions as a sum over one.

    Then XLA transposes no operand. The gradient in weights that examples and their samples share
    is such a sum.
    """
    (lhs_summed, rhs_summed), batch = params["dimension_numbers"]
    count = len(lhs_summed)
    if count > 1 and lhs_summed == rhs_summed == tuple(range(count)) and not any(batch):
        lhs, rhs = (a.reshape(math.prod(a.shape[:count]), *a.shape[count:]) for a in (lhs, rhs))
        params |= {"dimension_numbers": (((0,), (0,)), ((), ()))}
    return lax.dot_general_p.bind(lhs, rhs, **params)


def _of_whole_vectors(lhs: Array, rhs: Array, **params: Any) -> Array:
    """A large product with columns added until they fill vectors of 16 numbers.

    On a CPU XLA takes longer for other numbers of columns, except in sums over rows, which it
    computes by another library.
    """
    (lhs_summed, rhs_summed), batch = params["dimension_numbers"]
    if lhs_summed == (lhs.ndim - 1,) and rhs.ndim == 2 and not any(batch):
        axis = 1 - rhs_summed[0]
        columns = rhs.shape[axis]
        if math.prod(lhs.shape[:-1]) > 512 and columns > 128 and columns % 16:
            widths = [(0, -columns % 16 if d == axis else 0, 0) for d in (0, 1)]
            filled = lax.pad(rhs, np.zeros((), rhs.dtype), widths)
            return lax.dot_general_p.bind(lhs, filled, **params)[..., :columns]
    return _merged(lhs, rhs, **params)


_, _through = like(lax.dot_general_p, _merged, cpu=_of_whole_vectors)


def dot_general(lhs: Array, rhs: Array, *args: Any, **settings: Any) -> Array:
    """``jax.lax.dot_general``."""
    return _through(lambda lhs, rhs: lax.dot_general(lhs, rhs, *args, **settings))(lhs, rhs)
