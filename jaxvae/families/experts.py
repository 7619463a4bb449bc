"""Dirichlet-process mixtures of VAEs: Infinite VAE (Abbasnejad et al. 2017, arXiv:1611.07800)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import likelihoods, models, networks, posteriors, priors, training
from jaxvae.contracts import Array, Params, Terms
from jaxvae.families import assembly, contract
from jaxvae.families.contract import Built, Data, optimizer_of
from jaxvae.families.flat import likelihood_of, support
from jaxvae.ranges import Amount, Count, Whole
from jaxvae.settings import Choice, Chosen, changed

SEEN = 1000  # training examples that the first components are chosen from
Likelihood = Choice(likelihoods.LIKELIHOODS)
Pair = Choice(networks.PAIRS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """A mixture of VAEs that opens and drops its components in training."""

    latent: Count = 4
    """Dimensions of z in each component."""
    likelihood: Chosen = Likelihood("bernoulli")
    """Family of p(x|z)."""
    network: Chosen = Pair("mlp", hidden=(64, 64))
    """Networks of the encoder and the decoder of each component."""
    experts: Count = 20
    """Components at most."""
    first_experts: Count = 10
    """Components that training starts with, each around an example far from the others."""
    concentration: Amount = 1.0
    """Concentration of the Dirichlet process; 0 opens no component."""
    settling_steps: Whole = 500
    """Steps before the first Gibbs move."""
    gate_samples: Count = 5
    """Draws of z from which an example's component is drawn, for each component."""


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    check(config)
    posterior, likelihood = posteriors.normal(config.latent), likelihood_of(config, data)
    pair = assembly.networks_of(config, data, posterior, likelihood, data.shape)
    vae = models.vae(*pair, posterior, likelihood, priors.standard_normal(config.latent))
    mixture = models.ExpertMixture(vae, config.concentration)
    moves = training.Moves(config.experts, config.concentration, config.settling_steps)
    components = components_of(mixture, seeds_of(config, data), config.gate_samples)
    algorithm = training.growing_mixture(components, optimizer_of(config), moves, data.size)

    def init(key: Array, x: Any) -> Params:
        return training.trained(algorithm.init(key, x))

    answers = models.expert_answers(mixture, init, config.gate_samples)
    return Built(answers, algorithm, data.preprocess, mixture, discrete=likelihood.discrete)


def check(config: Config) -> None:
    """Raises ValueError for settings that this family does not serve."""
    if config.first_experts > config.experts:
        raise ValueError(
            f"first_experts={config.first_experts} must be at most experts={config.experts}"
        )
    if config.accumulate > 1 or config.virtual_shards or config.ema_decay or config.skip_norm:
        raise ValueError(
            "moves between components are of whole batches and of the newest parameters: "
            "accumulate must be 1, and virtual_shards, ema_decay and skip_norm must be 0"
        )


def components_of(mixture: models.ExpertMixture, seeds: Array, samples: int) -> training.Components:
    """The functions of the components for ``training.growing_mixture``."""

    def losses(stacked: Params, key: Array, x: Any) -> tuple[Array, Terms]:
        of_one = lambda expert: models.elbo_terms(mixture.vae, expert, key, x, 1)
        terms = jax.vmap(of_one)(stacked)
        return terms["kl"] - terms["reconstruction"], terms

    def evidence(stacked: Params, key: Array, x: Any) -> Array:
        return mixture.evidence({"experts": stacked}, key, x, samples)

    def nearest(x: Any) -> Array:
        return jnp.argmin(((x - seeds) ** 2).reshape(len(seeds), -1).sum(1))

    return training.Components(mixture.vae.init, evidence, losses, nearest)


def seeds_of(config: Config, data: Data) -> Array:
    """Examples that are far from each other, [first_experts, *x], as k-means++ draws them.

    Arthur & Vassilvitskii 2007. They are zeros if the data set is not there.
    """
    raw = jnp.asarray(data.first_examples(min(SEEN, data.size)))
    keys = jax.random.split(jax.random.key(config.seed), len(raw))
    x = jax.vmap(data.preprocess)(keys, raw).astype(jnp.float32)
    if data.examples is None:
        return jnp.zeros((config.first_experts, *x.shape[1:]))
    return x[far_apart(np.asarray(x).reshape(len(x), -1), config.first_experts, config.seed)]


def far_apart(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The rows of points [N, D], each drawn by its squared distance to the rows before."""
    rng = np.random.default_rng(seed)
    chosen = [int(rng.integers(len(points)))]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(1))
        total = nearest.sum()
        even = np.full(len(points), 1 / len(points))
        chosen.append(int(rng.choice(len(points), p=nearest / total if total else even)))
    return np.array(chosen)


PRESETS = {
    "infinite-vae": (
        "a mixture of VAEs that grows and shrinks in training (Abbasnejad et al. 2017)",
        changed(Config(), steps=4000, batch_size=100, test_samples=200),
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
