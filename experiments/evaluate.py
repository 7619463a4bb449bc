"""Evaluates a trained model on a split: the command ``jaxvae evaluate``; ``--help`` says what it can do."""

from jaxvae.__main__ import main

if __name__ == "__main__":
    main("evaluate")
