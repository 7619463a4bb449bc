"""The site: its tables are whole, its code runs, and it builds without a warning."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BOOK = ROOT / "notebooks"
sys.path.insert(0, str(BOOK))

import docstrings  # noqa: E402
import reference  # noqa: E402
import tables  # noqa: E402

from jaxvae import bounds, divergences, expectations, families, settings  # noqa: E402
from jaxvae.runs.commands import evaluate, sample  # noqa: E402

RECIPES = sorted(path for path in (BOOK / "do").glob("*.md") if path.stem != "index")
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_every_member_has_a_sentence_a_source_and_a_test() -> None:
    assert tables.lacks() == []


LACKING: list[tuple[Any, str]] = [
    (lambda q: q, "estimators: new has no docstring"),
    (expectations.enumeration.estimate, "names no paper"),
    (expectations.rloo.estimate, "has no row in test_exactness.py"),
]


@pytest.mark.parametrize("member, words", LACKING, ids=["docstring", "source", "test"])
def test_what_a_member_lacks_stops_the_build(
    member: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = tables.KINDS["estimators"]._replace(
        table={"new": member}, tests=("test_exactness.py",), every="", facts=lambda name, m: {}
    )
    monkeypatch.setitem(tables.KINDS, "estimators", kind)
    with pytest.raises(ValueError, match=words):
        reference.write()


def test_a_new_member_is_in_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(divergences.DIVERGENCES, "mine", divergences.energy_distance)
    pages = dict(reference._kind_pages())
    assert "| `mine` | Energy distance" in pages["divergences.md"]


@pytest.mark.parametrize(
    "key, table", [("estimators", expectations.ESTIMATORS), ("bounds", bounds.BOUNDS)]
)
def test_a_table_names_every_member(key: str, table: Any) -> None:
    page = dict(reference._kind_pages())[f"{key}.md"]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [*table]


def test_rows_of_tables_have_as_many_cells_as_their_heads() -> None:
    """A bar in p(x|z) that is not escaped ends a cell."""
    pages = [*reference._kind_pages(), ("members", reference.members_page())]
    for page, text in [*pages, ("families", reference.families_page())]:
        for rows in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            cells = {len(re.split(r"(?<!\\)\|", row)) for row in rows.splitlines()}
            assert len(cells) == 1, page


def test_flags_that_the_tables_name_exist() -> None:
    known = {*inspect.signature(sample).parameters, *inspect.signature(evaluate).parameters}
    for family in families.FAMILIES.values():
        known |= settings.all_names(family.Config())
    said = " ".join(kind.text for kind in tables.KINDS.values()).replace("--NAME", "")
    named = set(re.findall(r"--([a-z][a-z-]*)", said))
    assert {name.replace("-", "_") for name in named} <= known


def test_the_page_of_families_names_every_preset() -> None:
    named = re.findall(r"^\| `([\w-]+)` \|", reference.families_page(), re.MULTILINE)
    assert named == [*families.presets()]


CITED = [
    ("Kingma & Welling 2013, arXiv:1312.6114, eq. 7.", "Kingma & Welling 2013", "1312.6114"),
    ("as in van den Berg et al. 2018, arXiv:1803.05649.", "van den Berg et al. 2018", "1803.05649"),
    ("(De Cao & Aziz 2020, arXiv:2006.04437)", "De Cao & Aziz 2020", "2006.04437"),
    ("Székely & Rizzo 2013, doi:10.1016/j.jspi.2013.03.018.", "Rizzo 2013", "10.1016/j.jspi"),
]


@pytest.mark.parametrize("text, who, where", CITED)
def test_papers_are_read_from_docstrings(text: str, who: str, where: str) -> None:
    (paper,) = tables.papers(text)
    assert who in paper and where in paper and not paper.endswith(".)")


def test_a_text_without_a_year_cites_nothing() -> None:
    assert tables.papers("REINFORCE with a Gaussian of 2 latents, as SciPy's.") == []


def test_docstrings_mean_in_restructured_text_what_they_say() -> None:
    lines = ["|z|^2 is ``a * b`` of z_.", "", "    p(x) = |z|", "", "Args:", "  x_: *one*."]
    assert docstrings.restructured(lines) == [
        r"\|z\|^2 is ``a * b`` of z\_.",
        *("", "::", "", "    p(x) = |z|", ""),
        "Args:",
        r"  x\_: \*one\*.",
    ]


def test_fields_have_the_comments_beside_them() -> None:
    fields = docstrings.fields_of(families.Data)
    assert fields["shape"] == "the shape of one raw example"
    assert fields["examples"].startswith("count -> so many raw training examples")
    assert docstrings.fields_of(families.Config)["steps"] == "Training steps."


def test_licences_of_all_dependencies_are_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [line for lines in (project["dependencies"], *extras.values()) for line in lines]
    names = {re.match(r"[\w.-]+", line)[0] for line in needed} - {"jaxvae"}  # type: ignore[index]
    page = (BOOK / "look_up" / "licences.md").read_text()
    assert names <= set(re.findall(r"`([\w.-]+)`", page))


# Recipes


def blocks(page: Path) -> list[tuple[str, str]]:
    """The blocks of code of a page, each with its language."""
    return FENCE.findall(page.read_text())


def script(page: Path) -> str:
    """A page's blocks as one Python script; blocks of the shell run in their place."""
    lines = ["import subprocess"]
    for language, code in blocks(page):
        if language == "python":
            lines.append(code)
        elif language == "bash":
            lines.append(f"subprocess.run(['bash', '-euc', {code!r}], check=True)")
    return "\n".join(lines)


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 12


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_a_recipe_is_whole(page: Path) -> None:
    """Every block names its language, Python can be read, and so can commands of training."""
    for language, code in blocks(page):
        assert language in ("python", "bash", "sh", "yaml", "text", "{toctree}"), language
        if language == "python":
            compile(code, page.name, "exec")
        if language in ("bash", "sh"):
            subprocess.run(["bash", "-n"], input=code, text=True, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_a_recipe_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, from its first block to its last."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # most of the time is compilation
    (tmp_path / "recipe.py").write_text(script(page))
    done = subprocess.run(
        [sys.executable, "recipe.py"], cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", str(BOOK), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "rloo" in (tmp_path / "look_up" / "generated" / "estimators.html").read_text()
