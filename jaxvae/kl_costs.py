"""What the KL of a batch costs: functions ``(kl [D], step) -> scalar``, in nats.

``kl`` is the mean over the batch of KL(q(z_d|x) || p(z_d)), one number for each latent where KL is
a sum over latents, otherwise one number, [1]. A cost that is linear in KL is a weight, which
``models.negative_elbo`` takes as well. ``KL_COSTS`` holds the costs as the command line offers
them: functions whose settings are plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from jaxvae import schedules
from jaxvae.ranges import Amount, Count

Array = jax.Array
KLCost = Callable[[Array, Array], Array]
Warmup = Callable[[float], optax.Schedule]  # last weight -> schedule of the weight


def weighted(weight: optax.Schedule) -> KLCost:
    """w(step) KL, as in a beta-VAE (Higgins et al. 2017)."""
    return lambda kl, step: weight(step) * kl.sum()


def free_bits(nats: float, groups: int = 1, weight: optax.Schedule = lambda step: 1.0) -> KLCost:
    """w(step) sum_g max(nats, KL_g) over equal groups of consecutive latents.

    Kingma et al. 2016, arXiv:1606.04934, eq. 15: the maximum is taken after the mean over the
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


_free_bits = free_bits  # whose name is also that of a setting below


def weighted_kl(kl_warmup: Warmup, kl_weight: Amount = 1.0) -> KLCost:
    """KL times a weight, which may rise (Higgins et al. 2017)."""
    return weighted(kl_warmup(kl_weight))


def free_bits_kl(
    kl_warmup: Warmup,
    free_bits: Amount = 0.1,
    free_bits_groups: Count = 1,
    kl_weight: Amount = 1.0,
) -> KLCost:
    """KL, of which each group of latents has some nats free (Kingma et al. 2016)."""
    return _free_bits(free_bits, free_bits_groups, kl_warmup(kl_weight))


def capacity_kl(
    kl_weight: Amount = 1.0, kl_capacity: Amount = 10.0, capacity_steps: Count = 1000
) -> KLCost:
    """The distance of KL from a capacity that rises from 0 (Burgess et al. 2018)."""
    return capacity(kl_weight, schedules.linear_warmup(capacity_steps, kl_capacity))


def joint_capacity_kl(
    latent: int,
    kl_weight: Amount = 1.0,
    kl_capacity: Amount = 5.0,
    class_capacity: Amount = 2.3,
    capacity_steps: Count = 1000,
) -> KLCost:
    """Capacities of Gaussian latents and of a class beside them (Dupont 2018)."""

    def rising(end: float) -> KLCost:
        return capacity(kl_weight, schedules.linear_warmup(capacity_steps, end))

    return blocks((latent, 1), (rising(kl_capacity), rising(class_capacity)))


KL_COSTS: dict[str, Callable[..., KLCost]] = {
    "weighted": weighted_kl,
    "free_bits": free_bits_kl,
    "capacity": capacity_kl,
    "joint_capacity": joint_capacity_kl,
}
