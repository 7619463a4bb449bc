"""Classifiers whose layers were first trained as autoencoders, one on top of the other (Vincent et
al. 2008).

``python experiments/papers/stacked.py [--rows none denoising] [--data-dir DIR] [--seeds 3] [--json
OUT]``

Test error in percent of three sigmoid layers and a softmax: with no pretraining, with plain
autoencoders, and with denoising ones. ``mnist`` is cut as *basic* in the paper: 10,000 examples to
train, 2,000 to choose the epoch and the learning rate, the rest and the test split to report on.
Published for the whole of MNIST, with 50,000 to train on: 1.3 with denoising
(github.com/lisa-lab/DeepLearningTutorials).
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import cells
import commands

from jaxvae import datasets, likelihoods, models, networks, posteriors, priors, training


@dataclasses.dataclass(frozen=True)
class Options:
    """What is trained."""

    rows: tuple[str, ...] = ()
    """Rows of the table: none, autoencoders, denoising; none given is all."""
    dataset: str = "mnist"
    """Set with labels."""
    data_dir: str | None = None
    """Folder of prepared tensorflow-datasets."""
    hidden: tuple[int, ...] = (1000, 1000, 1000)
    """Widths of the layers."""
    corruption: tuple[float, ...] = (0.1, 0.2, 0.3)
    """Share of the inputs of each layer that are masked."""
    pretraining: int = 15
    """Epochs of each layer."""
    epochs: int = 40
    """Epochs of the whole classifier; the one with the least validation error counts."""
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """Of the classifier's Adam; the one with the least validation error counts."""
    train_examples: int = 10_000
    """Examples to train on."""
    validation_examples: int = 2000
    """Examples to choose by."""
    seeds: int = 3
    """Seeds, from 0 on."""
    json: Path | None = None
    """File for everything that was found."""


BATCH = 100
PRETRAINING = ("none", "autoencoders", "denoising")


def autoencoder(inputs: int, width: int) -> models.VAE:
    """One sigmoid layer, and its way back to inputs in [0, 1]: cross-entropy of a Bernoulli."""
    layer = networks.mlp((), width)
    encoder = layer._replace(apply=lambda params, x: jax.nn.sigmoid(layer.apply(params, x)))
    return models.vae(
        encoder,
        networks.mlp((), inputs),
        posteriors.point(width),
        likelihoods.bernoulli(),
        priors.standard_normal(width),
    )


def stacked(
    x: np.ndarray, hidden: tuple[int, ...], corruption: tuple[float, ...], epochs: int, seed: int
) -> list[Any]:
    """The encoders of autoencoders that were trained one after the other, each on the codes of the
    one before.

    x ~ is the layer's input with a share of it masked; the layer minimises the cross-entropy of x
    and g(f(x~)) (Vincent et al. 2008, sec. 2.3 and 2.4). A share of 0 makes it a plain autoencoder.
    """
    encoders = []
    for i, (width, level) in enumerate(zip(hidden, corruption, strict=True)):
        vae = autoencoder(x.shape[1], width)
        init = lambda key, x, vae=vae, i=i: vae.init(
            jax.random.fold_in(key, i), x
        )  # each layer from a draw of its own
        noisy = lambda key, x, level=level: models.Corrupted(
            x, datasets.CORRUPTIONS["masking"](key, x, level)
        )
        preprocess = noisy if level else lambda key, x: models.Corrupted(x, x)
        loss = training.batch_mean(models.negative_reconstruction(models.Denoising(vae)))
        algorithm = training.gradient_descent(
            init, training.preprocessed(preprocess, loss), optax.adam(1e-3)
        )
        steps = epochs * (len(x) // BATCH)
        state = (
            training.fit(algorithm, x, num_steps=steps, batch_size=BATCH, seed=seed)
            if steps
            else None
        )
        params = init(jax.random.key(seed), x[0]) if state is None else training.trained(state)
        encoders.append(params["encoder"])
        encode = jax.jit(jax.vmap(lambda x, vae=vae, params=params: vae.encode(params, x).loc))
        x = np.concatenate(
            [np.asarray(encode(part)) for part in np.array_split(x, max(len(x) // 1000, 1))]
        )
    return encoders


def logits(params: Any, x: jax.Array) -> jax.Array:
    """Of the classes."""
    for encoder in params["encoders"]:
        layer = networks.mlp((), encoder["Dense_0"]["bias"].shape[0])
        x = jax.nn.sigmoid(layer.apply(encoder, x))
    return x @ params["kernel"] + params["bias"]


def tuned(
    encoders: list[Any],
    data: dict[str, tuple[np.ndarray, np.ndarray]],
    rate: float,
    epochs: int,
    seed: int,
) -> tuple[float, float]:
    """Validation and test error of the classifier, in percent, at the epoch with the least
    validation error.
    """
    classes = int(data["train"][1].max()) + 1

    def loss(params: Any, key: jax.Array, example: Any, step: jax.Array) -> tuple[jax.Array, dict]:
        x, label = example
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), label), {}

    width = encoders[-1]["Dense_0"]["bias"].shape[0]
    params = {
        "encoders": encoders,
        "kernel": jnp.zeros((width, classes)),
        "bias": jnp.zeros(classes),
    }
    algorithm = training.gradient_descent(
        lambda key, x: params, training.batch_mean(loss), optax.adam(rate)
    )
    predict = jax.jit(jax.vmap(lambda params, x: logits(params, x).argmax(), (None, 0)))

    def error(params: Any, part: str) -> float:
        x, labels = data[part]
        guesses = [
            np.asarray(predict(params, block))
            for block in np.array_split(x, max(len(x) // 1000, 1))
        ]
        return 100 * float((np.concatenate(guesses) != labels).mean())

    found: list[tuple[float, float]] = []

    steps = len(data["train"][0]) // BATCH
    state: Any = None
    for epoch in range(1, epochs + 1):
        state = training.fit(
            algorithm,
            data["train"],
            state=state,
            num_steps=epoch * steps,
            batch_size=BATCH,
            seed=seed,
        )
        found.append(
            (error(training.trained(state), "validation"), error(training.trained(state), "test"))
        )
    return min(
        found, key=lambda errors: errors[0]
    )  # ties go to the first: the test error chooses nothing


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Classifiers whose layers were first trained as autoencoders, one on top of the other."""
    cells.check_place(options.json)
    for name in options.rows:
        if name not in PRETRAINING:
            raise ValueError(f"no row {name!r}; there are {', '.join(PRETRAINING)}")
    if len(options.corruption) != len(options.hidden):
        raise ValueError(
            f"{len(options.hidden)} layers need as many levels of corruption; {options.corruption} were given"
        )
    dataset = datasets.load(options.dataset, options.data_dir)
    parts = [dataset.splits["train"], dataset.splits["test"]]
    if any(part.labels is None for part in parts):
        raise ValueError(f"--dataset needs labels; {options.dataset} has none")
    x = np.concatenate(
        [np.asarray(part.images, np.float32).reshape(len(part.images), -1) for part in parts]
    )
    labels = np.concatenate([part.labels for part in parts]).astype(np.int32)
    cuts = np.cumsum([options.train_examples, options.validation_examples])
    if cuts[-1] >= len(x):
        raise ValueError(
            f"--train-examples and --validation-examples leave none of {len(x)} examples to report on"
        )
    names = ("train", "validation", "test")
    data = dict(
        zip(
            names,
            zip(np.split(x / (dataset.levels - 1), cuts), np.split(labels, cuts), strict=True),
            strict=True,
        )
    )
    found: cells.Found = {}
    for name in options.rows or PRETRAINING:
        corruption = options.corruption if name == "denoising" else (0.0,) * len(options.hidden)
        epochs = 0 if name == "none" else options.pretraining
        for seed in range(options.seeds):
            start = time.perf_counter()
            encoders = stacked(data["train"][0], options.hidden, corruption, epochs, seed)
            of_rates = [
                tuned(encoders, data, rate, options.epochs, seed) for rate in options.learning_rates
            ]
            validation, test = min(of_rates, key=lambda errors: errors[0])
            cell = {
                "test error": test,
                "validation error": validation,
                "seconds": time.perf_counter() - start,
            }
            found.setdefault(name, []).append(cell)
            print(
                f"{name}, seed {seed}: test error {test:.2f} %, {cell['seconds']:.0f} s", flush=True
            )
    cells.show(found, "test error")
    cells.save(options.json, dataclasses.asdict(options), found)


if __name__ == "__main__":
    commands.command(main)
