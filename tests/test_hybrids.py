"""VAEs with critics: which gradient reaches whom, the VAE at weight zero, what critics learn."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

from jaxvae import (
    evaluation,
    families,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    training,
)
from jaxvae.contracts import BatchLoss
from jaxvae.families import Data

KEY = jax.random.key(0)
SHAPE, CLASSES, LATENT = (4, 4, 1), 3, 2
DATA = np.random.default_rng(0).uniform(size=(12, *SHAPE)).astype(np.float32)
PAIRS = models.Conditioned(DATA, np.eye(CLASSES, dtype=np.float32)[np.arange(12) % CLASSES])
KEYS, WEIGHT = jax.random.split(KEY, 12), jnp.full(12, 1 / 12)
LIKELIHOOD = likelihoods.normal(0.5)
PRIOR = priors.standard_normal(LATENT)
CRITIC = models.Judge(networks.mlp_critic(1, (6, 4)))
CLASSIFIER = models.Judge(networks.mlp_critic(CLASSES, (6, 4)))
ALL = models.Weights(kl=0.7, pixels=0.3, similarity=1.3, critic=0.9)
NONE = models.Weights()


def vae_of(posterior: posteriors.Posterior, likelihood: Any = LIKELIHOOD) -> models.VAE:
    """A VAE of the data, with a pair of networks."""
    pair = networks.mlp((5,), posterior.size), networks.mlp((5,), SHAPE)
    return models.vae(*pair, posterior, likelihood, PRIOR)


@functools.cache
def conditional() -> models.CVAE:
    family = posteriors.normal(LATENT)
    pair = networks.mlp((5,), family.size), networks.mlp((5,), SHAPE)
    return models.cvae(*pair, family, LIKELIHOOD, PRIOR)


def matching(decay: float = 0.5, **weights: float) -> models.MeanMatching:
    judges, groups = {"critic": CRITIC, "classifier": CLASSIFIER}, {"critic": 1, "classifier": 3}
    both = {"critic": 2.0, "classifier": 3.0} | weights
    return models.MeanMatching(conditional(), judges, both, groups, decay)


@functools.cache
def of_vae_gan() -> tuple[Any, Any]:
    """A VAE, and the parameters of all players."""
    vae = vae_of(posteriors.normal(LATENT))
    return vae, jax.jit(models.hybrid_init(vae, {"critic": CRITIC}))(KEY, DATA[0])


@functools.cache
def of_cvae_gan() -> tuple[Any, Any]:
    """A CVAE, and the parameters of all players."""
    init = models.hybrid_init(conditional(), {"critic": CRITIC, "classifier": CLASSIFIER})
    return conditional(), jax.jit(init)(KEY, models.Conditioned(PAIRS.x[0], PAIRS.y[0]))


def batched(losses: dict[str, models.Loss]) -> dict[str, BatchLoss]:
    return {name: training.batch_mean(loss) for name, loss in losses.items()}


def vae_gan(weights: models.Weights = ALL) -> tuple[Any, dict[str, BatchLoss], Any]:
    """The parameters of all players, their losses, and the examples."""
    vae, params = of_vae_gan()
    return params, batched(models.hybrid_losses(vae, {"critic": CRITIC}, weights)), DATA


def cvae_gan(weights: models.Weights = ALL) -> tuple[Any, dict[str, BatchLoss], Any]:
    """The same of CVAE-GAN, without the matching of means."""
    cvae, params = of_cvae_gan()
    losses = models.hybrid_losses(cvae, {"critic": CRITIC, "classifier": CLASSIFIER}, weights)
    losses |= {"classifier": models.classification(cvae, CLASSIFIER)}
    return params, batched(losses), PAIRS


def means() -> tuple[Any, dict[str, BatchLoss], Any]:
    """The same of the matching of means alone."""
    params, matched = cvae_gan()[0], matching()
    centres = jax.tree.map(lambda a: a + 0.1, matched.init(params, DATA[0]))
    losses = {"decoder": matched.loss, "centres": matched.centring}
    return params | {"centres": centres}, losses, PAIRS


@functools.cache
def of_avb(contrast: str) -> tuple[models.AdversarialBayes, Any]:
    """A model with noise in its encoder, and the parameters of both players."""
    noise = networks.mlp((3,), LATENT, jax.nn.elu)
    vae = vae_of(models.noise_basis(LATENT, noise, 2, 3))
    critic = models.of_pair(networks.mlp((6,), 1))
    model = models.AdversarialBayes(vae, critic, models.CONTRASTS[contrast])
    return model, jax.jit(model.init)(KEY, DATA[0])


def avb(contrast: str = "adaptive") -> tuple[Any, dict[str, BatchLoss], Any]:
    model, params = of_avb(contrast)
    return params, batched(model.losses()), DATA


GAMES = {
    "vae-gan": vae_gan,
    "cvae-gan": cvae_gan,
    "means of cvae-gan": means,
    "avb": avb,
    "avb beside the prior": functools.partial(avb, "prior"),
}


def gradients(losses: dict[str, BatchLoss], params: Any, examples: Any) -> dict[str, Any]:
    """The gradient of each loss in the parameters of all players."""

    def of(params: Any, loss: BatchLoss) -> Any:
        return loss(params, KEYS, examples, WEIGHT, jnp.int32(0), None)[0]

    return jax.jit(lambda params: {n: jax.grad(of)(params, loss) for n, loss in losses.items()})(
        params
    )


def equal(one: Any, other: Any, rtol: float = 1e-5) -> None:
    close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-6)
    jax.tree.map(close, one, other)


@pytest.mark.parametrize(
    "game", [pytest.param(g, marks=pytest.mark.slow) if "beside" in g else g for g in GAMES]
)
def test_the_gradient_of_each_loss_reaches_its_player_alone(game: str) -> None:
    """Every leaf of it, and no leaf of another player."""
    params, losses, examples = GAMES[game]()
    for player, slope in gradients(losses, params, examples).items():
        for path, leaf in jax.tree.leaves_with_path(slope):
            reached = bool(np.any(np.asarray(leaf) != 0))
            assert reached == (path[0].key == player), (player, jax.tree_util.keystr(path))


def test_the_encoder_sees_no_verdict_and_the_critic_no_distance() -> None:
    """Larsen et al. 2016, alg. 1: what each player's loss is made of."""
    params, losses, _ = vae_gan()
    other = vae_gan(ALL._replace(critic=5.0))[1], vae_gan(ALL._replace(similarity=5.0))[1]
    both = losses | {"other encoder": other[0]["encoder"], "other critic": other[1]["critic"]}
    slopes = gradients(both, params, DATA)
    equal(slopes["encoder"], slopes["other encoder"], 0)
    equal(slopes["critic"], slopes["other critic"], 0)


@pytest.mark.parametrize("game", ["vae-gan", "cvae-gan"])
def test_without_its_critics_a_hybrid_is_its_vae(game: str) -> None:
    """The two players' gradients are the two parts of the gradient of the ELBO."""
    params, losses, examples = GAMES[game](NONE)
    model = (of_cvae_gan if game == "cvae-gan" else of_vae_gan)()[0]
    check_is_the_vae(model, losses, params, examples)


def check_is_the_vae(model: Any, losses: dict[str, BatchLoss], params: Any, examples: Any) -> None:
    plain = training.batch_mean(models.negative_elbo(model))
    elbo = lambda params, *rest: plain(models.joined(params), *rest)
    players = {name: losses[name] for name in ("encoder", "decoder")}
    slopes = gradients(players | {"elbo": elbo}, params, examples)
    for player in players:
        equal(slopes[player][player], slopes["elbo"][player], 1e-4)


def test_a_layer_that_is_the_image_makes_the_vae_with_unit_noise() -> None:
    """L = -log N(x; x', I) but for a constant, as published for any layer."""
    see = lambda params, x: networks.Judgement((x.reshape(-1),), jnp.zeros(1))
    judges = {"critic": models.Judge(networks.Network(lambda key, x: {}, see))}
    vae = vae_of(posteriors.normal(LATENT), likelihoods.normal(1.0))
    losses = models.hybrid_losses(vae, judges, models.Weights(pixels=0.0, similarity=1.0))
    params = jax.jit(models.hybrid_init(vae, judges))(KEY, DATA[0])
    check_is_the_vae(vae, batched(losses), params, DATA)


# The dual loss of a critic between N(m, s^2) and N(0, 1): its least value, and KL.
DUALS = {(0.0, 1.0): (1.386294, 0.0), (1.0, 1.0): (1.163451, 0.5), (0.7, 0.5): (1.065228, 0.563147)}
DUALS[2.0, 0.3] = 0.300455, 2.748973


def test_a_critic_at_its_optimum_has_the_known_loss() -> None:
    """By quadrature: 2 log 2 between equal laws, less the further they are apart."""
    z, far = np.linspace(-9, 9, 2001), np.full(2001, 1e9)
    cost = jax.vmap(lambda real, fake: models.hybrids.discernment(real, fake)[0])
    for law, (least, _) in DUALS.items():
        q, p = stats.norm(*law), stats.norm(0, 1)
        ratio = q.logpdf(z) - p.logpdf(z)
        total = q.pdf(z) * cost(ratio, -far) + p.pdf(z) * cost(far, ratio)
        assert integrate.simpson(total, x=z) == pytest.approx(least, abs=1e-4)


def gaussians(contrast: str, hidden: tuple[int, ...]) -> tuple[models.AdversarialBayes, Any]:
    """AVB of one latent whose encoder gives the laws N(1, 1) at x = 0 and N(.7, .5^2) at x = 1."""
    basis = networks.Network(lambda key, e: {}, lambda params, e: e)
    vae = models.vae(
        networks.mlp((), 2),
        networks.mlp((), 1),
        models.noise_basis(1, basis, 1, 1),
        LIKELIHOOD,
        priors.standard_normal(1),
    )
    critic = models.of_pair(networks.mlp(hidden, 1))
    model = models.AdversarialBayes(vae, critic, models.CONTRASTS[contrast])
    params = jax.jit(model.init)(KEY, jnp.zeros(1))
    raw = np.log(0.5) + 2.0  # elu(raw - 2) + 1 is e^(raw - 2) below 1
    encoder = {"kernel": np.array([[-0.3, raw - 2.0]]), "bias": np.array([1.0, 2.0])}
    params["model"]["encoder"]["output"] = jax.tree.map(jnp.float32, encoder)
    return model, params


@pytest.mark.optimized
def test_the_critic_of_avb_learns_the_log_ratio_of_gaussians() -> None:
    """T(x, z) is log q(z|x) - log p(z), and its mean under q is KL(q(z|x) || p(z))."""
    model, params = gaussians("prior", (16,))
    losses, falling = batched(model.losses()), optax.cosine_decay_schedule(2e-2, 1000)
    players = {
        "model": training.Player(losses["model"], optax.sgd(0.0)),
        "critic": training.Player(losses["critic"], training.adam(falling, 0.5, 0.9)),
    }
    x = (np.arange(512) % 2).astype(np.float32)[:, None]
    state = training.fit(
        training.players(lambda key, x: params, players), x, num_steps=1000, batch_size=512
    )
    learned = training.trained_players(state)["critic"]
    for case, law in enumerate([(1.0, 1.0), (0.7, 0.5)]):
        q = stats.norm(*law)
        z = q.ppf((np.arange(400) + 0.5) / 400)
        pairs = np.full((400, 1), case, np.float32), jnp.float32(z)[:, None]
        said = jax.vmap(functools.partial(model.critic.apply, learned))(pairs)
        optimum = q.logpdf(z) - stats.norm(0, 1).logpdf(z)
        assert np.mean((said - optimum) ** 2) < 0.02
        assert float(said.mean()) == pytest.approx(DUALS[law][1], abs=0.05)


def test_beside_a_gaussian_contrast_a_gaussian_posterior_leaves_nothing_to_learn() -> None:
    """With a critic of zero, or of weight 0, KL is already exact, and AVB is its VAE."""
    model, params = gaussians("adaptive", ())
    silent = params | {"critic": jax.tree.map(jnp.zeros_like, params["critic"])}
    loss = model.losses(critic_weight=0.0)["model"]
    full, keys = model.losses()["model"], jax.random.split(KEY, 4000)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def values(key: jax.Array, x: jax.Array) -> tuple:
        step = jax.random.randint(key, (), 0, 10_000)  # each has its own draws for the moments
        value, terms = loss(params, key, x, step)
        return value, terms, full(silent, key, x, step)[0]

    for case, law in enumerate([(1.0, 1.0), (0.7, 0.5)]):
        value, terms, same = values(keys, jnp.full(1, float(case)))
        kl = np.asarray(terms["critic_estimate_of_kl"])
        assert abs(kl.mean() - DUALS[law][1]) < 4 * kl.std() / np.sqrt(len(kl)) + 0.01
        np.testing.assert_allclose(value + terms["reconstruction"], kl, atol=1e-4)
        np.testing.assert_allclose(same, value, rtol=1e-5, atol=1e-5)


def test_moments_of_a_basis_of_noise_are_those_of_its_draws() -> None:
    model, params = of_avb("adaptive")

    @jax.jit
    def both(params: Any) -> tuple[Any, Any]:
        q = model.vae.encode(params, DATA[0])
        return q.sample(KEY, (20_000,)), q.gaussian(jax.random.key(1), 20_000)

    draws, fitted = both(params["model"])
    draws = np.asarray(draws)
    error = np.asarray(fitted.scale) / np.sqrt(20_000)
    assert np.abs((fitted.loc - draws.mean(0)) / error).max() < 6
    np.testing.assert_allclose(fitted.scale, draws.std(0), rtol=0.03)


def test_bounds_of_avb_are_bounds_whatever_the_critic_says() -> None:
    """Beside log p(x) of a linear decoder; importance weights reach it."""
    model, params = gaussians("adaptive", ())
    params["model"]["decoder"]["output"] = {"kernel": jnp.array([[0.8]]), "bias": jnp.array([0.1])}
    wrong = jax.tree.map(lambda a: a - 3.0, params["critic"])
    asked, together = model.answers(), params["model"] | {"critic": wrong}
    x = np.array([[0.0], [1.0]], np.float32)
    exact = stats.norm(0.1, np.hypot(0.8, 0.5)).logpdf(x[:, 0])
    judged = evaluation.evaluate_elbo(asked, together, KEY, x, num_samples=2000)
    assert judged.elbo < exact.mean()
    assert judged.terms["critic_estimate_of_elbo"] > exact.mean()
    reached = evaluation.log_likelihoods(asked, together, KEY, x, num_samples=5000)
    np.testing.assert_allclose(reached, exact, atol=0.05)


def last_layers(params: Any, judge: models.Judge, images: Any) -> np.ndarray:
    layers = jax.vmap(lambda x: judge.network.apply(params, x).layers[-1])(images)
    return np.asarray(layers, np.float64)


def test_means_that_are_matched_are_those_of_the_batch() -> None:
    """1/2 |mean f(x) - mean f(x_p)|^2 by class and over all, with NumPy (arXiv:1703.10155)."""
    params, _, _ = means()
    loss = lambda params: matching(decay=0.0).loss(params, KEYS, PAIRS, WEIGHT, 0, None)
    value, terms = jax.jit(loss)(params)
    example = lambda key, x, y: models.hybrids.passes(
        conditional(), params, key, models.Conditioned(x, y)
    )
    images = jax.jit(jax.vmap(example))(KEYS, PAIRS.x, PAIRS.y).images
    total = 0.0
    for name, judge, rows in (
        ("critic", CRITIC, np.ones((1, 12))),
        ("classifier", CLASSIFIER, PAIRS.y.T),
    ):
        real, _, decoded = (last_layers(params[name], judge, each) for each in images)
        share = rows / rows.sum(1, keepdims=True)
        expected = 0.5 * ((share @ real - share @ decoded) ** 2).sum()
        assert float(terms[f"{name}_means"]) == pytest.approx(expected, rel=1e-4)
        total += {"critic": 2.0, "classifier": 3.0}[name] * expected
    assert float(value) == pytest.approx(total, rel=1e-4)


def test_means_that_are_kept_are_moving_averages() -> None:
    """Of a fixed critic they are (1 - d^t) of the mean; those of a class that is not there stay."""
    params, losses, _ = means()
    members = {
        name: training.Player(losses["centres"], optax.sgd(0.5 if name == "centres" else 0.0))
        for name in params
    }
    algorithm = training.players(lambda key, example: params, members)
    two = np.flatnonzero(PAIRS.y.argmax(1) < 2)
    batch = training.Batch(
        jax.tree.map(lambda a: jnp.asarray(a[two]), PAIRS),
        jnp.arange(8),
        jnp.full(8, 1 / 8),
    )
    step, state = jax.jit(algorithm.step), algorithm.init(KEY, PAIRS)
    for _ in range(3):
        state, _ = step(state, batch, None)
    kept = state.params["centres"]["classifier"].real
    features = last_layers(params["classifier"], CLASSIFIER, PAIRS.x[two])
    for c in range(CLASSES):
        of_class = features[PAIRS.y[two].argmax(1) == c]
        expected = 0.1 if c == 2 else 0.1 / 8 + (1 - 1 / 8) * of_class.mean(0)
        np.testing.assert_allclose(kept[c], np.broadcast_to(expected, kept[c].shape), rtol=1e-4)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "layer": ("vae-gan", {"similarity_layer": 3}, "hidden layer of the critic, which has 2"),
    "accumulate": ("cvae-gan", {"accumulate": 2}, "need the whole batch"),
    "labels": ("cvae-gan", {}, "needs a set with labels in memory"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_does_not_go_together_is_refused(mistake: str) -> None:
    preset, named, words = REFUSED[mistake]
    config = families.preset(preset, **named)
    data = Data("mine", SHAPE, "float32", None, "none", 12)
    with pytest.raises(ValueError, match=words):
        families.FAMILIES[families.family_of(config)].build(config, data)
