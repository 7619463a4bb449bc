"""Writes ``auxiva.npz``: demixing matrices of pyroomacoustics' AuxIVA, which tests compare with.

``python tests/make_auxiva.py`` needs ``pip install pyroomacoustics``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "auxiva.npz"


def mixture(sources: int) -> np.ndarray:
    """Spectra [F, M, T] of sources with varying loudness, mixed anew in each frequency."""
    rng = np.random.default_rng(sources)
    shape = (sources, 33, 80)
    spectra = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    spectra *= rng.uniform(0.3, 3.0, (sources, 1, 80))
    mixing = rng.standard_normal((33, sources, sources, 2)) @ [1, 1j]
    return mixing @ np.swapaxes(spectra, 0, 1)


def main() -> None:
    """Writes the file."""
    from pyroomacoustics.bss.auxiva import auxiva

    found = {}
    for sources in (2, 3):
        x = mixture(sources).transpose(2, 0, 1)
        for model in ("laplace", "gauss"):
            for sweeps in (1, 20):
                settings = {"n_iter": sweeps, "proj_back": False, "return_filters": True}
                found[f"{model}_{sources}_{sweeps}"] = auxiva(x, model=model, **settings)[1]
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
