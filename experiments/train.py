"""Trains a model, and resumes where a run with the same folder stopped: the command ``jaxvae train``; ``--help`` says what it can do."""

from jaxvae.__main__ import main

if __name__ == "__main__":
    main("train")
