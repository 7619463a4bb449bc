"""Configurations as data: functions that are chosen by name, with their keyword settings.

Parameters without a default, such as ``latent``, are given when a model is built. Parameters with a
default are settings. The flags of the command line, the help, the JSON of a run and the Python call
all come from the function's signature.

    >>> Shape = Choice({"circle": lambda size, thickness=1.0: (size, thickness)})
    >>> chosen = Shape("circle", thickness=2.0)
    >>> chosen(size=3)
    (3, 2.0)
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from jaxvae.ranges import Range

C = TypeVar("C")


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """The functions that a field can hold, by name.

    The table is read at every use, so an entry that a user adds to ``posteriors.CONTINUOUS`` can be
    chosen at once. ``where`` says which entries can be chosen. ``function`` makes a function of an
    entry that is something else.
    """

    table: Mapping[str, Any]
    where: Callable[[Any], bool] = lambda entry: True
    function: Callable[[Any], Callable] = lambda entry: entry

    def __call__(self, name: str, **settings: Any) -> Chosen:
        """A member by its name. Raises ValueError for an unknown name or setting."""
        return Chosen(self, name, tuple(settings.items()))

    def members(self) -> dict[str, Callable]:
        """The functions by name."""
        return {name: self.function(x) for name, x in self.table.items() if self.where(x)}


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """A member of a choice, with values for some of its settings.

    The other settings have their defaults.
    """

    choice: Choice
    name: str
    given: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in self.choice.members():
            raise UnknownMemberError(self.choice, self.name)
        known = self.parameters
        for name, value in self.given:
            if name not in known:
                has = ", ".join(known) or "no settings"
                raise ValueError(f"{self.name} has no {name}; it has {has}")
            check_range(name, known[name].annotation, value)

    @property
    def function(self) -> Callable:
        """The chosen function."""
        return self.choice.members()[self.name]

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The settings: the function's parameters that have a default."""
        return parameters_of(self.function)

    @property
    def required(self) -> list[str]:
        """The parameters without a default, which are given when a model is built."""
        return [name for name in _signature(self.function) if name not in self.parameters]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings with their values."""
        defaults = {name: parameter.default for name, parameter in self.parameters.items()}
        return defaults | dict(self.given)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in (settings := self.settings):
            return settings[name]
        raise AttributeError(f"{self.name} has no setting {name!r}")

    def __call__(self, **given: Any) -> Any:
        """Calls the function with its settings, and with what it requires of ``given``."""
        asked = {name: given[name] for name in self.required if name in given}
        return self.function(**asked, **self.settings)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Chosen):
            return NotImplemented
        return (self.name, self.settings) == (other.name, other.settings)

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.settings)))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.given)})"


@functools.lru_cache(maxsize=512)
def _signature(function: Callable) -> dict[str, inspect.Parameter]:
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # annotations that only a type checker can see
        signature = inspect.signature(function)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in signature.parameters.items() if p.kind in kinds}


def parameters_of(function: Callable) -> dict[str, inspect.Parameter]:
    """The parameters of a function that have a default."""
    empty = inspect.Parameter.empty
    return {name: p for name, p in _signature(function).items() if p.default is not empty}


def check_range(name: str, annotation: Any, value: Any) -> None:
    """Raises ValueError if a value is outside the range that its annotation states."""
    for part in typing.get_args(annotation):
        if isinstance(part, Range) and value is not None:
            part.check(name, value)
        elif typing.get_origin(part) is typing.Annotated:
            check_range(name, part, value)


# A configuration is a frozen dataclass. Some of its fields hold members of choices, whose settings
# may be members of choices again. The names in one configuration are unique.


@dataclasses.dataclass(frozen=True)
class Setting:
    """One name that can be set in a configuration."""

    value: Any
    annotation: Any
    help: str


def fields_of(node: Any) -> dict[str, Setting]:
    """The settings of a configuration or a member, without the settings of inner members."""
    if isinstance(node, Chosen):
        texts = argument_texts(node.function)
        values = node.settings
        return {
            name: Setting(values[name], parameter.annotation, texts.get(name, ""))
            for name, parameter in node.parameters.items()
        }
    hints = typing.get_type_hints(type(node), include_extras=True)
    texts = field_texts(type(node))
    return {
        field.name: Setting(getattr(node, field.name), hints[field.name], texts.get(field.name, ""))
        for field in dataclasses.fields(node)
    }


def settings_of(node: Any) -> Iterator[tuple[str, Setting]]:
    """Every name that can be set in a configuration, from the outside in."""
    for name, setting in fields_of(node).items():
        yield name, setting
        if isinstance(setting.value, Chosen):
            yield from settings_of(setting.value)


class UnknownSettingError(ValueError):
    """A name that cannot be set in a configuration."""

    def __init__(self, config: Any, name: str):
        super().__init__(unknown(config, name))
        self.config, self.name = config, name


class UnknownMemberError(ValueError):
    """A name that no member of a choice has."""

    def __init__(self, choice: Choice, name: str, field: str = ""):
        members = choice.members()
        near = difflib.get_close_matches(name, members, 1)
        hint = f". Did you mean {near[0]}?" if near else ""
        start = f"{field}: " if field else ""
        super().__init__(f"{start}no {name!r}; there are {', '.join(members)}{hint}")
        self.choice, self.name, self.field = choice, name, field


def changed(config: C, **named: Any) -> C:
    """The configuration with other values, at any depth.

    A member is chosen by its name, or given as ``Choice(...)`` makes it. If it was chosen before,
    it keeps its values. Raises ValueError, which says where an unknown name belongs.

    >>> from jaxvae import families
    >>> changed(families.preset("digits"), posterior="planar", flow_steps=8).posterior
    planar(flow_steps=8)
    """
    left = dict(named)
    new = _changed(config, left)
    if left:
        raise UnknownSettingError(new, next(iter(left)))
    return new


def _changed(node: Any, left: dict[str, Any]) -> Any:
    values = {}
    for name, setting in fields_of(node).items():
        value = setting.value
        if name in left:
            value = _as_field(name, setting, left.pop(name))
        values[name] = value
    for name, value in values.items():
        if isinstance(value, Chosen):
            values[name] = _changed(value, left)
    if isinstance(node, Chosen):
        defaults = {name: parameter.default for name, parameter in node.parameters.items()}
        given = {n: v for n, v in values.items() if n in dict(node.given) or v != defaults[n]}
        return node.choice(node.name, **given)
    return dataclasses.replace(node, **values)


def _as_field(name: str, setting: Setting, value: Any) -> Any:
    """A value as its field holds it; the name of a member becomes the member."""
    before = setting.value
    if isinstance(before, Chosen) and isinstance(value, str):
        if value == before.name:
            return before
        if value not in before.choice.members():
            raise UnknownMemberError(before.choice, value, name)
        return before.choice(value)
    if isinstance(value, list):
        value = tuple(value)
    check_range(name, setting.annotation, value)
    return value


def owners(config: Any, name: str) -> dict[str, list[str]]:
    """The members that have a setting of this name, by field."""
    by_field: dict[str, list[str]] = {}
    for field, choice in choices_of(config):
        members = [
            member
            for member, function in choice.members().items()
            if name in parameters_of(function)
        ]
        if members:
            by_field.setdefault(field, []).extend(members)
    return by_field


def all_names(config: Any) -> set[str]:
    """Every name that a configuration of this type can have with any choices."""
    names = {field.name for field in dataclasses.fields(config)}
    for _, choice in choices_of(config):
        for function in choice.members().values():
            names |= parameters_of(function).keys()
    return names


def choice_names(config: Any) -> set[str]:
    """The names of all fields that can hold a member of a choice."""
    return {field for field, _ in choices_of(config)}


def choices_of(node: Any) -> Iterator[tuple[str, Choice]]:
    """Every choice that a configuration can have, with the name of its field."""
    for name, setting in fields_of(node).items():
        if isinstance(setting.value, Chosen):
            yield name, setting.value.choice
            for member in setting.value.choice.members():
                yield from choices_of(setting.value.choice(member))


def unknown(config: Any, name: str, spelled: Callable[[str], str] = str) -> str:
    """One sentence about a name that cannot be set.

    It names the members that the name belongs to, or the nearest name. ``spelled`` writes a name as
    the reader knows it, such as ``--kl-weight``.
    """
    belongs = owners(config, name)
    if belongs:
        places = " or ".join(f"{spelled(f)} {', '.join(members)}" for f, members in belongs.items())
        chosen = dict(settings_of(config))
        now = ", ".join(f"{spelled(f)} {chosen[f].value.name}" for f in belongs if f in chosen)
        return f"{spelled(name)} belongs to {places}" + (f"; here it is {now}" if now else "")
    near = difflib.get_close_matches(name, sorted(all_names(config)), 1)
    hint = f"; did you mean {spelled(near[0])}?" if near else ""
    return f"there is no setting {spelled(name)}{hint}"


# JSON


def to_json(node: Any) -> Any:
    """A configuration as JSON holds it. A member is ``{"is": name, setting: value}``."""
    if isinstance(node, Chosen):
        return {"is": node.name} | {name: to_json(value) for name, value in node.settings.items()}
    if dataclasses.is_dataclass(node):
        return {f.name: to_json(getattr(node, f.name)) for f in dataclasses.fields(node)}
    return list(node) if isinstance(node, tuple) else node


def from_json(config: C, values: Mapping[str, Any]) -> C:
    """The configuration, or the member, that ``to_json`` has written.

    ``config`` is any configuration of the type. Raises ValueError for a name that this version does
    not know.
    """
    if isinstance(config, Chosen):
        return _from_json(Setting(config, None, ""), values)
    settings = fields_of(config)
    for name in values:
        if name not in settings:
            raise ValueError(f"{_title(config)} has no {name}; it has {', '.join(settings)}")
    read = {name: _from_json(settings[name], value) for name, value in values.items()}
    return dataclasses.replace(config, **read)  # type: ignore[type-var]


def _from_json(setting: Setting, value: Any) -> Any:
    before = setting.value
    if not isinstance(before, Chosen):
        return tuple(value) if isinstance(value, list) else value
    settings = dict(value)
    member = before.choice(settings.pop("is"))
    known = fields_of(member)
    unknown_names = settings.keys() - known.keys()
    if unknown_names:
        raise ValueError(
            f"{member.name} has no {min(unknown_names)}; it has {', '.join(known) or 'no settings'}"
        )
    read = {name: _from_json(known[name], each) for name, each in settings.items()}
    return before.choice(member.name, **{n: v for n, v in read.items() if v != known[n].value})


def _title(node: Any) -> str:
    return node.name if isinstance(node, Chosen) else type(node).__name__


# Help


def summary_of(function: Callable) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


def argument_texts(function: Callable) -> dict[str, str]:
    """What the ``Args:`` section of a docstring says of each parameter."""
    texts: dict[str, str] = {}
    name = ""
    _, _, section = (inspect.getdoc(function) or "").partition("Args:\n")
    for line in section.split("\n\n")[0].splitlines():
        head, colon, rest = line.strip().partition(": ")
        if colon and head.isidentifier():
            name = head
            texts[name] = rest
        elif name:
            texts[name] += " " + line.strip()
    return texts


def field_texts(kind: type) -> dict[str, str]:
    """The strings below the fields of a dataclass and of its parents."""
    texts: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if dataclasses.is_dataclass(parent):
            texts |= _own_texts(parent)
    return texts


def _own_texts(kind: type) -> dict[str, str]:
    import ast
    import textwrap

    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # a class that was typed into a prompt
        return {}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts
