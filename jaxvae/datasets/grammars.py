"""Sentences of a small grammar, whose law is known: a set of text that needs no file.

A sentence has a topic, its label, which chooses all words. The law is uniform over the choices of
each part, and no two derivations give one sentence. So its entropy is a sum of entropies.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

OPENING, CLOSING = 0.3, 0.5  # probabilities of the first and the last part
OPENINGS = ("today", "at last", "once more")
SIZES = {"train": 4000, "validation": 500, "test": 500}


class Topic(NamedTuple):
    """The parts of a sentence of one topic."""

    subjects: tuple[str, ...]
    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    closings: tuple[str, ...]


TOPICS: dict[str, Topic] = {
    "harbour": Topic(
        ("the captain", "a sailor", "the old pilot", "our crew", "a diver"),
        ("steers", "repairs", "watches", "paints", "anchors"),
        ("the ferry", "a small boat", "the grey ship", "two barges", "a raft"),
        ("near the pier", "in the fog", "before the tide", "with a rope"),
    ),
    "kitchen": Topic(
        ("the cook", "my aunt", "a hungry guest", "the baker", "our neighbour"),
        ("boils", "tastes", "burns", "serves", "salts"),
        ("the soup", "some bread", "four eggs", "a fat goose", "fresh beans"),
        ("for dinner", "over the fire", "on a plate", "without butter"),
    ),
    "orchestra": Topic(
        ("the pianist", "a young singer", "the choir", "their conductor", "a cellist"),
        ("plays", "hums", "rehearses", "records", "forgets"),
        ("the waltz", "an old song", "this march", "that quiet tune", "a hymn"),
        ("after noon", "from memory", "at the concert", "behind the curtain"),
    ),
}


def entropy() -> float:
    """The entropy of a sentence in nats: the least loss that a model can have."""
    topic = next(iter(TOPICS.values()))
    choices = [len(TOPICS), len(topic.subjects), len(topic.verbs), len(topic.objects)]
    optional = [(OPENING, len(OPENINGS)), (CLOSING, len(topic.closings))]
    coin = lambda p: -p * math.log(p) - (1 - p) * math.log(1 - p)
    return sum(map(math.log, choices)) + sum(coin(p) + p * math.log(n) for p, n in optional)


def probabilities() -> dict[str, float]:
    """The probability of every sentence that the grammar has."""
    law: dict[str, float] = {}
    openings = [("", 1 - OPENING), *((words, OPENING / len(OPENINGS)) for words in OPENINGS)]
    for topic in TOPICS.values():
        parts = topic.subjects, topic.verbs, topic.objects
        each = 1 / len(TOPICS) / math.prod(map(len, parts))
        some = CLOSING / len(topic.closings)
        closings = [("", 1 - CLOSING), *((words, some) for words in topic.closings)]
        for (first, p), *middle, (last, q) in itertools.product(openings, *parts, closings):
            law[" ".join(filter(None, (first, *middle, last)))] = p * q * each
    return law


def splits() -> dict[str, tuple[list[str], list[str]]]:
    """Sentences and their topics, by split, drawn with fixed seeds."""
    return {
        name: _drawn(np.random.Generator(np.random.Philox(key=[0, seed])), size)
        for seed, (name, size) in enumerate(SIZES.items())
    }


def _drawn(generator: np.random.Generator, size: int) -> tuple[list[str], list[str]]:
    names = [str(name) for name in generator.choice(list(TOPICS), size)]
    return [_sentence(generator, TOPICS[name]) for name in names], names


def _sentence(generator: np.random.Generator, topic: Topic) -> str:
    one = lambda words: str(words[generator.integers(len(words))])
    first = [one(OPENINGS)] if generator.random() < OPENING else []
    last = [one(topic.closings)] if generator.random() < CLOSING else []
    middle = [one(topic.subjects), one(topic.verbs), one(topic.objects)]
    return " ".join([*first, *middle, *last])
