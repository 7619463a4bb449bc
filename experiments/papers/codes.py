"""What penalties and distances make of the codes, all else equal.

``python experiments/papers/codes.py penalties|distances [--dataset mnist] [--data-dir DIR] [--json
OUT]``

*penalties* (nats, on the test split): reconstruction, KL and its three parts. Published for MNIST
after 400 epochs of a convolutional network, -reconstruction + KL: VAE 118.79 + 19.69, beta-VAE (4)
138.85 + 10.99, capacity 25 179.03 + 24.97, FactorVAE (6) 123.47 + 18.84, beta-TCVAE (6) 147.10 +
9.37 (github.com/YannDubs/disentangling-vae).

*distances*: reconstruction beside the distance of q(z) to p(z), by three measures, of an
autoencoder, a VAE and what has a distance in KL's place. Every one of the latter should be far
below the autoencoder at about its reconstruction (Tolstikhin et al. 2018; Kolouri et al. 2018).
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import cells
import commands
import judgements
import wiring

from jaxvae import divergences, evaluation

TABLES: dict[str, dict[str, list[Any]]] = {
    "penalties": {
        "vae": ["digits"],
        "beta-vae": ["beta-vae"],
        "annealed-vae": ["annealed-vae", "--kl-capacity", 25],
        "beta-tcvae": ["beta-tcvae"],
        "beta-tcvae, stratified": ["beta-tcvae", "--divergence", "stratified_total_correlation"],
        "factor-vae": ["factor-vae"],
        "dip-vae-i": ["dip-vae-i"],
        "dip-vae-ii": ["dip-vae-ii"],
    },
    "distances": {
        "autoencoder": ["autoencoder"],
        "vae": ["digits"],
        "wae-mmd": ["wae-mmd", "--divergence-weight", 100],
        "wae-gan": ["wae-gan"],
        "info-vae": ["info-vae"],
        "swae": ["swae"],
        "radon-sobolev": ["radon-sobolev"],
        "cramer-wold": ["cramer-wold"],
        "rae-l2": ["rae-l2"],
        "rae-gp": ["rae-gp"],
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cells.Options):
    """What is trained and measured."""

    table: tyro.conf.Positional[Literal[tuple(TABLES)]]  # type: ignore[valid-type]
    """What differs between the rows."""
    seeds: int = 3


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """What penalties and distances make of the codes, all else equal."""

    def measure(run: wiring.Run, params: Any) -> dict[str, float]:
        split = run.test.take(slice(options.examples))
        judged = evaluation.evaluate(
            run.vae, params, run.raw(split), run.key, preprocess=run.preprocess
        )
        rest = (
            judgements.decomposed(run, params, split)
            if options.table == "penalties"
            else distances(run, params, split)
        )
        return {
            "reconstruction": judged.reconstruction,
            "kl": np.nan if judged.kl is None else judged.kl,
        } | rest

    table = options.chosen(TABLES[options.table])
    rows = {name: [*own, *options.arguments()] for name, own in table.items()}
    found = cells.measured(rows, options.seeds, measure)
    cells.show(found, "reconstruction")
    cells.save(options.json, dataclasses.asdict(options), found)


def distances(run: wiring.Run, params: Any, split: Any, rows: int = 1000) -> dict[str, float]:
    """Between draws of q(z) and of p(z), in blocks of a thousand."""
    q = judgements.posteriors(run, params, split)
    count = len(split.images) // rows * rows or len(split.images)
    keys = jax.random.split(run.key, len(split.images))
    z = jax.vmap(lambda q, key: q.sample(key))(q, keys)[:count]
    other = run.vae.prior(params).sample(run.key, (count,))
    cut = lambda a: a.reshape(-1, min(rows, count), a.shape[-1])
    measures = {
        "MMD^2 (IMQ)": divergences.mmd(divergences.imq(2.0)),
        "sliced W^2": divergences.sliced_wasserstein(200),
        "energy": divergences.energy_distance,
    }
    weight = jnp.full(min(rows, count), 1 / min(rows, count))
    of = lambda member: jax.lax.map(
        lambda pair: member(run.key, *pair, weight), (cut(z), cut(other))
    ).mean()
    return {name: float(jax.jit(of, static_argnums=0)(member)) for name, member in measures.items()}


if __name__ == "__main__":
    commands.command(main)
