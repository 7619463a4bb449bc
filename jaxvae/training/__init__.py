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

__all__ = [
    "MAPPINGS",
    "Algorithm",
    "Batch",
    "BatchLoss",
    "Hook",
    "Moment",
    "NotFiniteError",
    "Player",
    "State",
    "Totals",
    "batch_mean",
    "everywhere",
    "fit",
    "gradient_descent",
    "players",
    "run_steps",
    "trained",
    "treated",
]
