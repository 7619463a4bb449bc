"""Priors that are learned over the codes of a trained model, while that model stays as it is.

Codes are grids of whole numbers, or real latents [D]. ``context`` is a vector that a prior is
conditioned on, such as a one-hot label, or None. Log-probabilities are in nats. A prior of one's
own is a function and a row in ``CODE_PRIORS``.
"""

from collections.abc import Callable

from jaxvae.code_priors.contract import CodePrior, log_weight_of
from jaxvae.code_priors.diffusion import Diffusion, ddpm, noise_schedule
from jaxvae.code_priors.grids import CertainCodes, Grids, pixelcnn, transformer
from jaxvae.code_priors.latents import Standardized, autoregressive, coupling, flow_matching

__all__ = [
    "CODE_PRIORS",
    "CertainCodes",
    "CodePrior",
    "Diffusion",
    "Grids",
    "Standardized",
    "log_weight_of",
    "noise_schedule",
]

CODE_PRIORS: dict[str, Callable[..., CodePrior]] = {
    "pixelcnn": pixelcnn,
    "transformer": transformer,
    "coupling": coupling,
    "autoregressive": autoregressive,
    "flow_matching": flow_matching,
    "ddpm": ddpm,
}
