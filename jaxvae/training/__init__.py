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
from jaxvae.training.growing import Components, Growing, Moves, growing_mixture
from jaxvae.training.loop import Hook, HookState, NotFiniteError, Totals, fit
from jaxvae.training.memories import (
    Memory,
    Remembering,
    Steps,
    expectation_maximization,
    recalled,
    remembered,
)
from jaxvae.training.optimizers import SkipsNonFinite, adam
from jaxvae.training.placements import MAPPINGS, Placement, replicate
from jaxvae.training.states import start_from, trained, trained_players
from jaxvae.training.sweeps import Ensemble, member, vmapped

__all__ = [
    "MAPPINGS",
    "Algorithm",
    "Batch",
    "BatchLoss",
    "Components",
    "Ensemble",
    "Growing",
    "Hook",
    "HookState",
    "Memory",
    "Moves",
    "NotFiniteError",
    "Placement",
    "Player",
    "Remembering",
    "SkipsNonFinite",
    "State",
    "Steps",
    "Totals",
    "adam",
    "aggressive",
    "batch_mean",
    "expectation_maximization",
    "fit",
    "gradient_descent",
    "growing_mixture",
    "member",
    "players",
    "recalled",
    "remembered",
    "replicate",
    "run_steps",
    "start_from",
    "trained",
    "trained_players",
    "vmapped",
]
