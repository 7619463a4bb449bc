"""What a family of models is made of.

It has a configuration, presets, and a function that builds a model and its training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvae import datasets, networks, training
from jaxvae.contracts import Array, Preprocess
from jaxvae.models import Model
from jaxvae.ranges import Amount, Count, Fraction, Whole
from jaxvae.settings import Choice, Chosen, check_range, fields_of
from jaxvae.sounds import Audible


class Data(NamedTuple):
    """All that a model must know of its data.

    A run keeps it in ``config.json``, so a trained model can be opened without its data set.
    """

    name: str
    shape: tuple[int, ...]  # the shape of one raw example
    dtype: str
    levels: int | None  # values that a pixel can take; None if they are real numbers
    pixels: str  # a member of ``datasets.PREPROCESSING``
    size: int  # training examples
    classes: tuple[str, ...] = ()  # names of the classes, by label
    num_classes: int = 0
    num_attributes: int = 0
    raw_levels: int | None = None  # levels before ``static`` binarization, which leaves two
    pixel_max: float = 1.0  # the value of x that pictures show as white
    # count -> so many raw training examples; None if the set is not there
    examples: Callable[[int], Any] | None = None
    first_stage: FirstStage | None = None  # the model whose codes a prior is of
    # count -> at most so many raw training examples with their labels [N]; None without labels
    labelled: Callable[[int], tuple[Any, Any]] | None = None
    vocabulary: tuple[str, ...] = ()  # the tokens of sentences, by their numbers
    missing_labels: int = 0  # training examples whose label is -1
    num_class_attributes: int = 0  # numbers that describe a class
    unseen: tuple[int, ...] = ()  # described classes that no label of a training example names
    class_attributes: Any = None  # [C, A]; None if the set is not there
    columns: tuple[dict[str, Any], ...] = ()  # of a table, as ``tables.Column.json`` writes them
    genes: tuple[str, ...] = ()  # names of the counts of single cells
    batches: tuple[str, ...] = ()  # names of the laboratory's batches of single cells

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of x, ``(key, raw x) -> x``."""
        return datasets.preprocessing(self.pixels, self.levels)

    @property
    def input_scale(self) -> float:
        """The factor that brings x into [0, 1], for networks."""
        return 1 / (self.levels - 1) if self.pixels == "counts" and self.levels else 1.0

    def example(self) -> jax.ShapeDtypeStruct:
        """The shape and type of one raw x."""
        return jax.ShapeDtypeStruct(self.shape, np.dtype(self.dtype))

    def shapes(self) -> datasets.Split:
        """A split of one example's shapes: x, and a label or attributes where there are some."""
        y = jax.ShapeDtypeStruct((), jnp.int32) if self.num_classes else None
        attributes = None
        if self.num_attributes:
            attributes = jax.ShapeDtypeStruct((self.num_attributes,), jnp.float32)
        return datasets.Split(self.example(), y, attributes)

    def first_examples(self, count: int) -> Any:
        """``count`` raw training examples, or zeros if the set is not there."""
        if self.examples is None:
            return np.zeros((count, *self.shape), self.dtype)
        return self.examples(count)


class FirstStage(NamedTuple):
    """A trained model whose codes another model is of, and which stays as it is."""

    built: Any  # what its family built
    params: Any  # its parameters, or their shapes if they are in the checkpoints of the second
    draws: Callable[[], Any] | None = None  # () -> draws of q(z|x) of training examples, [N, ...]
    means: Callable[[], Any] | None = None  # () -> means of q(z|x) of training examples, [N, ...]


def _same_picture(x: Array, condition: Any) -> Array:
    return x


def _plain(split: Any) -> Any:
    return split.x


class Built(NamedTuple):
    """What a family builds: the model, and how it is trained."""

    model: Model
    algorithm: training.Algorithm
    preprocess: Preprocess  # (key, raw example) -> what the model takes
    source: Any = None  # the family's record, such as a ``models.VAE``
    parameters: Callable[[Any], Any] = training.trained  # state -> params of the model
    training_preprocess: Preprocess | None = None  # if training sees other examples
    raw: Callable[[Any], Any] = _plain  # split -> raw examples
    pairs: bool = False  # whether raw examples are pairs of x and a condition
    condition: Callable[[Any], Any] | None = None  # raw condition -> as the model takes it
    pictures: Callable[[Any, Any], Any] = _same_picture  # (x, condition) -> images
    discrete: bool = True  # whether log p(x|z) is a log-probability, not a log-density
    notes: tuple[str, ...] = ()  # what the report of a training says of how it is done
    rows: Callable[[Any], Any] | None = None  # texts -> raw examples, for models of sentences
    # name -> (p(x|z), key) -> x, where there are several ways to read x from p(x|z)
    decodings: Mapping[str, Callable[[Any, Array], Any]] = {}
    # (model, params, key, split, what was found) -> further numbers of a split
    measures: Callable[..., dict[str, float]] | None = None
    dimensions: Callable[[Any], float] | None = None  # split -> values of an example, in the mean
    audible: Audible | None = None  # how x can be heard, if it is sound
    # source of single cells -> them as they are, and as a split that the model takes
    cells: Callable[[Any], tuple[Any, datasets.Split]] | None = None
    training_raw: Callable[[Any], Any] | None = None  # ``raw``, if training sees other examples
    # (model, params, key, validation split) -> the score of a checkpoint, if it is not the ELBO
    score: Callable[..., float] | None = None
    # (training split, batch size) -> groups of which every batch has a fixed number
    strata: Callable[[Any, int], tuple[datasets.Stratum, ...]] | None = None

    def fresh_state(self, data: Data) -> Any:
        """The shapes of a state of the algorithm."""
        preprocess = self.training_preprocess or self.preprocess
        first = datasets.Examples(self.raw(data.shapes()), preprocess)
        return jax.eval_shape(self.algorithm.init, jax.random.key(0), first)

    def split(self, split: Any) -> Any:
        """A split to evaluate on, whose examples are what the model takes."""
        return split.replace(x=self.raw(split), preprocess=self.preprocess)

    def pictures_of(self, x: Any, examples: Any) -> Any:
        """Images of what the model gives for examples."""
        return self.pictures(x, self.model.parts(examples)[1])

    def training_split(self, split: Any) -> Any:
        """A split or a stream to train on."""
        preprocess = self.training_preprocess or self.preprocess
        if isinstance(split, datasets.Stream):
            if self.training_raw is not None:
                raise ValueError(
                    "a part of every training example can be hidden in memory alone: leave stream "
                    "out, or hide nothing"
                )
            return dataclasses.replace(split, preprocess=preprocess)
        raw = self.training_raw or self.raw
        return split.replace(x=raw(split), preprocess=preprocess)


class Family(NamedTuple):
    """A family of models: one file each, and one row in ``FAMILIES``."""

    Config: type[Config]
    build: Callable[[Any, Data], Built]
    presets: Mapping[str, tuple[str, Any]]  # name -> (what it is, its configuration)
    support: Callable[[Any], tuple[str, ...]]  # config -> preprocessing that its likelihood takes
    members: tuple[str, ...] = ()  # other names of it, such as the posterior that it always has
    second_stage: bool = False  # whether its models are of the codes of a run, ``config.of``
    # (config, source, Data of a trained model or None, data_dir=) -> data set; None is
    # ``datasets.load``
    load: Callable[..., datasets.Dataset] | None = None
    # (config, first stage) -> config with what follows from the first stage
    settled: Callable[[Any, FirstStage], Any] | None = None
    # config -> the configuration of the first stage that is trained if ``config.of`` names none
    first: Callable[[Any], Any] | None = None


# Optimizers


def adamw(
    learning_rate: Any,
    weight_decay: Amount = 1e-4,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (arXiv:1711.05101).

    Args:
      learning_rate: the learning rate, or its schedule.
      weight_decay: weight of the decay, which the learning rate multiplies.
      b1: decay of the moving mean of gradients.
      b2: decay of the moving mean of squared gradients.
    """
    return optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay)


def adamax(learning_rate: Any) -> optax.GradientTransformation:
    """Adam with the infinity norm (arXiv:1412.6980, sec. 7)."""
    return optax.adamax(learning_rate)


def sgd(learning_rate: Any, momentum: Amount = 0.0) -> optax.GradientTransformation:
    """Stochastic gradient descent.

    Args:
      learning_rate: the learning rate, or its schedule.
      momentum: decay of the moving sum of gradients; 0 is off.
    """
    return optax.sgd(learning_rate, momentum=momentum or None)


def adam(
    learning_rate: Any, b1: Fraction = 0.9, b2: Fraction = 0.999
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980).

    Args:
      learning_rate: the learning rate, or its schedule.
      b1: decay of the moving mean of gradients.
      b2: decay of the moving mean of squared gradients.
    """
    return training.adam(learning_rate, b1, b2)


OPTIMIZERS = {"adam": adam, "adamw": adamw, "adamax": adamax, "sgd": sgd}
Optimizer = Choice(OPTIMIZERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of data and training, which every family has."""

    input_scale: ClassVar[float] = 1.0  # brings x of real numbers to about unit size for encoders

    dataset: str = "digits"
    """Name of a tensorflow-datasets set, or a .npy or .npz file, or a folder of images."""
    train_split: str = "train"
    """Split to train on; a part of it is written as train[:80%]."""
    test_split: str = "test"
    """Split that the result is reported on."""
    validation_split: str | None = None
    """Split that checkpoints are judged on; None is the set's validation split, else its test
    split."""
    pixels: Literal[("auto", *datasets.PREPROCESSING)] = "auto"  # type: ignore[valid-type]
    """Preprocessing: dynamic or static binarization, uniform dequantization, scaling to [0, 1],
    integer counts, none for real values, or gaps for real values among which nan is missing; auto
    takes the default of the likelihood."""
    levels: Count | None = None
    """Values that a pixel can take; None infers them from integers and takes floats as real
    numbers."""
    image_size: Count | None = None
    """Height and width that a folder's images are resized to; the shorter side is scaled, and the
    centre is cropped."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What to do with a folder's files that cannot be read."""
    precision: Literal[tuple(networks.PRECISIONS)] = "float32"  # type: ignore[valid-type]
    """Precision of encoder, decoder and a conditional prior: float32, TF32 (three bfloat16 passes
    on TPU), or bfloat16; parameters and densities are always float32."""

    steps: Whole = 5000
    """Training steps."""
    batch_size: Count = 128
    """Examples in a global batch."""
    optimizer: Chosen = Optimizer("adam")
    """Optimizer of the model."""
    learning_rate: Amount = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Course of the learning rate after its warm-up; cosine and linear end at 0."""
    warmup_steps: Whole = 0
    """Steps in which the learning rate rises from 0 in a straight line."""
    clip_norm: Amount = 0.0
    """Global norm that gradients are clipped to; 0 is off."""
    skip_norm: Amount = 0.0
    """Global norm of the gradient above which an update is skipped; 0 is off."""
    ema_decay: Fraction = 0.0
    """Decay of a moving average of the parameters, which is then evaluated; 0 is off."""
    accumulate: Count = 1
    """Parts that a batch is cut into to save memory; the gradient stays the same."""
    virtual_shards: Whole = 0
    """Parts that a batch is computed in, whose sum has a fixed order. The result is then the same
    bit for bit on any number of devices that divides the parts; it is slow, and 0 is off."""
    seed: Whole = 0
    """Seed of parameters, batches and noise."""

    report_every: Count = 100
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints, which are judged on the validation split; the newest two and the
    best one are kept."""
    early_stopping: Whole = 0
    """Checkpoints without a better validation score after which training ends; 0 is off."""
    test_samples: Count = 1000
    """Importance samples K of the final test log-likelihood."""
    test_examples: Count | None = None
    """Test examples of the final log-likelihood, a fixed random subset; None takes all."""

    def __post_init__(self) -> None:
        for name, setting in fields_of(self).items():
            check_range(name, setting.annotation, setting.value)


# Settings that may change when a run is resumed. Any other change makes a new run.
RESUMABLE = (
    *("steps", "report_every", "checkpoint_every", "early_stopping"),
    *("test_split", "test_samples", "test_examples", "dataset", "of"),
)


def optimizer_of(
    config: Config, course: optax.Schedule | None = None
) -> optax.GradientTransformation:
    """The optimizer with its schedule, warm-up and clipping.

    ``course`` is a learning rate in the place of the configuration's. Raises ValueError if the
    warm-up is not shorter than the training.
    """
    if config.warmup_steps >= config.steps and config.warmup_steps:
        raise ValueError(
            f"warmup_steps={config.warmup_steps} must be fewer than steps={config.steps}"
        )
    last = config.optimizer(learning_rate=_course(config) if course is None else course)
    if not config.clip_norm:
        return last
    whole = optax.chain(optax.clip_by_global_norm(config.clip_norm), last)
    # Clipping has no state, so the chain skips updates that are not finite as ``last`` does.
    return training.SkipsNonFinite(*whole) if isinstance(last, training.SkipsNonFinite) else whole


def _course(config: Config) -> optax.Schedule:
    """The learning rate at each step."""
    peak, after = config.learning_rate, max(config.steps - config.warmup_steps, 1)
    course = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, after),
        "linear": optax.linear_schedule(peak, 0.0, after),
    }[config.schedule]
    if not config.warmup_steps:
        return course
    rise = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([rise, course], [config.warmup_steps])
