"""What a run is made of: the Config that the command line fills, presets, and the wiring of both scripts' objects."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from jaxvae import bounds, checkpoints, datasets, likelihoods, models, networks, posteriors, priors, schedules, training

IDENTITY_FREE = ("workdir", "data_dir", "devices")  # a run stays the same one when these change


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
    levels: int | None = None
    """Values that a pixel can take; None infers 2 for binary images and 256 for others."""

    network: Literal["mlp", "conv", "residual"] = "mlp"
    """Encoder and decoder."""
    hidden: tuple[int, ...] = (200, 200)
    """Widths of the hidden layers (mlp), or channels of the stages (conv, residual); the decoder mirrors them."""
    activation: Literal["relu", "gelu", "silu", "softplus", "tanh"] = "relu"
    """Activation of the hidden layers."""
    latent: int = 10
    """Dimensions of z."""
    posterior: Literal["normal", "multivariate_normal"] = "normal"
    """Family of q(z|x): diagonal or full-covariance Gaussian."""
    likelihood: Literal[tuple(likelihoods.LIKELIHOODS)] = "bernoulli"  # type: ignore[valid-type]
    """Family of p(x|z)."""

    bound: Literal["elbo", "sampled_elbo", "iwae"] = "elbo"
    """Objective: ELBO with KL in closed form, ELBO with sampled KL, importance-weighted bound."""
    num_samples: int = 1
    """Samples of z per example in the objective, K."""
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
    devices: int = 1
    """Devices to train on; above 1 under pmap. The result does not depend on it."""

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


def fail(message: str) -> Any:
    """Ends the script with one sentence and exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def command(function: Callable) -> None:
    """Runs a script's function on the command line; what cannot work ends in one sentence and exit code 2."""
    import tyro

    try:
        tyro.cli(function)
    except (ValueError, OSError) as error:
        fail(str(error))


class Run(NamedTuple):
    """Everything that the scripts need, made of a Config."""

    config: Config
    dataset: datasets.Dataset
    train: datasets.Split
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
        return jax.jit(self.algorithm.init)(jax.random.key(self.config.seed), self.train.images[0])


COUNTS = (
    *("latent", "num_samples", "batch_size", "accumulate", "devices", "report_every", "checkpoint_every"),
    *("kl_warmup_steps", "free_bits_groups", "test_samples", "test_examples", "levels"),
)
AMOUNTS = ("steps", "warmup_steps", "learning_rate", "kl_weight", "free_bits", "clip_norm", "ema_decay")


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
    if config.ema_decay >= 1:
        raise ValueError(f"--ema-decay must be below 1; it was {config.ema_decay}")
    if min(config.hidden, default=1) < 1:
        raise ValueError(f"--hidden must be widths of at least 1; they were {config.hidden}")
    if config.network != "mlp" and not config.hidden:
        raise ValueError(f"--network {config.network} needs at least one width in --hidden")


def build(config: Config) -> Run:
    """Loads the data and wires model, objective and optimizer. Raises ValueError for what does not go together."""
    check(config)
    dataset = datasets.load(config.dataset, config.data_dir, config.levels)
    likelihood = likelihoods.LIKELIHOODS[config.likelihood](dataset.levels)
    pixels = _pixels(config, likelihood, dataset)
    prepare = lambda split: datasets.prepared(split, pixels, dataset.levels, config.seed)
    train = prepare(datasets.select(dataset, config.train_split))
    test = prepare(datasets.select(dataset, config.test_split))
    monitored = prepare(dataset.splits["validation"]) if "validation" in dataset.splits else test
    treat = datasets.treatment(pixels, dataset.levels)
    shape = train.images.shape[1:]
    if test.images.shape[1:] != shape:
        raise ValueError(f"training images have shape {shape}, test images {test.images.shape[1:]}")
    vae = _vae(config, likelihood, shape, dataset.levels if pixels == "counts" else 2)
    algorithm = training.gradient_descent(
        lambda key, x: vae.init(key, treat(key, x)),
        _loss(config, vae, treat),
        _optimizer(config),
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
    )
    density = not likelihood.discrete and pixels != "none"
    offset = float(np.log2(dataset.levels)) if density else 0.0
    white = {"counts": dataset.levels - 1.0, "none": float(train.images.max())}.get(pixels, 1.0)
    dimensions = int(np.prod(shape))
    return Run(config, dataset, train, test, monitored, treat, vae, algorithm, dimensions, offset, white)


def _pixels(config: Config, likelihood: likelihoods.Likelihood, dataset: datasets.Dataset) -> str:
    if config.pixels == "auto":
        floating = any(np.issubdtype(split.images.dtype, np.floating) for split in dataset.splits.values())
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
    posterior = posteriors.POSTERIORS[config.posterior](config.latent)
    output = (*shape[:-1], shape[-1] * likelihood.size)
    activation = networks.ACTIVATIONS[config.activation]
    mirrored = config.hidden[::-1]
    if config.network == "mlp":
        encoder = networks.mlp(config.hidden, posterior.size, activation)
        decoder = networks.mlp(mirrored, output, activation)
    elif len(shape) != 3:
        raise ValueError(f"--network {config.network} needs images [H, W, C]; the examples have shape {shape}")
    elif config.network == "conv":
        encoder = networks.convolutional_encoder(config.hidden, posterior.size, activation)
        decoder = networks.convolutional_decoder(mirrored, output, activation)
    else:
        encoder = networks.residual_encoder(config.hidden, posterior.size, activation=activation)
        decoder = networks.residual_decoder(mirrored, output, activation=activation)
    encoder = networks.scaled_input(encoder, 1 / (levels - 1))
    return models.vae(encoder, decoder, posterior, likelihood, priors.standard_normal(config.latent))


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
    if config.free_bits:
        if config.accumulate > 1:
            raise ValueError("free bits take their maximum over the whole batch: --accumulate must be 1")
        batch_loss = models.free_bits(vae, config.free_bits, config.free_bits_groups, config.num_samples, weight)
    elif config.bound == "elbo":
        batch_loss = training.batch_mean(models.negative_elbo(vae, config.num_samples, weight))
    else:
        bound = {"sampled_elbo": bounds.elbo, "iwae": bounds.iwae}[config.bound]
        batch_loss = training.batch_mean(models.negative(bound, vae, config.num_samples))
    return training.treated(treat, batch_loss)


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
    return optax.chain(*clip, makers[config.optimizer](course))


# ---------------------------------------------------------------------------------------------------------- folders


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


def save_config(workdir: Path, config: Config) -> None:
    """Writes config.json, or checks that the one of a run with checkpoints is of the same run."""
    file = workdir / "config.json"
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    if file.exists() and any((workdir / "checkpoints").glob("*")):
        then = json.loads(file.read_text())
        differing = [
            f"{name} was {then.get(name)!r}, is {now.get(name)!r}"
            for name in sorted({*then, *now} - set(IDENTITY_FREE))
            if then.get(name) != now.get(name)
        ]
        if differing:
            raise ValueError(
                f"{workdir} holds a run with another config: {'; '.join(differing)}. "
                "Pass the old values to resume it, or another --workdir for a new run."
            )
    write_json(file, now)


def load_config(workdir: Path) -> Config:
    """The Config of a run folder."""
    file = workdir / "config.json"
    if not file.exists():
        raise ValueError(f"{workdir} is no run folder: it has no config.json")
    values = json.loads(file.read_text())
    known = {field.name for field in dataclasses.fields(Config)}
    if values.keys() - known:
        raise ValueError(f"{file} has fields that this version does not know: {sorted(values.keys() - known)}")
    return Config(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def restore(run: Run, workdir: Path, which: str = "latest") -> tuple[int, Any]:
    """The step and the parameters of a run's ``latest`` or ``best`` checkpoint, or of the one with a given number."""
    with checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        step = {"latest": saved.latest, "best": saved.best}.get(which, int(which) if which.isdigit() else None)
        if step is None or step not in saved.steps:
            raise ValueError(f"{workdir} has no checkpoint {which!r}; it has {saved.steps or 'none'}")
        state, _ = saved.restore(step, run.init_state())
    return step, training.trained(state)
