"""Checkpoints: what is saved comes back bit for bit, the newest and the best are kept, and
damage is never restored.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_training import CENTERS, assert_same, quadratic

from jaxvae import checkpoints, training


def trained_state(steps: int, **settings: Any) -> training.State:
    algorithm = quadratic(optax.adam(0.1), ema_decay=0.9)
    return training.fit(algorithm, CENTERS, num_steps=steps, batch_size=8, **settings)


LIKE: dict[str, Callable[[Any], Any]] = {
    "a state": lambda state: state,
    "shapes": lambda state: jax.eval_shape(lambda: state),
    "arrays of NumPy": lambda state: jax.tree.map(np.asarray, state._replace(key=None))._replace(
        key=state.key
    ),
}


@pytest.mark.parametrize("like", LIKE)
def test_a_state_comes_back_bit_for_bit(tmp_path: Path, like: str) -> None:
    state, totals = trained_state(5), {"sums": {"loss": [1 / 3, 7]}, "skipped": 2}
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(5, state, totals, metric=-1.5)
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert saved.latest == saved.best == 5
        restored, restored_totals = saved.restore(5, LIKE[like](trained_state(0)))
    assert_same(state, restored)
    assert restored_totals == totals
    assert jax.tree.structure(state) == jax.tree.structure(restored)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
    assert jax.random.key_impl(restored.key) == jax.random.key_impl(state.key)


def of_optimizer(optimizer: Any) -> training.State:
    return quadratic(optimizer, ema_decay=0.9).init(jax.random.key(0), CENTERS[0])


def test_a_part_of_a_state_comes_back_whatever_else_was_saved(tmp_path: Path) -> None:
    """The parameters that Adam trained, for a state of another optimizer; as a dict or a state."""
    state = trained_state(5)
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(5, state, {})
    other = of_optimizer(optax.lbfgs())
    shapes = jax.eval_shape(lambda: {"params": other.params, "key": other.key})
    with checkpoints.Checkpoints(tmp_path) as saved:
        with pytest.raises(ValueError, match="another model"):
            saved.restore(5, other)
        part = saved.restore_part(5, shapes)
        rest = saved.restore_part(5, other._replace(opt_state=None, step=None))
    assert_same(part, {"params": state.params, "key": state.key})
    assert_same(rest, state._replace(opt_state=None, step=None))


def test_what_a_checkpoint_holds_is_told_without_reading_it(tmp_path: Path) -> None:
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(5, trained_state(5), {})
        arrays = saved.arrays(5)
        assert arrays["params/model/w"] == arrays["average/model/w"] == ((3,), "float32")
        assert arrays["key"] == ((), "key<fry>")
        assert arrays["opt_state/model/0/mu/w"] == ((3,), "float32")
        with pytest.raises(checkpoints.DamagedError, match="step 6 has no record"):
            saved.arrays(6)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"a": jnp.zeros(2)}, r"first is a, float32\[64, 64\] in the checkpoint and float32\[2\]"),
        ({"c": jnp.zeros(2)}, r"first is c, absent in the checkpoint and float32\[2\] here"),
    ],
)
def test_a_part_that_is_not_there_is_refused(tmp_path: Path, asked: Any, message: str) -> None:
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(1, {"a": jnp.zeros((64, 64)), "b": jnp.zeros(1)}, {})
        with pytest.raises(ValueError, match=f"another model: 1 arrays differ, the {message}"):
            saved.restore_part(1, asked)


def test_only_the_arrays_that_are_asked_for_are_read_and_checked(tmp_path: Path) -> None:
    """Of two arrays one is damaged."""
    values = np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)
    state = {"a": jnp.asarray(values[0]), "b": jnp.asarray(values[1])}
    with checkpoints.Checkpoints(tmp_path / "checkpoints") as saved:
        saved.save(1, state, {})
    harness.damage(tmp_path, 1, "a bit of the arrays")
    with checkpoints.Checkpoints(tmp_path / "checkpoints") as saved:
        with pytest.raises(checkpoints.DamagedError, match="of 1 arrays differ") as error:
            saved.restore(1, state)
        damaged = str(error.value).split("the first is ")[1][0]
        (whole,) = state.keys() - {damaged}
        assert_same(saved.restore_part(1, {whole: state[whole]})[whole], state[whole])
        with pytest.raises(checkpoints.DamagedError, match=f"the first is {damaged}"):
            saved.restore_part(1, {damaged: state[damaged]})


def test_shapes_with_a_placement_are_restored_there(tmp_path: Path) -> None:
    state, place = trained_state(5), NamedSharding(Mesh(jax.devices(), "d"), PartitionSpec())
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state
    )
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(5, state, {})
        restored, _ = saved.restore(5, like)
    assert_same(state, restored)
    assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {place}


def test_a_step_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(3, trained_state(3), {"first": 1}, -1.0)
        saved.save(3, trained_state(3), {"second": 2}, -1.0)
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert saved.restore(3, trained_state(0))[1] == {"first": 1}


def test_training_goes_on_while_a_state_is_written_and_it_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop donates the state to the next step."""
    kept: dict[int, Any] = {}
    over = threading.Event()
    with checkpoints.Checkpoints(tmp_path) as saved:
        write = saved._checkpointer.save
        monkeypatch.setattr(
            saved._checkpointer, "save", lambda *a, **k: over.wait(60) and write(*a, **k)
        )

        def save(moment: training.HookState) -> None:
            if moment.step == 5:
                kept[5] = jax.tree.map(jnp.copy, moment.state)
                saved.save(5, moment.state, moment.totals)

        trained_state(20, hooks=[training.Hook(5, save)])
        assert saved.steps == []
        over.set()
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert_same(saved.restore(5, trained_state(0))[0], kept[5])


def test_a_checkpoint_that_orbax_wrote_from_devices_is_read(tmp_path: Path) -> None:
    """As jaxvae's were until November 2026: compressed, arrays of JAX, with typed keys as such."""
    state = trained_state(5)
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(5, state, {})
    with ocp.StandardCheckpointer() as orbax:
        orbax.save(tmp_path / "5", state, force=True)
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert_same(saved.restore(5, trained_state(0))[0], state)


def test_orbax_alone_reads_a_checkpoint(tmp_path: Path) -> None:
    state = trained_state(5)
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(5, state, {})
    with ocp.StandardCheckpointer() as orbax:
        found = orbax.restore(tmp_path / "5")
    assert_same(found["params"], state.params)
    assert_same(found["key"], jax.random.key_data(state.key))


def test_a_checkpoint_of_eight_devices_goes_on_on_one(tmp_path: Path) -> None:
    state = trained_state(4, devices=jax.local_devices())
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(4, state, {}, 0.0)
    with checkpoints.Checkpoints(tmp_path) as saved:
        one, _ = saved.restore(4, trained_state(0))
        replicate = NamedSharding(Mesh(jax.local_devices(), ("devices",)), PartitionSpec())
        eight, _ = saved.restore(4, jax.device_put(trained_state(0), replicate))
    assert_same(state, one)
    assert_same(state, eight)
    assert one.params["model"]["w"].devices() == {jax.local_devices()[0]}


# copies of the state and parts of each: saved from, restored to
TOPOLOGIES = [((1, 8), (2, 4)), ((2, 2), (1, 8)), ((1, 4), (1, 1)), ((1, 1), (1, 8))]


@pytest.mark.parametrize(("there", "here"), TOPOLOGIES)
def test_a_state_that_is_cut_is_restored_on_other_devices(
    tmp_path: Path, there: tuple[int, int], here: tuple[int, int]
) -> None:
    """Bit for bit and placed as asked, whole or in part; a mesh of one part holds whole arrays."""
    state = large_state(1)
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(1, cut_over(state, there[1], there[0]), TOTALS)
    like = cut_over(large_state(0), here[1], here[0])
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like
    )
    with checkpoints.Checkpoints(tmp_path) as saved:
        restored, totals = saved.restore(1, shapes)
        part = saved.restore_part(1, {"params": like.params})["params"]
    assert totals == TOTALS
    assert_same(restored, state)
    assert_same(part, state.params)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert a.sharding == b.sharding
        assert a.addressable_shards[0].data.shape == b.addressable_shards[0].data.shape


def test_records_of_one_state_are_the_same_however_it_lies(tmp_path: Path) -> None:
    arrays = []
    for name, state in (("one", large_state(1)), ("eight", cut_over(large_state(1), 8))):
        with checkpoints.Checkpoints(tmp_path / name) as saved:
            saved.save(1, state, TOTALS)
        arrays.append(json.loads((tmp_path / name / "1.json").read_text())["record"]["arrays"])
    assert arrays[0] == arrays[1]


def test_training_overwrites_nothing_of_a_state_that_is_being_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next steps reuse the buffers of a state that is cut, while it is written."""
    monkeypatch.setattr(training.placements, "LEAST_BYTES", 1)
    kept: dict[int, Any] = {}
    init = lambda key, x: {"w": jax.random.normal(key, (256, 8))}
    loss = lambda params, key, x, step: (jnp.sum((params["w"].mean(0) - x) ** 2), {})
    algorithm = training.gradient_descent(init, training.batch_mean(loss), optax.sgd(1.0))
    with checkpoints.Checkpoints(tmp_path) as saved:

        def save(moment: training.HookState) -> None:
            kept[moment.step] = jax.tree.map(np.asarray, moment.state.params)
            saved.save(moment.step, moment.state, moment.totals)

        settings: dict[str, Any] = {"num_steps": 6, "batch_size": 8, "mapping": "fsdp"}
        examples, devices = np.ones((23, 8), np.float32), jax.local_devices()[:4]
        state = training.fit(
            algorithm, examples, hooks=[training.Hook(2, save)], devices=devices, **settings
        )
    with checkpoints.Checkpoints(tmp_path) as saved:
        for step in saved.steps:
            assert_same(saved.restore(step, state)[0].params, kept[step])
        assert saved.steps == [4, 6]


OTHERS = {  # parameters of another model -> what is said of the first that differs
    "shape": ({"w": jnp.zeros(4)}, r"float32\[3\] in the checkpoint and float32\[4\] here"),
    "type": (
        {"w": jnp.zeros(3, jnp.bfloat16)},
        r"float32\[3\] in the checkpoint and bfloat16\[3\] here",
    ),
    "one more": (
        {"w": jnp.zeros(3), "b": jnp.zeros(())},
        r"absent in the checkpoint and float32\[\] here",
    ),
    "one less": ({}, r"float32\[3\] in the checkpoint and absent here"),
}


@pytest.mark.parametrize("way", OTHERS)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, way: str) -> None:
    params, message = OTHERS[way]
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(4, {"w": jnp.zeros(3)}, {}, 0.0)
    with (
        checkpoints.Checkpoints(tmp_path) as saved,
        pytest.raises(ValueError, match=f"another model: .*{message}"),
    ):
        saved.restore(4, params)


def large_state(step: int) -> training.State:
    """A state with an array that is too large for Orbax to keep in its index."""
    key = jax.random.key(step)
    params = {"model": {"w": jax.random.normal(key, (64, 64))}}
    return training.State(jnp.int32(step), key, params, None, {}, jnp.int32(0))


TOTALS = {"sums": {"loss": [1 / 3, 7]}, "skipped": 2}


def cut_over(state: Any, parts: int, copies: int = 1) -> Any:
    """The state with its matrices cut over devices, as ``fsdp`` cuts large ones."""
    devices = np.array(jax.devices()[: copies * parts]).reshape(copies, parts)
    mesh = Mesh(devices, ("data", "model"))
    place = lambda leaf: NamedSharding(mesh, PartitionSpec(*["model"] * (leaf.ndim == 2)))
    return jax.device_put(state, jax.tree.map(place, state))


# How the state lies on devices that is saved, and that is restored.
KINDS: dict[str, Callable[[Any], Any]] = {
    "whole": lambda state: state,
    "cut": lambda state: cut_over(state, 4, copies=2),
}


@pytest.fixture(scope="module", params=KINDS)
def three(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with the checkpoints of steps 1, 2 and 3; the first one is the best."""
    workdir, kind = tmp_path_factory.mktemp(request.param), KINDS[request.param]
    with checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        for step in (1, 2, 3):
            saved.save(step, kind(large_state(step)), TOTALS, metric=-float(step))
        assert saved.restore_newest(kind(large_state(0)), pytest.fail)[0] == 3
    (workdir / "kind").write_text(request.param)
    return workdir


@pytest.fixture
def copied(three: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    shutil.copytree(three, tmp_path, dirs_exist_ok=True)
    return tmp_path


def kind_of(workdir: Path) -> Callable[[Any], Any]:
    """How a state lies on the devices that the checkpoints of a workdir are of."""
    kind = workdir / "kind"
    return KINDS[kind.read_text() if kind.exists() else "whole"]


def newest(workdir: Path, **settings: Any) -> tuple[Any, list[str]]:
    """What ``restore_newest`` finds, and what it warns of."""
    warnings: list[str] = []
    like = kind_of(workdir)(large_state(0))
    with checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        return saved.restore_newest(like, warnings.append, **settings), warnings


@pytest.mark.parametrize("way", harness.DAMAGES)
def test_damage_is_named_and_put_aside_and_the_checkpoint_before_it_goes_on(
    copied: Path, way: str
) -> None:
    harness.damage(copied, 3, way)
    left = {path.name for path in (copied / "checkpoints").glob("3*") if "tmp" not in path.name}
    (step, state, totals), (warning,) = newest(copied)
    assert (step, totals) == (2, TOTALS)
    assert_same(state, large_state(2))
    assert "of step 3 " in warning and str(copied / "checkpoints" / "3") in warning
    assert {path.name for path in (copied / "checkpoints" / "damaged").glob("*")} == left
    with checkpoints.Checkpoints(copied / "checkpoints") as saved:
        saved.save(3, kind_of(copied)(large_state(3)), TOTALS, metric=-3.0)
    (step, state, _), warnings = newest(copied)
    assert (step, warnings) == (3, [])
    assert_same(state, large_state(3))


@pytest.mark.parametrize("way", harness.DAMAGES)
def test_where_all_are_damaged_training_does_not_start_over_and_nothing_is_touched(
    copied: Path, way: str
) -> None:
    for step, how in ((1, way), (2, "record gone"), (3, "folder gone")):
        harness.damage(copied, step, how)
    before = harness.contents(copied)
    with pytest.raises(checkpoints.DamagedError, match="holds no checkpoint that can be read"):
        newest(copied)
    assert harness.contents(copied) == before


@pytest.mark.parametrize("place", [0.0, pytest.param(0.5, marks=pytest.mark.slow), 1.0])
def test_a_flipped_bit_is_found_or_changes_nothing(copied: Path, place: float) -> None:
    """In every file of a checkpoint; in the index, the manifest and the record it is found
    wherever it is.
    """
    folder, found = copied / "checkpoints" / "3", set()
    for path in [*folder.rglob("*"), folder.with_name("3.json")]:
        if path.is_file():
            whole = path.read_bytes()
            harness.flip(path, place)
            (step, state, _), warnings = newest(copied, keep_damaged=True)
            assert_same(state, large_state(step))
            assert (step == 3) != bool(warnings)
            found |= {path} if warnings else set()
            path.write_bytes(whole)
    assert {
        next((folder / "d").iterdir()),
        folder / "manifest.ocdbt",
        folder.with_name("3.json"),
    } <= found


@pytest.mark.parametrize("way", ["arrays gone", "folder gone", "a bit of the record"])
def test_a_reader_leaves_damage_where_it_is(copied: Path, way: str) -> None:
    harness.damage(copied, 3, way)
    before = harness.contents(copied)
    found, warnings = newest(copied, keep_damaged=True)
    assert (found[0], len(warnings)) == (2, 1)
    assert harness.contents(copied) == before


class Killed(BaseException):
    pass


def save_and_be_killed(workdir: Path, patch: pytest.MonkeyPatch) -> None:
    """Saves step 1 in a process that is killed when all is written but that it was finished."""
    write = checkpoints.write_record

    def killed(path: Path, record: dict[str, Any]) -> None:
        if record["finished"]:
            raise Killed
        write(path, record)

    saved = checkpoints.Checkpoints(workdir / "checkpoints")
    with patch.context() as context:
        context.setattr(checkpoints, "write_record", killed)
        saved.save(1, large_state(1), TOTALS)
        with pytest.raises(Killed):
            saved.close()
    assert not finished(workdir, 1)


def test_a_first_checkpoint_that_was_never_finished_is_missed_and_training_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert newest(tmp_path) == (None, [])
    save_and_be_killed(tmp_path, monkeypatch)
    harness.damage(tmp_path, 1, "half-written")
    found, (warning,) = newest(tmp_path)
    assert found is None
    assert "of step 1 is missing" in warning
    assert (tmp_path / "checkpoints" / "damaged" / "1.json").exists()
    assert newest(tmp_path) == (None, [])


def finished(workdir: Path, step: int) -> bool:
    return json.loads((workdir / "checkpoints" / f"{step}.json").read_text())["record"]["finished"]


@pytest.mark.parametrize("by", ["save", "restore_newest"])
def test_a_checkpoint_that_was_finished_is_never_taken_for_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Its record says so as soon as anything knows it, so that its loss is no reason to start
    over.
    """
    if by == "save":
        with checkpoints.Checkpoints(tmp_path / "checkpoints") as saved:
            saved.save(1, large_state(1), TOTALS)
    else:
        save_and_be_killed(tmp_path, monkeypatch)
        assert newest(tmp_path)[0][0] == 1
    assert finished(tmp_path, 1)
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    with pytest.raises(checkpoints.DamagedError):
        newest(tmp_path)


def test_damage_of_the_same_step_again_replaces_what_was_put_aside(copied: Path) -> None:
    for _ in range(2):
        harness.damage(copied, 3, "arrays gone")
        assert newest(copied)[0][0] == 2
        with checkpoints.Checkpoints(copied / "checkpoints") as saved:
            saved.save(3, large_state(3), TOTALS)
    assert {path.name for path in (copied / "checkpoints" / "damaged").glob("*")} == {"3", "3.json"}


# Metrics of steps 1, 2, ... -> the best step, the steps that are kept.
METRICS: dict[str, tuple[list[float | None], int | None, list[int]]] = {
    "none at all": ([None, None, None], None, [2, 3]),
    "all": ([-5.0, -1.0, -4.0, -3.0, -2.0], 2, [2, 4, 5]),
    "some": ([None, -2.0, None, -3.0, None], 2, [2, 4, 5]),
    "equal": ([-1.0, -1.0, -1.0, -1.0], 1, [1, 3, 4]),
    "the last": ([-3.0, -2.0, -1.0], 3, [2, 3]),
    "not a number": ([math.nan, -2.0, -3.0, -4.0], 2, [2, 3, 4]),
    "minus infinity": ([-math.inf, -2.0, math.nan, -3.0], 2, [2, 3, 4]),
}


@pytest.mark.parametrize("metrics", METRICS)
def test_which_one_is_best_and_which_are_kept(tmp_path: Path, metrics: str) -> None:
    values, best, kept = METRICS[metrics]
    with checkpoints.Checkpoints(tmp_path) as saved:
        for step, metric in enumerate(values, 1):
            saved.save(step, {"step": jnp.int32(step)}, {}, metric)
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert (saved.best, saved.steps) == (best, kept)


def test_what_was_left_unfinished_is_removed_by_the_next_save(copied: Path) -> None:
    harness.damage(copied, 3, "half-written")
    (copied / "checkpoints" / "7.json.partial").write_text("{")
    with checkpoints.Checkpoints(copied / "checkpoints") as saved:
        saved.save(4, large_state(4), TOTALS)
    names = {path.name for path in (copied / "checkpoints").iterdir()}
    assert names - {"7.json.partial"} == {"1", "1.json", "2", "2.json", "4", "4.json"}


def full(*_: Any, **__: Any) -> None:
    raise ValueError(
        "RESOURCE_EXHAUSTED: Error writing local file [os_error_code='28'] and much more"
    )


def below_a_file(folder: Path, saved: checkpoints.Checkpoints, patch: pytest.MonkeyPatch) -> None:
    folder.write_text("no folder")


def full_for_arrays(
    folder: Path, saved: checkpoints.Checkpoints, patch: pytest.MonkeyPatch
) -> None:
    patch.setattr(saved._checkpointer, "save", full)


def full_for_records(
    folder: Path, saved: checkpoints.Checkpoints, patch: pytest.MonkeyPatch
) -> None:
    patch.setattr(checkpoints, "write_record", full)


@pytest.mark.parametrize("told_by", ["wait", "the next save", "restore_newest", "close"])
@pytest.mark.parametrize(
    "way, reason",
    [
        (below_a_file, "File exists"),
        (full_for_arrays, "No space left on device"),
        (full_for_records, "No space left on device"),
    ],
)
def test_a_write_that_fails_names_the_step_and_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Callable, reason: str, told_by: str
) -> None:
    folder = tmp_path / "checkpoints"
    saved = checkpoints.Checkpoints(folder)
    tell: dict[str, Callable[[], Any]] = {
        "wait": saved.wait,
        "the next save": lambda: saved.save(2, large_state(2), TOTALS),
        "restore_newest": lambda: saved.restore_newest(large_state(0), pytest.fail),
        "close": saved.close,
    }
    way(folder, saved, monkeypatch)
    saved.save(1, large_state(1), TOTALS)
    with pytest.raises(
        OSError, match=f"the checkpoint of step 1 could not be written to {folder}: .*{reason}"
    ):
        tell[told_by]()
    monkeypatch.undo()
    saved.close()
    if folder.is_dir():
        assert newest(tmp_path)[0] is None


def test_a_lost_process_is_not_taken_for_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor is to start the job again, which it would not for an error of the file
    system.
    """

    def lost(*_: Any, **__: Any) -> None:
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")

    with checkpoints.Checkpoints(tmp_path / "checkpoints") as saved:
        monkeypatch.setattr(jax, "device_get", lost)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Gloo"):
            saved.save(1, large_state(1), TOTALS)
