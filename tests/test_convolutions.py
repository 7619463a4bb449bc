"""Convolutions: the values and derivatives of jax.lax's, under every transformation, and what is
compiled for whom.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxvae import networks
from jaxvae.kernels import convolutions, lowering, winograd

LAYERS = {  # kernel, strides, padding, further settings
    "4x4, stride 2": ((4, 4), (2, 2), "SAME", {}),
    "3x3": ((3, 3), (1, 1), "SAME", {}),
    "1x1": ((1, 1), (1, 1), "VALID", {}),
    "valid": ((3, 2), (1, 2), "VALID", {}),
    "stride over kernel": ((2, 2), (3, 3), "SAME", {}),
    "uneven padding": ((3, 4), (1, 2), ((0, 3), (2, 1)), {}),
    "kernel dilation": ((3, 2), (1, 1), "SAME", {"rhs_dilation": (2, 3)}),
    "kernel dilation and stride": ((2, 3), (2, 2), "SAME", {"rhs_dilation": (2, 1)}),
    "image dilation": ((3, 4), (1, 1), ((2, 1), (3, 2)), {"lhs_dilation": (2, 3)}),
    "both dilations": (
        (3, 3),
        (1, 1),
        ((2, 2), (2, 2)),
        {"lhs_dilation": (2, 2), "rhs_dilation": (2, 2)},
    ),
    "groups": ((3, 3), (1, 1), "SAME", {"feature_group_count": 2}),
}
NUMBERS = ("NHWC", "HWIO", "NHWC")


def arrays(
    kernel: tuple[int, ...], channels: int, groups: int = 1, size: tuple[int, int] = (7, 8)
) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    draw = lambda *size: jnp.asarray(rng.normal(size=size) / np.sqrt(channels), jnp.float32)
    return draw(3, *size, channels), draw(*kernel, channels // groups, 6)


def layer(module: Any, name: str) -> Callable:
    _, strides, padding, more = LAYERS[name]
    return lambda x, k: module.conv_general_dilated(
        x, k, strides, padding, dimension_numbers=NUMBERS, **more
    )


def transposed(module: Any, strides: tuple[int, int], padding: str) -> Callable:
    return lambda x, k: module.conv_transpose(x, k, strides, padding)


def derivatives(function: Callable) -> Callable:
    """Value, gradients, and a derivative of the gradients along both arguments."""

    def scalar(x: jax.Array, k: jax.Array) -> jax.Array:
        return jnp.sin(function(x, k)).sum()

    def all_of(x: jax.Array, k: jax.Array) -> Any:
        return function(x, k), jax.jvp(jax.grad(scalar, (0, 1)), (x, k), (jnp.cos(x), jnp.cos(k)))

    return jax.jit(all_of)


def agree(ours: Any, theirs: Any) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.fixture
def filtered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minimal filtering, however small a layer is."""
    monkeypatch.setattr(winograd, "FEWEST", 1)
    monkeypatch.setattr(winograd, "LEAST", 1)


@pytest.mark.parametrize("channels", [2, 16])
@pytest.mark.parametrize("name", LAYERS)
def test_a_convolution_and_its_derivatives_are_those_of_lax(name: str, channels: int) -> None:
    kernel, _, _, more = LAYERS[name]
    x, k = arrays(kernel, channels, more.get("feature_group_count", 1))
    agree(derivatives(layer(convolutions, name))(x, k), derivatives(layer(lax, name))(x, k))


@pytest.mark.usefixtures("filtered")
@pytest.mark.parametrize("channels", [2, 8])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("4x4, stride 2", (7, 8)),
        ("3x3", (7, 8)),
        ("3x3", (9, 8)),
        ("3x3", (12, 5)),
        ("uneven padding", (7, 8)),
    ],
)
def test_minimal_filtering_and_its_derivatives_are_those_of_lax(
    name: str, size: tuple[int, int], channels: int
) -> None:
    """With eight rows and more 3x3 layers are filtered along one dimension, by F(4, 3)."""
    x, k = arrays(LAYERS[name][0], channels, size=size)
    assert winograd.fits(x, k.shape[-1], k.shape[:2], LAYERS[name][1], (4, 4))
    agree(derivatives(layer(convolutions, name))(x, k), derivatives(layer(lax, name))(x, k))


TRANSPOSED = [
    ((4, 4), (2, 2), "SAME"),
    ((3, 3), (2, 2), "SAME"),
    ((1, 2), (2, 3), "VALID"),
    ((5, 4), (3, 2), "VALID"),
]


@pytest.fixture
def lowered_as_elsewhere() -> Iterator[None]:
    """What accelerators run, on the CPU."""
    register = lambda program: lowering.compile_as(
        convolutions.convolution_p, program, convolutions.XLA, "cpu"
    )
    register(convolutions._elsewhere)
    yield
    register(convolutions._for_cpu)


@pytest.mark.usefixtures("lowered_as_elsewhere")
@pytest.mark.parametrize(("kernel", "strides", "padding"), TRANSPOSED)
def test_transposed_convolutions_of_accelerators_are_those_of_lax(
    kernel: tuple[int, int], strides: tuple[int, int], padding: str
) -> None:
    x, k = arrays(kernel, 2)
    ours, theirs = (
        derivatives(transposed(module, strides, padding)) for module in (convolutions, lax)
    )
    agree(ours(x, k), theirs(x, k))


@pytest.mark.parametrize("channels", [2, 16])
@pytest.mark.parametrize(("kernel", "strides", "padding"), TRANSPOSED)
def test_a_transposed_convolution_and_its_derivatives_are_those_of_lax(
    kernel: tuple[int, int], strides: tuple[int, int], padding: str, channels: int
) -> None:
    x, k = arrays(kernel, channels)
    ours, theirs = (
        derivatives(transposed(module, strides, padding)) for module in (convolutions, lax)
    )
    agree(ours(x, k), theirs(x, k))


@pytest.mark.usefixtures("filtered")
@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [
        *TRANSPOSED[:2],
        ((3, 2), (2, 1), "VALID"),
        ((4, 4), (2, 2), ((3, 1), (2, 2))),
        ((5, 6), (2, 3), "SAME"),
    ],
)
def test_transposed_minimal_filtering_and_its_derivatives_are_those_of_lax(
    kernel: tuple[int, int], strides: tuple[int, int], padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = []
    of_layer = winograd.layer
    monkeypatch.setattr(winograd, "layer", lambda *args: layers.append(args) or of_layer(*args))
    x, k = arrays(kernel, 2, size=(8, 9))
    ours, theirs = (
        derivatives(transposed(module, strides, padding)) for module in (convolutions, lax)
    )
    agree(ours(x, k), theirs(x, k))
    assert layers


@pytest.mark.parametrize("channels", [4, 16, 64])
def test_wide_layers_and_those_that_are_cut_are_those_of_lax(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernel gradients: of wide layers tap by tap, of thin ones some examples at a time."""
    monkeypatch.setattr(convolutions, "CACHE_BYTES", 2000)
    monkeypatch.setattr(winograd, "FEWEST", 10**9)
    rng = np.random.default_rng(0)
    draw = lambda *size: jnp.asarray(rng.normal(size=size) / np.sqrt(channels), jnp.float32)
    x = draw(6, 7, 8, channels)
    for kernel, name in (((4, 4), "4x4, stride 2"), ((3, 3), "3x3"), ((3, 2), "valid")):
        k = draw(*kernel, channels, channels)
        agree(derivatives(layer(convolutions, name))(x, k), derivatives(layer(lax, name))(x, k))
    k, strides = draw(4, 4, channels, channels), (2, 2)
    ours, theirs = (
        derivatives(transposed(module, strides, "SAME")) for module in (convolutions, lax)
    )
    agree(ours(x, k), theirs(x, k))


@pytest.mark.parametrize(
    ("results", "taps", "filters", "rtol"),
    [(2, 2, winograd.F22, 0), (2, 3, winograd.F23, 0), (4, 3, winograd.F43, 1e-13)],
)
def test_results_of_a_filter_from_fewer_products_than_taps_times_results(
    results: int, taps: int, filters: Any, rtol: float
) -> None:
    """F(2, r) is exact: its entries are dyadic, and so are these numbers. F(4, 3) has thirds and
    fifteenths.
    """
    result, kernel, image = map(np.asarray, filters)
    w, x = np.arange(1.0, taps + 1), np.arange(3.0, 2 + taps + results) ** 2
    products = (kernel @ w) * (image @ x)
    assert len(products) == results + taps - 1 < results * taps
    np.testing.assert_allclose(result @ products, np.correlate(x, w), rtol=rtol)


def test_minimal_filtering_of_a_layer_of_64_channels_errs_by_two_millionths_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the largest entry, against sums in float64: value, gradient in the image and in the
    kernel.
    """
    rng = np.random.default_rng(0)
    draw = lambda *size: jnp.asarray(rng.normal(size=size), jnp.float32)
    x, k, g = draw(8, 16, 16, 64), draw(3, 3, 64, 64), draw(8, 16, 16, 64)
    monkeypatch.setattr(winograd, "LEAST", 1)

    def all_of(module: Any, *arrays: Any) -> Any:
        y, transposed = jax.vjp(layer(module, "3x3"), *arrays[:2])
        return y, *transposed(arrays[2])

    ours = all_of(convolutions, x, k, g)
    with jax.enable_x64(True):
        theirs = all_of(lax, *(jnp.asarray(np.asarray(a), jnp.float64) for a in (x, k, g)))
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 2e-6 * np.abs(np.asarray(b)).max()


def test_minimal_filtering_is_for_float32_alone() -> None:
    """Where inputs are added before they are multiplied, bfloat16 would lose a digit; integers
    have no halves.
    """
    ask = lambda dtype: winograd.fits(jnp.zeros((64, 8, 8, 32), dtype), 32, (3, 3), (1, 1), (8, 8))
    assert ask(jnp.float32) and not ask(jnp.bfloat16) and not ask(jnp.int32)


def test_negative_padding_is_cropping() -> None:
    """Compared with a sum over the taps in NumPy: XLA's own CPU convolution reads beyond the
    array here.
    """
    x, k = arrays((2, 3), 2)
    out = convolutions.conv_general_dilated(
        x, k, (1, 1), ((-1, 1), (0, -2)), dimension_numbers=NUMBERS
    )
    cropped = np.pad(np.asarray(x), ((0, 0), (0, 1), (0, 0), (0, 0)))[:, 1:, :-2]
    height, width = cropped.shape[1] - 1, cropped.shape[2] - 2
    taps = itertools.product(range(2), range(3))
    expected = sum(cropped[:, i : i + height, j : j + width] @ np.asarray(k)[i, j] for i, j in taps)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def loop(function: Callable) -> Callable:
    """Under ``lax.scan`` over the examples."""
    return lambda x, k: lax.scan(lambda carry, x: (carry, function(x[None], k)[0]), 0, x)[1]


TRANSFORMATIONS = {
    "none": lambda f: f,
    "jit": jax.jit,
    "vmap over images": lambda f: jax.vmap(lambda x, k: f(x[None], k)[0], (0, None)),
    "vmap over kernels": lambda f: lambda x, k: jax.vmap(f, (None, 0))(x, jnp.stack([k, 2 * k]))[0],
    "vmap over both": lambda f: lambda x, k: jax.vmap(lambda x: f(x[None], k + 0 * x.sum())[0])(x),
    "scan": loop,
    "remat": jax.checkpoint,
    "pmap": lambda f: lambda x, k: jax.pmap(lambda x, k: f(x[None], k)[0], in_axes=(0, None))(x, k),
}


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize(
    "function", [layer(convolutions, "4x4, stride 2"), transposed(convolutions, (2, 2), "SAME")]
)
def test_transformations_change_nothing(function: Callable, transformation: str) -> None:
    x, k = arrays((4, 4), 2)
    transformed = TRANSFORMATIONS[transformation](function)
    gradient = lambda f: jax.grad(lambda x, k: jnp.sin(f(x, k)).sum(), (0, 1))(x, k)
    agree((transformed(x, k), gradient(transformed)), (function(x, k), gradient(function)))


def test_gradients_of_every_example_are_those_of_one_at_a_time() -> None:
    x, k = arrays((4, 4), 2)
    of_one = jax.grad(lambda k, x: jnp.sin(layer(convolutions, "4x4, stride 2")(x[None], k)).sum())
    agree(jax.vmap(of_one, (None, 0))(k, x), jnp.stack([of_one(k, one) for one in x]))


def lowered(platform: str) -> str:
    """The program for the gradient of an encoder and a decoder."""
    encoder = networks.convolutional_encoder((16, 32), 4)
    decoder = networks.convolutional_decoder((32, 16), (16, 16, 16))
    x, key = jnp.zeros((16, 16, 16)), jax.random.key(0)
    params = jax.eval_shape(lambda: (encoder.init(key, x), decoder.init(key, jnp.zeros(4))))

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sin(
            jax.vmap(lambda x: decoder.apply(params[1], encoder.apply(params[0], x)))(x)
        ).sum()

    return (
        jax.jit(jax.grad(loss))
        .trace(params, x[None])
        .lower(lowering_platforms=(platform,))
        .as_text()
    )


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_convolutions(platform: str) -> None:
    program = lowered(platform)
    assert (
        program.count("stablehlo.convolution") == 11
    )  # of 4 layers 3 each, but for the input of the first
    assert program.count("stablehlo.dot_general") == 6  # of 2 dense layers
    # Holes in an image are of transposed layers and of gradients in an image; every kernel's
    # gradient is a layer's.
    assert (program.count("lhs_dilate = [2, 2]"), program.count("rhs_dilate = [2, 2]")) == (3, 4)


def test_a_cpu_gets_no_convolution_that_it_runs_slowly() -> None:
    """Those with holes in an image or spread kernels, as in gradients, ran 10 to 100 times
    slower than products.
    """
    program = lowered("cpu")
    convolution_lines = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    assert all(
        "lhs_dilate = [1, 1]" in line or "lhs_dilate" not in line for line in convolution_lines
    )
    assert all(
        "rhs_dilate = [1, 1]" in line or "rhs_dilate" not in line for line in convolution_lines
    )
    assert program.count("stablehlo.dot_general") > 10


def wide_layer(channels: int) -> tuple[Callable, jax.Array, jax.Array]:
    """A 3x3 layer's value and gradients."""
    layer = lambda k, x: convolutions.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=NUMBERS
    )
    gradients = jax.grad(lambda k, x: jnp.sin(layer(k, x)).sum(), (0, 1))
    return (
        jax.jit(gradients),
        jnp.zeros((3, 3, channels, channels)),
        jnp.zeros((64, 8, 8, channels)),
    )


@pytest.mark.parametrize(("channels", "products", "rows"), [(32, 12, 6), (96, 48, 0)])
def test_wide_layers_take_fewer_products_on_a_cpu(channels: int, products: int, rows: int) -> None:
    """The value and each gradient 6, of three taps and a quarter of the places, or 16, of one; not
    9 of all.

    Those of the value of three taps are convolutions of long rows.
    """
    gradients, *arguments = wide_layer(channels)
    program = gradients.trace(*arguments).lower(lowering_platforms=("cpu",)).as_text()
    convolution_lines = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    assert (program.count("stablehlo.dot_general"), len(convolution_lines)) == (products, rows)
    assert all("(tensor<1x1x" in line for line in convolution_lines)


def test_both_gradients_of_a_layer_share_the_windows_of_its_result() -> None:
    """One gather for each of the six points, where the two gradients have twelve before they are
    compiled.
    """
    gradients, *arguments = wide_layer(32)
    lowered = gradients.trace(*arguments).lower(lowering_platforms=("cpu",))
    assert lowered.as_text().count('"stablehlo.gather"') == 12
    assert lowered.compile().as_text().count(" gather(") == 6
