"""The scripts that compare gradient estimators, as a user runs them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import (
    binary_estimators,
    comparisons,
    gradient_variance,
    problems,
    variance_tables,
)
from jaxvae import expectations, measurements


def rows(problem: str, tmp_path: Path, **options: object) -> dict[str, dict]:
    """What the script writes, by estimator."""
    out = tmp_path / "out.json"
    given = {"num_draws": 512, "timings": 1, "control_steps": 20, "json": out} | options
    gradient_variance.main(problem, gradient_variance.Options(**given))
    written = json.loads(out.read_text())
    assert written["problem"] == problem and {"jax", "python"} <= written["versions"].keys()
    return {row["estimator"]: row for found in written["checkpoints"].values() for row in found}


@pytest.mark.slow
def test_the_toy_by_its_law_with_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("rloo", "disarm", "relax", "straight_through", "gumbel_rao")
    found = rows(
        "toy",
        tmp_path,
        estimators=names,
        plot=tmp_path / "toy.png",
        logit=np.log(9.0),
        invariances=True,
    )
    assert found["rloo"]["trace"][0] == pytest.approx(3.69e-4) and found["rloo"]["mode"] == "exact"
    assert found["disarm"]["trace"][0] == pytest.approx(3.24e-4)
    assert found["straight_through"]["largest_bias"] == pytest.approx(0.072, abs=1e-6)
    assert found["straight_through"]["break_even"] >= 0 and found["gumbel_rao"]["mode"] == "sampled"
    assert {
        "evaluations",
        "gradient_evaluations",
        "flops",
        "peak_bytes",
        "seconds",
        "work_normalized",
    } <= found["relax"].keys()
    with Image.open(tmp_path / "toy.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
    assert found["rloo"]["invariances"]["constant"] < 1e-4
    said = capsys.readouterr().out
    assert "straight_through *" in said and "* biased" in said


@pytest.mark.parametrize("size", [1e-6, 0.3, 4e5])
def test_rounding_is_no_variance_to_compare_with(size: float) -> None:
    """Gradients of one size whose last float32 digits differ have none, those that differ by a
    thousandth have.
    """
    rng, row = np.random.default_rng(0), {"mode": "sampled", "norm": size}
    last_digits = np.float32(size) * (
        1 + np.float32(2**-23) * rng.integers(-2, 3, 1000, dtype=np.int8)
    )
    assert (
        0
        < last_digits.astype(np.float64).var()
        < variance_tables.rounding(row)
        < (1e-3 * size) ** 2
    )
    assert variance_tables.rounding(row | {"mode": "exact"}) == 1e-25


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["titsias_shi", "square", "logistic_regression"])
def test_problems_are_measured(problem: str, tmp_path: Path) -> None:
    names = ("rloo", "disarm") if problem == "titsias_shi" else ("rloo", "pathwise")
    found = rows(problem, tmp_path, estimators=names)
    assert all(row["trace"][0] > 0 for row in found.values())
    if problem == "titsias_shi":
        for name, closed in (("rloo", 1.25e-9), ("disarm", 1.24375e-9)):
            value, low, high = np.array(found[name]["trace"]) / 200
            assert value == pytest.approx(closed, rel=0.2) and low / 1.1 < closed < high * 1.1


def test_gradients_of_problems_in_closed_form_are_those_of_autodiff_through_draws(
    tmp_path: Path,
) -> None:
    for problem in ("square", "exponential", "cosine"):
        given = problems.PROBLEMS[problem](problems.Settings(rate=0.7))
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda a: jnp.asarray(a, float), given.params)
            found = measurements.exact(
                expectations.pathwise, lambda p, make=given.make: make(p, None), wide
            ).mean
            truth = given.gradient(wide)
        for part in truth:
            assert float(found[part][0]) == pytest.approx(
                float(np.asarray(truth[part])[0]), abs=1e-8
            )


@pytest.mark.slow
def test_a_vae_small_enough_to_enumerate(tmp_path: Path) -> None:
    """Bounds and expectations side by side, all exact, in order: DisARM ahead of leave-one-out
    ahead of REINFORCE.
    """
    names = ("score_function", "rloo", "disarm", "vimco", "ovis_gamma1", "enumeration")
    found = rows("binary_vae", tmp_path, estimators=names, units=2, batch_size=1, latent=3)
    assert {row["mode"] for row in found.values()} == {"exact"}
    traces = {name: row["trace"][0] for name, row in found.items()}
    assert traces["disarm"] < traces["rloo"] < traces["score_function"]
    assert found["ovis_gamma1"]["largest_bias"] > 1e-4 and found["ovis_gamma1"]["truth"] == "vimco"


@pytest.mark.slow
def test_a_vae_on_data_along_its_training(tmp_path: Path, data_dir: Path) -> None:
    arguments = "--dataset digits --pixels static --latent 6 --hidden 8 --batch-size 16"
    more = {
        "data_dir": str(data_dir),
        "arguments": arguments,
        "units": 2,
        "batch_size": 4,
        "checkpoints": (0, 30),
    }
    found = rows(
        "vae",
        tmp_path,
        estimators=("rloo", "rodeo", "vimco"),
        num_draws=64,
        plot=tmp_path / "vae.png",
        **more,
    )
    assert found["rloo"]["minibatch"] > 0
    assert any(block.startswith("encoder") for block in found["rloo"]["blocks"])
    assert (tmp_path / "vae.png").exists()


@pytest.mark.slow
def test_the_table_of_estimators_is_made(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"steps": 30, "seeds": 2, "latent": 6, "batch_size": 16, "examples": 50, "draws": 16}
    options = binary_estimators.Options(
        estimators=("rloo", "nvil"),
        dataset="digits",
        data_dir=str(data_dir),
        json=tmp_path / "out.json",
        **small,
    )
    binary_estimators.compare(options)
    written = json.loads((tmp_path / "out.json").read_text())
    assert {name: len(cells) for name, cells in written["cells"].items()} == {"rloo": 2, "nvil": 2}
    assert "train ELBO" in capsys.readouterr().out


def test_values_too_rare_to_be_drawn_are_named_beside_a_bias() -> None:
    """A bit of the toy at log-odds of 9.21, which is 0 once in ten thousand draws."""
    options = gradient_variance.Options()
    given = problems.toy(options)
    far = jax.tree.map(lambda a: jnp.full_like(a, 9.21), given.params)
    assert comparisons.rarest(given, far) == pytest.approx(1e-4, rel=0.01)
    assert comparisons.rarest(problems.square(options), problems.square(options).params) == 1.0
    said = comparisons._or_rare("biased: |z| = 9.0, above 4.0", 1e-4)
    rare = "values of latents with probability 1e-04, which were hardly drawn"
    assert said == f"biased: |z| = 9.0, above 4.0; or {rare}"
    assert comparisons._or_rare("heavy tail", 1e-4) == "heavy tail"


def test_what_does_not_fit_is_refused_by_name() -> None:
    """More draws than there are states: refused where it was named."""
    options = gradient_variance.Options(num_draws=16, timings=0, control_steps=1)
    given = problems.toy(options)
    named = dataclasses.replace(options, estimators=("unordered_set", "rloo"))
    with pytest.raises(ValueError, match="4 draws without replacement of 2"):
        comparisons.compare(given, given.params, 4, named)
    assert {
        row["estimator"] for row in comparisons.compare(given, given.params, None, named)
    } == set(named.estimators)
