"""Densities that are fitted to encodings after training, and replace the prior.

Encodings are draws of q(z|x), or posterior means. Samples are often better if z comes from a
density of the encodings (Ghosh et al. 2020, arXiv:1903.12436: "ex-post density estimation").
Log-likelihoods are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvae import likelihoods, models, networks, posteriors, priors, training
from jaxvae.distributions import Mixture, MultivariateNormal
from jaxvae.priors import Prior

Array = jax.Array


def gaussian_mixture(
    z: Any,
    components: int,
    key: Array,
    *,
    restarts: int = 1,
    max_steps: int = 1000,
    tolerance: float = 1e-4,
) -> Mixture:
    """A mixture of full-covariance Gaussians, fitted by expectation-maximisation.

    p(z) = sum_m w_m N(z; m_m, L_m L_m^T), by scikit-learn, from the best of several starts with
    k-means. With one component it is the Gaussian of maximal likelihood. 1e-6 is added to the
    variances, so a component cannot collapse onto a point.

    Args:
      z: encodings [N, D].
      components: the number of Gaussians.
      key: the key of the starts.
      restarts: the number of starts.
      max_steps: the most steps from each start.
      tolerance: a gain of the mean log-likelihood, in nats; a smaller one ends the fit.

    Raises ValueError if z is no finite [N, D] or has fewer rows than components, and ImportError
    without scikit-learn.
    """
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise ImportError(
            "gaussian_mixture needs scikit-learn: pip install jaxvae[train]"
        ) from error
    z = _finite(z)
    if z.ndim != 2 or not 1 <= components <= len(z):
        raise ValueError(
            f"{components} components need z [N, D] with at least as many rows; the shape was "
            f"{z.shape}"
        )
    seed = int(_generator(key).integers(2**31))
    fit = GaussianMixture(
        components, n_init=restarts, max_iter=max_steps, tol=tolerance, random_state=seed
    )
    fit.fit(z.astype(np.float64))
    lower = np.linalg.cholesky(fit.covariances_)
    parts = MultivariateNormal(
        jnp.asarray(fit.means_, jnp.float32), jnp.asarray(lower, jnp.float32)
    )
    return Mixture(jnp.asarray(np.log(fit.weights_), jnp.float32), parts)


class Fitted(NamedTuple):
    """A prior with fitted parameters."""

    params: Any
    distribution: Any  # p(z), ``prior.make(params)``
    log_likelihood: float  # the mean over the encodings that it was fitted to, in nats
    held_out: float  # the mean over the other encodings, by which priors are compared
    standard_error: float  # the standard error of ``held_out``


def density_by_gradient(
    prior: Prior,
    z: Any,
    key: Array,
    num_steps: int = 2000,
    learning_rate: float = 1e-3,
    *,
    batch_size: int = 256,
    held_out: float = 0.1,
) -> Fitted:
    """Fits a prior to encodings by maximum likelihood, max_theta 1/N sum_n log p(z_n; theta).

    It takes steps of Adam from ``prior.init``, with a learning rate that falls to 0.

    Args:
      prior: any ``priors.Prior`` with parameters.
      z: encodings [N, *event].
      key: the key of the rows that are held out, and of the training.
      num_steps: steps of Adam.
      learning_rate: the learning rate of the first step.
      batch_size: rows in a step.
      held_out: the share of the rows that is not fitted to. Priors are compared by their
        log-likelihood.

    Raises ValueError for a prior without parameters or encodings that are not finite, and
    NotFiniteError if the training diverges.
    """
    z, rng = _finite(z).astype(np.float32), _generator(key)
    rest, fitted = np.split(rng.permutation(len(z)), [max(round(held_out * len(z)), 1)])
    if not len(fitted):
        raise ValueError(
            f"{len(z)} encodings cannot be cut into {held_out:.0%} held out and the rest; pass more"
        )
    if not jax.tree.leaves(jax.eval_shape(prior.init, key)):
        raise ValueError(
            "this prior has no parameters to fit: pass one that has, or use it as it is"
        )

    def loss(params: Any, key: Array, z: Array, step: Array) -> tuple[Array, dict[str, Array]]:
        return -prior.make(params).log_prob(z), {}

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    algorithm = training.gradient_descent(
        lambda key, z: prior.init(key), training.batch_mean(loss), optimizer
    )
    size, seed = min(batch_size, len(fitted)), int(rng.integers(2**31))
    params = training.trained(
        training.fit(algorithm, z[fitted], num_steps=num_steps, batch_size=size, seed=seed)
    )
    every = jax.jit(lambda params, z: jax.vmap(prior.make(params).log_prob)(z))
    log_probs = np.asarray(every(params, z), np.float64)
    error = log_probs[rest].std(ddof=1) / math.sqrt(len(rest)) if len(rest) > 1 else 0.0
    means = float(log_probs[fitted].mean()), float(log_probs[rest].mean())
    return Fitted(params, prior.make(params), *means, float(error))


class SecondStage(NamedTuple):
    """A VAE of encodings, from which they are drawn."""

    vae: models.VAE
    params: Any

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """z ~ p(z|u), u ~ N(0, I), [*shape, D]."""
        key_u, key_z = jax.random.split(key)
        u = self.vae.prior(self.params).sample(key_u, (math.prod(shape),))
        draw = lambda u, key: self.vae.decode(self.params, u).sample(key)
        z = jax.jit(jax.vmap(draw))(u, jax.random.split(key_z, len(u)))
        return z.reshape(*shape, *z.shape[1:])


def second_stage(
    z: Any,
    key: Array,
    num_steps: int = 5000,
    learning_rate: float = 1e-3,
    *,
    hidden: Sequence[int] = (512, 512),
    batch_size: int = 256,
) -> SecondStage:
    """A second VAE, of draws of q(z|x): p(z) = E_N(u; 0, I) N(z; m(u), g I).

    Dai & Wipf 2019, arXiv:1903.05789, sec. 4. u has the dimensions of z, and the noise g is
    learned. If a first VAE has found the manifold of the data, q(z) fills its latent space but is
    not N(0, I). A second VAE of these latents can become exact. Its density has no closed form, so
    it can only be drawn from. It is trained by Adam, with a learning rate that falls to 0.

    Args:
      z: draws of q(z|x), [N, D].
      key: the key of the training.
      num_steps: steps of Adam.
      learning_rate: the learning rate of the first step.
      hidden: widths of the hidden layers of its encoder and decoder.
      batch_size: rows in a step.

    Raises ValueError for encodings that are not finite [N, D], and NotFiniteError if the training
    diverges.
    """
    z, rng = _finite(z).astype(np.float32), _generator(key)
    if z.ndim != 2:
        raise ValueError(f"a second stage needs encodings [N, D]; their shape was {z.shape}")
    latent = z.shape[1]
    posterior = posteriors.normal(latent)
    vae = models.vae(
        networks.mlp(hidden, posterior.size),
        networks.mlp(hidden, latent),
        posterior,
        likelihoods.normal_learned(float(z.std())),
        priors.standard_normal(latent),
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    algorithm = training.gradient_descent(
        vae.init, training.batch_mean(models.negative_elbo(vae)), optimizer
    )
    size, seed = min(batch_size, len(z)), int(rng.integers(2**31))
    state = training.fit(algorithm, z, num_steps=num_steps, batch_size=size, seed=seed)
    return SecondStage(vae, training.trained(state))


def _generator(key: Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _finite(z: Any) -> np.ndarray:
    z = np.asarray(z)
    if z.ndim < 1 or not z.size or not np.isfinite(z).all():
        raise ValueError(
            f"encodings must be finite numbers [N, ...]; they had shape {z.shape}, or held nan or "
            "infinity"
        )
    return z
