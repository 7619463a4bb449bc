"""Sentences as rows of tokens: files of text, tokenizers and vocabularies.

A row [T] of int32 holds the words of a sentence and then the end mark 0 in all places that are
left. A sentence of more than T words is cut and has no end mark. The number 1 is the unknown word.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvae.datasets import grammars
from jaxvae.datasets.arrays import as_labels
from jaxvae.datasets.loading import looks_like_path
from jaxvae.datasets.splits import MISSING, DataError, Dataset, Split
from jaxvae.datasets.subsets import with_test

END, UNKNOWN = 0, 1
SPECIAL = "</s>", "<unk>"
SUFFIXES = ".txt", ".tsv"
PARTS = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}


class Tokenizer(NamedTuple):
    """How a sentence is cut into tokens, and how tokens make a sentence."""

    cut: Callable[[str], list[str]]
    joined: Callable[[Sequence[str]], str]
    known: tuple[str, ...] = ()  # tokens that every vocabulary has


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]", text.lower())


def _bytes(text: str) -> list[str]:
    return [f"{byte:02x}" for byte in text.encode()]


def _of_bytes(tokens: Sequence[str]) -> str:
    numbers = b"".join(b"?" if token in SPECIAL else bytes.fromhex(token) for token in tokens)
    return numbers.decode("utf-8", "replace")


# Words are letters a to z, digits, or one other sign, in lower case. Bytes are of UTF-8.
TOKENIZERS: dict[str, Tokenizer] = {
    "words": Tokenizer(_words, " ".join),
    "bytes": Tokenizer(_bytes, _of_bytes, tuple(f"{byte:02x}" for byte in range(256))),
}


def vocabulary_of(
    sentences: Sequence[Sequence[str]], min_count: int = 1, known: Sequence[str] = ()
) -> tuple[str, ...]:
    """The end mark, the unknown word, and the tokens that occur often enough, frequent ones first.

    ``known`` are tokens that the vocabulary has however often they occur.
    """
    counts = Counter(token for tokens in sentences for token in tokens)
    often = {token for token, count in counts.items() if count >= min_count} | set(known)
    return (*SPECIAL, *sorted(often - set(SPECIAL), key=lambda token: (-counts[token], token)))


def tokens_of(
    texts: Sequence[str], vocabulary: Sequence[str], length: int, tokens: str = "words"
) -> np.ndarray:
    """Sentences as rows of tokens, [N, T] int32.

    Unknown words become 1. Raises DataError for a sentence without a word.

    Args:
      texts: the sentences.
      vocabulary: the tokens by their numbers, as ``vocabulary_of`` gives them.
      length: T, the places of a row; longer sentences are cut.
      tokens: a name of ``TOKENIZERS``.

    >>> from jaxvae.datasets import texts
    >>> texts.tokens_of(["a b", "b c a"], ("</s>", "<unk>", "a", "b"), 4)
    array([[2, 3, 0, 0],
           [3, 1, 2, 0]], dtype=int32)
    """
    cut = TOKENIZERS[tokens].cut
    return _rows([_checked(cut(text), i) for i, text in enumerate(texts)], vocabulary, length)


def _checked(tokens: list[str], index: int) -> list[str]:
    if not tokens:
        raise DataError(f"sentence {index} is empty: a sentence has at least one word")
    return tokens


def _rows(sentences: Sequence[Sequence[str]], vocabulary: Sequence[str], length: int) -> np.ndarray:
    number = {token: i for i, token in enumerate(vocabulary)}
    rows = np.full((len(sentences), length), END, np.int32)
    for row, tokens in zip(rows, sentences, strict=True):
        row[: len(tokens)] = [number.get(token, UNKNOWN) for token in tokens[:length]]
    return rows


def sentences_of(rows: Any, vocabulary: Sequence[str], tokens: str = "words") -> np.ndarray:
    """Rows of tokens [..., T] as sentences, an array of strings [...]."""
    rows = np.asarray(rows)
    joined = TOKENIZERS[tokens].joined
    flat = rows.reshape(-1, rows.shape[-1])
    lengths = np.where((flat == END).any(1), (flat == END).argmax(1), flat.shape[1])
    texts = [
        joined([vocabulary[token] for token in row[:length]])
        for row, length in zip(flat, lengths, strict=True)
    ]
    return np.array(texts, object).reshape(rows.shape[:-1])


def load(
    source: Any,
    tokens: str = "words",
    max_length: int | None = None,
    min_count: int = 1,
    vocabulary: Sequence[str] | None = None,
) -> Dataset[Split]:
    """A set of sentences, with a vocabulary of its training sentences.

    A set with one split gets a ``test`` split of a tenth, as ``datasets.load`` says.

    Args:
      source: ``"sentences"``, made by ``grammars``; or a ``.txt`` file with one sentence in a
        line; or a ``.tsv`` file, whose lines have a label, a tab and a sentence; or a folder with
        files train, validation (or dev) and test of that kind; or sentences, or ``{split:
        sentences}``, or ``{split: (sentences, labels)}``.
      tokens: a name of ``TOKENIZERS``.
      max_length: the most places T of a row. With a vocabulary T is this number, and otherwise at
        most the places that the longest training sentence and its end mark need.
      min_count: how often a token must occur in training to be no unknown word.
      vocabulary: the tokens by their numbers; None makes them of the training sentences.

    Raises DataError for what cannot be read, for an empty sentence, and for a label that no
    training sentence has.
    """
    name, texts = _texts(source)
    parts = with_test({part: _cut(name, part, text, tokens) for part, text in texts.items()})
    if "train" not in parts:
        raise DataError(f"{name} has no training sentences: it has {', '.join(parts)}")
    train, known = parts["train"].x, TOKENIZERS[tokens].known
    longest = max(map(len, train)) + 1
    length = longest if max_length is None else max_length
    if vocabulary is None:
        vocabulary, length = vocabulary_of(train, min_count, known), min(length, longest)
    parts, classes = _numbered(name, parts)
    rows = {
        part: split.replace(x=_rows(split.x, vocabulary, length)) for part, split in parts.items()
    }
    notes = _notes(parts, rows, tokens)
    return Dataset(name, rows, len(vocabulary), classes, tuple(vocabulary), notes)


def _notes(parts: Mapping[str, Split], rows: Mapping[str, Split], tokens: str) -> tuple[str, ...]:
    """Sentences on unknown words and on what is cut."""
    length = rows["train"].x.shape[1]
    counts = {part: sum(map(len, split.x)) for part, split in parts.items()}
    unknown = [f"{(rows[p].x == UNKNOWN).sum() / counts[p]:.1%} of {p}" for p in parts]
    cut = {p: sum(len(sentence) > length - 1 for sentence in parts[p].x) for p in parts}
    notes = [f"unknown {tokens}, which are <unk>: {', '.join(unknown)}"]
    if any(cut.values()):
        each = ", ".join(f"{number} of {part}" for part, number in cut.items())
        notes.append(f"sentences longer than {length - 1} {tokens}, which have no end: {each}")
    return tuple(notes)


Texts = tuple[Sequence[str], Any]  # sentences, and their labels or None


def _texts(source: Any) -> tuple[str, dict[str, Texts]]:
    """The name of a set, and the sentences of its splits."""
    if isinstance(source, Mapping):
        return "arrays", {part: _pair(value) for part, value in source.items()}
    if not isinstance(source, (str, os.PathLike)):
        return "arrays", {"train": _pair(source)}
    if source == "sentences":
        return "sentences", dict(grammars.splits())
    if not looks_like_path(source):
        raise DataError(
            f"{source!r} is no set of sentences: give a .txt or .tsv file, a folder of them, or "
            "the word sentences, which means a small grammar"
        )
    path = Path(source).expanduser()
    return (path.parent.name if path.stem == "all" else path.stem), _of_path(path)


def _pair(value: Any) -> Texts:
    texts, labels = value if type(value) is tuple else (value, None)
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise DataError("these are no sentences: give a list of strings, or {split: strings}")
    return texts, labels


def _of_path(path: Path) -> dict[str, Texts]:
    if not path.exists():
        raise DataError(f"there is no {path}: give a .txt or .tsv file, or a folder of them")
    if not path.is_dir():
        return {"train": _of_file(path)}
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    named = {PARTS[file.stem]: file for file in files if file.stem in PARTS}
    if not named and len(files) == 1:
        named = {"train": files[0]}
    if not named:
        raise DataError(f"{path} has no train.txt or train.tsv, and no single such file")
    return {part: _of_file(file) for part, file in named.items()}


def _of_file(path: Path) -> Texts:
    """The sentences of a file, and the labels of a .tsv file."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} is no .txt or .tsv file: give it one of these names")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}): convert it") from error
    lines = lines[:-1] if not lines[-1] else lines
    empty = next((i for i, line in enumerate(lines, 1) if not line.strip()), None)
    if not lines or empty:
        raise DataError(
            f"{path}, line {empty or 1} is an empty sentence: a sentence has at least one word, so "
            "delete the line"
        )
    return (lines, None) if path.suffix == ".txt" else _labelled(path, lines)


def _labelled(path: Path, lines: Sequence[str]) -> Texts:
    pairs = [line.split("\t", 1) for line in lines]
    for number, pair in enumerate(pairs, 1):
        if len(pair) < 2:
            raise DataError(
                f"{path}, line {number} has no tab: a line of a .tsv file is a label, a tab and a "
                "sentence; sentences alone are in a .txt file"
            )
    return [text for _, text in pairs], [label or None for label, _ in pairs]


def _cut(name: str, part: str, texts: Texts, tokens: str) -> Split:
    """A split of lists of tokens, with labels as they are written."""
    cut = TOKENIZERS[tokens].cut
    sentences = np.empty(len(texts[0]), object)
    for i, text in enumerate(texts[0]):
        sentences[i] = cut(text)
        if not sentences[i]:
            raise DataError(
                f"{name}, {part} sentence {i + 1} is empty: a sentence has at least one word, so "
                "leave it out"
            )
    if not len(sentences):
        raise DataError(f"{name} has no {part} sentence: give at least one")
    labels = None if texts[1] is None else as_labels(texts[1], f"{name}, {part}")
    if labels is not None and len(labels) != len(sentences):
        raise DataError(f"{name}, {part} has {len(sentences)} sentences but {len(labels)} labels")
    return Split(sentences, labels)


def _numbered(name: str, parts: dict[str, Split]) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits with integers as labels, and the names of the classes of the training sentences.

    A missing label is -1. Raises DataError for a label that no training sentence has.
    """
    labels = {part: split.y for part, split in parts.items()}
    if any(y is None for y in labels.values()):
        return {part: split.replace(y=None) for part, split in parts.items()}, ()
    missing = lambda label: label is None or label == MISSING
    classes = sorted({label for label in labels["train"].tolist() if not missing(label)})
    number = {label: i for i, label in enumerate(classes)}
    for part, y in labels.items():
        other = next(
            (label for label in y.tolist() if not missing(label) and label not in number), 0
        )
        if other:
            raise DataError(
                f"{name}: the label {other!r} of {part} is none of the training classes "
                f"({', '.join(map(str, classes))}): take the sentences out, or correct the labels"
            )
    as_integers = lambda y: np.array([number.get(label, MISSING) for label in y], np.int32)
    splits = {part: split.replace(y=as_integers(split.y.tolist())) for part, split in parts.items()}
    return splits, tuple(map(str, classes))
