"""Linear VAEs against probabilistic PCA, whose likelihood and posterior are known (Lucas et al.,
arXiv:1911.02469).
"""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from conftest import Linear
from scipy.stats import ortho_group
from sklearn.decomposition import PCA

from jaxvae import bounds, evaluation, likelihoods, models, networks, posteriors, priors, training

PUBLISHED = {2: 0.005707, 10: 17.451947, 32: 35.247022}  # maximum mean log-likelihood, nats


@pytest.mark.parametrize(("latent", "maximum"), list(PUBLISHED.items()))
def test_the_closed_form_is_the_published_one_and_scikit_learns(
    images: np.ndarray, latent: int, maximum: float
) -> None:
    linear = Linear(images, latent)
    assert linear.max_log_likelihood == pytest.approx(maximum, abs=1e-4)
    assert PCA(latent).fit(images).score(images) == pytest.approx(maximum, abs=1e-3)


@pytest.mark.slow
@pytest.mark.optimized
def test_training_reaches_the_maximum_likelihood_and_a_tight_elbo(images: np.ndarray) -> None:
    latent, steps = 10, 20_000
    linear = Linear(images, latent)
    posterior = posteriors.normal(latent)
    vae = models.vae(
        networks.mlp((), posterior.size),
        networks.mlp((), 64),
        posterior,
        likelihoods.normal_learned(),
        priors.standard_normal(latent),
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    algorithm = training.gradient_descent(
        vae.init, training.batch_mean(models.negative_elbo(vae)), optimizer
    )
    state = training.fit(algorithm, images, num_steps=steps, batch_size=200)
    params = training.trained(state)
    affine, log_scale = params["decoder"]["output"], params["likelihood"]["log_scale"]
    w, mean = np.asarray(affine["kernel"], np.float64).T, np.asarray(affine["bias"], np.float64)
    exact = linear.log_likelihood(images, w, mean, np.exp(2 * float(log_scale))).mean()
    assert exact == pytest.approx(linear.max_log_likelihood, abs=1e-2)
    assert np.exp(2 * float(log_scale)) == pytest.approx(linear.s2, rel=1e-2)
    elbo = evaluation.evaluate_elbo(vae, params, jax.random.key(1), images, num_samples=200)
    assert elbo.elbo == pytest.approx(exact, abs=1e-2)


def rotated(linear: Linear) -> np.ndarray:
    """W R with a rotation R of the latent space: the same likelihood, another posterior
    covariance.
    """
    return linear.w @ ortho_group.rvs(linear.q, random_state=0)


@pytest.mark.parametrize("rotate", [False, True])
def test_a_full_covariance_posterior_is_tight_whatever_the_rotation(
    images: np.ndarray, rotate: bool
) -> None:
    linear = Linear(images, 10)
    vae, params = linear.vae("multivariate_normal", rotated(linear) if rotate else linear.w)

    def weights(x: jax.Array) -> jax.Array:
        log_joint = lambda z: vae.decode(params, z).log_prob(x) + vae.prior(params).log_prob(z)
        return bounds.log_weights(jax.random.key(0), vae.encode(params, x), log_joint, 5)

    log_w = np.asarray(
        jax.jit(jax.vmap(weights))(images)
    )  # [N, K], constant in K at the exact posterior
    exact = linear.log_likelihood(images, linear.w, linear.mean, linear.s2)
    np.testing.assert_allclose(log_w, np.tile(exact[:, None], 5), atol=2e-3)
    assert log_w.mean() == pytest.approx(linear.max_log_likelihood, abs=1e-4)


def test_a_diagonal_posterior_loses_the_closed_form_gap_under_rotation(images: np.ndarray) -> None:
    linear = Linear(images, 10)
    w = rotated(linear)
    m = w.T @ w + linear.s2 * np.eye(10)
    gap = 0.5 * (np.log(np.diag(m)).sum() - np.linalg.slogdet(m)[1])
    vae, params = linear.vae("normal", w)
    samples = 400
    one = lambda key, x: models.elbo_terms(vae, params, key, x, samples)
    terms = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), len(images)), images)
    elbo = np.asarray(terms["reconstruction"] - terms["kl"], np.float64)
    exact = linear.log_likelihood(images, linear.w, linear.mean, linear.s2)
    lost = exact - elbo  # the gap is the same for every example; what spreads is the sampling noise
    assert gap > 0.5
    assert abs(lost.mean() - gap) < 4 * lost.std() / np.sqrt(len(images)) < 0.02


@pytest.mark.slow
def test_importance_weighted_bounds_rise_to_the_exact_value(images: np.ndarray) -> None:
    linear, x = Linear(images, 10), images[:400]
    vae, params = linear.vae("normal", rotated(linear))
    exact = linear.log_likelihood(x, linear.w, linear.mean, linear.s2).mean()
    estimate = lambda k: evaluation.estimate_log_likelihood(
        vae, params, jax.random.key(0), x, num_samples=k, chunk=500
    )
    values = [estimate(k).log_likelihood for k in (1, 5, 50, 500, 5000)]
    assert values == sorted(values)
    assert values[-1] < exact + 1e-2
    assert values[-1] == pytest.approx(exact, abs=0.05)
