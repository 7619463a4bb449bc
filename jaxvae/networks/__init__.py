"""Networks behind pure functions, ``Network(init, apply)``: the only room that knows Flax.

``init(key, x) -> params`` and ``apply(params, x) -> output`` are of one example; ``jax.vmap`` makes
batches. Any pair of functions is a network. ``from_linen`` and ``from_nnx`` make one of a Flax
module. Parameters are float32; ``with_precision`` states the precision in which a network computes.
"""

from jaxvae.networks.adapters import from_linen, from_nnx
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
from jaxvae.networks.feature_maps import feature_decoder, feature_encoder, pointwise
from jaxvae.networks.layers import ACTIVATIONS, Activation, ActivationName
from jaxvae.networks.pairs import PAIRS, Pair, convolutional_pair, mlp_pair, residual_pair
from jaxvae.networks.patches import patch_critic, patches, vgg_maps
from jaxvae.networks.precision import PRECISIONS, Precision, with_precision
from jaxvae.networks.residual import residual_decoder, residual_encoder

__all__ = [
    "ACTIVATIONS",
    "PAIRS",
    "PRECISIONS",
    "Activation",
    "ActivationName",
    "Network",
    "Pair",
    "Precision",
    "convolutional_decoder",
    "convolutional_encoder",
    "convolutional_pair",
    "feature_decoder",
    "feature_encoder",
    "from_linen",
    "from_nnx",
    "in_training",
    "mlp",
    "mlp_pair",
    "of_input",
    "on_slice",
    "patch_critic",
    "patches",
    "pointwise",
    "renamed",
    "residual_decoder",
    "residual_encoder",
    "residual_pair",
    "scaled_input",
    "vgg_maps",
    "with_precision",
    "wrapped",
]
