"""Estimates against exact values, SciPy and what their definitions say."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Linear
from scipy.special import logsumexp
from scipy.stats import genpareto

from jaxvae import bounds, datasets, evaluation, models


def log_weights(
    vae: models.VAE, params: Any, key: jax.Array, x: Any, count: int, chunk: int
) -> np.ndarray:
    """All K weights at once, drawn with the chunks' keys."""
    log_joint = lambda z: vae.decode(params, z).log_prob(x) + vae.prior(params).log_prob(z)
    q = vae.encode(params, x)
    parts = [
        bounds.log_weights(jax.random.fold_in(key, c), q, log_joint, chunk)
        for c in range(-(-count // chunk))
    ]
    return np.concatenate(parts).astype(np.float64)[:count]


@pytest.mark.parametrize(("count", "chunk"), [(1, 1), (10, 3), (64, 64), (100, 1000), (500, 60)])
def test_chunks_are_the_estimate_of_all_weights_at_once(
    images: np.ndarray, count: int, chunk: int
) -> None:
    linear = Linear(images, 10)
    vae, params = linear.vae(
        "normal", linear.w[:, ::-1] @ np.linalg.qr(np.ones((10, 10)) + np.eye(10))[0]
    )
    key, x = jax.random.key(3), jnp.asarray(images[0])
    estimate = evaluation.log_likelihood(vae, params, key, x, count, chunk)
    log_w = log_weights(vae, params, key, x, count, min(chunk, count))
    assert float(estimate.log_likelihood) == pytest.approx(
        logsumexp(log_w) - np.log(count), abs=1e-4
    )
    effective = np.exp(2 * logsumexp(log_w) - logsumexp(2 * log_w))
    assert float(estimate.effective_samples) == pytest.approx(effective, rel=1e-3)


def test_exact_posteriors_have_all_samples_effective(images: np.ndarray) -> None:
    linear = Linear(images, 10)
    vae, params = linear.vae("multivariate_normal", linear.w)
    result = evaluation.estimate_log_likelihood(
        vae, params, images[:30], jax.random.key(0), num_samples=100
    )
    exact = linear.log_likelihood(images[:30], linear.w, linear.mean, linear.s2)
    assert result.log_likelihood == pytest.approx(exact.mean(), abs=1e-3)
    assert result.standard_error == pytest.approx(exact.std(ddof=1) / np.sqrt(30), rel=1e-3)
    assert result.effective_samples == pytest.approx(100, rel=1e-4)


@pytest.mark.parametrize(("count", "chunk"), [(1, 1), (600, 300), (1500, 1500)])
def test_an_estimate_does_not_depend_on_how_many_examples_are_computed_at_once(
    images: np.ndarray, count: int, chunk: int
) -> None:
    """Each example is drawn with a key of its own; all of 7 (count 1), 3 and then one, or one at
    a time on a CPU.
    """
    linear = Linear(images, 10)
    vae, params = linear.vae("normal", linear.w[:, ::-1])
    settings = {"num_samples": count, "chunk": chunk}
    found = evaluation.estimate_log_likelihood(
        vae, params, images[:7], jax.random.key(0), **settings
    )
    for size in (1, 5):
        again = evaluation.estimate_log_likelihood(
            vae, params, images[:7], jax.random.key(0), batch_size=size, **settings
        )
        assert found.log_likelihood == pytest.approx(again.log_likelihood, rel=1e-5)
        assert found.standard_error == pytest.approx(again.standard_error, rel=1e-4)


@pytest.mark.parametrize("shape", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_pareto_shape_is_that_of_the_tail(shape: float) -> None:
    """On generalized Pareto draws it agrees with the truth, and with SciPy's maximum likelihood,
    before the prior.
    """
    m = 2000
    x = np.sort(genpareto(shape).rvs(m, random_state=1))[::-1]
    log_w = jnp.asarray(
        np.concatenate([np.log(x + 5.0), [np.log(5.0)]]), jnp.float32
    )  # threshold 5
    k = float(evaluation.pareto_shape(log_w))
    likeliest = genpareto.fit(x, floc=0)[0]
    assert k == pytest.approx((m * likeliest + 5) / (m + 10), abs=0.01)
    assert k == pytest.approx(shape, abs=0.1)


def test_pareto_shape_does_not_depend_on_the_scale_of_the_weights() -> None:
    log_w = jnp.sort(jax.random.normal(jax.random.key(0), (101,)))[::-1]
    shifted = evaluation.pareto_shape(log_w - 500.0)
    assert float(evaluation.pareto_shape(log_w)) == pytest.approx(float(shifted), abs=1e-3)


@pytest.mark.parametrize("tail", [1, 4])
def test_short_tails_have_no_shape(tail: int) -> None:
    assert np.isnan(evaluation.pareto_shape(jnp.arange(tail + 1.0)[::-1]))
    assert np.isnan(evaluation.pareto_shape(jnp.zeros(20)))


@pytest.mark.parametrize("n", [1, 7, 10, 23])
def test_batches_leave_the_means_as_they_are(
    small_vae: models.VAE, digits: datasets.Dataset, n: int
) -> None:
    """A ragged last batch, a split smaller than a batch and a set of one example give the mean
    of single examples.
    """
    images = digits.splits["test"].images[:n]
    params = small_vae.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    preprocess, key = datasets.preprocessing("dynamic", 17), jax.random.key(1)
    summary = evaluation.evaluate(
        small_vae, params, images, key, preprocess=preprocess, batch_size=10
    )
    singles = []
    for i, image in enumerate(images):
        key_x, key_z = jax.random.split(jax.random.fold_in(key, i))
        terms = models.elbo_terms(
            small_vae, params, key_z, preprocess(key_x, jnp.asarray(image)), 1
        )
        singles.append(float(terms["reconstruction"] - terms["kl"]))
    assert summary.elbo == pytest.approx(np.mean(singles), rel=1e-5)
    assert summary.num_examples == n
    assert summary.elbo == pytest.approx(summary.reconstruction - summary.kl, rel=1e-6)
    assert sum(summary.kl_per_latent or []) == pytest.approx(summary.kl, rel=1e-5)
    error = np.std(singles, ddof=1) / np.sqrt(n) if n > 1 else 0.0
    assert summary.standard_error == pytest.approx(error, rel=1e-4, abs=1e-6)


def test_active_units_are_the_latents_whose_mean_moves(images: np.ndarray) -> None:
    """With s^2 fixed above the third eigenvalue the optimum of a linear VAE has two columns of
    zeros.
    """
    linear = Linear(images, 4)
    w = linear.w.copy()
    w[:, 2:] = 0.0
    vae, params = linear.vae("normal", w)
    summary = evaluation.evaluate(vae, params, images, jax.random.key(0))
    assert summary.active_units == 2
    np.testing.assert_allclose((summary.kl_per_latent or [])[2:], 0.0, atol=1e-5)


def test_a_split_of_constant_images_has_no_active_unit(small_vae: models.VAE) -> None:
    params = small_vae.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    images = np.zeros((12, 8, 8, 1), np.uint8)
    summary = evaluation.evaluate(
        small_vae,
        params,
        images,
        jax.random.key(1),
        preprocess=datasets.preprocessing("dynamic", 256),
    )
    assert summary.active_units == 0
    assert np.isfinite(summary.elbo)


@pytest.mark.parametrize(
    ("nats", "dimensions", "offset", "bits"),
    [(-784 * np.log(2), 784, 0.0, 1.0), (0.0, 10, 8.0, 8.0), (64 * np.log(256), 64, 8.0, 0.0)],
)
def test_bits_per_dim(nats: float, dimensions: int, offset: float, bits: float) -> None:
    assert evaluation.bits_per_dim(nats, dimensions, offset) == pytest.approx(bits)


def test_memory_of_a_log_likelihood_does_not_grow_with_the_number_of_samples(
    small_vae: models.VAE,
) -> None:
    params = small_vae.init(jax.random.key(0), jnp.zeros((8, 8, 1)))

    def peak(count: int) -> int:
        estimate = lambda key, x: evaluation.log_likelihood(small_vae, params, key, x, count, 500)
        compiled = jax.jit(jax.vmap(estimate)).lower(
            jax.random.split(jax.random.key(0), 8), jnp.zeros((8, 8, 8, 1))
        )
        return compiled.compile().memory_analysis().temp_size_in_bytes

    few, many = peak(500), peak(20_000)
    assert many < 1.5 * few
