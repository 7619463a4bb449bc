"""The files of diffusers' ``AutoencoderKL`` and ``VQModel``: names, layouts and ``config.json``.

A parameter ``decoder/up_blocks_0/resnets_1/conv1/kernel`` [kh, kw, I, O] is the array
``decoder.up_blocks.0.resnets.1.conv1.weight`` [O, I, kh, kw] of a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from jaxvae.contracts import Params

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
BOTTLENECKS = {"AutoencoderKL": "gaussian", "VQModel": "nearest"}  # of a class
PRESETS = {"AutoencoderKL": "autoencoder-kl", "VQModel": "vq-gan"}
BLOCKS = {  # which blocks a side may have: without attention and with it
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
USUAL: dict[str, Any] = {  # what diffusers takes for a key that a config.json lacks
    "act_fn": "silu",
    "block_out_channels": [64],
    "down_block_types": ["DownEncoderBlock2D"],
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "norm_type": "group",
    "num_vq_embeddings": 256,
    "out_channels": 3,
    "sample_size": 32,
    "up_block_types": ["UpDecoderBlock2D"],
    "use_post_quant_conv": True,
    "use_quant_conv": True,
    "vq_embed_dim": None,
}
WHOLE = ("in_channels", "latent_channels", "layers_per_block", "norm_num_groups", "out_channels")


# Arrays


def exchanged(params: Params) -> Params:
    """The part of an autoencoder's parameters that files hold, by the modules of diffusers."""
    tree = params["encoder"] | params["decoder"]
    if "quantizer" in params:
        tree |= {"quantize": {"embedding": {"embedding": params["quantizer"]["book"]}}}
    return tree


def array_name(path: Sequence[str]) -> str:
    """The name in a file of the parameter at a path.

    >>> array_name(("encoder", "down_blocks_0", "resnets_1", "norm2", "scale"))
    'encoder.down_blocks.0.resnets.1.norm2.weight'
    """
    *modules, leaf = path
    name = ".".join(re.sub(r"_(\d+)$", r".\1", module) for module in modules)
    return f"{name}.{'bias' if leaf == 'bias' else 'weight'}"


def _axes(path: Sequence[str], ndim: int) -> tuple[int, ...]:
    """The axes of a parameter in the order that they have in a file."""
    if path[-1] != "kernel":
        return tuple(range(ndim))
    return (ndim - 1, ndim - 2, *range(ndim - 2))


def to_arrays(params: Params) -> dict[str, np.ndarray]:
    """An autoencoder's parameters as the arrays of a file."""
    flat = traverse_util.flatten_dict(exchanged(params))
    return {
        array_name(path): np.transpose(np.asarray(leaf), _axes(path, leaf.ndim))
        for path, leaf in flat.items()
    }


def from_arrays(arrays: Mapping[str, np.ndarray], like: Params) -> Params:
    """Parameters structured like ``like`` from the arrays of a file, in float32.

    What files do not hold, such as the scale of a likelihood, stays as in ``like``. Raises
    ValueError if arrays are missing or left over, or if shapes differ.
    """
    named = {current_name(name): array for name, array in arrays.items()}
    flat = traverse_util.flatten_dict(exchanged(like))
    paths = {array_name(path): path for path in flat}
    _check_names(named.keys(), paths.keys())
    read = {}
    for name, path in paths.items():
        axes, array = _axes(path, flat[path].ndim), named[name]
        expected = tuple(flat[path].shape[axis] for axis in axes)
        if array.shape != expected:
            raise ValueError(
                f"{name} has the shape {array.shape}; by config.json it must be {expected}"
            )
        read[path] = np.ascontiguousarray(np.transpose(array, np.argsort(axes)), np.float32)
    tree = traverse_util.unflatten_dict(read)
    taken = {side: {name: tree[name] for name in like[side]} for side in ("encoder", "decoder")}
    if "quantizer" in like:
        taken["quantizer"] = {"book": tree["quantize"]["embedding"]["embedding"]}
    return like | taken


def current_name(name: str) -> str:
    """The present name of an array; files of before 2023 call the layers of attention otherwise."""
    return ".".join(OLD_NAMES.get(part, part) for part in name.split("."))


def _check_names(there: Any, expected: Any) -> None:
    missing, more = sorted(expected - there), sorted(there - expected)
    if missing:
        raise ValueError(
            f"{len(missing)} arrays that config.json asks for are missing, the first is "
            f"{missing[0]}"
        )
    if more:
        raise ValueError(
            f"{len(more)} arrays are left over that config.json does not ask for, the first is "
            f"{more[0]}"
        )


# config.json


def to_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the preset of ``PRESETS`` for a config.json.

    Raises ValueError for what our networks do not have.
    """
    kind = config.get("_class_name")
    if kind not in BOTTLENECKS:
        raise ValueError(f"_class_name is {kind!r}; it must be {' or '.join(BOTTLENECKS)}")
    full = USUAL | dict(config)
    _check_same(full)
    settings = {
        "hidden": tuple(_counts("block_out_channels", full)),
        "latent": full["latent_channels"],
        "blocks": full["layers_per_block"],
        "norm_groups": full["norm_num_groups"],
        "attention_levels": _attention_levels(full),
        "middle_attention": bool(full["mid_block_add_attention"]),
        "quant_convs": bool(full["use_quant_conv"]),
    }
    if kind == "VQModel":
        settings["codebook_size"] = full["num_vq_embeddings"]
        settings["code_size"] = full["vq_embed_dim"]
    return settings


def _check_same(config: Mapping[str, Any]) -> None:
    for name in WHOLE:
        _counts(name, {name: [config[name]]})
    expected = {"act_fn": "silu", "norm_type": "group", "out_channels": config["in_channels"]}
    expected |= {"use_post_quant_conv": config["use_quant_conv"]}
    for name, value in expected.items():
        if config[name] != value:
            raise ValueError(f"{name} is {config[name]!r}; jaxvae has networks with {value!r} only")


def _counts(name: str, config: Mapping[str, Any]) -> list[int]:
    """A key's list of whole numbers from 1 on."""
    value = config[name]
    if not isinstance(value, list) or not all(type(n) is int and n > 0 for n in value):
        raise ValueError(f"{name} must be whole numbers from 1 on; it is {value!r}")
    return value


def _attention_levels(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The resolutions with attention, from the image's on, which are the same on both sides."""
    with_attention = {}
    for side, kinds in BLOCKS.items():
        odd = [kind for kind in config[side] if kind not in kinds]
        if odd:
            raise ValueError(f"{side} has {odd[0]!r}; jaxvae has {' and '.join(kinds)}")
        if len(config[side]) != len(config["block_out_channels"]):
            raise ValueError(f"{side} and block_out_channels must be of the same length")
        with_attention[side] = [kind == kinds[1] for kind in config[side]]
    down, up = with_attention["down_block_types"], with_attention["up_block_types"][::-1]
    if down != up:
        raise ValueError("the attention of down_block_types and up_block_types must be the same")
    return tuple(level for level, attends in enumerate(down) if attends)


def image_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """The shape [H, W, C] of the images that a config.json says the model was trained on."""
    full = USUAL | dict(config)
    size = full["sample_size"]
    sides = _counts("sample_size", {"sample_size": size if isinstance(size, list) else [size] * 2})
    if len(sides) != 2:
        raise ValueError(f"sample_size must be one number or two; it is {size!r}")
    return (*sides, full["in_channels"])


def to_config(config: Any, shape: Sequence[int], scaling_factor: float) -> dict[str, Any]:
    """The content of config.json for a configuration of ours, an image's shape and a scale.

    Raises ValueError if diffusers has no such model.
    """
    kinds = {bottleneck: kind for kind, bottleneck in BOTTLENECKS.items()}
    if config.bottleneck.name not in kinds:
        raise ValueError(
            f"diffusers has no autoencoder with the bottleneck {config.bottleneck.name}; it has "
            f"{' and '.join(kinds)}"
        )
    levels = range(len(config.hidden))
    types = {
        side: [kinds[level in config.attention_levels] for level in levels]
        for side, kinds in BLOCKS.items()
    }
    written = USUAL | {
        "_class_name": kinds[config.bottleneck.name],
        "block_out_channels": list(config.hidden),
        "down_block_types": types["down_block_types"],
        "in_channels": shape[-1],
        "latent_channels": config.latent,
        "layers_per_block": config.blocks,
        "mid_block_add_attention": config.middle_attention,
        "norm_num_groups": config.norm_groups,
        "out_channels": shape[-1],
        "sample_size": shape[0] if shape[0] == shape[1] else list(shape[:2]),
        "scaling_factor": scaling_factor,
        "up_block_types": types["up_block_types"][::-1],
    }
    if written["_class_name"] == "VQModel":
        if not config.quant_convs:
            raise ValueError("a VQModel of diffusers always has the convolutions of quant_convs")
        written |= {"num_vq_embeddings": config.bottleneck.codebook_size}
        written |= {"vq_embed_dim": config.code_size, "lookup_from_codebook": False}
        gone = {"use_quant_conv", "use_post_quant_conv"}
    else:
        written |= dict.fromkeys(("use_quant_conv", "use_post_quant_conv"), config.quant_convs)
        gone = {"norm_type", "num_vq_embeddings", "vq_embed_dim"}
    return {name: value for name, value in written.items() if name not in gone}
