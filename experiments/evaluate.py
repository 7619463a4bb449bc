"""Evaluates a trained model: ``python experiments/evaluate.py WORKDIR [--num-samples 5000]``.

It is the command ``jaxvae evaluate``; ``--help`` lists everything. It prints and writes
``evaluation.json``: the ELBO and its terms, the log-likelihood with its standard error, effective
sample size and Pareto k, and bits/dim.
"""

from jaxvae.command_line import run_script

if __name__ == "__main__":
    run_script("evaluate")
