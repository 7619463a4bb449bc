"""States that are cut over devices: the rule, the numbers, the memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from test_families import PRESETS, small
from test_training import images, images_vae

import jaxvae
from experiments import scaling_models
from jaxvae import families, likelihoods, models, networks, posteriors, priors, training
from jaxvae.runs import Job, prepare
from jaxvae.training import Placement, placements


@pytest.fixture
def all_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of any size are cut."""
    monkeypatch.setattr(placements, "LEAST_BYTES", 1)


# shape, parts -> the axis that is cut
CUTS: dict[str, tuple[tuple[int, ...], int, int | None]] = {
    "the larger axis": ((784, 512), 8, 0),
    "the other one": ((512, 784), 8, 1),
    "the larger one does not divide": ((782, 512), 8, 1),
    "a kernel": ((3, 3, 256, 512), 8, 3),
    "a stack of layers": ((64, 32, 16), 8, 1),
    "layers that divide alone": ((64, 30, 30), 8, None),
    "a small array": ((512,), 8, None),
    "a long vector": ((2**16,), 8, 0),
    "nothing divides": ((301, 303), 8, None),
    "one part": ((784, 512), 1, None),
    "an empty array": ((0, 512), 8, None),
}


@pytest.mark.parametrize("case", CUTS)
def test_the_largest_axis_that_divides_is_cut(case: str) -> None:
    shape, parts, axis = CUTS[case]
    spec = placements.cut(shape, 4, parts)
    assert spec == (PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "model"))


def test_layers_of_a_scan_are_never_cut(all_cut: None) -> None:
    """Four residual blocks for each stage on four devices: other axes divide, and are cut."""
    network = networks.residual_encoder((8, 16), 8, blocks=4, remat=True)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((8, 8, 3)))
    layout = Placement(jax.devices()[:4], "fsdp")
    placed = jax.tree.leaves(placements.shardings(shapes, layout.mesh))
    stacked = 0
    for leaf, where in zip(jax.tree.leaves(shapes), placed, strict=True):
        if leaf.ndim == 5:  # a kernel for each block
            stacked += 1
            assert leaf.shape[0] == 4 and where.shard_shape(leaf.shape)[0] == 4
            assert where.shard_shape(leaf.shape) != leaf.shape
    assert stacked


LAYOUTS: dict[str, tuple[int, tuple[int, int] | None]] = {
    "8": (8, None),
    "2 x 4": (8, (2, 4)),
    "4": (4, None),
    "2 x 2": (4, (2, 2)),
    "4 x 2": (8, (4, 2)),
}
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-2, momentum=0.9)),
    "adam": lambda: training.adam(1e-3),
}
FEW = {("2 x 2", "adam")}


def reported(algorithm: training.Algorithm, num: int = 1, **settings: Any) -> tuple[Any, Any]:
    """The state after 20 steps on so many devices, and the loss of each step."""
    losses: list[float] = []
    state = training.fit(
        algorithm,
        settings.pop("examples", images(100)),
        **{"num_steps": 20, "batch_size": 24, "report_every": 1} | settings,
        report=lambda step, report: losses.append(report["loss"]),
        devices=jax.local_devices()[:num],
    )
    return state, np.array(losses)


@pytest.mark.parametrize(
    ("layout", "optimizer"),
    [
        pair if pair in FEW else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in ((layout, optimizer) for layout in LAYOUTS for optimizer in OPTIMIZERS)
    ],
)
def test_losses_are_those_of_one_device(
    all_cut: None, small_vae: models.VAE, layout: str, optimizer: str
) -> None:
    """Over 20 steps with ragged batches, from a state that is cut and stays so."""
    num, mesh = LAYOUTS[layout]
    algorithm = images_vae(small_vae, OPTIMIZERS[optimizer](), ema_decay=0.9)
    one, losses = reported(algorithm)
    many, losses_of_many = reported(algorithm, num, mapping="fsdp", mesh=mesh)
    np.testing.assert_allclose(losses_of_many, losses, rtol=1e-6)
    parts = num if mesh is None else mesh[1]
    for tree in (many.params, many.average, many.opt_state):
        kernels = [leaf for leaf in jax.tree.leaves(tree) if leaf.shape == (64, 16)]
        assert kernels
        assert all(leaf.sharding.shard_shape((64, 16)) == (64 // parts, 16) for leaf in kernels)
    if optimizer == "sgd":  # Adam divides by gradients that are rounding alone
        chex.assert_trees_all_close(
            jax.tree.map(np.asarray, many.params), jax.tree.map(np.asarray, one.params), atol=1e-6
        )


def squares(params: Any, key: jax.Array, x: jax.Array, step: jax.Array) -> tuple[jax.Array, dict]:
    error = 0.5 * jnp.sum((params["w"].sum(0) - x) ** 2)
    return error, {"error": error}


def init(key: jax.Array, x: jax.Array) -> Any:
    return {"w": 0.1 * jax.random.normal(key, (8, 8))}


def of_one(optimizer: Any, **settings: Any) -> training.Algorithm:
    return training.gradient_descent(init, training.batch_mean(squares), optimizer, **settings)


def of_two() -> training.Algorithm:
    """Two players: the second one follows the first one's parameters."""

    def follow(params: Any, key: Any, x: Any, step: Any) -> tuple[jax.Array, dict]:
        return 0.5 * jnp.sum((params["critic"]["w"] - params["model"]["w"]) ** 2), {}

    first = training.batch_mean(lambda params, *args: squares(params["model"], *args))
    both = {
        "model": training.Player(first, optax.sgd(0.1)),
        "critic": training.Player(training.batch_mean(follow), training.adam(1e-2), accumulate=2),
    }
    return training.players(lambda key, x: {n: init(key, x) for n in both}, both, ema_decay=0.9)


ALGORITHMS: dict[str, Callable[[], training.Algorithm]] = {
    "parts of a batch": lambda: of_one(training.adam(1e-2), accumulate=3, ema_decay=0.9),
    "two players": of_two,
    "a line search": lambda: of_one(optax.lbfgs()),
    "virtual shards": lambda: of_one(optax.sgd(0.1), virtual_shards=8),
    "several seeds": lambda: training.vmapped(
        lambda rate: of_one(optax.sgd(rate)), jnp.array([0.1, 0.2])
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        "parts of a batch",
        "two players",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("a line search", "virtual shards", "several seeds")
        ),
    ],
)
def test_every_algorithm_is_that_of_one_device(all_cut: None, name: str) -> None:
    centers = np.random.default_rng(0).normal(size=(53, 8)).astype(np.float32)
    settings: dict[str, Any] = {"examples": centers, "num_steps": 6, "batch_size": 24}
    algorithm = ALGORITHMS[name]()
    one, losses = reported(algorithm, **settings)
    many, losses_of_many = reported(algorithm, 4, mapping="fsdp", mesh=(2, 2), **settings)
    np.testing.assert_allclose(losses_of_many, losses, rtol=1e-5)
    # Noise of rounding in a gradient of nearly zero is a step of Adam.
    whole = lambda state: [np.asarray(leaf) for leaf in jax.tree.leaves(params_of(state))]
    for a, b in zip(whole(one), whole(many), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def params_of(state: Any) -> Any:
    return state.members.params if isinstance(state, training.Ensemble) else state.params


def larger(hidden: int) -> training.Algorithm:
    """A VAE of 784 pixels with two layers before and after a latent of 32."""
    posterior = posteriors.normal(32)
    vae = models.vae(
        networks.mlp((hidden, hidden), posterior.size),
        networks.mlp((hidden, hidden), (784,)),
        posterior,
        likelihoods.bernoulli(),
        priors.standard_normal(32),
    )
    loss = training.batch_mean(models.negative_elbo(vae))
    return training.gradient_descent(vae.init, loss, training.adam(1e-3))


@pytest.mark.parametrize("hidden", [256, pytest.param(512, marks=pytest.mark.slow)])
@pytest.mark.optimized
def test_memory_of_a_device_falls_with_their_number(hidden: int) -> None:
    """By XLA's own analysis of one step: parameters, two moments, and what a step needs beside."""
    one, eight = (scaling_models.step_memory(larger(hidden), n, (784,), 64) for n in (1, 8))
    parameters = 2 * 784 * hidden + 2 * hidden**2 + 3 * 32 * hidden + 4 * hidden + 2 * 32 + 784
    assert one.state == pytest.approx(4 * 3 * parameters, rel=1e-3)
    assert eight.state < one.state / 6
    assert eight.arguments < one.arguments / 6
    assert hidden < 512 or (eight.state < one.state / 7 and eight.temporary < one.temporary)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a mesh of other devices": ({"mapping": "fsdp", "mesh": "4,1"}, "is of 4 devices; there are 2"),
    "no mesh": ({"mapping": "fsdp", "mesh": "2x1"}, "must be two numbers, such as 4,2"),
    "a mesh of another mapping": ({"mesh": "2,1"}, "belongs to mapping=fsdp; it was pmap"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mesh_that_cannot_work_is_refused(case: str) -> None:
    named, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        Job(devices=2, **named).placement()


def test_a_mesh_says_how_many_devices_there_are() -> None:
    layout = Job(mapping="fsdp", mesh="2,4").placement()
    assert (layout.count, dict(layout.mesh.shape)) == (8, {"data": 2, "model": 4})


def test_virtual_shards_belong_to_other_mappings(data_dir: Path) -> None:
    job = Job(data_dir=str(data_dir), mapping="fsdp", devices=2)
    with pytest.raises(ValueError, match="leave virtual_shards out"):
        prepare(small("digits", virtual_shards=8), job)


@pytest.mark.slow
def test_a_run_starts_from_a_run_whose_state_is_cut(tmp_path: Path, data_dir: Path) -> None:
    """On another mesh and with one step of a learning rate of zero, which only averages anew."""
    settings: dict[str, Any] = {"data_dir": str(data_dir), "mapping": "fsdp", "progress": False}
    config = small("digits", batch_size=16, hidden=(256,), ema_decay=0.9)
    first = jaxvae.train(config, tmp_path / "first", **settings, mesh="1,4")
    still = jaxvae.settings.changed(config, steps=1, learning_rate=0.0)
    other = tmp_path / "other"
    jaxvae.train(still, other, **settings, mesh="2,2", start_from=tmp_path / "first")
    chex.assert_trees_all_close(jaxvae.load(other).params, first.params, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_as_on_one_device(preset: str, all_cut: None, data_dir: Path) -> None:
    """The first loss is that of one device to rounding, whatever the model needs of a batch."""
    one: list[dict[str, Any]] = []
    many: list[dict[str, Any]] = []
    for reports, settings in (
        (one, {}),
        (many, {"mapping": "fsdp", "mesh": "2,2"}),
    ):
        run = prepare(small(preset, batch_size=16), Job(data_dir=str(data_dir), **settings))
        run.fit(num_steps=3, report_every=1, report=lambda step, r, to=reports: to.append(r))
    assert len(many) == 3 and all(np.isfinite(report["loss"]) for report in many)
    assert many[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_critic_takes_the_steps_of_one_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gradient descent: Adam's first steps are signs, which rounding decides near 0."""
    monkeypatch.setattr(training, "adam", lambda *_: optax.sgd(1e-2))
    x = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), np.uint8)
    x = x.repeat(4, 1).repeat(4, 2)
    np.savez(tmp_path / "set.npz", x_train=x, x_test=x[:16])
    config = families.preset(
        "autoencoder-kl",
        **{"dataset": str(tmp_path / "set.npz"), "batch_size": 16},
        **{"hidden": (8, 16), "blocks": 1, "norm_groups": 4},
        **{"critic_hidden": (8,), "critic_start": 3, "optimizer": "sgd", "learning_rate": 1e-5},
    )
    one, cut = (prepare(config, job) for job in (Job(devices=1), Job(devices=4, mapping="fsdp")))
    start = one.init_state().params["critic"]
    ends = [run.fit(num_steps=12, state=run.init_state()).params for run in (one, cut)]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ends[0]["critic"], start)
    assert max(jax.tree.leaves(moved)) > 1e-3
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=3e-7), *ends)
