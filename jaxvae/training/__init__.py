"""Training on one device or many, in one process or several.

An algorithm is a pair of pure functions, ``init`` and ``step``; ``fit`` is the loop that runs it.
"""

from jaxvae.training.aggressive import aggressive
from jaxvae.training.algorithms import (
    Algorithm,
    Batch,
    BatchLoss,
    Player,
    State,
    batch_mean,
    gradient_descent,
    players,
)
from jaxvae.training.devices import run_steps
from jaxvae.training.loop import Hook, HookState, NotFiniteError, Totals, fit
from jaxvae.training.optimizers import SkipsNonFinite, adam
from jaxvae.training.placements import MAPPINGS, Placement, replicate
from jaxvae.training.states import start_from, trained, trained_players
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
    "Placement",
    "Player",
    "SkipsNonFinite",
    "State",
    "Totals",
    "adam",
    "aggressive",
    "batch_mean",
    "fit",
    "gradient_descent",
    "member",
    "players",
    "replicate",
    "run_steps",
    "start_from",
    "trained",
    "trained_players",
    "vmapped",
]
