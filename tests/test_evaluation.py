"""Estimates against exact values, SciPy and what their definitions say."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Linear
from scipy.special import logsumexp
from scipy.stats import genpareto, multivariate_normal

from jaxvae import bounds, datasets, distributions, evaluation, figures, models
from jaxvae.contracts import pytree
from jaxvae.distributions import MultivariateNormal, Normal


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def log_weights(
    vae: models.VAE, params: Any, key: jax.Array, x: Any, chunks: int, chunk: int
) -> jax.Array:
    """All weights at once, [chunks, chunk], drawn with the chunks' keys."""
    log_joint = lambda z: vae.decode(params, z).log_prob(x) + vae.prior(params).log_prob(z)
    q = vae.encode(params, x)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(chunks))
    return jax.vmap(lambda key: bounds.log_weights(key, q, log_joint, chunk))(keys)


@pytest.mark.parametrize(("count", "chunk"), [(1, 1), (10, 3), (64, 64), (100, 1000), (500, 60)])
def test_chunks_are_the_estimate_of_all_weights_at_once(
    images: np.ndarray, count: int, chunk: int
) -> None:
    linear = Linear(images, 10)
    vae, params = linear.vae(
        "normal", linear.w[:, ::-1] @ np.linalg.qr(np.ones((10, 10)) + np.eye(10))[0]
    )
    key, x = jax.random.key(3), jnp.asarray(images[0])
    estimate = jax.jit(lambda key, x: evaluation.log_likelihood(vae, params, key, x, count, chunk))(
        key, x
    )
    chunk = min(chunk, count)
    parts = log_weights(vae, params, key, x, -(-count // chunk), chunk)
    log_w = np.ravel(parts).astype(np.float64)[:count]
    assert float(estimate.log_likelihood) == pytest.approx(
        logsumexp(log_w) - np.log(count), abs=1e-4
    )
    effective = np.exp(2 * logsumexp(log_w) - logsumexp(2 * log_w))
    assert float(estimate.effective_samples) == pytest.approx(effective, rel=1e-3)


def test_exact_posteriors_have_all_samples_effective(images: np.ndarray) -> None:
    linear = Linear(images, 10)
    vae, params = linear.vae("multivariate_normal", linear.w)
    x, key = images[:30], jax.random.key(0)
    result = evaluation.estimate_log_likelihood(vae, params, key, x, num_samples=100)
    each = evaluation.log_likelihoods(vae, params, key, x, num_samples=100)
    exact = linear.log_likelihood(images[:30], linear.w, linear.mean, linear.s2)
    assert result.log_likelihood == pytest.approx(exact.mean(), abs=1e-3)
    assert result.standard_error == pytest.approx(exact.std(ddof=1) / np.sqrt(30), rel=1e-3)
    assert result.effective_samples == pytest.approx(100, rel=1e-4)
    np.testing.assert_allclose(each, exact, atol=1e-3)
    assert result.warning is None


@pytest.mark.parametrize(("count", "chunk"), [(1, 1), (600, 300), (1500, 1500)])
def test_an_estimate_does_not_depend_on_how_many_examples_are_computed_at_once(
    images: np.ndarray, count: int, chunk: int
) -> None:
    """Each example has its own key. A CPU takes all of 7 (K = 1), three or one at a time."""
    linear = Linear(images, 10)
    vae, params = linear.vae("normal", linear.w[:, ::-1])
    settings = {"num_samples": count, "chunk": chunk}
    each = lambda size: evaluation.log_likelihoods(
        vae, params, jax.random.key(0), images[:7], batch_size=size, **settings
    )
    np.testing.assert_allclose(each(2), each(50), rtol=1e-5)


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
    images = digits.splits["test"].x[:n]
    params = small_vae.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    preprocess, key = datasets.preprocessing("dynamic", 17), jax.random.key(1)
    examples = datasets.Examples(images, preprocess)
    summary = evaluation.evaluate_elbo(small_vae, params, key, examples, batch_size=10)
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
    summary = evaluation.evaluate_elbo(vae, params, jax.random.key(0), images)
    assert summary.active_units == 2
    np.testing.assert_allclose((summary.kl_per_latent or [])[2:], 0.0, atol=1e-5)


def test_a_split_of_constant_images_has_no_active_unit(small_vae: models.VAE) -> None:
    params = small_vae.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    images = np.zeros((12, 8, 8, 1), np.uint8)
    split = datasets.Split(images, preprocess=datasets.preprocessing("dynamic", 256))
    summary = evaluation.evaluate_elbo(small_vae, params, jax.random.key(1), split)
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


# Units: the same values have the same code length, however they are stored


PER_DIMENSION = [  # nats, dimensions, levels, discrete, scaled -> value, unit
    ((-64 * np.log(2), 64, 2, True, False), (1.0, "bits/dim")),
    ((-64 * np.log(256), 64, 256, True, False), (8.0, "bits/dim")),
    ((0.0, 64, 256, False, True), (8.0, "bits/dim")),
    ((64 * np.log(256), 64, 256, False, True), (0.0, "bits/dim")),
    ((-64 * 3.0, 64, None, False, True), (3.0, "nats/dim")),
    ((-64 * 3.0, 64, None, True, False), (3.0, "nats/dim")),
    ((64 * 3.0, 64, 256, False, False), (-3.0, "nats/dim")),
]


@pytest.mark.parametrize(("settings", "expected"), PER_DIMENSION)
def test_the_unit_is_bits_where_the_levels_are_known(settings: tuple, expected: tuple) -> None:
    value, unit = evaluation.per_dimension(*settings)
    assert (value, unit) == (pytest.approx(expected[0], abs=1e-12), expected[1])


def test_bytes_and_the_same_values_as_floats_have_the_same_bits_per_dim() -> None:
    """A Gaussian of faces: 0.7 and 7.7 bits/dim came of one set of values stored in two ways."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6), np.uint8)
    scale = lambda key, x: x / 255.0
    density = models.Model(
        init=lambda key, x: {},
        log_weights=lambda params, key, x, k: jnp.full(
            k, Normal(jnp.full(6, 0.5), jnp.full(6, 0.3)).log_prob(x)
        ),
    )
    splits = (
        datasets.Split(pixels, preprocess=scale),
        datasets.Split((pixels / 255).astype(np.float32)),
    )
    nats = [
        evaluation.estimate_log_likelihood(
            density, {}, jax.random.key(0), split, num_samples=1
        ).log_likelihood
        for split in splits
    ]
    bits = [evaluation.per_dimension(value, 6, 256, False, True) for value in nats]
    assert bits[0][0] == pytest.approx(bits[1][0], abs=1e-5) and bits[0][1] == "bits/dim"
    assert 7 < bits[0][0] < 10
    assert evaluation.per_dimension(nats[1], 6, None, False, True)[1] == "nats/dim"


# Estimates that are not to be trusted


def weighted(log_w: Any) -> models.Model:
    """A model whose log-weights are a function of the key and the number of samples."""
    return models.Model(init=lambda key, x: {}, log_weights=lambda params, key, x, k: log_w(key, k))


WARNINGS = [  # log-weights, K, what is said
    (lambda key, k: jnp.zeros(k), 1, None),
    (lambda key, k: jnp.zeros(k), 1000, None),
    (lambda key, k: 0.5 * jax.random.normal(key, (k,)), 1000, None),
    (lambda key, k: 100.0 * jnp.arange(k), 200, r"to be trusted: 1 effective samples of 200"),
    (lambda key, k: 10 * jax.random.exponential(key, (k,)), 200, r"Pareto k [\d.]+ .*for 100% of"),
    (lambda key, k: 0.9 * jax.random.exponential(key, (k,)), 5000, r"Pareto k 0\.\d+ \(above"),
]


@pytest.mark.parametrize(("log_w", "count", "words"), WARNINGS)
def test_an_estimate_that_is_not_to_be_trusted_says_so(
    log_w: Any, count: int, words: str | None
) -> None:
    """Of weights exp(c e), e exponential, the tail has the shape c."""
    x = np.zeros((4, 1), np.float32)
    found = evaluation.estimate_log_likelihood(
        weighted(log_w), {}, jax.random.key(0), x, num_samples=count, chunk=count
    )
    assert (found.warning is None) == (words is None), found
    assert words is None or re.search(words, found.warning or "")
    assert words is None or "lower bound that may be far too low" in (found.warning or "")


# Answers that are missing, and terms that are more


USES = {
    "an ELBO": (evaluation.evaluate_elbo, "terms"),
    "a log-likelihood": (evaluation.estimate_log_likelihood, "log_weights"),
    "encoding": (evaluation.encode_split, "encode"),
    "posteriors": (evaluation.posteriors_of, "encode"),
}


@pytest.mark.parametrize("use", USES)
def test_an_answer_that_is_missing_is_named(use: str) -> None:
    function, answer = USES[use]
    silent = models.Model(init=lambda key, x: {})
    with pytest.raises(ValueError, match=f"this one has no {answer}"):
        function(silent, {}, jax.random.key(0), np.zeros((3, 2)))


def test_terms_of_a_family_are_reported_beside_the_two_of_every_bound() -> None:
    """A model that answers its terms alone has no latents to speak of."""
    terms = {"reconstruction": -3.0, "kl": 1.5, "kl/1": 1.0, "kl/2": 0.5}
    model = models.Model(
        init=lambda key, x: {},
        terms=lambda params, key, x, k: {name: jnp.sum(x) * value for name, value in terms.items()},
    )
    summary = evaluation.evaluate_elbo(model, {}, jax.random.key(0), np.ones((5, 1)))
    assert summary.elbo == pytest.approx(-4.5)
    assert summary.terms == pytest.approx({"kl/1": 1.0, "kl/2": 0.5})
    assert summary.active_units is None and summary.kl_per_latent is None


# z as a pytree: a linear model of two levels, whose posterior and likelihood are known


@pytree
class TwoLevels:
    """z2 ~ top, z1 | z2 ~ N(gain z2 + loc, L L^T), over z = (z2, z1)."""

    top: Any
    gain: Any
    loc: Any
    scale_tril: Any

    def below(self, z2: Any) -> MultivariateNormal:
        return MultivariateNormal(self.gain @ z2 + self.loc, self.scale_tril)

    @property
    def mean(self) -> tuple:
        return self.top.mean, self.below(self.top.mean).mean

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> tuple:
        keys = jax.random.split(key)
        z2 = self.top.sample(keys[0], shape)
        noise = jax.random.normal(keys[1], (*shape, len(self.loc)))
        return z2, z2 @ self.gain.T + self.loc + noise @ self.scale_tril.T

    def log_prob(self, z: tuple) -> jax.Array:
        return self.top.log_prob(z[0]) + self.below(z[0]).log_prob(z[1])


class TwoLevelVAE:
    """z2 ~ N(0, I), z1 ~ N(A z2, I), x ~ N(B z1, s^2 I), with the exact posterior."""

    def __init__(self, size: int, s: float = 0.5):
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(3, 2)), rng.normal(size=(size, 3)) / 2
        self.covariance = b @ (a @ a.T + np.eye(3)) @ b.T + s**2 * np.eye(size)
        below = np.linalg.inv(np.eye(3) + b.T @ b / s**2)
        given = np.linalg.inv(b @ b.T + s**2 * np.eye(size))
        top = np.linalg.inv(np.eye(2) + (b @ a).T @ given @ (b @ a))
        to_top, to_below = top @ (b @ a).T @ given, below @ b.T / s**2
        lower = (np.linalg.cholesky(top), np.linalg.cholesky(below))
        single = lambda *values: [jnp.asarray(value, jnp.float32) for value in values]
        a, b, eye, to_top, to_below, gain, l2, l1 = single(
            a, b, np.eye(3), to_top, to_below, below @ a, *lower
        )
        standard = Normal(jnp.zeros(2), jnp.ones(2))

        def encode(params: Any, x: Any) -> TwoLevels:
            flat = jnp.ravel(x)
            return TwoLevels(MultivariateNormal(to_top @ flat, l2), gain, to_below @ flat, l1)

        def decode(params: Any, z: tuple) -> Normal:
            return Normal((b @ z[1]).reshape(self.shape), jnp.full(self.shape, s))

        self.shape: tuple[int, ...] = (size,)
        self.vae = models.VAE(
            lambda key, x: {}, encode, decode, lambda p: TwoLevels(standard, a, jnp.zeros(3), eye)
        )


def test_a_model_of_two_levels_has_its_exact_likelihood() -> None:
    """Its posterior is exact, so that every importance weight is p(x)."""
    two, key = TwoLevelVAE(5), jax.random.key(0)
    x = np.random.default_rng(1).normal(size=(12, 5)).astype(np.float32)
    exact = multivariate_normal(np.zeros(5), two.covariance).logpdf(x)
    summary = evaluation.evaluate_elbo(two.vae, {}, key, x, num_samples=3)
    assert summary.elbo == pytest.approx(exact.mean(), abs=1e-3)
    assert summary.active_units == 5 and summary.kl_per_latent is None
    each = evaluation.log_likelihoods(two.vae, {}, key, x, num_samples=20, chunk=7)
    np.testing.assert_allclose(each, exact, atol=1e-3)
    z2, z1 = evaluation.encode_split(two.vae, {}, key, x)
    assert z2.shape == (12, 2) and z1.shape == (12, 3)
    np.testing.assert_allclose(z2[3], distributions.mean_of(two.vae.encode({}, x[3]))[0], rtol=1e-5)
    assert evaluation.as_matrix((z2, z1)).shape == (12, 5)


def test_a_model_of_two_levels_has_every_figure(tmp_path: Path) -> None:
    two = TwoLevelVAE(16)
    two.shape = (4, 4, 1)
    x = np.random.default_rng(1).normal(size=(30, 4, 4, 1)).astype(np.float32)
    reports = [{"step": 1, "loss": 1.0}]
    names = figures.draw_all(tmp_path, two.vae, {}, jax.random.key(0), x, reports=reports)
    special = {"partly", "classify", "seen", "atoms"}  # answers that a VAE does not have
    drawn = [name for name, figure in figures.FIGURES.items() if not special & set(figure.needs)]
    assert names == [f"{name}.png" for name in drawn]
    assert all((tmp_path / name).stat().st_size > 0 for name in names)
