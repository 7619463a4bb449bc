"""Compares the codes that penalties and distances make, all else equal.

``python experiments/papers/codes.py penalties|distances [--dataset mnist] [--data-dir DIR]
[--json OUT]``

*penalties* (nats, on the test split): reconstruction, KL and its three parts. Published for MNIST
after 400 epochs of a convolutional network, -reconstruction + KL: VAE 118.79 + 19.69, beta-VAE (4)
138.85 + 10.99, capacity 25 179.03 + 24.97, FactorVAE (6) 123.47 + 18.84, beta-TCVAE (6) 147.10 +
9.37 (github.com/YannDubs/disentangling-vae).

*distances*: reconstruction beside the distance of q(z) to p(z), by three measures. The rows are an
autoencoder, a VAE, and models with a distance in KL's place. The latter should all be far nearer
to p(z) than the autoencoder, at about its reconstruction (Tolstikhin et al. 2018; Kolouri et al.
2018).
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro

from experiments import tables
from jaxvae import datasets, divergences, evaluation, runs
from jaxvae.command_line import run_function
from jaxvae.families import preset

TABLES: dict[str, dict[str, Any]] = {
    "penalties": {
        "vae": preset("digits"),
        "beta-vae": preset("beta-vae"),
        "annealed-vae": preset("annealed-vae", kl_capacity=25.0),
        "beta-tcvae": preset("beta-tcvae"),
        "beta-tcvae, stratified": preset(
            "beta-tcvae", divergence="stratified_total_correlation", divergence_weight=5.0
        ),
        "factor-vae": preset("factor-vae"),
        "dip-vae-i": preset("dip-vae-i"),
        "dip-vae-ii": preset("dip-vae-ii"),
    },
    "distances": {
        "autoencoder": preset("autoencoder"),
        "vae": preset("digits"),
        "wae-mmd": preset("wae-mmd", divergence_weight=100.0),
        "wae-gan": preset("wae-gan"),
        "info-vae": preset("info-vae"),
        "swae": preset("swae"),
        "radon-sobolev": preset("radon-sobolev"),
        "cramer-wold": preset("cramer-wold"),
        "rae-l2": preset("rae-l2"),
        "rae-gp": preset("rae-gp"),
    },
}
BLOCK = 1000  # draws of q(z) and of p(z) between which a distance is taken
MEASURES: dict[str, divergences.Divergence] = {
    "MMD^2 (IMQ)": divergences.mmd(divergences.imq(2.0)),
    "sliced W^2": divergences.sliced_wasserstein(200),
    "energy": divergences.energy_distance,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    table: tyro.conf.Positional[Literal[tuple(TABLES)]]  # type: ignore[valid-type]
    """What differs between the rows."""
    seeds: int = 3


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Compares the codes that penalties and distances make, all else equal."""

    def measure(run: runs.Run, params: Any) -> dict[str, float]:
        test, model = datasets.random_subset(run.test, options.examples), run.built.model
        summary = evaluation.evaluate_elbo(model, params, run.key, test)
        bound = {"reconstruction": summary.reconstruction, "kl": tables.number(summary.kl)}
        if options.table == "distances":
            return bound | distances(run, params, test)
        return bound | evaluation.metrics.decompose(model, params, run.key, evaluation.Data(test))

    chosen = options.chosen(TABLES[options.table])
    rows = {name: options.applied(config) for name, config in chosen.items()}
    results = tables.measured(rows, options, measure)
    tables.show(results, "reconstruction")
    tables.save(options.json, dataclasses.asdict(options), results)


def distances(run: runs.Run, params: Any, split: datasets.Split) -> dict[str, float]:
    """The distances between draws of q(z) and of p(z), means over blocks of a thousand."""
    q = evaluation.posteriors_of(run.built.model, params, run.key, split)
    total = datasets.num_examples(split.x)
    size = min(BLOCK, total)
    count = total // size * size
    of_posterior = jax.vmap(lambda q, key: q.sample(key))(q, jax.random.split(run.key, total))
    of_prior = run.built.source.prior(params).sample(run.key, (count,))
    pair = [z[:count].reshape(-1, size, z.shape[-1]) for z in (of_posterior, of_prior)]
    weight = jnp.full(size, 1 / size)

    def mean(measure: divergences.Divergence) -> float:
        def of_block(block: list[jax.Array]) -> jax.Array:
            return measure(run.key, block[0], block[1], weight)

        return float(jax.jit(lambda pair: jax.lax.map(of_block, pair))(pair).mean())

    return {name: mean(measure) for name, measure in MEASURES.items()}


if __name__ == "__main__":
    run_function(main)
