"""The choices of an objective: bounds, estimators, costs of KL, penalties, corruption."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from jaxvae import (
    bounds,
    datasets,
    divergences,
    expectations,
    kl_costs,
    models,
    networks,
    schedules,
    training,
)
from jaxvae.contracts import Array, BatchLoss, Loss
from jaxvae.ranges import Amount, Count, Widths
from jaxvae.settings import Choice, Chosen

Warmup = Choice(schedules.WARMUPS)


# What KL costs in the ELBO


class Weight(NamedTuple):
    """A cost that is a weight of KL for each example."""

    schedule: optax.Schedule
    is_zero: bool


def weighted(kl_weight: Amount = 1.0, kl_warmup: Chosen = Warmup("none")) -> Weight:
    """KL times a weight, beta of a beta-VAE (Higgins et al. 2017).

    Args:
      kl_weight: the weight of KL, or the last weight of its warm-up.
      kl_warmup: the schedule of the weight.
    """
    return Weight(kl_warmup(end=kl_weight), kl_weight == 0)


def free_bits(
    free_bits: Amount = 0.1,
    free_bits_groups: Count = 1,
    kl_weight: Amount = 1.0,
    kl_warmup: Chosen = Warmup("none"),
) -> kl_costs.KLCost:
    """KL that is free below some nats (Kingma et al. 2016, arXiv:1606.04934).

    Args:
      free_bits: nats of KL that each group of latents has for free.
      free_bits_groups: how many groups the latents are divided into.
      kl_weight: the weight of KL, or the last weight of its warm-up.
      kl_warmup: the schedule of the weight.
    """
    return kl_costs.free_bits(free_bits, free_bits_groups, kl_warmup(end=kl_weight))


def capacity(
    kl_weight: Amount = 100.0, kl_capacity: Amount = 10.0, capacity_steps: Count = 1000
) -> kl_costs.KLCost:
    """KL held at a capacity that rises (Burgess et al. 2018, arXiv:1804.03599).

    Args:
      kl_weight: the weight of |KL - C|.
      kl_capacity: the last capacity C, in nats.
      capacity_steps: steps in which the capacity rises from 0.
    """
    return kl_costs.capacity(kl_weight, schedules.linear_warmup(capacity_steps, kl_capacity))


def capacities(
    latent: int,
    kl_weight: Amount = 30.0,
    kl_capacity: Amount = 5.0,
    class_capacity: Amount = 2.3,
    capacity_steps: Count = 1000,
) -> kl_costs.KLCost:
    """KL of Gaussian latents and of a class, each held at a capacity that rises.

    Dupont 2018, arXiv:1804.00104.

    Args:
      latent: how many Gaussian latents there are.
      kl_weight: the weight of both |KL - C|.
      kl_capacity: the last capacity C of the Gaussian latents, in nats.
      class_capacity: the last capacity C of the class, in nats.
      capacity_steps: steps in which the capacities rise from 0.
    """
    held = [capacity(kl_weight, nats, capacity_steps) for nats in (kl_capacity, class_capacity)]
    return kl_costs.blocks((latent, 1), held)


KL_COSTS = {"weighted": weighted, "free_bits": free_bits, "capacity": capacity}
KLCost = Choice(KL_COSTS)
JointKLCost = Choice(KL_COSTS | {"capacities": capacities})


# Gradient estimators and bounds


@functools.lru_cache(maxsize=128)
def _configured(estimator: expectations.Estimator) -> Callable:
    """A function of an estimator's settings that returns the estimator with them."""

    defaults = {name: parameter.default for name, parameter in estimator.settings.items()}

    def make(**settings: Any) -> expectations.Estimator:
        other = {name: value for name, value in settings.items() if value != defaults[name]}
        return estimator.configured(**other) if other else estimator

    make.__signature__ = inspect.Signature([*estimator.settings.values()])  # type: ignore[attr-defined]
    make.__doc__ = estimator.__doc__
    return make


def estimator_choice(latents: str) -> Choice:
    """The gradient estimators that serve a kind of latents."""
    return Choice(expectations.ESTIMATORS, lambda e: latents in e.latents, _configured)


class Objective(NamedTuple):
    """The loss of a batch."""

    batch: BatchLoss
    example: Loss | None = None  # the loss of one example, if ``batch`` is its mean

    @classmethod
    def of_example(cls, loss: Loss) -> Objective:
        """The objective that is the mean of a loss over examples."""
        return cls(training.batch_mean(loss), loss)


def _num_samples(num_samples: int | None, estimator: expectations.Estimator) -> int:
    return estimator.min_samples if num_samples is None else num_samples


def _elbo(vae: Any, latent: int, num_samples: Any, estimator: Chosen, kl_cost: Chosen) -> Objective:
    chosen = estimator()
    samples, cost = _num_samples(num_samples, chosen), kl_cost(latent=latent)
    if not isinstance(cost, Weight):
        if chosen.init is not None:
            raise ValueError(
                f"kl_cost={kl_cost.name} takes no estimator that learns; it was {estimator.name}"
            )
        return Objective(models.with_kl_cost(vae, cost, samples, chosen))
    if cost.is_zero:
        loss = models.negative_reconstruction(vae, samples, chosen)
    else:
        loss = models.negative_elbo(vae, samples, cost.schedule, chosen)
    return Objective.of_example(loss)


def _sampled_elbo(vae: Any, num_samples: Any, estimator: Chosen) -> Objective:
    chosen = estimator()
    loss = models.negative_sampled_elbo(vae, _num_samples(num_samples, chosen), chosen)
    return Objective.of_example(loss)


NUM_SAMPLES = "samples of z for each example, K; None is the fewest that are needed"


def _with_num_samples(text: str) -> str:
    """A bound's docstring, which explains ``num_samples`` too."""
    summary, _, arguments = inspect.cleandoc(text).partition("Args:\n")
    return f"{summary.rstrip()}\n\nArgs:\n  num_samples: {NUM_SAMPLES}.\n{arguments}"


@functools.lru_cache(maxsize=128)
def _bound(bound: expectations.Estimator) -> Callable:
    """A function of a model and a bound's settings that returns the objective."""

    def make(vae: Any, num_samples: int | None = None, **settings: Any) -> Objective:
        samples = _num_samples(num_samples, bound)
        return Objective.of_example(models.negative(bound.configured(**settings), vae, samples))

    first = list(inspect.signature(make, eval_str=True).parameters.values())[:2]
    annotated = [first[0], first[1].replace(annotation=Count | None)]
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in bound.settings.values()]
    make.__signature__ = inspect.Signature([*annotated, *keywords])  # type: ignore[attr-defined]
    make.__doc__ = _with_num_samples(bound.__doc__ or "")
    return make


class _Bounds(dict):
    """The two ELBOs, and every bound of ``bounds.BOUNDS`` that serves a kind of latents."""

    def __init__(self, latents: str, elbos: dict[str, Callable]):
        super().__init__(elbos)
        self.latents = latents

    def items(self) -> Any:
        rest = {
            name: _bound(bound)
            for name, bound in bounds.BOUNDS.items()
            if self.latents in bound.latents and name not in self
        }
        return (dict(self) | rest).items()


def bound_choice(latents: str, estimator: str, kl_cost: Choice = KLCost) -> Choice:
    """The objectives for a kind of latents, with their usual gradient estimator.

    ``elbo`` has KL in closed form, and ``sampled_elbo`` estimates KL from draws. The others are
    members of ``jaxvae.bounds``.
    """
    estimators = estimator_choice(latents)

    def elbo(
        vae: Any,
        latent: int,
        num_samples: Count | None = None,
        estimator: Chosen = estimators(estimator),
        kl_cost: Chosen = kl_cost("weighted"),
    ) -> Objective:
        """The ELBO with KL in closed form, if it has one (arXiv:1312.6114, eq. 7).

        Args:
          vae: the model.
          latent: dimensions of z.
          num_samples: samples of z for each example, K; None is the fewest that are needed.
          estimator: the gradient estimator of E_q log p(x|z).
          kl_cost: what KL costs.
        """
        return _elbo(vae, latent, num_samples, estimator, kl_cost)

    def sampled_elbo(
        vae: Any, num_samples: Count | None = None, estimator: Chosen = estimators(estimator)
    ) -> Objective:
        """The ELBO with KL inside the expectation (arXiv:1312.6114, eq. 6).

        Args:
          vae: the model.
          num_samples: samples of z for each example, K; None is the fewest that are needed.
          estimator: the gradient estimator of the whole expectation.
        """
        return _sampled_elbo(vae, num_samples, estimator)

    return Choice(_Bounds(latents, {"elbo": elbo, "sampled_elbo": sampled_elbo}))


# Penalties on the codes of a batch


class Critic(NamedTuple):
    """A penalty that a critic estimates, and the optimizer of the critic."""

    adversary: models.Adversary
    optimizer: optax.GradientTransformation


def _no_penalty() -> None:
    """No penalty."""


@functools.lru_cache(maxsize=64)
def _of_divergence(name: str) -> Callable:
    def penalty(divergence_weight: Amount = 1.0) -> models.Penalty:
        return models.divergence(divergence_weight, divergences.DIVERGENCES[name])

    penalty.__doc__ = f"""The divergence {name} between samples of q(z) and p(z).

    Args:
      divergence_weight: the weight of the divergence.
    """
    return penalty


def total_correlation(size: int, divergence_weight: Amount = 1.0) -> models.Penalty:
    """Total correlation of q(z) by weighted sampling (Chen et al. 2018, arXiv:1802.04942).

    Args:
      size: how many training examples there are.
      divergence_weight: the weight of the total correlation, beside its weight of 1 in KL.
    """
    return models.total_correlation(divergence_weight, size)


def stratified_total_correlation(size: int, divergence_weight: Amount = 1.0) -> models.Penalty:
    """Total correlation of q(z) by stratified sampling (arXiv:1802.04942, app. C).

    Args:
      size: how many training examples there are.
      divergence_weight: the weight of the total correlation, beside its weight of 1 in KL.
    """
    return models.total_correlation(divergence_weight, size, divergences.stratified_decomposition)


def dip_i(divergence_weight: Amount = 1.0) -> models.Penalty:
    """The covariance of the posterior means, of DIP-VAE-I (Kumar et al. 2017).

    Args:
      divergence_weight: the weight of its squared entries off the diagonal; the diagonal has ten
        times the weight.
    """
    return models.dip_i(divergence_weight, 10 * divergence_weight)


def dip_ii(divergence_weight: Amount = 1.0) -> models.Penalty:
    """The covariance of q(z), of DIP-VAE-II (Kumar et al. 2017).

    Args:
      divergence_weight: the weight of the squared distance to the unit matrix.
    """
    return models.dip_ii(divergence_weight, divergence_weight)


def _of_critic(adversary: Callable, text: str) -> Callable:
    def critic(
        divergence_weight: Amount = 1.0,
        critic_hidden: Widths = (256, 256, 256),
        critic_learning_rate: Amount = 1e-4,
    ) -> Critic:
        network = networks.mlp(
            critic_hidden, 1, functools.partial(jax.nn.leaky_relu, negative_slope=0.2)
        )
        made = adversary(networks.with_precision(network), divergence_weight)
        return Critic(made, training.adam(critic_learning_rate, 0.5, 0.9))

    critic.__doc__ = f"""{text}

    Args:
      divergence_weight: the weight of the penalty.
      critic_hidden: widths of the critic's hidden layers.
      critic_learning_rate: the learning rate of the critic's Adam (betas 0.5 and 0.9).
    """
    return critic


ADVERSARIAL = _of_critic(
    models.adversarial, "A critic between q(z) and p(z) (Makhzani et al. 2015)."
)
STATISTICS: dict[str, Callable] = {
    "total_correlation": total_correlation,
    "stratified_total_correlation": stratified_total_correlation,
    "dip_i": dip_i,
    "dip_ii": dip_ii,
    "density_ratio": _of_critic(
        models.density_ratio, "Total correlation of q(z) by a critic (Kim & Mnih 2018)."
    ),
}


class _Penalties(dict):
    """No penalty, every member of ``divergences.DIVERGENCES``, a critic, and further members."""

    def items(self) -> Any:
        distances = {name: _of_divergence(name) for name in divergences.DIVERGENCES}
        return ({"none": _no_penalty} | distances | {"adversarial": ADVERSARIAL} | self).items()


Distance = Choice(_Penalties())
Penalty = Choice(_Penalties(STATISTICS))


# What the encoder sees in training


def _clean() -> None:
    """The encoder sees x."""


def _of_corruption(name: str, text: str, level: str) -> Callable:
    def corruption(corruption_level: Amount = 0.3) -> Callable[[Array, Array], Array]:
        corrupt = datasets.CORRUPTIONS[name]
        return lambda key, x: corrupt(key, x, corruption_level)

    corruption.__doc__ = f"""{text}

    Args:
      corruption_level: {level}.
    """
    return corruption


CORRUPTIONS: dict[str, Callable] = {
    "none": _clean,
    "gaussian": _of_corruption(
        "gaussian",
        "The encoder sees x with Gaussian noise.",
        "the standard deviation of the noise",
    ),
    "masking": _of_corruption(
        "masking",
        "The encoder sees x with some values set to 0.",
        "the probability that a value is set to 0",
    ),
    "salt_and_pepper": _of_corruption(
        "salt_and_pepper",
        "The encoder sees x with some values set to 0 or 1.",
        "the probability that a value is set to 0 or 1",
    ),
}
Corruption = Choice(CORRUPTIONS)
