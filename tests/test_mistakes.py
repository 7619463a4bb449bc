"""What a user mistypes is answered in one sentence with exit code 2: one table for all commands."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from experiments import gradient_variance, scaling, throughput
from experiments.papers import (
    clusters,
    codes,
    disentanglement,
    exact,
    likelihoods,
    quadrants,
    rate_distortion,
    samples,
    stacked,
)
from harness import refused

from jaxvae.command_line import run_function, run_script

COMMANDS: dict[str, Callable[[], Any]] = {
    **{name: partial(run_script, name) for name in ("train", "evaluate", "sample")},
    "gradient_variance": partial(run_function, gradient_variance.main),
    "scaling": partial(run_function, scaling.scale),
    "throughput": partial(run_function, throughput.main),
    "clusters": partial(run_function, clusters.main),
    "codes": partial(run_function, codes.main),
    "disentanglement": partial(run_function, disentanglement.main),
    "exact": partial(run_function, exact.main),
    "likelihoods": partial(run_function, likelihoods.main),
    "quadrants": partial(run_function, quadrants.main),
    "rate_distortion": partial(run_function, rate_distortion.main),
    "samples": partial(run_function, samples.main),
    "stacked": partial(run_function, stacked.main),
}

# (command, its arguments, what the sentence says); {data} is a folder in which the digits are.
MISTAKES = [
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
    ("scaling", "--mappings", "--mappings needs one of pmap, shard_map"),
    ("scaling", "--process-id 0", "belong to --distributed"),
    ("throughput", "--works gan", "no work that begins with gan"),
    ("throughput", "--peers keras", "no peer 'keras'"),
    ("throughput", "--rounds 0", "must be above 0"),
    ("throughput", "--together 0", "must be above 0"),
    ("throughput", "--precisions float16", "--precisions"),
    ("clusters", "--rows nothing", "no row 'nothing'"),
    ("codes", "penalties --rows nothing", "no row 'nothing'"),
    ("disentanglement", "--rows nothing", "no row 'nothing'"),
    ("exact", "--rows nothing", "no row 'nothing'"),
    ("exact", "--json nowhere/out.json", "the folder does not exist"),
    ("likelihoods", "priors --rows nothing", "no row 'nothing'"),
    ("samples", "--rows nothing", "no row 'nothing'"),
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
