"""Steps and the loop: optimum, players, devices, accumulation, what is not finite, resuming."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harness import equations

from jaxvae import checkpoints, datasets, kl_costs, models, training
from jaxvae.training import loop

CENTERS = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)


def squared(params: Any, key: jax.Array, x: jax.Array, step: jax.Array) -> tuple[jax.Array, dict]:
    """Half the squared distance to x; its mean over examples is least at their mean."""
    error = 0.5 * jnp.sum((params["w"] - x) ** 2)
    return error, {"error": error}


def quadratic(
    optimizer: optax.GradientTransformation, loss: Any = squared, **settings: Any
) -> training.Algorithm:
    init = lambda key, x: {"w": jnp.zeros(3)}
    return training.gradient_descent(init, training.batch_mean(loss), optimizer, **settings)


PREPROCESS = datasets.preprocessing("dynamic", 17)


def images(n: int) -> datasets.Examples:
    """Images of random pixels 0..16, which are binarized within the step."""
    pixels = np.random.default_rng(0).integers(0, 17, (n, 8, 8, 1)).astype(np.uint8)
    return datasets.Examples(pixels, PREPROCESS)


def images_vae(
    vae: models.VAE, optimizer: optax.GradientTransformation, **settings: Any
) -> training.Algorithm:
    loss = training.batch_mean(models.negative_elbo(vae))
    return training.gradient_descent(vae.init, loss, optimizer, **settings)


def assert_same(a: Any, b: Any) -> None:
    """Bit for bit."""
    flat = lambda t: [
        np.asarray(jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v)
        for v in jax.tree.leaves(t)
    ]
    for x, y in zip(flat(a), flat(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 23, 50])
def test_one_epoch_of_reports_is_the_exact_mean_over_all_examples(batch_size: int) -> None:
    """With a learning rate of zero the mean loss of every batch, ragged ones included, is that
    of its examples.
    """
    means, sizes = [], []
    steps = -(-len(CENTERS) // batch_size)
    training.fit(
        quadratic(optax.sgd(0.0)),
        CENTERS,
        num_steps=steps,
        batch_size=batch_size,
        report=lambda step, report: means.append(report["loss"]),
        report_every=1,
    )
    sizes = [
        datasets.batch_rows(0, step, len(CENTERS), batch_size)[1].sum() for step in range(steps)
    ]
    exact = 0.5 * (CENTERS**2).sum(1).mean()
    assert np.average(means, weights=sizes) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("n", [1, 3, 23])
def test_descent_reaches_the_mean_of_all_examples_also_of_fewer_than_a_batch(n: int) -> None:
    state = training.fit(quadratic(optax.sgd(0.5)), CENTERS[:n], num_steps=60, batch_size=23)
    np.testing.assert_allclose(training.trained(state)["w"], CENTERS[:n].mean(0), atol=1e-6)


def preprocessed_by_hand(preprocess: Callable, loss: Any) -> Any:
    """The loss of raw examples, with each key split in two for preprocessing and noise."""

    def of_raw(params: Any, keys: Any, raw: Any, *rest: Any) -> Any:
        pairs = jax.vmap(jax.random.split)(keys)
        return loss(params, pairs[:, 1], jax.vmap(preprocess)(pairs[:, 0], raw), *rest)

    return of_raw


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"virtual_shards": 4}], ids=str)
def test_preprocessing_travels_with_the_examples(
    small_vae: models.VAE, options: dict[str, Any]
) -> None:
    """Bit for bit what it gives where init and loss call it by themselves."""
    settings: dict[str, Any] = {"num_steps": 3, "batch_size": 8}
    optimizer, examples = optax.sgd(0.1), images(20)
    found = training.fit(images_vae(small_vae, optimizer, **options), examples, **settings)
    loss = training.batch_mean(models.negative_elbo(small_vae))
    by_hand = training.gradient_descent(
        lambda key, raw: small_vae.init(key, PREPROCESS(key, raw)),
        preprocessed_by_hand(PREPROCESS, loss),
        optimizer,
        **options,
    )
    assert_same(found, training.fit(by_hand, examples.raw, **settings))


NO_EXAMPLES: dict[str, tuple[Any, str]] = {
    "a name": ("mnist", r"takes a split, .* it was given the text 'mnist'"),
    "a data set": (
        datasets.Dataset("toy", {"train": CENTERS}, 2),
        r"dataset.splits\['train'\].* given a Dataset",
    ),
    "numbers": ([1.0, 2.0], "given a list"),
    "words": (np.array(["a", "b"]), "given a ndarray"),
    "nothing": (None, "given a NoneType"),
    "an empty set": (CENTERS[:0], "N >= 1"),
    "lengths": ((CENTERS, CENTERS[:2]), "one common leading axis"),
}


@pytest.mark.parametrize("case", NO_EXAMPLES)
def test_what_is_no_set_of_examples_is_refused(case: str) -> None:
    source, message = NO_EXAMPLES[case]
    with pytest.raises(ValueError, match=message):
        training.fit(quadratic(optax.sgd(0.1)), source, num_steps=1, batch_size=4)


def test_a_split_trains_as_its_examples() -> None:
    split = SimpleNamespace(examples=datasets.Examples(CENTERS, lambda key, x: 2 * x))
    state = training.fit(quadratic(optax.sgd(0.5)), split, num_steps=60, batch_size=23)
    np.testing.assert_allclose(training.trained(state)["w"], 2 * CENTERS.mean(0), atol=1e-6)


DEVICES = {
    16: [("pmap", 2), ("shard_map", 8)],
    30: [("pmap", 8), ("shard_map", 4)],
}  # batch size: mapping, devices


@pytest.mark.parametrize("batch_size", DEVICES)
def test_the_result_does_not_depend_on_the_devices(small_vae: models.VAE, batch_size: int) -> None:
    """A set of 100 has ragged last batches of both sizes; SGD with momentum and clipping shows a
    gradient's scale.

    Under shard_map's own default, ``check_vma=True``, gradients would be as many times too large as
    there are devices.
    """
    one, reports = fitted(small_vae, 1, batch_size)
    for mapping, devices in DEVICES[batch_size]:
        many, reports_of_many = fitted(small_vae, devices, batch_size, mapping)
        np.testing.assert_allclose(reports_of_many, reports, rtol=1e-6)
        chex.assert_trees_all_close(one, many, atol=1e-6)


def fitted(
    vae: models.VAE,
    devices: int,
    batch_size: int,
    mapping: str = "pmap",
    **settings: Any,
) -> tuple[Any, list]:
    """Parameters, which must be the same on all devices, and every step's loss and norm of the
    gradient.
    """
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-2, momentum=0.9))
    reports: list = []
    state = training.fit(
        images_vae(vae, optimizer, **settings),
        images(100),
        num_steps=12,
        batch_size=batch_size,
        report=lambda step, report: reports.append((report["loss"], report["gradient_norm"])),
        report_every=1,
        devices=jax.local_devices()[:devices],
        mapping=mapping,
    )
    for leaf in jax.tree.leaves(state.params):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == devices
        assert all(np.array_equal(copy, copies[0]) for copy in copies)
    return jax.tree.map(np.asarray, training.trained(state)), reports


@pytest.mark.optimized
def test_virtual_shards_give_the_same_bits_on_any_number_of_devices(
    small_vae: models.VAE,
) -> None:
    """Processes and other numbers of devices are in test_faults."""
    one, reports = fitted(small_vae, 1, 24, virtual_shards=8)
    many, reports_of_many = fitted(small_vae, 8, 24, virtual_shards=8)
    assert reports_of_many == reports
    assert_same(one, many)


@pytest.mark.parametrize("options", [{"accumulate": 4}, {"virtual_shards": 8}], ids=str)
@pytest.mark.parametrize(("mapping", "devices"), [("pmap", 1), ("pmap", 2), ("shard_map", 4)])
def test_parts_give_the_gradient_of_the_whole_batch(
    mapping: str, devices: int, options: dict[str, int]
) -> None:
    settings: dict[str, Any] = {"num_steps": 7, "batch_size": 16, "mapping": mapping}
    whole = training.fit(quadratic(optax.sgd(0.1)), CENTERS, **settings)
    cut = quadratic(optax.sgd(0.1), **options)
    state = training.fit(cut, CENTERS, devices=jax.local_devices()[:devices], **settings)
    chex.assert_trees_all_close(whole.params, jax.tree.map(np.asarray, state.params), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "devices", "batch_size", "message"),
    [
        ({"virtual_shards": 8}, 3, 24, "8 do not divide over 3 devices"),
        ({"virtual_shards": 8}, 1, 23, "batch of 23 .* 8 parts .virtual_shards"),
        ({"accumulate": 3}, 1, 10, "batch of 10 .* 3 parts .accumulate"),
    ],
)
def test_parts_that_do_not_divide_are_refused(
    options: dict[str, int], devices: int, batch_size: int, message: str
) -> None:
    algorithm, own = quadratic(optax.sgd(0.1), **options), jax.local_devices()[:devices]
    with pytest.raises(ValueError, match=message):
        training.fit(algorithm, CENTERS, num_steps=1, batch_size=batch_size, devices=own)


@pytest.mark.parametrize("mapping", training.MAPPINGS)
def test_a_model_may_loop_from_constants_on_many_devices(mapping: str) -> None:
    """Under shard_map's own default, ``check_vma=True``, a scan whose carry starts as a constant
    raises.
    """

    def looped(
        params: Any, key: jax.Array, x: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict]:
        total, _ = jax.lax.scan(
            lambda sum, pair: (sum + (pair[0] - pair[1]) ** 2, None), 0.0, (params["w"], x)
        )
        return 0.5 * total, {}

    settings: dict[str, Any] = {"num_steps": 5, "batch_size": 8}
    one = training.fit(quadratic(optax.sgd(0.1)), CENTERS, **settings)
    many = training.fit(
        quadratic(optax.sgd(0.1), looped),
        CENTERS,
        devices=jax.local_devices()[:4],
        mapping=mapping,
        **settings,
    )
    chex.assert_trees_all_close(one.params, jax.tree.map(np.asarray, many.params), atol=1e-6)


@pytest.mark.parametrize("mapping", training.MAPPINGS)
def test_many_dispatches_on_simulated_devices_do_not_deadlock(mapping: str) -> None:
    """XLA's simulated devices hang when more than about 32 collectives are queued: the loop
    reads as it goes.
    """
    settings: dict[str, Any] = {
        "batch_size": 8,
        "steps_per_call": 1,
        "report_every": 200,
        "mapping": mapping,
    }
    state = training.fit(
        quadratic(optax.sgd(0.1)), CENTERS, num_steps=200, devices=jax.local_devices(), **settings
    )
    assert int(state.step) == 200


COLLECTIVES = ("psum", "pmax", "all_gather")


def talks(equation: Any) -> bool:
    """Whether it is a collective or holds one."""
    within = equations(SimpleNamespace(eqns=[equation]))
    return any(each.primitive.name.startswith(COLLECTIVES) for each in within)


def loops(equation: Any) -> bool:
    """Whether it is a loop with collectives or holds one."""
    within = equations(SimpleNamespace(eqns=[equation]))
    return any(each.primitive.name in ("while", "scan") and talks(each) for each in within)


def loops_beside_collectives(jaxpr: Any) -> list[str]:
    """Equations with collectives of which one loops, and neither waits for the other."""
    behind: dict[Any, frozenset[int]] = {}  # equations with collectives that a variable comes from
    talking: dict[int, Any] = {}
    found = []
    for i, equation in enumerate(jaxpr.eqns):
        inner = [value for value in jax.tree.leaves(equation.params) if hasattr(value, "eqns")]
        found += [pair for each in inner for pair in loops_beside_collectives(each)]
        before = frozenset().union(
            *(behind.get(v, ()) for v in equation.invars if not hasattr(v, "val"))
        )
        if talks(equation):
            beside = [talking[j] for j in talking.keys() - before]
            found += [
                f"{equation.primitive.name} beside {other.primitive.name}"
                for other in beside
                if loops(equation) or loops(other)
            ]
            talking[i], before = equation, before | {i}
        behind |= dict.fromkeys(equation.outvars, before)
    return found


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (optax.sgd(0.1), {}),
        (optax.sgd(0.1), {"accumulate": 2}),
        (optax.sgd(0.1), {"virtual_shards": 4}),
        (optax.lbfgs(), {"virtual_shards": 4}),
    ],
    ids=["plain", "accumulate", "virtual_shards", "line search"],
)
def test_collectives_and_loops_of_them_have_one_order(
    optimizer: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By data: on a CPU XLA knows no other in programs from the compilation cache, and devices that
    begin with different ones wait for each other for ever."""
    programs, run_steps = [], loop.run_steps

    def noted(*settings: Any) -> Callable:
        run = run_steps(*settings)

        def dispatch(state: Any, examples: Any, *host: Any) -> Any:
            programs.append(
                jax.make_jaxpr(lambda state, examples: run(state, examples, *host))(state, examples)
            )
            return run(state, examples, *host)

        return dispatch

    monkeypatch.setattr(loop, "run_steps", noted)
    member = lambda name: training.Player(
        lambda params, *args: training.batch_mean(squared)(params[name], *args),
        optimizer,
        **options,
    )
    both = training.players(
        lambda key, x: {name: {"w": jnp.zeros(3)} for name in "ab"},
        {name: member(name) for name in "ab"},
    )
    training.fit(both, CENTERS, num_steps=1, batch_size=16, devices=jax.local_devices()[:4])
    (program,) = programs
    assert sum(each.primitive.name.startswith(COLLECTIVES) for each in equations(program)) > 3
    assert not loops_beside_collectives(program)


def test_a_mapping_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="pmap, shard_map, fsdp; it was 'vmap'"):
        training.fit(quadratic(optax.sgd(0.1)), CENTERS, num_steps=1, batch_size=4, mapping="vmap")


@pytest.mark.parametrize("devices", [1, 4])
def test_reports_do_not_depend_on_how_steps_are_dispatched(devices: int) -> None:
    reports: dict[int, list] = {}
    for every in (1, 7, 1000):
        seen = reports.setdefault(every, [])
        training.fit(
            quadratic(optax.adam(0.1)),
            CENTERS,
            num_steps=60,
            batch_size=8,
            report=lambda step, r, seen=seen: seen.append((step, r["loss"], r["gradient_norm"])),
            report_every=30,
            devices=jax.local_devices()[:devices],
            hooks=[training.Hook(every, lambda moment: None)],
        )
    assert reports[1] == reports[7] == reports[1000]


@pytest.mark.parametrize("devices", [1, 4])
def test_asked_to_stop_it_saves_everything_and_goes_on_bit_for_bit(devices: int) -> None:
    settings: dict[str, Any] = {"num_steps": 90, "batch_size": 8, "report_every": 30}
    settings |= {"steps_per_call": 4, "devices": jax.local_devices()[:devices]}
    reports: dict[str, dict] = {"whole": {}, "parts": {}}
    moments: list[training.HookState] = []

    def fit(name: str, **more: Any) -> Any:
        report = lambda step, r: reports[name].update({step: r | {"images_per_second": None}})
        return training.fit(quadratic(optax.adam(0.1)), CENTERS, report=report, **settings, **more)

    whole = fit("whole")
    keep = lambda moment: moments.append(
        moment._replace(state=jax.tree.map(jnp.copy, moment.state))
    )
    asked = iter(range(10**6))
    stopped = fit("parts", hooks=[training.Hook(1000, keep)], stop=lambda: next(asked) >= 5)
    (moment,) = moments
    assert moment.stopping == "asked" and 0 < moment.step < 90 and moment.step == int(stopped.step)
    resumed = fit("parts", state=moment.state, totals=moment.totals)
    assert_same(whole, resumed)
    assert reports["parts"] == reports["whole"]


def test_a_hook_that_says_true_ends_the_training_in_order() -> None:
    """Hooks that were not due are called then; a number that a call returns says nothing."""
    seen: list[tuple] = []
    note = lambda moment: seen.append((moment.step, moment.stopping))
    hooks = [
        training.Hook(1000, note),
        training.Hook(4, lambda moment: np.bool_(moment.step >= 12)),
        training.Hook(2, lambda moment: moment.step),
    ]
    settings: dict[str, Any] = {"num_steps": 90, "batch_size": 8}
    state = training.fit(quadratic(optax.sgd(0.1)), CENTERS, hooks=hooks, **settings)
    assert seen == [(12, "finished")]
    assert int(state.step) == 12


@pytest.mark.parametrize("devices", [1, 4])
def test_a_stream_trains_as_the_same_set_in_memory(devices: int) -> None:
    """Bit for bit, in blocks of any number of batches, ragged ones included, and from the middle
    on.
    """
    images = CENTERS[:, None, None]
    stream = datasets.stream({"train": images, "test": images}).splits["train"]
    algorithm = quadratic(optax.adam(0.1))
    settings: dict[str, Any] = {
        "num_steps": 20,
        "batch_size": 8,
        "devices": jax.local_devices()[:devices],
    }
    whole = training.fit(algorithm, images, **settings)
    half = training.fit(algorithm, stream, **settings | {"num_steps": 10}, steps_per_call=4)
    assert_same(whole, training.fit(algorithm, stream, state=half, **settings))


def preprocessed_stream(x: np.ndarray, preprocess: Callable) -> datasets.Stream:
    stream = datasets.stream({"train": x, "test": x}).splits["train"]
    object.__setattr__(stream, "preprocess", preprocess)
    return stream


def test_a_stream_carries_its_preprocessing() -> None:
    noisy = lambda key, x: x + jax.random.normal(key, x.shape)
    images, algorithm = CENTERS[:, None, None], quadratic(optax.sgd(0.1))
    settings: dict[str, Any] = {"num_steps": 5, "batch_size": 8}
    whole = training.fit(algorithm, datasets.Examples(images, noisy), **settings)
    assert_same(whole, training.fit(algorithm, preprocessed_stream(images, noisy), **settings))


class Seen(NamedTuple):
    step: jax.Array
    rows: jax.Array  # [T, B]


def recorder(steps: int, batch_size: int) -> training.Algorithm:
    """An algorithm that writes down which rows of the data set it sees, and checks what is there.

    Every example is its row, so the loss counts those that are not.
    """

    def step(state: Seen, batch: training.Batch, axis_name: str | None) -> tuple[Seen, dict]:
        total = lambda a: a if axis_name is None else jax.lax.psum(a, axis_name)
        real = batch.weight > 0
        seen = jnp.zeros(batch_size, jnp.int32).at[batch.place].set(jnp.where(real, batch.row, 0))
        wrong = total(jnp.sum(jnp.where(real, batch.x.reshape(-1) != batch.row, 0)))
        new = Seen(state.step + 1, state.rows.at[state.step].set(total(seen)))
        return new, {"loss": wrong.astype(jnp.float32), "skipped": jnp.int32(0)}

    zeros = jnp.zeros((steps, batch_size), jnp.int32)
    return training.Algorithm(lambda key, x: Seen(jnp.int32(0), zeros), step)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("mapping", "devices"), [("pmap", 1), ("pmap", 2), ("shard_map", 2), ("fsdp", 2)]
)
def test_a_batch_knows_the_rows_of_its_examples(mapping: str, devices: int, streamed: bool) -> None:
    """Ragged batches included, in which padding has row 0."""
    rows, steps, reports = np.arange(23, dtype=np.float32)[:, None, None, None], 7, []
    source = datasets.stream({"train": rows, "test": rows}).splits["train"] if streamed else rows
    state = training.fit(
        recorder(steps, 8),
        source,
        num_steps=steps,
        batch_size=8,
        report=lambda step, report: reports.append(report["loss"]),
        report_every=steps,
        steps_per_call=3,
        devices=jax.local_devices()[:devices],
        mapping=mapping,
    )
    expected = [datasets.batch_rows(0, step, 23, 8)[0] for step in range(steps)]
    np.testing.assert_array_equal(state.rows, expected)
    assert reports == [0.0]


@pytest.mark.optimized
@pytest.mark.parametrize("cut", [1, 50])
def test_a_run_that_stopped_goes_on_bit_for_bit(small_vae: models.VAE, cut: int) -> None:
    algorithm = images_vae(small_vae, optax.adam(1e-3), ema_decay=0.9)
    examples = images(300)
    reports: dict[str, dict] = {"whole": {}, "parts": {}}
    kept: dict[str, Any] = {}

    def keep(moment: training.HookState) -> None:
        if moment.step == cut:
            kept.update(state=jax.tree.map(jnp.copy, moment.state), totals=moment.totals)

    def fit(name: str, **more: Any) -> Any:
        # The loop keeps one grid of dispatches, whose boundaries include those at which the state
        # is saved.
        report = lambda step, r: reports[name].update({step: r | {"images_per_second": None}})
        hooks = [training.Hook(cut, keep)]
        return training.fit(
            algorithm,
            examples,
            num_steps=100,
            batch_size=64,
            report=report,
            report_every=20,
            hooks=hooks,
            **more,
        )

    whole = fit("whole")
    resumed = fit("parts", **kept)
    assert_same(whole, resumed)
    assert reports["parts"] == {
        step: report for step, report in reports["whole"].items() if step > cut
    }


@pytest.mark.parametrize("mapping", training.MAPPINGS)
def test_a_state_that_is_passed_in_is_not_consumed(mapping: str) -> None:
    """device_put aliases its source on the first device, and donating the copy would delete it."""
    algorithm = quadratic(optax.sgd(0.1))
    first = algorithm.init(jax.random.key(0), CENTERS[0])
    for state in (first, training.replicate(first, jax.local_devices())):
        for devices in (1, 8):
            own = jax.local_devices()[:devices]
            training.fit(
                algorithm,
                CENTERS,
                num_steps=3,
                batch_size=8,
                state=state,
                devices=own,
                mapping=mapping,
            )
        np.testing.assert_array_equal(state.params["model"]["w"], np.zeros(3))


def poisoned(bad: set[int], where: str) -> Any:
    """The squared loss, with a term or only the gradient not finite at some steps."""

    def loss(params: Any, key: jax.Array, x: jax.Array, step: jax.Array) -> tuple[jax.Array, dict]:
        hit = jnp.isin(step, jnp.array(sorted(bad)))
        value, terms = squared(params, key, x, step)
        if where == "gradient":  # the derivative of sqrt at zero is infinite
            offset = jnp.where(hit, 0.0, 1.0)
            root = jnp.sqrt(params["w"] - jax.lax.stop_gradient(params["w"]) + offset).sum()
            return value + root - jax.lax.stop_gradient(root) - params["w"].sum() / 2, terms
        broken = jnp.where(hit, jnp.nan, 0.0)
        return value + broken, terms | {"error": terms["error"] + broken, "other": value}

    return loss


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(("where", "norm"), [("term", True), ("gradient", True), ("term", False)])
@pytest.mark.parametrize("adam", [optax.adam, training.adam], ids=["from outside", "by itself"])
def test_an_update_that_is_not_finite_is_skipped_and_counted(
    adam: Callable, where: str, norm: bool, devices: int
) -> None:
    reports: list[dict] = []
    algorithm = quadratic(adam(0.1), poisoned({0, 4, 9}, where), ema_decay=0.5, gradient_norm=norm)
    state = training.fit(
        algorithm,
        CENTERS,
        num_steps=20,
        batch_size=len(CENTERS),
        report=lambda step, r: reports.append(r),
        report_every=10,
        devices=jax.local_devices()[:devices],
    )
    clean = training.fit(
        quadratic(optax.adam(0.1), ema_decay=0.5), CENTERS, num_steps=17, batch_size=len(CENTERS)
    )
    chex.assert_tree_all_finite((state.params, state.average, state.opt_state))
    chex.assert_trees_all_close(state.params, clean.params, atol=1e-6)
    assert [report["skipped"] for report in reports] == [3, 0]
    assert all(
        np.isfinite(report["loss"]) and ("gradient_norm" in report) == norm for report in reports
    )


@pytest.mark.parametrize("devices", [1, 2])
def test_what_accelerators_run_does_the_same(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selections in place of branches, whole dispatches of a program of their own, and one
    queued behind another.
    """

    def trained() -> Any:
        algorithm = quadratic(optax.adam(0.1), poisoned({3, 4, 25}, "term"), ema_decay=0.5)
        counts = {
            "num_steps": 45,
            "batch_size": 4,
            "steps_per_call": 20,
            "seconds_per_call": float("inf"),
        }
        state = training.fit(algorithm, CENTERS, devices=jax.local_devices()[:devices], **counts)
        return state.params, state.average, state.opt_state, state.skipped

    on_cpu = trained()
    monkeypatch.setattr(training.devices.Placement, "on_cpu", False)
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *args, default, **others: default(*args)
    )
    chex.assert_trees_all_close(on_cpu, trained(), rtol=1e-5)


RATES = {"constant": 0.1, "schedule": optax.linear_schedule(0.3, 0.1, 5)}


@pytest.mark.parametrize("decays", [(0.9, 0.999), (0.5, 0.9)], ids=str)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_adam_is_that_of_optax_and_skips_what_is_not_finite(
    rate: str, decays: tuple, dtype: Any
) -> None:
    """States too, so that one goes on where the other stopped; skipped updates leave every bit
    as it was.
    """
    ours, theirs = (module.adam(RATES[rate], *decays) for module in (training, optax))
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 4), "b": (4,), "c": (), "none": (0,)}
    params = mine = {
        name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()
    }
    own, state = ours.init(params), theirs.init(params)
    descend = jax.jit(lambda *args: training.optimizers.descend(ours, *args))
    for step in range(8):
        size = {
            "w": 1e-3,
            "b": 1e-7,
            "c": 1.0,
            "none": 1.0,
        }  # beside those of b epsilon is not small
        grads = {
            name: jnp.asarray(size[name] * rng.normal(size=shape), dtype)
            for name, shape in shapes.items()
        }
        if step in (0, 3):
            broken = jax.tree.map(lambda g, step=step: g * (np.nan if step else np.inf), grads)
            skipped = descend(broken, own, mine, jnp.bool_(False))
            chex.assert_trees_all_equal(skipped, (mine, own))
        updates, state = theirs.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        mine, own = descend(grads, own, mine, jnp.bool_(True))
    chex.assert_trees_all_equal_shapes_and_dtypes((mine, own), (params, state))
    half = dtype == jnp.bfloat16
    chex.assert_trees_all_close(own, state, rtol=0.05 if half else 1e-5, atol=0)
    chex.assert_trees_all_close(
        mine, params, rtol=0.01 if half else 1e-5, atol=0.005 if half else 0
    )


@pytest.mark.parametrize("adam", [optax.adam, training.adam], ids=["from outside", "by itself"])
def test_a_gradient_that_nobody_looks_at_stops_the_run_too(adam: Callable) -> None:
    """Without the norm the loss alone is looked at: it is not finite some steps after the
    gradient was not.
    """
    algorithm = quadratic(adam(0.1), poisoned({20}, "gradient"), gradient_norm=False)
    with pytest.raises(
        training.NotFiniteError, match=r"step 2[12]: error and loss .* 5 updates in a row"
    ):
        training.fit(
            algorithm, CENTERS, num_steps=100, batch_size=4, steps_per_call=8, max_skipped=5
        )


def test_a_row_of_them_stops_the_run_and_names_step_and_term() -> None:
    algorithm = quadratic(optax.adam(0.1), poisoned({2, *range(30, 60)}, "term"))
    with pytest.raises(
        training.NotFiniteError, match=r"step 31: error and loss .* 5 updates in a row"
    ):
        training.fit(
            algorithm, CENTERS, num_steps=100, batch_size=4, steps_per_call=8, max_skipped=5
        )


A = np.random.default_rng(1).normal(size=(24, 3)).astype(np.float32) * [1, 3, 10]
LINES = {"a": A.astype(np.float32), "b": np.sin(np.arange(24, dtype=np.float32))}


def least_squares(optimizer: Any, **options: Any) -> training.Algorithm:
    """Lines fitted to points, badly conditioned."""
    loss = lambda w, key, x, step: (0.5 * (x["a"] @ w - x["b"]) ** 2, {})
    init = lambda key, x: jnp.zeros(3)
    return training.gradient_descent(init, training.batch_mean(loss), optimizer, **options)


@pytest.mark.parametrize(
    ("mapping", "devices", "options"),
    [
        ("pmap", 1, {}),
        ("pmap", 2, {}),
        ("shard_map", 2, {}),
        ("pmap", 1, {"accumulate": 4}),
        ("pmap", 2, {"virtual_shards": 4}),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.lbfgs(),
        optax.chain(
            optax.scale_by_lbfgs(),
            optax.scale(-1.0),
            optax.scale_by_backtracking_linesearch(10, store_grad=True),
        ),
    ],
    ids=["zoom", "backtracking"],
)
def test_lbfgs_finds_the_least_squares(
    optimizer: Any, mapping: str, devices: int, options: dict[str, int]
) -> None:
    """Its line search asks for losses and gradients of the whole batch, within the step."""
    state = training.fit(
        least_squares(optimizer, **options),
        LINES,
        num_steps=15,
        batch_size=24,
        devices=jax.local_devices()[:devices],
        mapping=mapping,
    )
    best, *_ = np.linalg.lstsq(LINES["a"].astype(np.float64), LINES["b"])
    np.testing.assert_allclose(training.trained(state), best, atol=2e-5)


def test_two_line_searches_over_devices_wait_for_each_other() -> None:
    """Two players with L-BFGS, of which one follows the other."""
    mean = lambda f: training.batch_mean(lambda w, key, x, step: (f(w, x["b"]), {}))
    members = {
        "a": training.Player(mean(lambda w, b: (w["a"] - w["b"]) ** 2), optax.lbfgs()),
        "b": training.Player(mean(lambda w, b: (w["b"] - b) ** 2), optax.lbfgs()),
    }
    algorithm = training.players(lambda key, x: {"a": jnp.zeros(()), "b": jnp.ones(())}, members)
    settings: dict[str, Any] = {"num_steps": 6, "batch_size": 24}
    state = training.fit(algorithm, LINES, devices=jax.local_devices()[:2], **settings)
    found = training.trained_players(state)
    assert found["a"] == pytest.approx(LINES["b"].mean(), abs=1e-5)
    assert found["b"] == pytest.approx(LINES["b"].mean(), abs=1e-5)


def test_a_plateau_lowers_the_rate() -> None:
    """The loss is constant, so each second step of no gain halves the scale of the updates."""
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2)
    flat = lambda params, key, x, step: (1.0 + 0.0 * params["w"].sum(), {})
    state = training.fit(
        quadratic(optax.chain(optax.sgd(0.1), plateau), flat), CENTERS, num_steps=7, batch_size=23
    )
    assert float(optax.tree.get(state.opt_state["model"], "scale")) == 0.5**3


def test_an_optimizer_that_asks_for_something_else_is_refused() -> None:
    plain = optax.sgd(0.1)
    update = lambda grads, state, params, *, hessian, **_: plain.update(grads, state)
    asking = optax.GradientTransformationExtraArgs(plain.init, update)
    with pytest.raises(ValueError, match=r"'hessian'.*training gives value, grad and value_fn"):
        training.fit(quadratic(asking), CENTERS, num_steps=1, batch_size=4)


def test_debug_nans_names_the_operation() -> None:
    broken = lambda params, key, x, step: (jnp.log(params["w"].sum() - 1.0), {})
    algorithm = quadratic(optax.sgd(0.1), broken)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="encountered in log"):
        training.fit(algorithm, CENTERS, num_steps=3, batch_size=4)


@pytest.mark.slow
def test_nothing_need_be_compiled() -> None:
    settings: dict[str, Any] = {"num_steps": 2, "batch_size": 4}
    compiled = training.fit(quadratic(optax.sgd(0.1)), CENTERS, **settings)
    with jax.disable_jit():
        state = training.fit(quadratic(optax.sgd(0.1)), CENTERS, **settings)
    chex.assert_trees_all_close(compiled.params, state.params, rtol=1e-5)


def test_players_descend_their_own_losses_in_their_own_parameters() -> None:
    """min_a (a - b)^2, min_b (b - 3)^2: the first follows the second, which does not see the
    first.
    """
    own = lambda f: training.batch_mean(
        lambda params, key, x, step: (f(params["a"], params["b"]), {})
    )
    members = {
        "a": training.Player(own(lambda a, b: (a - b) ** 2), optax.sgd(0.1)),
        "b": training.Player(own(lambda a, b: (b - 3.0) ** 2), optax.sgd(0.1)),
    }
    algorithm = training.players(lambda key, x: {"a": jnp.zeros(()), "b": jnp.ones(())}, members)
    reports: list[dict] = []
    state = training.fit(
        algorithm,
        CENTERS,
        num_steps=200,
        batch_size=4,
        report=lambda step, r: reports.append(r),
        report_every=200,
    )
    assert float(state.params["a"]) == pytest.approx(3.0, abs=1e-4)
    assert float(state.params["b"]) == pytest.approx(3.0, abs=1e-4)
    assert {"a/loss", "b/loss", "a/gradient_norm", "loss"} <= reports[0].keys()
    with pytest.raises(ValueError, match="players are"):
        training.players(lambda key, x: {"a": 0.0}, members).init(jax.random.key(0), CENTERS[0])


def test_a_moving_average_is_a_player() -> None:
    """SGD with step 1 - gamma on (N - n)^2 / 2 is N <- gamma N + (1 - gamma) n."""
    gamma, n = 0.9, CENTERS.mean(0)
    follow = lambda params, key, x, step: (0.5 * jnp.sum((params["codes"] - x) ** 2), {})
    codes = training.Player(training.batch_mean(follow), optax.sgd(1 - gamma))
    algorithm = training.players(lambda key, x: {"codes": jnp.zeros(3)}, {"codes": codes})
    state = training.fit(algorithm, CENTERS, num_steps=5, batch_size=23)
    np.testing.assert_allclose(state.params["codes"], n * (1 - gamma**5), rtol=1e-5)


def warm_state(*names: str, size: int = 3, ema_decay: float = 0.5, value: float = 0.0) -> Any:
    members = {name: training.Player(lambda *_: None, optax.adam(0.1)) for name in names}
    init = lambda key, x: {name: {"w": jnp.full(size, value)} for name in names}
    return training.players(init, members, ema_decay).init(jax.random.key(0), CENTERS[0])


def test_a_fresh_state_starts_from_the_parameters_of_another() -> None:
    fresh = warm_state("model", "critic")
    other = warm_state("model", "flow", value=1.0)
    other = other._replace(step=jnp.int32(7), average=jax.tree.map(lambda a: a + 1.0, other.params))
    ones, zeros = {"w": jnp.ones(3)}, {"w": jnp.zeros(3)}
    state = training.start_from(fresh, other)
    assert_same(state.params, {"critic": zeros, "model": ones})
    assert_same(
        training.trained_players(state), {"critic": zeros, "model": {"w": jnp.full(3, 2.0)}}
    )
    assert_same(
        state._replace(params=None, average=None), fresh._replace(params=None, average=None)
    )
    assert_same(training.start_from(fresh, {"model": ones}).average["model"], ones)
    without = training.start_from(warm_state("model", ema_decay=0.0), other)
    assert without.average is None
    assert_same(training.trained(without), ones)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"model": {"w": jnp.zeros(4)}},
            r"first is w, float32\[4\] then and float32\[3\] now",
        ),
        ({"model": {}}, r"first is w, absent then and float32\[3\] now"),
        ({"w": jnp.zeros(3)}, r"the state has \['model'\], .* has \['w'\]"),
    ],
)
def test_parameters_of_another_model_are_no_start(other: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training.start_from(warm_state("model"), other)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_sweep_is_its_members_trained_alone(devices: int) -> None:
    """Learning rates of gradient descent, and as many seeds of a loss whose noise is the
    member's own.
    """
    noisy = lambda params, key, x, step: (
        0.5 * jnp.sum((params["w"] - x - jax.random.normal(key, (3,))) ** 2),
        {},
    )
    kl_costs = jnp.array([0.1, 0.4, 0.7])
    make = lambda rate: quadratic(optax.sgd(rate), noisy)
    settings = {"num_steps": 7, "batch_size": 6, "devices": jax.local_devices()[:devices]}
    reports: list[dict] = []
    vmapped = training.fit(
        training.vmapped(make, kl_costs),
        CENTERS,
        report=lambda step, r: reports.append(r),
        report_every=7,
        **settings,
    )
    keys = jax.random.split(jax.random.key(0), 3)
    for s, rate in enumerate(kl_costs):
        alone = training.fit(
            make(rate), CENTERS, state=make(rate).init(keys[s], CENTERS[0]), **settings
        )
        found = training.trained(training.member(vmapped, s))["w"]
        np.testing.assert_allclose(found, training.trained(alone)["w"], rtol=1e-5)
    each = [reports[0][f"loss[{s}]"] for s in range(3)]
    assert reports[0]["loss"] == pytest.approx(np.mean(each), rel=1e-6) and len(set(each)) == 3


def test_the_moving_average_is_the_closed_form() -> None:
    algorithm = quadratic(optax.sgd(0.2), ema_decay=0.99)
    state = algorithm.init(jax.random.key(0), CENTERS[0])
    batch = training.Batch(jnp.asarray(CENTERS), jnp.arange(23), jnp.full(23, 1 / 23))
    expected = np.zeros(3)
    for t in range(5):
        state, _ = algorithm.step(state, batch, None)
        decay = min(0.99, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["model"]["w"])
    np.testing.assert_allclose(training.trained(state)["w"], expected, rtol=1e-5)


def test_noise_depends_on_step_and_place_alone() -> None:
    """The noise of example i at step t is fold_in(fold_in(key, t), i)."""
    seen = lambda params, key, x, step: (jax.random.normal(key) + 0.0 * params["w"].sum(), {})
    algorithm = quadratic(optax.sgd(0.1), seen)
    state = algorithm.init(jax.random.key(0), CENTERS[0])
    batch = training.Batch(
        jnp.asarray(CENTERS[:4]), jnp.array([0, 1, 2, 3]), jnp.array([0.0, 0.0, 1.0, 0.0])
    )
    state = state._replace(step=jnp.int32(7))
    _, metrics = algorithm.step(state, batch, None)
    key = jax.random.fold_in(jax.random.fold_in(state.key, 7), 2)
    assert float(metrics["loss"]) == pytest.approx(float(jax.random.normal(key)), rel=1e-6)


@pytest.mark.slow
def test_free_bits_take_the_maximum_after_the_mean_over_all_devices(
    small_vae: models.VAE,
) -> None:
    examples = images(37)
    losses = {}
    for devices in (1, 4):
        loss = models.with_kl_cost(small_vae, kl_costs.free_bits(0.02, groups=2))
        algorithm = training.gradient_descent(small_vae.init, loss, optax.sgd(1e-2))
        reports: list[dict] = []
        training.fit(
            algorithm,
            examples,
            num_steps=6,
            batch_size=24,
            report=lambda step, r, reports=reports: reports.append(r),
            report_every=1,
            devices=jax.local_devices()[:devices],
        )
        losses[devices] = [[r["loss"], r["kl"], r["reconstruction"]] for r in reports]
    np.testing.assert_allclose(losses[1], losses[4], rtol=1e-5)
    loss, kl, reconstruction = np.transpose(losses[1])
    rate = loss + reconstruction
    assert (rate >= np.maximum(kl, 0.04) - 1e-5).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"report_every": 0}, "must be at least 1"),
        ({"steps_per_call": -1}, "steps_per_call must be at least 1"),
        ({"hooks": [training.Hook(0, print)]}, "a period of reports or hooks must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training.fit(
            quadratic(optax.sgd(0.1)), CENTERS, **({"num_steps": 1, "batch_size": 4} | settings)
        )


class VariantsTest(chex.TestCase):
    """A step gives the same numbers with and without jit, and mapped over devices."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_step(self) -> None:
        algorithm = quadratic(optax.sgd(0.1))
        state = algorithm.init(jax.random.key(0), CENTERS[0])
        batch = training.Batch(jnp.asarray(CENTERS), jnp.arange(23), jnp.full(23, 1 / 23))
        step = self.variant(
            lambda w: (
                algorithm.step(state._replace(params={"model": {"w": w}}), batch, None)[0].params
            )
        )
        w = step(jnp.ones(3))["model"]["w"]
        np.testing.assert_allclose(w, 0.9 + 0.1 * CENTERS.mean(0), rtol=1e-5)


class Read:
    """An array of a device that counts how often it is copied to the host."""

    def __init__(self, array: jax.Array, copies: list[int]):
        self.array, self.copies = array, copies

    def __array__(self, *args: Any, **settings: Any) -> np.ndarray:
        self.copies.append(1)
        return np.asarray(self.array)


def test_a_longer_training_is_traced_no_more_and_meets_the_host_once_in_a_hundred_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What keeps it fast, without a clock: one trace for dispatches of any length, also in the next
    training; for each dispatch the rows, weights and votes go to the device, and each metric comes
    back once.
    """
    traces, dispatches, sent, copies, run_steps = [], [], [], [], loop.run_steps

    def counted(*settings: Any) -> Callable:
        run = run_steps(*settings)

        def counting(state: Any, examples: Any, count: int, *rest: Any) -> Any:
            dispatches.append(count)
            held = jax.tree.leaves((state, examples))
            sent.append(len(rest) + sum(not isinstance(leaf, jax.Array) for leaf in held))
            state, metrics, votes = run(state, examples, count, *rest)
            return (
                state,
                {term: Read(values, copies) for term, values in metrics.items()},
                Read(votes, copies),
            )

        return counting

    def loss(*args: Any) -> Any:
        traces.append(1)
        return squared(*args)

    monkeypatch.setattr(loop, "run_steps", counted)
    algorithm = quadratic(optax.sgd(0.1), loss)
    fit = lambda steps: training.fit(
        algorithm,
        CENTERS,
        num_steps=steps,
        batch_size=4,
        report_every=100,
        seconds_per_call=float("inf"),
    )
    fit(7)
    once = len(traces)
    fit(1000)
    assert len(traces) == once
    assert dispatches == [7, *[100] * 10]
    assert set(sent) == {3}
    assert len(copies) == len(dispatches) * len(
        ("error", "loss", "gradient_norm", "skipped", "votes")
    )


@pytest.mark.parametrize("room", [training.algorithms, training.loop, checkpoints])
def test_examples_of_docstrings_run(room: Any) -> None:
    found = doctest.testmod(room)
    assert found.attempted and not found.failed


def test_frozen_parameters_are_seen_by_losses_and_stay() -> None:
    """Also under decay of weights and a moving average."""
    loss = lambda params, key, x, step: ((params["moved"] * params["fixed"] - x) ** 2, {})
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    member = training.Player(training.batch_mean(loss), optimizer)
    start = {"moved": jnp.array(2.0), "fixed": jnp.array(3.0)}
    algorithm = training.players(lambda key, x: start, {"moved": member}, 0.5, frozen=("fixed",))
    state = algorithm.init(jax.random.key(0), jnp.zeros(()))
    batch = training.Batch(jnp.array([1.0, 3.0]), jnp.arange(2), jnp.full(2, 0.5))
    state, metrics = jax.jit(algorithm.step, static_argnums=2)(state, batch, None)
    assert metrics["loss"] == pytest.approx((25 + 9) / 2)
    assert state.params["fixed"] == 3 and state.average["fixed"] == 3
    assert state.params["moved"] < 2 and set(state.opt_state) == {"moved"}
    with pytest.raises(ValueError, match="the players are"):
        training.players(lambda key, x: start, {"moved": member}).init(jax.random.key(0), 0.0)
