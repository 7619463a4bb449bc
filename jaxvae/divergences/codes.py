"""Statistics of q(z) over a batch of codes, in nats: beta-TCVAE, DIP-VAE, FactorVAE.

``weight [N]`` sums to one, is the same for all examples, and is zero for rows of padding, whatever
these hold. All are statistics of the global batch: rows are gathered over devices first. M is the
number of rows that have weight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxvae.distributions.contract import Factorized

Array = jax.Array


def pairwise_log_densities(q: Any, z: Array) -> Array:
    """log q(z_id | x_j) of every code i under the posterior of every example j, [N, N, D].

    ``q`` is a stack of factorized posteriors, such as a ``Normal`` with leaves [N, D]; ``z`` is [N,
    D]. Raises ValueError if the shapes differ or q has no density for each coordinate.
    """
    if getattr(type(q), "log_density", Factorized.log_density) is Factorized.log_density:
        raise ValueError(
            "codes need posteriors whose coordinates have densities, as Normal; got "
            f"{type(q).__name__}"
        )
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(q)} | {jnp.shape(z)}
    if len(shapes) != 1 or jnp.ndim(z) != 2:
        raise ValueError(
            "one posterior for each code: q's leaves and z must all be [N, D]; got "
            f"{sorted(shapes)}"
        )
    return jax.vmap(lambda z: jax.vmap(lambda q: q.log_density(z))(q))(z)


class MinibatchDecomposition(NamedTuple):
    """E KL(q(z|x) || p(z)) of a batch in three terms, in nats.

    Chen et al. 2018, arXiv:1802.04942; Hoffman & Johnson 2016. They sum to mean_i [log q(z_i|x_i) -
    log p(z_i)], the KL divergence without bias, because the estimate of q(z) cancels. Each term
    alone is as good as that estimate.
    """

    mutual_information: Array  # of index and code, mean_i [log q(z_i|x_i) - log q(z_i)]
    total_correlation: Array  # mean_i [log q(z_i) - sum_d log q(z_id)]
    dimension_wise_kl: Array  # mean_i sum_d [log q(z_id) - log p(z_id)]


def minibatch_decomposition(
    log_q: Array, log_p: Array, weight: Array, dataset_size: int
) -> MinibatchDecomposition:
    """The three terms by minibatch-weighted sampling, q(z_i) ~ sum_j q(z_i|x_j) / (N M).

    Args:
      log_q: log q(z_id | x_j), [rows i, rows j, D]; z_i must be a draw of q(z|x_i).
      log_p: log p(z_id), [rows, D].
      weight: [rows].
      dataset_size: N, of which the M examples of the batch were drawn.

    Chen et al. 2018, arXiv:1802.04942, appendix. The mean of log q(z) is too low by log M at least,
    and by about log N where the posteriors overlap; so is the mean of each log q(z_d). The mutual
    information is overestimated, the dimension-wise KL underestimated, and the total correlation is
    out by the difference, about D - 1 times as much. This error hardly depends on the parameters,
    so the estimate serves as a loss; to measure, take one of the following.
    """
    return _decomposed(log_q, log_p, weight, weighted_importance(weight, dataset_size))


def stratified_decomposition(
    log_q: Array, log_p: Array, weight: Array, dataset_size: int
) -> MinibatchDecomposition:
    """The three terms by minibatch-stratified sampling.

    q(z_i) ~ q(z_i|x_i) / N + sum_j q(z_i|x_j) / K + (N - K) / (N K) q(z_i|x_k), with j over K - 1
    of the K = M - 1 others and k the last (Chen et al. 2018, arXiv:1802.04942, appendix). It is
    unbiased for q(z_i) and its marginals if the M were drawn without replacement. By Jensen's
    inequality, E log q(z) is still underestimated, but ever less as M -> N: the mutual information
    comes out too large and the dimension-wise KL too small. Arguments as for
    ``minibatch_decomposition``; it needs M > 1.
    """
    return _decomposed(log_q, log_p, weight, stratified_importance(weight, dataset_size))


def symmetric_decomposition(
    log_q: Array, log_p: Array, weight: Array, dataset_size: int
) -> MinibatchDecomposition:
    """The three terms with q(z_i) ~ q(z_i|x_i) / N + (N - 1) / N mean_j q(z_i|x_j).

    j is over all others of the batch. This is minibatch-stratified sampling averaged over the
    orders of a batch: it is unbiased for q(z_i) as well, has less variance and so less bias in the
    logarithm, does not depend on the order, and is exact where the batch is the data set. Arguments
    as for ``minibatch_decomposition``; it needs M > 1.
    """
    return _decomposed(log_q, log_p, weight, symmetric_importance(weight, dataset_size))


def exact_decomposition(log_q: Array, log_p: Array, weight: Array) -> MinibatchDecomposition:
    """The three terms where the batch is the whole data set, q(z_i) = mean_j q(z_i|x_j).

    It is exact but for the draws z_i. Of a smaller batch, it describes q(z) over these examples
    alone: the mutual information is at most log M.
    """
    return _decomposed(log_q, log_p, weight, jnp.broadcast_to(weight, (len(weight), len(weight))))


def weighted_importance(weight: Array, dataset_size: int) -> Array:
    """What ``minibatch_decomposition`` gives q(z_i|x_j), 1 / (N M): [rows i, rows j].

    It is zero for rows j of padding.
    """
    valid, count = _counted(weight)
    return jnp.broadcast_to(
        jnp.where(valid, 1 / (dataset_size * count), 0.0), (len(weight), len(weight))
    )


def stratified_importance(weight: Array, dataset_size: int) -> Array:
    """What ``stratified_decomposition`` gives q(z_i|x_j): [rows i, rows j].

    1 / N on the diagonal, (N - K) / (N K) for the next row that has weight (the first row follows
    the last), and 1 / K for all others, with K = M - 1. Every row sums to one. (Code in circulation
    fills columns instead of diagonals.)
    """
    valid, count = _counted(weight)
    rank = jnp.cumsum(valid) - 1.0
    following = rank == (rank[:, None] + 1) % count
    others = jnp.maximum(count - 1, 1)
    last = (dataset_size - others) / (dataset_size * others)
    return _with_own(valid, dataset_size, jnp.where(following, last, 1 / others))


def symmetric_importance(weight: Array, dataset_size: int) -> Array:
    """What ``symmetric_decomposition`` gives q(z_i|x_j): [rows i, rows j].

    1 / N on the diagonal, and (N - 1) / (N (M - 1)) elsewhere.
    """
    valid, count = _counted(weight)
    return _with_own(
        valid, dataset_size, (dataset_size - 1) / (dataset_size * jnp.maximum(count - 1, 1))
    )


def dip_i(means: Array, weight: Array, off_diagonal: float, diagonal: float) -> Array:
    """The penalty of DIP-VAE-I, l_od sum_(i != j) C_ij^2 + l_d sum_i (C_ii - 1)^2.

    C = Cov[mu(x)] of the posteriors' ``means [N, D]`` over the batch, divided by M (Kumar et al.
    2017, arXiv:1711.00848). ``off_diagonal`` is l_od, and ``diagonal`` is l_d, which is 10 l_od in
    the study of Locatello et al. 2018 (arXiv:1811.12359).
    """
    _check_codes(weight, means)
    return _squares(_covariance(means, weight), off_diagonal, diagonal)


def dip_ii(
    means: Array, variances: Array, weight: Array, off_diagonal: float, diagonal: float
) -> Array:
    """The penalty of DIP-VAE-II: as ``dip_i`` with C the covariance of q(z).

    Args:
      means: the means of the posteriors, [N, D].
      variances: the variances s^2 of the posteriors, [N, D].
      weight: [N].
      off_diagonal: l_od.
      diagonal: l_d, which is l_od in the study of Locatello et al. 2018 (arXiv:1811.12359).

    C = Cov[mu(x)] + E diag(s^2(x)) (Kumar et al. 2017, arXiv:1711.00848).
    """
    _check_codes(weight, means, variances)
    variance = jnp.sum(jnp.where(weight[:, None] > 0, weight[:, None] * variances, 0.0), 0)
    return _squares(_covariance(means, weight) + jnp.diag(variance), off_diagonal, diagonal)


def permuted(key: Array, z: Array, weight: Array) -> Array:
    """Codes [N, D] with every coordinate permuted over the rows that have weight.

    These are nearly draws of prod_d q(z_d): each value of the batch's own q(z_d) is used once (Kim
    & Mnih 2018, arXiv:1802.05983). Rows without weight stay.
    """
    _check_codes(weight, z)
    valid = weight > 0
    places = jnp.argsort(~valid)  # rows with weight first

    def one(key: Array, z: Array) -> Array:
        order = jax.random.permutation(key, len(z))
        order = order[jnp.argsort(~valid[order])]
        return jnp.where(valid, z.at[places].set(z[order]), z)

    return jax.vmap(one, (0, 1), 1)(jax.random.split(key, z.shape[1]), z)


def _check_codes(weight: Array, *codes: Array) -> None:
    shapes = [jnp.shape(code) for code in codes]
    if jnp.ndim(weight) != 1 or len(shapes[0]) != 2 or {*shapes} != {(len(weight), shapes[0][1])}:
        raise ValueError(
            f"needed are codes [N, D] and weight [N]; got {shapes} and {jnp.shape(weight)}"
        )


def _counted(weight: Array) -> tuple[Array, Array]:
    """Which rows have weight, [rows], and their number M."""
    valid = weight > 0
    return valid, jnp.sum(valid * 1.0)


def _with_own(valid: Array, dataset_size: int, others: Array) -> Array:
    """1 / N on the diagonal and ``others`` elsewhere, but zero for padding rows j."""
    return jnp.where(
        valid, jnp.where(jnp.eye(len(valid), dtype=bool), 1 / dataset_size, others), 0.0
    )


def _decomposed(
    log_q: Array, log_p: Array, weight: Array, importance: Array
) -> MinibatchDecomposition:
    rows = len(weight)
    if jnp.shape(log_q)[:2] != (rows, rows) or jnp.shape(log_q)[1:] != jnp.shape(log_p):
        raise ValueError(
            f"a decomposition of {rows} rows needs log q [{rows}, {rows}, D] and log p "
            f"[{rows}, D]; got {jnp.shape(log_q)} and {jnp.shape(log_p)}. "
            "pairwise_log_densities gives the first."
        )
    valid = weight > 0
    log_q = jnp.where((valid[:, None] & valid)[..., None], log_q, 0.0)
    joint, log_importance = log_q.sum(-1), jnp.log(importance)  # [rows, rows]
    log_joint = logsumexp(log_importance + joint, 1)  # [rows]
    log_product = logsumexp(log_importance[..., None] + log_q, 1).sum(-1)
    log_prior = jnp.where(valid[:, None], log_p, 0.0).sum(-1)
    mean = lambda terms: jnp.sum(weight * terms)
    return MinibatchDecomposition(
        mean(jnp.diagonal(joint) - log_joint),
        mean(log_joint - log_product),
        mean(log_product - log_prior),
    )


def _covariance(z: Array, weight: Array) -> Array:
    z = jnp.where(weight[:, None] > 0, z, 0.0)
    centred = z - jnp.sum(weight[:, None] * z, 0)
    return jnp.matmul((weight[:, None] * centred).T, centred, precision="float32")


def _squares(covariance: Array, off_diagonal: float, diagonal: float) -> Array:
    off = jnp.where(jnp.eye(len(covariance), dtype=bool), 0.0, covariance)
    return off_diagonal * jnp.sum(off**2) + diagonal * jnp.sum((jnp.diagonal(covariance) - 1) ** 2)
