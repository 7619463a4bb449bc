"""Quantizers and codebooks: gradients by hand, averages by their recursion, faults that are caught.

The faults are those that published codes have.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from scipy.stats import entropy
from sklearn.cluster import KMeans

from jaxvae import (
    codebooks,
    evaluation,
    families,
    likelihoods,
    models,
    networks,
    quantizers,
    training,
)
from jaxvae.models import codebook

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
Z = RANDOM.normal(size=(4, 3, 2)).astype(np.float32)  # one example's vectors
BOOK = RANDOM.normal(size=(5, 2)).astype(np.float32)
ROWS = RANDOM.normal(size=(11, 3, 2)).astype(np.float32)  # eleven examples' vectors
WEIGHT = np.full(11, 1 / 11, np.float32)
KEYS = jax.random.split(KEY, 11)


def hand_codes(z: np.ndarray, book: np.ndarray) -> np.ndarray:
    return cdist(z.reshape(-1, z.shape[-1]), book).argmin(1).reshape(z.shape[:-1])


def moves(gradient: Any) -> bool:
    return any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


# Gradients


def test_the_gradient_of_a_codebook_is_its_own_and_the_encoders_is_commitment() -> None:
    """Of beta |z - stop(e)|^2 + |stop(z) - e|^2, by hand: beta is on the encoder's side."""
    quantizer = quantizers.nearest(2, codebook_size=5, commitment=0.25)
    loss = lambda book, z: quantizer.quantize({"book": book}, z).loss
    of_book, of_z = jax.jit(jax.grad(loss, (0, 1)))(BOOK, Z)
    codes = hand_codes(Z, BOOK)
    by_hand = np.zeros_like(BOOK)
    np.add.at(by_hand, codes, 2 * (BOOK[codes] - Z) / Z.size)
    np.testing.assert_allclose(of_book, by_hand, atol=1e-6)
    np.testing.assert_allclose(of_z, 0.25 * 2 * (Z - BOOK[codes]) / Z.size, atol=1e-6)


PASSES: dict[str, Callable[[], quantizers.Quantizer]] = {
    "nearest": lambda: quantizers.nearest(2, codebook_size=5),
    "moving_average": lambda: quantizers.moving_average(2, codebook_size=5),
    "residual": lambda: quantizers.residual(2, codebook_size=5, quantizers=3),
    "finite_scalar": lambda: quantizers.finite_scalar(2, code_levels=(5, 4)),
    "lookup_free": lambda: quantizers.lookup_free(2),
}


def rounding_slope(z: np.ndarray) -> np.ndarray:
    """d/dz of h tanh(z + atanh(o/h)) / floor(L/2) for 5 and 4 levels."""
    half, offset = np.array([2.0, 1.5]) * 1.001, np.array([0.0, 0.5])
    return half / 2 / np.cosh(z + np.arctanh(offset / half)) ** 2


@pytest.mark.parametrize("name", PASSES)
def test_gradients_pass_straight_through(name: str) -> None:
    quantizer = PASSES[name]()
    params = quantizer.init(KEY)
    cotangent = RANDOM.normal(size=Z.shape).astype(np.float32)

    @jax.jit
    def pulled(params: Any, z: Any) -> Any:
        vectors, pull = jax.vjp(lambda p, z: quantizer.quantize(p, z).vectors, params, z)
        codes = quantizer.quantize(params, z).codes
        of_loss = jax.grad(lambda params: quantizer.quantize(params, z).loss)(params)
        return vectors, pull(cotangent), codes, quantizer.look_up(params, codes), of_loss

    vectors, (of_params, of_z), codes, looked_up, of_loss = pulled(params, Z)
    slope = rounding_slope(Z) if name == "finite_scalar" else 1.0
    np.testing.assert_allclose(of_z, cotangent * slope, rtol=1e-4)
    np.testing.assert_allclose(vectors, looked_up, atol=1e-6)
    assert not moves(of_params)
    assert moves(of_loss) == (name in ("nearest", "residual"))  # moving averages descend no loss
    jax.tree.map(lambda k, each: np.testing.assert_array_less(each, k), quantizer.num_codes, codes)


# Codebooks that follow their codes

FAR = np.concatenate([BOOK[:2], BOOK[2:] + 50])  # three codes that nothing is near to
REVIVALS = {
    "none": codebooks.no_revival(),
    "split": codebooks.split_most_used(0.4),
    "begin_anew": codebooks.begin_anew(0.4),
}


def of_one_device(*args: Any) -> Any:
    """The fault: statistics that are not summed over devices."""
    return codebooks.statistics(*args[:-1], None)


def without_counts(book: Any, revival: codebooks.Revival) -> Any:
    """The fault of most ports, N = 0 with S = e at the start."""
    return {"count": jnp.zeros(len(book)), "sum": book}


# Codebooks of one game: loss, revival, start, vectors at the start.
CODEBOOKS: dict[str, tuple[Any, ...]] = {
    "near": (codebooks.statistics, "none", codebooks.started, BOOK),
    **{name: (codebooks.statistics, name, codebooks.started, FAR) for name in REVIVALS},
    "of one device": (of_one_device, "none", codebooks.started, BOOK),
    "without counts": (codebooks.statistics, "none", without_counts, FAR),
}


@functools.cache
def game() -> training.Algorithm:
    """All codebooks, which follow the same vectors."""

    def player(name: str) -> training.Player:
        loss, revival, *_ = CODEBOOKS[name]
        of_batch = lambda params, keys, z, weight, step, axis_name: (
            loss(params[name], keys, z, weight, axis_name),
            {},
        )
        return training.Player(of_batch, codebooks.averaging(0.8, REVIVALS[revival]))

    def init(key: Any, x: Any) -> Any:
        rows = CODEBOOKS.items()
        return {name: start(jnp.asarray(e), REVIVALS[r]) for name, (_, r, start, e) in rows}

    return training.players(init, {name: player(name) for name in CODEBOOKS})


@functools.cache
def averages(devices: int = 1, steps: int = 12) -> Any:
    """The averages of all codebooks after some steps, on batches of all rows."""
    state = training.fit(
        game(),
        ROWS,
        num_steps=steps,
        batch_size=len(ROWS),
        devices=jax.local_devices()[:devices],
    )
    return jax.tree.map(np.asarray, state.params)


def vectors(name: str, steps: int = 12) -> np.ndarray:
    return np.asarray(codebooks.vectors_of(averages(steps=steps)[name]))


def test_averages_are_their_recursion() -> None:
    """N <- g N + (1 - g) n and S <- g S + (1 - g) s in float64, with codes from S / N."""
    count, total = np.full(5, 0.2), BOOK.astype(np.float64) / 5
    flat = ROWS.reshape(-1, 2).astype(np.float64)
    for _ in range(12):
        chosen = np.eye(5)[hand_codes(flat, total / count[:, None])] / len(flat)
        count, total = 0.8 * count + 0.2 * chosen.sum(0), 0.8 * total + 0.2 * chosen.T @ flat
    params = averages()["near"]
    np.testing.assert_allclose(params["count"], count, rtol=1e-5)
    np.testing.assert_allclose(params["sum"], total, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(vectors("near"), total / count[:, None], rtol=1e-4)


def test_averages_end_at_the_means_of_kmeans() -> None:
    """Another iteration of k-means leaves the vectors where they are."""
    book = vectors("near", 300)
    means = KMeans(5, init=book, n_init=1, max_iter=1).fit(ROWS.reshape(-1, 2)).cluster_centers_
    np.testing.assert_allclose(book, means, atol=1e-4)
    assert np.abs(book - BOOK).max() > 0.1


def check_devices(name: str) -> None:
    """Eleven examples on one device, and on two and four with padding: the same averages."""
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for devices in (2, 4):
        jax.tree.map(same, averages()[name], averages(devices)[name])


@pytest.mark.parametrize("name", ["near", *REVIVALS])
def test_statistics_are_of_all_devices(name: str) -> None:
    check_devices(name)


def test_statistics_of_one_device_are_caught() -> None:
    with pytest.raises(AssertionError):
        check_devices("of one device")


def check_idle(name: str) -> None:
    """Codes that are not used stay where they are."""
    np.testing.assert_allclose(vectors(name)[2:], FAR[2:], rtol=1e-3)


def test_a_start_without_counts_is_caught() -> None:
    """It moves an idle code from e to e / eps."""
    check_idle("none")
    with pytest.raises(AssertionError):
        check_idle("without counts")


@pytest.mark.parametrize("name", REVIVALS)
def test_dead_codes_are_used_again(name: str) -> None:
    used = np.unique(hand_codes(ROWS, vectors(name)))
    assert len(used) == (2 if name == "none" else 5)


def test_a_split_keeps_the_sums() -> None:
    count, total = jnp.array([0.7, 0.29, 0.01, 0.0]), jnp.arange(8.0).reshape(4, 2)
    total = total.at[2:].set(0.0)  # dead codes have no part in them
    new, new_total = codebooks.split_most_used(0.1).revive(KEY, count, total, jnp.zeros((0, 2)))
    np.testing.assert_allclose(new_total.sum(0), total.sum(0), rtol=1e-6)
    np.testing.assert_allclose(np.sort(new), [0.175, 0.175, 0.29, 0.35], rtol=1e-6)


def test_draws_are_the_highest_scores_and_repeat() -> None:
    scores = jnp.array([0.5, -jnp.inf, 2.0, 1.0])
    drawn = codebooks.draw(scores, jnp.arange(4.0)[:, None], 5, None)
    np.testing.assert_array_equal(drawn[:, 0], [2, 3, 0, 2, 3])


# Quantizers without a codebook


@pytest.mark.parametrize("levels", [(3,), (8, 5, 5), (4, 7), (1000,)])
def test_every_code_of_finite_scalars_is_reached(levels: tuple[int, ...]) -> None:
    """The look-up gives every code once, and so does quantization of the points between bounds."""
    quantizer = quantizers.finite_scalar(len(levels), code_levels=levels)
    grids = [(np.arange(n) - n // 2) / (n // 2) for n in levels]
    expected = np.array([row[::-1] for row in itertools.product(*grids[::-1])])
    count = np.array(levels)
    half, offset = (count - 1) * 1.001 / 2, np.where(count % 2, 0, 0.5)
    ratio = np.clip((expected * (count // 2) + offset) / half, -1 + 1e-7, 1 - 1e-7)
    z = np.arctanh(ratio) - np.arctanh(offset / half)
    z = np.concatenate([z, np.zeros((1, len(levels)))]).astype(np.float32)
    codes, vectors = jax.jit(lambda z: quantizer.quantize({}, z)[:2])(z)
    looked_up = jax.jit(lambda codes: quantizer.look_up({}, codes))(codes)
    np.testing.assert_array_equal(codes[:-1], np.arange(math.prod(levels)))
    np.testing.assert_allclose(vectors[:-1], expected, atol=1e-6)
    np.testing.assert_allclose(looked_up, vectors, atol=1e-6)
    np.testing.assert_array_equal(vectors[-1], 0)  # zero is a level


def test_two_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="code_levels must be from 3 to 1000"):
        quantizers.finite_scalar(2, code_levels=(2, 3))


def test_entropies_of_signs_are_those_of_the_table() -> None:
    z = 0.3 * Z.reshape(-1, 2)[:, [0, 1, 0]] + np.array([0, 0.1, -0.2])
    signs = np.array(list(itertools.product([-1, 1], repeat=3)))[:, ::-1]
    logits = 2 * 1.5 * z @ signs.T
    table = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))  # p(c|z)
    quantizer = quantizers.lookup_free(3, 0.25, 0.1, 2.0, inverse_temperature=1.5)

    @jax.jit
    def quantized(z: Any) -> Any:
        found = quantizer.quantize({}, z)
        return found, quantizer.batch_loss(found.statistic), quantizer.look_up({}, jnp.arange(8))

    found, of_batch, every = quantized(z.astype(np.float32))
    np.testing.assert_allclose(found.statistic, table.mean(0), rtol=1e-5)
    commitment = 0.25 * np.mean((z - np.sign(z)) ** 2)
    assert float(found.loss) == pytest.approx(0.1 * entropy(table.T).mean() + commitment, rel=1e-5)
    assert float(of_batch) == pytest.approx(-0.2 * entropy(table.mean(0)), rel=1e-5)
    np.testing.assert_array_equal(found.codes, logits.argmax(1))
    np.testing.assert_array_equal(every, signs)


def test_each_codebook_lowers_what_is_left() -> None:
    """A code at zero can leave the rest as it is."""
    quantizer = quantizers.residual(2, codebook_size=5, quantizers=4)
    book = quantizer.init(KEY)["book"].at[:, 0].set(0.0)
    codes, vectors, _, _ = jax.jit(lambda z: quantizer.quantize({"book": book}, z))(Z)
    rest, energies = Z, [np.sum(Z**2)]
    for each, vectors_of_book in zip(codes, np.asarray(book), strict=True):
        np.testing.assert_array_equal(each, hand_codes(rest, vectors_of_book))
        rest = rest - vectors_of_book[each]
        energies.append(np.sum(rest**2))
    assert np.all(np.diff(energies) <= 0) and energies[-1] < energies[0]
    np.testing.assert_allclose(vectors, Z - rest, atol=1e-6)


def test_usage_is_of_weighted_frequencies() -> None:
    codes = RANDOM.integers(0, 6, (11, 2, 3))
    weight = np.append(np.full(10, 0.1), 0.0)  # the last one is padding
    found = quantizers.frequencies(jnp.asarray(codes), jnp.asarray(weight), 7)
    expected = np.bincount(codes[:10].ravel(), minlength=7) / 60
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert float(quantizers.perplexity(found)) == pytest.approx(np.exp(entropy(expected)))
    assert float(quantizers.perplexity(jnp.full(9, 1 / 9))) == pytest.approx(9)


# Whole models, of two levels with one and four positions

SHAPE = (4, 4, 1)
X = RANDOM.integers(0, 4, (11, *SHAPE)).astype(np.float32) / 3


def pooled(width: int) -> networks.Network:
    """Halves height and width: a layer of patches of 2 x 2."""

    def apply(params: Any, x: Any) -> Any:
        h, w, channels = x.shape
        patches = x.reshape(h // 2, 2, w // 2, 2, channels).swapaxes(1, 2)
        return jnp.tanh(patches.reshape(h // 2, w // 2, -1) @ params)

    init = lambda key, x: jax.random.normal(key, (4 * x.shape[-1], width))
    return networks.Network(init, apply)


def spread(channels: int) -> networks.Network:
    """Doubles height and width."""

    def apply(params: Any, x: Any) -> Any:
        h, w, _ = x.shape
        patches = (x @ params).reshape(h, w, 2, 2, channels).swapaxes(1, 2)
        return patches.reshape(2 * h, 2 * w, channels)

    init = lambda key, x: jax.random.normal(key, (x.shape[-1], 4 * channels))
    return networks.Network(init, apply)


def affine(output: int) -> networks.Network:
    init = lambda key, x: jax.random.normal(key, (x.shape[-1], output))
    return networks.Network(init, lambda params, x: x @ params)


def of_levels(quantizer: Callable[..., quantizers.Quantizer], **settings: Any) -> codebook.Codebook:
    """An autoencoder of two levels."""
    level = codebook.Level(pooled(3), affine(2), spread(2), quantizer(2, **settings))
    return codebook.Codebook((level, level), likelihoods.discretized_logistic(4), SHAPE)


def test_the_bound_is_below_the_evidence_of_all_codes() -> None:
    """All 32 codes are summed."""
    model = of_levels(quantizers.nearest, codebook_size=2)
    answers = codebook.codebook_answers(model)
    params = answers.init(KEY, X[0])
    assert [each.shape for each in answers.codes(params, X[0])] == [(1, 1), (2, 2)]
    every = np.array(list(itertools.product(range(2), repeat=5)))
    codes = (every[:, :1].reshape(-1, 1, 1), every[:, 1:].reshape(-1, 2, 2))

    def given(x: Any) -> Any:
        log_p = jax.vmap(lambda codes: answers.decode_codes(params, codes).log_prob(x))(codes)
        terms = answers.terms(params, KEY, x, 1)
        chosen = answers.decode_codes(params, answers.codes(params, x)).log_prob(x)
        through_z = answers.decode(params, answers.encode(params, x).mean).log_prob(x)
        return log_p, terms, chosen, through_z, answers.log_weights(params, KEY, x, 3)

    log_p, terms, chosen, through_z, log_weights = jax.jit(jax.vmap(given))(X)
    np.testing.assert_allclose(terms["reconstruction"], chosen, rtol=1e-5)
    np.testing.assert_allclose(through_z, chosen, rtol=1e-5)
    np.testing.assert_allclose(terms["kl"], 5 * np.log(2), rtol=1e-6)
    bound = terms["reconstruction"] - terms["kl"]
    np.testing.assert_allclose(log_weights, np.repeat(bound[:, None], 3, 1), rtol=1e-6)
    evidence = logsumexp(log_p, axis=1) - 5 * np.log(2)
    assert np.all(bound < evidence)


def terms_of(algorithm: training.Algorithm, devices: int) -> dict[str, Any]:
    """The terms of the second step."""
    reports: list[dict[str, Any]] = []
    training.fit(
        algorithm,
        X,
        num_steps=2,
        batch_size=11,
        devices=jax.local_devices()[:devices],
        report=lambda step, report: reports.append(report),
        report_every=1,
    )
    return {name.rpartition("/")[2]: value for name, value in reports[1].items()}


@pytest.mark.slow
def test_terms_are_of_the_global_batch() -> None:
    """Perplexities and the entropy of all codes, on one device and on four."""
    config = families.preset("lfq", optimizer="sgd", learning_rate=1e-6)
    algorithm = families.codebook.algorithm_of(config, of_levels(quantizers.lookup_free))
    one, four = (terms_of(algorithm, devices) for devices in (1, 4))
    assert one.keys() >= {"perplexity_1", "perplexity_2", "usage_2", "kl", "code_loss"}
    for term in one.keys() - {"images_per_second"}:
        assert one[term] == pytest.approx(four[term], rel=1e-4, abs=1e-5), term


def test_each_gradient_has_its_source() -> None:
    """Codebooks learn from their own term alone, and the decoder of x from x alone."""
    model = of_levels(quantizers.nearest, codebook_size=4)
    params = jax.jit(lambda key: codebook.init(model, key))(KEY)

    def mean(of: Callable[..., Any]) -> Callable[[Any], Any]:
        return lambda params: jax.vmap(lambda x: of(*codebook.coded(model, params, x), x))(X).mean()

    def code_loss(p: Any, made: Any, x: Any) -> Any:
        return sum(level.quantized.loss for level in made) * math.prod(SHAPE) / 2

    losses = (
        mean(lambda p, made, x: -p.log_prob(x)),
        mean(code_loss),
        lambda params: codebook.negative_bound(model)(params, KEYS, X, WEIGHT, 0, None)[0],
    )
    decoder, codes, whole = jax.jit(lambda params: [jax.grad(loss)(params) for loss in losses])(
        params
    )
    same = lambda a, b, c: np.testing.assert_allclose(a + b, c, rtol=1e-3, atol=1e-4)
    jax.tree.map(same, decoder, codes, whole)
    assert not moves(decoder["quantizers"])
    assert moves(codes["quantizers"])
    assert moves(decoder["levels"][0]["down"]) and moves(codes["levels"][0]["down"])
    assert not moves(codes["levels"][1]["up"])  # the decoder of x


def test_usage_of_a_split_is_counted() -> None:
    codes = RANDOM.integers(0, 4, (11, 2, 2)), RANDOM.integers(0, 2, (11, 1))
    answers = models.Model(lambda key, x: {}, codes=lambda params, x: x, num_codes=(5, 4))
    for usage, each, size in zip(
        evaluation.code_usage(answers, {}, KEY, codes, batch_size=4), codes, (5, 4), strict=True
    ):
        counts = np.bincount(each.ravel(), minlength=size)
        assert (usage.num_codes, usage.positions) == (size, each[0].size)
        assert usage.usage == np.mean(counts > 0) < 1
        assert usage.perplexity == pytest.approx(np.exp(entropy(counts)), rel=1e-5)
