"""PNG files: grids of images, a scatter of codes, learning curves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def grid(
    path: str | os.PathLike,
    images: np.ndarray,
    title: str,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Writes images as a grid. Values outside [0, 1] are clipped.

    Args:
      path: the PNG file.
      images: [R, C, H, W, channels]. One channel is drawn in grey and three in colour; of any other
        number the mean is drawn. Vectors [R, C, D] are drawn as strips.
      title: what stands above the grid.
      rows: labels of the rows.
      columns: labels of the columns.
    """
    images = np.asarray(images, np.float32)
    if images.ndim == 3:
        images = np.repeat(images[:, :, None, :, None], max(images.shape[-1] // 4, 1), 2)
    if images.shape[-1] not in (1, 3):
        images = images.mean(-1, keepdims=True)
    r, c, h, w, channels = images.shape
    gap = max(1, max(h, w) // 16)
    sheet = _sheet(images, gap)
    inches = _inches_per_pixel(h, w, max(r, c))
    size = max(sheet.shape[1] * inches, 3.5), sheet.shape[0] * inches + 0.6
    figure, axes = _figure(size)
    pixels = sheet[..., 0] if channels == 1 else sheet
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    middles = [i * (h + gap) + (h - 1) / 2 for i in range(r)]
    axes.set_yticks(middles if rows else [], rows or [], fontsize=8)
    middles = [j * (w + gap) + (w - 1) / 2 for j in range(c)]
    axes.set_xticks(middles if columns else [], columns or [], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _inches_per_pixel(h: int, w: int, count: int) -> float:
    """Of images of which ``count`` fit in 12 inches; long and narrow ones may take twice that."""
    long, short = max(h, w), min(h, w)
    inches = min(0.6, 12 / count)
    return min(max(inches / long, 0.4 / short), 2 * inches / long)


def _sheet(images: np.ndarray, gap: int) -> np.ndarray:
    """Images [R, C, H, W, channels] beside each other, with white between them."""
    r, c, h, w, channels = images.shape
    sheet = np.ones((r * (h + gap) - gap, c * (w + gap) - gap, channels))
    for i in range(r):
        for j in range(c):
            top, left = i * (h + gap), j * (w + gap)
            sheet[top : top + h, left : left + w] = np.clip(images[i, j], 0, 1)
    return sheet


def latent_scatter(
    path: str | os.PathLike,
    means: np.ndarray,
    labels: np.ndarray | None,
    title: str,
    classes: Sequence[str] = (),
) -> None:
    """Writes codes in their two principal components, coloured by label.

    Args:
      path: the PNG file.
      means: the codes [N, D]. Two dimensions are drawn as they are.
      labels: [N]. More than twenty kinds are drawn as a scale; -1 stands for a missing label.
      title: what stands above.
      classes: names of the labels 0, 1, ... in the legend.
    """
    points, names = _in_the_plane(means)
    figure, axes = _figure((6, 5))
    kinds = np.unique(labels) if labels is not None else np.array([])
    if labels is None:
        axes.scatter(*points.T, s=5, alpha=0.6, linewidths=0)
    elif len(kinds) > 20:
        dots = axes.scatter(*points.T, s=5, alpha=0.6, c=labels, cmap="viridis", linewidths=0)
        figure.colorbar(dots, ax=axes, label="label")
    else:
        _by_kind(axes, points, labels, kinds, classes)
    axes.set(xlabel=names[0], ylabel=names[1], title=title)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def matrix(
    path: str | os.PathLike,
    counts: np.ndarray,
    title: str,
    rows: str,
    columns: str,
    names: Sequence[str],
) -> None:
    """Writes a matrix of counts; each row is shaded by its shares.

    Args:
      path: the PNG file.
      counts: [R, R].
      title: what stands above.
      rows: what the rows are.
      columns: what the columns are.
      names: names of the rows, and of the columns.
    """
    size = len(counts)
    figure, axes = _figure((1.5 + 0.4 * size, 1.5 + 0.4 * size))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(counts if size <= 20 else np.zeros_like(counts)):
        colour = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8, color=colour)
    axes.set(xlabel=columns, ylabel=rows, title=title)
    axes.set_xticks(range(size), names, fontsize=8, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(size), names, fontsize=8)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def trade(
    path: str | os.PathLike,
    points: np.ndarray,
    chosen: tuple[float, float],
    title: str,
    names: tuple[str, str],
) -> None:
    """Writes the curve of two shares of which one is had for the other.

    Args:
      path: the PNG file.
      points: the curve, [points, 2].
      chosen: the point of it that is used.
      title: what stands above.
      names: what the two shares are.
    """
    figure, axes = _figure((4, 3.6))
    axes.plot(*points.T)
    axes.plot(*chosen, "o", label=f"as trained, {chosen[0]:.3f} and {chosen[1]:.3f}")
    axes.set(xlabel=names[0], ylabel=names[1], title=title, xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def histograms(
    path: str | os.PathLike, scores: Mapping[str, Mapping[str, np.ndarray]], title: str
) -> None:
    """Writes a panel for each score, with a histogram of each set of examples.

    Args:
      path: the PNG file.
      scores: numbers [N] by set, and then by score. Every set has the same scores.
      title: what stands above.
    """
    names = list(next(iter(scores.values())))
    figure, panels = _figure((2.8 * len(names), 2.6), len(names))
    for axes, name in zip(np.atleast_1d(panels), names, strict=True):
        every = np.concatenate([columns[name] for columns in scores.values()])
        edges = np.histogram_bin_edges(np.clip(every, *np.percentile(every, (0.5, 99.5))), 40)
        for part, columns in scores.items():
            shown = np.clip(columns[name], edges[0], edges[-1])
            axes.hist(shown, edges, alpha=0.6, density=True, label=part)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
    np.atleast_1d(panels)[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _in_the_plane(means: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Codes [N, D] in two dimensions, and the names of these."""
    if means.shape[1] == 1:
        return np.concatenate([means, np.zeros_like(means)], 1), ["$z_1$", ""]
    if means.shape[1] == 2 or len(means) == 1:
        return means[:, :2], ["$z_1$", "$z_2$"]
    centered = means - means.mean(0)
    _, singular, directions = np.linalg.svd(centered, full_matrices=False)
    share = singular**2 / max((singular**2).sum(), 1e-30)
    names = [f"principal component {i + 1} ({share[i]:.0%} of the variance)" for i in range(2)]
    return centered @ directions[:2].T, names


def _by_kind(
    axes: Any, points: np.ndarray, labels: np.ndarray, kinds: np.ndarray, classes: Sequence[str]
) -> None:
    """Dots in a colour for each label, grey where it is missing, and a legend."""
    integers = np.issubdtype(kinds.dtype, np.integer)
    present = kinds[kinds != -1] if integers else kinds
    colours = [f"C{i}" if len(present) <= 10 else _tab20(i) for i in range(len(present))]
    if len(present) < len(kinds):
        present, colours = np.append(present, -1), [*colours, "lightgrey"]
    for kind, colour in zip(present, colours, strict=True):
        known = integers and 0 <= kind < len(classes)
        name = classes[int(kind)] if known else "no label" if integers and kind < 0 else str(kind)
        z = points[labels == kind]
        axes.scatter(*z.T, s=7, alpha=0.7, label=name, color=colour, linewidths=0)
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
    axes.legend(fontsize=8, markerscale=2, **beside)


def curves(
    path: str | os.PathLike, reports: Sequence[Mapping[str, Any]], terms: Mapping[str, str]
) -> None:
    """Writes one panel for each term against the step, in nats.

    ``reports`` are the lines of ``metrics.jsonl`` and ``validation.jsonl``; ``terms`` are the names
    of their values and how these are called. A single value is drawn as a point and said to be one.
    """
    shown = [term for term in terms if any(report.get(term) is not None for report in reports)]
    figure, panels = _figure((3.4 * max(len(shown), 1), 2.9), max(len(shown), 1))
    for axes, term in zip(np.ravel(panels), shown, strict=False):
        points = [(r["step"], r[term]) for r in reports if r.get(term) is not None]
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 3 else None)
        axes.set(xlabel="step", title=f"{terms[term]} (nats)")
        axes.grid(alpha=0.3)
        if len(points) == 1:
            _say_single(axes, *points[0], term)
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _say_single(axes: Any, step: int, value: float, term: str) -> None:
    """Says that a panel has one value, and which."""
    kind = "checkpoint" if term.startswith("validation") else "report"
    text = f"{value:.2f} (1 {kind})"
    axes.annotate(text, (step, value), (0, 8), textcoords="offset points", ha="center")
    axes.set_xlim(0, 2 * max(step, 1))


def _figure(size: tuple[float, float], panels: int = 1) -> tuple[Any, Any]:
    """A figure that needs no display and no global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    return figure, figure.subplots(1, panels)


def _tab20(i: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"](i)
