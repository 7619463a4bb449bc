"""The command line ``jaxvae COMMAND ...``, with one of ``COMMANDS``.

``train`` has a flag for every setting of its configuration. ``--posterior planar`` chooses a
member, and then the member's settings are flags too. A mistake ends in one sentence and with exit
code 2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib
import inspect
import io
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxvae import families, processes, settings, training
from jaxvae.runs.preparing import Job
from jaxvae.runs.training import train_in
from jaxvae.settings import Chosen, changed, choice_names, fields_of, settings_of
from jaxvae.stopping import Stop


class Command(NamedTuple):
    """A parsed command line of ``train``."""

    preset: str
    config: Any
    job: Job
    workdir: str | None
    start_from: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folders:
    """The folder that a run is written to, and the run that it starts from."""

    workdir: str | None = None
    """Run folder; None is runs/PRESET-DATASET-SEED, or the next free name after it."""
    start_from: str | None = None
    """Run folder of another run, whose parameters a new run starts from."""


# Parsing


def parse(arguments: Sequence[str], program: str = "jaxvae train") -> Command:
    """Reads a command line of ``train``: ``[PRESET] [--setting value ...]``.

    Raises ValueError with one sentence for an unknown preset, flag or member.
    """
    preset, rest = "digits", list(arguments)
    if rest and not rest[0].startswith("-"):
        preset, *rest = rest
    config = families.preset(preset)
    chosen, rest = _take_choices(config, rest)
    config = _choose(config, chosen)
    values = _values(preset, config, rest, program)
    in_job, in_folders = (_names(kind) for kind in (Job, Folders))
    job = Job(**{name: values[name] for name in in_job})
    folders = {name: values[name] for name in in_folders}
    in_config = values.keys() - in_job - in_folders
    named = {name: values[name] for name in values if name in in_config}
    try:
        return Command(preset, changed(config, **named), job, **folders)
    except ValueError as error:
        raise ValueError(_in_flags(str(error), config)) from None


def _choose(config: Any, chosen: dict[str, str]) -> Any:
    """The configuration with the members that were chosen."""
    try:
        return changed(config, **chosen)
    except settings.UnknownSettingError as error:
        raise ValueError(_unknown(error.config, {}, error.name)) from None
    except settings.UnknownMemberError as error:
        elsewhere = _presets_with(error.field, error.name)
        hint = f". {error.name} is of the presets {', '.join(elsewhere)}" if elsewhere else ""
        raise ValueError(_in_flags(str(error), config) + hint) from None


def _presets_with(field: str, member: str) -> list[str]:
    """Two presets of each family whose field can be a member, or always is."""
    having = []
    for family in families.FAMILIES.values():
        choices = [c for name, c in settings.choices_of(family.Config()) if name == field]
        always = member in family.members and field == "posterior"
        if always or any(member in choice.members() for choice in choices):
            having += list(family.presets)[:2]
    return having


def _names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def flag(name: str) -> str:
    """``kl_weight`` as the command line spells it: ``--kl-weight``."""
    return "--" + name.replace("_", "-")


def _in_flags(sentence: str, config: Any) -> str:
    """A sentence of the library, in which the names of settings become flags."""
    names = settings.all_names(config) | _names(Job) | _names(Folders)
    for name in sorted(names, key=len, reverse=True):
        sentence = re.sub(rf"(?<![\w-]){name}=", flag(name) + " ", sentence)
        verbs = "must|was|were|belongs|and|goes"
        sentence = re.sub(rf"(?<![\w-]){name}(?= (?:{verbs})\b)", flag(name), sentence)
        if "_" in name:
            sentence = re.sub(rf"(?<![\w-]){name}\b", flag(name), sentence)
    return re.sub(r"^(\w+): no ", lambda m: f"{flag(m[1])}: no ", sentence)


def _take_choices(config: Any, arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The chosen members, ``{field: name}``, and the rest of the command line."""
    choices = choice_names(config)
    chosen, rest, place = {}, [], 0
    while place < len(arguments):
        head, equals, value = arguments[place].partition("=")
        name = head[2:].replace("-", "_") if head.startswith("--") else ""
        place += 1
        if name not in choices:
            rest.append(arguments[place - 1])
            continue
        if not equals:
            if place == len(arguments):
                raise ValueError(f"{head} needs a value")
            value = arguments[place]
            place += 1
        chosen[name] = value
    return chosen, rest


def _values(preset: str, config: Any, arguments: list[str], program: str) -> dict[str, Any]:
    """The values of all settings that are no choices, read by tyro."""
    live = _live(config)
    for argument in arguments:
        name = argument.partition("=")[0][2:].replace("-", "_")
        if argument.startswith("--") and name not in live and name != "help":
            if name.startswith("no_") and name[3:] in live:
                continue
            raise ValueError(_unknown(config, live, name))
    fields = [(n, s.annotation, _field(n, s)) for n, s in live.items()]
    kind = dataclasses.make_dataclass("Settings", fields, frozen=True)
    text = f"{_first_lines(preset, config)}\n\n{_chosen_lines(config)}"
    read = _tyro(kind, arguments, f"{program} {preset}", text)
    return {field.name: getattr(read, field.name) for field in dataclasses.fields(kind)}


def _live(config: Any) -> dict[str, settings.Setting]:
    """Every setting that the command line has now and that is no choice, by name."""
    live = dict(fields_of(Folders()))
    live |= {n: s for n, s in settings_of(config) if not isinstance(s.value, Chosen)}
    return live | fields_of(Job())


def _field(name: str, setting: settings.Setting) -> Any:
    return dataclasses.field(default=setting.value, metadata={"help": setting.help})


def _unknown(config: Any, live: Mapping[str, Any], name: str) -> str:
    sentence = settings.unknown(config, name, flag)
    if " belongs to " in sentence:
        return sentence
    for _, other in families.presets().values():
        if name in settings.all_names(other):
            return f"{flag(name)} belongs to {_kin(name)}; this preset is of another family"
    names = sorted({*live, *settings.all_names(config)})
    near = difflib.get_close_matches(name, names, 1)
    return f"there is no {flag(name)}" + (f"; did you mean {flag(near[0])}?" if near else "")


def _kin(name: str) -> str:
    """The presets that have a setting, two of each family."""
    having = []
    for family in families.FAMILIES.values():
        if name in settings.all_names(family.Config()):
            having += list(family.presets)[:2]
    return "the presets " + ", ".join(having)


def _first_lines(preset: str, config: Any) -> str:
    rows = "\n".join(f"* {name}: {text}" for name, (text, _) in families.presets().items())
    return (
        f"{type(config).__doc__}\n\nusage: jaxvae train [PRESET] [--setting value ...]. The same "
        "command resumes a run that was stopped. Presets (digits is the default):\n\n" + rows
    )


def _chosen_lines(config: Any) -> str:
    """The choices and their present members, for the help."""
    lines = ["Choices. Once a member is chosen, its settings are flags too:", ""]
    for name, setting in settings_of(config):
        if isinstance(setting.value, Chosen):
            members = ", ".join(setting.value.choice.members())
            lines.append(f"* {flag(name)} {setting.value.name}: {setting.help} ({members})")
    return "\n".join(lines)


def _tyro(kind: type, arguments: list[str], program: str, description: str) -> Any:
    """Reads values by tyro. Raises ValueError with one sentence for a wrong value."""
    tyro = _import_tyro()
    annotated = {
        field.name: Annotated[field.type, tyro.conf.arg(help=field.metadata["help"])]
        for field in dataclasses.fields(kind)
    }
    for field in dataclasses.fields(kind):
        field.type = annotated[field.name]
    kind.__annotations__.update(annotated)
    kind.__doc__ = description
    if any(argument in ("--help", "-h") for argument in arguments):
        return tyro.cli(kind, args=arguments, prog=program, description=description)
    return _quietly(lambda: tyro.cli(kind, args=arguments, prog=program, description=description))


def _quietly(read: Callable[[], Any]) -> Any:
    """What tyro reads. A mistake that it would print becomes one sentence."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return read()
    except SystemExit as ended:
        if not ended.code:
            print(said.getvalue())
            raise
        raise ValueError(_sentence(said.getvalue())) from None


def _sentence(box: str) -> str:
    """The text that tyro prints in a box, without the box, its title and its advice."""
    lines = [re.sub(r"[╭╮╰╯│─]+", " ", line).strip() for line in box.splitlines()[1:]]
    said = []
    for line in lines:
        if not line.strip("- "):
            continue
        if line.startswith(("Argument helptext", "For full helptext")):
            break
        said.append(line)
    return " ".join(said)


def _import_tyro() -> Any:
    try:
        import tyro
    except ImportError:
        raise ValueError("the command line needs tyro: pip install 'jaxvae[train]'") from None
    return tyro


# Commands


def train(arguments: Sequence[str], program: str = "jaxvae train") -> None:
    """Trains a model, and resumes where a run with the same folder stopped."""
    command = parse(arguments, program)
    try:
        with Stop() as stop:
            train_in(
                command.preset,
                command.config,
                command.job,
                command.workdir,
                start_from=command.start_from,
                stop=stop,
            )
    except ValueError as error:
        raise ValueError(_in_flags(str(error), command.config)) from error


def _call(function: Callable, arguments: list[str], program: str) -> None:
    """Reads the arguments and then calls the function. A mistake becomes one sentence."""
    tyro = _import_tyro()
    held: list[Callable[[], Any]] = []

    @functools.wraps(function)
    def remember(*args: Any, **named: Any) -> None:
        held.append(lambda: _checked(function, args, named))

    read = lambda: tyro.cli(remember, args=arguments, prog=program)
    if any(argument in ("--help", "-h") for argument in arguments):
        read()
    _quietly(read)
    held[0]()


def _checked(function: Callable, args: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Calls a function after a check of the ranges that its annotations state."""
    signature = inspect.signature(function, eval_str=True)
    for name, value in signature.bind(*args, **named).arguments.items():
        settings.check_range(flag(name), signature.parameters[name].annotation, value)
    function(*args, **named)


def _in_room(room: str, name: str, text: str) -> Callable[[Sequence[str], str], None]:
    """The command of a function, whose module is imported when the command is called."""

    def command(arguments: Sequence[str], program: str) -> None:
        _call(getattr(importlib.import_module(room), name), list(arguments), program)

    command.__doc__ = text
    return command


EVALUATING, EXCHANGING = "jaxvae.runs.commands", "jaxvae.runs.interchange"
DENOISING, EXPORTING = "jaxvae.runs.denoising", "jaxvae.runs.exporting"
COMPARING = "jaxvae.runs.comparing"
COMMANDS: dict[str, Callable[[Sequence[str], str], None]] = {
    "train": train,
    "evaluate": _in_room(
        EVALUATING,
        "evaluate",
        "Evaluates a trained model on a split: bounds, log-likelihood and chosen metrics.",
    ),
    "sample": _in_room(
        EVALUATING, "sample", "Draws images from a trained model, as a picture and as arrays."
    ),
    "denoise": _in_room(
        DENOISING, "denoise", "Cleans a noisy picture with a model of nothing but its own patches."
    ),
    "separate": _in_room(
        "jaxvae.runs.separating",
        "separate",
        "Separates the speakers of a wav file of several channels, with a model of spectra.",
    ),
    "score": _in_room(
        "jaxvae.runs.scoring",
        "score",
        "Scores how anomalous examples are for a trained model.",
    ),
    "edit": _in_room(
        "jaxvae.runs.editing",
        "edit",
        "Gives examples an attribute: along a vector of latents, and by the least change.",
    ),
    "augment": _in_room(
        "jaxvae.runs.augmenting",
        "augment",
        "Makes new examples of every class, near the labelled examples of a file.",
    ),
    "compress": _in_room(
        "jaxvae.runs.compressing",
        "compress",
        "Compresses a .npy file of images: by bits-back coding, or with loss by rounded codes.",
    ),
    "decompress": _in_room(
        "jaxvae.runs.compressing",
        "decompress",
        "Decompresses a file of jaxvae compress into a .npy file.",
    ),
    "impute": _in_room(
        "jaxvae.runs.imputing",
        "impute",
        "Fills the missing cells of a table by a trained model, with intervals.",
    ),
    "annotate": _in_room(
        "jaxvae.runs.annotating",
        "annotate",
        "Writes codes, normalized expression and differences of groups for single cells.",
    ),
    "list": _in_room(COMPARING, "list_runs", "Lists the runs of a folder, and what they reached."),
    "compare": _in_room(
        COMPARING,
        "compare",
        "Compares runs: the settings in which they differ, results with intervals, pictures.",
    ),
    "import": _in_room(
        EXCHANGING, "import_folder", "Makes a run of an autoencoder that diffusers has saved."
    ),
    "export": _in_room(
        EXPORTING, "export", "Writes a model to a folder that others open, with jaxvae or without."
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one of ``COMMANDS``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    if name in ("--help", "-h"):
        print("usage: jaxvae COMMAND ...\n")
        for each, function in COMMANDS.items():
            print(f"  {each:<10} {(function.__doc__ or '').splitlines()[0]}")
        print("\njaxvae COMMAND --help lists the flags of a command.")
        return
    if name == "--version":
        import jaxvae

        print(jaxvae.__version__)
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        fail(f"no command {name!r}; there are {', '.join(COMMANDS)}.{hint}")
    run(COMMANDS[name], given[1:], f"jaxvae {name}")


def run_function(function: Callable) -> None:
    """Runs the function of a script. Its arguments are the script's flags."""
    called = lambda arguments, program: _call(function, list(arguments), program)
    run(called, sys.argv[1:], Path(sys.argv[0]).name)


def run(
    command: Callable[[Sequence[str], str], None], arguments: Sequence[str], program: str
) -> None:
    """Runs a command. A mistake ends in one sentence and exit code 2."""
    quiet_threads()
    use_compilation_cache()
    try:
        command(arguments, program)
    except (ValueError, OSError, training.NotFiniteError) as error:
        fail(error)


# Ends


def fail(error: Exception | str, place: Any = None) -> NoReturn:
    """Ends the process with one sentence and exit code 2.

    ``place`` is where an error of the file system happened. In a job of several processes none
    waits for the others. Process 0 stays a moment longer, because its end aborts the others.
    """
    if isinstance(error, OSError) and error.strerror:
        error = f"{error.filename or place}: {error.strerror}"
    print(f"error: {error}", file=sys.stderr, flush=True)
    if jax.process_count() > 1:
        time.sleep(2.0 if processes.is_first() else 0.0)
        os._exit(2)
    raise SystemExit(2)


def quiet_threads() -> None:
    """Leaves failures to the main thread, which reports them in a sentence.

    On a full disk TensorBoard's writer would print tracebacks from its thread and at the end.
    TensorStore and asyncio's log would print one for each write that Orbax has given up.
    """
    never = "exception was never retrieved"
    logging.getLogger("asyncio").addFilter(lambda record: never not in record.getMessage())
    in_threads, at_end, everywhere = threading.excepthook, sys.unraisablehook, sys.excepthook
    closed = lambda error: isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    quiet = lambda error: isinstance(error, OSError) or closed(error)
    threading.excepthook = lambda args: None if quiet(args.exc_value) else in_threads(args)
    sys.unraisablehook = lambda args: None if quiet(args.exc_value) else at_end(args)
    sys.excepthook = lambda kind, e, trace: None if closed(e) else everywhere(kind, e, trace)


def use_compilation_cache() -> None:
    """Keeps compiled programs in ~/.cache/jaxvae, or where JAX_COMPILATION_CACHE_DIR says."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None and caches.is_absolute():
        jax.config.update("jax_compilation_cache_dir", str(caches / "jaxvae"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        compilation_cache.reset_cache()  # JAX decided at its first compilation to use no cache
