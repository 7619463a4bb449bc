"""What a run is made of: the Config that the command line fills, presets, and the wiring of both scripts' objects."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jax.experimental.compilation_cache import compilation_cache

from jaxvae import (
    bounds,
    datasets,
    expectations,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    processes,
    schedules,
    training,
)

BOUNDS = ("elbo", "sampled_elbo", *(name for name in bounds.BOUNDS if name != "elbo"))
LATENTS = {"bernoulli": "binary", "categorical": "categorical"}  # of a posterior; any other is continuous
NATURAL = {"continuous": "pathwise", "binary": "disarm", "categorical": "disarm_sb"}  # estimators
IDENTITY_FREE = (  # a run stays the same one when these change
    *("workdir", "data_dir", "stream", "devices", "mapping", "profile"),
    *("distributed", "coordinator", "num_processes", "process_id", "heartbeat"),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a variational autoencoder, and resumes where a run with the same workdir stopped."""

    dataset: str = "digits"
    """Name of a tensorflow-datasets set, or a .npy or .npz file, or a folder of images."""
    data_dir: str | None = None
    """Folder of prepared tensorflow-datasets; None is ~/tensorflow_datasets or $TFDS_DATA_DIR."""
    workdir: str | None = None
    """Run folder; None is runs/PRESET-DATASET-SEED."""
    train_split: str = "train"
    """Split to train on; parts are written as train[:80%]."""
    test_split: str = "test"
    """Split that the result is reported on."""
    pixels: Literal["auto", "dynamic", "static", "dequantize", "scale", "counts", "none"] = "auto"
    """Pixel treatment: dynamic or static binarization, uniform dequantization, scaling to [0, 1], integer counts, or
    none (real values); auto is the likelihood's natural one."""
    stream: bool = False
    """Read training examples as they are needed, for sets larger than memory (needs Grain)."""
    levels: int | None = None
    """Values that a pixel can take; None infers 2 for binary images and 256 for others."""

    network: Literal["mlp", "conv", "residual"] = "mlp"
    """Encoder and decoder."""
    hidden: tuple[int, ...] = (200, 200)
    """Widths of the hidden layers (mlp), or channels of the stages (conv, residual); the decoder mirrors them."""
    activation: Literal["relu", "gelu", "silu", "softplus", "tanh"] = "relu"
    """Activation of the hidden layers."""
    blocks: int = 2
    """Residual blocks in each stage (residual only)."""
    remat: bool = False
    """Compute the insides of residual blocks again in the backward pass, to save memory (residual only)."""
    precision: Literal[tuple(networks.PRECISIONS)] = "float32"  # type: ignore[valid-type]
    """How encoder and decoder compute: true float32, TF32 (three bfloat16 passes on TPU), or bfloat16; parameters and
    densities are float32 always."""
    latent: int = 10
    """Dimensions of z."""
    posterior: Literal[tuple(posteriors.POSTERIORS)] = "normal"  # type: ignore[valid-type]
    """Family of q(z|x): diagonal or full-covariance Gaussian, bits, or one of several classes for each latent."""
    classes: int = 10
    """Classes of each latent (categorical only)."""
    likelihood: Literal[tuple(likelihoods.LIKELIHOODS)] = "bernoulli"  # type: ignore[valid-type]
    """Family of p(x|z)."""

    bound: Literal[BOUNDS] = "elbo"  # type: ignore[valid-type]
    """Objective: ELBO with KL in closed form, ELBO with sampled KL, or a member of jaxvae.bounds, such as iwae, dreg
    and, for latents of any kind, vimco."""
    estimator: Literal[("auto", *expectations.ESTIMATORS)] = "auto"  # type: ignore[valid-type]
    """Gradient estimator of the two ELBOs, a member of jaxvae.expectations; auto is pathwise for Gaussian latents,
    disarm for bits and disarm_sb for classes."""
    num_samples: int = 1
    """Samples of z per example in the objective, K."""
    temperature: float = 0.5
    """Temperature of the relaxed estimators that have one and do not learn it."""
    groups: int = 1
    """Groups that the K samples are divided into (miwae and piwae only)."""
    elbo_weight: float = 0.5
    """Weight of the ELBO beside the importance-weighted bound (ciwae only)."""
    renyi_order: float = 0.5
    """Order of the Renyi bound (renyi only)."""
    control_learning_rate: float = 1e-3
    """Learning rate of an estimator's own parameters (those that learn only)."""
    kl_weight: float = 1.0
    """Weight of the KL term, or the end of its warm-up (elbo only)."""
    kl_warmup: Literal["none", "linear", "sigmoid", "cyclical"] = "none"
    """Schedule of the KL weight (elbo only)."""
    kl_warmup_steps: int = 1000
    """Steps of the warm-up; for cyclical, of its four cycles."""
    free_bits: float = 0.0
    """Nats that each group of latents may use for free (elbo only); 0 is off."""
    free_bits_groups: int = 1
    """Groups of latents for the free bits."""

    steps: int = 5000
    """Training steps."""
    batch_size: int = 128
    """Examples in a global batch."""
    optimizer: Literal["adam", "adamw", "adamax", "sgd"] = "adam"
    """Optimizer."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Course of the learning rate after its warm-up: constant, or down to zero at the last step."""
    warmup_steps: int = 0
    """Steps of linear learning-rate warm-up."""
    clip_norm: float = 0.0
    """Global norm that gradients are clipped to; 0 is off."""
    ema_decay: float = 0.0
    """Decay of the parameters' moving average, which is then what is evaluated; 0 is off."""
    accumulate: int = 1
    """Parts that a batch is cut into to save memory; the gradient is that of the whole batch."""
    seed: int = 0
    """Seed of parameters, batches and noise."""
    virtual_shards: int = 0
    """Parts that every batch is computed in and summed in a fixed order, so that the result is the same bit for bit on
    any number of devices and processes that divides it; slow, 0 is off."""

    devices: int | None = None
    """Devices to train on, in all processes together; None is one, or all with --distributed. The result does not
    depend on it."""
    mapping: Literal[training.MAPPINGS] = "pmap"  # type: ignore[valid-type]
    """How several devices are used; the result does not depend on it."""
    distributed: bool = False
    """Join a job of several processes. What the next three leave open comes from SLURM, Kubernetes or Cloud TPU."""
    coordinator: str | None = None
    """Address HOST:PORT of process 0."""
    num_processes: int | None = None
    """Processes in the job."""
    process_id: int | None = None
    """Number of this process, from 0."""
    heartbeat: int = 100
    """Seconds after which a process that is not heard of ends the whole job."""
    profile: bool = False
    """Write a trace of ten steps to WORKDIR/profile, for Perfetto or TensorBoard."""

    report_every: int = 100
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, each with the ELBO of the validation split, or of the test split where there is none;
    the newest two and the best are kept."""
    test_samples: int = 1000
    """Importance samples of the final test log-likelihood, K."""
    test_examples: int | None = None
    """Examples of the test split that the final log-likelihood uses; None is all."""


PRESETS: dict[str, tuple[str, Config]] = {
    "digits": (
        "scikit-learn's 8x8 digits, needs no network: under two minutes on two cores",
        Config(),
    ),
    "mnist-vae": (
        "784-200-200-50 on dynamically binarized MNIST (Burda et al. 2015): published 86.76 nats",
        Config(
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
    ),
    "binary": (
        "200 bits and linear networks, as in the literature on gradient estimators: --estimator NAME",
        Config(
            dataset="binarized_mnist",
            hidden=(),
            latent=200,
            posterior="bernoulli",
            batch_size=50,
            learning_rate=1e-3,
            schedule="constant",
            steps=20_000,
            checkpoint_every=5000,
            report_every=500,
            test_samples=100,
        ),
    ),
    "conv": (
        "convolutional encoder and decoder, on any image set",
        Config(network="conv", hidden=(32, 64), latent=16, steps=2000),
    ),
}


def parse(arguments: list[str]) -> tuple[str, Config]:
    """The preset's name and the Config of a command line: ``[PRESET] [--field value ...]``."""
    import tyro

    name = "digits"
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        if name not in PRESETS:
            near = difflib.get_close_matches(name, PRESETS, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            fail(f"no preset {name!r}; there are {', '.join(PRESETS)}.{hint}")
    table = "\n".join(f"* {name}: {description}" for name, (description, _) in PRESETS.items())
    description = (
        f"{Config.__doc__}\n\nusage: train.py [PRESET] [--field value ...]. Presets (digits is the default):\n\n{table}"
    )
    return name, tyro.cli(
        Config, default=PRESETS[name][1], args=arguments, description=description, prog=f"train.py {name}"
    )


def fail(error: Exception | str, place: Any = None) -> Any:
    """Ends the script with one sentence and exit code 2; ``place`` is where an error of the file system happened.

    In a job of several processes none waits for the others, but process 0 stays a moment longer, because the others are
    aborted when it is gone.
    """
    if isinstance(error, OSError) and error.strerror:
        error = f"{error.filename or place}: {error.strerror}"
    print(f"error: {error}", file=sys.stderr, flush=True)
    if jax.process_count() > 1:
        time.sleep(2.0 if processes.is_first() else 0.0)
        os._exit(2)
    raise SystemExit(2)


def one_voice() -> None:
    """Leaves failures to the main thread, which says them in a sentence.

    On a full disk TensorBoard's writer would print tracebacks from its thread and at the end, and TensorStore one for
    each write that Orbax has given up on, or asyncio's log would.
    """
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    of_threads, at_end, of_all = threading.excepthook, sys.unraisablehook, sys.excepthook
    given_up = lambda error: isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    quiet = lambda error: isinstance(error, OSError) or given_up(error)
    threading.excepthook = lambda args: None if quiet(args.exc_value) else of_threads(args)
    sys.unraisablehook = lambda args: None if quiet(args.exc_value) else at_end(args)
    sys.excepthook = lambda kind, error, trace: None if given_up(error) else of_all(kind, error, trace)


def keep_programs() -> None:
    """Keeps compiled programs in ~/.cache/jaxvae, or where JAX_COMPILATION_CACHE_DIR says."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if jax.config.jax_compilation_cache_dir is None and caches.is_absolute():  # not where nobody's home is known
        jax.config.update("jax_compilation_cache_dir", str(caches / "jaxvae"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        compilation_cache.reset_cache()  # what was compiled at import has settled that there is none


def command(function: Callable) -> None:
    """Runs a script's function on the command line; what cannot work ends in one sentence and exit code 2."""
    import tyro

    keep_programs()
    try:
        tyro.cli(function)
    except (ValueError, OSError) as error:
        fail(error)


def join(config: Config) -> None:
    """Joins the job of several processes that the config describes, if it does."""
    if config.distributed:
        processes.initialize(config.coordinator, config.num_processes, config.process_id, config.heartbeat)
    elif (config.coordinator, config.num_processes, config.process_id) != (None, None, None):
        raise ValueError("--coordinator, --num-processes and --process-id belong to --distributed")


class Run(NamedTuple):
    """Everything that the scripts need, made of a Config."""

    config: Config
    dataset: datasets.Dataset
    train: Any  # [N, ...] stored examples, or the stream of them
    test: datasets.Split
    monitored: datasets.Split  # what checkpoints are judged by
    treat: Callable  # (key, pixels) -> x
    vae: models.VAE
    algorithm: training.Algorithm
    dimensions: int
    bits_offset: float  # of bits per dimension
    white: float  # the value of x that pictures show as white

    @property
    def key(self) -> jax.Array:
        """The key of all that is drawn after training."""
        return jax.random.fold_in(jax.random.key(self.config.seed), 1)

    def init_state(self) -> training.State:
        """A fresh state of the algorithm."""
        return jax.jit(self.algorithm.init)(jax.random.key(self.config.seed), self.train[0])


COUNTS = (
    *("latent", "blocks", "num_samples", "batch_size", "accumulate", "devices", "heartbeat", "levels"),
    *("report_every", "checkpoint_every", "kl_warmup_steps", "free_bits_groups", "test_samples", "test_examples"),
    *("classes", "groups"),
)
JUDGED = 10_000  # examples of the test and validation splits of a stream, which are held in memory
AMOUNTS = (
    *("steps", "warmup_steps", "learning_rate", "kl_weight", "free_bits", "clip_norm", "ema_decay", "virtual_shards"),
    *("control_learning_rate", "elbo_weight"),
)


def check(config: Config) -> None:
    """Raises ValueError for a number that can mean nothing."""
    flag = lambda name: "--" + name.replace("_", "-")
    for name in COUNTS:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{flag(name)} must be at least 1; it was {value}")
    for name in AMOUNTS:
        value = getattr(config, name)
        if not 0 <= value < np.inf:
            raise ValueError(f"{flag(name)} must be finite and not negative; it was {value}")
    if config.virtual_shards and config.batch_size % config.virtual_shards:
        raise ValueError(
            f"--batch-size {config.batch_size} does not divide into --virtual-shards {config.virtual_shards}"
        )
    if config.temperature <= 0:
        raise ValueError(f"--temperature must be above 0; it was {config.temperature}")
    if config.ema_decay >= 1:
        raise ValueError(f"--ema-decay must be below 1; it was {config.ema_decay}")
    if min(config.hidden, default=1) < 1:
        raise ValueError(f"--hidden must be widths of at least 1; they were {config.hidden}")
    if config.network != "mlp" and not config.hidden:
        raise ValueError(f"--network {config.network} needs at least one width in --hidden")


def build(config: Config) -> Run:
    """Loads the data and wires model, objective and optimizer. Raises ValueError for what does not go together."""
    check(config)
    dataset = (datasets.stream if config.stream else datasets.load)(config.dataset, config.data_dir, config.levels)
    likelihood = likelihoods.LIKELIHOODS[config.likelihood](dataset.levels)
    pixels = _pixels(config, likelihood, dataset)
    prepare = lambda split: datasets.prepared(split, pixels, dataset.levels, config.seed)
    held = lambda split: datasets.Split(split[:JUDGED]) if config.stream else split
    train = prepare(datasets.select(dataset, config.train_split))
    test = prepare(held(datasets.select(dataset, config.test_split)))
    monitored = prepare(held(dataset.splits["validation"])) if "validation" in dataset.splits else test
    treat = datasets.treatment(pixels, dataset.levels)
    shape = train.shape
    vae = _vae(config, likelihood, shape, dataset.levels if pixels == "counts" else 2)
    vae = models.with_control(vae, _estimator(config)) if _estimates(config) else vae
    algorithm = training.gradient_descent(
        lambda key, x: vae.init(key, treat(key, x)),
        _loss(config, vae, treat),
        _optimizer(config),
        accumulate=config.accumulate,
        virtual_shards=config.virtual_shards,
        ema_decay=config.ema_decay,
    )
    density = not likelihood.discrete and pixels != "none"
    offset = float(np.log2(dataset.levels)) if density else 0.0
    white = {"counts": dataset.levels - 1.0, "none": float(test.images.max())}.get(pixels, 1.0)
    dimensions = int(np.prod(shape))
    train = train if config.stream else train.images
    return Run(config, dataset, train, test, monitored, treat, vae, algorithm, dimensions, offset, white)


def _pixels(config: Config, likelihood: likelihoods.Likelihood, dataset: datasets.Dataset) -> str:
    if config.pixels == "auto":
        floating = any(np.issubdtype(split.dtype, np.floating) for split in dataset.splits.values())
        natural = (
            [name for name in likelihood.support if name in ("dynamic", "scale", "none")]
            if floating
            else likelihood.support
        )
        if natural:
            return natural[0]
        raise ValueError(f"the likelihood {config.likelihood} needs integer pixels; {dataset.name} holds real values")
    if config.pixels not in likelihood.support:
        takes = " or ".join(likelihood.support)
        others = ", ".join(name for name, make in likelihoods.LIKELIHOODS.items() if config.pixels in make(2).support)
        raise ValueError(
            f"the likelihood {config.likelihood} is no density of pixels={config.pixels!r}: use --pixels {takes}, "
            f"or a likelihood that takes them ({others})"
        )
    return config.pixels


def _vae(config: Config, likelihood: likelihoods.Likelihood, shape: tuple[int, ...], levels: int) -> models.VAE:
    sizes = (config.latent, config.classes) if config.posterior == "categorical" else (config.latent,)
    posterior = posteriors.POSTERIORS[config.posterior](*sizes)
    output = (*shape[:-1], shape[-1] * likelihood.size)
    activation = networks.ACTIVATIONS[config.activation]
    mirrored = config.hidden[::-1]
    if config.network != "residual" and (config.blocks, config.remat) != (Config.blocks, Config.remat):
        raise ValueError(f"--blocks and --remat belong to --network residual, not to {config.network}")
    if config.network == "mlp":
        encoder = networks.mlp(config.hidden, posterior.size, activation)
        decoder = networks.mlp(mirrored, output, activation)
    elif len(shape) != 3:
        raise ValueError(f"--network {config.network} needs images [H, W, C]; the examples have shape {shape}")
    elif config.network == "conv":
        encoder = networks.convolutional_encoder(config.hidden, posterior.size, activation)
        decoder = networks.convolutional_decoder(mirrored, output, activation)
    else:
        encoder = networks.residual_encoder(config.hidden, posterior.size, config.blocks, activation, config.remat)
        decoder = networks.residual_decoder(mirrored, output, config.blocks, activation, config.remat)
    encoder, decoder = (networks.computed_in(network, config.precision) for network in (encoder, decoder))
    encoder = networks.scaled_input(encoder, 1 / (levels - 1))
    return models.vae(encoder, decoder, posterior, likelihood, priors.NATURAL[config.posterior](*sizes))


def _estimates(config: Config) -> bool:
    """Whether the objective is an expectation that an estimator is chosen for."""
    return config.bound in ("elbo", "sampled_elbo")


def _latents(config: Config) -> str:
    return LATENTS.get(config.posterior, "continuous")


def _refuse(config: Config, kind: str, name: str, table: dict[str, expectations.Estimator]) -> None:
    """Raises ValueError where an estimator does not serve the posterior's latents, or has too few samples."""
    latents, own = _latents(config), table[name]
    if latents not in own.latents:
        others = ", ".join(other for other, more in table.items() if latents in more.latents)
        raise ValueError(
            f"--{kind} {name} serves {' and '.join(sorted(own.latents))} latents; --posterior {config.posterior} has "
            f"{latents} ones, which are served by {others}"
        )
    if config.num_samples < own.least:
        raise ValueError(f"--{kind} {name} needs --num-samples {own.least} at least; it was {config.num_samples}")


def _estimator(config: Config) -> expectations.Estimator:
    name = NATURAL[_latents(config)] if config.estimator == "auto" else config.estimator
    _refuse(config, "estimator", name, expectations.ESTIMATORS)
    estimator = expectations.ESTIMATORS[name]
    if "temperature" not in inspect.signature(estimator.estimate).parameters:
        return estimator
    estimate = functools.partial(estimator.estimate, temperature=config.temperature)
    return dataclasses.replace(estimator, estimate=functools.wraps(estimator.estimate)(estimate))


def _loss(config: Config, vae: models.VAE, treat: Callable) -> training.BatchLoss:
    """The objective of a batch of stored examples: the pixel treatment, then the bound, each with a key of its own."""
    ramps: dict[str, Callable[[int, float], optax.Schedule]] = {
        "linear": schedules.linear_warmup,
        "sigmoid": schedules.sigmoid_warmup,
        "cyclical": lambda steps, end: schedules.cyclical(steps, end=end),
    }
    plain = config.kl_weight == 1.0 and config.kl_warmup == "none" and not config.free_bits
    if config.bound != "elbo" and not plain:
        raise ValueError(f"KL weight, warm-up and free bits belong to --bound elbo, not to {config.bound}")
    if config.kl_warmup == "none":
        weight: optax.Schedule = lambda step: config.kl_weight
    else:
        weight = ramps[config.kl_warmup](config.kl_warmup_steps, config.kl_weight)
    if not _estimates(config) and config.estimator != "auto":
        raise ValueError(f"--estimator belongs to --bound elbo and sampled_elbo; {config.bound} has its own gradient")
    if config.free_bits:
        if config.accumulate > 1 or config.virtual_shards:
            raise ValueError(
                "free bits take their maximum over the whole batch: --accumulate must be 1, --virtual-shards 0"
            )
        estimator = _estimator(config)
        if estimator.init is not None:
            raise ValueError(f"--free-bits cannot be used with --estimator {config.estimator}, which learns")
        counts = config.free_bits_groups, config.num_samples
        batch_loss = models.free_bits(vae, config.free_bits, *counts, weight, estimator)
    elif config.bound == "elbo":
        loss = models.negative_elbo(vae, config.num_samples, weight, _estimator(config))
        batch_loss = training.batch_mean(loss)
    elif config.bound == "sampled_elbo":
        batch_loss = training.batch_mean(models.negative_sampled_elbo(vae, config.num_samples, _estimator(config)))
    else:
        batch_loss = training.batch_mean(models.negative(_bound(config), vae, config.num_samples))
    return training.treated(treat, batch_loss)


def _bound(config: Config) -> expectations.Estimator:
    _refuse(config, "bound", config.bound, bounds.BOUNDS)
    bound = bounds.BOUNDS[config.bound]
    own: dict[str, Any] = {"ciwae": {"elbo_weight": config.elbo_weight}, "renyi": {"order": config.renyi_order}}
    own |= {name: {"groups": config.groups} for name in ("miwae", "piwae")}
    if config.bound == "renyi" and config.renyi_order == 1:
        raise ValueError("--renyi-order 1 is the ELBO: use --bound sampled_elbo")
    if config.num_samples % config.groups:
        raise ValueError(f"--num-samples {config.num_samples} do not divide into --groups {config.groups}")
    estimate = functools.partial(bound.estimate, **own.get(config.bound, {}))
    return dataclasses.replace(bound, estimate=functools.wraps(bound.estimate)(estimate))


def _optimizer(config: Config) -> optax.GradientTransformation:
    if config.warmup_steps >= config.steps and config.warmup_steps:
        raise ValueError(f"--warmup-steps {config.warmup_steps} must be fewer than --steps {config.steps}")
    peak, after = config.learning_rate, max(config.steps - config.warmup_steps, 1)
    course = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, after),
        "linear": optax.linear_schedule(peak, 0.0, after),
    }[config.schedule]
    if config.warmup_steps:
        rise = optax.linear_schedule(0.0, peak, config.warmup_steps)
        course = optax.join_schedules([rise, course], [config.warmup_steps])
    makers: dict[str, Callable] = {"adam": optax.adam, "adamw": optax.adamw, "adamax": optax.adamax, "sgd": optax.sgd}
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    whole = optax.chain(*clip, makers[config.optimizer](course))
    estimator = _estimator(config) if _estimates(config) else None
    if estimator is None or estimator.init is None:
        return whole
    parts = {"model": whole, "control": estimator.optimizer(config.control_learning_rate)}
    return optax.partition(parts, lambda params: {name: "control" if name == "control" else "model" for name in params})
