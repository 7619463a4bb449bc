"""The comparison of VAE, autoencoder and GAN: completions beside closed forms, and its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

from experiments import gans
from experiments.papers import augmentation, generative
from jaxvae import models, networks
from jaxvae.distributions import Normal, Point

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def test_a_linear_autoencoder_completes_an_image_by_its_fixed_point() -> None:
    """x_h = W_h P x, which is one linear system."""
    w, p = 0.6 * RNG.normal(size=(5, 2)), 0.3 * RNG.normal(size=(2, 5))
    model = models.Model(
        lambda key, x: {},
        encode=lambda params, x: Point(jnp.float32(p) @ x),
        decode=lambda params, z, condition=None: Normal(jnp.float32(w) @ z, jnp.ones(5)),
    )
    x = np.array([np.nan, np.nan, 0.2, -1.0, 0.7], np.float32)
    a, gaps = w @ p, np.isnan(x)
    expected = np.where(gaps, 0.0, x)
    expected[gaps] = np.linalg.solve(np.eye(2) - a[:2, :2], a[:2, 2:] @ x[2:])
    found = jax.jit(lambda x: generative.completed(model, {}, x, 60))(x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_image_is_inverted_where_scipy_finds_the_minimum() -> None:
    """argmin_z |z|^2 / 2 - log p(x_o|z), of a generator with one affine map of pixels."""
    model = gans.generative(networks.mlp((), (2, 3, 1)), 2)
    kernel, bias = RNG.normal(size=(2, 6)), RNG.normal(size=6)
    params = {"output": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}
    x = np.array([np.nan, np.nan, np.nan, 1, 0, 1])

    def cost(z: np.ndarray) -> float:
        logits = (z @ kernel + bias)[3:]
        return z @ z / 2 + np.logaddexp(0, logits).sum() - x[3:] @ logits

    z = optimize.minimize(cost, np.zeros(2)).x
    invert = jax.jit(lambda x: gans.inverted(model, params, KEY, x, 150, 2))
    found = invert(np.float32(x).reshape(2, 3, 1))
    np.testing.assert_allclose(np.ravel(found), 1 / (1 + np.exp(-z @ kernel - bias)), atol=2e-3)


def test_each_loss_of_the_gan_moves_its_player_alone() -> None:
    """And a critic that knows nothing costs 2 log 2, its generator log 2."""
    generator = networks.Network(lambda key, z: jnp.ones((3, 2)), lambda w, z: w @ z)
    model = gans.generative(generator, 2)
    judge = lambda w, x: networks.Judgement((), jnp.array([w @ x]))
    critic = networks.Network(lambda key, x: jnp.arange(3.0), judge)
    x = jnp.ones(3)
    params = {"generator": model.init(KEY, x), "critic": critic.init(KEY, x)}
    unknowing = params | {"critic": jax.tree.map(jnp.zeros_like, params["critic"])}
    losses = gans.adversarial(model, critic)
    values = lambda params: {name: loss(params, KEY, x, 0)[0] for name, loss in losses.items()}
    slopes = jax.jit(jax.jacrev(values))(params)
    for name, slope in slopes.items():
        norms = {player: optax.tree.norm(part) for player, part in slope.items()}
        assert {player for player, norm in norms.items() if norm > 0} == {name}
    at_chance = jax.jit(values)(unknowing)
    np.testing.assert_allclose(at_chance["generator"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(at_chance["critic"], 2 * np.log(2), rtol=1e-6)


def test_a_cell_that_a_model_cannot_have_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    row = dict.fromkeys(generative.COLUMNS, float("nan"))
    generative.show({"vae": [row | {"ELBO": -22.5}, row | {"ELBO": -22.7}], "gan": [row, row]})
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].split() == ["vae", "gan"]
    (elbo,) = (line for line in lines if line.startswith("ELBO"))
    assert elbo.split() == ["ELBO", "-22.60", "±", "1.27", "-"]
    assert lines[1].split()[-2:] == ["-", "-"]


@pytest.mark.parametrize("script", [augmentation, generative])
def test_a_set_without_labels_is_refused(script: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.ones((12, 4, 4, 1), np.uint8))
    given = {"rows": ("gan",)} if script is generative else {}
    named = {"dataset": str(tmp_path / "images.npy"), "hidden": (3,), "batch_size": 4}
    with pytest.raises(ValueError, match="--dataset needs labels"):
        script.main(script.Options(**named, **given))
