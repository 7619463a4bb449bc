"""Priors over codes: exact laws of grids, flows and diffusion of latents, two stages together."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.special import logsumexp

import jaxvae
from jaxvae import code_priors, families, flows, models, networks
from jaxvae.distributions import Bernoulli, Normal
from jaxvae.families import Data, FirstStage
from jaxvae.families.contract import Built
from jaxvae.models import Model
from jaxvae.networks import Autoregressive, Grid, pixelcnn, transformer
from jaxvae.runs import commands

KEY, SLOW = jax.random.key(0), pytest.mark.slow
GRIDS = Grid(1, 2, 3), Grid(2, 2, 2)  # 144 pairs of grids
LABEL = jnp.array([1.0, 0.0])
NETWORKS: dict[str, Autoregressive] = {
    "pixelcnn": networks.gated_pixelcnn(GRIDS, 4, 2, 1, context_size=2),
    "transformer": networks.causal_transformer(GRIDS, 8, 2, 2, context_size=2),
}


def random_params(network: Any, *more: Any, scale: float = 0.6) -> Any:
    """Parameters that are far from their start, so that every weight matters."""
    generator = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(scale * generator.normal(size=a.shape), jnp.float32)
    return jax.tree.map(draw, jax.eval_shape(network.init, KEY, *more))


def all_codes(grids: tuple[Grid, ...]) -> tuple[jax.Array, ...]:
    """Every value of the grids, [N, H, W] each."""
    choices = [range(grid.codes) for grid in grids for _ in range(grid.size)]
    flat = np.array(list(itertools.product(*choices)), np.int32)
    ends = np.cumsum([grid.size for grid in grids])[:-1]
    parts = np.split(flat, ends, 1)
    return tuple(
        jnp.asarray(part.reshape(-1, grid.height, grid.width))
        for part, grid in zip(parts, grids, strict=True)
    )


def law_of(name: str, context: jax.Array = LABEL, scale: float = 1.0) -> code_priors.Grids:
    network = NETWORKS[name]
    return code_priors.Grids(random_params(network), context, scale, network)


# (law, codes [N, ...]) -> log p of each level of every example, [N, levels]
log_probs = jax.jit(jax.vmap(lambda law, codes: law.log_probs(codes), (None, 0)))


@pytest.mark.parametrize("name", NETWORKS)
def test_probabilities_of_all_grids_sum_to_one(name: str) -> None:
    """Of both levels together, and of the lower level for each value of the upper one."""
    codes = all_codes(GRIDS)
    each = log_probs(law_of(name), codes)
    assert logsumexp(each.sum(1)) == pytest.approx(0, abs=3e-6)
    by_top = each.reshape(9, 16, 2)
    np.testing.assert_allclose(logsumexp(by_top[..., 1], 1), 0, atol=3e-6)
    assert np.ptp(by_top[..., 1], 0).min() > 1e-3  # the lower level depends on the upper one
    other = log_probs(law_of(name, LABEL[::-1]), codes)
    assert np.abs(each - other).min(0).max() > 1e-3  # and on the label


def unshifted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Plants a mask that is off by one: a position sees its own code."""
    if name == "pixelcnn":
        shifted = pixelcnn.shifted
        faulty = lambda x, axis: shifted(x, axis) if axis == 0 else x
        monkeypatch.setattr(pixelcnn, "shifted", faulty)
    else:
        monkeypatch.setattr(transformer, "preceding", lambda begin, tokens: tokens)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_mask_off_by_one_is_seen_in_the_sum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unshifted(monkeypatch, name)
    faulty = jax.jit(jax.vmap(lambda codes: law_of(name).log_prob(codes)))
    assert abs(logsumexp(faulty(all_codes(GRIDS)))) > 0.03


def seen_by(name: str) -> np.ndarray:
    """[t, s]: the largest derivative of the logits at t in the embedding of the code at s.

    Each position of a 3x3 grid has a code of its own, so each row of an embedding is one position.
    """
    grid = Grid(3, 3, 9)
    network = (
        networks.gated_pixelcnn([grid], 4, 3, 1)
        if name == "pixelcnn"
        else networks.causal_transformer([grid], 8, 2, 2)
    )
    codes = (jnp.arange(9).reshape(3, 3),)
    logits = lambda params: network.logits(params, codes, None)[0].reshape(9, 9)
    jacobian = jax.jit(jax.jacrev(logits))(random_params(network))
    tables = jax.tree.leaves_with_path(jacobian)
    of_codes = [a for path, a in tables if "embedding" in jax.tree_util.keystr(path)]
    of_codes = [a[:, :, :9] for a in of_codes if a.shape[2] >= 9]  # rows of axes are fewer
    return np.max([np.abs(a).max((1, 3)) for a in of_codes], 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_depend_on_all_codes_before_them_and_on_no_other(name: str) -> None:
    """By gradients: there is neither a look ahead nor a blind spot."""
    np.testing.assert_array_equal(seen_by(name) > 0, np.tri(9, k=-1, dtype=bool))


def test_a_cache_of_keys_and_values_gives_the_logits_of_the_full_pass() -> None:
    network = NETWORKS["transformer"]
    params, codes = random_params(network), tuple(c[77] for c in all_codes(GRIDS))
    module = transformer.Transformer(GRIDS, 8, 2, 2, 0.0)
    tokens = [5, *np.asarray(codes[0]).ravel(), *(3 + np.asarray(codes[1]).ravel())][:-1]
    cache, rows = (jnp.zeros((2, 6, 2, 4)),) * 2, []
    step = jax.jit(lambda *x: module.apply({"params": params}, x, deterministic=True))
    for t, token in enumerate(tokens):
        every, cache = step(jnp.array([token]), LABEL, cache, t)
        rows.append(every[0])
    top, bottom = jax.jit(network.logits)(params, codes, LABEL)
    np.testing.assert_allclose(np.stack(rows[:2])[:, :3], top[0], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(
        np.stack(rows[2:])[:, 3:], bottom.reshape(4, 2), rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_frequencies_of_draws_agree_with_probabilities(name: str) -> None:
    """At a scale of the logits too."""
    from scipy.stats import chisquare

    count, radix = 20_000, np.array([48, 16, 8, 4, 2, 1])  # in the order of ``all_codes``
    draw = jax.jit(lambda law: law.sample(KEY, (count,)))
    for scale in (1.0, 2.0):
        law = law_of(name, scale=scale)
        each = log_probs(law, all_codes(GRIDS)).sum(1)
        flat = np.concatenate([np.asarray(c).reshape(count, -1) for c in draw(law)], 1)
        observed = np.bincount(flat @ radix, minlength=144)
        expected = count * np.exp(each - logsumexp(each))
        often = expected > 5
        assert often.sum() > 20
        seen, wanted = (np.float64([*a[often], a[~often].sum()]) for a in (observed, expected))
        wanted, seen = wanted[wanted > 0], seen[wanted > 0]
        assert chisquare(seen, wanted * count / wanted.sum()).pvalue > 1e-3


@pytest.mark.slow
def test_dropout_is_in_training_alone() -> None:
    codes = tuple(c[5] for c in all_codes(GRIDS))
    for make in (networks.gated_pixelcnn, networks.causal_transformer):
        network = make(GRIDS, 8, 2, dropout=0.5)
        params = random_params(network)
        plain, again, live = (network.logits(params, codes, None, k) for k in (None, None, KEY))
        np.testing.assert_array_equal(plain[1], again[1])
        assert np.abs(plain[1] - live[1]).max() > 1e-3


# Real latents


def test_a_continuous_flow_solves_its_equation() -> None:
    """dz/dt = A z has the solution expm(A) z, whose determinant is exp(tr A)."""
    from scipy.linalg import expm

    a = np.array([[0.3, -0.8], [0.5, 0.1]], np.float32)
    flow = flows.continuous(2, lambda key: a, lambda params, raw, z, t: params @ z, 20)
    z = jnp.array([0.4, -1.2])
    y, log_det = jax.jit(flow.forward)(a, jnp.zeros(0), z)
    np.testing.assert_allclose(y, expm(a) @ z, rtol=1e-5)
    assert log_det == pytest.approx(0.4, rel=1e-5)
    assert flow.inverse is not None
    back, log_det = jax.jit(flow.inverse)(a, jnp.zeros(0), y)
    np.testing.assert_allclose(back, z, rtol=1e-5)
    assert log_det == pytest.approx(-0.4, rel=1e-5)


DENSITIES: dict[str, dict[str, Any]] = {
    "coupling": {"prior_steps": 2, "prior_hidden": 4},
    "autoregressive": {"prior_steps": 2, "prior_hidden": 4},
    "flow_matching": {"prior_hidden": 4, "ode_steps": 10, "precision": "float32"},
}


@pytest.mark.parametrize("name", DENSITIES)
def test_a_density_of_latents_integrates_to_one(name: str) -> None:
    """In the units of the latents and at a label, by a sum over a lattice."""
    prior = code_priors.CODE_PRIORS[name](latent=2, context_size=2, **DENSITIES[name])
    law = prior.make(random_params(prior, scale=0.3), LABEL)
    center, spread = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    law = code_priors.Standardized(law, center, spread)
    axis = np.linspace(-16, 16, 321, dtype=np.float32)
    lattice = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    each = jax.jit(jax.vmap(law.log_prob))(center + spread * lattice)
    area = float(np.prod(spread)) * (axis[1] - axis[0]) ** 2
    assert float(jnp.exp(each).sum()) * area == pytest.approx(1, abs=5e-3)


def linear_diffusion(factor: float, betas: jax.Array) -> code_priors.Diffusion:
    """A chain over z [3] whose network is e(z_t, t) = factor sqrt(1 - a_t) z_t."""
    kept = jnp.cumprod(1 - betas)

    def noise_in(params: Any, z: jax.Array, t: jax.Array, context: Any) -> jax.Array:
        step = jnp.round(t * len(betas)).astype(int) - 1
        return factor * jnp.sqrt(1 - kept[step]) * z

    return code_priors.Diffusion(None, None, betas, 1.0, 3, noise_in)


Z = jnp.array([0.5, -1.0, 1.5])


def test_a_diffusion_of_standard_normal_latents_has_their_density() -> None:
    """e = sqrt(1 - a_t) z_t is the mean noise; the chain backwards is the chain forwards."""
    law = linear_diffusion(1.0, code_priors.noise_schedule(20))
    keys = jax.random.split(KEY, 20)
    each = jax.jit(jax.vmap(law.log_weight, (0, None)))(keys, Z)
    exact = Normal(jnp.zeros(3), jnp.ones(3)).log_prob(Z)
    np.testing.assert_allclose(each, exact, atol=2e-4)


def test_weights_of_a_diffusion_have_its_density_as_their_mean() -> None:
    """Of another linear network, v_(t-1) = m_t^2 v_t + b_t is the variance of z_(t-1), v_T = 1."""
    law, variance, count = linear_diffusion(0.8, jnp.full(5, 0.3)), 1.0, 20_000
    for _ in range(5):
        variance = (1 - 0.8 * 0.3) ** 2 / 0.7 * variance + 0.3
    draws = jax.jit(lambda key: law.sample(key, (count,)))(KEY)
    assert float(draws.var()) == pytest.approx(variance, rel=0.02)
    each = jax.jit(jax.vmap(law.log_weight, (0, None)))(jax.random.split(KEY, count), Z)
    exact = Normal(jnp.zeros(3), jnp.full(3, np.sqrt(variance))).log_prob(Z)
    weights = np.exp(np.asarray(each - exact, np.float64))
    assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(count)
    assert float(each.mean()) < float(exact) - 0.01


LATENT_PRIORS = [n for n, p in code_priors.CODE_PRIORS.items() if "grids" not in p.__annotations__]


@pytest.mark.slow
@pytest.mark.parametrize("name", LATENT_PRIORS)
def test_a_loss_of_latents_falls_where_the_density_rises(name: str) -> None:
    """After some steps of Adam, latents of another mean and scale are more probable."""
    chosen = families.prior.Prior(name, prior_hidden=8)
    prior = chosen(latent=2, context_size=0, precision="float32")
    z = 0.2 * jax.random.normal(KEY, (256, 2)) + jnp.array([1.0, -1.0])
    keys = jax.random.split(KEY, 256)

    def mean_loss(params: Any) -> jax.Array:
        return jax.vmap(lambda k, z: prior.loss(params, k, z, None)[0])(keys, z).mean()

    def mean_weight(params: Any) -> float:
        law = prior.make(params, None)
        each = jax.vmap(lambda k, z: code_priors.log_weight_of(law, k, z))(keys, z)
        return float(each.mean())

    start, optimizer = prior.init(KEY), optax.adam(1e-2)

    def descend(carry: Any, step: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(mean_loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    begin = start, optimizer.init(start)
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(descend, c, length=100))(begin)
    assert mean_weight(params) > mean_weight(start) + 0.5


# Both stages


def toy_stage() -> tuple[Built, Any]:
    """A model of two bits whose code [1, 2] is the bits, which it decodes with errors."""

    def codes(params: Any, x: jax.Array) -> jax.Array:
        return x.astype(jnp.int32).reshape(1, 2)

    def decode_codes(params: Any, codes: jax.Array, condition: Any = None) -> Bernoulli:
        return Bernoulli((codes.reshape(2) - 0.5) * params["sharpness"])

    model = Model(
        lambda key, x: {"sharpness": jnp.array([3.0, 1.0])},
        codes=codes,
        decode_codes=decode_codes,
        num_codes=2,
    )
    preprocess = lambda key, raw: raw.astype(jnp.float32)
    return Built(model, None, preprocess), model.init(KEY, None)  # type: ignore[arg-type]


def toy_data(first: FirstStage | None) -> Data:
    return Data("toy", (2,), "uint8", 2, "dynamic", 4, num_classes=2, first_stage=first)


@pytest.mark.parametrize(
    ("member", "labels"), [("transformer", True), pytest.param("pixelcnn", False, marks=SLOW)]
)
def test_two_stages_bound_the_evidence_of_an_enumerable_model(member: str, labels: bool) -> None:
    """log p(x) = log sum_c p(c) p(x|c), and the gap is exactly -log p(c(x)|x)."""
    config = families.preset("prior", prior=member, prior_width=4, prior_layers=1, labels=labels)
    built = families.prior.build(config, toy_data(FirstStage(*toy_stage())))
    x = jnp.array(list(itertools.product([0, 1], [0, 1])), jnp.uint8)
    every = (x.astype(jnp.int32).reshape(4, 1, 2),)
    params = random_params(built.model, None) | {"first_stage": {"model": toy_stage()[1]}}

    def asked(key: jax.Array, raw: Any) -> tuple[Any, ...]:
        example = built.preprocess(key, raw)
        x, condition = built.model.parts(example)
        prior: Any = built.model.prior(params, condition)
        likelihood = lambda c: built.model.decode(params, c, condition).log_prob(x)
        joint = jax.vmap(lambda c: prior.log_prob(c) + likelihood(c))(every)
        of_x = jnp.argmax((every[0].reshape(4, 2) == x).all(-1))
        terms = built.model.terms(params, key, example, 1)
        weights = built.model.log_weights(params, key, example, 3)
        return logsumexp(joint), joint[of_x] - logsumexp(joint), terms, weights

    raw = models.Conditioned(x, jnp.array([0, 1, 1, 0])) if labels else x
    log_x, log_code, terms, weights = jax.jit(jax.vmap(asked))(jax.random.split(KEY, 4), raw)
    bound = terms["reconstruction"] - terms["kl"]
    np.testing.assert_allclose(log_x + log_code, bound, rtol=1e-5)
    assert (bound < log_x).all()
    np.testing.assert_allclose(terms["kl"], terms["kl_level_1"], rtol=1e-6)
    np.testing.assert_allclose(terms["kl_uniform_prior"], 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(weights, np.repeat(bound[:, None], 3, 1), rtol=1e-6)


def test_two_stages_of_a_linear_gaussian_model_reach_its_evidence(images: np.ndarray) -> None:
    """With the exact posterior and a flow that is the identity, every weight is log p(x)."""
    from conftest import Linear

    linear = Linear(images, 3)
    vae, params = linear.vae("multivariate_normal", linear.w)
    built = Built(models.answers(vae), None, lambda key, raw: raw)  # type: ignore[arg-type]
    data = Data("pixels", (64,), "float32", None, "none", 4, first_stage=FirstStage(built, params))
    prior = families.prior.build(families.preset("prior"), data)
    both = prior.model.init(KEY, images[0])
    both["prior"] = jax.tree.map(jnp.zeros_like, both["prior"])
    weigh = jax.jit(lambda x: prior.model.log_weights(both, KEY, x, 3))
    exact = linear.log_likelihood(images[:2], linear.w, linear.mean, linear.s2)
    for x, value in zip(images[:2], exact, strict=True):
        np.testing.assert_allclose(weigh(x), value, rtol=1e-4)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a flow of codes": ({"prior": "coupling"}, "of real latents, and the run has grids of codes"),
    "heads": ({"prior": "transformer", "heads": 3, "prior_width": 8}, "must divide width=8"),
    "no labels": ({"labels": True}, "needs a set with labels in memory"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_does_not_go_together_is_refused(row: str) -> None:
    named, words = REFUSED[row]
    data = toy_data(FirstStage(*toy_stage()))._replace(num_classes=0)
    with pytest.raises(ValueError, match=words):
        families.prior.build(families.preset("prior", **named), data)


FIRST: dict[str, str] = {
    "power-spherical": "latents; the run's are of a PowerSpherical",
    "spike-and-slab": "latents; the run's are of a SpikeAndSlab",
    "cvae": "is for a run without a condition",
}


@pytest.mark.parametrize("preset", FIRST)
def test_latents_that_no_prior_is_of_are_refused(preset: str) -> None:
    data = Data("toy", (4,), "uint8", 2, "dynamic", 4, num_classes=2)
    config = families.preset(preset, latent=3, hidden=(4,))
    built = families.FAMILIES[families.family_of(config)].build(config, data)
    params = jax.eval_shape(built.parameters, built.fresh_state(data))
    data = data._replace(first_stage=FirstStage(built, params))
    with pytest.raises(ValueError, match=FIRST[preset]):
        families.prior.build(families.preset("prior", labels=preset == "cvae"), data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "named", "settings"),
    [
        ("digits", {"latent": 2}, {"prior": "flow_matching", "ode_steps": 4, "labels": True}),
        ("autoencoder", {"latent": 2}, {"prior": "ddpm", "diffusion_steps": 5}),
        ("cvae", {"latent": 2}, {"prior": "autoregressive"}),
        (
            "vq-vae-2",
            {"top_hidden": (4,), "codebook_size": 5},
            {"prior": "transformer", "heads": 2},
        ),
        ("rq-vae", {"codebook_size": 5, "quantizers": 2}, {"prior": "pixelcnn", "labels": True}),
    ],
)
def test_a_prior_is_trained_opened_and_drawn_from_without_its_first_stage(
    preset: str, named: dict, settings: dict, tmp_path: Path, data_dir: Path
) -> None:
    """The first stage stays as it is, bit for bit, and its folder is not needed any more."""
    steps = {"steps": 2, "report_every": 1, "checkpoint_every": 1, "batch_size": 8}
    steps |= {"test_samples": 2, "test_examples": 5}
    place: dict[str, Any] = {"data_dir": str(data_dir), "progress": False}
    first, workdir = tmp_path / "first", tmp_path / "prior"
    begun = jaxvae.train(preset, first, hidden=(4,), **named, **steps, **place)
    small = {"prior_width": 8, "prior_layers": 1} if "vae-2" in preset or "rq" in preset else {}
    small = small or {"prior_hidden": 4}
    config = families.preset("prior", of=str(first), **settings, **small, **steps)
    config = families.changed(config, optimizer="adamw", ema_decay=0.9)
    trained = jaxvae.train(config, workdir, **place)
    same = lambda one, two: jax.tree.map(np.testing.assert_array_equal, one, two)
    same(trained.params["first_stage"]["model"], begun.params)
    jaxvae.train(preset, first, hidden=(4,), **named, **steps | {"steps": 3}, **place)
    with pytest.raises(ValueError, match="of the first stage, step was 2, is 3"):
        jaxvae.train(config, workdir, **place)
    shutil.rmtree(first)
    same(jaxvae.load(workdir).params, trained.params)
    commands.evaluate(workdir, num_examples=4)
    conditional = settings.get("labels") or preset == "cvae"
    commands.sample(workdir, num=3, label="7" if conditional else None)
    with np.load(workdir / "samples.npz") as file:
        assert np.isfinite(file["means"]).all() and len(file["x"]) == 3
    if not conditional:
        with pytest.raises(ValueError, match="--label is for a model that is conditioned"):
            commands.sample(workdir, num=3, label="7")
        return
    with pytest.raises(ValueError, match="--label 10: the classes are 0 to 9"):
        commands.sample(workdir, num=3, label="10")
