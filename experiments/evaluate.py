"""Judges a trained model: ``python experiments/evaluate.py WORKDIR [--num-samples 5000] [--split
test]``.

Prints and writes ``evaluation.json``: ELBO, reconstruction, KL in all and per latent, active units,
log-likelihood with its standard error, effective sample size and Pareto k, bits/dim.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import commands
import folders
import judgements
import outcomes
import tyro
import wiring


def evaluate(
    workdir: Annotated[Path, tyro.conf.Positional],
    num_samples: int = 5000,
    split: str | None = None,
    num_examples: int | None = None,
    checkpoint: str = "latest",
    data_dir: str | None = None,
    batch_size: int = 50,
    decompose: bool = False,
    samples: bool = False,
    factors: bool = False,
    clustering: bool = False,
    prior: Literal[judgements.SOURCES] = "model",  # type: ignore[valid-type]
) -> None:
    """Judges a trained model on a split.

    Args:
        workdir: the run folder.
        num_samples: importance samples per example, K.
        split: split to judge on, parts as train[:1000]; None is the run's test split.
        num_examples: examples to judge on, from the first; None is all.
        checkpoint: latest, best, or a step.
        data_dir: folder of prepared sets, where it has moved since the training.
        batch_size: examples at once in the log-likelihood; memory is that of batch_size times 500
          decoded latents.
        decompose: KL in its three parts: index-code mutual information, total correlation,
            dimension-wise KL; the first and the rest where there are no densities by coordinate.
        samples: precision, recall, density, coverage, Frechet distance and copies of samples of x,
            in the features of a classifier that is trained on the labels.
        factors: disentanglement, of a set whose factors are known (shapes).
        clustering: accuracy of the prior's components, each matched to a class.
        prior: what z of the samples is drawn from, as in sample.py.
    """
    config = folders.load_config(workdir)
    config = dataclasses.replace(
        config, data_dir=data_dir or config.data_dir, test_split=split or config.test_split
    )
    run = wiring.build(config)
    step, params = folders.restore(run, workdir, checkpoint)
    test = run.test.take(slice(num_examples))
    more = judgements.chosen(
        run, params, test, decompose, samples, factors, clustering, prior
    )  # may be refused
    judged = outcomes.judge(run, params, test, num_samples, batch_size)
    settings = {"split": config.test_split, "checkpoint": step}
    folders.write_json(workdir / "evaluation.json", settings | judged | more)
    print(f"{run.dataset.name}, {config.test_split} split, checkpoint of step {step}")
    rows = outcomes.judgement_rows(judged)
    if judged["kl_per_latent"] is not None:
        rows.append(
            ("KL per latent", " ".join(f"{value:.2f}" for value in judged["kl_per_latent"]))
        )
    rows += [(name, f"{value:.4g}") for name, value in more.items()]
    outcomes.table([*rows, ("written", str(workdir / "evaluation.json"))])


if __name__ == "__main__":
    commands.command(evaluate)
