"""Networks behind pure functions, ``Network(init, apply)``: the only room that knows Flax.

``init(key, x) -> params`` and ``apply(params, x) -> output`` are of one example; ``jax.vmap`` makes
batches. Any pair of functions is a network. ``from_linen`` and ``from_nnx`` make one of a Flax
module. Parameters are float32; ``with_precision`` states the precision in which a network computes.
"""

from jaxvae.networks.adapters import from_linen, from_nnx
from jaxvae.networks.bottlenecks import very_deep
from jaxvae.networks.contract import (
    Network,
    in_training,
    of_input,
    on_slice,
    renamed,
    scaled_input,
    wrapped,
)
from jaxvae.networks.convolutional import convolutional_decoder, convolutional_encoder
from jaxvae.networks.dense import mlp
from jaxvae.networks.ladder import halved, ladder
from jaxvae.networks.layers import ACTIVATIONS, Activation, ActivationName
from jaxvae.networks.layouts import LAYOUTS, Layout
from jaxvae.networks.pairs import PAIRS, Pair, convolutional_pair, mlp_pair, residual_pair
from jaxvae.networks.precision import PRECISIONS, Precision, with_precision
from jaxvae.networks.residual import residual_decoder, residual_encoder
from jaxvae.networks.topdown import Layer, TopDown, absolute, merged, residual

__all__ = [
    "ACTIVATIONS",
    "LAYOUTS",
    "PAIRS",
    "PRECISIONS",
    "Activation",
    "ActivationName",
    "Layer",
    "Layout",
    "Network",
    "Pair",
    "Precision",
    "TopDown",
    "absolute",
    "convolutional_decoder",
    "convolutional_encoder",
    "convolutional_pair",
    "from_linen",
    "from_nnx",
    "halved",
    "in_training",
    "ladder",
    "merged",
    "mlp",
    "mlp_pair",
    "of_input",
    "on_slice",
    "renamed",
    "residual",
    "residual_decoder",
    "residual_encoder",
    "residual_pair",
    "scaled_input",
    "very_deep",
    "with_precision",
    "wrapped",
]
