"""Compares values that training obtains with the values of theory.

``python experiments/papers/exact.py [--rows factor-vae annealed-vae ...] [--json OUT]``

Every row names the member, what is compared, the exact value and the value that training obtained.
It also states a tolerance, which covers the optimizer's last steps and the noise of the draws.
Closed forms that need no training are tested in ``tests``. The script ends with exit code 2 if a
row is out of its tolerance.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from scipy import integrate, stats

from experiments import tables
from jaxvae import (
    bounds,
    datasets,
    distributions,
    evaluation,
    kl_costs,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    schedules,
    training,
)
from jaxvae.command_line import fail, run_function
from jaxvae.uses import linear

KEY = jax.random.key(0)


class Found(NamedTuple):
    """An exact value beside the one obtained."""

    exact: float
    obtained: float


class Row(NamedTuple):
    """A comparison: what is compared, how far apart the two may be, and the comparison itself."""

    what: str
    tolerance: float
    compare: Callable[[], Found]


# Training and evaluation, each in one place


def learned(
    model: Any,
    loss: training.BatchLoss,
    x: np.ndarray,
    steps: int,
    preprocess: Callable = lambda key, x: x,
) -> Any:
    """Parameters after ``steps`` of Adam on batches of 200."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    algorithm = training.gradient_descent(model.init, loss, optimizer)
    examples = datasets.Examples(x, preprocess)
    return training.trained(training.fit(algorithm, examples, num_steps=steps, batch_size=200))


def evaluated(model: Any, params: Any, x: np.ndarray, num_samples: int = 1) -> Any:
    """ELBO, reconstruction and KL over all examples."""
    return evaluation.evaluate_elbo(model, params, KEY, x, num_samples=num_samples)


def descended(
    loss: Callable[[Any, jax.Array], jax.Array], params: Any, rate: float, steps: int
) -> Any:
    """Parameters after ``steps`` of Adam on ``loss(params, key)``, in one program."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(state: tuple, key: jax.Array) -> tuple[tuple, None]:
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, key), moments)
        return (optax.apply_updates(params, updates), moments), None

    scan = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0])
    return scan((params, optimizer.init(params)), jax.random.split(KEY, steps))[0]


def linear_vae(
    latent: int, size: int, likelihood: likelihoods.Likelihood, family: str = "normal"
) -> models.VAE:
    """x = W z + mean + noise, with a posterior whose mean is linear in x.

    The other numbers of the posterior are the same for all x. A log-scale that is linear in x would
    be no nearer to the optimum, and may diverge on the way there.
    """
    posterior = posteriors.POSTERIORS[family](latent)
    mean = networks.mlp((), latent)
    rest = posterior.size - latent
    encoder = networks.Network(
        lambda key, x: {"mean": mean.init(key, x), "rest": jnp.zeros(rest)},
        lambda params, x: jnp.concatenate([mean.apply(params["mean"], x), params["rest"]]),
    )
    return models.vae(
        encoder, networks.mlp((), size), posterior, likelihood, posterior.prior(latent)
    )


# Linear models


def factor_analysis() -> Found:
    """A linear VAE whose noise has a scale for each pixel, beside scikit-learn's likelihood."""
    from sklearn.decomposition import FactorAnalysis

    rng = np.random.default_rng(0)
    factors = rng.normal(size=(1000, 2)) @ rng.normal(size=(2, 8))
    x = factors + rng.normal(size=(1000, 8)) * np.linspace(0.3, 1.5, 8)
    x = x.astype(np.float32)
    fitted = FactorAnalysis(2, tol=1e-10, max_iter=10_000, svd_method="lapack").fit(x)
    scale_of_each_pixel = likelihoods.Likelihood(
        1,
        lambda params, raw: distributions.Normal(raw[..., 0], jnp.exp(params)),
        likelihoods.REAL,
        False,
        lambda key: jnp.zeros(8),
    )
    vae = linear_vae(2, 8, scale_of_each_pixel)
    params = learned(vae, training.batch_mean(models.negative_elbo(vae)), x, 6000)
    return Found(fitted.score(x), evaluated(vae, params, x, 100).elbo)


def outliers() -> Found:
    """A linear VAE of five latents with full covariance, beside probabilistic PCA.

    The rows are the 30 standardized columns of scikit-learn's breast-cancer set, in which some lie
    12 deviations away. All numbers of the posterior are linear in x.
    """
    from sklearn.datasets import load_breast_cancer

    x = load_breast_cancer().data
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    posterior = posteriors.multivariate_normal(5)
    encoder, decoder = networks.mlp((), posterior.size), networks.mlp((), 30)
    prior = priors.standard_normal(5)
    vae = models.vae(encoder, decoder, posterior, likelihoods.normal_learned(), prior)
    algorithm = training.gradient_descent(
        vae.init, training.batch_mean(models.negative_elbo(vae)), optax.adam(3e-3)
    )
    state = training.fit(algorithm, x, num_steps=8000, batch_size=500)
    best = linear.closed_form(x, 5).log_likelihood(x).mean()
    return Found(best, evaluated(vae, training.trained(state), x, 100).elbo)


def wiener_filter() -> Found:
    """A linear denoising autoencoder, beside S (S + s^2 I)^-1 for data of covariance S."""
    rng = np.random.default_rng(2)
    root, level = rng.normal(size=(4, 4)), 0.8
    x = rng.multivariate_normal(np.zeros(4), root @ root.T, 20_000).astype(np.float32)
    covariance = np.cov(x.T)
    model: Any = models.Denoising(linear_vae(4, 4, likelihoods.normal(1.0), "point"))
    noisy = lambda key, x: models.Corrupted(x, datasets.CORRUPTIONS["gaussian"](key, x, level))
    loss = training.batch_mean(models.negative_reconstruction(model))
    params = learned(model, loss, x, 4000, noisy)
    encode = params["encoder"]["mean"]["output"]["kernel"]
    decode = params["decoder"]["output"]["kernel"]
    exact = covariance @ np.linalg.inv(covariance + level**2 * np.eye(4))
    return Found(0.0, np.abs(np.asarray(encode @ decode).T - exact).max())


@functools.cache
def on_three_dimensions() -> tuple[float, list[float]]:
    """What a linear VAE of six latents makes of data on three dimensions in ten.

    Returns the learned noise as a share of the data's deviation, and the KL of each latent.
    """
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(500, 3)) @ rng.normal(size=(3, 10))).astype(np.float32)
    vae = linear_vae(6, 10, likelihoods.normal_learned())
    params = learned(vae, training.batch_mean(models.negative_elbo(vae)), x, 8000)
    noise = float(jnp.exp(params["likelihood"]["log_scale"]))
    return noise / x.std(), evaluated(vae, params, x).kl_per_latent


def noise_falls() -> Found:
    """The noise that is left."""
    return Found(0.0, on_three_dimensions()[0])


def latents_in_use() -> Found:
    """The latents that are left."""
    return Found(3, sum(kl > 0.1 for kl in on_three_dimensions()[1]))


# One correlated posterior


class LinearModel(NamedTuple):
    """z ~ N(0, I), x | z ~ N(W z, 0.7^2 I), and one x of six numbers; three latents."""

    w: np.ndarray
    x: np.ndarray
    scale: float = 0.7

    def evidence(self) -> float:
        """log p(x), nats."""
        covariance = self.w @ self.w.T + self.scale**2 * np.eye(6)
        return stats.multivariate_normal(np.zeros(6), covariance).logpdf(self.x)

    def diagonal_gap(self) -> float:
        """What the best posterior with independent latents loses, nats, from the precision P."""
        precision = np.eye(3) + self.w.T @ self.w / self.scale**2
        return 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])

    def log_joint(self, z: jax.Array) -> jax.Array:
        """log p(x, z)."""
        prior = distributions.Normal(jnp.zeros(3), jnp.ones(3))
        likelihood = distributions.Normal(jnp.asarray(self.w @ z), jnp.full(6, self.scale))
        return likelihood.log_prob(jnp.asarray(self.x)) + prior.log_prob(z)


def best_elbo(family: str) -> Found:
    """ELBO of that model after training a posterior on it, by 100,000 draws."""
    rng = np.random.default_rng(0)
    model = LinearModel(rng.normal(size=(6, 3)), rng.normal(size=6))
    posterior = posteriors.POSTERIORS[family](3)

    def elbo(params: Any, key: jax.Array, num_samples: int) -> jax.Array:
        q = posterior.make(params["posterior"], params["raw"])
        return bounds.elbo(key, q, model.log_joint, num_samples)

    start = {
        "posterior": posterior.init(KEY),
        "raw": 0.1 * jax.random.normal(KEY, (posterior.size,)),
    }
    params = descended(lambda params, key: -elbo(params, key, 64), start, 1e-2, 3000)
    obtained = jax.jit(functools.partial(elbo, num_samples=100_000))(params, jax.random.key(1))
    gap = model.diagonal_gap() if family == "normal" else 0.0
    return Found(model.evidence() - gap, float(obtained))


# Capacities


@functools.cache
def kl_at_capacity(family: str) -> list[float]:
    """KL of each latent of a VAE of binarized digits that holds its capacities, nats.

    Ten Gaussians pay for the distance to 10 nats. With a class of ten beside them, "joint", they
    pay for that to 5 nats, and the class pays for that to 2.3.
    """
    from sklearn.datasets import load_digits

    x = (load_digits().data > 7).astype(np.float32)
    held = lambda weight, nats: kl_costs.capacity(weight, schedules.linear_warmup(1000, nats))
    posterior, prior, cost = {
        "normal": (posteriors.normal(10), priors.standard_normal(10), held(100.0, 10.0)),
        "joint": (
            posteriors.joint(10, 10),
            priors.joint(10, 10),
            kl_costs.blocks((10, 1), (held(30.0, 5.0), held(30.0, 2.3))),
        ),
    }[family]
    pair = networks.mlp((100,), posterior.size), networks.mlp((100,), 64)
    vae = models.vae(*pair, posterior, likelihoods.bernoulli(), prior)
    params = learned(vae, models.with_kl_cost(vae, cost), x, 3000)
    return evaluated(vae, params, x).kl_per_latent


def capacity_of_all() -> Found:
    """Gaussians alone."""
    return Found(10.0, sum(kl_at_capacity("normal")))


def capacity_of_gaussians() -> Found:
    """The Gaussians beside a class."""
    return Found(5.0, sum(kl_at_capacity("joint")[:-1]))


def capacity_of_class() -> Found:
    """The class."""
    return Found(2.3, kl_at_capacity("joint")[-1])


# Critics

NUM_CODES, RHO = 1000, 0.6


def fresh_codes(key: jax.Array, z: jax.Array, other: jax.Array) -> models.Codes:
    """A batch of codes of equal weights."""
    return models.Codes(key, None, z, other, jnp.full(NUM_CODES, 1 / NUM_CODES))


def over_fresh_codes(
    measure: Callable[[models.Codes], jax.Array], draw: Callable[[jax.Array], models.Codes]
) -> float:
    """The mean over a hundred batches."""
    keys = jax.random.split(jax.random.key(1), 100)
    return float(jax.jit(jax.vmap(lambda key: measure(draw(key))))(keys).mean())


def critic_after(
    adversary: models.Adversary, draw: Callable[[jax.Array], models.Codes], steps: int
) -> Any:
    """The critic's parameters after training on fresh codes."""
    loss = lambda params, key: adversary.loss(params, draw(key))
    return descended(loss, adversary.init(KEY, None, draw(KEY).z[0]), 5e-3, steps)


def critic_of_correlation() -> Found:
    """What FactorVAE's critic takes for the total correlation of a Gaussian."""
    adversary = models.density_ratio(networks.mlp((32, 32), 1), 1.0)
    root = np.linalg.cholesky([[1.0, RHO], [RHO, 1.0]])

    def draw(key: jax.Array) -> models.Codes:
        z = jax.random.normal(key, (NUM_CODES, 2)) @ root.T
        return fresh_codes(key, z, z)

    params = critic_after(adversary, draw, 2000)
    obtained = over_fresh_codes(lambda codes: adversary.penalty(params, codes), draw)
    return Found(-0.5 * math.log(1 - RHO**2), obtained)


def critic_of_shift() -> Found:
    """The loss of an adversarial autoencoder's critic, beside quadrature."""
    adversary = models.adversarial(networks.mlp((), 1), 1.0)

    def draw(key: jax.Array) -> models.Codes:
        z, other = jax.random.normal(key, (2, NUM_CODES, 1))
        return fresh_codes(key, z + 1, other)

    prior, posterior = stats.norm(0, 1), stats.norm(1, 1)
    of_both = lambda z: np.logaddexp(prior.logpdf(z), posterior.logpdf(z))
    half = lambda p: integrate.quad(lambda z: p.pdf(z) * (p.logpdf(z) - of_both(z)), -9, 9)[0]
    params = critic_after(adversary, draw, 500)
    obtained = over_fresh_codes(lambda codes: adversary.loss(params, codes), draw)
    return Found(-half(prior) - half(posterior), obtained)


# The table

MEMBERS = {"normal": "vae", "multivariate_normal": "full-covariance"}
MEMBERS |= {"inverse_autoregressive": "iaf"}
# Radial flows, which are about one point, come near but not there.
TIGHT = ("multivariate_normal", *(name for name in posteriors.FLOWS if name != "radial"))


def correlated(family: str) -> tuple[str, Row]:
    """The row of a posterior that is trained on a correlated one."""
    name = MEMBERS.get(family, family).replace("_", "-")
    what, tolerance = "ELBO of the same: log p(x), nats", 0.01
    if family == "normal":
        what = "ELBO of a linear model: log p(x) - (sum_i log P_ii - log |P|) / 2, nats"
        tolerance = 0.03
    return f"{name}, correlated posterior", Row(
        what, tolerance, functools.partial(best_elbo, family)
    )


ROWS: dict[str, Row] = {
    "vae, noise of each pixel": Row(
        "ELBO of a linear VAE, 2 latents: likelihood of factor analysis, nats",
        0.02,
        factor_analysis,
    ),
    **dict(map(correlated, ("normal", *TIGHT))),
    "full-covariance, outliers": Row(
        "ELBO of a linear VAE of breast cancer, 5 latents: probabilistic PCA, nats", 0.2, outliers
    ),
    "denoising-autoencoder": Row(
        "linear: largest entry of g f - S (S + s^2 I)^-1, the Wiener map", 0.03, wiener_filter
    ),
    "learned-variance": Row(
        "data on 3 dimensions of 10: learned noise, as a share of their deviation",
        0.02,
        noise_falls,
    ),
    "learned-variance, latents": Row(
        "the same: latents of 6 with a KL above 0.1 nats", 0, latents_in_use
    ),
    "annealed-vae": Row("KL of digits at a capacity of 10, nats", 0.3, capacity_of_all),
    "joint-vae": Row(
        "KL of the Gaussians at a capacity of 5, and of 2.3 for a class, nats",
        0.3,
        capacity_of_gaussians,
    ),
    "joint-vae, class": Row("the same: KL of the class", 0.1, capacity_of_class),
    "factor-vae": Row(
        "TC that the critic learns of a Gaussian with correlation 0.6: -log(1 - 0.6^2) / 2, nats",
        0.012,
        critic_of_correlation,
    ),
    "wae-gan": Row(
        "critic's loss between N(1, 1) and N(0, 1): 2 log 2 - 2 JS by quadrature, nats",
        0.01,
        critic_of_shift,
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared."""

    rows: tuple[str, ...] = ()
    """Members; none is all."""
    json: Path | None = None
    """File for everything that was found."""


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """What members of the family must learn, beside what they learn."""
    tables.check_place(options.json)
    for name in options.rows:
        if name not in ROWS:
            raise ValueError(f"no row {name!r}; there are {', '.join(ROWS)}")
    results: dict[str, dict[str, Any]] = {}
    out = []
    print(f"{'member':38s} {'exact':>9s} {'obtained':>9s} {'tolerance':>9s}  what")
    for name in options.rows or ROWS:
        row = ROWS[name]
        exact, obtained = map(float, row.compare())
        values = {"exact": exact, "obtained": obtained, "tolerance": row.tolerance}
        results[name] = values | {"what": row.what}
        numbers = f"{exact:9.6g} {obtained:9.6g} {row.tolerance:9.2g}"
        mark = ""
        if not abs(obtained - exact) <= row.tolerance:
            out.append(name)
            mark = "  OUT"
        print(f"{name:38s} {numbers}  {row.what}{mark}", flush=True)
    tables.save(options.json, dataclasses.asdict(options), results)
    if out:
        fail(f"out of their tolerance: {', '.join(out)}")


if __name__ == "__main__":
    run_function(main)
