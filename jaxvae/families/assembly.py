"""Builds a model and its training from a configuration, as several families do."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxvae import likelihoods, models, networks, posteriors, training
from jaxvae.contracts import Array, Preprocess
from jaxvae.families.contract import Built, Config, Data, optimizer_of
from jaxvae.families.objectives import Critic, Objective
from jaxvae.models import answers
from jaxvae.settings import Chosen


def networks_of(
    config: Any,
    data: Data,
    posterior: posteriors.Posterior,
    likelihood: likelihoods.Likelihood,
    shape: tuple[int, ...],
) -> tuple[networks.Network, networks.Network]:
    """Encoder and decoder for x of a shape, in the configuration's precision.

    Args:
      config: has ``network``, a member of ``networks.PAIRS``, and ``precision``.
      data: what is known of the data.
      posterior: says how many numbers the encoder gives.
      likelihood: says how many numbers the decoder gives for each channel.
      shape: the shape of x.
    """
    pair = config.network(size=posterior.size, output=likelihood.outputs(shape))
    encoder, decoder = (networks.with_precision(each, config.precision) for each in pair)
    return networks.scaled_input(encoder, config.input_scale * data.input_scale), decoder


def estimator_in(bound: Chosen) -> Any:
    """The gradient estimator of an objective, or None if the objective needs none."""
    chosen = bound.settings.get("estimator")
    return None if chosen is None else chosen()


def with_control(vae: Any, bound: Chosen) -> Any:
    """The model with the parameters of the estimator's control variate, if it learns one."""
    estimator = estimator_in(bound)
    return vae if estimator is None else models.with_control(vae, estimator)


def model_optimizer(config: Config, bound: Chosen | None) -> optax.GradientTransformation:
    """The optimizer of a model, with another one for a learned control variate."""
    whole = optimizer_of(config)
    estimator = None if bound is None else estimator_in(bound)
    if estimator is None or estimator.init is None:
        return whole
    parts = {"model": whole, "control": estimator.optimizer(estimator.control_learning_rate)}
    label = lambda params: {name: "control" if name == "control" else "model" for name in params}
    return optax.partition(parts, label)


def corrupted(preprocess: Preprocess, corrupt: Any) -> Preprocess:
    """Preprocessing that gives the clean example and the corrupted one."""

    def pair(key: Array, raw: Any) -> models.Corrupted:
        key_x, key_noise = jax.random.split(key)
        x = preprocess(key_x, raw)
        return models.Corrupted(x, corrupt(key_noise, x))

    return pair


def trained_model(
    config: Any,
    data: Data,
    vae: Any,
    objective: Any,
    penalty: Any = None,
    extra: dict[str, models.Penalty] | None = None,
    **more: Any,
) -> Built:
    """A VAE and its training, with a penalty, a critic or corrupted inputs.

    Args:
      config: the family's configuration.
      data: what is known of the data.
      vae: the model, with the parameters of all that is learned.
      objective: ``vae -> Objective``; it gets a denoising model if inputs are corrupted.
      penalty: None, a penalty on the codes of a batch, or a ``Critic``.
      extra: more penalties by name.
      more: further fields of ``Built``.
    """
    preprocess = more.pop("preprocess", data.preprocess)
    corrupt = config.corruption() if hasattr(config, "corruption") else None
    model: Any = vae if corrupt is None else models.Denoising(vae)
    seen = None if corrupt is None else corrupted(preprocess, corrupt)
    made: Objective = objective(model)
    penalties = dict(extra or {})
    if penalty is not None and not isinstance(penalty, Critic):
        penalties[config.divergence.name] = penalty
    if made.example is None or penalties or isinstance(penalty, Critic):
        refuse_parts(config)
    loss = models.penalized(made.batch, model, penalties) if penalties else made.batch
    algorithm = _algorithm(config, vae, model, loss, penalty, seen is not None)
    return Built(answers(vae), algorithm, preprocess, vae, training_preprocess=seen, **more)


def refuse_parts(config: Config) -> None:
    """Raises ValueError if a batch, whose loss is no mean over examples, is cut into parts."""
    if config.accumulate > 1 or config.virtual_shards:
        raise ValueError(
            "costs of KL that are no weight, penalties and critics need the whole batch: "
            "accumulate must be 1 and virtual_shards 0"
        )


def _algorithm(
    config: Any, vae: Any, model: Any, loss: Any, penalty: Any, denoising: bool
) -> training.Algorithm:
    optimizer = model_optimizer(config, getattr(config, "bound", None))
    clean = (lambda example: example.x) if denoising else (lambda example: example)
    if not isinstance(penalty, Critic):
        return training.gradient_descent(
            lambda key, example: vae.init(key, clean(example)),
            loss,
            optimizer,
            accumulate=config.accumulate,
            virtual_shards=config.virtual_shards,
            ema_decay=config.ema_decay,
            skip_norm=config.skip_norm,
        )
    optimizers = {"model": optimizer, "critic": penalty.optimizer}
    losses = models.adversarial_losses(loss, model, penalty.adversary)
    init = models.adversarial_init(vae, penalty.adversary)
    players = {name: training.Player(losses[name], optimizers[name]) for name in losses}
    return training.players(
        lambda key, example: init(key, clean(example)),
        players,
        config.ema_decay,
        skip_norm=config.skip_norm,
    )
