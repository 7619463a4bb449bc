"""Rate-distortion curves of beta-VAEs, all trained in one vmapped run (Alemi et al. 2018).

``python experiments/papers/rate_distortion.py [--betas 0.25 0.5 1 2] [--seeds 3] [--json OUT]
[--plot PNG]``

Every member descends D + beta R, where R = E KL(q(z|x) || p(z)) and D = -E log p(x|z)
(arXiv:1711.00464). At their optima R falls and D rises with beta, and the slope of the curve is
dD/dR = -beta. The ELBO is -(D + R), and largest at beta = 1.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import tables
from jaxvae import datasets, evaluation, models, runs, training
from jaxvae.command_line import run_function
from jaxvae.families import preset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained."""

    betas: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 3.0)
    """Weights of the KL term: the rows, of which ``seeds`` members each have parameters and
    noise of their own."""
    dataset: str = "digits"
    steps: int = 5000
    seeds: int = 3
    examples: int | None = None
    plot: Path | None = None
    """Picture of the curve."""


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Rate-distortion curves: beta-VAEs of every beta in one vmapped training run."""
    tables.check_place(options.plot)
    betas = list(options.chosen({f"{beta:g}": beta for beta in options.betas}).values())
    if not betas or min(betas) <= 0:
        raise ValueError("--betas must all be above 0")
    run = runs.prepare(options.applied(preset("digits")), options.job)
    start = time.perf_counter()
    weights = np.repeat(betas, options.seeds)
    state = trained(run, weights)
    results: tables.Results = {}
    for place, beta in enumerate(weights):
        params = training.trained(training.member(state, place))
        results.setdefault(f"{beta:g}", []).append(judged(run, params, options))
    seconds = time.perf_counter() - start
    print(f"{len(weights)} members in one run, compiled, trained and judged: {seconds:.0f} s")
    tables.show(results, "rate")
    if options.plot:
        draw(options.plot, results, options.dataset)
    tables.save(options.json, dataclasses.asdict(options), results)


def trained(run: runs.Run, weights: np.ndarray) -> Any:
    """The states of all members, one for each weight of KL."""
    config, vae = run.config, run.built.source

    def member(beta: jax.Array) -> training.Algorithm:
        loss = models.negative_elbo(vae, kl_weight=lambda step: beta)
        course = optax.cosine_decay_schedule(config.learning_rate, config.steps)
        return training.gradient_descent(vae.init, training.batch_mean(loss), optax.adam(course))

    ensemble = training.vmapped(member, jnp.asarray(weights))
    return training.fit(ensemble, run.train, num_steps=config.steps, batch_size=config.batch_size)


def judged(run: runs.Run, params: Any, options: Options) -> dict[str, Any]:
    """Rate and distortion of one member on the test split, nats."""
    test = datasets.random_subset(run.test, options.examples)
    summary = evaluation.evaluate_elbo(run.built.model, params, run.key, test, num_samples=10)
    return {
        "rate": summary.kl,
        "distortion": -summary.reconstruction,
        "elbo": summary.elbo,
        "active units": summary.active_units,
    }


def draw(path: Path, results: tables.Results, name: str) -> None:
    """Distortion against rate, one point for each member."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4))
    axes: Any = figure.subplots()
    means = []
    for beta in results:
        rates, distortions = (
            tables.column_of(results, beta, column) for column in ("rate", "distortion")
        )
        axes.plot(rates, distortions, "k.", alpha=0.5)
        means.append((float(np.mean(rates)), float(np.mean(distortions))))
        axes.annotate(rf"$\beta$ = {beta}", means[-1], (6, 4), textcoords="offset points")
    axes.plot(*np.transpose(means), lw=1)
    axes.set(
        xlabel="rate R (nats)",
        ylabel="distortion D (nats)",
        title=f"beta-VAEs of {name}, test split",
    )
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    run_function(main)
