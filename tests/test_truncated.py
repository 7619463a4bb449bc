"""VAEs of bits without an encoder: bound, search, closed forms, memory; bars, all seeds at once."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import logsumexp

from experiments.papers import evolution
from jaxvae import families, likelihoods, models, networks, pictures, schedules, training
from jaxvae.distributions import Truncated
from jaxvae.families import contract
from jaxvae.models import truncated

LATENT, SIZE = 4, 6
EVERY = np.array(list(itertools.product([0, 1], repeat=LATENT)), np.float32)


def model_of(states: int, decoder: Any = None) -> models.TruncatedVAE:
    return models.TruncatedVAE(
        networks.mlp((5,), (SIZE, 1)) if decoder is None else decoder,
        likelihoods.normal_learned(0.5),
        models.first_states(LATENT, states, seed=0),
        models.Search(parents=3, children=2, generations=2),
    )


def bound_of(model: models.TruncatedVAE) -> Any:
    """-F, its terms and statistics, compiled."""
    return jax.jit(functools.partial(truncated.bound_of, model))


def example() -> jax.Array:
    return jax.random.normal(jax.random.key(3), (SIZE, 1))


def fresh(model: models.TruncatedVAE, skewed: bool = True) -> Any:
    params = model.init(jax.random.key(0), example())
    if skewed:
        params["prior"]["probabilities"] = jnp.array([0.1, 0.4, 0.7, 0.25])
    return params


def enumerated(model: models.TruncatedVAE, params: Any, x: Any) -> np.ndarray:
    """log p(x, s) of every state, written out in NumPy."""
    pi = np.asarray(params["prior"]["probabilities"], np.float64)
    scale = np.exp(float(params["likelihood"]["log_scale"]))
    means = np.asarray(decoded(model, params))
    squares = ((np.asarray(x)[None] - means) ** 2).sum((1, 2))
    density = -0.5 * squares / scale**2 - SIZE * np.log(scale * np.sqrt(2 * np.pi))
    return density + EVERY @ np.log(pi) + (1 - EVERY) @ np.log1p(-pi)


def decoded(model: models.TruncatedVAE, params: Any) -> Any:
    """The decoder at every state, [16, *x]."""
    decode = jax.jit(jax.vmap(lambda s: model.decoder.apply(params["decoder"], s)))
    return decode(jnp.asarray(EVERY))


def test_bound_with_all_states_is_log_p() -> None:
    model = model_of(2**LATENT)
    params, x = fresh(model), example()
    exact = logsumexp(enumerated(model, params, x))
    value, (terms, _) = bound_of(model)(params, x, jnp.asarray(EVERY))
    assert -float(value) == pytest.approx(exact, rel=1e-5)
    assert float(terms["reconstruction"] - terms["kl"]) == pytest.approx(exact, rel=1e-5)


def test_the_search_never_lowers_the_bound_and_stays_below_log_p() -> None:
    """For every example of a batch, at fixed parameters; a repeated state would count twice."""
    model = model_of(5)
    params = fresh(model)
    x = jax.random.normal(jax.random.key(1), (12, SIZE, 1))
    exact = np.array([logsumexp(enumerated(model, params, one)) for one in x])
    states = jnp.tile(jnp.asarray(model.first, jnp.float32), (12, 1, 1))
    bound = jax.jit(jax.vmap(lambda x, s: -truncated.bound_of(model, params, x, s)[0]))

    @jax.jit
    def searched(key: Any, states: Any) -> Any:
        keys = jax.random.split(key, 12)
        score = lambda x: lambda s: model.log_joint(params, x, s)
        return jax.vmap(lambda k, x, s: truncated.evolved(k, s, score(x), model.search))(
            keys, x, states
        )

    before = np.asarray(bound(x, states))
    first = before
    for turn in range(12):
        states = searched(jax.random.fold_in(jax.random.key(2), turn), states)
        assert all(len(np.unique(each, axis=0)) == 5 for each in np.asarray(states))
        now = np.asarray(bound(x, states))
        assert (now >= before - 1e-5).all() and (now <= exact + 1e-4).all()
        before = now
    best = np.sort([enumerated(model, params, one) for one in x], 1)[:, -5:]
    assert now == pytest.approx(logsumexp(best, axis=1), rel=1e-4)  # the five best of sixteen
    assert now.mean() > first.mean() + 0.1


def test_children_differ_from_their_parent_in_one_bit_each_in_another() -> None:
    parent = jnp.array([1.0, 0, 0, 1, 1, 0])
    children = np.asarray(truncated.flipped(jax.random.key(0), parent, 5))
    changes = np.abs(children - parent)
    assert (changes.sum(1) == 1).all() and len(np.unique(changes, axis=0)) == 5
    assert set(np.unique(children)) <= {0.0, 1.0}


def test_parents_are_drawn_by_the_fitness_of_their_own_example() -> None:
    """The trap: normalized over a batch, nearly every parent would be the last state."""
    states = jnp.asarray(np.kron(np.eye(4), np.ones((1, 3))))  # no two have a child in common
    scores = jnp.array([-10.0, -1.0, -10.0, -10.0])
    search = models.Search(parents=4000, children=1, generations=1)
    draw = jax.jit(lambda key: truncated._children(key, states, scores, search))
    children = draw(jax.random.key(0))
    parents = np.array([np.abs(children - s).sum(1) == 1 for s in states])
    fitness = np.array([10.0, 19.0, 10.0, 10.0])
    assert parents.mean(1) == pytest.approx(fitness / fitness.sum(), abs=0.03)


def test_repeated_states_are_found() -> None:
    states = jnp.array([[0.0, 1], [1, 1], [0, 1], [0, 0], [1, 1]])
    assert truncated.repeated(states).tolist() == [False, False, True, False, True]


@pytest.mark.parametrize("latent", [3, 8, 9, 40])
def test_first_states_are_different_and_survive_packing(latent: int) -> None:
    states = models.first_states(latent, 8, seed=1)
    assert len(np.unique(states, axis=0)) == 8
    entry = truncated.packed(jnp.asarray(states))
    assert entry.dtype == jnp.uint8 and entry.size == 8 * -(-latent // 8)
    np.testing.assert_array_equal(truncated.unpacked(entry, latent), states)


def test_closed_forms_are_the_fixed_point_of_em() -> None:
    """Prior and scale after one M step, against sums over all states in NumPy."""
    model = model_of(2**LATENT)
    params = fresh(model)
    x = jax.random.normal(jax.random.key(1), (7, SIZE, 1))
    each = jax.vmap(bound_of(model), (None, 0, None))(params, x, jnp.asarray(EVERY))
    sums = jax.tree.map(lambda a: a.sum(0), each[1][1])
    new = truncated.solved(params, sums, jnp.float32(7))
    log_joints = np.stack([enumerated(model, params, one) for one in x])
    q = np.exp(log_joints - logsumexp(log_joints, axis=1, keepdims=True))
    means = np.asarray(decoded(model, params))
    squares = ((np.asarray(x)[:, None] - means[None]) ** 2).sum((2, 3))
    np.testing.assert_allclose(new["prior"]["probabilities"], (q @ EVERY).mean(0), rtol=1e-4)
    variance = (q * squares).sum() / 7 / SIZE
    assert float(new["likelihood"]["log_scale"]) == pytest.approx(0.5 * np.log(variance), abs=1e-5)


@pytest.mark.slow
def test_a_linear_decoder_is_binary_sparse_coding() -> None:
    """log p(x) with all states of p(x|s) = N(W s, s^2 I), the mixture written out."""
    model = model_of(2**LATENT, networks.mlp((), (SIZE, 1)))
    params, x = fresh(model), example()
    kernel = np.asarray(params["decoder"]["output"]["kernel"]).reshape(LATENT, SIZE)
    pi, scale = np.asarray(params["prior"]["probabilities"]), 0.5
    bias = np.asarray(params["decoder"]["output"]["bias"]).reshape(SIZE)
    residuals = np.ravel(x) - EVERY @ kernel - bias
    density = -0.5 * (residuals**2).sum(1) / scale**2 - SIZE * np.log(scale * np.sqrt(2 * np.pi))
    weights = np.prod(np.where(EVERY == 1, pi, 1 - pi), 1)
    value, _ = truncated.bound_of(model, params, x, jnp.asarray(EVERY))
    assert -float(value) == pytest.approx(logsumexp(density, b=weights), rel=1e-5)


@pytest.mark.slow
def test_posteriors_of_new_examples_need_the_search() -> None:
    """The trap: states of the start are far below the bound after some rounds."""
    model = model_of(3)
    params, x = fresh(model), 2 * example()
    start = -truncated.bound_of(model, params, x, jnp.asarray(model.first, jnp.float32))[0]
    answers = models.truncated_answers(model, rounds=15)
    terms = answers.terms(params, jax.random.key(0), x, 1)
    found = float(terms["reconstruction"] - terms["kl"])
    log_joints = enumerated(model, params, x)
    assert found == pytest.approx(logsumexp(np.sort(log_joints)[-3:]), rel=1e-4)
    assert found > float(start) and found < logsumexp(log_joints)
    q = answers.encode(params, x)
    assert isinstance(q, Truncated)
    assert float(jnp.exp(q.log_prob(q.states)).sum()) == pytest.approx(1)
    others = [s for s in EVERY if not (s == np.asarray(q.states)).all(1).any()]
    assert all(float(q.log_prob(s)) == -np.inf for s in others)


@pytest.mark.slow
def test_importance_weights_reach_log_p_beyond_the_states() -> None:
    """Draws of independent bits make the estimate unbiased, though two states bound it loosely."""
    model = model_of(2)
    params, x = fresh(model), example()
    answers = models.truncated_answers(model, rounds=10)
    log_w = np.asarray(answers.log_weights(params, jax.random.key(0), x, 20_000), np.float64)
    exact = logsumexp(enumerated(model, params, x))
    ratio = np.exp(log_w - exact)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(len(ratio))
    terms = answers.terms(params, jax.random.key(0), x, 1)
    assert float(terms["reconstruction"] - terms["kl"]) < exact - 0.01


# Memory

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in training.MAPPINGS[1:]]
MAPPINGS = [training.MAPPINGS[0], *SLOW]


def test_rows_are_remembered_and_padding_is_dropped() -> None:
    memory = {"a": jnp.zeros((5, 2)), "b": jnp.zeros(5, jnp.int32)}
    batch = training.Batch(None, jnp.arange(3), jnp.array([0.5, 0.5, 0.0]), jnp.array([3, 0, 0]))
    entries = {"a": jnp.array([[1.0, 1], [2, 2], [9, 9]]), "b": jnp.array([4, 5, 9])}
    new = training.remembered(memory, batch, entries, None)
    assert new["b"].tolist() == [5, 0, 0, 4, 0]
    assert new["a"][:, 0].tolist() == [2, 0, 0, 1, 0]
    again = training.recalled(new, batch)
    assert again["b"].tolist() == [4, 5, 5]
    with pytest.raises(ValueError, match=r"needs their rows in the data set"):
        training.recalled(memory, batch._replace(row=None))


def algorithm_of(model: models.TruncatedVAE, count: int, batch_size: int) -> training.Algorithm:
    return training.expectation_maximization(
        truncated.steps_of(model), optax.sgd(1e-3), count, batch_size
    )


@pytest.mark.slow
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_the_memory_is_the_same_on_any_devices(mapping: str) -> None:
    """Ten examples in batches of four, padded to six on three devices; and resumed in an epoch."""
    model, x = model_of(4), np.asarray(jax.random.normal(jax.random.key(1), (10, SIZE, 1)))
    algorithm = algorithm_of(model, 10, 4)
    fit = lambda count, **more: training.fit(
        algorithm, x, num_steps=5, batch_size=4, devices=jax.devices()[:count], **more
    )
    one, three = fit(1), fit(3, mapping=mapping)
    np.testing.assert_array_equal(one.memory, three.memory)
    assert (np.asarray(one.memory) != np.asarray(one.memory)[:1]).any()
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(three.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_closed_forms_wait_for_the_end_of_an_epoch() -> None:
    model, x = model_of(4), np.asarray(jax.random.normal(jax.random.key(1), (10, SIZE, 1)))
    algorithm = algorithm_of(model, 10, 4)
    states = [training.fit(algorithm, x, num_steps=n, batch_size=4) for n in (0, 2, 3, 4)]
    prior = [np.asarray(training.trained(s)["prior"]["probabilities"]) for s in states]
    np.testing.assert_array_equal(prior[0], prior[1])
    assert (prior[1] != prior[2]).all()
    np.testing.assert_array_equal(prior[2], prior[3])
    assert [float(s.sums["count"]) for s in states] == [0, 8, 0, 4]


@pytest.mark.slow
def test_states_are_those_of_the_examples_after_training() -> None:
    """An entry belongs to its row: F of an example is lower at another example's states."""
    model = model_of(2)
    x = np.repeat(np.array([[-2.0], [2.0]]), 3, 0)[:, :, None] * np.ones((6, SIZE, 1))
    state = training.fit(
        training.expectation_maximization(truncated.steps_of(model), optax.adam(0.02), 6, 2),
        x.astype(np.float32), num_steps=200, batch_size=2,
    )  # fmt: skip
    params = training.trained(state)
    states = [truncated.unpacked(entry, LATENT) for entry in state.memory]
    f = lambda i, j: -float(truncated.bound_of(model, params, jnp.float32(x[i]), states[j])[0])
    assert f(0, 0) > f(0, 5) + 1 and f(5, 5) > f(5, 0) + 1


def test_triangular_rate() -> None:
    rate = schedules.triangular(10, 1.0, 3.0)
    values = [float(rate(jnp.int32(step))) for step in (0, 2, 5, 8, 10, 15)]
    assert values == pytest.approx([1, 1.8, 3, 1.8, 1, 3])


REFUSED = [
    ({"latent": 3, "states": 9, "children": 2}, "3 bits have 8 states"),
    ({"latent": 3, "states": 4, "children": 4}, "there are only 3"),
    ({"accumulate": 2}, "accumulate must be 1"),
    ({"ema_decay": 0.9}, "ema_decay 0"),
]


@pytest.mark.parametrize("named, words", REFUSED)
def test_what_cannot_work_is_refused(named: dict[str, Any], words: str) -> None:
    config = families.preset("tvae", **named)
    data = contract.Data("pixels", (2, 2, 1), "float32", None, "none", 10)
    with pytest.raises(ValueError, match=words):
        families.FAMILIES["truncated"].build(config, data)


# Bars and pictures


def test_bars_of_the_generator() -> None:
    """The expected log p of the law of bars is 9.65 nats, by enumeration of 256 states."""
    assert evolution.of_generator(evolution.bars(2000)) == pytest.approx(9.65, abs=0.15)


@pytest.mark.slow
@pytest.mark.optimized
def test_bars_are_found_by_some_of_eight_seeds_at_once() -> None:
    """The best by F has all bars and log p of at least 8; so have three of the seeds or more."""
    cells = [row[0] for row in evolution.table_of_bars(evolution.Options()).values()]
    best = max(cells, key=lambda cell: cell["F"])
    assert best["bars"] == 8 and best["log p"] >= 8.0
    assert sum(cell["bars"] == 8 for cell in cells) >= 3
    assert all(cell["F"] <= cell["log p"] + 1e-3 for cell in cells)


@pytest.mark.slow
def test_tables_of_evolution(tmp_path: Path) -> None:
    """Small forms of both; every method cleans stripes, whatever the model has learned."""
    small = evolution.table_of_bars(evolution.Options(seeds=2, steps=20))
    assert len(small) == 2 and np.isfinite(list(small["seed 1"][0].values())).all()
    stripes = (np.arange(24)[None, :, None] // 4 % 2) * np.ones((24, 1, 1))
    pictures.write(tmp_path / "clean.png", 0.2 + 0.6 * stripes)
    options = evolution.Options(
        table="denoising",
        picture=tmp_path / "clean.png",
        seeds=1,
        steps=30,
        patch=4,
        latent=6,
        states=8,
    )
    (cell,) = evolution.table_of_denoising(options)["PSNR"]
    assert min(cell["linear VAE"], cell["total variation"], cell["non-local means"]) > cell["noisy"]
    assert np.isfinite(cell["TVAE"])
