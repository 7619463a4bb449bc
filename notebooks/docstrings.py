"""Docstrings, which are plain text with ``code``, as reStructuredText that says the same.

A formula such as |z|^2 or a * b means something else in reStructuredText. So its special characters
are escaped outside of code, and an indented formula becomes a literal block. The comments beside
the fields of a record follow as a list.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any

SECTIONS = ("Args:", "Returns:", "Raises:", "Attributes:", "Example:", "Examples:")


def restructured(lines: list[str]) -> list[str]:
    """The lines of a docstring, escaped; formulas are literal, and sections stay as they are."""
    written: list[str] = []
    section = literal = prompt = code = False
    for line in lines:
        indented, blank = line.startswith("  "), not line.strip()
        if line.strip() in SECTIONS:
            section = True
        elif not blank and not indented:
            section = False
        prompt = not blank and (prompt or line.lstrip().startswith(">>>"))
        starts = indented and not section and not prompt and _ends_paragraph(written)
        if starts and not literal:
            written += ["::", ""]
        literal = (literal or starts) and (blank or indented)
        code = code and not blank
        if literal or prompt:
            written.append(line)
        else:
            written.append(escaped(line, code))
            code ^= line.count("``") % 2 == 1  # a piece of code that goes on in the next line
    return written


def _ends_paragraph(written: list[str]) -> bool:
    return not written or not written[-1].strip()


def escaped(line: str, code: bool = False) -> str:
    """One line, whose special characters mean themselves outside of ``code``.

    ``code`` says whether the line begins inside of a piece of code.
    """
    head = re.match(r"\s*(?:\* )?", line)[0]  # type: ignore[index]
    parts = line[len(head) :].split("``")
    return head + "``".join(p if i % 2 != code else _escaped_text(p) for i, p in enumerate(parts))


def _escaped_text(text: str) -> str:
    text = re.sub(r"([\\*|`])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)  # z_, which would be a link


def fields_of(kind: type) -> dict[str, str]:
    """What the source says of each field of a record: a string below it, or comments beside it."""
    if not inspect.isclass(kind) or not getattr(kind, "__annotations__", None):
        return {}
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):
        return {}
    (definition,) = ast.parse(source).body
    comments = dict(_comments(source))
    texts = {}
    followers = [*definition.body[1:], None]  # type: ignore[attr-defined]
    for field, after in zip(definition.body, followers, strict=True):  # type: ignore[attr-defined]
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            texts[field.target.id] = _string(after) or _beside(field, comments)
    return texts


def _comments(source: str) -> Iterator[tuple[int, tuple[str, bool]]]:
    """Each comment by its line, and whether it stands alone."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("# type:"):
            text = token.string.split("# type:")[0].lstrip("# ").strip()
            yield token.start[0], (text, not token.line[: token.start[1]].strip())


def _string(node: Any) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return " ".join(str(node.value.value).split())
    return ""


def _beside(field: ast.AnnAssign, comments: dict[int, tuple[str, bool]]) -> str:
    """The comment after a field, else the comments on the lines before it."""
    if field.end_lineno in comments:
        return comments[field.end_lineno][0]
    before, line = [], field.lineno - 1
    while comments.get(line, ("", False))[1]:
        before.append(comments[line][0])
        line -= 1
    return " ".join(reversed(before))


def process(app: Any, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Sphinx calls this with each docstring, before napoleon reads its ``Args:``."""
    lines[:] = restructured(lines)
    if what in ("class", "exception"):
        fields = {field: text for field, text in fields_of(member).items() if text}
        if fields:
            lines += [
                "",
                *(f"* ``{field}``: {escaped(text)}" for field, text in fields.items()),
                "",
            ]
