"""How far samples are from the data, by model and by what z is drawn from (Dai & Wipf 2019, table
1).

``python experiments/papers/samples.py [--dataset mnist] [--data-dir DIR] [--json OUT]``

Fréchet distances, decoder means beside test images, in 64 features of a small classifier that is
trained here: these are *not* FIDs, whose features are an Inception network's, and only their order
can be compared. Published FIDs on
MNIST: fixed noise 52.0, learned noise 54.5, the same with a flow as prior 54.8, WAE-MMD 115.0, a
second stage 12.6; on CelebA a VAE 63, WAE-MMD 55, WAE-GAN 42 (Tolstikhin et al. 2018). *squared
error* is that of reconstructions through the posterior's mean, for a pixel; learned noise should
have less of it than fixed (Dai & Wipf 2019).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import cells
import commands
import judgements
import wiring

from jaxvae import evaluation, figures

NOISE = ["--likelihood", "normal_learned"]
ROWS: dict[str, tuple[list[Any], tuple[str, ...]]] = {  # arguments, and what z is drawn from
    "fixed noise": (["digits", "--likelihood", "normal"], judgements.SOURCES),
    "learned noise": (["learned-variance"], judgements.SOURCES),
    "coupling prior": (["coupling-prior", *NOISE], ("model",)),
    "vampprior": (["vampprior", *NOISE], ("model",)),
    "wae-mmd": (["wae-mmd", *NOISE], ("model", "gaussian_mixture", "coupling")),
    "wae-gan": (["wae-gan", *NOISE], ("model", "gaussian_mixture", "coupling")),
    "rae-l2": (["rae-l2", *NOISE], ("gaussian_mixture", "coupling")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cells.Options):
    """What is trained and measured."""

    hidden: tuple[int, ...] = (400, 400)
    latent: int = 16
    steps: int = 20_000
    components: int = 10
    """Of the Gaussian mixtures."""
    encodings: int = 10_000
    """Training examples that priors are fitted to."""


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """How far samples are from the data, by model and by what z is drawn from."""
    shared = [*options.arguments(), "--pixels", "scale"]
    judge = functools.cache(
        lambda: judgements.Judge.of(cells.built(["digits", *shared, "--likelihood", "normal"]))
    )

    def measure(sources: tuple[str, ...], run: wiring.Run, params: Any) -> dict[str, float]:
        test = run.test.take(slice(options.examples))
        x = judgements.preprocessed(run, test.images)
        real = judge().classifier.features(x)
        found = dict.fromkeys(judgements.SOURCES, float("nan"))
        decode = jax.jit(jax.vmap(lambda z: run.vae.decode(params, z).mean))
        for kind in sources:
            p = judgements.source(run, params, kind, options.components, options.encodings)
            z = p.sample(run.key, (len(real),))
            drawn = np.concatenate(
                [np.asarray(decode(part)) for part in np.array_split(z, max(len(z) // 500, 1))]
            )
            found[kind] = evaluation.samples.frechet(real, judge().classifier.features(drawn))
        judged = evaluation.evaluate(
            run.vae, params, run.raw(test), run.key, preprocess=run.preprocess
        )
        error = float(np.mean(np.subtract(*figures.reconstructions(run.vae, params, x)) ** 2))
        scale = params["likelihood"].get("log_scale")
        noise = float(np.exp(scale)) if scale is not None else 0.1
        return found | {
            "noise": noise,
            "squared error": error,
            "active units": float(judged.active_units),
        }

    found: cells.Found = {}
    for name, (own, sources) in options.chosen(ROWS).items():
        found |= cells.measured(
            {name: [*own, *shared]}, options.seeds, functools.partial(measure, sources)
        )
    print(
        f"\naccuracy of the classifier on images that it had not seen: {judge().classifier.accuracy:.3f}"
    )
    cells.show(found)
    cells.save(
        options.json,
        dataclasses.asdict(options),
        found,
        classifier_accuracy=judge().classifier.accuracy,
    )


if __name__ == "__main__":
    commands.command(main)
