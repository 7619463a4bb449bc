"""Hierarchies: the author's numbers, closed forms, flat VAEs, loops, memory, balancing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harness import equations
from jax.sharding import Mesh, PartitionSpec
from scipy import special, stats

from jaxvae import (
    datasets,
    distributions,
    divergences,
    evaluation,
    families,
    kl_costs,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    training,
)
from jaxvae.distributions import Normal

KEY = jax.random.key(0)
EXACT_GELU = networks.ACTIVATIONS["exact_gelu"]


# The author's network in float64, with weights and noise in closed form (R in the reference)

GOLDEN_KL = (0.026389, 0.485278, 0.518626, 2.991406, 3.280321)
GOLDEN_RATIO = (0.223282, 1.341568, 0.495309, -3.976026, -9.64112)
GOLDEN_NLL, GOLDEN_BOUND = 1212.85136, 6.35496551
GOLDEN_LAYOUT = networks.LAYOUTS["strings"](
    (8, 8), encoder_blocks="8x1,8d2,4x1,4d4,1x1", decoder_blocks="1x1,4m1,4x1,8m4,8x1"
)
BOTTLENECK = {"enc": "posterior", "prior": "prior", "resnet": "residual"}
COMPONENTS = 2


def golden_shapes() -> dict[str, tuple[int, ...]]:
    """The author's names and shapes of all arrays, in the layout of PyTorch."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inputs: int, outputs: int, taps: int = 1) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, taps, taps)
        shapes[f"{name}.bias"] = (outputs,)

    def bottleneck(name: str, size: int, inputs: int, outputs: int) -> None:
        taps = 3 if size > 2 else 1
        for i, (a, b, t) in enumerate(
            [(inputs, 2, 1), (2, 2, taps), (2, 2, taps), (2, outputs, 1)]
        ):
            conv(f"{name}.c{i + 1}", a, b, t)

    conv("encoder.in_conv", 3, 8, 3)
    for b, size in enumerate((8, 8, 4, 4, 1)):
        bottleneck(f"encoder.enc_blocks.{b}", size, 8, 8)
    for b, size in enumerate((1, 4, 4, 8, 8)):
        name = f"decoder.dec_blocks.{b}"
        bottleneck(f"{name}.enc", size, 16, 4)
        bottleneck(f"{name}.prior", size, 8, 12)
        bottleneck(f"{name}.resnet", size, 8, 8)
        conv(f"{name}.z_proj", 2, 8)
    for i, size in enumerate((1, 4, 8)):
        shapes[f"decoder.bias_xs.{i}"] = (1, 8, size, size)
    shapes["decoder.gain"] = shapes["decoder.bias"] = (1, 8, 1, 1)
    conv("decoder.out_net.out_conv", 8, 10 * COMPONENTS)
    return shapes


def golden_arrays() -> dict[str, np.ndarray]:
    arrays = {}
    for t, (name, shape) in enumerate(sorted(golden_shapes().items())):
        j = np.arange(np.prod(shape)).reshape(shape)
        if name.endswith("weight"):
            arrays[name] = 0.5 * np.sin(0.5 * t + 0.3 * j) / np.sqrt(np.prod(shape[1:]))
        else:
            arrays[name] = 0.1 * np.cos(t + j)
    return arrays


def golden_params() -> Any:
    """The same arrays as the parameters of ``networks.very_deep``."""
    arrays = golden_arrays()

    def conv(name: str) -> dict[str, np.ndarray]:
        kernel = arrays[f"{name}.weight"].transpose(2, 3, 1, 0)
        return {"kernel": kernel, "bias": arrays[f"{name}.bias"]}

    def bottleneck(name: str) -> dict[str, Any]:
        return {f"c{i}": conv(f"{name}.c{i}") for i in range(1, 5)}

    def block(b: int) -> dict[str, Any]:
        name = f"decoder.dec_blocks.{b}"
        parts = {ours: bottleneck(f"{name}.{theirs}") for theirs, ours in BOTTLENECK.items()}
        return parts | {"latent": conv(f"{name}.z_proj")}

    stack = lambda *trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    encoder = lambda b: bottleneck(f"encoder.enc_blocks.{b}")
    bias = lambda i: arrays[f"decoder.bias_xs.{i}"][0].transpose(1, 2, 0)
    # Theirs are [logits, (means, log-scales, slopes) of each channel].
    order = np.arange(10 * COMPONENTS).reshape(10, COMPONENTS)
    order = order[[0, 1, 4, 7, 2, 5, 8, 3, 6, 9]].reshape(-1)
    output = {name: leaf[..., order] for name, leaf in conv("decoder.out_net.out_conv").items()}
    params = {
        "input": conv("encoder.in_conv"),
        "encoder": {
            "8x8": {"blocks": stack(encoder(0)), "pool": encoder(1)},
            "4x4": {"blocks": stack(encoder(2)), "pool": encoder(3)},
            "1x1": {"blocks": stack(encoder(4))},
        },
        "decoder": {
            "1x1": {"bias": bias(0), "blocks": stack(block(0))},
            "4x4": {"bias": bias(1), "blocks": stack(block(1), block(2))},
            "8x8": {"bias": bias(2), "blocks": stack(block(3), block(4))},
        },
        "gain": arrays["decoder.gain"].reshape(-1),
        "bias": arrays["decoder.bias"].reshape(-1),
        "output": output,
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def golden_noise() -> tuple[np.ndarray, ...]:
    """eps of layer l = sin(1 + l + j), j flat in [latent, r, r], by groups."""
    each = [
        np.sin(1 + l + np.arange(2 * r * r)).reshape(2, r, r).transpose(1, 2, 0)
        for l, r in enumerate((1, 4, 4, 8, 8))
    ]
    return tuple(np.float32(np.stack(group)) for group in (each[:1], each[1:3], each[3:]))


def test_the_network_is_the_authors() -> None:
    """KL of each layer, log-ratios, reconstruction and bound of VDVAE's PyTorch in float64."""
    likelihood = likelihoods.pixel_logistic_mixture(256, COMPONENTS)
    network = networks.very_deep(
        GOLDEN_LAYOUT, likelihood.outputs((8, 8, 3)), 2, (8,), activation=EXACT_GELU,
        center=120.63838 / 255, spread=64.16736 / 255,
    )  # fmt: skip
    params = golden_params()
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(network.init, KEY, jnp.zeros((8, 8, 3))))
    assert shapes == jax.tree.map(jnp.shape, params)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 3372
    x = np.float32((7 * np.arange(192) % 256).reshape(8, 8, 3) / 255)

    def given_noise(number: Any, p: Normal, q: Any, noise: jax.Array) -> tuple[jax.Array, Any]:
        z = q.from_noise(noise)
        return z, (divergences.kl(q, p), p.log_prob(z) - q.log_prob(z))

    @jax.jit
    def walk(params: Any, x: jax.Array) -> Any:
        activations = network.bottom_up(params, x)
        outputs, reports = network.top_down(params, activations, given_noise, golden_noise())
        return likelihood.of_outputs({}, outputs).log_prob(x), reports

    log_likelihood, reports = walk(params, x)
    kl, ratio = (np.concatenate(each) for each in zip(*reports, strict=True))
    np.testing.assert_allclose(kl, GOLDEN_KL, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ratio, GOLDEN_RATIO, rtol=2e-5, atol=1e-5)
    assert -float(log_likelihood) == pytest.approx(GOLDEN_NLL, rel=1e-6)
    assert float(kl.sum() - log_likelihood) / 192 == pytest.approx(GOLDEN_BOUND, rel=1e-6)


# Closed forms


def test_one_layer_is_the_flat_vae() -> None:
    """The library's own ``vae`` of the same weights: bound, densities and gradients."""
    likelihood, family = likelihoods.bernoulli(), posteriors.Posterior(6, of_raw)
    layered = models.hierarchy(networks.ladder((9,), (3,), (8,)), likelihood)
    dense = partial(networks.mlp, (8, 8), activation=networks.ACTIVATIONS["leaky_relu"])
    flat = models.vae(dense(6), dense(9), family, likelihood, priors.standard_normal(3))
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, 9), jnp.float32)
    params = jax.jit(layered.init)(KEY, x)

    def as_flat(params: Any) -> Any:
        network = params["network"]
        rest: dict[str, Any] = {"posterior": {}, "likelihood": {}, "prior": {}}
        return {"encoder": network["up_1"], "decoder": network["output"]} | rest

    def of_layers(params: Any) -> jax.Array:
        terms = layered.terms(params, KEY, x, 1)
        return terms["reconstruction"] - terms["kl"]

    def of_flat(params: Any) -> jax.Array:
        q = flat.encode(params, x)
        z = q.sample(jax.random.fold_in(KEY, 0))
        return flat.decode(params, z).log_prob(x) - divergences.kl(q, flat.prior(params))

    value, gradient = jax.jit(jax.value_and_grad(of_layers))(params)
    expected, of_each = jax.jit(jax.value_and_grad(of_flat))(as_flat(params))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    compare = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(compare, as_flat(gradient), of_each)

    @jax.jit
    def densities(params: Any) -> Any:
        z, plain = layered.draw(params, KEY), as_flat(params)
        joint: Any = models.answers(flat).log_joint
        return (
            (layered.log_joint(params, x, z), joint(plain, x, z[0])),
            (layered.encode(params, x).log_prob(z), flat.encode(plain, x).log_prob(z[0])),
        )

    for one, other in densities(params):
        assert float(one) == pytest.approx(float(other), rel=1e-6)


def of_raw(params: Any, raw: jax.Array) -> Normal:
    """The ladder's mean and variance."""
    loc, variance = jnp.split(raw, 2)
    return Normal(loc, jnp.sqrt(jax.nn.softplus(variance + 1) + 1e-5))


# z2 ~ N(0, 1), z1 | z2 ~ N(a z2 + b, 0.7^2), x | z1 ~ N(c z1 + d, 0.6^2), in two dimensions.
A, B, C, D = (np.float32(pair) for pair in ((0.9, -0.5), (0.2, -0.1), (0.8, 1.3), (0.5, 0.0)))
S1, SX = 0.7, 0.6


def linear(shift: float = 0.0, factor: float = 1.0) -> models.Model:
    """That hierarchy, with exact posteriors that are shifted and widened by constants."""

    def bottom_up(params: Any, x: jax.Array) -> tuple[Normal, Normal]:
        of_z1 = Normal((x - D) / C, SX / np.abs(C))
        of_z2 = Normal((of_z1.loc - B) / A, np.sqrt(S1**2 + of_z1.scale**2) / np.abs(A))
        return of_z2, of_z1

    def top_down(params: Any, activations: Any, layer: Any, items: tuple) -> tuple[Any, tuple]:
        p, reports = Normal(jnp.zeros(2), jnp.ones(2)), []
        for number, item in enumerate(items):
            q = None
            if activations is not None:
                exact = networks.merged(p, activations[number])
                q = Normal(exact.loc + shift, factor * exact.scale)
            z, report = layer(number, p, q, item)
            reports.append(report)
            p = Normal(A * z + B, jnp.full(2, S1))
        return C * z + D, tuple(reports)

    network = networks.TopDown(lambda key, x: {}, bottom_up, top_down, ("z2", "z1"), (1, 1))
    return models.hierarchy(network, likelihoods.normal(SX))


def evidence(x: np.ndarray) -> float:
    scale = np.sqrt(C**2 * (A**2 + S1**2) + SX**2)
    return stats.norm(C * B + D, scale).logpdf(x).sum()


X = np.float32([1.1, -0.7])
PARAMS: dict[str, Any] = {"network": {}, "likelihood": {}}


def test_exact_posteriors_have_constant_weights() -> None:
    """log p(x, z) - log q(z|x) is log p(x) at every draw; the ELBO is so in the mean."""
    model = linear()

    @jax.jit
    def values(keys: jax.Array) -> Any:
        q = model.encode(PARAMS, X)
        z = q.sample(KEY)
        terms = jax.vmap(lambda key: model.terms(PARAMS, key, X, 1))(keys)
        weights = model.log_weights(PARAMS, KEY, X, 50)
        return weights, model.log_joint(PARAMS, X, z) - q.log_prob(z), terms

    weights, difference, terms = values(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(weights, evidence(X), rtol=2e-6)
    assert float(difference) == pytest.approx(evidence(X), rel=2e-6)
    elbo = np.asarray(terms["reconstruction"] - terms["kl"], np.float64)
    assert elbo.std() > 0.1  # with KL in closed form it varies
    assert abs(elbo.mean() - evidence(X)) < 4 * elbo.std() / np.sqrt(len(elbo))


def test_importance_weighted_bounds_rise_to_the_evidence() -> None:
    model, counts = linear(0.3, 1.3), (1, 5, 50)

    @jax.jit
    def weights(keys: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: model.log_weights(PARAMS, key, X, sum(counts)))(keys)

    parts = np.split(weights(jax.random.split(KEY, 2000)), np.cumsum(counts)[:-1], 1)
    bounds = [special.logsumexp(part, 1) - np.log(part.shape[1]) for part in parts]
    means = [bound.mean() for bound in bounds]
    error = bounds[2].std() / np.sqrt(2000)
    assert means[0] + 0.1 < means[1] < means[2] < evidence(X) + 4 * error
    assert evidence(X) - means[2] < 0.05 < evidence(X) - means[0]
    estimate = evaluation.estimate_log_likelihood(model, PARAMS, KEY, X[None], num_samples=4000)
    assert estimate.log_likelihood == pytest.approx(evidence(X), abs=0.05)


# Very deep ones


def tiny(remat: bool = True, **settings: Any) -> models.Model:
    """Three layers of images [2, 2, 1] with 8 levels."""
    likelihood = likelihoods.pixel_logistic_mixture(8, 2)
    layout = networks.LAYOUTS["pyramid"]((2, 2), (1, 2))
    outputs = likelihood.outputs(IMAGE.shape)
    network = networks.very_deep(layout, outputs, 2, (8,), remat=remat, **settings)
    return models.hierarchy(network, likelihood)


IMAGE = jnp.asarray([0, 3, 7, 6], jnp.float32).reshape(2, 2, 1) / 7


def perturbed(model: models.Model, x: Any, by: float = 0.2) -> Any:
    """Parameters from which priors are not N(0, 1)."""
    params = jax.jit(model.init)(KEY, x)
    rng = np.random.default_rng(9)
    return jax.tree.map(lambda a: np.float32(a + by * rng.normal(size=a.shape)), params)


def loss_of(model: models.Model) -> Callable[[Any], Any]:
    def loss(params: Any) -> Any:
        return models.negative_terms(model, lambda step: 1.0)(params, KEY, IMAGE, jnp.int32(0))

    return loss


def looped(body: Callable, carry: Any, items: Any) -> tuple[Any, Any]:
    """``lax.scan``, written out."""
    results = []
    for i in range(len(jax.tree.leaves(items)[0])):
        carry, result = body(carry, jax.tree.map(lambda a, i=i: a[i], items))
        results.append(result)
    return carry, jax.tree.map(lambda *each: jnp.stack(each), *results)


def test_a_scan_is_the_loop_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    params = perturbed(tiny(), IMAGE)
    value, terms = jax.jit(loss_of(tiny()))(params)
    layers = [float(term) for name, term in terms.items() if name.startswith("kl/")]
    assert float(terms["kl"]) == pytest.approx(sum(layers), rel=1e-6) and len(layers) == 3
    difference = float(terms["kl"] - terms["reconstruction"])
    assert float(value) == pytest.approx(difference, rel=1e-6)

    class Unrolled:
        scan = staticmethod(looped)

    monkeypatch.setattr("jaxvae.networks.bottlenecks.lax", Unrolled)
    written_out, each = jax.jit(loss_of(tiny()))(params)
    assert float(value) == pytest.approx(float(written_out), rel=1e-6)
    for name, term in terms.items():
        np.testing.assert_allclose(term, each[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_remat_changes_no_bit_of_the_loss() -> None:
    params = perturbed(tiny(), IMAGE)
    both = [
        jax.jit(jax.value_and_grad(loss_of(tiny(remat)), has_aux=True))(params)
        for remat in (True, False)
    ]
    ((one, _), gradient), ((other, _), without) = both
    assert one == other
    compare = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(compare, gradient, without)


def bound_of(network: networks.TopDown, likelihood: likelihoods.Likelihood) -> Callable:
    return models.LayeredVAE(network, likelihood).bound


def program(blocks: int, remat: bool = True) -> Any:
    """The gradient of the bound of a batch of eight."""
    likelihood = likelihoods.pixel_logistic_mixture(8, 2)
    layout = networks.LAYOUTS["pyramid"]((8, 8), (1, blocks))
    network = networks.very_deep(layout, likelihood.outputs((8, 8, 1)), 2, (16,), remat=remat)
    of_draw = bound_of(network, likelihood)
    params = jax.eval_shape(network.init, KEY, jnp.zeros((8, 8, 1)))

    def loss(params: Any, keys: jax.Array, x: jax.Array) -> jax.Array:
        def one(key: jax.Array, x: jax.Array) -> jax.Array:
            whole = {"network": params, "likelihood": {}}
            terms = of_draw(whole, network.bottom_up(params, x), key, x)
            return terms.kl.sum() - terms.reconstruction

        return jax.vmap(one)(keys, x).mean()

    return jax.grad(loss), (params, jax.random.split(KEY, 8), jnp.zeros((8, 8, 8, 1)))


def test_the_program_does_not_grow_with_its_blocks() -> None:
    lengths = []
    for blocks in (2, 40):
        function, arguments = program(blocks)
        lengths.append(sum(1 for _ in equations(jax.make_jaxpr(function)(*arguments))))
    assert lengths[0] == lengths[1] > 100


@pytest.mark.slow
@pytest.mark.optimized
def test_remat_saves_memory() -> None:
    """XLA's own analysis of the memory of intermediate values, for 10, 20, 40 blocks."""
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for remat, blocks in itertools.product(sizes, (10, 20, 40)):
        function, arguments = program(blocks, remat)
        analysis = jax.jit(function).lower(*arguments).compile().memory_analysis()
        sizes[remat].append(analysis.temp_size_in_bytes)
    print({"with remat": sizes[True], "without": sizes[False]})
    growth = {remat: (each[2] - each[0]) / 30 for remat, each in sizes.items()}
    assert growth[True] < growth[False] / 4
    assert sizes[True][2] < sizes[False][2] / 4


@pytest.mark.parametrize(
    "kind", ["ladder", *(pytest.param(k, marks=pytest.mark.slow) for k in ("absolute", "residual"))]
)
def test_log_ratios_and_divergences_agree_in_every_layer(kind: str) -> None:
    """E_q [log p(z_l|z_<l) - log q(z_l|z_<l, x)] = -KL_l, by their largest z-score."""
    x, likelihood = IMAGE, likelihoods.pixel_logistic_mixture(8, 2)
    outputs = likelihood.outputs(x.shape)
    if kind == "ladder":
        network = networks.ladder(outputs, (3, 2), (8, 8))
    else:
        layout = networks.LAYOUTS["pyramid"]((2, 2), (1, 1))
        posterior = getattr(networks, kind)
        network = networks.very_deep(layout, outputs, 2, (8,), posterior=posterior)
    model, of_draw = (
        models.hierarchy(network, likelihood),
        models.LayeredVAE(network, likelihood).bound,
    )
    params = perturbed(model, x)

    @jax.jit
    def draws(params: Any, keys: jax.Array) -> models.Bound:
        activations = network.bottom_up(params["network"], x)
        return jax.vmap(lambda key: of_draw(params, activations, key, x))(keys)

    each = draws(params, jax.random.split(KEY, 2000))
    differences = np.asarray(each.log_ratio + each.kl, np.float64)
    errors = differences.std(0) / np.sqrt(len(differences))
    assert (np.abs(differences.mean(0)) < 4.5 * errors).all()
    assert (np.asarray(each.kl).mean(0) > 0.01).all()


def test_temperatures_and_the_first_layers() -> None:
    network = networks.ladder((4,), (3, 2), (8, 8))
    model = models.hierarchy(network, likelihoods.bernoulli())
    x = IMAGE.reshape(-1).round()

    @jax.jit
    def draws(params: Any, keys: jax.Array) -> Any:
        q, p = model.encode(params, x), model.prior(params)
        means = q.mean, p.mean
        cold = distributions.tempered(p, 1e-6)
        by_layer = dataclasses.replace(p, scale=jnp.array([1.0, 0.0]))
        each = lambda d: jax.vmap(d.sample)(keys)
        decoded = [model.decode(params, z).mean for z in means]
        partly = [model.partly(params, x, layers).mean for layers in (2, 1, 0)]
        return means, each(cold), each(by_layer), decoded, partly

    params = perturbed(model, x)
    means, cold, by_layer, decoded, partly = draws(params, jax.random.split(KEY, 2))
    for leaf, center in zip(cold, means[1], strict=True):
        np.testing.assert_allclose(leaf, jnp.stack([center, center]), atol=1e-4)
    top, below = by_layer
    assert np.abs(top[0] - top[1]).min() > 1e-3
    assert np.abs(below[0] - below[1]).max() < np.abs(top[0] - top[1]).max()
    np.testing.assert_allclose(partly[0], decoded[0], atol=1e-6)
    np.testing.assert_allclose(partly[2], decoded[1], atol=1e-6)
    assert np.abs(partly[1] - partly[0]).max() > 1e-4


@pytest.mark.slow
def test_bfloat16_is_close_and_its_densities_are_float32() -> None:
    params = perturbed(tiny(), IMAGE, 0.05)
    values = [
        jax.jit(loss_of(tiny(precision=precision)))(params)[0]
        for precision in ("float32", "bfloat16")
    ]
    assert values[1].dtype == jnp.float32 and values[0] != values[1]
    assert float(values[1]) == pytest.approx(float(values[0]), rel=0.02)


# What KL costs


def test_balanced_layers() -> None:
    """gamma is 1 in the mean, 1 where KL is proportional to the shares, 1 after the warm-up."""
    cost = kl_costs.balanced((1, 2), lambda step: step / 10)
    gradient = jax.grad(lambda kl, step: cost(kl, step))
    kl = jnp.array([3.0, 0.5, 0.1])
    at_half = np.asarray(gradient(kl, 5.0))
    assert at_half.mean() == pytest.approx(0.5, rel=1e-6)
    assert at_half[0] > at_half[1] > at_half[2]
    shares = np.array([1.0, 2.0, 2.0])
    np.testing.assert_allclose(gradient(jnp.asarray(3 * shares - 0.01), 5.0), 0.5, rtol=1e-6)
    np.testing.assert_allclose(gradient(kl, 10.0), 1.0)
    expected = np.array([3.01, 0.51, 0.11]) / shares
    np.testing.assert_allclose(at_half, 0.5 * expected / expected.mean(), rtol=1e-6)
    with pytest.raises(ValueError, match="3 layers do not fit KL terms of 2"):
        cost(kl[:2], 0)


def test_a_cost_of_layers_is_of_the_global_batch() -> None:
    """The same on one device and on four; a linear one is the mean of the examples' losses."""
    model, step = linear(0.3, 1.3), jnp.int32(0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)
    batch = jax.random.split(KEY, 8), x, jnp.full(8, 0.125)
    half = lambda step: 0.5
    of_layers = partial(models.with_layer_costs, model, ("z2", "z1"))
    balanced, weighted = (
        of_layers(kl_costs.balanced((1, 1), half)),
        of_layers(kl_costs.weighted(half)),
    )
    rows, same = PartitionSpec("batch"), PartitionSpec()
    mesh = Mesh(np.array(jax.devices()[:4]), ("batch",))
    on_four = jax.shard_map(
        lambda *batch: balanced(PARAMS, *batch, step, "batch"),
        mesh=mesh, in_specs=(rows,) * 3, out_specs=same,
    )  # fmt: skip
    on_one = lambda *batch: balanced(PARAMS, *batch, step, None)
    (value, shared), (whole, terms) = jax.jit(on_four)(*batch), jax.jit(on_one)(*batch)
    assert float(value) == pytest.approx(float(whole), rel=1e-6)
    assert float(shared["kl"]) == pytest.approx(float(terms["kl"]), rel=1e-6)
    mean = training.batch_mean(models.negative_terms(model, half))
    losses = jax.jit(lambda *b: [f(PARAMS, *b, step, None)[0] for f in (weighted, mean)])(*batch)
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-6) != float(whole)


def test_a_gradient_above_the_threshold_is_skipped() -> None:
    """It is counted, and a row of them ends the training with the norm."""

    def loss(mean: jax.Array, key: Any, x: jax.Array, step: jax.Array) -> Any:
        return jnp.where(step == 1, 100.0, 1.0) * mean * x, {}

    algorithm = training.gradient_descent(
        lambda key, x: jnp.zeros(()), training.batch_mean(loss), optax.sgd(1.0), skip_norm=50.0,
        ema_decay=0.5,
    )  # fmt: skip
    state = training.fit(algorithm, np.ones(4, np.float32), num_steps=1, batch_size=4)
    skipped = training.fit(
        algorithm, np.ones(4, np.float32), num_steps=2, batch_size=4, state=state
    )
    assert skipped.skipped == 1
    np.testing.assert_array_equal(skipped.params["model"], -1.0)
    after = training.fit(algorithm, np.ones(4, np.float32), num_steps=3, batch_size=4)
    assert after.skipped == 0 and after.params["model"] == -2.0
    with pytest.raises(training.NotFiniteError, match="a gradient of norm 200, above skip_norm"):
        training.fit(algorithm, np.full(4, 200, np.float32), num_steps=30, batch_size=4)


# Pixels


def colours(levels: int, channels: int) -> np.ndarray:
    """All colours of one pixel, [levels^C, 1, 1, C] in [0, 1]."""
    grid = np.array([*itertools.product(range(levels), repeat=channels)]) / (levels - 1)
    return grid.reshape(-1, 1, 1, channels).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_colours_of_a_pixel_sum_to_one(channels: int) -> None:
    family = likelihoods.pixel_logistic_mixture(8, 3)
    raw = np.random.default_rng(0).normal(0, 2, family.outputs((1, 1, channels)))
    density = family.of_outputs({}, jnp.asarray(raw, jnp.float32))
    log_probs = jax.jit(lambda x: density.log_prob(x))(colours(8, channels))
    assert np.exp(np.float64(log_probs)).sum() == pytest.approx(1, abs=2e-6)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_a_pixel_has_the_law_of_pixelcnn() -> None:
    """In float64, with values in [-1, 1] and differences of distribution functions."""
    m, rng = 3, np.random.default_rng(2)
    family = likelihoods.pixel_logistic_mixture(256, m)
    raw = rng.normal(0, 0.7, family.outputs((2, 2, 3)))
    x = rng.integers(0, 256, (2, 2, 3))
    x[0, 0], x[0, 1] = (0, 255, 3), (255, 254, 0)  # edges, and next to them
    y = x / 127.5 - 1
    logits, loc, log_scale, slopes = np.split(raw.reshape(2, 2, 10, m), [1, 4, 7], 2)
    a = np.tanh(slopes)
    means = [
        loc[:, :, 0],
        loc[:, :, 1] + a[:, :, 0] * y[..., :1],
        loc[:, :, 2] + a[:, :, 1] * y[..., :1] + a[:, :, 2] * y[..., 1:2],
    ]
    weights = np.exp(logits[:, :, 0])
    p = weights / weights.sum(-1, keepdims=True)
    for c, mean in enumerate(means):
        scale, value = np.exp(np.maximum(log_scale[:, :, c], -7)), y[..., c, None]
        above = np.where(value > 0.999, 1.0, sigmoid((value + 1 / 255 - mean) / scale))
        below = np.where(value < -0.999, 0.0, sigmoid((value - 1 / 255 - mean) / scale))
        p = p * (above - below)
    density = family.of_outputs({}, jnp.asarray(raw, jnp.float32))
    found = jax.jit(lambda x: density.log_prob(x))(np.float32(x / 255))
    assert float(found) == pytest.approx(np.log(p.sum(-1)).sum(), rel=1e-5)


def test_a_pixel_is_drawn_from_its_law() -> None:
    """Frequencies of all colours, by a chi-squared test."""
    family = likelihoods.pixel_logistic_mixture(3, 2)
    raw = np.random.default_rng(4).normal(0, 1, family.outputs((1, 1, 3)))
    density = family.of_outputs({}, jnp.asarray(raw, jnp.float32))
    draw = jax.jit(lambda key: (density.sample(key, (20_000,)), density.log_prob(colours(3, 3))))
    draws, log_probs = (np.float64(values) for values in draw(KEY))
    draws = draws.reshape(-1, 3)
    codes = np.rint(draws * 2).astype(int) @ np.array([9, 3, 1])
    expected = np.exp(log_probs) * len(draws)
    kept = expected > 5
    counts = np.bincount(codes, minlength=27)
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert stats.chi2(kept.sum()).sf(statistic) > 1e-3


# Sizes of the papers, and what does not go together


def built(preset: str, shape: tuple[int, ...], **named: Any) -> families.Built:
    data = families.Data(preset, shape, "uint8", 256, "scale", 50_000)
    return families.FAMILIES["hierarchy"].build(families.preset(preset, **named), data)


def state_of(model: families.Built, shape: tuple[int, ...]) -> Any:
    example = datasets.Examples(jax.ShapeDtypeStruct(shape, np.uint8), model.preprocess)
    return jax.eval_shape(model.algorithm.init, KEY, example)


PAPERS = {"vdvae-cifar10": (32, 39_145_700, 43), "vdvae-imagenet64": (64, 125_005_860, 75)}


@pytest.mark.parametrize("preset", PAPERS)
def test_the_papers_networks_have_their_parameters(preset: str) -> None:
    size, parameters, layers = PAPERS[preset]
    model = built(preset, (size, size, 3))
    state = state_of(model, (size, size, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == parameters
    assert model.model.layers == layers


@pytest.mark.slow
@pytest.mark.parametrize("preset", PAPERS)
def test_the_papers_networks_take_a_step(preset: str) -> None:
    size = PAPERS[preset][0]
    shape = (size, size, 3)
    model = built(preset, shape)
    x = datasets.Examples(jax.ShapeDtypeStruct((2, *shape), np.uint8), model.preprocess)
    batch = training.Batch(x, np.arange(2), np.full(2, 0.5, np.float32))
    state = state_of(model, shape)
    after, metrics = jax.eval_shape(model.algorithm.step, state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert sum(name.startswith("kl/") for name in metrics) == PAPERS[preset][2]


REFUSED: list[tuple[dict[str, Any], tuple[int, ...], str]] = [
    ({"network": "very_deep"}, (64,), "needs images"),
    ({"blocks": (1, 1, 1)}, (7, 8, 1), "halves the image 1 times above its 7x8 pixels"),
    ({"blocks": (1,)}, (8, 8, 1), "give at least two numbers"),
    ({"hidden": (8, 8)}, (8, 8, 1), "2 widths for 4 resolutions"),
    ({"hidden": (3,)}, (8, 8, 1), "at least 4 channels"),
    ({"layout": "strings"}, (8, 8, 1), "images of 32 pixels in the encoder"),
    (
        {"layout": "strings", "encoder_blocks": "8x1,8d3"},
        (8, 8, 1),
        "8 pixels are not pooled by 3",
    ),
    (
        {"layout": "strings", "encoder_blocks": "8d2,4x1", "decoder_blocks": "2x1,8m2"},
        (8, 8, 1),
        "blocks at 2, where the encoder has none",
    ),
    (
        {"layout": "strings", "encoder_blocks": "8d8,1x1", "decoder_blocks": "1x1,8m4"},
        (8, 8, 1),
        "8m4 needs blocks at 4 first",
    ),
    ({"layout": "strings", "encoder_blocks": "8y1"}, (8, 8, 1), "'8y1' is no entry"),
    ({"layout": "strings", "encoder_blocks": "8d0"}, (8, 8, 1), "'8d0' is no entry"),
    ({"blocks": (1, 1, 1)}, (2, 2, 1), "above one pixel"),
    ({"network": "ladder", "hidden": ()}, (8, 8, 1), "0 latents and 0 hidden widths"),
    ({"kl_cost": "balanced", "accumulate": 2}, (8, 8, 1), "accumulate must be 1"),
    ({"likelihood": "pixel_logistic_mixture", "network": "ladder"}, (64,), "needs images"),
]


@pytest.mark.parametrize("named, shape, words", REFUSED, ids=[row[2] for row in REFUSED])
def test_what_does_not_go_together_is_refused(
    named: dict[str, Any], shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        built("vdvae-small", shape, **named)
