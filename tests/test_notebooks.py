"""Every notebook runs from its first cell to its last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

BOOK = Path(__file__).parent.parent / "notebooks"
WITH_OUTPUTS = sorted(BOOK.glob("*.ipynb"))
WRITTEN = sorted(path for path in (BOOK / "learn").glob("*.md") if path.stem != "index")
CELL = re.compile(r"^```\{code-cell\} ipython3\n((?::.*\n)*)(.*?)^```$", re.DOTALL | re.MULTILINE)


def read(path: Path) -> Any:
    """A notebook of Jupyter, or one that is written as Markdown with cells of code."""
    if path.suffix == ".ipynb":
        return nbformat.read(path, as_version=4)
    cells = [nbformat.v4.new_code_cell(code) for _, code in CELL.findall(path.read_text())]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", WITH_OUTPUTS + WRITTEN, ids=lambda path: path.stem + path.suffix)
def test_notebook_runs(path: Path) -> None:
    NotebookClient(read(path), timeout=900, kernel_name="python3").execute()


def test_there_is_a_notebook() -> None:
    assert WITH_OUTPUTS and WRITTEN


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_a_page_of_learn_has_its_form(path: Path) -> None:
    """Sphinx reads it as a notebook, and the test above runs every cell."""
    text = path.read_text()
    assert text.startswith("---\nfile_format: mystnb\nkernelspec:\n")
    assert len(re.findall(r"^# ", CELL.sub("", text), re.MULTILINE)) == 1  # its title
    cells = read(path).cells
    assert cells and len(cells) == text.count("```{code-cell}")
    for cell in cells:
        compile(cell.source, path.name, "exec")


@pytest.mark.parametrize("path", WITH_OUTPUTS, ids=lambda path: path.stem)
def test_outputs_are_whole_and_name_no_machine(path: Path) -> None:
    """Cells were run in their order, without an error or a warning, and no folder is named."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(o.output_type != "error" and o.get("name") != "stderr" for o in outputs)
    text = "".join(o.get("text", "") for o in outputs)
    assert not re.search(r"/(home|root|tmp|usr|Users)\b", text)
