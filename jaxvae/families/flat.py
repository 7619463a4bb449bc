"""Flat VAEs: one encoder, one decoder, continuous latents.

Kingma & Welling 2013, arXiv:1312.6114.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae import bounds, likelihoods, models, networks, posteriors, priors
from jaxvae.contracts import Array
from jaxvae.families import assembly, contract
from jaxvae.families.contract import Built, Data
from jaxvae.families.objectives import Corruption, KLCost, Penalty, bound_choice
from jaxvae.ranges import Count
from jaxvae.settings import Choice, Chosen, changed


@dataclasses.dataclass(frozen=True)
class PseudoInputs:
    """Where the pseudo-inputs of a VampPrior start."""

    count: int
    from_data: bool


def natural() -> None:
    """The posterior's natural prior, which has no parameters."""


def vampprior(components: Count = 10) -> PseudoInputs:
    """A mixture of posteriors at learned inputs that start as noise (Tomczak & Welling 2017).

    Args:
      components: how many pseudo-inputs the mixture has.
    """
    return PseudoInputs(components, from_data=False)


def vampprior_data(components: Count = 10) -> PseudoInputs:
    """A mixture of posteriors at learned inputs that start as examples (Tomczak & Welling 2017).

    Args:
      components: how many pseudo-inputs the mixture has.
    """
    return PseudoInputs(components, from_data=True)


class _Priors(dict):
    """The natural prior, VampPriors, and every member of ``priors.PRIORS``."""

    def items(self) -> Any:
        return ({"natural": natural} | priors.PRIORS | VAMPPRIORS).items()


VAMPPRIORS = {"vampprior": vampprior, "vampprior_data": vampprior_data}
Posterior = Choice(posteriors.CONTINUOUS)
Prior = Choice(_Priors())
Likelihood = Choice(likelihoods.LIKELIHOODS)
Pair = Choice(networks.PAIRS)
Bound = bound_choice("continuous", "pathwise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """A flat VAE with continuous latents."""

    latent: Count = 10
    """Dimensions of z."""
    posterior: Chosen = Posterior("normal")
    """Family of q(z|x)."""
    prior: Chosen = Prior("natural")
    """Family of p(z)."""
    likelihood: Chosen = Likelihood("bernoulli")
    """Family of p(x|z)."""
    network: Chosen = Pair("mlp")
    """Networks of the encoder and the decoder."""
    bound: Chosen = Bound("elbo")
    """Objective of the training."""
    divergence: Chosen = Penalty("none")
    """Penalty on the codes of a batch."""
    corruption: Chosen = Corruption("none")
    """Corruption of the examples that the encoder sees in training."""


def support(config: Any) -> tuple[str, ...]:
    """The preprocessing that the likelihood takes."""
    return config.likelihood(levels=2).support


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    prior = config.prior(latent=config.latent)
    extra = prior.extra if isinstance(prior, priors.Prior) else 0
    posterior = config.posterior(latent=config.latent + extra)
    check_density(config, posterior)
    likelihood = likelihood_of(config, data)
    encoder, decoder = assembly.networks_of(config, data, posterior, likelihood, data.shape)
    decoder = networks.on_slice(decoder, slice(extra, None)) if extra else decoder
    given = prior if isinstance(prior, priors.Prior) else natural_prior(posterior, config.latent)
    vae = models.vae(encoder, decoder, posterior, likelihood, given)
    if isinstance(prior, PseudoInputs):
        vae = with_pseudo_inputs(vae, prior, data)
    vae = assembly.with_control(vae, config.bound)
    objective = lambda model: config.bound(vae=model, latent=config.latent)
    penalty = config.divergence(size=data.size)
    return assembly.trained_model(
        config, data, vae, objective, penalty, discrete=likelihood.discrete
    )


def likelihood_of(config: Any, data: Data) -> likelihoods.Likelihood:
    """The likelihood of a configuration.

    Raises ValueError if it needs the number of levels and the pixels are real numbers.
    """
    needs_levels = "levels" in config.likelihood.required
    if needs_levels and data.levels is None:
        raise ValueError(
            f"likelihood={config.likelihood.name} is of pixels with a number of levels, and these "
            "are real numbers: state levels, or use a density such as normal"
        )
    return config.likelihood(levels=data.levels)


def natural_prior(posterior: posteriors.Posterior, latent: int) -> priors.Prior:
    """The natural prior of a posterior, which has no parameters."""
    return posterior.prior(latent)


def check_density(config: Any, posterior: posteriors.Posterior) -> None:
    """Raises ValueError if the prior or the bound does not go with the posterior."""
    prior, name = config.prior.name, config.posterior.name
    if posterior.prior is not priors.standard_normal and prior not in ("natural", *VAMPPRIORS):
        raise ValueError(
            f"prior={prior} is of real latents, which posterior={name} does not have: "
            "leave it natural"
        )
    bound = config.bound.name
    if bound == "elbo":
        return
    if name == "spike_and_slab":
        raise ValueError(
            f"posterior={name} needs bound=elbo, whose KL is in closed form; the gradient of "
            f"bound={bound} would miss that the density of a draw jumps at zero"
        )
    _check_given_density(config, posterior)


def _a_posterior(posterior: posteriors.Posterior) -> Any:
    return posterior.make(posterior.init(jax.random.key(0)), jnp.zeros(posterior.size))


def _check_given_density(config: Any, posterior: posteriors.Posterior) -> None:
    """Raises ValueError if the bound needs a density that a flow without an inverse lacks."""
    if config.posterior.name not in posteriors.FLOWS:
        return
    key, bound = jax.random.key(0), config.bound.name

    def bounded() -> Array:
        q = _a_posterior(posterior)
        if bound == "sampled_elbo":
            return q.log_prob(q.sample(key))
        member = bounds.BOUNDS[bound]
        samples = max(member.min_samples, config.bound.num_samples or 1)
        settings = {n: v for n, v in config.bound.settings.items() if n in member.settings}
        more = {"prior": q} if member.takes_prior else {}
        return member.configured(**settings)(key, q, lambda z: z.sum(), samples, **more)

    try:
        jax.eval_shape(bounded)
    except TypeError as error:
        raise ValueError(
            f"bound={bound} takes the density of posterior={config.posterior.name} at given "
            "latents, and that flow has no inverse: it has the density of its own draws alone, "
            "which serves bound=elbo, iwae, miwae and ciwae"
        ) from error


def with_pseudo_inputs(vae: models.VAE, inputs: PseudoInputs, data: Data) -> models.VAE:
    """The model with a VampPrior, whose pseudo-inputs lie in [0, 1]."""
    if inputs.from_data and data.size < inputs.count:
        raise ValueError(
            f"components={inputs.count} pseudo-inputs need as many examples; there are {data.size}"
        )

    def start(key: Array, x: Array) -> Array:
        if not inputs.from_data:
            return 0.5 + 0.1 * jax.random.normal(key, (inputs.count, *x.shape))
        raw = jnp.asarray(data.first_examples(inputs.count))
        keys = jax.random.split(key, inputs.count)
        return jax.vmap(data.preprocess)(keys, raw).astype(jnp.float32)

    return models.with_vampprior(vae, start, lambda u: jnp.clip(u, 0.0, 1.0))


def _preset(text: str, **named: Any) -> tuple[str, Config]:
    return text, changed(Config(), **named)


PRESETS: dict[str, tuple[str, Config]] = {
    "digits": _preset("scikit-learn's 8x8 digits, needs no network: half a minute on two cores"),
    "mnist-vae": _preset(
        "784-200-200-50 on dynamically binarized MNIST (Burda et al. 2015): published 86.76 nats",
        dataset="mnist",
        activation="tanh",
        latent=50,
        steps=240_000,
        batch_size=100,
        learning_rate=2e-3,
        checkpoint_every=12_000,
        report_every=600,
        test_samples=5000,
    ),
    "conv": _preset(
        "convolutional encoder and decoder, on any image set in grey or colour",
        network="conv",
        hidden=(32, 64),
        latent=16,
        steps=2000,
        likelihood="discretized_logistic",
    ),
    "beta-vae": _preset("KL weighted with beta (Higgins et al. 2017)", kl_weight=4.0),
    "annealed-vae": _preset(
        "KL held at a capacity that rises (Burgess et al. 2018)",
        kl_cost=KLCost("capacity", kl_weight=100.0, kl_capacity=10.0, capacity_steps=3000),
    ),
    "beta-tcvae": _preset(
        "total correlation weighted with beta = 6 (Chen et al. 2018)",
        divergence=Penalty("total_correlation", divergence_weight=5.0),
    ),
    "factor-vae": _preset(
        "total correlation by a critic (Kim & Mnih 2018)",
        divergence=Penalty("density_ratio", divergence_weight=6.0),
    ),
    "dip-vae-i": _preset(
        "covariance of the means (Kumar et al. 2017)",
        divergence=Penalty("dip_i", divergence_weight=5.0),
    ),
    "dip-vae-ii": _preset(
        "covariance of q(z) (Kumar et al. 2017)",
        divergence=Penalty("dip_ii", divergence_weight=5.0),
    ),
    "info-vae": _preset(
        "MMD in KL's place, with a stochastic encoder (Zhao et al. 2017)",
        kl_weight=0.0,
        divergence=Penalty("mmd_rbf", divergence_weight=100.0),
    ),
    "vampprior": _preset(
        "a mixture of posteriors as prior (Tomczak & Welling 2017)", prior="vampprior"
    ),
    "coupling-prior": _preset("affine couplings as prior (Dinh et al. 2017)", prior="coupling"),
    "autoregressive-prior": _preset(
        "a masked autoregressive flow as prior (arXiv:1705.07057)", prior="autoregressive"
    ),
    "gmvae": _preset(
        "components of the prior that are functions of w (Dilokthanakul et al. 2016)",
        prior="hierarchical_mixture",
    ),
    "vade": _preset(
        "a mixture as prior, one component a cluster (Jiang et al. 2016)", prior="mixture"
    ),
    "planar": _preset("planar flows as posterior (Rezende & Mohamed 2015)", posterior="planar"),
    "radial": _preset("radial flows as posterior (Rezende & Mohamed 2015)", posterior="radial"),
    "householder": _preset(
        "Householder flows as posterior (Tomczak & Welling 2016)", posterior="householder"
    ),
    "sylvester": _preset(
        "orthogonal Sylvester flows as posterior (van den Berg et al. 2018)", posterior="sylvester"
    ),
    "triangular-sylvester": _preset(
        "triangular Sylvester flows (van den Berg et al. 2018)", posterior="triangular_sylvester"
    ),
    "iaf": _preset(
        "inverse autoregressive flows (Kingma et al. 2016)", posterior="inverse_autoregressive"
    ),
    "full-covariance": _preset(
        "a full-covariance Gaussian posterior", posterior="multivariate_normal"
    ),
    "power-spherical": _preset(
        "latents on a sphere (De Cao & Aziz 2020)", posterior="power_spherical"
    ),
    "von-mises-fisher": _preset(
        "latents on a sphere (Davidson et al. 2018)", posterior="von_mises_fisher"
    ),
    "spike-and-slab": _preset("sparse latents (Tonolini et al. 2019)", posterior="spike_and_slab"),
    "stick-breaking": _preset(
        "latents are 50 lengths of a broken stick (Nalisnick & Smyth 2017)",
        posterior="kumaraswamy_sticks",
        latent=49,
    ),
    "learned-variance": _preset(
        "one learned noise variance (Dai & Wipf 2019)", likelihood="normal_learned"
    ),
    "structured-residuals": _preset(
        "residuals with a banded precision (Dorta et al. 2018)", likelihood="normal_banded"
    ),
    "denoising-vae": _preset("a VAE of corrupted inputs (Im et al. 2015)", corruption="masking"),
    "iwae": _preset(
        "the importance-weighted bound (Burda et al. 2015)", bound=Bound("iwae", num_samples=5)
    ),
    "miwae": _preset(
        "means of such bounds (Rainforth et al. 2018)",
        bound=Bound("miwae", num_samples=6, groups=2),
    ),
    "piwae": _preset(
        "IWAE for the decoder, MIWAE for the encoder (Rainforth et al. 2018)",
        bound=Bound("piwae", num_samples=6, groups=2),
    ),
    "ciwae": _preset(
        "IWAE and ELBO, mixed (Rainforth et al. 2018)", bound=Bound("ciwae", num_samples=5)
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support)
