"""What the KL of a batch costs: functions ``(kl [D], step) -> scalar``, in nats.

``kl`` is the mean over the batch of KL(q(z_d|x) || p(z_d)). It has one number for each latent if KL
is a sum over latents, one for each layer of a hierarchy, and otherwise one number, [1]. A cost that
is linear in KL is a weight, which ``models.negative_elbo`` takes too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
KLCost = Callable[[Array, Array], Array]


def weighted(weight: optax.Schedule) -> KLCost:
    """w(step) KL, as in a beta-VAE (Higgins et al. 2017)."""
    return lambda kl, step: weight(step) * kl.sum()


def free_bits(nats: float, groups: int = 1, weight: optax.Schedule = lambda step: 1.0) -> KLCost:
    """w(step) sum_g max(nats, KL_g) over equal groups of consecutive latents.

    Kingma et al. 2016, arXiv:1606.04934, eq. 15. The maximum is taken after the mean over the
    batch.
    """

    def cost(kl: Array, step: Array) -> Array:
        if kl.size % groups:
            raise ValueError(f"{kl.size} latents do not divide into {groups} groups of free bits")
        return weight(step) * jnp.maximum(kl.reshape(groups, -1).sum(-1), nats).sum()

    return cost


def capacity(weight: float, course: optax.Schedule) -> KLCost:
    """gamma |KL - C(step)| with gamma = ``weight`` and C = ``course``.

    Burgess et al. 2018, arXiv:1804.03599, eq. 8.
    """
    return lambda kl, step: weight * jnp.abs(kl.sum() - course(step))


def balanced(scales: Sequence[int], weight: optax.Schedule, end: float = 1.0) -> KLCost:
    """w(step) sum_l gamma_l KL_l, with gamma_l = 1 once w has reached ``end``.

    NVAE's balancing of layers (Vahdat & Kautz 2020, arXiv:2007.03898, app. A). ``scales`` are the
    numbers of layers at each resolution from the top on, and layer l at the i-th has
    a_l ~ 4^i / scales[i]. During the warm-up gamma_l ~ (KL_l + 0.01) / a_l, with mean 1 and without
    a gradient, so a layer that says more than its share costs more.
    """
    shares = [4.0**i / n for i, n in enumerate(scales) for _ in range(n)]

    def cost(kl: Array, step: Array) -> Array:
        if kl.size != len(shares):
            raise ValueError(f"{len(shares)} layers do not fit KL terms of {kl.size}")
        parts = (jax.lax.stop_gradient(jnp.abs(kl)) + 0.01) / jnp.array(shares)
        now = weight(step)
        gamma = jnp.where(now < end, parts / parts.mean(), 1.0)
        return now * jnp.sum(gamma * kl)

    return cost


def blocks(sizes: Sequence[int], kl_costs: Sequence[KLCost]) -> KLCost:
    """The sum of one cost for each block of consecutive latents.

    JointVAE has two (Dupont 2018, arXiv:1804.00104).
    """

    def cost(kl: Array, step: Array) -> Array:
        if kl.size != sum(sizes):
            raise ValueError(
                f"blocks of {', '.join(map(str, sizes))} latents do not fit KL terms of {kl.size}"
            )
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        parts = zip(kl_costs, jnp.split(kl, ends), strict=True)
        return jnp.stack([block_cost(part, step) for block_cost, part in parts]).sum()

    return cost
