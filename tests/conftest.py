"""Eight simulated devices for all tests, and the models that several of them share."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# What one test, process or script has compiled serves the others; set before jax is imported.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxvae-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import datasets, likelihoods, models, networks, posteriors, priors

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)  # but for tests marked optimized, below
sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))


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
            "encoder": {"Dense_0": {"kernel": kernel, "bias": bias}},
            "posterior": {},
            "decoder": {"Dense_0": {"kernel": w.T, "bias": self.mean}},
            "likelihood": {"log_scale": 0.5 * np.log(self.s2)},
            "prior": {},
        }
        return vae, jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """The 1,797 digits divided by 16, [1797, 64]: the data of the exact results."""
    from sklearn.datasets import load_digits

    return (load_digits().data / 16).astype(np.float32)
