"""Autoencoders whose latents are maps [h, w, D], as latent diffusion has them, and their losses.

Rombach et al. 2022, arXiv:2112.10752, app. G; Esser et al. 2021, arXiv:2012.09841, sec. 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae import divergences, quantizers
from jaxvae.contracts import Array, BatchLoss, Params, Terms
from jaxvae.distributions import Laplace, Normal, Point, log_prob_of
from jaxvae.likelihoods import Likelihood
from jaxvae.models.answers import Model, answers
from jaxvae.models.vae import VAE
from jaxvae.networks import Network

LOG_VARIANCE = -30.0, 20.0  # the bounds that log-variances are clipped to
LARGEST_WEIGHT = 1e4  # of the critic's term


class Ends(NamedTuple):
    """The networks of an autoencoder, and what lies between them and examples [H, W, C]."""

    encoder: Network  # images of multiples of ``factor`` -> maps
    trunk: Network  # maps -> the input of the last convolution
    head: Network  # that input -> images
    likelihood: Likelihood
    shape: tuple[int, ...]  # of an example
    factor: int  # of the resolutions of image and map
    centred: bool = True  # whether x in [0, 1] is 2 x - 1 for the networks

    @property
    def span(self) -> float:
        """How many units of the networks are one unit of x."""
        return 2.0 if self.centred else 1.0

    def to_networks(self, x: Array) -> Array:
        """x as the networks see it."""
        return 2 * x - 1 if self.centred else x

    def encoded(self, params: Params, x: Array) -> Array:
        """The map of an example, whose last row and column are repeated up to the next multiple.

        Diffusers drops the rest of a side instead, and decodes a smaller image.
        """
        more = [(0, -size % self.factor) for size in self.shape[:2]]
        padded = jnp.pad(self.to_networks(x), (*more, (0, 0)), "edge")
        return self.encoder.apply(params["encoder"], padded)

    def last_input(self, params: Params, z: Array) -> Array:
        """The input of the decoder's last convolution."""
        return self.trunk.apply(params["decoder"], z)

    def image(self, params: Params, h: Array) -> Any:
        """p(x|z) from the input of the decoder's last convolution."""
        y = self.head.apply(params["decoder"], h)[: self.shape[0], : self.shape[1]]
        location = (y + 1) / 2 if self.centred else y
        return self.likelihood.make(params["likelihood"], location[..., None])

    def decode(self, params: Params, z: Array) -> Any:
        """p(x|z)."""
        return self.image(params, self.last_input(params, z))

    def last_kernel(self, params: Params) -> Array:
        """The kernel of the decoder's last convolution, or its gradient."""
        return params["decoder"]["decoder"]["conv_out"]["kernel"]

    def init(self, key: Array, latent: int) -> Params:
        """The parameters of both networks and of the likelihood, for maps of so many channels."""
        keys = jax.random.split(key, 3)
        height, width = (-(-size // self.factor) for size in self.shape[:2])
        x = jnp.zeros((height * self.factor, width * self.factor, self.shape[-1]))
        return {
            "encoder": self.encoder.init(keys[0], x),
            "decoder": self.trunk.init(keys[1], jnp.zeros((height, width, latent))),
            "likelihood": self.likelihood.init(keys[2]),
        }

    def map_shape(self, latent: int) -> tuple[int, ...]:
        """The shape [h, w, D] of z."""
        return (*(-(-size // self.factor) for size in self.shape[:2]), latent)


class Autoencoder(NamedTuple):
    """An autoencoder with latents between its ends."""

    ends: Ends
    model: Model
    # (params, key, x, step) -> z as the decoder sees it in training, what it costs, terms to report
    code: Callable[[Params, Array, Array, Array], tuple[Array, Array, Terms]]


def gaussian_maps(ends: Ends, latent: int, kl_weight: optax.Schedule) -> Autoencoder:
    """q(z|x) = N(m, e^v) with v clipped to [-30, 20], p(z) = N(0, I), and KL at a weight.

    The encoder gives [m | v], ``[h, w, 2 latent]``.
    """
    shape = ends.map_shape(latent)

    def encode(params: Params, x: Array) -> Normal:
        mean, log_variance = jnp.split(ends.encoded(params, x), 2, -1)
        return Normal(mean, jnp.exp(jnp.clip(log_variance, *LOG_VARIANCE) / 2))

    def prior(params: Params) -> Normal:
        return Normal(jnp.zeros(shape), jnp.ones(shape))

    def code(params: Params, key: Array, x: Array, step: Array) -> tuple[Array, Array, Terms]:
        q = encode(params, x)
        kl = divergences.kl(q, prior(params))
        return q.sample(jax.random.split(key)[0]), kl_weight(step) * kl, {"kl": kl}

    vae = VAE(lambda key, x: ends.init(key, latent), encode, ends.decode, prior)
    return Autoencoder(ends, answers(vae), code)


def quantized_maps(ends: Ends, latent: int, quantizer: quantizers.Quantizer) -> Autoencoder:
    """Codes c(x) of a map's vectors, a uniform prior over them, and the quantizer's loss.

    log p(x) >= log p(x|c(x)) - P log K for P codes of K values, because q(c|x) has no entropy. The
    loss of the quantizer is a mean over the map. It counts once for each value of x, because the
    reconstruction is a sum over them.
    """
    shape = ends.map_shape(latent)

    def init(key: Array, x: Array) -> Params:
        key_ends, key_book = jax.random.split(key)
        return ends.init(key_ends, latent) | {"quantizer": quantizer.init(key_book)}

    def quantize(params: Params, x: Array) -> quantizers.Quantized:
        return quantizer.quantize(params["quantizer"], ends.encoded(params, x))

    def look_up(params: Params, codes: Array) -> Array:
        return quantizer.look_up(params["quantizer"], codes)

    def decode(params: Params, z: Array, condition: Any = None) -> Any:
        return ends.decode(params, z)

    def codes(params: Params, x: Array) -> Any:
        return quantize(params, x).codes

    like = jax.eval_shape(
        lambda key: quantizer.quantize(quantizer.init(key), jnp.zeros(shape)).codes,
        jax.random.key(0),
    )
    nats = quantizers.uniform_nats(quantizer.num_codes, like)

    def draw(params: Params, key: Array, condition: Any = None) -> Array:
        leaves, structure = jax.tree.flatten(like)
        keys = jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))
        one = lambda key, size, codes: jax.random.randint(key, codes.shape, 0, size)
        return look_up(params, jax.tree.map(one, keys, quantizer.num_codes, like))

    def code(params: Params, key: Array, x: Array, step: Array) -> tuple[Array, Array, Terms]:
        quantized = quantize(params, x)
        return quantized.vectors, x.size * quantized.loss, {"quantization": quantized.loss}

    def terms(params: Params, key: Array, x: Array, num_samples: int) -> Terms:
        p = ends.decode(params, quantize(params, x).vectors)
        return {"reconstruction": log_prob_of(p, x), "kl": jnp.float32(nats)}

    def log_weights(params: Params, key: Array, x: Array, num_samples: int) -> Array:
        parts = terms(params, key, x, 1)
        return jnp.full(num_samples, parts["reconstruction"] - parts["kl"])

    model = Model(
        init,
        encode=lambda params, x: Point(quantize(params, x).vectors),
        decode=decode,
        draw=draw,
        terms=terms,
        log_weights=log_weights,
        codes=codes,
        decode_codes=lambda params, codes, condition=None: ends.decode(
            params, look_up(params, codes)
        ),
        num_codes=quantizer.num_codes,
    )
    return Autoencoder(ends, model, code)


# Losses


class Likeness(NamedTuple):
    """A perceptual distance in the loss. Its parameters are a player's that learns nothing."""

    distance: Callable[[Params, Array, Array], Array]  # (params, x, y) as the networks see them
    weight: float


class PatchCritic(NamedTuple):
    """A critic in the loss, which tells examples from reconstructions."""

    network: Network  # image -> a number for each patch
    weight: float
    start: int  # the first step at which the autoencoder pays for it


class Pictures(NamedTuple):
    """What an autoencoder's images cost, of one example. ``params`` has all players."""

    ends: Ends
    likeness: Likeness | None
    critic: PatchCritic | None

    def error(self, params: Params, h: Array, x: Array) -> tuple[Array, Terms]:
        """-log p(x|z), and the perceptual distance in the units of the error."""
        p = self.ends.image(params["model"], h)
        log_p = log_prob_of(p, x)
        if self.likeness is None:
            return -log_p, {"reconstruction": log_p}
        images = self.ends.to_networks(x), self.ends.to_networks(p.mean)
        distance = self.likeness.distance(lax.stop_gradient(params["perceptual"]), *images)
        counted = self.likeness.weight * x.size * distance / error_scale(p, self.ends.span)
        return counted - log_p, {"reconstruction": log_p, "perceptual": distance}

    def pretence(self, params: Params, h: Array, x: Array) -> tuple[Array, Terms]:
        """-mean D(x'), which falls as reconstructions pass for examples."""
        assert self.critic is not None
        image = self.ends.to_networks(self.ends.image(params["model"], h).mean)
        value = -self.critic.network.apply(lax.stop_gradient(params["critic"]), image).mean()
        return value, {"pretence": value}

    def hinge(self, params: Params, h: Array, x: Array) -> tuple[Array, Terms]:
        """The hinge loss of the critic, 1/2 (relu(1 - D(x)) + relu(1 + D(x')))."""
        assert self.critic is not None
        image = self.ends.image(lax.stop_gradient(params["model"]), h).mean
        of_image = lambda x: self.critic.network.apply(params["critic"], self.ends.to_networks(x))
        real, decoded = of_image(x), of_image(lax.stop_gradient(image))
        loss = (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + decoded).mean()) / 2
        return loss, {"real": real.mean(), "decoded": decoded.mean()}


def error_scale(p: Any, span: float) -> Array:
    """What errors are divided by in -log p: of |x - x'| or (x - x')^2, in the networks' units."""
    scale = span * p.scale
    return jnp.mean(scale if isinstance(p, Laplace) else 2 * scale**2)


def adaptive_weight(of_error: Array, of_pretence: Array) -> Array:
    """|d nll / d W| / (|d g / d W| + 1e-4), at most 1e4, from the two norms (2012.09841, eq. 7)."""
    return jnp.clip(of_error / (of_pretence + 1e-4), 0.0, LARGEST_WEIGHT)


def losses(autoencoder: Autoencoder, pictures: Pictures) -> dict[str, BatchLoss]:
    """The losses of the players ``model`` and ``critic``.

    The autoencoder descends nll + cost of the latents + lambda f g, with

        nll = -log p(x|z) + w_p |x| d(x, x') / e^v,   g = -mean D(x'),   f = [step >= start],
        lambda = w_d |d nll / d W| / (|d g / d W| + 1e-4), at most 1e4 w_d, without a gradient.

    x' is the mean of p(x|z), d the perceptual distance, e^v ``error_scale``, and W the kernel of
    the decoder's last convolution. The norms are taken of gradients of the whole batch. The
    critic descends its hinge loss from the first step on, so it has learned something when the
    autoencoder begins to pay. Neither loss has a gradient in the other player's parameters.

    Without perceptual distance and critic this is the loss of ``models.negative_elbo``.
    """
    ends, critic = autoencoder.ends, pictures.critic

    def coded(params: Params, keys: Array, x: Array, step: Array) -> tuple[Array, Array, Terms]:
        def one(key: Array, x: Array) -> tuple[Array, Array, Terms]:
            z, cost, terms = autoencoder.code(params, key, x, step)
            return ends.last_input(params, z), cost, terms

        return jax.vmap(one)(keys, x)

    def of_model(
        params: Params, keys: Array, x: Array, weight: Array, step: Array, axis_name: str | None
    ) -> tuple[Array, Terms]:
        h, cost, about_codes = coded(params["model"], keys, x, step)
        over = _Batch(params, x, weight, axis_name)
        loss, terms = over.mean(pictures.error, h)
        cost, about_codes = _total((cost, about_codes), weight, axis_name)
        if critic is None:
            return loss + cost, terms | about_codes
        g, about_critic = over.mean(pictures.pretence, h)
        norms = (over.last_gradient(part, h, ends) for part in (pictures.error, pictures.pretence))
        balance = critic.weight * jnp.where(step >= critic.start, adaptive_weight(*norms), 0.0)
        terms |= about_codes | about_critic | {"critic_weight": balance}
        return loss + cost + balance * g, terms

    def of_critic(
        params: Params, keys: Array, x: Array, weight: Array, step: Array, axis_name: str | None
    ) -> tuple[Array, Terms]:
        h, _, _ = coded(lax.stop_gradient(params["model"]), keys, x, step)
        return _Batch(params, x, weight, axis_name).mean(pictures.hinge, h)

    made: dict[str, BatchLoss] = {"model": of_model}
    return made if critic is None else made | {"critic": of_critic}


Part = Callable[[Params, Array, Array], tuple[Array, Terms]]  # (params, h, x) -> value, terms


class _Batch(NamedTuple):
    """A batch, over which functions of (params, h, x) are averaged."""

    params: Params
    x: Array
    weight: Array
    axis_name: str | None

    def mean(self, part: Part, h: Array) -> tuple[Array, Terms]:
        """The mean over the global batch."""
        each = jax.vmap(part, (None, 0, 0))(self.params, h, self.x)
        return _total(each, self.weight, self.axis_name)

    def last_gradient(self, part: Part, h: Array, ends: Ends) -> Array:
        """The norm of the global mean's gradient in the decoder's last kernel, as a constant."""

        def of_model(model: Params) -> Array:
            params = lax.stop_gradient(self.params) | {"model": model}
            each = jax.vmap(part, (None, 0, 0))(params, lax.stop_gradient(h), self.x)[0]
            return _total(each, self.weight, None)

        gradient = ends.last_kernel(jax.grad(of_model)(lax.stop_gradient(self.params["model"])))
        if self.axis_name is not None:
            gradient = lax.psum(gradient, self.axis_name)
        return jnp.linalg.norm(gradient)


def _total(each: Any, weight: Array, axis_name: str | None) -> Any:
    """The weighted sum of values [B] over the global batch. Padding may hold anything."""
    total = jax.tree.map(lambda v: jnp.sum(jnp.where(weight > 0, v, 0.0) * weight), each)
    return total if axis_name is None else lax.psum(total, axis_name)
