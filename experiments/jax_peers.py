"""The work of ``works.py`` in other libraries of JAX, as a good user of each would write it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from experiments.works import HIDDEN, LATENT, RATE, SHAPE, Run, Work


def flax(work: Work) -> Run | None:
    """A jitted step for every batch, as in Flax's VAE example.

    It computes its loss too, as all others here do.
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
        outputs: Any = model.apply(params, x, key)
        logits, mean, log_var = outputs
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
    moments, rng = optimizer.init(params), np.random.default_rng(0)

    def run(count: int) -> None:
        nonlocal params, moments
        rows, key = rng.permutation(work.examples), jax.random.key(1)
        for i in range(max(count // work.batch, 1)):
            places = range(i * work.batch, (i + 1) * work.batch)
            x = images[np.take(rows, places, mode="wrap")]
            params, moments, value = step(params, moments, x, jax.random.fold_in(key, i))
        jax.block_until_ready((params, moments, value))

    return run


def numpyro(work: Work) -> Run | None:
    """SVI with a ``fori_loop`` over an epoch, as in NumPyro's VAE example; KL in closed form.

    The loop sums the losses. Without the sum XLA would compute their gradients alone.
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
