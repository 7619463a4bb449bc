"""Divergences: each registered closed form has a row, with quadrature, enumeration or dense
algebra as the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import pytest
from jax.flatten_util import ravel_pytree
from scipy import integrate, special, stats

from jaxvae import divergences
from jaxvae.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Independent,
    Joint,
    Kumaraswamy,
    Laplace,
    Mixture,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    PowerSpherical,
    SphericalUniform,
    SpikeAndSlab,
    VonMisesFisher,
    pytree,
)
from jaxvae.divergences import (
    FACTORIZED_KL,
    JOINT_KL,
    has_closed_form,
    kl,
    kl_per_latent,
    register_kl,
    sampled_kl,
)

KEY = jax.random.key(0)
Z_BOUND = 5.0
A = jnp.array
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
closed = jax.jit(kl)
per_latent = jax.jit(kl_per_latent)

# The first coordinates of q and p are equal, the second ones close, the third far apart.
LOC_Q, SCALE_Q = np.array([0.3, -1.0, 4.0]), np.array([0.7, 0.5, 0.2])
LOC_P, SCALE_P = np.array([0.3, -1.1, -2.0]), np.array([0.7, 0.6, 1.5])
ODDS_Q, ODDS_P = (
    np.array([[0.4, 0.0, 6.0], [-0.6, -30.0, 2.0]]),
    np.array([[0.4, 0.1, -6.0], [0.5, 3.0, 0.0]]),
)
CLASSES_Q, CLASSES_P = (
    np.array([[0.0, 1.0, -1.0], [5.0, 0.0, 0.3]]),
    np.array([[0.0, 1.0, -1.0], [-5.0, 0.5, 0.0]]),
)
TRIL_Q = np.array([[0.9, 0.0, 0.0], [-0.4, 1.3, 0.0], [0.2, 0.7, 0.5]])
TRIL_P = np.array([[1.1, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.1, 2.0]])
POLE_Q, POLE_P = np.array([0.6, 0.8, 0.0]), np.array([0.0, 0.6, -0.8])


class Pair(NamedTuple):
    """Two distributions and the divergence between them."""

    q: Callable[[], Any]
    p: Callable[[], Any]
    oracle: Callable[[], Any]  # each coordinate's divergence, or the whole


def by_quadrature(q: Any, p: Any, cuts: Any) -> float:
    """KL(q || p) of two SciPy distributions, integrated between the ``cuts``."""
    integrand = lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x))
    cuts = np.unique(cuts)
    return sum(integrate.quad(integrand, a, b, epsabs=1e-9)[0] for a, b in pairwise(cuts))


def real_line(family_q: Any, family_p: Any) -> list[float]:
    rows = zip(LOC_Q, SCALE_Q, LOC_P, SCALE_P, strict=True)
    ends = lambda m, s, at: [
        m - 30 * s,
        m - 4 * s,
        m,
        m + 4 * s,
        m + 30 * s,
        *([at] if abs(at - m) < 30 * s else []),
    ]
    return [
        by_quadrature(family_q(m, s), family_p(at, width), ends(m, s, at))
        for m, s, at, width in rows
    ]


class UnitInterval:
    """The density proportional to e^(l x) on [0, 1]."""

    def __init__(self, logits: float):
        self.logits, self.shift = logits, max(logits, 0.0)
        self.mass = integrate.quad(
            lambda t: np.exp(logits * t - self.shift), 0, 1, epsabs=0, epsrel=1e-12
        )[0]

    def logpdf(self, x: float) -> float:
        return self.logits * x - self.shift - np.log(self.mass)

    def pdf(self, x: float) -> float:
        return np.exp(self.logpdf(x))


def unit_interval() -> list[float]:
    rows = zip(ODDS_Q.ravel(), ODDS_P.ravel(), strict=True)
    return [by_quadrature(UnitInterval(q), UnitInterval(p), [0, 0.1, 0.9, 1]) for q, p in rows]


class KumaraswamyLaw:
    """The distribution function 1 - (1 - x^a)^b, differentiated."""

    def __init__(self, a: float, b: float):
        self.a, self.b = a, b

    def logpdf(self, x: float) -> float:
        rest = (self.b - 1) * np.log1p(-(x**self.a))
        return np.log(self.a * self.b) + (self.a - 1) * np.log(x) + rest

    def pdf(self, x: float) -> float:
        return np.exp(self.logpdf(x))


SHAPES_Q = np.array([[2.0, 0.8, 3.0], [3.0, 2.0, 1.5]])
SHAPES_P = np.array([[1.0, 1.5, 2.0], [5.0, 2.0, 0.8]])


def fractions(law: Any) -> list[float]:
    """KL of a law of (0, 1) to a Beta distribution, for each pair of shapes."""
    rows = zip(*SHAPES_Q, *SHAPES_P, strict=True)
    cuts = [0, 1e-6, 0.1, 0.9, 1 - 1e-6, 1]
    return [by_quadrature(law(a, b), stats.beta(c, d), cuts) for a, b, c, d in rows]


def coins() -> np.ndarray:
    sides = lambda odds: np.stack([special.expit(odds), special.expit(-odds)])
    return stats.entropy(sides(ODDS_Q), sides(ODDS_P))


def dense(loc_q: Any, cov_q: Any, loc_p: Any, cov_p: Any) -> float:
    shift, precision = loc_p - loc_q, np.linalg.inv(cov_p)
    log_dets = np.linalg.slogdet(cov_p)[1] - np.linalg.slogdet(cov_q)[1]
    return 0.5 * (np.trace(precision @ cov_q) + shift @ precision @ shift - len(shift) + log_dets)


def spikes() -> np.ndarray:
    return coins() + special.expit(ODDS_Q) * real_line(stats.norm, stats.norm)


def power_spherical(x: np.ndarray, pole: np.ndarray, k: float) -> np.ndarray:
    """Its log-density on the sphere in three dimensions, where the normalizer is elementary."""
    return k * np.log1p(x @ pole) + np.log((k + 1) / (2 * np.pi * 2 ** (k + 1)))


def on_sphere(log_q: Callable, log_p: Callable) -> float:
    """Integrated over the heights and longitudes of the sphere in three dimensions."""
    heights, weights = np.polynomial.legendre.leggauss(80)
    longitudes = 2 * np.pi * np.arange(160) / 160
    radius = np.sqrt(1 - heights[:, None] ** 2)
    rings = (
        radius * np.cos(longitudes),
        radius * np.sin(longitudes),
        heights[:, None] + 0 * longitudes,
    )
    x = np.stack(rings, -1)  # [heights, longitudes, 3]
    return float(weights @ (np.exp(log_q(x)) * (log_q(x) - log_p(x))).mean(-1) * 2 * np.pi)


FISHER_Q, FISHER_P = (
    stats.vonmises_fisher(pole, k).logpdf for pole, k in ((POLE_Q, 5.0), (POLE_P, 1.5))
)
POWER_Q = partial(power_spherical, pole=POLE_Q, k=5.0)
EVENLY = lambda x: np.full(x.shape[:-1], -np.log(4 * np.pi))

PAIRS = {
    "normal_normal": Pair(
        lambda: Normal(A(LOC_Q), A(SCALE_Q)),
        lambda: Normal(A(LOC_P), A(SCALE_P)),
        lambda: real_line(stats.norm, stats.norm),
    ),
    "laplace_laplace": Pair(
        lambda: Laplace(A(LOC_Q), A(SCALE_Q)),
        lambda: Laplace(A(LOC_P), A(SCALE_P)),
        lambda: real_line(stats.laplace, stats.laplace),
    ),
    "normal_laplace": Pair(
        lambda: Normal(A(LOC_Q), A(SCALE_Q)),
        lambda: Laplace(A(LOC_P), A(SCALE_P)),
        lambda: real_line(stats.norm, stats.laplace),
    ),
    "laplace_normal": Pair(
        lambda: Laplace(A(LOC_Q), A(SCALE_Q)),
        lambda: Normal(A(LOC_P), A(SCALE_P)),
        lambda: real_line(stats.laplace, stats.norm),
    ),
    "bernoulli_bernoulli": Pair(lambda: Bernoulli(A(ODDS_Q)), lambda: Bernoulli(A(ODDS_P)), coins),
    "categorical_categorical": Pair(
        lambda: Categorical(A(CLASSES_Q)),
        lambda: Categorical(A(CLASSES_P)),
        lambda: stats.entropy(
            special.softmax(CLASSES_Q, -1), special.softmax(CLASSES_P, -1), axis=-1
        ),
    ),
    "one_hot_one_hot": Pair(
        lambda: OneHotCategorical(A(CLASSES_Q)),
        lambda: OneHotCategorical(A(CLASSES_P)),
        lambda: stats.entropy(
            special.softmax(CLASSES_Q, -1), special.softmax(CLASSES_P, -1), axis=-1
        ),
    ),
    "continuous_bernoulli_continuous_bernoulli": Pair(
        lambda: ContinuousBernoulli(A(ODDS_Q)),
        lambda: ContinuousBernoulli(A(ODDS_P)),
        unit_interval,
    ),
    "beta_beta": Pair(
        lambda: Beta(A(SHAPES_Q[0]), A(SHAPES_Q[1])),
        lambda: Beta(A(SHAPES_P[0]), A(SHAPES_P[1])),
        lambda: fractions(stats.beta),
    ),
    "kumaraswamy_beta": Pair(
        lambda: Kumaraswamy(A(SHAPES_Q[0]), A(SHAPES_Q[1])),
        lambda: Beta(A(SHAPES_P[0]), A(SHAPES_P[1])),
        lambda: fractions(KumaraswamyLaw),
    ),
    "multivariate_multivariate": Pair(
        lambda: MultivariateNormal(A(LOC_Q), A(TRIL_Q)),
        lambda: MultivariateNormal(A(LOC_P), A(TRIL_P)),
        lambda: dense(LOC_Q, TRIL_Q @ TRIL_Q.T, LOC_P, TRIL_P @ TRIL_P.T),
    ),
    "multivariate_normal": Pair(
        lambda: MultivariateNormal(A(LOC_Q), A(TRIL_Q)),
        lambda: Normal(A(LOC_P), A(SCALE_P)),
        lambda: dense(LOC_Q, TRIL_Q @ TRIL_Q.T, LOC_P, np.diag(SCALE_P**2)),
    ),
    "normal_multivariate": Pair(
        lambda: Normal(A(LOC_Q), A(SCALE_Q)),
        lambda: MultivariateNormal(A(LOC_P), A(TRIL_P)),
        lambda: dense(LOC_Q, np.diag(SCALE_Q**2), LOC_P, TRIL_P @ TRIL_P.T),
    ),
    "spike_and_slab": Pair(
        lambda: SpikeAndSlab(A(ODDS_Q), A(LOC_Q), A(SCALE_Q)),
        lambda: SpikeAndSlab(A(ODDS_P), A(LOC_P), A(SCALE_P)),
        spikes,
    ),
    "power_spherical_uniform": Pair(
        lambda: PowerSpherical(A(POLE_Q), A(5.0)),
        lambda: SphericalUniform(3),
        lambda: on_sphere(POWER_Q, EVENLY),
    ),
    "von_mises_fisher_uniform": Pair(
        lambda: VonMisesFisher(A(POLE_Q), A(5.0)),
        lambda: SphericalUniform(3),
        lambda: on_sphere(FISHER_Q, EVENLY),
    ),
    "power_spherical_von_mises_fisher": Pair(
        lambda: PowerSpherical(A(POLE_Q), A(5.0)),
        lambda: VonMisesFisher(A(POLE_P), A(1.5)),
        lambda: on_sphere(POWER_Q, FISHER_P),
    ),
    "von_mises_fisher_von_mises_fisher": Pair(
        lambda: VonMisesFisher(A(POLE_Q), A(5.0)),
        lambda: VonMisesFisher(A(POLE_P), A(1.5)),
        lambda: on_sphere(FISHER_Q, FISHER_P),
    ),
}
PAIRS["joint_joint"] = Pair(
    lambda: Joint((Normal(A(LOC_Q), A(SCALE_Q)), OneHotCategorical(A(CLASSES_Q)))),
    lambda: Joint((Normal(A(LOC_P), A(SCALE_P)), OneHotCategorical(A(CLASSES_P)))),
    lambda: np.concatenate([PAIRS[name].oracle() for name in ("normal_normal", "one_hot_one_hot")]),
)

# Closed forms that are made of those above.
COMPOUNDS = {
    "normal_with_shared_scales": Pair(
        lambda: Normal(A(LOC_Q), A(0.5)),
        lambda: Normal(A(LOC_P), A([2.0])),
        lambda: dense(LOC_Q, 0.25 * np.eye(3), LOC_P, 4.0 * np.eye(3)),
    ),
    "multivariate_normal_with_shared_scale": Pair(
        lambda: MultivariateNormal(A(LOC_Q), A(TRIL_Q)),
        lambda: Normal(A(LOC_P), A(0.8)),
        lambda: dense(LOC_Q, TRIL_Q @ TRIL_Q.T, LOC_P, 0.64 * np.eye(3)),
    ),
    "independent_normals": Pair(
        lambda: Independent(Normal(A([LOC_Q, LOC_P]), A([SCALE_Q, SCALE_P]))),
        lambda: Independent(Normal(A([LOC_P, LOC_P]), A([SCALE_P, SCALE_P]))),
        lambda: dense(LOC_Q, np.diag(SCALE_Q**2), LOC_P, np.diag(SCALE_P**2)),
    ),
    "independent_multivariate_to_normal": Pair(
        lambda: Independent(MultivariateNormal(A([[LOC_Q], [LOC_P]]), A([[TRIL_Q], [TRIL_P]])), 2),
        lambda: Independent(Normal(A([[LOC_P], [LOC_P]]), A([[SCALE_P], [SCALE_P]])), 2),
        lambda: [
            dense(LOC_Q, TRIL_Q @ TRIL_Q.T, LOC_P, np.diag(SCALE_P**2)),
            dense(LOC_P, TRIL_P @ TRIL_P.T, LOC_P, np.diag(SCALE_P**2)),
        ],
    ),
    "independent_categoricals": Pair(
        lambda: Independent(Categorical(A(CLASSES_Q))),
        lambda: Independent(Categorical(A(CLASSES_P))),
        PAIRS["categorical_categorical"].oracle,
    ),
    "independent_one_hots": Pair(
        lambda: Independent(OneHotCategorical(A(CLASSES_Q))),
        lambda: Independent(OneHotCategorical(A(CLASSES_P))),
        PAIRS["one_hot_one_hot"].oracle,
    ),
}
CLOSED = PAIRS | COMPOUNDS
FACTORIZED = [
    name for name, pair in PAIRS.items() if (type(pair.q()), type(pair.p())) in FACTORIZED_KL
]

# Pairs without a closed form, with NumPyro's distributions among them, and the divergence of one
# coordinate.
ONE_Q, ONE_P = (0.3, 0.7), (-0.2, 1.1)
HEAVY = by_quadrature(stats.norm(*ONE_Q), stats.t(5.0, *ONE_P), [-8.0, 0.3, 8.0])
LIGHT = by_quadrature(stats.norm(*ONE_Q), stats.norm(*ONE_P), [-8.0, 0.3, 8.0])
pair_of = lambda v: jnp.full(2, v)
SAMPLED = {
    "mixture_normal": Pair(
        lambda: Mixture(A([0.0, 0.0]), Normal(A([[0.0], [2.0]]), A([[0.5], [0.5]]))),
        lambda: Normal(A([1.0]), A([1.5])),
        lambda: by_quadrature(Bimodal(), stats.norm(1.0, 1.5), [-8.0, 0.0, 2.0, 10.0]),
    ),
    "counts": Pair(
        lambda: NegativeBinomial(A([2.0]), A([0.1])),
        lambda: NegativeBinomial(A([3.0]), A([0.4])),
        lambda: stats.entropy(
            *(
                stats.nbinom.pmf(np.arange(400), n, special.expit(-l))
                for n, l in [(2, 0.1), (3, 0.4)]
            )
        ),
    ),
    "numpyro_normal": Pair(
        lambda: nd.Normal(pair_of(ONE_Q[0]), pair_of(ONE_Q[1])).to_event(1),
        lambda: Normal(pair_of(ONE_P[0]), pair_of(ONE_P[1])),
        lambda: 2 * LIGHT,
    ),
    "normal_numpyro": Pair(
        lambda: Normal(pair_of(ONE_Q[0]), pair_of(ONE_Q[1])),
        lambda: nd.StudentT(5.0, pair_of(ONE_P[0]), pair_of(ONE_P[1])).to_event(1),
        lambda: 2 * HEAVY,
    ),
    "numpyro_numpyro": Pair(
        lambda: nd.Normal(pair_of(ONE_Q[0]), pair_of(ONE_Q[1])).to_event(1),
        lambda: nd.StudentT(5.0, pair_of(ONE_P[0]), pair_of(ONE_P[1])).to_event(1),
        lambda: 2 * HEAVY,
    ),
    "numpyro_scalars": Pair(lambda: nd.Normal(*ONE_Q), lambda: nd.Normal(*ONE_P), lambda: LIGHT),
}


class Bimodal:
    """The mixture of N(0, 1/4) and N(2, 1/4) with equal weights."""

    def pdf(self, x: float) -> float:
        return 0.5 * (stats.norm.pdf(x, 0.0, 0.5) + stats.norm.pdf(x, 2.0, 0.5))

    def logpdf(self, x: float) -> float:
        return np.log(self.pdf(x))


def z_score(estimates: Any, expected: float) -> float:
    estimates = np.asarray(estimates, np.float64)
    return abs(estimates.mean() - expected) / (estimates.std() / np.sqrt(len(estimates)))


def of_itself(d: Any) -> bool:
    """Whether the divergence of d from itself has a closed form."""
    return has_closed_form(d, d)


def perturbed(d: Any, noise: jax.Array) -> Any:
    """Every number of ``d`` times e^noise: scales stay positive, Cholesky factors stay so."""
    flat, unravel = ravel_pytree(d)
    return unravel(flat * jnp.exp(noise[: len(flat)]))


def test_every_registered_pair_has_a_row():
    rows = {(type(pair.q()), type(pair.p())) for pair in PAIRS.values()}
    assert rows == FACTORIZED_KL.keys() | JOINT_KL.keys()
    assert not FACTORIZED_KL.keys() & JOINT_KL.keys()


@pytest.mark.parametrize("name", CLOSED)
def test_closed_form_agrees_with_its_oracle(name):
    expected = np.sum(CLOSED[name].oracle())
    with jax.enable_x64(True):
        q, p = CLOSED[name].q(), CLOSED[name].p()
        assert has_closed_form(q, p)
        np.testing.assert_allclose(closed(q, p), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(closed(CLOSED[name].q(), CLOSED[name].p()), expected, rtol=1e-4)


def latents(q: Any) -> tuple[int, ...]:
    """The shape of KL per latent: classes are one term, and the parts of a joint stand in a row."""
    if isinstance(q, Joint):
        return (sum(int(np.prod(latents(part))) for part in q.parts),)
    return q.event_shape[:-1] if isinstance(q, OneHotCategorical) else q.event_shape


@pytest.mark.parametrize("name", FACTORIZED)
def test_each_coordinate_agrees_with_its_oracle(name):
    with jax.enable_x64(True):
        q, p = PAIRS[name].q(), PAIRS[name].p()
        terms = per_latent(q, p)
    assert terms.shape == latents(q)
    np.testing.assert_allclose(
        np.ravel(terms), np.ravel(PAIRS[name].oracle()), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", FACTORIZED)
def test_coordinates_sum_to_the_divergence(name):
    q, p = PAIRS[name].q(), PAIRS[name].p()
    np.testing.assert_allclose(per_latent(q, p).sum(), closed(q, p), rtol=1e-6)


@pytest.mark.parametrize("name", CLOSED)
def test_divergence_from_itself_is_zero(name):
    with jax.enable_x64(True):
        for d in filter(of_itself, (CLOSED[name].q(), CLOSED[name].p())):
            np.testing.assert_allclose(closed(d, d), 0.0, atol=1e-12)
    for d in filter(of_itself, (CLOSED[name].q(),)):
        np.testing.assert_allclose(closed(d, d), 0.0, atol=1e-5)


@pytest.mark.parametrize("name", CLOSED)
def test_divergence_is_never_negative(name):
    noise = 0.5 * np.random.default_rng(0).normal(size=(2, 200, 64))
    with jax.enable_x64(True):
        q, p = CLOSED[name].q(), CLOSED[name].p()
        draw = quick(jax.vmap(lambda a, b: kl(perturbed(q, a), perturbed(p, b))))
        assert float(draw(*A(noise)).min()) >= -1e-12


@pytest.mark.parametrize("name", CLOSED)
def test_gradients_agree_with_finite_differences(name):
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(
            (CLOSED[name].q(), perturbed(CLOSED[name].p(), jnp.full(64, 0.1)))
        )
        function = lambda flat: kl(*unravel(flat))

        @quick
        def derivatives(flat: jax.Array) -> tuple[jax.Array, ...]:
            steps = jnp.stack([1e-6 * jnp.eye(len(flat)), -1e-6 * jnp.eye(len(flat))])
            above, below = jax.vmap(jax.vmap(function))(flat + steps)
            return (above - below) / 2e-6, jax.grad(function)(flat), jax.jacfwd(function)(flat)

        differences, reverse, forward = derivatives(flat)
    scale = np.abs(differences).max()
    np.testing.assert_allclose(reverse, differences, rtol=1e-5, atol=1e-7 * scale)
    np.testing.assert_allclose(forward, differences, rtol=1e-5, atol=1e-7 * scale)


@pytest.mark.parametrize("name", CLOSED)
def test_gradients_in_float32_are_finite(name):
    q, p = CLOSED[name].q(), CLOSED[name].p()
    for at in (p, q) if type(q) is type(p) else (p,):
        gradients = quick(jax.grad(kl, (0, 1)))(q, at)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", CLOSED)
def test_batch_is_a_vmap(name):
    q, p = CLOSED[name].q(), CLOSED[name].p()
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.9 * leaf]), q)
    expected = [closed(q, p), closed(jax.tree.map(lambda leaf: 0.9 * leaf, q), p)]
    np.testing.assert_allclose(quick(jax.vmap(kl, (0, None)))(batch, p), expected, rtol=1e-5)


@pytest.mark.parametrize("name", CLOSED)
def test_key_and_samples_are_not_used_by_a_closed_form(name):
    q, p = CLOSED[name].q(), CLOSED[name].p()
    with_key = quick(lambda q, p, key: kl(q, p, key, num_samples=3))
    np.testing.assert_allclose(with_key(q, p, KEY), closed(q, p), rtol=1e-6)


# Limits


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_bernoulli_at_extreme_logits(sign):
    q, p = Bernoulli(A([1e4 * sign])), Bernoulli(A([-1e4 * sign]))
    np.testing.assert_allclose(kl(q, p), 1e4, rtol=1e-6)
    assert float(kl(q, q)) == 0.0
    assert all(np.isfinite(g.logits).all() for g in jax.grad(kl, (0, 1))(q, p))


def test_categorical_without_mass_on_a_class():
    logits_q, logits_p = np.array([0.2, 1.0, -np.inf]), np.array([0.5, -0.3, 2.0])
    q, p = A(logits_q), A(logits_p)
    value, gradients = jax.value_and_grad(lambda q, p: kl(Categorical(q), Categorical(p)), (0, 1))(
        q, p
    )
    probability, other = special.softmax(logits_q), special.softmax(logits_p)
    np.testing.assert_allclose(value, stats.entropy(probability, other), rtol=1e-5)
    np.testing.assert_allclose(gradients[1], other - probability, atol=1e-5)
    with np.errstate(divide="ignore"):
        log_ratio = np.where(probability > 0, np.log(probability) - np.log(other), 0.0)
    np.testing.assert_allclose(gradients[0], probability * (log_ratio - float(value)), atol=1e-5)


def test_categorical_excludes_a_class_that_q_uses():
    assert float(kl(Categorical(A([0.0, 0.0])), Categorical(A([0.0, -jnp.inf])))) == np.inf


# Per latent


@pytest.mark.parametrize("tril", [TRIL_Q, TRIL_P, np.diag(SCALE_P)], ids=["q", "p", "diagonal"])
def test_marginals_fall_short_by_the_total_correlation(tril):
    covariance = tril @ tril.T
    total_correlation = 0.5 * (np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1])
    with jax.enable_x64(True):
        q, p = MultivariateNormal(A(LOC_Q), A(tril)), Normal(jnp.zeros(3), jnp.ones(3))
        marginals = per_latent(q, p)
        np.testing.assert_allclose(
            closed(q, p) - marginals.sum(), total_correlation, rtol=1e-9, atol=1e-9
        )
    variances = np.diag(covariance)
    np.testing.assert_allclose(
        marginals, 0.5 * (variances + LOC_Q**2 - 1 - np.log(variances)), rtol=1e-9
    )


@pytest.mark.parametrize("name", SAMPLED)
def test_coordinates_are_unknown_without_a_closed_form(name):
    assert kl_per_latent(SAMPLED[name].q(), SAMPLED[name].p()) is None


# Monte Carlo


@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_divergence_is_unbiased(name, num_samples):
    q, p = SAMPLED[name].q(), SAMPLED[name].p()
    estimates = quick(jax.vmap(lambda key: kl(q, p, key, num_samples)))(jax.random.split(KEY, 4000))
    assert estimates.shape == (4000,)
    assert z_score(estimates, SAMPLED[name].oracle()) < Z_BOUND


@pytest.mark.parametrize(
    "name",
    ["normal_laplace", "categorical_categorical", "multivariate_normal", "independent_normals"],
)
def test_sampled_divergence_agrees_with_the_oracle_of_a_closed_form(name):
    q, p = CLOSED[name].q(), CLOSED[name].p()
    estimates = quick(jax.vmap(lambda key: sampled_kl(key, q, p, 2)))(jax.random.split(KEY, 4000))
    assert z_score(estimates, np.sum(CLOSED[name].oracle())) < Z_BOUND


def test_more_samples_make_a_sampled_divergence_less_variable():
    q, p = SAMPLED["normal_numpyro"].q(), SAMPLED["normal_numpyro"].p()
    spread = lambda k: np.std(
        quick(jax.vmap(lambda key: sampled_kl(key, q, p, k)))(jax.random.split(KEY, 4000))
    )
    np.testing.assert_allclose(spread(1) / spread(16), 4.0, rtol=0.1)


@pytest.mark.parametrize("name", SAMPLED)
def test_pair_without_closed_form_needs_a_key(name):
    q, p = SAMPLED[name].q(), SAMPLED[name].p()
    assert not has_closed_form(q, p)
    with pytest.raises(ValueError, match="key") as refusal:
        kl(q, p)
    assert type(q).__name__ in str(refusal.value)
    assert type(p).__name__ in str(refusal.value)


# Refusals

MISMATCHES = {
    "lengths": (
        lambda: Normal(jnp.zeros(3), jnp.ones(3)),
        lambda: Normal(jnp.zeros(2), jnp.ones(2)),
    ),
    "broadcast": (lambda: Normal(jnp.zeros(3), jnp.ones(3)), lambda: Normal(A(0.0), A(1.0))),
    "axes": (
        lambda: Normal(jnp.zeros((2, 3)), jnp.ones((2, 3))),
        lambda: Normal(jnp.zeros(3), jnp.ones(3)),
    ),
    "joint": (
        lambda: MultivariateNormal(jnp.zeros(3), jnp.eye(3)),
        lambda: Normal(jnp.zeros(2), jnp.ones(2)),
    ),
    "numpyro_batch": (
        lambda: nd.Normal(jnp.zeros(3), 1.0),
        lambda: Normal(jnp.zeros(3), jnp.ones(3)),
    ),
    "numpyro_batches": (lambda: nd.Normal(jnp.zeros(3), 1.0), lambda: nd.Normal(jnp.ones(3), 1.0)),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_different_events_are_refused(name):
    q, p = (make() for make in MISMATCHES[name])
    with pytest.raises(ValueError, match="event"):
        kl(q, p, KEY, 2)


INDEPENDENTS = {
    "component": lambda: Independent(
        DiscretizedLogistic(jnp.full((2, 3), 0.5), jnp.full((2, 3), 0.1))
    ),
    "ndim": lambda: Independent(Normal(jnp.zeros((2, 3)), jnp.ones((2, 3))), 2),
    "wrapper": lambda: Normal(jnp.zeros((2, 3)), jnp.ones((2, 3))),
}


@pytest.mark.parametrize("name", INDEPENDENTS)
def test_independents_of_different_kinds_have_no_closed_form(name):
    q, p = Independent(Normal(jnp.zeros((2, 3)), jnp.ones((2, 3)))), INDEPENDENTS[name]()
    assert not has_closed_form(q, p)
    with pytest.raises(ValueError, match="key"):
        kl(q, p)


# The user's own pairs


@pytree
class Exponential:
    """Waiting times with ``rate [D]``."""

    rate: jax.Array

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.rate.shape

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        return jax.random.exponential(key, shape + self.event_shape) / self.rate

    def log_prob(self, x: jax.Array) -> jax.Array:
        return (jnp.log(self.rate) - self.rate * x).sum(-1)


@pytest.fixture
def tables(monkeypatch):
    """The tables of closed forms, restored afterwards."""
    for name in ("FACTORIZED_KL", "JOINT_KL"):
        monkeypatch.setattr(divergences.densities, name, dict(getattr(divergences.densities, name)))


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("factorized", [True, False])
def test_registered_closed_form_is_used(factorized):
    q, p = Exponential(A([0.5, 2.0])), Exponential(A([1.5, 1.0]))
    expected = [
        by_quadrature(stats.expon(scale=1 / a), stats.expon(scale=1 / b), [0, 3, 20, 100])
        for a, b in [(0.5, 1.5), (2.0, 1.0)]
    ]
    with pytest.raises(ValueError, match="register_kl"):
        kl(q, p)

    @register_kl(Exponential, Exponential, factorized=factorized)
    def closed_form(q: Exponential, p: Exponential) -> jax.Array:
        terms = jnp.log(q.rate / p.rate) + p.rate / q.rate - 1
        return terms if factorized else terms.sum()

    assert has_closed_form(q, p)
    np.testing.assert_allclose(kl(q, p), np.sum(expected), rtol=1e-5)
    if factorized:
        np.testing.assert_allclose(kl_per_latent(q, p), expected, rtol=1e-5)
    else:
        assert kl_per_latent(q, p) is None


@pytest.mark.usefixtures("tables")
def test_registered_numpyro_pair_is_used():
    register_kl(nd.Gamma, nd.Gamma)(nd.kl_divergence)
    expected = by_quadrature(
        stats.gamma(2.0, scale=1 / 1.5), stats.gamma(3.0, scale=1 / 0.7), [0, 1, 10, 50]
    )
    np.testing.assert_allclose(kl(nd.Gamma(2.0, 1.5), nd.Gamma(3.0, 0.7)), expected, rtol=1e-5)


def test_registered_pairs_are_gone_again():
    assert (Exponential, Exponential) not in FACTORIZED_KL.keys() | JOINT_KL.keys()
    assert not has_closed_form(nd.Gamma(2.0, 1.5), nd.Gamma(3.0, 0.7))
