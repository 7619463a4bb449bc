"""Networks of sequences: recurrent encoders, and decoders that say one token after the other.

A sequence is a row of tokens [T]. A mask says which places count, and a place that does not count
changes no number of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen
from jax import lax

from jaxvae.networks.adapters import from_linen
from jaxvae.networks.autoregressive import Grid
from jaxvae.networks.contract import Network, in_training
from jaxvae.networks.layers import Array, dense
from jaxvae.networks.precision import with_precision
from jaxvae.networks.transformer import States


class SequenceDecoder(NamedTuple):
    """The law of the next token, given the tokens before it and a vector, its context.

    A *state* [W] stands for a place, and its logits are of the token there. ``states`` computes all
    places at once, or one state [1, W] that serves them all. ``begin`` and ``step`` compute one
    after the other and carry what later places need. Both give the same numbers. The token before
    the first one is ``vocabulary``.
    """

    vocabulary: int  # V
    length: int  # the most places of a sequence, T
    init: Callable[[Array, Array], Any]  # (key, context) -> params
    # (params, context, tokens before each place [T], key=None) -> states [T, W]; a key drops units
    states: Callable[..., Array]
    begin: Callable[[Any, Array], Any]  # (params, context) -> carry
    # (params, context, carry, token before the place, place) -> (carry, state [W])
    step: Callable[[Any, Array, Any, Array, Array], tuple[Any, Array]]
    logits: Callable[[Any, Array], Array]  # (params, state [W]) -> [V]


def preceding(decoder: SequenceDecoder, tokens: Array) -> Array:
    """The token before each of the tokens [T]; the first one follows the mark of the beginning."""
    return jnp.concatenate([jnp.full(1, decoder.vocabulary, tokens.dtype), tokens[:-1]])


class GatedUnits(linen.Module):
    """Gated recurrent units over vectors [T, D]: the states [T, W] and the last one.

    h_t = (1 - u) n + u h_{t-1} with gates r, u and n = tanh(W x_t + r (U h_{t-1} + b)) (Cho et al.
    2014, arXiv:1406.1078, with r after the product as in cuDNN). A state stays where the mask is
    not set.
    """

    width: int

    @linen.compact
    def __call__(self, x: Array, first: Array, mask: Array) -> tuple[Array, Array]:
        inputs = dense(3 * self.width, name="input")(x)  # [T, 3 W]
        kernel = self.param("recurrent", _orthogonal_gates, (self.width, 3 * self.width))
        bias = self.param("recurrent_bias", linen.initializers.zeros_init(), (3 * self.width,))

        def step(h: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            of_input, real = now
            of_state = h @ kernel + bias
            r, u, n = jnp.split(of_input, 3)
            r_h, u_h, n_h = jnp.split(of_state, 3)
            reset, update = jax.nn.sigmoid(r + r_h), jax.nn.sigmoid(u + u_h)
            new = (1 - update) * jnp.tanh(n + reset * n_h) + update * h
            new = jnp.where(real, new, h)
            return new, new

        last, states = lax.scan(step, first.astype(inputs.dtype), (inputs, mask))
        return states, last


def _orthogonal_gates(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """An orthogonal matrix for each of the three gates."""
    orthogonal = linen.initializers.orthogonal()
    keys = jax.random.split(key, 3)
    return jnp.concatenate([orthogonal(k, (shape[0], shape[0]), dtype) for k in keys], 1)


class _Encoder(linen.Module):
    vocabulary: int
    embedding: int
    width: int
    size: int

    @linen.compact
    def __call__(self, inputs: tuple[Array, ...]) -> Array:
        tokens, mask, *beside = inputs
        x = linen.Embed(self.vocabulary, self.embedding, name="tokens")(tokens)
        first = jnp.zeros(self.width, x.dtype)
        _, last = GatedUnits(self.width, name="units")(x, first, mask)
        return dense(self.size, name="output")(jnp.concatenate([last, *beside]))


def recurrent_encoder(vocabulary: int, embedding: int, width: int, size: int) -> Network:
    """Gated units over the tokens of a sequence, whose last state gives a vector.

    Its input is ``(tokens [T], mask [T])``, or these and vectors that stand beside the last state.

    Args:
      vocabulary: how many tokens there are.
      embedding: size of the vector of a token.
      width: units.
      size: numbers that the network gives.
    """
    return from_linen(_Encoder(vocabulary, embedding, width, size))


class _BagOfWords(linen.Module):
    vocabulary: int
    embedding: int
    size: int

    @linen.compact
    def __call__(self, inputs: tuple[Array, Array]) -> Array:
        tokens, mask = inputs
        vectors = linen.Embed(self.vocabulary, self.embedding, name="tokens")(tokens)
        total = jnp.where(mask[:, None], vectors, 0).sum(0)
        scaled = total / jnp.sqrt(jnp.maximum(mask.sum(), 1))
        return dense(self.size, name="output")(scaled)


def bag_of_words(vocabulary: int, embedding: int, size: int) -> Network:
    """A linear function of the tokens' vectors, summed and divided by the root of their number.

    Joulin et al. 2017, arXiv:1607.01759, have the mean. It shrinks as a sequence grows, and the
    root keeps its size (Cer et al. 2018, arXiv:1803.11175). The input is ``(tokens [T], mask
    [T])``.

    Args:
      vocabulary: how many tokens there are.
      embedding: size of the vector of a token.
      size: numbers that the network gives.
    """
    return from_linen(_BagOfWords(vocabulary, embedding, size))


class _RecurrentStates(linen.Module):
    vocabulary: int
    embedding: int
    width: int
    dropout: float
    skip: bool

    @linen.compact
    def __call__(self, inputs: tuple, deterministic: bool) -> tuple[Array, Array]:
        tokens, context, carry, _ = inputs
        x = linen.Embed(self.vocabulary + 1, self.embedding, name="tokens")(tokens)
        given = jnp.broadcast_to(context, (len(tokens), context.size)).astype(x.dtype)
        dropped = linen.Dropout(self.dropout)
        x = dropped(jnp.concatenate([x, given], -1), deterministic=deterministic)
        first = jnp.tanh(dense(self.width, name="first")(context)) if carry is None else carry
        every = jnp.ones(len(tokens), bool)
        states, last = GatedUnits(self.width, name="units")(x, first, every)
        if self.skip:
            states = states + dense(self.width, name="skip")(context)
        return dropped(states, deterministic=deterministic), last


def recurrent_decoder(
    vocabulary: int,
    length: int,
    embedding: int = 64,
    width: int = 128,
    dropout: float = 0.0,
    precision: str = "float32",
    skip: bool = False,
) -> SequenceDecoder:
    """Gated units that see the context at their beginning and beside every token.

    Bowman et al. 2016, arXiv:1511.06349.

    Args:
      vocabulary: how many tokens there are, V.
      length: the most places of a sequence.
      embedding: size of the vector of a token.
      width: units.
      dropout: share of inputs and of states that training drops.
      precision: a member of ``PRECISIONS``.
      skip: whether the states have a linear function of the context added, which reaches the logits
        past the units (Dieng et al. 2019, arXiv:1807.04863).
    """
    module = _RecurrentStates(vocabulary, embedding, width, dropout, skip)
    network = with_precision(from_linen(module), precision)

    def begin(params: Any, context: Array) -> Array:
        none = jnp.zeros(0, jnp.int32)
        return network.apply(params, (none, context, None, 0))[1]

    return _decoder(network, vocabulary, length, begin, width, precision)


def transformer_decoder(
    vocabulary: int,
    length: int,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    dropout: float = 0.0,
    precision: str = "float32",
    *,
    context_size: int,
) -> SequenceDecoder:
    """A causal transformer that sees the context at every place.

    The mark of the beginning bears the context and nothing else. Every place attends to it, so it
    is a slot of memory (Li et al. 2020, arXiv:2004.04092, sec. 3.2).

    Args:
      vocabulary: how many tokens there are, V.
      length: the most places of a sequence.
      width: channels of each place.
      layers: blocks of attention and a hidden layer of four times the width.
      heads: heads of the attention, which divide the width.
      dropout: share of units that training drops.
      precision: a member of ``PRECISIONS``.
      context_size: size of the context.

    Raises ValueError if the heads do not divide the width.
    """
    if width % heads:
        raise ValueError(f"heads={heads} must divide width={width}: choose another of the two")
    module = States((Grid(1, length, vocabulary),), width, layers, heads, dropout)
    network = with_precision(from_linen(module), precision)

    def begin(params: Any, context: Array) -> Any:
        empty = jnp.zeros((layers, length, heads, width // heads))
        return empty, empty

    return _decoder(network, vocabulary, length, begin, width, precision)


class _OneState(linen.Module):
    width: int

    @linen.compact
    def __call__(self, inputs: tuple, deterministic: bool) -> tuple[Array, Any]:
        _, context, carry, _ = inputs
        return jnp.tanh(dense(self.width, name="hidden")(context))[None], carry


def independent_decoder(
    vocabulary: int, length: int, width: int = 128, precision: str = "float32"
) -> SequenceDecoder:
    """Every token by itself: log p(x|z) = sum_t log p(x_t|z), a softmax of one hidden layer.

    The decoder without inputs of Bowman et al. 2016, arXiv:1511.06349, sec. 4.1, which is a model
    of the counts of words (Miao et al. 2016, arXiv:1511.06038). With a class as its context it is
    naive Bayes.

    Args:
      vocabulary: how many tokens there are, V.
      length: the most places of a sequence.
      width: units of the hidden layer.
      precision: a member of ``PRECISIONS``.
    """
    network = with_precision(from_linen(_OneState(width)), precision)
    nothing = lambda params, context: jnp.zeros(0)
    return _decoder(network, vocabulary, length, nothing, width, precision)


def _decoder(
    network: Network,
    vocabulary: int,
    length: int,
    begin: Callable[[Any, Array], Any],
    width: int,
    precision: str,
) -> SequenceDecoder:
    """A decoder of a network ``(tokens, context, carry, place) -> (states, carry)``."""
    output = with_precision(from_linen(dense(vocabulary)), precision)

    def init(key: Array, context: Array) -> Any:
        keys = jax.random.split(key)
        tokens = jnp.zeros(length, jnp.int32)
        return {
            "states": network.init(keys[0], (tokens, context, None, 0)),
            "output": output.init(keys[1], jnp.zeros(width)),
        }

    def states(params: Any, context: Array, tokens: Array, key: Any = None) -> Array:
        live = network if key is None else in_training(network, key)
        return live.apply(params["states"], (tokens, context, None, 0))[0]

    def step(
        params: Any, context: Array, carry: Any, token: Array, place: Array
    ) -> tuple[Any, Array]:
        inputs = token[None], context, carry, place
        states, carry = network.apply(params["states"], inputs)
        return carry, states[0]

    def logits(params: Any, state: Array) -> Array:
        return output.apply(params["output"], state)

    initial = lambda params, context: begin(params["states"], context)
    return SequenceDecoder(vocabulary, length, init, states, initial, step, logits)
