"""Networks behind pure functions, ``Network(init, apply)``: the only room that knows Flax.

``init(key, x) -> params`` and ``apply(params, x) -> output`` are of one example; ``jax.vmap`` makes
batches. Any pair of functions is a network. ``from_linen`` and ``from_nnx`` make one of a Flax
module. Parameters are float32; ``with_precision`` states the precision in which a network computes.
"""

from jaxvae.networks.adapters import from_linen, from_nnx
from jaxvae.networks.autoregressive import Autoregressive, Codes, Grid, log_probs_of_grids
from jaxvae.networks.bottlenecks import very_deep
from jaxvae.networks.contract import (
    Network,
    in_training,
    of_input,
    on_slice,
    renamed,
    scaled_input,
    summed,
    wrapped,
)
from jaxvae.networks.convolutional import convolutional_decoder, convolutional_encoder
from jaxvae.networks.critics import (
    CRITICS,
    Judgement,
    convolutional_critic,
    leaky_relu,
    mlp_critic,
)
from jaxvae.networks.dense import mlp, mlp_beside, mlp_of_parts, mlp_with_dropout
from jaxvae.networks.feature_maps import feature_decoder, feature_encoder, pointwise
from jaxvae.networks.ladder import halved, ladder
from jaxvae.networks.layers import ACTIVATIONS, Activation, ActivationName
from jaxvae.networks.layouts import LAYOUTS, Layout
from jaxvae.networks.normalized import analysis, synthesis
from jaxvae.networks.pairs import PAIRS, Pair, convolutional_pair, mlp_pair, residual_pair
from jaxvae.networks.patches import patch_critic, patches, vgg_maps
from jaxvae.networks.pixelcnn import gated_pixelcnn
from jaxvae.networks.precision import PRECISIONS, Precision, with_precision
from jaxvae.networks.residual import residual_decoder, residual_encoder
from jaxvae.networks.sequences import (
    SequenceDecoder,
    bag_of_words,
    independent_decoder,
    preceding,
    recurrent_decoder,
    recurrent_encoder,
    transformer_decoder,
)
from jaxvae.networks.temporal import temporal_decoder, temporal_encoder
from jaxvae.networks.topdown import Layer, TopDown, absolute, merged, residual
from jaxvae.networks.transformer import causal_transformer

__all__ = [
    "ACTIVATIONS",
    "CRITICS",
    "LAYOUTS",
    "PAIRS",
    "PRECISIONS",
    "Activation",
    "ActivationName",
    "Autoregressive",
    "Codes",
    "Grid",
    "Judgement",
    "Layer",
    "Layout",
    "Network",
    "Pair",
    "Precision",
    "SequenceDecoder",
    "TopDown",
    "absolute",
    "analysis",
    "bag_of_words",
    "causal_transformer",
    "convolutional_critic",
    "convolutional_decoder",
    "convolutional_encoder",
    "convolutional_pair",
    "feature_decoder",
    "feature_encoder",
    "from_linen",
    "from_nnx",
    "gated_pixelcnn",
    "halved",
    "in_training",
    "independent_decoder",
    "ladder",
    "leaky_relu",
    "log_probs_of_grids",
    "merged",
    "mlp",
    "mlp_beside",
    "mlp_critic",
    "mlp_of_parts",
    "mlp_pair",
    "mlp_with_dropout",
    "of_input",
    "on_slice",
    "patch_critic",
    "patches",
    "pointwise",
    "preceding",
    "recurrent_decoder",
    "recurrent_encoder",
    "renamed",
    "residual",
    "residual_decoder",
    "residual_encoder",
    "residual_pair",
    "scaled_input",
    "summed",
    "synthesis",
    "temporal_decoder",
    "temporal_encoder",
    "transformer_decoder",
    "very_deep",
    "vgg_maps",
    "with_precision",
    "wrapped",
]
