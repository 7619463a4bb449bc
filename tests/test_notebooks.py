"""Every page of Learn, a notebook in Markdown, runs from its first cell to its last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

LEARN = Path(__file__).parent.parent / "notebooks" / "learn"
PAGES = sorted(path for path in LEARN.glob("*.md") if path.stem != "index")
CELL = re.compile(r"^```\{code-cell\} ipython3\n((?::.*\n)*)(.*?)^```$", re.DOTALL | re.MULTILINE)


def read(path: Path) -> Any:
    """The notebook of a page, with its cells of code alone."""
    cells = [nbformat.v4.new_code_cell(code) for _, code in CELL.findall(path.read_text())]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_runs(path: Path) -> None:
    NotebookClient(read(path), timeout=900, kernel_name="python3").execute()


def test_there_is_a_page() -> None:
    assert PAGES


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_has_its_form(path: Path) -> None:
    """Sphinx reads it as a notebook, and the test above runs every cell."""
    text = path.read_text()
    assert text.startswith("---\nfile_format: mystnb\nkernelspec:\n")
    assert len(re.findall(r"^# ", CELL.sub("", text), re.MULTILINE)) == 1  # its title
    cells = read(path).cells
    assert cells and len(cells) == text.count("```{code-cell}")
    for cell in cells:
        compile(cell.source, path.name, "exec")
