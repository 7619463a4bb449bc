"""The benchmark: installed peers do the work, a missing one is a blank cell, and ratios are
those within rounds.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from harness import script
from PIL import Image

from experiments import peers, throughput
from jaxvae import families

SMALL = {
    "mlp": peers.Work("mlp", "train", 4, 8),
    "conv": peers.Work("conv", "train", 2, 4),
    "residual": peers.Work("residual", "train", 1, 2),
    "iwae": peers.Work("mlp", "iwae", 2, 4),
    "likelihood": peers.Work("mlp", "likelihood", 2, 2),
} | {
    preset: peers.Work(preset, "train", 2, 4)
    for preset in peers.PRESETS
    if preset in families.presets()
}
WORKS = [(peer, work) for peer in peers.PEERS for work in SMALL]


@pytest.mark.filterwarnings("ignore")  # of other libraries
@pytest.mark.parametrize(
    "peer, work",
    [
        pair if pair == ("jaxvae", "mlp") else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in WORKS
    ],
)
def test_a_peer_does_the_work(peer: str, work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "SAMPLES", 200)
    try:
        run = peers.PEERS[peer](SMALL[work])
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed")
    if run is None:
        assert peer != "jaxvae" and (peer != "torch" or work in peers.PRESETS)
    else:
        run(SMALL[work].batch)


def test_the_images_are_of_the_kind_that_the_likelihood_takes() -> None:
    binary, grey = SMALL["mlp"].images(), SMALL["conv"].images()
    assert (binary.shape, grey.shape) == ((8, 28, 28, 1), (4, 32, 32, 3))
    assert set(np.unique(binary)) == {0, 1}
    assert grey.max() > 200


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    """A round on a busy machine is slow for all and does not count."""
    row = {"jaxvae": [10.0, 1.0, 12.0], "torch": [5.0, 0.5, 4.0], "flax": None}
    cells = {
        peer: {"images_per_second": speed} if speed else {"missing": "no"}
        for peer, speed in row.items()
    }
    assert throughput.ratios(cells) == {"torch": 2.0}
    assert throughput.ratios({"torch": cells["torch"]}) == {}


def test_the_roofline_is_the_nearer_wall() -> None:
    """100 images/s, of 2 ms of products and 5 ms of memory each: a fifth of the peak, half of
    the roofline.
    """
    said = throughput.share({"flops": 1e9, "bytes": 1e6, "products": 2e-3, "memory": 5e-3}, 100.0)
    assert (
        "1 GFLOP, 1 MB" in said
        and "20.0% of the peak" in said
        and "50.0% of the roofline (memory)" in said
    )


def test_what_a_step_costs_is_what_its_layers_do() -> None:
    """784-500-40 and 20-500-784: values, gradients in weights, and in all inputs but the image."""
    sizes = 784 * 500, 500 * 40, 20 * 500, 500 * 784
    cost = peers.cost(SMALL["mlp"])
    assert cost["flops"] == 2 * (3 * sum(sizes) - sizes[0])
    assert (
        cost["bytes"] > 4 * 6 * sum(sizes) / SMALL["mlp"].batch
    )  # parameters and two moments, read and written


@pytest.mark.slow
def test_the_script(tmp_path: Path) -> None:
    chosen = [
        "--works",
        "mlp, batch 2048",
        "--peers",
        "jaxvae",
        "scan",
        "torch",
        "--rounds",
        2,
        "--seconds",
        0.1,
    ]
    files = ["--json", tmp_path / "t.json", "--plot", tmp_path / "t.png"]
    said = script(
        "throughput.py", *chosen, *files, "--precisions", "float32", "bfloat16", "--together", 2
    ).stdout
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert list(rows) == ["mlp, batch 2048", "mlp, batch 2048, bfloat16"]
    for row in rows.values():
        assert all(len(row[peer]["images_per_second"]) == 2 for peer in ("jaxvae", "scan"))
        assert "images_per_second" in row["torch"] or "torch is not installed" in said
    with Image.open(tmp_path / "t.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
