"""Rendered shapes against geometry in float64, and their way through data sets, training and
evaluation.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvae import datasets, likelihoods, models, networks, posteriors, priors, training
from jaxvae.datasets import shapes

COUNT = math.prod(shapes.SIZES)
SQUARE, ELLIPSE, HEART = range(3)
SCALES, TURN = 0.5 + 0.1 * np.arange(6), 40


def images(factors):
    """Rendered images [..., 64, 64]."""
    return np.asarray(shapes.Images(np.asarray(factors)))[..., 0]


@pytest.fixture(scope="module")
def central():
    """All shapes, scales and rotations in the middle, [3, 6, 40, 64, 64]."""
    grid = np.stack(np.meshgrid(*map(np.arange, shapes.SIZES[:3]), indexing="ij"), -1)
    return images(np.concatenate([grid, np.full_like(grid[..., :2], 16)], -1))


def polygon(shape):
    """The outline of a shape at scale 1 and rotation 0 about its centroid, y upwards, [V, 2],
    and its centroid.
    """
    t = np.linspace(0, 2 * np.pi, 20_001)[:-1]
    if shape == SQUARE:
        outline = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    elif shape == ELLIPSE:
        outline = np.stack([2 * np.cos(t), np.sin(t)], 1)
    else:  # tip, right corner, right lobe, left lobe
        arc = np.linspace(-np.pi / 4, 3 * np.pi / 4, 10_000)
        lobe = np.array([0.5, 1.5]) + np.sqrt(0.5) * np.stack([np.cos(arc), np.sin(arc)], 1)
        outline = np.concatenate([[[0.0, 0.0]], lobe, lobe[::-1] * [-1, 1]])
    area, centroid = moments(outline)
    return (outline - centroid) * shapes.SIDE / np.sqrt(area)


def moments(outline):
    """Area and centroid of a polygon, by the shoelace formula."""
    (x, y), (x2, y2) = outline.T, np.roll(outline, -1, 0).T
    cross = x * y2 - x2 * y
    return cross.sum() / 2, np.array([((x + x2) * cross).sum(), ((y + y2) * cross).sum()]) / (
        3 * cross.sum()
    )


def inside(outline, points):
    """Whether points [P, 2] lie inside, by the number of edges to the right of them."""
    (x, y), (x2, y2) = outline.T, np.roll(outline, -1, 0).T
    result = np.zeros(len(points), bool)
    for i, (px, py) in enumerate(points):
        crosses = (y > py) != (y2 > py)
        result[i] = (
            px < x[crosses] + (py - y[crosses]) / (y2 - y)[crosses] * (x2 - x)[crosses]
        ).sum() % 2
    return result


@pytest.mark.parametrize("shape", range(3), ids=shapes.SHAPES)
def test_pixels_are_inside_the_outline(shape, central):
    """Every pixel, by counting how often a ray crosses a polygon that turns counter-clockwise
    about its centroid.
    """
    place = np.arange(64) + 0.5 - 32
    points = np.stack(np.meshgrid(place, -place), -1)  # [H, W, 2], y upwards
    near = np.abs(points).max(-1) < 18
    for scale, rotation in [(5, 0), (5, 3), (0, 17), (2, 39)]:
        c, s = np.cos(2 * np.pi * rotation / TURN), np.sin(2 * np.pi * rotation / TURN)
        outline = SCALES[scale] * polygon(shape) @ np.array([[c, s], [-s, c]])
        expected = np.zeros((64, 64), bool)
        expected[near] = inside(outline, points[near])
        np.testing.assert_array_equal(central[shape, scale, rotation], expected)


def test_areas_are_those_of_the_squares(central):
    """A pixel is inside or not: a shape with an outline of length L is off by a fraction of L,
    and less on the mean.
    """
    areas = central.sum((-2, -1))  # [3, 6, 40]
    exact = (shapes.SIDE * SCALES) ** 2
    np.testing.assert_allclose(areas.mean(-1), np.tile(exact, (3, 1)), rtol=0.02, atol=3.0)
    assert np.abs(areas - exact[:, None]).max() < 30
    assert set(np.unique(central)) == {0, 1}


def test_axis_aligned_squares_have_even_sides(central):
    sides = central[SQUARE, :, 0].any(-1).sum(-1)
    np.testing.assert_array_equal(sides, [8, 10, 12, 14, 16, 18])
    np.testing.assert_array_equal(central[SQUARE, :, 0].sum((-2, -1)), sides**2)


def test_symmetries(central):
    """Exactly: no pixel's centre lies on an outline."""
    np.testing.assert_array_equal(central[SQUARE, :, :10], central[SQUARE, :, 10:20])
    np.testing.assert_array_equal(central[ELLIPSE, :, :20], central[ELLIPSE, :, 20:])
    np.testing.assert_array_equal(np.rot90(central[:, :, :30], axes=(-2, -1)), central[:, :, 10:])
    np.testing.assert_array_equal(central[HEART, :, 0], central[HEART, :, 0, :, ::-1])
    upright = central[HEART, 5, 0]
    rows = np.flatnonzero(upright.any(-1))
    assert upright[rows[-1]].sum() == 2  # the tip points down
    assert np.abs(np.diff(upright[rows[0]].astype(int))).sum() == 4  # and two lobes point up
    tall = central[ELLIPSE, 5, 0]
    assert tall.any(0).sum() == pytest.approx(2 * tall.any(1).sum(), abs=2)


def test_all_images_differ_but_for_the_symmetries(central):
    kinds = [
        len({image.tobytes() for image in central[shape].reshape(-1, 64, 64)}) for shape in range(3)
    ]
    assert kinds == [6 * 10, 6 * 20, 6 * 40]
    assert len({image.tobytes() for image in central.reshape(-1, 64, 64)}) == sum(kinds)


@pytest.mark.parametrize("shape", range(3), ids=shapes.SHAPES)
def test_centres_are_where_x_and_y_say(shape):
    """Images of one shape are each other's translations, by one pixel a value."""
    factors = np.array([[shape, 5, 7, x, y] for x in (0, 1, 16, 31) for y in (0, 1, 16, 31)])
    rendered = images(factors)
    moved = [np.roll(rendered[0], (y, x), (0, 1)) for x, y in factors[:, 3:]]
    np.testing.assert_array_equal(rendered, moved)
    place = np.arange(64) + 0.5
    centres = (
        np.stack([rendered.sum(1) @ place, rendered.sum(2) @ place], 1)
        / rendered.sum((1, 2))[:, None]
    )
    np.testing.assert_allclose(centres, factors[:, 3:] + shapes.FIRST, atol=0.2)


def test_every_shape_is_inside_the_canvas():
    """At the corners, so for all: the largest scale contains the smaller ones, and positions
    translate.
    """
    corners = [
        [shape, 5, r, x, y]
        for shape in range(3)
        for r in range(TURN)
        for x in (0, 31)
        for y in (0, 31)
    ]
    rendered = images(np.array(corners))
    edges = [rendered[:, 0], rendered[:, -1], rendered[:, :, 0], rendered[:, :, -1]]
    assert not np.any(edges)
    whole = rendered.reshape(3, TURN, 4, -1).sum(-1)
    np.testing.assert_array_equal(whole, whole[..., :1].repeat(4, -1))


def test_index_and_factors_are_a_bijection():
    everything = shapes.images()
    assert len(everything) == COUNT == 737_280 and everything.shape == (COUNT, 64, 64, 1)
    np.testing.assert_array_equal(shapes.index_of(everything.factors), np.arange(COUNT))
    rows = np.random.default_rng(0).integers(COUNT, size=1000)
    np.testing.assert_array_equal(shapes.factors_of(rows), everything.factors[rows])
    np.testing.assert_array_equal(
        shapes.factors_of(rows), np.stack(np.unravel_index(rows, shapes.SIZES), -1)
    )
    np.testing.assert_array_equal(
        shapes.factors_of(1), [0, 0, 0, 0, 1]
    )  # the last factor changes fastest
    index = jax.jit(lambda i: shapes.index_of(shapes.factors_of(i)))
    np.testing.assert_array_equal(index(rows), rows)


def test_attributes_are_the_factors_as_numbers():
    """A heart of scale 0.8, turned by a quarter, at the right end of the middle."""
    found = shapes.attributes(jnp.array([2, 3, 10, 31, 0]))
    np.testing.assert_allclose(found, [0, 0, 1, 0.6, 0, 1, 1, 0], atol=1e-6)
    few = datasets.Split(shapes.Images(np.array([[2, 3, 10, 31, 0], [0, 0, 0, 0, 31]], np.uint8)))
    np.testing.assert_allclose(
        datasets.attributes(few), [found, [1, 0, 0, 0, 1, 0, 0, 1]], atol=1e-6
    )


def test_render_is_one_example():
    factors = shapes.factors_of(np.array([5, 400_000, 737_279]))
    together, alone = jax.jit(jax.vmap(shapes.render))(factors), jax.jit(shapes.render)
    assert together.shape == (3, 64, 64, 1) and together.dtype == jnp.uint8
    for one, image in zip(factors, together, strict=True):
        np.testing.assert_array_equal(alone(one), image)


def test_images_are_an_array_that_is_rendered_late():
    everything = shapes.images()
    rows = np.array([3, 700_000, 3])
    some = everything[rows]
    assert some.shape == (3, 64, 64, 1) and some.dtype == np.uint8 and len(some) == 3
    assert some[0].shape == (64, 64, 1)
    pixels = np.asarray(some)
    assert pixels.dtype == np.uint8 and pixels.max() == some.max() == 1
    np.testing.assert_array_equal(pixels[0], pixels[2])
    np.testing.assert_array_equal(np.asarray(everything[2:5])[1], pixels[0])
    np.testing.assert_array_equal(jax.jit(lambda images: images.astype(jnp.float32))(some), pixels)
    many = everything[: shapes.CHUNK + 3]
    np.testing.assert_array_equal(np.asarray(many)[-3:], np.asarray(many[-3:]))
    with pytest.raises(ValueError, match="without a copy"):
        np.array(some, copy=False)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: shapes.render(jnp.zeros((2, 5), int)), r"shape \(2, 5\). Use jax.vmap"),
        (lambda: shapes.factors_of(COUNT), "below 737280; it was 737280"),
        (lambda: shapes.factors_of(-1), "at least 0"),
        (lambda: shapes.index_of([0, 0, 0, 0]), r"these have shape \(4,\)"),
        (
            lambda: shapes.index_of([3, 0, 0, 0, 0]),
            "shape, scale, rotation, x, y must be at least 0",
        ),
    ],
)
def test_bad_input_is_met_at_the_door(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.fixture(scope="module")
def dataset():
    return datasets.load("shapes")


def test_the_set_has_two_splits_of_all_images(dataset):
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert (dataset.name, dataset.levels) == ("shapes", 2)
    assert (datasets.num_examples(train), datasets.num_examples(test)) == (COUNT - 10_000, 10_000)
    rows = np.concatenate([shapes.index_of(split.x.factors) for split in (train, test)])
    np.testing.assert_array_equal(np.sort(rows), np.arange(COUNT))
    np.testing.assert_array_equal(test.y, test.x.factors[:, 0])
    assert (
        np.abs(np.bincount(test.y[:900]) - 300).max() < 75
    )  # five standard deviations: in random order
    part = datasets.select(dataset, "train[:100]")
    assert (
        part.shape == (64, 64, 1) and part.dtype == np.uint8 and datasets.num_examples(part) == 100
    )
    for name in ("dynamic", "static", "scale", "counts"):
        assert datasets.prepared(test, name, dataset.levels).x is test.x
    assert dataset.classes == shapes.SHAPES


def test_treatments_render(dataset):
    some = dataset.splits["test"].x[:4]
    each = {name: datasets.preprocessing(name, 2) for name in datasets.PREPROCESSING}
    preprocess = jax.jit(
        lambda keys, raw: {
            name: jax.vmap(preprocess)(keys, raw) for name, preprocess in each.items()
        }
    )
    keys = jax.random.split(jax.random.key(0), 4)
    jax.tree.map(
        np.testing.assert_array_equal, preprocess(keys, some), preprocess(keys, np.asarray(some))
    )


@pytest.fixture(scope="module")
def small():
    posterior = posteriors.normal(3)
    encoder, decoder = networks.mlp((), posterior.size), networks.mlp((), (64, 64, 1))
    return models.vae(
        encoder, decoder, posterior, likelihoods.bernoulli(), priors.standard_normal(3)
    )


def fitted(small, examples):
    preprocess, negative_elbo = datasets.preprocessing("dynamic", 2), models.negative_elbo(small)

    def loss(params, key, raw, step):
        key_pixels, key_loss = jax.random.split(key)
        return negative_elbo(params, key_loss, preprocess(key_pixels, raw), step)

    algorithm = training.gradient_descent(
        lambda key, raw: small.init(key, preprocess(key, raw)),
        training.batch_mean(loss),
        optax.adam(1e-3),
    )
    return training.trained(training.fit(algorithm, examples, num_steps=6, batch_size=8))


@pytest.mark.slow
def test_training_renders_what_it_uses(small, dataset):
    """As if the pixels had been held: the same parameters."""
    train = datasets.select(dataset, "train[:60]").x
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(train)) == 60 * 5
    params, of_pixels = fitted(small, train), fitted(small, np.asarray(train))
    jax.tree.map(np.testing.assert_array_equal, params, of_pixels)


def test_streamed_shapes_are_the_same():
    stream = datasets.stream("shapes")
    held = datasets.load("shapes")
    assert stream.levels == 2 and stream.splits["train"].shape == (64, 64, 1)
    read = lambda: jnp.asarray(stream.splits["test"][0]).sum()
    assert jax.eval_shape(read).shape == ()  # as a training does that counts its operations
    for name in ("train", "test"):
        np.testing.assert_array_equal(
            stream.splits[name][[5, 9]], np.asarray(held.splits[name].x[[5, 9]])
        )
