"""The contract of priors over codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxvae.contracts import Array, Params, Terms
from jaxvae.distributions import log_prob_of


class CodePrior(NamedTuple):
    """A prior over codes."""

    init: Callable[[Array], Params]  # key -> params
    # (params, context) -> a law with ``sample(key, shape)``, and with ``log_prob(codes)`` or
    # ``log_weight(key, codes)``, the logarithm of an unbiased estimate of p(codes)
    make: Callable[[Params, Any], Any]
    # (params, key, codes, context) -> (loss, terms), of one example
    loss: Callable[[Params, Array, Any, Any], tuple[Array, Terms]]
    density: bool = True  # whether the law has ``log_prob``


def log_weight_of(law: Any, key: Array, codes: Any) -> Array:
    """log p(codes), or the logarithm of an unbiased estimate of p(codes), a scalar."""
    estimate = getattr(law, "log_weight", None)
    return log_prob_of(law, codes) if estimate is None else estimate(key, codes)
