"""Models of several views: exact posteriors and bounds of linear models, and missing views."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxvae import datasets, evaluation, families, likelihoods, networks
from jaxvae.distributions import Mixture, Normal
from jaxvae.evaluation import modalities as judged
from jaxvae.families import cuts
from jaxvae.models import modalities
from jaxvae.runs import Job, prepare

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SIZES, LATENT, SCALE = (3, 4), 2, 0.7


def _weights(size: int) -> np.ndarray:
    """A decoder with orthogonal columns, whose likelihood is a factorized expert."""
    columns, _ = np.linalg.qr(RNG.normal(size=(size, LATENT)))
    return columns * np.array([1.3, 0.6])


WEIGHTS = [_weights(size) for size in SIZES]
BIASES = [RNG.normal(size=size) for size in SIZES]
PRECISIONS = [(w**2).sum(0) / SCALE**2 for w in WEIGHTS]
X = RNG.normal(size=sum(SIZES))
PARTS = np.split(X, [SIZES[0]])
MEANS = [w.T @ (x - b) / (w**2).sum(0) for w, b, x in zip(WEIGHTS, BIASES, PARTS, strict=True)]
BOTH = jnp.array([True, True])


PRODUCT = modalities.all_views(2)


def view(number: int, precision: Any = None) -> modalities.View:
    """A linear view whose expert is its likelihood, or has another precision."""
    w, b = jnp.asarray(WEIGHTS[number]), jnp.asarray(BIASES[number])
    t = jnp.asarray(PRECISIONS[number] if precision is None else precision)

    def encode(params: Any, x: Any) -> Any:
        mean = w.T @ (x - b) / (w**2).sum(0)
        return jnp.concatenate([mean + params["shift"], jnp.log(t)])

    encoder = networks.Network(lambda key, x: {"shift": jnp.zeros(LATENT)}, encode)
    decoder = networks.Network(lambda key, z: {}, lambda params, z: w @ z + b)
    return modalities.View(
        f"view_{number}", SIZES[number], encoder, decoder, likelihoods.normal(SCALE)
    )


def model(
    sets: modalities.Sets = PRODUCT, order: tuple[int, ...] = (0, 1), **more: Any
) -> tuple[modalities.Modalities, Any]:
    """A linear model and its parameters."""
    made = modalities.Modalities(tuple(view(i, **more) for i in order), LATENT, sets)
    x = np.concatenate([PARTS[i] for i in order])
    example = modalities.Seen(jnp.asarray(x), jnp.ones(len(order), bool))
    return made, made.init(KEY, example)


def seen(*present: bool) -> modalities.Seen:
    return modalities.Seen(jnp.asarray(X), jnp.array(present))


def log_p(*numbers: int) -> float:
    """log p of some views in closed form."""
    w = np.concatenate([WEIGHTS[i] for i in numbers])
    b = np.concatenate([BIASES[i] for i in numbers])
    x = np.concatenate([PARTS[i] for i in numbers])
    covariance = w @ w.T + SCALE**2 * np.eye(len(x))
    return float(stats.multivariate_normal(b, covariance).logpdf(x))


# Exact values


def test_the_product_of_experts_and_one_prior_is_the_exact_posterior() -> None:
    w, b = np.concatenate(WEIGHTS), np.concatenate(BIASES)
    covariance = np.linalg.inv(np.eye(LATENT) + w.T @ w / SCALE**2)
    mean = covariance @ w.T @ (X - b) / SCALE**2
    with jax.enable_x64(True):
        made, params = model()
        posterior = jax.jit(made.posterior)
        q = posterior(params, seen(True, True))
        np.testing.assert_allclose(q.loc, mean, atol=1e-12)
        np.testing.assert_allclose(np.diag(q.scale**2), covariance, atol=1e-12)
        alone = [posterior(params, seen(i == 0, i == 1)) for i in (0, 1)]
    precision = sum(1 / np.asarray(q.scale) ** 2 for q in alone) - 1  # q_1 q_2 / p
    np.testing.assert_allclose(precision, 1 / np.diag(covariance), atol=1e-12)


@pytest.mark.parametrize("present, numbers", [((True, True), (0, 1)), ((False, True), (1,))])
def test_importance_weights_of_exact_posteriors_are_the_likelihood(
    present: tuple[bool, bool], numbers: tuple[int, ...]
) -> None:
    with jax.enable_x64(True):
        made, params = model()
        answers = modalities.modalities_answers(made)
        weights = jax.jit(lambda example: answers.log_weights(params, KEY, example, 5))(
            seen(*present)
        )
    np.testing.assert_allclose(weights, log_p(*numbers), atol=1e-9)


def elbo_of(mean: np.ndarray, variance: np.ndarray) -> float:
    """E_q log p(x|z) - KL(q || p) in closed form, for q = N(mean, diag(variance))."""
    w, b = np.concatenate(WEIGHTS), np.concatenate(BIASES)
    residual = X - b - w @ mean
    spread = np.sum(w**2 @ variance)
    constant = len(X) * np.log(2 * np.pi * SCALE**2)
    reconstruction = -0.5 * (constant + (residual @ residual + spread) / SCALE**2)
    kl = 0.5 * np.sum(variance + mean**2 - 1 - np.log(variance))
    return float(reconstruction - kl)


def bound_of(objective: Any, params: Any, draws: int = 4000) -> tuple[float, float]:
    """The mean of a bound over draws, and its standard error."""
    terms = jax.jit(jax.vmap(lambda key: objective(params, key, seen(True, True))))
    each = terms(jax.random.split(KEY, draws))
    values = np.asarray(each["reconstruction"] - each["kl"], np.float64)
    return float(values.mean()), float(values.std() / np.sqrt(draws))


def alone_exactly() -> list[float]:
    """The ELBO with the posterior of each view alone."""
    return [elbo_of(t * m / (1 + t), 1 / (1 + t)) for m, t in zip(MEANS, PRECISIONS, strict=True)]


def test_bounds_are_in_their_order_and_at_their_values() -> None:
    """mean_S ELBO_S <= the mixture's <= log p(x), and the gap of the first is at most log 2."""
    with jax.enable_x64(True):
        made, params = model(modalities.single_views(2))
        mean, error = bound_of(modalities.mean_terms(made), params)
        mixture, of_mixture = bound_of(modalities.mixture_terms(made), params)
        whole, params = model()
        product, of_product = bound_of(modalities.product_terms(whole, (), 0.0, 0), params)
    assert mean == pytest.approx(np.mean(alone_exactly()), abs=4 * error)
    assert product == pytest.approx(log_p(0, 1), abs=4 * of_product)
    assert mean < mixture + 4 * of_mixture and mixture < mean + np.log(2)
    assert mixture < log_p(0, 1)


@pytest.mark.slow
def test_every_set_is_in_the_mixture_of_products() -> None:
    precision = [np.sum(PRECISIONS, 0), *PRECISIONS]
    weighted = [sum(t * m for m, t in zip(MEANS, PRECISIONS, strict=True))]
    weighted += [t * m for m, t in zip(MEANS, PRECISIONS, strict=True)]
    exact = [elbo_of(w / (1 + t), 1 / (1 + t)) for w, t in zip(weighted, precision, strict=True)]
    with jax.enable_x64(True):
        made, params = model(modalities.every_set(2))
        mean, error = bound_of(modalities.mean_terms(made), params)
    assert mean == pytest.approx(np.mean(exact), abs=4 * error)


@pytest.mark.slow
def test_single_views_and_random_sets_add_their_elbos() -> None:
    """ELBO(all) + 2 (ELBO(1) + ELBO(2)), each of the views that it has."""
    with jax.enable_x64(True):
        made, params = model()
        total, error = bound_of(modalities.product_terms(made, (), 2.0, 0), params, 8000)
        more, of_more = bound_of(modalities.product_terms(made, (), 0.0, 3), params, 8000)
    singles = log_p(0) + log_p(1)
    assert total == pytest.approx(log_p(0, 1) + 2 * singles, abs=4 * error)
    random = 3 * (log_p(0, 1) + singles) / 4  # and the empty set, whose ELBO is 0
    assert more == pytest.approx(log_p(0, 1) + random, abs=4 * of_more)


# Missing views


OBJECTIVES = {
    "product": (modalities.all_views, lambda m: modalities.product_terms(m, (), 1.0, 2)),
    "mixture": (modalities.single_views, modalities.mixture_terms),
    "both": (modalities.every_set, modalities.mean_terms),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_missing_view_is_left_out_bit_for_bit(name: str) -> None:
    """Whatever its numbers are, and its parameters have no gradient."""
    sets, objective = OBJECTIVES[name]
    made, params = model(sets(2))

    def bound(params: Any, x: Any) -> Any:
        terms = objective(made)(params, KEY, modalities.Seen(x, jnp.array([True, False])))
        return terms["reconstruction"] - terms["kl"]

    value, gradient = jax.jit(jax.value_and_grad(bound))(params, jnp.asarray(X))
    other, _ = jax.jit(jax.value_and_grad(bound))(params, jnp.asarray(X).at[3:].set(7.0))
    assert value == other and np.isfinite(value)
    assert (np.asarray(gradient["encoders"]["view_1"]["shift"]) == 0).all()
    assert (np.asarray(gradient["encoders"]["view_0"]["shift"]) != 0).any()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_posterior_without_a_view_is_of_the_model_without_it(name: str) -> None:
    sets, _ = OBJECTIVES[name]
    made, params = model(sets(2))
    q = made.posterior(params, seen(True, False))
    alone, of_alone = model(modalities.all_views(1), (0,))
    part = modalities.Seen(jnp.asarray(PARTS[0]), jnp.array([True]))
    expected = alone.posterior(of_alone, part)
    if isinstance(q, Mixture):
        (left,) = np.flatnonzero(np.isfinite(np.asarray(q.logits)))
        q = jax.tree.map(lambda leaf: leaf[left], q.components)
    np.testing.assert_array_equal(q.loc, expected.loc)
    np.testing.assert_array_equal(q.scale, expected.scale)


def test_without_any_view_it_is_the_prior() -> None:
    for sets, _ in OBJECTIVES.values():
        made, params = model(sets(2))
        q = made.posterior(params, seen(False, False))
        parts = q.components if isinstance(q, Mixture) else q
        assert (np.asarray(parts.loc) == 0).all() and (np.asarray(parts.scale) == 1).all()


def test_an_expert_without_precision_is_missing() -> None:
    made, params = model(precision=np.zeros(LATENT))
    q = made.posterior(params, seen(True, True))
    assert (np.asarray(q.loc) == 0).all() and (np.asarray(q.scale) == 1).all()


def test_the_order_of_views_does_not_matter() -> None:
    made, params = model()
    other, of_other = model(order=(1, 0))
    swapped = modalities.Seen(jnp.asarray(np.concatenate(PARTS[::-1])), BOTH)
    first = made.posterior(params, seen(True, True))
    second = other.posterior(of_other, swapped)
    np.testing.assert_allclose(first.loc, second.loc, rtol=1e-5)
    np.testing.assert_allclose(first.scale, second.scale, rtol=1e-5)


def test_one_view_is_a_vae_whatever_the_experts_are() -> None:
    part = modalities.Seen(jnp.asarray(PARTS[0]), jnp.array([True]))
    found = []
    for sets, _ in OBJECTIVES.values():
        made, params = model(sets(1), (0,))
        q = made.posterior(params, part)
        assert isinstance(q, Normal)
        weights = modalities.modalities_answers(made).log_weights(params, KEY, part, 3)
        found.append(float(weights[0]))
    np.testing.assert_allclose(found, log_p(0), atol=1e-4)


def test_a_certain_expert_keeps_its_precision() -> None:
    """KL to 1e-5 of its value where a variance has ten digits less than the prior's."""
    experts = [(jnp.array([0.3]), jnp.array([1e10]))]
    q = modalities.product(experts, jnp.array([True]))
    from jaxvae import divergences

    kl = float(divergences.kl(q, Normal(jnp.zeros(1), jnp.ones(1))))
    assert kl == pytest.approx(0.5 * (1e-10 + 0.09 - 1 + np.log(1e10)), rel=1e-5)


# Reports


@functools.cache
def linear_split() -> Any:
    x = np.tile(X.astype(np.float32), (3, 1))
    preprocess = lambda key, raw: modalities.Seen(raw, BOTH)
    return datasets.Split(x, preprocess=preprocess)


def test_likelihoods_of_views_have_the_weights_of_their_own_posterior() -> None:
    made, params = model()
    answers = modalities.modalities_answers(made)
    found = judged.likelihoods(answers, params, KEY, linear_split(), 4)
    expected = {
        "joint_log_likelihood": log_p(0, 1),
        "log_likelihood_of_view_0": log_p(0),
        "log_likelihood_of_view_1": log_p(1),
        "log_likelihood_given_view_0": log_p(0, 1) - log_p(0),
        "log_likelihood_given_view_1": log_p(0, 1) - log_p(1),
    }
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_weights_of_views_change_the_training_and_no_report() -> None:
    data = np.random.default_rng(0).normal(size=(12, 7)).astype(np.float32)
    kinds = []
    for weights in ((), (10.0, 0.5)):
        config = families.preset(
            "multimodal",
            **{"views": "columns", "view_sizes": (3, 4), "view_weights": weights},
            **{"hidden": (4,), "latent": 2, "likelihood": "normal_learned", "pixels": "none"},
        )
        run = prepare(config, data=data)
        params = run.built.parameters(run.init_state())
        summary = evaluation.evaluate_elbo(run.built.model, params, KEY, run.test)
        loss = run.built.algorithm.step(run.init_state(), _batch(run), None)[1]["loss"]
        kinds.append((summary.elbo, float(loss)))
    assert kinds[0][0] == kinds[1][0] and kinds[0][1] != kinds[1][1]


def _batch(run: Any) -> Any:
    from jaxvae import training

    x = datasets.rows_of(run.train.examples, slice(2))
    return training.Batch(x, jnp.arange(2), jnp.full(2, 0.5), jnp.arange(2))


# Examples


@pytest.mark.slow
def test_halves_are_put_together_again(data_dir: Path) -> None:
    run = prepare(families.preset("multimodal", hidden=(4,)), Job(data_dir=str(data_dir)))
    split = run.dataset.splits["test"].take(slice(4))
    example = run.built.preprocess(KEY, jax.tree.map(lambda a: a[0], run.built.raw(split)))
    assert example.x.shape == (64 + 10,) and example.present.all()
    x = np.concatenate([np.arange(64), np.zeros(10)])[None]
    left, right = np.arange(64).reshape(8, 8)[:, :4], np.arange(64).reshape(8, 8)[:, 4:]
    order = np.concatenate([left.ravel(), right.ravel()])
    image = run.built.pictures(x[:, np.concatenate([order, np.arange(64, 74)])], None)
    np.testing.assert_array_equal(image.reshape(8, 8), np.arange(64).reshape(8, 8))
    assert int(example.x[64:].argmax()) == int(split.y[0])
    without = run.built.preprocess(KEY, jnp.asarray(split.x[0]))
    assert without.present.tolist() == [True, True, False] and (without.x[64:] == 0).all()
    unknown = jax.tree.map(lambda a: a[0], run.built.raw(split))._replace(y=np.int32(-1))
    assert run.built.preprocess(KEY, unknown).present.tolist() == [True, True, False]


@pytest.mark.slow
def test_a_view_with_gaps_is_missing() -> None:
    data = np.random.default_rng(0).normal(size=(12, 7)).astype(np.float32)
    data[3, 5] = np.nan
    named = {"views": "columns", "view_sizes": (3, 4), "likelihood": "normal_learned"}
    config = families.preset("multimodal", **named, hidden=(4,), latent=2, pixels="gaps")
    run = prepare(config, data={"train": data, "test": data})
    example = run.built.preprocess(KEY, jnp.asarray(data[3]))
    assert example.present.tolist() == [True, False]
    np.testing.assert_array_equal(example.x, np.append(data[3, :3], np.zeros(4)))
    state = run.fit(num_steps=2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.built.parameters(state)))
    with pytest.raises(datasets.DataError, match="values that are not finite"):
        prepare(families.changed(config, pixels="none"), data={"train": data, "test": data})


def test_hidden_views_leave_one_and_are_chosen_by_the_seed() -> None:
    x = np.zeros((5000, 2))
    first, again, other = (cuts.shown(x, 3, 0.6, seed).views for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and first.any(1).all()
    assert first.mean() == pytest.approx(0.4 + 0.6 / 3, abs=0.02)


@pytest.mark.parametrize(
    "named, words",
    [
        ({"views": "columns", "view_sizes": (3, 3)}, "must be parts of a vector"),
        ({"view_weights": (1.0,)}, "one for each of the 3 views, left, right, label"),
    ],
)
def test_what_does_not_fit_is_refused(named: dict, words: str, data_dir: Path) -> None:
    with pytest.raises(ValueError, match=words):
        prepare(families.preset("multimodal", **named), Job(data_dir=str(data_dir)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experts", "coherence"), [("product", 0.35), ("mixture", 0.5), ("both", 0.5)]
)
def test_views_are_judged_by_command(
    experts: str, coherence: float, tmp_path: Path, data_dir: Path
) -> None:
    """One view says more of the others than nothing does, and the class of what is decoded.

    Chance is .1. The product is behind in coherence, as Sutter et al. 2021 report.
    """
    import json

    import jaxvae
    from jaxvae.runs.commands import evaluate

    # The label has ten times its weight, as Wu & Goodman 2018 give text: 32 pixels outweigh it.
    config = families.preset("multimodal", experts=experts, hidden=(64,), steps=2000)
    config = families.changed(config, view_weights=(1.0, 1.0, 10.0))
    quick = {"checkpoint_every": 2000, "test_samples": 10, "test_examples": 50}
    config = families.changed(config, **quick)
    jaxvae.train(config, tmp_path, data_dir=str(data_dir), progress=False)
    evaluate(tmp_path, num_samples=20, modalities=True)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["accuracy_of_codes_of_all"] > 0.85
    assert found["coherence_left_to_label"] > coherence
    assert found["log_likelihood_given_left"] > found["log_likelihood_of_right"] - np.log(10)
    assert (tmp_path / "figures" / "completions.png").exists()
