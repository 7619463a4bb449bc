"""Training on one device or many, in one process or several: algorithms, and the loop that runs
them.
"""

from jaxvae.training.algorithms import (
    Algorithm,
    Batch,
    BatchLoss,
    Player,
    State,
    batch_mean,
    gradient_descent,
    players,
    preprocessed,
    trained,
)
from jaxvae.training.devices import MAPPINGS, replicate, run_steps
from jaxvae.training.loop import Hook, HookState, NotFiniteError, Totals, fit
from jaxvae.training.optimizers import SkipsNonFinite, adam
from jaxvae.training.sweeps import Ensemble, member, vmapped

__all__ = [
    "MAPPINGS",
    "Algorithm",
    "Batch",
    "BatchLoss",
    "Ensemble",
    "Hook",
    "HookState",
    "NotFiniteError",
    "Player",
    "SkipsNonFinite",
    "State",
    "Totals",
    "adam",
    "batch_mean",
    "fit",
    "gradient_descent",
    "member",
    "players",
    "preprocessed",
    "replicate",
    "run_steps",
    "trained",
    "vmapped",
]
