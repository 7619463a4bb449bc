"""The script for one accelerator, on a CPU in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import accelerator
from jaxvae import families


def test_what_one_wants_to_know_first_comes_first() -> None:
    """Every model in bfloat16 with remat, before any other program."""
    first, *_ = parts = accelerator.parts(accelerator.MODELS)
    assert (first.precision, first.remat) == ("bfloat16", True)
    assert [part.model for part in parts[: len(accelerator.MODELS)]] == list(accelerator.MODELS)
    assert len(set(parts)) == 4 * len(accelerator.MODELS)


def test_the_small_models_are_the_large_ones_in_small() -> None:
    assert accelerator.SMALL.keys() == accelerator.MODELS.keys()
    for name, model in accelerator.MODELS.items():
        if model.preset in families.presets():
            families.preset(model.preset, **model.settings)
        assert accelerator.SMALL[name].batch < model.batch


def test_models_are_chosen_by_the_beginnings_of_their_names() -> None:
    assert list(accelerator.chosen(accelerator.Settings(models=("wide",)))) == [
        "wide residual, 64x64"
    ]
    with pytest.raises(ValueError, match="no model begins with gan"):
        accelerator.chosen(accelerator.Settings(models=("gan",)))


def test_nothing_begins_when_the_time_is_out(tmp_path: Path) -> None:
    settings = accelerator.Settings(small=True, seconds=1e-9, json=tmp_path / "a.json")
    accelerator.main(settings)
    assert not settings.json.exists()


def test_a_row_is_said_in_a_line() -> None:
    row = {"images_per_second": 1234.5, "share_of_peak": 0.25, "compile_seconds": 61.0}
    row |= {"argument_bytes": 10**9, "temporary_bytes": 5 * 10**8}
    said = accelerator.line("a model", row)
    assert "1,234.5 images/s, 25.0% of the peak, 1.50 GB; compiled in 61 s" in said
    assert "out of memory: 1.50 GB" in accelerator.line("a", row | {"missing": "out of memory"})


@pytest.mark.slow
def test_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = accelerator.Settings(
        small=True, seconds=3600, rounds=2, round_seconds=0.05, json=tmp_path / "a.json"
    )
    accelerator.main(settings)
    rows = json.loads(settings.json.read_text())["rows"]
    models = accelerator.chosen(settings)
    assert len(rows) == 5 * len(models)
    for name in models:
        plain = rows[f"{name}, float32"]
        again = rows[f"{name}, float32, remat"]
        assert plain["flops_per_image"] == again["flops_per_image"] > 0
        assert plain["first_loss"] == pytest.approx(again["first_loss"], rel=1e-4)
        assert plain["images_per_second"] > 0 and plain["skipped"] == 0
        assert rows[f"{name}, fit beside the loop"]["fit_to_loop"] > 0
    assert "images/s" in capsys.readouterr().out
