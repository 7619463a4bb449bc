"""VAEs of several views of an example: products, mixtures, and mixtures of products of experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxvae import likelihoods, networks, training
from jaxvae.distributions import OneHotCategorical
from jaxvae.families import contract, cuts
from jaxvae.families.contract import Built, Data, optimizer_of
from jaxvae.families.flat import likelihood_of
from jaxvae.families.objectives import Warmup
from jaxvae.models import modalities
from jaxvae.ranges import Amount, Count, Fraction, Whole, Widths
from jaxvae.settings import Choice, Chosen, changed

GAPS = "gaps"  # the preprocessing of real values among which some are missing


# Experts


class Experts(NamedTuple):
    """The sets of views that the posterior is made of, and the objective."""

    sets: Callable[[int], modalities.Sets]
    objective: Callable[[modalities.Modalities, tuple[float, ...]], modalities.Objective]


def product(single_weight: Amount = 1.0, random_sets: Whole = 0) -> Experts:
    """The product of the experts and the prior (Wu & Goodman 2018, arXiv:1802.05335).

    Args:
      single_weight: weight of the ELBO of each view alone, beside the ELBO of all views.
      random_sets: how many random sets of views add their ELBO.
    """
    return Experts(
        modalities.all_views,
        lambda model, w: modalities.product_terms(model, w, single_weight, random_sets),
    )


def mixture() -> Experts:
    """The mixture of the experts (Shi et al. 2019, arXiv:1911.03393)."""
    return Experts(modalities.single_views, modalities.mixture_terms)


def both() -> Experts:
    """The mixture of the products of all sets of experts (Sutter et al. 2021, arXiv:2105.02470)."""
    return Experts(modalities.every_set, modalities.mean_terms)


EXPERTS = {"product": product, "mixture": mixture, "both": both}
MOST_VIEWS = 8  # of ``both``, which has 2^M - 1 sets

Views = Choice(cuts.VIEWS)
ExpertsOf = Choice(EXPERTS)
Likelihood = Choice(likelihoods.LIKELIHOODS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """A VAE of several views of an example, any of which may be missing.

    Wu & Goodman 2018, arXiv:1802.05335; Shi et al. 2019, arXiv:1911.03393.
    """

    views: Chosen = Views("halves_and_label")
    """What the views are."""
    experts: Chosen = ExpertsOf("product")
    """How the experts of the views make the posterior."""
    hidden_views: Fraction = 0.0
    """Share of the views of training examples that are hidden, chosen by the seed; each example
    keeps one view at least."""
    view_weights: tuple[float, ...] = ()
    """Weights of the views' likelihoods in training; empty is 1 for all, and reports have none."""
    latent: Count = 10
    """Dimensions of z."""
    likelihood: Chosen = Likelihood("bernoulli")
    """Family of p(x|z) of every view but the label."""
    hidden: Widths = (200, 200)
    """Widths of the hidden layers of each view's encoder; the decoder has them in reverse order."""
    activation: networks.ActivationName = "silu"
    """Activation of the hidden layers."""
    kl_warmup: Chosen = Warmup("none")
    """Schedule of the weight of KL."""


def support(config: Config) -> tuple[str, ...]:
    """The preprocessing that the likelihood takes."""
    taken = config.likelihood(levels=2).support
    return (*taken, GAPS) if "none" in taken else taken


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    cut, experts, likelihood = (
        config.views(data=data),
        config.experts(),
        likelihood_of(config, data),
    )
    _check(config, cut)
    views = tuple(
        view_of(config, data, name, size, likelihood)
        for name, size in zip(cut.names, cut.sizes, strict=True)
    )
    model = modalities.Modalities(views, config.latent, experts.sets(len(views)))
    objective = experts.objective(model, tuple(map(float, config.view_weights)))
    algorithm = training.gradient_descent(
        model.init,
        training.batch_mean(modalities.negative_views(objective, config.kl_warmup(end=1.0))),
        optimizer_of(config),
        accumulate=config.accumulate,
        virtual_shards=config.virtual_shards,
        ema_decay=config.ema_decay,
        skip_norm=config.skip_norm,
    )
    raw = cuts.with_labels(data) if cut.label else cuts.plain

    def training_raw(split: Any) -> cuts.Shown:
        return cuts.shown(raw(split), len(views), config.hidden_views, config.seed)

    return Built(
        modalities.modalities_answers(model),
        algorithm,
        cuts.seen_by(cut, data),
        model,
        raw=raw,
        training_raw=training_raw if config.hidden_views else None,
        pictures=lambda x, condition: cut.pictures(x),
        discrete=likelihood.discrete,
    )


def _check(config: Config, cut: cuts.Cut) -> None:
    count = len(cut.names)
    if config.view_weights and len(config.view_weights) != count:
        raise ValueError(
            f"view_weights={config.view_weights} must be one for each of the {count} views, "
            f"{', '.join(cut.names)}"
        )
    if config.experts.name == "both" and count > MOST_VIEWS:
        raise ValueError(
            f"experts=both has 2^{count} - 1 sets of {count} views; at most {MOST_VIEWS} views go"
        )


def view_of(
    config: Config, data: Data, name: str, size: int, likelihood: likelihoods.Likelihood
) -> modalities.View:
    """A view with its networks.

    Args:
      config: the configuration.
      data: what is known of the data.
      name: the view's name.
      size: how many numbers it has.
      likelihood: the family of every view but the label.
    """
    activation = networks.ACTIVATIONS[config.activation]
    family = of_label() if name == cuts.LABEL else likelihood
    encoder = networks.mlp(config.hidden, 2 * config.latent, activation)
    decoder = networks.mlp(config.hidden[::-1], family.outputs((size,)), activation)
    encoder, decoder = (networks.with_precision(n, config.precision) for n in (encoder, decoder))
    scale = 1.0 if name == cuts.LABEL else data.input_scale
    return modalities.View(name, size, networks.scaled_input(encoder, scale), decoder, family)


def of_label() -> likelihoods.Likelihood:
    """A class, one-hot; raw holds the logits."""
    return likelihoods.Likelihood(
        1, lambda params, raw: OneHotCategorical(raw[..., 0]), (), discrete=True
    )


def _preset(text: str, **named: Any) -> tuple[str, Config]:
    return text, changed(Config(), **named)


PRESETS: dict[str, tuple[str, Config]] = {
    "multimodal": _preset(
        "several views of an example, any of them missing: --experts product, mixture or both"
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
