"""What symbols cost: frequencies beside SciPy, the stack, and densities of rounded codes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxvae.distributions import Box, NoisyCumulative, NoisyNormal, init_cumulative
from jaxvae.uses.compression import frequencies, stacks, transform

TABLES = frequencies.tables("gaussian", "logistic", "exponential")
EDGES = frequencies.edges(-40, 40)


# Frequencies


@pytest.mark.parametrize("name, family", [("gaussian", stats.norm), ("logistic", stats.logistic)])
def test_frequencies_are_those_of_scipy(name: str, family: Any) -> None:
    """Within a thousandth of a bit, for narrow and for wide scales; they sum to 2^24."""
    mean, scale = np.array([0, 3, -77, 200]), np.array([-8, 0, 13, 40])
    inner = frequencies.cumulative(TABLES, name, mean, scale, frequencies.edges(-300, 300))
    found = frequencies.between(inner)
    assert (found >= 0).all() and (found.sum(-1) == 2**24).all()
    edges = np.arange(-300, 300) + 0.5
    below = family.cdf((edges - mean[:, None] / 4) / 2.0 ** (scale[:, None] / 8))
    p = np.diff(np.pad(below, ((0, 0), (1, 1)), constant_values=(0, 1)), axis=-1)
    kl = np.sum(np.where(p > 1e-9, p * np.log2(np.maximum(p, 1e-30) / (found / 2**24 + 1e-9)), 0))
    assert abs(kl) < 1e-3


def test_frequencies_of_logits_are_a_softmax() -> None:
    logits = np.random.default_rng(0).integers(-90, 90, (5, 7))
    e = np.exp(logits / 16.0)
    found = frequencies.categorical(TABLES, logits, 7)
    np.testing.assert_allclose(
        found / found.sum(-1, keepdims=True), e / e.sum(-1, keepdims=True), atol=1e-5
    )


def test_a_mixture_of_one_logistic_is_that_logistic() -> None:
    raw = np.array([[5, 130, 12]])
    one = frequencies.discretized_logistic(TABLES, raw[:, 1:], 60)
    mixed = frequencies.discretized_logistic_mixture(TABLES, raw, 60)
    np.testing.assert_array_equal(mixed, one * 2**24)


# The stack


def test_what_is_pushed_is_popped_and_costs_its_information() -> None:
    rng = np.random.default_rng(0)
    f, symbols = rng.integers(1, 2**20, (400, 9)), rng.integers(0, 9, 400)
    stack = stacks.Stack(stacks.seed_words(3, 5))
    before, words = stack.bits, stack.words
    stack.push(symbols, f)
    cost = -np.log2(f[np.arange(400), symbols] / f.sum(1)).sum()
    assert stack.bits - before == pytest.approx(cost, abs=1.5)
    np.testing.assert_array_equal(stack.pop(f), symbols)
    np.testing.assert_array_equal(stack.words, words)


def test_a_stack_that_is_too_low_says_so() -> None:
    """The library itself goes on and gives symbols of the far tail."""
    stack = stacks.Stack(stacks.seed_words(0, 3))
    with pytest.raises(stacks.ShortageError):
        stack.pop(np.ones(2**16), 10)


def test_seed_words_are_those_of_shake_256() -> None:
    import hashlib

    words = stacks.seed_words(7, 4)
    assert words[:3].astype("<u4").tobytes() == hashlib.shake_256(b"jaxvae 7").digest(12)
    assert words[3] % 2 == 1


# Rounded codes


# A uniform quantizer and an ideal coder on N(0, 1): step, bits, MSE, gap to R(D), and the rate with
# noise in the place of rounding.
STEPS = [
    (0.5, 3.0620, 0.02041, 0.2546, 3.0620),
    (1.0, 2.1048, None, 0.2545, 2.1048),
    (2.0, 1.2412, None, 0.2512, 1.2544),
    (3.0, 0.7010, None, 0.1978, 0.8639),
]


@pytest.mark.parametrize("step, bits, mse, gap, noisy", STEPS)
def test_a_quantized_gaussian_has_its_exact_rate(
    step: float, bits: float, mse: float | None, gap: float, noisy: float
) -> None:
    """By tables and by the stack; training's rate with noise is too high for wide steps."""
    x = np.random.default_rng(0).normal(size=40_000)
    codes = np.round(x / step).astype(int)
    scale = np.array([round(-8 * np.log2(step))])
    inner = frequencies.cumulative(TABLES, "gaussian", np.zeros(1, int), scale, EDGES)
    f = frequencies.between(inner)[0]
    stack = stacks.Stack(stacks.seed_words(0, 2))
    stack.push(codes + 40, f)
    which = np.unique(codes, return_inverse=True)[1]
    means = np.bincount(which, x) / np.bincount(which)  # a code is decoded as the mean of its x
    rate, found = stack.bits / len(x), np.mean((x - means[which]) ** 2)
    assert rate == pytest.approx(bits, abs=0.025)
    assert mse is None or found == pytest.approx(mse, rel=0.02)
    assert rate - 0.5 * np.log2(1 / found) == pytest.approx(gap, abs=0.02)
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, len(x))
    y = jnp.asarray(x / step + noise, jnp.float32)
    log_prob = NoisyNormal(jnp.full(len(x), 1 / step, jnp.float32)).log_density(y)
    assert -float(log_prob.mean()) / np.log(2) == pytest.approx(noisy, abs=0.025)


def test_a_learned_density_sums_to_one_and_its_draws_have_it() -> None:
    layers = init_cumulative(jax.random.key(1), 2)
    density = NoisyCumulative(layers, 2)
    places = jnp.arange(-400.0, 401.0)
    log_p = jax.jit(jax.vmap(lambda y: density.log_prob(jnp.stack([y, 0.0 * y]))))(places)
    total = np.exp(np.asarray(log_p) - np.asarray(log_p)[400]).sum()
    at_zero = np.exp(np.asarray(log_p)[400])
    table = transform.density_table(layers, 400)
    np.testing.assert_allclose(
        table[0] / 2**24, np.exp(np.asarray(log_p)) / (at_zero * total), atol=2e-4
    )
    draws = np.asarray(jax.jit(lambda k: density.sample(k, (4000,)))(jax.random.key(2)))
    cumulative = lambda y: np.asarray(jax.nn.sigmoid(density.logits(jnp.array([[y, y]]))))[0]
    for y in (-5.0, 0.0, 4.0):
        noisy = np.mean([cumulative(y + u) for u in np.linspace(-0.5, 0.5, 21)], 0)
        np.testing.assert_allclose((draws < y).mean(0), noisy, atol=0.03)


def test_a_box_has_density_one_inside() -> None:
    q = Box(jnp.array([0.2, -3.0]))
    draws = q.sample(jax.random.key(0), (2000,))
    assert float(jnp.abs(draws - q.loc).max()) <= 0.5
    np.testing.assert_allclose(draws.var(0), 1 / 12, rtol=0.1)
    np.testing.assert_array_equal(q.log_prob(draws[:3]), np.zeros(3))
    assert q.log_prob(q.loc + 0.6) == -jnp.inf
