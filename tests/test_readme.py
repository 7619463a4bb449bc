"""The README's examples run as they stand, but for fewer steps and samples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_the_examples_run_and_are_short(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    example, own = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(example.splitlines()) < 60 and len(own.splitlines()) < 13
    shorter = {
        'load("digits")': f'load("digits", {str(data_dir)!r})',
        "num_steps=3000": "num_steps=20",
        "report_every=500": "report_every=10",
        "num_samples=1000": "num_samples=20",
    }
    for long, short in shorter.items():
        assert long in example
        example = example.replace(long, short)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("10 ")
    assert "Summary(elbo=" in printed
    assert "Likelihoods(log_likelihood=" in printed
    assert "num_steps=1000" in own
    exec(compile(own.replace("num_steps=1000", "num_steps=20"), "README.md", "exec"), names)
    assert int(names["state"].step) == 20
