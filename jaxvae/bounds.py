"""Lower bounds on log p(x) for one example, ``(key, q, log_joint, num_samples) -> scalar``, in nats.

``q`` is the posterior q(z|x) and ``log_joint(z) = log p(x|z) + log p(z)``; x is inside the closure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

Array = jax.Array
LogJoint = Callable[[Array], Array]


def log_weights(key: Array, q: Any, log_joint: LogJoint, num_samples: int) -> Array:
    """Importance weights log w_k = log p(x, z_k) - log q(z_k|x), z_k ~ q: [K], in nats."""
    z = q.sample(key, (num_samples,))  # [K, D]
    return jax.vmap(lambda z: log_joint(z) - q.log_prob(z))(z)


def elbo(key: Array, q: Any, log_joint: LogJoint, num_samples: int = 1) -> Array:
    """Evidence lower bound with sampled KL, 1/K sum_k log w_k (Kingma & Welling 2013, arXiv:1312.6114, eq. 6)."""
    return jnp.mean(log_weights(key, q, log_joint, num_samples))


def iwae(key: Array, q: Any, log_joint: LogJoint, num_samples: int = 1) -> Array:
    """Importance-weighted bound log 1/K sum_k w_k (Burda et al. 2015, arXiv:1509.00519, eq. 8).

    Its expectation rises with K towards log p(x).
    """
    return logsumexp(log_weights(key, q, log_joint, num_samples)) - jnp.log(num_samples)
