"""Densities fitted to encodings, beside scikit-learn and optima in closed form."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.mixture import GaussianMixture

from jaxvae import fitted, training
from jaxvae.distributions import Mixture, Normal
from jaxvae.priors import Prior, standard_normal

KEY = jax.random.key(0)
WEIGHTS = np.array([0.5, 0.3, 0.2])
CENTRES = np.array([[0.0, 0.0], [4.0, 1.0], [-2.0, 5.0]])
LOWER = np.array([[[1.0, 0.0], [0.6, 0.5]], [[0.4, 0.0], [0.0, 0.9]], [[0.7, 0.0], [-0.5, 0.3]]])


@jax.jit
def log_prob(distribution: Any, z: Any) -> Any:
    return distribution.log_prob(jnp.asarray(z, jnp.float32))


def drawn(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    which = rng.choice(3, count, p=WEIGHTS)
    return CENTRES[which] + np.einsum("nij,nj->ni", LOWER[which], rng.normal(size=(count, 2)))


def true_log_density(z: np.ndarray) -> np.ndarray:
    parts = [
        w * stats.multivariate_normal(m, l @ l.T).pdf(z)
        for w, m, l in zip(WEIGHTS, CENTRES, LOWER, strict=True)
    ]
    return np.log(sum(parts))


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return fitted.gaussian_mixture(drawn(4000, 0), 3, KEY)


def test_a_known_mixture_is_recovered(mixture: Mixture) -> None:
    fresh = drawn(4000, 1)
    found = np.asarray(log_prob(mixture, fresh), np.float64)
    gap = true_log_density(fresh) - found
    assert gap.mean() + 3 * gap.std() / np.sqrt(4000) >= 0 and gap.mean() < 0.01
    order = np.argsort(-np.asarray(mixture.logits))
    np.testing.assert_allclose(
        np.asarray(jax.nn.softmax(mixture.logits))[order], WEIGHTS, atol=0.03
    )
    np.testing.assert_allclose(np.asarray(mixture.components.loc)[order], CENTRES, atol=0.12)
    tril = np.asarray(mixture.components.scale_tril)[order]
    np.testing.assert_allclose(tril @ tril.mT, LOWER @ LOWER.mT, atol=0.12)


def test_the_log_likelihood_is_that_of_scikit_learn(mixture: Mixture) -> None:
    z = drawn(4000, 0)
    likeliest = GaussianMixture(3, n_init=3, tol=1e-6, random_state=7).fit(z)
    found = np.asarray(log_prob(mixture, z), np.float64)
    assert found.mean() == pytest.approx(likeliest.score(z), abs=1e-3)


def test_samples_of_the_mixture_have_its_moments(mixture: Mixture) -> None:
    draws = np.asarray(jax.jit(lambda d: d.sample(KEY, (20_000,)))(mixture))
    np.testing.assert_allclose(draws.mean(0), WEIGHTS @ CENTRES, atol=0.1)
    assert true_log_density(draws).mean() == pytest.approx(
        true_log_density(drawn(20_000, 2)).mean(), abs=0.05
    )


def test_one_component_is_the_gaussian_of_maximal_likelihood() -> None:
    z = drawn(300, 3)
    mixture = fitted.gaussian_mixture(z, 1, KEY)
    np.testing.assert_allclose(mixture.components.loc[0], z.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        mixture.components.scale_tril[0], np.linalg.cholesky(np.cov(z.T, bias=True)), rtol=1e-4
    )


def test_the_same_key_fits_the_same_mixture() -> None:
    z = np.random.default_rng(0).uniform(size=(200, 2))
    logits = [
        fitted.gaussian_mixture(z, 6, jax.random.key(seed), tolerance=0.01).logits
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(np.sort(logits[0]) - np.sort(logits[2])).max() > 1e-3


GAUSSIAN = Prior(
    lambda key: {"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)},
    lambda params: Normal(params["loc"], jnp.exp(params["log_scale"])),
)
COMPONENTS = Prior(
    lambda key: {
        "logits": jnp.zeros(3),
        "loc": jnp.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]),
        "raw": jnp.zeros((3, 2)),
    },
    lambda params: Mixture(params["logits"], Normal(params["loc"], jnp.exp(params["raw"]))),
)


def test_the_optimum_is_that_of_the_encodings_that_were_not_held_out() -> None:
    """Of twenty rows, two are held out: the mean tells which, and their log-likelihood is theirs
    alone.
    """
    z = np.random.default_rng(2).normal(size=(20, 2)) * 3
    found = fitted.density_by_gradient(GAUSSIAN, z, KEY, 1000, 0.1)
    misses = {
        (i, j): np.abs(np.delete(z, [i, j], 0).mean(0) - np.asarray(found.params["loc"])).max()
        for i in range(20)
        for j in range(i)
    }
    rest = min(misses, key=misses.__getitem__)
    own = np.delete(z, rest, 0)
    assert misses[rest] < 1e-3 < sorted(misses.values())[1]
    log_density = lambda x: stats.norm.logpdf(x, own.mean(0), own.std(0)).sum(1)
    assert found.log_likelihood == pytest.approx(log_density(own).mean(), abs=1e-4)
    assert found.held_out == pytest.approx(log_density(z[list(rest)]).mean(), abs=0.02)
    assert found.standard_error == pytest.approx(stats.sem(log_density(z[list(rest)])), abs=0.02)


def test_a_learned_mixture_comes_near_expectation_maximisation() -> None:
    z = drawn(4000, 0)
    likeliest = GaussianMixture(3, n_init=3, covariance_type="diag", random_state=0).fit(z).score(z)
    found = fitted.density_by_gradient(COMPONENTS, z, KEY, 500, 0.05, batch_size=128)
    assert found.log_likelihood == pytest.approx(likeliest, abs=0.03)
    assert abs(found.held_out - likeliest) < 5 * found.standard_error
    np.testing.assert_array_equal(found.distribution.components.loc, found.params["loc"])


def test_encodings_may_have_any_shape() -> None:
    prior = Prior(lambda key: jnp.zeros((2, 3)), lambda params: Normal(params, jnp.ones((2, 3))))
    z = np.random.default_rng(0).normal(2.0, 1.0, (100, 2, 3))
    found = fitted.density_by_gradient(prior, z, KEY, 200, 0.1)
    np.testing.assert_allclose(found.params, z.mean(0), atol=0.25)


@pytest.mark.slow
def test_a_second_stage_draws_what_it_was_fitted_to() -> None:
    """Three clusters in the plane: their shares, and little between them, where a Gaussian would
    put draws.
    """
    draws = fitted.second_stage(drawn(4000, 0), KEY, 1500, hidden=(64, 64)).sample(KEY, (50, 100))
    assert draws.shape == (50, 100, 2)
    flat = np.asarray(draws).reshape(-1, 2)
    nearest = np.linalg.norm(flat[:, None] - CENTRES, axis=-1).argmin(1)
    np.testing.assert_allclose(np.bincount(nearest, minlength=3) / len(flat), WEIGHTS, atol=0.06)
    of_gaussian = np.random.default_rng(0).multivariate_normal(flat.mean(0), np.cov(flat.T), 5000)
    assert true_log_density(flat).mean() > true_log_density(of_gaussian).mean() + 0.5


FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "too_few_rows": (
        lambda: fitted.gaussian_mixture(np.zeros((2, 3)), 3, KEY),
        "3 components need",
    ),
    "no_components": (
        lambda: fitted.gaussian_mixture(np.zeros((2, 3)), 0, KEY),
        "0 components need",
    ),
    "images": (
        lambda: fitted.gaussian_mixture(np.zeros((9, 3, 3)), 2, KEY),
        r"the shape was \(9, 3, 3\)",
    ),
    "not_finite": (
        lambda: fitted.gaussian_mixture(np.full((9, 3), np.nan), 2, KEY),
        "finite numbers",
    ),
    "not_finite_gradient": (
        lambda: fitted.density_by_gradient(GAUSSIAN, np.full((9, 2), np.inf), KEY),
        "finite numbers",
    ),
    "no_parameters": (
        lambda: fitted.density_by_gradient(standard_normal(2), np.zeros((9, 2)), KEY),
        "no parameters",
    ),
    "images of a second stage": (
        lambda: fitted.second_stage(np.zeros((9, 3, 3)), KEY),
        r"\(9, 3, 3\)",
    ),
    "one_row": (
        lambda: fitted.density_by_gradient(GAUSSIAN, np.zeros((1, 2)), KEY),
        "cannot be cut",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_refused(fault: str) -> None:
    call, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_fit_that_diverges_says_so() -> None:
    prior = GAUSSIAN._replace(
        make=lambda params: Normal(params["loc"], params["log_scale"])
    )  # a scale of zero
    with pytest.raises(training.NotFiniteError, match="loss"):
        fitted.density_by_gradient(prior, np.ones((20, 2)), KEY, 20)


def test_without_scikit_learn_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *args: Any, **settings: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return load(name, *args, **settings)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install jaxvae\[train\]"):
        fitted.gaussian_mixture(np.zeros((9, 2)), 2, KEY)
