"""Gradient estimators: every row of the table is held to its word, exactly where its noise has a
law, and sampled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxvae import bounds, expectations, measurements
from jaxvae.distributions import Bernoulli, Categorical, Dirichlet, Gamma, Normal, OneHotCategorical
from jaxvae.expectations import ESTIMATORS, noises, sets
from jaxvae.expectations.contract import MIXED
from jaxvae.ranges import Positive

TARGET = jnp.array([0.6, 0.51, 0.48])
WEIGHTS = jnp.array([[0.2, -1.0, 0.7], [0.4, 0.1, -0.3]])
CONTEXT = jnp.array([0.3, -1.0])
RELAXED = ("rebar", "relax", "concrete", "straight_through_gumbel", "gumbel_rao")
UNLIKELY = 1e-4  # of a false alarm, for a row


def curved(z: jax.Array) -> jax.Array:
    """Of all binary latents together, and not a sum over them."""
    return jnp.sum((z - TARGET[: z.size]) ** 4) + 2.0 * jnp.prod(z + 0.5) + z[0] * z[-1]


def of_class(z: jax.Array) -> jax.Array:
    """Of one-hot latents, and not quadratic in them."""
    return (
        jnp.sum(jnp.sum(WEIGHTS * z, -1) ** 2)
        + 1.5 * jnp.sum(z[0] * z[1])
        + jnp.sum(WEIGHTS * z**3) ** 3
    )


# latents -> (parameters -> q, parameters, f)
PROBLEMS: dict[str, tuple[Callable, Any, Callable]] = {
    "continuous": (lambda phi: Normal(phi, jnp.exp(phi - 1)), [0.3], lambda z: (z**2).sum()),
    "binary": (Bernoulli, [0.4, -1.3, 2.2], curved),
    "binary of one": (Bernoulli, [0.4], curved),
    "categorical": (OneHotCategorical, [[0.3, -0.5, 1.0], [0.0, 0.4, -2.0]], of_class),
}
ROWS = [
    (name, latents) for name, own in ESTIMATORS.items() for latents in sorted(own.latents - MIXED)
]


def problem(name: str, latents: str) -> tuple[Callable, jax.Array, Callable]:
    """What a row is tried on; with smooth noise, whose law is integrated, one binary latent."""
    key = "binary of one" if latents == "binary" and name.startswith(RELAXED) else latents
    make, phi, f = PROBLEMS[key]
    return make, jnp.array(phi), f


def settings(name: str, q: Any) -> dict[str, Any]:
    """The control variate's parameters, away from where they start."""
    estimator = ESTIMATORS[name]
    if estimator.init is None:
        return {}
    control = estimator.init(jax.random.key(3), q, CONTEXT)
    return {"control": jax.tree.map(lambda a: a.astype(float) + 0.3, control), "context": CONTEXT}


def exact(name: str, latents: str) -> tuple[Any, measurements.Moments]:
    """E_q f and its gradient, written here once more, and the moments of its estimate; also in a
    factor of f.
    """
    make, phi, f = problem(name, latents)
    if latents == "continuous":
        truth = jax.value_and_grad(lambda phi: (phi**2 + jnp.exp(2 * phi - 2)).sum())(phi)
    else:
        p = lambda phi: jnp.stack([1 - jax.nn.sigmoid(phi), jax.nn.sigmoid(phi)], -1)
        p, classes = (p, 2) if latents == "binary" else (jax.nn.softmax, phi.shape[-1])
        states = np.stack(np.meshgrid(*[np.arange(classes)] * len(phi), indexing="ij"), -1).reshape(
            -1, len(phi)
        )
        z = states.astype(float) if latents == "binary" else np.eye(classes)[states]
        chance = lambda phi: jnp.prod(p(phi)[jnp.arange(len(phi)), states], -1)
        truth = jax.value_and_grad(lambda phi: jnp.sum(chance(phi) * jax.vmap(f)(jnp.asarray(z))))(
            phi
        )
    scaled = lambda params: (make(params["phi"]), lambda z: params["scale"] * f(z))
    own = settings(name, make(phi))
    found = measurements.exact(ESTIMATORS[name], scaled, {"phi": phi, "scale": jnp.ones(())}, **own)
    return jax.tree.map(np.asarray, truth), found


WITHOUT_LAW = {
    "ars",
    "arsm",
    "gumbel_rao",
    "lax",
}  # Dirichlet noise, draws given draws, a network that bends
WITH_LAW = [
    (name, latents)
    for name, latents in ROWS
    if name not in WITHOUT_LAW and not (latents == "categorical" and name.startswith(RELAXED))
]


@pytest.mark.parametrize(("name", "latents"), WITH_LAW)
def test_the_exact_mean_is_the_gradient_where_it_says_so_and_nowhere_else(
    name: str, latents: str
) -> None:
    with jax.enable_x64(True):
        (value, truth), found = exact(name, latents)
    assert (np.abs(found.mean["phi"] - truth).max() < 1e-10) == ESTIMATORS[name].unbiased
    if name != "concrete":  # whose value is that of the relaxed f
        assert found.mean["scale"] == pytest.approx(value, abs=1e-10)


def draws(name: str, latents: str, count: int) -> np.ndarray:
    """Gradients of an estimator over as many keys, [N, *phi]."""
    make, phi, f = problem(name, latents)
    own = settings(name, make(phi))
    estimate = jax.grad(lambda phi, key: ESTIMATORS[name](key, make(phi), f, **own))
    keys = jax.random.split(jax.random.key(0), count)
    gradients = jax.jit(
        lambda keys: jax.lax.map(lambda k: estimate(phi, k), keys, batch_size=4096)
    )(keys)
    return np.asarray(gradients, np.float64)


def agrees(name: str, latents: str, count: int) -> None:
    """Means and variances over draws are those over the law; without a law, the mean is the
    gradient.
    """
    gradients = draws(name, latents, 2 if name == "enumeration" else count)
    with jax.enable_x64(True):
        if (name, latents) in WITH_LAW:
            (_, truth), found = exact(name, latents)
            mean, variance = found.mean["phi"], found.variance["phi"]
        else:
            other = "pathwise" if latents == "continuous" else "enumeration"
            (_, truth), mean = exact(other, latents)[0], None
    error = gradients.std(0) / np.sqrt(len(gradients))
    bound = stats.norm.isf((1 - (1 - UNLIKELY) ** (1 / truth.size)) / 2)  # Sidak
    scores = lambda expected: np.abs(
        (gradients.mean(0) - expected) / np.maximum(error, 1e-6 * (1 + np.abs(truth)))
    )
    if mean is not None:
        assert scores(mean).max() < bound
        spread = ((gradients - gradients.mean(0)) ** 2).reshape(len(gradients), -1).sum(-1)
        assert abs(spread.mean() - variance.sum()) < 5 * spread.std() / np.sqrt(len(spread)) + 1e-8
    assert (scores(truth).max() < bound) == ESTIMATORS[name].unbiased, scores(truth)


def one_for_each_noise() -> list[tuple[str, str]]:
    """The first row of every kind of noise and latents, and those that have no law."""
    rows = {
        (id(ESTIMATORS[name].noise.draw), latents): (name, latents)
        for name, latents in reversed(ROWS)
    }
    return sorted(
        {*rows.values(), *(row for row in ROWS if row not in WITH_LAW)}
        - {("enumeration", "binary")}
    )


@pytest.mark.parametrize(("name", "latents"), one_for_each_noise())
def test_draws_agree_with_their_law(name: str, latents: str) -> None:
    agrees(name, latents, 2**16)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "latents"), ROWS)
def test_a_million_draws_agree_with_their_law(name: str, latents: str) -> None:
    agrees(name, latents, 10**6)


@pytest.mark.parametrize("make", [lambda a: Gamma(a, 2.0), Dirichlet], ids=["gamma", "dirichlet"])
def test_pathwise_gradients_of_implicit_samples_are_unbiased(make: Callable) -> None:
    """E z = a / 2 of the gamma, and a_c / sum a of the Dirichlet."""
    weights, a = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.7, 1.5, 4.0])
    keys = jax.random.split(jax.random.key(0), 2**15)
    estimate = jax.grad(lambda a, key: expectations.pathwise(key, make(a), lambda z: z @ weights))
    gradients = np.asarray(jax.jit(jax.vmap(estimate, (None, 0)))(a, keys), np.float64)
    truth = jax.grad(lambda a: make(a).mean @ weights)(a)
    assert np.abs((gradients.mean(0) - truth) / (gradients.std(0) / np.sqrt(len(keys)))).max() < 4.5


INVARIANT = [
    *(
        "rloo",
        "arm",
        "disarm",
        "arms",
        "local_expectation",
        "muprop",
        "measure_valued",
        "double_cv",
        "rodeo",
    ),
    *(
        "unordered_set_baseline",
        "arsm",
        "carms",
        "disarm_iw",
        "disarm_sb",
        "disarm_tree",
        "pathwise",
    ),
]


@pytest.mark.parametrize("name", INVARIANT)
def test_a_constant_added_to_f_changes_no_gradient(name: str) -> None:
    latents = min(ESTIMATORS[name].latents)
    make, phi, f = problem(name, latents)
    own = settings(name, make(phi))
    if name == "rodeo":  # whose network sees f itself
        own["control"] = own["control"] | {"baseline": jnp.zeros(()), "score": jnp.zeros(())}
    keys = jax.random.split(jax.random.key(0), 64)
    slope = jax.grad(
        lambda phi, k, add: ESTIMATORS[name](k, make(phi), lambda z: f(z) + add, **own)
    )
    slopes = jax.jit(jax.vmap(slope, (None, 0, None)))
    np.testing.assert_allclose(slopes(phi, keys, 0.0), slopes(phi, keys, 8.0), atol=3e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "latents"), [row for row in ROWS if row[0] != "linearized_pathwise"]
)
def test_an_estimator_costs_what_it_says(name: str, latents: str) -> None:
    make, phi, _ = problem(name, latents)
    estimator, evaluations, slopes = ESTIMATORS[name], list[int](), list[int]()

    @jax.custom_jvp
    def f(z: jax.Array) -> jax.Array:
        jax.debug.callback(lambda z: evaluations.append(1), z)
        return (z**2).sum().astype(float)

    @f.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple:
        jax.debug.callback(lambda z: slopes.append(1), primals[0])
        return f(*primals), (2 * primals[0] * tangents[0]).sum()

    own = settings(name, make(phi))
    k = min(3, phi.size) if estimator.noise is sets.without_replacement else 3
    k = min(k, 2) if phi.size == 1 else k
    jax.jit(jax.grad(lambda phi: estimator(jax.random.key(0), make(phi), f, k, **own)))(
        phi
    ).block_until_ready()
    jax.effects_barrier()
    size, classes = (
        (phi.size, {"continuous": 0, "binary": 2}[latents]) if phi.ndim == 1 else phi.shape
    )
    assert (len(evaluations), len(slopes)) == (
        estimator.evaluations(k, size, classes),
        estimator.gradient_evaluations(k, size, classes),
    )


LOUD = ("ar", "relax")  # whose noise does not end with that of the sample


@pytest.mark.parametrize(
    "name", [n for n, own in ESTIMATORS.items() if "binary" in own.latents and n not in LOUD]
)
def test_saturated_logits_have_no_gradient(name: str) -> None:
    """Nor noise in it."""
    q = Bernoulli(jnp.array([60.0, -60.0, -60.0]))
    own = settings(name, q)
    keys = jax.random.split(jax.random.key(0), 64)
    estimate = jax.grad(lambda q, key: ESTIMATORS[name](key, q, curved, **own))
    gradients = jax.jit(jax.vmap(estimate, (None, 0)))(q, keys).logits
    np.testing.assert_allclose(gradients, 0.0, atol=1e-6)


@pytest.mark.parametrize("logit", [-15.0, 15.0, 25.0])
@pytest.mark.parametrize("name", ["disarm", "arms", "arm", "rloo", "unordered_set_baseline"])
def test_rare_events_keep_their_exact_mean(name: str, logit: float) -> None:
    """In float64 to 1e-10 of the gradient itself, and the weights that make up for rarity in
    float32 to 1e-5.
    """
    with jax.enable_x64(True):
        make = lambda phi: (Bernoulli(phi), curved)
        phi = jnp.array([logit, 0.4])
        k = 3 if name == "arms" else 2
        truth = jax.grad(lambda phi: expectations.enumeration(jax.random.key(0), *make(phi)))(phi)
        found = measurements.exact(ESTIMATORS[name], make, phi, k)
        noise = ESTIMATORS[name].noise.exact(Bernoulli(phi), k)[0]
        slope = jax.grad(
            lambda phi, noise: ESTIMATORS[name].estimate(noise, Bernoulli(phi), curved)
        )
        cast = lambda dtype: jax.tree.map(lambda a: jnp.asarray(a, dtype), (phi, noise))
        single, double = (
            jax.jit(jax.vmap(slope, (None, 0)))(*cast(dtype))
            for dtype in (jnp.float32, jnp.float64)
        )
    np.testing.assert_allclose(found.mean, truth, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-5 * np.abs(double).max())


def test_a_guard_against_division_by_zero_is_seen() -> None:
    """ARMS with 1e-6 in its denominator is 1 % low at p = 1e-4 and 9 % at 1e-5 (K = 4), which
    the exact mean shows.
    """

    def guarded(noise: jax.Array, q: Bernoulli, f: Callable) -> jax.Array:
        p, k = jax.lax.stop_gradient(q.mean), len(noise)
        both = jnp.maximum(2 * p ** (1 / (k - 1)) - 1, 0.0) ** (k - 1)
        ratio = (p - both) / (p - both + 1e-6)
        scaled = ratio * q.logits + jax.lax.stop_gradient((1 - ratio) * q.logits)
        return expectations.arms.estimate(noise, Bernoulli(scaled), f)

    with jax.enable_x64(True):
        for p, low in ((1e-4, 0.990), (1e-5, 0.909)):
            phi = jnp.array([np.log(p)])
            mutant = dataclasses.replace(expectations.arms, estimate=guarded)
            means = [
                measurements.exact(e, lambda phi: (Bernoulli(phi), lambda z: z.sum()), phi, 4).mean[
                    0
                ]
                for e in (mutant, expectations.arms)
            ]
            assert means[0] / means[1] == pytest.approx(low, abs=1e-3)


def test_special_cases_are_one_another() -> None:
    """Draw for draw: ARMS of two and DisARM, a set of one and REINFORCE, a set of all and the
    exact sum.
    """
    q, one = Bernoulli(jnp.array([0.4, -1.3])), OneHotCategorical(jnp.array([[0.3, -0.5, 1.0]]))
    square = lambda z: jnp.sum((z - 0.3) ** 2 * jnp.arange(1, z.size + 1).reshape(z.shape)) ** 2
    slope = lambda name, noise, q: (
        jax.jit(jax.grad(lambda q: ESTIMATORS[name].estimate(noise, q, square)))(q).logits
    )
    bits = expectations.disarm.noise.draw(jax.random.key(0), q, 1)
    np.testing.assert_allclose(slope("disarm", bits, q), slope("arms", bits, q), rtol=1e-5)
    states = noises.states(one)
    np.testing.assert_allclose(
        slope("unordered_set", states, one), slope("enumeration", (), one), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        slope("unordered_set", states[:1], one), slope("score_function", states[0], one), rtol=1e-5
    )


@pytest.mark.parametrize("name", [name for name, own in ESTIMATORS.items() if own.init is not None])
def test_controls_learn_to_lower_the_variance(name: str) -> None:
    """A hundred steps of descent on the same noise; baselines descend their squared error."""
    estimator = ESTIMATORS[name]
    make, phi, f = problem(name, min(estimator.latents))
    control = estimator.init(jax.random.key(0), make(phi), CONTEXT)
    keys = jax.random.split(jax.random.key(1), 256)
    loss = jax.jit(
        jax.value_and_grad(
            lambda c: jax.vmap(
                lambda k: estimator.learn(k, make(phi), f, control=c, context=CONTEXT)
            )(keys).mean()
        )
    )
    first, _ = loss(control)
    for _ in range(30):
        value, slope = loss(control)
        control = jax.tree.map(
            lambda c, s: c - 0.01 * s / (1e-6 + jnp.abs(s).max()), control, slope
        )
    assert value < first


def test_what_cannot_work_is_answered_in_a_sentence() -> None:
    q, key = Bernoulli(jnp.zeros(17)), jax.random.key(0)
    with pytest.raises(ValueError, match=r"at most 65536 states; q has 2\^17"):
        expectations.enumeration(key, q, jnp.sum)
    with pytest.raises(ValueError, match="Normal cannot be enumerated"):
        expectations.enumeration(key, Normal(0.0, 1.0), jnp.sum)
    with pytest.raises(ValueError, match="rloo needs at least 2 samples; num_samples was 1"):
        expectations.rloo(key, q, jnp.sum, num_samples=1)
    with pytest.raises(ValueError, match=r"at most 10; num_samples was 11"):
        expectations.unordered_set(key, q, jnp.sum, num_samples=11)
    with pytest.raises(ValueError, match=r"5 draws without replacement of 2\^2 states"):
        expectations.unordered_set(key, Bernoulli(jnp.zeros(2)), jnp.sum, num_samples=5)
    with pytest.raises(ValueError, match="rloo has nothing to learn"):
        expectations.rloo.learn(key, q, jnp.sum)
    with pytest.raises(ValueError, match=r"run within jax\.enable_x64"):
        measurements.exact(expectations.arm, lambda phi: (Bernoulli(phi), jnp.sum), jnp.zeros(2))
    with jax.enable_x64(True), pytest.raises(ValueError, match="use Monte Carlo"):
        measurements.exact(
            expectations.arsm, lambda phi: (OneHotCategorical(phi), jnp.sum), jnp.zeros((1, 3))
        )
    with jax.enable_x64(True), pytest.raises(ValueError, match="the most is 4194304"):
        measurements.exact(
            expectations.rloo, lambda phi: (Bernoulli(phi), jnp.sum), jnp.zeros(6), 4
        )


def test_settings_are_stated_and_taken() -> None:
    """What an estimator's function has defaults for, and the learning rate of what it learns."""
    stated = {name: [*own.settings] for name, own in ESTIMATORS.items() if own.settings}
    expected = {name: ["control_learning_rate"] for name in ESTIMATORS if ESTIMATORS[name].init}
    del expected["moving_average"]  # whose step is the share of a new value
    for name in ("concrete", "straight_through_gumbel", "gumbel_rao"):
        expected[name] = ["temperature"]
    assert stated == expected | {"score_function": ["baseline"]}
    assert {n: [*own.settings] for n, own in bounds.BOUNDS.items() if own.settings} == {
        **{"miwae": ["groups"], "piwae": ["groups"], "ciwae": ["elbo_weight"]},
        **{"renyi": ["renyi_order"], "tvo": ["betas"]},
    }


def test_a_configured_estimator_keeps_its_facts() -> None:
    warm = expectations.concrete.configured(temperature=2.0)
    q, key, f = Bernoulli(jnp.array([0.4, -1.3])), jax.random.key(0), lambda z: jnp.sum(z**2)
    assert float(warm(key, q, f)) == float(expectations.concrete(key, q, f, temperature=2.0))
    assert float(warm(key, q, f)) != float(expectations.concrete(key, q, f))
    assert warm.settings["temperature"].default == 2.0
    assert warm.settings["temperature"].annotation is Positive
    assert warm.__name__ == "concrete" and warm.__doc__ == expectations.concrete.__doc__
    assert warm.latents == expectations.concrete.latents and not warm.unbiased
    assert warm.configured(temperature=0.5).settings["temperature"].default == 0.5
    assert expectations.pathwise.configured() is expectations.pathwise
    learned = expectations.nvil.configured(control_learning_rate=0.1)
    assert learned.control_learning_rate == 0.1 and learned.init is expectations.nvil.init
    assert learned.settings["control_learning_rate"].default == 0.1
    assert {name: own.__name__ for name, own in ESTIMATORS.items()} == {n: n for n in ESTIMATORS}
    with pytest.raises(ValueError, match=r"concrete has no setting tempo; its settings: temperatu"):
        expectations.concrete.configured(tempo=1.0)
    with pytest.raises(ValueError, match=r"arm has no setting temperature; its settings: none"):
        expectations.arm.configured(temperature=1.0)


def test_index_valued_categories_are_served_by_what_needs_no_relaxation() -> None:
    phi = jnp.array([[0.3, -0.5, 1.0], [0.0, 0.4, -2.0]])
    f = lambda z: jnp.sum((z - 0.7) ** 2) + (z[0] == z[1]) * 1.5
    with jax.enable_x64(True):
        phi = phi.astype(float)
        truth = jax.grad(
            lambda phi: expectations.enumeration(jax.random.key(0), Categorical(phi), f)
        )(phi)
        found = measurements.exact(expectations.rloo, lambda phi: (Categorical(phi), f), phi)
    np.testing.assert_allclose(found.mean, truth, atol=1e-12)
