"""Metrics beside the likelihood: of latents, samples, factors and clusters.

A new metric is a function and a row of ``METRICS``. Each takes ``(model, params, key, Data)`` and
returns numbers by name. Its errors say what the model or the data lack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.contracts import Array, Params
from jaxvae.datasets import (
    Split,
    examples_of,
    num_examples,
    preprocessed,
    random_subset,
    shapes,
)
from jaxvae.distributions import Hierarchy, Mixture, mean_of
from jaxvae.evaluation import (
    clusters,
    decompositions,
    disentanglement,
    modalities,
    nuisances,
    samples,
)
from jaxvae.evaluation.columns import batched, over_split, require
from jaxvae.evaluation.encodings import as_matrix, encode_split, posteriors_of, preprocessed_split
from jaxvae.evaluation.sources import is_conditional, source
from jaxvae.models import Gated, Model, answers

# Locatello et al. 2018 (arXiv:1811.12359) fit the scores of disentanglement on 10,000 examples and
# test on 5,000. A smaller split is divided 2 : 1.
FIT_AND_TEST = 10_000, 5000
FOR_CLASSIFIER = 10_000  # training examples that the classifier of samples learns from, at most


class Data(NamedTuple):
    """The data that metrics are computed on."""

    test: Split  # the split that is judged
    train: Split | None = None  # the training examples, where they are in memory
    source: str = "model"  # where the z of samples comes from, one of ``SOURCES``


def measure(
    names: Sequence[str], model: Any, params: Params, key: Array, data: Data
) -> dict[str, float]:
    """The numbers of some of ``METRICS``, by name.

    Args:
      names: the metrics to compute.
      model: a ``models.Model``, or what ``models.answers`` takes.
      params: its parameters.
      key: the key of all draws.
      data: the splits, and where z is drawn from.

    Raises ValueError if the model or the data lack something that a metric needs.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"there is no metric {unknown[0]!r}; there are {', '.join(METRICS)}")
    if data.source != "model" and "samples" not in names:
        raise ValueError(
            f"--prior {data.source} says what --samples are drawn from, and these were not asked "
            "for"
        )
    model = answers(model)
    if names and is_conditional(model, data.test):
        flags = ", ".join(f"--{name}" for name in METRICS)
        raise ValueError(f"{flags} are of models without a condition, and this one has one")
    numbers: dict[str, float] = {}
    for name in names:
        numbers |= METRICS[name](model, params, key, data)
    return numbers


def decompose(model: Model, params: Params, key: Array, data: Data) -> dict[str, float]:
    """E KL(q(z|x) || p(z)) over a split in three parts, in nats.

    Chen et al. 2018, arXiv:1802.04942. If the posterior or the prior has no density for each
    coordinate, there are two parts: the mutual information and the KL of the marginal.
    """
    require(model, "--decompose", "encode", "prior")
    q, p = posteriors_of(model, params, key, data.test), model.prior(params)  # type: ignore[misc]
    names: tuple[str, ...] = ("mutual_information", "marginal_kl")
    if decompositions.is_factorized(q) and decompositions.is_factorized(p):
        names = ("mutual_information", "total_correlation", "dimension_wise_kl", "marginal_kl")
        parts: Any = decompositions.decomposition(q, p, key)
    else:
        try:
            parts = decompositions.surgery(q, p, key)
        except TypeError as error:  # a flow without an inverse
            raise ValueError(
                "--decompose needs the density of q(z|x) at given latents, and the posterior, a "
                f"{type(q).__name__}, knows it at its own draws only; choose another --posterior"
            ) from error
    return {name: getattr(parts, name).value for name in names}


def sample_quality(model: Model, params: Params, key: Array, data: Data) -> dict[str, float]:
    """Samples of x beside a split, in features of a classifier of the training examples.

    As many are drawn as the split has examples. The scores are Fréchet's distance (Heusel et al.
    2017, arXiv:1706.08500), precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991),
    density and coverage (Naeem et al. 2020, arXiv:2002.09797), and a test for copies of training
    examples (Meehan et al. 2020, arXiv:2004.05675).
    """
    require(model, "--samples", "decode")
    classifier, train = _classifier(key, data.train)
    generated = generate(model, params, key, num_examples(data.test.x), data)
    real = preprocessed_split(key, data.test)
    of_real, of_generated, of_train = map(classifier.features, (real, generated, train))
    pair = samples.precision_recall(of_real, of_generated)
    other = samples.density_coverage(of_real, of_generated)
    copies = samples.data_copying(of_generated, of_real, of_train)
    return {
        "classifier_accuracy": classifier.accuracy,
        "frechet_distance": samples.frechet(of_real, of_generated),
        "precision": pair.precision,
        "recall": pair.recall,
        "density": other.density,
        "coverage": other.coverage,
        "copies_z_score": copies.z_score,
    }


def reconstruction_quality(
    model: Model, params: Params, key: Array, data: Data
) -> dict[str, float]:
    """Decoder means at posterior means beside the examples, whose values are taken to be in [0, 1].

    ``psnr`` is the mean over examples of -10 log10 of the mean squared error, in decibels. If there
    are labels, the Fréchet distance is in features of a classifier that learned them.
    """
    require(model, "--reconstructions", "encode", "decode")

    def one(params: Params, key: Array, raw: Any) -> tuple[Array, Array]:
        example = preprocessed(key, raw)
        x, condition = model.parts(example)
        z = mean_of(model.encode(params, example))  # type: ignore[misc]
        return x, jnp.clip(model.decode(params, z, condition).mean, 0, 1)  # type: ignore[misc]

    x, decoded = over_split(batched(one, 1), params, key, examples_of(data.test), 100)
    errors = ((x - decoded) ** 2).reshape(len(x), -1).mean(1)
    found = {"psnr": float(np.mean(-10 * np.log10(np.maximum(errors, 1e-10))))}
    if data.train is None or not _are_labels(data.train.y):
        return found
    classifier, _ = _classifier(key, data.train)
    distance = samples.frechet(classifier.features(x), classifier.features(decoded))
    return found | {"frechet_distance_of_reconstructions": distance}


def generate(model: Model, params: Params, key: Array, count: int, data: Data) -> np.ndarray:
    """Samples of x, [count, ...].

    Args:
      model: a ``models.Model`` that answers ``decode``.
      params: its parameters.
      key: the key of all draws.
      count: how many samples to draw.
      data: names the source of z, and holds the training examples that it may need.
    """
    key_z, key_x = jax.random.split(key)
    z = source(data.source, model, params, key, data.train).sample(key_z, (count,))
    draw = lambda z, key: model.decode(params, z).sample(key)  # type: ignore[misc]
    return np.asarray(jax.jit(jax.vmap(draw))(z, jax.random.split(key_x, count)))


def _classifier(key: Array, train: Split | None) -> tuple[samples.Classifier, np.ndarray]:
    """A classifier of training examples, and the examples as the model takes them."""
    labels = None if train is None else train.y
    if not isinstance(train, Split) or not _are_labels(labels):
        raise ValueError(
            "--samples needs a set with labels in memory to learn features from, and there are none"
        )
    subset = random_subset(train.take(np.flatnonzero(np.asarray(labels) >= 0)), FOR_CLASSIFIER)
    x = preprocessed_split(key, subset)
    return samples.classifier_features(x, subset.y, key), x


def _are_labels(y: Any) -> bool:
    """Whether there is an integer for each example, and not -1 for all of them."""
    integers = isinstance(y, np.ndarray) and np.issubdtype(y.dtype, np.integer)
    return integers and y.ndim == 1 and bool((y >= 0).any())


def factor_scores(model: Model, params: Params, key: Array, data: Data) -> dict[str, float]:
    """Scores of the posterior means beside the factors that the images were rendered from.

    The settings follow Locatello et al. 2018, arXiv:1811.12359.
    """
    if not isinstance(data.test.x, shapes.Images):
        raise ValueError(
            "--factors needs a set whose factors are known, --dataset shapes; this one has none"
        )
    require(model, "--factors", "encode")
    codes = as_matrix(encode_split(model, params, key, data.test))
    factors = np.asarray(data.test.x.factors)
    cut = len(codes) * FIT_AND_TEST[0] // sum(FIT_AND_TEST)
    train, test = (codes[:cut], factors[:cut]), (codes[cut:], factors[cut:])
    scores = disentanglement
    dci = scores.dci(train, test)
    return {
        "beta_vae_score": scores.beta_vae(codes.__getitem__, factors, key),
        "factor_vae_score": scores.factor_vae(codes.__getitem__, factors, key),
        "mig": scores.mig(codes, factors),
        "sap": scores.sap(codes, factors),
        "dci_disentanglement": dci.disentanglement,
        "dci_completeness": dci.completeness,
        "dci_informativeness": dci.informativeness,
        "modularity": scores.modularity(scores.mutual_information(codes, factors)),
        "explicitness": scores.explicitness(train, test),
        "irs": scores.irs(codes, factors),
        "gaussian_total_correlation": scores.gaussian_total_correlation(codes),
        "normalized_wasserstein_correlation": scores.normalized_wasserstein_correlation(codes),
        "mean_mutual_information": scores.mean_mutual_information(codes),
    }


def clustering(model: Model, params: Params, key: Array, data: Data) -> dict[str, float]:
    """How well the components of the prior agree with the labels.

    The accuracy is of the best map from components to labels (Xie et al. 2016, arXiv:1511.06335).
    """
    labels = data.test.y
    if not _are_labels(labels):
        raise ValueError("--clustering needs a set with labels, and this one has none")
    labelled = data.test.take(np.flatnonzero(np.asarray(labels) >= 0))
    assigned = clusters_of(model, params, key, labelled)
    return {"clustering_accuracy": clusters.accuracy(assigned, labelled.y)}


def clusters_of(model: Model, params: Params, key: Array, examples: Any) -> np.ndarray:
    """The prior's component that is most responsible for each posterior mean, [N]."""
    require(model, "--clustering", "encode", "prior")
    prior = model.prior(params)  # type: ignore[misc]
    if not isinstance(prior, Hierarchy | Mixture | Gated):
        raise ValueError(
            "--clustering needs a prior that is a mixture: gmvae, vade, infinite-vae, or --prior "
            f"mixture; this one is a {type(prior).__name__}"
        )

    means = encode_split(model, params, key, examples)
    if isinstance(prior, Gated):
        return means["expert"].argmax(-1)
    mixture = prior

    def component(z: Array) -> Array:
        if not isinstance(mixture, Hierarchy):
            return mixture.responsibilities(z).argmax()
        conditional, _, rest = mixture.given(z)
        return conditional.responsibilities(rest).argmax()

    return np.asarray(jax.jit(jax.vmap(component))(jnp.asarray(means)))


def of_views(model: Model, params: Params, key: Array, data: Data) -> dict[str, float]:
    """Likelihoods of views and of the others given one, and coherence if there are labels.

    Shi et al. 2019, arXiv:1911.03393.
    """
    require(model, "--modalities", "seen", "log_weights", "encode", "decode")
    found = modalities.likelihoods(model, params, key, data.test)
    if data.train is None or not (_are_labels(data.train.y) and _are_labels(data.test.y)):
        return found
    return found | modalities.coherence(model, params, key, data.test, data.train)


def augmentation(model: Model, params: Params, key: Array, data: Data) -> dict[str, float]:
    """Accuracies on speakers that a classifier has not seen, with and without their codes.

    Hsu et al. 2017, arXiv:1707.06265.
    """
    require(model, "--augmentation", "encode", "decode")
    assert data.train is not None
    return nuisances.transfers(model, params, key, data.train, data.test)


Metric = Callable[[Model, Params, Array, Data], dict[str, float]]
METRICS: dict[str, Metric] = {
    "decompose": decompose,
    "samples": sample_quality,
    "reconstructions": reconstruction_quality,
    "factors": factor_scores,
    "clustering": clustering,
    "modalities": of_views,
    "augmentation": augmentation,
}
