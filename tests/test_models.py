"""VAEs: every combination of families, shape errors, users' own functions, NumPyro's
distributions, numerics.
"""

from __future__ import annotations

import doctest
import functools
import inspect
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import optax
import pytest
from flax import linen, nnx
from harness import equations, products
from scipy import stats

from jaxvae import (
    bounds,
    datasets,
    distributions,
    divergences,
    evaluation,
    expectations,
    kl_costs,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    training,
)

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SHAPE = (6, 5, 2)
NETWORKS = {
    "mlp": lambda size, output: (networks.mlp((8,), size), networks.mlp((8,), output)),
    "convolutional": lambda size, output: (
        networks.convolutional_encoder((4, 6), size),
        networks.convolutional_decoder((6, 4), output),
    ),
    "residual": lambda size, output: (
        networks.residual_encoder((4,), size, blocks=1),
        networks.residual_decoder((4,), output, blocks=1),
    ),
}


def likelihood_of(name: str, levels: int) -> likelihoods.Likelihood:
    """A member of the table; levels go to those that are of pixel levels."""
    make = likelihoods.LIKELIHOODS[name]
    return make(levels) if "levels" in inspect.signature(make).parameters else make()


def build(
    network: str = "mlp", posterior: str = "normal", likelihood: str = "bernoulli"
) -> models.VAE:
    family, head = posteriors.POSTERIORS[posterior](3), likelihood_of(likelihood, 4)
    encoder, decoder = NETWORKS[network](family.size, head.outputs(SHAPE))
    return models.vae(encoder, decoder, family, head, priors.standard_normal(3))


def example(likelihood: str) -> jax.Array:
    """Pixels with four levels, treated as the likelihood takes them."""
    pixels = jax.random.randint(jax.random.key(7), SHAPE, 0, 4).astype(jnp.uint8)
    support = likelihood_of(likelihood, 4).support
    return datasets.preprocessing("dynamic" if "dynamic" in support else support[0], 4)(
        jax.random.key(8), pixels
    )


OBJECTIVES = {
    "closed KL": lambda vae: models.negative_elbo(vae, 2),
    "sampled KL": lambda vae: models.negative(bounds.elbo, vae, 2),
    "iwae": lambda vae: models.negative(bounds.iwae, vae, 3),
}


@pytest.mark.parametrize(
    ("network", "posterior", "likelihood", "objective"),
    [
        *(("mlp", "normal", likelihood, "closed KL") for likelihood in likelihoods.LIKELIHOODS),
        *(
            pytest.param(
                *(network, "multivariate_normal", "normal_decoded", each),
                marks=() if network == "mlp" or each == "iwae" else pytest.mark.slow,
            )
            for network in NETWORKS
            for each in OBJECTIVES
        ),
    ],
)
def test_every_family_has_a_finite_loss_and_gradient(
    network: str, posterior: str, likelihood: str, objective: str
) -> None:
    vae, x = build(network, posterior, likelihood), example(likelihood)
    params = vae.init(jax.random.key(0), x)
    loss = OBJECTIVES[objective](vae)
    step = jax.jit(
        jax.value_and_grad(lambda params: loss(params, jax.random.key(1), x, 0), has_aux=True)
    )
    (value, terms), grads = step(params)
    assert {"reconstruction", "kl"} <= terms.keys()
    for leaf in jax.tree.leaves((value, terms, grads)):
        assert np.isfinite(leaf).all()
    assert vae.decode(params, jnp.zeros(3)).mean.shape == SHAPE
    norms = {part: float(optax.tree.norm(grads[part])) for part in ("encoder", "decoder")}
    assert min(norms.values()) > 0


@pytest.mark.parametrize("network", ["convolutional", "residual"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 9, 3), (28, 20, 1)])
def test_decoders_give_back_any_image_size(network: str, shape: tuple[int, ...]) -> None:
    posterior = posteriors.normal(2)
    encoder, decoder = NETWORKS[network](posterior.size, shape)
    vae = models.vae(
        encoder, decoder, posterior, likelihoods.bernoulli(), priors.standard_normal(2)
    )
    params = jax.eval_shape(vae.init, jax.random.key(0), jnp.zeros(shape))
    mean = jax.eval_shape(lambda params, z: vae.decode(params, z).mean, params, jnp.zeros(2))
    assert mean.shape == shape


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (5, (8, 8, 1), r"encoder returned shape \(5,\); the posterior needs \(4,\)"),
        (4, (8, 7, 1), r"decoder returned shape \(8, 7, 1\).*must be \(8, 8, 1\)"),
        (4, (64,), r"decoder returned shape \(64,\)"),
    ],
)
def test_shapes_that_disagree_are_named(
    encoder: int, decoder: tuple[int, ...], message: str
) -> None:
    pair = networks.mlp((3,), encoder), networks.mlp((3,), decoder)
    vae = models.vae(
        *pair, posteriors.normal(2), likelihoods.bernoulli(), priors.standard_normal(2)
    )
    with pytest.raises(ValueError, match=message):
        vae.init(jax.random.key(0), jnp.zeros((8, 8, 1)))


def affine(width: int) -> networks.Network:
    """A user's own pair of functions."""
    init = lambda key, x: 0.1 * jax.random.normal(key, (width, x.size))
    return networks.Network(init, lambda params, x: params @ x.reshape(-1))


def nnx_affine(width: int, inputs: int) -> networks.Network:
    class Affine(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layers = nnx.List(
                [nnx.Linear(inputs, 7, rngs=rngs), nnx.Linear(7, width, rngs=rngs)]
            )

        def __call__(self, x: jax.Array) -> jax.Array:
            first, last = self.layers
            return last(nnx.relu(first(x.reshape(-1))))

    return networks.from_nnx(lambda rngs: Affine(rngs))


@pytest.mark.parametrize(
    "pair", [(affine(4), affine(6)), (nnx_affine(4, 6), nnx_affine(6, 2))], ids=["own", "nnx"]
)
def test_any_pair_of_functions_trains(pair: tuple[networks.Network, networks.Network]) -> None:
    vae = models.vae(
        *pair, posteriors.normal(2), likelihoods.normal(0.5), priors.standard_normal(2)
    )
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    algorithm = training.gradient_descent(
        vae.init, training.batch_mean(models.negative_elbo(vae)), optax.adam(1e-2)
    )
    losses: list[float] = []
    training.fit(
        algorithm,
        x,
        num_steps=60,
        batch_size=25,
        report=lambda _, r: losses.append(r["loss"]),
        report_every=10,
    )
    assert losses[-1] < losses[0]


def test_an_nnx_module_with_other_state_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nnx\.Param only.*BatchStat"):
        networks.from_nnx(lambda rngs: nnx.BatchNorm(3, rngs=rngs))


OF_ANY_KIND = {
    "mlp": (networks.mlp((8,), 4), (6,)),
    "convolutional": (networks.convolutional_encoder((4,), 4), (8, 8, 1)),
    "residual": (networks.residual_encoder((4,), 4, blocks=3, remat=True), (8, 8, 1)),
    "decoder": (networks.residual_decoder((4,), (8, 8, 1)), (3,)),
    "own": (affine(4), (6,)),
    "nnx": (nnx_affine(4, 6), (6,)),
}


@pytest.mark.parametrize("ambient", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("precision", "dtype", "matmul"),
    [
        ("float32", jnp.float32, jax.lax.Precision.HIGHEST),
        ("tensorfloat32", jnp.float32, jax.lax.Precision.HIGH),
        ("bfloat16", jnp.bfloat16, jax.lax.Precision.DEFAULT),
    ],
)
@pytest.mark.parametrize("kind", OF_ANY_KIND)
def test_a_precision_is_stated_for_every_product(
    kind: str, precision: str, dtype: Any, matmul: Any, ambient: str
) -> None:
    """Backward products too, whatever the ambient default; parameters, gradients and outputs are
    float32.
    """
    network, x = (
        networks.with_precision(OF_ANY_KIND[kind][0], precision),
        jnp.ones(OF_ANY_KIND[kind][1]),
    )
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    loss = lambda params, x: network.apply(params, x).sum()
    with jax.default_matmul_precision(ambient):
        found = products(jax.value_and_grad(loss, (0, 1)), params, x)
    assert len(found) >= 3
    for equation in found:
        assert set(equation.params["precision"]) == {matmul}
        assert {variable.aval.dtype for variable in equation.invars} == {jnp.dtype(dtype)}
    ends = (
        params,
        jax.eval_shape(network.apply, params, x),
        jax.eval_shape(jax.grad(loss, (0, 1)), params, x),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(ends)} == {jnp.dtype(jnp.float32)}


def test_normalization_in_bfloat16_has_float32_statistics() -> None:
    network, x = (
        networks.with_precision(OF_ANY_KIND["residual"][0], "bfloat16"),
        jnp.ones((8, 8, 1)),
    )
    found = equations(
        jax.make_jaxpr(network.apply)(jax.eval_shape(network.init, jax.random.key(0), x), x)
    )
    roots = [
        equation.invars[0].aval.dtype for equation in found if equation.primitive.name == "rsqrt"
    ]
    assert roots == [jnp.float32] * 2


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(
        ValueError, match="no precision 'float16'; there are float32, tensorfloat32, bfloat16"
    ):
        networks.with_precision(affine(4), "float16")


def in_precision(precision: str, posterior: str = "normal") -> models.VAE:
    """A VAE of the digits, 64-32-4-32-64."""
    family = posteriors.POSTERIORS[posterior](4)
    pair = networks.mlp((32,), family.size), networks.mlp((32,), (8, 8, 1))
    encoder, decoder = (networks.with_precision(network, precision) for network in pair)
    return models.vae(encoder, decoder, family, likelihoods.bernoulli(), family.prior(4))


@pytest.mark.slow
def test_bfloat16_networks_change_the_elbo_by_less_than_its_standard_error(
    digits: datasets.Dataset,
) -> None:
    preprocess = datasets.preprocessing("dynamic", 17)
    full, half = in_precision("float32"), in_precision("bfloat16")
    loss = training.batch_mean(models.negative_elbo(full))
    algorithm = training.gradient_descent(full.init, loss, optax.adam(3e-3))
    train, test = (digits.splits[n].replace(preprocess=preprocess) for n in ("train", "test"))
    params = training.trained(training.fit(algorithm, train, num_steps=300, batch_size=64))
    judge = lambda vae: evaluation.evaluate_elbo(
        vae, params, jax.random.key(1), test, num_samples=5
    )
    exact, rounded = judge(full), judge(half)
    assert exact.elbo > -64 * np.log(2) + 10  # trained: a decoder that returns zeros has -64 log 2
    assert abs(exact.elbo - rounded.elbo) < exact.standard_error
    assert exact.kl != rounded.kl  # the encoder has rounded
    assert exact.reconstruction != rounded.reconstruction


@pytest.mark.parametrize("posterior", posteriors.POSTERIORS)
def test_densities_of_bfloat16_networks_are_float32(posterior: str) -> None:
    vae, x = in_precision("bfloat16", posterior), jnp.ones((8, 8, 1))
    params = jax.eval_shape(vae.init, jax.random.key(0), x)

    def of(params: dict) -> tuple:
        q, key = vae.encode(params, x), jax.random.key(1)
        draws = distributions.sample_and_log_prob_of(q, distributions.sample_noise(q, key, (2,)))
        return q, vae.decode(params, draws[0][0]), draws, models.elbo_terms(vae, params, key, x, 2)

    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(of, params))} == {
        jnp.dtype(jnp.float32)
    }


full_covariance = distributions.MultivariateNormal(jnp.zeros(3), jnp.eye(3))


@pytest.mark.parametrize(
    ("function", "distribution"),
    [
        (lambda d: d.log_prob(d.sample(jax.random.key(0), (4,))).sum(), full_covariance),
        (lambda d: divergences.kl(d, d), full_covariance),
        (lambda d: d.mean.sum(), distributions.Categorical(jnp.ones((2, 5)))),
        (
            lambda d: d.mean.sum(),
            distributions.Mixture(
                jnp.ones(3), distributions.Normal(jnp.ones((3, 2)), jnp.ones((3, 2)))
            ),
        ),
    ],
    ids=["log-density of a sample", "KL", "mean of a categorical", "mean of a mixture"],
)
def test_products_in_distributions_are_float32_whatever_the_ambient_is(
    function: Callable, distribution: Any
) -> None:
    with jax.default_matmul_precision("bfloat16"):
        found = products(jax.value_and_grad(function), distribution)
    assert found
    assert all(
        set(equation.params["precision"]) == {jax.lax.Precision.HIGHEST} for equation in found
    )


STAGED = {
    "encoder": (
        lambda blocks, remat: networks.residual_encoder((4,), 3, blocks, remat=remat),
        (8, 8, 1),
    ),
    "decoder": (
        lambda blocks, remat: networks.residual_decoder((4,), (8, 8, 1), blocks, remat=remat),
        (3,),
    ),
}


def unrolled(kind: str, blocks: int, params: Any, x: jax.Array) -> jax.Array:
    """The networks of STAGED with a Python loop over blocks that are written out."""
    part = lambda name, module, x, params=params: module.apply({"params": params[name]}, x)
    if kind == "encoder":
        x = part("conv_0", linen.Conv(4, (4, 4), strides=2), x)
    else:
        x = part("input", linen.Dense(64), x).reshape(4, 4, 4)
    for b in range(blocks):
        own, h = jax.tree.map(lambda leaf, b=b: leaf[b], params["stage_0"]), x
        for i in range(2):
            # linen's first axis is the batch: without it every row would be normalized for itself.
            h = jax.nn.silu(part(f"norm_{i}", linen.GroupNorm(num_groups=4), h[None], own)[0])
            h = part(f"conv_{i}", linen.Conv(4, (3, 3)), h, own)
        x = x + h
    if kind == "encoder":
        return part("output", linen.Dense(3), jax.nn.silu(x).reshape(-1))
    return part("deconv_0", linen.ConvTranspose(1, (4, 4), strides=(2, 2)), jax.nn.silu(x))


@pytest.mark.slow
@pytest.mark.parametrize("kind", STAGED)
def test_a_scanned_stage_is_a_loop_over_its_blocks(kind: str) -> None:
    make, shape = STAGED[kind]
    x, rng = jax.random.normal(jax.random.key(1), shape), np.random.default_rng(0)
    shapes = jax.eval_shape(make(3, False).init, jax.random.key(0), x)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes
    )
    of = lambda apply: jax.jit(jax.value_and_grad(lambda params: jnp.sin(apply(params, x)).mean()))(
        params
    )
    expected = of(functools.partial(unrolled, kind, 3))
    for remat in (False, True):
        chex.assert_trees_all_close(of(make(3, remat).apply), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "anew"), [("cpu", 0), ("gpu", 2)])
def test_the_sigmoids_of_a_block_are_kept_on_a_cpu_alone(
    backend: str, anew: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, shape = STAGED["encoder"]
    network = make(2, False)
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.ones(shape))
    of_name = lambda jaxpr: [
        equation for equation in equations(jaxpr) if equation.primitive.name == "logistic"
    ]
    sigmoids = lambda function: len(of_name(jax.make_jaxpr(function)(params, jnp.ones(shape))))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert (
        sigmoids(jax.grad(lambda params, x: network.apply(params, x).sum()))
        == sigmoids(network.apply) + anew
    )


def test_blocks_of_a_stage_are_drawn_independently_and_remat_changes_nothing() -> None:
    init = lambda remat: STAGED["encoder"][0](9, remat).init(jax.random.key(0), jnp.ones((8, 8, 1)))
    params = init(False)
    chex.assert_trees_all_equal(params, init(True))
    kernels = np.stack(
        [params["stage_0"][name]["kernel"].reshape(9, -1) for name in ("conv_0", "conv_1")]
    )
    kernels = kernels.reshape(18, -1)  # [2 * blocks, 3 * 3 * 4 * 4]
    assert np.abs(np.corrcoef(kernels) - np.eye(18)).max() < 4 / np.sqrt(kernels.shape[1])
    np.testing.assert_allclose(
        kernels.std(1), 1 / np.sqrt(9 * 4), rtol=0.2
    )  # as LeCun draws a single block's


@pytest.mark.parametrize("kind", STAGED)
def test_a_stage_may_have_no_blocks(kind: str) -> None:
    make, shape = STAGED[kind]
    params = jax.eval_shape(make(0, False).init, jax.random.key(0), jnp.ones(shape))
    one = jax.eval_shape(make(1, False).init, jax.random.key(0), jnp.ones(shape))
    assert one.keys() - params.keys() == {"stage_0"}
    out = lambda network, params: jax.eval_shape(network.apply, params, jnp.ones(shape)).shape
    assert out(make(0, False), params) == out(make(1, False), one)


def in_numpyro(vae: models.VAE) -> models.VAE:
    """The same model with NumPyro's distributions in all three places."""

    def encode(params: Any, x: Any) -> npd.Distribution:
        q = vae.encode(params, x)
        return npd.Normal(q.loc, q.scale).to_event(1)

    decode = lambda params, z: npd.BernoulliLogits(vae.decode(params, z).logits).to_event(3)
    return vae._replace(
        encode=encode,
        decode=decode,
        prior=lambda params: npd.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1),
    )


def test_numpyro_distributions_work_wherever_ours_do(
    small_vae: models.VAE, digits: datasets.Dataset
) -> None:
    theirs, images = in_numpyro(small_vae), digits.splits["test"].take(slice(40))
    images = images.replace(preprocess=datasets.preprocessing("dynamic", 17))
    params = small_vae.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    key = jax.random.key(1)
    estimate = lambda vae: evaluation.estimate_log_likelihood(
        vae, params, key, images, num_samples=50
    )
    np.testing.assert_allclose(estimate(theirs)[:3], estimate(small_vae)[:3], rtol=1e-4)
    ours = evaluation.evaluate_elbo(small_vae, params, key, images, num_samples=500)
    sampled = evaluation.evaluate_elbo(theirs, params, key, images, num_samples=500)
    assert sampled.kl_per_latent is None
    assert sampled.reconstruction == pytest.approx(ours.reconstruction, rel=1e-4)
    loss = training.batch_mean(models.negative_elbo(theirs))
    algorithm = training.gradient_descent(lambda key, x: params, loss, optax.adam(1e-3))
    state = training.fit(algorithm, images, num_steps=5, batch_size=16)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_kl_weight_multiplies_kl_alone(small_vae: models.VAE) -> None:
    x = jnp.ones((8, 8, 1))
    params, key = small_vae.init(jax.random.key(0), x), jax.random.key(1)
    value, terms = models.negative_elbo(small_vae, kl_weight=lambda step: 0.1 * step)(
        params, key, x, jnp.int32(7)
    )
    assert float(value) == pytest.approx(
        float(0.7 * terms["kl"] - terms["reconstruction"]), rel=1e-5
    )


def test_free_bits_need_latents_that_divide(small_vae: models.VAE) -> None:
    params = small_vae.init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    loss = models.with_kl_cost(small_vae, kl_costs.free_bits(0.1, groups=3))
    keys = jax.random.split(jax.random.key(1), 4)
    with pytest.raises(ValueError, match="2 latents do not divide into 3 groups"):
        loss(params, keys, jnp.zeros((4, 8, 8, 1)), jnp.full(4, 0.25), jnp.int32(0), None)


# Dropout


def scaled_at_random(network: networks.Network) -> networks.Network:
    """The network, which scales what it returns by a random factor in training alone."""
    factor = lambda key: jax.random.uniform(key, (), minval=0.5, maxval=2.0)
    train = lambda params, key, x: factor(key) * network.apply(params, x)
    return network._replace(train=train)


def live(*kinds: str) -> Any:
    """A VAE of which the named networks are live, or a conditional one."""
    family, likelihood = posteriors.normal(2), likelihoods.normal(0.5)
    pair = {"encoder": networks.mlp((), family.size), "decoder": networks.mlp((), 6)}
    pair |= {name: scaled_at_random(pair[name]) for name in kinds if name in pair}
    make = models.cvae if "conditional" in kinds else models.vae
    model = make(*pair.values(), family, likelihood, priors.standard_normal(2))
    if "vampprior" in kinds:
        model = models.with_vampprior(model, lambda key, x: jnp.ones((2, *x.shape)))
    return models.Denoising(model) if "denoising" in kinds else model


IN_TRAINING = {
    "elbo": models.negative_elbo,
    "sampled elbo": models.negative_sampled_elbo,
    "iwae": lambda vae: models.negative(bounds.iwae, vae, 2),
    "reconstruction": models.negative_reconstruction,
}


@pytest.mark.parametrize(
    "kinds",
    [
        ("encoder",),
        ("decoder",),
        ("encoder", "vampprior"),
        ("encoder", "conditional"),
        ("encoder", "denoising"),
    ],
)
def test_dropout_is_live_in_training_alone(kinds: tuple[str, ...]) -> None:
    """Every loss changes with it, and what is asked of the model for evaluation does not."""
    x, key = jnp.arange(6.0), jax.random.key(1)
    examples = {
        "conditional": models.Conditioned(x, jnp.ones(2)),
        "denoising": models.Corrupted(x, x + 1),
    }
    example = examples.get(kinds[-1], x)
    still, moving = live(*kinds[1:]), live(*kinds)
    params = still.init(jax.random.key(0), example)

    @quick
    def values(params: dict) -> tuple:
        losses = [
            {name: make(model)(params, key, example, 0)[0] for name, make in IN_TRAINING.items()}
            for model in (still, moving)
        ]
        return losses, [models.elbo_terms(m, params, key, example, 2) for m in (still, moving)]

    losses, terms = values(params)
    assert all(losses[0][name] != losses[1][name] for name in IN_TRAINING)
    assert terms[0] == terms[1]


# Examples in docstrings


@pytest.mark.parametrize("name", ["vae", "negative_elbo", "negative", "answers", "configured"])
def test_examples_of_docstrings(name: str) -> None:
    names = {"jax": jax, "jnp": jnp, "models": models, "networks": networks, "bounds": bounds}
    names |= {"posteriors": posteriors, "priors": priors, "likelihoods": likelihoods}
    names |= {"expectations": expectations}
    function = getattr(models, name, getattr(expectations.Estimator, name, None))
    if name in ("negative_elbo", "negative", "answers"):  # whose examples go on with that of vae
        exec(_source(models.vae), names)
    runner, said = doctest.DocTestRunner(), list[str]()
    (test,) = doctest.DocTestFinder().find(function, name, globs=names)
    assert runner.run(test, out=said.append).failed == 0, "".join(said)
    assert test.examples


def _source(function: Callable) -> str:
    parsed = doctest.DocTestParser().get_examples(function.__doc__ or "")
    return "".join(example.source for example in parsed)


# z as a pytree


def test_a_two_level_vae_is_served_by_every_continuous_bound(
    two_level_vae: models.VAE, two_level_evidence: Callable
) -> None:
    """At the posterior each draw's weight is p(x), which makes every bound log p(x)."""
    x, key = jnp.array([1.0, -0.7, 0.3]), jax.random.key(1)
    params = two_level_vae.init(key, x)
    needs_more = {"elbo_analytic": "no closed form", "gdreg": "dreg serves"}
    names = [name for name, bound in bounds.BOUNDS.items() if "continuous" in bound.latents]

    def of_bound(bound: Any, params: dict, key: jax.Array, x: jax.Array, step: int) -> tuple:
        asked = models.answers(two_level_vae)
        joint = lambda z: asked.log_joint(params, x, z)
        return -bound(key, asked.encode(params, x), joint, 3), {}

    losses = {
        **{
            name: functools.partial(of_bound, bounds.BOUNDS[name])
            for name in names
            if name not in needs_more
        },
        "negative": models.negative(bounds.iwae, two_level_vae, 3),
        "negative_elbo": models.negative_elbo(two_level_vae, 3),
        "negative_sampled_elbo": models.negative_sampled_elbo(two_level_vae, 3),
    }
    value = lambda name, params: losses[name](params, key, x, 0)[0]
    slope = lambda name, params: jax.grad(lambda params: value(name, params))(params)
    values, slopes = quick(
        lambda params: (
            {name: value(name, params) for name in losses},
            {name: slope(name, params) for name in ("stl", "dreg")},
        )
    )(params)
    assert set(losses) >= {"elbo", "iwae", "stl", "dreg", "piwae", "vimco", "ovis_mc", "tvo"}
    for name, negative in values.items():
        assert float(-negative) == pytest.approx(two_level_evidence(x), abs=1e-4), name
        chex.assert_trees_all_equal_shapes(
            jax.eval_shape(functools.partial(slope, name), params), params
        )
    for name in slopes:  # without variance at the posterior
        assert max(float(jnp.abs(slopes[name][part]).max()) for part in ("encoder", "tril")) < 1e-4
    for name, message in needs_more.items():
        with pytest.raises(ValueError, match=message):
            models.negative(bounds.BOUNDS[name], two_level_vae, 3)(params, key, x, 0)


def test_a_two_level_vae_answers(two_level_vae: models.VAE, two_level_evidence: Callable) -> None:
    x, key, asked = jnp.array([0.4, 0.1, -1.0]), jax.random.key(1), models.answers(two_level_vae)
    params, evidence = two_level_vae.init(key, x), two_level_evidence(x)
    z = z2, z1 = jnp.array([0.3]), jnp.array([-1.0, 0.5])
    terms, weights, joint, drawn, means = quick(
        lambda params: (
            asked.terms(params, key, x, 5),
            asked.log_weights(params, key, x, 4),
            asked.log_joint(params, x, z),
            asked.draw(params, key),
            distributions.mean_of(asked.encode(params, x)),
        )
    )(params)
    assert float(terms["reconstruction"] - terms["kl"]) == pytest.approx(evidence, abs=1e-4)
    np.testing.assert_allclose(weights, np.full(4, evidence), atol=1e-4)
    assert [leaf.shape for leaf in drawn] == [leaf.shape for leaf in means] == [(1,), (2,)]
    density = stats.norm(0, 1).logpdf(z2).sum()
    density += stats.norm(np.ravel(params["prior"] @ z2), 0.7).logpdf(z1).sum()
    density += stats.norm(params["decoder"] @ z1 + params["bias"], 0.6).logpdf(x).sum()
    assert float(joint) == pytest.approx(density, abs=1e-4)


# A log-density is a scalar


@distributions.pytree
class Unsummed:
    """A user's Gaussian that forgets to sum over its coordinates."""

    loc: jax.Array
    event_shape = (2,)

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        return self.loc + jax.random.normal(key, (*shape, 2))

    def log_prob(self, x: jax.Array) -> jax.Array:
        return -0.5 * (x - self.loc) ** 2


FORGOTTEN = {
    "likelihood": lambda vae: vae._replace(
        decode=lambda params, z: npd.BernoulliLogits(vae.decode(params, z).logits)
    ),
    "posterior": lambda vae: vae._replace(
        encode=lambda params, x: npd.Normal(vae.encode(params, x).loc, 1.0)
    ),
    "prior": lambda vae: vae._replace(prior=lambda params: npd.Normal(jnp.zeros(2), 1.0)),
    "user's posterior": lambda vae: vae._replace(
        encode=lambda params, x: Unsummed(vae.encode(params, x).loc)
    ),
    "user's prior": lambda vae: vae._replace(prior=lambda params: Unsummed(jnp.zeros(2))),
}
ASKED = {
    "elbo": models.negative_elbo,
    "sampled elbo": models.negative_sampled_elbo,
    "iwae": lambda vae: models.negative(bounds.iwae, vae, 2),
    "vimco": lambda vae: models.negative(bounds.vimco, vae, 2),
    "weights": lambda vae: (
        lambda params, key, x, step: models.answers(vae).log_weights(params, key, x, 2)
    ),
    "terms": lambda vae: lambda params, key, x, step: models.answers(vae).terms(params, key, x, 2),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("part", FORGOTTEN)
def test_a_density_that_is_no_scalar_is_refused(
    small_vae: models.VAE, part: str, asked: str
) -> None:
    x = jnp.ones((8, 8, 1))
    params = jax.eval_shape(small_vae.init, jax.random.key(0), x)
    loss = ASKED[asked](FORGOTTEN[part](small_vae))
    with pytest.raises(ValueError, match=r"(Normal|BernoulliLogits|Unsummed).*to_event\("):
        jax.eval_shape(lambda params: loss(params, jax.random.key(1), x, 0), params)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda q, key: expectations.pathwise(key, q, lambda z: z**2), r"f returned shape \(2,\)"),
        (lambda q, key: expectations.rloo(key, q, lambda z: z**2), r"f returned shape \(2,\)"),
        (lambda q, key: bounds.elbo(key, q, lambda z: z**2), r"log_joint returned shape \(2,\)"),
        (lambda q, key: bounds.log_weights(key, q, lambda z: z, 3), "log_joint returned shape"),
        (lambda q, key: divergences.kl(q, Unsummed(jnp.zeros(2)), key), "Unsummed.log_prob"),
        (lambda q, key: divergences.kl(Unsummed(jnp.zeros(2)), q, key), "Unsummed.log_prob"),
        (
            lambda q, key: expectations.score_function(key, Unsummed(jnp.zeros(2)), jnp.sum),
            "Unsummed.log_prob",
        ),
    ],
)
def test_a_function_that_is_no_scalar_is_refused(call: Callable, named: str) -> None:
    q = distributions.Normal(jnp.zeros(2), jnp.ones(2))
    with pytest.raises(ValueError, match=named + r".*for one event, where a scalar was expected"):
        call(q, jax.random.key(0))
