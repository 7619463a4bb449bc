"""New examples near labelled ones: where they lie, what they weigh, and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Linear
from scipy import ndimage
from sklearn.base import BaseEstimator, ClassifierMixin
from test_exporting import model_of

from jaxvae import datasets, models
from jaxvae.distributions import Normal, Point
from jaxvae.runs.augmenting import as_raw, augment
from jaxvae.uses import augmentation, pretrained
from jaxvae.uses.augmentation import Labelled

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LABELS = np.array([3, 0, -1, 3, 0, 3, 5, -1])
SAME = models.Model(  # z = x = E[x|z], so that it is known where new examples come from
    lambda key, x: {},
    encode=lambda params, x: Point(x),
    decode=lambda params, z, condition=None: Normal(z, jnp.ones_like(z)),
)


def test_parents_are_of_one_class() -> None:
    """Each example of it is as likely as another, and the other classes do not matter."""
    places, classes = augmentation.parents(KEY, LABELS, 300)
    assert places.shape == (900, 2) and classes.tolist() == [0] * 300 + [3] * 300 + [5] * 300
    np.testing.assert_array_equal(LABELS[places], classes[:, None].repeat(2, 1))
    threes = places[classes == 3]
    counts = np.bincount(threes.ravel(), minlength=8)[[0, 3, 5]]
    assert np.abs(counts - 200).max() < 4 * np.sqrt(600 * 2 / 9)
    pairs = np.unique(threes, axis=0)
    assert len(pairs) == 9  # both parents are drawn on their own
    alone = np.where(LABELS == 3, 3, -1)
    np.testing.assert_array_equal(augmentation.parents(KEY, alone, 300).x, threes)


def test_new_examples_lie_on_lines_within_a_class() -> None:
    """At an example itself by ``posterior``, and anywhere between two by ``mix``."""
    x = np.float32(LABELS[:, None] * [100, 0] + np.arange(8)[:, None] * [0, 1])
    new = augmentation.draws(SAME, {}, KEY, x, LABELS, 40, "posterior")
    at = {tuple(row) for row in x[LABELS >= 0]}
    assert {tuple(row) for row in new.x} == at
    new = augmentation.draws(SAME, {}, KEY, x, LABELS, 40, "mix", batch_size=7)
    np.testing.assert_allclose(new.x[:, 0], 100 * new.y, rtol=1e-6)
    threes = new.x[new.y == 3, 1]
    assert threes.min() >= 0 and threes.max() <= 5 and len(np.unique(threes)) > 20
    np.testing.assert_array_equal(new.x[new.y == 5], np.float32([[500, 6]] * 40))
    whole = augmentation.draws(SAME, {}, KEY, x, LABELS, 40, "mix")
    np.testing.assert_array_equal(new.x, whole.x)  # whatever is computed at once


def test_new_examples_of_a_linear_model_have_known_moments(images: np.ndarray) -> None:
    """N(W ((1 - t) m_1 + t m_2) + mu, W diag(s^2) W'), for every t: both draws have one noise."""
    exact = Linear(images, 3)
    vae, params = exact.vae("normal", exact.w)
    one, other = images[:2]
    m = exact.w.T @ exact.w + exact.s2 * np.eye(3)
    means = np.linalg.solve(m, exact.w.T @ (images[:2] - exact.mean).T).T
    scales = np.sqrt(exact.s2 / np.diag(m))
    keys = jax.random.split(KEY, 4000)
    draw = jax.jit(
        lambda t: jax.vmap(lambda key: augmentation.between(vae, params, key, one, other, t))(keys)
    )
    for t in (0.0, 0.3):
        x = np.asarray(draw(t), np.float64)
        z = np.linalg.lstsq(exact.w, (x - exact.mean).T, rcond=None)[0].T
        centre = (1 - t) * means[0] + t * means[1]
        assert np.abs((z.mean(0) - centre) / scales).max() < 4 / np.sqrt(4000)
        np.testing.assert_allclose(np.cov(z.T), np.diag(scales**2), atol=0.1 * scales.max() ** 2)


def test_a_conditional_model_decodes_at_the_condition_of_the_example() -> None:
    model = SAME._replace(
        encode=lambda params, example: Point(example["x"]),
        decode=lambda params, z, y=None: Normal(z + y, jnp.ones_like(z)),
        parts=lambda example: (example["x"], example["y"]),
    )
    examples = {"x": np.zeros((3, 2), np.float32), "y": np.float32([10, 20, 30])}
    new = augmentation.draws(model, {}, KEY, examples, np.arange(3), 2)
    np.testing.assert_array_equal(new.x[:, 0], [10, 10, 20, 20, 30, 30])


def test_shifts_are_scipys_and_equally_likely() -> None:
    image = RNG.uniform(1, 2, size=(4, 5, 2)).astype(np.float32)
    each = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    expected = np.stack([ndimage.shift(image, (dy, dx, 0), order=0) for dy, dx in each])
    keys = jax.random.split(KEY, 900)
    shifts = jax.jit(jax.vmap(lambda key: augmentation.shifted(key, image, 1)))(keys)
    same = (np.asarray(shifts)[:, None] == expected).all((2, 3, 4))
    assert (same.sum(1) == 1).all()
    assert np.abs(same.sum(0) - 100).max() < 4 * np.sqrt(900 * 8 / 81)


class Recorder(ClassifierMixin, BaseEstimator):
    """A classifier that keeps what it is given."""

    given: ClassVar[list[tuple[np.ndarray, ...]]] = []

    def fit(self, x: Any, y: Any, sample_weight: Any) -> Recorder:
        Recorder.given.append((x, y, sample_weight))
        return self

    def predict(self, x: Any) -> Any:
        return np.zeros(len(x))


def test_new_examples_weigh_as_much_as_labelled_ones() -> None:
    few = Labelled(RNG.normal(size=(4, 2, 3)), np.array([0, 0, 0, 1]))
    new = Labelled(RNG.normal(size=(7, 2, 3)), np.array([0, 0, 1, 1, 1, 1, 1]))
    Recorder.given.clear()
    classifier = Recorder()
    assert augmentation.accuracy(classifier, few, few, new) == 0.75
    augmentation.accuracy(classifier, few, few, new, share=2.0)
    augmentation.accuracy(classifier, few, few, new, share=None)
    augmentation.accuracy(classifier, few, few)
    x, y, weights = Recorder.given[0]
    np.testing.assert_array_equal(x, np.concatenate([few.x, new.x]).reshape(11, 6))
    np.testing.assert_array_equal(y, np.concatenate([few.y, new.y]))
    np.testing.assert_allclose(weights, [1] * 4 + [1.5] * 2 + [0.2] * 5)
    np.testing.assert_allclose(Recorder.given[1][2], [1] * 4 + [3] * 2 + [0.4] * 5)
    np.testing.assert_array_equal(Recorder.given[2][2], np.ones(11))
    assert Recorder.given[3][0].shape == (4, 6)


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model of the digits, whose decoder is linear."""
    place = tmp_path_factory.mktemp("augment")
    named = {"likelihood": "normal", "pixels": "scale", "hidden": (), "latent": 4}
    return pretrained.save_pretrained(model_of("digits", place / "run", **named), place / "out")


def test_the_command_writes_a_set_that_can_be_trained_on(
    folder: Path, digits: datasets.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its values are the decoder's means, as the data set holds them."""
    few = digits.splits["train"].take(slice(60))
    np.savez(tmp_path / "few.npz", x_train=few.x, y_train=few.y)
    augment(folder, tmp_path / "few.npz", tmp_path / "new.npz", per_class=12, how="posterior")
    assert "120" in capsys.readouterr().out and (tmp_path / "new.png").exists()
    made = datasets.load(tmp_path / "new.npz", levels=17)
    x, y = (np.concatenate([getattr(s, n) for s in made.splits.values()]) for n in "xy")
    assert x.shape == (120, 8, 8, 1) and x.dtype == np.uint8 and x.max() <= 16
    assert np.bincount(y).tolist() == [12] * 10
    model = pretrained.from_pretrained(folder)
    new = augmentation.draws(
        model.model, model.params, KEY, model.built.split(few), few.y, 12, "posterior"
    )
    with np.load(tmp_path / "new.npz") as file:
        np.testing.assert_array_equal(file["images"], np.clip(np.round(16 * new.x), 0, 16))
        np.testing.assert_array_equal(file["labels"], new.y)


X, Y = np.ones((4, 8, 8, 1), np.uint8), np.array([0, 1, 0, 1])
FILES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no labels": ({"x_train": X}, "new.npz", "holds no labels: give y_train beside x_train"),
    "other levels": ({"x_train": 200 * X, "y_train": Y}, "new.npz", "is 200, and the model was"),
    "other shape": ({"x_train": X[:, :4], "y_train": Y}, "new.npz", "this model takes batches"),
    "other type": ({"x_train": X / 2, "y_train": Y}, "new.npz", "was trained on uint8"),
    "no archive": ({"x_train": X, "y_train": Y}, "new.npy", "must be an .npz file in a folder"),
    "no folder": ({"x_train": X, "y_train": Y}, "no/new.npz", "must be an .npz file in a folder"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_cannot_be_augmented_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    arrays, out, words = FILES[name]
    np.savez(tmp_path / "few.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        augment(folder, tmp_path / "few.npz", tmp_path / out)
    assert [file.name for file in tmp_path.iterdir()] == ["few.npz"]


def test_values_are_written_as_the_data_set_holds_them(folder: Path) -> None:
    data = pretrained.from_pretrained(folder).data._replace(shape=(2,))
    means = np.float32([[0.0, 0.52], [1.4, -0.3]])
    np.testing.assert_array_equal(as_raw(means, data), [[0, 8], [16, 0]])
    counts = data._replace(pixels="counts", pixel_max=16.0)
    np.testing.assert_array_equal(as_raw(16 * means, counts), [[0, 8], [16, 0]])
    real = data._replace(dtype="float32", pixels="none", levels=None, raw_levels=None)
    np.testing.assert_array_equal(as_raw(means, real._replace(pixel_max=3.0)), means)
    unit = real._replace(pixels="scale")
    np.testing.assert_array_equal(as_raw(means, unit), means)
    with pytest.raises(ValueError, match="which is no whole example"):
        as_raw(means[:, :1], data)


CODES = SAME._replace(encode=lambda params, x: Point(jnp.int32(x)))
MISTAKES: dict[str, tuple[Any, str]] = {
    "way": (lambda: augmentation.draws(SAME, {}, KEY, X, Y, how="smote"), "no way 'smote'"),
    "counts": (lambda: augmentation.draws(SAME, {}, KEY, X, Y[:3]), "3 labels were given for 4"),
    "no label": (lambda: augmentation.parents(KEY, np.full(3, -1), 2), "0 classes have labels"),
    "no examples": (lambda: augmentation.parents(KEY, Y, 0), "per_class was 0"),
    "names": (lambda: augmentation.parents(KEY, np.array(["a"]), 2), "must be integers"),
    "codes": (
        lambda: augmentation.between(CODES, {}, KEY, 1.0, 2.0, 0.5),
        "whole numbers that cannot be moved",
    ),
    "no encoder": (
        lambda: augmentation.draws(SAME._replace(encode=None), {}, KEY, X, Y),
        "augmentation needs a model that answers encode",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    function, words = MISTAKES[name]
    with pytest.raises(ValueError, match=words):
        function()
