"""Pictures: patches and their averages, reading and writing, the command that cleans one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxvae
from jaxvae import datasets, families, pictures
from jaxvae.runs import denoising


def picture_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(6, 9, 1), (5, 5, 3), (4, 7, 1)])
def test_averages_of_patches_are_the_picture(shape: tuple[int, ...]) -> None:
    picture = picture_of(shape)
    patches = pictures.patches_of(picture, 4)
    assert patches.shape == ((shape[0] - 3) * (shape[1] - 3), 4, 4, shape[2])
    np.testing.assert_array_equal(patches[0], picture[:4, :4])
    np.testing.assert_array_equal(patches[-1], picture[-4:, -4:])
    np.testing.assert_array_equal(
        patches[1], picture[:4, 1:5] if shape[1] > 4 else picture[1:5, :4]
    )
    np.testing.assert_allclose(pictures.averaged(patches, shape), picture, atol=1e-6)


def test_a_pixel_is_the_mean_over_all_patches_that_hold_it() -> None:
    """Patches of one pixel's place each have their own number; the corner has one patch."""
    patches = np.arange(4, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 1))
    averaged = pictures.averaged(patches, (3, 3, 1))[..., 0]
    np.testing.assert_allclose(averaged, [[0, 0.5, 1], [1, 1.5, 2], [2, 2.5, 3]])


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_read_as_they_were_written(channels: int, tmp_path: Path) -> None:
    picture = np.round(255 * picture_of((4, 6, channels))) / 255
    pictures.write(tmp_path / "a.png", picture)
    np.testing.assert_allclose(pictures.read(tmp_path / "a.png"), picture, atol=1e-6)


def test_psnr_is_that_of_scikit_image() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    a, b = picture_of((7, 8, 1)), picture_of((7, 8, 1), seed=1)
    assert pictures.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1))


def test_what_is_no_picture_or_too_small_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(datasets.DataError, match="is no picture that Pillow reads"):
        pictures.read(tmp_path / "a.png")
    with pytest.raises(datasets.DataError, match="no patches of 8 x 8 pixels"):
        pictures.patches_of(picture_of((7, 20, 1)), 8)
    with pytest.raises(ValueError, match="must be top, bottom, left, right inside"):
        denoising.cut(picture_of((7, 20, 1)), (0, 8, 0, 8))


@pytest.mark.slow
def test_the_command_cleans_a_picture_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stripes in noise: PSNR rises by 3 dB, and the run folder is one like any other."""
    stripes = (np.arange(24)[None, :, None] // 4 % 2) * np.ones((24, 1, 1))
    pictures.write(tmp_path / "clean.png", 0.2 + 0.6 * stripes)
    named = {"patch": 4, "steps": 1500, "latent": 8, "states": 16, "add_noise": 50.0}
    denoising.denoise(tmp_path / "clean.png", tmp_path / "run", **named)
    said = capsys.readouterr().out
    before, after = (float(said.split(f"PSNR, {name}")[1].split()[0]) for name in
                     ("noisy", "denoised"))  # fmt: skip
    assert after > before + 3
    with Image.open(tmp_path / "run" / "denoised.png") as image:
        assert image.size == (24, 24)
    assert (tmp_path / "run" / "figures" / "dictionary.png").exists()
    assert jaxvae.load(tmp_path / "run").step == 1500
    first = (tmp_path / "run" / "denoised.png").read_bytes()
    denoising.denoise(tmp_path / "clean.png", tmp_path / "run", **named)  # resumes at its end
    assert (tmp_path / "run" / "denoised.png").read_bytes() == first
    with pytest.raises(ValueError, match="is of another picture, crop or noise"):
        denoising.denoise(tmp_path / "clean.png", tmp_path / "run", **named | {"add_noise": 40.0})
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 1500


def test_the_preset_is_of_the_family_that_keeps_states() -> None:
    assert families.family_of(families.preset("tvae-patches")) == "truncated"
