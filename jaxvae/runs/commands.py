"""The commands ``evaluate`` and ``sample``, which read a run folder and write to it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from jaxvae import datasets, distributions, evaluation, figures
from jaxvae.contracts import Array
from jaxvae.families import FAMILIES, Built, Data
from jaxvae.ranges import Count
from jaxvae.runs import folders, inferring, reports
from jaxvae.runs.loading import load, restore
from jaxvae.runs.preparing import in_memory
from jaxvae.uses import annealing

KEY = 1  # folded into the seed, it gives the key of all draws after training


class Opened(NamedTuple):
    """A run with its data set, opened to be evaluated."""

    record: folders.Record
    built: Built
    dataset: datasets.Dataset
    step: int
    params: Any

    @property
    def data(self) -> Data:
        """What is known of the data that the model was trained on."""
        return self.record.data

    @property
    def key(self) -> Array:
        """The key of all draws."""
        return jax.random.fold_in(jax.random.key(self.record.config.seed), KEY)

    def split(self, name: str, num_examples: int | None = None) -> Any:
        """A split as the model takes it, or a fixed random subset of it."""
        split = self.built.split(in_memory(datasets.select(self.dataset, name)))
        return datasets.random_subset(split, num_examples)


def opened(
    workdir: Path, checkpoint: str, dataset: str | None = None, data_dir: str | None = None
) -> Opened:
    """A run folder with its data set. Raises ValueError if the model does not take the set."""
    record = folders.read(workdir)
    source = dataset or record.place["dataset"]
    if source is None:
        raise ValueError(
            f"{workdir} was trained on arrays or imported: say with --dataset what to open"
        )
    data = record.data
    loaded = _loaded(record, source, data_dir or record.place["data_dir"])
    shape = next(iter(loaded.splits.values())).shape
    if tuple(shape) != data.shape:
        raise ValueError(
            f"{source} holds examples of shape {tuple(shape)}; the model of {workdir} takes "
            f"{data.shape}"
        )
    prepared = datasets.prepared(loaded, data.pixels, seed=record.data_seed)
    built = record.build()
    step, params = restore(workdir, built, data, checkpoint)
    return Opened(record, built, prepared, step, params)


def _loaded(record: folders.Record, source: str, data_dir: str | None) -> datasets.Dataset:
    """The data set of a run."""
    config, place, of_family = record.config, record.place, FAMILIES[record.family].load
    if of_family is not None:
        return of_family(config, source, record.data, data_dir=data_dir)
    opener: Any = datasets.stream if place["stream"] else datasets.load
    return opener(
        source,
        data_dir,
        record.data.raw_levels,
        image_size=config.image_size,
        unreadable=config.unreadable,
    )


def evaluate(
    workdir: Annotated[Path, tyro.conf.Positional],
    num_samples: Count | None = None,
    split: str | None = None,
    num_examples: Count | None = None,
    checkpoint: str = "latest",
    dataset: str | None = None,
    data_dir: str | None = None,
    batch_size: Count = 50,
    decompose: bool = False,
    samples: bool = False,
    reconstructions: bool = False,
    factors: bool = False,
    clustering: bool = False,
    modalities: bool = False,
    augmentation: bool = False,
    gap: bool = False,
    ais: Count | None = None,
    nuts: Count | None = None,
    chains: Count = 16,
    start: annealing.Start = "encoder",
    refinement_steps: Count = 1000,
    inference_examples: Count = 100,
    prior: Literal[tuple(evaluation.SOURCES)] = "model",  # type: ignore[valid-type]
    per_example: bool = False,
) -> None:
    """Evaluates a trained model on a split, and writes evaluation.json.

    Args:
      workdir: the run folder.
      num_samples: importance samples per example, K; None is 5000, or what a prior over the codes
        of a run was tested with.
      split: split to evaluate on, or a part such as train[:1000]; None is the run's test split.
      num_examples: examples to evaluate on, a fixed random subset; None is all.
      checkpoint: latest, best, or a step.
      dataset: data set, if it is another one or has moved since the training.
      data_dir: folder of prepared sets, if it has moved since the training.
      batch_size: examples at once in the log-likelihood; memory holds 500 decoded latents for each.
      decompose: write KL in three parts: index-code mutual information, total correlation,
        dimension-wise KL. A posterior without a density for each coordinate has two parts.
      samples: write precision, recall, density, coverage, Frechet distance and copies of samples of
        x, in the features of a classifier that is trained on the labels.
      reconstructions: write PSNR of decoder means at posterior means, and for a set with labels
        their Frechet distance, in the features of a classifier.
      factors: write scores of disentanglement, for a set whose factors are known (shapes).
      clustering: write the accuracy of the prior's components, each matched to a class.
      modalities: write likelihoods of each view and of the others given it, and whether what is
        decoded from a view has the class of the example, for a model of several views.
      augmentation: write how well classifiers of one speaker do on another, with and without
        training data whose speaker is replaced or perturbed in latent space.
      gap: write the inference gap in two parts: what the encoder loses to the best q(z|x) of its
        family (amortization), and what that loses to log p(x) (approximation).
      ais: write log p(x) by annealed importance sampling with so many temperatures, beside the
        importance-weighted bound, and the gap of both directions on simulated data.
      nuts: write how far mean and spread of q(z|x) are from draws of the No-U-Turn sampler, so
        many of each chain, and whether the chains agree.
      chains: chains of --ais, --gap and --nuts for each example.
      start: what chains of --ais start from: the encoder's posterior, or the prior.
      refinement_steps: steps of gradient from the encoder's q(z|x), of --gap.
      inference_examples: examples of --gap, --ais and --nuts, a fixed random subset.
      prior: what z of the samples is drawn from, as in jaxvae sample.
      per_example: write log p(x) of every example to log_likelihoods.npy.
    """
    inferred = (gap, ais, nuts, chains, start, refinement_steps, inference_examples)
    asked_inference = inferring.Asked(*inferred, num_samples=num_samples or 5000)
    run = opened(workdir, checkpoint, dataset, data_dir)
    for note in run.dataset.notes:
        reports.say(note)
    name = split or run.record.config.test_split
    if num_samples is None:
        num_samples = 5000 if run.record.first is None else run.record.config.test_samples
    test = run.split(name, num_examples)
    inferring.check(asked_inference, run.built.model, run.params, test)
    asked = {
        "decompose": decompose,
        "samples": samples,
        "reconstructions": reconstructions,
        "factors": factors,
        "clustering": clustering,
        "augmentation": augmentation,
        "modalities": modalities,
    }
    metrics = [metric for metric, wanted in asked.items() if wanted]
    train = run.split(run.record.config.train_split) if metrics else None
    about = evaluation.metrics.Data(test, train, prior)
    more = evaluation.metrics.measure(metrics, run.built.model, run.params, run.key, about)
    numbers = reports.results(
        run.built, run.data, run.params, run.key, test, num_samples, batch_size
    )
    more_numbers = inferring.measure(asked_inference, run.built.model, run.params, run.key, test)
    about_run = {"dataset": run.dataset.name, "split": name, "checkpoint": run.step}
    of_inference = inferring.as_json(more_numbers)
    folders.write_json(workdir / "evaluation.json", about_run | numbers | more | of_inference)
    print(f"{run.dataset.name}, {name} split, checkpoint of step {run.step}")
    rows = reports.result_rows(numbers)
    if np.ndim(numbers.get("kl_per_latent") or 0) == 1:
        rows.append(("KL per latent", " ".join(f"{v:.2f}" for v in numbers["kl_per_latent"])))
    rows += [(metric, f"{value:.4g}") for metric, value in more.items()]
    rows += inferring.rows(more_numbers)
    if run.built.model.classify is not None:
        rows.append(("figures", ", ".join(_draw_classes(run, test, workdir))))
    if per_example:
        file = workdir / "log_likelihoods.npy"
        np.save(
            file,
            evaluation.log_likelihoods(
                run.built.model, run.params, run.key, test, num_samples=num_samples
            ),
        )
        rows.append(("per example", str(file)))
    reports.table([*rows, ("written", str(workdir / "evaluation.json"))])


def _draw_classes(run: Opened, split: Any, workdir: Path) -> list[str]:
    """Draws samples of each class and a confusion matrix of a split, and returns their files."""
    folder, data = workdir / "figures", run.data
    names = figures.draw_all(
        folder,
        run.built.model,
        run.params,
        run.key,
        split,
        pictures=run.built.pictures_of,
        pixel_max=data.pixel_max,
        classes=data.classes,
        figures=("classes", "confusion", "unseen", "calibration"),
    )
    return [str(folder / name) for name in names]


def sample(
    workdir: Annotated[Path, tyro.conf.Positional],
    num: Count = 64,
    seed: int = 0,
    checkpoint: str = "latest",
    dataset: str | None = None,
    data_dir: str | None = None,
    prior: Literal[tuple(evaluation.SOURCES)] = "model",  # type: ignore[valid-type]
    temperature: float = 1.0,
    encodings: Count = 10_000,
    components: Count | None = None,
    label: str | None = None,
) -> None:
    """Draws images or sentences from a trained model: figures/samples.png and samples.npz.

    Sentences are printed, and written to samples.txt: the likeliest word after word, drawn, and the
    best of a beam search.

    The data set is needed only to encode examples of it, and for the images that a model completes.

    Args:
      workdir: the run folder.
      num: images to draw; a model of labels draws its classes in turn.
      seed: the seed of the draws.
      checkpoint: latest, best, or a step.
      dataset: data set, if it has moved since the training.
      data_dir: folder of prepared sets, if it has moved since the training.
      prior: what z is drawn from: the model's prior, the aggregated posterior, or a density that is
        fitted to encodings now: a Gaussian mixture, a coupling flow or a second VAE.
      temperature: factor of the standard deviations of p(z); a second VAE takes 1 only.
      encodings: training examples that every prior but the model's is made of, a fixed random
        subset.
      components: Gaussians of --prior gaussian_mixture; None is 10.
      label: number or name of the class to draw, for a model of labels; None is all in turn.
    """
    if components and prior != "gaussian_mixture":
        raise ValueError(f"--components is of --prior gaussian_mixture; the prior is {prior}")
    settings, labels = {"components": components} if components else {}, None
    if prior == "model":
        trained = load(workdir, checkpoint)
        built, data, params, step = trained.built, trained.data, trained.params, trained.step
        labels = _labels(built, data, num, label)
        conditions = _conditions(workdir, built, num, dataset, data_dir, checkpoint, labels)
        z = _from_prior(built, params, jax.random.key(seed), num, conditions, temperature)
    else:
        run = opened(workdir, checkpoint, dataset, data_dir)
        built, data, params, step = run.built, run.data, run.params, run.step
        train = run.split(run.record.config.train_split)
        source = evaluation.source(
            prior, built.model, params, run.key, train, encodings, **settings
        )
        key_z = jax.random.split(jax.random.key(seed))[0]
        z, conditions = distributions.tempered(source, temperature).sample(key_z, (num,)), None
    decoded = _decoded(built, params, jax.random.key(seed), z, conditions)
    origin = {"model": "the prior", "aggregate": "the aggregated posterior"}
    title = f"{num} samples of {origin.get(prior, f'a fitted {prior}')}"
    (workdir / "figures").mkdir(exist_ok=True)
    if built.decodings:
        shown = workdir / "samples.txt"
        shown.write_text(_sentences(built, decoded, labels, data.classes))
        print(shown.read_text())
    else:
        shown = workdir / "figures" / "samples.png"
        images = np.asarray(built.pictures(decoded["means"], conditions)) / data.pixel_max
        figures.grid(shown, _sheet(images), f"{title}, decoder means (step {step})")
    latents: Any = {f"z{i}" if i else "z": np.asarray(a) for i, a in enumerate(jax.tree.leaves(z))}
    latents |= decoded
    np.savez(workdir / "samples.npz", **latents)
    if built.audible is not None:
        reports.write_sounds(workdir / "sounds", built.audible, "sample", decoded["means"])
    print(f"{num} samples of step {step}: {shown}, {workdir / 'samples.npz'}")


def _sentences(
    built: Built, decoded: dict[str, np.ndarray], labels: Any, classes: tuple[str, ...]
) -> str:
    """The decodings of each z in lines, below the name of its class if it has one."""
    texts = {name: built.pictures(decoded[name], None) for name in built.decodings}
    width = max(map(len, texts))
    blocks = []
    for i in range(len(decoded["x"])):
        head = [] if labels is None else [classes[labels[i]] if classes else str(labels[i])]
        blocks.append([*head, *(f"{name:<{width}}  {texts[name][i]}" for name in texts)])
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


def _labels(built: Built, data: Data, num: int, label: str | None) -> np.ndarray | None:
    """One class for each draw, or the classes in turn; None for a model that has no labels."""
    given = built.condition is not None and built.pairs
    has_labels = data.num_classes and (given or built.model.classify is not None)
    if label is None:
        return np.arange(num) % data.num_classes if has_labels else None
    if not has_labels:
        raise ValueError(
            "--label is for a model that is conditioned on labels, and this one is not"
        )
    names = [str(i) for i in range(data.num_classes)]
    for known in (list(data.classes), names):
        if label in known:
            return np.full(num, known.index(label))
    raise ValueError(
        f"--label {label}: the classes are 0 to {data.num_classes - 1}"
        + (f", or {', '.join(data.classes)}" if data.classes else "")
    )


def _conditions(
    workdir: Path,
    built: Built,
    num: int,
    dataset: str | None,
    data_dir: str | None,
    checkpoint: str,
    labels: np.ndarray | None,
) -> Any:
    """The conditions to draw at, as the model takes them: labels, or test examples' conditions."""
    if built.condition is None:
        return labels
    if labels is not None:
        return jax.vmap(built.condition)(labels)
    run = opened(workdir, checkpoint, dataset, data_dir)
    test = run.split(run.record.config.test_split, num)
    rows = np.arange(num) % datasets.num_examples(test.x)
    keys = jax.random.split(jax.random.key(0), num)
    examples = jax.vmap(built.preprocess)(keys, datasets.rows_of(test.x, rows))
    return jax.vmap(lambda example: built.model.parts(example)[1])(examples)


def _from_prior(
    built: Built, params: Any, key: Array, num: int, conditions: Any, temperature: float
) -> Any:
    key_z = jax.random.split(key)[0]
    model: Any = built.model
    if model.prior is None:
        if temperature != 1:
            raise ValueError("this model's prior has no density: --temperature must be 1")
        return jax.vmap(lambda k, y: model.draw(params, k, y))(
            jax.random.split(key_z, num), conditions
        )
    if conditions is None:
        prior = lambda params: distributions.tempered(model.prior(params), temperature)
        return jax.jit(lambda params: prior(params).sample(key_z, (num,)))(params)
    draw = lambda k, y: distributions.tempered(model.prior(params, y), temperature).sample(k)
    return jax.jit(jax.vmap(draw))(jax.random.split(key_z, num), conditions)


def _decoded(
    built: Built, params: Any, key: Array, z: Any, conditions: Any
) -> dict[str, np.ndarray]:
    """The means of p(x|z), draws x from it, and what the family reads from it in other ways."""
    keys = jax.random.split(jax.random.split(key)[1], len(jax.tree.leaves(z)[0]))

    decode: Any = built.model.decode

    def one(key: Array, z: Any, y: Any) -> dict[str, Array]:
        p = decode(params, z, y)
        others = {name: read(p, key) for name, read in built.decodings.items()}
        return {"means": p.mean, "x": p.sample(key)} | others

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys, z, conditions))


def _sheet(images: np.ndarray) -> np.ndarray:
    """Images [N, ...] in rows and columns, filled up with white images."""
    columns = min(math.ceil(math.sqrt(len(images))), 16)
    blank = np.ones((-len(images) % columns, *images.shape[1:]), images.dtype)
    return np.concatenate([images, blank]).reshape(-1, columns, *images.shape[1:])
