"""VAEs: every combination of families, shape errors, users' own functions, NumPyro's distributions, numerics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import optax
import pytest
from flax import nnx

from jaxvae import bounds, datasets, evaluation, likelihoods, models, networks, posteriors, priors, training

SHAPE = (6, 5, 2)
NETWORKS = {
    "mlp": lambda size, output: (networks.mlp((8,), size), networks.mlp((8,), output)),
    "convolutional": lambda size, output: (
        networks.convolutional_encoder((4, 6), size),
        networks.convolutional_decoder((6, 4), output),
    ),
    "residual": lambda size, output: (
        networks.residual_encoder((4,), size, blocks=1),
        networks.residual_decoder((4,), output, blocks=1),
    ),
}


def build(network: str = "mlp", posterior: str = "normal", likelihood: str = "bernoulli") -> models.VAE:
    family, head = posteriors.POSTERIORS[posterior](3), likelihoods.LIKELIHOODS[likelihood](4)
    encoder, decoder = NETWORKS[network](family.size, (*SHAPE[:2], SHAPE[2] * head.size))
    return models.vae(encoder, decoder, family, head, priors.standard_normal(3))


def example(likelihood: str) -> jax.Array:
    """Pixels with four levels, treated as the likelihood takes them."""
    pixels = jax.random.randint(jax.random.key(7), SHAPE, 0, 4).astype(jnp.uint8)
    support = likelihoods.LIKELIHOODS[likelihood](4).support
    return datasets.treatment("dynamic" if "dynamic" in support else support[0], 4)(jax.random.key(8), pixels)


OBJECTIVES = {
    "closed KL": lambda vae: models.negative_elbo(vae, 2),
    "sampled KL": lambda vae: models.negative(bounds.elbo, vae, 2),
    "iwae": lambda vae: models.negative(bounds.iwae, vae, 3),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("network", "posterior", "likelihood"),
    [
        *(("mlp", "normal", likelihood) for likelihood in likelihoods.LIKELIHOODS),
        *((network, "multivariate_normal", "normal_decoded") for network in NETWORKS),
    ],
)
def test_every_family_has_a_finite_loss_and_gradient(
    network: str, posterior: str, likelihood: str, objective: str
) -> None:
    vae, x = build(network, posterior, likelihood), example(likelihood)
    params = vae.init(jax.random.key(0), x)
    loss = OBJECTIVES[objective](vae)
    step = jax.jit(jax.value_and_grad(lambda params: loss(params, jax.random.key(1), x, 0), has_aux=True))
    (value, terms), grads = step(params)
    assert {"reconstruction", "kl"} <= terms.keys()
    for leaf in jax.tree.leaves((value, terms, grads)):
        assert np.isfinite(leaf).all()
    assert vae.decode(params, jnp.zeros(3)).mean.shape == SHAPE
    norms = {part: float(optax.tree.norm(grads[part])) for part in ("encoder", "decoder")}
    assert min(norms.values()) > 0


@pytest.mark.parametrize("network", ["convolutional", "residual"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 9, 3), (28, 20, 1)])
def test_decoders_give_back_any_image_size(network: str, shape: tuple[int, ...]) -> None:
    posterior = posteriors.normal(2)
    encoder, decoder = NETWORKS[network](posterior.size, shape)
    vae = models.vae(encoder, decoder, posterior, likelihoods.bernoulli(), priors.standard_normal(2))
    params = vae.init(jax.random.key(0), jnp.zeros(shape))
    assert vae.decode(params, jnp.zeros(2)).mean.shape == shape


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (5, (8, 8, 1), r"encoder returned shape \(5,\); the posterior needs \(4,\)"),
        (4, (8, 7, 1), r"decoder returned shape \(8, 7, 1\).*must be \(8, 8, 1\)"),
        (4, (64,), r"decoder returned shape \(64,\)"),
    ],
)
def test_shapes_that_disagree_are_named(encoder: int, decoder: tuple[int, ...], message: str) -> None:
    pair = networks.mlp((3,), encoder), networks.mlp((3,), decoder)
    vae = models.vae(*pair, posteriors.normal(2), likelihoods.bernoulli(), priors.standard_normal(2))
    with pytest.raises(ValueError, match=message):
        vae.init(jax.random.key(0), jnp.zeros((8, 8, 1)))


def affine(width: int) -> networks.Network:
    """A user's own pair of functions."""
    init = lambda key, x: 0.1 * jax.random.normal(key, (width, x.size))
    return networks.Network(init, lambda params, x: params @ x.reshape(-1))


def nnx_affine(width: int, inputs: int) -> networks.Network:
    class Affine(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layers = nnx.List([nnx.Linear(inputs, 7, rngs=rngs), nnx.Linear(7, width, rngs=rngs)])

        def __call__(self, x: jax.Array) -> jax.Array:
            first, last = self.layers
            return last(nnx.relu(first(x.reshape(-1))))

    return networks.from_nnx(lambda rngs: Affine(rngs))


@pytest.mark.parametrize("pair", [(affine(4), affine(6)), (nnx_affine(4, 6), nnx_affine(6, 2))], ids=["own", "nnx"])
def test_any_pair_of_functions_trains(pair: tuple[networks.Network, networks.Network]) -> None:
    vae = models.vae(*pair, posteriors.normal(2), likelihoods.normal(0.5), priors.standard_normal(2))
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    algorithm = training.gradient_descent(vae.init, training.batch_mean(models.negative_elbo(vae)), optax.adam(1e-2))
    losses: list[float] = []
    training.fit(
        algorithm, x, num_steps=60, batch_size=25, report=lambda _, r: losses.append(r["loss"]), report_every=10
    )
    assert losses[-1] < losses[0]


def test_an_nnx_module_with_other_state_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nnx\.Param only.*BatchStat"):
        networks.from_nnx(lambda rngs: nnx.BatchNorm(3, rngs=rngs))


def test_bfloat16_networks_keep_float32_parameters_and_densities() -> None:
    pair = [networks.mlp((32,), size, dtype=jnp.bfloat16) for size in (4, (8, 8, 1))]
    exact = [networks.mlp((32,), size) for size in (4, (8, 8, 1))]
    families = posteriors.normal(2), likelihoods.bernoulli(), priors.standard_normal(2)
    half, full = models.vae(*pair, *families), models.vae(*exact, *families)
    x = jnp.ones((8, 8, 1))
    params = half.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    terms = [models.elbo_terms(vae, params, jax.random.key(1), x, 10) for vae in (half, full)]
    assert all(value.dtype == jnp.float32 for value in terms[0].values())
    for name in terms[0]:
        assert float(terms[0][name]) == pytest.approx(float(terms[1][name]), rel=2e-2, abs=2e-2)


def in_numpyro(vae: models.VAE) -> models.VAE:
    """The same model with NumPyro's distributions in all three places."""

    def encode(params: Any, x: Any) -> npd.Distribution:
        q = vae.encode(params, x)
        return npd.Normal(q.loc, q.scale).to_event(1)

    decode = lambda params, z: npd.BernoulliLogits(vae.decode(params, z).logits).to_event(3)
    return vae._replace(
        encode=encode, decode=decode, prior=lambda params: npd.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)
    )


def test_numpyro_distributions_work_wherever_ours_do(small_vae: models.VAE, digits: datasets.Dataset) -> None:
    theirs, images = in_numpyro(small_vae), digits.splits["test"].images[:40]
    treat = datasets.treatment("dynamic", 17)
    params = small_vae.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    key = jax.random.key(1)
    estimate = lambda vae: evaluation.estimate_log_likelihood(vae, params, images, key, treat=treat, num_samples=50)
    np.testing.assert_allclose(estimate(theirs)[:3], estimate(small_vae)[:3], rtol=1e-4)
    ours = evaluation.evaluate(small_vae, params, images, key, treat=treat, num_samples=500)
    sampled = evaluation.evaluate(theirs, params, images, key, treat=treat, num_samples=500)
    assert sampled.kl_per_latent is None
    assert sampled.reconstruction == pytest.approx(ours.reconstruction, rel=1e-4)
    loss = training.treated(treat, training.batch_mean(models.negative_elbo(theirs)))
    algorithm = training.gradient_descent(lambda key, x: params, loss, optax.adam(1e-3))
    state = training.fit(algorithm, images, num_steps=5, batch_size=16)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_kl_weight_multiplies_kl_alone(small_vae: models.VAE) -> None:
    x = jnp.ones((8, 8, 1))
    params, key = small_vae.init(jax.random.key(0), x), jax.random.key(1)
    value, terms = models.negative_elbo(small_vae, kl_weight=lambda step: 0.1 * step)(params, key, x, jnp.int32(7))
    assert float(value) == pytest.approx(float(0.7 * terms["kl"] - terms["reconstruction"]), rel=1e-5)


def test_free_bits_need_latents_that_divide(small_vae: models.VAE) -> None:
    params = small_vae.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    loss = models.free_bits(small_vae, nats=0.1, groups=3)
    keys = jax.random.split(jax.random.key(1), 4)
    with pytest.raises(ValueError, match="2 latents do not divide into 3 groups"):
        loss(params, keys, jnp.zeros((4, 8, 8, 1)), jnp.full(4, 0.25), jnp.int32(0), None)
