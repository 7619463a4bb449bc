"""Models of lossy compression: codes that are rounded, with a learned density of them.

The factorized prior (Ballé et al. 2017, arXiv:1611.01704) and the scale hyperprior (Ballé et al.
2018, arXiv:1802.01436). Both are VAEs whose q(y|x) is uniform on one rounding step, so the loss is
R + D: R = -log p(y) is the rate, and D = -log p(x|y) the distortion, |x - decoded|^2 / (2 scale^2)
but for a constant.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae import likelihoods, models, networks, posteriors, priors
from jaxvae.contracts import Array
from jaxvae.distributions import Box, Hierarchy, NoisyCumulative, NoisyNormal, init_cumulative
from jaxvae.families import assembly, contract
from jaxvae.families.contract import Built, Data
from jaxvae.families.objectives import Objective
from jaxvae.networks import Network as Pure
from jaxvae.ranges import Count, Whole, Widths
from jaxvae.settings import Choice, Chosen, changed

SMALLEST_SCALE = 0.125  # of a code's density
# The rounding step, in scales of p(x|y), where the derivatives of rate and distortion cancel:
# d/ds [-log s + s^2 / (24 scale^2)] = 0. It is exact at high rates and for orthonormal transforms.
BEST_STEP = math.sqrt(12)


def normalized(
    latent: int, output: Sequence[int], hidden: Widths = (64, 64)
) -> tuple[Pure, Pure, tuple[int, ...]]:
    """Convolutions of stride 2 with generalized divisive normalization; codes are images.

    Args:
      latent: channels of the codes.
      output: the shape [H, W, C] of x.
      hidden: channels of the layers before the codes; one more layer gives the codes.
    """
    if len(output) != 3:
        raise ValueError(
            f"network=normalized needs images [H, W, C]; x has shape {tuple(output)}: use mlp"
        )
    height, width = output[:2]
    for _ in (*hidden, latent):
        height, width = -(-height // 2), -(-width // 2)
    pair = (
        networks.analysis(hidden, latent),
        networks.synthesis(hidden[::-1], latent, output),
    )
    return *pair, (height, width, latent)


def mlp(
    latent: int, output: Sequence[int], hidden: Widths = (200,)
) -> tuple[Pure, Pure, tuple[int, ...]]:
    """Fully connected transforms; without hidden layers they are linear, and codes a vector.

    Args:
      latent: dimensions of the codes.
      output: the shape of x.
      hidden: widths of the encoder's hidden layers; the decoder has them in reverse order.
    """
    pair = networks.mlp(hidden, latent), networks.mlp(hidden[::-1], output)
    return *pair, (latent,)


Network = Choice({"normalized": normalized, "mlp": mlp})
Likelihood = Choice({"normal": likelihoods.normal})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """A model of lossy compression."""

    latent: Count = 32
    """Channels of the codes, or their dimensions without convolutions."""
    network: Chosen = Network("normalized")
    """Transforms between images and codes."""
    likelihood: Chosen = Likelihood("normal", scale=0.03)
    """Family of p(x|y); the smaller its scale, the higher are rate and quality."""
    hyper_latent: Whole = 0
    """Codes that say how large the other codes are; 0 is the factorized prior."""
    hyper_hidden: Widths = (32,)
    """Widths of the networks between codes and hyper-codes."""


class Parts:
    """The networks of a configuration, which a codec needs one by one."""

    def __init__(self, config: Config, shape: Sequence[int]):
        """The networks for x of a shape."""
        encoder, decoder, self.codes = config.network(latent=config.latent, output=shape)
        encoder, decoder = (
            networks.with_precision(network, config.precision) for network in (encoder, decoder)
        )
        step = BEST_STEP * config.likelihood.settings["scale"]
        in_steps = lambda apply: lambda params, x: apply(params, x) / step
        self.encoder = networks.wrapped(encoder, in_steps)
        self.decoder = networks.scaled_input(decoder, step)
        self.channels, self.hyper = config.latent, config.hyper_latent
        self.size = math.prod(self.codes)
        self.pair = "conv" if len(self.codes) == 3 else "mlp"
        make = networks.convolutional_pair if self.pair == "conv" else networks.mlp_pair
        if self.hyper:
            self.hyper_encoder, self.hyper_decoder = (
                networks.with_precision(network, config.precision)
                for network in make(self.hyper, self.codes, hidden=config.hyper_hidden)
            )

    def whole_encoder(self) -> Pure:
        """The encoder of hyper-codes and codes, in one vector; the first see magnitudes only."""
        if not self.hyper:
            return self.encoder

        def init(key: Array, x: Array) -> Any:
            keys = jax.random.split(key)
            hyper = self.hyper_encoder.init(keys[1], jnp.zeros(self.codes))
            return {"codes": self.encoder.init(keys[0], x), "hyper": hyper}

        def apply(params: Any, x: Array) -> Array:
            y = self.encoder.apply(params["codes"], x)
            magnitudes = jnp.abs(y).reshape(self.codes)
            return jnp.concatenate([self.hyper_encoder.apply(params["hyper"], magnitudes), y])

        return Pure(init, apply)

    def prior(self) -> priors.Prior:
        """The density of the codes, or of codes and hyper-codes."""
        if not self.hyper:
            return priors.Prior(
                lambda key: {"layers": init_cumulative(key, self.channels)},
                lambda params: NoisyCumulative(params["layers"], self.size),
            )

        def init(key: Array) -> Any:
            keys = jax.random.split(key)
            hyper = self.hyper_decoder.init(keys[1], jnp.zeros(self.hyper))
            return {"layers": init_cumulative(keys[0], self.hyper), "hyper": hyper}

        def given(params: Any, w: Array) -> NoisyNormal:
            log_scale = self.hyper_decoder.apply(params, w).reshape(-1)
            return NoisyNormal(jnp.maximum(jnp.exp(log_scale), SMALLEST_SCALE))

        def make(params: Any) -> Hierarchy:
            return Hierarchy(NoisyCumulative(params["layers"], self.hyper), params["hyper"], given)

        return priors.Prior(init, make, extra=self.hyper)


def support(config: Any) -> tuple[str, ...]:
    """Pixels are integers that are scaled to [0, 1]."""
    return ("scale",)


def build(config: Config, data: Data) -> Built:
    """The model of a configuration, and its training."""
    parts = Parts(config, data.shape)
    likelihood = config.likelihood()
    posterior = posteriors.Posterior(parts.hyper + parts.size, lambda params, raw: Box(raw))
    decoder = networks.on_slice(parts.decoder, slice(parts.hyper, None))
    vae = models.vae(parts.whole_encoder(), decoder, posterior, likelihood, parts.prior())
    objective = lambda model: Objective.of_example(models.negative_elbo(model))
    return assembly.trained_model(config, data, vae, objective, discrete=False)


def _preset(text: str, **named: Any) -> tuple[str, Config]:
    return text, changed(Config(), test_samples=10, **named)


PRESETS = {
    "factorized-prior": _preset("lossy compression, codes are independent (Ballé et al. 2017)"),
    "hyperprior": _preset(
        "lossy compression, hyper-codes say how large codes are (Ballé et al. 2018)",
        hyper_latent=16,
    ),
}
FAMILY = contract.Family(Config, build, PRESETS, support, ("box",))
