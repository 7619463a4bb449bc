"""Matrix products: the values and derivatives of jax.lax's, and gradients that transpose no
operand.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxvae import networks
from jaxvae.kernels import lowering

X = jnp.asarray(
    np.random.default_rng(0).normal(size=(3, 4, 5)), jnp.float32
)  # examples, samples, features
W = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)), jnp.float32)
BATCHES: dict[str, Callable[[Callable], Callable]] = {
    "one": lambda f: lambda x, w: f(x[0, 0], w),
    "rows": lambda f: lambda x, w: f(x[0], w),
    "examples": lambda f: lambda x, w: jax.vmap(f, (0, None))(x, w),
    "examples and samples": lambda f: jax.vmap(jax.vmap(f, (0, None)), (0, None)),
    "samples and examples": lambda f: jax.vmap(jax.vmap(f, (0, None)), (1, None), 1),
    "weights of each": lambda f: (
        lambda x, w: jax.vmap(jax.vmap(f, (0, None)))(x, jnp.stack([w, w + 1, w + 2]))
    ),
    "a loop": lambda f: lambda x, w: lax.map(lambda x: jax.vmap(f, (0, None))(x, w), x),
    "nobody": lambda f: lambda x, w: jax.vmap(jax.vmap(f, (0, None)), (0, None))(x[:0], w),
}


def dense(module: Any) -> Callable:
    return lambda x, w: module.dot_general(
        x, w, (((x.ndim - 1,), (0,)), ((), ())), precision="highest"
    )


def derivatives(function: Callable) -> Callable:
    """Value, gradients, and a derivative of the gradients along both arguments."""
    scalar = lambda x, w: jnp.sin(function(x, w)).sum()
    return jax.jit(
        lambda x, w: (
            function(x, w),
            jax.jvp(jax.grad(scalar, (0, 1)), (x, w), (jnp.cos(x), jnp.cos(w))),
        )
    )


@pytest.mark.parametrize("batch", BATCHES)
def test_a_product_and_its_derivatives_are_those_of_lax(batch: str) -> None:
    ours, theirs = (derivatives(BATCHES[batch](dense(module)))(X, W) for module in (lowering, lax))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "numbers",
    [(((0, 1), (0, 1)), ((), ())), (((1, 0), (1, 0)), ((), ())), (((0,), (0,)), ((1,), (1,)))],
)
def test_any_dimensions_may_be_summed_and_batched(numbers: Any) -> None:
    ours, theirs = (
        module.dot_general(X, 2 * X, numbers, precision="highest") for module in (lowering, lax)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_product_takes_types_and_what_jit_does_not_see() -> None:
    numbers = (((1,), (0,)), ((), ()))
    half = X[0].astype(jnp.bfloat16), W.astype(jnp.bfloat16)
    ours, theirs = (
        m.dot_general(*half, numbers, preferred_element_type=jnp.float32) for m in (lowering, lax)
    )
    assert ours.dtype == theirs.dtype == jnp.float32
    np.testing.assert_array_equal(ours, theirs)


def test_a_gradient_in_weights_that_examples_and_samples_share_sums_over_one_dimension() -> None:
    """Over two of them XLA transposes both operands, which is a tenth of a step of IWAE with 50
    samples.
    """
    outputs = BATCHES["examples and samples"](dense(lowering))
    program = jax.jit(jax.grad(lambda w, x: jnp.sin(outputs(x, w)).sum())).lower(W, X).as_text()
    gradient = "contracting_dims = [0] x [0]"
    assert gradient in program and "[0, 1] x [0, 1]" not in program


@pytest.mark.parametrize("leading", [(600,), (60, 10)], ids=str)
@pytest.mark.parametrize("shape", [(20, 150), (150, 20), (150, 130), (160, 144)], ids=str)
def test_large_products_are_of_whole_vectors_on_a_cpu(
    shape: tuple[int, int], leading: tuple[int, ...]
) -> None:
    """With other numbers of columns the product and the gradient in its input take longer."""
    rng = np.random.default_rng(0)
    x, w = (
        jnp.asarray(rng.normal(size=size) / 4, jnp.float32)
        for size in ((*leading, shape[0]), shape)
    )
    of = lambda module: functools.reduce(
        lambda f, _: jax.vmap(f, (0, None)), leading, dense(module)
    )
    ours, theirs = (derivatives(of(module))(x, w) for module in (lowering, lax))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    program = (
        jax.jit(jax.value_and_grad(lambda x, w: jnp.sin(of(lowering)(x, w)).sum()))
        .lower(x, w)
        .as_text()
    )
    widths = [int(n) for n in re.findall(r"dot_general .*-> tensor<(?:\d+x)+(\d+)xf32>", program)]
    assert sorted(widths) == sorted(n if n <= 128 else n + -n % 16 for n in shape)


@pytest.mark.parametrize(
    "network", [networks.mlp((8,), 3), networks.convolutional_encoder((2,), 3)], ids=["mlp", "conv"]
)
def test_gradients_under_a_checked_shard_map_are_those_of_one_device(
    network: networks.Network,
) -> None:
    """JAX sums over devices where a result is marked as varying over them, as these operations
    must mark theirs.
    """
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 4, 4, 1)), jnp.float32)
    params = network.init(jax.random.key(0), x[0])
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    loss = lambda params, x: jnp.sin(jax.vmap(lambda x: network.apply(params, x))(x)).sum()
    whole = lambda params, x: jax.grad(lambda params: lax.psum(loss(params, x), "data"))(params)
    found = jax.jit(jax.shard_map(whole, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))(
        params, x
    )
    expected = jax.grad(loss)(params, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )
