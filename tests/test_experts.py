"""Mixtures of VAEs that grow: Gibbs moves against enumeration, bounds in closed form, training."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln, logsumexp
from scipy.stats import multivariate_normal

import jaxvae
from experiments.papers import growing
from jaxvae import (
    distributions,
    evaluation,
    families,
    models,
    partitions,
    runs,
    settings,
    training,
)
from jaxvae.families import contract, experts

X = np.array([-2.1, -1.9, -1.6, 0.1, 1.7, 2.2])  # clusters are N(mu, 1/4) with mu ~ N(0, 4)
OF_COMPONENTS = np.array([0.0, 0.0, 0.06087, 0.56046, 0.31553, 0.05944, 0.00370])  # P(K | x)


def every_partition(n: int) -> list[list[int]]:
    """All partitions of n examples, as slots in the order of their first members."""
    found = [[0]]
    for _ in range(n - 1):
        found = [[*slots, new] for slots in found for new in range(max(slots) + 2)]
    return found


def log_marginal(x: np.ndarray) -> float:
    covariance = 0.25 * np.eye(len(x)) + 4.0
    return float(multivariate_normal(np.zeros(len(x)), covariance).logpdf(x))


def log_prior(slots: list[int], alpha: float) -> float:
    """log [alpha^K prod_k (n_k - 1)! / prod_{i<N} (alpha + i)], the Chinese restaurant process."""
    counts = np.bincount(slots)
    rest = gammaln(alpha) - gammaln(alpha + len(slots))
    return float(len(counts) * np.log(alpha) + gammaln(counts).sum() + rest)


def exact() -> tuple[list[list[int]], np.ndarray, float]:
    every = every_partition(6)
    joint = [
        log_prior(slots, 1.0) + sum(log_marginal(X[np.array(slots) == k]) for k in set(slots))
        for slots in every
    ]
    evidence = logsumexp(joint)
    return every, np.exp(np.array(joint) - evidence), float(evidence)


def test_the_exact_posterior_over_partitions() -> None:
    every, p, evidence = exact()
    assert len(every) == 203 and evidence == pytest.approx(-12.988386, abs=2e-6)
    sizes = np.array([max(slots) + 1 for slots in every])
    assert np.bincount(sizes, p)[2:] == pytest.approx(OF_COMPONENTS[2:], abs=1e-5)
    best = every[int(p.argmax())]
    assert best == [0, 0, 0, 1, 2, 2] and p.max() == pytest.approx(0.46986, abs=1e-5)


def predictive(place: jax.Array, slots: jax.Array) -> jax.Array:
    """log p(x | members of each slot), [6]: for an empty slot it is that of the prior."""
    x = jnp.asarray(X, jnp.float32)
    members = jax.nn.one_hot(slots, 6)  # -1 is in no slot
    precision = members.sum(0) / 0.25 + 1 / 4
    mean = (members * x[:, None]).sum(0) / 0.25 / precision
    return distributions.Normal(mean, jnp.sqrt(1 / precision + 0.25)).log_density(x[place])


@functools.partial(jax.jit, static_argnames="flat")
def swept(key: jax.Array, count: int, flat: bool = False) -> tuple[jax.Array, jax.Array]:
    """How often each number of components came, and pairs of examples were together."""
    rows, mask = jnp.arange(6), jnp.ones(6, bool)
    values = (lambda place, slots: jnp.zeros(6)) if flat else predictive

    def one(turn: Any, carry: Any) -> Any:
        slots, sizes, together = carry
        key_turn = jax.random.fold_in(key, turn)
        slots = partitions.sweep(key_turn, slots, rows, mask, values, 6, 1.0)
        used = (partitions.counts_of(slots, 6) > 0).sum()
        return slots, sizes.at[used].add(1), together + (slots[:, None] == slots[None])

    start = jnp.zeros(6, jnp.int32), jnp.zeros(7, jnp.int32), jnp.zeros((6, 6), jnp.int32)
    return jax.lax.fori_loop(0, count, one, start)[1:]


@pytest.mark.optimized
def test_gibbs_moves_draw_from_the_exact_posterior() -> None:
    count = 20_000
    sizes, together = swept(jax.random.key(0), count)
    assert np.asarray(sizes)[2:] / count == pytest.approx(OF_COMPONENTS[2:], abs=0.02)
    assert float(together[0, 1]) / count == pytest.approx(0.81672, abs=0.02)
    assert float(together[2, 3]) / count == pytest.approx(0.05209, abs=0.02)


@pytest.mark.optimized
def test_the_expected_number_of_components() -> None:
    """Examples that all slots explain alike: E K = sum_i alpha / (alpha + i), and all sums to 1."""
    every = every_partition(6)
    p = np.exp([log_prior(slots, 1.0) for slots in every])
    sizes = np.array([max(slots) + 1 for slots in every])
    expected = (1 / (1 + np.arange(6))).sum()
    assert p.sum() == pytest.approx(1) and sizes @ p == pytest.approx(expected)
    counts = np.asarray(swept(jax.random.key(1), 20_000, flat=True)[0])
    assert counts @ np.arange(7) / 20_000 == pytest.approx(expected, abs=0.05)
    known = {0.1: 1.5025, 1.0: 5.1874, 10.0: 24.442}  # of a hundred examples
    for alpha, of_hundred in known.items():
        assert (alpha / (alpha + np.arange(100))).sum() == pytest.approx(of_hundred, rel=1e-4)


# counts, slot of the example, alpha -> the probability of each slot if all explain x alike
MOVES: dict[str, tuple[list[int], int, float, list[float]]] = {
    "among others": ([3, 2, 0, 0], 0, 1.0, [2 / 5, 2 / 5, 1 / 5, 0]),
    "alone keeps its component": ([0, 4, 1, 0], 2, 2.0, [0, 4 / 6, 2 / 6, 0]),
    "no slot is empty": ([2, 1, 3, 1], 0, 5.0, [1 / 6, 1 / 6, 3 / 6, 1 / 6]),
    "without a slot": ([3, 0, 0, 1], -1, 1.0, [3 / 5, 1 / 5, 0, 1 / 5]),
    "nothing is opened": ([3, 0, 2, 0], 0, 0.0, [2 / 4, 0, 2 / 4, 0]),
}


moved = jax.jit(jax.vmap(partitions.move, (0, None, None, None, None)))


@pytest.mark.parametrize("case", MOVES)
def test_probabilities_of_a_move(case: str) -> None:
    counts, slot, alpha, expected = MOVES[case]
    keys = jax.random.split(jax.random.key(0), 4000)
    log_likelihood = jnp.log(jnp.array([1.0, 2.0, 1.0, 1.0]))  # the second slot is twice as good
    p = np.array(expected) * [1, 2, 1, 1]
    given = log_likelihood, jnp.array(counts), jnp.int32(slot), jnp.float32(alpha)
    draws = moved(keys, *given)
    shares = np.bincount(np.asarray(draws), minlength=4) / 4000
    assert shares == pytest.approx(p / p.sum(), abs=0.04)
    assert (shares[p == 0] == 0).all()


# A mixture of linear Gaussian VAEs, whose posteriors are exact


def linear() -> models.VAE:
    """p(x|z) = N(w z + b, 1/4), z ~ N(0, 1), with its exact posterior."""

    def encode(params: Any, x: Any) -> distributions.Normal:
        precision = 1 + (params["w"] ** 2).sum() / 0.25
        mean = (params["w"] * (x - params["b"])).sum() / 0.25 / precision
        return distributions.Normal(mean[None], precision**-0.5 * jnp.ones(1))

    def init(key: Any, x: Any) -> Any:
        keys = jax.random.split(key)
        return {"w": jax.random.normal(keys[0], (2,)), "b": jax.random.normal(keys[1], (2,))}

    decode = lambda params, z: distributions.Normal(
        params["w"] * z[0] + params["b"], jnp.full(2, 0.5)
    )
    prior = lambda params: distributions.Normal(jnp.zeros(1), jnp.ones(1))
    return models.VAE(init, encode, decode, prior)


def mixture(concentration: float = 1.5) -> tuple[models.ExpertMixture, Any]:
    model = models.ExpertMixture(linear(), concentration)
    keys = jax.random.split(jax.random.key(5), 4)
    experts = jax.vmap(lambda key: model.vae.init(key, None))(keys)
    return model, {"experts": experts, "counts": jnp.array([6.0, 0.0, 3.0])}


def log_densities(params: Any, x: Any) -> np.ndarray:
    w, b = (np.asarray(params["experts"][name], np.float64) for name in "wb")
    each = zip(w, b, strict=True)
    return np.array(
        [multivariate_normal(b, np.outer(w, w) + 0.25 * np.eye(2)).logpdf(x) for w, b in each]
    )


def test_bounds_of_the_mixture_are_its_log_likelihood_in_closed_form() -> None:
    """Likelihoods are mixed, not decoders; an empty component has no part."""
    model, params = mixture()
    x = jnp.array([0.4, -1.1])
    weights = np.array([6, 0, 3, 1.5]) / 10.5
    expected = logsumexp(log_densities(params, x), b=weights)
    answers = models.expert_answers(model, lambda key, x: params, 2)
    log_w = jax.jit(answers.log_weights, static_argnums=3)(params, jax.random.key(0), x, 5)
    np.testing.assert_allclose(log_w, np.full(5, expected), rtol=1e-5)
    keys = jax.random.split(jax.random.key(1), 2000)
    many = jax.jit(jax.vmap(lambda key: answers.terms(params, key, x, 1)))(keys)
    bound = np.asarray(many["reconstruction"] - many["kl"])
    assert abs(bound.mean() - expected) < 5 * bound.std() / np.sqrt(2000)
    q = jax.jit(answers.encode)(params, x)
    r = weights * np.exp(log_densities(params, x) - expected)
    np.testing.assert_allclose(jax.nn.softmax(q.logits), r, atol=1e-5)


@pytest.mark.slow
def test_joint_density_sums_and_integrates_to_the_marginal() -> None:
    model, params = mixture()
    x = jnp.array([0.4, -1.1])
    answers = models.expert_answers(model, lambda key, x: params, 2)
    grid = np.linspace(-8, 8, 801)
    at = lambda c, z: {"expert": jax.nn.one_hot(c, 4), "z": z[None]}
    log_joint = jax.vmap(
        lambda c: jax.vmap(lambda z: answers.log_joint(params, x, at(c, z)))(jnp.asarray(grid))
    )(jnp.arange(4))
    total = logsumexp(np.asarray(log_joint, np.float64)) + np.log(grid[1] - grid[0])
    weights = np.array([6, 0, 3, 1.5]) / 10.5
    assert total == pytest.approx(logsumexp(log_densities(params, x), b=weights), abs=1e-4)
    draws = answers.prior(params).sample(jax.random.key(0), (2000,))
    shares = np.asarray(draws["expert"]).mean(0)
    assert shares == pytest.approx(weights, abs=0.05) and shares[1] == 0


def test_without_concentration_it_is_one_vae() -> None:
    """Terms and weights are the ones of the VAE alone, draw by draw."""
    model, params = mixture(concentration=0.0)
    params |= {"counts": jnp.array([9.0, 0.0, 0.0])}
    answers = models.expert_answers(model, lambda key, x: params, 2)
    expert = jax.tree.map(lambda leaf: leaf[0], params["experts"])
    x, key = jnp.array([0.4, -1.1]), jax.random.key(3)
    terms = jax.jit(answers.terms, static_argnums=3)(params, key, x, 3)
    key_z = jax.random.split(key)[1]
    alone = jax.jit(lambda: models.elbo_terms(model.vae, expert, key_z, x, 3))()
    assert float(terms["gate"]) == 0
    for name in ("reconstruction", "kl"):
        assert float(terms[name]) == pytest.approx(float(alone[name]), rel=1e-6)
    both = jax.jit(
        lambda: (
            models.answers(model.vae).log_weights(expert, key, x, 4),
            answers.log_weights(params, key, x, 4),
        )
    )
    np.testing.assert_allclose(*both(), rtol=1e-5)


# Training

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in training.MAPPINGS[1:]]
MAPPINGS = [training.MAPPINGS[0], *SLOW]
BLOBS = 4.0 * np.array([[1.0, 0], [-1, 0.4], [0.2, 1.2], [-0.5, -1.3], [1.4, -1.2]])


def blobs(count: int = 500, seed: int = 0) -> np.ndarray:
    """Points of five separated clusters in the plane, [N, 2]."""
    rng = np.random.default_rng(seed)
    points = BLOBS[rng.integers(5, size=count)] + 0.3 * rng.normal(size=(count, 2))
    return points.astype(np.float32)


def algorithm_of(
    size: int, concentration: float, settling: int, count: int, seeds: Any
) -> training.Algorithm:
    components = experts.components_of(
        models.ExpertMixture(linear(), concentration), jnp.asarray(seeds), 2
    )
    moves = training.Moves(size, concentration, settling)
    return training.growing_mixture(components, training.adam(0.05), moves, count)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_components_are_the_same_on_any_devices(mapping: str) -> None:
    """Batches of eight are padded to nine on three devices."""
    x = blobs(20)
    algorithm = algorithm_of(4, 1.0, 3, 20, x[:2])
    fit = lambda devices, **more: training.fit(
        algorithm, x, num_steps=8, batch_size=8, devices=devices, **more
    )
    one, three = fit(jax.devices()[:1]), fit(jax.devices()[:3], mapping=mapping)
    np.testing.assert_array_equal(one.memory, three.memory)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(three.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_examples_start_in_the_nearest_component_and_stay_while_it_settles() -> None:
    x = blobs(30)
    algorithm = algorithm_of(6, 1.0, 100, 30, BLOBS)
    state = training.fit(algorithm, x, num_steps=12, batch_size=8)
    nearest = ((x[:, None] - BLOBS[None]) ** 2).sum(2).argmin(1)
    np.testing.assert_array_equal(state.memory, nearest)
    counts = np.asarray(training.trained(state)["counts"])
    np.testing.assert_array_equal(counts, np.bincount(nearest, minlength=6))


@pytest.mark.slow
def test_an_opened_component_starts_as_the_base_and_an_empty_one_is_free_again() -> None:
    """With a huge concentration every example opens a component of its own."""
    x = blobs(3)
    algorithm = algorithm_of(5, 1e9, 2, 3, np.zeros((1, 2)))
    before = training.fit(algorithm, x, num_steps=2, batch_size=3)
    assert set(np.asarray(before.memory)) == {0}
    after = training.fit(algorithm_of(5, 1e9, 2, 3, np.zeros((1, 2))), x, num_steps=3, batch_size=3)
    counts = partitions.counts_of(after.memory, 5)
    assert sorted(np.asarray(counts)) == [0, 0, 1, 1, 1]
    opened = jnp.array([False, True, False, False, False])
    experts = before.params["model"]["experts"]
    new, opt_state = jaxvae.training.growing._renewed(training.adam(0.05), before, opened)
    np.testing.assert_array_equal(new["w"][1], experts["w"][5])
    others = jnp.array([0, 2, 3, 4, 5])
    np.testing.assert_array_equal(new["w"][others], experts["w"][others])
    moments = opt_state[0]
    assert moments.count.tolist() == [2, 0, 2, 2, 2, 2] and not moments.mu["w"][1].any()


@pytest.mark.slow
def test_one_component_without_concentration_trains_as_one_vae() -> None:
    x = blobs(12)
    algorithm = algorithm_of(1, 0.0, 1, 12, np.zeros((1, 2)))
    state = training.fit(algorithm, x, num_steps=6, batch_size=6)
    assert not np.asarray(state.memory).any()
    start = algorithm.init(jax.random.key(0), x[0])
    first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)

    def loss(params: Any, key: Any, x: Any, step: Any) -> Any:
        terms = models.elbo_terms(linear(), params, jax.random.split(key)[1], x, 1)
        return terms["kl"] - terms["reconstruction"], terms

    init = lambda key, x: first(start.params["model"]["experts"])
    alone = training.gradient_descent(init, training.batch_mean(loss), training.adam(0.05))
    other = training.fit(alone, x, num_steps=6, batch_size=6)
    for name, value in first(training.trained(state)["experts"]).items():
        np.testing.assert_allclose(value, training.trained(other)[name], rtol=1e-4, atol=1e-6)


def test_far_apart_examples_are_of_all_clusters() -> None:
    points = blobs(200)
    rows = experts.far_apart(points, 5, seed=0)
    nearest = ((points[rows][:, None] - BLOBS[None]) ** 2).sum(2).argmin(1)
    assert sorted(nearest) == [0, 1, 2, 3, 4]
    assert len(experts.far_apart(np.zeros((3, 2)), 5, seed=0)) == 5


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("seed", range(5))
def test_five_blobs_have_about_five_components(seed: int) -> None:
    config = settings.changed(growing.of_points(growing.Options(table="blobs")), seed=seed)
    run, params, _ = growing.trained_on_points(config, runs.Job())
    assert 4 <= growing.used(params) <= 6
    clusters = evaluation.metrics.clusters_of(run.built.model, params, run.key, run.test)
    assert evaluation.clusters.accuracy(clusters, run.test.y) > 0.75


REFUSED = [
    ({"experts": 3, "first_experts": 4}, "first_experts=4 must be at most experts=3"),
    ({"accumulate": 2}, "accumulate must be 1"),
    ({"ema_decay": 0.5}, "ema_decay and skip_norm must be 0"),
]


@pytest.mark.parametrize("named, words", REFUSED)
def test_what_cannot_work_is_refused(named: dict[str, Any], words: str) -> None:
    config = settings.changed(families.preset("infinite-vae"), **named)
    data = contract.Data("pixels", (2, 2, 1), "uint8", 2, "dynamic", 10)
    with pytest.raises(ValueError, match=words):
        families.FAMILIES["experts"].build(config, data)
