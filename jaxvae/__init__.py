"""jaxvae: variational autoencoders in JAX, written for one example.

A model is a few functions of one example. ``jax.vmap`` makes a batch of it, ``jax.lax.scan`` an
epoch, and ``jax.pmap`` maps it over devices. Subpackages are imported at their first use, so a
command hears Ctrl-C while JAX is imported.

    >>> import jaxvae
    >>> model = jaxvae.train("digits", steps=100)  # doctest: +SKIP
    >>> jaxvae.load("runs/digits-digits-0").sample(key, 4)  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxvae import (
        bounds,
        checkpoints,
        codebooks,
        command_line,
        contracts,
        costs,
        datasets,
        distributions,
        divergences,
        evaluation,
        expectations,
        families,
        figures,
        fitted,
        flows,
        interchange,
        kl_costs,
        likelihoods,
        measurements,
        models,
        networks,
        partitions,
        perceptual,
        pictures,
        posteriors,
        priors,
        processes,
        quantizers,
        ranges,
        runs,
        schedules,
        settings,
        stopping,
        tensors,
        training,
    )
    from jaxvae.runs import Trained, load, train

__version__ = "0.2.0"
__all__ = [
    "Trained",
    "bounds",
    "checkpoints",
    "codebooks",
    "command_line",
    "contracts",
    "costs",
    "datasets",
    "distributions",
    "divergences",
    "evaluation",
    "expectations",
    "families",
    "figures",
    "fitted",
    "flows",
    "interchange",
    "kl_costs",
    "likelihoods",
    "load",
    "measurements",
    "models",
    "networks",
    "partitions",
    "perceptual",
    "pictures",
    "posteriors",
    "priors",
    "processes",
    "quantizers",
    "ranges",
    "runs",
    "schedules",
    "settings",
    "stopping",
    "tensors",
    "train",
    "training",
]
_FUNCTIONS = ("Trained", "load", "train")  # of ``jaxvae.runs``


def __getattr__(name: str) -> Any:
    """Imports a room when it is asked for."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module("jaxvae.runs"), name)
    if name in __all__:
        return importlib.import_module(f"jaxvae.{name}")
    raise AttributeError(f"jaxvae has no {name}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
