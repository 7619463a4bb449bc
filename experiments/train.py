"""Trains a model: ``python experiments/train.py [PRESET] [--setting value ...]``.

It is the command ``jaxvae train``; ``--help`` lists everything. The same command on the same
workdir resumes where it stopped, bit for bit.
"""

from jaxvae.command_line import run_script

if __name__ == "__main__":
    run_script("train")
