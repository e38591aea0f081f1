"""Which clips were cut from one recording: told by a table, or guessed from names so that people can be asked."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from offkey.data.dcase import parse_name
from offkey.types import ClipMeta, OffkeyError

__all__ = ["SessionError", "looks_cut", "read_groups", "with_sessions"]

_NUMBERED = re.compile(r"^(.+?)[ _.-](\d{1,4})$")
_Line = tuple[tuple[str, ...], str]  # parts of the path that a table's line names, and the recording that it tells
_SLICES = 3  # of a recording, at least, and as many recordings, before names are taken to say anything


class SessionError(OffkeyError):
    """A table of recordings that cannot be read, or that does not tell the recording of a clip."""


def read_groups(text: str) -> dict[str, str]:
    """`CSV:COLUMN` to a group a file, under the path that the table's column `file` has for it.

    Raises SessionError for what is no table in UTF-8, where the columns are missing, or a file is told two groups.
    """
    file, sign, column = text.rpartition(":")
    if not sign:
        raise SessionError(f"--groups {text!r}: expected CSV:COLUMN, for example truth.csv:flight")
    path = Path(file)
    groups: dict[str, str] = {}
    try:
        table = path.read_text(encoding="utf-8-sig")
        reader = csv.DictReader(io.StringIO(table, newline=""))
        names = reader.fieldnames or []
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SessionError(f"{path} cannot be read as a table ({error}); save it as CSV in UTF-8") from None
    if column not in names or "file" not in names:
        raise SessionError(f"{path} needs the columns file and {column}; it has {', '.join(names)}")
    for row in rows:
        name, group = (row["file"] or "").replace("\\", "/"), row[column] or ""
        if groups.setdefault(name, group) != group:
            raise SessionError(f"{path}: {name} is told two groups, {groups[name]} and {group}")
    return groups


def with_sessions(clips: Sequence[ClipMeta], groups: Mapping[str, str]) -> list[ClipMeta]:
    """The clips, each with the recording (`ClipMeta.session`) that `groups` (file -> recording) tells of it.

    A file is found by its name; where several of that name are told different recordings, by the folders that its path
    ends with. A line is for the clips whose paths end most like it: `pump/01.wav` tells nothing of `fan/01.wav` where
    there is a `pump/01.wav`. Raises SessionError for clips of which nothing is told, or nothing certain.
    """
    lines: dict[str, list[_Line]] = defaultdict(list)
    for file, group in groups.items():
        parts = PurePosixPath(file.replace("\\", "/")).parts
        if parts:
            lines[parts[-1]].append((parts, group))
    called: dict[str, list[Path]] = defaultdict(list)
    for clip in clips:
        called[clip.path.name].append(clip.path)
    told: dict[Path, list[_Line]] = {}
    for name, paths in called.items():
        nearest = {parts: max(_alike(path, parts) for path in paths) for parts, _ in lines[name]}
        for path in paths:
            told[path] = [line for line in lines[name] if _alike(path, line[0]) == nearest[line[0]]]
    silent = [clip for clip in clips if not any(group for _, group in told[clip.path])]
    if silent:
        more = f", nor of {len(silent) - 1} more" if silent[1:] else ""
        raise SessionError(
            f"the groups do not tell which recording {silent[0].path} was cut from{more}: every clip needs a "
            "line, with a name of its own where it is a recording by itself"
        )
    return [replace(clip, session=_session(clip.path, told[clip.path])) for clip in clips]


def _alike(path: Path, parts: Sequence[str]) -> int:
    """How many parts, from the last, a clip's path and a line's have in common."""
    own = path.absolute().parts[::-1]
    pairs = zip(own, parts[::-1], strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(own), len(parts)))


def _session(path: Path, lines: Sequence[_Line]) -> str:
    """The recording of the line that ends most like the clip's path."""
    best = max(_alike(path, parts) for parts, _ in lines)
    found = {group for parts, group in lines if _alike(path, parts) == best}
    if len(found) > 1 or "" in found:
        raise SessionError(
            f"the groups tell several recordings for files called {path.name} ({', '.join(sorted(found))}); name them "
            "with their folders in the column file"
        )
    return found.pop()


def looks_cut(names: Iterable[str]) -> int:
    """How many recordings clips of these names seem to be cut from; 0 where names do not say so.

    They do where all are a recording's name and a number (`monday_01.wav`, `monday_02.wav`, …), with at least three
    recordings, three slices each, numbered without a gap from 0 or 1. Names of the challenge never do.

    >>> looks_cut(f"{day}_{number}.wav" for day in ("mo", "tu", "we") for number in range(4))
    3
    """
    slices: dict[str, list[int]] = defaultdict(list)
    for name in names:
        found = None if parse_name(name) is not None else _NUMBERED.match(PurePosixPath(name).stem)
        if found is None:
            return 0
        slices[found[1]].append(int(found[2]))
    whole = all(
        len(numbers) >= _SLICES and sorted(numbers) in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))
        for numbers in slices.values()
    )
    return len(slices) if whole and len(slices) >= _SLICES else 0
