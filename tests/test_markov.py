"""VAEs whose latents are a Markov chain, beside joint Gaussians and exact posteriors."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxvae import datasets, families, figures, likelihoods, models, networks, posteriors, priors
from jaxvae.distributions import MarkovChain, Normal, tempered
from jaxvae.families import Data
from jaxvae.figures import album, decoding

KEY = jax.random.key(0)
SIZES = (2, 3, 1)
RNG = np.random.default_rng(0)
MAPS = [RNG.normal(size=(above, below)) for below, above in itertools.pairwise(SIZES)]
FIRST = np.array([0.3, -1.0]), np.array([0.5, 2.0])
SCALES = 0.7, 1.3


def step(scale: float) -> Any:
    return lambda kernel, v: Normal(kernel @ v + 0.1, jnp.full(kernel.shape[0], scale))


STEPS = tuple(map(step, SCALES))


def chain(reverse: bool) -> MarkovChain:
    maps = tuple(jnp.asarray(kernel, jnp.float32) for kernel in MAPS)
    return MarkovChain(Normal(*map(jnp.array, FIRST)), maps, STEPS, SIZES, reverse)


def joint(reverse: bool, factor: float = 1.0) -> Any:
    """The same chain as one Gaussian: v = A v + b + s e, so v = (I - A)^-1 (b + s e)."""
    links, starts = np.zeros((6, 6)), np.cumsum([0, *SIZES])
    for number, kernel in enumerate(MAPS):
        low, middle, high = starts[number : number + 3]
        links[middle:high, low:middle] = kernel
    bias = np.concatenate([FIRST[0], np.full(4, 0.1)])
    scale = factor * np.concatenate([FIRST[1], np.full(3, SCALES[0]), np.full(1, SCALES[1])])
    whole = np.linalg.inv(np.eye(6) - links)
    order = np.array([5, 2, 3, 4, 0, 1]) if reverse else np.arange(6)
    covariance = (whole * scale**2) @ whole.T
    return stats.multivariate_normal((whole @ bias)[order], covariance[np.ix_(order, order)])


@pytest.mark.parametrize("reverse", [False, True])
def test_a_linear_chain_is_a_joint_gaussian(reverse: bool) -> None:
    density, oracle = chain(reverse), joint(reverse)
    x = np.random.default_rng(1).normal(size=(2, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(density.log_prob(x), oracle.logpdf(x), rtol=1e-4)
    np.testing.assert_allclose(density.mean, oracle.mean, rtol=1e-5)
    noise = density.noise(KEY, (3,))
    drawn, log_prob = jax.vmap(density.from_noise_and_log_prob)(noise)
    np.testing.assert_allclose(log_prob, density.log_prob(drawn), rtol=1e-4)
    draws = np.asarray(jax.jit(lambda key: density.sample(key, (20_000,)))(KEY), np.float64)
    centred = (draws - oracle.mean) @ np.linalg.inv(np.linalg.cholesky(oracle.cov)).T
    assert np.abs(centred.mean(0)).max() < 5 / np.sqrt(20_000)
    assert np.abs(np.cov(centred.T) - np.eye(6)).max() < 5 * np.sqrt(2 / 20_000)


def test_a_temperature_scales_every_vector() -> None:
    x = np.random.default_rng(1).normal(size=6).astype(np.float32)
    cold = tempered(chain(False), 0.5)
    np.testing.assert_allclose(cold.log_prob(x), joint(False, 0.5).logpdf(x), rtol=1e-4)


# The model

LATENTS = (1, 1)


def affine(size: int) -> networks.Network:
    return networks.mlp((), size)


def scalars(likelihood: likelihoods.Likelihood) -> models.VAE:
    """z_2 -> z_1 -> x, all affine, of one number each."""
    pair = affine(2), affine(2)
    return models.markov_vae(affine(2), affine(likelihood.size), [pair], likelihood, LATENTS)


def exact(v: models.VAE) -> tuple[Any, Any]:
    """Parameters at which q is the exact posterior, and p(x).

    z_1 = .8 z_2 + .5 + .6 e and x = 1.5 z_1 - .2 + .7 e. The posterior of a chain is a chain.
    """
    params = v.init(KEY, jnp.zeros(1))
    output = lambda slope, bias, scale: {
        "output": {"kernel": jnp.array([[slope, 0.0]]), "bias": jnp.array([bias, np.log(scale)])}
    }

    def regression(slope: float, bias: float, mean: float, variance: float, noise: float) -> Any:
        """The posterior of z, N(mean, variance), given y = slope z + bias + noise e."""
        total = slope**2 * variance + noise**2
        gain = slope * variance / total
        return output(gain, mean - gain * (slope * mean + bias), noise * np.sqrt(variance / total))

    variance = 0.8**2 + 0.6**2
    params["prior"] = [output(0.8, 0.5, 0.6)]
    params["decoder"] = {"output": {"kernel": jnp.array([[1.5]]), "bias": jnp.array([-0.2])}}
    params["encoder"] = regression(1.5, -0.2, 0.5, variance, 0.7)
    params["posterior"] = [regression(0.8, 0.5, 0.0, 1.0, 0.6)]
    return params, stats.norm(1.5 * 0.5 - 0.2, np.sqrt(1.5**2 * variance + 0.7**2))


def test_the_exact_posterior_has_constant_weights() -> None:
    vae = scalars(likelihoods.normal(0.7))
    (params, evidence), x = exact(vae), jnp.array([0.9])
    weights = models.answers(vae).log_weights(params, KEY, x, 20)
    np.testing.assert_allclose(weights, evidence.logpdf(0.9), rtol=1e-5)


def test_one_vector_is_the_flat_vae() -> None:
    encoder, decoder = networks.mlp((5,), 4), networks.mlp((5,), 3)
    bits = likelihoods.bernoulli()
    chain = models.markov_vae(encoder, decoder, [], bits, (2,))
    flat = models.vae(encoder, decoder, posteriors.normal(2), bits, priors.standard_normal(2))
    params, x = flat.init(KEY, jnp.zeros(3)), jnp.array([0.0, 1.0, 1.0])
    of_chain = params | {"posterior": [], "prior": []}
    weights = [
        models.answers(vae).log_weights(p, KEY, x, 5)
        for vae, p in ((chain, of_chain), (flat, params))
    ]
    np.testing.assert_allclose(*weights, rtol=1e-6)


def test_the_layers_that_are_kept() -> None:
    """All layers: the mean of q. None: the mean of p. The top one alone: z_1 follows from it."""
    vae = scalars(likelihoods.bernoulli())
    params, _ = exact(vae)
    model, x = models.markov_answers(vae, LATENTS), jnp.array([1.0])
    z = vae.encode(params, x).mean
    below = lambda z_2: 0.8 * z_2 + 0.5
    for count, z_1 in ((2, z[0]), (1, below(z[1])), (0, below(0.0))):
        expected = vae.decode(params, jnp.array([z_1, 0.0])).mean
        np.testing.assert_allclose(model.partly(params, x, count).mean, expected, rtol=1e-5)


REFUSED: list[tuple[Any, str]] = [
    (lambda: families.preset("bit-swap", latent=()), "latent is empty: give the dimensions"),
    (
        lambda: models.markov_vae(affine(2), affine(1), [], likelihoods.bernoulli(), (1, 1)),
        "2 vectors of latents need 1 pairs of networks between them; there are 0",
    ),
]


@pytest.mark.parametrize("make, words", REFUSED, ids=[words for _, words in REFUSED])
def test_what_does_not_go_together_is_refused(make: Any, words: str) -> None:
    data = Data("made", (8, 8, 1), "uint8", 17, "scale", 100)
    with pytest.raises(ValueError, match=words):
        families.FAMILIES["markov"].build(make(), data)


def test_traversals_move_the_vector_that_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, decoder = (affine(2), affine(4)), networks.mlp((), (3, 3, 1))
    vae = models.markov_vae(affine(4), decoder, [pair], likelihoods.bernoulli(), (2, 1))
    params = vae.init(KEY, jnp.zeros((3, 3, 1)))
    model, x = models.markov_answers(vae, (2, 1)), np.zeros((4, 3, 3, 1), np.float32)
    moved: list[int] = []

    def traversals(model: Any, params: Any, center: Any, latents: Any, *rest: Any) -> Any:
        moved.extend(latents)
        return decoding.traversals(model, params, center, latents, *rest)

    monkeypatch.setattr(album, "decoding", SimpleNamespace(traversals=traversals))
    figures.draw_all(tmp_path, model, params, KEY, datasets.Split(x), figures=["traversals"])
    assert sorted(moved) == [0, 1]
