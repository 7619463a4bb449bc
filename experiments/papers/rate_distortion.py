"""Rate-distortion curves: beta-VAEs of every beta in one vmapped training run (Alemi et al. 2018,
arXiv:1711.00464).

``python experiments/papers/rate_distortion.py [--betas 0.25 0.5 1 2] [--seeds 3] [--json OUT]
[--plot PNG]``

Every member descends D + beta R, R = E KL(q(z|x) || p(z)) and D = -E log p(x|z). At their optima R
falls and D rises with beta, and the slope of the curve is dD/dR = -beta; -(D + R) is the ELBO,
largest at beta = 1.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import cells
import commands

from jaxvae import evaluation, models, training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cells.Options):
    """What is trained."""

    betas: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 3.0)
    """Weights of the KL term: the rows, of which ``seeds`` members each have parameters and
    noise of their own.
    """
    dataset: str = "digits"
    steps: int = 5000
    seeds: int = 3
    examples: int | None = None
    plot: Path | None = None
    """Picture of the curve."""


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Rate-distortion curves: beta-VAEs of every beta in one vmapped training run."""
    cells.check_place(options.plot)
    betas = list(options.chosen({f"{beta:g}": beta for beta in options.betas}).values())
    if not betas or min(betas) <= 0:
        raise ValueError("--betas must all be above 0")
    run = cells.built(["digits", *options.arguments()])

    def member(beta: jax.Array) -> training.Algorithm:
        loss = training.batch_mean(models.negative_elbo(run.vae, kl_weight=lambda step: beta))
        return training.gradient_descent(
            lambda key, x: run.vae.init(key, run.preprocess(key, x)),
            training.preprocessed(run.preprocess, loss),
            optax.adam(optax.cosine_decay_schedule(run.config.learning_rate, options.steps)),
        )

    start = time.perf_counter()
    algorithm = training.vmapped(member, jnp.repeat(jnp.asarray(betas), options.seeds))
    state = training.fit(
        algorithm, run.train, num_steps=options.steps, batch_size=run.config.batch_size
    )
    found: cells.Found = {}
    test = run.raw(run.test.take(slice(options.examples)))
    for place, beta in enumerate(np.repeat(betas, options.seeds)):
        params = training.trained(training.member(state, place))
        judged = evaluation.evaluate(
            run.vae, params, test, run.key, preprocess=run.preprocess, num_samples=10
        )
        cell = {"rate": judged.kl, "distortion": -judged.reconstruction, "elbo": judged.elbo}
        found.setdefault(f"{beta:g}", []).append(
            cell | {"active units": float(judged.active_units)}
        )
    count = len(betas) * options.seeds
    print(
        f"{count} members in one run, compiled, trained and judged: {time.perf_counter() - start:.0f} s"
    )
    cells.show(found, "rate")
    if options.plot:
        draw(options.plot, found, options.dataset)
    cells.save(options.json, dataclasses.asdict(options), found)


def draw(path: Path, found: cells.Found, name: str) -> None:
    """Distortion against rate, one point for each member."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4))
    axes: Any = figure.subplots()
    mean = lambda beta, column: float(np.mean([cell[column] for cell in found[beta]]))
    for beta in found:
        axes.plot(
            *([cell[column] for cell in found[beta]] for column in ("rate", "distortion")),
            "k.",
            alpha=0.5,
        )
        axes.annotate(
            rf"$\beta$ = {beta}",
            (mean(beta, "rate"), mean(beta, "distortion")),
            (6, 4),
            textcoords="offset points",
        )
    axes.plot(*([mean(beta, column) for beta in found] for column in ("rate", "distortion")), lw=1)
    axes.set(
        xlabel="rate R (nats)",
        ylabel="distortion D (nats)",
        title=f"beta-VAEs of {name}, test split",
    )
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    commands.command(main)
