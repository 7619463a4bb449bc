"""The family: every preset on one device and on two, stopped and resumed, judged and drawn from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from harness import products, result

from jaxvae import checkpoints, datasets, training

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))
import config
import evaluate
import judgements
import sample
import train
import wiring

SMALL = [
    "--hidden",
    "8",
    "--latent",
    "3",
    "--batch-size",
    "15",
    "--test-samples",
    "6",
    "--test-examples",
    "12",
]
STEPS = ["--steps", "4", "--report-every", "2", "--checkpoint-every", "2"]
QUICK = ("factor-vae",)  # the others are marked slow


def arguments(preset: str, data_dir: Path) -> list[str]:
    own = {
        "vampprior": ["--components", "4"],
        "wae-gan": ["--critic-hidden", "8"],
        "factor-vae": ["--critic-hidden", "8"],
    }
    return [preset, *SMALL, *STEPS, *own.get(preset, []), "--data-dir", str(data_dir)]


def numbers(state: training.State) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]


@pytest.mark.parametrize(
    "preset",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in config.FAMILY
    ],
)
def test_members(
    preset: str, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on two devices and bit for bit the same when resumed; then through the three
    scripts.
    """
    run = wiring.build(config.parse(arguments(preset, data_dir))[1])
    devices = jax.local_devices()
    straight = train.fit(run, devices[:1], num_steps=4)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(run.init_state().params)]
    assert any((a != b).any() for a, b in zip(before, numbers(straight), strict=True))
    for one, two in zip(
        numbers(straight), numbers(train.fit(run, devices[:2], num_steps=4)), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-4)

    with checkpoints.Checkpoints(tmp_path / "checkpoints") as saved:
        saved.save(2, train.fit(run, devices[:1], num_steps=2), {})
        resumed = train.fit(
            run, devices[:1], state=saved.restore(2, run.init_state())[0], num_steps=4
        )
    for one, two in zip(numbers(straight), numbers(resumed), strict=True):
        np.testing.assert_array_equal(one, two)

    workdir = tmp_path / "run"
    monkeypatch.setattr(
        sys, "argv", ["train.py", *arguments(preset, data_dir), "--workdir", str(workdir)]
    )
    train.main()
    found = result(workdir)
    assert np.isfinite(found["reconstruction"])
    assert (found["test_elbo"] is None) == (run.config.posterior == "point")
    evaluate.evaluate(workdir, num_samples=4, num_examples=5)
    sample.sample(workdir, num=3)
    with np.load(workdir / "samples.npz") as file:
        assert np.isfinite(file["means"]).all() and len(file["x"]) == 3


def test_presets_are_what_the_help_lists() -> None:
    for name, (text, settings) in config.PRESETS.items():
        config.check(settings)
        assert text and (name == "digits" or settings != config.Config())


def test_a_label_is_an_attribute_for_each_class(digits: datasets.Dataset, tmp_path: Path) -> None:
    """Given as such, the same training, bit for bit."""
    part = digits.splits["train"].take(slice(60))
    found = []
    for kind, y in (("labels", part.labels), ("attributes", np.eye(10)[part.labels])):
        np.savez(
            tmp_path / f"{kind}.npz", x_train=part.images, y_train=y, x_test=part.images, y_test=y
        )
        few = [
            "--dataset",
            str(tmp_path / f"{kind}.npz"),
            "--hidden",
            "8",
            "--latent",
            "2",
            "--levels",
            "17",
        ]
        run = wiring.build(config.parse(["cvae", "--condition", kind, *few])[1])
        state = training.fit(
            run.algorithm, run.train, state=run.init_state(), num_steps=3, batch_size=20
        )
        found.append(jax.tree.map(np.asarray, training.trained(state)))
    jax.tree.map(np.testing.assert_array_equal, *found)


MISTAKES = {
    "attributes": (
        ["--condition", "attributes"],
        "needs a set in memory with several numbers for each image",
    ),
    "point": (["--posterior", "point"], "--posterior point has no finite KL"),
    "prior": (
        ["--posterior", "bernoulli", "--prior", "mixture"],
        "--prior mixture is of real latents",
    ),
    "components": (["--components", "3"], "--components belongs to priors that are mixtures"),
    "flow": (["--flow-steps", "2"], "--flow-steps belongs to posteriors and priors that are flows"),
    "critic": (
        ["--critic-hidden", "8"],
        "--critic-hidden belongs to --divergence density_ratio and adversarial",
    ),
    "batch": (["wae-mmd", "--accumulate", "5"], "of the whole batch: --accumulate must be 1"),
    "condition": (["cvae", "--network", "conv"], "--condition labels needs --network mlp"),
    "conditioned prior": (
        ["cvae", "--prior", "vampprior"],
        "--prior vampprior cannot be conditioned",
    ),
    "corruption": (
        ["denoising-vae", "--condition", "labels"],
        "--corruption is of images, and --condition labels",
    ),
    "warm-up": (["annealed-vae", "--kl-warmup", "linear"], "--kl-capacity takes neither"),
    "weight": (["cvae", "--cvae-weight", "2"], "--cvae-weight must be between 0 and 1"),
    "pseudo-inputs": (
        ["vampprior", "--prior", "vampprior_data", "--components", "5000"],
        "need as many examples",
    ),
    "density": (
        ["planar", "--bound", "piwae", "--num-samples", "4"],
        "takes the density of --posterior planar at given",
    ),
    "sampled density": (
        ["sylvester", "--bound", "sampled_elbo"],
        "flow has it for its own draws alone",
    ),
    "jumps": (["spike-and-slab", "--bound", "iwae", "--num-samples", "4"], "needs --bound elbo"),
    "classes": (["joint-vae", "--classes", "1"], "--classes must be at least 2"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str, data_dir: Path) -> None:
    given, answer = MISTAKES[mistake]
    _, settings = config.parse([*given, "--data-dir", str(data_dir)])
    with pytest.raises(ValueError, match=answer):
        wiring.build(settings).init_state()


# One of each kind: priors, conditions, flows, mixtures, critics, estimators; the others are marked
# slow.
WITH_NETWORKS = ("vampprior", "coupling-prior", "cvae", "iaf", "gmvae", "factor-vae", "relax")


def of_a_step(run: wiring.Run) -> tuple[Any, training.Batch]:
    """State, by its shapes, and batch."""
    state = jax.eval_shape(
        lambda: run.algorithm.init(run.key, jax.tree.map(lambda a: a[0], run.train))
    )
    return state, training.Batch(
        jax.tree.map(lambda a: a[:2], run.train), np.arange(2), np.full(2, 0.5, np.float32)
    )


@pytest.mark.parametrize(
    "member",
    [
        name if name in WITH_NETWORKS else pytest.param(name, marks=pytest.mark.slow)
        for name in (*config.FAMILY, "nvil", "relax", "rodeo")
    ],
)
def test_products_of_a_member_are_float32_whatever_the_ambient_is(
    member: str, data_dir: Path
) -> None:
    """JAX's own default on an accelerator is less; priors, critics and estimators have networks
    too.
    """
    bits = ["--posterior", "bernoulli", "--num-samples", "2", "--estimator", member]
    given = (
        arguments(member, data_dir)
        if member in config.FAMILY
        else [*arguments("digits", data_dir), *bits]
    )
    run = wiring.build(config.parse(given)[1])
    with jax.default_matmul_precision("bfloat16"):
        found = products(run.algorithm.step, *of_a_step(run))
    assert found
    assert all(
        set(equation.params["precision"]) == {jax.lax.Precision.HIGHEST} for equation in found
    )


@pytest.mark.parametrize("bound", ["iwae", "miwae", "piwae", "ciwae"])
@pytest.mark.parametrize(
    "preset", ["vampprior", "sylvester", "iaf", "cvae", "gmvae", "von-mises-fisher"]
)
def test_bounds_of_many_samples_are_of_any_member(preset: str, bound: str, data_dir: Path) -> None:
    """All are objectives of a member, or refused in a sentence."""
    many = [
        "--bound",
        bound,
        "--num-samples",
        "4",
        *(("--groups", "2") if bound in ("miwae", "piwae") else ()),
    ]
    settings = config.parse([*arguments(preset, data_dir), *many])[1]
    if (preset, bound) == ("sylvester", "piwae"):
        with pytest.raises(ValueError, match="takes the density"):
            wiring.build(settings)
        return
    run = wiring.build(settings)
    metrics = jax.eval_shape(run.algorithm.step, *of_a_step(run))[1]
    assert {"loss", "reconstruction", "kl"} <= set(metrics)


@pytest.mark.parametrize("preset", ["gmvae", "vade", "vampprior", "digits"])
def test_components_of_a_prior_are_clusters(preset: str, data_dir: Path) -> None:
    run = wiring.build(config.parse(arguments(preset, data_dir))[1])
    params, split = training.trained(run.init_state()), run.test.take(slice(12))
    if preset == "digits":
        with pytest.raises(ValueError, match="--clustering needs a prior that is a mixture"):
            judgements.clustered(run, params, split)
        return
    assert 0 < judgements.clustered(run, params, split)["clustering_accuracy"] <= 1


@pytest.mark.parametrize(
    ("preset", "parts"),
    [("digits", 4), ("vampprior", 2), ("full-covariance", 2), ("iaf", 2), ("sylvester", 0)],
)
def test_the_kl_term_is_taken_apart_as_far_as_densities_go(
    preset: str, parts: int, data_dir: Path
) -> None:
    run = wiring.build(config.parse(arguments(preset, data_dir))[1])
    params, split = training.trained(run.init_state()), run.test.take(slice(12))
    if not parts:
        with pytest.raises(
            ValueError, match="--decompose needs the density of --posterior sylvester"
        ):
            judgements.decomposed(run, params, split)
        return
    found = judgements.decomposed(run, params, split)
    assert len(found) == parts and np.isfinite(list(found.values())).all()
    assert 0 <= found["mutual_information"] <= np.log(12) + 0.1


def trained(preset: list[str], workdir: Path, data_dir: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        given = [*arguments(preset[0], data_dir), *preset[1:], "--workdir", str(workdir)]
        patch.setattr(sys, "argv", ["train.py", *given])
        train.main()


@pytest.mark.slow
def test_latents_and_samples_are_judged(tmp_path: Path, data_dir: Path) -> None:
    trained(
        ["beta-vae", "--kl-weight", "1", "--steps", "300", "--hidden", "64"], tmp_path, data_dir
    )
    evaluate.evaluate(tmp_path, num_samples=5, decompose=True, samples=True)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    parts = found["mutual_information"] + found["total_correlation"] + found["dimension_wise_kl"]
    assert parts == pytest.approx(found["kl"], rel=0.05)
    assert found["classifier_accuracy"] > 0.85
    assert (
        found["frechet_distance"] > 0 and 0 <= found["precision"] <= 1 and 0 <= found["recall"] <= 1
    )
    evaluate.evaluate(tmp_path, num_samples=5, samples=True, prior="gaussian_mixture")
    fitted = json.loads((tmp_path / "evaluation.json").read_text())
    assert fitted["frechet_distance"] < found["frechet_distance"]
    with pytest.raises(ValueError, match="--prior coupling says what --samples are drawn from"):
        evaluate.evaluate(tmp_path, prior="coupling")
    with pytest.raises(ValueError, match="needs a set whose factors are known"):
        evaluate.evaluate(tmp_path, factors=True, num_samples=5)


@pytest.mark.slow
def test_disentanglement_is_judged(tmp_path: Path, data_dir: Path) -> None:
    trained(["beta-vae", "--dataset", "shapes", "--test-split", "test[:1500]"], tmp_path, data_dir)
    evaluate.evaluate(tmp_path, num_samples=2, num_examples=1500, factors=True)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    shares = (
        "beta_vae_score",
        "factor_vae_score",
        "mig",
        "dci_disentanglement",
        "modularity",
        "irs",
    )
    assert all(0 <= found[name] <= 1 for name in shares)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "prior"),
    [
        *(
            (["autoencoder"], prior)
            for prior in ("aggregate", "gaussian_mixture", "coupling", "second_stage")
        ),
        (["rae-gp"], "gaussian_mixture"),
        (["learned-variance", "--devices", "2"], "second_stage"),
    ],
)
def test_samples_of_what_was_fitted_after_training(
    given: list[str], prior: str, tmp_path: Path, data_dir: Path
) -> None:
    trained(given, tmp_path, data_dir)
    temperature = 0.5 if prior in ("gaussian_mixture", "coupling") else 1.0
    sample.sample(tmp_path, num=5, prior=prior, temperature=temperature, components=3)
    with np.load(tmp_path / "samples.npz") as file:
        assert file["z"].shape == (5, 3) and np.isfinite(file["means"]).all()
