"""What a run leaves behind: lines of metrics, the judgement of the final parameters, figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from wiring import Run

from jaxvae import datasets, divergences, evaluation, figures, processes
from jaxvae.distributions import (
    Bernoulli,
    OneHotCategorical,
    PowerSpherical,
    VonMisesFisher,
    mean_of,
)

SPEEDS: dict[
    str, Callable[[float], str]
] = {  # what the lines of metrics.jsonl say of speed, and how it is printed
    "images_per_second": lambda value: f"{value:,.0f} images/s",
    "flops_per_second": lambda value: f"{value / 1e9:,.1f} GFLOP/s",
    "share_of_peak": lambda value: f"{value:.1%} of the devices' peak",
}


def say(sentence: str) -> None:
    """Prints a sentence, in a job of several processes once."""
    if processes.is_first():
        print(sentence, flush=True)


class Metrics:
    """Lines of ``metrics.jsonl`` and ``validation.jsonl``, TensorBoard where tensorboardX is there,
    a progress bar.

    Lines of steps after ``start``, which a run that was killed has left, are dropped: their steps
    are run again. In a job of several processes only the first one writes. ``cost`` gives more
    figures for the images per second.
    """

    def __init__(
        self, workdir: Path, start: int, steps: int, cost: Callable[[float], dict[str, float]]
    ):
        from tqdm import tqdm

        self.workdir, self.cost, self.board, self.writes = workdir, cost, None, processes.is_first()
        self.bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            desc="training",
            dynamic_ncols=True,
            disable=not self.writes,
        )
        if not self.writes:
            return
        for name in ("metrics.jsonl", "validation.jsonl"):
            kept = [line for line in read_lines(workdir / name) if line["step"] <= start]
            partial = workdir / f"{name}.partial"
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
            partial.replace(workdir / name)
        try:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
        except ImportError:
            pass

    def report(self, step: int, report: dict[str, Any]) -> None:
        """The means of all terms since the last report."""
        report |= self.cost(report["images_per_second"])
        names = {"loss": "loss", "reconstruction": "reconstruction", "kl": "KL"}
        shown = {
            name: f"{report[term]:.2f}"
            for term, name in names.items()
            if report.get(term) is not None
        }
        self.bar.set_postfix({"images/s": f"{report['images_per_second']:,.0f}"} | shown)
        self.bar.update(step - self.bar.n)
        self._write("metrics.jsonl", step, report)

    def validate(self, step: int, elbo: float) -> None:
        """The ELBO that a checkpoint is judged by."""
        self._write("validation.jsonl", step, {"validation_elbo": elbo})

    def _write(self, name: str, step: int, values: dict[str, Any]) -> None:
        if not self.writes:
            return
        with (self.workdir / name).open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        for name, value in values.items():
            if self.board is not None and value is not None:
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Ends the bar and flushes TensorBoard."""
        self.bar.close()
        if self.board is not None:
            self.board.close()


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; a last line that was cut off by a kill is left out."""
    lines = file.read_text().splitlines() if file.exists() else []
    whole = []
    for number, line in enumerate(lines):
        try:
            whole.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise ValueError(
                    f"{file}, line {number + 1} is not JSON; move the file away to go on"
                ) from None
    return whole


def judge(
    run: Run, params: Any, split: datasets.Split, num_samples: int, batch_size: int = 50
) -> dict[str, Any]:
    """ELBO and its terms, log-likelihood with its error and diagnostics, and bits/dim of one split.

    A model whose encoder is deterministic has none of them but the reconstruction.
    """
    from tqdm import tqdm

    examples, preprocess = run.raw(split), run.preprocess
    summary = evaluation.evaluate(run.vae, params, examples, run.key, preprocess=preprocess)
    judged = {
        "elbo": summary.elbo,
        "elbo_standard_error": summary.standard_error,
        "reconstruction": summary.reconstruction,
        "kl": summary.kl,
        "kl_per_latent": summary.kl_per_latent,
        "active_units": summary.active_units,
        "num_examples": summary.num_examples,
    }
    if summary.elbo is None:
        return judged | {"log_likelihood": None}
    title, quiet = f"log p(x), K = {num_samples}", not processes.is_first()
    with tqdm(total=len(split.images), unit="image", desc=title, leave=False, disable=quiet) as bar:
        estimate = evaluation.estimate_log_likelihood(
            run.vae,
            params,
            examples,
            run.key,
            preprocess=preprocess,
            num_samples=num_samples,
            batch_size=batch_size,
            progress=lambda done: bar.update(done - bar.n),
        )
    return judged | {
        "log_likelihood": estimate.log_likelihood,
        "standard_error": estimate.standard_error,
        "num_samples": estimate.num_samples,
        "effective_samples": estimate.effective_samples,
        "pareto_k": estimate.pareto_k,
        "pareto_k_above_0.7": estimate.pareto_k_above,
        "bits_per_dim": evaluation.bits_per_dim(
            estimate.log_likelihood, run.dimensions, run.bits_offset
        ),
    }


def table(rows: Sequence[tuple[str, str]]) -> None:
    """Prints names beside values."""
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def judgement_rows(judged: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines that both scripts print of a judgement."""
    if judged["elbo"] is None:
        return [
            (
                "reconstruction",
                f"{judged['reconstruction']:.3f} nats, {judged['active_units']} active units",
            )
        ]
    k = judged["pareto_k"]
    tail = (
        "unknown, too few samples"
        if k is None
        else f"{k:.2f}, above 0.7 for {judged['pareto_k_above_0.7']:.1%} of the images"
    )
    return [
        ("ELBO", f"{judged['elbo']:.3f} ± {judged['elbo_standard_error']:.3f} nats"),
        ("  reconstruction", f"{judged['reconstruction']:.3f} nats"),
        ("  KL", f"{judged['kl']:.3f} nats, {judged['active_units']} active units"),
        (
            "log-likelihood",
            f"{judged['log_likelihood']:.3f} ± {judged['standard_error']:.3f} nats "
            f"(K = {judged['num_samples']} importance samples, {judged['num_examples']} images)",
        ),
        ("  effective samples", f"{judged['effective_samples']:.0f} of {judged['num_samples']}"),
        ("  Pareto k", tail),
        ("bits/dim", f"{judged['bits_per_dim']:.4f}"),
    ]


def draw(
    run: Run, params: Any, folder: Path, reports: Sequence[dict[str, Any]], count: int = 10
) -> list[str]:
    """Draws all figures of a run into ``folder`` and returns their names."""
    folder.mkdir(exist_ok=True)
    split, vae, side = run.test, run.vae, 8
    rows = np.arange(max(2 * count, side * side)) % len(split.images)
    keys = jax.vmap(lambda i: jax.random.fold_in(run.key, i))(rows)
    raw = jax.tree.map(lambda a: a[rows], run.raw(split))
    examples = jax.jit(jax.vmap(run.preprocess))(keys, raw)
    some = lambda part: jax.tree.map(lambda a: a[part], examples)
    drawn = []

    def grid(name: str, images: np.ndarray, *labels: Any, **more: Any) -> None:
        figures.grid(folder / f"{name}.png", images / run.white, *labels, **more)
        drawn.append(f"{name}.png")

    inputs, outputs = (
        run.pictures(x, examples) for x in figures.reconstructions(vae, params, examples)
    )
    grid(
        "reconstructions",
        np.stack([inputs[:count], outputs[:count]]),
        "Test images and their reconstructions",
        rows=["input", "decoded"],
    )
    samples = run.pictures(figures.prior_samples(vae, params, run.key, examples), examples)[
        : side * side
    ]
    grid(
        "samples",
        samples.reshape(side, side, *samples.shape[1:]),
        "Decoder means at samples of the prior",
    )
    here, _ = vae.at(
        some(0)
    )  # of a conditional model, all that follows is at the first one's condition
    x = jax.vmap(lambda example: vae.at(example)[1])(examples)
    q = here.encode(params, x[0])
    if not isinstance(q, PowerSpherical | VonMisesFisher):  # straight lines leave the sphere
        lines = figures.interpolations(
            here, params, x[: count // 2], x[count : count + count // 2], count
        )
        title = "Straight lines between the posterior means of two test images"
        grid("interpolations", run.pictures(lines, some(0)), title)
        mean, kl = jax.jit(jax.vmap(lambda x: _mean_and_kl(here, params, x)))(x[: 2 * count])
        strongest = np.argsort(-np.asarray(kl.mean(0)))[:count]
        values, columns = _values(q)
        moved = figures.traversals(here, params, mean[0], strongest, values)
        grid(
            "traversals",
            run.pictures(moved, some(0)),
            "One latent at a time, from the posterior mean of a test image",
            rows=[f"$z_{{{i + 1}}}$" for i in strongest],
            columns=columns,
        )
    shown = datasets.Split(
        split.images[:2000], None if split.labels is None else split.labels[:2000]
    )
    means = evaluation.encode_split(vae, params, run.raw(shown), run.key, preprocess=run.preprocess)
    means = means.reshape(len(means), -1)
    figures.latent_scatter(
        folder / "latents.png", means, shown.labels, "Posterior means of test images"
    )
    terms = {
        "loss": "loss",
        "reconstruction": "reconstruction",
        "kl": "KL",
        "validation_elbo": "validation ELBO",
    }
    figures.curves(folder / "curves.png", reports, terms)
    return [*drawn, "latents.png", "curves.png"]


def _values(q: Any) -> tuple[jax.Array, list[str]]:
    """What a latent is set to, and how it is called."""
    if isinstance(q, OneHotCategorical):
        classes = q.logits.shape[-1]
        return jnp.eye(classes), [str(c) for c in range(classes)]
    values = jnp.linspace(0.0, 1.0, 5) if isinstance(q, Bernoulli) else jnp.linspace(-3.0, 3.0, 9)
    return values, [f"{value:g}" for value in np.round(values, 2)]


def _mean_and_kl(vae: Any, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Posterior mean and KL per latent; where KL has no closed form per latent, the squared mean
    orders the latents.
    """
    q = vae.encode(params, x)
    kl, mean = divergences.kl_per_latent(q, vae.prior(params)), mean_of(q)
    return mean, mean**2 if kl is None or kl.shape != mean.shape[: kl.ndim] else kl
