"""Classifiers whose layers were first trained as autoencoders, one on top of the other.

``python experiments/papers/stacked.py [--rows none denoising] [--data-dir DIR] [--seeds 3]
[--json OUT]``

The table shows the test error, in percent, of three sigmoid layers and a softmax: with no
pretraining, with plain autoencoders, and with denoising ones (Vincent et al. 2008). ``mnist`` is
cut as *basic* in the paper: 10,000 examples to train, 2,000 to choose the epoch and the learning
rate, the rest and the test split to report on. Published for the whole of MNIST, with 50,000 to
train on: 1.3 with denoising (github.com/lisa-lab/DeepLearningTutorials).
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import tables
from jaxvae import datasets, likelihoods, models, networks, posteriors, priors, training
from jaxvae.command_line import run_function

Data = dict[str, tuple[np.ndarray, np.ndarray]]  # part -> (x [N, D] in [0, 1], labels [N])


@dataclasses.dataclass(frozen=True)
class Options:
    """What is trained."""

    rows: tuple[str, ...] = ()
    """Rows of the table: none, autoencoders, denoising; without rows all are trained."""
    dataset: str = "mnist"
    """Data set with labels."""
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
    """Learning rates of the classifier's Adam; the one with the least validation error counts."""
    train_examples: int = 10_000
    """Examples to train on."""
    validation_examples: int = 2000
    """Examples to choose the epoch and the learning rate by."""
    seeds: int = 3
    """Seeds, from 0 on."""
    json: Path | None = None
    """File for all results."""


BATCH = 100
BLOCK = 1000  # examples that are computed at once
PRETRAINING = ("none", "autoencoders", "denoising")


# Pretraining, layer by layer


def sigmoid_layer(width: int) -> networks.Network:
    """One layer of a network: ``width`` sigmoids of affine functions."""
    affine = networks.mlp((), width)
    return affine._replace(apply=lambda params, x: jax.nn.sigmoid(affine.apply(params, x)))


def autoencoder(inputs: int, width: int) -> models.VAE:
    """One sigmoid layer, and its way back to inputs in [0, 1]: cross-entropy of a Bernoulli."""
    return models.vae(
        sigmoid_layer(width),
        networks.mlp((), inputs),
        posteriors.point(width),
        likelihoods.bernoulli(),
        priors.standard_normal(width),
    )


def masked(share: float) -> Any:
    """Preprocessing that gives an input and the same one with a share of it masked."""

    def pair(key: jax.Array, x: jax.Array) -> models.Corrupted:
        return models.Corrupted(x, datasets.CORRUPTIONS["masking"](key, x, share) if share else x)

    return pair


def stacked(x: np.ndarray, options: Options, row: str, seed: int) -> list[Any]:
    """The layers' parameters after pretraining, each on the codes of the layer before.

    Where x~ is the layer's input with a share of it masked, the layer minimises the cross-entropy
    of x and g(f(x~)) (Vincent et al. 2008, sec. 2.3 and 2.4). Without masking it is a plain
    autoencoder.
    """
    shares = options.corruption if row == "denoising" else (0.0,) * len(options.hidden)
    epochs = 0 if row == "none" else options.pretraining
    encoders = []
    for number, (width, share) in enumerate(zip(options.hidden, shares, strict=True)):
        vae = autoencoder(x.shape[1], width)
        params = _pretrained(vae, datasets.Examples(x, masked(share)), epochs, number, seed)
        encoders.append(params["encoder"])
        encode = _of_batch(lambda params, x, vae=vae: vae.encode(params, x).loc)
        x = _in_blocks(encode, params, x)
    return encoders


def _pretrained(vae: models.VAE, examples: Any, epochs: int, number: int, seed: int) -> Any:
    """The parameters of one autoencoder; each layer starts from a draw of its own."""

    def init(key: jax.Array, example: models.Corrupted) -> Any:
        return vae.init(jax.random.fold_in(key, number), example.x)

    x = examples.raw
    steps = epochs * (len(x) // BATCH)
    if not steps:
        return init(jax.random.key(seed), models.Corrupted(x[0], x[0]))
    denoising: Any = models.Denoising(vae)
    loss = training.batch_mean(models.negative_reconstruction(denoising))
    algorithm = training.gradient_descent(init, loss, optax.adam(1e-3))
    state = training.fit(algorithm, examples, num_steps=steps, batch_size=BATCH, seed=seed)
    return training.trained(state)


def _of_batch(function: Any) -> Any:
    return jax.jit(jax.vmap(function, (None, 0)))


def _in_blocks(of_batch: Any, params: Any, x: np.ndarray) -> np.ndarray:
    """A function of batches for all examples, a thousand at a time."""
    blocks = np.array_split(x, max(len(x) // BLOCK, 1))
    return np.concatenate([np.asarray(of_batch(params, block)) for block in blocks])


# The classifier


def logits(hidden: Sequence[int], params: Any, x: jax.Array) -> jax.Array:
    """The logits of the classes, of layers with these widths."""
    for width, encoder in zip(hidden, params["encoders"], strict=True):
        x = sigmoid_layer(width).apply(encoder, x)
    return x @ params["kernel"] + params["bias"]


def tuned(
    encoders: list[Any], data: Data, rate: float, options: Options, seed: int
) -> tuple[float, float]:
    """Validation and test error in percent, at the epoch with the least validation error.

    Args:
      encoders: the layers' parameters to start from.
      data: the examples.
      rate: the learning rate.
      options: the options of the script.
      seed: the seed of the batches.
    """
    classes = int(data["train"][1].max()) + 1
    kernel, bias = jnp.zeros((options.hidden[-1], classes)), jnp.zeros(classes)
    start = {"encoders": encoders, "kernel": kernel, "bias": bias}

    def loss(params: Any, key: jax.Array, example: Any, step: jax.Array) -> tuple[jax.Array, dict]:
        x, label = example
        of_classes = logits(options.hidden, params, x)
        return optax.softmax_cross_entropy_with_integer_labels(of_classes, label), {}

    def guess(params: Any, x: jax.Array) -> jax.Array:
        return logits(options.hidden, params, x).argmax()

    guesses = _of_batch(guess)

    def error(params: Any, part: str) -> float:
        x, labels = data[part]
        return 100 * float((_in_blocks(guesses, params, x) != labels).mean())

    algorithm = training.gradient_descent(
        lambda key, x: start, training.batch_mean(loss), optax.adam(rate)
    )
    steps, state, errors = len(data["train"][0]) // BATCH, None, []
    for epoch in range(1, options.epochs + 1):
        state = training.fit(
            algorithm,
            data["train"],
            state=state,
            num_steps=epoch * steps,
            batch_size=BATCH,
            seed=seed,
        )
        params = training.trained(state)
        errors.append((error(params, "validation"), error(params, "test")))
    return min(errors, key=_validation_error)


def _validation_error(errors: tuple[float, float]) -> float:
    """What is chosen by; ties go to the first, so that the test error chooses nothing."""
    return errors[0]


def cut(options: Options) -> Data:
    """The examples to train on, to choose by, and to report on."""
    dataset = datasets.load(options.dataset, options.data_dir)
    parts = [dataset.splits["train"], dataset.splits["test"]]
    if any(part.y is None for part in parts) or dataset.levels is None:
        raise ValueError(f"--dataset needs labels and integer pixels; {options.dataset} has none")
    flat = [np.asarray(part.x, np.float32).reshape(len(part.x), -1) for part in parts]
    x = np.concatenate(flat) / (dataset.levels - 1)
    labels = np.concatenate([part.y for part in parts]).astype(np.int32)
    cuts = np.cumsum([options.train_examples, options.validation_examples])
    if cuts[-1] >= len(x):
        raise ValueError(
            f"--train-examples and --validation-examples leave none of {len(x)} examples to "
            "report on"
        )
    pairs = zip(np.split(x, cuts), np.split(labels, cuts), strict=True)
    return dict(zip(("train", "validation", "test"), pairs, strict=True))


def check(options: Options) -> None:
    """Raises ValueError for options that do not fit together."""
    tables.check_place(options.json)
    for name in options.rows:
        if name not in PRETRAINING:
            raise ValueError(f"no row {name!r}; there are {', '.join(PRETRAINING)}")
    if len(options.corruption) != len(options.hidden):
        raise ValueError(
            f"{len(options.hidden)} layers need as many levels of corruption; "
            f"{options.corruption} were given"
        )


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Classifiers whose layers were first trained as autoencoders, one on top of the other."""
    check(options)
    data = cut(options)
    results: tables.Results = {}
    for name in options.rows or PRETRAINING:
        for seed in range(options.seeds):
            start = time.perf_counter()
            encoders = stacked(data["train"][0], options, name, seed)
            of_rates = [tuned(encoders, data, r, options, seed) for r in options.learning_rates]
            validation, test = min(of_rates, key=_validation_error)
            seconds = time.perf_counter() - start
            cell = {"test error": test, "validation error": validation, "seconds": seconds}
            results.setdefault(name, []).append(cell)
            print(f"{name}, seed {seed}: test error {test:.2f} %, {seconds:.0f} s", flush=True)
    tables.show(results, "test error")
    tables.save(options.json, dataclasses.asdict(options), results)


if __name__ == "__main__":
    run_function(main)
