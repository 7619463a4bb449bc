"""Conditional VAEs that complete images from one to three quadrants (Sohn et al. 2015).

``python experiments/papers/quadrants.py --data-dir DIR [--quadrants 1] [--json OUT]``

The table shows the negative conditional log-likelihood of the pixels that are not given, in nats,
on statically binarized MNIST. The rows are a network that predicts every pixel (NN), the Gaussian
stochastic network by importance sampling from p(z|y), and the CVAE by importance sampling from
q(z|x, y), with its bound beside it. Networks are 784-500-500-200. Pyro's reproduction, of the
bound: NN 100.4 / 61.9 / 25.4, CVAE 71.8 / 51.0 / 24.2 with 1 / 2 / 3 quadrants given.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
from typing import Annotated, Any

import tyro

from experiments import tables
from jaxvae import datasets, evaluation, models, runs
from jaxvae.command_line import run_function
from jaxvae.families import preset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    quadrants: int = 1
    """Quadrants that are given."""
    dataset: str = "binarized_mnist"
    hidden: tuple[int, ...] = (500, 500)
    latent: int = 200
    hybrid: float = 0.5
    """Weight of the CVAE in the hybrid objective."""
    moments: int = 20
    """Moments of the training at which it is judged on the validation split; the best one
    counts."""
    examples: int | None = 1000
    num_samples: int = 100
    """Importance samples for each."""


def judged(run: runs.Run) -> Any:
    """The model that is judged: the stochastic network if only that was trained, else the CVAE."""
    if getattr(run.config, "cvae_weight", 1.0) == 0:
        return models.gaussian_stochastic(run.built.source)
    return run.built.model


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Conditional VAEs that complete images, of which a quarter or more is given."""
    presets = {
        "NN": preset("predictor", condition="quadrants"),
        "GSNN": preset("gsnn", condition="quadrants"),
        "CVAE": preset("cvae", condition="quadrants"),
        "hybrid": preset("cvae", condition="quadrants", cvae_weight=options.hybrid),
    }
    chosen = options.chosen(presets)
    rows = {name: options.applied(c, quadrants=options.quadrants) for name, c in chosen.items()}

    def measure(run: runs.Run, params: Any) -> dict[str, float]:
        test, model = datasets.random_subset(run.test, options.examples), judged(run)
        bound = evaluation.evaluate_elbo(model, params, run.key, test)
        if bound.elbo is None:  # of a point: the likelihood of what it predicts
            return {"nll": -bound.reconstruction, "bound": -bound.reconstruction}
        estimate = evaluation.estimate_log_likelihood(
            model, params, run.key, test, num_samples=options.num_samples
        )
        return {"nll": -estimate.log_likelihood, "bound": -bound.elbo}

    def train(config: Any, job: runs.Job) -> tables.Trained:
        return tables.stopped_early(config, job, options.moments, judged)

    results = tables.measured(rows, options, measure, train)
    tables.show(results, "nll")
    tables.save(options.json, dataclasses.asdict(options), results)


if __name__ == "__main__":
    run_function(main)
