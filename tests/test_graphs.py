"""Graphs of ONNX: onnxruntime computes what JAX computes, for batches of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_exporting import DIGITS, model_of

import jaxvae
from jaxvae import networks
from jaxvae.distributions import mean_of
from jaxvae.uses import graphs

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytestmark = pytest.mark.slow


def run(content: bytes, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of a graph by onnxruntime."""
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


FUNCTIONS: dict[str, Any] = {
    **{f"mlp, {name}": networks.mlp((7, 6), 5, f) for name, f in networks.ACTIVATIONS.items()},
    "affine": networks.mlp((), (2, 3)),
    "several shapes": networks.mlp((4,), (3, 2, 1)),
    "conv": networks.convolutional_encoder((3, 5), 4),
    "conv of odd sides": networks.of_input(
        networks.convolutional_encoder((3, 5), 4), lambda x: x[:7, :5]
    ),
    "residual": networks.residual_encoder((8,), 4, 3),
    "one block": networks.residual_encoder((3,), 4, 1, jax.nn.relu),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_networks(name: str) -> None:
    network = FUNCTIONS[name]
    x = np.random.default_rng(0).normal(size=(4, 8, 6, 2)).astype(np.float32)
    params = network.init(jax.random.key(0), x[0])
    shape = {"x": jax.ShapeDtypeStruct(x.shape[1:], x.dtype)}
    graph, about = graphs.graph_of("network", lambda x: network.apply(params, x), shape)
    assert about["inputs"] == {"x": "float32[b,8,6,2]"}
    for size in (1, 4):
        expected = jax.vmap(lambda x: network.apply(params, x))(x[:size])
        (given,) = run(graph.SerializeToString(), x[:size])
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output", [(8, 8, 1), (7, 5, 3)], ids=str)
@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_decoders(kind: str, output: tuple[int, int, int]) -> None:
    """Transposed convolutions, and images that are cut from larger ones."""
    make = {"conv": networks.convolutional_decoder, "residual": networks.residual_decoder}[kind]
    network: Any = make((6, 4), output)
    z = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    params = network.init(jax.random.key(0), z[0])
    shape = {"z": jax.ShapeDtypeStruct((5,), z.dtype)}
    graph, _ = graphs.graph_of("network", lambda z: network.apply(params, z), shape)
    (given,) = run(graph.SerializeToString(), z)
    expected = jax.vmap(lambda z: network.apply(params, z))(z)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


OPERATIONS: dict[str, Any] = {
    "log1p, expm1": lambda x: jnp.log1p(jnp.expm1(jnp.abs(x))),
    "rsqrt": lambda x: lax.rsqrt(jnp.abs(x) + 1),
    "powers": lambda x: x**3 + jnp.square(x) + jnp.abs(x) ** 0.5,
    "where": lambda x: jnp.where((x != 0) & (x > -1), jnp.minimum(x, 1), jnp.ceil(x)),
    "clip": lambda x: lax.clamp(jnp.float32(-0.5), x, jnp.float32(0.5)),
    "softmax": lambda x: jax.nn.softmax(x, -1),
    "log sum of exponentials": lambda x: jax.nn.logsumexp(x, 0),
    "sums": lambda x: x.sum(0) * x.prod() - x.min(1).max(),
    "slices": lambda x: jnp.concatenate([x[:, ::2], x[:, 1:2], 2 * x[:, 3:]], 1),
    "split": lambda x: jnp.split(x, 2, 0)[1] - jnp.split(x, [1, 3], 0)[1],
    "pad": lambda x: jnp.pad(x, ((1, 2), (0, 1)), constant_values=7.0),
    "broadcast": lambda x: jnp.broadcast_to(x[:, :1], (4, 5)).reshape(-1),
    "transposed": lambda x: jnp.tensordot(x.T, jnp.arange(8, dtype=x.dtype).reshape(2, 4), (1, 1)),
    "types": lambda x: jnp.where(x.astype(jnp.int32) > 0, 1, 0).astype(x.dtype) + x,
    "a constant": lambda x: jnp.arange(3, dtype=x.dtype),
    "a loop": lambda x: lax.fori_loop(0, 3, lambda i, x: x * 2 + i, x),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "no operator": (lambda x: lax.sort(x), "no operator of ONNX is written for sort"),
    "a loop over data": (
        lambda x: lax.scan(lambda c, row: (c + row, None), x[0], x)[0],
        "loops over parameters alone",
    ),
    "a product of data": (lambda x: jnp.einsum("ij,kj->ik", x, x), "products of a batch and"),
    "holes": (lambda x: lax.pad(x, jnp.float32(0), [(0, 0, 1), (0, 0, 0)]), "between numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operations_that_are_refused(name: str) -> None:
    function, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        graphs.graph_of("function", function, {"x": jax.ShapeDtypeStruct((4, 4), np.float32)})


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    shape = {"x": jax.ShapeDtypeStruct((4, 4), x.dtype)}
    graph, _ = graphs.graph_of("function", OPERATIONS[name], shape)
    (given,) = run(graph.SerializeToString(), x)
    np.testing.assert_allclose(given, jax.vmap(OPERATIONS[name])(x), rtol=1e-5, atol=1e-5)


PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"hidden": (8,), "latent": 3},
    "full-covariance": {"hidden": (8,), "latent": 3},
    "conv": {"hidden": (4, 6), "latent": 3},
    "cvae": {"hidden": (8,), "latent": 3},
    "coupling-prior": {"hidden": (8,), "latent": 4},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_models(preset: str, tmp_path: Path) -> None:
    model = model_of(preset, tmp_path / "run", DIGITS, **PRESETS[preset])
    rng = np.random.default_rng(0)
    made = {each.file: each for each in graphs.of_model(model)}
    for file, about in made.items():
        inputs = []
        for kind in about.about["inputs"].values():
            sizes = kind.partition("[")[2].rstrip("]").split(",")
            inputs.append(rng.random([3, *map(int, sizes[1:])]).astype(np.float32))
        for given, expected in zip(
            run(about.content, *inputs), _expected(model, file, inputs), strict=True
        ):
            np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
    assert set(made) == {"encode.onnx", "decode.onnx"}


def _expected(model: jaxvae.Trained, file: str, inputs: list[np.ndarray]) -> list[Any]:
    params, answers = model.params, model.model
    if file == "decode.onnx":
        return [jax.vmap(lambda *z: answers.decode(params, *z).mean)(*inputs)]  # type: ignore[misc]
    pair = jaxvae.models.Conditioned(*inputs) if len(inputs) > 1 else inputs[0]
    q = jax.vmap(lambda x: mean_of(answers.encode(params, x)))(pair)  # type: ignore[misc]
    return [q]


def test_what_has_no_operator_is_refused(tmp_path: Path) -> None:
    model = model_of("vq-vae", tmp_path / "run", codebook_size=8, blocks=0, hidden=(4,), latent=2)
    with pytest.raises(ValueError, match=r"encode.onnx: no operator of ONNX .*leave out --onnx"):
        graphs.of_model(model)
