"""How well sources are separated: the ratios of ``bss_eval``, by a library."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxvae.datasets.splits import DataError


class Quality(NamedTuple):
    """Ratios in dB, and which estimate is of which reference."""

    sdr: np.ndarray  # [J] signal to distortion
    sir: np.ndarray  # [J] signal to interference
    order: np.ndarray  # [J] the estimate of each reference


def separation_quality(references: np.ndarray, estimates: np.ndarray) -> Quality:
    """SDR and SIR of sources [J, N] in the order that fits best (Vincent et al. 2006).

    References are the sources as a microphone hears them alone. A filter of 512 taps is allowed.
    Both signals are cut to the shorter one.
    """
    try:
        import fast_bss_eval
    except ImportError as error:
        raise DataError("SDR needs fast-bss-eval: pip install 'jaxvae[audio]'") from error
    if len(references) != len(estimates):
        raise DataError(
            f"there are {len(references)} references for {len(estimates)} sources: give one of each"
        )
    length = min(references.shape[-1], estimates.shape[-1])
    parts = (np.asarray(x[:, :length], np.float64) for x in (references, estimates))
    with np.errstate(divide="ignore"):  # a mixture has no artifacts
        sdr, sir, _, order = fast_bss_eval.bss_eval_sources(*parts, filter_length=512)
    return Quality(sdr, sir, np.asarray(order))
