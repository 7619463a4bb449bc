"""Families of models, each with a configuration, presets and a function that builds it.

A new family is a file and a row in ``FAMILIES``. A new member of a family, such as a posterior, is
a function and a row in its table, such as ``posteriors.CONTINUOUS``. ``jaxvae train`` then has it
as a flag.

    >>> from jaxvae import families
    >>> config = families.preset("vampprior", components=20, latent=8)
    >>> config.prior
    vampprior(components=20)
"""

from __future__ import annotations

import difflib
from typing import Any

from jaxvae.families import (
    autoencoder,
    codebook,
    compressive,
    conditional,
    counts,
    discrete,
    experts,
    flat,
    hierarchy,
    hybrid,
    implicit,
    label_stages,
    labels,
    latent,
    markov,
    modalities,
    prior,
    spectra,
    speech,
    tabular,
    text,
    text_labels,
    truncated,
    zero_shot,
)
from jaxvae.families.contract import RESUMABLE, Built, Config, Data, Family, FirstStage
from jaxvae.settings import changed

__all__ = [
    "FAMILIES",
    "RESUMABLE",
    "Built",
    "Config",
    "Data",
    "Family",
    "FirstStage",
    "family_of",
    "preset",
]

FAMILIES: dict[str, Family] = {
    "flat": flat.FAMILY,
    "bits": discrete.BITS,
    "classes": discrete.CLASSES,
    "joint": discrete.JOINT,
    "autoencoder": autoencoder.FAMILY,
    "conditional": conditional.FAMILY,
    "counts": counts.FAMILY,
    "predictor": conditional.PREDICTOR,
    "latent": latent.FAMILY,
    "codebook": codebook.FAMILY,
    "compressive": compressive.FAMILY,
    "hierarchy": hierarchy.FAMILY,
    "markov": markov.FAMILY,
    "hybrid": hybrid.FAMILY,
    "conditional-hybrid": hybrid.CONDITIONAL,
    "implicit": implicit.FAMILY,
    "prior": prior.FAMILY,
    "text": text.FAMILY,
    "labelled-text": text_labels.FAMILY,
    "labels": labels.FAMILY,
    "coded-labels": label_stages.FAMILY,
    "modalities": modalities.FAMILY,
    "truncated": truncated.FAMILY,
    "experts": experts.FAMILY,
    "zero-shot": zero_shot.FAMILY,
    "spectra": spectra.FAMILY,
    "speech": speech.FAMILY,
    "tabular": tabular.FAMILY,
}


def presets() -> dict[str, tuple[str, Any]]:
    """All presets by name, each with one sentence and a configuration."""
    return {name: row for family in FAMILIES.values() for name, row in family.presets.items()}


def preset(name: str, **named: Any) -> Any:
    """The configuration of a preset, with other values for the named settings.

    Raises ValueError for an unknown preset or setting, and names the nearest one.
    """
    table = presets()
    if name not in table:
        near = difflib.get_close_matches(name, table, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"no preset {name!r}; there are {', '.join(table)}.{hint}")
    return changed(table[name][1], **named)


def family_of(config: Config) -> str:
    """The name of a configuration's family."""
    for name, family in FAMILIES.items():
        if type(config) is family.Config:
            return name
    raise ValueError(
        f"{type(config).__name__} is the configuration of no family: add a row to "
        "jaxvae.families.FAMILIES"
    )
