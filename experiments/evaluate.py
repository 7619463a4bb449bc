"""Evaluates a trained model on a split, as ``jaxvae evaluate`` does.

``--help`` lists its flags.
"""

from jaxvae.__main__ import main

if __name__ == "__main__":
    main("evaluate")
