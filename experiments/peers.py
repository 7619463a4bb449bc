"""The same work in other libraries, as a good user of each would write it; ``throughput.py`` runs
and times them.

A peer takes a ``Work`` and returns ``run(images)``, which does that many images of it, or None
where it has no way to.
"""

from __future__ import annotations

import collections
import functools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

LATENT = {"mlp": 20, "conv": 128, "residual": 64, "wide": 256}
SHAPE = {"mlp": (28, 28, 1), "conv": (32, 32, 3), "residual": (64, 64, 3), "wide": (64, 64, 3)}
CHANNELS = {"conv": (32, 64, 128, 256), "residual": (32, 64, 128), "wide": (128, 256, 512)}
HIDDEN = 500
RATE = 1e-4  # of Adam; with 1e-3 the wide net diverges on these images
SAMPLES = 5000  # of the likelihood


class Work(NamedTuple):
    """A network, what is done with it, the batch, and how networks compute."""

    network: Literal["mlp", "conv", "residual", "wide"]
    task: Literal["train", "iwae", "likelihood"]
    batch: int
    examples: int  # in the data set
    precision: str = "float32"  # of jaxvae.networks.PRECISIONS

    def images(self) -> np.ndarray:
        """uint8 images, [N, H, W, C]: binary for the Bernoulli likelihood of the mlp, else 0 to
        255.
        """
        rng = np.random.default_rng(0)
        size = (self.examples, *SHAPE[self.network])
        return (
            (rng.random(size) < 0.2).astype(np.uint8)
            if self.network == "mlp"
            else rng.integers(0, 256, size, "uint8")
        )


WORKS = {
    **{
        f"mlp, batch {batch}": Work("mlp", "train", batch, 10_240) for batch in (32, 128, 512, 2048)
    },
    "conv 32x32x3, batch 128": Work("conv", "train", 128, 2_560),
    "residual 64x64x3, batch 32": Work("residual", "train", 32, 320),
    "IWAE K = 50, mlp, batch 128": Work("mlp", "iwae", 128, 1_280),
    f"log p(x), K = {SAMPLES:,}, mlp": Work("mlp", "likelihood", 50, 100),
}
LARGE = {"wide residual 64x64x3, batch 256": Work("wide", "train", 256, 1024)}  # for accelerators

Run = Callable[[int], None]


# Ours


def _ours(work: Work) -> tuple[Any, Any, Any]:
    """Model, algorithm and treatment of pixels."""
    import jax.numpy as jnp

    from jaxvae import bounds, likelihoods, models, networks, posteriors, priors, training

    shape, latent = SHAPE[work.network], LATENT[work.network]
    posterior = posteriors.normal(latent)
    if work.network == "mlp":
        encoder, decoder = networks.mlp((HIDDEN,), posterior.size), networks.mlp((HIDDEN,), shape)
    else:
        channels = CHANNELS[work.network]
        kinds = {
            "conv": (networks.convolutional_encoder, networks.convolutional_decoder),
            "residual": (networks.residual_encoder, networks.residual_decoder),
            "wide": (networks.residual_encoder, networks.residual_decoder),
        }
        encode, decode = kinds[work.network]
        encoder, decoder = encode(channels, posterior.size), decode(channels[::-1], shape)
    encoder, decoder = (
        networks.with_precision(network, work.precision) for network in (encoder, decoder)
    )
    likelihood = likelihoods.bernoulli() if work.network == "mlp" else likelihoods.normal_learned()
    vae = models.vae(encoder, decoder, posterior, likelihood, priors.standard_normal(latent))
    scale = 1.0 if work.network == "mlp" else 1 / 255
    preprocess = lambda key, pixels: pixels.astype(jnp.float32) * scale
    loss = (
        models.negative(bounds.iwae, vae, 50) if work.task == "iwae" else models.negative_elbo(vae)
    )
    algorithm = training.gradient_descent(
        lambda key, x: vae.init(key, preprocess(key, x)),
        training.preprocessed(preprocess, training.batch_mean(loss)),
        training.adam(RATE),
        gradient_norm=False,  # which nobody else here computes
    )
    return vae, algorithm, preprocess


def jaxvae(work: Work) -> Run:
    """``training.fit`` with reports and checkpoints; ``evaluation.estimate_log_likelihood``.

    A checkpoint every 1,000 steps, or 10,000 on an accelerator, where that is one a second.
    Dispatches are long from the start: a run begins with short ones, to find out how long they
    take, and every turn would begin so again.
    """
    import jax

    from jaxvae import checkpoints, evaluation, training

    images = work.images()
    vae, algorithm, preprocess = _ours(work)
    if work.task == "likelihood":
        params = vae.init(jax.random.key(0), preprocess(None, jax.numpy.asarray(images[0])))
        estimate = functools.partial(
            evaluation.estimate_log_likelihood,
            vae,
            params,
            key=jax.random.key(1),
            preprocess=preprocess,
            num_samples=SAMPLES,
        )
        return lambda count: estimate(images[:count]) and None

    folder = tempfile.TemporaryDirectory()
    saved = checkpoints.Checkpoints(Path(folder.name) / "checkpoints")
    placed = jax.device_put(images)  # once, as those of others are
    state = [jax.jit(algorithm.init)(jax.random.key(0), images[0])]
    period = 1000 if jax.devices()[0].platform == "cpu" else 10_000

    def save(moment: training.HookState) -> None:
        if moment.step % period == 0:  # not at the end of a turn, which is no end of a run
            saved.save(moment.step, moment.state, moment.totals)

    def run(count: int) -> None:
        state[0] = training.fit(
            algorithm,
            placed,
            num_steps=int(state[0].step) + max(count // work.batch, 1),
            batch_size=work.batch,
            state=state[0],
            report=lambda step, means: None,
            hooks=[training.Hook(period, save)],
            seconds_per_call=math.inf,
        )
        jax.block_until_ready(state[0])
        saved.wait()  # nothing is written in the turns of others

    return run


def _loop(work: Work, one_program: bool) -> Run | None:
    """Epochs of the algorithm's step and nothing else, an epoch in one program or a call for
    each step.
    """
    import jax
    import jax.numpy as jnp

    from jaxvae import training

    if work.task == "likelihood":
        return None
    _, algorithm, _ = _ours(work)
    images = jnp.asarray(work.images())
    place, weight = jnp.arange(work.batch), jnp.full(work.batch, 1 / work.batch)

    def batches(key: Any) -> Any:
        whole = work.examples // work.batch * work.batch
        return jax.random.permutation(key, work.examples)[:whole].reshape(-1, work.batch)

    def step(state: Any, rows: Any) -> Any:
        return algorithm.step(state, training.Batch(images[rows], place, weight))

    if one_program:
        epoch = jax.jit(
            lambda state, key: jax.lax.scan(step, state, batches(key))[0], donate_argnums=0
        )
    else:
        order, one = (
            jax.jit(batches),
            jax.jit(lambda state, rows: step(state, rows)[0], donate_argnums=0),
        )
        epoch = lambda state, key: functools.reduce(one, np.asarray(order(key)), state)
    state = [jax.jit(algorithm.init)(jax.random.key(0), images[0])]

    def run(count: int) -> None:
        for i in range(max(round(count / work.examples), 1)):
            state[0] = epoch(state[0], jax.random.key(i))
        jax.block_until_ready(state[0])

    return run


def scan(work: Work) -> Run | None:
    """The bare loop: ``lax.scan`` over an epoch of the algorithm's step, nothing else."""
    return _loop(work, one_program=True)


def steps(work: Work) -> Run | None:
    """The algorithm's step, called for every batch."""
    return _loop(work, one_program=False)


def step(work: Work) -> tuple[Callable, tuple]:
    """Our step, of a batch or for the likelihood of one image, and what it takes."""
    import jax
    import jax.numpy as jnp

    from jaxvae import bounds, models, training

    vae, algorithm, preprocess = _ours(work)
    images, key = jnp.asarray(work.images()[: work.batch]), jax.random.key(0)
    if work.task == "likelihood":
        x = preprocess(None, images[0])
        return models.negative(bounds.iwae, vae, SAMPLES), (vae.init(key, x), key, x, jnp.int32(0))
    batch = training.Batch(images, jnp.arange(work.batch), jnp.full(work.batch, 1 / work.batch))
    return algorithm.step, (jax.eval_shape(algorithm.init, key, images[0]), batch)


def _products(work: Work) -> tuple[collections.Counter[tuple[int, int, int]], int]:
    """The matrix products of our step, each as a plain [M, K] times [K, N], how often; and the
    images of a step.
    """
    import jax

    from jaxvae import costs

    function, arguments = step(work)
    times: collections.Counter[tuple[int, int, int]] = collections.Counter()

    def collect(jaxpr: Any, repeated: int) -> None:
        for equation in jaxpr.eqns:
            inner = [value for value in jax.tree.leaves(equation.params) if hasattr(value, "eqns")]
            for own in inner:
                collect(own, repeated * equation.params.get("length", 1))
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                alone = lambda *args, equation=equation: equation.primitive.bind(
                    *args, **equation.params
                )
                operations = costs.flops(alone, *(variable.aval for variable in equation.invars))
                (out,), numbers = equation.outvars, equation.params["dimension_numbers"]
                rhs = equation.invars[1].aval.shape
                if hasattr(numbers, "rhs_spec"):
                    columns = rhs[numbers.rhs_spec[0]]
                else:
                    columns = math.prod(rhs) // math.prod(
                        rhs[d] for sides in numbers for d in sides[1]
                    )
                times[out.aval.size // columns, round(operations / 2 / out.aval.size), columns] += (
                    repeated
                )

    collect(jax.make_jaxpr(function)(*arguments), 1)
    return times, 1 if work.task == "likelihood" else work.batch


def products(work: Work) -> Run:
    """The matrix products of our step alone; a convolution is one of them."""
    import jax
    import jax.numpy as jnp

    from jaxvae import networks

    (times, images), how = _products(work), networks.PRECISIONS[work.precision]
    pairs = [(jnp.ones((m, k), how.dtype), jnp.ones((k, n), how.dtype)) for m, k, n in times]

    @jax.jit
    def run_steps(steps: Any, pairs: Any) -> Any:
        def one(i: Any, pairs: Any) -> Any:
            out = []
            for (left, right), repeated in zip(pairs, times.values(), strict=True):
                for _ in range(
                    repeated
                ):  # the next one needs the last one's result, so that none can be dropped
                    left = left.at[0, 0].set(jnp.matmul(left, right, precision=how.matmul)[0, 0])
                out.append((left, right))
            return out

        return jax.lax.fori_loop(0, steps, one, pairs)

    return lambda count: jax.block_until_ready(run_steps(max(count // images, 1), pairs)) and None


def cost(work: Work) -> dict[str, float]:
    """Operations of our step's products, and bytes that the kernels of the compiled step read
    and write, an image.
    """
    from jaxvae import costs

    function, arguments = step(work)
    images = 1 if work.task == "likelihood" else work.batch
    counts = {
        "flops": costs.flops(function, *arguments),
        "bytes": costs.bytes_accessed(function, *arguments),
    }
    return {name: math.nan if count is None else count / images for name, count in counts.items()}


def rates(precision: str) -> dict[str, float] | None:
    """Operations a second at the vendor's peak, where it is known, and in a large product; bytes of
    a large copy.

    None on a CPU, whose caches hold most of what a step reads and writes.
    """
    import jax
    import jax.numpy as jnp

    from jaxvae import costs, networks

    if (device := jax.devices()[0]).platform == "cpu":
        return None

    def seconds(function: Callable, start: Any, times: int = 20) -> float:
        """In one program, so that no memory is asked for."""
        again = lambda i, a: jax.lax.optimization_barrier(function(a))
        run = jax.jit(lambda a: jax.lax.fori_loop(0, times, again, a), donate_argnums=0)
        a = jax.block_until_ready(run(start))
        began = time.perf_counter()
        jax.block_until_ready(run(a))
        return (time.perf_counter() - began) / times

    n, words, how = 8192, 2**28, networks.PRECISIONS[precision]
    square = jax.random.normal(jax.random.key(0), (n, n), how.dtype) / math.sqrt(n)
    product = (
        2 * n**3 / seconds(lambda a: jnp.matmul(a, square, precision=how.matmul), square.copy())
    )
    copy = 2 * 4 * words / seconds(lambda a: a + 1, jnp.zeros(words))
    return {
        "peak": costs.peak_flops(device, precision) or product,
        "product": product,
        "copy": copy,
    }


def flax(work: Work) -> Run | None:
    """A jitted step for every batch, as in Flax's VAE example, and its loss, which all others
    here compute too.
    """
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen

    if (work.network, work.task) != ("mlp", "train") or work.precision == "bfloat16":
        return None
    jax.config.update("jax_default_matmul_precision", work.precision)

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: Any, key: Any) -> Any:
            h = linen.relu(linen.Dense(HIDDEN)(x))
            mean, log_var = linen.Dense(LATENT["mlp"])(h), linen.Dense(LATENT["mlp"])(h)
            z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)
            return (
                linen.Dense(math.prod(SHAPE["mlp"]))(linen.relu(linen.Dense(HIDDEN)(z))),
                mean,
                log_var,
            )

    model, images = Model(), work.images().reshape(work.examples, -1).astype(np.float32)
    optimizer = optax.adam(RATE)

    def loss(params: Any, x: Any, key: Any) -> Any:
        logits, mean, log_var = model.apply(params, x, key)
        bce = -(
            x * jax.nn.log_sigmoid(logits)
            + (1 - x) * jnp.log(-jnp.expm1(jax.nn.log_sigmoid(logits)))
        ).sum(-1)
        return (bce - 0.5 * (1 + log_var - mean**2 - jnp.exp(log_var)).sum(-1)).mean()

    @jax.jit
    def step(params: Any, moments: Any, x: Any, key: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, x, key)
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, updates), moments, value

    params = model.init(jax.random.key(0), images[:1], jax.random.key(0))
    state, rng = [params, optimizer.init(params)], np.random.default_rng(0)

    def run(count: int) -> None:
        rows, key = rng.permutation(work.examples), jax.random.key(1)
        for i in range(max(count // work.batch, 1)):
            own = np.take(rows, range(i * work.batch, (i + 1) * work.batch), mode="wrap")
            *state[:], loss = step(*state, images[own], jax.random.fold_in(key, i))
        jax.block_until_ready((state, loss))

    return run


def numpyro(work: Work) -> Run | None:
    """SVI with a ``fori_loop`` over an epoch that sums the losses, as in NumPyro's VAE example; the
    KL in closed form.

    Without the sum XLA would not compute the losses, only their gradients.
    """
    import jax
    import jax.numpy as jnp
    from jax.example_libraries import stax
    from numpyro import distributions as dist
    from numpyro import infer, module, optim, plate, sample

    if (work.network, work.task) != ("mlp", "train") or work.precision == "bfloat16":
        return None
    jax.config.update("jax_default_matmul_precision", work.precision)
    pixels, latent = math.prod(SHAPE["mlp"]), LATENT["mlp"]
    heads = stax.parallel(stax.Dense(latent), stax.serial(stax.Dense(latent), stax.Exp))
    encoder = stax.serial(stax.Dense(HIDDEN), stax.Relu, stax.FanOut(2), heads)
    decoder = stax.serial(stax.Dense(HIDDEN), stax.Relu, stax.Dense(pixels))

    def model(x: Any) -> None:
        decode = module("decoder", decoder, (work.batch, latent))
        with plate("batch", work.batch):
            z = sample("z", dist.Normal(0, 1).expand([latent]).to_event(1))
            sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encode = module("encoder", encoder, (work.batch, pixels))
        mean, scale = encode(x)
        with plate("batch", work.batch):
            sample("z", dist.Normal(mean, scale).to_event(1))

    svi = infer.SVI(model, guide, optim.Adam(RATE), infer.TraceMeanField_ELBO())
    images, steps = (
        jnp.asarray(work.images().reshape(work.examples, pixels), jnp.float32),
        work.examples // work.batch,
    )

    @jax.jit
    def epoch(state: Any, key: Any) -> Any:
        rows = jax.random.permutation(key, work.examples)
        batch = lambda i: images[jax.lax.dynamic_slice_in_dim(rows, i * work.batch, work.batch)]

        def update(i: Any, carry: Any) -> Any:
            state, loss = svi.update(carry[0], batch(i))
            return state, carry[1] + loss

        return jax.lax.fori_loop(0, steps, update, (state, 0.0))

    state = [svi.init(jax.random.key(0), images[: work.batch])]

    def run(count: int) -> None:
        for i in range(max(round(count / work.examples), 1)):
            state[0], loss = epoch(state[0], jax.random.key(i))
        jax.block_until_ready((state[0], loss))

    return run


# PyTorch


def _torch_networks(work: Work) -> tuple[Any, Any]:
    """Encoder and decoder of [B, C, H, W] images, with the layers of ours."""
    from torch import nn

    latent, shape = LATENT[work.network], SHAPE[work.network]
    if work.network == "mlp":
        pixels = math.prod(shape)
        encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * latent)
        )
        decoder = nn.Sequential(nn.Linear(latent, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, pixels))
        return encoder, decoder

    class Block(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            half = lambda: (
                nn.GroupNorm(8, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            self.layers = nn.Sequential(*half(), *half())

        def forward(self, x: Any) -> Any:
            return x + self.layers(x)

    channels, residual = CHANNELS[work.network], work.network in ("residual", "wide")
    blocks = lambda width: [Block(width), Block(width)] if residual else []
    small = (channels[-1], shape[0] >> len(channels), shape[1] >> len(channels))
    down: list[Any] = []
    for before, width in zip((shape[-1], *channels), channels, strict=False):
        down += [nn.Conv2d(before, width, 4, 2, 1), *(blocks(width) or [nn.ReLU()])]
    down += [
        *([nn.SiLU()] if residual else []),
        nn.Flatten(),
        nn.Linear(math.prod(small), 2 * latent),
    ]
    up: list[Any] = [
        nn.Linear(latent, math.prod(small)),
        nn.Unflatten(1, small),
        *([] if residual else [nn.ReLU()]),
    ]
    for width, after in zip(channels[::-1], (*channels[-2::-1], shape[-1]), strict=True):
        up += [
            *blocks(width),
            *([nn.SiLU()] if residual else []),
            nn.ConvTranspose2d(width, after, 4, 2, 1),
        ]
        up += [] if residual or after == shape[-1] else [nn.ReLU()]
    return nn.Sequential(*down), nn.Sequential(*up)


def _torch_images(work: Work) -> Any:
    import torch

    scale = 1.0 if work.network == "mlp" else 1 / 255
    return (
        torch.from_numpy(work.images())
        .permute(0, 3, 1, 2)
        .contiguous()
        .to(_torch_device(work)[0])
        .float()
        * scale
    )


def _torch_device(work: Work) -> tuple[str, Callable[[], None]]:
    """The device, which multiplies in the work's precision, and what waits for it."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        work.precision == "tensorfloat32"
    )
    return ("cuda", torch.cuda.synchronize) if torch.cuda.is_available() else ("cpu", lambda: None)


def torch(work: Work, compiled: bool = False) -> Run:
    """A hand-written loop: data on the device, fused Adam, autocast to bfloat16 where that is
    asked for.
    """
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    device, synchronize = _torch_device(work)
    autocast = functools.partial(
        torch.autocast, device, torch.bfloat16, enabled=work.precision == "bfloat16"
    )
    compiler = functools.partial(
        torch.compile, mode="reduce-overhead" if device == "cuda" else None
    )  # CUDA graphs
    encoder, decoder = (network.to(device) for network in _torch_networks(work))
    images, latent = _torch_images(work), LATENT[work.network]
    parameters = [*encoder.parameters(), *decoder.parameters()]

    def reconstruction(out: Any, x: Any) -> Any:
        """-log p(x|z) up to a constant, [..., B] of out [..., B, D]."""
        x = x.flatten(1)
        if work.network == "mlp":
            return F.binary_cross_entropy_with_logits(out, x.expand_as(out), reduction="none").sum(
                -1
            )
        return 0.5 * ((out.flatten(1) - x) ** 2).sum(-1)

    def log_weights(x: Any, samples: int) -> Any:
        with autocast():
            mean, log_var = encoder(x).float().chunk(2, -1)
            noise = torch.randn(samples, *mean.shape, device=device)
            z = mean + (0.5 * log_var).exp() * noise
            out = decoder(z.reshape(-1, latent)).float().reshape(samples, len(x), -1)
        prior_over_posterior = (0.5 * (noise**2 - z**2 + log_var)).sum(-1)
        return prior_over_posterior - reconstruction(out, x)

    def loss(x: Any) -> Any:
        if work.task == "iwae":
            return (math.log(50) - torch.logsumexp(log_weights(x, 50), 0)).mean()
        with autocast():
            mean, log_var = encoder(x).float().chunk(2, -1)
            z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
            out = decoder(z).float()
        kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(-1)
        return (reconstruction(out, x) + kl).mean()

    if work.task == "likelihood":
        one = compiler(log_weights) if compiled else log_weights

        def judge(count: int) -> None:
            with torch.no_grad():
                for i in range(count):
                    torch.logsumexp(one(images[i : i + 1], SAMPLES), 0).item()

        return judge
    optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)
    of_batch = compiler(loss) if compiled else loss

    def run(count: int) -> None:
        left = max(count // work.batch, 1)
        while left > 0:
            for rows in torch.randperm(work.examples, device=device).split(work.batch)[:left]:
                optimizer.zero_grad(set_to_none=True)
                of_batch(images[rows]).backward()
                optimizer.step()
                left -= 1
        synchronize()

    return run


def torch_products(work: Work) -> Run:
    """The matrix products of our step alone, by PyTorch."""
    import torch

    (times, images), (device, synchronize) = _products(work), _torch_device(work)
    dtype = torch.bfloat16 if work.precision == "bfloat16" else torch.float32
    of_ones = functools.partial(torch.ones, dtype=dtype, device=device)
    operands = [(of_ones(m, k), of_ones(k, n), of_ones(m, n), times[m, k, n]) for m, k, n in times]

    def run(count: int) -> None:
        for _ in range(max(count // images, 1)):
            for left, right, out, repeated in operands:
                for _ in range(repeated):
                    torch.mm(left, right, out=out)
        synchronize()

    return run


def torch_compile(work: Work) -> Run:
    """The same with ``torch.compile``."""
    return torch(work, compiled=True)


def pythae(work: Work) -> Run | None:
    """``TrainingPipeline``, and ``get_nll`` at its default batch of 100 samples."""
    import torch
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig

    if work.task == "iwae" or work.precision != "float32":
        return None
    device, _ = _torch_device(work)
    height, width, depth = SHAPE[work.network]
    shape, binary = (depth, height, width), work.network == "mlp"
    networks = _torch_networks(work)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = networks[0]

        def forward(self, x: Any) -> Any:
            mean, log_var = self.layers(x).chunk(2, -1)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = networks[1]

        def forward(self, z: Any) -> Any:
            out = self.layers(z).reshape(-1, *shape)
            return ModelOutput(reconstruction=torch.sigmoid(out) if binary else out)

    config = VAEConfig(
        input_dim=shape,
        latent_dim=LATENT[work.network],
        reconstruction_loss="bce" if binary else "mse",
    )
    model, images = VAE(config, Encoder(), Decoder()).to(device), _torch_images(work)
    if work.task == "likelihood":
        return lambda count: model.get_nll(images[:count], n_samples=SAMPLES) and None

    def run(count: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            training = BaseTrainerConfig(
                output_dir=folder,
                learning_rate=RATE,
                per_device_train_batch_size=work.batch,
                num_epochs=max(round(count / work.examples), 1),
                no_cuda=device == "cpu",
            )
            TrainingPipeline(model=model, training_config=training)(train_data=images)

    return run


PEERS: dict[str, Callable[[Work], Run | None]] = {
    "jaxvae": jaxvae,
    "scan": scan,
    "steps": steps,
    "products": products,
    "flax": flax,
    "numpyro": numpyro,
    "torch": torch,
    "torch.compile": torch_compile,
    "torch.products": torch_products,
    "pythae": pythae,
}
NO_LIBRARIES = (
    "scan",
    "steps",
    "products",
    "torch.products",
)  # our own loops, and parts of their work
