"""Conditional VAEs that complete images: a quarter, half or three quarters of a digit are given
(Sohn et al. 2015).

``python experiments/papers/quadrants.py --data-dir DIR [--quadrants 1] [--json OUT]``

Negative conditional log-likelihood of the pixels that are not given, in nats, on statically
binarized MNIST: of a network that predicts every pixel (NN), of the Gaussian stochastic network, by
importance sampling from p(z|y), and of the CVAE, by importance sampling from q(z|x, y) and as its
bound. 784-500-500-200. Pyro's reproduction, of the bound: NN 100.4 / 61.9 / 25.4, CVAE 71.8 / 51.0
/ 24.2 with 1 / 2 / 3 quadrants given.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import cells
import commands
import wiring

from jaxvae import evaluation, models


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cells.Options):
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
    counts.
    """
    examples: int | None = 1000
    num_samples: int = 100
    """Importance samples for each."""


def predictor(run: wiring.Run) -> models.CVAE:
    """What is judged: the CVAE, or the Gaussian stochastic network where that alone was trained."""
    return run.vae if run.config.cvae_weight else models.gaussian_stochastic(run.vae)


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Conditional VAEs that complete images: a quarter, half or three quarters of a digit are
    given.
    """
    shared = [
        "cvae",
        *options.arguments(),
        "--condition",
        "quadrants",
        "--quadrants",
        options.quadrants,
    ]
    rows: dict[str, list[Any]] = {
        "NN": [*shared, "--posterior", "point", "--kl-weight", 0, "--cvae-weight", 0],
        "GSNN": [*shared, "--cvae-weight", 0],
        "CVAE": shared,
        "hybrid": [*shared, "--cvae-weight", options.hybrid],
    }

    def measure(run: wiring.Run, params: Any) -> dict[str, float]:
        test, model = run.raw(run.test.take(slice(options.examples))), predictor(run)
        bound = evaluation.evaluate(model, params, test, run.key, preprocess=run.preprocess)
        if bound.elbo is None:  # of a point: the likelihood of what it predicts
            return {"nll": -bound.reconstruction, "bound": -bound.reconstruction}
        found = evaluation.estimate_log_likelihood(
            model, params, test, run.key, preprocess=run.preprocess, num_samples=options.num_samples
        )
        return {"nll": -found.log_likelihood, "bound": -bound.elbo}

    train = lambda arguments: cells.stopped_early(arguments, options.moments, predictor)
    found = cells.measured(options.chosen(rows), options.seeds, measure, train)
    cells.show(found, "nll")
    cells.save(options.json, dataclasses.asdict(options), found)


if __name__ == "__main__":
    commands.command(main)
