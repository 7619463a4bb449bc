"""VAEs of sentences (Bowman et al. 2016; He et al. 2019; Xu et al. 2017) beside simple baselines.

``python experiments/papers/texts.py --table perplexities|collapse|labels --folder DIR
[--sets trec sst2] [--epochs 10] [--seeds 3] [--json OUT]``

The folder holds a folder for each set, with train.tsv and test.tsv, or all.tsv, of which a fixed
permutation is cut into four fifths and one. Words that occur once in training are <unk>, for all
rows of a table, and the end mark is counted.

*perplexities*: n-gram models, a language model (the decoder with z = 0), a VAE and one with free
bits. *collapse*: the same VAE with each remedy; KL, mutual information and active units say whether
z is used, and the perplexity of the importance-weighted bound what that costs. *labels*: accuracy
with few labels, of logistic regression on tf-idf, naive Bayes, naive Bayes with EM on the sentences
without a label (Nigam et al. 2000), and the semi-supervised VAE, whose decoder says words by
themselves or one after the other.
"""

from __future__ import annotations

from jaxvae import stopping

if __name__ == "__main__":
    stopping.install()  # before JAX is imported

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import ngrams, tables
from jaxvae import datasets, evaluation, runs, settings, training
from jaxvae.command_line import run_function
from jaxvae.datasets import texts
from jaxvae.families import preset

PLAIN = {"kl_cost": "weighted"}
REMEDIES: dict[str, dict[str, Any]] = {
    "vae": PLAIN,
    "warm-up": PLAIN | {"kl_warmup": "linear"},
    "word dropout": PLAIN | {"word_dropout": 0.4},
    "free bits": {"kl_cost": "free_bits", "free_bits": 3.0},
    "aggressive": PLAIN | {"learning": "aggressive"},
    "transformer": {"kl_cost": "free_bits", "free_bits": 3.0, "decoder": "transformer"},
}
EM_STEPS, EM_WEIGHT, SMOOTHING = 20, 0.1, 0.1  # of naive Bayes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(tables.Options):
    """What is trained and measured."""

    table: Literal["perplexities", "collapse", "labels"] = "perplexities"
    """The table."""
    folder: Path | None = None
    """Folder of the sets; None is the small grammar alone."""
    sets: tuple[str, ...] = ("trec", "sst2", "sms_spam", "ag_news_test")
    """Sets of the folder."""
    epochs: int = 10
    """Passes over the training sentences."""
    max_length: int = 60
    """The most words of a sentence."""
    labelled: int = 100
    """Labels that are used."""
    samples: int = 100
    """Importance samples of a log-likelihood."""
    latent: int = 16
    batch_size: int = 64
    learning_rate: float | None = None  # type: ignore[assignment]
    """Peak learning rate of Adam; None is the preset's."""
    units: int = 128
    """Units of encoder and decoder."""
    embedding: int = 64
    """Size of the vector of a word."""


# Data

Parts = dict[str, tuple[list[str], list[str]]]  # sentences and labels of train and test


def parts_of(options: Options, name: str) -> Parts:
    """The sentences of a set with their coarse labels."""
    if options.folder is None:
        of_grammar = datasets.grammars.splits()
        return {part: of_grammar[part] for part in ("train", "test")}
    folder = options.folder / name
    if (folder / "all.tsv").exists():
        lines = _lines(folder / "all.tsv")
        order = np.random.default_rng(0).permutation(len(lines))
        cut = len(lines) * 4 // 5
        halves = {"train": order[:cut], "test": order[cut:]}
        return {part: _pairs([lines[i] for i in rows]) for part, rows in halves.items()}
    return {part: _pairs(_lines(folder / f"{part}.tsv")) for part in ("train", "test")}


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _pairs(lines: list[str]) -> tuple[list[str], list[str]]:
    pairs = [line.split("\t", 1) for line in lines]
    return [text for _, text in pairs], [label.partition(":")[0] for label, _ in pairs]


def sentences(split: datasets.Split) -> list[list[int]]:
    """The words of each row, with the end mark if it has one."""
    rows = np.asarray(split.x)
    lengths = np.minimum((rows != texts.END).sum(1) + 1, rows.shape[1])
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]


# Perplexities and collapse


def trained(options: Options, config: Any, data: Any, lm: bool = False) -> tuple[Any, Any]:
    """A run and what it has learned. A language model explains sentences at z = 0."""
    known = {name for name, _ in settings.settings_of(config)}
    epochs = options.epochs * len(data["train"][0]) // options.batch_size
    waits = "aggressive_steps" in known  # the decoder, in the first half of twice as many steps
    steps = max(epochs * (1 + waits), 1)
    sizes = {
        "units": options.units,
        "embedding": options.embedding,
        "decoder_units": options.units,
        "decoder_embedding": options.embedding,
        "aggressive_steps": max(steps // 2, 1),
        "inner_window": 5,
        "inner_steps": 10,
        "kl_warmup_steps": max(steps * 2 // 5, 1),
        "max_length": options.max_length,
        "learning_rate": options.learning_rate or config.learning_rate,
    }
    config = options.applied(config, **sizes)
    config = settings.changed(config, steps=steps)
    run = runs.prepare(config, data=data)
    if not lm:
        return run, run.built.parameters(run.fit(num_steps=steps))
    vae, zero = run.built.source, jnp.zeros(config.latent)

    def loss(params: Any, key: Any, x: Any, step: Any) -> Any:
        return -vae.in_training(key).decode(params, zero).log_prob(x), {}

    algorithm = training.gradient_descent(
        vae.init, training.batch_mean(loss), config.optimizer(learning_rate=config.learning_rate)
    )
    settings_of_fit = {"batch_size": config.batch_size, "seed": config.seed}
    state = training.fit(algorithm, run.train, num_steps=steps, **settings_of_fit)
    return run, training.trained(state)


def measures_of(options: Options, run: Any, params: Any) -> dict[str, float]:
    """What ``jaxvae evaluate`` reports by word."""
    test = datasets.random_subset(run.test, options.examples)
    found = runs.reports.results(run.built, run.record.data, params, run.key, test, options.samples)
    measures = found["measures"]
    return {
        "perplexity": measures["perplexity"],
        "of ELBO": measures["perplexity_of_elbo"],
        "KL": found["kl"],
        "mutual information": measures["mutual_information"],
        "active units": float(found["active_units"]),
    }


def language_model(options: Options, data: Parts, seed: int) -> dict[str, float]:
    """The perplexity of the decoder that is trained at z = 0."""
    config = preset("text-vae", seed=seed)
    run, params = trained(options, config, data, lm=True)
    vae: Any = run.built.source
    zero = jnp.zeros(run.config.latent)
    log_prob = lambda tokens: vae.decode(params, zero).log_prob(tokens)
    test = datasets.random_subset(run.test, options.examples)
    log_p = jax.lax.map(log_prob, jnp.asarray(test.x), batch_size=50)
    words = sum(map(len, sentences(test)))
    value = float(np.exp(-np.asarray(log_p, np.float64).sum() / words))
    return {"perplexity": value, "of ELBO": value, "KL": 0, "mutual information": 0} | {
        "active units": 0
    }


def of_vae(row: str, options: Options, data: Parts, seed: int) -> dict[str, float]:
    """The numbers of a VAE with a remedy."""
    config = preset("text-vae", seed=seed, **REMEDIES[row])
    return measures_of(options, *trained(options, config, data))


def of_ngrams(order: int, options: Options, data: Parts, seed: int) -> dict[str, float]:
    """The perplexity of an n-gram model, which has no latents."""
    dataset = texts.load(data, max_length=options.max_length, min_count=2)
    train, test = dataset.splits["train"], dataset.splits["test"]
    test = datasets.random_subset(test, options.examples)
    model = ngrams.KneserNey(sentences(train), order, vocabulary=len(dataset.vocabulary))
    value = model.perplexity(sentences(test))
    none = float("nan")
    return {"perplexity": value, "of ELBO": none, "KL": none, "mutual information": none} | {
        "active units": none
    }


# Labels


def counts_of(data: Parts) -> Any:
    """Counts of words of train and test, and the labels as integers."""
    from scipy import sparse

    dataset = texts.load(data, min_count=2)
    size, parts = len(dataset.vocabulary), []
    for part in ("train", "test"):
        split = dataset.splits[part]
        rows = [[word for word in words if word != texts.END] for words in sentences(split)]
        places = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        words = np.concatenate([np.array(row, int) for row in rows])
        shape = len(rows), size
        parts.append((sparse.csr_matrix((np.ones(len(words)), (places, words)), shape), split.y))
    return parts


def logistic(train: Any, labels: Any, test: Any, seed: int) -> Any:
    """Logistic regression on tf-idf of the sentences with a label."""
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    scaled, known = TfidfTransformer().fit(train), labels >= 0
    model = LogisticRegression(max_iter=2000).fit(scaled.transform(train[known]), labels[known])
    return model.predict(scaled.transform(test))


def naive_bayes(train: Any, labels: Any, test: Any, seed: int) -> Any:
    """Multinomial naive Bayes of the sentences with a label."""
    from sklearn.naive_bayes import MultinomialNB

    known = labels >= 0
    return MultinomialNB(alpha=SMOOTHING).fit(train[known], labels[known]).predict(test)


def naive_bayes_em(train: Any, labels: Any, test: Any, seed: int) -> Any:
    """Naive Bayes whose classes of the other sentences are latent (Nigam et al. 2000)."""
    from scipy import sparse
    from sklearn.naive_bayes import MultinomialNB

    known, classes = labels >= 0, int(labels.max()) + 1
    rest, first = train[~known], train[known]
    model = MultinomialNB(alpha=SMOOTHING).fit(first, labels[known])
    stacked = sparse.vstack([first, *[rest] * classes])
    target = np.concatenate([labels[known], np.repeat(np.arange(classes), rest.shape[0])])
    for _ in range(EM_STEPS):
        share = model.predict_proba(rest)
        weight = np.concatenate([np.ones(known.sum()), EM_WEIGHT * share.T.ravel()])
        model = MultinomialNB(alpha=SMOOTHING).fit(stacked, target, sample_weight=weight)
    return model.predict(test)


def of_baseline(predict: Callable, options: Options, data: Parts, seed: int) -> dict[str, float]:
    """The accuracy of a baseline with the labels of a seed."""
    (train, y), (test, truth) = counts_of(data)
    labels = datasets.hide_labels(y, options.labelled, int(y.max()) + 1, seed)
    guess = predict(train, labels, test, seed)
    return {"accuracy": 100 * float((guess == truth).mean())}


def of_ssvae(named: dict, options: Options, data: Parts, seed: int) -> dict[str, float]:
    """The accuracy of the semi-supervised VAE with the same labels."""
    config = preset("text-ssvae", seed=seed, labelled=options.labelled, **named)
    run, params = trained(options, config, data)
    found = evaluation.classification(run.built.model, params, run.key, run.test)
    assert found is not None
    return {"accuracy": 100 * found.accuracy}


Measure = Callable[[Options, Parts, int], dict[str, float]]
_VAES: dict[str, Measure] = {row: functools.partial(of_vae, row) for row in REMEDIES}
TABLES: dict[str, dict[str, Measure]] = {
    "perplexities": {
        **{f"{n}-gram": functools.partial(of_ngrams, n) for n in (1, 2, 3)},
        "language model": language_model,
        **{row: _VAES[row] for row in ("vae", "free bits", "transformer")},
    },
    "collapse": {"language model": language_model, **_VAES},
    "labels": {
        "logistic regression": functools.partial(of_baseline, logistic),
        "naive Bayes": functools.partial(of_baseline, naive_bayes),
        "naive Bayes, EM": functools.partial(of_baseline, naive_bayes_em),
        "text-ssvae": functools.partial(of_ssvae, {}),
        "text-ssvae, gru": functools.partial(of_ssvae, {"decoder": "gru", "skip": True}),
    },
}


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """VAEs of sentences beside n-gram models and classifiers of words."""
    rows = options.chosen(TABLES[options.table])
    results: tables.Results = {}
    for name in options.sets if options.folder else ("sentences",):
        data = parts_of(options, name)
        for row, measure in rows.items():
            for seed in range(options.seeds):
                start = time.perf_counter()
                cell = measure(options, data, seed)
                cell["seconds"] = time.perf_counter() - start
                results.setdefault(f"{name}, {row}", []).append(cell)
                numbers = ", ".join(f"{column} {value:.4g}" for column, value in cell.items())
                print(f"{name}, {row}, seed {seed}: {numbers}", flush=True)
    tables.show(results)
    tables.save(options.json, dataclasses.asdict(options), results)


if __name__ == "__main__":
    run_function(main)
