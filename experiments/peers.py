"""Who does the work of ``works.py``; ``throughput.py`` runs and times them.

A peer takes a ``Work`` and returns ``run(images)``, which does that many images of it, or None
where it has no way to. Each is in a process of its own, which imports its library and no other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from experiments.works import LARGE, PRESETS, SAMPLES, WORKS, Run, Work

__all__ = [
    "LARGE",
    "NO_LIBRARIES",
    "PEERS",
    "PRESETS",
    "SAMPLES",
    "WORKS",
    "Run",
    "Work",
    "cost",
    "rates",
]
Peer = Callable[[Work], Run | None]


def _peer(module: str, name: str) -> Peer:
    """A function of a module that is imported when it is called."""

    def peer(work: Work) -> Run | None:
        return getattr(importlib.import_module(f"experiments.{module}"), name)(work)

    return peer


PEERS: dict[str, Peer] = {
    "jaxvae": _peer("ours", "jaxvae"),
    "scan": _peer("ours", "scan"),
    "steps": _peer("ours", "steps"),
    "products": _peer("ours", "products"),
    "flax": _peer("jax_peers", "flax"),
    "numpyro": _peer("jax_peers", "numpyro"),
    "torch": _peer("torch_peers", "torch"),
    "torch.compile": _peer("torch_peers", "torch_compile"),
    "torch.products": _peer("torch_peers", "torch_products"),
    "pythae": _peer("torch_peers", "pythae"),
}
# Our own loops, and parts of their work.
NO_LIBRARIES = ("scan", "steps", "products", "torch.products")


def cost(work: Work) -> dict[str, float]:
    """What an image of the work costs, see ``ours.cost``."""
    from experiments import ours

    return ours.cost(work)


def rates(precision: str) -> dict[str, Any] | None:
    """What a device could do, see ``ours.rates``."""
    from experiments import ours

    return ours.rates(precision)
