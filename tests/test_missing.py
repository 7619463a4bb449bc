"""Tables with missing cells: densities of columns, MIWAE and not-MIWAE, imputation, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import integrate, linalg, special, stats

import jaxvae
from experiments.papers import missing as papers
from jaxvae import (
    bounds,
    distributions,
    families,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
)
from jaxvae.datasets import DataError, tables
from jaxvae.datasets.tables import Column
from jaxvae.models import cells, missingness
from jaxvae.models import tables as models_of_tables
from jaxvae.runs import Job, imputing, prepare
from jaxvae.runs.loading import Trained
from jaxvae.uses import missing

KEY = jax.random.key(0)
NAN = np.nan


# Reading and kinds


def frame(n: int = 30) -> pd.DataFrame:
    """A table with a column of each kind, and some missing cells."""
    rng = np.random.default_rng(0)
    whole = pd.DataFrame(
        {
            "height": rng.normal(size=n),
            "price": np.exp(rng.normal(size=n)),
            "visits": rng.poisson(30, n),
            "grade": rng.integers(1, 5, n),
            "colour": rng.choice(["red", "green", "blue"], n),
        }
    )
    return whole.mask(rng.random(whole.shape) < 0.2)


KINDS: dict[str, tuple[Any, str]] = {
    "words": (["b", "a", None], "categorical"),
    "truth values": ([True, False, True], "categorical"),
    "two numbers": ([0, 1, 1, NAN], "categorical"),
    "few whole numbers": ([1, 2, 3, 3], "ordinal"),
    "many whole numbers": (list(range(20)), "count"),
    "whole and negative": (list(range(-10, 10)), "real"),
    "above zero": ([0.5, 1.25, 3.0], "positive"),
    "real": ([0.5, -1.25, 3.0], "real"),
    "zero and above": ([0.0, 1.25, 3.0], "real"),
    "ordered": (pd.Categorical(["lo", "hi"], categories=["lo", "hi"], ordered=True), "ordinal"),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_are_inferred(name: str) -> None:
    values, kind = KINDS[name]
    assert tables.infer_kind(pd.Series(values)) == kind


def test_a_table_is_the_same_from_csv_parquet_and_a_data_frame(tmp_path: Path) -> None:
    whole = frame()
    whole.to_csv(tmp_path / "table.csv", index=False)
    whole.to_parquet(tmp_path / "table.parquet")
    whole.to_csv(tmp_path / "table.csv.xz", index=False)
    sets = [
        tables.load(source, {"categorical": ["grade"]}, ["height"])
        for source in (whole, *(tmp_path / f"table.{e}" for e in ("csv", "parquet", "csv.xz")))
    ]
    kinds = [(c["name"], c["kind"]) for c in sets[0].columns]
    assert kinds == [
        *(("price", "positive"), ("visits", "count")),
        *(("grade", "categorical"), ("colour", "categorical")),
    ]
    assert "grade   categorical  1, 2, 3, 4" in sets[0].notes[0]
    for other in sets[1:]:
        np.testing.assert_allclose(other.splits["train"].x, sets[0].splits["train"].x, rtol=1e-6)
        for one, two in zip(other.columns, sets[0].columns, strict=True):
            assert one["levels"] == two["levels"]
            assert one["loc"] == pytest.approx(two["loc"], rel=1e-6)
    columns = [Column.of_json(json.loads(json.dumps(c))) for c in sets[0].columns]
    x = tables.numbers_of(whole, columns)
    back = tables.frame_of(x, columns)
    assert back["colour"].fillna("?").tolist() == whole["colour"].fillna("?").tolist()
    np.testing.assert_allclose(back["grade"], whole["grade"])


def test_statistics_are_of_observed_training_cells_alone() -> None:
    """Other test rows change no column (trap 4), and a file without names has numbered columns."""
    train, test = frame(40), frame(10)
    changed = test.assign(height=test["height"] * 100)
    one, two = (tables.load({"train": train, "test": each}) for each in (test, changed))
    assert one.columns == two.columns
    height = one.columns[0]
    assert height["loc"] == pytest.approx(train["height"].mean(), rel=1e-5)
    assert height["scale"] == pytest.approx(train["height"].std(ddof=0), rel=1e-5)
    price = one.columns[1]
    assert price["loc"] == pytest.approx(np.log(train["price"]).mean(), rel=1e-5)
    height, other, *_ = tables.load(train, standardize=False).columns
    assert (height["loc"], height["scale"]) == (0.0, 1.0) and other["scale"] != 1.0


def test_a_file_of_numbers_has_numbered_columns(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("1.5,2,?\n-2.5,3,4\n")
    read = tables.read(tmp_path / "n.csv")
    assert list(read.columns) == ["column_1", "column_2", "column_3"]
    assert read["column_3"].isna().tolist() == [True, False]


def test_hidden_cells_leave_one_of_each_row_and_column() -> None:
    x = np.where(np.random.default_rng(0).random((200, 4)) < 0.3, NAN, 1.0)
    x[0], x[1:, 3] = [NAN, NAN, NAN, 1.0], NAN
    hidden = tables.hidden_cells(x, 0.5, seed=3)
    assert not hidden[np.isnan(x)].any() and not hidden[0].any()
    left = ~np.isnan(x) & ~hidden
    full = ~np.isnan(x).all(1)
    assert left.any(0).all() and left[full].any(1).all()
    assert 0.2 < hidden.sum() / (~np.isnan(x)).sum() < 0.5
    np.testing.assert_array_equal(hidden, tables.hidden_cells(x, 0.5, seed=3))
    assert (hidden != tables.hidden_cells(x, 0.5, seed=4)).any()


WRONG: dict[str, tuple[Any, str]] = {
    "no rows": (lambda: tables.read(frame().iloc[:0]), "0 rows and 5 columns"),
    "twice": (lambda: tables.read(pd.DataFrame([[1, 2]], columns=["a", "a"])), "two columns 'a'"),
    "three axes": (lambda: tables.read(np.zeros((2, 2, 2))), "a data frame or numbers"),
    "no column": (lambda: tables.load(frame(), {"real": ["width"]}), "there is no column 'width'"),
    "one value": (lambda: tables.load(frame().assign(height=1.0)), "leave it out with --drop"),
    "all dropped": (lambda: tables.load(frame(), {}, frame().columns), "every column is dropped"),
    "words as numbers": (
        lambda: tables.load(frame(), {"real": ["colour"]}),
        "is no number: state another kind, such as --categorical colour",
    ),
    "a count that is not whole": (
        lambda: tables.load(frame(), {"count": ["height"]}),
        "its cells are whole and from 0 on; one is",
    ),
    "a positive number below zero": (
        lambda: tables.load(frame(), {"positive": ["height"]}),
        "its cells are above 0; one is -",
    ),
    "too fine for float32": (
        lambda: tables.load(frame().assign(height=1e9 + np.arange(30) % 7 + 0.5)),
        "float32 does not tell them apart",
    ),
    "an unknown level": (
        lambda: tables.numbers_of(
            pd.DataFrame({"c": ["z"]}), [Column("c", "categorical", levels=("a", "b"))]
        ),
        "holds 'z', which training had not; its values are a, b",
    ),
    "a column of another name": (
        lambda: tables.numbers_of(frame(), [Column("width", "real")]),
        "has no column 'width'; the model has the columns width",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_table_is_refused(name: str) -> None:
    make, words = WRONG[name]
    with pytest.raises(DataError, match=words):
        make()


# Densities


def columns_of_all_kinds() -> list[Column]:
    """A column of each kind, with statistics."""
    return [
        Column("count", "count", 4.0, 2.0, 0, 9),
        Column("category", "categorical", levels=("a", "b", "c")),
        Column("real", "real", 2.0, 3.0),
        Column("ordinal", "ordinal", levels=("1", "2", "3", "4")),
        Column("positive", "positive", 0.5, 0.7, 0.1, 9.0),
    ]


def decoded(family: str) -> tuple[cells.Cells, np.ndarray, cells.Layout]:
    """p(x|z) from random raw numbers, which are returned too."""
    layout, real = cells.Layout(columns_of_all_kinds()), cells.REAL_FAMILIES[family]()
    size = cells.decoded_size(layout, real)
    raw = np.random.default_rng(1).normal(size=size).astype(np.float32)
    params = cells.init_likelihood(layout, real)
    return jax.jit(cells.cells, static_argnums=(0, 1))(layout, real, params, raw), raw, layout


def expected_log_probs(family: str, raw: np.ndarray, x: np.ndarray) -> np.ndarray:
    """log p of each cell of ``columns_of_all_kinds`` by SciPy."""
    scale = lambda r: np.log1p(np.exp(r + np.log(np.e - 1))) + 1e-3
    of_real = raw[: {"normal": 2, "student_t": 3, "normal_shared": 1}[family]]
    loc, rest = of_real[0], raw[len(of_real) :]
    if family == "normal":
        real = stats.norm(2 + 3 * loc, 3 * scale(of_real[1]))
    elif family == "normal_shared":
        real = stats.norm(2 + 3 * loc, 3 * scale(0.0))
    else:
        real = stats.t(3 + np.log1p(np.exp(of_real[2])), 2 + 3 * loc, 3 * scale(of_real[1]))
    m, s, log_mean, log_total, location, *logits = rest
    positive = stats.lognorm(0.7 * scale(s), scale=np.exp(0.5 + 0.7 * m))
    mean, total = 4 * np.exp(log_mean), 4 * np.exp(log_total)
    count = stats.nbinom(total, total / (total + mean))
    step = np.log(2) + 1e-3
    thresholds = -0.35 * 2 + step * np.arange(3) - location
    below = np.concatenate([[0.0], special.expit(thresholds), [1.0]])
    ordinal = np.log(np.diff(below))[int(x[3])]
    category = special.log_softmax(logits)[int(x[1])]
    return np.array(
        [count.logpmf(x[0]), category, real.logpdf(x[2]), ordinal, positive.logpdf(x[4])]
    )


@pytest.mark.parametrize("family", cells.REAL_FAMILIES)
def test_densities_are_scipys_in_the_units_of_the_columns(family: str) -> None:
    """Also with missing cells, whose gradient is not nan (trap 1) and whose density is left out."""
    p, raw, _ = decoded(family)
    x = np.array([7, 2, 1.3, 1, 2.5], np.float32)
    each = expected_log_probs(family, raw, x)
    gradient = jax.jit(jax.value_and_grad(lambda p, x: p.log_prob(x), allow_int=True))
    for gaps in ([], [0], [1, 4], [2, 3], [0, 1, 2, 3, 4]):
        seen = np.delete(np.arange(5), gaps)
        value, slopes = gradient(p, jnp.asarray(x).at[jnp.array(gaps, int)].set(NAN))
        np.testing.assert_allclose(value, each[seen].sum(), rtol=2e-5, atol=2e-5)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes))


@pytest.mark.slow
def test_draws_have_the_moments_of_the_densities() -> None:
    p, _, layout = decoded("normal")
    draws = np.asarray(jax.jit(lambda p: p.sample(KEY, (20_000,)))(p))
    numbers, probabilities = p.expectations(jnp.zeros(5))
    means = dict(zip(layout.numeric.tolist(), np.asarray(numbers), strict=True))
    for column, mean in means.items():
        error = draws[:, column].std() / np.sqrt(len(draws))
        assert abs(draws[:, column].mean() - mean) < 4 * error
    for row, column in enumerate(layout.levelled):
        share = np.bincount(draws[:, column].astype(int), minlength=4) / len(draws)
        np.testing.assert_allclose(share, probabilities[row], atol=0.015)
    assert (draws[:, 4] > 0).all()  # the positive density has no mass elsewhere (trap 3)


@pytest.mark.parametrize("location", [-60.0, -3.0, 0.0, 5.0, 90.0])
def test_levels_of_an_ordinal_column_sum_to_one(location: float) -> None:
    """No level is clipped (trap 5): log-probabilities stay exact where the level has no mass."""
    thresholds = jnp.array([-2.0, 0.5, 0.51, 4.0])
    log_p = np.asarray(cells.ordinal_log_probs(jnp.float32(location), thresholds))
    assert special.logsumexp(log_p.astype(np.float64)) == pytest.approx(0, abs=2e-6)
    edges = np.array([-np.inf, *(np.asarray(thresholds, np.float64) - location), np.inf])
    upper, lower = edges[1:], edges[:-1]
    with np.errstate(invalid="ignore"):
        ratio = np.exp(lower - upper)
    exact = special.log_expit(upper) + special.log_expit(-lower) + np.log1p(-ratio)
    np.testing.assert_allclose(log_p, exact, rtol=2e-3, atol=1e-5)


def test_student_t_noise_is_student_t() -> None:
    q = distributions.StudentT(jnp.float32(4.0), jnp.float32(1.0), jnp.float32(2.0))
    draws = np.asarray(q.sample(KEY, (4000,)))
    assert stats.kstest(draws, stats.t(4, 1, 2).cdf).pvalue > 0.01


# Importance sampling, in closed form


W = np.array([[1.0, 0.2], [-0.7, 0.8], [0.4, -0.9], [1.2, 0.5]])
MEAN, NOISE = np.array([0.3, -0.2, 0.1, 0.5]), 0.5


def linear_vae(spread: float = 1.0, shift: float = 0.0) -> tuple[models.VAE, dict]:
    """Probabilistic PCA whose encoder is exact for whole rows, but for its variance and mean."""
    d, q = W.shape
    m = W.T @ W + NOISE**2 * np.eye(q)
    project = np.linalg.solve(m, W.T)
    tril = np.linalg.cholesky(spread * NOISE**2 * np.linalg.inv(m))
    scale = np.diag(tril)
    below = (tril / scale[:, None])[np.tril_indices(q, -1)]
    rest = np.concatenate([np.log(scale), below])
    kernel = np.concatenate([project, np.zeros((len(rest), d))]).T
    params = {
        "encoder": {
            "output": {"kernel": kernel, "bias": np.concatenate([shift - project @ MEAN, rest])}
        },
        "posterior": {},
        "decoder": {"output": {"kernel": W.T, "bias": MEAN}},
        "likelihood": {},
        "prior": {},
    }
    posterior = posteriors.multivariate_normal(q)
    vae = models.vae(
        *(networks.mlp((), posterior.size), networks.mlp((), d)),
        *(posterior, likelihoods.normal(NOISE), priors.standard_normal(q)),
    )
    return vae, jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)


X = np.array([0.9, NAN, -0.6, NAN], np.float32)
SEEN, GONE = [0, 2], [1, 3]


def conditional() -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the missing cells of X given the others."""
    c = W @ W.T + NOISE**2 * np.eye(4)
    gain = np.linalg.solve(c[np.ix_(SEEN, SEEN)], c[np.ix_(SEEN, GONE)]).T
    mean = MEAN[GONE] + gain @ (X[SEEN] - MEAN[SEEN])
    return mean, c[np.ix_(GONE, GONE)] - gain @ c[np.ix_(SEEN, GONE)]


def test_importance_sampling_has_the_exact_conditional() -> None:
    """Means, variances and intervals of missing cells, of several chunks of samples."""
    vae, params = linear_vae(spread=4.0)
    impute = jax.jit(missing.importance, static_argnums=(0, 4, 5, 6, 7))
    one = impute(missing.observed(vae), params, KEY, X, 8000, 2000, 0.9, 2000)
    mean, covariance = conditional()
    deviation = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(one.point[np.array(GONE)], mean, atol=0.05 * deviation.min())
    draws = np.asarray(one.draws)[:, GONE]
    np.testing.assert_allclose(draws.std(0), deviation, rtol=0.06)
    half = stats.norm.ppf(0.95) * deviation
    np.testing.assert_allclose(np.asarray(one.low)[GONE], mean - half, atol=0.12)
    np.testing.assert_allclose(np.asarray(one.high)[GONE], mean + half, atol=0.12)
    np.testing.assert_array_equal(np.asarray(one.point)[SEEN], X[SEEN])
    assert 100 < one.quality < 8000


def test_the_bound_of_observed_cells_is_their_log_likelihood() -> None:
    """MIWAE is ``bounds.iwae`` of the observed cells; its gradient is finite."""
    vae, params = linear_vae(spread=4.0)
    gaps = missing.observed(vae)

    @jax.jit
    @jax.value_and_grad
    def bound(params: Any) -> jax.Array:
        q, prior = gaps.encode(params, X), gaps.prior(params)
        joint = lambda z: gaps.decode(params, z).log_prob(X) + prior.log_prob(z)
        return bounds.iwae(KEY, q, joint, 20_000)

    value, slopes = bound(params)
    c = W @ W.T + NOISE**2 * np.eye(4)
    exact = stats.multivariate_normal(MEAN[SEEN], c[np.ix_(SEEN, SEEN)]).logpdf(X[SEEN])
    assert float(value) == pytest.approx(exact, abs=0.03)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes))


def test_cells_that_depend_on_each_other_are_refused() -> None:
    banded = likelihoods.normal_banded(2)
    vae = models.vae(
        *(networks.mlp((), 4), networks.mlp((), banded.outputs((4,))), posteriors.normal(2)),
        *(banded, priors.standard_normal(2)),
    )
    params = vae.init(KEY, jnp.zeros(4))
    with pytest.raises(ValueError, match="independent cells; it is a BandedNormal"):
        jax.eval_shape(lambda: missing.observed(vae).decode(params, jnp.zeros(2)))


# Chains, in closed form

SPREAD = 1.52  # of the variance of an encoder, in the place of 1


def pseudo_gibbs_covariance(spread: float) -> np.ndarray:
    """The limit of x_m' = W_m z + e for z ~ N(M^-1 W'(x - mu), spread s^2 M^-1), by Lyapunov."""
    m = W.T @ W + NOISE**2 * np.eye(2)
    step = W[GONE] @ np.linalg.solve(m, W[GONE].T)
    inner = W[GONE] @ (spread * NOISE**2 * np.linalg.inv(m)) @ W[GONE].T
    return linalg.solve_discrete_lyapunov(step, inner + NOISE**2 * np.eye(2))


@pytest.mark.parametrize("metropolis", [True, False])
def test_metropolis_within_gibbs_is_exact_where_pseudo_gibbs_is_not(metropolis: bool) -> None:
    """An encoder of too much variance: pseudo-Gibbs has 1.18 of the exact one, by Lyapunov."""
    vae, params = linear_vae(SPREAD)
    model, steps = missing.observed(vae), 1500
    chain = lambda key: missing.gibbs(
        model, params, key, X, steps, 50, steps, metropolis=metropolis
    )
    found = jax.jit(jax.vmap(chain))(jax.random.split(KEY, 64))
    draws = np.asarray(found.draws)[:, :, GONE].reshape(-1, 2)
    mean, exact = conditional()
    limit = exact if metropolis else pseudo_gibbs_covariance(SPREAD)
    np.testing.assert_allclose(np.var(draws, 0), np.diag(limit), rtol=0.03)
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.03)
    ratio = np.trace(pseudo_gibbs_covariance(SPREAD)) / np.trace(exact)
    assert ratio == pytest.approx(1.18, abs=0.005)
    accepted = float(np.mean(found.quality))
    assert accepted == 1 if not metropolis else 0.2 < accepted < 0.9


@pytest.mark.slow
def test_a_shifted_encoder_biases_pseudo_gibbs_alone() -> None:
    vae, params = linear_vae(spread=1.5, shift=0.3)
    model, steps = missing.observed(vae), 1500
    mean, exact = conditional()
    deviation = np.sqrt(np.diag(exact))
    for metropolis in (False, True):
        chain = lambda key, test=metropolis: (
            missing.gibbs(model, params, key, X, steps, 50, 1, metropolis=test).point
        )
        point = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(KEY, 32))).mean(0)[GONE]
        error = np.abs((point - mean) / deviation).max()
        assert error < 0.05 if metropolis else error > 0.3


# A model of missingness, by quadrature


SLOPE, CENTRE = 4.0, 0.5


def masked_model() -> tuple[models.VAE, dict]:
    """Probabilistic PCA of three columns, the last of which is missing where it is high."""
    columns = [Column(name, "real", 0.0, 1.0) for name in "abc"]
    why = missingness.self_masking()
    vae = models_of_tables.table_vae(
        columns,
        *(networks.mlp((), 4), networks.mlp((), 3), posteriors.normal(2)),
        *(priors.standard_normal(2), cells.normal_shared(), why),
    )
    params = jax.tree.map(jnp.zeros_like, vae.init(KEY, jnp.zeros(3)))
    params["decoder"]["output"] |= {"kernel": jnp.float32(W[:3].T), "bias": jnp.float32(MEAN[:3])}
    raw = np.log(np.expm1(NOISE - cells.SMALLEST_SCALE)) - np.log(np.e - 1)
    params["likelihood"]["real"]["scale"] = jnp.float32(raw)
    params["missingness"]["slope"] = jnp.float32([0.0, 0.0, SLOPE])
    params["missingness"]["centre"] = jnp.float32([0.0, 0.0, CENTRE])
    return vae, params


def test_a_model_of_missingness_is_its_quadrature() -> None:
    """log p(x_o, s) and E[x_m|x_o, s]; the weighted mean of mu(z) would be biased (not offered)."""
    vae, params = masked_model()
    x = np.array([0.9, -0.6, NAN], np.float32)
    c = W[:3] @ W[:3].T + NOISE**2 * np.eye(3)
    gain = np.linalg.solve(c[:2, :2], c[:2, 2])
    loc = MEAN[2] + gain @ (x[:2] - MEAN[:2])
    given = stats.norm(loc, np.sqrt(c[2, 2] - gain @ c[:2, 2]))
    gone = lambda v: special.expit(SLOPE * (v - CENTRE))
    mass = integrate.quad(lambda v: given.pdf(v) * gone(v), -8, 8)[0]
    mean = integrate.quad(lambda v: v * given.pdf(v) * gone(v), -8, 8)[0] / mass
    marginal = stats.multivariate_normal(MEAN[:2], c[:2, :2]).logpdf(x[:2])
    log_p = marginal + np.log(mass) + 2 * np.log(0.5)  # the other columns are seen half the time

    found = jax.jit(missing.importance, static_argnums=(0, 4))(vae, params, KEY, x, 20_000)
    assert float(found.point[2]) == pytest.approx(mean, abs=0.03)
    assert mean - loc > 0.1  # what a model without missingness would say is far from it

    @jax.jit
    def weighed(params: Any) -> tuple[jax.Array, jax.Array]:
        model, q = models.answers(vae), vae.encode(params, x)
        latents, log_q = distributions.sample_and_log_prob_of(q, q.noise(KEY, (20_000,)))
        return jax.vmap(lambda z: model.log_joint(params, x, z))(latents) - log_q, latents[0]

    log_w, z = (np.asarray(each, np.float64) for each in weighed(params))
    assert special.logsumexp(log_w) - np.log(len(log_w)) == pytest.approx(log_p, abs=0.05)
    of_means = special.softmax(log_w) @ (z @ W[2] + MEAN[2])
    assert mean - of_means > 0.05


@pytest.mark.slow
def test_missing_levels_are_summed_exactly() -> None:
    layout = cells.Layout([c for c in columns_of_all_kinds() if c.kind in tables.LEVELLED])
    why = missingness.self_masking()
    real = cells.normal()
    params = cells.init_likelihood(layout, real)
    raw = jnp.array([0.4, 0.1, -0.3, 0.8])
    log_odds = np.random.default_rng(2).normal(size=(2, 4)).astype(np.float32)
    whole = cells.cells(layout, real, params, raw)
    masked = missingness.Masked(whole, whole.noise(KEY), {"levels": log_odds}, why)
    x = jnp.array([NAN, 2.0])  # the category is missing; the ordinal column is seen
    probabilities = np.exp(whole.log_probs)
    of_category = np.log((probabilities[1, :3] * special.expit(log_odds[1, :3])).sum())
    of_ordinal = whole.log_probs[0, 2] + special.log_expit(-log_odds[0, 2])
    assert float(masked.log_prob(x)) == pytest.approx(float(of_category + of_ordinal), abs=1e-5)
    tilted = probabilities[1, :3] * special.expit(log_odds[1, :3])
    np.testing.assert_allclose(masked.expectations(x)[1][1, :3], tilted / tilted.sum(), rtol=1e-5)


def test_gibbs_sampling_refuses_a_model_of_missingness() -> None:
    vae, params = masked_model()
    with pytest.raises(ValueError, match="needs a model without missingness"):
        jax.eval_shape(lambda: missing.gibbs(vae, params, KEY, jnp.array([0.9, -0.6, NAN])))


# The family and the command


SMALL: dict[str, Any] = {
    **{"hidden": (4,), "decoder_hidden": (4,), "latent": 2, "batch_size": 8, "num_samples": 3},
    **{"steps": 4, "report_every": 2, "checkpoint_every": 2, "test_samples": 5},
}


def untrained(preset: str, table: pd.DataFrame, **named: Any) -> Trained:
    """The model of a table before its first step."""
    run = prepare(families.preset(preset, **SMALL, **named), Job(), table)
    params = run.built.parameters(run.init_state())
    return Trained(run.built, run.record.data, params, 0)


@pytest.mark.slow
def test_the_command_imputes_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its files keep all observed cells and other columns; errors are told beside the truth."""
    table = frame()
    trained = untrained("tabular", table)
    monkeypatch.setattr(imputing, "load", lambda workdir, checkpoint: trained)
    with_gaps = table.assign(name=[f"row {i}" for i in range(len(table))])
    with_gaps.to_csv(tmp_path / "data.csv", index=False)
    whole = table.fillna(table.mode().iloc[0])
    whole.to_csv(tmp_path / "truth.csv", index=False)
    imputing.impute(
        tmp_path / "run",
        tmp_path / "data.csv",
        num_samples=20,
        draws=2,
        truth=tmp_path / "truth.csv",
    )
    said = capsys.readouterr().out
    assert "missing cells" in said and "of the cells" in said and "effective samples" in said
    folder = tmp_path / "run" / "imputed"
    endings = ("", "-low", "-high", "-draw-1", "-draw-2")
    for file in (folder / f"data{ending}.csv" for ending in endings):
        filled = pd.read_csv(file)
        assert filled.columns.tolist() == with_gaps.columns.tolist()
        assert filled["name"].tolist() == with_gaps["name"].tolist()
        assert not filled.isna().any(axis=None)
        for name in table.columns:
            seen = table[name].notna()
            assert (filled[name][seen] == table[name][seen]).all(), name
        assert set(filled["colour"]) <= {"red", "green", "blue"}
        assert (filled["visits"] == filled["visits"].round()).all()
        assert (filled["price"] > 0).all()
    found = json.loads((folder / "data.json").read_text())
    assert found["covered"]["colour"] is None and 0 <= found["hi_vae"]["mean"] < 1


def test_errors_are_as_hi_vae_counts_them() -> None:
    columns = (
        Column("a", "real", 0, 1),
        Column("o", "ordinal", levels=("1", "2", "3", "4")),
        Column("k", "categorical", levels=("x", "y")),
    )
    truth = np.array([[0.0, 0, 0], [1.0, 1, 1], [4.0, 3, 0]], np.float32)
    x = np.where([[0, 0, 0], [1, 1, 1], [1, 1, 1]], NAN, truth)
    point = np.array([[0.0, 0, 0], [2.0, 3, 1], [4.0, 3, 1]], np.float32)
    found: Any = missing.Imputation(point, point - 0.5, point + 0.5, point[:, None], point[:, 0])
    errors = imputing.errors_of(columns, x, truth, found)
    np.testing.assert_allclose(errors.hi_vae, [np.sqrt(0.5) / 4, 1 / 4, 1 / 2])
    np.testing.assert_allclose(errors.squared[:2], [0.5 / truth[:, 0].var(), 2 / truth[:, 1].var()])
    np.testing.assert_allclose(errors.covered[:2], [0.5, 0.5])
    assert errors.mean("hi_vae") == pytest.approx(np.mean(errors.hi_vae))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "counts": ("not-miwae", {}, "takes no counts, and column 'visits' is count"),
    "held-out cells": (
        "not-miwae",
        {"real": ("visits",), "held_out_cells": 0.1},
        "hides cells at random",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_missingness_does_not_go_with_is_refused(name: str) -> None:
    preset, named, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        untrained(preset, frame(), **named)


def test_checkpoints_are_judged_by_held_out_cells() -> None:
    """The score is log p of hidden cells given the others, exact for a linear model."""
    vae, params = linear_vae(spread=4.0)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(6, 2)) @ W.T + MEAN + NOISE * rng.normal(size=(6, 4))).astype(np.float32)
    hidden = tables.hidden_cells(x, 0.4, 0)
    score = missing.held_out_log_prob(
        missing.observed(vae), params, KEY, x, hidden, num_samples=3000
    )
    c = W @ W.T + NOISE**2 * np.eye(4)
    density = lambda rows, i: stats.multivariate_normal(MEAN[i], c[np.ix_(i, i)]).logpdf(rows[i])
    exact = sum(
        density(row, np.arange(4)) - density(row, np.flatnonzero(~gone))
        for row, gone in zip(x, hidden, strict=True)
        if gone.any()
    )
    assert score == pytest.approx(exact / hidden.sum(), abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", missing.METHODS)
def test_a_table_is_trained_stopped_early_and_imputed(method: str, tmp_path: Path) -> None:
    """From a file to files, as a user would; the mean of a column, with error 1, is beaten.

    Pseudo-Gibbs draws from a distribution that is too wide, so its bound is larger.
    """
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 2))
    whole = pd.DataFrame(z @ W.T + 0.2 * rng.normal(size=(300, 4)), columns=list("abcd"))
    gaps = whole.mask(rng.random(whole.shape) < 0.2)
    for name, table in (("gaps", gaps), ("whole", whole)):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    config = families.preset(
        "tabular",
        **SMALL | {"steps": 3000, "hidden": (32,), "decoder_hidden": (32,), "batch_size": 50},
        **{"dataset": str(tmp_path / "gaps.csv"), "early_stopping": 3, "learning_rate": 3e-3},
    )
    config = families.changed(config, checkpoint_every=200, report_every=200)
    jaxvae.train(config, tmp_path / "run", progress=False)
    imputing.impute(
        *(tmp_path / "run", tmp_path / "gaps.csv"),
        method=method,
        truth=tmp_path / "whole.csv",
        num_samples=200,
    )
    found = json.loads((tmp_path / "run" / "imputed" / "gaps.json").read_text())
    assert found["squared"]["mean"] < (0.6 if method == "gibbs" else 0.5)
    assert 0.75 < found["covered"]["mean"] < 0.99


@pytest.mark.slow
def test_the_table_of_methods_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At a size that proves nothing; without steps EM and a mean are what they are."""
    file = tmp_path / "out.json"
    rows = ("mean or mode", "PCA by EM, q=10", "MIWAE, stopped by held-out cells")
    papers.main(
        papers.Options(
            tasks=("breast-cancer",), rows=rows, steps=2, samples=20, examples=60, json=file
        )
    )
    cells = json.loads(file.read_text())["cells"]["breast-cancer"]
    assert cells.keys() == set(rows)
    said = capsys.readouterr().out
    assert all(name in said and np.isfinite(cells[name][0]["error"]) for name in rows)
