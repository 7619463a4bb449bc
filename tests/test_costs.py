"""Costs: operations counted against hand counts and XLA, and the memory that XLA's own analysis
says is saved.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

from jaxvae import costs, evaluation, likelihoods, models, networks, posteriors, priors, training

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
SQUARE = jnp.ones((4, 4))
PRODUCT, CUBE = 2 * 3 * 5 * 7, 2 * 4 * 4 * 4


@jax.custom_vjp
def with_own_gradient(a: jax.Array) -> jax.Array:
    return a @ a


with_own_gradient.defvjp(lambda a: (a @ a, a), lambda a, g: (g @ a.T,))


def until(condition: Callable, body: Callable) -> Callable:
    return lambda a: lax.while_loop(lambda a: condition(a).sum() < 9, body, a)


def of_both(function: Callable) -> Callable:
    """Value and gradient of the sum of squares."""
    return jax.value_and_grad(lambda *args: (function(*args) ** 2).sum(), (0, 1))


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (lambda a, b: jnp.tanh(a @ b) + 1, (A, B), PRODUCT),
        (jax.vmap(jnp.dot, (None, 0)), (A, jnp.ones((6, 5))), 6 * 2 * 3 * 5),
        (lambda a: jnp.einsum("bij,bkj->bik", a, a), (jnp.ones((2, 3, 5)),), 2 * 2 * 3 * 3 * 5),
        (of_both(jnp.dot), (A, B), 3 * PRODUCT),
        (of_both(jax.checkpoint(lambda a, b: jnp.sin(a @ b))), (A, B), 4 * PRODUCT),
        (jax.jit(jax.jit(jnp.dot)), (A, B), PRODUCT),
        (with_own_gradient, (SQUARE,), CUBE),
        (jax.value_and_grad(lambda a: with_own_gradient(a).sum()), (SQUARE,), 2 * CUBE),
        (lambda a: lax.scan(lambda a, _: (a @ a, None), a, length=10)[0], (SQUARE,), 10 * CUBE),
        (
            lambda a: lax.fori_loop(
                0, 3, lambda _, a: lax.fori_loop(0, 4, lambda _, a: a @ a, a), a
            ),
            (SQUARE,),
            12 * CUBE,
        ),
        (lambda a: lax.cond(a.sum() > 0, lambda: a @ a @ a, lambda: a @ a), (SQUARE,), 2 * CUBE),
        (until(jnp.square, lambda a: a + 1), (SQUARE,), 0),
        (until(jnp.square, lambda a: a @ a), (SQUARE,), None),
        (until(lambda a: a @ a, lambda a: a + 1), (SQUARE,), None),
        (
            lambda a: lax.cond(a.sum() > 0, until(jnp.square, lambda a: a @ a), lambda a: a @ a, a),
            (SQUARE,),
            None,
        ),
        (
            jnp.dot,
            (
                jax.ShapeDtypeStruct((3, 5), jnp.bfloat16),
                jax.ShapeDtypeStruct((5, 7), jnp.bfloat16),
            ),
            PRODUCT,
        ),
    ],
)
def test_operations_are_those_of_a_hand_count(
    function: Callable, arguments: tuple, expected: float | None
) -> None:
    assert costs.flops(function, *arguments) == expected


def xla_flops(function: Callable, *args: Any) -> float:
    """Of the program for a TPU, where convolutions stay what they are."""
    return (
        jax.jit(function).trace(*args).lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]
    )


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 4, 4, 6), {"window_strides": (2, 2), "padding": "SAME"}),
        ((3, 3, 4, 6), {"window_strides": (1, 2), "padding": "VALID", "rhs_dilation": (2, 2)}),
        (
            (4, 4, 4, 6),
            {"window_strides": (1, 1), "padding": ((2, 1), (3, 2)), "lhs_dilation": (2, 3)},
        ),
        ((3, 3, 2, 6), {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 2}),
        ((3, 3, 4, 6), {"window_strides": (1, 1), "padding": "SAME", "batch_group_count": 2}),
    ],
    ids=["strided", "dilated", "transposed", "grouped features", "grouped batch"],
)
def test_operations_of_convolutions_are_xlas(
    kernel: tuple[int, ...], options: dict[str, Any]
) -> None:
    x, w = jnp.ones((2, 8, 9, 4)), jnp.ones(kernel)
    convolve = lambda x, w: lax.conv_general_dilated(
        x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )
    assert costs.flops(convolve, x, w) == xla_flops(convolve, x, w)
    assert costs.flops(of_both(convolve), x, w) == 3 * costs.flops(convolve, x, w)
    assert xla_flops(of_both(convolve), x, w) == pytest.approx(
        3 * costs.flops(convolve, x, w), rel=0.1
    )


def mlp_vae(latent: int = 4) -> models.VAE:
    """A Bernoulli VAE, 64-64-latent-64-64."""
    posterior = posteriors.normal(latent)
    encoder, decoder = networks.mlp((64,), posterior.size), networks.mlp((64,), (8, 8, 1))
    return models.vae(
        encoder, decoder, posterior, likelihoods.bernoulli(), priors.standard_normal(latent)
    )


def step_of(
    vae: models.VAE, batch_size: int, num_samples: int = 1, **options: Any
) -> tuple[Any, Any, Any]:
    """An algorithm with a state and a batch, as shapes."""
    loss = training.batch_mean(models.negative_elbo(vae, num_samples))
    algorithm = training.gradient_descent(vae.init, loss, optax.sgd(1e-3), **options)
    shape = lambda *size, dtype=jnp.float32: jax.ShapeDtypeStruct(size, dtype)
    batch = training.Batch(
        shape(batch_size, 8, 8, 1), shape(batch_size, dtype=jnp.int32), shape(batch_size)
    )
    return algorithm, jax.eval_shape(algorithm.init, jax.random.key(0), shape(8, 8, 1)), batch


@pytest.mark.parametrize("options", [{}, {"accumulate": 4}, {"ema_decay": 0.9}, {"num_samples": 3}])
def test_operations_of_a_training_step_are_six_per_parameter_and_example(
    options: dict[str, Any],
) -> None:
    """But for the first layer, whose input needs no gradient; the decoder is run for every
    sample.
    """
    algorithm, state, batch = step_of(mlp_vae(), 32, **options)
    encoder, decoder = 64 * 64 + 64 * 8, 4 * 64 + 64 * 64
    by_hand = 32 * (6 * (encoder + options.get("num_samples", 1) * decoder) - 2 * 64 * 64)
    assert costs.step_flops(algorithm, state, batch) == pytest.approx(by_hand, rel=1e-3)
    if "accumulate" not in options:
        step = lambda state, batch: algorithm.step(state, batch, None)
        assert xla_flops(step, state, batch) == pytest.approx(by_hand, rel=0.2)


def residual(blocks: int, remat: bool = False) -> tuple[Callable, Any, Any]:
    """Value and gradient of a residual encoder over a batch of eight, with its arguments as
    shapes.
    """
    network, x = (
        networks.residual_encoder((8,), 4, blocks, remat=remat),
        jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.float32),
    )
    params = jax.eval_shape(
        network.init, jax.random.key(0), jax.ShapeDtypeStruct((8, 8, 1), jnp.float32)
    )
    return of_both(lambda params, x: jax.vmap(network.apply, (None, 0))(params, x)), params, x


def test_operations_of_a_loop_are_those_of_its_unrolling() -> None:
    """XLA counts the body of a loop once, which is why the library counts for itself."""
    with_blocks = lambda blocks: costs.flops(*residual(blocks))
    one_block = with_blocks(1) - with_blocks(0)
    assert with_blocks(6) == with_blocks(0) + 6 * one_block
    assert xla_flops(*residual(1)) == pytest.approx(with_blocks(1), rel=0.2)
    assert xla_flops(*residual(6)) < 1.1 * xla_flops(*residual(2))  # two blocks in each turn
    assert (
        costs.flops(*residual(6, remat=True)) == with_blocks(0) + 6 * one_block * 7 / 6
    )  # one product in six anew


@pytest.mark.parametrize(
    ("kind", "peaks"),
    [
        ("TPU v3", (61.5e12, 20.5e12, 10.25e12)),
        ("TPU v5 lite", (197e12, 197e12 / 3, 197e12 / 6)),
        ("NVIDIA A100-SXM4-80GB", (312e12, 156e12, 19.5e12)),
        ("NVIDIA H200", (989.5e12, 494.5e12, 67e12)),
        ("Tesla T4", (None, 8.1e12, 8.1e12)),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", (None, None, None)),
        ("cpu", (None, None, None)),
    ],
)
def test_peak_rates_are_the_vendors(kind: str, peaks: tuple[float | None, ...]) -> None:
    device: Any = SimpleNamespace(device_kind=kind)
    assert (
        tuple(costs.peak_flops(device, name) for name in ("bfloat16", "tensorfloat32", "float32"))
        == peaks
    )


@pytest.mark.parametrize(
    ("function", "args", "words"),
    [
        (lambda a: a + 1, [jnp.ones(1000)], 2 * 1000),
        (lambda a: jnp.sin(a + 1) * 2, [jnp.ones(1000)], 2 * 1000),  # one kernel
        (lambda a, b: a @ b, [A, B], 3 * 5 + 5 * 7 + 3 * 7),
    ],
    ids=["sum", "chain", "product"],
)
def test_bytes_are_what_kernels_read_and_write(function: Callable, args: list, words: int) -> None:
    assert costs.bytes_accessed(function, *args) == pytest.approx(4 * words, rel=0.01)


def test_peak_rates_are_of_known_precisions_and_grow_as_those_shorten() -> None:
    order = ["float32", "tensorfloat32", "bfloat16"]
    assert set(order) == set(networks.PRECISIONS)
    for row in costs.PEAK_FLOPS.values():
        known = [row[name] for name in order if name in row]
        assert known == sorted(known)


def test_memory_in_use_is_told_where_the_backend_tells_it() -> None:
    telling: Any = SimpleNamespace(memory_stats=lambda: {"bytes_in_use": 7, "bytes_limit": 10})
    assert costs.memory_in_use(telling) == 7
    assert costs.memory_in_use(jax.local_devices()[0]) is None


def temporary_bytes(function: Callable, *args: Any) -> int:
    """What XLA's own analysis says that a compiled function needs beyond its arguments and
    results.
    """
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_rematerialized_blocks_need_a_fraction_of_the_memory_and_a_program_of_constant_size() -> (
    None
):
    grown = {
        remat: temporary_bytes(*residual(48, remat)) - temporary_bytes(*residual(24, remat))
        for remat in (False, True)
    }
    assert 4 * grown[True] <= grown[False]
    for remat in (False, True):
        lines = [
            len(jax.jit(f).lower(*args).as_text().splitlines())
            for f, *args in (residual(4, remat), residual(24, remat))
        ]
        assert lines[0] == lines[1]


def test_the_memory_of_a_log_likelihood_does_not_grow_with_its_samples() -> None:
    vae, x = mlp_vae(16), jnp.ones((8, 8, 1))
    params = jax.eval_shape(vae.init, jax.random.key(0), x)
    estimate = lambda num_samples, chunk: temporary_bytes(
        lambda params: evaluation.log_likelihood(
            vae, params, jax.random.key(1), x, num_samples, chunk
        ),
        params,
    )
    assert estimate(50_000, 500) == pytest.approx(estimate(1000, 500), rel=0.03)
    assert estimate(10_000, 10_000) > 5 * estimate(1000, 500)


def test_accumulated_gradients_need_less_memory() -> None:
    """A quarter of the batch at a time: the activations shrink to a quarter, the gradients are
    there twice.
    """

    def needed(accumulate: int) -> int:
        algorithm, state, batch = step_of(mlp_vae(), 512, num_samples=4, accumulate=accumulate)
        return temporary_bytes(
            lambda state, batch: algorithm.step(state, batch, None), state, batch
        )

    assert needed(4) < 0.4 * needed(1)
