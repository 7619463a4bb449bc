"""Priors over the codes of another run, whose encoder and decoder stay as they are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae import code_priors, models, training
from jaxvae.code_priors import CodePrior
from jaxvae.contracts import Array, Params
from jaxvae.families import contract
from jaxvae.families.contract import Built, Data, optimizer_of
from jaxvae.models.stages import Codes, Conditions, Stages, codes_of
from jaxvae.ranges import Count
from jaxvae.settings import Choice, Chosen


def natural() -> None:
    """A PixelCNN for grids of codes, and a coupling flow for real latents."""


class _Priors(dict):
    def items(self) -> Any:
        return ({"natural": natural} | code_priors.CODE_PRIORS).items()


Prior = Choice(_Priors())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """A prior over the codes of another run, which is not trained any further.

    Van den Oord et al. 2017, arXiv:1711.00937, sec. 3.3.
    """

    of: str = ""
    """Folder of the run whose codes the prior is of. Its data set, splits and preprocessing are
    taken, and its parameters are kept with the prior's."""
    of_checkpoint: str = "latest"
    """Checkpoint of that run: latest, best, or a step."""
    dataset: str = ""
    """Data set, if it has moved since that run."""
    train_split: str = ""
    """Split to train on, if it is another one."""
    test_split: str = ""
    """Split that the result is reported on, if it is another one."""
    prior: Chosen = Prior("natural")
    """Law of the codes."""
    labels: bool = False
    """Condition the prior on the label of the example."""
    test_samples: Count = 1
    """Draws of z for each test example; codes that are discrete need one."""


def law_of(config: Any, codes: Codes, context_size: int) -> CodePrior:
    """The prior of a configuration. Raises ValueError if it is of another kind of codes."""
    discrete, chosen = bool(codes.grids), config.prior
    if chosen.name == "natural":
        chosen = Prior("pixelcnn" if discrete else "coupling")
    if ("grids" in chosen.required) != discrete:
        kinds = "grids of codes", "real latents"
        has, takes = kinds if discrete else kinds[::-1]
        fitting = [
            name
            for name, member in code_priors.CODE_PRIORS.items()
            if ("grids" in Prior(name).required) == discrete
        ]
        raise ValueError(
            f"prior={chosen.name} is of {takes}, and the run has {has}: choose one of "
            f"{', '.join(fitting)}"
        )
    return chosen(
        grids=codes.grids,
        latent=math.prod(codes.shape),
        context_size=context_size,
        precision=config.precision,
    )


def conditions_of(config: Config, data: Data, first: Built) -> Conditions:
    """The condition of the first stage, or the label, or none.

    Raises ValueError for labels that are not there, and for labels beside another condition.
    """
    same = lambda example: example
    preprocess = first.preprocess
    if first.condition is not None:
        if config.labels:
            raise ValueError(
                "labels=True is for a run without a condition: the prior of a conditional run has "
                "the condition of the run"
            )
        of_first = lambda example: first.model.parts(example)[1]
        return Conditions(first.raw, preprocess, first.pairs, first.condition, same, of_first, True)
    if not config.labels:
        return Conditions(first.raw, preprocess, False, None, same, lambda example: None)
    if not data.num_classes:
        raise ValueError(
            f"labels=True needs a set with labels in memory; {data.name} has none here"
        )
    one_hot = lambda y: jax.nn.one_hot(y, data.num_classes)

    def pair(key: Array, raw: models.Conditioned) -> models.Conditioned:
        return models.Conditioned(preprocess(key, raw.x), one_hot(raw.y))

    raw = lambda split: models.Conditioned(first.raw(split), split.y)
    return Conditions(raw, pair, True, one_hot, lambda e: e.x, lambda e: e.y)


def build(config: Config, data: Data) -> Built:
    """The prior of a configuration with the model that its codes are of, and its training."""
    if data.first_stage is None:
        raise ValueError("a prior is of the codes of a run: say with of=RUN_FOLDER which")
    first, draws = data.first_stage.built, data.first_stage.draws
    conditions = conditions_of(config, data, first)
    example = jax.eval_shape(
        conditions.preprocess, jax.random.key(0), conditions.raw(data.shapes())
    )
    shapes = data.first_stage.params
    codes = codes_of(first.model, shapes, jax.eval_shape(conditions.first, example))
    condition = jax.eval_shape(conditions.condition, example)
    context_size = 0 if condition is None else math.prod(condition.shape)
    prior = law_of(config, codes, context_size)

    frozen = {"model": shapes} | (moments(draws, codes.shape) if codes.shape else {})

    def start(key: Array, example: Any) -> dict[str, Params]:
        return {"prior": prior.init(key), "first_stage": jax.tree.map(_as_array, frozen)}

    stages = Stages(first.model, codes, prior, conditions)
    player = training.Player(
        training.batch_mean(stages.loss),
        optimizer_of(config),
        config.accumulate,
        config.virtual_shards,
    )
    algorithm = training.players(
        start, {"prior": player}, config.ema_decay, frozen=("first_stage",)
    )

    def parameters(state: Any) -> Params:
        return state.params | {"prior": training.trained(state, "prior")}

    return Built(
        stages.model(start),
        algorithm,
        conditions.preprocess,
        prior,
        parameters,
        raw=conditions.raw,
        pairs=conditions.pairs,
        condition=conditions.encoded,
        pictures=first.pictures,
        discrete=first.discrete,
    )


def _as_array(leaf: Any) -> Array:
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def moments(draws: Callable[[], Any] | None, shape: tuple[int, ...]) -> dict[str, Array]:
    """Mean and standard deviation of each latent over draws of q(z|x), for ``Standardized``."""
    if draws is None:
        return {"center": jnp.zeros(shape), "spread": jnp.ones(shape)}
    z = jnp.asarray(draws())
    return {"center": z.mean(0), "spread": jnp.maximum(z.std(0), 1e-6)}


PRESETS = {"prior": ("a prior over the codes of another run: --of RUN", Config())}
FAMILY = contract.Family(Config, build, PRESETS, lambda config: (), second_stage=True)
