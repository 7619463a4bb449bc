"""Test log-likelihoods of the family's priors, posteriors, bounds or noise, all else equal.

``python experiments/papers/likelihoods.py priors|posteriors|bounds|noise
[--dataset binarized_mnist] [--data-dir DIR]``

Networks are 784-300-300-40 (ReLU), with batches of 100 and Adam with a cosine. log p(x) is
estimated by importance sampling with the encoder. Bounds other than the ELBO have no KL term to
warm up: ``--warmup 0`` compares them with it. Posteriors on a sphere have one latent more, so that
they have as many dimensions. They should be ahead where there are few (Davidson et al. 2018).

Published, on statically binarized MNIST after far longer training: VampPrior 85.57 (Tomczak &
Welling 2017); IWAE-5 87.63 where the VAE has 88.71 (Burda et al. 2015); Sylvester flows ahead of
the diagonal posterior, with an ELBO of -83.32 (van den Berg et al. 2018). *noise* takes images of
real values, such as frey_faces. On these, residuals with a banded precision should be ahead of
independent ones (Dorta et al. 2018).
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import math
from typing import Annotated, Any, Literal

import tyro

from experiments import tables
from jaxvae import datasets, evaluation, runs, settings
from jaxvae.command_line import run_function
from jaxvae.families import preset

TABLES: dict[str, dict[str, Any]] = {
    "priors": {
        "standard": preset("digits"),
        "mixture": preset("digits", prior="mixture"),
        "vampprior": preset("digits", prior="vampprior"),
        "vampprior_data": preset("digits", prior="vampprior_data"),
        "coupling": preset("digits", prior="coupling"),
        "autoregressive": preset("digits", prior="autoregressive", prior_steps=2),
    },
    "posteriors": {
        "diagonal": preset("digits"),
        "full covariance": preset("digits", posterior="multivariate_normal"),
        "planar": preset("digits", posterior="planar", flow_steps=8),
        "radial": preset("digits", posterior="radial", flow_steps=8),
        "householder": preset("digits", posterior="householder"),
        "sylvester": preset("digits", posterior="sylvester"),
        "triangular sylvester": preset("digits", posterior="triangular_sylvester"),
        "iaf": preset("digits", posterior="inverse_autoregressive"),
        "von mises-fisher": preset("digits", posterior="von_mises_fisher"),
        "power spherical": preset("digits", posterior="power_spherical"),
        "spike and slab": preset("digits", posterior="spike_and_slab"),
        "denoising": preset("digits", corruption="salt_and_pepper", corruption_level=0.05),
    },
    "bounds": {
        "elbo": preset("digits"),
        "iwae": preset("digits", bound="iwae", num_samples=5),
        "miwae": preset("digits", bound="miwae", num_samples=8, groups=2),
        "piwae": preset("digits", bound="piwae", num_samples=8, groups=2),
        "ciwae": preset("digits", bound="ciwae", num_samples=5, elbo_weight=0.05),
    },
    "noise": {
        "fixed": preset("digits", likelihood="normal"),
        "learned": preset("digits", likelihood="normal_learned"),
        "decoded": preset("digits", likelihood="normal_decoded"),
        "structured": preset("digits", likelihood="normal_banded"),
    },
}
SPHERES = ("von_mises_fisher", "power_spherical")  # of one dimension less than their latents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    table: tyro.conf.Positional[Literal[tuple(TABLES)]]  # type: ignore[valid-type]
    """What differs between the rows."""
    dataset: str = "binarized_mnist"
    likelihood: str = "bernoulli"
    """Family of p(x|z), where it is not what differs."""
    hidden: tuple[int, ...] = (300, 300)
    latent: int = 40
    steps: int = 25_000
    warmup: int = 5000
    """Steps of linear KL warm-up, where the bound has a KL term; 0 is none."""
    learning_rate: float = 5e-4
    components: int = 500
    """Components of the priors that are mixtures."""
    moments: int = 1
    """Moments of the training at which it is judged on the validation split; the best one
    counts."""
    examples: int | None = 1000
    num_samples: int = 500
    """Importance samples for each."""


def configuration(options: Options, row: Any) -> Any:
    """A row with what it shares with the others."""
    config = options.applied(row, components=options.components)
    if options.table != "noise":
        config = settings.changed(config, likelihood=options.likelihood)
    if config.posterior.name in SPHERES:
        config = settings.changed(config, latent=options.latent + 1)
    if options.warmup and config.bound.name == "elbo":
        config = settings.changed(config, kl_warmup="linear", kl_warmup_steps=options.warmup)
    return config


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Test log-likelihoods of the family's priors, posteriors, bounds or noise, all else equal."""

    def measure(run: runs.Run, params: Any) -> dict[str, float]:
        test, model = datasets.random_subset(run.test, options.examples), run.built.model
        bound = evaluation.evaluate_elbo(model, params, run.key, test)
        estimate = evaluation.estimate_log_likelihood(
            model, params, run.key, test, num_samples=options.num_samples
        )
        return {
            "log_likelihood": estimate.log_likelihood,
            "standard_error": estimate.standard_error,
            "elbo": tables.number(bound.elbo),
            "kl": tables.number(bound.kl),
            "active_units": tables.number(bound.active_units),
        } | code_length(run, estimate.log_likelihood)

    def train(config: Any, job: runs.Job) -> tables.Trained:
        return tables.stopped_early(config, job, options.moments)

    chosen = options.chosen(TABLES[options.table])
    rows = {name: configuration(options, row) for name, row in chosen.items()}
    results = tables.measured(rows, options, measure, train)
    tables.show(results, "log_likelihood")
    tables.save(options.json, dataclasses.asdict(options), results)


def code_length(run: runs.Run, nats: float) -> dict[str, float]:
    """A log-likelihood in bits per dimension, or in nats where pixels are real numbers."""
    data = run.record.data
    scaled = data.pixels in ("scale", "dequantize")
    value, unit = evaluation.per_dimension(
        nats, math.prod(data.shape), data.levels, run.built.discrete, scaled
    )
    return {unit.replace("/", "_per_"): value}


if __name__ == "__main__":
    run_function(main)
