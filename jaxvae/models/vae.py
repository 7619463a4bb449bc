"""The variational autoencoder and its losses.

Kingma & Welling 2013, arXiv:1312.6114; Rezende et al. 2014, arXiv:1401.4082.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvae import divergences, expectations
from jaxvae.contracts import Array, Loss, Params, Terms
from jaxvae.distributions import Mixture, log_prob_of, sample_and_log_prob_of, sample_noise
from jaxvae.likelihoods import Likelihood
from jaxvae.networks import Network, in_training
from jaxvae.posteriors import Posterior
from jaxvae.priors import Prior

Expectation = Callable[..., Array]  # (key, q, f, num_samples) -> scalar


class VAE(NamedTuple):
    """A variational autoencoder: four pure functions of one example.

    Training losses see the VAE ``in_training``, in which networks with dropout drop units at
    random. All draws of z for one example then share their dropout. Evaluation has no dropout.

    x and z may be any pytrees. Losses and evaluations ask a model for its VAE ``at`` an example and
    for the x that its likelihood explains: a conditional model returns the VAE at the example's
    condition.
    """

    init: Callable[[Array, Any], Params]  # (key, x)    -> params
    encode: Callable[[Params, Any], Any]  # (params, x) -> q(z|x)
    decode: Callable[[Params, Any], Any]  # (params, z) -> p(x|z)
    prior: Callable[[Params], Any]  # (params,)   -> p(z)
    # key -> the VAE that training sees, such as one with live dropout; None if it is the same.
    # Whoever replaces one of the functions above replaces this too: see ``changed``.
    training: Callable[[Array], VAE] | None = None

    def at(self, example: Any) -> tuple[VAE, Any]:
        """This VAE, and the example."""
        return self, example

    def in_training(self, key: Array) -> VAE:
        """The VAE that a training loss sees, with its dropout drawn by ``key``."""
        return self if self.training is None else self.training(jax.random.fold_in(key, _DROPOUT))


_DROPOUT = 0x0D20  # apart from the keys that a loss splits off


def changed(model: Any, change: Callable[[Any], Any]) -> Any:
    """``change`` of a VAE or a CVAE, and of its form in training."""
    live = model.training
    if live is None:
        return change(model)
    return change(model)._replace(training=lambda key: change(live(key)))


def vae(
    encoder: Network, decoder: Network, posterior: Posterior, likelihood: Likelihood, prior: Prior
) -> VAE:
    """A VAE of two networks and three families.

    Args:
      encoder: takes x to ``[posterior.size]``.
      decoder: takes z to an array of the shape ``likelihood.outputs(x.shape)``, whose last axis
        holds ``likelihood.size`` numbers for each channel of x.
      posterior: the family of q(z|x), one of ``posteriors``.
      likelihood: the family of p(x|z), one of ``likelihoods``.
      prior: the family of p(z), one of ``priors``.

    Parameters are ``{"encoder", "posterior", "decoder", "likelihood", "prior"}``. ``init`` raises
    ValueError if shapes disagree.

    >>> from jaxvae import likelihoods, models, networks, posteriors, priors
    >>> posterior, prior = posteriors.normal(2), priors.standard_normal(2)
    >>> encoder, decoder = networks.mlp((16,), posterior.size), networks.mlp((16,), 64)
    >>> vae = models.vae(encoder, decoder, posterior, likelihoods.bernoulli(), prior)
    >>> params = vae.init(jax.random.key(0), jnp.zeros(64))
    >>> vae.encode(params, jnp.zeros(64)).mean.shape
    (2,)
    """
    modules = Modules(encoder, decoder, posterior, likelihood)
    as_it_is = lambda z: z

    def init(key: Array, x: Array) -> Params:
        return modules.init(key, x, x, as_it_is, prior.init)

    make_prior = lambda params: prior.make(params["prior"])

    def with_modules(modules: Modules) -> VAE:
        return VAE(init, modules.encode, modules.decode, make_prior)

    return with_modules(modules)._replace(training=modules.training(with_modules))


class Modules(NamedTuple):
    """Networks and families of a VAE. Its networks take x, or x and a condition."""

    encoder: Network
    decoder: Network
    posterior: Posterior
    likelihood: Likelihood

    def encode(self, params: Params, inputs: Any) -> Any:
        """q(z|x) from the inputs of the encoder."""
        return self.posterior.make(
            params["posterior"], self.encoder.apply(params["encoder"], inputs)
        )

    def decode(self, params: Params, inputs: Any) -> Any:
        """p(x|z) from the inputs of the decoder."""
        outputs = self.decoder.apply(params["decoder"], inputs)
        return self.likelihood.of_outputs(params["likelihood"], outputs)

    def training(self, with_modules: Callable[[Modules], Any]) -> Callable[[Array], Any] | None:
        """key -> ``with_modules`` of networks with live dropout; None if there is no dropout."""
        if self.encoder.train is None and self.decoder.train is None:
            return None

        def live(key: Array) -> Any:
            pair = zip((self.encoder, self.decoder), jax.random.split(key), strict=True)
            encoder, decoder = (in_training(network, key) for network, key in pair)
            return with_modules(self._replace(encoder=encoder, decoder=decoder))

        return live

    def init(
        self,
        key: Array,
        x: Array,
        inputs: Any,
        decoder_inputs: Callable[[Array], Any],
        init_prior: Callable[[Array], Any],
    ) -> Params:
        """The parameters of all parts.

        Raises ValueError if a network's output has another shape.

        Args:
          key: the key of the parameters.
          x: an example.
          inputs: the inputs of the encoder for it.
          decoder_inputs: z -> what the decoder takes.
          init_prior: key -> the prior's parameters.
        """
        keys = jax.random.split(key, 5)
        encoder_params, posterior_params = (
            self.encoder.init(keys[0], inputs),
            self.posterior.init(keys[4]),
        )
        raw = jax.eval_shape(self.encoder.apply, encoder_params, inputs)
        check_raw("encoder", raw.shape, self.posterior)

        def of_decoder() -> Any:
            q = self.posterior.make(posterior_params, jnp.zeros(raw.shape))
            return decoder_inputs(q.sample(key))

        zeros: Any = lambda shape: jnp.zeros(shape.shape, shape.dtype)
        latent = jax.tree.map(zeros, jax.eval_shape(of_decoder))
        decoder_params = self.decoder.init(keys[1], latent)
        decoded = jax.eval_shape(self.decoder.apply, decoder_params, latent).shape
        expected = self.likelihood.outputs(jnp.shape(x))
        if decoded != expected:
            raise ValueError(
                f"the decoder returned shape {decoded}; for examples of shape {jnp.shape(x)} and a "
                f"likelihood of {expected[-1]} numbers per pixel it must be {expected}"
            )
        return {
            "encoder": encoder_params,
            "posterior": posterior_params,
            "decoder": decoder_params,
            "likelihood": self.likelihood.init(keys[2]),
            "prior": init_prior(keys[3]),
        }


def check_raw(network: str, shape: tuple[int, ...], posterior: Posterior) -> None:
    """Raises ValueError if a network does not return the numbers that the family needs."""
    if shape != (posterior.size,):
        raise ValueError(
            f"the {network} returned shape {shape}; the posterior needs ({posterior.size},)"
        )


def with_vampprior(
    vae: VAE,
    pseudo_inputs: Callable[[Array, Any], Array],
    bounded: Callable[[Array], Array] = lambda u: u,
) -> VAE:
    """The same model with the prior 1/K sum_k q(z | u_k), u_k learned.

    Tomczak & Welling 2017, arXiv:1705.07120. ``pseudo_inputs(key, x) -> [K, *x.shape]`` are the u_k
    that training starts from: noise, or examples. ``bounded`` maps what has been learned to where
    inputs lie, such as ``lambda u: jnp.clip(u, 0, 1)``.
    """

    def init(key: Array, x: Any) -> Params:
        key_model, key_inputs = jax.random.split(key)
        return vae.init(key_model, x) | {"prior": {"pseudo_inputs": pseudo_inputs(key_inputs, x)}}

    def with_prior(vae: VAE) -> VAE:
        def prior(params: Params) -> Mixture:
            inputs = bounded(params["prior"]["pseudo_inputs"])
            each = jax.vmap(lambda u: vae.encode(params, u))(inputs)
            return Mixture(jnp.zeros(len(inputs)), each)

        return vae._replace(init=init, prior=prior)

    return changed(vae, with_prior)


# Terms and losses


def elbo_terms(
    vae: VAE,
    params: Params,
    key: Array,
    x: Any,
    num_samples: int,
    estimator: Expectation = expectations.pathwise,
) -> Terms:
    """The two terms of the ELBO of one example, E_q log p(x|z) and KL(q(z|x) || p(z)), in nats.

    Args:
      vae: the model, or any that gives a VAE ``at`` an example.
      params: its parameters.
      key: the key of the draws.
      x: an example, as the model takes it.
      num_samples: draws of z for the first term.
      estimator: one of ``expectations``, for the gradient of the first term.

    A KL divergence without a closed form is estimated from the same draws. Raises ValueError if a
    log-density is not a scalar.
    """
    vae, x = vae.at(x)
    return _terms(vae, params, key, x, num_samples, estimator)


def _terms(
    vae: VAE, params: Params, key: Array, x: Any, num_samples: int, estimator: Expectation
) -> Terms:
    key_z, key_kl = jax.random.split(key)
    q, p = vae.encode(params, x), vae.prior(params)
    log_likelihood = lambda z: log_prob_of(vae.decode(params, z), x)
    if estimator is expectations.pathwise and not divergences.has_closed_form(q, p):
        z, log_q = sample_and_log_prob_of(q, sample_noise(q, key_z, (num_samples,)))
        reconstruction = jax.vmap(log_likelihood)(z).mean()
        divergence = jnp.mean(log_q - jax.vmap(lambda z: log_prob_of(p, z))(z))
    else:
        reconstruction = estimator(key_z, q, log_likelihood, num_samples)
        divergence = divergences.kl(q, p, key_kl)
    return {"reconstruction": reconstruction, "kl": divergence}


def log_joint(vae: VAE, params: Params, x: Any, prior: Any) -> Callable[[Any], Array]:
    """z -> log p(x|z) + log p(z) of a VAE at an example, in nats, for a density ``prior``."""
    return lambda z: log_prob_of(vae.decode(params, z), x) + log_prob_of(prior, z)


def negative_elbo(
    vae: VAE,
    num_samples: int = 1,
    kl_weight: optax.Schedule = lambda step: 1.0,
    estimator: Expectation = expectations.pathwise,
) -> Loss:
    """-E_q log p(x|z) + w(step) KL(q(z|x) || p(z)), with KL in closed form where there is one.

    Kingma & Welling 2013, arXiv:1312.6114, eq. 7. ``kl_weight`` is an optax schedule: a warm-up
    from ``schedules``, or a constant for a beta-VAE. ``estimator`` is one of ``expectations``; one
    that learns a control variate needs the model that ``with_control`` returns.

    >>> from jaxvae import likelihoods, models, networks, posteriors, priors
    >>> vae = models.vae(
    ...     networks.mlp((), 4), networks.mlp((), 3), posteriors.normal(2),
    ...     likelihoods.bernoulli(), priors.standard_normal(2))
    >>> params = vae.init(jax.random.key(0), jnp.zeros(3))
    >>> loss = models.negative_elbo(vae, num_samples=2)
    >>> value, terms = loss(params, jax.random.key(1), jnp.zeros(3), step=0)
    >>> bool(jnp.allclose(value, terms["kl"] - terms["reconstruction"]))
    True
    """
    estimator = expectations.as_estimator(estimator)

    def loss(params: Params, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        at_example, x = vae.at(x)
        at_example = at_example.in_training(key)
        estimate, learning = expectations.controlled_at(estimator, params, x)

        def problem(params: Params) -> tuple[Any, Callable]:
            return at_example.encode(params, x), lambda z: log_prob_of(
                at_example.decode(params, z), x
            )

        terms = _terms(at_example, params, key, x, num_samples, estimate)
        total = kl_weight(step) * terms["kl"] - terms["reconstruction"]
        return total + learning(jax.random.split(key)[0], problem, num_samples), terms

    return loss


def negative_sampled_elbo(
    vae: VAE, num_samples: int = 1, estimator: Expectation = expectations.pathwise
) -> Loss:
    """-E_q [log p(x, z) - log q(z|x)] by an estimator of ``expectations``.

    The KL term is inside the expectation. The gradient of log q in the parameters of q has mean
    zero. It is left out, unless the estimator differentiates through z alone.
    """
    estimator = expectations.as_estimator(estimator)
    through_z = estimator.latents == expectations.contract.CONTINUOUS

    def loss(params: Params, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        key_bound, key_terms = jax.random.split(key)
        at_example, x = vae.at(x)
        at_example = at_example.in_training(key)
        terms = _sampled_terms(at_example, params, key_terms, x)
        estimate, learning = expectations.controlled_at(estimator, params, x)

        def log_weight(params: Params, z: Any) -> Array:
            q = at_example.encode(params, x)
            density = q if through_z else lax.stop_gradient(q)
            joint = log_joint(at_example, params, x, at_example.prior(params))
            return joint(z) - log_prob_of(density, z)

        def problem(params: Params) -> tuple[Any, Callable]:
            return at_example.encode(params, x), lambda z: log_weight(params, z)

        value = estimate(key_bound, *problem(params), num_samples)
        return learning(key_bound, problem, num_samples) - value, terms

    return loss


def negative(bound: Callable, vae: VAE, num_samples: int = 1) -> Loss:
    """-bound(key, q(z|x), log p(x, z), K) for any member of ``bounds``.

    It also reports the two terms of the ELBO, from one more draw that carries no gradient.

    >>> from jaxvae import bounds, likelihoods, models, networks, posteriors, priors
    >>> vae = models.vae(
    ...     networks.mlp((), 4), networks.mlp((), 3), posteriors.normal(2),
    ...     likelihoods.bernoulli(), priors.standard_normal(2))
    >>> params = vae.init(jax.random.key(0), jnp.zeros(3))
    >>> loss = models.negative(bounds.iwae, vae, num_samples=5)
    >>> value, terms = loss(params, jax.random.key(1), jnp.zeros(3), step=0)
    >>> sorted(terms)
    ['kl', 'reconstruction']
    """
    bound = expectations.as_estimator(bound)

    def loss(params: Params, key: Array, x: Any, step: Array) -> tuple[Array, Terms]:
        key_bound, key_terms = jax.random.split(key)
        at_example, x = vae.at(x)
        at_example = at_example.in_training(key)
        terms = _sampled_terms(at_example, params, key_terms, x)
        prior = at_example.prior(params)
        density = lax.stop_gradient(prior) if bound.takes_prior else prior
        more = {"prior": prior} if bound.takes_prior else {}
        joint = log_joint(at_example, params, x, density)
        return -bound(key_bound, at_example.encode(params, x), joint, num_samples, **more), terms

    return loss


def _sampled_terms(vae: VAE, params: Params, key: Array, x: Any) -> Terms:
    """Terms to report, from one draw that carries no gradient."""
    return _terms(vae, lax.stop_gradient(params), key, x, 1, expectations.pathwise)


def with_control(vae: VAE, estimator: Expectation) -> VAE:
    """The same model, with the control variate that an estimator learns, if it learns one.

    The control's parameters are the model's, under ``control``.
    """
    init_control = expectations.as_estimator(estimator).init
    if init_control is None:
        return vae

    def init(key: Array, x: Any) -> Params:
        key_model, key_control = jax.random.split(key)
        params = vae.init(key_model, x)
        at_example, x = vae.at(x)
        q, context = at_example.encode(params, x), expectations.context_of(x)
        return params | {"control": init_control(key_control, q, context)}

    return vae._replace(init=init)
