"""Test errors with few labels, of M1 + classifier, M2 and M1+M2 (Kingma et al. 2014).

``python experiments/papers/labels.py [--rows m2 m1-m2] [--labelled 100 1000] [--m1 PLACE]
[--data-dir DIR] [--seeds 3] [--json OUT]``

M1 is a VAE of the training images, 784-500-500-50. ``--m1`` is a run of one, or a folder with the
published weights ``m1.npz``; without it M1 is trained first. The rows are a network that learns
from the labels alone, a logistic regression on the mean codes of M1, M2 of the pixels, and M2 of
sampled codes of M1. The numbers are percentages of the test set. Published with 100 / 1000 labels:
M1 + TSVM 11.82 / 4.24, M2 11.97 / 3.60, M1+M2 3.33 / 2.40 (arXiv:1406.5298, table 1).
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jaxvae
from experiments import tables
from jaxvae import checkpoints, datasets, evaluation, networks, training
from jaxvae.command_line import run_function
from jaxvae.families import Data, preset
from jaxvae.runs import folders

PUBLISHED = {"m1": (11.82, 4.24), "m2": (11.97, 3.60), "m1-m2": (3.33, 2.40)}  # 100, 1000 labels
RATE = 1e-3  # learning rate of M1 and of the network of the labels alone
PUBLISHED_KL = 23.7341  # mean over the test images, of the published weights of M1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    labelled: tuple[int, ...] = (100, 1000)
    """How many labels are used, equally many of each class."""
    m1: Path | None = None
    """A run of M1, or a folder with its published weights; None trains it."""
    train_split: str = "train[:50000]"
    """Split to train on."""
    hidden: tuple[int, ...] = (500,)
    """Widths of the hidden layers of M2 and of the classifiers."""
    latent: int = 50
    """Dimensions of the codes of M1, and of z in M2."""
    first_hidden: tuple[int, ...] = (500, 500)
    """Widths of the hidden layers of M1."""
    first_steps: int = 50_000
    """Training steps of M1."""
    learning_rate: float | None = None  # type: ignore[assignment]
    """Peak learning rate of Adam; None is the preset's, and 1e-3 for the rows without one."""
    label_weight: float | None = None
    """Weight of the mean cross-entropy; None is the preset's."""
    labelled_share: float = 0.1
    """Share of labelled examples in a batch."""
    classifier_steps: int = 2000
    """Training steps of the network that learns from the labels alone."""


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Test errors with few labels, of M1 + classifier, M2 and M1+M2."""
    rows = options.chosen(ROWS)
    with tempfile.TemporaryDirectory() as folder:
        first = functools.cache(lambda: first_stage(options, Path(folder)))
        results: tables.Results = {}
        for name, measure in rows.items():
            for count in options.labelled:
                for seed in range(options.seeds):
                    start = time.perf_counter()
                    found = {"error": 100 * measure(options, first, count, seed)}
                    found["seconds"] = time.perf_counter() - start
                    row = f"{name}, {count} labels"
                    results.setdefault(row, []).append(found)
                    print(f"{row}, seed {seed}: {found['error']:.2f} %", flush=True)
    tables.show(results)
    for name, pair in PUBLISHED.items():
        print(f"published {name}: {pair[0]} with 100 labels, {pair[1]} with 1000")
    tables.save(options.json, dataclasses.asdict(options), results)


# M1


def first_stage(options: Options, folder: Path) -> Path:
    """The run folder of M1."""
    place = options.m1
    if place is None:
        config = options.applied(
            preset("digits", activation="softplus"),
            hidden=options.first_hidden,
            learning_rate=options.learning_rate or RATE,
            steps=options.first_steps,
            train_split=options.train_split,
            test_samples=10,
            test_examples=100,
        )
        jaxvae.train(config, folder / "m1", data_dir=options.data_dir, progress=False)
        return folder / "m1"
    if (place / "config.json").exists():
        return place
    imported(place / "m1.npz", folder / "m1", options)
    check_parity(folder / "m1", options)
    return folder / "m1"


def parameters_of(arrays: Any) -> dict[str, Any]:
    """The published weights as the parameters of a flat VAE, whose encoder gives [m, log s]."""

    def layer(weights: Any, biases: Any) -> dict[str, Any]:
        return {
            "kernel": np.asarray(weights, np.float32).T,
            "bias": np.asarray(biases, np.float32)[:, 0],
        }

    def network(part: str, output: dict[str, Any]) -> dict[str, Any]:
        hidden = {
            f"hidden_{i}": layer(arrays[f"{part}_w{i}"], arrays[f"{part}_b{i}"]) for i in (0, 1)
        }
        return hidden | {"output": output}

    mean = layer(arrays["encoder_mean_w"], arrays["encoder_mean_b"])
    log_variance = layer(arrays["encoder_logvar_w"], arrays["encoder_logvar_b"])
    both = {n: np.concatenate([mean[n], log_variance[n] / 2], -1) for n in ("kernel", "bias")}
    out = layer(arrays["decoder_out_w"], arrays["decoder_out_b"])
    parts = {"encoder": network("encoder", both), "decoder": network("decoder", out)}
    return parts | {"posterior": {}, "likelihood": {}, "prior": {}}


def imported(weights: Path, workdir: Path, options: Options) -> None:
    """Makes a run of the published weights, of pixels / 255."""
    with np.load(weights) as file:
        params = parameters_of(file)
    widths = [params["encoder"][f"hidden_{i}"]["bias"].size for i in (0, 1)]
    latent = params["decoder"]["hidden_0"]["kernel"].shape[0]
    config = preset("digits", hidden=tuple(widths), activation="softplus", latent=latent)
    changes: dict[str, Any] = {"dataset": options.dataset, "train_split": options.train_split}
    config = dataclasses.replace(config, **changes, pixels="scale", steps=0)
    data = Data(options.dataset, (28, 28, 1), "uint8", 256, "scale", 50_000)
    record = folders.Record("flat", config, data, _place(options))
    built = record.build()
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), _shapes(built, data))
    state = state._replace(key=jax.random.key(0), params={"model": params})
    with folders.lock(workdir), checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        folders.save(workdir, record)
        saved.save(0, state, {})


def _place(options: Options) -> dict[str, Any]:
    return {"dataset": options.dataset, "data_dir": options.data_dir, "stream": False}


def _shapes(built: Any, data: Data) -> Any:
    return built.fresh_state(data)._replace(key=None)


def check_parity(workdir: Path, options: Options) -> None:
    """Raises ValueError if the weights do not give the published KL on the test images."""
    trained = jaxvae.load(workdir)
    dataset = datasets.load(options.dataset, options.data_dir, pixels="scale")
    split = trained.built.split(dataset.splits["test"])
    found = evaluation.evaluate_elbo(trained.model, trained.params, jax.random.key(0), split)
    print(f"published M1: KL {found.kl:.4f}, ELBO {found.elbo:.2f}", flush=True)
    if found.kl is None or abs(found.kl - PUBLISHED_KL) > 5e-3:
        raise ValueError(f"{options.m1}: mean KL is {found.kl}, and {PUBLISHED_KL} is published")


# Rows: (options, first stage, number of labels, seed) -> test error

First = Callable[[], Path]


def labels_alone(options: Options, first: First, count: int, seed: int) -> float:
    """A network that learns from the labels alone, of pixels in [0, 1]."""
    (x, y), (test, truth) = _splits(options, count, seed)
    classifier = networks.mlp(options.hidden, int(y.max()) + 1)

    def loss(params: Any, key: jax.Array, example: Any, step: jax.Array) -> Any:
        logits = classifier.apply(params, example[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, example[1]), {}

    algorithm = training.gradient_descent(
        lambda key, example: classifier.init(key, example[0]),
        training.batch_mean(loss),
        optax.adam(options.learning_rate or RATE),
    )
    size = min(options.batch_size, len(x))
    state = training.fit(
        algorithm, (x, y), num_steps=options.classifier_steps, batch_size=size, seed=seed
    )
    logits = jax.jit(jax.vmap(classifier.apply, (None, 0)))(training.trained(state), test)
    return float((np.asarray(logits).argmax(1) != truth).mean())


def _splits(options: Options, count: int, seed: int) -> Any:
    """Labelled training images, and all test images, both in [0, 1] with their labels."""
    dataset = datasets.load(options.dataset, options.data_dir, pixels="scale")
    train = datasets.select(dataset, options.train_split)
    labels = datasets.hide_labels(train.y, count, int(train.y.max()) + 1, seed)
    chosen = np.flatnonzero(labels >= 0)
    parts = train.take(chosen), dataset.splits["test"]
    levels = (dataset.levels or 256) - 1
    return [(np.asarray(part.x, np.float32) / levels, np.asarray(part.y)) for part in parts]


def m1_and_classifier(options: Options, first: First, count: int, seed: int) -> float:
    """Logistic regression on the mean codes of M1."""
    from sklearn.linear_model import LogisticRegression

    trained = jaxvae.load(first())
    dataset = datasets.load(options.dataset, options.data_dir)
    train = datasets.select(dataset, options.train_split)
    labels = datasets.hide_labels(train.y, count, int(train.y.max()) + 1, seed)

    def encoded(split: Any) -> np.ndarray:
        of_model = trained.built.split(split)
        key = jax.random.key(seed)
        return evaluation.encode_split(trained.model, trained.params, key, of_model)

    chosen = np.flatnonzero(labels >= 0)
    regression = LogisticRegression(max_iter=2000).fit(encoded(train.take(chosen)), labels[chosen])
    test = dataset.splits["test"]
    return float((regression.predict(encoded(test)) != test.y).mean())


def error_of(config: Any, options: Options) -> float:
    """The test error of a model with labels after its training."""
    trained = tables.trained(config, options.job)
    run = trained.run
    found = evaluation.classification(run.built.model, trained.params, run.key, run.test)
    assert found is not None
    return 1 - found.accuracy


def m2(options: Options, first: First, count: int, seed: int) -> float:
    """M2 of binarized pixels."""
    return error_of(_with_labels(preset("m2"), options, count, seed), options)


def m1_m2(options: Options, first: First, count: int, seed: int) -> float:
    """M2 of sampled codes of M1."""
    config = preset("m1-m2", of=str(first()))
    return error_of(_with_labels(config, options, count, seed), options)


def _with_labels(config: Any, options: Options, count: int, seed: int) -> Any:
    weight = config.label_weight if options.label_weight is None else options.label_weight
    return options.applied(
        config,
        labelled=count,
        learning_rate=options.learning_rate or config.learning_rate,
        label_weight=weight,
        labelled_share=options.labelled_share,
        train_split=options.train_split,
        seed=seed,
    )


ROWS: dict[str, Callable[[Options, First, int, int], float]] = {
    "labels alone": labels_alone,
    "m1": m1_and_classifier,
    "m2": m2,
    "m1-m2": m1_m2,
}

if __name__ == "__main__":
    run_function(main)
