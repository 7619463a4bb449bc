"""Classes without examples: whom each gradient reaches, guesses for labels, closed forms, files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

import jaxvae
from jaxvae import datasets, evaluation, families, models, training
from jaxvae.evaluation.zero_shot import curve
from jaxvae.families import Data
from jaxvae.families import zero_shot as family
from jaxvae.models import zero_shot
from jaxvae.runs import prepare
from jaxvae.runs.loading import of_run

KEY = jax.random.key(0)
FEATURES, ATTRIBUTES, LATENT, UNSEEN = 4, 3, 2, (1, 3)
RNG = np.random.default_rng(0)
TABLE = RNG.uniform(1, 9, size=(5, ATTRIBUTES)).astype(np.float32)
X = RNG.normal(2.0, 3.0, size=(12, FEATURES)).astype(np.float32)
Y = np.array([0, 2, 4] * 4, np.int32)
DATA = Data(
    *("mine", (FEATURES,), "float32", None, "none", 12, tuple("abcde")),
    num_classes=5,
    examples=lambda count: X[:count],
    num_class_attributes=ATTRIBUTES,
    unseen=UNSEEN,
    class_attributes=TABLE,
)
SMALL: dict[str, Any] = {"hidden": (5,), "critic_hidden": (6,), "latent": LATENT}
WEIGHTS = models.Weights(kl=0.7, pixels=0.6, similarity=1.3, critic=0.9)
BALANCE = zero_shot.Balance(unseen=0.5, named=0.8, confidence=0.5, start=10)
KEYS, SHARES = jax.random.split(KEY, 12), jnp.full(12, 1 / 12)


@functools.cache
def small(**named: Any) -> tuple[families.Built, zero_shot.ZeroShot, Any, Any]:
    """A model, its penalty, and parameters none of which is zero."""
    config = families.preset("zero-vae-gan", **SMALL, **named)
    built = family.build(config, DATA)
    model, penalty = family.model_of(config, DATA, config.likelihood())
    known = zero_shot.constants(X, TABLE, UNSEEN)
    shapes = jax.eval_shape(model.init(known), KEY, models.Conditioned(X[0], Y[0]))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.float32(0.4 * rng.normal(size=a.shape)), shapes)
    return built, model, penalty, params | {"constants": known}


def losses_of(
    balance: zero_shot.Balance = BALANCE, weights: models.Weights = WEIGHTS
) -> dict[str, Any]:
    _, model, penalty, _ = small()
    losses = zero_shot.losses(model, weights, balance, penalty)
    return {name: training.batch_mean(loss) for name, loss in losses.items()}


@functools.cache
def compiled(balance: zero_shot.Balance) -> Any:
    losses = losses_of(balance)

    @jax.jit
    def both(params: Any, examples: Any, step: Any) -> Any:
        of = lambda params, loss: loss(params, KEYS, examples, SHARES, step, None)[0]
        return {name: jax.value_and_grad(of)(params, loss) for name, loss in losses.items()}

    return both


def values(labels: Any, step: int, balance: zero_shot.Balance = BALANCE) -> tuple[Any, Any]:
    """Each loss and its gradient in the parameters of all players."""
    params, examples = small()[-1], models.Conditioned(X, jnp.asarray(labels, jnp.int32))
    found = compiled(balance)(params, examples, jnp.int32(step))
    return {n: float(v[0]) for n, v in found.items()}, {n: v[1] for n, v in found.items()}


@pytest.mark.parametrize("labels", ["known", "guessed"])
def test_the_gradient_of_each_loss_reaches_its_player_alone(labels: str) -> None:
    """Every leaf of it, no leaf of another player, and none of the constants."""
    given = Y if labels == "known" else np.full(12, -1)
    _, slopes = values(given, 10, BALANCE._replace(confidence=0.0))
    for player, slope in slopes.items():
        for path, leaf in jax.tree.leaves_with_path(slope):
            reached = bool(np.any(np.asarray(leaf) != 0))
            assert reached == (path[0].key == player), (player, jax.tree_util.keystr(path))


def test_a_sure_guess_stands_for_a_missing_label() -> None:
    """Its losses are those of the label. Unsure examples, and all before the start, have none."""
    _, model, _, params = small()
    x = (X - X.mean(0)) / X.std(0)
    logits = jax.vmap(functools.partial(model.classifier.apply, params["classifier"]))(x)
    shares = np.asarray(jax.nn.softmax(logits[:, list(UNSEEN)]))
    guesses, sure = np.array(UNSEEN)[shares.argmax(1)], np.sort(shares.max(1))
    least = float(sure[5] + sure[6]) / 2  # six of twelve are sure
    balance = BALANCE._replace(confidence=least)
    half = np.where(shares.max(1) >= least, guesses, -1)
    missing = np.full(12, -1)
    assert values(missing, 9, balance)[0] == dict.fromkeys(losses_of(), 0.0)
    of_guesses, of_missing = (values(each, 10, balance) for each in (half, missing))
    assert of_guesses[0] == pytest.approx(of_missing[0], rel=1e-6)
    assert all(value != 0 for value in of_missing[0].values())


@pytest.mark.parametrize("generator", family.GENERATORS)
def test_a_linear_generator_cannot_learn_classes_by_heart(generator: str) -> None:
    """Between two classes it is between their features, whatever z is; a joint one is anywhere."""
    _, model, _, params = small(generator=generator)
    known, z = models.joined(params), jnp.array([0.3, -0.8])
    a, b = jnp.array([4.0, -3.0, 2.0]), jnp.array([-3.0, 4.0, -5.0])
    mean = jax.jit(lambda a, z: model.cvae.decode(known, z, a).mean)
    ends = (mean(a, z) + mean(b, z)) / 2
    apart = float(jnp.abs(mean((a + b) / 2, z) - ends).max())
    moved = (mean(a, z) - mean(b, z)) - (mean(a, -z) - mean(b, -z))
    if generator == "linear":
        assert apart < 1e-5 and float(jnp.abs(moved).max()) < 1e-5
    else:
        assert apart > 1e-3 and float(jnp.abs(moved).max()) > 1e-3


def test_ridge_regression_is_where_a_linear_decoder_rests() -> None:
    """B of p(x|a) = N(B a + b, s^2) in closed form has no gradient, if z says nothing."""
    params = small()[-1]
    known = params["constants"]
    x = np.asarray(zero_shot.standardized(known, X), np.float64)
    a = np.stack([np.asarray(zero_shot.described(known, jnp.int32(y)), np.float64) for y in Y])
    s2 = float(jnp.exp(2 * params["decoder"]["likelihood"]["log_scale"]))
    both = np.concatenate([a, np.ones((12, 1))], 1)
    weight = families.preset("zero-vae-gan").generator.attribute_decay
    decay = np.diag([2 * weight * 12 * s2] * ATTRIBUTES + [0.0])
    fitted = np.linalg.solve(both.T @ both + decay, both.T @ x)
    parts = params["decoder"]["decoder"]
    of_attributes = {"kernel": fitted[:-1], "bias": fitted[-1]}
    of_attributes = jax.tree.map(jnp.float32, {"output": of_attributes})
    silent = {"z": jax.tree.map(jnp.zeros_like, parts["z"]), "attributes": of_attributes}
    params = params | {"decoder": params["decoder"] | {"decoder": silent}}
    loss = losses_of(weights=models.Weights(pixels=1.0), balance=BALANCE._replace(named=0.0))
    of = lambda decoder: loss["decoder"](
        params | {"decoder": decoder}, KEYS, models.Conditioned(X, Y), SHARES, 0, None
    )[0]
    slope = jax.jit(jax.grad(of))(params["decoder"])["decoder"]["attributes"]["output"]
    assert float(jnp.abs(slope["kernel"]).max()) < 1e-5
    assert float(jnp.abs(slope["bias"]).max()) < 1e-5


def test_answers_are_in_the_units_of_the_features() -> None:
    """log p(x|z) by SciPy; means and scales of training features; a class or its attributes."""
    built, model, _, params = small()
    known, z = zero_shot.parameters(params), jnp.array([0.3, -0.8])
    example = models.Conditioned(X[0], jnp.int32(1))
    unit = TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True)
    given = unit[1] - unit[[0, 2, 4]].mean(0)
    p = model.cvae.decode(known, z, jnp.asarray(given))
    scale = X.std(0)
    at_z = stats.norm(X.mean(0) + scale * np.asarray(p.loc), scale * np.asarray(p.scale))
    expected = at_z.logpdf(X[0]).sum() + stats.norm.logpdf(z).sum()
    asked: Any = built.model
    assert float(asked.log_joint(known, example, z)) == pytest.approx(expected, rel=1e-4)
    by_attributes = asked.decode(known, z, 7.0 * TABLE[1])  # their length says nothing
    np.testing.assert_allclose(by_attributes.mean, at_z.mean(), rtol=1e-4, atol=1e-4)


# Accuracies, beside scikit-learn, SciPy and a search


def scores() -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of 60 examples of five unequal classes."""
    rng = np.random.default_rng(3)
    labels = rng.choice(5, 60, p=[0.4, 0.1, 0.2, 0.25, 0.05])
    logits = rng.normal(size=(60, 5)) + 1.2 * np.eye(5)[labels] - 0.8 * np.isin(range(5), UNSEEN)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), labels


def test_accuracies_are_means_over_classes() -> None:
    log_q, labels = scores()
    found = evaluation.zero_shot_of(log_q, labels, UNSEEN)
    unseen = np.isin(labels, UNSEEN)
    guesses = log_q.argmax(1)
    recall = functools.partial(metrics.recall_score, average="macro", zero_division=0)
    u = recall(labels[unseen], guesses[unseen], labels=list(UNSEEN))
    s = recall(labels[~unseen], guesses[~unseen], labels=[0, 2, 4])
    assert (found.unseen, found.seen) == pytest.approx((u, s))
    assert found.harmonic == pytest.approx(stats.hmean([u, s]))
    among = np.array(UNSEEN)[log_q[unseen][:, list(UNSEEN)].argmax(1)]
    assert found.zero_shot == pytest.approx(metrics.balanced_accuracy_score(labels[unseen], among))
    assert found.zero_shot != pytest.approx((labels[unseen] == among).mean())
    confusion = metrics.confusion_matrix(labels[unseen], among, labels=list(UNSEEN))
    assert found.confusion == confusion.tolist()


def test_the_curve_is_of_every_calibration() -> None:
    """Chao et al. 2016: a search over what is added to the scores of unseen classes."""
    log_q, labels = scores()
    unseen = np.array(UNSEEN)
    points = []
    for added in np.linspace(-6, 6, 601):
        moved = log_q.copy()
        moved[:, unseen] += added
        found = evaluation.zero_shot_of(moved, labels, UNSEEN)
        points.append((found.unseen, found.seen))
    u, s = np.array(points).T
    found = evaluation.zero_shot_of(log_q, labels, UNSEEN)
    assert found.curve_area == pytest.approx(np.trapezoid(s, u), abs=0.01)
    of_all = curve(log_q, labels, unseen)
    assert np.abs(of_all - (found.unseen, found.seen)).sum(1).min() < 1e-12
    assert of_all[0, 0] == 0 and of_all[-1, 1] == pytest.approx(0)
    assert of_all[-1, 0] == pytest.approx(found.zero_shot)


# Files


def write(path: Path, **changed: Any) -> Path:
    """A file of 40 examples of five classes, two of them unseen."""
    label = np.repeat(np.arange(5), 8)
    kinds = np.where(np.isin(label, UNSEEN), 2, np.arange(40) % 8 // 6)
    arrays: dict[str, Any] = {
        "features": (np.arange(160).reshape(40, 4) % 11).astype(np.int8),
        "scale": np.array([0.5, 1, 2, 4], np.float32),
        "label": label.astype(np.uint8),
        "split": kinds.astype(np.uint8),
        "attributes": TABLE,
        "classes": np.array(list("abcde")),
    }
    np.savez(path, **(arrays | changed))
    return path


def test_a_file_of_described_classes(tmp_path: Path) -> None:
    """Training sees no unseen class, nor a label of one; nothing of the test makes its means."""
    table = TABLE.copy()
    table[3, 1] = table[0, 0] = -1
    file = write(tmp_path / "animals.npz", attributes=table)
    found = datasets.load(str(file))
    splits, attributes = found.splits, found.class_attributes
    assert {name: len(split) for name, split in splits.items()} == {
        **{"train": 17, "validation": 1, "transductive": 33, "test": 22}
    }
    assert set(splits["train"].y) | set(splits["validation"].y) == {0, 2, 4}
    unlabelled = splits["transductive"].y < 0
    assert set(splits["transductive"].y[~unlabelled]) == {0, 2, 4} and unlabelled.sum() == 16
    of_unseen = splits["test"].x[np.isin(splits["test"].y, UNSEEN)]
    np.testing.assert_array_equal(splits["transductive"].x[unlabelled], of_unseen)
    assert attributes is not None
    expected = TABLE.copy()
    expected[3, 1], expected[0, 0] = TABLE[[0, 2, 4], 1].mean(), TABLE[[2, 4], 0].mean()
    np.testing.assert_allclose(attributes, expected, rtol=1e-6)

    run = prepare(families.preset("zero-vae-gan", **SMALL, dataset=str(file), batch_size=8))
    assert run.record.data.unseen == UNSEEN and run.record.data.missing_labels == 0
    with pytest.raises(datasets.DataError, match="16 examples have no label"):
        run.built.split(run.dataset.splits["transductive"])
    known = run.init_state().params["constants"]
    np.testing.assert_allclose(known.mean, splits["train"].x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(known.scale, splits["train"].x.std(0), rtol=1e-5)


def empty_row() -> np.ndarray:
    table = TABLE.copy()
    table[3] = np.nan
    return table


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no attributes": ({"attributes": empty_row()}, "the class d has no attributes"),
    "no row": ({"attributes": TABLE[:4]}, "with a row for each of 5 classes"),
    "labels outside": (
        {"label": np.repeat(np.arange(1, 6), 8)},
        "attributes of 5 classes, and labels go from 1 to 5: labels must be 0 to 4",
    ),
    "lengths": ({"split": np.zeros(3, int)}, r"must be \[N, D\], \[N\] and \[N\]"),
    "all seen": ({"split": np.arange(40) % 8 // 6}, "must hold 0, training examples, and 2"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_no_set_of_described_classes_is_refused(mistake: str, tmp_path: Path) -> None:
    changed, words = MISTAKES[mistake]
    file = write(tmp_path / "animals.npz", **changed)
    with pytest.raises(ValueError, match=words) as raised:
        prepare(families.preset("zero-vae-gan", **SMALL, dataset=str(file)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"num_class_attributes": 0}, "mine has none: give dataset=FILE.npz"),
        ({"unseen": ()}, "all 5 classes of mine have some"),
    ],
)
def test_what_has_no_unseen_classes_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        family.build(families.preset("zero-vae-gan", **SMALL), DATA._replace(**changed))


def test_a_class_is_given_by_name_number_or_attributes() -> None:
    built, _, _, params = small()
    model = of_run(built, DATA, zero_shot.parameters(params), 0, None, None)
    by_name = model.sample(KEY, 2, condition=["d", "a"])
    assert by_name.shape == (2, FEATURES)
    for condition in ([3, 0], TABLE[[3, 0]]):
        np.testing.assert_allclose(model.sample(KEY, 2, condition=condition), by_name, rtol=1e-5)
    np.testing.assert_allclose(model.classify(X).sum(1), 1.0, rtol=1e-5)
    for wrong, words in (
        (["d", "x"], "condition holds 'x', which is no class: the classes are 0 to 4, or a, b"),
        ([3, 5], "condition holds 5, which is no class"),
        (TABLE[:2, :2], "is a class or 3 attributes"),
    ):
        with pytest.raises(ValueError, match=words):
            model.sample(KEY, 2, condition=wrong)


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("split", ["train", "transductive"])
def test_unseen_digits_are_named(split: str, tmp_path: Path, data_dir: Path) -> None:
    """Two digits of ten, from what a seven-segment display lights; by chance it is a half."""
    model = jaxvae.train(
        "zero-vae-gan",
        tmp_path,
        data_dir=str(data_dir),
        train_split=split,
        progress=False,
        steps=1500,
        self_training_start=500,
        test_samples=5,
    )
    assert model.result is not None
    found = model.result["zero_shot"]
    assert found["zero_shot"] > 0.7 and found["seen"] > 0.8
    assert {"unseen.png", "calibration.png"} <= {f.name for f in (tmp_path / "figures").iterdir()}
