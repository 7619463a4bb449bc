"""What a user mistypes is answered in one sentence with exit code 2: one table for all commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import refused

from experiments import gradient_variance, scaling, throughput
from experiments.papers import (
    cells,
    clusters,
    codes,
    disentanglement,
    evolution,
    exact,
    growing,
    labels,
    likelihoods,
    modalities,
    quadrants,
    rate_distortion,
    samples,
    separation,
    speech,
    stacked,
    sticks,
    zero_shot,
)
from jaxvae.command_line import main, run_function


def _command(name: str) -> None:
    main([name, *sys.argv[1:]])


COMMANDS: dict[str, Callable[[], Any]] = {
    **{
        name: partial(_command, name)
        for name in (
            *("train", "evaluate", "sample", "denoise", "separate", "annotate", "import", "export"),
        )
    },
    "gradient_variance": partial(run_function, gradient_variance.main),
    "scaling": partial(run_function, scaling.scale),
    "throughput": partial(run_function, throughput.main),
    "cells": partial(run_function, cells.main),
    "clusters": partial(run_function, clusters.main),
    "codes": partial(run_function, codes.main),
    "disentanglement": partial(run_function, disentanglement.main),
    "evolution": partial(run_function, evolution.main),
    "exact": partial(run_function, exact.main),
    "labels": partial(run_function, labels.main),
    "growing": partial(run_function, growing.main),
    "likelihoods": partial(run_function, likelihoods.main),
    "modalities": partial(run_function, modalities.main),
    "quadrants": partial(run_function, quadrants.main),
    "rate_distortion": partial(run_function, rate_distortion.main),
    "samples": partial(run_function, samples.main),
    "separation": partial(run_function, separation.main),
    "speech": partial(run_function, speech.main),
    "stacked": partial(run_function, stacked.main),
    "sticks": partial(run_function, sticks.main),
    "zero_shot": partial(run_function, zero_shot.main),
}

# (command, its arguments, what the sentence says); {data} is a folder in which the digits are.
MISTAKES = [
    ("train", "minst-vae", "Did you mean mnist-vae?"),
    ("train", "--batchsize 3", "there is no --batchsize; did you mean --batch-size?"),
    ("train", "--posterior planr", "--posterior: no 'planr'"),
    ("train", "--posterior planr", "Did you mean planar?"),
    ("train", "--posterior bernoulli", "bernoulli is of the presets bits, binary"),
    ("train", "--flow-steps 2", "--flow-steps belongs to --posterior planar, radial"),
    ("train", "--components 3", "--components belongs to --prior"),
    ("train", "--kl-capacity 3", "--kl-capacity belongs to --kl-cost capacity"),
    ("train", "--bound iwae --estimator rloo", "--estimator belongs to --bound elbo, sampled_elbo"),
    ("train", "--bound iwae --kl-weight 2", "--kl-weight belongs to --kl-cost"),
    ("train", "--blocks 3", "--blocks belongs to --network residual"),
    ("train", "--classes 3", "--classes belongs to the presets classes, joint-vae"),
    ("train", "cvae --network conv", "--network belongs to the presets"),
    ("train", "--latent -1", "--latent must be at least 1; it was -1"),
    ("train", "--latent many", "invalid literal for int() with base 10: 'many'"),
    ("train", "--latent", "Missing value for argument '--latent'"),
    ("train", "--posterior", "--posterior needs a value"),
    ("train", "--schedule slow", "invalid choice 'slow' for argument '--schedule'"),
    ("train", "--learning-rate nan", "--learning-rate must be"),
    ("train", "cvae --cvae-weight 2", "--cvae-weight must be at least 0 and at most 1"),
    ("train", "bits --estimator concrete --temperature 0", "--temperature must be above 0"),
    ("train", "--coordinator 127.0.0.1:1", "belong to --distributed"),
    ("train", "--dataset nothing.npy", "there is no nothing.npy"),
    ("train", "--dataset digit --data-dir {data}", "Did you mean digits"),
    ("train", "--test-split validation --data-dir {data}", "no split 'validation'; it has train"),
    ("train", "--pixels scale --data-dir {data}", "no density of --pixels 'scale'"),
    ("train", "--likelihood normal --pixels counts --data-dir {data}", "negative_binomial"),
    ("train", "--devices 64 --data-dir {data}", "--devices 64: this machine has"),
    ("train", "--stream --pixels static --data-dir {data}", "--pixels 'dynamic'"),
    ("train", "--virtual-shards 7 --data-dir {data}", "--virtual-shards"),
    ("train", "bits --estimator rloo --num-samples 1 --data-dir {data}", "--num-samples was 1"),
    ("train", "--kl-cost free_bits --accumulate 2 --data-dir {data}", "--accumulate must be 1"),
    ("train", "--start-from nowhere --data-dir {data} --workdir {data}/x", "is no run folder"),
    ("train", "prior", "say with --of RUN_FOLDER"),
    ("train", "prior --of nowhere", "is no run folder"),
    (
        "train",
        "prior --heads 2",
        "--heads belongs to --prior transformer",
    ),
    ("train", "--of x", "--of belongs to the presets prior"),
    ("train", "m2 --labelled 9 --data-dir {data}", "--labelled 9 examples are fewer than the 10"),
    ("train", "m2 --labelled 5000 --data-dir {data}", "--labelled 5000 takes 500 examples"),
    ("train", "m2 --stream --data-dir {data}", "needs a set with labels in memory"),
    ("train", "m2 --kl-cost free_bits --data-dir {data}", "--kl-cost must be weighted"),
    ("train", "m1-m2 --labelled 9 --data-dir {data}", "--labelled 9 examples are fewer than"),
    ("train", "m1-m2 --of nowhere", "is no run folder"),
    ("train", "--labelled 100", "--labelled belongs to the presets"),
    ("train", "autoencoder-kl --norm-groups 5 --data-dir {data}", "--norm-groups 5 must divide"),
    ("train", "autoencoder-kl --critic-hidden 8 8 8 --data-dir {data}", "give fewer of them"),
    ("train", "autoencoder-kl --perceptual file --data-dir {data}", "or colour images of 16x16"),
    ("train", "autoencoder-kl --accumulate 2 --data-dir {data}", "--accumulate must be 1"),
    ("train", "vq-gan --kl-weight 1", "--kl-weight belongs to --bottleneck gaussian"),
    ("train", "tvae --states 9 --latent 3 --children 2 --data-dir {data}", "3 bits have 8 states"),
    ("train", "tvae --latent 3 --data-dir {data}", "take fewer children or more"),
    ("train", "infinite-vae --first-experts 21 --data-dir {data}", "at most --experts 20"),
    ("train", "stick-breaking --prior mixture --data-dir {data}", "is of real latents"),
    ("denoise", "nowhere.png", "nowhere.png: No such file or directory"),
    ("denoise", "{data}", "is no picture that Pillow reads"),
    ("denoise", "", "Missing from jaxvae denoise"),
    ("import", "nowhere", "nowhere has no config.json: diffusers writes it by save_pretrained"),
    ("import", "", "Missing from jaxvae import: PATH a folder with config.json"),
    ("export", ". out", "is no run folder"),
    ("train", "mvae --sample-rate 11025", "8000 samples a second, and --sample-rate 11025"),
    ("train", "mvae --dataset {data}/wav --file-names x", "must name {speaker} once"),
    ("train", "mvae --segment-frames 6", "--segment-frames 6 must be a multiple of 4"),
    ("train", "mvae --hop-length 300", "--hop-length 300 must be at most half of"),
    ("train", "mvae --stream", "--stream True is for images"),
    ("separate", ". x.wav", "is no run folder"),
    ("train", "single-cell --dataset digits", "digits holds no counts of cells: give an .h5ad"),
    ("train", "single-cell --dataset nothing.h5ad", "there is no nothing.h5ad"),
    ("train", "single-cell --batch-key lane", "no column 'lane' of cells; it has n_counts"),
    ("train", "single-cell --size-factor-key type", "--size-factor-key type holds words"),
    ("train", "single-cell --dispersion gene_batch", "name their column with --batch-key"),
    ("train", "single-cell --likelihood bernoulli", "--likelihood: no 'bernoulli'"),
    ("train", "single-cell --stream", "--stream True is for images"),
    ("annotate", ". cells", "is no run folder"),
    ("annotate", "", "Missing from jaxvae annotate"),
    ("separation", "--rows nothing", "no row 'nothing'"),
    ("train", "speech-vae --dataset {data}/wav", "holds no wav files"),
    ("train", "speech-vae --likelihood bernoulli", "needs uint8 pixels or values in [0, 1]"),
    ("speech", "--rows nothing", "no row 'nothing'"),
    ("evaluate", ".", "is no run folder"),
    ("sample", ".", "is no run folder"),
    ("evaluate", "", "Missing from jaxvae evaluate: PATH the run folder"),
    ("sample", ". --prior median", "invalid choice 'median'"),
    ("sample", ". --components 3", "--components is of --prior gaussian_mixture"),
    ("gradient_variance", "toys", "no problem 'toys'; there are toy, titsias_shi"),
    (
        "gradient_variance",
        "square --estimators disarm",
        "'disarm' does not serve the problem square",
    ),
    ("gradient_variance", "toy --num-draws 1", "--num-draws at least 2"),
    ("gradient_variance", "toy --json nowhere/out.json", "the folder does not exist"),
    ("gradient_variance", "toy --checkpoints 5", "toy is not trained"),
    ("gradient_variance", "toy --reference reinmax", "is biased, and cannot stand"),
    ("gradient_variance", "binary_vae --units 0", "must be at least 1"),
    (
        "gradient_variance",
        "titsias_shi --mode exact --estimators rloo",
        "at most 65536 states",
    ),
    (
        "scaling",
        "--global-batch 8 --devices 3",
        "--global-batch 8 does not divide over 3 devices",
    ),
    ("scaling", "--devices 0", "--devices must be counts of at least 1"),
    ("scaling", "--rounds -1", "--rounds must be at least 0; it was -1"),
    ("scaling", "--utilization 40", "above 0 and at most 1; it was 40"),
    ("scaling", "--latency nan", "--latency must be finite"),
    ("scaling", "--mappings", "--mappings needs one of pmap, shard_map, fsdp"),
    ("scaling", "--process-id 0", "belong to --distributed"),
    ("throughput", "--works gan", "no work that begins with gan"),
    ("throughput", "--peers keras", "no peer 'keras'"),
    ("throughput", "--rounds 0", "must be above 0"),
    ("throughput", "--together 0", "must be above 0"),
    ("throughput", "--precisions float16", "--precisions"),
    ("cells", "--rows nothing", "no row 'nothing'"),
    ("clusters", "--rows nothing", "no row 'nothing'"),
    ("codes", "penalties --rows nothing", "no row 'nothing'"),
    ("disentanglement", "--rows nothing", "no row 'nothing'"),
    ("evolution", "--table denoising", "needs --picture, a clean PNG"),
    ("evolution", "--json nowhere/out.json", "the folder does not exist"),
    ("exact", "--rows nothing", "no row 'nothing'"),
    ("growing", "--rows nothing", "no row 'nothing'"),
    ("sticks", "--rows nothing", "no row 'nothing'"),
    ("exact", "--json nowhere/out.json", "the folder does not exist"),
    ("likelihoods", "priors --rows nothing", "no row 'nothing'"),
    ("labels", "--rows nothing", "no row 'nothing'"),
    ("modalities", "--rows nothing", "no row 'nothing'"),
    ("train", "multimodal --views columns --data-dir {data}", "must be parts of a vector [D]"),
    (
        "train",
        "multimodal --views halves --stream --hidden-views 0.5 --data-dir {data}",
        "leave stream out",
    ),
    ("train", "multimodal --view-sizes 3", "--view-sizes belongs to --views columns"),
    ("samples", "--rows nothing", "no row 'nothing'"),
    ("zero_shot", "--rows nothing", "no row 'nothing'"),
    ("zero_shot", "--dataset digits --data-dir {data}", "has no attributes of its classes"),
    ("train", "zero-vae-gan --dataset digits --data-dir {data}", "whose classes have attributes"),
    ("train", "zero-vae-gan --likelihood bernoulli", "--likelihood: no 'bernoulli'"),
    ("stacked", "--rows nothing", "no row 'nothing'"),
    ("rate_distortion", "--seeds 0", "--seeds must be at least 1"),
    (
        "quadrants",
        "--dataset digits --data-dir {data}",
        "--moments 20 needs a validation split, and digits has none",
    ),
]


@pytest.mark.parametrize(
    "command, arguments, words", MISTAKES, ids=[" ".join(row[:2]) for row in MISTAKES]
)
def test_a_mistake_is_answered_in_a_sentence(
    command: str,
    arguments: str,
    words: str,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = [part.format(data=data_dir) for part in arguments.split()]
    refused(COMMANDS[command], typed, words, monkeypatch, capsys)
    assert not list(tmp_path.iterdir())  # nothing was written on the way
