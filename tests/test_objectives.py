"""Objectives of a batch: rates, penalties, adversaries against closed forms and the properties
they are named for.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvae import (
    bounds,
    datasets,
    distributions,
    divergences,
    evaluation,
    kl_costs,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    schedules,
    training,
)

KEY = jax.random.key(0)
KL = jnp.array([0.5, 0.1, 2.0, 0.0])
RATES = {
    "weighted": (kl_costs.weighted(lambda step: 3.0), 3 * 2.6),
    "free bits": (kl_costs.free_bits(0.3), 2.6),
    "free bits of each": (kl_costs.free_bits(0.3, groups=4), 0.5 + 0.3 + 2.0 + 0.3),
    "free bits of pairs": (kl_costs.free_bits(0.7, groups=2), 0.7 + 2.0),
    "below its capacity": (kl_costs.capacity(10.0, lambda step: 4.0), 10 * 1.4),
    "above its capacity": (kl_costs.capacity(10.0, lambda step: 1.0), 10 * 1.6),
    "half-way up": (kl_costs.capacity(1.0, schedules.linear_warmup(10, 8.0)), 2.6 - 4.0),
    "blocks": (
        kl_costs.blocks(
            (3, 1), (kl_costs.weighted(lambda step: 1.0), kl_costs.capacity(2.0, lambda step: 1.0))
        ),
        2.6 + 2,
    ),
}


@pytest.mark.parametrize("name", RATES)
def test_rates(name: str) -> None:
    rate, expected = RATES[name]
    assert float(rate(KL, 5)) == pytest.approx(abs(expected), rel=1e-6)


def test_rates_say_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match="4 latents do not divide into 3 groups"):
        kl_costs.free_bits(0.1, 3)(KL, 0)
    with pytest.raises(ValueError, match="blocks of 2, 1 latents do not fit KL terms of 4"):
        kl_costs.blocks((2, 1), (kl_costs.weighted(lambda step: 1.0),) * 2)(KL, 0)


def small(
    posterior: str = "normal", latent: int = 3, prior: priors.Prior | None = None
) -> models.VAE:
    family = posteriors.POSTERIORS[posterior](latent)
    pair = networks.mlp((8,), family.size), networks.mlp((8,), (6,))
    return models.vae(
        *pair, family, likelihoods.normal(0.5), prior or priors.standard_normal(latent)
    )


DATA = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
CRITIC = networks.mlp((16,), 1)
PENALTIES = {
    **{name: models.divergence(2.0, member) for name, member in divergences.DIVERGENCES.items()},
    "total_correlation": models.total_correlation(3.0, len(DATA)),
    "stratified": models.total_correlation(3.0, len(DATA), divergences.stratified_decomposition),
    "dip_i": models.dip_i(1.0, 10.0),
    "dip_ii": models.dip_ii(1.0, 1.0),
    "code_penalty": models.code_penalty(0.5),
}
ADVERSARIES = {
    "density_ratio": models.density_ratio(CRITIC, 2.0),
    "adversarial": models.adversarial(CRITIC, 2.0),
}
OFTEN = ("mmd_imq", "adversarial")  # the others are marked slow


def algorithm(name: str) -> training.Algorithm:
    vae, loss = small(), training.batch_mean(models.negative_elbo(small()))
    if name in ADVERSARIES:
        losses, init = (
            models.adversarial_losses(loss, vae, ADVERSARIES[name]),
            models.adversarial_init(vae, ADVERSARIES[name]),
        )
        return training.players(
            init, {player: training.Player(own, optax.sgd(0.05)) for player, own in losses.items()}
        )
    return training.gradient_descent(
        vae.init, models.penalized(loss, vae, {name: PENALTIES[name]}), optax.sgd(1e-2)
    )


@pytest.mark.parametrize(
    "name",
    [
        n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow)
        for n in (*PENALTIES, *ADVERSARIES)
    ],
)
def test_penalties_are_of_the_global_batch(name: str) -> None:
    """Eleven examples on one device, and on four, where the last part is padded: the same run."""
    found = {}
    for devices in (1, 4):
        reports: list[dict] = []
        training.fit(
            algorithm(name),
            DATA,
            num_steps=3,
            batch_size=11,
            report=lambda step, report, reports=reports: reports.append(report),
            report_every=1,
            devices=jax.local_devices()[:devices],
        )
        found[devices] = [report["loss"] for report in reports]
    np.testing.assert_allclose(found[1], found[4], rtol=1e-4)


def test_the_adversary_is_jensen_shannon_at_its_optimum() -> None:
    """Where codes and prior agree, the critic's least loss is 2 log 2, at a critic of zero."""
    z = jax.random.normal(KEY, (500, 2))
    codes = models.Codes(KEY, None, z, z[::-1], jnp.full(500, 1 / 500))
    adversary = models.adversarial(networks.mlp((), 1), 3.0)
    still = jax.tree.map(jnp.zeros_like, adversary.init(KEY, None, z[0]))
    assert float(adversary.loss(still, codes)) == pytest.approx(2 * np.log(2), rel=1e-5)
    assert float(adversary.penalty(still, codes)) == pytest.approx(3 * np.log(2), rel=1e-5)
    slope = jax.grad(adversary.loss)(still, codes)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope)) < 1e-5


def test_a_critic_may_see_the_examples_too() -> None:
    """A user's adversarial variational Bayes (Mescheder et al. 2017, arXiv:1701.04722).

    At its optimum T(x, z) = log q(z|x) - log p(z), whose mean over q is KL(q(z|x) || p(z)).
    """
    vae, count = small(), 2000
    params = vae.init(KEY, DATA[0])
    features = lambda x, z: jnp.concatenate([x, z, z**2, jnp.outer(x, z).ravel(), jnp.ones(1)])
    ratio = lambda x, z: vae.encode(params, x).log_prob(z) - vae.prior(params).log_prob(z)
    score = lambda w, x, z: ratio(x, z) + features(x, z) @ w  # at its optimum where w = 0

    def penalty(w: jax.Array, codes: models.Codes) -> jax.Array:
        return jnp.sum(codes.weight * jax.vmap(score, (None, 0, 0))(w, codes.x, codes.z))

    def loss(w: jax.Array, codes: models.Codes) -> jax.Array:
        of = lambda z: jax.vmap(score, (None, 0, 0))(w, codes.x, z)
        costs = jax.nn.softplus(-of(codes.z)) + jax.nn.softplus(of(codes.other))
        return jnp.sum(codes.weight * costs)

    init = lambda key, x, z: jnp.zeros_like(features(x, z))
    adversary = models.Adversary(init, penalty, loss)
    w = models.adversarial_init(vae, adversary)(KEY, DATA[0])["critic"]
    x, keys = jnp.asarray(DATA[np.arange(count) % len(DATA)]), jax.random.split(KEY, count)

    @jax.jit
    def verdict(w: jax.Array) -> tuple:
        codes = models.codes(vae, params, keys, x, jnp.full(count, 1 / count), None)
        kl = jax.vmap(lambda x: divergences.kl(vae.encode(params, x), vae.prior(params)))(x)
        each = jax.vmap(score, (None, 0, 0))(w, codes.x, codes.z)
        return penalty(w, codes), kl.mean(), each.std(), jax.grad(loss)(w, codes)

    estimate, kl, deviation, slope = verdict(w)
    assert float(abs(estimate - kl)) < 4 * float(deviation) / np.sqrt(count)
    assert float(jnp.abs(slope).max()) < 0.1


@pytest.mark.parametrize("sees_x", [False, True])
@pytest.mark.parametrize("mapping", ["pmap", "shard_map"])
def test_only_what_a_penalty_looks_at_is_gathered(mapping: str, sees_x: bool) -> None:
    """z, draws of the prior and weights, and the examples if the penalty asks for them."""
    vae = small()
    shapes = jax.eval_shape(vae.init, KEY, DATA[0])
    penalty = lambda codes: PENALTIES["mmd_imq"](codes) + (codes.x.sum() if sees_x else 0.0)
    loss = models.penalized(training.batch_mean(models.negative_elbo(vae)), vae, {"own": penalty})

    def step(params: dict, seeds: jax.Array, x: jax.Array, weight: jax.Array) -> jax.Array:
        keys = jax.vmap(jax.random.key)(seeds)
        return loss(params, keys, x, weight, 0, "devices")[0]

    batch = np.arange(8, dtype=np.uint32), DATA[:8], np.full(8, 1 / 8, np.float32)
    if mapping == "pmap":
        cut = [a.reshape(2, 4, *a.shape[1:]) for a in batch]
        mapped = jax.pmap(step, "devices", in_axes=(None, 0, 0, 0), devices=jax.devices()[:2])
    else:
        over, mesh = jax.P("devices"), jax.sharding.Mesh(jax.devices()[:2], "devices")
        specs = jax.P(), over, over, over
        cut, whole = batch, jax.P()
        mapped = jax.jit(
            jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
        )
    text = mapped.lower(shapes, *cut).as_text()
    assert text.count('"stablehlo.all_gather"') == 3 + sees_x


def test_players_move_nothing_but_their_own() -> None:
    vae, adversary = small(), ADVERSARIES["density_ratio"]
    losses = models.adversarial_losses(
        training.batch_mean(models.negative_elbo(vae)), vae, adversary
    )
    params = models.adversarial_init(vae, adversary)(KEY, DATA[0])
    keys, weight = jax.random.split(KEY, 8), jnp.full(8, 1 / 8)
    of_critic = lambda params: losses["critic"](params, keys, DATA[:8], weight, 0, None)[0]
    slope = jax.grad(of_critic)(params)
    assert float(optax.tree.norm(slope["model"])) == 0
    assert float(optax.tree.norm(slope["critic"])) > 0


@pytest.mark.slow
def test_a_vampprior_of_one_pseudo_input_is_its_posterior() -> None:
    """And each component of several is."""
    noise = lambda count: lambda key, x: jax.random.normal(key, (count, *x.shape))
    one, four = models.with_vampprior(small(), noise(1)), models.with_vampprior(small(), noise(4))
    params, z = one.init(KEY, DATA[0]), jnp.array([0.3, -1.0, 2.0])
    q = one.encode(params, params["prior"]["pseudo_inputs"][0])
    assert float(one.prior(params).log_prob(z)) == pytest.approx(float(q.log_prob(z)), rel=1e-5)
    params = four.init(KEY, DATA[0])
    each = [float(four.encode(params, u).log_prob(z)) for u in params["prior"]["pseudo_inputs"]]
    assert float(four.prior(params).log_prob(z)) == pytest.approx(
        float(np.log(np.mean(np.exp(each)))), rel=1e-5
    )


def test_penalties_of_regularized_autoencoders() -> None:
    vae = small("point")
    params = vae.init(KEY, DATA[0])
    z = vae.encode(params, DATA[0]).loc
    decoded = lambda z: np.asarray(vae.decode(params, z).mean, np.float64)
    step = 1e-2 * np.eye(3, dtype=np.float32)
    slopes = [(decoded(z + e) - decoded(z - e)) / 2e-2 for e in step]
    value, _ = models.decoder_gradient(vae)(params, KEY, DATA[0], 0)
    assert float(value) == pytest.approx(float(np.sum(np.square(slopes))), rel=1e-3)
    value, _ = models.decoder_decay()(params, KEY, DATA[0], 0)
    squares = sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(params["decoder"]))
    assert float(value) == pytest.approx(squares, rel=1e-5)
    codes = models.Codes(
        KEY, None, jnp.array([[1.0, 2.0], [9.0, 9.0], [3.0, 0.0]]), None, jnp.array([0.5, 0.0, 0.5])
    )
    assert float(models.code_penalty(4.0)(codes)) == pytest.approx(4 * (5 + 9) / 2 / 2)
    both = models.weighted_sum(
        [(2.0, models.decoder_decay()), (3.0, models.negative_reconstruction(vae))]
    )
    rest = models.negative_reconstruction(vae)(params, KEY, DATA[0], 0)[0]
    assert float(both(params, KEY, DATA[0], 0)[0]) == pytest.approx(
        2 * squares + 3 * float(rest), rel=1e-5
    )


def test_a_point_has_no_elbo() -> None:
    vae = small("point")
    judged = evaluation.evaluate_elbo(vae, vae.init(KEY, DATA[0]), KEY, DATA)
    assert judged.elbo is None and judged.kl is None and np.isfinite(judged.reconstruction)


# Conditional models


def conditional() -> models.CVAE:
    family = posteriors.normal(2)
    nets = networks.mlp((8,), family.size), networks.mlp((8,), (6,))
    return models.cvae(*nets, family, likelihoods.normal(0.5), networks.mlp((8,), family.size))


PAIRS = models.Conditioned(DATA, np.eye(3, dtype=np.float32)[np.arange(len(DATA)) % 3])
EXAMPLE = models.Conditioned(DATA[0], PAIRS.y[0])


def test_a_cvae_at_a_condition_is_a_vae() -> None:
    """Every objective of the pair is that of the VAE; and the prior is of the condition."""
    model = conditional()
    params = model.init(KEY, EXAMPLE)
    at = models.condition_on(model, EXAMPLE.y)
    for make in (models.negative_elbo, lambda vae: models.negative(bounds.iwae, vae, 3)):
        whole, _ = make(model)(params, KEY, EXAMPLE, 0)
        assert float(whole) == pytest.approx(float(make(at)(params, KEY, DATA[0], 0)[0]), rel=1e-6)
    means = [np.asarray(model.prior(params, y).loc) for y in np.eye(3, dtype=np.float32)]
    assert np.abs(means[0] - means[1]).max() > 1e-4


def test_the_gaussian_stochastic_network_pays_no_kl() -> None:
    model = models.gaussian_stochastic(conditional())
    params = model.init(KEY, EXAMPLE)
    judged = evaluation.evaluate_elbo(model, params, KEY, PAIRS)
    assert judged.kl == pytest.approx(0.0, abs=1e-6)
    assert judged.elbo == pytest.approx(judged.reconstruction)


def test_a_conditional_network_of_another_shape_is_named() -> None:
    family, likelihood = posteriors.normal(2), likelihoods.normal(0.5)
    mlp = lambda size: networks.mlp((), size)
    for sizes, message in (
        ((5, 6, 4), r"encoder returned shape \(5,\); the posterior needs \(4,\)"),
        ((4, 7, 4), r"decoder returned shape \(7,\).*must be \(6,\)"),
        ((4, 6, 3), r"prior network returned shape \(3,\); the posterior needs \(4,\)"),
    ):
        encoder, decoder, prior = map(mlp, sizes)
        model = models.cvae(encoder, decoder, family, likelihood, prior)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.init, KEY, EXAMPLE)


def test_denoising_encodes_the_corrupted_and_explains_the_clean() -> None:
    vae = small()
    params, noisy = vae.init(KEY, DATA[0]), DATA[0] + 1
    here, x = models.Denoising(vae).at(models.Corrupted(DATA[0], noisy))
    np.testing.assert_array_equal(x, DATA[0])
    np.testing.assert_array_equal(here.encode(params, x).loc, vae.encode(params, noisy).loc)


def test_a_denoising_model_answers_for_clean_examples_as_its_vae_does() -> None:
    vae = small()
    params, ours, its = vae.init(KEY, DATA[0]), *map(models.answers, (models.Denoising(vae), vae))
    compiled = lambda asked: jax.jit(lambda params, x: asked.log_weights(params, KEY, x, 3))
    np.testing.assert_array_equal(compiled(ours)(params, DATA[0]), compiled(its)(params, DATA[0]))
    np.testing.assert_array_equal(ours.parts(models.Corrupted(DATA[0], DATA[1]))[0], DATA[0])
    np.testing.assert_array_equal(
        ours.decode(params, jnp.ones(3)).mean, its.decode(params, jnp.ones(3)).mean
    )
    with pytest.raises(ValueError, match=r"answers takes a VAE.*it was given a str"):
        models.answers("a model")


# What compositions of distributions are


def test_joint_and_hierarchy() -> None:
    normal, classes = (
        distributions.Normal(jnp.array([0.5, -1.0]), jnp.array([1.0, 2.0])),
        jnp.array([[0.1, 1.0, -2.0]]),
    )
    joint = distributions.Joint((normal, distributions.OneHotCategorical(classes)))
    x = jnp.array([0.2, 0.3, 0.0, 1.0, 0.0])
    expected = float(normal.log_prob(x[:2])) + float(jax.nn.log_softmax(classes[0])[1])
    assert float(joint.log_prob(x)) == pytest.approx(expected, rel=1e-6)
    draws = joint.sample(KEY, (20_000,))
    np.testing.assert_allclose(draws.mean(0), joint.mean, atol=0.06)
    assert set(np.unique(draws[:, 2:])) == {0.0, 1.0}
    prior = priors.joint(2, 3).make({})
    terms = divergences.kl_per_latent(joint, prior)
    assert terms.shape == (3,)
    assert float(terms.sum()) == pytest.approx(float(divergences.kl(joint, prior)), rel=1e-6)
    assert float(terms[2]) == pytest.approx(
        float(
            np.log(3)
            + np.sum(
                np.asarray(jax.nn.softmax(classes[0])) * np.asarray(jax.nn.log_softmax(classes[0]))
            )
        ),
        rel=1e-5,
    )


def test_a_hierarchical_mixture_is_what_its_equation_says() -> None:
    """log p(w) + log 1/K sum_k N(z; m_k(w), s_k(w)^2), and the responsibilities of that sum."""
    prior = priors.hierarchical_mixture(2, components=3, upper_latent=1, prior_hidden=4)
    p = prior.make(prior.init(KEY))
    x = jnp.array([0.4, 1.0, -0.5])
    conditional, w, z = p.given(x)
    each = np.array(
        [
            float(
                distributions.Normal(
                    conditional.components.loc[k], conditional.components.scale[k]
                ).log_prob(z)
            )
            for k in range(3)
        ]
    )
    expected = float(distributions.Normal(jnp.zeros(1), jnp.ones(1)).log_prob(w)) + np.log(
        np.exp(each).mean()
    )
    assert float(p.log_prob(x)) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(
        conditional.responsibilities(z), np.exp(each) / np.exp(each).sum(), rtol=1e-4
    )
    assert p.sample(KEY, (5,)).shape == (5, 3)


@pytest.mark.slow
def test_temperature_scales_deviations() -> None:
    normal = distributions.Normal(jnp.array([1.0]), jnp.array([2.0]))
    mixture = distributions.Mixture(
        jnp.zeros(2), distributions.Normal(jnp.array([[-9.0], [9.0]]), jnp.ones((2, 1)))
    )
    cold = distributions.tempered(mixture, 0.1).sample(KEY, (4000,))
    assert float(distributions.tempered(normal, 0.5).scale[0]) == 1.0
    assert float(jnp.abs(jnp.abs(cold) - 9.0).std()) == pytest.approx(0.06, abs=0.01)
    hierarchy = priors.hierarchical_mixture(2, 2, 1).make(
        priors.hierarchical_mixture(2, 2, 1).init(KEY)
    )
    assert float(distributions.tempered(hierarchy, 1e-3).sample(KEY, (100,))[:, 0].std()) < 2e-3
    with pytest.raises(ValueError, match="a Bernoulli has no scale"):
        distributions.tempered(distributions.Bernoulli(jnp.zeros(2)), 0.5)
    with pytest.raises(ValueError, match="must be above 0"):
        distributions.tempered(normal, 0.0)


CLEAN = jnp.full((400, 50), 0.7)


@pytest.mark.parametrize("name", datasets.CORRUPTIONS)
def test_corruptions(name: str) -> None:
    noisy = np.asarray(datasets.CORRUPTIONS[name](KEY, CLEAN, 0.3))
    changed = (noisy != np.asarray(CLEAN)).mean()
    if name == "gaussian":
        assert noisy.std() == pytest.approx(0.3, rel=0.02) and noisy.mean() == pytest.approx(
            0.7, abs=0.01
        )
    else:
        assert changed == pytest.approx(0.3, abs=0.015)
        assert set(np.unique(noisy)) <= (
            {0.0, np.float32(0.7)} if name == "masking" else {0.0, 1.0, np.float32(0.7)}
        )
