"""Pictures of a model: reconstructions, samples, traversals, interpolations, the latent space,
learning curves.

Functions that decode return an array of images in [0, 1]; ``grid`` and the two plots write PNG
files. Only this room needs matplotlib.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.distributions import mean_of
from jaxvae.models.vae import VAE

Array = jax.Array


def reconstructions(vae: Any, params: Any, examples: Any) -> tuple[np.ndarray, np.ndarray]:
    """The examples' x [N, H, W, C] and the decoder's mean at the posterior's mean, both [N, H,
    W, C].
    """

    def one(example: Any) -> tuple[Array, Array]:
        here, x = vae.at(example)
        return x, here.decode(params, mean_of(here.encode(params, x))).mean

    inputs, outputs = jax.jit(jax.vmap(one))(examples)
    return np.asarray(inputs), np.asarray(outputs)


def prior_samples(vae: Any, params: Any, key: Array, examples: Any) -> np.ndarray:
    """The decoder's mean at a draw from the prior, one for each example and at its condition:
    [N, H, W, C].
    """

    def one(key: Array, example: Any) -> Array:
        here, _ = vae.at(example)
        return here.decode(params, here.prior(params).sample(key)).mean

    count = jax.tree.leaves(examples)[0].shape[0]
    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, count), examples))


def decoded(vae: VAE, params: Any, z: Array) -> np.ndarray:
    """The decoder's mean at latents z [..., *event]: [..., H, W, C]."""
    event = vae.prior(params).event_shape
    lead = z.shape[: z.ndim - len(event)]
    images = jax.jit(jax.vmap(lambda z: vae.decode(params, z).mean))(jnp.reshape(z, (-1, *event)))
    return np.asarray(images).reshape(*lead, *images.shape[1:])


def traversals(
    vae: VAE, params: Any, center: Array, latents: Sequence[int], values: Array
) -> np.ndarray:
    """Decodes ``center [D, ...]`` with one latent at a time set to each of ``values``: [latents,
    values, H, W, C].
    """
    z = jnp.stack([jax.vmap(center.at[latent].set)(values) for latent in latents])
    return decoded(vae, params, z)


def interpolations(vae: VAE, params: Any, x: Array, y: Array, steps: int) -> np.ndarray:
    """Decodes straight lines between the posterior means of x and y [N, H, W, C]: [N, steps, H,
    W, C].
    """
    mean = jax.jit(jax.vmap(lambda x: mean_of(vae.encode(params, x))))
    lines = jax.vmap(lambda t: (1 - t) * mean(x) + t * mean(y), out_axes=1)(
        jnp.linspace(0.0, 1.0, steps)
    )
    return decoded(vae, params, lines)


def grid(
    path: str | os.PathLike,
    images: np.ndarray,
    title: str,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Writes images [R, C, H, W, channels] as a grid; values outside [0, 1] are clipped.

    ``rows`` and ``columns`` label the grid's edges. One channel is drawn in grey, three in colour;
    vectors [R, C, D] are drawn as strips.
    """
    images = np.asarray(images, np.float32)
    if images.ndim == 3:
        images = images[:, :, None, :, None]
    r, c, h, w, channels = images.shape
    if channels not in (1, 3):
        images, channels = images.mean(-1, keepdims=True), 1
    gap = max(1, h // 16)
    sheet = np.ones((r * (h + gap) - gap, c * (w + gap) - gap, channels))
    for i in range(r):
        for j in range(c):
            sheet[i * (h + gap) : i * (h + gap) + h, j * (w + gap) : j * (w + gap) + w] = np.clip(
                images[i, j], 0, 1
            )
    inches = min(0.6, 12 / max(r, c))
    size = max(sheet.shape[1] / w * inches, 3.5), sheet.shape[0] / h * inches + 0.6
    figure, axes = _figure(size)
    axes.imshow(
        sheet[..., 0] if channels == 1 else sheet,
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    axes.set_title(title, fontsize=10)
    axes.set_yticks(
        [i * (h + gap) + (h - 1) / 2 for i in range(r)] if rows else [], rows or [], fontsize=8
    )
    axes.set_xticks(
        [j * (w + gap) + (w - 1) / 2 for j in range(c)] if columns else [],
        columns or [],
        fontsize=8,
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def latent_scatter(
    path: str | os.PathLike, means: np.ndarray, labels: np.ndarray | None, title: str
) -> None:
    """Writes posterior means [N, D] in their two principal components (for D = 2, as they are),
    coloured by label.
    """
    names = ["$z_1$", "$z_2$"]
    if means.shape[1] == 1:
        means, names = np.concatenate([means, np.zeros_like(means)], 1), ["$z_1$", ""]
    elif means.shape[1] > 2 and len(means) > 1:
        centered = means - means.mean(0)
        _, singular, axes_ = np.linalg.svd(centered, full_matrices=False)
        share = singular**2 / max((singular**2).sum(), 1e-30)
        means = centered @ axes_[:2].T
        names = [f"principal component {i + 1} ({share[i]:.0%} of the variance)" for i in range(2)]
    figure, axes = _figure((6, 5))
    kinds = np.unique(labels) if labels is not None else np.array([])
    if labels is None:
        axes.scatter(means[:, 0], means[:, 1], s=5, alpha=0.6, linewidths=0)
    elif len(kinds) > 20:
        axes.scatter(
            means[:, 0], means[:, 1], s=5, alpha=0.6, c=labels, cmap="viridis", linewidths=0
        )
    else:
        for i, kind in enumerate(kinds):
            colour = f"C{i}" if len(kinds) <= 10 else _tab20(i)
            z = means[labels == kind]
            axes.scatter(
                z[:, 0], z[:, 1], s=7, alpha=0.7, label=str(kind), color=colour, linewidths=0
            )
        axes.legend(
            fontsize=8, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
        )
    axes.set(xlabel=names[0], ylabel=names[1], title=title)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def curves(
    path: str | os.PathLike, reports: Sequence[Mapping[str, Any]], terms: Mapping[str, str]
) -> None:
    """Writes one panel per term, with its name, against the step: from the lines of
    ``metrics.jsonl``, in nats.
    """
    shown = [term for term in terms if any(report.get(term) is not None for report in reports)]
    figure, panels = _figure((3.4 * max(len(shown), 1), 2.9), max(len(shown), 1))
    for axes, term in zip(np.ravel(panels), shown, strict=False):
        points = [
            (report["step"], report[term]) for report in reports if report.get(term) is not None
        ]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 3 else None)
        axes.set(xlabel="step", title=f"{terms[term]} (nats)")
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _figure(size: tuple[float, float], panels: int = 1) -> tuple[Any, Any]:
    """A figure that needs no display and no global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    return figure, figure.subplots(1, panels)


def _tab20(i: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"](i)
