"""What evaluate.py says of a model beyond its likelihood: of its latents, of its samples, of
factors of variation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from wiring import Run

from jaxvae import datasets, distributions, evaluation, fitted, priors

# Points that learn and that judge, as in the study of Locatello et al. 2018 (arXiv:1811.12359): of
# a smaller split two thirds and one.
POINTS = 10_000, 5000
SOURCES = ("model", "aggregate", "gaussian_mixture", "coupling", "second_stage")  # of z


def chosen(
    run: Run,
    params: Any,
    split: datasets.Split,
    decompose: bool,
    samples: bool,
    factors: bool,
    clustering: bool,
    prior: str,
) -> dict[str, float]:
    """Those judgements that were asked for. Raises ValueError for what the model or the set does
    not have.
    """
    if prior != "model" and not samples:
        raise ValueError(
            f"--prior {prior} says what --samples are drawn from, and these were not asked for"
        )
    if (decompose or samples or factors or clustering) and run.config.condition != "none":
        raise ValueError(
            "--decompose, --samples, --factors and --clustering are of models without a condition"
        )
    found = decomposed(run, params, split) if decompose else {}
    found |= judged_samples(run, params, split, prior) if samples else {}
    found |= disentangled(run, params, split) if factors else {}
    return found | (clustered(run, params, split) if clustering else {})


def decomposed(run: Run, params: Any, split: datasets.Split) -> dict[str, float]:
    """E KL(q(z|x) || p(z)) over the split in three parts, nats; in two where there are no
    densities by coordinate.
    """
    q, p, of = posteriors(run, params, split), run.vae.prior(params), evaluation.decompositions
    names: tuple[str, ...] = (
        "mutual_information",
        "total_correlation",
        "dimension_wise_kl",
        "marginal_kl",
    )
    try:
        parts: Any = of.decomposition(q, p, run.key)
    except ValueError:
        names = ("mutual_information", "marginal_kl")
        try:
            parts = of.surgery(q, p, run.key)
        except TypeError as error:  # a flow without an inverse
            raise ValueError(
                f"--decompose needs the density of --posterior {run.config.posterior} at given latents, and it "
                "has that of its own draws alone"
            ) from error
    return {name: getattr(parts, name).value for name in names}


def posteriors(run: Run, params: Any, split: datasets.Split) -> Any:
    """q(z|x) of every example of a split, stacked."""
    keys = jax.random.split(run.key, datasets.num_examples(split.images))
    posterior = jax.jit(lambda key, raw: run.vae.encode(params, run.preprocess(key, raw)))
    return jax.lax.map(
        lambda pair: posterior(*pair), (keys, jnp.asarray(split.images)), batch_size=500
    )


def source(run: Run, params: Any, kind: str, components: int = 10, rows: int = POINTS[0]) -> Any:
    """p(z): the model's prior; the posteriors of training examples; or a density fitted to their
    means.
    """
    if kind == "model":
        return run.vae.prior(params)
    if run.config.condition != "none":
        raise ValueError(
            f"--prior {kind} is of all conditions at once; a conditional model draws from its own prior"
        )
    if run.config.stream:
        raise ValueError(f"--prior {kind} needs the training examples in memory, without --stream")
    examples = run.train[:rows]
    if kind in ("aggregate", "second_stage"):
        q = posteriors(run, params, datasets.Split(examples))
        if kind == "aggregate":
            return evaluation.decompositions.aggregated_posterior(q)
        draws = jax.vmap(lambda q, key: q.sample(key))(q, jax.random.split(run.key, len(examples)))
        return fitted.second_stage(draws, run.key)
    means = evaluation.encode_split(run.vae, params, examples, run.key, preprocess=run.preprocess)
    if kind == "gaussian_mixture":
        return fitted.gaussian_mixture(means, components, run.key)
    return fitted.density_by_gradient(priors.coupling(means.shape[1]), means, run.key).distribution


def clustered(run: Run, params: Any, split: datasets.Split) -> dict[str, float]:
    """Agreement of the prior's components with the labels."""
    if split.labels is None:
        raise ValueError(
            f"--clustering needs a set with labels in memory; {run.dataset.name} has none"
        )
    return {
        "clustering_accuracy": evaluation.clusters.accuracy(
            clusters(run, params, split), split.labels
        )
    }


def clusters(run: Run, params: Any, split: datasets.Split) -> np.ndarray:
    """The component of the prior with the largest responsibility for the posterior mean of every
    example.
    """
    prior = run.vae.prior(params)
    if not isinstance(prior, distributions.Hierarchy | distributions.Mixture):
        raise ValueError(
            "--clustering needs a prior that is a mixture: gmvae, vade, or --prior mixture"
        )

    def responsibilities(z: jax.Array) -> jax.Array:
        if isinstance(prior, distributions.Hierarchy):
            w, z = jnp.split(z, [prior.first.loc.size])
            return prior.then(prior.params, w).responsibilities(z)
        return prior.responsibilities(z)

    means = evaluation.encode_split(
        run.vae, params, split.images, run.key, preprocess=run.preprocess
    )
    return np.asarray(
        jax.jit(jax.vmap(lambda z: responsibilities(z).argmax()))(jnp.asarray(means, jnp.float32))
    )


class Judge(NamedTuple):
    """A classifier that was trained on a set's training examples, to see samples with."""

    classifier: evaluation.samples.Classifier
    train: np.ndarray  # what it was trained on, as the model takes it

    @classmethod
    def of(cls, run: Run) -> Judge:
        """Of the run's data. Raises ValueError where there are no labels in memory."""
        dataset = datasets.select(run.dataset, run.config.train_split)
        if run.config.stream or dataset.labels is None:
            raise ValueError(
                f"--samples needs a set with labels in memory to learn features from; {run.dataset.name} has none"
            )
        train = preprocessed(run, run.train[: POINTS[0]])
        return cls(
            evaluation.samples.classifier_features(train, dataset.labels[: len(train)], run.key),
            train,
        )

    def seen(self, run: Run, images: Any) -> np.ndarray:
        """Features [N, F] of stored images."""
        return self.classifier.features(preprocessed(run, images))


def preprocessed(run: Run, images: Any) -> np.ndarray:
    """Stored images as the model takes them."""
    keys = jax.random.split(run.key, len(images))
    return np.asarray(jax.jit(jax.vmap(run.preprocess))(keys, jnp.asarray(images)))


def judged_samples(run: Run, params: Any, split: datasets.Split, prior: str) -> dict[str, float]:
    """Samples of x beside the split, in features of a classifier that is trained on the training
    examples' labels.
    """
    judge, count = Judge.of(run), len(split.images)
    key_z, key_x = jax.random.split(run.key)
    z = source(run, params, prior).sample(key_z, (count,))
    draw = lambda z, key: run.vae.decode(params, z).sample(key)
    drawn = np.asarray(jax.jit(jax.vmap(draw))(z, jax.random.split(key_x, count)))
    of_real, of_drawn, of_train = (
        judge.seen(run, split.images),
        *map(judge.classifier.features, (drawn, judge.train)),
    )
    pair = evaluation.samples.precision_recall(of_real, of_drawn)
    other = evaluation.samples.density_coverage(of_real, of_drawn)
    copies = evaluation.samples.data_copying(of_drawn, of_real, of_train)
    return {
        "classifier_accuracy": judge.classifier.accuracy,
        "frechet_distance": evaluation.samples.frechet(of_real, of_drawn),
        "precision": pair.precision,
        "recall": pair.recall,
        "density": other.density,
        "coverage": other.coverage,
        "copies_z_score": copies.z_score,
    }


def disentangled(run: Run, params: Any, split: datasets.Split) -> dict[str, float]:
    """Scores of the posterior means beside the factors that the images were rendered from."""
    if not isinstance(split.images, datasets.shapes.Images):
        raise ValueError(
            f"--factors needs a set whose factors are known, --dataset shapes; {run.dataset.name} has none"
        )
    codes = evaluation.encode_split(
        run.vae, params, split.images, run.key, preprocess=run.preprocess
    )
    factors = np.asarray(split.images.factors)
    cut = len(codes) * POINTS[0] // sum(POINTS)
    train, test = (codes[:cut], factors[:cut]), (codes[cut:], factors[cut:])
    scores = evaluation.disentanglement
    dci = scores.dci(train, test)
    return {
        "beta_vae_score": scores.beta_vae(codes.__getitem__, factors, run.key),
        "factor_vae_score": scores.factor_vae(codes.__getitem__, factors, run.key),
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
