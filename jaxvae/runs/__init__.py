"""Runs: trains a model in a folder, and opens it from the folder again."""

from jaxvae.runs.loading import Trained, load
from jaxvae.runs.training import Job, Run, prepare, train

__all__ = ["Job", "Run", "Trained", "load", "prepare", "train"]
