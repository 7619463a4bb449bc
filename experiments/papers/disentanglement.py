"""Disentanglement of the weighted ELBOs on rendered shapes, whose five factors are known.

``python experiments/papers/disentanglement.py [--rows vae beta-vae ...] [--seeds 3] [--json OUT]``

Networks are 4096-HIDDEN-10, on 64x64 images after dSprites' recipe, 727,280 of them. UDR compares
the seeds of a row with each other. Published for dSprites itself, with convolutional networks and
300,000 steps, FactorVAE score / MIG / DCI: VAE 0.63 / 0.10 / 0.30, beta-VAE 0.63 / 0.21 / 0.41,
FactorVAE 0.82 / 0.43 / 0.74, beta-TCVAE 0.62 / 0.45 / 0.29 (as later papers quote them).
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
from typing import Annotated, Any

import numpy as np
import tyro

from experiments import tables
from jaxvae import datasets, evaluation, runs
from jaxvae.command_line import run_function
from jaxvae.evaluation import metrics
from jaxvae.families import preset

ROWS: dict[str, Any] = {
    "vae": preset("digits"),
    "beta-vae": preset("beta-vae"),
    "annealed-vae": preset("annealed-vae", kl_capacity=20.0),
    "beta-tcvae": preset("beta-tcvae"),
    "factor-vae": preset("factor-vae"),
    "dip-vae-i": preset("dip-vae-i"),
    "dip-vae-ii": preset("dip-vae-ii"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    dataset: str = "shapes"
    hidden: tuple[int, ...] = (256, 256)
    steps: int = 20_000
    batch_size: int = 64
    learning_rate: float = 5e-4
    seeds: int = 2
    examples: int | None = sum(metrics.FIT_AND_TEST)


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Disentanglement of the weighted ELBOs on rendered shapes, whose five factors are known."""
    results: tables.Results = {}
    for name, config in options.chosen(ROWS).items():
        codes: list[np.ndarray] = []
        kl: list[Any] = []

        def measure(
            run: runs.Run, params: Any, codes: list[np.ndarray] = codes, kl: list[Any] = kl
        ) -> dict[str, float]:
            test, model = datasets.random_subset(run.test, options.examples), run.built.model
            summary = evaluation.evaluate_elbo(model, params, run.key, test)
            codes.append(evaluation.encode_split(model, params, run.key, test))
            kl.append(summary.kl_per_latent)
            bound = {"reconstruction": summary.reconstruction, "kl": tables.number(summary.kl)}
            data = evaluation.Data(test)
            return bound | metrics.factor_scores(model, params, run.key, data)

        results |= tables.measured({name: options.applied(config)}, options, measure)
        if options.seeds > 1:
            scores = evaluation.disentanglement.udr(codes, kl)
            for cell, score in zip(results[name], scores, strict=True):
                cell["udr"] = float(score)
    tables.show(results, "factor_vae_score")
    tables.save(options.json, dataclasses.asdict(options), results)


if __name__ == "__main__":
    run_function(main)
