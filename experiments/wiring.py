"""From a Config to everything that the scripts need: data, model, objective and algorithm."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from config import (
    CRITICS,
    VAMPPRIORS,
    Config,
    check,
    estimates,
    estimator_of,
    latents,
    takes_temperature,
)

from jaxvae import (
    bounds,
    datasets,
    divergences,
    expectations,
    kl_costs,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    processes,
    schedules,
    training,
)

JUDGED = 10_000  # examples of the test and validation splits of a stream, which are held in memory
Array = jax.Array


def join(config: Config) -> None:
    """Joins the job of several processes that the config describes, if it does."""
    if config.distributed:
        processes.initialize(
            config.coordinator, config.num_processes, config.process_id, config.heartbeat
        )
    elif (config.coordinator, config.num_processes, config.process_id) != (None, None, None):
        raise ValueError("--coordinator, --num-processes and --process-id belong to --distributed")


class Run(NamedTuple):
    """Everything that the scripts need, made of a Config."""

    config: Config
    dataset: datasets.Dataset
    train: Any  # stored examples, a pytree of [N, ...], or the stream of them
    test: datasets.Split
    monitored: datasets.Split  # what checkpoints are judged by
    preprocess: Callable  # (key, stored example) -> what the model takes
    vae: Any  # models.VAE, or a model that gives one ``at`` an example
    algorithm: training.Algorithm
    dimensions: int
    bits_offset: float  # of bits per dimension
    white: float  # the value of x that pictures show as white

    @property
    def key(self) -> Array:
        """The key of all that is drawn after training."""
        return jax.random.fold_in(jax.random.key(self.config.seed), 1)

    def init_state(self) -> training.State:
        """A fresh state of the algorithm."""
        first = jax.tree.map(lambda a: a[0], self.train)
        return jax.jit(self.algorithm.init)(jax.random.key(self.config.seed), first)

    def raw(self, split: datasets.Split) -> Any:
        """The examples of a split as ``preprocess`` takes them."""
        return raw(self.config, split)

    def pictures(self, x: np.ndarray, examples: Any) -> np.ndarray:
        """Images [..., H, W, C] of what the model says of x, with what of them was given in the
        examples.
        """
        if self.config.condition != "quadrants":
            return x
        seen = given_quadrants(self.test.shape, self.config.quadrants)
        whole = np.zeros((*x.shape[:-1], *seen.shape), np.float32)
        whole[..., seen], whole[..., ~seen] = np.asarray(examples.y), x
        return whole


def raw(config: Config, split: datasets.Split) -> Any:
    """Images, and their labels or attributes where the model is conditioned on them."""
    if config.condition == "attributes":
        return models.Conditioned(split.images, datasets.attributes(split))
    return (
        models.Conditioned(split.images, split.labels)
        if config.condition == "labels"
        else split.images
    )


def build(config: Config) -> Run:
    """Loads the data and wires model, objective and optimizer. Raises ValueError for what does
    not go together.
    """
    check(config)
    dataset = (datasets.stream if config.stream else datasets.load)(
        config.dataset, config.data_dir, config.levels
    )
    likelihood = likelihoods.LIKELIHOODS[config.likelihood](dataset.levels)
    pixels = _pixels(config, likelihood, dataset)
    prepare = lambda split: datasets.prepared(split, pixels, dataset.levels, config.seed)
    held = lambda split: datasets.Split(split[:JUDGED]) if config.stream else split
    train = prepare(datasets.select(dataset, config.train_split))
    test = prepare(held(datasets.select(dataset, config.test_split)))
    monitored = (
        prepare(held(dataset.splits["validation"])) if "validation" in dataset.splits else test
    )
    preprocess = _conditioned(config, datasets.preprocessing(pixels, dataset.levels), train)
    examples = train if config.stream else raw(config, train)
    first = jax.eval_shape(
        lambda: preprocess(jax.random.key(0), jax.tree.map(lambda a: jnp.asarray(a[0]), examples))
    )
    shape = first.x.shape if isinstance(first, models.Conditioned) else first.shape
    vae = _vae(
        config, likelihood, first, dataset.levels if pixels == "counts" else 2, examples, preprocess
    )
    vae = models.with_control(vae, _estimator(config)) if estimates(config) else vae
    density = not likelihood.discrete and pixels != "none"
    offset = float(np.log2(dataset.levels)) if density else 0.0
    white = {"counts": dataset.levels - 1.0, "none": float(test.images.max())}.get(pixels, 1.0)
    algorithm = _algorithm(config, vae, preprocess, datasets.num_examples(examples))
    dimensions = int(np.prod(shape))
    return Run(
        config,
        dataset,
        examples,
        test,
        monitored,
        preprocess,
        vae,
        algorithm,
        dimensions,
        offset,
        white,
    )


# Data


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
        raise ValueError(
            f"the likelihood {config.likelihood} needs integer pixels; {dataset.name} holds real values"
        )
    if config.pixels not in likelihood.support:
        takes = " or ".join(likelihood.support)
        others = ", ".join(
            name
            for name, make in likelihoods.LIKELIHOODS.items()
            if config.pixels in make(2).support
        )
        raise ValueError(
            f"the likelihood {config.likelihood} is no density of pixels={config.pixels!r}: use --pixels {takes}, "
            f"or a likelihood that takes them ({others})"
        )
    return config.pixels


def _conditioned(config: Config, preprocess: Callable, train: Any) -> Callable:
    """The treatment that also takes the condition out of a stored example."""
    if config.condition == "labels":
        if config.stream or train.labels is None:
            raise ValueError(
                f"--condition labels needs a set with labels in memory; {config.dataset} has none here"
            )
        classes = int(train.labels.max()) + 1
        return lambda key, raw: models.Conditioned(
            preprocess(key, raw.x), jax.nn.one_hot(raw.y, classes)
        )
    if config.condition == "attributes":
        if config.stream or datasets.attributes(train.take(slice(1))) is None:
            raise ValueError(
                f"--condition attributes needs a set in memory with several numbers for each image, such as shapes or "
                f"an .npz file with y_train [N, A]; {config.dataset} has none here"
            )
        return lambda key, raw: models.Conditioned(preprocess(key, raw.x), raw.y)
    if config.condition == "quadrants":
        shape = train.shape
        if len(shape) != 3:
            raise ValueError(
                f"--condition quadrants needs images [H, W, C]; the examples have shape {shape}"
            )
        seen = given_quadrants(shape, config.quadrants)

        def cut(key: Array, raw: Array) -> models.Conditioned:
            x = preprocess(key, raw)
            return models.Conditioned(x[~seen], x[seen])

        return cut
    return preprocess


def given_quadrants(shape: tuple[int, ...], quadrants: int) -> np.ndarray:
    """Which pixels are given (Sohn et al. 2015, sec. 5.1): [H, W, C] bool."""
    seen = np.zeros(shape, bool)
    down, right = shape[0] // 2, shape[1] // 2
    seen[down:, :right] = True
    if quadrants > 1:
        seen[:down, :right] = True
    if quadrants > 2:
        seen[down:, right:] = True
    return seen


# Model


def _vae(
    config: Config,
    likelihood: likelihoods.Likelihood,
    example: Any,
    levels: int,
    examples: Any,
    preprocess: Callable,
) -> Any:
    sizes: tuple[int, ...] = (config.latent,)
    if config.posterior in ("categorical", "joint"):
        sizes += (config.classes,)
    if config.posterior in posteriors.FLOWS:
        sizes += (config.flow_steps,)
    upper = config.upper_latent if config.prior == "hierarchical_mixture" else 0
    posterior = posteriors.POSTERIORS[config.posterior](sizes[0] + upper, *sizes[1:])
    _check_density(config, posterior)
    prior = _prior(config, sizes)
    x = example.x if isinstance(example, models.Conditioned) else example
    if config.condition != "none":
        return _cvae(config, likelihood, posterior, prior, x.shape, levels)
    encoder, decoder = _networks(
        config, posterior.size, (*x.shape[:-1], x.shape[-1] * likelihood.size)
    )
    encoder = networks.scaled_input(encoder, 1 / (levels - 1))
    if upper:
        decoder = networks.on_slice(decoder, slice(upper, None))
    vae = models.vae(encoder, decoder, posterior, likelihood, prior)
    return _vampprior(config, vae, examples, preprocess) if config.prior in VAMPPRIORS else vae


def _check_density(config: Config, posterior: posteriors.Posterior) -> None:
    """Raises ValueError where a bound needs more of the posterior's density than there is."""
    if config.bound != "elbo" and config.posterior == "spike_and_slab":
        raise ValueError(
            f"--posterior spike_and_slab needs --bound elbo, whose KL is in closed form; the gradient of --bound "
            f"{config.bound} would miss that the density of a draw jumps at zero"
        )
    if config.bound != "elbo" and config.posterior in posteriors.FLOWS:
        key = jax.random.key(0)
        q = posterior.make(posterior.init(key), jnp.zeros(posterior.size))
        bound = (
            (lambda *_: q.log_prob(q.sample(key)))
            if config.bound == "sampled_elbo"
            else _bound(config)
        )
        try:
            jax.eval_shape(lambda: bound(key, q, lambda z: z.sum(), config.num_samples))
        except TypeError as error:
            raise ValueError(
                f"--bound {config.bound} takes the density of --posterior {config.posterior} at given latents, and "
                "without an inverse that flow has it for its own draws alone, as --bound elbo, iwae, miwae and ciwae do"
            ) from error


def _prior(config: Config, sizes: tuple[int, ...]) -> priors.Prior:
    if config.prior == "auto" or config.prior in VAMPPRIORS:
        own = sizes[1:] if config.posterior in ("categorical", "joint") else ()
        return priors.DEFAULT_PRIOR[config.posterior](config.latent, *own)
    if priors.DEFAULT_PRIOR[config.posterior] is not priors.standard_normal:
        raise ValueError(
            f"--prior {config.prior} is of real latents; those of --posterior {config.posterior} are not"
        )
    more = {
        "mixture": (config.components,),
        "hierarchical_mixture": (config.components, config.upper_latent),
        "coupling": (config.flow_steps,),
        "autoregressive": (config.flow_steps,),
    }
    return priors.PRIORS[config.prior](config.latent, *more.get(config.prior, ()))


def _vampprior(config: Config, vae: models.VAE, examples: Any, preprocess: Callable) -> models.VAE:
    """Pseudo-inputs in [0, 1] from noise around 1/2, or from the first examples."""
    count = config.components

    def inputs(key: Array, x: Array) -> Array:
        if config.prior == "vampprior":
            return 0.5 + 0.1 * jax.random.normal(key, (count, *x.shape))
        if len(examples) < count:
            raise ValueError(
                f"--components {count} pseudo-inputs need as many examples; there are {len(examples)}"
            )
        return jax.vmap(preprocess)(
            jax.random.split(key, count), jnp.asarray(examples[:count])
        ).astype(jnp.float32)

    return models.with_vampprior(vae, inputs, lambda u: jnp.clip(u, 0.0, 1.0))


def _networks(
    config: Config, size: int, output: tuple[int, ...]
) -> tuple[networks.Network, networks.Network]:
    activation, mirrored = networks.ACTIVATIONS[config.activation], config.hidden[::-1]
    if config.network == "mlp":
        pair = (
            networks.mlp(config.hidden, size, activation),
            networks.mlp(mirrored, output, activation),
        )
    elif len(output) != 3:
        raise ValueError(
            f"--network {config.network} needs images [H, W, C]; the examples have {len(output)} axes"
        )
    elif config.network == "conv":
        pair = (
            networks.convolutional_encoder(config.hidden, size, activation),
            networks.convolutional_decoder(mirrored, output, activation),
        )
    else:
        pair = (
            networks.residual_encoder(config.hidden, size, config.blocks, activation, config.remat),
            networks.residual_decoder(mirrored, output, config.blocks, activation, config.remat),
        )
    encoder, decoder = (networks.with_precision(network, config.precision) for network in pair)
    return encoder, decoder


def _cvae(
    config: Config,
    likelihood: likelihoods.Likelihood,
    posterior: posteriors.Posterior,
    prior: priors.Prior,
    shape: tuple[int, ...],
    levels: int,
) -> models.CVAE:
    """With a prior network; a prior that is named does not depend on the condition."""
    if config.network != "mlp":
        raise ValueError(
            f"--condition {config.condition} needs --network mlp; it was {config.network}"
        )
    if config.prior in VAMPPRIORS or config.prior == "hierarchical_mixture":
        raise ValueError(
            f"--prior {config.prior} cannot be conditioned: leave it, for a prior that is learned"
        )
    encoder, decoder = _networks(config, posterior.size, (*shape[:-1], shape[-1] * likelihood.size))
    encoder = networks.scaled_input(encoder, 1 / (levels - 1))
    learned = networks.mlp(config.hidden, posterior.size, networks.ACTIVATIONS[config.activation])
    learned = networks.with_precision(learned, config.precision)
    return models.cvae(
        encoder, decoder, posterior, likelihood, learned if config.prior == "auto" else prior
    )


# Objective


def _estimator(config: Config) -> expectations.Estimator:
    estimator = estimator_of(config)
    _refuse(config, "estimator", estimator.__name__, expectations.ESTIMATORS)
    if not takes_temperature(config):
        return estimator
    estimate = functools.partial(estimator.estimate, temperature=config.temperature)
    return dataclasses.replace(estimator, estimate=functools.wraps(estimator.estimate)(estimate))


def _refuse(config: Config, kind: str, name: str, table: dict[str, expectations.Estimator]) -> None:
    """Raises ValueError where an estimator does not serve the posterior's latents, or has too
    few samples.
    """
    own = table[name]
    if latents(config) not in own.latents:
        others = ", ".join(
            other for other, more in table.items() if latents(config) in more.latents
        )
        raise ValueError(
            f"--{kind} {name} serves {' and '.join(sorted(own.latents))} latents; --posterior {config.posterior} has "
            f"{latents(config)} ones, which are served by {others or 'none'}"
        )
    if config.num_samples < own.min_samples:
        raise ValueError(
            f"--{kind} {name} needs --num-samples {own.min_samples} at least; it was {config.num_samples}"
        )


def _bound(config: Config) -> expectations.Estimator:
    _refuse(config, "bound", config.bound, bounds.BOUNDS)
    bound = bounds.BOUNDS[config.bound]
    own: dict[str, Any] = {
        "ciwae": {"elbo_weight": config.elbo_weight},
        "renyi": {"order": config.renyi_order},
    }
    own |= {name: {"groups": config.groups} for name in ("miwae", "piwae")}
    if config.bound == "renyi" and config.renyi_order == 1:
        raise ValueError("--renyi-order 1 is the ELBO: use --bound sampled_elbo")
    if config.num_samples % config.groups:
        raise ValueError(
            f"--num-samples {config.num_samples} do not divide into --groups {config.groups}"
        )
    estimate = functools.partial(bound.estimate, **own.get(config.bound, {}))
    return dataclasses.replace(bound, estimate=functools.wraps(bound.estimate)(estimate))


def _kl_weight(config: Config) -> optax.Schedule:
    ramps: dict[str, Callable[[int, float], optax.Schedule]] = {
        "none": lambda steps, end: lambda step: end,
        "linear": schedules.linear_warmup,
        "sigmoid": schedules.sigmoid_warmup,
        "cyclical": lambda steps, end: schedules.cyclical(steps, end=end),
    }
    return ramps[config.kl_warmup](config.kl_warmup_steps, config.kl_weight)


def _rate(config: Config) -> kl_costs.KLCost | None:
    """What KL costs where it is no weight."""
    if config.kl_capacity or config.class_capacity:
        if config.kl_warmup != "none" or config.free_bits:
            raise ValueError(
                "--kl-capacity takes neither --kl-warmup nor --free-bits: it rises in --capacity-steps"
            )
        course = lambda end: schedules.linear_warmup(config.capacity_steps, end)
        held = kl_costs.capacity(config.kl_weight, course(config.kl_capacity))
        if config.posterior != "joint":
            return held
        of_class = kl_costs.capacity(config.kl_weight, course(config.class_capacity))
        return kl_costs.blocks((config.latent, 1), (held, of_class))
    if config.free_bits:
        return kl_costs.free_bits(config.free_bits, config.free_bits_groups, _kl_weight(config))
    return None


def _example_loss(config: Config, vae: Any) -> models.Loss:
    if config.bound == "sampled_elbo":
        return models.negative_sampled_elbo(vae, config.num_samples, _estimator(config))
    if config.bound != "elbo":
        return models.negative(_bound(config), vae, config.num_samples)
    if config.kl_weight == 0:
        return models.negative_reconstruction(vae, config.num_samples, _estimator(config))
    return models.negative_elbo(vae, config.num_samples, _kl_weight(config), _estimator(config))


def _loss(config: Config, vae: Any, dataset_size: int) -> training.BatchLoss:
    """The objective of a batch, without the penalty that a critic makes."""
    if config.posterior == "point" and (config.bound != "elbo" or config.kl_weight):
        raise ValueError(
            "--posterior point has no finite KL: it needs --bound elbo and --kl-weight 0"
        )
    rate = _rate(config)
    if rate is not None:
        if config.decoder_decay or config.decoder_gradient or config.cvae_weight != 1:
            raise ValueError(
                "free bits and capacities go with no --decoder-decay, --decoder-gradient or --cvae-weight"
            )
        if estimates(config) and _estimator(config).init is not None:
            raise ValueError(
                f"free bits and capacities take no --estimator that learns; it was {config.estimator}"
            )
        loss = models.with_kl_cost(vae, rate, config.num_samples, _estimator(config))
    else:
        loss = training.batch_mean(_hybrid(config, vae))
    found = _penalties(config, dataset_size)
    whole = rate is not None or found or config.divergence in CRITICS
    if whole and (config.accumulate > 1 or config.virtual_shards):
        raise ValueError(
            "free bits, capacities and penalties are of the whole batch: --accumulate must be 1, --virtual-shards 0"
        )
    return models.penalized(loss, vae, found) if found else loss


def _hybrid(config: Config, vae: Any) -> models.Loss:
    """The objective of an example, with what conditional and regularized models add to it."""
    parts = [(config.cvae_weight, _example_loss(config, vae))]
    if config.condition != "none":
        parts.append(
            (1 - config.cvae_weight, _example_loss(config, models.gaussian_stochastic(vae)))
        )
    if config.decoder_decay:
        parts.append((config.decoder_decay, models.decoder_decay()))
    if config.decoder_gradient:
        parts.append((config.decoder_gradient, models.decoder_gradient(vae)))
    return models.weighted_sum([(weight, loss) for weight, loss in parts if weight])


def _penalties(config: Config, dataset_size: int) -> dict[str, models.Penalty]:
    weight, name = config.divergence_weight, config.divergence
    own: dict[str, Callable[[], models.Penalty]] = {
        "total_correlation": lambda: models.total_correlation(weight, dataset_size),
        "stratified_total_correlation": lambda: models.total_correlation(
            weight, dataset_size, divergences.stratified_decomposition
        ),
        "dip_i": lambda: models.dip_i(weight, 10 * weight),
        "dip_ii": lambda: models.dip_ii(weight, weight),
    }
    own |= {
        name: functools.partial(models.divergence, weight, member)
        for name, member in divergences.DIVERGENCES.items()
    }
    found = {name: own[name]()} if name in own else {}
    return found | (
        {"code_penalty": models.code_penalty(config.code_penalty)} if config.code_penalty else {}
    )


def _algorithm(
    config: Config, vae: Any, preprocess: Callable, dataset_size: int
) -> training.Algorithm:
    model, seen = (
        (vae, preprocess) if config.corruption == "none" else _corrupted(config, vae, preprocess)
    )
    loss = _loss(config, model, dataset_size)
    if config.divergence not in CRITICS:
        return training.gradient_descent(
            lambda key, x: vae.init(key, preprocess(key, x)),
            training.preprocessed(seen, loss),
            _optimizer(config),
            accumulate=config.accumulate,
            virtual_shards=config.virtual_shards,
            ema_decay=config.ema_decay,
        )
    critic = networks.with_precision(
        networks.mlp(config.critic_hidden, 1, lambda x: jax.nn.leaky_relu(x, 0.2))
    )
    adversary = getattr(models, config.divergence)(critic, config.divergence_weight)
    optimizers = {
        "model": _optimizer(config),
        "critic": training.adam(config.critic_learning_rate, 0.5, 0.9),
    }
    losses = models.adversarial_losses(loss, model, adversary)
    init = models.adversarial_init(vae, adversary)
    return training.players(
        lambda key, x: init(key, preprocess(key, x)),
        {
            name: training.Player(training.preprocessed(seen, losses[name]), optimizers[name])
            for name in losses
        },
        config.ema_decay,
    )


def _corrupted(config: Config, vae: Any, preprocess: Callable) -> tuple[models.Denoising, Callable]:
    """The model and the treatment in training, where the encoder sees corrupted examples."""
    if config.condition != "none":
        raise ValueError(
            f"--corruption is of images, and --condition {config.condition} gives pairs: leave out one"
        )
    corrupt = datasets.CORRUPTIONS[config.corruption]

    def seen(key: Array, raw: Any) -> models.Corrupted:
        key_x, key_noise = jax.random.split(key)
        x = preprocess(key_x, raw)
        return models.Corrupted(x, corrupt(key_noise, x, config.corruption_level))

    return models.Denoising(vae), seen


def _optimizer(config: Config) -> optax.GradientTransformation:
    if config.warmup_steps >= config.steps and config.warmup_steps:
        raise ValueError(
            f"--warmup-steps {config.warmup_steps} must be fewer than --steps {config.steps}"
        )
    peak, after = config.learning_rate, max(config.steps - config.warmup_steps, 1)
    course = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, after),
        "linear": optax.linear_schedule(peak, 0.0, after),
    }[config.schedule]
    if config.warmup_steps:
        rise = optax.linear_schedule(0.0, peak, config.warmup_steps)
        course = optax.join_schedules([rise, course], [config.warmup_steps])
    makers: dict[str, Callable] = {
        "adam": training.adam,
        "adamw": optax.adamw,
        "adamax": optax.adamax,
        "sgd": optax.sgd,
    }
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    last = makers[config.optimizer](course)
    whole = optax.chain(*clip, last)
    if isinstance(last, training.SkipsNonFinite):  # so is the chain: clipping has no state
        whole = training.SkipsNonFinite(*whole)
    estimator = _estimator(config) if estimates(config) else None
    if estimator is None or estimator.init is None:
        return whole
    parts = {"model": whole, "control": estimator.optimizer(config.control_learning_rate)}
    return optax.partition(
        parts, lambda params: {name: "control" if name == "control" else "model" for name in params}
    )
