"""Batch losses that are not means over examples.

They are functions of the batch's KL divergence (free bits, capacity), penalties on its latent
codes, and adversarial terms. Each is a ``training.BatchLoss`` and sees the global batch. Its codes
are gathered from all devices first, because the mean of a divergence over devices is not the
divergence of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae import divergences, expectations
from jaxvae.contracts import Array, BatchLoss, Loss, Params, Terms
from jaxvae.distributions import log_prob_of
from jaxvae.kl_costs import KLCost
from jaxvae.models.vae import VAE, Expectation
from jaxvae.networks import Network


class Codes(NamedTuple):
    """The latent codes of a whole batch. Rows of padding have weight zero."""

    key: Array  # the same on all devices
    q: Any  # the posteriors q(z|x_i), stacked [B]
    z: Any  # [B, *event], one draw of each
    other: Any  # [B, *event], draws of the prior
    weight: Array  # [B], sums to one
    x: Any = None  # [B, ...], the examples that the likelihood explains


Penalty = Callable[[Codes], Array]  # -> nats


def codes(
    vae: VAE, params: Params, keys: Array, x: Any, weight: Array, axis_name: str | None
) -> Codes:
    """The codes of the global batch.

    Args:
      vae: the model, or any that gives a VAE ``at`` an example.
      params: its parameters.
      keys: one for each example, [B].
      x: this device's examples, [B, ...].
      weight: the weights of the examples, [B].
      axis_name: the axis of the devices, or None for one device.

    What a penalty does not look at is neither computed nor gathered in a compiled program.
    """

    def example(key: Array, x: Any) -> tuple[Any, Any, Any, Any]:
        key_z, key_other = jax.random.split(key)
        at_example, x = vae.at(x)
        at_example = at_example.in_training(key)
        q = at_example.encode(params, x)
        return q, q.sample(key_z), at_example.prior(params).sample(key_other), x

    pairs = jax.vmap(jax.random.split)(keys)  # [B, 2]
    rows = (*jax.vmap(example)(pairs[:, 0], x), weight, jax.random.key_data(pairs[:, 1]))
    if axis_name is not None:
        rows = jax.tree.map(lambda a: lax.all_gather(a, axis_name, tiled=True), rows)
    q, z, other, x, weight, words = rows
    return Codes(jax.random.wrap_key_data(words[0]), q, z, other, weight, x)


def negative_reconstruction(
    vae: VAE, num_samples: int = 1, estimator: Expectation = expectations.pathwise
) -> Loss:
    """-E_q log p(x|z), the loss of an autoencoder.

    A Wasserstein autoencoder adds a penalty to it.
    """
    estimator = expectations.as_estimator(estimator)

    def loss(params: Params, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        at_example, x = vae.at(x)
        at_example = at_example.in_training(key)
        log_likelihood = lambda z: log_prob_of(at_example.decode(params, z), x)
        reconstruction = estimator(key, at_example.encode(params, x), log_likelihood, num_samples)
        return -reconstruction, {"reconstruction": reconstruction}

    return loss


def weighted_sum(parts: Sequence[tuple[float, Loss]]) -> Loss:
    """sum_i w_i loss_i of an example, all with the same key.

    It reports the terms of the first loss.
    """

    def loss(params: Params, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        results = [(weight, *part(params, key, x, step)) for weight, part in parts]
        return jnp.stack([weight * value for weight, value, _ in results]).sum(), results[0][2]

    return loss


def decoder_decay() -> Loss:
    """|theta|^2 of the decoder's parameters, of RAE-L2 (Ghosh et al. 2019, arXiv:1903.12436)."""
    return lambda params, key, x, step: (optax.tree.norm(params["decoder"], squared=True), {})


def decoder_gradient(vae: VAE) -> Loss:
    """|d E[x|z] / dz|^2 (Frobenius) at a code of the example, of RAE-GP.

    Ghosh et al. 2019, arXiv:1903.12436.
    """

    def loss(params: Params, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        at_example, x = vae.at(x)
        at_example = at_example.in_training(key)
        z = at_example.encode(params, x).sample(key)
        return jnp.sum(jax.jacfwd(lambda z: at_example.decode(params, z).mean)(z) ** 2), {}

    return loss


def with_kl_cost(
    vae: VAE,
    kl_cost: KLCost,
    num_samples: int = 1,
    estimator: Expectation = expectations.pathwise,
) -> BatchLoss:
    """-E_q log p(x|z) + cost(E_x KL(q(z|x) || p(z)), step), with one of ``kl_costs``."""
    estimator = expectations.as_estimator(estimator)

    def loss(
        params: Params, keys: Array, x: Any, weight: Array, step: Array, axis_name: str | None
    ) -> tuple[Array, Terms]:
        def example(key: Array, x: Any) -> tuple[Array, Array]:
            key_z, key_kl = jax.random.split(key)
            at_example, x = vae.at(x)
            at_example = at_example.in_training(key)
            q, p = at_example.encode(params, x), at_example.prior(params)
            log_likelihood = lambda z: log_prob_of(at_example.decode(params, z), x)
            reconstruction = estimator(key_z, q, log_likelihood, num_samples)
            return reconstruction, jnp.ravel(_kl_by_latent(q, p, key_kl))

        reconstruction, kl = jax.tree.map(
            lambda v: jnp.tensordot(weight, v, 1, precision="float32"), jax.vmap(example)(keys, x)
        )
        if axis_name is not None:
            reconstruction, kl = lax.psum((reconstruction, kl), axis_name)
        total = kl_cost(kl, step) - reconstruction
        return total, {"reconstruction": reconstruction, "kl": kl.sum()}

    return loss


def _kl_by_latent(q: Any, p: Any, key: Array) -> Array:
    """KL of each latent if the whole is their sum, else KL of the whole."""
    factorized = (type(q), type(p)) in divergences.FACTORIZED_KL
    terms = divergences.kl_per_latent(q, p) if factorized else None
    return divergences.kl(q, p, key) if terms is None else terms


def penalized(loss: BatchLoss, vae: VAE, penalties: dict[str, Penalty]) -> BatchLoss:
    """A loss and penalties on the codes of its batch, each reported by its name."""

    def whole(
        params: Params, keys: Array, x: Any, weight: Array, step: Array, axis_name: str | None
    ) -> tuple[Array, Terms]:
        pairs = jax.vmap(jax.random.split)(keys)
        total, terms = loss(params, pairs[:, 0], x, weight, step, axis_name)
        batch = codes(vae, params, pairs[:, 1], x, weight, axis_name)
        values_by_name = {name: penalty(batch) for name, penalty in penalties.items()}
        return total + sum(values_by_name.values()), terms | values_by_name

    return whole


def divergence(weight: float, between: Callable[[Array, Array, Array, Array], Array]) -> Penalty:
    """``weight`` D(q(z), p(z)), by a divergence between samples.

    ``between`` is one of ``divergences.DIVERGENCES``, or any ``(key, z, other, weight) -> scalar``.
    With ``negative_reconstruction`` it makes a Wasserstein autoencoder (Tolstikhin et al. 2018,
    arXiv:1711.01558), with a weighted ELBO an InfoVAE (Zhao et al. 2017, arXiv:1706.02262).
    """
    return lambda codes: weight * between(codes.key, codes.z, codes.other, codes.weight)


def code_penalty(weight: float) -> Penalty:
    """``weight`` E |z|^2 / 2, of a regularized autoencoder.

    Ghosh et al. 2019, arXiv:1903.12436.
    """

    def penalty(codes: Codes) -> Array:
        squares = jax.vmap(lambda z: jnp.sum(z**2))(codes.z)
        return weight * jnp.sum(codes.weight * squares) / 2

    return penalty


def total_correlation(
    weight: float, dataset_size: int, decompose: Callable = divergences.minibatch_decomposition
) -> Penalty:
    """``weight`` TC; beside a whole KL term, weight = beta - 1 makes a beta-TCVAE.

    Chen et al. 2018, arXiv:1802.04942, eq. 4. ``decompose`` estimates TC: it is
    ``divergences.minibatch_decomposition`` or ``stratified_decomposition``.
    """

    def penalty(codes: Codes) -> Array:
        log_q = divergences.pairwise_log_densities(codes.q, codes.z)
        no_prior = jnp.zeros_like(codes.z)
        terms = decompose(log_q, no_prior, codes.weight, dataset_size)
        return weight * terms.total_correlation

    return penalty


def dip_i(off_diagonal: float, diagonal: float) -> Penalty:
    """The penalty of DIP-VAE-I, ``divergences.dip_i``."""
    return lambda codes: divergences.dip_i(codes.q.mean, codes.weight, off_diagonal, diagonal)


def dip_ii(off_diagonal: float, diagonal: float) -> Penalty:
    """The penalty of DIP-VAE-II, ``divergences.dip_ii``."""
    return lambda codes: divergences.dip_ii(
        codes.q.mean, codes.q.scale**2, codes.weight, off_diagonal, diagonal
    )


# Adversaries: a critic of the codes, which is learned beside the model


class Adversary(NamedTuple):
    """A critic of codes, and perhaps of their examples.

    The model pays ``penalty`` and the critic descends ``loss``, each in its parameters. A critic
    T(x, z) that tells q(z|x) from p(z) estimates their KL divergence (adversarial variational
    Bayes, Mescheder et al. 2017, arXiv:1701.04722). It reads ``codes.x``.
    """

    init: Callable[[Array, Any, Any], Any]  # (key, x, z) of one example -> params
    penalty: Callable[[Any, Codes], Array]  # (params, codes) -> nats
    loss: Callable[[Any, Codes], Array]  # (params, codes) -> scalar


def _scores(critic: Network, params: Any, z: Array) -> Array:
    """The critic's number for each code, [B]."""
    return jax.vmap(lambda z: critic.apply(params, z)[0])(z)


def _cross_entropy(critic: Network, params: Any, yes: Array, no: Array, weight: Array) -> Array:
    """-E log s(c(yes)) - E log s(-c(no)), whose optimum is c = log p(yes) / p(no)."""
    of_yes, of_no = _scores(critic, params, yes), _scores(critic, params, no)
    return jnp.sum(weight * (jax.nn.softplus(-of_yes) + jax.nn.softplus(of_no)))


def _init_of_codes(critic: Network) -> Callable[[Array, Any, Any], Any]:
    return lambda key, x, z: critic.init(key, z)


def density_ratio(critic: Network, weight: float) -> Adversary:
    """``weight`` TC, by a critic that learns log q(z) / prod_d q(z_d).

    It learns the ratio from codes and from codes permuted over the batch. FactorVAE: Kim & Mnih
    2018, arXiv:1802.05983, eq. 3 and alg. 1 and 2. ``critic`` gives one number.
    """

    def penalty(params: Any, codes: Codes) -> Array:
        return weight * jnp.sum(codes.weight * _scores(critic, params, codes.z))

    def loss(params: Any, codes: Codes) -> Array:
        permuted = divergences.permuted(codes.key, codes.z, codes.weight)
        return _cross_entropy(critic, params, codes.z, permuted, codes.weight)

    return Adversary(_init_of_codes(critic), penalty, loss)


def adversarial(critic: Network, weight: float) -> Adversary:
    """-``weight`` E_q(z) log s(c(z)), where c tells draws of the prior (yes) from codes (no).

    The adversarial autoencoder (Makhzani et al. 2015, arXiv:1511.05644), also WAE-GAN
    (arXiv:1711.01558, alg. 1).
    """

    def penalty(params: Any, codes: Codes) -> Array:
        return weight * jnp.sum(codes.weight * jax.nn.softplus(-_scores(critic, params, codes.z)))

    def loss(params: Any, codes: Codes) -> Array:
        return _cross_entropy(critic, params, codes.other, codes.z, codes.weight)

    return Adversary(_init_of_codes(critic), penalty, loss)


def adversarial_init(vae: VAE, adversary: Adversary) -> Callable[[Array, Any], dict[str, Params]]:
    """``(key, x) -> {"model": params, "critic": params}``."""

    def init(key: Array, x: Any) -> dict[str, Params]:
        key_model, key_critic, key_z = jax.random.split(key, 3)
        params = vae.init(key_model, x)
        at_example, x = vae.at(x)
        z = at_example.encode(params, x).sample(key_z)
        return {"model": params, "critic": adversary.init(key_critic, x, z)}

    return init


def adversarial_losses(loss: BatchLoss, vae: VAE, adversary: Adversary) -> dict[str, BatchLoss]:
    """Losses of the two players ``model`` and ``critic``, for ``training.players``.

    Each is a function of the parameters of both. Both see the codes of one batch. Kim & Mnih 2018
    (arXiv:1802.05983) permute the codes of a second batch.
    """

    def of_model(params: Params, *args: Any) -> tuple[Array, Terms]:
        penalty = lambda codes: adversary.penalty(params["critic"], codes)
        return penalized(loss, vae, {"adversary": penalty})(params["model"], *args)

    def of_critic(
        params: Params, keys: Array, x: Any, weight: Array, step: Array, axis_name: str | None
    ) -> tuple[Array, Terms]:
        keys = jax.vmap(jax.random.split)(keys)[:, 1]  # the same codes as the penalty's
        batch = codes(vae, lax.stop_gradient(params["model"]), keys, x, weight, axis_name)
        return adversary.loss(params["critic"], batch), {}

    return {"model": of_model, "critic": of_critic}
