"""Divergences, in nats: between distributions, ``kl(q, p)``, in closed form for every pair that has one."""

from jaxvae.divergences.densities import (
    FACTORIZED_KL,
    JOINT_KL,
    has_closed_form,
    kl,
    kl_per_latent,
    register_kl,
    sampled_kl,
)

__all__ = ["FACTORIZED_KL", "JOINT_KL", "has_closed_form", "kl", "kl_per_latent", "register_kl", "sampled_kl"]
