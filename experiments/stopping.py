"""How the scripts end at a signal: see ``jaxvae.runs.stopping``."""

from jaxvae.runs.stopping import Stop, install

__all__ = ["Stop", "install"]
