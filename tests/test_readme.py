"""What the pages say: README's examples run, and its names and the tests that pages cite exist."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from experiments import picture
from jaxvae import bounds, command_line, expectations, families, settings
from jaxvae.runs import Job, comparing, editing, scoring
from jaxvae.runs.commands import evaluate, sample

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "experiments").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    """The README's blocks of code in a language."""
    return [code for kind, code in FENCE.findall(README.read_text()) if kind == language]


def quoted(page: Path) -> set[str]:
    """All that a page has in backticks, outside of its blocks of code."""
    return set(re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text())))


def shortened(code: str, shorter: dict[str, str]) -> str:
    """Code with fewer steps; what is replaced must be there."""
    for long, short in shorter.items():
        assert long in code
        code = code.replace(long, short)
    return code


FEW = "steps=2, hidden=(8,), test_samples=2, test_examples=8"


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [FEW, pytest.param("steps=5000", marks=pytest.mark.optimized)],
    ids=["small", "full"],
)
def test_the_front_door(
    given: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first example, and the picture of its run; at full size the number of RESULTS.md."""
    monkeypatch.chdir(tmp_path)
    called = f'train("digits", {given}, data_dir={str(data_dir)!r}, progress=False)'
    names: dict = {}
    code = shortened(blocks("python")[0], {'train("digits")': called})
    exec(compile(code, "README.md", "exec"), names)
    model = names["model"]
    assert model.sample(names["jax"].random.key(0), 4).shape == (4, 8, 8, 1)
    if given != FEW:
        row = r"`digits` \| 64-200-200-10 \| \| log-likelihood, nats \| −([\d.]+) \| ([\d.]+)"
        told = re.search(row, (ROOT / "experiments" / "RESULTS.md").read_text())
        assert told
        value, standard_error = map(float, told.groups())
        assert abs(model.result["test_log_likelihood"] + value) < standard_error
    picture.picture(Path("runs/digits-digits-0"), Path("digits.png"))
    check_picture(Path("digits.png"))


def test_the_picture_is_small() -> None:
    check_picture(ROOT / "experiments" / "digits.png")


def check_picture(file: Path) -> None:
    assert file.stat().st_size < 150_000
    with Image.open(file) as image:
        assert 900 <= image.width <= 1100 and 300 <= image.height <= 450


def test_the_parts_by_hand(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second example."""
    code = shortened(
        blocks("python")[1],
        {
            'load("digits"': f'load("digits", {str(data_dir)!r}',
            "(200, 200)": "(8,)",
            "num_steps=3000": "num_steps=20",
            "num_samples=1000": "num_samples=20",
        },
    )
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("Summary(elbo=")
    assert "Likelihoods(log_likelihood=" in printed


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.parametrize("kind", ["preset", "estimator", "bound"])
def test_every_member_is_named(kind: str) -> None:
    tables = {
        "preset": families.presets(),
        "estimator": expectations.ESTIMATORS,
        "bound": bounds.BOUNDS,
    }
    missing = set(tables[kind]) - quoted(README)
    assert not missing
    counted = re.search(rf"(\d+) (?:gradient )?{kind}s", README.read_text())
    assert counted and int(counted[1]) == len(tables[kind])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_cells_of_tables_are_short(page: Path) -> None:
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    cells = [cell.strip() for row in rows for cell in re.split(r"(?<!\\)\|", row)]
    assert not [cell for cell in cells if len(cell) > 80]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_cites_exist(page: Path) -> None:
    """Files, tests of a file, and tests that stand alone."""
    texts = {file.name: file.read_text() for file in (ROOT / "tests").glob("test_*.py")}
    functions = {name for text in texts.values() for name in re.findall(r"def (test_\w+)", text)}
    cited = re.findall(r"\b(test_\w+\.py)?(?:::)?(test_\w+\b(?!\.py))?", page.read_text())
    for file, function in cited:
        assert not file or file in texts, file
        there = re.findall(r"def (test_\w+)", texts[file]) if file else functions
        assert not function or function in there, (file, function)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#\s]+)", text.replace("\n", "")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def commands(page: Path) -> list[list[str]]:
    """The arguments of every ``jaxvae train`` that a page shows, with values for its words."""
    words = {"DIR": "data", "WORKDIR": "run", "RUN": "run", "S": "0", "SEED": "0"}
    text = page.read_text().replace("\\\n", "")
    shown = re.findall(r"(?:jaxvae train|experiments/train\.py) ([^`\n]*)", text)
    lines = [shlex.split(line, comments=True) for line in shown if not re.search(r'[\["]', line)]
    return [[words.get(word, word) for word in line] for line in lines if line[:1] != ["PRESET"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_can_be_read(page: Path) -> None:
    for arguments in commands(page):
        if "--help" not in arguments:
            command_line.parse(arguments)


def test_flags_that_the_readme_names_exist() -> None:
    known = set()
    for family in families.FAMILIES.values():
        known |= settings.all_names(family.Config())
    for kind in (Job, command_line.Folders):
        known |= {field.name for field in dataclasses.fields(kind)}
    for function in (evaluate, sample, scoring.score, editing.edit, comparing.compare):
        known |= inspect.signature(function).parameters.keys()
    known |= {"help", "estimators", "mine"}  # of all, of gradient_variance.py, of the example
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]*)", README.read_text()))
    assert {name.replace("-", "_") for name in named} <= known
