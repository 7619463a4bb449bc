"""Runs: from a configuration to a folder with a trained model, and from the folder to the model."""

from jaxvae.runs.loading import Trained, load
from jaxvae.runs.training import Job, Run, prepare, train

__all__ = ["Job", "Run", "Trained", "load", "prepare", "train"]
