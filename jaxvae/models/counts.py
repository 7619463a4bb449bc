"""Models of the counts of single cells (scVI, Lopez et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.contracts import Array, Params
from jaxvae.networks import Network, of_input, wrapped


class Sequencing(NamedTuple):
    """How a cell was read."""

    library: Array  # its counts over all genes
    batch: Array  # the laboratory's batch, one-hot [B]; [0] if batches are not told apart


class Dispersion(NamedTuple):
    """Where the inverse dispersion theta of a negative binomial comes from."""

    decoded: int  # numbers that the decoder gives for it, for each gene
    shape: tuple[int, ...] | None  # of the parameter log theta, if there is one
    # (parameter, what the decoder gives [G, decoded], batch) -> log theta [G]
    log_theta: Callable[[Any, Array, Array], Array]


def gene(genes: int, batches: int) -> Dispersion:
    """One theta for each gene."""
    return Dispersion(0, (genes,), lambda table, raw, batch: table)


def gene_batch(genes: int, batches: int) -> Dispersion:
    """One theta for each gene and batch."""
    if not batches:
        raise ValueError("dispersion=gene_batch needs batches: name their column with batch_key")
    return Dispersion(0, (batches, genes), lambda table, raw, batch: batch @ table)


def gene_cell(genes: int, batches: int) -> Dispersion:
    """A theta for each gene and cell, which the decoder gives."""
    return Dispersion(1, None, lambda table, raw, batch: raw[:, 0])


DISPERSIONS = {"gene": gene, "gene_batch": gene_batch, "gene_cell": gene_cell}


def count_encoder(network: Network) -> Network:
    """The network of log(1 + x), from x and how the cell was read. It does not see the batch."""
    return of_input(network, lambda both: jnp.log1p(both[0]))


def count_decoder(
    network: Network, genes: int, dispersion: Dispersion | None, gate: bool
) -> Network:
    """A network of z and how the cell was read, which gives what likelihoods of counts take.

    The mean of gene g is l rho_g(z, s): l is the library size, s the batch, and rho a softmax
    (doi:10.1038/s41592-018-0229-2, online methods). The output is log(l rho) of each gene for a
    Poisson. For a negative binomial it is log theta and log(l rho) - log theta.

    Args:
      network: takes (z, s) to [G + 1, n] or [G, n]. The last row of G + 1 is for all genes that x
        does not hold. The first of n numbers is for the softmax; the next are the numbers that the
        dispersion takes, and the gate.
      genes: G.
      dispersion: where theta comes from; None for a Poisson.
      gate: whether there are log-odds of a zero, for the zero-inflated negative binomial.
    """
    decoded = 0 if dispersion is None else dispersion.decoded

    def init(key: Array, inputs: tuple[Array, Sequencing]) -> Params:
        z, sequencing = inputs
        params = {"network": network.init(key, (z, sequencing.batch))}
        if dispersion is not None and dispersion.shape is not None:
            params["log_dispersion"] = jnp.zeros(dispersion.shape)
        return params

    def wrap(apply: Callable) -> Callable:
        def outputs(params: Params, inputs: tuple[Array, Sequencing]) -> Array:
            z, (library, batch) = inputs
            raw = apply(params["network"], (z, batch))
            log_mean = jnp.log(library) + log_shares(raw, genes)
            rest = raw[:genes, 1:]
            numbers = [log_mean]
            if dispersion is not None:
                table = params.get("log_dispersion")
                log_theta = dispersion.log_theta(table, rest, batch)
                numbers = [log_theta, log_mean - log_theta]
            if gate:
                numbers.append(rest[:, decoded])
            return jnp.stack(numbers, -1).reshape(-1)

        return outputs

    return wrapped(network, wrap)._replace(init=init)


def log_shares(raw: Array, genes: int) -> Array:
    """log rho of the genes, [G], from what the network of ``count_decoder`` gives."""
    return jax.nn.log_softmax(raw[:, 0])[:genes]


def expression(network: Network, genes: int) -> Callable[[Params, Array, Sequencing], Array]:
    """The answer ``Model.expression``: (params, z, how the cell was read) -> rho [G]."""

    def shares(params: Params, z: Array, sequencing: Sequencing) -> Array:
        raw = network.apply(params["decoder"]["network"], (z, sequencing.batch))
        return jnp.exp(log_shares(raw, genes))

    return shares
