"""Runs: trains a model in a folder, and opens it from the folder again."""

from jaxvae.runs.loading import Trained, load
from jaxvae.runs.preparing import Job, Run, prepare
from jaxvae.runs.training import train

__all__ = ["Job", "Run", "Trained", "load", "prepare", "train"]
