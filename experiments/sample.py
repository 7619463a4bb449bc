"""Draws from a trained model, as ``jaxvae sample`` does.

``--help`` lists its flags.
"""

from jaxvae.__main__ import main

if __name__ == "__main__":
    main("sample")
