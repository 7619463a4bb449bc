"""What amortized inference loses, and log-likelihoods that can be trusted.

``python experiments/papers/inference.py [--table annealing] [--run RUN] [--json OUT]``

* ``gaps``: the inference gap of a VAE on its training and its test split, in the two parts of
  Cremer et al. 2018 (arXiv:1801.03558).
* ``annealing``: log p(x) of the test split by annealed importance sampling, beside the
  importance-weighted bound, and bidirectional Monte Carlo on simulated data (Wu et al. 2017,
  arXiv:1611.04273). A row is a start and a number of temperatures.
* ``exact``: both directions on probabilistic PCA of the digits, whose log p(x) is known.

The model is trained, or it is the one of ``--run``. Intervals are of 95 %, over the examples.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import tables
from jaxvae import datasets, families, likelihoods, models, networks, posteriors, priors
from jaxvae.command_line import run_function
from jaxvae.runs.commands import opened
from jaxvae.uses import annealing, inference, linear
from jaxvae.uses.estimates import Estimate, mean_of_column


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is measured, and of which model."""

    table: Literal["gaps", "annealing", "exact"] = "gaps"
    """Table to make."""
    run: Path | None = None
    """Run folder of a trained model; none trains one."""
    dataset: str = "digits"
    steps: int = 5000
    examples: int | None = 64
    """Examples of each split, and simulated ones."""
    refinement_steps: int = 1000
    """Steps of gradient from the encoder's posterior."""
    temperatures: tuple[int, ...] = (100, 300)
    """Temperatures of annealing, a row each."""
    starts: tuple[str, ...] = ("encoder", "prior")
    """What chains start from, a row each."""
    chains: int = 16
    """Chains of annealing, for each example."""
    num_samples: int = 5000
    """Importance samples K, and fresh draws of each bound."""

    def __post_init__(self) -> None:
        for start in self.starts:
            if start not in ("encoder", "prior"):
                raise ValueError(f"--starts are encoder and prior; one was {start}")


class Subject(NamedTuple):
    """A trained model and its splits."""

    model: models.Model
    params: Any
    key: jax.Array
    splits: dict[str, Any]


def subject(options: Options) -> Subject:
    """The model of ``--run``, or one that is trained now."""
    if options.run is not None:
        run = opened(options.run, "latest", data_dir=options.data_dir)
        config = run.record.config
        splits = {"train": run.split(config.train_split), "test": run.split(config.test_split)}
        return Subject(run.built.model, run.params, run.key, splits)
    config = options.applied(families.preset("digits"))
    trained, params, _ = tables.trained(config, options.job)
    splits = {"train": trained.built.split(trained.train), "test": trained.test}
    return Subject(trained.built.model, params, trained.key, splits)


def cell(record: Any, seconds: float) -> dict[str, float]:
    """The numbers of a record: each estimate with half its interval."""
    numbers: dict[str, float] = {}
    for name, value in record._asdict().items():
        if isinstance(value, Estimate):
            numbers |= {name: value.value, f"{name} ±": value.interval}
        elif value is not None:
            numbers[name] = value
    return numbers | {"seconds": seconds}


def gap_rows(options: Options) -> tables.Results:
    """The gap of both splits."""
    about, rows = subject(options), {}
    for name, split in about.splits.items():
        start = time.perf_counter()
        found = inference.gaps(
            about.model,
            about.params,
            about.key,
            datasets.random_subset(split, options.examples),
            num_steps=options.refinement_steps,
            num_samples=options.num_samples,
            temperatures=options.temperatures[0],
            chains=options.chains,
        )
        rows[name] = [cell(found, time.perf_counter() - start)]
        print(f"{name}: amortization {found.amortization}, approximation {found.approximation}")
    return rows


def annealing_rows(options: Options) -> tables.Results:
    """Real and simulated data, for each start and number of temperatures."""
    about, rows = subject(options), {}
    test = datasets.random_subset(about.splits["test"], options.examples)
    count = datasets.num_examples(test.x)
    for start in options.starts:
        for steps in options.temperatures:
            began = time.perf_counter()
            settings: Any = {"num_steps": steps, "chains": options.chains, "start": start}
            settings["num_samples"] = options.num_samples
            model = about.model, about.params, about.key
            real = annealing.compared(*model, test, **settings)
            simulated = annealing.sandwich(*model, num_examples=count, **settings)
            numbers = cell(real, 0.0) | {
                f"simulated {name}": value for name, value in cell(simulated, 0.0).items()
            }
            seconds = {"seconds": time.perf_counter() - began}
            rows[f"{start}, T = {steps}"] = [numbers | seconds]
            print(
                f"{start}, T = {steps}: AIS - bound {real.difference}, simulated gap "
                f"{simulated.gap}",
                flush=True,
            )
    return rows


class Exact(NamedTuple):
    """Both directions beside the exact log p(x)."""

    forward: Estimate  # forward - exact
    reverse: Estimate  # reverse - exact
    gap: Estimate
    weight: Estimate  # E w / p(x)


def exact_rows(options: Options) -> tables.Results:
    """Probabilistic PCA of the digits, from the prior, by the number of temperatures."""
    from sklearn.datasets import load_digits

    fitted = linear.closed_form(load_digits().data / 16, options.latent)
    vae, params = as_vae(fitted)
    keys, rows = jax.random.split(jax.random.key(0), options.examples or 64), {}
    for steps in options.temperatures:
        start = time.perf_counter()

        def one(key: jax.Array, steps: int = steps) -> Any:
            return annealing.both_sides(vae, params, key, steps, options.chains, "prior")

        sides, x = jax.jit(jax.vmap(one))(keys)
        lower, upper = (np.asarray(side.log_likelihood, np.float64) for side in sides)
        exact = fitted.log_likelihood(x)
        weights = np.exp(np.asarray(sides.lower.log_weights, np.float64) - exact[:, None]).mean(1)
        found = Exact(*map(mean_of_column, (lower - exact, upper - exact, upper - lower, weights)))
        rows[f"T = {steps}"] = [cell(found, time.perf_counter() - start)]
        print(f"T = {steps}: forward {found.forward}, reverse {found.reverse}, gap {found.gap}")
    return rows


def as_vae(fitted: linear.LinearGaussian) -> tuple[models.VAE, Any]:
    """A linear VAE with the decoder of probabilistic PCA. Its encoder gives the prior."""
    size, latent = fitted.weights.shape
    posterior = posteriors.normal(latent)
    vae = models.vae(
        networks.mlp((), posterior.size),
        networks.mlp((), size),
        posterior,
        likelihoods.normal_learned(),
        priors.standard_normal(latent),
    )
    encoder = {"kernel": np.zeros((size, posterior.size)), "bias": np.zeros(posterior.size)}
    params = {
        "encoder": {"output": encoder},
        "posterior": {},
        "decoder": {"output": {"kernel": fitted.weights.T, "bias": fitted.mean}},
        "likelihood": {"log_scale": 0.5 * np.log(fitted.variances[0])},
        "prior": {},
    }
    return vae, jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)


TABLES = {"gaps": gap_rows, "annealing": annealing_rows, "exact": exact_rows}


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """The inference gap taken apart, and log-likelihoods by annealing with both bounds."""
    options.chosen({})
    results = TABLES[options.table](options)
    columns = list(next(iter(results.values()))[0])
    lines = [["", *results]]
    for column in columns:
        lines.append([column, *(f"{cells[0][column]:.3f}" for cells in results.values())])
    print("\n" + tables.aligned(lines))
    tables.save(options.json, dataclasses.asdict(options), results)


if __name__ == "__main__":
    run_function(main)
