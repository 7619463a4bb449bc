"""The commands compare and list, on run folders whose results are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from jaxvae import families
from jaxvae.runs import comparing, folders, prepare

ELBOS = {0: -25.0, 1: -26.0, 2: -24.5}


def run_folder(place: Path, elbo: float | None, **settings: Any) -> Path:
    """A run folder of digits; it has not ended if there is no ELBO."""
    place.mkdir(parents=True)
    record = prepare(families.preset("digits", **{"hidden": (4,)} | settings)).record
    folders.save(place, record)
    if elbo is not None:
        result = {"test_elbo": elbo, "elbo_standard_error": 0.5, "steps": 100, "kl": 3.25}
        result |= {"classification": {"accuracy": 0.5}, "notes": ["one"]}
        folders.write_json(place / "result.json", result)
        (place / "figures").mkdir()
        grey = np.full((8, 8), 10 * -int(elbo) % 256, np.uint8)
        Image.fromarray(grey).save(place / "figures" / "samples.png")
    return place


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three seeds of one configuration, and a run of another that has not ended."""
    place = tmp_path_factory.mktemp("compared")
    seeds = [run_folder(place / f"flat-{s}", elbo, seed=s) for s, elbo in ELBOS.items()]
    return [*seeds, run_folder(place / "planar", None, posterior="planar")]


def test_seeds_are_one_column_with_students_interval(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comparing.compare(runs, json=tmp_path / "out.json")
    of_seeds, unfinished = json.loads((tmp_path / "out.json").read_text())
    values = list(ELBOS.values())
    mean, error = np.mean(values), stats.sem(values)
    low, _ = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    assert of_seeds["results"]["test_elbo"]["mean"] == pytest.approx(mean)
    assert of_seeds["results"]["test_elbo"]["half_interval"] == pytest.approx(mean - low)
    assert of_seeds["results"]["classification: accuracy"]["mean"] == 0.5
    assert unfinished["results"] == {} and len(of_seeds["runs"]) == 3
    said = capsys.readouterr().out
    for words in ("posterior", "planar", "0 1 2", "not ended", "test ELBO", "-25.17 ± 1.90"):
        assert words in said
    assert "batch size" not in said  # they do not differ in it


def test_a_seed_is_not_counted_twice(runs: list[Path], tmp_path: Path) -> None:
    again = run_folder(tmp_path / "again", -25.0)
    with pytest.raises(ValueError, match=r"flat-0 and .*again have the same settings and seed"):
        comparing.compare([*runs, again])


def test_the_interval_of_one_run_is_over_its_examples(runs: list[Path]) -> None:
    (group,) = comparing.grouped([comparing.read(runs[0])])
    numbers = comparing.results_of(group)
    assert numbers["test_elbo"] == pytest.approx((-25.0, stats.norm.ppf(0.975) * 0.5))
    assert np.isnan(numbers["kl"][1]) and "elbo_standard_error" not in numbers


def test_pictures_of_all_columns_are_on_one_sheet(runs: list[Path], tmp_path: Path) -> None:
    other = run_folder(tmp_path / "other", -20.0, hidden=(5,))
    comparing.compare([runs[0], other], sheet=tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        left, right = np.array_split(np.asarray(sheet.convert("L")), 2, axis=1)
    assert left.std() > 5 and right.std() > 5


def test_list_has_a_line_for_each_run(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    damaged = runs[0].parent / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{}")
    comparing.list_runs(runs[0].parent)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [each for each in lines if "flat-1" in each]
    assert all(word in line for word in ("flat", "digits", "100", "-26.00 ± 0.98"))
    assert any("planar" in each and "not ended" in each for each in lines)
    assert any("another version" in each for each in lines)


@pytest.mark.parametrize(
    "value, half, text",
    [
        (-25.1667, 1.8974, "-25.17 ± 1.90"),
        (12345.6, float("nan"), "12,346"),
        (3000.0, float("nan"), "3,000"),
        (3000.0, 0.0, "3,000"),
        (0.51234, 0.01, "0.512 ± 0.010"),
        (float("nan"), float("nan"), ""),
    ],
)
def test_numbers_have_few_digits(value: float, half: float, text: str) -> None:
    assert comparing.written(value, half) == text
