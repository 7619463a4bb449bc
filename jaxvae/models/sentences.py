"""VAEs of sentences (Bowman et al. 2016, arXiv:1511.06349).

log p(x|z) = sum_t log p(x_t | x_<t, z) runs over the words and the end mark, and not over what
fills a row up. A row of T places has no end mark if its sentence goes on, and its probability is
the one of all sentences that begin so. So the probabilities of all rows sum to one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxvae.contracts import Array, Params, pytree, static
from jaxvae.datasets.texts import END, UNKNOWN
from jaxvae.distributions.contract import many
from jaxvae.models.conditional import CVAE, Conditioned, condition_on
from jaxvae.models.vae import VAE, check_raw
from jaxvae.networks import Network, SequenceDecoder, preceding
from jaxvae.posteriors import Posterior
from jaxvae.priors import Prior


class Sentence(NamedTuple):
    """A row of tokens, and which of its places count: the words and the end mark."""

    tokens: Array  # [T] int32
    mask: Array  # [T] bool


def sentence_of(tokens: Array) -> Sentence:
    """The sentence of a row [T], whose places after the first end mark do not count."""
    ends = jnp.cumsum(tokens == END)
    return Sentence(tokens, (ends - (tokens == END)) == 0)


@pytree
class Sentences:
    """The law of sentences of at most T places that a decoder gives at a context.

    A draw is a row [T], in which the end mark fills what is left. With a key, as in training, units
    and words that the decoder sees are dropped: a word is unknown to it with probability
    ``word_dropout``. The words that it explains and the mark of the beginning stay.
    """

    params: Any
    context: Array
    key: Any
    decoder: SequenceDecoder = static()
    word_dropout: float = static(0.0)

    def log_prob(self, x: Any) -> Array:
        """log p(x) of a ``Sentence`` or of a row [T]."""
        return self._scanned(x)[0]

    def log_probs(self, x: Any) -> Array:
        """log p(x_t | x_<t) of each place, [T]; zero for places that do not count."""
        return self._scanned(x)[1]

    def _scanned(self, x: Any) -> tuple[Array, Array]:
        """The sum over places, added up from the first on, and each place.

        The logits of one place are in memory at a time.
        """
        tokens, mask = x if isinstance(x, Sentence) else sentence_of(jnp.asarray(x))
        states = self._states(jnp.where(mask, tokens, END))
        if len(states) == 1:  # one law for all places
            logits = self.decoder.logits(self.params, states[0])
            log_p = jnp.where(mask, jax.nn.log_softmax(logits)[tokens], 0.0)
            return log_p.sum(), log_p

        @functools.partial(jax.checkpoint, prevent_cse=False)  # not needed in a scan
        def at(state: Array, token: Array) -> Array:
            logits = self.decoder.logits(self.params, state)
            return logits[token] - jax.nn.logsumexp(logits)

        def add(total: Array, place: tuple) -> tuple[Array, Array]:
            state, token, real = place
            log_p = jnp.where(real, at(state, token), 0.0)
            return total + log_p, log_p

        return lax.scan(add, jnp.zeros(()), (states, tokens, mask))

    def _states(self, tokens: Array) -> Array:
        decoder, key_units = self.decoder, None
        if self.key is not None:
            key_words, key_units = jax.random.split(self.key)
            dropped = jax.random.bernoulli(key_words, self.word_dropout, tokens.shape)
            tokens = jnp.where(dropped, UNKNOWN, tokens)
        return decoder.states(self.params, self.context, preceding(decoder, tokens), key_units)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Rows [*shape, T], drawn word after word."""
        return many(
            lambda key: self._chosen(
                lambda t, logits: jax.random.categorical(jax.random.fold_in(key, t), logits)
            ),
            key,
            shape,
        )

    @property
    def mean(self) -> Array:
        """The greedy sentence [T], which stands for the mean: the likeliest word at each place."""
        return self._chosen(lambda t, logits: logits.argmax())

    def _chosen(self, choose: Callable[[Array, Array], Array]) -> Array:
        """Words that are chosen one after the other, by their place and their logits [V]."""
        decoder = self.decoder

        def step(carry: tuple, t: Array) -> tuple[tuple, Array]:
            inner, before, ended = carry
            inner, state = decoder.step(self.params, self.context, inner, before, t)
            token = choose(t, decoder.logits(self.params, state)).astype(jnp.int32)
            token = jnp.where(ended, END, token)
            return (inner, token, ended | (token == END)), token

        begin = decoder.begin(self.params, self.context)
        first = begin, jnp.int32(decoder.vocabulary), jnp.bool_(False)
        return lax.scan(step, first, jnp.arange(decoder.length))[1]

    def beam(self, width: int) -> tuple[Array, Array]:
        """The best rows of a beam search, [width, T], and their log-probabilities, best first.

        Each place keeps the ``width`` likeliest beginnings of sentences, in which ended ones stay.
        """
        decoder, vocabulary = self.decoder, self.decoder.vocabulary
        ended_goes_on = jnp.full(vocabulary, -jnp.inf).at[END].set(0.0)

        def step(carry: tuple, t: Array) -> tuple[tuple, None]:
            inner, rows, scores, before, ended = carry
            advance = lambda inner, before: decoder.step(
                self.params, self.context, inner, before, t
            )
            inner, states = jax.vmap(advance)(inner, before)
            logits = jax.vmap(lambda state: decoder.logits(self.params, state))(states)
            log_p = jnp.where(ended[:, None], ended_goes_on, jax.nn.log_softmax(logits))
            scores, flat = lax.top_k((scores[:, None] + log_p).ravel(), width)
            parent, token = flat // vocabulary, (flat % vocabulary).astype(jnp.int32)
            inner, rows, ended = jax.tree.map(lambda a: a[parent], (inner, rows, ended))
            return (inner, rows.at[:, t].set(token), scores, token, ended | (token == END)), None

        copies = lambda a: jnp.broadcast_to(a, (width, *jnp.shape(a)))
        begin = jax.tree.map(copies, decoder.begin(self.params, self.context))
        only_first = jnp.full(width, -jnp.inf).at[0].set(0.0)
        first = (
            *(begin, jnp.zeros((width, decoder.length), jnp.int32), only_first),
            *(copies(jnp.int32(vocabulary)), copies(jnp.bool_(False))),
        )
        (_, rows, scores, _, _), _ = lax.scan(step, first, jnp.arange(decoder.length))
        return rows, scores


def sentence_cvae(
    encoder: Network,
    decoder: SequenceDecoder,
    posterior: Posterior,
    prior: Prior,
    word_dropout: float = 0.0,
) -> CVAE:
    """A VAE of sentences given a vector y, which the decoder sees at every word beside z.

    Args:
      encoder: takes ``(tokens [T], mask [T], y)`` to ``[posterior.size]``.
      decoder: the law of the next word, whose context is z and y, one after the other.
      posterior: the family of q(z|x, y), one of ``posteriors``.
      prior: the family of p(z), one of ``priors``.
      word_dropout: probability that training hides a word from the decoder (Bowman et al. 2016,
        sec. 3.1).

    Parameters are ``{"encoder", "posterior", "decoder", "prior"}``. Without a vector, y = None, it
    is a VAE.
    """
    seen = lambda x, y: (*x, *_given(y))
    context = lambda z, y: jnp.concatenate([z, *_given(y)])

    def init(key: Array, example: Conditioned) -> Params:
        x, y = example
        keys = jax.random.split(key, 4)
        params = {
            "encoder": encoder.init(keys[0], seen(x, y)),
            "posterior": posterior.init(keys[1]),
        }
        raw = jax.eval_shape(encoder.apply, params["encoder"], seen(x, y))
        check_raw("encoder", raw.shape, posterior)
        made = posterior.make(params["posterior"], jnp.zeros(raw.shape))
        shape = jax.eval_shape(lambda: context(made.sample(keys[0]), y)).shape
        params["decoder"] = decoder.init(keys[2], jnp.zeros(shape))
        return params | {"prior": prior.init(keys[3])}

    def encode(params: Params, x: Sentence, y: Any) -> Any:
        raw = encoder.apply(params["encoder"], seen(x, y))
        return posterior.make(params["posterior"], raw)

    def with_key(key: Any) -> CVAE:
        decode = lambda params, z, y: Sentences(
            params["decoder"], context(z, y), key, decoder, word_dropout
        )
        return CVAE(init, encode, decode, lambda params, y: prior.make(params["prior"]))

    return with_key(None)._replace(training=with_key)


def _given(y: Any) -> tuple[Array, ...]:
    return () if y is None else (y,)


def sentence_vae(
    encoder: Network,
    decoder: SequenceDecoder,
    posterior: Posterior,
    prior: Prior,
    word_dropout: float = 0.0,
) -> VAE:
    """A VAE of sentences: ``sentence_cvae`` without a vector.

    Args:
      encoder: takes ``(tokens [T], mask [T])`` to ``[posterior.size]``.
      decoder: the law of the next word, whose context is z.
      posterior: the family of q(z|x), one of ``posteriors``.
      prior: the family of p(z), one of ``priors``.
      word_dropout: probability that training hides a word from the decoder.
    """
    return condition_on(sentence_cvae(encoder, decoder, posterior, prior, word_dropout), None)
