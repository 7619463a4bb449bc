"""Metrics of a split: what is known of models and data that were made for it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxvae import datasets, evaluation, models
from jaxvae.distributions import Mixture, MultivariateNormal, Normal
from jaxvae.evaluation import METRICS, SOURCES, Data

KEY = jax.random.key(0)


def identity(scale: float = 0.1, prior: Any = None) -> models.Model:
    """z = x [2], but for a little noise both ways."""
    near = lambda mean: Normal(mean, jnp.full(2, scale))
    prior = Normal(jnp.zeros(2), jnp.ones(2)) if prior is None else prior
    return models.Model(
        init=lambda key, x: {},
        encode=lambda params, x: near(x),
        decode=lambda params, z, condition=None: near(z),
        draw=lambda params, key, condition=None: prior.sample(key),
        prior=lambda params, condition=None: prior,
    )


CENTRES = np.array([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]], np.float32)


def clusters(count: int, seed: int = 0) -> datasets.Split:
    """Three clusters, sorted by class."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.arange(count) % 3).astype(np.int32)
    x = CENTRES[labels] + 0.5 * rng.normal(size=(count, 2))
    return datasets.Split(x.astype(np.float32), labels)


OF_CLUSTERS = Mixture(jnp.zeros(3), Normal(jnp.asarray(CENTRES), jnp.full((3, 2), 0.5)))


def test_posteriors_and_means_of_a_split_are_stacked() -> None:
    split = clusters(7).replace(preprocess=lambda key, x: 2 * x)
    q = evaluation.posteriors_of(identity(), {}, KEY, split, batch_size=3)
    np.testing.assert_allclose(q.loc, 2 * split.x, rtol=1e-6)
    np.testing.assert_allclose(q.scale, 0.1, rtol=1e-6)
    means = evaluation.encode_split(identity(), {}, KEY, split, batch_size=4)
    np.testing.assert_allclose(means, 2 * split.x, rtol=1e-6)
    np.testing.assert_allclose(evaluation.preprocessed_split(KEY, split), 2 * split.x, rtol=1e-6)


def test_decompositions_have_three_parts_or_two() -> None:
    """The whole is KL in closed form; mutual information of far posteriors is log N."""
    data = Data(clusters(30))
    found = METRICS["decompose"](identity(0.001), {}, KEY, data)
    assert found["mutual_information"] == pytest.approx(np.log(30), abs=1e-3)
    parts = found["total_correlation"] + found["dimension_wise_kl"]
    assert found["marginal_kl"] == pytest.approx(parts, abs=1e-4)
    kl = (0.5 * (0.001**2 + data.test.x**2 - 1) - np.log(0.001)).sum(1).mean()
    assert found["mutual_information"] + found["marginal_kl"] == pytest.approx(kl, rel=0.01)
    two = METRICS["decompose"](identity(0.001, OF_CLUSTERS), {}, KEY, data)
    assert set(two) == {"mutual_information", "marginal_kl"}


def test_clusters_are_the_components_of_the_prior() -> None:
    split = clusters(60)
    model = identity(prior=OF_CLUSTERS)
    assert METRICS["clustering"](model, {}, KEY, Data(split))["clustering_accuracy"] == 1.0
    half = split.replace(y=np.where(np.arange(60) % 2, split.y, -1))
    assert METRICS["clustering"](model, {}, KEY, Data(half))["clustering_accuracy"] == 1.0


@pytest.mark.slow
def test_samples_of_the_data_are_as_good_as_the_data() -> None:
    data = Data(clusters(90, 1), clusters(600))
    good = METRICS["samples"](identity(prior=OF_CLUSTERS), {}, KEY, data)
    assert good["classifier_accuracy"] > 0.95 and good["precision"] > 0.8 and good["recall"] > 0.8
    far = METRICS["samples"](identity(), {}, KEY, data)
    assert far["frechet_distance"] > 2 * good["frechet_distance"] > 0
    assert far["recall"] < good["recall"]


def test_reconstructions_are_measured_in_decibels() -> None:
    """An error of a tenth is 20 dB."""
    x = np.random.default_rng(0).uniform(0, 0.8, (40, 2)).astype(np.float32)
    decode = lambda params, z, condition=None: Normal(z + 0.1, jnp.ones(2))
    model = identity()._replace(decode=decode)
    found = METRICS["reconstructions"](model, {}, KEY, Data(datasets.Split(x)))
    assert found == {"psnr": pytest.approx(20.0, abs=1e-4)}
    split = clusters(300).replace(preprocess=lambda key, x: 0.05 * x + 0.4)
    exact = METRICS["reconstructions"](identity(), {}, KEY, Data(split, split))
    assert exact["psnr"] > 90 and exact["frechet_distance_of_reconstructions"] < 1e-6


def test_factors_of_rendered_images_are_scored() -> None:
    """Codes that are the factors themselves."""
    grid = datasets.shapes.images()
    rows = np.random.default_rng(0).choice(len(grid), 300, replace=False)
    split = datasets.Split(grid[rows], preprocess=lambda key, image: image.factors * 1.0)
    exact = models.Model(
        init=lambda key, x: {}, encode=lambda params, x: Normal(x, jnp.ones_like(x))
    )
    found = METRICS["factors"](exact, {}, KEY, Data(split))
    assert found["mig"] > 0.6 and found["modularity"] > 0.9 and found["beta_vae_score"] > 0.95
    assert found["gaussian_total_correlation"] < 0.1


@pytest.mark.parametrize("name", SOURCES)
def test_sources_draw_where_the_encodings_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three clusters: every source has their moments, and all but the two that are fitted by
    few steps of gradient descent have the clusters.
    """
    from jaxvae import fitted

    for fit in ("density_by_gradient", "second_stage"):
        short = getattr(fitted, fit)
        monkeypatch.setattr(fitted, fit, lambda *args, short=short: short(*args, num_steps=200))
    train = clusters(600)
    model = identity(prior=OF_CLUSTERS)
    z = np.asarray(evaluation.source(name, model, {}, KEY, train).sample(KEY, (400,)))
    assert z.shape == (400, 2)
    np.testing.assert_allclose(z.mean(0), train.x.mean(0), atol=0.8)
    np.testing.assert_allclose(z.std(0), train.x.std(0), rtol=0.35)
    nearest = np.linalg.norm(z[:, None] - CENTRES, axis=-1).min(1)
    if name not in ("coupling", "second_stage"):
        expected = stats.rayleigh(scale=0.5).ppf([0.5, 0.9])
        np.testing.assert_allclose(np.quantile(nearest, [0.5, 0.9]), expected, rtol=0.15)


def test_a_mixture_has_as_many_components_as_are_asked_for() -> None:
    train = clusters(60)
    mixture = evaluation.source("gaussian_mixture", identity(), {}, KEY, train, components=3)
    centres = np.asarray(mixture.components.loc)
    assert len(centres) == 3
    assert (np.linalg.norm(centres[:, None] - CENTRES, axis=-1).min(1) < 0.5).all()


def test_a_prior_without_a_density_can_be_drawn_from() -> None:
    model = identity()._replace(prior=None)
    z = np.asarray(evaluation.source("model", model, {}, KEY).sample(KEY, (40, 25)))
    assert z.shape == (40, 25, 2)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3


def test_a_fitted_density_sees_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3,000 training examples, sorted by class, 300 are encoded."""
    source = evaluation.source("aggregate", identity(), {}, KEY, clusters(3000), encodings=300)
    which = np.linalg.norm(np.asarray(source.components.loc)[:, None] - CENTRES, axis=-1).argmin(1)
    assert (np.bincount(which, minlength=3) > 60).all() and len(which) == 300


CONDITIONED = identity()._replace(parts=lambda example: (example, example))
FULL = identity()._replace(
    encode=lambda params, x: {"a": x, "b": x},
)
SPLIT, UNLABELLED = clusters(12), datasets.Split(clusters(12).x)
measure = lambda names, model, *data: evaluation.measure(names, model, {}, KEY, Data(*data))
FAULTS = {
    "a metric that is none": (lambda: measure(["beauty"], identity(), SPLIT), "no metric 'beauty'"),
    "a source that is none": (
        lambda: measure(["samples"], identity(), SPLIT, SPLIT, "dreams"),
        "no source 'dreams'",
    ),
    "a source for nothing": (
        lambda: measure(["clustering"], identity(), SPLIT, SPLIT, "coupling"),
        "--prior coupling says what --samples",
    ),
    "a condition": (lambda: measure(["decompose"], CONDITIONED, SPLIT), "without a condition"),
    "a condition and a source": (
        lambda: evaluation.source("aggregate", CONDITIONED, {}, KEY, SPLIT),
        "of all conditions at once",
    ),
    "no training examples": (
        lambda: evaluation.source("coupling", identity(), {}, KEY),
        "needs the training examples in memory",
    ),
    "no labels for samples": (
        lambda: measure(["samples"], identity(), SPLIT, UNLABELLED),
        "--samples needs a set with labels",
    ),
    "no labels for clusters": (
        lambda: measure(["clustering"], identity(prior=OF_CLUSTERS), UNLABELLED),
        "--clustering needs a set with labels",
    ),
    "no mixture": (
        lambda: measure(["clustering"], identity(), SPLIT),
        "a prior that is a mixture: .*this one is a Normal",
    ),
    "no factors": (lambda: measure(["factors"], identity(), SPLIT), "factors are known"),
    "no encoder": (
        lambda: measure(["decompose"], identity()._replace(encode=None), SPLIT),
        "--decompose needs a model that answers encode and prior, and this one has no encode",
    ),
    "no decoder": (
        lambda: measure(["samples"], identity()._replace(decode=None), SPLIT, SPLIT),
        "--samples needs a model that answers decode",
    ),
    "latents that are no vector": (
        lambda: evaluation.source(
            "gaussian_mixture",
            identity()._replace(encode=lambda params, x: MultivariateNormal(x, jnp.eye(2))),
            {},
            KEY,
            SPLIT.replace(x=np.zeros((12, 2), np.float32)),
            encodings=3,
        ),
        "10 components need",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_measured_is_said_in_a_sentence(fault: str) -> None:
    call, words = FAULTS[fault]
    with pytest.raises(ValueError, match=words):
        call()
