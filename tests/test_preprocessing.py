"""What becomes of pixels: preprocessing by name, its checks, and which one a likelihood gets.

Oracles: SciPy's statistics and NumPy.
"""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxvae import datasets
from jaxvae.datasets import (
    PREPROCESSING,
    DataError,
    Dataset,
    Split,
    automatic,
    chosen_pixels,
    describe,
    load,
    prepared,
    preprocessing,
)
from jaxvae.likelihoods import LIKELIHOODS

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 4, 5)).astype(np.uint8)
LIMIT = 5.0  # the largest |z| allowed; keys are fixed, so what passes once passes always

BINARIZED = ["dynamic", "static"]
MANY = (20_000, 4, 8, 1)  # one shape for all draws: what is compiled once serves all


def preprocessed(name, images, levels, seed=0, wrap=lambda preprocess: preprocess):
    """Images as the training step sees them: prepared, then treated one by one."""
    keys = jax.random.split(jax.random.key(seed), len(images))
    images = prepared(Split(np.asarray(images)), name, levels).x
    return np.asarray(wrap(jax.vmap(preprocessing(name, levels)))(keys, images))


def support_of(likelihood: str) -> tuple[str, ...]:
    make = LIKELIHOODS[likelihood]
    given = (256,) if "levels" in inspect.signature(make).parameters else ()
    return make(*given).support


@pytest.mark.parametrize("name", PREPROCESSING)
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32])
@pytest.mark.parametrize("shape", [(4, 5, 1), (4, 5, 3), (20,)])
def test_every_treatment_keeps_the_shape_and_gives_float32(name, shape, dtype):
    x = jax.eval_shape(
        preprocessing(name, 256), jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype)
    )
    assert x.shape == shape and x.dtype == jnp.float32


@pytest.mark.parametrize("name", ["dynamic", "scale"])
def test_compiled_treatments_do_the_same(name):
    plain, compiled = (
        preprocessed(name, GREY[..., None], 256, wrap=wrap)
        for wrap in (lambda preprocess: preprocess, jax.jit)
    )
    np.testing.assert_allclose(plain, compiled, rtol=1e-6)


def frequencies_agree(ones, n, probability):
    """Binomial z-test of every pixel; where the probability is 0 or 1 there is no doubt."""
    sure = (probability == 0) | (probability == 1)
    z = (ones - n * probability)[~sure] / np.sqrt(n * probability * (1 - probability))[~sure]
    return np.array_equal(ones[sure], n * probability[sure]) and np.abs(z).max(initial=0) < LIMIT


@pytest.mark.parametrize("name", BINARIZED)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_binary_pixels_are_bernoulli(name, levels):
    image = np.linspace(0, levels - 1, 32).round().astype(np.uint8).reshape(4, 8, 1)
    x = preprocessed(name, np.broadcast_to(image, MANY), levels)
    assert set(np.unique(x)) == {0, 1}
    assert frequencies_agree(x.sum(0), 20_000, image / (levels - 1))


@pytest.mark.parametrize("name", BINARIZED)
def test_binary_pixels_are_bernoulli_of_values_in_the_unit_interval(name):
    image = np.linspace(0, 1, 32).astype(np.float32).reshape(4, 8, 1)
    x = preprocessed(name, np.broadcast_to(image, MANY), 256)
    assert frequencies_agree(x.sum(0), 20_000, image.astype(float))


@pytest.mark.parametrize("name", BINARIZED)
def test_binary_pixels_are_independent_of_their_neighbours(name):
    x = preprocessed(name, np.full(MANY, 128, np.uint8), 256).reshape(20_000, 32)
    correlation = np.corrcoef(x.T)[np.triu_indices(32, 1)]
    assert np.abs(correlation).max() * np.sqrt(20_000) < LIMIT


@pytest.mark.parametrize("name", PREPROCESSING)
def test_noise_is_a_function_of_the_key(name):
    first, again, other = (preprocessed(name, GREY[..., None], 256, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and np.array_equal(first, other) == (
        name not in ("dynamic", "dequantize")
    )


def test_static_pixels_are_drawn_once_from_the_seed():
    split = Split(np.full((50, 4, 4, 1), 128, np.uint8), np.arange(50))
    first, again, other = (prepared(split, "static", 256, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.x, again.x) and not np.array_equal(first.x, other.x)
    assert first.x.dtype == np.uint8 and np.array_equal(first.y, split.y) and (split.x == 128).all()


BINS = [(0, 256), (1, 256), (127, 256), (254, 256), (255, 256), (0, 17), (16, 17), (1, 2)]
dequantized = jax.jit(
    lambda key, pixels, levels: preprocessing("dequantize", levels)(key, pixels), static_argnums=2
)


@pytest.mark.parametrize("pixel, levels", BINS)
def test_dequantized_pixels_lie_in_their_bin(pixel, levels):
    """One draw in 2^17 shows whether (255 + u) / 256 can be rounded up to 1, where log(1 - x) is
    lost.
    """
    x = np.asarray(dequantized(jax.random.key(0), jnp.full(1 << 22, pixel, jnp.uint8), levels))
    low, high = np.float32([pixel, pixel + 1]) / np.float32(levels)
    assert x.min() >= low and x.max() < high


@pytest.mark.parametrize("pixel, levels", [(0, 256), (255, 256), (16, 17), (1, 2)])
def test_dequantized_pixels_are_uniform_in_their_bin(pixel, levels):
    x = preprocessed("dequantize", np.full(MANY, pixel, np.uint8), levels)
    assert stats.kstest(x.ravel().astype(float) * levels - pixel, "uniform").pvalue > 1e-3


EVERY = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_scaled_pixels_are_exact(levels):
    values = np.arange(levels, dtype=np.uint8)[None]
    np.testing.assert_allclose(
        preprocessed("scale", values, levels), values / (levels - 1), rtol=1.2e-7, atol=0
    )


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("name", PREPROCESSING)
def test_constant_images_work_in_every_treatment(name, value):
    dataset = load({"train": np.full_like(GREY, value), "test": np.full_like(GREY[:2], value)})
    assert dataset.levels == (256 if value else 2)
    x = preprocessed(name, dataset.splits["train"].x, dataset.levels)
    if name == "dequantize":
        assert x.min() >= value / dataset.levels and x.max() < (value + 1) / dataset.levels
    else:
        assert (x == (value if name in ("counts", "none", "gaps") else value // 255)).all()


@pytest.mark.parametrize(
    "name, values, levels, x",
    [
        ("counts", EVERY, 256, EVERY),
        ("counts", np.int32([[0, 7, 99_999]]), None, np.float32([[0, 7, 99_999]])),
        ("none", EVERY, 256, EVERY),
        ("none", np.float32([[-3.5, 7.25, 0.1]]), None, np.float32([[-3.5, 7.25, 0.1]])),
        ("scale", np.float32([[0, 0.3, 1]]), None, np.float32([[0, 0.3, 1]])),
        ("scale", np.float32([[0, 0.3, 1]]), 256, np.float32([[0, 0.3, 1]])),
        ("dynamic", np.float32([[0, 1, 1]]), None, np.float32([[0, 1, 1]])),
        ("static", np.float32([[0, 1, 1]]), None, np.float32([[0, 1, 1]])),
    ],
)
def test_what_needs_no_change_stays_as_it_is(name, values, levels, x):
    assert np.array_equal(preprocessed(name, values, levels), x)


UNIT, REAL = np.float32([[0, 0.5, 1]]), np.float32([[-3.5, 0.5, 7]])
BAD = np.array([[0.5, np.nan], [np.inf, 0.1], [0.2, -np.inf]])
ALL = [*PREPROCESSING]
BUT_NONE = [name for name in ALL if name not in ("none", "gaps")]
BUT_GAPS = [name for name in ALL if name != "gaps"]
ROWS = {  # values, levels, who refuses them, and the words
    "not finite": (BAD, 256, BUT_GAPS, "3 values that are not finite"),
    "far above": (np.uint8([[0, 255]]), 17, BUT_NONE, "largest pixel is 255, .* 17 levels"),
    "just above": (np.uint8([[0, 17]]), 17, BUT_NONE, "largest pixel is 17, .* 17 levels"),
    "not binary": (np.uint8([[0, 2]]), 2, BUT_NONE, "largest pixel is 2, .* 2 levels"),
    "the largest": (np.uint8([[0, 16]]), 17, [], ""),
    "binary": (np.uint8([[0, 1]]), 2, [], ""),
    "unit": (UNIT, 256, ["dequantize", "counts"], "needs integer values.*'none'"),
    "unit, no levels": (UNIT, None, ["dequantize", "counts"], "needs (integer|the number of) val"),
    "real": (REAL, 256, BUT_NONE, "needs .* 'none'"),
    "real, no levels": (REAL, None, BUT_NONE, "needs "),
    "no levels": (
        np.uint8([[0, 1]]),
        None,
        [name for name in BUT_NONE if name != "counts"],
        "give levels",
    ),
    "negative": (np.int32([[0, -1]]), 256, BUT_NONE, "integers from 0; the least is -1"),
    "several arrays": ({"a": UNIT, "b": REAL}, 256, ALL, "is for one array, .*preprocess="),
}


@pytest.mark.parametrize("values, levels, refusing, words", ROWS.values(), ids=ROWS)
def test_values_are_refused_where_a_preprocessing_cannot_take_them(values, levels, refusing, words):
    for name in PREPROCESSING:
        if name in refusing:
            with pytest.raises(DataError, match=words):
                prepared(Split(values), name, levels)
        else:
            prepared(Split(values), name, levels)


@pytest.mark.parametrize(
    "call", [lambda: preprocessing("dither", 256), lambda: describe("dither", 2)]
)
def test_an_unknown_preprocessing_is_told_what_there_is(call):
    with pytest.raises(DataError, match="'dither'; there are dynamic, static, dequantize"):
        call()


def test_integers_without_levels_are_no_probabilities():
    with pytest.raises(DataError, match="give levels"):
        jax.eval_shape(preprocessing("dynamic", None), jax.random.key(0), jnp.zeros(3, jnp.uint8))


# ------------------------------------------------------------------------------------------------
# preprocessing that travels with the data


@pytest.mark.parametrize("name", PREPROCESSING)
def test_a_set_carries_its_preprocessing(name):
    """One function for all splits and sets, so that what is compiled for it serves them all."""
    dataset = load({"train": (GREY, np.arange(6)), "test": GREY[:2]}, pixels=name)
    again = prepared(load({"train": GREY, "test": GREY}), name)
    functions = {split.preprocess for set_ in (dataset, again) for split in set_.splits.values()}
    assert functions == {preprocessing(name, 256)}
    train = select_and_shuffle(dataset)
    keys = jax.random.split(jax.random.key(1), 3)
    x = jax.vmap(datasets.preprocessed)(keys, train.examples)
    plain = preprocessing(name, 256)
    raw = prepared(Split(GREY[..., None]), name, 256).x[3:][[2, 0, 1]]
    np.testing.assert_array_equal(x, jax.vmap(plain)(keys, raw))
    assert dataset.levels == (2 if name == "static" else 256)


def select_and_shuffle(dataset):
    """The last three of the training examples: 5, 3, 4."""
    return datasets.select(dataset, "train[3:]").take(np.array([2, 0, 1]))


def test_a_split_brings_a_preprocessing_of_its_own():
    """For a dict of arrays, and through all that takes rows of it."""
    double = lambda key, raw: 2 * raw["a"] + raw["b"]
    x = {"a": np.arange(20), "b": np.ones(20, int)}
    part = datasets.select(load({"train": Split(x, preprocess=double)}), "train[2:5]")
    keys = jax.random.split(jax.random.key(0), 3)
    seen = jax.vmap(datasets.preprocessed)(keys, part.examples)
    np.testing.assert_array_equal(seen, 2 * part.x["a"] + 1)
    assert Split(x).examples is x and datasets.examples_of(x) is x
    with pytest.raises(DataError, match=r"dict of arrays and have no single shape"):
        Split(x).shape  # noqa: B018


def test_static_pixels_of_a_set_are_those_of_its_splits():
    dataset = load({"train": GREY, "test": GREY[:3]})
    seen = prepared(dataset, "static", seed=4)
    for name, split in dataset.splits.items():
        generator = np.random.Generator(np.random.Philox(key=[4, len(split.x)]))
        expected = generator.random(split.x.shape) < split.x / 255
        np.testing.assert_array_equal(seen.splits[name].x, expected)


# ------------------------------------------------------------------------------------------------
# which preprocessing, and what it does


@pytest.mark.parametrize(
    "name, levels, words",
    [
        ("dynamic", 256, "drawn anew as 0 or 1 with probability pixel / 255 each time it is seen"),
        ("dynamic", None, "with probability its value each time"),
        ("dynamic", 2, "pixels are 0 or 1, and stay as they are"),
        ("static", 17, "drawn as 0 or 1 with probability pixel / 16, once for all"),
        ("dequantize", 256, r"\(pixel \+ u\) / 256 with u uniform in \[0, 1\), drawn anew"),
        ("scale", 256, r"becomes pixel / 255, in \[0, 1\]"),
        ("counts", 17, "integers 0 to 16"),
        ("counts", None, "the integers that they are"),
        ("none", None, "values stay as they are"),
    ],
)
def test_a_preprocessing_is_described_in_a_sentence(name, levels, words):
    said = describe(name, levels)
    assert said.startswith(f"{name}: ") and re.search(words, said)


def one_split(shape, kind, levels):
    return Dataset("mine", {"train": Split(np.zeros((2, *shape), kind))}, levels)


COLOUR, PLAIN = one_split((4, 5, 3), np.uint8, 256), one_split((4, 5, 1), np.uint8, 256)
UNIT_GREY = one_split((4, 5, 1), np.float32, None)
UNIT_COLOUR = one_split((4, 5, 3), np.float32, None)
BINARY_COLOUR = one_split((4, 5, 3), np.uint8, 2)
SEVERAL = Dataset("mine", {"train": Split({"a": UNIT})})


@pytest.mark.parametrize(
    "likelihood, dataset, chosen",
    [
        ("bernoulli", PLAIN, "dynamic"),
        ("bernoulli", UNIT_GREY, "dynamic"),
        ("bernoulli", BINARY_COLOUR, "dynamic"),
        ("bernoulli", one_split((3,), np.uint8, 256), "dynamic"),
        ("normal", PLAIN, "dequantize"),
        ("normal", COLOUR, "dequantize"),
        ("normal", UNIT_GREY, "scale"),
        ("discretized_logistic_mixture", COLOUR, "scale"),
        ("negative_binomial", PLAIN, "counts"),
    ],
)
def test_a_likelihood_gets_its_natural_preprocessing(likelihood, dataset, chosen):
    assert automatic(support_of(likelihood), dataset) == chosen
    assert chosen_pixels("auto", likelihood, support_of(likelihood), dataset) == chosen


@pytest.mark.parametrize(
    "asked, likelihood, dataset, words",
    [
        ("auto", "bernoulli", COLOUR, ["colour", "discretized_logistic_mixture", "--pixels dyn"]),
        ("auto", "bernoulli", UNIT_COLOUR, ["colour", "--pixels dynamic"]),
        ("auto", "bernoulli", one_split((4, 5, 4), np.uint8, 256), ["colour"]),
        ("auto", "negative_binomial", UNIT_GREY, ["mine", "pixels=counts", "real values"]),
        ("auto", "normal", SEVERAL, ["mine", "several arrays", "preprocess="]),
        ("none", "bernoulli", PLAIN, ["bernoulli", "'none'", "--pixels dynamic or static"]),
        ("none", "bernoulli", PLAIN, ["a likelihood that takes them (", "normal", "laplace"]),
        ("dynamic", "normal", PLAIN, ["--pixels dequantize or scale or none", "(bernoulli"]),
    ],
)
def test_a_likelihood_of_other_values_is_refused(asked, likelihood, dataset, words):
    supports = {name: support_of(name) for name in LIKELIHOODS}
    with pytest.raises(DataError) as error:
        chosen_pixels(asked, likelihood, supports[likelihood], dataset, supports)
    assert all(word in str(error.value) for word in words)


def test_colour_is_binarized_where_that_is_asked_for():
    assert chosen_pixels("dynamic", "bernoulli", ("dynamic", "static"), COLOUR) == "dynamic"
    assert prepared(COLOUR, "dynamic").splits["train"].preprocess is preprocessing("dynamic", 256)
