"""What ``evaluate --gap``, ``--ais`` and ``--nuts`` measure and print of a trained model."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import datasets, evaluation
from jaxvae.contracts import Array
from jaxvae.evaluation.columns import rows_in_memory
from jaxvae.models import Model
from jaxvae.runs import reports
from jaxvae.uses import annealing, chains, inference, targets
from jaxvae.uses.estimates import Estimate

Numbers = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What was asked for."""

    gap: bool = False
    ais: int | None = None  # temperatures
    nuts: int | None = None  # draws of each chain
    chains: int = 16
    start: annealing.Start = "encoder"
    refinement_steps: int = 1000
    num_examples: int = 100  # of all three
    num_samples: int = 5000  # importance samples

    def __post_init__(self) -> None:
        least = {"ais": 1, "nuts": 4, "chains": 2, "refinement_steps": 1, "num_examples": 2}
        spelled = {"num_examples": "inference-examples"}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                flag = spelled.get(name, name.replace("_", "-"))
                raise ValueError(f"--{flag} must be at least {low}; it was {value}")


def check(asked: Asked, model: Model, params: Any, split: Any) -> None:
    """Raises ValueError if the latents of a model do not allow what was asked for."""
    wanted = {"--gap": asked.gap, "--ais": asked.ais, "--nuts": asked.nuts}
    use = next((flag for flag, value in wanted.items() if value), None)
    if use is None:
        return

    def path(key: Array) -> Any:
        example = datasets.preprocessed(key, first)
        goal = targets.target(model, params, example, use)
        if asked.ais:
            base = annealing.base_of(model, params, example, asked.start)
            targets.density_of(goal, base, "--ais")
        return goal.log_joint(jnp.zeros(goal.size))

    row = rows_in_memory(datasets.examples_of(split), np.arange(1))
    first = jax.tree.map(lambda a: a[0], row)
    jax.eval_shape(path, jax.random.key(0))


def measure(asked: Asked, model: Model, params: Any, key: Array, split: Any) -> Numbers:
    """The numbers of what was asked for, by name.

    Args:
      asked: what was asked for.
      model: the model.
      params: its parameters.
      key: the key of all draws.
      split: the examples, of which a fixed random subset is taken.
    """
    numbers: Numbers = {}
    subset = datasets.random_subset(split, asked.num_examples)
    if asked.gap:
        with reports.counter(asked.num_examples, "inference gap") as done:
            numbers["gap"] = inference.gaps(
                model,
                params,
                key,
                subset,
                num_steps=asked.refinement_steps,
                num_samples=asked.num_samples,
                chains=asked.chains,
                progress=done,
            )
    if asked.ais:
        numbers |= _annealed(asked, model, params, key, subset)
    if asked.nuts:
        with reports.counter(asked.num_examples, "chains of NUTS") as done:
            numbers["nuts"] = chains.agreement(
                model,
                params,
                key,
                subset,
                chains=asked.chains,
                num_samples=asked.nuts,
                progress=done,
            )
    return numbers


def _annealed(asked: Asked, model: Model, params: Any, key: Array, split: Any) -> Numbers:
    settings: dict[str, Any] = {
        "num_steps": asked.ais,
        "chains": asked.chains,
        "start": asked.start,
        "num_samples": asked.num_samples,
    }
    with reports.counter(asked.num_examples, f"AIS, T = {asked.ais}") as done:
        real = annealing.compared(model, params, key, split, **settings, progress=done)
    if evaluation.sources.is_conditional(model, split):
        return {"ais": real}
    key_simulated = jax.random.fold_in(key, 1)
    settings["num_examples"] = asked.num_examples
    with reports.counter(asked.num_examples, "simulated data") as done:
        simulated = annealing.sandwich(model, params, key_simulated, **settings, progress=done)
    return {"ais": real, "ais_simulated": simulated}


def as_json(numbers: Numbers) -> Numbers:
    """The numbers as ``evaluation.json`` holds them."""

    def one(value: Any) -> Any:
        if not hasattr(value, "_asdict"):
            return value
        return {name: one(each) for name, each in value._asdict().items()}

    return {name: one(value) for name, value in numbers.items()}


def rows(numbers: Numbers) -> list[tuple[str, str]]:
    """The rows that ``evaluate`` prints. Intervals are of 95 %."""
    shown: list[tuple[str, str]] = []
    if "gap" in numbers:
        shown += _gap_rows(numbers["gap"])
    if "ais" in numbers:
        shown += _annealed_rows(numbers["ais"])
    if "ais_simulated" in numbers:
        shown += _simulated_rows(numbers["ais_simulated"])
    if "nuts" in numbers:
        shown += _chain_rows(numbers["nuts"])
    return shown


def _nats(estimate: Estimate) -> str:
    return f"{estimate} nats"


def _gap_rows(gaps: inference.Gaps) -> list[tuple[str, str]]:
    total = f"{gaps.amortization.value + gaps.approximation.value:.3f} nats"
    shown = [
        ("inference gap", f"{total} ({gaps.num_examples} images, 95 % intervals)"),
        ("  amortization", f"{_nats(gaps.amortization)}, {gaps.improved:.0%} of the images gain"),
        ("  approximation", _nats(gaps.approximation)),
        ("  bound of the encoder", _nats(gaps.encoder)),
        ("  bound of the refined q", f"{_nats(gaps.refined)} ({gaps.num_steps} steps)"),
    ]
    if gaps.full_covariance is not None:
        shown += [("  full covariance gains", f"{gaps.correlation} nats")]
    return [
        *shown,
        ("  log p, importance", f"{_nats(gaps.importance)}"),
        ("  log p, annealed", f"{_nats(gaps.annealed)}"),
    ]


def _annealed_rows(real: annealing.Comparison) -> list[tuple[str, str]]:
    about = f"T = {real.num_steps}, {real.chains} chains, {real.num_examples} images"
    return [
        ("log-likelihood by AIS", f"{_nats(real.annealed)} ({about}, 95 % intervals)"),
        ("  error of the chains", f"{real.chain_error:.3f} nats"),
        ("  effective chains", f"{real.effective_samples:.1f} of {real.chains}"),
        ("  acceptance", f"{real.acceptance:.2f}"),
        ("  importance-weighted", f"{_nats(real.importance)} (K = {real.num_samples})"),
        ("  AIS - importance", f"{_nats(real.difference)}, paired"),
    ]


def _simulated_rows(simulated: annealing.Sandwich) -> list[tuple[str, str]]:
    return [
        ("gap on simulated data", f"{_nats(simulated.gap)} ({simulated.num_examples} images)"),
        ("  forward", _nats(simulated.lower)),
        ("  reverse", _nats(simulated.upper)),
        ("  importance-weighted", f"{_nats(simulated.importance)} (K = {simulated.num_samples})"),
        ("  error of the chains", f"{simulated.chain_error:.3f} nats"),
    ]


def _chain_rows(found: chains.Agreement) -> list[tuple[str, str]]:
    about = f"{found.num_examples} images, {found.num_samples} draws each"
    return [
        ("encoder's mean from NUTS's", f"{found.shift:.3f} standard deviations ({about})"),
        ("encoder's spread over NUTS's", f"{found.spread:.3f}"),
        ("  largest R-hat", f"{found.largest_rhat:.3f}, {found.agreeing:.0%} at most 1.01"),
        ("  effective samples", f"{found.effective_samples:.0f} of the worst latent"),
        ("  divergences", f"{found.divergences}"),
    ]
