"""The instrument: exact moments against closed forms, sampled against exact ones, and mutants
that must be seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy import integrate, special, stats

from jaxvae import bounds, expectations, measurements
from jaxvae.distributions import Bernoulli, Normal, OneHotCategorical
from jaxvae.expectations import ESTIMATORS
from jaxvae.measurements import reports

TABLE = ESTIMATORS | bounds.BOUNDS


def arrays(tree: Any, dtype: Any = float) -> Any:
    """The numbers and lists of a tree as arrays."""
    return jax.tree.map(
        lambda a: jnp.asarray(a, dtype), tree, is_leaf=lambda a: isinstance(a, list)
    )


def moments(
    name: str, make: Callable, params: Any, k: int | None = None, **settings: Any
) -> tuple[Any, Any]:
    with jax.enable_x64(True):
        return measurements.exact(TABLE[name], make, arrays(params), k, **arrays(settings))


# One bit and three, in closed form (Yin & Zhou 2018, Dong et al. 2020, and direct integration)


def of_a_bit(p: float, f0: float, f1: float) -> dict[str, float]:
    v, d, q = p * (1 - p), f1 - f0, min(p, 1 - p)
    middle = lambda b: (b + p) / 2 * (1 - (b + p) / 2)
    trapezoid = lambda b: 2 * (b - (1 - d) / 2) * (2 * middle(b) - v / 2)  # t = (1 - d) / 2
    loo = lambda k: d**2 * (v * (1 - 3 * v) / k - v**2 * (k - 3) / (k * (k - 1)))
    return {
        "score_function": v * ((1 - p) * f1 + p * f0) ** 2,
        "rloo": loo(2),
        "rloo 3": loo(3),
        "rloo 5": loo(5),
        "arm": d**2 * ((1 - (1 - 2 * q) ** 3) / 12 - q**2 * (1 - q) ** 2),
        "disarm": d**2 * q * (1 - q) ** 2 * (1 - 2 * q) / 2,
        "muprop": v * ((1 - p) ** 3 + p**3) ** 2,
        "straight_through": 4 * v**3,
        "reinmax": v * (trapezoid(1) - trapezoid(0)) ** 2,
        "local_expectation": 0.0,
        "measure_valued": 0.0,
        "unordered_set_baseline": 0.0,
    }


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("target", [0.45, 0.499])
def test_variances_of_one_bit_are_the_closed_forms(target: float, p: float) -> None:
    """On (b - t)^2, the toy of Tucker et al. 2017 (arXiv:1703.07370) and Grathwohl et al. 2017
    (arXiv:1711.00123).
    """
    make = lambda phi: (Bernoulli(phi), lambda b: jnp.sum((b - target) ** 2))
    for estimator, expected in of_a_bit(p, target**2, (1 - target) ** 2).items():
        name, *samples = estimator.split()
        found = moments(name, make, [special.logit(p)], int(samples[0]) if samples else None)
        assert found.variance[0] == pytest.approx(expected, rel=1e-10, abs=1e-14), estimator


# t, p -> variance of REBAR with temperature 1/2 and scale 1, independent and tied
REBAR = {
    (0.45, 0.5): (0.022653, 0.024067),
    (0.45, 0.1): (0.011836, 0.010608),
    (0.45, 0.9): (0.010247, 0.0070082),
    (0.499, 0.5): (0.02229, 0.023502),
    (0.499, 0.9): (0.010663, 0.0084249),
}
"""Of (b - t)^2, by quadrature with 1000 Gauss-Legendre nodes that was written apart from this
library.
"""


@pytest.mark.parametrize(("target", "p"), REBAR)
def test_rebar_has_the_variance_of_quadrature(target: float, p: float) -> None:
    make = lambda phi: (Bernoulli(phi), lambda b: jnp.sum((b - target) ** 2))
    control = {"log_temperature": np.log(0.5), "scale": 1.0}
    for name, expected in zip(("rebar", "rebar_tied"), REBAR[target, p], strict=True):
        found = moments(name, make, [special.logit(p)], control=control, context=np.zeros(1))
        assert found.variance[0] == pytest.approx(expected, rel=5e-5)
        assert found.mean[0] == pytest.approx(p * (1 - p) * (1 - 2 * target), abs=1e-10)


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_relaxed_estimators_have_the_moments_of_quadrature(p: float) -> None:
    """Over u in (0, 1), with relaxed = s((logit p + logit u) / temperature)."""
    relaxed = lambda u: special.expit((special.logit(p) + special.logit(u)) / 0.5)
    make = lambda phi: (Bernoulli(phi), lambda b: jnp.sum((b - 0.45) ** 2))
    for name, at in (
        ("concrete", relaxed),
        ("straight_through_gumbel", lambda u: float(relaxed(u) > 0.5)),
    ):
        g = lambda u, at=at: 2 * (at(u) - 0.45) * relaxed(u) * (1 - relaxed(u)) / 0.5
        power = lambda n, g=g: integrate.quad(
            lambda u: g(u) ** n, 0, 1, points=[1 - p], epsabs=1e-12
        )[0]
        mean, square = power(1), power(2)
        found = moments(name, make, [special.logit(p)])
        assert found.mean[0] == pytest.approx(mean, abs=1e-10)
        assert found.variance[0] == pytest.approx(square - mean**2, abs=1e-10)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_biased_estimators_have_the_mean_that_theory_gives(p: float) -> None:
    """Straight-through weighs the slopes at its ends by their probabilities, ReinMax equally
    (arXiv:2304.08612).
    """
    slopes, v = [4 * (b - 0.45) ** 3 for b in (0, 1)], p * (1 - p)
    quartic = lambda phi: (Bernoulli(phi), lambda b: jnp.sum((b - 0.45) ** 4))
    square = lambda phi: (Bernoulli(phi), lambda b: jnp.sum((b - 0.45) ** 2))
    for name, make, expected in (
        ("straight_through", quartic, v * (p * slopes[1] + (1 - p) * slopes[0])),
        ("reinmax", quartic, v * sum(slopes) / 2),
        ("reinmax", square, v * 0.1),
    ):
        assert moments(name, make, [special.logit(p)]).mean[0] == pytest.approx(expected, abs=1e-12)


LIU_KOOL = {
    "score_function": ("0.4384", "0.03356"),
    "rloo": ("0.007275", "0.000381"),
    "rloo 4": ("0.001987", "0.0001823"),
    "unordered_set 2": ("0.1879", "0.00121"),
    "unordered_set_baseline": ("0.006112", "2.978e-05"),
    "unordered_set_baseline 4": ("0.001131", "1.055e-06"),
    "unordered_set_baseline 8": ("0", "0"),
}
"""Variances of the gradient in the logit that three bits share, 0 and -4, by enumeration of all
subsets.
"""


@pytest.mark.parametrize("estimator", LIU_KOOL)
def test_three_bits_of_one_logit_have_the_published_variances(estimator: str) -> None:
    """Liu et al. 2019 (arXiv:1810.04777), Kool et al. 2020 (arXiv:2002.06043): figures of
    theirs, to printed digits.
    """
    target = jnp.array([0.6, 0.51, 0.48])
    make = lambda logit: (
        Bernoulli(jnp.broadcast_to(logit, 3)),
        lambda b: jnp.sum((b - target) ** 2),
    )
    name, *samples = estimator.split()
    for logit, expected, gradient in zip(
        (0.0, -4.0), LIU_KOOL[estimator], (-0.045, -0.0031793), strict=True
    ):
        found = moments(name, make, logit, int(samples[0]) if samples else None)
        digits = len(expected.replace("0.", "").lstrip("0").split("e")[0].replace(".", ""))
        assert found.variance == pytest.approx(
            float(expected), rel=0.6 * 10.0 ** (1 - digits), abs=1e-12
        )
        assert found.mean == pytest.approx(gradient, rel=1e-5)


def test_the_variance_of_leave_one_out_follows_from_three_scalars() -> None:
    """Var_j = (E[(f - Ef)^2 s_j^2] - g_j^2) / K + (Var f Var s_j + g_j^2) / (K (K - 1)), for any
    q and f.
    """
    logits = np.array([[0.3, -0.5, 1.0], [0.0, 0.4, -2.0]])
    weights = np.array([[0.2, -1.0, 0.7], [0.4, 0.1, -0.3]])
    f = lambda z: jnp.sum(weights * z) ** 2 + z[0, 0] * z[1, 1]
    each = special.softmax(logits, -1)
    z = np.eye(3)[np.indices((3, 3)).reshape(2, -1).T]  # [9, 2, 3]
    p = np.prod((z * each).sum(-1), -1)
    scores = (z - each).reshape(9, -1)
    with jax.enable_x64(True):
        values = np.asarray(jax.vmap(f)(jnp.asarray(z)))
    centred = values - p @ values
    g = p @ (centred[:, None] * scores)
    for k in (2, 3):
        found = moments("rloo", lambda phi: (OneHotCategorical(phi), f), logits, k).variance.ravel()
        own = (p @ (centred[:, None] * scores) ** 2 - g**2) / k
        own = own + (p @ centred**2 * (p @ scores**2) + g**2) / (k * (k - 1))
        np.testing.assert_allclose(found, own, atol=1e-12)


# Gaussians


@pytest.mark.slow
@pytest.mark.parametrize("a", [0.3, -2.5])
def test_variances_of_a_square_under_a_gaussian_are_the_closed_forms(a: float) -> None:
    """(x - k)^2, x ~ N(k + a, s^2), in the mean and in the scale (Mohamed et al. 2020,
    arXiv:1906.10652).
    """
    s = 0.7
    make = lambda p: (Normal(p["m"], p["s"]), lambda x: jnp.sum((x - 1.0) ** 2))
    expected = {
        "score_function": (
            a**4 / s**2 + 14 * a**2 + 15 * s**2,
            2 * a**4 / s**2 + 60 * a**2 + 74 * s**2,
        ),
        "baseline": (8 * a**2 + 10 * s**2, None),
        "pathwise": (4 * s**2, 4 * a**2 + 8 * s**2),
        "linearized_pathwise": (0.0, 0.0),
        "measure_valued": (4 * a**2 * (4 / np.pi - 1), 4 * a**2 + 4 * s**2),
        "measure_valued_independent": (2 * a**2 * (4 / np.pi - 1) + 4 * s**2 / np.pi, None),
    }
    for name, (in_mean, in_scale) in expected.items():
        settings = {"baseline": a**2 + s**2} if name == "baseline" else {}
        own = "score_function" if name == "baseline" else name
        found = moments(own, make, {"m": [1.0 + a], "s": [s]}, **settings)
        assert found.mean["m"][0] == pytest.approx(2 * a, abs=1e-10)
        assert found.mean["s"][0] == pytest.approx(2 * s, abs=1e-10)
        assert found.variance["m"][0] == pytest.approx(in_mean, abs=1e-10), name
        if in_scale is not None:
            assert found.variance["s"][0] == pytest.approx(in_scale, abs=1e-9), name


@pytest.mark.parametrize("k", [0.3, 1.0, 1.06378, 2.0])
def test_variances_of_a_cosine_are_the_closed_forms(k: float) -> None:
    """The score function is ahead of the pathwise one above k = 1.06378 (mean 1, scale 1)."""
    make = lambda m: (Normal(m, 1.0), lambda x: jnp.sum(jnp.cos(k * x)))
    e, mean = np.exp(-2 * k**2), np.sin(k) ** 2 * np.exp(-(k**2)) * k**2
    expected = {
        "pathwise": k**2 * 0.5 * (1 - e * np.cos(2 * k)) - mean,
        "score_function": 0.5 * (1 + (1 - 4 * k**2) * e * np.cos(2 * k)) - mean,
    }
    found = {name: float(moments(name, make, [1.0]).variance[0]) for name in expected}
    assert found == pytest.approx(expected, abs=1e-10)
    assert k == 1.06378 or (found["score_function"] < found["pathwise"]) == (k > 1.06378)


def linear_gaussian(x: float) -> Callable:
    """z ~ N(mu, 1), x|z ~ N(z, 1), q = N(m, s^2)."""

    def make(p: Any) -> tuple[Normal, Callable]:
        prior, one = Normal(p["mu"], jnp.ones(1)), jnp.ones(1)
        return Normal(
            p["m"], p["s"]
        ), lambda z: prior.log_prob(z) + Normal(z, one).log_prob(jnp.array([x]))

    return make


def prior_apart(joint: Callable) -> Callable:
    """As bounds that take the prior want it: a log_joint without a gradient in it."""

    def make(p: Any) -> tuple:
        q, f = joint({**p, "mu": jax.lax.stop_gradient(p["mu"])})
        return q, f, {"prior": Normal(p["mu"], jnp.ones(1))}

    return make


@pytest.mark.parametrize(("m", "v"), [(0.4, 2 / 3), (-0.7, 0.2), (0.75, 0.5)])
def test_variances_of_the_linear_gaussian_elbo_are_the_closed_forms(m: float, v: float) -> None:
    """Sticking the landing is ahead of the total derivative where s^2 > 1/4, and exact at the
    posterior (0.75, 1/2).
    """
    x, mu, s = 1.3, 0.2, np.sqrt(v)
    r, c = x + mu - 2 * m, 1 / s - 2 * s
    params = {"m": [m], "s": [s], "mu": [mu]}
    with_prior = prior_apart(linear_gaussian(x))
    for name, expected in {
        "elbo": (4 * v, r**2 + 8 * v),
        "stl": (c**2, r**2 + 2 * c**2),
        "elbo_analytic": (v, (x - m) ** 2 + 2 * v),
        "dreg": (c**2, r**2 + 2 * c**2),
    }.items():
        found = moments(
            name, with_prior if name == "elbo_analytic" else linear_gaussian(x), params, 1
        )
        assert [found.mean["m"][0], found.mean["s"][0]] == pytest.approx([r, c], abs=1e-10)
        assert [found.variance["m"][0], found.variance["s"][0]] == pytest.approx(
            expected, abs=1e-10
        ), name


@pytest.mark.slow
def test_signal_to_noise_ratios_go_as_the_roots_of_k() -> None:
    """-1/2 for IWAE, +1/2 for DReG (Rainforth et al. 2018, Tucker et al. 2018), 0.6 from the
    posterior's mean.
    """
    make, sizes, found = linear_gaussian(1.3), [32, 64, 128, 256], {}
    for name in ("iwae", "dreg"):
        own, ratios = bounds.BOUNDS[name], []
        for k in sizes:
            at = lambda m: make({"m": m, "s": jnp.sqrt(jnp.array([2 / 3])), "mu": jnp.array([0.2])})
            of = lambda key, p, x, own=own, k=k, at=at: own(key, *at(p["m"]), k)
            sampled = measurements.measure(
                of, {"m": jnp.array([1.35])}, jax.random.key(0), 2**16, chunk=2**13
            )
            ratios.append(reports.signal(sampled).snr)
        found[name] = np.polyfit(np.log(sizes), np.log(ratios), 1)[0]
    assert found == pytest.approx({"iwae": -0.5, "dreg": 0.5}, abs=0.05)


def two_samples(x: float, mu: float, m: float, s: float) -> tuple[np.ndarray, ...]:
    """Quadrature over two draws of q = N(m, s^2): slopes and weights [2, nodes], probabilities.

    The slopes are d log w/dm along z, the same at a fixed density of q, and d log q/dm.
    """
    nodes, p = np.polynomial.hermite_e.hermegauss(80)
    p = p / p.sum()
    z = m + s * np.stack(np.meshgrid(nodes, nodes)).reshape(2, -1)
    along, of_q = x + mu - 2 * z, (z - m) / s**2
    log_w = -((z - mu) ** 2) / 2 - (x - z) ** 2 / 2 + (z - m) ** 2 / (2 * s**2)
    return along, along + of_q, of_q, special.softmax(log_w, 0), np.outer(p, p).ravel()


@pytest.mark.slow
def test_two_sample_bounds_of_the_linear_gaussian_are_those_of_quadrature() -> None:
    """Of L_2 with NumPy's nodes: pathwise, doubly reparameterized, and wake-phase gradients."""
    x, mu, m, s = 1.3, 0.2, 0.4, np.sqrt(2 / 3)
    along, fixed, of_q, v, p = two_samples(x, mu, m, s)
    iwae, wake = (v * along).sum(0), (v * of_q).sum(0)
    expected = {  # gradients at the nodes, and whether their variance is the estimator's too
        "iwae": (iwae, True),
        "dreg": ((v**2 * fixed).sum(0), True),
        "iwae_stl": ((v * fixed).sum(0), True),
        "vimco": (iwae, False),
        "ovis_gamma0": (iwae, False),
        "ovis_gamma1": (iwae + wake, False),
        "rws": (wake, False),
        "rws_dreg": (wake, False),
    }
    params = {"m": [m], "s": [s], "mu": [mu]}
    for name, (gradients, has_variance) in expected.items():
        found = moments(name, linear_gaussian(x), params, 2)
        mean = p @ gradients
        assert found.mean["m"][0] == pytest.approx(mean, abs=1e-7), name
        if has_variance:
            variance = p @ (gradients - mean) ** 2
            assert found.variance["m"][0] == pytest.approx(variance, rel=1e-6), name


# Bounds of bits, by enumeration of all tuples of samples

TARGET = jnp.array([0.6, 0.51, 0.48])


def of_bits(p: Any) -> tuple[Bernoulli, Callable]:
    joint = lambda z: (
        -3 * jnp.sum((z - TARGET) ** 4) + 2 * jnp.prod(z + 0.5) + z[0] * z[1] * p["joint"]
    )
    return Bernoulli(p["logits"]), joint


BITS = {"logits": [0.4, -1.3, 2.2], "joint": 1.3}


def gradient_of_tuples(of: str, k: int) -> Any:
    """Of the expected ELBO or L_K, differentiated through the probabilities of the tuples."""

    def total(p: Any) -> jax.Array:
        joint = of_bits(p)[1]
        z = jnp.asarray(np.indices((2, 2, 2)).reshape(3, -1).T, float)  # [8, 3]
        tuples = np.indices([8] * k).reshape(k, -1).T
        log_q = jnp.sum(jax.nn.log_sigmoid((2 * z - 1) * p["logits"]), 1)
        log_w = (jax.vmap(joint)(z) - log_q)[tuples]
        values = log_w.mean(-1) if of == "elbo" else logsumexp(log_w, -1) - np.log(k)
        return jnp.sum(jnp.exp(log_q[tuples].sum(-1)) * values)

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(jax.grad(total))(arrays(BITS)))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(
    "name", [name for name, own in bounds.BOUNDS.items() if "binary" in own.latents]
)
def test_a_bound_has_its_gradient_as_exact_mean_where_it_says_so(name: str, k: int) -> None:
    own = bounds.BOUNDS[name]
    if name == "ovis_mc" and k == 3:
        k = 1
    truth = gradient_of_tuples("elbo" if own.estimates == "elbo" else "iwae", k)
    found = moments(name, of_bits, BITS, k)
    unbiased = np.abs(found.mean["logits"] - truth["logits"]).max() < 1e-10
    assert unbiased == own.unbiased
    if own.estimates != "tvo":
        assert found.mean["joint"] == pytest.approx(float(truth["joint"]), abs=1e-10)


@pytest.mark.parametrize(
    "name", [name for name, own in bounds.BOUNDS.items() if own.latents == {"continuous"}]
)
def test_a_reparameterized_bound_has_the_gradient_of_its_value(name: str) -> None:
    """That of the value through everything, or its score form's, whose mean is the same."""
    own, params = bounds.BOUNDS[name], {"m": [0.4], "s": [0.8], "mu": [0.2]}
    same = {
        "dreg": "iwae",
        "gdreg": "iwae",
        "stl": "elbo",
        "rws_dreg": "rws",
        "elbo_analytic": "elbo",
    }
    make = linear_gaussian(1.3)
    found = moments(name, prior_apart(make) if own.takes_prior else make, params, 2)
    if name in same:
        reference = moments(same[name], linear_gaussian(1.3), params, 2)
        for part in params:
            assert found.mean[part][0] == pytest.approx(reference.mean[part][0], abs=1e-6)
        assert own.unbiased == (name != "rws_dreg")
    elif name == "iwae_stl":
        parts = [
            moments(part, linear_gaussian(1.3), params, 2).mean["m"][0] for part in ("iwae", "rws")
        ]
        assert found.mean["m"][0] == pytest.approx(sum(parts), abs=1e-6)


@pytest.mark.slow
def test_objectives_between_bounds_are_those_bounds_at_their_ends() -> None:
    key, q = jax.random.key(0), Normal(jnp.array([0.4]), jnp.array([0.8]))
    joint = linear_gaussian(1.3)({"m": q.loc, "s": q.scale, "mu": jnp.array([0.2])})[1]
    value = lambda name, **more: float(bounds.BOUNDS[name](key, q, joint, 6, **more))
    assert value("ciwae", elbo_weight=1.0) == pytest.approx(value("elbo"))
    assert value("ciwae", elbo_weight=0.0) == pytest.approx(value("iwae"))
    assert value("renyi", renyi_order=0.0) == pytest.approx(value("iwae"))
    assert value("renyi", renyi_order=0.999) == pytest.approx(value("elbo"), abs=1e-2)
    assert value("miwae", groups=6) == pytest.approx(value("elbo"))
    assert value("miwae", groups=1) == value("piwae", groups=3) == pytest.approx(value("iwae"))
    assert value("tvo", betas=(0.0,)) == pytest.approx(value("elbo"))
    with pytest.raises(ValueError, match="6 samples do not divide into 4 groups"):
        value("miwae", groups=4)
    with pytest.raises(ValueError, match="order 1 is the elbo"):
        value("renyi", renyi_order=1)


# Mutants: each must be seen, exactly and by Monte Carlo


def undetached(noise: Any, q: Any, log_joint: Callable) -> jax.Array:
    """IWAE as sum of weighted ELBOs whose weights carry a gradient."""
    log_w = bounds._drawn_weights(noise, q, log_joint)
    return jnp.sum(jax.nn.softmax(log_w) * log_w)


def forgetful(noise: Any, q: Any, f: Callable, control: Any, context: jax.Array) -> jax.Array:
    """REBAR without the derivative of z~ in the logits."""
    logits, temperature = jax.lax.stop_gradient(q.logits), jnp.exp(control["log_temperature"])
    c = lambda z: control["scale"] * f(jax.nn.sigmoid(z / temperature))
    z = logits + noise[0]
    b = (z > 0).astype(z.dtype)
    sign = 2 * b - 1
    tilde = sign * jax.nn.softplus(noise[1] + jax.nn.softplus(sign * logits))
    direction = (f(b) - c(tilde)) * (b - jax.nn.sigmoid(logits)) + jax.grad(c)(z)
    return expectations.contract.with_gradient(f(b), direction, q.logits)


def wrong_sign(noise: Any, q: Any, f: Callable) -> jax.Array:
    """DisARM with (-1)^b for (-1)^b~, which turns the difference round."""
    b, other = noise
    direction = 0.5 * (f(b) - f(other)) * (other - b) * jax.nn.sigmoid(jnp.abs(q.logits))
    return expectations.contract.with_gradient(f(b), direction, q.logits)


ONE = lambda phi: (Bernoulli(phi), lambda b: jnp.sum((b - 0.45) ** 2))
CONTROL = {"log_temperature": np.log(0.5), "scale": 1.0}
GAUSS = {"m": [0.4], "s": [0.8], "mu": [0.2]}
# name -> (estimator it should be, mutant, problem, parameters, K, settings)
MUTANTS: dict[str, tuple] = {
    "undetached IWAE weights": ("iwae", undetached, linear_gaussian(1.3), GAUSS, 2, {}),
    "no dz~ in REBAR": (
        "rebar",
        forgetful,
        ONE,
        [0.8],
        1,
        {"control": CONTROL, "context": np.zeros(1)},
    ),
    "wrong sign in DisARM": ("disarm", wrong_sign, ONE, [0.8], 1, {}),
    "STL inside IWAE": ("iwae", bounds.iwae_stl.estimate, linear_gaussian(1.3), GAUSS, 2, {}),
    "OVIS at gamma = 1": ("vimco", bounds.ovis_gamma1.estimate, of_bits, BITS, 3, {}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_seen(mutant: str) -> None:
    """Exactly, where their originals pass, and by 100,000 draws."""
    name, estimate, make, params, k, settings = MUTANTS[mutant]
    truth = moments(name, make, params, k, **settings).mean
    own = dataclasses.replace(TABLE[name], estimate=estimate)
    with jax.enable_x64(True):
        found = measurements.exact(own, make, arrays(params), k, **arrays(settings)).mean
    ravel = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    assert np.abs(ravel(found) - ravel(truth)).max() > 1e-3
    narrow, more = arrays(params, jnp.float32), arrays(settings, jnp.float32)
    objective = lambda own: lambda key, p, x: own(key, *make(p), k, **more)
    for member, seen in ((TABLE[name], False), (own, True)):
        sampled = measurements.measure(
            objective(member), narrow, jax.random.key(0), 100_000, chunk=12_500
        )
        assert reports.bias(sampled, ravel(truth)).seen == seen


# Monte Carlo


def quadratic(key: jax.Array, p: Any, x: Any) -> jax.Array:
    """Gradient [2 e_1 + m_x, 3 e_2^3 + w], e normal: known moments."""
    e = jax.random.normal(key, (2,))
    shift = 0.0 if x is None else x
    return p["a"] * (2 * e[0] + 1 + shift) + p["b"] * (3 * e[1] ** 3 + 0.5)


def test_sampled_moments_are_those_of_all_draws_at_once() -> None:
    """Streaming in chunks, two units, against NumPy on the draws themselves."""
    params, key = {"a": jnp.ones(()), "b": jnp.ones(())}, jax.random.key(1)
    examples = jnp.array([[0.5], [-1.5]])
    found = measurements.measure(
        quadratic, params, key, 1000, examples, np.array([1.0, 2.0]), chunk=64
    )
    of = jax.vmap(
        lambda key, x: jnp.stack(jax.tree.leaves(jax.grad(quadratic, 1)(key, params, x))), (0, None)
    )
    keys = lambda u: jax.vmap(
        lambda r: jax.random.split(jax.random.fold_in(jax.random.fold_in(key, u), r), 1)[0]
    )(np.arange(1000))
    g = np.stack(
        [np.asarray(of(keys(u), examples[u, 0]), np.float64) for u in range(2)]
    )  # [2, 1000, 2]
    np.testing.assert_allclose(found.mean, g.mean((0, 1)), rtol=1e-6)
    centred = g - g.mean(1, keepdims=True)
    np.testing.assert_allclose(found.variance, (centred**2).sum((0, 1)) / 1998, rtol=1e-6)
    np.testing.assert_allclose(
        found.kurtosis, (centred**4).mean((0, 1)) / (centred**2).mean((0, 1)) ** 2, rtol=1e-6
    )
    np.testing.assert_allclose(
        found.between, g.mean(1).var(0, ddof=1) - found.variance / 1000, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(found.squares[0].sum(), (centred**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(found.norms[0], (g**2).sum(-1).ravel(), rtol=1e-5)
    np.testing.assert_allclose(
        found.along[0], (g @ np.array([1, 2]) / np.sqrt(5)).ravel(), rtol=1e-4, atol=1e-5
    )
    assert found.blocks == ("all", "a", "b") and found.units == 2 and found.num_draws == 2000
    noise, minibatch = reports.batch_variance(found, 10, 4)
    assert noise == pytest.approx(found.variance.sum() / 40) and minibatch == pytest.approx(
        found.between.sum() / 10
    )


def test_intervals_hold_as_often_as_they_say() -> None:
    """Of the variance, of a ratio with paired draws, of a squared bias: 200 repetitions with 400
    draws each.
    """
    params = {"a": jnp.ones(3)}
    gauss = lambda key, p, x: jnp.sum(p["a"] * (jax.random.normal(key, (3,)) + 1.0))
    other = lambda key, p, x: jnp.sum(p["a"] * (1.2 * jax.random.normal(key, (3,)) + 1.0))
    held = np.zeros(4)
    for i in range(200):
        one, two = (measurements.measure(o, params, jax.random.key(i), 400) for o in (gauss, other))
        trace, ratio = reports.trace(one), reports.ratio(two, one)
        low, high = reports.variance_intervals(one)
        squared = reports.bias(one, np.zeros(3)).squared
        held += [
            trace.low < 3 < trace.high,
            abs(ratio.value - 1.44) < 1e-5,
            np.mean((low < 1) & (high > 1)),
            squared.low < 3 < squared.high,
        ]
    assert (held / 200 > 0.90).all() and (held[[0, 2, 3]] / 200 < 0.99).all(), held / 200


def test_a_quadrature_that_has_not_converged_is_refused() -> None:
    steep = lambda m: (Normal(m, 1.0), lambda x: jnp.sum(jnp.cos(40.0 * x)))
    with pytest.raises(ValueError, match="quadrature has not converged for pathwise"):
        moments("pathwise", steep, [1.0])


def test_a_reference_that_was_sampled_adds_no_bias() -> None:
    """|bias|^2 against another sample of the same mean holds zero, and rare events that did not
    happen are no bias.
    """
    params = {"a": jnp.ones(3)}
    gauss = lambda key, p, x: jnp.sum(p["a"] * (jax.random.normal(key, (3,)) + 1.0))
    quiet = lambda key, p, x: jnp.sum(p["a"] * (0.01 * jax.random.normal(key, (3,)) + 1.0))
    reference = measurements.measure(gauss, params, jax.random.key(0), 400)
    found = reports.bias(measurements.measure(quiet, params, jax.random.key(1), 400), reference)
    assert not found.seen and found.squared.low < 0 < found.squared.high
    rare = lambda key, p, x: p["a"] @ jnp.array([1.0, 0.0, 0.0]) * jax.random.bernoulli(key, 1e-6)
    found = reports.bias(
        measurements.measure(rare, params, jax.random.key(0), 400), np.array([1e-6, 0, 0])
    )
    assert not found.seen


@pytest.mark.slow
def test_what_a_measurement_cannot_say_is_said() -> None:
    params = {"a": jnp.ones(())}
    cauchy = lambda key, p, x: p["a"] * jax.random.cauchy(key)
    wild = measurements.measure(cauchy, params, jax.random.key(0), 4000)
    assert any("heavy tail" in said for said in reports.warnings(wild))
    assert reports.tail(wild) == pytest.approx(2.0, abs=0.4)  # of a square of a Cauchy variable
    faint = measurements.measure(
        lambda key, p, x: p["a"] * jax.random.normal(key), params, jax.random.key(0), 500
    )
    assert any("exceeds the mean" in said for said in reports.warnings(faint))
    found = reports.bias(faint, np.array([0.0]))
    assert not found.seen and found.visible == pytest.approx((3.89 + 1.28) / np.sqrt(500), rel=0.1)
    assert reports.bias(faint, np.array([2 * found.visible])).seen
    with pytest.raises(ValueError, match="at least 2 draws"):
        measurements.measure(cauchy, params, jax.random.key(0), 1)
    with pytest.raises(ValueError, match="more than one unit"):
        reports.batch_variance(faint, 10)


# Of e ~ N(0, 1), u ~ U(0, 1): |g|^2, and the shape of its tail; a bump of a bounded density is
# none.
HEAVINESS = {
    "pathwise gradients of a cosine": (lambda e, u: np.sin(1 + e) ** 2 * (1 + e**2), None),
    "score functions of a cosine": (
        lambda e, u: np.cos(1 + e) ** 2 * (e**2 + (e**2 - 1) ** 2),
        None,
    ),
    "a Gaussian": (lambda e, u: e**2, None),
    "no fourth moment": (lambda e, u: u**-0.5, 0.5),
    "no variance": (lambda e, u: u**-1.2, 1.2),
}


@pytest.mark.parametrize("count", [10_000, 100_000, 1_000_000])
@pytest.mark.parametrize("name", HEAVINESS)
def test_a_tail_is_heavy_from_wherever_it_is_seen(name: str, count: int) -> None:
    of, shape = HEAVINESS[name]
    rng = np.random.default_rng(0)
    squares = of(rng.normal(size=count), rng.random(count))[None]
    one = np.ones(1)
    draws = measurements.Sampled(
        one, one, one, one[None], None, squares, squares, None, ("all",), (slice(0, 1),), 1
    )
    found = reports.tail(draws)
    assert found < reports.HEAVY if shape is None else found == pytest.approx(shape, abs=0.25)
    assert any("heavy tail" in said for said in reports.warnings(draws)) == (shape == 1.2)


def test_budgets_and_exponents() -> None:
    assert reports.break_even(1.0, 1.0, 0.01, 3.0, 2.0) == pytest.approx(500.0)
    assert reports.break_even(9.0, 1.0, 0.01, 3.0, 2.0) == 0.0
    assert reports.break_even(1.0, 1.0, 0.0, 3.0, 2.0) is None
    sizes = np.array([1, 2, 4, 8])
    fitted = reports.slope(sizes, 5.0 * sizes**-1.5, np.full(4, 0.1))
    assert fitted.value == pytest.approx(-1.5) and fitted.low < -1.5 < fitted.high


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rloo", "score_function", "disarm_tree"])
def test_the_battery_tells_invariant_estimators_from_others(name: str) -> None:
    """REINFORCE moves with a constant; the tree's variance depends on the order of its classes."""
    if "binary" in ESTIMATORS[name].latents:
        q: Any = Bernoulli(jnp.array([0.4, -1.3]))
        f = lambda z: jnp.sum((z - 0.3) ** 2) + z[0] * z[1]
    else:
        weights = jnp.array([[0.2, -1.0, 0.7, 0.1], [0.4, 0.1, -0.3, 0.9]])
        q, f = (
            OneHotCategorical(jnp.array([[0.3, -0.5, 1.0, 0.1]] * 2)),
            lambda z: jnp.sum(weights * z) ** 3,
        )
    found = measurements.invariances(ESTIMATORS[name], q, f, jax.random.key(0), 2)
    assert (found["constant"] < 1e-3) == (name != "score_function")
    assert found["saturated"] < 1e-5
    assert found["float32"] < 1e-3
    assert (found["relabeled"] < 1e-9) == (name != "disarm_tree")


def test_signals_are_those_of_a_known_gaussian() -> None:
    """g = (1 + e_1, e_2): mean over noise 1 in the first coordinate, and E |along| / |across| by
    integration.
    """
    params = {"a": jnp.ones(2)}
    g = lambda key, p, x: p["a"] @ (jnp.array([3.0, 0.0]) + jax.random.normal(key, (2,)))
    found = reports.signal(
        measurements.measure(g, params, jax.random.key(0), 20_000, None, np.array([1.0, 0.0]))
    )
    assert found.snr == pytest.approx(1.5, abs=0.02)
    assert found.gain == pytest.approx(9 / 11, abs=0.01)
    r = np.linspace(-9, 15, 4000)  # without 0
    angle = lambda e: np.trapezoid(stats.norm.pdf(r, 3) * r / np.hypot(r, e), r)
    assert found.cosine == pytest.approx(
        integrate.quad(lambda e: stats.norm.pdf(e) * angle(e), -8, 8)[0], abs=0.01
    )
