"""Numbers of models of sentences, by word."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.contracts import Array, Params
from jaxvae.datasets import examples_of, preprocessed, texts
from jaxvae.distributions import mean_of
from jaxvae.evaluation.columns import Batched, batched, over_split
from jaxvae.evaluation.decompositions import surgery
from jaxvae.evaluation.encodings import posteriors_of
from jaxvae.models import Conditioned, Model, sentence_of


def words_per_sentence(split: Any) -> float:
    """The mean number of words of a sentence, with its end mark."""
    return float(_masks(split).sum(1).mean())


def _tokens(split: Any) -> np.ndarray:
    """The rows of a split, [N, T], whose examples may be beside labels."""
    return np.asarray(split.x.x if isinstance(split.x, Conditioned) else split.x)


def _masks(split: Any) -> np.ndarray:
    return np.asarray(jax.vmap(sentence_of)(jnp.asarray(_tokens(split))).mask)


def word_measures(split: Any, found: dict[str, Any]) -> dict[str, float]:
    """Bounds of a split by word, and its share of unknown words.

    Perplexity is exp(-sum log p / number of words), over all sentences and with their end marks. It
    is of the importance-weighted estimate, and of the ELBO. ``found`` has both, ``log_likelihood``
    and ``elbo``, in nats for each sentence, or None.
    """
    masks, words = _masks(split), words_per_sentence(split)
    unknown = (_tokens(split) == texts.UNKNOWN) & masks
    about = {"words_per_sentence": words, "unknown_share": float(unknown.sum() / masks.sum())}
    for bound, name in (("elbo", "perplexity_of_elbo"), ("log_likelihood", "perplexity")):
        if found.get(bound) is not None:
            about[f"{bound}_per_word"] = found[bound] / words
            about[name] = math.exp(-found[bound] / words)
    return about


def latent_measures(model: Model, params: Params, key: Array, split: Any) -> dict[str, float]:
    """What the latents say of the sentences of a split.

    ``mutual_information`` is of z and the sentence, E KL(q(z|x) || p) - KL(q(z) || p) with the mean
    q(z) of the split's posteriors. ``words_read_back`` is the share of words that the greedy
    sentence at the posterior mean has in their places. There the decoder sees its own words alone.
    """
    right, words = over_split(_read_back(model), params, key, examples_of(split), 100)
    about = {"words_read_back": float(right.sum() / words.sum())}
    if model.prior is None:
        return about  # such as a model whose latents are a class beside z
    try:
        parts = surgery(posteriors_of(model, params, key, split), model.prior(params), key)
    except TypeError:  # a flow that knows its density at its own draws only
        return about
    return about | {"mutual_information": parts.mutual_information.value}


@functools.lru_cache(maxsize=32)
def _read_back(model: Model) -> Batched:
    encode: Any = model.encode
    decode: Any = model.decode

    def one(params: Params, key: Array, raw: Any) -> tuple[Array, Array]:
        example = preprocessed(jax.random.split(key)[0], raw)
        x, condition = model.parts(example)
        greedy = decode(params, mean_of(encode(params, example)), condition).mean
        return ((greedy == x.tokens) & x.mask).sum(), x.mask.sum()

    return batched(one)
