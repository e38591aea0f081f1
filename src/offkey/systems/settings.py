"""Reading and writing settings: TOML files, `--set` overrides, and errors that name the nearest known key."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from offkey.types import OffkeyError

__all__ = ["SettingsError", "apply_overrides", "parse_override", "read_toml", "to_toml", "toml_value", "validate"]

M = TypeVar("M", bound=BaseModel)


class SettingsError(OffkeyError):
    """A setting that does not exist or does not fit its type."""


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Split `a.b=value` into its path and value; the value is read as TOML, and as plain text if it is none.

    The word null takes a value away, which TOML has no word for.

    >>> parse_override("training.epochs=5")
    (('training', 'epochs'), 5)
    >>> parse_override("audio.channel=mean")
    (('audio', 'channel'), 'mean')
    >>> parse_override("audio.level_dbfs=null")
    (('audio', 'level_dbfs'), None)
    """
    key, sign, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not sign or not all(path):
        raise SettingsError(f"--set {text!r}: expected KEY=VALUE, for example training.epochs=5")
    if value.strip() == "null":
        return path, None
    try:
        return path, tomllib.loads(f"x = {value.strip()}")["x"]
    except tomllib.TOMLDecodeError:
        return path, value.strip()


def apply_overrides(tree: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of a settings tree with `KEY=VALUE` texts applied; list entries are named by number.

    >>> apply_overrides({"a": {"b": 1}, "c": [{"d": 2}]}, ["a.b=3", "c.0.d=4"])
    {'a': {'b': 3}, 'c': [{'d': 4}]}
    """
    result: dict[str, Any] = json.loads(json.dumps(tree))
    for text in overrides:
        path, value = parse_override(text)
        place: Any = result
        for step, part in enumerate(path[:-1]):
            place = place[_entry(place, path, step)] if isinstance(place, list) else place.setdefault(part, {})
            if not isinstance(place, dict | list):
                raise SettingsError(f"--set {text!r}: {'.'.join(path[: step + 1])} is a value, not a table")
        if isinstance(place, list):
            place[_entry(place, path, len(path) - 1)] = value
        else:
            place[path[-1]] = value
    return result


def _entry(place: list[Any], path: tuple[str, ...], step: int) -> int:
    name = path[step]
    if not name.isdecimal() or int(name) >= len(place):
        raise SettingsError(
            f"{'.'.join(path)}: {'.'.join(path[:step])} is a list of {len(place)}; "
            f"name an entry by its number, 0 to {len(place) - 1}"
        )
    return int(name)


def validate(model: type[M], tree: Mapping[str, Any], where: str) -> M:
    """Build `model` from a settings tree; SettingsError lists each fault and the nearest known name.

    `where` says in messages where the settings came from.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(model, fault) for fault in error.errors()]
        raise SettingsError(f"{where}: " + "; ".join(lines)) from None


def _explain(model: type[BaseModel], fault: Any) -> str:
    place = ".".join(_without_tags(model, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        known = sorted(_known_keys(model))
        if place in known:
            return f"{place} is a setting of another kind of {place.rpartition('.')[0]}"
        near = difflib.get_close_matches(place, known, n=1, cutoff=0.4) or difflib.get_close_matches(
            str(fault["loc"][-1]), [key.rpartition(".")[2] for key in known], n=1, cutoff=0.6
        )
        return f"unknown setting {place!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
    if fault["type"] == "union_tag_invalid":
        return f"{place}.name: there is no {fault['ctx']['tag']!r}; known: {fault['ctx']['expected_tags']}"
    if fault["type"] == "value_error" and isinstance(fault["input"], Mapping):  # of several settings together
        return f"{place}: {fault['ctx']['error']}" if place else str(fault["ctx"]["error"])
    return f"{place}: {fault['msg'].lower()} (got {fault['input']!r})"


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in model.model_fields.items():
        kinds = _tables_of(field.annotation)
        for kind in kinds.values():
            yield from _known_keys(kind, f"{prefix}{name}.")
        if not kinds:
            yield f"{prefix}{name}"


def _tables_of(annotation: Any) -> dict[str, type[BaseModel]]:
    """The kinds of table that a field may hold, by name (of one kind only: by an empty one)."""
    if isinstance(annotation, type):
        return {"": annotation} if issubclass(annotation, BaseModel) else {}
    kinds = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in get_args(annotation)]
    if not all(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
        return {}
    return {str(kind.model_fields["name"].default): kind for kind in kinds if "name" in kind.model_fields}


def _without_tags(model: type[BaseModel], place: Iterable[str | int]) -> Iterator[str]:
    """The path of a setting without the names of kinds, which pydantic puts between."""
    below: type[BaseModel] | None = model
    kinds: dict[str, type[BaseModel]] = {}
    for part in map(str, place):
        if part in kinds:
            below, kinds = kinds[part], {}
            continue
        yield part
        field = below.model_fields.get(part) if below is not None else None
        kinds = _tables_of(field.annotation) if field is not None else {}
        below = kinds.get("")


def to_toml(settings: BaseModel | Mapping[str, Any]) -> str:
    """Write settings as TOML; keys without a value (None) are left out, and reading it back gives the same.

    >>> print(to_toml({"name": "x", "audio": {"rate": 16000, "level": None}, "list": [{"a": 1}]}))
    name = "x"
    <BLANKLINE>
    [audio]
    rate = 16000
    <BLANKLINE>
    [[list]]
    a = 1
    <BLANKLINE>
    """
    tree = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else settings
    return "\n\n".join(block for block in _tables(tree, "") if block) + "\n"


def _tables(tree: Mapping[str, Any], path: str) -> Iterable[str]:
    plain = [f"{key} = {_value(value)}" for key, value in tree.items() if not _is_table(value) and value is not None]
    yield "\n".join(plain)
    for key, value in tree.items():
        if isinstance(value, Mapping):
            below = list(_tables(value, f"{path}{key}."))
            yield f"[{path}{key}]" + ("\n" + below[0] if below[0] else "")
            yield from below[1:]
        elif _is_table(value):
            for entry in value:
                below = list(_tables(entry, f"{path}{key}."))
                yield f"[[{path}{key}]]" + ("\n" + below[0] if below[0] else "")
                yield from below[1:]


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)
    )


def toml_value(value: Any) -> str:
    """One value as it stands behind the = in TOML; keys without a value (None) of a table are left out.

    >>> toml_value([{"a": 1, "b": None}, "c"])
    '[{ a = 1 }, "c"]'
    """
    return _value(value)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(entry)}" for key, entry in value.items() if entry is not None) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML, unlike JSON, refuses it bare


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; SettingsError names the file and the line that is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: is not valid TOML ({error})") from error
