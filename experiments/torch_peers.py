"""The work of ``works.py`` in PyTorch and Pythae, as a good user of each would write it."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable
from typing import Any

from experiments.works import (
    CHANNELS,
    HIDDEN,
    IWAE_SAMPLES,
    LATENT,
    PRESETS,
    RATE,
    SHAPE,
    Run,
    Work,
)


def _torch_networks(work: Work) -> tuple[Any, Any]:
    """Encoder and decoder of [B, C, H, W] images, with the layers of ours."""
    from torch import nn

    latent, shape = LATENT[work.network], SHAPE[work.network]
    if work.network == "mlp":
        pixels = math.prod(shape)
        encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * latent)
        )
        decoder = nn.Sequential(nn.Linear(latent, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, pixels))
        return encoder, decoder

    class Block(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            half = lambda: (
                nn.GroupNorm(8, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            self.layers = nn.Sequential(*half(), *half())

        def forward(self, x: Any) -> Any:
            return x + self.layers(x)

    channels, residual = CHANNELS[work.network], work.network in ("residual", "wide")
    blocks = lambda width: [Block(width), Block(width)] if residual else []
    small = (channels[-1], shape[0] >> len(channels), shape[1] >> len(channels))
    down: list[Any] = []
    for before, width in zip((shape[-1], *channels), channels, strict=False):
        down += [nn.Conv2d(before, width, 4, 2, 1), *(blocks(width) or [nn.ReLU()])]
    down += [
        *([nn.SiLU()] if residual else []),
        nn.Flatten(),
        nn.Linear(math.prod(small), 2 * latent),
    ]
    up: list[Any] = [
        nn.Linear(latent, math.prod(small)),
        nn.Unflatten(1, small),
        *([] if residual else [nn.ReLU()]),
    ]
    for width, after in zip(channels[::-1], (*channels[-2::-1], shape[-1]), strict=True):
        up += [
            *blocks(width),
            *([nn.SiLU()] if residual else []),
            nn.ConvTranspose2d(width, after, 4, 2, 1),
        ]
        up += [] if residual or after == shape[-1] else [nn.ReLU()]
    return nn.Sequential(*down), nn.Sequential(*up)


def _torch_images(work: Work) -> Any:
    import torch

    scale = 1.0 if work.network == "mlp" else 1 / 255
    images = torch.from_numpy(work.images()).permute(0, 3, 1, 2).contiguous()
    return images.to(_torch_device(work)[0]).float() * scale


def _torch_device(work: Work) -> tuple[str, Callable[[], None]]:
    """The device, which multiplies in the work's precision, and what waits for it."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        work.precision == "tensorfloat32"
    )
    return ("cuda", torch.cuda.synchronize) if torch.cuda.is_available() else ("cpu", lambda: None)


def _diffusers_loss(work: Work) -> tuple[Any, Callable]:
    """The parameters of diffusers' ``AutoencoderKL`` with our layers, and its loss of a batch.

    The loss is the absolute error and 1e-6 of the KL.
    """
    import torch
    from diffusers import AutoencoderKL

    device, _ = _torch_device(work)
    ours, depth = PRESETS[work.network], SHAPE[work.network][-1]
    count = len(ours["hidden"])
    model = AutoencoderKL(
        in_channels=depth,
        out_channels=depth,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        block_out_channels=ours["hidden"],
        layers_per_block=ours["blocks"],
        latent_channels=ours["latent"],
        norm_num_groups=ours["norm_groups"],
    ).to(device)
    autocast = functools.partial(
        torch.autocast, device, torch.bfloat16, enabled=work.precision == "bfloat16"
    )

    def loss(x: Any) -> Any:
        centred = 2 * x - 1
        with autocast():
            posterior = model.encode(centred).latent_dist
            out = model.decode(posterior.sample()).sample
        error = (out.float() - centred).abs().sum((1, 2, 3)).mean()
        return error + 1e-6 * posterior.kl().mean()

    return list(model.parameters()), loss


def _torch_losses(work: Work) -> tuple[Any, Callable, Callable]:
    """The parameters, the log-weights of images and samples, and the loss of a batch."""
    import torch
    from torch.nn import functional as F

    device, _ = _torch_device(work)
    bfloat16 = work.precision == "bfloat16"
    autocast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=bfloat16)
    encoder, decoder = (network.to(device) for network in _torch_networks(work))
    latent = LATENT[work.network]

    def reconstruction(out: Any, x: Any) -> Any:
        """-log p(x|z) up to a constant, [..., B] of out [..., B, D]."""
        x = x.flatten(1)
        if work.network == "mlp":
            cross_entropy = F.binary_cross_entropy_with_logits
            return cross_entropy(out, x.expand_as(out), reduction="none").sum(-1)
        return 0.5 * ((out.flatten(1) - x) ** 2).sum(-1)

    def log_weights(x: Any, samples: int) -> Any:
        with autocast():
            mean, log_var = encoder(x).float().chunk(2, -1)
            noise = torch.randn(samples, *mean.shape, device=device)
            z = mean + (0.5 * log_var).exp() * noise
            out = decoder(z.reshape(-1, latent)).float().reshape(samples, len(x), -1)
        prior_over_posterior = (0.5 * (noise**2 - z**2 + log_var)).sum(-1)
        return prior_over_posterior - reconstruction(out, x)

    def loss(x: Any) -> Any:
        if work.task == "iwae":
            log_w = log_weights(x, IWAE_SAMPLES)
            return (math.log(IWAE_SAMPLES) - torch.logsumexp(log_w, 0)).mean()
        with autocast():
            mean, log_var = encoder(x).float().chunk(2, -1)
            z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
            out = decoder(z).float()
        kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(-1)
        return (reconstruction(out, x) + kl).mean()

    return [*encoder.parameters(), *decoder.parameters()], log_weights, loss


def torch(work: Work, compiled: bool = False) -> Run | None:
    """A hand-written loop: data on the device, fused Adam, autocast where bfloat16 is asked for.

    The autoencoder of latent diffusion is diffusers'. Other presets have no peer here.
    """
    import torch

    if work.network in PRESETS and work.network != "autoencoder-kl":
        return None
    torch.manual_seed(0)
    device, synchronize = _torch_device(work)
    mode = "reduce-overhead" if device == "cuda" else None  # CUDA graphs
    compiler = (
        functools.partial(torch.compile, mode=mode) if compiled else lambda function: function
    )
    log_weights: Callable
    if work.network in PRESETS:
        parameters, loss = _diffusers_loss(work)
    else:
        parameters, log_weights, loss = _torch_losses(work)
    images = _torch_images(work)
    if work.task == "likelihood":
        one = compiler(log_weights)

        def judge(count: int) -> None:
            with torch.no_grad():
                for i in range(count):
                    torch.logsumexp(one(images[i : i + 1], work.samples), 0).item()

        return judge
    optimizer = torch.optim.Adam(parameters, lr=RATE, fused=True)
    of_batch = compiler(loss)

    def run(count: int) -> None:
        left = max(count // work.batch, 1)
        while left > 0:
            for rows in torch.randperm(work.examples, device=device).split(work.batch)[:left]:
                optimizer.zero_grad(set_to_none=True)
                of_batch(images[rows]).backward()
                optimizer.step()
                left -= 1
        synchronize()

    return run


def torch_products(work: Work) -> Run:
    """The matrix products of our step alone, by PyTorch."""
    import torch

    from experiments.ours import images_of_step, products_of

    times, images = products_of(work), images_of_step(work)
    device, synchronize = _torch_device(work)
    dtype = torch.bfloat16 if work.precision == "bfloat16" else torch.float32
    of_ones = functools.partial(torch.ones, dtype=dtype, device=device)
    operands = [(of_ones(m, k), of_ones(k, n), of_ones(m, n), times[m, k, n]) for m, k, n in times]

    def run(count: int) -> None:
        for _ in range(max(count // images, 1)):
            for left, right, out, repeated in operands:
                for _ in range(repeated):
                    torch.mm(left, right, out=out)
        synchronize()

    return run


def torch_compile(work: Work) -> Run | None:
    """The same with ``torch.compile``."""
    return torch(work, compiled=True)


def pythae(work: Work) -> Run | None:
    """``TrainingPipeline``, and ``get_nll`` at its default batch of 100 samples."""
    if work.task == "iwae" or work.precision != "float32":
        return None
    if work.network in PRESETS and work.network != "vq-vae":
        return None
    model = _pythae_vqvae(work) if work.network == "vq-vae" else _pythae_vae(work)
    device, _ = _torch_device(work)
    model, images = model.to(device), _torch_images(work)
    if work.task == "likelihood":
        return lambda count: model.get_nll(images[:count], n_samples=work.samples)

    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig

    def run(count: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            training = BaseTrainerConfig(
                output_dir=folder,
                learning_rate=RATE,
                per_device_train_batch_size=work.batch,
                num_epochs=max(round(count / work.examples), 1),
                no_cuda=device == "cpu",
            )
            TrainingPipeline(model=model, training_config=training)(train_data=images)

    return run


def _pythae_vae(work: Work) -> Any:
    """Pythae's VAE with our networks."""
    import torch
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    height, width, depth = SHAPE[work.network]
    shape, binary = (depth, height, width), work.network == "mlp"
    networks = _torch_networks(work)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = networks[0]

        def forward(self, x: Any) -> Any:
            mean, log_var = self.layers(x).chunk(2, -1)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = networks[1]

        def forward(self, z: Any) -> Any:
            out = self.layers(z).reshape(-1, *shape)
            return ModelOutput(reconstruction=torch.sigmoid(out) if binary else out)

    config = VAEConfig(
        input_dim=shape,
        latent_dim=LATENT[work.network],
        reconstruction_loss="bce" if binary else "mse",
    )
    return VAE(config, Encoder(), Decoder())


def _pythae_vqvae(work: Work) -> Any:
    """Pythae's VQ-VAE with the networks of van den Oord et al. 2017, as ours: 512 codes of 64."""
    from pythae.models import VQVAE, VQVAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from torch import nn

    height, width, depth = SHAPE[work.network]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.ReLU(), nn.Conv2d(128, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 128, 1)
            )

        def forward(self, x: Any) -> Any:
            return x + self.layers(x)

    blocks = lambda: [Block(), Block(), nn.ReLU()]

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            down = nn.Conv2d(depth, 64, 4, 2, 1), nn.ReLU(), nn.Conv2d(64, 128, 4, 2, 1), nn.ReLU()
            rest = nn.Conv2d(128, 128, 3, padding=1), *blocks(), nn.Conv2d(128, 64, 1)
            self.layers = nn.Sequential(*down, *rest)

        def forward(self, x: Any) -> Any:
            return ModelOutput(embedding=self.layers(x))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            up = nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.ReLU()
            first = nn.Conv2d(64, 128, 3, padding=1), *blocks()
            self.layers = nn.Sequential(*first, *up, nn.ConvTranspose2d(64, depth, 4, 2, 1))

        def forward(self, z: Any) -> Any:
            return ModelOutput(reconstruction=self.layers(z))

    config = VQVAEConfig(
        input_dim=(depth, height, width),
        latent_dim=64,
        num_embeddings=512,
        use_ema=True,
        decay=0.99,
        commitment_loss_factor=0.25,
    )
    return VQVAE(config, Encoder(), Decoder())
