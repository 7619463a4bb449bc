"""VAE, autoencoder and GAN: what surveys compare in words, as one table of measured numbers.

``python experiments/papers/generative.py [--dataset digits] [--data-dir DIR] [--seeds 5]
[--json OUT]``

The three have the same decoder, and as many latents with a standard normal prior. The autoencoder
has points as codes, which no prior holds. The GAN is two players (Goodfellow et al. 2014,
arXiv:1406.2661, with the generator's loss that does not saturate). *no model* is what there is
without one. Numbers are means over seeds with 95 % intervals.

* density and coverage (Naeem et al. 2020), k = 5, in pixels, of 2,000 images beside the test
  images: means of p(x|z) beside grey images, and draws of it beside binary ones. Means are smoother
  than data, so their density can be above one; draws are the fair comparison. Without a model
  training images take their place.
* MMD^2 of draws of q(z|x) and of the prior, and the deviation of mean codes. A GAN has no encoder.
* what each objective ends at on test images, in nats. Only the VAE has a bound on log p(x). The
  autoencoder's reconstruction is log p(x|z) at its code, which is no density of x. Losses of critic
  and generator say how well one does beside the other: with equal laws they are 1.386 and .693.
* the upper half of each binary test image is hidden, and every model predicts its pixels: the VAE
  by importance sampling, the autoencoder by decoding its own completion again and again, the GAN by
  the latent that fits the lower half best under the prior. *calibration* is the expected
  calibration error of these probabilities, *hidden pixels* their cross-entropy in nats, *jointly*
  the same of all hidden pixels of an image at once. At one z pixels are independent, so that only
  the VAE has another number there. Probabilities are clipped to [1e-6, 1 - 1e-6].
* the accuracy of classes by five nearest neighbours in mean codes; without a model, in pixels.

A trial of another program: density of means 2.13 / .22 / .88, coverage 1.00 / .60 / .97, MMD^2 .030
/ .309, deviation .65 / 2.12, ELBO -22.6, critic 1.15, generator .95, calibration .009 / .178 /
.045, hidden pixels .354 / .886 / .410 and .418 without a model, accuracy .858 / .844.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from sklearn.neighbors import KNeighborsClassifier

from experiments import gans, tables
from experiments.papers import codes
from jaxvae import datasets, evaluation, likelihoods, models, networks, runs
from jaxvae.command_line import run_function
from jaxvae.contracts import Array, Loss, Params
from jaxvae.distributions import mean_of
from jaxvae.evaluation.classification import calibration_error
from jaxvae.evaluation.samples import density_coverage
from jaxvae.families import preset
from jaxvae.models.observed import observed
from jaxvae.uses import missing

CLIPPED = 1e-6  # from 0 and 1, of predicted probabilities
NEIGHBOURS = 5
AT_ONCE = 50  # images that are completed at once
COLUMNS = (
    *("density of means", "coverage of means", "density of draws", "coverage of draws"),
    *("MMD^2 of codes", "deviation of codes"),
    *("ELBO", "log p(x)", "reconstruction", "critic's loss", "generator's loss"),
    *("calibration", "hidden pixels", "hidden pixels, jointly", "accuracy of codes"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    dataset: str = "digits"
    steps: int = 3000
    seeds: int = 5
    gan_steps: int = 8000
    """Training steps of the GAN."""
    gan_rate: float = 3e-4
    """Learning rate of both players' Adam (betas 0.5 and 0.9)."""
    samples: int = 2000
    """Images that are generated."""
    num_samples: int = 1000
    """Importance samples of an image, for log p(x) and for hidden pixels."""
    completions: int = 50
    """Times that the autoencoder decodes its own completion."""
    inversion_steps: int = 150
    """Gradient steps of the latent that fits an image best."""
    restarts: int = 4
    """Latents that these steps start from, of which the best counts."""


class Images(NamedTuple):
    """Images in [0, 1], the same drawn as 0 or 1, and their labels."""

    grey: np.ndarray
    bits: np.ndarray
    labels: np.ndarray


class Data(NamedTuple):
    """What models learn and are judged by."""

    run: runs.Run
    train: Images
    test: Images

    @property
    def hidden(self) -> np.ndarray:
        """Which pixels of the test images are hidden: the upper half of each."""
        height = np.arange(self.run.record.data.shape[0]) < self.run.record.data.shape[0] // 2
        rest = [1] * (self.test.bits.ndim - 2)
        return np.broadcast_to(height.reshape(1, -1, *rest), self.test.bits.shape)


def images_of(run: runs.Run, split: Any) -> Images:
    """A split of images, which the run's preprocessing draws as bits."""
    levels = run.record.data.levels or 2
    highest = levels - 1 if np.issubdtype(split.dtype, np.integer) else 1
    grey = np.asarray(split.x, np.float32) / np.float32(highest)
    return Images(grey, evaluation.preprocessed_split(run.key, split), np.asarray(split.y))


def data_of(run: runs.Run, options: Options) -> Data:
    """Training images, and as many test images as are asked for."""
    if run.train.y is None:
        raise ValueError(f"--dataset needs labels to judge codes by; {run.dataset.name} has none")
    test = datasets.random_subset(run.test, options.examples)
    return Data(run, images_of(run, run.train), images_of(run, test))


class Made(NamedTuple):
    """A model, what its objective ends at, and how it predicts hidden pixels."""

    model: models.Model | None
    params: Params
    objective: dict[str, float]
    predict: Callable[[Array, np.ndarray], np.ndarray]  # (key, bits with nan) -> probabilities


# The rows: (options, seed) -> the model and its data


def vae(options: Options, seed: int) -> tuple[Made, Data]:
    """A VAE with a diagonal posterior."""
    run, params, _ = tables.trained(options.applied(preset("digits", seed=seed)), options.job)
    data, count = data_of(run, options), options.num_samples
    test = datasets.random_subset(run.test, options.examples)
    bound = evaluation.evaluate_elbo(run.built.model, params, run.key, test)
    found = evaluation.estimate_log_likelihood(
        run.built.model, params, run.key, test, num_samples=count
    )
    with_gaps = observed(run.built.source)
    joint = missing.held_out_log_prob(
        with_gaps, params, run.key, data.test.bits, data.hidden, count
    )
    objective = {
        "ELBO": tables.number(bound.elbo),
        "log p(x)": found.log_likelihood,
        "reconstruction": bound.reconstruction,
        "hidden pixels, jointly": -joint,
    }

    def predict(key: Array, x: np.ndarray) -> np.ndarray:
        return np.asarray(missing.impute(with_gaps, params, key, x, num_samples=count).point)

    return Made(run.built.model, params, objective, predict), data


def autoencoder(options: Options, seed: int) -> tuple[Made, Data]:
    """The same with points as codes, which nothing brings to the prior."""
    config = options.applied(preset("autoencoder", seed=seed))
    run, params, _ = tables.trained(config, options.job)
    data, model = data_of(run, options), run.built.model
    test = datasets.random_subset(run.test, options.examples)
    bound = evaluation.evaluate_elbo(model, params, run.key, test)

    def predict(key: Array, x: np.ndarray) -> np.ndarray:
        one = lambda x: completed(model, params, x, options.completions)
        return np.asarray(jax.jit(jax.vmap(one))(x))

    return Made(model, params, {"reconstruction": bound.reconstruction}, predict), data


def completed(model: models.Model, params: Params, x: Array, steps: int) -> Array:
    """An image whose missing pixels are what is decoded from the code of the whole image."""
    gaps = jnp.isnan(x)

    def step(_: Any, whole: Array) -> Array:
        z = mean_of(model.encode(params, whole))  # type: ignore[misc]
        return jnp.where(gaps, model.decode(params, z).mean, x)  # type: ignore[misc]

    return lax.fori_loop(0, steps, step, jnp.where(gaps, 0.5, x))


def no_model(options: Options, seed: int) -> tuple[Made, Data]:
    """Training images as samples, pixels as codes, and each pixel's mean as its prediction."""
    data = data_of(runs.prepare(options.applied(preset("digits", seed=seed)), options.job), options)
    mean = data.train.grey.mean(0)
    return Made(None, {}, {}, lambda key, x: np.broadcast_to(mean, x.shape)), data


def gan(options: Options, seed: int) -> tuple[Made, Data]:
    """A generator with the VAE's decoder, and a critic with as many layers."""
    data = data_of(runs.prepare(options.applied(preset("digits", seed=seed)), options.job), options)
    critic = networks.mlp_critic(1, options.hidden)
    shape = likelihoods.bernoulli().outputs(data.train.grey.shape[1:])
    model = gans.generative(networks.mlp(options.hidden, shape), options.latent)
    how = {"num_steps": options.gan_steps, "batch_size": options.batch_size, "seed": seed}
    players = gans.fitted(model, critic, data.train.grey, options.gan_rate, **how)
    params, losses = players["generator"], gans.adversarial(model, critic)

    def predict(key: Array, x: np.ndarray) -> np.ndarray:
        how = options.inversion_steps, options.restarts
        one = lambda pair: gans.inverted(model, params, pair[0], pair[1], *how)
        pairs = jax.random.split(key, len(x)), jnp.asarray(x)
        return np.asarray(jax.jit(lambda pairs: lax.map(one, pairs, batch_size=AT_ONCE))(pairs))

    return Made(model, params, held_out(losses, players, data), predict), data


def held_out(losses: dict[str, Loss], players: Any, data: Data) -> dict[str, float]:
    """The mean losses of both players on test images."""
    keys = jax.random.split(data.run.key, len(data.test.grey))

    def mean(loss: Loss) -> float:
        one = lambda key, x: loss(players, key, x, jnp.int32(0))[0]
        return float(jax.jit(jax.vmap(one))(keys, data.test.grey).mean())

    return {f"{name}'s loss": mean(loss) for name, loss in losses.items()}


# Measures


def measured(made: Made, data: Data, options: Options) -> dict[str, float]:
    """All numbers of a model; nan where it cannot have one."""
    found = dict.fromkeys(COLUMNS, math.nan)
    found |= of_samples(made, data, options.samples) | of_codes(made, data)
    return found | of_hidden_pixels(made, data) | made.objective


def of_samples(made: Made, data: Data, count: int) -> dict[str, float]:
    """Density and coverage of generated images beside the test images."""
    if made.model is None:
        generated = datasets.random_subset((data.train.grey, data.train.bits), count)
    else:
        generated = generate(made.model, made.params, data.run.key, count)
    found: dict[str, float] = {}
    reals = data.test.grey, data.test.bits
    for name, real, images in zip(("means", "draws"), reals, generated, strict=True):
        near = density_coverage(real.reshape(len(real), -1), images.reshape(len(images), -1))
        found |= {f"density of {name}": near.density, f"coverage of {name}": near.coverage}
    return found


def generate(
    model: models.Model, params: Params, key: Array, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Means of p(x|z) and draws of it, at draws of the prior."""

    @jax.jit
    @jax.vmap
    def draw(key: Array) -> tuple[Array, Array]:
        key_z, key_x = jax.random.split(key)
        p = model.decode(params, model.draw(params, key_z))  # type: ignore[misc]
        return p.mean, p.sample(key_x)

    means, draws = draw(jax.random.split(key, count))
    return np.asarray(means), np.asarray(draws)


def of_codes(made: Made, data: Data) -> dict[str, float]:
    """What the codes of images are like, and how near images of one class are in them."""
    if made.model is None:
        z, test_z = (part.grey.reshape(len(part.grey), -1) for part in (data.train, data.test))
        return {"accuracy of codes": neighbours(z, data.train.labels, test_z, data.test.labels)}
    if made.model.encode is None:
        return {}
    encode = lambda x: evaluation.encode_split(made.model, made.params, data.run.key, x)
    z, test_z = encode(data.train.bits), encode(data.test.bits)
    distances = codes.distances(data.run, made.params, datasets.Split(data.test.bits))
    return {
        "MMD^2 of codes": distances["MMD^2 (IMQ)"],
        "deviation of codes": float(np.sqrt(test_z.var(0).mean())),
        "accuracy of codes": neighbours(z, data.train.labels, test_z, data.test.labels),
    }


def neighbours(z: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
    """The accuracy of the class that most of the nearest training examples have."""
    return float(KNeighborsClassifier(NEIGHBOURS).fit(z, labels).score(test, truth))


def of_hidden_pixels(made: Made, data: Data) -> dict[str, float]:
    """Calibration and cross-entropy of what is predicted of the hidden pixels."""
    seen = np.where(data.hidden, np.nan, data.test.bits).astype(np.float32)
    predicted = np.asarray(made.predict(data.run.key, seen), np.float64)[data.hidden]
    p, x = np.clip(predicted, CLIPPED, 1 - CLIPPED), data.test.bits[data.hidden]
    entropy = -float(np.log(np.where(x == 1, p, 1 - p)).mean())
    return {
        "calibration": calibration_error(np.maximum(p, 1 - p), (p > 0.5) == (x == 1)),
        "hidden pixels": entropy,
        "hidden pixels, jointly": entropy,
    }


ROWS: dict[str, Callable[[Options, int], tuple[Made, Data]]] = {
    "vae": vae,
    "autoencoder": autoencoder,
    "gan": gan,
    "no model": no_model,
}


def show(results: tables.Results) -> None:
    """Prints the numbers in lines and the models in columns, with a dash where there is none."""
    lines = [["", *results]]
    for column in COLUMNS:
        each = [tables.column_of(results, row, column) for row in results]
        means = [(float(np.mean(values)), tables.interval(values)) for values in each]
        lines.append([column, *("-" if math.isnan(m) else tables.written(m, h) for m, h in means)])
    print("\n" + tables.aligned(lines))


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """VAE, autoencoder and GAN, in one table of measured numbers."""
    results: tables.Results = {}
    for name, make in options.chosen(ROWS).items():
        for seed in range(options.seeds):
            cell = measured(*make(options, seed), options)
            results.setdefault(name, []).append(cell)
            numbers = ", ".join(f"{c} {v:.3f}" for c, v in cell.items() if not math.isnan(v))
            print(f"{name}, seed {seed}: {numbers}", flush=True)
    show(results)
    tables.save(options.json, dataclasses.asdict(options), results)


if __name__ == "__main__":
    run_function(main)
