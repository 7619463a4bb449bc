"""What a run is made of: the Config that the command line fills, its presets, and what cannot go
together.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from commands import fail

from jaxvae import (
    bounds,
    datasets,
    divergences,
    expectations,
    likelihoods,
    networks,
    posteriors,
    priors,
    training,
)

VAMPPRIORS = (
    "vampprior",
    "vampprior_data",
)  # pseudo-inputs that start from noise, or from examples
BOUNDS = ("elbo", "sampled_elbo", *(name for name in bounds.BOUNDS if name != "elbo"))
LATENTS = {
    "bernoulli": "binary",
    "categorical": "categorical",
    "joint": "mixed",
}  # of a posterior, else continuous
NATURAL = {
    "continuous": "pathwise",
    "binary": "disarm",
    "categorical": "disarm_sb",
    "mixed": "concrete",
}  # estimators
CRITICS = ("density_ratio", "adversarial")  # divergences that a critic learns
STATISTICS = (
    "total_correlation",
    "stratified_total_correlation",
    "dip_i",
    "dip_ii",
)  # of codes, without a prior
PENALTIES = ("none", *divergences.DIVERGENCES, *STATISTICS, *CRITICS)
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
    """Pixel treatment: dynamic or static binarization, uniform dequantization, scaling to [0, 1],
    integer counts, or none (real values); auto is the likelihood's natural one."""
    stream: bool = False
    """Read training examples as they are needed, for sets larger than memory (needs Grain)."""
    levels: int | None = None
    """Values that a pixel can take; None infers 2 for binary images and 256 for others."""

    network: Literal["mlp", "conv", "residual"] = "mlp"
    """Encoder and decoder."""
    hidden: tuple[int, ...] = (200, 200)
    """Widths of the hidden layers (mlp), or channels of the stages (conv, residual); the decoder
    mirrors them.
    """
    activation: Literal["relu", "gelu", "silu", "softplus", "tanh"] = "relu"
    """Activation of the hidden layers."""
    blocks: int = 2
    """Residual blocks in each stage (residual only)."""
    remat: bool = False
    """Compute the insides of residual blocks again in the backward pass, to save memory
    (residual only).
    """
    precision: Literal[tuple(networks.PRECISIONS)] = "float32"  # type: ignore[valid-type]
    """How encoder, decoder and a conditional prior compute: true float32, TF32 (three bfloat16
    passes on TPU), or bfloat16; parameters, densities and other networks are float32 always."""
    latent: int = 10
    """Dimensions of z."""
    posterior: Literal[tuple(posteriors.POSTERIORS)] = "normal"  # type: ignore[valid-type]
    """Family of q(z|x): Gaussians, what a flow makes of one, on a sphere, sparse, bits, classes,
    Gaussian and one class (joint), or a point."""
    classes: int = 10
    """Classes of each latent (categorical), or of the only one (joint)."""
    flow_steps: int = 4
    """Steps of the posterior's or the prior's flow."""
    prior: Literal[("auto", *priors.PRIORS, *VAMPPRIORS)] = "auto"  # type: ignore[valid-type]
    """Family of p(z); auto is the posterior's natural one without parameters."""
    components: int = 10
    """Components of the prior (mixture, hierarchical_mixture, vampprior)."""
    upper_latent: int = 5
    """Dimensions of w, of which the components are functions (hierarchical_mixture); they come
    on top of z's.
    """
    likelihood: Literal[tuple(likelihoods.LIKELIHOODS)] = "bernoulli"  # type: ignore[valid-type]
    """Family of p(x|z)."""
    condition: Literal["none", "labels", "attributes", "quadrants"] = "none"
    """What the model is conditioned on, encoder, decoder and prior: the label, attributes (several
    numbers for each example), or quadrants of the image, of which it models the rest (mlp only)."""
    quadrants: int = 1
    """Quadrants that are given: 1 is the lower left one, 2 the left half, 3 all but the upper
    right one.
    """
    cvae_weight: float = 1.0
    """Weight of the conditional VAE's objective; the rest is its Gaussian stochastic network's
    (conditions only).
    """
    corruption: Literal[("none", *datasets.CORRUPTIONS)] = "none"  # type: ignore[valid-type]
    """What is done to the examples that the encoder sees in training; the likelihood is of the
    clean ones.
    """
    corruption_level: float = 0.3
    """Standard deviation of the noise, or share of the pixels."""

    bound: Literal[BOUNDS] = "elbo"  # type: ignore[valid-type]
    """Objective: ELBO with KL in closed form, ELBO with sampled KL, or a member of jaxvae.bounds,
    such as iwae, dreg and, for latents of any kind, vimco."""
    estimator: Literal[("auto", *expectations.ESTIMATORS)] = "auto"  # type: ignore[valid-type]
    """Gradient estimator of the two ELBOs, a member of jaxvae.expectations; auto is pathwise for
    Gaussian latents, disarm for bits and disarm_sb for classes."""
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
    kl_capacity: float = 0.0
    """Nats C that KL is held at, by KL weight |KL - C| (elbo only); 0 is off. Of a joint posterior,
    that of the continuous latents."""
    class_capacity: float = 0.0
    """Nats that KL of the class is held at (joint only)."""
    capacity_steps: int = 1000
    """Steps in which the capacities rise from 0."""

    divergence: Literal[PENALTIES] = "none"  # type: ignore[valid-type]
    """Penalty on the codes of a batch: a member of jaxvae.divergences between q(z) and p(z), a
    statistic of q(z), or what a critic has learned of it, density_ratio (TC) or adversarial. With
    --kl-weight 0 it takes the KL's place."""
    divergence_weight: float = 1.0
    """Its weight."""
    critic_hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the critic's hidden layers."""
    critic_learning_rate: float = 1e-4
    """Learning rate of the critic's Adam (betas 0.5 and 0.9)."""
    code_penalty: float = 0.0
    """Weight of |z|^2 / 2, of regularized autoencoders."""
    decoder_decay: float = 0.0
    """Weight of the squared norm of the decoder's parameters."""
    decoder_gradient: float = 0.0
    """Weight of the squared norm of the decoder's Jacobian."""

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
    """Parts that every batch is computed in and summed in a fixed order, so that the result is the
    same bit for bit on any number of devices and processes that divides it; slow, 0 is off."""

    devices: int | None = None
    """Devices to train on, in all processes together; None is one, or all with --distributed. The
    result does not depend on it."""
    mapping: Literal[training.MAPPINGS] = "pmap"  # type: ignore[valid-type]
    """How several devices are used; the result does not depend on it."""
    distributed: bool = False
    """Join a job of several processes. What the next three leave open comes from SLURM,
    Kubernetes or Cloud TPU.
    """
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
    """Steps between checkpoints, each with the ELBO of the validation split, or of the test split
    where there is none; the newest two and the best are kept."""
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

# The family: every member is the digits' Config with a few fields of its own, and runs on any data
# set.
FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "beta-vae": ("KL weighted with beta (Higgins et al. 2017)", {"kl_weight": 4.0}),
    "annealed-vae": (
        "KL held at a capacity that rises (Burgess et al. 2018)",
        {"kl_weight": 100.0, "kl_capacity": 10.0, "capacity_steps": 3000},
    ),
    "beta-tcvae": (
        "total correlation weighted with beta = 6 (Chen et al. 2018)",
        {"divergence": "total_correlation", "divergence_weight": 5.0},
    ),
    "factor-vae": (
        "total correlation by a critic (Kim & Mnih 2018)",
        {"divergence": "density_ratio", "divergence_weight": 6.0},
    ),
    "dip-vae-i": (
        "covariance of the means (Kumar et al. 2017)",
        {"divergence": "dip_i", "divergence_weight": 5.0},
    ),
    "dip-vae-ii": (
        "covariance of q(z) (Kumar et al. 2017)",
        {"divergence": "dip_ii", "divergence_weight": 5.0},
    ),
    "joint-vae": (
        "Gaussian latents and a class, each with its capacity (Dupont 2018)",
        {
            "posterior": "joint",
            "kl_weight": 30.0,
            "kl_capacity": 5.0,
            "class_capacity": 2.3,
            "temperature": 0.67,
        },
    ),
    "wae-mmd": (
        "MMD between q(z) and p(z) in KL's place (Tolstikhin et al. 2018)",
        {
            "posterior": "point",
            "kl_weight": 0.0,
            "divergence": "mmd_imq_sum",
            "divergence_weight": 10.0,
        },
    ),
    "wae-gan": (
        "a critic between q(z) and p(z) in KL's place (arXiv:1711.01558; Makhzani et al. 2015)",
        {
            "posterior": "point",
            "kl_weight": 0.0,
            "divergence": "adversarial",
            "divergence_weight": 10.0,
        },
    ),
    "info-vae": (
        "MMD in KL's place, with a stochastic encoder (Zhao et al. 2017)",
        {"kl_weight": 0.0, "divergence": "mmd_rbf", "divergence_weight": 100.0},
    ),
    "swae": (
        "sliced Wasserstein distance in KL's place (Kolouri et al. 2018)",
        {
            "posterior": "point",
            "kl_weight": 0.0,
            "divergence": "sliced_wasserstein",
            "divergence_weight": 10.0,
        },
    ),
    "radon-sobolev": (
        "energy distance to N(0, I) in KL's place (Turinici 2019)",
        {
            "posterior": "point",
            "kl_weight": 0.0,
            "divergence": "radon_sobolev",
            "divergence_weight": 100.0,
        },
    ),
    "cramer-wold": (
        "Cramer-Wold distance in KL's place (Knop et al. 2018)",
        {
            "posterior": "point",
            "kl_weight": 0.0,
            "divergence": "cramer_wold",
            "divergence_weight": 100.0,
        },
    ),
    "cvae": ("conditioned on the label (Sohn et al. 2015)", {"condition": "labels"}),
    "gsnn": (
        "its Gaussian stochastic network (Sohn et al. 2015)",
        {"condition": "labels", "cvae_weight": 0.0},
    ),
    "vampprior": (
        "a mixture of posteriors as prior (Tomczak & Welling 2017)",
        {"prior": "vampprior"},
    ),
    "coupling-prior": ("affine couplings as prior (Dinh et al. 2017)", {"prior": "coupling"}),
    "autoregressive-prior": (
        "a masked autoregressive flow as prior (arXiv:1705.07057)",
        {"prior": "autoregressive"},
    ),
    "gmvae": (
        "components of the prior that are functions of w (Dilokthanakul et al. 2016)",
        {"prior": "hierarchical_mixture"},
    ),
    "vade": (
        "a mixture as prior, one component a cluster (Jiang et al. 2016)",
        {"prior": "mixture"},
    ),
    "planar": ("planar flows as posterior (Rezende & Mohamed 2015)", {"posterior": "planar"}),
    "radial": ("radial flows as posterior (Rezende & Mohamed 2015)", {"posterior": "radial"}),
    "householder": (
        "Householder flows as posterior (Tomczak & Welling 2016)",
        {"posterior": "householder"},
    ),
    "sylvester": (
        "orthogonal Sylvester flows as posterior (van den Berg et al. 2018)",
        {"posterior": "sylvester"},
    ),
    "triangular-sylvester": (
        "triangular Sylvester flows (ibid.)",
        {"posterior": "triangular_sylvester"},
    ),
    "iaf": (
        "inverse autoregressive flows (Kingma et al. 2016)",
        {"posterior": "inverse_autoregressive"},
    ),
    "full-covariance": (
        "a full-covariance Gaussian posterior",
        {"posterior": "multivariate_normal"},
    ),
    "power-spherical": (
        "latents on a sphere (De Cao & Aziz 2020)",
        {"posterior": "power_spherical"},
    ),
    "von-mises-fisher": (
        "latents on a sphere (Davidson et al. 2018)",
        {"posterior": "von_mises_fisher"},
    ),
    "spike-and-slab": ("sparse latents (Tonolini et al. 2019)", {"posterior": "spike_and_slab"}),
    "learned-variance": (
        "one learned noise variance (Dai & Wipf 2019)",
        {"likelihood": "normal_learned"},
    ),
    "structured-residuals": (
        "residuals with a banded precision (Dorta et al. 2018)",
        {"likelihood": "normal_banded"},
    ),
    "autoencoder": ("no noise and no prior", {"posterior": "point", "kl_weight": 0.0}),
    "rae-l2": (
        "a regularized autoencoder, decoder decayed (Ghosh et al. 2020)",
        {"posterior": "point", "kl_weight": 0.0, "code_penalty": 1e-2, "decoder_decay": 1e-4},
    ),
    "rae-gp": (
        "a regularized autoencoder, decoder smoothed (Ghosh et al. 2020)",
        {"posterior": "point", "kl_weight": 0.0, "code_penalty": 1e-2, "decoder_gradient": 1e-2},
    ),
    "denoising-autoencoder": (
        "an autoencoder of corrupted inputs (Vincent et al. 2008)",
        {"posterior": "point", "kl_weight": 0.0, "corruption": "masking"},
    ),
    "denoising-vae": ("a VAE of corrupted inputs (Im et al. 2015)", {"corruption": "masking"}),
    "iwae": (
        "the importance-weighted bound (Burda et al. 2015)",
        {"bound": "iwae", "num_samples": 5},
    ),
    "miwae": (
        "means of such bounds (Rainforth et al. 2018)",
        {"bound": "miwae", "num_samples": 6, "groups": 2},
    ),
    "piwae": (
        "IWAE for the decoder, MIWAE for the encoder (ibid.)",
        {"bound": "piwae", "num_samples": 6, "groups": 2},
    ),
    "ciwae": ("IWAE and ELBO, mixed (ibid.)", {"bound": "ciwae", "num_samples": 5}),
}
PRESETS |= {name: (text, Config(**fields)) for name, (text, fields) in FAMILY.items()}


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
    description = f"{Config.__doc__}\n\nusage: train.py [PRESET] [--field value ...]. Presets (digits is the default):\n\n{table}"
    return name, tyro.cli(
        Config,
        default=PRESETS[name][1],
        args=arguments,
        description=description,
        prog=f"train.py {name}",
    )


COUNTS = (
    *(
        "latent",
        "blocks",
        "num_samples",
        "batch_size",
        "accumulate",
        "devices",
        "heartbeat",
        "levels",
    ),
    *(
        "report_every",
        "checkpoint_every",
        "kl_warmup_steps",
        "free_bits_groups",
        "test_samples",
        "test_examples",
    ),
    *(
        "classes",
        "groups",
        "flow_steps",
        "components",
        "upper_latent",
        "capacity_steps",
        "quadrants",
    ),
)
AMOUNTS = (
    *(
        "steps",
        "warmup_steps",
        "learning_rate",
        "kl_weight",
        "free_bits",
        "clip_norm",
        "ema_decay",
        "virtual_shards",
    ),
    *(
        "control_learning_rate",
        "kl_capacity",
        "class_capacity",
        "divergence_weight",
        "critic_learning_rate",
    ),
    *("corruption_level", "code_penalty", "decoder_decay", "decoder_gradient"),
)


SHARES = ("elbo_weight", "cvae_weight")


def takes_temperature(config: Config) -> bool:
    """Whether the objective's estimator has a temperature that is not learned."""
    return (
        estimates(config)
        and "temperature" in inspect.signature(estimator_of(config).estimate).parameters
    )


def estimates(config: Config) -> bool:
    """Whether the objective is an expectation that an estimator is chosen for."""
    return config.bound in ("elbo", "sampled_elbo")


def latents(config: Config) -> str:
    """The kind of latents, as estimators name them."""
    return LATENTS.get(config.posterior, "continuous")


def estimator_of(config: Config) -> expectations.Estimator:
    """The one that is chosen, or the natural one."""
    name = NATURAL[latents(config)] if config.estimator == "auto" else config.estimator
    return expectations.ESTIMATORS[name]


_penalized = lambda config: config.divergence != "none"
_flowing = lambda config: (
    config.posterior in posteriors.FLOWS or config.prior in ("coupling", "autoregressive")
)
# fields that mean something only beside others: what they belong to, and whether it is there
BELONGS: dict[str, tuple[str, Callable[[Config], bool]]] = {
    **{
        name: ("--network residual", lambda config: config.network == "residual")
        for name in ("blocks", "remat")
    },
    "classes": (
        "--posterior categorical or joint",
        lambda config: config.posterior in ("categorical", "joint"),
    ),
    "flow_steps": ("posteriors and priors that are flows", _flowing),
    "components": (
        "priors that are mixtures",
        lambda config: config.prior in ("mixture", "hierarchical_mixture", *VAMPPRIORS),
    ),
    "upper_latent": (
        "--prior hierarchical_mixture",
        lambda config: config.prior == "hierarchical_mixture",
    ),
    "estimator": (
        "--bound elbo and sampled_elbo; other bounds have gradients of their own",
        estimates,
    ),
    "temperature": ("estimators that have one and do not learn it", takes_temperature),
    "control_learning_rate": (
        "estimators that learn",
        lambda config: estimates(config) and estimator_of(config).init is not None,
    ),
    "groups": ("--bound miwae and piwae", lambda config: config.bound in ("miwae", "piwae")),
    "elbo_weight": ("--bound ciwae", lambda config: config.bound == "ciwae"),
    "renyi_order": ("--bound renyi", lambda config: config.bound == "renyi"),
    **{
        name: ("--bound elbo", lambda config: config.bound == "elbo")
        for name in ("kl_weight", "kl_warmup", "free_bits", "kl_capacity")
    },
    "kl_warmup_steps": ("--kl-warmup", lambda config: config.kl_warmup != "none"),
    "free_bits_groups": ("--free-bits", lambda config: config.free_bits > 0),
    "class_capacity": ("--posterior joint", lambda config: config.posterior == "joint"),
    "capacity_steps": (
        "--kl-capacity",
        lambda config: config.kl_capacity + config.class_capacity > 0,
    ),
    "divergence_weight": ("--divergence", _penalized),
    **{
        name: (f"--divergence {' and '.join(CRITICS)}", lambda config: config.divergence in CRITICS)
        for name in ("critic_hidden", "critic_learning_rate")
    },
    "corruption_level": ("--corruption", lambda config: config.corruption != "none"),
    "quadrants": ("--condition quadrants", lambda config: config.condition == "quadrants"),
    "cvae_weight": (
        "--condition labels, attributes and quadrants",
        lambda config: config.condition != "none",
    ),
}


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
    for name in SHARES:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{flag(name)} must be between 0 and 1; it was {value}")
    if not np.isfinite(config.renyi_order):
        raise ValueError(f"--renyi-order must be finite; it was {config.renyi_order}")
    if config.classes < 2:
        raise ValueError(f"--classes must be at least 2; it was {config.classes}")
    if config.quadrants > 3:
        raise ValueError(f"--quadrants must be 1, 2 or 3; it was {config.quadrants}")
    for name, (owner, there) in BELONGS.items():
        if getattr(config, name) != getattr(Config, name) and not there(config):
            raise ValueError(f"{flag(name)} belongs to {owner}, which this run has not")
    if config.virtual_shards and config.batch_size % config.virtual_shards:
        raise ValueError(
            f"--batch-size {config.batch_size} does not divide into --virtual-shards {config.virtual_shards}"
        )
    if config.temperature <= 0:
        raise ValueError(f"--temperature must be above 0; it was {config.temperature}")
    if config.ema_decay >= 1:
        raise ValueError(f"--ema-decay must be below 1; it was {config.ema_decay}")
    for name in ("hidden", "critic_hidden"):
        if min(getattr(config, name), default=1) < 1:
            raise ValueError(
                f"{flag(name)} must be widths of at least 1; they were {getattr(config, name)}"
            )
    if config.network != "mlp" and not config.hidden:
        raise ValueError(f"--network {config.network} needs at least one width in --hidden")
