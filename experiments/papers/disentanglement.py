"""Disentanglement of the weighted ELBOs on rendered shapes, whose five factors are known.

``python experiments/papers/disentanglement.py [--rows vae beta-vae ...] [--seeds 3] [--json OUT]``

Networks 4096-HIDDEN-10 on 64x64 images after dSprites' recipe, 727,280 of them. UDR compares the
seeds of a member with each other. Published for dSprites itself, with convolutional networks and
300,000 steps, FactorVAE score / MIG / DCI: VAE 0.63 / 0.10 / 0.30, beta-VAE 0.63 / 0.21 / 0.41,
FactorVAE 0.82 / 0.43 / 0.74, beta-TCVAE 0.62 / 0.45 / 0.29 (as later papers quote them).
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import cells
import commands
import judgements
import wiring

from jaxvae import evaluation

ROWS: dict[str, list[Any]] = {
    "vae": ["digits"],
    "beta-vae": ["beta-vae"],
    "annealed-vae": ["annealed-vae", "--kl-capacity", 20],
    "beta-tcvae": ["beta-tcvae"],
    "factor-vae": ["factor-vae"],
    "dip-vae-i": ["dip-vae-i"],
    "dip-vae-ii": ["dip-vae-ii"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cells.Options):
    """What is trained and measured."""

    dataset: str = "shapes"
    hidden: tuple[int, ...] = (256, 256)
    steps: int = 20_000
    batch_size: int = 64
    learning_rate: float = 5e-4
    seeds: int = 2
    examples: int | None = sum(judgements.POINTS)


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Disentanglement of the weighted ELBOs on rendered shapes, whose five factors are known."""
    found: cells.Found = {}
    for name, own in options.chosen(ROWS).items():
        codes: list[np.ndarray] = []
        kl: list[list[float]] = []

        def measure(
            run: wiring.Run, params: Any, codes: list = codes, kl: list = kl
        ) -> dict[str, float]:
            split = run.test.take(slice(options.examples))
            judged = evaluation.evaluate(
                run.vae, params, split.images, run.key, preprocess=run.preprocess
            )
            codes.append(
                evaluation.encode_split(
                    run.vae, params, split.images, run.key, preprocess=run.preprocess
                )
            )
            kl.append(judged.kl_per_latent)
            base = {"reconstruction": judged.reconstruction, "kl": judged.kl}
            return base | judgements.disentangled(run, params, split)

        found |= cells.measured({name: [*own, *options.arguments()]}, options.seeds, measure)
        if options.seeds > 1:
            for cell, score in zip(
                found[name], evaluation.disentanglement.udr(codes, kl), strict=True
            ):
                cell["udr"] = float(score)
    cells.show(found, "factor_vae_score")
    cells.save(options.json, dataclasses.asdict(options), found)


if __name__ == "__main__":
    commands.command(main)
