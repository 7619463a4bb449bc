"""Conditional VAEs that complete images: a quarter, half or three quarters of a digit are given (Sohn et al. 2015).

``python experiments/papers/quadrants.py --data-dir DIR [--quadrants 1] [--json OUT]``

Negative conditional log-likelihood of the pixels that are not given, in nats, on statically binarized MNIST: of a
network that predicts every pixel (NN), of the Gaussian stochastic network, by importance sampling from p(z|y), and of
the CVAE, by importance sampling from q(z|x, y) and as its bound. 784-500-500-200. Pyro's reproduction, of the bound:
NN 100.4 / 61.9 / 25.4, CVAE 71.8 / 51.0 / 24.2 with 1 / 2 / 3 quadrants given.
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

from jaxvae import evaluation


@dataclasses.dataclass(frozen=True)
class Options:
    """What is trained and measured."""

    quadrants: int = 1
    """Quadrants that are given."""
    dataset: str = "binarized_mnist"
    """Set to train on."""
    data_dir: str | None = None
    """Folder of prepared tensorflow-datasets."""
    hidden: tuple[int, ...] = (500, 500)
    """Widths of the hidden layers."""
    latent: int = 200
    """Dimensions of z."""
    steps: int = 10_000
    """Training steps."""
    hybrid: float = 0.5
    """Weight of the CVAE in the hybrid objective."""
    seeds: int = 1
    """Seeds, from 0 on."""
    examples: int = 1000
    """Test examples."""
    num_samples: int = 100
    """Importance samples for each."""
    json: Path | None = None
    """File for everything that was found."""


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Conditional VAEs that complete images: a quarter, half or three quarters of a digit are given."""
    cells.check_place(options.json)
    shared = ["cvae", "--condition", "quadrants", "--quadrants", options.quadrants, "--dataset", options.dataset]
    shared += ["--hidden", *options.hidden, "--latent", options.latent, "--steps", options.steps, "--batch-size", 100]
    shared += ["--data-dir", options.data_dir] if options.data_dir else []
    rows: dict[str, list[Any]] = {
        "NN": [*shared, "--posterior", "point", "--kl-weight", 0],
        "GSNN": [*shared, "--cvae-weight", 0],
        "CVAE": shared,
        "hybrid": [*shared, "--cvae-weight", options.hybrid],
    }

    def measure(run: Any, params: Any) -> dict[str, float]:
        test = run.stored(run.test.take(slice(options.examples)))
        bound = evaluation.evaluate(run.vae, params, test, run.key, treat=run.treat)
        if bound.elbo is None:  # a point: the likelihood of what it predicts
            return {"nll": -bound.reconstruction, "bound": -bound.reconstruction}
        model = run.vae
        if run.config.cvae_weight == 0:
            from jaxvae import models

            model = models.gaussian_stochastic(model)
        found = evaluation.estimate_log_likelihood(
            model, params, test, run.key, treat=run.treat, num_samples=options.num_samples
        )
        return {"nll": -found.log_likelihood, "bound": -bound.elbo}

    found = cells.measured(rows, options.seeds, measure)
    cells.show(found, "nll")
    cells.save(options.json, dataclasses.asdict(options), found)


if __name__ == "__main__":
    commands.command(main)
