"""Makes files with diffusers and PyTorch, in an environment of their own, for test_latent.py.

``python diffusers_peer.py FOLDER``: random small autoencoders as diffusers saves them, each with
images of several sizes, its latents and its decoded images; and LPIPS of two images by PyTorch.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, VQModel
from torch.nn import functional as F

SIZES = (16, 16), (20, 28), (18, 22), (13, 15)
PLAIN = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
ATTENDING = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}
SMALL = {"block_out_channels": (8, 16), "norm_num_groups": 4}
MODELS = {
    "kl": (AutoencoderKL, PLAIN | SMALL | {"layers_per_block": 2}),
    "kl_attention": (AutoencoderKL, ATTENDING | SMALL | {"in_channels": 1, "out_channels": 1}),
    "kl_without_quant": (
        AutoencoderKL,
        PLAIN
        | SMALL
        | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
        | {"mid_block_add_attention": False, "sample_size": 16},
    ),
    "kl_deep": (
        AutoencoderKL,
        {
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            "block_out_channels": (4, 8, 8),
            "norm_num_groups": 2,
        },
    ),
    "vq": (
        VQModel,
        PLAIN | SMALL | {"num_vq_embeddings": 32, "vq_embed_dim": 3, "latent_channels": 5},
    ),
}


def scattered(model: torch.nn.Module) -> None:
    """Parameters that are all different, biases and scales too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def of_model(folder: Path, kind: type, settings: dict) -> None:
    model = kind(**settings).eval()
    scattered(model)
    model.save_pretrained(folder)
    found = {}
    for i, size in enumerate(SIZES):
        x = torch.randn(2, settings.get("in_channels", 3), *size)
        with torch.no_grad():
            if kind is AutoencoderKL:
                q = model.encode(x).latent_dist
                z, found[f"{i}_logvar"] = q.mean, q.logvar
                found[f"{i}_kl"] = q.kl()
                decoded = model.decode(z).sample
            else:
                z = model.encode(x).latents
                found[f"{i}_codes"] = model.quantize(z)[2][2].reshape(2, *z.shape[2:])
                decoded = model.decode(z).sample
        found |= {f"{i}_x": x, f"{i}_z": z, f"{i}_decoded": decoded}
    np.savez(folder / "expected.npz", **{name: value.numpy() for name, value in found.items()})


def of_lpips(file: Path) -> None:
    """A VGG16 of few channels with random weights, and its distance of two images."""
    widths, numbers = (4, 6, 8, 8, 8), ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    x, y = torch.rand(2, 3, 32, 40) * 2 - 1
    location, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = ((v - location[:, None, None]) / scale[:, None, None] for v in (x, y))
    weights, before, total = {}, 3, 0.0
    for k, (width, stage) in enumerate(zip(widths, numbers, strict=True)):
        if k:
            a, b = (F.max_pool2d(v[None], 2)[0] for v in (a, b))
        for number in stage:
            weight = torch.randn(width, before, 3, 3) / (3 * before**0.5)
            bias = 0.1 * torch.randn(width)
            a, b = (F.relu(F.conv2d(v[None], weight, bias, padding=1))[0] for v in (a, b))
            weights |= {f"features.{number}.weight": weight, f"features.{number}.bias": bias}
            before = width
        unit_a, unit_b = (v / (torch.sqrt((v**2).sum(0, keepdim=True)) + 1e-10) for v in (a, b))
        lin = torch.rand(1, width, 1, 1)
        weights[f"lin{k}.model.1.weight"] = lin
        total = total + F.conv2d(((unit_a - unit_b) ** 2)[None], lin).mean()
    from safetensors.torch import save_file

    save_file(weights, file)
    np.savez(file.with_suffix(".npz"), x=x.numpy(), y=y.numpy(), distance=total.numpy())


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    for name, (kind, settings) in MODELS.items():
        of_model(where / name, kind, settings)
    of_lpips(where / "vgg.safetensors")
