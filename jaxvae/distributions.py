"""Distributions over one example: small frozen pytrees with ``sample(key, shape=())`` and ``log_prob(x)``.

Every axis of the parameters belongs to the event: a ``Normal`` with ``loc [H, W, C]`` is one density over one image,
and ``log_prob`` is a single number in nats. Batches are made by ``jax.vmap``. ``sample(key, shape)`` puts ``shape`` in
front of the event, and ``log_prob`` accepts what ``sample`` returns: ``x [*shape, *event] -> [*shape]``.

NumPyro's distributions satisfy the same contract (with ``to_event`` so that ``batch_shape`` is empty).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Protocol, dataclass_transform, runtime_checkable

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import betaln, logsumexp

Array = jax.Array
LOG_2PI = math.log(2 * math.pi)


@runtime_checkable
class Distribution(Protocol):
    """What the library asks of a distribution: a pytree that can be sampled and has a log-density in nats."""

    def sample(self, key: Array, shape: tuple[int, ...] = (), /) -> Array: ...

    def log_prob(self, x: Any, /) -> Array: ...


@dataclass_transform(frozen_default=True)
def pytree(cls: type) -> type:
    """A frozen dataclass registered with JAX; fields with ``metadata={"static": True}`` are not traced.

    The class is part of the tree structure: with ``jax.tree_util.register_dataclass`` the structures of two families
    with as many fields compare equal, and jit's cache may confuse them.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)
    static = [field.name for field in fields if field.metadata.get("static")]
    traced = [field.name for field in fields if field.name not in static]

    def flatten(value: Any) -> tuple:
        children = [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in traced]
        return children, (cls, tuple(getattr(value, name) for name in static))

    def unflatten(aux: tuple, children: Any) -> Any:
        value: Any = object.__new__(cls)
        for name, child in [*zip(traced, children, strict=True), *zip(static, aux[1], strict=True)]:
            object.__setattr__(value, name, child)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


def _static(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"static": True})


def _check_event(distribution: Any, x: Array) -> tuple[int, ...]:
    """Returns the sample shape in front of the event in ``x``, or says how the shapes disagree."""
    event, shape = distribution.event_shape, jnp.shape(x)
    lead = len(shape) - len(event)
    if lead < 0 or shape[lead:] != event:
        raise ValueError(
            f"{type(distribution).__name__}.log_prob got x of shape {shape}, but one event has shape {event}: "
            f"expected {event}, or [*samples, *{event}]. A batch of examples goes through jax.vmap."
        )
    return shape[:lead]


def _many(sample_one: Any, key: Array, shape: tuple[int, ...]) -> Array:
    """Draws ``shape`` independent samples of ``sample_one(key)``."""
    if not shape:
        return sample_one(key)
    draws = jax.vmap(sample_one)(jax.random.split(key, math.prod(shape)))
    return draws.reshape(shape + draws.shape[1:])


class _Factorized:
    """Independent coordinates, log p(x) = sum_i log p(x_i).

    Members define ``log_density``, elementwise, or ``log_prob_flat``.
    """

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(*(jnp.shape(leaf) for leaf in jax.tree.leaves(self)))

    def log_density(self, x: Array) -> Array:
        raise TypeError(f"{type(self).__name__} does not define log_density")

    def log_prob(self, x: Array) -> Array:
        """Flattened first: on CPU, XLA runs [D] up to 20 times faster than [H, W, 1]."""
        lead = _check_event(self, x)
        flat = jax.tree.map(lambda leaf: jnp.reshape(self._full(leaf), -1), self)
        return flat.log_prob_flat(jnp.reshape(x, (*lead, -1)))

    def log_prob_flat(self, x: Array) -> Array:
        """Of parameters [D] and x [..., D]."""
        return self.log_density(x).sum(-1)

    def _full(self, value: Array) -> Array:
        return jnp.broadcast_to(value, self.event_shape)


@pytree
class Normal(_Factorized):
    """Gaussian with diagonal covariance, log N(x; loc, scale^2) summed over the event."""

    loc: Array
    scale: Array

    @property
    def mean(self) -> Array:
        return self._full(self.loc)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return self.loc + self.scale * jax.random.normal(key, shape + self.event_shape, jnp.result_type(self.loc))

    def log_density(self, x: Array) -> Array:
        return -0.5 * ((x - self.loc) / self.scale) ** 2 - jnp.log(self.scale) - 0.5 * LOG_2PI


@pytree
class MultivariateNormal:
    """Gaussian with full covariance L L^T: ``loc [D]``, ``scale_tril`` L [D, D] lower triangular."""

    loc: Array
    scale_tril: Array

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.loc)

    @property
    def mean(self) -> Array:
        return self.loc

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        noise = jax.random.normal(key, shape + self.event_shape, jnp.result_type(self.loc))
        return self.loc + jnp.matmul(noise, self.scale_tril.T, precision="float32")

    def log_prob(self, x: Array) -> Array:
        lead = _check_event(self, x)
        residual = (x - self.loc).reshape(-1, self.event_shape[0])  # [samples, D]
        white = solve_triangular(self.scale_tril, residual.T, lower=True)  # [D, samples]
        log_det = jnp.log(jnp.abs(jnp.diagonal(self.scale_tril))).sum()
        return (-0.5 * (white**2 + LOG_2PI).sum(0) - log_det).reshape(lead)


@pytree
class Laplace(_Factorized):
    """Laplace, p(x) = exp(-|x - loc| / scale) / (2 scale) per coordinate."""

    loc: Array
    scale: Array

    @property
    def mean(self) -> Array:
        return self._full(self.loc)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return self.loc + self.scale * jax.random.laplace(key, shape + self.event_shape, jnp.result_type(self.loc))

    def log_density(self, x: Array) -> Array:
        return -jnp.abs(x - self.loc) / self.scale - jnp.log(2 * self.scale)


def _bernoulli_terms(logits: Array) -> tuple[Array, Array]:
    e = jnp.exp(-jnp.abs(logits))
    return e, jnp.where(logits >= 0, 1.0, e) / (1.0 + e)


@jax.custom_jvp
def bernoulli_log_prob(logits: Array, x: Array) -> Array:
    """log Bernoulli(x; sigmoid(l)) = sum_d x l - max(l, 0) - log(1 + e^-|l|) over the last axis, for any finite logits.

    The logarithms are those of products of up to 64 factors, which lie between 1 and 2, because logarithms are slow on
    a CPU; and the derivative shares the exponential with the value.
    """
    e, _ = _bernoulli_terms(logits)
    most = min(jnp.finfo(e.dtype).maxexp // 2, 64)
    count = max(n for n in range(1, most + 1) if e.shape[-1] % n == 0)
    factors = (1.0 + e).reshape(*e.shape[:-1], count, e.shape[-1] // count)
    return (x * logits - jnp.maximum(logits, 0.0)).sum(-1) - jnp.log(factors.prod(-2)).sum(-1)


@bernoulli_log_prob.defjvp
def _bernoulli_log_prob_jvp(primals: tuple, tangents: tuple) -> tuple:
    (logits, x), (logits_dot, x_dot) = primals, tangents
    _, probability = _bernoulli_terms(logits)
    return bernoulli_log_prob(logits, x), ((x - probability) * logits_dot + logits * x_dot).sum(-1)


@pytree
class Bernoulli(_Factorized):
    """Bernoulli with log-odds ``logits``; x in {0, 1}."""

    logits: Array

    @property
    def mean(self) -> Array:
        return sigmoid(self.logits)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return jax.random.bernoulli(key, self.mean, shape + self.event_shape).astype(jnp.result_type(self.logits))

    def log_prob_flat(self, x: Array) -> Array:
        return bernoulli_log_prob(*jnp.broadcast_arrays(self.logits, jnp.asarray(x, jnp.result_type(self.logits))))


@pytree
class Categorical:
    """Categorical over C classes with unnormalized ``logits [*event, C]``; x holds class indices ``[*event]``."""

    logits: Array

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.logits)[:-1]

    @property
    def mean(self) -> Array:
        """The expected class index: for ordered classes such as pixel values, the mean."""
        classes = jnp.arange(self.logits.shape[-1], dtype=jnp.result_type(self.logits))
        return jnp.matmul(jax.nn.softmax(self.logits), classes, precision="float32")

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        return jax.random.categorical(key, self.logits, shape=shape + self.event_shape)

    def log_prob(self, x: Array) -> Array:
        lead = _check_event(self, x)
        log_probs = jnp.broadcast_to(jax.nn.log_softmax(self.logits), lead + self.logits.shape)
        chosen = jnp.take_along_axis(log_probs, jnp.asarray(x, jnp.int32)[..., None], -1)[..., 0]
        return chosen.sum(axis=tuple(range(len(lead), chosen.ndim)))


@pytree
class DiscretizedLogistic(_Factorized):
    """Logistic density integrated over the bin of each of ``levels`` values 0, 1/(levels-1), ..., 1.

    p(x) = sigmoid((x + h - loc)/s) - sigmoid((x - h - loc)/s) with h = 1 / (2 (levels-1)), the outer bins reaching to
    infinity (Kingma et al. 2016, arXiv:1606.04934, app. A; Salimans et al. 2017, arXiv:1701.05517, eq. 2). Evaluated
    without loss in the tails by sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^(a-b)).
    """

    loc: Array
    scale: Array
    levels: int = _static(256)

    @property
    def mean(self) -> Array:
        """The mean of the logistic before it is cut into bins, kept inside [0, 1]."""
        return self._full(jnp.clip(self.loc, 0.0, 1.0))

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        noise = jax.random.logistic(key, shape + self.event_shape, jnp.result_type(self.loc))
        x = jnp.clip(self.loc + self.scale * noise, 0.0, 1.0)
        return jnp.round(x * (self.levels - 1)) / (self.levels - 1)

    def log_density(self, x: Array) -> Array:
        half = 0.5 / (self.levels - 1)
        above = log_sigmoid((x + half - self.loc) / self.scale)
        below = log_sigmoid(-(x - half - self.loc) / self.scale)
        inside = above + below + jnp.log(-jnp.expm1(-2 * half / self.scale))
        return jnp.where(x < half, above, jnp.where(x > 1 - half, below, inside))


@pytree
class ContinuousBernoulli(_Factorized):
    """Continuous Bernoulli on [0, 1], p(x) = C(l) e^(x l) / (1 + e^l), C(l) = l / tanh(l / 2).

    Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845, eq. 1 and 2, written in the log-odds l; C(0) = 2.
    """

    logits: Array

    def _near_zero(self) -> tuple[Array, Array]:
        near = jnp.abs(self.logits) < 0.5
        return near, jnp.where(near, 1.0, self.logits)

    @property
    def log_normalizer(self) -> Array:
        """log C(l), by its series log 2 + l^2/12 - 7 l^4/1440 + 31 l^6/90720 - ... where l is small."""
        near, l = self._near_zero()
        magnitude = jnp.abs(l)
        far = jnp.log(magnitude) - jnp.log(jnp.tanh(magnitude / 2))
        square = jnp.where(near, self.logits, 0.0) ** 2
        series = math.log(2) + square / 12 - 7 * square**2 / 1440 + 31 * square**3 / 90720
        series -= 127 * square**4 / 4838400
        return jnp.where(near, series, far)

    @property
    def mean(self) -> Array:
        """1 / (1 - e^-l) - 1 / l, by its series 1/2 + l/12 - l^3/720 + l^5/30240 where l is small."""
        near, l = self._near_zero()
        small = jnp.where(near, self.logits, 0.0)
        series = 0.5 + small / 12 - small**3 / 720 + small**5 / 30240
        magnitude = jnp.abs(l)
        upper = -1 / jnp.expm1(-magnitude) - 1 / magnitude  # the mean at |l|
        return jnp.where(near, series, jnp.where(l > 0, upper, 1 - upper))

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Inverse of the distribution function, x = log(1 + u (e^l - 1)) / l, from the side where e^l <= 1."""
        u = jax.random.uniform(key, shape + self.event_shape, jnp.result_type(self.logits))
        tiny = jnp.abs(self.logits) < 1e-3
        negative = -jnp.abs(jnp.where(tiny, 1.0, self.logits))
        x = jnp.clip(jnp.log1p(u * jnp.expm1(negative)) / negative, 0.0, 1.0)
        return jnp.where(tiny, u, jnp.where(self.logits > 0, 1 - x, x))

    def log_prob_flat(self, x: Array) -> Array:
        logits, x = jnp.broadcast_arrays(self.logits, jnp.asarray(x, jnp.result_type(self.logits)))
        return bernoulli_log_prob(logits, x) + self.log_normalizer.sum(-1)


@pytree
class NegativeBinomial(_Factorized):
    """Counts x = 0, 1, ... with p(x) = Gamma(x+r) / (x! Gamma(r)) sigmoid(-l)^r sigmoid(l)^x; mean r e^l.

    ``total_count`` r > 0, ``logits`` l.
    """

    total_count: Array
    logits: Array

    @property
    def mean(self) -> Array:
        return self._full(self.total_count * jnp.exp(self.logits))

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        key_rate, key_count = jax.random.split(key)
        shape = shape + self.event_shape
        rate = jax.random.gamma(key_rate, jnp.broadcast_to(self.total_count, shape)) * jnp.exp(self.logits)
        return jax.random.poisson(key_count, rate).astype(jnp.result_type(self.logits))

    def log_density(self, x: Array) -> Array:
        x = jnp.asarray(x, jnp.result_type(self.logits))
        choose = -jnp.log(x + self.total_count) - betaln(x + 1, self.total_count)  # differences of gammaln cancel
        return choose + self.total_count * log_sigmoid(-self.logits) + x * log_sigmoid(self.logits)


@pytree
class ZeroInflatedNegativeBinomial(_Factorized):
    """Negative binomial that is replaced by zero with probability sigmoid(``gate_logits``).

    As in Lopez et al. 2018 (scVI), doi:10.1038/s41592-018-0229-2.
    """

    total_count: Array
    logits: Array
    gate_logits: Array

    @property
    def counts(self) -> NegativeBinomial:
        return NegativeBinomial(self._full(self.total_count), self._full(self.logits))

    @property
    def mean(self) -> Array:
        return sigmoid(-self.gate_logits) * self.counts.mean

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        key_gate, key_count = jax.random.split(key)
        zero = jax.random.bernoulli(key_gate, sigmoid(self.gate_logits), shape + self.event_shape)
        return jnp.where(zero, 0.0, self.counts.sample(key_count, shape))

    def log_density(self, x: Array) -> Array:
        counted = log_sigmoid(-self.gate_logits) + self.counts.log_density(x)
        return jnp.where(x == 0, jnp.logaddexp(log_sigmoid(self.gate_logits), counted), counted)


@pytree
class Independent:
    """A product of independent distributions stacked along the first ``ndim`` axes of every leaf.

    log p(x) = sum_i log p_i(x_i): a mixture for every pixel is ``Independent(Mixture(...), ndim=3)``.
    """

    distribution: Any
    ndim: int = _static(1)

    def _map(self, function: Any) -> Any:
        return functools.reduce(lambda f, _: jax.vmap(f), range(self.ndim), function)

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        return jnp.shape(jax.tree.leaves(self.distribution)[0])[: self.ndim]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jax.eval_shape(self.sample, jax.random.key(0)).shape

    @property
    def mean(self) -> Array:
        return self._map(lambda d: d.mean)(self.distribution)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        def one(key: Array) -> Array:
            keys = jax.random.split(key, self.stacked_shape)
            return self._map(lambda d, k: d.sample(k))(self.distribution, keys)

        return _many(one, key, shape)

    def log_prob(self, x: Array) -> Array:
        lead = _check_event(self, x)
        one = lambda x: self._map(lambda d, x: d.log_prob(x))(self.distribution, x).sum()
        return functools.reduce(lambda f, _: jax.vmap(f), lead, one)(x)


@pytree
class Mixture:
    """A finite mixture, p(x) = sum_m softmax(``logits``)_m p_m(x), with ``logits [M]``.

    ``components`` is one distribution with an axis M in front of every leaf, or a tuple of M distributions of any
    families over the same event.
    """

    logits: Array
    components: Any

    def _each(self, function: Any) -> Array:
        """``function`` of every component, stacked: [M, ...]."""
        if isinstance(self.components, tuple):
            return jnp.stack([function(component) for component in self.components])
        return jax.vmap(function)(self.components)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jax.eval_shape(self.sample, jax.random.key(0)).shape

    @property
    def mean(self) -> Array:
        return jnp.tensordot(jax.nn.softmax(self.logits), self._each(lambda d: d.mean), 1, precision="float32")

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        def one(key: Array) -> Array:
            key_component, key_x = jax.random.split(key)
            chosen = jax.random.categorical(key_component, self.logits)
            if isinstance(self.components, tuple):
                return self._each(lambda d: d.sample(key_x))[chosen]
            return jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], self.components).sample(key_x)

        return _many(one, key, shape)

    def log_prob(self, x: Array) -> Array:
        lead, log_weights = _check_event(self, x), jax.nn.log_softmax(self.logits)
        log_probs = self._each(lambda d: d.log_prob(x))  # [M, *samples]
        if log_probs.shape != log_weights.shape + lead:
            raise ValueError(
                f"a mixture of {len(log_weights)} components needs one log-density of each, shape "
                f"{log_weights.shape + lead}; they gave {log_probs.shape}. For NumPyro, move batch axes into the event "
                "with to_event()."
            )
        return logsumexp(jnp.moveaxis(log_probs, 0, -1) + log_weights, -1)
