"""Divergences between samples: codes z_i ~ q(z) of a batch and draws z'_i ~ p(z).

All have the signature ``(key, z [N, *event], other [N, *event], weight [N]) -> scalar``. ``weight``
sums to one, is the same for all examples, and is zero for rows of padding, whatever these hold.
They are statistics of the global batch: rows are gathered over devices first, because the mean of
the devices' divergences is another number. Distances are Euclidean over the whole event, r = |z -
z'|, and d is its size. Only random projections use the key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Kernel = Callable[[Array, Array], Array]  # (z, z') -> scalar, of two latents
Divergence = Callable[[Array, Array, Array, Array], Array]  # (key, z, other, weight) -> scalar

MULTIPLES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of C, in the code of Tolstikhin et al. 2018


# Kernels


def imq(scale: float = 1.0) -> Kernel:
    """Inverse multiquadratic kernel, C / (C + r^2) with C = 2 d s^2.

    Tolstikhin et al. 2018, arXiv:1711.01558. C is the mean of r^2 over pairs of draws from N(0, s^2
    I): ``scale`` s is the prior's standard deviation.
    """
    return imq_sum((1.0,), scale)


def imq_sum(multiples: Sequence[float] = MULTIPLES, scale: float = 1.0) -> Kernel:
    """Inverse multiquadratics of several widths, sum_m m C / (m C + r^2), C = 2 d s^2.

    The authors of WAE run them. With the ``multiples`` of their code (github.com/tolstikhin/wae) it
    is 7 at r = 0, where ``imq`` is 1.
    """
    if not multiples or min(multiples) <= 0 or scale <= 0:
        raise ValueError(
            f"an inverse multiquadratic needs multiples and scale > 0; got {multiples} and {scale}"
        )

    def kernel(z: Array, other: Array) -> Array:
        square, c = _square(z, other), 2 * z.size * scale**2
        return sum((m * c / (m * c + square) for m in multiples), start=jnp.zeros(()))

    return kernel


def rbf(length: float | None = None) -> Kernel:
    """Gaussian kernel exp(-r^2 / (2 l^2)), with l^2 = d where no length is given.

    Zhao et al. 2017, arXiv:1706.02262. The median heuristic is l^2 = median(r^2) / 2. Draws of N(0,
    I) have r^2 near 2 d, so that it is about d for codes that match the prior. A length that
    follows the codes would make another divergence at every step.
    """
    if length is not None and length <= 0:
        raise ValueError(
            f"a Gaussian kernel needs length > 0, or None for the square root of d; got {length}"
        )

    def kernel(z: Array, other: Array) -> Array:
        variance = z.size if length is None else length**2
        return jnp.exp(-_square(z, other) / (2 * variance))

    return kernel


def negative_distance(z: Array, other: Array) -> Array:
    """-r, whose maximum mean discrepancy is the energy distance.

    Its gradient at z = z' is taken to be zero.
    """
    square = _square(z, other)
    apart = square > 0
    return -jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


# Maximum mean discrepancies


def mmd(kernel: Kernel) -> Divergence:
    """Squared maximum mean discrepancy, unbiased.

    MMD^2 = E k(Z, Z~) + E k(Z', Z'~) - 2 E k(Z, Z'), where the first two terms are over pairs of
    different rows (Gretton et al. 2012, JMLR 13; Zhao et al. 2017, arXiv:1706.02262). The estimate
    and its gradient are unbiased for batches of any size. So the estimate may be negative, and it
    scatters around zero if q = p. A single row has no pair, and then the first two terms are zero.
    ``kernel`` is any function (z, z') -> scalar of two latents [*event], with a finite gradient at
    z = z'.
    """
    return lambda key, z, other, weight: _discrepancy(kernel, z, other, weight, _pairs(weight))


def biased_mmd(kernel: Kernel) -> Divergence:
    """Squared maximum mean discrepancy of the two empirical distributions.

    All pairs are included (Gretton et al. 2012). It is zero for equal sets, and never negative if
    the kernel is positive definite. It exceeds ``mmd`` by the sum over both sets of
    E[k(z, z) - k(z, z~)] / N, which is least for codes that have shrunk to a point. So training
    should descend the unbiased ``mmd``.
    """
    return lambda key, z, other, weight: _discrepancy(
        kernel, z, other, weight, jnp.outer(weight, weight)
    )


def energy_distance(key: Array, z: Array, other: Array, weight: Array) -> Array:
    """Energy distance 2 E|Z - Z'| - E|Z - Z~| - E|Z' - Z'~|, unbiased.

    Székely & Rizzo 2013, doi:10.1016/j.jspi.2013.03.018. It is the ``mmd`` of the kernel -r. If p
    is N(0, I), its mean over draws of p is twice ``radon_sobolev``. In one dimension it is 2
    integral (F_q - F_p)^2, twice Cramér's distance. SciPy's ``energy_distance`` is the square root
    of ``biased_mmd(negative_distance)``.
    """
    return mmd(negative_distance)(key, z, other, weight)


def radon_sobolev(key: Array, z: Array, other: Array, weight: Array) -> Array:
    """Half the energy distance to N(0, I), whose expectations over N(0, I) are exact.

    E|Z - X| - E|Z - Z~| / 2 - E|X - X~| / 2 (Turinici 2019, arXiv:1911.13135), with E|X - X~| / 2 =
    G = Gamma((d + 1) / 2) / Gamma(d / 2): no sample of the prior is needed, and ``other`` is
    ignored. Codes all at zero have (sqrt(2) - 1) G. It is sqrt(pi) G times the mean over directions
    of Cramér's distance, integral (F_q - F_p)^2, between the projections. It is unbiased, so that
    it may be negative. The author's code has sqrt(|z|^2 + c) and a constant for E|z - X|, right to
    second order at z = 0, and all pairs (github.com/gabriel-turinici/radon_sobolev_vae).
    """
    (z,) = _rows(weight, z)
    to_normal = jnp.sum(weight * jax.vmap(_distance_to_normal)(z))
    within = jnp.sum(_pairs(weight) * _gram(negative_distance, z, z))
    return to_normal + 0.5 * within - _gamma_ratio(z[0].size)


# Projections


def sliced_wasserstein(num_projections: int = 50) -> Divergence:
    """Squared 2-Wasserstein distance of the projections on random directions.

    SW^2 = E_t W_2^2(t.Z, t.Z'), t uniform on the unit sphere, and on a line W_2^2 = mean_i (z_(i) -
    z'_(i))^2, sorted (Kolouri et al. 2018, arXiv:1804.01947). SW^2(N(m, I), N(0, I)) = |m|^2 / d.
    It is unbiased in the directions; the samples add a positive bias that falls with N.
    """
    if num_projections < 1:
        raise ValueError(
            "sliced_wasserstein needs at least one direction; num_projections was "
            f"{num_projections}"
        )

    def member(key: Array, z: Array, other: Array, weight: Array) -> Array:
        z, other = (sample.reshape(len(sample), -1) for sample in _rows(weight, z, other))
        directions = jax.random.normal(key, (num_projections, z.shape[1]), z.dtype)
        directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
        ranked = jnp.sort(
            weight, descending=True
        )  # rows without weight sort to the end, here and below

        def ordered(z: Array, direction: Array) -> Array:
            line = jnp.where(weight > 0, jnp.matmul(z, direction, precision="float32"), jnp.inf)
            return jnp.where(ranked > 0, jnp.sort(line), 0.0)

        along = lambda direction: jnp.sum(
            ranked * (ordered(z, direction) - ordered(other, direction)) ** 2
        )
        return jax.vmap(along)(directions).mean()

    return member


def cramer_wold(key: Array, z: Array, other: Array, weight: Array) -> Array:
    """Cramér-Wold distance to N(0, I); ``other`` is ignored.

    It is the squared L2 distance of the projections' densities, smoothed by N(0, g), averaged over
    directions (Knop et al. 2018, arXiv:1805.09235):

        2 sqrt(pi) d^2 = mean_ij (g + r_ij^2 / (2d - 3))^-1/2 + (1 + g)^-1/2
            - 2 mean_i (g + 1/2 + |z_i|^2 / (2d - 3))^-1/2.

    g = (4 / (3N))^(2/5) follows Silverman's rule, and 1F1(1/2; d/2; -s) is replaced by its
    asymptotic (1 + 4s / (2d - 3))^-1/2. This is close from some 20 dimensions on. In fewer
    dimensions it may make the distance slightly negative. The authors minimize its logarithm.
    Raises ValueError in one dimension, because 2d - 3 is then negative.
    """
    (z,) = _rows(weight, z)
    smoothing, spread = _silverman(weight), _spread(z)
    within = jnp.sum(jnp.outer(weight, weight) * _gram(_inverse_root(smoothing, spread), z, z))
    wider = _inverse_root(smoothing + 0.5, spread)
    to_normal = jnp.sum(weight * jax.vmap(lambda z: wider(z, jnp.zeros_like(z)))(z))
    return (within + (1 + smoothing) ** -0.5 - 2 * to_normal) / (2 * math.sqrt(math.pi))


def cramer_wold_two_sample(key: Array, z: Array, other: Array, weight: Array) -> Array:
    """Cramér-Wold distance between two samples, for any prior that can be drawn from.

    It is the ``biased_mmd`` of the kernel (g + r^2 / (2d - 3))^-1/2 / (2 sqrt(pi)), with g as in
    ``cramer_wold``. It is never negative, and zero for equal sets.
    """
    kernel = _inverse_root(_silverman(weight), _spread(z))
    return biased_mmd(kernel)(key, z, other, weight) / (2 * math.sqrt(math.pi))


# name -> divergence, with its usual settings
DIVERGENCES: dict[str, Divergence] = {
    "mmd_imq": mmd(imq()),
    "mmd_imq_sum": mmd(imq_sum()),
    "mmd_rbf": mmd(rbf()),
    "energy_distance": energy_distance,
    "radon_sobolev": radon_sobolev,
    "sliced_wasserstein": sliced_wasserstein(),
    "cramer_wold": cramer_wold,
    "cramer_wold_two_sample": cramer_wold_two_sample,
}


def _rows(weight: Array, *samples: Array) -> list[Array]:
    """The samples in float32 at least, with zeros for what the rows without weight hold."""
    shapes = [jnp.shape(sample) for sample in samples]
    if jnp.ndim(weight) != 1 or len(set(shapes)) != 1 or shapes[0][:1] != jnp.shape(weight):
        raise ValueError(
            "a divergence between samples needs samples of one shape [N, *event] and weight [N]; "
            f"got samples {' and '.join(map(str, shapes))} and weight {jnp.shape(weight)}. Draw "
            "one latent of the prior for each."
        )
    kept = (weight > 0).reshape(-1, *(1 for _ in shapes[0][1:]))
    return [
        jnp.where(kept, sample, jnp.zeros((), jnp.promote_types(sample.dtype, jnp.float32)))
        for sample in samples
    ]


def _square(z: Array, other: Array) -> Array:
    return jnp.sum((z - other) ** 2)


def _gram(kernel: Kernel, z: Array, other: Array) -> Array:
    """k(z_i, z'_j), [N, N']."""
    return jax.vmap(lambda one: jax.vmap(lambda another: kernel(one, another))(other))(z)


def _pairs(weight: Array) -> Array:
    """w_i w_j for i != j, scaled to sum to one, [N, N].

    They are zero if one row alone has weight.
    """
    pairs = jnp.outer(weight, weight) * (1 - jnp.eye(len(weight)))
    total = pairs.sum()
    return pairs / jnp.where(total > 0, total, 1.0)


def _discrepancy(kernel: Kernel, z: Array, other: Array, weight: Array, within: Array) -> Array:
    z, other = _rows(weight, z, other)
    same = _gram(kernel, z, z) + _gram(kernel, other, other)
    return jnp.sum(within * same) - 2 * jnp.sum(jnp.outer(weight, weight) * _gram(kernel, z, other))


def _gamma_ratio(d: int) -> float:
    return math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))


def _quadrature(points: int) -> np.ndarray:
    """Gauss and Legendre's rule over angles a in [0, pi / 2], [3, points].

    Rows are sin^2 a, log cos a and the weights.
    """
    nodes, weights = np.polynomial.legendre.leggauss(points)
    angle = np.pi / 4 * (nodes + 1)
    return np.stack([np.sin(angle) ** 2, np.log(np.cos(angle)), np.pi / 4 * weights])


QUADRATURE = _quadrature(128)


def _distance_to_normal(z: Array) -> Array:
    """E|X - z| for X ~ N(0, I), as an integral over an angle.

    sqrt(2 / pi) integral_0^(pi/2) (1 - cos^d(a) e^(-sin^2(a) |z|^2 / 2)) / sin^2(a) da, which is
    sqrt(2) G 1F1(-1/2; d/2; -|z|^2 / 2), by |x| = integral_0^inf (1 - e^(-t x^2)) t^(-3/2) dt / (2
    sqrt(pi)) with 2 t = tan^2(a). The integrand is smooth: 128 points give float32's accuracy for
    |z| and sqrt(d) up to 100, and four digits at 1000.
    """
    sin_square, log_cos, weight = jnp.asarray(QUADRATURE, z.dtype)
    exponent = z.size * log_cos - sin_square * jnp.sum(z**2) / 2
    return math.sqrt(2 / math.pi) * jnp.sum(-jnp.expm1(exponent) * (weight / sin_square))


def _silverman(weight: Array) -> Array:
    return (4 / (3 * jnp.sum(weight > 0))) ** 0.4


def _spread(z: Array) -> int:
    """2d - 3."""
    if z[0].size < 2:
        raise ValueError(
            "the Cramér-Wold distance needs latents of two dimensions or more; z has shape "
            f"{z.shape}"
        )
    return 2 * z[0].size - 3


def _inverse_root(smoothing: Array, spread: int) -> Kernel:
    return lambda z, other: (smoothing + _square(z, other) / spread) ** -0.5
