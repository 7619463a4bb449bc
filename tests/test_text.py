"""Sentences: files, networks, laws, VAEs and their training."""

from __future__ import annotations

import functools
import itertools
import math
import string
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harness import result

import jaxvae
from experiments.papers import texts as papers
from jaxvae import (
    command_line,
    datasets,
    evaluation,
    families,
    models,
    networks,
    posteriors,
    priors,
    training,
)
from jaxvae.datasets import grammars, texts
from jaxvae.runs import Job, prepare
from jaxvae.runs.commands import evaluate, sample

KEY = jax.random.key(0)
WORDS = 5  # the end mark, the unknown word and three others
LENGTH, LATENT = 4, 2
DECODERS: dict[str, networks.SequenceDecoder] = {
    "gru": networks.recurrent_decoder(WORDS, LENGTH, 3, 6, skip=True),
    "transformer": networks.transformer_decoder(WORDS, LENGTH, 8, 2, 2, context_size=LATENT),
    "words": networks.independent_decoder(WORDS, LENGTH, 6),
}
every_decoder = pytest.mark.parametrize("name", DECODERS)


def spread(params: Any, key: Any = KEY) -> Any:
    """Parameters that are far from their first values, at which all words are about as likely."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    draws = [a + 0.7 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, draws)


@functools.cache
def law(name: str) -> models.Sentences:
    decoder = DECODERS[name]
    params = spread(decoder.init(KEY, jnp.zeros(LATENT)))
    return models.Sentences(params, jnp.array([0.5, -1.0]), None, decoder)


@functools.cache
def enumerated(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Every row, and its log-probability."""
    whole = itertools.product(range(WORDS), repeat=LENGTH)
    rows = np.unique([_ended(row) for row in whole], axis=0).astype(np.int32)
    return rows, np.asarray(jax.jit(jax.vmap(law(name).log_prob))(rows))


def _ended(row: tuple[int, ...]) -> tuple[int, ...]:
    """The row with end marks in all places after the first one."""
    end = row.index(texts.END) if texts.END in row else len(row)
    return row[:end] + (texts.END,) * (len(row) - end)


def vae_of(name: str, word_dropout: float = 0.0) -> models.VAE:
    encoder = networks.recurrent_encoder(WORDS, 3, 4, 2 * LATENT)
    prior = priors.standard_normal(LATENT)
    return models.sentence_vae(
        encoder, DECODERS[name], posteriors.normal(LATENT), prior, word_dropout
    )


# The law of a sentence


@every_decoder
def test_the_probabilities_of_all_rows_sum_to_one(name: str) -> None:
    """Ended sentences, and beginnings that go on: 4 ** 0 + ... + 4 ** 3 and 4 ** 4 of them."""
    rows, log_p = enumerated(name)
    assert len(rows) == sum(4**t for t in range(LENGTH + 1))
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-6)
    assert np.ptp(log_p) > 3


@every_decoder
def test_three_words_and_the_end_in_six_places(name: str) -> None:
    """364 ended sentences and 729 that go on (the reference's count)."""
    made = {
        "gru": networks.recurrent_decoder(4, 6, 3, 6),
        "transformer": networks.transformer_decoder(4, 6, 8, 1, 2, context_size=LATENT),
        "words": networks.independent_decoder(4, 6, 6),
    }[name]
    params = spread(made.init(KEY, jnp.zeros(LATENT)))
    sentences = models.Sentences(params, jnp.ones(LATENT), None, made)
    rows = np.unique([_ended(row) for row in itertools.product(range(4), repeat=6)], axis=0)
    ended = (rows == texts.END).any(1)
    p = np.exp(np.asarray(jax.jit(jax.vmap(sentences.log_prob))(rows.astype(np.int32))), dtype="d")
    assert ended.sum() == 364
    assert p[ended].sum() + p[~ended].sum() == pytest.approx(1, abs=1e-6)


@every_decoder
def test_a_word_changes_no_probability_before_it_or_of_itself_in_others(name: str) -> None:
    """Causality: log p(x_s | x_<s) is of the words up to x_s."""
    log_probs = jax.jit(law(name).log_probs)
    row = np.array([2, 3, 4, 2], np.int32)
    for place in range(LENGTH):
        other = row.copy()
        other[place] = 1
        one, two = log_probs(row), log_probs(other)
        np.testing.assert_array_equal(one[:place], two[:place])
        assert (one[place:] != two[place:]).any()


@every_decoder
def test_words_one_after_the_other_are_as_likely_as_at_once(name: str) -> None:
    """The carry of a recurrent decoder, and keys and values of a transformer."""
    sentences, row = law(name), np.array([3, 2, 4, 0], np.int32)
    decoder, params, z = sentences.decoder, sentences.params, sentences.context
    carry, before, log_p = decoder.begin(params, z), decoder.vocabulary, []
    for t, token in enumerate(row):
        carry, state = decoder.step(params, z, carry, jnp.int32(before), jnp.int32(t))
        log_p.append(jax.nn.log_softmax(decoder.logits(params, state))[token])
        before = int(token)
    np.testing.assert_allclose(log_p, sentences.log_probs(row), rtol=1e-5, atol=1e-6)


@every_decoder
def test_a_wide_beam_finds_the_likeliest_row_and_a_narrow_one_is_greedy(name: str) -> None:
    rows, log_p = enumerated(name)
    found, scores = jax.jit(law(name).beam, static_argnums=0)(4**LENGTH)
    best = np.argsort(-log_p)[:5]
    np.testing.assert_array_equal(found[:5], rows[best])
    np.testing.assert_allclose(scores[:5], log_p[best], rtol=1e-5)
    np.testing.assert_array_equal(law(name).beam(1)[0][0], law(name).mean)


@every_decoder
def test_draws_are_as_frequent_as_they_are_likely(name: str) -> None:
    """Chi-squared over the likeliest rows and all others together."""
    from scipy import stats

    rows, log_p = enumerated(name)
    draws = np.asarray(jax.jit(law(name).sample, static_argnums=1)(KEY, (2000,)))
    top = np.argsort(-log_p)[:20]
    counts = np.array([(draws == rows[i]).all(1).sum() for i in top])
    expected = 2000 * np.exp(log_p[top], dtype="d")
    observed = np.append(counts, 2000 - counts.sum())
    expected = np.append(expected, 2000 - expected.sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-3


# Padding


def padded(x: models.Sentence, fill: int) -> models.Sentence:
    """Twice the places, and something in those that do not count."""
    tokens = jnp.where(x.mask, x.tokens, fill)
    more = jnp.full_like(x.tokens, fill)
    return models.Sentence(
        jnp.concatenate([tokens, more], -1), jnp.concatenate([x.mask, jnp.zeros_like(x.mask)], -1)
    )


@every_decoder
def test_a_batch_of_twice_the_length_has_the_same_losses_and_gradients(name: str) -> None:
    vae, rows = vae_of(name), np.array([[2, 0, 0, 0], [4, 3, 2, 0], [3, 3, 2, 4]], np.int32)
    x = jax.vmap(models.sentence_of)(rows)
    params = spread(vae.init(KEY, jax.tree.map(lambda a: a[0], x)))
    loss = training.batch_mean(models.negative_elbo(vae))
    keys, weight = jax.random.split(KEY, 3), jnp.full(3, 1 / 3)
    value = jax.jit(jax.value_and_grad(lambda p, x: loss(p, keys, x, weight, 0, None)[0]))
    one, of_one = value(params, x)
    for fill in (texts.END, 3):
        two, of_two = value(params, padded(x, fill))
        np.testing.assert_allclose(one, two, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), of_one, of_two
        )
    for_rows = jax.jit(jax.vmap(vae.encode, (None, 0)))
    np.testing.assert_array_equal(for_rows(params, x).loc, for_rows(params, padded(x, 3)).loc)


def test_the_mask_holds_the_words_and_the_end_mark() -> None:
    x = models.sentence_of(jnp.array([3, 0, 0, 0]))
    assert x.mask.tolist() == [True, True, False, False]
    assert models.sentence_of(jnp.array([3, 2, 2, 4])).mask.all()


# Word dropout


def test_word_dropout_hides_words_from_the_decoder_in_training_alone() -> None:
    """Never what is explained, never the mark of the beginning, never in evaluation."""
    vae, row = vae_of("gru", word_dropout=1.0), jnp.array([2, 3, 4, 0])
    params = spread(vae.init(KEY, models.sentence_of(row)))
    z, live = jnp.ones(LATENT), vae.in_training(KEY)
    hidden = live.decode(params, z).log_probs(row)
    decoder = DECODERS["gru"]
    before = jnp.array([WORDS, *[texts.UNKNOWN] * 3])
    logits = jax.vmap(lambda s: decoder.logits(params["decoder"], s))(
        decoder.states(params["decoder"], z, before)
    )
    expected = jnp.take_along_axis(jax.nn.log_softmax(logits), row[:, None], 1)[:, 0]
    np.testing.assert_allclose(hidden, expected, rtol=1e-5)
    plain = vae_of("gru").decode(params, z).log_prob(row)
    assert vae.decode(params, z).log_prob(row) == plain != hidden.sum()


# Bounds


@pytest.mark.slow
def test_bounds_lie_below_log_p_by_quadrature_and_reach_it() -> None:
    """One latent dimension: log p(x) by Gauss-Hermite quadrature with 64 points."""
    encoder = networks.recurrent_encoder(WORDS, 3, 4, 2)
    decoder = networks.recurrent_decoder(WORDS, LENGTH, 3, 6)
    vae = models.sentence_vae(encoder, decoder, posteriors.normal(1), priors.standard_normal(1))
    x = models.sentence_of(jnp.array([2, 4, 3, 0]))
    params = spread(vae.init(KEY, x))
    points, weights = np.polynomial.hermite_e.hermegauss(64)
    log_p = jax.jit(jax.vmap(lambda z: vae.decode(params, z[None]).log_prob(x)))(points)
    exact = np.log(np.sum(weights / math.sqrt(2 * math.pi) * np.exp(np.asarray(log_p, "d"))))
    terms = jax.jit(lambda key: models.elbo_terms(vae, params, key, x, 4000))(KEY)
    elbo = float(terms["reconstruction"] - terms["kl"])
    estimate = lambda k: evaluation.log_likelihood(vae, params, KEY, x, k)
    several = np.mean(
        [
            evaluation.log_likelihood(vae, params, key, x, 5).log_likelihood
            for key in jax.random.split(KEY, 40)
        ]
    )
    assert elbo < several < exact + 0.02
    assert estimate(20_000).log_likelihood == pytest.approx(exact, abs=0.02)


@pytest.mark.slow
def test_a_decoder_that_ignores_z_is_a_language_model() -> None:
    """ELBO = log p - KL, and with q = p importance weights are log p for every K."""
    vae, x = vae_of("gru"), models.sentence_of(jnp.array([2, 4, 0, 0]))
    params = spread(vae.init(KEY, x))
    states = params["decoder"]["states"]
    for name in ("first", "skip"):
        states[name]["kernel"] *= 0
    states["units"]["input"]["kernel"] = states["units"]["input"]["kernel"].at[-LATENT:].set(0)
    log_p = float(vae.decode(params, jnp.zeros(LATENT)).log_prob(x))
    terms = models.elbo_terms(vae, params, KEY, x, 1)
    assert terms["kl"] > 0.1
    assert terms["reconstruction"] == pytest.approx(log_p, rel=1e-5)
    collapsed = vae._replace(encode=lambda params, x: vae.prior(params))
    assert models.elbo_terms(collapsed, params, KEY, x, 1)["kl"] == 0
    for samples in (1, 7):
        estimate = evaluation.log_likelihood(collapsed, params, KEY, x, samples)
        assert estimate.log_likelihood == pytest.approx(log_p, rel=1e-5)


# Labels


@pytest.mark.slow
def test_bounds_of_sentences_with_and_without_a_label() -> None:
    """U(x) <= log p(x) and -L(x, y) <= log p(x, y), by quadrature; their estimate reaches log p."""
    classes = 2
    encoder = networks.recurrent_encoder(WORDS, 3, 4, 2)
    decoder = networks.recurrent_decoder(WORDS, LENGTH, 3, 6)
    parts = posteriors.normal(1), priors.standard_normal(1)
    classifier = networks.of_input(networks.bag_of_words(WORDS, 3, classes), tuple)
    cvae = models.sentence_cvae(encoder, decoder, *parts, word_dropout=1.0)
    model = models.M2(cvae, classifier, classes)
    x = models.sentence_of(jnp.array([2, 4, 3, 0]))
    start = model.init(KEY, x)
    alike = jax.tree.map(jnp.zeros_like, start["encoder"])  # q(z|x, y) is one law, wide enough
    params = spread(start) | {"encoder": alike}
    points, weights = np.polynomial.hermite_e.hermegauss(64)

    def at(z: Any, y: Any) -> Any:
        return cvae.decode(params, z[None], jnp.eye(classes)[y]).log_prob(x)

    log_p = np.asarray(jax.jit(jax.vmap(jax.vmap(at, (0, None)), (None, 0)))(points, np.arange(2)))
    p = np.exp(log_p.astype("d")) @ (weights / math.sqrt(2 * math.pi)) / classes  # [C]
    answers = models.m2_answers(model)
    example = models.Conditioned(x, jnp.int32(-1))
    terms = jax.jit(lambda key: answers.terms(params, key, example, 4000))(KEY)
    assert terms["reconstruction"] - terms["kl"] < np.log(p.sum()) + 0.02
    labelled = jax.jit(lambda key: answers.terms(params, key, example._replace(y=1), 4000))(KEY)
    assert labelled["labelled_elbo"] < np.log(p[1]) + 0.02
    estimate = evaluation.log_likelihood(answers, params, KEY, example, 20_000)
    assert estimate.log_likelihood == pytest.approx(np.log(p.sum()), abs=0.02)
    hidden = model.bound(params, KEY, x, jnp.eye(classes)[1])
    shown = model.terms(params, KEY, x, jnp.eye(classes)[1])
    assert hidden != shown["reconstruction"] - shown["kl"]  # words are dropped in training alone


def test_words_by_themselves_given_a_class_are_naive_bayes() -> None:
    """log p(x|y) and p(y|x) of scikit-learn's multinomial naive Bayes."""
    from sklearn.naive_bayes import MultinomialNB

    rows = np.array([[2, 3, 2, 0], [4, 4, 0, 0], [3, 4, 1, 0], [2, 0, 0, 0]], np.int32)
    counts = np.array([np.bincount(row[row > 0], minlength=WORDS) for row in rows])
    counts[:, texts.END] = 1
    bayes = MultinomialNB(fit_prior=False).fit(counts, [0, 1, 1, 0])
    decoder = networks.independent_decoder(WORDS, LENGTH, 2)
    params = {
        "states": {"hidden": {"kernel": 30.0 * jnp.eye(2), "bias": jnp.zeros(2)}},
        "output": {"kernel": jnp.asarray(bayes.feature_log_prob_), "bias": jnp.zeros(WORDS)},
    }
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, decoder.init(KEY, jnp.zeros(2))
    )
    of_class = lambda y, row: models.Sentences(params, y, None, decoder).log_prob(row)
    log_p = jax.vmap(lambda row: jax.vmap(of_class, (0, None))(jnp.eye(2), row))(rows)
    np.testing.assert_allclose(log_p, counts @ bayes.feature_log_prob_.T, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(log_p), bayes.predict_proba(counts), rtol=1e-4)


def test_a_bag_of_words_grows_as_the_root_of_its_words() -> None:
    """Four times the words: twice the logits, whatever their order and what fills the row up."""
    network = networks.bag_of_words(WORDS, 3, 2)
    mask = jnp.array([True, True, False, False])
    params = network.init(KEY, (jnp.array([2, 4, 0, 0]), mask))
    logits = lambda tokens, mask: network.apply(params, (jnp.array(tokens), jnp.array(mask)))
    once = logits([2, 4, 3, 3], mask)
    four_times = logits([4, 2] * 4, [True] * 8)
    np.testing.assert_allclose(four_times, 2 * once, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.optimized
def test_sentences_without_a_label_teach_which_words_belong_to_a_class() -> None:
    """Each class has words of which the labels show few; what goes with what shows the others."""
    generator = np.random.default_rng(0)

    def part(count: int) -> tuple[list[str], list[str]]:
        classes = generator.choice(["a", "b"], count)
        letters = generator.choice(list(string.ascii_lowercase[:20]), (count, 4))
        words = [
            [y + a, y + b, y + c, "of" + d]
            for y, (a, b, c, d) in zip(classes, letters, strict=True)
        ]
        return [" ".join(generator.permutation(each)) for each in words], classes.tolist()

    data = {"train": part(400), "test": part(300)}
    sizes = {"units": 8, "embedding": 6, "decoder_units": 16, "latent": 2, "max_length": 8}
    config = families.preset("text-ssvae", **sizes, labelled=4, steps=300, batch_size=32)
    run = prepare(config, Job(), data=data)
    params = run.built.parameters(run.fit(num_steps=config.steps))
    found = evaluation.classification(run.built.model, params, run.key, run.test)
    of_labels = papers.of_baseline(papers.logistic, papers.Options(labelled=4), data, config.seed)
    assert of_labels["accuracy"] < 85
    assert found is not None and found.accuracy > 0.95


# Aggressive inference


def test_the_decoder_waits_while_the_encoder_gains() -> None:
    optimizer = training.aggressive(optax.sgd(0.1), ("encoder",), 12, 2, 6)
    params = {"encoder": jnp.zeros(()), "decoder": jnp.zeros(())}
    grads, state, who = (
        {"encoder": jnp.ones(()), "decoder": jnp.ones(())},
        optimizer.init(params),
        "",
    )
    losses = [5, 5, 4, 4, 6, 6, 9, 3, 3, 2, 2, 1, 9, 9, 9]  # a window rose; six steps; the end
    for value in losses:
        updates, state = optimizer.update(grads, state, params, value=jnp.float32(value))
        names = [name for name in params if updates[name] != 0]
        who += {1: names[0][0], 2: "b"}[len(names)]
    assert who == "eeeeee" + "d" + "eeeee" + "bbb"
    earlier = [5.0, 5.0, 6.0, 6.0]
    state, who = optimizer.init(params), ""
    for value in (*earlier, 1.0):
        updates, state = optimizer.update(grads, state, params, value=jnp.float32(value))
        who += "e" if updates["encoder"] else "d"
    assert who == "eeeed"


def test_with_the_decoder_fixed_the_encoder_reaches_the_exact_posterior() -> None:
    """A linear Gaussian model: p(z|x) is N(w x / (w^2 + s^2), s^2 / (w^2 + s^2))."""
    w, s = 1.5, 0.5
    x = jnp.array([-1.0, 0.3, 2.0])

    def loss(params: Any, *_: Any) -> Any:
        slope, log_scale = params["encoder"]
        mean, variance = slope * x, jnp.exp(2 * log_scale)
        likelihood = -((x - w * mean) ** 2 + w**2 * variance) / (2 * s**2)
        kl = (variance + mean**2 - 1) / 2 - log_scale
        return jnp.mean(kl - likelihood) + 0 * params["decoder"], {}

    optimizer = training.aggressive(optax.adam(0.05), ("encoder",), 400, 1000, 1000)
    start = {"encoder": jnp.zeros(2), "decoder": jnp.float32(w)}
    algorithm = training.gradient_descent(lambda key, x: start, loss, optimizer)
    state = training.fit(algorithm, np.zeros((4, 1), np.float32), num_steps=400, batch_size=4)
    slope, log_scale = training.trained(state)["encoder"]
    assert slope == pytest.approx(w / (w**2 + s**2), abs=1e-3)
    assert jnp.exp(2 * log_scale) == pytest.approx(s**2 / (w**2 + s**2), abs=1e-3)
    assert training.trained(state)["decoder"] == w


# Files, tokens and vocabularies


def test_words_and_bytes_are_cut_and_joined() -> None:
    words, byte = texts.TOKENIZERS["words"], texts.TOKENIZERS["bytes"]
    assert words.cut("It's 12 o'Clock, été") == [
        *("it", "'", "s", "12", "o", "'", "clock", ",", "é", "t", "é")
    ]
    assert byte.joined(byte.cut("été, no?")) == "été, no?"
    vocabulary = texts.vocabulary_of([byte.cut("aab")], 2, byte.known)
    rows = texts.tokens_of(["aab", "été"], vocabulary, 8, "bytes")
    assert (rows != texts.UNKNOWN).all() and len(vocabulary) == 258
    assert texts.sentences_of(rows, vocabulary, "bytes").tolist() == ["aab", "été"]


def test_rare_words_are_unknown_and_counted_and_the_vocabulary_is_of_training_alone() -> None:
    data = {"train": ["a b a", "b c"], "test": ["a d c"]}
    dataset = texts.load(data, min_count=2)
    assert dataset.vocabulary == ("</s>", "<unk>", "a", "b")
    assert dataset.splits["train"].x.tolist() == [[2, 3, 2, 0], [3, 1, 0, 0]]
    assert dataset.splits["test"].x.tolist() == [[2, 1, 1, 0]]
    assert dataset.notes == ("unknown words, which are <unk>: 20.0% of train, 66.7% of test",)
    cut = texts.load(data, max_length=2)
    assert cut.splits["train"].x.tolist() == [[2, 3], [3, 4]]
    assert "2 of train, 1 of test" in cut.notes[1]


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("pos\tgood film\nneg\tbad film\n\tno label\n")
    (tmp_path / "dev.tsv").write_text("neg\tbad\n")
    dataset = texts.load(tmp_path)
    assert dataset.classes == ("neg", "pos")
    assert dataset.splits["train"].y.tolist() == [1, 0, -1]
    assert set(dataset.splits) == {"train", "validation"}
    (tmp_path / "one.txt").write_text("\n".join(f"line {i}" for i in range(20)))
    alone = texts.load(tmp_path / "one.txt")
    assert {part: len(split.x) for part, split in alone.splits.items()} == {"train": 18, "test": 2}


FILES: list[tuple[str, str, str]] = [  # name, content, words of the sentence
    ("a.txt", "one\n\ntwo\n", "a.txt, line 2 is an empty sentence"),
    ("b.tsv", "x\tone\ntwo\n", "b.tsv, line 2 has no tab"),
    ("c.csv", "one\n", "no .txt or .tsv file"),
    ("d.txt", "", "line 1 is an empty sentence"),
    ("e.tsv", "x\tone\ny\t \n", "sentence 2 is empty"),
]


@pytest.mark.parametrize("row", range(len(FILES)))
def test_a_file_that_is_no_text_is_refused(row: int, tmp_path: Path) -> None:
    name, content, words = FILES[row]
    (tmp_path / name).write_text(content)
    with pytest.raises(datasets.DataError, match=words):
        texts.load(tmp_path / name)


REFUSED: list[tuple[Any, str]] = [
    ({"train": (["a"], ["x"]), "test": (["b"], ["y"])}, "the label 'y' of test is none of the"),
    ({"train": ["a", " "]}, "train sentence 2 is empty"),
    ({"test": ["a"], "validation": ["a"]}, "has no training sentences"),
    (np.zeros((3, 4)), "these are no sentences"),
    ("digits", "is no set of sentences"),
    ("nothing.txt", "there is no nothing.txt"),
]


@pytest.mark.parametrize("row", range(len(REFUSED)))
def test_what_are_no_sentences_is_refused(row: int) -> None:
    source, words = REFUSED[row]
    with pytest.raises(datasets.DataError, match=words):
        texts.load(source)


def test_images_are_refused_by_a_model_of_sentences(data_dir: Path) -> None:
    digits = datasets.load("digits", data_dir)
    with pytest.raises(ValueError, match="holds no sentences"):
        prepare(families.preset("text-vae"), Job(), data=digits)


def test_the_entropy_of_the_grammar_is_the_one_of_its_sentences() -> None:
    law = grammars.probabilities()
    p = np.array(list(law.values()))
    assert p.sum() == pytest.approx(1)
    assert -(p * np.log(p)).sum() == pytest.approx(grammars.entropy())
    assert all(sentence in law for sentence in grammars.splits()["test"][0])


# Runs


def test_numbers_by_word_are_of_the_corpus() -> None:
    """exp(-sum log p / words), end marks counted and what fills a row up not."""
    rows = np.array([[2, 0, 0, 0, 0], [2, 1, 3, 0, 0]], np.int32)  # 2 and 4 words
    split, found = datasets.Split(rows), {"elbo": -6.0, "log_likelihood": -4.5}
    assert evaluation.words.word_measures(split, found) == {
        "words_per_sentence": 3.0,
        "unknown_share": pytest.approx(1 / 6),
        "elbo_per_word": -2.0,
        "perplexity_of_elbo": pytest.approx(math.exp(12 / 6)),
        "log_likelihood_per_word": -1.5,
        "perplexity": pytest.approx(math.exp(9 / 6)),
    }


COMMANDS: list[tuple[str, str, str]] = [  # preset, content of the file, words of the sentence
    ("text-vae", "one two\n\n", "line 2 is an empty sentence"),
    ("text-ssvae", "one two\none\ntwo\n", "needs sentences with labels"),
    ("text-vae --tokens letters", "one two\n", "--tokens"),
    ("text-vae --kl-cost capacity --accumulate 2", "one two\none\n", "--accumulate must be 1"),
    ("text-vae --decoder transformer --heads 3", "one two\none\n", "--heads 3 must divide"),
    ("text-vae --decoder words --word-dropout 0.5", "one two\none\n", "--decoder words sees none"),
    ("text-vae --stream", "one two\none\n", "these examples are held in memory"),
]


@pytest.mark.parametrize("row", range(len(COMMANDS)))
def test_a_mistake_of_a_command_is_refused_in_a_sentence(
    row: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset, content, words = COMMANDS[row]
    (tmp_path / "set.txt").write_text(content)
    place = ["--dataset", str(tmp_path / "set.txt"), "--workdir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        command_line.main(["train", *preset.split(), *place])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@functools.cache
def small(**named: Any) -> Any:
    sizes = {"units": 8, "embedding": 6, "decoder_units": 8, "decoder_embedding": 6, "latent": 2}
    times = {"steps": 4, "report_every": 2, "checkpoint_every": 4, "batch_size": 8}
    config = families.preset("text-vae", **sizes, **times, test_samples=3, test_examples=10)
    return families.changed(config, **named)


@pytest.mark.slow
def test_a_run_says_words_and_opens_without_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measures by word; sentences of prior, decoder and beam; strings in, strings out."""
    (tmp_path / "set.txt").write_text("\n".join(grammars.splits()["train"][0][:60]) + "\nzyx\n")
    run = tmp_path / "run"
    trained = jaxvae.train(small(dataset=str(tmp_path / "set.txt")), run, progress=False)
    found, said = result(run), capsys.readouterr().out
    words = found["measures"]["words_per_sentence"]
    by_word = -found["test_log_likelihood"] / words
    assert found["measures"]["perplexity"] == pytest.approx(math.exp(by_word))
    assert found["bits_per_dim"] == pytest.approx(by_word / math.log(2))
    assert "which are <unk>" in said and "Straight lines" in said
    sample(run, num=2)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line[0] for line in lines[:6]] == ["greedy", "sampling", "beam"] * 2
    evaluate(run, num_samples=3, num_examples=5)
    (tmp_path / "set.txt").unlink()
    loaded = jaxvae.load(run)
    z = loaded.encode(["the cook boils the soup", "zyx"])
    np.testing.assert_allclose(z, trained.encode(["the cook boils the soup", "unheard"]), rtol=1e-6)
    assert loaded.encode(["the cook"]).shape == loaded.encode("the cook").shape == (1, 2)
    assert loaded.sentences(loaded.sample(KEY, 3)).shape == (3,)
    with pytest.raises(datasets.DataError, match="sentence 1 is empty"):
        loaded.encode(["the cook", " "])
