"""Draws from a trained model: the command ``jaxvae sample``; ``--help`` says what it can do."""

from jaxvae.__main__ import main

if __name__ == "__main__":
    main("sample")
