"""The scripts, run as a user runs them: trained, judged, sampled, resumed, mistyped."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from harness import lines, result, script
from PIL import Image

QUICK = [
    "--steps",
    "40",
    "--report-every",
    "10",
    "--checkpoint-every",
    "20",
    "--test-samples",
    "20",
    "--hidden",
    "16",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A run of 40 steps on a workdir that a command with a mistake has not taken."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    more = ["--data-dir", data_dir, "--workdir", workdir]
    script("train.py", *QUICK, *more, "--batch-size", 0, code=2)
    done = script("train.py", *QUICK, *more)
    assert "log-likelihood" in done.stdout
    assert "K = 20 importance samples" in done.stdout
    assert "images/s" in done.stderr
    return workdir


def test_a_run_leaves_all_that_is_promised(finished: Path) -> None:
    named = {"config.json", "metrics.jsonl", "checkpoints", "figures", "result.json", "tensorboard"}
    assert named <= {path.name for path in finished.iterdir()}
    promised = {
        "test_elbo",
        "test_log_likelihood",
        "standard_error",
        "num_samples",
        "bits_per_dim",
        "steps",
    }
    assert (
        promised | {"images_per_second"}
        <= json.loads((finished / "result.json").read_text()).keys()
    )
    assert [line["step"] for line in lines(finished)] == [10, 20, 30, 40]
    assert all({"loss", "reconstruction", "kl"} <= line.keys() for line in lines(finished))
    drawn = {"reconstructions", "samples", "traversals", "interpolations", "latents", "curves"}
    assert {path.stem for path in (finished / "figures").glob("*.png")} == drawn
    for path in (finished / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5


def test_evaluate_and_sample(finished: Path) -> None:
    done = script(
        "evaluate.py",
        finished,
        "--num-samples",
        70,
        "--split",
        "train[:50]",
        "--checkpoint",
        "best",
    )
    written = json.loads((finished / "evaluation.json").read_text())
    assert (written["num_samples"], written["num_examples"], written["split"]) == (
        70,
        50,
        "train[:50]",
    )
    assert "K = 70" in done.stdout
    assert len(written["kl_per_latent"]) == 10
    named = {
        "elbo",
        "reconstruction",
        "kl",
        "active_units",
        "log_likelihood",
        "standard_error",
        "bits_per_dim",
    }
    assert named | {"effective_samples", "pareto_k", "checkpoint"} <= written.keys()
    assert written["log_likelihood"] > written["elbo"]
    script("sample.py", finished, "--num", 5)
    with np.load(finished / "samples.npz") as file:
        assert (file["x"].shape, file["z"].shape) == ((5, 8, 8, 1), (5, 10))
        assert set(np.unique(file["x"])) <= {0.0, 1.0}


SCRIPTS = {path.stem: path for path in (Path(__file__).parent.parent / "experiments").rglob("*.py")}


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_script_takes_from_another_is_there(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only the slow tests would come to it."""
    monkeypatch.syspath_prepend(SCRIPTS[name].parent)
    used = [
        node
        for node in ast.walk(ast.parse(SCRIPTS[name].read_text()))
        if isinstance(node, ast.Attribute)
    ]
    named = [(node.value.id, node.attr) for node in used if isinstance(node.value, ast.Name)]
    loaded = vars(importlib.import_module(name))
    for other, attribute in named:
        module = loaded.get(other)
        if isinstance(module, types.ModuleType) and module.__name__ in SCRIPTS:
            assert hasattr(module, attribute), f"{other}.{attribute}"


slow = functools.partial(pytest.param, marks=pytest.mark.slow)
DISCRETE = {
    "bits and a learned control variate": ["--posterior", "bernoulli", "--estimator", "relax"],
    "bits and a baseline": [
        "--posterior",
        "bernoulli",
        "--bound",
        "sampled_elbo",
        "--estimator",
        "nvil",
    ],
    "classes": ["--posterior", "categorical", "--classes", "3", "--estimator", "disarm_tree"],
    "bits and a bound": ["--posterior", "bernoulli", "--bound", "vimco", "--num-samples", "3"],
    "the prior's gradient": ["--bound", "gdreg", "--num-samples", "3"],
}


@pytest.mark.parametrize("kind", [slow(kind) for kind in DISCRETE])
def test_estimators_and_bounds_are_words_on_the_command_line(
    tmp_path: Path, data_dir: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, judged and drawn from."""
    import sample
    import train

    more = ["--data-dir", data_dir, "--workdir", tmp_path, "--test-examples", 20, "--latent", 4]
    few = [
        "--steps",
        20,
        "--report-every",
        10,
        "--checkpoint-every",
        10,
        "--test-samples",
        5,
        "--hidden",
        8,
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, [*DISCRETE[kind], *few, *more])])
    train.main()
    assert result(tmp_path)["test_elbo"] > -64 * np.log(2) - 20
    sample.sample(tmp_path, num=3)
    with np.load(tmp_path / "samples.npz") as file:
        assert file["x"].shape == (3, 8, 8, 1)


def test_the_same_command_again_changes_nothing(finished: Path, data_dir: Path) -> None:
    before, metrics = result(finished), lines(finished)
    done = script("train.py", *QUICK, "--data-dir", data_dir, "--workdir", finished)
    assert "resuming at step 40 of 40" in done.stdout
    assert (result(finished), lines(finished)) == (before, metrics)


def test_another_config_on_the_workdir_is_refused(finished: Path, data_dir: Path) -> None:
    more = ["--data-dir", data_dir, "--workdir", finished, "--latent", 3, "--learning-rate", 0.5]
    done = script("train.py", *QUICK, *more, code=2)
    assert "latent was 10, is 3" in done.stderr
    assert "learning_rate was 0.001, is 0.5" in done.stderr


MISTAKES = {
    "preset": (["minst-vae"], "Did you mean mnist-vae?"),
    "flag": (["--batchsize", "3"], "--batch-size"),
    "data set": (["--dataset", "digit"], "Did you mean digits"),
    "file": (["--dataset", "nothing.npy"], "there is no nothing.npy"),
    "split": (["--test-split", "validation"], "no split 'validation'; it has train"),
    "support": (["--likelihood", "bernoulli", "--pixels", "scale"], "no density of pixels='scale'"),
    "counts": (["--likelihood", "normal", "--pixels", "counts"], "negative_binomial"),
    "bound": (["--bound", "iwae", "--kl-weight", "2"], "--kl-weight belongs to --bound elbo"),
    "free bits": (["--free-bits", "0.1", "--accumulate", "2"], "--accumulate must be 1"),
    "devices": (["--devices", "64"], "this machine has"),
    "job": (["--coordinator", "127.0.0.1:1"], "belong to --distributed"),
    "shards": (
        ["--virtual-shards", "7"],
        "--batch-size 128 does not divide into --virtual-shards 7",
    ),
    "blocks": (["--blocks", "3"], "--blocks belongs to --network residual"),
    "static stream": (["--stream", "--pixels", "static"], "use pixels='dynamic'"),
    "batch": (["--batch-size", "0"], "--batch-size must be at least 1; it was 0"),
    "latent": (["--latent", "-1"], "--latent must be at least 1; it was -1"),
    "rate": (["--learning-rate", "nan"], "--learning-rate must be finite"),
    "estimator": (
        ["--estimator", "disarm"],
        "serves binary latents; --posterior normal has continuous ones",
    ),
    "bits": (["--posterior", "bernoulli", "--bound", "dreg"], "which are served by elbo_rloo"),
    "samples": (
        ["--posterior", "bernoulli", "--estimator", "rloo"],
        "needs --num-samples 2 at least; it was 1",
    ),
    "both": (
        ["--bound", "dreg", "--estimator", "pathwise"],
        "--estimator belongs to --bound elbo and sampled_elbo",
    ),
    "groups": (
        ["--bound", "miwae", "--num-samples", "5", "--groups", "2"],
        "5 do not divide into --groups 2",
    ),
    "temperature": (
        ["--posterior", "joint", "--temperature", "0"],
        "--temperature must be above 0",
    ),
    "order": (["--bound", "renyi", "--renyi-order", "1"], "use --bound sampled_elbo"),
    "divergence": (
        ["--learning-rate", "1e9", "--steps", "300"],
        "10 updates in a row were skipped",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_in_a_sentence(
    tmp_path: Path,
    data_dir: Path,
    mistake: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    import train

    arguments, answer = MISTAKES[mistake]
    more = ["--data-dir", str(data_dir), "--workdir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *more])
    with pytest.raises(SystemExit, match="2"):
        train.main()
    said = capsys.readouterr()
    assert answer in " ".join((said.err + said.out).split())
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("name", ["evaluate.py", "sample.py"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    assert "is no run folder" in script(name, tmp_path, code=2).stderr


@pytest.mark.parametrize("name", ["train.py", "evaluate.py", "sample.py"])
def test_help(name: str) -> None:
    text = script(name, "--help").stdout
    assert "options" in text
    assert name != "train.py" or ("mnist-vae" in text and "--learning-rate" in text)


RUNS = {
    "conv": ["conv", "--hidden", "4", "--latent", "2"],
    "devices": ["--devices", "4"],
    "shard_map": [
        "--devices",
        "4",
        "--mapping",
        "shard_map",
        "--virtual-shards",
        "8",
        "--precision",
        "bfloat16",
    ],
    "stream": ["--stream", "--devices", "2", "--profile"],
    "residual": ["--network", "residual", "--hidden", "4", "--latent", "2"],
    "iwae": ["--bound", "iwae", "--num-samples", "3"],
    "sampled": [
        "--bound",
        "sampled_elbo",
        "--ema-decay",
        "0.9",
        "--clip-norm",
        "1",
        "--warmup-steps",
        "2",
    ],
    "free bits": ["--free-bits", "0.1", "--free-bits-groups", "5"],
    "warm-up": [
        "--kl-warmup",
        "cyclical",
        "--kl-warmup-steps",
        "4",
        "--kl-weight",
        "2",
        "--schedule",
        "linear",
    ],
    "static": ["--pixels", "static", "--optimizer", "adamax", "--accumulate", "2"],
    "gaussian": [
        "--likelihood",
        "normal_learned",
        "--posterior",
        "multivariate_normal",
        "--schedule",
        "constant",
    ],
    "logistic": ["--likelihood", "discretized_logistic", "--optimizer", "adamw"],
    "mixture": ["--likelihood", "discretized_logistic_mixture"],
    "counts": ["--likelihood", "zero_inflated_negative_binomial"],
    "categorical": ["--likelihood", "categorical"],
    "continuous": [
        "--likelihood",
        "continuous_bernoulli",
        "--train-split",
        "train[:5]",
        "--test-split",
        "test[:1]",
    ],
}


OFTEN = ("stream", "sampled")


@pytest.mark.parametrize("run", [name if name in OFTEN else slow(name) for name in RUNS])
def test_every_choice_runs(
    tmp_path: Path, data_dir: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps through the same functions as the command, without the cost of a new process."""
    import train

    chosen = RUNS[run] if "--hidden" in RUNS[run] else [*RUNS[run], "--hidden", "8"]
    short = [
        "--steps",
        "4",
        "--report-every",
        "2",
        "--checkpoint-every",
        "4",
        "--test-samples",
        "6",
    ]
    more = [
        "--batch-size",
        "16",
        "--test-examples",
        "10",
        "--data-dir",
        str(data_dir),
        "--workdir",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", *chosen, *short, *more])
    train.main()
    values = json.loads((tmp_path / "result.json").read_text())
    assert np.isfinite(
        [values["test_elbo"], values["test_log_likelihood"], values["bits_per_dim"]]
    ).all()


def test_a_users_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import train

    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8))
    short = ["--steps", 4, "--hidden", 8, "--test-samples", 5, "--batch-size", 8]
    flags = [
        "--dataset",
        tmp_path / "images.npy",
        "--likelihood",
        "discretized_logistic",
        "--workdir",
        tmp_path / "run",
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, [*short, *flags])])
    train.main()
    assert result(tmp_path / "run")["num_examples"] == 3
