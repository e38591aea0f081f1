"""Pages of the reference that are made from the program itself when the documentation is built (a hook of MkDocs).

`reference/command-line.md` holds the help of every command, `reference/settings.md` every setting with its default, its
range and what it does, and every preset. Neither is kept in the repository, so neither can grow stale.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from importlib import resources
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

PAGES = {"reference/command-line.md": "command_line", "reference/settings.md": "settings"}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those that MkDocs found."""
    from mkdocs.structure.files import File

    for place, make in PAGES.items():
        files.append(File.generated(config, place, content=globals()[make]()))
    return files


# ---- the command line


def command_line() -> str:
    """Markdown: one heading a command, below it what `--help` prints."""
    text = [
        "# Command line",
        "",
        "This page is what every command prints with `--help`. Results go to standard output; progress and complaints",
        "go to standard error. [Errors and exit codes](errors.md) says how a command ends,",
        "[Settings](settings.md) what `--set` takes.",
        "",
    ]
    for name, helped in commands():
        level = "##" if name.count(" ") < 2 else "###"
        text += [f"{level} `{name}`", "", "```text", helped, "```", ""]
    return "\n".join(text)


def commands() -> Iterator[tuple[str, str]]:
    """Every command's whole name and its help, groups before their members."""
    from typer.main import get_command

    from offkey.cli.app import app

    yield from _commands(get_command(app), "offkey", None)


def _commands(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    context = command.context_class(command, info_name=name.split()[-1], parent=parent, max_content_width=100)
    context.terminal_width = 100
    yield name, command.get_help(context).strip()
    for below, member in getattr(command, "commands", {}).items():
        yield from _commands(member, f"{name} {below}", context)


# ---- the settings


def settings() -> str:
    """Markdown: a table of keys for each part of the settings, the scorers, the simulated machines, the presets."""
    from offkey.data.synthetic import SynthConfig
    from offkey.scoring import SCORERS
    from offkey.systems.config import SystemConfig, ViewScorer

    text = [
        "# Settings",
        "",
        "Every key that a system has, with the default that holds where neither the preset nor you say otherwise.",
        "Change one with `--set KEY=VALUE`, or write a TOML file of your own",
        "([how](../how-to/change-settings.md)). An unknown key is an error that names the nearest known one.",
        "",
    ]
    for path, model in tables(SystemConfig):
        rows = list(keys(model, path))
        if not rows:
            continue
        title = f"`[{path}]`" if path else "The system itself"
        if path in ("model", "objective"):
            title += f' with `name = "{model.model_fields["name"].default}"`'
            rows = [row for row in rows if row[0] != f"{path}.name"]
        text += [f"## {title}", "", *_note(model), *_table(rows), ""]
    text += [
        "## `[[scoring.scorers]]`",
        "",
        "A list: each entry names a view of the clip and a scorer that judges it. In `--set` an entry is named by its",
        "number: `scoring.scorers.0.scorer.k=3`. With more than one entry the scores are blended",
        "([how](../explanation/scores.md#blending)).",
        "",
        *_table([row for row in keys(ViewScorer, "") if row[0] != "scorer"]),
        "",
        "`scorer` is one of the following; `name` says which.",
        "",
    ]
    for name, scorer in SCORERS.items():
        options = scorer.Options
        text += [f"### `{name}`", "", _first(scorer), "", *_table([r for r in keys(options, "") if r[0] != "name"]), ""]
    text += [
        "## Simulated machines",
        "",
        "What `offkey data synth --set KEY=VALUE` takes. These are no part of a system.",
        "",
        *_table(list(keys(SynthConfig, ""))),
        "",
        "## Presets",
        "",
        "The files behind the names that `--system` takes. A preset changes only what it mentions.",
        "",
    ]
    for name, content in presets():
        text += [f"### `{name}`", "", "```toml", content, "```", ""]
    return "\n".join(text)


def presets() -> Iterator[tuple[str, str]]:
    """Name and content of every preset."""
    from offkey.systems.config import preset_names

    for name in preset_names():
        file = resources.files("offkey.systems").joinpath(f"presets/{name}.toml")
        yield name, file.read_text(encoding="utf-8").strip()


def tables(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """A model and those below it, each with its path; lists of tables are left to their own chapter."""
    yield path, model
    for name, field in model.model_fields.items():
        for below in _models(field.annotation):
            yield from tables(below, f"{path}.{name}" if path else name)


def keys(model: type[BaseModel], path: str) -> Iterator[tuple[str, str, str, str]]:
    """Key, kind, default and meaning of each plain setting of a model."""
    for name, field in model.model_fields.items():
        if _models(field.annotation) or name == "scorers":
            continue
        yield f"{path}.{name}" if path else name, _kind(field), _default(field), field.description or ""


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _models(kind: Any) -> list[type[BaseModel]]:
    """The table that a setting is, or the kinds of table that it may be."""
    if _is_model(kind):
        return [typing.cast(type[BaseModel], kind)]
    inner = [typing.get_args(part)[0] for part in typing.get_args(kind) if typing.get_origin(part) is typing.Annotated]
    return inner if inner and all(map(_is_model, inner)) else []


def _kind(field: FieldInfo) -> str:
    bounds = []
    for rule in field.metadata:
        for word, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            limit = getattr(rule, word, None)
            if limit is not None:
                bounds.append(f"{sign} {limit:g}" if isinstance(limit, int | float) else f"{sign} {limit}")
    return ", ".join([_word(field.annotation), *bounds])


def _word(kind: Any) -> str:
    """A type in words that an engineer reads: whole number, number, text, yes or no, a choice, a list."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _word(inner[0])
    if origin is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys("nothing" if part is type(None) else _word(part) for part in inner))
    if origin is tuple:
        if len(inner) == 2 and inner[1] is Ellipsis:
            return f"list of {_plural(_word(inner[0]))}"
        return "(" + ", ".join(_word(part) for part in inner) + ")"
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return words.get(kind, "table" if _is_model(kind) else str(kind))


def _plural(word: str) -> str:
    return {"whole number": "whole numbers", "number": "numbers", "text": "texts", "table": "tables"}.get(word, word)


def _default(field: FieldInfo) -> str:
    from offkey.systems.settings import to_toml

    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "nothing"
    if isinstance(value, tuple) and any(isinstance(entry, BaseModel) for entry in value):
        return ", ".join(f"`{entry.name}`" for entry in value)
    return f"`{to_toml({'x': value}).strip().removeprefix('x = ')}`"


def _table(rows: list[tuple[str, str, str, str]]) -> list[str]:
    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    head = ["| key | kind | default | what it does |", "|---|---|---|---|"]
    return [*head, *(f"| `{key}` | {cell(kind)} | {cell(value)} | {cell(told)} |" for key, kind, value, told in rows)]


def _note(model: type[BaseModel]) -> list[str]:
    text = _first(model)
    return [text, ""] if text else []


def _first(thing: type) -> str:
    """The first paragraph of a docstring, as one line."""
    return " ".join((thing.__doc__ or "").strip().split("\n\n")[0].split())
