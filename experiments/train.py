"""Trains a model, and resumes a run that was stopped, as ``jaxvae train`` does.

``--help`` lists its flags.
"""

from jaxvae.__main__ import main

if __name__ == "__main__":
    main("train")
