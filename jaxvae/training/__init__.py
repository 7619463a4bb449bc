"""Training on one device or many, in one process or several: algorithms, and the loop that runs them."""

from jaxvae.training.algorithms import (
    Algorithm,
    Batch,
    BatchLoss,
    Player,
    State,
    batch_mean,
    gradient_descent,
    players,
    trained,
    treated,
)
from jaxvae.training.devices import MAPPINGS, everywhere, run_steps
from jaxvae.training.loop import Hook, Moment, NotFiniteError, Totals, fit
from jaxvae.training.optimizers import Skipping, adam
from jaxvae.training.sweeps import Sweep, member, swept

__all__ = [
    "MAPPINGS",
    "Algorithm",
    "Batch",
    "BatchLoss",
    "Hook",
    "Moment",
    "NotFiniteError",
    "Player",
    "Skipping",
    "State",
    "Sweep",
    "Totals",
    "adam",
    "batch_mean",
    "everywhere",
    "fit",
    "gradient_descent",
    "member",
    "players",
    "run_steps",
    "swept",
    "trained",
    "treated",
]
