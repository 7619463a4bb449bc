"""Separation: projection beside a library, objectives that never rise, the model of spectra."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_auxiva import FILE, mixture

import jaxvae
from jaxvae import families, models, networks, separation, sounds
from jaxvae.datasets import DataError
from jaxvae.runs.separating import separate

SMALL: dict[str, Any] = {
    **{"hidden": (6, 4), "latent": 2, "segment_frames": 8, "window_length": 64, "hop_length": 32},
    **{"steps": 2, "batch_size": 10, "test_samples": 2, "test_examples": 4},
}


def rises(objectives: list[float]) -> float:
    """The largest rise, as a share of all that the objective fell."""
    return max(np.diff(objectives)) / (objectives[0] - objectives[-1])


@pytest.mark.parametrize("prior", ["laplace", "gauss"])
@pytest.mark.parametrize("sources", [2, 3])
@pytest.mark.parametrize("sweeps", [1, 20])
def test_projection_equals_auxiva(prior: str, sources: int, sweeps: int) -> None:
    """Demixing matrices of pyroomacoustics 0.10.1, which ``make_auxiva.py`` has written."""
    x = mixture(sources)
    obtained = separation.separate(x, separation.PRIORS[prior](), sweeps)
    with np.load(FILE) as file:
        expected = file[f"{prior}_{sources}_{sweeps}"]
    np.testing.assert_allclose(obtained.matrices, expected, rtol=0, atol=1e-10)
    assert rises(obtained.objectives) <= 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_low_rank_variances_never_raise_the_objective(seed: int) -> None:
    obtained = separation.separate(mixture(2), separation.low_rank(2, seed), 30)
    assert len(obtained.objectives) == 31
    assert rises(obtained.objectives) <= 1e-12


def test_a_sweep_lowers_the_objective_for_fixed_variances() -> None:
    """And many of them reach W V_j w_j = e_j, with the conjugate in the right place."""
    x, rng = mixture(3), np.random.default_rng(0)
    variances = rng.gamma(2.0, size=(3, 33, 80))
    w = np.tile(np.eye(3, dtype=complex), (33, 1, 1))
    values = []
    for _ in range(300):
        powers = np.abs(np.swapaxes(w @ x, 0, 1)) ** 2
        values.append(separation.objective(w, (powers / variances).sum(), 80))
        w = separation.iterative_projection(w, x, variances)
    assert rises(values) <= 1e-12
    for j in range(3):
        v = np.einsum("fmt,fnt,ft->fmn", x, x.conj(), 1 / variances[j]) / 80
        column = np.einsum("fjm,fmn,fn->fj", w, v, w[:, j].conj())
        np.testing.assert_allclose(column, np.tile(np.eye(3)[j], (33, 1)), atol=1e-8)


def test_sources_do_not_depend_on_the_basis_of_the_mixture() -> None:
    """X -> A X with W -> W A^-1 leaves the sources; their images sum to the mixture."""
    x, rng = mixture(2), np.random.default_rng(1)
    a = rng.standard_normal((33, 2, 2, 2)) @ [1, 1j]
    first = np.tile(np.eye(2, dtype=complex), (33, 1, 1))
    plain = separation.separate(x, separation.gauss(), 3, first)
    other = separation.separate(a @ x, separation.gauss(), 3, first @ np.linalg.inv(a))
    np.testing.assert_allclose(
        separation.demixed(other.matrices, a @ x), plain.matrices @ x, atol=1e-8
    )
    images = separation.projected_back(plain.matrices, x, 1)
    np.testing.assert_allclose(images.sum(0), x[:, 1], atol=1e-10)


def test_a_frequency_without_power_changes_nothing_elsewhere() -> None:
    x = mixture(2)
    silent = np.concatenate([np.zeros_like(x[:1]), x])
    alone = separation.separate(x, separation.laplace(), 5).matrices
    beside = separation.separate(silent, separation.laplace(), 5).matrices
    assert np.isfinite(beside).all()
    np.testing.assert_allclose(beside[1:], alone, atol=1e-10)


# The model of spectra


def linear_model(frequencies: int, classes: int) -> tuple[models.Model, Any]:
    """A model whose log-variances are tanh of linear in z and in the label, for any frames."""
    encoder = networks.temporal_encoder((4, 4), 2)
    decoder = networks.temporal_decoder((4, 4), frequencies)
    cvae = models.spectral_cvae(encoder, decoder, (2, 2))
    example = models.Conditioned(jnp.ones((8, frequencies)), jnp.ones(classes) / classes)
    return models.answers(cvae), cvae.init(jax.random.key(0), example)


def test_a_network_as_source_model_never_raises_the_objective() -> None:
    """With codes, labels and gains that are fitted in turn with W; T is no multiple of 4."""
    x = mixture(2)[..., :38]
    model, params = linear_model(33, 3)
    sources = separation.vae_sources(model, params, 3, 4, steps=3)
    obtained = separation.separate(x, sources, 4)
    assert rises(obtained.objectives) <= 1e-12
    state = obtained.state
    assert state.shapes.shape == (2, 33, 38) and state.z.shape == (2, 20)
    powers = np.abs(np.swapaxes(separation.demixed(obtained.matrices, x), 0, 1)) ** 2
    gains = (powers / state.shapes).mean((1, 2))
    assert sources.cost(state._replace(gains=gains), powers) <= sources.cost(state, powers)


def test_loudness_changes_nothing_but_the_loudness() -> None:
    """The decoder sees powers of the same scale in every sweep; gains hold the rest."""
    x = mixture(2)[..., :24]
    model, params = linear_model(33, 3)
    sources = separation.vae_sources(model, params, 3, 4, steps=2)
    plain, loud = (separation.separate(s * x, sources, 2) for s in (1.0, 64.0))
    np.testing.assert_allclose(loud.state.gains, 64**2 * plain.state.gains, rtol=1e-4)
    np.testing.assert_allclose(
        separation.projected_back(loud.matrices, 64 * x),
        64 * separation.projected_back(plain.matrices, x),
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_known_speaker_stays() -> None:
    model, params = linear_model(33, 3)
    sources = separation.vae_sources(model, params, 3, 4, labels=[2, 0], steps=2)
    state = separation.separate(mixture(2)[..., :16], sources, 1).state
    np.testing.assert_array_equal(state.logits.argmax(1), [2, 0])


def test_a_density_of_powers_is_the_density_of_spectra() -> None:
    """log N_C(s; 0, v) + log pi for each of them (Kameoka et al. 2019, eq. 20)."""
    model, params = linear_model(5, 3)
    rng, label = np.random.default_rng(0), jnp.array([0.0, 1.0, 0.0])
    s = rng.standard_normal((8, 5, 2)) @ [1, 1j]
    z = jnp.asarray(rng.standard_normal(4), jnp.float32)
    p = model.decode(params, z, label)  # type: ignore[misc]
    v = np.asarray(p.mean, np.float64)
    expected = (-(np.abs(s) ** 2) / v - np.log(np.pi * v)).sum() + 40 * np.log(np.pi)
    power = jnp.asarray(np.abs(s) ** 2, jnp.float32)
    np.testing.assert_allclose(p.log_prob(power), expected, rtol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of mvae on synthesized voices."""
    folder = tmp_path_factory.mktemp("mvae") / "run"
    jaxvae.train(families.preset("mvae", **SMALL), folder, progress=False)
    return folder


def a_mixture(folder: Path, channels: int = 2, rate: int = 8000) -> tuple[Path, list[Path]]:
    """A wav file of several channels, and the sources alone at the first of them."""
    signals = [np.concatenate(sounds.voices(1)[0][10 * i : 10 * i + 3])[:5000] for i in range(2)]
    mixing = np.array([[1.0, 0.6], [0.5, 1.0], [0.3, 0.8]])[:channels]
    sounds.write_wave(folder / "mixture.wav", 0.5 * mixing @ signals, rate)
    files = [folder / f"alone-{i}.wav" for i in range(2)]
    for i, file in enumerate(files):
        sounds.write_wave(file, 0.5 * mixing[0, i] * signals[i], rate)
    return folder / "mixture.wav", files


@pytest.mark.slow
def test_separate_writes_sources_that_sum_to_the_mixture(run: Path, tmp_path: Path) -> None:
    file, _ = a_mixture(tmp_path)
    separate(run, file, tmp_path / "out", sweeps=2, code_steps=2, begin="laplace")
    parts = [sounds.read_wave(tmp_path / "out" / f"source-{i}.wav", 8000)[0] for i in (1, 2)]
    np.testing.assert_allclose(sum(parts), sounds.read_wave(file, 8000)[0], atol=3e-4)
    written = json.loads((tmp_path / "out" / "separation.json").read_text())
    assert rises(written["objectives"]) <= 1e-12
    assert set(written["speakers"]) <= {"bass", "tenor", "alto", "treble"}
    assert (tmp_path / "out" / "spectra.png").exists()


@pytest.mark.slow
def test_separate_refuses_in_a_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mono").mkdir()
    (tmp_path / "fast").mkdir()
    file, alone = a_mixture(tmp_path)
    mono, _ = a_mixture(tmp_path / "mono", channels=1)
    fast, _ = a_mixture(tmp_path / "fast", rate=16000)
    refused: list[tuple[Path, dict[str, Any], str]] = [
        (mono, {}, "has one channel, and separation needs one for each source"),
        (fast, {}, "has 16000 samples a second, and sample_rate=8000 was expected"),
        (tmp_path / "no.wav", {}, "there is no"),
        (file, {"speakers": ("bass",)}, "speakers=1 names are of 2 sources"),
        (file, {"speakers": ("bass", "nobody")}, "no speaker 'nobody'; the model knows alto"),
        (file, {"references": (alone[0],)}, "references=1 files"),
    ]
    for path, settings, words in refused:
        with pytest.raises(DataError, match=words):
            separate(run, path, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ratios_are_those_of_a_library() -> None:
    pytest.importorskip("fast_bss_eval")
    from jaxvae.evaluation import separation_quality

    rng = np.random.default_rng(0)
    truth = rng.standard_normal((2, 4000))
    mixed = np.array([[0.1, 1.0], [1.0, 0.2]]) @ truth
    quality = separation_quality(truth, mixed)
    assert quality.order.tolist() == [1, 0]
    np.testing.assert_allclose(quality.sir, [14.0, 20.0], atol=1.5)


@pytest.mark.slow
def test_the_table_of_separations(tmp_path: Path) -> None:
    """At a size that proves nothing but the oracle, which is ahead of the mixture."""
    pytest.importorskip("fast_bss_eval")
    from experiments.papers import separation as table

    sizes = {name: SMALL[name] for name in ("hidden", "latent", "steps", "batch_size")}
    options = table.Options(
        **{"dataset": "voices", "pairs": 1, "words": 4, "reverberation": 0.0, "sweeps": 2},
        **{"rows": ("mixture", "mvae", "oracle"), "json": tmp_path / "out.json"},
        **sizes,
    )
    table.main(options)
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert cells["oracle"][0]["SDR"] > cells["mixture"][0]["SDR"] + 3
    assert np.isfinite(cells["mvae"][0]["SDR"])
