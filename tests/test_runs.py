"""Runs: what a folder holds, resumed, lengthened, started from another, opened without its data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from harness import UNOPTIMIZED, lines, result
from PIL import Image

import jaxvae
from jaxvae import datasets, families, models, posteriors
from jaxvae.runs import folders, prepare, reports, training
from jaxvae.runs.commands import evaluate, sample

QUICK: dict[str, Any] = {
    **{"steps": 40, "report_every": 10, "checkpoint_every": 20},
    **{"test_samples": 20, "hidden": (16,), "progress": False, "schedule": "constant"},
}


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn of one run, the shared one; they are half the time of a short training."""
    monkeypatch.setattr(training, "draw", lambda *_: [])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A run of 40 steps."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    jaxvae.train("digits", workdir, data_dir=str(data_dir), **QUICK)
    return workdir


def test_a_run_leaves_all_that_is_promised(finished: Path) -> None:
    named = {"config.json", "metrics.jsonl", "checkpoints", "figures", "result.json"}
    assert named | {"tensorboard"} <= {path.name for path in finished.iterdir()}
    promised = {"test_elbo", "test_log_likelihood", "standard_error", "num_samples", "steps"}
    written = json.loads((finished / "result.json").read_text())
    assert promised | {"bits_per_dim", "images_per_second"} <= written.keys()
    assert [line["step"] for line in lines(finished)] == [10, 20, 30, 40]
    assert all({"loss", "reconstruction", "kl"} <= line.keys() for line in lines(finished))
    drawn = {"reconstructions", "samples", "traversals", "interpolations", "latents", "curves"}
    assert {path.stem for path in (finished / "figures").glob("*.png")} == drawn
    for path in (finished / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5


def test_evaluate_and_sample(finished: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """From another folder than the one that it was trained in."""
    monkeypatch.chdir(tmp_path)
    evaluate(finished, num_samples=70, split="train[:50]", checkpoint="best", per_example=True)
    written = json.loads((finished / "evaluation.json").read_text())
    assert (written["num_samples"], written["num_examples"]) == (70, 50)
    assert written["split"] == "train[:50]"
    assert len(written["kl_per_latent"]) == 10
    assert written["log_likelihood"] > written["elbo"]
    each = np.load(finished / "log_likelihoods.npy")
    assert each.shape == (50,)
    assert each.mean() == pytest.approx(written["log_likelihood"], abs=1e-4)
    sample(finished, num=5)
    with np.load(finished / "samples.npz") as file:
        assert (file["x"].shape, file["z"].shape) == ((5, 8, 8, 1), (5, 10))
        assert set(np.unique(file["x"])) <= {0.0, 1.0}


def test_a_run_opens_in_a_new_process_without_its_data(finished: Path, tmp_path: Path) -> None:
    program = (
        "import jax, jaxvae\n"
        f"model = jaxvae.load({str(finished)!r})\n"
        "print(model.sample(jax.random.key(0), 4).shape)\n"
        "import sys; print('tensorflow_datasets' in sys.modules, 'tyro' in sys.modules)"
    )
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path / "nothing"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment | UNOPTIMIZED | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.stdout.split("\n")[:2] == ["(4, 8, 8, 1)", "False False"], done.stderr


def test_the_same_call_again_changes_nothing(
    finished: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, metrics = result(finished), lines(finished)
    jaxvae.train("digits", finished, data_dir=str(data_dir), **QUICK)
    assert "resuming at step 40 of 40" in capsys.readouterr().out
    assert (result(finished), lines(finished)) == (before, metrics)


def test_a_run_is_lengthened_and_reported_otherwise(
    finished: Path, data_dir: Path, tmp_path: Path
) -> None:
    """With a constant rate the longer run is the one that was never stopped, bit for bit."""
    settings = QUICK | {"data_dir": str(data_dir)}
    jaxvae.train("digits", tmp_path, **settings | {"steps": 20, "test_samples": 5})
    longer = jaxvae.train("digits", tmp_path, **settings)
    assert longer.step == 40
    jax.tree.map(np.testing.assert_array_equal, jaxvae.load(finished).params, longer.params)


def test_other_settings_on_the_folder_are_refused(finished: Path, data_dir: Path) -> None:
    other = QUICK | {"latent": 3, "learning_rate": 0.5, "data_dir": str(data_dir)}
    with pytest.raises(ValueError, match=r"latent was 10, is 3; learning_rate was 0\.001, is 0\.5"):
        jaxvae.train("digits", finished, **other)


def test_a_run_starts_from_another_ones_parameters(
    finished: Path, data_dir: Path, tmp_path: Path
) -> None:
    """With another optimizer, rate and bound; other shapes are refused by name."""
    other = {"optimizer": "sgd", "bound": "iwae", "num_samples": 2, "learning_rate": 0.0}
    other |= QUICK | {"steps": 10, "report_every": 5, "checkpoint_every": 10}
    started = jaxvae.train(
        "digits", tmp_path / "other", start_from=finished, data_dir=str(data_dir), **other
    )
    jax.tree.map(np.testing.assert_array_equal, started.params, jaxvae.load(finished).params)
    with pytest.raises(ValueError, match=r"is of another model: 3 arrays differ"):
        jaxvae.train(
            "digits",
            tmp_path / "wider",
            start_from=finished,
            data_dir=str(data_dir),
            **QUICK | {"latent": 3},
        )


@pytest.mark.slow
def test_default_folders_get_a_free_name(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = QUICK | {"steps": 2, "data_dir": str(data_dir)}
    places = [jaxvae.train("digits", **few | more).workdir for more in ({}, {"latent": 3}, {})]
    names = ["digits-digits-0", "digits-digits-0-2", "digits-digits-0"]
    assert places == [Path("runs") / name for name in names]


def test_a_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"dataset": "digits", "latent": 10}))
    with pytest.raises(ValueError, match="a run of another version of jaxvae"):
        jaxvae.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        jaxvae.load(tmp_path)


def test_a_checkpoint_that_is_not_there_is_named(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint '7'; it has \[20, 40\]"):
        jaxvae.load(finished, 7)
    assert jaxvae.load(finished, 20).step == 20


def test_training_stops_early_where_validation_no_longer_rises(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Few examples are soon learned by heart, and the best checkpoint is kept."""
    config = families.preset(
        "autoencoder",
        **{"train_split": "train[:20]", "validation_split": "train[20:120]", "batch_size": 20},
        **{"steps": 20_000, "checkpoint_every": 100, "early_stopping": 2, "hidden": (64,)},
        **{"learning_rate": 1e-2, "test_samples": 1, "test_examples": 5},
    )
    trained = jaxvae.train(config, tmp_path, data_dir=str(data_dir), progress=False)
    assert trained.step < 20_000
    assert "stopped early" in capsys.readouterr().out
    scores = [line["validation_elbo"] for line in _validation(tmp_path)]
    best = int(np.argmax(scores))
    assert len(scores) - 1 - best == 2
    assert jaxvae.load(tmp_path, "best").step == 100 * (best + 1)
    assert trained.result is not None and trained.result["steps"] == trained.step
    again = jaxvae.train(config, tmp_path, data_dir=str(data_dir), progress=False)
    assert again.step == trained.step


def _validation(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "validation.jsonl").read_text().splitlines()]


def test_the_same_faces_have_the_same_bits_as_integers_and_as_floats() -> None:
    """The levels of floats are not guessed: they are stated, or the result is in nats."""

    def found(data: np.ndarray, likelihood: str, levels: int | None = None) -> dict[str, Any]:
        config = families.preset("digits", likelihood=likelihood, levels=levels, **small)
        run = prepare(config, data=datasets.load(data, levels=levels))
        params = run.built.parameters(run.init_state())
        return reports.results(run.built, run.record.data, params, run.key, run.test, 5)

    small: dict[str, Any] = {"pixels": "scale", "hidden": (8,), "latent": 2, "batch_size": 8}
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    floats = (pixels / 255).astype(np.float32)
    stated = found(floats, "discretized_logistic", levels=256)["bits_per_dim"]
    integers = found(pixels, "discretized_logistic")["bits_per_dim"]
    assert integers == pytest.approx(stated, rel=1e-4)
    real = found(floats, "normal")
    assert "bits_per_dim" not in real
    assert real["nats_per_dim"] == pytest.approx(-real["log_likelihood"] / 16)


def test_pixels_without_levels_are_refused_by_a_likelihood_of_levels(tmp_path: Path) -> None:
    floats = np.random.default_rng(0).random((40, 4, 4, 1), dtype=np.float32)
    with pytest.raises(ValueError, match="state levels"):
        jaxvae.train("digits", tmp_path, data=floats, likelihood="discretized_logistic")


@pytest.mark.slow
def test_a_users_files_in_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8))
    named = {"dataset": str(tmp_path / "images.npy"), "hidden": (8,), "steps": 4, "batch_size": 8}
    with pytest.raises(ValueError, match="holds colour images, and this likelihood is of binary"):
        jaxvae.train("digits", tmp_path / "run", **named)
    jaxvae.train("conv", tmp_path / "run", test_samples=5, progress=False, **named)
    assert result(tmp_path / "run")["num_examples"] == 3


@pytest.mark.slow
def test_labels_keep_their_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "animals" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (6, 6), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "animals" / name / f"{i}.png")
    few = {"steps": 2, "hidden": (8,), "latent": 2, "batch_size": 8, "test_samples": 2}
    trained = jaxvae.train(
        "cvae", tmp_path / "run", dataset=str(tmp_path / "animals"), progress=False, **few
    )
    assert trained.data.classes == ("cats", "dogs")
    assert result(tmp_path / "run")["classes"] == ["cats", "dogs"]
    one_of_each = trained.sample(jax.random.key(0), 2, condition=np.array([0, 1]))
    assert one_of_each.shape == (2, 6, 6, 1)
    with pytest.raises(ValueError, match="this model is conditional"):
        trained.sample(jax.random.key(0), 2)


@pytest.mark.slow
def test_a_run_on_arrays_asks_for_its_data(tmp_path: Path) -> None:
    arrays = np.eye(16, dtype=np.uint8).reshape(16, 4, 4, 1)
    jaxvae.train("digits", tmp_path / "run", data=arrays, **QUICK | {"steps": 2})
    with pytest.raises(ValueError, match="was trained on arrays or imported: say with --dataset"):
        evaluate(tmp_path / "run")
    np.save(tmp_path / "arrays.npy", arrays)
    evaluate(tmp_path / "run", num_samples=5, dataset=str(tmp_path / "arrays.npy"))
    sample(tmp_path / "run", num=2)


def test_a_model_without_an_answer_says_so(finished: Path) -> None:
    loaded = jaxvae.load(finished)
    silent = models.Model(loaded.model.init)
    without = jaxvae.Trained(
        loaded.built._replace(model=silent), loaded.data, loaded.params, loaded.step
    )
    with pytest.raises(ValueError, match="this model has no encode"):
        without.encode(np.zeros((1, 8, 8, 1), np.uint8))


def test_a_users_posterior_is_trained_and_loaded(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an entry in a table; without the entry the folder says what is missing."""

    def laplace_like(latent: int, width: float = 2.0) -> posteriors.Posterior:
        """A Gaussian whose scale is divided by a setting of its own."""
        normal = posteriors.normal(latent)
        narrow = lambda q: type(q)(q.loc, q.scale / width)
        return normal._replace(make=lambda params, raw: narrow(normal.make(params, raw)))

    monkeypatch.setitem(posteriors.CONTINUOUS, "laplace_like", laplace_like)
    more = {"posterior": "laplace_like", "width": 3.0, "data_dir": str(data_dir), "steps": 2}
    trained = jaxvae.train("digits", tmp_path, **QUICK | more)
    loaded = jaxvae.load(tmp_path)
    numbers = 65 * 16 + 17 * 20 + 11 * 16 + 17 * 64  # weights and biases of four layers
    assert repr(loaded).endswith(f"digits of shape (8, 8, 1), step 2, {numbers:,} parameters)")
    x = np.asarray(datasets.load("digits", data_dir).splits["test"].x[:3])
    np.testing.assert_array_equal(loaded.posterior(x).scale, trained.posterior(x).scale)
    monkeypatch.delitem(posteriors.CONTINUOUS, "laplace_like")
    with pytest.raises(ValueError, match=r"no 'laplace_like'.*add it to its table first"):
        jaxvae.load(tmp_path)


def test_two_runs_cannot_share_a_folder(finished: Path, data_dir: Path) -> None:
    with (
        folders.lock(finished),
        pytest.raises(ValueError, match="is in use by process"),
    ):
        jaxvae.train("digits", finished, data_dir=str(data_dir), **QUICK)
