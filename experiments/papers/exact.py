"""What members of the family must give exactly: closed forms and theorems beside what the code
computes or learns.

``python experiments/papers/exact.py [--rows sylvester structured-residuals ...] [--json OUT]``

Every row names the member, what is compared, the exact value, what was obtained and how far apart
the two may be: the rounding of float32 where nothing is sampled, the noise of the draws where
something is, and the optimizer's last steps where something is learned. Ends with exit code 2 if a
row is out of its tolerance.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from scipy import integrate, stats
from scipy.special import logsumexp

sys.path.insert(0, str(Path(__file__).parent.parent))
import cells
import commands

from jaxvae import (
    bounds,
    datasets,
    distributions,
    divergences,
    evaluation,
    fitted,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    training,
)

KEY = jax.random.key(0)


class Found(NamedTuple):
    """An exact value beside the one obtained."""

    exact: float
    obtained: float


class Row(NamedTuple):
    """A comparison."""

    what: str
    tolerance: float  # of the difference
    compare: Callable[[], Found]


ROWS: dict[str, Row] = {}


def row(member: str, what: str, tolerance: float) -> Callable:
    """Enters a comparison in the table."""

    def add(compare: Callable[[], tuple[float, float]]) -> Callable:
        ROWS[member] = Row(what, tolerance, lambda: Found(*map(float, compare())))
        return compare

    return add


def learned(
    model: Any, loss: Any, x: np.ndarray, steps: int, preprocess: Callable = evaluation.same
) -> Any:
    """Parameters after ``steps`` of Adam on batches of 200."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    whole = training.preprocessed(preprocess, training.batch_mean(loss))
    algorithm = training.gradient_descent(
        lambda key, x: model.init(key, preprocess(key, x)), whole, optimizer
    )
    return training.trained(training.fit(algorithm, x, num_steps=steps, batch_size=200))


def linear_vae(
    latent: int, size: int, likelihood: likelihoods.Likelihood, family: str = "normal"
) -> models.VAE:
    """x = W z + mean + noise, with a posterior whose mean is linear in x and whose other numbers
    are the same for all.

    A log-scale that is linear in x would be no nearer to the optimum, and may diverge on the way
    there.
    """
    posterior = posteriors.POSTERIORS[family](latent)
    mean = networks.mlp((), latent)
    rest = posterior.size - latent
    encoder = networks.Network(
        lambda key, x: {"mean": mean.init(key, x), "rest": jnp.zeros(rest)},
        lambda params, x: jnp.concatenate([mean.apply(params["mean"], x), params["rest"]]),
    )
    return models.vae(
        encoder, networks.mlp((), size), posterior, likelihood, priors.DEFAULT_PRIOR[family](latent)
    )


# Linear models


def digits() -> np.ndarray:
    """scikit-learn's digits divided by 16, [1797, 64]."""
    from sklearn.datasets import load_digits

    return (load_digits().data / 16).astype(np.float32)


@row(
    "vae",
    "ELBO of a linear VAE on digits / 16, 10 latents: probabilistic PCA's likelihood, nats",
    2e-2,
)
def probabilistic_pca() -> tuple[float, float]:
    x = digits()
    values = np.sort(np.linalg.eigvalsh(np.cov(x.T.astype(np.float64), bias=True)))[::-1]
    noise = values[10:].mean()
    exact = -0.5 * (64 * np.log(2 * np.pi) + np.log(values[:10]).sum() + 54 * np.log(noise) + 64)
    posterior, prior = posteriors.normal(10), priors.standard_normal(10)
    pair = networks.mlp((), posterior.size), networks.mlp((), 64)
    vae = models.vae(*pair, posterior, likelihoods.normal_learned(), prior)
    params = learned(vae, models.negative_elbo(vae), x, 20_000)
    return exact, evaluation.evaluate(vae, params, x, KEY, num_samples=100).elbo


@row(
    "vae, noise of each pixel",
    "ELBO of a linear VAE, 2 latents: likelihood of factor analysis, nats",
    2e-2,
)
def factor_analysis() -> tuple[float, float]:
    from sklearn.decomposition import FactorAnalysis

    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 2)) @ rng.normal(size=(2, 8)) + rng.normal(
        size=(1000, 8)
    ) * np.linspace(0.3, 1.5, 8)
    x = x.astype(np.float32)
    exact = FactorAnalysis(2, tol=1e-10, max_iter=10_000, svd_method="lapack").fit(x).score(x)
    each = likelihoods.Likelihood(
        1,
        lambda params, raw: distributions.Normal(raw[..., 0], jnp.exp(params)),
        likelihoods.REAL,
        False,
        lambda key: jnp.zeros(8),
    )
    vae = linear_vae(2, 8, each)
    params = learned(vae, models.negative_elbo(vae), x, 6000)
    return exact, evaluation.evaluate(vae, params, x, KEY, num_samples=100).elbo


@row(
    "spike-and-slab",
    "log p(x) of a linear model from draws of its prior: sum over its 16 supports, nats",
    1e-2,
)
def sparse_linear() -> tuple[float, float]:
    rng = np.random.default_rng(0)
    w, rate = rng.normal(size=(6, 4)), 0.2
    x = (rng.normal(size=(50, 4)) * (rng.uniform(size=(50, 4)) < rate)) @ w.T + rng.normal(
        size=(50, 6)
    )
    supports = [np.array(list(f"{s:04b}"), int) for s in range(16)]
    weight = lambda s: s.sum() * math.log(rate) + (4 - s.sum()) * math.log(1 - rate)
    terms = [
        stats.multivariate_normal(np.zeros(6), (w * s) @ w.T + np.eye(6)).logpdf(x) + weight(s)
        for s in supports
    ]
    z = priors.spike_and_slab(4, rate).make({}).sample(KEY, (200_000,))
    draws = jax.jit(
        lambda x: jax.vmap(lambda z: distributions.Normal(w @ z, jnp.ones(6)).log_prob(x))(z)
    )
    return logsumexp(terms, 0).mean(), np.mean(
        [logsumexp(draws(one)) - math.log(len(z)) for one in x]
    )


@row(
    "spike-and-slab, KL",
    "KL of a spike and slab from another by 200,000 draws: its closed form, nats",
    2e-2,
)
def sparse_kl() -> tuple[float, float]:
    g, m, s = np.array([0.9, 0.3]), np.array([0.5, -1.0]), np.array([0.4, 1.2])
    slab = -np.log(s) - 0.5 + (m**2 + s**2) / 2
    exact = g * slab + g * np.log(g / 0.2) + (1 - g) * np.log((1 - g) / 0.8)
    q = distributions.SpikeAndSlab(
        *(jnp.asarray(a, jnp.float32) for a in (np.log(g / (1 - g)), m, s))
    )
    return exact.sum(), divergences.sampled_kl(
        KEY, q, priors.spike_and_slab(2, 0.2).make({}), 200_000
    )


class LinearModel(NamedTuple):
    """z ~ N(0, I), x | z ~ N(W z, 0.7^2 I), and one x of six numbers; three latents."""

    w: np.ndarray
    x: np.ndarray
    scale: float = 0.7

    def precision(self) -> np.ndarray:
        """Of the posterior."""
        return np.eye(3) + self.w.T @ self.w / self.scale**2

    def evidence(self) -> float:
        """log p(x), nats."""
        return stats.multivariate_normal(
            np.zeros(6), self.w @ self.w.T + self.scale**2 * np.eye(6)
        ).logpdf(self.x)

    def log_joint(self, z: jax.Array) -> jax.Array:
        """log p(x, z)."""
        prior = distributions.Normal(jnp.zeros(3), jnp.ones(3))
        return distributions.Normal(self.w @ z, jnp.full(6, self.scale)).log_prob(
            self.x
        ) + prior.log_prob(z)


def linear_model() -> LinearModel:
    """One whose latents are correlated given x."""
    rng = np.random.default_rng(0)
    return LinearModel(rng.normal(size=(6, 3)), rng.normal(size=6))


def tight(num_samples: int) -> tuple[float, float]:
    """log p(x) of a linear model, and the bound at its exact posterior."""
    model = linear_model()
    covariance = np.linalg.inv(model.precision())
    q = distributions.MultivariateNormal(
        jnp.asarray(covariance @ model.w.T @ model.x / model.scale**2, jnp.float32),
        jnp.asarray(np.linalg.cholesky(covariance), jnp.float32),
    )
    return model.evidence(), bounds.iwae(KEY, q, model.log_joint, num_samples)


row("full-covariance", "ELBO of one draw at the exact posterior: log p(x), nats", 1e-4)(
    lambda: tight(1)
)
row("iwae", "bound of five draws at the exact posterior: log p(x), nats", 1e-4)(lambda: tight(5))


def best_elbo(family: str, steps: int = 3000) -> float:
    """ELBO of that model after training a posterior on it, by 100,000 draws."""
    model, posterior = linear_model(), posteriors.POSTERIORS[family](3)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def elbo(params: Any, key: jax.Array, num_samples: int = 64) -> jax.Array:
        return bounds.elbo(
            key, posterior.make(params["own"], params["raw"]), model.log_joint, num_samples
        )

    def step(state: tuple, key: jax.Array) -> tuple[tuple, None]:
        params, moments = state
        updates, moments = optimizer.update(
            jax.grad(lambda params: -elbo(params, key))(params), moments
        )
        return (optax.apply_updates(params, updates), moments), None

    params = {"own": posterior.init(KEY), "raw": 0.1 * jax.random.normal(KEY, (posterior.size,))}
    scan = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0])
    params = scan((params, optimizer.init(params)), jax.random.split(KEY, steps))[0]
    return float(jax.jit(functools.partial(elbo, num_samples=100_000))(params, jax.random.key(1)))


@row(
    "vae, correlated posterior",
    "ELBO of a linear model: log p(x) - (sum_i log P_ii - log |P|) / 2, nats",
    0.03,
)
def diagonal_gap() -> tuple[float, float]:
    precision = linear_model().precision()
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    return linear_model().evidence() - gap, best_elbo("normal")


def no_gap(family: str) -> tuple[float, float]:
    return linear_model().evidence(), best_elbo(family)


# Radial flows, which are about one point, come near but not there.
for _name in ("multivariate_normal", *(name for name in posteriors.FLOWS if name != "radial")):
    _member = {"multivariate_normal": "full-covariance", "inverse_autoregressive": "iaf"}.get(
        _name, _name
    )
    row(
        f"{_member.replace('_', '-')}, correlated posterior",
        "ELBO of the same: log p(x), nats",
        0.01,
    )(functools.partial(no_gap, _name))


@row(
    "denoising-autoencoder", "linear: largest entry of g f - S (S + s^2 I)^-1, the Wiener map", 0.03
)
def wiener() -> tuple[float, float]:
    rng = np.random.default_rng(2)
    root, level = rng.normal(size=(4, 4)), 0.8
    x = rng.multivariate_normal(np.zeros(4), root @ root.T, 20_000).astype(np.float32)
    covariance = np.cov(x.T)
    model = models.Denoising(linear_vae(4, 4, likelihoods.normal(1.0), "point"))
    corrupted = lambda key, x: models.Corrupted(x, datasets.CORRUPTIONS["gaussian"](key, x, level))
    params = learned(model, models.negative_reconstruction(model), x, 4000, corrupted)
    encode, decode = (
        params["encoder"]["mean"]["Dense_0"]["kernel"],
        params["decoder"]["Dense_0"]["kernel"],
    )
    map_ = covariance @ np.linalg.inv(covariance + level**2 * np.eye(4))
    return 0.0, np.abs(np.asarray(encode @ decode).T - map_).max()


def manifold() -> tuple[np.ndarray, evaluation.Summary, float]:
    """Data on three dimensions in ten, what a linear VAE of six latents makes of them, and its
    learned noise.
    """
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(500, 3)) @ rng.normal(size=(3, 10))).astype(np.float32)
    vae = linear_vae(6, 10, likelihoods.normal_learned())
    params = learned(vae, models.negative_elbo(vae), x, 8000)
    return (
        x,
        evaluation.evaluate(vae, params, x, KEY),
        float(jnp.exp(params["likelihood"]["log_scale"])),
    )


@row(
    "learned-variance",
    "data on 3 dimensions of 10: learned noise, as a share of their deviation",
    0.02,
)
def noise_falls() -> tuple[float, float]:
    x, _, scale = manifold()
    return 0.0, scale / x.std()


@row("learned-variance, latents", "the same: latents of 6 with a KL above 0.1 nats", 0)
def latents_count() -> tuple[float, float]:
    return 3, sum(kl > 0.1 for kl in manifold()[1].kl_per_latent)


# Rates and penalties


@functools.cache
def preset(name: str) -> evaluation.Summary:
    """A member as it comes, trained on the digits."""
    run, params, _ = cells.trained([name])
    return evaluation.evaluate(
        run.vae, params, run.raw(run.test), run.key, preprocess=run.preprocess
    )


@row("annealed-vae", "KL after training on the digits with C = 10, nats", 0.3)
def locks() -> tuple[float, float]:
    return 10.0, preset("annealed-vae").kl


@row(
    "joint-vae",
    "KL of the Gaussians after training on the digits with C = 5 for them and 2.3 for a class, nats",
    0.3,
)
def locks_gaussians() -> tuple[float, float]:
    return 5.0, sum(preset("joint-vae").kl_per_latent[:-1])


@row("joint-vae, class", "the same: KL of the class", 0.1)
def locks_class() -> tuple[float, float]:
    return 2.3, preset("joint-vae").kl_per_latent[-1]


RHO = 0.6
CORRELATED = np.linalg.cholesky([[1.0, RHO], [RHO, 1.0]])
ROWS_OF_CODES = 1000


def criticized(
    adversary: models.Adversary, draw: Callable[[jax.Array], models.Codes], steps: int = 2000
) -> Any:
    """The critic's parameters after training on fresh codes."""
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))

    def step(state: tuple, key: jax.Array) -> tuple[tuple, None]:
        params, moments = state
        updates, moments = optimizer.update(jax.grad(adversary.loss)(params, draw(key)), moments)
        return (optax.apply_updates(params, updates), moments), None

    params = adversary.init(KEY, draw(KEY).z[0])
    scan = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0])
    return scan((params, optimizer.init(params)), jax.random.split(KEY, steps))[0]


def over_fresh(
    of: Callable[[models.Codes], jax.Array], draw: Callable[[jax.Array], models.Codes]
) -> float:
    """The mean over a hundred batches."""
    return float(
        jax.jit(jax.vmap(lambda key: of(draw(key))))(
            jax.random.split(jax.random.key(1), 100)
        ).mean()
    )


@row(
    "factor-vae",
    "TC that the critic learns of a Gaussian with correlation 0.6: -log(1 - 0.6^2) / 2, nats",
    0.012,
)
def critic_of_correlation() -> tuple[float, float]:
    adversary = models.density_ratio(networks.mlp((32, 32), 1), 1.0)

    def draw(key: jax.Array) -> models.Codes:
        z = jax.random.normal(key, (ROWS_OF_CODES, 2)) @ CORRELATED.T
        return models.Codes(key, None, z, z, jnp.full(ROWS_OF_CODES, 1 / ROWS_OF_CODES))

    params = criticized(adversary, draw)
    return -0.5 * math.log(1 - RHO**2), over_fresh(
        lambda codes: adversary.penalty(params, codes), draw
    )


@row(
    "wae-gan", "critic's loss between N(1, 1) and N(0, 1): 2 log 2 - 2 JS by quadrature, nats", 0.01
)
def critic_of_shift() -> tuple[float, float]:
    adversary = models.adversarial(networks.mlp((), 1), 1.0)

    def draw(key: jax.Array) -> models.Codes:
        z, other = jax.random.normal(key, (2, ROWS_OF_CODES, 1))
        return models.Codes(key, None, z + 1, other, jnp.full(ROWS_OF_CODES, 1 / ROWS_OF_CODES))

    p, q = stats.norm(0, 1), stats.norm(1, 1)
    half = lambda a, b: integrate.quad(
        lambda z: a.pdf(z) * (b.logpdf(z) - np.logaddexp(p.logpdf(z), q.logpdf(z))), -9, 9
    )
    exact = -(half(p, p)[0] + half(q, q)[0])
    params = criticized(adversary, draw, 500)
    return exact, over_fresh(lambda codes: adversary.loss(params, codes), draw)


@row("beta-tcvae", "TC over a whole set whose q(z) is a Gaussian with correlation 0.6, nats", 0.02)
def correlation_of_codes() -> tuple[float, float]:
    n, scale = 4000, 0.5
    grid = (
        np.random.default_rng(0).normal(size=(n, 2))
        @ np.linalg.cholesky(CORRELATED @ CORRELATED.T - scale**2 * np.eye(2)).T
    )
    q = distributions.Normal(jnp.asarray(grid, jnp.float32), jnp.full((n, 2), scale))
    prior = distributions.Normal(jnp.zeros(2), jnp.ones(2))
    return -0.5 * math.log(1 - RHO**2), evaluation.decompositions.decomposition(
        q, prior, KEY
    ).total_correlation.value


def codes_with_covariance(covariance: np.ndarray) -> jax.Array:
    """Codes whose covariance is exactly this one."""
    z = np.random.default_rng(0).normal(size=(100, len(covariance)))
    z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T, bias=True))).T
    return jnp.asarray(z @ np.linalg.cholesky(covariance).T, jnp.float32)


COVARIANCE = np.array([[1.5, 0.4], [0.4, 0.5]])


@row(
    "dip-vae-i",
    "penalty of means with covariance [[1.5, 0.4], [0.4, 0.5]]: 5 * 2 * 0.4^2 + 50 (0.5^2 + 0.5^2)",
    1e-3,
)
def penalty_of_means() -> tuple[float, float]:
    means = codes_with_covariance(COVARIANCE)
    return 5 * 2 * 0.16 + 50 * 0.5, divergences.dip_i(means, jnp.full(100, 0.01), 5.0, 50.0)


@row(
    "dip-vae-ii",
    "the same with posterior variances of 0.1: 5 * 2 * 0.4^2 + 5 (0.6^2 + 0.4^2)",
    1e-3,
)
def penalty_of_codes() -> tuple[float, float]:
    means = codes_with_covariance(COVARIANCE)
    found = divergences.dip_ii(means, jnp.full((100, 2), 0.1), jnp.full(100, 0.01), 5.0, 5.0)
    return 5 * 2 * 0.16 + 5 * (0.36 + 0.16), found


# Distances between q(z) and p(z)


def between(member: Callable, mean: np.ndarray, rows: int = 1000, batches: int = 40) -> float:
    """Of N(mean, I) and N(0, I), over draws."""
    weight = jnp.full(rows, 1 / rows)

    def one(key: jax.Array) -> jax.Array:
        key, *keys = jax.random.split(key, 3)
        z, other = (jax.random.normal(k, (rows, len(mean))) for k in keys)
        return member(key, z + mean, other, weight)

    return float(jax.lax.map(jax.jit(one), jax.random.split(KEY, batches)).mean())


SHIFT = np.full(8, math.sqrt(0.5))  # |m| = 2


@row(
    "wae-mmd",
    "MMD^2 with its kernel between N(m, I) and N(0, I), d = 8, |m| = 2: an integral over r^2",
    5e-3,
)
def mmd_of_wae() -> tuple[float, float]:
    kernel = lambda square: sum(16 * m / (16 * m + square) for m in (0.1, 0.2, 0.5, 1, 2, 5, 10))
    # r^2 / 2 is chi-squared, noncentral by |m|^2 / 2.
    mean = lambda half: half.expect(lambda square: kernel(2 * square))
    exact = 2 * (mean(stats.chi2(8)) - mean(stats.ncx2(8, 2)))
    return exact, between(divergences.DIVERGENCES["mmd_imq_sum"], SHIFT)


@row("kernelized", "MMD^2 with a kernel of one's own, (1 + z.z'): |m|^2", 0.05)
def own_kernel() -> tuple[float, float]:
    return 4.0, between(divergences.mmd(lambda z, other: 1 + z @ other), SHIFT)


@row("info-vae", "MMD^2 with its kernel, l^2 = d, between N(m, I) and N(0, I)", 2e-3)
def mmd_of_info_vae() -> tuple[float, float]:
    exact = 2 * (8 / 10) ** 4 * (1 - math.exp(-4 / 20))
    return exact, between(divergences.DIVERGENCES["mmd_rbf"], SHIFT)


@row("swae", "SW^2 of N(m, I) and N(0, I): |m|^2 / d", 0.02)
def sliced() -> tuple[float, float]:
    return 0.5, between(divergences.sliced_wasserstein(200), SHIFT)


@row(
    "radon-sobolev",
    "distance of codes at 0 to N(0, I), d = 8: (sqrt 2 - 1) Gamma(9/2) / Gamma(4)",
    1e-5,
)
def radon() -> tuple[float, float]:
    exact = (math.sqrt(2) - 1) * math.gamma(4.5) / math.gamma(4)
    z = jnp.zeros((10, 8))
    return exact, divergences.radon_sobolev(KEY, z, z, jnp.full(10, 0.1))


@row(
    "cramer-wold",
    "distance of N(m, I) to N(0, I), d = 256, |m| = 8: L2 of projections by quadrature",
    5e-4,
)
def cramer_wold() -> tuple[float, float]:
    mean, rows = np.full(256, 0.5), 1000
    smoothing = (4 / (3 * rows)) ** 0.4

    across = stats.norm(
        0, math.sqrt(2 * (1 + smoothing))
    )  # of the difference of two rows, both smoothed
    squares = lambda cosine: (
        2 * (across.pdf(0) - across.pdf(8 * cosine))
    )  # of densities around 8 cosine and 0
    cosines = stats.beta(127.5, 127.5, loc=-1, scale=2)  # of a direction and m
    exact = integrate.quad(lambda t: cosines.pdf(t) * squares(t), -1, 1, points=[0])[0]
    pairs = (
        (smoothing**-0.5 - (smoothing + 1) ** -0.5) / rows / (2 * math.sqrt(math.pi))
    )  # of a row with itself
    return exact, between(divergences.cramer_wold, mean, rows) - pairs


# Densities


@row("vampprior", "log-density of a prior of one pseudo-input less that of its posterior", 1e-5)
def one_pseudo_input() -> tuple[float, float]:
    posterior = posteriors.normal(3)
    vae = models.vae(
        networks.mlp((8,), posterior.size),
        networks.mlp((8,), (6,)),
        posterior,
        likelihoods.normal(),
        priors.standard_normal(3),
    )
    vae = models.with_vampprior(vae, lambda key, x: jax.random.normal(key, (1, *x.shape)))
    params = vae.init(KEY, jnp.ones(6))
    z = jnp.array([0.3, -1.0, 2.0])
    q = vae.encode(params, params["prior"]["pseudo_inputs"][0])
    return 0.0, vae.prior(params).log_prob(z) - q.log_prob(z)


def log_det_error(distribution: distributions.Transformed, latent: int = 6) -> tuple[float, float]:
    """The largest difference between a flow's log-determinant and that of its Jacobian by
    autodiff, at 100 points.
    """

    def error(z: jax.Array) -> jax.Array:
        forward = lambda z: distribution.flow.forward(distribution.params, distribution.raw, z)
        jacobian = jax.jacfwd(lambda z: forward(z)[0])(z)
        return forward(z)[1] - jnp.linalg.slogdet(jacobian)[1]

    return 0.0, jnp.abs(jax.jit(jax.vmap(error))(jax.random.normal(KEY, (100, latent)))).max()


def noisy(params: Any) -> Any:
    """Parameters away from their first values, where a flow is close to the identity."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    moved = [
        leaf + 0.05 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def of_posterior(name: str) -> tuple[float, float]:
    posterior = posteriors.POSTERIORS[name](6)
    return log_det_error(
        posterior.make(noisy(posterior.init(KEY)), jax.random.normal(KEY, (posterior.size,)))
    )


def of_prior(name: str) -> tuple[float, float]:
    prior = priors.PRIORS[name](6)
    return log_det_error(prior.make(noisy(prior.init(KEY))))


JACOBIAN = "log-determinant less that of the Jacobian by autodiff, largest of 100 points"
for _name in (
    "planar",
    "radial",
    "householder",
    "sylvester",
    "triangular_sylvester",
    "inverse_autoregressive",
):
    _member = {"inverse_autoregressive": "iaf"}.get(_name, _name.replace("_", "-"))
    row(_member, JACOBIAN, 1e-4)(lambda name=_name: of_posterior(name))
for _name in ("coupling", "autoregressive"):
    row(f"{_name}-prior", JACOBIAN, 1e-4)(lambda name=_name: of_prior(name))


@row(
    "fitted prior",
    "log-likelihood of a Gaussian mixture of one component: the Gaussian's maximum, nats",
    1e-4,
)
def one_component() -> tuple[float, float]:
    z = np.random.default_rng(0).normal(size=(500, 3)) @ np.random.default_rng(1).normal(
        size=(3, 3)
    )
    found = fitted.gaussian_mixture(z, 1, KEY)
    return stats.multivariate_normal(z.mean(0), np.cov(z.T, bias=True)).logpdf(
        z
    ).mean(), found.log_prob(z).mean()


@row(
    "structured-residuals",
    "banded log-density of 12 numbers less that of the dense covariance (L L^T)^-1, nats",
    1e-4,
)
def banded() -> tuple[float, float]:
    rng = np.random.default_rng(0)
    factor, x, loc = rng.normal(size=(12, 4)), rng.normal(size=12), rng.normal(size=12)
    factor[:, 0] = np.exp(0.3 * factor[:, 0])
    lower = sum(np.diag(factor[: 12 - k, k], -k) for k in range(4))
    exact = stats.multivariate_normal(loc, np.linalg.inv(lower @ lower.T)).logpdf(x)
    q = distributions.BandedNormal(jnp.asarray(loc, jnp.float32), jnp.asarray(factor, jnp.float32))
    return exact, q.log_prob(jnp.asarray(x, jnp.float32))


POLE = jnp.array([0.0, 0.6, 0.8])


@row(
    "von-mises-fisher",
    "KL to the uniform density on the sphere, concentration 5: log(k / sinh k) + k coth k - 1, nats",
    1e-4,
)
def kl_of_von_mises_fisher() -> tuple[float, float]:
    exact = math.log(5 / math.sinh(5)) + 5 / math.tanh(5) - 1
    q = distributions.VonMisesFisher(POLE, jnp.float32(5.0))
    return exact, divergences.kl(q, distributions.SphericalUniform(3))


@row("power-spherical", "the same of (1 + m.x)^k: log(k + 1) - k / (k + 1), nats", 1e-4)
def kl_of_power_spherical() -> tuple[float, float]:
    q = distributions.PowerSpherical(POLE, jnp.float32(5.0))
    return math.log(6) - 5 / 6, divergences.kl(q, distributions.SphericalUniform(3))


@row("rae-gp", "penalty of a linear decoder: the squared norm of its matrix", 1e-4)
def gradient_of_linear() -> tuple[float, float]:
    vae = linear_vae(3, 5, likelihoods.normal(), "point")
    params = vae.init(KEY, jnp.ones(5))
    exact = np.square(np.asarray(params["decoder"]["Dense_0"]["kernel"])).sum()
    return exact, models.decoder_gradient(vae)(params, KEY, jnp.ones(5), 0)[0]


@row(
    "rae-l2",
    "|z|^2 / 2 of the codes [1, 2] and [3, 0], and 1/2 of a decoder's weights of [1, 2, 2]",
    1e-5,
)
def decay() -> tuple[float, float]:
    z = jnp.array([[1.0, 2.0], [3.0, 0.0]])
    codes = models.Codes(KEY, None, z, z, jnp.full(2, 0.5))
    decayed = models.decoder_decay()({"decoder": jnp.array([1.0, 2.0, 2.0])}, KEY, None, 0)[0]
    return (5 + 9) / 4 + 9 / 2, models.code_penalty(1.0)(codes) + decayed / 2


@row(
    "gmvae",
    "log p(w, z) of 3 components: log N(w) + log 1/3 sum_k N(z; m_k(w), s_k(w)), nats",
    1e-4,
)
def components_of_w() -> tuple[float, float]:
    prior = priors.hierarchical_mixture(2, components=3, upper=1, hidden=4)
    p = prior.make(noisy(prior.init(KEY)))
    w, z = np.array([0.7]), np.array([-0.2, 1.1])
    parts = p.then(p.params, jnp.asarray(w, jnp.float32)).components
    each = stats.norm(np.asarray(parts.loc), np.asarray(parts.scale)).logpdf(z).sum(1)
    exact = stats.norm.logpdf(w).sum() + logsumexp(each) - math.log(3)
    return exact, p.log_prob(jnp.asarray([*w, *z], jnp.float32))


# Judges


IDENTITY = np.eye(5)


@row(
    "DCI",
    "completeness of five codes that serve ten factors, each two: 1 - log 2 / log 10 of disentanglement",
    1e-6,
)
def dci_of_two_factors_each() -> tuple[float, float]:
    return 1 - math.log(2) / math.log(10), evaluation.disentanglement.disentanglement(
        np.hstack([IDENTITY, IDENTITY])
    )


@row("modularity", "of five codes that serve ten factors, each two: 8/9", 1e-6)
def modularity_of_two_factors_each() -> tuple[float, float]:
    return 8 / 9, evaluation.disentanglement.modularity(np.hstack([IDENTITY, IDENTITY]))


@row("MIG", "of codes that are the factors: 1", 1e-6)
def mig_of_identity() -> tuple[float, float]:
    factors = np.stack(np.meshgrid(*[np.arange(5)] * 4), -1).reshape(-1, 4)
    return 1.0, evaluation.disentanglement.mig(factors.astype(float), factors)


@row(
    "Fréchet distance",
    "of N(0, I) and samples that are moved by m and scaled by 2: |m|^2 + d",
    1e-6,
)
def frechet_of_affine() -> tuple[float, float]:
    x = np.asarray(codes_with_covariance(np.eye(4)), np.float64)
    centred = x - x.mean(0)
    exact = 4 * 9 + np.square(centred).sum() / (len(x) - 1)
    return exact, evaluation.samples.frechet(centred, 2 * centred + 3)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared."""

    rows: tuple[str, ...] = ()
    """Members; none is all."""
    json: Path | None = None
    """File for everything that was found."""


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """What members of the family must give exactly, beside what they give."""
    cells.check_place(options.json)
    for name in options.rows:
        if name not in ROWS:
            raise ValueError(f"no row {name!r}; there are {', '.join(ROWS)}")
    found, out = {}, []
    print(f"{'member':26s} {'exact':>11s} {'obtained':>11s} {'tolerance':>9s}  what")
    for name in options.rows or ROWS:
        own, (exact, obtained) = ROWS[name], ROWS[name].compare()
        found[name] = {
            "exact": exact,
            "obtained": obtained,
            "tolerance": own.tolerance,
            "what": own.what,
        }
        within = abs(obtained - exact) <= own.tolerance
        out += [] if within else [name]
        print(
            f"{name:26s} {exact:11.6g} {obtained:11.6g} {own.tolerance:9.2g}  {own.what}{'' if within else '  OUT'}",
            flush=True,
        )
    cells.save(options.json, dataclasses.asdict(options), found)
    if out:
        commands.fail(f"out of their tolerance: {', '.join(out)}")


if __name__ == "__main__":
    commands.command(main)
