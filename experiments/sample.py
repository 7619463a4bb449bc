"""Samples from a trained model: ``python experiments/sample.py WORKDIR [--num 64]``.

It is the command ``jaxvae sample``; ``--help`` lists everything. It writes ``figures/samples.png``
and ``samples.npz``: latents z, decoder means and samples x ~ p(x|z).
"""

from jaxvae.command_line import run_script

if __name__ == "__main__":
    run_script("sample")
