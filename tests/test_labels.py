"""Models with labels: exact bounds of linear models, gradients, weights, batches, refusals."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy import stats
from sklearn import metrics

import jaxvae
from jaxvae import (
    datasets,
    evaluation,
    expectations,
    families,
    likelihoods,
    measurements,
    models,
    networks,
    posteriors,
    priors,
    training,
)
from jaxvae.distributions import Mixture, MultivariateNormal, Normal
from jaxvae.runs import Job, prepare
from jaxvae.runs.commands import sample

KEY = jax.random.key(0)
CLASSES, D, LATENT = 3, 4, 2
RNG = np.random.default_rng(0)
MEANS = RNG.normal(size=(CLASSES, D))  # of x given y, at z = 0
WEIGHTS = RNG.normal(size=(D, LATENT))
SCALE = 0.6
COVARIANCE = WEIGHTS @ WEIGHTS.T + SCALE**2 * np.eye(D)
X = RNG.normal(size=D)
LOGITS = np.array([0.3, -0.8, 1.1])  # of a q(y|x) that is not the exact posterior
PRECISION = np.eye(LATENT) + WEIGHTS.T @ WEIGHTS / SCALE**2


def log_p_of_classes(x: np.ndarray) -> np.ndarray:
    """log p(x, y) of every class, [C]."""
    each = [stats.multivariate_normal(mean, COVARIANCE).logpdf(x) for mean in MEANS]
    return np.array(each) - np.log(CLASSES)


def linear(logits: Any = None) -> models.M2:
    """p(x|y, z) = N(b_y + W z, s^2 I) with the exact q(z|x, y), and the exact q(y|x) or logits.

    q(z|x, y) is a mixture of one component. Its KL is estimated from the draws of z, and so the
    bound is the same for all of them.
    """
    covariance = np.linalg.inv(PRECISION)

    def encode(params: Any, x: Any, y: Any) -> Mixture:
        loc = covariance @ WEIGHTS.T @ (x - y @ MEANS) / SCALE**2
        one = MultivariateNormal(loc[None], jnp.asarray(np.linalg.cholesky(covariance))[None])
        return Mixture(jnp.zeros(1), one)

    def decode(params: Any, z: Any, y: Any) -> Normal:
        return Normal(y @ jnp.asarray(MEANS) + jnp.asarray(WEIGHTS) @ z, jnp.full(D, SCALE))

    def prior(params: Any, y: Any) -> Normal:
        return Normal(jnp.zeros(LATENT), jnp.ones(LATENT))

    def of_x(params: Any, x: Any) -> Any:
        residuals = x - jnp.asarray(MEANS)
        solved = jnp.asarray(np.linalg.inv(COVARIANCE)) @ residuals.T
        return -0.5 * jnp.sum(residuals * solved.T, 1)

    classifier = networks.Network(
        lambda key, x: {}, of_x if logits is None else lambda params, x: jnp.asarray(params)
    )
    cvae = models.CVAE(lambda key, example: {}, encode, decode, prior)
    return models.M2(cvae, classifier, CLASSES)


def unlabelled_bound(logits: Any) -> jax.Array:
    """U(x) of the linear model with these logits of q(y|x)."""
    vae = models.over_labels(linear(logits))
    loss = jax.jit(models.negative_elbo(vae, 1, estimator=expectations.enumeration))
    return -loss({"classifier": logits}, KEY, jnp.asarray(X), jnp.int32(0))[0]


# Exact values


def test_bounds_of_a_linear_model_are_exact() -> None:
    """-L(x, y) is log p(x, y) and U(x) is log p(x), with the log p(y) of each class."""
    exact = log_p_of_classes(X)
    with jax.enable_x64(True):
        bounds = jax.jit(lambda x: models.labels.both_bounds(linear(), {"classifier": {}}, KEY, x))
        both = bounds(jnp.asarray(X))
        np.testing.assert_allclose(both.labelled, exact, rtol=0, atol=1e-9)
        elbo = both.terms["reconstruction"] - both.terms["kl"]
        assert float(elbo) == pytest.approx(np.logaddexp.reduce(exact), abs=1e-9)


def test_the_gap_is_the_divergence_of_the_guess() -> None:
    """log p(x) - U(x) = KL(q(y|x) || p(y|x)) for any q(y|x)."""
    exact = log_p_of_classes(X)
    log_q = LOGITS - np.logaddexp.reduce(LOGITS)
    gap = np.sum(np.exp(log_q) * (log_q - (exact - np.logaddexp.reduce(exact))))
    with jax.enable_x64(True):
        bound = float(unlabelled_bound(jnp.asarray(LOGITS)))
    assert np.logaddexp.reduce(exact) - bound == pytest.approx(gap, abs=1e-9)


def exact_gradient() -> np.ndarray:
    """dU / dlogit_k = q_k (F_k - sum q F) with F_y = -L(x, y) - log q(y|x)."""
    log_q = LOGITS - np.logaddexp.reduce(LOGITS)
    values, q = log_p_of_classes(X) - log_q, np.exp(log_q)
    return q * (values - q @ values)


def test_the_gradient_of_the_guess_is_exact() -> None:
    with jax.enable_x64(True):
        gradient = jax.grad(unlabelled_bound)(jnp.asarray(LOGITS))
    np.testing.assert_allclose(gradient, exact_gradient(), rtol=0, atol=1e-9)


UNBIASED = ("score_function", "rloo", "local_expectation", "unordered_set", "disarm_tree")


@pytest.mark.parametrize("name", UNBIASED)
def test_estimators_in_the_place_of_the_enumeration_have_its_mean(name: str) -> None:
    """Summed over all of their noise."""
    estimator = expectations.ESTIMATORS[name]

    def problem(logits: Any) -> tuple[Any, Any]:
        model = linear(logits)
        vae = models.over_labels(model)
        params = {"classifier": logits}
        q = vae.encode(params, jnp.asarray(X))
        entropy_free = lambda y: (
            vae.decode(params, y).log_prob(jnp.asarray(X)) - np.log(CLASSES) - q.log_prob(y)
        )
        return q, entropy_free

    with jax.enable_x64(True):
        moments = measurements.exact(estimator, problem, jnp.asarray(LOGITS))
    np.testing.assert_allclose(moments.mean, exact_gradient(), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.optimized
def test_relaxed_classes_are_biased_and_less_so_as_they_harden() -> None:
    """The bias of concrete classes vanishes with the temperature."""
    params, x = {"classifier": jnp.asarray(LOGITS)}, jnp.asarray(X, jnp.float32)

    def bias(temperature: float) -> float:
        estimator = expectations.concrete.configured(temperature=temperature)
        loss = models.negative_elbo(models.over_labels(linear(LOGITS)), 1, estimator=estimator)
        each = jax.jit(jax.vmap(lambda key: loss(params, key, x, jnp.int32(0))[0]))
        bound = -np.mean([each(jax.random.split(jax.random.key(i), 50_000)) for i in range(8)])
        return abs(float(bound - unlabelled_bound(jnp.asarray(LOGITS))))

    assert bias(2.0) > 0.1 > 0.02 > bias(0.02)


def test_a_bound_at_a_soft_label_is_none_of_the_sum_over_labels() -> None:
    """A decoder that sees q(y|x) in the place of a class gives another number."""
    q = np.exp(LOGITS - np.logaddexp.reduce(LOGITS))
    with jax.enable_x64(True):
        at_soft_label = linear(LOGITS).bound({}, KEY, jnp.asarray(X), jnp.asarray(q))
    of_classes = log_p_of_classes(X) + np.log(CLASSES)
    assert abs(float(at_soft_label) - q @ of_classes) > 0.05


# The loss


def small(hidden: tuple[int, ...] = (5,), activation: Any = jnp.tanh) -> models.M2:
    """M2 of x [D] with networks."""
    posterior, likelihood = posteriors.normal(LATENT), likelihoods.normal(0.5)
    pair = (
        networks.mlp_of_parts(hidden, posterior.size, activation),
        networks.mlp_of_parts(hidden, likelihood.outputs((D,)), activation),
    )
    prior = priors.standard_normal(LATENT)
    cvae = models.cvae(*pair, posterior, likelihood, prior, lambda a, b: (a, b))
    return models.M2(cvae, networks.mlp(hidden, CLASSES, activation), CLASSES)


@functools.cache
def params_of_small() -> Any:
    shapes = jax.eval_shape(small().init, KEY, jnp.zeros(D))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.float32(0.5 * rng.normal(size=a.shape)), shapes)


def loss_of(shares: models.Shares, weight: float = 0.7, model: Any = None) -> Any:
    model = small() if model is None else model
    vae = models.over_labels(model)
    unlabelled = models.negative_elbo(vae, 1, estimator=expectations.enumeration)
    return jax.jit(models.semi_supervised(model, unlabelled, shares, weight))


def test_with_all_labels_and_no_weight_it_is_the_conditional_vae() -> None:
    loss, cvae = loss_of(models.Shares(10, 0, 4, 0), 0.0), small().cvae
    of_cvae = models.negative_elbo(cvae)
    x, y = jnp.asarray(X, jnp.float32), jnp.int32(1)
    params = params_of_small()

    def ours(params: Any) -> Any:
        return loss(params, KEY, models.Conditioned(x, y), 0)[0]

    def theirs(params: Any) -> Any:
        example = models.Conditioned(x, jnp.eye(CLASSES)[y])
        return of_cvae(params, jax.random.split(KEY)[0], example, 0)[0]

    (value, gradient), (other, of_other) = (
        jax.jit(jax.value_and_grad(each))(params) for each in (ours, theirs)
    )
    assert float(value - other) == pytest.approx(np.log(CLASSES), abs=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradient, of_other
    )


def test_class_names_do_not_matter() -> None:
    """Permuted names permute the guesses, and change no loss."""
    order = np.array([2, 0, 1])  # the new class k was class order[k]
    params = params_of_small()
    other = jax.tree.map(lambda a: a, params)
    for part, layer in (("encoder", "input_1"), ("decoder", "input_1")):
        kernel = params[part][layer]["kernel"]
        other[part] = params[part] | {layer: {"kernel": kernel[order]}}
    output = params["classifier"]["output"]
    permuted = {"kernel": output["kernel"][:, order], "bias": output["bias"][order]}
    other["classifier"] = params["classifier"] | {"output": permuted}
    loss, x = loss_of(models.Shares(3, 9, 1, 3)), jnp.asarray(X, jnp.float32)
    for y in (-1, 0, 1, 2):
        renamed = -1 if y < 0 else int(np.flatnonzero(order == y)[0])
        value = loss(params, KEY, models.Conditioned(x, jnp.int32(y)), 0)[0]
        same = loss(other, KEY, models.Conditioned(x, jnp.int32(renamed)), 0)[0]
        assert float(value) == pytest.approx(float(same), abs=1e-5)
    guess, of_other = (small().guess(p, x).logits[0] for p in (params, other))
    np.testing.assert_allclose(of_other, guess[order], atol=1e-5)


def test_the_mean_of_batches_is_the_objective_of_the_data() -> None:
    """sum_l L / N + sum_u -U / N + alpha mean_l -log q(y|x), whatever the share in a batch."""
    labels = np.array([0, 2, -1, -1, -1, -1])
    x = np.random.default_rng(2).normal(size=(6, D)).astype(np.float32)
    params, model, alpha = params_of_small(), small(), 0.7
    bounds_of = jax.jit(lambda row: models.labels.both_bounds(model, params, KEY, row))
    both = [bounds_of(row) for row in x]
    log_q = [jax.nn.log_softmax(model.guess(params, row).logits[0]) for row in x[:2]]
    bound = sum(
        b.labelled[y] if y >= 0 else b.terms["reconstruction"] - b.terms["kl"]
        for b, y in zip(both, labels, strict=True)
    )
    expected = -bound / 6 - alpha * (log_q[0][0] + log_q[1][2]) / 2

    shares = models.Shares(2, 4, 2, 1)  # two of three examples in a batch, one of three in the data
    loss = loss_of(shares, alpha, OneKey(model))
    values = [
        float(loss(params, KEY, models.Conditioned(row, jnp.int32(y)), 0)[0])
        for row, y in zip(x, labels, strict=True)
    ]
    of_kinds = np.mean(values[:2]), np.mean(values[2:])
    counts = shares.batch_labelled, shares.batch_unlabelled
    assert np.average(of_kinds, weights=counts) == pytest.approx(float(expected), abs=1e-4)


class OneKey(models.M2):
    """M2 whose draws of z have one key, so that losses can be compared exactly."""

    def __new__(cls, model: models.M2) -> Any:
        return super().__new__(cls, *model)

    def terms(self, params: Any, key: Any, x: Any, y: Any, num_samples: int = 1) -> Any:
        return models.M2.terms(self, params, KEY, x, y, num_samples)

    def bound(self, params: Any, key: Any, x: Any, y: Any) -> Any:
        return models.M2.bound(self, params, KEY, x, y)


def test_a_certain_guess_has_finite_losses_and_gradients() -> None:
    loss, x = loss_of(models.Shares(3, 9, 1, 3), 0.7, linear(LOGITS)), jnp.asarray(X, jnp.float32)

    def of_logits(logits: Any, y: Any) -> Any:
        return loss({"classifier": logits}, KEY, models.Conditioned(x, y), 0)[0]

    both = jax.jit(jax.value_and_grad(of_logits))
    for y in (-1, 0, 2):
        value, gradient = both(jnp.array([1e4, -1e4, 0.0]), jnp.int32(y))
        assert np.isfinite(value) and np.isfinite(gradient).all()


# Answers


def test_importance_weights_of_exact_posteriors_are_the_likelihood() -> None:
    answers = models.m2_answers(linear())
    example = models.Conditioned(jnp.asarray(X, jnp.float32), jnp.int32(-1))
    log_weights = jax.jit(lambda example: answers.log_weights({"classifier": {}}, KEY, example, 50))
    weights = log_weights(example)
    exact = np.logaddexp.reduce(log_p_of_classes(X))
    np.testing.assert_allclose(weights, exact, atol=1e-4)
    terms_of = jax.jit(lambda example: answers.terms({"classifier": {}}, KEY, example, 2))
    assert np.isnan(terms_of(example)["labelled_elbo"])
    known = terms_of(example._replace(y=jnp.int32(1)))
    assert float(known["labelled_elbo"]) == pytest.approx(log_p_of_classes(X)[1], abs=1e-4)
    classes = answers.classify({"classifier": {}}, example)
    np.testing.assert_allclose(classes, log_p_of_classes(X) - exact, atol=1e-4)


def test_draws_at_a_class_are_of_that_class_and_differ_in_it_alone() -> None:
    answers, params = models.m2_answers(small()), params_of_small()
    draw = jax.jit(lambda label: answers.draw(params, KEY, label))
    drawn = [draw(label) for label in range(CLASSES)]
    assert [int(latents.y) for latents in drawn] == [0, 1, 2]
    assert all((latents.z == drawn[0].z).all() for latents in drawn)


SIZE = 3  # codes of M1, of which M2 explains the first and the last
FIRST = np.random.default_rng(3).normal(size=(5, SIZE))


@functools.cache
def coded() -> tuple[models.Model, Any]:
    """M1+M2 of x [5], linear, with an M2 of networks, and its parameters."""

    def encode(params: Any, x: Any) -> Normal:
        return Normal(0.5 * jnp.tanh(x[:SIZE]), jnp.full(SIZE, 0.8))

    def decode(params: Any, z: Any) -> Normal:
        return Normal(jnp.asarray(FIRST, jnp.float32) @ z, jnp.full(5, 0.9))

    vae = models.VAE(lambda key, x: {}, encode, decode, lambda params: None)
    posterior, likelihood = posteriors.normal(LATENT), likelihoods.normal(0.5)
    pair = (
        networks.mlp_of_parts((), posterior.size),
        networks.mlp_of_parts((), likelihood.outputs((2,))),
    )
    prior = priors.standard_normal(LATENT)
    cvae = models.cvae(*pair, posterior, likelihood, prior, lambda a, b: (a, b))
    m2 = models.M2(cvae, networks.mlp((), CLASSES), CLASSES)
    shapes = jax.eval_shape(m2.init, KEY, jnp.zeros(2))
    rng = np.random.default_rng(4)
    of_m2 = jax.tree.map(lambda a: jnp.float32(0.4 * rng.normal(size=a.shape)), shapes)
    of_m2["encoder"] = jax.tree.map(lambda a: 0.1 * a, of_m2["encoder"])  # close to the prior
    params = {"first_stage": {"model": {}, "kept": jnp.array([0.0, 2.0])}, "m2": of_m2}
    model = models.CodedLabels(models.answers(vae), m2, SIZE)
    return models.coded_answers(model, lambda key, example: params), params


def test_both_stages_together_have_the_likelihood_of_their_mixture() -> None:
    """p(x) is a mixture of Gaussians, because both decoders are linear."""
    answers, params = coded()
    decoder = jax.tree.map(np.asarray, params["m2"]["decoder"])
    slope, of_class = decoder["input_0"]["kernel"].T, decoder["input_1"]["kernel"]
    bias, kept = decoder["input_0"]["bias"], [0, 2]
    x = np.array([0.3, -0.2, 0.5, 0.1, -0.4])
    covariance = np.eye(SIZE)
    covariance[np.ix_(kept, kept)] = slope @ slope.T + 0.25 * np.eye(2)
    log_p = []
    for label in range(CLASSES):
        mean = np.zeros(SIZE)
        mean[kept] = bias + of_class[label]
        law = stats.multivariate_normal(
            FIRST @ mean, FIRST @ covariance @ FIRST.T + 0.81 * np.eye(5)
        )
        log_p.append(law.logpdf(x))
    exact = np.logaddexp.reduce(log_p) - np.log(CLASSES)
    example = models.Conditioned(jnp.asarray(x, jnp.float32), jnp.int32(1))
    weights = jax.jit(lambda key: answers.log_weights(params, key, example, 40_000))(KEY)
    estimate = float(logsumexp(weights) - np.log(40_000))
    assert estimate == pytest.approx(exact, abs=0.06)  # 2100 effective samples
    keys = jax.random.split(KEY, 5000)
    terms = jax.jit(jax.vmap(lambda key: answers.terms(params, key, example, 1)))(keys)
    bound = terms["reconstruction"] - terms["kl"]
    assert float(bound.mean()) == pytest.approx(float(weights.mean()), abs=0.1)
    assert float(bound.mean()) < exact
    assert float(terms["labelled_elbo"].mean()) < log_p[1] - np.log(CLASSES)


def test_draws_of_both_stages_have_the_law_of_the_prior() -> None:
    answers, params = coded()
    draw = jax.jit(jax.vmap(lambda key: answers.draw(params, key, 2)))
    drawn = draw(jax.random.split(KEY, 20_000))
    decoder = jax.tree.map(np.asarray, params["m2"]["decoder"])
    mean = decoder["input_0"]["bias"] + decoder["input_1"]["kernel"][2]
    np.testing.assert_allclose(np.mean(drawn.codes[:, [0, 2]], 0), mean, atol=0.03)
    assert abs(float(drawn.codes[:, 1].mean())) < 0.03
    assert float(drawn.codes[:, 1].std()) == pytest.approx(1, abs=0.02)
    assert (drawn.y == 2).all()


def test_a_network_of_parts_is_the_network_of_both_side_by_side() -> None:
    rng = np.random.default_rng(0)
    parts = rng.normal(size=3).astype(np.float32), rng.normal(size=(2, 1)).astype(np.float32)
    for hidden in ((), (4,), (4, 5)):
        network = networks.mlp_of_parts(hidden, (2, 3), jnp.tanh)
        params = network.init(KEY, parts)
        kernels = [params[f"input_{i}"]["kernel"] for i in range(2)]
        first = {"kernel": np.concatenate(kernels), "bias": params["input_0"]["bias"]}
        layers = [first, *(params[f"layer_{i + 1}"] for i in range(len(hidden)))]
        names = [*(f"hidden_{i}" for i in range(len(hidden))), "output"]
        one = networks.mlp(hidden, (2, 3), jnp.tanh)
        whole = np.concatenate([np.ravel(part) for part in parts])
        expected = one.apply(dict(zip(names, layers, strict=True)), whole)
        np.testing.assert_allclose(network.apply(params, parts), expected, atol=1e-6)


# Labels that stay, and batches of both kinds


def test_labels_that_stay_are_balanced_and_chosen_by_the_seed() -> None:
    labels = np.random.default_rng(0).integers(-1, 4, 200).astype(np.int32)
    first, again, other = (datasets.hide_labels(labels, 22, 4, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert sorted(np.bincount(first[first >= 0])) == [5, 5, 6, 6]
    assert (first[first >= 0] == labels[first >= 0]).all()
    assert datasets.hide_labels(labels, None, 4, 0) is labels


@pytest.mark.parametrize(
    "labels, count, words",
    [
        ([0, 1, 2], 2, "labelled=2 examples are fewer than the 3 classes"),
        ([0, 1, -1], None, "labelled=2 examples are fewer than the 3 classes"),
        ([0, 0, 0, 1, 2, 2], 6, "labelled=6 takes 2 examples of class 1, and 1 have that label"),
    ],
)
def test_too_few_labels_are_refused(labels: list[int], count: int | None, words: str) -> None:
    with pytest.raises(datasets.DataError, match=words):
        datasets.hide_labels(np.array(labels), count, 3, 0)


def test_a_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(datasets.DataError, match="there are 3 classes, 0 to 2, and a label is 7"):
        datasets.checked_labels(np.array([0, 7, -1]), 3)
    data = {
        "train": (np.zeros((6, 2, 2, 1), np.uint8), np.array([0, 1, 2, 0, 1, 2])),
        "test": (np.zeros((2, 2, 2, 1), np.uint8), np.array([0, 5])),
    }
    with pytest.raises(datasets.DataError, match="there are 3 classes"):
        prepare(families.preset("m2", labelled=None), data=data)


def test_batches_have_fixed_numbers_and_each_epoch_every_row() -> None:
    groups = [np.arange(0, 7), np.arange(7, 30)]
    strata = [datasets.Stratum(groups[0], 3), datasets.Stratum(groups[1], 5)]
    batches = [datasets.stratified_rows(4, step, strata, 10) for step in range(46)]
    for rows, mask in batches:
        assert mask.tolist() == [1] * 8 + [0] * 2
        assert set(rows[:3]) <= set(groups[0]) and set(rows[3:8]) <= set(groups[1])
    few = np.concatenate([rows[:3] for rows, _ in batches[:7]]).reshape(3, 7)
    many = np.concatenate([rows[3:8] for rows, _ in batches])[: 23 * 10].reshape(10, 23)
    for epochs, group in ((few, groups[0]), (many, groups[1])):
        assert (np.sort(epochs, 1) == group).all()
        assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(datasets.stratified_rows(4, 17, strata, 10)[0], batches[17][0])


def test_a_group_smaller_than_its_part_of_a_batch_is_taken_several_times() -> None:
    (rows, _) = datasets.stratified_rows(0, 3, [datasets.Stratum(np.array([4, 9]), 5)], 5)
    assert set(rows) == {4, 9}


def test_strata_that_do_not_fill_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="strata of 3 examples do not fill a batch of 4"):
        training.fit(
            training.gradient_descent(lambda key, x: x, lambda *args: None, None),
            np.zeros(5),
            num_steps=1,
            batch_size=4,
            state=training.State(jnp.int32(0), KEY, {}, None, {}, jnp.int32(0)),
            strata=[datasets.Stratum(np.arange(5), 3)],
        )


# Runs


@pytest.mark.parametrize(
    "labelled, known, rest", [(100, 100, 1337), (10, 10, 1427), (None, 1437, 0)]
)
def test_the_same_set_trains_with_few_labels_many_or_all(
    labelled: int | None, known: int, rest: int, data_dir: Path
) -> None:
    """Each batch has its share, by the feed; evaluation sees every label."""
    config = families.preset("m2", labelled=labelled, hidden=(4,), labelled_share=0.25)
    run = prepare(config, Job(data_dir=str(data_dir)))
    hidden = np.asarray(run.train.x.y)
    assert ((hidden >= 0).sum(), (hidden < 0).sum()) == (known, rest)
    assert (np.asarray(run.test.x.y) >= 0).all()
    strata = run.built.strata(run.train, 128)
    assert [stratum.size for stratum in strata] == ([32, 96] if rest else [128])
    assert all(((hidden[s.rows] >= 0) == (i == 0)).all() for i, s in enumerate(strata))


def test_a_set_without_labels_is_refused() -> None:
    data = np.zeros((20, 3, 3, 1), np.uint8)
    with pytest.raises(ValueError, match="needs a set with labels in memory; arrays has none"):
        prepare(families.preset("m2"), data=data)


def test_classifications_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    log_q = np.log(rng.dirichlet(np.ones(4), 300))
    labels = rng.integers(0, 4, 300)
    found = evaluation.classified(log_q, labels)
    guesses = log_q.argmax(1)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, guesses))
    assert found.cross_entropy == pytest.approx(metrics.log_loss(labels, np.exp(log_q)))
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(labels, guesses))


def test_calibration_and_collapse_are_seen() -> None:
    """Guesses at 0.8 that are right half the time are off by 0.3; one class has no entropy."""
    log_q = np.log(np.tile([0.8, 0.2], (100, 1)))
    found = evaluation.classified(log_q, np.arange(100) % 2)
    assert found.calibration_error == pytest.approx(0.3)
    collapsed = evaluation.classified(
        np.log(np.tile([1 - 1e-12, 1e-12], (10, 1))), np.zeros(10, int)
    )
    assert collapsed.guess_entropy == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_both_stages_are_trained_by_one_command(tmp_path: Path, data_dir: Path) -> None:
    """M1 is trained first, once; its mistakes and those of M2 are found before a folder is made."""
    small = {"hidden": (8,), "latent": 2, "steps": 4, "checkpoint_every": 2, "batch_size": 20}
    first = {"first_hidden": (8,), "first_latent": 3, "first_steps": 6, "codes": 2}
    quick = {"test_samples": 5, "test_examples": 10, "data_dir": str(data_dir), "progress": False}
    with pytest.raises(ValueError, match="fewer than the 10 classes"):
        jaxvae.train("m1-m2", tmp_path / "run", labelled=9, **small, **first, **quick)
    assert not (tmp_path / "run").exists()
    trained = jaxvae.train("m1-m2", tmp_path / "run", **small, **first, **quick)
    before = (tmp_path / "run" / "m1" / "result.json").stat().st_mtime_ns
    assert np.isfinite(trained.result["test_elbo"])
    assert {"classes.png", "confusion.png"} <= {
        p.name for p in (tmp_path / "run/figures").iterdir()
    }
    again = jaxvae.train("m1-m2", tmp_path / "run", **small | {"steps": 6}, **first, **quick)
    assert (tmp_path / "run" / "m1" / "result.json").stat().st_mtime_ns == before
    assert again.step == 6
    sample(tmp_path / "run", num=3, label="4")
    loaded = jaxvae.load(tmp_path / "run")
    x = np.zeros((2, 8, 8, 1), np.uint8)
    np.testing.assert_allclose(loaded.classify(x).sum(1), 1, atol=1e-5)
    assert (loaded.sample_latents(KEY, 3, np.array([1, 1, 2])).y == np.array([1, 1, 2])).all()
