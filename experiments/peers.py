"""The same work in other libraries, as a good user of each would write it; ``throughput.py`` runs and times them.

A peer takes a ``Work`` and returns ``run(images)``, which does that many images of it, or None where it has no way to.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

LATENT = {"mlp": 20, "conv": 128, "residual": 64}
SHAPE = {"mlp": (28, 28, 1), "conv": (32, 32, 3), "residual": (64, 64, 3)}
CHANNELS = {"conv": (32, 64, 128, 256), "residual": (32, 64, 128)}
HIDDEN = 500
SAMPLES = 5000  # of the likelihood


class Work(NamedTuple):
    """A network, what is done with it, and the batch."""

    network: Literal["mlp", "conv", "residual"]
    task: Literal["train", "iwae", "likelihood"]
    batch: int
    examples: int  # in the data set

    def images(self) -> np.ndarray:
        """uint8 images, [N, H, W, C]: binary for the Bernoulli likelihood of the mlp, else 0 to 255."""
        rng = np.random.default_rng(0)
        size = (self.examples, *SHAPE[self.network])
        return (
            (rng.random(size) < 0.2).astype(np.uint8) if self.network == "mlp" else rng.integers(0, 256, size, "uint8")
        )


WORKS = {
    **{f"mlp, batch {batch}": Work("mlp", "train", batch, 10_240) for batch in (32, 128, 512, 2048)},
    "conv 32x32x3, batch 128": Work("conv", "train", 128, 2_560),
    "residual 64x64x3, batch 32": Work("residual", "train", 32, 320),
    "IWAE K = 50, mlp, batch 128": Work("mlp", "iwae", 128, 1_280),
    f"log p(x), K = {SAMPLES:,}, mlp": Work("mlp", "likelihood", 50, 100),
}

Run = Callable[[int], None]


# Ours


def _ours(work: Work) -> tuple[Any, Any, Any]:
    """Model, algorithm and treatment of pixels."""
    import jax.numpy as jnp
    import optax

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
        }
        encode, decode = kinds[work.network]
        encoder, decoder = encode(channels, posterior.size), decode(channels[::-1], shape)
    likelihood = likelihoods.bernoulli() if work.network == "mlp" else likelihoods.normal_learned()
    vae = models.vae(encoder, decoder, posterior, likelihood, priors.standard_normal(latent))
    scale = 1.0 if work.network == "mlp" else 1 / 255
    treat = lambda key, pixels: pixels.astype(jnp.float32) * scale
    loss = models.negative(bounds.iwae, vae, 50) if work.task == "iwae" else models.negative_elbo(vae)
    algorithm = training.gradient_descent(
        lambda key, x: vae.init(key, treat(key, x)),
        training.treated(treat, training.batch_mean(loss)),
        optax.adam(1e-3),
        gradient_norm=False,  # which nobody else here computes
    )
    return vae, algorithm, treat


def jaxvae(work: Work) -> Run:
    """``training.fit`` with reports and checkpoints; ``evaluation.estimate_log_likelihood``."""
    import jax

    from jaxvae import checkpoints, evaluation, training

    images = work.images()
    vae, algorithm, treat = _ours(work)
    if work.task == "likelihood":
        params = vae.init(jax.random.key(0), treat(None, jax.numpy.asarray(images[0])))
        estimate = functools.partial(
            evaluation.estimate_log_likelihood, vae, params, key=jax.random.key(1), treat=treat, num_samples=SAMPLES
        )
        return lambda count: estimate(images[:count]) and None

    folder = tempfile.TemporaryDirectory()
    saved = checkpoints.Checkpoints(Path(folder.name) / "checkpoints")
    state = [jax.jit(algorithm.init)(jax.random.key(0), images[0])]

    def save(moment: training.Moment) -> None:
        if moment.step % 1000 == 0:  # not at the end of a turn, which is no end of a run
            saved.save(moment.step, moment.state, moment.totals)

    def run(count: int) -> None:
        state[0] = training.fit(
            algorithm,
            images,
            num_steps=int(state[0].step) + max(count // work.batch, 1),
            batch_size=work.batch,
            state=state[0],
            report=lambda step, means: None,
            hooks=[training.Hook(1000, save)],
        )
        jax.block_until_ready(state[0])

    return run


def scan(work: Work) -> Run | None:
    """The bare loop: ``lax.scan`` over an epoch of the algorithm's step, nothing else."""
    import jax
    import jax.numpy as jnp

    from jaxvae import training

    if work.task == "likelihood":
        return None
    _, algorithm, _ = _ours(work)
    images = jnp.asarray(work.images())
    place, weight = jnp.arange(work.batch), jnp.full(work.batch, 1 / work.batch)
    steps = work.examples // work.batch

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(state: Any, key: Any) -> Any:
        rows = jax.random.permutation(key, work.examples)[: steps * work.batch].reshape(steps, work.batch)
        return jax.lax.scan(lambda s, r: algorithm.step(s, training.Batch(images[r], place, weight)), state, rows)[0]

    state = [jax.jit(algorithm.init)(jax.random.key(0), images[0])]

    def run(count: int) -> None:
        for i in range(max(round(count / work.examples), 1)):
            state[0] = epoch(state[0], jax.random.key(i))
        jax.block_until_ready(state[0])

    return run


def products(work: Work) -> Run:
    """The matrix products of our step alone, each as a plain [M, K] times [K, N]; a convolution is one of them."""
    import collections

    import jax
    import jax.numpy as jnp

    from jaxvae import bounds, costs, models, training

    vae, algorithm, treat = _ours(work)
    images, key = jnp.asarray(work.images()[: work.batch]), jax.random.key(0)
    if work.task == "likelihood":  # of one image, of which each step takes one
        x = treat(None, images[0])
        jaxpr = jax.make_jaxpr(models.negative(bounds.iwae, vae, SAMPLES))(vae.init(key, x), key, x, 0)
    else:
        batch = training.Batch(images, jnp.arange(work.batch), jnp.full(work.batch, 1 / work.batch))
        jaxpr = jax.make_jaxpr(algorithm.step)(jax.eval_shape(algorithm.init, key, images[0]), batch)
    times: collections.Counter[tuple[int, int, int]] = collections.Counter()

    def collect(jaxpr: Any, repeated: int) -> None:
        for equation in jaxpr.eqns:
            inner = [value for value in jax.tree.leaves(equation.params) if hasattr(value, "eqns")]
            for own in inner:
                collect(own, repeated * equation.params.get("length", 1))
            if equation.primitive.name in ("dot_general", "convolution"):
                alone = lambda *args, equation=equation: equation.primitive.bind(*args, **equation.params)
                operations = costs.flops(alone, *(variable.aval for variable in equation.invars))
                (out,), numbers = equation.outvars, equation.params["dimension_numbers"]
                rhs = equation.invars[1].aval.shape
                if hasattr(numbers, "rhs_spec"):
                    columns = rhs[numbers.rhs_spec[0]]
                else:
                    columns = math.prod(rhs) // math.prod(rhs[d] for sides in numbers for d in sides[1])
                times[out.aval.size // columns, round(operations / 2 / out.aval.size), columns] += repeated

    collect(jaxpr, 1)
    pairs = [(jnp.ones((m, k)), jnp.ones((k, n))) for m, k, n in times]

    @jax.jit
    def run_steps(steps: Any, pairs: Any) -> Any:
        def one(i: Any, pairs: Any) -> Any:
            out = []
            for (left, right), repeated in zip(pairs, times.values(), strict=True):
                for _ in range(repeated):  # the next one needs the last one's result, so that none can be dropped
                    left = left.at[0, 0].set((left @ right)[0, 0])
                out.append((left, right))
            return out

        return jax.lax.fori_loop(0, steps, one, pairs)

    images_a_step = 1 if work.task == "likelihood" else work.batch
    return lambda count: jax.block_until_ready(run_steps(max(count // images_a_step, 1), pairs)) and None


def flax(work: Work) -> Run | None:
    """A jitted step for every batch, as in Flax's VAE example."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen

    if (work.network, work.task) != ("mlp", "train"):
        return None

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: Any, key: Any) -> Any:
            h = linen.relu(linen.Dense(HIDDEN)(x))
            mean, log_var = linen.Dense(LATENT["mlp"])(h), linen.Dense(LATENT["mlp"])(h)
            z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)
            return linen.Dense(math.prod(SHAPE["mlp"]))(linen.relu(linen.Dense(HIDDEN)(z))), mean, log_var

    model, images = Model(), work.images().reshape(work.examples, -1).astype(np.float32)
    optimizer = optax.adam(1e-3)

    def loss(params: Any, x: Any, key: Any) -> Any:
        logits, mean, log_var = model.apply(params, x, key)
        bce = -(x * jax.nn.log_sigmoid(logits) + (1 - x) * jnp.log(-jnp.expm1(jax.nn.log_sigmoid(logits)))).sum(-1)
        return (bce - 0.5 * (1 + log_var - mean**2 - jnp.exp(log_var)).sum(-1)).mean()

    @jax.jit
    def step(params: Any, moments: Any, x: Any, key: Any) -> Any:
        updates, moments = optimizer.update(jax.grad(loss)(params, x, key), moments)
        return optax.apply_updates(params, updates), moments

    params = model.init(jax.random.key(0), images[:1], jax.random.key(0))
    state, rng = [params, optimizer.init(params)], np.random.default_rng(0)

    def run(count: int) -> None:
        rows, key = rng.permutation(work.examples), jax.random.key(1)
        for i in range(max(count // work.batch, 1)):
            own = np.take(rows, range(i * work.batch, (i + 1) * work.batch), mode="wrap")
            state[:] = step(*state, images[own], jax.random.fold_in(key, i))
        jax.block_until_ready(state)

    return run


def numpyro(work: Work) -> Run | None:
    """SVI with a ``fori_loop`` over an epoch, as in NumPyro's VAE example, and the KL in closed form."""
    import jax
    import jax.numpy as jnp
    from jax.example_libraries import stax
    from numpyro import distributions as dist
    from numpyro import infer, module, optim, plate, sample

    if (work.network, work.task) != ("mlp", "train"):
        return None
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

    svi = infer.SVI(model, guide, optim.Adam(1e-3), infer.TraceMeanField_ELBO())
    images, steps = jnp.asarray(work.images().reshape(work.examples, pixels), jnp.float32), work.examples // work.batch

    @jax.jit
    def epoch(state: Any, key: Any) -> Any:
        rows = jax.random.permutation(key, work.examples)
        batch = lambda i: images[jax.lax.dynamic_slice_in_dim(rows, i * work.batch, work.batch)]
        return jax.lax.fori_loop(0, steps, lambda i, state: svi.update(state, batch(i))[0], state)

    state = [svi.init(jax.random.key(0), images[: work.batch])]

    def run(count: int) -> None:
        for i in range(max(round(count / work.examples), 1)):
            state[0] = epoch(state[0], jax.random.key(i))
        jax.block_until_ready(state[0])

    return run


# PyTorch


def _torch_networks(work: Work) -> tuple[Any, Any]:
    """Encoder and decoder of [B, C, H, W] images, with the layers of ours."""
    from torch import nn

    latent, shape = LATENT[work.network], SHAPE[work.network]
    if work.network == "mlp":
        pixels = math.prod(shape)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * latent))
        decoder = nn.Sequential(nn.Linear(latent, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, pixels))
        return encoder, decoder

    class Block(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            half = lambda: (nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
            self.layers = nn.Sequential(*half(), *half())

        def forward(self, x: Any) -> Any:
            return x + self.layers(x)

    channels, residual = CHANNELS[work.network], work.network == "residual"
    blocks = lambda width: [Block(width), Block(width)] if residual else []
    small = (channels[-1], shape[0] >> len(channels), shape[1] >> len(channels))
    down: list[Any] = []
    for before, width in zip((shape[-1], *channels), channels, strict=False):
        down += [nn.Conv2d(before, width, 4, 2, 1), *(blocks(width) or [nn.ReLU()])]
    down += [*([nn.SiLU()] if residual else []), nn.Flatten(), nn.Linear(math.prod(small), 2 * latent)]
    up: list[Any] = [nn.Linear(latent, math.prod(small)), nn.Unflatten(1, small), *([] if residual else [nn.ReLU()])]
    for width, after in zip(channels[::-1], (*channels[-2::-1], shape[-1]), strict=True):
        up += [*blocks(width), *([nn.SiLU()] if residual else []), nn.ConvTranspose2d(width, after, 4, 2, 1)]
        up += [] if residual or after == shape[-1] else [nn.ReLU()]
    return nn.Sequential(*down), nn.Sequential(*up)


def _torch_images(work: Work) -> Any:
    import torch

    scale = 1.0 if work.network == "mlp" else 1 / 255
    return torch.from_numpy(work.images()).permute(0, 3, 1, 2).contiguous().float() * scale


def torch(work: Work, compiled: bool = False) -> Run:
    """A hand-written loop: data in memory, fused Adam."""
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    encoder, decoder = _torch_networks(work)
    images, latent = _torch_images(work), LATENT[work.network]
    parameters = [*encoder.parameters(), *decoder.parameters()]

    def reconstruction(out: Any, x: Any) -> Any:
        """-log p(x|z) up to a constant, [..., B] of out [..., B, D]."""
        x = x.flatten(1)
        if work.network == "mlp":
            return F.binary_cross_entropy_with_logits(out, x.expand_as(out), reduction="none").sum(-1)
        return 0.5 * ((out.flatten(1) - x) ** 2).sum(-1)

    def log_weights(x: Any, samples: int) -> Any:
        mean, log_var = encoder(x).chunk(2, -1)
        noise = torch.randn(samples, *mean.shape)
        z = mean + (0.5 * log_var).exp() * noise
        out = decoder(z.reshape(-1, latent)).reshape(samples, len(x), -1)
        prior_over_posterior = (0.5 * (noise**2 - z**2 + log_var)).sum(-1)
        return prior_over_posterior - reconstruction(out, x)

    def loss(x: Any) -> Any:
        if work.task == "iwae":
            return (math.log(50) - torch.logsumexp(log_weights(x, 50), 0)).mean()
        mean, log_var = encoder(x).chunk(2, -1)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(-1)
        return (reconstruction(decoder(z), x) + kl).mean()

    if work.task == "likelihood":
        one = torch.compile(log_weights) if compiled else log_weights

        def judge(count: int) -> None:
            with torch.no_grad():
                for i in range(count):
                    torch.logsumexp(one(images[i : i + 1], SAMPLES), 0).item()

        return judge
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    of_batch = torch.compile(loss) if compiled else loss

    def run(count: int) -> None:
        left = max(count // work.batch, 1)
        while left > 0:
            for rows in torch.randperm(work.examples).split(work.batch)[:left]:
                optimizer.zero_grad(set_to_none=True)
                of_batch(images[rows]).backward()
                optimizer.step()
                left -= 1

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

    if work.task == "iwae":
        return None
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

    config = VAEConfig(input_dim=shape, latent_dim=LATENT[work.network], reconstruction_loss="bce" if binary else "mse")
    model, images = VAE(config, Encoder(), Decoder()), _torch_images(work)
    if work.task == "likelihood":
        return lambda count: model.get_nll(images[:count], n_samples=SAMPLES) and None

    def run(count: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            training = BaseTrainerConfig(
                output_dir=folder,
                learning_rate=1e-3,
                per_device_train_batch_size=work.batch,
                num_epochs=max(round(count / work.examples), 1),
                no_cuda=True,
            )
            TrainingPipeline(model=model, training_config=training)(train_data=images)

    return run


PEERS: dict[str, Callable[[Work], Run | None]] = {
    "jaxvae": jaxvae,
    "scan": scan,
    "products": products,
    "flax": flax,
    "numpyro": numpyro,
    "torch": torch,
    "torch.compile": torch_compile,
    "pythae": pythae,
}
OUR_OWN = ("scan", "products")  # that are no other libraries
