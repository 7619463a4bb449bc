"""Writes the pages of the reference: tables of members, and every public name of the library.

They go to ``look_up/generated``, which is not kept in the repository. ``conf.py`` calls ``write``
at each build, so that a page cannot differ from the code.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import tables
from docstrings import escaped

import jaxvae
from jaxvae import expectations, families

HERE = Path(__file__).parent
ROOT = HERE.parent
GENERATED = HERE / "look_up" / "generated"
ROOMS = {  # the modules of jaxvae, as CONTRIBUTING.md has them
    "The front door": ("runs", "command_line", "estimator", "settings", "ranges"),
    "Mathematics": (
        *("contracts", "distributions", "divergences", "expectations", "bounds", "posteriors"),
        *("priors", "likelihoods", "flows", "quantizers", "codebooks", "code_priors"),
        *("kl_costs", "schedules"),
    ),
    "Networks": ("networks", "kernels", "perceptual"),
    "Models and families": ("models", "families"),
    "Data": ("datasets", "sounds"),
    "Training": ("training", "checkpoints", "checksums", "processes", "partitions", "stopping"),
    "Evaluation": ("evaluation", "measurements", "fitted", "figures", "pictures", "costs"),
    "Uses": ("uses", "separation", "interchange", "tensors"),
    "Within": ("handlers", "records"),
}
PAGES = ("RESULTS", "SPEED", "SCALE")  # of ``experiments``


def write() -> None:
    """Writes all pages. Raises ValueError if a member or a module is left out or undescribed."""
    missing = [*tables.lacks(), *_without_a_room()]
    if missing:
        raise ValueError("the reference is not whole:\n  " + "\n  ".join(missing))
    pages = {"members.md": members_page(), "families.md": families_page()}
    pages |= dict(_kind_pages()) | dict(_api_pages()) | {"api.md": _api_page()}
    pages |= {f"{page}.md": report_page(page) for page in PAGES}
    _replace(pages)


def _replace(pages: dict[str, str]) -> None:
    """Writes what has changed, so that Sphinx reads no other page again; removes other pages."""
    GENERATED.mkdir(exist_ok=True)
    for file in GENERATED.iterdir():
        if file.name not in pages:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    for name, text in pages.items():
        file = GENERATED / name
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def _without_a_room() -> list[str]:
    roomy = {name for names in ROOMS.values() for name in names}
    modules = {m.name for m in pkgutil.iter_modules(jaxvae.__path__)} - {"__main__"}
    return [f"reference: ROOMS lacks jaxvae.{name}" for name in sorted(modules ^ roomy)]


# Tables


def cell(text: str) -> str:
    """A docstring's text as a cell of a Markdown table."""
    parts = re.split(r"``(.+?)``", text)
    plain = lambda part: re.sub(r"([\\|*_<>$\[\]{}~^])", r"\\\1", part)
    code = lambda part: "`" + part.replace("|", r"\|") + "`"
    return "".join(code(part) if i % 2 else plain(part) for i, part in enumerate(parts))


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _kind_pages() -> Iterator[tuple[str, str]]:
    for key, kind in tables.KINDS.items():
        rows = tables.rows(kind)
        columns = list(rows[0].facts)
        head = ["name", "what it is", *columns, "source"]
        lines = [
            [f"`{r.name}`", cell(r.sentence), *(r.facts[c] for c in columns), r.source]
            for r in rows
        ]
        used = [0, 1, *(i for i in range(2, len(head)) if any(line[i] for line in lines))]
        text = table([head[i] for i in used], [[line[i] for i in used] for line in lines])
        yield f"{key}.md", f"# {kind.title}\n\n{kind.text}\n\n{text}"


def members_page() -> str:
    """The page that lists the tables."""
    counts = [
        [f"[{cell(kind.title)}]({key}.md)", str(len(kind.table))]
        for key, kind in tables.KINDS.items()
    ]
    return (
        "# Members\n\nEach table of the library is a page, made from the code when this site is "
        "built. A member of your own that you add to a table is chosen by the same flag.\n\n"
        f"{table(['table', 'members'], counts)}\n"
        "```{toctree}\n:hidden:\n\n" + "\n".join(tables.KINDS) + "\n```\n"
    )


def families_page() -> str:
    """Every family with its presets."""
    parts = [
        "# Families and presets\n\n`jaxvae train PRESET` trains one. Each family has one "
        "configuration, and a preset is a configuration with a few other values. "
        f"There are {len(families.presets())} presets of {len(families.FAMILIES)} families.\n"
    ]
    for name, family in families.FAMILIES.items():
        page = family.Config.__module__
        papers = tables.papers(inspect.getdoc(family.Config) or "") or tables.papers(
            inspect.getdoc(inspect.getmodule(family.Config)) or ""
        )
        text = cell(tables.sentence(inspect.getdoc(family.Config) or ""))
        lines = [[f"`{preset}`", cell(text)] for preset, (text, _) in family.presets.items()]
        parts.append(
            f"## {name}\n\n{text} {'; '.join(papers)}\n\nIts settings: "
            f"[`{page}`]({page}.md).\n\n{table(['preset', 'what it is'], lines)}"
        )
    return "\n".join(parts)


# Reports


def report_page(name: str) -> str:
    """A page of ``experiments``, whose links to files outside of the site become code."""
    text = (ROOT / "experiments" / f"{name}.md").read_text()

    def inside(match: re.Match) -> str:
        label, target = " ".join(match[1].split()), match[2]
        if target.startswith(("http", "#")) or Path(target).stem in PAGES:
            return f"[{label}]({target})"
        return label if "`" in label else f"`{label}`"

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", inside, text)


# Names


def _api_page() -> str:
    parts = ["# Names\n\nEvery public name, by the module that it is in.\n"]
    for title, names in ROOMS.items():
        pages = "\n".join(f"{name} <jaxvae.{name}>" for name in names)
        lines = [
            [
                f"[`jaxvae.{name}`](jaxvae.{name}.md)",
                cell(tables.sentence(inspect.getdoc(module(f"jaxvae.{name}")) or "")),
            ]
            for name in names
        ]
        parts.append(
            f"## {title}\n\n{table(['module', 'what it holds'], lines)}\n"
            f"```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
        )
    return "\n".join(parts)


def module(name: str) -> ModuleType:
    """A module by its name."""
    return importlib.import_module(name)


def _api_pages() -> Iterator[tuple[str, str]]:
    shown: dict[int, str] = {}  # where an object is described, by its identity
    for names in ROOMS.values():
        for name in names:
            yield from _module_pages(f"jaxvae.{name}", shown)


def _module_pages(name: str, shown: dict[int, str]) -> Iterator[tuple[str, str]]:
    """The page of a module, and the pages of the modules below it."""
    room = module(name)
    below = list(_modules_below(room))
    described = "\n".join(filter(None, (_entry(name, each, shown) for each in public(room))))
    text = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n\n{described}\n```\n"
    if below:
        links = "\n".join(f"{each.removeprefix('jaxvae.')} <{each}>" for each in below)
        text += f"\n```{{toctree}}\n\n{links}\n```\n"
    yield f"{name}.md", text
    for each in below:
        yield from _module_pages(each, shown)


def _modules_below(room: ModuleType) -> Iterator[str]:
    """The modules of a package that it names, or all of them if it names nothing."""
    if not hasattr(room, "__path__"):
        return
    named = getattr(room, "__all__", None)
    whole = room.__name__ in ("jaxvae.families", "jaxvae.runs") or named is None
    for each in pkgutil.iter_modules(room.__path__):
        if whole or (each.name in named and inspect.ismodule(getattr(room, each.name))):
            yield f"{room.__name__}.{each.name}"


def public(room: ModuleType) -> list[str]:
    """The public names of a module: what it lists, or the functions and classes written in it."""
    if hasattr(room, "__all__"):
        return [name for name in room.__all__ if not inspect.ismodule(getattr(room, name))]
    return [
        name
        for name, member in vars(room).items()
        if not name.startswith("_") and not _is_data(member) and _module_of(member) == room.__name__
    ]


def _module_of(member: Any) -> str:
    """The module that a class or a function was written in, or the function of an estimator."""
    return getattr(getattr(member, "estimate", member), "__module__", "")


def _entry(room: str, name: str, shown: dict[int, str]) -> str:
    """A name as autodoc describes it, or where it is described already."""
    member, place = getattr(module(room), name), f"{room}.{name}"
    if id(member) in shown and not _is_data(member):
        return f"``{name}`` is :py:obj:`{shown[id(member)]}`.\n"
    if _is_data(member):
        return f".. py:data:: {place}\n\n   {_comment(room, name)}\n"
    shown[id(member)] = place
    if inspect.isclass(member):
        fields = ", ".join(_fields(member))
        kept = f"   :exclude-members: {fields}\n" if fields else ""
        return f".. autoclass:: {place}\n   :members:\n{kept}"
    given = _arguments(member) if isinstance(member, expectations.Estimator) else ""
    return f".. autofunction:: {place}{given}\n"


def _arguments(estimator: expectations.Estimator) -> str:
    """How an estimator or a bound is called, with its settings."""
    named = ["prior"] if estimator.takes_prior else []
    named += [f"{name}={p.default!r}" for name, p in estimator.settings.items()]
    f = "log_joint" if estimator.estimates else "f"
    call = [
        "key",
        "q",
        f,
        f"num_samples={estimator.min_samples}",
        *(["*"] if named else []),
        *named,
    ]
    return f"({', '.join(call)})"


def _fields(kind: type) -> list[str]:
    return [*getattr(kind, "_fields", ()), *getattr(kind, "__dataclass_fields__", ())]


def _is_data(member: Any) -> bool:
    described = inspect.isclass(member) or inspect.isfunction(member)
    return not described and not isinstance(member, expectations.Estimator)


def _comment(room: str, name: str) -> str:
    """What the code says beside the line that makes a constant or a type."""
    for text in _sources(room):
        match = re.search(
            rf"((?:^# .*\n)*)^{name}\b(?:: [^=\n]+)? = (.*?)(?:  # (.*))?$", text, re.M
        )
        if match:
            before = " ".join(line.lstrip("# ") for line in match[1].splitlines())
            said = match[3] or before
            value = match[2] if match[2][-1] not in "({[" else ""
            code = f"``{value}``" if value and "``" not in value else ""
            return ". ".join(part for part in (code, escaped(said)) if part)
    return ""


def _sources(room: str) -> Iterator[str]:
    """The source of a module, then the sources of what is beside it."""
    place = module(room)
    yield inspect.getsource(place)
    for each in pkgutil.iter_modules(getattr(place, "__path__", [])):
        yield inspect.getsource(module(f"{room}.{each.name}"))
