"""Test log-likelihoods of the family's priors, posteriors, bounds or noise, all else equal.

``python experiments/papers/likelihoods.py priors|posteriors|bounds|noise [--dataset
binarized_mnist] [--data-dir DIR]``

Nets 784-300-300-40 (ReLU), batches of 100, Adam with a cosine; log p(x) by importance sampling with
the encoder. Bounds other than the ELBO have no KL term to warm up: ``--warmup 0`` compares them
with it. Posteriors on a sphere have one latent more, so that they have as many dimensions; they
should be ahead with few (Davidson et al. 2018). Published, on statically binarized MNIST after far
longer training: VampPrior 85.57 (Tomczak & Welling 2017); IWAE-5 87.63 where the VAE has 88.71
(Burda et al. 2015); Sylvester flows ahead of the diagonal posterior, with an ELBO of -83.32 (van
den Berg et al. 2018). *noise* takes images of real values, such as frey_faces, on which residuals
with a banded precision should be ahead of independent ones (Dorta et al. 2018).
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import cells
import commands

from jaxvae import evaluation

TABLES: dict[str, dict[str, list[Any]]] = {
    "priors": {
        "standard": [],
        "mixture": ["--prior", "mixture"],
        "vampprior": ["--prior", "vampprior"],
        "vampprior_data": ["--prior", "vampprior_data"],
        "coupling": ["--prior", "coupling"],
        "autoregressive": ["--prior", "autoregressive", "--flow-steps", 2],
    },
    "posteriors": {
        "diagonal": [],
        "full covariance": ["--posterior", "multivariate_normal"],
        "planar": ["--posterior", "planar", "--flow-steps", 8],
        "radial": ["--posterior", "radial", "--flow-steps", 8],
        "householder": ["--posterior", "householder"],
        "sylvester": ["--posterior", "sylvester"],
        "triangular sylvester": ["--posterior", "triangular_sylvester"],
        "iaf": ["--posterior", "inverse_autoregressive"],
        "von mises-fisher": ["--posterior", "von_mises_fisher"],
        "power spherical": ["--posterior", "power_spherical"],
        "spike and slab": ["--posterior", "spike_and_slab"],
        "denoising": ["--corruption", "salt_and_pepper", "--corruption-level", 0.05],
    },
    "bounds": {
        "elbo": [],
        "iwae": ["--bound", "iwae", "--num-samples", 5],
        "miwae": ["--bound", "miwae", "--num-samples", 8, "--groups", 2],
        "piwae": ["--bound", "piwae", "--num-samples", 8, "--groups", 2],
        "ciwae": ["--bound", "ciwae", "--num-samples", 5, "--elbo-weight", 0.05],
    },
    "noise": {
        "fixed": ["--likelihood", "normal"],
        "learned": ["--likelihood", "normal_learned"],
        "decoded": ["--likelihood", "normal_decoded"],
        "structured": ["--likelihood", "normal_banded"],
    },
}
MIXTURES = ("mixture", "vampprior", "vampprior_data")
SPHERES = ("von_mises_fisher", "power_spherical")  # of one dimension less than their latents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cells.Options):
    """What is trained and measured."""

    table: tyro.conf.Positional[Literal[tuple(TABLES)]]  # type: ignore[valid-type]
    """What differs between the rows."""
    dataset: str = "binarized_mnist"
    likelihood: str = "bernoulli"
    """Family of p(x|z)."""
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
    counts.
    """
    examples: int | None = 1000
    num_samples: int = 500
    """Importance samples for each."""


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Test log-likelihoods of the family's priors, posteriors, bounds or noise, all else equal."""
    shared = ["digits", *options.arguments(), "--likelihood", options.likelihood]
    warm = ["--kl-warmup", "linear", "--kl-warmup-steps", options.warmup] if options.warmup else []
    mixed = lambda own: ["--components", options.components] if {*own} & {*MIXTURES} else []
    spherical = lambda own: ["--latent", options.latent + 1] if {*own} & {*SPHERES} else []
    table = options.chosen(TABLES[options.table])
    rows = {
        name: [*shared, *own, *mixed(own), *spherical(own), *([] if "--bound" in own else warm)]
        for name, own in table.items()
    }

    def measure(run: Any, params: Any) -> dict[str, float]:
        test = run.raw(run.test.take(slice(options.examples)))
        elbo = evaluation.evaluate(run.vae, params, test, run.key, preprocess=run.preprocess)
        found = evaluation.estimate_log_likelihood(
            run.vae,
            params,
            test,
            run.key,
            preprocess=run.preprocess,
            num_samples=options.num_samples,
        )
        bits = evaluation.bits_per_dim(found.log_likelihood, run.dimensions, run.bits_offset)
        return {
            "log_likelihood": found.log_likelihood,
            "standard_error": found.standard_error,
            "elbo": elbo.elbo,
            "kl": elbo.kl,
            "active_units": float(elbo.active_units),
            "bits_per_dim": bits,
        }

    train = lambda arguments: cells.stopped_early(arguments, options.moments)
    found = cells.measured(rows, options.seeds, measure, train)
    cells.show(found, "log_likelihood")
    cells.save(options.json, dataclasses.asdict(options), found)


if __name__ == "__main__":
    commands.command(main)
