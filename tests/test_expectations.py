"""Gradient estimators against enumeration, closed forms and quadrature; every row of the table is held to its word."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxvae import expectations
from jaxvae.distributions import Bernoulli, Categorical, Normal

DRAWS = 2**17
TARGET = jnp.array([0.6, 0.51, 0.48])
LOGITS = jnp.array([0.4, -1.3, 2.2])


def curved(z: jax.Array) -> jax.Array:
    """Of all latents together, and not a sum over them."""
    return jnp.sum((z - TARGET) ** 4) + 2.0 * jnp.prod(z + 0.5) + z[0] * z[1]


def of_class(z: jax.Array) -> jax.Array:
    return jnp.sum((z - 0.7) ** 2) + (z[0] == z[1]) * 1.5


PROBLEMS: dict[str, tuple[Callable, Any, Callable]] = {
    "continuous": (lambda phi: Normal(phi, jnp.exp(phi - 1)), jnp.array([0.3, -0.8, 1.1]), lambda z: (z**2).sum()),
    "binary": (Bernoulli, LOGITS, curved),
    "categorical": (Categorical, jnp.array([[0.3, -0.5, 1.0], [0.0, 0.4, -2.0]]), of_class),
}
ROWS = [(name, latents) for name, own in expectations.ESTIMATORS.items() for latents in sorted(own.latents)]


def draws(function: Callable, make: Callable, phi: jax.Array, f: Callable, count: int = DRAWS) -> tuple[Any, Any]:
    """Values [N] and gradients [N, *phi] of an estimator."""
    estimate = lambda key, phi: function(key, make(phi), f)
    keys = jax.random.split(jax.random.key(0), count)
    return jax.jit(lambda phi: jax.lax.map(lambda k: jax.value_and_grad(estimate, 1)(k, phi), keys, batch_size=4096))(
        phi
    )


def exact(problem: str) -> tuple[Any, Any]:
    """Value and gradient, in closed form or by enumeration that is written here once more."""
    _, phi, f = PROBLEMS[problem]
    if problem == "continuous":
        return jax.value_and_grad(lambda phi: (phi**2 + jnp.exp(2 * phi - 2)).sum())(phi)
    classes = 2 if problem == "binary" else phi.shape[-1]
    states = np.stack(np.meshgrid(*[np.arange(classes)] * len(phi), indexing="ij"), -1).reshape(-1, len(phi))

    def total(phi: jax.Array) -> jax.Array:
        if problem == "binary":
            p = jnp.prod(jnp.where(states == 1, jax.nn.sigmoid(phi), jax.nn.sigmoid(-phi)), -1)
        else:
            p = jnp.prod(jax.nn.softmax(phi)[jnp.arange(len(phi)), states], -1)
        return jnp.sum(p * jax.vmap(f)(jnp.asarray(states, float if problem == "binary" else int)))

    return jax.value_and_grad(total)(phi)


def standard_scores(samples: Any, mean: Any) -> np.ndarray:
    """Of the means over draws; exact ones may differ by rounding."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(0) / np.sqrt(len(samples))
    return (samples.mean(0) - np.asarray(mean)) / np.maximum(error, 1e-6 * (1 + np.abs(mean)))


@pytest.mark.parametrize(("name", "latents"), ROWS)
def test_an_estimator_is_unbiased_where_it_says_so_and_biased_where_it_does_not(name: str, latents: str) -> None:
    make, phi, f = PROBLEMS[latents]
    estimator = expectations.ESTIMATORS[name]
    values, gradients = draws(estimator.function, make, phi, f, 2 if name == "enumeration" else DRAWS)
    value, gradient = exact(latents)
    scores = standard_scores(gradients, gradient)
    bound = stats.norm.isf((1 - (1 - 1e-4) ** (1 / scores.size)) / 2)  # Sidak, at 1e-4 for a row
    assert (np.abs(scores).max() < bound) == estimator.unbiased, scores
    if name != "concrete":  # whose value is that of the relaxed f
        assert abs(standard_scores(values, value)) < 4


def moments(name: str, logit: float, f: Callable, **settings: Any) -> tuple[float, float]:
    """Mean and variance over draws of the gradient in one logit."""
    function = functools.partial(expectations.ESTIMATORS[name].function, **settings)
    gradients = np.asarray(draws(function, Bernoulli, jnp.array([logit]), lambda z: f(z[0]))[1], np.float64)
    return float(gradients.mean()), float(gradients.var())


def variances(p: float, f0: float, f1: float) -> dict[str, float]:
    """One Bernoulli, in closed form: Yin & Zhou 2018, Dong et al. 2020, and direct integration."""
    v, d, q = p * (1 - p), f1 - f0, min(p, 1 - p)
    loo = lambda k: d**2 * (v * (1 - 3 * v) / k - v**2 * (k - 3) / (k * (k - 1)))
    return {
        "score_function": v * ((1 - p) * f1 + p * f0) ** 2,
        "rloo 2": loo(2),
        "rloo 5": loo(5),
        "arm": d**2 * ((1 - (1 - 2 * q) ** 3) / 12 - q**2 * (1 - q) ** 2),
        "disarm": d**2 * q * (1 - q) ** 2 * (1 - 2 * q) / 2,
        "muprop": v * ((1 - p) ** 3 + p**3) ** 2,
        "local_expectation": 0.0,
        "enumeration": 0.0,
    }


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("estimator", variances(0.5, 0.0, 1.0))
def test_variances_are_the_closed_forms(estimator: str, p: float) -> None:
    """On (b - 0.45)^2, the toy problem of Tucker et al. 2017 (arXiv:1703.07370)."""
    name, *samples = estimator.split()
    settings = {"num_samples": int(samples[0])} if samples else {}
    got = moments(name, special.logit(p), lambda b: (b - 0.45) ** 2, **settings)[1]
    expected = variances(p, 0.45**2, 0.55**2)[estimator]
    assert got == pytest.approx(expected, rel=0.05, abs=1e-9)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_biased_estimators_have_the_mean_that_theory_gives(p: float) -> None:
    """Straight-through weighs the slopes at its ends by their probabilities, ReinMax equally (arXiv:2304.08612)."""
    f, slopes = lambda b: (b - 0.45) ** 4, [4 * (b - 0.45) ** 3 for b in (0, 1)]
    v, logit = p * (1 - p), special.logit(p)
    expected = [
        ("straight_through", f, v * (p * slopes[1] + (1 - p) * slopes[0])),
        ("reinmax", f, v * sum(slopes) / 2),
        ("reinmax", lambda b: (b - 0.45) ** 2, v * (0.55**2 - 0.45**2)),
    ]
    for name, function, at in expected:
        mean, variance = moments(name, logit, function)
        assert mean == pytest.approx(at, abs=4 * np.sqrt(variance / DRAWS) + 1e-6)


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_relaxed_estimators_have_the_mean_and_variance_of_quadrature(p: float) -> None:
    """Over u in (0, 1), with relaxed = s((logit p + logit u) / temperature)."""
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    relaxed = special.expit((special.logit(p) + special.logit(u)) / 0.5)
    hard = (relaxed > 0.5).astype(float)
    for name, at in (("concrete", relaxed), ("straight_through_gumbel", hard)):
        gradient = 2 * (at - 0.45) * relaxed * (1 - relaxed) / 0.5
        mean, variance = moments(name, special.logit(p), lambda b: (b - 0.45) ** 2)
        assert mean == pytest.approx(gradient.mean(), abs=5 * gradient.std() / np.sqrt(DRAWS))
        assert variance == pytest.approx(gradient.var(), rel=0.05)


@pytest.mark.parametrize("name", ["rloo", "arm", "disarm", "local_expectation", "muprop"])
def test_a_constant_added_to_f_changes_no_gradient(name: str) -> None:
    function = expectations.ESTIMATORS[name].function
    plain, moved = (draws(function, Bernoulli, LOGITS, f, 64)[1] for f in (curved, lambda z: curved(z) + 8.0))
    np.testing.assert_allclose(plain, moved, atol=2e-5)


@pytest.mark.parametrize(("name", "latents"), ROWS)
def test_parameters_of_f_get_the_gradient_of_f_at_the_draws(name: str, latents: str) -> None:
    make, phi, f = PROBLEMS[latents]
    function = expectations.ESTIMATORS[name].function
    scaled = lambda scale: function(jax.random.key(1), make(phi), lambda z: scale * f(z))
    value, slope = jax.value_and_grad(scaled)(1.0)
    assert float(slope) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize(("name", "latents"), ROWS)
def test_an_estimator_costs_what_it_says(name: str, latents: str) -> None:
    make, phi, _ = PROBLEMS[latents]
    estimator, evaluations, slopes = expectations.ESTIMATORS[name], list[int](), list[int]()

    @jax.custom_jvp
    def f(z: jax.Array) -> jax.Array:
        jax.debug.callback(lambda z: evaluations.append(1), z)
        return (z**2).sum().astype(float)

    @f.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple:
        jax.debug.callback(lambda z: slopes.append(1), primals[0])
        return f(*primals), (2 * primals[0] * tangents[0]).sum()

    many = {"num_samples": 5} if name in ("score_function", "rloo", "muprop", "pathwise") else {}
    jax.grad(lambda phi: estimator.function(jax.random.key(0), make(phi), f, **many))(phi)
    jax.effects_barrier()
    sizes = 5, len(phi), 3 if latents == "categorical" else 2
    assert (len(evaluations), len(slopes)) == (estimator.evaluations(*sizes), estimator.slopes(*sizes))


@pytest.mark.parametrize("logit", [-60.0, 60.0])
@pytest.mark.parametrize(
    "name", [n for n, own in expectations.ESTIMATORS.items() if "binary" in own.latents and n != "ar"]
)
def test_saturated_logits_have_no_gradient(name: str, logit: float) -> None:
    """Nor noise in it, but for AR's, whose noise does not depend on the logits."""
    gradients = draws(expectations.ESTIMATORS[name].function, Bernoulli, jnp.full(3, logit), curved, 64)[1]
    np.testing.assert_allclose(gradients, 0.0, atol=1e-6)


def test_what_cannot_work_is_answered_in_a_sentence() -> None:
    q, key = Bernoulli(jnp.zeros(17)), jax.random.key(0)
    with pytest.raises(ValueError, match=r"at most 65536 states; q has 2\^17"):
        expectations.enumeration(key, q, jnp.sum)
    with pytest.raises(ValueError, match="at least 2 samples"):
        expectations.rloo(key, q, jnp.sum, num_samples=1)
