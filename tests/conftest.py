"""Eight simulated devices for all tests, and the models that several of them share."""

from __future__ import annotations

import atexit
import collections
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# What one test, process or script has compiled serves the others; set before jax is imported.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxvae-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import datasets, distributions, likelihoods, models, networks, posteriors, priors
from jaxvae.contracts import pytree, static

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)  # but for tests marked optimized, below


# Files whose tables compile a program for every row. The default run takes every tenth row of a
# table, ``pytest -m slow`` the others. Refusals compile nothing, so all of them always run.
COMPILING = {
    *("test_bounds.py", "test_checkpoints.py", "test_code_priors.py", "test_convolutions.py"),
    *("test_counts.py",),
    *("test_distributions.py", "test_divergences.py", "test_evaluation.py", "test_expectations.py"),
    *("test_families.py", "test_figures.py", "test_flows.py", "test_gradient_variance.py"),
    *("test_hierarchy.py", "test_hybrids.py", "test_lowering.py", "test_measurements.py"),
    *("test_experts.py", "test_labels.py", "test_modalities.py", "test_zero_shot.py"),
    *("test_metrics.py", "test_models.py", "test_networks.py", "test_objectives.py"),
    *("test_missing.py", "test_placements.py", "test_quantizers.py"),
    *("test_sample_divergences.py", "test_spherical.py", "test_text.py"),
    *("test_training.py", "test_truncated.py"),
}


def pytest_configure(config: pytest.Config) -> None:
    """The default run takes XLA's older code generator, which compiles in two thirds of the time.

    ``pytest -m slow`` and ``XLA_FLAGS= pytest`` take the newer one, as users do. Later releases of
    XLA have no other.
    """
    if config.option.markexpr == "not slow" and version("jaxlib").startswith("0.10."):
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the other rows of those tables slow."""
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    for item in items:
        key = item.path.name, getattr(item, "originalname", item.name)
        if key[0] not in COMPILING or "refused" in key[1] or item.get_closest_marker("slow"):
            continue
        if seen[key] % 10:
            item.add_marker(pytest.mark.slow)
        seen[key] += 1


def pytest_collection_finish() -> None:
    """What was imported is not garbage; without this a twentieth of the time goes to looking."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True)
def optimizations(request: pytest.FixtureRequest) -> Iterator[None]:
    """XLA's, for tests marked ``optimized``. Other programs run once, and compile in half the
    time without.
    """
    if not request.node.get_closest_marker("optimized"):
        yield
        return
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the digits are prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    datasets.load("digits", folder)
    return folder


@pytest.fixture(scope="session")
def digits(data_dir: Path) -> datasets.Dataset:
    """scikit-learn's digits, as the library loads them."""
    return datasets.load("digits", data_dir)


@pytest.fixture(scope="session")
def small_vae() -> models.VAE:
    """A Bernoulli VAE of the digits, 64-16-2-16-64."""
    posterior = posteriors.normal(2)
    encoder, decoder = networks.mlp((16,), posterior.size), networks.mlp((16,), (8, 8, 1))
    return models.vae(
        encoder, decoder, posterior, likelihoods.bernoulli(), priors.standard_normal(2)
    )


class Linear:
    """Probabilistic PCA of x [N, D] in closed form (Tipping & Bishop 1999): p(x|z) = N(W z + mu,
    s^2 I).
    """

    def __init__(self, x: np.ndarray, latent: int):
        d = x.shape[1]
        values, vectors = np.linalg.eigh(np.cov(x.T.astype(np.float64), bias=True))
        values, vectors = values[::-1], vectors[:, ::-1]
        self.mean, self.s2, self.d, self.q = (
            x.mean(0, dtype=np.float64),
            values[latent:].mean(),
            d,
            latent,
        )
        self.w = vectors[:, :latent] * np.sqrt(values[:latent] - self.s2)
        top = np.log(values[:latent]).sum() + (d - latent) * np.log(self.s2)
        self.max_log_likelihood = -0.5 * (d * np.log(2 * np.pi) + top + d)

    def log_likelihood(
        self, x: np.ndarray, w: np.ndarray, mean: np.ndarray, s2: float
    ) -> np.ndarray:
        """log N(x; mean, W W^T + s2 I) of every row."""
        from scipy.stats import multivariate_normal

        return multivariate_normal(mean, w @ w.T + s2 * np.eye(self.d)).logpdf(x)

    def vae(self, family: str, w: np.ndarray) -> tuple[models.VAE, dict]:
        """A linear VAE whose decoder has weights W and whose posterior is the optimum of its
        family.
        """
        posterior = posteriors.POSTERIORS[family](self.q)
        vae = models.vae(
            networks.mlp((), posterior.size),
            networks.mlp((), self.d),
            posterior,
            likelihoods.normal_learned(),
            priors.standard_normal(self.q),
        )
        m = w.T @ w + self.s2 * np.eye(self.q)
        project = np.linalg.solve(m, w.T)  # [q, D]
        if family == "normal":
            rest = 0.5 * np.log(self.s2 / np.diag(m))
        else:
            lower = np.linalg.cholesky(self.s2 * np.linalg.inv(m))
            scale = np.diag(lower)
            rest = np.concatenate(
                [np.log(scale), (lower / scale[:, None])[np.tril_indices(self.q, -1)]]
            )
        kernel = np.concatenate([project, np.zeros((len(rest), self.d))]).T
        bias = np.concatenate([-project @ self.mean, rest])
        params = {
            "encoder": {"output": {"kernel": kernel, "bias": bias}},
            "posterior": {},
            "decoder": {"output": {"kernel": w.T, "bias": self.mean}},
            "likelihood": {"log_scale": 0.5 * np.log(self.s2)},
            "prior": {},
        }
        return vae, jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """The 1,797 digits divided by 16, [1797, 64]: the data of the exact results."""
    from sklearn.datasets import load_digits

    return (load_digits().data / 16).astype(np.float32)


@pytree
class TwoLevels:
    """A density of z = (z2, z1) and of no event shape: p(a) N(b; weights a, scale^2)."""

    first: Any  # p(a): of z2 in a prior, of z1 in a posterior
    weights: jax.Array
    scale: jax.Array
    upper_first: bool = static()

    def _ordered(self, pair: tuple) -> tuple:
        return tuple(pair) if self.upper_first else tuple(pair)[::-1]

    def _then(self, a: jax.Array) -> distributions.Normal:
        return distributions.Normal(self.weights @ a, self.scale)

    def noise(self, key: jax.Array, shape: tuple[int, ...] = ()) -> tuple:
        key_a, key_b = jax.random.split(key)
        b = jax.random.normal(key_b, (*shape, len(self.weights)))
        return self._ordered((self.first.noise(key_a, shape), b))

    def from_noise(self, noise: tuple) -> tuple:
        noise_a, noise_b = self._ordered(noise)
        a = self.first.from_noise(noise_a)
        return self._ordered((a, self._then(a).from_noise(noise_b)))

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> tuple:
        return distributions.reparameterize(self, self.noise(key, shape))

    def log_prob(self, z: tuple) -> jax.Array:
        a, b = self._ordered(z)
        return self.first.log_prob(a) + self._then(a).log_prob(b)


# p(z2) = N(0, 1), p(z1|z2) = N(A z2, 0.7^2 I), p(x|z1) = N(W z1 + b, 0.6^2 I).
TWO_LEVEL_A = np.array([[0.9], [-0.5]])
TWO_LEVEL_W = np.array([[0.8, -0.3], [0.1, 0.9], [-0.5, 0.4]])
TWO_LEVEL_B = np.array([0.2, -0.1, 0.5])


@pytest.fixture(scope="session")
def two_level_vae() -> models.VAE:
    """A linear Gaussian VAE of x [3], z2 [1] and z1 [2], whose ``init`` is the exact posterior."""
    a, w, b = TWO_LEVEL_A, TWO_LEVEL_W, TWO_LEVEL_B
    covariance = np.linalg.inv(np.linalg.inv(a @ a.T + 0.49 * np.eye(2)) + w.T @ w / 0.36)
    upper = 1 / (1 + (a**2).sum() / 0.49)  # the variance of z2 given z1
    params = {
        "encoder": covariance @ w.T / 0.36,
        "tril": np.linalg.cholesky(covariance),
        "upper": upper * a.T / 0.49,
        "upper_scale": np.sqrt([upper]),
        "prior": a,
        "decoder": w,
        "bias": b,
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)

    def encode(params: dict, x: jax.Array) -> TwoLevels:
        loc = params["encoder"] @ (x - params["bias"])
        first = distributions.MultivariateNormal(loc, params["tril"])
        return TwoLevels(first, params["upper"], params["upper_scale"], upper_first=False)

    def decode(params: dict, z: tuple) -> distributions.Normal:
        return distributions.Normal(params["decoder"] @ z[1] + params["bias"], jnp.full(3, 0.6))

    def prior(params: dict) -> TwoLevels:
        first = distributions.Normal(jnp.zeros(1), jnp.ones(1))
        return TwoLevels(first, params["prior"], jnp.full(2, 0.7), upper_first=True)

    return models.VAE(lambda key, x: params, encode, decode, prior)


@pytest.fixture(scope="session")
def two_level_evidence() -> Callable[[np.ndarray], np.ndarray]:
    """log p(x) of ``two_level_vae`` in closed form, for x [..., 3]."""
    from scipy.stats import multivariate_normal

    a, w = TWO_LEVEL_A, TWO_LEVEL_W
    covariance = w @ (a @ a.T + 0.49 * np.eye(2)) @ w.T + 0.36 * np.eye(3)
    return multivariate_normal(TWO_LEVEL_B, covariance).logpdf
