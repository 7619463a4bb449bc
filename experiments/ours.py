"""The work of ``works.py`` in this library, as a user would write it, and its parts."""

from __future__ import annotations

import collections
import functools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.random_runs import run_on
from experiments.works import (
    CHANNELS,
    HIDDEN,
    IWAE_SAMPLES,
    LATENT,
    PRESETS,
    RATE,
    SHAPE,
    Run,
    Work,
)
from jaxvae import (
    bounds,
    checkpoints,
    costs,
    datasets,
    evaluation,
    families,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    training,
)

Products = collections.Counter[tuple[int, int, int]]  # [M, K] times [K, N], and how often


# The model and its training


def pair_of(work: Work, size: int) -> tuple[networks.Network, networks.Network]:
    """Encoder and decoder, in the work's precision; the encoder gives ``size`` numbers."""
    shape = SHAPE[work.network]
    if work.network == "mlp":
        pair = networks.mlp((HIDDEN,), size), networks.mlp((HIDDEN,), shape)
    elif work.network == "conv":
        widths = CHANNELS["conv"]
        encoder = networks.convolutional_encoder(widths, size)
        pair = encoder, networks.convolutional_decoder(widths[::-1], shape)
    else:
        widths = CHANNELS[work.network]
        encoder = networks.residual_encoder(widths, size)
        pair = encoder, networks.residual_decoder(widths[::-1], shape)
    encoder, decoder = (networks.with_precision(each, work.precision) for each in pair)
    return encoder, decoder


def scaled(work: Work) -> Callable[[Any, Any], jax.Array]:
    """Preprocessing: pixels as float32, in [0, 1]."""
    scale = 1.0 if work.network == "mlp" else 1 / 255
    return lambda key, pixels: pixels.astype(jnp.float32) * scale


def model_of(work: Work) -> models.VAE:
    """The VAE: a Bernoulli one of the mlp, else with one learned variance."""
    latent = LATENT[work.network]
    posterior = posteriors.normal(latent)
    binary = work.network == "mlp"
    likelihood = likelihoods.bernoulli() if binary else likelihoods.normal_learned()
    pair = pair_of(work, posterior.size)
    return models.vae(*pair, posterior, likelihood, priors.standard_normal(latent))


def algorithm_of(work: Work, vae: models.VAE) -> training.Algorithm:
    """Its training by Adam."""
    if work.task == "iwae":
        loss = models.negative(bounds.iwae, vae, IWAE_SAMPLES)
    else:
        loss = models.negative_elbo(vae)
    return training.gradient_descent(
        vae.init,
        training.batch_mean(loss),
        training.adam(RATE),
        gradient_norm=False,  # which nobody else here computes
    )


@functools.lru_cache(maxsize=1)
def training_of(work: Work) -> tuple[training.Algorithm, Callable]:
    """The algorithm of a work, and the preprocessing of its images."""
    if work.network not in PRESETS:
        return algorithm_of(work, model_of(work)), scaled(work)
    named = PRESETS[work.network] | {"precision": work.precision, "batch_size": work.batch}
    config = families.preset(work.network, **named)
    built = run_on(config, SHAPE[work.network], work.examples).built
    return built.algorithm, built.preprocess


# As a user would write it


def jaxvae(work: Work) -> Run:
    """``training.fit`` with reports and checkpoints; ``evaluation.estimate_log_likelihood``."""
    return _likelihood(work) if work.task == "likelihood" else _Training(work)


def _likelihood(work: Work) -> Run:
    vae, images = model_of(work), work.images()
    preprocess = scaled(work)
    params = vae.init(jax.random.key(0), preprocess(None, jnp.asarray(images[0])))

    def run(count: int) -> None:
        split = datasets.Split(images[:count], preprocess=preprocess)
        evaluation.estimate_log_likelihood(
            vae, params, jax.random.key(1), split, num_samples=work.samples
        )

    return run


class _Training:
    """Training with a checkpoint every 1,000 steps, or 10,000 on an accelerator.

    Dispatches are long from the start. A run begins with short ones to find out how long they take,
    and here every turn would begin so again.
    """

    def __init__(self, work: Work):
        self.work, (self.algorithm, preprocess) = work, training_of(work)
        self.folder = tempfile.TemporaryDirectory()
        self.saved = checkpoints.Checkpoints(Path(self.folder.name) / "checkpoints")
        self.period = 1000 if jax.devices()[0].platform == "cpu" else 10_000
        images = jax.device_put(work.images())  # once, as the peers do
        self.split = datasets.Split(images, preprocess=preprocess)
        first = jax.tree.map(lambda a: a[0], self.split.examples)
        self.state = jax.jit(self.algorithm.init)(jax.random.key(0), first)

    def __call__(self, count: int) -> None:
        self.state = training.fit(
            self.algorithm,
            self.split,
            num_steps=int(self.state.step) + max(count // self.work.batch, 1),
            batch_size=self.work.batch,
            state=self.state,
            report=lambda step, means: None,
            hooks=[training.Hook(self.period, self._save)],
            seconds_per_call=math.inf,
        )
        jax.block_until_ready(self.state)
        self.saved.wait()  # nothing is written in the turns of others

    def _save(self, now: training.HookState) -> None:
        if now.step % self.period == 0:  # not at the end of a turn, which is no end of a run
            self.saved.save(now.step, now.state, now.totals)


# The bare loop


def batch_of(work: Work, images: Any) -> training.Batch:
    """A batch of raw images, as ``fit`` makes it."""
    examples = datasets.Examples(images, training_of(work)[1])
    weight = jnp.full(work.batch, 1 / work.batch)
    return training.Batch(examples, jnp.arange(work.batch), weight)


def _loop(work: Work, one_program: bool) -> Run | None:
    """Epochs of the algorithm's step: an epoch in one program, or a call for each step."""
    if work.task == "likelihood":
        return None
    (algorithm, preprocess), images = training_of(work), jnp.asarray(work.images())

    def batches(key: Any) -> Any:
        whole = work.examples // work.batch * work.batch
        return jax.random.permutation(key, work.examples)[:whole].reshape(-1, work.batch)

    def step(state: Any, rows: Any) -> Any:
        return algorithm.step(state, batch_of(work, images[rows]), None)

    epoch: Callable[[Any, Any], Any]
    if one_program:
        whole = lambda state, key: jax.lax.scan(step, state, batches(key))[0]
        epoch = jax.jit(whole, donate_argnums=0)
    else:
        order = jax.jit(batches)
        one = jax.jit(lambda state, rows: step(state, rows)[0], donate_argnums=0)
        epoch = lambda state, key: functools.reduce(one, np.asarray(order(key)), state)
    first = datasets.Examples(images[0], preprocess)
    state = jax.jit(algorithm.init)(jax.random.key(0), first)

    def run(count: int) -> None:
        nonlocal state
        for i in range(max(round(count / work.examples), 1)):
            state = epoch(state, jax.random.key(i))
        jax.block_until_ready(state)

    return run


def scan(work: Work) -> Run | None:
    """The bare loop: ``lax.scan`` over an epoch of the algorithm's step, nothing else."""
    return _loop(work, one_program=True)


def steps(work: Work) -> Run | None:
    """The algorithm's step, called for every batch."""
    return _loop(work, one_program=False)


# The matrix products of a step


def step(work: Work) -> tuple[Callable, tuple]:
    """Our step and its arguments: of a batch, or for the likelihood of one image."""
    key, images = jax.random.key(0), jnp.asarray(work.images()[: work.batch])
    if work.task == "likelihood":
        vae = model_of(work)
        x = scaled(work)(None, images[0])
        loss = models.negative(bounds.iwae, vae, work.samples)
        return loss, (vae.init(key, x), key, x, jnp.int32(0))
    algorithm, preprocess = training_of(work)
    first = datasets.Examples(images[0], preprocess)
    state = jax.eval_shape(algorithm.init, key, first)
    one: Callable = lambda state, batch: algorithm.step(state, batch, None)
    return one, (state, batch_of(work, images))


def images_of_step(work: Work) -> int:
    """The images that ``step`` is of."""
    return 1 if work.task == "likelihood" else work.batch


def products_of(work: Work) -> Products:
    """The matrix products of our step, each as a plain [M, K] times [K, N], and how often."""
    function, arguments = step(work)
    products: Products = collections.Counter()
    _collect(jax.make_jaxpr(function)(*arguments), 1, products)
    return products


def _collect(jaxpr: Any, repeated: int, products: Products) -> None:
    """Adds the products of a program, and of its loops, that is run ``times`` times."""
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(equation.params):
            if hasattr(inner, "eqns"):
                _collect(inner, repeated * equation.params.get("length", 1), products)
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            products[_as_product(equation)] += repeated


def _as_product(equation: Any) -> tuple[int, int, int]:
    """The M, K and N of a product or a convolution, from its count of operations."""
    alone = functools.partial(equation.primitive.bind, **equation.params)
    operations = costs.flops(alone, *(variable.aval for variable in equation.invars))
    assert operations is not None
    size, right = equation.outvars[0].aval.size, equation.invars[1].aval.shape
    numbers = equation.params["dimension_numbers"]
    if hasattr(numbers, "rhs_spec"):
        columns = right[numbers.rhs_spec[0]]
    else:
        used = math.prod(right[d] for sides in numbers for d in sides[1])
        columns = math.prod(right) // used
    return size // columns, round(operations / 2 / size), columns


def products(work: Work) -> Run:
    """The matrix products of our step alone; a convolution is one of them."""
    times, how = products_of(work), networks.PRECISIONS[work.precision]
    pairs = [(jnp.ones((m, k), how.dtype), jnp.ones((k, n), how.dtype)) for m, k, n in times]

    def once(left: Any, right: Any) -> Any:
        """The next product needs the last one's result, so that none can be dropped."""
        return left.at[0, 0].set(jnp.matmul(left, right, precision=how.matmul)[0, 0])

    def one_step(i: Any, pairs: Any) -> Any:
        out = []
        for (left, right), repeated in zip(pairs, times.values(), strict=True):
            for _ in range(repeated):
                left = once(left, right)
            out.append((left, right))
        return out

    run_steps = jax.jit(lambda steps, pairs: jax.lax.fori_loop(0, steps, one_step, pairs))

    def run(count: int) -> None:
        jax.block_until_ready(run_steps(max(count // images_of_step(work), 1), pairs))

    return run


# What the work costs, and what a device could do


def cost(work: Work) -> dict[str, float]:
    """What an image costs: operations of the products, and bytes that kernels read and write."""
    function, arguments = step(work)
    counts = {
        "flops": costs.flops(function, *arguments),
        "bytes": costs.bytes_accessed(function, *arguments),
    }
    images = images_of_step(work)
    return {name: math.nan if count is None else count / images for name, count in counts.items()}


def rates(precision: str) -> dict[str, float] | None:
    """Operations a second at the vendor's peak and in a large product; bytes of a large copy.

    If no vendor has stated a peak, the large product replaces it. It is None on a CPU, whose caches
    hold most of what a step reads and writes.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        return None
    n, words, how = 8192, 2**28, networks.PRECISIONS[precision]
    square = jax.random.normal(jax.random.key(0), (n, n), how.dtype) / math.sqrt(n)
    multiply = lambda a: jnp.matmul(a, square, precision=how.matmul)
    product = 2 * n**3 / _seconds(multiply, square.copy())
    copy = 2 * 4 * words / _seconds(lambda a: a + 1, jnp.zeros(words))
    peak = costs.peak_flops(device, precision) or product
    return {"peak": peak, "product": product, "copy": copy}


def _seconds(function: Callable, start: Any, times: int = 20) -> float:
    """Seconds of a call, of many in one program, so that no memory is asked for."""
    again = lambda i, a: jax.lax.optimization_barrier(function(a))
    run = jax.jit(lambda a: jax.lax.fori_loop(0, times, again, a), donate_argnums=0)
    a = jax.block_until_ready(run(start))
    began = time.perf_counter()
    jax.block_until_ready(run(a))
    return (time.perf_counter() - began) / times
