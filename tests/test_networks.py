"""Networks: names of layers, Flax modules, training noise, and JAX's debugging modes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxvae import networks

KEY = jax.random.key(0)
NETWORKS = {  # network, input, names of its layers
    "mlp": (networks.mlp((4, 3), 2), jnp.ones(5), {"hidden_0", "hidden_1", "output"}),
    "affine": (networks.mlp((), 2), jnp.ones(5), {"output"}),
    "conv encoder": (
        networks.convolutional_encoder((2, 3), 2),
        jnp.ones((4, 4, 1)),
        {"conv_0", "conv_1", "output"},
    ),
    "conv decoder": (
        networks.convolutional_decoder((3, 2), (4, 4, 1)),
        jnp.ones(2),
        {"input", "deconv_0", "deconv_1"},
    ),
    "residual encoder": (
        networks.residual_encoder((2,), 2, blocks=1),
        jnp.ones((4, 4, 1)),
        {"conv_0", "stage_0", "output"},
    ),
    "residual decoder": (
        networks.residual_decoder((2,), (4, 4, 1), blocks=1),
        jnp.ones(2),
        {"input", "stage_0", "deconv_0"},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_have_names_of_ours(name: str) -> None:
    network, x, layers = NETWORKS[name]
    params = jax.eval_shape(network.init, KEY, x)
    assert set(params) == layers
    if "stage_0" in params:
        assert set(params["stage_0"]) == {"norm_0", "conv_0", "norm_1", "conv_1"}


def test_initial_values_of_an_mlp_are_those_of_flax() -> None:
    """Flax derives them from its own names, which parameters no longer have."""

    class MLP(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            hidden = jax.nn.relu(linen.Dense(4)(x))
            return linen.Dense(2)(hidden)

    theirs = jax.jit(MLP().init)(KEY, jnp.ones(5))["params"]
    ours = networks.mlp((4,), 2).init(KEY, jnp.ones(5))
    for ours_name, name in (("hidden_0", "Dense_0"), ("output", "Dense_1")):
        np.testing.assert_array_equal(ours[ours_name]["kernel"], theirs[name]["kernel"])


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_run_without_jit(name: str) -> None:
    network, x, _ = NETWORKS[name]
    params = network.init(KEY, x)
    with jax.disable_jit():
        output = network.apply(params, x)
    np.testing.assert_allclose(output, network.apply(params, x), rtol=1e-4, atol=1e-6)


def test_initial_values_are_drawn_without_jit() -> None:
    network = networks.mlp((), 2)
    with jax.disable_jit():
        params = network.init(KEY, jnp.ones(3))
    expected = network.init(KEY, jnp.ones(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_nan_is_found_where_it_arises(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    network, x, _ = NETWORKS[name]
    params = network.init(KEY, x)
    layer = next(layer for layer in ("conv_0", "input", "hidden_0", "output") if layer in params)
    params[layer]["kernel"] *= jnp.nan
    operation = "conv_general_dilated" if layer == "conv_0" else "dot_general"
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match=rf"\(nan\).* {operation}"):
        jax.jit(network.apply)(params, x)
    capsys.readouterr()  # JAX prints that it calls the function again without jit


class Dropping(linen.Module):
    """A layer and dropout."""

    @linen.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        return linen.Dropout(0.5)(linen.Dense(200)(x), deterministic=deterministic)


CHANGED = {
    "as it is": lambda network: network,
    "renamed": lambda network: networks.renamed(network, {"Dense_0": "layer"}),
    "scaled": lambda network: networks.scaled_input(network, 1.0),
    "sliced": lambda network: networks.on_slice(network, slice(None)),
    "with precision": networks.with_precision,
}


@pytest.mark.parametrize("change", CHANGED)
def test_dropout_is_in_training_alone(change: str) -> None:
    network, x = CHANGED[change](networks.from_linen(Dropping())), jnp.ones(3)
    params = network.init(KEY, x)
    whole = network.apply(params, x)
    noisy = [networks.in_training(network, jax.random.key(i)).apply(params, x) for i in (1, 1, 2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert (noisy[0] != noisy[2]).any()
    kept = noisy[0] != 0
    assert 60 < kept.sum() < 140  # of 200, ten standard deviations to either side
    np.testing.assert_allclose(noisy[0][kept], 2 * whole[kept], rtol=1e-6)


def test_a_network_without_noise_is_the_same_in_training() -> None:
    network = networks.mlp((4,), 2)
    assert networks.in_training(network, KEY) is network


def test_a_module_with_running_moments_is_refused() -> None:
    class Normalized(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> Any:
            return linen.BatchNorm(use_running_average=False, axis_name=None)(x[None])

    with pytest.raises(ValueError, match=r"only collection is params.*batch_stats"):
        networks.from_linen(Normalized()).init(KEY, jnp.ones(3))
