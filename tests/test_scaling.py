"""What data parallelism costs: the estimate's closed forms, the bytes of the compiled step, the
script as it is run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import optimize

from experiments import model_estimates, scaling
from jaxvae import training
from jaxvae.command_line import run_function

# The larger model is the tiny one, so that what one has compiled serves the other.
QUICK = [
    "--hidden",
    "16",
    "--pixels",
    "64",
    "--latent",
    "2",
    "--global-batch",
    "8",
    "--per-device-batch",
    "4",
]


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> dict[str, Any]:
    """Runs the script in this process and returns its JSON."""
    files = ["--json", str(folder / "new" / "scaling.json"), "--plot", str(folder / "scaling.png")]
    monkeypatch.setattr(sys, "argv", ["scaling.py", *QUICK, *files, *more])
    run_function(scaling.scale)
    return json.loads((folder / "new" / "scaling.json").read_text())


@pytest.mark.parametrize(
    "devices, size, bandwidth, latency, seconds",
    [
        (1, 1e9, 1e9, 1e-3, 0.0),
        (2, 4e6, 1e9, 0.0, 4e-3),  # each device sends its half twice
        (4, 4e6, 1e9, 1e-6, 6 * (1e-3 + 1e-6)),  # six messages of a quarter each
        (1e12, 4e6, 1e9, 0.0, 8e-3),  # twice the whole, however many devices
    ],
)
def test_ring_all_reduce(
    devices: float, size: float, bandwidth: float, latency: float, seconds: float
) -> None:
    assert scaling.all_reduce_seconds(devices, size, bandwidth, latency) == pytest.approx(
        seconds, rel=1e-9
    )


@pytest.mark.parametrize(
    "compute, passage, latency, devices",
    [
        (4.0, 1.0, 0.0, 3.0),  # 4 / 3 = 2 * 2 / 3
        (3.0, 0.5, 0.5, 2.0),  # 3 / 2 = 2 (1 / 4 + 1 / 2)
        (4.0, 0.0, 1.0, 2.0),  # 4 / 2 = 2
        (0.0, 1.0, 1.0, 1.0),
        (1e6, 1.0, 0.0, 1 + 5e5),  # without latency 1 + C / 2v
    ],
)
def test_break_even_devices_by_hand(
    compute: float, passage: float, latency: float, devices: float
) -> None:
    assert scaling.break_even_devices(10 * compute, 7 * passage, 10, 7, latency) == pytest.approx(
        devices, rel=1e-9
    )


@pytest.mark.parametrize("latency", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("flops", [1e6, 1e10, 1e15])
def test_break_even_is_the_root_of_the_ring_s_equation(flops: float, latency: float) -> None:
    """Computing on n devices takes as long as 2 (n - 1) messages of a part in n, by SciPy."""
    size, speed, bandwidth, batch = 4e7, 1e14, 2e11, 512
    computing = lambda n: flops / (n * speed)
    sending = lambda n: 2 * (n - 1) * (size / n / bandwidth + latency)
    n = optimize.brentq(lambda n: computing(n) - sending(n), 1.0, 1e9, xtol=1e-12, rtol=1e-14)
    devices = scaling.break_even_devices(flops, size, speed, bandwidth, latency)
    assert devices == pytest.approx(n, rel=1e-6)
    if n > 1.01:  # on hardly more than one device nearly nothing is sent, which rounding decides
        on_each = scaling.break_even_batch(n, flops / batch, size, speed, bandwidth, latency)
        assert on_each == pytest.approx(batch / n, rel=1e-6)


@pytest.mark.parametrize("parameters", [1e3, 1e9])
def test_break_even_batch_of_fully_connected_layers_does_not_depend_on_the_model(
    parameters: float,
) -> None:
    speed, bandwidth = 1e14, 2e11
    batch = scaling.break_even_batch(1e9, 6 * parameters, 4 * parameters, speed, bandwidth)
    assert batch == pytest.approx(4 * speed / (3 * bandwidth), rel=1e-6)


def test_bytes_in_a_text_of_hlo() -> None:
    program = """
  %psum.1 = f32[] all-reduce(%constant.2), channel_id=1, to_apply=%add
  %all-reduce = (f32[16,4]{1,0:T(8,128)}, /*index=1*/bf16[3]{0}, pred[], s32[2]{0}) \
all-reduce(%a, %b, %c, %d), x=1
  %ars = f64[5]{0} all-reduce-start(%e), channel_id=2
  %ard = f64[5]{0} all-reduce-done(%ars)
  %get-tuple-element.1 = f32[16,4]{1,0} get-tuple-element(%all-reduce), index=0
"""
    assert scaling.all_reduces(program) == [4, 256 + 6 + 1 + 8, 40]


@pytest.fixture(scope="module")
def tiny() -> scaling.Model:
    """The tiny model, 64-16-2-16-64."""
    return scaling.build(scaling.Settings(), (16,), 64, 2)


def test_a_step_sends_gradients_and_metrics(tiny: scaling.Model) -> None:
    """Once a step: gradients, loss and its two terms in one all-reduce, and a constant that
    psum's transpose leaves.
    """
    assert tiny.parameters == (64 * 16 + 16) + (16 * 4 + 4) + (2 * 16 + 16) + (16 * 64 + 64)
    program = scaling.step_program(tiny, jax.devices()[:4], 8)
    assert sorted(scaling.all_reduces(program)) == [4, 4 * (tiny.parameters + 3)]


def test_pmap_sends_the_same(tiny: scaling.Model) -> None:
    step = lambda state, batch: tiny.algorithm.step(state, batch, scaling.AXIS)
    state, batch = tiny.shapes(8)
    halves = jax.tree.map(lambda s: jax.ShapeDtypeStruct((2, 4, *s.shape[1:]), s.dtype), batch)
    mapped = jax.pmap(
        step, scaling.AXIS, in_axes=(None, 0), out_axes=None, devices=jax.devices()[:2]
    )
    program = mapped.lower(state, halves).compile().as_text()
    assert sorted(scaling.all_reduces(program)) == [4, 4 * (tiny.parameters + 3)]


@pytest.mark.slow
def test_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(
        monkeypatch,
        tmp_path,
        "--devices",
        "2",
        "1",
        "--rounds",
        "3",
        "--steps",
        "2",
        "--mappings",
        "pmap",
    )
    assert result["settings"]["devices"] == [1, 2]
    assert {"platform", "device_kind", "simulated", "cpus", "processes", "versions"} <= result[
        "machine"
    ].keys()
    places = {
        (row["model"], row["scaling"], row["mapping"], row["devices"], row["batch"])
        for row in result["measurements"]
    }
    strong = {("strong", "jit", 1, 8), ("strong", "pmap", 2, 8)}
    weak = {("weak", "jit", 1, 4), ("weak", "pmap", 2, 8)}
    assert places == {(model, *place) for model in ("tiny", "larger") for place in strong | weak}
    for row in result["measurements"]:
        assert len(row["rounds_ms"]) == 3
        assert row["step_ms"]["median"] == pytest.approx(np.median(row["rounds_ms"]))
        assert row["devices"] > 1 or (row["throughput"]["min"], row["added_ms"]["max"]) == (
            1.0,
            0.0,
        )
    for far in result["invariance"].values():
        assert far["loss"] < 1e-5 and far["parameters"] < 1e-4 and far["steps"] == 8
    for name, sent in result["communication"].items():
        assert sent["gradient_bytes"] == 4 * result["models"][name]["parameters"]
        assert sent["bytes"] == sent["gradient_bytes"] + 16
    assert len(result["estimate"]) == len(scaling.LINKS)
    with Image.open(tmp_path / "scaling.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
    printed = capsys.readouterr().out
    assert (
        "What simulation can say, exactly" in printed
        and "What it cannot say: how fast a pod is" in printed
    )
    assert all(sentence in printed for sentence in result["statement"])


def test_the_estimate_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, tmp_path, "--rounds", "0", "--hidden", "4096")
    assert (result["measurements"], result["communication"], result["invariance"]) == ([], {}, {})
    dense = 2 * (64 * 4096 + 4096 * 4 + 2 * 4096 + 4096 * 64)
    assert 2 * dense < result["models"]["larger"]["step_flops"] / 8 <= 3 * dense


HAND = model_estimates.State([((256, 512), 4), ((512,), 4)], [], 1e6)  # 524,288 and 2,048 bytes


@pytest.mark.parametrize(
    ("copies", "parts", "expected"),
    [
        (1, 1, 0.0),
        (4, 1, 1.5 * 526_336),  # 2 (n - 1) / n of all gradients
        (1, 4, 2.25 * 524_288 + 1.5 * 2_048),
        (2, 4, 2.25 * 524_288 + 524_288 / 4 + 1.75 * 2_048),
    ],
)
def test_bytes_that_a_device_sends_by_hand(copies: int, parts: int, expected: float) -> None:
    assert model_estimates.sent(HAND, copies, parts) == pytest.approx(expected)


@pytest.mark.parametrize("model", ["conv --hidden 64 128", "factor-vae --ema-decay 0.9"])
def test_the_estimate_of_a_model_is_what_its_state_has_on_a_device(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--shape", "16", "16", "1"] if "factor" in model else ["--shape", "16", "16", "3"]
    result = run(monkeypatch, tmp_path, "--model", model, *shape)
    from experiments.random_runs import run_on
    from jaxvae.command_line import parse

    made = run_on(parse(model.split()).config, tuple(map(int, shape[1:])), 128)
    layout = training.Placement(jax.devices(), "fsdp")
    shapes = jax.tree.leaves(layout.shapes(made.built.algorithm.init, *made.init_arguments()))
    size = lambda leaf: np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    whole = lambda leaf: np.prod(leaf.shape) * leaf.dtype.itemsize
    on_eight = next(row for row in result["devices"] if row["devices"] == 8)
    assert on_eight["whole_bytes"] == sum(map(whole, shapes))
    assert on_eight["cut_bytes"] == sum(map(size, shapes)) < on_eight["whole_bytes"]
    assert f"{result['parameters']:,} parameters" in capsys.readouterr().out
