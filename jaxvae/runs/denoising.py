"""The command ``denoise``: a picture cleaned by a model of its own noisy patches.

Drefs et al. 2022, arXiv:2011.13704, sec. 3.3 (zero-shot denoising).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxvae import checkpoints, datasets, families, figures, pictures
from jaxvae.families import Config
from jaxvae.models import truncated
from jaxvae.ranges import Amount, Count
from jaxvae.runs import folders, reports
from jaxvae.runs.preparing import Job, prepare
from jaxvae.runs.training import train_in
from jaxvae.settings import changed
from jaxvae.stopping import Stop

TESTED = 256  # patches whose bound the report is of; they are the picture's own
AT_ONCE = 500  # patches that are reconstructed together


def denoised(
    picture: np.ndarray,
    config: Config,
    workdir: str | Path,
    patch: int = 8,
    job: Job | None = None,
    progress: bool = True,
    stop: Stop | None = None,
) -> np.ndarray | None:
    """A picture without its noise, of which nothing else is known, [H, W, C].

    A model of the family ``truncated`` is trained on all patches of the noisy picture. A pixel is
    the mean of E_q f(s) over all patches that hold it. Returns None if the training was stopped.
    The same call then goes on.

    Args:
      picture: the noisy picture, [H, W, C] with values around [0, 1].
      config: a configuration of the family, such as the preset ``tvae-patches``.
      workdir: the run folder, which ``jaxvae.load`` opens.
      patch: height and width of a patch.
      job: where it is computed; None is one device.
      progress: whether to show a progress bar.
      stop: hears the signals that ask to stop.
    """
    job, folder, data = job or Job(), Path(workdir), data_of(picture, patch)
    config = changed(config, pixels="none")  # noise leaves [0, 1]
    run = prepare(config, job, data)
    _keep(picture, folder)
    trained = train_in("tvae-patches", config, job, folder, data, progress=progress, stop=stop)
    if trained.step < config.steps:
        return None
    with checkpoints.Checkpoints(folder / "checkpoints") as saved:
        shapes = job.placement().shapes(run.built.algorithm.init, *run.init_arguments())
        newest = saved.restore_newest(shapes, folders.warn)
    assert newest is not None
    patches = run.dataset.splits["train"].x
    return from_states(run.built, newest[1], patches, picture.shape)


def _keep(picture: np.ndarray, folder: Path) -> None:
    """Keeps the noisy picture in the run folder. Raises ValueError if there is another one."""
    file = folder / "noisy.npy"
    if file.exists():
        if not np.array_equal(np.load(file), picture):
            raise ValueError(f"{folder} is of another picture, crop or noise: pass another workdir")
        return
    folder.mkdir(parents=True, exist_ok=True)
    np.save(file, picture)


def data_of(picture: np.ndarray, patch: int) -> datasets.Dataset:
    """All patches of a picture as a training set, with some of them to test on."""
    patches = np.ascontiguousarray(pictures.patches_of(picture, patch), dtype=np.float32)
    some = np.random.default_rng(0).permutation(len(patches))[:TESTED]
    return datasets.load({"train": patches, "test": patches[np.sort(some)]})


def from_states(built: Any, state: Any, patches: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The picture of a trained state, from what it remembers of each patch."""
    model, params = built.source, built.parameters(state)

    @jax.jit
    def reconstructed(x: Any, entries: Any) -> Any:
        one = lambda x, entry: truncated.reconstructed(
            model, params, x, truncated.unpacked(entry, model.latent)
        )
        return jax.vmap(one)(x, entries)

    parts = []
    for start in range(0, len(patches), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        parts.append(np.asarray(reconstructed(jnp.asarray(patches[rows]), state.memory[rows])))
    return pictures.averaged(np.concatenate(parts), shape)


def cut(picture: np.ndarray, crop: tuple[int, int, int, int] | None) -> np.ndarray:
    """Rows top to bottom and columns left to right of a picture, or all of it."""
    if crop is None:
        return picture
    top, bottom, left, right = crop
    if not (0 <= top < bottom <= picture.shape[0] and 0 <= left < right <= picture.shape[1]):
        raise ValueError(
            f"crop={crop} must be top, bottom, left, right inside a picture of "
            f"{picture.shape[0]} x {picture.shape[1]} pixels"
        )
    return picture[top:bottom, left:right]


def denoise(
    picture: Annotated[Path, tyro.conf.Positional],
    workdir: Path = Path("runs/denoised"),
    patch: Count = 8,
    steps: Count = 6000,
    latent: Count = 64,
    states: Count = 64,
    add_noise: Amount = 0.0,
    crop: tuple[int, int, int, int] | None = None,
    seed: int = 0,
) -> None:
    """Cleans a noisy picture with a model of nothing but its own patches.

    Args:
      picture: a PNG or JPEG file, in grey or in colour.
      workdir: the run folder; denoised.png is written there, and the same command resumes.
      patch: height and width of a patch.
      steps: training steps.
      latent: bits of the model.
      states: states that the posterior of each patch has.
      add_noise: standard deviation of Gaussian noise to add first, of 255, to measure PSNR.
      crop: top, bottom, left and right of the part that is taken.
      seed: seed of the added noise and of the training.
    """
    clean = cut(pictures.read(picture), crop)
    noise = np.random.default_rng(seed).normal(size=clean.shape).astype(np.float32)
    noisy = clean + add_noise / 255 * noise
    config = changed(
        families.preset("tvae-patches"), steps=steps, latent=latent, states=states, seed=seed
    )
    with Stop() as stop:
        found = denoised(noisy, config, workdir, patch, stop=stop)
    if found is None:
        return
    pictures.write(workdir / "denoised.png", found)
    (workdir / "figures").mkdir(exist_ok=True)
    shown = [noisy, found, clean] if add_noise else [noisy, found]
    figures.grid(workdir / "figures" / "denoised.png", np.stack(shown)[None], "Noisy and denoised")
    rows = [("picture", str(workdir / "denoised.png"))]
    if add_noise:
        before, after = (pictures.psnr(each, clean) for each in (noisy, found))
        rows = [("PSNR, noisy", f"{before:.2f} dB"), ("PSNR, denoised", f"{after:.2f} dB"), *rows]
    reports.table(rows)
