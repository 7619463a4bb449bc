"""N-gram models of sentences: the baselines of models of text."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

Words = Sequence[int]  # of a sentence, with its end mark
BEGIN = -1


class KneserNey:
    """An interpolated Kneser-Ney model of n words (Kneser & Ney 1995; Chen & Goodman 1999).

    p(w|h) = max(c(hw) - d, 0) / c(h) + d N(h) / c(h) p(w|h'), where N(h) counts the words that
    follow h, and h' is h without its first word. Shorter histories count in how many contexts w
    occurs. Without a word of history it is the relative frequency, or the same sum with a uniform
    distribution over a vocabulary, some of whose words may never occur.
    """

    def __init__(
        self,
        sentences: Sequence[Words],
        order: int,
        discount: float = 0.75,
        vocabulary: int | None = None,
    ):
        """Counts the words of sentences.

        Args:
          sentences: the training sentences.
          order: n, the words that a probability looks at.
          discount: d.
          vocabulary: how many words there are; None says that all words occur.
        """
        self.order, self.discount = order, discount
        self.uniform = None if vocabulary is None else 1 / vocabulary
        grams: Counter[tuple[int, ...]] = Counter()
        for words in sentences:
            padded = (BEGIN,) * (order - 1) + tuple(words)
            grams.update(zip(*(padded[i:] for i in range(order)), strict=False))
        self.tables = []  # from the longest history on: history -> counts of the next word
        for _ in range(order):
            table: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
            for gram, count in grams.items():
                table[gram[:-1]][gram[-1]] += count
            self.tables.append(table)
            grams = Counter(gram[1:] for gram in grams)  # continuation counts of the next order
        self.totals = [{h: c.total() for h, c in table.items()} for table in self.tables]

    def probability(self, word: int, history: tuple[int, ...], level: int = 0) -> float:
        """p(word | history), of the last n - 1 words."""
        counts, total = self.tables[level].get(history), self.totals[level].get(history, 0)
        if level < self.order - 1:
            shorter = self.probability(word, history[1:], level + 1)
        elif self.uniform is not None:
            shorter = self.uniform
        else:
            return counts[word] / total if counts else 0.0
        if not counts:
            return shorter
        kept = max(counts[word] - self.discount, 0) / total
        return kept + self.discount * len(counts) / total * shorter

    def perplexity(self, sentences: Sequence[Words]) -> float:
        """exp(-sum log p / number of words) over sentences."""
        total, number = 0.0, 0
        for words in sentences:
            padded = (BEGIN,) * (self.order - 1) + tuple(words)
            for i, word in enumerate(words):
                total += math.log(self.probability(word, padded[i : i + self.order - 1]))
            number += len(words)
        return math.exp(-total / number)
