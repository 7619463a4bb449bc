"""M1+M2: models with labels of the codes of a VAE, which is trained first (Kingma et al. 2014)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import likelihoods, models, training
from jaxvae.contracts import Array
from jaxvae.evaluation import ACTIVE_VARIANCE
from jaxvae.families import assembly, contract, flat, labels
from jaxvae.families.contract import Built, Data, FirstStage
from jaxvae.models.stages import codes_of
from jaxvae.ranges import Count, Widths
from jaxvae.settings import Choice, Chosen, changed

Likelihood = Choice(
    {n: f for n, f in likelihoods.LIKELIHOODS.items() if n.startswith(("normal", "laplace"))}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(labels.Labelled):
    """M1+M2: a model with labels of the codes of a VAE, which is trained first."""

    of: str = ""
    """Folder of the run whose codes are explained; if there is none, M1 is trained first in
    WORKDIR/m1."""
    of_checkpoint: str = "latest"
    """Checkpoint of that run: latest, best, or a step."""
    codes: Count | None = None
    """How many of its codes are explained, those whose means vary most; None is those with a
    variance above 0.01 over training examples."""
    first_latent: Count = 20
    """Dimensions of the codes of M1, if it is trained first."""
    first_hidden: Widths = (300, 300)
    """Widths of the hidden layers of M1."""
    first_steps: Count = 5000
    """Training steps of M1."""
    likelihood: Chosen = Likelihood("normal_decoded")
    """Family of the codes given y and z."""
    dataset: str = ""
    """Data set; none is the set of the run, or digits."""
    train_split: str = ""
    """Split to train on, if it is another one."""
    test_split: str = ""
    """Split that the result is reported on, if it is another one."""


def first_of(config: Config) -> flat.Config:
    """The configuration of M1, for a run that names none."""
    shared = ("pixels", "levels", "image_size", "unreadable", "precision", "batch_size", "seed")
    named = {name: getattr(config, name) for name in (*shared, "report_every", "checkpoint_every")}
    own = {name: getattr(config, name) for name in ("dataset", "train_split", "test_split")}
    network = {"hidden": config.first_hidden, "activation": config.activation}
    return changed(
        flat.Config(),
        **named,
        **{name: value for name, value in own.items() if value},
        **network,
        latent=config.first_latent,
        steps=config.first_steps,
        validation_split=config.validation_split,
        test_samples=config.test_samples,
        test_examples=config.test_examples,
    )


def settled(config: Config, first: FirstStage) -> Config:
    """The configuration with the number of codes that M1 uses."""
    if config.codes is not None:
        return config
    varying = int((np.var(_means(first), 0) > ACTIVE_VARIANCE).sum())
    if not varying:
        raise ValueError(
            f"no code of the run varies that of={config.of} names: train it for longer, or say how "
            "many codes to take"
        )
    return dataclasses.replace(config, codes=varying)


def _means(first: FirstStage) -> np.ndarray:
    """Means of q(c|x) of training examples, [N, D]."""
    assert first.means is not None, "a run opens its first stage with them"
    means = first.means()
    if not isinstance(means, np.ndarray) or means.ndim != 2:
        raise ValueError("M2 is of codes that are one vector [D] of real numbers: name another run")
    return means


def build(config: Config, data: Data) -> Built:
    """M2 of the codes of a run, with this run's model, and the training of M2."""
    if data.first_stage is None:
        raise ValueError("M2 is of the codes of a run: say with of=RUN_FOLDER which")
    first, shapes = data.first_stage.built, data.first_stage.params
    likelihood, shares = config.likelihood(), labels.shares_of(config, data)
    example = jax.eval_shape(first.preprocess, jax.random.key(0), first.raw(data.shapes()))
    codes = codes_of(first.model, shapes, example)
    if first.pairs or len(codes.shape) != 1:
        raise ValueError(
            "M2 is of codes that are one vector [D] of real numbers, of a model without a "
            "condition: name another run"
        )
    (latent,), count = codes.shape, config.codes or 1
    if count > latent:
        raise ValueError(f"codes={count} are more than the {latent} that the run has")
    m2 = labels.m2_of(config, labels.classes_of(data), likelihood, (count,), 1.0)
    model = models.CodedLabels(first.model, m2, latent)
    init, loss = labels.loss_of(config, m2, shares)
    frozen = {"model": shapes, "kept": _kept(data.first_stage, count)}

    def start(key: Array, example: Any) -> Any:
        first_stage = jax.tree.map(_as_array, frozen)
        return {"m2": init(key, jnp.zeros(count)), "first_stage": first_stage}

    player = training.Player(
        training.batch_mean(model.loss(loss)),
        assembly.model_optimizer(config, config.bound),
        config.accumulate,
        config.virtual_shards,
    )
    algorithm = training.players(
        start,
        {"m2": player},
        config.ema_decay,
        skip_norm=config.skip_norm,
        frozen=("first_stage",),
    )
    return Built(
        models.coded_answers(model, start),
        algorithm,
        labels.pairs_of(first.preprocess),
        model,
        lambda state: state.params | {"m2": training.trained(state, "m2")},
        pictures=first.pictures,
        discrete=first.discrete,
        **labels.data_fields(config, data, shares),
    )


def _kept(first: FirstStage, count: int) -> Array:
    """The codes whose means vary most, in their order, [count] as floats."""
    if first.means is None:  # the model is opened from its checkpoints
        return jnp.zeros(count)
    varying = np.argsort(-np.var(_means(first), 0), kind="stable")[:count]
    return jnp.asarray(np.sort(varying), jnp.float32)


def _as_array(leaf: Any) -> Array:
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


PRESETS = {
    "m1-m2": (
        "such a model of the codes of a VAE, which is trained first (Kingma et al. 2014)",
        # The decoded variances of the codes are far off at first, and so are their gradients.
        # MNIST with 1,000 labels, after 20 epochs: 8 % error with the weight 0.1, 4 % with 1.
        Config(
            labelled=100, label_weight=1.0, learning_rate=3e-3, warmup_steps=500, clip_norm=10.0
        ),
    ),
}
FAMILY = contract.Family(
    Config,
    build,
    PRESETS,
    lambda config: (),
    second_stage=True,
    settled=settled,
    first=first_of,
)
