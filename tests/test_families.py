"""Families: every preset on one device and on two, stopped and resumed, evaluated and sampled."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from harness import products, result

import jaxvae
from jaxvae import checkpoints, command_line, datasets, evaluation, families, settings, training
from jaxvae.runs import Job, Run, prepare
from jaxvae.runs.commands import evaluate, sample

SMALL: dict[str, Any] = {
    "hidden": (8,),
    "latent": 3,
    "batch_size": 15,
    "test_samples": 6,
    "test_examples": 12,
}
STEPS: dict[str, Any] = {"steps": 4, "report_every": 2, "checkpoint_every": 2}
OWN: dict[str, dict[str, Any]] = {
    "mnist-vae": {"dataset": "digits"},
    "binary": {"dataset": "digits", "hidden": ()},
    "conv": {"hidden": (4,)},
    "vampprior": {"components": 4},
    "wae-gan": {"critic_hidden": (8,)},
    "factor-vae": {"critic_hidden": (8,)},
    "vq-vae": {"codebook_size": 8, "blocks": 1, "block_hidden": 4},
    "vq-vae-2": {"codebook_size": 8, "top_hidden": (4,), "blocks": 0},
    "rq-vae": {"codebook_size": 8, "quantizers": 2, "blocks": 0},
    "fsq": {"latent": 2, "code_levels": (4, 3), "blocks": 0},
    "lfq": {"blocks": 0},
    "hyperprior": {"hyper_hidden": (4,), "hyper_latent": 2},
    # The bias of attention's keys has no gradient but rounding errors, which Adam would scale up.
    "ladder": {"hidden": (8, 6)},
    "two-layer-vae": {"dataset": "digits", "latent": (3, 2), "upper_hidden": (4,)},
    "bit-swap": {"latent": (3, 2, 2), "upper_hidden": (4,)},
    "vdvae-small": {"blocks": (1, 1)},
    "nvae-small": {"blocks": (1, 2), "kl_warmup_steps": 5},
    **{
        name: {"dataset": "digits", "layout": "pyramid", "blocks": (1, 1), "warmup_steps": 0}
        for name in ("vdvae-cifar10", "vdvae-imagenet64")
    },
    "vae-gan": {"critic_hidden": (8,)},
    "cvae-gan": {"critic_hidden": (8,)},
    "zero-vae-gan": {"critic_hidden": (8,), "self_training_start": 1},
    "mvae": {
        **{"hidden": (6, 4), "latent": 2, "segment_frames": 8},
        **{"window_length": 64, "hop_length": 32, "test_samples": 3},
    },
    "speech-vae": {"frames": 8, "mels": 6, "window_length": 64, "hop_length": 32},
    "multimodal": {"hidden_views": 0.3},
    "single-cell": {"batch_key": "batch", "size_factor_key": "n_counts"},
    "m2": {"labelled": 20, "batch_size": 16},
    "m1-m2": {"labelled": 20, "codes": 2},
    "text-vae": {"decoder_units": 8, "units": 8, "embedding": 4, "max_length": 8},
    "text-ssvae": {
        **{"decoder_units": 8, "units": 8, "embedding": 4, "max_length": 8},
        **{"labelled": 20, "batch_size": 16},
    },
    "avb": {"critic_hidden": (8,), "noise_hidden": (4,), "noise_functions": 2},
    **{
        name: {"states": 4, "parents": 2, "children": 2, "rounds": 2}
        for name in ("tvae", "tvae-patches")
    },
    **{name: {"decoder_hidden": (8,), "num_samples": 3} for name in ("tabular", "not-miwae")},
    "infinite-vae": {"experts": 3, "first_experts": 2, "settling_steps": 1, "gate_samples": 2},
    "autoencoder-kl": {
        **{"norm_groups": 2, "critic_hidden": (4,), "critic_start": 2},
        **{"optimizer": "sgd", "learning_rate": 1e-4},
        **{"classifier_hidden": (4,), "classifier_steps": 3},
    },
    "vq-gan": {
        **{"norm_groups": 2, "critic_hidden": (4,), "critic_start": 2, "codebook_size": 8},
        **{"middle_attention": False},
        **{"classifier_hidden": (4,), "classifier_steps": 3},
    },
}
PRESETS = families.presets()
QUICK = ("cvae",)  # the others are marked slow


def small(preset: str, **named: Any) -> Any:
    """A preset in small."""
    config = families.preset(preset)
    known = dict(settings.settings_of(config))
    shared = {name: value for name, value in SMALL.items() if name in known}
    own = {"of": str(first_stage())} if preset in ("prior", "m1-m2") else {}
    return families.changed(config, **{**shared, **STEPS, **OWN.get(preset, {}), **own, **named})


@functools.cache
def first_stage() -> Path:
    """The folder of a run whose codes a prior can be of."""
    folder = Path(tempfile.mkdtemp(prefix="jaxvae-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = small("digits")
    jaxvae.train(config, folder / "run", data_dir=str(folder / "data"), progress=False)
    return folder / "run"


def run_of(preset: str, data_dir: Path, **named: Any) -> Run:
    """A preset in small with its data and model."""
    return prepare(small(preset, **named), Job(data_dir=str(data_dir)))


def numbers(state: training.State) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]


def slow_but(names: tuple[str, ...], every: Any) -> list[Any]:
    return [n if n in names else pytest.param(n, marks=pytest.mark.slow) for n in every]


@pytest.mark.parametrize("preset", slow_but(QUICK, PRESETS))
def test_presets(preset: str, tmp_path: Path, data_dir: Path) -> None:
    """Trained as a user would, the same on two devices, bit for bit the same when resumed."""
    run, workdir = run_of(preset, data_dir), tmp_path / "run"
    trained = jaxvae.train(small(preset), workdir, data_dir=str(data_dir), progress=False)
    begun, devices = run.init_state(), jax.local_devices()
    with checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        half, straight = (saved.restore(step, begun)[0] for step in (2, 4))
    before = numbers(begun)
    assert any((a != b).any() for a, b in zip(before, numbers(straight), strict=True))
    two_devices = run.fit(devices[:2], num_steps=4)
    for one, two in zip(numbers(straight), numbers(two_devices), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-4)
    resumed = run.fit(devices[:1], state=half, num_steps=4)
    for one, two in zip(numbers(straight), numbers(resumed), strict=True):
        np.testing.assert_array_equal(one, two)

    found = result(workdir)
    assert np.isfinite(found["reconstruction"])
    point = families.family_of(run.config) in ("autoencoder", "predictor")
    assert (found["test_elbo"] is None) == point
    evaluate(workdir, num_samples=4, num_examples=5)
    sample(workdir, num=3)
    with np.load(workdir / "samples.npz") as file:
        assert np.isfinite(file["means"]).all() and len(file["x"]) == 3
    loaded = jaxvae.load(workdir)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, trained.params)
    check_methods(loaded, run)


def check_methods(model: jaxvae.Trained, run: Run) -> None:
    """Every method of a trained model on a batch, with the condition where there is one."""
    split = run.dataset.splits["test"].take(slice(3))
    condition = split.attributes if split.y is None else split.y
    given = {"condition": condition} if model.built.pairs else {}
    x, key = np.asarray(split.x), jax.random.key(0)
    z = model.encode(x, **given)
    assert jax.tree.leaves(z)[0].shape[0] == 3
    assert np.isfinite(model.reconstruct(x, **given)).all()
    assert model.sample(key, 3, **given).shape == model.decode(z, **given).shape
    if families.family_of(run.config) not in ("autoencoder", "predictor"):
        assert np.isfinite(model.elbo(key, x, **given)).all()
        assert np.isfinite(model.log_likelihood(key, x, num_samples=3, **given)).all()


@pytest.mark.slow
def test_a_label_is_an_attribute_for_each_class(digits: datasets.Dataset) -> None:
    """Given as such, the same training, bit for bit."""
    part = digits.splits["train"].take(slice(60))
    trained = []
    for kind, y in (("labels", part.y), ("attributes", np.eye(10)[part.y])):
        data = {"train": (part.x, y), "test": (part.x, y)}
        config = families.preset("cvae", condition=kind, hidden=(8,), latent=2, batch_size=20)
        run = prepare(config, data=datasets.load(data, levels=17))
        state = run.fit(num_steps=3)
        trained.append(jax.tree.map(np.asarray, training.trained(state)))
    jax.tree.map(np.testing.assert_array_equal, *trained)


# What cannot work is refused before a folder is made: preset, settings, words of the sentence.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("cvae", {"condition": "attributes"}, "needs a set in memory with several numbers"),
    ("power-spherical", {"prior": "mixture"}, "prior=mixture is of real latents"),
    ("wae-mmd", {"accumulate": 5}, "need the whole batch: accumulate must be 1"),
    ("digits", {"kl_cost": "free_bits", "accumulate": 5}, "need the whole batch"),
    ("vampprior", {"prior": "vampprior_data", "components": 5000}, "need as many examples"),
    ("planar", {"bound": "piwae", "num_samples": 4}, "takes the density of posterior=planar"),
    ("sylvester", {"bound": "sampled_elbo"}, "has the density of its own draws alone"),
    ("spike-and-slab", {"bound": "iwae", "num_samples": 4}, "needs bound=elbo"),
    ("bits", {"estimator": "rloo", "num_samples": 1}, "needs at least 2 samples"),
    ("digits", {"bound": "miwae", "num_samples": 5, "groups": 2}, "do not divide into 2 groups"),
    ("digits", {"bound": "renyi", "renyi_order": 1.0}, "order 1"),
    ("digits", {"virtual_shards": 7}, "virtual_shards"),
    ("cvae", {"kl_cost": "free_bits", "cvae_weight": 0.5}, "cvae_weight must be 1"),
    ("bits", {"kl_cost": "free_bits", "estimator": "relax"}, "takes no estimator that learns"),
    ("digits", {"early_stopping": 2}, "needs a validation split"),
    ("vq-vae", {"accumulate": 5}, "averages of codes need the whole batch"),
    ("fsq", {"latent": 3}, "state one for each"),
    ("lfq", {"latent": 19}, "18 at most"),
    ("digits", {"warmup_steps": 9}, "must be fewer than steps"),
]


@pytest.mark.parametrize("row", range(len(REFUSED)))
def test_what_does_not_go_together_is_refused(row: int, data_dir: Path) -> None:
    preset, named, words = REFUSED[row]
    with pytest.raises(ValueError, match=words):
        run_of(preset, data_dir, **named)


# One of each kind: priors, conditions, flows, mixtures, critics, estimators.
WITH_NETWORKS = ("vampprior", "coupling-prior", "cvae", "iaf", "gmvae", "factor-vae", "relax")
LEARNED = ("nvil", "relax", "rodeo")  # estimators with a network or parameters of their own


def of_a_step(run: Run) -> tuple[Any, training.Batch]:
    """State, by its shapes, and batch."""
    state = jax.eval_shape(run.init_state)
    x = datasets.rows_of(run.train.examples, slice(2))
    return state, training.Batch(x, np.arange(2), np.full(2, 0.5, np.float32), np.arange(2))


@pytest.mark.parametrize("member", slow_but(WITH_NETWORKS, (*PRESETS, *LEARNED)))
def test_products_of_a_member_are_float32_whatever_the_ambient_is(
    member: str, data_dir: Path
) -> None:
    """JAX's own default on an accelerator is less; priors, critics and estimators have networks."""
    if member in LEARNED:
        run = run_of("bits", data_dir, estimator=member, num_samples=2)
    else:
        run = run_of(member, data_dir)
    with jax.default_matmul_precision("bfloat16"):
        found = products(run.built.algorithm.step, *of_a_step(run))
    assert found
    highest = {jax.lax.Precision.HIGHEST}
    assert all(set(equation.params["precision"]) == highest for equation in found)


@pytest.mark.parametrize("bound", ["iwae", "miwae", "piwae", "ciwae"])
@pytest.mark.parametrize(
    "preset", ["vampprior", "sylvester", "iaf", "cvae", "gmvae", "von-mises-fisher"]
)
def test_bounds_of_many_samples_are_of_any_member(preset: str, bound: str, data_dir: Path) -> None:
    """All are objectives of a member, but one that needs a density which a flow has not."""
    groups = {"groups": 2} if bound in ("miwae", "piwae") else {}
    if (preset, bound) == ("sylvester", "piwae"):
        return  # refused, above
    run = run_of(preset, data_dir, bound=bound, num_samples=4, **groups)
    metrics = jax.eval_shape(run.built.algorithm.step, *of_a_step(run))[1]
    assert {"loss", "reconstruction", "kl"} <= set(metrics)


@pytest.mark.parametrize("preset", ["gmvae", "vade", "vampprior", "infinite-vae", "digits"])
def test_components_of_a_prior_are_clusters(preset: str, data_dir: Path) -> None:
    run = run_of(preset, data_dir)
    params, split = training.trained(run.init_state()), run.test.take(slice(12))
    measure = lambda: evaluation.metrics.measure(
        ["clustering"], run.built.model, params, run.key, evaluation.metrics.Data(split)
    )
    if preset == "digits":
        with pytest.raises(ValueError, match="--clustering needs a prior that is a mixture"):
            measure()
        return
    assert 0 < measure()["clustering_accuracy"] <= 1


DISCRETE: dict[str, tuple[str, dict[str, Any]]] = {
    "bits and a learned control variate": ("bits", {"estimator": "relax"}),
    "bits and a baseline": ("bits", {"bound": "sampled_elbo", "estimator": "nvil"}),
    "classes": ("classes", {"classes": 3, "estimator": "disarm_tree"}),
    "bits and a bound": ("bits", {"bound": "vimco", "num_samples": 3}),
    "the prior's gradient": ("digits", {"bound": "gdreg", "num_samples": 3}),
    "thermodynamic": ("digits", {"bound": "tvo", "betas": (0.0, 0.3), "num_samples": 3}),
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "devices": ("digits", {"devices": 4, "batch_size": 16}),
    "shard_map": (
        "digits",
        {
            **{"devices": 4, "mapping": "shard_map", "batch_size": 16},
            **{"virtual_shards": 8, "precision": "bfloat16"},
        },
    ),
    "fsdp": (
        "digits",
        {
            **{"devices": 4, "mapping": "fsdp", "mesh": "2,2", "batch_size": 16},
            **{"hidden": (256,), "ema_decay": 0.9},
        },
    ),
    "stream": ("digits", {"stream": True, "devices": 2, "profile": True, "batch_size": 16}),
    "residual": ("digits", {"network": "residual", "hidden": (4,), "latent": 2}),
    "sampled": (
        "digits",
        {"bound": "sampled_elbo", "ema_decay": 0.9, "clip_norm": 1.0, "warmup_steps": 2},
    ),
    "free bits": ("digits", {"kl_cost": "free_bits", "free_bits": 0.1, "free_bits_groups": 3}),
    "warm-up": (
        "digits",
        {"kl_warmup": "cyclical", "kl_warmup_steps": 4, "kl_weight": 2.0, "schedule": "linear"},
    ),
    "static": ("digits", {"pixels": "static", "optimizer": "adamax", "accumulate": 3}),
    "gaussian": (
        "full-covariance",
        {"likelihood": "normal_learned", "scale": 0.2, "schedule": "constant"},
    ),
    "logistic": ("digits", {"likelihood": "discretized_logistic", "optimizer": "adamw"}),
    "mixture": ("digits", {"likelihood": "discretized_logistic_mixture"}),
    "counts": ("digits", {"likelihood": "zero_inflated_negative_binomial", "optimizer": "sgd"}),
    "categorical": ("digits", {"likelihood": "categorical"}),
    "continuous": (
        "digits",
        {
            **{"likelihood": "continuous_bernoulli", "test_examples": None},
            **{"train_split": "train[:5]", "test_split": "test[:1]"},
        },
    ),
    "quadrants": ("cvae", {"condition": "quadrants", "quadrants": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", {**DISCRETE, **RUNS})
def test_every_choice_runs(tmp_path: Path, data_dir: Path, kind: str) -> None:
    """Trained, evaluated, drawn from and loaded."""
    preset, named = {**DISCRETE, **RUNS}[kind]
    in_job = ("devices", "mapping", "mesh", "stream", "profile")
    for_job = {n: named[n] for n in in_job if n in named}
    rest = {name: value for name, value in named.items() if name not in for_job}
    config = small(preset, **rest)
    job = Job(data_dir=str(data_dir), **for_job)
    from jaxvae.runs.training import train_in

    train_in(preset, config, job, tmp_path, progress=False)
    values = json.loads((tmp_path / "result.json").read_text())
    assert np.isfinite([values["test_elbo"], values["test_log_likelihood"]]).all()
    assert np.isfinite(values.get("bits_per_dim", values.get("nats_per_dim")))
    sample(tmp_path, num=3)
    with np.load(tmp_path / "samples.npz") as file:
        assert len(file["x"]) == 3


@pytest.mark.slow
def test_latents_and_samples_are_measured(tmp_path: Path, data_dir: Path) -> None:
    config = small("beta-vae", kl_weight=1.0, steps=300, hidden=(64,), checkpoint_every=300)
    jaxvae.train(config, tmp_path, data_dir=str(data_dir), progress=False)
    evaluate(tmp_path, num_samples=5, decompose=True, samples=True)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    parts = found["mutual_information"] + found["total_correlation"] + found["dimension_wise_kl"]
    assert parts == pytest.approx(found["kl"], rel=0.05)
    assert found["classifier_accuracy"] > 0.85
    evaluate(tmp_path, num_samples=5, samples=True, prior="gaussian_mixture")
    fitted = json.loads((tmp_path / "evaluation.json").read_text())
    assert fitted["frechet_distance"] < found["frechet_distance"]
    with pytest.raises(ValueError, match="--prior coupling says what --samples are drawn from"):
        evaluate(tmp_path, prior="coupling")
    with pytest.raises(ValueError, match="needs a set whose factors are known"):
        evaluate(tmp_path, factors=True, num_samples=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "prior"),
    [
        *(("autoencoder", p) for p in ("aggregate", "gaussian_mixture", "coupling")),
        ("learned-variance", "second_stage"),
    ],
)
def test_samples_of_what_was_fitted_after_training(
    preset: str, prior: str, tmp_path: Path, data_dir: Path
) -> None:
    jaxvae.train(small(preset), tmp_path, data_dir=str(data_dir), progress=False)
    temperature = 0.5 if prior in ("gaussian_mixture", "coupling") else 1.0
    components = 2 if prior == "gaussian_mixture" else None
    sample(tmp_path, num=5, prior=prior, temperature=temperature, components=components)
    with np.load(tmp_path / "samples.npz") as file:
        assert file["z"].shape == (5, 3) and np.isfinite(file["means"]).all()


FIRST = {type(config): name for name, (_, config) in reversed(PRESETS.items())}  # of a family


@pytest.mark.parametrize(
    "names", [tuple(FIRST.values()), pytest.param(tuple(PRESETS), marks=pytest.mark.slow)]
)
def test_every_setting_of_a_preset_is_a_flag(names: tuple[str, ...]) -> None:
    for name in names:
        command = command_line.parse([name, "--steps", "7"])
        assert command.config == families.changed(PRESETS[name][1], steps=7), name
