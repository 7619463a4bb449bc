"""Normalizing flows: invertible maps of z [D] with log-determinants, for posteriors and for priors.

Some flows take their parameters from ``raw``, the numbers that an encoder gives for one example.
The others learn parameters that all examples share. ``chain`` composes both kinds.
``distributions.Transformed`` is the distribution of f(z) for a flow f. At ``raw = 0`` and at
``init`` a flow is the identity or close to it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import celu, log_sigmoid, sigmoid, softplus

Array = jax.Array
Pair = tuple[Array, Array]  # f(z), and log |det df/dz|
MARGIN = 0.01  # distance from the edge of invertibility, where log |det| is -inf
LOG_SCALE = 3.0  # largest log-scale of a coupling
GATE = 2.0  # initial log-odds of the share of z that an inverse autoregressive flow keeps
STEPS = 40  # of the orthogonalization: enough for singular values of 1e-6 of the norm

_matmul = functools.partial(jnp.matmul, precision="float32")


class Flow(NamedTuple):
    """An invertible map with the logarithm of its Jacobian's determinant, in nats."""

    size: int  # numbers that the encoder gives for one example, 0 where it gives none
    init: Callable[[Array], Any]  # key -> params that all examples share
    # (params, raw [size], z [D]) -> (y [D], log |det dy/dz|)
    forward: Callable[[Any, Array, Array], Pair]
    # (params, raw, y) -> (z, log |det dz/dy|); None where there is no closed form
    inverse: Callable[[Any, Array, Array], Pair] | None


def chain(*flows: Flow) -> Flow:
    """The composition of flows, the first flow first.

    Log-determinants add, and ``raw`` is cut into one part for each flow. The parameters are the
    list of the flows' parameters. The chain has an inverse if all flows have one. Raises ValueError
    without flows.
    """
    if not flows:
        raise ValueError("a chain needs at least one flow")
    sizes = [flow.size for flow in flows]

    def init(key: Array) -> list:
        return [
            flow.init(k) for flow, k in zip(flows, jax.random.split(key, len(flows)), strict=True)
        ]

    def through(maps: Sequence[Any], order: slice) -> Callable[[Any, Array, Array], Pair]:
        def apply(params: Any, raw: Array, z: Array) -> Pair:
            _check_raw("this chain", sum(sizes), raw)
            log_det: Any = 0.0
            raws = jnp.split(raw, np.cumsum(sizes)[:-1])
            for function, *given in list(zip(maps, params, raws, strict=True))[order]:
                z, more = function(*given, z)
                log_det += more
            return z, log_det

        return apply

    inverses = [flow.inverse for flow in flows]
    inverse = None if None in inverses else through(inverses, slice(None, None, -1))
    return Flow(sum(sizes), init, through([flow.forward for flow in flows], slice(None)), inverse)


def alternating(flow: Flow, latent: int, steps: int) -> Flow:
    """``steps`` of a flow, with the order of the coordinates reversed between them."""
    return chain(flow, *[part for _ in range(steps - 1) for part in (reverse(latent), flow)])


def _check_raw(name: str, size: int, raw: Array) -> None:
    if jnp.shape(raw) != (size,):
        raise ValueError(
            f"{name} takes raw of shape ({size},), its Flow.size, for one example; "
            f"got {jnp.shape(raw)}. A batch of examples goes through jax.vmap."
        )


def _flow(
    name: str,
    latent: int,
    forward: Callable,
    inverse: Callable | None,
    size: int = 0,
    init: Callable = lambda key: {},
) -> Flow:
    """The flow whose maps check the shapes of their input."""

    def checked(function: Callable) -> Callable:
        def apply(params: Any, raw: Array, z: Array) -> Pair:
            _check_raw(name, size, raw)
            if jnp.shape(z) != (latent,):
                raise ValueError(
                    f"{name} is over z of shape ({latent},), one sample; got {jnp.shape(z)}"
                )
            return function(params, raw, z)

        return apply

    return Flow(size, init, checked(forward), checked(inverse) if inverse else None)


# Parameters from the encoder


def planar(latent: int) -> Flow:
    """y = z + u tanh(w^T z + b), det = 1 + u^T psi(z), psi = tanh'(w^T z + b) w.

    Rezende & Mohamed 2015, arXiv:1505.05770. raw = [u, w, b]. The flow is invertible if w^T u > -1
    (appendix): u is moved along w until w^T u = m(w^T u). This m changes nothing if w^T u is
    positive, and does not fall below -1 + ``MARGIN``.
    """

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        u, w, b = jnp.split(raw, [latent, 2 * latent])
        wu = jnp.vdot(w, u, precision="float32")
        m = celu(wu, 1 - MARGIN)
        h = jnp.tanh(jnp.vdot(w, z, precision="float32") + b[0])
        u = u + (m - wu) * _inverse_square(w) * w
        return z + u * h, jnp.log1p(m * (1 - h**2))

    return _flow("a planar flow", latent, forward, None, 2 * latent + 1)


def radial(latent: int) -> Flow:
    """y = z + b (z - c) / (a + r), r = |z - c|, a > 0, b > -a.

    Rezende & Mohamed 2015, arXiv:1505.05770. det = (1 + b h)^(D-1) (1 + b h + b h' r) with
    h = 1 / (a + r). raw = [c, a, a + b], the last two through a softplus. The inverse solves
    |y - c| = r (r + a + b) / (r + a), a quadratic equation in r.
    """

    def constrained(raw: Array) -> tuple[Array, Array, Array]:
        a, total = softplus(raw[latent:]) + 1e-3  # away from 0
        return raw[:latent], a, total

    def log_det(a: Array, total: Array, r: Array) -> Array:
        tangential = jnp.log(r + total) - jnp.log(r + a)
        return (
            (latent - 1) * tangential + jnp.log(r**2 + 2 * a * r + a * total) - 2 * jnp.log(r + a)
        )

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        c, a, total = constrained(raw)
        r = _norm(z - c)
        return z + (total - a) / (a + r) * (z - c), log_det(a, total, r)

    def inverse(params: Any, raw: Array, y: Array) -> Pair:
        c, a, total = constrained(raw)
        distance = _norm(y - c)
        half = (distance - total) / 2
        root = jnp.sqrt(half**2 + a * distance) + jnp.abs(half)
        r = jnp.where(half > 0, root, a * distance / root)
        return c + (r + a) / (r + total) * (y - c), -log_det(a, total, r)

    return _flow("a radial flow", latent, forward, inverse, latent + 2)


def _norm(v: Array) -> Array:
    """|v|, with gradient 0 at 0."""
    square = jnp.sum(v**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _inverse_square(v: Array) -> Array:
    """1 / |v|^2, and 0 where |v|^2 is too small to divide by."""
    square = jnp.sum(v**2)
    nonzero = square > 1e-30
    return jnp.where(nonzero, 1 / jnp.where(nonzero, square, 1.0), 0.0)


def householder(latent: int) -> Flow:
    """y = (I - 2 v v^T / |v|^2) z, |det| = 1, which is its own inverse.

    Tomczak & Welling 2016, arXiv:1611.09630. raw = v; at v = 0 it is the identity.
    """

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        return _reflected(z, raw), jnp.zeros((), jnp.result_type(z))

    return _flow("a Householder flow", latent, forward, forward, latent)


def shift(latent: int) -> Flow:
    """y = z + raw."""
    moved = lambda sign: lambda params, raw, z: (z + sign * raw, jnp.zeros((), jnp.result_type(z)))
    return _flow("a shift", latent, moved(1), moved(-1), latent)


def _reflected(z: Array, v: Array) -> Array:
    return z - 2 * _inverse_square(v) * jnp.vdot(v, z, precision="float32") * v


def sylvester(latent: int, columns: int) -> Flow:
    """y = z + Q R tanh(R' Q^T z + b), Q [D, M] orthonormal, R and R' upper triangular.

    Van den Berg et al. 2018, arXiv:1803.05649. By Sylvester's identity
    det = prod_i (1 + tanh'(..)_i r_i r'_i). The flow is invertible because the diagonals r and r'
    are inside (-1, 1). raw = [Q, r, r', b, the rest of R, the rest of R'] with
    Q = ``orthonormal`` of I + raw. M is ``columns``, the paper's bottleneck. Raises ValueError
    unless 1 <= M <= D.
    """
    if not 1 <= columns <= latent:
        raise ValueError(
            f"{columns} orthonormal columns in {latent} dimensions; "
            f"there are between 1 and {latent}"
        )

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        start, rest = jnp.split(raw, [latent * columns])
        q = orthonormal(jnp.eye(latent, columns, dtype=raw.dtype) + start.reshape(latent, columns))
        return _sylvester(rest, z, lambda z: _matmul(q.T, z), lambda h: _matmul(q, h))

    return _flow(
        "a Sylvester flow", latent, forward, None, latent * columns + columns * (columns + 2)
    )


def triangular_sylvester(latent: int) -> Flow:
    """``sylvester`` with Q the identity, y = z + R tanh(R' z + b).

    Van den Berg et al. 2018, arXiv:1803.05649. raw = [r, r', b, R, R']. With Q the reversing
    permutation the flow is ``chain(reverse(D), triangular_sylvester(D), reverse(D))``.
    """
    identity = lambda z: z
    forward = lambda params, raw, z: _sylvester(raw, z, identity, identity)
    return _flow("a triangular Sylvester flow", latent, forward, None, latent * (latent + 2))


def householder_sylvester(latent: int, reflections: int) -> Flow:
    """``sylvester`` with Q a product of Householder reflections, M = D.

    Van den Berg et al. 2018, arXiv:1803.05649. raw = [v of each reflection, r, r', b, R, R'].
    """

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        vectors, rest = jnp.split(raw, [latent * reflections])
        vs = list(vectors.reshape(reflections, latent))
        reflected = lambda vs: lambda z: functools.reduce(_reflected, vs, z)
        return _sylvester(rest, z, reflected(vs), reflected(vs[::-1]))

    size = latent * reflections + latent * (latent + 2)
    return _flow("a Householder Sylvester flow", latent, forward, None, size)


def _sylvester(raw: Array, z: Array, down: Callable, up: Callable) -> Pair:
    """z + Q R tanh(R' Q^T z + b), given Q^T ``down`` and Q ``up``."""
    projected = down(z)
    m = len(projected)
    r, r_prime, b, above, above_prime = jnp.split(raw, np.cumsum([m, m, m, m * (m - 1) // 2]))
    r, r_prime = ((1 - MARGIN) ** 0.5 * jnp.tanh(diagonal) for diagonal in (r, r_prime))
    upper = lambda diagonal, rest: jnp.diag(diagonal).at[jnp.triu_indices(m, 1)].set(rest)
    h = jnp.tanh(_matmul(upper(r_prime, above_prime), projected) + b)
    return z + up(_matmul(upper(r, above), h)), jnp.log1p((1 - h**2) * r * r_prime).sum()


def orthonormal(matrix: Array) -> Array:
    """The polar factor of ``matrix [D, M]``: the orthonormal columns nearest to its own.

    The matrix has D >= M and full rank. It is scaled to norm 1, and then
    Q <- Q (I + (I - Q^T Q) / 2) (Bjorck & Bowie 1971; van den Berg et al. 2018, arXiv:1803.05649).
    """
    eye = jnp.eye(matrix.shape[1], dtype=matrix.dtype)
    step = lambda _, q: q + 0.5 * _matmul(q, eye - _matmul(q.T, q))
    return lax.fori_loop(0, STEPS, step, matrix / _norm(matrix))


# Parameters that all examples share


def inverse_autoregressive(latent: int, hidden: Sequence[int], context: int) -> Flow:
    """y = sigmoid(s) z + (1 - sigmoid(s)) m, where m_i and s_i depend on z_<i.

    Kingma et al. 2016, arXiv:1606.04934. [m, s] is a ``masked_mlp`` that also sees ``raw``, a
    context [C] from the encoder. log det = sum_i log sigmoid(s_i). s starts at ``GATE``, so most of
    z is kept at first. The inverse takes D steps.
    """
    init, network = masked_mlp(latent, hidden, 2, context)

    def gated(params: Any, raw: Array, z: Array) -> Pair:
        m, s = network(params, z, raw)
        return m, s + GATE

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        m, s = gated(params, raw, z)
        return sigmoid(s) * z + sigmoid(-s) * m, log_sigmoid(s).sum()

    def inverse(params: Any, raw: Array, y: Array) -> Pair:
        def step(z: Array) -> Array:
            m, s = gated(params, raw, z)
            return (y - sigmoid(-s) * m) / sigmoid(s)

        z = _sequentially(step, y)
        return z, -log_sigmoid(gated(params, raw, z)[1]).sum()

    return _flow("an inverse autoregressive flow", latent, forward, inverse, context, init)


def masked_autoregressive(latent: int, hidden: Sequence[int]) -> Flow:
    """y_i = m_i + exp(s_i) z_i, where m_i and s_i depend on y_<i.

    Papamakarios et al. 2017, arXiv:1705.07057. [m, s] is a ``masked_mlp``; log det = sum_i s_i. The
    inverse, which densities need, is one pass. ``forward``, which samples need, takes D passes.
    """
    init, network = masked_mlp(latent, hidden, 2)

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        def step(y: Array) -> Array:
            m, s = network(params, y, raw)
            return m + jnp.exp(s) * z

        y = _sequentially(step, z)
        return y, network(params, y, raw)[1].sum()

    def inverse(params: Any, raw: Array, y: Array) -> Pair:
        m, s = network(params, y, raw)
        return (y - m) * jnp.exp(-s), -s.sum()

    return _flow("a masked autoregressive flow", latent, forward, inverse, init=init)


def _sequentially(step: Callable[[Array], Array], like: Array) -> Array:
    """The fixed point of ``step``, found one coordinate at a time.

    The i-th output of ``step`` depends only on inputs before the i-th.
    """
    return lax.fori_loop(0, len(like), lambda i, x: x.at[i].set(step(x)[i]), jnp.zeros_like(like))


def affine_coupling(latent: int, hidden: Sequence[int]) -> Flow:
    """y_1 = z_1, y_2 = exp(s(z_1)) z_2 + t(z_1), for z cut into halves.

    RealNVP, Dinh et al. 2017, arXiv:1605.08803. log det = sum_i s_i, with |s_i| < ``LOG_SCALE``.
    With a ``reverse`` between two couplings the second changes the other half. Raises ValueError
    below two dimensions.
    """
    if latent < 2:
        raise ValueError(
            f"a coupling needs two dimensions or more to cut into halves; got latent={latent}"
        )
    kept = latent // 2
    sizes = [kept, *hidden, 2 * (latent - kept)]
    init, network = _masked(
        [np.ones(shape, bool) for shape in itertools.pairwise(sizes)], jax.nn.elu
    )

    def given(params: Any, first: Array) -> Pair:
        t, s = jnp.split(network(params, first), 2)
        return t, LOG_SCALE * jnp.tanh(s / LOG_SCALE)

    def forward(params: Any, raw: Array, z: Array) -> Pair:
        t, s = given(params, z[:kept])
        return jnp.concatenate([z[:kept], jnp.exp(s) * z[kept:] + t]), s.sum()

    def inverse(params: Any, raw: Array, y: Array) -> Pair:
        t, s = given(params, y[:kept])
        return jnp.concatenate([y[:kept], (y[kept:] - t) * jnp.exp(-s)]), -s.sum()

    return _flow("an affine coupling", latent, forward, inverse, init=init)


def reverse(latent: int) -> Flow:
    """y_i = z_(D+1-i), |det| = 1.

    It stands between flows that treat the first coordinates unlike the last.
    """
    forward = lambda params, raw, z: (z[::-1], jnp.zeros((), jnp.result_type(z)))
    return _flow("a reversal", latent, forward, forward)


# Masked networks


def masked_mlp(
    latent: int,
    hidden: Sequence[int],
    outputs: int,
    context: int = 0,
    activation: Callable[[Array], Array] = jax.nn.elu,
) -> tuple[Callable, Callable]:
    """MADE: (init, apply) of a network whose i-th outputs see z_<i.

    Germain et al. 2015, arXiv:1502.03509. Every unit has a degree, the number of coordinates that
    it may see: input z_j goes to units of degree j and above, the i-th outputs come from units of
    degree below i, and the context has degree 0.

    Args:
      latent: number D of coordinates.
      hidden: widths of the hidden layers.
      outputs: numbers for each coordinate.
      context: number C of further inputs, which every output sees.
      activation: function of one array.

    Returns:
      ``init(key) -> params`` and ``apply(params, z [D], context [C]) -> [outputs, D]``. All outputs
      are zero at first.

    Raises:
      ValueError: for a hidden layer of fewer than D units, in which some degree would be missing.
    """
    if any(width < latent for width in hidden):
        raise ValueError(
            f"hidden layers of {tuple(hidden)} units; "
            f"a mask over {latent} dimensions needs {latent} each"
        )
    degrees = [np.append(np.zeros(context, int), np.arange(1, latent + 1))]
    degrees += [np.arange(width) % latent for width in hidden]
    masks = [after >= before[:, None] for before, after in itertools.pairwise(degrees)]
    last = np.arange(1, latent + 1) > degrees[-1][:, None]  # [units, D]
    init, network = _masked([*masks, np.tile(last, outputs)], activation)

    def apply(params: Any, z: Array, context: Array) -> Array:
        return network(params, jnp.concatenate([context, z])).reshape(outputs, latent)

    return init, apply


def _masked(
    masks: Sequence[np.ndarray], activation: Callable[[Array], Array]
) -> tuple[Callable, Callable]:
    """(init, apply) of the network whose kernels [inputs, outputs] have ``masks``.

    The last layer starts at zero.
    """

    def init(key: Array) -> list:
        scales = [1 / np.sqrt(mask.sum(0).clip(1)) for mask in masks[:-1]]
        kernels = [
            scale * jax.random.normal(k, mask.shape)
            for k, mask, scale in zip(
                jax.random.split(key, len(masks)), masks, [*scales, 0.0], strict=True
            )
        ]
        return [{"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])} for kernel in kernels]

    def apply(params: Any, x: Array) -> Array:
        for i, (layer, mask) in enumerate(zip(params, masks, strict=True)):
            x = _matmul(activation(x) if i else x, layer["kernel"] * mask) + layer["bias"]
        return x

    return init, apply
